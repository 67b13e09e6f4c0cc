"""What happens between two steps of a reader: a whole flush, put there on purpose; then threads without mercy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from holdfast.errors import (
    ClosedError,
    CorruptionError,
    EngineError,
    HoldfastError,
    OutOfSpace,
    StateError,
    ViewExpired,
)
from holdfast.views import flush as flush_module
from holdfast.views import merge as merge_module
from holdfast.views import readers as readers_module
from holdfast.views.api import FrameLayers, Layer, RowReader, Rows, ViewOptions
from holdfast.views.bulk import PureBulk, bulk
from holdfast.views.overlay import Node
from holdfast.views.tables import BLOCKS, CANONICAL
from holdfast.views.views import Views
from tests.unit.views_support import (
    HIGH,
    LOW,
    RecordingEngine,
    ToyBlock,
    ToyChain,
    digest_of,
    open_views,
    publish,
    read_all,
    run_together,
)

A, B, C, D, E = (CANONICAL.prefix + name for name in (b"a", b"b", b"c", b"d", b"e"))


def once(action: Callable[[], None]) -> Callable[[], None]:
    """``action`` the first time, then nothing."""
    left = [action]

    def run() -> None:
        if left:
            left.pop()()

    return run


def grow(chain: ToyChain, *blocks: Rows) -> None:
    """One frame for each block."""
    for rows in blocks:
        chain.append(0, [chain.block(chain.now.chain[-1] if chain.now.chain else None, rows, {})])


@pytest.fixture
def chain() -> ToyChain:
    """Two flushed-to-be frames, and a third one that changes, deletes and adds."""
    chain = ToyChain()
    grow(chain, {A: b"1", B: b"1", C: b"1"}, {B: b"2"}, {A: None, B: b"3", D: b"3"})
    return chain


@pytest.fixture
def engine() -> RecordingEngine:
    return RecordingEngine()


@pytest.fixture
def views(chain: ToyChain, engine: RecordingEngine) -> Views:
    """Frames 1 and 2 are in the engine, 3 is in the overlay and visible."""
    views = open_views(engine)
    publish(views, chain, 1, 3)
    views.set_visible(2)
    views.flush()
    return views


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["visible", "latest", "pinned"])
def test_a_flush_between_engine_and_overlay_loses_no_row(
    views: Views, chain: ToyChain, engine: RecordingEngine, kind: str, reverse: bool
) -> None:
    views.set_visible(3)
    readers: dict[str, RowReader] = {"visible": views.reader(), "latest": views.latest(), "pinned": views.pin()}
    engine.on_scan = once(views.flush)
    assert read_all(readers[kind], reverse=reverse, limit=100) == chain.now.rows
    assert views.stats.overlay_frames == 0


@pytest.mark.parametrize("hook", ["on_get", "on_get_many", "on_scan"])
def test_an_older_pin_is_right_when_a_flush_comes_before_or_after_its_engine_read(
    views: Views, chain: ToyChain, engine: RecordingEngine, hook: str
) -> None:
    keys = [A, B, C, D, E]
    before = chain.moments[2].rows
    expected = [before.get(key) for key in keys]
    with views.pin() as pin:
        views.set_visible(3)
        setattr(engine, hook, once(views.flush))
        if hook == "on_get":
            assert pin.get(A) == before[A]
        elif hook == "on_get_many":
            assert pin.get_many(keys) == expected
        assert read_all(pin) == before
        assert views.stats.overlay_frames == 0
        assert pin.get_many(keys) == expected
        assert [pin.get(key) for key in keys] == expected


def test_undo_is_right_when_a_whole_flush_comes_in_between(
    views: Views, chain: ToyChain, engine: RecordingEngine
) -> None:
    block = chain.now.chain[-1]
    views.set_visible(3)
    engine.on_get = once(views.flush)  # after the look for the stored undo
    assert views.undo_of(block.height, block.hash) == chain.undo[block.hash]


def test_undo_is_right_when_a_flush_replaces_rows_while_it_is_computed(
    views: Views, chain: ToyChain, engine: RecordingEngine
) -> None:
    block = chain.now.chain[-1]
    views.set_visible(3)
    original = views._overlay.block_layer

    def found_then_flushed(key: tuple[int, bytes]) -> tuple[int, Layer] | None:
        record = original(key)
        once_flush()
        return record

    once_flush = once(views.flush)
    views._overlay.block_layer = found_then_flushed  # type: ignore[assignment, method-assign]
    assert views.undo_of(block.height, block.hash) == chain.undo[block.hash]


def test_missing_undo_is_corruption(views: Views) -> None:
    with pytest.raises(CorruptionError, match="undo"):
        views.undo_of(7, b"\x07" * 32)


def test_rows_read_together_are_of_one_version(views: Views, chain: ToyChain, engine: RecordingEngine) -> None:
    def more() -> None:
        views.set_visible(3)
        views.flush()

    engine.on_get_many = once(more)
    assert views.get_many([A, B, D]) == [b"1", b"2", None]
    assert views.get_many([A, B, D]) == [None, b"3", b"3"]


def test_a_pin_expires_when_it_holds_too_much_and_only_then(chain: ToyChain) -> None:
    engine = RecordingEngine()
    views = open_views(engine, pinned_bytes_max=450)
    publish(views, chain, 1, 3)
    views.set_visible(1)
    pin = views.pin()
    views.set_visible(2)
    views.flush()  # B alone changes after the pin: within the bound
    assert list(pin._frozen) == [B]
    assert read_all(pin) == chain.moments[1].rows
    views.set_visible(3)
    views.flush()  # two more
    for call in (lambda: pin.get(C), lambda: pin.get_many([C]), lambda: pin.scan(LOW, HIGH), lambda: pin.floor(C, A)):
        with pytest.raises(ViewExpired):
            call()
    assert read_all(views.reader()) == chain.now.rows
    pin.release()
    pin.release()
    assert views.stats.pins == 0
    with pytest.raises(ClosedError):
        pin.get(C)


def test_a_pin_that_expires_inside_a_call_says_so(chain: ToyChain) -> None:
    for hook in ("on_get", "on_get_many", "on_scan"):
        engine = RecordingEngine()
        views = open_views(engine, pinned_bytes_max=1)
        publish(views, chain, 1, 3)
        views.set_visible(2)
        views.flush()
        with views.pin() as pin:
            views.set_visible(3)
            setattr(engine, hook, once(views.flush))
            with pytest.raises(ViewExpired):
                _ = {"on_get": lambda: pin.get(A), "on_get_many": lambda: pin.get_many([A])}.get(
                    hook, lambda: pin.scan(LOW, HIGH)
                )()


def test_a_visible_scan_survives_the_expiry_of_its_own_pin(chain: ToyChain) -> None:
    engine = RecordingEngine()
    views = open_views(engine, pinned_bytes_max=1)
    publish(views, chain, 1, 3)
    views.set_visible(2)
    views.flush()

    def more() -> None:
        views.set_visible(3)
        views.flush()

    engine.on_scan = once(more)
    assert read_all(views.reader(), limit=100) == chain.now.rows


def test_pages_are_full_although_many_rows_are_deleted_in_the_overlay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers_module, "_CHUNK", 4)
    names = [CANONICAL.prefix + b"%03d" % number for number in range(60)]
    engine = RecordingEngine()
    views = open_views(engine)
    chain = ToyChain()
    grow(chain, dict.fromkeys(names, b"x"), dict.fromkeys(names[5:50]), {names[20]: b"y"})
    publish(views, chain, 1, 3)
    views.set_visible(1)
    views.flush()
    pin = views.pin()
    views.set_visible(3)
    for flushed in (False, True):
        for limit in (1, 2, 7, 100):
            for reverse in (False, True):
                assert read_all(views.reader(), reverse=reverse, limit=limit) == chain.now.rows
                assert read_all(pin, reverse=reverse, limit=limit) == chain.moments[1].rows
        if not flushed:
            views.flush()


def test_frozen_and_overlay_rows_interleave_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen rows cut the page shorter than the overlay's rows do."""
    monkeypatch.setattr(readers_module, "_CHUNK", 3)
    names = [CANONICAL.prefix + b"%03d" % number for number in range(30)]
    engine = RecordingEngine()
    views = open_views(engine)
    chain = ToyChain()
    grow(chain, dict.fromkeys(names[::2], b"1"), dict.fromkeys(names[::2], b"2"), {names[1]: b"3", names[29]: b"3"})
    publish(views, chain, 1, 3)
    views.set_visible(3)
    pin = views.pin()
    for seq in (1, 2, 3):
        views.flush(seq)
        assert read_all(pin, limit=2) == chain.now.rows
    old = ToyChain()
    grow(old, {names[1]: b"1"}, dict.fromkeys(names[::2], b"2"), {names[3]: b"3", names[5]: b"3", names[7]: b"3"})
    views = open_views(RecordingEngine())
    publish(views, old, 1, 2)
    views.set_visible(1)
    views.flush()
    pin = views.pin()
    publish(views, old, 3, 3)
    views.set_visible(2)
    views.flush()
    assert read_all(pin, limit=2) == read_all(pin, limit=2, reverse=True) == old.moments[1].rows


def test_an_older_pin_is_right_while_the_overlay_drops_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some rows are only frozen by then, others still in the overlay, and a page covers as much as both."""
    monkeypatch.setattr(readers_module, "_CHUNK", 8)
    monkeypatch.setattr(flush_module, "_SLICE_ROWS", 4)
    names = [CANONICAL.prefix + b"%03d" % number for number in range(25)]
    chain = ToyChain()
    grow(chain, dict.fromkeys(names[:10], b"0"), dict.fromkeys(names[20:], b"1"), dict.fromkeys(names[:10]))
    views = open_views(RecordingEngine())
    publish(views, chain, 1, 3)
    views.set_visible(1)
    views.flush()
    views.set_visible(2)
    pin = views.pin()
    views.set_visible(3)
    looks = []

    def look() -> None:
        for reverse in (False, True):
            assert read_all(pin, limit=8, reverse=reverse) == chain.moments[2].rows
            assert read_all(views.reader(), limit=8, reverse=reverse) == chain.moments[3].rows
        looks.append(len(views._overlay.nodes))

    monkeypatch.setattr(views._flusher, "_pause", look)
    views._flusher.flush(background=True)
    assert {15, 11, 7, 3, 0} <= set(looks)


def test_a_key_that_every_frame_writes_is_cut_once_by_a_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the time of a flush grows with the frames in it times the frames that came since."""
    hot = CANONICAL.prefix + b"hot"
    chain = ToyChain()
    for number in range(12):
        grow(chain, {hot: b"%d" % number, CANONICAL.prefix + b"%d" % number: b""})
    views = open_views(RecordingEngine())
    publish(views, chain, 1, 12)
    views.set_visible(8)
    keys = []
    cut = views._overlay._cut

    def counted(key: bytes, newest: Node, to_version: int) -> None:
        keys.append(key)
        cut(key, newest, to_version)

    monkeypatch.setattr(views._overlay, "_cut", counted)
    views.flush()
    assert keys == [hot]
    assert read_all(views.reader()) == chain.moments[8].rows
    views.set_visible(12)
    views.flush()
    assert keys == [hot]
    assert not views._overlay.nodes
    assert read_all(views.reader()) == chain.moments[12].rows


# -- failures -----------------------------------------------------------------------------------------------------


class FailingEngine(RecordingEngine):
    """Every batch fails with ``error`` once it is set."""

    error: BaseException | None = None

    def apply(self, batch, *, sync):  # type: ignore[no-untyped-def]  # as in RecordingEngine
        if self.error is not None:
            raise self.error
        super().apply(batch, sync=sync)


@pytest.mark.parametrize(
    ("error", "expected"),
    [(OutOfSpace("full"), OutOfSpace), (OSError("bad"), EngineError), (KeyboardInterrupt(), EngineError)],
)
def test_a_failed_flush_is_the_last_one_and_readers_go_on(
    chain: ToyChain, error: BaseException, expected: type[HoldfastError]
) -> None:
    engine = FailingEngine()
    views = open_views(engine, overlay_rows_max=1)
    publish(views, chain, 1, 3)
    views.set_visible(3)
    engine.error = error
    with pytest.raises((expected, KeyboardInterrupt)):
        views.flush()
    engine.error = None
    for call in (views.flush, views.back_pressure, views.close):
        with pytest.raises(expected):
            call()
    assert engine.batches == []
    assert read_all(views.reader()) == chain.now.rows
    assert views.stats.failure is not None
    views.close(flush=False)


def test_back_pressure_raises_the_error_of_the_background_flush(chain: ToyChain) -> None:
    engine = FailingEngine()
    engine.error = OutOfSpace("full")
    views = open_views(engine, overlay_rows_max=1)
    views.start()
    publish(views, chain, 1, 3)
    views.set_visible(3)
    with pytest.raises(OutOfSpace):
        views.back_pressure()
    views.close(flush=False)


def test_a_bad_row_in_the_engine_is_corruption_for_every_reader(views: Views, engine: RecordingEngine) -> None:
    stored = bytearray(engine._rows.values[C])
    stored[-1] ^= 1
    engine._rows.values[C] = bytes(stored)
    pin = views.pin()
    for call in (
        lambda: views.get(C),
        lambda: views.get_many([A, C]),
        lambda: views.latest().get(C),
        lambda: views.latest().get_many([C]),
        lambda: views.reader().scan(LOW, HIGH),
        lambda: views.reader().floor(C, LOW),
        lambda: pin.get(C),
    ):
        with pytest.raises(CorruptionError) as caught:
            call()
        assert (caught.value.context["table"], caught.value.context["key"]) == ("canonical", C)


def test_a_bad_old_row_stops_the_flush_that_needs_it_for_undo(views: Views, engine: RecordingEngine) -> None:
    engine._rows.values[B] = b"\x00" + engine._rows.values[B]
    views.set_visible(3)
    with pytest.raises(CorruptionError):
        views.flush()
    assert views.get(B) == b"3"


def test_rows_without_a_record_are_corruption() -> None:
    engine = RecordingEngine()
    views = open_views(engine)
    views.publish(FrameLayers(1, [Layer({BLOCKS.prefix + b"a": b"1"})], bytes, 0))
    views.set_visible(1)
    views.flush()
    lost = RecordingEngine(engine.batches[1:2])
    with pytest.raises(CorruptionError):
        open_views(lost)


# -- the state of the handle --------------------------------------------------------------------------------------


def test_an_interrupted_flush_must_be_finished_first(views: Views, chain: ToyChain, engine: RecordingEngine) -> None:
    before = len(engine.batches)
    views.set_visible(3)
    grow(chain, {E: b"4"})
    views.flush()
    crashed = open_views(engine.after(before + 3))
    assert crashed.applied is not None
    assert (crashed.applied.seq, crashed.applied.flushing) == (2, 3)
    for refused in (crashed.pin, lambda: crashed.get_many([A]), lambda: crashed.reader().scan(LOW, HIGH)):
        with pytest.raises(StateError):
            refused()
    with pytest.raises(StateError):
        crashed.flush()
    crashed.back_pressure()
    publish(crashed, chain, 3, 4)
    crashed.set_visible(4)
    with pytest.raises(StateError):
        crashed.flush(2)
    crashed.flush()  # exactly the interrupted range
    assert crashed.applied is not None
    assert (crashed.applied.seq, crashed.applied.flushing) == (3, None)
    assert read_all(crashed.reader()) == chain.now.rows


def test_durable_before_published_is_visible_at_once(chain: ToyChain) -> None:
    views = open_views(RecordingEngine())
    views.set_visible(2)
    publish(views, chain, 1, 3)
    assert read_all(views.reader()) == chain.moments[2].rows
    assert read_all(views.latest()) == chain.moments[3].rows
    views.set_visible(1)
    assert read_all(views.reader()) == chain.moments[2].rows


def test_frames_are_made_durable_before_a_flush_writes(chain: ToyChain) -> None:
    engine = RecordingEngine()
    asked: list[tuple[int, int]] = []
    views = Views.open(
        engine,
        frame_digest=lambda _: bytes(32),
        make_durable=lambda seq: asked.append((seq, len(engine.batches))),
    )
    publish(views, chain, 1, 3)
    views.set_visible(3)
    views.flush(2)
    assert asked == [(2, 0)]


def test_a_released_pin_is_closed(views: Views) -> None:
    with views.pin() as pin:
        assert pin.seq == 2
    with pytest.raises(ClosedError):
        pin.get(A)


def test_keys_are_sorted_in_small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge_module, "_SORT_AT_ONCE", 2)
    keys = [bytes([a % 3, 7, 7, b % 5]) + b"\x00" * (b % 3) for a in range(9) for b in range(40)]
    keys += [b"", b"\x00", b"\x00\x07", b"\x01\x07\x07"]
    unique = list(dict.fromkeys(keys))
    for each in (bulk(), PureBulk()):
        merge = each.merge()
        merge.add(dict.fromkeys(unique), undo=False)
        merge.sort()
        assert merge.keys() == sorted(unique)


# -- threads ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_readers_and_pins_among_background_flushes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every frame writes its number into each of many keys: whoever sees two numbers at once saw no single version."""
    monkeypatch.setattr(flush_module, "_SLICE_ROWS", 7)
    names = [CANONICAL.prefix + b"%03d" % number for number in range(40)]
    views = open_views(RecordingEngine(), overlay_rows_max=400, flush_interval_seconds=0.01)
    counts = [0, 0, 0]
    seen = [0]

    def write() -> None:
        views.back_pressure()
        counts[0] += 1
        seq = counts[0]
        # odd and even names are written and deleted in turn, so that pages have holes
        rows: Rows = {name: b"%d" % seq if (at + seq) % 2 else None for at, name in enumerate(names)}
        views.publish(FrameLayers(seq, [Layer({}, rows, (seq, seq.to_bytes(32, "big")))], bytes, max(0, seq - 5)))
        expected: Rows = {
            name: b"%d" % (seq - 1) if seq > 1 and (at + seq - 1) % 2 else None for at, name in enumerate(names)
        }
        assert views.undo_of(seq, seq.to_bytes(32, "big")) == expected
        rest = views.latest().scan(LOW, HIGH).rows
        assert len(rest) == 20
        assert {value for _, value in rest} == {b"%d" % seq}
        if seq % 3 == 0:
            views.set_visible(seq)
            seen[0] = seq

    def read() -> None:
        if not seen[0]:
            return
        least = seen[0]
        rows = views.reader().scan(LOW, HIGH, reverse=bool(counts[1] % 2)).rows
        assert len(rows) == 20
        assert len({value for _, value in rows}) == 1
        assert int(rows[0][1]) >= least
        together = [value for value in views.get_many(names) if value is not None]
        assert len(together) == 20
        assert len(set(together)) == 1
        counts[1] += 1

    def pin() -> None:
        if not seen[0]:
            return
        with views.pin() as reader:
            first = reader.scan(LOW, HIGH, limit=9)
            number = first.rows[0][1]
            for _ in range(5):
                time.sleep(0.002)
                assert dict(read_all(reader, limit=3, reverse=True)) == dict(read_all(reader, limit=50))
                assert {value for value in reader.get_many(names) if value is not None} == {number}
                assert {reader.get(name) for name in names} == {number, None}
        counts[2] += 1

    views.start()
    run_together(2.0, (write, read, read, pin, pin))
    views.close(flush=False)
    assert views.stats.flushes > 5
    assert min(counts) > 10


def test_back_pressure_waits_for_the_background_flush(chain: ToyChain) -> None:
    views = open_views(RecordingEngine(), overlay_rows_max=2, flush_interval_seconds=60.0)
    publish(views, chain, 1, 3)
    views.back_pressure()  # nothing is durable: no flush can help, so nobody waits
    views.set_visible(3)
    views.start()
    views.back_pressure()
    assert views.stats.overlay_rows == 0
    views.close()


def test_without_a_thread_back_pressure_flushes_by_itself(chain: ToyChain) -> None:
    views = open_views(RecordingEngine(), overlay_rows_max=2)
    publish(views, chain, 1, 3)
    views.set_visible(3)
    views.back_pressure()
    assert views.stats.overlay_rows == 0


def test_a_flush_that_finds_no_room_is_no_failure(chain: ToyChain, engine: RecordingEngine) -> None:
    grow(chain, {A: b"4", B: b"4"}, {C: b"5"}, {C: b"6"})
    tried = threading.Event()
    sizes: list[int] = []
    full = True

    def room(size: int) -> None:
        sizes.append(size)
        tried.set()
        if full:
            raise OutOfSpace("full")

    views = Views.open(
        engine,
        options=ViewOptions(overlay_rows_max=2, flush_interval_seconds=3600.0),
        frame_digest=digest_of,
        room=room,
    )
    publish(views, chain, 1, 3)
    views.set_visible(3)
    views.start()
    assert tried.wait(60), "the thread did not flush"
    for ask in (views.back_pressure, views.flush, views.back_pressure):
        with pytest.raises(OutOfSpace):
            ask()
    assert not engine.batches
    assert set(sizes) == {views.waiting_bytes}
    assert read_all(views.reader()) == chain.moments[3].rows
    full = False
    tried.clear()
    publish(views, chain, 4, 4)
    assert tried.wait(60), "the thread is gone"
    publish(views, chain, 5, 5)
    views.set_visible(5)
    views.flush()
    assert (views.waiting_bytes, views.stats.failure) == (0, None)
    full = True
    publish(views, chain, 6, 6)
    views.set_visible(6)
    views.close()
    again = open_views(engine)
    assert again.applied is not None
    assert again.applied.seq == 5
    assert read_all(again.reader()) == chain.moments[5].rows


def test_close_flushes_what_is_durable(chain: ToyChain, engine: RecordingEngine) -> None:
    views = open_views(engine, flush_interval_seconds=60.0)
    views.start()
    publish(views, chain, 1, 3)
    views.set_visible(2)
    views.close()
    again = open_views(engine)
    assert again.applied is not None
    assert again.applied.seq == 2
    assert read_all(again.reader()) == chain.moments[2].rows


def test_time_alone_starts_a_flush(chain: ToyChain) -> None:
    views = open_views(RecordingEngine(), flush_interval_seconds=0.01)
    views.start()
    publish(views, chain, 1, 3)
    views.set_visible(3)
    until = time.monotonic() + 5.0
    while views.stats.overlay_frames and time.monotonic() < until:
        time.sleep(0.002)
    assert views.stats.overlay_frames == 0
    views.close()


def test_blocks_of_support_are_linked(chain: ToyChain) -> None:
    blocks: list[ToyBlock] = chain.now.chain
    assert [block.parent for block in blocks[1:]] == [block.hash for block in blocks[:-1]]
