"""Engines that each break one promise on purpose: the contract suite must fail every one of them.

``RememberingEngine`` is the control: persistent within the process, correct, and passing the whole suite. All others
but the last two are it with one fault; those two are RocksDB with a fault that only a crash shows.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from ..engine.api import Batch, EngineStats, Page, Reader, Row
from ..engine.memory import MemoryEngine
from ..engine.rocksdb import RocksDbEngine
from ..errors import HoldfastError, InvalidInputError, StoreExists

__all__ = ["BROKEN_AT_CRASH", "BROKEN_ENGINES", "RememberingEngine"]


class RememberingEngine(MemoryEngine):
    """Correct; what it held at ``close`` is there again in the next one at the same path."""

    capabilities = replace(MemoryEngine.capabilities, name="remembering", persistent=True, checkpoint=True)
    kept: ClassVar[dict[Path, dict[bytes, bytes]]] = {}

    def __init__(self, path: Path, *, create: bool = False) -> None:
        super().__init__()
        self.path = path
        self.applied: list[tuple[Batch, bool]] = []
        MemoryEngine.apply(self, Batch(dict(self.kept.get(path, {}))), sync=True)

    def rows(self) -> dict[bytes, bytes]:
        """All rows, as a copy."""
        return dict(self._rows.values)

    def apply(self, batch: Batch, *, sync: bool) -> None:
        super().apply(batch, sync=sync)
        self.applied.append((Batch(dict(batch.rows), tuple(batch.delete_ranges)), sync))

    def stats(self) -> EngineStats:
        plain = super().stats()
        return EngineStats(sum(len(key) + len(value) for key, value in self.rows().items()), plain.details)

    def checkpoint(self, destination: Path) -> None:
        with self.gate:
            if destination in self.kept:
                raise StoreExists("a checkpoint never overwrites", path=destination)
            self.kept[destination] = self.rows()

    def close(self) -> None:
        if self.gate.usable:
            self.kept[self.path] = self.keep()
        super().close()

    def keep(self) -> dict[bytes, bytes]:
        """The rows that the next engine at this path begins with."""
        return self.rows()


class LosesOnePrefixAtReopen(RememberingEngine):
    """The rows of the last batch under its first prefix are gone after reopen: tables with a log each."""

    def keep(self) -> dict[bytes, bytes]:
        rows = self.rows()
        last = [batch.rows for batch, _ in self.applied if batch.rows][-1:]
        for keys in last:
            prefix = min(keys)[:1]
            for key in keys:
                if key[:1] == prefix:
                    rows.pop(key, None)
        return rows


class LosesUnsyncedAtClose(RememberingEngine):
    """A batch without sync is gone after a clean close."""

    def keep(self) -> dict[bytes, bytes]:
        rows = self.rows()
        if self.applied and not self.applied[-1][1]:
            for key in self.applied[-1][0].rows:
                rows.pop(key, None)
        return rows


class SnapshotIsLive(RememberingEngine):
    """A snapshot shows later batches."""

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Reader]:
        with self.gate:
            pass
        yield self


class IgnoresClose(RememberingEngine):
    """Reads go on after close."""

    def close(self) -> None:
        self.kept[self.path] = self.keep()


class SecondCloseRaises(RememberingEngine):
    """Closing twice is an error."""

    def close(self) -> None:
        if not self.gate.usable:
            raise self.gate.refusal()
        super().close()


class KeepsHalfOfARefusedBatch(RememberingEngine):
    """The limits are checked while rows are written."""

    def apply(self, batch: Batch, *, sync: bool) -> None:
        done = {key: value for key, value in batch.rows.items() if len(key) <= self.capabilities.key_bytes_max}
        super().apply(Batch(done, batch.delete_ranges), sync=sync)
        super().apply(batch, sync=sync)


class AcceptsLongKeys(RememberingEngine):
    """A key above the limit is cut, not refused."""

    def apply(self, batch: Batch, *, sync: bool) -> None:
        longest = self.capabilities.key_bytes_max
        rows = {key[:longest]: value for key, value in batch.rows.items()}
        super().apply(Batch(rows, batch.delete_ranges), sync=sync)


class PoisonedByARefusal(RememberingEngine):
    """A batch that was refused makes the engine unusable."""

    def apply(self, batch: Batch, *, sync: bool) -> None:
        try:
            super().apply(batch, sync=sync)
        except HoldfastError as error:
            self.gate.poison(error)
            raise


class EmptyValueIsNone(RememberingEngine):
    """An empty value looks like a missing key."""

    def get(self, key: bytes) -> bytes | None:
        return super().get(key) or None


class ManyDropsDuplicates(RememberingEngine):
    """``get_many`` answers each key once."""

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return super().get_many(list(dict.fromkeys(keys)))


class ManyIsSorted(RememberingEngine):
    """``get_many`` answers in key order."""

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return super().get_many(sorted(keys))


class ScanEndsAtTheLimit(RememberingEngine):
    """A full page claims to be the last one."""

    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False, limit: int = 1000) -> Page:
        return Page(super().scan(start, stop, reverse=reverse, limit=limit).rows, None)


class ResumeSkipsARow(RememberingEngine):
    """The next page starts one row too late."""

    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False, limit: int = 1000) -> Page:
        page = super().scan(start, stop, reverse=reverse, limit=limit)
        skip = page.resume is not None and not reverse
        return Page(page.rows, (page.resume or b"") + b"\x00" if skip else page.resume)


class StopIsInclusive(RememberingEngine):
    """A forward scan returns the row at ``stop``."""

    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False, limit: int = 1000) -> Page:
        end = None if stop is None else stop + b"\x00"
        return super().scan(start, stop if reverse else end, reverse=reverse, limit=limit)


class ReverseIsOffByOne(RememberingEngine):
    """A reverse scan returns the row at ``stop``."""

    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False, limit: int = 1000) -> Page:
        end = None if stop is None else stop + b"\x00"
        return super().scan(start, end if reverse else stop, reverse=reverse, limit=limit)


class ReverseIgnoresStart(RememberingEngine):
    """A reverse scan runs to the first key."""

    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False, limit: int = 1000) -> Page:
        return super().scan(b"" if reverse else start, stop, reverse=reverse, limit=limit)


class OrderIsSigned(RememberingEngine):
    """A page is ordered as if bytes were signed."""

    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False, limit: int = 1000) -> Page:
        page = super().scan(start, stop, reverse=reverse, limit=limit)
        rows = sorted(page.rows, key=lambda row: [byte ^ 128 for byte in row[0]], reverse=reverse)
        return Page(rows, page.resume)


class AnyLimitIsFine(RememberingEngine):
    """A page size of 0 gives an endless scan."""

    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False, limit: int = 1000) -> Page:
        return super().scan(start, stop, reverse=reverse, limit=min(max(limit, 1), 100_000))


class FloorIgnoresLow(RememberingEngine):
    """``floor`` finds rows below ``low``."""

    def floor(self, key: bytes, low: bytes = b"") -> Row | None:
        return super().floor(key)


class FloorIsStrict(RememberingEngine):
    """``floor`` does not find the key itself."""

    def floor(self, key: bytes, low: bytes = b"") -> Row | None:
        page = self.scan(low, key, reverse=True, limit=1)
        return page.rows[0] if page.rows else None


class CeilingIgnoresHigh(RememberingEngine):
    """``ceiling`` finds rows at or above ``high``."""

    def ceiling(self, key: bytes, high: bytes) -> Row | None:
        return super().ceiling(key, b"\xff" * 600)


class CeilingIsStrict(RememberingEngine):
    """``ceiling`` does not find the key itself."""

    def ceiling(self, key: bytes, high: bytes) -> Row | None:
        return super().ceiling(key + b"\x00", high)


class RowsBeforeRanges(RememberingEngine):
    """Range deletions delete the rows of their own batch."""

    def apply(self, batch: Batch, *, sync: bool) -> None:
        super().apply(Batch(batch.rows), sync=sync)
        super().apply(Batch({}, batch.delete_ranges), sync=sync)


class RangeKeepsItsFirstKey(RememberingEngine):
    """A range deletion begins behind its lower end."""

    def apply(self, batch: Batch, *, sync: bool) -> None:
        super().apply(Batch(batch.rows, [(low + b"\x00", high) for low, high in batch.delete_ranges]), sync=sync)


class ChangesTheBatch(RememberingEngine):
    """The caller's batch is emptied."""

    def apply(self, batch: Batch, *, sync: bool) -> None:
        super().apply(batch, sync=sync)
        batch.delete_ranges = ()


class ShowsHalfABatch(RememberingEngine):
    """Readers see a batch table by table."""

    def apply(self, batch: Batch, *, sync: bool) -> None:
        rows = sorted(batch.rows.items())
        half = len(rows) // 2
        MemoryEngine.apply(self, Batch(dict(rows[:half]), batch.delete_ranges), sync=False)
        if half:
            time.sleep(0.002)
        super().apply(Batch(dict(rows[half:])), sync=sync)


class CheckpointIsLate(RememberingEngine):
    """A checkpoint shows what was written after it."""

    def checkpoint(self, destination: Path) -> None:
        super().checkpoint(destination)
        self.kept[destination] = self._rows.values


class CheckpointOverwrites(RememberingEngine):
    """A second checkpoint replaces the first one."""

    def checkpoint(self, destination: Path) -> None:
        with self.gate:
            self.kept[destination] = self.rows()


class HasNoSize(RememberingEngine):
    """The size on disk is not known."""

    def stats(self) -> EngineStats:
        return MemoryEngine.stats(self)


class LiesAboutSync(RocksDbEngine):
    """``sync`` returns before anything is durable."""

    def _flush(self) -> None:
        """Nothing is flushed."""


class SplitsABatch(RocksDbEngine):
    """One batch is two batches, and a crash may fall between them."""

    def apply(self, batch: Batch, *, sync: bool) -> None:
        rows = sorted(batch.rows.items())
        half = len(rows) // 2
        super().apply(Batch(dict(rows[half:]), batch.delete_ranges), sync=True)
        super().apply(Batch(dict(rows[:half])), sync=False)

    def sync(self) -> None:
        raise InvalidInputError("not part of the demonstration")


class ReclaimForgetsRows(RememberingEngine):
    """Takes the last row of the range along."""

    def reclaim(self, low: bytes, high: bytes) -> None:
        super().reclaim(low, high)
        page = self.scan(low, high, reverse=True, limit=1)
        if page.rows:
            MemoryEngine.apply(self, Batch({page.rows[0][0]: None}), sync=True)


class NeverReclaims(RememberingEngine):
    """Its size counts every row that there ever was."""

    def stats(self) -> EngineStats:
        ever = sum(len(key) + len(value or b"") for batch, _ in self.applied for key, value in batch.rows.items())
        return EngineStats(ever, super().stats().details)


BROKEN_ENGINES: tuple[type[RememberingEngine], ...] = tuple(RememberingEngine.__subclasses__())
BROKEN_AT_CRASH: tuple[type[RocksDbEngine], ...] = (LiesAboutSync, SplitsABatch)
