"""What the tools of recovery report: plain values that a terminal prints and ``--json`` dumps.

Invariants:
    * A report is made of facts found, never of an exception: damage is a ``Problem`` with code, place and remedy.
    * ``ok`` is true only if every check of the level ran to its end and found nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..errors import HoldfastError, Recovery

__all__ = ["PROBLEMS_MAX", "Check", "Level", "Problem", "RebuildReport", "VerifyReport"]

Level = Literal["quick", "links", "state", "views", "full"]
PROBLEMS_MAX = 100
"""Problems of one check that are kept in full; the rest is only counted."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong; ``place`` names file, offset, table, key, seq, height or hash where they are known."""

    check: str
    code: str
    exit_code: int
    message: str
    place: Mapping[str, object]
    remedy: str
    recovery: str = Recovery.MANUAL.value
    """What leads on, as ``HoldfastError.recovery``."""

    @classmethod
    def of(cls, check: str, error: HoldfastError) -> Problem:
        """The problem that ``error`` describes."""
        plain = error.as_dict()
        place = plain["context"]
        assert isinstance(place, dict)
        return cls(check, error.code, error.exit_code, error.message, place, error.remedy, error.recovery.value)

    def as_dict(self) -> dict[str, object]:
        """As JSON values."""
        return {
            "check": self.check,
            "code": self.code,
            "message": self.message,
            "place": dict(self.place),
            "remedy": self.remedy,
            "recovery": self.recovery,
        }


@dataclass(frozen=True, slots=True)
class Check:
    """One kind of check: how many things were looked at, how many problems found, and whether it ran to its end."""

    name: str
    checked: int
    problems: int
    complete: bool = True
    seconds: float = 0.0
    """Time it took; of segments that several processes read, theirs added up."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What ``verify`` found. Its exit code is that of the gravest problem, 0 without one."""

    path: str
    level: Level
    ok: bool
    checks: tuple[Check, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()
    stopped: bool = False
    """True if ``stop`` ended it early."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """Last seq, tip, finalized height and the like, as far as they could be read."""
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0, or the exit code of the gravest problem: lost commits before damage before anything else."""
        codes = [problem.exit_code for problem in self.problems]
        if not codes:
            return 0
        return next((code for code in (4, 3) if code in codes), codes[0])

    def as_dict(self) -> dict[str, object]:
        """As JSON values."""
        return {
            "path": self.path,
            "level": self.level,
            "ok": self.ok,
            "stopped": self.stopped,
            "checks": [
                {
                    "name": check.name,
                    "checked": check.checked,
                    "problems": check.problems,
                    "complete": check.complete,
                    "seconds": round(check.seconds, 3),
                }
                for check in self.checks
            ],
            "problems": [problem.as_dict() for problem in self.problems],
            "notes": list(self.notes),
            "facts": dict(self.facts),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """What ``rebuild`` or ``convert`` did: a new generation of views took over from the old one."""

    path: str
    engine: str
    engine_before: str | None
    generation: int
    generation_before: int | None
    frames: int
    blocks: int
    removed: tuple[int, ...]
    """Generations that were deleted: leftovers of earlier attempts, then the old one."""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def as_dict(self) -> dict[str, object]:
        """As JSON values."""
        return {
            "path": self.path,
            "engine": self.engine,
            "engine_before": self.engine_before,
            "generation": self.generation,
            "generation_before": self.generation_before,
            "frames": self.frames,
            "blocks": self.blocks,
            "removed": list(self.removed),
            "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
        }
