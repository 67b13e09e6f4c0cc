"""What processes of the benchmarks of the state do; ``state_child`` starts them, JSON goes in and comes out."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil

import holdfast
from holdfast.merkle.api import JMT_SHA256
from holdfast.merkle.backend import backend
from holdfast.state.image import image_path

from .data import backend_of
from .state_child import Found
from .state_data import ABSORBING, Maker, commit_changes, fill_state, first_value, key, open_state

__all__ = ["Clock", "burst", "die", "fill", "forget_image", "memory", "open_once", "root_from_nothing", "sustained"]


class Clock:
    """What each commit took: seconds, processor of the thread and of the process."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.thread: list[float] = []
        self.process: list[float] = []

    def commit(self, store: holdfast.Store, changes: dict[bytes, bytes | None]) -> None:
        """One more durable block."""
        thread, process, begun = time.thread_time(), time.process_time(), time.perf_counter()
        commit_changes(store, changes)
        self.seconds.append(time.perf_counter() - begun)
        self.thread.append(time.thread_time() - thread)
        self.process.append(time.process_time() - process)


def fill(path: str, keys: int, settings: Found) -> Found:
    """A store with this many keys, closed."""
    begun = time.perf_counter()
    fill_state(Path(path), keys, **settings)
    return {"seconds": time.perf_counter() - begun}


def burst(path: str, keys: int, per_block: int, blocks: int, rounds: int, settings: Found) -> Found:
    """Rounds of ``blocks`` durable commits back to back; between rounds everything is flushed."""
    maker = Maker(keys, per_block)
    clock = Clock()
    rates, flushes = [], []
    with open_state(Path(path), **settings) as store:
        tip = store.tip
        assert tip is not None
        for number in range(rounds):
            first = tip.height + number * blocks
            made = [maker.changes(block) for block in range(first, first + blocks)]
            begun = time.perf_counter()
            for changes in made:
                clock.commit(store, changes)
            committed = time.perf_counter()
            store.flush()
            rates.append(blocks * per_block / (committed - begun))
            flushes.append(time.perf_counter() - committed)
    return {"rates": rates, "flushes": flushes, **vars(clock)}


def sustained(path: str, keys: int, per_block: int, blocks: int, paced: int, share: float, settings: Found) -> Found:
    """Durable commits back to back until all is flushed; then ``paced`` commits at ``share`` of that rate."""
    maker = Maker(keys, per_block)
    maker.prepare()
    clock, even = Clock(), Clock()
    late = []
    process = psutil.Process()
    resident = 0
    with open_state(Path(path), **settings) as store:
        tip = store.tip
        assert tip is not None
        cpu, begun = time.process_time(), time.perf_counter()
        for block in range(tip.height, tip.height + blocks):
            clock.commit(store, maker.changes(block))
            resident = max(resident, process.memory_info().rss)
        committed = time.perf_counter()
        store.flush()
        flushed = time.perf_counter()
        cpu = time.process_time() - cpu
        stats = backend_of(store).views.stats
        rate = blocks * per_block / (flushed - begun)
        period = per_block / (rate * share)
        due = time.perf_counter()
        for block in range(tip.height + blocks, tip.height + blocks + paced):
            changes = maker.changes(block)
            due += period
            time.sleep(max(0.0, due - time.perf_counter()))
            even.commit(store, changes)
            late.append(time.perf_counter() - due)
    return {
        **vars(clock),
        "rate": rate,
        "committed_rate": blocks * per_block / (committed - begun),
        "cpu": cpu,
        "rows_flushed": stats.rows_flushed,
        "flushes": stats.flushes,
        "flush_seconds": stats.flush_seconds,
        "memory": resident,
        "even": even.seconds,
        "late": late,
    }


def open_once(path: str) -> Found:
    """How long ``open`` takes until root and a value can be read, and what it did."""
    begun = time.perf_counter()
    store = open_state(Path(path))
    root = store.state.root
    value = store.state.get(key(0))
    opened = time.perf_counter() - begun
    stats = store.recovery
    begun = time.perf_counter()
    store.close()
    return {
        "open": opened,
        "close": time.perf_counter() - begun,
        "how": stats.tree,
        "replayed": stats.frames_replayed,
        "root": root.hex(),
        "value": None if value is None else value.hex(),
    }


def die(path: str, keys: int, per_block: int, blocks: int) -> Found:
    """``blocks`` durable commits that no flush takes, also not to prune; then SIGKILL."""
    maker = Maker(keys, per_block)
    store = open_state(Path(path), **(ABSORBING | {"history_blocks": 0}))
    tip = store.tip
    assert tip is not None
    for block in range(tip.height, tip.height + blocks):
        commit_changes(store, maker.changes(block))
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def forget_image(path: str) -> Found:
    """The image of the tree is gone, as after a crash that lost it."""
    image_path(Path(path)).unlink()
    return {}


def memory(path: str, per_block: int, blocks: int) -> Found:
    """Resident memory of a fresh process before it opens the store, with it open, and after commits and a flush."""
    process = psutil.Process()
    maker = Maker(per_block, per_block)
    before = process.memory_info().rss
    with open_state(Path(path)) as store:
        opened = process.memory_info().rss
        most = opened
        for block in range(blocks):
            commit_changes(store, maker.changes(block))
            most = max(most, process.memory_info().rss)
        store.flush()
        after = process.memory_info().rss
        found = store.state.statistics()
    return {
        "before": before,
        "opened": opened,
        "most": most,
        "after": after,
        "tree_bytes": found.get("tree_bytes"),
        "keys": found.get("keys"),
    }


def root_from_nothing(keys: int, rounds: int) -> Found:
    """Seconds until the root of ``keys`` rows is known, from the rows."""
    rows = [(key(number), first_value(number)) for number in range(keys)]
    tree = backend()
    seconds = []
    for _ in range(rounds):
        begun = time.perf_counter()
        tree.build(JMT_SHA256, [tree.hash_rows(JMT_SHA256, rows)])
        seconds.append(time.perf_counter() - begun)
    return {"seconds": seconds}
