"""The watermark: two slots that say which frame is durable (docs/FORMAT.md, section 6).

Invariants:
    * A slot is written only after the frames that it names were synced: the watermark is never ahead.
    * The slot with the greatest valid counter counts; the other one is written next.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from pathlib import Path
from typing import Final

from .._fs import File, FileSystem
from ..errors import CorruptionError
from .api import DurableMark, TipMark

__all__ = ["WATERMARK_NAME", "Watermark", "decode_slot", "encode_slot", "read_slots"]

WATERMARK_NAME: Final = "watermark"
SLOT_BYTES: Final = 4096
USED_BYTES: Final = 184
_MAGIC = b"HFWATER1"
_SLOT = struct.Struct(">8sQQ32sQQB7xQ32s32s")
assert _SLOT.size == 152
_CLEAN = 1
_TIP = 2
_ZERO32 = bytes(32)
_REST = bytes(SLOT_BYTES - USED_BYTES)
_pack = _SLOT.pack


def encode_slot(mark: DurableMark, *, salt: bytes) -> bytes:
    """The 184 bytes of a slot that are not zero."""
    return _encode(mark.counter, mark.seq, mark.digest, mark.segment, mark.end_offset, mark.clean, mark.tip, salt)


def _encode(
    counter: int, seq: int, digest: bytes, segment: int, end: int, clean: bool, tip: TipMark | None, salt: bytes
) -> bytes:
    flags = _CLEAN if clean else 0
    if tip is None:
        fixed = _pack(_MAGIC, counter, seq, digest, segment, end, flags, 0, _ZERO32, _ZERO32)
    else:
        fixed = _pack(_MAGIC, counter, seq, digest, segment, end, flags | _TIP, tip.height, tip.hash, tip.root)
    return fixed + sha256(salt + fixed).digest()


def decode_slot(data: bytes, *, salt: bytes) -> DurableMark | None:
    """The mark in a slot; ``None`` if it does not verify. Bytes behind the first 184 must be zero if they are given."""
    if len(data) < USED_BYTES or data[USED_BYTES:].strip(b"\0"):
        return None
    if data[:8] != _MAGIC or sha256(salt + data[:152]).digest() != data[152:USED_BYTES]:
        return None
    _magic, counter, seq, digest, segment, end, flags, height, tip_hash, root = _SLOT.unpack_from(data)
    if data[73:80] != bytes(7) or flags & ~(_CLEAN | _TIP):
        return None
    tip = TipMark(height, tip_hash, root) if flags & _TIP else None
    return DurableMark(counter, seq, digest, segment, end, bool(flags & _CLEAN), tip)


def read_slots(file: File, *, salt: bytes, whole: bool) -> list[DurableMark | None]:
    """Both slots as they stand; ``whole`` also checks the zeros behind the 184 bytes and the length of the file."""
    length = SLOT_BYTES if whole else USED_BYTES
    slots: list[DurableMark | None] = []
    for index in range(2):
        data = file.pread(length, index * SLOT_BYTES)
        slots.append(decode_slot(data, salt=salt) if len(data) == length else None)
    return slots


class Watermark:
    """The open watermark of the writing process. Calls are ordered by the journal's sync lock."""

    __slots__ = ("_counter", "_damaged", "_file", "_salt", "_slot", "dirty", "mark", "written")

    def __init__(self, file: File, *, salt: bytes, slots: list[DurableMark | None]) -> None:
        valid = [slot for slot in slots if slot is not None]
        if not valid:
            raise CorruptionError("both slots of the watermark are damaged", path=file.path)
        newest = max(valid, key=lambda slot: slot.counter)
        self._file = file
        self._salt = salt
        self._counter = newest.counter
        self._slot = 1 - slots.index(newest)
        self._damaged = [slot is None for slot in slots]
        self.mark = newest
        """What stood there when it was opened."""
        self.dirty = False
        """Something was written and not synced."""
        self.written = False
        """Something was written since it was opened."""

    @classmethod
    def create(cls, fs: FileSystem, directory: Path, *, salt: bytes, first: DurableMark) -> Watermark:
        """A durable watermark whose two slots name ``first``."""
        second = DurableMark(
            first.counter + 1, first.seq, first.digest, first.segment, first.end_offset, first.clean, first.tip
        )
        data = b"".join((encode_slot(first, salt=salt), _REST, encode_slot(second, salt=salt), _REST))
        fs.write_atomic(directory / WATERMARK_NAME, data)
        return cls.open(fs, directory, salt=salt)

    @classmethod
    def open(cls, fs: FileSystem, directory: Path, *, salt: bytes) -> Watermark:
        """The watermark as it stands; nothing is written.

        Raises:
            MissingFile: there is none.
            CorruptionError: neither slot verifies.
        """
        file = fs.open(directory / WATERMARK_NAME)
        try:
            return cls(file, salt=salt, slots=read_slots(file, salt=salt, whole=True))
        except BaseException:
            file.close()
            raise

    @property
    def damaged_slots(self) -> int:
        """Number of slots that did not verify and were not written again since."""
        return sum(self._damaged)

    def write(
        self, seq: int, digest: bytes, segment: int, end: int, tip: TipMark | None, *, clean: bool = False
    ) -> None:
        """The next slot names the frame ``seq`` (not synced)."""
        counter = self._counter + 1
        slot = self._slot
        data = _encode(counter, seq, digest, segment, end, clean, tip, self._salt)
        if self._damaged[slot]:
            data += _REST
            self._damaged[slot] = False
        self._file.pwrite(data, slot * SLOT_BYTES)
        self._counter = counter
        self._slot = 1 - slot
        self.dirty = True
        self.written = True

    def sync(self) -> None:
        """What was written is durable."""
        self.dirty = False
        self._file.sync()

    def close(self) -> None:
        """The descriptor is released; nothing is synced."""
        self._file.close()
