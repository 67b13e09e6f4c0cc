"""Values that the store hands to the views, and how rows are read.

A *key* here is always an engine key: the two bytes of the table, then the key inside the table. A *value* is the
plain row; the checksum is added when rows reach the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from ..engine.api import Page
from .tables import Table

__all__ = [
    "Applied",
    "CachePolicy",
    "FrameLayers",
    "HistoryRecord",
    "HistoryRule",
    "Layer",
    "RowReader",
    "Rows",
    "ViewOptions",
]

CachePolicy = Literal["lru", "lfu", "fifo"]
"""Which entry leaves a full cache first: the one not read for longest, the one read least, or the oldest."""

Rows = dict[bytes, bytes | None]
"""Engine key -> new value; ``None`` deletes the row."""


class Layer(msgspec.Struct):
    """The rows of one block, or of the part of a frame that belongs to no block.

    ``block`` is (height, hash) if this layer makes that block canonical: its undo is then kept, a function of the
    block alone (the values of ``chain_rows``' keys before this layer). ``rows`` are log rows, never undone.
    """

    rows: Rows
    chain_rows: Rows = msgspec.field(default_factory=dict)
    block: tuple[int, bytes] | None = None


class FrameLayers(msgspec.Struct):
    """What one journal frame does to the views.

    ``state`` gives the encoded state of the chain after the frame, if a flush ends here; it is stored in the same batch
    as the applied seq.
    ``undo_floor``: blocks at or below this height are never undone again. ``undone``: undo of the blocks that this
    frame took out of the canonical chain; flushed so that a begun flush can be replayed after a crash.
    """

    seq: int
    layers: list[Layer]
    state: Callable[[], bytes]
    undo_floor: int
    undone: list[tuple[int, bytes, Rows]] = msgspec.field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Applied:
    """The record of the last complete flush: frame ``seq`` with ``digest`` and everything before it is in the engine.

    ``undo_floor``: blocks above it, up to that frame, have undo in the engine.
    ``flushing`` is the target of a flush that has begun and not ended, or ``None``; ``flushing_floor`` is the undo
    floor of that flush, ``None`` if it was begun without one (then the floor of its last frame).
    """

    seq: int
    digest: bytes
    state: bytes
    undo_floor: int
    flushing: int | None
    flushing_floor: int | None = None


@dataclass(frozen=True, slots=True)
class ViewOptions:
    """Bounds of the overlay and pace of the flush."""

    overlay_rows_max: int = 150_000
    overlay_bytes_max: int = 64 * 1024 * 1024
    flush_interval_seconds: float = 5.0
    pinned_bytes_max: int = 64 * 1024 * 1024
    paced: bool = True
    """The background flush pauses between slices, so that commits that wait for the device get the interpreter at once.
    Useless where commits do not wait."""
    undo_window: int = 0
    """Undo is kept for so many blocks more than may still be undone, for proofs at old heights."""
    cache_bytes: int = 0
    """Budget of the cache of state rows; 0: none."""
    cache_policy: CachePolicy = "lru"
    cache_stats: bool = True
    """Hits and misses are counted."""


class HistoryRule(Protocol):
    """Which changes are recorded, so that rows can be read at old heights."""

    @property
    def table(self) -> Table:
        """The chain table whose rows have a history: the state."""

    def wants(self, height: int) -> bool:
        """True if the changes of the canonical block at ``height`` are recorded. Asked when the block is flushed.

        A ``False`` makes everything below ``height`` unreadable, for good.
        """


@dataclass(frozen=True, slots=True)
class HistoryRecord:
    """Which heights the history in an engine can answer: from ``floor`` on, and some older ones."""

    floor: int
    every: int = 0
    """Heights below ``floor`` that are a multiple of it are kept; 0: none."""
    oldest: int = 0
    """Below it nothing is kept, whatever ``every`` says."""
    cleaned: int = 0
    """What was to be removed of the rows up to this height is removed."""

    def has(self, height: int) -> bool:
        """True if rows can be read at ``height``."""
        return height >= self.floor or (self.every > 0 and height >= self.oldest and height % self.every == 0)


class RowReader(Protocol):
    """Rows as of one version. Values have their checksum verified and removed."""

    def get(self, key: bytes) -> bytes | None:
        """The row, or ``None``. Raises ``CorruptionError`` for a bad checksum."""

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The rows in the order of ``keys``."""

    def floor(self, key: bytes, low: bytes) -> tuple[bytes, bytes] | None:
        """The row with the greatest key ``k``, ``low <= k <= key``."""

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False, limit: int = 1000) -> Page:
        """One page of rows with ``start <= key < stop``; ``Page.resume`` as in the engine contract."""
