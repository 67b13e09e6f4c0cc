"""The rows of many layers in key order: what a flush reads, keeps as undo and writes.

Invariants:
    * Layers count from the first that was added; a later one lies above.
    * What a layer's keys had before it is the row of the layer below that has the key, or what the engine holds.
    * Keys come in byte order, each once.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Protocol
from zlib import crc32

from .api import Rows
from .rows import CHECKSUM_BYTES

__all__ = ["PureMerge", "RowMerge"]

_SORT_AT_ONCE = 4096


def _sorted_keys(keys: list[bytes]) -> Iterator[bytes]:
    """``keys`` in byte order. They are divided by prefix and sorted a few thousand at a time.

    Sorting 100,000 keys at once would hold the interpreter for some 70 ms.
    """
    stack = [keys]
    while stack:
        group = stack.pop()
        if len(group) <= _SORT_AT_ONCE:
            yield from sorted(group)
            continue
        low, high = min(group), max(group)
        common = next((at for at, pair in enumerate(zip(low, high, strict=False)) if pair[0] != pair[1]), len(low))
        buckets: dict[bytes, list[bytes]] = {}
        for key in group:
            buckets.setdefault(key[: common + 1], []).append(key)
        stack.extend(buckets[prefix] for prefix in sorted(buckets, reverse=True))


class RowMerge(Protocol):
    """Add all layers, sort, answer what is unknown; then take undo and batches. No call holds the interpreter long."""

    def add(self, rows: Rows, undo: bool) -> int:
        """The rows of one more layer; its number. ``undo``: what its keys had before will be asked for."""

    def sort(self) -> int:
        """Nothing more is added; how many keys there are."""

    def unknown(self, rows_max: int) -> list[bytes]:
        """The next keys whose row in the engine an undo needs; none: that was all."""

    def known(self, values: list[bytes | None]) -> None:
        """The plain values of the keys that ``unknown`` gave last."""

    def undo(self, number: int) -> Rows:
        """What the keys of this layer had before it, in key order. Ask for layers in the order of their numbers."""

    def batch(self, rows_max: int, bytes_max: int) -> Rows:
        """The next keys with their newest rows as the engine holds them (``rows.encode_row``); none: that was all.

        At most so many rows; no more are taken once keys and values have so many bytes.
        """

    def keys(self) -> list[bytes]:
        """All keys."""


class PureMerge:
    """The twin in Python."""

    def __init__(self) -> None:
        self._layers: list[Rows] = []
        self._newest: Rows = {}
        self._needed: list[bytes] = []
        self._asked: list[bytes] = []
        self._before: Rows = {}
        self._below = 0
        self._unknown: Iterator[bytes] = iter(())
        self._order: Iterator[bytes] = iter(())

    def add(self, rows: Rows, undo: bool) -> int:
        if undo:
            newest = self._newest
            self._needed += [key for key in rows if key not in newest]
        self._newest.update(rows)
        self._layers.append(rows)
        return len(self._layers) - 1

    def sort(self) -> int:
        self._unknown = _sorted_keys(self._needed)
        self._order = _sorted_keys(list(self._newest))
        return len(self._newest)

    def unknown(self, rows_max: int) -> list[bytes]:
        self._asked = list(islice(self._unknown, rows_max))
        return self._asked

    def known(self, values: list[bytes | None]) -> None:
        self._before.update(zip(self._asked, values, strict=True))

    def undo(self, number: int) -> Rows:
        before = self._before
        for rows in self._layers[self._below : number]:
            before.update(rows)
        self._below = number
        return {key: before[key] for key in sorted(self._layers[number])}

    def batch(self, rows_max: int, bytes_max: int) -> Rows:
        rows = self._newest
        out: Rows = {}
        size = 0
        for key in islice(self._order, rows_max):
            value = rows[key]
            # encode_row, written out: this is the innermost loop of every import
            out[key] = None if value is None else crc32(value, crc32(key)).to_bytes(CHECKSUM_BYTES, "big") + value
            size += len(key) if value is None else len(key) + len(value)
            if size >= bytes_max:
                break
        return out

    def keys(self) -> list[bytes]:
        return list(_sorted_keys(list(self._newest)))
