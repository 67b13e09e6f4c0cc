"""Objects behind their head: chunks, manifests and marks as bytes (docs/FORMAT.md, section 10.2). Pure.

Invariants:
    * ``open_object(seal_object(x)) == x``; any other bytes raise ``BackupDamaged``.
    * Nothing is decoded past its raw length, and no length is used before it was checked.
"""

from __future__ import annotations

import struct
import threading
from hashlib import sha256
from typing import NamedTuple

import zstandard

from .._zstd import read_bounded
from ..errors import BackupDamaged
from .keys import OVERHEAD_BYTES, Cipher

__all__ = [
    "CHUNK",
    "CHUNK_BYTES",
    "HEAD_BYTES",
    "MANIFEST",
    "MARK",
    "RAW_BYTES_MAX",
    "Head",
    "name_bytes",
    "open_object",
    "read_head",
    "seal_object",
]

CHUNK_BYTES = 1024 * 1024
CHUNK, MANIFEST, MARK = 1, 2, 3
RAW_BYTES_MAX = {CHUNK: CHUNK_BYTES, MANIFEST: 256 * 1024 * 1024, MARK: 4096}

_MAGIC = b"HFBACK_1"
_HEAD = struct.Struct(">8sBBBxIQ32s")
HEAD_BYTES = _HEAD.size
assert HEAD_BYTES == 56

_RAW, _ZSTD = 0, 1
_WINDOW_BYTES_MAX = 8 * 1024 * 1024


class Head(NamedTuple):
    """The head of an object; ``stored`` is the length of what follows it."""

    codec: int
    encrypted: bool
    raw_bytes: int
    stored_bytes: int
    id: bytes


class _Zstd(threading.local):
    """One compressor and one decompressor per thread: neither may be shared."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=3, write_checksum=False)
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX)


_zstd = _Zstd()


def name_bytes(data: bytes, cipher: Cipher | None) -> bytes:
    """The id of ``data``, 32 bytes."""
    return sha256(data).digest() if cipher is None else cipher.name(data)


def seal_object(kind: int, name: str, raw: bytes, cipher: Cipher | None, *, id: bytes) -> bytes:
    """The object ``name`` of this kind that holds ``raw``."""
    packed = _zstd.compressor.compress(raw)
    codec, body = (_ZSTD, packed) if len(packed) < len(raw) else (_RAW, raw)
    length = len(body) + (OVERHEAD_BYTES if cipher is not None else 0)
    head = _HEAD.pack(_MAGIC, kind, codec, int(cipher is not None), len(raw), length, id)
    if cipher is not None:
        body = cipher.encrypt(body, head + name.encode("ascii"))
    return head + body


def read_head(kind: int, name: str, data: bytes, *, encrypted: bool) -> Head:
    """The head of the object ``data``, whose length is what the head says. Raises ``BackupDamaged``."""
    if len(data) < HEAD_BYTES:
        raise BackupDamaged("an object is shorter than its head", object=name, found=len(data), expected=HEAD_BYTES)
    magic, found, codec, encryption, raw_bytes, stored_bytes, identifier = _HEAD.unpack_from(data)
    if magic != _MAGIC or found != kind or data[11] or encryption > 1:
        raise BackupDamaged("an object has a head of another kind", object=name, found=found, expected=kind)
    if bool(encryption) != encrypted:
        raise BackupDamaged(
            "an object is encrypted in a repository that is not, or the other way round", object=name, found=encryption
        )
    most = raw_bytes + (OVERHEAD_BYTES if encrypted else 0)
    if codec not in (_RAW, _ZSTD) or not 0 < raw_bytes <= RAW_BYTES_MAX[kind] or stored_bytes > most:
        raise BackupDamaged("an object has an impossible length or codec", object=name, raw=raw_bytes, codec=codec)
    if codec == _RAW and stored_bytes != most:
        raise BackupDamaged("an object has an impossible length", object=name, found=stored_bytes, expected=most)
    if len(data) - HEAD_BYTES != stored_bytes:
        raise BackupDamaged(
            "an object is not as long as it says", object=name, found=len(data), expected=HEAD_BYTES + stored_bytes
        )
    return Head(codec, encrypted, raw_bytes, stored_bytes, identifier)


def open_object(kind: int, name: str, data: bytes, cipher: Cipher | None) -> tuple[bytes, bytes]:
    """The raw bytes of the object ``name`` and their id, which is right. Raises ``BackupDamaged``."""
    head = read_head(kind, name, data, encrypted=cipher is not None)
    body: bytes | memoryview = memoryview(data)[HEAD_BYTES:]
    if cipher is not None:
        plain = cipher.decrypt(bytes(body), data[:HEAD_BYTES] + name.encode("ascii"))
        if plain is None:
            raise BackupDamaged("an object was changed after it was encrypted", object=name)
        body = plain
    raw = bytes(body) if head.codec == _RAW else _decompress(body, head.raw_bytes, name)
    if len(raw) != head.raw_bytes or name_bytes(raw, cipher) != head.id:
        raise BackupDamaged("the content of an object is not what its id says", object=name, id=head.id)
    return raw, head.id


def _decompress(body: bytes | memoryview, raw_bytes: int, name: str) -> bytes:
    """What ``body`` holds, exactly ``raw_bytes``: a frame that says otherwise is not believed."""
    try:
        raw = read_bounded(_zstd.decompressor, body, raw_bytes)
    except zstandard.ZstdError as error:
        raise BackupDamaged(f"an object does not decode: {error}", object=name) from error
    if len(raw) != raw_bytes:
        raise BackupDamaged("an object does not decode to the length it says", object=name, expected=raw_bytes)
    return raw
