"""Forks: who wins, what is orphaned with which reason, what may come back, and where nothing may change any more."""

from __future__ import annotations

import pytest

import holdfast
from holdfast import Store
from holdfast.blocks.decide import REASON_FORCED, REASON_REORG, REASON_SIDE
from holdfast.errors import (
    BlockNotFound,
    FinalityError,
    InvalidBlock,
    InvalidInputError,
    LimitExceeded,
    ParentMismatch,
    ParentUnknown,
    ReorgTooDeep,
)
from holdfast.types import AddStatus, Block, BlockStatus
from tests.unit.store_support import Model, assert_store, chain_of, hash_of, make, open_quick, quick


def grown(count: int = 6, **fields: object) -> tuple[Store, list[Block]]:
    """A store in memory with a chain of ``count`` blocks."""
    store = open_quick("memory:", **fields)
    blocks = chain_of(None, count)
    store.add_many(blocks)
    return store, blocks


def hashes(store: Store) -> list[bytes]:
    return [info.hash for info in store.blocks.canonical()]


# -- fork choice ----------------------------------------------------------------------------------------------------


def test_the_first_seen_wins_a_tie() -> None:
    store, blocks = grown(3)
    rival = make(blocks[1], "rival")
    assert store.add(rival).status is AddStatus.SIDE
    orphan = store.blocks.orphan(rival.hash)
    assert orphan is not None
    assert (orphan.reason, orphan.competing_hash, orphan.was_canonical) == (REASON_SIDE, blocks[2].hash, False)
    child = make(rival, "child")
    result = store.add(child)
    assert result.status is AddStatus.REORGANISED
    assert result.reorg is not None
    assert (result.reorg.fork_height, result.reorg.fork_hash) == (1, blocks[1].hash)
    assert (result.reorg.old_tip, result.reorg.new_tip) == (blocks[2].hash, child.hash)
    assert result.reorg.orphaned == (blocks[2].hash,)
    assert result.reorg.adopted == (rival.hash, child.hash)
    left = store.blocks.orphan(blocks[2].hash)
    assert left is not None
    assert (left.reason, left.competing_hash, left.was_canonical) == (REASON_REORG, child.hash, True)
    assert store.blocks.orphan(rival.hash) is None
    assert store.blocks.status(rival.hash) is BlockStatus.CANONICAL
    assert store.blocks.status(blocks[2].hash) is BlockStatus.ORPHANED


@pytest.mark.parametrize(
    ("choice", "short_and_heavy", "long_and_light"),
    [("heaviest", True, False), ("longest", False, True), ("manual", False, False)],
)
def test_each_fork_choice(choice: str, short_and_heavy: bool, long_and_light: bool) -> None:
    for name, count, work, wins in (("heavy", 1, 100, short_and_heavy), ("light", 8, 0, long_and_light)):
        store = open_quick("memory:", fork_choice=choice)
        blocks = chain_of(None, 6, work=2)
        store.add_many(blocks)
        branch = chain_of(blocks[1], count, name, work=work)
        for block in branch:
            store.add(block)
        assert store.tip is not None
        assert (store.tip.hash == branch[-1].hash) == wins
        assert len(list(store.blocks.canonical())) == (2 + count if wins else 6)


def test_work_of_256_bits_is_summed_exactly() -> None:
    store = open_quick("memory:")
    root = make(None, work=2**255)
    top = make(root, work=2**255 - 1)
    store.add_many([root, top])
    assert store.tip is not None
    assert store.tip.total_work == 2**256 - 1
    with pytest.raises(LimitExceeded):
        store.add(make(top, work=1))
    assert store.add(make(top, "free", work=0)).status is AddStatus.EXTENDED


def test_a_branch_that_was_left_returns() -> None:
    store, blocks = grown(4)
    rivals = chain_of(blocks[1], 3, "rival")
    store.add_many(rivals)
    assert hashes(store) == [block.hash for block in (*blocks[:2], *rivals)]
    back = chain_of(blocks[3], 2, "back")
    store.add_many(back)
    assert hashes(store) == [block.hash for block in (*blocks, *back)]
    assert {orphan.hash for orphan in store.blocks.orphans()} == {block.hash for block in rivals}
    figures = store.blocks.statistics()
    assert (figures["reorgs"], figures["reorg_depth_max"], figures["orphaned_total"]) == (2, 3, 5)


# -- forced blocks --------------------------------------------------------------------------------------------------


def test_only_the_forced_hash_is_canonical_at_its_height() -> None:
    blocks = chain_of(None, 3)
    wanted = make(blocks[2], "wanted")
    store = holdfast.open("memory:", settings=quick(), forced_blocks={3: wanted.hash})
    store.add_many(blocks)
    wrong = chain_of(blocks[2], 4, "wrong", work=50)
    for block in wrong:
        assert store.add(block).status is AddStatus.SIDE
        orphan = store.blocks.orphan(block.hash)
        assert orphan is not None
        assert orphan.reason == REASON_FORCED
    assert store.tip is not None
    assert store.tip.hash == blocks[2].hash
    with pytest.raises(FinalityError):
        store.reorg(wrong[-1].hash)
    assert store.add(wanted).status is AddStatus.EXTENDED
    assert store.add(make(wanted, "next")).status is AddStatus.EXTENDED


def test_a_run_stops_before_a_wrong_block() -> None:
    blocks = chain_of(None, 6)
    store = holdfast.open("memory:", settings=quick(), forced_blocks={4: hash_of("somebody else")})
    statuses = [result.status for result in store.add_many(blocks)]
    assert statuses == [AddStatus.EXTENDED] * 4 + [AddStatus.SIDE] * 2
    assert store.tip is not None
    assert store.tip.height == 3


def test_a_wrong_incumbent_gives_way_to_any_branch_with_the_forced_block() -> None:
    store, blocks = grown(8)
    forced = make(blocks[2], "forced", work=0)
    store.force_blocks({3: forced.hash})
    elsewhere = make(blocks[4], "elsewhere", work=100)
    assert store.add(elsewhere).status is AddStatus.REORGANISED  # forks above the forced height: no better, no worse
    result = store.add(forced)
    assert result.status is AddStatus.REORGANISED
    assert hashes(store) == [block.hash for block in (*blocks[:3], forced)]
    assert store.add(make(blocks[7], "more", work=1000)).status is AddStatus.SIDE


def test_a_branch_that_ends_below_a_forced_incumbent_never_wins() -> None:
    store, blocks = grown(8)
    store.force_blocks({6: blocks[6].hash})
    assert store.add(make(blocks[2], "heavy", work=1000)).status is AddStatus.SIDE
    assert store.add(make(blocks[6], "above", work=1000)).status is AddStatus.REORGANISED


def test_a_root_with_another_hash_than_the_forced_one_is_refused() -> None:
    blocks = chain_of(None, 2)
    store = holdfast.open("memory:", settings=quick(), forced_blocks={0: hash_of("another")})
    for call in (lambda: store.add(blocks[0]), lambda: store.add_many(blocks)):
        with pytest.raises(InvalidBlock):
            call()
    assert store.tip is None
    store.force_blocks({0: blocks[0].hash})
    store.add_many(blocks)


def test_forced_blocks_are_hashes() -> None:
    with pytest.raises(InvalidInputError):
        holdfast.open("memory:", forced_blocks={3: b"short"})


# -- finality and depth ---------------------------------------------------------------------------------------------


def test_nothing_forks_below_the_finalized_height() -> None:
    store, blocks = grown(6)
    side = make(blocks[1], "side")
    store.add(side)
    store.finalize(3)
    assert store.finalized == 3
    for fork in (0, 1, 2):
        with pytest.raises(FinalityError):
            store.add(make(blocks[fork], "late", work=1000))
    with pytest.raises(FinalityError):
        store.add(make(side, "late", work=1000))
    with pytest.raises(FinalityError):
        store.reorg(side.hash)
    with pytest.raises(FinalityError):
        store.reorg(blocks[2].hash)
    for height in (0, 3):
        with pytest.raises(FinalityError):
            store.orphan(blocks[height].hash, reason="bad")
    assert store.add(make(blocks[3], "at", work=1000)).status is AddStatus.REORGANISED
    assert hashes(store)[:4] == [block.hash for block in blocks[:4]]


def test_finality_only_rises_and_never_above_the_tip() -> None:
    store, _ = grown(4)
    store.finalize(2)
    frames = store.statistics()["journal"]
    store.finalize(2)
    assert store.statistics()["journal"] == frames
    with pytest.raises(FinalityError):
        store.finalize(1)
    for height in (4, 2**63, 2**70):
        with pytest.raises(BlockNotFound):
            store.finalize(height)
    for bad in (-1, True, 1.0, "1", None):
        with pytest.raises(InvalidInputError):
            store.finalize(bad)  # type: ignore[arg-type]
    assert store.finalized == 2
    with pytest.raises(BlockNotFound):
        open_quick("memory:").finalize(0)


def test_a_deeper_block_than_max_reorg_depth_is_final() -> None:
    store, blocks = grown(10, max_reorg_depth=3)
    with pytest.raises(ReorgTooDeep):
        store.add(make(blocks[5], "deep", work=1000))
    with pytest.raises(ReorgTooDeep):
        store.orphan(blocks[6].hash, reason="bad")
    with pytest.raises(ReorgTooDeep):
        store.reorg(blocks[5].hash)
    assert store.add(make(blocks[6], "edge", work=1000)).status is AddStatus.REORGANISED
    # The tip is lower now, the floor is not.
    assert store.tip is not None
    assert store.tip.height == 7
    with pytest.raises(ReorgTooDeep):
        store.add(make(blocks[5], "deep", work=10_000))
    assert store.blocks.statistics()["reorg_floor"] == 6


def test_the_number_of_orphans_is_bounded() -> None:
    store, blocks = grown(4, max_orphans=2)
    store.add_many([make(blocks[1], name) for name in "ab"])
    with pytest.raises(LimitExceeded) as caught:
        store.add(make(blocks[1], "third"))
    assert caught.value.context["setting"] == "max_orphans"
    assert store.add(make(blocks[1], "heavy", work=50)).status is AddStatus.REORGANISED  # moving the tip always works
    assert len(list(store.blocks.orphans())) == 4


# -- marking orphans ------------------------------------------------------------------------------------------------


def test_a_canonical_block_is_orphaned_with_its_descendants_in_one_frame() -> None:
    store, blocks = grown(6)
    before = store.statistics()["journal"]
    result = store.orphan(blocks[3].hash, reason="invalid signature", competing=hash_of("rival"))
    after = store.statistics()["journal"]
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert after["appended_seq"] == before["appended_seq"] + 1
    assert result is not None
    assert (result.new_tip, result.old_tip) == (blocks[2].hash, blocks[5].hash)
    assert result.orphaned == tuple(block.hash for block in blocks[3:])
    assert result.adopted == ()
    own = store.blocks.orphan(blocks[3].hash)
    below = store.blocks.orphan(blocks[5].hash)
    assert own is not None
    assert below is not None
    assert (own.reason, own.competing_hash) == ("invalid signature", hash_of("rival"))
    assert (below.reason, below.competing_hash) == ("descendant of an orphaned block: invalid signature", None)
    assert store.blocks.hash_at(3) is None
    assert store.orphan(blocks[3].hash, reason="again") is None
    assert store.statistics()["journal"] == after


def test_orphaning_what_is_unknown_or_without_reason() -> None:
    store, blocks = grown(3)
    with pytest.raises(BlockNotFound):
        store.orphan(hash_of("nobody"), reason="x")
    for reason in ("", "  \n"):
        with pytest.raises(InvalidInputError):
            store.orphan(blocks[2].hash, reason=reason)
    with pytest.raises(LimitExceeded):
        store.orphan(blocks[2].hash, reason="\u00e9" * 513)
    store.orphan(blocks[1].hash, reason="\u00e9" * 512)
    descendant = store.blocks.orphan(blocks[2].hash)
    assert descendant is not None
    assert descendant.reason.endswith("\u00e9")
    assert len(descendant.reason.encode()) <= 1024


def test_the_root_cannot_be_orphaned() -> None:
    store, blocks = grown(2)
    with pytest.raises(FinalityError):
        store.orphan(blocks[0].hash, reason="x")


def test_a_child_of_an_orphaned_block_brings_it_back() -> None:
    store, blocks = grown(4)
    store.orphan(blocks[3].hash, reason="wrongly accused")
    result = store.add(make(blocks[3], "child"))
    assert result.status is AddStatus.EXTENDED
    assert hashes(store)[:4] == [block.hash for block in blocks]
    assert list(store.blocks.orphans()) == []


# -- reorg by hand --------------------------------------------------------------------------------------------------


def test_reorg_to_a_side_branch_to_an_ancestor_and_to_the_tip() -> None:
    store, blocks = grown(5, fork_choice="manual")
    side = chain_of(blocks[1], 2, "side")
    store.add_many(side)
    assert store.reorg(blocks[4].hash) is None
    first = store.reorg(side[0].hash, reason="operator")
    assert first is not None
    assert (first.orphaned, first.adopted) == (tuple(block.hash for block in blocks[2:]), (side[0].hash,))
    assert hashes(store) == [block.hash for block in (*blocks[:2], side[0])]
    assert store.blocks.orphan(side[1].hash) is not None
    second = store.reorg(blocks[0].hash)
    assert second is not None
    assert hashes(store) == [blocks[0].hash]
    assert second.adopted == ()
    third = store.reorg(blocks[4].hash)
    assert third is None or third.orphaned == ()
    assert hashes(store) == [block.hash for block in blocks]
    with pytest.raises(BlockNotFound):
        store.reorg(hash_of("nobody"))


# -- the first block ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height", [0, 1, 254, 65_534, 2**32 - 2, 2**63 - 3])
def test_a_chain_may_start_anywhere_with_a_stated_base(height: int) -> None:
    store = open_quick("memory:")
    base = Block(hash_of("base"), hash_of("not here"), height, b"h", None)
    with pytest.raises(ParentUnknown):
        store.add(base)
    model = Model()
    more = [make(base, name, time=name) for name in range(3)]
    top = make(more[0], "top", time=9)
    for block in (base, *more, top):
        assert store.add(block, root_allowed=True).status is model.add(block)
    assert_store(store, model)
    assert store.blocks.at(height - 1 if height else 2**63) is None
    stranger = Block(hash_of("stranger"), hash_of("nor this"), height + 1, b"h", None)
    with pytest.raises(ParentUnknown):
        store.add(stranger, root_allowed=True)


def test_a_draft_of_an_empty_store_is_the_first_block() -> None:
    store = open_quick("memory:")
    draft = store.draft()
    assert (draft.parent, draft.height) == (None, 0)
    late = store.draft()
    store.commit(draft, hash=hash_of("first"))
    with pytest.raises(ParentMismatch):
        store.commit(late, hash=hash_of("second"))
