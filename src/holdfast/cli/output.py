"""What the commands print: JSON or plain text on stdout, errors and notes on stderr.

Invariants:
    * stdout carries only the answer; with ``--json`` it is exactly one JSON value (of a listing of the state, one
      object a line), and an error is exactly one JSON object on stderr, below the log events, if any were asked for.
    * Text that came from a chain never reaches a terminal raw: what is not printable is escaped.
    * A reader that went away (SIGPIPE) ends the command quietly after the store is closed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain, islice

from .._fs import translate_os_error
from ..errors import HoldfastError

__all__ = [
    "Output",
    "PipeClosed",
    "bytes_text",
    "clean",
    "count_text",
    "flush_output",
    "forget_stdout",
    "json_asked",
    "print_error",
    "time_text",
]

_ROWS_MEASURED = 100


class PipeClosed(BaseException):
    """Nobody reads our output any more. Not an ``Exception``: no handler on the way out may take it for a failure."""


def json_asked(args: Sequence[str]) -> bool:
    """True if the command line or the environment asks for JSON, also where the arguments cannot be parsed."""
    return "--json" in args or os.environ.get("HOLDFAST_JSON", "").lower() in ("1", "true", "yes", "on")


def clean(value: object) -> str:
    """``value`` as one line of printable text."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def bytes_text(count: float) -> str:
    """A size for people: ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def count_text(count: float) -> str:
    """A count or a rate for people: ``12,345``; one decimal below ten."""
    return f"{count:,.1f}" if count < 10 and count != int(count) else f"{count:,.0f}"


def time_text(seconds: int) -> str:
    """A chain's time for people, in UTC; the bare number where the calendar ends."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return str(seconds)


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
    except BrokenPipeError:
        raise PipeClosed from None
    except OSError as error:
        forget_stdout()
        raise translate_os_error(error, "stdout") from error


def forget_stdout() -> None:
    """The interpreter's last flush goes nowhere instead of failing."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def flush_output() -> None:
    """What was printed has left this process; else a typed error, or ``PipeClosed``."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise PipeClosed from None
    except OSError as error:
        forget_stdout()
        raise translate_os_error(error, "stdout") from error


class Output:
    """Prints answers in the form that was asked for."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def record(self, values: Mapping[str, object]) -> None:
        """One answer with named fields."""
        if self.as_json:
            _write(json.dumps(values, indent=2, default=str) + "\n")
            return
        width = max((len(name) for name in values), default=0)
        for name, value in values.items():
            if isinstance(value, Mapping):
                _write(f"{_label(name)}\n")
                inner = max((len(key) for key in value), default=0)
                for key, item in value.items():
                    _write(f"  {_label(key).ljust(inner)}  {_plain(item)}\n")
            else:
                _write(f"{_label(name).ljust(width)}  {_plain(value)}\n")

    def rows(self, columns: Sequence[str], rows: Iterable[Mapping[str, object]], *, empty: str = "nothing") -> int:
        """A table, printed as it comes; how many rows. Text shows ``columns``; JSON shows every field of a row."""
        return self._json_rows(rows) if self.as_json else self._text_rows(columns, iter(rows), empty)

    def _json_rows(self, rows: Iterable[Mapping[str, object]]) -> int:
        count = 0
        try:
            for row in rows:
                _write(("[\n" if count == 0 else ",\n") + json.dumps(row, default=str))
                count += 1
        except HoldfastError:
            if count:
                _write("\n]\n")  # what was printed stays one JSON value; the error follows on stderr
            raise
        _write("\n]\n" if count else "[]\n")
        return count

    def _text_rows(self, columns: Sequence[str], rows: Iterator[Mapping[str, object]], empty: str) -> int:
        head = list(islice(rows, _ROWS_MEASURED))
        if not head:
            _write(f"{empty}\n")
            return 0
        widths = {name: max(len(_label(name)), *(len(_plain(row.get(name))) for row in head)) for name in columns}
        numeric = {name: all(isinstance(row.get(name), int | float | None) for row in head) for name in columns}
        _write("  ".join(_label(name).ljust(widths[name]) for name in columns).rstrip() + "\n")
        count = 0
        for row in chain(head, rows):
            cells = []
            for name in columns:
                text = _plain(row.get(name))
                cells.append(text.rjust(widths[name]) if numeric[name] else text.ljust(widths[name]))
            _write("  ".join(cells).rstrip() + "\n")
            count += 1
        return count

    def lines(self, columns: Sequence[str], rows: Iterable[Mapping[str, object]], *, empty: str = "nothing") -> int:
        """As ``rows``, for listings without an end: JSON is one object a line, each complete where it stands."""
        if not self.as_json:
            return self._text_rows(columns, iter(rows), empty)
        count = 0
        for row in rows:
            _write(json.dumps(row, default=str) + "\n")
            count += 1
        return count

    def data(self, data: bytes) -> None:
        """Bytes as they are, for another program."""
        flush_output()
        try:
            sys.stdout.buffer.write(data)
        except BrokenPipeError:
            raise PipeClosed from None
        except OSError as error:
            forget_stdout()
            raise translate_os_error(error, "stdout") from error

    def text(self, text: str) -> None:
        """Text as it is, for answers that have no fields."""
        _write(text)

    def note(self, text: str) -> None:
        """A sentence for people, on stderr; nothing with ``--json``."""
        if not self.as_json:
            print(clean(text), file=sys.stderr, flush=True)


def _label(name: str) -> str:
    return name.replace("_", " ")


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value) or "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{_label(str(key))} {_plain(item)}" for key, item in value.items()) or "-"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    return clean(value) or "-"


def print_error(error: HoldfastError, *, as_json: bool) -> None:
    """The error on stderr: one JSON object, or a sentence with its code, its strategy of recovery and the next step."""
    if as_json:
        text = json.dumps(error.as_dict())
    else:
        text = f"error: {clean(error)} [{error.code}, recovery: {error.recovery.value}]\nnext: {clean(error.remedy)}"
    print(text, file=sys.stderr, flush=True)
