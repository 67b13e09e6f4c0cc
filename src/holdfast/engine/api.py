"""The engine contract: an ordered byte map.

Invariants every engine keeps (``holdfast.testing.engine_contract`` proves them):
    * A batch is applied completely or not at all, over the whole map.
    * After any crash the map equals its first k batches for some k; after ``apply(sync=True)`` or ``sync()`` returned,
      k is at least the number of batches applied so far.
    * Order is bytewise; an empty value is a value, a missing key is ``None``.
    * A scan never ends early: damage raises ``CorruptionError``.
    * No iterator, cursor or transaction escapes a call, except inside ``snapshot()``.
    * Reads may come from any thread; ``apply`` from one thread at a time (the engine enforces it with a lock).
    * Any call after ``close`` raises ``ClosedError``; after a failed write or sync, ``PoisonedError``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

__all__ = ["Batch", "Capabilities", "Engine", "EngineStats", "Page", "Reader", "Scannable", "iter_rows"]

Row = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a scan: rows in scan order, and where to go on."""

    rows: list[Row]
    resume: bytes | None
    """``None`` when the scan is finished. Forward: pass it as the next ``start`` (inclusive). Reverse: as the next
    ``stop`` (exclusive)."""


class Scannable(Protocol):
    """Whatever can be scanned page by page: an engine, or rows that are laid over one."""

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False, limit: int = 1000) -> Page:
        """One page of rows with ``start <= key < stop``."""


def iter_rows(
    source: Scannable, start: bytes, stop: bytes, *, reverse: bool = False, page_rows: int = 256
) -> Iterator[Row]:
    """Every row with ``start <= key < stop`` in key order, or in the reverse; each page is read when its turn comes."""
    while True:
        page = source.scan(start, stop, reverse=reverse, limit=page_rows)
        yield from page.rows
        if page.resume is None:
            return
        start, stop = (start, page.resume) if reverse else (page.resume, stop)


@dataclass(slots=True)
class Batch:
    """One atomic change. ``delete_ranges`` (low inclusive, high exclusive) act first, then ``rows``.

    A row value of ``None`` deletes the key. A batch is a value: an engine neither keeps nor changes it. Every engine
    writes a large batch several times faster when its keys come in order.
    """

    rows: Mapping[bytes, bytes | None] = field(default_factory=dict)
    delete_ranges: Sequence[tuple[bytes, bytes]] = ()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do, as data; callers look here and never at a name."""

    name: str
    persistent: bool
    key_bytes_max: int
    value_bytes_max: int
    write_holds_gil: bool
    always_sync: bool
    """True if every ``apply`` is durable whatever ``sync`` says (LMDB, SQLite)."""
    checksums: bool
    """True if the engine itself notices flipped bits in its files (RocksDB)."""
    read_only_processes: bool
    """True if another process may open it read-only while a writer has it open."""
    checkpoint: bool


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Size on disk (bytes; 0 for memory) and the engine's own figures as text or numbers."""

    size_bytes: int
    details: Mapping[str, int | float | str] = field(default_factory=dict)


class Reader(Protocol):
    """The map at one moment, or as of now."""

    def get(self, key: bytes) -> bytes | None:
        """The value, or ``None`` if the key is absent."""

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values in the order of ``keys``; duplicates allowed."""

    def floor(self, key: bytes, low: bytes = b"") -> Row | None:
        """The row with the greatest key ``k``, ``low <= k <= key``, or ``None``."""

    def ceiling(self, key: bytes, high: bytes) -> Row | None:
        """The row with the smallest key ``k``, ``key <= k < high``, or ``None``: quicker than a page of one row."""

    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False, limit: int = 1000) -> Page:
        """Rows with ``start <= key < stop`` in key order (or the reverse), at most ``limit`` (1..100,000) of them."""


class Engine(Reader, Protocol):
    """An ordered byte map with atomic batches."""

    capabilities: Capabilities

    def apply(self, batch: Batch, *, sync: bool) -> None:
        """All of ``batch`` is visible; with ``sync`` it and every earlier batch are durable."""

    def sync(self) -> None:
        """Every batch applied so far is durable."""

    def snapshot(self) -> AbstractContextManager[Reader]:
        """A reader of this moment, for use inside a ``with`` by one thread; keep it short."""

    def checkpoint(self, destination: Path) -> None:
        """``destination`` (must not exist) is a consistent copy that the same engine can open."""

    def refresh(self) -> None:
        """Only for an engine opened read-only: later reads see what the writing process has applied by now."""

    def reclaim(self, low: bytes, high: bytes) -> None:
        """Space of rows removed in ``low <= key < high`` is given back to the file system, where the engine can.

        May take as long as rewriting what is left; reads and writes go on. LMDB keeps the pages and uses them again.
        """

    def stats(self) -> EngineStats:
        """Size and figures; cheap enough for a status page."""

    def close(self) -> None:
        """Every handle is released and the files can be opened again at once; twice is harmless."""
