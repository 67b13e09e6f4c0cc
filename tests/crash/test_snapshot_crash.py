"""Power cuts, kills and errors at every operation of an export and of an import, on a simulated device."""

from __future__ import annotations

import errno
import random
from collections import Counter
from pathlib import Path

import pytest

import holdfast
from holdfast import Settings, Store
from holdfast._fs import NewFile
from holdfast.errors import ForeignStore, HoldfastError
from holdfast.merkle.pure import BACKEND
from holdfast.state.snapshot import CHUNKS_NAME, MANIFEST_NAME, SnapshotInfo, verify_snapshot
from holdfast.state.snapshot_export import export_snapshot
from holdfast.store.base import read_base
from holdfast.store.snapshots import import_snapshot
from holdfast.testing.crashfs import CrashableFileSystem, Fault, Keep, SimulatedCrash
from holdfast.testing.machine import Machine, new_machine
from tests.unit.snapshot_support import PLACE, Source, export, numbered, source_of
from tests.unit.state_support import writer_backend

KEEPS: tuple[Keep, ...] = ("all", "none", "random", "random")
SOURCE: Source = source_of({**numbered(40), b"blob": b"b" * 70_000})


def snapshot_files() -> dict[Path, bytes]:
    """The snapshot, as files."""
    fs, _ = export(SOURCE, chunk_bytes=1024)
    return {path: bytes(data) for path, data in fs._files.items()}


FILES = snapshot_files()


# -- import ----------------------------------------------------------------------------------------------------------


def booted(root: Path, *, seed: int = 0, faults: tuple[Fault, ...] = ()) -> Machine:
    """A machine on which the snapshot lies, and nothing else."""
    machine = new_machine(root, seed=seed)
    fs = CrashableFileSystem.from_files(FILES, {PLACE, PLACE / CHUNKS_NAME, root})
    fs.rng.seed(seed)
    fs.faults = faults
    machine.fs = fs
    return machine


def taken_in(machine: Machine) -> SnapshotInfo:
    """The import."""
    settings = Settings(flush_interval_seconds=3600.0)
    with machine.running():
        return import_snapshot(
            f"sqlite:{machine.root}",
            PLACE,
            trusted_root=SOURCE.tree.root,
            settings=settings,
            workers=1,
            fs=machine.fs,
        )


def opened(machine: Machine) -> Store:
    """The store, whatever its chain."""
    machine.fs.make_directory(machine.root)
    settings = Settings(flush_interval_seconds=3600.0, overlay_rows_max=1_000_000)
    return holdfast.open(f"sqlite:{machine.root}", settings=settings, fs=machine.fs)


def check_store(machine: Machine) -> str:
    """The import is done, or goes on and ends well; then the store is the snapshot. Which of both."""
    machine.fs._locks.clear()
    done = {path.name for path in machine.fs.files()} >= {"holdfast.toml", "CURRENT"}
    assert taken_in(machine).state_root == SOURCE.tree.root
    with machine.running(), opened(machine) as store:
        tip = store.tip
        assert tip is not None
        assert tip.hash == SOURCE.block.hash
        assert dict(store.state.scan()) == SOURCE.values
        assert store.state.root == SOURCE.tree.root
        journal = writer_backend(store).journal
        assert sum(chunk.head.count for chunk in read_base(machine.fs, machine.root, journal)) == len(SOURCE.values)
    names = {path.relative_to(machine.root) for path in machine.fs.files() if machine.root in path.parents}
    assert not [name for name in names if name.suffix == ".tmp" and name.parts[0] == "base"]
    return "was done" if done else "went on"


def operations_of_import(root: Path) -> int:
    machine = booted(root)
    taken_in(machine)
    return machine.fs.operations


def explore(root: Path, points: range, keeps: tuple[Keep, ...]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for at in points:
        machine = booted(root, seed=at, faults=(Fault(at, torn=True),))
        with pytest.raises(SimulatedCrash):
            taken_in(machine)
        counts["at " + machine.fs.log[-1][0]] += 1
        for number, keep in enumerate(keeps):
            image = machine.crash(random.Random(at * 10 + number), keep)
            counts["images"] += 1
            counts[check_store(image)] += 1
    return counts


def test_an_import_that_ended_survives_a_power_cut(tmp_path: Path) -> None:
    machine = booted(tmp_path)
    taken_in(machine)
    for number, keep in enumerate(KEEPS):
        assert check_store(machine.crash(random.Random(number), keep)) == "was done"


@pytest.mark.slow
def test_power_cut_at_some_operations_of_an_import(tmp_path: Path) -> None:
    total = operations_of_import(tmp_path)
    explore(tmp_path, range(3, total + 1, total // 12), ("none", "random"))
    explore(tmp_path, range(total - 12, total + 1, 3), ("none", "random"))


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_an_error_at_any_operation_of_an_import_is_typed_and_leaves_it_to_go_on(tmp_path: Path, code: int) -> None:
    total = operations_of_import(tmp_path)
    raised = 0
    for at in range(1, total + 1, 3):
        machine = booted(tmp_path, seed=at, faults=(Fault(at, error=code, torn=True),))
        try:
            taken_in(machine)
        except HoldfastError:
            raised += 1
        machine.fs.faults = ()
        check_store(machine)
    assert raised > total // 6


@pytest.mark.slow
@pytest.mark.parametrize("bug", ["sync", "sync_directory"])
def test_an_import_that_does_not_sync_is_found_out(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A positive control."""
    if bug == "sync":
        monkeypatch.setattr(NewFile, "sync", lambda self: None)
    else:
        monkeypatch.setattr(CrashableFileSystem, "sync_directory", lambda self, path: self.step("sync_directory", path))
    found = 0
    for seed in range(12):
        machine = booted(tmp_path, seed=seed)
        taken_in(machine)
        image = machine.crash(random.Random(seed), "random")
        try:  # not imported again: that would mend it
            with image.running(), opened(image) as store:
                assert dict(store.state.scan()) == SOURCE.values
                read = read_base(image.fs, image.root, writer_backend(store).journal)
                assert sum(chunk.head.count for chunk in read) == len(SOURCE.values)
        except (HoldfastError, AssertionError):
            found += 1
    assert found


@pytest.mark.slow
def test_an_import_that_goes_on_after_a_kill_is_durable_at_its_end(tmp_path: Path) -> None:
    """The chunk whose name the killed process had not made durable was taken for one that is."""
    total = operations_of_import(tmp_path)
    for at in range(1, total):
        machine = booted(tmp_path, seed=at, faults=(Fault(at),))
        with pytest.raises(SimulatedCrash):
            taken_in(machine)
        again = machine.crash(random.Random(at), "all")
        taken_in(again)
        image = again.crash(random.Random(at), "none")
        with image.running(), opened(image) as store:
            assert dict(store.state.scan()) == SOURCE.values


def test_a_store_is_not_opened_over_an_unfinished_import(tmp_path: Path) -> None:
    total = operations_of_import(tmp_path)
    seen: Counter[str] = Counter()
    for at in range(1, total + 1, 5):
        machine = booted(tmp_path, seed=at, faults=(Fault(at),))
        with pytest.raises(SimulatedCrash):
            taken_in(machine)
        image = machine.crash(random.Random(at), "all")
        image.fs._locks.clear()
        names = {path.name for path in image.fs.files() if path.parent == tmp_path}
        with image.running():
            try:
                with opened(image) as store:
                    seen["store" if store.tip is not None else "new"] += 1
                    assert store.tip is None or dict(store.state.scan()) == SOURCE.values
                    assert (store.tip is not None) == ("holdfast.toml" in names)
                    assert store.tip is not None or not image.fs.names(tmp_path / "base")
            except ForeignStore:
                seen["refused"] += 1
                assert "holdfast.toml" not in names
    assert seen["refused"] > 5
    assert seen["store"] > 0


# -- export ----------------------------------------------------------------------------------------------------------


def exported(fs: CrashableFileSystem, place: Path) -> SnapshotInfo:
    return export_snapshot(SOURCE, place, chunk_bytes=1024, fs=fs, tree_backend=BACKEND)


def fresh(place: Path, seed: int = 0, faults: tuple[Fault, ...] = ()) -> CrashableFileSystem:
    fs = CrashableFileSystem.from_files({}, {place})
    fs.rng.seed(seed)
    fs.faults = faults
    return fs


@pytest.mark.slow
def test_a_crash_at_any_operation_of_an_export(tmp_path: Path) -> None:
    clean = fresh(tmp_path)
    wanted = exported(clean, tmp_path)
    seen: Counter[str] = Counter()
    for at in range(1, clean.operations + 1):
        fs = fresh(tmp_path, at, (Fault(at, torn=True),))
        with pytest.raises(SimulatedCrash):
            exported(fs, tmp_path)
        for number, keep in enumerate(KEEPS):
            after = fs.crash(random.Random(at * 10 + number), keep=keep)
            if after.exists(tmp_path / MANIFEST_NAME):
                seen["whole"] += 1
                verify_snapshot(tmp_path, SOURCE.tree.root, fs=after, workers=1, tree_backend=BACKEND)
            info = exported(after, tmp_path)
            seen["kept"] += info.kept > 0
            assert info.manifest_digest == wanted.manifest_digest
            verify_snapshot(tmp_path, SOURCE.tree.root, fs=after, workers=1, tree_backend=BACKEND)
            assert len(after.names(tmp_path / CHUNKS_NAME)) == wanted.chunks
            durable = after.crash(random.Random(at), keep="none")
            verify_snapshot(tmp_path, SOURCE.tree.root, fs=durable, workers=1, tree_backend=BACKEND)
    assert seen["whole"] > 0
    assert seen["kept"] > 50


def test_a_full_disk_leaves_an_export_to_go_on(tmp_path: Path) -> None:
    clean = fresh(tmp_path)
    wanted = exported(clean, tmp_path)
    for at in range(1, clean.operations + 1, 3):
        fs = fresh(tmp_path, at, (Fault(at, error=errno.ENOSPC, torn=True),))
        with pytest.raises(HoldfastError):
            exported(fs, tmp_path)
        fs.faults = ()
        assert exported(fs, tmp_path).manifest_digest == wanted.manifest_digest
