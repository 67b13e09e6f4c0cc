"""A block being built on a parent."""

from __future__ import annotations

from dataclasses import dataclass

from ..types import BlockInfo

__all__ = ["Draft"]


@dataclass(frozen=True, slots=True)
class Draft:
    """Where the block will stand. ``parent`` is ``None`` for the first block of an empty store."""

    parent: BlockInfo | None
    height: int
