"""Workloads of the crash explorer that make copies of a store, or of its files; each tells how many steps hold."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast import Store
from holdfast.backup import (
    BackupRepository,
    KeepRules,
    copy_backup,
    create_backup,
    open_repository,
    prune_backups,
    verify_backup,
)
from holdfast.errors import FormatTooOld
from holdfast.recovery import verify_store
from holdfast.recovery.migrate import STAGING, migrate_store
from holdfast.store.base import read_base
from holdfast.store.checkpoints import restore_checkpoint
from holdfast.store.factory import open_store
from holdfast.store.identity import FORMAT, IDENTITY_BYTES_MAX, IDENTITY_NAME, stored_format
from holdfast.testing.explorer import EXPECTED, Acks
from holdfast.testing.machine import Machine
from tests.crash.backup_rig import PLACE, SECOND, SETTINGS, Rig, Source, Unpublished, without_manifest
from tests.crash.explorer_workloads import Explored
from tests.unit.format0 import Format0, write_format0
from tests.unit.state_support import Values, after, commit, root_of, writer_backend
from tests.unit.store_support import open_quick

BLOCKS = 8
NO_ENGINE = tuple(name for name in EXPECTED if name != "batches")


def changes_of(number: int) -> dict[bytes, bytes | None]:
    return {b"often": b"%d" % number, b"key/%d" % (number % 5): b"%d" % number * 40}


STATES: list[Values] = []
for _number in range(40):
    STATES.append(after(STATES[-1] if STATES else {}, changes_of(_number)))


class Copied:
    """A store of a few blocks; steps are blocks and what is made of them, one after the other.

    An image shows a shape: how many blocks, and which copies, each compared with what it must hold. The n-th step holds
    where the shape is that after the n-th step of the run.
    """

    expect: tuple[str, ...] = NO_ENGINE
    listed: tuple[str, ...] = ()
    """Directories in which copies are."""

    def __init__(self) -> None:
        self._shapes: list[object] = []
        self._checked = 0

    def open(self, machine: Machine) -> Store:
        return machine.open(max_reorg_depth=4, durability="sync")

    def grow(self, store: Store) -> None:
        height = 0 if store.tip is None else store.tip.height + 1
        commit(store, height, changes_of(height))

    def prepare(self, machine: Machine) -> None:
        machine.fs.make_directory(Path("/"))
        store = self.open(machine)
        for _ in range(BLOCKS):
            self.grow(store)
        store.close()

    def __call__(self, machine: Machine, acks: Acks) -> None:
        store = self.open(machine)
        self._shapes = [self.shape(machine, store)]
        for number, step in enumerate(self.steps(machine, store), 1):
            step()
            self._shapes.append(self.shape(machine, store))
            acks.done(number)
        store.close()

    def check(self, machine: Machine) -> int:
        store = self.open(machine)
        found = self.shape(machine, store)
        assert found in self._shapes, f"no step leads to {found}, only {self._shapes}"
        self._checked += 1
        for directory in self.listed:  # of a copy that a killed process had not finished, listing promises nothing
            if machine.fs.exists(machine.root / directory):
                machine.fs.sync_directory(machine.root / directory)
        if self._checked % 8 == 0:
            assert self.goes_on(machine.crash(random.Random(0), "none")) == found, "what was shown was not durable"
        return self._shapes.index(found)

    def goes_on(self, machine: Machine) -> object:
        """What is there is whole; whatever was cut off, it can be done again. What was there."""
        with machine.running():
            store = self.open(machine)
            found = self.shape(machine, store)
            for step in self.steps(machine, store):
                step()
            self.shape(machine, store)
            machine.abandon()
        return found

    def steps(self, machine: Machine, store: Store) -> list[Callable[[], object]]:
        """What is done, in turn."""
        raise NotImplementedError

    def shape(self, machine: Machine, store: Store) -> object:
        """What is there, after it was compared with what it must be."""
        raise NotImplementedError


def blocks_of(store: Store) -> int:
    """How many blocks there are, after the state at the tip was compared."""
    assert store.tip is not None
    count = store.tip.height + 1
    assert len(list(store.blocks.canonical())) == count
    assert dict(store.state.scan()) == STATES[count - 1]
    assert store.state.root == root_of(STATES[count - 1])
    return count


class BackedUp(Copied):
    """Backups of a running store: verified and marked, copied to a second repository, the older ones pruned.

    Before each backup and each copy another run is killed, which leaves its chunks to this one.
    """

    listed = (str(PLACE / "backups"), str(SECOND / "backups"))

    def place(self, machine: Machine, path: Path = PLACE) -> BackupRepository:
        return open_repository(path, create=True, fs=machine.fs)

    def steps(self, machine: Machine, store: Store) -> list[Callable[[], object]]:
        def backup() -> None:
            with pytest.raises(Unpublished):
                create_backup(machine.root, without_manifest(self.place(machine)), workers=0, fs=machine.fs)
            create_backup(machine.root, self.place(machine), workers=0, fs=machine.fs)

        def verify() -> None:
            place = self.place(machine)
            assert verify_backup(place, place.names()[-1], workers=0).ok

        def copy() -> None:
            place, name = self.place(machine), self.place(machine).names()[-1]
            with pytest.raises(Unpublished):
                copy_backup(place, name, without_manifest(self.place(machine, SECOND)), workers=0)
            copy_backup(place, name, self.place(machine, SECOND), workers=0)

        def prune() -> None:
            prune_backups(self.place(machine), KeepRules(last=1))

        def grow() -> None:
            self.grow(store)

        return [backup, grow, verify, backup, verify, copy, prune, grow]

    def shape(self, machine: Machine, store: Store) -> object:
        found: list[object] = [blocks_of(store)]
        for path in (PLACE, SECOND):
            if not machine.fs.names(path):
                found += [(), False]
                continue
            place = self.place(machine, path)
            names = place.names()
            for name in names:
                told = verify_backup(place, name, workers=0, mark=False)
                assert told.ok, told.problems
            files = {name for name, _ in place.target.list("backups/")}
            found += [tuple(names), bool(names) and f"backups/{names[-1]}.verified" in files]
        return tuple(found)


class CheckpointsMade(Copied):
    """Checkpoints are made between blocks, and pruned to one."""

    listed = ("checkpoints",)

    def steps(self, machine: Machine, store: Store) -> list[Callable[[], object]]:
        points = store.checkpoints

        def grow() -> None:
            self.grow(store)

        return [points.create, grow, points.create, grow, lambda: points.prune(newest=1, every=0), points.create]

    def shape(self, machine: Machine, store: Store) -> object:
        names = [each.name for each in store.checkpoints.list()]
        for name in names:
            height = store.checkpoints.verify(name, workers=1).height
            reader = writer_backend(store).checkpoints.reader(name)
            reader.trust_own()
            rows = dict(row for chunk in reader.chunks(workers=1) for row in chunk.rows)
            assert rows == STATES[height], name
        return blocks_of(store), tuple(names)


class CheckpointRestored:
    """A store is made of a checkpoint; number 1: it is. A run that was cut off goes on, and ends well."""

    expect = NO_ENGINE
    source = Path("/copy")

    def prepare(self, machine: Machine) -> None:
        other = Machine(machine.root, type(machine.fs)())
        with other.running():
            store = Copied().open(other)
            for _ in range(BLOCKS):
                Copied().grow(store)
            store.checkpoints.create()
            other.abandon()
        for directory in sorted(other.fs.directories()):
            if "checkpoints" in directory.parts:
                machine.fs.make_directory(self.source / directory.relative_to(machine.root))
        for path, data in other.fs.files().items():
            if "checkpoints" in path.parts:
                machine.fs.open(self.source / path.relative_to(machine.root), create=True).pwrite(data, 0)
        machine.fs.make_directory(machine.root)

    def restore(self, machine: Machine) -> None:
        restore_checkpoint(self.source, f"sqlite:{machine.root}", settings=SETTINGS, workers=1, fs=machine.fs)

    def __call__(self, machine: Machine, acks: Acks) -> None:
        self.restore(machine)
        acks.done()

    def check(self, machine: Machine) -> int:
        done = IDENTITY_NAME in machine.fs.names(machine.root)  # it comes last
        if not done:
            self.restore(machine)
        with machine.open(create=False) as store:
            opened = writer_backend(store).opened
            base = read_base(machine.fs, machine.root, opened.journal, opened.plan.cipher)
            assert sum(chunk.head.count for chunk in base) == len(STATES[BLOCKS - 1])
            assert store.tip is not None
            assert store.tip.height == BLOCKS - 1
            assert dict(store.state.scan()) == STATES[BLOCKS - 1]
            assert store.safety.fenced
        return int(done)


class Migrated:
    """A store of format 0 is brought to this one; number 1: it is. Cut off anywhere, the same call goes on."""

    expect = NO_ENGINE

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as place:
            root = Path(place)
            with open_quick(f"sqlite:{root / 'one'}") as store:
                for height in range(BLOCKS):
                    commit(store, height, changes_of(height))
            write_format0(root / "one", root / "zero")
            found = {path.relative_to(root / "zero"): path for path in (root / "zero").rglob("*") if path.is_file()}
            self._old = {path: where.read_bytes() for path, where in found.items()}

    def prepare(self, machine: Machine) -> None:
        (machine.root / STAGING).mkdir(exist_ok=True)  # the real disk is asked whether it is a directory
        for directory in (machine.root, machine.root / "log"):
            machine.fs.make_directory(directory)
        for path, data in self._old.items():
            machine.fs.open(machine.root / path, create=True).pwrite(data, 0)

    def migrate(self, machine: Machine) -> None:
        migrate_store(machine.root, steps={0: Format0()}, fs=machine.fs)

    def __call__(self, machine: Machine, acks: Acks) -> None:
        self.migrate(machine)
        acks.done()

    def check(self, machine: Machine) -> int:
        identity = machine.fs.read_bytes(machine.root / IDENTITY_NAME, limit=IDENTITY_BYTES_MAX)
        done = stored_format(identity, path=machine.root) == FORMAT
        if not done:
            with pytest.raises(FormatTooOld):
                machine.open(create=False)
        self.migrate(machine)
        files = machine.fs.files()
        for path, data in self._old.items():
            assert files[machine.root / "before-format-0" / path] == data, f"{path} is not as it was"
        assert verify_store(machine.root, level="links", fs=machine.fs).ok
        with machine.open(create=False) as store:
            assert blocks_of(store) == BLOCKS
        return int(done)


class Restored:
    """A backup is restored; number 1: the store is there, whole. Cut off anywhere, the next run ends well."""

    expect = NO_ENGINE

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    def prepare(self, machine: Machine) -> None:
        machine.fs.make_directory(self._rig.root)

    def __call__(self, machine: Machine, acks: Acks) -> None:
        self._rig.restore(machine)
        acks.done()

    def check(self, machine: Machine) -> int:
        rig = self._rig
        done = IDENTITY_NAME in machine.fs.names(rig.target)
        if not done:
            assert not machine.fs.names(rig.target)
            rig.restore(machine)
        rig.move_engines(machine)
        with machine.running():
            store = machine.adopt(open_store(f"sqlite:{rig.target}", create=False, settings=SETTINGS, fs=machine.fs))
            assert store.tip is not None
            assert rig.form.tip is not None
            assert store.tip.hash.hex() == rig.form.tip.hash
            assert len(list(store.blocks.canonical())) == store.tip.height + 1
            assert store.safety.fenced, "it was published before it was fenced"
        return int(done)


COPIES: dict[str, Callable[[Path], Explored]] = {
    "backup": lambda _place: BackedUp(),
    "checkpoint": lambda _place: CheckpointsMade(),
    "checkpoint restore": lambda _place: CheckpointRestored(),
    "migration": lambda _place: Migrated(),
    "restore": lambda place: Restored(Rig(Source(place / "source"), place / "rig")),
}
"""Each workload, with a directory of its own."""
