"""The code in docs/CONTRACTS.md runs, its tables equal the code, and the example in ``examples/`` works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.contracts import DEFAULT_SCHEDULE, Status
from holdfast.contracts.limits import CALL_DEPTH_MAX, METHOD_DEPTH_MAX
from holdfast.contracts.transactions import HEADER_BYTES

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "CONTRACTS.md").read_text(encoding="utf-8")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_the_code_in_the_document_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 2
    source = "\n".join(blocks)
    done = run("-W", "error", "-c", source)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_the_example_runs_twice_on_one_directory(tmp_path: Path) -> None:
    for deals in (1, 2):
        done = run("-W", "error", "examples/contract_shop.py", str(tmp_path / "shop"))
        assert done.returncode == 0, done.stderr
        assert f"Anna has {1_000_000 - 2500 * deals}, Boris {2500 * deals}\n" in done.stdout


def test_every_status_limit_and_price_is_documented() -> None:
    for status in Status:
        assert f"`{status.value}`" in TEXT
    assert f"{CALL_DEPTH_MAX} contracts inside each other, {METHOD_DEPTH_MAX} methods" in TEXT
    assert f"A header is {HEADER_BYTES} bytes" in TEXT
    s = DEFAULT_SCHEDULE
    flat = " ".join(TEXT.split())
    assert (
        f"Defaults: call {s.call}, deploy {s.deploy}, argument byte {s.argument_byte}, method {s.method}, "
        f"cross-call {s.cross_call}, read {s.read} and {s.read_byte} a byte, write {s.write} and {s.write_byte} a byte "
        f"of key and value, delete {s.delete}, event {s.event} and {s.event_byte} a byte, hash {s.hash} "
        f"and {s.hash_byte} a byte, result {s.return_byte} a byte." in flat
    )
