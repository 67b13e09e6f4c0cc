"""Making a backup: of a store at rest, of an open one, or of one that another process writes.

The journal is append-only, so no lock of the store is needed: sealed segments never change, and of the open one only
what the watermark says is durable is copied.

Invariants:
    * What is copied is what was checked: every frame that is read, and the chain of digests from the first to the last.
    * Its name comes after those of all earlier backups of the store, also when the clock went back.
    * The manifest is written last. Whatever ends a run before that, its chunks are used by the next one.
    * A sealed segment that an earlier backup has, with the same end digest and length, is not read again; nor is one
      from which retention has dropped parts since then, which are kept in the backups so.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from .. import events
from .._failpoints import hit
from .._fs import File, FileSystem, RealFileSystem, lock_holder
from .._keys import using_key
from .._seal import PartCipher
from ..blocks.entries import decode_canonical
from ..errors import (
    BackupDamaged,
    CommitLoss,
    CorruptionError,
    HoldfastError,
    InvalidInputError,
    KeyRequired,
    MissingFile,
    SnapshotInvalid,
)
from ..journal.api import Frame, Kind
from ..journal.compacted import CompactedFile, open_segment
from ..journal.reader import JournalReader
from ..journal.segment import Segment
from ..limits import HASH_BYTES
from ..state.sealing import MORE_BYTES_MAX, named_files
from ..state.snapshot import MANIFEST_NAME
from ..state.snapshot_format import MANIFEST_BYTES_MAX
from ..store.base import BASE_NAME, base_of
from ..store.first_frame import identity_in_journal
from ..store.identity import IDENTITY_BYTES_MAX, IDENTITY_NAME, Identity
from ..store.opening import read_identity
from ..store.store import Store
from ..store.unlocking import unlock
from ..store.url import parse_url
from .envelope import CHUNK_BYTES
from .manifest import (
    NAME_US_MAX,
    BaseFile,
    ChainName,
    ChunkRef,
    Manifest,
    SegmentFile,
    Tip,
    name_time,
    new_name,
    totals_of,
)
from .pieces import (
    Ahead,
    PieceFile,
    Progress,
    Throttle,
    Whole,
    chunks_of,
    exhaust,
    file_name,
    frame_digest,
    pool_of,
    raw_bytes_of,
    scan_segment,
    workers_of,
)
from .repository import BackupRepository, StoredChunk

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BESIDE_BYTES_PER_SECOND", "BackupReport", "create_backup", "held_by"]

BESIDE_BYTES_PER_SECOND = 8 * 1024 * 1024
"""What a backup of a store that is open for writing, here or elsewhere, reads in a second, unless told otherwise."""

_TIP_FRAMES_MAX = 10_000
_BEHIND_US = 60_000_000
_ZERO = bytes(HASH_BYTES)
_UNSET = "0" * 64


class BackupReport(msgspec.Struct, frozen=True):
    """What a run did. Lengths in bytes: ``read_bytes`` of files that were read, ``written_bytes`` of new chunks."""

    manifest: Manifest
    digest: str
    read_bytes: int
    written_bytes: int
    chunks_written: int
    segments_taken_over: int
    seconds: float

    def as_dict(self) -> dict[str, object]:
        """As plain JSON values."""
        form = self.manifest
        return {
            "name": form.name,
            "digest": self.digest,
            "store": form.store_id,
            "last_seq": form.last_seq,
            "height": None if form.tip is None else form.tip.height,
            "hash": None if form.tip is None else form.tip.hash,
            "root": None if form.tip is None else form.tip.root,
            "files": form.totals.files,
            "raw_bytes": form.totals.raw_bytes,
            "stored_bytes": form.totals.stored_bytes,
            "read_bytes": self.read_bytes,
            "written_bytes": self.written_bytes,
            "chunks_written": self.chunks_written,
            "segments_taken_over": self.segments_taken_over,
            "seconds": round(self.seconds, 3),
        }


def create_backup(
    store: Store | str | os.PathLike[str],
    repository: BackupRepository,
    *,
    check: bool = False,
    bytes_per_second: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    throttle: Throttle | None = None,
    fs: FileSystem | None = None,
    clock: Callable[[], int] | None = None,
) -> BackupReport:
    """A backup of the store exists in the repository, durably. Its last frame was durable in the store.

    Args:
        store: an open store, or the directory of one that any process, or none, has open.
        check: read every file and every chunk that is there, and store damaged ones again.
        bytes_per_second: most that is read in a second, 0 for no limit; if ``None``, ``BESIDE_BYTES_PER_SECOND`` while
            any process has the store open for writing, so that its commits are hardly slowed, and no limit else.
        workers: threads that compress and write; 2 if ``None``, 0 for none.
        progress: called with (bytes done, bytes in all); what it raises ends the run, and the next one goes on there.
        clock: microseconds since 1970, for the name; where it is behind the newest backup of the store, the name
            comes right after that one.
    Raises:
        CorruptionError: a byte of the store is not as it was written; there is no backup then.
        RepositoryLocked: somebody else is at work in the repository.
        StoreNotFound: there is no store.
        KeyRequired: the store is encrypted, and nothing but its journal says what its tip is (after a crash).
    """
    root = _root_of(store)
    count = workers_of(workers)
    written_here = isinstance(store, Store) and not store.read_only
    if bytes_per_second is None and (written_here or held_by(root, fs=fs) is not None):
        bytes_per_second = BESIDE_BYTES_PER_SECOND
    throttle = throttle or Throttle(bytes_per_second or None)
    key = store.key if isinstance(store, Store) else None
    where: dict[str, object] = {"path": str(root), "repository": repository.place}
    try:
        with using_key(key), repository.lock(), pool_of(count) as pool:
            run = _Run(fs or RealFileSystem(), root, repository, check, throttle, pool, count, progress)
            report = run.make(clock)
    except HoldfastError as error:
        text = f"no backup was made of {root}: {error}"
        events.emit("backup_failed", logging.ERROR, text, place=root, error=error, **where)
        raise
    form = report.manifest
    _tell_notes(run, form.name, root, where)
    text = f"backup {form.name} of {root}: {form.totals.raw_bytes} bytes, {report.written_bytes} of them new"
    events.emit("backup_made", logging.INFO, text, **where, **report.as_dict())
    return report


def held_by(root: Path, *, fs: FileSystem | None = None) -> int | None:
    """Number of the process that has the store at ``root`` open for writing, ``None`` if none has. Takes no lock."""
    return lock_holder(fs or RealFileSystem(), root / "LOCK")


def _tell_notes(run: _Run, name: str, root: Path, where: dict[str, object]) -> None:
    """What is worth a warning although the backup is made."""
    if run.behind_seconds:
        events.emit(
            "backup_clock_behind",
            logging.WARNING,
            f"the clock is {run.behind_seconds} seconds behind the newest backup of {root}: {name} is named after that",
            **where,
            name=name,
            behind_seconds=run.behind_seconds,
            remedy="set the clock; names of backups follow it again once it has passed them",
        )
    if run.holed:
        events.emit(
            "backup_without_pruned",
            logging.WARNING,
            f"backup {name} of {root} lacks what was pruned of {len(run.holed)} segments: no backup here has it whole",
            **where,
            name=name,
            segments=len(run.holed),
            first_segment=run.holed[0],
            remedy="mend or copy back the backup that had it ('holdfast backup verify --all'), then make another one",
        )


def _root_of(store: Store | str | os.PathLike[str]) -> Path:
    """The directory of the store; everything committed to an open one is durable."""
    if isinstance(store, Store):
        if store.path is None:
            raise InvalidInputError("a store in memory has no files to back up")
        if not store.read_only:
            store.sync()
        return store.path
    path = parse_url(store).path
    if path is None:
        raise InvalidInputError("a store in memory has no files to back up")
    return path.absolute()


class _Source(JournalReader):
    """The durable frames of a store, and how they lie in segments."""

    def layout(self) -> list[Segment]:
        """Every segment up to the one that holds the last durable frame."""
        return self._segments[: self.mark.segment]


class _Run:
    """One backup in the making."""

    def __init__(
        self,
        fs: FileSystem,
        root: Path,
        repository: BackupRepository,
        check: bool,
        throttle: Throttle,
        pool: ThreadPoolExecutor | None,
        workers: int,
        progress: Progress | None,
    ) -> None:
        self._fs = fs
        self._root = root
        self._repository = repository
        self._check = check
        self._throttle = throttle
        self._pool = pool
        self._workers = workers
        self._progress = progress
        self._done = self._total = 0
        self._backups: list[Manifest] | None = None
        self._newest: Manifest | None = None
        self.holed: list[int] = []
        """Segments that were stored without what was pruned of them, and were not so in the backup before."""
        self.behind_seconds = 0
        """How far the clock is behind the newest backup, if that is more than a minute."""
        self._read = self._written = self._chunks = self._taken = 0

    def make(self, clock: Callable[[], int] | None) -> BackupReport:
        started = time.monotonic()
        identity = read_identity(self._fs, self._root)
        data = self._fs.read_bytes(self._root / IDENTITY_NAME, limit=IDENTITY_BYTES_MAX)
        if identity_in_journal(self._fs, self._root) not in (None, data):  # a rotten one would call any key wrong
            place = self._root / IDENTITY_NAME
            raise CorruptionError(f"{IDENTITY_NAME} differs from the first frame of the journal", path=place)
        parts = _parts_of(identity, self._root)
        wanted = identity.store_id.hex()
        self._newest = next((form for form in self._repository.readable() if form.store_id == wanted), None)
        name = self._name(time.time_ns() // 1000 if clock is None else clock())
        reader = _Source.open(self._fs, self._root, store_id=identity.store_id, salt=identity.salt, cipher=parts)
        try:
            self._refuse_loss(reader, identity)
            form = self._manifest(reader, identity, data, name)
        finally:
            reader.close()
        hit("backup.create.before_manifest")
        digest = self._repository.put_manifest(form)
        seconds = time.monotonic() - started
        return BackupReport(form, digest, self._read, self._written, self._chunks, self._taken, seconds)

    def _refuse_loss(self, reader: _Source, identity: Identity) -> None:
        """Raises ``CommitLoss`` if the journal ends within what the newest backup holds of this very history.

        A store that was restored or repaired has gone on by itself from where it was cut, with a frame of its own.
        """
        form, mark = self._newest, reader.mark
        if form is None or not form.first_seq <= mark.seq < form.last_seq:
            return
        try:
            digest = frame_digest(self._repository, form, identity, mark.seq)
        except CorruptionError:
            return  # a backup that is damaged there says nothing about the store
        if digest == mark.digest.hex():
            raise CommitLoss(
                "the newest backup holds commits that the store has lost",
                path=self._root,
                backup=form.name,
                backup_seq=form.last_seq,
                journal_seq=mark.seq,
                remedy="keep that backup and this copy; 'holdfast backup restore' makes a store of the backup",
            )

    def _manifest(self, reader: _Source, identity: Identity, data: bytes, name: str) -> Manifest:
        mark = reader.mark
        segments = [entry_of(segment, mark.seq, mark.end_offset, mark.digest) for segment in reader.layout()]
        base = self._base_lengths(reader)
        earlier = None if self._check else self._newest
        self._total = sum(entry.length for entry in segments) + sum(length for _, length, _ in base)
        files = tuple(self._base_file(path, length, digest, earlier) for path, length, digest in base)
        done: list[SegmentFile] = []
        previous: str | None = None
        for entry in segments:
            done.append(self._segment(entry, identity, previous, earlier))
            previous = entry.digest
        last = reader.frame(mark.seq)
        if last.digest != mark.digest:
            raise CorruptionError("the journal and the watermark are of two histories", path=self._root, seq=mark.seq)
        tip = None if mark.tip is None else (mark.tip.height, mark.tip.hash, mark.tip.root)
        tip = tip or _find_tip(reader, mark.seq)
        return Manifest(
            name=name,
            repository=self._repository.id,
            created_us=time.time_ns() // 1000,
            store_id=identity.store_id.hex(),
            chain=ChainName(id=identity.spec.id, name=identity.spec.name),
            identity=data.hex(),
            first_seq=done[0].first_seq,
            last_seq=mark.seq,
            last_digest=mark.digest.hex(),
            last_time_us=last.time_us,
            tip=None if tip is None else Tip(tip[0], tip[1].hex(), None if tip[2] == _ZERO else tip[2].hex()),
            segments=tuple(done),
            base=files,
            totals=totals_of(tuple(done), files),
        )

    def _name(self, now_us: int) -> str:
        """A name after that of the newest backup of this store, whatever the clock says."""
        latest_us = 0 if self._newest is None else name_time(self._newest.name)
        if now_us + _BEHIND_US < latest_us:
            self.behind_seconds = (latest_us - now_us) // 1_000_000
        return new_name(max(now_us, min(latest_us + 1, NAME_US_MAX)))

    # -- files --------------------------------------------------------------------------------------------------

    def _segment(
        self, entry: SegmentFile, identity: Identity, previous: str | None, earlier: Manifest | None
    ) -> SegmentFile:
        if earlier is not None and entry.sealed:
            index = entry.number - earlier.segments[0].number
            known = earlier.segments[index] if 0 <= index < len(earlier.segments) else None
            if known is not None and _same(known, entry) and self._has(known.chunks):
                self._taken += 1
                self._step(entry.length)
                return known
        path = self._root / "journal" / f"{entry.number:010d}.seg"
        file = open_segment(self._fs, path, salt=identity.salt)
        try:
            if isinstance(file, CompactedFile) and file.floor:
                return self._pruned_segment(entry, file, identity, previous)

            def scan(pieces: PieceFile) -> None:
                exhaust(scan_segment(pieces, entry, identity, previous))

            digest, chunks = self._copy(file, entry.length, scan)
            return msgspec.structs.replace(entry, sha256=digest, chunks=chunks)
        finally:
            file.close()

    def _pruned_segment(
        self, entry: SegmentFile, compacted: CompactedFile, identity: Identity, previous: str | None
    ) -> SegmentFile:
        """What an earlier backup has of the segment, if it has all of it unharmed; else the compacted file as it is."""
        self._step(max(0, entry.length - compacted.stored_bytes))
        known = self._whole_before(entry, identity)
        if known is not None:
            self._taken += 1
            self._step(min(entry.length, compacted.stored_bytes))
            return known
        if not self._was_holed(entry):
            self.holed.append(entry.number)
        entry = msgspec.structs.replace(entry, length=compacted.stored_bytes, raw_length=entry.length)
        file = compacted.stored  # the one that was looked at: another may have its name by now

        def scan(pieces: PieceFile) -> None:
            exhaust(scan_segment(file, entry, identity, previous))

        digest, chunks = self._copy(file, entry.length, scan)
        return msgspec.structs.replace(entry, sha256=digest, chunks=chunks)

    def _was_holed(self, entry: SegmentFile) -> bool:
        """True if the newest backup has the segment without pruned parts, too."""
        known = () if self._newest is None else self._newest.segments
        return any(file.raw_length and file.digest == entry.digest for file in known if file.number == entry.number)

    def _whole_before(self, entry: SegmentFile, identity: Identity) -> SegmentFile | None:
        """The newest backup's entry for the segment as it was before anything was pruned from it.

        A backup that has the segment as it is now was made when no such entry was sound: before it nothing is believed
        unread.
        """
        if self._backups is None:
            wanted = identity.store_id.hex()
            self._backups = [form for form in self._repository.readable() if form.store_id == wanted]
        tried: list[tuple[ChunkRef, ...]] = []
        for form in self._backups:
            index = entry.number - form.segments[0].number
            known = form.segments[index] if 0 <= index < len(form.segments) else None
            if known is None or not known.sealed or known.digest != entry.digest or known.chunks in tried:
                continue
            if known.raw_length and not self._check:
                return None
            if _same(known, entry):
                tried.append(known.chunks)
                if self._sound(known, form.name):
                    return known
        return None

    def _sound(self, known: SegmentFile, name: str) -> bool:
        """The chunks of the entry are there, with ``check`` as they were written; told if they are not."""
        try:
            if not self._has(known.chunks):
                raise BackupDamaged("a chunk of the backup is missing", path=self._repository.place)
            if self._check:
                whole = Whole(lambda piece: self._throttle.take(len(piece)))
                load = chunks_of(self._repository, known, self._pool, self._workers)
                for index in range(len(known.chunks)):
                    whole(load(index))
                whole.check(known, file_name(known))
        except (BackupDamaged, MissingFile) as error:
            text = f"what backup {name} keeps of segment {known.number}, pruned since, is damaged: {error}"
            events.emit("corruption_found", logging.ERROR, text, error=error, context=error.as_dict()["context"])
            return False
        return True

    def _base_lengths(self, reader: JournalReader) -> list[tuple[str, int, bytes]]:
        """Path below ``base/``, length and SHA-256 of each file that the store stands on; checked as far as that goes.

        Of a chunk it is the digest in its last 32 bytes, which the manifest of the snapshot names.
        """
        entry = base_of(reader)
        if entry is None:
            return []
        place = self._root / BASE_NAME
        data = self._fs.read_bytes(place / MANIFEST_NAME, limit=MANIFEST_BYTES_MAX + MORE_BYTES_MAX)
        if sha256(data).digest() != entry.manifest_digest:
            raise CorruptionError("the base of the store is damaged", path=place / MANIFEST_NAME)
        try:
            named = named_files(data)
        except SnapshotInvalid as error:
            raise CorruptionError(f"the base of the store is damaged: {error.message}", path=place) from error
        found = [(MANIFEST_NAME, len(data), entry.manifest_digest)]
        for path, digest in named:
            file = self._fs.open(place / path, read_only=True)
            try:
                found.append((path, file.size(), digest))
            finally:
                file.close()
        return sorted(found)

    def _base_file(self, path: str, length: int, digest: bytes, earlier: Manifest | None) -> BaseFile:
        if earlier is not None:
            known = next((file for file in earlier.base if file.path == path), None)
            if known is not None and known.length == length and self._has(known.chunks):
                self._step(length)
                return known
        tail = path != MANIFEST_NAME
        place = self._root / BASE_NAME / path

        def scan(pieces: PieceFile) -> None:
            state = sha256()
            stop = length - 32 if tail else length
            for offset in range(0, stop, CHUNK_BYTES):
                state.update(pieces.pread(min(CHUNK_BYTES, stop - offset), offset))
            if state.digest() != digest or (tail and pieces.pread(32, stop) != digest):
                raise CorruptionError("the base of the store is damaged", path=place)

        if length < 33:
            raise CorruptionError("the base of the store is damaged", path=place)
        file = self._fs.open(place, read_only=True)
        try:
            found, chunks = self._copy(file, length, scan)
        finally:
            file.close()
        return BaseFile(path, length, found, chunks)

    def _copy(self, file: File, length: int, scan: Callable[[PieceFile], None]) -> tuple[str, tuple[ChunkRef, ...]]:
        """SHA-256 and chunks of the first ``length`` bytes of a file that ``scan`` found right."""
        chunks: list[ChunkRef] = []
        ahead: Ahead[StoredChunk] = Ahead(self._pool, self._workers)

        def take(stored: Iterable[StoredChunk]) -> None:
            for chunk in stored:
                chunks.append(chunk.ref)
                self._written += chunk.written
                self._chunks += chunk.written > 0

        def store(piece: bytes) -> None:
            take(ahead.add(partial(self._repository.put_chunk, piece, check=self._check)))

        whole = Whole(store)
        pieces = PieceFile(file.path, length, partial(self._load, file, length), whole)
        scan(pieces)
        pieces.finish()
        take(ahead.rest())
        return whole.hex, tuple(chunks)

    def _load(self, file: File, length: int, index: int) -> bytes:
        count = raw_bytes_of(length, index)
        self._throttle.take(count)
        data = file.pread(count, index * CHUNK_BYTES)
        if len(data) != count:
            raise MissingFile("a file of the store is shorter than it was", path=file.path, expected=length)
        self._read += count
        self._step(count)
        return data

    def _has(self, chunks: Iterable[ChunkRef]) -> bool:
        return all(self._repository.has_chunk(ref) for ref in chunks)

    def _step(self, count: int) -> None:
        self._done += count
        hit("backup.create.piece")
        if self._progress is not None:
            self._progress(self._done, self._total)


def entry_of(segment: Segment, last_seq: int, end_offset: int, digest: bytes) -> SegmentFile:
    """``segment`` as far as it is durable; frame ``last_seq``, with this digest, ends at ``end_offset`` of its own."""
    sealed = segment.sealed and segment.last_seq <= last_seq
    ours = segment.last_seq >= last_seq
    length = segment.frames_end
    if sealed:
        length += 8 * segment.count + 96
    return SegmentFile(
        number=segment.number,
        first_seq=segment.first_seq,
        last_seq=last_seq if ours else segment.last_seq,
        digest=(digest if ours else segment.digest).hex(),
        frames_end=end_offset if ours else segment.frames_end,
        length=length if sealed else end_offset,
        sealed=sealed,
        sha256=_UNSET,
        chunks=(),
    )


def _same(known: SegmentFile, entry: SegmentFile) -> bool:
    return (
        known.sealed
        and (known.number, known.first_seq, known.last_seq) == (entry.number, entry.first_seq, entry.last_seq)
        and (known.digest, known.length, known.frames_end) == (entry.digest, entry.length, entry.frames_end)
    )


def _parts_of(identity: Identity, root: Path) -> PartCipher | None:
    """What opens parts of the journal, if the key of an encrypted store is there."""
    try:
        cipher = unlock(identity, None, root)
    except KeyRequired:
        return None
    return None if cipher is None else cipher.parts


def _find_tip(reader: JournalReader, last_seq: int) -> tuple[int, bytes, bytes] | None:
    """The tip after frame ``last_seq``, from the newest frames; its root is zeros unless that frame executed it.

    That of a base is named in frame 1, also of an encrypted store in plain text.
    """
    for seq in range(last_seq, max(reader.first_seq, last_seq - _TIP_FRAMES_MAX) - 1, -1):
        if seq == 1 and (base := base_of(reader)) is not None:
            return base.height, base.hash, base.root
        frame: Frame = reader.frame(seq)
        for index, part in enumerate(frame.parts):
            if part.kind == Kind.CANONICAL:
                height, block_hash = decode_canonical(reader.part(frame, index)).tip
                return height, block_hash, _ZERO
    return None
