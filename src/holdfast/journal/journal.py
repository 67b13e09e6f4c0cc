"""The writing journal: append, group commit, rolling of segments, close.

Invariants:
    * ``durable_seq`` rises only after a sync of everything up to it returned, and the watermark is written after that.
    * Before a segment gets a header, the one before it is sealed and synced.
    * After a failed write or sync nothing is written or synced again until the journal is reopened: what was not
      durable is dropped, ``append`` and ``sync`` raise ``PoisonedError``, durable frames stay readable.
    * Lock order: append lock, then sync lock. ``sync`` takes only the sync lock. ``on_durable`` runs under the sync
      lock and ``carry`` under the append lock; neither may call ``append``, ``sync`` or ``close``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .. import _failpoints
from .._fs import File, FileSystem, translate_os_error
from .._seal import PartCipher
from ..errors import ClosedError, ForeignStore, HoldfastError, InvalidInputError, PoisonedError, Recovery
from ..limits import SEGMENT_BYTES_FIRST, SEGMENT_BYTES_MAX
from .api import DurableMark, JournalRecovery, Part, TipMark
from .codec import FRAME_HEAD, FRAME_HEAD_BYTES, FRAME_MAGIC, PartsEncoding, encode_frame, encode_parts
from .compacted import Hole, is_compacted
from .compaction import Compacted, Step, compact_segment, compacted_bytes, no_step
from .prepare import Housekeeper, SegmentMaker
from .reads import FrameReads
from .recovery import JOURNAL_DIRECTORY, Findings, finish_tail, inspect_journal
from .segment import (
    SEAL_BYTES,
    SEGMENT_HEADER_BYTES,
    Seal,
    Segment,
    SegmentHeader,
    encode_header,
    segment_number,
)
from .watermark import WATERMARK_NAME, Watermark

__all__ = ["Journal", "JournalOptions"]

_ZERO_HASH: Final = bytes(32)


@dataclass(frozen=True, slots=True)
class JournalOptions:
    """Settings of the writing journal.

    ``carry`` gives the parts that are repeated, as a frame of their own, at the start of each new segment.
    ``on_durable`` is told each new durable seq. Without ``background`` the next segment is made at once and the
    watermark file is synced only by ``sync_watermark`` and ``close``: every step is then made by the caller's thread.
    """

    segment_bytes_first: int = SEGMENT_BYTES_FIRST
    segment_bytes_max: int = SEGMENT_BYTES_MAX
    compression: str = "zstd"
    compression_bytes_min: int = 256
    group_commit_ms: float = 0
    carry: Callable[[], Sequence[Part]] | None = None
    on_durable: Callable[[int], None] | None = None
    background: bool = True

    def __post_init__(self) -> None:
        if self.compression not in {"none", "zstd"}:
            raise InvalidInputError("compression must be 'none' or 'zstd'", found=self.compression)
        if not 512 <= self.segment_bytes_first <= self.segment_bytes_max or self.segment_bytes_first % 8:
            raise InvalidInputError(
                "segment sizes must be multiples of 8 with 512 <= first <= max",
                first=self.segment_bytes_first,
                max=self.segment_bytes_max,
            )


class _Head:
    """The newest appended frame: where it stands and what the watermark says once it is durable. Never changed."""

    __slots__ = ("digest", "end", "file", "segment", "seq", "tip")

    def __init__(self, seq: int, digest: bytes, segment: int, end: int, tip: TipMark | None, file: File | None) -> None:
        self.seq = seq
        self.digest = digest
        self.segment = segment
        self.end = end
        self.tip = tip
        self.file = file


class Journal(FrameReads):
    """The journal of the one process that writes. Every method may be called from any thread."""

    def __init__(
        self,
        fs: FileSystem,
        directory: Path,
        *,
        store_id: bytes,
        salt: bytes,
        options: JournalOptions,
        head: _Head,
        cipher: PartCipher | None = None,
    ) -> None:
        super().__init__(fs, directory / JOURNAL_DIRECTORY, salt=salt, cipher=cipher)
        self._directory = directory
        self._store_id = store_id
        self._options = options
        self._compress = options.compression == "zstd"
        self._append_lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._maker = SegmentMaker(fs, self._journal_directory)
        self._housekeeper: Housekeeper | None = None
        self._segment: Segment | None = None
        self._file: File | None = None
        self._segment_bytes = 0
        self._segment_bytes_next = options.segment_bytes_first
        self._head = head
        self._durable = head
        self._poison: BaseException | None = None
        self._watermark: Watermark | None = None

    # -- open and create ----------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        fs: FileSystem,
        directory: Path,
        *,
        store_id: bytes,
        salt: bytes,
        first_parts: Sequence[Part],
        options: JournalOptions | None = None,
        cipher: PartCipher | None = None,
    ) -> Journal:
        """A journal in ``directory`` whose first frame holds ``first_parts`` and is durable, and its watermark.

        Remains of a creation that did not finish are replaced.

        Raises:
            ForeignStore: a journal with more than a first frame is there; nothing was touched.
        """
        if len(store_id) != 16 or len(salt) != 32:
            raise InvalidInputError("a store id has 16 bytes and a salt 32", store_id=store_id, salt=salt)
        options = options or JournalOptions()
        parts = encode_parts(first_parts, compress=options.compression == "zstd", seal=cipher is not None)
        fs.make_directory(directory / JOURNAL_DIRECTORY)
        _clear_unfinished(fs, directory)
        head = _Head(0, _ZERO_HASH, 0, 0, None, None)
        journal = cls(fs, directory, store_id=store_id, salt=salt, options=options, head=head, cipher=cipher)
        try:
            with journal._append_lock:
                journal._append_locked(parts, None, None)
            head = journal._head
            assert head.file is not None
            head.file.sync()
            first = DurableMark(1, 1, head.digest, head.segment, head.end, clean=False, tip=None)
            journal._watermark = Watermark.create(fs, directory, salt=salt, first=first)
            journal._durable = head
            journal._start_housekeeping()
            journal._prepare_next()
        except BaseException:
            journal.close(clean=False)
            raise
        return journal

    @classmethod
    def open(
        cls,
        fs: FileSystem,
        directory: Path,
        *,
        store_id: bytes,
        salt: bytes,
        options: JournalOptions | None = None,
        cipher: PartCipher | None = None,
    ) -> tuple[Journal, JournalRecovery]:
        """The journal as the last process left it, after the tail rule. After a clean close nothing is written.

        Raises:
            CorruptionError: acknowledged bytes are damaged or gone; nothing was changed.
        """
        options = options or JournalOptions()
        watermark = Watermark.open(fs, directory, salt=salt)
        try:
            mark = watermark.mark
            damaged = watermark.damaged_slots
            found = inspect_journal(fs, directory, store_id=store_id, salt=salt, mark=mark)
            discarded = () if found.clean else finish_tail(fs, directory, found, salt=salt, mark=mark)
            tail = found.segments[-1]
            tip = mark.tip if mark.seq == tail.last_seq else None
            last = _last_place(found)
            if tail.last_seq > mark.seq:
                watermark.write(tail.last_seq, tail.digest, last.number, last.frames_end, None)
                watermark.sync()
            head = _Head(tail.last_seq, tail.digest, last.number, last.frames_end, tip, None)
            journal = cls(fs, directory, store_id=store_id, salt=salt, options=options, head=head, cipher=cipher)
        except BaseException:
            watermark.close()
            raise
        journal._watermark = watermark
        for segment in found.segments:
            journal._add_segment(segment)
        recovery = JournalRecovery(found.clean, head.seq, head.digest, found.frames_scanned, tuple(discarded), damaged)
        return journal, recovery

    # -- state --------------------------------------------------------------------------------------------------

    @property
    def appended_seq(self) -> int:
        """Seq of the newest frame that was appended (once poisoned: the newest durable one)."""
        return self._end_seq()

    @property
    def durable_seq(self) -> int:
        """Seq of the newest frame that is durable."""
        return self._durable.seq

    @property
    def tip(self) -> TipMark | None:
        """The tip that the newest appended frame left, as far as the journal was told."""
        return (self._head if self._poison is None else self._durable).tip

    @property
    def last_digest(self) -> bytes:
        """Digest of frame ``appended_seq``."""
        return (self._head if self._poison is None else self._durable).digest

    @property
    def poisoned(self) -> BaseException | None:
        """The failure that stopped writing, if there was one."""
        return self._poison

    def _end_seq(self) -> int:
        return (self._head if self._poison is None else self._durable).seq

    # -- append -------------------------------------------------------------------------------------------------

    def append(self, parts: Sequence[Part], *, tip: TipMark | None = None, time_us: int | None = None) -> int:
        """Seq of a new frame with ``parts``. It was given to the operating system and is not durable yet.

        ``tip`` is the tip after this frame, repeated in the watermark; ``None`` leaves it as it was. ``time_us`` is
        the time in the frame (microseconds since 1970, UTC); ``None`` takes the clock.

        Raises:
            LimitExceeded, InvalidInputError: nothing was changed.
            OutOfSpace: there is no room for the next segment; nothing was changed and the journal goes on.
            PoisonedError: an earlier write or sync failed.
            EngineError: this write failed; the journal is poisoned now.
        """
        if time_us is not None and not 0 <= time_us < 1 << 64:
            raise InvalidInputError("the time of a frame is not a u64", time_us=time_us)
        if tip is not None and not (len(tip.hash) == len(tip.root) == 32 and 0 <= tip.height < 1 << 64):
            raise InvalidInputError("a tip needs a u64 height and hashes of 32 bytes", height=tip.height)
        encoding = self._encoded(parts)
        with self._append_lock:
            if self._poison is not None:
                raise self._poisoned_error() from self._poison
            if self._closed:
                raise ClosedError("the journal is closed", path=self._directory)
            return self._append_locked(encoding, tip, time_us)

    def _encoded(self, parts: Sequence[Part]) -> PartsEncoding:
        return encode_parts(
            parts,
            compress=self._compress,
            compression_bytes_min=self._options.compression_bytes_min,
            seal=self._cipher is not None,
        )

    def _append_locked(self, parts: PartsEncoding, tip: TipMark | None, time_us: int | None) -> int:
        segment = self._segment
        if segment is None or (
            segment.frames_end + parts.length + 8 * (segment.count + 1) + SEAL_BYTES > self._segment_bytes
        ):
            self._roll(parts)
        return self._write_frame(parts, tip, time_us)

    def _write_frame(self, parts: PartsEncoding, tip: TipMark | None, time_us: int | None = None) -> int:
        segment, file, head = self._segment, self._file, self._head
        assert segment is not None
        assert file is not None
        seq = head.seq + 1
        offset = segment.frames_end
        data, digest = encode_frame(
            parts,
            salt=self._salt,
            seq=seq,
            durable_seq=self._durable.seq,
            time_us=time.time_ns() // 1000 if time_us is None else time_us,
            previous=head.digest,
            cipher=self._cipher,
            segment=segment.header.number,
        )
        end = offset + parts.length
        new_head = _Head(seq, digest, segment.header.number, end, tip if tip is not None else head.tip, file)
        try:
            _failpoints.hit("journal.append.before_write")
            file.pwrite(data, offset)
            _failpoints.hit("journal.append.after_write")
            segment.add(offset, end, digest)
            self._head = new_head
        except BaseException as error:
            raise self._poison_with(error, file.path) from error
        return seq

    def _roll(self, parts: PartsEncoding) -> None:
        """The next segment has a header and room for ``parts``; the one before it is sealed and durable."""
        carried = None
        before = self._head
        if self._options.carry is not None and before.seq > 0:
            carried_parts = self._options.carry()
            if carried_parts:
                carried = self._encoded(carried_parts)
        size_min = SEGMENT_HEADER_BYTES + parts.length + 16 + SEAL_BYTES + (carried.length if carried else 0)
        number = (self._segments[-1].number if self._segments else 0) + 1
        file, size = self._take(number, size_min)
        with self._sync_lock:
            if self._poison is not None:
                file.close()
                raise self._poisoned_error() from self._poison
            try:
                if self._segment is not None:
                    self._seal()
                _failpoints.hit("journal.roll.before_header")
                header = SegmentHeader(number, before.seq + 1, before.digest)
                file.pwrite(encode_header(header, store_id=self._store_id, salt=self._salt), 0)
                _failpoints.hit("journal.roll.after_header")
                segment = Segment(file.path, header)
                self._add_segment(segment)
                self._segment, self._file, self._segment_bytes = segment, file, size
            except BaseException as error:
                file.close()
                raise self._poison_with(error, file.path) from error
        self._segment_bytes_next = min(self._segment_bytes_next * 2, self._options.segment_bytes_max)
        if self._watermark is not None:
            self._start_housekeeping()
            self._prepare_next()
        if carried is not None:
            self._write_frame(carried, None)

    def _take(self, number: int, size_min: int) -> tuple[File, int]:
        try:
            return self._maker.take(number, self._segment_bytes_next, -(-size_min // 8) * 8)
        except OSError as error:
            raise translate_os_error(error, self._journal_directory) from error

    def _seal(self) -> None:
        """The open segment is sealed and everything in it durable. The sync lock is held."""
        segment, file = self._segment, self._file
        assert segment is not None
        assert file is not None
        head = self._head
        _failpoints.hit("journal.roll.before_seal")
        seal = segment.seal_bytes(self._salt)
        file.pwrite(seal, segment.frames_end)
        file.truncate(segment.frames_end + len(seal))
        self._sync_file(file)
        _failpoints.hit("journal.roll.after_seal")
        segment.set_sealed(Seal(segment.count, segment.last_seq, segment.frames_end, segment.digest))
        self._segment = self._file = None
        file.close()
        if head.seq > self._durable.seq:
            self._publish(head)

    # -- sync ---------------------------------------------------------------------------------------------------

    def sync(self, seq: int | None = None) -> int:
        """The durable seq, at least ``seq`` (default: all that was appended before the call).

        Threads that wait at the same time share one sync of the file.

        Raises:
            PoisonedError: an earlier write or sync failed before ``seq`` was durable.
            EngineError: this sync failed; the journal is poisoned now.
        """
        if seq is None:
            if self._poison is not None:
                raise self._poisoned_error() from self._poison
            seq = self._head.seq
        if self._durable.seq >= seq:
            return self._durable.seq
        if seq > self._head.seq:
            raise InvalidInputError("cannot sync a frame that was not appended", seq=seq, appended_seq=self._head.seq)
        with self._sync_lock:
            if self._durable.seq >= seq:
                return self._durable.seq
            if self._poison is not None:
                raise self._poisoned_error() from self._poison
            if self._closed:
                raise ClosedError("the journal is closed", path=self._directory)
            if self._options.group_commit_ms > 0:
                time.sleep(self._options.group_commit_ms / 1000)
            head = self._head
            assert head.file is not None
            try:
                self._sync_file(head.file)
                self._publish(head)
            except BaseException as error:
                raise self._poison_with(error, head.file.path) from error
            return head.seq

    def _sync_file(self, file: File) -> None:
        _failpoints.hit("journal.sync.before")
        file.sync()
        _failpoints.hit("journal.sync.after")

    def _publish(self, head: _Head) -> None:
        """``head`` is durable, and the watermark and ``on_durable`` say so. The sync lock is held."""
        _failpoints.hit("journal.watermark.before")
        assert self._watermark is not None
        self._watermark.write(head.seq, head.digest, head.segment, head.end, head.tip)
        if self._options.on_durable is not None:
            self._options.on_durable(head.seq)
        self._durable = head  # last: whoever sees it must find everything else told

    def sync_watermark(self) -> None:
        """The watermark file is durable as it stands. The background thread does this every second."""
        watermark = self._watermark
        if watermark is None or not watermark.dirty or self._poison is not None or self._closed:
            return
        try:
            watermark.sync()
        except BaseException as error:
            raise self._poison_with(error, self._directory / WATERMARK_NAME) from error

    # -- compaction ---------------------------------------------------------------------------------------------

    def compact(
        self,
        number: int,
        *,
        holes: Sequence[Hole] = (),
        floor: int = 0,
        original: File | None = None,
        step: Step = no_step,
    ) -> Compacted:
        """Segment ``number`` is a compacted file; see ``compact_segment``. Appends and reads go on meanwhile.

        Two calls for the same segment must not overlap.

        Raises:
            InvalidInputError: the segment is not sealed, or holds the last durable frame; nothing was changed.
            CorruptionError: it is damaged; nothing was changed.
        """
        if self._closed:
            raise ClosedError("the journal is closed", path=self._directory)
        if not 0 < number < self._durable.segment:
            raise InvalidInputError(
                "only segments before the newest are compacted", segment=number, newest=self._durable.segment
            )
        segment = self._segments[number - 1]
        try:
            return compact_segment(
                self._fs,
                segment,
                store_id=self._store_id,
                salt=self._salt,
                holes=holes,
                floor=floor,
                original=original,
                step=step,
            )
        finally:
            self._reopen(number)

    def compacted_bytes(self, number: int, holes: Sequence[Hole] = ()) -> int:
        """About how long the compacted file of segment ``number`` without ``holes`` would be."""
        handle = self._handle(self._segments[number - 1])
        return compacted_bytes(handle.file, holes)

    # -- poison -------------------------------------------------------------------------------------------------

    def _poison_with(self, error: BaseException, path: Path) -> BaseException:
        """The error to raise for ``error``; nothing is written from now on."""
        if self._poison is None:
            self._poison = error
        typed = translate_os_error(error, path) if isinstance(error, OSError) else error
        if isinstance(typed, HoldfastError) and typed.retryable:
            typed.needs(Recovery.REPLAY)  # the same call would find the journal poisoned
        return typed

    def _poisoned_error(self) -> PoisonedError:
        return PoisonedError(
            "the journal stopped writing after a failure", path=self._directory, cause=str(self._poison)
        )

    # -- background ---------------------------------------------------------------------------------------------

    def _start_housekeeping(self) -> None:
        if self._options.background and self._fs.persistent and self._housekeeper is None:
            self._housekeeper = Housekeeper(self._keep_house)

    def _prepare_next(self) -> None:
        if not self._fs.persistent:
            return
        self._maker.request(self._segments[-1].number + 1, self._segment_bytes_next)
        if self._housekeeper is not None:
            self._housekeeper.wake()
        elif not self._options.background:
            self._maker.work()

    def _keep_house(self) -> None:
        try:
            self.sync_watermark()
        except HoldfastError:
            return  # the journal is poisoned with it; the next append or sync raises
        if self._poison is None:
            self._maker.work()

    # -- close --------------------------------------------------------------------------------------------------

    def _durable_end(self, number: int) -> int:
        durable = self._durable
        return durable.end if durable.segment == number else SEGMENT_HEADER_BYTES

    def close(self, *, clean: bool = True) -> None:
        """Everything is released. ``clean`` seals, syncs and marks the journal, unless it is poisoned.

        Raises:
            EngineError: the clean close failed; everything is released all the same.
        """
        with self._append_lock:
            if self._closed:
                return
            self._maker.cancel()
            if self._housekeeper is not None:
                self._housekeeper.stop()
            with self._sync_lock:
                try:
                    if clean and self._poison is None:
                        self._close_cleanly()
                except BaseException as error:
                    raise self._poison_with(error, self._directory) from error
                finally:
                    self._release()

    def _close_cleanly(self) -> None:
        watermark = self._watermark
        assert watermark is not None
        self._maker.discard()
        if self._segment is not None:
            self._seal()
        durable = self._durable
        mark = watermark.mark
        if not watermark.dirty and mark.clean and mark.seq == durable.seq and not watermark.written:
            return
        _failpoints.hit("journal.close.before_mark")
        for _slot in range(2):
            watermark.write(durable.seq, durable.digest, durable.segment, durable.end, durable.tip, clean=True)
        watermark.sync()

    def abandon(self) -> None:
        """For the child after ``fork()``: this copy never writes again, its descriptors are released."""
        self._append_lock, self._sync_lock = threading.Lock(), threading.Lock()
        self._cache_lock = threading.Lock()
        self._maker = SegmentMaker(self._fs, self._journal_directory)
        self._closed = True
        self._release()

    def _release(self) -> None:
        self._forget_files()
        self._maker.release()
        if self._file is not None:
            self._file.close()
        if self._watermark is not None:
            self._watermark.close()


def _last_place(found: Findings) -> Segment:
    """The segment that holds the last frame: the newest one that has any."""
    for segment in reversed(found.segments):
        if segment.count:
            return segment
    return found.segments[0]


def _clear_unfinished(fs: FileSystem, directory: Path) -> None:
    """What an unfinished creation left in ``directory`` is gone.

    Raises:
        ForeignStore: there is more than a first frame; nothing was touched.
    """
    place = directory / JOURNAL_DIRECTORY
    gone: list[Path] = []
    for name in fs.names(place):
        path = place / name
        number = segment_number(name)
        if not name.endswith(".tmp") and (number is None or not _holds_at_most_one_frame(fs, path, number)):
            raise ForeignStore("the directory already holds a journal", path=path)
        gone.append(path)
    if fs.exists(directory / WATERMARK_NAME):
        gone.append(directory / WATERMARK_NAME)
    for path in gone:
        fs.remove(path)
    if gone:
        fs.sync_directory(place)


def _holds_at_most_one_frame(fs: FileSystem, path: Path, number: int) -> bool:
    file = fs.open(path, read_only=True)
    try:
        if is_compacted(file):
            return False
        if not file.pread(SEGMENT_HEADER_BYTES, 0).strip(b"\0"):
            return True
        fixed = file.pread(FRAME_HEAD_BYTES, SEGMENT_HEADER_BYTES)
        if number != 1 or len(fixed) < FRAME_HEAD_BYTES:
            return number == 1
        length = int(FRAME_HEAD.unpack(fixed)[3])
        return file.pread(4, SEGMENT_HEADER_BYTES + length) != FRAME_MAGIC
    finally:
        file.close()
