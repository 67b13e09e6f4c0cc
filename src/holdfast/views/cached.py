"""Reading one row of the state as quickly as can be: overlay, then cache, then engine.

Why no reader is given a stale row: the overlay is asked first. If it has no visible row of the key at that moment, the
row that the engine had then is the visible one. The cache is asked after it: an entry is the engine's row of that
moment, or of a later flush, whose frames were visible by then. See ``cache`` for why no entry outlives its row.
"""

from __future__ import annotations

from collections.abc import Callable

from ..engine.api import Engine
from .cache import RowCache
from .overlay import MISSING, Missing, Overlay
from .rows import decode_row

__all__ = ["state_getter"]

StateGet = Callable[[bytes], "bytes | None"]


def state_getter(engine: Engine, overlay: Overlay, cache: RowCache | None, *, count: bool) -> StateGet:
    """A function that gives the visible row of an engine key, or ``None``; with ``count``, hits and misses count.

    It raises ``CorruptionError`` for a bad checksum.
    """
    find = overlay.nodes.get

    def visible(key: bytes) -> bytes | Missing | None:
        node = find(key)
        version = overlay.visible_version
        while node is not None:
            if node[0] <= version:
                return node[1]
            node = node[2]
        return MISSING

    def from_engine(key: bytes) -> bytes | None:
        stored = engine.get(key)
        return None if stored is None else decode_row(key, stored)

    if cache is None:

        def uncached(key: bytes) -> bytes | None:
            value = visible(key)
            return from_engine(key) if value is MISSING else value

        return uncached
    return _counted(find, visible, from_engine, cache) if count else _plain(find, visible, from_engine, cache)


def _plain(
    find: Callable[[bytes], object],
    visible: Callable[[bytes], bytes | Missing | None],
    from_engine: StateGet,
    cache: RowCache,
) -> StateGet:
    cached, fill = cache.get, cache.fill

    def get(key: bytes) -> bytes | None:
        if find(key) is not None and (newest := visible(key)) is not MISSING:
            return newest
        value = cached(key, MISSING)
        if value is not MISSING:
            return value
        epoch = cache.epoch
        value = from_engine(key)
        fill(key, value, epoch)
        return value

    return get


def _counted(
    find: Callable[[bytes], object],
    visible: Callable[[bytes], bytes | Missing | None],
    from_engine: StateGet,
    cache: RowCache,
) -> StateGet:
    cached, fill = cache.get, cache.fill
    hit, miss = cache.hits.add, cache.misses.add

    def get(key: bytes) -> bytes | None:
        if find(key) is not None and (newest := visible(key)) is not MISSING:
            return newest
        value = cached(key, MISSING)
        if value is not MISSING:
            hit()
            return value
        miss()
        epoch = cache.epoch
        value = from_engine(key)
        fill(key, value, epoch)
        return value

    return get
