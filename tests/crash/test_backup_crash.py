"""Kills, power cuts and errors at every operation of a backup, a pruning and a restore, on a simulated device."""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast import Settings
from holdfast._fs import File, FileLock, MemoryFileSystem, RealFileSystem, Space
from holdfast.backup import (
    BackupRepository,
    DirectoryTarget,
    KeepRules,
    create_backup,
    open_repository,
    prune_backups,
    restore_backup,
    verify_backup,
)
from holdfast.backup import restore as restoring
from holdfast.backup.manifest import Manifest
from holdfast.errors import HoldfastError, OutOfSpace
from holdfast.recovery.resting import read_marks
from holdfast.store import opening
from holdfast.store.factory import open_store
from holdfast.store.opening import directory_state, read_identity
from holdfast.testing.crashfs import CrashableFileSystem, Fault, Keep, SimulatedCrash
from holdfast.testing.machine import Machine, new_machine
from tests.crash.support import report
from tests.unit.backup_support import SMALL, grown, small_segments
from tests.unit.store_support import chain_of, open_quick

__all__ = ["small_segments"]

KEEPS: tuple[Keep, ...] = ("all", "none", "random", "random")
PLACE = Path("/repository")
SETTINGS = Settings(flush_interval_seconds=3600.0)

pytestmark = pytest.mark.usefixtures("small_segments")


class Source:
    """A store on the real disk as it was twice: files below its directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        blocks = chain_of(None, 30)
        with open_quick(root) as store:
            for block in blocks:
                store.add(block)
            self.first = self._files()  # while it is open: its last segment is not sealed
        grown(root, 8, after=blocks[-1])
        self.second = self._files()

    def _files(self) -> dict[Path, bytes]:
        wanted = [self.root / "holdfast.toml", self.root / "watermark", *(self.root / "journal").glob("*.seg")]
        return {path: path.read_bytes() for path in wanted}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    import dataclasses

    options = opening.journal_options
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            opening,
            "journal_options",
            lambda plan: dataclasses.replace(
                options(plan), segment_bytes_first=SMALL, segment_bytes_max=SMALL, background=False
            ),
        )
        yield Source(tmp_path_factory.mktemp("source") / "s")


Make = Callable[[CrashableFileSystem], BackupRepository]


def opened(fs: CrashableFileSystem) -> BackupRepository:
    return open_repository(PLACE, create=True, fs=fs)


def backup(fs: CrashableFileSystem, source: Source, make: Make = opened) -> Manifest:
    return create_backup(source.root, make(fs), workers=0, fs=fs).manifest


def with_one(source: Source) -> CrashableFileSystem:
    """A device with a store that grew, and a verified backup of it as it was before."""
    fs = CrashableFileSystem.from_files(source.first, {Path("/"), source.root, source.root / "journal"})
    name = backup(fs, source).name
    assert verify_backup(opened(fs), name, workers=0).ok
    repository = {path: data for path, data in fs.files().items() if PLACE in path.parents}
    return CrashableFileSystem.from_files(source.second | repository, fs.directories())


def check_repository(fs: CrashableFileSystem, *, at_least: int) -> int:
    """How many backups are listed: each is whole, and what is there is enough to go on with."""
    place = opened(fs)
    names = place.names()
    assert len(names) >= at_least
    for name in names:
        found = verify_backup(place, name, workers=0, mark=False)
        assert found.ok, found.problems
    return len(names)


def explore(
    begin: Callable[[], CrashableFileSystem],
    work: Callable[[CrashableFileSystem], object],
    check: Callable[[CrashableFileSystem], str],
    *,
    step: int = 1,
    keeps: tuple[Keep, ...] = KEEPS,
) -> Counter[str]:
    """The work is cut at every ``step``-th operation; what every image of it was."""
    whole = begin()
    whole.operations = 0
    work(whole)
    counts: Counter[str] = Counter(operations=whole.operations)
    for at in range(1, whole.operations + 1, step):
        fs = begin()
        fs.rng.seed(at)
        fs.operations = 0
        fs.counts.clear()
        fs.faults = (Fault(at, torn=True),)
        with pytest.raises(SimulatedCrash):
            work(fs)
        counts["at " + fs.log[-1][0]] += 1
        for number, keep in enumerate(keeps):
            counts["images"] += 1
            counts[check(fs.crash(random.Random(at * 10 + number), keep=keep))] += 1
    return counts


# -- create ---------------------------------------------------------------------------------------------------------


def check_create(source: Source) -> Callable[[CrashableFileSystem], str]:
    def check(fs: CrashableFileSystem) -> str:
        found = check_repository(fs, at_least=1)
        assert backup(fs, source).last_seq
        assert check_repository(fs, at_least=1) == found + 1
        return f"{found} backups"

    return check


@pytest.mark.crash
def test_a_power_cut_at_every_operation_of_a_backup(source: Source) -> None:
    counts = explore(lambda: with_one(source), lambda fs: backup(fs, source), check_create(source))
    least = {"at sync": 2, "at rename": 2, "at sync_directory": 2, "1 backups": 20}
    report("backup", counts, at_least=least, rows={2: "images"})
    assert counts["2 backups"] + counts["1 backups"] == counts["images"]


@pytest.mark.slow
def test_a_power_cut_at_some_operations_of_a_backup(source: Source) -> None:
    explore(
        lambda: with_one(source), lambda fs: backup(fs, source), check_create(source), step=5, keeps=("none", "random")
    )


def test_a_backup_that_ended_survives(source: Source) -> None:
    fs = with_one(source)
    backup(fs, source)
    for number, keep in enumerate(KEEPS):
        assert check_repository(fs.crash(random.Random(number), keep=keep), at_least=2) == 2


class _ManifestFirst(DirectoryTarget):
    """A target that writes chunks behind the manifest."""

    def __init__(self, path: Path, *, fs: CrashableFileSystem) -> None:
        super().__init__(path, fs=fs)
        self.late: list[tuple[str, bytes]] = []

    def write(self, name: str, data: bytes) -> None:
        if name.startswith("chunks/"):
            self.late.append((name, data))
            return
        super().write(name, data)
        for late in self.late:
            super().write(*late)


class _NoSync(DirectoryTarget):
    """A target that does not sync what it writes."""

    def write(self, name: str, data: bytes) -> None:
        path = self.path / name
        self._make(path.parent)
        file = self._fs.open(path.with_name(path.name + ".tmp"), create=True)
        file.pwrite(data, 0)
        self._fs.rename(path.with_name(path.name + ".tmp"), path)
        self._dirty.add(path.parent)


class _NoDirectorySync(DirectoryTarget):
    """A target that does not sync its directories."""

    def flush(self) -> None:
        """Nothing."""


@pytest.mark.slow
@pytest.mark.parametrize("bug", [_ManifestFirst, _NoSync, _NoDirectorySync])
def test_a_backup_written_in_another_order_or_not_synced_is_found_out(
    bug: type[DirectoryTarget], source: Source
) -> None:
    """Positive controls."""

    def wrong(fs: CrashableFileSystem) -> BackupRepository:
        return open_repository(bug(PLACE, fs=fs), create=True)

    def check(fs: CrashableFileSystem) -> str:
        try:
            check_repository(fs, at_least=1)
        except (AssertionError, HoldfastError):
            return "broken"
        return "fine"

    counts = explore(lambda: with_one(source), lambda fs: backup(fs, source, wrong), check, keeps=("none", "random"))
    fs = with_one(source)
    backup(fs, source, wrong)
    for seed in range(8):
        image = fs.crash(random.Random(seed), keep="random")
        try:
            counts["broken"] += check_repository(image, at_least=1) < 2
        except (AssertionError, HoldfastError):
            counts["broken"] += 1
    assert counts["broken"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("persistent", [False, True])
def test_an_error_at_any_operation_is_typed_and_the_next_run_ends_well(
    code: int, persistent: bool, source: Source
) -> None:
    whole = with_one(source)
    whole.operations = 0
    backup(whole, source)
    raised: Counter[str] = Counter()
    for at in range(1, whole.operations + 1, 2):
        fs = with_one(source)
        fs.operations = 0
        fs.faults = (Fault(at, error=code, persistent=persistent, torn=True),)
        try:
            backup(fs, source)
        except HoldfastError as error:
            raised[type(error).__name__] += 1
        fs.faults = ()
        fs._locks.clear()
        check_repository(fs, at_least=1)
        backup(fs, source)
    assert sum(raised.values()) > whole.operations // 4
    assert code != errno.ENOSPC or raised[OutOfSpace.__name__]


# -- prune ----------------------------------------------------------------------------------------------------------


def with_three(source: Source) -> CrashableFileSystem:
    fs = with_one(source)
    for _ in range(2):
        assert verify_backup(opened(fs), backup(fs, source).name, workers=0).ok
    opened(fs).put_chunk(b"of no backup")
    return CrashableFileSystem.from_files(fs.files(), fs.directories())


def prune(fs: CrashableFileSystem) -> object:
    return prune_backups(opened(fs), KeepRules(last=1))


def check_prune(newest: str) -> Callable[[CrashableFileSystem], str]:
    def check(fs: CrashableFileSystem) -> str:
        found = check_repository(fs, at_least=1)
        assert newest in opened(fs).names()
        prune(fs)
        assert check_repository(fs, at_least=1) == 1
        used = {ref.id for file in opened(fs).manifest(newest).files() for ref in file.chunks}
        assert {name.rpartition("/")[2] for name, _ in opened(fs).target.list("chunks/")} == used
        return f"{found} backups"

    return check


@pytest.mark.crash
def test_a_power_cut_at_every_operation_of_a_pruning(source: Source) -> None:
    start = with_three(source)
    files, directories, newest = start.files(), start.directories(), opened(start).names()[-1]
    counts = explore(lambda: CrashableFileSystem.from_files(files, directories), prune, check_prune(newest))
    report("prune", counts, at_least={"at remove": 5, "3 backups": 4, "1 backups": 4}, rows={2: "images"})


@pytest.mark.slow
def test_chunks_that_go_before_their_manifest_are_found_out(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """A positive control."""
    start = with_three(source)
    files, directories, newest = start.files(), start.directories(), opened(start).names()[-1]
    drop = BackupRepository.drop_manifest

    def late(self: BackupRepository, name: str) -> None:
        form = self.manifest(name)
        kept = {ref.id for file in self.manifest(newest).files() for ref in file.chunks}
        for file in form.files():
            for ref in file.chunks:
                if ref.id not in kept:
                    self.target.delete(f"chunks/{ref.id[:2]}/{ref.id}")
        self.target.flush()
        drop(self, name)

    monkeypatch.setattr(BackupRepository, "drop_manifest", late)
    with pytest.raises((AssertionError, HoldfastError)):
        explore(lambda: CrashableFileSystem.from_files(files, directories), prune, check_prune(newest))


# -- restore --------------------------------------------------------------------------------------------------------


class Moving:
    """A machine's files on which one directory can be renamed: what lies in it moves with one name of its own."""

    persistent = True

    def __init__(self, machine: Machine, source: Path, target: Path) -> None:
        self.machine = machine
        self.source = source
        self.target = target
        self._here, self._there = source.parent.parent / "name", target.parent / "moved name"

    def put(self) -> None:
        """The name is there, durably."""
        fs = self.machine.fs
        fs.open(self._here, create=True)
        fs.sync_directory(self._here.parent)

    @property
    def moved(self) -> bool:
        return self._there in self.machine.fs._names

    def _at(self, path: Path) -> Path:
        inside = self.target in (path, *path.parents)
        if inside and self.moved:
            return self.source / path.relative_to(self.target)
        if self.moved and self.source in (path, *path.parents):
            return Path("/nowhere") / path.relative_to(self.source)
        return path

    def open(self, path: Path, *, create: bool = False, read_only: bool = False) -> File:
        return self.machine.fs.open(self._at(path), create=create, read_only=read_only)

    def exists(self, path: Path) -> bool:
        return self.machine.fs.exists(self._at(path))

    def names(self, directory: Path) -> list[str]:
        return self.machine.fs.names(self._at(directory))

    def make_directory(self, path: Path) -> None:
        self.machine.fs.make_directory(self._at(path))

    def remove(self, path: Path) -> None:
        self.machine.fs.remove(self._at(path))

    def remove_tree(self, path: Path) -> None:
        place = self._at(path)
        if self.moved and place == self.source.parent:
            for name in self.machine.fs.names(place):
                self.machine.fs.remove(place / name)
            return
        self.machine.fs.remove_tree(place)
        for engine in [each for each in self.machine.disks if place in (each, *each.parents)]:
            del self.machine.disks[engine]

    def rename(self, source: Path, target: Path) -> None:
        if source == self.source:
            self.machine.fs.rename(self._here, self._there)
        else:
            self.machine.fs.rename(self._at(source), self._at(target))

    def sync_directory(self, path: Path) -> None:
        self.machine.fs.sync_directory(self._at(path))

    def read_bytes(self, path: Path, *, limit: int) -> bytes:
        return self.machine.fs.read_bytes(self._at(path), limit=limit)

    def write_atomic(self, path: Path, data: bytes) -> None:
        self.machine.fs.write_atomic(self._at(path), data)

    def lock(self, path: Path, owner: str) -> FileLock:
        return self.machine.fs.lock(self._at(path), owner)

    def space(self, path: Path) -> Space:
        return self.machine.fs.space(path)


class Rig:
    """A repository that nothing happens to, and a machine on which its backup is restored."""

    def __init__(self, source: Source, root: Path) -> None:
        self.place = open_repository(PLACE, create=True, fs=MemoryFileSystem())
        self.form = create_backup(source.root, self.place, workers=0, fs=RealFileSystem()).manifest
        self.target = root / "t"
        self.staged = root / "t.partial" / "store"
        for path in (self.target, self.staged):  # what the fingerprint looks at
            (path / "journal").mkdir(parents=True)
            (path / "LOCK").touch()
        self.root = root

    def machine(self, *, seed: int = 0, faults: tuple[Fault, ...] = ()) -> Machine:
        machine = new_machine(self.root / "unused", seed=seed)
        machine.fs.make_directory(self.root)
        self.files(machine).put()
        machine.fs.operations = 0
        machine.fs.faults = faults
        return machine

    def files(self, machine: Machine) -> Moving:
        return Moving(machine, self.staged, self.target)

    def restore(self, machine: Machine, *, height: int | None = None) -> None:
        with machine.running():
            url = f"sqlite:{self.target}"
            restore_backup(
                self.place, self.form.name, url, to_height=height, settings=SETTINGS, workers=0, fs=self.files(machine)
            )

    def check(self, machine: Machine, *, height: int | None = None) -> str:
        """The target is not there or whole; if it is not there, the next run ends well."""
        fs = self.files(machine)
        how = "whole" if fs.names(self.target) else "not there"
        if how == "not there":
            assert directory_state(fs, self.target) == "absent" or not fs.names(self.target)
            self.restore(machine, height=height)
        assert "holdfast.toml" in fs.names(self.target)
        identity = read_identity(fs, self.target)
        mark, _ = read_marks(fs, self.target, identity.salt)
        assert mark.clean
        assert height is not None or mark.seq > self.form.last_seq, "it was published before it was fenced"
        machine.disks = {self._moved(path): disk for path, disk in machine.disks.items()}
        with machine.running():
            store = machine.adopt(open_store(f"sqlite:{self.target}", create=False, settings=SETTINGS, fs=fs))
            tip = store.tip
            assert tip is not None
            assert self.form.tip is not None
            assert tip.height == (self.form.tip.height if height is None else height)
            assert len(list(store.blocks.canonical())) == tip.height + 1
            assert not store.recovery.views_rebuilt
            store.close()
        return how

    def _moved(self, path: Path) -> Path:
        inside = self.staged in path.parents
        return self.target / path.relative_to(self.staged) if inside else path


@pytest.fixture
def rig(source: Source, tmp_path: Path) -> Rig:
    return Rig(source, tmp_path)


def explore_restore(
    rig: Rig, *, step: int = 1, keeps: tuple[Keep, ...] = KEEPS, height: int | None = None
) -> Counter[str]:
    whole = rig.machine()
    rig.restore(whole, height=height)
    counts: Counter[str] = Counter(operations=whole.fs.operations)
    for at in range(1, whole.fs.operations + 1, step):
        machine = rig.machine(seed=at, faults=(Fault(at, torn=True),))
        with pytest.raises(SimulatedCrash):
            rig.restore(machine, height=height)
        counts["at " + machine.fs.log[-1][0]] += 1
        for number, keep in enumerate(keeps):
            counts["images"] += 1
            counts[rig.check(machine.crash(random.Random(at * 10 + number), keep), height=height)] += 1
    return counts


def test_a_restore_that_ended_survives(rig: Rig) -> None:
    machine = rig.machine()
    rig.restore(machine)
    for number, keep in enumerate(KEEPS):
        assert rig.check(machine.crash(random.Random(number), keep)) == "whole"


@pytest.mark.crash
def test_a_power_cut_at_every_second_operation_of_a_restore(rig: Rig) -> None:
    counts = explore_restore(rig, step=2, keeps=("all", "none", "random"))
    least = {"at sync": 3, "at rename": 3, "not there": 30, "whole": 2}
    report("restore", counts, at_least=least, rows={2: "images"})


@pytest.mark.crash
def test_a_power_cut_at_some_operations_of_a_restore_to_a_height(rig: Rig) -> None:
    counts = explore_restore(rig, step=7, keeps=("none", "random"), height=17)
    report("restore to a height", counts, at_least={"not there": 10}, rows={2: "images"})


@pytest.mark.slow
def test_a_power_cut_at_some_operations_of_a_restore(rig: Rig) -> None:
    explore_restore(rig, step=17, keeps=("none", "random"))


@pytest.mark.slow
def test_a_restore_that_is_published_before_it_was_opened_is_found_out(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A positive control."""
    fill, publish = restoring._Staging.fill, restoring._Staging.publish

    def early(self: restoring._Staging, *args: object) -> object:
        cut = fill(self, *args)  # type: ignore[arg-type]
        publish(self)
        self._store = self._root
        return cut

    monkeypatch.setattr(restoring._Staging, "fill", early)
    monkeypatch.setattr(restoring._Staging, "publish", lambda self: None)
    with pytest.raises((AssertionError, HoldfastError)):
        explore_restore(rig, step=2, keeps=("all", "none"))
