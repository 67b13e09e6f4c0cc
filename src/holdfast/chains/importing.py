"""Importing blocks from files: any order, any branch, in bounded memory, resumable at any point.

Invariants:
    * A source checks the frames of all its files before the first block is written: a foreign, truncated or oversized
      file leaves the store as it was.
    * A block is handed to the store only after its parent. One whose parent is not known yet waits as a *place* (file,
      offset, size), never as bytes, and ``WAITING_BLOCKS_MAX`` places at most.
    * Blocks already stored are skipped by the store, so an import that was stopped or killed is continued by the same
      call. It stops between batches.
    * A bad block ends the import: what came before it stays, and the error names file, offset, and what was added.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import (
    ConflictError,
    HoldfastError,
    InvalidBlock,
    InvalidInputError,
    LimitExceeded,
    ParentUnknown,
    Recovery,
    SafetyError,
)
from ..types import ZERO_HASH, AddResult, AddStatus, Block, BlockInfo

__all__ = [
    "WAITING_BLOCKS_MAX",
    "BlockSource",
    "BlockStore",
    "Candidate",
    "ImportProgress",
    "ImportReport",
    "Place",
    "import_files",
]

WAITING_BLOCKS_MAX = 1_000_000
_HEIGHTS_KEPT = 4096


@dataclass(frozen=True, slots=True)
class Place:
    """Where one block lies: the number of the file in its source, and the bytes there."""

    file: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A block as its file gives it. ``block.height`` is -1 where only the parent tells it.

    ``uncles`` are header-only blocks that it names: stored beside it if their parents are.
    """

    block: Block
    uncles: tuple[Block, ...] = ()


class BlockSource(Protocol):
    """Files of one chain. Making one has checked all frames; the totals are what they hold."""

    total_blocks: int
    total_bytes: int

    def places(self) -> Iterator[Place]:
        """Every block's place, in the order of the files."""

    def load(self, place: Place) -> Candidate:
        """The decoded block at ``place``. Raises ``InvalidBlock``."""

    def links(self, place: Place) -> tuple[bytes, bytes]:
        """Hash and parent of the block at ``place``."""

    def describe(self, place: Place) -> dict[str, object]:
        """``path`` and ``offset`` for an error."""

    def close(self) -> None:
        """The files are closed."""


class BlockReader(Protocol):
    """What an import reads from a store."""

    def get(self, block_hash: bytes, /) -> BlockInfo | None:
        """The stored block, or ``None``."""


class BlockStore(Protocol):
    """What an import needs of a store."""

    @property
    def tip(self) -> BlockInfo | None:
        """The canonical tip."""

    @property
    def blocks(self) -> BlockReader:
        """The stored blocks."""

    def add_many(
        self, blocks: Sequence[Block], *, validate: bool = True, root_allowed: bool = False
    ) -> list[AddResult]:
        """Add blocks in order, parents first."""


@dataclass(frozen=True, slots=True)
class ImportProgress:
    """How far an import is. ``bytes_done`` counts what was read in the order of the files."""

    blocks_done: int
    blocks_total: int
    bytes_done: int
    bytes_total: int
    tip_height: int | None
    seconds: float


@dataclass(slots=True)
class ImportReport:
    """What an import found and did. ``stopped`` is true if it was asked to stop; the same call continues it.

    ``known`` counts blocks that were stored already, duplicates within the files included. ``side`` counts blocks that
    were added beside the canonical chain, ``uncles`` header-only ones among the added.
    """

    found: int = 0
    added: int = 0
    known: int = 0
    side: int = 0
    uncles: int = 0
    uncles_skipped: int = 0
    reorgs: int = 0
    unconnected: int = 0
    bytes_read: int = 0
    seconds: float = 0.0
    stopped: bool = False
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        """The report as plain JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}


def import_files(
    store: BlockStore,
    source: BlockSource,
    *,
    base_height: int | None = None,
    progress: Callable[[ImportProgress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    batch_blocks: int = 64,
    batch_bytes: int = 4 * 1024 * 1024,
) -> ImportReport:
    """Every block of ``source`` that connects is in ``store``.

    Args:
        base_height: the height of the first block of an empty store, whose parent need not be stored. Without it the
            first block must be a genesis block, or one the store knows.
        stop: asked between batches; true ends the import with ``report.stopped``.
    Raises:
        InvalidBlock: a block is bad; blocks before it stay.
        ParentUnknown: blocks are left whose ancestors are neither stored nor in the files; all others were added.
    """
    if batch_blocks < 1 or batch_bytes < 1:
        raise InvalidInputError("a batch holds at least one block and one byte", blocks=batch_blocks, bytes=batch_bytes)
    if base_height is not None and base_height < 0:
        raise InvalidInputError("a base height is not negative", found=base_height)
    run = _Import(store, source, base_height, progress, stop or _never, batch_blocks, batch_bytes)
    return run.run()


def _never() -> bool:
    return False


class _Stopped(Exception):
    """The caller asked to stop."""


class _Import:
    """One run: the batch being filled, heights of blocks just added, and places that wait for a parent."""

    def __init__(
        self,
        store: BlockStore,
        source: BlockSource,
        base_height: int | None,
        progress: Callable[[ImportProgress], None] | None,
        stop: Callable[[], bool],
        batch_blocks: int,
        batch_bytes: int,
    ) -> None:
        self.store = store
        self.source = source
        self.base_height = base_height
        self.progress = progress
        self.stop = stop
        self.batch_blocks = batch_blocks
        self.batch_bytes = batch_bytes
        self.report = ImportReport(found=source.total_blocks)
        self.started = time.monotonic()
        self.empty = store.tip is None
        self.root: bytes | None = None
        self.batch: list[Block] = []
        self.batch_places: list[Place] = []
        self.batch_size = 0
        self.heights: dict[bytes, int] = {}
        self.older_heights: dict[bytes, int] = {}
        self.waiting: dict[bytes, list[Place]] = {}
        self.waiting_count = 0
        self.done = 0

    def run(self) -> ImportReport:
        try:
            if self.stop():
                raise _Stopped
            if self.empty and self.base_height is not None:
                self.root = self._find_root()
            for place in self.source.places():
                self.report.bytes_read += place.size
                self._take(place)
            self._flush()
        except _Stopped:
            self.report.stopped = True
        self.report.seconds = time.monotonic() - self.started
        self.report.unconnected = self.waiting_count
        if self.waiting and not self.report.stopped:
            self._refuse_unconnected()
        return self.report

    def _find_root(self) -> bytes | None:
        """The one block of the files whose parent is not among them: the base."""
        links = [self.source.links(place) for place in self.source.places()]
        hashes = {block_hash for block_hash, _ in links}
        roots = {block_hash for block_hash, parent in links if parent not in hashes}
        if len(roots) > 1:
            shown = ", ".join(sorted(item.hex() for item in roots)[:4])
            raise ConflictError(
                "a base must be one block, but several blocks have a parent that is not in the files",
                found=len(roots),
                blocks=shown,
                remedy="import the files that hold the blocks between them together",
                recovery=Recovery.FAIL,
            )
        return roots.pop() if roots else None

    def _take(self, place: Place) -> None:
        """The block at ``place``, and all that waited for it, are in the batch; or it waits."""
        ready = deque([place])
        while ready:
            place = ready.popleft()
            candidate = self._load(place)
            block = candidate.block
            try:
                height = self._height(block)
            except ConflictError as exc:
                self._say_where(exc, place)
                raise
            if height is None:
                self._wait(block.parent, place)
                continue
            if block.height < 0:
                block = _at_height(block, height)
            self.done += 1
            self._push(block, place)
            for uncle in candidate.uncles:
                self._push_uncle(uncle, place)
            follow = self.waiting.pop(block.hash, None)
            if follow is not None:
                self.waiting_count -= len(follow)
                ready.extend(follow)

    def _load(self, place: Place) -> Candidate:
        try:
            return self.source.load(place)
        except InvalidBlock as exc:
            self._flush()
            self._say_where(exc, place)
            raise

    def _height(self, block: Block) -> int | None:
        """The height of ``block``, or ``None`` if its parent is not known yet."""
        parent = self._known_height(block.parent)
        if parent is not None:
            return parent + 1
        if block.hash == self.root:
            if block.height >= 0 and block.height != self.base_height:
                raise ConflictError(
                    "the first block says that it has another height than the stated base",
                    hash=block.hash,
                    found=block.height,
                    expected=self.base_height,
                    remedy="state the height that the block has, or none",
                    recovery=Recovery.FAIL,
                )
            return self.base_height
        if block.parent == ZERO_HASH:
            if not self.empty and self.store.blocks.get(block.hash) is None:
                raise ConflictError(
                    "the files begin with the first block of another chain",
                    hash=block.hash,
                    remedy="import files of the store's chain, or into another data directory",
                    recovery=Recovery.FAIL,
                )
            return 0
        if not self.empty:
            stored = self.store.blocks.get(block.hash)
            if stored is not None:  # the root of a store that starts above a base
                return stored.height
        return None

    def _known_height(self, block_hash: bytes) -> int | None:
        height = self.heights.get(block_hash)
        if height is None:
            height = self.older_heights.get(block_hash)
        if height is None and block_hash != ZERO_HASH:
            stored = self.store.blocks.get(block_hash)
            if stored is not None:
                height = stored.height
        return height

    def _wait(self, parent: bytes, place: Place) -> None:
        if self.waiting_count >= WAITING_BLOCKS_MAX:
            error = LimitExceeded(
                "too many blocks wait for a parent", limit=WAITING_BLOCKS_MAX, remedy="import the older files first"
            )
            self._say_where(error, place)
            raise error
        self.waiting.setdefault(parent, []).append(place)
        self.waiting_count += 1

    def _push(self, block: Block, place: Place) -> None:
        if len(self.heights) >= _HEIGHTS_KEPT:
            self.heights, self.older_heights = {}, self.heights
        self.heights[block.hash] = block.height
        self.batch.append(block)
        self.batch_places.append(place)
        self.batch_size += place.size
        if len(self.batch) >= self.batch_blocks or self.batch_size >= self.batch_bytes:
            self._flush()

    def _push_uncle(self, uncle: Block, place: Place) -> None:
        if self._known_height(uncle.parent) is None:
            self.report.uncles_skipped += 1
            return
        self._push(uncle, place)

    def _flush(self) -> None:
        if not self.batch:
            return
        batch, places = self.batch, self.batch_places
        self.batch, self.batch_places, self.batch_size = [], [], 0
        try:
            results = self.store.add_many(batch, root_allowed=self.empty and self.base_height is not None)
        except HoldfastError as exc:
            self._blame(exc, batch, places)
            raise
        self.empty = False
        for block, result in zip(batch, results, strict=True):
            self._count(block, result)
        if self.progress is not None:
            tip = self.store.tip
            self.progress(
                ImportProgress(
                    self.done,
                    self.source.total_blocks,
                    self.report.bytes_read,
                    self.source.total_bytes,
                    None if tip is None else tip.height,
                    time.monotonic() - self.started,
                )
            )
        if self.stop():
            raise _Stopped

    def _count(self, block: Block, result: AddResult) -> None:
        report = self.report
        if result.status is AddStatus.KNOWN:
            report.known += 1
            return
        report.added += 1
        if result.status is AddStatus.SIDE:
            report.side += 1
        elif result.status is AddStatus.REORGANISED:
            report.reorgs += 1
        if block.body is None:
            report.uncles += 1

    def _blame(self, error: HoldfastError, batch: Sequence[Block], places: Sequence[Place]) -> None:
        """The error names the place of the block it is about: the first of the batch that is not stored."""
        if not isinstance(error, (InvalidBlock, ConflictError, SafetyError, LimitExceeded, InvalidInputError)):
            return
        for index, block in enumerate(batch):
            if self.store.blocks.get(block.hash) is None:
                if not isinstance(error, InvalidBlock):  # the store may name the parent where it refuses a branch
                    error.context["hash"] = block.hash
                self._say_where(error, places[index], index)
                return

    def _say_where(self, error: HoldfastError, place: Place | None, more: int = 0) -> None:
        """``error`` names the file, the offset, and how many blocks before the bad one are stored now."""
        if place is not None:
            where = self.source.describe(place)
            inside = error.context.get("offset")
            error.context.update(where)
            if inside is not None:
                error.context["offset_in_block"] = inside
        error.context["blocks_stored"] = self.report.added + self.report.known + more

    def _refuse_unconnected(self) -> None:
        parent, places = next(iter(self.waiting.items()))
        error = ParentUnknown(
            "blocks are left whose parents are neither stored nor in the files",
            found=self.waiting_count,
            missing_parent=parent,
        )
        self._say_where(error, places[0])
        raise error


def _at_height(block: Block, height: int) -> Block:
    return Block(
        block.hash,
        block.parent,
        height,
        block.header,
        block.body,
        block.time,
        block.work,
        block.producer,
        block.extra,
    )
