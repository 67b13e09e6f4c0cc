"""``rebuild``: the views are made anew from the journal, beside the old ones, and take over in one atomic step.

Invariants:
    * The journal is the only source; the old generation is neither read nor needed.
    * ``views/CURRENT`` changes once, after the new generation is complete and synced. Killed at any moment before, the
      old generation is the live one; what was left behind is removed by the next rebuild.
    * The old generation is deleted only after the new one is live.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .._failpoints import hit
from .._fs import RealFileSystem
from .._keys import StoreKey
from .._seal import StoreCipher
from ..config import Settings
from ..consensus.safety import SafetyBook
from ..engine.open import engine_names
from ..errors import CorruptionError, HoldfastError, InvalidInputError
from ..journal.journal import Journal, JournalOptions
from ..store.base import check_base
from ..store.generations import Generations
from ..store.opening import read_identity, view_options
from ..store.renewal import build_generation
from ..store.unlocking import unlock
from ..store.url import StoreUrl, parse_url
from .report import RebuildReport

__all__ = ["rebuild", "rebuild_views"]

ENGINE_DEFAULT = "rocksdb"


def rebuild_views(
    url: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
    engine: str | None = None,
    key: bytes | StoreKey | None = None,
) -> RebuildReport:
    """The store at ``url`` has new views, made from its journal alone. The store is not open anywhere.

    Args:
        url: as for ``open``.
        progress: called with (frames done, frames in all); what it raises ends the rebuild, the old views stay live.
        engine: build with this engine instead of the one the store has; as ``convert_store``.
        key: that of an encrypted store, as for ``open``.
    Raises:
        StoreNotFound, ForeignStore, StoreLocked: there is nothing to rebuild.
        CorruptionError: the journal is damaged; the views were not touched.
    """
    place = parse_url(url)
    return rebuild(place, engine, progress, StoreKey.of(key))


def rebuild(
    place: StoreUrl,
    engine: str | None,
    progress: Callable[[int, int], None] | None,
    key: StoreKey | None = None,
) -> RebuildReport:
    """``rebuild_views`` and ``convert_store``; ``engine`` is ``None`` to keep the one the store has."""
    root = place.path
    if root is None:
        raise InvalidInputError("a store in memory has no views on disk")
    if engine is not None and (engine not in engine_names() or engine == "memory"):
        raise InvalidInputError("views on disk cannot be made with this engine", found=engine)
    started = time.monotonic()
    notes: list[str] = []
    with _journal_at_rest(root, notes, key) as (journal, cipher):
        fs = RealFileSystem()
        generations = Generations(fs, root)
        number, name = live_generation(generations, notes)
        chosen = engine or name or place.engine or ENGINE_DEFAULT
        removed = generations.remove_others(number) if number is not None else []
        built = build_generation(
            journal,
            journal.durable_seq,
            fs,
            generations,
            chosen,
            progress=progress,
            options=view_options(Settings()),
            cipher=cipher,
        )
        hit("recovery.rebuild.before_switch")
        generations.switch(built.number)
        hit("recovery.rebuild.after_switch")
        removed += generations.remove_others(built.number)
    return RebuildReport(
        path=str(root),
        engine=chosen,
        engine_before=name,
        generation=built.number,
        generation_before=number,
        frames=built.frames,
        blocks=built.state.blocks,
        removed=tuple(removed),
        notes=tuple(notes),
        seconds=time.monotonic() - started,
    )


def live_generation(generations: Generations, notes: list[str]) -> tuple[int | None, str | None]:
    """Number and engine of the live generation, as far as they can be read."""
    try:
        number = generations.current()
        return number, generations.engine_name(number) if number is not None else None
    except CorruptionError as error:
        notes.append(f"the old views do not say what they are: {error}")
        return None, None


@contextlib.contextmanager
def _journal_at_rest(
    root: Path, notes: list[str], key: StoreKey | None
) -> Iterator[tuple[Journal, StoreCipher | None]]:
    """The recovered journal of a store that is locked meanwhile, and the ciphers of an encrypted one."""
    fs = RealFileSystem()
    identity = read_identity(fs, root)
    cipher = unlock(identity, key, root, fs)
    lock = fs.lock(root / "LOCK", f"{os.getpid()} {socket.gethostname()}")
    try:
        book = SafetyBook()
        journal, recovery = Journal.open(
            fs,
            root,
            store_id=identity.store_id,
            salt=identity.salt,
            options=JournalOptions(carry=book.parts, background=False),
            cipher=cipher.parts if cipher is not None else None,
        )
        for cut in recovery.discarded:
            notes.append(f"{cut.length} bytes that were never acknowledged are now in {cut.quarantined_as}")
        try:
            check_base(fs, root, journal, identity)
            yield journal, cipher
        except BaseException:
            with contextlib.suppress(HoldfastError):
                journal.close()  # the first error is the one to tell
            raise
        journal.close()
    finally:
        lock.release()
