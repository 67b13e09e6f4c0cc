"""What the tests of the views share: a toy chain as dumb data, and engines that remember or stop."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from holdfast.engine.api import Batch, Page
from holdfast.engine.memory import MemoryEngine
from holdfast.views.api import FrameLayers, HistoryRule, Layer, RowReader, Rows, ViewOptions
from holdfast.views.tables import BLOCKS, CANONICAL, INDEX_FIRST, STATE, Table, index_table
from holdfast.views.views import Views

REORG_DEPTH = 6
INDEX = index_table(INDEX_FIRST)
LOW = BLOCKS.prefix
HIGH = b"\xa0\x00"
"""Every row of the toy chain lies between."""

State = dict[bytes, bytes]


class SimulatedCrash(BaseException):
    """The process is gone; no handler may eat it."""


def _nothing() -> None:
    """No other thread does anything."""


class RecordingEngine(MemoryEngine):
    """Remembers every batch, so that the engine after its first k batches can be made.

    ``meanwhile`` is called after each batch, and ``on_get``, ``on_get_many`` and ``on_scan`` after such a read and
    before it returns: what another thread could do just then.
    """

    def __init__(self, batches: list[Batch] | None = None) -> None:
        super().__init__()
        self.batches: list[Batch] = []
        self.synced: list[bool] = []
        self.meanwhile: Callable[[], None] = _nothing
        self.on_get: Callable[[], None] = _nothing
        self.on_get_many: Callable[[], None] = _nothing
        self.on_scan: Callable[[], None] = _nothing
        for batch in batches or []:
            self.apply(batch, sync=False)

    def apply(self, batch: Batch, *, sync: bool) -> None:
        super().apply(batch, sync=sync)
        self.batches.append(Batch(dict(batch.rows), list(batch.delete_ranges)))
        self.synced.append(sync)
        self.meanwhile()

    def get(self, key: bytes) -> bytes | None:
        value = super().get(key)
        self.on_get()
        return value

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        values = super().get_many(keys)
        self.on_get_many()
        return values

    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False, limit: int = 1000) -> Page:
        page = super().scan(start, stop, reverse=reverse, limit=limit)
        self.on_scan()
        return page

    def after(self, count: int) -> RecordingEngine:
        """The engine as its first ``count`` batches left it."""
        return RecordingEngine(self.batches[:count])


class CrashingEngine(RecordingEngine):
    """Stops the process before its ``crash_at``-th batch, counted from 1 after the batches given."""

    def __init__(self, batches: list[Batch], crash_at: int) -> None:
        super().__init__(batches)
        self.crash_at = crash_at + len(batches)

    def apply(self, batch: Batch, *, sync: bool) -> None:
        if len(self.batches) + 1 == getattr(self, "crash_at", 0):
            raise SimulatedCrash
        super().apply(batch, sync=sync)


@dataclass(frozen=True)
class ToyBlock:
    """A block whose rows are fixed; its undo follows from its parent's state."""

    height: int
    hash: bytes
    parent: bytes
    rows: tuple[tuple[bytes, bytes | None], ...]
    log: tuple[tuple[bytes, bytes | None], ...]


@dataclass(frozen=True)
class ToyFrame:
    """What the journal says: blocks leave the chain, newest first, then others enter."""

    removed: tuple[ToyBlock, ...]
    added: tuple[ToyBlock, ...]
    undo_floor: int


@dataclass
class Moment:
    """Everything after a frame, as plain copies."""

    chain: list[ToyBlock]
    state: State
    log: State
    floor: int

    @property
    def rows(self) -> State:
        """Every row a reader must find."""
        return {**self.state, **self.log}


def put(state: State, rows: Rows) -> State:
    """``state`` with ``rows`` on it, as a new dict."""
    new = dict(state)
    for key, value in rows.items():
        if value is None:
            new.pop(key, None)
        else:
            new[key] = value
    return new


@dataclass
class ToyChain:
    """The model: the journal, and everything after each of its frames. Index 0 is before the first frame."""

    frames: list[ToyFrame] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=lambda: [Moment([], {}, {}, 0)])
    undo: dict[bytes, Rows] = field(default_factory=dict)
    after: dict[bytes, State] = field(default_factory=lambda: {bytes(32): {}})
    orphans: list[ToyBlock] = field(default_factory=list)
    made: int = 0

    @property
    def seq(self) -> int:
        """The last frame."""
        return len(self.frames)

    @property
    def now(self) -> Moment:
        """After the last frame."""
        return self.moments[-1]

    def block(self, parent: ToyBlock | None, rows: Rows, log: Rows) -> ToyBlock:
        """A new block on ``parent``."""
        self.made += 1
        block_hash = hashlib.sha256(b"%d" % self.made).digest()
        height = 1 if parent is None else parent.height + 1
        return ToyBlock(
            height, block_hash, bytes(32) if parent is None else parent.hash, tuple(rows.items()), tuple(log.items())
        )

    def append(self, removed: int, added: list[ToyBlock]) -> None:
        """One more frame: ``removed`` blocks leave, ``added`` enter."""
        now = self.now
        chain = list(now.chain)
        state = now.state
        log = now.log
        gone = []
        for _ in range(removed):
            block = chain.pop()
            state = put(state, self.undo[block.hash])
            gone.append(block)
            self.orphans.append(block)
        for block in added:
            self.undo[block.hash] = {key: state.get(key) for key, _ in block.rows}
            self.after[block.hash] = state = put(state, dict(block.rows))
            log = put(log, dict(block.log))
            chain.append(block)
            self.orphans = [orphan for orphan in self.orphans if orphan.hash != block.hash]
        floor = max(now.floor, (chain[-1].height if chain else 0) - REORG_DEPTH)
        self.frames.append(ToyFrame(tuple(gone), tuple(added), floor))
        self.moments.append(Moment(chain, state, log, floor))

    def at(self, seq: int, height: int) -> State:
        """The chain rows after the block at ``height`` of the branch that is canonical after frame ``seq``."""
        return self.after[self.moments[seq].chain[height - 1].hash] if height else {}

    def tip_height(self, state: bytes) -> int:
        """The height of the tip in a frame's state."""
        return len(self.moments[int(state.split()[1])].chain)

    def cut(self, seq: int) -> None:
        """The frames after ``seq`` never were."""
        del self.frames[seq:]
        del self.moments[seq + 1 :]
        self.orphans = []


def digest_of(seq: int) -> bytes:
    """The digest of the toy journal's frame."""
    return hashlib.sha256(b"frame %d" % seq).digest()


@dataclass(frozen=True)
class Since:
    """A rule: changes of blocks at or above ``least`` are recorded."""

    least: int = 0
    table: Table = STATE

    def wants(self, height: int) -> bool:
        return height >= self.least


def open_views(
    engine: MemoryEngine, history: HistoryRule | None = None, chain: ToyChain | None = None, **options: float
) -> Views:
    """Views over ``engine`` for the toy journal."""
    return Views.open(
        engine,
        options=ViewOptions(**options),  # type: ignore[arg-type]
        frame_digest=digest_of,
        history=history,
        tip_height=None if chain is None else chain.tip_height,
    )


def layers_of(views: Views, chain: ToyChain, seq: int) -> FrameLayers:
    """What the store would make of the frame; undo comes from the views, and must be what the model says."""
    frame = chain.frames[seq - 1]
    layers = []
    undone: list[tuple[int, bytes, Rows]] = []
    back: Rows = {}
    for block in frame.removed:
        rows = views.undo_of(block.height, block.hash)
        assert rows == chain.undo[block.hash]
        undone.append((block.height, block.hash, rows))
        back.update(rows)
    if back:
        layers.append(Layer({}, back))
    for block in frame.added:
        layers.append(Layer(dict(block.log), dict(block.rows), (block.height, block.hash)))
    return FrameLayers(seq, layers, lambda: b"state %d" % seq, frame.undo_floor, undone)


def publish(views: Views, chain: ToyChain, first: int, last: int) -> None:
    """The frames ``first`` to ``last`` are published, one after the other."""
    for seq in range(first, last + 1):
        views.publish(layers_of(views, chain, seq))


def replay(views: Views, chain: ToyChain) -> None:
    """What the store does at open: finish a begun flush, then publish the rest; all of it is durable."""
    first = 1
    if views.applied is not None:
        applied = views.applied
        first = applied.seq + 1
        if applied.seq:
            assert applied.digest == digest_of(applied.seq)
            assert applied.state == b"state %d" % applied.seq
        if applied.flushing is not None:
            publish(views, chain, first, applied.flushing)
            views.set_visible(applied.flushing)
            views.flush(applied.flushing)
            first = applied.flushing + 1
            assert read_all(views.reader()) == chain.moments[first - 1].rows
    publish(views, chain, first, chain.seq)
    views.set_visible(chain.seq)


def read_all(reader: RowReader, *, reverse: bool = False, limit: int = 3) -> State:
    """Every row by pages, in the order they came."""
    rows: list[tuple[bytes, bytes]] = []
    start: bytes | None = LOW
    stop: bytes | None = HIGH
    while start is not None and stop is not None:
        page = reader.scan(start, stop, reverse=reverse, limit=limit)
        assert len(page.rows) == limit or (len(page.rows) < limit and page.resume is None)
        rows += page.rows
        if reverse:
            stop = page.resume
        else:
            start = page.resume
    keys = [key for key, _ in rows]
    assert keys == sorted(set(keys), reverse=reverse)
    return dict(rows)


def check_undo(views: Views, chain: ToyChain) -> None:
    """Every canonical block above the floors can be undone."""
    assert views.undo_floor <= chain.now.floor
    for block in chain.now.chain:
        if block.height > views.undo_floor:
            assert views.undo_of(block.height, block.hash) == chain.undo[block.hash]


def check_history(views: Views, chain: ToyChain, visible: int) -> None:
    """Every state row is what it was, at every height that the history has; so are the keys that it lists."""
    record = views.history
    if record is None:
        return
    now = chain.moments[visible]
    for height in range(len(now.chain) + 1):
        if not record.has(height):
            continue
        then = chain.at(visible, height)
        assert [views.read_at(key, height) for key in STATE_KEYS] == [then.get(key) for key in STATE_KEYS], height
        listed: list[bytes] = []
        start: bytes | None = b""
        while start is not None:
            page = views.history_keys(start, None, height, 3)
            assert len(page.keys) == 3 or page.resume is None
            listed += page.keys
            start = page.resume
        assert listed == sorted(set(listed))
        differ = {key[2:] for key in STATE_KEYS if then.get(key) != now.state.get(key)}
        assert differ <= set(listed) <= {key[2:] for key in STATE_KEYS}, height


TAILS = (b"", b"\x00", b"a", b"a\x00", b"a\x00\x00", b"ab", b"b", b"\x7f", b"\xff", b"\xff\xff")
STATE_KEYS = tuple(STATE.prefix + tail for tail in (*TAILS[1:], b"k" * 16, b"k" * 17, b"k" * 33))
CHAIN_KEYS = (*(table.prefix + tail for table in (CANONICAL, INDEX) for tail in TAILS), *STATE_KEYS)
LOG_KEYS = tuple(BLOCKS.prefix + tail for tail in TAILS)


def run_together(seconds: float, works: Sequence[Callable[[], None]]) -> None:
    """Each of ``works`` again and again in a thread of its own, for so long; raises what one raised."""
    stop = time.monotonic() + seconds
    failures: list[BaseException] = []

    def again(work: Callable[[], None]) -> None:
        try:
            while time.monotonic() < stop and not failures:
                work()
        except BaseException as exc:  # noqa: BLE001  # the main thread raises it
            failures.append(exc)

    threads = [threading.Thread(target=again, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
