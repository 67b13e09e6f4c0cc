"""The overlay: rows of frames that are published and not yet in the engine, several versions of each key.

Invariants:
    * A version is one ``Layer``; versions only grow. A node is an immutable tuple (version, value, older node), so a
      reader needs no lock: it takes the newest node of a key from the dict in one step and walks back.
    * ``_keys`` holds the keys of ``nodes`` that frames up to ``_sorted_version`` wrote, whenever the lock is free;
      the first scan after a frame adds the others, so that publishing costs nothing for order.
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
from .bulk import bulk

__all__ = ["LATEST", "MISSING", "ROW_COST_BYTES", "Missing", "Overlay", "Published", "SortedKeys"]

Node = tuple[int, bytes | None, "Node | None"]
BlockNode = tuple[int, "BlockNode | None"]


class Missing(Enum):
    """The type of ``MISSING``: neither a value nor a deleted row."""

    MISSING = 0


MISSING: Final = Missing.MISSING
LATEST: Final = 2**63
"""A version above all: what is appended, durable or not."""
ROW_COST_BYTES: Final = 200
"""Estimated memory of a row besides its key and value."""


@dataclass(slots=True)
class Published:
    """A frame in the overlay: its last version, and what it adds to the counters. Never changed."""

    frame: FrameLayers
    version: int
    rows: int
    size_bytes: int


def _nobody() -> None:
    """Nobody waits for the overlay to fill up."""


class SortedKeys:
    """A set of keys in order. Not thread-safe: the owner locks."""

    __slots__ = ("_members", "_sorted")

    def __init__(self) -> None:
        self._members: set[bytes] = set()
        self._sorted: SortedList | None = None

    def __bool__(self) -> bool:
        return bool(self._members)

    def add(self, keys: set[bytes]) -> None:
        """``keys`` are in the set. Cost: n log n for many, and then at once."""
        keys = keys - self._members
        self._members |= keys
        if self._sorted is None:
            self._sorted = SortedList(keys)
        else:
            self._sorted.update(keys)

    def discard(self, key: bytes) -> None:
        """``key`` is not in the set."""
        if key in self._members:
            assert self._sorted is not None
            self._members.remove(key)
            self._sorted.remove(key)

    def between(self, low: bytes, high: bytes, *, reverse: bool, count: int) -> list[bytes]:
        """The first ``count`` keys with ``low <= key < high`` in order, or from the end."""
        if self._sorted is None:
            return []
        return list(islice(self._sorted.irange(low, high, (True, False), reverse), count))


class Overlay:
    """Rows by key and version, and the frames they came from."""

    def __init__(self, wake_rows: int, wake_bytes: int) -> None:
        self.wake_rows = wake_rows
        self.wake_bytes = wake_bytes
        self.wake: Callable[[], None] = _nobody
        """Called by ``publish`` above ``wake_rows`` rows or ``wake_bytes`` bytes."""
        self._publish_rows = bulk().publish
        self.lock = threading.Lock()
        self.nodes: dict[bytes, Node] = {}
        self.blocks: dict[int, BlockNode] = {}
        """Height -> versions of the layers that made a block of this height canonical, the newest first."""
        self._keys = SortedKeys()
        self._sorted_version = 0
        self.version = 0
        self.visible_version = 0
        self.visible_seq = 0
        self.durable_seq = 0
        self.switches_begun = 0
        """Frames that took blocks out of the canonical chain: rises before such a frame becomes visible."""
        self.switches_done = 0
        """The same number, after it became visible. Whoever finds, after reading, as many begun as were done before,
        saw one branch."""
        self.rows = 0
        self.size_bytes = 0
        self.epoch = 0
        self.frames: deque[Published] = deque()
        self._pending: deque[Published] = deque()

    @property
    def pending(self) -> bool:
        """True while a published frame is not visible. The caller holds the lock."""
        return bool(self._pending)

    # -- the writer ---------------------------------------------------------------------------------------------

    def publish(self, frame: FrameLayers) -> None:
        """The rows of ``frame`` are on top; they are visible at once if the frame is known to be durable."""
        nodes, publish = self.nodes, self._publish_rows
        count = 0
        size = 0
        with self.lock:
            version = self.version
            for layer in frame.layers:
                version += 1
                rows = layer.rows
                while True:
                    size += publish(nodes, rows, version)
                    count += len(rows)
                    if rows is layer.chain_rows:
                        break
                    rows = layer.chain_rows
                if layer.block is not None:
                    height = layer.block[0]
                    self.blocks[height] = (version, self.blocks.get(height))
            self.version = version
            size += (count + 1) * ROW_COST_BYTES
            published = Published(frame, version, count, size)
            self.frames.append(published)
            self.rows = total_rows = self.rows + count
            self.size_bytes = total_bytes = self.size_bytes + size
            if frame.seq <= self.durable_seq:
                self._show(published)
            else:
                self._pending.append(published)
        if total_rows > self.wake_rows or total_bytes > self.wake_bytes:
            self.wake()

    def set_visible(self, seq: int) -> None:
        """Frames up to ``seq`` are durable, so readers see those that are published, and later ones once they are."""
        with self.lock:
            if seq <= self.durable_seq:
                return
            self.durable_seq = seq
            pending = self._pending
            while pending and pending[0].frame.seq <= seq:
                self._show(pending.popleft())

    def _show(self, published: Published) -> None:
        undone = bool(published.frame.undone)
        self.switches_begun += undone
        self.visible_version = published.version
        self.visible_seq = published.frame.seq
        self.switches_done += undone

    def drop_invisible(self, announce: Callable[[int], None]) -> None:
        """Frames that are not visible were never published. ``announce`` gets the last version that stays, before."""
        with self.lock:
            visible = self.visible_version
            announce(visible)
            while self._pending:
                published = self._pending.pop()
                assert self.frames[-1] is published
                self.frames.pop()
                self.rows -= published.rows
                self.size_bytes -= published.size_bytes
                for layer in published.frame.layers:
                    for key in (*layer.rows, *layer.chain_rows):
                        self._strip(key, visible)
                    if layer.block is not None:
                        self._strip_block(layer.block[0], visible)

    def _strip(self, key: bytes, visible: int) -> None:
        first = node = self.nodes.get(key)
        while node is not None and node[0] > visible:
            node = node[2]
        if node is not None:
            self.nodes[key] = node
        elif first is not None:
            del self.nodes[key]
            self._keys.discard(key)

    def _strip_block(self, height: int, visible: int) -> None:
        node = self.blocks.get(height)
        while node is not None and node[0] > visible:
            node = node[1]
        if node is not None:
            self.blocks[height] = node
        else:
            self.blocks.pop(height, None)

    # -- readers ------------------------------------------------------------------------------------------------

    def get(self, key: bytes, version: int) -> bytes | Missing | None:
        """The row as of ``version``: a value, ``None`` if deleted, ``MISSING`` if the engine has to say."""
        node = self.nodes.get(key)
        while node is not None:
            if node[0] <= version:
                return node[1]
            node = node[2]
        return MISSING

    def version_at(self, height: int) -> int:
        """The version of the newest visible layer that made a block at ``height`` canonical; 0 if there is none."""
        visible = self.visible_version
        node = self.blocks.get(height)
        while node is not None:
            if node[0] <= visible:
                return node[0]
            node = node[1]
        return 0

    def heights_of(self, key: bytes) -> set[int]:
        """Heights of blocks in the overlay, on whichever branch, that change ``key``. Cost: blocks in the overlay."""
        versions = set()
        node = self.nodes.get(key)
        while node is not None:
            versions.add(node[0])
            node = node[2]
        heights = set()
        for height, blocks in list(self.blocks.items()) if versions else ():
            made: BlockNode | None = blocks
            while made is not None:
                if made[0] in versions:
                    heights.add(height)
                made = made[1]
        return heights

    def version_of(self, key: bytes, version: int) -> int:
        """The newest version of ``key`` that is not above ``version``; 0 if there is none."""
        node = self.nodes.get(key)
        while node is not None:
            if node[0] <= version:
                return node[0]
            node = node[2]
        return 0

    def between(self, low: bytes, high: bytes, *, reverse: bool, count: int) -> list[bytes]:
        """The first ``count`` keys of any version with ``low <= key < high`` in order, or from the end."""
        if not self.nodes:
            return []
        with self.lock:
            if self._sorted_version != self.version:
                self._sort()
            return self._keys.between(low, high, reverse=reverse, count=count)

    def _sort(self) -> None:
        nodes = self.nodes
        added: set[bytes] = set()
        for published in reversed(self.frames):
            if published.version <= self._sorted_version:
                break
            for layer in published.frame.layers:
                added.update(layer.rows, layer.chain_rows)
        self._keys.add({key for key in added if key in nodes})
        self._sorted_version = self.version

    def block_layer(self, block: tuple[int, bytes]) -> tuple[int, Layer] | None:
        """(version, layer) of a block that a frame in the overlay makes canonical, the newest. Cost: its age."""
        with self.lock:
            for published in reversed(self.frames):
                version = published.version
                for layer in reversed(published.frame.layers):
                    if layer.block == block:
                        return version, layer
                    version -= 1
        return None

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
        cut: set[bytes] = set()  # a key that every block writes comes once for each, and is cut once
        for keys in slices:
            with self.lock:
                nodes = self.nodes
                gone = {key for key in keys if (node := nodes.get(key)) is not None and node[0] <= to_version}
                for key in gone:
                    del nodes[key]
                if self._keys:
                    for key in gone:
                        self._keys.discard(key)
                if len(gone) != len(keys):
                    for key in keys:
                        newer = nodes.get(key)
                        if newer is not None and key not in cut:
                            cut.add(key)
                            self._cut(key, newer, to_version)
            pace()
        with self.lock:
            for published in frames:
                first = self.frames.popleft()
                assert first is published
                self.rows -= published.rows
                self.size_bytes -= published.size_bytes
                for layer in published.frame.layers:
                    if layer.block is not None:
                        self._cut_block(layer.block[0], to_version)

    def _cut_block(self, height: int, to_version: int) -> None:
        node = self.blocks.get(height)
        newer = []
        while node is not None and node[0] > to_version:
            newer.append(node[0])
            node = node[1]
        kept: BlockNode | None = None
        for version in reversed(newer):
            kept = (version, kept)
        if kept is not None:
            self.blocks[height] = kept  # in one step: readers look without the lock
        else:
            self.blocks.pop(height, None)

    def _cut(self, key: bytes, newest: Node, to_version: int) -> None:
        """Only the versions above ``to_version`` stay; there are some."""
        node: Node | None = newest
        newer: list[Node] = []
        while node is not None and node[0] > to_version:
            newer.append(node)
            node = node[2]
        older: Node | None = None
        for version, value, _ in reversed(newer):
            older = (version, value, older)
        assert older is not None
        self.nodes[key] = older
