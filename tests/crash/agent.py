"""The agent of the crash tests: forks a child for each task, kills it where asked, says what became of it.

Run as ``python -m tests.crash.agent``; requests and answers are lines of JSON. The agent opens no store and starts no
thread, so its children are as good as fresh processes, without the time to start one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb  # noqa: F401 - loaded once, before the forks
import pytest
import rocksdict  # noqa: F401 - loaded once, before the forks

from holdfast.engine import lmdb as lmdb_engine  # noqa: F401 - loaded once, before the forks
from holdfast.engine import rocksdb as rocksdb_engine  # noqa: F401 - loaded once, before the forks
from holdfast.engine import sqlite as sqlite_engine  # noqa: F401 - loaded once, before the forks
from holdfast.errors import HoldfastError, StoreLocked
from holdfast.merkle.backend import backend
from holdfast.recovery import verify_store
from holdfast.store.store import Store
from tests.crash import planted, steps
from tests.crash.support import (
    SECOND,
    Model,
    check_deep,
    check_frontier,
    open_store,
    payload_of,
    perform,
    picture_of,
    second_position,
)

EXT4_SHUTDOWN, EXT4_WITHOUT_LOG = 0x8004587D, 2
"""What ext4 is asked to do as if the power had gone: not even its journal is written (``EXT4_IOC_SHUTDOWN``)."""

_models: dict[int, Model] = {}


class Child:
    """The side of a child: says lines, knows its model."""

    def __init__(self, pipe: int, model: Model | None) -> None:
        self._pipe = pipe
        self.model = model if model is not None else Model(0)

    def say(self, line: str) -> None:
        """One line, in one write: it arrives whole or not at all."""
        os.write(self._pipe, line.encode() + b"\n")


# -- tasks ----------------------------------------------------------------------------------------------------------


def grow(child: Child, *, url: str, second: int, late: bool, operations: int, threaded: bool, **_rest: Any) -> None:
    """Open, check, then work until the operations are done; every step is said before and after."""
    model = child.model
    child.say("o")
    store = open_store(url, late=late)
    child.say("d")
    found = check_frontier(store, model)
    saved = second_position(store)
    assert second <= saved <= second + 1, f"the second thread lost a record: {saved} of {second}"
    check_deep(store, model)
    stats = store.recovery
    found_by_open = [stats.frames_replayed, len(stats.discarded), stats.finished_flush, stats.views_rebuilt]
    child.say(f"r {json.dumps(found_by_open)}")
    child.say(f"s {saved}")
    child.say(f"f {found}")
    stop = threading.Event()
    thread = threading.Thread(target=_save_records, args=(child, store, saved, stop), daemon=True)
    if threaded:
        thread.start()
    for count in range(operations):
        op = model.next_op()
        child.say(f"b {model.number + 1} {op.kind}")
        perform(store, op)
        model.apply(op)
        child.say(f"a {model.number}")
        if count % 8 == 7:
            figures: Any = store.statistics()
            child.say(f"v {figures['views']['flushes']}")
            child.say(f"g {figures['journal']['segments']}")
    stop.set()
    if threaded:
        thread.join()
    child.say("c")
    store.close()
    child.say("x")


def _save_records(child: Child, store: Store, saved: int, stop: threading.Event) -> None:
    while not stop.is_set():
        saved += 1
        store.safety.save(SECOND, (saved,), payload_of(saved))
        child.say(f"s {saved}")


def check(child: Child, *, url: str, second: int, late: bool, **_rest: Any) -> None:
    """Open, check everything, close."""
    store = open_store(url, late=late)
    found = check_frontier(store, child.model)
    check_deep(store, child.model, newest=500, sample=300)
    assert second <= second_position(store) <= second + 1
    store.close()
    child.say(f"f {found}")


def rot(child: Child, *, url: str, **_rest: Any) -> None:
    """Open a damaged store: everything in it is right, or a typed error says that it is not."""
    steps.quieten()
    try:
        store = open_store(url, flush_interval_seconds=3600.0)
    except HoldfastError as error:
        child.say(f"e {error.code}")
        return
    try:
        try:
            check_frontier(store, child.model, ahead=0)
            check_deep(store, child.model, newest=1000)
        finally:
            child.say(f"r {int(store.recovery.views_rebuilt)}")
            store.close()
    except HoldfastError as error:
        child.say(f"l {error.code}")
        return
    child.say("x")


def race(child: Child, *, url: str, start: float, marks: str, slow: float, **_rest: Any) -> None:
    """Open at the moment ``start``; a winner holds the store until ``marks/stop`` and dies; a loser says who has it.

    The winner needs ``slow`` seconds until it has written its name, as on a machine that is busy.
    """
    truncate = os.ftruncate

    def truncate_later(fd: int, length: int) -> None:
        os.ftruncate = truncate
        time.sleep(slow)
        truncate(fd, length)

    os.ftruncate = truncate_later
    time.sleep(max(0.0, start - time.time()))
    try:
        open_store(url)
    except StoreLocked as error:
        child.say(f"l {error.context['holder']}")
        return
    child.say(f"w {os.getpid()}")
    Path(marks, str(os.getpid())).touch()
    while not Path(marks, "stop").exists():
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGKILL)


def power_cut(child: Child, *, url: str, place: str, cut: int, delay: float, plant: bool, **_rest: Any) -> None:
    """Work; amid operation ``cut`` the ext4 at ``place`` loses its power. Every line of work is stamped."""
    model = child.model
    if plant:
        planted.commits_without_a_sync(pytest.MonkeyPatch())
    store = open_store(url)
    near = threading.Event()

    def shut_down() -> None:
        near.wait()
        time.sleep(delay)
        directory = os.open(place, os.O_RDONLY)
        child.say(f"t {time.monotonic_ns()}")
        fcntl.ioctl(directory, EXT4_SHUTDOWN, struct.pack("I", EXT4_WITHOUT_LOG))
        child.say("x")

    thread = threading.Thread(target=shut_down, daemon=True)
    thread.start()
    try:
        for number in range(100_000):
            op = model.next_op()
            child.say(f"b {model.number + 1}")
            if number == cut:
                near.set()
            perform(store, op)
            model.apply(op)
            child.say(f"a {model.number} {time.monotonic_ns()}")
    except HoldfastError as error:
        child.say(f"e {error.code}")
    thread.join()
    os._exit(0)


def limited(child: Child, *, url: str, limits: dict[str, int], operations: int, **_rest: Any) -> None:
    """Work under limits of the system (``fsize`` in bytes, ``nofile``, ``as`` in bytes above what is in use)."""
    model = child.model
    backend()  # what is imported on first use is there
    for name, value in limits.items():
        if name == "nofile":
            value += len(os.listdir("/proc/self/fd"))
        elif name == "as":
            value += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(getattr(resource, f"RLIMIT_{name.upper()}"), (value, value))
    store = None
    try:
        store = open_store(url)
        for _ in range(operations):
            op = model.next_op()
            perform(store, op)
            model.apply(op)
            child.say(f"a {model.number}")
        store.close()
    except HoldfastError as error:
        child.say(f"e {error.code}")
        if store is not None:
            try:
                assert picture_of(store) == model.picture(), "a refused operation has changed something"
            except HoldfastError as later:
                child.say(f"l {later.code}")
            except MemoryError:
                child.say("l MemoryError")
    except MemoryError:
        child.say("e MemoryError")
    child.say("x")
    os._exit(0)  # what a full disk or a missing descriptor makes of the close is not asked


def denied(child: Child, *, url: str, user: int, read_only: bool, **_rest: Any) -> None:
    """Open as another user (or as this one, 0) where nothing may be written."""
    if user:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    try:
        store = open_store(url, read_only=read_only)
    except HoldfastError as error:
        child.say(f"e {error.code}")
        return
    assert read_only, "it was opened for writing"
    assert picture_of(store) == child.model.picture()
    store.close()
    child.say("x")


def verify(child: Child, *, url: str, level: str, **_rest: Any) -> None:
    """The store at rest has no problem."""
    result = verify_store(url.partition(":")[2], level=level)  # type: ignore[arg-type]
    assert result.ok, [str(problem) for problem in result.problems] or result
    child.say(f"k {len(result.checks)}")


def template(child: Child, *, url: str, operations: int, clean: bool, flush_at: int, **_rest: Any) -> None:
    """A store of so many operations, flushed after ``flush_at`` of them; closed, or left as a killed process leaves it.

    Every step is made by this thread: nothing depends on time.
    """
    steps.quieten()
    store = open_store(url, flush_interval_seconds=3600.0, overlay_rows_max=1_000_000)
    model = child.model
    for number in range(1, operations + 1):
        op = model.next_op()
        perform(store, op)
        model.apply(op)
        if number == flush_at:
            store.flush()
    if clean:
        store.close()
    child.say(f"a {model.number}")


def step(
    child: Child, *, url: str, plan: list[str], at: int, torn: bool, how: str, late: bool, warm: int, **_rest: Any
) -> None:
    """Die at step ``at`` of opening, of the planned operations or of closing; ``at`` 0 lists the steps instead."""
    model = child.model
    model.plan = {model.number + 1 + index: kind for index, kind in enumerate(plan)}
    steps.quieten()
    counter = steps.Steps(at, torn=torn)
    if how == "open":
        counter.armed = True
    fs = counter.install()
    store = open_store(url, late=late, fs=fs, flush_interval_seconds=3600.0, overlay_rows_max=1_000_000)
    if late:
        assert store.wait_for_indexes(30)
    counter.armed = True
    if how == "close":
        store.close()
    for count, kind in enumerate(plan):
        counter.armed = count >= warm
        op = model.next_op()
        child.say(f"b {model.number + 1} {kind} {op.kind} {op.block.work if op.block is not None else 0}")
        perform(store, op)
        model.apply(op)
        child.say(f"a {model.number}")
    counter.armed = False
    for name in counter.seen:
        child.say(f"n {name}")
    child.say("x")


def examine(child: Child, *, url: str, plan: list[str], late: bool, done: int, **_rest: Any) -> None:
    """Open after a crash: the state is the acknowledged one or the next; then the store works on and closes."""
    model = child.model
    model.plan = {model.number + 1 + index: kind for index, kind in enumerate(plan)}
    acked = model.number + done
    model.advance(acked)
    store = open_store(url, late=late, flush_interval_seconds=3600.0)
    found = check_frontier(store, model)
    check_deep(store, model, newest=30, sample=10)
    assert store.recovery.damaged_watermark_slots <= 1
    for _ in range(3):
        op = model.next_op()
        perform(store, op)
        model.apply(op)
    store.close()
    child.say(f"f {found}")
    child.say(f"k {found - acked}")


TASKS: dict[str, Callable[..., None]] = {
    "grow": grow,
    "check": check,
    "verify": verify,
    "race": race,
    "limited": limited,
    "power_cut": power_cut,
    "denied": denied,
    "rot": rot,
    "template": template,
    "step": step,
    "examine": examine,
}


# -- the agent ------------------------------------------------------------------------------------------------------


def _in_child(pipe: int, task: str, arguments: dict[str, Any]) -> None:
    child = Child(pipe, _models.get(arguments.get("seed", 0)))
    try:
        TASKS[task](child, **arguments)
    except HoldfastError as error:
        child.say("!" + json.dumps(f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
        os._exit(1)
    except BaseException:  # noqa: BLE001 - said to the parent
        child.say("!" + json.dumps(traceback.format_exc()))
        os._exit(1)
    os._exit(0)


def _run(request: dict[str, Any]) -> dict[str, Any]:
    arguments = request["arguments"]
    if "seed" in arguments:
        seed, acked, body_max = arguments["seed"], arguments["acked"], arguments.get("body_max", 200_000)
        model = _models.get(seed)
        if model is None or model.number > acked or model.body_max != body_max:
            _models.clear()
            model = _models[seed] = Model(seed, body_max=body_max)
        model.advance(acked)
    read_end, write_end = os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        os.setsid()
        _in_child(write_end, request["task"], arguments)
    os.close(write_end)
    data, killed, hung = _listen(read_end, pid, request["kill_after"], started + request["deadline"])
    os.close(read_end)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # what the child has started (the probes of engines) ends with it
    lines = data.decode().splitlines()
    return {"lines": lines, "status": status, "killed": killed, "seconds": time.monotonic() - started, "hung": hung}


def _listen(pipe: int, pid: int, kill_after: tuple[str, float] | None, deadline: float) -> tuple[bytes, bool, bool]:
    """Everything the child says until it ends or is killed."""
    data = bytearray()
    due: float | None = None
    killed = hung = False
    while True:
        limit = deadline if due is None or killed else min(due, deadline)
        ready, _, _ = select.select([pipe], [], [], max(0.0, limit - time.monotonic()))
        if ready:
            piece = os.read(pipe, 1 << 16)
            if not piece:
                return bytes(data), killed, hung
            data += piece
            if kill_after is not None and due is None:
                marker = kill_after[0].encode()
                if any(line.split(b" ")[0] == marker for line in data.splitlines()):
                    due = time.monotonic() + kill_after[1]
        if not killed and time.monotonic() >= limit:
            hung = due is None or limit < due
            os.kill(pid, signal.SIGKILL)  # not waited for yet, so the number is still the child's
            killed = True
            deadline = time.monotonic() + 10


def main() -> None:
    """Requests are answered until there are no more."""
    for line in sys.stdin:
        answer = _run(json.loads(line))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
