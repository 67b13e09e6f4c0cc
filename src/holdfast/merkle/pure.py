"""The pure Python twin of the tree: the reference, and what runs where the native kernel is absent.

Nodes are tuples, so versions share what they have in common and the collector soon stops looking at them:

* ``None``: no leaf;
* ``(hash, records)``: a bucket of 1 to ``BUCKET_LEAVES`` leaves in order, 64 bytes each;
* ``(hash, count, left, right)``: a branch over more leaves than a bucket holds.

Invariants:
    * ``hash`` is ``node(S, depth)`` of api.py for the leaves below, whatever the buckets are.
    * A node with at most ``BUCKET_LEAVES`` leaves is a bucket, so the shape depends on the set of leaves only.
    * No node changes once it is made. The recursion is as deep as the longest shared prefix: at most 256.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import pairwise
from typing import TypeAlias, cast

from . import changes as codec
from .api import RECORD_BYTES, Backend, Path, Scheme, Subtree, Tree, Update
from .bits import HASH_BITS, bit_at, split

__all__ = ["BACKEND", "BUCKET_LEAVES", "PureTree"]

BUCKET_LEAVES = 4
HASH = 32
LEAF_MEMORY_BYTES = 170
"""Memory of a tree of random keys by leaf, measured at 20 k and 100 k leaves."""

Bucket: TypeAlias = tuple[bytes, bytes]
Branch: TypeAlias = "tuple[bytes, int, Node, Node]"
Node: TypeAlias = "Bucket | Branch | None"


def count_of(node: Node) -> int:
    """Number of leaves below ``node``."""
    if node is None:
        return 0
    return len(node[1]) // RECORD_BYTES if len(node) == 2 else node[1]


def cut(records: bytes) -> tuple[list[bytes], list[bytes]]:
    """Key hashes and leaf hashes of whole records."""
    places = range(0, len(records), RECORD_BYTES)
    return [records[at : at + HASH] for at in places], [records[at + HASH : at + RECORD_BYTES] for at in places]


def glue(keys: Sequence[bytes], leaves: Sequence[bytes]) -> bytes:
    """The records of these key hashes and leaf hashes."""
    return b"".join([key + leaf for key, leaf in zip(keys, leaves, strict=True)])


class _Rules:
    """``node(S, depth)`` and the nodes that hold it, under the constants of one scheme."""

    __slots__ = ("inner", "null", "scheme")

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        self.inner = scheme.inner_prefix
        self.null = scheme.null

    def fold(self, keys: Sequence[bytes], leaves: Sequence[bytes], low: int, high: int, depth: int) -> bytes:
        """``node(S, depth)`` of the sorted leaves ``low`` to ``high``."""
        if high - low < 2:
            return leaves[low] if low < high else self.null
        middle = split(keys, low, high, depth)
        left = self.fold(keys, leaves, low, middle, depth + 1)
        return sha256(self.inner + left + self.fold(keys, leaves, middle, high, depth + 1)).digest()

    def make(self, keys: Sequence[bytes], leaves: Sequence[bytes], low: int, high: int, depth: int) -> Node:
        """The node over the sorted leaves ``low`` to ``high``."""
        if high - low <= BUCKET_LEAVES:
            if low == high:
                return None
            return self.fold(keys, leaves, low, high, depth), glue(keys[low:high], leaves[low:high])
        middle = split(keys, low, high, depth)
        left = self.make(keys, leaves, low, middle, depth + 1)
        right = self.make(keys, leaves, middle, high, depth + 1)
        return self.pair(left, right), high - low, left, right

    def pair(self, left: Node, right: Node) -> bytes:
        """The hash over two nodes that together have two leaves or more."""
        return sha256(
            self.inner + (self.null if left is None else left[0]) + (self.null if right is None else right[0])
        ).digest()

    def join(self, left: Node, right: Node) -> Node:
        """The node over two nodes: a branch, a bucket with the leaves of both, or a lone leaf that floats up."""
        count = count_of(left) + count_of(right)
        if count > BUCKET_LEAVES:
            return self.pair(left, right), count, left, right
        if count < 2:
            return left if right is None else right
        records = cast("bytes", left[1] if left else b"") + cast("bytes", right[1] if right else b"")
        return self.pair(left, right), records

    def children(self, node: Bucket | Branch, depth: int) -> tuple[Node, Node]:
        """The two nodes below a node of two leaves or more; those of a bucket are made for the occasion."""
        if len(node) == 4:
            return node[2], node[3]
        keys, leaves = cut(node[1])
        middle = split(keys, 0, len(keys), depth)
        below = depth + 1
        return self.make(keys, leaves, 0, middle, below), self.make(keys, leaves, middle, len(keys), below)


class _Batch:
    """Sorted changes on their way down a tree: key hash -> leaf hash, ``None`` removes."""

    __slots__ = ("inserted", "keys", "leaves", "removed", "rules")

    def __init__(self, rules: _Rules, keys: list[bytes], leaves: list[bytes | None]) -> None:
        self.rules = rules
        self.keys = keys
        self.leaves = leaves
        self.inserted: list[bytes] = []
        self.removed: list[bytes] = []

    def apply(self, node: Node, low: int, high: int, depth: int) -> Node:
        """``node`` with the changes ``low`` to ``high``; the very same node if they change nothing."""
        if node is None or len(node) == 2:
            return self._apply_to_few(node, low, high, depth)
        middle = split(self.keys, low, high, depth)
        _, _, left, right = node
        new_left = self.apply(left, low, middle, depth + 1) if low < middle else left
        new_right = self.apply(right, middle, high, depth + 1) if middle < high else right
        if new_left is left and new_right is right:
            return node
        return self.rules.join(new_left, new_right)

    def _apply_to_few(self, node: Bucket | None, low: int, high: int, depth: int) -> Node:
        records = node[1] if node else b""
        held: dict[bytes, bytes] = {}
        for at in range(0, len(records), RECORD_BYTES):
            held[records[at : at + HASH]] = records[at + HASH : at + RECORD_BYTES]
        changed = False
        for place in range(low, high):
            key, leaf = self.keys[place], self.leaves[place]
            old = held.get(key)
            if old == leaf:
                continue
            changed = True
            if leaf is None:
                del held[key]
                self.removed.append(key)
            else:
                held[key] = leaf
                if old is None:
                    self.inserted.append(key)
        if not changed:
            return node
        keys = sorted(held)
        return self.rules.make(keys, [held[key] for key in keys], 0, len(keys), depth)


class PureTree:
    """One immutable version (see ``api.Tree``)."""

    __slots__ = ("_node", "_rules")

    def __init__(self, rules: _Rules, node: Node) -> None:
        self._rules = rules
        self._node = node

    @property
    def root(self) -> bytes:
        return self._rules.null if self._node is None else self._node[0]

    @property
    def count(self) -> int:
        return count_of(self._node)

    def update(self, changes: Mapping[bytes, bytes | None]) -> Update:
        prefix = self._rules.scheme.leaf_prefix
        names: dict[bytes, bytes] = {}
        rows: list[tuple[bytes, bytes | None]] = []
        for key, value in changes.items():
            if not key or value == b"":
                raise ValueError("neither a key nor a value may be empty")
            key_hash = sha256(key).digest()
            names[key_hash] = key
            leaf = None if value is None else sha256(prefix + key_hash + sha256(value).digest()).digest()
            rows.append((key_hash, leaf))
        tree, batch = self._applied(rows)
        return Update(tree, [(key, names[key]) for key in batch.inserted], [(key, names[key]) for key in batch.removed])

    def update_records(self, records: bytes, removed: bytes) -> Tree:
        if len(records) % RECORD_BYTES or len(removed) % HASH:
            raise ValueError(f"records of {RECORD_BYTES} bytes and key hashes of {HASH} are wanted whole")
        rows: list[tuple[bytes, bytes | None]] = list(zip(*cut(records), strict=True))
        rows += [(removed[at : at + HASH], None) for at in range(0, len(removed), HASH)]
        if len({key for key, _ in rows}) != len(rows):
            raise ValueError("a key hash comes twice")
        return self._applied(rows)[0]

    def _applied(self, rows: list[tuple[bytes, bytes | None]]) -> tuple[PureTree, _Batch]:
        rows.sort(key=lambda row: row[0])
        batch = _Batch(self._rules, [row[0] for row in rows], [row[1] for row in rows])
        node = batch.apply(self._node, 0, len(rows), 0) if rows else self._node
        return PureTree(self._rules, node), batch

    def path(self, key_hash: bytes) -> Path:
        _check_hash(key_hash)
        node, depth, siblings = self._node, 0, []
        while count_of(node) > 1:
            assert node is not None
            left, right = self._rules.children(node, depth)
            node, other = (right, left) if bit_at(key_hash, depth) else (left, right)
            siblings.append(self._rules.null if other is None else other[0])
            depth += 1
        siblings.reverse()
        if node is None:
            return Path(None, siblings)
        assert len(node) == 2
        return Path((node[1][:HASH], node[1][HASH:]), siblings)

    def neighbours(self, key_hash: bytes) -> tuple[bytes | None, bytes | None]:
        _check_hash(key_hash)
        below: Node = None
        above: Node = None
        node, depth = self._node, 0
        while node is not None and len(node) == 4:
            if bit_at(key_hash, depth):
                below, node = (node[2] or below), node[3]
            else:
                above, node = (node[3] or above), node[2]
            depth += 1
        keys = cut(node[1])[0] if node else []
        at = bisect_left(keys, key_hash)
        after = at + 1 if at < len(keys) and keys[at] == key_hash else at
        return (
            keys[at - 1] if at else _end_of(below, last=True),
            keys[after] if after < len(keys) else _end_of(above, last=False),
        )

    def records(self, start: bytes, limit: int) -> bytes:
        _check_hash(start)
        if limit < 0:
            raise ValueError("a limit is not negative")
        parts: list[bytes] = []
        missing = limit * RECORD_BYTES
        for part in self._buckets(start):
            if missing <= 0:
                break
            parts.append(part[:missing])
            missing -= len(part)
        return b"".join(parts)

    def _buckets(self, start: bytes) -> Iterator[bytes]:
        """The records with key hash >= ``start``, bucket by bucket."""
        later: list[Bucket | Branch] = []
        node, depth = self._node, 0
        while node is not None and len(node) == 4:
            if bit_at(start, depth):
                node = node[3]
            else:
                if node[3] is not None:
                    later.append(node[3])
                node = node[2]
            depth += 1
        if node is not None:
            yield node[1][bisect_left(cut(node[1])[0], start) * RECORD_BYTES :]
        while later:
            node = later.pop()
            if len(node) == 2:
                yield node[1]
            else:
                later += [child for child in (node[3], node[2]) if child is not None]

    def subtrees(self, leaves_max: int) -> list[Subtree]:
        if leaves_max < 1:
            raise ValueError("a subtree has at least one leaf")
        found: list[Subtree] = []
        self._subtrees(self._node, 0, 0, leaves_max, [], found)
        return found

    def _subtrees(
        self, node: Node, prefix: int, depth: int, leaves_max: int, siblings: list[bytes], found: list[Subtree]
    ) -> None:
        if node is None:
            return
        count = count_of(node)
        if count <= leaves_max:
            place = (prefix << (HASH_BITS - depth)).to_bytes(HASH, "big")
            found.append(Subtree(place, depth, count, node[0], siblings[::-1]))
            return
        left, right = self._rules.children(node, depth)
        for child, other, bit in ((left, right, 0), (right, left, 1)):
            siblings.append(self._rules.null if other is None else other[0])
            self._subtrees(child, prefix << 1 | bit, depth + 1, leaves_max, siblings, found)
            siblings.pop()

    def size_bytes(self) -> int:
        return self.count * LEAF_MEMORY_BYTES


def _check_hash(key_hash: bytes) -> None:
    if len(key_hash) != HASH:
        raise ValueError(f"a key hash has {HASH} bytes, not {len(key_hash)}")


def _end_of(node: Node, *, last: bool) -> bytes | None:
    """Key hash of the first or the last leaf below ``node``."""
    while node is not None and len(node) == 4:
        node = (node[3] or node[2]) if last else (node[2] or node[3])
    if node is None:
        return None
    return node[1][-RECORD_BYTES:-HASH] if last else node[1][:HASH]


class _PureBackend:
    """The whole contract in Python (see ``api.Backend``)."""

    name = "pure"

    def empty(self, scheme: Scheme) -> Tree:
        return PureTree(_Rules(scheme), None)

    def build(self, scheme: Scheme, records: Iterable[bytes]) -> Tree:
        parts = list(records)
        if any(len(part) % RECORD_BYTES for part in parts):
            raise ValueError(f"records of {RECORD_BYTES} bytes are wanted whole")
        rows = sorted(zip(*cut(b"".join(parts)), strict=True))
        keys = [row[0] for row in rows]
        if any(first == second for first, second in pairwise(keys)):
            raise ValueError("a key hash comes twice")
        rules = _Rules(scheme)
        return PureTree(rules, rules.make(keys, [row[1] for row in rows], 0, len(rows), 0))

    def hash_rows(self, scheme: Scheme, rows: Sequence[tuple[bytes, bytes]]) -> bytes:
        prefix = scheme.leaf_prefix
        parts: list[bytes] = []
        for key, value in rows:
            if not key or not value:
                raise ValueError("neither a key nor a value may be empty")
            key_hash = sha256(key).digest()
            parts += (key_hash, sha256(prefix + key_hash + sha256(value).digest()).digest())
        return b"".join(parts)

    def node_hash(self, scheme: Scheme, records: bytes, depth: int) -> bytes:
        if len(records) % RECORD_BYTES or not 0 <= depth <= HASH_BITS:
            raise ValueError(f"whole records of {RECORD_BYTES} bytes and a depth of 0 to {HASH_BITS} are wanted")
        keys, leaves = cut(records)
        if any(first >= second for first, second in pairwise(keys)):
            raise ValueError("the records are not in strict order")
        if keys and (int.from_bytes(keys[0], "big") ^ int.from_bytes(keys[-1], "big")) >> (HASH_BITS - depth):
            raise ValueError(f"the records do not share {depth} bits")
        return _Rules(scheme).fold(keys, leaves, 0, len(keys), depth)

    def encode_changes(self, changes: Mapping[bytes, bytes | None], inserted: Collection[bytes]) -> bytes:
        return codec.encode_changes(changes, inserted)

    def decode_changes(self, data: bytes) -> tuple[dict[bytes, bytes | None], list[bytes]]:
        return codec.decode_changes(data)


BACKEND: Backend = _PureBackend()
