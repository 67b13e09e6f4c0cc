"""Checkpoints of an open store: which block, when, what is kept, what fails, and the store that is made of one."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import holdfast
from holdfast import Store
from holdfast.errors import (
    BlockNotFound,
    ClosedError,
    DeviceError,
    FencedError,
    ForeignStore,
    HoldfastError,
    InvalidInputError,
    NotFoundError,
    OutOfSpace,
    PrunedError,
    ReadOnlyError,
    SnapshotInvalid,
    StateError,
    StoreExists,
)
from holdfast.recovery import verify_store
from holdfast.state.checkpoint import CheckpointDirectory, CheckpointInfo, checkpoint_height, checkpoint_name
from holdfast.state.snapshot import SnapshotInfo
from holdfast.store import branches, upkeep
from holdfast.store.chain import ChainSpec, CustomChain
from holdfast.store.checkpoints import kept_by_rule
from holdfast.store.pruning import PrunePolicy
from holdfast.types import Block, BlockInfo
from holdfast.views.api import Rows
from tests.unit.state_support import Values, assert_tip, commit, open_state_store, writer_backend
from tests.unit.store_support import chain_of, open_quick

DEPTH = 2
SECONDS = 30.0


@pytest.fixture(autouse=True)
def _idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The background does nothing of itself: tests call what it calls."""
    monkeypatch.setattr(upkeep, "_LOOK_SECONDS", 3600.0)


@pytest.fixture
def events(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """Names of the events about checkpoints so far."""
    with caplog.at_level(logging.INFO, logger="holdfast"):
        yield lambda: [
            record.__dict__["holdfast_event"]
            for record in caplog.records
            if record.__dict__.get("holdfast_event", "").startswith("checkpoint_")
        ]


def opened(path: Path, **fields: Any) -> Store:
    return open_state_store(f"sqlite:{path}", **({"max_reorg_depth": DEPTH, "checkpoint_interval": 10} | fields))


def values_at(height: int) -> Values:
    """The state after block ``height`` of ``grow``."""
    return {b"often": b"%d" % height} | {b"own/%d" % each: b"1" for each in range(height + 1)}


def grow(store: Store, to: int) -> None:
    """Blocks up to this height; each changes a key of its own and a common one."""
    for number in range(0 if store.tip is None else store.tip.height + 1, to + 1):
        commit(store, ("c", number), {b"often": b"%d" % number, b"own/%d" % number: b"1"})


def background(store: Store) -> bool:
    """What the thread does each time it looks; whether anything was due."""
    due = store.checkpoints.due()
    if due:
        store.checkpoints.run_in_background(lambda: True)
        assert not store.checkpoints.due()
    return due


def names(store: Store) -> list[str]:
    return [info.name for info in store.checkpoints.list()]


def heights(store: Store) -> list[int]:
    return [info.height for info in store.checkpoints.list()]


def name_at(store: Store, height: int) -> str:
    info = store.blocks.at(height)
    assert info is not None
    return checkpoint_name(height, info.hash)


def figures(store: Store) -> dict[str, Any]:
    found = store.statistics()["checkpoints"]
    assert isinstance(found, dict)
    return found


def damage(path: Path, name: str) -> Path:
    """One bit of a chunk of this checkpoint is another one."""
    entries = CheckpointDirectory(holdfast._fs.RealFileSystem(), path / "checkpoints").reader(name).manifest.chunks
    chunk = path / "checkpoints" / "chunks" / entries[0].hash.hex()
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 4
    chunk.write_bytes(data)
    return chunk


# -- on demand -------------------------------------------------------------------------------------------------------


def test_one_of_the_tip_and_one_of_an_older_block(tmp_path: Path, events: Callable[[], list[str]]) -> None:
    with opened(tmp_path) as store:
        grow(store, 20)
        tip, old = store.checkpoints.create(), store.checkpoints.create(13)
        assert store.tip is not None
        assert (tip.name, tip.height) == (checkpoint_name(20, store.tip.hash), 20)
        assert tip.snapshot is not None
        assert (tip.snapshot.block_hash, tip.snapshot.state_root) == (store.tip.hash, store.state.root)
        assert tip.snapshot.keys == 22
        assert old.name == name_at(store, 13)
        assert store.checkpoints.list() == [tip, old]
        assert store.checkpoints.verify(old.name) == old.snapshot
        assert figures(store) == {"count": 2, "newest_height": 20, "made": 2, "failures": 0, "failure": None}
        seen: list[tuple[int, int]] = []
        store.checkpoints.create(progress=lambda *step: seen.append(step))
        assert seen == [(22, 22)]
    assert events() == ["checkpoint_made"] * 3
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "checkpoints").rglob("*")} == {0o600, 0o700}


def test_what_there_is_not_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path, proof_window_blocks=0) as store:
        with pytest.raises(BlockNotFound):
            store.checkpoints.create()
        grow(store, 20)
        store.flush()
        with pytest.raises(BlockNotFound):
            store.checkpoints.create(21)
        with pytest.raises(PrunedError):
            store.checkpoints.create(3)
        for wrong in (-1, "7", 1.0, True):
            with pytest.raises(InvalidInputError):
                store.checkpoints.create(wrong)  # type: ignore[arg-type]
        for wrong in (-1, "7", True):
            with pytest.raises(InvalidInputError):
                store.checkpoints.prune(wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError):
            store.checkpoints.prune(newest=0)
        with pytest.raises(NotFoundError):
            store.checkpoints.verify("5-" + "0" * 16)
        assert store.checkpoints.list() == []
    with pytest.raises(ClosedError):
        store.checkpoints.list()
    with pytest.raises(ClosedError):
        store.checkpoints.create()


def test_a_store_in_memory_has_none() -> None:
    with open_state_store("memory:", max_reorg_depth=DEPTH, checkpoint_interval=1) as store:
        grow(store, 9)
        assert store.checkpoints.list() == []
        assert not store.checkpoints.due()
        with pytest.raises(InvalidInputError, match="in memory"):
            store.checkpoints.create()


def test_a_read_only_store_looks_and_changes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        grow(store, 5)
        made = store.checkpoints.create()
        with holdfast.open(tmp_path, read_only=True) as reader:
            assert reader.checkpoints.list() == [made]
            assert reader.checkpoints.verify(made.name) == made.snapshot
            assert figures(reader)["count"] == 1
            for call in (reader.checkpoints.create, reader.checkpoints.prune):
                with pytest.raises(ReadOnlyError):
                    call()


def test_code_that_the_store_calls_makes_none(tmp_path: Path) -> None:
    caught: list[HoldfastError] = []

    class Calling(CustomChain):
        def validate(self, block: Block, parent: BlockInfo | None, ancestors: Any) -> None:
            for call in (store.checkpoints.create, store.checkpoints.prune):
                try:
                    call()
                except StateError as error:
                    caught.append(error)

    with open_state_store(f"sqlite:{tmp_path}", chain=Calling(ChainSpec(name="custom"))) as store:
        store.add(chain_of(None, 1)[0], root_allowed=True)
    assert len(caught) == 2


def test_commits_go_on_and_it_is_of_one_moment(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        grow(store, 30)

        def progress(_done: int, _total: int) -> None:
            grow(store, 40)
            store.flush()

        made = store.checkpoints.create(progress=progress)
        assert made.height == 30
        assert_tip(store, values_at(40))
    holdfast.restore_checkpoint(tmp_path, f"sqlite:{tmp_path / 'new'}")
    with holdfast.open(tmp_path / "new") as new:
        assert_tip(new, values_at(30))


@pytest.mark.parametrize("reorganised", [False, True])
def test_no_commit_waits_while_an_older_state_is_made(
    reorganised: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commits, a flush and a reorganisation of blocks that it is about to undo happen in another thread meanwhile."""
    original = branches.Branches._undone
    ran: list[bool] = []

    def meanwhile() -> None:
        if reorganised:
            parent = store.blocks.at(28)
            for number in range(4):
                parent = commit(store, ("rival", number), {b"rival": b"%d" % number}, parent, work=2)
        else:
            grow(store, 40)
        store.flush()
        ran.append(True)

    def undone(self: branches.Branches, moment: branches.Moment, fork_height: int) -> Rows:
        if not ran and threading.current_thread() is threading.main_thread():
            worker = threading.Thread(target=meanwhile)
            worker.start()
            worker.join(SECONDS)
            assert not worker.is_alive(), "a commit waits"
        return original(self, moment, fork_height)

    with opened(tmp_path, max_reorg_depth=20) as store:
        grow(store, 20)
        store.flush()
        grow(store, 30)
        monkeypatch.setattr(branches.Branches, "_undone", undone)
        made = store.checkpoints.create(25)
        assert ran
        assert made.height == 25
    holdfast.restore_checkpoint(tmp_path, f"sqlite:{tmp_path / 'new'}")
    with holdfast.open(tmp_path / "new") as new:
        assert_tip(new, values_at(25))


# -- in the background: which block ----------------------------------------------------------------------------------


def test_it_is_due_when_a_multiple_can_be_replaced_no_more(tmp_path: Path) -> None:
    with opened(tmp_path, checkpoints_max=10) as store:
        for tip in range(35):
            grow(store, tip)
            assert background(store) is (tip in (10 + DEPTH, 20 + DEPTH, 30 + DEPTH)), tip
        assert heights(store) == [30, 20, 10]
        assert names(store) == [name_at(store, height) for height in (30, 20, 10)]
        assert all(store.checkpoints.verify(name) for name in names(store))
    with opened(tmp_path, checkpoints_max=10) as store:
        assert not background(store), "it is known after a restart"
        grow(store, 42)
        assert background(store)
        assert heights(store) == [40, 30, 20, 10]


def test_what_was_finalized_is_not_waited_for(tmp_path: Path) -> None:
    with opened(tmp_path, max_reorg_depth=100) as store:
        grow(store, 25)
        assert not background(store)
        store.finalize(21)
        assert background(store)
        assert heights(store) == [20]


def test_with_interval_zero_none_is_made(tmp_path: Path) -> None:
    with opened(tmp_path, checkpoint_interval=0) as store:
        grow(store, 40)
        assert not background(store)
        assert not (tmp_path / "checkpoints").exists()
        assert store.checkpoints.create().height == 40


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("checkpoint_interval", -1),
        ("checkpoint_interval", 10**9 + 1),
        ("checkpoint_interval", 1.5),
        ("checkpoints_max", 0),
        ("checkpoints_max", 10_001),
        ("checkpoints_every", -1),
    ],
)
def test_absurd_settings_are_refused(key: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=key):
        holdfast.config.load_settings(environ={}, overrides={key: value})


def test_where_the_state_of_the_multiple_is_gone_it_is_of_the_highest_final_block(tmp_path: Path) -> None:
    with opened(tmp_path, proof_window_blocks=0) as store:
        grow(store, 28)
        store.flush()
        assert background(store)
        assert heights(store) == [28 - DEPTH]
        grow(store, 31)
        assert not background(store), "20 has one already"
        grow(store, 32)
        assert background(store)
        assert heights(store) == [30, 26]


def test_where_too_much_changed_it_is_of_the_tip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "_ROWS_MAX", 0)
    with opened(tmp_path) as store:
        grow(store, 15)
        assert background(store)
        assert heights(store) == [15]


def test_the_block_that_a_store_stands_on_needs_none(tmp_path: Path) -> None:
    with opened(tmp_path / "old") as store:
        grow(store, 20)
        store.checkpoints.create()
    holdfast.restore_checkpoint(tmp_path / "old", f"sqlite:{tmp_path / 'new'}")
    with opened(tmp_path / "new") as store:
        store.finalize(20)
        assert not background(store)
        grow(store, 32)
        assert background(store)
        assert heights(store) == [30]


@pytest.mark.slow
def test_the_thread_makes_them_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_LOOK_SECONDS", 0.001)
    with opened(tmp_path) as store:
        end = time.monotonic() + SECONDS
        for tip in range(60):
            grow(store, tip)
        while not heights(store) or heights(store)[0] < 50:
            assert time.monotonic() < end
            time.sleep(0.001)
        assert all(height <= 59 - DEPTH for height in heights(store))
        assert names(store) == [name_at(store, height) for height in heights(store)]
    assert verify_store(tmp_path, level="full").ok


@pytest.mark.slow
def test_closing_waits_for_one_chunk_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.state.checkpoint.CHUNK_BYTES", 1024)
    inside, go = threading.Event(), threading.Event()
    original = CheckpointDirectory.create
    chunks: list[int] = []

    def create(self: CheckpointDirectory, source: Any, *, progress: Any) -> CheckpointInfo:
        def step(done: int, total: int) -> None:
            chunks.append(done)
            inside.set()
            assert go.wait(SECONDS)
            progress(done, total)

        return original(self, source, chunk_bytes=1024, progress=step)

    monkeypatch.setattr(CheckpointDirectory, "create", create)
    store = opened(tmp_path)
    grow(store, 200)
    monkeypatch.setattr(upkeep, "_LOOK_SECONDS", 0.001)
    worker = upkeep.Upkeep(writer_backend(store), PrunePolicy(0, 0), image_seq=0)
    worker.checkpoints = store.checkpoints
    worker.start()
    assert inside.wait(SECONDS)
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    while worker.keep_going():
        time.sleep(0.001)
    go.set()
    stopping.join(SECONDS)
    assert not stopping.is_alive()
    assert len(chunks) == 1
    assert worker.failure is None
    assert figures(store)["failure"] is None
    assert names(store) == []
    store.close()


# -- failures --------------------------------------------------------------------------------------------------------


def test_a_failure_is_told_once_and_costs_the_checkpoint_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: Callable[[], list[str]]
) -> None:
    errors: list[HoldfastError] = [OutOfSpace("full"), OutOfSpace("full"), DeviceError("broken")]

    def create(*_args: object, **_more: object) -> None:
        raise errors.pop(0)

    with opened(tmp_path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(CheckpointDirectory, "create", create)
            for tip, told in ((12, 1), (22, 1), (32, 2)):
                grow(store, tip)
                assert background(store)
                assert not background(store), "it is not tried all the time"
                assert events() == ["checkpoint_failed"] * told
                assert_tip(store, values_at(tip))
        assert figures(store)["failures"] == 3
        assert "broken" in figures(store)["failure"]
        grow(store, 42)
        assert background(store)
        assert figures(store)["failure"] is None
        assert heights(store) == [40]


def test_a_damaged_one_is_told_by_the_next(tmp_path: Path, events: Callable[[], list[str]]) -> None:
    with opened(tmp_path, checkpoints_max=1) as store:
        grow(store, 12)
        assert background(store)
        manifest = tmp_path / "checkpoints" / f"{names(store)[0]}.manifest"
        manifest.write_bytes(manifest.read_bytes()[:-1])
        grow(store, 22)
        assert background(store)
        assert heights(store) == [20], "the damaged one goes once a newer one is whole"
        assert events() == ["checkpoint_made", "checkpoint_made", "checkpoint_failed"]


# -- what is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("newest", "every", "kept"),
    [
        (3, 0, [45, 40, 31]),
        (1, 10, [45, 40, 31, 20, 10]),
        (2, 20, [45, 40, 20]),
        (1, 100, [45]),
        (99, 0, [45, 40, 31, 20, 12, 10, 5]),
    ],
)
def test_the_rule(newest: int, every: int, kept: list[int]) -> None:
    having = [f"{height}-{'a' * 16}" for height in (45, 40, 31, 20, 12, 10, 5)]
    found = kept_by_rule(having, newest, every)
    assert sorted((checkpoint_height(name) for name in found), reverse=True) == kept


@given(st.sets(st.integers(0, 300), max_size=40), st.integers(1, 5), st.integers(0, 60))
def test_what_is_kept_stays_kept(heights: set[int], newest: int, every: int) -> None:
    """The rule asked again of what it left says the same; and what comes later changes only who is newest."""
    having = [f"{height}-{'a' * 16}" for height in sorted(heights, reverse=True)]
    kept = kept_by_rule(having, newest, every)
    left = [name for name in having if name in kept]
    assert kept_by_rule(left, newest, every) == kept
    assert set(having[:newest]) <= kept
    for multiple in range(every, 301, every) if every else ():
        inside = [height for height in heights if multiple <= height < multiple + every]
        assert not inside or f"{min(inside)}-{'a' * 16}" in kept


def test_the_background_keeps_the_newest_and_every_so_many(tmp_path: Path) -> None:
    with opened(tmp_path, checkpoints_max=2, checkpoints_every=30) as store:
        for tip in range(12, 113, 10):
            grow(store, tip)
            assert background(store)
        assert heights(store) == [110, 100, 90, 60, 30]
        assert all(store.checkpoints.verify(name) for name in names(store))


def test_pruning_by_hand_and_a_dry_run(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        grow(store, 30)
        for height in (5, 10, 15, 20, 25, 30):
            store.checkpoints.create(height)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "check" in str(path)}
        would = store.checkpoints.prune(every=10, newest=1, dry_run=True)
        assert (would.dry_run, would.verified) == (True, name_at(store, 30))
        assert {path: path.read_bytes() for path in before} == before
        seen: list[tuple[int, int]] = []
        report = store.checkpoints.prune(every=10, newest=1, progress=lambda *step: seen.append(step))
        assert [checkpoint_height(name) for name in report.removed] == [25, 15, 5]
        assert [checkpoint_height(name) for name in report.kept] == [30, 20, 10] == heights(store)
        assert (report.removed, report.kept, report.files) == (would.removed, would.kept, would.files)
        assert report.freed_bytes == would.freed_bytes > 0
        assert seen[-1] == (32, 32)
        assert report.as_dict()["removed"] == list(report.removed)
        again = store.checkpoints.prune(every=10, newest=1)
        assert (again.removed, again.verified, again.files) == ((), None, 0)


def test_nothing_goes_before_a_newer_one_is_whole(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        grow(store, 30)
        for height in (10, 20, 30):
            store.checkpoints.create(height)
        newest, middle, oldest = names(store)
        damage(tmp_path, newest)
        report = store.checkpoints.prune(every=0, newest=1)
        assert (report.verified, report.removed, report.damaged) == (middle, (oldest,), (newest,))
        damage(tmp_path, middle)
        report = store.checkpoints.prune(every=0, newest=1)
        assert (report.verified, report.removed, report.damaged) == (None, (), (newest, middle))
        assert names(store) == [newest, middle]
        assert store.checkpoints.create(30).name == newest, "it is mended"
        report = store.checkpoints.prune(every=0, newest=1)
        assert (report.verified, report.removed) == (newest, (middle,))


def test_one_of_a_newer_format_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as store:
        grow(store, 20)
        with monkeypatch.context() as patch:
            patch.setattr("holdfast.state.snapshot_format.FORMAT", 2)
            strange = store.checkpoints.create(10).name
        store.checkpoints.create(15)
        store.checkpoints.create(20)
        before = len(list((tmp_path / "checkpoints" / "chunks").iterdir()))
        report = store.checkpoints.prune(every=0, newest=1)
        assert report.kept == (name_at(store, 20), strange)
        assert len(list((tmp_path / "checkpoints" / "chunks").iterdir())) == before, "nobody knows which are its chunks"


def test_one_of_a_block_that_was_replaced_does_not_count(tmp_path: Path) -> None:
    with opened(tmp_path, max_reorg_depth=20) as store:
        grow(store, 10)
        store.checkpoints.create(8)
        lost = store.checkpoints.create().name
        parent = store.blocks.at(8)
        for number in range(3):
            parent = commit(store, ("rival", number), {b"rival": b"%d" % number}, parent, work=2)
        assert store.tip == parent
        report = store.checkpoints.prune(every=0, newest=1)
        assert (report.kept, report.removed) == ((lost, name_at(store, 8)), ()), "no newer one was verified"
        store.checkpoints.create()
        report = store.checkpoints.prune(every=0, newest=2)
        assert report.removed == (lost,)
        assert heights(store) == [11, 8]


# -- the store that is made of one -----------------------------------------------------------------------------------


def test_a_store_without_its_journal_and_its_views_comes_back(tmp_path: Path) -> None:
    with opened(tmp_path / "old") as store:
        grow(store, 20)
        store.safety.save(b"validator", (1,), b"vote")
        store.checkpoints.create()
        tip = store.tip
    for lost in ("journal", "views", "tree"):
        shutil.rmtree(tmp_path / "old" / lost, ignore_errors=True)
    for lost in ("holdfast.toml", "watermark"):
        (tmp_path / "old" / lost).unlink()
    told = holdfast.restore_checkpoint(tmp_path / "old", f"sqlite:{tmp_path / 'new'}")
    assert isinstance(told, SnapshotInfo)
    with opened(tmp_path / "new") as new:
        assert tip is not None
        assert new.tip is not None
        assert (new.tip.hash, new.tip.total_work, new.tip.producer) == (tip.hash, tip.total_work, tip.producer)
        assert_tip(new, values_at(20))
        assert new.checkpoints.list() == []
        assert new.safety.fenced
        with pytest.raises(FencedError):
            new.safety.save(b"validator", (2,), b"vote")
        grow(new, 25)
        assert_tip(new, values_at(25))
    assert verify_store(tmp_path / "new", level="full").ok


def test_which_one_and_from_where(tmp_path: Path) -> None:
    with opened(tmp_path / "old") as store:
        grow(store, 20)
        first, _ = store.checkpoints.create(10), store.checkpoints.create()
    shutil.copytree(tmp_path / "old" / "checkpoints", tmp_path / "copy")
    told = holdfast.restore_checkpoint(tmp_path / "copy", f"sqlite:{tmp_path / 'new'}", name=first.name)
    assert told == first.snapshot
    again = holdfast.restore_checkpoint(tmp_path / "copy", f"sqlite:{tmp_path / 'new'}", name=first.name)
    assert again == told, "the same call again is done"
    with opened(tmp_path / "new") as new:
        assert_tip(new, values_at(10))


def test_a_damaged_one_is_never_restored(tmp_path: Path) -> None:
    with opened(tmp_path / "old") as store:
        grow(store, 20)
        first, last = store.checkpoints.create(10), store.checkpoints.create()
    damage(tmp_path / "old", last.name)
    with pytest.raises(SnapshotInvalid) as caught:
        holdfast.restore_checkpoint(tmp_path / "old", f"sqlite:{tmp_path / 'new'}")
    assert first.name in caught.value.remedy
    assert not (tmp_path / "new" / "holdfast.toml").exists()
    holdfast.restore_checkpoint(tmp_path / "old", f"sqlite:{tmp_path / 'new'}", name=first.name)
    with opened(tmp_path / "new") as new:
        assert_tip(new, values_at(10))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    with opened(tmp_path / "old") as store:
        grow(store, 5)
        store.checkpoints.create()
        with pytest.raises(NotFoundError, match="no checkpoints here"):
            holdfast.restore_checkpoint(tmp_path, tmp_path / "new")
        with pytest.raises(NotFoundError):
            holdfast.restore_checkpoint(tmp_path / "old", tmp_path / "new", name="3-" + "a" * 16)
        with pytest.raises(InvalidInputError):
            holdfast.restore_checkpoint(tmp_path / "old", "memory:")
        with pytest.raises(StoreExists):
            holdfast.restore_checkpoint(tmp_path / "old", tmp_path / "old")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ForeignStore):
        holdfast.restore_checkpoint(tmp_path / "old", tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]
    assert not (tmp_path / "new").exists()


def test_one_of_another_chain_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "old") as store:
        grow(store, 5)
        store.checkpoints.create()
    other = CustomChain(ChainSpec(name="another"))
    with pytest.raises(ForeignStore):
        holdfast.restore_checkpoint(tmp_path / "old", tmp_path / "new", chain=other)
    assert not (tmp_path / "new").exists()


def test_a_chain_without_a_state_has_checkpoints_too(tmp_path: Path) -> None:
    blocks = chain_of(None, 40)
    with open_quick(f"sqlite:{tmp_path / 'old'}", max_reorg_depth=DEPTH, checkpoint_interval=10) as store:
        for block in blocks[:26]:
            store.add(block, root_allowed=True)
        assert background(store)
        (made,) = store.checkpoints.list()
        assert made.height == 20
        assert made.snapshot is not None
        assert (made.snapshot.keys, made.snapshot.chunks) == (0, 0)
    assert list((tmp_path / "old" / "checkpoints" / "chunks").iterdir()) == []
    holdfast.restore_checkpoint(tmp_path / "old", f"sqlite:{tmp_path / 'new'}")
    with open_quick(tmp_path / "new", max_reorg_depth=DEPTH, checkpoint_interval=10) as store:
        assert store.tip is not None
        assert store.tip.hash == blocks[20].hash
        for block in blocks[21:]:
            store.add(block)
        assert store.tip.hash == blocks[-1].hash
        store.reorg(blocks[-2].hash)
        assert background(store)
        assert heights(store) == [30]
    assert verify_store(tmp_path / "new", level="full").ok


def test_what_is_only_appended_is_made_durable_first(tmp_path: Path) -> None:
    """Else it could be of a block that a crash takes back."""
    with opened(tmp_path, durability="buffered", buffered_sync_seconds=3600.0) as store:
        grow(store, 5)
        journal = writer_backend(store).opened.journal
        assert journal.durable_seq < journal.appended_seq
        made = store.checkpoints.create()
        assert made.height == 5
        assert journal.durable_seq == journal.appended_seq
