"""Links of blocks: in the journal from frame to frame, and in the canonical table from the root to the tip.

Invariants:
    * What the journal says is checked against the journal alone; a row of the views only helps to find a frame, and is
      not believed before that frame confirmed it.
    * Every problem names the frame, height or hash where it stands.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from typing import Protocol

from ..blocks.content import FrameContent, decode_frame
from ..blocks.entries import BlockEntry, CanonicalEntry, decode_block
from ..blocks.lookup import find_block
from ..blocks.records import HEIGHT, block_key, decode_block_record
from ..blocks.state import ChainState
from ..consensus.records import decode_fence, decode_safety
from ..engine.api import Engine
from ..errors import CorruptionError, HoldfastError, NotFoundError, Recovery, UnsupportedFormat
from ..journal.api import KNOWN_KINDS, Frame, FrameSource, Kind
from ..views.rows import decode_row, table_name
from ..views.tables import BLOCKS, CANONICAL, ORPHANS, Table
from .resume import LinksSeen

__all__ = [
    "Counter",
    "Frames",
    "bad_row",
    "check_block_links",
    "check_canonical",
    "check_tip",
    "engine_rows",
    "plain_row",
]

_REMEMBERED_BLOCKS_MAX = 200_000


class Frames(FrameSource, Protocol):
    """A journal that also gives its frames in order."""

    def frames(self, start_seq: int, stop_seq: int | None = None) -> Iterator[Frame]:
        """Frames from ``start_seq`` on, their chain of digests checked."""


class Counter(Protocol):
    """Who counts what was looked at and keeps the problems."""

    def step(self, count: int = 1, total: int = 0) -> None:
        """``count`` more things were looked at; 0 only shows that work goes on."""

    def problem(self, error: HoldfastError) -> None:
        """Something is wrong."""


def engine_rows(engine: Engine, start: bytes = b"", stop: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
    """Every stored row (checksum and value) from ``start`` to, not including, ``stop``."""
    while True:
        page = engine.scan(start, stop, limit=1000)
        yield from page.rows
        if page.resume is None:
            return
        start = page.resume


def plain_row(engine: Engine, key: bytes) -> bytes | None:
    """The row without its checksum, or ``None``. Raises ``CorruptionError`` for a bad checksum."""
    stored = engine.get(key)
    return None if stored is None else decode_row(key, stored)


def bad_row(message: str, key: bytes, **context: object) -> CorruptionError:
    """What is wrong with the row under an engine key, of which a rebuild makes another one."""
    return CorruptionError(
        message, table=table_name(key), key=key[2:], remedy=None, recovery=Recovery.REBUILD, **context
    )


def _table(engine: Engine, table: Table) -> Iterator[tuple[bytes, bytes]]:
    """Keys inside the table and plain values. Raises ``CorruptionError`` at a bad checksum."""
    for key, stored in engine_rows(engine, table.prefix, table.end):
        yield key[2:], decode_row(key, stored)


# -- in the journal -------------------------------------------------------------------------------------------------


class _Links:
    def __init__(self, source: Frames, engine: Engine | None, tally: Counter) -> None:
        self._source = source
        self._engine = engine
        self._tally = tally
        self._known: OrderedDict[bytes, tuple[int, int]] = OrderedDict()
        self._tip: tuple[int, bytes] | None = None
        self._floor = 0
        self._finalized = -1

    def go_on(self, seen: LinksSeen) -> bool:
        """What an earlier run saw is taken over, if it is of this journal."""
        try:
            known = self._source.frame(seen.seq).digest.hex() == seen.digest
            tip = (seen.tip_height, bytes.fromhex(seen.tip_hash)) if seen.tip_height >= 0 else None
        except (CorruptionError, NotFoundError, ValueError):
            return False
        if known:
            self._tip = tip
            self._floor, self._finalized = seen.floor, seen.finalized
        return known

    def seen(self, frame: Frame) -> LinksSeen:
        """What the frame behind ``frame`` must fit."""
        height, block_hash = self._tip if self._tip is not None else (-1, b"")
        return LinksSeen(frame.seq, frame.digest.hex(), height, block_hash.hex(), self._floor, self._finalized)

    def frame(self, frame: Frame) -> None:
        """The entries of ``frame`` follow from the frames before it."""
        for index, part in enumerate(frame.parts):
            if part.kind not in KNOWN_KINDS and part.critical:
                raise UnsupportedFormat("an unknown kind of entry is critical", seq=frame.seq, kind=part.kind)
            if part.kind == Kind.SAFETY:
                decode_safety(self._source.part(frame, index))
            elif part.kind == Kind.FENCE:
                decode_fence(self._source.part(frame, index))
        content = decode_frame(self._source, frame)
        if content is None:
            return
        for position, entry in enumerate(content.blocks):
            self._block(frame, entry, root=self._tip is None and position == 0)
            self._tally.step()
        if content.canonical is not None:
            self._canonical(frame, content, content.canonical)
        if content.finalized is not None:
            final = content.finalized
            self._expect(frame, final.height, final.hash, "the finalized block")
            if self._tip is None or not self._finalized < final.height <= self._tip[0] or final.floor < self._floor:
                self._bad("a finality entry contradicts the ones before it", frame, height=final.height)
            self._finalized = final.height
            self._floor = max(self._floor, final.floor)

    def _bad(self, message: str, frame: Frame, **context: object) -> None:
        problem = CorruptionError(message, seq=frame.seq, segment=frame.segment, offset=frame.offset)
        problem.context.update(context)
        self._tally.problem(problem)

    def _block(self, frame: Frame, entry: BlockEntry, *, root: bool) -> None:
        if entry.hash in self._known:
            self._bad("a block is stored twice", frame, hash=entry.hash, height=entry.height)
        expected = entry.work
        if not root:
            parent = self._find(entry.parent, frame.seq)
            if parent is None:
                self._bad("the parent of a block is not stored before it", frame, hash=entry.hash, parent=entry.parent)
            else:
                expected += parent[1]
                if entry.height != parent[0] + 1:
                    self._bad(
                        "the height of a block does not follow its parent's",
                        frame,
                        hash=entry.hash,
                        found=entry.height,
                        expected=parent[0] + 1,
                    )
                if entry.total_work != expected:
                    self._bad(
                        "the total work of a block is wrong",
                        frame,
                        hash=entry.hash,
                        found=entry.total_work,
                        expected=expected,
                    )
        self._known[entry.hash] = (entry.height, entry.total_work)
        if self._engine is not None and len(self._known) > _REMEMBERED_BLOCKS_MAX:
            self._known.popitem(last=False)

    def _find(self, block_hash: bytes, before_seq: int) -> tuple[int, int] | None:
        """(height, total work) of a block that a frame up to ``before_seq`` stored."""
        known = self._known.get(block_hash)
        if known is not None or self._engine is None:
            return known
        record = find_block(partial(plain_row, self._engine), block_hash)
        if record is None or record.seq > before_seq:
            return None
        frame = self._source.frame(record.seq)
        if record.part >= len(frame.parts) or frame.parts[record.part].kind != Kind.BLOCK:
            return None
        entry = decode_block(self._source.part(frame, record.part))[0]
        return (entry.height, entry.total_work) if entry.hash == block_hash else None

    def _expect(self, frame: Frame, height: int, block_hash: bytes, what: str) -> None:
        found = self._find(block_hash, frame.seq)
        if found is None or found[0] != height:
            self._bad(f"{what} is not a stored block of that height", frame, hash=block_hash, height=height)

    def _canonical(self, frame: Frame, content: FrameContent, entry: CanonicalEntry) -> None:
        if (entry.fork is None) != (self._tip is None):
            self._bad("a switch of the chain has no fork point, or a root has one", frame, height=entry.tip[0])
        if entry.fork is not None:
            self._expect(frame, entry.fork[0], entry.fork[1], "the fork point")
            if entry.fork[0] < self._floor:
                self._bad("a switch forks below the reorg floor", frame, height=entry.fork[0], floor=self._floor)
            if not content.blocks and entry.tip != entry.fork:
                self._descends(frame, entry)
        self._expect(frame, entry.tip[0], entry.tip[1], "the new tip")
        if entry.floor < self._floor:
            self._bad("the reorg floor falls", frame, found=entry.floor, expected=self._floor)
        for orphan in entry.orphans:
            if self._find(orphan.hash, frame.seq) is None:
                self._bad("an orphaned block is not stored", frame, hash=orphan.hash)
        self._tip = entry.tip
        self._floor = max(self._floor, entry.floor)

    def _descends(self, frame: Frame, entry: CanonicalEntry) -> None:
        assert entry.fork is not None
        if entry.tip[0] <= entry.fork[0]:
            self._bad("the new tip lies below the fork point", frame, hash=entry.tip[1], fork=entry.fork[1])


def check_block_links(
    source: Frames, engine: Engine | None, tally: Counter, seen: LinksSeen | None = None
) -> LinksSeen | None:
    """Every block of the journal has its parent before it, heights and works add up, and switches name stored blocks.

    ``engine`` only finds old frames; without it every block is remembered (some 250 bytes each), and every frame is
    checked. With it the frames up to ``seen``, of an earlier run, are left out while they are of this journal. Returns
    how far the links were followed; ``None`` in an empty journal.
    """
    links = _Links(source, engine, tally)
    start, last = source.first_seq, None
    if seen is not None and engine is not None and links.go_on(seen):
        start = seen.seq
    for frame in source.frames(start):
        last = frame
        if frame.seq == start and start != source.first_seq:
            continue  # it only ties the chain of digests
        try:
            links.frame(frame)
        except (CorruptionError, UnsupportedFormat, NotFoundError) as error:
            error.context.setdefault("seq", frame.seq)
            tally.problem(error)
    return None if last is None else links.seen(last)


# -- in the views ---------------------------------------------------------------------------------------------------


def check_tip(engine: Engine, state: ChainState) -> None:
    """The rows of the tip are there and say the same. Raises ``CorruptionError``."""
    if not state.has_tip:
        return
    key = CANONICAL.prefix + HEIGHT.pack(state.tip_height)
    stored, row = engine.get_many([key, block_key(state.tip_hash)])
    if stored is None or decode_row(key, stored) != state.tip_hash or row is None:
        raise CorruptionError(
            "the rows of the tip are missing or wrong",
            height=state.tip_height,
            hash=state.tip_hash,
            recovery=Recovery.REBUILD,
        )
    decode_block_record(state.tip_hash, decode_row(block_key(state.tip_hash), row))


def check_canonical(engine: Engine, state: ChainState, tally: Counter) -> None:
    """The canonical table is one linked chain from the root to the tip, and the counters equal the rows."""
    expected, previous = state.root_height, b""
    total = state.tip_height - state.root_height + 1 if state.has_tip else 0

    def bad(message: str, **context: object) -> None:
        tally.problem(CorruptionError(message, table=CANONICAL.name, remedy=None, recovery=Recovery.REBUILD, **context))

    get = partial(plain_row, engine)
    for key, block_hash in _table(engine, CANONICAL):
        height = int.from_bytes(key, "big")
        tally.step(1, total)
        if not state.has_tip or height != expected:
            bad("the canonical table has a gap or a row too many", height=height, expected=expected)
        record = find_block(get, block_hash)
        if record is None:
            bad("a canonical block has no row", height=height, hash=block_hash)
        elif record.height != height or (previous and record.parent != previous):
            bad("a canonical block is not the child of the one below it", height=height, hash=block_hash)
        if height == state.root_height and block_hash != state.root_hash:
            bad("the root is another block", height=height, hash=block_hash, expected_hash=state.root_hash)
        expected, previous = height + 1, block_hash
    if state.has_tip and (expected - 1, previous) != (state.tip_height, state.tip_hash):
        bad("the canonical table does not end at the tip", height=expected - 1, expected=state.tip_height)
    for table, count in ((BLOCKS, state.blocks), (ORPHANS, state.orphans)):
        found = sum(1 for _ in _table(engine, table))
        tally.step(found)
        if found != count:
            tally.problem(
                CorruptionError(
                    "a table has another number of rows than the chain counts",
                    table=table.name,
                    found=found,
                    expected=count,
                    recovery=Recovery.REBUILD,
                )
            )
