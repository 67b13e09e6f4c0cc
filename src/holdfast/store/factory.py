"""``open``: from a URL, a chain and settings to a ``Store``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from .._fs import FileSystem, MemoryFileSystem, RealFileSystem
from ..blocks.fork_choice import fork_choice_named
from ..config import Settings
from ..consensus.safety import SafetyBook
from ..errors import InvalidInputError, StoreNotFound
from ..journal.api import Part
from .backend import WriterBackend
from .chain import Chain, ChainSpec, CustomChain
from .checks import check_hash
from .opening import MEMORY_ROOT, OpenPlan, open_for_writing
from .store import Store
from .url import parse_url
from .writer import Writer

__all__ = ["open_store"]


class _Late:
    """Callbacks that the journal needs before the writer exists."""

    def __init__(self) -> None:
        self.writer: Writer | None = None
        self.book = SafetyBook()

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
    progress: Callable[[int, int], None] | None = None,
    fs: FileSystem | None = None,
) -> Store:
    """The store at ``url``, recovered. See ``holdfast.open``."""
    place = parse_url(url)
    settings = settings if settings is not None else Settings()
    forced = dict(forced_blocks or {})
    for height, block_hash in forced.items():
        check_hash(f"forced block {height}", block_hash)
    if place.path is None:
        if read_only:
            raise InvalidInputError("a store in memory cannot be opened read-only")
        fs, root, path = fs or MemoryFileSystem(), MEMORY_ROOT, None
        fs.make_directory(root)
    else:
        fs, root, path = fs or RealFileSystem(), place.path, place.path
    if read_only:
        raise StoreNotFound("read-only stores are opened by the follower", path=path)
    return _open_writer(place.engine, fs, root, path, chain, create, settings, forced, progress, str(url))


def _open_writer(
    engine: str | None,
    fs: FileSystem,
    root: Path,
    path: Path | None,
    chain: Chain | None,
    create: bool,
    settings: Settings,
    forced: Mapping[int, bytes],
    progress: Callable[[int, int], None] | None,
    url: str,
) -> Store:
    late = _Late()
    spec: ChainSpec | None = chain.spec if chain is not None else None
    plan = OpenPlan(fs, root, engine, settings, spec, create, late.carry, late.on_durable, late.book, None, progress)
    opened = open_for_writing(plan)
    buffered = settings.durability == "buffered"
    writer = Writer(
        journal=opened.journal,
        views=opened.views,
        state=opened.replayer.state,
        book=late.book,
        buffered=buffered,
        compress=settings.compression != "none",
    )
    choice = settings.fork_choice if settings.fork_choice != "chain" else opened.identity.spec.fork_choice
    writer.configure(
        fork_choice_named(choice),
        max_reorg_depth=settings.max_reorg_depth,
        max_orphans=settings.max_orphans,
        forced=forced,
    )
    late.writer = writer
    seconds = settings.buffered_sync_seconds if buffered else None
    backend = WriterBackend(opened, writer, path, sync_seconds=seconds)
    chain = chain if chain is not None else CustomChain(opened.identity.spec)
    store = Store(backend, chain, settings, url)
    try:
        backend.check_incarnation()
        genesis = chain.genesis()
        if genesis is not None and store.tip is None:
            store.add(genesis, validate=False, root_allowed=True)
    except BaseException:
        store.close()
        raise
    return store
