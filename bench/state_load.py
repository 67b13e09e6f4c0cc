"""Durable commits of blocks that change the state without end: the rate that lasts, and latencies at 70 % of it.

The defaults but for the history: off (undo only), or on with nothing pruned. The clock stops when everything is in the
engine. Then as many blocks as ``paced`` come at even times; what a commit took, and how long after its time it ended.
"""

from __future__ import annotations

from .measure import Bar, Plan, Result, median, percentile, row
from .state_child import Found, run_job, trees
from .state_jobs import fill, sustained

__all__ = ["run", "run_history"]

SHARE = 0.7


def run(plan: Plan) -> Result:
    """Without history."""
    return _run("stateload", plan, {"history": "off"}, 120_000)


def run_history(plan: Plan) -> Result:
    """With full history."""
    return _run("statehistory", plan, {"history": "on", "history_blocks": 0}, 60_000)


def _run(bench: str, plan: Plan, settings: Found, limit: int) -> Result:
    result = Result(bench)
    sizes = {
        "kernel": plan.pick((1_000_000, 10_000, 1_000, 200), (100_000, 10_000, 50, 100), (2_000, 500, 8, 4)),
        "pure": plan.pick((100_000, 10_000, 20, 10), (20_000, 2_000, 10, 10), (1_000, 200, 4, 3)),
    }
    for tree in trees():
        keys, per_block, blocks, paced = sizes[tree]
        path = str(plan.directory / tree)
        run_job(fill, tree=tree, path=path, keys=keys, settings=settings)
        found = run_job(
            sustained,
            tree=tree,
            path=path,
            keys=keys,
            per_block=per_block,
            blocks=blocks,
            paced=paced,
            share=SHARE,
            settings=settings,
        )
        _report(result, tree, found, blocks * per_block)
        if tree == "kernel":
            _judge(result, found, blocks * per_block, limit)
        result.notes.append(
            f"{tree}: {keys:,} keys, {blocks:,} blocks of {per_block:,} updates, "
            f"{found['rows_flushed']:,} rows in {found['flushes']} flushes of {found['flush_seconds']:.1f} s in all; "
            f"then {paced:,} blocks at {found['rate'] * SHARE:,.0f} updates/s"
        )
    result.notes.append("settings: the defaults, and " + ", ".join(f"{name}={settings[name]}" for name in settings))
    return result


def _report(result: Result, tree: str, found: Found, updates: int) -> None:
    result.rows += [
        row(f"{tree}: all, until it is flushed", "updates/s", [found["rate"]]),
        row(f"{tree}: all, until the last commit", "updates/s", [found["committed_rate"]]),
        row(f"{tree}: commit, back to back", "ms", [seconds * 1e3 for seconds in found["seconds"]]),
        row(f"{tree}: processor of the process", "us/update", [found["cpu"] / updates * 1e6]),
        row(f"{tree}: resident memory at most", "MB", [found["memory"] / 1e6]),
        row(f"{tree}: commit, at {SHARE:.0%} of the rate", "ms", [seconds * 1e3 for seconds in found["even"]]),
        row(f"{tree}: end after its time, at {SHARE:.0%}", "ms", [seconds * 1e3 for seconds in found["late"]]),
    ]


def _judge(result: Result, found: Found, updates: int, limit: int) -> None:
    even = found["even"]
    result.bars += [
        Bar(f"{updates:,} durable updates until all is flushed, /s", found["rate"], limit, True),
        Bar(f"p99 of a commit over its p50, at {SHARE:.0%}", percentile(even, 0.99) / median(even), 5, False),
    ]
