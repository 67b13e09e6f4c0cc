"""How long after a commit returned another, read-only process sees the block."""

from __future__ import annotations

import json
import random
import subprocess
import time
from pathlib import Path

import holdfast

from .child import ROOT, arguments, environment
from .data import commit, fill, open_store, pool
from .measure import Bar, Plan, Result, row

__all__ = ["run"]

BODY = pool(1456)


def _watched(store: holdfast.Store, path: Path, count: int, pause_seconds: float) -> list[float]:
    """Milliseconds from the return of each commit until the other process saw it; below zero is zero."""
    choose = random.Random(count)
    tip = store.tip
    assert tip is not None
    last = tip.height + count
    with subprocess.Popen(
        arguments("follow", path, "rocksdb", last), env=environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        if reader.stdout.readline() != "ready\n":
            raise RuntimeError("the reading process did not start")
        acknowledged: list[tuple[int, int]] = []
        for _ in range(count):
            info = commit(store, BODY)
            acknowledged.append((info.height, time.monotonic_ns()))
            if pause_seconds:
                time.sleep(choose.uniform(0, 2 * pause_seconds))
        seen: list[tuple[int, int]] = json.loads(reader.stdout.read())
    found: list[float] = []
    at = 0
    for height, returned in acknowledged:
        while seen[at][0] < height:
            at += 1
        found.append(max(0.0, (seen[at][1] - returned) / 1e6))
    return found


def run(plan: Plan) -> Result:
    """Commits with pauses, then commits back to back."""
    height, paced, saturated = plan.pick((10_000, 1000, 10_000), (2000, 200, 2000), (50, 10, 20))
    result = Result("follower")
    path = plan.directory / "store"
    with open_store(path) as store:
        fill(store, height)
        calm = _watched(store, path, paced, 0.01)
        busy = _watched(store, path, saturated, 0.0)
    result.rows = [row("seen after a lone commit", "ms", calm), row("seen after commits back to back", "ms", busy)]
    result.bars = [
        Bar("slowest sight of a lone commit, ms", max(calm), 100.0, False),
        Bar("slowest sight of commits back to back, ms", max(busy), 100.0, False),
    ]
    return result
