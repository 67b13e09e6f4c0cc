"""Opening a store after a clean close, and after its process was killed; each time in a fresh process.

Two kills: one in the middle of durable commits with the default settings, one with as many rows in memory as the
default settings allow and a frame of its own for every block, which is the most that an open can have to replay.
"""

from __future__ import annotations

import random

from .child import run_child
from .measure import Bar, Plan, Result, row

__all__ = ["run"]

ENGINE = "rocksdb"
ROWS_MAX = 150_000
"""The default of the setting ``overlay_rows_max``."""


def run(plan: Plan) -> Result:
    """Rounds of: open after a clean close, kill in commits and open, kill with full memory and open."""
    height, rounds, longest, rows = plan.pick(
        (100_000, 5, 6.0, ROWS_MAX), (20_000, 2, 2.0, ROWS_MAX), (200, 1, 0.2, 1000)
    )
    result = Result("open")
    path = plan.directory / "store"
    choose = random.Random(7)
    run_child("make", path, ENGINE, height)
    clean: list[float] = []
    killed: list[float] = []
    full: list[float] = []
    closing: list[float] = []
    replayed = [0.0, 0.0]
    for _ in range(rounds):
        found = run_child("open", path, ENGINE)
        clean.append(found["open_seconds"])
        run_child("die-committing", path, ENGINE, choose.uniform(longest / 4, longest), killed=True)
        found = run_child("open", path, ENGINE)
        killed.append(found["open_seconds"])
        closing.append(found["close_seconds"])
        replayed[0] = max(replayed[0], found["replayed"])
        run_child("die-full", path, ENGINE, rows, killed=True)
        found = run_child("open", path, ENGINE)
        full.append(found["open_seconds"])
        replayed[1] = max(replayed[1], found["replayed"])
    result.rows = [
        row("open after a clean close", "s", clean),
        row("open after kill -9 in commits", "s", killed),
        row("open after kill -9 with full memory", "s", full),
        row("close after the open behind a kill", "s", closing),
    ]
    result.bars = [
        Bar(f"open after a clean close at {height:,} blocks, s", max(clean), 1.0, False),
        Bar("open after kill -9 in commits, s", max(killed), 3.0, False),
        Bar("open after kill -9 with full memory, s", max(full), 3.0, False),
    ]
    result.notes.append(f"frames replayed at most: {replayed[0]:,.0f} in commits, {replayed[1]:,.0f} with full memory")
    result.notes.append("the page cache is warm; the slowest round counts for the bars")
    return result
