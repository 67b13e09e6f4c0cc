"""Backups and checkpoints as files of the original's format, below ``backups/`` and ``checkpoints/``.

Invariants:
    * Two backups never share a name, however quickly they are made; a file that is there is never replaced.
    * A file appears under its name only when it is whole and durable, was read again, and its checksum verified. Only
      then older ones are removed; the newest verified one is never removed.
    * A name from outside is one plain name of a file of that kind: no path leads out of the directory.
    * Which backup is the newest is what the files say of themselves, not when somebody last copied or touched them.
"""

from __future__ import annotations

import contextlib
import re
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from ..._fs import FileSystem, NewFile
from ...errors import CorruptionError, HoldfastError, InvalidInputError, MissingFile
from .document import FILE_BYTES_MAX, ChainDocument, package_chunks, read_document

__all__ = ["Archive", "JsonArchive"]

_BACKUP: Final = re.compile(r"blockchain_backup_[0-9A-Za-z_\-]{1,80}\.json")
_CHECKPOINT: Final = re.compile(r"checkpoint_([0-9]{1,19})(?:_([0-9]{1,6}))?\.json")
_TAIL_BYTES: Final = 4096
_HEIGHT: Final = re.compile(rb'"block_height": ([0-9]{1,19})')
_MOMENT: Final = re.compile(rb'"timestamp": ([0-9]{1,11}(?:\.[0-9]{1,20})?)')
_NUMBER_MAX: Final = 9999


class Archive(Protocol):
    """Where copies of a chain are kept. The product's backup repository and checkpoints can stand here too."""

    def create_backup(self, blocks: Iterable[Mapping[str, Any]], rest: Mapping[str, Any]) -> str:
        """A backup of this chain is durable and verified; its name."""

    def list_backups(self) -> list[dict[str, Any]]:
        """Rows of the original, newest first."""

    def load_backup(self, name: str) -> ChainDocument:
        """The backup, verified. Raises ``InvalidInputError`` for a bad name, ``CorruptionError`` for a bad file."""

    def prune_backups(self, keep: int) -> list[str]:
        """The oldest backups are gone but ``keep``, if the newest verifies; their names."""

    def create_checkpoint(self, blocks: Iterable[Mapping[str, Any]], rest: Mapping[str, Any], count: int) -> str:
        """A checkpoint of the first ``count`` blocks is durable and verified; its name."""

    def list_checkpoints(self) -> list[dict[str, Any]]:
        """Rows of the original, highest first."""

    def load_checkpoint(self, name: str) -> ChainDocument:
        """The checkpoint, verified."""


class _Found(NamedTuple):
    """A file of the archive: its name, when it was made, how long it is, how many blocks its metadata names."""

    moment: float
    name: str
    size: int
    height: int | None

    def row(self, height: int | str) -> dict[str, Any]:
        made = datetime.fromtimestamp(self.moment, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        size = self.size / (1024 * 1024)
        return {"filename": self.name, "timestamp": made, "size_mb": size, "block_height": height}


class JsonArchive:
    """The original's two directories below ``data_dir``."""

    def __init__(self, fs: FileSystem, data_dir: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._fs = fs
        self._data = data_dir
        self._clock = clock
        self.backups = data_dir / "backups"
        self.checkpoints = data_dir / "checkpoints"

    # -- backups -----------------------------------------------------------------------------------------------------

    def create_backup(self, blocks: Iterable[Mapping[str, Any]], rest: Mapping[str, Any]) -> str:
        """See ``Archive``. The name holds the time in UTC down to the microsecond, and a number where that is taken."""
        now = self._clock()
        stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%d_%H%M%S_%f")
        path = self._free(self.backups, f"blockchain_backup_{stamp}")
        return self._write(path, package_chunks(blocks, rest, now))

    def list_backups(self) -> list[dict[str, Any]]:
        """See ``Archive``. ``block_height`` is ``"unknown"`` where the file does not say it."""
        return [found.row("unknown" if found.height is None else found.height) for found in self._backups()]

    def load_backup(self, name: str) -> ChainDocument:
        """See ``Archive``."""
        return self._load(self.backups, name, _BACKUP, "backup")

    def prune_backups(self, keep: int) -> list[str]:
        """See ``Archive``. Files that do not verify count as old, but are kept while they are the only copy."""
        names = [found.name for found in self._backups()]
        if len(names) <= keep:
            return []
        newest = next((name for name in names if self._verifies(name)), None)
        if newest is None:
            return []
        removed = []
        for name in names[keep:]:
            if name != newest:
                self._fs.remove(self.backups / name)
                removed.append(name)
        if removed:
            self._fs.sync_directory(self.backups)
        return removed

    def _verifies(self, name: str) -> bool:
        try:
            return self.load_backup(name).verified
        except HoldfastError:
            return False

    def _backups(self) -> list[_Found]:
        """The newest first."""
        names = [name for name in self._fs.names(self.backups) if _BACKUP.fullmatch(name)]
        found = [self._look(self.backups / name) for name in names]
        return sorted((one for one in found if one is not None), reverse=True)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def create_checkpoint(self, blocks: Iterable[Mapping[str, Any]], rest: Mapping[str, Any], count: int) -> str:
        """See ``Archive``. A second checkpoint of as many blocks, after a reorganisation, gets a number."""
        if count < 1:
            raise InvalidInputError("a checkpoint holds at least one block", found=count)
        path = self._free(self.checkpoints, f"checkpoint_{count}")
        return self._write(path, package_chunks(blocks, rest, self._clock(), height=count))

    def list_checkpoints(self) -> list[dict[str, Any]]:
        """See ``Archive``."""
        rows = []
        for name in self._fs.names(self.checkpoints):
            match = _CHECKPOINT.fullmatch(name)
            found = self._look(self.checkpoints / name) if match is not None else None
            if match is not None and found is not None:
                rows.append((int(match[1]), int(match[2] or 1), found.row(int(match[1]))))
        return [row for _, _, row in sorted(rows, key=lambda found: found[:2], reverse=True)]

    def load_checkpoint(self, name: str) -> ChainDocument:
        """See ``Archive``."""
        return self._load(self.checkpoints, name, _CHECKPOINT, "checkpoint")

    # -- files -------------------------------------------------------------------------------------------------------

    def _free(self, directory: Path, stem: str) -> Path:
        """A name above all that begin so: one that was pruned does not come back."""
        self._fs.make_directory(directory)
        numbered = re.compile(re.escape(stem) + r"(?:_([0-9]{4}))?\.json")
        taken = [int(match[1] or 1) for name in self._fs.names(directory) if (match := numbered.fullmatch(name))]
        number = max(taken, default=0) + 1
        if number > _NUMBER_MAX:
            raise InvalidInputError("no free name for another file", path=directory / stem)
        return directory / (f"{stem}_{number:04d}.json" if number > 1 else f"{stem}.json")

    def _write(self, path: Path, chunks: Iterable[bytes]) -> str:
        with NewFile(self._fs, path) as file:
            for chunk in chunks:
                file.write(chunk)
            file.sync()
            document = read_document(self._fs.read_bytes(file.temporary, limit=FILE_BYTES_MAX), name=path)
            if not document.verified:
                raise CorruptionError("a file that was just written has no checksum", path=path)
            file.publish()
        return path.name

    def _load(self, directory: Path, name: str, form: re.Pattern[str], what: str) -> ChainDocument:
        if type(name) is not str or form.fullmatch(name) is None:
            raise InvalidInputError(f"this is not the name of a {what}", found=repr(name)[:120])
        path = directory / name
        if self._look(path) is None:
            raise MissingFile(f"there is no {what} of this name", path=path, remedy=f"list the {what}s that there are")
        return read_document(self._fs.read_bytes(path, limit=FILE_BYTES_MAX), name=path)

    def _look(self, path: Path) -> _Found | None:
        """What the metadata at the end of the file says, without reading the file; ``None`` if it is no file.

        The time is that of the file system where the file does not say it.
        """
        try:
            status = path.stat()
        except OSError:  # gone meanwhile
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        height, moment = None, status.st_mtime
        with contextlib.suppress(HoldfastError), contextlib.closing(self._fs.open(path, read_only=True)) as file:
            tail = file.pread(_TAIL_BYTES, max(0, file.size() - _TAIL_BYTES))
            at = tail.rfind(b'"metadata"')
            counted = _HEIGHT.search(tail, at) if at >= 0 else None
            if counted is not None:
                height = int(counted[1])
                made = _MOMENT.search(tail, at)
                moment = moment if made is None else float(made[1])
        return _Found(moment, path.name, status.st_size, height)
