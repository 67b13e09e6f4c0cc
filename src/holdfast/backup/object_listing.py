"""Listings of an object store that end, whatever it answers.

Invariants:
    * A listing ends within its time, and a signal ends it at once: the library asks on inside of itself, where neither
      reaches, so it is waited for in a thread of its own and dropped.
    * Keys come in their order, as all three kinds of stores give them: a page that begins before the end of the last
      one repeats it.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from .. import limits
from .._threads import start_thread
from ..errors import LimitExceeded, ResourceExhausted, TargetUnavailable

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from obstore import ObjectMeta
    from obstore.store import ObjectStore

__all__ = ["list_page"]

_PAGE_OBJECTS: Final = 1000
_LOOK_SECONDS: Final = 0.2


def list_page(
    store: ObjectStore, prefix: str, *, until: float, pages: int | None = None, place: str = ""
) -> Sequence[ObjectMeta]:
    """Everything below ``prefix``, or the first so many pages of it.

    Args:
        until: reading of ``time.monotonic`` at which it has ended.
    Raises:
        TargetUnavailable: it did not end by then, or repeats itself. LimitExceeded: there is too much.
    """
    listing = _Listing(store, prefix, until, pages, place)
    try:
        _wait(start_thread(listing.run, "holdfast-backup-listing"))
    except ResourceExhausted:  # of the thread, which is not there
        listing.close()
        raise
    except BaseException:
        listing.stop()
        raise
    if listing.failure is not None:
        raise listing.failure
    return listing.found


def _wait(thread: threading.Thread) -> None:
    while thread.is_alive():
        thread.join(_LOOK_SECONDS)


class _Listing:
    """One listing, in its thread."""

    def __init__(self, store: ObjectStore, prefix: str, until: float, pages: int | None, place: str) -> None:
        self._store = store
        self._prefix = prefix
        self._until = until
        self._pages = pages
        self._place = place
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self.found: list[ObjectMeta] = []
        self.failure: BaseException | None = None

    def run(self) -> None:
        """``found`` or ``failure`` is set."""
        try:
            self._task = self._loop.create_task(self._bounded())
            self._loop.run_until_complete(self._task)
        except BaseException as error:  # noqa: BLE001 - a panic is none of Exception, and whoever waits raises it
            self.failure = error
        finally:
            self.close()

    def close(self) -> None:
        """Nothing of it is left."""
        self._loop.close()

    def stop(self) -> None:
        """Nothing is asked any more; called while the thread runs."""
        try:
            self._loop.call_soon_threadsafe(lambda: self._task is not None and self._task.cancel())
        except RuntimeError:  # it has just ended
            return

    async def _bounded(self) -> None:
        try:
            await asyncio.wait_for(self._all(), max(0.0, self._until - time.monotonic()))
        except TimeoutError:
            raise TargetUnavailable(
                "the store does not come to the end of a listing", path=self._place, object=self._prefix
            ) from None

    async def _all(self) -> None:
        import obstore

        number, last = 0, ""
        async for page in obstore.list(self._store, prefix=self._prefix, chunk_size=_PAGE_OBJECTS):
            number += 1
            self.found.extend(page)
            paths = [entry["path"] for entry in page]
            if paths and min(paths) <= last:
                raise TargetUnavailable("the store repeats a listing", path=self._place, object=self._prefix)
            last = max(paths, default=last)
            if number == self._pages:
                return
            if len(self.found) > limits.OBJECTS_SHELF_MAX:
                raise LimitExceeded(
                    "there are too many objects beside each other",
                    path=self._place,
                    object=self._prefix,
                    limit=limits.OBJECTS_SHELF_MAX,
                )
