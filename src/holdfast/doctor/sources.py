"""Where lost pieces of a store may come from: its backups, and its checkpoints. Nothing of either is changed.

Invariants:
    * A repository that cannot be read is not an error here: it is a reason why something cannot be repaired.
    * Only backups of the same store count; every byte that is taken from one is checked against what the journal asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .._fs import Buffer, File, FileSystem
from ..backup.keys import BackupKey, usual_key
from ..backup.manifest import BaseFile, Manifest, SegmentFile
from ..backup.pieces import PieceFile, chunks_of
from ..backup.place import repository_place
from ..backup.repository import BackupRepository, open_repository
from ..config import Settings
from ..errors import BackupNotFound, HoldfastError, StateError
from ..state.checkpoint import CHECKPOINTS_NAME, CheckpointDirectory, CheckpointInfo
from ..state.sealing import FileKeys

__all__ = ["Backups", "BytesFile", "PatchedFile", "TailFile", "checkpoints_of", "find_backups"]


@dataclass(slots=True)
class Backups:
    """The backups of one store, newest first; or why none can be used."""

    place: str
    repository: BackupRepository | None = None
    forms: list[Manifest] = field(default_factory=list)
    damaged: int = 0
    """Backups whose manifest cannot be read."""
    foreign: int = 0
    """Backups of other stores."""
    problem: HoldfastError | None = None

    def entries(self, number: int) -> Iterator[tuple[Manifest, SegmentFile, str | None]]:
        """Each backup's copy of segment ``number``, and the digest (hex) of the segment before it, if it names that."""
        for form in self.forms:
            index = number - form.segments[0].number
            if 0 <= index < len(form.segments):
                yield form, form.segments[index], form.segments[index - 1].digest if index else None

    def open(self, path: Path, entry: SegmentFile | BaseFile) -> File:
        """A file of a backup, to be read from its start. What is damaged raises ``BackupDamaged`` when it is read."""
        assert self.repository is not None
        return PieceFile(path, entry.length, chunks_of(self.repository, entry, None, 0))

    def verified_us(self, form: Manifest) -> int | None:
        """When the backup was verified in full, microseconds since 1970."""
        assert self.repository is not None
        return self.repository.verified_us(form.name, self.repository.manifest_and_digest(form.name)[1])


class _ReadFile:
    """A file that is only read."""

    path: Path

    def pwrite(self, data: Buffer, offset: int) -> None:
        raise StateError("this is only read", path=self.path)

    def truncate(self, length: int) -> None:
        raise StateError("this is only read", path=self.path)

    def sync(self) -> None:
        raise StateError("this is only read", path=self.path)


class PatchedFile(_ReadFile):
    """``first`` up to ``split``, and ``second`` from there on. Only read."""

    def __init__(self, first: File, second: File, split: int) -> None:
        self.path = second.path
        self._first = first
        self._second = second
        self._split = split

    def pread(self, length: int, offset: int) -> bytes:
        before = self._first.pread(min(length, max(0, self._split - offset)), offset) if offset < self._split else b""
        if offset + len(before) < self._split:
            return before
        return before + self._second.pread(length - len(before), offset + len(before))

    def size(self) -> int:
        return max(self._split, self._second.size())

    def close(self) -> None:
        self._first.close()
        self._second.close()


class TailFile(_ReadFile):
    """The first ``end`` bytes of ``first``, and ``tail`` behind them."""

    def __init__(self, first: File, end: int, tail: bytes) -> None:
        self.path = first.path
        self._first = first
        self._end = end
        self._tail = tail

    def pread(self, length: int, offset: int) -> bytes:
        before = self._first.pread(min(length, max(0, self._end - offset)), offset) if offset < self._end else b""
        start = offset + len(before) - self._end
        return before + self._tail[start : start + length - len(before)] if start >= 0 else before

    def size(self) -> int:
        return self._end + len(self._tail)

    def close(self) -> None:
        self._first.close()


class BytesFile(_ReadFile):
    """A file that holds ``data``."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self._data = data

    def pread(self, length: int, offset: int) -> bytes:
        return self._data[offset : offset + length]

    def size(self) -> int:
        return len(self._data)

    def close(self) -> None:
        """Nothing happens: nothing is open."""


if TYPE_CHECKING:
    _bytes: type[File] = BytesFile
    _patched: type[File] = PatchedFile
    _tail: type[File] = TailFile


def find_backups(
    fs: FileSystem,
    root: Path,
    settings: Settings,
    store_id: bytes | None,
    *,
    place: str | None = None,
    key: BackupKey | None = None,
) -> Backups:
    """The backups of the store ``store_id`` in its repository, or at ``place``; all of them without an id."""
    where = place if place is not None else repository_place(settings.backup_target, root)
    found = Backups(str(where))
    if where is None:
        return found
    try:
        found.repository = open_repository(where, key=key or usual_key(settings, root), fs=fs)
        names = found.repository.names()
        forms = list(found.repository.readable())
    except BackupNotFound as error:
        found.problem = None if place is None and not settings.backup_target else error
        found.repository = None
        return found
    except HoldfastError as error:
        found.problem = error
        found.repository = None
        return found
    found.damaged = len(names) - len(forms)
    found.forms = [form for form in forms if store_id is None or form.store_id == store_id.hex()]
    found.foreign = len(forms) - len(found.forms)
    return found


def checkpoints_of(fs: FileSystem, root: Path, keys: FileKeys) -> tuple[CheckpointDirectory, list[CheckpointInfo]]:
    """The checkpoints of the store at ``root``, the highest first; their manifests were read, their chunks not."""
    directory = CheckpointDirectory(fs, root / CHECKPOINTS_NAME, keys=keys)
    return directory, [directory.info(name) for name in directory.names()]
