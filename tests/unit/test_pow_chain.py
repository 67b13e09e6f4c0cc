"""The rules of the pow chain on a small tree of blocks, without a store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from holdfast.chains.pow.chain import PowChain, from_stored, genesis_block, to_stored
from holdfast.chains.pow.codec import (
    ImportRecord,
    PowBlock,
    PowData,
    PowHeader,
    data_hash,
    encode_data,
    encode_import_record,
)
from holdfast.chains.pow.mining import meets_target, mine
from holdfast.chains.pow.rules import PowParameters, work_of
from holdfast.errors import ForeignStore, InvalidBlock
from holdfast.store.chain import ChainSpec
from holdfast.types import ZERO_HASH, Block, BlockInfo

EASY = PowParameters(initial_difficulty=1, target_block_seconds=60)
START = 1_700_000_000


class Tree:
    """An ``Ancestry`` over a dict."""

    def __init__(self, chain: PowChain) -> None:
        self.chain = chain
        self.infos: dict[bytes, BlockInfo] = {}
        self.headers: dict[bytes, bytes] = {}
        self.tip = self.put(chain.genesis())

    def put(self, block: Block) -> BlockInfo:
        parent = self.infos.get(block.parent)
        total = block.work + (parent.total_work if parent else 0)
        self.infos[block.hash] = BlockInfo(
            *(block.hash, block.parent, block.height, block.time, block.work, total, block.producer),
            *(0, 0, 0, len(block.header), len(block.body or b"")),
        )
        self.headers[block.hash] = block.header
        return self.infos[block.hash]

    def info(self, block_hash: bytes) -> BlockInfo | None:
        return self.infos.get(block_hash)

    def header(self, block: BlockInfo) -> bytes:
        return self.headers[block.hash]

    def ancestor(self, block: BlockInfo, height: int) -> BlockInfo | None:
        found: BlockInfo | None = block
        while found is not None and found.height > height:
            found = self.infos.get(found.parent)
        return found

    def block(self, parent: BlockInfo, time: int, *, difficulty: int | None = None, peer: str = "p") -> Block:
        data = PowData(peer, parent.height)
        if difficulty is None:
            difficulty = self.chain.expected_difficulty(parent, self)
        header = PowHeader(parent.height + 1, time, parent.hash, data_hash(data), difficulty, 0)
        return to_stored(PowBlock(header.with_nonce(mine(header)), data))

    def extend(self, parent: BlockInfo, count: int, *, seconds: int) -> BlockInfo:
        for _ in range(count):
            block = self.block(parent, max(parent.time, START) + seconds)
            self.chain.validate(block, parent, self)
            parent = self.put(block)
        return parent


@pytest.fixture
def tree() -> Tree:
    return Tree(PowChain(EASY))


def test_genesis_is_the_same_for_equal_parameters_only() -> None:
    one, other = PowChain(PowParameters()), PowChain(PowParameters())
    assert one.genesis() == other.genesis()
    assert one.spec == other.spec
    block = one.genesis()
    assert (block.height, block.time, block.parent, block.producer) == (0, 0, ZERO_HASH, b"")
    assert block.hash.hex() == "37ee2a40a3cc6f8048c326564609790933308181713b4aa399f0d04d85ec25bb"
    assert PowChain(EASY).genesis().hash != block.hash
    one.validate(block, None, Tree(one))


def test_specs_of_different_networks_differ() -> None:
    specs = [
        PowChain(parameters).spec
        for parameters in (
            PowParameters(),
            PowParameters(network="other"),
            PowParameters(initial_difficulty=2),
            PowParameters(target_block_seconds=61),
            PowParameters(minimum_block_timestamp=1),
        )
    ]
    assert all(one != other for i, one in enumerate(specs) for other in specs[:i])
    assert (specs[0].epoch_length, specs[0].epoch_origin, specs[0].fork_choice) == (40, 0, "heaviest")


def test_chain_from_its_spec() -> None:
    chain = PowChain(PowParameters("net", 3, 5, 7))
    assert PowChain.from_spec(chain.spec).parameters == chain.parameters
    with pytest.raises(ForeignStore):
        PowChain.from_spec(ChainSpec(name="evm"))
    with pytest.raises(ForeignStore):
        PowChain.from_spec(replace(chain.spec, epoch_origin=1))


def test_decode_gives_back_the_block(tree: Tree) -> None:
    block = tree.block(tree.tip, START)
    assert tree.chain.decode(block.header, block.body, parent=tree.tip) == block
    extra = encode_import_record(ImportRecord(seen_at=5))
    assert tree.chain.decode(block.header, block.body, parent=None, extra=extra) == replace(block, extra=extra)
    assert block.work == work_of(1)
    assert block.producer == b"p"


def test_decode_refuses_bodies_of_other_blocks(tree: Tree) -> None:
    block = tree.block(tree.tip, START)
    for body in (None, b"", encode_data(PowData("q", 0)), (block.body or b"") + b"\0"):
        with pytest.raises(InvalidBlock):
            tree.chain.decode(block.header, body, parent=tree.tip)
    with pytest.raises(InvalidBlock):
        tree.chain.decode(block.header[:-1], block.body, parent=tree.tip)
    with pytest.raises(InvalidBlock):
        tree.chain.decode(block.header, block.body, parent=tree.tip, extra=b"?")


def remade(block: Block, change: Callable[[PowHeader], PowHeader]) -> Block:
    """The block with a changed header, its hash and work recomputed, mined again."""
    old = from_stored(block.header, block.body)
    header = change(old.header)
    return to_stored(PowBlock(header.with_nonce(mine(header)), old.data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: replace(h, index=3), "index jumps"),
        (lambda h: replace(h, index=1), "index jumps"),
        (lambda h: replace(h, parent=bytes(31) + b"x"), "another parent"),
        (lambda h: replace(h, time=START), "older than its parent"),
        (lambda h: replace(h, difficulty=2), "wrong difficulty"),
    ],
)
def test_each_rule_on_the_parent(tree: Tree, change: Callable[[PowHeader], PowHeader], message: str) -> None:
    parent = tree.extend(tree.tip, 1, seconds=10)
    block = tree.block(parent, parent.time)
    tree.chain.validate(block, parent, tree)  # a time equal to the parent's is allowed
    with pytest.raises(InvalidBlock, match=message):
        tree.chain.validate(remade(block, change), parent, tree)


def test_missing_proof_of_work(tree: Tree) -> None:
    block = from_stored(*stored(tree.block(tree.tip, START)))
    nonce = next(n for n in range(99) if not meets_target(PowBlock(block.header.with_nonce(n), block.data).hash, 1))
    with pytest.raises(InvalidBlock, match="proof of work"):
        tree.chain.validate(to_stored(PowBlock(block.header.with_nonce(nonce), block.data)), tree.tip, tree)


def stored(block: Block) -> tuple[bytes, bytes | None]:
    return block.header, block.body


@pytest.mark.parametrize(
    "fields",
    [
        {"hash": bytes(32)},
        {"work": 10**9},
        {"time": START + 1},
        {"height": 2},
        {"producer": b"q"},
        {"parent": bytes(32)},
    ],
)
def test_fields_must_be_those_of_the_bytes(tree: Tree, fields: dict[str, object]) -> None:
    block = replace(tree.block(tree.tip, START), **fields)  # type: ignore[arg-type]
    with pytest.raises(InvalidBlock):
        tree.chain.validate(block, tree.tip, tree)


def test_body_must_belong_to_the_header(tree: Tree) -> None:
    block = tree.block(tree.tip, START)
    with pytest.raises(InvalidBlock, match="does not belong"):
        tree.chain.validate(replace(block, body=encode_data(PowData("p", 1))), tree.tip, tree)


def test_another_genesis_is_refused(tree: Tree) -> None:
    other = genesis_block(PowParameters(initial_difficulty=2))
    with pytest.raises(InvalidBlock, match="genesis"):
        tree.chain.validate(to_stored(other), None, tree)


def test_minimum_timestamp_spares_genesis_only() -> None:
    chain = PowChain(PowParameters(initial_difficulty=1, minimum_block_timestamp=START))
    tree = Tree(chain)
    chain.validate(chain.genesis(), None, tree)
    chain.validate(tree.block(tree.tip, START), tree.tip, tree)
    with pytest.raises(InvalidBlock, match="than the chain allows"):
        chain.validate(tree.block(tree.tip, START - 1), tree.tip, tree)


def test_a_base_above_genesis_is_checked_alone(tree: Tree) -> None:
    parent = tree.extend(tree.tip, 2, seconds=1)
    block = tree.block(parent, parent.time, difficulty=5)
    tree.chain.validate(block, None, tree)
    header = from_stored(*stored(block)).header
    bad = next(
        b
        for n in range(9)
        if not meets_target((b := PowBlock(header.with_nonce(n), PowData("p", parent.height))).hash, 5)
    )
    with pytest.raises(InvalidBlock, match="proof of work"):
        tree.chain.validate(to_stored(bad), None, tree)


def test_difficulty_follows_each_branch(tree: Tree) -> None:
    """Two branches of one epoch: the fast one is retargeted up, the slow one keeps 1."""
    fork = tree.extend(tree.tip, 20, seconds=60)
    fast = tree.extend(fork, 19, seconds=0)
    slow = tree.extend(fork, 19, seconds=600)
    assert fast.height == slow.height == 39
    # From block 1: 19 intervals of 60 s against 38 = 1/2, not below it, so x 3/2 and at least one more.
    assert tree.chain.expected_difficulty(fast, tree) == 2
    assert tree.chain.expected_difficulty(slow, tree) == 1
    with pytest.raises(InvalidBlock, match="wrong difficulty"):
        tree.chain.validate(tree.block(fast, fast.time, difficulty=1), fast, tree)
    tree.chain.validate(tree.block(fast, fast.time), fast, tree)


def test_difficulty_of_two_epochs(tree: Tree) -> None:
    last = tree.extend(tree.tip, 39, seconds=60)  # on target, genesis's time 0 not counted
    assert tree.chain.expected_difficulty(last, tree) == 1
    last = tree.extend(last, 40, seconds=1)
    assert last.height == 79
    assert tree.chain.expected_difficulty(last, tree) == 8
    first = tree.extend(last, 1, seconds=60)
    assert tree.chain.expected_difficulty(first, tree) == 8


def test_an_epoch_that_is_not_stored_whole_keeps_its_difficulty() -> None:
    chain = PowChain(EASY)
    tree = Tree(chain)
    last = tree.extend(tree.tip, 79, seconds=1)
    kept = tree.chain.expected_difficulty(tree.infos[last.parent], tree)
    for info in [i for i in tree.infos.values() if i.height < 50]:
        del tree.infos[info.hash]
    assert tree.chain.expected_difficulty(last, tree) == kept
