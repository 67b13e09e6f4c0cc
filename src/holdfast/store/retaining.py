"""Retention by the settings, in the background: bodies that a backup holds are given up, segment by segment.

Invariants:
    * A segment is written anew once: when all of its blocks may lose what they lose, and not before.
    * Nothing goes of a segment that an archive did not prove to hold in the same run.
    * What is asked of the archive holds up neither commits, nor other work on the journal, nor the close of the store.
    * Where no archive can be asked, one event says so until one can. A segment sealed after the last backup waits.
"""

from __future__ import annotations

import logging
import math
import time
from bisect import bisect_right
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Final, TypeVar

from .._threads import start_thread
from ..blocks.lookup import load_canonical
from ..errors import BackupDamaged, BackupNotFound, HoldfastError
from ..events import emit
from ..journal.segment import SegmentInfo
from .backend import WriterBackend
from .compacting import BACKGROUND_BYTES_PER_SECOND, Compactions, Pace, Stopped, final_height, segments_below_finality
from .retention import Archive, Cut, Retention, cut_of

__all__ = ["BackgroundRetention"]

_T = TypeVar("_T")
_SEGMENTS_PER_RUN: Final = 8
_HEIGHTS_BETWEEN_LOOKS: Final = 64
_ASK_AGAIN_SECONDS: Final = 3600.0
"""The archive is asked again for what it did not hold, unless a backup of this process comes first."""
_POLL_SECONDS: Final = 0.1
_LEAVE_SECONDS: Final = 5.0
"""A request of an archive that does not answer is left alone after so long; it only reads the repository."""
_STEPS_MAX: Final = 10_000
"""Heights whose time is looked at in one run."""
_NEVER: Final = (0, -1)


class BackgroundRetention:
    """Applies the policy of ``retention``. Belongs to the thread that looks after the store."""

    def __init__(self, backend: WriterBackend, retention: Retention, compactions: Compactions) -> None:
        self._backend = backend
        self._retention = retention
        self._compactions = compactions
        self._looked = _NEVER
        self._floor = 0
        self._tops: dict[int, int] = {}
        """By segment, the highest block with something to lose, which never changes."""
        self._waiting: set[int] = set()
        self._damaged: set[int] = set()
        """Segments of which it was told that they are not whole in a backup."""
        self._unusable = self._told = False
        self._ask_at = math.inf

    @property
    def waiting(self) -> int:
        """How many segments are to lose bodies and were in no backup when the archive was last asked."""
        return len(self._waiting)

    def due(self) -> bool:
        """True if there may be something to give up. Costs next to nothing where nothing changed."""
        retention, journal = self._retention, self._backend.opened.journal
        if retention.archives is None or retention.policy.mode == "none":
            return False
        newest = (journal.frame(journal.durable_seq).segment, final_height(self._backend) // _HEIGHTS_BETWEEN_LOOKS)
        if newest == self._looked and not self._asks_again():
            return False
        self._looked = newest
        return True

    def _asks_again(self) -> bool:
        return self._retention.backup_made or time.monotonic() >= self._ask_at

    def run(self, keep_going: Callable[[], bool]) -> None:
        """What is to go and is in a backup is gone, a few segments at most: then ``due`` says that there may be more.

        Raises what keeps a segment from being written anew. Errors of the archive are told.
        """
        if self._asks_again():
            self._retention.backup_made, self._unusable, self._ask_at = False, False, math.inf
            self._waiting.clear()
        try:
            pace = Pace(0, BACKGROUND_BYTES_PER_SECOND, None, keep_going)
            ripe = self._ripe(keep_going) if self._is_too_large(keep_going) and not self._unusable else []
            proven = self._proven(ripe, pace, keep_going) if ripe else []
            if (proven and not self._drop(proven, pace)) or len(ripe) == _SEGMENTS_PER_RUN:
                self._looked = _NEVER
        except BaseException as error:
            self._looked = _NEVER
            if not isinstance(error, Stopped):
                raise

    # -- what is to go ----------------------------------------------------------------------------------------------

    def _is_too_large(self, keep_going: Callable[[], bool]) -> bool:
        """True if the policy is not ``space``, or the journal does not fit once it is compacted."""
        policy, status = self._retention.policy, self._retention.status
        if policy.mode == "space" and status().file_bytes > policy.amount:
            self._compactions.run_in_background(keep_going)
        return policy.mode != "space" or status().file_bytes > policy.amount

    def _ripe(self, keep_going: Callable[[], bool]) -> list[Cut]:
        """What the segments lose that are to lose something, all that they have, and may be in a backup."""
        backend, retention = self._backend, self._retention
        known, root = self._floor, backend.state.root_height
        floor = self._floor = retention.floor(retention.policy, known=known, steps_max=_STEPS_MAX)
        if floor >= known + _STEPS_MAX:
            self._looked = _NEVER
        if floor <= root:
            return []
        end = load_canonical(backend.rows.get, floor).seq
        found: list[Cut] = []
        for info in segments_below_finality(backend):
            if len(found) == _SEGMENTS_PER_RUN or info.first_seq + info.count > end:
                break
            if not keep_going():
                raise Stopped
            if info.number in self._waiting or self._is_bare(info, root, floor):
                continue
            cut = cut_of(backend.opened.journal, info, floor)
            self._tops[info.number] = cut.top
            if cut.top < floor and cut.new_bytes > 0:
                found.append(cut)
        return found

    def _is_bare(self, info: SegmentInfo, root: int, floor: int) -> bool:
        """True if it is known that the segment has nothing to lose, or may not lose all of it yet."""
        top = self._tops.get(info.number)
        if top is not None:
            return info.retained_from > top or top >= floor
        if not info.pruned_bytes:
            return False
        get, last = self._backend.rows.get, info.first_seq + info.count - 1
        count = bisect_right(range(root, floor), last, key=lambda height: load_canonical(get, height).seq)
        if info.retained_from < root + count:
            return False
        self._tops[info.number] = root + count - 1
        return True

    # -- what proves it ---------------------------------------------------------------------------------------------

    def _proven(self, ripe: list[Cut], pace: Pace, keep_going: Callable[[], bool]) -> list[Cut]:
        """Those that the archive holds, every byte read; the others wait."""
        opener = self._retention.archives
        assert opener is not None

        def look(data: bytes) -> None:
            pace.step(len(data))

        proven: list[Cut] = []
        try:
            archive = _aside(lambda: opener(look), keep_going)
            for cut in ripe:
                if self._holds(archive, cut.info, keep_going):
                    proven.append(cut)
        except HoldfastError as error:
            self._unusable = True
            self._wait(None if self._told else error, len(ripe) - len(proven))
            self._told = True
        else:
            self._told = False
        return proven

    def _holds(self, archive: Archive, info: SegmentInfo, keep_going: Callable[[], bool]) -> bool:
        """True if the archive holds the segment; else it waits. Raises what keeps the archive from answering."""
        digest = self._retention.last_digest(info)
        try:
            _aside(lambda: archive(info.number, digest), keep_going)
        except BackupNotFound:
            self._wait(None, 1)
        except BackupDamaged as error:
            self._wait(None if info.number in self._damaged else error, 1)
            self._damaged.add(info.number)
        else:
            return True
        self._waiting.add(info.number)
        return False

    def _wait(self, error: HoldfastError | None, count: int) -> None:
        """The archive is asked again later; ``error`` is told."""
        self._ask_at = time.monotonic() + _ASK_AGAIN_SECONDS
        if error is not None:
            emit(
                "retention_waits",
                logging.WARNING,
                f"bodies of old blocks are not given up, since no backup proves to hold them: {error}",
                error=error,
                place=self._backend.path,
                segments=count,
            )

    # -- its going --------------------------------------------------------------------------------------------------

    def _drop(self, proven: list[Cut], pace: Pace) -> bool:
        """What was proven is gone; False if somebody else is at work on the segments, or ``pace`` ended it."""
        if not self._compactions.lock.acquire(blocking=False):
            return False
        try:
            journal = self._backend.opened.journal
            infos = {info.number: info for info in journal.segments()}
            cuts = [cut_of(journal, infos[cut.info.number], cut.below) for cut in proven]
            return self._retention.drop(
                [cut for cut in cuts if cut.new_bytes > 0], lambda _number, _digest: None, pace
            ).complete
        finally:
            self._compactions.lock.release()


def _aside(work: Callable[[], _T], keep_going: Callable[[], bool]) -> _T:
    """What ``work`` gives, in a thread of its own. Raises ``Stopped`` once ``keep_going`` says no, though it hangs."""
    done: Future[_T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - whoever waits for it gets it
            done.set_exception(error)

    start_thread(run, "holdfast-archive")
    while not wait([done], _POLL_SECONDS).done:
        if not keep_going():
            wait([done], _LEAVE_SECONDS)
            raise Stopped
    return done.result()
