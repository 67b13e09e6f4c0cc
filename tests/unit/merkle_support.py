"""What the tests of the tree share: the ten-line definition, key hashes with long shared prefixes, and small states."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

from hypothesis import strategies as st

from holdfast.merkle.api import ICS23_SMT, JMT_SHA256, Scheme

JMT_ROOTS = {
    0: "5350415253455f4d45524b4c455f504c414345484f4c4445525f484153485f5f",
    3: "7b731547e3bf5c1d81afbd4b2e7e0e9840c2e671cb3ed3c46520b85aadf2aeee",
    4: "361792e30695ce728b8bd58f7b2b66d721d00c65e0bf38b7c485d754def1242a",
    10: "51a452b5cb3eb4076184facda5a64bc09b89cfd75105696f702facb787e79eb5",
    100: "91f4702f0b17af0f518dc831a492989aff554ddbe3aaabd5f3de83a66874369d",
    1000: "34d0f4e3a15c08012cb8f6cdc85c591eba8b5bffa4cdc18d63c40cbe87ee3637",
    10000: "9454d65d95492a5e9654521f42597cd620331795315163b312277590ce991fe7",
}
"""Roots of the Rust crate ``jmt`` 0.12.0 for "key-i" -> "value-i"."""
SMT_ROOTS = {
    0: "00" * 32,
    3: "425f91c8419bdc177d61a2553df8dc71fac309cbd1c54014a50b41b62467da65",
    4: "8103ed77ce7905865d5b3fb611e7941e3308d60a4f8389256f66cdc5eca95cac",
    10: "e1e7f656eed821507c039efd17a5b2798976f19f8199db6e63004d3da584877d",
    100: "71ede163c2b787b578bb9098a7fe1a58c65dd47818111c9cf3b3f25e9d21fc06",
    1000: "29987e91d74d347f283cede83b961372331163cd548b1d128986751f4f1543f5",
    10000: "f4af8dfd88f5717682804f47f55d6f996a1ea97ed6312c8945bae900cf43b249",
}
"""Roots of the Go module ``celestiaorg/smt`` 0.3.0."""

PUBLISHED = [(JMT_SHA256, *item) for item in JMT_ROOTS.items()] + [(ICS23_SMT, *item) for item in SMT_ROOTS.items()]


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
