"""One proof for many keys, present and absent, against one root (docs/FORMAT.md, section 8.3).

The proof is the part of the tree that the asked paths touch, in pre-order: a 2-bit tag for each place, then the hashes
that the verifier cannot compute. Siblings that are computed from other asked keys are left out, shared ones stand once,
and the keys and values are not repeated: the claim has them.

Invariants:
    * For a root that a tree has and a claim that holds there is exactly one proof, and only it is accepted.
    * A proof has at most ``PROOF_BYTES_MAX`` bytes for 1 to ``PROOF_KEYS_MAX`` keys; the recursion is 256 deep at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import NoReturn

from ..errors import InvalidInputError, LimitExceeded, ProofInvalid
from ..limits import HASH_BYTES, PROOF_BYTES_MAX, PROOF_KEYS_MAX
from .api import JMT_SHA256, Path, Scheme, Tree
from .bits import HASH_BITS, shared_bits, split
from .prove import Lookup, held_key, held_value
from .values import tree_value
from .verify import check_claim, check_proof, scheme_named

__all__ = ["VERSION", "prove_many", "verify_many"]

VERSION = 1
HEADER_BYTES = 5
EMPTY, HASH, INNER, OTHER = 0, 1, 2, 3
"""Tags. Where keys are asked for, ``HASH`` is the leaf of one of them, and its hash is not in the proof."""


def prove_many(tree: Tree, keys: Iterable[bytes], lookup: Lookup, *, scheme: Scheme = JMT_SHA256) -> bytes:
    """The proof that these keys have the values of ``tree``, or are absent from it. ``scheme`` is that of ``tree``.

    Raises ``InvalidInputError`` for no keys, an empty one or one that comes twice, ``LimitExceeded`` for more than
    ``PROOF_KEYS_MAX`` keys or a proof above ``PROOF_BYTES_MAX``, ``CorruptionError`` if the rows are not those of the
    tree. Cost: one path for each key, and one row for each absent key.
    """
    wanted = list(keys)
    if len(wanted) > PROOF_KEYS_MAX:
        raise LimitExceeded(f"{len(wanted)} keys are asked for, at most {PROOF_KEYS_MAX} fit into one proof")
    hashes = sorted(sha256(key).digest() for key in wanted)
    if not wanted or b"" in wanted or len(set(hashes)) != len(wanted):
        raise InvalidInputError("the keys to prove are at least one, none of them empty, each once")
    writer = _Writer(hashes, [tree.path(key_hash) for key_hash in hashes], lookup, scheme)
    writer.place(0, len(hashes), 0)
    proof = writer.finished()
    if len(proof) > PROOF_BYTES_MAX:
        raise LimitExceeded(
            f"the proof of {len(wanted)} keys has {len(proof)} bytes, at most {PROOF_BYTES_MAX} are read",
            remedy="ask for fewer keys at once",
        )
    return proof


class _Writer:
    """Tags and hashes of the places, as they are visited."""

    __slots__ = ("_data", "_hashes", "_lookup", "_paths", "_scheme", "_tags")

    def __init__(self, hashes: list[bytes], paths: list[Path], lookup: Lookup, scheme: Scheme) -> None:
        self._hashes = hashes
        self._paths = paths
        self._lookup = lookup
        self._scheme = scheme
        self._tags = bytearray()
        self._data: list[bytes] = []

    def place(self, low: int, high: int, depth: int) -> None:
        """The place at ``depth`` on the way to the keys ``low`` to ``high``, of which there is at least one."""
        leaf, siblings = self._paths[low]
        if len(siblings) == depth:
            self._end(leaf, low, high)
            return
        self._tags.append(INNER)
        middle = split(self._hashes, low, high, depth)
        sibling = siblings[len(siblings) - 1 - depth]
        for start, end in ((low, middle), (middle, high)):
            if start < end:
                self.place(start, end, depth + 1)
            elif sibling == self._scheme.null:
                self._tags.append(EMPTY)
            else:
                self._tags.append(HASH)
                self._data.append(sibling)

    def _end(self, leaf: tuple[bytes, bytes] | None, low: int, high: int) -> None:
        if leaf is None:
            self._tags.append(EMPTY)
        elif leaf[0] in self._hashes[low:high]:
            self._tags.append(HASH)
        else:
            self._tags.append(OTHER)
            value = held_value(leaf, held_key(leaf[0], self._lookup), self._lookup, self._scheme)
            self._data += (leaf[0], sha256(value).digest())

    def finished(self) -> bytes:
        count = len(self._tags)
        tags = self._tags + bytes(-count % 4)
        packed = bytes(
            tags[at] << 6 | tags[at + 1] << 4 | tags[at + 2] << 2 | tags[at + 3] for at in range(0, len(tags), 4)
        )
        return b"".join([bytes([VERSION]), count.to_bytes(4, "big"), packed, *self._data])


def verify_many(proof: bytes, root: bytes, claims: Mapping[bytes, bytes | None], *, scheme: str = "jmt-sha256") -> None:
    """Return if ``proof`` shows every claim (key -> value, ``None``: absent) of the state with this ``root``.

    Else ``ProofInvalid``, whose message names what does not hold. ``proof`` is what ``prove_many`` gives for exactly
    the keys of ``claims``. ``root``: 32 bytes, from a source that is trusted. Raises ``InvalidInputError`` for an
    unknown ``scheme``, for no claims and for what is not bytes, ``LimitExceeded`` for more than ``PROOF_KEYS_MAX``.
    """
    rules = scheme_named(scheme)
    check_proof(proof)
    if not isinstance(claims, Mapping):
        raise InvalidInputError(f"the claims are a mapping of keys to values, not {type(claims).__name__}")
    if not claims:
        raise InvalidInputError("there is no claim to verify")
    if len(claims) > PROOF_KEYS_MAX:
        raise LimitExceeded(f"there are {len(claims)} claims, at most {PROOF_KEYS_MAX} fit into one proof")
    rows: list[tuple[bytes, bytes | None]] = []
    for key, value in claims.items():
        check_claim(root, key, value)
        key_hash = sha256(key).digest()
        rows.append((key_hash, None if value is None else _leaf(rules, key_hash, sha256(tree_value(value)).digest())))
    rows.sort(key=lambda row: row[0])
    reader = _Reader(proof, rows, rules)
    found = reader.place(0, len(rows), 0)[0]
    reader.check_end()
    if found != root:
        raise ProofInvalid("the claims are not those of this root", root=root, found=found)


def _leaf(scheme: Scheme, key_hash: bytes, value_hash: bytes) -> bytes:
    return sha256(scheme.leaf_prefix + key_hash + value_hash).digest()


class _Reader:
    """Computes the root from the claims and the proof, place by place."""

    __slots__ = ("_at", "_count", "_data", "_hashes", "_leaves", "_place", "_scheme")

    def __init__(self, data: bytes, rows: list[tuple[bytes, bytes | None]], scheme: Scheme) -> None:
        self._data = data
        self._hashes = [row[0] for row in rows]
        self._leaves = [row[1] for row in rows]
        self._scheme = scheme
        if not HEADER_BYTES <= len(data) <= PROOF_BYTES_MAX:
            self._refuse(f"it has {len(data)} bytes, not {HEADER_BYTES} to {PROOF_BYTES_MAX}")
        if data[0] != VERSION:
            self._refuse(f"its version is {data[0]}, not {VERSION}")
        self._count = int.from_bytes(data[1:HEADER_BYTES], "big")
        self._place = 0
        self._at = HEADER_BYTES + (self._count + 3) // 4
        if self._at > len(data):
            self._refuse("its tags are cut off")
        if self._count % 4 and data[self._at - 1] & (0xFF >> 2 * (self._count % 4)):
            self._refuse("the bits behind its last tag are not zero")

    def _refuse(self, why: str) -> NoReturn:
        raise ProofInvalid(f"the proof of many keys is not in its one form: {why}")

    def _tag(self) -> int:
        if self._place >= self._count:
            self._refuse("it ends before all places are there")
        byte = self._data[HEADER_BYTES + self._place // 4]
        tag = byte >> (6 - 2 * (self._place % 4)) & 3
        self._place += 1
        return tag

    def _hash(self) -> bytes:
        found = self._data[self._at : self._at + HASH_BYTES]
        if len(found) != HASH_BYTES:
            self._refuse("its hashes are cut off")
        self._at += HASH_BYTES
        return found

    def check_end(self) -> None:
        """Every tag and every hash was needed."""
        if self._place != self._count or self._at != len(self._data):
            self._refuse(f"{self._count - self._place} tags and {len(self._data) - self._at} bytes are spare")

    def place(self, low: int, high: int, depth: int) -> tuple[bytes, int]:
        """Hash and tag of the place at ``depth`` on the way to the claims ``low`` to ``high``."""
        tag = self._tag()
        if low == high:
            return self._sibling(tag), tag
        if tag == INNER:
            return self._inner(low, high, depth), tag
        present = [leaf for leaf in self._leaves[low:high] if leaf is not None]
        if tag == HASH:
            if len(present) != 1:
                self._refuse(f"{len(present)} keys with a value share the place of one leaf")
            return present[0], tag
        if present:
            raise ProofInvalid("the proof shows that a key is absent which should have a value")
        if tag == EMPTY:
            return self._scheme.null, tag
        return self._other(low, high, depth), tag

    def _sibling(self, tag: int) -> bytes:
        if tag == EMPTY:
            return self._scheme.null
        if tag != HASH:
            self._refuse("it opens a place that nothing was asked about")
        found = self._hash()
        if found == self._scheme.null:
            self._refuse("an empty place is written as a hash")
        return found

    def _inner(self, low: int, high: int, depth: int) -> bytes:
        if depth == HASH_BITS:
            self._refuse(f"it goes deeper than {HASH_BITS} bits")
        middle = split(self._hashes, low, high, depth)
        left, left_tag = self.place(low, middle, depth + 1)
        right, right_tag = self.place(middle, high, depth + 1)
        if EMPTY in (left_tag, right_tag):
            # The other side must be a node of two leaves or more: not empty, nor one of the leaves shown here.
            tag, asked = (right_tag, middle < high) if left_tag == EMPTY else (left_tag, low < middle)
            if tag in (EMPTY, OTHER) or (tag == HASH and asked):
                self._refuse("a place has two children for one leaf or none")
        return sha256(self._scheme.inner_prefix + left + right).digest()

    def _other(self, low: int, high: int, depth: int) -> bytes:
        key_hash = self._hash()
        value_hash = self._hash()
        if shared_bits(key_hash, self._hashes[low]) < depth:
            self._refuse("the leaf of another key stands where that key does not lead")
        if key_hash in self._hashes[low:high]:
            raise ProofInvalid("the proof shows a value of a key that should be absent", key_hash=key_hash)
        return _leaf(self._scheme, key_hash, value_hash)
