"""Snapshots: what is exported verifies and is the state; whatever was changed is refused, and named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from holdfast._fs import MemoryFileSystem, RealFileSystem
from holdfast.errors import (
    CorruptionError,
    ForeignStore,
    FormatTooNew,
    InvalidInputError,
    LimitExceeded,
    SnapshotInvalid,
)
from holdfast.merkle.api import ICS23_SMT, JMT_SHA256, SCHEMES
from holdfast.merkle.backend import backend
from holdfast.merkle.pure import BACKEND
from holdfast.merkle.values import tree_value
from holdfast.state import snapshot as reading
from holdfast.state import snapshot_export as exporting
from holdfast.state.snapshot import CHUNKS_NAME, MANIFEST_NAME, SnapshotReader, verify_chunk, verify_snapshot
from holdfast.state.snapshot_export import export_snapshot
from holdfast.state.snapshot_format import (
    ChunkEntry,
    Manifest,
    SnapshotChain,
    chain_digest,
    chunk_name,
    decode_manifest,
    encode_chunk_head,
    encode_manifest,
    encode_records,
)
from tests.unit.snapshot_support import (
    CHAIN,
    PLACE,
    chunk_bytes_of,
    chunk_names,
    export,
    manifest_bytes,
    numbered,
    reader_of,
    source_of,
)

LARGE = 64 * 1024 + 1


def contents(fs: MemoryFileSystem, root: bytes, workers: int = 1) -> dict[bytes, bytes]:
    """Every key and value of the snapshot, verified."""
    reader = reader_of(fs)
    reader.trust(trusted_root=root)
    found: dict[bytes, bytes] = {}
    for chunk in reader.chunks(workers=workers):
        assert [chunk.records[at : at + 32] for at in range(0, len(chunk.records), 64)] == sorted(
            sha256(key).digest() for key, _ in chunk.rows
        )
        assert not found.keys() & dict(chunk.rows).keys()
        found.update(chunk.rows)
    return found


# -- what is exported is the state -----------------------------------------------------------------------------------

states = st.dictionaries(
    st.binary(min_size=1, max_size=40),
    st.one_of(st.binary(min_size=1, max_size=300), st.sampled_from([b"x" * LARGE, b"y" * (LARGE + 5)])),
    max_size=30,
)


@given(states, st.sampled_from([1024, 1500, 4096, 200_000]), st.booleans(), st.sampled_from(sorted(SCHEMES)))
def test_any_state_survives(values: dict[bytes, bytes], chunk_bytes: int, compress: bool, scheme: str) -> None:
    source = source_of(values, scheme=SCHEMES[scheme])
    fs, info = export(source, chunk_bytes=chunk_bytes, compress=compress)
    assert contents(fs, source.tree.root) == values
    assert (info.keys, info.state_root, info.height, info.kept) == (len(values), source.tree.root, 7, 0)
    assert info.manifest_digest == sha256(manifest_bytes(fs)).digest()
    assert info.chunks == len(chunk_names(fs))
    reader = reader_of(fs)
    assert (reader.manifest.block, reader.manifest.chain) == (source.block, source.chain)
    for chunk in reader.manifest.chunks:
        assert chunk.raw_bytes <= chunk_bytes or chunk.count == 1
    assert verify_snapshot(PLACE, source.tree.root, fs=fs, tree_backend=BACKEND) == info


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_small_states(count: int) -> None:
    source = source_of(numbered(count))
    fs, info = export(source, chunk_bytes=2**20)
    assert contents(fs, source.tree.root) == source.values
    assert info.chunks == min(count, 1)


def test_a_chunk_for_each_key() -> None:
    source = source_of(numbered(60, length=120))
    fs, _ = export(source)
    before = len(chunk_names(fs))
    big = source_of({key: value * 9 for key, value in source.values.items()})
    fs, info = export(big)
    assert info.chunks == 60 > before
    assert contents(fs, big.tree.root) == big.values
    assert {chunk.count for chunk in reader_of(fs).manifest.chunks} == {1}


def test_a_large_value_among_small_ones_has_a_chunk_of_its_own() -> None:
    values = {**numbered(300), b"blob": bytes(range(256)) * 1000, b"other": b"z" * LARGE}
    fs, _ = export(source_of(values), chunk_bytes=16 * 1024)
    assert contents(fs, source_of(values).tree.root) == values
    for chunk in reader_of(fs).manifest.chunks:
        assert chunk.raw_bytes <= 16 * 1024 or chunk.count == 1


def test_one_huge_value_does_not_make_every_chunk_tiny() -> None:
    plain = source_of(numbered(300))
    first = min(plain.values, key=lambda key: sha256(key).digest())
    source = source_of({**plain.values, first: b"h" * 3_000_000})
    _, few = export(plain, chunk_bytes=8192)
    _, info = export(source, chunk_bytes=8192)
    assert few.chunks <= info.chunks <= few.chunks + 12


def test_every_backend_writes_and_reads_the_same() -> None:
    source = source_of({**numbered(150), b"blob": b"b" * LARGE})
    fs, info = export(source)
    files = {path: bytes(data) for path, data in fs._files.items()}
    again = MemoryFileSystem()
    assert export_snapshot(source, PLACE, chunk_bytes=1024, compress=False, fs=again, tree_backend=backend()) == info
    assert {path: bytes(data) for path, data in again._files.items()} == files
    assert verify_snapshot(PLACE, source.tree.root, fs=fs, tree_backend=backend()) == info
    assert backend().node_hash(JMT_SHA256, b"", 5) == JMT_SHA256.null


def test_workers_give_the_same_in_the_same_order() -> None:
    source = source_of(numbered(200))
    fs, _ = export(source)
    assert list(contents(fs, source.tree.root, 4)) == list(contents(fs, source.tree.root, 1))


def test_the_bytes_are_those_of_the_format_document() -> None:
    key, value = b"k", b"value"
    source = source_of({key: value}, height=258)
    fs, _ = export(source)
    (name,) = chunk_names(fs)
    assert name == "0" * 64 + "-0.hfc"
    record = b"\0\1k\0\0\0\5value"
    manifest = json.loads(manifest_bytes(fs))
    chain = json.dumps(manifest["chain"], sort_keys=True, separators=(",", ":")).encode()
    head = b"HFCHUNK1" + bytes((0, 0, 0, 1, 0, 0, 0, 0)) + b"jmt-sha256" + bytes(22) + sha256(chain).digest()
    head += bytes((0, 0, 0, 0, 0, 0, 1, 2)) + source.block.hash + source.tree.root + bytes(32)
    head += (1).to_bytes(8, "big") + (12).to_bytes(8, "big") * 2
    data = head + record
    assert chunk_bytes_of(fs, name) == data + sha256(data).digest()
    assert manifest == {
        "kind": "holdfast-snapshot",
        "format": 1,
        "chain": {
            "name": "pow",
            "id": "test",
            "fork_choice": "heaviest",
            "epoch_length": 40,
            "epoch_origin": 1,
            "parameters": {"a": "1", "b": "2"},
        },
        "scheme": "jmt-sha256",
        "block": {
            "hash": source.block.hash.hex(),
            "parent": source.block.parent.hex(),
            "height": 258,
            "time": source.block.time,
            "work": f"{source.block.work:064x}",
            "total_work": f"{source.block.total_work:064x}",
            "producer": b"miner".hex(),
            "header": b"header 258".hex(),
        },
        "root": source.tree.root.hex(),
        "count": 1,
        "chunks": [
            {
                "prefix": "00" * 32,
                "depth": 0,
                "count": 1,
                "hash": source.tree.root.hex(),
                "raw_bytes": 12,
                "stored_bytes": 12,
                "sha256": sha256(data).hexdigest(),
            }
        ],
    }
    assert json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode() == manifest_bytes(fs)


def test_a_chunk_proves_itself_without_a_manifest() -> None:
    source = source_of(numbered(100))
    fs, _ = export(source)
    found: dict[bytes, bytes] = {}
    for name in reversed(chunk_names(fs)):
        path = PLACE / CHUNKS_NAME / name
        found.update(verify_chunk(path, source.tree.root, fs=fs, tree_backend=BACKEND).rows)
        with pytest.raises(SnapshotInvalid, match="another state"):
            verify_chunk(path, bytes(32), fs=fs, tree_backend=BACKEND)
    assert found == source.values


# -- trust -----------------------------------------------------------------------------------------------------------


def test_something_must_be_trusted() -> None:
    source = source_of(numbered(40))
    fs, info = export(source)
    reader = reader_of(fs)
    with pytest.raises(InvalidInputError, match="trust"):
        reader.read_chunk(reader.manifest.chunks[0])
    with pytest.raises(InvalidInputError, match="known from elsewhere"):
        reader.trust()
    with pytest.raises(InvalidInputError, match="known from elsewhere"):
        reader.trust(trusted_block=source.block.hash)
    good: tuple[dict[str, Any], ...] = (
        {"trust_manifest": True},
        {"trusted_root": source.tree.root},
        {"trusted_root": source.tree.root, "trusted_block": source.block.hash},
        {"manifest_digest": info.manifest_digest},
    )
    for arguments in good:
        reader_of(fs).trust(**arguments)
    bad: tuple[dict[str, Any], ...] = (
        {"trusted_root": bytes(32)},
        {"trusted_root": source.tree.root, "trusted_block": bytes(32)},
        {"trust_manifest": True, "trusted_block": bytes(32)},
        {"trust_manifest": True, "manifest_digest": bytes(32)},
    )
    for arguments in bad:
        with pytest.raises(SnapshotInvalid, match="not the one that is trusted"):
            reader_of(fs).trust(**arguments)
    for wrong in (b"short", "0" * 32):
        with pytest.raises(InvalidInputError, match="32 bytes"):
            reader_of(fs).trust(trusted_root=wrong)  # type: ignore[arg-type]


# -- chunks that are not right ---------------------------------------------------------------------------------------


def put(fs: MemoryFileSystem, name: str, data: bytes) -> None:
    fs.write_atomic(PLACE / CHUNKS_NAME / name, data)


def refused(fs: MemoryFileSystem, root: bytes, name: str | None = None) -> SnapshotInvalid:
    """The error that verifying gives; it names the chunk."""
    with pytest.raises(SnapshotInvalid) as caught:
        verify_snapshot(PLACE, root, fs=fs, workers=1, tree_backend=BACKEND)
    if name is not None:
        assert caught.value.context["chunk"] == name
    return caught.value


@pytest.mark.parametrize("compress", [False, True])
def test_every_cut_and_every_flipped_byte_of_a_chunk_is_found(compress: bool) -> None:
    source = source_of(numbered(40))
    fs, _ = export(source, compress=compress)
    reader = reader_of(fs)
    reader.trust(trusted_root=source.tree.root)
    entry = reader.manifest.chunks[1]
    name = chunk_name(entry.prefix, entry.depth)
    whole = chunk_bytes_of(fs, name)
    rows = reader.read_chunk(entry).rows
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        put(fs, name, whole[:length])
        refused(fs, source.tree.root, name)
        with pytest.raises(SnapshotInvalid):
            verify_chunk(PLACE / CHUNKS_NAME / name, source.tree.root, fs=fs, tree_backend=BACKEND)
    put(fs, name, whole + b"\0")
    refused(fs, source.tree.root, name)
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        put(fs, name, bytes(changed))
        with pytest.raises((SnapshotInvalid, FormatTooNew)):
            reader.read_chunk(entry)
        if at >= len(whole) - 32:
            continue
        changed[-32:] = sha256(changed[:-32]).digest()
        put(fs, name, bytes(changed))
        with pytest.raises((SnapshotInvalid, FormatTooNew)):
            reader.read_chunk(entry)
        if 48 <= at < 120:
            continue  # chain, height and block are what the file says; all else is proven by the root
        try:
            found = verify_chunk(PLACE / CHUNKS_NAME / name, source.tree.root, fs=fs, tree_backend=BACKEND)
        except (SnapshotInvalid, FormatTooNew):
            continue
        assert compress, "only a stream has bits that mean nothing"
        assert found.rows == rows


def resealed(whole: bytes, at: int, data: bytes) -> bytes:
    """The chunk with other bytes and a digest that fits them."""
    changed = bytearray(whole[:-32])
    changed[at : at + len(data)] = data
    return bytes(changed) + sha256(changed).digest()


def forged(fs: MemoryFileSystem, entry_index: int, rows: list[tuple[bytes, bytes]], **changes: object) -> str:
    """A chunk with other rows takes the place of one; its digests and lengths fit. Its name is returned."""
    reader = reader_of(fs)
    entry = reader.manifest.chunks[entry_index]
    name = chunk_name(entry.prefix, entry.depth)
    head = verify_chunk(PLACE / CHUNKS_NAME / name, reader.manifest.root, fs=fs, tree_backend=BACKEND).head
    raw = encode_records(rows)
    head = msgspec.structs.replace(head, codec=0, count=len(rows), raw_bytes=len(raw), stored_bytes=len(raw), **changes)
    data = encode_chunk_head(head) + raw
    put(fs, name, data + sha256(data).digest())
    chunks = list(reader.manifest.chunks)
    chunks[entry_index] = msgspec.structs.replace(
        entry, count=len(rows), raw_bytes=len(raw), stored_bytes=len(raw), sha256=sha256(data).digest()
    )
    total = sum(chunk.count for chunk in chunks)
    manifest = msgspec.structs.replace(reader.manifest, chunks=tuple(chunks), count=total)
    fs.write_atomic(PLACE / MANIFEST_NAME, encode_manifest(manifest))
    return name


def rows_of(fs: MemoryFileSystem, index: int) -> list[tuple[bytes, bytes]]:
    reader = reader_of(fs)
    reader.trust(trust_manifest=True)
    return reader.read_chunk(reader.manifest.chunks[index]).rows


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[:-1], "does not belong to the state root"),
        (lambda rows: [*rows[:-1], (rows[-1][0], rows[-1][1] + b"!")], "does not belong to the state root"),
        (lambda rows: [(rows[0][0] + b"!", rows[0][1]), *rows[1:]], "not belong|not as they should"),
        (lambda rows: [rows[1], rows[0], *rows[2:]], "not as they should be"),
        (lambda rows: [rows[0], *rows], "not as they should be"),
        (lambda rows: [*rows, rows[-1]], "not as they should be"),
        (lambda rows: [*rows, (b"extra", b"1")], "not belong there|not as they should|state root"),
        (lambda rows: [(rows[0][0], tree_value(b"q" * LARGE)), *rows[1:]], "reference"),
        (lambda rows: [(b"", rows[0][1]), *rows[1:]], "impossible length"),
        (lambda rows: [(rows[0][0], b""), *rows[1:]], "impossible length"),
        (lambda rows: [(b"k" * 401, b"1"), *rows[1:]], "impossible length"),
    ],
)
def test_rows_that_were_changed_are_refused(
    change: Callable[[list[tuple[bytes, bytes]]], list[tuple[bytes, bytes]]], words: str
) -> None:
    source = source_of(numbered(60))
    fs, _ = export(source)
    index = 1
    name = forged(fs, index, change(rows_of(fs, index)))
    with pytest.raises(SnapshotInvalid, match=words) as caught:
        verify_snapshot(PLACE, source.tree.root, fs=fs, tree_backend=BACKEND)
    assert caught.value.context["chunk"] == name


def test_a_reference_in_the_place_of_its_value_is_refused() -> None:
    """The root would be right, and the value would be lost."""
    source = source_of({**numbered(30), b"blob": b"b" * LARGE})
    fs, _ = export(source)
    rows = None
    for index in range(len(chunk_names(fs))):
        rows = rows_of(fs, index)
        if rows[0][0] == b"blob":
            break
    assert rows is not None
    forged(fs, index, [(key, tree_value(value)) for key, value in rows])
    assert "reference" in refused(fs, source.tree.root).message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scheme": "ics23-smt"}, "root"),
        ({"scheme": "other"}, "scheme"),
        ({"chain": bytes(32)}, "chain differs"),
        ({"height": 8}, "height differs"),
        ({"block": bytes(32)}, "block differs"),
        ({"root": bytes(32)}, "another state"),
    ],
)
def test_a_head_that_is_of_something_else_is_refused(changes: dict[str, object], words: str) -> None:
    source = source_of(numbered(60))
    fs, _ = export(source)
    name = forged(fs, 1, rows_of(fs, 1), **changes)
    assert words in refused(fs, source.tree.root, name).message


def test_siblings_that_were_changed_are_refused() -> None:
    source = source_of(numbered(60))
    fs, _ = export(source)
    entry = reader_of(fs).manifest.chunks[1]
    name = chunk_name(entry.prefix, entry.depth)
    whole = chunk_bytes_of(fs, name)
    head = verify_chunk(PLACE / CHUNKS_NAME / name, source.tree.root, fs=fs, tree_backend=BACKEND).head
    for level in range(head.depth):
        siblings = list(head.siblings)
        siblings[level] = JMT_SHA256.null
        put(fs, name, resealed(whole, 208, b"".join(siblings)))
        with pytest.raises(SnapshotInvalid, match="does not belong to the state root"):
            verify_chunk(PLACE / CHUNKS_NAME / name, source.tree.root, fs=fs, tree_backend=BACKEND)


def test_chunks_in_each_others_place_are_refused() -> None:
    source = source_of(numbered(60))
    fs, _ = export(source)
    first, second = chunk_names(fs)[:2]
    one, two = chunk_bytes_of(fs, first), chunk_bytes_of(fs, second)
    put(fs, first, two)
    refused(fs, source.tree.root, first)
    with pytest.raises(SnapshotInvalid, match="under the name of another"):
        verify_chunk(PLACE / CHUNKS_NAME / first, source.tree.root, fs=fs, tree_backend=BACKEND)
    put(fs, first, one)
    put(fs, second, one)
    refused(fs, source.tree.root, second)


def test_a_missing_chunk_is_named() -> None:
    source = source_of(numbered(60))
    fs, _ = export(source)
    name = chunk_names(fs)[2]
    fs.remove(PLACE / CHUNKS_NAME / name)
    assert "missing" in refused(fs, source.tree.root, name).message


def test_a_chunk_of_another_height_is_refused_although_its_root_is_the_same() -> None:
    values = numbered(60)
    fs, _ = export(source_of(values, height=7))
    other, _ = export(source_of(values, height=8))
    name = chunk_names(fs)[0]
    put(fs, name, chunk_bytes_of(other, name))
    assert "height differs" in refused(fs, source_of(values).tree.root, name).message


def test_files_beside_the_chunks_are_not_read() -> None:
    source = source_of(numbered(60))
    fs, info = export(source)
    put(fs, "f" * 64 + "-256.hfc", b"anything")
    put(fs, "notes", b"anything")
    assert verify_snapshot(PLACE, source.tree.root, fs=fs, tree_backend=BACKEND) == info


# -- bombs and hostile files -----------------------------------------------------------------------------------------


def bomb(fs: MemoryFileSystem, packed: bytes, raw_bytes: int) -> str:
    """A compressed chunk that says it has ``raw_bytes``; its name."""
    reader = reader_of(fs)
    entry = reader.manifest.chunks[0]
    name = chunk_name(entry.prefix, entry.depth)
    head = verify_chunk(PLACE / CHUNKS_NAME / name, reader.manifest.root, fs=fs, tree_backend=BACKEND).head
    head = msgspec.structs.replace(head, codec=1, raw_bytes=raw_bytes, stored_bytes=len(packed))
    data = encode_chunk_head(head) + packed
    put(fs, name, data + sha256(data).digest())
    return name


@pytest.mark.parametrize("streamed", [False, True])
def test_a_decompression_bomb_is_read_up_to_what_it_says_only(streamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(numbered(60))
    fs, _ = export(source)
    zeros = bytes(200_000_000)
    if streamed:
        compressor = zstandard.ZstdCompressor().compressobj()
        packed = compressor.compress(zeros) + compressor.flush()
    else:
        packed = zstandard.ZstdCompressor().compress(zeros)
    assert len(packed) < 50_000
    read: list[int] = []
    real = zstandard.ZstdDecompressor

    class Watched:
        def __init__(self, **options: object) -> None:
            self._inner = real(**options)  # type: ignore[arg-type]

        def stream_reader(self, data: bytes) -> Watched:
            self._stream = self._inner.stream_reader(data)
            return self

        def __enter__(self) -> Watched:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def read(self, size: int) -> bytes:
            piece = self._stream.read(size)
            read.append(len(piece))
            return piece

    monkeypatch.setattr(zstandard, "ZstdDecompressor", Watched)
    name = bomb(fs, packed, 60_000)
    with pytest.raises(SnapshotInvalid, match="to the length it says") as caught:
        verify_chunk(PLACE / CHUNKS_NAME / name, source.tree.root, fs=fs, tree_backend=BACKEND)
    assert caught.value.context["chunk"] == name
    assert sum(read) == 60_001


def test_a_huge_window_and_bytes_that_are_no_stream_are_refused() -> None:
    source = source_of(numbered(60))
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = compressor.compress(os.urandom(2000)) + compressor.flush()
    for data, cause in ((packed, "too much memory"), (b"nothing that zstd knows" * 20, "descriptor")):
        fs, _ = export(source)
        name = bomb(fs, data, 60_000)
        with pytest.raises(SnapshotInvalid, match="decompress") as caught:
            verify_chunk(PLACE / CHUNKS_NAME / name, source.tree.root, fs=fs, tree_backend=BACKEND)
        assert cause in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("at", "data"),
    [
        (184, b"\xff" * 8),
        (184, bytes(8)),
        (192, b"\xff" * 8),
        (200, b"\xff" * 8),
        (192, (64 * 1024 * 1024 + 64 * 1024 + 1).to_bytes(8, "big") * 2),
        (14, b"\xff\xff"),
        (14, b"\1\1"),
        (12, b"\2"),
        (13, b"\1"),
        (80, b"\xff" * 8),
        (48 - 1, b"\xff"),
    ],
)
def test_impossible_figures_in_a_head_are_refused(at: int, data: bytes) -> None:
    source = source_of(numbered(60))
    fs, _ = export(source)
    name = chunk_names(fs)[0]
    put(fs, name, resealed(chunk_bytes_of(fs, name), at, data))
    with pytest.raises(SnapshotInvalid) as caught:
        verify_chunk(PLACE / CHUNKS_NAME / name, source.tree.root, fs=fs, tree_backend=BACKEND)
    assert caught.value.context["chunk"] == name


def test_a_chunk_of_a_newer_format_says_so() -> None:
    source = source_of(numbered(60))
    fs, _ = export(source)
    name = chunk_names(fs)[0]
    put(fs, name, resealed(chunk_bytes_of(fs, name), 8, bytes((0, 0, 0, 2))))
    with pytest.raises(FormatTooNew):
        verify_chunk(PLACE / CHUNKS_NAME / name, source.tree.root, fs=fs, tree_backend=BACKEND)


def test_links_pipes_and_huge_files_are_not_read(tmp_path: Path) -> None:
    source = source_of(numbered(60))
    place = tmp_path / "snapshot"
    export_snapshot(source, place, chunk_bytes=1024, tree_backend=BACKEND)
    path = place / CHUNKS_NAME / sorted(os.listdir(place / CHUNKS_NAME))[0]
    whole = path.read_bytes()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(whole)
    path.unlink()
    path.symlink_to(elsewhere)
    make: Callable[[], object]
    for make in (dict, lambda: os.mkfifo(path), path.mkdir):
        make()
        with pytest.raises(SnapshotInvalid) as caught:
            verify_snapshot(place, source.tree.root, tree_backend=BACKEND)
        assert caught.value.context["chunk"] == path.name
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
    with path.open("wb") as file:
        file.truncate(2**40)
    for trusted in (source.tree.root,):
        with pytest.raises(SnapshotInvalid, match="length"):
            verify_snapshot(place, trusted, tree_backend=BACKEND)
        with pytest.raises(SnapshotInvalid, match="length"):
            verify_chunk(path, trusted, tree_backend=BACKEND)
    (place / MANIFEST_NAME).unlink()
    os.mkfifo(place / MANIFEST_NAME)
    with pytest.raises(SnapshotInvalid, match="manifest"):
        SnapshotReader(place)


# -- manifests that are not right ------------------------------------------------------------------------------------


def changed_manifest(fs: MemoryFileSystem, change: Callable[[Manifest], Manifest]) -> None:
    manifest = change(decode_manifest(manifest_bytes(fs)))
    fs.write_atomic(PLACE / MANIFEST_NAME, encode_manifest(manifest))


Change = Callable[[Manifest], Manifest]


def with_chunks(change: Callable[[list[ChunkEntry]], object]) -> Change:
    """The manifest with other chunks; its count fits."""

    def changed(manifest: Manifest) -> Manifest:
        chunks = list(manifest.chunks)
        change(chunks)
        return msgspec.structs.replace(manifest, chunks=tuple(chunks), count=sum(chunk.count for chunk in chunks))

    return changed


def first_with(**changes: object) -> Change:
    """The manifest with other figures of its first chunk."""

    def change(chunks: list[ChunkEntry]) -> None:
        chunks[0] = msgspec.structs.replace(chunks[0], **changes)

    return with_chunks(change)


def with_another(place: int, **changes: object) -> Change:
    """The manifest with one chunk more, made from the first one."""
    return with_chunks(lambda chunks: chunks.insert(place, msgspec.structs.replace(chunks[0], **changes)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_chunks(lambda chunks: chunks.pop(3)), "do not give its state root"),
        (with_chunks(lambda chunks: chunks.clear()), "do not give its state root"),
        (with_chunks(lambda chunks: chunks.insert(3, chunks[3])), "twice"),
        (with_chunks(lambda chunks: chunks.reverse()), "out of order"),
        (with_another(0, depth=1), "overlap"),
        (with_another(1, prefix=bytes(31) + b"\1", depth=256), "overlap"),
        (first_with(prefix=bytes(31) + b"\1"), "longer than its depth"),
        (first_with(hash=bytes(32)), "do not give its state root"),
        (first_with(raw_bytes=2**40), "longer than it can be"),
        (first_with(stored_bytes=10**6), "longer than it can be"),
        (first_with(count=2**40), "cannot hold as many keys"),
        (first_with(count=0), "cannot hold as many keys"),
        (first_with(stored_bytes=0), "cannot hold as many keys"),
        (lambda manifest: msgspec.structs.replace(manifest, count=manifest.count + 1), "as many keys as the manifest"),
        (lambda manifest: msgspec.structs.replace(manifest, scheme="sha1"), "scheme"),
        (lambda manifest: msgspec.structs.replace(manifest, root=bytes(32)), "root differs"),
    ],
)
def test_a_manifest_that_was_changed_is_refused(change: Callable[[Manifest], Manifest], words: str) -> None:
    source = source_of(numbered(60))
    fs, _ = export(source)
    changed_manifest(fs, change)
    assert words in refused(fs, source.tree.root).message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (("chunks", 0, "prefix"), "../../../../etc/passwd"),
        (("chunks", 0, "prefix"), "../" + "0" * 61),
        (("chunks", 0, "prefix"), "0" * 63 + "\n"),
        (("chunks", 0, "prefix"), "A" * 64),
        (("chunks", 0, "prefix"), "\uff10" * 64),
        (("chunks", 0, "depth"), -1),
        (("chunks", 0, "depth"), 257),
        (("chunks", 0, "depth"), 10**40),
        (("chunks", 0, "depth"), 1.0),
        (("chunks", 0, "depth"), True),
        (("chunks", 0, "count"), -1),
        (("chunks", 0, "count"), 2**63),
        (("chunks", 0, "raw_bytes"), -5),
        (("chunks", 0, "sha256"), "00"),
        (("chunks", 0, "name"), "../../evil"),
        (("chunks", 0), "../../evil"),
        (("chunks",), {}),
        (("chunks",), None),
        (("block", "hash"), "0" * 62),
        (("block", "height"), 2**63),
        (("block", "height"), -1),
        (("block", "time"), 2**64),
        (("block", "work"), "1"),
        (("block", "work"), "f" * 65),
        (("block", "producer"), "00" * 129),
        (("block", "producer"), "0"),
        (("block", "header"), "0"),
        (("block", "header"), "00" * (1024 * 1024 + 1)),
        (("block", "body"), ""),
        (("kind",), "other"),
        (("format",), 0),
        (("format",), "1"),
        (("chain", "name"), 5),
        (("chain", "name"), "n" * 5000),
        (("chain", "parameters"), {"a": 1}),
        (("chain", "epoch_length"), -1),
        (("extra",), 1),
        (("scheme",), None),
    ],
)
def test_impossible_values_in_a_manifest_are_refused(field: tuple[object, ...], value: object) -> None:
    fs, _ = export(source_of(numbered(60)))
    manifest = json.loads(manifest_bytes(fs))
    place = manifest
    for name in field[:-1]:
        place = place[name]
    place[field[-1]] = value
    data = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    with pytest.raises(SnapshotInvalid):
        decode_manifest(data)


def test_a_manifest_of_a_newer_format_says_so_whatever_else_it_holds() -> None:
    with pytest.raises(FormatTooNew):
        decode_manifest(b'{"kind":"holdfast-snapshot","format":2,"other":[]}')


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"kind":"holdfast-snapshot","format":' + b"9" * 5000 + b"}",
        b"\x80\x04K\x01.",
    ],
)
def test_bytes_that_are_no_manifest_are_refused(data: bytes) -> None:
    with pytest.raises((SnapshotInvalid, FormatTooNew)):
        decode_manifest(data)


def test_a_manifest_has_one_form_only() -> None:
    fs, _ = export(source_of(numbered(20)))
    data = manifest_bytes(fs)
    decode_manifest(data)
    spaced = json.dumps(json.loads(data), sort_keys=True).encode()
    unsorted = json.dumps(dict(reversed(list(json.loads(data).items()))), separators=(",", ":")).encode()
    repeated = data.replace(b'"count":20', b'"count":20,"count":20', 1)
    assert repeated != data
    for other in (spaced, unsorted, repeated, data + b"\n", b" " + data):
        with pytest.raises(SnapshotInvalid):
            decode_manifest(other)


def test_every_cut_and_every_flipped_bit_of_a_manifest_is_found() -> None:
    source = source_of(numbered(30))
    fs, info = export(source)
    whole = manifest_bytes(fs)
    for at in range(0, len(whole), 3):
        for data in (whole[:at], whole[:at] + bytes((whole[at] ^ 1 << at % 8,)) + whole[at + 1 :]):
            fs.write_atomic(PLACE / MANIFEST_NAME, data)
            with pytest.raises((SnapshotInvalid, FormatTooNew)):
                verify_snapshot(PLACE, manifest_digest=info.manifest_digest, fs=fs, tree_backend=BACKEND)


def test_a_manifest_that_is_too_long_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    fs, _ = export(source_of(numbered(20)))
    monkeypatch.setattr(reading, "MANIFEST_BYTES_MAX", 100)
    with pytest.raises(SnapshotInvalid, match="too long"):
        reader_of(fs)


# -- exporting -------------------------------------------------------------------------------------------------------


class Stop(Exception):
    """The test ends the export."""


def test_an_export_that_was_stopped_goes_on_and_keeps_what_verifies() -> None:
    source = source_of(numbered(200))
    whole, wanted = export(source)
    for stop in (1, 5, wanted.chunks):
        fs = MemoryFileSystem()

        def progress(_done: int, _total: int, calls: list[int] = [], stop: int = stop) -> None:  # noqa: B006
            calls.append(1)
            if len(calls) == stop:
                calls.clear()
                raise Stop

        with pytest.raises(Stop):
            export_snapshot(
                source, PLACE, chunk_bytes=1024, compress=False, fs=fs, tree_backend=BACKEND, progress=progress
            )
        assert not fs.exists(PLACE / MANIFEST_NAME)
        damaged = chunk_names(fs)[0]
        if stop > 1:
            put(fs, damaged, chunk_bytes_of(fs, damaged)[:-1])
        info = export_snapshot(source, PLACE, chunk_bytes=1024, compress=False, fs=fs, tree_backend=BACKEND)
        assert info.kept == (stop - 1 if stop > 1 else 1)
        assert manifest_bytes(fs) == manifest_bytes(whole)
        assert contents(fs, source.tree.root) == source.values


def test_an_export_onto_a_whole_one_keeps_it_and_mends_it() -> None:
    source = source_of(numbered(200))
    fs, wanted = export(source)
    name = chunk_names(fs)[3]
    put(fs, name, b"rotten")
    info = export_snapshot(source, PLACE, chunk_bytes=1024, compress=False, fs=fs, tree_backend=BACKEND)
    assert (info.kept, info.manifest_digest) == (wanted.chunks - 1, wanted.manifest_digest)
    assert contents(fs, source.tree.root) == source.values


def files(fs: MemoryFileSystem) -> dict[Path, bytes]:
    return {path: bytes(data) for path, data in fs._files.items()}


@pytest.mark.parametrize("compress", [False, True])
def test_the_same_export_again_writes_nothing(compress: bool) -> None:
    source = source_of({**numbered(200), b"long": b"v" * 5000})
    fs, wanted = export(source)
    before = dict(fs._files)
    info = export_snapshot(source, PLACE, chunk_bytes=1024, compress=compress, fs=fs, tree_backend=BACKEND)
    assert (info.kept, info.manifest_digest) == (wanted.chunks, wanted.manifest_digest)
    assert fs._files.keys() == before.keys()
    assert all(data is before[path] for path, data in fs._files.items())


@pytest.mark.parametrize("chunk_bytes", [1024, 4096, 16384])
@pytest.mark.parametrize("other", [1024, 4096, 16384])
def test_a_finished_snapshot_is_not_divided_in_another_way(chunk_bytes: int, other: int) -> None:
    source = source_of({**numbered(200), b"long": b"v" * 5000})
    fs, wanted = export(source, chunk_bytes=chunk_bytes)
    name = chunk_names(fs)[0]
    for damage in (None, b"rotten"):
        if damage is not None:
            put(fs, name, damage)
        before = files(fs)
        if other == chunk_bytes:
            info = export_snapshot(source, PLACE, chunk_bytes=other, compress=False, fs=fs, tree_backend=BACKEND)
            assert info.manifest_digest == wanted.manifest_digest
            continue
        with pytest.raises(ForeignStore, match="chunks of another length") as caught:
            export_snapshot(source, PLACE, chunk_bytes=other, fs=fs, tree_backend=BACKEND)
        assert "empty directory" in str(caught.value.remedy)
        assert files(fs) == before


def test_an_unfinished_export_may_be_divided_in_another_way() -> None:
    source = source_of(numbered(200))
    fs, _ = export(source)
    fs.remove(PLACE / MANIFEST_NAME)
    info = export_snapshot(source, PLACE, chunk_bytes=4096, fs=fs, tree_backend=BACKEND)
    assert info.chunks == len(chunk_names(fs))
    assert contents(fs, source.tree.root) == source.values


def test_while_a_snapshot_is_mended_there_is_none() -> None:
    """A chunk that is written again may have other bytes than its manifest says."""
    source = source_of(numbered(200))
    fs, _ = export(source)
    put(fs, chunk_names(fs)[3], b"rotten")

    def progress(done: int, total: int) -> None:
        if done == total:
            raise Stop

    with pytest.raises(Stop):
        export_snapshot(source, PLACE, chunk_bytes=1024, fs=fs, tree_backend=BACKEND, progress=progress)
    assert not fs.exists(PLACE / MANIFEST_NAME)
    info = export_snapshot(source, PLACE, chunk_bytes=1024, fs=fs, tree_backend=BACKEND)
    assert info.kept == info.chunks == len(chunk_names(fs))
    assert contents(fs, source.tree.root) == source.values


def test_chunks_of_an_unfinished_export_of_another_state_are_replaced() -> None:
    old, new = source_of(numbered(200), height=6), source_of(numbered(150, b"new"), height=7)
    fs, _ = export(old)
    fs.remove(PLACE / MANIFEST_NAME)
    info = export_snapshot(new, PLACE, chunk_bytes=1024, fs=fs, tree_backend=BACKEND)
    assert info.kept == 0
    assert len(chunk_names(fs)) == info.chunks
    assert contents(fs, new.tree.root) == new.values


def test_the_same_state_at_another_height_is_not_kept() -> None:
    fs, _ = export(source_of(numbered(100), height=6))
    fs.remove(PLACE / MANIFEST_NAME)
    source = source_of(numbered(100), height=7)
    assert export_snapshot(source, PLACE, chunk_bytes=1024, fs=fs, tree_backend=BACKEND).kept == 0
    assert contents(fs, source.tree.root) == source.values


def test_a_directory_with_something_else_is_not_touched() -> None:
    source = source_of(numbered(50))
    for name in ("notes.txt", "chunks/notes.txt", "chunks/" + "0" * 64 + "-1.hfc.old"):
        fs = MemoryFileSystem()
        fs.make_directory(PLACE)
        fs.make_directory(PLACE / CHUNKS_NAME)
        fs.write_atomic(PLACE / name, b"mine")
        before = {path: bytes(data) for path, data in fs._files.items()}
        with pytest.raises(ForeignStore):
            export_snapshot(source, PLACE, fs=fs, tree_backend=BACKEND)
        assert {path: bytes(data) for path, data in fs._files.items()} == before


def test_another_snapshot_is_not_replaced(tmp_path: Path) -> None:
    fs, _ = export(source_of(numbered(50), height=6))
    before = {path: bytes(data) for path, data in fs._files.items()}
    with pytest.raises(ForeignStore, match="another state"):
        export_snapshot(source_of(numbered(50), height=7), PLACE, fs=fs, tree_backend=BACKEND)
    other_chain = source_of(numbered(50), height=6, chain=SnapshotChain("other"))
    with pytest.raises(ForeignStore, match="another state"):
        export_snapshot(other_chain, PLACE, fs=fs, tree_backend=BACKEND)
    assert {path: bytes(data) for path, data in fs._files.items()} == before
    fs.write_atomic(PLACE / MANIFEST_NAME, b"{}")
    with pytest.raises(ForeignStore, match="another snapshot"):
        export_snapshot(source_of(numbered(50), height=6), PLACE, fs=fs, tree_backend=BACKEND)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ForeignStore, match="file where"):
        export_snapshot(source_of(numbered(50)), tmp_path / "file", tree_backend=BACKEND)


def test_rows_that_do_not_give_the_tree_are_not_exported() -> None:
    source = source_of(numbered(80))
    key = next(iter(source.values))
    source.values[key] = b"something else"
    fs = MemoryFileSystem()
    with pytest.raises(CorruptionError, match="do not give its tree"):
        export_snapshot(source, PLACE, chunk_bytes=1024, fs=fs, tree_backend=BACKEND)
    assert not fs.exists(PLACE / MANIFEST_NAME)


def test_chunks_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(numbered(80))
    for chunk_bytes in (0, 1023, 16 * 1024 * 1024 + 1):
        with pytest.raises(InvalidInputError, match="out of range"):
            export_snapshot(source, PLACE, chunk_bytes=chunk_bytes, fs=MemoryFileSystem(), tree_backend=BACKEND)
    monkeypatch.setattr(exporting, "CHUNKS_MAX", 2)
    with pytest.raises(LimitExceeded, match="too many chunks"):
        export_snapshot(source, PLACE, chunk_bytes=1024, fs=MemoryFileSystem(), tree_backend=BACKEND)


def test_progress_counts_keys() -> None:
    source, seen = source_of(numbered(80)), []
    fs = MemoryFileSystem()
    export_snapshot(
        source,
        PLACE,
        chunk_bytes=1024,
        fs=fs,
        tree_backend=BACKEND,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (80, 80)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    again: list[tuple[int, int]] = []
    verify_snapshot(
        PLACE,
        source.tree.root,
        fs=fs,
        tree_backend=BACKEND,
        progress=lambda done, total: again.append((done, total)),
    )
    assert again == seen


def test_on_a_disk_in_directories_that_are_made(tmp_path: Path) -> None:
    source = source_of(numbered(100), scheme=ICS23_SMT)
    place = tmp_path / "a" / "b"
    info = export_snapshot(source, place, chunk_bytes=1024, fs=RealFileSystem(), tree_backend=BACKEND)
    assert verify_snapshot(place, source.tree.root, workers=3, tree_backend=BACKEND) == info
    with pytest.raises(InvalidInputError, match="worker"):
        verify_snapshot(place, source.tree.root, workers=0, tree_backend=BACKEND)
    with pytest.raises(SnapshotInvalid, match="export did not end"):
        SnapshotReader(tmp_path / "nowhere")


def test_the_chain_digest_depends_on_every_fact() -> None:
    facts = [
        CHAIN,
        SnapshotChain("pow2", "test", "heaviest", 40, 1, {"b": "2", "a": "1"}),
        SnapshotChain("pow", "test2", "heaviest", 40, 1, {"b": "2", "a": "1"}),
        SnapshotChain("pow", "test", "longest", 40, 1, {"b": "2", "a": "1"}),
        SnapshotChain("pow", "test", "heaviest", 41, 1, {"b": "2", "a": "1"}),
        SnapshotChain("pow", "test", "heaviest", 40, 2, {"b": "2", "a": "1"}),
        SnapshotChain("pow", "test", "heaviest", 40, 1, {"b": "2", "a": "2"}),
    ]
    assert len({chain_digest(chain) for chain in facts}) == len(facts)
    assert chain_digest(CHAIN) == chain_digest(SnapshotChain("pow", "test", "heaviest", 40, 1, {"a": "1", "b": "2"}))
