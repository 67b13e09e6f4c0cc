"""A durable commit far up the chain, against the same commit near its start."""

from __future__ import annotations

import time
from collections.abc import Callable

import holdfast

from .data import commit, fill, open_store, pool
from .measure import Bar, Plan, Result, alternate, cpu_row, latency_row, median, row

__all__ = ["run"]

BODY = pool(1456)


def _step(store: holdfast.Store) -> Callable[[int], object]:
    return lambda _number: commit(store, BODY)


def run(plan: Plan) -> Result:
    """Two stores are filled in buffered mode, then both get synced commits in alternating rounds."""
    low, high, rounds, per_round = plan.pick((1000, 1_000_000, 100, 20), (1000, 50_000, 25, 20), (20, 400, 2, 4))
    result = Result("height")
    for name, height in (("low", low), ("high", high)):
        begun = time.perf_counter()
        with open_store(plan.directory / name, durability="buffered") as store:
            fill(store, height)
        seconds = time.perf_counter() - begun
        result.notes.append(f"filled to height {height:,} in {seconds:.1f} s ({height / seconds:,.0f} blocks/s)")
    with open_store(plan.directory / "low") as near, open_store(plan.directory / "high") as far:
        found = alternate(
            {"near": _step(near), "far": _step(far)}, rounds=rounds, per_round=per_round, warm_up=per_round
        )
    ratios = [median(above.ns) / median(below.ns) for above, below in zip(found["far"], found["near"], strict=True)]
    result.rows = [
        latency_row(f"commit from height {low:,}", found["near"]),
        latency_row(f"commit from height {high:,}", found["far"]),
        cpu_row(f"processor at {low:,}", found["near"]),
        cpu_row(f"processor at {high:,}", found["far"]),
        row("median latency, far / near, by round", "x", ratios),
    ]
    overall = result.rows[1].median / result.rows[0].median
    result.bars = [Bar(f"median commit at height {high:,} over height {low:,}", overall, 1.1, False)]
    return result
