"""Snapshots of the state, read and verified: a directory of chunks and a manifest (docs/FORMAT.md, section 9).

Invariants:
    * Nothing of a chunk leaves this module before its records alone gave, with its siblings, the root that is trusted.
    * A manifest whose chunks do not give the root together is refused before any chunk is read: then none is missing,
      none is too many, and none overlaps another.
    * Whatever is wrong with a chunk raises ``SnapshotInvalid`` that names it. The files are only read, and memory is
      bounded by the largest chunk times the workers.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import zstandard

from .._fs import File, FileSystem, RealFileSystem, open_foreign, path_of
from .._zstd import read_bounded
from ..errors import InvalidInputError, MissingFile, SnapshotInvalid
from ..limits import HASH_BYTES
from ..merkle.api import RECORD_BYTES, SCHEMES, Backend, Scheme
from ..merkle.backend import backend
from ..merkle.values import is_reference, tree_value
from .snapshot_format import (
    CHUNK_DIGEST_BYTES,
    CHUNK_HEAD_BYTES,
    CHUNK_RAW_BYTES_MAX,
    CODEC_RAW,
    CODEC_ZSTD,
    DEPTH_MAX,
    MANIFEST_BYTES_MAX,
    ChunkEntry,
    ChunkHead,
    Manifest,
    chain_digest,
    chunk_name,
    decode_chunk_head,
    decode_manifest,
    decode_records,
    outside,
)

__all__ = [
    "CHUNKS_NAME",
    "MANIFEST_NAME",
    "SnapshotInfo",
    "SnapshotReader",
    "VerifiedChunk",
    "describe",
    "fold_chunks",
    "in_parallel",
    "read_chunk_file",
    "read_manifest",
    "verified_chunk",
    "verify_chunk",
    "verify_snapshot",
]

MANIFEST_NAME = "manifest.json"
CHUNKS_NAME = "chunks"
WORKERS_MAX = 4

_SEAL_BYTES_MAX = 1024
"""A sealed chunk is so much longer at most."""
_FILE_BYTES_MAX = CHUNK_HEAD_BYTES + 32 * DEPTH_MAX + CHUNK_RAW_BYTES_MAX + CHUNK_DIGEST_BYTES + _SEAL_BYTES_MAX
_WINDOW_BYTES_MAX = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot in figures. ``manifest_digest`` is the SHA-256 of its manifest: tell it to whoever imports it."""

    height: int
    block_hash: bytes
    state_root: bytes
    keys: int
    chunks: int
    raw_bytes: int
    stored_bytes: int
    manifest_digest: bytes
    kept: int = 0
    """Chunks that were there already, from an earlier run that did not end, and verified."""


class VerifiedChunk(NamedTuple):
    """The content of a chunk, proven to be all that the state holds under its prefix."""

    head: ChunkHead
    digest: bytes
    """SHA-256 of the file without its last 32 bytes, which are this digest."""
    node: bytes
    """Hash of the chunk's node in the tree."""
    rows: list[tuple[bytes, bytes]]
    """(key, whole value), ordered by the hash of the key."""
    records: bytes
    """The leaves, ``RECORD_BYTES`` each, in the same order."""
    data: bytes
    """The bytes of the file."""


def describe(manifest: Manifest, digest: bytes, kept: int = 0) -> SnapshotInfo:
    """The figures of a manifest whose bytes have this SHA-256."""
    return SnapshotInfo(
        height=manifest.block.height,
        block_hash=manifest.block.hash,
        state_root=manifest.root,
        keys=manifest.count,
        chunks=len(manifest.chunks),
        raw_bytes=sum(chunk.raw_bytes for chunk in manifest.chunks),
        stored_bytes=sum(chunk.stored_bytes for chunk in manifest.chunks),
        manifest_digest=digest,
        kept=kept,
    )


# -- hashes ---------------------------------------------------------------------------------------------------------


def _inner(scheme: Scheme, left: bytes, right: bytes) -> bytes:
    return sha256(scheme.inner_prefix + left + right).digest()


def _fold(scheme: Scheme, node: bytes, prefix: bytes, siblings: tuple[bytes, ...]) -> bytes:
    """The root above ``node``, whose path is the first bits of ``prefix``, as many as there are siblings."""
    path = int.from_bytes(prefix, "big") >> (DEPTH_MAX - len(siblings))
    for sibling in siblings:
        node = _inner(scheme, sibling, node) if path & 1 else _inner(scheme, node, sibling)
        path >>= 1
    return node


def fold_chunks(scheme: Scheme, chunks: tuple[ChunkEntry, ...], siblings: Sequence[list[bytes]] | None = None) -> bytes:
    """The root of the tree whose nodes these are; chunks in order, none overlapping another.

    ``siblings``: an empty list for each chunk; it gets the hashes that lead from its node to the root, nearest first.
    Cost: O(chunks * depth) hashes.
    """
    paths = [int.from_bytes(chunk.prefix, "big") for chunk in chunks]

    def node(low: int, high: int, depth: int) -> bytes:
        if low == high:
            return scheme.null
        if chunks[low].depth == depth:
            return chunks[low].hash
        shift = DEPTH_MAX - 1 - depth
        middle = low
        while middle < high and not paths[middle] >> shift & 1:
            middle += 1
        left, right = node(low, middle, depth + 1), node(middle, high, depth + 1)
        if siblings is not None:
            for at in range(low, high):
                siblings[at].append(right if at < middle else left)
        return _inner(scheme, left, right)

    return node(0, len(chunks), 0)


# -- one chunk ------------------------------------------------------------------------------------------------------


def _read_all(file: File, name: str, expected: int | None) -> bytes:
    size = file.size()
    if size > _FILE_BYTES_MAX or (expected is not None and size != expected):
        raise SnapshotInvalid("a chunk has a wrong length", chunk=name, found=size, expected=expected)
    data = file.pread(size, 0)
    if len(data) != size:
        raise SnapshotInvalid("a chunk ended while it was read", chunk=name, found=len(data), expected=size)
    return data


def read_chunk_file(fs: FileSystem, path: Path, expected: int | None) -> bytes:
    """The bytes of a chunk's file. Raises ``SnapshotInvalid`` if it is missing, no file, or not of the length."""
    try:
        file = open_foreign(fs, path)
    except (MissingFile, InvalidInputError) as error:
        raise SnapshotInvalid(f"a chunk cannot be used: {error.message}", chunk=path.name) from error
    try:
        return _read_all(file, path.name, expected)
    finally:
        file.close()


def _unpacked(head: ChunkHead, stored: bytes, name: str) -> bytes:
    """The raw bytes of the records; never more than the head says are read out of a stream."""
    if head.codec == CODEC_RAW:
        return stored
    try:
        raw = read_bounded(zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX), stored, head.raw_bytes)
    except zstandard.ZstdError as error:
        raise SnapshotInvalid("a chunk does not decompress", chunk=name) from error
    if len(raw) != head.raw_bytes:
        raise SnapshotInvalid("a chunk does not decompress to the length it says", chunk=name, expected=head.raw_bytes)
    return raw


def verified_chunk(data: bytes, name: str, trusted_root: bytes, tree_backend: Backend) -> VerifiedChunk:
    """The content of the chunk file ``data``, proven against the root. Raises ``SnapshotInvalid``."""
    head = decode_chunk_head(data, name)
    start = CHUNK_HEAD_BYTES + 32 * head.depth
    end = start + head.stored_bytes
    if len(data) != end + CHUNK_DIGEST_BYTES:
        raise SnapshotInvalid("a chunk has a wrong length", chunk=name, found=len(data), expected=end + 32)
    digest = sha256(memoryview(data)[:end]).digest()
    if data[end:] != digest:
        raise SnapshotInvalid("a chunk is damaged", chunk=name)
    if name != chunk_name(head.prefix, head.depth):
        raise SnapshotInvalid("a chunk lies under the name of another", chunk=name, found=head.prefix, depth=head.depth)
    if head.root != trusted_root:
        raise SnapshotInvalid("a chunk is of another state", chunk=name, found=head.root, expected=trusted_root)
    scheme = SCHEMES.get(head.scheme)
    if scheme is None:
        raise SnapshotInvalid("a chunk has a tree scheme that is not known", chunk=name, found=head.scheme)
    rows = decode_records(_unpacked(head, data[start:end], name), head.count, name)
    if any(is_reference(value) for _, value in rows):
        raise SnapshotInvalid("a chunk holds a reference where a value should be", chunk=name)
    records = tree_backend.hash_rows(scheme, [(key, tree_value(value)) for key, value in rows])
    if outside(records[:32], head.prefix, head.depth) or outside(records[-RECORD_BYTES:][:32], head.prefix, head.depth):
        raise SnapshotInvalid("a chunk holds a key that does not belong there", chunk=name)
    try:
        node = tree_backend.node_hash(scheme, records, head.depth)
    except ValueError as error:
        raise SnapshotInvalid(f"the keys of a chunk are not as they should be: {error}", chunk=name) from error
    if _fold(scheme, node, head.prefix, head.siblings) != trusted_root:
        raise SnapshotInvalid("a chunk does not belong to the state root", chunk=name, root=trusted_root)
    return VerifiedChunk(head, digest, node, rows, records, data)


def verify_chunk(
    path: Path, trusted_root: bytes, *, fs: FileSystem | None = None, tree_backend: Backend | None = None
) -> VerifiedChunk:
    """The content of one chunk file, proven against ``trusted_root`` (32 bytes); no manifest is needed.

    The chain, the height and the block in its head are what the file says: the root alone is proven.

    Raises:
        SnapshotInvalid: it is damaged, malformed, or not part of the state with that root.
    """
    data = read_chunk_file(fs or RealFileSystem(), path, None)
    return verified_chunk(data, path.name, trusted_root, tree_backend or backend())


# -- the whole ------------------------------------------------------------------------------------------------------


class SnapshotReader:
    """A snapshot directory. Making one reads the manifest and checks its form; ``trust`` says against which root.

    ``state.checkpoint`` reads snapshots that lie in another way: ``read_data`` and ``chunk_data`` say how.
    """

    def __init__(self, path: Path, *, fs: FileSystem | None = None, tree_backend: Backend | None = None) -> None:
        self.path = path
        self._fs = fs or RealFileSystem()
        self._backend = tree_backend or backend()
        self.data = self.read_data()
        """The bytes of the manifest."""
        self.digest = sha256(self.data).digest()
        self.manifest = decode_manifest(self.data)
        scheme = SCHEMES.get(self.manifest.scheme)
        if scheme is None:
            raise SnapshotInvalid("the snapshot has a tree scheme that is not known", found=self.manifest.scheme)
        self.scheme = scheme
        self._chain = chain_digest(self.manifest.chain)
        self._root: bytes | None = None
        self._siblings: dict[tuple[bytes, int], tuple[bytes, ...]] = {}

    def read_data(self) -> bytes:
        """The bytes of the manifest, as section 9.2 has them."""
        return read_manifest(self._fs, self.path / MANIFEST_NAME)

    @property
    def info(self) -> SnapshotInfo:
        """What the manifest says, in figures."""
        return describe(self.manifest, self.digest)

    def trust(
        self,
        *,
        trusted_root: bytes | None = None,
        trusted_block: bytes | None = None,
        manifest_digest: bytes | None = None,
        trust_manifest: bool = False,
    ) -> None:
        """Chunks are verified against the manifest's root from now on, which is one that the caller trusts.

        Args:
            trusted_root: the state root that the caller knows from elsewhere, 32 bytes.
            trusted_block: hash of the block that the caller wants, 32 bytes.
            manifest_digest: SHA-256 of the manifest, as the exporter told it.
            trust_manifest: take the root that the manifest names; for snapshots of one's own.
        Raises:
            SnapshotInvalid: the manifest is of another state or block, or its chunks do not give the root.
            InvalidInputError: nothing was given that could be trusted.
        """
        manifest = self.manifest
        for name, wanted, found in (
            ("root", trusted_root, manifest.root),
            ("block", trusted_block, manifest.block.hash),
            ("manifest_digest", manifest_digest, self.digest),
        ):
            if wanted is not None and (not isinstance(wanted, bytes) or len(wanted) != HASH_BYTES):
                raise InvalidInputError(f"what is trusted as {name} has 32 bytes", found=wanted)
            if wanted is not None and wanted != found:
                raise SnapshotInvalid(
                    f"the snapshot is not the one that is trusted: its {name} differs",
                    found=found,
                    expected=wanted,
                    path=self.path,
                    remedy="find the snapshot of that block, or check where the trusted value comes from",
                )
        if trusted_root is None and manifest_digest is None and not trust_manifest:
            raise InvalidInputError(
                "a snapshot is checked against a state root that is known from elsewhere",
                remedy="give the root of a block that you trust, or accept the root that the manifest names",
            )
        siblings: list[list[bytes]] = [[] for _ in manifest.chunks]
        if fold_chunks(self.scheme, manifest.chunks, siblings) != manifest.root:
            raise SnapshotInvalid(
                "the chunks that the manifest names do not give its state root together: some are missing, or forged",
                path=self.path,
                root=manifest.root,
            )
        self._siblings = {
            (entry.prefix, entry.depth): tuple(hashes) for entry, hashes in zip(manifest.chunks, siblings, strict=True)
        }
        self._root = manifest.root

    def chunk_path(self, entry: ChunkEntry) -> Path:
        """Where the chunk lies."""
        return self.path / CHUNKS_NAME / chunk_name(entry.prefix, entry.depth)

    def read_chunk(self, entry: ChunkEntry, *, path: Path | None = None) -> VerifiedChunk:
        """The verified content of a chunk of this snapshot; ``path`` if it lies elsewhere. ``trust`` comes first.

        Raises ``SnapshotInvalid`` that names the chunk. Any thread may call it.
        """
        if path is None:
            return self.check_chunk(entry, self.chunk_data(entry))
        return self.check_chunk(entry, self._whole_file(entry, path), path.name)

    def check_chunk(self, entry: ChunkEntry, data: bytes, name: str | None = None) -> VerifiedChunk:
        """The verified content of ``data``, which is to be a chunk of this snapshot as section 9.1 has it.

        Raises ``SnapshotInvalid`` that names it, by ``name`` if that is given. ``trust`` comes first.
        """
        if self._root is None:
            raise InvalidInputError("nothing is known that this snapshot could be checked against; call trust() first")
        proper = chunk_name(entry.prefix, entry.depth)
        chunk = verified_chunk(data, proper if name is None else name, self._root, self._backend)
        self._check_member(chunk, entry, proper)
        return chunk

    def head_of(self, entry: ChunkEntry) -> ChunkHead:
        """The head of a chunk as the manifest has it to be; ``trust`` comes first."""
        block = self.manifest.block
        return ChunkHead(
            codec=CODEC_RAW if entry.stored_bytes == entry.raw_bytes else CODEC_ZSTD,
            scheme=self.manifest.scheme,
            chain=self._chain,
            height=block.height,
            block=block.hash,
            root=self.manifest.root,
            prefix=entry.prefix,
            depth=entry.depth,
            count=entry.count,
            raw_bytes=entry.raw_bytes,
            stored_bytes=entry.stored_bytes,
            siblings=self._siblings[entry.prefix, entry.depth],
        )

    def chunk_data(self, entry: ChunkEntry) -> bytes:
        """The bytes of a chunk of this snapshot as section 9.1 has them; nothing of them is verified yet."""
        return self._whole_file(entry, self.chunk_path(entry))

    def _whole_file(self, entry: ChunkEntry, path: Path) -> bytes:
        size = CHUNK_HEAD_BYTES + 32 * entry.depth + entry.stored_bytes + CHUNK_DIGEST_BYTES
        return read_chunk_file(self._fs, path, size)

    def _check_member(self, chunk: VerifiedChunk, entry: ChunkEntry, name: str) -> None:
        head, block = chunk.head, self.manifest.block
        for what, found, wanted in (
            ("prefix", head.prefix, entry.prefix),
            ("depth", head.depth, entry.depth),
            ("count", head.count, entry.count),
            ("raw length", head.raw_bytes, entry.raw_bytes),
            ("scheme", head.scheme, self.manifest.scheme),
            ("chain", head.chain, self._chain),
            ("height", head.height, block.height),
            ("block", head.block, block.hash),
            ("node", chunk.node, entry.hash),
            ("digest", chunk.digest, entry.sha256),
        ):
            if found != wanted:
                raise SnapshotInvalid(
                    f"a chunk is not the one that the manifest names: its {what} differs",
                    chunk=name,
                    found=found,
                    expected=wanted,
                )

    def chunks(self, *, workers: int | None = None) -> Iterator[VerifiedChunk]:
        """Every chunk in the order of the key hashes, verified by ``workers`` threads ahead of the reader."""
        yield from in_parallel(self.manifest.chunks, self.read_chunk, workers)

    def verify(self, progress: Callable[[int, int], None] | None = None, *, workers: int | None = None) -> SnapshotInfo:
        """Every chunk is verified. ``progress`` is called with (keys verified, keys in all); what it raises ends it."""
        done = 0
        for chunk in self.chunks(workers=workers):
            done += chunk.head.count
            if progress is not None:
                progress(done, self.manifest.count)
        return self.info


def read_manifest(fs: FileSystem, path: Path, *, more: int = 0) -> bytes:
    """The bytes of the file that holds a manifest, and ``more`` bytes at most. Raises ``SnapshotInvalid``."""
    try:
        file = open_foreign(fs, path)
    except MissingFile as error:
        raise SnapshotInvalid(
            "there is no snapshot, or its export did not end: the manifest is missing",
            path=path,
            remedy="run the export again, it goes on where it stopped; or copy the manifest too",
        ) from error
    except InvalidInputError as error:
        raise SnapshotInvalid(f"the manifest cannot be used: {error.message}", path=path) from error
    try:
        size = file.size()
        if size > MANIFEST_BYTES_MAX + more:
            raise SnapshotInvalid("the manifest is too long", found=size, limit=MANIFEST_BYTES_MAX, path=path)
        return file.pread(size, 0)
    finally:
        file.close()


def in_parallel(
    entries: tuple[ChunkEntry, ...], work: Callable[[ChunkEntry], VerifiedChunk], workers: int | None
) -> Iterator[VerifiedChunk]:
    """``work`` of each entry in order, done by threads that are at most ``workers`` results ahead.

    The first failure is raised when its turn comes; no work is begun after it, and none is running when this ends.
    """
    count = workers if workers is not None else min(os.cpu_count() or 1, WORKERS_MAX)
    if type(count) is not int or count < 1:
        raise InvalidInputError("the number of workers is a whole number above 0", found=repr(workers))
    with ThreadPoolExecutor(count, "holdfast-snapshot") as pool:
        running: deque[Future[VerifiedChunk]] = deque()
        try:
            for entry in entries:
                running.append(pool.submit(work, entry))
                if len(running) > count:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def verify_snapshot(
    path: str | os.PathLike[str],
    trusted_root: bytes | None = None,
    *,
    trusted_block: bytes | None = None,
    manifest_digest: bytes | None = None,
    trust_manifest: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    fs: FileSystem | None = None,
    tree_backend: Backend | None = None,
) -> SnapshotInfo:
    """Every chunk of the snapshot at ``path`` is whole and belongs to the trusted root, and none is missing.

    Args:
        path: its directory.
        trusted_root, trusted_block, manifest_digest, trust_manifest: as for ``SnapshotReader.trust``.
        workers: threads that verify; as many as there are processors, at most 4, if ``None``.
        progress: called with (keys verified, keys in all).
    Raises:
        SnapshotInvalid: names the first chunk that is not right.
    """
    reader = SnapshotReader(path_of(path, "a snapshot"), fs=fs, tree_backend=tree_backend)
    reader.trust(
        trusted_root=trusted_root,
        trusted_block=trusted_block,
        manifest_digest=manifest_digest,
        trust_manifest=trust_manifest,
    )
    return reader.verify(progress, workers=workers)
