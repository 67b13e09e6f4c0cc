"""The overlay: rows of frames that are published and not yet in the engine, several versions of each key.

Invariants:
    * A version is one ``Layer``; versions only grow. A node is an immutable tuple (version, value, older node), so a
      reader needs no lock: it takes the newest node of a key from the dict in one step and walks back.
    * ``keys`` holds exactly the keys of ``nodes``, whenever the lock is free.
    * ``visible_version`` is the last version of the newest frame that is both published and durable; it only grows.
    * ``epoch`` changes before a flush drops its first row: whoever read the engine before and the overlay after, and
      finds another epoch, has to read again.
    * Published frames belong to the overlay; whoever published them changes them no more.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Final

from sortedcontainers import SortedList

from .api import FrameLayers, Layer

__all__ = ["LATEST", "MISSING", "ROW_COST_BYTES", "Missing", "Overlay", "Published", "SortedKeys"]

Node = tuple[int, bytes | None, "Node | None"]


class Missing(Enum):
    """The type of ``MISSING``: neither a value nor a deleted row."""

    MISSING = 0


MISSING: Final = Missing.MISSING
LATEST: Final = 2**63
"""A version above all: what is appended, durable or not."""
ROW_COST_BYTES: Final = 200
"""Estimated memory of a row besides its key and value."""


@dataclass(frozen=True, slots=True)
class Published:
    """A frame in the overlay: its last version, and what it adds to the counters."""

    frame: FrameLayers
    version: int
    rows: int
    size_bytes: int


class SortedKeys:
    """A set of keys with ordered access; sorting waits until somebody asks. Not thread-safe: the owner locks.

    The first ordered access after n additions costs O(n log n) at once.
    """

    __slots__ = ("_sorted", "fresh")

    def __init__(self) -> None:
        self.fresh: set[bytes] = set()
        self._sorted: SortedList | None = None

    def discard(self, key: bytes) -> None:
        """``key`` is not in the set; it was."""
        if key in self.fresh:
            self.fresh.remove(key)
        else:
            assert self._sorted is not None
            self._sorted.remove(key)

    def clear(self) -> None:
        """The set is empty."""
        self.fresh.clear()
        self._sorted = None

    def between(self, low: bytes, high: bytes, *, reverse: bool, count: int) -> list[bytes]:
        """The first ``count`` keys with ``low <= key < high`` in order, or from the end."""
        if self._sorted is None:
            self._sorted = SortedList(self.fresh)
            self.fresh.clear()
        elif self.fresh:
            self._sorted.update(self.fresh)
            self.fresh.clear()
        return list(islice(self._sorted.irange(low, high, (True, False), reverse), count))


class Overlay:
    """Rows by key and version, and the frames they came from."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.nodes: dict[bytes, Node] = {}
        self.keys = SortedKeys()
        self.version = 0
        self.visible_version = 0
        self.visible_seq = 0
        self.durable_seq = 0
        self.rows = 0
        self.size_bytes = 0
        self.epoch = 0
        self.frames: deque[Published] = deque()
        self._pending: deque[Published] = deque()
        self._blocks: dict[tuple[int, bytes], tuple[int, Layer]] = {}

    # -- the writer ---------------------------------------------------------------------------------------------

    def publish(self, frame: FrameLayers) -> None:
        """The rows of ``frame`` are on top; they are visible at once if the frame is known to be durable."""
        nodes = self.nodes
        get = nodes.get
        fresh = self.keys.fresh.add
        count = 0
        size = 0
        with self.lock:
            version = self.version
            for layer in frame.layers:
                version += 1
                for rows in (layer.rows, layer.chain_rows):
                    for key, value in rows.items():
                        older = get(key)
                        if older is None:
                            fresh(key)
                        nodes[key] = (version, value, older)
                        size += len(key)
                        if value is not None:
                            size += len(value)
                    count += len(rows)
                if layer.block is not None:
                    self._blocks.setdefault(layer.block, (version, layer))
            self.version = version
            size += (count + 1) * ROW_COST_BYTES
            published = Published(frame, version, count, size)
            self.frames.append(published)
            self.rows += count
            self.size_bytes += size
            if frame.seq <= self.durable_seq:
                self.visible_version = version
                self.visible_seq = frame.seq
            else:
                self._pending.append(published)

    def set_visible(self, seq: int) -> None:
        """Frames up to ``seq`` are durable, so readers see those that are published, and later ones once they are."""
        with self.lock:
            if seq <= self.durable_seq:
                return
            self.durable_seq = seq
            pending = self._pending
            while pending and pending[0].frame.seq <= seq:
                published = pending.popleft()
                self.visible_version = published.version
                self.visible_seq = published.frame.seq

    def drop_invisible(self) -> None:
        """Frames that are not visible were never published."""
        with self.lock:
            visible = self.visible_version
            while self._pending:
                published = self._pending.pop()
                assert self.frames[-1] is published
                self.frames.pop()
                self.rows -= published.rows
                self.size_bytes -= published.size_bytes
                for layer in published.frame.layers:
                    for key in (*layer.rows, *layer.chain_rows):
                        self._strip(key, visible)
                    if layer.block is not None and self._blocks.get(layer.block, (0, layer))[0] > visible:
                        del self._blocks[layer.block]

    def _strip(self, key: bytes, visible: int) -> None:
        first = node = self.nodes.get(key)
        while node is not None and node[0] > visible:
            node = node[2]
        if node is not None:
            self.nodes[key] = node
        elif first is not None:
            del self.nodes[key]
            self.keys.discard(key)

    # -- readers ------------------------------------------------------------------------------------------------

    def get(self, key: bytes, version: int) -> bytes | Missing | None:
        """The row as of ``version``: a value, ``None`` if deleted, ``MISSING`` if the engine has to say."""
        node = self.nodes.get(key)
        while node is not None:
            if node[0] <= version:
                return node[1]
            node = node[2]
        return MISSING

    def between(self, low: bytes, high: bytes, *, reverse: bool, count: int) -> list[bytes]:
        """The first ``count`` keys of any version with ``low <= key < high`` in order, or from the end."""
        if not self.nodes:
            return []
        with self.lock:
            return self.keys.between(low, high, reverse=reverse, count=count)

    def block_layer(self, block: tuple[int, bytes]) -> tuple[int, Layer] | None:
        """(version, layer) of a block that a frame in the overlay makes canonical."""
        return self._blocks.get(block)

    # -- the flush ----------------------------------------------------------------------------------------------

    def visible_frames(self, to_seq: int) -> list[Published]:
        """Visible frames up to ``to_seq``, oldest first. The caller holds the lock."""
        taken = []
        last = min(to_seq, self.visible_seq)
        for published in self.frames:
            if published.frame.seq > last:
                break
            taken.append(published)
        return taken

    def drop(self, frames: list[Published], slices: Iterable[list[bytes]], pace: Callable[[], None]) -> None:
        """``frames``, the oldest ones, are gone; every key they wrote is in ``slices`` and is in the engine."""
        to_version = frames[-1].version
        self.epoch += 1
        for keys in slices:
            with self.lock:
                for key in keys:
                    self._cut(key, to_version)
            pace()
        with self.lock:
            for published in frames:
                first = self.frames.popleft()
                assert first is published
                self.rows -= published.rows
                self.size_bytes -= published.size_bytes
                for layer in published.frame.layers:
                    if layer.block is not None and self._blocks.get(layer.block, (LATEST, layer))[0] <= to_version:
                        del self._blocks[layer.block]

    def _cut(self, key: bytes, to_version: int) -> None:
        node: Node | None = self.nodes.get(key)
        if node is None:
            return
        if node[0] <= to_version:
            del self.nodes[key]
            self.keys.discard(key)
            return
        newer: list[Node] = []
        while node is not None and node[0] > to_version:
            newer.append(node)
            node = node[2]
        older: Node | None = None
        for version, value, _ in reversed(newer):
            older = (version, value, older)
        assert older is not None
        self.nodes[key] = older
