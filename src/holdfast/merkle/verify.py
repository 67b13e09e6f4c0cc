"""The verifier of a proof: needs the root, the claim and the bytes, and nothing else of the store.

It imports the errors, the limits and the rules of the tree, so a light client carries it without any engine.

Invariants:
    * It accepts exactly the proofs that ``prove`` gives for a tree with this root: H(key) decides the side of
      every step, prefixes and suffixes have their one form, neighbours have nothing between them, and no byte is spare.
    * It reads nothing but its arguments, and does at most ``2 * PROOF_DEPTH_MAX`` hashes of steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from ..errors import InvalidInputError, ProofInvalid
from ..limits import HASH_BYTES
from .api import SCHEMES, Scheme
from .bits import bit_at, shared_bits
from .ics23 import SHA256, EmptyProof, ExistenceProof, LeafOp, NonExistenceProof, decode
from .values import is_reference, tree_value

__all__ = ["check_claim", "check_proof", "scheme_named", "verify_proof"]


def verify_proof(proof: bytes, root: bytes, key: bytes, value: bytes | None, *, scheme: str = "jmt-sha256") -> None:
    """Return if ``proof`` shows that the state with this ``root`` has ``key`` -> ``value``; else ``ProofInvalid``.

    ``value`` ``None``: that it has no ``key``. ``proof``: an ICS-23 ``CommitmentProof``, or zero bytes for the absence
    from an empty state. ``root``: 32 bytes, from a source that is trusted. ``value`` is the whole value, however large.
    The message names what does not hold. Raises ``InvalidInputError`` for an unknown ``scheme`` and for what is not
    bytes.
    """
    rules = scheme_named(scheme)
    check_proof(proof)
    check_claim(root, key, value)
    found = decode(proof)
    if isinstance(found, EmptyProof):
        if value is not None:
            raise ProofInvalid("an empty proof shows no value", key=key)
        if root != rules.null:
            raise ProofInvalid("an empty proof is for an empty state, and this root is of another one", root=root)
    elif found.key != key:
        raise ProofInvalid("the proof is about another key", key=key, found=found.key)
    elif isinstance(found, ExistenceProof):
        if value is None:
            raise ProofInvalid("the proof shows that the key is present, not that it is absent", key=key)
        if found.value != tree_value(value):
            raise ProofInvalid("the proof shows another value", key=key, found=found.value)
        _route(found, root, rules)
    else:
        if value is not None:
            raise ProofInvalid("the proof shows that the key is absent, not what its value is", key=key)
        _check_absence(found, root, rules)


def scheme_named(name: str) -> Scheme:
    """The constants of the scheme ``name``. Raises ``InvalidInputError`` if there is none of this name."""
    scheme = SCHEMES.get(name)
    if scheme is None:
        raise InvalidInputError(f"there is no tree scheme {name!r}; known are {', '.join(sorted(SCHEMES))}")
    return scheme


def check_proof(proof: bytes) -> None:
    """Return if ``proof`` is bytes; else ``InvalidInputError``."""
    if not isinstance(proof, bytes):
        raise InvalidInputError(f"a proof is bytes, not {type(proof).__name__}")


def check_claim(root: bytes, key: bytes, value: bytes | None) -> None:
    """Return if a state could have this root and this row at all; else ``ProofInvalid``, ``InvalidInputError``."""
    for name, given in (("root", root), ("key", key), ("value", b"" if value is None else value)):
        if not isinstance(given, bytes):
            raise InvalidInputError(f"a {name} is bytes, not {type(given).__name__}")
    if len(root) != HASH_BYTES:
        raise ProofInvalid(f"a root has {HASH_BYTES} bytes, not {len(root)}", root=root)
    if not key or value == b"":
        raise ProofInvalid("neither a key nor a value is ever empty", key=key)
    if value is not None and is_reference(value):
        raise ProofInvalid("this is the reference to a large value, which no state has as a value", key=key)


@dataclass(frozen=True, slots=True)
class _Route:
    """A leaf that is under the root, with the siblings on its way: nearest to the leaf first."""

    name: str
    key_hash: bytes
    siblings: list[bytes]

    def sibling_at(self, depth: int) -> bytes:
        return self.siblings[len(self.siblings) - 1 - depth]

    def check_outermost(self, depth: int, null: bytes, *, last: bool) -> None:
        """From ``depth`` down nothing lies behind (``last``) or before this leaf."""
        for level in range(depth, len(self.siblings)):
            if bit_at(self.key_hash, level) != last and self.sibling_at(level) != null:
                side = "behind" if last else "before"
                raise ProofInvalid(f"the {self.name} neighbour has a leaf {side} it that the proof skips", depth=level)


def _route(proof: ExistenceProof, root: bytes, scheme: Scheme, name: str = "own") -> _Route:
    """The way from this leaf to the root, every step checked."""
    if not proof.key or not proof.value:
        raise ProofInvalid(f"the {name} leaf has an empty key or value")
    if proof.leaf != LeafOp(SHA256, SHA256, SHA256, 0, scheme.leaf_prefix):
        raise ProofInvalid(f"the {name} leaf is not hashed by the rules of {scheme.name}")
    key_hash = sha256(proof.key).digest()
    node = sha256(scheme.leaf_prefix + key_hash + sha256(proof.value).digest()).digest()
    prefix = scheme.inner_prefix
    siblings: list[bytes] = []
    for depth, step in zip(range(len(proof.path) - 1, -1, -1), proof.path, strict=True):
        if bit_at(key_hash, depth):
            sibling, suffix = step.prefix[len(prefix) :], b""
            expected = prefix + sibling
        else:
            sibling, suffix = step.suffix, step.suffix
            expected = prefix
        if step.hash != SHA256 or step.prefix != expected or step.suffix != suffix or len(sibling) != HASH_BYTES:
            raise ProofInvalid(f"a step of the {name} leaf is not one of {scheme.name} on its side", depth=depth)
        if not siblings and sibling == scheme.null:
            raise ProofInvalid(f"the {name} leaf is alone below its place, where no tree has it", depth=depth)
        siblings.append(sibling)
        node = sha256(step.prefix + node + step.suffix).digest()
    if node != root:
        raise ProofInvalid(f"the {name} leaf is under another root", root=root, found=node)
    return _Route(name, key_hash, siblings)


def _check_absence(proof: NonExistenceProof, root: bytes, scheme: Scheme) -> None:
    key_hash = sha256(proof.key).digest()
    left = None if proof.left is None else _route(proof.left, root, scheme, "left")
    right = None if proof.right is None else _route(proof.right, root, scheme, "right")
    if left is not None and left.key_hash >= key_hash:
        raise ProofInvalid("the left neighbour is not below the key", key=proof.key)
    if right is not None and right.key_hash <= key_hash:
        raise ProofInvalid("the right neighbour is not above the key", key=proof.key)
    if left is not None and right is not None:
        parting = shared_bits(left.key_hash, right.key_hash)
        # Both lead to one root, so a leaf of one is no inner node of the other: each goes on below the parting.
        left.check_outermost(parting + 1, scheme.null, last=True)
        right.check_outermost(parting + 1, scheme.null, last=False)
    elif left is not None:
        left.check_outermost(0, scheme.null, last=True)
    elif right is not None:
        right.check_outermost(0, scheme.null, last=False)
    else:
        raise ProofInvalid("the proof names no neighbour of the absent key", key=proof.key)
