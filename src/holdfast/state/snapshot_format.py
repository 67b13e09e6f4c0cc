"""Bytes of a snapshot: its manifest and the head of its chunks (docs/FORMAT.md, section 9). Pure.

Invariants:
    * ``decode_x(encode_x(v)) == v``; any other bytes raise ``SnapshotInvalid``, or ``FormatTooNew``.
    * A manifest has one encoding only, and holds no names of files: they follow from where the chunks stand.
    * Everything here comes from others: each length and count has a limit that is checked before it is used.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from hashlib import sha256
from typing import Annotated

import msgspec

from .._json import check_depth
from ..errors import FormatTooNew, SnapshotInvalid
from ..limits import (
    HEADER_BYTES_MAX,
    HEIGHT_MAX,
    PRODUCER_BYTES_MAX,
    STATE_KEY_BYTES_MAX,
    STATE_VALUE_BYTES_MAX,
)

__all__ = [
    "CHUNKS_MAX",
    "CHUNK_DIGEST_BYTES",
    "CHUNK_HEAD_BYTES",
    "CHUNK_RAW_BYTES_MAX",
    "CODEC_RAW",
    "CODEC_ZSTD",
    "MANIFEST_BYTES_MAX",
    "ChunkEntry",
    "ChunkHead",
    "Manifest",
    "SnapshotBlock",
    "SnapshotChain",
    "chain_digest",
    "chunk_name",
    "decode_chunk_head",
    "decode_manifest",
    "decode_records",
    "encode_chunk_head",
    "encode_manifest",
    "encode_records",
    "outside",
]

FORMAT = 1
CODEC_RAW = 0
CODEC_ZSTD = 1
CHUNKS_MAX = 200_000
MANIFEST_BYTES_MAX = 96 * 1024 * 1024
DEPTH_MAX = 256
CHUNK_RAW_BYTES_MAX = STATE_VALUE_BYTES_MAX + 64 * 1024
"""One record of the largest key and value fits, with room to spare."""

_KIND = "holdfast-snapshot"
_MAGIC = b"HFCHUNK1"
_HEAD = struct.Struct(">8sIBBH32s32sQ32s32s32sQQQ")
_RECORD_KEY = struct.Struct(">H")
_RECORD_VALUE = struct.Struct(">I")
_RECORD_BYTES_MIN = _RECORD_KEY.size + 1 + _RECORD_VALUE.size + 1
CHUNK_HEAD_BYTES = _HEAD.size
CHUNK_DIGEST_BYTES = 32
assert CHUNK_HEAD_BYTES == 208

_Count = Annotated[int, msgspec.Meta(ge=0, le=HEIGHT_MAX)]
_Height = Annotated[int, msgspec.Meta(ge=0, le=HEIGHT_MAX)]
_Time = Annotated[int, msgspec.Meta(ge=0)]
_Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", max_length=64)]
_Work = _Hash
_Text = Annotated[str, msgspec.Meta(max_length=4096)]
_Producer = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{2})*$", max_length=2 * PRODUCER_BYTES_MAX)]
_Header = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]*$", max_length=2 * HEADER_BYTES_MAX)]
_Depth = Annotated[int, msgspec.Meta(ge=0, le=DEPTH_MAX)]


# -- values ---------------------------------------------------------------------------------------------------------


class SnapshotChain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The chain a snapshot belongs to: what the identity of a store says about it (section 3)."""

    name: _Text
    id: _Text = ""
    fork_choice: _Text = "heaviest"
    epoch_length: _Count = 0
    epoch_origin: _Height = 0
    parameters: Mapping[_Text, _Text] = {}


class SnapshotBlock(msgspec.Struct, frozen=True):
    """The block after which the state is: enough for a store to go on with the next one. Hashes are 32 bytes."""

    hash: bytes
    parent: bytes
    height: int
    time: int
    work: int
    total_work: int
    producer: bytes
    header: bytes


class ChunkEntry(msgspec.Struct, frozen=True):
    """A chunk as the manifest names it: the node it holds, how many leaves and bytes, and the file's digest."""

    prefix: bytes
    depth: int
    count: int
    hash: bytes
    raw_bytes: int
    stored_bytes: int
    sha256: bytes


class Manifest(msgspec.Struct, frozen=True):
    """What a snapshot says about itself. True only as far as it was checked against a root that is trusted."""

    chain: SnapshotChain
    scheme: str
    block: SnapshotBlock
    root: bytes
    count: int
    chunks: tuple[ChunkEntry, ...]


class ChunkHead(msgspec.Struct, frozen=True):
    """The head of a chunk file. ``siblings`` lead from its node to the root, nearest first."""

    codec: int
    scheme: str
    chain: bytes
    height: int
    block: bytes
    root: bytes
    prefix: bytes
    depth: int
    count: int
    raw_bytes: int
    stored_bytes: int
    siblings: tuple[bytes, ...]


class _Block(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    hash: _Hash
    parent: _Hash
    height: _Height
    time: _Time
    work: _Work
    total_work: _Work
    producer: _Producer
    header: _Header


class _Chunk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    prefix: _Hash
    depth: _Depth
    count: _Count
    hash: _Hash
    raw_bytes: _Count
    stored_bytes: _Count
    sha256: _Hash


class _Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: _Text
    format: int
    chain: SnapshotChain
    scheme: _Text
    block: _Block
    root: _Hash
    count: _Count
    chunks: Annotated[list[_Chunk], msgspec.Meta(max_length=CHUNKS_MAX)]


class _Probe(msgspec.Struct):
    kind: str
    format: int


def chain_digest(chain: SnapshotChain) -> bytes:
    """SHA-256 of the chain as the manifest spells it; chunks carry it."""
    return sha256(msgspec.json.encode(chain, order="sorted")).digest()


def chunk_name(prefix: bytes, depth: int) -> str:
    """Name of the chunk that holds this node."""
    return f"{prefix.hex()}-{depth}.hfc"


def outside(key_hash: bytes, prefix: bytes, depth: int) -> bool:
    """True if the first ``depth`` bits differ."""
    return bool((int.from_bytes(key_hash, "big") ^ int.from_bytes(prefix, "big")) >> (DEPTH_MAX - depth))


def _loose(prefix: bytes, depth: int) -> bool:
    """True if the prefix has bits behind its depth."""
    return bool(int.from_bytes(prefix, "big") & ((1 << (DEPTH_MAX - depth)) - 1))


# -- manifest -------------------------------------------------------------------------------------------------------


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of ``manifest.json``: JSON, keys sorted, without spaces."""
    block = manifest.block
    form = _Manifest(
        kind=_KIND,
        format=FORMAT,
        chain=manifest.chain,
        scheme=manifest.scheme,
        block=_Block(
            hash=block.hash.hex(),
            parent=block.parent.hex(),
            height=block.height,
            time=block.time,
            work=f"{block.work:064x}",
            total_work=f"{block.total_work:064x}",
            producer=block.producer.hex(),
            header=block.header.hex(),
        ),
        root=manifest.root.hex(),
        count=manifest.count,
        chunks=[
            _Chunk(
                prefix=chunk.prefix.hex(),
                depth=chunk.depth,
                count=chunk.count,
                hash=chunk.hash.hex(),
                raw_bytes=chunk.raw_bytes,
                stored_bytes=chunk.stored_bytes,
                sha256=chunk.sha256.hex(),
            )
            for chunk in manifest.chunks
        ],
    )
    return msgspec.json.encode(form, order="sorted")


def decode_manifest(data: bytes) -> Manifest:
    """The manifest these bytes are. Raises ``SnapshotInvalid``, or ``FormatTooNew`` for a later format."""
    if len(data) > MANIFEST_BYTES_MAX:
        raise SnapshotInvalid("the manifest is too long", found=len(data), limit=MANIFEST_BYTES_MAX)
    try:
        check_depth(data)
        probe = msgspec.json.decode(data, type=_Probe)
        if probe.kind == _KIND and probe.format > FORMAT:
            raise FormatTooNew("the snapshot is of a newer format", found=probe.format, expected=FORMAT)
        form = msgspec.json.decode(data, type=_Manifest)
    except ValueError as error:
        raise SnapshotInvalid(f"the manifest is not what it should be: {error}") from error
    if form.kind != _KIND or form.format != FORMAT:
        raise SnapshotInvalid("the manifest is of another kind", found=form.kind, format=form.format)
    block = form.block
    if len(block.header) % 2 or block.time >= 1 << 64:
        raise SnapshotInvalid("the manifest's block has an impossible header or time", time=block.time)
    manifest = Manifest(
        chain=form.chain,
        scheme=form.scheme,
        block=SnapshotBlock(
            hash=bytes.fromhex(block.hash),
            parent=bytes.fromhex(block.parent),
            height=block.height,
            time=block.time,
            work=int(block.work, 16),
            total_work=int(block.total_work, 16),
            producer=bytes.fromhex(block.producer),
            header=bytes.fromhex(block.header),
        ),
        root=bytes.fromhex(form.root),
        count=form.count,
        chunks=tuple(
            ChunkEntry(
                bytes.fromhex(chunk.prefix),
                chunk.depth,
                chunk.count,
                bytes.fromhex(chunk.hash),
                chunk.raw_bytes,
                chunk.stored_bytes,
                bytes.fromhex(chunk.sha256),
            )
            for chunk in form.chunks
        ),
    )
    _check_chunks(manifest)
    if encode_manifest(manifest) != data:
        raise SnapshotInvalid("the manifest is not in its one form: spaces, order or repeated keys")
    return manifest


def _check_chunks(manifest: Manifest) -> None:
    """Chunks stand in order, none overlaps another, and their sizes can be."""
    end = 0
    leaves = 0
    for chunk in manifest.chunks:
        name = chunk_name(chunk.prefix, chunk.depth)
        start = int.from_bytes(chunk.prefix, "big")
        if _loose(chunk.prefix, chunk.depth):
            raise SnapshotInvalid("the prefix of a chunk is longer than its depth", chunk=name)
        if start < end:
            raise SnapshotInvalid("the manifest names a chunk twice, out of order, or two that overlap", chunk=name)
        end = start + (1 << (DEPTH_MAX - chunk.depth))
        _check_sizes(chunk.count, chunk.raw_bytes, chunk.stored_bytes, name)
        leaves += chunk.count
    if leaves != manifest.count:
        raise SnapshotInvalid(
            "the chunks do not hold as many keys as the manifest says", found=leaves, expected=manifest.count
        )


def _check_sizes(count: int, raw_bytes: int, stored_bytes: int, name: str) -> None:
    if raw_bytes > CHUNK_RAW_BYTES_MAX or stored_bytes > raw_bytes:
        raise SnapshotInvalid(
            "a chunk is longer than it can be", chunk=name, raw_bytes=raw_bytes, stored_bytes=stored_bytes
        )
    if not 1 <= count <= raw_bytes // _RECORD_BYTES_MIN or not stored_bytes:
        raise SnapshotInvalid(
            "a chunk cannot hold as many keys as it says", chunk=name, count=count, raw_bytes=raw_bytes
        )


# -- chunks ---------------------------------------------------------------------------------------------------------


def encode_chunk_head(head: ChunkHead) -> bytes:
    """The head and the siblings, as a chunk file begins."""
    return _HEAD.pack(
        _MAGIC,
        FORMAT,
        head.codec,
        0,
        head.depth,
        head.scheme.encode("ascii").ljust(32, b"\0"),
        head.chain,
        head.height,
        head.block,
        head.root,
        head.prefix,
        head.count,
        head.raw_bytes,
        head.stored_bytes,
    ) + b"".join(head.siblings)


def decode_chunk_head(data: bytes, name: str) -> ChunkHead:
    """The head at the start of ``data``, the siblings with it. ``name`` is for messages."""
    if len(data) < CHUNK_HEAD_BYTES or data[:8] != _MAGIC:
        raise SnapshotInvalid("this is no chunk of a snapshot", chunk=name, found=len(data))
    _, number, codec, zero, depth, scheme, chain, height, block, root, prefix, count, raw, stored = _HEAD.unpack_from(
        data
    )
    if number > FORMAT:
        raise FormatTooNew("a chunk is of a newer format", chunk=name, found=number, expected=FORMAT)
    if number != FORMAT or zero or codec not in (CODEC_RAW, CODEC_ZSTD) or depth > DEPTH_MAX:
        raise SnapshotInvalid("the head of a chunk is malformed", chunk=name, format=number, codec=codec, depth=depth)
    if height > HEIGHT_MAX or _loose(prefix, depth) or (codec == CODEC_RAW and raw != stored):
        raise SnapshotInvalid("the head of a chunk is malformed", chunk=name, height=height, prefix=prefix)
    _check_sizes(count, raw, stored, name)
    end = CHUNK_HEAD_BYTES + 32 * depth
    if len(data) < end:
        raise SnapshotInvalid("a chunk ends inside its siblings", chunk=name, found=len(data), expected=end)
    try:
        scheme_name = scheme.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError as error:
        raise SnapshotInvalid("the head of a chunk is malformed", chunk=name, scheme=scheme) from error
    siblings = tuple(data[at : at + 32] for at in range(CHUNK_HEAD_BYTES, end, 32))
    return ChunkHead(codec, scheme_name, chain, height, block, root, prefix, depth, count, raw, stored, siblings)


def encode_records(rows: list[tuple[bytes, bytes]]) -> bytes:
    """The records of (key, whole value), in their order."""
    pieces: list[bytes] = []
    for key, value in rows:
        pieces += (_RECORD_KEY.pack(len(key)), key, _RECORD_VALUE.pack(len(value)), value)
    return b"".join(pieces)


def decode_records(data: bytes, count: int, name: str) -> list[tuple[bytes, bytes]]:
    """(key, whole value) of each of exactly ``count`` records, which fill ``data``."""
    rows: list[tuple[bytes, bytes]] = []
    unpack_key, unpack_value = _RECORD_KEY.unpack_from, _RECORD_VALUE.unpack_from
    at, end = 0, len(data)
    try:
        while at < end:
            (length,) = unpack_key(data, at)
            at += 2
            key = data[at : at + length]
            at += length
            (size,) = unpack_value(data, at)
            at += 4
            value = data[at : at + size]
            at += size
            if not 0 < length <= STATE_KEY_BYTES_MAX or not 0 < size <= STATE_VALUE_BYTES_MAX or at > end:
                raise SnapshotInvalid(
                    "a record of a chunk has an impossible length", chunk=name, offset=at, key=length, value=size
                )
            rows.append((key, value))
            if len(rows) > count:
                break
    except struct.error as error:
        raise SnapshotInvalid("a chunk ends inside a record", chunk=name, offset=at) from error
    if len(rows) != count:
        raise SnapshotInvalid(
            "a chunk does not hold as many keys as it says", chunk=name, found=len(rows), expected=count
        )
    return rows
