"""Key hashes as paths: 256 bits, the most significant bit of the first byte first; a set bit leads to the right."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

__all__ = ["HASH_BITS", "bit_at", "shared_bits", "split"]

HASH_BITS = 256


def bit_at(key_hash: bytes, depth: int) -> bool:
    """Bit ``depth`` of the path."""
    return bool(key_hash[depth >> 3] & (0x80 >> (depth & 7)))


def shared_bits(one: bytes, other: bytes) -> int:
    """How many bits two paths of 32 bytes have in common from the root on: 0 to 256."""
    return HASH_BITS - (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_length()


def split(keys: Sequence[bytes], low: int, high: int, depth: int) -> int:
    """The first place in the sorted ``keys[low:high]``, which agree in ``depth`` bits, whose next bit is set."""
    byte, mask = depth >> 3, 0x80 >> (depth & 7)
    if high - low > 8:
        return bisect_left(keys, mask, low, high, key=lambda key: key[byte] & mask)
    while low < high and not keys[low][byte] & mask:
        low += 1
    return low
