"""Single segments out of the backups of a store, for a journal that lost some.

Invariants:
    * A file is published only after every byte of it was checked against the end digest that its journal expects.
    * A damaged backup is passed over for an older one; nothing but the directory that was given is written.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from .._fs import File, FileSystem, NewFile, RealFileSystem, path_of
from ..errors import BackupDamaged, BackupNotFound, CorruptionError, InvalidInputError
from ..journal.segment import segment_name
from ..store.opening import make_directories
from ..store.retention import Archive, ArchiveOpener, Original
from .manifest import Manifest, SegmentFile, decode_store
from .pieces import PieceFile, Whole, chunks_of, exhaust, pool_of, scan_segment, workers_of
from .repository import BackupRepository

__all__ = ["SegmentSource", "archive_of", "background_archive", "fetch_segments", "originals_of"]

_T = TypeVar("_T")
_SCRATCH = "holdfast-refill-"


class SegmentSource:
    """The sealed segments of one store that the backups of a repository hold, newest backup first."""

    def __init__(
        self,
        repository: BackupRepository,
        store_id: bytes,
        directory: str | os.PathLike[str],
        *,
        workers: int | None = None,
        fs: FileSystem | None = None,
    ) -> None:
        self._repository = repository
        self._directory = path_of(directory, "the place for segments").absolute()
        self._workers = workers_of(workers)
        self._fs = fs or RealFileSystem()
        wanted = store_id.hex()
        self._backups = [form for form in repository.readable() if form.store_id == wanted]

    def fetch(self, number: int, digest: bytes, *, whole: bool = False, directory: Path | None = None) -> Path:
        """The sealed segment ``number`` whose last frame has this digest lies in the directory, every byte checked.

        One from which nothing was pruned goes before others; with ``whole`` others do not count. ``directory``: another
        than that of the source.

        Raises:
            BackupNotFound: no backup holds it. BackupDamaged: every backup that holds it is damaged.
        """
        place = directory or self._directory
        return self._first(
            number,
            digest,
            lambda form, entry: fetch_segment(self._repository, form, entry, place, self._fs, self._workers),
            whole=whole,
        )

    @property
    def empty(self) -> bool:
        """True if there is no backup of the store at all."""
        return not self._backups

    def check(self, number: int, digest: bytes, look: Callable[[bytes], None] = lambda _: None) -> None:
        """A backup holds all of that segment, durably: every byte was read and checked, none was written.

        ``look`` is called with each piece; what it raises ends it.

        Raises:
            BackupNotFound: no backup holds all of it. BackupDamaged: every backup that does is damaged.
        """

        def read(form: Manifest, entry: SegmentFile) -> None:
            _read_segment(self._repository, form, entry, Path(segment_name(number)), self._workers, look)
            self._repository.keep_backups([form.name])

        self._first(number, digest, read, whole=True)

    def _first(self, number: int, digest: bytes, use: Callable[[Manifest, SegmentFile], _T], *, whole: bool) -> _T:
        found = [(form, entry) for form in self._backups if (entry := _entry(form, number)) is not None]
        found = [(form, entry) for form, entry in found if entry.sealed and entry.digest == digest.hex()]
        damage: CorruptionError | None = None
        for form, entry in sorted(found, key=lambda pair: pair[1].raw_length > 0):
            if whole and entry.raw_length:
                continue
            try:
                return use(form, entry)
            except CorruptionError as error:
                damage = damage or error
        if damage is not None:
            raise BackupDamaged(
                f"no backup holds this segment unharmed: {damage.message}", path=self._repository.place, segment=number
            ) from damage
        raise BackupNotFound("no backup holds all of this segment", path=self._repository.place, segment=number)


def archive_of(repository: BackupRepository, store_id: bytes, *, workers: int | None = None) -> Archive:
    """For ``store.retention.prune``: says that a backup holds all of a segment, after every byte of it was read."""
    return SegmentSource(repository, store_id, tempfile.gettempdir(), workers=workers).check


def background_archive(opened: Callable[[], BackupRepository], store_id: bytes) -> ArchiveOpener:
    """The archive of a store for what it gives up by itself: the repository is opened anew whenever it is asked."""

    def archive(look: Callable[[bytes], None]) -> Archive:
        repository = opened()
        source = SegmentSource(repository, store_id, tempfile.gettempdir(), workers=0)
        if source.empty:
            raise BackupNotFound(
                "the repository holds no backup of this store",
                path=repository.place,
                remedy="make one with 'holdfast backup create', or set 'backup_schedule'",
            )
        return lambda number, digest: source.check(number, digest, look)

    return archive


def originals_of(repository: BackupRepository, store_id: bytes, *, workers: int | None = None) -> Original:
    """For ``store.retention.refill``: gives segments out of backups, by a temporary file each."""

    source = SegmentSource(repository, store_id, tempfile.gettempdir(), workers=workers)

    @contextmanager
    def original(number: int, digest: bytes) -> Iterator[File]:
        with tempfile.TemporaryDirectory(prefix=_SCRATCH) as place:
            path = source.fetch(number, digest, whole=True, directory=Path(place))
            file = RealFileSystem().open(path, read_only=True)
            try:
                yield file
            finally:
                file.close()

    return original


def fetch_segments(
    repository: BackupRepository,
    name: str,
    numbers: Sequence[int],
    directory: str | os.PathLike[str],
    *,
    workers: int | None = None,
    fs: FileSystem | None = None,
) -> list[Path]:
    """These segments of the backup ``name`` lie in ``directory``, every byte checked; one without a seal as it was.

    Raises:
        InvalidInputError: the backup has no such segment; nothing was written. BackupDamaged: it is not whole.
    """
    form = repository.manifest(name)
    entries: list[SegmentFile] = []
    for number in numbers:
        entry = _entry(form, number)
        if entry is None:
            raise InvalidInputError(
                "the backup has no such segment",
                segment=number,
                first=form.segments[0].number,
                last=form.segments[-1].number,
            )
        entries.append(entry)
    place = path_of(directory, "the place for segments").absolute()
    files = fs or RealFileSystem()
    with repository.reading(name):
        return [fetch_segment(repository, form, entry, place, files, workers_of(workers)) for entry in entries]


def _entry(form: Manifest, number: int) -> SegmentFile | None:
    index = number - form.segments[0].number
    return form.segments[index] if 0 <= index < len(form.segments) else None


def fetch_segment(
    repository: BackupRepository, form: Manifest, entry: SegmentFile, directory: Path, fs: FileSystem, workers: int
) -> Path:
    """One segment is a file of ``directory``, written beside its place and published once it was found right."""
    make_directories(fs, directory)
    path = directory / segment_name(entry.number)
    with NewFile(fs, path) as file:
        _read_segment(repository, form, entry, path, workers, file.write)
        file.sync()
        file.publish()
    return path


def _read_segment(
    repository: BackupRepository,
    form: Manifest,
    entry: SegmentFile,
    path: Path,
    workers: int,
    *sinks: Callable[[bytes], None],
) -> None:
    """Every byte of the segment was checked, and given to ``sinks`` before that. ``path`` names it in errors."""
    before = _entry(form, entry.number - 1)
    identity = decode_store(form, place=repository.place)
    with pool_of(workers) as pool:
        whole = Whole(*sinks)
        pieces = PieceFile(path, entry.length, chunks_of(repository, entry, pool, workers), whole)
        exhaust(scan_segment(pieces, entry, identity, None if before is None else before.digest))
        pieces.finish()
        whole.check(entry, path.name)
