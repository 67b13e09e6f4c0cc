"""The directory of an xai chain: its store, the original's files beside it, and how one store takes another's place.

Invariants:
    * A store that is replaced moves to ``quarantine/`` whole; nothing of it is deleted.
    * A replacement is built beside the old store and takes its place only when it is whole. An error gives it up while
      nothing was moved; behind that, and after a crash, it is finished before anything else is done here.
    * One process at a time: the lock covers the store and the files beside it.

::

    DATA/store/            the Holdfast store
    DATA/backups/          files of the original's format
    DATA/checkpoints/
    DATA/quarantine/       stores that were replaced
    DATA/blockchain.json   the original's own file: taken in once, never written
    DATA/blockchain.json.taken   there is or was a store beside it, so it is not taken in again
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from pathlib import Path
from typing import Final

from ..._fs import FileLock, FileSystem
from ..._keys import StoreKey
from ...config import Settings
from ...doctor.door import open_attended
from ...errors import CorruptionError, ForeignStore, FormatError, HoldfastError, InvalidInputError, StoreNotFound
from ...store import Store
from ...store.opening import read_identity
from .chain import ADDRESS_INDEX, XaiChain

__all__ = ["XaiPlace"]

_MARKER_BYTES_MAX: Final = 4096
_TAKEN: Final = b"The chain is in 'store'. Where this file is, blockchain.json is not taken in again.\n"
_DEEP_FROM: Final = 5_000
"""A chain of fewer blocks is built in one go."""
_NAME: Final = re.compile(r"[a-z]+(\.[a-z]+)?-[0-9]{1,9}")


class XaiPlace:
    """The paths below one data directory, and the store there."""

    def __init__(
        self,
        fs: FileSystem,
        data_dir: Path,
        settings: Settings,
        engine: str | None = None,
        key: bytes | StoreKey | None = None,
    ) -> None:
        self._fs = fs
        self._settings = settings
        self._engine = engine
        self._key = StoreKey.of(key)
        self._lock: FileLock | None = None
        self.data_dir = data_dir
        self.store = data_dir / "store"
        self.original = data_dir / "blockchain.json"
        self.taken = data_dir / "blockchain.json.taken"
        self.quarantine = data_dir / "quarantine"
        self._marker = data_dir / "restore.json"

    def lock(self) -> None:
        """The directory exists, is this process's until ``release``, and nothing that was decided on is left to do.

        Asked before every opening and every replacement. Raises ``StoreLocked``.
        """
        if self._lock is None:
            missing = []
            path = self.data_dir.absolute()
            while not self._fs.exists(path):
                missing.append(path)
                path = path.parent
            for path in reversed(missing):
                self._fs.make_directory(path)
            self._lock = self._fs.lock(self.data_dir / "LOCK", f"{os.getpid()} {socket.gethostname()}")
        self.finish()

    def release(self) -> None:
        """Another process may take the directory; twice is harmless."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def open(self) -> Store | None:
        """The store, recovered; ``None`` if there is none. Raises whatever opening it raises."""
        try:
            identity = read_identity(self._fs, self.store)
        except StoreNotFound:
            return None
        if self._fs.exists(self.original) and not self._fs.exists(self.taken):
            self._fs.write_atomic(self.taken, _TAKEN)
        return self._open(self.store, XaiChain.from_spec(identity.spec), create=False)

    def chain(self) -> XaiChain | None:
        """The chain that the store's identity names; ``None`` if there is no store or nobody can read who it is."""
        try:
            return XaiChain.from_spec(read_identity(self._fs, self.store).spec)
        except (StoreNotFound, FormatError, ForeignStore, InvalidInputError):
            return None

    def create(self, chain: XaiChain) -> Store:
        """A new store in its place."""
        return self._open(self.store, chain, create=True)

    def clear(self) -> Path:
        """Where a store may be built beside the place, for ``take``; one that was left over from before is gone."""
        for name in self._fs.names(self.data_dir):
            if name.startswith("incoming-"):
                self._fs.remove_tree(self.data_dir / name)
        number = 1 + sum(1 for _ in self._fs.names(self.quarantine))
        return self.data_dir / f"incoming-{number}"

    def deep(self, blocks: int) -> int:
        """How many of so many blocks lie so deep that no state of theirs can be read, proven or come back in the end.

        0 where it is not worth the while.
        """
        settings, read = self._settings, 0
        if settings.history == "on":
            read = settings.history_blocks if settings.history_blocks and not settings.history_every else blocks
        kept = settings.max_reorg_depth + max(settings.proof_window_blocks, read)
        return max(0, blocks - kept) if blocks >= _DEEP_FROM else 0

    def build(self, path: Path, chain: XaiChain, *, deep: bool = False) -> Store:
        """The store at ``path``, which is made if it is not there.

        It is durable once it is closed, and makes no checkpoints or backups: until ``take`` nobody but its builder has
        it.

        Args:
            deep: it takes ``deep`` blocks only, so nothing is written that only old states need.
        """
        update: dict[str, object] = {"checkpoint_interval": 0, "backup_schedule": "", "journal_retention": "none"}
        if deep:
            update |= {"history": "off", "max_reorg_depth": 0, "proof_window_blocks": 0}
        quick = self._settings.model_copy(update={"durability": "buffered", **update})
        return self._open(path, chain, create=True, settings=quick)

    def take(self, built: Path) -> None:
        """The closed store at ``built`` is the store; the one before it is in ``quarantine/``.

        After an error the store is the one before, or ``lock`` ends what was begun.
        """
        number = 1
        while self._fs.exists(self.quarantine / f"store-{number}"):
            number += 1
        names = {"incoming": built.name, "replaced": f"store-{number}"}
        try:
            self._fs.write_atomic(self._marker, json.dumps(names, sort_keys=True).encode("ascii"))
            self.finish()
        except HoldfastError:
            if self._fs.exists(built) and not self._fs.exists(self.quarantine / names["replaced"]):
                with contextlib.suppress(HoldfastError):
                    self._fs.remove(self._marker)
            raise

    def finish(self) -> None:
        """A replacement that was decided on is done, and one that was given up cannot come back."""
        if not self._fs.exists(self._marker):
            self._fs.sync_directory(self.data_dir)
            return
        try:
            names = json.loads(self._fs.read_bytes(self._marker, limit=_MARKER_BYTES_MAX))
            incoming, replaced = names["incoming"], names["replaced"]
            if not all(_NAME.fullmatch(name) for name in (incoming, replaced)):
                raise ValueError("not a plain name")
        except (ValueError, KeyError, TypeError, RecursionError, CorruptionError) as error:
            raise CorruptionError(
                "the note about a restore is malformed",
                path=self._marker,
                remedy=f"if '{self.store.name}' is missing, rename 'incoming-...' to it; then remove the note",
            ) from error
        if self._fs.exists(self.data_dir / incoming):
            if self._fs.exists(self.store):
                self._fs.make_directory(self.quarantine)
                self._fs.rename(self.store, self.quarantine / replaced)
                self._fs.sync_directory(self.quarantine)
            self._fs.rename(self.data_dir / incoming, self.store)
            self._fs.sync_directory(self.data_dir)
        self._fs.remove(self._marker)
        self._fs.sync_directory(self.data_dir)

    def _open(self, path: Path, chain: XaiChain, *, create: bool, settings: Settings | None = None) -> Store:
        url = str(path) if self._engine is None else f"{self._engine}:{path}"
        chosen = self._settings if settings is None else settings
        return open_attended(
            url,
            chain=chain,
            create=create,
            settings=chosen,
            indexes=[ADDRESS_INDEX],
            fs=self._fs,
            key=self._key,
        )
