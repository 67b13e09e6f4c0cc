"""What stands under the facade: the writer of a store, or a follower that reads another process's store."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from .._failpoints import hit
from .._keys import StoreKey
from .._threads import start_thread
from ..blocks.lookup import load_block
from ..blocks.reader import BlockReader
from ..blocks.state import ChainState
from ..consensus.safety import SafetyBook
from ..engine.api import Engine, Page, Reader
from ..errors import ClosedError, CorruptionError, HoldfastError, InvalidInputError
from ..journal.api import FrameSource
from ..merkle.api import Scheme
from ..state.checkpoint import CHECKPOINTS_NAME, CheckpointDirectory
from ..state.draft import BlockState
from ..state.reader import OverlaidRows
from ..types import BlockInfo, RecoveryStats
from ..views.api import RowReader
from ..views.views import Views
from .branches import Branches, Moment
from .fingerprint import fingerprint
from .generations import Generations
from .identity import Identity
from .indexing import IndexManager
from .opening import Opened, make_views, open_views_engine, view_options
from .renewal import build_generation
from .replay import Replayer
from .states import StateSource
from .tree import scheme_of
from .unlocking import file_keys
from .writer import Writer

__all__ = ["Backend", "Pinned", "RowsOf", "WriterBackend", "keep_for_ever"]

Pinned = tuple[RowReader, ChainState, BlockInfo | None]


def keep_for_ever(engine: Engine) -> None:
    """``engine`` is never freed: in the child of a fork, RocksDB would wait for threads that are not there, or die."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))


def _nothing() -> None:
    """Nobody has to be told."""


class Backend(StateSource, Protocol):
    """Rows, journal and state of a store, from whichever side they come."""

    identity: Identity
    engine_name: str
    path: Path | None
    rows: RowsOf
    stats: RecoveryStats
    book: SafetyBook
    checkpoints: CheckpointDirectory
    key: StoreKey | None

    @property
    def indexes(self) -> IndexManager:
        """The user indexes."""

    @property
    def journal(self) -> FrameSource:
        """Frames by number."""

    def pin(self) -> AbstractContextManager[Pinned]:
        """Rows, state and tip of one moment."""

    def refresh(self) -> None:
        """Readers see what is durable now."""

    def statistics(self) -> dict[str, object]:
        """Figures of journal, views and engine."""

    def close(self) -> None:
        """Everything is released."""

    def abandon(self) -> None:
        """This process is a fork: nothing is written or synced any more."""


class RowsOf:
    """A reader that asks for the views at each call, so that another generation can take over."""

    def __init__(self, current: Callable[[], RowReader]) -> None:
        self._current = current
        self._abandoned = False

    def abandon(self) -> None:
        """Every later read raises ``ClosedError``: this process is a fork."""
        self._abandoned = True
        self._current = self._refuse

    def check(self) -> None:
        """Raises ``ClosedError`` if this process is a fork. Before any lock that a thread of the parent may hold."""
        if self._abandoned:
            self._refuse()

    def _refuse(self) -> RowReader:
        raise ClosedError("the store was opened before fork(); open it again in the child")

    def get(self, key: bytes) -> bytes | None:
        return self._current().get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return self._current().get_many(keys)

    def floor(self, key: bytes, low: bytes) -> tuple[bytes, bytes] | None:
        return self._current().floor(key, low)

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False, limit: int = 1000) -> Page:
        return self._current().scan(start, stop, reverse=reverse, limit=limit)


class WriterBackend:
    """The one process that writes."""

    def __init__(
        self, opened: Opened, writer: Writer, root: Path | None, indexes: IndexManager, *, sync_seconds: float | None
    ) -> None:
        self._opened = opened
        self.writer = writer
        self.identity = opened.identity
        self.key = opened.plan.key
        self.engine_name = opened.engine_name
        self.path = root
        self.stats = opened.stats
        self.book = writer.book
        plan = opened.plan
        keys = file_keys(opened.identity, plan.cipher, plan.key)
        self.checkpoints = CheckpointDirectory(plan.fs, plan.root / CHECKPOINTS_NAME, keys=keys)
        self._indexes = indexes
        self.rows = RowsOf(self._visible_rows)
        self.latest_rows = RowsOf(self._latest_rows)
        self.scheme: Scheme = scheme_of(opened.identity)
        self._branches = Branches(self._moment)
        self.closing: Callable[[], object] = _nothing
        """Called when everything durable is in the engine, before the journal is closed."""
        self.renewed: Callable[[], object] = _nothing
        """Called when other views have taken over."""
        self.stopping: Callable[[], object] = _nothing
        """Called first when the store is closed: background work ends."""
        self._renewing = threading.Lock()
        self._retired: list[tuple[Views, Engine]] = []
        self._stop = threading.Event()
        self._syncer: threading.Thread | None = None
        if sync_seconds is not None:
            self._syncer = start_thread(self._sync_loop, "holdfast-sync", sync_seconds)
        self.views.start()

    def _visible_rows(self) -> RowReader:
        return self.writer.views.reader()

    def _latest_rows(self) -> RowReader:
        return self.writer.views.latest()

    @property
    def indexes(self) -> IndexManager:
        return self._indexes

    @property
    def views(self) -> Views:
        """The live generation of views."""
        return self.writer.views

    @property
    def opened(self) -> Opened:
        """The parts the store was opened from."""
        return self._opened

    @property
    def journal(self) -> FrameSource:
        return self._opened.journal

    @property
    def state(self) -> ChainState:
        return self.writer.visible.state

    @property
    def tip(self) -> BlockInfo | None:
        return self.writer.visible.tip

    @contextlib.contextmanager
    def pin(self) -> Iterator[Pinned]:
        with self.writer.pin() as pinned:
            yield pinned

    def _moment(self) -> Moment:
        writer = self.writer
        return Moment(writer.views, writer.views.latest(), writer.tip, writer.tree, writer.execution_of)

    @property
    def hot_get(self) -> Callable[[bytes], bytes | None]:
        return self.writer.views.get_state

    def the_views(self) -> Views:
        return self.writer.views

    @contextlib.contextmanager
    def reading(self) -> Iterator[tuple[Views, Reader | None]]:
        self.rows.check()
        yield self.writer.views, None

    def open_state(self, block_hash: bytes | None) -> BlockState:
        """The state after a stored block of any branch, durable or not (``None``: after the appended tip)."""
        self.rows.check()
        writer = self.writer
        with writer.lock:
            writer.check()
            pin = writer.views.pin_latest()
            try:
                tip = writer.tip
                if block_hash is None or (tip is not None and tip.hash == block_hash):
                    return BlockState(pin, writer.tree, pin.close)
                rows, tree = self._branches.state_of(load_block(pin.get, block_hash))
                return BlockState(OverlaidRows(pin, rows), tree, pin.close)
            except BaseException:
                pin.close()
                raise

    def open_state_aside(self, block_hash: bytes) -> BlockState:
        """As ``open_state``, and no commit waits while the state of an older block is made, as a follower makes it."""
        self.rows.check()
        writer = self.writer
        with writer.lock:
            writer.check()
            views = writer.views
            pin = views.pin_latest()
            moment = Moment(views, pin, writer.tip, writer.tree, writer.execution_of)
        try:
            rows, tree = Branches(lambda: moment).state_of(load_block(pin.get, block_hash))
            return BlockState(OverlaidRows(pin, rows), tree, pin.close)
        except CorruptionError:  # a reorganisation may have taken away what undoes a block; with the lock it cannot
            pin.close()
            return self.open_state(block_hash)
        except BaseException:
            pin.close()
            raise

    def refresh(self) -> None:
        """Nothing to do: a writer's readers always see what is durable."""

    def check_incarnation(self) -> None:
        """A store that was copied, moved or restored is fenced from now on, in the journal."""
        place = fingerprint(self.path, self.identity.store_id)
        if self.book.incarnation != place:
            self.writer.sync(self.writer.save_incarnation(place))

    def renew(self, blocks: BlockReader, progress: Callable[[int, int], None] | None) -> int:
        """A new generation of views, made from the journal, is live; its number. Reads and commits go on meanwhile."""
        with self._renewing:
            opened, writer = self._opened, self.writer
            generations, plan, journal = opened.generations, opened.plan, opened.journal
            if generations is None:
                raise InvalidInputError("a store in memory has no views on disk")
            writer.sync()
            built = build_generation(
                journal,
                journal.durable_seq,
                plan.fs,
                generations,
                opened.engine_name,
                progress=progress,
                options=view_options(plan.settings),
                history=plan.settings.history == "on",
                cache_bytes=plan.settings.cache_bytes,
                cipher=plan.cipher,
            )
            self._indexes.stop()
            with writer.lock:
                self._take_over(built.number, generations)
            self._indexes.start(writer, blocks)
            return built.number

    def _take_over(self, number: int, generations: Generations) -> None:
        """The built generation is caught up and becomes the live one; the writer's lock is held."""
        opened, writer = self._opened, self.writer
        plan, journal = opened.plan, opened.journal
        writer.sync()
        engine = open_views_engine(plan, opened.engine_name, generations.data_path(number), create=False)
        try:
            views = make_views(plan, journal, engine)
            book = SafetyBook()
            book.load_rows(views.latest())
            replayer = Replayer(views, book)
            indexes = self._indexes.for_generation(engine, views)
            replayer.indexes = indexes.before_replay(replayer.state, writable=True)
            replayer.run(journal, journal.durable_seq, flush=True)
            views.flush()
            hit("recovery.rebuild.before_switch")
            generations.switch(number)
        except BaseException:
            engine.close()
            raise
        self._retired.append((self.views, opened.engine))
        writer.replace_views(views)
        self._branches.forget()
        writer.indexes, self._indexes = indexes.live, indexes
        opened.engine, opened.views, opened.generation = engine, views, number
        views.start()
        self.renewed()

    def _release_retired(self) -> None:
        for views, engine in self._retired:
            views.close(flush=False)
            engine.close()
        opened = self._opened
        if self._retired and opened.generations is not None and opened.generation is not None:
            opened.generations.remove_others(opened.generation)
        self._retired.clear()

    def _sync_loop(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            try:
                self.writer.sync()
            except HoldfastError:
                return  # the journal is poisoned: the next commit says so

    def statistics(self) -> dict[str, object]:
        journal, engine, views = self._opened.journal, self._opened.engine, self.views.stats
        cache = self.views.cache_stats
        segments = journal.segments()
        return {
            "journal": {
                "appended_seq": journal.appended_seq,
                "durable_seq": journal.durable_seq,
                "segments": len(segments),
                "bytes": sum(segment.file_bytes for segment in segments),
            },
            "views": {
                "engine": self.engine_name,
                "generation": self._opened.generation,
                "applied_seq": views.applied_seq,
                "overlay_rows": views.overlay_rows,
                "overlay_bytes": views.overlay_bytes,
                "flushes": views.flushes,
                "rows_flushed": views.rows_flushed,
                "pins": views.pins,
                "failure": views.failure,
                "size_bytes": engine.stats().size_bytes,
            },
            "state_cache": cache.as_dict() if cache is not None else None,
            "disk": self.writer.guard.as_dict(),
        }

    def close(self) -> None:
        self._stop.set()
        opened = self._opened
        failures: list[BaseException] = []
        healthy = opened.journal.poisoned is None
        steps: list[Callable[[], object]] = [self.stopping, self._indexes.stop]
        if self._syncer is not None:
            steps.append(self._syncer.join)
        if healthy:
            steps.append(self.writer.sync)
        steps += [
            lambda: self.views.close(flush=healthy),
            lambda: self.closing() if healthy and not failures else None,
            opened.engine.close,
            self._release_retired,
            lambda: opened.journal.close(clean=healthy and not failures),
            opened.lock.release,
        ]
        for step in steps:
            try:
                step()
            except BaseException as error:  # noqa: BLE001  # also an interrupt: the lock is freed whatever happens
                failures.append(error)
        if failures:
            raise failures[0]

    def abandon(self) -> None:
        self.rows.abandon()
        self.latest_rows.abandon()
        self.writer.abandon()
        for views in (self.views, *(views for views, _ in self._retired)):
            views.abandon()
        self._opened.journal.abandon()
        keep_for_ever(self._opened.engine)
        self._opened.lock.release()
