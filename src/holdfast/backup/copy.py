"""A backup goes to another repository: another disk, another key.

Invariants:
    * Each chunk was decoded and has its id before it is written; the manifest is written last.
    * The source is only read. Chunks that the other repository has are not written again.
"""

from __future__ import annotations

from functools import partial

import msgspec

from ..errors import InvalidInputError
from .manifest import BaseFile, ChunkRef, Manifest, SegmentFile, totals_of
from .pieces import Ahead, Progress, Throttle, Whole, chunks_of, file_name, pool_of, workers_of
from .repository import BackupRepository, StoredChunk

__all__ = ["CopyReport", "copy_backup"]


class CopyReport(msgspec.Struct, frozen=True):
    """A backup that was copied; ``written_bytes`` of new chunks."""

    name: str
    digest: str
    raw_bytes: int
    written_bytes: int

    def as_dict(self) -> dict[str, object]:
        """As plain JSON values."""
        return msgspec.structs.asdict(self)


def copy_backup(
    source: BackupRepository,
    name: str,
    target: BackupRepository,
    *,
    bytes_per_second: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CopyReport:
    """The backup ``name`` is in ``target``, too, durably, under the same name.

    Raises:
        BackupDamaged: it is not whole; the target has no such backup then. BackupNotFound: there is none, or none any
        more. InvalidInputError: both are one repository.
    """
    if source.id == target.id:
        raise InvalidInputError("the source and the target are the same repository", path=target.place)
    form = source.manifest(name)
    throttle = Throttle(bytes_per_second)
    count = workers_of(workers)
    done = written = 0

    def moved(file: SegmentFile | BaseFile) -> tuple[ChunkRef, ...]:
        nonlocal done, written
        chunks: list[ChunkRef] = []
        whole = Whole()
        ahead: Ahead[StoredChunk] = Ahead(pool, count)

        def take(stored: StoredChunk) -> None:
            nonlocal written
            chunks.append(stored.ref)
            written += stored.written

        load = chunks_of(source, file, pool, count)
        for index in range(len(file.chunks)):
            piece = load(index)
            throttle.take(len(piece))
            whole(piece)
            for stored in ahead.add(partial(target.put_chunk, piece)):
                take(stored)
            done += len(piece)
            if progress is not None:
                progress(done, form.totals.raw_bytes)
        for stored in ahead.rest():
            take(stored)
        whole.check(file, file_name(file))
        return tuple(chunks)

    with target.lock(), pool_of(count) as pool, source.reading(name):
        base = tuple(msgspec.structs.replace(file, chunks=moved(file)) for file in form.base)
        segments = tuple(msgspec.structs.replace(file, chunks=moved(file)) for file in form.segments)
        copied: Manifest = msgspec.structs.replace(
            form, repository=target.id, base=base, segments=segments, totals=totals_of(segments, base)
        )
        digest = target.put_manifest(copied)
    return CopyReport(name, digest, form.totals.raw_bytes, written)
