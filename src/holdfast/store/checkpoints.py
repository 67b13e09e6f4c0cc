"""Checkpoints of an open store: made every so many blocks, kept by rule, and what a new store can be made of.

Invariants:
    * A checkpoint is made of one version of the state that is held, and commits go on. Whatever fails, a full disk
      too, costs the checkpoint and nothing else; what was made of it is kept for the next one.
    * Those made in the background are of a block that no reorganisation can replace, wherever its state can be held.
    * One is removed only after another of at least its height was read back and verified in the same call.
    * Names, manifests and chunks are looked at by any process; only the one that writes the store makes and removes.
    * Those of an encrypted store are sealed with its key, and so is the store that is made of one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from .._fs import FileSystem, RealFileSystem, path_of
from .._keys import StoreKey
from ..blocks.reader import BlockReader
from ..config import Settings
from ..errors import (
    ClosedError,
    FormatTooNew,
    HoldfastError,
    InvalidInputError,
    KeyRejected,
    KeyRequired,
    LimitExceeded,
    PrunedError,
    ReadOnlyError,
    SnapshotInvalid,
)
from ..events import emit
from ..state.checkpoint import CHECKPOINTS_NAME, CheckpointDirectory, CheckpointInfo, checkpoint_height
from ..state.sealing import FileKeys
from ..state.snapshot import SnapshotInfo
from .backend import Backend, WriterBackend
from .chain import Chain
from .checks import check_height
from .snapshots import held_state, new_place, take_in
from .unlocking import key_for

__all__ = [
    "CheckpointPruneReport",
    "Checkpoints",
    "another_named",
    "checkpoints_at",
    "kept_by_rule",
    "restore_checkpoint",
]

_Names = list[str]
_PAUSE_SECONDS = 0.001
"""Between two chunks the background leaves the interpreter to commits."""


@dataclass(frozen=True, slots=True)
class CheckpointPruneReport:
    """What a run removed, or would remove (``dry_run``). Names are of checkpoints, the highest first.

    ``verified`` was read back before anything was removed, ``None`` if nothing had to go; ``damaged`` were read and are
    not whole. ``files`` were named by no manifest any more, and ``freed_bytes`` is their room.
    """

    dry_run: bool
    verified: str | None
    kept: tuple[str, ...]
    removed: tuple[str, ...]
    damaged: tuple[str, ...]
    files: int
    freed_bytes: int

    def as_dict(self) -> dict[str, object]:
        """As JSON values."""
        return asdict(self) | {name: list(getattr(self, name)) for name in ("kept", "removed", "damaged")}


class _Stopped(Exception):
    """The store is being closed."""


def kept_by_rule(names: Sequence[str], newest: int, every: int) -> set[str]:
    """Which of ``names``, highest first, stay: the first ``newest``, and the first one from each multiple of ``every``
    on (0: none); that is the one at the multiple, if it was made."""
    keep = set(names[:newest])
    if every:
        keep |= set(
            {checkpoint_height(name) // every: name for name in names if checkpoint_height(name) >= every}.values()
        )
    return keep


class Checkpoints:
    """``store.checkpoints``. Any thread may call any method; making and removing take turns."""

    def __init__(
        self,
        backend: Backend,
        blocks: BlockReader,
        settings: Settings,
        *,
        check: Callable[[], object],
        refuse_inside: Callable[[], None],
    ) -> None:
        """``check`` raises once the store is closed, ``refuse_inside`` in code that the store has called."""
        self._directory = backend.checkpoints
        self._backend = backend
        self._blocks = blocks
        self._settings = settings
        self._check = check
        self._refuse_inside = refuse_inside
        self._turn = threading.Lock()
        self._newest: int | None = None
        self._tried = -1
        self._made = 0
        self._failures = 0
        self._failure: HoldfastError | None = None

    # -- looking --------------------------------------------------------------------------------------------------

    def list(self) -> Sequence[CheckpointInfo]:
        """Every checkpoint, the highest first; its manifest was read, its chunks were not."""
        self._check()
        return [self._directory.info(name) for name in self._directory.names()]

    def verify(
        self, name: str, *, workers: int | None = None, progress: Callable[[int, int], None] | None = None
    ) -> SnapshotInfo:
        """Every chunk of the checkpoint is whole and belongs to its root, and none is missing.

        ``progress`` is called with (keys verified, keys in all). Raises ``NotFoundError``; ``SnapshotInvalid`` names
        the first file that is not right.
        """
        self._check()
        return self._directory.verify(name, workers=workers, progress=progress)

    def statistics(self) -> dict[str, object]:
        """How many there are, the height of the highest, and what the background did, as JSON values."""
        names = self._directory.names()
        return {
            "count": len(names),
            "newest_height": checkpoint_height(names[0]) if names else None,
            "made": self._made,
            "failures": self._failures,
            "failure": None if self._failure is None else str(self._failure),
        }

    # -- making and removing --------------------------------------------------------------------------------------

    def create(
        self, height: int | None = None, *, progress: Callable[[int, int], None] | None = None
    ) -> CheckpointInfo:
        """The state after the canonical block at ``height``, or at the tip, is a checkpoint, durable.

        Commits go on meanwhile. Interrupted, the next call keeps the chunks that were made. A block that a
        reorganisation replaces later leaves a checkpoint that does not count for ``prune``.

        Args:
            progress: called with (keys done, keys in all) after each chunk; what it raises ends it.
        Raises:
            BlockNotFound: there is no canonical block at this height.
            PrunedError: the height lies below what can still be undone (``proof_window_blocks``).
            ViewExpired: commits made meanwhile changed more than ``pinned_bytes_max``; call it again.
            OutOfSpace: nothing is listed that is not whole, and the store goes on.
        """
        self._need_writer()
        if height is not None:
            check_height(height)
        with self._turn:
            return self._create(height, progress)

    def _create(self, height: int | None, progress: Callable[[int, int], None] | None) -> CheckpointInfo:
        def step(done: int, total: int) -> None:
            self._check()
            if progress is not None:
                progress(done, total)

        backend = self._need_writer()
        begun = time.monotonic()
        if self._settings.durability == "buffered":  # it must not be of a block that a crash could take back
            backend.writer.sync()
        with held_state(backend, self._blocks, height, backend.open_state_aside) as source:
            made = self._directory.create(source, progress=step)
        assert made.snapshot is not None
        self._made += 1
        if self._newest is not None:
            self._newest = max(self._newest, made.height)
        emit(
            "checkpoint_made",
            logging.INFO,
            f"made the checkpoint {made.name} of {made.snapshot.keys} keys",
            place=str(self._directory.path),
            checkpoint=made.name,
            height=made.height,
            keys=made.snapshot.keys,
            chunks=made.snapshot.chunks,
            stored_bytes=made.snapshot.stored_bytes,
            seconds=round(time.monotonic() - begun, 3),
        )
        return made

    def prune(
        self,
        every: int | None = None,
        *,
        newest: int | None = None,
        dry_run: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> CheckpointPruneReport:
        """Checkpoints that no rule keeps are gone, and chunks that no manifest names.

        Before anything goes, the highest of those that stay is read back and verified; one that is not whole keeps
        its place, and the next one is verified instead. Only what is not higher than the verified one goes. Killed at
        any moment, every checkpoint that was whole and is listed is whole.

        Args:
            every: keep the first one from each multiple of this height on, 0 for none; else ``checkpoints_every``.
            newest: how many of the highest are kept, at least 1; else ``checkpoints_max``.
            dry_run: only say what would happen; the verified one is read all the same.
            progress: called with (keys verified, keys in all) of the one that is verified; what it raises ends it.
        """
        self._need_writer()
        settings = self._settings
        newest = settings.checkpoints_max if newest is None else newest
        every = settings.checkpoints_every if every is None else every
        if type(newest) is not int or newest < 1 or type(every) is not int or every < 0:
            raise InvalidInputError(
                "at least one checkpoint is kept, and 'every' is a height or 0", found=(newest, every)
            )
        with self._turn:
            return self._prune(newest, every, dry_run=dry_run, progress=progress)

    def _prune(
        self,
        newest: int,
        every: int,
        *,
        dry_run: bool = False,
        progress: Callable[[int, int], None] | None = None,
        keep_going: Callable[[], bool] | None = None,
    ) -> CheckpointPruneReport:
        directory = self._directory
        names, damaged = self._readable()
        counted = [name for name in names if self._is_canonical(name)]
        verified: str | None = None
        going: _Names = []
        if len(kept_by_rule(counted, newest, every)) < len(names) + len(damaged):
            for name in counted:
                try:
                    directory.verify(name, workers=None if keep_going is None else 1, progress=progress)
                except SnapshotInvalid:
                    damaged.append(name)
                    continue
                verified = name
                break
            keep = kept_by_rule([name for name in counted if name not in damaged], newest, every)
            going = [
                name
                for name in directory.names()
                if name in {*names, *damaged}
                and name not in keep
                and verified is not None
                and checkpoint_height(name) <= checkpoint_height(verified)
            ]
        freed = sum(directory.file_bytes(path) for path in directory.spare(going)) if dry_run else 0
        files = len(directory.spare(going)) if dry_run else 0
        if not dry_run:
            directory.remove(going)
            files, freed = directory.sweep(keep_going)
        staying = tuple(name for name in directory.names() if name not in going)
        return CheckpointPruneReport(dry_run, verified, staying, tuple(going), tuple(damaged), files, freed)

    def _readable(self) -> tuple[_Names, _Names]:
        """Names of those whose manifest can be read, and of those whose manifest is damaged.

        One of a newer format, or of a store with another key, is in neither: it stays.
        """
        readable, damaged = [], []
        for found in map(self._directory.info, self._directory.names()):
            if found.problem is None:
                readable.append(found.name)
            elif isinstance(found.problem, SnapshotInvalid):
                damaged.append(found.name)
            elif not isinstance(found.problem, (FormatTooNew, KeyRequired, KeyRejected)):
                raise found.problem
        return readable, damaged

    def _is_canonical(self, name: str) -> bool:
        """True if the block is on the canonical chain, or lies below where that begins in this store."""
        height = checkpoint_height(name)
        known = self._blocks.hash_at(height)
        if known is None:
            return height < self._backend.state.root_height
        return known.hex().startswith(name.rpartition("-")[2])

    def _need_writer(self) -> WriterBackend:
        self._check()
        self._refuse_inside()
        if not isinstance(self._backend, WriterBackend):
            raise ReadOnlyError(
                "a read-only store makes and removes no checkpoints",
                path=self._backend.path,
                remedy="the process that writes the store makes them; stop it to run 'holdfast checkpoint' yourself",
            )
        if self._backend.path is None:
            raise InvalidInputError("a store in memory has no checkpoints: they lie in files")
        return self._backend

    # -- in the background ----------------------------------------------------------------------------------------

    def due(self) -> bool:
        """True if a block that makes a checkpoint cannot be replaced any more, and nobody tried to make it yet."""
        target = self._target()
        if target is None or target <= self._tried:
            return False
        if self._newest is None:
            heights = [checkpoint_height(name) for name in self._directory.names() if self._is_canonical(name)]
            self._newest = max(heights, default=0)
        return target > self._newest

    def _target(self) -> int | None:
        """The highest multiple of the interval that no reorganisation can reach; ``None`` if there is none."""
        interval, state = self._settings.checkpoint_interval, self._backend.state
        if not interval or self._backend.path is None or not state.has_tip:
            return None
        target = max(state.finalized, state.floor) // interval * interval
        return target if target > state.root_height and target else None

    def run_in_background(self, keep_going: Callable[[], bool]) -> None:
        """The checkpoint that is due is made, and older ones are removed by the settings, as long as it may go on.

        Of the block at the multiple; if its state is gone already, of the highest that cannot be replaced; if too much
        changed since that one to hold it, of the tip. A failure is logged and shows in the statistics; it is tried
        again at the next multiple.
        """
        target = self._target()
        if target is None or not self._turn.acquire(blocking=False):
            return

        def step(_done: int, _total: int) -> None:
            if not keep_going():
                raise _Stopped
            time.sleep(_PAUSE_SECONDS)

        try:
            self._tried = target
            self._create_first((target, max(self._backend.state.finalized, self._backend.state.floor), None), step)
            settings = self._settings
            report = self._prune(
                settings.checkpoints_max, settings.checkpoints_every, progress=step, keep_going=keep_going
            )
            if report.damaged:
                raise SnapshotInvalid(
                    "a checkpoint is damaged",
                    checkpoint=report.damaged[0],
                    remedy="'holdfast checkpoint verify' names the file; the store itself does not need it",
                )
            self._failure = None
        except (_Stopped, ClosedError):
            pass
        except HoldfastError as error:
            if keep_going():
                self._failed(error, target)
        finally:
            self._turn.release()

    def _create_first(self, heights: Sequence[int | None], step: Callable[[int, int], None]) -> None:
        """A checkpoint of the first of these heights whose state can be held is there."""
        for at, height in enumerate(heights):
            try:
                self._create(height, step)
            except (PrunedError, LimitExceeded):
                if at + 1 == len(heights):
                    raise
            else:
                return

    def _failed(self, error: HoldfastError, height: int) -> None:
        known = self._failure
        self._failure = error
        self._failures += 1
        if known is None or known.code != error.code:  # a disk that stays full is told once
            emit(
                "checkpoint_failed",
                logging.WARNING,
                f"no checkpoint was made or removed: {error}",
                place=str(self._directory.path),
                height=height,
                error=error,
            )


# -- from outside ---------------------------------------------------------------------------------------------------


def checkpoints_at(
    source: str | os.PathLike[str], *, fs: FileSystem | None = None, key: bytes | StoreKey | None = None
) -> CheckpointDirectory:
    """The checkpoints in the directory of a store, which need not be whole, or in a copy of its ``checkpoints/``.

    ``key``: that of an encrypted store; else the one that ``using_key`` gave. Without it names can be listed.
    """
    path = path_of(source, "a store or its checkpoints")
    fs = fs or RealFileSystem()
    inner = path / CHECKPOINTS_NAME
    keys = FileKeys(secret=key_for(StoreKey.of(key)))
    return CheckpointDirectory(fs, inner if fs.exists(inner) else path, keys=keys)


def restore_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    name: str | None = None,
    chain: Chain | None = None,
    settings: Settings | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    fs: FileSystem | None = None,
    key: bytes | StoreKey | None = None,
) -> SnapshotInfo:
    """A new store at ``target`` stands on a checkpoint; its tip is the checkpoint's block, and it may not sign yet.

    Blocks before it, blocks after it, documents and what a validator has promised are not in a checkpoint. Killed or
    failed at any moment, the next call with the same arguments goes on where this one stopped.

    Args:
        source: the directory of the store that made it, or a copy of its ``checkpoints/``; it is only read.
        target: as for ``open``; a directory that is missing, empty, or holds an unfinished run of this.
        name: which checkpoint; the highest one if ``None``.
        chain, settings, workers, progress: as for ``import_snapshot``.
        key: that of the encrypted store that made it; the new one is encrypted with the same.
    Raises:
        NotFoundError: there is no such checkpoint.
        KeyRequired, KeyRejected: its key is missing or another one, or it is not encrypted; nothing was written.
        SnapshotInvalid: it is damaged; nothing of what is wrong was written, and no store was made.
        StoreExists, ForeignStore: the target holds something else; it was not touched.
    """
    fs = fs or RealFileSystem()
    root, engine = new_place(target)
    secret = key_for(StoreKey.of(key))
    directory = checkpoints_at(source, fs=fs, key=secret)
    chosen = directory.chosen(name)
    with another_named(directory, chosen, source, root):
        reader = directory.reader(chosen)
        reader.trust_own()
        return take_in(
            reader,
            root,
            engine,
            chain=chain,
            settings=settings,
            workers=workers,
            progress=progress,
            fs=fs,
            key=secret,
        )


@contextlib.contextmanager
def another_named(
    directory: CheckpointDirectory, chosen: str, source: str | os.PathLike[str], target: os.PathLike[str]
) -> Iterator[None]:
    """Where the checkpoint ``chosen``, which is to be restored, is damaged, the error names what can be restored."""
    try:
        yield
    except SnapshotInvalid as error:
        others = [each for each in directory.names() if checkpoint_height(each) < checkpoint_height(chosen)]
        if others:
            error.remedy = (
                f"take an older one: 'holdfast checkpoint restore {os.fspath(source)} --name {others[0]} -d {target}'"
            )
        else:
            error.remedy = "take another copy of it, or a backup: 'holdfast backup restore'"
        raise
