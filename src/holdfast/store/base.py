"""The base of a store: what its journal stands on (docs/FORMAT.md, sections 5.3 and 9.4).

A store that was created empty stands on nothing. One that was imported stands on a snapshot, which lies in ``base/``
for as long as the first frame is there, since the views cannot be made without it.

Invariants:
    * Frame 1 names the manifest of the snapshot by its hash, and the snapshot proves its chunks: rows of a base are
      loaded after they were verified, each time.
    * The base of an encrypted store is sealed, and frame 1 names the sealed manifest; no other store has such a base.
    * Whoever makes views from the journal calls ``load_base`` on the empty engine first. It leaves the engine as an
      interrupted flush of frame 1 would; the replay of frame 1 finishes it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import msgspec

from .._failpoints import hit
from .._fs import FileSystem
from .._seal import StoreCipher
from ..blocks.content import FrameContent, entry_of
from ..blocks.entries import CanonicalEntry
from ..engine.api import Batch, Engine
from ..errors import CorruptionError, FormatTooNew, KeyRequired, SnapshotInvalid, UnsupportedFormat
from ..journal.api import FrameSource, Kind, Part
from ..limits import HASH_BYTES, STATE_INLINE_BYTES_MAX
from ..merkle.api import RECORD_BYTES
from ..merkle.values import tree_value
from ..state.rows import Execution, blob_rows, preimage_key, state_key
from ..state.sealing import SealedReader, check_stored
from ..state.snapshot import SnapshotReader, VerifiedChunk
from ..state.snapshot_format import Manifest, SnapshotChain
from ..types import Block
from ..views.rows import FLUSHING_KEY, encode_flushing, encode_row
from .chain import ChainSpec, ForkChoiceName, SchemeName
from .identity import Identity

__all__ = [
    "BASE_NAME",
    "BaseEntry",
    "base_of",
    "base_parts",
    "chain_of",
    "check_base",
    "decode_base",
    "encode_base",
    "first_part",
    "foreign_base",
    "load_base",
    "open_base",
    "read_base",
    "spec_of",
    "stored_base",
]

BASE_NAME = "base"

_BASE = struct.Struct(">BQQ32s32s32s")
_EMPTY, _SNAPSHOT, _SEALED = 0, 1, 2
_BATCH_ROWS = 10_000
assert _BASE.size == 113


class BaseEntry(msgspec.Struct, frozen=True):
    """What the first frame says about the snapshot under the store. Hashes are 32 bytes."""

    seq: int
    height: int
    hash: bytes
    root: bytes
    manifest_digest: bytes
    sealed: bool = False
    """True if the files of the base are sealed; then the digest is that of the manifest as it lies there."""


# -- the entry ------------------------------------------------------------------------------------------------------


def encode_base(entry: BaseEntry | None) -> bytes:
    """Bytes of a ``base`` part; ``None`` for a store that begins empty."""
    if entry is None:
        return bytes(_BASE.size)
    kind = _SEALED if entry.sealed else _SNAPSHOT
    return _BASE.pack(kind, entry.seq, entry.height, entry.hash, entry.root, entry.manifest_digest)


def decode_base(data: bytes) -> BaseEntry | None:
    """The entry these bytes are. Raises ``CorruptionError``, or ``UnsupportedFormat`` for a later type."""
    if len(data) != _BASE.size:
        raise CorruptionError("base entry has a wrong length", found=len(data), expected=_BASE.size)
    kind, seq, height, block_hash, root, digest = _BASE.unpack(data)
    if kind == _EMPTY:
        if any(data):
            raise CorruptionError("an empty base says what it stands on")
        return None
    if kind not in (_SNAPSHOT, _SEALED):
        raise UnsupportedFormat("the store stands on a base of a type that is not known", found=kind)
    return BaseEntry(seq, height, block_hash, root, digest, kind == _SEALED)


def first_part(source: FrameSource, kind: int, name: str) -> bytes | None:
    """The part of this kind in frame 1, ``None`` if that frame is gone. Raises ``CorruptionError`` if it has none."""
    if source.first_seq != 1:
        return None
    frame = source.frame(1)
    for index, part in enumerate(frame.parts):
        if part.kind == kind:
            return source.part(frame, index)
    raise CorruptionError(f"the first frame holds no {name}", seq=1)


def base_of(source: FrameSource) -> BaseEntry | None:
    """The snapshot that the journal stands on, ``None`` if it began empty or if its first frame is gone."""
    data = first_part(source, Kind.BASE, "base")
    return None if data is None else decode_base(data)


def check_base(fs: FileSystem, root: Path, source: FrameSource, identity: Identity) -> None:
    """Nothing happens unless nobody who has the key of the store made its base.

    Raises ``CorruptionError``: a plain base proves itself without a key, so anybody can make one.
    """
    if (problem := foreign_base(fs, root, base_of(source), identity)) is not None:
        raise problem


def foreign_base(fs: FileSystem, root: Path, entry: BaseEntry | None, identity: Identity) -> CorruptionError | None:
    """What is wrong if an encrypted store stands on a plain base, has a ``base/`` that it does not stand on, or if
    another stands on a sealed one; ``None`` if nothing is."""
    remedy = "keep the directory as evidence, and restore the store from a backup"
    path = root / BASE_NAME
    if identity.encryption is None:
        if entry is None or not entry.sealed:
            return None
        return CorruptionError("a store without a key stands on a base that is sealed", path=path, remedy=remedy)
    if entry.sealed if entry is not None else not fs.exists(path):
        return None
    return CorruptionError(
        "an encrypted store has a base in plain text, which somebody without its key put there",
        path=path,
        remedy=remedy,
    )


# -- chain and block ------------------------------------------------------------------------------------------------


def chain_of(spec: ChainSpec) -> SnapshotChain:
    """The chain as a snapshot spells it; the scheme of the tree stands beside it."""
    return SnapshotChain(
        name=spec.name,
        id=spec.id,
        fork_choice=spec.fork_choice,
        epoch_length=spec.epoch_length,
        epoch_origin=spec.epoch_origin,
        parameters=dict(spec.parameters),
    )


def spec_of(manifest: Manifest) -> ChainSpec:
    """The chain that a snapshot belongs to. What it says is checked when the identity is written."""
    chain = manifest.chain
    return ChainSpec(
        name=chain.name,
        id=chain.id,
        fork_choice=cast(ForkChoiceName, chain.fork_choice),
        epoch_length=chain.epoch_length,
        epoch_origin=chain.epoch_origin,
        scheme=cast(SchemeName, manifest.scheme),
        parameters=dict(chain.parameters),
    )


def base_parts(manifest: Manifest, digest: bytes, *, sealed: bool = False) -> tuple[Part, list[Part]]:
    """The ``base`` part of the first frame, and the parts behind it that make the block of the snapshot the root.

    ``digest`` is the SHA-256 of the manifest as it lies in ``base/``.
    """
    told = manifest.block
    block = Block(
        hash=told.hash,
        parent=told.parent,
        height=told.height,
        header=told.header,
        body=None,
        time=told.time,
        work=told.work,
        producer=told.producer,
    )
    content = FrameContent(
        [entry_of(block, told.total_work)],
        CanonicalEntry(None, (told.height, told.hash), told.height),
        bodies={told.hash: block},
        executions={told.hash: Execution(manifest.root, {}, (), ())},
    )
    entry = BaseEntry(1, told.height, told.hash, manifest.root, digest, sealed)
    return Part(Kind.BASE, encode_base(entry), True), content.parts(compress=False)


# -- rows -----------------------------------------------------------------------------------------------------------


def open_base(fs: FileSystem, root: Path, entry: BaseEntry, cipher: StoreCipher | None) -> SnapshotReader:
    """The snapshot in ``base/``, trusted as far as the entry goes; no chunk was read yet.

    Raises ``SnapshotInvalid``, ``FormatTooNew``, and ``KeyRequired`` if it is sealed and there is no ``cipher``.
    """
    path = root / BASE_NAME
    if not entry.sealed:
        reader = SnapshotReader(path, fs=fs)
    elif cipher is None:
        raise KeyRequired("the base of the store is encrypted", path=path)
    else:
        reader = SealedReader(path, cipher.base, fs=fs)
    reader.trust(trusted_root=entry.root, trusted_block=entry.hash, manifest_digest=entry.manifest_digest)
    return reader


def read_base(
    fs: FileSystem, root: Path, source: FrameSource, cipher: StoreCipher | None = None
) -> Iterator[VerifiedChunk]:
    """Every chunk of the snapshot that the journal of the store at ``root`` stands on, verified; none if it has none.

    Raises ``CorruptionError`` if ``base/`` is missing or is not what the first frame says.
    """
    entry = base_of(source)
    if entry is None:
        return
    with _damaged(root):
        yield from open_base(fs, root, entry, cipher).chunks()


def stored_base(fs: FileSystem, root: Path, source: FrameSource) -> Iterator[int]:
    """Length of each chunk of the base of an encrypted store, as far as it can be checked without the key.

    Raises ``CorruptionError`` as ``read_base``.
    """
    entry = base_of(source)
    if entry is not None:
        with _damaged(root):
            yield from check_stored(fs, root / BASE_NAME, entry.manifest_digest)


@contextmanager
def _damaged(root: Path) -> Iterator[None]:
    """What is wrong with a snapshot is damage of the base of the store at ``root``."""
    try:
        yield
    except (SnapshotInvalid, FormatTooNew) as error:
        raise CorruptionError(
            f"the base of the store is damaged: {error}",
            path=root / BASE_NAME,
            remedy="put base/ back from a copy, or from the snapshot that was imported: its manifest and its chunks",
        ) from error


def load_base(
    engine: Engine,
    fs: FileSystem,
    root: Path,
    source: FrameSource,
    *,
    progress: Callable[[int, int], None] | None = None,
    cipher: StoreCipher | None = None,
) -> int:
    """Number of keys that the empty ``engine`` now holds: the state that the journal at ``root`` stands on.

    Call it before views are opened over a fresh engine. Nothing happens if the journal began empty. Otherwise the first
    flush has begun, and replaying frame 1 finishes it. ``progress`` is called with (keys loaded, 0): how many there are
    is not known here.

    Raises ``CorruptionError`` as ``read_base``; the engine is then of no use.
    """
    if base_of(source) is None:
        return 0
    engine.apply(Batch({FLUSHING_KEY: encode_row(FLUSHING_KEY, encode_flushing(1, None))}), sync=True)
    done = 0
    for chunk in read_base(fs, root, source, cipher):
        _load_chunk(engine, chunk)
        hit("store.base.chunk")
        done += chunk.head.count
        if progress is not None:
            progress(done, 0)
    engine.sync()
    return done


def _load_chunk(engine: Engine, chunk: VerifiedChunk) -> None:
    """The rows of the chunk are applied. A batch holds at most what a chunk may: 64 MiB, or one long value."""
    rows: dict[bytes, bytes | None] = {}
    records, at = chunk.records, 0
    for key, value in chunk.rows:
        row_key, hash_key = state_key(key), preimage_key(records[at : at + HASH_BYTES])
        at += RECORD_BYTES
        if len(value) > STATE_INLINE_BYTES_MAX:
            for piece_key, piece in blob_rows({key: value}).items():
                assert piece is not None
                rows[piece_key] = encode_row(piece_key, piece)
            value = tree_value(value)
        rows[row_key] = encode_row(row_key, value)
        rows[hash_key] = encode_row(hash_key, key)
        if len(rows) >= _BATCH_ROWS:
            _apply(engine, rows)
            rows = {}
    _apply(engine, rows)


def _apply(engine: Engine, rows: dict[bytes, bytes | None]) -> None:
    engine.apply(Batch(dict(sorted(rows.items()))), sync=False)
