"""The one writer of a store: decides, appends, publishes, syncs.

Invariants:
    * Everything that can fail happens before the append; between append and publish nothing can.
    * The lock covers decide, append and publish; it is never held during an fdatasync, so commits share syncs.
    * Writers build on what is appended. Readers see what is durable (``buffered``: what is appended).
    * Whatever interrupts the steps between append and publish poisons the writer: memory and journal may differ until
      the store is opened again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import TracebackType

import msgspec

from .._failpoints import hit
from ..blocks.apply import ChainIndexes, ExecutionOf, Prepared, prepare
from ..blocks.content import FrameContent
from ..blocks.decide import Decider
from ..blocks.entries import entry_info
from ..blocks.fork_choice import ForkChoice
from ..blocks.lookup import load_tip
from ..blocks.state import ChainState, encode_state, has_root
from ..consensus.records import SafetyRecord, encode_fence, encode_safety
from ..consensus.safety import SafetyBook
from ..errors import (
    HoldfastError,
    InternalError,
    LimitExceeded,
    OutOfSpace,
    PoisonedError,
    RootMismatch,
    StateError,
)
from ..journal.api import Kind, Part, TipMark
from ..journal.journal import Journal
from ..merkle.api import Tree
from ..state.rows import tree_changes
from ..types import BlockInfo, ReorgInfo
from ..views.api import FrameLayers, Layer, RowReader, Rows
from ..views.views import Views
from .guard import DiskGuard
from .news import News
from .replay import execution_of

__all__ = ["Mark", "Writer", "Written"]


class Written(msgspec.Struct, frozen=True):
    """A frame that was appended and published."""

    seq: int
    tip: BlockInfo | None
    reorg: ReorgInfo | None
    blocks: tuple[BlockInfo, ...]


class Mark(msgspec.Struct, frozen=True, gc=False):
    """The store after a frame: state of the chain, tip, and the tree over the state at the tip."""

    seq: int
    state: ChainState
    tip: BlockInfo | None
    tree: Tree


class _Turn:
    """One operation of the writer; the lock is held. Code that the store calls may not begin another one in it."""

    __slots__ = ("_owner",)

    def __init__(self) -> None:
        self._owner = 0

    def refuse_inside(self) -> None:
        """Raises ``StateError`` if this thread is in an operation of the writer. Needs no lock."""
        if self._owner == threading.get_ident():
            raise StateError(
                "the store was changed, closed or waited for by code that it had called",
                remedy="a chain's 'validate' and 'execute' and an index function may read the store, and no more",
            )

    def __enter__(self) -> None:
        self.refuse_inside()
        self._owner = threading.get_ident()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._owner = 0


class Writer:
    """Appends frames for the store. Public methods expect the caller to hold ``lock`` where they say so."""

    def __init__(
        self,
        *,
        journal: Journal,
        views: Views,
        state: ChainState,
        book: SafetyBook,
        tree: Tree,
        tree_bytes_max: int,
        guard: DiskGuard,
        buffered: bool,
        compress: bool,
        news: News,
    ) -> None:
        self.lock = threading.RLock()
        self.turn = _Turn()
        self.journal = journal
        self.views = views
        self._latest = views.latest()
        self.book = book
        self.guard = guard
        self.indexes: ChainIndexes | None = None
        self._buffered = buffered
        self._compress = compress
        self._failure: BaseException | None = None
        self._marks: deque[Mark] = deque()
        self._marks_lock = threading.Lock()
        self._news = news
        self._durable_seq = journal.durable_seq
        self.decider: Decider | None = None
        self.state = state
        self.tip = load_tip(self._latest.get, state)
        self.tree = tree
        self._tree_bytes_max = tree_bytes_max
        self.changed_keys = 0
        """Changes of the state that were appended, in all."""
        self.execution_of: ExecutionOf = partial(execution_of, journal)
        self.visible = Mark(journal.appended_seq, state, self.tip, tree)

    def configure(
        self, fork_choice: ForkChoice, *, max_reorg_depth: int, max_orphans: int, forced: Mapping[int, bytes]
    ) -> None:
        """Decisions follow these rules from now on."""
        self.decider = Decider(self.views.latest(), fork_choice, max_reorg_depth, max_orphans, forced)

    def replace_views(self, views: Views) -> None:
        """Another generation of views, at the same frame, takes over; the lock is held."""
        with self._marks_lock:
            self.views = views
            self._latest = views.latest()
            if self.decider is not None:
                self.decider.reader = views.latest()

    def abandon(self) -> None:
        """For the child after ``fork()``: no lock is held by a thread that is not there."""
        self.lock = threading.RLock()
        self._marks_lock = threading.Lock()
        self._news.abandon()

    def the_decider(self) -> Decider:
        """The rules of decisions, for a caller that holds the lock."""
        if self.decider is None:
            raise InternalError("the writer is not configured")
        return self.decider

    @contextlib.contextmanager
    def pin(self) -> Iterator[tuple[RowReader, ChainState, BlockInfo | None]]:
        """Rows, state and tip of the moment that readers see."""
        with self._marks_lock:
            pinned = self.views.pin()
            mark = self.visible
        with pinned as rows:
            yield rows, mark.state, mark.tip

    def check(self) -> None:
        """Raises ``PoisonedError`` if an earlier write did not complete."""
        if self._failure is not None:
            raise PoisonedError("an earlier commit failed between journal and memory") from self._failure

    def make_room(self) -> None:
        """The overlay is within its bounds, also if it is full of frames whose tickets nobody waited for.

        Near the end of the disk nothing waits in it, so that all of the room that is left can be used. No lock is held.
        """
        views = self.views
        views.back_pressure()
        if views.full:
            self.sync()
            views.back_pressure()
        if self.guard.tight(views.waiting_bytes):
            with contextlib.suppress(OutOfSpace):  # then the guard refuses what comes next, and tells it
                views.flush()

    def _check_room(self, parts: list[Part]) -> None:
        self.guard.check(sum(len(part.data) for part in parts), self.views.waiting_bytes)

    # -- appending (lock held) --------------------------------------------------------------------------------

    def write(self, content: FrameContent, safety: SafetyRecord | None = None, tree: Tree | None = None) -> Written:
        """``content`` is one frame of the journal and visible to later writes; not durable yet.

        Args:
            tree: the tree after the frame, if the caller has it because its block extends the tip.
        """
        self.check()
        views = self.views
        prepared = prepare(content, self.state, self._latest, views.undo_of, self.execution_of, self.indexes)
        state = prepared.state
        if state.stateful:
            tree = self._tree_after(prepared, tree)
        parts = content.parts(compress=self._compress)
        if safety is not None:
            parts.append(Part(Kind.SAFETY, encode_safety(safety), True))
        if content.blocks:
            self._check_room(parts)
        tip_mark = TipMark(state.tip_height, state.tip_hash, state.state_root) if state.tip_height >= 0 else None
        time_us = time.time_ns() // 1000
        hit("store.write.before_append")
        before = self.journal.appended_seq
        try:
            seq = self._append(parts, tip_mark, time_us)
            hit("store.write.after_append")
            layers = prepared.finish(seq, time_us)
            if safety is not None:
                layers.layers.append(Layer(self.book.put(safety)))
            views.publish(layers)
            if tree is not None:
                self.tree = tree
                self.changed_keys += sum(len(layer.chain_rows) for layer in prepared.chain_layers)
            return self._published(prepared, seq, time_us)
        except BaseException as error:
            self._interrupted(before, error)
            raise

    def _tree_after(self, prepared: Prepared, known: Tree | None) -> Tree | None:
        """The tree once ``prepared`` is there, its root checked. ``None``: as it is."""
        if not prepared.chain_layers:
            return None
        tree = known
        if tree is None:
            changes = tree_changes(layer.chain_rows for layer in prepared.chain_layers)
            tree = self.tree.update(changes).tree if changes else self.tree
        expected = prepared.state.state_root
        if not has_root(tree, expected):
            raise RootMismatch(
                "the state does not have the root that the block claims",
                hash=prepared.state.tip_hash,
                height=prepared.state.tip_height,
                expected=expected,
                found=tree.root,
            )
        if tree.size_bytes() > self._tree_bytes_max:
            raise LimitExceeded(
                "the tree over the state does not fit into memory any more",
                found=tree.size_bytes(),
                limit=self._tree_bytes_max,
                setting="tree_bytes_max",
            )
        return tree

    def _interrupted(self, before: int, error: BaseException) -> None:
        """Poisoned, if a frame was appended (the journal stood at ``before``) and is not published whole."""
        if self._failure is None and self.journal.appended_seq != before:
            self._failure = error
            self._news.poisoned(error)

    def _append(self, parts: list[Part], tip: TipMark | None, time_us: int) -> int:
        try:
            return self.journal.append(parts, tip=tip, time_us=time_us)
        except HoldfastError:
            self._drop_invisible()
            raise

    def _published(self, prepared: Prepared, seq: int, time_us: int) -> Written:
        old, old_tip, canonical = self.state, self.tip, prepared.content.canonical
        blocks = tuple([entry_info(entry, seq, time_us) for entry in prepared.content.blocks])
        self.state = state = prepared.state
        reorg = None
        if old_tip is None or state.tip_hash != old_tip.hash:
            if blocks and blocks[-1].hash == state.tip_hash:
                self.tip = blocks[-1]
            else:
                self.tip = load_tip(self._latest.get, state)
            if old_tip is not None and canonical is not None and canonical.fork is not None:
                fork_height, fork_hash = canonical.fork
                if fork_hash != old_tip.hash:
                    orphaned = tuple(block_hash for _, block_hash, _ in reversed(prepared.undone))
                    reorg = ReorgInfo(fork_height, fork_hash, old_tip.hash, state.tip_hash, orphaned, prepared.adopted)
        finalized = state.finalized if state.finalized != old.finalized else None
        self._news.note(seq, blocks, self.tip, reorg, finalized)
        self._mark(seq)
        return Written(seq, self.tip, reorg, blocks)

    def tell(self) -> None:
        """What happened and is as durable as promised was told. The lock is not held."""
        self._news.tell(self._promised)

    def _promised(self) -> int:
        return self.journal.appended_seq if self._buffered else self._durable_seq

    def _mark(self, seq: int) -> None:
        """Frame ``seq`` is appended: visible at once if it is durable or if durability is not waited for."""
        mark = Mark(seq, self.state, self.tip, self.tree)
        with self._marks_lock:
            if self._buffered or seq <= self._durable_seq:
                self.views.set_visible(seq)
                self.visible = mark
            else:
                self._marks.append(mark)

    def on_durable(self, seq: int) -> None:
        """Frames up to ``seq`` survive a power cut; called by the journal's group commit leader."""
        with self._marks_lock:
            self._durable_seq = seq
            marks = self._marks
            newest = None
            while marks and marks[0].seq <= seq:
                newest = marks.popleft()
            self.views.set_visible(seq)
            if newest is not None:
                self.visible = newest

    def write_rows(self, parts: list[Part], rows: Callable[[], Rows]) -> int:
        """Parts that concern no block in a frame of their own, and their log rows; the lock is held. Its seq."""
        self.check()
        time_us = time.time_ns() // 1000
        state = self.state
        before = self.journal.appended_seq
        try:
            seq = self._append(parts, None, time_us)
            self.views.publish(FrameLayers(seq, [Layer(rows())], partial(encode_state, state), state.floor))
            self._mark(seq)
        except BaseException as error:
            self._interrupted(before, error)
            raise
        return seq

    def save_documents(self, parts: list[Part], rows: Rows) -> int:
        """The batch of documents is appended and published as ``rows``; seq of its frame. Takes the lock."""
        with self.lock, self.turn:
            self._check_room(parts)
            return self.write_rows(parts, lambda: rows)

    # -- safety -----------------------------------------------------------------------------------------------

    def load_safety(self, identity: bytes) -> SafetyRecord:
        """The newest record, durable. Raises ``SafetyStateMissing``."""
        record = self.book.load(identity)
        if self.journal.poisoned is None:
            self.sync()  # the record may have been appended only: nobody may act on it before it is durable
            return record
        self._drop_invisible()
        return self.book.load(identity)

    def save_safety(self, record: SafetyRecord) -> int | None:
        """``record`` is appended; ``None`` if exactly it was stored before. Takes the lock."""
        data = encode_safety(record)
        with self.lock, self.turn:
            if not self.book.check(record):
                return None
            return self.write_rows([Part(Kind.SAFETY, data, True)], lambda: self.book.put(record))

    def save_fence(self, identity: bytes, floor: tuple[int, ...]) -> int:
        """``identity`` may sign above ``floor``; appended. Takes the lock."""
        data = encode_fence(identity, floor)
        with self.lock, self.turn:
            self.book.check_fence(identity)
            return self.write_rows([Part(Kind.FENCE, data, True)], lambda: self.book.put_fence(identity, floor))

    def save_incarnation(self, fingerprint: bytes) -> int:
        """The store is used from another place than before: fenced from now on; appended. Takes the lock."""
        with self.lock, self.turn:
            return self.write_rows(
                [Part(Kind.INCARNATION, fingerprint, True)],
                lambda: self.book.put_incarnation(fingerprint, first=False),
            )

    def sync(self, seq: int | None = None) -> int:
        """Frames up to ``seq`` (default: all appended) are durable."""
        try:
            return self.journal.sync(seq)
        except HoldfastError:
            self._drop_invisible()
            raise

    def _drop_invisible(self) -> None:
        """After a failed sync: what was appended and is not durable never happened, for readers and for writers."""
        if self.journal.poisoned is None:
            return
        first = False
        with self.lock, self._marks_lock:
            if self._failure is None:
                self._failure, first = self.journal.poisoned, True
                self._marks.clear()
                self.views.drop_invisible()
                self.state, self.tip, self.tree = self.visible.state, self.visible.tip, self.visible.tree
                self.book.reload(self.views.reader())
        if first:
            self._news.poisoned(self.journal.poisoned)
