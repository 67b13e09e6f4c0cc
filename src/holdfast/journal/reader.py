"""Reading the journal of a store that another process writes (or that is not open at all).

Invariants:
    * Nothing is ever written, and no lock is taken.
    * No frame above the watermark is handed out; what was handed out stays, because only frames above it are ever cut.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Final, Self

from .._fs import File, FileSystem
from .._seal import PartCipher
from ..errors import CommitLoss, CorruptionError
from .api import DurableMark
from .compacted import open_segment
from .reads import FrameReads
from .recovery import JOURNAL_DIRECTORY
from .scan import Window, read_frame_at
from .segment import SEAL_BYTES, SEGMENT_HEADER_BYTES, Segment, decode_header, decode_seal, segment_name
from .watermark import WATERMARK_NAME, read_slots

__all__ = ["JournalReader"]

_TRIES: Final = 5
_TRY_AGAIN_SECONDS: Final = 0.001


class JournalReader(FrameReads):
    """The durable frames of a journal, as of the last ``poll``. Every method may be called from any thread."""

    def __init__(
        self,
        fs: FileSystem,
        directory: Path,
        *,
        store_id: bytes,
        salt: bytes,
        watermark: File,
        cipher: PartCipher | None = None,
    ) -> None:
        super().__init__(fs, directory / JOURNAL_DIRECTORY, salt=salt, cipher=cipher)
        self._store_id = store_id
        self._watermark = watermark
        self._poll_lock = threading.Lock()
        self._mark: DurableMark | None = None

    @classmethod
    def open(
        cls, fs: FileSystem, directory: Path, *, store_id: bytes, salt: bytes, cipher: PartCipher | None = None
    ) -> Self:
        """A reader that stands at the present watermark. Without its ``cipher`` an encrypted one gives no parts.

        Raises:
            MissingFile: there is no journal.
            CorruptionError: the watermark or a segment is damaged.
        """
        watermark = fs.open(directory / WATERMARK_NAME, read_only=True)
        reader = cls(fs, directory, store_id=store_id, salt=salt, watermark=watermark, cipher=cipher)
        try:
            reader.poll()
        except BaseException:
            reader.close()
            raise
        return reader

    @property
    def durable_seq(self) -> int:
        """Seq of the newest durable frame at the last ``poll``."""
        return self.mark.seq

    @property
    def mark(self) -> DurableMark:
        """The watermark at the last ``poll``."""
        assert self._mark is not None
        return self._mark

    def _end_seq(self) -> int:
        return self.mark.seq

    def _durable_end(self, number: int) -> int:
        return self.mark.end_offset if self.mark.segment == number else SEGMENT_HEADER_BYTES

    def poll(self) -> int:
        """The durable seq as it is now. Costs two small reads when nothing is new.

        Raises:
            CorruptionError: what the watermark names is not there.
        """
        with self._poll_lock:
            mark = self._read_mark()
            if self._mark is None or mark.counter != self._mark.counter:
                if self._mark is None or mark.seq > self._mark.seq:
                    self._follow(mark)
                self._mark = mark
            return mark.seq

    def close(self) -> None:
        """Every descriptor is released."""
        self._forget_files()
        self._watermark.close()

    def _read_mark(self) -> DurableMark:
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_TRY_AGAIN_SECONDS)  # the writer was in the middle of a slot
            valid = [slot for slot in read_slots(self._watermark, salt=self._salt, whole=False) if slot is not None]
            if valid:
                return max(valid, key=lambda slot: slot.counter)
        raise CorruptionError("both slots of the watermark are damaged", path=self._watermark.path)

    def _follow(self, mark: DurableMark) -> None:
        """Every segment up to the one that ``mark`` names is known, and every frame up to ``mark``."""
        if self._segments and not self._segments[-1].sealed:
            self._refresh(self._segments[-1], mark)
        while len(self._segments) < mark.segment:
            segment = self._read_segment(len(self._segments) + 1)
            self._refresh(segment, mark)
            self._add_segment(segment)
        segment = self._segments[mark.segment - 1]
        if segment.last_seq < mark.seq:
            raise CommitLoss("a durable frame is not in its segment", path=segment.path, seq=mark.seq)
        if segment.last_seq == mark.seq and segment.digest != mark.digest:
            raise CorruptionError("the journal and the watermark are of two histories", path=segment.path, seq=mark.seq)

    def _read_segment(self, number: int) -> Segment:
        path = self._journal_directory / segment_name(number)
        file = open_segment(self._fs, path, salt=self._salt)
        try:
            data = file.pread(SEGMENT_HEADER_BYTES, 0)
        finally:
            file.close()
        header = decode_header(data, store_id=self._store_id, salt=self._salt, path=path)
        if header is None or header.number != number:
            raise CorruptionError("a segment has no valid header", path=path)
        before = self._segments[-1] if self._segments else None
        last_seq, digest = (before.last_seq, before.digest) if before is not None else (0, bytes(32))
        if header.first_seq != last_seq + 1 or header.previous != digest:
            raise CorruptionError("a segment does not follow from the one before it", path=path)
        return Segment(path, header)

    def _refresh(self, segment: Segment, mark: DurableMark) -> None:
        """Frames of ``segment`` up to ``mark`` are known: from its seal if it has one, else by walking on."""
        handle = self._handle(segment)
        file = handle.file
        size = file.size()
        seal = decode_seal(file.pread(SEAL_BYTES, max(0, size - SEAL_BYTES)), header=segment.header, file_bytes=size)
        if seal is not None:
            segment.set_sealed(seal)
            return
        if segment.number != mark.segment or mark.clean:
            raise CorruptionError("a segment has no valid seal and should have one", path=segment.path)
        window = Window(file, mark.end_offset)
        while segment.last_seq < mark.seq:
            offset = segment.frames_end
            frame = read_frame_at(window, offset, salt=self._salt, segment=segment.number, stop=mark.end_offset)
            if frame.seq != segment.last_seq + 1 or frame.previous != segment.digest:
                raise CorruptionError(
                    "a frame does not follow from the one before it", path=segment.path, offset=offset
                )
            segment.add(offset, offset + frame.length, frame.digest)
