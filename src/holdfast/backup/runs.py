"""Scheduled runs: which one is due, what it does, and what of it is known after any crash.

A run makes a backup, verifies it, restores it as a test and prunes. Its state is ``DATA/schedule.json``
(docs/FORMAT.md, section 10.7), published before each step that must not be done twice.

Invariants:
    * Of all instants of the schedule that passed only the last counts: a missed run is made up once. An instant that
      was handled is not handled again when the clock goes forwards, or back by up to a day or a period of the schedule.
      One that went back further was wrong before, and holds up no more than one run.
    * A run that was cut off goes on with the backup that it made, if it made one, until the next instant comes: then
      it begins anew.
    * A repository is made only as long as none is known: one that is gone is a failure.
    * One run at a time and store: whoever has ``DATA/schedule.lock``. It reads the state first.
    * Nothing is pruned by a run whose backup is not verified, or did not pass its test; and never that backup.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec

from .. import events
from .._failpoints import hit
from .._fs import FileSystem, RealFileSystem
from .._keys import StoreKey, using_key
from ..config import Settings
from ..errors import (
    BackupDamaged,
    BackupNotFound,
    CorruptionError,
    HoldfastError,
    InternalError,
    StoreLocked,
)
from ..store.opening import read_identity
from .create import create_backup
from .object_errors import is_panic, panicked
from .proof import clear_test_restore, restore_and_compare
from .prune import KeepRules, prune_backups
from .repository import BackupRepository
from .schedule import TIME_US_MAX, Schedule
from .schedule_state import STATE_NAME, ScheduleState, load_schedule_state
from .verify import verify_backup

__all__ = ["BACKOFF_SECONDS_MAX", "RunReport", "ScheduledBackups"]

LOCK_NAME: Final = "schedule.lock"
BACKOFF_SECONDS_MAX: Final = 3600
_BACKOFF_SECONDS_FIRST: Final = 60
_SECOND_US: Final = 1_000_000
_BACK_US_MAX: Final = 86_400 * _SECOND_US


class RunReport(msgspec.Struct, frozen=True):
    """A run that is done. ``due_us`` is its instant; ``tested`` says whether the backup was restored as a test."""

    due_us: int
    name: str
    tested: Literal["passed", "skipped", "off"]
    removed: tuple[str, ...]
    seconds: float

    def as_dict(self) -> dict[str, object]:
        """As plain JSON values."""
        return {
            **msgspec.structs.asdict(self),
            "removed": list(self.removed),
            "seconds": round(self.seconds, 3),
        }


class _Stopped(Exception):
    """The run was asked to end."""


class ScheduledBackups:
    """The runs of one store. Belongs to one thread; another process may have the store open, or none."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        schedule: Schedule,
        repository: Callable[[bool], BackupRepository],
        *,
        settings: Settings | None = None,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
        stopped: Callable[[], bool] = lambda: False,
        workers: int | None = None,
        bytes_per_second: int | None = None,
        store_key: StoreKey | None = None,
        fs: FileSystem | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            root: directory of the store.
            repository: opens the repository, for each run anew; told whether it may be made where nothing is.
            settings: rules of pruning, whether backups are tested, and how the tested store is opened.
            clock: microseconds since 1970, UTC.
            store_key: that of an encrypted store, without which it cannot be restored as a test.
            stopped: asked now and then during a run, which ends once it is true and is gone on with the next time.
        """
        self.root = Path(root).absolute()
        self.schedule = schedule
        self._open = repository
        self._settings = settings or Settings()
        self._clock = clock
        self._stopped = stopped
        self._workers = workers
        self._rate = bytes_per_second
        self._store_key = store_key
        self._fs = fs or RealFileSystem()
        self._place = "the repository"
        self._pause_until_us = 0
        self._failures = 0
        self._store_id: str | None = None
        self.failure: HoldfastError | None = None
        """Why the last run failed; ``None`` if it did not."""

    # -- what is due ----------------------------------------------------------------------------------------------

    def seconds_left(self) -> float | None:
        """Seconds until there may be something to run; ``None`` if nothing says when."""
        try:
            upcoming = self.next_us()
        except BaseException as error:  # noqa: BLE001 - what ends the process is raised again by ``_typed``
            _typed(error, self.root)  # the next run tells it
            return None
        now = self._now()
        return None if upcoming is None else max(0, max(upcoming, self._pause_until_us) - now) / _SECOND_US

    def next_us(self) -> int | None:
        """When the next run is due or tried again, as far as it is known now. Raises ``FormatTooNew``."""
        now = self._now()
        state = self._load() or ScheduleState(handled_us=now)
        state = self._settled(state, now)
        if self._due(state, now) is not None:
            return max(now, state.retry_us if state.failures else now)
        after = max(now, state.handled_us)
        return self.schedule.next(after)

    def _now(self) -> int:
        """What the clock says, as far as a time can be written down."""
        return min(max(1, self._clock()), TIME_US_MAX)

    def _load(self) -> ScheduleState | None:
        if self._store_id is None:
            self._store_id = read_identity(self._fs, self.root).store_id.hex()
        return load_schedule_state(self.root, store=self._store_id, fs=self._fs)

    def _settled(self, state: ScheduleState, now: int) -> ScheduleState:
        """``state`` after a look at the clock, which may have been far ahead."""
        if now >= state.handled_us - _BACK_US_MAX:
            return state
        floor = self.schedule.next(now)
        if floor is None or floor >= state.handled_us:
            return state
        return msgspec.structs.replace(state, handled_us=floor, ahead_us=max(state.ahead_us, state.handled_us))

    def _due(self, state: ScheduleState, now: int) -> int | None:
        due = self.schedule.previous(now)
        return None if due is None or due <= state.handled_us or due == state.ahead_us else due

    def _waits(self, state: ScheduleState, now: int) -> bool:
        """True before the next attempt. A time too far away was written by a clock that was ahead."""
        return self._ahead(state.retry_us if state.failures else 0, now) or self._ahead(self._pause_until_us, now)

    @staticmethod
    def _ahead(until: int, now: int) -> bool:
        return now < until <= now + BACKOFF_SECONDS_MAX * _SECOND_US

    # -- running --------------------------------------------------------------------------------------------------

    def run_due(self) -> RunReport | None:
        """The run that is due, if one is; ``None`` if none is, if another process is at it, or if it failed.

        A failed run is told by the event ``backup_run_failed``, kept in ``failure`` and tried again, after a minute,
        two minutes, four, up to an hour. Raises nothing but what ends the process.
        """
        if self._ahead(self._pause_until_us, self._now()):
            return None
        try:
            lock = self._fs.lock(self.root / LOCK_NAME, f"{os.getpid()} schedule")
        except StoreLocked:
            return None
        except BaseException as error:  # noqa: BLE001 - what ends the process is raised again by ``_typed``
            self._tell_failed(ScheduleState(), None, "lock", _typed(error, self.root))
            return None
        try:
            with using_key(self._store_key):
                return self._run_due()
        finally:
            lock.release()

    def _run_due(self) -> RunReport | None:
        step, due, state = "state", None, ScheduleState()
        try:
            now = self._now()
            found = self._load()
            state = self._settled(found or ScheduleState(handled_us=now), now)
            state = msgspec.structs.replace(state, store=self._store_id or "")
            if state != found:
                self._publish(state)
            due = self._due(state, now)
            if due is None:
                self._failures = 0
                return None
            if self._waits(state, now):
                return None
            return self._run(state, due)
        except _Stopped:
            return None
        except _Failed as failed:
            step, state, error = failed.step, failed.state, failed.error
        except BaseException as found_error:  # noqa: BLE001 - what ends the process is raised again by ``_typed``
            error = _typed(found_error, self.root)
        self._tell_failed(state, due, step, error)
        return None

    def _run(self, state: ScheduleState, due: int) -> RunReport:
        """The run of the instant ``due``. Raises ``_Failed``."""
        started = time.monotonic()
        step = "open"
        state = msgspec.structs.replace(state, started_us=state.started_us or self._now())
        try:
            repository = self._opened(state)
            self._place = repository.place
            step = "create"
            resumed = (state.due_us, state.repository) == (due, repository.id)
            if not resumed:
                state = self._begun(state, due, repository)
                self._publish(state)
            if not state.backup:
                name = self._newest(repository, after=state.before) if resumed and not state.anew else None
                state = msgspec.structs.replace(state, backup=name or self._create(repository, state), anew=False)
                hit("backup.schedule.made")
                self._publish(state)
            step = "verify"
            self._verify(repository, state.backup)
            step = "test"
            tested = self._test(repository, state.backup)
            step = "prune"
            removed = prune_backups(
                repository,
                KeepRules.of(self._settings),
                keep=(state.backup,),
                progress=self._look,
                now_us=self._clock,
            ).removed
            step = "state"
            hit("backup.schedule.done")
            self._publish(ScheduleState(handled_us=due, repository=state.repository, store=state.store))
        except _Stopped:
            raise
        except BaseException as error:
            raise _Failed(step, state, _typed(error, self.root)) from error
        self.failure, self._pause_until_us, self._failures = None, 0, 0
        report = RunReport(due, state.backup, tested, removed, time.monotonic() - started)
        self._tell_done(report)
        return report

    def _tell_done(self, report: RunReport) -> None:
        events.emit(
            "backup_run_done",
            logging.INFO,
            f"the scheduled backup {report.name} of {self.root} is made, verified and {_WORDS[report.tested]}",
            path=str(self.root),
            repository=self._place,
            schedule=self.schedule.text,
            **report.as_dict(),
        )

    def _opened(self, state: ScheduleState) -> BackupRepository:
        """The repository, made if none is known yet: one that is gone may be on a disk that is not mounted."""
        try:
            return self._open(not state.repository)
        except BackupNotFound as error:
            if not state.repository:
                raise
            raise BackupNotFound(
                "the repository of the earlier backups is gone",
                path=error.context.get("path"),
                repository=state.repository,
                remedy="mount its disk, or correct its place; to begin with a new one run 'holdfast backup create'",
            ) from error

    def _begun(self, state: ScheduleState, due: int, repository: BackupRepository) -> ScheduleState:
        """The state at the begin of the run of ``due``, whatever came of earlier ones."""
        return msgspec.structs.replace(
            state,
            started_us=self._now(),
            due_us=due,
            backup="",
            before=self._newest(repository) or "",
            repository=repository.id,
        )

    def _newest(self, repository: BackupRepository, *, after: str = "") -> str | None:
        """The newest backup of this store, if it was made after the one named ``after``."""
        names = (form.name for form in repository.readable() if form.store_id == self._store_id)
        name = next(names, None)
        return name if name is not None and name > after else None

    def _create(self, repository: BackupRepository, state: ScheduleState) -> str:
        return create_backup(
            self.root,
            repository,
            check=state.anew,
            bytes_per_second=self._rate,
            workers=self._workers,
            progress=self._look,
            fs=self._fs,
            clock=self._clock,
        ).manifest.name

    def _verify(self, repository: BackupRepository, name: str) -> None:
        check = verify_backup(repository, name, workers=self._workers, progress=self._look)
        if not check.ok:
            raise BackupDamaged(
                "the scheduled backup did not verify", path=repository.place, object=name, found=len(check.problems)
            )

    def _test(self, repository: BackupRepository, name: str) -> Literal["passed", "skipped", "off"]:
        if not self._settings.backup_test_restore:
            clear_test_restore(self.root, fs=self._fs)
            return "off"
        proof = restore_and_compare(
            repository,
            name,
            self.root,
            settings=self._settings,
            workers=self._workers,
            progress=self._look,
            fs=self._fs,
        )
        return "passed" if proof.passed else "skipped"

    def _look(self, done: int, total: int) -> None:
        del done, total
        if self._stopped():
            raise _Stopped

    # -- state ----------------------------------------------------------------------------------------------------

    def _publish(self, state: ScheduleState) -> None:
        self._fs.write_atomic(self.root / STATE_NAME, state.encoded())

    def _tell_failed(self, state: ScheduleState, due: int | None, step: str, error: HoldfastError) -> None:
        """The failure is known, told, and written down if that is possible."""
        failures = self._failures = min(max(state.failures, self._failures) + 1, 1_000_000)
        pause = min(BACKOFF_SECONDS_MAX, _BACKOFF_SECONDS_FIRST * 2 ** min(failures - 1, 20))
        self.failure = error
        self._pause_until_us = self._now() + pause * _SECOND_US
        useless = isinstance(error, CorruptionError | BackupNotFound) and step in ("verify", "test")
        if due is not None:
            state = msgspec.structs.replace(state, failures=failures, retry_us=self._pause_until_us)
            if useless:
                state = msgspec.structs.replace(state, backup="", anew=isinstance(error, CorruptionError))
            try:
                self._publish(state)
            except HoldfastError as second:
                error.context.setdefault("state", str(second))
        events.emit(
            "backup_run_failed",
            logging.ERROR,
            f"the scheduled backup of {self.root} failed at the step '{step}': {error}",
            path=str(self.root),
            repository=self._place,
            schedule=self.schedule.text,
            due_us=due,
            step=step,
            failures=failures,
            retry_seconds=pause,
            code=error.code,
            remedy=error.remedy,
        )


def _typed(error: BaseException, root: Path) -> HoldfastError:
    """What is told of an error, of ours or of a library: backups go on. Raises what ends the process again."""
    if isinstance(error, HoldfastError):
        return error
    if is_panic(error):
        return panicked(str(root))
    if isinstance(error, Exception):
        return InternalError(f"{type(error).__name__}: {error}", path=root)
    raise error


class _Failed(Exception):
    """A step of a run failed; ``state`` is what was published last."""

    def __init__(self, step: str, state: ScheduleState, error: HoldfastError) -> None:
        super().__init__(step)
        self.step = step
        self.state = state
        self.error = error


_WORDS: Final = {
    "passed": "restored as a test",
    "skipped": "not restored as a test: see the event before",
    "off": "not restored as a test: that is switched off",
}
