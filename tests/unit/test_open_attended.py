"""``holdfast.open`` looks after the backups of its store: it makes those of the schedule, until the store is closed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast import Settings, Store, aio, events
from holdfast._fs import RealFileSystem
from holdfast.backup import BackupKey, BackupScheduler, Schedule, ScheduledBackups, open_repository, scheduler
from holdfast.backup import runs as running
from holdfast.chains.pow import Blockchain
from holdfast.cli.session import create_or_open, open_to_write
from holdfast.errors import InvalidInputError, ResourceExhausted
from holdfast.events import Event
from holdfast.store.chain import CustomChain
from tests.cli.cli_tools import child_environment
from tests.unit.backup_support import check, grown, repository
from tests.unit.store_support import chain_of, open_quick

LEAP = "0 0 29 2 *"
"""Was due in 2024, and is next in 2028."""
WAIT = 120


def scheduled(path: Path, **fields: object) -> Store:
    return open_quick(path, backup_schedule=LEAP, disk_reserve_bytes=0, **fields)


def missed(path: Path) -> None:
    """A store with blocks, of which no run is known."""
    grown(path, 3)
    (path / "schedule.json").write_text("")


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "holdfast-backups"]


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A close waits for the thread on a slow machine, too."""
    monkeypatch.setattr(scheduler, "_JOIN_SECONDS", WAIT)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Waits for the next look at the schedule; what it made."""
    done = threading.Semaphore(0)
    reports: list[Any] = []
    real = ScheduledBackups.run_due

    def run_due(self: ScheduledBackups) -> Any:
        report = real(self)
        reports.append(report)
        done.release()
        return report

    def next_one() -> Any:
        assert done.acquire(timeout=WAIT)
        return reports[-1]

    monkeypatch.setattr(ScheduledBackups, "run_due", run_due)
    return next_one


def test_a_missed_run_is_made_up_once_whoever_looks(tmp_path: Path, looked: Callable[[], Any]) -> None:
    path = tmp_path / "s"
    missed(path)
    with scheduled(path) as store:
        report = looked()
        assert report.tested == "passed"
        store.add_many(chain_of(store.tip, 2))
        beside = ScheduledBackups(path, Schedule(LEAP), lambda create: open_repository(path / "backups", create=create))
        assert beside.run_due() is None
        assert beside.failure is None
    assert threads() == []
    with scheduled(path):
        looked()
        assert looked() is None
    place = repository(path / "backups")
    assert place.names() == [report.name]
    assert check(place, report.name).ok


def test_a_process_beside_that_makes_the_run_keeps_this_one_from_it(tmp_path: Path, looked: Callable[[], Any]) -> None:
    missed(tmp_path / "s")
    lock = RealFileSystem().lock(tmp_path / "s" / running.LOCK_NAME, "cron")
    try:
        with scheduled(tmp_path / "s"):
            assert looked() is None
    finally:
        lock.release()
    assert not (tmp_path / "s" / "backups").exists()


def test_for_asyncio_and_for_chains_as_well(tmp_path: Path) -> None:
    async def opened() -> None:
        settings = Settings(backup_schedule=LEAP)
        async with await aio.open_async(tmp_path / "s", settings=settings):
            assert len(threads()) == 1

    asyncio.run(opened())
    assert threads() == []
    with Blockchain.load_or_create(tmp_path / "pow", settings=Settings(backup_schedule=LEAP)):
        assert len(threads()) == 1
    assert threads() == []


def test_who_only_reads_or_has_no_files_or_no_schedule_has_no_thread(tmp_path: Path) -> None:
    path = tmp_path / "s"
    grown(path, 1)
    settings = Settings(backup_schedule=LEAP)
    with holdfast.open(path, settings=settings, read_only=True):
        assert threads() == []
    with holdfast.open("memory:", settings=settings), holdfast.open(path):
        assert threads() == []


def test_commands_have_none(tmp_path: Path) -> None:
    path = tmp_path / "s"
    grown(path, 1)
    (path / "config.toml").write_text(f'backup_schedule = "{LEAP}"\n')
    with open_to_write(path) as store:
        assert store.settings.backup_schedule == LEAP
        assert threads() == []
    with create_or_open(path, None, None, lambda found: CustomChain(found.spec)) as store:  # type: ignore[union-attr]
        assert store.settings.backup_schedule == LEAP
        assert threads() == []


def test_a_schedule_that_means_nothing_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no schedule"):
        open_quick(tmp_path / "s", backup_schedule="now and then")
    assert not (tmp_path / "s").exists()


def test_a_failure_to_begin_is_told_and_the_store_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ResourceExhausted("the system has no room for another thread")

    monkeypatch.setattr(scheduler, "start_thread", refuse)
    told: list[Event] = []
    with events.on_event(told.append), scheduled(tmp_path / "s") as store:
        store.add_many(chain_of(None, 2))
    (event,) = (event for event in told if event.name == "backup_failed")
    assert event.code == "resources"


def test_a_failing_run_is_told_and_the_store_goes_on(tmp_path: Path, looked: Callable[[], Any]) -> None:
    path = tmp_path / "s"
    missed(path)
    (tmp_path / "file").write_text("")
    told: list[Event] = []
    with events.on_event(told.append), scheduled(path, backup_target=str(tmp_path / "file" / "x")) as store:
        assert looked() is None
        store.add_many(chain_of(store.tip, 2))
    assert [event.name for event in told if event.name.startswith("backup")] == ["backup_run_failed"]


def test_an_encrypted_repository_has_its_key_from_the_settings(tmp_path: Path, looked: Callable[[], Any]) -> None:
    path = tmp_path / "s"
    missed(path)
    (tmp_path / "key").write_text("5a" * 32)
    with scheduled(path, backup_key_file=str(tmp_path / "key")):
        assert looked() is not None
    place = open_repository(path / "backups", key=BackupKey.from_file(tmp_path / "key"))
    assert (place.encrypted, len(place.names())) == (True, 1)


def test_closing_ends_a_backup_at_its_next_piece_and_the_next_open_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looked: Callable[[], Any]
) -> None:
    path = tmp_path / "s"
    missed(path)
    begun = threading.Event()

    def for_ever(*_: object, progress: Callable[[int, int], None], **__: object) -> None:
        begun.set()
        while True:
            progress(0, 1)

    with monkeypatch.context() as patch:
        patch.setattr(running, "create_backup", for_ever)
        with scheduled(path):
            assert begun.wait(WAIT)
        assert threads() == []
        assert looked() is None
    RealFileSystem().lock(path / running.LOCK_NAME, "free").release()
    told: list[Event] = []
    with events.on_event(told.append), scheduled(path):
        assert looked() is not None
    assert len(repository(path / "backups").names()) == 1
    assert "backup_run_failed" not in [event.name for event in told]


def test_one_that_a_program_starts_takes_the_place_of_it(tmp_path: Path) -> None:
    with scheduled(tmp_path / "s") as store:
        (first,) = threads()
        with BackupScheduler(store, schedule="monthly 1"):
            first.join(WAIT)
            assert not first.is_alive()
            (second,) = threads()
        assert not second.is_alive()


def test_a_child_after_fork_has_none(tmp_path: Path) -> None:
    with scheduled(tmp_path / "s"):
        child = os.fork()
        if child == 0:
            os._exit(len(threads()))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(threads()) == 1


_NODE = """
import sys, threading, holdfast
store = holdfast.open(sys.argv[1], settings=holdfast.Settings(backup_schedule=sys.argv[2], disk_reserve_bytes=0))
threading.Event().wait(120)
"""


@pytest.mark.slow
def test_a_node_that_is_killed_in_a_run_goes_on_with_it(tmp_path: Path, looked: Callable[[], Any]) -> None:
    path = tmp_path / "s"
    missed(path)
    environment = child_environment() | {"HOLDFAST_FAILPOINT": "backup.schedule.made:1"}
    command = [sys.executable, "-c", _NODE, str(path), LEAP]
    killed = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=WAIT)
    assert killed.returncode == -signal.SIGKILL, killed
    (name,) = repository(path / "backups").names()
    with scheduled(path) as store:
        assert looked().name == name
        assert store.tip is not None
    assert repository(path / "backups").names() == [name]
