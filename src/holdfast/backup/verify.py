"""Checking a backup alone: no store is needed, and nothing that the storage says is believed.

Invariants:
    * Nothing of the backup is changed; a full verification leaves a mark, or takes a wrong one away.
    * A backup that verified in full restores: every byte was decoded, every frame and the chain of digests were checked
      with the salt of the identity in the manifest, and so was the tip. What only its views or its key tell is left to
      a restore: the root that the manifest names, and the tip of an encrypted store.
"""

from __future__ import annotations

import logging
import time
from hashlib import sha256
from pathlib import Path
from typing import Literal

import msgspec

from .. import events
from .._fs import File
from ..blocks.entries import decode_canonical
from ..errors import (
    BackupDamaged,
    CorruptionError,
    HoldfastError,
    OutOfSpace,
    ReadOnlyError,
    RepositoryLocked,
    UnsupportedFormat,
)
from ..journal.api import Frame, Kind
from ..journal.codec import decode_part
from ..journal.compacted import CompactedFile
from ..state.sealing import MORE_BYTES_MAX, named_files
from ..state.snapshot import MANIFEST_NAME
from ..state.snapshot_format import MANIFEST_BYTES_MAX
from ..store.identity import Identity
from .manifest import BaseFile, Manifest, SegmentFile, decode_store
from .pieces import PieceFile, Progress, Whole, chunks_of, file_name, pool_of, scan_segment, workers_of
from .repository import BackupRepository

__all__ = ["BackupCheck", "Level", "verify_backup"]

Level = Literal["quick", "full"]


class BackupCheck(msgspec.Struct, frozen=True):
    """What a verification found. ``problems`` are errors as plain JSON values, at most one for each file."""

    name: str
    level: Level
    digest: str
    files: int
    chunks: int
    frames: int
    raw_bytes: int
    problems: tuple[dict[str, object], ...]
    seconds: float

    @classmethod
    def unread(cls, name: str, level: Level, error: HoldfastError) -> BackupCheck:
        """That of a backup whose manifest cannot be read."""
        return cls(name, level, "", 0, 0, 0, 0, (error.as_dict(),), 0.0)

    @property
    def ok(self) -> bool:
        """True if nothing was wrong."""
        return not self.problems

    def as_dict(self) -> dict[str, object]:
        """As plain JSON values."""
        values = msgspec.structs.asdict(self)
        return {**values, "ok": self.ok, "problems": list(self.problems), "seconds": round(self.seconds, 3)}


def verify_backup(
    repository: BackupRepository,
    name: str,
    *,
    level: Level = "full",
    workers: int | None = None,
    progress: Progress | None = None,
    mark: bool = True,
) -> BackupCheck:
    """What is wrong with the backup ``name``, if anything.

    Args:
        level: ``quick``: the manifest, and that every chunk is there with the right length. ``full``: every byte.
        mark: note in the repository that the backup verified in full (or not); left out where it cannot be written.
        progress: called with (bytes checked, bytes in all); what it raises ends the run.
    Raises:
        BackupNotFound: there is none, or none any more. BackupDamaged: its manifest cannot be read.
    """
    started = time.monotonic()
    form, digest = repository.manifest_and_digest(name)
    problems: list[HoldfastError] = []
    count = workers_of(workers)
    with repository.reading(name):
        frames = _full(repository, form, problems, count, progress) if level == "full" else 0
        if level == "quick":
            _quick(repository, form, problems, progress)
    if problems:
        repository.check_there(name)
    seconds = time.monotonic() - started
    if mark and (level == "full" or problems):
        _leave_mark(repository, name, digest, good=not problems)
    found = tuple(problem.as_dict() for problem in problems)
    check = BackupCheck(
        name, level, digest, form.totals.files, form.totals.chunks, frames, form.totals.raw_bytes, found, seconds
    )
    _tell(repository, check, problems)
    return check


def _tell(repository: BackupRepository, check: BackupCheck, problems: list[HoldfastError]) -> None:
    if problems:
        first = problems[0]
        events.emit(
            "verification_failed",
            logging.ERROR,
            f"backup {check.name} in {repository.place} is damaged: {first}",
            path=repository.place,
            level=check.level,
            seconds=check.seconds,
            problems=len(problems),
            code=first.code,
            remedy=first.remedy,
        )
    else:
        events.emit(
            "verification_passed",
            logging.INFO,
            f"backup {check.name} in {repository.place} is right at level {check.level}",
            path=repository.place,
            level=check.level,
            seconds=check.seconds,
        )


def _leave_mark(repository: BackupRepository, name: str, digest: str, *, good: bool) -> None:
    try:
        with repository.lock():
            if good:
                repository.mark_verified(name, digest)
            elif repository.verified_us(name, digest) is not None:
                repository.unmark(name)
    except (OutOfSpace, ReadOnlyError, RepositoryLocked):
        return  # a hint only: storage that may not be written to can be verified all the same


def _quick(
    repository: BackupRepository, form: Manifest, problems: list[HoldfastError], progress: Progress | None
) -> None:
    done = 0
    for file in form.files():
        for ref in file.chunks:
            if not repository.has_chunk(ref):
                problems.append(
                    BackupDamaged(
                        "a chunk is missing or has a wrong length",
                        path=repository.place,
                        file=file_name(file),
                        chunk=ref.id,
                    )
                )
                break
        done += file.length
        if progress is not None:
            progress(done, form.totals.raw_bytes)


def _full(
    repository: BackupRepository,
    form: Manifest,
    problems: list[HoldfastError],
    workers: int,
    progress: Progress | None,
) -> int:
    """Number of frames that were checked."""
    done = frames = 0
    identity = decode_store(form, place=repository.place)
    previous: str | None = None
    tip: tuple[int, str] | None = None
    with pool_of(workers) as pool:
        for file in form.files():

            def sink(piece: bytes) -> None:
                nonlocal done
                done += len(piece)
                if progress is not None:
                    progress(done, form.totals.raw_bytes)

            before, switch = done, None
            whole = Whole(sink)
            pieces = PieceFile(Path(file_name(file)), file.length, chunks_of(repository, file, pool, workers), whole)
            try:
                if isinstance(file, SegmentFile):
                    for frame in scan_segment(pieces, file, identity, previous):
                        frames += 1
                        if any(part.kind == Kind.CANONICAL for part in frame.parts):
                            switch = frame
                else:
                    check_base(pieces, file)
                pieces.finish()
                whole.check(file, file_name(file))
                if switch is not None and isinstance(file, SegmentFile) and identity.encryption is None:
                    tip = _tip_after(switch, pieces, file, identity)
            except (CorruptionError, UnsupportedFormat) as error:
                error.context.setdefault("file", file_name(file))
                problems.append(error)
                done = before + file.length
            if isinstance(file, SegmentFile):
                previous = file.digest
    if not problems:
        _check_base_list(repository, form, problems)
        if tip is not None and form.tip is not None and tip != (form.tip.height, form.tip.hash):
            problems.append(
                BackupDamaged(
                    "the journal of the backup ends with another tip than the manifest says",
                    path=repository.place,
                    found=tip[0],
                    expected=form.tip.height,
                )
            )
    return frames


def _tip_after(frame: Frame, file: File, entry: SegmentFile, identity: Identity) -> tuple[int, str]:
    """Height and hash of the block to which ``frame``, of the segment ``entry``, switched."""
    if entry.raw_length:
        file = CompactedFile(file, salt=identity.salt)
    index = next(index for index, part in enumerate(frame.parts) if part.kind == Kind.CANONICAL)
    part = frame.parts[index]
    stored = file.pread(part.stored_bytes, part.offset)
    height, block = decode_canonical(decode_part(stored, part, segment=frame.segment, seq=frame.seq, index=index)).tip
    return height, block.hex()


def check_base(pieces: PieceFile, file: BaseFile) -> None:
    """A chunk of a snapshot ends with the SHA-256 of what stands before. Raises ``BackupDamaged``."""
    if file.path == MANIFEST_NAME:
        return
    state = sha256()
    stop = file.length - 32
    for offset in range(0, max(0, stop), 1 << 20):
        state.update(pieces.pread(min(1 << 20, stop - offset), offset))
    if stop < 0 or state.digest() != pieces.pread(32, stop):
        raise BackupDamaged("a file of the base is damaged", file=file_name(file))


def _check_base_list(repository: BackupRepository, form: Manifest, problems: list[HoldfastError]) -> None:
    """The base is all of the snapshot that its manifest names, and nothing else."""
    own = next((file for file in form.base if file.path == MANIFEST_NAME), None)
    if own is None:
        return
    data = b"".join(
        repository.get_chunk(ref, min(1 << 20, own.length - (index << 20))) for index, ref in enumerate(own.chunks)
    )
    try:
        if len(data) > MANIFEST_BYTES_MAX + MORE_BYTES_MAX:
            raise BackupDamaged("the manifest of the base is too long", found=len(data))
        named = {path for path, _ in named_files(data)}
        if named != {file.path for file in form.base} - {MANIFEST_NAME}:
            raise BackupDamaged("the files of the base are not those that its manifest names", path=repository.place)
    except HoldfastError as error:
        problems.append(error)
