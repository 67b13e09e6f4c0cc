"""A state in memory that can be exported, and ways to damage a snapshot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from holdfast._fs import MemoryFileSystem
from holdfast.merkle.api import JMT_SHA256, Scheme, Tree
from holdfast.merkle.pure import BACKEND
from holdfast.merkle.values import tree_value
from holdfast.state.snapshot import CHUNKS_NAME, MANIFEST_NAME, SnapshotInfo, SnapshotReader
from holdfast.state.snapshot_export import export_snapshot
from holdfast.state.snapshot_format import SnapshotBlock, SnapshotChain

PLACE = Path("/snapshot")
CHAIN = SnapshotChain("pow", "test", "heaviest", 40, 1, {"b": "2", "a": "1"})


def block_at(height: int) -> SnapshotBlock:
    """A block that could be a base."""
    words = sha256(b"block %d" % height)
    return SnapshotBlock(
        hash=words.digest(),
        parent=sha256(words.digest()).digest(),
        height=height,
        time=1_700_000_000 + height,
        work=2**200 + 5,
        total_work=2**201 + 6,
        producer=b"miner",
        header=b"header %d" % height,
    )


@dataclass
class Source:
    """The smallest thing that satisfies ``SnapshotSource``."""

    values: dict[bytes, bytes]
    chain: SnapshotChain
    block: SnapshotBlock
    scheme: Scheme
    tree: Tree

    def rows(self, key_hashes: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        keys = {sha256(key).digest(): key for key in self.values}
        return [(keys[item], tree_value(self.values[keys[item]])) for item in key_hashes]

    def full_value(self, stored: bytes) -> bytes:
        (found,) = {value for value in self.values.values() if tree_value(value) == stored}
        return found


def source_of(
    values: Mapping[bytes, bytes], *, height: int = 7, scheme: Scheme = JMT_SHA256, chain: SnapshotChain = CHAIN
) -> Source:
    """A source that holds ``values``."""
    tree = BACKEND.empty(scheme).update({key: tree_value(value) for key, value in values.items()}).tree
    return Source(dict(values), chain, block_at(height), scheme, tree)


def numbered(count: int, mark: bytes = b"", length: int = 60) -> dict[bytes, bytes]:
    """``count`` keys with values of about ``length`` bytes."""
    return {b"key/%d" % n: (sha256(mark + b"%d" % n).digest() * 4)[: length + n % 7] for n in range(count)}


def export(
    source: Source, *, chunk_bytes: int = 1024, compress: bool = False, path: Path = PLACE
) -> tuple[MemoryFileSystem, SnapshotInfo]:
    """The snapshot of ``source`` in a file system in memory."""
    fs = MemoryFileSystem()
    return fs, export_snapshot(source, path, chunk_bytes=chunk_bytes, compress=compress, fs=fs, tree_backend=BACKEND)


def reader_of(fs: MemoryFileSystem) -> SnapshotReader:
    """A reader of the snapshot at ``PLACE``."""
    return SnapshotReader(PLACE, fs=fs, tree_backend=BACKEND)


def chunk_names(fs: MemoryFileSystem) -> list[str]:
    """Names of the chunk files."""
    return fs.names(PLACE / CHUNKS_NAME)


def chunk_bytes_of(fs: MemoryFileSystem, name: str) -> bytes:
    """The bytes of a chunk file."""
    return fs.read_bytes(PLACE / CHUNKS_NAME / name, limit=2**27)


def manifest_bytes(fs: MemoryFileSystem) -> bytes:
    """The bytes of the manifest."""
    return fs.read_bytes(PLACE / MANIFEST_NAME, limit=2**27)
