"""Gigabytes of generated blocks imported: how fast, and in how much memory.

Bodies are 64 KiB of random bytes. The memory counted is the resident set of the importing process, which holds the
interpreter, the store and the generator (a window over 16 MiB of random bytes). Between two gigabytes a bare file gets
256 MB, synced, as a floor for the speed.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

from .data import blocks, open_store, pool
from .measure import Bar, Plan, Result, row

__all__ = ["run"]

BODY_BYTES = 64 * 1024
BATCH = 64
MB = 1_000_000
GB = 1000 * MB
WRITE_BUFFER_MIB = 32
"""RocksDB's write buffer: its bound is fixed, and the few rows of large blocks fill it over several gigabytes."""


def _bare_rate(path: Path, size: int, source: bytes) -> float:
    """Bytes per second of writing ``size`` bytes and syncing them once."""
    chunk = source[: 4 * 1024 * 1024]
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    begun = time.perf_counter()
    for offset in range(0, size, len(chunk)):
        os.pwrite(fd, chunk, offset)
    os.fdatasync(fd)
    elapsed = time.perf_counter() - begun
    os.close(fd)
    path.unlink()
    return size / elapsed


def run(plan: Plan) -> Result:
    """One import, sampled each 100 MB."""
    total, part, floor_bytes = plan.pick((4 * GB, GB, 256 * MB), (512 * MB, 128 * MB, 64 * MB), (2 * MB, MB, MB))
    sample_each = min(100 * MB, total // 4)
    result = Result("import4g")
    source = pool(16 * 1024 * 1024)
    process = psutil.Process()
    base = process.memory_info().rss
    memory: list[tuple[int, int]] = []
    rates: list[float] = []
    floors: list[float] = []
    done = height = sampled = 0
    spent = 0.0
    marked = (0, 0.0)
    with open_store(plan.directory / "store", durability="buffered") as store:
        while done < total:
            batch = list(blocks(height, BATCH, body_bytes=BODY_BYTES, source=source))
            begun = time.perf_counter()
            store.add_many(batch, validate=False)
            spent += time.perf_counter() - begun
            height += BATCH
            done = height * BODY_BYTES
            if done - sampled >= sample_each:
                sampled = done
                memory.append((done, process.memory_info().rss))
            if done >= (len(rates) + 1) * part or done >= total:
                begun = time.perf_counter()
                store.sync()
                spent += time.perf_counter() - begun
                rates.append((done - marked[0]) / (spent - marked[1]) / MB)
                floors.append(_bare_rate(plan.directory / "bare", floor_bytes, source) / MB)
                marked = (done, spent)
    early = [rss for size, rss in memory if size <= part + sample_each]
    late = [rss for size, rss in memory if size > part + sample_each]
    result.rows = [
        row("import", "MB/s", rates),
        row("bare write, synced once", "MB/s", floors),
        row("import / bare write", "x", [mine / floor for mine, floor in zip(rates, floors, strict=True)]),
        row("resident memory", "MB", [rss / MB for _, rss in memory]),
    ]
    text = f"{total / GB:.1f} GB"
    result.bars = [Bar(f"most memory while {text} are imported, MiB", max(r for _, r in memory) / 2**20, 512, False)]
    if early and late:
        growth = (max(late) - max(early)) / 2**20
        text = "growth of the most memory after the first part, MiB"
        result.bars.append(Bar(text, growth, WRITE_BUFFER_MIB, False))
    result.notes.append(f"before the store was opened the process held {base / MB:.0f} MB")
    result.notes.append("MB at each sample: " + " ".join(f"{rss / MB:.0f}" for _, rss in memory))
    return result
