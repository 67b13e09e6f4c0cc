"""The contract chain: its bytes, its rules, and one way to execute for blocks built, received and replayed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.contracts import (
    Address,
    Call,
    ContractChain,
    ContractRegistry,
    ContractRules,
    Deploy,
    EventRecord,
    GasSchedule,
    Proposal,
    Receipt,
    Status,
    Transaction,
    contract_address,
    decode_receipts,
    encode_receipts,
)
from holdfast.contracts.receipts import receipts_hash
from holdfast.contracts.transactions import (
    HEADER_BYTES,
    Header,
    decode_body,
    decode_header,
    decode_transaction,
    encode_body,
    encode_header,
    encode_transaction,
    header_hash,
)
from holdfast.errors import ForeignStore, InvalidBlock, InvalidInputError, StateError
from holdfast.store.chain import Ancestry, ChainSpec, ExecutingChain
from holdfast.types import ZERO_HASH, Block, BlockInfo
from tests.contract_makers import ALICE, BOB, Counter, DictState, Proxy, pack

COUNTER = contract_address(ALICE, 0)
NOBODY: Ancestry = None  # type: ignore[assignment]


def chain_with(*contracts: Any, **rules: Any) -> ContractChain:
    return ContractChain(ContractRegistry(contracts or (Counter, Proxy)), ContractRules(**rules))


def info_of(block: Block) -> BlockInfo:
    return BlockInfo(block.hash, block.parent, block.height, block.time, 1, 1, b"", 1, 0, 0, len(block.header), None)


def deploy(nonce: int = 0) -> Transaction:
    return Transaction(ALICE, Deploy("counter", 1), 100_000, nonce)


def add(amount: int, nonce: int = 0, caller: Address = ALICE) -> Transaction:
    return Transaction(caller, Call(COUNTER, "add", pack(amount)), 100_000, nonce)


def propose(chain: ContractChain, transactions: list[Transaction], state: DictState, parent: Block) -> Proposal:
    return chain.propose(info_of(parent), transactions, time=parent.time + 1, state=state)


@pytest.fixture
def chain() -> ContractChain:
    return chain_with()


# -- one way to execute ----------------------------------------------------------------------------------------------


def test_a_built_block_is_valid_and_gives_the_same_when_it_is_received(chain: ContractChain) -> None:
    """PR #2485, #2709: replay did not do what the live path did."""
    live, follower = DictState(), DictState()
    parent = chain.genesis()
    blocks = []
    for transactions in ([deploy(), add(1)], [add(2), add(3), add(-9, caller=BOB)], []):
        proposal = propose(chain, transactions, live, parent)
        blocks.append(proposal.block)
        parent = proposal.block
        assert [receipt.ok for receipt in proposal.receipts] == [True] * len(transactions)
    parent = chain.genesis()
    for block in blocks:
        assert block.body is not None
        bare = chain.decode(block.header, block.body, parent=info_of(parent))
        assert bare == replace(block, extra=None)
        for known in (bare, block):
            chain.validate(known, info_of(parent), NOBODY)
        extra = chain.execute(bare, info_of(parent), follower)
        assert extra == block.extra
        assert chain.state_root(bare) == follower.root()
        parent = block
    assert follower.rows == live.rows


def test_the_genesis_block_holds_nothing_so_replay_is_complete(chain: ContractChain) -> None:
    """PR #2724: balances of the genesis were no transactions, so replay was short."""
    genesis = chain.genesis()
    state = DictState()
    chain.validate(genesis, None, NOBODY)
    assert chain.execute(genesis, None, state) == genesis.extra == encode_receipts([])
    assert state.rows == {}
    assert chain.state_root(genesis) is None
    assert (genesis.height, genesis.parent) == (0, ZERO_HASH)


def test_failed_calls_are_in_the_block_with_their_receipts(chain: ContractChain) -> None:
    state = DictState()
    bad = Transaction(ALICE, Call(COUNTER, "add_then_revert", pack(1)), 100_000)
    poor = Transaction(ALICE, Call(COUNTER, "add", pack(1)), 10)
    proposal = propose(chain, [deploy(), bad, poor, add(5)], state, chain.genesis())
    assert [r.status for r in proposal.receipts] == [Status.OK, Status.REVERTED, Status.OUT_OF_GAS, Status.OK]
    assert proposal.block.extra is not None
    assert decode_receipts(proposal.block.extra) == proposal.receipts


def test_a_call_knows_its_transaction_height_and_time(chain: ContractChain) -> None:
    state = DictState()
    asks = [Transaction(ALICE, Call(COUNTER, name), 100_000) for name in ("identity", "block")]
    proposal = propose(chain, [deploy(), *asks], state, chain.genesis())
    assert proposal.receipts[1].result.endswith(asks[0].hash)
    assert proposal.receipts[2].result == bytes.fromhex("060002" + "020101" + "020101")


def test_an_execution_that_gives_other_receipts_is_refused(chain: ContractChain) -> None:
    state = DictState()
    block = propose(chain, [deploy(), add(1)], state, chain.genesis()).block
    header = replace(decode_header(block.header), receipts=bytes(32))
    forged = replace(block, header=encode_header(header), hash=header_hash(header), extra=None)
    chain.validate(forged, info_of(chain.genesis()), NOBODY)
    with pytest.raises(InvalidBlock, match="other receipts"):
        chain.execute(forged, None, DictState())
    with pytest.raises(InvalidBlock, match="must have a body"):
        chain.execute(replace(block, body=None), None, DictState())


def test_code_that_is_missing_refuses_the_block_and_writes_nothing(chain: ContractChain) -> None:
    block = propose(chain, [deploy(), add(1)], DictState(), chain.genesis()).block
    state = DictState()
    with pytest.raises(StateError, match="does not have the code"):
        chain_with(Proxy).execute(block, None, state)
    assert (state.rows, state.updates) == ({}, 0)


# -- what is refused -------------------------------------------------------------------------------------------------


def forge(chain: ContractChain, block: Block, **changes: Any) -> Block:
    header = replace(decode_header(block.header), **changes)
    return replace(
        block,
        header=encode_header(header),
        hash=header_hash(header),
        parent=header.parent,
        height=header.height,
        time=header.time,
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"rules": bytes(32)}, "other rules"),
        ({"parent": b"\x01" * 32}, "does not stand on its parent"),
        ({"height": 2}, "does not stand on its parent"),
        ({"time": 0}, "older than its parent"),
        ({"body": bytes(32)}, "body does not belong"),
        ({"receipts": bytes(32)}, "receipts do not belong"),
        ({"height": 0}, "another genesis"),
    ],
)
def test_a_block_that_breaks_a_rule_is_refused(changes: dict[str, Any], why: str) -> None:
    chain = chain_with(genesis_time=100)
    block = propose(chain, [deploy()], DictState(), chain.genesis()).block
    with pytest.raises(InvalidBlock, match=why):
        chain.validate(forge(chain, block, **changes), info_of(chain.genesis()), NOBODY)


def test_a_block_whose_fields_are_not_its_headers_is_refused(chain: ContractChain) -> None:
    block = propose(chain, [deploy()], DictState(), chain.genesis()).block
    for change in ({"hash": b"\x07" * 32}, {"time": 9}, {"work": 2}, {"producer": b"x"}, {"height": 3}):
        with pytest.raises(InvalidBlock, match="fields are not those"):
            chain.validate(replace(block, **change), info_of(chain.genesis()), NOBODY)
    with pytest.raises(InvalidBlock, match="must have a body"):
        chain.validate(replace(block, body=None), info_of(chain.genesis()), NOBODY)


def test_a_header_alone_is_enough_for_the_base_of_a_store(chain: ContractChain) -> None:
    block = propose(chain, [deploy()], DictState(), chain.genesis()).block
    assert chain.decode(block.header, None, parent=None) == replace(block, body=None, extra=None)


def test_a_block_has_enough_gas_and_no_transaction_twice() -> None:
    chain = chain_with(block_gas=300_000)
    state = DictState()
    with pytest.raises(InvalidInputError, match="more gas"):
        propose(chain, [deploy(), add(1), add(2), add(3)], state, chain.genesis())
    with pytest.raises(InvalidInputError, match="twice"):
        propose(chain, [add(1), add(1)], state, chain.genesis())
    with pytest.raises(InvalidInputError, match="not older"):
        chain.propose(info_of(chain.genesis()), [], time=-1, state=state)
    assert state.updates == 0
    assert len(propose(chain, [deploy(), add(1), add(1, nonce=1)], state, chain.genesis()).receipts) == 3
    wide = chain_with(block_gas=10**8)
    for bad in ([add(n) for n in range(4)], [add(1), add(1)]):
        body = encode_body(bad)
        header = replace(decode_header(wide.genesis().header), body=_body_hash(body))
        with pytest.raises(InvalidBlock):
            chain.decode(encode_header(header), body, parent=None)


def _body_hash(body: bytes) -> bytes:
    from holdfast.contracts.transactions import body_hash

    return body_hash(body)


# -- rules and identity ----------------------------------------------------------------------------------------------


def test_the_rules_are_named_in_the_identity_and_in_every_header() -> None:
    plain = chain_with()
    others = [
        chain_with(network="test"),
        chain_with(block_gas=99),
        chain_with(genesis_time=1),
        chain_with(schedule=GasSchedule(read=101)),
        chain_with(scheme="ics23-smt"),
    ]
    assert len({c.spec.id for c in [plain, *others]}) == 6
    for chain in [plain, *others]:
        again = ContractChain.from_spec(chain.spec, ContractRegistry())
        assert again.spec == chain.spec
        assert decode_header(chain.genesis().header).rules == chain.rules.hash
        assert isinstance(chain, ExecutingChain)
    assert plain.spec.id.startswith("main/")


def test_another_chain_is_refused() -> None:
    registry = ContractRegistry()
    with pytest.raises(ForeignStore, match="another kind"):
        ContractChain.from_spec(ChainSpec(name="pow"), registry)
    with pytest.raises(ForeignStore, match="another chain"):
        ContractChain.from_spec(replace(chain_with().spec, id="main/other"), registry)
    good = chain_with().spec.parameters
    for change in ({"more": "1"}, {"gas_more": "1"}, {"gas_read": "x"}, {"gas_read": "-1"}, {"block_gas": "1.5"}):
        with pytest.raises(InvalidInputError):
            ContractRules.from_mapping({**good, **change})
    for missing in ("network", "gas_read"):
        with pytest.raises(InvalidInputError):
            ContractRules.from_mapping({name: text for name, text in good.items() if name != missing})


@pytest.mark.parametrize(
    "rules",
    [
        {"network": ""},
        {"network": "\u00e9"},
        {"network": "x" * 65},
        {"block_gas": -1},
        {"block_gas": 1.0},
        {"genesis_time": 2**63},
        {"schedule": GasSchedule(write=0)},
        {"schedule": GasSchedule(delete=10)},
        {"schedule": GasSchedule(write_byte=0)},
        {"block_gas": 2**62},
    ],
)
def test_rules_that_cannot_hold_are_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        ContractRules(**rules)


# -- bytes -----------------------------------------------------------------------------------------------------------

addresses = st.binary(min_size=20, max_size=20).map(Address)
names = st.text("abcxyz_019", min_size=1, max_size=64)
arguments = st.binary(max_size=30)
transactions = st.builds(
    Transaction,
    addresses,
    st.one_of(
        st.builds(Call, addresses, names, arguments), st.builds(Deploy, names, st.integers(1, 2**31 - 1), arguments)
    ),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**64 - 1),
)
values = st.sampled_from([b"\x00", b"\x01\x01", b"\x02\x01\x07", b"\x03\x00\x00\x00\x01x"])
events = st.builds(EventRecord, addresses, names, st.lists(st.tuples(names, values), max_size=3).map(tuple))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
receipts = st.one_of(
    st.builds(Receipt, st.just(Status.OK), st.integers(0, 2**63 - 1), values, st.lists(events, max_size=3).map(tuple)),
    st.builds(
        Receipt,
        st.sampled_from([status for status in Status if status is not Status.OK]),
        st.integers(0, 2**63 - 1),
        st.just(b""),
        st.just(()),
        texts,
    ),
)


@given(st.lists(transactions, max_size=5))
def test_a_body_comes_back(found: list[Transaction]) -> None:
    assert decode_body(encode_body(found)) == found
    for transaction in found:
        assert decode_transaction(encode_transaction(transaction)) == transaction
    assert len({transaction.hash for transaction in found}) == len(set(found))


@given(st.lists(receipts, max_size=5))
def test_receipts_come_back(found: list[Receipt]) -> None:
    assert decode_receipts(encode_receipts(found)) == found


@given(st.lists(transactions, min_size=1, max_size=2), st.data())
def test_damaged_bodies_are_refused_or_mean_something_else(found: list[Transaction], data: st.DataObject) -> None:
    raw = bytearray(encode_body(found))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= 1 << data.draw(st.integers(0, 7))
    for damaged in (bytes(raw), bytes(raw[:place]), bytes(raw) + b"\x00"):
        try:
            other = decode_body(damaged)
        except InvalidBlock:
            continue
        assert encode_body(other) == damaged
        assert other != found


@given(st.lists(receipts, min_size=1, max_size=2), st.data())
def test_damaged_receipts_are_refused_or_mean_something_else(found: list[Receipt], data: st.DataObject) -> None:
    raw = bytearray(encode_receipts(found))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= 1 << data.draw(st.integers(0, 7))
    for damaged in (bytes(raw), bytes(raw[:place]), bytes(raw) + b"\x00"):
        try:
            other = decode_receipts(damaged)
        except InvalidInputError:
            continue
        assert encode_receipts(other) == damaged
        assert other != found


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_refused(raw: bytes) -> None:
    for candidate in (raw, raw[:1] + raw.ljust(HEADER_BYTES, b"\x00")[1:HEADER_BYTES]):
        try:
            header = decode_header(candidate)
        except InvalidBlock:
            continue
        assert encode_header(header) == candidate


def test_bytes_and_hashes_are_pinned() -> None:
    transaction = Transaction(ALICE, Call(BOB, "add", pack(5)), 1000, 7)
    assert encode_transaction(transaction).hex() == (
        "01" + "a1" * 20 + "0000000000000007" + "00000000000003e8" + "b0" * 20 + "03616464" + "00000004" + "01020105"
    )
    assert transaction.hash.hex() == "17979966e5938fc4ba90b10b17ecc2e5501b482f3f8cb5ee712746b07268969d"
    header = Header(1, 2, b"\x03" * 32, b"\x04" * 32, b"\x05" * 32, b"\x06" * 32, b"\x07" * 32)
    assert len(encode_header(header)) == HEADER_BYTES
    assert header_hash(header).hex() == "19fa3a80a1e363d29f47001635529eb4737a723c015f34fd1bb870c277ba363d"
    assert chain_with().genesis().hash.hex() == "d79dda90f9660da44a2ec9c1062450b7bcd30d04c198c8c19820ea7e369b4f5e"
    assert (
        receipts_hash(encode_receipts([])).hex() == "8c299c54fe468734deeb0903e539ea04ec9054fa67983d1811707b1f72ced26a"
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: Transaction(b"x", Deploy("a", 1), 1),  # type: ignore[arg-type]
        lambda: Transaction(ALICE, "a", 1),  # type: ignore[arg-type]
        lambda: Transaction(ALICE, Deploy("a", 1), -1),
        lambda: Transaction(ALICE, Deploy("a", 1), True),
        lambda: Transaction(ALICE, Deploy("a", 1), 1, 2**64),
        lambda: encode_body([deploy()] * 65_537),
    ],
)
def test_a_transaction_is_within_its_limits(make: Any) -> None:
    with pytest.raises(InvalidInputError):
        make()


def test_receipts_that_contradict_themselves_are_refused() -> None:
    event = EventRecord(ALICE, "seen", (("number", b"\x02\x00"),))
    for wrong, why in (
        (Receipt(Status.REVERTED, 1, b"", (event,)), "has no events"),
        (Receipt(Status.REVERTED, 1, b"\x00"), "has a result"),
        (Receipt(Status.OK, 1, b""), "has a result"),
        (Receipt(Status.OK, 1, b"\x02\x01\x00"), "shortest form"),
        (Receipt(Status.OK, 1, b"\x00", (replace(event, fields=(("number", b"\x09"),)),)), "unknown tag"),
    ):
        with pytest.raises(InvalidInputError, match=why):
            decode_receipts(encode_receipts([wrong]))
