"""Contracts on a store: built here, received elsewhere, reorganised, reopened, refused - always one state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast.contracts import (
    Address,
    Call,
    CallContext,
    Contract,
    ContractChain,
    ContractExecutor,
    ContractRegistry,
    Deploy,
    Status,
    Transaction,
    audit,
    build_block,
    contract_address,
    encode_receipts,
    read_receipts,
    read_transactions,
)
from holdfast.contracts.building import audited_tip, chain_of
from holdfast.contracts.examples import EXAMPLES
from holdfast.contracts.tools import call_from_json, deploy_from_json, list_contracts, view_json
from holdfast.contracts.transactions import decode_header, encode_header, header_hash
from holdfast.errors import CorruptionError, InvalidBlock, InvalidInputError, RootMismatch, StateError
from holdfast.store.store import Store
from holdfast.types import AddStatus, Block
from tests.contract_makers import ALICE, BOB, CAROL, Counter, Proxy, pack

ALL: tuple[type[Contract], ...] = (*EXAMPLES, Counter, Proxy)
TOKEN, ESCROW, COUNTER = (contract_address(ALICE, number) for number in range(3))
PROXY = contract_address(BOB, 0)


def new_chain(*contracts: type[Contract]) -> ContractChain:
    return ContractChain(ContractRegistry(contracts or ALL))


def opened(url: str | Path = "memory:", *contracts: type[Contract], **options: Any) -> Store:
    return holdfast.open(url, chain=new_chain(*contracts), **options)


def call(who: Address, where: Address, method: str, *arguments: object, nonce: int = 0) -> Transaction:
    return Transaction(who, Call(where, method, pack(*arguments)), 400_000, nonce)


def deploy(who: Address, name: str, *arguments: object) -> Transaction:
    return Transaction(who, Deploy(name, 1, pack(*arguments)), 400_000)


BLOCKS: list[list[Transaction]] = [
    [
        deploy(ALICE, "token", "HLD", 18),
        deploy(ALICE, "escrow"),
        deploy(ALICE, "counter"),
        deploy(BOB, "proxy", COUNTER),
        call(ALICE, TOKEN, "mint", ALICE, 10**30),
        call(ALICE, TOKEN, "approve", ESCROW, 10**20),
    ],
    [
        call(ALICE, ESCROW, "deposit", TOKEN, BOB, CAROL, 10**20, 9),
        call(BOB, PROXY, "add_fail_add"),
        call(BOB, PROXY, "call_myself", 0),
        call(BOB, COUNTER, "add_then_revert", 5),
        call(BOB, COUNTER, "note", "kept", 1),
    ],
    [],
    [
        call(CAROL, ESCROW, "release", 0),
        call(BOB, COUNTER, "forget", "kept"),
        call(CAROL, COUNTER, "list_notes", "", 5, False),
    ],
]


def filled(store: Store) -> list[Block]:
    for height, transactions in enumerate(BLOCKS, 1):
        build_block(store, transactions, time=height * 10)
    return [store.blocks.block(info) for info in store.blocks.canonical()]


def rows(store: Store) -> list[tuple[bytes, bytes]]:
    return list(store.state.scan())


@pytest.fixture
def live() -> Iterator[Store]:
    with opened() as store:
        filled(store)
        yield store


def test_a_node_that_receives_the_blocks_has_the_same_state_receipts_and_roots(live: Store) -> None:
    blocks = [live.blocks.block(info) for info in live.blocks.canonical()]
    with opened() as follower:
        for block in blocks[1:]:
            assert follower.add(replace(block, extra=None)).status is AddStatus.EXTENDED
        assert rows(follower) == rows(live)
        for mine, theirs in zip(live.blocks.canonical(), follower.blocks.canonical(), strict=True):
            assert mine.state_root == theirs.state_root
            assert read_receipts(live, mine) == read_receipts(follower, theirs)
            if mine.height:
                assert decode_header(live.blocks.header(mine)).state_root == mine.state_root
    tip = live.tip
    assert tip is not None
    assert read_transactions(live, tip) == BLOCKS[-1]
    assert [receipt.status for receipt in read_receipts(live, tip)] == [Status.OK] * 3


@pytest.mark.slow
def test_memory_and_disk_agree_and_a_reopened_store_goes_on(tmp_path: Path, live: Store) -> None:
    with opened(tmp_path / "data") as store:
        assert [b.hash for b in filled(store)] == [info.hash for info in live.blocks.canonical()]
    with opened(tmp_path / "data") as store:
        assert rows(store) == rows(live)
        more = [call(BOB, COUNTER, "add", 1)]
        assert build_block(store, more, time=50).info.state_root == build_block(live, more, time=50).info.state_root


def test_a_heavier_branch_brings_its_own_state_and_takes_the_other_away() -> None:
    with opened() as store, opened() as other:
        for node in (store, other):
            build_block(node, BLOCKS[0], time=10)
        build_block(store, [call(ALICE, COUNTER, "add", 7)], time=20)
        side = [
            build_block(other, [call(BOB, COUNTER, "add", number)], time=20 + number).info for number in (100, 200, 300)
        ]
        before = rows(store)
        first, second, third = (replace(other.blocks.block(info), extra=None) for info in side)
        assert store.add(first).status is AddStatus.SIDE
        assert rows(store) == before
        assert store.add(second).status is AddStatus.REORGANISED
        assert store.add(third).status is AddStatus.EXTENDED
        assert rows(store) == rows(other)
        asked = view_json(
            ContractExecutor(chain_of(store).registry), store.state, COUNTER, "get", height=5, timestamp=99
        )
        assert asked["result"] == "600"


def test_a_block_with_a_wrong_root_or_receipts_is_refused_and_nothing_is_changed(live: Store) -> None:
    with opened() as other:
        filled(other)
        built = other.blocks.block(build_block(other, [call(BOB, COUNTER, "add", 1)], time=50).info)
    tip, before = live.tip, rows(live)
    for field, error in (("state_root", RootMismatch), ("receipts", InvalidBlock)):
        header = replace(decode_header(built.header), **{field: b"\x13" * 32})  # type: ignore[arg-type]
        forged = replace(built, header=encode_header(header), hash=header_hash(header), extra=None)
        with pytest.raises(error):
            live.add(forged)
        assert (live.tip, rows(live)) == (tip, before)
    assert live.add(replace(built, extra=None)).status is AddStatus.EXTENDED, "the handle is usable"


def test_an_empty_block_with_a_wrong_root_is_refused(live: Store) -> None:
    with opened() as other:
        filled(other)
        built = other.blocks.block(build_block(other, [], time=50).info)
    header = replace(decode_header(built.header), state_root=b"\x13" * 32)
    with pytest.raises(RootMismatch):
        live.add(replace(built, header=encode_header(header), hash=header_hash(header), extra=None))
    assert live.add(built).status is AddStatus.EXTENDED


def test_code_that_is_missing_refuses_the_block_and_the_node_goes_on_after_it_has_it(live: Store) -> None:
    """PR #1961: a refused block left a flag set, and nothing could be written any more."""
    blocks = [live.blocks.block(info) for info in live.blocks.canonical()]
    registry = ContractRegistry([*EXAMPLES, Counter])
    with holdfast.open("memory:", chain=ContractChain(registry)) as store:
        with pytest.raises(StateError, match="does not have the code") as caught:
            store.add(blocks[1])
        assert caught.value.context["contract"] == "proxy 1"
        assert store.tip is not None
        assert store.tip.height == 0
        assert rows(store) == []
        registry.register(Proxy)
        for block in blocks[1:]:
            store.add(block)
        assert rows(store) == rows(live)


def test_a_block_that_cannot_be_built_changes_nothing(live: Store) -> None:
    tip, before = live.tip, rows(live)
    twice = [call(BOB, COUNTER, "add", 1)] * 2
    with pytest.raises(InvalidInputError, match="twice"):
        build_block(live, twice, time=50)
    with pytest.raises(InvalidInputError, match="not older"):
        build_block(live, [], time=39)
    with pytest.raises(StateError, match="does not have the code"):
        build_block(live, [deploy(ALICE, "unheard")], time=50)
    assert (live.tip, rows(live)) == (tip, before)
    assert build_block(live, twice[:1], time=50).receipts[0].ok


def test_old_states_are_asked_by_view(live: Store) -> None:
    executor = ContractExecutor(chain_of(live).registry)

    def balance(height: int) -> object:
        found = view_json(
            executor, live.state.at(height), TOKEN, "balance_of", ["0x" + BOB.hex()], height=height, timestamp=99
        )
        return found["result"]

    assert [balance(height) for height in (1, 2, 3, 4)] == ["0", "0", "0", str(10**20)]


def test_the_tools_work_on_a_store(live: Store) -> None:
    assert [row["name"] for row in list_contracts(live.state)].count("token") == 1
    registry = chain_of(live).registry
    made = deploy_from_json(registry, "names", 1, ["10"], caller=CAROL, gas_limit=400_000)
    receipt = build_block(live, [made], time=60).receipts[0]
    assert receipt.ok
    names = contract_address(CAROL, 0)
    register = call_from_json(registry, live.state, names, "register", ["carol"], caller=CAROL, gas_limit=400_000)
    assert build_block(live, [register], time=60).receipts[0].ok


def test_the_executor_works_on_any_draft() -> None:
    """Without the contract chain: a chain of one's own puts the root into its own header."""
    executor = ContractExecutor(ContractRegistry(ALL))
    with holdfast.open("memory:") as store:
        draft = store.draft()
        executor.begin_block(draft.state, height=0, timestamp=1)
        receipt = executor.deploy(Deploy("counter", 1), CallContext(ALICE, 0, 1, 100_000, bytes(32)))
        root = executor.finalize_block()
        assert root == draft.state.root()
        info = store.commit(draft, hash=b"\x01" * 32, header=root, extra=encode_receipts([receipt]))
        assert info.state_root == root
        with pytest.raises(InvalidInputError, match="contract chain"):
            build_block(store, [], time=1)


def test_a_discarded_block_leaves_the_draft_untouched() -> None:
    executor = ContractExecutor(ContractRegistry(ALL))
    with holdfast.open("memory:") as store:
        draft = store.draft()
        before = draft.state.root()
        executor.begin_block(draft.state, height=0, timestamp=1)
        executor.deploy(Deploy("counter", 1), CallContext(ALICE, 0, 1, 100_000, bytes(32)))
        executor.discard()
        assert draft.state.root() == before
        assert not draft.state.changed


def test_a_proof_of_a_balance_needs_only_the_header(live: Store) -> None:
    (key,) = (key for key, _ in rows(live) if key.endswith(b"\x08balances" + bytes(BOB)))
    proof = live.state.prove(key)
    tip = live.tip
    assert tip is not None
    root = decode_header(live.blocks.header(tip)).state_root
    proof.verify(root, key, live.state[key])


def test_an_audit_executes_every_block_again(live: Store) -> None:
    seen: list[int] = []
    assert audit(live, progress=seen.append) == 5
    assert seen == [0, 1, 2, 3, 4]
    with holdfast.open("memory:") as other, pytest.raises(InvalidInputError, match="contract chain"):
        audit(other)


@pytest.mark.parametrize("honest_root", [False, True])
def test_an_audit_finds_what_comes_from_no_transaction(live: Store, honest_root: bool) -> None:
    """#1983, #1993: a backfill at start minted 50 000 units that stood in no block."""
    chain = chain_of(live)
    draft = live.draft()
    assert draft.parent is not None
    block = chain.propose(draft.parent, [call(BOB, COUNTER, "add", 1)], time=50, state=draft.state).block
    (key,) = (key for key, _ in rows(live) if key.endswith(b"\x08balances" + bytes(BOB)))
    draft.state[key] = b"\x02\x02\x7f\xff"
    header = replace(decode_header(block.header), state_root=draft.state.root())
    if not honest_root:
        with pytest.raises(RootMismatch):
            live.commit(draft, hash=block.hash, header=block.header, body=block.body, time=50, extra=block.extra)
        return
    live.commit(
        draft, hash=header_hash(header), header=encode_header(header), body=block.body, time=50, extra=block.extra
    )
    with pytest.raises(CorruptionError, match="cannot be executed again") as caught:
        audit(live)
    assert caught.value.context["height"] == 5


def test_an_audit_finds_receipts_that_were_not_stored(live: Store) -> None:
    draft = live.draft()
    assert draft.parent is not None
    block = chain_of(live).propose(draft.parent, [call(BOB, COUNTER, "add", 1)], time=50, state=draft.state).block
    live.commit(draft, hash=block.hash, header=block.header, body=block.body, time=50)
    with pytest.raises(CorruptionError, match="without the receipts"):
        audit(live)


def test_an_audit_is_of_one_branch_whatever_happens_meanwhile() -> None:
    """The rows of the canonical chain come in pages: a reorganisation between two of them is no fault of a block."""

    with opened() as store, opened() as other:
        common = [build_block(store, [], time=1).info for _ in range(250)]
        other.add_many([store.blocks.block(info) for info in common])
        seen = [build_block(store, [], time=2).info for _ in range(10)]
        better = [other.blocks.block(build_block(other, [], time=3).info) for _ in range(12)]

        def reorganise(height: int) -> None:
            if height == 100:
                store.add_many(better)

        assert audit(store, progress=reorganise) == seen[-1].height + 1
        assert store.tip is not None
        assert store.tip.hash == better[-1].hash
        assert audited_tip(store) == store.tip
