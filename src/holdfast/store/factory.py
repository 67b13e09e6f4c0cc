"""``open``: from a URL, a chain and settings to a ``Store``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

from .._fs import FileSystem, MemoryFileSystem, RealFileSystem
from .._keys import StoreKey
from ..blocks.fork_choice import fork_choice_named
from ..blocks.state import ChainState
from ..config import Settings
from ..consensus.safety import SafetyBook
from ..engine.api import Engine
from ..errors import CorruptionError, InternalError, InvalidInputError
from ..events import corruption_found, store_opened
from ..journal.api import Part
from ..journal.journal import Journal
from ..limits import INDEXES_MAX
from ..views.views import Views
from .backend import WriterBackend
from .chain import Chain, CustomChain
from .checks import check_chain, check_forced, check_settings
from .follower import Follower
from .guard import DiskGuard
from .indexes import IndexSpec, check_specs
from .indexing import IndexManager, LiveIndexes
from .news import News
from .opening import MEMORY_ROOT, Opened, OpenPlan, check_spec, open_for_writing
from .pruning import PrunePolicy
from .retention import RetentionPolicy
from .store import Store
from .upkeep import Upkeep
from .url import parse_url
from .writer import Writer

__all__ = ["OpenOptions", "open_store"]


class _Late:
    """Callbacks that the journal needs before the writer exists."""

    def __init__(self) -> None:
        self.writer: Writer | None = None
        self.book = SafetyBook()
        self.indexes: IndexManager | None = None

    def on_durable(self, seq: int) -> None:
        if self.writer is not None:
            self.writer.on_durable(seq)

    def carry(self) -> list[Part]:
        return self.book.parts()


class OpenOptions(TypedDict, total=False):
    """What every way to open a store takes by name; ``holdfast.open`` says what each means."""

    chain: Chain | None
    create: bool
    read_only: bool
    settings: Settings | None
    forced_blocks: Mapping[int, bytes] | None
    indexes: Sequence[IndexSpec]
    progress: Callable[[int, int], None] | None
    key: bytes | StoreKey | None
    fs: FileSystem | None


@dataclass(frozen=True, slots=True)
class _Asked:
    """The options of one open, those that were not given by their defaults."""

    chain: Chain | None = None
    create: bool = True
    read_only: bool = False
    settings: Settings | None = None
    forced_blocks: Mapping[int, bytes] | None = None
    indexes: Sequence[IndexSpec] = ()
    progress: Callable[[int, int], None] | None = None
    key: bytes | StoreKey | None = None
    fs: FileSystem | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the store is, and what opens it, checked."""

    url: str
    engine: str | None
    fs: FileSystem
    root: Path
    path: Path | None
    """The directory on disk, if it is there."""
    settings: Settings
    specs: Mapping[str, IndexSpec]
    forced: Mapping[int, bytes]
    key: StoreKey | None


def open_store(
    url: str | os.PathLike[str],
    *,
    repaired: Mapping[str, object] | None = None,
    tell_damage: bool = True,
    **options: Unpack[OpenOptions],
) -> Store:
    """The store at ``url``, its journal replayed. ``holdfast.open`` also repairs what is damaged.

    ``repaired`` says what was repaired before, for ``store.recovery``. Without ``tell_damage`` the caller tells the
    event ``corruption_found`` about the error that this raises.

    A store that is created with ``key`` is encrypted for ever: parts of the journal and values of rows (keys of rows
    stay readable). It is opened with the same key; 32 bytes are those of a key file. ``KeyRequired`` and
    ``KeyRejected`` come before anything is written.
    """
    asked = _Asked(**options)
    place = _checked(url, asked)
    try:
        store = _open_follower(place, asked) if asked.read_only else _open_writer(place, asked, repaired)
    except CorruptionError as error:
        if tell_damage:
            corruption_found(error)
        raise
    store_opened(store.recovery, url=place.url, engine=store.engine, read_only=asked.read_only)
    return store


def _checked(url: str | os.PathLike[str], asked: _Asked) -> _Place:
    key, place = StoreKey.of(asked.key), parse_url(url)
    specs, settings = check_specs(asked.indexes, INDEXES_MAX), check_settings(asked.settings)
    check_chain(asked.chain)
    forced = check_forced(asked.forced_blocks or {})
    if place.path is not None:
        path = place.path.absolute()  # a process may change its directory while the store is open
        fs = asked.fs or RealFileSystem()
        return _Place(str(url), place.engine, fs, path, path, settings, specs, forced, key)
    if asked.read_only:
        raise InvalidInputError("a store in memory cannot be opened read-only")
    fs = asked.fs or MemoryFileSystem()
    fs.make_directory(MEMORY_ROOT)
    return _Place(str(url), place.engine, fs, MEMORY_ROOT, None, settings, specs, forced, key)


def _open_follower(place: _Place, asked: _Asked) -> Store:
    follower = Follower(place.fs, place.root, place.engine, place.settings, place.specs, place.key)
    try:
        if asked.chain is not None:
            check_spec(follower.identity, asked.chain.spec, place.root)
        return Store(follower, asked.chain or CustomChain(follower.identity.spec), place.settings, place.url)
    except BaseException:
        follower.close()
        raise


def _open_writer(place: _Place, asked: _Asked, repaired: Mapping[str, object] | None) -> Store:
    late, settings = _Late(), place.settings

    def indexes_of(views: Views, engine: Engine, journal: Journal, state: ChainState) -> LiveIndexes:
        late.indexes = IndexManager(place.specs, engine, views, journal, rows_max=settings.index_rows_per_block_max)
        return late.indexes.before_replay(state, writable=True)

    plan = OpenPlan(
        place.fs,
        place.root,
        place.engine,
        settings,
        None if asked.chain is None else asked.chain.spec,
        asked.create,
        late.carry,
        late.on_durable,
        late.book,
        indexes_of,
        asked.progress,
        key=place.key,
    )
    plan.repaired = repaired
    RetentionPolicy(settings.journal_retention, settings.journal_retention_amount)  # refused before anything is opened
    opened = open_for_writing(plan)
    try:
        backend, upkeep = _make_backend(opened, late, settings, place.forced, place.path, News(place.url))
    except BaseException:
        opened.abandon()
        raise
    chain = asked.chain if asked.chain is not None else CustomChain(opened.identity.spec)
    store = Store(backend, chain, settings, place.url, upkeep)
    try:
        backend.check_incarnation()
        genesis = chain.genesis()
        if genesis is not None and store.tip is None:
            store.add(genesis, validate=False, root_allowed=True)
        store.start_indexes()
        upkeep.start()
    except BaseException:
        store.close()
        raise
    return store


def _make_backend(
    opened: Opened, late: _Late, settings: Settings, forced: Mapping[int, bytes], path: Path | None, news: News
) -> tuple[WriterBackend, Upkeep]:
    buffered = settings.durability == "buffered"
    writer = Writer(
        journal=opened.journal,
        views=opened.views,
        state=opened.replayer.state,
        book=late.book,
        tree=opened.tree.tree,
        tree_bytes_max=settings.tree_bytes_max,
        guard=DiskGuard(opened.plan.fs, opened.plan.root, settings.disk_reserve_bytes),
        buffered=buffered,
        compress=settings.compression != "none",
        news=news,
    )
    choice = settings.fork_choice if settings.fork_choice != "chain" else opened.identity.spec.fork_choice
    writer.configure(
        fork_choice_named(choice),
        max_reorg_depth=settings.max_reorg_depth,
        max_orphans=settings.max_orphans,
        forced=forced,
    )
    late.writer = writer
    if late.indexes is None:
        raise InternalError("the indexes were not loaded")
    late.indexes.after_replay()
    writer.indexes = late.indexes.live
    seconds = settings.buffered_sync_seconds if buffered else None
    backend = WriterBackend(opened, writer, path, late.indexes, sync_seconds=seconds)
    upkeep = Upkeep(
        backend,
        PrunePolicy(settings.history_blocks, settings.history_every),
        image_seq=opened.tree.image_seq,
        retention=RetentionPolicy(settings.journal_retention, settings.journal_retention_amount),
        compact=settings.compact == "on",
    )
    backend.stopping, backend.closing = upkeep.stop, upkeep.save_at_close
    return backend, upkeep
