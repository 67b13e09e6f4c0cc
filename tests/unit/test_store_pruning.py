"""``store.prune``: what it refuses, that it is online, interruptible and honest, and that space comes back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast import PruneReport, Store
from holdfast.errors import (
    FinalityError,
    HoldfastError,
    InvalidInputError,
    OutOfSpace,
    PrunedError,
    ReadOnlyError,
    StateError,
)
from holdfast.recovery import verify_store
from holdfast.store import pruning
from holdfast.store.pruning import PrunePolicy
from holdfast.views.api import HistoryRecord
from holdfast.views.history import decode_history_key
from tests.unit.pruning_support import history_rows, long_chain, rows_too_many
from tests.unit.state_support import Values, assert_tip, commit, grown, open_state_store, writer_backend
from tests.unit.store_support import make, quick

STEPS = [{b"often": b"%d" % number, b"k/%d" % (number % 5): b"%d" % number} for number in range(30)]


@pytest.fixture
def store() -> Iterator[Store]:
    with open_state_store("memory:", max_reorg_depth=2, history_blocks=10) as opened:
        grown(opened, STEPS)
        yield opened


def values_of(store: Store, height: int) -> Values:
    return dict(store.state.at(height).scan())


def expected_at(height: int) -> Values:
    found: Values = {}
    for step in STEPS[: height + 1]:
        found.update(step)
    return found


def readable(store: Store) -> list[int]:
    """The heights that can be read; what they hold is right."""
    found = []
    for height in range(len(STEPS)):
        try:
            values = values_of(store, height)
        except PrunedError:
            continue
        assert values == expected_at(height)
        found.append(height)
    return found


def picture(store: Store) -> object:
    backend = writer_backend(store)
    return history_rows(backend.opened.engine), backend.views.history


# -- what is kept ----------------------------------------------------------------------------------------------------


def test_by_default_the_last_final_heights_of_the_settings_stay(store: Store) -> None:
    report = store.prune()
    # the tip is 29, the last final block 27
    assert (report.floor_before, report.floor_after, report.heights_lost) == (0, 18, 18)
    assert readable(store) == list(range(18, 30))
    assert (report.blocks, report.complete, report.dry_run, report.every) == (19, True, False, 0)
    assert report.rows == 19 * 2
    assert_tip(store, expected_at(29))


def test_the_default_setting_is_a_thousand_final_heights() -> None:
    settings = holdfast.Settings()
    assert (settings.history_blocks, settings.history_every) == (1_000, 0)


def test_everything_stays_with_zero_blocks(store: Store) -> None:
    before = picture(store)
    assert store.prune(blocks=0).heights_lost == 0
    assert readable(store) == list(range(30))
    assert picture(store) == before or len(history_rows(writer_backend(store).opened.engine)) == 60


def test_an_exact_floor(store: Store) -> None:
    assert store.prune(below=27).floor_after == 27
    assert readable(store) == [27, 28, 29]


def test_every_so_many_th_height_stays_and_can_only_become_a_multiple(store: Store) -> None:
    assert store.prune(blocks=5, every=4).heights_lost == 23 - 6
    assert readable(store) == [0, 4, 8, 12, 16, 20, *range(23, 30)]
    for every in (3, 6, 7, 1, 2):
        with pytest.raises(InvalidInputError, match="multiple"):
            store.prune(every=every)
    assert store.prune(blocks=5, every=8).heights_lost == 3
    assert readable(store) == [0, 8, 16, *range(23, 30)]
    assert store.prune(blocks=5, every=0).heights_lost == 3
    assert readable(store) == list(range(23, 30))
    assert store.prune(blocks=1, every=2).heights_lost == 2
    assert readable(store) == [24, 26, 27, 28, 29]
    backend = writer_backend(store)
    assert backend.views.history is not None
    assert not rows_too_many(history_rows(backend.opened.engine), backend.views.history)


def test_a_refused_height_names_the_oldest_that_is_left(store: Store) -> None:
    store.prune(blocks=5, every=4)
    held = store.state.at(8)
    assert dict(held.scan()) == expected_at(8)
    store.prune(below=10, every=8)
    store.prune(below=26, every=0)
    with pytest.raises(PrunedError) as caught:
        held.get(b"often")
    assert caught.value.context["least_readable"] == 26


def test_what_was_not_written_for_long_stays(store: Store) -> None:
    commit(store, "once", {b"once": b"and never again"})
    grown(store, [{b"often": b"%d" % number} for number in range(40)])
    store.prune(blocks=1)
    assert store.state.get(b"once") == b"and never again"
    assert store.state.at(70 - 2).get(b"once") == b"and never again"


def test_height_zero_leaves_no_rows(store: Store) -> None:
    store.prune(blocks=1)
    heights = {decode_history_key(row)[1] for row in history_rows(writer_backend(store).opened.engine)}
    assert heights == {28, 29}


def test_a_chain_that_begins_high_is_not_searched_from_zero() -> None:
    with open_state_store("memory:", max_reorg_depth=1) as store:
        store.add(make(None, "root", height=10_000_000), root_allowed=True)
        grown(store, STEPS)
        dry = store.prune(blocks=5, every=4, dry_run=True)
        report = store.prune(blocks=5, every=4)
        # heights 10,000,000 to 10,000,030; final to ...29
        assert (report.floor_before, report.floor_after) == (10_000_000, 10_000_025)
        assert (report.heights_lost, report.blocks) == (25 - 7, 26)
        assert (dry.heights_lost, dry.blocks, dry.rows) == (report.heights_lost, report.blocks, report.rows)
        with pytest.raises(PrunedError) as caught:
            store.state.at(10_000_001)
        assert caught.value.context["least_readable"] == 10_000_000
        assert dict(store.state.at(10_000_004).scan()) == expected_at(3)


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"below": 28}, FinalityError),
        ({"below": 2**62}, FinalityError),
        ({"below": -1}, InvalidInputError),
        ({"below": False}, InvalidInputError),
        ({"below": 2**63}, InvalidInputError),
        ({"blocks": -1}, InvalidInputError),
        ({"blocks": 1.0}, InvalidInputError),
        ({"blocks": True}, InvalidInputError),
        ({"every": -2}, InvalidInputError),
        ({"every": b"2"}, InvalidInputError),
        ({"every": 2**63}, InvalidInputError),
    ],
)
def test_bad_input_changes_nothing(
    store: Store, fields: dict[str, Any], kind: type[HoldfastError], dry_run: bool
) -> None:
    store.flush()
    before = picture(store)
    with pytest.raises(kind):
        store.prune(**fields, dry_run=dry_run)
    assert picture(store) == before
    assert readable(store) == list(range(30))


def test_nothing_above_the_last_final_height_goes(store: Store) -> None:
    with pytest.raises(FinalityError) as caught:
        store.prune(below=28)
    assert (caught.value.context["final"], caught.value.context["found"]) == (27, 28)
    store.finalize(29)
    assert store.prune(below=29).floor_after == 29
    assert readable(store) == [29]


def test_without_a_history_there_is_nothing_to_prune(tmp_path: Path) -> None:
    with open_state_store(f"sqlite:{tmp_path}", history="off") as store:
        grown(store, STEPS[:3])
        store.flush()
        with pytest.raises(StateError, match="no history"):
            store.prune(blocks=1)
    with (
        holdfast.open(tmp_path, read_only=True, settings=quick()) as follower,
        pytest.raises(ReadOnlyError),
    ):
        follower.prune(blocks=1)


def test_an_empty_store(store: Store) -> None:
    with open_state_store("memory:") as empty:
        report = empty.prune()
        assert (report.heights_lost, report.rows, report.blocks, report.complete) == (0, 0, 0, True)


def test_a_record_never_claims_what_an_earlier_one_gave_up(store: Store) -> None:
    store.prune(blocks=5, every=4)
    views = writer_backend(store).views
    assert views.history == HistoryRecord(23, 4, 0, 23)
    assert views.set_history(HistoryRecord(3, 4, 0, 3)) == HistoryRecord(23, 4, 0, 23)
    assert views.set_history(HistoryRecord(24, 4, 9, 3)) == HistoryRecord(24, 4, 9, 23)
    assert views.set_history(HistoryRecord(20, 8, 2, 11)) == HistoryRecord(24, 8, 9, 11)


# -- runs that are broken off ----------------------------------------------------------------------------------------


def test_a_dry_run_changes_nothing_and_says_what_happens(store: Store) -> None:
    store.flush()
    before = picture(store)
    policies: list[dict[str, Any]] = [{}, {"blocks": 3, "every": 5}, {"below": 20}]
    for fields in policies:
        dry = store.prune(**fields, dry_run=True)
        assert (dry.dry_run, dry.freed_bytes, dry.complete) == (True, None, True)
        assert dry.rows > 0
        assert dry.estimated_bytes > dry.rows * 30
        assert picture(store) == before
        assert readable(store) == list(range(30))
    left = iter([True] * 3)
    cut = store.prune(dry_run=True, keep_going=lambda: next(left, False))
    assert (cut.complete, cut.blocks) == (False, 5)  # not asked after height 0, which leaves no trace in the record


def test_a_run_stopped_after_each_block_gets_to_the_same_end(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "_BATCH_ROWS_SYNCED", 3)
    whole = store.prune(blocks=2, every=7)
    with open_state_store(f"sqlite:{tmp_path}", max_reorg_depth=2) as other:
        grown(other, STEPS)
        reports: list[PruneReport] = []
        while not reports or not reports[-1].complete:
            reports.append(other.prune(blocks=2, every=7, keep_going=lambda: False))
            assert readable(other) == readable(store)
            assert len(reports) < 40
        assert len(reports) > 20
        assert picture(other) == picture(store)
    assert sum(report.rows for report in reports) == whole.rows
    assert sum(report.estimated_bytes for report in reports) == whole.estimated_bytes


def test_progress_may_end_a_run(store: Store) -> None:
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.prune(progress=progress)
    assert seen == [(number, 19) for number in range(1, 6)]
    assert readable(store) == list(range(18, 30))
    assert store.prune().complete
    assert len(history_rows(writer_backend(store).opened.engine)) == 11 * 2


def test_reads_and_commits_go_on_in_between(store: Store) -> None:
    """Code that is called in the run writes and reads; so could any thread."""

    def progress(done: int, total: int) -> None:
        commit(store, ("meanwhile", done), {b"meanwhile": b"%d" % done})
        assert readable(store) == list(range(18, 30))
        if done % 4 == 0:
            store.flush()
            assert store.state.get(b"meanwhile") == b"%d" % done

    report = store.prune(progress=progress)
    assert report.complete
    assert store.state.history(b"meanwhile")[-1] == (29 + 19, b"19")


def test_another_generation_of_views_ends_the_run_and_is_left_alone(tmp_path: Path) -> None:
    with open_state_store(f"sqlite:{tmp_path}", max_reorg_depth=2) as store:
        grown(store, STEPS)

        def progress(done: int, total: int) -> None:
            if done == 3:
                store.rebuild()

        report = store.prune(blocks=1, progress=progress)
        assert (report.complete, report.blocks) == (False, 3)
        assert readable(store) == list(range(30))
        assert len(history_rows(writer_backend(store).opened.engine)) == 60
        again = store.prune(blocks=1)
        assert (again.complete, again.rows) == (True, 56)
    assert verify_store(tmp_path, level="full").ok


def test_space_that_could_not_be_given_back_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_state_store(f"sqlite:{tmp_path}", max_reorg_depth=2) as store:
        grown(store, STEPS)
        engine = writer_backend(store).opened.engine
        asked: list[str] = []

        def full(low: bytes, high: bytes) -> None:
            asked.append("full")
            raise OutOfSpace("no room for a copy")

        monkeypatch.setattr(engine, "reclaim", full)
        with pytest.raises(OutOfSpace):
            store.prune(blocks=1)
        assert readable(store) == [27, 28, 29]
        monkeypatch.undo()
        reclaim = engine.reclaim

        def reclaiming(low: bytes, high: bytes) -> None:
            asked.append("done")
            reclaim(low, high)

        monkeypatch.setattr(engine, "reclaim", reclaiming)
        report = store.prune(blocks=1)
        assert (report.rows, report.complete) == (0, True)
        assert store.prune(blocks=1).blocks == 0
        assert asked == ["full", "done"]
        commit(store, "goes on", {b"on": b"ward"})


def test_one_run_at_a_time(store: Store) -> None:
    """One that is asked for waits; the background does not."""
    assert store._upkeep is not None
    pruner = store._upkeep.pruner
    inside, go = threading.Event(), threading.Event()
    second: list[PruneReport] = []

    def progress(done: int, total: int) -> None:
        inside.set()
        assert go.wait(30)

    first = threading.Thread(target=lambda: store.prune(progress=progress))
    other = threading.Thread(target=lambda: second.append(store.prune()))
    first.start()
    assert inside.wait(30)
    assert pruner.run_in_background(PrunePolicy(1), lambda: True) is None
    other.start()
    go.set()
    first.join(30)
    other.join(30)
    assert (second[0].blocks, second[0].floor_before) == (0, 18)


# -- space -----------------------------------------------------------------------------------------------------------


def disk_bytes(path: Path) -> int:
    return sum(each.stat().st_size for each in (path / "views").rglob("*") if each.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["rocksdb", "sqlite"])
def test_space_returns(engine: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"max_reorg_depth": 2, "durability": "buffered", "history_blocks": 0}
    with open_state_store(f"{engine}:{tmp_path}", **fields) as store:
        values = long_chain(store, 80, 200, keys=5_000)  # few rows of each key: pages get half empty
        store.flush()
        before = disk_bytes(tmp_path)
        dry = store.prune(blocks=12, dry_run=True)
        assert (dry.rows, dry.heights_lost) == ((77 - 12 + 2) * 200, 77 - 12 + 1)
        report = store.prune(blocks=12)
        assert report.rows == dry.rows
        after = disk_bytes(tmp_path)
        assert report.freed_bytes is not None
        assert report.freed_bytes >= dry.estimated_bytes * 0.3
        assert before - after >= dry.estimated_bytes * 0.3
        assert values_of(store, 66) == values[66]
        assert_tip(store, values[-1])
    assert disk_bytes(tmp_path) <= after * 1.1


@pytest.mark.slow
def test_lmdb_uses_its_pages_again(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"max_reorg_depth": 2, "durability": "buffered", "history_blocks": 0}
    sizes = []
    with open_state_store(f"lmdb:{tmp_path}", proof_window_blocks=0, **fields) as store:
        for _ in range(6):
            long_chain(store, 25, 200, keys=600)
            store.flush()
            sizes.append(disk_bytes(tmp_path))
            assert store.prune(blocks=1).rows >= 23 * 200
    assert sizes[5] <= sizes[2] * 1.1, sizes
