"""Retention of the journal: bodies and extras of old final blocks are given up, and come back from a backup.

What is dropped is decided by one height, the floor: blocks below it may miss their bodies and extras. Headers,
decisions, states and documents stay, so that all but user indexes can be made anew from the journal.

Invariants:
    * Nothing is dropped of a block that is not final, or that a proof or an undo may still need.
    * The floor is durable in the journal before the first byte goes, and a byte goes only with its segment's new file.
    * Unless the caller said ``without_archive``, every segment that loses bytes was found whole in a backup before.
    * Killed or interrupted at any moment, each segment has one whole file, and the next run goes on with the rest.
"""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Final, Literal, get_args

from .._failpoints import hit
from .._fs import File
from ..blocks.entries import decode_block
from ..blocks.lookup import load_canonical
from ..errors import BackupDamaged, FinalityError, InvalidInputError, StateError
from ..events import emit
from ..journal.api import Frame, FrameSource, Kind, Part
from ..journal.compacted import Hole
from ..journal.journal import Journal
from ..journal.scan import DROPPABLE
from ..journal.segment import SegmentInfo
from ..limits import HEIGHT_MAX
from .backend import WriterBackend
from .compacting import Compactions, Pace, Stopped, final_height, segments_below_finality

__all__ = [
    "Archive",
    "ArchiveOpener",
    "Cut",
    "JournalStatus",
    "Original",
    "RefillReport",
    "Retention",
    "RetentionPolicy",
    "RetentionReport",
    "cut_of",
    "journal_status",
]

Mode = Literal["none", "blocks", "days", "space", "below"]
Archive = Callable[[int, bytes], None]
"""Given a segment's number and the digest of its last frame: raises unless a backup holds all of it."""
ArchiveOpener = Callable[[Callable[[bytes], None]], Archive]
"""Opens the archive. What it is given is called with every piece that is read there; what that raises ends the work.
Raises ``BackupNotFound`` where there is no backup of the store at all."""
Original = Callable[[int, bytes], AbstractContextManager[File]]
"""Given the same: all bytes of the segment, out of a backup. Raises ``BackupNotFound`` where there is none."""

_FLOOR: Final = struct.Struct(">QB")
_DAY_SECONDS: Final = 86_400
_PASSES: Final = 2


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """Whose bodies and extras stay.

    ``blocks``: those of the last ``amount`` final heights. ``days``: of final blocks that, by the chain's time, are
    at most so many days older than the tip. ``space``: as many as fit, segment by segment, so that the files of the
    journal have at most ``amount`` bytes; compaction comes first, and nothing goes if that is enough. ``below``: all
    from the height ``amount`` on. ``none``: all.
    """

    mode: Mode = "none"
    amount: int = 0

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise InvalidInputError("unknown mode of retention", found=self.mode, expected=", ".join(get_args(Mode)))
        low = 0 if self.mode in {"none", "below"} else 1
        if type(self.amount) is not int or not low <= self.amount <= HEIGHT_MAX:
            raise InvalidInputError(
                f"the amount for the retention '{self.mode}' is a whole number from {low}", found=self.amount
            )


@dataclass(frozen=True, slots=True)
class RetentionReport:
    """What a run did, or would do (``dry_run``).

    Blocks from ``floor_after`` on have all of their parts. ``blocks`` and ``pruned_bytes``: those that lose theirs,
    and how many bytes of them, in ``segments`` segments. ``freed_bytes``: by how much the files become smaller, in a
    dry run an estimate from samples; with ``space`` compaction counts in it. ``indexes``: user indexes that cannot be
    made anew below the floor if they read bodies.
    """

    dry_run: bool
    floor_before: int
    floor_after: int
    segments: int
    blocks: int
    pruned_bytes: int
    freed_bytes: int
    archived: bool
    indexes: tuple[str, ...]
    seconds: float
    complete: bool

    def as_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        return asdict(self) | {"indexes": list(self.indexes), "seconds": round(self.seconds, 3)}


@dataclass(frozen=True, slots=True)
class RefillReport:
    """What came back: in how many ``segments``, how many bytes.

    ``missing``: segments that no backup holds whole; ``damaged``: those that are damaged in every one that does.
    """

    floor_before: int
    floor_after: int
    segments: int
    filled_bytes: int
    missing: tuple[int, ...]
    damaged: tuple[int, ...]
    seconds: float
    complete: bool

    def as_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        named = {"missing": list(self.missing), "damaged": list(self.damaged)}
        return asdict(self) | named | {"seconds": round(self.seconds, 3)}


@dataclass(frozen=True, slots=True)
class JournalStatus:
    """How the journal lies on disk. Blocks below ``floor`` may miss bodies and extras; 0: none does.

    ``raw_bytes`` is what all segments stand for, ``file_bytes`` what they take, ``pruned_bytes`` what is absent.
    """

    floor: int
    segments: int
    compacted: int
    pruned: int
    raw_bytes: int
    file_bytes: int
    pruned_bytes: int

    def as_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        return asdict(self)


def journal_status(infos: Iterable[SegmentInfo]) -> JournalStatus:
    """What these segments come to."""
    found = list(infos)
    return JournalStatus(
        max((info.retained_from for info in found), default=0),
        len(found),
        sum(info.generation > 0 for info in found),
        sum(info.pruned_bytes > 0 for info in found),
        sum(info.raw_bytes for info in found),
        sum(info.file_bytes for info in found),
        sum(info.pruned_bytes for info in found),
    )


# -- what goes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cut:
    """What one segment loses below a height; not the holes themselves, which are many."""

    info: SegmentInfo
    below: int
    blocks: int
    hole_bytes: int
    floor: int
    """Behind the highest block that loses something."""
    top: int
    """The highest block that has, or had, something to lose; -1 if none has."""

    @property
    def new_bytes(self) -> int:
        return self.hole_bytes - self.info.pruned_bytes


def _parts_of_blocks(source: FrameSource, frame: Frame) -> Iterator[tuple[int, int, int]]:
    """Height, start and stop in the segment of each body and extra with bytes, in order."""
    height = -1
    for index, part in enumerate(frame.parts):
        if part.kind == Kind.BLOCK:
            height = decode_block(source.part(frame, index))[0].height
        elif part.kind in DROPPABLE and part.stored_bytes and height >= 0:
            yield height, part.offset, part.offset + part.stored_bytes + (-part.stored_bytes & 7)


def cut_of(journal: Journal, info: SegmentInfo, below: int) -> Cut:
    """What is absent of the segment once blocks below that height miss their bodies and extras, and no others do."""
    heights: set[int] = set()
    gone, top = 0, -1
    for frame in journal.frames(info.first_seq, info.first_seq + info.count):
        for height, start, stop in _parts_of_blocks(journal, frame):
            top = max(top, height)
            if height < below:
                heights.add(height)
                gone += stop - start
    return Cut(info, below, len(heights), gone, max(heights, default=-1) + 1, top)


def _holes_of(journal: Journal, cut: Cut) -> list[Hole]:
    """Where that is."""
    info = cut.info
    holes: list[Hole] = []
    for frame in journal.frames(info.first_seq, info.first_seq + info.count):
        for height, start, stop in _parts_of_blocks(journal, frame):
            if height >= cut.below:
                continue
            if holes and holes[-1].stop == start:
                holes[-1] = Hole(holes[-1].start, stop)
            else:
                holes.append(Hole(start, stop))
    return holes


def _refuse(number: int, digest: bytes) -> None:
    """The archive of those who named none."""
    raise StateError(
        "what is dropped from the journal must be in a backup first",
        remedy="name the repository of a backup that holds it, or say that it need not be archived",
    )


class Retention:
    """``store.retention``: what of the journal of one open store stays. Runs and compactions take turns."""

    def __init__(self, backend: WriterBackend, compactions: Compactions, policy: RetentionPolicy) -> None:
        self._backend = backend
        self._compactions = compactions
        self._lock = compactions.lock
        self.policy = policy
        """That of the settings."""
        self.archives: ArchiveOpener | None = None
        """What proves, in the background, that backups hold what is to go; without it nothing goes there."""
        self.backup_made = False
        """The archive may hold more than when it was asked last."""

    def status(self) -> JournalStatus:
        """How the journal lies on disk now."""
        return journal_status(self._journal.segments())

    @property
    def _journal(self) -> Journal:
        return self._backend.opened.journal

    # -- the floor ----------------------------------------------------------------------------------------------

    def floor_max(self) -> int:
        """The highest floor that is allowed now: final, and not above what undo and proofs may need."""
        state, backend = self._backend.state, self._backend
        if not state.has_tip:
            return 0
        window = backend.opened.plan.settings.proof_window_blocks
        return max(
            0, min(final_height(backend), max(backend.views.undo_floor, state.floor - window, state.root_height))
        )

    def floor(self, policy: RetentionPolicy, *, known: int = 0, steps_max: int = HEIGHT_MAX) -> int:
        """Blocks below it may lose their bodies. Raises ``FinalityError`` for an explicit height that is too high.

        ``known``: a floor that was right before; with ``days`` the answer is at most ``steps_max`` above the last one.
        """
        most, backend = self.floor_max(), self._backend
        if policy.mode == "below":
            if policy.amount > most:
                raise FinalityError(
                    "only blocks that are final and that no proof needs can lose their bodies",
                    found=policy.amount,
                    highest=most,
                    remedy="name a height up to 'highest', or finalize first",
                )
            return policy.amount
        if policy.mode == "blocks":
            return max(0, min(most, final_height(backend) - policy.amount + 1))
        if policy.mode == "days":
            return self._floor_of_age(policy.amount * _DAY_SECONDS, most, known, steps_max)
        return most if policy.mode == "space" else 0

    def _floor_of_age(self, seconds: int, most: int, known: int, steps_max: int) -> int:
        """The lowest height whose block is younger than that, seen from the tip."""
        state, get = self._backend.state, self._backend.rows.get
        if not state.has_tip:
            return 0
        oldest = load_canonical(get, state.tip_height).time - seconds
        height = max(state.root_height, self.status().floor, known)
        most = min(most, height + steps_max)
        while height < most and load_canonical(get, height).time <= oldest:
            height += 1
        return height

    def _plan(self, policy: RetentionPolicy) -> tuple[int, list[Cut]]:
        """The floor afterwards, and what each segment that loses something loses."""
        floor, journal = self.floor(policy), self._journal
        infos = segments_below_finality(self._backend)
        cuts = (cut_of(journal, info, max(floor, info.retained_from)) for info in infos) if floor else ()
        return floor, [cut for cut in cuts if cut.new_bytes]

    def _bytes_after(self, cut: Cut) -> int:
        """About how long the file of the segment becomes."""
        return self._journal.compacted_bytes(cut.info.number, _holes_of(self._journal, cut))

    def _plan_for_space(self, amount: int, sizes: dict[int, int]) -> tuple[list[Cut], int]:
        """What whole segments lose, the oldest first, until the files are small enough; about how small they are then.

        ``sizes``: bytes of files that are not those of today.
        """
        most, infos = self.floor_max(), segments_below_finality(self._backend)
        total = self.status().file_bytes - sum(
            info.file_bytes - sizes.get(info.number, info.file_bytes) for info in infos
        )
        found: list[Cut] = []
        for info in infos:
            if total <= amount:
                break
            cut = cut_of(self._journal, info, max(most, info.retained_from))
            if cut.new_bytes:
                found.append(cut)
                total -= sizes.get(info.number, info.file_bytes) - self._bytes_after(cut)
        return found, total

    def _foresee(self, policy: RetentionPolicy) -> tuple[int, list[Cut], int]:
        """The floor that a run would leave, what would go, and about how many bytes of files that would free."""
        status = self.status()
        if policy.mode != "space":
            floor, cuts = self._plan(policy)
            return floor, cuts, sum(cut.info.file_bytes - self._bytes_after(cut) for cut in cuts)
        if status.file_bytes <= policy.amount:
            return status.floor, [], 0
        cuts, total = self._plan_for_space(policy.amount, self._compactions.estimates())
        return max((cut.floor for cut in cuts), default=status.floor), cuts, status.file_bytes - total

    # -- runs ---------------------------------------------------------------------------------------------------

    def prune(
        self,
        policy: RetentionPolicy | None = None,
        *,
        archive: Archive | None = None,
        without_archive: bool = False,
        dry_run: bool = False,
        progress: Callable[[int, int], None] | None = None,
        keep_going: Callable[[], bool] | None = None,
    ) -> RetentionReport:
        """Bodies and extras of blocks below the floor of ``policy`` are gone, durably; what went before stays gone.

        Reads and commits go on. Interrupted, what was done stays; call it again to go on.

        Args:
            policy: else that of the settings.
            archive: asked for each segment that loses bytes, before any does; see ``holdfast.backup.archive_of``.
            without_archive: nobody is asked, and what goes cannot come back.
            dry_run: only say what would happen; the archive is not asked.
            progress: called with (bytes done, bytes in all).
            keep_going: asked now and then; once it says no, the run ends, to be continued.
        Raises:
            StateError: neither an archive was given nor ``without_archive`` said; nothing was changed.
            FinalityError: the height is not final; nothing was changed.
            BackupNotFound, BackupDamaged: a segment is not whole in the archive; nothing more was given up.
        """
        started = time.monotonic()
        wanted = policy if policy is not None else self.policy
        with self._lock:
            before, complete = self.status(), True
            if dry_run:
                floor, cuts, freed = self._foresee(wanted)
            else:
                asked = _refuse if archive is None and not without_archive else archive
                floor, cuts, complete = self._prune(wanted, asked, Pace(0, None, progress, keep_going))
                freed = before.file_bytes - self.status().file_bytes
            return self._reported(dry_run, before, floor, cuts, freed, archive is not None, complete, started)

    def drop(self, cuts: list[Cut], archive: Archive, pace: Pace) -> RetentionReport:
        """As ``prune`` for whole segments, for a caller that holds the lock of the compactions.

        With the policy ``space`` it ends with the segment that makes the journal small enough.
        """
        started, before = time.monotonic(), self.status()
        amount = self.policy.amount if self.policy.mode == "space" else 0
        floor = max((cut.floor for cut in cuts), default=0)
        done, complete = self._drop(floor, cuts, archive, pace, amount=amount)
        freed = before.file_bytes - self.status().file_bytes
        return self._reported(False, before, floor, done, freed, True, complete, started)

    def _reported(
        self,
        dry_run: bool,
        before: JournalStatus,
        floor: int,
        cuts: list[Cut],
        freed: int,
        archived: bool,
        complete: bool,
        started: float,
    ) -> RetentionReport:
        """What a run did, told if it did something."""
        report = RetentionReport(
            dry_run,
            before.floor,
            max(floor, before.floor) if cuts else before.floor,
            len(cuts),
            sum(cut.blocks for cut in cuts),
            sum(cut.new_bytes for cut in cuts),
            freed,
            archived,
            tuple(status.name for status in self._backend.indexes.statuses(None)) if cuts else (),
            time.monotonic() - started,
            complete,
        )
        if cuts and not dry_run:
            self._tell(report)
        return report

    def _tell(self, report: RetentionReport) -> None:
        emit(
            "journal_pruned",
            logging.WARNING,
            f"gave up bodies of {report.blocks} blocks below height {report.floor_after}",
            place=self._backend.path,
            floor_before=report.floor_before,
            floor_after=report.floor_after,
            blocks=report.blocks,
            pruned_bytes=report.pruned_bytes,
            freed_bytes=report.freed_bytes,
            archived=report.archived,
        )

    def _prune(self, policy: RetentionPolicy, archive: Archive | None, pace: Pace) -> tuple[int, list[Cut], bool]:
        """The floor, what was cut, and whether the run came to its end."""
        if policy.mode == "space":
            cuts, complete = self._make_room(policy.amount, archive, pace)
            return self.status().floor, cuts, complete
        floor, cuts = self._plan(policy)
        cuts, complete = self._drop(floor, cuts, archive, pace)
        return floor, cuts, complete

    def _make_room(self, amount: int, archive: Archive | None, pace: Pace) -> tuple[list[Cut], bool]:
        """What segments lost until the files had at most ``amount`` bytes, and whether the run came to its end."""
        if self.status().file_bytes <= amount:
            return [], True
        if archive is _refuse:
            archive(0, b"")
        if not self._compactions.compact_due(pace):
            return [], False
        done: list[Cut] = []
        while cuts := self._plan_for_space(amount, {})[0]:
            more, complete = self._drop(max(cut.floor for cut in cuts), cuts, archive, pace, amount=amount)
            done += more
            if not complete:
                return done, False
        return done, True

    def _drop(
        self, floor: int, cuts: list[Cut], archive: Archive | None, pace: Pace, *, amount: int = 0
    ) -> tuple[list[Cut], bool]:
        """The cuts that were made, until the files have at most ``amount`` bytes; False if ``pace`` ended it."""
        done: list[Cut] = []
        if not cuts:
            return done, True
        pace.expect(sum(cut.info.raw_bytes for cut in cuts) * _PASSES)
        if archive is not None:
            for cut in cuts:
                archive(cut.info.number, self.last_digest(cut.info))
                if not pace.go_on():
                    return done, False
        writer = self._backend.writer
        with writer.lock, writer.turn:
            seq = writer.write_rows([Part(Kind.FLOOR, _FLOOR.pack(floor, archive is not None), True)], dict)
        writer.sync(seq)
        hit("store.retention.after_floor")
        for cut in cuts:
            holes = _holes_of(self._journal, cut)
            try:
                self._journal.compact(cut.info.number, holes=holes, floor=cut.floor, step=pace.step)
            except Stopped:
                return done, False
            done.append(cut)
            hit("store.retention.after_segment")
            if amount and self.status().file_bytes <= amount:
                break
        return done, True

    def last_digest(self, info: SegmentInfo) -> bytes:
        """The digest of the last frame of a segment, by which archives know it."""
        return self._journal.frame(info.first_seq + info.count - 1).digest

    def refill(
        self,
        original: Original,
        *,
        from_height: int = 0,
        progress: Callable[[int, int], None] | None = None,
        keep_going: Callable[[], bool] | None = None,
        missing: type[Exception] | tuple[type[Exception], ...] = (),
    ) -> RefillReport:
        """Blocks from ``from_height`` on have their bodies and extras again, every byte checked by its hash.

        Args:
            original: gives a segment as a backup has it; see ``holdfast.backup.originals_of``.
            missing: errors of ``original`` that mean it has no such segment, or only a damaged one; that segment is
                left as it is, and reported.
            progress, keep_going: as in ``prune``.
        Raises:
            CorruptionError: what ``original`` gave is not that segment; it was left as it is.
        """
        started = time.monotonic()
        if type(from_height) is not int or not 0 <= from_height <= HEIGHT_MAX:
            raise InvalidInputError("a height is a whole number that is not negative", found=from_height)
        with self._lock:
            before = self.status()
            infos = [info for info in self._journal.segments() if info.pruned_bytes]
            cuts = [cut_of(self._journal, info, min(from_height, info.retained_from)) for info in infos]
            cuts = [cut for cut in cuts if cut.new_bytes < 0]
            pace = Pace(sum(cut.info.raw_bytes for cut in cuts) * _PASSES, None, progress, keep_going)
            filled = segments = 0
            absent: list[int] = []
            damaged: list[int] = []
            complete = True
            for cut in cuts:
                try:
                    self._fill(cut, original, pace)
                except missing as error:
                    (damaged if isinstance(error, BackupDamaged) else absent).append(cut.info.number)
                    continue
                except Stopped:
                    complete = False
                    break
                filled -= cut.new_bytes
                segments += 1
            after = self.status().floor
            seconds = time.monotonic() - started
            if segments:
                emit(
                    "journal_refilled",
                    logging.INFO,
                    f"filled {segments} segments of the journal with {filled} bytes",
                    place=self._backend.path,
                    floor_before=before.floor,
                    floor_after=after,
                    filled_bytes=filled,
                )
            named = tuple(absent), tuple(damaged)
            return RefillReport(before.floor, after, segments, filled, *named, seconds, complete)

    def _fill(self, cut: Cut, original: Original, pace: Pace) -> None:
        info, holes = cut.info, _holes_of(self._journal, cut)
        with original(info.number, self.last_digest(info)) as file:
            self._journal.compact(info.number, holes=holes, floor=cut.floor, original=file, step=pace.step)
        hit("store.retention.after_segment")
