"""Undo rows: the values that a block's chain rows had before it (docs/FORMAT.md, section 7.3).

    |<----------------- key ------------------>|<------------------- value ------------------->|
    | height u64 (8) | block hash (32) | part u16 | more u8 | count u32 | count x row             |
    row: key length u16, key, 0 (absent before) or 1, then value length u32 and value

Invariants:
    * Undo is a function of the block alone, so writing it twice writes the same bytes.
    * Keys of one block ascend strictly over all its parts; ``more`` is 1 in every part but the last.
    * All parts of a block are written in one batch.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from ..errors import CorruptionError, Recovery
from ..limits import ENGINE_KEY_BYTES_MAX, HASH_BYTES, TABLE_ID_BYTES
from .api import Rows
from .bulk import bulk
from .rows import decode_row
from .tables import UNDO

__all__ = [
    "PART_BYTES_MAX",
    "decode_undo",
    "encode_undo",
    "lost_undo",
    "read_undo",
    "undo_block",
    "undo_key",
    "undo_range_to",
]

PART_BYTES_MAX = 8 * 1024 * 1024
"""A part is closed once it is this long; it may exceed it by one row, far below the limit of an engine value."""

_KEY = struct.Struct(">Q32sH")
_PART = struct.Struct(">BI")
_KEY_LENGTH = struct.Struct(">H")
_VALUE_LENGTH = struct.Struct(">I")
_PRESENT = 1


def undo_key(height: int, block_hash: bytes, part: int = 0) -> bytes:
    """The engine key of a part of a block's undo."""
    assert len(block_hash) == HASH_BYTES
    return UNDO.prefix + _KEY.pack(height, block_hash, part)


def undo_block(key: bytes) -> tuple[int, bytes]:
    """Height and hash of the block whose undo has this engine key. Raises ``CorruptionError``."""
    if len(key) != TABLE_ID_BYTES + _KEY.size:
        raise _bad("a key of undo has a wrong length", key, found=len(key))
    height, block_hash, _part = _KEY.unpack_from(key, TABLE_ID_BYTES)
    return height, block_hash


def undo_range_to(height: int) -> tuple[bytes, bytes]:
    """The range of engine keys of all undo at or below ``height``."""
    return UNDO.prefix, UNDO.prefix + (height + 1).to_bytes(8, "big")


def encode_undo(height: int, block_hash: bytes, rows: Rows) -> dict[bytes, bytes]:
    """The undo rows (engine key -> plain value) of one block: one, or several if it is large."""
    parts = bulk().undo_parts(rows, PART_BYTES_MAX)
    last = len(parts) - 1
    return {
        undo_key(height, block_hash, number): _PART.pack(number != last, count) + body
        for number, (count, body) in enumerate(parts)
    }


def _bad(what: str, key: bytes, **context: int) -> CorruptionError:
    return CorruptionError(what, remedy=None, recovery=Recovery.REBUILD, table=UNDO.name, key=key, **context)


def decode_undo(key: bytes, value: bytes, into: Rows, after: bytes = b"") -> tuple[bool, bytes]:
    """Add the rows of one part to ``into``; (another part follows, last key). Raises ``CorruptionError``.

    Args:
        key: engine key of the part, for messages.
        value: plain value of the part.
        into: receives the rows.
        after: last key of the part before; keys must ascend.
    """
    if len(value) < _PART.size:
        raise _bad("an undo row is too short", key, found=len(value))
    more, count = _PART.unpack_from(value)
    if more > 1:
        raise _bad("an undo row has a bad flag", key, found=more)
    at = _PART.size
    try:
        for _ in range(count):
            (length,) = _KEY_LENGTH.unpack_from(value, at)
            at += _KEY_LENGTH.size
            row_key = value[at : at + length]
            at += length
            if not TABLE_ID_BYTES <= length <= ENGINE_KEY_BYTES_MAX or row_key <= after:
                raise _bad("an undo row holds a bad key", key, offset=at)
            after = row_key
            present = value[at]
            at += 1
            if present == _PRESENT:
                (length,) = _VALUE_LENGTH.unpack_from(value, at)
                at += _VALUE_LENGTH.size
                row = value[at : at + length]
                at += length
                into[row_key] = row
                if at > len(value):
                    raise _bad("an undo row ends in a value", key, offset=at)
            elif present == 0:
                into[row_key] = None
            else:
                raise _bad("an undo row holds a bad flag", key, offset=at, found=present)
    except (struct.error, IndexError) as exc:
        raise _bad("an undo row ends early", key, offset=at) from exc
    if at != len(value):
        raise _bad("an undo row has a wrong length", key, expected=at, found=len(value))
    return bool(more), after


def lost_undo(height: int, block_hash: bytes) -> CorruptionError:
    """The error for undo that must be there and is not."""
    return CorruptionError(
        "the undo of a block is not there",
        recovery=Recovery.REBUILD,
        table=UNDO.name,
        height=height,
        hash=block_hash,
    )


def read_undo(get: Callable[[bytes], bytes | None], height: int, block_hash: bytes) -> Rows | None:
    """The stored undo of a block, or ``None``. ``get`` reads stored rows of the engine."""
    rows: Rows = {}
    after = b""
    part = 0
    while True:
        key = undo_key(height, block_hash, part)
        stored = get(key)
        if stored is None:
            if part == 0:
                return None
            raise _bad("a part of an undo row is missing", key)
        more, after = decode_undo(key, decode_row(key, stored), rows, after)
        if not more:
            return rows
        part += 1
