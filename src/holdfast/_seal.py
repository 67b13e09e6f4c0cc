"""What an encrypted store writes: sealed parts of frames, rows and files (docs/FORMAT.md, sections 3.2, 5.5 and 7.1.1).

Invariants:
    * What was sealed for one place opens nowhere else: the place is associated data of AES-256-GCM.
    * No nonce is used twice under one key: parts draw 96 random bits under a key of their segment; rows are counted
      under a key of their batch, which is drawn at random; that of a file follows from all that is sealed, and its key
      from its name, so the same file is sealed to the same bytes, and another one under another nonce.
    * Nothing here shows a key.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING

from ._keys import NONCE_BYTES, TAG_BYTES, Encryption, StoreKey, aes_gcm, open_master
from .errors import KeyRejected, KeyRequired

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = [
    "FILE_OVERHEAD_BYTES",
    "PART_OVERHEAD_BYTES",
    "ROW_OVERHEAD_BYTES",
    "FileCipher",
    "PartCipher",
    "PartPlace",
    "RowCipher",
    "StoreCipher",
    "unlocked",
]

_BATCH_BYTES = 16
_NUMBER_BYTES = 4
_ROW_HEAD_BYTES = _BATCH_BYTES + _NUMBER_BYTES
PART_OVERHEAD_BYTES = FILE_OVERHEAD_BYTES = NONCE_BYTES + TAG_BYTES
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


class FileCipher:
    """Seals the contents of files of one purpose. Safe to use from any thread."""

    __slots__ = ("_key", "_names", "_nonces", "_store_id")

    def __init__(self, key: bytes, store_id: bytes) -> None:
        self._key = key
        self._nonces = hmac.digest(key, b"\0", "sha256")
        self._names = hmac.digest(key, b"\1", "sha256")
        self._store_id = store_id

    def name_of(self, node: bytes) -> str:
        """The name, 64 hex digits, of the file that holds ``node``: without the key it says nothing of it."""
        return hmac.digest(self._names, node, "sha256").hex()

    def _box(self, name: str) -> AESGCM:
        return aes_gcm(hmac.digest(self._key, name.encode("ascii"), "sha256"))

    def _bound(self, name: str, front: bytes) -> bytes:
        return self._store_id + name.encode("ascii") + b"\0" + front

    def seal(self, name: str, data: bytes, front: bytes = b"") -> bytes:
        """Nonce, ciphertext and tag: ``FILE_OVERHEAD_BYTES`` longer than ``data``. ``front`` is what stands before."""
        bound = self._bound(name, front)
        nonce = hmac.digest(self._nonces, sha256(bound).digest() + sha256(data).digest(), "sha256")[:NONCE_BYTES]
        return nonce + self._box(name).encrypt(nonce, data, bound)

    def open(self, name: str, stored: bytes, front: bytes = b"") -> bytes | None:
        """What was sealed for this name behind ``front``; ``None`` if a byte is another one, or the name."""
        from cryptography.exceptions import InvalidTag

        if len(stored) < FILE_OVERHEAD_BYTES:
            return None
        try:
            return self._box(name).decrypt(stored[:NONCE_BYTES], stored[NONCE_BYTES:], self._bound(name, front))
        except InvalidTag:
            return None

    def __repr__(self) -> str:
        return "FileCipher()"


class StoreCipher:
    """The ciphers of one encrypted store, from its master key."""

    __slots__ = ("base", "checkpoints", "parts", "rows")

    def __init__(self, master: bytes, store_id: bytes) -> None:
        self.parts = PartCipher(hmac.digest(master, b"holdfast store journal 1", "sha256"), store_id)
        self.rows = RowCipher(hmac.digest(master, b"holdfast store rows 1", "sha256"))
        self.base = FileCipher(hmac.digest(master, b"holdfast store base 1", "sha256"), store_id)
        self.checkpoints = FileCipher(hmac.digest(master, b"holdfast store checkpoints 1", "sha256"), store_id)

    def __repr__(self) -> str:
        return "StoreCipher()"


def unlocked(
    form: Encryption, store_id: bytes, key: StoreKey | None, place: object, what: str = "store"
) -> StoreCipher:
    """The ciphers of the store whose key is sealed so. ``form`` must be ``allowed``.

    Raises:
        KeyRequired: there is no key. KeyRejected: it is another one.
        InvalidInputError: the package ``cryptography`` is not there.
    """
    kind = "a passphrase" if form.kdf == "scrypt" else "a key file"
    if key is None:
        raise KeyRequired(f"the {what} is encrypted with {kind}", path=place)
    if key.kdf != form.kdf:
        raise KeyRejected(f"the {what} is encrypted with {kind}, and the key is of the other kind", path=place)
    master = open_master(form, key, store_id)
    if master is None:
        raise KeyRejected(f"{kind} was given, but not that of this {what}", path=place)
    return StoreCipher(master, store_id)
