"""Seed 001's persistence operations on a store, and the pieces that read pow blocks from it.

Invariants:
    * Every write is one durable frame of the store; a storage failure is a ``PersistenceError`` and leaves the tip
      where it was.
    * Reading is lazy: no call holds more than one epoch of blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from ...errors import CorruptionError, EngineError, InvalidBlock, InvalidInputError, PersistenceError
from ...limits import HASH_BYTES
from ...types import AddResult, BlockInfo, ReorgInfo
from .chain import from_stored, to_stored
from .codec import PowBlock
from .rules import epoch_bounds, epoch_of

if TYPE_CHECKING:
    from ...store import Store

__all__ = ["BlockchainPersistence", "CanonicalBlocks", "StoreAncestry", "as_hash", "read_block"]

_HEX: Final = re.compile(r"[0-9a-fA-F]{64}")


def as_hash(value: bytes | str) -> bytes:
    """A block hash given as 32 bytes or 64 hex digits. Raises ``InvalidInputError``."""
    if isinstance(value, str):
        if _HEX.fullmatch(value) is None:
            raise InvalidInputError("a block hash has 64 hex digits", found=value[:80])
        return bytes.fromhex(value)
    if len(value) != HASH_BYTES:
        raise InvalidInputError("a block hash has 32 bytes", found=len(value))
    return bytes(value)


def read_block(store: Store, info: BlockInfo) -> PowBlock:
    """The stored block, its hash recomputed. Raises ``CorruptionError`` if the bytes are not that block."""
    try:
        block = from_stored(store.blocks.header(info), store.blocks.body(info))
    except InvalidBlock as exc:
        raise CorruptionError("a stored block does not decode", hash=info.hash, height=info.height) from exc
    if block.hash != info.hash:
        raise CorruptionError(
            "a stored block has another hash", height=info.height, found=block.hash, expected=info.hash
        )
    return block


class StoreAncestry:
    """The store as the chain's rules see it."""

    def __init__(self, store: Store) -> None:
        self._blocks = store.blocks

    def info(self, block_hash: bytes) -> BlockInfo | None:
        return self._blocks.get(block_hash)

    def header(self, block: BlockInfo) -> bytes:
        return self._blocks.header(block)

    def ancestor(self, block: BlockInfo, height: int) -> BlockInfo | None:
        return self._blocks.ancestor(block, height)


class CanonicalBlocks:
    """The canonical blocks ``start <= index < stop``, read one at a time; ``len`` is their count at the time asked."""

    def __init__(self, store: Store, start: int = 0, stop: int | None = None) -> None:
        self._store = store
        self._start = start
        self._stop = stop

    def __len__(self) -> int:
        tip = self._store.tip
        end = 0 if tip is None else tip.height + 1
        return max(0, (end if self._stop is None else min(end, self._stop)) - self._start)

    def __iter__(self) -> Iterator[PowBlock]:
        for info in self._store.blocks.canonical(self._start, self._stop):
            yield read_block(self._store, info)


@contextmanager
def _persisting(what: str, block_hash: bytes) -> Iterator[None]:
    try:
        yield
    except EngineError as exc:
        raise PersistenceError(
            f"{what} failed: {exc}", remedy=exc.remedy, recovery=exc.recovery, hash=block_hash, cause=exc.code
        ) from exc


class BlockchainPersistence:
    """The four operations of seed 001's ``BlockchainPersistence`` trait, under their own names."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, block: PowBlock, *, wait_for_parent: bool = False) -> AddResult:
        """The block is validated and durable; see ``Blockchain.add_block``."""
        with _persisting("storing the block", block.hash):
            return self._store.add(to_stored(block), wait_for_parent=wait_for_parent)

    def save_block(self, block: PowBlock, epoch: int) -> AddResult:
        """The block is validated and durable. Raises ``InvalidInputError`` if ``epoch`` is not its epoch."""
        if epoch != epoch_of(block.index):
            raise InvalidInputError(
                "the block belongs to another epoch", index=block.index, found=epoch, expected=epoch_of(block.index)
            )
        return self.add(block)

    def load_canonical_blocks(self, start: int = 0, stop: int | None = None) -> CanonicalBlocks:
        """The canonical blocks, lazily, with their count."""
        return CanonicalBlocks(self._store, start, stop)

    def load_epoch_blocks(self, epoch: int) -> list[PowBlock]:
        """The canonical blocks of ``epoch`` by rising index; empty if the chain has not reached it."""
        first, after = epoch_bounds(epoch)
        return list(CanonicalBlocks(self._store, first, after)) if epoch >= 0 else []

    def mark_block_orphaned(
        self, block_hash: bytes | str, reason: str, competing_hash: bytes | str | None = None
    ) -> ReorgInfo | None:
        """The block is orphaned with ``reason`` and ``competing_hash``; ``None`` if the tip did not move.

        A canonical block moves the tip to its parent, in the same frame, and its descendants are orphaned with it. A
        block already orphaned keeps its record.

        Raises:
            BlockNotFound: no such block is stored.
            FinalityError: the block is final, too deep, or genesis.
            PersistenceError: the storage failed; the tip is the durable tip.
        """
        wanted = as_hash(block_hash)
        competing = None if competing_hash is None else as_hash(competing_hash)
        with _persisting("marking the block orphaned", wanted):
            return self._store.orphan(wanted, reason=reason, competing=competing)
