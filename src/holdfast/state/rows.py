"""Rows of the state (docs/FORMAT.md, section 7.12): pure.

    state      key (1..400)                          -> value as the tree has it: itself, or a reference above 64 KiB
    preimages  SHA-256 of the key (32)               -> key
    blobs      SHA-256 of the value (32), u32 number -> 1 MiB of the value, the last one less

Invariants:
    * ``state`` and ``preimages`` are chain rows and follow from the changes of a block alone.
    * A row of ``preimages`` is there exactly if the key has a value; only inserts and removals touch it.
    * ``blobs`` are log rows, named by their content; many keys and heights may share one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256

import msgspec

from ..errors import CorruptionError, Recovery
from ..limits import STATE_INLINE_BYTES_MAX
from ..merkle.values import is_reference, tree_value
from ..views.api import Rows
from ..views.tables import BLOBS, PREIMAGES, STATE

__all__ = [
    "BLOB_CHUNK_BYTES",
    "Changes",
    "Execution",
    "blob_rows",
    "chain_rows",
    "full_value",
    "preimage_key",
    "state_key",
    "tree_changes",
]

BLOB_CHUNK_BYTES = 1024 * 1024

Changes = dict[bytes, bytes | None]
"""Key -> value; ``None``: the key is removed."""

_STATE, _PREIMAGES, _BLOBS = STATE.prefix, PREIMAGES.prefix, BLOBS.prefix
_STATE_KEYS = len(STATE.prefix)


class Execution(msgspec.Struct):
    """What a block did to the state: its changes, and the root after them.

    ``inserted`` and ``removed`` are (key hash, key): keys that had no value before, and those that have none after.
    ``data``: the bytes of the ``changes`` part, when they are at hand.
    """

    root: bytes
    changes: Changes
    inserted: Sequence[tuple[bytes, bytes]]
    removed: Sequence[tuple[bytes, bytes]]
    data: bytes | None = None
    large: bool = True
    """False if no value is too long for the tree, so that nobody has to look."""


def state_key(key: bytes) -> bytes:
    """Engine key of a state key."""
    return _STATE + key


def preimage_key(key_hash: bytes) -> bytes:
    """Engine key of the raw key behind a key hash."""
    return _PREIMAGES + key_hash


def chain_rows(execution: Execution) -> Rows:
    """The chain rows that these changes write."""
    prefix, limit = _STATE, STATE_INLINE_BYTES_MAX
    rows: Rows = {prefix + key: value for key, value in execution.changes.items()}
    if execution.large:
        for key, value in execution.changes.items():
            if value is not None and len(value) > limit:
                rows[prefix + key] = tree_value(value)
    for key_hash, key in execution.inserted:
        rows[_PREIMAGES + key_hash] = key
    for key_hash, _ in execution.removed:
        rows[_PREIMAGES + key_hash] = None
    return rows


def blob_rows(changes: Changes) -> Rows:
    """The log rows of the values that are too long for the tree."""
    rows: Rows = {}
    for value in changes.values():
        if value is not None and len(value) > STATE_INLINE_BYTES_MAX:
            head = _BLOBS + sha256(value).digest()
            for number, start in enumerate(range(0, len(value), BLOB_CHUNK_BYTES)):
                rows[head + number.to_bytes(4, "big")] = value[start : start + BLOB_CHUNK_BYTES]
    return rows


def tree_changes(layers: Iterable[Rows]) -> Changes:
    """State key -> value as the tree has it, after these chain rows in turn."""
    changes: Changes = {}
    for rows in layers:
        for key, value in rows.items():
            if key[:_STATE_KEYS] == _STATE:
                changes[key[_STATE_KEYS:]] = value
    return changes


def full_value(stored: bytes, get: Callable[[bytes], bytes | None]) -> bytes:
    """The value behind a row of ``state``: itself, or what its reference names, checked against the hash.

    Args:
        get: reads a plain row by its engine key.
    """
    if not is_reference(stored):
        return stored
    length, digest = int.from_bytes(stored[-40:-32], "big"), stored[-32:]
    pieces = []
    for number in range(-(-length // BLOB_CHUNK_BYTES)):
        piece = get(_BLOBS + digest + number.to_bytes(4, "big"))
        if piece is None:
            raise CorruptionError(
                "a piece of a large value is missing",
                table=BLOBS.name,
                hash=digest,
                number=number,
                recovery=Recovery.REBUILD,
            )
        pieces.append(piece)
    value = b"".join(pieces)
    if len(value) != length or sha256(value).digest() != digest:
        raise CorruptionError(
            "a large value is not what its reference names", table=BLOBS.name, hash=digest, recovery=Recovery.REBUILD
        )
    return value
