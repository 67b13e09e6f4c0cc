"""Opening a journal: what is there, the tail rule, and cutting what was never acknowledged (docs/FORMAT.md, 5.4).

Invariants:
    * ``inspect_journal`` writes nothing. Everything that speaks against a cut is checked before anything is cut.
    * What is cut was copied to ``quarantine/`` and synced first.
    * After ``finish_tail`` every segment is sealed, and every frame that will be handed out is on the device: bytes
      above the watermark are written once more, because a sync of them may have failed before.
    * Both steps may be cut short at any point and run again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .. import _failpoints
from .._fs import File, FileSystem
from ..errors import CommitLoss, CorruptionError, MissingFile
from ..types import DiscardedFrames
from .api import DurableMark, Frame
from .codec import FRAME_HEAD, FRAME_HEAD_BYTES, FRAME_MAGIC, head_length, parse_head
from .compacted import CompactedFile, open_segment
from .scan import Window, read_frame_at, scan_frames, verify_seal_table
from .segment import (
    SEAL_BYTES,
    SEGMENT_HEADER_BYTES,
    Seal,
    Segment,
    decode_header,
    decode_seal,
    segment_name,
    segment_number,
)

__all__ = ["JOURNAL_DIRECTORY", "Findings", "finish_tail", "frames_alone", "inspect_journal"]

JOURNAL_DIRECTORY: Final = "journal"
QUARANTINE_DIRECTORY: Final = "quarantine"
_STEP_BYTES: Final = 1 << 20


@dataclass(slots=True)
class Leftover:
    """A segment file behind the last one with a valid header. ``length`` 0 means that it is all zeros."""

    path: Path
    number: int
    length: int


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    offset: int
    seq: int
    watermark: int

    def error(self, kind: type[CorruptionError], message: str) -> CorruptionError:
        return kind(message, path=self.path, offset=self.offset, seq=self.seq, watermark=self.watermark)


@dataclass(slots=True)
class Findings:
    """What ``inspect_journal`` found; ``segments`` all have valid headers, and all but the last are sealed."""

    segments: list[Segment]
    clean: bool
    frames_scanned: int = 0
    tail_problem: str = ""
    garbage_bytes: int = 0
    leftovers: list[Leftover] = field(default_factory=list)
    temporaries: list[Path] = field(default_factory=list)

    @property
    def last_seq(self) -> int:
        """Seq of the last valid frame."""
        return self.segments[-1].last_seq

    @property
    def last_digest(self) -> bytes:
        """Its digest."""
        return self.segments[-1].digest


# -- reading -----------------------------------------------------------------------------------------------------


def inspect_journal(fs: FileSystem, directory: Path, *, store_id: bytes, salt: bytes, mark: DurableMark) -> Findings:
    """What stands in ``directory``/journal, judged by the tail rule against ``mark``. Nothing is written.

    Raises:
        CorruptionError: acknowledged bytes are damaged (``CommitLoss``, ``MissingFile`` if they are not there).
    """
    place = directory / JOURNAL_DIRECTORY
    names = fs.names(place)
    numbers = [number for name in names if (number := segment_number(name)) is not None]
    for expected, number in enumerate(numbers, start=1):
        if number != expected:
            raise MissingFile("a segment is missing", path=place / segment_name(expected))
    segments, rest = _read_headers(fs, place, numbers, store_id=store_id, salt=salt)
    if not segments:
        raise CorruptionError("the first segment is missing or has no valid header", path=place / segment_name(1))
    leftovers = _read_leftovers(fs, rest)
    found = Findings(segments, clean=False, leftovers=leftovers)
    found.temporaries = [place / name for name in names if name.endswith(".tmp")]
    tail = segments[-1]
    if mark.clean:
        _check_clean(segments, mark)
    if mark.clean and mark.segment == tail.number and not leftovers:
        _check_table(fs, tail, salt)
        found.clean = True
        return found
    file = fs.open(tail.path, read_only=True)
    try:
        _scan_tail(file, found, salt=salt)
        _judge(fs, file, found, salt=salt, mark=mark)
    finally:
        file.close()
    _check_mark(fs, found, salt=salt, mark=mark)
    return found


def _read_headers(
    fs: FileSystem, place: Path, numbers: list[int], *, store_id: bytes, salt: bytes
) -> tuple[list[Segment], list[tuple[Path, int]]]:
    """Segments with valid headers, linked and (all but the last) sealed; and the files behind them."""
    segments: list[Segment] = []
    rest: list[tuple[Path, int]] = []
    newest: File | None = None
    for number in numbers:
        path = place / segment_name(number)
        file = open_segment(fs, path, salt=salt)
        try:
            header = decode_header(file.pread(SEGMENT_HEADER_BYTES, 0), store_id=store_id, salt=salt, path=path)
            if header is None:
                rest.append((path, number))
                continue
            if rest:
                raise CorruptionError("a segment in the middle has no valid header", path=rest[0][0])
            if header.number != number:
                raise CorruptionError("a segment has a wrong number", path=path, found=header.number, expected=number)
            before = segments[-1] if segments else None
            if before is not None and not before.sealed:
                raise CorruptionError("a segment has no valid seal, yet a later one exists", path=before.path)
            last_seq, digest = (before.last_seq, before.digest) if before is not None else (0, bytes(32))
            if header.first_seq != last_seq + 1 or header.previous != digest:
                raise CorruptionError("a segment does not follow from the one before it", path=path)
            segment = Segment(path, header)
            if isinstance(file, CompactedFile):
                segment.generation, segment.retained_from = file.generation, file.floor
            size = file.size()
            seal = decode_seal(file.pread(SEAL_BYTES, max(0, size - SEAL_BYTES)), header=header, file_bytes=size)
            if seal is not None:
                segment.set_sealed(seal)
            segments.append(segment)
            newest = file
        finally:
            file.close()
    if isinstance(newest, CompactedFile):
        raise CommitLoss("the newest segment is compacted, so a segment behind it is gone", path=newest.path)
    return segments, rest


def _read_leftovers(fs: FileSystem, rest: list[tuple[Path, int]]) -> list[Leftover]:
    leftovers: list[Leftover] = []
    for path, number in rest:
        file = fs.open(path, read_only=True)
        try:
            length = _used_bytes(file, 0)
            if leftovers and file.pread(SEGMENT_HEADER_BYTES, 0).strip(b"\0"):
                raise CorruptionError("a segment in the middle has no valid header", path=rest[0][0])
        finally:
            file.close()
        leftovers.append(Leftover(path, number, length))
    return leftovers


def _check_clean(segments: list[Segment], mark: DurableMark) -> None:
    """After a clean close the segment that the mark names is sealed and ends where the mark says."""
    if mark.segment > len(segments):
        raise CommitLoss("a segment with acknowledged frames is gone or damaged", segment=mark.segment, seq=mark.seq)
    segment = segments[mark.segment - 1]
    if not segment.sealed:
        raise CorruptionError("the journal was closed cleanly, yet its last seal is damaged", path=segment.path)
    if (segment.last_seq, segment.digest, segment.frames_end) != (mark.seq, mark.digest, mark.end_offset):
        raise CorruptionError(
            "the journal is not the one that the watermark names",
            path=segment.path, found=segment.last_seq, expected=mark.seq,
        )  # fmt: skip


def _check_table(fs: FileSystem, segment: Segment, salt: bytes) -> None:
    file = open_segment(fs, segment.path, salt=salt)
    try:
        verify_seal_table(file, segment, salt=salt)
    finally:
        file.close()


def _scan_tail(file: File, found: Findings, *, salt: bytes) -> None:
    """The last segment's frames are known, and what stands behind them."""
    header = found.segments[-1].header
    tail = Segment(found.segments[-1].path, header)
    size = file.size()
    try:
        for frame in scan_frames(file, tail, salt=salt, stop=size):
            tail.add(frame.offset, frame.offset + frame.length, frame.digest)
    except CorruptionError as error:
        found.tail_problem = error.message
    found.segments[-1] = tail
    found.frames_scanned = tail.count
    used = _used_bytes(file, tail.frames_end)
    seal = tail.seal_bytes(salt)
    if file.pread(len(seal), tail.frames_end) == seal and used <= len(seal):
        return
    found.garbage_bytes = used


def _used_bytes(file: File, start: int) -> int:
    """Number of bytes from ``start`` to the last one that is not zero."""
    position = start
    used = 0
    while data := file.pread(_STEP_BYTES, position):
        kept = data.rstrip(b"\0")
        if kept:
            used = position + len(kept) - start
        position += len(data)
    return used


def _judge(fs: FileSystem, file: File, found: Findings, *, salt: bytes, mark: DurableMark) -> None:
    """Rules 1 and 2 of the tail rule; rule 3 held when the headers were read."""
    tail = found.segments[-1]
    missing = tail.last_seq + 1
    damaged = found.garbage_bytes > 0 or any(leftover.length for leftover in found.leftovers)
    place = _Place(tail.path, tail.frames_end, missing, mark.seq)
    if mark.seq >= missing:
        if damaged:
            raise place.error(CorruptionError, f"an acknowledged frame is damaged: {found.tail_problem or 'no header'}")
        raise place.error(CommitLoss, "acknowledged frames are no longer in the journal")
    if found.garbage_bytes:
        _refuse_later_proof(file, tail.frames_end, missing, salt, place)
    for leftover in found.leftovers:
        if leftover.length:
            other = fs.open(leftover.path, read_only=True)
            try:
                _refuse_later_proof(other, 0, missing, salt, place)
            finally:
                other.close()


def _refuse_later_proof(file: File, start: int, missing: int, salt: bytes, place: _Place) -> None:
    for frame in frames_alone(file, start, salt, durable_min=missing):
        if frame.durable_seq >= missing:
            raise place.error(
                CorruptionError, f"an acknowledged frame is damaged: the frame at {frame.offset} says it was durable"
            )


def frames_alone(file: File, start: int, salt: bytes, *, durable_min: int = 0) -> Iterator[Frame]:
    """Frames whose digest verifies, on multiples of 8 from ``start`` on, that name ``durable_min`` or later as durable.

    Whatever lies between them is passed over, so these need not follow from one another.
    """
    size = file.size()
    position = start
    while position < size:
        data = file.pread(_STEP_BYTES + 8, position)
        at = data.find(FRAME_MAGIC)
        while 0 <= at < _STEP_BYTES:
            if (position + at) % 8 == 0:
                frame = _frame_alone(file, position + at, durable_min, size, salt)
                if frame is not None:
                    yield frame
            at = data.find(FRAME_MAGIC, at + 4)
        position += _STEP_BYTES


def _frame_alone(file: File, offset: int, missing: int, size: int, salt: bytes) -> Frame | None:
    fixed = file.pread(FRAME_HEAD_BYTES, offset)
    if len(fixed) < FRAME_HEAD_BYTES or FRAME_HEAD.unpack(fixed)[5] < missing:
        return None
    try:
        length = head_length(fixed)
        return parse_head(file.pread(length, offset), salt=salt, segment=0, offset=offset)
    except CorruptionError:
        return None  # not a frame: bytes that look like the magic


def _check_mark(fs: FileSystem, found: Findings, *, salt: bytes, mark: DurableMark) -> None:
    """The frame that the watermark names stands where it says, with that digest."""
    if not 0 < mark.segment <= len(found.segments):
        raise CorruptionError("the watermark names a segment that is not there", segment=mark.segment, seq=mark.seq)
    segment = found.segments[mark.segment - 1]
    index = mark.seq - segment.first_seq
    if not 0 <= index < segment.count:
        raise CorruptionError("the watermark names the wrong segment", path=segment.path, seq=mark.seq)
    file = open_segment(fs, segment.path, salt=salt)
    try:
        if segment.offsets is not None:
            offset = segment.offsets[index]
        else:
            offset = int.from_bytes(file.pread(8, segment.frames_end + 8 * index), "big")
        stop = segment.frames_end
        frame = read_frame_at(Window(file, stop), offset, salt=salt, segment=segment.number, stop=stop)
    finally:
        file.close()
    if (frame.seq, frame.digest, offset + frame.length) != (mark.seq, mark.digest, mark.end_offset):
        raise CorruptionError(
            "the journal and the watermark are of two histories",
            path=segment.path, seq=mark.seq, found=frame.digest, expected=mark.digest,
        )  # fmt: skip


# -- writing -----------------------------------------------------------------------------------------------------


def finish_tail(
    fs: FileSystem, directory: Path, found: Findings, *, salt: bytes, mark: DurableMark
) -> tuple[DiscardedFrames, ...]:
    """The tail is cut, sealed and durable; prepared and torn files behind it are gone, evidence is in quarantine."""
    place = directory / JOURNAL_DIRECTORY
    tail = found.segments[-1]
    discarded: list[DiscardedFrames] = []
    if found.garbage_bytes:
        name = _quarantine(fs, directory, tail.path, tail.number, tail.frames_end, found.garbage_bytes)
        reason = found.tail_problem or "bytes behind the last frame"
        discarded.append(DiscardedFrames(tail.number, tail.frames_end, found.garbage_bytes, reason, name))
    for leftover in found.leftovers:
        if leftover.length:
            name = _quarantine(fs, directory, leftover.path, leftover.number, 0, leftover.length)
            reason = "a segment without a valid header"
            discarded.append(DiscardedFrames(leftover.number, 0, leftover.length, reason, name))
    _failpoints.hit("journal.recovery.quarantined")
    seal = tail.seal_bytes(salt)
    start = mark.end_offset if mark.segment == tail.number else 0
    file = fs.open(tail.path)
    try:  # also where the seal is there: the process that wrote it may have died before its sync
        _write_again(file, start, tail.frames_end)
        file.pwrite(seal, tail.frames_end)
        file.truncate(tail.frames_end + len(seal))
        file.sync()
    finally:
        file.close()
    tail.set_sealed(Seal(tail.count, tail.last_seq, tail.frames_end, tail.digest))
    _failpoints.hit("journal.recovery.sealed")
    for path in found.temporaries:
        fs.remove(path)
    for leftover in reversed(found.leftovers):  # one by one from the end, so that a crash leaves no gap
        fs.remove(leftover.path)
        fs.sync_directory(place)
    return tuple(discarded)


def _write_again(file: File, start: int, stop: int) -> None:
    position = start
    while position < stop:
        data = file.pread(min(_STEP_BYTES, stop - position), position)
        if not data:
            raise CorruptionError("a segment became shorter while it was read", path=file.path, offset=position)
        file.pwrite(data, position)
        position += len(data)


def _quarantine(fs: FileSystem, directory: Path, source: Path, number: int, offset: int, length: int) -> str:
    """Name of a durable copy of ``length`` bytes at ``offset`` of ``source``."""
    place = directory / QUARANTINE_DIRECTORY
    fs.make_directory(place)
    stem = f"{number:010d}-{offset}"
    taken = set(fs.names(place))
    name = f"{stem}.bytes"
    copy = 1
    while name in taken:
        copy += 1
        name = f"{stem}-{copy}.bytes"
    temporary = place / f"{name}.tmp"
    fs.remove(temporary)
    original = fs.open(source, read_only=True)
    try:
        target = fs.open(temporary, create=True)
        try:
            for position in range(0, length, _STEP_BYTES):
                target.pwrite(original.pread(min(_STEP_BYTES, length - position), offset + position), position)
            target.sync()
        finally:
            target.close()
    finally:
        original.close()
    fs.rename(temporary, place / name)
    fs.sync_directory(place)
    return f"{QUARANTINE_DIRECTORY}/{name}"
