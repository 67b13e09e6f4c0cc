"""A reader of an old height stops between any two of its looks while flushes, reorgs and commits go on.

Its looks are played one after the other in one thread: what the overlay, the engine's row and the history were at
three moments, each as late as the one before or later. Whatever the moments, the answer is the value that the key had.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from holdfast.engine.api import Batch
from holdfast.errors import PrunedError, StateError
from holdfast.views import flush as flush_module
from holdfast.views.api import HistoryRecord, Rows
from holdfast.views.collect import HistoryChanges
from holdfast.views.flush import Flusher
from holdfast.views.historical import HistoricalReader
from holdfast.views.history import HISTORY_KEY, decode_old, encode_old, history_bounds, history_key, load_history
from holdfast.views.overlay import MISSING, Missing, Overlay
from holdfast.views.rows import decode_row, encode_row
from holdfast.views.tables import HISTORY, STATE
from holdfast.views.views import Views
from tests.unit.views_support import (
    RecordingEngine,
    Since,
    ToyBlock,
    ToyChain,
    check_history,
    open_views,
    publish,
    replay,
)

KEYS = tuple(STATE.prefix + name for name in (b"a", b"b", b"k" * 17))


def random_chain(seed: int) -> ToyChain:
    """Frames that write three keys over and over, and reorgs of up to four blocks."""
    rng = random.Random(seed)
    chain = ToyChain()
    for number in range(9):
        now = chain.now.chain
        removed = rng.randint(1, 4) if rng.random() < 0.45 else 0
        removed = min(removed, len([block for block in now if block.height > chain.now.floor]))
        parent: ToyBlock | None = now[len(now) - removed - 1] if len(now) > removed else None
        added = []
        for part in range(max(1, removed + rng.randint(-1, 1))):
            rows: Rows = {
                key: None if rng.random() < 0.3 else b"%d.%d" % (number, part) for key in KEYS if rng.random() < 0.45
            }
            parent = chain.block(parent, rows, {})
            added.append(parent)
        chain.append(removed, added)
    return chain


class WrongValue(BaseException):
    """A reader was given what the key never was; the flush that it came in between may not wrap it."""


@dataclass
class Moment:
    """Everything that a reader could look at, as it was."""

    visible: int
    removals: int
    rows: dict[bytes, bytes]
    overlay: Overlay


class Looks:
    """Stands for the engine, the overlay and the flusher of a reader that looks at three moments.

    When it begins again, because ``removals`` has changed, it sees the last moment only.
    """

    def __init__(self, views: Views, overlay: Moment, flat: Moment, history: Moment) -> None:
        self.moments = (overlay, flat, history)
        self.history = views._flusher.history
        self._asked = 0

    @property
    def removals(self) -> int:
        self._asked += 1
        if self._asked > 2:
            self.moments = (self.moments[2],) * 3
        return self.moments[0 if self._asked == 1 else 2].removals

    def version_at(self, height: int) -> int:
        return self.moments[0].overlay.version_at(height)

    def get(self, key: bytes, version: int | None = None) -> bytes | Missing | None:
        if version is not None:
            return self.moments[0].overlay.get(key, version)
        return self.moments[1].rows.get(key)

    def ceiling(self, key: bytes, high: bytes) -> tuple[bytes, bytes] | None:
        return min((item for item in self.moments[2].rows.items() if key <= item[0] < high), default=None)


class Watch:
    """Remembers moments of views that work, and compares every reader between them with the chain."""

    def __init__(self, views: Views, engine: RecordingEngine, chain: ToyChain, rng: random.Random) -> None:
        self.views, self.engine, self.chain, self.rng = views, engine, chain, rng
        self.moments: list[Moment] = []
        self.reads = 0

    def look(self) -> None:
        """A moment; readers that began before end here."""
        overlay = Overlay(1, 1)
        overlay.nodes = dict(self.views._overlay.nodes)
        overlay.blocks = dict(self.views._overlay.blocks)
        overlay.visible_version = self.views._overlay.visible_version
        rows = {
            key: row for key, row in self.engine._rows.values.items() if key.startswith((STATE.prefix, HISTORY.prefix))
        }
        now = Moment(self.views._overlay.visible_seq, self.views._flusher.removals, rows, overlay)
        self.moments.append(now)
        self._read(now, now)
        recent = self.moments[-12:]
        for begun in self.rng.sample(recent, min(5, len(recent))):
            self._read(begun, self.rng.choice(self.moments[self.moments.index(begun) :]))
        for begun in recent[-4:]:
            self._read(begun, begun)

    def _read(self, begun: Moment, between: Moment) -> None:
        last = self.moments[-1]
        seqs = range(begun.visible, last.visible + 1)
        top = min(len(self.chain.moments[seq].chain) for seq in seqs)
        for height in range(top + 1):
            for key in KEYS:
                looks = Looks(self.views, begun, between, last)
                reader = HistoricalReader(looks, looks, self.views._pins, looks)  # type: ignore[arg-type]
                value = reader.read_at(key, height)
                if value not in {self.chain.at(seq, height).get(key) for seq in seqs}:
                    raise WrongValue(key, height, seqs, value)
                self.reads += 1


def hunt(seed: int) -> int:
    """One chain, published and flushed in random portions; the number of reads that were compared."""
    rng = random.Random(seed)
    chain = random_chain(seed)
    engine = RecordingEngine()
    views = open_views(engine, Since(), chain, undo_window=rng.choice([0, 3]))
    watch = Watch(views, engine, chain, rng)
    watch.look()
    engine.meanwhile = watch.look
    for seq in range(1, chain.seq + 1):
        publish(views, chain, seq, seq)
        views.set_visible(seq)
        watch.look()
        if rng.random() < 0.5 or seq == chain.seq:
            views.flush(rng.randint(views.stats.applied_seq + 1, seq))
            watch.look()
    check_history(views, chain, chain.seq)
    return watch.reads


def hunt_all(seeds: int) -> int:
    """Many chains."""
    return sum(hunt(seed) for seed in range(seeds))


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row is a batch of its own, so that a flush stops between any two."""
    monkeypatch.setattr(flush_module, "_SLICE_ROWS", 1)


def test_a_reader_may_stop_anywhere() -> None:
    assert hunt(1) > 1000


@pytest.mark.slow
def test_a_reader_may_stop_anywhere_at_length() -> None:
    assert hunt_all(30) > 100_000


# -- planted bugs: the hunt finds each of them ---------------------------------------------------------------------


def history_first(self: HistoricalReader, key: bytes, height: int) -> bytes | None:
    """``read_at`` that looks for the history before it reads the row."""
    looks = self._overlay
    version = looks.version_at(height)
    if version:
        value = looks.get(key, version)
        if value is not MISSING:
            return value
    _first, flat, history = looks.moments  # type: ignore[attr-defined]
    low, high = history_bounds(key[2:], height)
    rows = sorted(item for item in flat.rows.items() if low <= item[0] < high)
    if rows:
        return decode_old(rows[0][0], decode_row(*rows[0]))
    stored = history.rows.get(key)
    return None if stored is None else decode_row(key, stored)


def never_again(self: Looks) -> int:
    """Removals that nobody counts."""
    return 0


def from_the_last(self: Flusher, changes: HistoryChanges, pace: Callable[[], None]) -> None:
    """Rows are added from the last to the first."""
    write_rows(self, changes.added(), reverse=True)


def in_key_order(self: Flusher, keys: list[bytes], pace: Callable[[], None]) -> None:
    """Removals from the first to the last."""
    self.removals += bool(keys)
    write_rows(self, dict.fromkeys(keys))


def rows_first(self: Flusher, changes: HistoryChanges, pace: Callable[[], None]) -> None:
    """History rows are kept back until the rows are replaced."""
    late.append(changes.added())


late: list[Rows] = []


def late_rows(self: Flusher, keys: list[bytes], pace: Callable[[], None]) -> None:
    for rows in late:
        write_rows(self, rows)
    late.clear()
    original_removal(self, keys, pace)


def write_rows(flusher: Flusher, rows: Rows, *, reverse: bool = False) -> None:
    """Each row in a batch of its own."""
    for key in sorted(rows, reverse=reverse):
        value = rows[key]
        flusher._engine.apply(Batch({key: None if value is None else encode_row(key, value)}), sync=False)


original_removal = Flusher._remove_history


def forgets(self: HistoryChanges, height: int, undo: Rows) -> None:
    """Blocks that leave keep their history."""


def first_wins(self: HistoryChanges, height: int, undo: Rows) -> None:
    """Of several blocks at a height, the first one counts."""
    for key, value in undo.items():
        if key.startswith(STATE.prefix):
            self.rows.setdefault(history_key(key[2:], height), encode_old(value))


PLANTED: dict[str, list[tuple[object, str, object]]] = {
    "history before the row": [(HistoricalReader, "read_at", history_first)],
    "removals are not noticed": [(Looks, "removals", property(never_again))],
    "added from high to low": [(Flusher, "_write_history", from_the_last)],
    "removed from low to high": [(Flusher, "_remove_history", in_key_order)],
    "rows before history": [(Flusher, "_write_history", rows_first), (Flusher, "_remove_history", late_rows)],
    "nothing is removed": [(HistoryChanges, "remove", forgets)],
    "the first block counts": [(HistoryChanges, "add", first_wins)],
    "the overlay is not asked": [(Overlay, "version_at", lambda *_: 0)],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_the_hunt_finds_planted_bugs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, attribute, bug in PLANTED[name]:
        monkeypatch.setattr(place, attribute, bug)
    late.clear()
    with pytest.raises(WrongValue):
        hunt_all(40)


# -- the record ----------------------------------------------------------------------------------------------------


@pytest.fixture
def chain() -> ToyChain:
    return random_chain(3)


def flushed(engine: RecordingEngine, chain: ToyChain, last: int, rule: Since | None) -> Views:
    """The views after the frames up to ``last``, all in the engine."""
    views = open_views(engine, rule, chain)
    publish(views, chain, views.stats.applied_seq + 1, last)
    views.set_visible(last)
    views.flush()
    return views


def test_switched_on_late_it_begins_at_the_tip(chain: ToyChain) -> None:
    engine = RecordingEngine()
    flushed(engine, chain, 4, None)
    assert load_history(engine.get) is None
    tip = len(chain.moments[4].chain)
    views = open_views(engine, Since(), chain)
    assert views.history == HistoryRecord(tip, 0, tip, tip)
    assert load_history(engine.get) is None  # opening writes nothing
    views = flushed(engine, chain, chain.seq, Since())
    assert load_history(engine.get) == views.history == HistoryRecord(tip, 0, tip, tip)
    check_history(views, chain, chain.seq)
    with pytest.raises(PrunedError) as caught:
        views.read_at(KEYS[0], tip - 1)
    assert caught.value.context["least_readable"] == tip


def test_switched_off_it_goes_with_the_next_flush(chain: ToyChain) -> None:
    engine = RecordingEngine()
    flushed(engine, chain, 4, Since())
    assert engine.scan(HISTORY.prefix, HISTORY.end).rows
    views = open_views(engine, None, chain)
    assert views.history == HistoryRecord(0)
    check_history(views, chain, 4)
    publish(views, chain, 5, 5)
    views.set_visible(5)
    engine.meanwhile = lambda: check_history(views, chain, 5)
    views.flush()
    engine.meanwhile = lambda: None
    assert views.history is None
    assert engine.get(HISTORY_KEY) is None
    assert engine.scan(HISTORY.prefix, HISTORY.end).rows == []
    with pytest.raises(StateError):
        views.read_at(KEYS[0], 1)


def test_a_change_that_is_not_recorded_raises_the_floor(chain: ToyChain) -> None:
    engine = RecordingEngine()
    views = flushed(engine, chain, chain.seq, Since(3))
    assert views.history == load_history(engine.get) == HistoryRecord(2, 0, 2, 0)
    check_history(views, chain, chain.seq)


def test_without_a_flush_only_the_memory_knows(chain: ToyChain) -> None:
    engine = RecordingEngine()
    views = open_views(engine, Since(), chain)
    views.set_history(HistoryRecord(1))
    assert engine.batches == []
    assert views.history == HistoryRecord(1)
    views = flushed(engine, chain, 3, Since())
    assert views.history == HistoryRecord(0)
    assert views.set_history(HistoryRecord(2, 2, 1, 1)) == load_history(engine.get) == HistoryRecord(2, 2, 1, 1)
    assert engine.synced[-1]
    assert views.set_history(HistoryRecord(1, 2)) == load_history(engine.get) == HistoryRecord(2, 2, 1, 1)
    # another step: what is cleaned may have to be cleaned again
    assert views.set_history(HistoryRecord(1, 3)) == load_history(engine.get) == HistoryRecord(2, 3, 1, 0)


def test_old_heights_wait_for_an_interrupted_flush(chain: ToyChain) -> None:
    engine = RecordingEngine()
    views = open_views(engine, Since(), chain)
    publish(views, chain, 1, 5)
    views.set_visible(5)
    views.flush()
    begun = next(at for at, batch in enumerate(engine.batches) if HISTORY_KEY in batch.rows)
    crashed = open_views(engine.after(begun + 3), Since(), chain)
    for refused in (lambda: crashed.read_at(KEYS[0], 1), lambda: crashed.history_keys(b"", None, 1, 5)):
        with pytest.raises(StateError):
            refused()
    replay(crashed, chain)
    check_history(crashed, chain, chain.seq)


def test_a_follower_reads_through_a_snapshot(chain: ToyChain) -> None:
    """The writing process flushes on; the follower has the frames of the snapshot in its overlay, and more."""
    engine = RecordingEngine()
    writer = open_views(engine, Since(), chain)

    def compare() -> None:
        with engine.snapshot() as snapshot:
            for seq in range(follower.stats.visible_seq + 1, writer.stats.visible_seq + 1):
                publish(follower, chain, seq, seq)
                follower.set_visible(seq)
            follower.caught_up()
            seq = follower.stats.visible_seq
            for height in range(len(chain.moments[seq].chain) + 1):
                for key in KEYS:
                    assert follower.read_at(key, height, snapshot) == chain.at(seq, height).get(key)
                page = follower.history_keys(b"", None, height, 50, snapshot)
                then, now = chain.at(seq, height), chain.moments[seq].state
                assert {key[2:] for key in KEYS if then.get(key) != now.get(key)} <= set(page.keys)

    follower = open_views(engine, None, chain)
    compare()
    for seq in range(1, chain.seq + 1):
        publish(writer, chain, seq, seq)
        writer.set_visible(seq)
        if seq % 2 == 0:
            engine.meanwhile = compare
            writer.flush()
            engine.meanwhile = lambda: None
        if seq == 5:
            follower = open_views(engine, None, chain)
        compare()
