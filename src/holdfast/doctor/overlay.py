"""A directory as it would be: some files are others, some are gone. Nothing of it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .._fs import File, FileLock, FileSystem, Space
from ..errors import MissingFile, ReadOnlyError

__all__ = ["Overlay"]


class Overlay:
    """``files`` in the place of what is there, and ``gone`` not there; everything else as it is. Only read."""

    persistent = True

    def __init__(self, fs: FileSystem, files: Mapping[Path, Callable[[], File]], gone: set[Path]) -> None:
        self._fs = fs
        self._files = files
        self._gone = gone - set(files)

    def open(self, path: Path, *, create: bool = False, read_only: bool = False) -> File:
        if create or not read_only:
            raise ReadOnlyError("this directory is only thought of", path=path)
        if path in self._files:
            return self._files[path]()
        if path in self._gone:
            raise MissingFile("a file is missing", path=path)
        return self._fs.open(path, read_only=True)

    def exists(self, path: Path) -> bool:
        return path in self._files or (path not in self._gone and self._fs.exists(path))

    def names(self, directory: Path) -> list[str]:
        there = {name for name in self._fs.names(directory) if directory / name not in self._gone}
        return sorted(there | {path.name for path in self._files if path.parent == directory})

    def read_bytes(self, path: Path, *, limit: int) -> bytes:
        file = self.open(path, read_only=True)
        try:
            return file.pread(limit, 0)
        finally:
            file.close()

    def _refuse(self, path: Path) -> ReadOnlyError:
        return ReadOnlyError("this directory is only thought of", path=path)

    def make_directory(self, path: Path) -> None:
        raise self._refuse(path)

    def remove(self, path: Path) -> None:
        raise self._refuse(path)

    def remove_tree(self, path: Path) -> None:
        raise self._refuse(path)

    def rename(self, source: Path, target: Path) -> None:
        raise self._refuse(source)

    def sync_directory(self, path: Path) -> None:
        raise self._refuse(path)

    def write_atomic(self, path: Path, data: bytes) -> None:
        raise self._refuse(path)

    def lock(self, path: Path, owner: str) -> FileLock:
        raise self._refuse(path)

    def space(self, path: Path) -> Space:
        return self._fs.space(path)


if TYPE_CHECKING:
    _fs: type[FileSystem] = Overlay
