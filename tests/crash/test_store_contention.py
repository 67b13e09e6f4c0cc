"""Who may open a store: one process at a time, at once after a kill, never the child of a fork; and a full disk."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.errors import HoldfastError, OutOfSpace, PoisonedError
from tests.crash.matrix import met
from tests.crash.support import (
    ENGINES,
    Agent,
    Model,
    check_deep,
    check_frontier,
    open_store,
    perform,
    picture_of,
    report,
)

SEED = 31


@pytest.fixture
def agents() -> Iterator[list[Agent]]:
    started = [Agent() for _ in range(8)]
    yield started
    for each in started:
        each.close()


@pytest.mark.crash
@pytest.mark.parametrize("engine", ENGINES)
def test_one_of_many_wins(agents: list[Agent], engine: str, tmp_path: Path, crash_rounds: int) -> None:
    """2 to 8 processes open at the same moment, also a store that is not there yet; the holder is killed."""
    counts: Counter[str] = Counter()
    for number in range(max(6, crash_rounds // 5)):
        url = f"{engine}:{tmp_path / str(number // 3)}"
        racers = agents[: 2 + number % 7]
        marks = tmp_path / f"marks {number}"
        marks.mkdir()
        outcomes: list[str] = []
        slow = 0.2 if number % 5 == 1 else 0.0
        arguments: dict[str, object] = {"url": url, "start": time.time() + 0.1, "marks": str(marks), "slow": slow}

        def race(agent: Agent, arguments: dict[str, object] = arguments, outcomes: list[str] = outcomes) -> None:
            outcome = agent.run("race", arguments)
            outcomes.extend(outcome.failure or line for line in outcome.lines)

        threads = [threading.Thread(target=race, args=(agent,)) for agent in racers]
        for thread in threads:
            thread.start()
        while len(outcomes) + len(list(marks.iterdir())) < len(racers):
            assert time.time() < float(str(arguments["start"])) + 60, f"no answer: {outcomes}"
            time.sleep(0.005)
        (marks / "stop").touch()  # only now: every one has answered while the first one had it open
        for thread in threads:
            thread.join()
        assert len(outcomes) == len(racers), outcomes
        winners = [line.split()[1] for line in outcomes if line.startswith("w")]
        losers = [line for line in outcomes if line.startswith("l")]
        assert len(winners) == 1, f"{len(winners)} processes have the store open: {outcomes}"
        for line in losers:
            assert line.split()[1:] == [winners[0], socket.gethostname()], f"{line}, and it was {winners}"
        with open_store(url) as store:  # at once: the lock died with its holder
            assert store.recovery.seconds < 5
        counts["races"] += 1
        counts["refused"] += len(losers)
    report(f"open, {engine}", counts, at_least={"refused": 10}, rows={16: "refused"})


@pytest.mark.crash
def test_the_child_of_a_fork_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    script = """
import os, sys
from holdfast.errors import ClosedError
from tests.crash.support import Model, open_store, perform, check_frontier
store = open_store(sys.argv[1])
model = Model(31)
for _ in range(5):
    op = model.next_op(); perform(store, op); model.apply(op)
pid = os.fork()
if pid == 0:
    refused = 0
    for call in (lambda: store.tip, lambda: perform(store, model.next_op()), lambda: list(store.blocks.canonical())):
        try:
            call()
        except ClosedError:
            refused += 1
    store.close()
    os._exit(refused)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
for _ in range(5):
    op = model.next_op(); perform(store, op); model.apply(op)
check_frontier(store, model, ahead=0)
store.close()
"""
    for engine in ENGINES:
        url = f"{engine}:{tmp_path / engine}"
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", script, url], env=_environment(), timeout=60)
        assert done.returncode == 0
        with open_store(url) as store:
            assert check_frontier(store, Model(SEED).advance(10), ahead=0) == 10
        met(16, 3)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.crash
@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_full_disk_loses_nothing(small_disk: Path, engine: str, guarded: bool) -> None:
    """Fill, be refused, make room, go on: three times. The guard's reserve of so small a disk may not hold a flush."""
    reserve = small_disk_bytes(small_disk) // 20 if guarded else 0
    url = f"{engine}:{small_disk / 'store'}"
    ballast = small_disk / "ballast"
    model = Model(SEED, body_max=4000)
    counts: Counter[str] = Counter()
    for turn in range(3):
        with open_store(url) as store:
            check_frontier(store, model, ahead=1 if turn else 0)
        free = os.statvfs(small_disk).f_bavail * 4096
        ballast.write_bytes(bytes(max(0, free - 300 * 1024 - reserve)))
        refused = _fill(url, model, counts, reserve)
        counts[type(refused).__name__] += 1
        assert isinstance(refused, (OutOfSpace, PoisonedError)), refused
        ballast.unlink()
        with open_store(url) as store:
            check_frontier(store, model, ahead=1)
            check_deep(store, model)
            op = model.next_op()
            perform(store, op)
            model.apply(op)
    name = f"full disk, {engine}" + (", guarded" if guarded else "")
    report(name, counts, at_least={"operations": 10, "OutOfSpace": 1}, rows={11: "OutOfSpace"})


def small_disk_bytes(place: Path) -> int:
    """Size of the file system."""
    status = os.statvfs(place)
    return status.f_blocks * status.f_frsize


def _fill(url: str, model: Model, counts: Counter[str], reserve: int) -> HoldfastError:
    """Operations until one is refused; the error, after the store was seen to show just what was acknowledged."""
    store = None
    try:
        store = open_store(url, disk_reserve_bytes=reserve)
        while True:
            op = model.next_op()
            perform(store, op)
            model.apply(op)
            counts["operations"] += 1
            assert counts["operations"] < 3000, "the disk does not fill"
    except HoldfastError as error:
        if store is not None:
            try:
                shown = picture_of(store)
            except PoisonedError:
                counts["poisoned reads"] += 1  # it was the flush that met the full disk: the engine is to be reopened
            else:
                assert shown == model.picture(), "a refused operation has changed something"
        return error
    finally:
        if store is not None:
            try:
                store.close()
            except HoldfastError as error:
                counts[f"close: {type(error).__name__}"] += 1
