"""Durable commits while a flush of many rows runs in the background, against commits while none runs."""

from __future__ import annotations

import time

import holdfast

from .data import backend_of, commit, fill, open_store, pool
from .measure import Bar, Plan, Result, median, percentile, row

__all__ = ["run"]

BODY = pool(1456)
QUIET_SECONDS = 3600.0


def _flushing(store: holdfast.Store) -> bool:
    return backend_of(store).views._flusher._one.locked()


def _commit_ms(store: holdfast.Store) -> float:
    begun = time.perf_counter_ns()
    commit(store, BODY)
    return (time.perf_counter_ns() - begun) / 1e6


def _during_flush(store: holdfast.Store, seconds_max: float) -> list[float]:
    """Latencies of the commits that began or ended while a flush ran."""
    times: list[float] = []
    deadline = time.perf_counter() + seconds_max
    while time.perf_counter() < deadline:
        before = _flushing(store)
        latency = _commit_ms(store)
        after = _flushing(store)
        if before or after:
            times.append(latency)
        elif times:
            break
    return times


def run(plan: Plan) -> Result:
    """Cycles of: commits in quiet, rows until a flush begins, commits until it has ended."""
    cycles, quiet_count, rows_max = plan.pick((10, 500, 200_000), (3, 200, 200_000), (1, 5, 2_000))
    result = Result("flush")
    quiet: list[float] = []
    during: list[float] = []
    by_cycle: list[float] = []
    rows = 0
    with open_store(plan.directory / "store", flush_interval_seconds=QUIET_SECONDS, overlay_rows_max=rows_max) as store:
        commit(store, BODY)
        for _ in range(cycles):
            while _flushing(store):
                time.sleep(0.01)
            quiet += [_commit_ms(store) for _ in range(quiet_count)]
            while not _flushing(store):
                tip = store.tip
                assert tip is not None
                fill(store, tip.height + 1 + max(32, rows_max // 100), batch=2048)
                time.sleep(0.001)
            rows = backend_of(store).views.stats.overlay_rows
            times = _during_flush(store, 30.0)
            during += times
            if times:
                by_cycle.append(percentile(times, 0.99) - median(quiet))
    if not during:
        result.notes.append("no commit met a flush: nothing was measured")
        return result
    result.rows = [
        row("commit, no flush", "ms", quiet),
        row("commit during a flush", "ms", during),
        row("p99 during a flush - p50, by cycle", "ms", by_cycle),
    ]
    excess = percentile(during, 0.99) - median(quiet)
    result.bars = [Bar("p99 during a flush above the p50 without one, ms", excess, 10.0, False)]
    result.notes.append(f"each flush takes about {rows:,} rows; {len(during):,} commits met one")
    return result
