"""The contract suite notices every deliberately broken engine, and passes the correct one they are made from."""

from pathlib import Path

import pytest

from holdfast.engine.api import Engine
from holdfast.testing.broken_engines import BROKEN_AT_CRASH, BROKEN_ENGINES, RememberingEngine
from holdfast.testing.engine_contract import EngineContract, contract_tests

KILL = "test_a_killed_process_leaves_a_prefix_of_batches"


def failures(kind: type, path: Path, names: list[str]) -> dict[str, str]:
    """Test name -> message, for every test of the suite that the engine fails."""

    class Suite(EngineContract):
        factory = f"{kind.__module__}:{kind.__name__}" if KILL in names else None

        def make_engine(self, path: Path) -> Engine:
            made: Engine = kind(path, create=True)
            return made

    found: dict[str, str] = {}
    for name in names:
        place = path / name
        place.mkdir()
        try:
            getattr(Suite(), name)(place)
        except pytest.skip.Exception:
            continue
        except Exception as error:  # noqa: BLE001 - any error is a failed test
            found[name] = f"{type(error).__name__}: {error}"
    return found


def names_without(*slow: str) -> list[str]:
    return [name for name in contract_tests(EngineContract) if name not in slow]


def test_the_control_passes(tmp_path: Path) -> None:
    assert failures(RememberingEngine, tmp_path, names_without(KILL)) == {}


WANTED = {
    "LosesOnePrefixAtReopen": "test_everything_is_there_after_reopen",
    "LosesUnsyncedAtClose": "test_reopen_directly_after_close_with_handles_alive",
    "SnapshotIsLive": "test_a_snapshot_does_not_see_later_batches",
    "IgnoresClose": "test_every_call_after_close_is_refused",
    "ReclaimForgetsRows": "test_reclaiming_changes_no_row",
    "NeverReclaims": "test_what_was_reclaimed_has_room_for_as_much",
    "SecondCloseRaises": "test_every_call_after_close_is_refused",
    "KeepsHalfOfARefusedBatch": "test_a_key_too_long_is_refused_before_any_write",
    "AcceptsLongKeys": "test_a_key_too_long_is_refused_before_any_write",
    "PoisonedByARefusal": "test_a_key_too_long_is_refused_before_any_write",
    "EmptyValueIsNone": "test_an_empty_value_is_not_a_miss",
    "ManyDropsDuplicates": "test_get_many_keeps_order_and_duplicates",
    "ManyIsSorted": "test_get_many_keeps_order_and_duplicates",
    "ScanEndsAtTheLimit": "test_paging_forward_and_reverse_under_garbage_collection",
    "ResumeSkipsARow": "test_paging_forward_and_reverse_under_garbage_collection",
    "StopIsInclusive": "test_order_is_bytewise_at_the_borders",
    "ReverseIsOffByOne": "test_order_is_bytewise_at_the_borders",
    "ReverseIgnoresStart": "test_order_is_bytewise_at_the_borders",
    "OrderIsSigned": "test_order_is_bytewise_at_the_borders",
    "AnyLimitIsFine": "test_a_page_size_outside_the_limits_is_refused",
    "FloorIgnoresLow": "test_floor",
    "FloorIsStrict": "test_floor",
    "CeilingIgnoresHigh": "test_ceiling",
    "CeilingIsStrict": "test_ceiling",
    "RowsBeforeRanges": "test_delete_ranges_act_before_rows",
    "RangeKeepsItsFirstKey": "test_delete_ranges_act_before_rows",
    "ChangesTheBatch": "test_a_batch_is_not_kept_or_changed",
    "ShowsHalfABatch": "test_a_batch_is_visible_over_all_prefixes_at_once",
    "CheckpointIsLate": "test_a_checkpoint_is_a_consistent_copy",
    "CheckpointOverwrites": "test_a_checkpoint_is_a_consistent_copy",
    "HasNoSize": "test_figures",
}


@pytest.mark.parametrize("kind", BROKEN_ENGINES, ids=lambda kind: kind.__name__)
def test_a_broken_engine_fails_the_suite(kind: type, tmp_path: Path) -> None:
    name = WANTED[kind.__name__]
    found = failures(kind, tmp_path, [name])
    assert name in found, f"{kind.__name__} passes {name}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", BROKEN_AT_CRASH, ids=lambda kind: kind.__name__)
def test_an_engine_broken_at_a_crash_fails_the_suite(kind: type, tmp_path: Path) -> None:
    found = failures(kind, tmp_path, [KILL])
    assert found[KILL].startswith("AssertionError"), found
