"""Adding blocks: many at once is the same as one by one, blocks may wait for their parent, refusals change nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import holdfast
from holdfast import Store
from holdfast.errors import (
    ConflictError,
    HoldfastError,
    IndexFailed,
    InvalidBlock,
    InvalidInputError,
    LimitExceeded,
    ParentUnknown,
)
from holdfast.store.chain import Ancestry, ChainSpec, CustomChain
from holdfast.store.indexes import index
from holdfast.types import ZERO_HASH, AddStatus, Block, BlockInfo, BlockStatus
from tests.unit.store_support import Model, assert_store, chain_of, hash_of, make, open_quick, quick


def grown(count: int = 5, **fields: object) -> tuple[Store, list[Block]]:
    store = open_quick("memory:", **fields)
    blocks = chain_of(None, count)
    store.add_many(blocks)
    return store, blocks


def seq(store: Store) -> int:
    journal = store.statistics()["journal"]
    assert isinstance(journal, dict)
    return int(journal["appended_seq"])


def everything(store: Store) -> object:
    """What readers of a store can see, but times and frame numbers."""
    return (
        store.tip and store.tip.hash,
        [info.hash for info in store.blocks.canonical()],
        [(info.hash, info.reason, info.competing_hash, info.was_canonical) for info in store.blocks.orphans()],
        store.blocks.statistics(),
        [(tip.hash, tip.branch_length, tip.status) for tip in store.blocks.tips()],
    )


# -- many at once ---------------------------------------------------------------------------------------------------


class _Picky(CustomChain):
    """Refuses what a test marks, and looks at parents while it judges."""

    def validate(self, block: Block, parent: BlockInfo | None, ancestry: Ancestry) -> None:
        if parent is not None:
            assert ancestry.info(parent.hash) == parent
            assert ancestry.header(parent).startswith(b"header")
            root = ancestry.ancestor(parent, 0)
            assert root is not None
            assert root.height == 0
        if block.producer == b"bad":
            raise InvalidBlock("marked as bad", hash=block.hash)


@given(data=st.data())
def test_many_at_once_is_the_same_as_one_by_one(data: st.DataObject) -> None:
    pool: list[Block] = [make(None, "root")]
    count = data.draw(st.integers(1, 14), label="blocks")
    kinds = st.sampled_from(["next", "next", "next", "fork", "bad", "again", "jump", "lost", "long", "heavy"])
    for number in range(count):
        kind = data.draw(kinds, label="kind")
        parent = pool[-1]
        if kind == "fork":
            parent = pool[data.draw(st.integers(0, len(pool) - 1), label="parent")]
        if kind == "again":
            pool.append(pool[data.draw(st.integers(0, len(pool) - 1), label="again")])
        elif kind == "bad":
            pool.append(make(parent, number, producer=b"bad"))
        elif kind == "jump":
            pool.append(make(parent, number, height=parent.height + 2))
        elif kind == "lost":
            pool.append(make(make(parent, "lost"), number))
        elif kind == "long":
            pool.append(replace(make(parent, number), header=bytes(1024 * 1024 + 1)))
        elif kind == "heavy":
            pool.append(make(parent, number, work=2**256 - 1))
        else:
            pool.append(make(parent, number))
    chain = _Picky(ChainSpec("custom"))
    fields = {
        "max_orphans": data.draw(st.sampled_from([1, 100])),
        "max_reorg_depth": data.draw(st.sampled_from([2, 99])),
    }
    forced = {3: hash_of("forced")} if data.draw(st.booleans(), label="forced") else {}
    stores = [holdfast.open("memory:", chain=chain, settings=quick(**fields), forced_blocks=forced) for _ in range(2)]
    refused: list[type[HoldfastError] | None] = [None, None]
    answers: list[list[object]] = [[], []]
    try:
        answers[0] = [(result.status, result.block and result.block.hash) for result in stores[0].add_many(pool)]
    except HoldfastError as error:
        refused[0] = type(error)
    for block in pool:
        try:
            result = stores[1].add(block)
            answers[1].append((result.status, result.block and result.block.hash))
        except HoldfastError as error:
            refused[1] = type(error)
            break
    assert refused[0] == refused[1]
    if refused[0] is None:
        assert answers[0] == answers[1]
    assert everything(stores[0]) == everything(stores[1])


def test_a_run_shares_frames_and_one_sync() -> None:
    store, _ = grown(1)
    assert store.tip is not None
    before = seq(store)
    blocks = chain_of(store.tip, 600)
    results = store.add_many(blocks)
    assert seq(store) - before == 5  # 128 blocks a frame
    assert [result.block and result.block.hash for result in results] == [block.hash for block in blocks]
    assert len({result.block.seq for result in results if result.block}) == 5
    assert all(store.blocks.block(store.blocks.load(block.hash)) == block for block in blocks[250:260])


@pytest.mark.parametrize(
    "change",
    [
        {"header": bytes(1024 * 1024 + 1)},
        {"header": "text"},
        {"hash": b"short"},
        {"hash": None},
        {"parent": None},
        {"height": "3"},
        {"height": True},
        {"height": -1},
        {"time": 2**64},
        {"work": 2**256},
        {"work": -1},
        {"producer": bytes(129)},
        {"body": "text"},
        {"extra": 7},
        {"hash": ZERO_HASH},
    ],
)
def test_what_stands_before_a_bad_block_is_stored(change: dict[str, object]) -> None:
    blocks = chain_of(None, 5)
    store = open_quick("memory:")
    bad = replace(blocks[3], **change)  # type: ignore[arg-type]
    with pytest.raises((InvalidInputError, LimitExceeded, InvalidBlock)):
        store.add_many([*blocks[:3], bad, blocks[4]])
    assert store.tip is not None
    assert store.tip.hash == blocks[2].hash
    with pytest.raises((InvalidInputError, LimitExceeded, InvalidBlock)):
        store.add(bad)
    assert store.add_many(blocks[3:])[-1].status is AddStatus.EXTENDED


def test_a_failing_index_refuses_its_block_only() -> None:
    @index("picky")
    def picky(block: Block) -> list[tuple[bytes, bytes]]:
        if block.producer == b"bad":
            raise RuntimeError("no")
        return [(b"key", block.hash)]

    store = holdfast.open("memory:", settings=quick(), indexes=[picky])
    blocks = chain_of(None, 3)
    bad = make(blocks[2], "bad", producer=b"bad")
    with pytest.raises(IndexFailed):
        store.add_many([*blocks, bad, make(bad)])
    assert store.tip is not None
    assert store.tip.hash == blocks[2].hash
    assert store.add(make(blocks[2], "good")).status is AddStatus.EXTENDED


# -- refusals -------------------------------------------------------------------------------------------------------


def test_refused_blocks_leave_no_trace() -> None:
    store, blocks = grown(4)
    before = everything(store), seq(store)
    lost = make(make(blocks[3], "nobody"), "lost")
    for block, error in (
        (lost, ParentUnknown),
        (make(blocks[3], "jump", height=9), InvalidBlock),
        (make(blocks[3], "same", height=3), InvalidBlock),
        (Block(blocks[3].hash[::-1], blocks[3].hash[::-1], 4, b"", None), InvalidBlock),
    ):
        with pytest.raises(error):
            store.add(block)
    assert (everything(store), seq(store)) == before
    assert store.add(blocks[2]).status is AddStatus.KNOWN
    assert seq(store) == before[1]


def test_commit_refuses_what_is_stored_and_unknown_parents() -> None:
    store, blocks = grown(3)
    draft = store.draft()
    with pytest.raises(ConflictError):
        store.commit(draft, hash=blocks[1].hash)
    with pytest.raises(InvalidBlock):
        store.commit(draft, hash=ZERO_HASH)
    with pytest.raises(InvalidInputError):
        store.commit(draft, hash=b"x")
    other, _ = grown(1)
    strange = make(blocks[0], "strange")
    other.add(strange)
    with pytest.raises(ParentUnknown):
        store.commit(other.draft(strange.hash), hash=hash_of("x"))
    side = store.commit(store.draft(blocks[0].hash), hash=hash_of("side"), work=1)
    assert store.blocks.status(side.hash) is BlockStatus.ORPHANED
    heavy = store.commit(store.draft(blocks[0].hash), hash=hash_of("heavy"), work=99)
    assert store.tip == heavy


def test_drafts_on_a_tip_that_moved_on_become_side_blocks() -> None:
    store, blocks = grown(3)
    one, two = store.draft(), store.draft()
    first = store.commit(one, hash=hash_of("one"))
    second = store.commit(two, hash=hash_of("two"))
    assert store.tip == first
    assert store.blocks.status(second.hash) is BlockStatus.ORPHANED
    assert {info.hash for info in store.blocks.children(blocks[2].hash)} == {first.hash, second.hash}


# -- waiting --------------------------------------------------------------------------------------------------------


def test_blocks_wait_in_any_order_and_are_connected() -> None:
    store, blocks = grown(2)
    model = Model()
    for block in blocks:
        model.add(block)
    later = chain_of(blocks[1], 4, "later")
    fork = make(later[0], "fork")
    for block in (later[3], fork, later[1], later[2], later[1]):
        assert store.add(block, wait_for_parent=True).status is AddStatus.WAITING
        assert store.blocks.status(block.hash) is BlockStatus.WAITING
    assert [tip.status for tip in store.blocks.tips()] == ["active"] + ["waiting"] * 4
    result = store.add(later[0])
    assert result.status is AddStatus.EXTENDED
    assert set(result.connected) == {block.hash for block in (*later[1:], fork)}
    for block in (later[0], *[next(b for b in (*later, fork) if b.hash == each) for each in result.connected]):
        model.add(block)
    assert_store(store, model)
    assert store.statistics()["chain"]["waiting"] == 0  # type: ignore[index]


def test_a_commit_connects_what_waited_for_it() -> None:
    store, blocks = grown(2)
    next_block = make(blocks[1], "next")
    waiting = make(next_block, "waiting")
    store.add(waiting, wait_for_parent=True)
    store.commit(store.draft(), hash=next_block.hash, header=next_block.header, time=next_block.time)
    assert store.tip is not None
    assert store.tip.hash == waiting.hash
    assert store.statistics()["chain"]["waiting"] == 0  # type: ignore[index]


def test_a_waiting_block_that_cannot_be_stored_goes_with_its_descendants() -> None:
    store, blocks = grown(3)
    parent = make(blocks[2], "parent")
    bad = make(parent, "bad", height=99)
    grandchildren = chain_of(bad, 3)
    good = make(parent, "good")
    for block in (*grandchildren[::-1], bad, good):
        store.add(block, wait_for_parent=True)
    result = store.add(parent)
    assert result.connected == (good.hash,)
    assert store.statistics()["chain"]["waiting"] == 0  # type: ignore[index]
    assert store.blocks.get(bad.hash) is None


def test_a_waiting_block_without_room_does_not_fail_its_parent() -> None:
    store, blocks = grown(5, max_orphans=1)
    side = make(blocks[1], "side")
    for block in chain_of(side, 2)[::-1]:
        store.add(block, wait_for_parent=True)
    result = store.add(side)
    assert (result.status, result.connected) == (AddStatus.SIDE, ())


def test_the_waiting_room_is_bounded_and_drops_the_oldest() -> None:
    store, blocks = grown(1, waiting_blocks_max=3)
    lost = [make(make(blocks[0], name), "child") for name in range(1, 6)]
    for block in lost:
        store.add(block, wait_for_parent=True)
    figures = store.statistics()["chain"]
    assert isinstance(figures, dict)
    assert (figures["waiting"], figures["waiting_dropped"]) == (3, 2)
    statuses = [store.blocks.status(block.hash) for block in lost]
    assert statuses == [None] * 2 + [BlockStatus.WAITING] * 3
    store, blocks = grown(1, waiting_bytes_max=4096)
    with pytest.raises(LimitExceeded):
        store.add(make(make(blocks[0], "x"), "y", body=bytes(5000)), wait_for_parent=True)
    for name in range(1, 9):
        store.add(make(make(blocks[0], name), "child", body=bytes(1000)), wait_for_parent=True)
    figures = store.statistics()["chain"]
    assert isinstance(figures, dict)
    assert figures["waiting"] == 3


def test_waiting_blocks_are_not_kept_over_a_reopening(tmp_path: object) -> None:
    url = f"sqlite:{tmp_path}"
    with open_quick(url) as store:
        root = make(None)
        store.add(root)
        store.add(make(make(root, "a"), "b"), wait_for_parent=True)
    with open_quick(url) as store:
        assert [tip.status for tip in store.blocks.tips()] == ["active"]
