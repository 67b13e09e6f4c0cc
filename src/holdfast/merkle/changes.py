"""The bytes of a ``changes`` part: what a block did to the state (docs/FORMAT.md, section 5.2.5).

Invariant: ``decode_changes`` takes what ``encode_changes`` gives and nothing else, so equal changes are equal bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from struct import Struct

from ..limits import STATE_KEY_BYTES_MAX, STATE_VALUE_BYTES_MAX

__all__ = ["decode_changes", "encode_changes"]

_U16 = Struct(">H")
_U32 = Struct(">I")
_INSERTED = 1 << 31


def encode_changes(changes: Mapping[bytes, bytes | None], inserted: Collection[bytes]) -> bytes:
    """The part that holds ``changes`` (key -> value, ``None`` removes), of which ``inserted`` were absent before.

    Raises ``ValueError`` for a key or a value out of its limits and for an inserted key that is not written.
    """
    new = inserted if isinstance(inserted, (set, frozenset, dict)) else frozenset(inserted)
    parts = [_U32.pack(len(changes))]
    marked = 0
    for key in sorted(changes):
        value = changes[key]
        if not 1 <= len(key) <= STATE_KEY_BYTES_MAX:
            raise ValueError(f"a key has 1 to {STATE_KEY_BYTES_MAX} bytes, not {len(key)}")
        parts += (_U16.pack(len(key)), key)
        if value is None:
            parts.append(b"\x00\x00\x00\x00")
            continue
        size = len(value)
        if not 1 <= size <= STATE_VALUE_BYTES_MAX:
            raise ValueError(f"a value has 1 to {STATE_VALUE_BYTES_MAX} bytes, not {size}")
        if key in new:
            marked += 1
            size |= _INSERTED
        parts += (_U32.pack(size), value)
    if marked != len(new):
        raise ValueError("an inserted key is not among the keys that get a value")
    return b"".join(parts)


def decode_changes(data: bytes) -> tuple[dict[bytes, bytes | None], list[bytes]]:
    """The changes in ``data``, in order of the keys, and the inserted keys.

    Raises ``ValueError`` for anything but what ``encode_changes`` gives. Cost: memory of the values, once.
    """
    data = bytes(data)
    size = len(data)
    if size < 4:
        raise ValueError("the count of the changes is cut off")
    (count,) = _U32.unpack_from(data)
    changes: dict[bytes, bytes | None] = {}
    inserted: list[bytes] = []
    at, last = 4, b""
    for _ in range(count):
        if at + 2 > size:
            raise ValueError(f"the changes are cut off at byte {at}")
        (length,) = _U16.unpack_from(data, at)
        if not 1 <= length <= STATE_KEY_BYTES_MAX:
            raise ValueError(f"a key has 1 to {STATE_KEY_BYTES_MAX} bytes, not {length} (at byte {at})")
        end = at + 2 + length
        if end + 4 > size:
            raise ValueError(f"the changes are cut off at byte {at}")
        key = data[at + 2 : end]
        if key <= last:
            raise ValueError(f"the keys are not strictly ascending at byte {at}")
        (word,) = _U32.unpack_from(data, end)
        length = word & ~_INSERTED
        at, last = end + 4 + length, key
        if length > STATE_VALUE_BYTES_MAX or at > size:
            raise ValueError(f"the value behind byte {end} is cut off or above {STATE_VALUE_BYTES_MAX} bytes")
        if word == _INSERTED:
            raise ValueError(f"a removed key is marked as inserted at byte {end}")
        changes[key] = data[end + 4 : at] if length else None
        if word & _INSERTED:
            inserted.append(key)
    if at != size:
        raise ValueError(f"{size - at} bytes follow the last change")
    return changes, inserted
