"""``recover``: the strategy that an error names, executed as far as a program may do so by itself.

Invariants:
    * ``manual`` and ``fail`` are never acted on: the error is raised again, and nothing is opened or changed.
    * Only ``rebuild`` changes anything by itself, and only views. A store is opened again by the one way there is,
      which refuses a damaged journal untouched.
    * Each strategy is tried once. What goes wrong meanwhile is raised, with a strategy of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, assert_never

from .._keys import StoreKey, using_key
from ..config import Settings
from ..errors import ClosedError, CorruptionError, HoldfastError, InvalidInputError, Recovery
from ..store.chain import Chain
from ..store.factory import open_store
from ..store.indexes import IndexSpec
from ..store.store import Store
from ..store.url import parse_url
from ..types import BlockInfo
from .rebuild import rebuild_views
from .report import RebuildReport, VerifyReport
from .verify import verify_store

__all__ = ["Outcome", "recover", "retrying"]

T = TypeVar("T")

ATTEMPTS_MAX = 1_000
DELAY_SECONDS_MAX = 30.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What ``recover`` did. ``store`` is open for writing and belongs to the caller, after ``replay``, ``rebuild`` and
    ``last_good``; ``store.recovery`` says what opening it found."""

    strategy: Recovery
    store: Store | None = None
    tip: BlockInfo | None = None
    """The block to build on."""
    rebuilt: RebuildReport | None = None
    verified: VerifyReport | None = None
    """Every row of the new views was compared with the journal."""
    fetched: object = None
    """What ``refetch`` returned."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Place:
    """The store that failed, and how to open it again."""

    error: HoldfastError
    url: str | os.PathLike[str] | None
    store: Store | None
    chain: Chain | None
    settings: Settings | None
    indexes: Sequence[IndexSpec]
    forced_blocks: Mapping[int, bytes] | None
    progress: Callable[[int, int], None] | None

    def on_disk(self) -> str | os.PathLike[str]:
        """Where the store is. Raises ``InvalidInputError`` if nobody said so, or if it is in memory."""
        url: str | os.PathLike[str] | None = self.url
        if url is None and self.store is not None:
            url = self.store.path if self.store.path is not None else "memory:"
        if url is None:
            raise InvalidInputError("recovery needs the store, or its path") from self.error
        if parse_url(url).path is None:
            raise InvalidInputError(
                "a store in memory is gone with its handle", remedy="make a new one and fill it again"
            ) from self.error
        return url if self.url is not None else Path(url)

    def close(self) -> tuple[str, ...]:
        """The failed handle is closed, its lock free. That closing failed too is a note: the next open judges."""
        try:
            if self.store is not None:
                self.store.close()
        except HoldfastError as again:
            return (f"closing the store failed too: {again}",)
        return ()

    def reopen(self, url: str | os.PathLike[str]) -> Store:
        """The existing store, recovered and open for writing."""
        old = self.store
        return open_store(
            url,
            create=False,
            chain=self.chain if self.chain is not None or old is None else old.chain,
            settings=self.settings if self.settings is not None or old is None else old.settings,
            indexes=self.indexes,
            forced_blocks=self.forced_blocks,
            progress=self.progress,
        )


def recover(
    error: HoldfastError,
    url: str | os.PathLike[str] | None = None,
    *,
    store: Store | None = None,
    refetch: Callable[[], object] | None = None,
    chain: Chain | None = None,
    settings: Settings | None = None,
    indexes: Sequence[IndexSpec] = (),
    forced_blocks: Mapping[int, bytes] | None = None,
    progress: Callable[[int, int], None] | None = None,
    key: bytes | StoreKey | None = None,
) -> Outcome:
    """``error.recovery`` is executed once: afterwards the failed call may be made again, on what ``Outcome`` holds.

    ``retry``: nothing is left to do here; see ``retrying``. ``replay``: the store is closed and opened again.
    ``rebuild``: it is closed, has new views made from its journal, each row of them verified, and is opened again.
    ``refetch``: ``refetch`` is called. ``last_good``: nothing was changed, so an open ``store`` goes on, else it is
    opened. Cost: ``replay`` that of ``open``; ``rebuild`` two replays of the whole journal.

    Args:
        error: what the store raised.
        url: where the store is, as for ``open``; may be left out if ``store`` is given.
        store: the handle that raised; ``replay`` and ``rebuild`` close it.
        refetch: fetches the block, file, chunk or proof again and gives it to the store; its answer is in ``fetched``.
        chain: as for ``open``; that of ``store`` if left out. So are ``settings``.
        indexes: as for ``open``. So is ``forced_blocks``.
        progress: called with (frames done, frames in all) by replay and rebuild.
        key: that of an encrypted store, as for ``open``.
    Raises:
        HoldfastError: ``error`` itself, if it is ``manual`` or ``fail``; any other is what recovery ran into.
        InvalidInputError: the strategy needs ``refetch``, or a store on disk, and was not given it.
    """
    place = _Place(error, url, store, chain, settings, indexes, forced_blocks, progress)
    with using_key(key if key is not None or store is None else store.key):
        return _recovered(place, refetch)


def _recovered(place: _Place, refetch: Callable[[], object] | None) -> Outcome:
    error = place.error
    match error.recovery:
        case Recovery.RETRY:
            return Outcome(Recovery.RETRY)
        case Recovery.REPLAY:
            where = place.on_disk()
            notes = place.close()
            return _going_on(Recovery.REPLAY, place.reopen(where), notes=notes)
        case Recovery.REBUILD:
            return _rebuild(place)
        case Recovery.REFETCH:
            if refetch is None:
                raise InvalidInputError("this error needs a function that fetches again", code=error.code) from error
            return Outcome(Recovery.REFETCH, fetched=refetch())
        case Recovery.LAST_GOOD:
            return _last_good(place)
        case Recovery.MANUAL | Recovery.FAIL:
            raise error
        case _:
            assert_never(error.recovery)


def _going_on(
    strategy: Recovery,
    store: Store,
    *,
    rebuilt: RebuildReport | None = None,
    verified: VerifyReport | None = None,
    notes: tuple[str, ...] = (),
) -> Outcome:
    return Outcome(strategy, store, store.tip, rebuilt, verified, notes=notes)


def _last_good(place: _Place) -> Outcome:
    if place.store is not None:
        try:
            return Outcome(Recovery.LAST_GOOD, place.store, place.store.tip)
        except ClosedError:
            pass  # what is on disk is the last good state
    return _going_on(Recovery.LAST_GOOD, place.reopen(place.on_disk()))


def _rebuild(place: _Place) -> Outcome:
    where = place.on_disk()
    notes = place.close()
    rebuilt = rebuild_views(where, progress=place.progress)
    verified = verify_store(where, level="views")
    if not verified.ok:
        first = verified.problems[0].message if verified.problems else "the check did not end"
        raise CorruptionError(
            f"the store is not sound after a rebuild: {first}", path=rebuilt.path, problems=len(verified.problems)
        ) from place.error
    return _going_on(Recovery.REBUILD, place.reopen(where), rebuilt=rebuilt, verified=verified, notes=notes)


def retrying(
    call: Callable[[], T],
    *,
    attempts: int = 5,
    delay_seconds: float = 0.1,
    sleep: Callable[[float], object] = time.sleep,
) -> T:
    """The answer of ``call``, made again while it raises errors whose strategy is ``retry``.

    Args:
        call: changes nothing where it raises such an error.
        attempts: calls in all, 1 to 1,000; the error of the last one is raised.
        delay_seconds: before the second call, 0 to 30; doubled before each further one, up to 30.
        sleep: waits for so many seconds.
    Raises:
        InvalidInputError: ``attempts`` or ``delay_seconds`` is out of range.
        HoldfastError: every attempt failed, or one with an error of another strategy.
    """
    if not 1 <= attempts <= ATTEMPTS_MAX:
        raise InvalidInputError("attempts are out of range", found=attempts, expected=f"1 to {ATTEMPTS_MAX}")
    if not 0 <= delay_seconds <= DELAY_SECONDS_MAX:
        raise InvalidInputError("the delay is out of range", found=delay_seconds, expected=f"0 to {DELAY_SECONDS_MAX}")
    for _ in range(attempts - 1):
        try:
            return call()
        except HoldfastError as error:
            if error.recovery is not Recovery.RETRY:
                raise
        sleep(delay_seconds)
        delay_seconds = min(2 * delay_seconds, DELAY_SECONDS_MAX)
    return call()
