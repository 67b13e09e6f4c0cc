"""What an open store does in the background: it prunes and saves the tree, in nobody's way, and ends with the store."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast import Store
from holdfast.engine.api import Batch
from holdfast.errors import ClosedError, EngineError, OutOfSpace, PrunedError
from holdfast.recovery import verify_store
from holdfast.state.image import IMAGE_NAME
from holdfast.store import pruning, upkeep
from holdfast.store.upkeep import Upkeep
from holdfast.views.api import HistoryRecord
from holdfast.views.views import Views
from tests.unit.pruning_support import history_rows, rows_too_many
from tests.unit.state_support import Values, after, assert_tip, commit, open_state_store, writer_backend

SECONDS = 30.0
DEPTH = 2


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The background looks all the time, and needs little to begin."""
    monkeypatch.setattr(upkeep, "_LOOK_SECONDS", 0.001)
    monkeypatch.setattr(upkeep, "_IMAGE_SECONDS", 0.0)
    monkeypatch.setattr(upkeep, "_IMAGE_KEYS", 20)
    monkeypatch.setattr(upkeep, "_PRUNE_HEIGHTS", 2)


@pytest.fixture
def events(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What was logged."""
    with caplog.at_level(logging.INFO, logger="holdfast"):
        yield caplog


def failures(events: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in events.records if getattr(record, "holdfast_event", "") == "upkeep_failed"]


def opened(path: Path, **fields: Any) -> Store:
    return open_state_store(f"sqlite:{path}", **({"max_reorg_depth": DEPTH, "history_blocks": 5} | fields))


def grow(store: Store, count: int) -> Values:
    """So many blocks more, each of which changes a key of its own and a common one."""
    values: Values = dict(store.state.scan())
    for _ in range(count):
        number = 0 if store.tip is None else store.tip.height + 1
        changes = {b"often": b"%d" % number, b"own/%d" % number: b"1"}
        commit(store, ("u", number), changes)
        values = after(values, changes)
    return values


def until(true: Callable[[], bool]) -> None:
    """It has become true, long before the time is over."""
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.001)


def figures(store: Store) -> dict[str, Any]:
    found = store.statistics()["upkeep"]
    assert isinstance(found, dict)
    return found


def record_of(store: Store) -> HistoryRecord:
    record = writer_backend(store).views.history
    assert record is not None
    return record


def cleaned_to(store: Store, height: int) -> bool:
    """The background has given up what lies below, and removed it."""
    record = record_of(store)
    return record.floor >= height and record.cleaned == record.floor


def own(store: Store) -> Upkeep:
    assert store._upkeep is not None
    return store._upkeep


def readable(store: Store) -> list[int]:
    """The heights that can be read; each is right."""
    assert store.tip is not None
    found = []
    for height in range(store.tip.height + 1):
        try:
            values = dict(store.state.at(height).scan())
        except PrunedError:
            continue
        assert values == {b"often": b"%d" % height} | {b"own/%d" % each: b"1" for each in range(height + 1)}
        found.append(height)
    return found


# -- what it does ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("every", [0, 6])
def test_the_background_prunes_by_the_settings(every: int, tmp_path: Path) -> None:
    with opened(tmp_path, history_every=every) as store:
        values = grow(store, 30)
        floor = 29 - DEPTH - 5 + 1
        until(lambda: cleaned_to(store, floor - 2))
        until(lambda: own(store)._prune_due() is False)
        kept = readable(store)
        assert record_of(store).floor <= floor
        assert kept == [*(range(0, record_of(store).floor, every) if every else ()), *range(record_of(store).floor, 30)]
        assert not rows_too_many(history_rows(writer_backend(store).opened.engine), record_of(store))
        assert figures(store) == {
            "failure": None,
            "pruned_to": record_of(store).floor,
            "image_seq": own(store)._image_seq,
            "segments_not_archived": 0,
        }
        assert_tip(store, values)
    assert verify_store(tmp_path, level="full").ok


@pytest.mark.slow
def test_with_zero_blocks_nothing_is_given_up(tmp_path: Path) -> None:
    with opened(tmp_path, history_blocks=0) as store:
        grow(store, 20)
        assert not own(store)._prune_due()
        assert own(store).failure is None
        assert readable(store) == list(range(20))


def test_pruning_waits_until_it_is_worth_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_LOOK_SECONDS", 3600.0)
    with opened(tmp_path) as store:
        for height in range(14):
            # the last final height is two below the tip, five of them stay, and more than two have to go
            assert own(store)._prune_due() is (height - 1 - DEPTH - 5 + 1 > 2), height
            grow(store, 1)
    with opened(tmp_path, history_blocks=0) as store:
        store.prune(blocks=5, keep_going=lambda: False)
        assert record_of(store).cleaned < record_of(store).floor
    with opened(tmp_path, history_blocks=7) as store:
        assert own(store)._prune_due(), "what was broken off goes on"


@pytest.mark.slow
def test_heights_that_were_kept_on_purpose_stay(tmp_path: Path) -> None:
    with opened(tmp_path, history_blocks=0) as store:
        grow(store, 20)
        store.prune(blocks=3, every=4)
    with opened(tmp_path, history_every=0) as store:
        grow(store, 20)
        until(lambda: cleaned_to(store, 25))
        assert [height for height in readable(store) if height < 25] == list(range(0, 25, 4))


@pytest.mark.slow
def test_the_background_saves_the_tree(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        image = next((path for path in tmp_path.rglob(IMAGE_NAME)), None)
        assert image is None
        grow(store, 40)
        until(lambda: figures(store)["image_seq"] > 5)
        assert next(tmp_path.rglob(IMAGE_NAME)).stat().st_size > 100
        before = figures(store)["image_seq"]
        grow(store, 40)
        until(lambda: figures(store)["image_seq"] > before)
    with opened(tmp_path) as store:
        assert store.recovery.tree == "image"


# -- nobody waits for it ---------------------------------------------------------------------------------------------


class Stalled:
    """The background is inside its work, at the first block it looks at, until ``go`` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inside, self.go = threading.Event(), threading.Event()
        self.blocks: list[int] = []
        original = pruning._Sweep.take

        def take(sweep: pruning._Sweep, record: HistoryRecord, height: int, keys: list[bytes]) -> None:
            if threading.current_thread().name == "holdfast-upkeep":
                self.blocks.append(height)
                self.inside.set()
                assert self.go.wait(SECONDS)
            original(sweep, record, height, keys)

        monkeypatch.setattr(pruning._Sweep, "take", take)


@pytest.mark.slow
def test_commits_reads_and_flushes_go_on_while_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stalled = Stalled(monkeypatch)
    with opened(tmp_path) as store:
        grow(store, 20)
        assert stalled.inside.wait(SECONDS)
        values = grow(store, 5)  # would never return if the background held the lock of the writer
        store.flush()
        assert_tip(store, values)
        assert readable(store) == list(range(record_of(store).floor, 25))
        assert figures(store)["failure"] is None
        stalled.go.set()
        until(lambda: cleaned_to(store, 15))


@pytest.mark.slow
def test_close_ends_it_after_the_block_it_is_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stalled = Stalled(monkeypatch)
    store = opened(tmp_path)
    grow(store, 60)
    assert stalled.inside.wait(SECONDS)
    closing = threading.Thread(target=store.close)
    closing.start()
    until(own(store)._stop.is_set)
    seen = len(stalled.blocks)
    stalled.go.set()
    closing.join(SECONDS)
    assert not closing.is_alive()
    assert len(stalled.blocks) <= seen + 1
    assert own(store).failure is None
    with opened(tmp_path) as store:
        until(lambda: cleaned_to(store, 50))
        assert readable(store) == list(range(record_of(store).floor, 60))
    assert verify_store(tmp_path, level="views").ok


@pytest.mark.slow
def test_close_does_not_wait_for_a_run_that_somebody_else_makes(tmp_path: Path) -> None:
    store = opened(tmp_path)
    grow(store, 30)
    inside, go = threading.Event(), threading.Event()
    ended: list[object] = []

    def progress(done: int, total: int) -> None:
        inside.set()
        assert go.wait(SECONDS)

    def prune() -> None:
        try:
            ended.append(store.prune(blocks=1, progress=progress))
        except ClosedError as error:
            ended.append(error)

    until(lambda: not own(store)._prune_due())
    thread = threading.Thread(target=prune)
    thread.start()
    assert inside.wait(SECONDS)
    store.close()
    go.set()
    thread.join(SECONDS)
    assert [type(end) for end in ended] == [ClosedError], ended


@pytest.mark.slow
def test_it_gives_way_while_commits_wait_for_the_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its batches would take the engine's time just then."""
    full = threading.Event()
    full.set()
    waited = threading.Event()

    def is_full(_self: Views) -> bool:
        if threading.current_thread().name != "holdfast-upkeep":
            return False
        waited.set()
        return full.is_set()

    monkeypatch.setattr(Views, "full", property(is_full))
    with opened(tmp_path) as store:
        grow(store, 20)
        assert waited.wait(SECONDS)
        before = len(history_rows(writer_backend(store).opened.engine))
        grow(store, 5)
        assert len(history_rows(writer_backend(store).opened.engine)) == before
        full.clear()
        until(lambda: cleaned_to(store, 15))
        full.set()
        grow(store, 20)  # the store closes although nothing gets better


# -- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_failure_is_logged_once_and_stops_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as store:
        engine = writer_backend(store).opened.engine
        apply = engine.apply

        def full(batch: Batch, *, sync: bool) -> None:
            if batch.rows and not any(batch.rows.values()):  # rows that pruning removes
                raise OutOfSpace("the disk is full")
            apply(batch, sync=sync)

        monkeypatch.setattr(engine, "apply", full)
        grow(store, 12)
        until(lambda: figures(store)["failure"] is not None)
        assert "the disk is full" in figures(store)["failure"]
        before = figures(store)["image_seq"]
        values = grow(store, 40)
        until(lambda: figures(store)["image_seq"] > before)
        assert_tip(store, values)
        assert len(failures(events)) == 1
        record = failures(events)[0]
        assert record.levelno == logging.WARNING
        assert record.__dict__["holdfast_fields"]["code"] == "out_of_space"
    with opened(tmp_path) as store:
        until(lambda: cleaned_to(store, 40))
        assert figures(store)["failure"] is None


@pytest.mark.slow
def test_an_error_that_nobody_expected_is_a_failure_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: pytest.LogCaptureFixture
) -> None:
    def broken(_self: Upkeep) -> bool:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Upkeep, "_prune_due", broken)
    with opened(tmp_path) as store:
        grow(store, 3)
        until(lambda: own(store).failure is not None)
        assert isinstance(own(store).failure, EngineError)
        assert "a bug" in figures(store)["failure"]
        grow(store, 3)
        assert len([record for record in failures(events) if "a bug" in record.getMessage()]) == 1
        thread = own(store)._thread
        assert thread is not None
        assert thread.is_alive()


@pytest.mark.slow
def test_a_setting_that_cannot_be_kept_is_a_failure_that_says_so(
    tmp_path: Path, events: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path, history_blocks=0) as store:
        grow(store, 20)
        store.prune(blocks=3, every=4)
    with opened(tmp_path, history_every=6) as store:
        grow(store, 5)
        until(lambda: figures(store)["failure"] is not None)
        assert "multiple" in figures(store)["failure"]
        assert [height for height in readable(store) if height < 15] == [0, 4, 8, 12]
        assert len(failures(events)) == 1


@pytest.mark.slow
def test_a_full_disk_in_the_background_leaves_a_store_that_opens_again(tmp_path: Path) -> None:
    """The engine itself refuses: it is poisoned, and what was acknowledged is there after the next open."""
    with opened(tmp_path, history_blocks=0) as store:
        values = grow(store, 30)
    store = opened(tmp_path)
    backend = writer_backend(store)
    engine: Any = backend.opened.engine
    engine._gate.poison(OutOfSpace("the disk is full"))
    until(lambda: own(store).failure is not None)
    store.close()
    with opened(tmp_path) as store:
        assert_tip(store, values)
        until(lambda: cleaned_to(store, 20))
        assert_tip(store, grow(store, 2))
    assert verify_store(tmp_path, level="full").ok


def test_a_full_disk_at_close_costs_the_image_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: object, **kwargs: object) -> bool:
        raise OutOfSpace("cannot write: No space left on device")

    url = f"sqlite:{tmp_path / 'store'}"
    store = holdfast.open(url)
    draft = store.draft()
    draft.state[b"key"] = b"value"
    store.commit(draft, hash=b"\x01" * 32)
    monkeypatch.setattr(upkeep, "save_image", full)
    with caplog.at_level(logging.WARNING, logger="holdfast"):
        store.close()
    assert [record.__dict__["holdfast_event"] for record in caplog.records] == ["upkeep_failed"]
    with holdfast.open(url) as again:
        assert (again.recovery.clean, again.recovery.tree) == (True, "rebuilt")
        assert again.state[b"key"] == b"value"
