"""Files piece by piece, each read once: what every backup, verification and restore is made of.

Invariants:
    * A piece is made once, in order, and given to the sink before it is read: what was checked is what was copied.
    * Memory is bounded: a few pieces, whatever the length of the file.
    * A segment that was scanned has a right header, right frames in the right order, and a right seal if it has one.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from .._fs import Buffer, File, FileSystem
from ..errors import BackupDamaged, CorruptionError, HoldfastError, InvalidInputError, StateError
from ..journal.api import Frame
from ..journal.compacted import CompactedFile
from ..journal.recovery import JOURNAL_DIRECTORY
from ..journal.scan import scan_frames
from ..journal.segment import SEGMENT_HEADER_BYTES, Segment, decode_header, segment_name
from ..store.base import BASE_NAME
from ..store.identity import Identity
from .envelope import CHUNK_BYTES
from .manifest import BaseFile, Manifest, SegmentFile, pieces_of
from .repository import BackupRepository

__all__ = [
    "Ahead",
    "ChunksAhead",
    "PieceFile",
    "Progress",
    "Syncing",
    "Throttle",
    "Whole",
    "chunks_of",
    "exhaust",
    "file_name",
    "frame_digest",
    "pool_of",
    "raw_bytes_of",
    "scan_segment",
    "workers_of",
]

_KEPT = 4
_AHEAD_PER_WORKER = 2
_WORKERS_MAX = 16
_T = TypeVar("_T")

Progress = Callable[[int, int], None]
"""(bytes done, bytes in all); what it raises ends the work."""


class PieceFile:
    """A ``File`` that is read from its start, piece by piece. For one thread."""

    def __init__(
        self, path: Path, length: int, load: Callable[[int], bytes], sink: Callable[[bytes], None] | None = None
    ) -> None:
        self.path = path
        self._length = length
        self._load = load
        self._sink = sink
        self._next = 0
        self._kept: dict[int, bytes] = {}

    def pread(self, length: int, offset: int) -> bytes:
        stop = min(offset + length, self._length)
        parts: list[bytes] = []
        while offset < stop:
            index, start = divmod(offset, CHUNK_BYTES)
            part = self._piece(index)[start : start + stop - offset]
            if not part:
                raise CorruptionError("a file is shorter than it was", path=self.path, offset=offset)
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _piece(self, index: int) -> bytes:
        while self._next <= index:
            data = self._load(self._next)
            if self._sink is not None:
                self._sink(data)
            self._kept[self._next] = data
            self._kept.pop(self._next - _KEPT, None)
            self._next += 1
        found = self._kept.get(index)
        return self._load(index) if found is None else found

    def finish(self) -> None:
        """Every piece was made and given to the sink."""
        if self._length:
            self._piece(pieces_of(self._length) - 1)

    def size(self) -> int:
        return self._length

    def pwrite(self, data: Buffer, offset: int) -> None:
        raise StateError("pieces are only read", path=self.path)

    def truncate(self, length: int) -> None:
        raise StateError("pieces are only read", path=self.path)

    def sync(self) -> None:
        raise StateError("pieces are only read", path=self.path)

    def close(self) -> None:
        """Nothing happens: nothing is open."""


if TYPE_CHECKING:
    _file: type[File] = PieceFile


class Throttle:
    """Lets a number of bytes pass in each second; ``None`` lets all pass."""

    def __init__(
        self,
        bytes_per_second: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if bytes_per_second is not None and bytes_per_second < 1:
            raise InvalidInputError("a rate limit is a number of bytes in a second, from 1", found=bytes_per_second)
        self._rate = bytes_per_second
        self._clock = clock
        self._sleep = sleep
        self._free_at = clock()

    def take(self, count: int) -> None:
        """``count`` bytes may pass now. Waits for the time that they take at this rate, at most a second at once."""
        if self._rate is None:
            return
        now = self._clock()
        self._free_at = max(self._free_at, now) + count / self._rate
        while (left := self._free_at - self._clock()) > 0:
            self._sleep(min(left, 1.0))


class Ahead(Generic[_T]):
    """Jobs in threads, their results in order; without threads each is done when it is added."""

    def __init__(self, pool: ThreadPoolExecutor | None, workers: int) -> None:
        self._pool = pool
        self._most = max(1, workers * _AHEAD_PER_WORKER)
        self._waiting: deque[Future[_T]] = deque()

    def add(self, job: Callable[[], _T]) -> Iterator[_T]:
        """``job`` is begun; results that are due because too many wait."""
        if self._pool is None:
            yield job()
            return
        self._waiting.append(self._pool.submit(job))
        while len(self._waiting) > self._most:
            yield self._waiting.popleft().result()

    def rest(self) -> Iterator[_T]:
        """The results that are left."""
        while self._waiting:
            yield self._waiting.popleft().result()


class Syncing:
    """Files that are synced and closed in the order in which they come, in a thread of their own.

    Without ``threads`` each is when it is added. A context manager: left, no file is open any more, and those whose
    sync failed are gone, since what the system still has of them may never reach the device.
    """

    def __init__(self, fs: FileSystem, *, threads: bool) -> None:
        self._fs = fs
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="holdfast-backup-sync") if threads else None
        self._ahead: Ahead[None] = Ahead(self._pool, 1)
        self._failed: list[Path] = []
        self.ended = 0.0
        """When the last sync that went well ended, on the monotonic clock."""

    def __enter__(self) -> Syncing:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        for path in self._failed:
            with contextlib.suppress(HoldfastError):  # the error of the sync is the one to tell
                self._fs.remove(path)

    def add(self, file: File, path: Path) -> None:
        """The file, which lies at ``path``, will be synced. Waits while many do; raises what went wrong with those."""
        exhaust(self._ahead.add(partial(self._sync, file, path)))

    def wait(self) -> None:
        """Every file that was added is durable. Raises what went wrong."""
        exhaust(self._ahead.rest())

    def _sync(self, file: File, path: Path) -> None:
        try:
            file.sync()
        except HoldfastError:
            self._failed.append(path)
            raise
        else:
            self.ended = time.monotonic()
        finally:
            file.close()


def workers_of(workers: int | None) -> int:
    """Threads that are asked for; two if nobody says."""
    found = 2 if workers is None else workers
    if not 0 <= found <= _WORKERS_MAX:
        raise InvalidInputError("the number of threads is not allowed", found=found, limit=_WORKERS_MAX)
    return found


@contextlib.contextmanager
def pool_of(workers: int) -> Iterator[ThreadPoolExecutor | None]:
    """Threads for chunks, ``None`` for none; gone at the end, and what they had not begun is not begun."""
    if workers == 0:
        yield None
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="holdfast-backup")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def raw_bytes_of(length: int, index: int) -> int:
    """Length of piece ``index`` of a file of ``length`` bytes."""
    return min(CHUNK_BYTES, length - index * CHUNK_BYTES)


def chunks_of(
    repository: BackupRepository, file: SegmentFile | BaseFile, pool: ThreadPoolExecutor | None, workers: int
) -> Callable[[int], bytes]:
    """Gives the pieces of a file in a repository by number; those that follow are fetched ahead. For one thread."""
    return ChunksAhead(repository, (file,), pool, workers).of(file)


class ChunksAhead:
    """The pieces of ``files``, in their order, fetched ahead across the end of each. For one thread."""

    def __init__(
        self,
        repository: BackupRepository,
        files: Sequence[SegmentFile | BaseFile],
        pool: ThreadPoolExecutor | None,
        workers: int,
    ) -> None:
        self._repository = repository
        self._pool = pool
        self._most = max(1, workers * _AHEAD_PER_WORKER)
        self._coming = ((file, index) for file in files for index in range(len(file.chunks)))
        self._waiting: deque[tuple[SegmentFile | BaseFile, int, Future[bytes]]] = deque()

    def of(self, file: SegmentFile | BaseFile) -> Callable[[int], bytes]:
        """Gives the pieces of one of the files by number; quickest one after the other."""
        return partial(self._load, file)

    def _load(self, file: SegmentFile | BaseFile, index: int) -> bytes:
        if self._pool is None:
            return self._fetch(file, index)
        self._begin(self._pool)
        if self._waiting and self._waiting[0][0] is file and self._waiting[0][1] == index:
            return self._waiting.popleft()[2].result()
        return self._fetch(file, index)

    def _begin(self, pool: ThreadPoolExecutor) -> None:
        while len(self._waiting) < self._most and (found := next(self._coming, None)) is not None:
            self._waiting.append((*found, pool.submit(self._fetch, *found)))

    def _fetch(self, file: SegmentFile | BaseFile, index: int) -> bytes:
        return self._repository.get_chunk(file.chunks[index], raw_bytes_of(file.length, index))


def scan_segment(
    file: File, entry: SegmentFile, identity: Identity, previous: str | None, *, parts: bool = True
) -> Iterator[Frame]:
    """Every frame of the segment that ``entry`` describes, all of its bytes checked once the last one was taken.

    ``previous`` is the digest of the last frame before it in hex, ``None`` if that is not known. Without ``parts`` the
    bytes of parts are taken as they are: whoever asks for that knows them by another digest.

    Raises:
        CorruptionError: a byte is not as it was written, or it is another segment.
    """
    path = file.path
    if entry.raw_length:
        file = CompactedFile(file, salt=identity.salt)
    if file.size() != entry.segment_bytes:
        raise CorruptionError("a segment has another length", path=path, found=file.size())
    head = file.pread(SEGMENT_HEADER_BYTES, 0)
    header = decode_header(head, store_id=identity.store_id, salt=identity.salt, path=path)
    if header is None or (header.number, header.first_seq) != (entry.number, entry.first_seq):
        raise CorruptionError("a segment has no valid header", path=path, expected=entry.number)
    before = bytes(32) if entry.number == 1 else header.previous if previous is None else bytes.fromhex(previous)
    if header.previous != before:
        raise CorruptionError("a segment does not follow from the one before it", path=path)
    segment = Segment(path, header)
    for frame in scan_frames(file, segment, salt=identity.salt, stop=entry.frames_end, parts=parts):
        segment.add(frame.offset, frame.offset + frame.length, frame.digest)
        yield frame
    if (segment.frames_end, segment.last_seq, segment.digest.hex()) != (entry.frames_end, entry.last_seq, entry.digest):
        raise CorruptionError(
            "a segment does not end where it should", path=path, found=segment.last_seq, expected=entry.last_seq
        )
    if entry.sealed:
        length = entry.segment_bytes - entry.frames_end
        seal = segment.seal_bytes(identity.salt)
        if length != len(seal) or file.pread(length, entry.frames_end) != seal:
            raise CorruptionError("the seal of a segment is damaged", path=path, offset=entry.frames_end)


def frame_digest(repository: BackupRepository, form: Manifest, identity: Identity, seq: int) -> str:
    """The digest of frame ``seq`` of the backup ``form``, in hex. Raises ``CorruptionError`` where it is damaged."""
    entry = next(file for file in form.segments if file.first_seq <= seq <= file.last_seq)
    if entry.last_seq == seq:
        return entry.digest
    pieces = PieceFile(Path(file_name(entry)), entry.length, chunks_of(repository, entry, None, 0))
    return next(frame.digest.hex() for frame in scan_segment(pieces, entry, identity, None) if frame.seq == seq)


class Whole:
    """The SHA-256 of a file, and where else its pieces go."""

    def __init__(self, *sinks: Callable[[bytes], None]) -> None:
        self._state = sha256()
        self._sinks = sinks

    def __call__(self, piece: bytes) -> None:
        self._state.update(piece)
        for sink in self._sinks:
            sink(piece)

    def check(self, file: SegmentFile | BaseFile, what: object) -> None:
        """Raises ``BackupDamaged`` unless the whole file has the digest that the manifest names."""
        if self._state.hexdigest() != file.sha256:
            raise BackupDamaged("a file of the backup has a wrong digest", file=what, expected=file.sha256)

    @property
    def hex(self) -> str:
        """The digest in hex."""
        return self._state.hexdigest()


def exhaust(items: Iterable[object]) -> None:
    """Every item was taken."""
    for _ in items:
        pass


def file_name(file: SegmentFile | BaseFile) -> str:
    """Where a file lies below the directory of its store."""
    if isinstance(file, BaseFile):
        return f"{BASE_NAME}/{file.path}"
    return f"{JOURNAL_DIRECTORY}/{segment_name(file.number)}"
