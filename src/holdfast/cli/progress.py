"""Long work: its progress on stderr, and how it is asked to stop.

Invariants:
    * On a terminal a bar with rate, time left and memory; elsewhere plain lines, at most one per interval, and one at
      the end. With ``--json`` nothing is printed.
    * The first SIGINT or SIGTERM asks the work to stop at its next safe point; a second one interrupts it.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import typer

from .output import Output, bytes_text, count_text

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = [
    "INTERRUPTED",
    "Count",
    "Progress",
    "SecondStage",
    "StopSignals",
    "end_if_stopped",
    "memory_bytes",
    "with_progress",
]

INTERRUPTED = 130
_AGAIN = "run the same command again, it goes on from there"
_T = TypeVar("_T")


def memory_bytes() -> int:
    """Resident memory of this process."""
    import psutil

    return int(psutil.Process().memory_info().rss)


class StopSignals:
    """While it is entered, signals set ``asked`` instead of interrupting. A call of it says whether to stop."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, object] = {}

    def __call__(self) -> bool:
        return self.asked

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class Progress:
    """How far long work is. ``total`` may be ``None`` if nobody knows.

    Without ``last_line`` work that ends within the first interval prints nothing where there is no terminal.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        *,
        unit: str = "blocks",
        quiet: bool = False,
        seconds: float = 2.0,
        last_line: bool = True,
    ) -> None:
        self.title = title
        self.total = total
        self.unit = unit
        self._quiet = quiet
        self._last_line = last_line
        self._seconds = seconds
        self._started = time.monotonic()
        self._printed = self._started
        self._done = 0
        self._done_printed = -1
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """The bar is gone, or the last line is printed; twice is harmless."""
        if self._bar is not None:
            self._bar.stop()
            self._bar, self._quiet = None, True
        elif not self._quiet and self._last_line and self._done and self._done != self._done_printed:
            self._line("")

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[memory]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(self.title, total=self.total, count="", rate="", memory="")
        self._bar.start()

    def stage(self, title: str, done: int, total: int) -> None:
        """As ``update``, for work of several stages; a ``total`` of 0 is not known."""
        if title != self.title:
            self.title = title
            self._started = time.monotonic()
            if self._bar is not None and self._task is not None:
                self._bar.reset(self._task, description=title, total=total or None)
        if (total or None) != self.total:
            self.total = total or None
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, total=self.total)
        self.update(done)

    def update(self, done: int, detail: str = "") -> None:
        """``done`` of the total is finished and safe; ``detail`` is shown beside it."""
        self._done = done
        if self._quiet:
            return
        now = time.monotonic()
        if self._bar is None and sys.stderr.isatty():
            self._open_bar()
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task,
                completed=done,
                count=f"{self._count()} {detail}".rstrip(),
                rate=f"{count_text(self._rate(now))} {self.unit}/s",
                memory=bytes_text(memory_bytes()),
            )
        elif now - self._printed >= self._seconds:
            self._printed = now
            self._line(detail)

    def _count(self) -> str:
        return f"{self._done:,}" if self.total is None else f"{self._done:,}/{self.total:,}"

    def _rate(self, now: float) -> float:
        return self._done / max(now - self._started, 1e-6)

    def _line(self, detail: str) -> None:
        now = time.monotonic()
        rate = self._rate(now)
        parts = [f"{self.title}: {self._count()} {self.unit}", f"{count_text(rate)}/s"]
        if self.total is not None and rate > 0:
            parts.append(f"ETA {max(self.total - self._done, 0) / rate:.0f} s")
        parts.append(f"memory {bytes_text(memory_bytes())}")
        if detail:
            parts.append(detail)
        self._done_printed = self._done
        print(", ".join(parts), file=sys.stderr, flush=True)


class Count(NamedTuple):
    """What work said last of how far it is; a ``total`` of 0 is not known."""

    done: int
    total: int


class SecondStage(NamedTuple):
    """Work that follows in the same call. ``began`` gets two counts that came one after the other."""

    title: str
    unit: str
    kept: str
    began: Callable[[Count, Count], bool]


class _Stopped(Exception):
    """A signal asked the work to end."""


def with_progress(
    title: str,
    work: Callable[[Callable[[int, int], None]], _T],
    out: Output,
    seconds: float,
    kept: str,
    *,
    unit: str,
    second: SecondStage | None = None,
    again: str = _AGAIN,
) -> _T:
    """What ``work`` gives, which is called with what it tells (done, total) to.

    A signal ends it at its next word, and the command with exit code 130, after a note that says what is ``kept`` and
    what to do next.
    """
    before = Count(0, 0)
    with (
        StopSignals() as stop,
        Progress(title, None, unit=unit, quiet=out.as_json, seconds=seconds) as progress,
    ):

        def step(done: int, total: int) -> None:
            nonlocal title, kept, before, second
            now = Count(done, total)
            if second is not None and second.began(before, now):
                title, progress.unit, kept, second = second.title, second.unit, second.kept, None
            before = now
            progress.stage(title, done, total)
            if stop():
                raise _Stopped

        try:
            return work(step)
        except _Stopped:
            pass
    out.note(f"stopped; {kept}. next: {again}")
    raise typer.Exit(INTERRUPTED)


def end_if_stopped(out: Output, *, complete: bool) -> None:
    """Nothing happens where the work is complete; else the command ends with exit code 130, and says what is next."""
    if not complete:
        out.note(f"stopped; what was done stays. next: {_AGAIN}")
        raise typer.Exit(INTERRUPTED)
