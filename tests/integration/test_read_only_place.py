"""What README.md says of a store on a file system that is mounted read-only."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import holdfast

UNSHARE = shutil.which("unshare")


def mounted(path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command on a store at ``path``, which is mounted read-only for it alone."""
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    program = [sys.executable, "-m", "holdfast", *words, "-d", str(path), "--json"] if words else ["true"]
    return subprocess.run(
        [str(UNSHARE), "-rm", "sh", "-c", script, str(path), *program], capture_output=True, text=True, timeout=120
    )


def answer(path: Path, *words: str) -> tuple[int, dict[str, object]]:
    done = mounted(path, *words)
    return done.returncode, json.loads(done.stdout or done.stderr)


@pytest.fixture(params=["lmdb", "sqlite", "rocksdb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / str(request.param)
    with holdfast.open(f"{request.param}:{path}") as opened:
        draft = opened.draft()
        draft.state[b"key"] = b"value"
        opened.commit(draft, hash=b"h" * 32)
    if UNSHARE is None or mounted(path).returncode != 0:
        pytest.skip("this machine allows no mount in a namespace of one's own")
    return path


@pytest.mark.slow
def test_what_a_store_can_do_where_nothing_can_be_written(store: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    assert answer(store, "journal", "inspect")[0] == 0
    code, report = answer(store, "verify")
    checks = {check["name"]: check for check in report["checks"]}  # type: ignore[attr-defined]
    assert [checks[name]["problems"] for name in ("identity", "watermark", "journal", "segments")] == [0, 0, 0, 0]
    if store.name == "lmdb":
        assert (code, report["ok"]) == (0, True)
        assert answer(store, "verify", "--level", "full")[1]["ok"] is True
        assert answer(store, "state", "get", "key")[1]["value_text"] == "value"
        assert answer(store, "prove", "key")[0] == 0
    else:
        assert code in (6, 8)
        assert checks["views"]["problems"] == 1
        assert answer(store, "state", "get", "key")[0] in (6, 8)
    assert answer(store, "rebuild")[0] == 8
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
