"""Backups: a second one after a hundredth of new blocks, commits beside one, and a restore beside a copy, both cold.

Bodies do not compress and no two are alike, so a backup has nothing to save on them.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import holdfast
from holdfast.backup import BackupRepository, create_backup, open_repository, restore_backup, verify_backup
from holdfast.types import ZERO_HASH, Block

from .child import environment
from .data import CHAIN_TIME, HEADER, PRODUCER, block_hash, commit, open_store
from .measure import Bar, Plan, Result, median, row

__all__ = ["run"]

BODY_BYTES = 16 * 1024
BATCH = 256


def _grow(store: holdfast.Store, count: int) -> None:
    """The store has ``count`` more blocks."""
    height = 0 if store.tip is None else store.tip.height + 1
    for start in range(height, height + count, BATCH):
        store.add_many(list(_blocks(start, min(start + BATCH, height + count))), validate=False)


def _blocks(start: int, stop: int) -> Iterator[Block]:
    for height in range(start, stop):
        parent = block_hash(height - 1) if height else ZERO_HASH
        body = random.Random(height).randbytes(BODY_BYTES)
        yield Block(block_hash(height), parent, height, HEADER, body, CHAIN_TIME + height, 1, PRODUCER)


def _commits(store: holdfast.Store, count: int) -> float:
    """Microseconds of a commit, as the mean of ``count``."""
    bodies = [random.Random(number).randbytes(BODY_BYTES) for number in range(count)]
    begun = time.perf_counter()
    for body in bodies:
        commit(store, body)
    return (time.perf_counter() - begun) * 1e6 / count


class _Enough(Exception):
    """The commits are over, and the backup beside them with them."""


def _in_this_process(store: holdfast.Store, place: Path, over: threading.Event) -> None:
    """One first backup after the other, as a program makes them of its own store."""

    def step(_done: int, _total: int) -> None:
        if over.is_set():
            raise _Enough

    with contextlib.suppress(_Enough):
        while not over.is_set():
            create_backup(store, open_repository(place, create=True), progress=step)
            shutil.rmtree(place)


def _in_another_process(store: holdfast.Store, place: Path, over: threading.Event) -> None:
    """The same with the command as it is: it sees that the store is open."""
    command = [sys.executable, "-m", "holdfast", "backup", "create", "-d", str(store.path), "-r", str(place)]
    while not over.is_set():
        run = subprocess.Popen(
            command,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while run.poll() is None and not over.wait(0.02):
            pass
        run.terminate()
        run.wait()
        shutil.rmtree(place, ignore_errors=True)


def _beside(
    store: holdfast.Store, place: Path, back_up: Callable[[holdfast.Store, Path, threading.Event], None], count: int
) -> tuple[float, float]:
    """Microseconds of a commit alone (before and after), and while first backups are made all the time."""
    before = _commits(store, count)
    over = threading.Event()
    worker = threading.Thread(target=back_up, args=(store, place, over))
    worker.start()
    try:
        while worker.is_alive() and not any(place.glob("chunks/*/*")):  # an interpreter that starts is no backup yet
            _commits(store, max(1, count // 20))
        beside = _commits(store, count)
    finally:
        over.set()
        worker.join()
        shutil.rmtree(place, ignore_errors=True)
    return (before + _commits(store, count)) / 2, beside


def _cold(directory: Path) -> None:
    """Nothing of the files below ``directory`` is in the page cache."""
    os.sync()
    for path in directory.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)


def _restored(repository: BackupRepository, name: str, target: Path) -> tuple[float, float]:
    """Seconds until the files were there, checked and durable; and until the store was, its views made."""
    _cold(Path(repository.place))
    begun = time.perf_counter()
    files = restore_backup(repository, name, target).files_seconds
    whole = time.perf_counter() - begun
    shutil.rmtree(target)
    return files, whole


def _copied(path: Path, target: Path) -> float:
    """Seconds of ``cp -r`` of the store, views and all, and a sync."""
    _cold(path)
    begun = time.perf_counter()
    subprocess.run(["cp", "-r", str(path), str(target)], check=True)
    subprocess.run(["sync", "-f", str(target)], check=True)
    found = time.perf_counter() - begun
    shutil.rmtree(target)
    return found


def run(plan: Plan) -> Result:
    """A store of ``blocks`` of 16 KB, which stays open while a hundredth of that is added and backed up."""
    blocks, commits, rounds = plan.pick((64_000, 4_000, 5), (6_000, 400, 3), (40, 4, 1))
    result = Result("backup")
    path, place = plan.directory / "store", plan.directory / "repository"
    repository = open_repository(place, create=True)
    seconds: list[float] = []
    moved: list[float] = []
    with open_store(path) as store:
        _grow(store, blocks)
    first = create_backup(path, repository)
    with open_store(path) as store:
        for _ in range(rounds):
            _grow(store, max(1, blocks // 100))
            second = create_backup(path, repository, bytes_per_second=0)  # as the first, which nobody waited for
            seconds.append(second.seconds)
            moved.append(100 * second.written_bytes / first.manifest.totals.stored_bytes)
    restores, copies = [], []
    verify_backup(repository, second.manifest.name)  # as every scheduled run does
    for number in range(rounds):  # before the commits: what is copied is what is restored
        restores.append(_restored(repository, second.manifest.name, plan.directory / f"restored-{number}"))
        copies.append(_copied(path, plan.directory / f"copied-{number}"))
    with open_store(path) as store:
        beside = {
            name: [_beside(store, plan.directory / "beside", back_up, commits) for _ in range(rounds)]
            for name, back_up in (("this process", _in_this_process), ("another process", _in_another_process))
        }
    result.rows = [
        row("first backup", "s", [first.seconds]),
        row("backup after 1 % more blocks", "s", seconds),
        row("restore, files", "s", [files for files, _ in restores]),
        row("restore, views included", "s", [whole for _, whole in restores]),
        row("cp -r and sync of the store", "s", copies),
    ]
    result.bars = [
        Bar("bytes moved by a backup after 1 % more blocks, % of the first", median(moved), 1.5, False),
        Bar("time of a backup after 1 % more blocks, % of the first", 100 * median(seconds) / first.seconds, 5, False),
    ]
    for name, pairs in beside.items():
        result.rows.append(row(f"commit beside a backup in {name}", "us", [two for _, two in pairs]))
        slower = median([100 * (two / one - 1) for one, two in pairs])
        result.bars.append(Bar(f"commits slower beside a backup in {name}, %", slower, 10, False))
    result.rows.append(row("commit alone", "us", [one for pairs in beside.values() for one, _ in pairs]))
    for name, index in (("its files", 0), ("the whole restore, views made", 1)):
        ratio = median([100 * copy / times[index] for copy, times in zip(copies, restores, strict=True)])
        result.bars.append(Bar(f"speed of {name}, % of cp -r and sync", ratio, 60, True))
    result.notes.append("a copy makes no views and checks nothing; the files of a restore are checked chunk by chunk")
    return result
