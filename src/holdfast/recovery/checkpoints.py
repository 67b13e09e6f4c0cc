"""Checkpoints in the eyes of ``verify``: how many there are, and whether their manifests can be used.

Their chunks are read by ``holdfast checkpoint verify``: nothing of the store depends on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from .._fs import FileSystem
from ..errors import CorruptionError, FormatTooNew, HoldfastError, KeyRejected, KeyRequired
from ..state.checkpoint import CHECKPOINTS_NAME, CheckpointDirectory
from ..state.sealing import FileKeys

__all__ = ["checkpoint_problems", "count_checkpoints"]


def count_checkpoints(fs: FileSystem, root: Path) -> int:
    """How many checkpoints the store at ``root`` has."""
    return len(CheckpointDirectory(fs, root / CHECKPOINTS_NAME).names())


def checkpoint_problems(
    fs: FileSystem, root: Path, note: Callable[[str], object], keys: FileKeys
) -> Iterator[HoldfastError | None]:
    """For each checkpoint what is wrong with its manifest, or ``None``.

    What only a newer version reads is noted, and what another key opens, or any if none was given.
    """
    directory = CheckpointDirectory(fs, root / CHECKPOINTS_NAME, keys=keys)
    for name in directory.names():
        problem = directory.info(name).problem
        if isinstance(problem, FormatTooNew):
            note(f"the checkpoint {name} is of a newer format")
            problem = None
        if isinstance(problem, (KeyRequired, KeyRejected)):
            note(f"the checkpoint {name} was not looked at: {problem.message}")
            problem = None
        if problem is None:
            yield None
            continue
        yield CorruptionError(
            f"a checkpoint cannot be used: {problem.message}",
            path=directory.path / f"{name}.manifest",
            remedy="the store does not need it: 'holdfast checkpoint create' makes a new one, "
            "and 'holdfast checkpoint prune' removes this one then",
        )
