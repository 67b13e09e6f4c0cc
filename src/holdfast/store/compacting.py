"""Compaction: sealed segments below finality become compacted files, which give the same bytes and need less room.

Invariants:
    * Nothing that can be read changes: rows, frames, digests and backups are what they were.
    * One segment after the other, each durable before the next begins: interrupted or killed, what was done stays, and
      the next run goes on with the rest.
    * A damaged segment is left as it is and named; the others do not wait for it.
    * A segment with a frame behind the first block that is not final is left as it is, and so is the newest one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from ..blocks.lookup import load_canonical
from ..errors import CorruptionError, InvalidInputError
from ..events import emit
from ..journal.compaction import Compacted
from ..journal.segment import SegmentInfo
from .backend import WriterBackend

__all__ = [
    "BACKGROUND_BYTES_PER_SECOND",
    "CompactReport",
    "Compactions",
    "Pace",
    "Stopped",
    "final_height",
    "segments_below_finality",
]

_PASSES = 2
"""A segment is written, then read back: so many times its bytes are counted in the progress."""
BACKGROUND_BYTES_PER_SECOND = 32 << 20
_HEIGHTS_BETWEEN_LOOKS = 64
_NEVER = (0, -1)


@dataclass(frozen=True, slots=True)
class CompactReport:
    """What a run did, or would do (``dry_run``).

    ``segments``: sealed ones below finality. ``compacted``: those of them that this run put in place of the original
    (or would); ``kept``: those that would not have become smaller; ``damaged``: numbers of those with a byte that is
    not as it was written, left as they are. ``bytes_before`` and ``_after`` are of the files of ``compacted``, with
    ``journal_`` of all files of the journal; in a dry run an estimate from samples.
    """

    dry_run: bool
    final_height: int
    segments: int
    compacted: int
    kept: int
    bytes_before: int
    bytes_after: int
    journal_bytes_before: int
    journal_bytes_after: int
    seconds: float
    complete: bool
    damaged: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        saved = 1 - self.bytes_after / self.bytes_before if self.bytes_before else 0.0
        shown = {"seconds": round(self.seconds, 3), "saved_share": round(saved, 4), "damaged": list(self.damaged)}
        return asdict(self) | shown


class Stopped(Exception):
    """The caller asked to end."""


def final_height(backend: WriterBackend) -> int:
    """The highest height that can never be reorganised; -1 without blocks."""
    state = backend.state
    return max(state.finalized, state.floor) if state.has_tip else -1


def segments_below_finality(backend: WriterBackend) -> list[SegmentInfo]:
    """The sealed segments before the newest that end before the first block that is not final."""
    journal = backend.opened.journal
    last = journal.durable_seq
    state, final = backend.state, final_height(backend)
    if state.has_tip and final < state.tip_height:
        last = load_canonical(backend.rows.get, max(final + 1, state.root_height)).seq - 1
    newest = journal.frame(journal.durable_seq).segment
    return [
        info
        for info in journal.segments()
        if info.sealed and info.number < newest and info.first_seq + info.count - 1 <= last
    ]


class Compactions:
    """Compacts the journal of one open store. One run at a time."""

    def __init__(self, backend: WriterBackend) -> None:
        self._backend = backend
        self.lock = threading.Lock()
        """Held by whoever puts a file in the place of a segment."""
        self._useless: set[int] = set()
        self._damaged: set[int] = set()
        self._looked = _NEVER

    def due(self) -> list[SegmentInfo]:
        """Segments that a run would compact."""
        found = segments_below_finality(self._backend)
        return [info for info in found if not info.generation and info.number not in self._useless]

    def run(
        self,
        *,
        dry_run: bool = False,
        bytes_per_second: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        keep_going: Callable[[], bool] | None = None,
    ) -> CompactReport:
        """What is due is compacted. Waits for a run that is under way.

        Args:
            bytes_per_second: most that is read in a second.
            progress: called with (bytes done, bytes in all).
            keep_going: asked every few hundred KiB; once it says no, the run ends and the segment stays as it was.
        """
        if bytes_per_second is not None and bytes_per_second < 1:
            raise InvalidInputError("a rate limit is a number of bytes in a second, from 1", found=bytes_per_second)
        started = time.monotonic()
        with self.lock:
            eligible, due = segments_below_finality(self._backend), self.due()
            before = self._journal_bytes()
            if dry_run:
                done, complete = [self._estimate(info) for info in due], True
            else:
                pace = Pace(sum(info.raw_bytes for info in due) * _PASSES, bytes_per_second, progress, keep_going)
                done, complete = self._compact(due, pace)
            self._tell([] if dry_run else done, started)
        smaller = [result for result in done if result.published]
        bytes_before = sum(result.bytes_before for result in smaller)
        bytes_after = sum(result.bytes_after for result in smaller)
        return CompactReport(
            dry_run,
            final_height(self._backend),
            len(eligible),
            len(smaller),
            len(done) - len(smaller),
            bytes_before,
            bytes_after,
            before,
            before - bytes_before + bytes_after,
            time.monotonic() - started,
            complete,
            () if dry_run else tuple(info.number for info in due if info.number in self._damaged),
        )

    def estimates(self) -> dict[int, int]:
        """About how many bytes the file of each segment would have that a run would make smaller."""
        found = (self._estimate(info) for info in self.due())
        return {result.number: result.bytes_after for result in found if result.published}

    def compact_due(self, pace: Pace) -> bool:
        """As ``run`` for a caller that holds ``lock``; False if ``pace`` ended it."""
        started, due = time.monotonic(), self.due()
        pace.expect(sum(info.raw_bytes for info in due) * _PASSES)
        done, complete = self._compact(due, pace)
        self._tell(done, started)
        return complete

    def due_in_background(self) -> bool:
        """True if a run would compact something. Costs a look at the newest segment only, unless that changed."""
        journal = self._backend.opened.journal
        newest = (journal.frame(journal.durable_seq).segment, final_height(self._backend) // _HEIGHTS_BETWEEN_LOOKS)
        if newest == self._looked:
            return False
        self._looked = newest
        return bool(self._sound())

    def _sound(self) -> list[SegmentInfo]:
        """What is due and was not found damaged."""
        return [info for info in self.due() if info.number not in self._damaged]

    def run_in_background(self, keep_going: Callable[[], bool]) -> None:
        """As ``run``, with pauses; nothing if another run is under way."""
        if not self.lock.acquire(blocking=False):
            return
        try:
            started = time.monotonic()
            done, _ = self._compact(self._sound(), Pace(0, BACKGROUND_BYTES_PER_SECOND, None, keep_going))
            self._tell(done, started)
        except BaseException:
            self._looked = _NEVER
            raise
        finally:
            self.lock.release()

    def _tell(self, done: list[Compacted], started: float) -> None:
        smaller = [result for result in done if result.published]
        if not smaller:
            return
        before, after = (sum(getattr(result, name) for result in smaller) for name in ("bytes_before", "bytes_after"))
        emit(
            "journal_compacted",
            logging.INFO,
            f"compacted {len(smaller)} segments of {self._backend.path}: {before} bytes, {after} now",
            place=self._backend.path,
            compacted=len(smaller),
            bytes_before=before,
            bytes_after=after,
            seconds=round(time.monotonic() - started, 3),
        )

    def _journal_bytes(self) -> int:
        return sum(info.file_bytes for info in self._backend.opened.journal.segments())

    def _estimate(self, info: SegmentInfo) -> Compacted:
        after = min(info.raw_bytes, self._backend.opened.journal.compacted_bytes(info.number))
        return Compacted(info.number, 1, info.raw_bytes, info.file_bytes, after, 0, after < info.file_bytes)

    def _compact(self, due: list[SegmentInfo], pace: Pace) -> tuple[list[Compacted], bool]:
        done: list[Compacted] = []
        for info in due:
            try:
                result = self._backend.opened.journal.compact(info.number, step=pace.step)
            except Stopped:
                return done, False
            except CorruptionError as error:
                self._damaged.add(info.number)
                text = f"segment {info.number} of the journal is damaged and was not compacted: {error}"
                emit("corruption_found", logging.ERROR, text, error=error, context=error.as_dict()["context"])
                continue
            self._damaged.discard(info.number)
            if not result.published:
                self._useless.add(info.number)
            done.append(result)
        return done, True


class Pace:
    """Tells how far a run is, holds it at its rate, and ends it when it is asked to."""

    def __init__(
        self,
        total: int,
        bytes_per_second: int | None,
        progress: Callable[[int, int], None] | None,
        keep_going: Callable[[], bool] | None,
    ) -> None:
        self._total = total
        self._rate = bytes_per_second
        self._progress = progress
        self._keep_going = keep_going
        self._done = 0
        self._started = time.monotonic()

    def expect(self, count: int) -> None:
        """There are ``count`` bytes more to be handled."""
        self._total += count

    def go_on(self) -> bool:
        """False once the run was asked to end."""
        return self._keep_going is None or self._keep_going()

    def step(self, count: int) -> None:
        """``count`` bytes more were handled. Raises ``Stopped``."""
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)
        if not self.go_on():
            raise Stopped
        if self._rate is not None:
            ahead = self._done / self._rate - (time.monotonic() - self._started)
            if ahead > 0:
                time.sleep(min(ahead, 1.0))
