"""Durable commits of blocks that change the state, in bursts, through the public API: the kernel, then the pure twin.

A burst is a run of blocks back to back; what it left in memory is flushed afterwards, and both are timed. Two presets:
production, whose overlay takes a burst of a million updates, and the standard, under which flushes run inside it.
"""

from __future__ import annotations

from .measure import Bar, Plan, Result, median, row
from .state_child import Found, run_job, trees
from .state_jobs import burst, fill

__all__ = ["run"]

SETTINGS: dict[str, Found] = {"preset production": {"preset": "production"}, "standard settings": {}}


def run(plan: Plan) -> Result:
    """Rounds of bursts under both settings."""
    result = Result("state")
    sizes = {
        "kernel": plan.pick((1_000_000, 10_000, 100, 3), (100_000, 10_000, 10, 2), (2_000, 500, 4, 2)),
        "pure": plan.pick((100_000, 10_000, 10, 3), (20_000, 2_000, 5, 2), (1_000, 200, 2, 2)),
    }
    for tree in trees():
        keys, per_block, blocks, rounds = sizes[tree]
        path = str(plan.directory / tree)
        found = run_job(fill, tree=tree, path=path, keys=keys, settings={})
        result.rows.append(row(f"{tree}: {keys:,} keys put into an empty store", "keys/s", [keys / found["seconds"]]))
        for name, settings in SETTINGS.items():
            found = run_job(
                burst,
                tree=tree,
                path=path,
                keys=keys,
                per_block=per_block,
                blocks=blocks,
                rounds=rounds,
                settings=settings,
            )
            _report(result, f"{tree}, {name}", found, per_block, blocks)
            if tree == "kernel":
                text = f"burst of {per_block * blocks:,} durable updates, {name}, /s"
                result.bars.append(Bar(text, median(found["rates"]), 300_000, True))
        result.notes.append(f"{tree}: {keys:,} keys, bursts of {blocks} blocks of {per_block:,} updates")
    if "kernel" not in trees():
        result.notes.append("the native kernel is not installed, so only the pure twin was measured")
    return result


def _report(result: Result, name: str, found: Found, per_block: int, blocks: int) -> None:
    result.rows += [
        row(f"{name}: burst", "updates/s", found["rates"]),
        row(f"{name}: burst and its flush", "updates/s", _with_flush(found, per_block * blocks)),
        row(f"{name}: commit", "ms", [seconds * 1e3 for seconds in found["seconds"]]),
        row(f"{name}: processor of the thread", "us/update", [cpu / per_block * 1e6 for cpu in found["thread"]]),
        row(f"{name}: processor of the process", "us/update", [cpu / per_block * 1e6 for cpu in found["process"]]),
    ]


def _with_flush(found: Found, updates: int) -> list[float]:
    pairs = zip(found["rates"], found["flushes"], strict=True)
    return [updates / (updates / rate + flush) for rate, flush in pairs]
