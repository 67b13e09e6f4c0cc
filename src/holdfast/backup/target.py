"""Where the objects of a repository lie: a few operations on names, and a directory that has them.

Invariants:
    * An object is there whole or not at all, after any crash; what was written is durable once ``flush`` returned, and
      so is what ``keep`` was told of, whose writer may have died before it had synced a name.
    * Names are those of docs/FORMAT.md, section 10, and nothing else is read, written or removed.
    * While a chunk may have a name that is not synced, the file ``unsynced`` is there, durably: who finds it syncs the
      names of all chunks before relying on any, whoever does not relies on those that a manifest names.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .._fs import FileSystem, RealFileSystem, open_foreign, path_of
from ..errors import (
    BackupDamaged,
    HoldfastError,
    InvalidInputError,
    MissingFile,
    OutOfSpace,
    RepositoryLocked,
    StoreLocked,
)
from ..store.opening import make_directories

__all__ = [
    "BACKUPS",
    "CHUNKS",
    "NAME_PATTERN",
    "REPOSITORY_NAME",
    "DirectoryTarget",
    "Target",
    "check_object_name",
    "is_object_name",
]

REPOSITORY_NAME = "repository.json"
CHUNKS = "chunks/"
BACKUPS = "backups/"
NAME_PATTERN = r"[0-9]{8}T[0-9]{12}Z-[0-9a-f]{8}"

_LOCK = "lock"
_UNSYNCED = "unsynced"
_TEMPORARY = ".tmp"
_NO_ROOM = (
    "free some space on the disk of the repository ('holdfast backup prune' removes old backups), then run the same "
    "command again: chunks that were written are kept"
)
_OBJECT = re.compile(
    rf"repository\.json|chunks/([0-9a-f]{{2}})/(\1[0-9a-f]{{62}})|backups/{NAME_PATTERN}\.(manifest|verified)", re.ASCII
)
_SHELF = re.compile(r"[0-9a-f]{2}", re.ASCII)


def check_object_name(name: str) -> str:
    """``name``, which is that of an object. Raises ``InvalidInputError``."""
    if _OBJECT.fullmatch(name) is None:
        raise InvalidInputError("this is not the name of an object of a repository", name=name)
    return name


def is_object_name(name: str) -> bool:
    """True if ``name`` is that of an object of a repository."""
    return _OBJECT.fullmatch(name) is not None


class Target(Protocol):
    """A place for objects. Every method may be called from any thread; those that change need the lock."""

    place: str
    """What people call it, for messages."""

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Name and length of each object whose name begins with ``prefix``, ``CHUNKS`` or ``BACKUPS``, in no order."""

    def size(self, name: str) -> int | None:
        """Length of the object in bytes, ``None`` if there is none."""

    def read(self, name: str, *, limit: int) -> bytes:
        """The whole object. Raises ``MissingFile``, or ``BackupDamaged`` if it is longer than ``limit`` bytes."""

    def write(self, name: str, data: bytes) -> None:
        """The object is there with ``data``, whole or not at all; durable after ``flush``."""

    def delete(self, name: str) -> None:
        """The object is gone, durably after ``flush``; no error if it was not there."""

    def keep(self, name: str) -> None:
        """The object, which is there, is durable after ``flush``, whoever wrote it."""

    def flush(self) -> None:
        """Everything written, kept and deleted before is durable."""

    def sweep(self) -> int:
        """Remains of writes that did not end are gone; how many there were. The lock is held."""

    def lock(self) -> AbstractContextManager[None]:
        """Held while objects are added or removed; given back by the death of its holder.

        Raises ``RepositoryLocked`` at once if somebody else has it.
        """


class DirectoryTarget:
    """Objects as files below a directory."""

    def __init__(self, path: str | os.PathLike[str], *, fs: FileSystem | None = None) -> None:
        self.path = path_of(path, "a backup repository").absolute()
        self.place = str(self.path)
        self._fs = fs or RealFileSystem()
        self._mutex = threading.Lock()
        self._dirty: set[Path] = set()
        self._made: set[Path] = set()
        self._writing = 0
        self._marked = self._suspect = self._all_dirty = False
        """That ``unsynced`` is there by us; by a run that died; that every directory of chunks is to be synced."""

    def _at(self, name: str) -> Path:
        return self.path / check_object_name(name)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        for _, name in self._objects(prefix):
            try:
                size = self.size(name)
            except BackupDamaged:
                size = 0  # a link or a pipe: it is there, and nothing of it is read
            if size is not None:
                yield name, size

    def _objects(self, prefix: str) -> Iterator[tuple[Path, str]]:
        """Directory and name of the objects below ``prefix``."""
        for directory in self._directories(prefix):
            start = directory.relative_to(self.path).as_posix()
            for name in self._fs.names(directory):
                if _OBJECT.fullmatch(f"{start}/{name}") is not None:
                    yield directory, f"{start}/{name}"

    def _directories(self, prefix: str) -> Iterator[Path]:
        place = self.path / prefix
        if prefix == BACKUPS:
            yield place
            return
        for name in self._fs.names(place):
            if _SHELF.fullmatch(name) is not None:
                yield place / name

    def size(self, name: str) -> int | None:
        try:
            file = open_foreign(self._fs, self._at(name))
        except MissingFile:
            return None
        except InvalidInputError as error:
            raise BackupDamaged(f"an object is no regular file: {error.message}", path=self._at(name)) from error
        try:
            return file.size()
        finally:
            file.close()

    def read(self, name: str, *, limit: int) -> bytes:
        try:
            file = open_foreign(self._fs, self._at(name))
        except InvalidInputError as error:
            raise BackupDamaged(f"an object is no regular file: {error.message}", path=self._at(name)) from error
        try:
            data = file.pread(limit + 1, 0)
        finally:
            file.close()
        if len(data) > limit:
            raise BackupDamaged("an object is longer than it can be", path=self._at(name), limit=limit)
        return data

    def write(self, name: str, data: bytes) -> None:
        path = self._at(name)
        self._make(path.parent)
        temporary = path.with_name(path.name + _TEMPORARY)
        self._fs.remove(temporary)
        try:
            with self._marking(name):
                file = self._fs.open(temporary, create=True)
                try:
                    file.pwrite(data, 0)
                    file.sync()
                finally:
                    file.close()
                self._fs.rename(temporary, path)
        except HoldfastError as error:
            with contextlib.suppress(HoldfastError):  # the first error is the one to tell
                self._fs.remove(temporary)
            if isinstance(error, OutOfSpace):
                error.remedy = _NO_ROOM
            raise

    @contextlib.contextmanager
    def _marking(self, name: str) -> Iterator[None]:
        """The object gets its name in here."""
        with self._mutex:
            if not self._marked and name.startswith(CHUNKS):
                if not self._fs.exists(self.path / _UNSYNCED):
                    self._fs.open(self.path / _UNSYNCED, create=True).close()
                self._fs.sync_directory(self.path)
                self._marked = True
            self._writing += 1
        try:
            yield
        finally:
            with self._mutex:
                self._writing -= 1
                self._dirty.add(self._at(name).parent)

    def _make(self, directory: Path) -> None:
        """``directory`` is there, and so are those above it."""
        with self._mutex:
            if directory in self._made:
                return
            make_directories(self._fs, directory)
            self._made.add(directory)

    def delete(self, name: str) -> None:
        path = self._at(name)
        self._fs.remove(path)
        with self._mutex:
            self._dirty.add(path.parent)

    def keep(self, name: str) -> None:
        with self._mutex:
            if not name.startswith(CHUNKS):
                self._dirty.add(self._at(name).parent)
            elif self._suspect and not self._all_dirty:
                self._dirty |= set(self._directories(CHUNKS))
                self._all_dirty = True

    def flush(self) -> None:
        with self._mutex:
            for directory in sorted(self._dirty):
                if self._fs.exists(directory):
                    self._fs.sync_directory(directory)
            self._dirty.clear()
            known = self._all_dirty or (self._marked and not self._suspect)
            if known and not self._writing:
                self._fs.remove(self.path / _UNSYNCED)  # it may come back, and is believed then
                self._marked = self._suspect = self._all_dirty = False

    def sweep(self) -> int:
        found = 0
        for directory in (self.path, self.path / BACKUPS, *self._directories(CHUNKS)):
            for name in self._fs.names(directory):
                if name.endswith(_TEMPORARY) and self._is_object(directory / name.removesuffix(_TEMPORARY)):
                    self._fs.remove(directory / name)
                    found += 1
        return found

    def _is_object(self, path: Path) -> bool:
        return _OBJECT.fullmatch(path.relative_to(self.path).as_posix()) is not None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        self._make(self.path)
        try:
            held = self._fs.lock(self.path / _LOCK, f"{os.getpid()} {socket.gethostname()}")
        except StoreLocked as error:
            raise RepositoryLocked(
                "another backup, copy or prune is at work in the repository",
                path=self.path,
                holder=error.context.get("holder"),
            ) from None
        try:
            with self._mutex:
                self._marked, self._suspect = False, self._fs.exists(self.path / _UNSYNCED)
            yield
        finally:
            held.release()

    def __repr__(self) -> str:
        return f"DirectoryTarget({self.place!r})"


if TYPE_CHECKING:
    _directory: type[Target] = DirectoryTarget
