"""What compaction of the journal saves in the shape of seed 000, what it takes, and what reads cost afterwards.

Blocks hold one coinbase transaction, as in ``xai``. Reads are of whole blocks, at random heights below finality, in the
process that compacts; both rounds read the same heights.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import holdfast
from holdfast import Store
from holdfast.chains.xai.document import package_chunks

from .measure import Bar, Plan, Result, row
from .xai import REST, START, _blocks, _place

__all__ = ["run"]


def _filled(path: Path, count: int) -> Path:
    path.mkdir()
    made = _blocks(count)
    with (path / "blockchain.json").open("wb") as file:
        for chunk in package_chunks(made, REST, START):
            file.write(chunk)
    place = _place(path, 10**9)
    place.open()
    place.save_to_disk({**REST, "chain": made})
    place.close()
    return path / "store"


def _reads(store: Store, heights: list[int]) -> list[float]:
    """Microseconds of each read."""
    times = []
    for height in heights:
        begun = time.perf_counter()
        info = store.blocks.at(height)
        assert info is not None
        store.blocks.block(info)
        times.append((time.perf_counter() - begun) * 1e6)
    return times


def run(plan: Plan) -> Result:
    """A chain is made, read, compacted, and read again."""
    count, reads = plan.pick((50_000, 5_000), (10_000, 2_000), (3_000, 50))
    result = Result("compact")
    path = _filled(plan.directory / "chain", count)
    rng = random.Random(1)
    with holdfast.open(path) as store:
        final = store.compact(dry_run=True).final_height
        heights = [rng.randrange(final) for _ in range(reads)]
        walk = list(range(min(reads, final)))
        before, in_order = _reads(store, heights), _reads(store, walk)
        begun = time.perf_counter()
        report = store.compact()
        seconds = time.perf_counter() - begun
        after, in_order_after = _reads(store, heights), _reads(store, walk)
        status = store.retention.status()
    blocks = report.bytes_before * count / report.journal_bytes_before
    saved = 1 - report.bytes_after / report.bytes_before
    per_thousand = report.bytes_after / blocks / 1000
    result.rows += [
        row("compacted segments before", "MB", [report.bytes_before / 1e6]),
        row("compacted segments after", "MB", [report.bytes_after / 1e6]),
        row("whole journal after, the newest segment included", "MB", [status.file_bytes / 1e6]),
        row("compaction, read back and verified", "MB/s", [report.bytes_before / 1e6 / seconds]),
        row("random read of a block before", "us", before),
        row("random read of a block after", "us", after),
        row("read of the next block before", "us", in_order),
        row("read of the next block after", "us", in_order_after),
    ]
    result.bars += [
        Bar("saved of the compacted segments, %", saved * 100, 75, True),
        Bar("compacted segments, MB per 1,000 blocks", per_thousand, 0.63, False),
    ]
    return result
