"""The state that the benchmarks write: keys of 52 bytes, values of 32, and blocks that change 10,000 of them.

Everything is a function of numbers, so ``bench/jmt`` makes the same blocks and must find the same roots. Each key is
written once before any is written twice, in an order that has nothing to do with that of the keys.
"""

from __future__ import annotations

from pathlib import Path

import holdfast

from .data import CHAIN_TIME, HEADER, PRODUCER, block_hash, open_store

__all__ = [
    "ABSORBING",
    "CLOSED_LOOP",
    "LOAD",
    "STRIDE",
    "Changes",
    "Maker",
    "commit_changes",
    "fill_state",
    "first_value",
    "key",
    "open_state",
]

STRIDE = 611_953
"""Shares no factor with a number of keys that is made of twos and fives."""
POOL = 20_011
TURN = 7_919
LOAD = 10_000
"""Keys in a block that fills the state."""
Changes = dict[bytes, bytes | None]

ABSORBING: dict[str, object] = {
    "overlay_rows_max": 8_000_000,
    "overlay_bytes_max": 4 << 30,
    "flush_interval_seconds": 3600.0,
}
"""Settings that keep the rows of a burst of a million updates in memory: no flush runs while it is measured."""
CLOSED_LOOP: dict[str, object] = {"durability": "buffered", "overlay_rows_max": 600_000, "overlay_bytes_max": 1 << 29}
"""Settings to fill a store quickly."""


def key(number: int) -> bytes:
    """The key of this number, 52 bytes."""
    return b"contract-address-20b:%031d" % number


def first_value(number: int) -> bytes:
    """The value that the key of this number is filled with, 32 bytes."""
    return b"%032d" % number


class Maker:
    """Makes the changes of block after block. Keys and values are made once and used again."""

    def __init__(self, keys: int, per_block: int) -> None:
        assert keys % per_block == 0
        self.per_block = per_block
        self._blocks = keys // per_block
        self._all = keys
        self._keys: dict[int, list[bytes]] = {}
        self._values = [b"%032d" % number for number in range(POOL)] * (1 + -(-per_block // POOL))

    def changes(self, block: int) -> Changes:
        """What block number ``block`` changes. Cost: a dictionary, and at the first time its keys."""
        start = block * TURN % POOL
        return dict(zip(self._keys_of(block), self._values[start : start + self.per_block], strict=True))

    def prepare(self) -> None:
        """All keys are made."""
        for block in range(self._blocks):
            self._keys_of(block)

    def _keys_of(self, block: int) -> list[bytes]:
        block %= self._blocks
        keys = self._keys.get(block)
        if keys is None:
            first = block * self.per_block
            numbers = range(first, first + self.per_block)
            keys = self._keys[block] = [key(number * STRIDE % self._all) for number in numbers]
        return keys


def open_state(path: Path, **settings: object) -> holdfast.Store:
    """A store of a custom chain over RocksDB; the defaults but for ``settings``."""
    return open_store(path, engine="rocksdb", **settings)


def commit_changes(store: holdfast.Store, changes: Changes) -> holdfast.BlockInfo:
    """One more block on the tip that makes these changes, through the public API."""
    draft = store.draft()
    draft.state.update(changes)
    height = draft.height
    return store.commit(draft, hash=block_hash(height), header=HEADER, time=CHAIN_TIME + height, producer=PRODUCER)


def fill_state(path: Path, keys: int, **settings: object) -> None:
    """A closed store at ``path`` holds this many keys with their first values."""
    with open_state(path, **(CLOSED_LOOP | settings)) as store:
        for first in range(0, keys, LOAD):
            numbers = range(first, min(keys, first + LOAD))
            commit_changes(store, {key(number): first_value(number) for number in numbers})
