"""The cache of state rows: what each policy hits, and reads from every place a row can be in."""

from __future__ import annotations

import random
import threading
import time
from bisect import bisect
from collections.abc import Callable
from itertools import accumulate

from holdfast.engine.open import open_engine
from holdfast.views.api import CachePolicy, FrameLayers, Layer, Rows, ViewOptions
from holdfast.views.cache import ENTRY_COST_BYTES, RowCache
from holdfast.views.overlay import MISSING
from holdfast.views.tables import STATE, Table
from holdfast.views.views import Views

from .data import pool
from .measure import Bar, Plan, Result, Row, alternate, latency_row, median, rate_row

__all__ = ["run"]

MIB = 1024 * 1024
BUDGET_BYTES = 16 * MIB
VALUE_BYTES = 62
"""With keys of 34 bytes an entry has 96 bytes of its own."""
ORIGINAL_COST_BYTES = 64
"""What the system that this cache replaces counts for an entry besides key and value; the objects cost more."""
KEYS = 200_000
"""Of a full run; a shorter one has a smaller budget too."""
THREADS = 16
BLOCKS = 20
POLICIES: tuple[CachePolicy, ...] = ("lru", "lfu", "fifo")


class _Everything:
    """Every change is recorded."""

    table: Table = STATE

    def wants(self, height: int) -> bool:
        return True


def _zipf(keys: list[bytes], count: int, seed: int) -> list[bytes]:
    """Keys drawn with a chance of 1 / rank."""
    bounds = list(accumulate(1 / rank for rank in range(1, len(keys) + 1)))
    choose = random.Random(seed)
    shuffled = choose.sample(keys, len(keys))
    return [shuffled[bisect(bounds, choose.random() * bounds[-1])] for _ in range(count)]


def _hit_rate(policy: CachePolicy, reads: list[bytes], budget_bytes: int) -> tuple[float, float]:
    """Share of hits in the second half of the reads, and microseconds for each read, fills included."""
    cache = RowCache(budget_bytes, policy)
    value = bytes(VALUE_BYTES)
    get, fill = cache.get, cache.fill
    hits, half = 0, len(reads) // 2
    begun = time.perf_counter()
    for at, key in enumerate(reads):
        if get(key, MISSING) is MISSING:
            fill(key, value, cache.epoch)
        elif at >= half:
            hits += 1
    return hits / half, (time.perf_counter() - begun) / len(reads) * 1e6


def _together(get: Callable[[bytes], object], keys: list[bytes], count: int) -> float:
    """Reads per second of all threads."""
    gate = threading.Barrier(THREADS + 1)

    def read(start: int) -> None:
        gate.wait()
        for at in range(start, start + count):
            get(keys[at % len(keys)])

    threads = [threading.Thread(target=read, args=(number * 97,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    gate.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    return THREADS * count / (time.perf_counter() - begun)


def _loop(get: Callable[[bytes], object], keys: list[bytes], rounds: int) -> list[float]:
    """Reads per second of one thread, a value for each round, without a clock between reads."""
    rates = []
    for _ in range(rounds):
        begun = time.perf_counter()
        for key in keys:
            get(key)
        rates.append(len(keys) / (time.perf_counter() - begun))
    return rates


def run(plan: Plan) -> Result:
    """Zipf(1.0) over the keys; then hot, overlay, engine and historical reads of views over RocksDB."""
    count, reads, per_round, rounds = plan.pick(
        (KEYS, 3_000_000, 50_000, 9), (50_000, 200_000, 10_000, 5), (300, 600, 50, 2)
    )
    result = Result("cache")
    keys = [STATE.prefix + number.to_bytes(32, "big") for number in range(count)]
    drawn = _zipf(keys, reads, 1)
    budget = BUDGET_BYTES * count // KEYS
    shares: list[float] = []
    for policy in POLICIES:
        share, cost = _hit_rate(policy, drawn, budget)
        result.rows.append(Row(f"hit rate, {policy}", "%", share * 100, None, share * 100, share * 100, 1))
        shares.append(share * 100)
        result.rows.append(Row(f"read with fill, {policy}", "us", cost, None, cost, cost, 1))
    result.bars.append(Bar("the best hit rate, %", max(shares), 90, at_least=True))
    entry = 34 + VALUE_BYTES
    share, _ = _hit_rate("lfu", drawn, budget * (entry + ENTRY_COST_BYTES) // (entry + ORIGINAL_COST_BYTES))
    name = f"hit rate, lfu, an entry counted as key + value + {ORIGINAL_COST_BYTES} B"
    result.rows.append(Row(name, "%", share * 100, None, share * 100, share * 100, 1))
    body = pool(VALUE_BYTES)
    engine = open_engine("rocksdb", plan.directory / "engine", create=True)
    try:
        for counted in (False, True):
            options = ViewOptions(cache_bytes=BUDGET_BYTES, cache_stats=counted, overlay_rows_max=10**6)
            views = Views.open(
                engine, options=options, frame_digest=lambda _: bytes(32), history=_Everything(), tip_height=int
            )
            if not counted:
                _fill(views, keys, body)
            _read(result, views, keys, per_round, rounds, counted=counted)
            views.close(flush=False)
    finally:
        engine.close()
    hot = median(_values(result, "hot, one thread"))
    result.bars.append(Bar("a hot row, one thread, reads/s", hot, 1_200_000, at_least=True))
    result.bars.append(
        Bar("hot rows, 16 threads, reads/s", median(_values(result, "hot, 16 threads")), 500_000, at_least=True)
    )
    result.bars.append(
        Bar("an old height, reads/s", median(_values(result, "at an old height")), 50_000, at_least=True)
    )
    result.notes.append(f"{count:,} keys of 32 bytes, values of {VALUE_BYTES} bytes, budget {budget / MIB:.1f} MiB")
    return result


def _values(result: Result, name: str) -> list[float]:
    return [row.median for row in result.rows if row.name == name and row.unit == "/s"]


def _fill(views: Views, keys: list[bytes], body: bytes) -> None:
    """Every key is written once, and a tenth of them again in each of the later blocks; all of it is flushed."""
    choose = random.Random(2)
    for height in range(1, BLOCKS + 1):
        rows: Rows = dict.fromkeys(keys if height == 1 else choose.sample(keys, len(keys) // 10), body[:VALUE_BYTES])
        block = (height, height.to_bytes(32, "big"))
        views.publish(FrameLayers(height, [Layer({}, rows, block)], lambda: b"20", max(0, height - 4)))
        views.set_visible(height)
    views.flush()


def _read(result: Result, views: Views, keys: list[bytes], per_round: int, rounds: int, *, counted: bool) -> None:
    choose = random.Random(4)
    get = views.get_state
    hot = choose.sample(keys, min(10_000, len(keys)))
    for key in hot:
        get(key)
    loop = [choose.choice(hot) for _ in range(4 * per_round)]
    suffix = ", counted" if counted else ""
    rates = _loop(get, loop, rounds)
    result.rows.append(Row(f"hot, one thread{suffix}", "/s", median(rates), None, min(rates), max(rates), rounds))
    shared = [_together(get, hot, per_round // 2) for _ in range(rounds)]
    result.rows.append(Row(f"hot, 16 threads{suffix}", "/s", median(shared), None, min(shared), max(shared), rounds))
    if counted:
        return
    cold = [choose.choice(keys) for _ in range((rounds + 1) * per_round)]
    found = alternate(
        {
            "engine": lambda number: views.get(cold[number]),
            "old": lambda number: views.read_at(cold[number], BLOCKS // 2),
        },
        rounds=rounds,
        per_round=per_round // 5,
        warm_up=per_round // 5,
    )
    result.rows += [rate_row("from the engine", found["engine"]), rate_row("at an old height", found["old"])]
    result.rows += [latency_row("from the engine", found["engine"]), latency_row("at an old height", found["old"])]
    rows: Rows = dict.fromkeys(hot, b"overlay")
    views.publish(FrameLayers(BLOCKS + 1, [Layer({}, rows, (BLOCKS + 1, bytes(32)))], lambda: b"21", 0))
    views.set_visible(BLOCKS + 1)
    rates = _loop(get, loop, rounds)
    result.rows.append(Row("from the overlay", "/s", median(rates), None, min(rates), max(rates), rounds))
