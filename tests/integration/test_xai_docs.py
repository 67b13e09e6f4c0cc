"""The program and the command lines of docs/XAI.md run."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from tests import xai_makers as make
from tests.cli.cli_tools import holdfast

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "XAI.md").read_text(encoding="ascii")


def test_the_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(program, "docs/XAI.md", "exec"), names)
    assert names["ok"] is True


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("blockchain.json").write_bytes(make.package(make.chain(3)))
    commands = re.findall(r"^\$ holdfast (.*?)(?: +#.*)?$", TEXT, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert holdfast(*shlex.split(command)).code == 0
    assert make.passes(Path("out.json"))


def test_the_example_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(ROOT / "examples" / "xai_chain.py"))["main"]
    for blocks, miner in ((1, "12.1"), (2, "24.2")):
        main(str(tmp_path / "data"))
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith(f"{blocks} blocks")
        assert lines[3] == f"{blocks + 1} blocks, miner has {miner}"
        assert lines[4].startswith("Integrity verified")
