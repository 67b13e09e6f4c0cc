"""What a frame says about blocks, as values: built by a commit or decoded from the journal, then handled the same way.

Invariants:
    * ``FrameContent.parts()`` of decoded content gives the same bytes again.
    * The attached parts of a block follow it in the order header, body, extra; then come its ``executed`` part and
      the ``changes`` of the state.
"""

from __future__ import annotations

from hashlib import sha256

import msgspec

from ..errors import CorruptionError
from ..journal.api import Frame, FrameSource, Kind, Part
from ..merkle.backend import backend
from ..state.rows import Execution
from ..types import Block
from .entries import (
    BlockEntry,
    CanonicalEntry,
    ExecutedEntry,
    FinalizedEntry,
    decode_block,
    decode_canonical,
    decode_executed,
    decode_finalized,
    encode_block,
    encode_canonical,
    encode_executed,
    encode_finalized,
)

__all__ = ["FrameContent", "decode_frame", "entry_of", "read_execution"]

_ATTACHED = frozenset((Kind.HEADER, Kind.BODY, Kind.EXTRA, Kind.EXECUTED, Kind.CHANGES))


class FrameContent(msgspec.Struct):
    """The entries of one frame that concern blocks.

    ``bodies`` holds the blocks themselves when they are at hand (a commit); replay leaves it empty and whoever needs
    a body reads it from the frame.
    """

    blocks: list[BlockEntry] = msgspec.field(default_factory=list)
    canonical: CanonicalEntry | None = None
    finalized: FinalizedEntry | None = None
    bodies: dict[bytes, Block] = msgspec.field(default_factory=dict)
    executions: dict[bytes, Execution] = msgspec.field(default_factory=dict)
    """What blocks of the frame did to the state, by hash."""
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
            execution = self.executions.get(entry.hash)
            if execution is not None:
                entry.executed = len(parts)
                _put_execution(parts, entry.hash, execution, compress=compress)
        if self.canonical is not None:
            parts.append(Part(Kind.CANONICAL, encode_canonical(self.canonical), True))
        if self.finalized is not None:
            parts.append(Part(Kind.FINALIZED, encode_finalized(self.finalized), True))
        return parts


def _put_execution(parts: list[Part], block_hash: bytes, execution: Execution, *, compress: bool) -> None:
    changes = execution.changes
    parts.append(Part(Kind.EXECUTED, encode_executed(ExecutedEntry(block_hash, execution.root, len(changes))), True))
    if changes:
        if execution.data is None:
            execution.data = backend().encode_changes(changes, [key for _, key in execution.inserted])
        parts.append(Part(Kind.CHANGES, execution.data, True, compress))


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


def read_execution(source: FrameSource, frame: Frame, index: int, block_hash: bytes) -> Execution:
    """What the block did to the state, from its ``executed`` part at ``index``. Raises ``CorruptionError``."""
    if index >= len(frame.parts) or frame.parts[index].kind != Kind.EXECUTED:
        raise CorruptionError("a block's executed part is missing", seq=frame.seq, part=index, hash=block_hash)
    entry = decode_executed(source.part(frame, index))
    if entry.hash != block_hash:
        raise CorruptionError("an executed part belongs to another block", seq=frame.seq, part=index, hash=entry.hash)
    if not entry.count:
        return Execution(entry.root, {}, (), ())
    if index + 1 >= len(frame.parts) or frame.parts[index + 1].kind != Kind.CHANGES:
        raise CorruptionError("the changes of a block are missing", seq=frame.seq, part=index + 1, hash=block_hash)
    data = source.part(frame, index + 1)
    try:
        changes, inserted = backend().decode_changes(data)
    except ValueError as error:
        raise CorruptionError(
            f"the changes of a block are malformed: {error}", seq=frame.seq, hash=block_hash
        ) from error
    if len(changes) != entry.count:
        raise CorruptionError(
            "the changes of a block are not as many as it says", seq=frame.seq, found=len(changes), expected=entry.count
        )
    return Execution(
        entry.root,
        changes,
        [(sha256(key).digest(), key) for key in inserted],
        [(sha256(key).digest(), key) for key, value in changes.items() if value is None],
        data,
    )


def decode_frame(source: FrameSource, frame: Frame) -> FrameContent | None:
    """The content of ``frame``, or ``None`` if it says nothing about blocks. Reads headers, bodies and extras not."""
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
            if after < len(frame.parts) and frame.parts[after].kind == Kind.EXECUTED:
                execution = read_execution(source, frame, after, entry.hash)
                content.executions[entry.hash] = execution
                entry.executed = after
                after += 2 if execution.changes else 1
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
        elif kind in _ATTACHED:
            raise CorruptionError("a part stands without the block it belongs to", seq=frame.seq, part=index, kind=kind)
        index += 1
    return content if found else None
