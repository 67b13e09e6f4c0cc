"""Commands that read, beside a process that writes all the time: each answer is of one version of the state."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import holdfast as api
from holdfast.merkle.api import JMT_SHA256
from holdfast.merkle.pure import BACKEND
from tests.cli.cli_tools import ROOT, child_environment, done, holdfast

KEYS = 600
"""Several pages of a scan."""

WRITER = """
import hashlib, sys, time
import holdfast
settings = holdfast.Settings(flush_interval_seconds=0.05, proof_window_blocks=5000)
keys = int(sys.argv[2])
with holdfast.open(sys.argv[1], settings=settings) as store:
    height = 0
    while True:
        draft = store.draft()
        for number in range(keys):
            if (number + height) % 7 == 0:
                del draft.state[b"key/%d" % number]
            else:
                draft.state[b"key/%d" % number] = b"%d at %d" % (number, height)
        digest = hashlib.sha256(b"block %d" % height).digest()
        store.commit(draft, hash=digest, header=b"header", time=height)
        if height % 10 == 5:
            store.finalize(height - 3)
        height += 1
        print(height, flush=True)
        time.sleep(0.004)
"""


def state_at(height: int) -> dict[bytes, bytes]:
    """What the writer's state is after the block at ``height``."""
    return {b"key/%d" % number: b"%d at %d" % (number, height) for number in range(KEYS) if (number + height) % 7}


@pytest.fixture(params=["sqlite", "rocksdb"])
def busy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A store that another process writes to, from before the test to its end."""
    path = tmp_path / "busy"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, f"{request.param}:{path}", str(KEYS)],
        env=child_environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if int(line) >= 20:
                break
        yield path
        assert process.poll() is None, "the writer died"
    finally:
        process.kill()
        process.communicate()


def scanned(store: Path, *words: str) -> dict[bytes, bytes]:
    answer = done("state", "scan", "--limit", "0", "-d", store, "--json", *words)
    rows = [json.loads(line) for line in answer.out.splitlines()]
    return {bytes.fromhex(row["key"]): bytes.fromhex(row["value"]) for row in rows}


@pytest.mark.slow
def test_every_answer_is_of_one_block(busy: Path, tmp_path: Path) -> None:
    seen = set()
    for _ in range(3):
        rows = scanned(busy)
        (height,) = {int(value.rsplit(b" ", 1)[1]) for value in rows.values()}
        assert rows == state_at(height)
        seen.add(height)
        assert scanned(busy, "--height", str(height - 5)) == state_at(height - 5)
        root = done("state", "root", "-d", busy, "--height", str(height), "--json").record["root"]
        assert root == BACKEND.empty(JMT_SHA256).update(dict(rows)).tree.root.hex()
        proof = tmp_path / f"{height}.json"
        done("prove", "key/1", "key/2", "never", "-d", busy, "--out", proof, "--height", str(height))
        done("verify-proof", proof, "--root", str(root))
        tip = done("prove", "key/1", "-d", busy).record
        found: Any = tip["value"]
        assert (None if found is None else bytes.fromhex(found)) == state_at(int(str(tip["height"]))).get(b"key/1")
        api.verify_proof(
            bytes.fromhex(str(tip["proof"])),
            bytes.fromhex(str(tip["root"])),
            b"key/1",
            None if found is None else bytes.fromhex(found),
        )
    assert len(seen) > 1, "the writer stood still"


@pytest.mark.slow
def test_history_differences_and_growth_beside_a_writer(busy: Path) -> None:
    tip = int(str(done("tip", "-d", busy, "--json").record["height"]))
    rows = done("state", "history", "key/3", "-d", busy, "--json").rows
    assert [row["height"] for row in rows][: tip + 1] == list(range(tip + 1))
    for row in rows:
        value = state_at(int(str(row["height"]))).get(b"key/3")
        assert row["value"] == (None if value is None else value.hex())
    lines = done("state", "diff", "4", "5", "-d", busy, "--limit", "0", "--json").out.splitlines()
    assert {bytes.fromhex(json.loads(line)["key"]) for line in lines} == set(state_at(4)) | set(state_at(5))
    for row in done("state", "growth", "--to", str(tip), "--step", "1", "-d", busy, "--json").rows:
        state = state_at(int(str(row["height"])))
        assert (row["keys"], row["bytes"]) == (len(state), sum(len(key) + len(value) for key, value in state.items()))


@pytest.mark.slow
def test_a_snapshot_is_taken_beside_a_writer(busy: Path, tmp_path: Path) -> None:
    told = done("snapshot", "export", "--out", tmp_path / "snap", "--chunk-bytes", "1024", "-d", busy, "--json").record
    done("snapshot", "import", tmp_path / "snap", "--root", str(told["root"]), "-d", tmp_path / "new")
    assert scanned(tmp_path / "new") == state_at(int(str(told["height"])))


@pytest.mark.slow
def test_what_writes_names_the_writer(busy: Path) -> None:
    for words in (["prune"], ["prune", "--dry-run"]):
        answer = holdfast(*words, "-d", busy, "--json")
        assert (answer.code, answer.error["code"]) == (7, "locked")
