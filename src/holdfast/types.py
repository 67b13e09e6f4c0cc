"""Values that cross floors: blocks, their stored form, and what a store reports about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import NewType

import msgspec

__all__ = [
    "ZERO_HASH",
    "AddResult",
    "AddStatus",
    "Block",
    "BlockInfo",
    "BlockStatus",
    "DiscardedFrames",
    "Height",
    "OrphanInfo",
    "RecoveryStats",
    "ReorgInfo",
    "TipInfo",
]

Height = NewType("Height", int)

ZERO_HASH = bytes(32)


class BlockStatus(str, Enum):
    """Where a stored block stands."""

    CANONICAL = "canonical"
    ORPHANED = "orphaned"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class Block:
    """A block as its chain decodes it, before it is stored.

    ``hash`` and ``parent`` are 32 bytes in the chain's own byte order of the hash function (not reversed for
    display). ``work`` is this block's own target work, ``0 <= work < 2**256``. ``time`` is the chain's timestamp in
    seconds. ``body`` is ``None`` for a block of which only the header is known.
    """

    hash: bytes
    parent: bytes
    height: int
    header: bytes
    body: bytes | None
    time: int = 0
    work: int = 1
    producer: bytes = b""
    extra: bytes | None = None


class BlockInfo(msgspec.Struct, frozen=True, gc=False):
    """A stored block without its bytes. ``total_work`` is cumulative target work; ``seq`` its journal frame.

    ``seen_us`` is the time of the frame that brought it (microseconds since 1970, UTC), ``index`` the number of its
    entry among the frame's parts.
    """

    hash: bytes
    parent: bytes
    height: int
    time: int
    work: int
    total_work: int
    producer: bytes
    seq: int
    part: int
    seen_us: int
    header_bytes: int
    body_bytes: int | None
    extra_bytes: int | None = None
    state_root: bytes | None = None
    """Root of the state after the block; ``None`` while no block of its branch has executed anything."""
    executed: int | None = None
    """Number of its ``executed`` part in the frame; ``None`` if it left the state as it was."""


@dataclass(frozen=True, slots=True)
class OrphanInfo:
    """A stored block that is not canonical, and why."""

    hash: bytes
    height: int
    reason: str
    competing_hash: bytes | None
    seen_us: int
    orphaned_us: int
    was_canonical: bool


@dataclass(frozen=True, slots=True)
class TipInfo:
    """A leaf of the block tree. ``branch_length`` counts its blocks that are not canonical; the active tip has 0."""

    hash: bytes
    height: int
    branch_length: int
    status: str
    """``active``, ``fork``, ``waiting`` or ``invalid``."""


@dataclass(frozen=True, slots=True)
class ReorgInfo:
    """One switch of the canonical chain: everything above ``fork`` was replaced."""

    fork_height: int
    fork_hash: bytes
    old_tip: bytes
    new_tip: bytes
    orphaned: tuple[bytes, ...]
    adopted: tuple[bytes, ...]


class AddStatus(str, Enum):
    """What became of an added block."""

    EXTENDED = "extended"
    REORGANISED = "reorganised"
    SIDE = "side"
    WAITING = "waiting"
    KNOWN = "known"


class AddResult(msgspec.Struct, frozen=True):
    """The answer of ``store.add``: what became of the block, and of blocks that waited for it."""

    status: AddStatus
    block: BlockInfo | None
    reorg: ReorgInfo | None = None
    connected: tuple[bytes, ...] = ()
    """Hashes of waiting blocks that this one connected."""


@dataclass(frozen=True, slots=True)
class DiscardedFrames:
    """Bytes after the last valid frame that were never acknowledged, moved to ``quarantine/``."""

    segment: int
    offset: int
    length: int
    reason: str
    quarantined_as: str


@dataclass(frozen=True, slots=True)
class RecoveryStats:
    """What opening a store found and did."""

    created: bool = False
    clean: bool = True
    frames_found: int = 0
    frames_replayed: int = 0
    discarded: tuple[DiscardedFrames, ...] = ()
    damaged_watermark_slots: int = 0
    views_rebuilt: bool = False
    finished_flush: bool = False
    last_seq: int = 0
    tip_height: int | None = None
    finalized_height: int | None = None
    seconds: float = 0.0
    notes: tuple[str, ...] = field(default=())
    state_root: bytes | None = None
    """Root of the state after the tip, 32 bytes; ``None`` in a store that holds no state."""
    tree: str = ""
    """How the tree over the state came to be: ``image``, ``caught_up`` or ``rebuilt``; empty without one."""
    tree_keys: int = 0
    """Keys in that tree."""
    repaired: Mapping[str, object] | None = None
    """What had to be repaired before it could be opened, as JSON values: plan, steps, and the loss if there was one."""

    @property
    def eventful(self) -> bool:
        """True if anything was cut off, finished or made anew: an operator should know."""
        return bool(
            self.discarded
            or self.damaged_watermark_slots
            or self.views_rebuilt
            or self.finished_flush
            or self.tree == "rebuilt"
            or self.notes
            or self.repaired is not None
        )

    def as_dict(self) -> dict[str, object]:
        """As JSON values; hashes in hex."""
        values = asdict(self)
        values["discarded"] = [asdict(cut) for cut in self.discarded]
        values["notes"] = list(self.notes)
        values["state_root"] = self.state_root.hex() if self.state_root is not None else None
        return values
