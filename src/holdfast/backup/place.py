"""Where the backups of a store are: what the setting ``backup_target`` means.

Invariant: a place is a directory or a URL; nothing of it is read or made here.
"""

from __future__ import annotations

import os
from pathlib import Path

from .._fs import FileSystem
from .target import DirectoryTarget, Target

__all__ = ["DEFAULT_DIRECTORY", "is_url", "repository_place", "target_at"]

DEFAULT_DIRECTORY = "backups"
"""Name of the repository below the data directory, where nothing else is set."""


def is_url(place: str | os.PathLike[str]) -> bool:
    """True if ``place`` names an object store and not a directory."""
    return isinstance(place, str) and "://" in place


def repository_place(backup_target: str, root: str | os.PathLike[str] | None) -> str | None:
    """Directory or URL of the repository of the store at ``root``, as the setting ``backup_target`` says.

    Empty is ``backups`` below ``root``, and so is a relative directory. ``None`` if it is one and ``root`` is ``None``.
    """
    if is_url(backup_target):
        return backup_target
    path = Path(backup_target or DEFAULT_DIRECTORY)
    if root is None:
        return str(path) if path.is_absolute() else None
    return str(Path(root) / path)


def target_at(place: str | os.PathLike[str], *, fs: FileSystem | None = None) -> Target:
    """The target at a directory or URL. Raises ``InvalidInputError`` if the place or the extra for it is no such."""
    if not is_url(place):
        return DirectoryTarget(place, fs=fs)
    from .objects import ObjectTarget

    return ObjectTarget(str(place))
