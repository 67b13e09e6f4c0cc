"""The engines under the views: how fast a flush fills them, and how fast a store with each of them opens."""

from __future__ import annotations

import time
from pathlib import Path

import holdfast

from .data import backend_of, fill, open_store
from .measure import Plan, Result, row

__all__ = ["run"]

ENGINES = ("rocksdb", "lmdb", "sqlite")


def _flush_rate(store: holdfast.Store, height: int) -> float:
    """Rows per second of one flush of everything up to ``height``, synced."""
    fill(store, height)
    store.sync()
    views = backend_of(store).views
    before = views.stats.rows_flushed
    begun = time.perf_counter()
    store.flush()
    return (views.stats.rows_flushed - before) / (time.perf_counter() - begun)


def _open(path: Path, engine: str) -> holdfast.Store:
    return open_store(
        path,
        engine=engine,
        durability="buffered",
        flush_interval_seconds=3600.0,
        overlay_rows_max=10_000_000,
        overlay_bytes_max=1 << 32,
    )


def run(plan: Plan) -> Result:
    """Rounds over all engines: a flush, a close, an open."""
    rounds, step = plan.pick((5, 20_000), (2, 5000), (1, 100))
    result = Result("engines")
    rates: dict[str, list[float]] = {name: [] for name in ENGINES}
    opens: dict[str, list[float]] = {name: [] for name in ENGINES}
    sizes: dict[str, int] = {}
    for number in range(rounds):
        turn = number % len(ENGINES)
        for name in ENGINES[turn:] + ENGINES[:turn]:
            path = plan.directory / name
            with _open(path, name) as store:
                rates[name].append(_flush_rate(store, (number + 1) * step))
                sizes[name] = backend_of(store).opened.engine.stats().size_bytes
            begun = time.perf_counter()
            store = _open(path, name)
            opens[name].append((time.perf_counter() - begun) * 1000)
            store.close()
    for name in ENGINES:
        result.rows.append(row(f"{name}: flush", "rows/s", rates[name]))
    for name in ENGINES:
        result.rows.append(row(f"{name}: open after a clean close", "ms", opens[name]))
    result.notes.append("bytes in the engine: " + ", ".join(f"{name} {size:,}" for name, size in sizes.items()))
    return result
