"""Where the processor time of a commit and of an imported block goes, by group of functions.

The profiler makes every call dearer, so its shares are spread over the processor time measured without it. Its clock is
the processor time of the thread, so waiting for the device does not count.
"""

from __future__ import annotations

import cProfile
import pstats
import time
from collections.abc import Callable
from pathlib import Path

from .child import run_child
from .data import blocks, commit, open_store, pool
from .measure import Plan, Result, row

__all__ = ["run"]

BODY = pool(1456)
Key = tuple[str, int, str]
Cost = tuple[int, int, float, float, dict[Key, tuple[int, int, float, float]]]

GROUPS = (
    ("store/store", "store: facade and checks"),
    ("store/checks", "store: facade and checks"),
    ("store/draft", "store: facade and checks"),
    ("store/adding", "store: adding"),
    ("store/", "store: writer"),
    ("blocks/decide", "blocks: decide"),
    ("blocks/apply", "blocks: rows of the views"),
    ("blocks/records", "blocks: rows of the views"),
    ("blocks/state", "blocks: rows of the views"),
    ("blocks/entries", "blocks: entries of the frame"),
    ("blocks/content", "blocks: entries of the frame"),
    ("blocks/", "blocks: reader"),
    ("journal/codec", "journal: encode and hash"),
    ("journal/watermark", "journal: watermark"),
    ("journal/", "journal: append and sync"),
    ("_fs", "journal: files"),
    ("views/", "views"),
    ("engine/", "engine"),
)


def _group(path: str) -> str:
    _, found, inside = path.replace("\\", "/").partition("/holdfast/")
    if found:
        for prefix, name in GROUPS:
            if inside.startswith(prefix):
                return name
        return "other modules of holdfast"
    return "benchmark" if Path(path).parent.name == "bench" else ""


def _kernel(name: str) -> str:
    """The group of a system call that is worth a line of its own; else nothing."""
    return next((f"kernel: {call}" for call in ("fdatasync", "pwrite") if f"posix.{call}" in name), "")


def _shares(profile: cProfile.Profile) -> dict[str, float]:
    """Seconds by group; a builtin or library function counts for whoever called it."""
    stats: dict[Key, Cost] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    spent: dict[str, float] = {}
    for (path, _, name), (_, _, own, _, callers) in stats.items():
        group = _kernel(name) or _group(path)
        if group or not callers:
            spent[group or "other"] = spent.get(group or "other", 0.0) + own
            continue
        for caller, (_, _, part, _) in callers.items():
            owner = _group(caller[0]) or "other"
            spent[owner] = spent.get(owner, 0.0) + part
    return spent


def _report(label: str, unprofiled: float, profile: cProfile.Profile, result: Result) -> None:
    """Rows for the groups, which together make up ``unprofiled`` microseconds."""
    spent = _shares(profile)
    spent.pop("benchmark", None)
    total = sum(spent.values())
    result.rows.append(row(f"{label}: processor, measured", "us", [unprofiled]))
    for name, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        result.rows.append(row(f"{label}: {name}", "us", [unprofiled * seconds / total]))


def _breakdown(label: str, step: Callable[[], object], count: int, per_step: int, result: Result) -> None:
    cpu = time.thread_time()
    for _ in range(count):
        step()
    unprofiled = (time.thread_time() - cpu) / (count * per_step) * 1e6
    profile = cProfile.Profile(time.thread_time_ns, 1e-9)
    profile.enable()
    for _ in range(count):
        step()
    profile.disable()
    _report(label, unprofiled, profile, result)


def _replay(path: Path, rows: int, result: Result) -> None:
    """Opening after a kill that left ``rows`` rows to be made anew, a frame for each block."""
    profile = cProfile.Profile(time.thread_time_ns, 1e-9)
    unprofiled = 0.0
    for turn in range(2):
        run_child("die-full", path, "rocksdb", rows, killed=True)
        cpu = time.thread_time()
        if turn:
            profile.enable()
        store = open_store(path, flush_interval_seconds=3600.0)
        profile.disable()
        if not turn:
            unprofiled = (time.thread_time() - cpu) / store.recovery.frames_replayed * 1e6
        store.close()
    _report("replay of a frame", unprofiled, profile, result)


def run(plan: Plan) -> Result:
    """Durable commits, blocks in buffered runs, frames replayed at open."""
    commits, batches, batch, rows = plan.pick((3000, 10, 4096, 100_000), (1000, 4, 4096, 20_000), (10, 2, 64, 500))
    result = Result("profile")
    with open_store(plan.directory / "commits", flush_interval_seconds=3600.0) as store:
        _breakdown("commit", lambda: commit(store, BODY), commits, 1, result)
    source = pool(1 << 16)
    made = [list(blocks(n * batch, batch, body_bytes=100, source=source)) for n in range(2 * batches)]
    turn = iter(made)
    with open_store(
        plan.directory / "runs",
        durability="buffered",
        flush_interval_seconds=3600.0,
        overlay_rows_max=10_000_000,
        overlay_bytes_max=1 << 32,
    ) as store:
        _breakdown("add_many", lambda: store.add_many(next(turn), validate=False), batches, batch, result)
    _replay(plan.directory / "replay", rows, result)
    return result
