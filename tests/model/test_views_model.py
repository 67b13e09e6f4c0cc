"""The views against dumb data: a list of dicts, one after each frame.

Frames, reorgs, partial flushes, pinned readers and crashes after any engine batch come in any order; after each step
every reader must show exactly the dict of its moment.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from holdfast.errors import ClosedError, StateError, ViewExpired
from holdfast.views import flush as flush_module
from holdfast.views import historical as historical_module
from holdfast.views import merge as merge_module
from holdfast.views import readers as readers_module
from holdfast.views.api import HistoryRecord, Rows
from holdfast.views.history import load_history
from holdfast.views.readers import PinnedReader
from holdfast.views.tables import UNDO
from holdfast.views.views import Views
from tests.unit.views_support import (
    CHAIN_KEYS,
    HIGH,
    LOG_KEYS,
    LOW,
    RecordingEngine,
    Since,
    State,
    ToyBlock,
    ToyChain,
    check_history,
    check_undo,
    layers_of,
    open_views,
    read_all,
    replay,
)

values = st.one_of(st.none(), st.binary(max_size=3))
chain_rows = st.dictionaries(st.sampled_from(CHAIN_KEYS), values, max_size=6)
log_rows = st.dictionaries(st.sampled_from(LOG_KEYS), values, max_size=4)
blocks = st.lists(st.tuples(chain_rows, log_rows), min_size=1, max_size=4)
windows = st.sampled_from([0, 0, 2, 5, 10_000])
rules = st.sampled_from([None, Since(), Since(), Since(4)])
any_key = st.sampled_from((*CHAIN_KEYS, *LOG_KEYS))


class ViewsMachine(RuleBasedStateMachine):
    @initialize(pinned=st.sampled_from([10**6, 10**6, 900]), window=windows, rule=rules)
    def open(self, pinned: int, window: int, rule: Since | None) -> None:
        self.pinned = pinned
        self.window = window
        self.rule = rule
        self.chain = ToyChain()
        self.engine = RecordingEngine()
        self.views = self._open()
        self.visible = 0
        self.pins: list[tuple[PinnedReader, State]] = []

    def _open(self) -> Views:
        return open_views(self.engine, self.rule, self.chain, pinned_bytes_max=self.pinned, undo_window=self.window)

    def _publish(self, *, durable: bool) -> None:
        if durable and self.chain.seq % 2:  # a group commit may be ahead of the writer
            self.views.set_visible(self.chain.seq)
        self.views.publish(layers_of(self.views, self.chain, self.chain.seq))
        if durable:
            self.views.set_visible(self.chain.seq)
            self.visible = self.chain.seq

    @rule(new=blocks, durable=st.booleans())
    def extend(self, new: list[tuple[Rows, Rows]], durable: bool) -> None:
        added: list[ToyBlock] = []
        parent = self.chain.now.chain[-1] if self.chain.now.chain else None
        for rows, log in new:
            parent = self.chain.block(parent, rows, log)
            added.append(parent)
        self.chain.append(0, added)
        self._publish(durable=durable)

    @rule(depth=st.integers(1, 6), new=blocks, durable=st.booleans())
    def reorg(self, depth: int, new: list[tuple[Rows, Rows]], durable: bool) -> None:
        now = self.chain.now
        depth = min(depth, len([block for block in now.chain if block.height > now.floor]))
        keep = now.chain[: len(now.chain) - depth]
        parent = keep[-1] if keep else None
        added: list[ToyBlock] = []
        for rows, log in new:
            parent = self.chain.block(parent, rows, log)
            added.append(parent)
        self.chain.append(depth, added)
        self._publish(durable=durable)

    @precondition(lambda self: self.chain.orphans)
    @rule(data=st.data(), durable=st.booleans())
    def reorg_to_an_orphan(self, data: st.DataObject, durable: bool) -> None:
        now = self.chain.now
        hashes = [bytes(32)] + [block.hash for block in now.chain]
        able = [
            orphan
            for orphan in self.chain.orphans
            if orphan.parent in hashes and hashes.index(orphan.parent) >= now.floor
        ]
        if able:
            orphan = data.draw(st.sampled_from(able), label="orphan")
            self.chain.append(len(now.chain) - hashes.index(orphan.parent), [orphan])
            self._publish(durable=durable)

    @rule(data=st.data())
    def set_visible(self, data: st.DataObject) -> None:
        self.visible = data.draw(st.integers(self.visible, self.chain.seq), label="visible")
        self.views.set_visible(self.visible)

    @rule(data=st.data())
    def flush(self, data: st.DataObject) -> None:
        to_seq = data.draw(st.one_of(st.none(), st.integers(0, self.visible)), label="to_seq")
        before = self.views.undo_floor
        useful = self.views.stats.applied_seq < self.visible
        self.engine.meanwhile = self._everything_holds
        self.views.flush(to_seq)
        self.engine.meanwhile = lambda: None
        if to_seq is None and self.visible:
            assert self.views.applied is not None
            assert self.views.applied.seq == self.visible
            if useful:
                assert self.views.undo_floor == max(before, self.chain.moments[self.visible].floor - self.window)
                assert (load_history(self.engine.get) is None) == (self.rule is None)
            assert self.views.applied.undo_floor == self.views.undo_floor
            low, high = UNDO.prefix, UNDO.prefix + (self.views.applied.undo_floor + 1).to_bytes(8, "big")
            assert self.engine.scan(low, high).rows == []

    def _everything_holds(self) -> None:
        """Whoever comes between two batches of a flush sees no difference."""
        self.pins_are_unchanged()
        self.readers_show_their_moment()
        self.blocks_can_be_undone()
        self.old_heights_can_be_read()

    @precondition(lambda self: self.rule is not None)
    @rule(floor=st.integers(0, 6), every=st.sampled_from([0, 0, 2]))
    def give_up_heights(self, floor: int, every: int) -> None:
        before = self.views.history
        assert before is not None
        after = self.views.set_history(HistoryRecord(floor, every, 0, floor))
        assert after == self.views.history
        assert (after.floor, after.oldest) == (max(before.floor, floor), before.oldest)
        if self.views.applied is not None:
            assert load_history(self.engine.get) == after

    @rule()
    def flush_beyond_what_is_durable(self) -> None:
        with pytest.raises(StateError):
            self.views.flush(self.visible + 1)

    @precondition(lambda self: len(self.pins) < 4)
    @rule()
    def pin(self) -> None:
        self.pins.append((self.views.pin(), self.chain.moments[self.visible].rows))

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        reader, _ = self.pins.pop(data.draw(st.integers(0, len(self.pins) - 1), label="pin"))
        reader.release()
        with pytest.raises(ClosedError):
            reader.get(LOW)

    @invariant()
    def pins_are_unchanged(self) -> None:
        if not hasattr(self, "views"):
            return
        keys = [*CHAIN_KEYS, *LOG_KEYS]
        for reader, rows in self.pins:
            try:
                assert read_all(reader, limit=3) == rows
                assert read_all(reader, limit=4, reverse=True) == rows
                assert read_all(reader, limit=1000) == rows
                assert reader.get_many(keys) == [rows.get(key) for key in keys]
                assert [reader.get(key) for key in keys] == [rows.get(key) for key in keys]
            except ViewExpired:
                assert self.pinned < 10**6

    @rule(start=any_key, stop=any_key, reverse=st.booleans(), limit=st.integers(1, 5))
    def one_page(self, start: bytes, stop: bytes, reverse: bool, limit: int) -> None:
        rows = self.chain.moments[self.visible].rows
        expected = sorted(((k, v) for k, v in rows.items() if start <= k < stop), reverse=reverse)
        page = self.views.reader().scan(start, stop, reverse=reverse, limit=limit)
        assert page.rows == expected[:limit]

    @rule(key=any_key, low=any_key)
    def floor(self, key: bytes, low: bytes) -> None:
        for reader, rows in (
            (self.views.reader(), self.chain.moments[self.visible].rows),
            (self.views.latest(), self.chain.now.rows),
        ):
            within = [found for found in rows if low <= found <= key]
            expected = (max(within), rows[max(within)]) if within else None
            assert reader.floor(key, low) == expected

    @precondition(lambda self: self.chain.seq > self.visible)
    @rule()
    def poison(self) -> None:
        self.views.drop_invisible()
        self.chain.cut(self.visible)

    @precondition(lambda self: self.engine.batches)
    @rule(data=st.data(), window=windows, rule=rules)
    def crash(self, data: st.DataObject, window: int, rule: Since | None) -> None:
        self.window, self.rule = window, rule
        self._reopen(data.draw(st.integers(0, len(self.engine.batches)), label="batches that survive"))

    @precondition(lambda self: self.views.stats.overlay_frames)
    @rule(data=st.data(), window=windows, rule=rules)
    def crash_in_a_flush(self, data: st.DataObject, window: int, rule: Since | None) -> None:
        before = len(self.engine.batches)
        self.views.flush(data.draw(st.one_of(st.none(), st.integers(0, self.visible)), label="to_seq"))
        self.window, self.rule = window, rule
        self._reopen(data.draw(st.integers(before, len(self.engine.batches)), label="batches that survive"))

    def _reopen(self, count: int) -> None:
        self.chain.cut(self.visible)
        self.engine = self.engine.after(count)
        self.views = self._open()
        self.pins = []
        replay(self.views, self.chain)

    @invariant()
    def readers_show_their_moment(self) -> None:
        if not hasattr(self, "views"):
            return
        visible = self.chain.moments[self.visible].rows
        latest = self.chain.now.rows
        assert read_all(self.views.reader(), limit=1000) == visible
        assert read_all(self.views.reader(), limit=2, reverse=True) == visible
        assert read_all(self.views.latest(), limit=4) == latest
        keys = [*CHAIN_KEYS, *LOG_KEYS]
        assert self.views.get_many(keys) == [visible.get(key) for key in keys]
        assert self.views.latest().get_many(keys) == [latest.get(key) for key in keys]
        assert [self.views.get(key) for key in keys] == [visible.get(key) for key in keys]
        assert [self.views.latest().get(key) for key in keys] == [latest.get(key) for key in keys]
        assert self.views.reader().scan(HIGH, LOW).rows == []

    @invariant()
    def old_heights_can_be_read(self) -> None:
        if hasattr(self, "views"):
            check_history(self.views, self.chain, self.visible)

    @invariant()
    def blocks_can_be_undone(self) -> None:
        if hasattr(self, "views"):
            check_undo(self.views, self.chain)

    @invariant()
    def counters_add_up(self) -> None:
        if hasattr(self, "views"):
            overlay = self.views._overlay
            assert overlay.rows == sum(published.rows for published in overlay.frames)
            assert overlay.size_bytes == sum(published.size_bytes for published in overlay.frames)
            assert bool(overlay.nodes) <= bool(overlay.frames)


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows fill a slice, a chunk and a sort."""
    monkeypatch.setattr(flush_module, "_SLICE_ROWS", 3)
    monkeypatch.setattr(merge_module, "_SORT_AT_ONCE", 2)
    monkeypatch.setattr(readers_module, "_CHUNK", 2)
    monkeypatch.setattr(historical_module, "_CHUNK", 3)


@pytest.mark.slow
def test_views_equal_the_model() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(ViewsMachine, settings=settings(max_examples=60, stateful_step_count=30, deadline=None))
