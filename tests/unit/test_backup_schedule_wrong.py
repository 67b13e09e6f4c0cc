"""Schedules that went wrong: clocks far ahead, runs cut off long ago, repositories that are gone, strange states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast._fs import RealFileSystem, Space
from holdfast.backup import create_backup
from holdfast.backup.schedule_state import ScheduleState
from holdfast.errors import OutOfSpace, RepositoryLocked
from tests.unit.backup_support import grown, repository
from tests.unit.test_backup_schedule import NOW, Node, at, failing, node, runs_at

__all__ = ["node"]


# -- a clock that was wrong ---------------------------------------------------------------------------------------


def test_after_a_clock_that_was_ahead_each_run_keeps_its_own_backup(node: Node) -> None:
    """Names come from the clock; those of later backups come after those of earlier ones all the same."""
    node.settings = node.settings.model_copy(update={"backup_test_restore": False, "max_backups": 2})
    runs_at(node, "2026-05-13 12:00", "2041-01-01 04:00", "2041-01-02 04:00", "2026-05-14 12:00")
    for day in range(16, 21):
        node.blocks += grown(node.root, 2, after=node.blocks[-1])
        node.now = at(f"2026-05-{day} 03:00")
        done = node.backups().run_due()
        assert done is not None
        place = node.open()
        assert place.names()[-1] == place.newest().name == done.name
        tip = place.newest().tip
        assert tip is not None
        assert tip.height == node.blocks[-1].height
        assert done.name not in done.removed
        assert len(place.names()) == 2
        assert node.told("backup_clock_behind")[-1].fields["name"] == done.name
    node.events.clear()
    assert runs_at(node, "2041-01-03 03:00") == ["2041-01-03 03:00"]
    assert node.told("backup_clock_behind") == []


def test_a_run_never_prunes_its_own_backup(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the repository orders it before others, as one whose names an older program chose."""
    node.settings = node.settings.model_copy(update={"backup_test_restore": False, "max_backups": 1})
    runs_at(node, "2026-05-13 12:00", "2041-01-01 04:00", "2026-05-14 12:00")
    monkeypatch.setattr("holdfast.backup.create.name_time", lambda _: 0)
    node.now = at("2026-05-16 03:00")
    done = node.backups().run_due()
    assert done is not None
    assert done.name in node.names()


def test_names_have_a_last_time() -> None:
    from holdfast.backup.manifest import NAME_US_MAX, check_name, name_time, new_name

    for time in (0, 1, at(NOW), NAME_US_MAX):
        assert name_time(check_name(new_name(time))) == time
    for impossible in ("00000000T000000000000Z-00000000", "20260230T000000000000Z-00000000"):
        assert name_time(check_name(impossible)) == 0


def test_a_run_that_was_cut_off_long_ago_is_not_the_one_that_is_due(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its backup is of its own day; the one that is due today needs one of today."""
    runs_at(node, "2026-05-13 12:00")
    mend = failing(monkeypatch, "verify_backup", RepositoryLocked("held"))
    for day in range(14, 19):
        assert runs_at(node, f"2026-05-{day} 03:00") == [None]
        node.blocks += grown(node.root, 2, after=node.blocks[-1])
    mend()
    assert runs_at(node, "2026-05-19 03:00") == ["2026-05-19 03:00"]
    tip = node.open().newest().tip
    assert tip is not None
    assert tip.height == node.blocks[-1].height
    assert node.told("backup_run_done")[-1].fields["name"] == node.open().newest().name
    assert runs_at(node, "2026-05-19 12:00") == [None]


def test_a_run_takes_no_backup_that_was_there_before_it(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that a clock which was ahead has named."""
    create_backup(node.root, node.open(), workers=0, clock=lambda: at("2100-01-01 00:00"))
    (old,) = node.names()
    runs_at(node, "2026-05-13 12:00")
    mend = failing(monkeypatch, "create_backup", OutOfSpace("full"))
    assert runs_at(node, "2026-05-14 03:00") == [None]
    assert node.state.before == old
    mend()
    assert runs_at(node, "2026-05-14 03:01") == ["2026-05-14 03:00"]
    assert node.told("backup_run_done")[0].fields["name"] != old


def test_a_clock_that_was_far_ahead_costs_one_run(node: Node) -> None:
    node.settings = node.settings.model_copy(
        update={"backup_schedule": "monthly 1 03:00", "backup_test_restore": False}
    )
    assert runs_at(node, "2026-01-15 00:00", "2027-01-15 00:00", "2026-01-16 00:00") == [None, "2027-01-01 03:00", None]
    assert runs_at(node, "2026-02-01 03:01", "2026-03-01 03:01", "2026-12-01 03:01", "2027-01-01 03:01") == [
        None,
        "2026-03-01 03:00",
        "2026-12-01 03:00",
        "2027-01-01 03:00",
    ]


def test_a_repository_that_is_gone_is_not_made_anew(node: Node) -> None:
    """Its disk may not be mounted: backups beside the mount point would be made and never found."""
    runs_at(node, "2026-05-13 12:00", "2026-05-14 03:00")
    away = node.place.with_name("away")
    node.place.rename(away)
    assert runs_at(node, "2026-05-15 03:00") == [None]
    (event,) = node.told("backup_run_failed")
    assert (event.code, event.fields["step"]) == ("backup_not_found", "open")
    assert event.remedy is not None
    assert "mount" in event.remedy
    assert not node.place.exists()
    away.rename(node.place)
    assert runs_at(node, "2026-05-15 03:01") == ["2026-05-15 03:00"]
    node.place.rename(away)
    create_backup(node.root, repository(node.place), workers=0, clock=node.clock)
    assert runs_at(node, "2026-05-16 03:00") == ["2026-05-16 03:00"]
    assert node.state.repository == node.open().id


def test_a_lock_that_cannot_be_taken_is_told_seldom(node: Node) -> None:
    class Full(RealFileSystem):
        def lock(self, path: Path, holder: str) -> Any:
            if path.name == "schedule.lock":
                raise OutOfSpace("full", path=path)
            return super().lock(path, holder)

    backups = node.backups(fs=Full())
    pauses = []
    for _ in range(240):
        told = len(node.told("backup_run_failed"))
        assert backups.run_due() is None
        pauses += [event.fields["retry_seconds"] for event in node.told("backup_run_failed")[told:]]
        node.now += 30_000_000
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600]


STRANGE = [
    {"handled_us": 2**63 - 1},
    {"started_us": 2**63 - 1},
    {"due_us": 253_000_000_000_000_001},
    {"retry_us": 2**62, "failures": 5},
    {"failures": 2**62},
    {"started_us": 5, "backup": "../../x"},
    {"started_us": 5, "before": "newest"},
    {"repository": "x"},
    {"store": "0" * 32, "handled_us": 1778673600000000, "started_us": 5},
]


@pytest.mark.parametrize("values", STRANGE, ids=str)
def test_values_that_are_impossible_or_of_another_store_count_as_nothing(values: dict[str, Any], node: Node) -> None:
    runs_at(node, "2026-05-13 12:00")
    state = msgspec.structs.replace(node.state, **values)
    (node.root / "schedule.json").write_bytes(state.encoded())
    assert runs_at(node, "2026-05-13 12:00", "2026-05-14 03:00") == ["2026-05-13 03:00", "2026-05-14 03:00"]
    assert node.told("backup_run_failed") == []


def test_a_backup_of_another_store_is_not_that_of_a_run(node: Node) -> None:
    grown(node.root.with_name("other"), 7, name="other")
    other = create_backup(node.root.with_name("other"), node.open(), workers=0).manifest.name
    (node.root / "schedule.json").write_bytes(ScheduleState(started_us=5, backup=other).encoded())
    assert runs_at(node, "2026-05-13 12:00") == ["2026-05-13 03:00"]
    assert node.told("backup_run_done")[0].fields["name"] != other


@pytest.mark.parametrize("now", [-5, 0, 253_402_300_799_000_000, 2**62])
def test_a_clock_beyond_all_times_ends_nothing(now: int, node: Node) -> None:
    node.now = now
    backups = node.backups()
    for _ in range(3):
        backups.run_due()
        backups.seconds_left()
    assert runs_at(node, "2026-05-13 12:00", "2026-05-14 03:00", "2026-05-15 03:00")[2] == "2026-05-15 03:00"


def left_behind(node: Node) -> Path:
    """What a test restore leaves that is killed."""
    beside = node.root.with_name("data.test-restore")
    (beside / "store" / "journal").mkdir(parents=True)
    (beside / "test-restore.json").write_text("{}")
    (beside / "store" / "journal" / "left").write_text("")
    return beside


def test_what_a_killed_test_left_takes_no_room_from_later_ones(node: Node) -> None:
    class Tight(RealFileSystem):
        """Room for one test restore, if nothing of an earlier one lies there."""

        def space(self, path: Path) -> Any:
            return Space(0 if (beside / "store" / "journal" / "left").exists() else 1 << 40, 1 << 40)

    runs_at(node, "2026-05-13 12:00")
    beside = left_behind(node)
    node.now = at("2026-05-14 03:00")
    done = node.backups(fs=Tight()).run_due()
    assert done is not None
    assert done.tested == "passed"
    assert not beside.exists()


def test_what_a_killed_test_left_goes_though_tests_are_off(node: Node) -> None:
    node.settings = node.settings.model_copy(update={"backup_test_restore": False})
    runs_at(node, "2026-05-13 12:00")
    beside = left_behind(node)
    runs_at(node, "2026-05-14 03:00")
    assert not beside.exists()
    beside.mkdir()
    (beside / "precious").write_text("mine")
    assert runs_at(node, "2026-05-15 03:00") == ["2026-05-15 03:00"]
    assert (beside / "precious").read_text() == "mine"
