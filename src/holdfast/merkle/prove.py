"""Building ICS-23 proofs from a tree and the rows behind it.

The tree knows hashes only; ``Lookup`` gives the raw keys and values, which a proof carries. What it gives is checked
against the tree before it goes into a proof.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Protocol

from ..errors import CorruptionError, InvalidInputError, Recovery
from .api import JMT_SHA256, Scheme, Tree
from .bits import HASH_BITS
from .ics23 import SHA256, CommitmentProof, EmptyProof, ExistenceProof, InnerOp, LeafOp, NonExistenceProof
from .values import tree_value

__all__ = ["Lookup", "held_key", "held_value", "prove"]


class Lookup(Protocol):
    """The rows of the version of the state that the tree is of."""

    def key_of(self, key_hash: bytes) -> bytes:
        """The key with this hash, which the tree has."""

    def value_of(self, key: bytes) -> bytes:
        """The value of this key, which the tree has: whole, or already as ``values.tree_value`` gives it."""


def prove(tree: Tree, key: bytes, lookup: Lookup, *, scheme: Scheme = JMT_SHA256) -> CommitmentProof:
    """The proof that ``key`` has its value, or that it is absent (``ics23.encode`` gives the bytes).

    ``scheme`` is that of ``tree``. In an empty tree ``EmptyProof``: its root is the scheme's null constant, and that is
    the proof. Raises ``CorruptionError`` if the rows are not those of the tree, ``InvalidInputError`` for an empty key.
    Cost: one path, or two for an absence, and one or two rows.
    """
    if not key:
        raise InvalidInputError("a key is never empty, so there is nothing to prove about it")
    if tree.count == 0:
        return EmptyProof()
    key_hash = sha256(key).digest()
    leaf, siblings = tree.path(key_hash)
    if leaf is not None and leaf[0] == key_hash:
        return _existence(leaf, siblings, key, lookup, scheme)
    left, right = (None if side is None else _beside(tree, side, lookup, scheme) for side in tree.neighbours(key_hash))
    return NonExistenceProof(key, left, right)


def held_key(key_hash: bytes, lookup: Lookup) -> bytes:
    """The key with this hash. Raises ``CorruptionError`` if the rows name another."""
    key = lookup.key_of(key_hash)
    if sha256(key).digest() != key_hash:
        raise CorruptionError(
            "the row of a key hash names another key", key_hash=key_hash, found=key, recovery=Recovery.REBUILD
        )
    return key


def held_value(leaf: tuple[bytes, bytes], key: bytes, lookup: Lookup, scheme: Scheme) -> bytes:
    """Tree value of ``key``, whose leaf (key hash, leaf hash) this is. Raises ``CorruptionError`` for another value."""
    key_hash, leaf_hash = leaf
    value = tree_value(lookup.value_of(key))
    if sha256(scheme.leaf_prefix + key_hash + sha256(value).digest()).digest() != leaf_hash:
        raise CorruptionError("the row of a key has another value than the tree", key=key, recovery=Recovery.REBUILD)
    return value


def _beside(tree: Tree, key_hash: bytes, lookup: Lookup, scheme: Scheme) -> ExistenceProof:
    leaf, siblings = tree.path(key_hash)
    assert leaf is not None
    assert leaf[0] == key_hash
    return _existence(leaf, siblings, held_key(key_hash, lookup), lookup, scheme)


def _existence(
    leaf: tuple[bytes, bytes], siblings: list[bytes], key: bytes, lookup: Lookup, scheme: Scheme
) -> ExistenceProof:
    value = held_value(leaf, key, lookup, scheme)
    prefix = scheme.inner_prefix
    sides = int.from_bytes(leaf[0], "big") >> (HASH_BITS - len(siblings))  # the lowest bit is that of the leaf's side
    path = []
    for sibling in siblings:
        path.append(InnerOp(SHA256, prefix + sibling, b"") if sides & 1 else InnerOp(SHA256, prefix, sibling))
        sides >>= 1
    return ExistenceProof(key, value, LeafOp(SHA256, SHA256, SHA256, 0, scheme.leaf_prefix), tuple(path))
