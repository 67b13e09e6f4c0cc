"""Undo below the reorg floor: how far it reaches, and that the floor never falls, whatever the settings say."""

from __future__ import annotations

import pytest

from holdfast.errors import CorruptionError, PrunedError
from holdfast.views.tables import STATE
from holdfast.views.undo import undo_key
from holdfast.views.views import Views
from tests.unit.views_support import REORG_DEPTH, RecordingEngine, ToyChain, check_undo, open_views, publish

BLOCKS = 30


@pytest.fixture
def chain() -> ToyChain:
    chain = ToyChain()
    for number in range(BLOCKS):
        parent = chain.now.chain[-1] if chain.now.chain else None
        chain.append(0, [chain.block(parent, {STATE.prefix + b"%d" % (number % 4): b"%d" % number}, {})])
    return chain


def flushed(engine: RecordingEngine, chain: ToyChain, last: int, window: int) -> Views:
    """The views after frame ``last``, all of them in the engine."""
    views = open_views(engine, undo_window=window)
    publish(views, chain, views.stats.applied_seq + 1, last)
    views.set_visible(last)
    views.flush()
    return views


@pytest.mark.parametrize("window", [0, 1, 5, 10_000])
def test_the_window_reaches_below_the_reorg_floor(chain: ToyChain, window: int) -> None:
    engine = RecordingEngine()
    views = flushed(engine, chain, chain.seq, window)
    floor = max(0, BLOCKS - REORG_DEPTH - window)
    assert views.undo_floor == floor
    assert views.applied is not None
    assert views.applied.undo_floor == floor
    for block in chain.now.chain:
        stored = engine.get(undo_key(block.height, block.hash)) is not None
        assert stored == (block.height > floor)
        if not stored:
            with pytest.raises(PrunedError) as caught:
                views.undo_of(block.height, block.hash)
            assert caught.value.context["least_readable"] == floor + 1
    with pytest.raises(CorruptionError):
        views.undo_of(BLOCKS + 1, bytes(32))


def test_a_wider_window_does_not_bring_back_what_is_gone(chain: ToyChain) -> None:
    engine = RecordingEngine()
    assert flushed(engine, chain, 20, 0).undo_floor == 20 - REORG_DEPTH
    views = open_views(engine, undo_window=10_000)
    assert views.undo_floor == 20 - REORG_DEPTH
    views = flushed(engine, chain, 25, 10_000)
    assert views.undo_floor == 20 - REORG_DEPTH
    assert views.applied is not None
    assert views.applied.undo_floor == 20 - REORG_DEPTH
    assert flushed(engine, chain, chain.seq, 3).undo_floor == BLOCKS - REORG_DEPTH - 3


def test_the_floor_rises_before_the_first_undo_goes(chain: ToyChain) -> None:
    engine = RecordingEngine()
    flushed(engine, chain, 10, 2)
    views = open_views(engine, undo_window=2)
    publish(views, chain, 11, chain.seq)
    views.set_visible(chain.seq)
    engine.meanwhile = lambda: check_undo(views, chain)
    views.flush()
    check_undo(views, chain)
