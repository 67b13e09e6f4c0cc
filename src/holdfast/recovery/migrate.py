"""``migrate``: a store of an older format is written anew in this version's format; then the new one takes its place.

A step only reads an older format: its identity and its frames. All else is the same for every step.

Invariants:
    * Until ``migrating/READY`` is durable the old store is as it was, and removing ``migrating/`` undoes everything.
    * From then on the migration is only ever finished: old entries move to ``before-format-N/``, new ones take their
      places, the identity last. A store in between is refused by ``open`` as one of the older format.
    * Killed at any moment, the same call goes on. What was converted is verified before ``READY`` is written.
    * A newer format is refused before anything is touched. Views are not migrated: the next open makes them.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

import msgspec

from .._fs import FileSystem, RealFileSystem
from .._keys import given_key
from ..config import CONFIG_FILE_NAMES
from ..errors import CorruptionError, FormatTooOld, KeyRejected, StoreNotFound
from ..journal.api import Kind, Part
from ..journal.journal import Journal, JournalOptions
from ..journal.recovery import JOURNAL_DIRECTORY
from ..store.identity import FORMAT, IDENTITY_BYTES_MAX, IDENTITY_NAME, Identity, encode_identity, stored_format
from ..store.opening import directory_state, read_identity
from .verify import verify_store

__all__ = ["STEPS", "MigrationReport", "OldFrame", "Step", "migrate_store"]

STAGING: Final = "migrating"
READY: Final = "READY"
WATERMARK: Final = "watermark"
_STAYS: Final = frozenset({"LOCK", STAGING, IDENTITY_NAME, "quarantine", "backups", "checkpoints", *CONFIG_FILE_NAMES})
_SYNC_FRAMES: Final = 256


class OldFrame(msgspec.Struct, frozen=True):
    """A frame as an older format holds it: its parts in the form of this version, and when it was written."""

    parts: list[Part]
    time_us: int


class Step(Protocol):
    """Reads one older format. Both methods raise ``CorruptionError`` for what is damaged, and change nothing."""

    def identity(self, fs: FileSystem, root: Path) -> Identity:
        """The identity of the store; its salt is replaced."""

    def frames(self, fs: FileSystem, root: Path, start: int) -> Iterator[OldFrame]:
        """All frames from number ``start`` on, counted from 1, in order. The first one holds base and identity."""


STEPS: Mapping[int, Step] = MappingProxyType({})
"""Formats that can be migrated. There is none yet: format 1 is the first that was released."""


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """What a migration did, or would do."""

    path: str
    from_format: int
    to_format: int
    frames: int
    kept: str | None
    """Directory with what the store was before; ``None`` if nothing had to be done."""
    dry_run: bool
    seconds: float

    def as_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        return asdict(self)


def migrate_store(
    path: str | os.PathLike[str],
    *,
    dry_run: bool = False,
    steps: Mapping[int, Step] = STEPS,
    progress: Callable[[int, int], None] | None = None,
    fs: FileSystem | None = None,
) -> MigrationReport:
    """The store at ``path`` is of the format of this version, with the same frames; what it was lies beside it.

    Args:
        path: the directory of a store that nobody has open.
        dry_run: the old store is only read, to its end.
        steps: how older formats are read, by their number.
        progress: called with (frames done, 0); what it raises ends it, the next call goes on.
    Raises:
        FormatTooOld: no step reads this format.
        FormatTooNew: a newer version wrote the store.
        CorruptionError: the old store, or what was made of it, is damaged; the old store is as it was.
        StoreLocked: somebody has it open. KeyRejected: a key is in use, and what was made would be in plain text.
    Cost: every byte of the journal read once and written once.
    """
    fs, root = fs or RealFileSystem(), Path(path)
    began = time.monotonic()
    if directory_state(fs, root) != "store":
        raise StoreNotFound("there is no store here", path=root)
    if _number(fs, root) < FORMAT and given_key() is not None:
        raise KeyRejected("a key was given, but no store of an older format is encrypted", path=root)
    lock = fs.lock(root / "LOCK", f"{os.getpid()} {socket.gethostname()}")
    try:
        number = _number(fs, root)
        kept = root / f"before-format-{number}"
        report = MigrationReport(str(root), number, FORMAT, 0, None, dry_run, 0.0)
        if number < FORMAT:
            step = steps.get(number)
            if step is None:
                raise FormatTooOld("no way is known to read this format", found=number, expected=FORMAT, path=root)
            frames = _migrate(fs, root, step, kept, dry_run, progress or _nobody)
            report = replace(report, frames=frames, kept=str(kept))
        elif not dry_run:
            _clean(fs, root)
    finally:
        lock.release()
    return replace(report, seconds=time.monotonic() - began)


def _number(fs: FileSystem, root: Path) -> int:
    path = root / IDENTITY_NAME
    return stored_format(fs.read_bytes(path, limit=IDENTITY_BYTES_MAX), path=path)


def _nobody(_done: int, _total: int) -> None:
    """Nobody wants to know."""


def _migrate(
    fs: FileSystem, root: Path, step: Step, kept: Path, dry_run: bool, progress: Callable[[int, int], None]
) -> int:
    staging = root / STAGING
    if dry_run:
        count = 0
        for count, _frame in enumerate(step.frames(fs, root, 1), 1):
            progress(count, 0)
        return count
    if not fs.exists(staging / READY):
        frames = _convert(fs, root, staging, step, progress)
        _verify(fs, staging, frames)
        fs.write_atomic(staging / READY, str(frames).encode())
    frames = int(fs.read_bytes(staging / READY, limit=64))
    _publish(fs, root, staging, kept)
    return frames


def _convert(fs: FileSystem, root: Path, staging: Path, step: Step, progress: Callable[[int, int], None]) -> int:
    """``staging`` holds a closed journal with all frames of the old store; their number."""
    fs.make_directory(staging)
    options = JournalOptions(background=False)
    if fs.exists(staging / IDENTITY_NAME):
        identity = read_identity(fs, staging)
        journal, _ = Journal.open(fs, staging, store_id=identity.store_id, salt=identity.salt, options=options)
    else:
        for name in fs.names(staging / JOURNAL_DIRECTORY) if fs.exists(staging / JOURNAL_DIRECTORY) else []:
            fs.remove(staging / JOURNAL_DIRECTORY / name)
        identity = replace(step.identity(fs, root), salt=secrets.token_bytes(32))
        data = encode_identity(identity)
        first = next(step.frames(fs, root, 1), None)
        if first is None:
            raise CorruptionError("the old store has no first frame", path=root)
        parts = [Part(Kind.IDENTITY, data, True) if part.kind == Kind.IDENTITY else part for part in first.parts]
        journal = Journal.create(
            fs, staging, store_id=identity.store_id, salt=identity.salt, first_parts=parts, options=options
        )
        fs.write_atomic(staging / IDENTITY_NAME, data)
    clean = False
    try:
        for frame in step.frames(fs, root, journal.appended_seq + 1):
            seq = journal.append(frame.parts, time_us=frame.time_us)
            if seq % _SYNC_FRAMES == 0:
                journal.sync()
                progress(seq, 0)
        journal.sync()
        clean = True
        return journal.appended_seq
    finally:
        journal.close(clean=clean)


def _verify(fs: FileSystem, staging: Path, frames: int) -> None:
    report = verify_store(staging, level="links", fs=fs)
    if not report.ok:
        problem = report.problems[0]
        raise CorruptionError(f"what the migration wrote is damaged: {problem.message}", path=staging, frames=frames)


def _publish(fs: FileSystem, root: Path, staging: Path, kept: Path) -> None:
    new = [name for name in (JOURNAL_DIRECTORY, WATERMARK) if fs.exists(staging / name)]
    moved = {JOURNAL_DIRECTORY, WATERMARK} - set(new)
    fs.make_directory(kept)
    for name in sorted(set(fs.names(root)) - _STAYS - moved - {kept.name}):
        fs.rename(root / name, kept / name)
    if not fs.exists(kept / IDENTITY_NAME):
        fs.write_atomic(kept / IDENTITY_NAME, fs.read_bytes(root / IDENTITY_NAME, limit=IDENTITY_BYTES_MAX))
    fs.sync_directory(kept)
    fs.sync_directory(root)
    for name in new:
        fs.rename(staging / name, root / name)
    fs.sync_directory(root)
    fs.rename(staging / IDENTITY_NAME, root / IDENTITY_NAME)
    fs.sync_directory(root)
    _clean(fs, root)


def _clean(fs: FileSystem, root: Path) -> None:
    """Nothing is left of a migration that ended."""
    if fs.exists(root / STAGING):
        fs.remove_tree(root / STAGING)
        fs.sync_directory(root)
