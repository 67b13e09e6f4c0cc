"""``log_level`` of the commands: events on stderr once it is set, and what errors and ``stats`` say of recovery."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

import holdfast as api
from tests.cli.cli_tools import child, done, holdfast


def log_lines(err: str) -> list[dict[str, object]]:
    return [value for value in map(json.loads, err.splitlines()) if "log" in value]


def test_nothing_is_logged_unless_asked(pow_store: Path) -> None:
    shutil.rmtree(pow_store / "views")
    answer = holdfast("finalize", "3", "-d", pow_store, "--json")
    assert (answer.code, answer.err) == (0, "")
    assert "log:" not in done("finalize", "4", "-d", pow_store).err


@pytest.mark.parametrize("source", ["environment", "file", "config"])
def test_a_level_from_any_source_is_obeyed(source: str, pow_store: Path, tmp_path: Path) -> None:
    words: list[str | Path] = ["finalize", "3", "-d", pow_store]
    env = {}
    if source == "environment":
        env["HOLDFAST_LOG_LEVEL"] = "info"
    elif source == "file":
        (pow_store / "config.toml").write_text('log_level = "info"\n')
    else:
        (tmp_path / "own.toml").write_text('log_level = "info"\n')
        words += ["--config", tmp_path / "own.toml"]
    (line,) = [line for line in holdfast(*words, env=env).err.splitlines() if line.startswith("log: ")]
    assert line.startswith(f"log: info: opened the store {pow_store}")
    (event,) = log_lines(holdfast(*words, "--json", env=env).err)
    assert (event["log"], event["event"]) == ("info", "opened")
    assert event["fields"]["clean"] is True  # type: ignore[index]
    assert isinstance(event["time"], float)


@pytest.mark.slow
def test_a_level_hides_what_is_below_it(pow_store: Path) -> None:
    env = {"HOLDFAST_LOG_LEVEL": "warning"}
    assert holdfast("finalize", "3", "-d", pow_store, "--json", env=env).err == ""
    shutil.rmtree(pow_store / "views")
    (event,) = log_lines(holdfast("finalize", "4", "-d", pow_store, "--json", env=env).err)
    assert event["log"] == "warning"
    assert event["fields"]["views_rebuilt"] is True  # type: ignore[index]
    shutil.rmtree(pow_store / "views")
    env = {"HOLDFAST_LOG_LEVEL": "error"}
    assert holdfast("finalize", "5", "-d", pow_store, "--json", env=env).err == ""


def test_an_error_stands_below_the_log_and_logging_is_as_before(pow_store: Path) -> None:
    logger = logging.getLogger("holdfast")
    before = list(logger.handlers), logger.level
    answer = holdfast("finalize", "999", "-d", pow_store, "--json", env={"HOLDFAST_LOG_LEVEL": "debug"})
    event, error = map(json.loads, answer.err.splitlines())
    assert event["event"] == "opened"
    assert (error["code"], error["recovery"], error["retryable"]) == ("block_not_found", "fail", False)
    assert answer.out == ""
    assert (list(logger.handlers), logger.level) == before


def test_text_from_a_path_reaches_the_terminal_escaped(pow_store: Path, tmp_path: Path) -> None:
    strange = Path(shutil.move(pow_store, tmp_path / "a\x1b[31mb"))
    err = holdfast("finalize", "3", "-d", strange, env={"HOLDFAST_LOG_LEVEL": "info"}).err
    assert "log: " in err
    assert "\x1b" not in err


def test_an_error_for_people_names_its_strategy(pow_store: Path) -> None:
    with api.open(pow_store, create=False):
        first, second = holdfast("finalize", "3", "-d", pow_store).err.splitlines()
    assert first.endswith("[locked, recovery: retry]")
    assert second.startswith("next: ")


def test_stats_tell_what_recovery_found(pow_store: Path) -> None:
    recovery = done("stats", "-d", pow_store, "--json").record["recovery"]
    assert isinstance(recovery, dict)
    assert (recovery["clean"], recovery["discarded"], recovery["state_root"], recovery["tree"]) == (True, [], None, "")
    assert recovery["tip_height"] == 45
    text = done("stats", "-d", pow_store).out
    assert "\nrecovery\n" in text
    assert "views rebuilt" in text


def test_verify_names_the_strategy_of_each_problem(pow_store: Path) -> None:
    (pow_store / "views" / "CURRENT").write_text("?")
    problems = holdfast("verify", "-d", pow_store, "--json").record["problems"]
    assert isinstance(problems, list)
    assert [problem["recovery"] for problem in problems] == ["rebuild"]


@pytest.mark.slow
def test_a_real_process_logs_to_stderr(pow_store: Path) -> None:
    (pow_store / "config.toml").write_text('log_level = "info"\n')
    answer = child("tip", "-d", pow_store, "--json")
    assert answer.record["height"] == 45
    assert [event["event"] for event in log_lines(answer.err)] == ["opened"]
