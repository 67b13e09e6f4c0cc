"""A commit that is appended and not yet known to be durable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..types import BlockInfo

__all__ = ["Ticket"]


@dataclass(frozen=True, slots=True)
class Ticket:
    """``block`` is appended as journal frame ``seq``; later commits build on it, readers do not see it yet."""

    block: BlockInfo
    seq: int
    _sync: Callable[[int | None], int]
    _durable: Callable[[], int]

    @property
    def durable(self) -> bool:
        """True once the frame survives a power cut."""
        return self._durable() >= self.seq

    def wait(self) -> BlockInfo:
        """The block, durable. Raises ``PoisonedError`` if it was lost."""
        self._sync(self.seq)
        return self.block
