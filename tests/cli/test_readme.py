"""Every command and program in README.md runs, and every link leads somewhere."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.cli_tools import ROOT, SAMPLES, child_environment, holdfast

README = (ROOT / "README.md").read_text(encoding="ascii")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[str]:
    return [text for name, text in _BLOCK.findall(README) if name == language]


def command_lines() -> list[str]:
    lines = [line for text in blocks("console") for line in text.splitlines()]
    assert all(line.startswith("$ ") for line in lines)
    return [line.removeprefix("$ ") for line in lines]


@pytest.mark.slow
def test_every_command_runs_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "samples").symlink_to(SAMPLES)
    monkeypatch.chdir(tmp_path)
    ran = 0
    for line in command_lines():
        program, *arguments = shlex.split(line, comments=True)
        if program == "make":
            continue
        assert program == "holdfast"
        answer = holdfast(*arguments)
        assert answer.code == 0, f"{line}: {answer}"
        assert answer.out
        ran += 1
    assert ran >= 10
    tips = json.loads(holdfast("tips", "--data-dir", "ltc", "--json").out)
    assert len(tips) == 4


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = [line.split()[1] for line in command_lines() if line.startswith("make ")]
    assert targets
    assert [name for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []


@pytest.mark.slow
def test_every_program_runs(tmp_path: Path) -> None:
    programs = blocks("python")
    expected = ["2 [", "3\n"]  # the second program adds a block to the store of the first
    for text, start in zip(programs, expected, strict=True):
        answer = subprocess.run(
            [sys.executable, "-c", text],
            env=child_environment(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.startswith(start)


def test_inline_commands_have_options_that_exist() -> None:
    from tests.cli.reference import commands, option_names

    known = dict(commands())
    inline = [words.split() for words in re.findall(r"`holdfast ([^`]+)`", README)]
    assert inline
    for words in inline:
        command = known.get(words[0]) or known[" ".join(words[:2])]
        assert {word for word in words if word.startswith("--")} <= set(option_names(command)), words


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_number_of_kills_is_the_demos() -> None:
    demo = "".join((ROOT / "demo" / name).read_text() for name in ("run.py", "state_act.py"))
    kills = sum(int(number) for number in re.findall(r"^(?:REORG_|STATE_)?KILLS = (\d+)$", demo, re.MULTILINE))
    assert kills == 12
    assert "twelve times" in README
