"""What an encrypted store writes: sealed parts of frames and sealed rows (docs/FORMAT.md, sections 5.5 and 7.1.1).

Invariants:
    * What was sealed for one place opens nowhere else: the place is associated data of AES-256-GCM.
    * No nonce is used twice under one key: parts draw 96 random bits under a key of their segment; rows are counted
      under a key of their batch, which is drawn at random.
    * Nothing here shows a key.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from ._keys import NONCE_BYTES, TAG_BYTES, aes_gcm

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["PART_OVERHEAD_BYTES", "ROW_OVERHEAD_BYTES", "PartCipher", "PartPlace", "RowCipher", "StoreCipher"]

_BATCH_BYTES = 16
_NUMBER_BYTES = 4
_ROW_HEAD_BYTES = _BATCH_BYTES + _NUMBER_BYTES
PART_OVERHEAD_BYTES = NONCE_BYTES + TAG_BYTES
ROW_OVERHEAD_BYTES = _ROW_HEAD_BYTES + TAG_BYTES
_NONCE_START = bytes(NONCE_BYTES - _NUMBER_BYTES)

_SEGMENTS_KEPT = 64
_BATCHES_KEPT = 4096

_PLACE = struct.Struct(">16s32sH")
_place = _PLACE.pack
assert _PLACE.size == 50

PartPlace = tuple[bytes, int]
"""Where a part stands: what its frame is bound by (``Frame.bound``), index in it. That binds everything in the frame's
head and part table, and all frames before it: nothing can be left out, added or replaced without the key."""


def _boxes(key: bytes, kept: int) -> Callable[[bytes], AESGCM]:
    """AES-256-GCM under the key that belongs to a name; the last ``kept`` are remembered."""

    def box(name: bytes) -> AESGCM:
        return aes_gcm(hmac.digest(key, name, "sha256"))

    return lru_cache(maxsize=kept)(box)


class PartCipher:
    """Seals the stored bytes of parts. Safe to use from any thread."""

    __slots__ = ("_box", "_store_id")

    def __init__(self, key: bytes, store_id: bytes) -> None:
        self._box = _boxes(key, _SEGMENTS_KEPT)
        self._store_id = store_id

    def seal(self, data: bytes, segment: int, place: PartPlace) -> bytes:
        """Nonce, ciphertext and tag: ``PART_OVERHEAD_BYTES`` longer than ``data``."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._box(segment.to_bytes(8, "big")).encrypt(nonce, data, _place(self._store_id, *place))

    def open(self, stored: bytes, segment: int, place: PartPlace) -> bytes | None:
        """What was sealed for this place; ``None`` if a byte is another one, or the place."""
        from cryptography.exceptions import InvalidTag

        if len(stored) < PART_OVERHEAD_BYTES:
            return None
        box = self._box(segment.to_bytes(8, "big"))
        try:
            return box.decrypt(stored[:NONCE_BYTES], stored[NONCE_BYTES:], _place(self._store_id, *place))
        except InvalidTag:
            return None

    def __repr__(self) -> str:
        return "PartCipher()"


class RowCipher:
    """Seals the values of rows. Safe to use from any thread."""

    __slots__ = ("_box",)

    def __init__(self, key: bytes) -> None:
        self._box = _boxes(key, _BATCHES_KEPT)

    def batch(self) -> Callable[[bytes, bytes], bytes]:
        """Seals (key, value) pairs of one batch, at most 2^32; for one thread."""
        name = secrets.token_bytes(_BATCH_BYTES)
        encrypt = self._box(name).encrypt
        number = 0

        def seal(key: bytes, value: bytes) -> bytes:
            nonlocal number
            counted = number.to_bytes(_NUMBER_BYTES, "big")  # raises before it would repeat
            number += 1
            return name + counted + encrypt(_NONCE_START + counted, value, key)

        return seal

    def open(self, key: bytes, stored: bytes) -> bytes | None:
        """The value that was sealed under ``key``; ``None`` if a byte of either is another one."""
        from cryptography.exceptions import InvalidTag

        if len(stored) < ROW_OVERHEAD_BYTES:
            return None
        try:
            return self._box(stored[:_BATCH_BYTES]).decrypt(
                _NONCE_START + stored[_BATCH_BYTES:_ROW_HEAD_BYTES], stored[_ROW_HEAD_BYTES:], key
            )
        except InvalidTag:
            return None

    def __repr__(self) -> str:
        return "RowCipher()"


class StoreCipher:
    """The ciphers of one encrypted store, from its master key."""

    __slots__ = ("parts", "rows")

    def __init__(self, master: bytes, store_id: bytes) -> None:
        self.parts = PartCipher(hmac.digest(master, b"holdfast store journal 1", "sha256"), store_id)
        self.rows = RowCipher(hmac.digest(master, b"holdfast store rows 1", "sha256"))

    def __repr__(self) -> str:
        return "StoreCipher()"
