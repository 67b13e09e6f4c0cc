"""Settings of the original: class attributes that programs set, and the variables that its document promised.

Invariants:
    * An interval or a count below 1 is refused; nothing is divided by zero or pruned to nothing.
    * Only the four variables named here are read; others with the prefix ``XAI_`` belong to other programs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from ..._fs import path_of
from ...errors import InvalidInputError

__all__ = ["BlockchainStorageConfig", "XaiSettings"]

_COUNT_MAX: Final = 1_000_000_000
_COUNTS: Final = ("CHECKPOINT_INTERVAL", "MAX_BACKUPS", "AUTO_SAVE_INTERVAL")


class BlockchainStorageConfig:
    """The original's defaults; a program may set them before it makes a ``BlockchainStorage``."""

    DATA_DIR: ClassVar[str | os.PathLike[str]] = "data"
    CHECKPOINT_INTERVAL: ClassVar[int] = 1000
    """Blocks between two checkpoints."""
    MAX_BACKUPS: ClassVar[int] = 10
    """Backup files that are kept."""
    AUTO_SAVE_INTERVAL: ClassVar[int] = 1
    """Blocks between two saves; those in between are reported as not durable."""


@dataclass(frozen=True, slots=True)
class XaiSettings:
    """The settings that hold: arguments before ``XAI_*`` variables before ``BlockchainStorageConfig``."""

    data_dir: Path
    checkpoint_interval: int = 1000
    max_backups: int = 10
    auto_save_interval: int = 1

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name.lower())
            if type(value) is not int or not 1 <= value <= _COUNT_MAX:
                raise InvalidInputError(
                    f"'{name}' must be a whole number from 1 to {_COUNT_MAX:,}", key=name, found=str(value)[:80]
                )

    @classmethod
    def load(
        cls, data_dir: str | os.PathLike[str] | None = None, *, environ: Mapping[str, str] | None = None
    ) -> XaiSettings:
        """The settings in force. Raises ``InvalidInputError`` for a value that is not allowed."""
        variables = os.environ if environ is None else environ
        counts = {
            name.lower(): _count(variables.get(f"XAI_{name}", getattr(BlockchainStorageConfig, name)), name)
            for name in _COUNTS
        }
        place = data_dir if data_dir is not None else variables.get("XAI_DATA_DIR") or BlockchainStorageConfig.DATA_DIR
        return cls(path_of(place, "the data directory"), **counts)


def _count(value: Any, name: str) -> Any:
    """Text of a whole number as that; anything else as it is, for ``XaiSettings`` to judge."""
    if not isinstance(value, str):
        return value
    if not (value.isascii() and value.isdecimal() and len(value) <= len(str(_COUNT_MAX))):
        raise InvalidInputError(f"'{name}' must be a whole number from 1", found=value[:80])
    return int(value)
