"""The rungs of the ladder that lose blocks: only where they are asked for, with every name that is still known."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

import holdfast
from holdfast._fs import RealFileSystem, Space
from holdfast.backup.manifest import name_time, new_name
from holdfast.blocks.entries import BlockEntry
from holdfast.doctor import Loss, Plan
from holdfast.doctor.loss import _Lost
from holdfast.doctor.report import LOST_NAMES_MAX
from holdfast.errors import CommitLoss, CorruptionError, FencedError, InvalidInputError, MissingFile, OutOfSpace
from holdfast.journal.api import Kind, TipMark
from holdfast.journal.reader import JournalReader
from holdfast.recovery import verify_store
from holdfast.store.opening import read_identity
from holdfast.store.retention import RetentionPolicy
from holdfast.types import Block
from tests.unit.backup_support import backup, repository, small_segments
from tests.unit.doctor_support import SEGMENT, backed_up, flip, holds, killed, last_segment, store_of, truth
from tests.unit.state_support import commit, open_state_store
from tests.unit.store_support import chain_of, hash_of, make, open_quick, quick
from tests.unit.test_event_sources import hearing

__all__ = ["small_segments"]

pytestmark = pytest.mark.usefixtures("small_segments")


def plan_with(root: Path, rung: str) -> Plan:
    """The plan of this rung that the doctor offers."""
    (found,) = [plan for plan in holdfast.diagnose(root).others if plan.rung == rung]
    return found


def names(loss: Loss | None) -> list[tuple[int, str]]:
    assert loss is not None
    return [(each.height, each.hash) for each in loss.names]


def told(blocks: list[Block]) -> list[tuple[int, str]]:
    return [(block.height, block.hash.hex()) for block in blocks]


def goes_on(root: Path, blocks: list[Block], *, engine: str) -> None:
    """The store takes blocks, is sound at every level, and may not sign."""
    new = make(blocks[-1], "after")
    with open_quick(root) as store:
        assert store.engine == engine
        assert store.recovery.repaired is None
        assert store.safety.fenced
        with pytest.raises(FencedError):
            store.safety.save(b"me", (1,), b"vote")
        store.add(new)
    with open_quick(root) as store:
        assert holds(store, [*blocks, new])
    for level in ("links", "views"):
        assert verify_store(root, level=level).ok
    assert holdfast.diagnose(root).sound


# -- the journal as far as it goes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["sqlite", "rocksdb", "lmdb"])
def test_back_to_the_last_frame_that_is_whole(tmp_path: Path, engine: str) -> None:
    blocks = store_of(tmp_path, engine=engine)
    third = tmp_path / "journal/0000000003.seg"
    data = third.read_bytes()
    third.unlink()
    before = truth(tmp_path)
    with pytest.raises(MissingFile):
        open_quick(tmp_path)
    assert truth(tmp_path) == before
    found = holdfast.diagnose(tmp_path)
    assert found.plan is None
    plan = plan_with(tmp_path, "backup")
    assert plan.loss is not None
    kept = blocks[: plan.height + 1]  # type: ignore[operator]
    assert (plan.loss.from_height, plan.loss.to_height) == (kept[-1].height + 1, blocks[-1].height)
    with hearing("blocks_given_up", "repaired") as heard:
        store = holdfast.open(tmp_path, settings=quick(), recover="backup")
    with store:
        assert holds(store, kept)
        assert store.recovery.repaired is not None
        assert store.recovery.views_rebuilt
    (event,) = heard
    assert (event.name, event.fields["height"]) == ("blocks_given_up", kept[-1].height)
    after = {name: path.read_bytes() for name in before if (path := tmp_path / "quarantine/repair-1" / name).exists()}
    moved = [name for name in before if name not in ("journal/0000000001.seg", "journal/0000000002.seg")]
    assert after == {name: before[name] for name in moved}
    assert data not in after.values()
    goes_on(tmp_path, kept, engine=engine)


def test_every_block_that_is_lost_has_its_name(tmp_path: Path) -> None:
    """The frames behind the damage name their blocks, and the first of them names its parent."""
    blocks = store_of(tmp_path)
    path = tmp_path / "journal/0000000005.seg"
    flip(path, 200)  # the head of its first frame: the one that holds one block
    plan = plan_with(tmp_path, "backup")
    assert plan.height is not None
    assert plan.loss is not None
    lost = blocks[plan.height + 1 :]
    assert names(plan.loss) == told(lost)
    assert (plan.loss.blocks, plan.loss.complete) == (len(lost), True)


def test_blocks_that_nothing_names_any_more_are_heights(tmp_path: Path) -> None:
    blocks = store_of(tmp_path)
    for number in (3, 4):
        (tmp_path / f"journal/{number:010d}.seg").unlink()
    loss = plan_with(tmp_path, "backup").loss
    assert loss is not None
    assert loss.complete, "the views know them all"
    assert names(loss) == told(blocks[loss.from_height :])
    shutil.rmtree(tmp_path / "views")
    loss = plan_with(tmp_path, "backup").loss
    assert loss is not None
    assert not loss.complete
    assert loss.blocks < loss.to_height - loss.from_height + 1  # type: ignore[operator]
    assert set(names(loss)) <= set(told(blocks))


def test_names_are_bounded_and_counts_are_not(tmp_path: Path) -> None:
    blocks = store_of(tmp_path, 200)
    flip(tmp_path / SEGMENT, 200)
    plan = plan_with(tmp_path, "backup")
    assert plan.loss is not None
    assert plan.height is not None
    assert len(plan.loss.names) == LOST_NAMES_MAX
    assert plan.loss.blocks == len(blocks) - plan.height - 1
    assert names(plan.loss) == told(blocks[plan.height + 1 :][:LOST_NAMES_MAX])


def test_each_block_counts_once_however_many_there_are() -> None:
    """Named by the views, by its own frame and as a parent; names are forgotten, counts are not."""
    count = 3 * LOST_NAMES_MAX * 4
    hashes = [hash_of("lost", height) for height in range(count)]
    lost = _Lost(9, [(height, hashes[height]) for height in range(10, 200)])
    for height in range(10, count):
        entry = BlockEntry(hashes[height], hashes[height - 1], height, 0, 1, 1, b"", None, None, None)
        lost.add_entry(entry)
    loss = lost.loss(TipMark(count - 1, hashes[-1], bytes(32)), "", exact=True)
    assert (loss.blocks, loss.from_height, loss.to_height, loss.complete) == (count - 10, 10, count - 1, True)
    assert names(loss) == [(height, hashes[height].hex()) for height in range(10, 10 + LOST_NAMES_MAX)]


def test_a_backup_gives_what_it_has_and_the_rest_is_lost(tmp_path: Path) -> None:
    """Frames behind the backup were in the newest segments alone."""
    blocks = backed_up(tmp_path, more=30)
    held = len(repository(tmp_path / "backups").newest().segments)
    for path in sorted((tmp_path / "journal").glob("*.seg")):
        if int(path.stem) in (2, held + 1):
            path.unlink()
    with pytest.raises(MissingFile):
        open_quick(tmp_path)
    with open_quick(tmp_path, recovery="backup") as store:
        assert holds(store, blocks[:60])
        assert store.safety.fenced
    goes_on(tmp_path, blocks[:60], engine="sqlite")


@pytest.mark.parametrize("left", [0, 1, 2])
def test_what_reaches_furthest_counts_and_not_the_name_of_a_backup(left: int, tmp_path: Path) -> None:
    """A clock that was wrong gave the older backup the newer name, and only backups know where the journal ended."""
    root, place = tmp_path / "s", repository(tmp_path / "r")
    blocks = store_of(root, count=12)
    older = backup(root, place)
    more = chain_of(blocks[-1], 6)
    with open_quick(root) as store:
        store.add_many(more)
    newer = backup(root, place)
    assert len(newer.segments) > len(older.segments) > 1
    renamed = new_name(name_time(newer.name) + 10**12)
    place.put_manifest(msgspec.structs.replace(older, name=renamed))
    assert place.newest().name == renamed
    for path in sorted((root / "journal").iterdir())[left:]:
        path.unlink()
    shutil.rmtree(root / "views")
    (root / "watermark").unlink()
    before = truth(root)
    settings = quick(backup_target=str(tmp_path / "r"))
    with pytest.raises(CorruptionError):
        holdfast.open(root, settings=settings)
    assert truth(root) == before, "that a backup holds more is no proof that it holds all"
    with holdfast.open(root, settings=settings, recover="backup") as store:
        assert holds(store, [*blocks, *more])
        assert store.safety.fenced


def test_a_cut_in_the_newest_segment_keeps_what_stands_before_it(tmp_path: Path) -> None:
    blocks = backed_up(tmp_path, more=5)
    path = last_segment(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptionError):
        open_quick(tmp_path)
    with open_quick(tmp_path, recovery="backup") as store:
        tip = store.tip
        assert tip is not None
        assert 59 <= tip.height < 64
    goes_on(tmp_path, blocks[: tip.height + 1], engine="sqlite")
    assert (tmp_path / "quarantine/repair-1/journal" / path.name).read_bytes() == data[: len(data) // 2]


def test_without_a_watermark_nothing_known_is_lost_and_the_copy_is_fenced(tmp_path: Path) -> None:
    blocks = store_of(tmp_path)
    (tmp_path / "watermark").write_bytes(bytes(8192))
    plan = plan_with(tmp_path, "backup")
    assert plan.loss is not None
    assert (plan.loss.blocks, plan.loss.complete) == (0, False), "what the watermark would have said is not known"
    with open_quick(tmp_path, recovery="backup") as store:
        assert holds(store, blocks)
    goes_on(tmp_path, blocks, engine="sqlite")


def test_safety_records_before_the_cut_stay(tmp_path: Path) -> None:
    blocks = chain_of(None, 40)
    with open_quick(f"sqlite:{tmp_path}") as store:
        store.safety.save(b"me", (7,), b"vote")
        for block in blocks:
            store.add(block)
    last_segment(tmp_path).unlink()
    with open_quick(tmp_path, recovery="backup") as store:
        assert store.safety.load(b"me").position == (7,)
        assert store.safety.fenced
    fs = RealFileSystem()
    identity = read_identity(fs, tmp_path)
    reader = JournalReader.open(fs, tmp_path, store_id=identity.store_id, salt=identity.salt)
    firsts = {frame.segment: frame for frame in reversed(list(reader.frames(1)))}
    reader.close()
    carried = [number for number, frame in firsts.items() if any(part.kind == Kind.SAFETY for part in frame.parts)]
    assert sorted(carried) == list(range(2, max(firsts) + 1)), "each segment repeats them, that of the fence too"


@pytest.mark.parametrize("engine", ["sqlite", "rocksdb", "lmdb"])
def test_the_rows_of_what_is_lost_are_kept(tmp_path: Path, engine: str) -> None:
    """They may be the only copy of documents behind the cut; the next open made new views and deleted them."""
    root = tmp_path / "store"
    with open_quick(f"{engine}:{root}", compact="off") as store:
        for block in chain_of(None, 20):
            store.add(block)
        store.documents("papers").put(b"precious", b"PRECIOUS")
    killed(root)
    flip(last_segment(root), 200)
    with open_quick(root, recovery="backup") as store:
        assert store.documents("papers").get(b"precious") is None
        assert store.engine == engine
        store.rebuild()
    open_quick(root).close()
    (rows,) = (root / "quarantine/repair-1/views").glob("*/data")
    files = [rows] if rows.is_file() else [path for path in rows.rglob("*") if path.is_file()]
    assert any(b"PRECIOUS" in path.read_bytes() for path in files)


# -- a checkpoint ---------------------------------------------------------------------------------------------------


def with_checkpoint(root: Path, *, at: int = 20, count: int = 40, engine: str = "sqlite") -> dict[bytes, bytes]:
    """A store with state and a checkpoint; the state after its block."""
    state: dict[bytes, bytes] = {}
    held: dict[bytes, bytes] = {}
    with open_state_store(f"{engine}:{root}") as store:
        for height in range(count):
            changes: dict[bytes, bytes | None] = {b"key/%d" % (height % 17): b"%d" % height * 60}
            commit(store, height, changes)
            state |= {key: value for key, value in changes.items() if value is not None}
            if height == at:
                store.checkpoints.create()
                held = dict(state)
    return held


@pytest.mark.parametrize("engine", ["sqlite", "rocksdb", "lmdb"])
def test_back_to_a_checkpoint(tmp_path: Path, engine: str) -> None:
    held = with_checkpoint(tmp_path, engine=engine)
    (tmp_path / "journal/0000000001.seg").unlink()
    before = truth(tmp_path)
    with pytest.raises(MissingFile):
        open_quick(tmp_path)
    with pytest.raises(MissingFile):
        open_quick(tmp_path, recovery="backup")
    assert truth(tmp_path) == before
    plan = plan_with(tmp_path, "checkpoint")
    assert plan.loss is not None
    assert (plan.height, plan.loss.from_height, plan.loss.to_height) == (20, 21, 39)
    assert (plan.loss.blocks, plan.loss.complete) == (19, True)
    assert "every block below height 20" in plan.loss.also
    with open_quick(tmp_path, recovery="checkpoint") as store:
        assert store.tip is not None
        assert store.tip.height == 20
        assert {key: store.state[key] for key in held} == held
        assert store.safety.fenced
        assert store.engine == engine
    assert {name: (tmp_path / "quarantine/repair-1" / name).read_bytes() for name in before} == before
    with open_state_store(tmp_path) as store:
        commit(store, "more", {b"more": b"1"})
    assert verify_store(tmp_path, level="full").ok
    assert holdfast.diagnose(tmp_path).sound


def test_the_higher_one_is_taken_and_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    held = with_checkpoint(tmp_path)
    with open_state_store(tmp_path) as store:
        store.checkpoints.create()
        newest = store.checkpoints.list()[0].name
    (tmp_path / "journal/0000000003.seg").unlink()
    journal = plan_with(tmp_path, "backup")
    assert journal.height is not None
    assert journal.height < 20
    shutil.copytree(tmp_path, copy := tmp_path.with_name(f"{tmp_path.name}-copy"))
    with open_quick(copy, recovery="backup") as store:
        assert store.tip is not None
        assert store.tip.height == journal.height
    flip(tmp_path / "checkpoints" / f"{newest}.manifest", 60)
    with holdfast.open(tmp_path, settings=quick(), recover="checkpoint") as store:
        assert store.tip is not None
        assert store.tip.height == 20
        assert {key: store.state[key] for key in held} == held


def test_without_an_identity_there_is_still_a_checkpoint(tmp_path: Path) -> None:
    with_checkpoint(tmp_path)
    (tmp_path / "journal/0000000001.seg").unlink()
    (tmp_path / "holdfast.toml").unlink()
    assert plan_with(tmp_path, "checkpoint").height == 20
    with pytest.raises(MissingFile):
        open_quick(tmp_path)
    with open_quick(tmp_path, recovery="checkpoint") as store:
        assert store.tip is not None
        assert store.tip.height == 20


# -- asking ---------------------------------------------------------------------------------------------------------


def test_what_loses_nothing_comes_first_whatever_was_allowed(tmp_path: Path) -> None:
    blocks = backed_up(tmp_path)
    (tmp_path / SEGMENT).unlink()
    with open_quick(tmp_path, recovery="checkpoint") as store:
        assert holds(store, blocks)
        assert not store.safety.fenced


def test_only_the_named_rungs_are_taken(tmp_path: Path) -> None:
    store_of(tmp_path)
    (tmp_path / SEGMENT).unlink()
    for rung in ("everything", "", None):
        with pytest.raises(InvalidInputError):
            holdfast.repair(tmp_path, recover=rung)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        holdfast.open(tmp_path, recover="all")  # type: ignore[arg-type]
    with pytest.raises(MissingFile):
        holdfast.open(tmp_path, settings=quick(recovery="backup"), recover="lossless")


def test_a_full_disk_leaves_everything_as_it_is(tmp_path: Path) -> None:
    class Full(RealFileSystem):
        def space(self, path: Path) -> Space:
            return Space(100, 2**30)

    blocks = backed_up(tmp_path)
    (tmp_path / SEGMENT).unlink()
    before = truth(tmp_path)
    with pytest.raises(OutOfSpace):
        holdfast.repair(tmp_path, fs=Full())
    assert truth(tmp_path) == before
    with open_quick(tmp_path) as store:
        assert holds(store, blocks)


def test_an_encrypted_store_is_repaired_with_its_key(tmp_path: Path) -> None:
    key = bytes(range(32))
    blocks = chain_of(None, 60)
    with holdfast.open(f"sqlite:{tmp_path}", settings=quick(), key=key) as store:
        store.safety.save(b"me", (7,), b"vote")
        for block in blocks:
            store.add(block)
    (tmp_path / "journal/0000000004.seg").unlink()
    assert not holdfast.diagnose(tmp_path).others, "its blocks cannot be named, and no frame can be written"
    with holdfast.open(tmp_path, settings=quick(), key=key, recover="backup") as store:
        assert store.tip is not None
        kept = blocks[: store.tip.height + 1]
        assert holds(store, kept)
        assert store.recovery.repaired is not None
        assert store.safety.load(b"me").position == (7,)
        assert store.safety.fenced


# -- what compaction and retention made ------------------------------------------------------------------------------


def compacted(root: Path, *, drop: bool) -> list[Block]:
    """A store whose first segments are compacted, and miss their bodies if ``drop``; a backup from before has all."""
    blocks = chain_of(None, 120)
    with open_quick(f"sqlite:{root}", max_reorg_depth=6, proof_window_blocks=0) as store:
        for block in blocks:
            store.add(block)
        backup(store, repository(root / "backups"))
        if drop:
            assert store.retention.prune(RetentionPolicy("below", 60), without_archive=True).complete
        else:
            assert store.compact().compacted
    return blocks


@pytest.mark.parametrize("drop", [False, True])
def test_a_damaged_compacted_segment_comes_back_with_the_bytes_that_it_stood_for(tmp_path: Path, drop: bool) -> None:
    blocks = compacted(tmp_path, drop=drop)
    assert (tmp_path / SEGMENT).read_bytes()[:8] == b"HFCOMPT1"
    assert holdfast.diagnose(tmp_path).sound
    flip(tmp_path / SEGMENT, 100)
    done = holdfast.repair(tmp_path)
    assert done is not None
    assert [step.name for step in done.plan.steps] == [SEGMENT]
    with open_quick(tmp_path) as store:
        assert [info.hash for info in store.blocks.canonical()] == [block.hash for block in blocks]
    assert verify_store(tmp_path, level="links").ok


@pytest.mark.parametrize("drop", [False, True])
def test_the_identity_comes_out_of_a_compacted_first_segment(tmp_path: Path, drop: bool) -> None:
    compacted(tmp_path, drop=drop)
    shutil.rmtree(tmp_path / "backups")
    before = (tmp_path / "holdfast.toml").read_bytes()
    (tmp_path / "holdfast.toml").unlink()
    with open_quick(tmp_path) as store:
        assert store.recovery.repaired is not None
    assert (tmp_path / "holdfast.toml").read_bytes() == before


def test_the_loss_of_a_compacted_store_is_named_too(tmp_path: Path) -> None:
    blocks = compacted(tmp_path, drop=True)
    shutil.rmtree(tmp_path / "backups")
    shutil.rmtree(tmp_path / "views")
    flip(tmp_path / "journal/0000000001.seg", 100)
    assert holdfast.diagnose(tmp_path).others == ()
    flip(tmp_path / "journal/0000000001.seg", 100)
    flip(tmp_path / "journal/0000000002.seg", 100)
    plan = plan_with(tmp_path, "backup")
    assert plan.loss is not None
    assert plan.loss.to_height == blocks[-1].height
    assert {height for height, _ in names(plan.loss)} <= set(range(plan.height + 1, 120))  # type: ignore[operator]
    with open_quick(tmp_path, recovery="backup") as store:
        assert store.tip is not None
        assert store.tip.height == plan.height


# -- what is promised -------------------------------------------------------------------------------------------------


def test_views_that_know_more_than_the_journal_are_lost_commits(tmp_path: Path) -> None:
    """An older copy of journal and watermark, and no backup with the frames behind it."""
    blocks = backed_up(tmp_path, 40)
    old = truth(tmp_path)
    with open_quick(tmp_path) as store:
        for block in chain_of(blocks[-1], 25):
            store.add(block)
    newest = chain_of(blocks[-1], 25)
    shutil.rmtree(tmp_path / "journal")
    for name, data in old.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with pytest.raises(CommitLoss):
        open_quick(tmp_path)
    assert truth(tmp_path) == old
    assert not (tmp_path / "quarantine").exists()
    found = holdfast.diagnose(tmp_path)
    assert (found.code, found.plan) == ("commit_loss", None)
    plan = plan_with(tmp_path, "backup")
    assert names(plan.loss) == told(newest)
    with open_quick(tmp_path, recovery="backup") as store:
        assert holds(store, blocks)
    goes_on(tmp_path, blocks, engine="sqlite")


def test_what_is_written_is_read_back_before_anything_is_replaced(tmp_path: Path) -> None:
    class Rotten(RealFileSystem):
        """A disk that gives other bytes than it got, in what a repair makes ready."""

        def rename(self, source: Path, target: Path) -> None:
            if "repair/new/journal" in str(target):
                flip(source, 700)
            super().rename(source, target)

    blocks = backed_up(tmp_path)
    (tmp_path / SEGMENT).unlink()
    before = truth(tmp_path)
    with pytest.raises(CorruptionError, match="after it was written"):
        holdfast.repair(tmp_path, fs=Rotten())
    assert {name: data for name, data in truth(tmp_path).items() if not name.startswith("repair")} == before
    with open_quick(tmp_path) as store:
        assert holds(store, blocks)
