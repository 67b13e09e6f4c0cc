"""Reads and proofs of the state through the public API, and the root of a state from nothing."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import holdfast

from .measure import Bar, Plan, Result, median, row
from .state_child import Found, run_job, trees
from .state_data import ABSORBING, Maker, commit_changes, first_value, key, open_state
from .state_jobs import fill, root_from_nothing

__all__ = ["run"]

THREADS = 16
HOT = 10_000
BACK = 16
"""Blocks above the height that is read and proved."""


def _loop(get: Callable[[bytes], object], wanted: list[bytes], rounds: int) -> list[float]:
    """Reads per second of one thread, a value for each round."""
    rates = []
    size = len(wanted) // rounds
    for number in range(rounds):
        part = wanted[number * size : (number + 1) * size]
        begun = time.perf_counter()
        for item in part:
            get(item)
        rates.append(size / (time.perf_counter() - begun))
    return rates


def _together(get: Callable[[bytes], object], hot: list[bytes], count: int) -> float:
    """Reads per second of all threads, from the first read of any of them to the last."""
    gate = threading.Barrier(THREADS)
    spans: list[tuple[float, float]] = []

    def read(start: int) -> None:
        mine = [hot[(start + at) % len(hot)] for at in range(count)]
        gate.wait()
        begun = time.perf_counter()
        for item in mine:
            get(item)
        spans.append((begun, time.perf_counter()))

    threads = [threading.Thread(target=read, args=(number * 97,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return THREADS * count / (max(end for _, end in spans) - min(begun for begun, _ in spans))


def _each(call: Callable[[int], object], count: int) -> list[float]:
    """Microseconds of each call."""
    times = []
    for number in range(count):
        begun = time.perf_counter()
        call(number)
        times.append((time.perf_counter() - begun) * 1e6)
    return times


def reads(path: str, keys: int, per_block: int, count: int, rounds: int, proofs: int) -> Found:
    """Rates of reads by place and microseconds of proofs by kind, of a store that was just opened."""
    choose = random.Random(7)
    maker = Maker(keys, per_block)
    hot = choose.sample([key(number) for number in range(keys)], min(HOT, keys // 2))
    some = [key(choose.randrange(keys)) for _ in range(count)]
    found: Found = {}
    with open_state(Path(path), state_cache_bytes=0) as store:
        found["engine, no cache"] = _loop(store.state.get, some, rounds)
    with open_state(Path(path), **ABSORBING) as store:
        get = store.state.get
        found["engine, cache misses"] = _loop(get, some, rounds)
        for item in hot:
            get(item)
        again = [choose.choice(hot) for _ in range(4 * count)]
        found["hot"] = _loop(get, again, rounds)
        found["hot, 16 threads"] = [_together(get, hot, count) for _ in range(rounds)]
        tip = store.tip
        assert tip is not None
        for block in range(tip.height, tip.height + BACK):
            commit_changes(store, maker.changes(block))
        store.flush()
        at = store.state.at(tip.height)
        assert at.get(key(0)) == first_value(0)
        found["historical"] = _loop(at.get, some, rounds)
        commit_changes(store, maker.changes(tip.height))
        fresh = [choose.choice(list(maker.changes(tip.height))) for _ in range(2 * rounds)]
        fresh = [choose.choice(fresh) for _ in range(4 * count)]
        found["overlay"] = _loop(store.state.get, fresh, rounds)
        found["proofs"] = _proofs(store, tip.height, [choose.choice(some) for _ in range(proofs)])
    return found


def _proofs(store: holdfast.Store, height: int, wanted: list[bytes]) -> dict[str, list[float]]:
    state = store.state
    for item in wanted[:10]:
        assert state.prove(item).value is not None
    first = _each(lambda _: state.prove(wanted[0], height=height), 1)
    count = len(wanted)
    hundreds = [list(dict.fromkeys(wanted[at : at + 100])) for at in range(max(1, count // 20))]
    return {
        "proof at the tip": _each(lambda at: state.prove(wanted[at]), count),
        "proof of absence": _each(lambda at: state.prove(b"absent %d" % at), count),
        "first proof at a height": first,
        "later proofs at it": _each(lambda at: state.prove(wanted[at], height=height), count),
        "proof of 100 keys": _each(lambda at: state.prove_many(hundreds[at]), len(hundreds)),
    }


def run(plan: Plan) -> Result:
    """The kernel with all keys, the pure twin with fewer."""
    result = Result("statereads")
    sizes = {
        "kernel": plan.pick(
            (1_000_000, 10_000, 50_000, 9, 2_000), (100_000, 10_000, 20_000, 5, 500), (2_000, 500, 60, 2, 20)
        ),
        "pure": plan.pick(
            (100_000, 10_000, 50_000, 5, 2_000), (20_000, 2_000, 10_000, 3, 200), (1_000, 200, 60, 2, 20)
        ),
    }
    cold, rounds = plan.pick((100_000, 5), (100_000, 3), (1_000, 2))
    for tree in trees():
        keys, per_block, count, reading, proofs = sizes[tree]
        nothing = run_job(root_from_nothing, tree=tree, keys=cold, rounds=rounds)["seconds"]
        result.rows.append(row(f"{tree}: root of {cold:,} keys from nothing", "ms", [one * 1e3 for one in nothing]))
        limit = 0.1 if tree == "kernel" else 1.0
        result.bars.append(Bar(f"{tree}: root of {cold:,} keys from nothing, s", median(nothing), limit, False))
        path = str(plan.directory / tree)
        run_job(fill, tree=tree, path=path, keys=keys, settings={})
        found = run_job(
            reads, tree=tree, path=path, keys=keys, per_block=per_block, count=count, rounds=reading, proofs=proofs
        )
        proved = found.pop("proofs")
        result.rows += [row(f"{tree}: reads, {name}", "/s", rates) for name, rates in found.items()]
        result.rows += [row(f"{tree}: {name}", "us", times) for name, times in proved.items()]
        if tree == "kernel":
            _judge(result, found, proved)
        result.notes.append(f"{tree}: {keys:,} keys, {per_block:,} changes in a block")
    result.notes.append(f"the height that is read and proved lies {BACK} blocks below the tip")
    return result


def _judge(result: Result, found: Found, proved: dict[str, list[float]]) -> None:
    bars = {"hot": 1_000_000, "hot, 16 threads": 500_000, "engine, no cache": 300_000, "overlay": 300_000}
    for name, limit in (bars | {"historical": 50_000}).items():
        result.bars.append(Bar(f"reads, {name}, /s", median(found[name]), limit, True))
    result.bars.append(Bar("a proof at the tip, us", median(proved["proof at the tip"]), 50, False))
