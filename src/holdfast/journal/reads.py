"""Reading frames by number: shared by the writing journal and by readers in other processes.

Invariants:
    * A frame is handed out only after its digest was checked against its salt and its seq against what was asked for;
      a part only after its hash was checked.
    * Memory is bounded: no segment is read whole; a few descriptors and a few frame headers are kept.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .._fs import File, FileSystem
from .._seal import PartCipher
from ..errors import ClosedError, CorruptionError, InvalidInputError, NotFoundError, PrunedError
from ..events import corruption_found
from .api import PLAIN_KINDS, Frame
from .codec import decode_part
from .compacted import CompactedFile, open_segment
from .scan import DROPPABLE, HEAD_READ_BYTES, Window, read_frame_at, scan_frames, verify_sealed_content
from .segment import SEGMENT_HEADER_BYTES, Segment, SegmentInfo

__all__ = ["FrameReads"]

_OPEN_FILES_MAX: Final = 64
_CACHED_FRAMES_MAX: Final = 16


class _Handle:
    """An open file that is closed when its last user drops it, so that eviction never closes it under a reader."""

    __slots__ = ("file",)

    def __init__(self, file: File) -> None:
        self.file = file

    def __del__(self) -> None:
        self.file.close()


class FrameReads:
    """Frames by number out of a list of segments. Subclasses say how far one may read."""

    def __init__(self, fs: FileSystem, directory: Path, *, salt: bytes, cipher: PartCipher | None = None) -> None:
        self._fs = fs
        self._journal_directory = directory
        self._salt = salt
        self._cipher = cipher
        self._segments: list[Segment] = []
        self._firsts: list[int] = []
        self._files: OrderedDict[int, _Handle] = OrderedDict()
        self._cached: OrderedDict[int, Frame] = OrderedDict()
        self._cache_lock = threading.Lock()
        self._closed = False

    # -- what may be read ---------------------------------------------------------------------------------------

    @property
    def first_seq(self) -> int:
        """Lowest seq that can be read."""
        return self._firsts[0] if self._firsts else 1

    @property
    def retained_from(self) -> int:
        """Blocks from this height on miss no body and no extra, as far as files were opened since they changed."""
        return max((segment.retained_from for segment in self._segments), default=0)

    def _end_seq(self) -> int:
        """Highest seq that may be read now."""
        raise NotImplementedError

    def _durable_end(self, number: int) -> int:
        """Offset behind the last durable frame of the open segment ``number``."""
        raise NotImplementedError

    # -- reading ------------------------------------------------------------------------------------------------

    def frame(self, seq: int) -> Frame:
        """The verified header of frame ``seq``.

        Raises:
            NotFoundError: it is below the first or beyond the last frame.
            CorruptionError: the stored bytes are not that frame.
        """
        if not self.first_seq <= seq <= self._end_seq():
            raise NotFoundError("no such frame", seq=seq, first_seq=self.first_seq, last_seq=self._end_seq())
        with self._cache_lock:
            frame = self._cached.get(seq)
            if frame is not None:
                self._cached.move_to_end(seq)
                return frame
        try:
            frame = self._read_frame(seq)
        except CorruptionError as error:
            self._tell(error, seq)
            raise
        with self._cache_lock:
            self._cached[seq] = frame
            if len(self._cached) > _CACHED_FRAMES_MAX:
                self._cached.popitem(last=False)
        return frame

    def _read_frame(self, seq: int) -> Frame:
        segment = self._segment_of(seq)
        handle = self._handle(segment)
        offset = self._offset_of(segment, handle.file, seq)
        stop = segment.frames_end
        window = Window(handle.file, stop, HEAD_READ_BYTES)
        frame = read_frame_at(window, offset, salt=self._salt, segment=segment.number, stop=stop)
        self._check_seq(frame, seq, segment)
        return frame

    def _tell(self, error: CorruptionError, seq: int) -> None:
        """Damage in frame ``seq`` is told, with the file that it is in."""
        error.context.setdefault("path", self._segment_of(seq).path)
        corruption_found(error)

    def part(self, frame: Frame, index: int) -> bytes:
        """Decoded bytes of part ``index`` of ``frame``; hash and raw length are right.

        Raises:
            CorruptionError: the stored bytes are not that part.
            KeyRequired: the part is encrypted, and the journal was opened without its cipher.
            UnsupportedFormat: the part has a codec that is not known.
            PrunedError: retention dropped it; ``least_readable`` is the lowest height that misses nothing.
        """
        part = frame.parts[index]
        if self._cipher is not None and part.kind in PLAIN_KINDS:
            self._vouch(frame)
        handle = self._handle(self._segment_of(frame.seq))  # held until the bytes are read: others may forget the file
        try:
            stored = handle.file.pread(part.stored_bytes, part.offset)
        except PrunedError as error:
            error.context |= {"seq": frame.seq, "least_readable": self.retained_from}
            raise
        try:
            return decode_part(
                stored,
                part,
                segment=frame.segment,
                seq=frame.seq,
                index=index,
                bound=frame.bound,
                cipher=self._cipher,
            )
        except CorruptionError as error:
            self._tell(error, frame.seq)
            raise

    def _vouch(self, frame: Frame) -> None:
        """A part of ``frame`` is encrypted, so whoever wrote its plain ones had the key. Else ``CorruptionError``."""
        sealed = [
            (part.stored_bytes, index)
            for index, part in enumerate(frame.parts)
            if part.kind not in PLAIN_KINDS and part.kind not in DROPPABLE
        ]
        if not sealed:
            error = CorruptionError(
                "nothing in a frame of an encrypted journal is encrypted", segment=frame.segment, seq=frame.seq
            )
            self._tell(error, frame.seq)
            raise error
        self.part(frame, min(sealed)[1])

    def frames(self, start_seq: int, stop_seq: int | None = None) -> Iterator[Frame]:
        """Frames from ``start_seq`` up to and without ``stop_seq``, in order, their chain of digests checked.

        ``None`` as ``stop_seq`` means all that may be read when the call is made. Memory is bounded.

        Raises:
            CorruptionError: a frame is not there or does not follow from the one before it.
        """
        if start_seq < self.first_seq:
            raise NotFoundError("no such frame", seq=start_seq, first_seq=self.first_seq)
        end = self._end_seq() if stop_seq is None else min(stop_seq - 1, self._end_seq())
        return self._frames(start_seq, end)

    def _frames(self, seq: int, end: int) -> Iterator[Frame]:
        previous: bytes | None = None
        while seq <= end:
            segment = self._segment_of(seq)
            handle = self._handle(segment)
            offset = self._offset_of(segment, handle.file, seq)
            last = min(end, segment.last_seq)
            window = Window(handle.file, segment.frames_end)
            stop = segment.frames_end
            while seq <= last:
                frame = read_frame_at(window, offset, salt=self._salt, segment=segment.number, stop=stop)
                self._check_seq(frame, seq, segment)
                if previous is not None and frame.previous != previous:
                    raise CorruptionError("the chain of digests is broken", path=segment.path, seq=seq, offset=offset)
                yield frame
                previous = frame.digest
                offset += frame.length
                seq += 1

    def segments(self) -> list[SegmentInfo]:
        """What is known about every segment that has a header, in order."""
        infos: list[SegmentInfo] = []
        for segment in list(self._segments):
            handle = self._handle(segment)
            file, header = handle.file, segment.header
            size = file.size()
            compacted = file if isinstance(file, CompactedFile) else None
            infos.append(
                SegmentInfo(
                    header.number,
                    segment.path,
                    compacted.generation if compacted is not None else 0,
                    header.first_seq,
                    segment.count,
                    segment.frames_end,
                    compacted.stored_bytes if compacted is not None else size,
                    segment.sealed,
                    size,
                    compacted.pruned_bytes if compacted is not None else 0,
                    compacted.floor if compacted is not None else 0,
                )
            )
        return infos

    def verify_segment(self, number: int) -> int:
        """Number of frames in segment ``number``, after every byte of them (and of its seal) was checked.

        Of an open segment only what is durable is checked.

        Raises:
            CorruptionError: a byte is not as it was written.
        """
        if not 0 < number <= len(self._segments):
            raise InvalidInputError("there is no such segment", segment=number)
        segment = self._segments[number - 1]
        handle = self._handle(segment)
        if segment.sealed:
            return verify_sealed_content(handle.file, segment, salt=self._salt)
        stop = self._durable_end(number)
        return sum(1 for _ in scan_frames(handle.file, segment, salt=self._salt, stop=stop))

    # -- places -------------------------------------------------------------------------------------------------

    def _check_seq(self, frame: Frame, seq: int, segment: Segment) -> None:
        if frame.seq != seq:
            raise CorruptionError(
                "another frame stands here", path=segment.path, offset=frame.offset, found=frame.seq, expected=seq
            )

    def _segment_of(self, seq: int) -> Segment:
        index = bisect_right(self._firsts, seq) - 1
        if index < 0:
            raise NotFoundError("no such frame", seq=seq, first_seq=self.first_seq)
        segment = self._segments[index]
        if seq > segment.last_seq:
            raise CorruptionError("a frame is missing from its segment", path=segment.path, seq=seq)
        return segment

    def _offset_of(self, segment: Segment, file: File, seq: int) -> int:
        offsets = segment.offsets
        if offsets is not None:
            return offsets[seq - segment.first_seq]
        data = file.pread(8, segment.frames_end + 8 * (seq - segment.first_seq))
        offset = int.from_bytes(data, "big")
        if len(data) != 8 or offset % 8 or not SEGMENT_HEADER_BYTES <= offset < segment.frames_end:
            raise CorruptionError("the table of offsets is damaged", path=segment.path, seq=seq, found=offset)
        return offset

    def _handle(self, segment: Segment) -> _Handle:
        number = segment.number
        with self._cache_lock:
            handle = self._files.get(number)
            if handle is not None:
                self._files.move_to_end(number)
                return handle
            if self._closed:
                raise ClosedError("the journal is closed", path=self._journal_directory)
            file = open_segment(self._fs, segment.path, salt=self._salt)
            segment.retained_from = file.floor if isinstance(file, CompactedFile) else 0
            handle = self._files[number] = _Handle(file)
            evicted = self._files.popitem(last=False)[1] if len(self._files) > _OPEN_FILES_MAX else None
        del evicted
        return handle

    def _reopen(self, number: int) -> None:
        """The next read of segment ``number`` opens its file again; readers that have the old one go on with it."""
        with self._cache_lock:
            gone = self._files.pop(number, None)
        del gone

    def _add_segment(self, segment: Segment) -> None:
        self._segments.append(segment)
        self._firsts.append(segment.first_seq)

    def abandon(self) -> None:
        """For the child after ``fork()``: every descriptor of this process is released, nothing is written."""
        self._cache_lock = threading.Lock()  # a thread that is not in the child may have held it
        self._forget_files()

    def _forget_files(self) -> None:
        with self._cache_lock:
            self._closed = True
            self._files.clear()
            self._cached.clear()
