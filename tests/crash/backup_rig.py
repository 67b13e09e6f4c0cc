"""A store as it was twice, and a machine on which a backup of it is restored."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

from holdfast import Settings
from holdfast._fs import MemoryFileSystem, RealFileSystem
from holdfast.backup import BackupRepository, create_backup, open_repository, restore_backup
from holdfast.recovery.resting import read_marks
from holdfast.store.factory import open_store
from holdfast.store.opening import directory_state, read_identity
from holdfast.testing.crashfs import Fault
from holdfast.testing.machine import Machine, new_machine
from tests.unit.backup_support import grown
from tests.unit.store_support import chain_of, open_quick

PLACE = Path("/repository")
SECOND = Path("/second")
SETTINGS = Settings(flush_interval_seconds=3600.0)


class Unpublished(Exception):
    """A run was killed when every chunk had its name, and nothing of that was synced."""


def without_manifest(place: BackupRepository) -> BackupRepository:
    """A repository whose next run is killed so."""
    place.put_manifest = mock.Mock(side_effect=Unpublished)  # type: ignore[method-assign]
    return place


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
        machine.fs.operations = 0
        machine.fs.faults = faults
        return machine

    def restore(self, machine: Machine, *, height: int | None = None) -> None:
        with machine.running():
            url = f"sqlite:{self.target}"
            restore_backup(
                self.place, self.form.name, url, to_height=height, settings=SETTINGS, workers=0, fs=machine.fs
            )

    def check(self, machine: Machine, *, height: int | None = None) -> str:
        """The target is not there or whole; if it is not there, the next run ends well."""
        fs = machine.fs
        how = "whole" if fs.names(self.target) else "not there"
        if how == "not there":
            assert directory_state(fs, self.target) == "absent" or not fs.names(self.target)
            self.restore(machine, height=height)
        assert "holdfast.toml" in fs.names(self.target)
        identity = read_identity(fs, self.target)
        mark, _ = read_marks(fs, self.target, identity.salt)
        assert mark.clean
        assert height is not None or mark.seq > self.form.last_seq, "it was published before it was fenced"
        self.move_engines(machine)
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

    def move_engines(self, machine: Machine) -> None:
        """Engines are where their directory was renamed to."""

        def moved(path: Path) -> Path:
            return self.target / path.relative_to(self.staged) if self.staged in path.parents else path

        machine.disks = {moved(path): disk for path, disk in machine.disks.items()}
