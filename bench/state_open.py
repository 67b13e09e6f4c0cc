"""Opening a store with state after a clean close, after SIGKILL, and without the image of the tree; and its memory.

Every open is in a fresh process and lasts until the root and a value can be read.
"""

from __future__ import annotations

from .measure import Bar, Plan, Result, row
from .state_child import Found, run_job, trees
from .state_jobs import die, fill, forget_image, memory, open_once

__all__ = ["run"]

CHANGES = 100
"""Changes in a block of those that are replayed."""


def run(plan: Plan) -> Result:
    """Rounds of opens of the store, then of one with few keys that has only frames to replay."""
    result = Result("stateopen")
    sizes = {
        "kernel": plan.pick((1_000_000, 1_000, 3), (100_000, 1_000, 1), (2_000, 10, 1)),
        "pure": plan.pick((100_000, 1_000, 1), (20_000, 100, 1), (1_000, 10, 1)),
    }
    for tree in trees():
        keys, blocks, rounds = sizes[tree]
        path = str(plan.directory / tree)
        run_job(fill, tree=tree, path=path, keys=keys, settings={})
        opens = _opens(tree, path, keys, blocks, rounds)
        small = str(plan.directory / f"{tree}-small")
        few = plan.pick(10_000, 10_000, 1_000)
        run_job(fill, tree=tree, path=small, keys=few, settings={})
        opens[f"replay of {blocks:,} blocks, {few:,} keys"] = _killed(tree, small, few, blocks, rounds)
        for name, found in opens.items():
            result.rows.append(row(f"{tree}: {name}", "s", [one["open"] for one in found]))
            result.notes.append(
                f"{tree}: {name}: tree {', '.join(sorted({one['how'] for one in found}))}; "
                f"{max(one['replayed'] for one in found):,} frames replayed"
            )
        _memory(result, tree, path, plan)
        if tree == "kernel":
            _judge(result, opens, keys, blocks)
        result.notes.append(f"{tree}: {keys:,} keys, {CHANGES} changes in a block that is replayed")
    result.notes.append("the page cache is warm; the slowest round counts for the bars")
    return result


def _opens(tree: str, path: str, keys: int, blocks: int, rounds: int) -> dict[str, list[Found]]:
    found: dict[str, list[Found]] = {"open after a clean close": [], "open without the image": []}
    for _ in range(rounds):
        found["open after a clean close"].append(run_job(open_once, tree=tree, path=path))
        run_job(forget_image, tree=tree, path=path)
        found["open without the image"].append(run_job(open_once, tree=tree, path=path))
    found["open after kill -9"] = _killed(tree, path, keys, blocks, rounds)
    return found


def _killed(tree: str, path: str, keys: int, blocks: int, rounds: int) -> list[Found]:
    found = []
    for _ in range(rounds):
        run_job(die, tree=tree, killed=True, path=path, keys=keys, per_block=CHANGES, blocks=blocks)
        found.append(run_job(open_once, tree=tree, path=path))
    return found


def _memory(result: Result, tree: str, path: str, plan: Plan) -> None:
    per_block, blocks = plan.pick((1_000, 100), (1_000, 50), (50, 2))
    found = run_job(memory, tree=tree, path=path, per_block=per_block, blocks=blocks)
    result.rows += [
        row(f"{tree}: memory of the process before it opens the store", "MB", [found["before"] / 1e6]),
        row(f"{tree}: memory with the store open", "MB", [found["opened"] / 1e6]),
        row(f"{tree}: memory after {blocks} blocks of {per_block:,} changes, at most", "MB", [found["most"] / 1e6]),
        row(f"{tree}: memory for a key, as the tree says", "B", [found["tree_bytes"] / found["keys"]]),
        row(f"{tree}: memory for a key, grown by opening", "B", [(found["opened"] - found["before"]) / found["keys"]]),
    ]
    if tree == "kernel":
        text = f"resident memory with {found['keys']:,} keys, at most, MB"
        result.bars.append(Bar(text, found["most"] / 1e6, 250, False))


def _judge(result: Result, opens: dict[str, list[Found]], keys: int, blocks: int) -> None:
    for name, found in opens.items():
        if name != "open without the image":
            text = f"{name}, s" if "replay" in name else f"{name} at {keys:,} keys, s"
            limit = 3.0 if "kill" in name else 1.0
            result.bars.append(Bar(text, max(one["open"] for one in found), limit, False))
