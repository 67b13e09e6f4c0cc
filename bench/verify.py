"""``verify`` of a store at rest: bytes per second alone and with a second process; blocks per second of all roots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import holdfast
from holdfast.recovery import Level, VerifyReport, verify_store

from .data import block_hash, fill, open_store
from .measure import SECOND_NS, Bar, Plan, Result, alternate, median, ratio_row, row

__all__ = ["run"]

BODY_BYTES = 16 * 1024
JOBS = 2
LEVELS: tuple[Level, ...] = ("links", "views")
CHANGES = 50
"""Keys that a block of the second store changes."""


def _sound(path: Path, level: Level, jobs: int) -> VerifyReport:
    report = verify_store(path, level=level, jobs=jobs)
    if not report.ok:
        raise RuntimeError(f"the store is not sound at level {level}: {report.problems[:1]}")
    return report


def _step(path: Path, level: Level, jobs: int) -> Callable[[int], object]:
    return lambda _: _sound(path, level, jobs)


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
        steps = {f"{level}, {jobs}": _step(path, level, jobs) for jobs in (1, JOBS)}
        found = alternate(steps, rounds=rounds, per_round=1, warm_up=0)
        alone, shared = found[f"{level}, 1"], found[f"{level}, {JOBS}"]
        for name, timings in ((f"{level}, one process", alone), (f"{level}, {JOBS} jobs", shared)):
            result.rows.append(row(name, "MB/s", [megabytes * SECOND_NS / timing.elapsed_ns for timing in timings]))
        ratio = ratio_row(f"{level}, {JOBS} jobs / one process", shared, alone)
        result.rows.append(ratio)
        if level == "links":
            rate = median([megabytes * SECOND_NS / timing.elapsed_ns for timing in alone])
            result.bars.append(Bar("links, one process, MB/s", rate, 300.0, True))
        result.bars.append(Bar(f"{level}: speed-up by a second process", ratio.median, 1.6, True))
    with open_store(plan.directory / "states", durability="buffered") as store:
        _fill_state(store, states)
    report = _sound(plan.directory / "states", "full", 1)
    seconds = next(check.seconds for check in report.checks if check.name == "roots")
    result.rows.append(row("full, roots", "blocks/s", [states / max(seconds, 1e-9)]))
    result.notes.append(
        f"{megabytes:,.0f} MB of journal, read from the page cache; {CHANGES} changes a block at level full"
    )
    return result
