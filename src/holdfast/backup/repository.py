"""A repository of backups: its identity, its chunks, its manifests and the marks beside them.

Invariants:
    * A chunk that is there with the length it says is not written again; one of another length is replaced.
    * A manifest is written only after everything that it names is durable, whichever run wrote it; what has no manifest
      is no backup.
    * What is read was decoded within its bounds and has the id that was asked for, or ``BackupDamaged`` is raised.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager

import msgspec

from .._fs import FileSystem
from ..errors import BackupDamaged, BackupNotFound, CorruptionError, HoldfastError, InvalidInputError, MissingFile
from . import manifest as forms
from .envelope import (
    CHUNK,
    CHUNK_BYTES,
    HEAD_BYTES,
    MANIFEST,
    MARK,
    RAW_BYTES_MAX,
    name_bytes,
    open_object,
    read_head,
    seal_object,
)
from .keys import OVERHEAD_BYTES, BackupKey, Cipher, new_cipher, open_cipher
from .manifest import ChunkRef, Manifest, Mark, check_name, decode_manifest, decode_mark, decode_repository, encode
from .place import target_at
from .target import BACKUPS, CHUNKS, REPOSITORY_NAME, Target

__all__ = ["BackupRepository", "StoredChunk", "open_repository"]

_REPOSITORY_BYTES_MAX = 64 * 1024
_OVERHEAD = HEAD_BYTES + OVERHEAD_BYTES
_STRIPES = 64
_MANIFEST_END, _MARK_END = ".manifest", ".verified"


class StoredChunk(msgspec.Struct, frozen=True, gc=False):
    """A chunk as the manifest names it, and how many bytes were written for it: 0 if it was there."""

    ref: ChunkRef
    written: int


def chunk_name(identifier: str) -> str:
    """Name of the object of the chunk with this id in hex."""
    return f"{CHUNKS}{identifier[:2]}/{identifier}"


class BackupRepository:
    """An open repository. Every method may be called from any thread; those that write need ``lock``."""

    def __init__(self, target: Target, form: forms.Repository, cipher: Cipher | None) -> None:
        self.target = target
        self.id = form.id
        self.encrypted = form.encryption is not None
        self._cipher = cipher
        self._stripes = [threading.Lock() for _ in range(_STRIPES)]

    @property
    def place(self) -> str:
        """What people call it."""
        return self.target.place

    def lock(self) -> AbstractContextManager[None]:
        """Nobody else adds or removes objects while it is entered. Raises ``RepositoryLocked`` at once."""
        return self.target.lock()

    # -- chunks -------------------------------------------------------------------------------------------------

    def put_chunk(self, raw: bytes, *, check: bool = False) -> StoredChunk:
        """``raw`` is a chunk, durable after ``flush``. ``check`` reads one that is there, and replaces a bad one."""
        identifier = name_bytes(raw, self._cipher)
        text = identifier.hex()
        name = chunk_name(text)
        with self._stripes[identifier[0] % _STRIPES]:
            there = self._usable(name, text, raw, check=check)
            if there is not None:
                return StoredChunk(ChunkRef(text, there), 0)
            data = seal_object(CHUNK, name, raw, self._cipher, id=identifier)
            self.target.write(name, data)
            return StoredChunk(ChunkRef(text, len(data)), len(data))

    def _usable(self, name: str, identifier: str, raw: bytes, *, check: bool) -> int | None:
        """Length of the object if it is there and as long as it says (with ``check``: and holds ``raw``)."""
        try:
            size = self.target.size(name)
            if size is None:
                return None
            data = self.target.read(name, limit=CHUNK_BYTES + _OVERHEAD)
            if check:
                return len(data) if self._open_chunk(name, identifier, data) == raw else None
            head = read_head(CHUNK, name, data, encrypted=self._cipher is not None)
        except (BackupDamaged, MissingFile):
            return None
        return len(data) if head.id.hex() == identifier and head.raw_bytes == len(raw) else None

    def has_chunk(self, ref: ChunkRef) -> bool:
        """True if the object is there and as long as it should be; its content is not read where that fits."""
        name = chunk_name(ref.id)
        size = self.target.size(name)
        if size is None or size == ref.stored_bytes:
            return size is not None
        try:  # replaced after the manifest was written, perhaps compressed in another way
            data = self.target.read(name, limit=CHUNK_BYTES + _OVERHEAD)
            return read_head(CHUNK, name, data, encrypted=self._cipher is not None).id.hex() == ref.id
        except (BackupDamaged, MissingFile):
            return False

    def get_chunk(self, ref: ChunkRef, raw_bytes: int) -> bytes:
        """The ``raw_bytes`` of a chunk; its id is right. Raises ``BackupDamaged``."""
        name = chunk_name(ref.id)
        try:
            data = self.target.read(name, limit=CHUNK_BYTES + _OVERHEAD)
        except MissingFile as error:
            raise BackupDamaged("a chunk is missing", path=self.place, object=name) from error
        raw = self._open_chunk(name, ref.id, data)
        if len(raw) != raw_bytes:
            raise BackupDamaged("a chunk has another length", object=name, found=len(raw), expected=raw_bytes)
        return raw

    def _open_chunk(self, name: str, identifier: str, data: bytes) -> bytes:
        raw, found = open_object(CHUNK, name, data, self._cipher)
        if found.hex() != identifier:
            raise BackupDamaged("another chunk lies in its place", object=name, found=found)
        return raw

    # -- manifests ----------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Names of the backups, oldest first."""
        return sorted(
            name.removeprefix(BACKUPS).removesuffix(_MANIFEST_END)
            for name, _ in self.target.list(BACKUPS)
            if name.endswith(_MANIFEST_END)
        )

    def manifest(self, name: str) -> Manifest:
        """The backup ``name``; it fits itself. Raises ``BackupNotFound``, ``BackupDamaged``, ``FormatTooNew``."""
        return self.manifest_and_digest(name)[0]

    def manifest_and_digest(self, name: str) -> tuple[Manifest, str]:
        """The backup ``name`` and its digest in hex; see ``manifest``."""
        object_name = f"{BACKUPS}{check_name(name)}{_MANIFEST_END}"
        try:
            data = self.target.read(object_name, limit=RAW_BYTES_MAX[MANIFEST] + _OVERHEAD)
        except MissingFile:
            raise BackupNotFound("there is no such backup", name=name, path=self.place) from None
        raw, digest = open_object(MANIFEST, object_name, data, self._cipher)
        return decode_manifest(raw, name=name, repository=self.id, place=f"{self.place}: {name}"), digest.hex()

    def check_there(self, name: str) -> None:
        """Raises ``BackupNotFound`` if the backup ``name``, which was read a moment ago, was removed since then."""
        if self.target.size(f"{BACKUPS}{check_name(name)}{_MANIFEST_END}") is None:
            raise BackupNotFound(
                "the backup was removed while it was read",
                name=name,
                path=self.place,
                remedy="take one that is there: 'holdfast backup list' shows them",
            )

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """The backup ``name`` is read; what looks like damage and is a pruning meanwhile is ``BackupNotFound``."""
        try:
            yield
        except CorruptionError:
            self.check_there(name)
            raise

    def readable(self, *, newest_first: bool = True) -> Iterator[Manifest]:
        """Every backup whose manifest can be read."""
        for name in sorted(self.names(), reverse=newest_first):
            try:
                yield self.manifest(name)
            except (BackupDamaged, BackupNotFound):
                continue

    def newest(self, *, store_id: str | None = None) -> Manifest:
        """The newest backup that can be read, of this store if one is given. Raises ``BackupNotFound``."""
        for form in self.readable():
            if store_id is None or form.store_id == store_id:
                return form
        raise BackupNotFound("there is no backup that can be read", path=self.place, store=store_id)

    def put_manifest(self, form: Manifest) -> str:
        """The backup exists, durably; its digest in hex. Everything that it names is durable first."""
        self.target.keep(REPOSITORY_NAME)
        for file in form.files():
            for ref in file.chunks:
                self.target.keep(chunk_name(ref.id))
        self.target.flush()
        raw = encode(form)
        if len(raw) > RAW_BYTES_MAX[MANIFEST]:
            raise InvalidInputError("the store has too many files for one manifest", found=len(raw))
        name = f"{BACKUPS}{check_name(form.name)}{_MANIFEST_END}"
        digest = name_bytes(raw, self._cipher)
        self.target.write(name, seal_object(MANIFEST, name, raw, self._cipher, id=digest))
        self.target.flush()
        return digest.hex()

    def keep_backups(self, names: Iterable[str]) -> None:
        """The backups, which are there, and their marks are durable, whichever run wrote them."""
        for name in names:
            self.target.keep(f"{BACKUPS}{check_name(name)}{_MANIFEST_END}")
        self.target.flush()

    def drop_manifest(self, name: str) -> None:
        """The backup is gone, durably after ``flush``; its chunks stay."""
        self.target.delete(f"{BACKUPS}{check_name(name)}{_MANIFEST_END}")
        self.target.delete(f"{BACKUPS}{name}{_MARK_END}")

    # -- marks --------------------------------------------------------------------------------------------------

    def mark_verified(self, name: str, digest: str, *, time_us: int | None = None) -> None:
        """It is noted that the backup was read whole and is right."""
        raw = encode(Mark(at_us=time.time_ns() // 1000 if time_us is None else time_us, digest=digest))
        mark = f"{BACKUPS}{check_name(name)}{_MARK_END}"
        data = seal_object(MARK, mark, raw, self._cipher, id=name_bytes(raw, self._cipher))
        self.target.write(mark, data)
        self.target.flush()

    def unmark(self, name: str) -> None:
        """Nothing says any more that the backup is right."""
        self.target.delete(f"{BACKUPS}{check_name(name)}{_MARK_END}")
        self.target.flush()

    def verified_us(self, name: str, digest: str) -> int | None:
        """When the backup with this digest was verified, microseconds since 1970; ``None`` if it never was."""
        mark = f"{BACKUPS}{check_name(name)}{_MARK_END}"
        try:
            data = self.target.read(mark, limit=RAW_BYTES_MAX[MARK] + _OVERHEAD)
            found = decode_mark(open_object(MARK, mark, data, self._cipher)[0], place=mark)
        except (BackupDamaged, MissingFile):
            return None
        return found.at_us if found.digest == digest else None

    def __repr__(self) -> str:
        return f"BackupRepository({self.place!r}, encrypted={self.encrypted})"


def open_repository(
    place: str | os.PathLike[str] | Target,
    *,
    key: BackupKey | None = None,
    create: bool = False,
    fs: FileSystem | None = None,
    scrypt_n: int | None = None,
) -> BackupRepository:
    """The repository at ``place``.

    Args:
        place: a directory, the URL of a place in an object store (``ObjectTarget``), or another target.
        key: of an encrypted repository; a new one is encrypted if it is given.
        create: make one where nothing is. Of one without encryption manifests say what ``repository.json`` said: where
            it is missing they are believed, and with ``create`` it is written again.
        scrypt_n: cost of the passphrase of a new repository, a power of two from 2^14.
    Raises:
        BackupNotFound: there is none. BackupKeyError: it is encrypted, and this is not its key.
        InvalidInputError: a key was given, and the repository is not encrypted.
        FormatTooNew, BackupDamaged: its identity cannot be read; nothing was touched.
    """
    target = target_at(place, fs=fs) if isinstance(place, str | os.PathLike) else place
    try:
        data = target.read(REPOSITORY_NAME, limit=_REPOSITORY_BYTES_MAX)
    except MissingFile:
        told = _told_by_manifests(target)
        if told is None:
            if create:
                return _create(target, key, scrypt_n)
            _check_empty(target)
            raise BackupNotFound("there is no backup repository here", path=target.place) from None
        form = told
        if create and key is None:
            _write_again(target, form)
    else:
        form = decode_repository(data, place=f"{target.place}/{REPOSITORY_NAME}")
    if form.encryption is None:
        if key is not None:
            raise InvalidInputError(
                "a key was given, and the repository is not encrypted",
                path=target.place,
                remedy="leave the key out, or take another repository: one is encrypted from its start or never",
            )
        return BackupRepository(target, form, None)
    cipher = open_cipher(form.encryption, key, bytes.fromhex(form.id), place=target.place)
    return BackupRepository(target, form, cipher)


def _create(target: Target, key: BackupKey | None, scrypt_n: int | None) -> BackupRepository:
    with target.lock():
        _check_empty(target)
        identifier = secrets.token_bytes(16)
        encryption, cipher = None, None
        if key is not None:
            more = {} if scrypt_n is None else {"n": scrypt_n}
            encryption, cipher = new_cipher(key, identifier, **more)
        form = forms.Repository(id=identifier.hex(), created_us=time.time_ns() // 1000, encryption=encryption)
        if target.size(REPOSITORY_NAME) is not None:
            raise HoldfastError("another process made the repository just now", path=target.place)
        target.write(REPOSITORY_NAME, encode(form))
        target.flush()
    return BackupRepository(target, form, cipher)


def _check_empty(target: Target) -> None:
    """Raises ``BackupDamaged`` if objects are there, whose repository is not known."""
    for prefix in (BACKUPS, CHUNKS):
        for name, _ in target.list(prefix):
            raise BackupDamaged(
                f"{REPOSITORY_NAME} is missing beside objects",
                path=target.place,
                found=name,
                remedy=f"put {REPOSITORY_NAME} back from a copy of the repository: that of an encrypted one holds its "
                "sealed key, and nothing else does",
            )


def _told_by_manifests(target: Target) -> forms.Repository | None:
    """What ``repository.json`` says, out of the newest manifest of a repository that is not encrypted."""
    names = (name for name, _ in target.list(BACKUPS) if name.endswith(_MANIFEST_END))
    for name in sorted(names, reverse=True):
        try:
            raw, _ = open_object(MANIFEST, name, target.read(name, limit=RAW_BYTES_MAX[MANIFEST] + _OVERHEAD), None)
            own = name.removeprefix(BACKUPS).removesuffix(_MANIFEST_END)
            form = decode_manifest(raw, name=own, repository=None, place=f"{target.place}: {own}")
        except (BackupDamaged, MissingFile):
            continue
        return forms.Repository(id=form.repository, created_us=form.created_us, encryption=None)
    return None


def _write_again(target: Target, form: forms.Repository) -> None:
    with target.lock():
        if target.size(REPOSITORY_NAME) is None:
            target.write(REPOSITORY_NAME, encode(form))
            target.flush()
