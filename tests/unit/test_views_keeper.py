"""The record of the history: what is not recorded is not promised, for ``every`` neither."""

from __future__ import annotations

from holdfast.engine.memory import MemoryEngine
from holdfast.state.history import StateHistory
from holdfast.views.api import HistoryRecord
from holdfast.views.history import load_history
from holdfast.views.keeper import HistoryKeeper


def test_a_block_that_is_not_recorded_takes_all_heights_below_it_away() -> None:
    engine = MemoryEngine()
    keeper = HistoryKeeper(engine, StateHistory(), HistoryRecord(6, 2, 0, 6))
    keeper.begin(3, {})
    record = load_history(engine.get)
    assert record == HistoryRecord(6, 2, 3, 6)
    assert record is not None
    assert [height for height in range(9) if record.has(height)] == [4, 6, 7, 8]
    keeper.begin(7, {})
    assert load_history(engine.get) == HistoryRecord(7, 2, 7, 6)
