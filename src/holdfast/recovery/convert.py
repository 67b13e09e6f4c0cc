"""``convert``: the same chain over another engine. The journal stays; only the views are made anew.

Invariants: those of ``rebuild``; in particular, killed at any moment the store still opens with its old engine.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from .._fs import RealFileSystem
from .._keys import StoreKey
from ..errors import EngineMismatch, InvalidInputError
from ..store.generations import Generations
from ..store.opening import read_identity
from ..store.url import parse_url
from .rebuild import live_generation, rebuild
from .report import RebuildReport

__all__ = ["convert_store"]


def convert_store(
    url: str | os.PathLike[str],
    *,
    to: str,
    progress: Callable[[int, int], None] | None = None,
    key: bytes | StoreKey | None = None,
) -> RebuildReport:
    """The store at ``url`` has its views in the engine ``to``: ``rocksdb``, ``lmdb`` or ``sqlite``.

    Args:
        url: as for ``open``; an engine named in it must be the one the store has now.
        to: name of the new engine.
        progress: called with (frames done, frames in all); what it raises ends it, the old views stay live.
        key: that of an encrypted store, as for ``open``.
    Raises:
        InvalidInputError: unknown engine, or the store has it already.
        EngineMismatch: the URL names another engine than the store has.
        CorruptionError: the journal is damaged; the views were not touched.
    """
    place = parse_url(url)
    if place.path is not None:
        fs = RealFileSystem()
        read_identity(fs, place.path)
        _, now = live_generation(Generations(fs, place.path), [])
        if now == to:
            raise InvalidInputError("the store has this engine already; 'holdfast rebuild' makes its views anew", to=to)
        if place.engine is not None and now is not None and place.engine != now:
            raise EngineMismatch(
                "the store was made with another engine", found=now, asked=place.engine, path=place.path
            )
    return rebuild(place, to, progress, StoreKey.of(key))
