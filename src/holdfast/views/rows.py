"""Rows as the engine holds them (docs/FORMAT.md, sections 7.1 and 7.2).

    |<-- checksum -->|<-- value -->|
    | CRC-32 u32  (4) | the row     |

Invariants:
    * The checksum is taken over the engine key, then the value: a row under another key or table does not verify.
    * What ``decode_row`` returns is exactly what ``encode_row`` got, or ``CorruptionError`` names table and key.
"""

from __future__ import annotations

import struct
from zlib import crc32

from ..errors import CorruptionError, Recovery
from ..events import corruption_found
from ..limits import HASH_BYTES
from .api import Applied
from .tables import INDEX_FIRST, INDEX_LAST, META, TABLES

__all__ = [
    "APPLIED_KEY",
    "CHECKSUM_BYTES",
    "FLUSHING_KEY",
    "decode_applied",
    "decode_flushing",
    "decode_row",
    "encode_applied",
    "encode_flushing",
    "encode_row",
    "table_name",
]

CHECKSUM_BYTES = 4
APPLIED_KEY = META.prefix + b"applied"
FLUSHING_KEY = META.prefix + b"flushing"

_LAYOUT = 1
_APPLIED = struct.Struct(">HQ32sQ")
_FLUSHING = struct.Struct(">QQ")
_FLUSHING_OLD = struct.Struct(">Q")
assert _APPLIED.size == 2 + 8 + HASH_BYTES + 8

_NAMES = {table.number: table.name for table in TABLES}


def table_name(key: bytes) -> str:
    """The name of the table that the engine key belongs to, for messages."""
    number = int.from_bytes(key[:2], "big")
    if INDEX_FIRST <= number <= INDEX_LAST:
        return f"index/{number:04x}"
    return _NAMES.get(number, f"{number:04x}")


def encode_row(key: bytes, value: bytes) -> bytes:
    """The stored form of ``value`` under the engine key ``key``."""
    return crc32(value, crc32(key)).to_bytes(CHECKSUM_BYTES, "big") + value


def decode_row(key: bytes, stored: bytes) -> bytes:
    """The value that was stored under ``key``. Raises ``CorruptionError`` if the checksum does not fit."""
    value = stored[CHECKSUM_BYTES:]
    if stored[:CHECKSUM_BYTES] != crc32(value, crc32(key)).to_bytes(CHECKSUM_BYTES, "big"):
        error = CorruptionError(
            "a row of the views has a bad checksum",
            recovery=Recovery.REBUILD,
            table=table_name(key),
            key=key,
            expected=stored[:CHECKSUM_BYTES],
            found=crc32(value, crc32(key)).to_bytes(CHECKSUM_BYTES, "big"),
        )
        corruption_found(error)
        raise error
    return value


def encode_applied(applied: Applied) -> bytes:
    """The value of the row ``applied``; ``flushing`` is a row of its own."""
    assert len(applied.digest) == HASH_BYTES
    return _APPLIED.pack(_LAYOUT, applied.seq, applied.digest, applied.undo_floor) + applied.state


def decode_applied(value: bytes, flushing: tuple[int, int | None] | None) -> Applied:
    """The record in the row ``applied``, with the target and floor of a begun flush."""
    if len(value) < _APPLIED.size:
        raise CorruptionError(
            "the row 'applied' is too short",
            recovery=Recovery.REBUILD,
            table=META.name,
            key=APPLIED_KEY,
            found=len(value),
        )
    layout, seq, digest, undo_floor = _APPLIED.unpack_from(value)
    if layout != _LAYOUT:
        raise CorruptionError(
            "the row 'applied' has an unknown layout",
            recovery=Recovery.REBUILD,
            table=META.name,
            key=APPLIED_KEY,
            expected=_LAYOUT,
            found=layout,
        )
    return Applied(seq, digest, value[_APPLIED.size :], undo_floor, *(flushing or (None, None)))


def encode_flushing(to_seq: int, floor: int | None) -> bytes:
    """The value of the row ``flushing``; in its old form without a floor."""
    return _FLUSHING_OLD.pack(to_seq) if floor is None else _FLUSHING.pack(to_seq, floor)


def decode_flushing(value: bytes) -> tuple[int, int | None]:
    """The target of a begun flush and its undo floor; the floor is ``None`` in the old form of the row."""
    if len(value) == _FLUSHING_OLD.size:
        return int.from_bytes(value, "big"), None
    if len(value) != _FLUSHING.size:
        raise CorruptionError(
            "the row 'flushing' has a wrong length",
            recovery=Recovery.REBUILD,
            table=META.name,
            key=FLUSHING_KEY,
            expected=_FLUSHING.size,
            found=len(value),
        )
    to_seq, floor = _FLUSHING.unpack(value)
    return int(to_seq), int(floor)
