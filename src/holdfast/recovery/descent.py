"""Walking down two trees at once: which leaves differ, found without looking at what is equal.

Two nodes at the same place have the same hash exactly if they hold the same leaves. So the walk follows one path down
both trees, compares the siblings that it passes, and goes into those that differ; everything else is skipped.

Invariants:
    * Differences come in the order of their key hashes, each once; a walk may begin at any key hash.
    * Cost: for each leaf that differs, O(log^2 n) nodes of each tree. Memory: one path.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from ..merkle.api import RECORD_BYTES, Path
from ..merkle.bits import HASH_BITS, bit_at

__all__ = ["Descent", "LeafDifference", "Nodes"]

_HASH = 32
_FIRST_PAGE = 16
_PAGE_MAX = 4096


class Nodes(Protocol):
    """The part of a ``Tree`` that the walk needs."""

    @property
    def root(self) -> bytes:
        """32 bytes."""

    def path(self, key_hash: bytes) -> Path:
        """Where the path of ``key_hash`` ends."""

    def records(self, start: bytes, limit: int) -> bytes:
        """At most ``limit`` leaves with key hash >= ``start``, in order, ``RECORD_BYTES`` each."""


class LeafDifference(NamedTuple):
    """A key hash, and its leaf hash in both trees; ``None`` where the tree has no such leaf."""

    key_hash: bytes
    first: bytes | None
    second: bytes | None


class Descent:
    """One walk over the difference of two trees of the same scheme."""

    def __init__(self, first: Nodes, second: Nodes) -> None:
        self._trees = (first, second)
        self.visited = 0
        """Nodes of both trees that were looked at so far."""

    def differences(self, start: bytes = bytes(_HASH)) -> Iterator[LeafDifference]:
        """Every leaf with key hash >= ``start`` (32 bytes) that is not the same in both trees."""
        self.visited += 2
        if self._trees[0].root == self._trees[1].root:
            return
        later = [(start, 0)]
        while later:
            target, depth = later.pop()
            one, two = (tree.path(target) for tree in self._trees)
            self.visited += len(one.siblings) + len(two.siblings) + 2
            shared = min(len(one.siblings), len(two.siblings))
            if len(one.siblings) == len(two.siblings):
                yield from _differing(_leaf(one), _leaf(two), start)
            else:
                yield from self._below(target, shared, start)
            # siblings are nearest first: the root's child is the last one
            for level in range(depth, shared):
                if not bit_at(target, level) and one.siblings[-1 - level] != two.siblings[-1 - level]:
                    later.append((_sibling(target, level), level + 1))

    def _below(self, target: bytes, depth: int, start: bytes) -> Iterator[LeafDifference]:
        """One tree has at most one leaf below the node at ``depth`` on the way to ``target``: all leaves are read."""
        low, stop = _bounds(target, depth)
        sides = [self._leaves(tree, max(low, start), stop) for tree in self._trees]
        one, two = (next(side, None) for side in sides)
        while one is not None or two is not None:
            if two is None or (one is not None and one[0] < two[0]):
                assert one is not None
                yield LeafDifference(one[0], one[1], None)
                one = next(sides[0], None)
            elif one is None or two[0] < one[0]:
                yield LeafDifference(two[0], None, two[1])
                two = next(sides[1], None)
            else:
                if one[1] != two[1]:
                    yield LeafDifference(one[0], one[1], two[1])
                one, two = next(sides[0], None), next(sides[1], None)

    def _leaves(self, tree: Nodes, start: bytes, stop: int) -> Iterator[tuple[bytes, bytes]]:
        """Leaves from ``start`` to, not including, the key hash ``stop`` as a number."""
        limit = _FIRST_PAGE
        while True:
            page = tree.records(start, limit)
            for at in range(0, len(page), RECORD_BYTES):
                key_hash = page[at : at + _HASH]
                self.visited += 1
                if int.from_bytes(key_hash, "big") >= stop:
                    return
                yield key_hash, page[at + _HASH : at + RECORD_BYTES]
            after = int.from_bytes(page[-RECORD_BYTES:-_HASH], "big") + 1
            if len(page) < limit * RECORD_BYTES or after >= stop:
                return
            start = after.to_bytes(_HASH, "big")
            limit = min(2 * limit, _PAGE_MAX)


def _leaf(path: Path) -> dict[bytes, bytes]:
    return {} if path.leaf is None else {path.leaf[0]: path.leaf[1]}


def _differing(one: dict[bytes, bytes], two: dict[bytes, bytes], start: bytes) -> Iterator[LeafDifference]:
    for key_hash in sorted(one.keys() | two.keys()):
        if key_hash >= start and one.get(key_hash) != two.get(key_hash):
            yield LeafDifference(key_hash, one.get(key_hash), two.get(key_hash))


def _sibling(target: bytes, level: int) -> bytes:
    """The lowest key hash below the right child, where ``target`` goes to the left one at ``level``."""
    shift = HASH_BITS - level - 1
    return ((int.from_bytes(target, "big") >> shift | 1) << shift).to_bytes(_HASH, "big")


def _bounds(target: bytes, depth: int) -> tuple[bytes, int]:
    """The lowest key hash below the node at ``depth`` on the way to ``target``, and the number behind the highest."""
    shift = HASH_BITS - depth
    prefix = int.from_bytes(target, "big") >> shift
    return (prefix << shift).to_bytes(_HASH, "big"), (prefix + 1) << shift
