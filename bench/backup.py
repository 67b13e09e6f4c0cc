"""Backups: a second one after a hundredth of new blocks, commits beside one, and a restore beside a copy."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from pathlib import Path

import holdfast
from holdfast.backup import create_backup, open_repository, restore_backup

from .data import commit, fill, open_store, pool
from .measure import Bar, Plan, Result, row

__all__ = ["run"]

BODY = pool(16 * 1024)


def _commits(store: holdfast.Store, count: int) -> list[float]:
    """Microseconds of each of ``count`` commits."""
    found: list[float] = []
    for _ in range(count):
        begun = time.perf_counter()
        commit(store, BODY)
        found.append((time.perf_counter() - begun) * 1e6)
    return found


def _beside(store: holdfast.Store, path: Path, place: Path, count: int) -> tuple[list[float], list[float]]:
    """Times of commits alone, and of commits while backups are made one after another."""
    alone = _commits(store, count)
    done = threading.Event()

    def back_up() -> None:
        number = 0
        while not done.is_set():
            create_backup(path, open_repository(place / str(number), create=True))
            number += 1

    worker = threading.Thread(target=back_up)
    worker.start()
    try:
        beside = _commits(store, count)
    finally:
        done.set()
        worker.join()
    return alone, beside


def run(plan: Plan) -> Result:
    """A store of ``blocks`` of 16 KB."""
    blocks, commits = plan.pick((64_000, 5_000), (3_000, 500), (40, 5))
    result = Result("backup")
    path, place = plan.directory / "store", plan.directory / "repository"
    repository = open_repository(place, create=True)
    with open_store(path) as store:
        fill(store, blocks, body_bytes=len(BODY), batch=256)
    first = create_backup(path, repository)
    with open_store(path) as store:
        for _ in range(max(1, blocks // 100)):
            commit(store, BODY)
        second = create_backup(store, repository)
        alone, beside = _beside(store, path, plan.directory / "beside", commits)
    begun = time.perf_counter()
    restore_backup(repository, second.manifest.name, plan.directory / "restored")
    restored = time.perf_counter() - begun
    begun = time.perf_counter()
    shutil.copytree(path, plan.directory / "copied")
    subprocess.run(["sync", "-f", str(plan.directory)], check=True)
    copied = time.perf_counter() - begun
    moved = 100 * second.written_bytes / first.manifest.totals.stored_bytes
    slower = 100 * (sum(beside) / sum(alone) - 1)
    result.rows = [
        row("first backup", "s", [first.seconds]),
        row("backup after 1 % more blocks", "s", [second.seconds]),
        row("commit alone", "us", alone),
        row("commit beside a backup", "us", beside),
        row("restore, views included", "s", [restored]),
        row("cp -r and sync of the store", "s", [copied]),
    ]
    result.bars = [
        Bar("bytes moved by a backup after 1 % more blocks, % of the first", moved, 1.5, False),
        Bar("time of a backup after 1 % more blocks, % of the first", 100 * second.seconds / first.seconds, 5, False),
        Bar("commits slower beside a backup, %", slower, 10, False),
        Bar("speed of a restore, % of cp -r and sync", 100 * copied / restored, 60, True),
    ]
    result.notes.append("the page cache is as the runs before left it; drop it by hand for a cold restore")
    return result
