"""What a frame says about blocks, as values: built by a commit or decoded from the journal, then handled the same way.

Invariants:
    * ``FrameContent.parts()`` of decoded content gives the same bytes again.
    * The attached parts of a block follow it in the order header, body, extra.
"""

from __future__ import annotations

import msgspec

from ..errors import CorruptionError
from ..journal.api import Frame, FrameSource, Kind, Part
from ..types import Block
from .entries import (
    BlockEntry,
    CanonicalEntry,
    FinalizedEntry,
    decode_block,
    decode_canonical,
    decode_finalized,
    encode_block,
    encode_canonical,
    encode_finalized,
)

__all__ = ["FrameContent", "decode_frame", "entry_of"]

_KNOWN_BLOCK_KINDS = frozenset(
    (Kind.BLOCK, Kind.HEADER, Kind.BODY, Kind.EXTRA, Kind.CANONICAL, Kind.FINALIZED, Kind.FLOOR)
)


class FrameContent(msgspec.Struct):
    """The entries of one frame that concern blocks.

    ``bodies`` holds the blocks themselves when they are at hand (a commit); replay leaves it empty and whoever needs
    a body reads it from the frame.
    """

    blocks: list[BlockEntry] = msgspec.field(default_factory=list)
    canonical: CanonicalEntry | None = None
    finalized: FinalizedEntry | None = None
    bodies: dict[bytes, Block] = msgspec.field(default_factory=dict)
    seq: int = 0
    """The frame it was decoded from; 0 for a commit."""

    def parts(self, *, compress: bool) -> list[Part]:
        """The parts to append; ``compress`` allows the journal to compress headers, bodies and extras."""
        parts: list[Part] = []
        for entry in self.blocks:
            block = self.bodies[entry.hash]
            entry.part = len(parts)
            parts.append(Part(Kind.BLOCK, encode_block(entry), True))
            if entry.header_bytes is not None:
                parts.append(Part(Kind.HEADER, block.header, False, compress))
            if block.body is not None:
                parts.append(Part(Kind.BODY, block.body, False, compress))
            if block.extra is not None:
                parts.append(Part(Kind.EXTRA, block.extra, False, compress))
        if self.canonical is not None:
            parts.append(Part(Kind.CANONICAL, encode_canonical(self.canonical), True))
        if self.finalized is not None:
            parts.append(Part(Kind.FINALIZED, encode_finalized(self.finalized), True))
        return parts


def entry_of(block: Block, total_work: int) -> BlockEntry:
    """The entry of a block about to be stored; its part number is set when the frame is put together."""
    return BlockEntry(
        block.hash,
        block.parent,
        block.height,
        block.time,
        block.work,
        total_work,
        block.producer,
        len(block.header) if block.header else None,
        len(block.body) if block.body is not None else None,
        len(block.extra) if block.extra is not None else None,
    )


def _attached(frame: Frame, index: int, kind: int, wanted: bool) -> tuple[int | None, int]:
    """Raw length of the attached part at ``index`` if wanted, and the index of the next part."""
    if not wanted:
        return None, index
    if index >= len(frame.parts) or frame.parts[index].kind != kind:
        raise CorruptionError("a block's attached part is missing", seq=frame.seq, part=index, expected=kind)
    return frame.parts[index].raw_bytes, index + 1


def decode_frame(source: FrameSource, frame: Frame) -> FrameContent | None:
    """The content of ``frame``, or ``None`` if it says nothing about blocks. Reads the small parts only."""
    content = FrameContent(seq=frame.seq)
    found = False
    index = 0
    while index < len(frame.parts):
        kind = frame.parts[index].kind
        if kind == Kind.BLOCK:
            entry, header, body, extra = decode_block(source.part(frame, index))
            entry.part = index
            entry.header_bytes, after = _attached(frame, index + 1, Kind.HEADER, header)
            entry.body_bytes, after = _attached(frame, after, Kind.BODY, body)
            entry.extra_bytes, after = _attached(frame, after, Kind.EXTRA, extra)
            content.blocks.append(entry)
            found = True
            index = after
            continue
        if kind == Kind.CANONICAL:
            content.canonical = decode_canonical(source.part(frame, index))
            found = True
        elif kind == Kind.FINALIZED:
            content.finalized = decode_finalized(source.part(frame, index))
            found = True
        elif kind in _KNOWN_BLOCK_KINDS and kind != Kind.FLOOR:
            raise CorruptionError("a part stands without the block it belongs to", seq=frame.seq, part=index, kind=kind)
        index += 1
    return content if found else None
