"""The fault matrix names tests that exist, its table stands in the documents, and a fault that was missed is told."""

from __future__ import annotations

import ast
from types import SimpleNamespace
from typing import Any

import pytest

from tests.crash import matrix
from tests.crash.matrix import LATER, ROWS, Tally
from tests.meta.source import ROOT
from tests.meta.tables import TESTING, renewed


def crash_tests(file: str) -> dict[str, str]:
    """The functions of a test module that are marked ``crash``, with their source."""
    tree = ast.parse((ROOT / "tests" / "crash" / file).read_text(encoding="utf-8"))
    whole = any("pytest.mark.crash" in ast.unparse(node) for node in tree.body if isinstance(node, ast.Assign))
    return {
        node.name: ast.unparse(node)
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and (whole or any(ast.unparse(each) == "pytest.mark.crash" for each in node.decorator_list))
    }


@pytest.mark.parametrize("number", ROWS)
def test_every_row_names_tests_of_the_crash_tier(number: int) -> None:
    assert ROWS[number].tests
    for test in ROWS[number].tests:
        file, _, name = test.partition("::")
        source = crash_tests(file).get(name)
        assert source is not None, f"row {number} names {test}, which is none"
        assert any(word in source for word in ("met(", "rows=", "judged(")), f"{test} counts nothing"


def test_every_row_of_the_plan_is_there() -> None:
    assert {*ROWS, *LATER} == set(range(1, 29))
    assert not {*ROWS} & {*LATER}


def test_the_table_of_faults_equals_the_matrix() -> None:
    text = TESTING.read_text(encoding="utf-8")
    assert renewed(text, TESTING) == text, "run 'make docs'"


def whole_run() -> Tally:
    """Each test of each row has met it."""
    tally = Tally()
    for number, row in ROWS.items():
        for test in row.tests:
            tally.add(f"tests/crash/{test}[x]", [("fault matrix", [number, "tried", 3])], "passed")
    return tally


def test_a_run_that_met_everything_missed_nothing() -> None:
    assert whole_run().missed(whole=True) == []
    assert f"row  1 {ROWS[1].fault}: {3 * len(ROWS[1].tests)} tried, 0 wrong" in whole_run().lines(whole=True)


def test_a_fault_that_was_never_met_is_told() -> None:
    tally = Tally()
    tally.add("tests/crash/test_store_kill.py::test_killed_at_random[x]", [("fault matrix", [1, "tried", 0])], "passed")
    assert any("row 1" in line and "test_killed_at_random" in line for line in tally.missed(whole=True))
    assert any(line.startswith("row 2") for line in tally.missed(whole=True))


def test_a_skip_is_named_and_a_failure_counted() -> None:
    tally = whole_run()
    tally.by_test.clear()
    for row in ROWS.values():
        for test in row.tests:
            tally.add(f"tests/crash/{test}", [], "skipped", "no loop device")
    assert tally.missed(whole=True) == []
    name = ROWS[2].tests[0]
    assert f"skipped: {name}: no loop device" in tally.lines(whole=True)
    tally.add(f"tests/crash/{name}", [], "failed")
    assert any("1 TESTS FAILED" in line for line in tally.lines(whole=True) if line.startswith("row  2"))


def test_a_count_for_a_row_that_does_not_name_the_test_is_told() -> None:
    tally = whole_run()
    tally.add("tests/crash/test_other.py::test_it", [("fault matrix", [1, "tried", 3])], "passed")
    told = ["test_other.py::test_it met row 1, which does not name it"]
    assert tally.missed(whole=True) == told
    assert tally.missed(whole=False) == told


@pytest.mark.parametrize(
    ("change", "whole"),
    [({}, True), ({"keyword": "rot"}, False), ({"markexpr": "crash and slow"}, False), ({"deselect": ["x"]}, False)],
)
def test_only_a_whole_run_must_meet_everything(change: dict[str, Any], whole: bool) -> None:
    option = {"markexpr": "crash", "keyword": "", "deselect": None, "ignore": None, "lf": False, "collectonly": False}
    source = pytest.Config.ArgsSource.TESTPATHS
    config: Any = SimpleNamespace(
        option=SimpleNamespace(**option | change), args_source=source, stash={matrix._TALLY: Tally()}
    )
    assert matrix.is_whole(config) == whole
    session: Any = SimpleNamespace(config=config, exitstatus=pytest.ExitCode.OK)
    matrix.pytest_sessionfinish(session)
    assert session.exitstatus == (pytest.ExitCode.TESTS_FAILED if whole else pytest.ExitCode.OK)
    config.args_source = pytest.Config.ArgsSource.ARGS
    assert not matrix.is_whole(config)
