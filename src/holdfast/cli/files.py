"""Files that commands read and write beside a store: bounded when read, never overwritten."""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import InvalidInputError

__all__ = ["check_new", "read_limited", "write_new"]


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
    if path.exists() or path.is_symlink():
        raise InvalidInputError("the file is there already", path=path, remedy="name a new file")
    if not path.absolute().parent.is_dir():
        raise InvalidInputError("the directory of the file does not exist", path=path, remedy="make it first")


def write_new(path: Path, data: bytes) -> None:
    """The new file holds ``data``. One that is there already is not touched."""
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError as error:
        raise InvalidInputError("the file is there already", path=path, remedy="name a new file") from error
    except OSError as error:
        raise InvalidInputError(f"the file cannot be written: {error.strerror}", path=path) from error
