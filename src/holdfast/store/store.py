"""The facade: one object for everything a node does with its chain. Any thread may call any method.

Invariants:
    * A commit that returned is durable (``sync``) or survives as part of a prefix (``buffered``).
    * A commit that raised changed nothing, in memory or on disk, or the store is poisoned until it is opened again.
    * Code that the store calls in a commit, of a chain or of an index, may read it; what changes it, closes it or waits
      for it raises ``StateError``.
    * After ``fork()`` the child's copy is closed: its descriptors never write, every call raises ``ClosedError``.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, overload

from ..blocks.decide import check_reason
from ..blocks.reader import BlockReader
from ..blocks.state import ChainState
from ..config import Settings
from ..consensus.records import SafetyRecord, check_identity, check_position
from ..errors import ClosedError, InternalError, InvalidInputError, ParentMismatch, ReadOnlyError
from ..journal.api import Part
from ..state.draft import BlockState
from ..state.reader import StateReader
from ..state.snapshot import SnapshotInfo
from ..state.snapshot_export import CHUNK_BYTES_DEFAULT
from ..types import ZERO_HASH, AddResult, Block, BlockInfo, RecoveryStats, ReorgInfo
from ..views.api import RowReader, Rows
from .adding import Adder
from .backend import Backend, WriterBackend
from .chain import Chain, ChainSpec
from .checkpoints import Checkpoints
from .checks import check_block, check_blocks, check_forced, check_hash, check_height
from .compacting import CompactReport
from .documents import Documents, list_spaces
from .draft import Draft
from .endings import run_endings
from .indexes import IndexReader, IndexStatus
from .pruning import PrunePolicy, PruneReport
from .retention import Retention
from .safety import Safety
from .snapshots import export_state
from .states import StoreState
from .ticket import Ticket
from .upkeep import Upkeep
from .waiting import WaitingRoom
from .writer import Writer

__all__ = ["Store", "StoreSnapshot"]

_BLOCKS_PER_TURN = 1024
"""Blocks that ``add_many`` writes before it lets others, and the flush, have their turn."""

_open_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for store in list(_open_stores):
        store._forked()


os.register_at_fork(after_in_child=_after_fork_in_child)


class StoreSnapshot:
    """The store as of one moment. Keep it short: later flushes keep old rows for it, up to a limit."""

    def __init__(self, blocks: BlockReader, tip: BlockInfo | None, state: ChainState, rows: RowReader) -> None:
        self._rows = rows
        self.blocks = blocks
        self.tip = tip
        self.finalized = state.finalized if state.finalized >= 0 else None
        self.state = StateReader(rows)
        """The state as of this moment; the root is that of ``tip``."""

    def documents(self, name: str) -> Documents:
        """The space of documents of this name as of this moment; it cannot be written to."""
        return Documents(name, self._rows, _nothing, _refuse_write)

    def document_spaces(self) -> list[str]:
        """Names of the spaces that held a document."""
        return list_spaces(self._rows)


def _nothing() -> None:
    """The rows of a snapshot say for themselves whether they can be read."""


def _refuse_write(_parts: list[Part], _rows: Rows) -> None:
    raise ReadOnlyError("a snapshot cannot be written to", remedy="write to 'store.documents(name)'")


def _promise(safety: tuple[bytes, tuple[int, ...], bytes]) -> SafetyRecord:
    """The record of what ``commit`` was given as ``safety``. Raises ``InvalidInputError``."""
    if not isinstance(safety, tuple) or len(safety) != 3:
        raise InvalidInputError("'safety' is (identity, position, payload)", found=type(safety).__name__)
    return SafetyRecord(check_identity(safety[0]), check_position(safety[1]), safety[2])


class Store:
    """A chain on disk or in memory. Made by ``holdfast.open``; a context manager."""

    def __init__(
        self, backend: Backend, chain: Chain, settings: Settings, url: str, upkeep: Upkeep | None = None
    ) -> None:
        self._backend = backend
        self._settings = settings
        self._chain = chain
        self._upkeep = upkeep
        self._closed: str | None = None
        self._close_lock = threading.Lock()
        self.url = url
        self._waiting = WaitingRoom(blocks_max=settings.waiting_blocks_max, bytes_max=settings.waiting_bytes_max)
        self.blocks = self._reader(backend)
        """Questions about blocks, answered as of each call."""
        self._writer: Writer | None = None
        self._adder: Adder | None = None
        self.state = StoreState(backend, self._check)
        """The state at the tip that readers see, at a height, and its proofs."""
        if isinstance(backend, WriterBackend):
            self._writer = backend.writer
            backend.renewed = self.state.rebind
            latest = BlockReader(
                backend.latest_rows,
                backend.journal,
                lambda: backend.writer.state,
                epoch_length=self.spec.epoch_length,
                epoch_origin=self.spec.epoch_origin,
                waiting=self._waiting.all,
            )
            self._adder = Adder(backend.writer, chain, latest, self._waiting, backend.open_state)
            self._latest = latest
        self.safety = Safety(backend.book, self._writer, self._check)
        """What a validator has promised."""
        self.key = backend.key  # what it was opened with, to open it again: it never shows itself
        self.checkpoints = Checkpoints(
            backend, self.blocks, settings, check=self._check, refuse_inside=self._refuse_inside
        )
        """Snapshots of the state that lie in the store."""
        if upkeep is not None:
            upkeep.checkpoints = self.checkpoints
        _open_stores.add(self)

    def _reader(self, backend: Backend) -> BlockReader:
        return BlockReader(
            backend.rows,
            backend.journal,
            lambda: self._check().state,
            epoch_length=backend.identity.spec.epoch_length,
            epoch_origin=backend.identity.spec.epoch_origin,
            waiting=self._waiting.all,
        )

    # -- looking --------------------------------------------------------------------------------------------------

    @property
    def recovery(self) -> RecoveryStats:
        """What opening the store found and did."""
        return self._backend.stats

    @property
    def path(self) -> Path | None:
        """Directory of the store, ``None`` in memory."""
        return self._backend.path

    @property
    def spec(self) -> ChainSpec:
        """The immutable facts of the chain."""
        return self._backend.identity.spec

    @property
    def chain(self) -> Chain:
        """The chain that judges blocks."""
        return self._chain

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._settings

    @property
    def engine(self) -> str:
        """Name of the engine under the views."""
        return self._backend.engine_name

    @property
    def read_only(self) -> bool:
        """True if this process only follows the store."""
        return self._writer is None

    @property
    def tip(self) -> BlockInfo | None:
        """The head of the canonical chain that readers see, or ``None`` in an empty store."""
        return self._check().tip

    @property
    def finalized(self) -> int | None:
        """The explicitly finalized height, or ``None``."""
        height = self._check().state.finalized
        return height if height >= 0 else None

    def has(self, block_hash: bytes) -> bool:
        """True if the block is stored, on any branch."""
        self._check()
        return self.blocks.has(check_hash("hash", block_hash))

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[StoreSnapshot]:
        """The store as of now, unmoved by later commits, reorgs and flushes."""
        self._check()
        with self._backend.pin() as (rows, state, tip):
            reader = BlockReader(
                rows,
                self._backend.journal,
                lambda: state,
                epoch_length=self.spec.epoch_length,
                epoch_origin=self.spec.epoch_origin,
                waiting=list,
            )
            yield StoreSnapshot(reader, tip, state, rows)

    def statistics(self) -> dict[str, object]:
        """Counters of the chain, the journal, the views and the engine, and what recovery found, as JSON values."""
        self._check()
        return {
            "chain": self.blocks.statistics()
            | {"waiting": len(self._waiting), "waiting_dropped": self._waiting.dropped},
            **self._backend.statistics(),
            "upkeep": self._upkeep.statistics() if self._upkeep is not None else {"failure": None},
            "checkpoints": self.checkpoints.statistics(),
            "recovery": self.recovery.as_dict(),
        }

    # -- indexes --------------------------------------------------------------------------------------------------

    def index(self, name: str) -> IndexReader:
        """A reader of the user index. Raises ``NotFoundError``; its reads raise ``IndexBehind`` until it is ready."""
        backend = self._check()
        if type(name) is not str:
            raise InvalidInputError("the name of an index is text", found=type(name).__name__)
        return backend.indexes.reader(name, backend.rows)

    def indexes(self) -> list[IndexStatus]:
        """Every index that the store knows, and how far it is built."""
        tip = self.tip
        return self._backend.indexes.statuses(tip.height if tip is not None else None)

    def wait_for_indexes(self, timeout_seconds: float | None = None) -> bool:
        """True once every registered index is ready; False when the time is over. Raises what made a build fail."""
        backend = self._check()
        self._refuse_inside()
        return backend.indexes.wait(timeout_seconds)

    def start_indexes(self) -> None:
        """Registered indexes that are not ready are built in the background; ``open`` calls this."""
        writer, _ = self._need_writer()
        self._refuse_inside()
        self._backend.indexes.start(writer, self._latest)

    # -- documents ------------------------------------------------------------------------------------------------

    def documents(self, name: str) -> Documents:
        """The space of documents of this name, 1 to 64 bytes of text; one that holds nothing need not be made."""
        return Documents(name, self._check().rows, self._check, self._write_documents)

    def document_spaces(self) -> list[str]:
        """Names of the spaces that hold a document."""
        return list_spaces(self._check().rows)

    def _write_documents(self, parts: list[Part], rows: Rows) -> None:
        """``parts`` are one durable frame that sets ``rows``; nothing happens if there are none."""
        writer, _ = self._need_writer()
        if parts:
            writer.make_room()
            self._durable(writer, writer.save_documents(parts, rows))

    # -- snapshots ------------------------------------------------------------------------------------------------

    def export_snapshot(
        self,
        path: str | os.PathLike[str],
        *,
        height: int | None = None,
        chunk_bytes: int = CHUNK_BYTES_DEFAULT,
        compress: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> SnapshotInfo:
        """The directory ``path`` holds the state after the canonical block at ``height``, or at the tip, verified.

        Commits go on meanwhile. Interrupted, the same call goes on where it was. ``holdfast.import_snapshot`` makes a
        store of it; tell its user the root, or the ``manifest_digest`` of the answer.

        Args:
            path: a directory that is missing, empty, or holds an unfinished export, or a finished one of the same state
                in chunks of the same length, which is checked and stays.
            chunk_bytes: length of a chunk before compression, 1 KiB to 16 MiB; longer where one value is.
            compress: with zstd, where that makes a chunk shorter.
            progress: called with (keys written, keys in all); what it raises ends the export.
        Raises:
            BlockNotFound: there is no canonical block at this height.
            PrunedError: the height lies below what can still be undone (``proof_window_blocks``).
            ForeignStore: the directory holds something else, or the state in other chunks; it was not touched.
            ViewExpired: commits made meanwhile changed more than ``pinned_bytes_max``; call it again.
        """
        return export_state(
            self._check(), self.blocks, path, height, chunk_bytes=chunk_bytes, compress=compress, progress=progress
        )

    # -- pruning --------------------------------------------------------------------------------------------------

    def prune(
        self,
        *,
        blocks: int | None = None,
        every: int | None = None,
        below: int | None = None,
        dry_run: bool = False,
        progress: Callable[[int, int], None] | None = None,
        keep_going: Callable[[], bool] | None = None,
    ) -> PruneReport:
        """Old heights of the state are given up; blocks, the present state and recent proofs stay.

        Online: reads and commits go on. Interrupted, what was done stays, and the next run goes on there. An open store
        prunes by its settings in the background; this does it now, or by other rules.

        Args:
            blocks: final heights to keep, 0 for all; the setting ``history_blocks`` if not given.
            every: below those, keep every so many-th height, 0 for none; if not given, the setting ``history_every``,
                and where that is 0, the heights that an earlier run kept.
            below: an exact height instead of ``blocks``: the state below it goes.
            dry_run: only say what would happen.
            progress: called with (blocks looked at, blocks in all).
            keep_going: asked after each block; once it says no, the run ends, to be continued.
        Raises:
            FinalityError: ``below`` is above the last final block. StateError: there is no history.
        """
        upkeep = self._looked_after()
        settings = self._settings
        policy = PrunePolicy(
            settings.history_blocks if blocks is None else blocks,
            (settings.history_every or None) if every is None else every,
            below,
        )
        return upkeep.pruner.run(policy, dry_run=dry_run, progress=progress, keep_going=keep_going)

    def compact(
        self,
        *,
        dry_run: bool = False,
        bytes_per_second: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        keep_going: Callable[[], bool] | None = None,
    ) -> CompactReport:
        """Sealed segments of the journal below finality need less room on disk; all that can be read stays the same.

        Online, and durable segment by segment: interrupted, the next run goes on with the rest.

        Args:
            dry_run: only say what would happen; the saving is estimated from samples.
            bytes_per_second: most that is read in a second.
            progress: called with (bytes done, bytes in all).
            keep_going: asked now and then; once it says no, the run ends, to be continued.
        Raises:
            OutOfSpace: there is no room to write a segment.
        """
        return self._looked_after().compactions.run(
            dry_run=dry_run, bytes_per_second=bytes_per_second, progress=progress, keep_going=keep_going
        )

    @property
    def retention(self) -> Retention:
        """What of the journal stays. Raises ``ReadOnlyError`` in a reader."""
        return self._looked_after().retention

    def _looked_after(self) -> Upkeep:
        self._need_writer()
        self._refuse_inside()
        if self._upkeep is None:
            raise InternalError("an open store has nobody who looks after it")
        return self._upkeep

    # -- building -------------------------------------------------------------------------------------------------

    def draft(self, parent: bytes | None = None) -> Draft:
        """A block to be built on ``parent``, or on the appended tip."""
        writer, _ = self._need_writer()
        if parent is None:
            info = writer.tip
        else:
            info = self._latest.load(check_hash("parent", parent))
        parent_hash = info.hash if info is not None else None
        return Draft(info, info.height + 1 if info is not None else 0, partial(self._open_parent, parent_hash))

    def _open_parent(self, parent_hash: bytes | None) -> BlockState:
        held = self._check().open_state(parent_hash)
        if parent_hash is None and self._need_writer()[0].tip is not None:
            held.release()
            raise ParentMismatch("the store is not empty any more", remedy="make a new draft on the tip")
        return held

    @overload
    def commit(
        self,
        draft: Draft,
        *,
        hash: bytes,
        header: bytes = ...,
        body: bytes | None = ...,
        time: int = ...,
        work: int = ...,
        producer: bytes = ...,
        extra: bytes | None = ...,
        safety: tuple[bytes, tuple[int, ...], bytes] | None = ...,
        wait: Literal[True] = ...,
    ) -> BlockInfo: ...

    @overload
    def commit(
        self,
        draft: Draft,
        *,
        hash: bytes,
        header: bytes = ...,
        body: bytes | None = ...,
        time: int = ...,
        work: int = ...,
        producer: bytes = ...,
        extra: bytes | None = ...,
        safety: tuple[bytes, tuple[int, ...], bytes] | None = ...,
        wait: Literal[False],
    ) -> Ticket: ...

    def commit(
        self,
        draft: Draft,
        *,
        hash: bytes,
        header: bytes = b"",
        body: bytes | None = None,
        time: int = 0,
        work: int = 1,
        producer: bytes = b"",
        extra: bytes | None = None,
        safety: tuple[bytes, tuple[int, ...], bytes] | None = None,
        wait: bool = True,
    ) -> BlockInfo | Ticket:
        """The block is stored on its parent, one atomic frame; it becomes the tip if it extends it or wins.

        Args:
            draft: from ``draft()``.
            hash: 32 bytes, computed by the chain's own rule.
            time: the chain's timestamp in seconds.
            work: target work of this block alone.
            safety: (identity, position, payload) saved in the same frame.
            wait: ``False`` returns a ticket instead of waiting for the device.
        Raises:
            ConflictError: the hash is stored already. InvalidBlock: the chain refuses the block.
            FinalityError: the parent's branch forks too deep. PoisonedError: reopen the store.
            InvalidInputError: the draft was made by another store, where the parent has another state.
        """
        writer, adder = self._need_writer()
        if not isinstance(draft, Draft):
            raise InvalidInputError("a block is committed on a draft, from draft()", found=type(draft).__name__)
        parent = draft.parent
        block = Block(
            hash,
            parent.hash if parent is not None else ZERO_HASH,
            draft.height,
            header,
            body,
            time,
            work,
            producer,
            extra,
        )
        check_block(block)
        record = None if safety is None else _promise(safety)
        touched = draft.touched
        executed, base = (touched.execution(), touched.base.root) if touched is not None else (None, None)
        writer.make_room()
        with writer.lock, writer.turn:
            written = adder.commit(block, parent, record, executed, base)
        draft.close()
        if not wait:
            writer.tell()
            sync = partial(self._sync, writer)
            return Ticket(written.blocks[0], written.seq, sync, lambda: writer.journal.durable_seq)
        if record is not None:
            self._sync(writer, written.seq)  # a promise is durable before anybody hears of it, also in ``buffered``
        else:
            self._durable(writer, written.seq)
        return written.blocks[0]

    # -- adding ---------------------------------------------------------------------------------------------------

    def add(
        self, block: Block, *, validate: bool = True, root_allowed: bool = False, wait_for_parent: bool = False
    ) -> AddResult:
        """A ready block is stored where the fork choice puts it: on the tip, on a side branch, or as a reorg.

        Args:
            validate: ask the chain; ``False`` only for blocks that were validated before.
            root_allowed: an empty store takes a block whose parent is unknown as its root.
            wait_for_parent: keep a block with an unknown parent in memory until its parent arrives.
        Raises:
            ParentUnknown, InvalidBlock, FinalityError, ReorgTooDeep, LimitExceeded: nothing changed.
        """
        return self.add_many([block], validate=validate, root_allowed=root_allowed, wait_for_parent=wait_for_parent)[0]

    def add_many(
        self,
        blocks: Sequence[Block],
        *,
        validate: bool = True,
        root_allowed: bool = False,
        wait_for_parent: bool = False,
    ) -> list[AddResult]:
        """As ``add`` for each in turn; runs that extend the tip share frames and syncs, which is fast.

        If one is refused, those before it stay stored and are durable. Other writers may come in between.
        """
        writer, adder = self._need_writer()
        check_blocks(blocks)
        results: list[AddResult] = []
        for start in range(0, len(blocks), _BLOCKS_PER_TURN):
            writer.make_room()
            try:
                with writer.lock, writer.turn:
                    results += adder.add_many(
                        blocks[start : start + _BLOCKS_PER_TURN],
                        validate=validate,
                        root_allowed=root_allowed,
                        wait_for_parent=wait_for_parent,
                    )
            finally:
                self._durable(writer, None)
        return results

    def reorg(self, to: bytes, *, reason: str = "manual reorganisation") -> ReorgInfo | None:
        """The stored block ``to`` is the tip, one atomic frame; ``None`` if it was the tip already."""
        writer, _ = self._need_writer()
        check_reason(reason)
        with writer.lock, writer.turn:
            decider = writer.the_decider()
            target = decider.load(check_hash("to", to))
            written = None
            if target.hash != writer.state.tip_hash:
                written = writer.write(decider.reorg_to(target, writer.state, reason))
        self._durable(writer, None)
        return written.reorg if written is not None else None

    def orphan(self, block_hash: bytes, *, reason: str, competing: bytes | None = None) -> ReorgInfo | None:
        """The block is orphaned; if it was canonical, its parent becomes the tip in the same frame.

        ``None`` if it was orphaned before: nothing changes then. Raises ``BlockNotFound``, ``FinalityError``.
        """
        writer, _ = self._need_writer()
        check_reason(reason)
        if competing is not None:
            check_hash("competing", competing)
        with writer.lock, writer.turn:
            decider = writer.the_decider()
            info = decider.load(check_hash("hash", block_hash))
            written = None
            if decider.canonical_hash(info.height) == info.hash:
                written = writer.write(decider.orphan(info, writer.state, reason, competing))
        self._durable(writer, None)
        return written.reorg if written is not None else None

    def finalize(self, height: int) -> None:
        """Blocks up to ``height`` are final: no reorg may replace them. As durable as a commit; twice is harmless.

        Raises ``FinalityError`` for a lower height, ``BlockNotFound`` above the tip.
        """
        writer, _ = self._need_writer()
        check_height(height)
        with writer.lock, writer.turn:
            if height != writer.state.finalized:
                writer.write(writer.the_decider().finalize(height, writer.state))
        self._durable(writer, None)

    def force_blocks(self, forced: Mapping[int, bytes]) -> None:
        """From now on only these hashes may be canonical at these heights."""
        writer, _ = self._need_writer()
        checked = check_forced(forced)
        with writer.lock, writer.turn:
            writer.the_decider().forced = checked

    def sync(self) -> None:
        """Everything committed so far is durable."""
        writer, _ = self._need_writer()
        self._sync(writer)

    def flush(self) -> None:
        """Every durable frame is in the engine; open after this replays nothing."""
        writer, _ = self._need_writer()
        self._sync(writer)
        self._backend_writer().views.flush()

    def rebuild(self, *, progress: Callable[[int, int], None] | None = None) -> int:
        """The views are made anew from the journal and take over, while commits and reads go on.

        User indexes are built again in the background afterwards.

        Args:
            progress: called with (frames done, frames in all); what it raises ends the rebuild, the old views stay.
        Returns:
            Number of the new generation.
        Raises:
            CorruptionError: the journal is damaged; the old views stay live.
        """
        self._need_writer()
        self._refuse_inside()
        return self._backend_writer().renew(self._latest, progress)

    def refresh(self) -> None:
        """A read-only store sees everything that was durable when this was called; a writer always does."""
        self._check()
        self._backend.refresh()

    # -- ending ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Everything is durable and flushed, the lock is free; twice is harmless."""
        self._refuse_inside()
        with self._close_lock:
            if self._closed is not None:
                return
            self._closed = "the store is closed"
        run_endings(self)
        _open_stores.discard(self)
        self.state.rebind(self._refuse_row)
        self._backend.close()
        if self._writer is not None:
            self._writer.tell()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _forked(self) -> None:
        self._closed = "the store was opened before fork(); open it again in the child"
        self._close_lock = threading.Lock()
        self.state.rebind(self._refuse_row)
        self._backend.abandon()

    def _refuse_row(self, key: bytes) -> bytes | None:
        self._check()
        raise InternalError("a closed store was asked for a row")

    def _check(self) -> Backend:
        if self._closed is not None:
            raise ClosedError(self._closed, path=self._backend.path)
        return self._backend

    def _backend_writer(self) -> WriterBackend:
        assert isinstance(self._backend, WriterBackend)
        return self._backend

    def _need_writer(self) -> tuple[Writer, Adder]:
        self._check()
        if self._writer is None or self._adder is None:
            raise ReadOnlyError("the store is open read-only", path=self._backend.path)
        return self._writer, self._adder

    def _refuse_inside(self) -> None:
        """Raises ``StateError`` in code that the store has called: this would pull the ground from under it."""
        if self._writer is not None:
            self._writer.turn.refuse_inside()

    def _durable(self, writer: Writer, seq: int | None) -> None:
        if self._settings.durability == "sync":
            writer.sync(seq)
        writer.tell()

    @staticmethod
    def _sync(writer: Writer, seq: int | None = None) -> int:
        """Frames up to ``seq`` (default: all) are durable, and told."""
        durable = writer.sync(seq)
        writer.tell()
        return durable
