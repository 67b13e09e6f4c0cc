"""What the tests of the tree share: the ten-line definition, key hashes with long shared prefixes, and small states."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

from hypothesis import strategies as st

from holdfast.merkle.api import Scheme


def sha(data: bytes) -> bytes:
    return sha256(data).digest()


def bit(key_hash: bytes, depth: int) -> int:
    return key_hash[depth // 8] >> (7 - depth % 8) & 1


def node(scheme: Scheme, leaves: Mapping[bytes, bytes], depth: int = 0) -> bytes:
    """The definition, word for word (docs/FORMAT.md, section 8): key hash -> leaf hash."""
    if not leaves:
        return scheme.null
    if len(leaves) == 1:
        return next(iter(leaves.values()))
    left = {key: leaf for key, leaf in leaves.items() if not bit(key, depth)}
    right = {key: leaf for key, leaf in leaves.items() if bit(key, depth)}
    return sha(scheme.inner_prefix + node(scheme, left, depth + 1) + node(scheme, right, depth + 1))


def leaf_of(scheme: Scheme, key_hash: bytes, value: bytes) -> bytes:
    return sha(scheme.leaf_prefix + key_hash + sha(value))


def leaves_of(scheme: Scheme, rows: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    return {sha(key): leaf_of(scheme, sha(key), value) for key, value in rows.items()}


def rows_of(count: int) -> dict[bytes, bytes]:
    return {b"key-%d" % number: b"value-%d" % number for number in range(count)}


def records_of(leaves: Mapping[bytes, bytes]) -> bytes:
    return b"".join(key + leaves[key] for key in sorted(leaves))


def flipped(key_hash: bytes, depth: int) -> bytes:
    """The key hash that shares exactly ``depth`` bits with this one, and all bits behind that one."""
    return (int.from_bytes(key_hash, "big") ^ 1 << (255 - depth)).to_bytes(32, "big")


BASES = [bytes(32), b"\xff" * 32, sha(b"base"), sha(b"another base")]

key_hashes = st.one_of(
    st.binary(min_size=32, max_size=32),
    st.integers(0, 40).map(lambda number: sha(b"%d" % number)),
    st.builds(flipped, st.sampled_from(BASES), st.integers(0, 255)),
    st.builds(flipped, st.sampled_from(BASES), st.integers(240, 255)),
    st.sampled_from(BASES),
)
"""Key hashes as an attacker would grind them: many agree in up to 255 bits."""


class Rows:
    """A state in memory, as ``prove`` wants to look it up."""

    def __init__(self, rows: Mapping[bytes, bytes]) -> None:
        self.rows = dict(rows)
        self.keys = {sha(key): key for key in rows}

    def key_of(self, key_hash: bytes) -> bytes:
        return self.keys[key_hash]

    def value_of(self, key: bytes) -> bytes:
        return self.rows[key]
