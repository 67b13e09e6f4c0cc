"""What ``diff`` found, as plain values.

Invariants:
    * A value is held up to ``VALUE_SHOWN_BYTES_MAX`` bytes, so a report is bounded by the number of its keys.
    * ``as_dict`` gives JSON values; bytes are hex.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Literal

from ..blocks.state import root_after
from ..merkle.values import is_reference
from ..types import BlockInfo

__all__ = [
    "VALUE_SHOWN_BYTES_MAX",
    "BlockDifference",
    "BlockFacts",
    "DiffReport",
    "KeyDifference",
    "Relation",
    "SeenValue",
    "StateDifference",
]

VALUE_SHOWN_BYTES_MAX = 256
"""A longer value is told by length and hash."""

Relation = Literal["equal", "a_behind", "b_behind", "diverged", "nothing_shared"]


@dataclass(frozen=True, slots=True)
class BlockFacts:
    """One block of one side. Lengths are ``None`` for what it was stored without."""

    height: int
    hash: bytes
    parent: bytes
    root: bytes
    header_bytes: int
    body_bytes: int | None
    extra_bytes: int | None

    @classmethod
    def of(cls, info: BlockInfo, null: bytes) -> BlockFacts:
        """The facts of a stored block."""
        root = root_after(info, null)
        return cls(info.height, info.hash, info.parent, root, info.header_bytes, info.body_bytes, info.extra_bytes)

    def as_dict(self) -> dict[str, object]:
        """As JSON values; hashes in hex."""
        return _plain(self)


@dataclass(frozen=True, slots=True)
class BlockDifference:
    """The canonical blocks of both sides at one height; ``parts`` of hash, parent, root, header, body, extra differ."""

    a: BlockFacts
    b: BlockFacts
    parts: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """As JSON values."""
        return {"height": self.a.height, "parts": list(self.parts), "a": self.a.as_dict(), "b": self.b.as_dict()}


@dataclass(frozen=True, slots=True)
class SeenValue:
    """A value: its bytes up to ``VALUE_SHOWN_BYTES_MAX``, else only its length and SHA-256."""

    length: int
    sha256: bytes
    data: bytes | None

    @classmethod
    def of(cls, stored: bytes) -> SeenValue:
        """The value that stands in the tree as ``stored``: itself, or the reference to a large one."""
        if is_reference(stored):
            return cls(int.from_bytes(stored[-40:-32], "big"), stored[-32:], None)
        return cls(len(stored), sha256(stored).digest(), stored if len(stored) <= VALUE_SHOWN_BYTES_MAX else None)

    def as_dict(self) -> dict[str, object]:
        """As JSON values."""
        return _plain(self)


@dataclass(frozen=True, slots=True)
class KeyDifference:
    """A key whose values differ; ``None``: it has none. ``changed_a`` and ``changed_b`` are where it last changed."""

    key: bytes
    a: SeenValue | None
    b: SeenValue | None
    changed_a: BlockFacts | None
    changed_b: BlockFacts | None

    def as_dict(self) -> dict[str, object]:
        """As JSON values."""
        values: dict[str, object] = {"key": self.key.hex()}
        for name in ("a", "b", "changed_a", "changed_b"):
            part = getattr(self, name)
            values[name] = None if part is None else part.as_dict()
        return values


@dataclass(frozen=True, slots=True)
class StateDifference:
    """The states after the canonical blocks at ``height``. ``keys`` are in the order of the hashes of the keys."""

    height: int
    root_a: bytes
    root_b: bytes
    keys: tuple[KeyDifference, ...]
    next_key: bytes | None
    """Where to go on (``from_key``); ``None`` if all were listed."""
    visited: int
    """Nodes of both trees that were looked at."""

    def as_dict(self) -> dict[str, object]:
        """As JSON values."""
        return {
            "height": self.height,
            "root_a": self.root_a.hex(),
            "root_b": self.root_b.hex(),
            "keys": [key.as_dict() for key in self.keys],
            "next_key": None if self.next_key is None else self.next_key.hex(),
            "visited": self.visited,
        }


@dataclass(frozen=True, slots=True)
class DiffReport:
    """What ``diff`` found. ``a`` and ``b`` name the sources, ``tip_a`` and ``tip_b`` are their tips."""

    a: str
    b: str
    facts: dict[str, tuple[object, object]]
    """Facts of the chains that differ, by name."""
    relation: Relation
    """``equal``, one is a prefix of the other (``a_behind``, ``b_behind``), ``diverged``; or no height is shared."""
    tip_a: BlockFacts | None
    tip_b: BlockFacts | None
    common: BlockFacts | None
    """The newest block that both have, as ``a`` has it."""
    first: BlockDifference | None
    """The lowest height at which the canonical chains differ, where both have a block."""
    executed: BlockDifference | None
    """The same block with another root in each: one of the stores executed it differently."""
    state: StateDifference | None
    notes: tuple[str, ...]
    reads: int
    """Blocks that the searches looked up, of both."""

    @property
    def same(self) -> bool:
        """True if nothing that was compared differs."""
        found = self.facts or self.relation != "equal" or self.executed is not None
        return not found and (self.state is None or not self.state.keys)

    def as_dict(self) -> dict[str, object]:
        """As JSON values; bytes in hex."""
        values: dict[str, object] = {"a": self.a, "b": self.b, "same": self.same, "relation": self.relation}
        values["facts"] = {name: list(pair) for name, pair in self.facts.items()}
        for name in ("tip_a", "tip_b", "common", "first", "executed", "state"):
            part = getattr(self, name)
            values[name] = None if part is None else part.as_dict()
        return values | {"notes": list(self.notes), "reads": self.reads}


def _plain(part: BlockFacts | SeenValue) -> dict[str, object]:
    values = ((field.name, getattr(part, field.name)) for field in fields(part))
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in values}
