"""Kills and power cuts at every operation of a scheduled run: nothing is made twice, nothing is left beside."""

from __future__ import annotations

import errno
import json
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from holdfast import Settings
from holdfast._fs import FileSystem
from holdfast.backup import BackupRepository, Schedule, ScheduledBackups, open_repository, proof, verify_backup
from holdfast.backup.manifest import Manifest, new_name
from holdfast.backup.pieces import Progress
from holdfast.backup.schedule_state import load_schedule_state
from holdfast.store.opening import make_directories
from holdfast.testing.crashfs import CrashableFileSystem, Fault, Keep, SimulatedCrash
from tests.cli.cli_tools import child_environment
from tests.crash.support import report
from tests.unit.store_support import chain_of, open_quick

KEEPS: tuple[Keep, ...] = ("all", "none", "random")
PLACE = Path("/repository")
HOUR_US = 3600 * 1_000_000
START_US = 500_000 * HOUR_US + 1
SETTINGS = Settings(disk_reserve_bytes=0, max_backups=1, flush_interval_seconds=3600.0)

pytestmark = pytest.mark.crash


class Node:
    """A store on a simulated device and an hourly schedule; the clock moves on by a second for each look."""

    def __init__(self, fs: CrashableFileSystem, root: Path, now: int) -> None:
        self.fs = fs
        self.now = now
        self.backups = ScheduledBackups(
            root,
            Schedule("hourly"),
            lambda create: open_repository(PLACE, create=create, fs=fs),
            settings=SETTINGS,
            clock=self.clock,
            workers=0,
            fs=fs,
        )

    def clock(self) -> int:
        self.now += 1_000_000
        return self.now

    def names(self) -> list[str]:
        return open_repository(PLACE, fs=self.fs).names()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Path, bytes]]:
    root = tmp_path_factory.mktemp("source") / "s"
    with open_quick(root) as store:
        for block in chain_of(None, 3):
            store.add(block)
    wanted = [root / "holdfast.toml", root / "watermark", *(root / "journal").glob("*.seg")]
    return root, {path: path.read_bytes() for path in wanted}


def begun(source: tuple[Path, dict[Path, bytes]]) -> CrashableFileSystem:
    """A device on which one run was made, and the next is due in an hour."""
    root, files = source
    fs = CrashableFileSystem.from_files(files, {Path("/"), root.parent, root, root / "journal"})
    node = Node(fs, root, START_US)
    assert node.backups.run_due() is None
    node.now += HOUR_US
    assert node.backups.run_due() is not None
    return CrashableFileSystem.from_files(fs.files(), fs.directories())


def explore(source: tuple[Path, dict[Path, bytes]]) -> Counter[str]:
    root = source[0]
    base = begun(source)
    files, directories = base.files(), base.directories()
    due = START_US + 2 * HOUR_US

    def fresh() -> CrashableFileSystem:
        return CrashableFileSystem.from_files(files, directories)

    whole = fresh()
    whole.operations = 0
    assert Node(whole, root, due).backups.run_due() is not None
    counts: Counter[str] = Counter(operations=whole.operations)
    for at in range(1, whole.operations + 1):
        fs = fresh()
        fs.rng.seed(at)
        fs.operations = 0
        fs.counts.clear()
        fs.faults = (Fault(at, torn=True),)
        with pytest.raises(SimulatedCrash):
            Node(fs, root, due).backups.run_due()
        for number, keep in enumerate(KEEPS):
            counts["images"] += 1
            counts[check(booted(fs, random.Random(at * 10 + number), keep), root, due)] += 1
    return counts


def booted(fs: CrashableFileSystem, rng: random.Random, keep: Keep) -> CrashableFileSystem:
    """The device after the crash. What lay in a directory that was removed (durably, at once) is gone with it."""
    after = fs.crash(rng, keep=keep)
    there = fs.directories()
    return CrashableFileSystem.from_files({p: data for p, data in after.files().items() if p.parent in there}, there)


def check(fs: CrashableFileSystem, root: Path, due: int) -> str:
    """After the crash the run is done once: with the backup that was made, if one was."""
    node = Node(fs, root, due + 60_000_000)
    state = load_schedule_state(root, fs=fs)
    assert state is not None
    handled = state.handled_us == due // HOUR_US * HOUR_US
    made = [name for name in node.names() if name >= new_name(due)]
    done = node.backups.run_due()
    assert node.backups.failure is None
    place = open_repository(PLACE, fs=fs)
    after = place.names()
    assert len(after) == 1, "pruned to one"
    assert verify_backup(place, after[0], workers=0, mark=False).ok
    assert not fs.exists(root.with_name("s.test-restore")), "the test left something"
    assert node.backups.run_due() is None, "it is not run again"
    assert (done is None) == handled
    assert after[0] >= new_name(due)[:16], "the backup of the run before is none of this one"
    assert len(made) <= 1
    if done is None:
        assert made == after
        return "was done"
    if made:
        assert [done.name] == made == after, "the backup that was made is the one of the run"
        return "went on with its backup"
    assert [done.name] == after
    return "began anew"


def pretended(
    repository: BackupRepository,
    form: Manifest,
    target: Path,
    settings: Settings,
    workers: int | None,
    progress: Progress | None,
    fs: FileSystem,
) -> None:
    """In the place of the restore, which has crash tests of its own and needs a real directory: it leaves files."""
    del repository, form, settings, workers, progress
    make_directories(fs, target / "journal")
    fs.write_atomic(target / "journal" / "0000000001.seg", bytes(100))
    make_directories(fs, target.with_name("store.partial"))
    fs.write_atomic(target.with_name("store.partial") / "lock", b"")


def test_a_scheduled_run_is_cut_at_every_operation(
    source: tuple[Path, dict[Path, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "_restore", pretended)
    counts = explore(source)
    least = {"operations": 50, "images": 150, "began anew": 3, "went on with its backup": 3, "was done": 1}
    report("scheduled run", counts, at_least=least, rows={22: "images"})


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_an_error_at_any_operation_is_told_and_the_next_run_is_right(
    error: int, source: tuple[Path, dict[Path, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails, once or for ever, nothing but the event comes out of a run, and no failure counts as done."""
    monkeypatch.setattr(proof, "_restore", pretended)
    root = source[0]
    base = begun(source)
    due = START_US + 2 * HOUR_US
    counts: Counter[str] = Counter()
    for persistent in (False, True):
        for at in range(1, 61, 2):
            fs = CrashableFileSystem.from_files(base.files(), base.directories())
            fs.operations = 0
            fs.faults = (Fault(at, error, persistent=persistent),)
            node = Node(fs, root, due)
            done = node.backups.run_due()
            assert done is not None or node.backups.failure is not None
            counts["done all the same" if done else "failed"] += 1
            fs.faults = ()
            later = Node(fs, root, due + 120_000_000)
            again = later.backups.run_due()
            assert later.backups.failure is None
            assert done is None or again is None
            state = load_schedule_state(root, fs=fs)
            assert state is not None
            assert state.handled_us == due // HOUR_US * HOUR_US
            *earlier, name = later.names()
            unmarked = PLACE / f"backups/{name}.verified" not in fs.files()
            assert not earlier or unmarked, "the one before goes once the new one is known to be whole"
            assert name >= new_name(due)[:16]
            assert verify_backup(open_repository(PLACE, fs=fs), name, workers=0, mark=False).ok
    row = 11 if error == errno.ENOSPC else 12
    report("scheduled run with errors", counts, at_least={"failed": 30}, rows={row: "failed"})
    assert bool(counts["done all the same"]) == (error == errno.ENOSPC), "a full disk stops the test restore alone"


@pytest.mark.parametrize("point", ["backup.restore.piece:1", "backup.restore.before_publish:1"])
def test_a_process_that_is_killed_in_a_run_goes_on_with_it(point: str, tmp_path: Path) -> None:
    """With the real restore on the real disk: what the kill left is removed, and the backup is the one it made."""
    data = tmp_path / "data"
    with open_quick(data) as store:
        for block in chain_of(None, 3):
            store.add(block)
    (data / "config.toml").write_text('backup_schedule = "hourly"\ndisk_reserve_bytes = 0\n')
    (data / "schedule.json").write_text("")
    command = [sys.executable, "-m", "holdfast", "backup", "schedule", "-d", str(data), "--once", "--json"]
    for name in (point, "backup.schedule.done:1"):
        environment = child_environment() | {"HOLDFAST_FAILPOINT": name}
        killed = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=120)
        assert killed.returncode == -signal.SIGKILL, killed
        (made,) = open_repository(data / "backups").names()
    assert (tmp_path / "data.test-restore").exists() is False
    done = subprocess.run(command, env=child_environment(), capture_output=True, check=True, timeout=120)
    assert json.loads(done.stdout)["name"] == made
    assert open_repository(data / "backups").names() == [made]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
