"""What stands in the tree for a value: the value itself, or for a large one its length and hash.

A proof carries the value of its neighbours, so what stands in the tree is at most ``STATE_INLINE_BYTES_MAX`` long.

Invariant: two values never have the same tree value. A value that has the form of a reference would break that, so the
state MUST refuse to store one (``is_reference``), and the verifiers refuse a claim of one.
"""

from __future__ import annotations

from hashlib import sha256

from ..limits import STATE_INLINE_BYTES_MAX

__all__ = ["REFERENCE_BYTES", "REFERENCE_MAGIC", "is_reference", "tree_value"]

REFERENCE_MAGIC = b"HOLDFAST-BLOB"
REFERENCE_BYTES = 53
"""Magic (13), length of the value as u64 big-endian (8), SHA-256 of the value (32)."""


def tree_value(value: bytes) -> bytes:
    """What stands in the tree for ``value``: itself up to ``STATE_INLINE_BYTES_MAX`` bytes, else 53 bytes about it.

    A reference is returned as it is, so this may be applied to what the tree holds already.
    """
    if len(value) <= STATE_INLINE_BYTES_MAX:
        return value
    return REFERENCE_MAGIC + len(value).to_bytes(8, "big") + sha256(value).digest()


def is_reference(value: bytes) -> bool:
    """True for the 53 bytes that stand for a large value. The state refuses a value of exactly this form."""
    return len(value) == REFERENCE_BYTES and value.startswith(REFERENCE_MAGIC)
