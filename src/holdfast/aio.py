"""The store for asyncio: the same operations as coroutines, none of which ever blocks the event loop.

Invariants:
    * Writes run in one thread in the order in which they were called; reads run in a small pool.
    * Cancelling an ``await`` never cancels a write that has begun: it completes in its thread, and ``close`` waits
      for it. A write that has not begun when its ``await`` is cancelled is not made.
    * A backup, and the work on a checkpoint, end at their next piece when their ``await`` is cancelled.
    * ``tip``, ``finalized`` and the other plain attributes of the store are in memory and may be read directly
      through ``store.sync_store``.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, ParamSpec, TypeVar, Unpack

from .doctor.door import DoorOptions, open_attended
from .errors import ClosedError
from .state.api import MutableState
from .state.checkpoint import CheckpointInfo
from .state.proof import MultiProof, Proof
from .state.reader import StateReader
from .state.snapshot import SnapshotInfo
from .store.checkpoints import CheckpointPruneReport
from .store.compacting import CompactReport
from .store.documents import Documents
from .store.draft import Draft
from .store.indexes import IndexStatus
from .store.pruning import PruneReport
from .store.store import Store
from .types import AddResult, Block, BlockInfo, OrphanInfo, RecoveryStats, ReorgInfo, TipInfo

if TYPE_CHECKING:
    from .backup import BackupReport, BackupRepository

__all__ = [
    "AsyncBlocks",
    "AsyncCheckpoints",
    "AsyncDocuments",
    "AsyncState",
    "AsyncStateAt",
    "AsyncStore",
    "open_async",
]

P = ParamSpec("P")
T = TypeVar("T")

_READERS = 4
_PAGE = 64


class _Threads:
    """One thread for writes, a few for reads."""

    def __init__(self) -> None:
        self._writes = ThreadPoolExecutor(1, thread_name_prefix="holdfast-write")
        self._reads = ThreadPoolExecutor(_READERS, thread_name_prefix="holdfast-read")
        self._closed = False

    async def write(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``function`` runs in the writing thread; once begun it completes whatever happens to the caller."""
        return await self._run(self._writes, functools.partial(function, *args, **kwargs))

    async def read(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``function`` runs in a reading thread."""
        return await self._run(self._reads, functools.partial(function, *args, **kwargs))

    async def _run(self, pool: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        if self._closed:
            raise ClosedError("the store is closed")
        return await asyncio.wrap_future(pool.submit(call))

    async def close(self, last: Callable[[], None]) -> None:
        """``last`` runs after every write that was called before; then the threads end."""
        if self._closed:
            return
        self._closed = True
        future = self._writes.submit(last)
        try:
            await asyncio.shield(asyncio.wrap_future(future))
        finally:
            self.end()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """``call`` runs in the writing thread."""
        return self._writes.submit(call)

    def end(self) -> None:
        """The threads end once what they were given is done."""
        self._writes.shutdown(wait=False)
        self._reads.shutdown(wait=False)


class AsyncBlocks:
    """``store.blocks`` as coroutines and asynchronous iterators (read in pages)."""

    def __init__(self, store: Store, threads: _Threads) -> None:
        self._blocks = store.blocks
        self._threads = threads

    async def get(self, block_hash: bytes) -> BlockInfo | None:
        """The stored block of this hash, or ``None``."""
        return await self._threads.read(self._blocks.get, block_hash)

    async def load(self, block_hash: bytes) -> BlockInfo:
        """The stored block of this hash. Raises ``BlockNotFound``."""
        return await self._threads.read(self._blocks.load, block_hash)

    async def at(self, height: int) -> BlockInfo | None:
        """The canonical block at ``height``, or ``None``."""
        return await self._threads.read(self._blocks.at, height)

    async def block(self, info: BlockInfo) -> Block:
        """The whole block as it was added."""
        return await self._threads.read(self._blocks.block, info)

    async def header(self, info: BlockInfo) -> bytes:
        """Header bytes."""
        return await self._threads.read(self._blocks.header, info)

    async def body(self, info: BlockInfo) -> bytes | None:
        """Body bytes, or ``None``."""
        return await self._threads.read(self._blocks.body, info)

    async def orphan(self, block_hash: bytes) -> OrphanInfo | None:
        """Why the block is not canonical, or ``None``."""
        return await self._threads.read(self._blocks.orphan, block_hash)

    async def tips(self) -> list[TipInfo]:
        """The leaves of the block tree."""
        return await self._threads.read(self._blocks.tips)

    def canonical(self, start: int | None = None, stop: int | None = None) -> AsyncIterator[BlockInfo]:
        """Canonical blocks with ``start <= height < stop``."""
        return self._pages(functools.partial(self._blocks.canonical, start, stop))

    def epoch(self, epoch: int) -> AsyncIterator[BlockInfo]:
        """Canonical blocks of the epoch."""
        return self._pages(functools.partial(self._blocks.epoch, epoch))

    def orphans(self) -> AsyncIterator[OrphanInfo]:
        """Every stored block that is not canonical."""
        return self._pages(self._blocks.orphans)

    def by_producer(self, producer: bytes) -> AsyncIterator[BlockInfo]:
        """Canonical blocks of this producer."""
        return self._pages(functools.partial(self._blocks.by_producer, producer))

    def by_time(self, start: int, stop: int | None = None) -> AsyncIterator[BlockInfo]:
        """Canonical blocks with ``start <= time < stop``."""
        return self._pages(functools.partial(self._blocks.by_time, start, stop))

    def _pages(self, make: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
        return _paged(self._threads, make)


class AsyncStateAt:
    """The state after one block, or as of each call, as coroutines. Made by ``store.state`` and ``store.state.at``."""

    def __init__(self, state: StateReader, threads: _Threads) -> None:
        self._reader = state
        self._threads = threads

    async def get(self, key: bytes) -> bytes | None:
        """The value, or ``None``."""
        return await self._threads.read(self._reader.get, key)

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values in the order of ``keys``, all of one version."""
        return await self._threads.read(self._reader.get_many, keys)

    def scan(
        self, prefix: bytes = b"", *, start: bytes | None = None, stop: bytes | None = None, reverse: bool = False
    ) -> AsyncIterator[tuple[bytes, bytes]]:
        """(key, value) in key order, or in the reverse: keys with ``prefix`` and ``start <= key < stop``."""
        return _paged(
            self._threads,
            functools.partial(self._reader.scan, prefix, start=start, stop=stop, reverse=reverse),
        )


class AsyncState(AsyncStateAt):
    """``store.state`` as coroutines and asynchronous iterators."""

    def __init__(self, store: Store, threads: _Threads) -> None:
        super().__init__(store.state, threads)
        self._state = store.state

    @property
    def root(self) -> bytes:
        """Root of the state at the tip, 32 bytes; in memory for a writer."""
        return self._state.root

    async def at(self, height: int) -> AsyncStateAt:
        """The state after the canonical block at ``height``; see ``StoreState.at``."""
        return AsyncStateAt(await self._threads.read(self._state.at, height), self._threads)

    async def history(self, key: bytes) -> list[tuple[int, bytes | None]]:
        """(height, value from there on) for each change of ``key``; see ``StoreState.history``."""
        return await self._threads.read(self._state.history, key)

    def diff(self, first: int, second: int) -> AsyncIterator[tuple[bytes, bytes | None, bytes | None]]:
        """(key, value at ``first``, value at ``second``) for every key that differs; see ``StoreState.diff``."""
        return _paged(self._threads, functools.partial(self._state.diff, first, second))

    async def prove(self, key: bytes, *, height: int | None = None) -> Proof:
        """A proof of the value of ``key``, or of its absence; see ``StoreState.prove``."""
        return await self._threads.read(self._state.prove, key, height=height)

    async def prove_many(self, keys: Sequence[bytes], *, height: int | None = None) -> MultiProof:
        """One compact proof for all of ``keys``; see ``StoreState.prove_many``."""
        return await self._threads.read(self._state.prove_many, keys, height=height)


class AsyncDocuments:
    """A space of documents as coroutines. Made by ``store.documents(name)``; writes keep the order of their calls."""

    def __init__(self, documents: Documents, threads: _Threads) -> None:
        self._documents = documents
        self._threads = threads

    async def get(self, key: bytes) -> bytes | None:
        """The document, or ``None``."""
        return await self._threads.read(self._documents.get, key)

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The documents in the order of ``keys``, all as of one moment."""
        return await self._threads.read(self._documents.get_many, keys)

    def scan(
        self, prefix: bytes = b"", *, start: bytes = b"", stop: bytes | None = None, reverse: bool = False
    ) -> AsyncIterator[tuple[bytes, bytes]]:
        """Keys and documents of a range in key order; see ``Documents.scan``."""
        return _paged(
            self._threads,
            functools.partial(self._documents.scan, prefix, start=start, stop=stop, reverse=reverse),
        )

    async def put(self, key: bytes, value: bytes) -> None:
        """``value`` is stored under ``key``, durable as a commit is."""
        await self._threads.write(self._documents.put, key, value)

    async def delete(self, key: bytes) -> None:
        """There is no document under ``key``."""
        await self._threads.write(self._documents.delete, key)

    async def write(self, puts: Mapping[bytes, bytes] | None = None, deletes: Iterable[bytes] = ()) -> None:
        """All of the batch is stored, durable as a commit is, or nothing of it; see ``Documents.write``."""
        await self._threads.write(self._documents.write, {} if puts is None else puts, deletes)


class _Cancelled(Exception):
    """Nobody waits for the work any more."""


async def _stoppable(threads: _Threads, work: Callable[[Callable[[int, int], None]], T]) -> T:
    """What ``work`` gives, which is handed its ``progress``; a cancelled ``await`` ends it where it tells that next."""
    cancelled = threading.Event()

    def step(_done: int, _total: int) -> None:
        if cancelled.is_set():
            raise _Cancelled

    try:
        return await threads.read(work, step)
    except asyncio.CancelledError:
        cancelled.set()
        raise


class AsyncCheckpoints:
    """``store.checkpoints`` as coroutines."""

    def __init__(self, store: Store, threads: _Threads) -> None:
        self._checkpoints = store.checkpoints
        self._threads = threads

    async def list(self) -> Sequence[CheckpointInfo]:
        """Every checkpoint, the highest first; its manifest was read, its chunks were not."""
        return await self._threads.read(self._checkpoints.list)

    async def create(self, height: int | None = None) -> CheckpointInfo:
        """The state after the canonical block at ``height``, or at the tip, is a checkpoint, durable; commits go on."""
        return await _stoppable(self._threads, lambda step: self._checkpoints.create(height, progress=step))

    async def verify(self, name: str) -> SnapshotInfo:
        """Every chunk of the checkpoint is whole and belongs to its root. Raises ``SnapshotInvalid``."""
        return await _stoppable(self._threads, lambda step: self._checkpoints.verify(name, progress=step))

    async def prune(
        self, every: int | None = None, *, newest: int | None = None, dry_run: bool = False
    ) -> CheckpointPruneReport:
        """Checkpoints that no rule keeps are gone; see ``store.checkpoints.prune``."""
        return await _stoppable(
            self._threads,
            lambda step: self._checkpoints.prune(every, newest=newest, dry_run=dry_run, progress=step),
        )


async def _paged(threads: _Threads, make: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
    iterator = await threads.read(make)
    while True:
        page = await threads.read(lambda: list(islice(iterator, _PAGE)))
        for item in page:
            yield item
        if len(page) < _PAGE:
            return


class AsyncStore(AbstractAsyncContextManager["AsyncStore"]):
    """A ``Store`` for asyncio. Made by ``holdfast.aio.open_async``."""

    def __init__(self, store: Store, threads: _Threads) -> None:
        self.sync_store = store
        """The store itself; its methods block."""
        self._threads = threads
        self.blocks = AsyncBlocks(store, threads)
        """Questions about blocks."""
        self.state = AsyncState(store, threads)
        """The state at the tip that readers see, at a height, and its proofs."""
        self.checkpoints = AsyncCheckpoints(store, threads)
        """Copies of the state that a new store can be made from."""

    @property
    def tip(self) -> BlockInfo | None:
        """The head of the canonical chain; in memory for a writer. Followers use ``await refresh()`` to move it."""
        return self.sync_store.tip

    @property
    def finalized(self) -> int | None:
        """The explicitly finalized height, or ``None``."""
        return self.sync_store.finalized

    @property
    def recovery(self) -> RecoveryStats:
        """What opening the store found and did."""
        return self.sync_store.recovery

    async def draft(self, parent: bytes | None = None) -> Draft:
        """A block to be built on ``parent``, or on the tip after every write called before.

        Its ``state`` is a plain one and may wait for the writer and the engine: ``build`` uses it off the loop.
        """
        return await self._threads.write(self.sync_store.draft, parent)

    async def build(self, draft: Draft, function: Callable[[MutableState], T]) -> T:
        """What ``function`` returns, called with the state of ``draft`` in a thread; one call at a time for a draft."""
        return await self._threads.read(lambda: function(draft.state))

    async def commit(
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
    ) -> BlockInfo:
        """The block is stored and durable; see ``Store.commit``."""
        return await self._threads.write(
            lambda: self.sync_store.commit(
                draft,
                hash=hash,
                header=header,
                body=body,
                time=time,
                work=work,
                producer=producer,
                extra=extra,
                safety=safety,
            )
        )

    async def add(
        self, block: Block, *, validate: bool = True, root_allowed: bool = False, wait_for_parent: bool = False
    ) -> AddResult:
        """A ready block is stored; see ``Store.add``."""
        return await self._threads.write(
            self.sync_store.add,
            block,
            validate=validate,
            root_allowed=root_allowed,
            wait_for_parent=wait_for_parent,
        )

    async def add_many(
        self,
        blocks: Sequence[Block],
        *,
        validate: bool = True,
        root_allowed: bool = False,
        wait_for_parent: bool = False,
    ) -> list[AddResult]:
        """Ready blocks are stored; see ``Store.add_many``."""
        return await self._threads.write(
            self.sync_store.add_many,
            blocks,
            validate=validate,
            root_allowed=root_allowed,
            wait_for_parent=wait_for_parent,
        )

    async def reorg(self, to: bytes, *, reason: str = "manual reorganisation") -> ReorgInfo | None:
        """The stored block ``to`` is the tip; see ``Store.reorg``."""
        return await self._threads.write(self.sync_store.reorg, to, reason=reason)

    async def orphan(self, block_hash: bytes, *, reason: str, competing: bytes | None = None) -> ReorgInfo | None:
        """The block is orphaned; see ``Store.orphan``."""
        return await self._threads.write(self.sync_store.orphan, block_hash, reason=reason, competing=competing)

    async def finalize(self, height: int) -> None:
        """Blocks up to ``height`` are final; see ``Store.finalize``."""
        await self._threads.write(self.sync_store.finalize, height)

    async def save_safety(self, identity: bytes, position: tuple[int, ...], payload: bytes) -> bool:
        """The payload is durable at ``position``; see ``store.safety.save``."""
        return await self._threads.write(self.sync_store.safety.save, identity, position, payload)

    async def index(self, name: str, key: bytes, *, limit: int | None = None) -> list[bytes]:
        """The values under ``key`` in the user index ``name``."""
        return await self._threads.read(lambda: self.sync_store.index(name).get(key, limit=limit))

    async def indexes(self) -> list[IndexStatus]:
        """Every index that the store knows."""
        return await self._threads.read(self.sync_store.indexes)

    def documents(self, name: str) -> AsyncDocuments:
        """The space of documents of this name; see ``Store.documents``."""
        return AsyncDocuments(self.sync_store.documents(name), self._threads)

    async def document_spaces(self) -> list[str]:
        """Names of the spaces that hold a document."""
        return await self._threads.read(self.sync_store.document_spaces)

    async def prune(
        self, *, blocks: int | None = None, every: int | None = None, below: int | None = None, dry_run: bool = False
    ) -> PruneReport:
        """Old heights of the state are given up; see ``Store.prune``. Cancelled, it goes on in its thread."""
        return await self._threads.read(self.sync_store.prune, blocks=blocks, every=every, below=below, dry_run=dry_run)

    async def compact(self, *, dry_run: bool = False, bytes_per_second: int | None = None) -> CompactReport:
        """Sealed segments of the journal need less room; see ``Store.compact``. Cancelled, it goes on in its thread."""
        return await self._threads.read(self.sync_store.compact, dry_run=dry_run, bytes_per_second=bytes_per_second)

    async def export_snapshot(
        self, path: str | os.PathLike[str], *, height: int | None = None, compress: bool = True
    ) -> SnapshotInfo:
        """The directory ``path`` is a snapshot; see ``Store.export_snapshot``. Cancelled, it goes on in its thread."""
        return await self._threads.read(lambda: self.sync_store.export_snapshot(path, height=height, compress=compress))

    async def create_backup(
        self, repository: BackupRepository, *, check: bool = False, bytes_per_second: int | None = None
    ) -> BackupReport:
        """A backup of the store is in ``repository``, durably; commits go on. See ``holdfast.backup.create_backup``."""
        from .backup import create_backup

        return await _stoppable(
            self._threads,
            lambda step: create_backup(
                self.sync_store, repository, check=check, bytes_per_second=bytes_per_second, progress=step
            ),
        )

    async def statistics(self) -> dict[str, object]:
        """Counters of the chain, the journal, the views and the engine."""
        return await self._threads.read(self.sync_store.statistics)

    async def refresh(self) -> None:
        """A read-only store sees everything that was durable when this was called."""
        await self._threads.read(self.sync_store.refresh)

    async def sync(self) -> None:
        """Everything committed so far is durable."""
        await self._threads.write(self.sync_store.sync)

    async def close(self) -> None:
        """Every write called before is done, the store is closed."""
        await self._threads.close(self.sync_store.close)

    async def __aenter__(self) -> AsyncStore:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def open_async(url: str | os.PathLike[str], **options: Unpack[DoorOptions]) -> AsyncStore:
    """The store at ``url`` for asyncio; ``options`` are those of ``holdfast.open``. Recovery runs off the loop.

    ``progress`` is called in another thread.
    """
    threads = _Threads()
    opening = threads.submit(functools.partial(open_attended, url, **options))
    try:
        store = await asyncio.wrap_future(opening)
    except BaseException:
        opening.add_done_callback(_close_unclaimed)  # the caller is gone: what opens nevertheless is closed again
        threads.end()
        raise
    return AsyncStore(store, threads)


def _close_unclaimed(opening: Future[Store]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
