"""A durable commit of a 1.5 KB block, against a bare write of the same bytes, and against a synced RocksDB put.

The bare floor writes as many bytes as the journal's frame has, at the offset behind the last one, into a file that was
filled with zeros and synced before. RocksDB gets the rows that the store will keep of the block, and header and body,
in one batch with its log on; the log is flushed and synced.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import rocksdict

import holdfast
from holdfast.blocks.content import entry_of
from holdfast.blocks.records import (
    block_key,
    canonical_key,
    encode_block_record,
    height_key,
    producer_key,
    time_key,
)
from holdfast.types import Block

from .data import CHAIN_TIME, HEADER, PRODUCER, block_hash, frame_bytes, open_store, pool
from .measure import Bar, Plan, Result, alternate, cpu_row, latency_row, percentile, rate_row, ratio_row, row

__all__ = ["run"]

BLOCK_BYTES = 1536
BODY = pool(BLOCK_BYTES - len(HEADER))


class BareWriter:
    """Writes of one length into a file made beforehand, each synced."""

    def __init__(self, path: Path, length: int, count: int) -> None:
        self._data = pool(length, seed=2)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        zeros = bytes(1 << 20)
        for offset in range(0, length * count, len(zeros)):
            os.pwrite(self._fd, zeros, offset)
        os.fsync(self._fd)

    def step(self, number: int) -> None:
        """Write number ``number`` is durable."""
        os.pwrite(self._fd, self._data, number * len(self._data))
        os.fdatasync(self._fd)

    def close(self) -> None:
        """The descriptor is released."""
        os.close(self._fd)


class RocksWriter:
    """Batches of a block's rows, encoded beforehand, each synced through RocksDB's own log."""

    def __init__(self, path: Path, count: int) -> None:
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        self._db = rocksdict.Rdict(str(path), options)
        self._writing = rocksdict.WriteOptions()
        self._rows = [_rows(number) for number in range(count)]

    def step(self, number: int) -> None:
        """The rows, header and body of block ``number`` are durable."""
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in self._rows[number]:
            batch.put(key, value)
        self._db.write(batch, self._writing)
        self._db.flush_wal(True)

    def close(self) -> None:
        """The database is closed."""
        self._db.close()


def _rows(number: int) -> list[tuple[bytes, bytes]]:
    """The five rows that the store keeps of block ``number``, its header and its body."""
    own = block_hash(number)
    block = Block(own, block_hash(max(number - 1, 0)), number, HEADER, BODY, CHAIN_TIME + number, 1, PRODUCER)
    return [
        (block_key(own), encode_block_record(entry_of(block, number + 1), number + 2, 1)),
        (height_key(number, own), b""),
        (time_key(block.time, number, own), b""),
        (producer_key(PRODUCER, number, own), b""),
        (canonical_key(number), own),
        (b"header" + own, HEADER),
        (b"body" + own, BODY),
    ]


def _commit_step(store: holdfast.Store) -> Callable[[int], object]:
    body = BODY

    def step(_number: int) -> None:
        draft = store.draft()
        height = draft.height
        store.commit(
            draft,
            hash=block_hash(height),
            header=HEADER,
            body=body,
            time=CHAIN_TIME + height,
            producer=PRODUCER,
        )

    return step


def run(plan: Plan) -> Result:
    """The three writers in alternating rounds."""
    rounds, per_round, warm_up = plan.pick((240, 25, 300), (60, 25, 100), (2, 5, 2))
    result = Result("commit")
    store = open_store(plan.directory / "store")
    step = _commit_step(store)
    step(0)
    info = store.tip
    assert info is not None
    length = frame_bytes(store, info.seq)
    count = warm_up + rounds * per_round
    bare = BareWriter(plan.directory / "bare", length, count)
    rocks = RocksWriter(plan.directory / "rocks", count)
    found = alternate(
        {"bare": bare.step, "store": step, "rocksdb": rocks.step},
        rounds=rounds,
        per_round=per_round,
        warm_up=warm_up,
    )
    bare.close()
    rocks.close()
    store.close()
    result.rows = [
        latency_row("bare write + fdatasync", found["bare"]),
        latency_row("store.commit", found["store"]),
        latency_row("RocksDB synced put", found["rocksdb"]),
        rate_row("bare write + fdatasync", found["bare"]),
        rate_row("store.commit", found["store"]),
        rate_row("RocksDB synced put", found["rocksdb"]),
        cpu_row("processor, bare", found["bare"]),
        cpu_row("processor, store.commit", found["store"]),
        cpu_row("processor, RocksDB", found["rocksdb"]),
        ratio_row("store / bare", found["store"], found["bare"]),
        ratio_row("store / RocksDB", found["store"], found["rocksdb"]),
    ]
    times = {name: [float(ns) for timing in timings for ns in timing.ns] for name, timings in found.items()}
    for share, text in ((0.1, "quickest tenth of the latencies"), (0.5, "median latencies")):
        at = {name: percentile(values, share) for name, values in times.items()}
        result.rows.append(row(f"store / bare, by the {text}", "x", [at["bare"] / at["store"]]))
        result.rows.append(row(f"store / RocksDB, by the {text}", "x", [at["rocksdb"] / at["store"]]))
    result.bars = [
        Bar("rate of store.commit over the bare write", result.rows[9].median, 0.8, True),
        Bar("rate of store.commit over a synced RocksDB put", result.rows[10].median, 1.0, True),
    ]
    result.notes.append(f"a block of {BLOCK_BYTES} bytes is a frame of {length} bytes")
    return result
