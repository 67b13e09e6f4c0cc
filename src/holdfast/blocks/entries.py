"""Journal entries about blocks: pure codecs of docs/FORMAT.md, sections 5.2.1, 5.2.2 and 5.2.4.

Invariants:
    * ``decode_x(encode_x(v)) == v``; any other bytes raise ``CorruptionError``.
    * An entry holds decisions, never something that replay would have to decide again.
"""

from __future__ import annotations

import struct

import msgspec

from ..errors import CorruptionError
from ..limits import PRODUCER_BYTES_MAX, REASON_BYTES_MAX
from ..types import ZERO_HASH, BlockInfo

__all__ = [
    "BlockEntry",
    "CanonicalEntry",
    "ExecutedEntry",
    "FinalizedEntry",
    "OrphanEntry",
    "decode_block",
    "decode_canonical",
    "decode_executed",
    "decode_finalized",
    "encode_block",
    "encode_canonical",
    "encode_executed",
    "encode_finalized",
    "entry_info",
]

_BLOCK = struct.Struct(">32s32sQQ32s32sBB")
_CANONICAL = struct.Struct(">BQ32sQ32sQI")
_ORPHAN = struct.Struct(">32s32sBH")
_FINALIZED = struct.Struct(">Q32sQ")
_EXECUTED = struct.Struct(">32s32sBI")
assert (_BLOCK.size, _CANONICAL.size, _ORPHAN.size, _FINALIZED.size, _EXECUTED.size) == (146, 93, 67, 48, 69)

_HAS_HEADER, _HAS_BODY, _HAS_EXTRA = 1, 2, 4
_HAS_FORK, _HAS_TIP = 1, 2


class BlockEntry(msgspec.Struct, gc=False):
    """A block in a frame. Lengths are those of the attached parts in bytes; ``None`` if the part is absent."""

    hash: bytes
    parent: bytes
    height: int
    time: int
    work: int
    total_work: int
    producer: bytes
    header_bytes: int | None
    body_bytes: int | None
    extra_bytes: int | None
    part: int = 0
    state_root: bytes = ZERO_HASH
    """Root of the state after the block; zeros while no block of the branch has executed anything."""
    executed: int | None = None
    """Number of its ``executed`` part; ``None`` if it left the state as it was."""


class ExecutedEntry(msgspec.Struct, frozen=True, gc=False):
    """A block was executed; ``count`` changes follow in a part of their own, if there are any."""

    hash: bytes
    root: bytes
    count: int


class OrphanEntry(msgspec.Struct, frozen=True, gc=False):
    """A block that is not canonical after the frame, and why."""

    hash: bytes
    competing: bytes | None
    was_canonical: bool
    reason: str


class CanonicalEntry(msgspec.Struct, frozen=True, gc=False):
    """A decision of the fork choice. ``fork`` is ``None`` when the tip becomes a root without a stored parent."""

    fork: tuple[int, bytes] | None
    tip: tuple[int, bytes]
    floor: int
    orphans: tuple[OrphanEntry, ...] = ()


class FinalizedEntry(msgspec.Struct, frozen=True, gc=False):
    """Blocks up to ``height`` are final; no reorg may fork below ``floor``."""

    height: int
    hash: bytes
    floor: int


def entry_info(entry: BlockEntry, seq: int, seen_us: int) -> BlockInfo:
    """The block as it is stored once frame ``seq`` is."""
    return BlockInfo(
        entry.hash,
        entry.parent,
        entry.height,
        entry.time,
        entry.work,
        entry.total_work,
        entry.producer,
        seq,
        entry.part,
        seen_us,
        entry.header_bytes or 0,
        entry.body_bytes,
        entry.extra_bytes,
        entry.state_root if entry.state_root != ZERO_HASH or entry.executed is not None else None,
        entry.executed,
    )


def encode_block(entry: BlockEntry) -> bytes:
    """Bytes of a ``block`` part."""
    flags = (
        (_HAS_HEADER if entry.header_bytes is not None else 0)
        | (_HAS_BODY if entry.body_bytes is not None else 0)
        | (_HAS_EXTRA if entry.extra_bytes is not None else 0)
    )
    return (
        _BLOCK.pack(
            entry.hash,
            entry.parent,
            entry.height,
            entry.time,
            entry.work.to_bytes(32, "big"),
            entry.total_work.to_bytes(32, "big"),
            flags,
            len(entry.producer),
        )
        + entry.producer
    )


def decode_block(data: bytes) -> tuple[BlockEntry, bool, bool, bool]:
    """The entry (lengths 0 where a part is attached, else ``None``), and which parts follow: header, body, extra."""
    if len(data) < _BLOCK.size:
        raise CorruptionError("block entry is too short", found=len(data), expected=_BLOCK.size)
    block_hash, parent, height, time, work, total, flags, length = _BLOCK.unpack_from(data)
    if len(data) != _BLOCK.size + length or length > PRODUCER_BYTES_MAX or flags > 7:
        raise CorruptionError("block entry has a wrong length or unknown flags", found=len(data), flags=flags)
    has_header, has_body, has_extra = bool(flags & 1), bool(flags & 2), bool(flags & 4)
    entry = BlockEntry(
        hash=block_hash,
        parent=parent,
        height=height,
        time=time,
        work=int.from_bytes(work, "big"),
        total_work=int.from_bytes(total, "big"),
        producer=data[_BLOCK.size :],
        header_bytes=0 if has_header else None,
        body_bytes=0 if has_body else None,
        extra_bytes=0 if has_extra else None,
    )
    return entry, has_header, has_body, has_extra


def encode_canonical(entry: CanonicalEntry) -> bytes:
    """Bytes of a ``canonical`` part."""
    fork_height, fork_hash = entry.fork if entry.fork is not None else (0, ZERO_HASH)
    flags = _HAS_TIP | (_HAS_FORK if entry.fork is not None else 0)
    head = _CANONICAL.pack(flags, fork_height, fork_hash, entry.tip[0], entry.tip[1], entry.floor, len(entry.orphans))
    if not entry.orphans:
        return head
    pieces = [head]
    for orphan in entry.orphans:
        reason = orphan.reason.encode("utf-8")
        pieces.append(_ORPHAN.pack(orphan.hash, orphan.competing or ZERO_HASH, orphan.was_canonical, len(reason)))
        pieces.append(reason)
    return b"".join(pieces)


def decode_canonical(data: bytes) -> CanonicalEntry:
    """The entry these bytes are."""
    if len(data) < _CANONICAL.size:
        raise CorruptionError("canonical entry is too short", found=len(data), expected=_CANONICAL.size)
    flags, fork_height, fork_hash, tip_height, tip_hash, floor, count = _CANONICAL.unpack_from(data)
    if flags not in (_HAS_TIP, _HAS_TIP | _HAS_FORK):
        raise CorruptionError("canonical entry has unknown flags", flags=flags)
    if not flags & _HAS_FORK and (fork_height or fork_hash != ZERO_HASH):
        raise CorruptionError("canonical entry has a fork point that it says it has not")
    offset = _CANONICAL.size
    orphans: list[OrphanEntry] = []
    for _ in range(count):
        if len(data) < offset + _ORPHAN.size:
            raise CorruptionError("canonical entry ends inside its orphans", found=len(data), count=count)
        block_hash, competing, was_canonical, length = _ORPHAN.unpack_from(data, offset)
        offset += _ORPHAN.size
        raw = data[offset : offset + length]
        if len(raw) != length or length > REASON_BYTES_MAX or was_canonical > 1:
            raise CorruptionError("an orphan of a canonical entry is malformed", offset=offset, length=length)
        try:
            reason = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CorruptionError("an orphan's reason is not UTF-8", offset=offset) from error
        offset += length
        orphans.append(
            OrphanEntry(block_hash, competing if competing != ZERO_HASH else None, bool(was_canonical), reason)
        )
    if offset != len(data):
        raise CorruptionError("canonical entry has bytes behind its end", found=len(data), expected=offset)
    fork = (fork_height, fork_hash) if flags & _HAS_FORK else None
    return CanonicalEntry(fork, (tip_height, tip_hash), floor, tuple(orphans))


def encode_finalized(entry: FinalizedEntry) -> bytes:
    """Bytes of a ``finalized`` part."""
    return _FINALIZED.pack(entry.height, entry.hash, entry.floor)


def decode_finalized(data: bytes) -> FinalizedEntry:
    """The entry these bytes are."""
    if len(data) != _FINALIZED.size:
        raise CorruptionError("finalized entry has a wrong length", found=len(data), expected=_FINALIZED.size)
    return FinalizedEntry(*_FINALIZED.unpack(data))


def encode_executed(entry: ExecutedEntry) -> bytes:
    """Bytes of an ``executed`` part."""
    return _EXECUTED.pack(entry.hash, entry.root, 1 if entry.count else 0, entry.count)


def decode_executed(data: bytes) -> ExecutedEntry:
    """The entry these bytes are."""
    if len(data) != _EXECUTED.size:
        raise CorruptionError("executed entry has a wrong length", found=len(data), expected=_EXECUTED.size)
    block_hash, root, flags, count = _EXECUTED.unpack(data)
    if flags != (1 if count else 0):
        raise CorruptionError("executed entry has unknown flags", flags=flags, count=count)
    return ExecutedEntry(block_hash, root, count)
