"""Backups by schedule inside a process that has the store open, and what its retention asks of them.

Invariants:
    * The thread ends with its store: when it is closed, when it is collected, and in a child after ``fork()``.
    * One scheduler makes the backups of a store: the one that was started last.
    * A run stops at its next piece of work when it is asked to, and the next start goes on with it.
    * Whatever fails in a run is an event, and the store goes on.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Final

from .._fs import RealFileSystem
from .._threads import start_thread
from ..errors import HoldfastError, InvalidInputError, StateError
from ..events import emit
from ..store.endings import on_close
from ..store.opening import read_identity
from ..store.retention import Retention
from ..store.store import Store
from .create import BESIDE_BYTES_PER_SECOND
from .keys import BackupKey, usual_key
from .place import repository_place
from .repository import BackupRepository, open_repository
from .runs import RunReport, ScheduledBackups
from .schedule import Schedule
from .segments import background_archive

__all__ = ["BackupScheduler", "attend", "follow_schedule"]

_JOIN_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 30.0
"""Longest time between two looks at the clock, which may jump."""


_schedulers: weakref.WeakKeyDictionary[Store, BackupScheduler] = weakref.WeakKeyDictionary()


class BackupScheduler:
    """Makes the backups of an open store by its settings, in a thread of its own. A context manager."""

    def __init__(
        self,
        store: Store,
        *,
        schedule: str | None = None,
        repository: str | None = None,
        key: BackupKey | None = None,
        bytes_per_second: int | None = None,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """Nothing happens before ``start``.

        Args:
            schedule: words or cron text; else the setting ``backup_schedule``.
            repository: directory or URL, made if nothing is there; else the setting ``backup_target``.
            key: of an encrypted repository; else the setting ``backup_key_file``, or ``HOLDFAST_BACKUP_PASSPHRASE``.
            bytes_per_second: most that is read in a second; ``BESIDE_BYTES_PER_SECOND`` if ``None``: the commits of
                this process share its interpreter.
        Raises:
            InvalidInputError: there is no schedule, it means nothing, or the store is in memory.
        """
        settings = store.settings
        root = store.path
        if root is None:
            raise InvalidInputError("a store in memory has no files to back up")
        text = settings.backup_schedule if schedule is None else schedule
        if not text:
            raise InvalidInputError("there is no schedule", remedy="set 'backup_schedule', such as 'daily 03:00'")
        place = repository_place(settings.backup_target, root) if repository is None else repository
        assert place is not None

        def opened(create: bool) -> BackupRepository:
            return open_repository(place, key=key or usual_key(settings, root), create=create)

        self._repository = opened
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._store = weakref.ref(store)
        self.backups = ScheduledBackups(
            root,
            Schedule(text),
            opened,
            settings=settings,
            clock=clock,
            stopped=self._ended.is_set,
            bytes_per_second=BESIDE_BYTES_PER_SECOND if bytes_per_second is None else bytes_per_second,
            store_key=store.key,
        )

    def start(self) -> BackupScheduler:
        """The thread runs, until ``stop``, until the store is closed, or until another one is started for it.

        The retention of the journal asks the same repository. Raises ``StateError`` if it was started before.
        """
        store = self._store()
        if self._thread is not None or store is None:
            raise StateError("a scheduler is started once, while its store is open")
        on_close(store, self.stop)
        weakref.finalize(store, self._ended.set)
        before, _schedulers[store] = _schedulers.get(store), self
        if before is not None:
            before._ended.set()
        told = partial(_tell, _asked_by(store, lambda: self._repository(False)))
        self._thread = start_thread(partial(follow_schedule, told=told), "holdfast-backups", self.backups, self._ended)
        return self

    def stop(self) -> None:
        """The thread has ended; a run that was under way is gone on with another time. Twice is harmless.

        A request to an object store that does not answer is waited for 5 seconds; the thread ends with it, and does no
        more to the store until then.
        """
        self._ended.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_SECONDS)

    def __enter__(self) -> BackupScheduler:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _asked_by(store: Store, opened: Callable[[], BackupRepository]) -> weakref.ref[Retention] | None:
    """What ``store`` gives up of its journal by its settings is looked for in that repository; its retention then."""
    if store.settings.journal_retention == "none" or store.path is None:
        return None
    store_id = read_identity(RealFileSystem(), store.path).store_id
    store.retention.archives = background_archive(opened, store_id)
    return weakref.ref(store.retention)


def _tell(retention: weakref.ref[Retention] | None, report: RunReport | None) -> None:
    found = None if retention is None or report is None else retention()
    if found is not None:
        found.backup_made = True


def attend(store: Store) -> None:
    """What the settings of ``store`` ask of its backups is done in the background, until it is closed.

    That is ``backup_schedule``, and the proof of what ``journal_retention`` lets go. What fails is an event.
    """
    settings, root = store.settings, store.path
    place = repository_place(settings.backup_target, root)
    if root is None or place is None:
        return
    try:
        _asked_by(store, lambda: open_repository(place, key=usual_key(settings, root)))
        if settings.backup_schedule:
            BackupScheduler(store).start()
    except HoldfastError as error:
        text = f"the backups of {store.path} are not looked after: {error}"
        emit("backup_failed", logging.ERROR, text, error=error, repository=place)


def follow_schedule(
    backups: ScheduledBackups, ended: threading.Event, *, told: Callable[[RunReport | None], object] = lambda _: None
) -> None:
    """What is due is run, until ``ended`` is set. ``told`` hears after each look what was made, if anything."""
    while not ended.is_set():
        told(backups.run_due())
        left = backups.seconds_left()
        ended.wait(_LOOK_SECONDS if left is None else min(_LOOK_SECONDS, max(1.0, left)))
