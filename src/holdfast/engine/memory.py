"""The map in memory: for tests, tools and ``memory:`` stores. Nothing survives ``close``.

Invariants:
    * Keys in ``_keys`` are exactly the keys of ``_values``, in byte order.
    * A snapshot shares both with the engine until the next ``apply``, which then works on a copy.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from sortedcontainers import SortedList

from ..errors import InvalidInputError
from ..limits import ENGINE_KEY_BYTES_MAX, ROW_VALUE_BYTES_MAX
from ._shared import Gate, check_batch, check_limit
from .api import Batch, Capabilities, EngineStats, Page, Reader, Row

__all__ = ["MemoryEngine"]


class _Rows:
    """A sorted map; the engine replaces it, instead of changing it, while a snapshot holds it."""

    __slots__ = ("keys", "values")

    def __init__(self, keys: SortedList, values: dict[bytes, bytes]) -> None:
        self.keys = keys
        self.values = values

    def copy(self) -> _Rows:
        return _Rows(self.keys.copy(), dict(self.values))

    def apply(self, batch: Batch) -> None:
        for low, high in batch.delete_ranges:
            if low < high:
                for key in list(self.keys.irange(low, high, (True, False))):
                    self.keys.remove(key)
                    del self.values[key]
        added: list[bytes] = []
        for key, value in batch.rows.items():
            if value is not None:
                if key not in self.values:
                    added.append(key)
                self.values[key] = value
            elif self.values.pop(key, None) is not None:
                self.keys.remove(key)
        self.keys.update(added)

    def floor(self, key: bytes, low: bytes) -> Row | None:
        position = self.keys.bisect_right(key) - 1
        if position < 0:
            return None
        found: bytes = self.keys[position]
        return (found, self.values[found]) if found >= low else None

    def ceiling(self, key: bytes, high: bytes) -> Row | None:
        position = self.keys.bisect_left(key)
        if position == len(self.keys):
            return None
        found: bytes = self.keys[position]
        return (found, self.values[found]) if found < high else None

    def scan(self, start: bytes, stop: bytes | None, reverse: bool, limit: int) -> Page:
        first = self.keys.bisect_left(start)
        last = len(self.keys) if stop is None else self.keys.bisect_left(stop)
        if first >= last:
            return Page([], None)
        more = last - first > limit
        if reverse:
            taken = list(self.keys.islice(max(first, last - limit), last, reverse=True))
            resume = taken[-1] if more else None
        else:
            taken = list(self.keys.islice(first, min(last, first + limit)))
            resume = self.keys[first + limit] if more else None
        values = self.values
        return Page([(key, values[key]) for key in taken], resume)


class _Snapshot:
    __slots__ = ("_engine", "_rows")

    def __init__(self, engine: MemoryEngine, rows: _Rows) -> None:
        self._engine = engine
        self._rows = rows

    def get(self, key: bytes) -> bytes | None:
        with self._engine.gate:
            return self._rows.values.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        with self._engine.gate:
            return list(map(self._rows.values.get, keys))

    def floor(self, key: bytes, low: bytes = b"") -> Row | None:
        with self._engine.gate:
            return self._rows.floor(key, low)

    def ceiling(self, key: bytes, high: bytes) -> Row | None:
        with self._engine.gate:
            return self._rows.ceiling(key, high)

    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False, limit: int = 1000) -> Page:
        check_limit(limit)
        with self._engine.gate:
            return self._rows.scan(start, stop, reverse, limit)


class MemoryEngine:
    """An ordered byte map in memory. Cost: a batch while a snapshot is open copies the whole map once."""

    capabilities = Capabilities(
        name="memory",
        persistent=False,
        key_bytes_max=ENGINE_KEY_BYTES_MAX,
        value_bytes_max=ROW_VALUE_BYTES_MAX,
        write_holds_gil=True,
        always_sync=True,
        checksums=False,
        read_only_processes=False,
        checkpoint=False,
    )

    def __init__(self) -> None:
        self.gate = Gate("memory")
        self._lock = threading.Lock()
        self._rows = _Rows(SortedList(), {})
        self._shared = False

    def get(self, key: bytes) -> bytes | None:
        if not self.gate.usable:
            raise self.gate.refusal()
        return self._rows.values.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        with self.gate, self._lock:
            return list(map(self._rows.values.get, keys))

    def floor(self, key: bytes, low: bytes = b"") -> Row | None:
        with self.gate, self._lock:
            return self._rows.floor(key, low)

    def ceiling(self, key: bytes, high: bytes) -> Row | None:
        with self.gate, self._lock:
            return self._rows.ceiling(key, high)

    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False, limit: int = 1000) -> Page:
        check_limit(limit)
        with self.gate, self._lock:
            return self._rows.scan(start, stop, reverse, limit)

    def apply(self, batch: Batch, *, sync: bool) -> None:
        check_batch(batch)
        with self.gate, self._lock:
            if self._shared:
                self._rows = self._rows.copy()
                self._shared = False
            self._rows.apply(batch)

    def sync(self) -> None:
        with self.gate:
            return

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Reader]:
        with self.gate, self._lock:
            self._shared = True
            rows = self._rows
        yield _Snapshot(self, rows)

    def checkpoint(self, destination: Path) -> None:
        with self.gate:
            raise InvalidInputError("the memory engine makes no checkpoints", path=destination)

    def refresh(self) -> None:
        with self.gate:
            return

    def reclaim(self, low: bytes, high: bytes) -> None:
        with self.gate:
            return

    def stats(self) -> EngineStats:
        with self.gate:
            return EngineStats(0, {"rows": len(self._rows.values)})

    def close(self) -> None:
        if self.gate.close():
            self._rows = _Rows(SortedList(), {})
