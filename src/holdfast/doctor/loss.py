"""What a plan would give up: the blocks that no frame of the result holds, by name as far as any file still names them.

Invariants:
    * Everything that can still be read is asked: frames behind the damage, the watermark, the parents of blocks.
    * Names are bounded, counts are not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from .._fs import File, FileSystem
from .._seal import PartCipher
from ..blocks.entries import BlockEntry, decode_block, decode_canonical
from ..errors import HoldfastError
from ..journal.api import Frame, Kind, TipMark
from ..journal.codec import decode_part
from ..journal.compacted import open_segment
from ..journal.recovery import frames_alone
from ..store.identity import Identity
from .examine import SegmentState, examine_file, segment_path
from .pieces import Builder, Chain
from .report import LOST_NAMES_MAX, Loss, LostBlock

__all__ = ["Kept", "blocks_of", "frames_behind", "kept_blocks", "loss_above", "loss_behind", "raw_part", "tip_of"]

_RECENT = 256
"""A block is known again as the parent of one that came so many blocks later."""

REORG_HEIGHTS = 1_000
"""So far below its tip a plan is compared with the canonical chain, block by block."""


class _Lost:
    """Blocks that go, the lowest of them by name."""

    def __init__(
        self,
        kept: int | None,
        canonical: Iterable[tuple[int, bytes]],
        there: Collection[bytes] = (),
        floor: int | None = None,
    ) -> None:
        """``there``: the blocks that stay, all of them from height ``floor`` on, which is above ``kept`` by default."""
        self._kept = kept
        self._there = there
        self._floor = (0 if kept is None else kept + 1) if floor is None else floor
        self._known: dict[bytes, int] = {}
        self._recent: deque[bytes] = deque(maxlen=_RECENT)
        self._count = 0
        self._lowest: int | None = None
        self._highest: int | None = None
        self._counted: set[bytes] = set()
        named = [(height, block_hash) for height, block_hash in canonical if block_hash not in there]
        for height, block_hash in named:
            self.add(height, block_hash)
        self._counted = {block_hash for _, block_hash in named}

    def add(self, height: int, block_hash: bytes) -> None:
        """This block goes. The same one may be added again, as long as few others were added meanwhile."""
        if block_hash in self._there or height < 0:
            return
        if block_hash in self._known or block_hash in self._recent or block_hash in self._counted:
            return
        self._recent.append(block_hash)
        self._count += 1
        self._lowest = height if self._lowest is None else min(self._lowest, height)
        self._highest = height if self._highest is None else max(self._highest, height)
        self._known[block_hash] = height
        if len(self._known) > 4 * LOST_NAMES_MAX:
            kept = sorted(self._known.items(), key=lambda each: each[1])[: 2 * LOST_NAMES_MAX]
            self._known = dict(kept)

    def add_entry(self, entry: BlockEntry) -> None:
        """This block goes, and so does its parent if that does not stay."""
        if self._kept is not None and entry.height - 1 >= self._floor:
            self.add(entry.height - 1, entry.parent)
        self.add(entry.height, entry.hash)

    def loss(self, tip: TipMark | None, also: str, *, exact: bool) -> Loss:
        """All of it; ``tip`` is the newest block that is known to have been acknowledged."""
        if tip is not None and (self._kept is None or tip.height >= self._floor):
            self.add(tip.height, tip.hash)
        names = sorted(self._known.items(), key=lambda each: (each[1], each[0]))[:LOST_NAMES_MAX]
        first = self._lowest if self._kept is None or self._lowest is None else min(self._lowest, self._kept + 1)
        span = 0 if first is None or self._highest is None else self._highest - first + 1
        return Loss(
            self._count,
            first,
            self._highest,
            tuple(LostBlock(height, block_hash.hex()) for block_hash, height in names),
            exact and self._count >= span,
            also,
        )


def loss_behind(
    fs: FileSystem,
    root: Path,
    identity: Identity,
    segments: dict[int, SegmentState],
    kept: Kept,
    tip: TipMark | None,
    *,
    exact: bool,
    cipher: PartCipher | None = None,
    canonical: Iterable[tuple[int, bytes]] = (),
) -> Loss:
    """What goes if ``kept`` is all there is: blocks of other frames, and ``canonical`` ones, by hash."""
    lost = _Lost(kept.height, canonical, kept.hashes, kept.floor)
    for frame, file in frames_behind(fs, root, identity, segments, 0):
        if not kept.holds(frame):
            for entry in blocks_of(frame, file, cipher):
                lost.add_entry(entry)
    return lost.loss(tip, "documents and safety records written with or after them", exact=exact)


class Kept(NamedTuple):
    """What a chain holds: its last frame, frames taken from backups, its tip, and its blocks from ``floor`` on."""

    last_seq: int
    taken: dict[int, bytes]
    height: int | None
    hashes: set[bytes]
    floor: int

    def holds(self, frame: Frame) -> bool:
        """True if ``frame`` of a local file is in the chain."""
        return frame.seq <= self.last_seq and self.taken.get(frame.seq, frame.digest) == frame.digest


def kept_blocks(builder: Builder, chain: Chain, height: int | None, cipher: PartCipher | None) -> Kept:
    """What ``chain`` holds, whose tip is at ``height``."""
    floor = max(0, (0 if height is None else height + 1) - REORG_HEIGHTS)
    taken: dict[int, bytes] = {}
    hashes: set[bytes] = set()
    above = True
    for piece in reversed(chain.pieces):
        if not above and piece.backup is None:
            continue
        frames = builder.frames(piece)
        if piece.backup is not None:
            taken |= {frame.seq: frame.digest for frame in frames}
        file = builder.open(piece, cut=True)
        try:
            entries = [entry for frame in frames for entry in blocks_of(frame, file, cipher)] if above else []
        finally:
            file.close()
        hashes |= {entry.hash for entry in entries if entry.height >= floor}
        above = above and not (entries and max(entry.height for entry in entries) < floor)
    return Kept(chain.last_seq, taken, height, hashes, floor)


def loss_above(
    fs: FileSystem,
    root: Path,
    identity: Identity | None,
    segments: dict[int, SegmentState],
    height: int,
    tip: TipMark | None,
    *,
    exact: bool,
    cipher: PartCipher | None = None,
    canonical: Iterable[tuple[int, bytes]] = (),
    unknown: str = "",
) -> Loss:
    """What goes if the block at ``height`` is the tip and the first block of a new store."""
    lost = _Lost(height, canonical)
    if identity is not None:
        for frame, file in frames_behind(fs, root, identity, segments, 0):
            for entry in blocks_of(frame, file, cipher):
                if entry.height > height:
                    lost.add_entry(entry)
    also = (
        f"{unknown}every block below height {height}, all documents and all safety records: they are in quarantine only"
    )
    return lost.loss(tip, also, exact=exact)


def tip_of(builder: Builder, chain: Chain, cipher: PartCipher | None) -> tuple[int, bytes] | None:
    """Height and hash of the tip after the last frame of ``chain``, if a frame says it."""
    for piece in reversed(chain.pieces):
        file = builder.open(piece, cut=True)
        try:
            for frame in reversed(builder.frames(piece)):
                for index, part in enumerate(frame.parts):
                    if part.kind == Kind.CANONICAL:
                        return decode_canonical(raw_part(frame, index, file, cipher)).tip
        except HoldfastError:
            return None  # it cannot be read here: encrypted, for example
        finally:
            file.close()
    return None


def frames_behind(
    fs: FileSystem, root: Path, identity: Identity, segments: dict[int, SegmentState], last_seq: int
) -> Iterator[tuple[Frame, File]]:
    """Every frame above ``last_seq`` whose digest is right, wherever it stands."""
    for state in segments.values():
        if not state.bytes or (state.state == "sealed" and state.last_seq <= last_seq):
            continue
        try:
            file = open_segment(fs, segment_path(root, state.number), salt=identity.salt)
        except HoldfastError:
            continue
        try:
            for frame in _frames_of(file, state, identity):
                if frame.seq > last_seq:
                    yield frame, file
        except HoldfastError:
            continue  # what cannot be read names nothing
        finally:
            file.close()


def _frames_of(file: File, state: SegmentState, identity: Identity) -> Iterator[Frame]:
    """Frames of one segment: in order where it is whole, which may have holes, else wherever one stands."""
    if state.state != "sealed":
        yield from frames_alone(file, 0, identity.salt)
        return
    found: list[Frame] = []
    examine_file(file, state.number, identity, found.append)
    yield from found


def raw_part(frame: Frame, index: int, file: File, cipher: PartCipher | None) -> bytes:
    part = frame.parts[index]
    stored = file.pread(part.stored_bytes, part.offset)
    return decode_part(
        stored, part, segment=frame.segment, seq=frame.seq, index=index, bound=frame.bound, cipher=cipher
    )


def blocks_of(frame: Frame, file: File, cipher: PartCipher | None) -> Iterator[BlockEntry]:
    for index, part in enumerate(frame.parts):
        if part.kind == Kind.BLOCK:
            try:
                yield decode_block(raw_part(frame, index, file, cipher))[0]
            except HoldfastError:
                continue  # its bytes are what is lost
