"""Events as messages: e-mail, chat, SMS and webhooks, through ``apprise`` (the extra ``notify``).

    from holdfast.notify import Notifier

    with Notifier(["mailto://user:password@example.org", "json://127.0.0.1:8080/hook"]):
        ...                         # events of warning and above are sent meanwhile

Invariants:
    * Messages are sent by a thread of their own, with time-outs: no commit waits for a server.
    * A URL may hold secrets. Nothing here prints or logs one, nor lets the libraries below do so: of a URL only its
      first word and its place in the list are told.
    * ``apprise`` is imported only when a ``Notifier`` is made.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import import_module
from types import TracebackType
from typing import Any, Final

from .errors import InvalidInputError
from .events import Event, emit, level_of, on_event

__all__ = ["Notifier", "mask"]

_SECONDS_MAX: Final = 10.0
"""Longest wait for a connection, and for each answer."""
_HOUR_SECONDS: Final = 3600.0
_KEYS_MAX: Final = 1000
_BODY_CHARACTERS_MAX: Final = 4000
_URLS_MAX: Final = 100
_OWN: Final = "notification_failed"
_LOGGERS: Final = (
    "apprise",
    "urllib3.connectionpool",
    "urllib3.util.retry",
    "requests_oauthlib.oauth1_auth",
    "requests_oauthlib.oauth1_session",
    "oauthlib.oauth1.rfc5849",
)


def mask(url: str) -> str:
    """``url`` without anything that may be secret: only what stands before ``://``."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]{0,30})://", url)
    return f"{found[1].lower()}://..." if found else "..."


class Notifier:
    """Sends events to services until it is closed; a context manager.

    Args:
        urls: of ``apprise``, one for each service, such as ``mailto://``, ``slack://`` or ``json://``; at most 100.
        names: only these events; ``None`` for all.
        level: only from this level on; if not given, ``warning`` without ``names``, and every level with them.
        repeat_seconds: an event of the same name and place is not sent again so soon.
        per_hour_max: messages in one hour.
        clock: seconds that only grow.
    Raises:
        InvalidInputError: a URL is of no service, ``names`` or ``level`` are not known, or the extra ``notify`` is not
            installed.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        names: Collection[str] | None = None,
        level: int | str | None = None,
        repeat_seconds: float = 300.0,
        per_hour_max: int = 60,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if isinstance(urls, str) or not 0 < len(urls) <= _URLS_MAX or not all(isinstance(url, str) for url in urls):
            raise InvalidInputError(f"'urls' is a list of 1 to {_URLS_MAX} URLs")
        self._services = _services(urls)
        self._repeat_seconds = repeat_seconds
        self._per_hour_max = per_hour_max
        self._clock = clock
        self._last: dict[tuple[str, str | None], float] = {}
        self._sent_at: deque[float] = deque()
        self._unsaid = 0
        self.sent = 0
        """Messages that every service took."""
        self.failed = 0
        """Messages that a service did not take."""
        self.held_back = 0
        """Events that were repeated too soon, or were too many."""
        least = level_of(level) if level is not None else logging.WARNING if names is None else 0
        self._subscription = on_event(self._hear, names=names, level=least)

    @property
    def dropped(self) -> int:
        """Events that came while 1,000 were waiting."""
        return self._subscription.dropped

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """True once every event that happened before this call was sent or held back; False when the time is over."""
        return self._subscription.wait(timeout_seconds)

    def close(self, timeout_seconds: float = 5.0) -> bool:
        """No later event is sent; those that wait are, for at most so long. True if none is left."""
        return self._subscription.close(timeout_seconds)

    def __enter__(self) -> Notifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, event: Event) -> dict[str, bool]:
        """The message about ``event`` was handed to every service now; for each, masked, whether it took it."""
        title, body = _message(event, self._unsaid)
        self._unsaid = 0
        kind = "failure" if event.level >= logging.ERROR else "warning" if event.level >= logging.WARNING else "info"
        return {label: _deliver(service, title, body, kind) for label, service in self._services.items()}

    def _hear(self, event: Event) -> None:
        if event.name == _OWN:
            return
        if self._too_much(event):
            self.held_back += 1
            self._unsaid += 1
            return
        missed = [label for label, taken in self.send(event).items() if not taken]
        self.failed += bool(missed)
        self.sent += not missed
        for label in missed:
            emit(
                "notification_failed",
                logging.WARNING,
                f"the message about {event.name!r} could not be delivered to {label}",
                service=label,
                about=event.name,
            )

    def _too_much(self, event: Event) -> bool:
        now, key = self._clock(), (event.name, event.place)
        last = self._last.get(key)
        if last is not None and now - last < self._repeat_seconds:
            return True
        while self._sent_at and now - self._sent_at[0] >= _HOUR_SECONDS:
            self._sent_at.popleft()
        if len(self._sent_at) >= self._per_hour_max:
            return True
        self._sent_at.append(now)
        self._last.pop(key, None)
        self._last[key] = now
        if len(self._last) > _KEYS_MAX:
            del self._last[next(iter(self._last))]
        return False


def _services(urls: Sequence[str]) -> dict[str, Any]:
    """The service of each URL by what may be said of it."""
    try:
        apprise: Any = import_module("apprise")
    except ImportError as error:
        raise InvalidInputError(
            "messages need the library apprise, which is not installed",
            remedy="install it with the extra: pip install 'holdfast[notify]'",
        ) from error
    asset = apprise.AppriseAsset(app_id="holdfast", app_desc="holdfast", app_url="", secure_logging=True)
    found: dict[str, Any] = {}
    for number, url in enumerate(urls, 1):
        label = mask(url) if len(urls) == 1 else f"{mask(url)} ({number} of {len(urls)})"
        with _silent():
            service = apprise.Apprise.instantiate(url, asset=asset)
        if service is None:
            raise InvalidInputError(
                f"this is the URL of no service: {label}",
                remedy="the documentation of apprise has the form of the URL of each service",
            )
        service.socket_connect_timeout = min(service.socket_connect_timeout, _SECONDS_MAX)
        service.socket_read_timeout = min(service.socket_read_timeout, _SECONDS_MAX)
        found[label] = service
    return found


def _deliver(service: Any, title: str, body: str, kind: str) -> bool:
    """True if the service took the message."""
    with _silent():
        try:
            return bool(service.notify(body=body, title=title, notify_type=kind, body_format="text"))
        except Exception:  # noqa: BLE001  # a service may raise anything, and what it says may hold the URL
            return False


def _message(event: Event, unsaid: int) -> tuple[str, str]:
    """Title and text."""
    at = datetime.fromtimestamp(event.time_us / 1e6, UTC).isoformat(timespec="seconds")
    lines = [event.message[:_BODY_CHARACTERS_MAX]]
    lines += [f"{word}: {text}" for word, text in (("place", event.place), ("code", event.code)) if text]
    lines += [f"next: {event.remedy}"] if event.remedy else []
    lines.append(f"time: {at}")
    if unsaid:
        lines.append(f"{unsaid} more events were held back since the last message")
    return f"holdfast on {socket.gethostname()}: {event.name.replace('_', ' ')}", "\n".join(lines)


class _OtherThreads(logging.Filter):
    """Lets through what other threads log."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self._thread


@contextmanager
def _silent() -> Iterator[None]:
    """What the libraries below log in this thread is dropped: it may hold URLs."""
    other = _OtherThreads()
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(other)
    try:
        yield
    finally:
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(other)
