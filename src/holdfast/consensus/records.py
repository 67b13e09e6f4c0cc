"""Safety, fence and incarnation entries and rows: pure codecs (docs/FORMAT.md, sections 5.2 and 7)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ..errors import CorruptionError, InvalidInputError, LimitExceeded
from ..limits import SAFETY_IDENTITY_BYTES_MAX, SAFETY_PAYLOAD_BYTES_MAX, SAFETY_POSITION_MAX

__all__ = [
    "SafetyRecord",
    "check_identity",
    "check_position",
    "decode_fence",
    "decode_safety",
    "encode_fence",
    "encode_safety",
]

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class SafetyRecord:
    """The newest promise of ``identity``: ``position`` compares as a tuple, ``payload`` is opaque."""

    identity: bytes
    position: tuple[int, ...]
    payload: bytes


def check_identity(identity: bytes) -> bytes:
    """``identity`` if it is 1 to 128 bytes."""
    if not isinstance(identity, bytes) or not identity:
        raise InvalidInputError("an identity is bytes and not empty", found=identity)
    if len(identity) > SAFETY_IDENTITY_BYTES_MAX:
        raise LimitExceeded("the identity is too long", found=len(identity), limit=SAFETY_IDENTITY_BYTES_MAX)
    return identity


def check_position(position: tuple[int, ...]) -> tuple[int, ...]:
    """``position`` if it is 1 to 8 integers of 64 bits that are not negative."""
    if not isinstance(position, tuple) or not 1 <= len(position) <= SAFETY_POSITION_MAX:
        raise InvalidInputError("a position is a tuple of 1 to 8 integers", found=position)
    for number in position:
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**64:
            raise InvalidInputError("a position holds integers of 64 bits that are not negative", found=position)
    return position


def _head(identity: bytes, position: tuple[int, ...]) -> bytes:
    count = len(position)
    return _U16.pack(len(identity)) + identity + struct.pack(f">B{count}Q", count, *position)


def encode_safety(record: SafetyRecord) -> bytes:
    """Bytes of a ``safety`` part and of its row."""
    if type(record.payload) is not bytes:
        raise InvalidInputError("a payload is bytes", found=type(record.payload).__name__)
    if len(record.payload) > SAFETY_PAYLOAD_BYTES_MAX:
        raise LimitExceeded("the payload is too long", found=len(record.payload), limit=SAFETY_PAYLOAD_BYTES_MAX)
    return _head(record.identity, record.position) + _U32.pack(len(record.payload)) + record.payload


def encode_fence(identity: bytes, position: tuple[int, ...]) -> bytes:
    """Bytes of a ``fence`` part: ``identity`` may sign above ``position``."""
    return _head(identity, position)


def _decode_head(data: bytes) -> tuple[bytes, tuple[int, ...], int]:
    if len(data) < 3:
        raise CorruptionError("a safety entry is too short", found=len(data))
    (length,) = _U16.unpack_from(data)
    offset = 2 + length
    if not 1 <= length <= SAFETY_IDENTITY_BYTES_MAX or len(data) < offset + 1:
        raise CorruptionError("a safety entry has a wrong identity length", found=length)
    count = data[offset]
    end = offset + 1 + 8 * count
    if not 1 <= count <= SAFETY_POSITION_MAX or len(data) < end:
        raise CorruptionError("a safety entry has a wrong position", found=count)
    return data[2:offset], struct.unpack_from(f">{count}Q", data, offset + 1), end


def decode_safety(data: bytes) -> SafetyRecord:
    """The record in these bytes."""
    identity, position, offset = _decode_head(data)
    if len(data) < offset + 4:
        raise CorruptionError("a safety entry ends before its payload", found=len(data))
    (length,) = _U32.unpack_from(data, offset)
    payload = data[offset + 4 :]
    if len(payload) != length or length > SAFETY_PAYLOAD_BYTES_MAX:
        raise CorruptionError("a safety entry has a wrong payload length", found=len(payload), expected=length)
    return SafetyRecord(identity, position, payload)


def decode_fence(data: bytes) -> tuple[bytes, tuple[int, ...]]:
    """Identity and position floor of a fence."""
    identity, position, end = _decode_head(data)
    if end != len(data):
        raise CorruptionError("a fence entry has bytes behind its end", found=len(data), expected=end)
    return identity, position
