"""Values of the journal that its callers see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import msgspec

from ..types import DiscardedFrames

__all__ = [
    "KNOWN_KINDS",
    "PLAIN_KINDS",
    "DurableMark",
    "Frame",
    "FrameSource",
    "JournalRecovery",
    "Kind",
    "Part",
    "PartInfo",
    "TipMark",
]


class Kind:
    """Kinds of parts (docs/FORMAT.md, section 5.2)."""

    BASE = 0x0001
    IDENTITY = 0x0002
    BLOCK = 0x0010
    HEADER = 0x0011
    BODY = 0x0012
    EXTRA = 0x0013
    EXECUTED = 0x0018
    CHANGES = 0x0019
    CANONICAL = 0x0020
    FINALIZED = 0x0021
    FLOOR = 0x0022
    DOCUMENTS = 0x0030
    SAFETY = 0x0040
    INCARNATION = 0x0041
    FENCE = 0x0042
    NOTE = 0x0050


KNOWN_KINDS = frozenset(kind for kind in vars(Kind).values() if isinstance(kind, int))
"""A critical part of any other kind is refused."""

PLAIN_KINDS = frozenset({Kind.BASE, Kind.IDENTITY, Kind.INCARNATION})
"""Parts that are not encrypted in an encrypted store; every other part is."""


class Part(msgspec.Struct, gc=False):
    """A part to append: raw bytes and whether the journal may compress them."""

    kind: int
    data: bytes
    critical: bool = False
    compress: bool = False


class PartInfo(msgspec.Struct, frozen=True, gc=False):
    """A row of the part table, and where the stored bytes begin in the segment file."""

    kind: int
    codec: int
    critical: bool
    stored_bytes: int
    raw_bytes: int
    sha256: bytes
    offset: int


class Frame(msgspec.Struct, frozen=True, gc=False):
    """A frame whose header, digest and part table are verified; part bytes are verified when they are read.

    ``bound``: SHA-256 of header and part table, without the hashes of encrypted parts: what these are bound to. Empty
    if it has none.
    """

    seq: int
    durable_seq: int
    time_us: int
    previous: bytes
    digest: bytes
    segment: int
    offset: int
    length: int
    parts: tuple[PartInfo, ...]
    bound: bytes = b""


class TipMark(msgspec.Struct, frozen=True, gc=False):
    """What the watermark repeats about the tip: height, hash and state root (zeros if none)."""

    height: int
    hash: bytes
    root: bytes


@dataclass(frozen=True, slots=True)
class DurableMark:
    """The content of the newest valid watermark slot."""

    counter: int
    seq: int
    digest: bytes
    segment: int
    end_offset: int
    clean: bool
    tip: TipMark | None


@dataclass(frozen=True, slots=True)
class JournalRecovery:
    """What opening the journal found."""

    clean: bool
    last_seq: int
    last_digest: bytes
    frames_scanned: int
    discarded: tuple[DiscardedFrames, ...]
    damaged_watermark_slots: int


class FrameSource(Protocol):
    """Whoever can read frames by number: the writing journal, or a reader in another process."""

    @property
    def first_seq(self) -> int:
        """Lowest seq that can be read."""

    @property
    def durable_seq(self) -> int:
        """Highest seq known to be durable."""

    def frame(self, seq: int) -> Frame:
        """The verified header of frame ``seq``. Raises ``CorruptionError``; ``NotFoundError`` beyond the end."""

    def frames(self, start_seq: int, stop_seq: int | None = None) -> Iterator[Frame]:
        """Frames from ``start_seq`` up to and without ``stop_seq`` in order, quicker than one by one."""

    def part(self, frame: Frame, index: int) -> bytes:
        """Decoded bytes of part ``index``, hash checked. Raises ``CorruptionError``."""
