"""The log events of a command on stderr, where ``log_level`` asks for them.

Invariants:
    * Without a ``log_level`` in file, environment or arguments nothing is printed and ``logging`` is not touched.
    * With ``--json`` an event is one JSON object on one line, else one line of printable text.
    * What a command changed of ``logging`` is as before when it has ended.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from ..events import LOGGER_NAME
from .output import clean

if TYPE_CHECKING:
    from ..config import LoadedSettings

__all__ = ["log_as_asked", "logs_of_a_command"]


class _OnStderr(logging.Handler):
    """Prints each record at once on the present stderr."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(_as_json(record) if self._as_json else _as_text(record), file=sys.stderr, flush=True)
        except Exception:  # noqa: BLE001 - as every handler of logging: the program goes on without its log
            self.handleError(record)


def _as_text(record: logging.LogRecord) -> str:
    return f"log: {record.levelname.lower()}: {clean(record.getMessage())}"


def _as_json(record: logging.LogRecord) -> str:
    values = {
        "log": record.levelname.lower(),
        "time": round(record.created, 6),
        "event": getattr(record, "holdfast_event", None),
        "message": record.getMessage(),
        "fields": getattr(record, "holdfast_fields", {}),
    }
    return json.dumps(values, default=str)


_handler: ContextVar[_OnStderr | None] = ContextVar("handler", default=None)


@contextmanager
def logs_of_a_command(*, as_json: bool) -> Iterator[None]:
    """``log_as_asked`` has an effect inside, and none any more afterwards."""
    logger = logging.getLogger(LOGGER_NAME)
    handler, level = _OnStderr(as_json=as_json), logger.level
    token = _handler.set(handler)
    try:
        yield
    finally:
        _handler.reset(token)
        if handler in logger.handlers:
            logger.removeHandler(handler)
            logger.setLevel(level)


def log_as_asked(loaded: LoadedSettings) -> None:
    """Events from ``log_level`` on appear on stderr, if some source of the settings has set it."""
    handler = _handler.get()
    if handler is None or loaded.sources["log_level"] == "default":
        return
    logger = logging.getLogger(LOGGER_NAME)
    logger.setLevel(loaded.settings.log_level.upper())
    logger.addHandler(handler)  # a second time changes nothing
