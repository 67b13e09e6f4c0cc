"""Small blocks imported in buffered mode, with everything durable at the end."""

from __future__ import annotations

import time

import psutil

from .data import backend_of, blocks, open_store, pool
from .measure import Bar, Plan, Result, median, row

__all__ = ["run"]

BODY_BYTES = 100


def run(plan: Plan) -> Result:
    """Rounds of blocks made beforehand; the time of making them does not count."""
    rounds, per_round, batch = plan.pick((20, 20_000, 4096), (6, 10_000, 4096), (2, 200, 64))
    result = Result("smallblocks")
    source = pool(1 << 16)
    rates: list[float] = []
    processor: list[float] = []
    memory: list[float] = []
    process = psutil.Process()
    spent = 0.0
    with open_store(plan.directory / "store", durability="buffered") as store:
        for number in range(rounds):
            made = list(blocks(number * per_round, per_round, body_bytes=BODY_BYTES, source=source))
            cpu = time.thread_time()
            begun = time.perf_counter()
            for at in range(0, per_round, batch):
                store.add_many(made[at : at + batch], validate=False)
            elapsed = time.perf_counter() - begun
            spent += elapsed
            rates.append(per_round / elapsed)
            memory.append(process.memory_info().rss / 1e6)
            processor.append((time.thread_time() - cpu) / per_round * 1e6)
        begun = time.perf_counter()
        store.sync()
        synced = time.perf_counter()
        store.flush()
        flushed = time.perf_counter()
        views = backend_of(store).views.stats
    total = rounds * per_round
    sustained = total / (spent + synced - begun)
    result.rows = [
        row("add_many, by round", "blocks/s", rates),
        row("processor of a block", "us", processor),
        row("resident memory, with the blocks of a round", "MB", memory),
        row("all blocks, with the sync at the end", "blocks/s", [sustained]),
        row("all blocks, flushed into the engine too", "blocks/s", [total / (spent + flushed - begun)]),
    ]
    result.bars = [
        Bar("median rate of a round, blocks/s", median(rates), 20_000, True),
        Bar("sustained rate, blocks/s", sustained, 20_000, True),
    ]
    result.notes.append(f"{views.flushes} flushes of {views.rows_flushed:,} rows took {views.flush_seconds:.1f} s")
    result.notes.append("MB after each round: " + " ".join(f"{size:.0f}" for size in memory))
    return result
