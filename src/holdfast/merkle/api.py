"""The tree's contract: versions that share their nodes, and what a backend (pure Python, native) offers.

The tree is the Jellyfish-Merkle tree of the Rust crate ``jmt`` 0.12.0 over SHA-256 (docs/FORMAT.md, section 8):
``node(S, d)`` of the leaves S whose first d path bits agree is the scheme's null constant for none, the leaf hash for
one (whatever d is), else ``H(inner_prefix + node(S with bit d = 0, d+1) + node(S with bit d = 1, d+1))``; the root is
``node(all, 0)``. A leaf is ``H(leaf_prefix + H(key) + H(value))``, its path ``H(key)``, most significant bit first.

Invariants:
    * A ``Tree`` is one immutable version. ``update`` gives another one and shares what did not change; dropping the
      last reference frees what only that version holds. Any thread may read any version.
    * The root depends on the set of (key, value) pairs and the scheme, on nothing else: not on the order, the bucket
      limits, the backend, the number of threads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

__all__ = [
    "ICS23_SMT",
    "JMT_SHA256",
    "RECORD_BYTES",
    "SCHEMES",
    "Backend",
    "Path",
    "Scheme",
    "Subtree",
    "Tree",
    "Update",
]

RECORD_BYTES = 64
"""A leaf as the tree holds it: key hash (32), leaf hash (32)."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """The constants of a tree. Recorded in the store's identity; never changed in place."""

    name: str
    leaf_prefix: bytes
    inner_prefix: bytes
    null: bytes


JMT_SHA256 = Scheme("jmt-sha256", b"JMT::LeafNode", b"JMT::IntrnalNode", b"SPARSE_MERKLE_PLACEHOLDER_HASH__")
ICS23_SMT = Scheme("ics23-smt", b"\x00", b"\x01", bytes(32))
SCHEMES = {scheme.name: scheme for scheme in (JMT_SHA256, ICS23_SMT)}


class Path(NamedTuple):
    """Where the path of a key hash ends.

    ``leaf`` is the lone leaf found there as (key hash, leaf hash), which may be another key's, or ``None`` if the
    place is empty. ``siblings`` are hashes from the leaf's side to the root; their count is the depth of the place.
    """

    leaf: tuple[bytes, bytes] | None
    siblings: list[bytes]


class Subtree(NamedTuple):
    """The leaves under one node: all whose key hash begins with the first ``depth`` bits of ``prefix``.

    ``prefix`` is 32 bytes, zero behind the depth. ``siblings`` lead from this node to the root (nearest first).
    """

    prefix: bytes
    depth: int
    leaves: int
    hash: bytes
    siblings: list[bytes]


class Update(NamedTuple):
    """A new version, and which keys it has that the old one had not, and the other way round."""

    tree: Tree
    inserted: list[tuple[bytes, bytes]]
    """(key hash, key), ordered by key hash."""
    removed: list[tuple[bytes, bytes]]
    """(key hash, key), ordered by key hash."""


class Tree(Protocol):
    """One version of the tree."""

    @property
    def root(self) -> bytes:
        """32 bytes; the scheme's null constant for an empty tree."""

    @property
    def count(self) -> int:
        """Number of leaves."""

    def update(self, changes: Mapping[bytes, bytes | None]) -> Update:
        """The version with ``changes`` applied: key -> value, ``None`` removes. This one is not changed.

        Keys and values are not empty (``ValueError``). Removing what is absent and writing the same value again
        change nothing. Cost: O(changes * log count) hashes; the native one releases the interpreter lock.
        """

    def update_records(self, records: bytes, removed: bytes) -> Tree:
        """The version with leaves put and removed by their hashes, in any order: for loading and for tests.

        ``records``: ``RECORD_BYTES`` each, put in place of what has the same key hash. ``removed``: key hashes, 32
        bytes each; absent ones change nothing. Raises ``ValueError`` for a broken length and for a key hash that comes
        twice, in the same or in both. This version is not changed. Cost: as ``update``, without hashing rows.
        """

    def path(self, key_hash: bytes) -> Path:
        """Where the path of ``key_hash`` (32 bytes) ends."""

    def neighbours(self, key_hash: bytes) -> tuple[bytes | None, bytes | None]:
        """Key hashes of the nearest leaves below and above ``key_hash``, which itself is left out."""

    def records(self, start: bytes, limit: int) -> bytes:
        """At most ``limit`` leaves with key hash >= ``start`` (32 bytes), in order, ``RECORD_BYTES`` each."""

    def subtrees(self, leaves_max: int) -> list[Subtree]:
        """The topmost nodes with at most ``leaves_max`` (>= 1) leaves each, in order of their prefix; no empty ones.

        Together they hold every leaf once. A lone leaf stands at the depth where it is alone. An empty tree has none.
        """

    def size_bytes(self) -> int:
        """Estimated memory of this version, shared nodes included."""


class Backend(Protocol):
    """One implementation of the tree and of the codecs that go with it."""

    name: str
    """``kernel`` or ``pure``."""

    def empty(self, scheme: Scheme) -> Tree:
        """The tree without leaves."""

    def build(self, scheme: Scheme, records: Iterable[bytes]) -> Tree:
        """The tree of these leaves: any number of byte strings of whole records, in any order.

        Raises ``ValueError`` for a key hash that comes twice or a broken record. Cost: O(n) hashes if in order.
        """

    def hash_rows(self, scheme: Scheme, rows: Sequence[tuple[bytes, bytes]]) -> bytes:
        """The records of (key, value) pairs, in their order."""

    def node_hash(self, scheme: Scheme, records: bytes, depth: int) -> bytes:
        """``node(S, depth)`` of these leaves, in order of their key hash, all of which share ``depth`` bits.

        Raises ``ValueError`` if they are not in strict order or do not share the bits.
        """

    def encode_changes(self, changes: Mapping[bytes, bytes | None], inserted: Collection[bytes]) -> bytes:
        """The bytes of a ``changes`` part (docs/FORMAT.md, section 5.2.5): keys in order.

        ``inserted``: the keys among them that were absent before.
        """

    def decode_changes(self, data: bytes) -> tuple[dict[bytes, bytes | None], list[bytes]]:
        """The changes in these bytes, in order of the keys, and the inserted keys.

        Raises ``ValueError`` for anything but what ``encode_changes`` gives.
        """
