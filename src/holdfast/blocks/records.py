"""Rows of the block tables (docs/FORMAT.md, section 7): pure codecs.

    blocks     hash (32)                              -> block record
    heights    height u64, hash (32)                  -> empty          every branch
    times      time u64, height u64, hash (32)        -> empty          every branch
    producers  u8 length, producer, height u64, hash  -> empty          every branch
    orphans    hash (32)                              -> orphan record
    canonical  height u64                             -> hash (32)      the canonical branch only

Big-endian, so bytewise key order is height order.
"""

from __future__ import annotations

import struct

from ..errors import CorruptionError, Recovery
from ..types import ZERO_HASH, BlockInfo, OrphanInfo
from ..views.tables import BLOCKS, CANONICAL, HEIGHTS, ORPHANS, PRODUCERS, TIMES
from .entries import BlockEntry

__all__ = [
    "HEIGHT",
    "block_key",
    "canonical_key",
    "decode_block_record",
    "decode_orphan_record",
    "encode_block_record",
    "encode_orphan_record",
    "hash_of_height_key",
    "height_key",
    "height_of_canonical_key",
    "orphan_key",
    "producer_key",
    "producer_prefix",
    "time_key",
]

HEIGHT = struct.Struct(">Q")
_HEIGHT_HASH = struct.Struct(">Q32s")
_TIME_HEIGHT_HASH = struct.Struct(">QQ32s")
_RECORD = struct.Struct(">QHQQQ32s32s32sIIIB")
_EXECUTED = struct.Struct(">H32s")
_ORPHAN = struct.Struct(">QQQ32sBH")
assert (_RECORD.size, _ORPHAN.size) == (143, 59)

_pack_height, _pack_time, _pack_record = HEIGHT.pack, _TIME_HEIGHT_HASH.pack, _RECORD.pack

_ABSENT = 0xFFFFFFFF
_NOT_EXECUTED = 0xFFFF

_BLOCKS, _HEIGHTS, _TIMES = BLOCKS.prefix, HEIGHTS.prefix, TIMES.prefix
_PRODUCERS, _ORPHANS, _CANONICAL = PRODUCERS.prefix, ORPHANS.prefix, CANONICAL.prefix


def block_key(block_hash: bytes) -> bytes:
    """Engine key of a block's record."""
    return _BLOCKS + block_hash


def height_key(height: int, block_hash: bytes = b"") -> bytes:
    """Engine key in ``heights``; without a hash the lower bound of that height."""
    return _HEIGHTS + _pack_height(height) + block_hash


def hash_of_height_key(key: bytes) -> tuple[int, bytes]:
    """Height and hash of a key in ``heights``."""
    if len(key) != 42:
        raise CorruptionError(
            "a key of table heights has a wrong length", key=key, expected=42, recovery=Recovery.REBUILD
        )
    height, block_hash = _HEIGHT_HASH.unpack_from(key, 2)
    return height, block_hash


def time_key(time: int, height: int, block_hash: bytes) -> bytes:
    """Engine key in ``times``."""
    return _TIMES + _pack_time(time, height, block_hash)


def producer_prefix(producer: bytes) -> bytes:
    """What every key of this producer in ``producers`` begins with."""
    return _PRODUCERS + bytes((len(producer),)) + producer


def producer_key(producer: bytes, height: int, block_hash: bytes) -> bytes:
    """Engine key in ``producers``."""
    return producer_prefix(producer) + _HEIGHT_HASH.pack(height, block_hash)


def orphan_key(block_hash: bytes) -> bytes:
    """Engine key of a block's orphan record."""
    return _ORPHANS + block_hash


def canonical_key(height: int) -> bytes:
    """Engine key of the canonical hash at ``height``."""
    return _CANONICAL + _pack_height(height)


def height_of_canonical_key(key: bytes) -> int:
    """Height of a key in ``canonical``."""
    if len(key) != len(_CANONICAL) + HEIGHT.size:
        raise CorruptionError(
            "a key of table canonical has a wrong length", key=key, expected=10, recovery=Recovery.REBUILD
        )
    height: int = HEIGHT.unpack_from(key, len(_CANONICAL))[0]
    return height


def encode_block_record(entry: BlockEntry, seq: int, seen_us: int) -> bytes:
    """The row of a block that frame ``seq`` brought at ``seen_us``."""
    header, body, extra = entry.header_bytes, entry.body_bytes, entry.extra_bytes
    record = (
        _pack_record(
            seq,
            entry.part,
            seen_us,
            entry.height,
            entry.time,
            entry.parent,
            entry.work.to_bytes(32, "big"),
            entry.total_work.to_bytes(32, "big"),
            _ABSENT if header is None else header,
            _ABSENT if body is None else body,
            _ABSENT if extra is None else extra,
            len(entry.producer),
        )
        + entry.producer
    )
    if entry.state_root == ZERO_HASH and entry.executed is None:  # zeros are also the root of an empty state
        return record
    return record + _EXECUTED.pack(_NOT_EXECUTED if entry.executed is None else entry.executed, entry.state_root)


def _bad(what: str, block_hash: bytes, found: int) -> CorruptionError:
    return CorruptionError(what, hash=block_hash, found=found, recovery=Recovery.REBUILD)


def decode_block_record(block_hash: bytes, data: bytes) -> BlockInfo:
    """The block that this row describes."""
    end = _RECORD.size + data[_RECORD.size - 1] if len(data) >= _RECORD.size else 0
    executed, root = _NOT_EXECUTED, None
    if end and len(data) == end + _EXECUTED.size:
        executed, root = _EXECUTED.unpack_from(data, end)
    elif not end or len(data) != end:
        raise _bad("a row of table blocks has a wrong length", block_hash, len(data))
    seq, part, seen, height, time, parent, work, total, header, body, extra, _ = _RECORD.unpack_from(data)
    return BlockInfo(
        hash=block_hash,
        parent=parent,
        height=height,
        time=time,
        work=int.from_bytes(work, "big"),
        total_work=int.from_bytes(total, "big"),
        producer=data[_RECORD.size : end],
        seq=seq,
        part=part,
        seen_us=seen,
        header_bytes=0 if header == _ABSENT else header,
        body_bytes=None if body == _ABSENT else body,
        extra_bytes=None if extra == _ABSENT else extra,
        state_root=root,
        executed=None if executed == _NOT_EXECUTED else executed,
    )


def encode_orphan_record(info: OrphanInfo) -> bytes:
    """The row of an orphan."""
    reason = info.reason.encode("utf-8")
    return (
        _ORPHAN.pack(
            info.height,
            info.seen_us,
            info.orphaned_us,
            info.competing_hash or ZERO_HASH,
            info.was_canonical,
            len(reason),
        )
        + reason
    )


def decode_orphan_record(block_hash: bytes, data: bytes) -> OrphanInfo:
    """The orphan that this row describes."""
    if len(data) < _ORPHAN.size:
        raise _bad("a row of table orphans is too short", block_hash, len(data))
    height, seen, orphaned, competing, was_canonical, length = _ORPHAN.unpack_from(data)
    raw = data[_ORPHAN.size :]
    if len(raw) != length or was_canonical > 1:
        raise _bad("a row of table orphans has a wrong length", block_hash, len(data))
    try:
        reason = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad("an orphan's reason is not UTF-8", block_hash, len(data)) from error
    return OrphanInfo(
        hash=block_hash,
        height=height,
        reason=reason,
        competing_hash=competing if competing != ZERO_HASH else None,
        seen_us=seen,
        orphaned_us=orphaned,
        was_canonical=bool(was_canonical),
    )
