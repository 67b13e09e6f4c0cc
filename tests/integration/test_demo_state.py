"""The second act of the demo goes well, and would say so if anything were wrong."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from demo import state_act
from tests.cli.cli_tools import ROOT, child_environment


class Heard:
    def __init__(self) -> None:
        self.wrong: list[str] = []

    def chapter(self, title: str) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def check(self, condition: bool, text: str) -> None:
        if not condition:
            self.wrong.append(text)


@pytest.mark.slow
def test_the_act_runs_by_itself() -> None:
    done = subprocess.run(
        [sys.executable, "demo/run.py", "--act", "2", "--seed", "3"],
        cwd=ROOT,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "FAIL" not in done.stdout
    assert len(re.findall(r"^ +ok   ", done.stdout, re.MULTILINE)) == state_act.STATE_KILLS + 8
    assert f"{state_act.STATE_KILLS} kills, nothing lost" in done.stdout


@pytest.mark.slow
def test_whatever_is_wrong_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[[int], int] = state_act.annas_balance
    monkeypatch.setattr(state_act, "STATE_KILLS", 1)
    monkeypatch.setattr(state_act, "annas_balance", lambda height: right(height) + 1)
    monkeypatch.setattr(state_act, "_VERIFIER", state_act._VERIFIER.replace('"proved"', '"ProofInvalid"'))
    heard = Heard()
    for _ in state_act.chapters(tmp_path / "state", heard, random.Random(1)):
        pass
    assert [text.split(":")[0].split(" ")[0] for text in heard.wrong] == ["kill", "another", "Anna", "and", "the"]
