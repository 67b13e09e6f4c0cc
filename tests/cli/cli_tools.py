"""Running the command line in tests: in this process, or as a child."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from holdfast.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "samples"
ANVIL = SAMPLES / "anvil.jsonl.zst"
LITECOIN = SAMPLES / "litecoin-regtest-blk00000.dat.zst"


@dataclass(frozen=True, slots=True)
class Answer:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> object:
        return json.loads(self.out)

    @property
    def record(self) -> dict[str, object]:
        answer = json.loads(self.out)
        assert isinstance(answer, dict)
        return answer

    @property
    def rows(self) -> list[dict[str, object]]:
        answer = json.loads(self.out)
        assert isinstance(answer, list)
        return answer

    @property
    def error(self) -> dict[str, object]:
        answer = json.loads(self.err)
        assert isinstance(answer, dict)
        return answer


def holdfast(*args: str | Path, env: Mapping[str, str] | None = None, stdin: str | None = None) -> Answer:
    """The command in this process."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], env=dict(env or {}), input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Answer(result.exit_code, result.stdout, result.stderr)


def done(*args: str | Path) -> Answer:
    """The command, which succeeds."""
    answer = holdfast(*args)
    assert answer.code == 0, answer
    return answer


def child_environment() -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HOLDFAST_")}
    return environment | {"PYTHONPATH": str(ROOT / "src")}


def start(*args: str | Path) -> subprocess.Popen[str]:
    """The command in a child process."""
    return subprocess.Popen(
        [sys.executable, "-m", "holdfast", *(str(arg) for arg in args)],
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def child(*args: str | Path) -> Answer:
    """The command in a child process, to its end."""
    process = start(*args)
    out, err = process.communicate(timeout=120)
    return Answer(process.returncode, out, err)
