"""Schedules: what their text means, which run is due whatever the clock does, and what a run does and tells."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast import Settings, events
from holdfast._fs import RealFileSystem
from holdfast.backup import (
    BackupRepository,
    BackupScheduler,
    Schedule,
    ScheduledBackups,
    create_backup,
    open_repository,
)
from holdfast.backup import runs as running
from holdfast.backup.create import BESIDE_BYTES_PER_SECOND
from holdfast.backup.runs import BACKOFF_SECONDS_MAX
from holdfast.backup.schedule_state import ScheduleState, load_schedule_state
from holdfast.backup.scheduler import follow_schedule
from holdfast.errors import (
    BackupDamaged,
    FormatTooNew,
    InternalError,
    InvalidInputError,
    OutOfSpace,
    RepositoryLocked,
    StateError,
)
from holdfast.events import Event
from holdfast.store.opening import read_identity
from tests.unit.backup_support import check, chunk_files, grown, repository
from tests.unit.store_support import open_quick

HOUR = 3600 * 1_000_000
DAY = 24 * HOUR


def at(text: str) -> int:
    """Microseconds since 1970."""
    return int((datetime.fromisoformat(text + "+00:00") - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))


def show(time_us: int | None) -> str | None:
    return None if time_us is None else datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M")


# -- words ----------------------------------------------------------------------------------------------------------

NOW = "2026-05-13 12:30:30.5"  # a Wednesday


@pytest.mark.parametrize(
    ("text", "before", "after"),
    [
        ("hourly", "2026-05-13 12:00", "2026-05-13 13:00"),
        ("daily", "2026-05-13 00:00", "2026-05-14 00:00"),
        ("daily 03:00", "2026-05-13 03:00", "2026-05-14 03:00"),
        ("Daily  23:59 ", "2026-05-12 23:59", "2026-05-13 23:59"),
        ("weekly sunday 03:00", "2026-05-10 03:00", "2026-05-17 03:00"),
        ("weekly wednesday", "2026-05-13 00:00", "2026-05-20 00:00"),
        ("monthly 1 03:00", "2026-05-01 03:00", "2026-06-01 03:00"),
        ("monthly 28", "2026-04-28 00:00", "2026-05-28 00:00"),
        ("every 6h", "2026-05-13 12:00", "2026-05-13 18:00"),
        ("every 90m", "2026-05-13 12:00", "2026-05-13 13:30"),
        ("every 1d", "2026-05-13 00:00", "2026-05-14 00:00"),
        ("0 3 * * 0", "2026-05-10 03:00", "2026-05-17 03:00"),
        ("*/15 * * * *", "2026-05-13 12:30", "2026-05-13 12:45"),
        ("0 0 29 2 *", "2024-02-29 00:00", "2028-02-29 00:00"),
        ("0 12 L * *", "2026-04-30 12:00", "2026-05-31 12:00"),
    ],
)
def test_words_and_cron_text(text: str, before: str, after: str) -> None:
    schedule = Schedule(text)
    assert (show(schedule.previous(at(NOW))), show(schedule.next(at(NOW)))) == (before, after)
    instant = schedule.previous(at(NOW))
    assert instant is not None
    assert schedule.previous(instant) == instant
    assert schedule.next(instant - 1) == instant
    assert schedule.next(instant) == at(after)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "never",
        "hourly 03:00",
        "daily 24:00",
        "daily 3:00",
        "daily 03:60",
        "weekly",
        "weekly 03:00",
        "weekly sun 03:00",
        "monthly 29 03:00",
        "monthly 0 03:00",
        "every",
        "every 0h",
        "every 6",
        "every 6w",
        "every 999999d",
        "every -1h",
        "0 3 * *",
        "0 3 * * * *",
        "61 * * * *",
        "0 0 30 2 *",
        "*/0 * * * *",
        "@daily",
        "0 3 * * \u0661",
        "," * 90 + " * * * *",
        "0 3 * * *" + " " * 200,
        None,
        7,
    ],
)
def test_text_that_is_no_schedule_is_refused(text: Any) -> None:
    with pytest.raises(InvalidInputError, match="no schedule"):
        Schedule(text)


@given(
    st.integers(0, 4 * 10**15), st.sampled_from(["hourly", "every 7m", "daily 03:00", "0 3 1,15 * 1", "weekly sunday"])
)
def test_instants_fit_together(now: int, text: str) -> None:
    schedule = Schedule(text)
    after = schedule.next(now)
    assert after is not None
    assert after > now
    assert schedule.previous(after) == after
    before = schedule.previous(now)
    if before is not None:
        assert before <= now
        assert schedule.next(before) == after


# -- runs -----------------------------------------------------------------------------------------------------------


class Node:
    """A store with a few blocks, a schedule, a clock, and every event."""

    def __init__(self, path: Path, text: str = "daily 03:00", **more: Any) -> None:
        self.root = path / "data"
        self.place = path / "r"
        self.now = at("2026-05-13 12:00")
        self.events: list[Event] = []
        self.blocks = grown(self.root, 3)
        self.settings = Settings(backup_schedule=text, disk_reserve_bytes=0, **more)

    def clock(self) -> int:
        return self.now

    def open(self, create: bool = True) -> BackupRepository:
        return open_repository(self.place, create=create)

    def backups(self, **more: Any) -> ScheduledBackups:
        schedule = Schedule(self.settings.backup_schedule)
        options: dict[str, Any] = {"settings": self.settings, "clock": self.clock, "workers": 0}
        return ScheduledBackups(self.root, schedule, self.open, **(options | more))

    def names(self) -> list[str]:
        return self.open().names() if self.place.exists() else []

    def told(self, name: str) -> list[Event]:
        return [event for event in self.events if event.name == name]

    @property
    def state(self) -> ScheduleState:
        state = load_schedule_state(self.root)
        assert state is not None
        return state


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    made = Node(tmp_path)
    listen(made, monkeypatch)
    return made


def listen(made: Node, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(events, "listening", lambda *_: True)
    patch.setattr(events, "deliver", made.events.append)


def test_a_run_makes_verifies_tests_and_prunes(node: Node) -> None:
    backups = node.backups()
    assert backups.run_due() is None
    assert show(backups.next_us()) == "2026-05-14 03:00"
    node.now = at("2026-05-14 02:59:59")
    assert backups.run_due() is None
    assert node.names() == []
    node.now = at("2026-05-14 03:00")
    done = backups.run_due()
    assert done is not None
    assert (done.due_us, done.tested, done.removed) == (node.now, "passed", ())
    assert node.names() == [done.name]
    place = node.open()
    assert place.verified_us(*[done.name, place.manifest_and_digest(done.name)[1]]) is not None
    assert sorted(path.name for path in node.root.parent.iterdir()) == ["data", "r"]
    assert backups.run_due() is None
    assert node.backups().run_due() is None
    names = [event.name for event in node.events]
    assert [name for name in names if name.startswith(("backup", "verif", "recovered"))] == [
        "backup_made",
        "verification_passed",
        "backup_tested",
        "backup_run_done",
    ]
    (event,) = node.told("backup_run_done")
    assert (event.fields["name"], event.fields["tested"], event.place) == (done.name, "passed", str(node.root))


def test_missed_runs_are_made_up_once(node: Node) -> None:
    node.backups().run_due()
    node.now += 10 * DAY
    backups = node.backups()
    done = backups.run_due()
    assert done is not None
    assert show(done.due_us) == "2026-05-23 03:00"
    assert backups.run_due() is None
    assert show(backups.next_us()) == "2026-05-24 03:00"
    assert len(node.names()) == 1


def runs_at(node: Node, *times: str) -> list[str | None]:
    """The instants that were run when the clock showed these times."""
    found = []
    for time in times:
        node.now = at(time)
        done = node.backups().run_due()
        found.append(None if done is None else show(done.due_us))
    return found


def test_a_clock_that_goes_back_makes_no_run_twice(node: Node) -> None:
    node.settings = node.settings.model_copy(update={"backup_test_restore": False})
    assert runs_at(node, "2026-05-13 12:00", "2026-05-14 03:10", "2026-05-14 02:50", "2026-05-14 03:00") == [
        None,
        "2026-05-14 03:00",
        None,
        None,
    ]
    assert runs_at(node, "2026-05-13 12:00", "2026-05-14 03:30", "2026-05-15 03:00") == [None, None, "2026-05-15 03:00"]


def test_hours_that_come_twice_are_run_once(node: Node) -> None:
    node.settings = node.settings.model_copy(update={"backup_schedule": "hourly", "backup_test_restore": False})
    hours = [f"2026-05-13 {hour}:00" for hour in (10, 11, 12, 13)]
    assert runs_at(node, "2026-05-13 09:30", *hours) == [None, *hours]
    assert runs_at(node, "2026-05-13 10:30", *hours[1:], "2026-05-13 14:00") == [None] * 4 + ["2026-05-13 14:00"]


def test_a_run_that_was_cut_off_takes_no_backup_of_an_earlier_one(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    runs_at(node, "2026-05-13 12:00", "2026-05-14 03:00")
    (old,) = node.names()
    mend = failing(monkeypatch, "create_backup", OutOfSpace("full"))
    runs_at(node, "2026-05-15 03:00")
    mend()
    assert runs_at(node, "2026-05-15 03:01") == ["2026-05-15 03:00"]
    assert len(node.names()) == 2
    assert old == node.names()[0]


def test_a_clock_that_was_far_ahead_does_not_stop_the_backups(node: Node) -> None:
    node.settings = node.settings.model_copy(update={"backup_test_restore": False})
    assert runs_at(node, "2026-05-13 12:00", "2036-01-01 04:00") == [None, "2036-01-01 03:00"]
    assert runs_at(node, "2026-05-13 12:01", "2026-05-14 03:00", "2026-05-14 12:00", "2026-05-15 03:00") == [
        None,
        None,
        None,
        "2026-05-15 03:00",
    ]
    assert runs_at(node, "2036-01-01 05:00", "2036-01-02 03:00") == ["2036-01-01 03:00", "2036-01-02 03:00"]


@settings(max_examples=60)
@given(st.data())
def test_no_instant_is_run_twice_whatever_the_clock_does(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(["hourly", "every 6h", "daily 03:00", "*/20 * * * *"]))
    schedule, now, state = Schedule(text), at(NOW), ScheduleState(handled_us=at(NOW))
    rule = ScheduledBackups(Path("none"), schedule, lambda _: pytest.fail("not opened"))
    done: Counter[int] = Counter()
    farthest = now
    for jump in data.draw(st.lists(st.integers(-DAY, 3 * DAY), max_size=30)):
        now = max(now + jump, farthest - DAY)
        farthest = max(farthest, now)
        state = rule._settled(state, now)
        due = rule._due(state, now)
        if due is not None:
            assert due <= now
            done[due] += 1
            state = ScheduleState(handled_us=due)
        assert state.handled_us >= (schedule.previous(now) or 0)
    assert all(count == 1 for count in done.values())


# -- failures -------------------------------------------------------------------------------------------------------


def failing(monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException) -> Callable[[], None]:
    """The step of this name raises; call what is returned and it does no more."""
    real = getattr(running, name)
    broken = [True]

    def step(*args: Any, **options: Any) -> Any:
        if broken:
            raise error
        return real(*args, **options)

    monkeypatch.setattr(running, name, step)
    return broken.clear


STEPS = [
    ("create_backup", "create", OutOfSpace("full")),
    ("verify_backup", "verify", RepositoryLocked("held")),
    ("restore_and_compare", "test", OSError("from a library")),
    ("prune_backups", "prune", RepositoryLocked("held")),
]


@pytest.mark.parametrize(("function", "step", "error"), STEPS)
def test_a_failing_run_is_told_and_tried_again_later(
    function: str, step: str, error: BaseException, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.backups().run_due()
    node.now = at("2026-05-14 03:00")
    mend = failing(monkeypatch, function, error)
    pauses = []
    for number in range(1, 9):
        backups = node.backups()
        assert backups.run_due() is None
        event = node.told("backup_run_failed")[-1]
        assert (event.fields["step"], event.fields["failures"]) == (step, number)
        assert event.code == (getattr(error, "code", InternalError.code))
        assert backups.failure is not None
        pause = int(str(event.fields["retry_seconds"]))
        pauses.append(pause)
        assert node.backups().next_us() == node.now + pause * 1_000_000
        node.now += pause * 1_000_000 - 1
        assert backups.run_due() is None
        assert node.backups().run_due() is None
        assert len(node.told("backup_run_failed")) == number
        node.now += 1
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    mend()
    done = node.backups().run_due()
    assert done is not None
    assert node.names() == [done.name]
    assert (node.state.failures, node.state.backup) == (0, "")


def test_a_pause_that_a_wrong_clock_wrote_is_no_pause(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.backups().run_due()
    node.now = at("2026-05-14 03:00")
    mend = failing(monkeypatch, "create_backup", OutOfSpace("full"))
    node.backups().run_due()
    mend()
    state = node.state
    ahead = msgspec.structs.replace(state, retry_us=node.now + (BACKOFF_SECONDS_MAX + 1) * 1_000_000)
    (node.root / "schedule.json").write_bytes(msgspec.json.encode(ahead, order="sorted"))
    assert node.backups().run_due() is not None


def test_a_run_whose_backup_is_damaged_stores_it_again_and_prunes_nothing(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.settings = node.settings.model_copy(update={"max_backups": 1})
    runs_at(node, "2026-05-13 12:00", "2026-05-14 03:00")
    (old,) = node.names()
    real = create_backup

    def damaging(*args: Any, **options: Any) -> Any:
        report = real(*args, **options)
        if not options["check"]:
            chunk = chunk_files(node.open())[0]
            chunk.write_bytes(chunk.read_bytes()[:-1] + b"\xff")
        return report

    monkeypatch.setattr(running, "create_backup", damaging)
    assert runs_at(node, "2026-05-15 03:00") == [None]
    assert node.told("backup_run_failed")[-1].code == BackupDamaged.code
    assert len(node.names()) == 2
    assert node.state.anew
    assert runs_at(node, "2026-05-15 03:01") == ["2026-05-15 03:00"]
    (new,) = node.names()
    assert new != old
    assert check(node.open(), new).ok


def test_a_backup_that_does_not_restore_fails_the_run(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    from holdfast.backup import proof
    from holdfast.store.factory import open_store as real

    def other(*args: Any, **options: Any) -> Any:
        store = real(*args, **options)
        monkeypatch.setattr(type(store), "tip", property(lambda _: None))
        return store

    monkeypatch.setattr(proof, "open_store", other)
    assert runs_at(node, "2026-05-13 12:00", "2026-05-14 03:00") == [None, None]
    (event,) = node.told("backup_run_failed")
    assert (event.fields["step"], event.code) == ("test", BackupDamaged.code)
    assert sorted(path.name for path in node.root.parent.iterdir()) == ["data", "r"]


def test_a_backup_that_was_made_is_not_made_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the run ended between the backup and the note of it."""
    runs_at(node, "2026-05-13 12:00")
    node.now = at("2026-05-14 03:00")
    real = ScheduledBackups._publish

    class Killed(BaseException):
        pass

    def publish(self: ScheduledBackups, state: ScheduleState) -> None:
        if state.backup:
            raise Killed
        real(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(ScheduledBackups, "_publish", publish)
        with pytest.raises(Killed):
            node.backups().run_due()
    (name,) = node.names()
    node.now += 5_000_000
    done = node.backups().run_due()
    assert done is not None
    assert (done.name, node.names()) == (name, [name])


def test_a_backup_that_is_gone_is_made_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    runs_at(node, "2026-05-13 12:00")
    mend = failing(monkeypatch, "verify_backup", RepositoryLocked("held"))
    runs_at(node, "2026-05-14 03:00")
    mend()
    place = node.open()
    with place.lock():
        place.drop_manifest(node.state.backup)
    assert runs_at(node, "2026-05-14 03:01") == [None]
    assert node.told("backup_run_failed")[-1].code == "backup_not_found"
    assert runs_at(node, "2026-05-14 03:04") == ["2026-05-14 03:00"]


def test_a_run_that_is_stopped_goes_on_later(node: Node) -> None:
    runs_at(node, "2026-05-13 12:00")
    node.now = at("2026-05-14 03:00")
    assert node.backups(stopped=lambda: True).run_due() is None
    assert node.told("backup_run_failed") == []
    assert node.state.started_us == node.now
    assert node.backups().run_due() is not None
    assert len(node.names()) == 1


# -- test restores --------------------------------------------------------------------------------------------------


def test_without_room_nothing_is_restored_and_that_is_told(node: Node) -> None:
    node.settings = node.settings.model_copy(update={"disk_reserve_bytes": 2**62})
    assert runs_at(node, "2026-05-13 12:00", "2026-05-14 03:00") == [None, "2026-05-14 03:00"]
    (event,) = node.told("backup_test_skipped")
    assert (event.code, event.level) == ("out_of_space", 30)
    assert int(str(event.fields["needed_bytes"])) > int(str(event.fields["free_bytes"]))
    assert node.told("backup_run_done")[0].fields["tested"] == "skipped"
    assert node.told("backup_tested") == []


def test_what_a_killed_test_left_is_removed_and_what_is_not_ours_is_kept(node: Node) -> None:
    beside = node.root.with_name("data.test-restore")
    beside.mkdir()
    (beside / "precious").write_text("mine")
    assert runs_at(node, "2026-05-13 12:00", "2026-05-14 03:00") == [None, None]
    event = node.told("backup_run_failed")[-1]
    assert (event.code, event.fields["step"]) == ("foreign_store", "test")
    assert (beside / "precious").read_text() == "mine"
    (beside / "precious").unlink()
    (beside / "test-restore.json").write_text("{}")
    (beside / "store" / "journal").mkdir(parents=True)
    (beside / "store.partial").mkdir()
    assert runs_at(node, "2026-05-14 03:01") == ["2026-05-14 03:00"]
    assert not beside.exists()


def test_test_restores_can_be_left_out(node: Node) -> None:
    node.settings = node.settings.model_copy(update={"backup_test_restore": False})
    runs_at(node, "2026-05-13 12:00", "2026-05-14 03:00")
    assert node.told("backup_run_done")[0].fields["tested"] == "off"
    assert node.told("backup_tested") == []


# -- state ----------------------------------------------------------------------------------------------------------


def test_the_state_is_as_the_format_says(node: Node) -> None:
    runs_at(node, "2026-05-13 12:00")
    store = read_identity(RealFileSystem(), node.root).store_id.hex()
    assert (node.root / "schedule.json").read_text() == (
        '{"ahead_us":0,"anew":false,"backup":"","before":"","due_us":0,"failures":0,"format":1,'
        '"handled_us":1778673600000000,"kind":"holdfast-schedule","repository":"","retry_us":0,"started_us":0,'
        f'"store":"{store}"}}'
    )


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[" * 1000, b'{"handled_us":-1}', b'{"handled_us":9223372036854775808}', b'{"kind":"x"}', bytes(5000)],
)
def test_a_damaged_state_costs_one_backup_too_many(content: bytes, node: Node) -> None:
    (node.root / "schedule.json").write_bytes(content)
    assert runs_at(node, "2026-05-13 12:00", "2026-05-13 12:01") == ["2026-05-13 03:00", None]


def test_a_newer_state_is_not_touched(node: Node) -> None:
    (node.root / "schedule.json").write_text('{"format":2,"kind":"holdfast-schedule"}')
    with pytest.raises(FormatTooNew):
        load_schedule_state(node.root)
    assert runs_at(node, "2026-05-14 03:00") == [None]
    assert node.told("backup_run_failed")[-1].code == "format_too_new"
    assert (node.root / "schedule.json").read_text() == '{"format":2,"kind":"holdfast-schedule"}'


def test_two_at_one_store_do_not_run_twice(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    runs_at(node, "2026-05-13 12:00")
    node.now = at("2026-05-14 03:00")
    real = create_backup
    second: list[object] = []

    def meanwhile(*args: Any, **options: Any) -> Any:
        second.append(node.backups().run_due())
        return real(*args, **options)

    monkeypatch.setattr(running, "create_backup", meanwhile)
    assert node.backups().run_due() is not None
    assert second == [None]
    assert node.backups().run_due() is None
    assert len(node.names()) == 1


# -- the thread -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A close waits for the thread on a slow machine, too."""
    monkeypatch.setattr("holdfast.backup.scheduler._JOIN_SECONDS", 120.0)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "holdfast-backups"]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once a run is done; the clock is at its instant from the second look on."""
    done = threading.Event()
    real = ScheduledBackups.run_due

    def run_due(self: ScheduledBackups) -> Any:
        report = real(self)
        if report is not None:
            done.set()
        return report

    monkeypatch.setattr(ScheduledBackups, "run_due", run_due)
    return done


def test_the_thread_makes_backups_and_ends_with_its_store(tmp_path: Path, ran: threading.Event) -> None:
    grown(tmp_path / "data", 3)
    (tmp_path / "data" / "schedule.json").write_text("")  # nothing was done, so something is due
    with open_quick(tmp_path / "data", disk_reserve_bytes=0, backup_schedule="hourly") as store:
        scheduler = BackupScheduler(store).start()
        assert ran.wait(60)
        with pytest.raises(StateError):
            scheduler.start()
        assert threads()
        store.add_many(grown_more(store))
    assert threads() == []
    (name,) = repository(tmp_path / "data" / "backups").names()
    assert check(repository(tmp_path / "data" / "backups"), name).ok


def grown_more(store: Any) -> Any:
    from tests.unit.store_support import chain_of

    return chain_of(store.tip, 2)


def test_beside_commits_little_is_read_at_once(tmp_path: Path) -> None:
    with open_quick(tmp_path / "data") as store:
        for given, rate in ((None, BESIDE_BYTES_PER_SECOND), (1000, 1000)):
            scheduler = BackupScheduler(store, schedule="hourly", bytes_per_second=given)
            assert scheduler.backups._rate == rate


def test_the_thread_ends_with_its_store_or_before(tmp_path: Path) -> None:
    grown(tmp_path / "data", 1)
    with open_quick(tmp_path / "data") as store:
        BackupScheduler(store, schedule="monthly 1").start()
        assert threads()
    assert threads() == []
    with open_quick(tmp_path / "data") as store:
        with BackupScheduler(store, schedule="monthly 1") as other:
            assert threads()
            other.stop()
            assert threads() == []


def test_a_scheduler_keeps_no_store_alive_and_ends_with_one_that_was_dropped(tmp_path: Path) -> None:
    class Dropped:
        """As much of a store as a scheduler looks at, without what a real one leaves to its close."""

        settings = Settings()
        path = tmp_path
        key = None

    store: Any = Dropped()
    scheduler = BackupScheduler(store, schedule="monthly 1").start()
    thread = scheduler._thread
    assert thread is not None
    assert thread.is_alive()
    del store
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()


def test_a_scheduler_needs_a_schedule_and_files(tmp_path: Path) -> None:
    with open_quick(tmp_path / "data") as store:
        for text in (None, "never"):
            with pytest.raises(InvalidInputError, match="no schedule"):
                BackupScheduler(store, schedule=text)
    with open_quick("memory:") as store:
        with pytest.raises(InvalidInputError, match="in memory"):
            BackupScheduler(store, schedule="hourly")


def test_the_loop_looks_at_the_clock_again_and_again(node: Node) -> None:
    waits: list[float] = []

    class Ended(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            waits.append(timeout)
            node.now += int(timeout * 1_000_000)
            if len(waits) == 4:
                self.set()
            return self.is_set()

    node.now = at("2026-05-14 02:59:20")
    follow_schedule(node.backups(), Ended())
    assert waits[:2] == [30.0, 10.0]
    assert len(node.names()) == 1


def test_a_backup_made_by_hand_is_not_in_the_way(node: Node) -> None:
    runs_at(node, "2026-05-13 12:00")
    made = create_backup(node.root, node.open(), workers=0, clock=node.clock)
    assert check(node.open(), made.manifest.name).ok
    assert runs_at(node, "2026-05-14 03:00") == ["2026-05-14 03:00"]
    assert len(node.names()) == 2
