"""Sequential reading and full checking of the frames of one segment.

Invariants:
    * Memory is bounded: one buffer of fixed size, whatever the bytes claim.
    * A frame that is handed out has a right digest; ``scan_frames`` also checked order, chain, part hashes and padding.
    * Only bodies and extras may be absent, each as a whole, and only from a compacted segment.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Final

from .._fs import File
from ..errors import CorruptionError
from .api import Frame, Kind, PartInfo
from .codec import FRAME_HEAD_BYTES, head_length, parse_head
from .compacted import CompactedFile
from .segment import SEAL_BYTES, SEGMENT_HEADER_BYTES, Segment

__all__ = [
    "DROPPABLE",
    "HEAD_READ_BYTES",
    "Window",
    "check_parts",
    "read_frame_at",
    "scan_frames",
    "verify_seal_table",
    "verify_sealed_content",
]

HEAD_READ_BYTES: Final = 1024
_WINDOW_BYTES: Final = 1 << 18
_HASH_STEP_BYTES: Final = 1 << 20

DROPPABLE: Final = frozenset((Kind.BODY, Kind.EXTRA))
"""Kinds of parts that retention may drop: nothing else is read to rebuild the views."""


class Window:
    """Sequential reads of one file below ``stop`` through a buffer of bounded size.

    ``ahead``: bytes that are read at once; few for a frame that is read alone.
    """

    __slots__ = ("_ahead", "_buffer", "_compacted", "_file", "_start", "_stop")

    def __init__(self, file: File, stop: int, ahead: int = _WINDOW_BYTES) -> None:
        self._file = file
        self._ahead = ahead
        self._compacted = file if isinstance(file, CompactedFile) and file.floor else None
        self._stop = stop
        self._start = 0
        self._buffer = b""

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes at ``offset``; fewer only at ``stop``, at the end of the file or before pruned bytes."""
        position = offset - self._start
        if position >= 0 and position + length <= len(self._buffer):
            return self._buffer[position : position + length]
        most = self._stop - offset
        if self._compacted is not None:
            most = min(most, self._compacted.kept_from(offset))
        length = max(0, min(length, most))
        if length > self._ahead:
            return self._file.pread(length, offset)
        self._buffer = self._file.pread(min(self._ahead, most), offset) if length else b""
        self._start = offset
        return self._buffer[:length]

    def absent(self, part: PartInfo) -> bool:
        """True if the stored bytes of ``part`` were pruned, with their padding."""
        compacted = self._compacted
        return compacted is not None and compacted.absent(part.offset, part.stored_bytes + (-part.stored_bytes & 7))


def read_frame_at(window: Window, offset: int, *, salt: bytes, segment: int, stop: int) -> Frame:
    """The verified header of the frame at ``offset`` that must end at or before ``stop``.

    Raises:
        CorruptionError: there is no valid frame.
    """
    head = window.read(offset, HEAD_READ_BYTES)
    size = head_length(head[:FRAME_HEAD_BYTES])
    if size > len(head):
        head = window.read(offset, size)
    frame = parse_head(head, salt=salt, segment=segment, offset=offset)
    if offset + frame.length > stop:
        raise CorruptionError("a frame runs past the end of its segment", segment=segment, offset=offset, seq=frame.seq)
    return frame


def check_parts(window: Window, frame: Frame) -> None:
    """The hash of every part that was not pruned, and the zeros between them, are right. Memory is bounded.

    Raises:
        CorruptionError: one is not.
    """
    for part in frame.parts:
        padding = -part.stored_bytes & 7
        data = b""
        if part.kind in DROPPABLE and part.stored_bytes and window.absent(part):
            continue
        if part.stored_bytes + padding <= _HASH_STEP_BYTES:
            data = window.read(part.offset, part.stored_bytes + padding)
            found = sha256(data[: part.stored_bytes]).digest()
            tail = data[part.stored_bytes :]
        else:
            state = sha256()
            done = 0
            while done < part.stored_bytes:
                data = window.read(part.offset + done, min(_HASH_STEP_BYTES, part.stored_bytes - done))
                if not data:
                    break
                state.update(data)
                done += len(data)
            found = state.digest()
            tail = window.read(part.offset + part.stored_bytes, padding)
        if found != part.sha256:
            raise CorruptionError("a part has a wrong hash", segment=frame.segment, seq=frame.seq, offset=part.offset)
        if tail != bytes(padding):
            raise CorruptionError("the padding is not zero", segment=frame.segment, seq=frame.seq, offset=part.offset)


def scan_frames(file: File, segment: Segment, *, salt: bytes, stop: int, parts: bool = True) -> Iterator[Frame]:
    """Every frame of ``segment`` below ``stop``: digest, order, chain, part hashes and padding checked.

    Without ``parts`` neither the bytes of parts nor the padding between them are looked at.

    Raises:
        CorruptionError: at the first place below ``stop`` where no valid frame begins.
    """
    window = Window(file, stop)
    offset = SEGMENT_HEADER_BYTES
    seq = segment.first_seq
    previous = segment.header.previous
    while offset < stop:
        frame = read_frame_at(window, offset, salt=salt, segment=segment.number, stop=stop)
        if frame.seq != seq or frame.previous != previous:
            raise CorruptionError("a frame does not follow from the one before it", path=segment.path, offset=offset)
        if parts:
            check_parts(window, frame)
        yield frame
        offset += frame.length
        seq += 1
        previous = frame.digest


def verify_seal_table(file: File, segment: Segment, *, salt: bytes) -> bytes:
    """The table of offsets of a sealed segment, after the hash of the seal was found right.

    Raises:
        CorruptionError: it is not.
    """
    length = 8 * segment.count + SEAL_BYTES
    data = file.pread(length, segment.frames_end)
    if len(data) != length or sha256(salt + data[:-32]).digest() != data[-32:]:
        raise CorruptionError("the seal of a segment is damaged", path=segment.path, offset=segment.frames_end)
    return data[: 8 * segment.count]


def verify_sealed_content(file: File, segment: Segment, *, salt: bytes) -> int:
    """Number of frames, after every byte of a sealed segment was checked.

    Raises:
        CorruptionError: a byte is not as it was written.
    """
    table = verify_seal_table(file, segment, salt=salt)
    count = 0
    digest = segment.header.previous
    for frame in scan_frames(file, segment, salt=salt, stop=segment.frames_end):
        if frame.offset.to_bytes(8, "big") != table[8 * count : 8 * count + 8]:
            raise CorruptionError("the table of offsets is wrong", path=segment.path, seq=frame.seq)
        digest = frame.digest
        count += 1
    if count != segment.count or digest != segment.digest:
        raise CorruptionError("a seal does not fit its frames", path=segment.path, found=count, expected=segment.count)
    return count
