"""The bytes of a frame: values in, bytes out, and back.

Invariants:
    * Nothing here touches a file. Encoding a frame gives the exact bytes of docs/FORMAT.md, section 5.
    * Any bytes decode to a verified value or raise ``CorruptionError`` or ``UnsupportedFormat``; no length read from
      a file is used before it is checked against the limits.
    * A part is never decoded past its stated raw length.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from hashlib import sha256

import zstandard

from .._seal import PART_OVERHEAD_BYTES, PartCipher, PartPlace
from .._zstd import read_bounded
from ..errors import CorruptionError, InvalidInputError, KeyRequired, LimitExceeded, UnsupportedFormat
from ..limits import FRAME_BYTES_MAX, FRAME_PARTS_MAX, PART_BYTES_MAX
from .api import PLAIN_KINDS, Frame, Kind, Part, PartInfo

__all__ = [
    "CODEC_RAW",
    "CODEC_SEALED",
    "CODEC_ZSTD",
    "FRAME_FIXED_BYTES",
    "FRAME_HEAD_BYTES",
    "FRAME_MAGIC",
    "HEAD_BYTES_MAX",
    "PartsEncoding",
    "decode_part",
    "encode_frame",
    "encode_parts",
    "head_length",
    "parse_head",
    "peek_parts",
]

FRAME_MAGIC = b"HFRM"
FRAME_HEAD = struct.Struct(">4sHHQQQQ32s")
_ROW = struct.Struct(">HBBIII32s")
assert FRAME_HEAD.size == 72
assert _ROW.size == 48

FRAME_HEAD_BYTES = FRAME_HEAD.size
ROW_BYTES = _ROW.size
DIGEST_BYTES = 32
FRAME_FIXED_BYTES = FRAME_HEAD_BYTES + DIGEST_BYTES
HEAD_BYTES_MAX = FRAME_FIXED_BYTES + ROW_BYTES * FRAME_PARTS_MAX

CODEC_RAW = 0
CODEC_ZSTD = 1
CODEC_SEALED = 0x80
_VERSION = 1
_CRITICAL = 1
_KIND_MAX = 0xFFFF
_PADS = tuple(bytes(-length % 8) for length in range(8))
_ZSTD_WINDOW_BYTES_MAX = 1 << 27
_COMPRESSION_KEEPS_AT_MOST = 0.95

_pack_head = FRAME_HEAD.pack
_pack_row = _ROW.pack


class _Zstd(threading.local):
    """One compressor and one decompressor per thread: neither may be shared."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=3, write_checksum=False)
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES_MAX)


_zstd = _Zstd()


class PartsEncoding:
    """The part table and the stored bytes of a frame that has no seq yet; ``length`` is that of the whole frame.

    ``unsealed`` are the parts that ``encode_frame`` has to encrypt, when it knows where they stand: number of the part,
    and of its piece.
    """

    __slots__ = ("count", "length", "pieces", "table", "unsealed")

    def __init__(
        self, count: int, table: bytes, pieces: list[bytes], length: int, unsealed: list[tuple[int, int]]
    ) -> None:
        self.count = count
        self.table = table
        self.pieces = pieces
        self.length = length
        self.unsealed = unsealed


def encode_parts(
    parts: Sequence[Part], *, compress: bool = False, compression_bytes_min: int = 256, seal: bool = False
) -> PartsEncoding:
    """The parts hashed and, where asked for and worth it (5 % saved), compressed. Needs no lock.

    With ``seal`` there is room for their encryption, and their hashes are not known yet. If all of them are of kinds
    that stay plain, an empty note is added, which is encrypted: it says that whoever wrote the frame had the key.

    Raises:
        LimitExceeded: too many parts, a part or the frame is too long; nothing was changed.
        InvalidInputError: no parts, or a kind that is not a u16.
    """
    if seal and parts and all(part.kind in PLAIN_KINDS for part in parts):
        parts = [*parts, Part(Kind.NOTE, b"")]
    count = len(parts)
    if not 0 < count <= FRAME_PARTS_MAX:
        if count:
            raise LimitExceeded("a frame has too many parts", parts=count, limit=FRAME_PARTS_MAX)
        raise InvalidInputError("a frame needs at least one part")
    rows: list[bytes] = []
    pieces: list[bytes] = []
    unsealed: list[tuple[int, int]] = []
    length = FRAME_FIXED_BYTES + ROW_BYTES * count
    for part in parts:
        data = part.data
        codec = CODEC_RAW
        raw_length = size = len(data)
        if size > PART_BYTES_MAX:
            raise LimitExceeded("a part is too long", kind=part.kind, bytes=size, limit=PART_BYTES_MAX)
        if compress and part.compress and size >= compression_bytes_min:
            packed = _zstd.compressor.compress(data)
            if len(packed) <= size * _COMPRESSION_KEEPS_AT_MOST:
                data = packed
                codec = CODEC_ZSTD
                size = len(data)
        digest = b""
        if seal and part.kind not in PLAIN_KINDS:
            unsealed.append((len(rows), len(pieces)))
            codec |= CODEC_SEALED
            size += PART_OVERHEAD_BYTES
            if size > PART_BYTES_MAX:
                raise LimitExceeded("a part is too long", kind=part.kind, bytes=size, limit=PART_BYTES_MAX)
        else:
            digest = sha256(data).digest()
        try:
            flags = 1 if part.critical else 0
            rows.append(_pack_row(part.kind, codec, flags, size, raw_length, 0, digest))
        except struct.error as error:
            raise InvalidInputError("the kind of a part is not a u16", kind=part.kind) from error
        pieces.append(data)
        length += size
        if size & 7:
            pieces.append(_PADS[size & 7])
            length += -size & 7
    if length > FRAME_BYTES_MAX:
        raise LimitExceeded("a frame is too long", bytes=length, limit=FRAME_BYTES_MAX)
    return PartsEncoding(count, b"".join(rows), pieces, length, unsealed)


def _sealed(parts: PartsEncoding, cipher: PartCipher, segment: int, fixed: bytes) -> tuple[bytes, list[bytes]]:
    """Part table and pieces with every part encrypted that has to be; ``fixed`` is the header of the frame."""
    table, pieces = bytearray(parts.table), list(parts.pieces)
    bound = sha256(fixed + parts.table).digest()
    for index, at in parts.unsealed:
        data = cipher.seal(pieces[at], segment, (bound, index))
        pieces[at] = data
        end = ROW_BYTES * (index + 1)
        table[end - DIGEST_BYTES : end] = sha256(data).digest()
    return bytes(table), pieces


def encode_frame(
    parts: PartsEncoding,
    *,
    salt: bytes,
    seq: int,
    durable_seq: int,
    time_us: int,
    previous: bytes,
    cipher: PartCipher | None = None,
    segment: int = 0,
) -> tuple[bytes, bytes]:
    """All bytes of the frame, and its digest. What was encoded with ``seal`` needs ``cipher`` and ``segment``."""
    fixed = _pack_head(FRAME_MAGIC, _VERSION, parts.count, parts.length, seq, durable_seq, time_us, previous)
    table, pieces = parts.table, parts.pieces
    if parts.unsealed:
        assert cipher is not None
        table, pieces = _sealed(parts, cipher, segment, fixed)
    head = fixed + table
    digest = sha256(salt + head).digest()
    return b"".join((head, digest, *pieces)), digest


def head_length(fixed: bytes | memoryview) -> int:
    """Length of header, part table and digest, from the first 72 bytes of a frame.

    Raises:
        CorruptionError: the bytes cannot begin a frame.
    """
    if len(fixed) < FRAME_HEAD_BYTES:
        raise CorruptionError("a frame header is cut off", found=len(fixed), expected=FRAME_HEAD_BYTES)
    magic, _version, count, length, seq, durable_seq, _time, _previous = FRAME_HEAD.unpack_from(fixed)
    if magic != FRAME_MAGIC:
        raise CorruptionError("a frame has a wrong magic", found=bytes(magic), expected=FRAME_MAGIC)
    if not 0 < count <= FRAME_PARTS_MAX:
        raise CorruptionError("a frame has an impossible number of parts", found=count, limit=FRAME_PARTS_MAX)
    size = FRAME_FIXED_BYTES + ROW_BYTES * int(count)
    if length % 8 or not size <= length <= FRAME_BYTES_MAX:
        raise CorruptionError("a frame has an impossible length", found=length, limit=FRAME_BYTES_MAX)
    if seq == 0 or durable_seq >= seq:
        raise CorruptionError("a frame has an impossible seq", seq=seq, durable_seq=durable_seq)
    return size


def parse_head(head: bytes | memoryview, *, salt: bytes, segment: int, offset: int) -> Frame:
    """The verified header of a frame. ``head`` begins with header, part table and digest; more may follow.

    ``segment`` and ``offset`` say where the frame stands and are not checked.

    Raises:
        CorruptionError: the bytes are not a frame of this store.
        UnsupportedFormat: the digest is right, but a newer version wrote it.
    """
    size = head_length(head)
    if len(head) < size:
        raise CorruptionError(
            "a frame header is cut off", segment=segment, offset=offset, found=len(head), expected=size
        )
    table_end = size - DIGEST_BYTES
    digest = sha256(salt + head[:table_end]).digest()
    if digest != head[table_end:size]:
        raise CorruptionError("a frame has a wrong digest", segment=segment, offset=offset)
    _magic, version, _count, length, seq, durable_seq, time_us, previous = FRAME_HEAD.unpack_from(head)
    if version != _VERSION:
        raise UnsupportedFormat(
            "a frame has a version that is not known", segment=segment, offset=offset, version=version
        )
    parts = _table(head, size, segment, offset)
    bound = _bound(head[:table_end], parts)
    return Frame(seq, durable_seq, time_us, previous, digest, segment, offset, length, parts, bound)


def _bound(head: bytes | memoryview, parts: tuple[PartInfo, ...]) -> bytes:
    """What the encrypted parts are bound to, of header and part table; empty if there are none."""
    sealed = [index for index, part in enumerate(parts) if part.codec & CODEC_SEALED]
    if not sealed:
        return b""
    plain = bytearray(head)
    for index in sealed:
        end = FRAME_HEAD_BYTES + ROW_BYTES * (index + 1)
        plain[end - DIGEST_BYTES : end] = bytes(DIGEST_BYTES)
    return sha256(plain).digest()


def _table(head: bytes | memoryview, size: int, segment: int, offset: int) -> tuple[PartInfo, ...]:
    """The parts that the ``size`` bytes of ``head`` name, which fill the frame."""
    _magic, _version, count, length, seq, *_ = FRAME_HEAD.unpack_from(head)
    parts: list[PartInfo] = []
    position = size
    rows = head[FRAME_HEAD_BYTES : size - DIGEST_BYTES]
    for kind, codec, flags, stored, raw, reserved, part_hash in _ROW.iter_unpack(rows):
        if flags & ~_CRITICAL or reserved:
            raise UnsupportedFormat("a part has flags that are not known", segment=segment, offset=offset, seq=seq)
        inside = stored - PART_OVERHEAD_BYTES if codec & CODEC_SEALED else stored
        if (
            stored > PART_BYTES_MAX
            or raw > PART_BYTES_MAX
            or inside < 0
            or (codec & ~CODEC_SEALED == CODEC_RAW and raw != inside)
        ):
            raise CorruptionError(
                "a part has an impossible length", segment=segment, offset=offset, stored=stored, raw=raw
            )
        parts.append(PartInfo(kind, codec, bool(flags), stored, raw, part_hash, offset + position))
        position += stored + (-stored & 7)
    if position != length:
        raise CorruptionError(
            "the parts do not fill the frame", segment=segment, offset=offset, found=position, expected=length
        )
    if len(parts) != count:
        raise CorruptionError("a frame has a wrong number of parts", segment=segment, offset=offset, found=len(parts))
    return tuple(parts)


def peek_parts(head: bytes | memoryview, *, segment: int, offset: int) -> tuple[PartInfo, ...]:
    """What a frame says of its parts, believed by nobody: where the salt is not known, its digest cannot be checked.

    ``head``, ``segment`` and ``offset`` as for ``parse_head``. Raises ``CorruptionError``, ``UnsupportedFormat``.
    """
    size = head_length(head)
    if len(head) < size:
        raise CorruptionError("a frame header is cut off", segment=segment, offset=offset)
    return _table(head, size, segment, offset)


def decode_part(
    stored: bytes,
    part: PartInfo,
    *,
    segment: int,
    seq: int,
    index: int = 0,
    bound: bytes = b"",
    cipher: PartCipher | None = None,
) -> bytes:
    """The raw bytes of a part whose hash and raw length were right.

    ``index`` is its number in the frame, ``bound`` that of the frame, ``cipher`` that of an encrypted store.

    Raises:
        CorruptionError: a wrong hash, not its raw length once decoded, or not sealed for this place.
        KeyRequired: the part is encrypted, and there is no cipher.
        UnsupportedFormat: the codec is not known.
    """
    if len(stored) != part.stored_bytes or sha256(stored).digest() != part.sha256:
        raise CorruptionError("a part has a wrong hash", segment=segment, seq=seq, offset=part.offset, kind=part.kind)
    codec = part.codec & ~CODEC_SEALED
    if part.codec & CODEC_SEALED or (cipher is not None and part.kind not in PLAIN_KINDS):
        stored = _opened(stored, part, segment, seq, (bound, index), cipher)
    if codec == CODEC_RAW:
        return stored
    if codec != CODEC_ZSTD:
        raise UnsupportedFormat("a part has a codec that is not known", segment=segment, seq=seq, codec=part.codec)
    try:
        raw = read_bounded(_zstd.decompressor, stored, part.raw_bytes)
    except zstandard.ZstdError as error:
        raise CorruptionError("a part does not decompress", segment=segment, seq=seq, offset=part.offset) from error
    if len(raw) != part.raw_bytes:
        raise CorruptionError("a part has a wrong raw length", segment=segment, seq=seq, expected=part.raw_bytes)
    return raw


def _opened(
    stored: bytes, part: PartInfo, segment: int, seq: int, place: PartPlace, cipher: PartCipher | None
) -> bytes:
    """The bytes of the codec that were sealed as this part."""
    if cipher is None:
        raise KeyRequired("the journal is encrypted", segment=segment, seq=seq, kind=part.kind)
    opened = None
    if part.codec & CODEC_SEALED:
        opened = cipher.open(stored, segment, place)
    if opened is None:
        raise CorruptionError(
            "a part of an encrypted journal was not sealed for its place",
            segment=segment, seq=seq, offset=part.offset, kind=part.kind,
        )  # fmt: skip
    return opened
