"""What the doctor says: findings, plans with their cost and loss, and what a repair did. Plain values."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from ..errors import InvalidInputError

__all__ = [
    "LOST_NAMES_MAX",
    "REPAIR_NAME",
    "DoctorReport",
    "Finding",
    "Loss",
    "LostBlock",
    "Plan",
    "RepairReport",
    "Rung",
    "Step",
    "check_rung",
]

REPAIR_NAME = "repair"
"""Directory in a store in which a repair is made ready."""

LOST_NAMES_MAX = 100
"""Blocks that a loss names; all of them are counted."""

Rung = Literal["lossless", "backup", "checkpoint"]


def check_rung(rung: object) -> Rung:
    """``rung``, which is one. Raises ``InvalidInputError``."""
    if rung not in get_args(Rung):
        raise InvalidInputError("there is no such rung", found=rung, expected=", ".join(get_args(Rung)))
    return rung  # type: ignore[return-value]


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at. ``state``: ``sound``, ``damaged``, ``missing``, ``unknown`` or ``none``."""

    part: str
    name: str
    state: str
    detail: str = ""


class LostBlock(msgspec.Struct, frozen=True):
    """A block that would not be there any more; the hash in hex."""

    height: int
    hash: str


class Loss(msgspec.Struct, frozen=True):
    """What a plan gives up. ``names`` are the lowest blocks of ``blocks`` that are known, side blocks too.

    Heights from ``from_height`` to ``to_height`` are no longer there. Not ``complete``: some of those blocks have no
    name any more. ``also`` says what else is lost.
    """

    blocks: int
    from_height: int | None
    to_height: int | None
    names: tuple[LostBlock, ...]
    complete: bool
    also: str = ""


class Step(msgspec.Struct, frozen=True):
    """One change: the file, what becomes of it, where its bytes come from, and how many are written."""

    name: str
    action: Literal["replace", "add", "seal", "cut", "set aside"]
    source: str
    bytes: int


class Plan(msgspec.Struct, frozen=True):
    """How to go on. ``write_bytes`` is its cost beside the replay of ``frames`` where views are made anew.

    ``loss`` is ``None`` if nothing that was acknowledged is lost. ``height`` is that of the tip afterwards, where it is
    known.
    """

    rung: Rung
    steps: tuple[Step, ...]
    write_bytes: int
    frames: int
    height: int | None
    fenced: bool
    loss: Loss | None


class DoctorReport(msgspec.Struct, frozen=True):
    """The state of a store at rest. ``plan`` loses nothing; ``others`` would, and are only executed when asked for.

    ``reasons`` say why there is no plan without loss, or why a source cannot be used.
    """

    path: str
    sound: bool
    code: str | None
    problem: str | None
    findings: tuple[Finding, ...]
    plan: Plan | None
    others: tuple[Plan, ...]
    reasons: tuple[str, ...]
    seconds: float

    def as_dict(self) -> dict[str, object]:
        """As plain JSON values."""
        values: dict[str, object] = msgspec.to_builtins(self)
        return {**values, "seconds": round(self.seconds, 3)}


class RepairReport(msgspec.Struct, frozen=True):
    """What was done to a store. Files that were replaced lie in ``quarantine``, below the store."""

    path: str
    plan: Plan
    quarantine: str
    seconds: float

    def as_dict(self) -> dict[str, object]:
        """As plain JSON values."""
        values: dict[str, object] = msgspec.to_builtins(self)
        return {**values, "seconds": round(self.seconds, 3)}
