"""Hot rows of the state: what the engine holds, kept in memory, between the overlay and the engine.

Invariants:
    * An entry is exactly the row that the engine holds, or that it holds none. Rows of frames that are not flushed are
      never in it, so neither a commit, nor a reorg, nor a failed block can make an entry stale: only a flush can.
    * From its first row to its last one, a flush lets nothing in; then its keys leave, and only then do its frames
      leave the overlay, which hides the entries until then. What was read from the engine before or while rows were
      replaced never comes in after it: ``epoch`` says so.
    * The cost of all entries is exact and at most the budget, whatever threads do: every change is under one lock.
      Reads take no lock of ours.

The library's own weighing is not used: it would call back into Python with its inner lock held.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import count
from typing import Final

from cachebox import FIFOCache, LFUCache, LRUCache

from .api import CachePolicy
from .overlay import MISSING, Missing

__all__ = ["ENTRY_COST_BYTES", "CacheStats", "RowCache", "Tally"]

ENTRY_COST_BYTES: Final = 160
"""Memory of an entry besides its key and value, as measured: two objects, a slot and the order of the policy."""
_LARGEST_PART: Final = 8
"""An entry that costs more than this part of the budget is not cached."""

_Entries = LRUCache[bytes, "bytes | None"] | LFUCache[bytes, "bytes | None"] | FIFOCache[bytes, "bytes | None"]
_POLICIES: Final[dict[CachePolicy, type[_Entries]]] = {"lru": LRUCache, "lfu": LFUCache, "fifo": FIFOCache}


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Figures of the cache. ``hits`` and ``misses`` are of reads that the overlay did not answer; 0 if not counted."""

    policy: CachePolicy
    budget_bytes: int
    bytes: int
    entries: int
    hits: int
    misses: int
    evictions: int

    @property
    def hit_rate(self) -> float:
        """Hits of all reads that the cache was asked for, from 0 to 1."""
        reads = self.hits + self.misses
        return self.hits / reads if reads else 0.0

    def as_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        return {**asdict(self), "hit_rate": round(self.hit_rate, 4)}


class Tally:
    """A number that any thread may raise by one: ``add`` is a single step of the interpreter."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looks = 0
        self.add: Callable[[], int] = count().__next__
        """One more."""

    def value(self) -> int:
        """How often ``add`` was called. Looking counts one itself, which is taken off again."""
        with self._lock:
            found = self.add() - self._looks
            self._looks += 1
            return found


class RowCache:
    """Rows by engine key, within a budget of bytes.

    Args:
        budget_bytes: the most that all entries may cost.
        policy: which entry leaves first: the one not read for longest, the one read least, or the oldest.
    """

    def __init__(self, budget_bytes: int, policy: CachePolicy) -> None:
        self.policy: CachePolicy = policy
        self.budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._entries: _Entries = _POLICIES[policy](0)
        self._largest = budget_bytes // _LARGEST_PART
        self._bytes = 0
        self._evictions = 0
        self.hits = Tally()
        self.misses = Tally()
        self.epoch = 0
        """Odd while a flush replaces rows. Take it before a row is read that is to be filled in."""
        self.get: Callable[[bytes, Missing], bytes | Missing | None] = self._entries.get
        """The row, ``None`` if the engine has none, or the second argument if there is no entry."""

    def fill(self, key: bytes, value: bytes | None, epoch: int) -> None:
        """``value`` is the entry of ``key``, if no flush began or ended since ``epoch``, and none goes on."""
        cost = len(key) + ENTRY_COST_BYTES + (len(value) if value is not None else 0)
        if cost > self._largest:
            return
        with self._lock:
            if epoch != self.epoch or epoch & 1 or key in self._entries:
                return
            entries = self._entries
            while self._bytes + cost > self.budget_bytes:
                self._bytes -= _cost(*entries.popitem())
                self._evictions += 1
            entries.insert(key, value)
            self._bytes += cost

    def close(self) -> None:
        """A flush begins to replace rows: nothing comes in."""
        with self._lock:
            assert not self.epoch & 1
            self.epoch += 1

    def drop(self, keys: Iterable[bytes]) -> None:
        """``keys`` have no entry."""
        with self._lock:
            if not self._entries:
                return
            pop = self._entries.pop
            for key in keys:
                value = pop(key, MISSING)
                if value is not MISSING:
                    self._bytes -= _cost(key, value)

    def open(self) -> None:
        """The flush has replaced its rows and dropped their keys: what is read from now on may come in."""
        with self._lock:
            assert self.epoch & 1
            self.epoch += 1

    @property
    def stats(self) -> CacheStats:
        """Figures as of now."""
        with self._lock:
            size, entries, evictions = self._bytes, len(self._entries), self._evictions
        return CacheStats(
            self.policy, self.budget_bytes, size, entries, self.hits.value(), self.misses.value(), evictions
        )


def _cost(key: bytes, value: bytes | None) -> int:
    return len(key) + ENTRY_COST_BYTES + (len(value) if value is not None else 0)
