"""Segment files: header, seal, and what is known about each of them (docs/FORMAT.md, section 4).

Invariants:
    * A sealed segment never changes; its last 96 bytes find everything in it.
    * ``frames_end`` of the open segment only grows; what lies below it was written whole.
"""

from __future__ import annotations

import re
import struct
from array import array
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ..errors import CorruptionError, FormatTooNew

__all__ = [
    "SEAL_BYTES",
    "SEGMENT_HEADER_BYTES",
    "Seal",
    "Segment",
    "SegmentHeader",
    "SegmentInfo",
    "decode_header",
    "decode_seal",
    "encode_header",
    "encode_seal",
    "segment_name",
    "segment_number",
]

_MAGIC = b"HFSEGMT1"
_SEAL_MAGIC = b"HFSEAL_1"
_FORMAT = 1
_HEADER = struct.Struct(">8sII16sQQ32s16s")
_SEAL = struct.Struct(">8sQQQ32s")
assert _HEADER.size == 96
assert _SEAL.size == 64

SEGMENT_HEADER_BYTES = 128
SEAL_BYTES = 96
_NAME = re.compile(r"^([0-9]{10})\.seg$")
_ZERO16 = bytes(16)


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The header of a segment."""

    number: int
    first_seq: int
    previous: bytes
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Seal:
    """The fixed end of a sealed segment; the table of offsets lies before it, at ``table_offset``."""

    count: int
    last_seq: int
    table_offset: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """What ``journal inspect`` shows about a segment. ``frames_end`` is the offset behind its last frame.

    ``generation`` is 0 for a file as it was written, else that of the compacted one, in which ``pruned_bytes`` of the
    ``raw_bytes`` are absent: blocks below the height ``retained_from`` may miss them. ``file_bytes``: what is on disk.
    """

    number: int
    path: Path
    generation: int
    first_seq: int
    count: int
    frames_end: int
    file_bytes: int
    sealed: bool
    raw_bytes: int
    pruned_bytes: int
    retained_from: int


class Segment:
    """One segment that has a header. ``offsets`` is kept in memory only while it is not sealed.

    ``generation`` is that of the compacted file that was found when the journal was opened, else 0; ``retained_from``
    its floor, as of the last time that it was opened.
    """

    __slots__ = ("digest", "frames_end", "generation", "header", "offsets", "path", "retained_from", "sealed_count")

    def __init__(self, path: Path, header: SegmentHeader) -> None:
        self.path = path
        self.header = header
        self.offsets: array[int] | None = array("Q")
        self.sealed_count = self.generation = self.retained_from = 0
        self.frames_end = SEGMENT_HEADER_BYTES
        self.digest = header.previous

    @property
    def number(self) -> int:
        """Its number, from 1."""
        return self.header.number

    @property
    def first_seq(self) -> int:
        """Seq of its first frame (which may not be there yet)."""
        return self.header.first_seq

    @property
    def count(self) -> int:
        """Number of its frames."""
        offsets = self.offsets
        return self.sealed_count if offsets is None else len(offsets)

    @property
    def last_seq(self) -> int:
        """Seq of its last frame, or that of the frame before the segment if it has none."""
        return self.header.first_seq + self.count - 1

    @property
    def sealed(self) -> bool:
        """True if the seal is written and the segment never changes again."""
        return self.offsets is None

    def add(self, offset: int, end: int, digest: bytes) -> None:
        """The next frame stands at ``offset`` and ends before ``end``."""
        assert self.offsets is not None
        self.frames_end = end
        self.digest = digest
        self.offsets.append(offset)

    def set_sealed(self, seal: Seal) -> None:
        """The segment is sealed; offsets are read from its table from now on."""
        self.sealed_count = seal.count
        self.frames_end = seal.table_offset
        self.digest = seal.digest
        self.offsets = None

    def seal_bytes(self, salt: bytes) -> bytes:
        """The seal that belongs behind the frames."""
        assert self.offsets is not None
        return encode_seal(
            self.offsets, salt=salt, last_seq=self.last_seq, table_offset=self.frames_end, digest=self.digest
        )


def segment_name(number: int) -> str:
    """File name of segment ``number``."""
    return f"{number:010d}.seg"


def segment_number(name: str) -> int | None:
    """Number of the segment file called ``name``; ``None`` for any other file."""
    match = _NAME.match(name)
    return int(match.group(1)) if match else None


def encode_header(header: SegmentHeader, *, store_id: bytes, salt: bytes) -> bytes:
    """The 128 bytes of a header."""
    fixed = _HEADER.pack(
        _MAGIC, _FORMAT, header.generation, store_id, header.number, header.first_seq, header.previous, _ZERO16
    )
    return fixed + sha256(salt + fixed).digest()


def decode_header(data: bytes, *, store_id: bytes, salt: bytes, path: Path) -> SegmentHeader | None:
    """The header in the first 128 bytes of a segment; ``None`` if it is not valid (torn, rotten or not there).

    Raises:
        CorruptionError: it is the header of another store.
        FormatTooNew: it is valid and asks for a newer format.
    """
    if len(data) < SEGMENT_HEADER_BYTES:
        return None
    magic, form, generation, owner, number, first_seq, previous, zero = _HEADER.unpack_from(data)
    if magic == _MAGIC and owner != store_id:
        raise CorruptionError("a segment belongs to another store", path=path, found=owner, expected=store_id)
    if magic != _MAGIC or sha256(salt + data[:96]).digest() != data[96:SEGMENT_HEADER_BYTES]:
        return None
    if form != _FORMAT:
        raise FormatTooNew("a segment was written in a newer format", path=path, found=form, expected=_FORMAT)
    if zero != _ZERO16 or number == 0 or first_seq == 0:
        return None
    return SegmentHeader(number, first_seq, previous, generation)


def encode_seal(offsets: array[int], *, salt: bytes, last_seq: int, table_offset: int, digest: bytes) -> bytes:
    """Table of offsets and the 96 bytes behind it."""
    table = struct.pack(f">{len(offsets)}Q", *offsets)
    fixed = table + _SEAL.pack(_SEAL_MAGIC, len(offsets), last_seq, table_offset, digest)
    return fixed + sha256(salt + fixed).digest()


def decode_seal(data: bytes, *, header: SegmentHeader, file_bytes: int) -> Seal | None:
    """The seal in the last 96 bytes of a file of ``file_bytes``; ``None`` if there is none that fits the file.

    The hash over the table of offsets is not checked here: that needs the table.
    """
    if len(data) != SEAL_BYTES:
        return None
    magic, count, last_seq, table_offset, digest = _SEAL.unpack_from(data)
    if magic != _SEAL_MAGIC or table_offset % 8 or table_offset < SEGMENT_HEADER_BYTES:
        return None
    if table_offset + 8 * count + SEAL_BYTES != file_bytes or last_seq != header.first_seq + count - 1:
        return None
    if count == 0 and (digest != header.previous or table_offset != SEGMENT_HEADER_BYTES):
        return None
    return Seal(count, last_seq, table_offset, digest)
