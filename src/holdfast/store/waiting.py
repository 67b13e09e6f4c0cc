"""Blocks whose parent is not stored yet: in memory only, bounded, oldest dropped first."""

from __future__ import annotations

import threading
from collections import OrderedDict

from ..errors import LimitExceeded
from ..types import Block

__all__ = ["WaitingRoom"]


class WaitingRoom:
    """Holds blocks until their parent arrives. Safe from any thread.

    ``dropped`` counts blocks that had to go because the room was full.
    """

    def __init__(self, *, blocks_max: int, bytes_max: int) -> None:
        self._blocks_max = blocks_max
        self._bytes_max = bytes_max
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()
        self._by_parent: dict[bytes, list[bytes]] = {}
        self._trusted: set[bytes] = set()
        self._bytes = 0
        self._mutex = threading.Lock()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._blocks)

    @staticmethod
    def _size(block: Block) -> int:
        return 256 + len(block.header) + len(block.body or b"") + len(block.extra or b"")

    def put(self, block: Block, *, trusted: bool = False) -> None:
        """The block waits; twice is the same as once. ``trusted``: it was validated before.

        Raises ``LimitExceeded`` if it can never fit.
        """
        size = self._size(block)
        if size > self._bytes_max or self._blocks_max < 1:
            raise LimitExceeded("the block is too large to wait for its parent", found=size, limit=self._bytes_max)
        with self._mutex:
            if block.hash in self._blocks:
                return
            while self._blocks and (len(self._blocks) >= self._blocks_max or self._bytes + size > self._bytes_max):
                self._remove(next(iter(self._blocks)))
                self.dropped += 1
            self._blocks[block.hash] = block
            if trusted:
                self._trusted.add(block.hash)
            self._by_parent.setdefault(block.parent, []).append(block.hash)
            self._bytes += size

    def _remove(self, block_hash: bytes) -> Block:
        block = self._blocks.pop(block_hash)
        self._bytes -= self._size(block)
        self._trusted.discard(block_hash)
        siblings = self._by_parent[block.parent]
        siblings.remove(block_hash)
        if not siblings:
            del self._by_parent[block.parent]
        return block

    def take_children(self, parent: bytes) -> list[tuple[Block, bool]]:
        """The blocks that waited for ``parent``, oldest first, and whether each is trusted; they wait no longer."""
        if not self._by_parent:
            return []
        with self._mutex:
            waiting = [(block_hash, block_hash in self._trusted) for block_hash in self._by_parent.get(parent, ())]
            return [(self._remove(block_hash), trusted) for block_hash, trusted in waiting]

    def all(self) -> list[Block]:
        """Every waiting block, oldest first."""
        with self._mutex:
            return list(self._blocks.values())
