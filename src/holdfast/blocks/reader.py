"""Questions about stored blocks, each answered by key or by range and never by a scan of the chain.

Invariants:
    * Canonical-ness is the table ``canonical`` (height -> hash), never a flag on a block.
    * Iterators are lazy, read page by page and hold no engine iterator; they see the store as it moves.
    * Every block read from the journal is checked against its hash there (``CorruptionError``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..engine.api import iter_rows
from ..errors import CorruptionError, InvalidInputError, Recovery
from ..journal.api import FrameSource, Kind
from ..limits import HEIGHT_MAX, PRODUCER_BYTES_MAX
from ..types import ZERO_HASH, Block, BlockInfo, BlockStatus, OrphanInfo, TipInfo
from ..views.api import RowReader
from ..views.tables import CANONICAL, ORPHANS, TIMES
from .lookup import canonical_block, canonical_hash, find_block, load_block
from .records import (
    HEIGHT,
    block_key,
    canonical_key,
    decode_orphan_record,
    height_key,
    orphan_key,
    producer_prefix,
)
from .state import ChainState

__all__ = ["BlockReader"]

_HASH = slice(-32, None)
_U64_MAX = 2**64 - 1


class BlockReader:
    """Blocks of a store as one reader of rows sees them."""

    def __init__(
        self,
        rows: RowReader,
        journal: FrameSource,
        state: Callable[[], ChainState],
        *,
        epoch_length: int,
        epoch_origin: int,
        waiting: Callable[[], list[Block]],
    ) -> None:
        self._rows = rows
        self._journal = journal
        self._state = state
        self._epoch_length = epoch_length
        self._epoch_origin = epoch_origin
        self._waiting = waiting

    # -- one block ------------------------------------------------------------------------------------------------

    def get(self, block_hash: bytes) -> BlockInfo | None:
        """The stored block of this hash on any branch, or ``None``."""
        return find_block(self._rows.get, block_hash)

    def has(self, block_hash: bytes) -> bool:
        """True if the block is stored, on any branch."""
        return self._rows.get(block_key(block_hash)) is not None

    def load(self, block_hash: bytes) -> BlockInfo:
        """The stored block of this hash. Raises ``BlockNotFound``."""
        return load_block(self._rows.get, block_hash)

    def hash_at(self, height: int) -> bytes | None:
        """Hash of the canonical block at ``height``, or ``None``."""
        return canonical_hash(self._rows.get, height)

    def at(self, height: int) -> BlockInfo | None:
        """The canonical block at ``height``, or ``None``."""
        return canonical_block(self._rows.get, height)

    def is_canonical(self, info: BlockInfo) -> bool:
        """True if the block is on the canonical branch."""
        return self.hash_at(info.height) == info.hash

    def status(self, block_hash: bytes) -> BlockStatus | None:
        """Where the block stands, or ``None`` if it is neither stored nor waiting."""
        info = self.get(block_hash)
        if info is not None:
            return BlockStatus.CANONICAL if self.is_canonical(info) else BlockStatus.ORPHANED
        return BlockStatus.WAITING if any(block.hash == block_hash for block in self._waiting()) else None

    def header(self, info: BlockInfo) -> bytes:
        """Header bytes, read from the journal by position."""
        return _attached(self._journal, _checked(info), Kind.HEADER) or b""

    def body(self, info: BlockInfo) -> bytes | None:
        """Body bytes, or ``None`` if only the header was stored."""
        return _attached(self._journal, _checked(info), Kind.BODY)

    def extra(self, info: BlockInfo) -> bytes | None:
        """Receipts or whatever the chain kept beside the body, or ``None``."""
        return _attached(self._journal, _checked(info), Kind.EXTRA)

    def block(self, info: BlockInfo) -> Block:
        """The whole block as it was added."""
        return self.read_block(self._journal, _checked(info))

    @staticmethod
    def read_block(journal: FrameSource, info: BlockInfo) -> Block:
        """The whole block, read from its frame; needs no rows."""
        return Block(
            hash=info.hash,
            parent=info.parent,
            height=info.height,
            header=_attached(journal, info, Kind.HEADER) or b"",
            body=_attached(journal, info, Kind.BODY),
            time=info.time,
            work=info.work,
            producer=info.producer,
            extra=_attached(journal, info, Kind.EXTRA),
        )

    # -- branches -------------------------------------------------------------------------------------------------

    def ancestor(self, info: BlockInfo, height: int) -> BlockInfo | None:
        """The ancestor of ``info`` (or itself) at ``height``; ``None`` below the root or above the block.

        Cost: O(blocks of the branch that are not canonical).
        """
        if height > info.height or height < self._state().root_height:
            return None
        while info.height > height:
            if self.is_canonical(info):
                return self.at(height)
            info = self.load(info.parent)
        return info

    def branch(self, block_hash: bytes) -> Iterator[BlockInfo]:
        """The block and its ancestors down to the root."""
        info: BlockInfo | None = self.load(block_hash)
        while info is not None:
            yield info
            info = self.get(info.parent) if info.parent != ZERO_HASH else None

    def competitors(self, height: int) -> list[BlockInfo]:
        """Every stored block at ``height``, the canonical one first, then by hash."""
        if not 0 <= height <= HEIGHT_MAX:
            return []
        keys = iter_rows(self._rows, height_key(height), height_key(height + 1))
        found = [self.load(key[_HASH]) for key, _ in keys]
        canonical = self.hash_at(height)
        return sorted(found, key=lambda info: (info.hash != canonical, info.hash))

    def children(self, block_hash: bytes) -> list[BlockInfo]:
        """The stored blocks whose parent this block is."""
        info = self.load(block_hash)
        return [child for child in self.competitors(info.height + 1) if child.parent == block_hash]

    def orphan(self, block_hash: bytes) -> OrphanInfo | None:
        """Why the block is not canonical, or ``None`` if it is canonical or unknown."""
        row = self._rows.get(orphan_key(block_hash))
        return None if row is None else decode_orphan_record(block_hash, row)

    def orphans(self) -> Iterator[OrphanInfo]:
        """Every stored block that is not canonical, by hash."""
        for key, row in iter_rows(self._rows, ORPHANS.prefix, ORPHANS.end):
            yield decode_orphan_record(key[_HASH], row)

    def tips(self) -> list[TipInfo]:
        """The leaves of the block tree: the active tip first, then forks by height, then waiting blocks.

        Cost: O(orphans), not O(chain).
        """
        state = self._state()
        if not state.has_tip:
            return []
        found = [TipInfo(state.tip_hash, state.tip_height, 0, "active")]
        orphans = {info.hash: info.height for info in self.orphans()}
        parents = {self.load(block_hash).parent for block_hash in orphans}
        forks: list[TipInfo] = []
        for block_hash, height in orphans.items():
            if block_hash in parents:
                continue
            info, length = self.load(block_hash), 0
            while info.hash in orphans:
                length += 1
                info = self.load(info.parent)
            forks.append(TipInfo(block_hash, height, length, "fork"))
        found.extend(sorted(forks, key=lambda tip: (-tip.height, tip.hash)))
        found.extend(TipInfo(block.hash, block.height, 0, "waiting") for block in self._waiting())
        return found

    # -- ranges ---------------------------------------------------------------------------------------------------

    def canonical(
        self, start: int | None = None, stop: int | None = None, *, reverse: bool = False
    ) -> Iterator[BlockInfo]:
        """Canonical blocks with ``start <= height < stop``, lowest first or highest first."""
        low = canonical_key(min(max(start or 0, 0), _U64_MAX))
        high = CANONICAL.end if stop is None or stop > _U64_MAX else canonical_key(max(stop, 0))
        for _, block_hash in iter_rows(self._rows, low, high, reverse=reverse):
            yield self.load(block_hash)

    def epoch_of(self, height: int) -> int | None:
        """The epoch of ``height``, or ``None`` if the chain has no epochs or the height lies before them."""
        if not self._epoch_length or height < self._epoch_origin:
            return None
        return (height - self._epoch_origin) // self._epoch_length

    def epoch_range(self, epoch: int) -> tuple[int, int]:
        """First height of the epoch and of the next one."""
        if not self._epoch_length:
            raise InvalidInputError("this chain has no epochs")
        if epoch < 0:
            raise InvalidInputError("an epoch is not negative", found=epoch)
        first = self._epoch_origin + epoch * self._epoch_length
        return first, first + self._epoch_length

    def epoch(self, epoch: int) -> Iterator[BlockInfo]:
        """Canonical blocks of the epoch, lowest first."""
        return self.canonical(*self.epoch_range(epoch))

    def by_time(self, start: int, stop: int | None = None, *, canonical_only: bool = True) -> Iterator[BlockInfo]:
        """Blocks with ``start <= time < stop`` (chain time in seconds), by time, then height."""
        if start > _U64_MAX or (stop is not None and stop < 0):
            return
        low = TIMES.prefix + HEIGHT.pack(max(start, 0))
        high = TIMES.end if stop is None or stop > _U64_MAX else TIMES.prefix + HEIGHT.pack(stop)
        for key, _ in iter_rows(self._rows, low, high):
            info = self.load(key[_HASH])
            if not canonical_only or self.is_canonical(info):
                yield info

    def at_time(self, time: int) -> BlockInfo | None:
        """The canonical block with the greatest chain time at or before ``time``, or ``None``."""
        low, high = TIMES.prefix, TIMES.end if time >= _U64_MAX else TIMES.prefix + HEIGHT.pack(max(time, -1) + 1)
        for key, _ in iter_rows(self._rows, low, high, reverse=True):
            info = self.load(key[_HASH])
            if self.is_canonical(info):
                return info
        return None

    def by_producer(self, producer: bytes, *, canonical_only: bool = True) -> Iterator[BlockInfo]:
        """Blocks of this producer, lowest first."""
        if not 0 < len(producer) <= PRODUCER_BYTES_MAX:
            return
        prefix = producer_prefix(producer)
        for key, _ in iter_rows(self._rows, prefix, prefix + b"\xff" * 41):
            info = self.load(key[_HASH])
            if not canonical_only or self.is_canonical(info):
                yield info

    def count_by_producer(self, producer: bytes, *, canonical_only: bool = True) -> int:
        """How many blocks this producer has. Cost: O(its blocks)."""
        return sum(1 for _ in self.by_producer(producer, canonical_only=canonical_only))

    def statistics(self) -> dict[str, int | None]:
        """Counters of the chain: blocks, canonical, orphans, reorgs, deepest reorg, blocks ever orphaned."""
        state = self._state()
        return {
            "blocks": state.blocks,
            "canonical": state.tip_height - state.root_height + 1 if state.has_tip else 0,
            "orphans": state.orphans,
            "reorgs": state.reorgs,
            "reorg_depth_max": state.reorg_depth_max,
            "orphaned_total": state.orphaned,
            "tip_height": state.tip_height if state.has_tip else None,
            "root_height": state.root_height if state.has_tip else None,
            "finalized_height": state.finalized if state.finalized >= 0 else None,
            "reorg_floor": state.floor if state.has_tip else None,
        }


def _checked(info: BlockInfo) -> BlockInfo:
    if not isinstance(info, BlockInfo):
        raise InvalidInputError(
            "a block is read by its 'BlockInfo'",
            found=type(info).__name__,
            remedy="take it from blocks.get(hash), blocks.at(height) or blocks.canonical()",
        )
    return info


def _attached(journal: FrameSource, info: BlockInfo, kind: int) -> bytes | None:
    present = (
        (Kind.HEADER, info.header_bytes > 0),
        (Kind.BODY, info.body_bytes is not None),
        (Kind.EXTRA, info.extra_bytes is not None),
    )
    index = info.part + 1
    for known, there in present:
        if known == kind:
            if not there:
                return None
            break
        index += there
    frame = journal.frame(info.seq)
    if index >= len(frame.parts) or frame.parts[index].kind != kind or frame.parts[info.part].kind != Kind.BLOCK:
        raise CorruptionError(
            "a block's row points to another part of the journal",
            hash=info.hash,
            seq=info.seq,
            part=info.part,
            recovery=Recovery.REBUILD,
        )
    return journal.part(frame, index)
