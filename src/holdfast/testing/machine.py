"""A machine in memory that runs whole stores, loses power, fails and dies: files and engines on one simulated device.

Invariants:
    * The simulated engine keeps the contract of an engine and no more: after a crash it holds its first k batches, for
      any k that is not below what was synced.
    * Each batch and each sync of an engine is an operation of the file system: faults meet it, recordings show it.
    * While a machine is ``running`` nothing but the caller's thread makes an operation, so the same work makes the
      same operations.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..config import Settings
from ..engine.api import Batch, Engine
from ..engine.memory import MemoryEngine
from ..errors import HoldfastError, MissingFile, PoisonedError
from ..journal.journal import JournalOptions
from ..recovery import verify
from ..store import opening
from ..store.backend import WriterBackend
from ..store.chain import Chain
from ..store.factory import open_store
from ..store.indexes import IndexSpec
from ..store.store import Store
from ..store.upkeep import Upkeep
from ..views.flush import Flusher
from .crashfs import CrashableFileSystem, Fault, Keep

__all__ = ["Disk", "DiskEngine", "Machine", "new_machine"]

_journal_options = opening.journal_options
_SEGMENT_BYTES_FIRST = 8 * 1024
_SEGMENT_BYTES_MAX = 16 * 1024
"""Small, so that a short run rolls often."""


@dataclass
class Disk:
    """What an engine has done: its batches, how many of them are durable, and a digest of the rows up to each."""

    batches: list[Batch] = field(default_factory=list)
    synced: int = 0
    digests: list[bytes] = field(default_factory=list)

    def add(self, batch: Batch, *, sync: bool) -> None:
        """``batch`` was applied."""
        digest = hashlib.blake2b(self.digests[-1] if self.digests else b"", digest_size=16)
        for key, value in batch.rows.items():
            digest.update(b"%d %d;" % (len(key), -1 if value is None else len(value)) + key + (value or b""))
        for low, high in batch.delete_ranges:
            digest.update(b"%d %d;" % (len(low), len(high)) + low + high)
        self.batches.append(Batch(dict(batch.rows), list(batch.delete_ranges)))
        self.digests.append(digest.digest())
        if sync:
            self.synced = len(self.batches)

    def first(self, count: int, synced: int) -> Disk:
        """The first ``count`` batches."""
        return Disk(self.batches[:count], synced, self.digests[:count])

    def crash(self, rng: random.Random, keep: Keep) -> Disk:
        """The batches that are left."""
        count = {"all": len(self.batches), "none": self.synced}.get(keep, rng.randint(self.synced, len(self.batches)))
        return self.first(count, count)


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
        self._disk.add(batch, sync=sync)

    def sync(self) -> None:
        self._step("engine_sync")
        super().sync()
        self._disk.synced = len(self._disk.batches)


@dataclass
class Machine:
    """A device with the files and the engines of a store.

    Attributes:
        root: the directory of the store. It exists on the real disk, too, and stays empty but for what identifies it.
        fs: the files.
        disks: what each engine has done, by its directory. One goes with a directory that is removed, and stays where
            it was when a directory is renamed.
    """

    root: Path
    fs: CrashableFileSystem
    disks: dict[Path, Disk] = field(default_factory=dict)
    _stores: list[Store] = field(default_factory=list)

    def __post_init__(self) -> None:
        def forget(gone: set[Path]) -> None:
            self.disks = {path: disk for path, disk in self.disks.items() if path.parent not in gone}

        self.fs.tree_removed = forget

    def crash(self, rng: random.Random, keep: Keep) -> Machine:
        """The machine as it boots again."""
        disks = {path: disk.crash(rng, keep) for path, disk in self.disks.items()}
        return Machine(self.root, self.fs.crash(rng, keep=keep), disks)

    def settled(self) -> Machine:
        """The machine as it boots after everything it had written became durable."""
        fs = CrashableFileSystem.from_files(self.fs.files(), self.fs.directories())
        disks = {path: disk.first(len(disk.batches), len(disk.batches)) for path, disk in self.disks.items()}
        return Machine(self.root, fs, disks)

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
                _journal_options(plan),
                background=False,
                segment_bytes_first=_SEGMENT_BYTES_FIRST,
                segment_bytes_max=_SEGMENT_BYTES_MAX,
            )

        def nothing(*_args: object, **_more: object) -> None:
            """No probe of an engine that cannot crash this process, and no thread."""

        planted: list[tuple[object, str, object]] = [(opening, "journal_options", options)]
        for module in (opening, verify):
            planted += [(module, "open_engine", self.open_engine), (module, "probe_engine", nothing)]
        planted += [(Flusher, "start", nothing), (Upkeep, "start", nothing), (WriterBackend, "_sync_loop", nothing)]
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in planted]
        try:
            for owner, name, value in planted:
                setattr(owner, name, value)
            yield
        finally:
            for owner, name, value in before:
                setattr(owner, name, value)

    def open(
        self, *, chain: Chain | None = None, indexes: Sequence[IndexSpec] = (), create: bool = True, **fields: object
    ) -> Store:
        """The store of this machine, created if there is none; ``fields`` are settings. Call it while ``running``.

        It flushes when it is asked to, and when it is closed. A store that was not closed is abandoned with the others.
        """
        self.fs.make_directory(self.root)
        given: dict[str, object] = {"flush_interval_seconds": 3600.0, "overlay_rows_max": 1_000_000}
        settings = Settings(**(given | fields))  # type: ignore[arg-type]
        url = f"sqlite:{self.root}"
        return self.adopt(open_store(url, chain=chain, create=create, indexes=indexes, settings=settings, fs=self.fs))

    def adopt(self, store: Store) -> Store:
        """``store``, which was opened on ``fs``, belongs to this machine."""
        self._stores.append(store)
        return store

    def abandon(self) -> None:
        """The process is gone: stores that are open write nothing more, their locks are free."""
        stores, self._stores = self._stores, []
        for store in stores:
            backend = store._backend
            if store._closed is None and isinstance(backend, WriterBackend):
                backend.stopping()  # its thread would keep the whole store, and wake up once a second
                backend.views.close(flush=False)
        self.fs.release_locks()


def new_machine(root: Path | None = None, *, seed: int = 0, faults: tuple[Fault, ...] = ()) -> Machine:
    """An empty device. ``root`` exists, with what the fingerprint of the store looks at; else a temporary directory."""
    if root is None:
        root = Path(tempfile.mkdtemp(prefix="holdfast-crash-")) / "store"
    (root / "journal").mkdir(parents=True, exist_ok=True)
    (root / "LOCK").touch()
    return Machine(root, CrashableFileSystem(seed=seed, faults=faults))
