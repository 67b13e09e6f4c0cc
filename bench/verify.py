"""``verify`` of a store at rest: bytes per second alone and with a second process; blocks per second of all roots."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import holdfast
from holdfast.recovery import Level, verify_store

from .child import run_child
from .data import block_hash, fill, open_store
from .measure import Bar, Plan, Result, median, row

__all__ = ["run"]

BODY_BYTES = 16 * 1024
JOBS = 2
LEVELS: tuple[Level, ...] = ("links", "views")
CHANGES = 50
"""Keys that a block of the second store changes."""


class _Times(NamedTuple):
    """Of each round: seconds, and processor seconds of all processes."""

    seconds: list[float]
    processor: list[float]


def _verified(path: Path, level: Level, rounds: int) -> dict[int, _Times]:
    """By number of jobs. Each runs in a new process, so that its helpers are forked: one with threads must not fork."""
    found = {jobs: _Times([], []) for jobs in (1, JOBS)}
    for number in range(rounds):
        for jobs in sorted(found, reverse=number % 2 == 1):
            told = run_child("verify", path, level, jobs)
            found[jobs].seconds.append(max(told["seconds"], 1e-9))
            found[jobs].processor.append(told["processor"])
    return found


def _fill_state(store: holdfast.Store, count: int) -> None:
    for height in range(count):
        draft = store.draft()
        draft.state.update(
            {b"key %d" % ((height * CHANGES + at) % 100_000): b"%032d" % height for at in range(CHANGES)}
        )
        store.commit(draft, hash=block_hash(height), header=b"header")


def run(plan: Plan) -> Result:
    """Rounds of one process and of two, on blocks of 16 KiB; then the level that applies every change again."""
    blocks, rounds, states = plan.pick((131_072, 5, 20_000), (32_768, 3, 2_000), (50, 1, 10))
    result = Result("verify")
    path = plan.directory / "blocks"
    with open_store(path) as store:
        fill(store, blocks, body_bytes=BODY_BYTES, batch=1024)
    megabytes = sum(file.stat().st_size for file in (path / "journal").iterdir()) / 1e6
    for level in LEVELS:
        found = _verified(path, level, rounds)
        alone, shared = found[1], found[JOBS]
        for name, times in ((f"{level}, one process", alone), (f"{level}, {JOBS} jobs", shared)):
            result.rows.append(row(name, "MB/s", [megabytes / seconds for seconds in times.seconds]))
            result.rows.append(row(f"{name}, processor", "s", times.processor))
        ratios = [one / two for one, two in zip(alone.seconds, shared.seconds, strict=True)]
        result.rows.append(row(f"{level}, {JOBS} jobs / one process", "x", ratios))
        if level == "links":
            rate = median([megabytes / seconds for seconds in alone.seconds])
            result.bars.append(Bar("links, one process, MB/s", rate, 300.0, True))
        result.bars.append(Bar(f"{level}: speed-up by a second process", median(ratios), 1.6, True))
    with open_store(plan.directory / "states", durability="buffered") as store:
        _fill_state(store, states)
    report = verify_store(plan.directory / "states", level="full")
    if not report.ok:
        raise RuntimeError(f"the store is not sound: {report.problems[:1]}")
    seconds = next(check.seconds for check in report.checks if check.name == "roots")
    result.rows.append(row("full, roots", "blocks/s", [states / max(seconds, 1e-9)]))
    result.notes.append(
        f"{megabytes:,.0f} MB of journal, read from the page cache; {CHANGES} changes a block at level full"
    )
    return result
