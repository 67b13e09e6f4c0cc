"""Blocks to store, and stores to put them in. Generated data is a function of the numbers it is asked for with.

What is reached beneath the public API is reached here and nowhere else in the benchmarks.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import holdfast
from holdfast.store.backend import WriterBackend
from holdfast.types import ZERO_HASH, Block

__all__ = [
    "CHAIN_TIME",
    "HEADER",
    "PRODUCER",
    "backend_of",
    "block_hash",
    "blocks",
    "fill",
    "frame_bytes",
    "open_store",
    "pool",
]

HEADER = bytes(range(80))
PRODUCER = b"producer-of-20-bytes"
CHAIN_TIME = 1_600_000_000


def open_store(path: Path, *, engine: str = "rocksdb", **settings: object) -> holdfast.Store:
    """A store of a custom chain; settings as given, else the defaults, without compression."""
    values = {"compression": "none", "log_level": "error"} | settings
    return holdfast.open(
        f"{engine}:{path}", chain=holdfast.CustomChain(), settings=holdfast.Settings.model_validate(values)
    )


def backend_of(store: holdfast.Store) -> WriterBackend:
    """What stands under the facade: counters and rows that the public API does not show."""
    backend = store._backend
    assert isinstance(backend, WriterBackend)
    return backend


def frame_bytes(store: holdfast.Store, seq: int) -> int:
    """Length of a frame of the journal."""
    return backend_of(store).journal.frame(seq).length


def block_hash(height: int, branch: bytes = b"") -> bytes:
    """The hash of the generated block at ``height``."""
    return sha256(height.to_bytes(8, "big") + branch).digest()


def pool(size: int, seed: int = 1) -> bytes:
    """Random bytes that do not compress."""
    return random.Random(seed).randbytes(size)


def blocks(first: int, count: int, *, body_bytes: int, source: bytes) -> Iterator[Block]:
    """A chain of blocks from height ``first``; bodies are windows of ``source``, each another one."""
    span = max(1, len(source) - body_bytes)
    parent = block_hash(first - 1) if first else ZERO_HASH
    for height in range(first, first + count):
        own = block_hash(height)
        start = height * 4099 % span
        body = source[start : start + body_bytes]
        yield Block(own, parent, height, HEADER, body, CHAIN_TIME + height, 1, PRODUCER)
        parent = own


def fill(store: holdfast.Store, count: int, *, body_bytes: int = 100, batch: int = 8192) -> None:
    """The store holds the generated blocks below height ``count``."""
    source = pool(1 << 16)
    tip = store.tip
    height = tip.height + 1 if tip is not None else 0
    while height < count:
        step = min(batch, count - height)
        store.add_many(list(blocks(height, step, body_bytes=body_bytes, source=source)), validate=False)
        height += step


def commit(store: holdfast.Store, body: bytes) -> holdfast.BlockInfo:
    """One more block on the tip, through the public API."""
    draft = store.draft()
    return store.commit(
        draft,
        hash=block_hash(draft.height),
        header=HEADER,
        body=body,
        time=CHAIN_TIME + draft.height,
        producer=PRODUCER,
    )
