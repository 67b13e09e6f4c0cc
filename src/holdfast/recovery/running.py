"""A verify in progress: its checks, what they found, and what its caller is told meanwhile.

Invariants:
    * Checks and their problems stand in the report in the order in which the checks were made, however they ran.
    * A check that was not ended is not complete.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from ..errors import HoldfastError
from .report import PROBLEMS_MAX, Check, Problem

__all__ = ["Progress", "Stopped", "Tally", "Verification"]

Progress = Callable[[str, int, int], None]
"""(name of the check, done, total); total 0 when it is not known."""

_TELL_SECONDS = 0.5


class Stopped(Exception):
    """``stop`` said yes; the report says how far it came."""


class Tally:
    """One check, entered when it begins: an error inside becomes a problem and ends the check early."""

    def __init__(self, name: str, tick: Callable[[str, int, int], None]) -> None:
        self._tick = tick
        self._started = 0.0
        self._told = 0.0
        self.name = name
        self.total = 0
        """Things that are expected to be looked at; 0 when it is not known."""
        self.checked = 0
        self.count = 0
        """Problems found; the first ``PROBLEMS_MAX`` of them are kept."""
        self.problems: list[Problem] = []
        self.complete = False
        self.seconds = 0.0

    def __enter__(self) -> Tally:
        self._started = self._told = time.monotonic()
        self._tick(self.name, 0, self.total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.seconds = max(self.seconds, time.monotonic() - self._started)
        if isinstance(error, HoldfastError):
            self.problem(error)
        self.complete = error is None
        return isinstance(error, HoldfastError)

    def step(self, count: int = 1, total: int = 0) -> None:
        """``count`` more things were looked at; 0 only shows that work goes on. Raises ``Stopped``."""
        before = self.checked
        self.checked += count
        if not count or before >> 10 != self.checked >> 10 or time.monotonic() - self._told >= _TELL_SECONDS:
            self._told = time.monotonic()
            self._tick(self.name, self.checked, total or self.total)

    def problem(self, error: HoldfastError) -> None:
        """Something is wrong."""
        self.count += 1
        if self.count <= PROBLEMS_MAX:
            self.problems.append(Problem.of(self.name, error))

    def take(self, other: Tally) -> None:
        """What another process found for this check."""
        self.checked += other.checked
        self.count += other.count
        self.problems += other.problems[: max(0, PROBLEMS_MAX - len(self.problems))]
        self.complete = other.complete
        self.seconds += other.seconds

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_tick"}

    def as_check(self) -> Check:
        """As it stands in the report."""
        return Check(self.name, self.checked, self.count, self.complete, self.seconds)


class Verification:
    """A verify in progress: what was found so far."""

    def __init__(self, progress: Progress | None, stop: Callable[[], bool] | None) -> None:
        self._progress = progress
        self._stop = stop
        self._tallies: list[Tally] = []
        self.notes: list[str] = []
        self.facts: dict[str, object] = {}

    @property
    def checks(self) -> tuple[Check, ...]:
        """Every check, in order."""
        return tuple(tally.as_check() for tally in self._tallies)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What they found, in the same order."""
        return tuple(problem for tally in self._tallies for problem in tally.problems)

    def tick(self, name: str, done: int, total: int) -> None:
        """Tell the caller how far it is. Raises ``Stopped``."""
        if self._progress is not None:
            self._progress(name, done, total)
        if self._stop is not None and self._stop():
            raise Stopped

    def check(self, name: str) -> Tally:
        """The next check of the report; it is in there, complete or not."""
        tally = Tally(name, self.tick)
        self._tallies.append(tally)
        return tally
