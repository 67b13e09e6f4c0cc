"""Every program and command in docs/EVM.md runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.cli.cli_tools import ROOT, child_environment

TEXT = (ROOT / "docs" / "EVM.md").read_text(encoding="ascii")
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
PROGRAMS = [text for language, text in BLOCKS if language == "python"]
PRINTED = ["6\n", "['devnet']\n", "3\n"]


def test_there_are_only_blocks_that_are_run() -> None:
    assert {language for language, _ in BLOCKS} == {"python", "console"}
    assert len(PROGRAMS) == len(PRINTED)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_every_program_runs(number: int, tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAMS[number]],
        env=child_environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == PRINTED[number]


@pytest.mark.slow
def test_every_command_runs() -> None:
    lines = [line for language, text in BLOCKS if language == "console" for line in text.splitlines()]
    assert all(line.startswith("$ ") for line in lines)
    commands = [shlex.split(line[2:]) for line in lines]
    assert [command[0] for command in commands] == ["pip", "python"]
    for command in commands:
        if command[0] == "pip":  # what it names can be installed: the extra is there
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert re.fullmatch(r"holdfast\[(\w+)\]", command[2]) is not None
            assert command[2][len("holdfast[") : -1] in extras
            continue
        answer = subprocess.run(
            [sys.executable, *command[1:]], env=child_environment(), cwd=ROOT, capture_output=True, timeout=120
        )
        assert answer.returncode == 0, answer.stderr


def test_every_file_it_names_is_there() -> None:
    names = re.findall(r"`((?:examples|docs|src|tests)/[\w/.]+)`", TEXT)
    assert names
    assert [name for name in names if not (ROOT / name).exists()] == []
