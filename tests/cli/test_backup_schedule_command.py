"""``holdfast backup schedule``: what is due, made now or until a signal, and units for systemd and cron."""

from __future__ import annotations

import json
import shlex
import signal
from pathlib import Path

import pytest

from tests.cli.cli_tools import done, holdfast, start
from tests.unit.backup_support import grown, repository


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    grown(path, 5)
    (path / "config.toml").write_text('backup_schedule = "hourly"\ndisk_reserve_bytes = 0\nmax_backups = 1\n')
    return path


def all_is_due(data: Path) -> None:
    """The state of a schedule that nothing was made of."""
    (data / "schedule.json").write_text("{}")


def test_what_is_due_is_shown_and_made_once(data: Path) -> None:
    shown = done("backup", "schedule", "-d", data, "--json").record
    assert (shown["schedule"], shown["repository"]) == ("hourly", str(data / "backups"))
    assert (shown["done_up_to"], shown["failures"], shown["unfinished"]) == (None, 0, None)
    assert len(shown["next"]) == 3  # type: ignore[arg-type]
    assert done("backup", "schedule", "-d", data, "--once").out == "nothing is due\n"
    all_is_due(data)
    made = done("backup", "schedule", "-d", data, "--once", "--json").record
    assert made["tested"] == "passed"
    assert done("backup", "schedule", "-d", data, "--once", "--json").record == {"due": False}
    (row,) = done("backup", "list", "-d", data, "--json").rows
    assert (row["name"], row["state"]) == (made["name"], "verified")
    all_is_due(data)
    text = done("backup", "schedule", "-d", data, "--once").out
    assert "made, verified, restored as a test; 1 removed" in text
    assert done("verify", "-d", data, "--json").record["ok"] is True
    assert sorted(path.name for path in data.parent.iterdir()) == ["data"]


def test_rules_of_retention_are_settings(data: Path) -> None:
    for _ in range(3):
        done("backup", "create", "-d", data, "--verify")
    assert len(done("backup", "prune", "-d", data, "--dry-run", "--json").record["removed"]) == 2  # type: ignore[arg-type]
    env = {"HOLDFAST_BACKUP_KEEP_DAYS": "1"}
    assert holdfast("backup", "prune", "-d", data, "--dry-run", "--json", env=env).record["removed"] == []
    more = ["--keep-days", "0", "--json"]
    assert len(holdfast("backup", "prune", "-d", data, *more, env=env).record["removed"]) == 2  # type: ignore[arg-type]


@pytest.mark.slow
def test_it_runs_until_a_signal_while_another_process_has_the_store(data: Path, tmp_path: Path) -> None:
    from tests.unit.store_support import open_quick

    all_is_due(data)
    with open_quick(data):
        process = start("backup", "schedule", "-d", data, "--run", "--json", "-r", tmp_path / "r")
        assert process.stdout is not None
        made = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")
    assert repository(tmp_path / "r").names() == [made["name"]]


def test_a_failure_is_an_error_of_once(data: Path) -> None:
    all_is_due(data)
    (data / "backups").mkdir()
    (data / "backups" / "repository.json").write_text("{")
    answer = holdfast("backup", "schedule", "-d", data, "--once", "--json")
    assert (answer.code, answer.error["code"]) == (3, "backup_damaged")
    shown = done("backup", "schedule", "-d", data, "--json").record
    assert shown["failures"] == 1
    assert shown["unfinished"]
    assert done("backup", "schedule", "-d", data, "--once").out == "nothing is due\n"  # it waits for a minute


def test_units_for_systemd_and_cron(tmp_path: Path) -> None:
    data = tmp_path / "a b%c$d"
    grown(data, 1)
    words = ["backup", "schedule", "-d", str(data), "--schedule", "daily 03:00"]
    unit = done(*words, "--print", "systemd", "--rate-limit", "1000").out
    (line,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    quoted = str(data).replace("%", "%%").replace("$", "$$")
    assert f'backup schedule --data-dir "{quoted}" --schedule "daily 03:00" --rate-limit 1000 --run' in line
    assert "[Install]\nWantedBy=multi-user.target\n" in unit
    text = done(*words, "--print", "cron", "-r", "s3://bucket/x").out
    line = text.splitlines()[-1]
    assert line.startswith("*/5 * * * * ")
    command = shlex.split(line.removeprefix("*/5 * * * * ").replace("\\%", "%"))
    stop = command.index("|")
    assert command[command.index("backup") : stop] == [
        *["backup", "schedule", "--data-dir", str(data), "--repository", "s3://bucket/x"],
        *["--schedule", "daily 03:00", "--once"],
    ]
    assert not (data / "schedule.json").exists()


def test_what_is_refused(data: Path, tmp_path: Path) -> None:
    for words, code in (
        (["--run", "--once"], "invalid_input"),
        (["--schedule", "never"], "invalid_input"),
        (["--schedule", ""], "invalid_input"),
        (["--once", "-r", "ftp://x/y"], "invalid_input"),
    ):
        answer = holdfast("backup", "schedule", "-d", data, *words, "--json")
        if words[0] == "--once":
            all_is_due(data)
            answer = holdfast("backup", "schedule", "-d", data, *words, "--json")
        assert (answer.code, answer.error["code"]) == (2, code)
    answer = holdfast("backup", "schedule", "-d", tmp_path / "none", "--schedule", "hourly", "--json")
    assert answer.error["code"] == "store_not_found"
