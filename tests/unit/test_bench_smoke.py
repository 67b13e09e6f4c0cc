"""Every benchmark runs to its end with minimal counts, so that none rots; no figure is judged here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bench import state_data
from bench.__main__ import BENCHES, run_one
from bench.measure import Bar, Result, Timed, alternate, median, percentile, ratio_row, row
from bench.report import show
from bench.sidebyside import SOURCE
from bench.state_profile import PHASES, Phases
from holdfast.store.store import Store


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BENCHES))
def test_a_bench_runs_and_leaves_only_its_line(name: str, tmp_path: Path) -> None:
    result, line = run_one(name, "smoke", tmp_path)
    assert result.bench == name
    assert result.rows
    assert all(figure.low <= figure.median <= figure.high and figure.count > 0 for figure in result.rows)
    assert json.loads(line)["bench"] == name
    assert (tmp_path / "results.jsonl").read_text(encoding="utf-8") == line + "\n"
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert (median(values), percentile(values, 0.99), percentile(values, 1.0)) == (50.0, 99.0, 100.0)
    assert median([7.0]) == 7.0


def test_a_tail_is_stated_only_with_a_hundred_samples() -> None:
    assert row("few", "us", [1.0] * 99).p99 is None
    assert row("many", "us", [1.0] * 100).p99 == 1.0


def test_rounds_alternate_and_no_operation_is_done_twice() -> None:
    log: list[tuple[str, int]] = []
    steps = {name: lambda number, name=name: log.append((name, number)) for name in "ab"}
    found = alternate(steps, rounds=2, per_round=2, warm_up=1)
    rounds = [("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3), ("b", 4), ("a", 3), ("a", 4)]
    assert log == [("a", 0), ("b", 0), *rounds]
    assert {name: [len(timing.ns) for timing in timings] for name, timings in found.items()} == {
        "a": [2, 2],
        "b": [2, 2],
    }


def test_a_ratio_is_taken_within_each_round() -> None:
    fast = [Timed([1, 1], 2, 0), Timed([5, 5], 10, 0)]
    slow = [Timed([2, 2], 4, 0), Timed([20, 20], 40, 0)]
    found = ratio_row("fast / slow", fast, slow)
    assert (found.low, found.high) == (2.0, 4.0)


@pytest.mark.parametrize(("found", "at_least", "met"), [(0.79, True, False), (0.8, True, True), (0.81, False, False)])
def test_a_bar_is_met_or_said_to_be_missed(found: float, at_least: bool, met: bool) -> None:
    bar = Bar("some figure", found, 0.8, at_least)
    assert bar.met is met
    assert ("meets bar" if met else "falls short") in show(Result("some", bars=[bar]))


def test_every_key_is_written_once_before_any_is_written_twice() -> None:
    maker = state_data.Maker(1_000, 100)
    blocks = [maker.changes(block) for block in range(20)]
    first = [key for changes in blocks[:10] for key in changes]
    assert sorted(first) == [state_data.key(number) for number in range(1_000)]
    assert first != sorted(first)
    for block in range(10):
        assert blocks[block].keys() == blocks[block + 10].keys()
        assert all(blocks[block][key] != blocks[block + 10][key] for key in blocks[block])
    assert {(len(key), len(value or b"")) for changes in blocks for key, value in changes.items()} == {(52, 32)}


def test_the_rust_program_makes_the_same_blocks() -> None:
    source = (SOURCE / "src" / "main.rs").read_text(encoding="utf-8")
    for name in ("POOL", "TURN", "LOAD"):
        found = re.search(rf"^const {name}: u64 = ([0-9_]+);$", source, re.MULTILINE)
        assert found is not None
        assert int(found[1]) == getattr(state_data, name)
    assert f'"{state_data.key(0)[:21].decode()}{{number:031}}"' in source
    assert '"{number:032}"' in source


def test_every_phase_is_a_function_of_the_store_and_is_given_back() -> None:
    before = Store.commit
    with Phases() as phases:
        assert phases.missing == []
        assert Store.commit is not before
    assert Store.commit is before
    assert len({(module, path) for module, path, _ in PHASES}) == len(PHASES)


def test_a_phase_has_what_it_spends_without_the_phases_it_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("time.thread_time", lambda: float(next(clock)))
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    phases = Phases()
    inner = phases._wrapped(lambda: None, "inner")
    outer = phases._wrapped(lambda: (inner(), inner()), "outer")
    outer()
    assert phases.cpu == {"inner": 2.0, "outer": 3.0}


def test_the_steps_of_a_generator_are_one_phase() -> None:
    phases = Phases()
    numbers = phases._steps(lambda: iter(range(3)), "numbers")
    assert list(numbers()) == [0, 1, 2]
    assert list(phases.cpu) == ["numbers"]
