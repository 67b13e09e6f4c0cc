"""Processes that a benchmark starts and, some of them, kills: ``python -m bench.child JOB ...``."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import holdfast

from .data import backend_of, commit, fill, open_store, pool

if TYPE_CHECKING:
    from holdfast.recovery import Level

__all__ = ["arguments", "environment", "run_child"]

ROOT = Path(__file__).resolve().parent.parent
BODY = pool(1456)


def environment() -> dict[str, str]:
    """The environment in which a child finds this package and the store."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}


def arguments(job: str, *values: object) -> list[str]:
    """The command line of a child."""
    return [sys.executable, "-m", "bench.child", job, *map(str, values)]


def run_child(job: str, *values: object, killed: bool = False) -> dict[str, float]:
    """What the child found, once it has ended; ``killed`` if it ends itself by SIGKILL."""
    done = subprocess.run(arguments(job, *values), env=environment(), cwd=ROOT, stdout=subprocess.PIPE, check=False)
    expected = -signal.SIGKILL if killed else 0
    if done.returncode != expected:
        raise RuntimeError(f"the child {job!r} ended with {done.returncode}, not {expected}")
    found: dict[str, float] = json.loads(done.stdout) if done.stdout else {}
    return found


def _say(found: dict[str, float]) -> None:
    sys.stdout.write(json.dumps(found))
    sys.stdout.flush()


def make(path: str, engine: str, count: str) -> None:
    """A store of ``count`` blocks, closed."""
    with open_store(Path(path), engine=engine, durability="buffered") as store:
        fill(store, int(count))


def open_once(path: str, engine: str) -> None:
    """How long ``open`` takes until the tip can be read, and how long ``close``."""
    begun = time.perf_counter()
    store = open_store(Path(path), engine=engine)
    tip = store.tip
    opened = time.perf_counter()
    store.close()
    closed = time.perf_counter()
    assert tip is not None
    stats = store.recovery
    _say(
        {
            "open_seconds": opened - begun,
            "close_seconds": closed - opened,
            "replayed": stats.frames_replayed,
            "clean": stats.clean,
            "height": tip.height,
        }
    )


def die_committing(path: str, engine: str, seconds: str) -> None:
    """Durable commits as fast as possible, then SIGKILL in the middle of them."""
    store = open_store(Path(path), engine=engine)
    end = time.perf_counter() + float(seconds)
    while time.perf_counter() < end:
        commit(store, BODY)
    os.kill(os.getpid(), signal.SIGKILL)


def die_full(path: str, engine: str, rows: str) -> None:
    """As many rows in memory as the default settings allow, a frame for each block; then SIGKILL."""
    wanted = int(rows)
    store = open_store(
        Path(path),
        engine=engine,
        durability="buffered",
        flush_interval_seconds=3600.0,
        overlay_rows_max=2 * wanted + 100,
        overlay_bytes_max=1 << 30,
    )
    views = backend_of(store).views
    while views.stats.overlay_rows < wanted:
        for _ in range(50):
            commit(store, BODY)
    os.kill(os.getpid(), signal.SIGKILL)


def follow(path: str, engine: str, height: str) -> None:
    """Prints, as JSON, when each new tip was first seen by this process, until ``height`` is there."""
    target = int(height)
    seen: list[tuple[int, int]] = []
    last = -1
    with holdfast.open(f"{engine}:{path}", read_only=True) as store:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while last < target:
            tip = store.tip
            if tip is not None and tip.height != last:
                last = tip.height
                seen.append((last, time.monotonic_ns()))
            time.sleep(0.0005)
    sys.stdout.write(json.dumps(seen))
    sys.stdout.flush()


def verify(path: str, level: str, jobs: str) -> None:
    """Seconds and processor seconds (children included) of a verification, as an operator runs it: in a new process."""
    from holdfast.recovery import verify_store

    before = _processor_seconds()
    report = verify_store(path, level=cast("Level", level), jobs=int(jobs))
    if not report.ok:
        raise RuntimeError(f"the store is not sound at level {level}: {report.problems[:1]}")
    _say({"seconds": report.seconds, "processor": _processor_seconds() - before})


def _processor_seconds() -> float:
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in found)


JOBS: dict[str, Callable[..., None]] = {
    "make": make,
    "open": open_once,
    "die-committing": die_committing,
    "die-full": die_full,
    "follow": follow,
    "verify": verify,
}

if __name__ == "__main__":
    JOBS[sys.argv[1]](*sys.argv[2:])
