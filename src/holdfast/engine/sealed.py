"""The engine of an encrypted store: values are sealed on their way in and opened on their way out.

    |<---- number of its batch ---->|<- number in it ->|<-- ciphertext -->|<-- tag -->|
    | random                   (16) | u32          (4) | the value        | (16)      |

Invariants:
    * No value reaches the engine below in plain text; keys do (docs/FORMAT.md, section 7.1.1).
    * A value opens only under the key that it was written with: a row that was moved is corruption.
    * Everything else is as the engine below has it: order, atomicity, durability, errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .._seal import ROW_OVERHEAD_BYTES, RowCipher
from ..errors import CorruptionError, LimitExceeded, Recovery
from ..events import corruption_found
from ..limits import ROW_VALUE_BYTES_MAX
from .api import Batch, Engine, EngineStats, Page, Reader, Row

__all__ = ["SealedEngine", "sealed_engine"]

_VALUE_BYTES_MAX = ROW_VALUE_BYTES_MAX - ROW_OVERHEAD_BYTES


class _SealedReader:
    """A reader whose values are opened."""

    def __init__(self, inner: Reader, cipher: RowCipher) -> None:
        self._inner = inner
        self._cipher = cipher

    def _opened(self, key: bytes, stored: bytes) -> bytes:
        value = self._cipher.open(key, stored)
        if value is None:
            error = CorruptionError(
                "a row of the views was not sealed for its place", recovery=Recovery.REBUILD, key=key, found=len(stored)
            )
            corruption_found(error)
            raise error
        return value

    def get(self, key: bytes) -> bytes | None:
        """The value, or ``None`` if the key is absent."""
        stored = self._inner.get(key)
        return None if stored is None else self._opened(key, stored)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values in the order of ``keys``; duplicates allowed."""
        opened = self._opened
        found = self._inner.get_many(keys)
        return [None if stored is None else opened(key, stored) for key, stored in zip(keys, found, strict=True)]

    def floor(self, key: bytes, low: bytes = b"") -> Row | None:
        """The row with the greatest key ``k``, ``low <= k <= key``, or ``None``."""
        row = self._inner.floor(key, low)
        return None if row is None else (row[0], self._opened(*row))

    def ceiling(self, key: bytes, high: bytes) -> Row | None:
        """The row with the smallest key ``k``, ``key <= k < high``, or ``None``."""
        row = self._inner.ceiling(key, high)
        return None if row is None else (row[0], self._opened(*row))

    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False, limit: int = 1000) -> Page:
        """Rows with ``start <= key < stop`` in key order (or the reverse), at most ``limit`` (1..100,000) of them."""
        page = self._inner.scan(start, stop, reverse=reverse, limit=limit)
        opened = self._opened
        return Page([(key, opened(key, stored)) for key, stored in page.rows], page.resume)


class SealedEngine(_SealedReader):
    """An engine whose values are encrypted at rest."""

    def __init__(self, inner: Engine, cipher: RowCipher) -> None:
        super().__init__(inner, cipher)
        self._engine = inner
        self.capabilities = replace(
            inner.capabilities, value_bytes_max=inner.capabilities.value_bytes_max - ROW_OVERHEAD_BYTES
        )

    def apply(self, batch: Batch, *, sync: bool) -> None:
        """All of ``batch`` is visible; with ``sync`` it and every earlier batch are durable."""
        seal = self._cipher.batch()
        rows: dict[bytes, bytes | None] = {}
        for key, value in batch.rows.items():
            if value is not None and len(value) > _VALUE_BYTES_MAX:
                raise LimitExceeded("an engine value is too long", found=len(value), limit=_VALUE_BYTES_MAX)
            rows[key] = value if value is None else seal(key, value)
        self._engine.apply(Batch(rows, batch.delete_ranges), sync=sync)

    def sync(self) -> None:
        """Every batch applied so far is durable."""
        self._engine.sync()

    def snapshot(self) -> AbstractContextManager[Reader]:
        """A reader of this moment, for use inside a ``with`` by one thread; keep it short."""
        return self._snapshot()

    @contextmanager
    def _snapshot(self) -> Iterator[Reader]:
        with self._engine.snapshot() as reader:
            yield _SealedReader(reader, self._cipher)

    def checkpoint(self, destination: Path) -> None:
        """``destination`` is a consistent copy, values sealed."""
        self._engine.checkpoint(destination)

    def refresh(self) -> None:
        """Later reads see what the writing process has applied by now."""
        self._engine.refresh()

    def reclaim(self, low: bytes, high: bytes) -> None:
        """Space of rows removed in ``low <= key < high`` is given back to the file system, where the engine can."""
        self._engine.reclaim(low, high)

    def stats(self) -> EngineStats:
        """Size and figures of the engine below."""
        return self._engine.stats()

    def close(self) -> None:
        """Every handle is released; twice is harmless."""
        self._engine.close()


def sealed_engine(engine: Engine, cipher: RowCipher | None) -> Engine:
    """``engine``, whose values are sealed with ``cipher`` if there is one."""
    return engine if cipher is None else SealedEngine(engine, cipher)


if TYPE_CHECKING:
    _: type[Engine] = SealedEngine
