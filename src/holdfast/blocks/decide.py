"""Decisions of the writer: does a block extend, reorganise or stay aside; pure over rows and state.

Invariants:
    * A decision is complete before anything is written, and goes into the frame: replay never decides.
    * No switch forks below ``state.floor``; first seen wins ties; a forced block beats any amount of work.
    * A block of an empty store becomes the root; later blocks need a stored parent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..errors import BlockNotFound, FinalityError, InvalidInputError, LimitExceeded, ReorgTooDeep
from ..limits import REASON_BYTES_MAX, WORK_MAX
from ..types import Block, BlockInfo
from ..views.api import RowReader
from .content import FrameContent, entry_of
from .entries import BlockEntry, CanonicalEntry, FinalizedEntry, OrphanEntry
from .fork_choice import ForkChoice
from .lookup import canonical_hash, find_block, load_block
from .state import ChainState

__all__ = ["Decider", "check_reason"]

REASON_SIDE = "side branch: not preferred by the fork choice"
REASON_FORCED = "forced block: another hash is required at its height"
REASON_REORG = "reorganisation: a preferred branch replaced it"


def check_reason(reason: str) -> str:
    """``reason`` if it can be stored. Raises ``InvalidInputError`` or ``LimitExceeded``."""
    if not isinstance(reason, str) or not reason.strip():
        raise InvalidInputError("a reason is needed", found=repr(reason))
    try:
        length = len(reason.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InvalidInputError("a reason must be text that UTF-8 can hold", found=repr(reason)) from error
    if length > REASON_BYTES_MAX:
        raise LimitExceeded("the reason is too long", found=length, limit=REASON_BYTES_MAX)
    return reason


@dataclass(slots=True)
class Decider:
    """Fork choice with its bounds, over the rows that the writer sees."""

    reader: RowReader
    fork_choice: ForkChoice
    max_reorg_depth: int
    max_orphans: int
    forced: Mapping[int, bytes]

    # -- looking ----------------------------------------------------------------------------------------------

    def info(self, block_hash: bytes) -> BlockInfo | None:
        """The stored block, or ``None``."""
        return find_block(self.reader.get, block_hash)

    def load(self, block_hash: bytes) -> BlockInfo:
        """The stored block. Raises ``BlockNotFound``."""
        return load_block(self.reader.get, block_hash)

    def canonical_hash(self, height: int) -> bytes | None:
        """Hash of the canonical block at ``height``."""
        return canonical_hash(self.reader.get, height)

    def _branch(self, info: BlockInfo, floor: int) -> Iterator[BlockInfo]:
        """``info`` and its ancestors down to, not including, the first canonical one; stops below ``floor``."""
        while self.canonical_hash(info.height) != info.hash:
            yield info
            if info.height <= floor:
                return
            info = self.load(info.parent)

    # -- deciding ---------------------------------------------------------------------------------------------

    def new_floor(self, state: ChainState, tip_height: int) -> int:
        """The reorg floor once the tip is at ``tip_height``; it only rises."""
        return max(state.floor, tip_height - self.max_reorg_depth, state.root_height)

    def total_work(self, block: Block, parent: BlockInfo | BlockEntry | None) -> int:
        """Cumulative target work. Raises ``LimitExceeded`` above 256 bits."""
        total = block.work + (parent.total_work if parent is not None else 0)
        if total > WORK_MAX:
            raise LimitExceeded("the cumulative work does not fit into 256 bits", hash=block.hash)
        return total

    def extends(self, block_height: int, block_hash: bytes) -> bool:
        """True if no other hash is forced at the height."""
        return not self.forced or self.forced.get(block_height, block_hash) == block_hash

    def extend(
        self, blocks: list[Block], state: ChainState, tip: BlockInfo | None, entries: list[BlockEntry] | None = None
    ) -> FrameContent:
        """Content for ``blocks``, each the child of the one before it, on the tip; or the root of an empty store.

        ``entries`` are those of the blocks, if the caller has made them already.
        """
        content = FrameContent()
        if entries is None:
            entries = []
            parent: BlockInfo | BlockEntry | None = tip
            for block in blocks:
                parent = entry_of(block, self.total_work(block, parent))
                entries.append(parent)
        content.blocks = entries
        content.bodies = {block.hash: block for block in blocks}
        last = entries[-1]
        if tip is None:
            first = entries[0]
            floor = max(first.height, last.height - self.max_reorg_depth)
            content.canonical = CanonicalEntry(None, (last.height, last.hash), floor)
        else:
            content.canonical = CanonicalEntry(
                (tip.height, tip.hash), (last.height, last.hash), self.new_floor(state, last.height)
            )
        return content

    def branch_off(self, block: Block, parent: BlockInfo, state: ChainState, tip: BlockInfo) -> FrameContent:
        """Content for a block that does not extend the tip: a reorg to it, or a side block."""
        entry = entry_of(block, self.total_work(block, parent))
        content = FrameContent([entry], bodies={block.hash: block})
        branch = list(self._branch(parent, state.floor))
        fork = self._fork_point(branch, parent, state)
        wins, reason = self._wins(entry, branch, fork, tip)
        if wins:
            content.canonical = self._switch((block.height, block.hash), fork, state, REASON_REORG, block.hash)
        else:
            self._room_for(state, 1)
            competing = self.canonical_hash(block.height)
            orphan = OrphanEntry(block.hash, competing, False, reason)
            here = (tip.height, tip.hash)
            content.canonical = CanonicalEntry(here, here, state.floor, (orphan,))
        return content

    def reorg_to(self, target: BlockInfo, state: ChainState, reason: str) -> FrameContent:
        """Content that makes ``target`` the tip, whatever the fork choice says."""
        branch = list(self._branch(target, state.floor))
        fork = self._fork_point(branch, target, state)
        for info in (target, *branch):
            if info.height > fork.height and not self.extends(info.height, info.hash):
                raise FinalityError("another hash is forced at this height", height=info.height, hash=info.hash)
        self._keep_forced(fork, {info.height: info.hash for info in (target, *branch)}, state)
        competing = target.hash if target.hash != fork.hash else None
        content = FrameContent()
        content.canonical = self._switch((target.height, target.hash), fork, state, reason, competing)
        return content

    def orphan(self, info: BlockInfo, state: ChainState, reason: str, competing: bytes | None) -> FrameContent:
        """Content that takes a canonical block and its descendants out; its parent becomes the tip."""
        if info.height <= state.floor:
            self._refuse(info.height - 1, state, info.hash)
        parent = self.load(info.parent)
        self._keep_forced(parent, {}, state)
        content = FrameContent()
        content.canonical = self._switch(
            (parent.height, parent.hash), parent, state, reason, competing, first=(info.hash, competing)
        )
        return content

    def finalize(self, height: int, state: ChainState) -> FrameContent:
        """Content that makes the canonical block at ``height`` final."""
        if height <= state.finalized:
            raise FinalityError(
                "a block at or above this height is final already", found=height, finalized=state.finalized
            )
        block_hash = self.canonical_hash(height)
        if block_hash is None:
            raise BlockNotFound("no canonical block at this height", height=height, tip=state.tip_height)
        return FrameContent(finalized=FinalizedEntry(height, block_hash, max(state.floor, height)))

    def _keep_forced(self, fork: BlockInfo, branch: Mapping[int, bytes], state: ChainState) -> None:
        """Raises if a forced block that is canonical would leave the chain."""
        for height, forced in self.forced.items():
            leaves = fork.height < height <= state.tip_height and branch.get(height) != forced
            if leaves and self.canonical_hash(height) == forced:
                raise FinalityError("a forced block cannot leave the canonical chain", height=height, hash=forced)

    # -- parts of decisions ------------------------------------------------------------------------------------

    def _refuse(self, fork_height: int, state: ChainState, block_hash: bytes) -> None:
        if fork_height < state.finalized:
            raise FinalityError(
                "the branch forks below the finalized height", hash=block_hash, finalized=state.finalized
            )
        raise ReorgTooDeep(
            "the branch forks below the lowest height that may still be reorganised",
            hash=block_hash,
            floor=state.floor,
            max_reorg_depth=self.max_reorg_depth,
        )

    def _fork_point(self, branch: list[BlockInfo], start: BlockInfo, state: ChainState) -> BlockInfo:
        """The canonical block that the branch (tip first) grows from. Raises below the floor."""
        if not branch:
            fork = start
        else:
            lowest = branch[-1]
            above_floor = lowest.height > state.floor
            found = self.info(lowest.parent) if above_floor else None
            if found is None:
                self._refuse(lowest.height - 1, state, start.hash)
                raise AssertionError("unreachable")
            fork = found
        if fork.height < state.floor:
            self._refuse(fork.height, state, start.hash)
        return fork

    def _wins(self, entry: BlockEntry, branch: list[BlockInfo], fork: BlockInfo, tip: BlockInfo) -> tuple[bool, str]:
        if self.forced:
            on_branch = {info.height: info.hash for info in branch}
            on_branch[entry.height] = entry.hash
            incumbent_wrong = False
            for height, forced in self.forced.items():
                if height <= fork.height:
                    continue
                if height in on_branch and on_branch[height] != forced:
                    return False, REASON_FORCED
                if height <= tip.height and self.canonical_hash(height) != forced and height in on_branch:
                    incumbent_wrong = True
                if height <= tip.height and height > entry.height and self.canonical_hash(height) == forced:
                    return False, REASON_SIDE
            if incumbent_wrong:
                return True, ""
        wins = self.fork_choice.prefers(
            work=entry.total_work, height=entry.height, tip_work=tip.total_work, tip_height=tip.height
        )
        return wins, REASON_SIDE

    def _room_for(self, state: ChainState, more: int) -> None:
        if state.orphans + more > self.max_orphans:
            raise LimitExceeded(
                "the store keeps no more blocks beside the canonical chain",
                found=state.orphans + more,
                limit=self.max_orphans,
                setting="max_orphans",
            )

    def _switch(
        self,
        tip: tuple[int, bytes],
        fork: BlockInfo,
        state: ChainState,
        reason: str,
        competing: bytes | None,
        first: tuple[bytes, bytes | None] | None = None,
    ) -> CanonicalEntry:
        """The entry that moves the tip; every block above the fork point is orphaned with ``reason``."""
        orphans: list[OrphanEntry] = []
        info = self.load(state.tip_hash)
        while info.hash != fork.hash:
            own = first is not None and info.hash == first[0]
            text = reason if first is None or own else f"descendant of an orphaned block: {reason}"
            while len(text.encode("utf-8")) > REASON_BYTES_MAX:
                text = text[:-1]
            orphans.append(OrphanEntry(info.hash, competing if first is None or own else None, True, text))
            info = self.load(info.parent)
        orphans.reverse()
        return CanonicalEntry((fork.height, fork.hash), tip, self.new_floor(state, tip[0]), tuple(orphans))
