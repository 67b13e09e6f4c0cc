"""A dumb model of a store, and makers of blocks: every answer is found by walking plain lists and dictionaries."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import holdfast
from holdfast import Settings, Store
from holdfast.blocks.decide import REASON_FORCED, REASON_REORG, REASON_SIDE
from holdfast.blocks.reader import BlockReader
from holdfast.errors import BlockNotFound, FinalityError, InvalidBlock, LimitExceeded, ParentUnknown
from holdfast.types import ZERO_HASH, AddResult, AddStatus, Block, BlockInfo

BODY = b"body of a block, long enough to be worth something " * 4


def hash_of(*words: object) -> bytes:
    """A block hash from any words."""
    return hashlib.sha256(repr(words).encode()).digest()


def make(
    parent: Block | BlockInfo | None,
    name: object = 0,
    *,
    work: int = 1,
    time: int | None = None,
    producer: bytes = b"",
    height: int | None = None,
    body: bytes | None = BODY,
) -> Block:
    """A child of ``parent``, or a first block at ``height`` (0)."""
    at = height if height is not None else parent.height + 1 if parent is not None else 0
    above = parent.hash if parent is not None else ZERO_HASH
    return Block(
        hash=hash_of(above, at, name),
        parent=above,
        height=at,
        header=b"header " + str(name).encode() + b" " * 20,
        body=body,
        time=at * 10 if time is None else time,
        work=work,
        producer=producer,
        extra=b"extra" if work % 2 else None,
    )


def chain_of(parent: Block | BlockInfo | None, count: int, name: object = 0, *, work: int = 1) -> list[Block]:
    """``count`` blocks, each the child of the one before it."""
    blocks: list[Block] = []
    for _ in range(count):
        parent = make(parent, name, work=work)
        blocks.append(parent)
    return blocks


def quick(**fields: object) -> Settings:
    """Settings for tests: nothing happens in the background unless a test waits for minutes."""
    return Settings(**({"flush_interval_seconds": 3600.0} | fields))  # type: ignore[arg-type]


def open_quick(url: str | Path, **fields: object) -> Store:
    """A store with ``quick`` settings."""
    return holdfast.open(url, settings=quick(**fields))


def filled(url: str | Path, count: int = 10, **fields: object) -> list[Block]:
    """A closed store of ``count`` blocks with one side block on each third; its canonical blocks."""
    blocks = chain_of(None, count)
    with open_quick(url, **fields) as store:
        for block in blocks:
            store.add(block)
            if block.height and block.height % 3 == 0:
                store.add(make(blocks[block.height - 1], "side", producer=b"side"))
    return blocks


@dataclass
class Orphan:
    """Why a block is not canonical."""

    reason: str
    competing: bytes | None
    was_canonical: bool


@dataclass
class Model:
    """What a store must answer. Methods raise what the store must raise, and change nothing then."""

    choice: str = "heaviest"
    max_reorg_depth: int = 256
    max_orphans: int = 1_000_000
    forced: dict[int, bytes] = field(default_factory=dict)
    blocks: dict[bytes, Block] = field(default_factory=dict)
    canonical: list[bytes] = field(default_factory=list)
    orphans: dict[bytes, Orphan] = field(default_factory=dict)
    finalized: int | None = None
    floor: int = 0
    reorgs: int = 0
    depth_max: int = 0
    orphaned: int = 0
    totals: dict[bytes, int] = field(default_factory=dict)

    def copy(self) -> Model:
        """As of now, for ever."""
        return replace(
            self,
            blocks=dict(self.blocks),
            canonical=list(self.canonical),
            orphans=dict(self.orphans),
            forced=self.forced,
        )

    # -- looking ------------------------------------------------------------------------------------------------

    @property
    def root_height(self) -> int:
        return self.blocks[self.canonical[0]].height

    @property
    def tip(self) -> Block | None:
        return self.blocks[self.canonical[-1]] if self.canonical else None

    def path(self, block_hash: bytes) -> list[bytes]:
        """Hashes from the root to the block."""
        path = [block_hash]
        while (parent := self.blocks[path[-1]].parent) in self.blocks:
            path.append(parent)
        return path[::-1]

    def total(self, block_hash: bytes) -> int:
        total = self.totals.get(block_hash)
        if total is None:
            total = self.totals[block_hash] = sum(self.blocks[each].work for each in self.path(block_hash))
        return total

    def tips(self) -> dict[bytes, tuple[int, str]]:
        """Leaf -> (blocks of its branch that are not canonical, status)."""
        if not self.canonical:
            return {}
        found = {self.canonical[-1]: (0, "active")}
        parents = {self.blocks[each].parent for each in self.orphans}
        for each in self.orphans:
            if each not in parents:
                found[each] = (sum(1 for one in self.path(each) if one in self.orphans), "fork")
        return found

    # -- changing -----------------------------------------------------------------------------------------------

    def add(self, block: Block) -> AddStatus:
        if block.hash in self.blocks:
            return AddStatus.KNOWN
        if not self.canonical:
            self.blocks[block.hash] = block
            self.canonical = [block.hash]
            self.floor = block.height
            return AddStatus.EXTENDED
        parent = self.blocks.get(block.parent)
        if parent is None:
            raise ParentUnknown("")
        if block.height != parent.height + 1:
            raise InvalidBlock("")
        path = [*self.path(parent.hash), block.hash]
        fork = self._fork(path)
        extends = block.parent == self.canonical[-1]
        if not extends and self.blocks[fork].height < self.floor:
            raise FinalityError("")
        wins, reason = self._wins(block, path, fork)
        if extends and wins:
            self.blocks[block.hash] = block
            self.canonical.append(block.hash)
            self._raise_floor()
            return AddStatus.EXTENDED
        if wins:
            self.blocks[block.hash] = block
            replaced = fork != self.canonical[-1]
            self._switch(path, fork, REASON_REORG, block.hash)
            return AddStatus.REORGANISED if replaced else AddStatus.EXTENDED
        if len(self.orphans) + 1 > self.max_orphans:
            raise LimitExceeded("")
        self.blocks[block.hash] = block
        self.orphans[block.hash] = Orphan(reason, self._at(block.height), False)
        return AddStatus.SIDE

    def _at(self, height: int) -> bytes | None:
        index = height - self.root_height
        return self.canonical[index] if 0 <= index < len(self.canonical) else None

    def _fork(self, path: list[bytes]) -> bytes:
        canonical = set(self.canonical)
        return [each for each in path if each in canonical][-1]

    def _wins(self, block: Block, path: list[bytes], fork: bytes) -> tuple[bool, str]:
        tip = self.tip
        assert tip is not None
        fork_height = self.blocks[fork].height
        branch = {self.root_height + index: each for index, each in enumerate(path)}
        own = [height for height in self.forced if height > fork_height]
        if any(branch.get(height, self.forced[height]) != self.forced[height] for height in own):
            return False, REASON_FORCED
        if block.parent == tip.hash:
            return True, ""
        if any(height not in branch and self._at(height) == self.forced[height] for height in own):
            return False, REASON_SIDE
        if any(height in branch and self._at(height) not in (None, self.forced[height]) for height in own):
            return True, ""
        total = block.work + self.total(block.parent)
        better = {"heaviest": total > self.total(tip.hash), "longest": block.height > tip.height, "manual": False}
        return better[self.choice], REASON_SIDE

    def _raise_floor(self) -> None:
        tip = self.tip
        assert tip is not None
        self.floor = max(self.floor, tip.height - self.max_reorg_depth)

    def _switch(self, path: list[bytes], fork: bytes, reason: str, competing: bytes | None) -> None:
        left = self.canonical[self.canonical.index(fork) + 1 :]
        for each in left:
            self.orphans[each] = Orphan(reason, competing, True)
        for each in path:
            self.orphans.pop(each, None)
        self.canonical = path
        self.reorgs += 1 if left else 0
        self.depth_max = max(self.depth_max, len(left))
        self.orphaned += len(left)
        self._raise_floor()

    def reorg(self, to: bytes, reason: str) -> None:
        if to not in self.blocks:
            raise BlockNotFound("")
        if to == self.canonical[-1]:
            return
        path = self.path(to)
        fork = self._fork(path)
        if self.blocks[fork].height < self.floor:
            raise FinalityError("")
        fork_height = self.blocks[fork].height
        for each in path:
            height = self.blocks[each].height
            if height > fork_height and self.forced.get(height, each) != each:
                raise FinalityError("")
        self._switch(path, fork, reason, to if to != fork else None)

    def orphan(self, block_hash: bytes, reason: str, competing: bytes | None) -> None:
        if block_hash not in self.blocks:
            raise BlockNotFound("")
        if block_hash not in self.canonical:
            return
        block = self.blocks[block_hash]
        if block.height <= self.floor:
            raise FinalityError("")
        above = self.canonical[self.canonical.index(block_hash) + 1 :]
        self._switch(self.path(block.parent), block.parent, reason, competing)
        for each in above:
            self.orphans[each] = Orphan(f"descendant of an orphaned block: {reason}", None, True)

    def finalize(self, height: int) -> None:
        if height == self.finalized:
            return
        if self.finalized is not None and height < self.finalized:
            raise FinalityError("")
        if not self.canonical or self._at(height) is None:
            raise BlockNotFound("")
        self.finalized = height
        self.floor = max(self.floor, height)


def assert_blocks(reader: BlockReader, model: Model, *, bytes_too: bool = True) -> None:
    """Everything that ``reader`` answers is what the model says; ``bytes_too`` reads every block from the journal."""
    canonical = [info.hash for info in reader.canonical()]
    assert canonical == model.canonical
    assert [info.hash for info in reader.canonical(reverse=True)] == model.canonical[::-1]
    heights: dict[int, set[bytes]] = {}
    for block_hash, block in model.blocks.items():
        info = reader.load(block_hash)
        if bytes_too:
            assert reader.block(info) == block
        assert (info.parent, info.height, info.producer) == (block.parent, block.height, block.producer)
        assert info.total_work == model.total(block_hash)
        heights.setdefault(block.height, set()).add(block_hash)
        orphan = reader.orphan(block_hash)
        expected = model.orphans.get(block_hash)
        if expected is None:
            assert orphan is None
            assert reader.hash_at(block.height) == block_hash
        else:
            assert orphan is not None
            assert (orphan.reason, orphan.competing_hash, orphan.was_canonical, orphan.height) == (
                expected.reason,
                expected.competing,
                expected.was_canonical,
                block.height,
            )
            assert orphan.seen_us <= orphan.orphaned_us
    for height, hashes in heights.items():
        competitors = reader.competitors(height)
        assert {info.hash for info in competitors} == hashes
        assert len(competitors) == len(hashes)
    assert {orphan.hash for orphan in reader.orphans()} == set(model.orphans)
    assert {tip.hash: (tip.branch_length, tip.status) for tip in reader.tips()} == model.tips()
    figures = reader.statistics()
    expected_figures: dict[str, int | None] = {
        "blocks": len(model.blocks),
        "canonical": len(model.canonical),
        "orphans": len(model.orphans),
        "reorgs": model.reorgs,
        "reorg_depth_max": model.depth_max,
        "orphaned_total": model.orphaned,
        "tip_height": model.tip.height if model.tip is not None else None,
        "root_height": model.root_height if model.canonical else None,
        "finalized_height": model.finalized,
        "reorg_floor": model.floor if model.canonical else None,
    }
    assert figures == expected_figures


def assert_store(store: Store, model: Model, *, bytes_too: bool = True) -> None:
    """The store equals the model."""
    tip = store.tip
    assert (tip.hash if tip is not None else None) == (model.canonical[-1] if model.canonical else None)
    assert store.finalized == model.finalized
    assert_blocks(store.blocks, model, bytes_too=bytes_too)


def status_of(result: AddResult) -> AddStatus:
    """The status, after the rest of the answer was found to fit it."""
    assert (result.reorg is not None) == (result.status is AddStatus.REORGANISED)
    return result.status
