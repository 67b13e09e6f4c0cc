"""The canonical chain as the frames of a journal tell it, and where a journal is cut to end at a height or at a time.

Invariants:
    * Only the decisions in the frames count: nothing is executed, no fork choice is asked.
    * For a cut, memory is bounded by the blocks that could still be reorganised, not by the length of the chain.
"""

from __future__ import annotations

from typing import NamedTuple

from ..blocks.entries import CanonicalEntry, decode_block, decode_canonical, decode_executed, decode_finalized
from ..errors import BlockNotFound, CorruptionError, NotFoundError, PrunedError
from ..journal.api import Frame, FrameSource, Kind
from ..types import ZERO_HASH

__all__ = ["CanonicalWalk", "Cut", "Seen", "cut_at_height", "cut_at_time"]


class Seen(NamedTuple):
    """A block in the frame that brought it; ``root`` is that of the state after it, zeros if that is not known."""

    height: int
    hash: bytes
    parent: bytes
    seq: int
    part: int
    root: bytes


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
    walk = _CutWalk(height)
    for frame in source.frames(source.first_seq):
        walk.take(source, frame)
    return walk.answer()


class CanonicalWalk:
    """Follows the canonical chain from frame to frame, and remembers the blocks that may still become canonical.

    Args:
        roots: follow the roots of the state, too: one more small part is read for each block that executed something.
    """

    def __init__(self, *, roots: bool = False) -> None:
        self.root: int | None = None
        """Height of the first block; ``None`` before it."""
        self.tip = -1
        self.tip_hash = b""
        self._roots = roots
        self._blocks: dict[bytes, Seen] = {}
        self._heights: dict[int, list[bytes]] = {}
        self._lowest = 0

    def take(self, source: FrameSource, frame: Frame) -> None:
        """What the frame says about the canonical chain. Raises ``CorruptionError`` if it contradicts itself."""
        fresh: list[Seen] = []
        for index, part in enumerate(frame.parts):
            if part.kind == Kind.BLOCK:
                entry = decode_block(source.part(frame, index))[0]
                above = self._blocks.get(entry.parent)
                root = ZERO_HASH if above is None else above.root
                fresh.append(Seen(entry.height, entry.hash, entry.parent, frame.seq, index, root))
                self._blocks[entry.hash] = fresh[-1]
                self._heights.setdefault(entry.height, []).append(entry.hash)
            elif part.kind == Kind.EXECUTED and self._roots and fresh:
                executed = decode_executed(source.part(frame, index))
                fresh[-1] = fresh[-1]._replace(root=executed.root)
                self._blocks[fresh[-1].hash] = fresh[-1]
            elif part.kind == Kind.CANONICAL:
                self._switch(decode_canonical(source.part(frame, index)), frame.seq, fresh)
            elif part.kind == Kind.FINALIZED:
                self._forget_below(decode_finalized(source.part(frame, index)).floor)

    def _switch(self, entry: CanonicalEntry, seq: int, fresh: list[Seen]) -> None:
        height, block = entry.tip
        fork = None if entry.fork is None else entry.fork[0]
        if entry.fork is None:
            joined = list(fresh) or [self._known(block)]
            self.root = joined[0].height
            self._lowest = self.root
        else:
            joined = []
            while block != entry.fork[1]:
                known = self._known(block)
                if known.height <= entry.fork[0]:
                    raise CorruptionError("the new tip does not descend from the fork point", hash=entry.tip[1])
                joined.append(known)
                block = known.parent
            joined.reverse()
            if self.root is None:  # the journal begins above the first block of the chain
                self.root = self._lowest = entry.fork[0] + 1
        self.switched(seq, fork, joined)
        self.tip, self.tip_hash = height, entry.tip[1]
        self._forget_below(entry.floor)

    def _known(self, block: bytes) -> Seen:
        known = self._blocks.get(block)
        if known is None:
            raise CorruptionError("the new tip does not descend from the fork point", hash=block)
        return known

    def _forget_below(self, floor: int) -> None:
        """Blocks below ``floor`` cannot be replaced any more."""
        self.settled(self._lowest, floor)
        for height in range(self._lowest, floor):
            for block in self._heights.pop(height, ()):
                self._blocks.pop(block, None)
        self._lowest = max(self._lowest, floor)

    # -- what became of the chain: for those who follow it ------------------------------------------------------

    def switched(self, seq: int, fork: int | None, joined: list[Seen]) -> None:
        """Frame ``seq`` took away what stood above height ``fork`` (``None``: there was nothing) and put ``joined`` on.

        ``joined`` is in the order of its heights; ``tip`` is still the old one.
        """

    def settled(self, lowest: int, floor: int) -> None:
        """The canonical blocks at the heights from ``lowest`` to, not including, ``floor`` stay for ever."""


class _CutWalk(CanonicalWalk):
    """The frames in which the blocks that may still change became canonical, and the one that was asked for."""

    def __init__(self, height: int) -> None:
        super().__init__()
        self._wanted = height
        self._settled: Cut | None = None
        self._chain: dict[int, Cut] = {}

    def switched(self, seq: int, fork: int | None, joined: list[Seen]) -> None:
        if fork is not None:
            for gone in range(fork + 1, self.tip + 1):
                self._chain.pop(gone, None)
        for seen in joined:
            self._chain[seen.height] = Cut(seq, seen.hash)

    def settled(self, lowest: int, floor: int) -> None:
        if self._wanted <= floor and self._wanted in self._chain:
            self._settled = self._chain[self._wanted]
        for height in range(lowest, floor):
            self._chain.pop(height, None)

    def answer(self) -> Cut:
        """The cut for the height that was asked for."""
        found = self._chain.get(self._wanted) or self._settled
        if found is not None and self._wanted <= self.tip:
            return found
        if self.root is not None and self._wanted < self.root:
            raise PrunedError("the store begins above this height", height=self._wanted, least_readable=self.root)
        raise BlockNotFound(
            "the backup holds no canonical block at this height",
            height=self._wanted,
            tip=self.tip if self.root is not None else None,
        )
