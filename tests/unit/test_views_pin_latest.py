"""A reader of everything published: what drafts read from."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from holdfast.errors import ClosedError, ViewExpired
from holdfast.views.api import Rows
from holdfast.views.readers import PinnedReader
from holdfast.views.tables import CANONICAL
from holdfast.views.views import Views
from tests.unit.views_support import HIGH, LOW, RecordingEngine, ToyChain, open_views, publish, read_all

A, B, C, D = (CANONICAL.prefix + name for name in (b"a", b"b", b"c", b"d"))


@pytest.fixture
def chain() -> ToyChain:
    chain = ToyChain()
    blocks: list[Rows] = [{A: b"1", B: b"1"}, {B: b"2", C: b"2"}, {A: None, B: b"3"}, {A: b"4", D: b"4"}]
    for rows in blocks:
        chain.append(0, [chain.block(chain.now.chain[-1] if chain.now.chain else None, rows, {})])
    return chain


@pytest.fixture
def engine() -> RecordingEngine:
    return RecordingEngine()


@pytest.fixture
def views(chain: ToyChain, engine: RecordingEngine) -> Views:
    """Frame 1 is in the engine, 2 is visible, 3 is published."""
    views = open_views(engine)
    publish(views, chain, 1, 3)
    views.set_visible(1)
    views.flush()
    views.set_visible(2)
    return views


def check(pin: PinnedReader, rows: dict[bytes, bytes]) -> None:
    keys = [A, B, C, D]
    assert read_all(pin) == read_all(pin, reverse=True, limit=1) == rows
    assert pin.get_many(keys) == [pin.get(key) for key in keys] == [rows.get(key) for key in keys]


def test_it_sees_what_is_published_and_nothing_later(views: Views, chain: ToyChain) -> None:
    with views.pin_latest() as pin, views.pin() as visible:
        assert (pin.seq, visible.seq) == (3, 2)
        check(pin, chain.moments[3].rows)
        check(visible, chain.moments[2].rows)
        publish(views, chain, 4, 4)
        check(pin, chain.moments[3].rows)
        for seq in (3, 4):
            views.set_visible(seq)
            check(pin, chain.moments[3].rows)
        for seq in (2, 3, 4):
            views.flush(seq)
            check(pin, chain.moments[3].rows)
    assert views.stats.pins == 0


def test_a_flush_within_a_call_changes_nothing(views: Views, chain: ToyChain, engine: RecordingEngine) -> None:
    with views.pin_latest() as pin:
        publish(views, chain, 4, 4)
        views.set_visible(4)
        engine.meanwhile = lambda: check(pin, chain.moments[3].rows)
        views.flush()
        assert views.stats.overlay_frames == 0
        check(pin, chain.moments[3].rows)


def test_without_anything_pending_it_equals_the_visible_reader(views: Views, chain: ToyChain) -> None:
    views.set_visible(3)
    views.flush()
    with views.pin_latest() as pin, views.pin() as visible:
        assert (pin.version, pin.seq) == (visible.version, visible.seq)
        check(pin, chain.moments[3].rows)


CALLS: list[Callable[[PinnedReader], object]] = [
    lambda pin: pin.get(B),
    lambda pin: pin.get_many([C]),
    lambda pin: pin.scan(LOW, HIGH),
    lambda pin: pin.floor(B, A),
]


@pytest.mark.parametrize("call", CALLS)
def test_it_expires_when_what_it_sees_is_dropped(
    views: Views, chain: ToyChain, call: Callable[[PinnedReader], object]
) -> None:
    with views.pin() as visible, views.pin_latest() as pin:
        views.drop_invisible()
        with pytest.raises(ViewExpired, match="dropped"):
            call(pin)
        check(visible, chain.moments[2].rows)
        with views.pin_latest() as later:  # nothing is pending any more
            assert later.seq == 2
            check(later, chain.moments[2].rows)
            views.drop_invisible()
            check(later, chain.moments[2].rows)


@pytest.mark.parametrize("name", ["get", "between"])
def test_a_drop_in_the_middle_of_a_call_is_noticed(views: Views, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = CALLS[:2] if name == "get" else CALLS[2:]
    for call in calls:
        engine = RecordingEngine()
        chain = ToyChain()
        chain.append(0, [chain.block(None, {B: b"1", C: b"1"}, {})])
        views = open_views(engine)
        publish(views, chain, 1, 1)
        with views.pin_latest() as pin:
            overlay = views._overlay
            original = getattr(overlay, name)

            def dropped_first(
                *args: object, _views: Views = views, _original: object = original, **more: object
            ) -> object:
                _views.drop_invisible()
                return _original(*args, **more)  # type: ignore[operator]

            monkeypatch.setattr(overlay, name, dropped_first)
            with pytest.raises(ViewExpired):
                call(pin)


def test_close_releases(views: Views) -> None:
    pin = views.pin_latest()
    assert views.stats.pins == 1
    pin.close()
    pin.close()
    assert views.stats.pins == 0
    with pytest.raises(ClosedError):
        pin.get(A)
