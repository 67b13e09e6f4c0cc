"""A backup as ``diff`` reads it: its blocks straight from the chunks, its state in a store that is made for the time.

Invariants:
    * Nothing of the repository is changed. Every chunk that is read has its id, every frame its digest and its place in
      the chain of digests, every part its hash; the chain ends with the tip that the manifest names.
    * The whole journal is read once, and none of it is written. Memory: 76 bytes for each block, and a few chunks.
    * Only a state that is walked needs a store: the backup is restored to a new directory, which is gone afterwards.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from .._fs import File, MemoryFileSystem, RealFileSystem, path_of
from .._keys import StoreKey, without_key
from .._seal import PartCipher
from ..blocks.content import decode_frame
from ..blocks.entries import entry_info
from ..errors import BackupDamaged, CorruptionError, FinalityError, PrunedError
from ..journal.api import Frame, Kind
from ..journal.compacted import open_segment
from ..journal.reads import FrameReads
from ..journal.recovery import JOURNAL_DIRECTORY
from ..journal.scan import Window, read_frame_at
from ..journal.segment import SEGMENT_HEADER_BYTES, Seal, Segment, decode_header, segment_name
from ..limits import HASH_BYTES
from ..recovery.diff import Moment, StateSide, StoredBlock, StoreSource
from ..store.chain import ChainSpec
from ..store.factory import open_store
from ..store.identity import Identity
from ..store.unlocking import key_for, unlock
from ..types import BlockInfo
from .cut import CanonicalWalk, Seen
from .manifest import Manifest, SegmentFile, decode_store
from .pieces import PieceFile, Progress, pool_of, raw_bytes_of, workers_of
from .repository import BackupRepository
from .restore import restore_backup

__all__ = ["BackupSource"]

_CHUNKS_KEPT = 16
_SCRATCH = "holdfast-diff-"


class _Chunks:
    """The chunks of the segments that were used last; those that follow one are fetched ahead. For any thread."""

    def __init__(self, repository: BackupRepository, pool: ThreadPoolExecutor | None, workers: int) -> None:
        self._repository = repository
        self._pool = pool
        self._ahead = workers
        self._kept: OrderedDict[tuple[int, int], Future[bytes]] = OrderedDict()
        self._mutex = threading.Lock()

    def load(self, entry: SegmentFile, index: int) -> bytes:
        """Piece ``index`` of a segment."""
        with self._mutex:
            follows = (entry.number, index - 1) in self._kept
            last = min(index + 1 + (self._ahead if follows else 0), len(entry.chunks))
            for number in range(index, last):
                self._begin(entry, number)
            found = self._kept[entry.number, index]
            while len(self._kept) > _CHUNKS_KEPT:
                self._kept.popitem(last=False)
        return found.result()

    def _begin(self, entry: SegmentFile, index: int) -> None:
        key = entry.number, index
        if key in self._kept:
            self._kept.move_to_end(key)
            return
        length = raw_bytes_of(entry.length, index)
        if self._pool is not None:
            self._kept[key] = self._pool.submit(self._repository.get_chunk, entry.chunks[index], length)
            return
        done: Future[bytes] = Future()
        done.set_result(self._repository.get_chunk(entry.chunks[index], length))
        self._kept[key] = done


class _SegmentFile(PieceFile):
    """A segment in a repository, read at any place."""

    def __init__(self, path: Path, entry: SegmentFile, chunks: _Chunks) -> None:
        super().__init__(path, entry.length, lambda index: chunks.load(entry, index))

    def _piece(self, index: int) -> bytes:
        return self._load(index)


class _Segments(MemoryFileSystem):
    """The segments of a backup as the files of a journal."""

    def __init__(self, form: Manifest, chunks: _Chunks) -> None:
        super().__init__()
        self._entries = {segment_name(entry.number): entry for entry in form.segments}
        self._chunks = chunks

    def open(self, path: Path, *, create: bool = False, read_only: bool = False) -> File:
        return _SegmentFile(path, self._entries[path.name], self._chunks)


class _Frames(FrameReads):
    """The frames of a backup."""

    def __init__(
        self, form: Manifest, identity: Identity, chunks: _Chunks, place: str, cipher: PartCipher | None
    ) -> None:
        super().__init__(_Segments(form, chunks), Path(place, JOURNAL_DIRECTORY), salt=identity.salt, cipher=cipher)
        self._form = form
        before: SegmentFile | None = None
        for entry in form.segments:
            self._add_segment(self._segment(entry, identity, before))
            before = entry

    def _segment(self, entry: SegmentFile, identity: Identity, before: SegmentFile | None) -> Segment:
        path = self._journal_directory / segment_name(entry.number)
        file = open_segment(self._fs, path, salt=identity.salt)
        data = file.pread(SEGMENT_HEADER_BYTES, 0)
        header = decode_header(data, store_id=identity.store_id, salt=identity.salt, path=path)
        if header is None or (header.number, header.first_seq) != (entry.number, entry.first_seq):
            raise BackupDamaged("a segment has no valid header", path=path, expected=entry.number)
        if before is not None and header.previous.hex() != before.digest:
            raise BackupDamaged("a segment does not follow from the one before it", path=path)
        segment = Segment(path, header)
        if entry.sealed:
            count = entry.last_seq - entry.first_seq + 1
            segment.set_sealed(Seal(count, entry.last_seq, entry.frames_end, bytes.fromhex(entry.digest)))
            return segment
        window = Window(file, entry.frames_end)
        while segment.frames_end < entry.frames_end:
            offset = segment.frames_end
            frame = read_frame_at(window, offset, salt=identity.salt, segment=entry.number, stop=entry.frames_end)
            segment.add(offset, offset + frame.length, frame.digest)
        return segment

    @property
    def durable_seq(self) -> int:
        return self._form.last_seq

    def _end_seq(self) -> int:
        return self._form.last_seq

    def _durable_end(self, number: int) -> int:
        return self._form.segments[number - self._form.segments[0].number].frames_end


class _Index(CanonicalWalk):
    """Where each canonical block stands, and the root after it."""

    def __init__(self) -> None:
        super().__init__(roots=True)
        self._hashes = bytearray()
        self._roots_after = bytearray()
        self._seqs = array("Q")
        self._parts = array("I")

    def switched(self, seq: int, fork: int | None, joined: list[Seen]) -> None:
        assert self.root is not None
        kept = 0 if fork is None else fork + 1 - self.root
        if not 0 <= kept <= len(self._seqs) or any(
            self.root + kept + at != seen.height for at, seen in enumerate(joined)
        ):
            raise CorruptionError("the canonical chain of the frames has a gap", seq=seq)
        del self._hashes[HASH_BYTES * kept :], self._roots_after[HASH_BYTES * kept :]
        del self._seqs[kept:], self._parts[kept:]
        for seen in joined:
            self._hashes += seen.hash
            self._roots_after += seen.root
            self._seqs.append(seen.seq)
            self._parts.append(seen.part)

    def at(self, height: int) -> Seen | None:
        """The canonical block at ``height``; its parent is left out."""
        index = height - (self.root or 0)
        if not 0 <= index < len(self._seqs):
            return None
        place = slice(HASH_BYTES * index, HASH_BYTES * (index + 1))
        return Seen(
            height,
            bytes(self._hashes[place]),
            b"",
            self._seqs[index],
            self._parts[index],
            bytes(self._roots_after[place]),
        )


class _BackupMoment:
    def __init__(self, frames: _Frames, index: _Index, place: str) -> None:
        self._frames = frames
        self._index = index
        self._place = place
        self.lowest = index.root or 0
        self.tip = self.info_at(index.tip)

    def info_at(self, height: int) -> BlockInfo | None:
        return self._info(height)[0]

    def _info(self, height: int) -> tuple[BlockInfo | None, Frame | None]:
        seen = self._index.at(height)
        if seen is None:
            return None, None
        frame = self._frames.frame(seen.seq)
        content = decode_frame(self._frames, frame)
        entry = next((each for each in content.blocks if each.part == seen.part), None) if content is not None else None
        if entry is None or entry.hash != seen.hash:
            raise BackupDamaged("a block is not where it was", path=self._place, height=height)
        entry.state_root = seen.root
        return entry_info(entry, frame.seq, frame.time_us), frame

    def block_at(self, height: int) -> StoredBlock | None:
        info, frame = self._info(height)
        if info is None or frame is None:
            return None
        index = info.part + 1
        found: dict[int, bytes] = {}
        kept = True
        while index < len(frame.parts) and (kind := frame.parts[index].kind) in (Kind.HEADER, Kind.BODY, Kind.EXTRA):
            try:
                found[kind] = self._frames.part(frame, index)
            except PrunedError:
                kept = False
            index += 1
        header, body, extra = (found.get(kind) for kind in (Kind.HEADER, Kind.BODY, Kind.EXTRA))
        return StoredBlock(info, header or b"", body if kept else None, extra if kept else None, kept)


class BackupSource:
    """The backup ``name``, for ``holdfast.recovery.diff``: whoever compares it closes nothing.

    Args:
        name: the backup; the newest one if ``None``.
        directory: where a store is made if the state has to be walked; else where the system keeps temporary files.
            It takes as much room as the store, and is gone afterwards.
        store_key: that of an encrypted store, as for ``open``; else the one of ``using_key``.
        on_restore: called with that directory before the restore begins.
        progress: called with (frames read, frames in all) of the walk through the journal, then as a restore calls it.
    Raises:
        BackupNotFound: there is none. BackupDamaged: its manifest cannot be read.
    """

    def __init__(
        self,
        repository: BackupRepository,
        name: str | None = None,
        *,
        directory: str | os.PathLike[str] | None = None,
        workers: int | None = None,
        store_key: bytes | StoreKey | None = None,
        on_restore: Callable[[Path], object] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._repository = repository
        self._form = repository.newest() if name is None else repository.manifest(name)
        self._identity = decode_store(self._form, place=repository.place)
        self._given = StoreKey.of(store_key)
        place = tempfile.gettempdir() if directory is None else directory
        self._directory = path_of(place, "a place for a store").absolute()
        self._workers = workers_of(workers)
        self._on_restore = on_restore
        self._progress = progress
        self._index: _Index | None = None
        self.name = f"{repository.place}#{self._form.name}"

    @property
    def spec(self) -> ChainSpec:
        return self._identity.spec

    @property
    def _key(self) -> StoreKey | None:
        return None if self._identity.encryption is None else key_for(self._given)

    @contextlib.contextmanager
    def moment(self) -> Iterator[Moment]:
        key = self._key
        with without_key():
            cipher = unlock(self._identity, key, Path(self._repository.place))
        parts = cipher.parts if cipher is not None else None
        with pool_of(self._workers) as pool:
            chunks = _Chunks(self._repository, pool, self._workers)
            frames = _Frames(self._form, self._identity, chunks, self._repository.place, parts)
            if self._index is None:
                self._index = self._walk(frames)
            yield _BackupMoment(frames, self._index, self._repository.place)

    def _walk(self, frames: _Frames) -> _Index:
        index, digest, form = _Index(), "", self._form
        total = form.last_seq - form.first_seq + 1
        for done, frame in enumerate(frames.frames(form.first_seq), 1):
            index.take(frames, frame)
            digest = frame.digest.hex()
            if self._progress is not None and (done % 1024 == 0 or done == total):
                self._progress(done, total)
        told = None if form.tip is None else (form.tip.height, form.tip.hash)
        found = None if index.root is None else (index.tip, index.tip_hash.hex())
        if digest != form.last_digest or found != told:
            raise BackupDamaged(
                "the journal of the backup ends with another tip than the manifest says",
                path=self._repository.place,
                found=None if found is None else found[0],
                expected=None if told is None else told[0],
            )
        return index

    def oldest_state(self) -> int | None:
        with self.moment() as now:
            return None if now.tip is None or now.tip.state_root is None else now.lowest

    @contextlib.contextmanager
    def state(self, info: BlockInfo) -> Iterator[StateSide]:
        fs = RealFileSystem()
        place = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=self._directory))
        try:
            if self._on_restore is not None:
                self._on_restore(place)
            key = self._key
            with without_key():
                self._restore(place / "store", info, key)
                restored = open_store(place / "store", create=False, read_only=True, key=key)
            with restored as store:
                if store.tip is None or store.tip.hash != info.hash:
                    raise CorruptionError("the restored store has another tip than it should", height=info.height)
                with StoreSource(store).state(info) as side:
                    yield side
        finally:
            fs.remove_tree(place)

    def _restore(self, target: Path, info: BlockInfo, key: StoreKey | None) -> None:
        """The store as it was with this canonical block as its tip."""
        tip = self._form.tip
        height = None if tip is not None and tip.height == info.height else info.height
        try:
            restore_backup(
                self._repository,
                self._form.name,
                target,
                to_height=height,
                workers=self._workers,
                progress=self._progress,
                store_key=key,
            )
        except FinalityError as error:
            raise PrunedError(
                "the state of this height cannot be made: it became final in a frame with those above it",
                height=info.height,
                least_readable=error.context.get("next_height"),
            ) from error
