"""Putting a compacted file in the place of a sealed segment (docs/FORMAT.md, section 4.1).

Invariants:
    * At any moment, after any crash, exactly one whole file has the name of the segment.
    * A file takes the place only after it was synced, read back from its place beside it, and found to give the same
      kept bytes; every frame, part and seal in it was checked against the digests of the journal once more.
    * Nothing of the journal is changed but the one file: readers that have the old one open go on with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from .. import _failpoints
from .._fs import File, FileSystem, NewFile
from ..errors import CorruptionError, InvalidInputError
from ..limits import COMPACTED_EXTENT_BYTES
from .compacted import CompactedFile, Hole, Packer, kept_ranges, open_segment
from .scan import verify_sealed_content
from .segment import SEGMENT_HEADER_BYTES, Segment, decode_header

__all__ = ["Compacted", "Step", "compact_segment", "compacted_bytes", "no_step"]

Step = Callable[[int], None]
"""Told how many raw bytes more were handled (each is handled twice); what it raises ends the work, nothing changed."""

_SAMPLES: Final = 4
_SHARE_MIN: Final = 16
"""A file that saves less than this part of the raw bytes is not worth to be read through."""


@dataclass(frozen=True, slots=True)
class Compacted:
    """What became of one segment. ``published``: its file is the new one; else that would not have been smaller."""

    number: int
    generation: int
    raw_bytes: int
    bytes_before: int
    bytes_after: int
    pruned_bytes: int
    published: bool


def no_step(count: int) -> None:
    """Nobody wants to know."""


def compact_segment(
    fs: FileSystem,
    segment: Segment,
    *,
    store_id: bytes,
    salt: bytes,
    holes: Sequence[Hole] = (),
    floor: int = 0,
    original: File | None = None,
    step: Step = no_step,
) -> Compacted:
    """The file of the sealed ``segment`` is a compacted one without the bytes in ``holes``, durably.

    Args:
        holes: whole parts, in order, not touching each other; all that are absent now, and more.
        floor: goes with the holes: blocks below this height may miss bodies and extras.
        original: the same sealed segment from elsewhere, to fill holes of the present file from.
    Raises:
        CorruptionError: a byte of the segment is not as it was written; nothing was changed.
        OutOfSpace, EngineError: the new file could not be made; nothing was changed.
    """
    present = open_segment(fs, segment.path, salt=salt)
    try:
        old = present if isinstance(present, CompactedFile) else None
        source = present if original is None else original
        before = old.stored_bytes if old is not None else present.size()
        generation = 1 if old is None else old.generation + 1
        if source.size() != present.size():
            raise CorruptionError("this is another segment", path=source.path, found=source.size())
        with NewFile(fs, segment.path) as file:
            packer = Packer(
                number=segment.number, generation=generation, store_id=store_id, salt=salt, raw_bytes=source.size()
            )
            digest = _pack(source, file, packer, holes, step)
            if old is not None and digest != old.raw_sha256:
                raise CorruptionError("this is another segment", path=source.path, expected=old.raw_sha256)
            file.write(packer.finish(holes=holes, floor=floor if holes else 0, raw_sha256=digest))
            file.sync()
            _failpoints.hit("journal.compact.written")
            after = _check(fs, file.temporary, source, segment, salt, holes, step)
            worth = bool(holes) or original is not None or old is not None
            worth = worth or after <= before - before // _SHARE_MIN
            if worth:
                _failpoints.hit("journal.compact.before_publish")
                file.publish()
                _failpoints.hit("journal.compact.published")
        pruned = sum(hole.stop - hole.start for hole in holes)
        return Compacted(segment.number, generation, source.size(), before, after, pruned, worth)
    finally:
        present.close()


def _pack(source: File, file: NewFile, packer: Packer, holes: Sequence[Hole], step: Step) -> bytes:
    """SHA-256 of all raw bytes; the kept ones were given to ``packer``, and what it made is in ``file``."""
    known = source.raw_sha256 if isinstance(source, CompactedFile) and source.floor else None
    state = sha256()
    size = source.size()
    file.write(packer.head())
    for start, stop, wanted in _ranges(size, holes):
        if not wanted and known is not None:
            continue  # it may be absent, and its digest is known
        for offset in range(start, stop, COMPACTED_EXTENT_BYTES):
            data = source.pread(min(COMPACTED_EXTENT_BYTES, stop - offset), offset)
            if len(data) != min(COMPACTED_EXTENT_BYTES, stop - offset):
                raise CorruptionError("a segment became shorter while it was read", path=source.path, offset=offset)
            state.update(data)
            if wanted:
                for piece in packer.add(data):
                    file.write(piece)
            step(len(data))
    return state.digest() if known is None else known


def _ranges(size: int, holes: Sequence[Hole]) -> list[tuple[int, int, bool]]:
    """Every raw byte in order: start, stop, and whether it is kept."""
    found = [(start, stop, True) for start, stop in kept_ranges(size, holes)]
    return sorted([*found, *((hole.start, hole.stop, False) for hole in holes)])


def _check(
    fs: FileSystem, path: Path, source: File, segment: Segment, salt: bytes, holes: Sequence[Hole], step: Step
) -> int:
    """Length of the file at ``path``, which gives the kept bytes of ``source``, a sound segment."""
    with_name = fs.open(path, read_only=True)
    try:
        made = CompactedFile(with_name, salt=salt)
        head = made.pread(SEGMENT_HEADER_BYTES, 0)
        if decode_header(head, store_id=made.store_id, salt=salt, path=segment.path) != segment.header:
            raise CorruptionError("the header of a segment is damaged", path=segment.path, offset=0)
        if list(made.holes) != list(holes):
            raise InvalidInputError("the holes of a segment are whole parts that do not touch", segment=segment.number)
        for start, stop in kept_ranges(source.size(), holes):
            for offset in range(start, stop, COMPACTED_EXTENT_BYTES):
                count = min(COMPACTED_EXTENT_BYTES, stop - offset)
                if made.pread(count, offset) != source.pread(count, offset):
                    raise CorruptionError("a compacted segment gives other bytes", path=path, offset=offset)
                step(count)
        verify_sealed_content(made, segment, salt=salt)
        return made.stored_bytes
    finally:
        with_name.close()


def compacted_bytes(file: File, holes: Sequence[Hole] = ()) -> int:
    """About how long the compacted file of these raw bytes without ``holes`` would be; some were compressed."""
    packer = Packer(number=1, generation=1, store_id=bytes(16), salt=b"", raw_bytes=file.size())
    kept = list(kept_ranges(file.size(), holes))
    kept_bytes = sum(stop - start for start, stop in kept)
    extents = -(-kept_bytes // COMPACTED_EXTENT_BYTES)
    taken = stored = 0
    for index in sorted({extents * number // _SAMPLES for number in range(_SAMPLES)}):
        data = _kept_extent(file, kept, index)
        taken += len(data)
        stored += len(packer.compress(data)[0])
    table = packer.finish(holes=holes, floor=1, raw_sha256=bytes(32))
    return len(packer.head()) + stored * kept_bytes // max(taken, 1) + len(table) + 40 * extents


def _kept_extent(file: File, kept: Sequence[tuple[int, int]], index: int) -> bytes:
    """The bytes of extent ``index`` of those that are kept."""
    first, last = index * COMPACTED_EXTENT_BYTES, (index + 1) * COMPACTED_EXTENT_BYTES
    pieces: list[bytes] = []
    before = 0
    for start, stop in kept:
        low, high = max(first, before), min(last, before + stop - start)
        if low < high:
            pieces.append(file.pread(high - low, start + low - before))
        before += stop - start
        if before >= last:
            break
    return b"".join(pieces)
