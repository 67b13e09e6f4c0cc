"""The 80-byte block header of Bitcoin, its hash, its target and the rule that moves the target.

    | version i32 (4) | previous hash (32) | Merkle root (32) | time u32 (4) | bits u32 (4) | nonce u32 (4) |

Little-endian.

Invariants:
    * Hashes are in the order the hash function gives them; ``display_hash`` reverses them, as explorers show them.
    * A target is positive, below 2**256 and not above the network's limit, or the header is refused.
    * All arithmetic is on integers.

Source: ``src/primitives/block.h``, ``src/arith_uint256.cpp`` and ``src/pow.cpp`` of Bitcoin Core.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import sha256

from ...errors import InvalidBlock

__all__ = [
    "HEADER_BYTES",
    "RETARGET_BLOCKS",
    "Header",
    "block_work",
    "compact_from_target",
    "decode_header",
    "display_hash",
    "encode_header",
    "hash_of_header",
    "next_bits",
    "parse_display_hash",
    "sha256d",
    "target_from_compact",
]

_HEADER = struct.Struct("<i32s32sIII")
HEADER_BYTES = 80
assert _HEADER.size == HEADER_BYTES

RETARGET_BLOCKS = 2016
_RETARGET_SECONDS = 14 * 24 * 60 * 60


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of a header."""

    version: int
    parent: bytes
    merkle_root: bytes
    time: int
    bits: int
    nonce: int


def sha256d(data: bytes) -> bytes:
    """SHA-256 of the SHA-256 of ``data``."""
    return sha256(sha256(data).digest()).digest()


def hash_of_header(header: bytes) -> bytes:
    """The block hash of 80 header bytes."""
    return sha256(sha256(header).digest()).digest()


def display_hash(block_hash: bytes) -> str:
    """The hash as explorers and nodes print it: byte order reversed, hexadecimal."""
    return block_hash[::-1].hex()


def parse_display_hash(text: str) -> bytes:
    """The hash that ``display_hash`` prints as ``text``."""
    return bytes.fromhex(text)[::-1]


def decode_header(data: bytes) -> Header:
    """The header in exactly 80 bytes."""
    if len(data) != HEADER_BYTES:
        raise InvalidBlock("a Bitcoin header has a wrong length", found=len(data), expected=HEADER_BYTES)
    return Header(*_HEADER.unpack(data))


def encode_header(header: Header) -> bytes:
    """The 80 bytes of ``header``."""
    return _HEADER.pack(header.version, header.parent, header.merkle_root, header.time, header.bits, header.nonce)


def target_from_compact(bits: int) -> int:
    """The target that ``bits`` stands for. Refuses a negative, zero or overflowing one."""
    exponent = bits >> 24
    mantissa = bits & 0x7FFFFF
    target = mantissa >> (8 * (3 - exponent)) if exponent <= 3 else mantissa << (8 * (exponent - 3))
    if bits & 0x800000 and mantissa:
        raise InvalidBlock("the target in 'bits' is negative", bits=f"{bits:#010x}")
    if target >= 1 << 256:
        raise InvalidBlock("the target in 'bits' overflows 256 bits", bits=f"{bits:#010x}")
    if target == 0:
        raise InvalidBlock("the target in 'bits' is zero", bits=f"{bits:#010x}")
    return target


def compact_from_target(target: int) -> int:
    """The compact form of ``target``, with the precision of 23 bits that it has."""
    size = (target.bit_length() + 7) // 8
    mantissa = target << (8 * (3 - size)) if size <= 3 else target >> (8 * (size - 3))
    if mantissa & 0x800000:
        mantissa >>= 8
        size += 1
    return size << 24 | mantissa


def block_work(target: int) -> int:
    """The expected number of hashes that meet ``target``: ``2**256 // (target + 1)``."""
    return (1 << 256) // (target + 1)


def next_bits(bits: int, first_time: int, last_time: int, pow_limit: int) -> int:
    """The ``bits`` of the next period of 2016 blocks, from those of the last one and the times of its ends."""
    span = min(max(last_time - first_time, _RETARGET_SECONDS // 4), _RETARGET_SECONDS * 4)
    return compact_from_target(min(target_from_compact(bits) * span // _RETARGET_SECONDS, pow_limit))
