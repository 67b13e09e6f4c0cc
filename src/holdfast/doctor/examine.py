"""What of a store's files is whole: judged file by file, without changing a byte.

Invariants:
    * Nothing is written, and nothing is believed that does not prove itself: frames by their digests, the identity in
      the first frame by the salt in it, a watermark by that salt.
    * A segment is judged alone. Whether it links to its neighbours is a matter of the plan.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from .._fs import File, FileSystem
from ..errors import CorruptionError, HoldfastError
from ..journal.api import DurableMark, Frame
from ..journal.compacted import open_segment
from ..journal.recovery import JOURNAL_DIRECTORY
from ..journal.scan import scan_frames
from ..journal.segment import (
    SEAL_BYTES,
    SEGMENT_HEADER_BYTES,
    Segment,
    decode_header,
    decode_seal,
    segment_name,
    segment_number,
)
from ..recovery.resting import read_marks
from ..store.first_frame import identity_in_journal
from ..store.identity import IDENTITY_BYTES_MAX, IDENTITY_NAME, Identity, decode_identity

__all__ = [
    "FoundIdentity",
    "SegmentState",
    "claimed_store_id",
    "examine_file",
    "examine_identity",
    "examine_segments",
    "fits_journal",
    "read_watermark",
    "segment_path",
]

State = Literal["sealed", "open", "damaged", "missing", "unused"]
Told = Callable[[int], None]
"""Called with a number of bytes that were just looked at."""

_STORE_ID = slice(16, 32)


class SegmentState(msgspec.Struct, frozen=True):
    """A segment file. ``sealed``: whole. ``open``: frames up to ``frames_end``, and perhaps more that is no frame.

    ``last_seq`` and ``digest`` are those of the last frame that is whole and follows from the ones before it in the
    file; ``previous`` is what the header says of the segment before. Zeros where there is no valid header.
    """

    number: int
    state: State
    first_seq: int = 0
    last_seq: int = 0
    digest: bytes = bytes(32)
    previous: bytes = bytes(32)
    frames_end: int = 0
    bytes: int = 0
    problem: str = ""

    @property
    def begun(self) -> bool:
        """True if there is a valid header."""
        return self.first_seq > 0


class FoundIdentity(NamedTuple):
    """The identity of a store, where it was found, and what is wrong with ``holdfast.toml`` if anything is."""

    identity: Identity
    data: bytes
    source: str
    problem: HoldfastError | None


def segment_path(root: Path, number: int) -> Path:
    """Where segment ``number`` of the store at ``root`` lies."""
    return root / JOURNAL_DIRECTORY / segment_name(number)


# -- identity -------------------------------------------------------------------------------------------------------


def examine_identity(fs: FileSystem, root: Path) -> FoundIdentity | HoldfastError:
    """Who the store is, by its file or by its first frame; else what is wrong with the file.

    The first frame decides where both say different things and the watermark verifies with its salt: then the file is
    damaged. Where the watermark fits neither, nobody knows which of them is of this store.
    """
    path = root / IDENTITY_NAME
    inner = identity_in_journal(fs, root)
    try:
        data = fs.read_bytes(path, limit=IDENTITY_BYTES_MAX)
        identity = decode_identity(data, path=path)
        if inner is None or inner == data:
            return FoundIdentity(identity, data, IDENTITY_NAME, None)
        problem: HoldfastError = CorruptionError(
            f"{IDENTITY_NAME} differs from the first frame of the journal", path=path
        )
    except CorruptionError as error:
        problem = error
    if inner is None:
        return problem
    found = decode_identity(inner)
    try:
        read_marks(fs, root, found.salt)
    except CorruptionError:
        return problem
    return FoundIdentity(found, inner, "the first frame of the journal", problem)


def claimed_store_id(fs: FileSystem, root: Path) -> bytes | None:
    """The id of the store that the first segment with something in it says it belongs to. Nothing proves it."""
    for name in fs.names(root / JOURNAL_DIRECTORY):
        if segment_number(name) is None:
            continue
        file = fs.open(root / JOURNAL_DIRECTORY / name, read_only=True)
        try:
            found = file.pread(SEGMENT_HEADER_BYTES, 0)[_STORE_ID]
        finally:
            file.close()
        if len(found) == 16 and any(found):
            return found
    return None


def fits_journal(fs: FileSystem, root: Path, identity: Identity) -> bool:
    """True if the header of a segment verifies with this identity."""
    for name in fs.names(root / JOURNAL_DIRECTORY):
        if segment_number(name) is None:
            continue
        path = root / JOURNAL_DIRECTORY / name
        try:
            file = open_segment(fs, path, salt=identity.salt)
        except HoldfastError:
            continue
        try:
            data = file.pread(SEGMENT_HEADER_BYTES, 0)
            if decode_header(data, store_id=identity.store_id, salt=identity.salt, path=path) is not None:
                return True
        except HoldfastError:
            continue
        finally:
            file.close()
    return False


def read_watermark(fs: FileSystem, root: Path, salt: bytes) -> DurableMark | HoldfastError:
    """The newest watermark, or why there is none."""
    try:
        return read_marks(fs, root, salt)[0]
    except CorruptionError as error:
        return error


# -- segments -------------------------------------------------------------------------------------------------------


def examine_segments(
    fs: FileSystem, root: Path, identity: Identity, last: int, told: Told | None = None
) -> dict[int, SegmentState]:
    """Every segment from 1 to the highest one that is there or named ``last``. Cost: every byte of the journal."""
    numbers = [found for name in fs.names(root / JOURNAL_DIRECTORY) if (found := segment_number(name)) is not None]
    states: dict[int, SegmentState] = {}
    for number in range(1, max([last, *numbers]) + 1):
        if number not in numbers:
            states[number] = SegmentState(number, "missing", problem="the file is missing")
            continue
        states[number] = _examine(fs, segment_path(root, number), number, identity)
        if told is not None:
            told(states[number].bytes)
    return states


def _examine(fs: FileSystem, path: Path, number: int, identity: Identity) -> SegmentState:
    try:
        file = open_segment(fs, path, salt=identity.salt)
    except CorruptionError as error:
        return SegmentState(number, "damaged", bytes=1, problem=error.message)
    try:
        return examine_file(file, number, identity)
    finally:
        file.close()


def examine_file(
    file: File, number: int, identity: Identity, each: Callable[[Frame], None] | None = None, stop: int | None = None
) -> SegmentState:
    """The segment in ``file``, read from its start; ``each`` gets every frame, ``stop`` is where frames end at most."""
    size = file.size()
    try:
        data = file.pread(SEGMENT_HEADER_BYTES, 0)
        header = decode_header(data, store_id=identity.store_id, salt=identity.salt, path=file.path)
    except CorruptionError as error:
        return SegmentState(number, "damaged", bytes=size, problem=error.message)
    if header is None or header.number != number:
        state: State = "damaged" if data.strip(b"\0") else "unused"
        return SegmentState(number, state, bytes=size, problem="it has no valid header")
    segment = Segment(file.path, header)
    problem = ""
    end = size if stop is None else min(size, stop)
    seal = decode_seal(_last_bytes(file, size), header=header, file_bytes=size) if stop is None else None
    try:
        for frame in scan_frames(file, segment, salt=identity.salt, stop=end if seal is None else seal.table_offset):
            segment.add(frame.offset, frame.offset + frame.length, frame.digest)
            if each is not None:
                each(frame)
    except CorruptionError as error:
        problem = error.message
    whole = segment.seal_bytes(identity.salt)
    sealed = (
        seal is not None
        and segment.frames_end + len(whole) == size
        and file.pread(len(whole), segment.frames_end) == whole
    )
    return SegmentState(
        number,
        "sealed" if sealed else "open",
        header.first_seq,
        segment.last_seq,
        segment.digest,
        header.previous,
        segment.frames_end,
        size,
        "" if sealed else problem or "it has no valid seal",
    )


def _last_bytes(file: File, size: int) -> bytes:
    return file.pread(SEAL_BYTES, max(0, size - SEAL_BYTES))
