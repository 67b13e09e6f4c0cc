"""Import of exported records into a new store, so that the tree, the tip and every record come out the same.

Invariants:
    * The file's canonical blocks extend the tip one after another; no side block takes the tip from them, because a
      side block waits until the chain before it is at least as heavy (first seen wins ties).
    * Side blocks that outweigh even the whole chain (their owner marked them orphaned) come last; each is marked
      again with the reason and competitor of the file.
    * Every block is validated. A bad record stops the import; what came before it stays stored and valid.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final

from ...errors import InvalidBlock, InvalidInputError, ParentUnknown
from ...types import AddStatus, Block, BlockInfo
from .chain import PowChain, to_stored
from .codec import encode_import_record
from .json_format import MinerBlock, describe, import_record

if TYPE_CHECKING:
    from ...store import Store

__all__ = ["Importer"]

_RUN_BLOCKS: Final = 256


class Importer:
    """One import into ``store``, which must hold nothing but genesis."""

    def __init__(self, store: Store, chain: PowChain) -> None:
        self._store = store
        self._chain = chain
        self._run: list[Block] = []
        self._work = self._tip().total_work
        self._held: list[tuple[int, int, bytes, Block]] = []
        self._held_work: dict[bytes, int] = {}
        self._last = self._tip().hash

    def run(self, records: Iterable[MinerBlock]) -> int:
        """Import all records; how many blocks the file held, genesis included.

        Raises:
            InvalidBlock: a record is not a valid block of this chain, or the file is not in export order.
            InvalidInputError: there is no record.
            ParentUnknown: a side block's parent is not in the file before it.
        """
        count = 0
        for record in records:
            block = record.to_block()
            if count == 0:
                self._check_genesis(record)
            else:
                stored = to_stored(block, extra=encode_import_record(record.to_import_record()))
                if record.is_canonical:
                    self._extend(stored)
                else:
                    self._side(stored)
            count += 1
        if count == 0:
            raise InvalidInputError("the file holds no records; an export holds at least the genesis block")
        self._flush()
        self._release(None)
        return count

    def _tip(self) -> BlockInfo:
        tip = self._store.tip
        assert tip is not None
        return tip

    def _check_genesis(self, record: MinerBlock) -> None:
        expected = describe(self._store.blocks, self._tip())
        if record != expected:
            raise InvalidBlock("the file starts with another genesis block", found=record.hash, expected=expected.hash)

    # -- canonical blocks, in runs -----------------------------------------------------------------------------------

    def _extend(self, block: Block) -> None:
        if block.parent != self._last:
            raise InvalidBlock("a canonical record does not extend the one before it", hash=block.hash)
        self._run.append(block)
        self._last = block.hash
        self._work += block.work
        if len(self._run) >= _RUN_BLOCKS or (self._held and self._held[0][0] <= self._work):
            self._flush()
            self._release(self._work)

    def _flush(self) -> None:
        if self._run:
            results = self._store.add_many(self._run)
            for block, result in zip(self._run, results, strict=True):
                if result.status is not AddStatus.EXTENDED:
                    raise InvalidBlock("a canonical record is in the file twice", hash=block.hash)
            self._run = []

    # -- side blocks -------------------------------------------------------------------------------------------------

    def _side(self, block: Block) -> None:
        self._flush()
        above = self._held_work.get(block.parent)
        if above is None:
            parent = self._store.blocks.get(block.parent)
            if parent is None:
                raise ParentUnknown("the parent of a side block is not in the file before it", hash=block.hash)
            above = parent.total_work
        total = above + block.work
        if total <= self._work:
            self._add_side(block)
        else:
            self._held_work[block.hash] = total
            heappush(self._held, (total, block.height, block.hash, block))

    def _release(self, work: int | None) -> None:
        """Add the held blocks that weigh at most ``work``, all if ``None``; a parent always comes before its child."""
        while self._held and (work is None or self._held[0][0] <= work):
            block = heappop(self._held)[3]
            del self._held_work[block.hash]
            self._add_side(block)

    def _add_side(self, block: Block) -> None:
        result = self._store.add(block)
        if result.status is AddStatus.KNOWN:
            raise InvalidBlock("a block is in the file twice", hash=block.hash)
        while (tip := self._tip()).hash != self._last:
            facts = import_record(self._store.blocks, tip)
            if facts is None or facts.reason is None:
                self._store.reorg(self._last, reason="import")
                break
            self._store.orphan(tip.hash, reason=facts.reason, competing=facts.competing)
