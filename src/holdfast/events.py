"""What happens in a store, told to the standard ``logging`` module and to callbacks.

Invariants:
    * Every event has a name of ``EVENTS``. Names are append-only, as codes of errors are.
    * Nothing here configures logging: one logger, ``holdfast``, with a ``NullHandler``, its level left alone. A record
      carries the name in ``holdfast_event`` and the facts, plain JSON values, in ``holdfast_fields``.
    * A callback runs in a thread of its own, in the order of the events, and never in the store's. Whatever it does or
      raises, no commit waits for it or fails by it: what it has no time for is dropped and counted.
    * Where nobody listens an event costs a look at who does, and no record is made.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from ._threads import start_thread
from .errors import HoldfastError, InvalidInputError
from .types import RecoveryStats

__all__ = [
    "EVENTS",
    "LOGGER_NAME",
    "WAITING_EVENTS_MAX",
    "Event",
    "EventInfo",
    "Subscription",
    "corruption_found",
    "deliver",
    "emit",
    "hushed",
    "level_of",
    "listening",
    "make_event",
    "on_event",
    "store_opened",
]

LOGGER_NAME = "holdfast"
WAITING_EVENTS_MAX: Final = 1000
"""Events that wait for one callback; later ones are dropped and counted."""
_PLACES_MAX: Final = 1000
_CLOSE_SECONDS: Final = 5.0

_logger = logging.getLogger(LOGGER_NAME)
_logger.addHandler(logging.NullHandler())


# -- the table ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EventInfo:
    """One kind of event: its level, what it means, and what stands in ``fields``."""

    level: int
    meaning: str
    fields: tuple[str, ...] = ()


_DEBUG, _INFO, _WARNING, _ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR

EVENTS: Final[Mapping[str, EventInfo]] = {
    "opened": EventInfo(
        _INFO, "A store is open.", ("url", "engine", "read_only", "and everything of 'store.recovery'")
    ),
    "recovered": EventInfo(
        _WARNING,
        "The last writer was not closed, or opening had something to cut off, to finish or to make anew.",
        ("url", "clean", "frames_found", "frames_replayed", "views_rebuilt", "finished_flush", "tree", "notes"),
    ),
    "torn_tail_cut": EventInfo(
        _WARNING,
        "Bytes behind the last whole frame, never acknowledged, were moved to quarantine.",
        ("url", "segment", "offset", "length", "reason", "quarantined_as"),
    ),
    "corruption_found": EventInfo(
        _ERROR, "Bytes are not what was written. Told once for each place until a store is opened again.", ("context",)
    ),
    "poisoned": EventInfo(_ERROR, "A write failed half-way: the store takes no more until it is opened again."),
    "saved": EventInfo(
        _DEBUG, "Blocks were committed and are as durable as the settings promise.", ("seq", "blocks", "height", "hash")
    ),
    "reorg": EventInfo(
        _INFO,
        "Another branch is canonical.",
        ("seq", "fork_height", "fork", "old_tip", "new_tip", "height", "orphaned", "adopted"),
    ),
    "finalized": EventInfo(_DEBUG, "Blocks up to this height are final.", ("seq", "height")),
    "waiting_block_dropped": EventInfo(
        _WARNING, "A block that waited for its parent was not stored.", ("hash", "height")
    ),
    "upkeep_failed": EventInfo(
        _WARNING, "Background work of the store failed: told once, and tried again later or at the next open."
    ),
    "snapshot_imported": EventInfo(_INFO, "A new store stands on a snapshot.", ("height", "hash", "root", "keys")),
    "verification_passed": EventInfo(
        _INFO, "A verification came to its end and found nothing wrong.", ("level", "seconds")
    ),
    "verification_failed": EventInfo(
        _ERROR, "A verification found damage; code and remedy are those of the first.", ("level", "seconds", "problems")
    ),
    "backup_made": EventInfo(_INFO, "A backup is complete.", ("repository", "and everything of its report")),
    "backup_clock_behind": EventInfo(
        _WARNING,
        "The clock is behind the newest backup of the store; the new one is named after that.",
        ("repository", "name", "behind_seconds"),
    ),
    "backup_without_pruned": EventInfo(
        _WARNING,
        "A backup lacks what was pruned of segments, since no earlier one that can be read has them whole.",
        ("repository", "name", "segments", "first_segment"),
    ),
    "backup_failed": EventInfo(_ERROR, "A backup was not made, or did not verify.", ("repository",)),
    "backup_restored": EventInfo(
        _INFO, "A store was made from a backup.", ("repository", "and everything of its report")
    ),
    "backup_tested": EventInfo(
        _INFO,
        "A scheduled backup was restored as a test, and its tip and root are right.",
        ("repository", "name", "height", "hash", "root", "seconds"),
    ),
    "backup_test_skipped": EventInfo(
        _WARNING,
        "A scheduled backup was not restored as a test: there is no room, or no right to write beside the store.",
        ("repository", "name", "needed_bytes", "free_bytes"),
    ),
    "backup_run_done": EventInfo(
        _INFO,
        "A scheduled run is complete: backup made, verified and tested, old ones removed.",
        ("repository", "schedule", "due_us", "name", "tested", "removed", "seconds"),
    ),
    "backup_run_failed": EventInfo(
        _ERROR,
        "A scheduled run failed and is tried again later; commits go on.",
        ("repository", "schedule", "due_us", "step", "failures", "retry_seconds"),
    ),
    "journal_compacted": EventInfo(
        _INFO,
        "Segments of the journal were compacted; all that can be read is the same.",
        ("compacted", "bytes_before", "bytes_after", "seconds"),
    ),
    "journal_pruned": EventInfo(
        _WARNING,
        "Bodies and extras of old final blocks were given up in the journal.",
        ("floor_before", "floor_after", "blocks", "pruned_bytes", "freed_bytes", "archived"),
    ),
    "journal_refilled": EventInfo(
        _INFO,
        "Bodies and extras came back into the journal out of a backup.",
        ("floor_before", "floor_after", "filled_bytes"),
    ),
    "retention_waits": EventInfo(
        _WARNING,
        "Bodies of old blocks are to be given up, and no backup proves to hold them. Told once until one does.",
        ("segments",),
    ),
    "checkpoint_made": EventInfo(
        _INFO,
        "A checkpoint is complete.",
        ("checkpoint", "height", "keys", "chunks", "stored_bytes", "seconds"),
    ),
    "checkpoint_failed": EventInfo(_WARNING, "A checkpoint was not made or not removed; commits go on.", ("height",)),
    "disk_low": EventInfo(
        _WARNING, "The disk is nearly full: blocks and documents are refused.", ("free_bytes", "reserve_bytes", "low")
    ),
    "disk_ok": EventInfo(
        _INFO, "There is room again: blocks and documents are taken.", ("free_bytes", "reserve_bytes", "low")
    ),
    "repaired": EventInfo(
        _WARNING,
        "Damaged or missing files were replaced; nothing that was acknowledged was lost.",
        ("path", "rung", "steps", "height", "fenced", "quarantine", "loss"),
    ),
    "blocks_given_up": EventInfo(
        _ERROR,
        "A store went back to what was left of it, as it was told to; 'loss' names the blocks that are gone.",
        ("path", "rung", "steps", "height", "fenced", "quarantine", "loss"),
    ),
    "subscriber_failed": EventInfo(
        _WARNING,
        "A callback raised. Told once for each subscription; it gets later events all the same.",
        ("callback",),
    ),
    "notification_failed": EventInfo(
        _WARNING, "A message could not be delivered; it is not tried again.", ("service", "about")
    ),
}
"""Every event by name. A level of DEBUG is for those who ask: by that level, or by the name."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened. ``fields`` are JSON values; hashes in hex, lower case."""

    name: str
    level: int
    """Of ``logging``, such as ``logging.INFO``."""
    message: str
    """A sentence, for people."""
    time_us: int
    """Microseconds since 1970, UTC."""
    place: str | None
    """URL of the store, or path of the file or directory, where it is known."""
    code: str | None
    """Code of the error behind it."""
    remedy: str | None
    """What to do."""
    fields: Mapping[str, object]

    def as_dict(self) -> dict[str, object]:
        """As JSON values; the level as a word."""
        return {
            "event": self.name,
            "level": logging.getLevelName(self.level).lower(),
            "message": self.message,
            "time_us": self.time_us,
            "place": self.place,
            "code": self.code,
            "remedy": self.remedy,
            "fields": dict(self.fields),
        }


_hushed: ContextVar[bool] = ContextVar("holdfast_hushed", default=False)

# -- telling --------------------------------------------------------------------------------------------------------


def listening(name: str, level: int) -> bool:
    """True if an event of this name and level would be logged or reach a callback."""
    if _logger.isEnabledFor(level):
        return True
    return bool(_subscriptions) and any(each._wants(name, level) for each in _subscriptions)


def make_event(name: str, level: int, message: str, /, **fields: object) -> Event:
    """The event that ``emit`` would tell, as of now."""
    error = fields.pop("error", None)
    place, code, remedy = fields.pop("place", None), fields.pop("code", None), fields.pop("remedy", None)
    if isinstance(error, HoldfastError):
        place = error.context.get("path") if place is None else place
        code, remedy = code or error.code, remedy or error.remedy
    if place is None:
        place = fields.get("url", fields.get("path"))
    return Event(name, level, message, time.time_ns() // 1000, _text(place), _text(code), _text(remedy), fields)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def emit(name: str, level: int, message: str, /, **fields: object) -> None:
    """The event ``name`` is logged and on its way to every callback that wants it. Never waits for a callback.

    Handlers of ``logging`` run in this call.

    Args:
        name: of ``EVENTS``.
        level: of ``logging``, as ``EVENTS`` says.
        message: a sentence, for people; never formatted with ``%``.
        fields: facts, as JSON values. Four of them are attributes of the event: ``place``, else the field ``url`` or
            ``path``; ``code`` and ``remedy``, else those of ``error``, a ``HoldfastError``.
    """
    if not _hushed.get() and listening(name, level):
        deliver(make_event(name, level, message, **fields))


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """What this thread does inside is not told: it happens to a store that is nobody's, and its outcome is told."""
    token = _hushed.set(True)
    try:
        yield
    finally:
        _hushed.reset(token)


def deliver(event: Event) -> None:
    """``event`` is logged and waits for every callback that wants it. Raises nothing."""
    for subscription in _subscriptions:
        if subscription._wants(event.name, event.level):
            subscription._put(event)
    if _logger.isEnabledFor(event.level):
        said = {"code": event.code, "remedy": event.remedy}
        facts = dict(event.fields) | {name: text for name, text in said.items() if text is not None}
        extra = {"holdfast_event": event.name, "holdfast_fields": facts}
        try:
            _logger.log(event.level, event.message, extra=extra, stacklevel=3)
        except Exception:  # noqa: BLE001 - a handler of the program's: what it raises is not about the store
            if logging.raiseExceptions:  # as logging itself says it of its own handlers
                traceback.print_exc()


# -- callbacks ------------------------------------------------------------------------------------------------------

_subscriptions: tuple[Subscription, ...] = ()
_changing = threading.Lock()


def on_event(
    callback: Callable[[Event], object],
    *,
    names: Collection[str] | None = None,
    level: int | str | None = None,
) -> Subscription:
    """``callback`` is called with every event of this process from now on, of every store, until it is closed.

    It runs in a thread of its own, one event after the other. It may do with a store what any thread may: read it, and
    commit to it. (One that commits for each ``saved`` never comes to an end.) An event is told when what it is about
    has happened: a commit that it is about is done, and newer ones may be. What a callback raises is logged once, as
    ``subscriber_failed``. At most 1,000 events wait for it; ``dropped`` counts the others. A child after ``fork()`` has
    no subscriptions.

    Args:
        names: only these events; ``None`` for all.
        level: only from this level on, as a number or word of ``logging``; if not given, ``info`` without ``names``,
            and every level with them.
    Raises:
        InvalidInputError: there is no event of such a name, or no such level.
    """
    if not callable(callback):
        raise InvalidInputError("a callback for events is a function", found=type(callback).__name__)
    if isinstance(names, str):
        raise InvalidInputError("'names' is a collection of names", found=names)
    unknown = sorted(set(names or ()) - set(EVENTS))
    if unknown:
        raise InvalidInputError(
            "there is no event of this name", found=", ".join(unknown), remedy="'holdfast events list'"
        )
    least = level_of(level) if level is not None else logging.INFO if names is None else 0
    return Subscription(callback, frozenset(names) if names is not None else None, least)


def level_of(level: int | str) -> int:
    """The number of a level of ``logging``. Raises ``InvalidInputError``."""
    number = logging.getLevelNamesMapping().get(level.upper()) if isinstance(level, str) else level
    if type(number) is not int:
        raise InvalidInputError("there is no such level", found=repr(level), expected="debug, info, warning, error")
    return number


class Subscription:
    """A callback that hears of events; made by ``on_event``. A context manager that closes it."""

    def __init__(self, callback: Callable[[Event], object], names: frozenset[str] | None, level: int) -> None:
        global _subscriptions
        self._callback = callback
        self._names = names
        self._level = level
        self._changed = threading.Condition()
        self._waiting: deque[Event] = deque()
        self._closed = False
        self._put_count = self._done_count = 0
        self.dropped = 0
        """Events that came while 1,000 were waiting."""
        self.failures = 0
        """How often the callback raised."""
        self._thread = start_thread(self._run, "holdfast-events")
        with _changing:
            _subscriptions = (*_subscriptions, self)

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """True once every event that happened before this call was told; False when the time is over."""
        with self._changed:
            wanted = self._put_count
            return self._changed.wait_for(lambda: self._done_count >= wanted or self._closed, timeout_seconds)

    def close(self, timeout_seconds: float = _CLOSE_SECONDS) -> bool:
        """No later event is told; those that wait are, for at most so long. True if they all were.

        Called by the callback itself, the events that wait are dropped. Twice is harmless.
        """
        global _subscriptions
        with _changing:
            _subscriptions = tuple(each for each in _subscriptions if each is not self)
        own = threading.current_thread() is self._thread
        with self._changed:
            self._closed = True
            if own:
                self._drop_waiting()
            self._changed.notify_all()
        if own:
            return True
        self._thread.join(timeout_seconds)
        with self._changed:
            done = not self._thread.is_alive()
            self._drop_waiting()
        return done

    def _drop_waiting(self) -> None:
        self.dropped += len(self._waiting)
        self._done_count += len(self._waiting)
        self._waiting.clear()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wants(self, name: str, level: int) -> bool:
        return level >= self._level and (self._names is None or name in self._names)

    def _put(self, event: Event) -> None:
        with self._changed:
            if self._closed:
                return
            if len(self._waiting) >= WAITING_EVENTS_MAX:
                self.dropped += 1
                return
            self._waiting.append(event)
            self._put_count += 1
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    if self._closed:
                        return
                    self._changed.wait()
                event = self._waiting.popleft()
            try:
                self._callback(event)
            except BaseException as error:  # noqa: BLE001  # whatever it is, it is the callback's and ends here
                self._failed(error)
            with self._changed:
                self._done_count += 1
                self._changed.notify_all()

    def _failed(self, error: BaseException) -> None:
        self.failures += 1
        if self.failures == 1:
            name = getattr(self._callback, "__qualname__", type(self._callback).__name__)
            emit(
                "subscriber_failed",
                logging.WARNING,
                f"a callback for events raised {type(error).__name__}: {_words(error)}; this is told once",
                callback=name,
            )

    def _forked(self) -> None:
        self._changed = threading.Condition()
        self._closed = True


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - that of a stranger
        return "(its text cannot be had)"


def _after_fork_in_child() -> None:
    """The threads are not there, and a thread that is not there may hold a lock."""
    global _subscriptions, _changing
    for subscription in _subscriptions:
        subscription._forked()
    _subscriptions, _changing = (), threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)


# -- what several places tell ---------------------------------------------------------------------------------------

_told_places: set[tuple[str, str]] = set()


def corruption_found(error: HoldfastError) -> None:
    """Damage that ``error`` describes was found; told once for each place, and for at most 1,000 places."""
    if not listening("corruption_found", logging.ERROR):
        return
    context = error.as_dict()["context"]
    named = error.context.get("path") or error.context.get("table") or error.context.get("segment")
    key = (error.code, str(named))
    if key not in _told_places and len(_told_places) < _PLACES_MAX:
        _told_places.add(key)
        emit("corruption_found", logging.ERROR, str(error), error=error, context=context)


def store_opened(stats: RecoveryStats, *, url: str, engine: str, read_only: bool) -> None:
    """A store is open: what recovery cut off and mended is told, each as an event, and that it is open.

    The journal of a store that is only read may be one that another process writes: it is never clean then, and that
    alone is no warning.
    """
    _told_places.clear()
    for cut in stats.discarded:
        emit(
            "torn_tail_cut",
            logging.WARNING,
            f"{cut.length} bytes that were never acknowledged were set aside ({cut.reason}) as {cut.quarantined_as}",
            url=url,
            segment=cut.segment,
            offset=cut.offset,
            length=cut.length,
            reason=cut.reason,
            quarantined_as=cut.quarantined_as,
        )
    facts = stats.as_dict()
    if stats.eventful or not (stats.clean or read_only):
        told = ("clean", "frames_found", "frames_replayed", "views_rebuilt", "finished_flush", "tree", "notes")
        emit(
            "recovered",
            logging.WARNING,
            "recovered: " + _sentence(stats, url),
            url=url,
            **{name: facts[name] for name in told},
        )
    if listening("opened", logging.INFO):
        emit("opened", logging.INFO, _sentence(stats, url), url=url, engine=engine, read_only=read_only, **facts)


def _sentence(stats: RecoveryStats, url: str) -> str:
    if stats.created:
        return f"created the store {url}"
    parts = [f"{stats.frames_found} frames found", f"{stats.frames_replayed} replayed"]
    parts += [f"{cut.length} bytes set aside ({cut.reason}) as {cut.quarantined_as}" for cut in stats.discarded]
    if stats.damaged_watermark_slots:
        parts.append(f"{stats.damaged_watermark_slots} slots of the watermark were damaged")
    if stats.views_rebuilt:
        parts.append("the views were made anew from the journal")
    if stats.finished_flush:
        parts.append("a begun flush was finished")
    if stats.tree:
        parts.append(f"the state's tree of {stats.tree_keys} keys: {stats.tree.replace('_', ' ')}")
    after = "a clean end" if stats.clean else "an unclean end"
    return f"opened the store {url} after {after} in {stats.seconds:.3f} s: " + ", ".join((*parts, *stats.notes))
