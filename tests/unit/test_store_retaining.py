"""Retention by the settings: what a backup holds goes by itself, segment by segment, and nothing else does."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast import RetentionPolicy, Store, events
from holdfast.backup import BackupKey, create_backup, open_repository, originals_of, verify_backup
from holdfast.backup.segments import SegmentSource
from holdfast.blocks.lookup import load_canonical
from holdfast.cli.session import open_to_write
from holdfast.errors import OutOfSpace, PrunedError, TargetUnavailable
from holdfast.journal.journal import Journal
from holdfast.recovery import verify_store
from holdfast.store import retaining, retention, upkeep
from holdfast.store.retaining import BackgroundRetention
from holdfast.store.retention import cut_of
from holdfast.types import Block
from tests.cli.cli_tools import ROOT, child_environment
from tests.unit.backup_support import SMALL, chunk_files, noise, small_segments
from tests.unit.state_support import writer_backend
from tests.unit.store_support import chain_of, make, open_quick, quick

__all__ = ["small_segments"]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_segments")]
DEPTH = 6
COUNT = 160
KEEP = 40
FLOOR = COUNT - 1 - DEPTH - KEEP + 1
"""Blocks below it may lose their bodies."""
WAIT = 120


def fields(**more: object) -> dict[str, object]:
    given = {"max_reorg_depth": DEPTH, "proof_window_blocks": 0, "compression": "none"}
    return given | {"journal_retention": "blocks", "journal_retention_amount": KEEP} | more


def opened(path: Path, **more: object) -> Store:
    return open_quick(path, **fields(**more))


def filled(path: Path) -> list[Block]:
    blocks = chain_of(None, COUNT)
    with opened(path, journal_retention="none") as store:
        for block in blocks:
            store.add(block)
            if block.height == 10:
                store.add(make(blocks[9], "side", producer=b"side"))
    return blocks


def grow(store: Store, blocks: list[Block]) -> None:
    """Each in a frame of its own."""
    for block in blocks:
        store.add(block)


def saved(path: Path, store: Store | None = None) -> None:
    create_backup(store or path, open_repository(path / "backups", create=True), workers=0)


def own(store: Store) -> BackgroundRetention:
    """What applies the settings; in these tests the thread comes to it too late to matter."""
    assert store._upkeep is not None
    return store._upkeep._retaining


def runs(store: Store) -> int:
    """All of it is done that can be done now; how many runs that took."""
    count = 0
    while own(store).due():
        own(store).run(lambda: True)
        count += 1
        assert count < 100
    return count


def bare(store: Store) -> list[int]:
    """Heights without a body."""
    found = []
    for info in store.blocks.canonical():
        try:
            store.blocks.body(info)
        except PrunedError:
            found.append(info.height)
    return found


@pytest.fixture(autouse=True)
def _by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_LOOK_SECONDS", 3600.0)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[str], list[dict[str, object]]]]:
    """The fields of the events of a name, so far."""

    def named(name: str) -> list[dict[str, object]]:
        found = [record for record in caplog.records if getattr(record, "holdfast_event", "") == name]
        return [record.holdfast_fields for record in found]  # type: ignore[attr-defined]

    with caplog.at_level(logging.INFO, logger="holdfast"):
        yield named


Told = Callable[[str], list[dict[str, object]]]

# -- what goes -------------------------------------------------------------------------------------------------------


def test_bodies_that_a_backup_holds_go_by_whole_segments(tmp_path: Path, told: Told) -> None:
    path = tmp_path / "s"
    blocks = filled(path)
    saved(path)
    with opened(path) as store:
        segments = store.retention.status().segments
        assert runs(store) > 1  # a few segments in each
        gone = bare(store)
        assert gone == list(range(len(gone)))
        assert FLOOR - 30 < len(gone) <= FLOOR
        status = store.retention.status()
        assert status.floor == len(gone)
        assert retaining._SEGMENTS_PER_RUN < status.pruned < segments
        info = store.blocks.at(FLOOR)
        assert info is not None
        assert store.blocks.body(info) == blocks[FLOOR].body
        side = store.blocks.load(next(store.blocks.orphans()).hash)
        with pytest.raises(PrunedError):
            store.blocks.body(side)
        assert {event["archived"] for event in told("journal_pruned")} == {True}
        assert told("retention_waits") == []
        store.add_many(chain_of(blocks[-1], 64 + KEEP))
        saved(path, store)
        assert runs(store) > 0
        assert len(bare(store)) >= FLOOR
    assert verify_store(path, level="full").ok


def test_what_is_bare_is_not_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    filled(path)
    saved(path)
    looked: list[int] = []

    def counted(journal: Any, info: Any, below: int) -> Any:
        looked.append(info.number)
        return cut_of(journal, info, below)

    with opened(path) as store:
        runs(store)
        last = store.retention.status().pruned
    monkeypatch.setattr(retaining, "cut_of", counted)
    with opened(path) as store:
        runs(store)
        assert store.retention.status().pruned == last
    assert looked == []


def test_a_segment_with_a_block_above_the_floor_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    blocks = filled(path)
    saved(path)
    with opened(path, journal_retention_amount=COUNT - 1 - DEPTH - 20 + 1) as store:
        runs(store)
        gone = bare(store)
        assert 0 < len(gone) < 20
        again = store.retention.prune(RetentionPolicy("below", 20), without_archive=True)
        assert (again.segments, again.floor_after) == (1, 20)  # the segment in which the floor lies
        assert blocks[20].body is not None


def test_a_segment_with_a_side_block_above_the_floor_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "s"
    trunk = chain_of(None, 10)
    old, new = chain_of(trunk[-1], 4, "old"), chain_of(trunk[-1], 5, "new")
    with opened(path, journal_retention="none") as store:
        for block in (*trunk, *old, *new, *chain_of(new[-1], 60)):
            store.add(dataclasses.replace(block, body=noise(block.hash, 1_500)))
        final = store.retention.floor_max()
    saved(path)
    for floor in range(10, 17):
        with opened(path, journal_retention_amount=final - floor + 1) as store:
            runs(store)
            journal = writer_backend(store).opened.journal
            pruned = [info for info in journal.segments() if info.pruned_bytes]
            assert all(info.retained_from == cut_of(journal, info, COUNT).top + 1 for info in pruned)
            assert all(info.retained_from <= floor for info in pruned)
    assert len(pruned) > 2


def test_days_are_walked_a_part_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    parent, day = None, 24 * 3600
    with opened(path, journal_retention="none") as store:
        for number in range(COUNT):
            parent = make(parent, number, time=number * day // 10)
            store.add(parent)
        saved(path, store)
    asked: list[int] = []

    def counted(get: Any, height: int) -> Any:
        asked.append(height)
        return load_canonical(get, height)

    monkeypatch.setattr(retaining, "_STEPS_MAX", 7)
    monkeypatch.setattr(retention, "load_canonical", counted)
    floor = COUNT - 1 - 50 + 1
    with opened(path, journal_retention="days", journal_retention_amount=5) as store:
        while own(store).due():
            asked.clear()
            own(store).run(lambda: True)
            assert len(asked) <= 7 + 2
        assert own(store)._floor == floor
        assert floor - 30 < len(bare(store)) <= floor
        asked.clear()
        store.retention.backup_made = True
        runs(store)
        assert len(asked) <= 3


def test_only_as_much_goes_as_makes_the_journal_fit(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with opened(path, journal_retention="none") as store:
        for number in range(COUNT):
            store.add(dataclasses.replace(make(store.tip, number), body=noise(number, 400)))
    saved(path)
    with opened(path, journal_retention="space", journal_retention_amount=1 << 30) as store:
        runs(store)
        assert store.retention.status().compacted == 0
        small = store.compact(dry_run=True).journal_bytes_after
    with opened(path, journal_retention="space", journal_retention_amount=small + 200) as store:
        runs(store)
        assert store.retention.status().file_bytes <= small + 200
        assert bare(store) == []
    with opened(path, journal_retention="space", journal_retention_amount=small - 5_000) as store:
        runs(store)
        assert small - 5_000 - SMALL < store.retention.status().file_bytes <= small - 5_000
        assert 0 < len(bare(store)) < FLOOR
        assert runs(store) == 0


def test_an_encrypted_store(tmp_path: Path) -> None:
    path, key = tmp_path / "s", bytes(range(32))
    settings = quick(**fields())
    with holdfast.open(path, settings=settings, key=key) as store:
        grow(store, chain_of(None, COUNT))
        saved(path, store)
        runs(store)
        assert 0 < len(bare(store)) <= FLOOR


# -- what proves it --------------------------------------------------------------------------------------------------


def test_what_was_sealed_after_the_last_backup_waits_for_the_next_in_silence(tmp_path: Path, told: Told) -> None:
    path = tmp_path / "s"
    blocks = chain_of(None, COUNT)
    with opened(path) as store:
        grow(store, blocks[:60])
        saved(path, store)
        grow(store, blocks[60:])
        runs(store)
        gone = bare(store)
        assert 0 < len(gone) < 60
        assert own(store).waiting > 0
        statistics = store.statistics()["upkeep"]
        assert isinstance(statistics, dict)
        assert statistics["segments_not_archived"] == own(store).waiting
        assert runs(store) == 0
        saved(path, store)
        store.retention.backup_made = True
        assert runs(store) > 0
        assert len(bare(store)) > 60
        assert own(store).waiting == 0
    assert told("retention_waits") == []


def test_without_a_backup_nothing_goes_and_that_is_told_once(tmp_path: Path, told: Told) -> None:
    path = tmp_path / "s"
    filled(path)
    open_repository(path / "backups", create=True)
    with opened(path) as store:
        tip = store.tip
        for _ in range(3):
            assert own(store).due()
            own(store).run(lambda: True)
            store.add_many(chain_of(store.tip, 64))
        assert (bare(store), store.retention.status().floor) == ([], 0)
        assert len(told("retention_waits")) == 1
        own(store)._ask_at = time.monotonic()  # the hour is over
        runs(store)
        assert len(told("retention_waits")) == 1
        saved(path, store)
        own(store)._ask_at = time.monotonic()
        runs(store)
        assert tip is not None
        assert len(bare(store)) > tip.height
        assert len(told("retention_waits")) == 1


@pytest.mark.parametrize("wrong", ["nowhere", "encrypted", "foreign"])
def test_a_repository_that_cannot_be_asked_is_told_with_its_remedy(
    wrong: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, told: Told
) -> None:
    path = tmp_path / "s"
    filled(path)
    if wrong == "encrypted":
        open_repository(path / "backups", create=True, key=BackupKey.from_passphrase("x"), scrypt_n=2**14)
    if wrong == "foreign":
        filled(tmp_path / "other")
        create_backup(tmp_path / "other", open_repository(path / "backups", create=True), workers=0)
    with opened(path) as store:
        runs(store)
        assert bare(store) == []
    (event,) = told("retention_waits")
    code = "backup_key" if wrong == "encrypted" else "backup_not_found"
    (record,) = [each for each in caplog.records if getattr(each, "holdfast_event", "") == "retention_waits"]
    assert event["segments"] == retaining._SEGMENTS_PER_RUN
    assert code in str(record.__dict__)


def test_a_segment_that_is_damaged_in_the_backup_stays_and_is_told_once(tmp_path: Path, told: Told) -> None:
    path = tmp_path / "s"
    filled(path)
    saved(path)
    place = open_repository(path / "backups")
    entry = place.newest().segments[1]
    (chunk,) = [each for each in chunk_files(place) if each.name == entry.chunks[0].id]
    chunk.write_bytes(bytes(len(chunk.read_bytes())))
    with opened(path) as store:
        runs(store)
        lost = [info.number for info in writer_backend(store).opened.journal.segments() if info.pruned_bytes]
        assert entry.number not in lost
        assert len(lost) > 5
        assert own(store).waiting == 1
        own(store)._ask_at = time.monotonic()
        runs(store)
    assert len(told("retention_waits")) == 1


def test_an_archive_that_stops_to_answer_is_not_asked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    path = tmp_path / "s"
    filled(path)
    saved(path)
    asked: list[int] = []
    real = SegmentSource.check

    def check(self: SegmentSource, number: int, digest: bytes, look: Callable[[bytes], None]) -> None:
        asked.append(number)
        if len(asked) > 2:
            raise TargetUnavailable("no answer")
        real(self, number, digest, look)

    with opened(path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(SegmentSource, "check", check)
            runs(store)
            store.add_many(chain_of(store.tip, 64))
            runs(store)
            assert len(asked) == 3
            assert store.retention.status().pruned == 2
        own(store)._ask_at = time.monotonic()
        runs(store)
        assert len(bare(store)) > FLOOR - 30
    (event,) = told("retention_waits")
    assert event["segments"] == retaining._SEGMENTS_PER_RUN - 2


def test_what_the_settings_do_not_ask_for_or_who_opens_by_command_gives_up_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    filled(path)
    saved(path)
    with opened(path, journal_retention="none") as store:
        assert not own(store).due()
    (path / "config.toml").write_text(
        f'journal_retention = "blocks"\njournal_retention_amount = {KEEP}\nmax_reorg_depth = {DEPTH}\n'
    )
    with open_to_write(path) as store:
        assert store.settings.journal_retention == "blocks"
        assert not own(store).due()


# -- in nobody's way --------------------------------------------------------------------------------------------------


def test_it_is_stopped_anywhere_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "s"
    filled(path)
    saved(path)
    steps = 0
    with opened(path) as store:
        while own(store).due():
            left = iter(range(7 * steps))
            own(store).run(lambda left=left: next(left, None) is not None)  # type: ignore[misc]
            steps += 1
            gone = bare(store)
            assert gone == list(range(len(gone)))
        assert steps > 3
        assert len(bare(store)) > FLOOR - 30
    assert verify_store(path, level="full").ok


def test_an_archive_that_hangs_does_not_hold_up_the_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    filled(path)
    saved(path)
    monkeypatch.setattr(upkeep, "_LOOK_SECONDS", 0.001)
    monkeypatch.setattr(retaining, "_LEAVE_SECONDS", 0.0)
    hangs, answers, left = threading.Event(), threading.Event(), threading.Event()
    real = SegmentSource.check

    def check(self: SegmentSource, number: int, digest: bytes, look: Callable[[bytes], None]) -> None:
        hangs.set()
        assert answers.wait(WAIT)
        try:
            real(self, number, digest, look)
        finally:
            left.set()

    monkeypatch.setattr(SegmentSource, "check", check)
    with opened(path) as store:
        assert hangs.wait(WAIT)
    answers.set()
    assert left.wait(WAIT)
    monkeypatch.undo()
    with opened(path, journal_retention="none") as store:
        assert store.retention.status().pruned == 0


def test_who_is_at_work_on_the_segments_goes_first(tmp_path: Path) -> None:
    path = tmp_path / "s"
    filled(path)
    saved(path)
    with opened(path) as store:
        assert store._upkeep is not None
        with store._upkeep.compactions.lock:
            assert own(store).due()
            own(store).run(lambda: True)
            assert store.retention.status().pruned == 0
        assert runs(store) > 0
        assert bare(store)


def test_a_full_disk_is_told_and_it_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Told) -> None:
    path = tmp_path / "s"
    filled(path)
    saved(path)
    done, failed = threading.Event(), threading.Event()
    real = Journal.compact

    def compact(self: Journal, number: int, **options: Any) -> Any:
        if not failed.is_set():
            failed.set()
            raise OutOfSpace("there is no room")
        result = real(self, number, **options)
        done.set()
        return result

    monkeypatch.setattr(Journal, "compact", compact)
    monkeypatch.setattr(upkeep, "_LOOK_SECONDS", 0.001)
    with opened(path) as store:
        assert done.wait(WAIT)
        store.add_many(chain_of(store.tip, 2))
    assert len(told("upkeep_failed")) == 1
    with opened(path, journal_retention="none") as store:
        assert store.retention.status().pruned > 0


def test_a_node_with_a_schedule_needs_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backup by the schedule, its test restore, and what it holds is given up: all of it by the settings."""
    path = tmp_path / "s"
    filled(path)
    (path / "schedule.json").write_text("")
    monkeypatch.setattr(upkeep, "_LOOK_SECONDS", 0.001)
    pruned = threading.Event()
    with events.on_event(lambda _: pruned.set(), names=["journal_pruned"]):
        with opened(path, backup_schedule="0 0 29 2 *", disk_reserve_bytes=0) as store:
            assert pruned.wait(WAIT)
            assert store.tip is not None
    (name,) = open_repository(path / "backups").names()
    with opened(path, journal_retention="none") as store:
        gone = bare(store)
        assert gone == list(range(len(gone)))
        report = store.retention.refill(
            originals_of(open_repository(path / "backups"), writer_backend(store).identity.store_id)
        )
        assert (report.floor_after, report.missing) == (0, ())
        assert bare(store) == []
    assert verify_backup(open_repository(path / "backups"), name, workers=0).ok


_NODE = """
import sys, threading, holdfast
from holdfast.store import upkeep
from tests.unit.backup_support import in_small_segments
from tests.unit.test_store_retaining import opened
upkeep._LOOK_SECONDS = 0.001
with in_small_segments():
    store = opened(sys.argv[1])
    threading.Event().wait(120)
"""


@pytest.mark.parametrize("point", ["after_floor:1", "after_segment:1", "after_segment:5"])
def test_a_node_that_is_killed_goes_on_with_it(point: str, tmp_path: Path) -> None:
    path = tmp_path / "s"
    filled(path)
    saved(path)
    environment = child_environment() | {"HOLDFAST_FAILPOINT": f"store.retention.{point}"}
    environment["PYTHONPATH"] += os.pathsep + str(ROOT)
    command = [sys.executable, "-c", _NODE, str(path)]
    killed = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=WAIT)
    assert killed.returncode == -signal.SIGKILL, killed
    with opened(path) as store:
        gone = bare(store)
        assert gone == list(range(len(gone)))
        assert bool(gone) == (point != "after_floor:1")
        runs(store)
        assert len(bare(store)) > FLOOR - 30
    assert verify_store(path, level="full").ok
