"""The programs in docs/STATE.md run, and what it says about settings, names and limits is what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import holdfast
from holdfast import limits
from holdfast.config import Settings
from holdfast.store.store import Store
from tests.cli.cli_tools import ROOT, child_environment

TEXT = (ROOT / "docs" / "STATE.md").read_text(encoding="ascii")
FLAT = " ".join(TEXT.split())
PROGRAMS: list[str] = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("pure", ["", "1"])
def test_the_programs_run_one_after_another(pure: str, tmp_path: Path) -> None:
    assert len(PROGRAMS) == TEXT.count("```") // 2 == 7
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(PROGRAMS)],
        env=child_environment() | {"HOLDFAST_PURE": pure},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_table_names_settings_and_their_defaults() -> None:
    rows = re.findall(r"^\| (`.*?`) \|", TEXT, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert named
    assert set(named) <= set(Settings.model_fields)
    assert f"{Settings().state_cache_bytes // 2**20} MiB by default" in FLAT


def test_the_limits_are_those_of_the_code() -> None:
    mib = 2**20
    for text in (
        f"Keys 1 to {limits.STATE_KEY_BYTES_MAX} bytes, values 1 byte to {limits.STATE_VALUE_BYTES_MAX // mib} MiB",
        f"at most {limits.STATE_CHANGES_MAX:,} keys and {limits.STATE_CHANGES_BYTES_MAX // mib} MiB",
        f"Values above {limits.STATE_INLINE_BYTES_MAX // 1024} KiB",
        f"up to {limits.PROOF_KEYS_MAX} keys",
    ):
        assert text in FLAT


def test_names_in_the_text_exist() -> None:
    named = re.findall(r"holdfast\.(\w+)\(", TEXT) + re.findall(r"`holdfast\.([A-Z]\w+)`", TEXT)
    assert {"verify_proof", "ExecutingChain", "MultiProof"} <= set(named) <= set(holdfast.__all__)
    for name in re.findall(r"`store\.(\w+)", TEXT):
        assert hasattr(Store, name) or name in {"state", "sync_store"}
    for name in re.findall(r"`([A-Z]\w+(?:Mismatch|Expired|Error))`", TEXT):
        assert hasattr(holdfast.errors, name)


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
