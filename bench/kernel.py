"""The tree over the state: the native kernel, and the pure twin beside it with smaller counts.

A block is a dictionary of changes, keys of 52 and values of 32 bytes; the time of ``update`` counts, what it takes to
make the dictionary and to drop the version before does not. Two threads.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator
from itertools import count

import psutil

from holdfast.merkle.api import JMT_SHA256, Backend, Tree
from holdfast.merkle.backend import backend_named
from holdfast.merkle.kernel import KernelBackend

from .measure import Bar, Plan, Result, row

__all__ = ["run"]

THREADS = 2
PART = 50_000
Changes = dict[bytes, bytes | None]


def _key(number: int) -> bytes:
    return b"contract-address-20b:%031d" % number


def _parts(backend: Backend, keys: int) -> Iterator[bytes]:
    for first in range(0, keys, PART):
        numbers = range(first, min(keys, first + PART))
        yield backend.hash_rows(JMT_SHA256, [(_key(number), b"%032d" % number) for number in numbers])


def _updates(rng: random.Random, keys: int, size: int) -> Changes:
    return {_key(number): rng.randbytes(32) for number in rng.sample(range(keys), size)}


def _rates(tree: Tree, blocks: Iterator[Changes], rounds: int) -> tuple[Tree, list[float], list[float]]:
    """The tree afterwards; changes a second, and microseconds of processor for a change, by block."""
    rates, processor = [], []
    for _ in range(rounds):
        changes = next(blocks)
        cpu, begun = time.process_time(), time.perf_counter()
        found = tree.update(changes)
        rates.append(len(changes) / (time.perf_counter() - begun))
        processor.append((time.process_time() - cpu) / len(changes) * 1e6)
        tree = found.tree
    return tree, rates, processor


def _workload(result: Result, backend: Backend, keys: int, size: int, rounds: int) -> dict[str, list[float]]:
    """Rows of a tree of ``keys`` keys and blocks of ``size`` changes; the rates by kind."""
    rng = random.Random(keys)
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    begun = time.perf_counter()
    tree = backend.build(JMT_SHA256, _parts(backend, keys))
    built = time.perf_counter() - begun
    grown = process.memory_info().rss - before
    name = f"{backend.name}, {keys:,} keys, {size:,} per block"
    result.rows.append(row(f"{name}: build", "keys/s", [keys / built]))
    result.rows.append(row(f"{name}: memory", "B/key", [grown / keys]))
    kinds: dict[str, Callable[[int], Changes]] = {
        "updates": lambda number: _updates(rng, keys, size),
        "inserts": lambda number: {_key(keys + number * size + at): b"new" * 10 for at in range(size)},
        "deletes": lambda number: {_key(keys + number * size + at): None for at in range(size)},
    }
    found = {}
    for kind, make in kinds.items():
        tree, found[kind], processor = _rates(tree, map(make, count()), rounds)
        result.rows.append(row(f"{name}: {kind}", "/s", found[kind]))
        result.rows.append(row(f"{name}: {kind}, processor of one", "us", processor))
    assert tree.count == keys
    return found


def _from_nothing(result: Result, backend: Backend, keys: int, rounds: int) -> list[float]:
    rows = [(_key(number), b"%032d" % number) for number in range(keys)]
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        backend.build(JMT_SHA256, [backend.hash_rows(JMT_SHA256, rows)])
        times.append((time.perf_counter() - begun) * 1000)
    result.rows.append(row(f"{backend.name}, {keys:,} keys: root from nothing", "ms", times))
    return times


def _helpers(result: Result, backend: KernelBackend, size: int, rounds: int) -> None:
    """The codec of changes and what the flush may use, against the same in Python."""
    pure = backend_named("pure")
    changes = _updates(random.Random(1), size * 2, size)
    data = pure.encode_changes(changes, list(changes))
    calls: dict[str, Callable[[], object]] = {
        "encode_changes, kernel": lambda: backend.encode_changes(changes, list(changes)),
        "encode_changes, pure": lambda: pure.encode_changes(changes, list(changes)),
        "decode_changes, kernel": lambda: backend.decode_changes(data),
        "decode_changes, pure": lambda: pure.decode_changes(data),
    }
    for name, call in calls.items():
        times = []
        for _ in range(rounds):
            begun = time.perf_counter()
            call()
            times.append((time.perf_counter() - begun) * 1e9 / size)
        result.rows.append(row(name, "ns/change", times))


def run(plan: Plan) -> Result:
    """The kernel, if it is installed, and the pure twin."""
    result = Result("kernel")
    pure = backend_named("pure")
    try:
        kernel = backend_named("kernel")
    except LookupError as error:
        result.notes.append(str(error))
    else:
        assert isinstance(kernel, KernelBackend)
        _kernel_rows(result, kernel, plan)
    keys, size, rounds = plan.pick((100_000, 2_000, 5), (20_000, 1_000, 3), (200, 20, 2))
    _workload(result, pure, keys, size, rounds)
    _from_nothing(result, pure, keys, rounds)
    return result


def _kernel_rows(result: Result, kernel: KernelBackend, plan: Plan) -> None:
    kernel.module.set_threads(THREADS)
    keys, large, size, rounds = plan.pick(
        (1_000_000, 10_000_000, 10_000, 30), (200_000, 0, 10_000, 10), (2_000, 0, 300, 2)
    )
    found = _workload(result, kernel, keys, size, rounds)
    cold = plan.pick(100_000, 100_000, 1_000)
    times = _from_nothing(result, kernel, cold, 10)
    _helpers(result, kernel, size, rounds)
    for kind, limit in (("updates", 700_000), ("inserts", 400_000), ("deletes", 400_000)):
        result.bars.append(Bar(f"best block of {kind}, {keys:,} keys, /s", max(found[kind]), limit, True))
    result.bars.append(Bar(f"best root of {cold:,} keys from nothing, ms", min(times), 100, False))
    if large:
        found = _workload(result, kernel, large, size, rounds)
        result.bars.append(Bar(f"best block of updates, {large:,} keys, /s", max(found["updates"]), 400_000, True))
    kernel.module.set_threads(0)
    result.notes.append("bars: the best block, because the machine may be shared; medians stand above")
