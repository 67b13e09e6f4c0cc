"""The process stops before every engine batch of a flush, and is killed at every failpoint of it.

What is opened afterwards and replayed from the journal must be what it was, with every undo, whatever had reached the
engine.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.engine.api import Batch, Engine
from holdfast.engine.open import open_engine
from holdfast.views import flush as flush_module
from holdfast.views.api import HistoryRecord, ViewOptions
from holdfast.views.rows import FLUSHING_KEY, encode_flushing, encode_row
from holdfast.views.views import Views
from tests.crash.matrix import met
from tests.unit.views_support import (
    CHAIN_KEYS,
    LOG_KEYS,
    REORG_DEPTH,
    CrashingEngine,
    RecordingEngine,
    SimulatedCrash,
    Since,
    ToyBlock,
    ToyChain,
    check_history,
    check_undo,
    digest_of,
    open_views,
    publish,
    read_all,
    replay,
)

FAILPOINTS = (
    "before_undo",
    "after_undo",
    "after_flushing",
    "mid_history",
    "mid_rows",
    "before_removals",
    "mid_removals",
    "before_applied",
    "after_applied",
)
BOUNDS = [(Since(), 0, Since(), 0), (Since(), 3, None, 0), (None, 0, Since(), 3), (Since(4), 2, Since(9), 5)]
"""Rule and window of the process that stops, and of the one after it."""


def toy_chain() -> ToyChain:
    """Twenty frames: blocks that write over each other, and reorgs, one of them so early that its undo is removed."""
    chain = ToyChain()
    for number in range(1, 21):
        now = chain.now.chain
        removed = {5: 3, 6: 2, 13: 4, 14: 1}.get(number, 0)
        parent: ToyBlock | None = now[len(now) - removed - 1] if len(now) > removed else None
        added = []
        for part in range(removed + 1):
            rows = {
                key: None if (at + number) % 5 == 0 else b"%d.%d" % (number, part)
                for at, key in enumerate(CHAIN_KEYS)
                if (at * 7 + number * 3 + part) % 4 == 0
            }
            parent = chain.block(parent, rows, {LOG_KEYS[(number + part) % len(LOG_KEYS)]: b"%d" % number})
            added.append(parent)
        chain.append(removed, added)
    assert chain.now.floor > REORG_DEPTH
    return chain


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush has many batches."""
    monkeypatch.setattr(flush_module, "_SLICE_ROWS", 4)


@pytest.mark.slow
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("first", [0, 3, 11])
def test_a_crash_before_any_batch_of_a_flush_changes_nothing(
    first: int, bounds: tuple[Since | None, int, Since | None, int]
) -> None:
    rule, window, later_rule, later_window = bounds
    chain = toy_chain()
    engine = RecordingEngine()
    views = open_views(engine, rule, chain, undo_window=window)
    publish(views, chain, 1, first)
    views.set_visible(first)
    views.flush()
    base = list(engine.batches)
    publish(views, chain, first + 1, chain.seq)
    views.set_visible(chain.seq)
    views.flush()
    steps = len(engine.batches) - len(base)
    assert steps > 10
    for step in range(1, steps + 1):
        crashing = CrashingEngine(base, step)
        dying = open_views(crashing, rule, chain, undo_window=window)
        with contextlib.suppress(SimulatedCrash):
            replay(dying, chain)
            dying.flush()
        assert len(crashing.batches) == len(base) + step - 1
        # opened again, it may stop once more while it finishes the flush
        again = CrashingEngine(crashing.batches, 2)
        with contextlib.suppress(SimulatedCrash):
            replay(open_views(again, later_rule, chain, undo_window=later_window), chain)
        last = RecordingEngine(again.batches)
        opened = open_views(last, later_rule, chain, undo_window=later_window)
        replay(opened, chain)
        for _ in range(2):
            assert read_all(opened.reader()) == chain.now.rows
            check_undo(opened, chain)
            check_history(opened, chain, chain.seq)
            opened.flush()
        assert (opened.history is None) == (later_rule is None)
        assert opened.applied is not None
        assert (opened.applied.seq, opened.applied.flushing) == (chain.seq, None)


def test_a_flush_that_an_older_program_began_is_finished() -> None:
    """Its row has no floor: the undo at hand is that of its last frame's floor, whatever the window says now."""
    chain = toy_chain()
    engine = RecordingEngine()
    views = open_views(engine)
    publish(views, chain, 1, chain.seq)
    views.set_visible(chain.seq)
    views.flush()
    begun = next(at for at, batch in enumerate(engine.batches) if batch.rows.get(FLUSHING_KEY))
    old = engine.after(begun + 4)
    row = encode_row(FLUSHING_KEY, encode_flushing(chain.seq, None))
    old.apply(Batch({FLUSHING_KEY: row}), sync=False)
    opened = open_views(old, Since(), chain, undo_window=5)
    replay(opened, chain)
    assert opened.applied is not None
    assert opened.applied.undo_floor == opened.undo_floor == chain.now.floor
    assert opened.history == HistoryRecord(chain.now.floor, 0, chain.now.floor, 0)
    check_undo(opened, chain)
    check_history(opened, chain, chain.seq)


def toy_views(engine: Engine, chain: ToyChain) -> Views:
    """Views with a history and a window."""
    return Views.open(
        engine,
        options=ViewOptions(undo_window=2),
        frame_digest=digest_of,
        history=Since(),
        tip_height=chain.tip_height,
    )


def grow_and_flush(path: Path, kind: str) -> None:
    """What the child process does until it is killed."""
    flush_module._SLICE_ROWS = 4
    chain = toy_chain()
    engine = open_engine(kind, path, create=True)
    views = toy_views(engine, chain)
    publish(views, chain, 1, 8)
    views.set_visible(8)
    views.flush()
    publish(views, chain, 9, chain.seq)
    views.set_visible(chain.seq)
    views.flush()


@pytest.mark.crash
@pytest.mark.parametrize("kind", ["rocksdb", "sqlite"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", FAILPOINTS)
def test_a_process_killed_in_a_flush_changes_nothing(tmp_path: Path, name: str, count: int, kind: str) -> None:
    child = subprocess.run(
        [sys.executable, "-m", "tests.crash.test_views_crash", str(tmp_path / "engine"), kind],
        env={**os.environ, "HOLDFAST_FAILPOINT": f"views.flush.{name}:{count}"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        timeout=60,
    )
    assert child.returncode == -9, child.stderr.decode()
    met(1, 1)
    chain = toy_chain()
    engine = open_engine(kind, tmp_path / "engine", create=True)
    views = toy_views(engine, chain)
    if (count == 2 and not name.startswith("mid_")) or name == "after_applied":
        assert views.applied is not None
    replay(views, chain)
    assert read_all(views.reader()) == chain.now.rows
    check_undo(views, chain)
    check_history(views, chain, chain.seq)
    views.close()
    assert read_all(views.reader()) == chain.now.rows
    check_history(views, chain, chain.seq)
    assert views.history == HistoryRecord(0)
    engine.close()


if __name__ == "__main__":
    grow_and_flush(Path(sys.argv[1]), sys.argv[2])
