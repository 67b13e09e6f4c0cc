"""Frames from the journal into the views: the same function at open, in a rebuild, for followers and for audit.

Invariants:
    * Replay asks no clock, no configuration, no fork choice and no chain: the decisions are in the frames.
    * An unknown critical part refuses the store; an unknown other part is kept and skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..blocks.apply import ChainIndexes, prepare
from ..blocks.content import decode_frame, read_execution
from ..blocks.state import EMPTY, ChainState, decode_state, encode_state
from ..consensus.safety import SAFETY_KINDS, SafetyBook
from ..errors import CorruptionError, UnsupportedFormat
from ..journal.api import KNOWN_KINDS, Frame, FrameSource, Kind
from ..spaces.rows import document_rows
from ..state.rows import Execution
from ..types import BlockInfo
from ..views.api import FrameLayers, Layer
from ..views.views import Views

__all__ = ["Replayer", "execution_of"]

_BLOCK_KINDS = frozenset((Kind.BLOCK, Kind.EXECUTED, Kind.CHANGES, Kind.CANONICAL, Kind.FINALIZED))


def execution_of(source: FrameSource, info: BlockInfo) -> Execution:
    """What a stored block did to the state, from the journal; it says that it was executed."""
    if info.executed is None:
        raise CorruptionError("a block that was not executed has no changes", hash=info.hash, height=info.height)
    return read_execution(source, source.frame(info.seq), info.executed, info.hash)


class Replayer:
    """Applies frames in order on top of what the views' engine holds."""

    def __init__(self, views: Views, book: SafetyBook, indexes: ChainIndexes | None = None) -> None:
        self.views = views
        self.book = book
        self.indexes = indexes
        self.frames = 0
        applied = views.applied
        self.state: ChainState = decode_state(applied.state) if applied is not None and applied.seq else EMPTY
        self.seq = applied.seq if applied is not None else 0

    def apply(self, source: FrameSource, frame: Frame) -> None:
        """Frame ``self.seq + 1`` is published to the views, durable or not."""
        kinds = {part.kind for part in frame.parts}
        if not kinds <= KNOWN_KINDS:
            for part in frame.parts:
                if part.kind not in KNOWN_KINDS and part.critical:
                    raise UnsupportedFormat(
                        "the journal holds a kind of entry that is not known", seq=frame.seq, kind=part.kind
                    )
        content = decode_frame(source, frame) if kinds & _BLOCK_KINDS else None
        rows = self.book.apply(source, frame) if kinds & SAFETY_KINDS else {}
        if Kind.DOCUMENTS in kinds:
            rows.update(document_rows(source, frame))
        if content is not None:
            views = self.views
            prepared = prepare(
                content, self.state, views.latest(), views.undo_of, partial(execution_of, source), self.indexes
            )
            layers = prepared.finish(frame.seq, frame.time_us)
            if rows:
                layers.layers.append(Layer(rows))
            self.state = prepared.state
        else:
            layers = FrameLayers(
                frame.seq, [Layer(rows)] if rows else [], partial(encode_state, self.state), self.state.floor
            )
        self.views.publish(layers)
        self.seq = frame.seq
        self.frames += 1

    def run(
        self, source: FrameSource, last_seq: int, *, flush: bool, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Every frame up to ``last_seq`` is published and visible; with ``flush`` the overlay stays within bounds."""
        views = self.views
        if flush and views.applied is not None and views.applied.flushing is not None:
            target = views.applied.flushing
            self._apply_through(source, target)
            views.flush(target)
        while self.seq < last_seq:
            self._apply_through(source, min(self.seq + 512, last_seq), bounded=flush)
            if flush:
                views.back_pressure()
            if progress is not None:
                progress(self.seq, last_seq)

    def _apply_through(self, source: FrameSource, last_seq: int, *, bounded: bool = False) -> None:
        """Frames up to ``last_seq`` are published and visible; ``bounded`` stops earlier once the overlay is full."""
        if self.seq < last_seq:
            for frame in source.frames(self.seq + 1, last_seq + 1):
                self.apply(source, frame)
                if bounded and self.views.full:
                    break
        self.views.set_visible(self.seq)
