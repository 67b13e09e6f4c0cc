"""Snapshots that an encrypted store keeps: files that are sealed whole (docs/FORMAT.md, sections 3.2, 9.4 and 11).

Invariants:
    * ``decode_sealed(Sealing.file(...))`` gives what was sealed; any other bytes raise ``SnapshotInvalid``, or
      ``FormatTooNew``. That a file is whole can be seen without the key.
    * A file says how the key of its store is sealed, so it can be opened where nothing else of the store is left.
    * What is opened was sealed by somebody with the key, for this very name; then it is verified as any snapshot is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from .._fs import FileSystem
from .._keys import Encryption, StoreKey, allowed
from .._seal import FILE_OVERHEAD_BYTES, FileCipher, StoreCipher, unlocked
from ..errors import FormatTooNew, KeyRejected, SnapshotInvalid
from ..merkle.api import Backend
from .snapshot import CHUNKS_NAME, MANIFEST_NAME, SnapshotReader, read_chunk_file, read_manifest
from .snapshot_format import CHUNKS_MAX, DEPTH_MAX, ChunkEntry, chunk_name, decode_manifest

__all__ = [
    "MORE_BYTES_MAX",
    "FileKeys",
    "Sealed",
    "SealedReader",
    "Sealing",
    "StoredChunk",
    "check_stored",
    "decode_sealed",
    "encode_table",
    "is_sealed",
    "name_of",
    "named_files",
]

_MAGIC = b"HFSEALED"
_FORMAT = 1
_KDFS = ("scrypt", "key-file")
_HEAD = struct.Struct(">8sIB3s16sIII32s60sQ")
_ROW = struct.Struct(">32sHQ32s")
_DIGEST_BYTES = 32
assert _HEAD.size == 144
assert _ROW.size == 74

_STORES_MAX = 16
"""Of so many stores files are opened at once: a stranger's passphrase parameters may ask for seconds each."""
MORE_BYTES_MAX = _HEAD.size + CHUNKS_MAX * _ROW.size + FILE_OVERHEAD_BYTES + _DIGEST_BYTES
"""So much longer than what it holds a sealed file is, at most."""


class Sealed(NamedTuple):
    """A sealed file that is whole: whose it is, what it says in plain text, and what only the key opens."""

    store_id: bytes
    form: Encryption
    front: bytes
    """Everything before the nonce; it is bound to what is sealed."""
    plain: bytes
    stored: bytes
    """Nonce, ciphertext and tag."""

    def opened(self, files: FileCipher, name: str) -> bytes:
        """What was sealed for this name. Raises ``SnapshotInvalid``."""
        data = files.open(name, self.stored, self.front)
        if data is None:
            raise SnapshotInvalid("a file was not sealed for its place", chunk=name)
        return data


class Sealing(NamedTuple):
    """How the files of one store are sealed."""

    store_id: bytes
    form: Encryption
    cipher: StoreCipher

    def file(self, files: FileCipher, name: str, data: bytes, plain: bytes = b"") -> bytes:
        """The bytes of the file ``name``, which holds ``data``, and ``plain`` for everybody."""
        form = self.form
        front = (
            _HEAD.pack(
                _MAGIC,
                _FORMAT,
                _KDFS.index(form.kdf),
                bytes(3),
                self.store_id,
                form.n,
                form.r,
                form.p,
                bytes.fromhex(form.salt),
                bytes.fromhex(form.sealed_key),
                len(plain),
            )
            + plain
        )
        whole = front + files.seal(name, data, front)
        return whole + sha256(whole).digest()


def is_sealed(data: bytes) -> bool:
    """True if the file that begins so is sealed. No manifest and no chunk begins so."""
    return data[: len(_MAGIC)] == _MAGIC


def decode_sealed(data: bytes, name: str) -> Sealed:
    """The sealed file that these bytes are; ``name`` is for messages. Nothing of it is believed yet."""
    least = _HEAD.size + FILE_OVERHEAD_BYTES + _DIGEST_BYTES
    if len(data) < least or not is_sealed(data):
        raise SnapshotInvalid("this is no sealed file", chunk=name, found=len(data))
    if sha256(memoryview(data)[:-_DIGEST_BYTES]).digest() != data[-_DIGEST_BYTES:]:
        raise SnapshotInvalid("a sealed file is damaged", chunk=name)
    _, number, kdf, zero, store_id, n, r, p, salt, sealed_key, length = _HEAD.unpack_from(data)
    if number > _FORMAT:
        raise FormatTooNew("a sealed file is of a newer format", chunk=name, found=number, expected=_FORMAT)
    start = _HEAD.size + length
    if number != _FORMAT or any(zero) or kdf >= len(_KDFS) or length > len(data) - least:
        raise SnapshotInvalid("the head of a sealed file is malformed", chunk=name, format=number)
    form = Encryption(kdf="key-file" if kdf else "scrypt", n=n, p=p, r=r, salt=salt.hex(), sealed_key=sealed_key.hex())
    if not allowed(form):
        raise SnapshotInvalid("the parameters of the encryption are not allowed", chunk=name)
    return Sealed(store_id, form, data[:start], data[_HEAD.size : start], data[start:-_DIGEST_BYTES])


class FileKeys:
    """What opens the sealed files of a store, and those of another that has the same key."""

    __slots__ = ("_encrypted", "_known", "_secret", "own")

    def __init__(
        self, own: Sealing | None = None, secret: StoreKey | None = None, *, encrypted: bool | None = None
    ) -> None:
        """``own`` seals what is written; ``secret`` opens what another store has written.

        ``encrypted``: whether the store is, if it is known; then a plain file is none of its own.
        """
        self.own = own
        self._secret = secret
        self._encrypted = encrypted
        self._known: dict[tuple[bytes, Encryption], StoreCipher | None] = {}
        """``None`` where the key is another one: asking again is as slow as the first time."""
        if own is not None:
            self._known[own.store_id, own.form] = own.cipher

    def cipher_of(self, found: Sealed, path: Path, what: str) -> StoreCipher:
        """What opens the file at ``path``. Raises ``KeyRequired``, ``KeyRejected``."""
        owner = (found.store_id, found.form)
        cipher = self._known.get(owner)
        if cipher is not None:
            return cipher
        if owner in self._known or len(self._known) >= _STORES_MAX:
            raise KeyRejected(f"the {what} is of another store, and its key is another one", path=path)
        try:
            cipher = self._known[owner] = unlocked(found.form, found.store_id, self._secret, path, what)
        except KeyRejected:
            self._known[owner] = None
            raise
        return cipher

    def check_plain(self, path: Path, what: str) -> None:
        """Nothing happens if a plain file may be what it says. Raises ``SnapshotInvalid``, ``KeyRejected``."""
        if self._encrypted:
            raise SnapshotInvalid(
                f"a {what} of an encrypted store is in plain text: somebody without its key put it there", path=path
            )
        if self._encrypted is None and self._secret is not None:
            raise KeyRejected(f"a key was given, but the {what} is not encrypted", path=path)


# -- the base of an encrypted store ---------------------------------------------------------------------------------


class StoredChunk(NamedTuple):
    """A chunk of a sealed base as everybody can see it: its node, length and last 32 bytes of its file."""

    prefix: bytes
    depth: int
    length: int
    digest: bytes

    @property
    def name(self) -> str:
        """Path of the file below the base."""
        return f"{CHUNKS_NAME}/{chunk_name(self.prefix, self.depth)}"


def encode_table(chunks: list[StoredChunk]) -> bytes:
    """What the manifest of a sealed base says in plain text."""
    return b"".join(_ROW.pack(*chunk) for chunk in chunks)


def _decode_table(data: bytes) -> list[StoredChunk]:
    if len(data) % _ROW.size or len(data) > CHUNKS_MAX * _ROW.size:
        raise SnapshotInvalid("the table of a sealed base has a wrong length", found=len(data))
    chunks = [StoredChunk(*row) for row in _ROW.iter_unpack(data)]
    prefixes = [chunk.prefix for chunk in chunks]
    if prefixes != sorted(set(prefixes)) or any(chunk.depth > DEPTH_MAX for chunk in chunks):
        raise SnapshotInvalid("the table of a sealed base is not in order")
    return chunks


def named_files(data: bytes) -> list[tuple[str, bytes]]:
    """Path below the base, and last 32 bytes, of every chunk that the manifest of a base names; no key is needed."""
    if is_sealed(data):
        return [(chunk.name, chunk.digest) for chunk in _decode_table(decode_sealed(data, MANIFEST_NAME).plain)]
    return [
        (f"{CHUNKS_NAME}/{chunk_name(chunk.prefix, chunk.depth)}", chunk.sha256)
        for chunk in decode_manifest(data).chunks
    ]


def check_stored(fs: FileSystem, path: Path, digest: bytes) -> Iterator[int]:
    """Each file of the sealed base at ``path`` is what its manifest says, as far as that can be seen without the key.

    ``digest`` is that of the manifest. Gives the length of each chunk once it was read. Raises ``SnapshotInvalid``.
    """
    manifest = read_manifest(fs, path / MANIFEST_NAME, more=MORE_BYTES_MAX)
    if sha256(manifest).digest() != digest:
        raise SnapshotInvalid("the manifest of a base is damaged", path=path / MANIFEST_NAME)
    found = decode_sealed(manifest, MANIFEST_NAME)
    for chunk in _decode_table(found.plain):
        data = read_chunk_file(fs, path / chunk.name, chunk.length)
        decode_sealed(data, chunk.name)
        if data[-_DIGEST_BYTES:] != chunk.digest:
            raise SnapshotInvalid("a file is not the one that the manifest names", chunk=chunk.name)
        yield len(data)


class SealedReader(SnapshotReader):
    """The base of an encrypted store, read as the snapshot that it is; ``digest`` is that of the sealed manifest."""

    def __init__(
        self, path: Path, files: FileCipher, *, fs: FileSystem | None = None, tree_backend: Backend | None = None
    ) -> None:
        """The manifest is opened and checked. Raises ``SnapshotInvalid``."""
        self._files = files
        self._stored_digest = b""
        self._lengths: dict[str, int] = {}
        super().__init__(path, fs=fs, tree_backend=tree_backend)
        self.digest = self._stored_digest
        if set(self._lengths) != {name_of(entry) for entry in self.manifest.chunks}:
            raise SnapshotInvalid("the table of a sealed base is not that of its manifest", path=path)

    def read_data(self) -> bytes:
        data = read_manifest(self._fs, self.path / MANIFEST_NAME, more=MORE_BYTES_MAX)
        found = decode_sealed(data, MANIFEST_NAME)
        self._stored_digest = sha256(data).digest()
        self._lengths = {chunk.name: chunk.length for chunk in _decode_table(found.plain)}
        return found.opened(self._files, MANIFEST_NAME)

    def chunk_data(self, entry: ChunkEntry) -> bytes:
        name = name_of(entry)
        data = read_chunk_file(self._fs, self.chunk_path(entry), self._lengths[name])
        return decode_sealed(data, name).opened(self._files, name)


def name_of(entry: ChunkEntry) -> str:
    """Path of the chunk below its base, for which it is sealed."""
    return f"{CHUNKS_NAME}/{chunk_name(entry.prefix, entry.depth)}"
