"""Blocks by hash and by height from the rows of a store, and what it means that one is not there.

Each function takes what reads a plain row by its engine key, the ``get`` of a reader.

Invariants:
    * A hash that a caller brings may be unknown: ``None``, or ``BlockNotFound``.
    * A hash that the store itself wrote down has a row, and a height has one canonical block: else ``CorruptionError``.
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import BlockNotFound, CorruptionError, InvalidInputError, Recovery
from ..limits import HEIGHT_MAX
from ..types import BlockInfo
from .records import block_key, canonical_key, decode_block_record
from .state import ChainState

__all__ = [
    "canonical_block",
    "canonical_hash",
    "find_block",
    "load_block",
    "load_canonical",
    "load_referred",
    "load_tip",
]

GetRow = Callable[[bytes], bytes | None]


def find_block(get: GetRow, block_hash: bytes) -> BlockInfo | None:
    """The stored block of this hash on any branch, or ``None``. Raises ``InvalidInputError`` if it is not bytes."""
    if type(block_hash) is not bytes:
        raise InvalidInputError("the hash of a block is bytes", found=type(block_hash).__name__)
    row = get(block_key(block_hash))
    return None if row is None else decode_block_record(block_hash, row)


def load_block(get: GetRow, block_hash: bytes) -> BlockInfo:
    """The stored block of this hash. Raises ``BlockNotFound``."""
    info = find_block(get, block_hash)
    if info is None:
        raise BlockNotFound("no such block is stored", hash=block_hash)
    return info


def load_referred(get: GetRow, block_hash: bytes) -> BlockInfo:
    """The block that an entry of the journal names. Raises ``CorruptionError``."""
    info = find_block(get, block_hash)
    if info is None:
        raise CorruptionError("a block that the journal refers to has no row", hash=block_hash)
    return info


def load_tip(get: GetRow, state: ChainState) -> BlockInfo | None:
    """The tip of ``state``, whose rows ``get`` reads; ``None`` before the first block. Raises ``CorruptionError``."""
    if not state.has_tip:
        return None
    info = find_block(get, state.tip_hash)
    if info is None:
        raise CorruptionError(
            "the tip has no row", hash=state.tip_hash, height=state.tip_height, recovery=Recovery.REBUILD
        )
    return info


def canonical_hash(get: GetRow, height: int) -> bytes | None:
    """Hash of the canonical block at ``height``; ``None`` if there is none, whatever the number.

    Raises ``InvalidInputError`` if it is not a number.
    """
    if type(height) is not int:
        raise InvalidInputError("a height is a whole number", found=repr(height))
    return get(canonical_key(height)) if 0 <= height <= HEIGHT_MAX else None


def canonical_block(get: GetRow, height: int) -> BlockInfo | None:
    """The canonical block at ``height``, or ``None``. Raises ``CorruptionError`` if only its hash is there."""
    block_hash = canonical_hash(get, height)
    if block_hash is None:
        return None
    info = find_block(get, block_hash)
    if info is None:
        raise CorruptionError("a canonical block has no row", height=height, hash=block_hash, recovery=Recovery.REBUILD)
    return info


def load_canonical(get: GetRow, height: int) -> BlockInfo:
    """The canonical block at a ``height`` between root and tip. Raises ``CorruptionError``."""
    info = canonical_block(get, height)
    if info is None:
        raise CorruptionError("the canonical chain has a gap", height=height, recovery=Recovery.REBUILD)
    return info
