"""Bytes of the proof-of-work chain: header, data, hashes, and the record of an imported block.

Invariants:
    * Each value has exactly one encoding, and decoding accepts nothing else: bytes decode and encode to themselves, or
      ``InvalidBlock`` is raised.
    * Hashes cover a domain tag and length-prefixed fields, so no two different blocks share a preimage.
    * All numbers are unsigned and big-endian.

Header, 112 bytes (the stored header)::

    | index u64 | time u64 | parent 32 | data_hash 32 | difficulty u128 | nonce u128 |

Data (the stored body), 10 to 138 bytes::

    | u16 length | peer id, UTF-8, at most 128 bytes | miner number u64 |

Hashes, where ``lp(x)`` is u32 length and then x::

    data_hash  = SHA-256(lp("holdfast/pow/data/1") lp(peer id) lp(miner number u64))
    block hash = SHA-256(lp("holdfast/pow/header/1") lp(index u64) lp(time u64) lp(parent) lp(data_hash)
                         lp(difficulty u128) lp(nonce u128))

The nonce comes last, so a miner hashes everything before it once.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Final

from ...errors import InvalidBlock
from ...limits import HASH_BYTES, HEIGHT_MAX, REASON_BYTES_MAX
from .rules import DIFFICULTY_MAX, DIFFICULTY_MIN, MINER_NUMBER_MAX, NONCE_MAX, PEER_ID_BYTES_MAX, TIME_MAX, epoch_of

__all__ = [
    "HEADER_BYTES",
    "ImportRecord",
    "PowBlock",
    "PowData",
    "PowHeader",
    "data_hash",
    "decode_data",
    "decode_header",
    "decode_import_record",
    "encode_data",
    "encode_header",
    "encode_import_record",
    "hash_prefix",
    "header_hash",
]

_HEADER: Final = struct.Struct(">QQ32s32s16s16s")
HEADER_BYTES: Final = 112
assert _HEADER.size == HEADER_BYTES

_HEADER_TAG: Final = b"holdfast/pow/header/1"
_DATA_TAG: Final = b"holdfast/pow/data/1"
_NONCE_BYTES: Final = 16
_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")


def _lp(value: bytes) -> bytes:
    return _U32.pack(len(value)) + value


@dataclass(frozen=True, slots=True)
class PowHeader:
    """A header whose fields are in range. ``time`` is in seconds since 1970."""

    index: int
    time: int
    parent: bytes
    data_hash: bytes
    difficulty: int
    nonce: int

    def __post_init__(self) -> None:
        _check("index", self.index, 0, HEIGHT_MAX)
        _check("time", self.time, 0, TIME_MAX)
        _check("difficulty", self.difficulty, DIFFICULTY_MIN, DIFFICULTY_MAX)
        _check("nonce", self.nonce, 0, NONCE_MAX)
        if len(self.parent) != HASH_BYTES or len(self.data_hash) != HASH_BYTES:
            raise InvalidBlock("a hash in a header has a wrong length", expected=HASH_BYTES)

    def with_nonce(self, nonce: int) -> PowHeader:
        """The same header with another nonce."""
        return replace(self, nonce=nonce)


@dataclass(frozen=True, slots=True)
class PowData:
    """What a block says: the nominated peer and the miner's number."""

    peer_id: str
    miner_number: int

    def __post_init__(self) -> None:
        _check("miner_number", self.miner_number, 0, MINER_NUMBER_MAX)
        _peer_bytes(self.peer_id)


@dataclass(frozen=True, slots=True)
class PowBlock:
    """A block with its computed hash. Nothing is promised about its validity."""

    header: PowHeader
    data: PowData
    hash: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hash", header_hash(self.header))

    @property
    def index(self) -> int:
        """Its height."""
        return self.header.index

    @property
    def epoch(self) -> int:
        """Its epoch: ``index // 40``."""
        return epoch_of(self.header.index)


@dataclass(frozen=True, slots=True)
class ImportRecord:
    """What an export said of a block and the block's own bytes do not: kept as the block's ``extra`` part.

    ``seen_at`` and ``orphaned_at`` are seconds since 1970. ``orphaned_at`` and ``reason`` are both given or both not;
    ``competing`` only with them.
    """

    seen_at: int | None = None
    orphaned_at: int | None = None
    reason: str | None = None
    competing: bytes | None = None

    def __post_init__(self) -> None:
        for name, value in (("seen_at", self.seen_at), ("orphaned_at", self.orphaned_at)):
            if value is not None:
                _check(name, value, 0, TIME_MAX)
        if (self.orphaned_at is None) != (self.reason is None) or (self.competing is not None and self.reason is None):
            raise InvalidBlock("the orphan fields of a block contradict each other")
        if self.competing is not None and (len(self.competing) != HASH_BYTES or not any(self.competing)):
            raise InvalidBlock("a competing hash has 32 bytes, not all zero", found=self.competing)
        if self.reason is not None:
            length = len(_utf8("orphan_reason", self.reason))
            if length > REASON_BYTES_MAX or not self.reason.strip():
                raise InvalidBlock("an orphan reason has text", found=length, expected=f"1..{REASON_BYTES_MAX} bytes")


def _check(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidBlock(f"{name} is out of range", found=value, expected=f"{low}..{high}")


def _utf8(name: str, text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise InvalidBlock(f"{name} is not valid Unicode text", position=exc.start) from exc


def _peer_bytes(peer_id: str) -> bytes:
    raw = _utf8("peer id", peer_id)
    if len(raw) > PEER_ID_BYTES_MAX:
        raise InvalidBlock("peer id is too long", found=len(raw), expected=f"<= {PEER_ID_BYTES_MAX} bytes")
    return raw


# -- data ------------------------------------------------------------------------------------------------------------


def encode_data(data: PowData) -> bytes:
    """The body of a block."""
    peer = _peer_bytes(data.peer_id)
    return _U16.pack(len(peer)) + peer + _U64.pack(data.miner_number)


def decode_data(raw: bytes) -> PowData:
    """The data of a body. Raises ``InvalidBlock`` unless ``raw`` is exactly one encoding."""
    if len(raw) < _U16.size + _U64.size:
        raise InvalidBlock("the body is too short", found=len(raw), expected=_U16.size + _U64.size)
    (length,) = _U16.unpack_from(raw)
    end = _U16.size + length
    if len(raw) != end + _U64.size:
        raise InvalidBlock("the body has a wrong length", found=len(raw), expected=end + _U64.size)
    try:
        peer_id = raw[_U16.size : end].decode("utf-8")
    except UnicodeDecodeError as exc:
        raise InvalidBlock("the peer id in a body is not UTF-8", offset=_U16.size + exc.start) from exc
    return PowData(peer_id, int.from_bytes(raw[end:], "big"))


def data_hash(data: PowData) -> bytes:
    """The hash that binds ``data`` to a header."""
    number = _U64.pack(data.miner_number)
    return sha256(_lp(_DATA_TAG) + _lp(_peer_bytes(data.peer_id)) + _lp(number)).digest()


# -- header ----------------------------------------------------------------------------------------------------------


def encode_header(header: PowHeader) -> bytes:
    """The 112 stored bytes of a header."""
    return _HEADER.pack(
        header.index,
        header.time,
        header.parent,
        header.data_hash,
        header.difficulty.to_bytes(_NONCE_BYTES, "big"),
        header.nonce.to_bytes(_NONCE_BYTES, "big"),
    )


def decode_header(raw: bytes) -> PowHeader:
    """The header of 112 bytes. Raises ``InvalidBlock`` for a wrong length or a field out of range."""
    if len(raw) != HEADER_BYTES:
        raise InvalidBlock("the header has a wrong length", found=len(raw), expected=HEADER_BYTES)
    index, time, parent, data, difficulty, nonce = _HEADER.unpack(raw)
    return PowHeader(index, time, parent, data, int.from_bytes(difficulty, "big"), int.from_bytes(nonce, "big"))


_PREFIX: Final = struct.Struct(f">I{len(_HEADER_TAG)}sIQIQI32sI32sI16sI")


def hash_prefix(header: PowHeader) -> bytes:
    """Everything the block hash covers before the 16 bytes of the nonce."""
    difficulty = header.difficulty.to_bytes(_NONCE_BYTES, "big")
    return _PREFIX.pack(
        *(len(_HEADER_TAG), _HEADER_TAG, 8, header.index, 8, header.time, HASH_BYTES, header.parent),
        *(HASH_BYTES, header.data_hash, _NONCE_BYTES, difficulty, _NONCE_BYTES),
    )


def header_hash(header: PowHeader) -> bytes:
    """The hash of a block."""
    return sha256(hash_prefix(header) + header.nonce.to_bytes(_NONCE_BYTES, "big")).digest()


# -- import record ---------------------------------------------------------------------------------------------------

_RECORD: Final = struct.Struct(">BBQQH")
_RECORD_VERSION: Final = 1
_SEEN, _ORPHANED, _COMPETING = 1, 2, 4


def encode_import_record(record: ImportRecord) -> bytes:
    """The ``extra`` part of an imported block: version, flags, two times, reason, competing hash."""
    flags = (
        (_SEEN if record.seen_at is not None else 0)
        | (_ORPHANED if record.reason is not None else 0)
        | (_COMPETING if record.competing is not None else 0)
    )
    reason = _utf8("orphan_reason", record.reason or "")
    fixed = _RECORD.pack(_RECORD_VERSION, flags, record.seen_at or 0, record.orphaned_at or 0, len(reason))
    return fixed + reason + (record.competing or b"")


def decode_import_record(raw: bytes) -> ImportRecord:
    """The record of an ``extra`` part. Raises ``InvalidBlock`` unless ``raw`` is exactly one encoding."""
    if len(raw) < _RECORD.size:
        raise InvalidBlock("the extra part is too short", found=len(raw), expected=_RECORD.size)
    version, flags, seen_at, orphaned_at, length = _RECORD.unpack_from(raw)
    end = _RECORD.size + length
    if version != _RECORD_VERSION:
        raise InvalidBlock("the extra part has an unknown version", found=version, expected=_RECORD_VERSION)
    try:
        reason = raw[_RECORD.size : end].decode("utf-8")
    except UnicodeDecodeError as exc:
        raise InvalidBlock("the reason in an extra part is not UTF-8", offset=_RECORD.size + exc.start) from exc
    record = ImportRecord(
        seen_at=seen_at if flags & _SEEN else None,
        orphaned_at=orphaned_at if flags & _ORPHANED else None,
        reason=reason if flags & _ORPHANED else None,
        competing=raw[end:] if flags & _COMPETING else None,
    )
    if encode_import_record(record) != raw:
        raise InvalidBlock("the extra part is not in its canonical form")
    return record
