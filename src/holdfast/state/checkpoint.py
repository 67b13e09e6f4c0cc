"""Checkpoints: snapshots that lie in their store and share their chunks (docs/FORMAT.md, section 11).

Invariants:
    * A checkpoint is listed once its manifest is there, and that comes last: what is listed was whole and durable.
    * A chunk lies under the hash of its node, which decides its records; it is kept only if it gives that node.
    * A chunk goes after every manifest that named it, and none goes while a manifest cannot be read.
    * Chunks are put together as section 9.1 has them and verified by the reader of snapshots; there is no other.
    * Those of an encrypted store are sealed, manifests and chunks: nothing of a state is written in plain text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import zstandard

from .._failpoints import hit
from .._fs import FileSystem, NewFile
from .._seal import FILE_OVERHEAD_BYTES, FileCipher
from ..errors import HoldfastError, InvalidInputError, NotFoundError, SnapshotInvalid
from ..limits import HEIGHT_MAX
from ..merkle.api import Backend
from .sealing import MORE_BYTES_MAX, FileKeys, decode_sealed, is_sealed
from .snapshot import (
    CHUNKS_NAME,
    SnapshotInfo,
    SnapshotReader,
    VerifiedChunk,
    read_chunk_file,
    read_manifest,
    verified_chunk,
)
from .snapshot_export import ChunkMaker, Node, SnapshotSource, entry_of
from .snapshot_format import CODEC_RAW, CODEC_ZSTD, ChunkEntry, chunk_name, encode_chunk_head

__all__ = [
    "CHECKPOINTS_NAME",
    "CHUNK_BYTES",
    "CheckpointDirectory",
    "CheckpointInfo",
    "CheckpointReader",
    "checkpoint_height",
    "checkpoint_name",
]

CHECKPOINTS_NAME = "checkpoints"
CHUNK_BYTES = 256 * 1024
"""Length of a chunk before compression: small ones are shared by more checkpoints."""

_DIGEST_BYTES = 32
_SUFFIX = ".manifest"
_NAME = re.compile(r"(0|[1-9][0-9]{0,18})-[0-9a-f]{16}", re.ASCII)
_CHUNK = re.compile(r"[0-9a-f]{64}", re.ASCII)
_TEMPORARY = re.compile(rf"{_NAME.pattern}\.manifest\.tmp", re.ASCII)
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_NEXT = "'holdfast checkpoint create' makes a new one; 'holdfast checkpoint list' shows which others there are"


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A checkpoint as its directory shows it. Exactly one of ``snapshot`` and ``problem`` is there."""

    name: str
    height: int
    snapshot: SnapshotInfo | None
    problem: HoldfastError | None = None
    """Why its manifest cannot be used."""
    chain: str | None = None
    """Name of the chain, where the manifest can be used."""

    def as_dict(self) -> dict[str, object]:
        """As JSON values."""
        found = self.snapshot
        return {
            "name": self.name,
            "height": self.height,
            "block": None if found is None else found.block_hash.hex(),
            "root": None if found is None else found.state_root.hex(),
            "keys": None if found is None else found.keys,
            "chunks": None if found is None else found.chunks,
            "raw_bytes": None if found is None else found.raw_bytes,
            "stored_bytes": None if found is None else found.stored_bytes,
            "manifest_digest": None if found is None else found.manifest_digest.hex(),
            "problem": None if self.problem is None else str(self.problem),
        }


def checkpoint_name(height: int, block_hash: bytes) -> str:
    """Name of the checkpoint of this block."""
    return f"{height}-{block_hash.hex()[:16]}"


def checkpoint_height(name: str) -> int:
    """The height that a name says. Raises ``InvalidInputError`` for what is no name of a checkpoint."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or int(name.partition("-")[0]) > HEIGHT_MAX:
        raise InvalidInputError(
            "this is no name of a checkpoint",
            found=repr(name)[:80],
            expected="HEIGHT-HASH, the hash in 16 hex digits",
            remedy="'holdfast checkpoint list' shows the names",
        )
    return int(name.partition("-")[0])


class CheckpointReader(SnapshotReader):
    """A checkpoint, read as the snapshot that it is. What is wrong raises ``SnapshotInvalid`` that names its file."""

    def __init__(
        self,
        directory: Path,
        name: str,
        *,
        fs: FileSystem | None = None,
        tree_backend: Backend | None = None,
        keys: FileKeys | None = None,
    ) -> None:
        """The manifest is read and checked.

        Raises ``NotFoundError`` if there is none, ``KeyRequired`` and ``KeyRejected`` if it is sealed and ``keys`` have
        no key for it, or if a key was given and it is not.
        """
        checkpoint_height(name)
        self.name = name
        self._keys = FileKeys() if keys is None else keys
        self._files: FileCipher | None = None
        super().__init__(directory, fs=fs, tree_backend=tree_backend)
        block = self.manifest.block
        if checkpoint_name(block.height, block.hash) != name:
            raise SnapshotInvalid(
                "a checkpoint lies under the name of another",
                path=self._manifest_path,
                found=checkpoint_name(block.height, block.hash),
                remedy=_NEXT,
            )

    @property
    def _manifest_path(self) -> Path:
        return self.path / (self.name + _SUFFIX)

    def read_data(self) -> bytes:
        path = self._manifest_path
        if not self._fs.exists(path):
            raise NotFoundError(
                "there is no checkpoint of this name", path=path, remedy="'holdfast checkpoint list' shows the names"
            )
        data = read_manifest(self._fs, path, more=MORE_BYTES_MAX)
        if is_sealed(data):
            return self._unsealed(data)
        if data[:1] == b"{":
            self._keys.check_plain(path, "checkpoint")
        if sha256(data[:-_DIGEST_BYTES]).digest() != data[-_DIGEST_BYTES:]:
            raise SnapshotInvalid("the manifest of a checkpoint is damaged", path=path, remedy=_NEXT)
        return data[:-_DIGEST_BYTES]

    def _unsealed(self, data: bytes) -> bytes:
        path = self._manifest_path
        try:
            found = decode_sealed(data, path.name)
            files = self._keys.cipher_of(found, path, "checkpoint").checkpoints
            self._files = files
            return found.opened(files, path.name)
        except SnapshotInvalid as error:
            raise SnapshotInvalid(
                f"the manifest of a checkpoint is damaged: {error.message}", path=path, remedy=_NEXT
            ) from error

    @property
    def sealed(self) -> bool:
        """True if it is of an encrypted store."""
        return self._files is not None

    def trust_own(self) -> None:
        """Chunks are verified against the root that the manifest names: it is the store's own."""
        self.trust(trust_manifest=True)

    def chunk_path(self, entry: ChunkEntry) -> Path:
        return self.path / CHUNKS_NAME / _file_name(self._files, entry.hash)

    def chunk_data(self, entry: ChunkEntry) -> bytes:
        stored = _read_stored(self._fs, self.chunk_path(entry), self._files, entry.hash, entry.stored_bytes)
        return encode_chunk_head(self.head_of(entry)) + stored + entry.sha256

    def read_chunk(self, entry: ChunkEntry, *, path: Path | None = None) -> VerifiedChunk:
        try:
            return super().read_chunk(entry, path=path)
        except SnapshotInvalid as error:
            if path is None:
                error.context["path"] = self.chunk_path(entry)
                error.context["checkpoint"] = self.name
                error.remedy = _NEXT
            raise


def _file_name(files: FileCipher | None, node: bytes) -> str:
    """Name of the file that holds the chunk of this node."""
    return node.hex() if files is None else files.name_of(node)


def _place(node: bytes) -> str:
    """What the chunk of this node is sealed for."""
    return f"{CHUNKS_NAME}/{node.hex()}"


def _read_stored(fs: FileSystem, path: Path, files: FileCipher | None, node: bytes, expected: int | None) -> bytes:
    """The stored bytes of the records of a chunk, as they were sealed. Raises ``SnapshotInvalid``."""
    if files is None:
        return read_chunk_file(fs, path, expected)
    data = read_chunk_file(fs, path, None if expected is None else expected + FILE_OVERHEAD_BYTES)
    stored = files.open(_place(node), data)
    if stored is None:
        raise SnapshotInvalid("a chunk was not sealed for its place, or is damaged", chunk=path.name)
    return stored


class CheckpointDirectory:
    """The checkpoints of one store. Reading needs no lock; whoever makes or removes some holds that of the store."""

    def __init__(
        self, fs: FileSystem, path: Path, *, tree_backend: Backend | None = None, keys: FileKeys | None = None
    ) -> None:
        """``path`` need not exist until a checkpoint is made. ``keys``: those of an encrypted store."""
        self.path = path
        self._keys = FileKeys() if keys is None else keys
        self._fs = fs
        self._chunks = path / CHUNKS_NAME
        self._backend = tree_backend

    # -- looking --------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Names of the checkpoints, the highest first. One without a manifest is none."""
        files = [name.removesuffix(_SUFFIX) for name in self._fs.names(self.path) if name.endswith(_SUFFIX)]
        found = [name for name in files if _NAME.fullmatch(name) and int(name.partition("-")[0]) <= HEIGHT_MAX]
        return sorted(found, key=lambda name: (-checkpoint_height(name), name))

    def chosen(self, name: str | None) -> str:
        """``name``, or the highest checkpoint. Raises ``NotFoundError`` if there is none at all."""
        names = self.names()
        if not names:
            raise NotFoundError(
                "there are no checkpoints here",
                path=self.path,
                remedy="give the directory of the store that made them, or a copy of its 'checkpoints'",
            )
        return names[0] if name is None else name

    def reader(self, name: str) -> CheckpointReader:
        """The checkpoint of this name, its manifest checked.

        Raises ``NotFoundError``, ``SnapshotInvalid``, ``KeyRequired``, ``KeyRejected``.
        """
        return CheckpointReader(self.path, name, fs=self._fs, tree_backend=self._backend, keys=self._keys)

    def info(self, name: str) -> CheckpointInfo:
        """What the manifest of ``name`` says, or why it cannot be used."""
        try:
            reader = self.reader(name)
            return CheckpointInfo(name, checkpoint_height(name), reader.info, chain=reader.manifest.chain.name)
        except HoldfastError as error:
            return CheckpointInfo(name, checkpoint_height(name), None, error)

    def verify(
        self, name: str, *, workers: int | None = None, progress: Callable[[int, int], None] | None = None
    ) -> SnapshotInfo:
        """Every chunk of the checkpoint is whole and belongs to its root, and none is missing.

        ``progress`` is called with (keys verified, keys in all); what it raises ends it. Raises ``NotFoundError``,
        ``SnapshotInvalid``, ``KeyRequired``, ``KeyRejected``.
        """
        reader = self.reader(name)
        reader.trust_own()
        return reader.verify(progress, workers=workers)

    # -- making ---------------------------------------------------------------------------------------------------

    def create(
        self,
        source: SnapshotSource,
        *,
        chunk_bytes: int = CHUNK_BYTES,
        compress: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> CheckpointInfo:
        """The state of ``source`` is a checkpoint, durable. Killed or failed, the next call keeps the chunks made.

        ``progress`` is called with (keys done, keys in all) after each chunk; what it raises ends it. Raises
        ``CorruptionError`` if the rows of the state do not give its tree, ``OutOfSpace`` and what else the disk says.
        """
        for place in (self.path, self._chunks):
            self._fs.make_directory(place)
        own = self._keys.own
        files = None if own is None else own.cipher.checkpoints
        writer = _Writer(source, self._chunks, self._fs, chunk_bytes, compress, progress, self._backend, files)
        manifest, data = writer.made(writer.taken)
        self._fs.sync_directory(self._chunks)  # an earlier run may have died before it had synced a name
        name = checkpoint_name(manifest.block.height, manifest.block.hash)
        path = self.path / (name + _SUFFIX)
        hit("state.checkpoint.before_manifest")
        if own is None or files is None:
            self._fs.write_atomic(path, data + sha256(data).digest())
        else:
            self._fs.write_atomic(path, own.file(files, path.name, data))
        hit("state.checkpoint.after_manifest")
        return self.info(name)

    # -- removing -------------------------------------------------------------------------------------------------

    def remove(self, names: Collection[str]) -> None:
        """These checkpoints are not listed any more, durably; ``sweep`` frees their chunks."""
        for name in names:
            checkpoint_height(name)
        if names:
            self._fs.sync_directory(self.path)  # what stays may have been named by a run that died before its sync
            for name in names:
                self._fs.remove(self.path / (name + _SUFFIX))
            self._fs.sync_directory(self.path)
            hit("state.checkpoint.after_remove")

    def spare(self, without: Collection[str] = ()) -> list[Path]:
        """Files that no manifest names, leaving the checkpoints ``without`` out of the count; what is strange stays.

        Chunks are among them only if every manifest can be read: else nobody knows which ones it names.
        """
        named: set[str] = set()
        readable = True
        for name in self.names():
            if name in without:
                continue
            try:
                reader = self.reader(name)
                named.update(reader.chunk_path(entry).name for entry in reader.manifest.chunks)
            except HoldfastError:
                readable = False
        spare = [self.path / name for name in self._fs.names(self.path) if _TEMPORARY.fullmatch(name)]
        for name in self._fs.names(self._chunks):
            plain = name.removesuffix(".tmp")
            if _CHUNK.fullmatch(plain) and (plain != name or (readable and name not in named)):
                spare.append(self._chunks / name)
        return spare

    def sweep(self, keep_going: Callable[[], bool] | None = None) -> tuple[int, int]:
        """Files that no manifest names are gone: how many, and their bytes. Cut off, the next call goes on."""
        count = size = 0
        spare = self.spare()
        if spare:
            self._fs.sync_directory(self.path)  # a manifest that is gone must not come back after its chunks went
        for path in spare:
            if keep_going is not None and not keep_going():
                break
            size += self.file_bytes(path)
            self._fs.remove(path)
            count += 1
        return count, size

    def file_bytes(self, path: Path) -> int:
        """Length of a file."""
        file = self._fs.open(path, read_only=True)
        try:
            return file.size()
        finally:
            file.close()


class _Writer(ChunkMaker):
    """A state becomes chunks in a place that checkpoints share."""

    def __init__(
        self,
        source: SnapshotSource,
        chunks: Path,
        fs: FileSystem,
        chunk_bytes: int,
        compress: bool,
        progress: Callable[[int, int], None] | None,
        tree_backend: Backend | None,
        files: FileCipher | None,
    ) -> None:
        super().__init__(source, chunk_bytes, compress=compress, progress=progress, tree_backend=tree_backend)
        self._chunks = chunks
        self._fs = fs
        self._files = files

    def taken(self, node: Node) -> ChunkEntry | None:
        """The chunk of the node, which another checkpoint has or which is durable now; ``None`` if it is too long."""
        path = self._chunks / _file_name(self._files, node.hash)
        entry = self._kept(node, path)
        if entry is not None:
            return entry
        rows = self.rows(node)
        if rows is None:
            return None
        _, stored, entry = self.encode(node, rows)
        with NewFile(self._fs, path) as file:
            file.write(stored if self._files is None else self._files.seal(_place(node.hash), stored))
            file.sync()
            file.publish()
        return entry

    def _kept(self, node: Node, path: Path) -> ChunkEntry | None:
        """The chunk as it lies there, if it verifies; one that does not is written again."""
        if not self._fs.exists(path):
            return None
        name = chunk_name(node.prefix.to_bytes(32, "big"), node.depth)
        try:
            stored = _read_stored(self._fs, path, self._files, node.hash, None)
            codec, raw_bytes = CODEC_RAW, len(stored)
            if stored[:4] == _ZSTD_MAGIC:
                codec, raw_bytes = CODEC_ZSTD, zstandard.frame_content_size(stored)
            if raw_bytes < len(stored) or (raw_bytes == len(stored) and codec == CODEC_ZSTD):
                return None
            head = self.head_of(node, codec=codec, raw_bytes=raw_bytes, stored_bytes=len(stored))
            data = encode_chunk_head(head) + stored
            digest = sha256(data).digest()
            chunk = verified_chunk(data + digest, name, self._root, self._backend)
        except (SnapshotInvalid, zstandard.ZstdError):
            return None
        return entry_of(head, node.hash, digest) if chunk.node == node.hash else None
