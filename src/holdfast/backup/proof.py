"""A test restore: a backup is made a store again, beside the one it is of, looked at and deleted.

Invariants:
    * Nothing but the directory ``NAME.test-restore`` beside the store is written, and only if it is ours or not there.
    * A backup that passed was restored whole: the views were made, and tip and state root are those of its manifest.
    * What a killed test left goes first, so that it takes no room from this one.
    * Without room nothing is written, and the store's own reserve of the disk stays free.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Final

import msgspec

from .. import events
from .._fs import FileSystem, RealFileSystem
from ..config import Settings
from ..errors import BackupDamaged, ForeignStore, HoldfastError, OutOfSpace, ReadOnlyError, TargetDenied
from ..store.factory import open_store
from ..store.opening import make_directories
from .manifest import Manifest
from .pieces import Progress
from .repository import BackupRepository
from .restore import restore_backup

__all__ = ["RestoreProof", "clear_test_restore", "restore_and_compare"]

_END: Final = ".test-restore"
_MARKER: Final = "test-restore.json"
_STORE: Final = "store"


class RestoreProof(msgspec.Struct, frozen=True):
    """A backup that was restored as a test. ``passed`` is false if there was no room, or no right to write there."""

    name: str
    passed: bool
    height: int | None
    hash: str | None
    root: str | None
    seconds: float

    def as_dict(self) -> dict[str, object]:
        """As plain JSON values."""
        return {**msgspec.structs.asdict(self), "seconds": round(self.seconds, 3)}


def restore_and_compare(
    repository: BackupRepository,
    name: str,
    root: Path,
    *,
    settings: Settings | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    fs: FileSystem | None = None,
) -> RestoreProof:
    """The backup ``name`` was restored beside ``root``, and is deleted again; or it was not, for want of room.

    Raises:
        BackupDamaged, CorruptionError: the backup does not restore. ForeignStore: the directory beside holds something
        else, and was not touched.
    """
    files = fs or RealFileSystem()
    given = settings or Settings()
    form = repository.manifest(name)
    place = root.with_name(root.name + _END)
    started = time.monotonic()
    try:
        _check_ours(files, place)
        _clear(files, place)
        _check_room(files, form, place, given)
        _begin(files, place)
        try:
            _restore(repository, form, place / _STORE, given, workers, progress, files)
        finally:
            _clear(files, place)
    except TargetDenied:
        raise
    except (OutOfSpace, ReadOnlyError) as error:
        _tell_skipped(repository, form, place, error)
        return RestoreProof(name, False, None, None, None, time.monotonic() - started)
    tip = form.tip
    proof = RestoreProof(
        name,
        True,
        None if tip is None else tip.height,
        None if tip is None else tip.hash,
        None if tip is None else tip.root,
        time.monotonic() - started,
    )
    events.emit(
        "backup_tested",
        logging.INFO,
        f"backup {name} was restored as a test: its tip and root are right",
        path=str(root),
        repository=repository.place,
        **proof.as_dict(),
    )
    return proof


def _tell_skipped(repository: BackupRepository, form: Manifest, place: Path, error: HoldfastError) -> None:
    events.emit(
        "backup_test_skipped",
        logging.WARNING,
        f"backup {form.name} was not restored as a test: {error}",
        path=str(place),
        repository=repository.place,
        name=form.name,
        needed_bytes=error.context.get("needed"),
        free_bytes=error.context.get("free"),
        code=error.code,
        remedy=error.remedy,
    )


def _check_room(fs: FileSystem, form: Manifest, place: Path, settings: Settings) -> None:
    """There is room for the journal, for views of about its size, and for what the store keeps free."""
    needed = 2 * form.totals.raw_bytes + settings.disk_reserve_bytes
    free = fs.space(place.parent).free
    if free < needed:
        raise OutOfSpace(
            "there is no room for a test restore",
            path=place,
            needed=needed,
            free=free,
            remedy="free some space, or set 'backup_test_restore' to false and restore elsewhere now and then",
        )


def clear_test_restore(root: Path, *, fs: FileSystem | None = None) -> None:
    """Nothing is left of a test restore beside ``root`` that was killed. What is not of one is not touched."""
    files = fs or RealFileSystem()
    place = root.with_name(root.name + _END)
    if _MARKER in files.names(place):
        _clear(files, place)


def _check_ours(fs: FileSystem, place: Path) -> None:
    """The directory is not there, or is ours. Raises ``ForeignStore``."""
    names = set(fs.names(place))
    if names and _MARKER not in names and names != {f"{_MARKER}.tmp"}:
        raise ForeignStore(
            "the directory for test restores holds something else",
            path=place,
            remedy="move it away; a test restore deletes what is in it",
        )


def _begin(fs: FileSystem, place: Path) -> None:
    """The directory is there, and says that it is ours."""
    make_directories(fs, place)
    fs.write_atomic(place / _MARKER, b'{"kind":"holdfast-test-restore"}')


def _clear(fs: FileSystem, place: Path) -> None:
    """The directory is gone; the marker that it is ours goes last, when nothing else can come back."""
    if not fs.exists(place):
        return
    for name in fs.names(place):
        if name != _MARKER:
            fs.remove_tree(place / name) if name.startswith(_STORE) else fs.remove(place / name)
    fs.sync_directory(place)
    fs.remove_tree(place)
    fs.sync_directory(place.parent)


def _restore(
    repository: BackupRepository,
    form: Manifest,
    target: Path,
    settings: Settings,
    workers: int | None,
    progress: Progress | None,
    fs: FileSystem,
) -> None:
    calm = settings.model_copy(update={"checkpoint_interval": 0})
    with events.hushed():
        restore_backup(repository, form.name, target, settings=calm, workers=workers, progress=progress, fs=fs)
    with events.hushed(), open_store(str(target), create=False, settings=calm, read_only=True, fs=fs) as store:
        tip = store.tip
        found = None if tip is None else (tip.height, tip.hash.hex())
        root = None if tip is None or tip.state_root is None else tip.state_root.hex()
    told = form.tip
    expected = None if told is None else (told.height, told.hash)
    if found != expected or (told is not None and told.root is not None and root != told.root):
        raise BackupDamaged(
            "the restored store has another tip than the manifest of its backup",
            path=repository.place,
            object=form.name,
            found=str(found),
            expected=str(expected),
        )
