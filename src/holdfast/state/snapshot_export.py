"""Export of the state at one height as a snapshot (docs/FORMAT.md, section 9).

Invariants:
    * ``manifest.json`` comes last: a directory without it is no snapshot, and the next export goes on in it.
    * A chunk that lies there from an earlier run is kept if it verifies against the root, and written again if not.
    * A finished snapshot stays in the chunks that it has: it is kept or mended, never divided in another way.
    * What is written was checked first: rows that do not give the node of the tree are never exported.
    * Memory is bounded by the length of a chunk, or by the one value that is longer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import zstandard

from .._failpoints import hit
from .._fs import FileSystem, NewFile, RealFileSystem
from ..errors import CorruptionError, ForeignStore, InvalidInputError, LimitExceeded, Recovery, SnapshotInvalid
from ..merkle.api import RECORD_BYTES, Backend, Scheme, Tree
from ..merkle.backend import backend
from ..merkle.values import is_reference
from .snapshot import CHUNKS_NAME, MANIFEST_NAME, SnapshotInfo, SnapshotReader, describe, verify_chunk
from .snapshot_format import (
    CHUNKS_MAX,
    CODEC_RAW,
    CODEC_ZSTD,
    DEPTH_MAX,
    MANIFEST_BYTES_MAX,
    ChunkEntry,
    ChunkHead,
    Manifest,
    SnapshotBlock,
    SnapshotChain,
    chain_digest,
    chunk_name,
    encode_chunk_head,
    encode_manifest,
    encode_records,
)

__all__ = [
    "CHUNK_BYTES_DEFAULT",
    "CHUNK_BYTES_MAX",
    "CHUNK_BYTES_MIN",
    "ChunkMaker",
    "Node",
    "SnapshotSource",
    "entry_of",
    "export_snapshot",
    "is_chunk_file",
]

CHUNK_BYTES_MIN = 1024
CHUNK_BYTES_DEFAULT = 2 * 1024 * 1024
CHUNK_BYTES_MAX = 16 * 1024 * 1024

_PAGE_KEYS = 256
_LEAVES_MAX = 1_000_000
_RECORD_OVERHEAD_BYTES = 6
_OUTLIER = 16
_LEVEL = 3
_T = TypeVar("_T")
_CHUNK_FILE = re.compile(r"[0-9a-f]{64}-[0-9]{1,3}\.hfc(\.tmp)?", re.ASCII)


class SnapshotSource(Protocol):
    """The state at one height, as an export needs it; of one version from first to last."""

    @property
    def chain(self) -> SnapshotChain:
        """The chain it belongs to."""

    @property
    def block(self) -> SnapshotBlock:
        """The block after which the state is."""

    @property
    def scheme(self) -> Scheme:
        """The scheme of the tree."""

    @property
    def tree(self) -> Tree:
        """The tree of the state after the block."""

    def rows(self, key_hashes: Sequence[bytes]) -> Sequence[tuple[bytes, bytes]]:
        """(key, value as the tree has it) behind each key hash. Raises ``CorruptionError`` if one is missing."""

    def full_value(self, stored: bytes) -> bytes:
        """The whole value behind a value as the tree has it."""


class Node(NamedTuple):
    """A node of the tree that becomes one chunk, or is divided; ``records`` are its leaves."""

    prefix: int
    depth: int
    records: bytes
    hash: bytes
    siblings: tuple[bytes, ...]


def is_chunk_file(name: str) -> bool:
    """True for the name of a chunk, or of one that is being written."""
    return _CHUNK_FILE.fullmatch(name) is not None


def export_snapshot(
    source: SnapshotSource,
    destination: Path,
    *,
    chunk_bytes: int = CHUNK_BYTES_DEFAULT,
    compress: bool = True,
    progress: Callable[[int, int], None] | None = None,
    fs: FileSystem | None = None,
    tree_backend: Backend | None = None,
) -> SnapshotInfo:
    """The directory ``destination`` is a verified snapshot of ``source``, durable.

    Killed or failed at any moment, the next call with the same arguments goes on where this one stopped.

    Args:
        destination: a directory that is missing, empty, or holds an unfinished export, or a finished one of the same
            state in chunks of the same length: that one is checked, and only what is damaged is written again.
        chunk_bytes: length of a chunk before compression, 1 KiB to 16 MiB; longer only where one value is.
        compress: chunks are compressed with zstd where that makes them shorter; those that are kept stay as they are.
        progress: called with (keys written, keys in all); what it raises ends the export.
    Raises:
        ForeignStore: the directory holds something else, or the state in other chunks; it was not touched.
        CorruptionError: the rows of the state do not give its tree.
        LimitExceeded: more than 200,000 chunks.
    """
    export = _Export(source, destination, chunk_bytes, compress, progress, fs or RealFileSystem(), tree_backend)
    return export.run()


class ChunkMaker:
    """Divides a state into chunks and makes their bytes; where they lie is said by whoever takes them."""

    def __init__(
        self,
        source: SnapshotSource,
        chunk_bytes: int,
        *,
        compress: bool = True,
        progress: Callable[[int, int], None] | None = None,
        tree_backend: Backend | None = None,
    ) -> None:
        """As for ``export_snapshot``."""
        if type(chunk_bytes) is not int or not CHUNK_BYTES_MIN <= chunk_bytes <= CHUNK_BYTES_MAX:
            raise InvalidInputError(
                "the length of a chunk is out of range",
                found=chunk_bytes,
                least=CHUNK_BYTES_MIN,
                most=CHUNK_BYTES_MAX,
            )
        self._source = source
        self._tree = source.tree
        self._scheme = source.scheme
        self._block = source.block
        self._chain = chain_digest(source.chain)
        self._root = source.tree.root
        self._chunk_bytes = chunk_bytes
        self._compress = compress
        self._progress = progress
        self._backend = tree_backend or backend()

    def made(self, take: Callable[[Node], ChunkEntry | None]) -> tuple[Manifest, bytes]:
        """The manifest over all chunks, and its bytes, once ``take`` has stored every chunk."""
        entries: list[ChunkEntry] = []
        done = 0
        for entry in self.walk(take):
            entries.append(entry)
            if len(entries) > CHUNKS_MAX:
                raise LimitExceeded(
                    "the snapshot would have too many chunks", limit=CHUNKS_MAX, remedy="give a larger 'chunk_bytes'"
                )
            done += entry.count
            hit("state.snapshot.chunk")
            if self._progress is not None:
                self._progress(done, self._tree.count)
        chunks = tuple(entries)
        manifest = Manifest(self._source.chain, self._scheme.name, self._block, self._root, self._tree.count, chunks)
        data = encode_manifest(manifest)
        if len(data) > MANIFEST_BYTES_MAX:
            raise LimitExceeded("the manifest would be too long", found=len(data), limit=MANIFEST_BYTES_MAX)
        return manifest, data

    def walk(self, take: Callable[[Node], _T | None]) -> Iterator[_T]:
        """What ``take`` gives for every chunk, in order; a node for which it gives ``None`` is divided."""
        for subtree in self._tree.subtrees(self._leaves_per_chunk()):
            records = self._tree.records(subtree.prefix, subtree.leaves)
            prefix = int.from_bytes(subtree.prefix, "big")
            pending = [Node(prefix, subtree.depth, records, subtree.hash, tuple(subtree.siblings))]
            while pending:
                node = pending.pop()
                found = take(node)
                if found is None:
                    pending += reversed(self._halves(node))
                else:
                    yield found

    def _leaves_per_chunk(self) -> int:
        """About how many keys fill a chunk: key hashes are evenly spread, so the first ones stand for all.

        The few values that are much longer than most do not count in full: chunks that they make too long are divided.
        """
        hashes = _key_hashes(self._tree.records(bytes(32), _PAGE_KEYS))
        if not hashes:
            return 1
        lengths = sorted(self._record_bytes(row) for row in self._source.rows(hashes))
        most = _OUTLIER * lengths[len(lengths) // 2]
        total = sum(min(length, most) for length in lengths)
        return max(1, min(self._chunk_bytes * len(lengths) // total, _LEAVES_MAX))

    @staticmethod
    def _record_bytes(row: tuple[bytes, bytes]) -> int:
        key, stored = row
        value = int.from_bytes(stored[-40:-32], "big") if is_reference(stored) else len(stored)
        return _RECORD_OVERHEAD_BYTES + len(key) + value

    def rows(self, node: Node) -> list[tuple[bytes, bytes]] | None:
        """The rows of the node as the tree has them; ``None`` if they are more than a chunk may hold."""
        hashes = _key_hashes(node.records)
        rows: list[tuple[bytes, bytes]] = []
        length = 0
        for start in range(0, len(hashes), _PAGE_KEYS):
            page = self._source.rows(hashes[start : start + _PAGE_KEYS])
            rows += page
            length += sum(self._record_bytes(row) for row in page)
            if length > self._chunk_bytes and len(hashes) > 1:
                return None
        if self._backend.hash_rows(self._scheme, rows) != node.records:
            raise CorruptionError(
                "the rows of the state do not give its tree; nothing of them was exported",
                prefix=node.prefix.to_bytes(32, "big"),
                depth=node.depth,
                remedy="run 'holdfast verify --level views', then 'holdfast rebuild', and export again",
                recovery=Recovery.REBUILD,
            )
        return rows

    def _halves(self, node: Node) -> list[Node]:
        """The node's children that hold keys."""
        bit = DEPTH_MAX - 1 - node.depth
        at = 0
        while at < len(node.records) and not node.records[at + node.depth // 8] & (0x80 >> node.depth % 8):
            at += RECORD_BYTES
        sides = []
        for records in (node.records[:at], node.records[at:]):
            sides.append((records, self._backend.node_hash(self._scheme, records, node.depth + 1)))
        (left, left_hash), (right, right_hash) = sides
        halves = [
            Node(node.prefix, node.depth + 1, left, left_hash, (right_hash, *node.siblings)),
            Node(node.prefix | 1 << bit, node.depth + 1, right, right_hash, (left_hash, *node.siblings)),
        ]
        return [half for half in halves if half.records]

    def head_of(self, node: Node, *, codec: int, raw_bytes: int, stored_bytes: int) -> ChunkHead:
        """The head of the node's chunk."""
        return ChunkHead(
            codec=codec,
            scheme=self._scheme.name,
            chain=self._chain,
            height=self._block.height,
            block=self._block.hash,
            root=self._root,
            prefix=node.prefix.to_bytes(32, "big"),
            depth=node.depth,
            count=len(node.records) // RECORD_BYTES,
            raw_bytes=raw_bytes,
            stored_bytes=stored_bytes,
            siblings=node.siblings,
        )

    def encode(self, node: Node, rows: list[tuple[bytes, bytes]]) -> tuple[bytes, bytes, ChunkEntry]:
        """The bytes of the chunk's head, the stored bytes of its records, and what the manifest says of it."""
        full = self._source.full_value
        raw = encode_records([(key, full(stored) if is_reference(stored) else stored) for key, stored in rows])
        stored, codec = raw, CODEC_RAW
        if self._compress:
            packed = zstandard.ZstdCompressor(level=_LEVEL).compress(raw)
            if len(packed) < len(raw):
                stored, codec = packed, CODEC_ZSTD
        head = self.head_of(node, codec=codec, raw_bytes=len(raw), stored_bytes=len(stored))
        start = encode_chunk_head(head)
        hasher = sha256(start)
        hasher.update(stored)
        return start, stored, entry_of(head, node.hash, hasher.digest())


def entry_of(head: ChunkHead, node: bytes, digest: bytes) -> ChunkEntry:
    """What a manifest says of the chunk with this head, node and digest."""
    return ChunkEntry(head.prefix, head.depth, head.count, node, head.raw_bytes, head.stored_bytes, digest)


class _Export(ChunkMaker):
    """A snapshot becomes a directory of its own."""

    def __init__(
        self,
        source: SnapshotSource,
        destination: Path,
        chunk_bytes: int,
        compress: bool,
        progress: Callable[[int, int], None] | None,
        fs: FileSystem,
        tree_backend: Backend | None,
    ) -> None:
        super().__init__(source, chunk_bytes, compress=compress, progress=progress, tree_backend=tree_backend)
        self._path = destination
        self._chunks = destination / CHUNKS_NAME
        self._fs = fs
        self._finished: bytes | None = None
        """The manifest of the finished snapshot that lies there, until one of its chunks is written again."""
        self._kept = 0

    def run(self) -> SnapshotInfo:
        self._prepare()
        manifest, data = self.made(self._taken)
        self._remove_strangers(manifest)
        self._fs.sync_directory(self._chunks)  # an earlier run may have died before it had synced a name
        if data == self._finished:
            self._fs.sync_directory(self._path)
        else:
            hit("state.snapshot.before_manifest")
            self._fs.write_atomic(self._path / MANIFEST_NAME, data)
            hit("state.snapshot.after_manifest")
        return describe(manifest, sha256(data).digest(), self._kept)

    # -- the directory --------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        fs, path = self._fs, self._path
        found = self._check_place()
        if found is not None:
            self._check_chunks(found.manifest)
            self._finished = found.data
        missing: list[Path] = []
        place = path.absolute()
        while fs.persistent and not fs.exists(place) and place != place.parent:
            missing.append(place)
            place = place.parent
        for place in reversed(missing or [path]):
            fs.make_directory(place)
        fs.make_directory(self._chunks)

    def _check_place(self) -> SnapshotReader | None:
        """The finished snapshot of this state that lies here, ``None`` if there is none; nothing is touched.

        Raises ``ForeignStore`` if no export may be written here.
        """
        fs, path = self._fs, self._path
        if fs.persistent and fs.exists(path) and not path.is_dir():
            raise ForeignStore("there is a file where the snapshot should be", path=path)
        names = set(fs.names(path))
        strange = sorted(names - {CHUNKS_NAME, MANIFEST_NAME, MANIFEST_NAME + ".tmp"})
        strange += [name for name in fs.names(self._chunks) if not is_chunk_file(name)]
        if strange:
            raise ForeignStore("the directory holds files that are not a snapshot", path=path, found=strange[:8])
        if MANIFEST_NAME not in names:
            return None
        try:
            reader = SnapshotReader(path, fs=fs, tree_backend=self._backend)
        except SnapshotInvalid as error:
            raise ForeignStore(f"the directory holds another snapshot: {error}", path=path) from error
        found = reader.manifest
        if (found.chain, found.block, found.root) != (self._source.chain, self._block, self._root):
            raise ForeignStore("the directory holds a snapshot of another state", path=path, height=found.block.height)
        return reader

    def _check_chunks(self, found: Manifest) -> None:
        """Nothing happens if this export has the chunks of the finished snapshot; nothing is touched."""
        names = {chunk_name(chunk.prefix, chunk.depth) for chunk in found.chunks}

        def known(node: Node) -> Node | None:
            if self._chunk_path(node).name in names:
                return node
            if self.rows(node) is None:
                return None
            raise ForeignStore(
                "the directory holds a finished snapshot of this state in chunks of another length",
                path=self._path,
                chunks=len(names),
                chunk_bytes=self._chunk_bytes,
                remedy="use it as it is, or give the chunk length that it was made with; or export into an empty "
                "directory",
            )

        for _ in self.walk(known):
            pass

    def _unfinish(self) -> None:
        """There is no manifest: a chunk is about to be written again, and until the end this is no snapshot."""
        if self._finished is not None:
            self._finished = None
            self._fs.remove(self._path / MANIFEST_NAME)
            self._fs.sync_directory(self._path)

    def _remove_strangers(self, manifest: Manifest) -> None:
        """Chunks of an earlier, unfinished export that this one does not have are gone."""
        wanted = {chunk_name(chunk.prefix, chunk.depth) for chunk in manifest.chunks}
        strangers = [name for name in self._fs.names(self._chunks) if name not in wanted and is_chunk_file(name)]
        for name in strangers:
            self._fs.remove(self._chunks / name)

    # -- chunks ---------------------------------------------------------------------------------------------------

    def _taken(self, node: Node) -> ChunkEntry | None:
        """The chunk of the node, kept or written; ``None`` if it would be too long."""
        entry = self._kept_chunk(node)
        if entry is None:
            rows = self.rows(node)
            if rows is not None:
                self._unfinish()
                entry = self._write(node, rows)
        return entry

    def _kept_chunk(self, node: Node) -> ChunkEntry | None:
        """The chunk as it lies there from an earlier run, if it verifies and is of this export."""
        path = self._chunk_path(node)
        if not self._fs.exists(path):
            return None
        try:
            chunk = verify_chunk(path, self._root, fs=self._fs, tree_backend=self._backend)
        except SnapshotInvalid:
            return None  # it is written again
        head = chunk.head
        ours = (self._scheme.name, self._chain, self._block.height, self._block.hash)
        if (head.scheme, head.chain, head.height, head.block) != ours:
            return None
        self._kept += 1
        return entry_of(head, chunk.node, chunk.digest)

    def _chunk_path(self, node: Node) -> Path:
        return self._chunks / chunk_name(node.prefix.to_bytes(32, "big"), node.depth)

    def _write(self, node: Node, rows: list[tuple[bytes, bytes]]) -> ChunkEntry:
        """The chunk of the node is durable."""
        start, stored, entry = self.encode(node, rows)
        with NewFile(self._fs, self._chunk_path(node)) as file:
            file.write(start)
            file.write(stored)
            file.write(entry.sha256)
            file.sync()
            file.publish()
        return entry


def _key_hashes(records: bytes) -> list[bytes]:
    return [records[at : at + 32] for at in range(0, len(records), RECORD_BYTES)]
