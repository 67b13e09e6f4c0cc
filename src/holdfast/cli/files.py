"""Files that commands read and write beside a store: bounded when read, never overwritten."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .._fs import RealFileSystem, translate_os_error
from ..errors import HoldfastError, InvalidInputError, MissingFile

__all__ = ["check_new", "new_file", "read_limited", "write_new"]


def read_limited(path: Path | None, *, limit: int) -> bytes:
    """The bytes of the file, or of stdin for ``None`` and ``-``. Raises ``InvalidInputError`` above ``limit`` bytes."""
    try:
        if path is None or str(path) == "-":
            name, data = "stdin", sys.stdin.buffer.read(limit + 1)
        else:
            name = str(path)
            with path.open("rb") as file:
                data = file.read(limit + 1)
    except OSError as error:
        raise InvalidInputError(f"the file cannot be read: {error.strerror}", path=path) from error
    if len(data) > limit:
        raise InvalidInputError("the file is too long", path=name, limit=limit)
    return data


def check_new(path: Path) -> None:
    """Nothing happens if there is no such file yet: looked at before the work, so that it is not in vain."""
    with _translated(path):
        if path.exists() or path.is_symlink():
            raise InvalidInputError("the file is there already", path=path, remedy="name a new file")
        if not path.absolute().parent.is_dir():
            raise InvalidInputError("the directory of the file does not exist", path=path, remedy="make it first")


def write_new(path: Path, data: bytes) -> None:
    """The new file holds ``data``; see ``new_file``."""
    with new_file(path) as file:
        file.write(data)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """The file at ``path``, made and to be written. One that is there already is not touched.

    Whatever is raised before it is closed removes it. Raises ``InvalidInputError`` for a path that cannot be, and
    ``ReadOnlyError``, ``OutOfSpace`` or ``DeviceError`` for what the file system says.
    """
    check_new(path)
    with _translated(path):
        file = path.open("xb")
    try:
        with _translated(path), file:
            yield file
    except BaseException:
        with suppress(HoldfastError):  # the first error is the one to tell
            RealFileSystem().remove(path)
        raise


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise InvalidInputError("the file is there already", path=path, remedy="name a new file") from error
    except OSError as error:
        typed = translate_os_error(error, path)
        if isinstance(typed, MissingFile):  # of a store that would be corruption
            typed = InvalidInputError("the file cannot be made there", path=path)
        if typed.exit_code != InvalidInputError.exit_code:
            typed.remedy = "name a file where there is space and permission to write; no part of this one was kept"
        raise typed from error
