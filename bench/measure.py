"""What every benchmark shares: the plan it is given, the figures it gives back, and how rounds alternate.

Invariants:
    * A bench never fails because of a figure: a bar that is missed is reported as missed.
    * Rounds of the contestants alternate, and the order turns by one in each round, so that whatever disturbs the
      machine disturbs all of them alike. A ratio is taken within a round; what is reported is the median of the ratios.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

__all__ = ["Bar", "Plan", "Result", "Row", "SizeName", "Timed", "alternate", "median", "percentile", "rate_row", "row"]

SizeName = Literal["full", "quick", "smoke"]
T = TypeVar("T")
SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a bench may write, and how much it does."""

    directory: Path
    """An empty directory on the file system to be measured; removed afterwards."""
    size: SizeName

    def pick(self, full: T, quick: T, smoke: T) -> T:
        """The one of the three that belongs to the size."""
        return {"full": full, "quick": quick, "smoke": smoke}[self.size]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of figures; ``p99`` is ``None`` where there are too few samples to speak of one."""

    name: str
    unit: str
    median: float
    p99: float | None
    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure that the project promises."""

    text: str
    found: float
    limit: float
    at_least: bool
    """True if the figure must reach the limit, False if it must not exceed it."""

    @property
    def met(self) -> bool:
        """True if the promise holds in this run."""
        return self.found >= self.limit if self.at_least else self.found <= self.limit


@dataclass(slots=True)
class Result:
    """What a bench found."""

    bench: str
    rows: list[Row] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Timed:
    """The times of one round: each operation, the whole, and the processor time of the calling thread."""

    ns: list[int]
    elapsed_ns: int
    cpu_ns: int

    @property
    def rate(self) -> float:
        """Operations per second of the round."""
        return len(self.ns) * SECOND_NS / self.elapsed_ns


def timed(step: Callable[[int], object], first: int, count: int) -> Timed:
    """``step(first)``, ``step(first + 1)`` and so on, each timed."""
    clock = time.perf_counter_ns
    times: list[int] = []
    cpu = time.thread_time_ns()
    begun = before = clock()
    for number in range(first, first + count):
        step(number)
        now = clock()
        times.append(now - before)
        before = now
    return Timed(times, before - begun, time.thread_time_ns() - cpu)


def alternate(
    steps: Mapping[str, Callable[[int], object]], *, rounds: int, per_round: int, warm_up: int
) -> dict[str, list[Timed]]:
    """The rounds of every contestant, by name. A step gets the running number of its operation, from 0."""
    names = list(steps)
    found: dict[str, list[Timed]] = {name: [] for name in names}
    for name in names:
        timed(steps[name], 0, warm_up)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            found[name].append(timed(steps[name], warm_up + number * per_round, per_round))
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of ``values`` do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def median(values: Sequence[float]) -> float:
    """The value in the middle."""
    return percentile(values, 0.5)


def row(name: str, unit: str, values: Sequence[float]) -> Row:
    """The line for ``values``."""
    p99 = percentile(values, 0.99) if len(values) >= 100 else None
    return Row(name, unit, median(values), p99, min(values), max(values), len(values))


def latency_row(name: str, rounds: Sequence[Timed]) -> Row:
    """Microseconds of each operation of all rounds."""
    return row(name, "us", [ns / 1000 for timing in rounds for ns in timing.ns])


def rate_row(name: str, rounds: Sequence[Timed]) -> Row:
    """Operations per second, a value for each round."""
    return row(name, "/s", [timing.rate for timing in rounds])


def cpu_row(name: str, rounds: Sequence[Timed]) -> Row:
    """Microseconds of processor per operation in the calling thread, a value for each round."""
    return row(name, "us", [timing.cpu_ns / 1000 / len(timing.ns) for timing in rounds])


def ratio_row(name: str, above: Sequence[Timed], below: Sequence[Timed]) -> Row:
    """Rate of ``above`` over rate of ``below``, a value for each round."""
    return row(name, "x", [mine.rate / floor.rate for mine, floor in zip(above, below, strict=True)])
