"""The ICS-23 messages of a proof and their protobuf bytes (docs/FORMAT.md, section 8.2), written by hand.

Only what our proofs need of ``cosmos.ics23.v1``: ``CommitmentProof`` with ``exist`` or ``nonexist``; no batches.

Invariants:
    * ``decode`` takes exactly what ``encode`` gives: fields in order, each once, none unknown, no default written out,
      shortest varints, nothing left over. So ``encode(decode(data)) == data``, and no two byte strings are one proof.
    * What comes from outside is bounded: ``PROOF_BYTES_MAX`` bytes, ``PROOF_DEPTH_MAX`` steps of a path.
    * Nothing is checked here of what a proof says: that is verify.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from ..errors import ProofInvalid
from ..limits import PROOF_BYTES_MAX, PROOF_DEPTH_MAX

__all__ = [
    "SHA256",
    "CommitmentProof",
    "EmptyProof",
    "ExistenceProof",
    "InnerOp",
    "LeafOp",
    "NonExistenceProof",
    "decode",
    "encode",
]

SHA256 = 1
"""``HashOp.SHA256``."""


@dataclass(frozen=True, slots=True)
class LeafOp:
    """How key and value become the leaf's hash: H(prefix + prehash_key(key) + prehash_value(value))."""

    hash: int
    prehash_key: int
    prehash_value: int
    length: int
    prefix: bytes


class InnerOp(NamedTuple):
    """One step towards the root: H(prefix + child + suffix)."""

    hash: int
    prefix: bytes
    suffix: bytes


@dataclass(frozen=True, slots=True)
class ExistenceProof:
    """A key with its value, and the path from its leaf (first) to the root (last)."""

    key: bytes
    value: bytes
    leaf: LeafOp | None
    path: tuple[InnerOp, ...]


@dataclass(frozen=True, slots=True)
class NonExistenceProof:
    """An absent key between its neighbours by key hash; one of them may be missing."""

    key: bytes
    left: ExistenceProof | None
    right: ExistenceProof | None


@dataclass(frozen=True, slots=True)
class EmptyProof:
    """Zero bytes: nothing is in the tree, and its root, the null constant, is all the proof there is."""


CommitmentProof: TypeAlias = ExistenceProof | NonExistenceProof | EmptyProof

# -- writing -------------------------------------------------------------------------------------------------------


_SMALL = tuple(bytes((number,)) for number in range(0x80))


def _varint(number: int) -> bytes:
    if number <= 0x7F:
        return _SMALL[number]
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _number(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number) if number else b""


def _message(field: int, data: bytes | None) -> bytes:
    return b"" if data is None else _varint(field << 3 | 2) + _varint(len(data)) + data


def _bytes(field: int, data: bytes) -> bytes:
    return _message(field, data or None)


def _leaf(leaf: LeafOp) -> bytes:
    numbers = (leaf.hash, leaf.prehash_key, leaf.prehash_value, leaf.length)
    return b"".join(_number(field, number) for field, number in enumerate(numbers, 1)) + _bytes(5, leaf.prefix)


@lru_cache(maxsize=256)
def _inner_heads(hash_op: int, prefix: int, suffix: int) -> tuple[bytes, bytes]:
    """What stands before a prefix and between it and a suffix of these lengths, in an element of ``path``."""
    first = _number(1, hash_op) + (_varint(2 << 3 | 2) + _varint(prefix) if prefix else b"")
    second = _varint(3 << 3 | 2) + _varint(suffix) if suffix else b""
    return _varint(4 << 3 | 2) + _varint(len(first) + prefix + len(second) + suffix) + first, second


def _inner(step: InnerOp) -> bytes:
    """An element of ``path``, with its head. Most of a proof is these, and they have one of two forms."""
    hash_op, prefix, suffix = step
    first, second = _inner_heads(hash_op, len(prefix), len(suffix))
    return b"".join((first, prefix, second, suffix))


def _existence(proof: ExistenceProof) -> bytes:
    leaf = None if proof.leaf is None else _leaf(proof.leaf)
    path = b"".join(map(_inner, proof.path))
    return _bytes(1, proof.key) + _bytes(2, proof.value) + _message(3, leaf) + path


def encode(proof: CommitmentProof) -> bytes:
    """The protobuf bytes of a ``CommitmentProof``; zero bytes for the empty one."""
    if isinstance(proof, ExistenceProof):
        return _message(1, _existence(proof))
    if isinstance(proof, NonExistenceProof):
        left = None if proof.left is None else _existence(proof.left)
        right = None if proof.right is None else _existence(proof.right)
        return _message(2, _bytes(1, proof.key) + _message(2, left) + _message(3, right))
    return b""


# -- reading -------------------------------------------------------------------------------------------------------

NUMBER, BYTES, MESSAGE, MESSAGES = "number", "bytes", "message", "messages"

_LEAF = {1: NUMBER, 2: NUMBER, 3: NUMBER, 4: NUMBER, 5: BYTES}
_INNER = {1: NUMBER, 2: BYTES, 3: BYTES}
_EXISTENCE = {1: BYTES, 2: BYTES, 3: MESSAGE, 4: MESSAGES}
_NON_EXISTENCE = {1: BYTES, 2: MESSAGE, 3: MESSAGE}
_COMMITMENT = {1: MESSAGE, 2: MESSAGE}


class _Fields:
    """The fields of one message, checked for order and form."""

    __slots__ = ("_data", "_name", "blobs", "numbers")

    def __init__(self, name: str, data: bytes, kinds: Mapping[int, str]) -> None:
        self._name = name
        self._data = data
        self.numbers: dict[int, int] = {}
        self.blobs: dict[int, list[bytes]] = {}
        at = last = 0
        while at < len(data):
            tag, at = self._varint(at)
            field, wire = tag >> 3, tag & 7
            kind = kinds.get(field)
            if kind is None or wire != (0 if kind == NUMBER else 2):
                raise self._refuse(f"the field {field} of wire type {wire} does not belong there", at)
            if field < last or (field == last and kind != MESSAGES):
                raise self._refuse(f"the field {field} stands behind the field {last}", at)
            last = field
            number, at = self._varint(at)
            if kind == NUMBER:
                if number == 0:
                    raise self._refuse(f"the field {field} writes out its default", at)
                self.numbers[field] = number
                continue
            if kind == BYTES and number == 0:
                raise self._refuse(f"the field {field} writes out its default", at)
            if number > len(data) - at:
                raise self._refuse(f"the field {field} of {number} bytes is cut off", at)
            self.blobs.setdefault(field, []).append(data[at : at + number])
            at += number

    def _varint(self, at: int) -> tuple[int, int]:
        number = 0
        for shift in range(0, 28, 7):
            if at >= len(self._data):
                raise self._refuse("a number is cut off", at)
            byte = self._data[at]
            at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and shift:
                    raise self._refuse("a number is not in its shortest form", at)
                return number, at
        raise self._refuse("a number has more than 28 bits", at)

    def _refuse(self, why: str, at: int) -> ProofInvalid:
        return ProofInvalid(f"the proof is not in its one encoding: {why}", part=self._name, offset=at)

    def number(self, field: int) -> int:
        return self.numbers.get(field, 0)

    def blob(self, field: int) -> bytes:
        return self.blobs.get(field, [b""])[0]


def _read_existence(name: str, data: bytes) -> ExistenceProof:
    fields = _Fields(name, data, _EXISTENCE)
    steps = fields.blobs.get(4, [])
    if len(steps) > PROOF_DEPTH_MAX:
        raise ProofInvalid(f"the path has {len(steps)} steps, at most {PROOF_DEPTH_MAX} are possible", part=name)
    leaf = None
    if 3 in fields.blobs:
        op = _Fields(f"{name}.leaf", fields.blob(3), _LEAF)
        leaf = LeafOp(op.number(1), op.number(2), op.number(3), op.number(4), op.blob(5))
    path = []
    for place, step in enumerate(steps):
        op = _Fields(f"{name}.path[{place}]", step, _INNER)
        path.append(InnerOp(op.number(1), op.blob(2), op.blob(3)))
    return ExistenceProof(fields.blob(1), fields.blob(2), leaf, tuple(path))


def decode(data: bytes) -> CommitmentProof:
    """The proof in these bytes. Raises ``ProofInvalid`` for anything but what ``encode`` gives. Cost: O(bytes)."""
    if len(data) > PROOF_BYTES_MAX:
        raise ProofInvalid(f"the proof has {len(data)} bytes, at most {PROOF_BYTES_MAX} are read")
    fields = _Fields("proof", data, _COMMITMENT)
    if len(fields.blobs) > 1:
        raise ProofInvalid("the proof claims existence and absence at once", part="proof")
    if 1 in fields.blobs:
        return _read_existence("exist", fields.blob(1))
    if 2 not in fields.blobs:
        return EmptyProof()
    absent = _Fields("nonexist", fields.blob(2), _NON_EXISTENCE)
    left = _read_existence("nonexist.left", absent.blob(2)) if 2 in absent.blobs else None
    right = _read_existence("nonexist.right", absent.blob(3)) if 3 in absent.blobs else None
    return NonExistenceProof(absent.blob(1), left, right)
