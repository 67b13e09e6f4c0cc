"""Single segments out of the backups of a store, for a journal that lost some.

Invariants:
    * A file is published only after every byte of it was checked against the end digest that its journal expects.
    * A damaged backup is passed over for an older one; nothing but the directory that was given is written.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .._fs import FileSystem, NewFile, RealFileSystem, path_of
from ..errors import BackupDamaged, BackupNotFound, CorruptionError, InvalidInputError
from ..journal.segment import segment_name
from ..store.opening import make_directories
from .manifest import Manifest, SegmentFile, decode_store
from .pieces import PieceFile, Whole, chunks_of, exhaust, pool_of, scan_segment, workers_of
from .repository import BackupRepository

__all__ = ["SegmentSource", "fetch_segments"]


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

    def fetch(self, number: int, digest: bytes) -> Path:
        """The sealed segment ``number`` whose last frame has this digest lies in the directory, every byte checked.

        Raises:
            BackupNotFound: no backup holds it. BackupDamaged: every backup that holds it is damaged.
        """
        damage: CorruptionError | None = None
        for form in self._backups:
            entry = _entry(form, number)
            if entry is None or not entry.sealed or entry.digest != digest.hex():
                continue
            try:
                return fetch_segment(self._repository, form, entry, self._directory, self._fs, self._workers)
            except CorruptionError as error:
                damage = damage or error
        if damage is not None:
            raise BackupDamaged(
                f"no backup holds this segment unharmed: {damage.message}", path=self._repository.place, segment=number
            ) from damage
        raise BackupNotFound("no backup holds this segment", path=self._repository.place, segment=number)


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
    before = _entry(form, entry.number - 1)
    identity = decode_store(form, place=repository.place)
    with pool_of(workers) as pool, NewFile(fs, path) as file:
        whole = Whole(file.write)
        pieces = PieceFile(path, entry.length, chunks_of(repository, entry, pool, workers), whole)
        exhaust(scan_segment(pieces, entry, identity, None if before is None else before.digest))
        pieces.finish()
        whole.check(entry, path.name)
        file.sync()
        file.publish()
    return path
