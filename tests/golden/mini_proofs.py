"""A verifier of proofs of many keys, from docs/FORMAT.md, section 8, alone. It imports nothing of the package."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

SCHEMES = {
    "jmt-sha256": (b"JMT::LeafNode", b"JMT::IntrnalNode", b"SPARSE_MERKLE_PLACEHOLDER_HASH__"),
    "ics23-smt": (b"\x00", b"\x01", bytes(32)),
}


def h(data: bytes) -> bytes:
    return sha256(data).digest()


def path(key_hash: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in key_hash)


class Bad(Exception):
    """The proof is refused."""


def need(holds: bool) -> None:
    if not holds:
        raise Bad


def tree_value(value: bytes) -> bytes:
    need(value != b"" and not (len(value) == 53 and value.startswith(b"HOLDFAST-BLOB")))
    return value if len(value) <= 65536 else b"HOLDFAST-BLOB" + len(value).to_bytes(8, "big") + h(value)


def check(proof: bytes, root: bytes, claims: Mapping[bytes, bytes | None], scheme: str) -> None:
    """Return if the proof holds, else raise ``Bad``."""
    leaf_prefix, inner_prefix, null = SCHEMES[scheme]
    leaves: dict[str, bytes | None] = {}
    for key, value in claims.items():
        need(key != b"")
        leaf = None if value is None else h(leaf_prefix + h(key) + h(tree_value(value)))
        leaves[path(h(key))] = leaf
    need(1 <= len(leaves) <= 4096 and 5 <= len(proof) <= 1 << 20 and proof[0] == 1)
    count = int.from_bytes(proof[1:5], "big")
    size = (count + 3) // 4
    need(len(proof) >= 5 + size)
    bits = "".join(f"{byte:08b}" for byte in proof[5 : 5 + size])
    tags = [int(bits[at : at + 2], 2) for at in range(0, 2 * count, 2)]
    need("1" not in bits[2 * count :])
    rest = proof[5 + size :]

    def take() -> bytes:
        nonlocal rest
        need(len(rest) >= 32)
        found, rest = rest[:32], rest[32:]
        return found

    def place(where: str) -> tuple[bytes, str]:
        """The hash at this place, and whether it is empty, a leaf that the proof shows, or something else."""
        need(bool(tags))
        tag = tags.pop(0)
        asked = {key: leaf for key, leaf in leaves.items() if key.startswith(where)}
        if not asked:
            need(tag in (0, 1))
            found = take() if tag else null
            need(tag == 0 or found != null)
            return found, "other" if tag else "empty"
        if tag == 2:
            need(len(where) < 256)
            (left, is_left), (right, is_right) = place(where + "0"), place(where + "1")
            need(not ("empty" in (is_left, is_right) and {is_left, is_right} <= {"empty", "leaf"}))
            return h(inner_prefix + left + right), "other"
        present = [leaf for leaf in asked.values() if leaf is not None]
        need(len(present) == (1 if tag == 1 else 0))
        if tag == 1:
            return present[0], "leaf"
        if tag == 0:
            return null, "empty"
        key_hash, value_hash = take(), take()
        need(path(key_hash).startswith(where) and path(key_hash) not in leaves)
        return h(leaf_prefix + key_hash + value_hash), "leaf"

    found, _ = place("")
    need(not tags and not rest and found == root)
