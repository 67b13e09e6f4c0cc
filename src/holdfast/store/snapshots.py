"""Snapshots of a store: its state at one height goes out, or becomes the base of a new store.

Invariants:
    * An import creates a store or leaves none: ``holdfast.toml`` comes last, and a target that holds anything else is
      not touched. Killed at any moment, the same call goes on; chunks that were verified and copied are kept. Once the
      store is there, the same call makes its views if they are missing, and nothing else.
    * Nothing of a chunk is written before it was verified, and what is written is what was verified.
    * The store is fenced: no record of what a validator signed is in a snapshot.
    * With a key nothing of the snapshot is written in plain text: the store is encrypted from its first file on.
    * The whole root is computed once more from the rows in the engine before the import returns.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from .._failpoints import hit
from .._fs import FileSystem, NewFile, RealFileSystem, path_of
from .._keys import StoreKey, seal_master
from .._seal import StoreCipher, unlocked
from ..blocks.reader import BlockReader
from ..config import Settings
from ..errors import (
    BlockNotFound,
    CorruptionError,
    ForeignStore,
    FormatTooNew,
    HoldfastError,
    InvalidInputError,
    Recovery,
    SnapshotInvalid,
    StoreExists,
)
from ..events import emit
from ..journal.api import Kind, Part
from ..journal.reader import JournalReader
from ..merkle.api import Scheme, Tree
from ..state.draft import BlockState
from ..state.rows import full_value, preimage_key, state_key
from ..state.sealing import SealedReader, Sealing, StoredChunk, decode_sealed, encode_table, is_sealed, name_of
from ..state.snapshot import (
    CHUNKS_NAME,
    MANIFEST_NAME,
    SnapshotInfo,
    SnapshotReader,
    VerifiedChunk,
    in_parallel,
    read_chunk_file,
)
from ..state.snapshot_export import CHUNK_BYTES_DEFAULT, SnapshotSource, export_snapshot, is_chunk_file
from ..state.snapshot_format import ChunkEntry, SnapshotBlock, SnapshotChain, chunk_name
from ..types import Block
from .backend import Backend
from .base import BASE_NAME, BaseEntry, base_of, base_parts, chain_of, spec_of
from .chain import Chain, CustomChain, ExecutingChain, check_same_chain
from .checks import check_chain, check_height, check_settings
from .opening import directory_state, make_directories, opened_plainly, read_identity
from .unlocking import key_for, sealing_of, unlock
from .url import parse_url

__all__ = ["export_state", "held_state", "import_snapshot", "new_place", "take_in"]


# -- out ------------------------------------------------------------------------------------------------------------


class _Held:
    """The state after one block of a store, as an export reads it."""

    def __init__(self, chain: SnapshotChain, block: SnapshotBlock, scheme: Scheme, held: BlockState) -> None:
        self.chain = chain
        self.block = block
        self.scheme = scheme
        self._rows = held.rows
        self.tree: Tree = held.tree

    def rows(self, key_hashes: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        keys = self._rows.get_many([preimage_key(key_hash) for key_hash in key_hashes])
        values = self._rows.get_many([state_key(key or b"") for key in keys])
        rows: list[tuple[bytes, bytes]] = []
        for key_hash, key, value in zip(key_hashes, keys, values, strict=True):
            if key is None or value is None:
                raise CorruptionError(
                    "a key of the tree is not in the rows of the state", hash=key_hash, recovery=Recovery.REBUILD
                )
            rows.append((key, value))
        return rows

    def full_value(self, stored: bytes) -> bytes:
        return full_value(stored, self._rows.get)


def export_state(
    backend: Backend,
    blocks: BlockReader,
    destination: str | os.PathLike[str],
    height: int | None,
    *,
    chunk_bytes: int = CHUNK_BYTES_DEFAULT,
    compress: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> SnapshotInfo:
    """``destination`` is a snapshot of the state after the canonical block at ``height``, or at the visible tip.

    Commits go on meanwhile. See ``export_snapshot`` for the arguments, and for what is kept from an earlier run.

    Raises:
        BlockNotFound: there is no such block.
        PrunedError: what undoes the blocks above it is gone.
        ViewExpired: commits made meanwhile changed more than ``pinned_bytes_max``; the same call goes on where it was.
    """
    path = path_of(destination, "a snapshot")
    with held_state(backend, blocks, height) as source:
        return export_snapshot(source, path, chunk_bytes=chunk_bytes, compress=compress, progress=progress)


@contextmanager
def held_state(
    backend: Backend,
    blocks: BlockReader,
    height: int | None,
    open_state: Callable[[bytes], BlockState] | None = None,
) -> Iterator[SnapshotSource]:
    """The state after the canonical block at ``height``, or at the visible tip, held as it is. Raises as above.

    ``open_state``: who opens the state of a block, if not the backend as it does for everybody.
    """
    info = backend.tip if height is None else blocks.at(check_height(height))
    if info is None:
        raise BlockNotFound("there is no canonical block at this height", height=height)
    block = SnapshotBlock(
        hash=info.hash,
        parent=info.parent,
        height=info.height,
        time=info.time,
        work=info.work,
        total_work=info.total_work,
        producer=info.producer,
        header=blocks.header(info),
    )
    held = (open_state or backend.open_state)(info.hash)
    try:
        yield _Held(chain_of(backend.identity.spec), block, backend.scheme, held)
    finally:
        held.release()


_NO_COMMIT = (Kind.INCARNATION, Kind.NOTE)
"""What a frame holds that says where the store lies; that of an encrypted store has a note, too."""

# -- in -------------------------------------------------------------------------------------------------------------


def import_snapshot(
    url: str | os.PathLike[str],
    source: str | os.PathLike[str],
    *,
    trusted_root: bytes | None = None,
    trusted_block: bytes | None = None,
    manifest_digest: bytes | None = None,
    trust_manifest: bool = False,
    chain: Chain | None = None,
    settings: Settings | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    fs: FileSystem | None = None,
    key: bytes | StoreKey | None = None,
) -> SnapshotInfo:
    """A new store at ``url`` stands on the snapshot in the directory ``source``; its tip is the snapshot's block.

    It may not sign until its fence is lifted: no record of what a validator signed is in a snapshot. Killed or failed
    at any moment, the next call with the same arguments goes on where this one stopped. Where it had come to its end,
    that call returns the same, as long as nothing was committed to the store.

    Args:
        url: as for ``open``; a directory that is missing, empty, or holds an import of this snapshot.
        source: the directory of the snapshot; it is only read.
        trusted_root: state root known from elsewhere, 32 bytes.
        trusted_block: hash of the block that is wanted, 32 bytes.
        manifest_digest: SHA-256 of the manifest as the exporter told it.
        trust_manifest: believe the root in the manifest. Only for snapshots of one's own.
        chain: the chain that the snapshot must belong to. If it can decode the header, that must give the block, and
            the root where the chain's headers have one.
        workers: threads that verify chunks; as many as there are processors, at most 4, if ``None``.
        progress: called with (keys copied, keys in all), then (keys in the views, keys in all); may raise to end it.
        key: the store is encrypted with it, as for ``open``; the snapshot is plain text all the same.
    Raises:
        StoreExists, ForeignStore: the target holds something else; it was not touched.
        SnapshotInvalid: names the chunk that is not right; nothing of it was written.
        StoreLocked: another import is at work there.
        KeyRequired, KeyRejected: an import with a key, or with another one, was begun here; it was not touched.
    """
    secret = key_for(StoreKey.of(key))
    fs = fs or RealFileSystem()
    root, engine = new_place(url)
    reader = SnapshotReader(path_of(source, "a snapshot"), fs=fs)
    reader.trust(
        trusted_root=trusted_root,
        trusted_block=trusted_block,
        manifest_digest=manifest_digest,
        trust_manifest=trust_manifest,
    )
    return take_in(
        reader, root, engine, chain=chain, settings=settings, workers=workers, progress=progress, fs=fs, key=secret
    )


def new_place(url: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """Directory and engine of a store that is to stand on a snapshot."""
    place = parse_url(url)
    if place.path is None:
        raise InvalidInputError("a store in memory cannot stand on a snapshot: its base lies in files")
    if place.engine == "memory":
        raise InvalidInputError("a store on disk needs an engine on disk", found=place.engine)
    return place.path.absolute(), place.engine


def take_in(
    reader: SnapshotReader,
    root: Path,
    engine: str | None,
    *,
    chain: Chain | None,
    settings: Settings | None,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
    fs: FileSystem,
    key: StoreKey | None = None,
) -> SnapshotInfo:
    """A new store at ``root`` stands on the snapshot of ``reader``, which is trusted; see ``import_snapshot``."""
    settings = check_settings(settings)
    check_chain(chain)
    if chain is not None:
        _check_chain(reader, chain)
    secret = key_for(key)
    base: tuple[Part, list[Part]] | None
    try:
        with _target(fs, root):
            sealing = _begun(fs, root / BASE_NAME, secret)
            digest = _Copy(fs, root / BASE_NAME, reader, progress, sealing).run(workers)
        base = base_parts(reader.manifest, digest, sealed=sealing is not None)
    except StoreExists:
        identity = read_identity(fs, root)
        sealing = sealing_of(identity, unlock(identity, secret, root, fs))
        found = _check_imported(fs, root, reader, sealing)
        with _locked_base(fs, root):  # what of the base is missing or damaged by now is put back
            _Copy(fs, root / BASE_NAME, reader, progress, sealing).run(workers, expected=found.manifest_digest)
        base = None
    hit("store.import.before_create")
    _create(fs, root, engine, settings, reader, base, progress, secret, sealing)
    if base is not None:
        _tell_imported(str(root), reader.info)
    return reader.info


def _begun(fs: FileSystem, base: Path, key: StoreKey | None) -> Sealing | None:
    """What the files of the base are sealed with: as an unfinished import has it, else anew; ``None`` without a key.

    Raises ``KeyRequired``, ``KeyRejected`` or ``ForeignStore`` if what was begun is not of this key.
    """
    for path in (base / MANIFEST_NAME, *(base / CHUNKS_NAME / name for name in fs.names(base / CHUNKS_NAME))):
        head = _head(fs, path)
        if key is not None and head.startswith((b"{", b"HFCHUNK1")):
            raise ForeignStore(
                "an import without a key was begun here",
                path=base,
                remedy="choose an empty directory, or end that import without a key",
            )
        if not is_sealed(head):
            continue
        try:
            found = decode_sealed(read_chunk_file(fs, path, None), path.name)
        except (SnapshotInvalid, FormatTooNew):
            continue  # it is written again
        return Sealing(found.store_id, found.form, unlocked(found.form, found.store_id, key, base, "import begun here"))
    if key is None:
        return None
    store_id = secrets.token_bytes(16)
    form, master = seal_master(key, store_id)
    return Sealing(store_id, form, StoreCipher(master, store_id))


def _head(fs: FileSystem, path: Path) -> bytes:
    """How the file begins; nothing if there is none."""
    if not fs.exists(path):
        return b""
    file = fs.open(path, read_only=True)
    try:
        return file.pread(8, 0)
    finally:
        file.close()


def _tell_imported(url: str, info: SnapshotInfo) -> None:
    emit(
        "snapshot_imported",
        logging.INFO,
        f"the store {url} stands on the snapshot of height {info.height}",
        place=url,
        height=info.height,
        hash=info.block_hash.hex(),
        root=info.state_root.hex(),
        keys=info.keys,
    )


def _check_imported(fs: FileSystem, root: Path, reader: SnapshotReader, sealing: Sealing | None) -> BaseEntry:
    """The base of the store at ``root``, which is what an import of this snapshot made, and no more; it is only read.

    Raises ``StoreExists`` for any other store.
    """
    identity = read_identity(fs, root)
    journal = JournalReader.open(fs, root, store_id=identity.store_id, salt=identity.salt)
    try:
        base = base_of(journal)
        went_on = base is not None and any(
            info.kind not in _NO_COMMIT for frame in journal.frames(base.seq + 1) for info in frame.parts
        )
    finally:
        journal.close()
    if base is None or not _is_of(fs, root, base, reader, sealing):
        raise _another(root)
    if went_on:
        raise StoreExists(
            "the store stands on this snapshot already, and went on from it",
            path=root,
            remedy="open it; to import the snapshot once more, choose an empty directory",
        )
    return base


def _another(root: Path) -> StoreExists:
    return StoreExists("there is a store already; a snapshot is imported into a new one", path=root)


def _is_of(fs: FileSystem, root: Path, base: BaseEntry, reader: SnapshotReader, sealing: Sealing | None) -> bool:
    """True unless the base is of another snapshot. One whose sealed manifest is damaged is compared by its copy."""
    if sealing is None or not base.sealed:
        return not base.sealed and sealing is None and base.manifest_digest == reader.digest
    if (base.hash, base.root) != (reader.manifest.block.hash, reader.manifest.root):
        return False
    try:
        found = SealedReader(root / BASE_NAME, sealing.cipher.base, fs=fs)
    except (SnapshotInvalid, FormatTooNew):
        return True
    return found.digest != base.manifest_digest or found.data == reader.data


def _create(
    fs: FileSystem,
    root: Path,
    engine: str | None,
    settings: Settings,
    reader: SnapshotReader,
    base: tuple[Part, list[Part]] | None,
    progress: Callable[[int, int], None] | None,
    key: StoreKey | None,
    sealing: Sealing | None,
) -> None:
    """The store whose ``base/`` is complete exists, with its views, and is closed. Without ``base`` it was there."""
    keys = reader.manifest.count

    def step(done: int, _total: int) -> None:
        if progress is not None:
            progress(min(done, keys), keys)

    spec = spec_of(reader.manifest)
    with opened_plainly(
        fs,
        root,
        engine,
        settings,
        spec=spec,
        create=True,
        progress=step,
        base=base,
        fenced=True,
        key=key,
        sealing=sealing,
    ):
        pass


def _check_chain(reader: SnapshotReader, chain: Chain) -> None:
    manifest = reader.manifest
    check_same_chain(spec_of(manifest), chain.spec, "snapshot", reader.path)
    if isinstance(chain, CustomChain):
        return
    told = manifest.block
    try:
        block: Block = chain.decode(told.header, None, parent=None)
    except HoldfastError as error:
        raise SnapshotInvalid(f"the header of the snapshot's block is not valid: {error}", path=reader.path) from error
    if block.hash != told.hash or block.parent != told.parent:
        raise SnapshotInvalid(
            "the header in the manifest is not that of its block",
            path=reader.path,
            found=block.hash,
            expected=told.hash,
        )
    claimed = chain.state_root(block) if isinstance(chain, ExecutingChain) else None
    if claimed is not None and claimed != manifest.root:
        raise SnapshotInvalid(
            "the snapshot's state root is not the one in the header of its block",
            path=reader.path,
            found=manifest.root,
            expected=claimed,
        )


@contextmanager
def _target(fs: FileSystem, root: Path) -> Iterator[None]:
    """The directory of the store to be, locked; ``base/`` in it is empty or holds chunks."""
    _check_target(fs, root)
    make_directories(fs, root)
    with _locked_base(fs, root, _check_target):
        yield


@contextmanager
def _locked_base(fs: FileSystem, root: Path, check: Callable[[FileSystem, Path], None] | None = None) -> Iterator[None]:
    """LOCK is held, ``check`` had nothing to say under it, and the directories of ``base/`` are there."""
    lock = fs.lock(root / "LOCK", f"{os.getpid()} {socket.gethostname()}")
    try:
        if check is not None:
            check(fs, root)
        fs.make_directory(root / BASE_NAME)
        fs.make_directory(root / BASE_NAME / CHUNKS_NAME)
        yield
    finally:
        lock.release()


def _check_target(fs: FileSystem, root: Path) -> None:
    """Nothing happens if a store may be made here. Nothing is touched."""
    if directory_state(fs, root) == "store":
        raise StoreExists("there is a store already; a snapshot is imported into a new one", path=root)
    base = root / BASE_NAME
    strange = [name for name in fs.names(base) if name not in (CHUNKS_NAME, MANIFEST_NAME, MANIFEST_NAME + ".tmp")]
    strange += [name for name in fs.names(base / CHUNKS_NAME) if not is_chunk_file(name)]
    if strange:
        raise ForeignStore("the directory holds files that are no part of an import", path=base, found=strange[:8])


class _Copy:
    """The snapshot becomes ``base/``, chunk by chunk; sealed, if the store is encrypted."""

    def __init__(
        self,
        fs: FileSystem,
        base: Path,
        reader: SnapshotReader,
        progress: Callable[[int, int], None] | None,
        sealing: Sealing | None,
    ) -> None:
        self._fs = fs
        self._base = base
        self._reader = reader
        self._progress = progress
        self._sealing = sealing
        self._expected: bytes | None = None
        self._stored: dict[str, StoredChunk] = {}
        """What everybody can see of the sealed chunks."""

    def run(self, workers: int | None, *, expected: bytes | None = None) -> bytes:
        """Every file is there; SHA-256 of the manifest as it lies there.

        Raises ``StoreExists`` if that is not ``expected``; what the base has and is whole is what it was.
        """
        self._expected = expected
        fs, base, manifest = self._fs, self._base, self._reader.manifest
        done = 0
        for chunk in in_parallel(manifest.chunks, self._copied, workers):
            done += chunk.head.count
            if self._progress is not None:
                self._progress(done, manifest.count)
        data = self._manifest()
        digest = sha256(data).digest()
        if expected is not None and digest != expected:
            raise _another(base.parent)
        wanted = {chunk_name(entry.prefix, entry.depth) for entry in manifest.chunks}
        strangers = [name for name in fs.names(base / CHUNKS_NAME) if name not in wanted]
        for name in strangers:  # of an unfinished import of another snapshot
            fs.remove(base / CHUNKS_NAME / name)
        fs.sync_directory(base / CHUNKS_NAME)  # also of chunks whose names a killed import had not made durable
        fs.write_atomic(base / MANIFEST_NAME, data)
        return digest

    def _manifest(self) -> bytes:
        sealing, reader = self._sealing, self._reader
        if sealing is None:
            return reader.data
        table = encode_table([self._stored[name_of(entry)] for entry in reader.manifest.chunks])
        return sealing.file(sealing.cipher.base, MANIFEST_NAME, reader.data, table)

    def _copied(self, entry: ChunkEntry) -> VerifiedChunk:
        """The chunk lies in ``base/``, verified and durable. Runs in a worker."""
        path = self._base / CHUNKS_NAME / chunk_name(entry.prefix, entry.depth)
        if self._fs.exists(path):
            try:
                return self._there(entry, path)
            except (SnapshotInvalid, FormatTooNew):
                pass  # it is fetched again; one that is whole takes its place at once
        chunk = self._reader.read_chunk(entry)
        data = chunk.data
        if self._sealing is not None:
            data = self._sealing.file(self._sealing.cipher.base, name_of(entry), chunk.data)
            self._note(entry, data)
        with NewFile(self._fs, path) as file:
            hit("store.import.chunk")
            file.write(data)
            file.sync()
            file.publish()
        return chunk

    def _there(self, entry: ChunkEntry, path: Path) -> VerifiedChunk:
        """The chunk as it lies in ``base/``. Raises ``SnapshotInvalid``, ``FormatTooNew``."""
        sealing = self._sealing
        if sealing is None:
            return self._reader.read_chunk(entry, path=path)
        data = read_chunk_file(self._fs, path, None)
        name = name_of(entry)
        opened = decode_sealed(data, name).opened(sealing.cipher.base, name)
        try:
            chunk = self._reader.check_chunk(entry, opened)
        except SnapshotInvalid:
            if self._expected is not None:
                raise _another(self._base.parent) from None  # it is whole, and of another snapshot
            raise
        self._note(entry, data)
        return chunk

    def _note(self, entry: ChunkEntry, data: bytes) -> None:
        self._stored[name_of(entry)] = StoredChunk(entry.prefix, entry.depth, len(data), data[-32:])
