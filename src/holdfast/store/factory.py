"""``open``: from a URL, a chain and settings to a ``Store``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

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
from .chain import Chain, ChainSpec, CustomChain
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
from .url import StoreUrl, parse_url
from .writer import Writer

__all__ = ["open_store"]


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


def open_store(
    url: str | os.PathLike[str],
    *,
    chain: Chain | None = None,
    create: bool = True,
    read_only: bool = False,
    settings: Settings | None = None,
    forced_blocks: Mapping[int, bytes] | None = None,
    indexes: Sequence[IndexSpec] = (),
    progress: Callable[[int, int], None] | None = None,
    key: bytes | StoreKey | None = None,
    fs: FileSystem | None = None,
    repaired: Mapping[str, object] | None = None,
    tell_damage: bool = True,
) -> Store:
    """The store at ``url``, its journal replayed. ``holdfast.open`` also repairs what is damaged.

    ``repaired`` says what was repaired before, for ``store.recovery``. Without ``tell_damage`` the caller tells the
    event ``corruption_found`` about the error that this raises.

    A store that is created with ``key`` is encrypted for ever: parts of the journal and values of rows (keys of rows
    stay readable). It is opened with the same key; 32 bytes are those of a key file. ``KeyRequired`` and
    ``KeyRejected`` come before anything is written.
    """
    secret = StoreKey.of(key)
    place = parse_url(url)
    specs = check_specs(indexes, INDEXES_MAX)
    settings = check_settings(settings)
    check_chain(chain)
    forced = check_forced(forced_blocks or {})
    fs, root, path = _where(place, fs, read_only=read_only)
    try:
        if read_only:
            store = _open_follower(place.engine, fs, root, chain, settings, specs, str(url), secret)
        else:
            store = _open_writer(
                place.engine,
                fs,
                root,
                path,
                chain,
                create,
                settings,
                forced,
                specs,
                progress,
                str(url),
                repaired,
                secret,
            )
    except CorruptionError as error:
        if tell_damage:
            corruption_found(error)
        raise
    store_opened(store.recovery, url=str(url), engine=store.engine, read_only=read_only)
    return store


def _where(place: StoreUrl, fs: FileSystem | None, *, read_only: bool) -> tuple[FileSystem, Path, Path | None]:
    """The files of the store, its directory in them, and on disk if it is there."""
    if place.path is not None:
        path = place.path.absolute()  # a process may change its directory while the store is open
        return fs or RealFileSystem(), path, path
    if read_only:
        raise InvalidInputError("a store in memory cannot be opened read-only")
    fs = fs or MemoryFileSystem()
    fs.make_directory(MEMORY_ROOT)
    return fs, MEMORY_ROOT, None


def _open_follower(
    engine: str | None,
    fs: FileSystem,
    root: Path,
    chain: Chain | None,
    settings: Settings,
    specs: Mapping[str, IndexSpec],
    url: str,
    key: StoreKey | None,
) -> Store:
    follower = Follower(fs, root, engine, settings, specs, key)
    try:
        if chain is not None:
            check_spec(follower.identity, chain.spec, root)
        return Store(follower, chain or CustomChain(follower.identity.spec), settings, url)
    except BaseException:
        follower.close()
        raise


def _open_writer(
    engine: str | None,
    fs: FileSystem,
    root: Path,
    path: Path | None,
    chain: Chain | None,
    create: bool,
    settings: Settings,
    forced: Mapping[int, bytes],
    specs: Mapping[str, IndexSpec],
    progress: Callable[[int, int], None] | None,
    url: str,
    repaired: Mapping[str, object] | None,
    key: StoreKey | None,
) -> Store:
    late = _Late()
    spec: ChainSpec | None = chain.spec if chain is not None else None

    def indexes_of(views: Views, engine: Engine, journal: Journal, state: ChainState) -> LiveIndexes:
        late.indexes = IndexManager(specs, engine, views, journal, rows_max=settings.index_rows_per_block_max)
        return late.indexes.before_replay(state, writable=True)

    plan = OpenPlan(
        fs, root, engine, settings, spec, create, late.carry, late.on_durable, late.book, indexes_of, progress, key=key
    )
    plan.repaired = repaired
    RetentionPolicy(settings.journal_retention, settings.journal_retention_amount)  # refused before anything is opened
    opened = open_for_writing(plan)
    try:
        backend, upkeep = _make_backend(opened, late, settings, forced, path, News(url))
    except BaseException:
        opened.abandon()
        raise
    chain = chain if chain is not None else CustomChain(opened.identity.spec)
    store = Store(backend, chain, settings, url, upkeep)
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
