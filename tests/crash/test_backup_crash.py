"""Kills, power cuts and errors at every operation of a backup, a pruning and a restore, on a simulated device."""

from __future__ import annotations

import contextlib
import errno
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.backup import (
    BackupRepository,
    DirectoryTarget,
    KeepRules,
    SegmentSource,
    copy_backup,
    create_backup,
    open_repository,
    proof,
    prune_backups,
    verify_backup,
)
from holdfast.backup import restore as restoring
from holdfast.backup.manifest import Manifest
from holdfast.backup.pieces import Syncing
from holdfast.errors import HoldfastError, OutOfSpace
from holdfast.testing.crashfs import CrashableFileSystem, Fault, Keep, SimulatedCrash
from tests.crash.backup_rig import PLACE, SECOND, Rig, Source, Unpublished, without_manifest
from tests.crash.support import report
from tests.unit.backup_support import in_small_segments, small_segments

__all__ = ["small_segments"]

KEEPS: tuple[Keep, ...] = ("all", "none", "random", "random")

pytestmark = pytest.mark.usefixtures("small_segments")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    with in_small_segments():
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


def test_a_backup_that_ended_after_a_killed_one_survives(source: Source) -> None:
    fs = CrashableFileSystem.from_files(source.first, {Path("/"), source.root, source.root / "journal"})
    with pytest.raises(Unpublished):
        backup(fs, source, lambda fs: without_manifest(opened(fs)))
    backup(fs, source)
    assert check_repository(fs.crash(random.Random(0), keep="none"), at_least=1) == 1


def test_a_copy_that_ended_after_a_killed_one_survives(source: Source) -> None:
    fs = with_one(source)
    name = opened(fs).names()[0]
    with pytest.raises(Unpublished):
        copy_backup(opened(fs), name, without_manifest(open_repository(SECOND, create=True, fs=fs)), workers=0)
    copy_backup(opened(fs), name, open_repository(SECOND, fs=fs), workers=0)
    image = fs.crash(random.Random(0), keep="none")
    assert verify_backup(open_repository(SECOND, fs=image), name, workers=0).ok


def test_a_full_disk_leaves_no_pieces_and_a_sound_backup_verifies(source: Source) -> None:
    fs = with_one(source)
    name, before = opened(fs).names()[0], set(fs.files())
    fs.counts.clear()
    fs.faults = (Fault(1, error=errno.ENOSPC, persistent=True, torn=True, only=frozenset({"pwrite"})),)
    assert verify_backup(opened(fs), name, workers=0).ok
    with pytest.raises(OutOfSpace) as caught:
        backup(fs, source)
    assert "holdfast backup prune" in caught.value.remedy
    assert set(fs.files()) - before == {PLACE / "unsynced"}, "an empty file, for the next run"


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


class _DiesBeforeTheEnd(DirectoryTarget):
    """A target of a process that is killed before it syncs the names of manifests and marks."""

    def flush(self) -> None:
        self._dirty.discard(self.path / "backups")
        super().flush()


def with_one_not_synced(source: Source) -> CrashableFileSystem:
    """A verified backup, and one more, whose makers died before they synced its name and that of its mark."""
    fs = with_one(source)
    place = open_repository(_DiesBeforeTheEnd(PLACE, fs=fs))
    assert verify_backup(place, create_backup(source.root, place, workers=0, fs=fs).manifest.name, workers=0).ok
    return fs


def test_a_segment_is_not_said_to_be_in_a_backup_whose_name_may_go(source: Source) -> None:
    fs = with_one_not_synced(source)
    form = next(opened(fs).readable())
    SegmentSource(opened(fs), bytes.fromhex(form.store_id), PLACE, workers=0).check(
        form.segments[0].number, bytes.fromhex(form.segments[0].digest)
    )
    assert form.name in opened(fs.crash(random.Random(0), keep="none")).names()


def test_a_pruning_relies_on_no_backup_whose_name_may_go(source: Source) -> None:

    def check(fs: CrashableFileSystem) -> str:
        place = opened(fs)
        marked = [name for name in place.names() if place.verified_us(name, place.manifest_and_digest(name)[1])]
        return f"{len(marked)} verified"

    counts = explore(lambda: with_one_not_synced(source), prune, check, keeps=("random",) * 16)
    assert counts["1 verified"]
    assert not counts["0 verified"], "the older one went, and the newer one came never"


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
    cut, publish = restoring._Staging.cut, restoring._Staging.publish

    def early(self: restoring._Staging, choose: None, syncing: Syncing) -> object:
        found = cut(self, choose, syncing)
        publish(self, syncing)
        self._store = self._root
        return found

    monkeypatch.setattr(restoring._Staging, "cut", early)
    monkeypatch.setattr(restoring._Staging, "publish", lambda self, syncing: None)
    with pytest.raises((AssertionError, HoldfastError)):
        explore_restore(rig, step=2, keeps=("all", "none"))


# -- the test restore -------------------------------------------------------------------------------------------------


def test_what_a_cut_clearing_leaves_is_known_as_ours() -> None:
    """The marker goes last, and durably so: no other name comes back without it. Names of removed directories, too."""
    root, place = Path("/d/s"), Path("/d/s.test-restore")
    marker, left = place / "test-restore.json", place / "left"
    base = CrashableFileSystem.from_files({marker: b"{}", left: b"x"}, {Path("/"), root.parent, place})
    whole = CrashableFileSystem.from_files(base.files(), base.directories())
    proof.clear_test_restore(root, fs=whole)
    assert whole.operations > 2
    counts: Counter[str] = Counter()
    for at in range(1, whole.operations + 2):
        fs = CrashableFileSystem.from_files(base.files(), base.directories())
        fs.faults = (Fault(at),)
        with contextlib.suppress(SimulatedCrash):
            proof.clear_test_restore(root, fs=fs)
        for number in range(8):
            after = fs.crash(random.Random(at * 10 + number), keep="random")
            names = after.names(place)
            counts[",".join(names) or "nothing"] += 1
            assert not names or marker.name in names, names
            proof.clear_test_restore(root, fs=after)
            assert after.names(place) == []
    assert set(counts) == {"left,test-restore.json", "test-restore.json", "nothing"}
