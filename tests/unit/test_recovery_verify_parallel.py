"""``verify`` with several processes finds the same as alone, and one that goes on leaves out only what was sound."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import holdfast
from holdfast.blocks.records import canonical_key
from holdfast.engine.api import Batch
from holdfast.engine.open import open_engine
from holdfast.errors import InvalidInputError
from holdfast.recovery import Level, VerifyReport, verify_store
from holdfast.recovery.parallel import Pool, Task, processors
from holdfast.recovery.verify import JOBS_MAX
from tests.unit.state_support import commit, die, open_state_store


def grow(path: Path, name: str, blocks: int) -> None:
    """Each time that it is opened it begins a segment."""
    for session in range(blocks // 20):
        with open_state_store(f"sqlite:{path}") as store:
            for number in range(20):
                commit(store, (name, session, number), {b"key %d" % (number % 7): os.urandom(3000)})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of several segments."""
    path = tmp_path_factory.mktemp("parallel") / "store"
    grow(path, "a", 120)
    assert len(segments(path)) > 4
    return path


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "store"))


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a small journal is shared."""
    monkeypatch.setattr("holdfast.recovery.verify.JOURNAL_BYTES_MIN", 0)


def segments(path: Path) -> list[Path]:
    return sorted((path / "journal").glob("*.seg"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def told(report: VerifyReport) -> dict[str, object]:
    """The report without its times."""
    return _timeless(report.as_dict())


def _timeless(values: dict[str, object]) -> dict[str, object]:
    del values["seconds"]
    checks = values["checks"]
    assert isinstance(checks, list)
    for check in checks:
        assert check.pop("seconds") >= 0
    return values


def _sound(path: Path) -> None:
    pass


def _segments_damaged(path: Path) -> None:
    for number, at in ((2, 5000), (4, 40_000)):
        flip(segments(path)[number - 1], at)


def _table_damaged(path: Path) -> None:
    place = path / "views" / (path / "views" / "CURRENT").read_text().strip() / "data"
    engine = open_engine("sqlite", place, create=False)
    engine.apply(Batch({canonical_key(50): None, canonical_key(70): b"x" * 40}), sync=True)
    engine.close()


def _unclean(path: Path) -> None:
    store = open_state_store(f"sqlite:{path}")
    commit(store, "late", {b"late": b"1"})
    die(store)


# -- several processes ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("level", ["links", "full"])
@pytest.mark.parametrize("damage", [_sound, _segments_damaged, _table_damaged, _unclean])
def test_the_report_is_the_same_for_any_number_of_jobs(
    path: Path, level: Level, damage: Callable[[Path], None]
) -> None:
    damage(path)
    alone = told(verify_store(path, level=level))
    assert alone["ok"] is (damage in (_sound, _unclean))
    for jobs in (2, 3):
        assert told(verify_store(path, level=level, jobs=jobs)) == alone


_FORKING = """
import json, sys
from holdfast.recovery import parallel, verify
print(parallel._start_method())
verify.JOURNAL_BYTES_MIN = 0
parallel.Task.steal = lambda task: None
print(json.dumps(verify.verify_store(sys.argv[1], level="views", jobs=3).as_dict()))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process is forked")
@pytest.mark.parametrize("damage", [_sound, _segments_damaged])
def test_a_process_of_one_thread_forks_and_finds_the_same(path: Path, damage: Callable[[Path], None]) -> None:
    damage(path)
    environment = os.environ | {"PYTHONPATH": str(Path(holdfast.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", _FORKING, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    method, answer = done.stdout.splitlines()
    assert (done.returncode, method, done.stderr) == (0, "fork", "")
    assert _timeless(json.loads(answer)) == told(verify_store(path, level="views"))


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_processes_do_a_part_of_the_work(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this the other tests could be comparing the caller with itself."""
    monkeypatch.setattr(Task, "steal", lambda task: None)
    monkeypatch.setattr("holdfast.recovery.work.segment_task", None)
    monkeypatch.setattr("holdfast.recovery.work.links_task", None)
    monkeypatch.setattr("holdfast.recovery.work.check_canonical", None)
    assert verify_store(path, jobs=2).ok


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_what_a_dead_process_had_to_do_is_done_by_the_caller(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _segments_damaged(path)
    alone = told(verify_store(path))

    class Deadly(Pool):
        def segment(self, number: int):  # type: ignore[no-untyped-def]
            return self._executor.submit(os._exit, 1)

    monkeypatch.setattr("holdfast.recovery.verify.Pool", Deadly)
    monkeypatch.setattr(Task, "steal", lambda task: None)
    assert told(verify_store(path, jobs=2)) == alone


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_a_stop_ends_it_with_what_was_found(path: Path) -> None:
    asked: list[str] = []

    def stop() -> bool:
        asked.append("")
        return len(asked) > 8

    report = verify_store(path, level="views", jobs=2, stop=stop)
    assert (report.ok, report.stopped) == (False, True)
    names = [check.name for check in report.checks]
    assert names[:5] == ["identity", "watermark", "journal", "segments", "views"]
    assert not all(check.complete for check in report.checks)
    assert verify_store(path).ok  # nothing holds it any more


@pytest.mark.parametrize("jobs", [0, -1, JOBS_MAX + 1, True, 2.0])
def test_a_wrong_number_of_jobs_is_refused(path: Path, jobs: int) -> None:
    with pytest.raises(InvalidInputError):
        verify_store(path, jobs=jobs)
    assert processors() >= 1


def test_progress_says_how_many_blocks_there_are_and_comes_in_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that rate and time left can be shown: a thousand large blocks may take minutes."""
    seen: list[tuple[str, int, int]] = []
    monkeypatch.setattr("holdfast.recovery.running._TELL_SECONDS", 0.0)
    assert verify_store(path, level="full", progress=lambda *told: seen.append(told)).ok
    for name in ("blocks", "roots"):
        steps = [(done, total) for check, done, total in seen if check == name]
        assert steps[1:] == [(done, 120) for done in range(1, 121)]


# -- going on -------------------------------------------------------------------------------------------------------


def checked(report: VerifyReport) -> dict[str, int]:
    return {check.name: check.checked for check in report.checks}


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_store_that_grew_is_read_from_there(
    path: Path, tmp_path: Path, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.recovery.verify.JOURNAL_BYTES_MIN", 0)
    seen = tmp_path / "seen.json"
    first = verify_store(path, level="full", resume=seen, jobs=jobs)
    assert first.ok
    assert checked(first) == checked(verify_store(path, level="full"))
    again = verify_store(path, level="full", resume=seen, jobs=jobs)
    assert again.ok
    assert (checked(again)["segments"], checked(again)["blocks"]) == (0, 0)
    for name in ("canonical", "state", "rows", "roots"):  # of the present, or in need of what came before
        assert checked(again)[name] == checked(first)[name]
    known = len(segments(path))
    grow(path, "b", 40)
    later = verify_store(path, level="links", resume=seen, jobs=jobs)
    assert later.ok
    assert checked(later)["blocks"] == 40
    assert 0 < checked(later)["segments"] < checked(first)["segments"]
    assert f"{known} segments were found sound" in later.notes[0]


def test_damage_behind_what_was_seen_is_found_and_not_written_down(path: Path, tmp_path: Path) -> None:
    seen = tmp_path / "seen.json"
    flip(segments(path)[3], 30_000)
    for _ in range(2):
        report = verify_store(path, resume=seen)
        assert not report.ok
        assert {problem.check for problem in report.problems} >= {"segments"}
        assert "4" not in json.loads(seen.read_text())["segments"]
    shutil.copy(seen, tmp_path / "other.json")
    flip(segments(path)[3], 30_000)
    assert verify_store(path, resume=seen).ok


def test_a_copy_of_the_store_is_read_anew(path: Path, tmp_path: Path) -> None:
    seen = tmp_path / "seen.json"
    assert verify_store(path, resume=seen).ok
    shutil.copytree(path, tmp_path / "copy")
    flip(segments(tmp_path / "copy")[3], 30_000)
    assert not verify_store(tmp_path / "copy", resume=seen).ok
    path.rename(tmp_path / "moved")
    report = verify_store(tmp_path / "moved", resume=seen)
    assert report.ok
    assert checked(report)["segments"] > 0, "the copy has taken the file over"
    assert checked(verify_store(tmp_path / "moved", resume=seen))["segments"] == 0


def test_a_run_that_was_stopped_goes_on(path: Path, tmp_path: Path) -> None:
    seen, done = tmp_path / "seen.json", []

    def progress(name: str, at: int, total: int) -> None:
        if name == "segments":
            done.append(at)

    report = verify_store(path, resume=seen, progress=progress, stop=lambda: bool(done) and done[-1] >= 3)
    assert report.stopped
    kept = len(json.loads(seen.read_text())["segments"])
    assert 2 <= kept < len(segments(path))
    assert f"{kept} segments" in verify_store(path, resume=seen).notes[0]


def test_another_history_is_read_anew(path: Path, tmp_path: Path) -> None:
    seen = tmp_path / "seen.json"
    assert verify_store(path, resume=seen).ok
    content = json.loads(seen.read_text())
    content["segments"] = dict.fromkeys(content["segments"], "00" * 32)
    content["blocks"]["digest"] = "00" * 32
    seen.write_text(json.dumps(content))
    report = verify_store(path, resume=seen)
    assert report.ok
    assert checked(report) == checked(verify_store(path))
    for wrong in ({"tip_hash": "not hex"}, {"seq": 2**70}, {"seq": -1}):
        content = json.loads(seen.read_text())
        content["blocks"] |= wrong
        seen.write_text(json.dumps(content))
        assert verify_store(path, resume=seen).ok


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "[" * 5000, '{"format":2,"store_id":"","segments":{}}', "\x00", '{"format":1,"store_id":"00"'],
)
def test_a_file_that_is_none_is_refused(path: Path, tmp_path: Path, text: str) -> None:
    seen = tmp_path / "seen.json"
    seen.write_text(text)
    with pytest.raises(InvalidInputError, match="file of progress"):
        verify_store(path, resume=seen)
    assert seen.read_text() == text


def test_a_file_of_another_store_or_inside_the_store_is_refused(path: Path, tmp_path: Path) -> None:
    seen = tmp_path / "seen.json"
    grow(tmp_path / "other", "o", 20)
    assert verify_store(tmp_path / "other", resume=seen).ok
    with pytest.raises(InvalidInputError, match="another store"):
        verify_store(path, resume=seen)
    with pytest.raises(InvalidInputError, match="lies in the store"):
        verify_store(path, resume=path / "seen.json")
    assert not (path / "seen.json").exists()
    for nowhere in (tmp_path, tmp_path / "none" / "seen.json"):
        with pytest.raises(InvalidInputError, match="file of progress"):
            verify_store(path, resume=nowhere)
