"""A plan is executed, so that a store is what it was before or what the plan makes of it (docs/FORMAT.md, section 12).

Invariants:
    * New files are complete, durable and checked in ``repair/new/`` before anything else is changed.
    * ``repair/plan.json`` then says what is to be done. It is begun once ``holdfast.toml`` is not there any more: no
      open takes the store in between, and ``resume`` only ever finishes it. The identity comes back last.
    * What a new file replaces lies in ``quarantine/`` first, durably. Nothing is deleted but ``repair/`` itself.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec

from .. import events
from .._failpoints import hit
from .._fs import FileSystem, NewFile
from .._json import check_depth
from ..config import Settings
from ..consensus.safety import SAFETY_KINDS, SafetyBook
from ..errors import CorruptionError, OutOfSpace
from ..journal.api import Kind, Part
from ..journal.journal import Journal, JournalOptions
from ..journal.recovery import JOURNAL_DIRECTORY
from ..journal.segment import segment_number
from ..journal.watermark import WATERMARK_NAME, Watermark
from ..state.snapshot import CHUNKS_NAME, MANIFEST_NAME
from ..store.base import BASE_NAME
from ..store.generations import Generations
from ..store.identity import IDENTITY_BYTES_MAX, IDENTITY_NAME, Identity, decode_identity
from ..store.opening import REPAIR_PLAN, make_directories
from ..store.snapshots import take_in
from ..store.unlocking import unlock
from .diagnose import Case
from .plan import Work
from .report import REPAIR_NAME, Plan, RepairReport

__all__ = ["begun", "execute", "lock_of", "resume"]

QUARANTINE_NAME = "quarantine"
_NEW, _PLAN = "new", REPAIR_PLAN.name
_PLAN_BYTES_MAX = 256 * 1024 * 1024
_STEP_BYTES = 1 << 20

_Hex = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{2})*$", max_length=2 * IDENTITY_BYTES_MAX)]
_Label = Annotated[str, msgspec.Meta(pattern="^repair-[1-9][0-9]{0,8}$")]
_Name = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(watermark|views/[1-9][0-9]{0,9}/data|(journal|base|base/chunks|views|tree)/[0-9A-Za-z-][0-9A-Za-z.-]*)$",
        max_length=200,
    ),
]
Told = Callable[[int, int], None]
"""(bytes done, bytes in all)."""


class Marker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a repair that was begun has to finish."""

    label: _Label
    identity: _Hex
    had_identity: bool
    away: tuple[_Name, ...]
    places: tuple[_Name, ...]
    fence: _Hex
    plan: Plan
    format: int = 1
    kind: str = "holdfast-repair"


def lock_of(fs: FileSystem, root: Path) -> Callable[[], None]:
    """The lock of the store is held; the answer releases it. Raises ``StoreLocked``."""
    return fs.lock(root / "LOCK", f"{os.getpid()} {socket.gethostname()}").release


# -- making ready ---------------------------------------------------------------------------------------------------


def execute(case: Case, work: Work, settings: Settings, *, progress: Told | None = None) -> RepairReport:
    """``work`` is done. The lock is held. Killed at any moment, ``resume`` finishes it, or the store is as it was.

    Raises:
        OutOfSpace: there is no room for the new files; the store is as it was.
        KeyRequired, KeyRejected: the store is encrypted and will be fenced; it is as it was.
        CorruptionError: what a backup or checkpoint gave is not right after all; the store is as it was.
    """
    started = time.monotonic()
    fs, root = case.fs, case.root
    place = root / REPAIR_NAME
    fenced = work.plan.fenced and work.checkpoint is None
    if fenced:
        unlock(decode_identity(work.identity), None, root)
    fs.remove_tree(place)
    free = fs.space(root).free
    if free < work.plan.write_bytes:
        raise OutOfSpace(
            "there is no room for the new files, and none was written",
            path=root,
            needed=work.plan.write_bytes,
            free=free,
            remedy="free some space and run the same command again; keep quarantine/",
        )
    fs.make_directory(place)
    if work.checkpoint is None:
        _stage(case, work, place / _NEW, progress)
        names, identity = [*work.places], work.identity
    else:
        identity = _stage_store(case, work.checkpoint, settings, place / _NEW, progress)
        names = _files_of_store(fs, place / _NEW)
    if work.mark is not None:
        Watermark.create(fs, place / _NEW, salt=decode_identity(identity).salt, first=work.mark).close()
        names.append(WATERMARK_NAME)
    marker = Marker(
        label=_new_label(fs, root),
        identity=identity.hex(),
        had_identity=fs.exists(root / IDENTITY_NAME),
        away=tuple(name for name in work.away if name != IDENTITY_NAME),
        places=tuple(names),
        fence=secrets.token_hex(32) if fenced else "",
        plan=work.plan,
    )
    hit("doctor.repair.staged")
    data = msgspec.json.encode(marker, order="sorted")
    _decoded(data, place / _PLAN)  # what could not be finished is not begun
    fs.write_atomic(place / _PLAN, data)
    _finish(fs, root, marker)
    return RepairReport(str(root), work.plan, f"{QUARANTINE_NAME}/{marker.label}", time.monotonic() - started)


def _stage(case: Case, work: Work, new: Path, progress: Told | None) -> None:
    fs = case.fs
    fs.make_directory(new)
    done, total = 0, work.plan.write_bytes
    for name, place in work.places.items():
        _make_parents(fs, new, name)
        source = place.make()
        try:
            with NewFile(fs, new / name) as file:
                for offset in range(0, source.size(), _STEP_BYTES):
                    data = source.pread(min(_STEP_BYTES, source.size() - offset), offset)
                    file.write(data)
                    done += len(data)
                    if progress is not None:
                        progress(done, total)
                file.sync()
                file.publish()
        finally:
            source.close()
        written = fs.open(new / name, read_only=True)
        try:
            place.check(written)
        finally:
            written.close()


def _make_parents(fs: FileSystem, root: Path, name: str) -> None:
    for parent in reversed(Path(name).parents[:-1]):
        fs.make_directory(root / parent)


def _stage_store(case: Case, name: str, settings: Settings, new: Path, progress: Told | None) -> bytes:
    """A store on the checkpoint is at ``new``, closed; its identity."""
    assert case.checkpoints is not None
    reader = case.checkpoints.reader(name)
    reader.trust_own()
    engine = case.views.engine or Generations(case.fs, case.root).newest_engine() or settings.engine
    make_directories(case.fs, new)
    take_in(reader, new, engine, chain=None, settings=settings, workers=None, progress=progress, fs=case.fs)
    return case.fs.read_bytes(new / IDENTITY_NAME, limit=IDENTITY_BYTES_MAX)


def _files_of_store(fs: FileSystem, new: Path) -> list[str]:
    """The truth of the store at ``new``: its views are made again in their place."""
    segments = [name for name in fs.names(new / JOURNAL_DIRECTORY) if segment_number(name) is not None]
    chunks = [name for name in fs.names(new / BASE_NAME / CHUNKS_NAME) if not name.endswith(".tmp")]
    return [
        *(f"{JOURNAL_DIRECTORY}/{name}" for name in segments),
        *(f"{BASE_NAME}/{CHUNKS_NAME}/{name}" for name in chunks),
        f"{BASE_NAME}/{MANIFEST_NAME}",
        WATERMARK_NAME,
    ]


def _new_label(fs: FileSystem, root: Path) -> str:
    taken = [name[7:] for name in fs.names(root / QUARANTINE_NAME) if name.startswith("repair-")]
    return f"repair-{max((int(name) for name in taken if name.isdigit()), default=0) + 1}"


# -- finishing ------------------------------------------------------------------------------------------------------


def resume(fs: FileSystem, root: Path) -> RepairReport | None:
    """A repair that was begun is finished; one that was not is forgotten. ``None`` if there is nothing to tell.

    Raises:
        StoreLocked: somebody else is at it.
        CorruptionError: its plan is damaged; nothing was touched.
    """
    place = root / REPAIR_NAME
    if not fs.exists(place):
        return None
    started = time.monotonic()
    release = lock_of(fs, root)
    try:
        marker = _read_marker(fs, place)
        if marker is None or not _was_begun(fs, root, marker):
            fs.remove_tree(place)
            return None
        _finish(fs, root, marker)  # also where there is an identity: who put it there need not have been the repair
        return RepairReport(str(root), marker.plan, f"{QUARANTINE_NAME}/{marker.label}", time.monotonic() - started)
    finally:
        release()


def _read_marker(fs: FileSystem, place: Path) -> Marker | None:
    path = place / _PLAN
    if not fs.exists(path):
        return None
    return _decoded(fs.read_bytes(path, limit=_PLAN_BYTES_MAX), path)


def _decoded(data: bytes, path: Path) -> Marker:
    try:
        check_depth(data)
        return msgspec.json.decode(data, type=Marker)
    except ValueError as error:
        raise CorruptionError(
            f"the plan of a repair is damaged: {error}",
            path=path,
            remedy="move 'repair' out of the store, put the files of the newest 'quarantine/repair-N' back, and run"
            " 'holdfast doctor' again",
        ) from error


def begun(fs: FileSystem, root: Path) -> Plan | None:
    """The plan of a repair that has to be finished, if there is one. Raises ``CorruptionError`` as ``resume``."""
    marker = _read_marker(fs, root / REPAIR_NAME)
    return None if marker is None or not _was_begun(fs, root, marker) else marker.plan


def _was_begun(fs: FileSystem, root: Path, marker: Marker) -> bool:
    if not marker.had_identity or not fs.exists(root / IDENTITY_NAME):
        return True
    return fs.exists(root / QUARANTINE_NAME / marker.label / IDENTITY_NAME)


def _finish(fs: FileSystem, root: Path, marker: Marker) -> None:
    identity = decode_identity(bytes.fromhex(marker.identity), path=root / REPAIR_NAME / _PLAN)
    aside = root / QUARANTINE_NAME / marker.label
    fs.make_directory(root / QUARANTINE_NAME)
    fs.make_directory(aside)
    _move(fs, [IDENTITY_NAME], root, aside)
    hit("doctor.repair.begun")
    _move(fs, marker.away, root, aside)
    hit("doctor.repair.aside")
    _move(fs, marker.places, root / REPAIR_NAME / _NEW, root, replace=True)
    hit("doctor.repair.placed")
    if marker.fence:
        _fence(fs, root, identity, bytes.fromhex(marker.fence))
    fs.write_atomic(root / IDENTITY_NAME, bytes.fromhex(marker.identity))
    hit("doctor.repair.published")
    _tell_and_clean(fs, root, marker)


def _move(
    fs: FileSystem, names: tuple[str, ...] | list[str], source: Path, target: Path, *, replace: bool = False
) -> None:
    """Each of ``names`` is at ``target``, durably, if it is at ``source``; not over one there unless ``replace``."""
    touched: set[Path] = set()
    for name in names:
        if fs.exists(source / name) and (replace or not fs.exists(target / name)):
            _make_parents(fs, target, name)
            fs.rename(source / name, target / name)
        touched |= {(source / name).parent, (target / name).parent}
    for directory in sorted(touched):
        if fs.exists(directory):
            fs.sync_directory(directory)


def _fence(fs: FileSystem, root: Path, identity: Identity, token: bytes) -> None:
    """The journal says that this is another copy of the store: it may not sign until its fence is lifted."""
    book = SafetyBook()
    options = JournalOptions(carry=book.parts, background=False)
    cipher = unlock(identity, None, root)
    journal, _ = Journal.open(
        fs,
        root,
        store_id=identity.store_id,
        salt=identity.salt,
        options=options,
        cipher=None if cipher is None else cipher.parts,
    )
    clean = False
    try:
        for frame in journal.frames(journal.first_seq):
            if any(part.kind in SAFETY_KINDS for part in frame.parts):
                book.apply(journal, frame)
        if book.incarnation != token:
            journal.append([Part(Kind.INCARNATION, token, True)])
            journal.sync()
        clean = True
    finally:
        journal.close(clean=clean)


def _tell_and_clean(fs: FileSystem, root: Path, marker: Marker) -> None:
    plan = marker.plan
    fields: dict[str, object] = {
        "path": str(root),
        "rung": plan.rung,
        "steps": msgspec.to_builtins(plan.steps),
        "height": plan.height,
        "fenced": plan.fenced,
        "quarantine": f"{QUARANTINE_NAME}/{marker.label}",
        "loss": msgspec.to_builtins(plan.loss),
    }
    if plan.loss is None:
        text = f"repaired {root}: {len(plan.steps)} files, nothing was lost"
        events.emit("repaired", logging.WARNING, text, **fields)
    else:
        text = (
            f"{root} went back to {plan.rung}: {plan.loss.blocks} blocks that were acknowledged are not there any more"
        )
        events.emit("blocks_given_up", logging.ERROR, text, **fields)
    fs.remove_tree(root / REPAIR_NAME)
    fs.sync_directory(root)
