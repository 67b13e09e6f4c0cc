"""A machine in memory that runs a whole store, loses power, fails and dies: files and engine on one simulated device.

The engine keeps its contract and no more: after a crash it holds its first k batches, for any k that is not below what
was synced. Every batch counts as an operation of the file system, so that faults meet it too.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from holdfast import Store
from holdfast.engine.api import Batch, Engine
from holdfast.engine.memory import MemoryEngine
from holdfast.errors import HoldfastError, MissingFile, PoisonedError
from holdfast.journal.journal import JournalOptions
from holdfast.recovery import verify, verify_store
from holdfast.store import opening
from holdfast.store.backend import WriterBackend
from holdfast.testing.crashfs import CrashableFileSystem, Fault, Keep, SimulatedCrash
from tests.crash.support import Model, check_deep, check_frontier, difference, open_store, perform, picture_of

SEED = 5
_journal_options = opening.journal_options


@dataclass
class Disk:
    """What an engine has done: its batches, and how many of them are durable."""

    batches: list[Batch] = field(default_factory=list)
    synced: int = 0

    def crash(self, rng: random.Random, keep: Keep) -> Disk:
        """The batches that are left."""
        count = {"all": len(self.batches), "none": self.synced}.get(keep, rng.randint(self.synced, len(self.batches)))
        return Disk(self.batches[:count], count)


class DiskEngine(MemoryEngine):
    """An engine on a ``Disk``; each batch and each sync is an operation."""

    capabilities = replace(MemoryEngine.capabilities, name="sqlite", persistent=True, always_sync=False)

    def __init__(self, disk: Disk, fs: CrashableFileSystem, path: Path) -> None:
        super().__init__()
        for batch in disk.batches:
            super().apply(batch, sync=False)
        self._disk = disk
        self._fs = fs
        self._path = path
        self._failed = False

    def _step(self, kind: str) -> None:
        if self._failed:
            raise PoisonedError("an earlier write of the engine failed", path=self._path)
        try:
            self._fs.step(kind, self._path)
        except HoldfastError:
            self._failed = True
            raise

    def apply(self, batch: Batch, *, sync: bool) -> None:
        self._step("apply")
        super().apply(batch, sync=sync)
        self._disk.batches.append(Batch(dict(batch.rows), list(batch.delete_ranges)))
        if sync:
            self._disk.synced = len(self._disk.batches)

    def sync(self) -> None:
        self._step("engine_sync")
        super().sync()
        self._disk.synced = len(self._disk.batches)


@dataclass
class Machine:
    """A device with the files and the engines of a store."""

    root: Path
    fs: CrashableFileSystem
    disks: dict[Path, Disk] = field(default_factory=dict)

    def crash(self, rng: random.Random, keep: Keep) -> Machine:
        """The machine as it boots again."""
        disks = {path: disk.crash(rng, keep) for path, disk in self.disks.items()}
        return Machine(self.root, self.fs.crash(rng, keep=keep), disks)

    def open_engine(
        self, name: str, path: Path, *, create: bool, cache_bytes: int = 0, read_only: bool = False
    ) -> Engine:
        """In place of ``holdfast.engine.open.open_engine``."""
        if path not in self.disks:
            if not create:
                raise MissingFile("there is no engine here", path=path)
            self.disks[path] = Disk()
        return DiskEngine(self.disks[path], self.fs, path)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Stores are opened on this machine. Nothing but the caller's thread makes a step."""

        def options(plan: opening.OpenPlan) -> JournalOptions:
            return replace(
                _journal_options(plan), background=False, segment_bytes_first=8 * 1024, segment_bytes_max=16 * 1024
            )

        def probe(*_args: object, **_more: object) -> None:
            """Nothing can be wrong with it."""

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(opening, "open_engine", self.open_engine)
            patch.setattr(opening, "probe_engine", probe)
            patch.setattr(verify, "open_engine", self.open_engine)
            patch.setattr(verify, "probe_engine", probe)
            patch.setattr(opening, "journal_options", options)
            yield

    def open(self) -> Store:
        """The store."""
        self.fs.make_directory(self.root)
        return open_store(f"sqlite:{self.root}", fs=self.fs, flush_interval_seconds=3600.0, overlay_rows_max=1_000_000)


def new_machine(root: Path, *, seed: int = 0, faults: tuple[Fault, ...] = ()) -> Machine:
    """An empty device. ``root`` exists, with what the fingerprint of the store looks at."""
    (root / "journal").mkdir(parents=True, exist_ok=True)
    (root / "LOCK").touch()
    fs = CrashableFileSystem(seed=seed, faults=faults)
    return Machine(root, fs)


def abandon(machine: Machine, store: Store | None) -> None:
    """The process that had ``store`` open is gone: nothing more is written, its locks are free."""
    if store is not None:
        backend = store._backend
        assert isinstance(backend, WriterBackend)
        backend.stopping()  # its thread would keep the whole store, and wake up once a second
        backend.views.close(flush=False)
        machine.fs._locks.clear()


def new_model() -> Model:
    """The model of every life."""
    return Model(SEED, body_max=600)


@dataclass
class Life:
    """One run of the process: what was acknowledged, and the open store."""

    machine: Machine
    model: Model = field(default_factory=new_model)
    store: Store | None = None
    errors: list[HoldfastError] = field(default_factory=list)
    poisoned: int = 0

    def work(self, count: int) -> None:
        """So many operations, each acknowledged once it returned."""
        for _ in range(count):
            assert self.store is not None
            op = self.model.next_op()
            perform(self.store, op)
            self.model.apply(op)

    def flush(self) -> None:
        assert self.store is not None
        self.store.flush()

    def close(self) -> None:
        assert self.store is not None
        store, self.store = self.store, None
        store.close()

    def open(self) -> None:
        self.store = self.machine.open()

    def abandon(self) -> None:
        """The process is gone: nothing more is written."""
        store, self.store = self.store, None
        abandon(self.machine, store)

    def steps(self) -> list[Callable[[], None]]:
        """Create, work, flush, work, close; open, work, die; open, work over a flush, close."""
        return [
            self.open,
            *[lambda: self.work(1)] * 14,
            self.flush,
            *[lambda: self.work(1)] * 12,
            self.close,
            self.open,
            *[lambda: self.work(1)] * 10,
            self.flush,
            *[lambda: self.work(1)] * 3,
            self.abandon,
            self.open,
            *[lambda: self.work(1)] * 4,
            self.flush,
            *[lambda: self.work(1)] * 2,
            self.close,
        ]

    def live(self) -> None:
        """All steps, up to a crash."""
        with self.machine.running():
            try:
                for step in self.steps():
                    step()
            except (SimulatedCrash, HoldfastError):
                if not self.machine.fs._dead:  # else it is what a ``finally`` of a dead process makes of the crash
                    raise
            finally:
                with contextlib.suppress(SimulatedCrash):
                    self.abandon()

    def live_with_errors(self) -> None:
        """All steps, up to an error that ends the store; others must have changed nothing."""
        with self.machine.running():
            for step in self.steps():
                before = self.model.number
                try:
                    step()
                except HoldfastError as error:
                    self.errors.append(error)
                    if self.store is None or self._ended(before):
                        break
            self.abandon()

    def _ended(self, before: int) -> bool:
        """True if the store is poisoned, which it says for ever; else it shows what was acknowledged."""
        store = self.store
        assert store is not None
        backend = store._backend
        assert isinstance(backend, WriterBackend)
        if backend.writer.journal.poisoned is None and not backend.writer._failure:
            assert picture_of(store) == self.model.picture(), "an operation that failed has changed something"
        assert self.model.number == before
        for _ in range(2):
            try:
                self.work(1)
            except PoisonedError:
                self.poisoned += 1
                shown = picture_of(store)  # never more than what was acknowledged
                assert shown == self.model.picture(), difference(shown, self.model.picture())
                return True
            except HoldfastError as error:
                self.errors.append(error)
        return False


def operations(root: Path) -> int:
    """How many operations one whole life makes."""
    life = Life(new_machine(root))
    life.live()
    assert life.model.number == 45, life.model.number
    return life.machine.fs.operations


def images(machine: Machine, seed: int, count: int) -> Iterator[Machine]:
    """A killed process, a power cut that loses all it may, and some that lose part of it."""
    yield machine.crash(random.Random(seed), "all")
    yield machine.crash(random.Random(seed), "none")
    for index in range(count):
        yield machine.crash(random.Random(seed * 1000 + index), "random")


def check_image(machine: Machine, model: Model) -> int:
    """The store holds what was acknowledged, durably, and works on; 1 if it holds the operation in flight too."""
    acked = model.number
    model = model.copy()
    life = Life(machine, model)
    with machine.running():
        life.open()
        assert life.store is not None
        check_frontier(life.store, model)
        check_deep(life.store, model, newest=12, sample=4)
        life.abandon()
    kept = model.number - acked
    # What was recovered is durable, whatever had failed before.
    again = Life(machine.crash(random.Random(1), "none"), model)
    with again.machine.running():
        again.open()
        assert again.store is not None
        assert picture_of(again.store) == model.picture(), "what recovery has shown was not durable"
        again.work(3)
        again.close()
        again.open()
        assert again.store is not None
        assert again.store.recovery.clean
        assert again.store.recovery.frames_replayed == 0
        check_frontier(again.store, model, ahead=0)
        check_deep(again.store, model, newest=12, sample=4)
        again.close()
        report = verify_store(machine.root, level="state", fs=again.machine.fs)
        assert report.ok, report.as_dict()
    return kept
