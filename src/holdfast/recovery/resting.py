"""The journal of a store at rest, read without changing a byte of it.

Invariants:
    * Nothing is written, cut or moved: what an open would do is only foretold.
    * Frames are handed out up to the last one that an open would keep, digests checked.
"""

from __future__ import annotations

from pathlib import Path

from .._fs import FileSystem
from .._seal import PartCipher
from ..errors import CorruptionError
from ..journal.api import DurableMark
from ..journal.compacted import open_segment
from ..journal.reads import FrameReads
from ..journal.recovery import JOURNAL_DIRECTORY, Findings, inspect_journal
from ..journal.scan import scan_frames, verify_sealed_content
from ..journal.segment import (
    SEAL_BYTES,
    SEGMENT_HEADER_BYTES,
    Segment,
    decode_header,
    decode_seal,
    segment_number,
)
from ..journal.watermark import WATERMARK_NAME, read_slots
from ..store.identity import Identity

__all__ = ["RestingJournal", "read_marks", "verify_loose_segment"]


def read_marks(fs: FileSystem, root: Path, salt: bytes) -> tuple[DurableMark, int]:
    """The newest watermark, and how many of its two slots are damaged. Raises ``CorruptionError``, ``MissingFile``."""
    file = fs.open(root / WATERMARK_NAME, read_only=True)
    try:
        slots = read_slots(file, salt=salt, whole=True)
    finally:
        file.close()
    valid = [slot for slot in slots if slot is not None]
    if not valid:
        raise CorruptionError("both slots of the watermark are damaged", path=root / WATERMARK_NAME)
    return max(valid, key=lambda slot: slot.counter), len(slots) - len(valid)


class RestingJournal(FrameReads):
    """Frames of a store that no process has open, judged by the tail rule and left as they are."""

    def __init__(
        self, fs: FileSystem, root: Path, identity: Identity, found: Findings, cipher: PartCipher | None = None
    ) -> None:
        super().__init__(fs, root / JOURNAL_DIRECTORY, salt=identity.salt, cipher=cipher)
        self.found = found
        self._last = found.segments[-1].last_seq
        for segment in found.segments:
            self._add_segment(segment)

    @classmethod
    def open(
        cls, fs: FileSystem, root: Path, identity: Identity, mark: DurableMark, cipher: PartCipher | None = None
    ) -> RestingJournal:
        """The journal under ``root``. Raises ``CorruptionError`` where an open for writing would.

        Without its ``cipher`` an encrypted one gives no parts; all else can be checked.
        """
        found = inspect_journal(fs, root, store_id=identity.store_id, salt=identity.salt, mark=mark)
        return cls(fs, root, identity, found, cipher)

    @property
    def durable_seq(self) -> int:
        """Last seq that an open would keep."""
        return self._last

    def _end_seq(self) -> int:
        return self._last

    def _durable_end(self, number: int) -> int:
        return self._segments[number - 1].frames_end

    def close(self) -> None:
        """Every descriptor is released."""
        self._forget_files()


def verify_loose_segment(fs: FileSystem, path: Path, identity: Identity, *, newest: bool) -> int:
    """Number of frames of one segment file, checked alone; for a journal that does not hold together.

    Raises:
        CorruptionError: at its first bad byte. An unsealed newest segment is checked up to its first zeros.
    """
    file = open_segment(fs, path, salt=identity.salt)
    try:
        size = file.size()
        header = decode_header(
            file.pread(SEGMENT_HEADER_BYTES, 0), store_id=identity.store_id, salt=identity.salt, path=path
        )
        if header is None or header.number != segment_number(path.name):
            if newest and not file.pread(SEGMENT_HEADER_BYTES, 0).strip(b"\0"):
                return 0  # prepared, not begun
            raise CorruptionError("a segment has no valid header", path=path, offset=0)
        segment = Segment(path, header)
        seal = decode_seal(file.pread(SEAL_BYTES, max(0, size - SEAL_BYTES)), header=header, file_bytes=size)
        if seal is not None:
            segment.set_sealed(seal)
            return verify_sealed_content(file, segment, salt=identity.salt)
        if not newest:
            raise CorruptionError("a segment has no valid seal", path=path, offset=max(0, size - SEAL_BYTES))
        count = 0
        end = SEGMENT_HEADER_BYTES
        try:
            for frame in scan_frames(file, segment, salt=identity.salt, stop=size):
                count += 1
                end = frame.offset + frame.length
        except CorruptionError:
            if file.pread(8, end).strip(b"\0"):
                raise
        return count
    finally:
        file.close()
