"""Where a journal is cut so that a store ends at a height or at a time.

Invariants:
    * Only the decisions in the frames count: nothing is executed, no fork choice is asked.
    * Memory is bounded by the blocks that could still be reorganised, not by the length of the chain.
"""

from __future__ import annotations

from typing import NamedTuple

from ..blocks.entries import CanonicalEntry, decode_block, decode_canonical, decode_finalized
from ..errors import BlockNotFound, CorruptionError, NotFoundError, PrunedError
from ..journal.api import Frame, FrameSource, Kind

__all__ = ["Cut", "cut_at_height", "cut_at_time"]


class Cut(NamedTuple):
    """The last frame to keep, and the block to reorganise to after it, if one is asked for."""

    seq: int
    block: bytes | None


def cut_at_time(source: FrameSource, time_us: int) -> Cut:
    """The last frame whose time is not after ``time_us`` (microseconds since 1970, UTC).

    Raises ``NotFoundError`` if every frame is younger. Times are what the clock said: they need not rise.
    """
    found = 0
    for frame in source.frames(source.first_seq):
        if frame.time_us <= time_us:
            found = frame.seq
    if not found:
        first = source.frame(source.first_seq)
        raise NotFoundError("the store is younger than this time", found=first.time_us, asked=time_us)
    return Cut(found, None)


def cut_at_height(source: FrameSource, height: int) -> Cut:
    """The frame that last made the canonical block of today at ``height`` canonical, and that block.

    Raises:
        BlockNotFound: the height is above the tip. PrunedError: it is below the first block of the store.
    """
    walk = _Walk(height)
    for frame in source.frames(source.first_seq):
        walk.take(source, frame)
    return walk.answer()


class _Walk:
    """The canonical chain as the frames tell it, as far back as it may still change."""

    def __init__(self, height: int) -> None:
        self._wanted = height
        self._settled: Cut | None = None
        self._chain: dict[int, Cut] = {}
        self._blocks: dict[bytes, tuple[int, bytes]] = {}
        self._heights: dict[int, list[bytes]] = {}
        self._lowest = self._floor = 0
        self._root: int | None = None
        self._tip = -1

    def take(self, source: FrameSource, frame: Frame) -> None:
        """What the frame says about the canonical chain."""
        fresh: list[tuple[int, bytes]] = []
        for index, part in enumerate(frame.parts):
            if part.kind == Kind.BLOCK:
                entry = decode_block(source.part(frame, index))[0]
                self._blocks[entry.hash] = (entry.height, entry.parent)
                self._heights.setdefault(entry.height, []).append(entry.hash)
                fresh.append((entry.height, entry.hash))
            elif part.kind == Kind.CANONICAL:
                self._switch(decode_canonical(source.part(frame, index)), frame.seq, fresh)
            elif part.kind == Kind.FINALIZED:
                self._forget_below(decode_finalized(source.part(frame, index)).floor)

    def _switch(self, entry: CanonicalEntry, seq: int, fresh: list[tuple[int, bytes]]) -> None:
        height, block = entry.tip
        if entry.fork is None:
            self._root = fresh[0][0] if fresh else height
            self._floor = self._lowest = self._root
            joined = fresh or [(height, block)]
        else:
            fork_height, fork = entry.fork
            for gone in range(fork_height + 1, self._tip + 1):
                self._chain.pop(gone, None)
            joined = []
            while block != fork:
                known = self._blocks.get(block)
                if known is None or known[0] <= fork_height:
                    raise CorruptionError("the new tip does not descend from the fork point", hash=entry.tip[1])
                joined.append((known[0], block))
                block = known[1]
        for at, found in joined:
            self._chain[at] = Cut(seq, found)
        self._tip = height
        self._forget_below(entry.floor)

    def _forget_below(self, floor: int) -> None:
        """Blocks below ``floor`` cannot be replaced any more."""
        if self._wanted <= floor and self._wanted in self._chain:
            self._settled = self._chain[self._wanted]
        for height in range(self._lowest, floor):
            self._chain.pop(height, None)
            for block in self._heights.pop(height, ()):
                self._blocks.pop(block, None)
        self._lowest = max(self._lowest, floor)

    def answer(self) -> Cut:
        """The cut for the height that was asked for."""
        found = self._chain.get(self._wanted) or self._settled
        if found is not None and self._wanted <= self._tip:
            return found
        if self._root is not None and self._wanted < self._root:
            raise PrunedError("the store begins above this height", height=self._wanted, least_readable=self._root)
        raise BlockNotFound(
            "the backup holds no canonical block at this height",
            height=self._wanted,
            tip=self._tip if self._root is not None else None,
        )
