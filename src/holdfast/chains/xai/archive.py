"""Backups and checkpoints as files of the original's format, below ``backups/`` and ``checkpoints/``.

Invariants:
    * Two backups never share a name, however quickly they are made; a file that is there is never replaced.
    * A file appears under its name only when it is whole and durable, was read again, and its checksum verified. Only
      then older ones are removed; the newest verified one is never removed.
    * A name from outside is one plain name of a file of that kind: no path leads out of the directory.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

from ..._fs import FileSystem, NewFile
from ...errors import CorruptionError, HoldfastError, InvalidInputError, MissingFile
from .document import FILE_BYTES_MAX, ChainDocument, package_chunks, read_document

__all__ = ["Archive", "JsonArchive"]

_BACKUP: Final = re.compile(r"blockchain_backup_[0-9A-Za-z_\-]{1,80}\.json")
_CHECKPOINT: Final = re.compile(r"checkpoint_([0-9]{1,19})(_[0-9]{1,6})?\.json")
_TAIL_BYTES: Final = 4096
_HEIGHT: Final = re.compile(rb'"block_height": ([0-9]{1,19})')
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
        rows = []
        for name in self._backup_names():
            path = self.backups / name
            found = self._facts(path)
            if found is not None:
                rows.append({"filename": name, **found, "block_height": self._height(path)})
        return rows

    def load_backup(self, name: str) -> ChainDocument:
        """See ``Archive``."""
        return self._load(self.backups, name, _BACKUP, "backup")

    def prune_backups(self, keep: int) -> list[str]:
        """See ``Archive``. Files that do not verify count as old, but are kept while they are the only copy."""
        names = self._backup_names()
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

    def _backup_names(self) -> list[str]:
        names = [name for name in self._fs.names(self.backups) if _BACKUP.fullmatch(name)]
        return sorted(names, key=lambda name: (self._time(self.backups / name), name), reverse=True)

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
            facts = self._facts(self.checkpoints / name) if match is not None else None
            if match is not None and facts is not None:
                rows.append({"filename": name, "block_height": int(match[1]), **facts})
        newest = {row["filename"]: self._time(self.checkpoints / row["filename"]) for row in rows}
        return sorted(rows, key=lambda row: (row["block_height"], newest[row["filename"]]), reverse=True)

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
        if not self._fs.exists(path):
            raise MissingFile(f"there is no {what} of this name", path=path, remedy=f"list the {what}s that there are")
        return read_document(self._fs.read_bytes(path, limit=FILE_BYTES_MAX), name=path)

    def _time(self, path: Path) -> int:
        try:
            return path.stat().st_mtime_ns
        except OSError:
            return 0

    def _facts(self, path: Path) -> dict[str, Any] | None:
        try:
            found = path.stat()
        except OSError:  # gone meanwhile
            return None
        moment = datetime.fromtimestamp(found.st_mtime, UTC).astimezone()
        return {"timestamp": moment.strftime("%Y-%m-%d %H:%M:%S"), "size_mb": found.st_size / (1024 * 1024)}

    def _height(self, path: Path) -> int | str:
        """What the metadata at the end of the file says, without reading the file."""
        file = self._fs.open(path, read_only=True)
        try:
            tail = file.pread(_TAIL_BYTES, max(0, file.size() - _TAIL_BYTES))
        finally:
            file.close()
        at = tail.rfind(b'"metadata"')
        match = _HEIGHT.search(tail, at) if at >= 0 else None
        return int(match[1]) if match is not None else "unknown"
