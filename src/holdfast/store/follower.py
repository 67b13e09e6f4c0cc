"""A store that another process writes, read here: its engine read-only, its journal tailed to the watermark.

Invariants:
    * Nothing is written, no lock is taken; a frame is seen only after the writer made it durable.
    * The overlay holds every frame above what the engine held when it was opened, so rows that the writer flushes
      meanwhile are covered by newer or equal ones here.
    * What readers see only moves forward. It moves when somebody asks, at most every ten milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from .._fs import FileSystem
from .._keys import StoreKey
from ..blocks.lookup import load_block, load_tip
from ..blocks.state import ChainState, has_root
from ..config import Settings
from ..consensus.safety import SafetyBook
from ..engine.api import Engine, Reader
from ..engine.open import open_engine
from ..engine.sealed import sealed_engine
from ..errors import CorruptionError, EngineMismatch, MissingFile, Recovery
from ..journal.api import FrameSource
from ..journal.reader import JournalReader
from ..merkle.api import Scheme, Tree
from ..state.checkpoint import CHECKPOINTS_NAME, CheckpointDirectory
from ..state.draft import BlockState
from ..state.reader import OverlaidRows
from ..types import BlockInfo, RecoveryStats
from ..views.api import RowReader
from ..views.flush import load_applied
from ..views.rows import decode_row
from ..views.views import Views
from .backend import Pinned, RowsOf, keep_for_ever
from .base import check_base
from .branches import Branches, Moment
from .generations import Generations
from .identity import Identity
from .indexes import IndexSpec, decode_record, record_key
from .indexing import IndexManager
from .opening import foreign_views, read_identity, view_options
from .replay import Replayer, execution_of
from .tree import caught_up, open_tree, scheme_of
from .unlocking import file_keys, key_for, unlock

__all__ = ["Follower"]

_POLL_SECONDS = 0.01
_INDEX_SECONDS = 0.5
_OPEN_TRIES = 20
_OPEN_PAUSE_SECONDS = 0.05
_NO_VIEWS = "open it for writing once: the views are made from the journal"


class _Session:
    """One opening of the engine, and the overlay above it."""

    def __init__(
        self,
        engine: Engine,
        views: Views,
        replayer: Replayer,
        indexes: IndexManager,
        generation: int,
        stamp: tuple[int, int],
    ) -> None:
        self.indexes = indexes
        self.engine = engine
        self.views = views
        self.replayer = replayer
        self.generation = generation
        self.stamp = stamp
        self.tip: BlockInfo | None = None


class Follower:
    """The read-only side of a store; the backend of ``holdfast.open(url, read_only=True)``."""

    def __init__(
        self,
        fs: FileSystem,
        root: Path,
        engine: str | None,
        settings: Settings,
        specs: Mapping[str, IndexSpec],
        key: StoreKey | None = None,
    ) -> None:
        self._specs = specs
        self._fs = fs
        self._settings = settings
        self._lock = threading.RLock()
        self._polled = 0.0
        self._looked = 0.0
        self._current_file = root / "views" / "CURRENT"
        self._generations = Generations(fs, root)
        self._wanted = engine
        self.path: Path | None = root
        self._root = root
        started = time.monotonic()
        self.identity: Identity = read_identity(fs, root)
        self.key = key_for(key)
        cipher = unlock(self.identity, self.key, root, fs)
        self.checkpoints = CheckpointDirectory(
            fs, root / CHECKPOINTS_NAME, keys=file_keys(self.identity, cipher, self.key)
        )
        self._row_cipher = cipher.rows if cipher is not None else None
        self._reader = JournalReader.open(
            fs,
            root,
            store_id=self.identity.store_id,
            salt=self.identity.salt,
            cipher=cipher.parts if cipher is not None else None,
        )
        self.book = SafetyBook()
        self._old: list[_Session] = []
        self._tree: tuple[Tree, int] | None = None
        self.engine_name = ""
        try:
            check_base(fs, root, self._reader, self.identity)
            self._session = self._patiently(self._open_session)
        except BaseException:
            self._reader.close()
            raise
        self.rows = RowsOf(self._visible_rows)
        state = self._session.replayer.state
        self.stats = RecoveryStats(
            clean=self._reader.mark.clean,
            frames_replayed=self._session.replayer.frames,
            last_seq=self._reader.durable_seq,
            tip_height=state.tip_height if state.has_tip else None,
            finalized_height=state.finalized if state.finalized >= 0 else None,
            seconds=time.monotonic() - started,
        )

    # -- sessions -------------------------------------------------------------------------------------------------

    def _patiently(self, make: Callable[[], _Session]) -> _Session:
        """A session; tried again while the writer is just creating, flushing or replacing its views."""
        for left in range(_OPEN_TRIES, 0, -1):
            try:
                return make()
            except (MissingFile, CorruptionError):
                if left == 1:
                    raise
            time.sleep(_OPEN_PAUSE_SECONDS)
        raise AssertionError("unreachable")

    def _stamp(self) -> tuple[int, int]:
        try:
            status = os.stat(self._current_file)
        except FileNotFoundError:
            raise MissingFile(
                "the store has no views yet",
                path=self._current_file,
                recovery=Recovery.REPLAY,
                remedy=_NO_VIEWS,
            ) from None
        return status.st_ino, status.st_mtime_ns

    def _open_session(self) -> _Session:
        stamp = self._stamp()
        number = self._generations.current()
        if number is None:
            raise MissingFile(
                "the store has no views yet", path=self._current_file, recovery=Recovery.REPLAY, remedy=_NO_VIEWS
            )
        name = self._generations.engine_name(number)
        if self._wanted is not None and self._wanted != name:
            raise EngineMismatch("the store was made with another engine", found=name, asked=self._wanted)
        plain = open_engine(
            name,
            self._generations.data_path(number),
            create=False,
            read_only=True,
            cache_bytes=self._settings.cache_bytes,
        )
        engine = sealed_engine(plain, self._row_cipher)
        try:
            session = self._session_over(engine, number, stamp)
        except BaseException:
            engine.close()
            raise
        self.engine_name = name
        return session

    def _session_over(self, engine: Engine, number: int, stamp: tuple[int, int]) -> _Session:
        views = Views.open(engine, options=view_options(self._settings), frame_digest=self._digest)
        book = SafetyBook()
        book.load_rows(views.latest())
        replayer = Replayer(views, book)
        indexes = IndexManager(
            self._specs, engine, views, self._reader, rows_max=self._settings.index_rows_per_block_max
        )
        replayer.indexes = indexes.before_replay(replayer.state, writable=False)
        session = _Session(engine, views, replayer, indexes, number, stamp)
        self._reader.poll()
        strange = foreign_views(views, self._reader, self._reader.durable_seq)  # a flush makes durable what it takes
        if strange is not None:
            raise strange
        self._advance(session)
        self.book.records, self.book.fences = book.records, book.fences
        self.book.incarnation, self.book.fenced = book.incarnation, book.fenced
        return session

    def _digest(self, seq: int) -> bytes:
        return self._reader.frame(seq).digest

    def _advance(self, session: _Session) -> None:
        """Every durable frame is in the overlay and visible."""
        session.replayer.run(self._reader, self._reader.durable_seq, flush=False)
        session.views.caught_up()
        state = session.replayer.state
        if state.has_tip and (session.tip is None or session.tip.hash != state.tip_hash):
            session.tip = load_tip(session.views.latest().get, state)

    # -- moving ---------------------------------------------------------------------------------------------------

    def _now(self) -> _Session:
        now = time.monotonic()
        if now - self._polled >= _POLL_SECONDS:
            with self._lock:
                if now - self._polled >= _POLL_SECONDS:
                    self._poll()
        return self._session

    def refresh(self) -> None:
        with self._lock:
            self._poll()

    def _poll(self) -> None:
        if self._stamp() != self._session.stamp:
            self._replace(self._patiently(self._open_session))
        if self._reader.poll() != self._session.replayer.seq:
            self._advance(self._session)
            if self._session.views.full:
                self._shorten()
        self._take_new_indexes()
        self._polled = time.monotonic()

    def _take_new_indexes(self) -> None:
        """Indexes that the writer has brought up to the tip since this session began are read from now on."""
        session, now = self._session, time.monotonic()
        live = session.indexes.live
        missing = [
            spec for spec in self._specs.values() if spec.name not in live.ready and spec.name not in live.failures
        ]
        if not missing or now - self._looked < _INDEX_SECONDS:
            return
        self._looked = now
        session.engine.refresh()
        for spec in missing:
            key = record_key(spec.name)
            stored = session.engine.get(key)
            if stored is not None:
                record = decode_record(key, decode_row(key, stored))
                if record.status == "ready" and record.version == spec.version:
                    self._session = self._patiently(
                        lambda: self._session_over(session.engine, session.generation, session.stamp)
                    )
                    return

    def _shorten(self) -> None:
        """What the writer has flushed meanwhile leaves the overlay."""
        session = self._session
        session.engine.refresh()
        applied = load_applied(session.engine)
        if applied is None or applied.seq <= (session.views.applied.seq if session.views.applied else 0):
            return
        fresh = self._session_over(session.engine, session.generation, session.stamp)
        self._session = fresh

    def _replace(self, session: _Session) -> None:
        # Readers of the old generation may still be inside a call: its engine is closed with the store.
        self._old.append(self._session)
        self._session = session

    # -- reading --------------------------------------------------------------------------------------------------

    def _visible_rows(self) -> RowReader:
        return self._now().views.reader()

    @property
    def journal(self) -> FrameSource:
        return self._reader

    @property
    def indexes(self) -> IndexManager:
        return self._now().indexes

    @property
    def state(self) -> ChainState:
        return self._now().replayer.state

    @property
    def tip(self) -> BlockInfo | None:
        return self._now().tip

    def _frozen(self, stack: contextlib.ExitStack) -> tuple[_Session, Reader]:
        """The session, and a snapshot of its engine until ``stack`` ends, of one version; the lock is held."""
        self._poll()
        session = self._session
        snapshot: Reader = stack.enter_context(session.engine.snapshot())
        # The writer may have flushed newer frames before the snapshot: they must be in the overlay too.
        if self._reader.poll() != session.replayer.seq:
            self._advance(session)
        return session, snapshot

    @contextlib.contextmanager
    def pin(self) -> Iterator[Pinned]:
        with contextlib.ExitStack() as stack:
            with self._lock:
                session, snapshot = self._frozen(stack)
                pinned = stack.enter_context(session.views.pin(snapshot))
                state, tip = session.replayer.state, session.tip
            yield pinned, state, tip

    # -- the state ------------------------------------------------------------------------------------------------

    @property
    def scheme(self) -> Scheme:
        return scheme_of(self.identity)

    @property
    def hot_get(self) -> Callable[[bytes], bytes | None]:
        def get(key: bytes) -> bytes | None:
            return self._now().views.get_state(key)  # asked at each call: the session moves

        return get

    def the_views(self) -> Views:
        return self._now().views

    @contextlib.contextmanager
    def reading(self) -> Iterator[tuple[Views, Reader | None]]:
        self.rows.check()
        with contextlib.ExitStack() as stack:
            with self._lock:
                session, snapshot = self._frozen(stack)
            yield session.views, snapshot

    def open_state(self, block_hash: bytes | None) -> BlockState:
        """The state after a stored block of any branch (``None``: after the tip), held until it is released.

        The tree is made when it is first asked for, and brought forward each time.
        """
        with contextlib.ExitStack() as stack, self._lock:
            session, snapshot = self._frozen(stack)
            pin = stack.enter_context(session.views.pin(snapshot))
            tree = self._tree_of(session, pin)
            if block_hash is None or (session.tip is not None and session.tip.hash == block_hash):
                return BlockState(pin, tree, stack.pop_all().close)
            info = load_block(pin.get, block_hash)
            moment = Moment(session.views, pin, session.tip, tree, partial(execution_of, self._reader))
            rows, tree = Branches(lambda: moment).state_of(info)
            return BlockState(OverlaidRows(pin, rows), tree, stack.pop_all().close)

    def _tree_of(self, session: _Session, rows: RowReader) -> Tree:
        """The tree over the state that ``rows`` are of, which is the session's newest."""
        state, seq = session.replayer.state, session.replayer.seq
        tree = None
        if self._tree is not None:
            known, known_seq = self._tree
            tree = known if known_seq == seq else caught_up(known, self._reader, known_seq, seq, rows)
        if tree is None or not has_root(tree, state.state_root):
            tree = open_tree(self._fs, self._root, self.identity, self._reader, seq, rows, state).tree
        self._tree = (tree, seq)
        return tree

    def statistics(self) -> dict[str, object]:
        session = self._now()
        views, cache = session.views.stats, session.views.cache_stats
        return {
            "journal": {"durable_seq": self._reader.durable_seq, "segments": len(self._reader.segments())},
            "views": {
                "engine": self.engine_name,
                "generation": session.generation,
                "applied_seq": views.applied_seq,
                "overlay_rows": views.overlay_rows,
                "overlay_bytes": views.overlay_bytes,
                "size_bytes": session.engine.stats().size_bytes,
            },
            "state_cache": cache.as_dict() if cache is not None else None,
        }

    def close(self) -> None:
        with self._lock:
            for session in {id(item.engine): item for item in (*self._old, self._session)}.values():
                session.views.close(flush=False)
                session.engine.close()
            self._reader.close()

    def abandon(self) -> None:
        """A follower writes nothing; its engine may not be read by a fork either."""
        self.rows.abandon()
        for session in (*self._old, self._session):
            session.views.abandon()
            keep_for_ever(session.engine)
        self._reader.abandon()
