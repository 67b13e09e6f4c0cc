"""Room on the disk: blocks and documents are refused before it is full, so that what ends the shortage still fits.

Invariants:
    * Whoever is refused changed nothing: the check stands before the append. The store is not poisoned, reads go on.
    * Votes, fences, finality and pruning are never refused here: the reserve is for them.
    * What waits in the overlay counts as if the disk had it already, so a flush has the room that it needs. If others
      took it, a flush is refused before it writes anything: the journal has what waits, and the next flush may do it.
    * Once refused, more is taken again only when a quarter of the reserve is free above it, so that a store at the
      limit does not change its mind with every block.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from .._fs import FileSystem
from ..errors import OutOfSpace
from ..events import emit

__all__ = ["DiskGuard", "flush_room"]

_LOOK_SECONDS = 1.0
_VIEWS_SHARE = 2
"""A byte of the journal may become so many on disk: the views hold it too."""
_WAITING_SHARE = 3
"""A byte that waits in the overlay may need so many for a while: the row, its undo, and one of them twice."""
_FLUSH_SHARE = 2
"""Without so many for each byte that waits no flush begins."""
_DEVICE_SHARE = 20
"""The reserve is at most this part of the device."""

_REMEDY = (
    "free some space ('holdfast prune --dry-run' says what it would give back); the store need not be opened again"
)


class DiskGuard:
    """Watches the device of one open store.

    Args:
        reserve_bytes: what stays free; less on a small device.
        clock: seconds that only grow.
    """

    def __init__(
        self, fs: FileSystem, root: Path, reserve_bytes: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fs = fs
        self._root = root
        self._wanted = reserve_bytes if fs.persistent else 0
        self._clock = clock
        self._lock = threading.Lock()
        self._looked = float("-inf")
        self._room = 0
        self.reserve_bytes = 0
        self.free_bytes = 0
        self.low = False
        """True while blocks are refused."""

    def check(self, size: int, waiting: int = 0) -> None:
        """There is room for a frame of ``size`` bytes, and for ``waiting`` bytes that a flush is to write.

        Raises ``OutOfSpace``. Cost: a look at the device a second.
        """
        if not self._wanted:
            return
        with self._lock:
            need = size * _VIEWS_SHARE
            later = waiting * _WAITING_SHARE
            self._look(need + later)
            if self._room < need + later + (self.reserve_bytes // 4 if self.low else 0):
                self._refuse(need + later)
            self._room -= need
            if self.low:
                self.low = False
                text = f"there is room again for {self._root}"
                emit("disk_ok", logging.INFO, text, place=self._root, **self.as_dict())

    def tight(self, waiting: int) -> bool:
        """There is no room for much more than a flush of ``waiting`` bytes: let it be done now."""
        if not self._wanted or not waiting:
            return False
        with self._lock:
            later = waiting * _WAITING_SHARE
            self._look(later * 2)
            return self._room < later * 2

    def as_dict(self) -> dict[str, object]:
        """Figures of the last look, as plain JSON values."""
        return {"free_bytes": self.free_bytes, "reserve_bytes": self.reserve_bytes, "low": self.low}

    def _look(self, need: int) -> None:
        now = self._clock()
        if now - self._looked < _LOOK_SECONDS and self._room >= need and not self.low:
            return
        self._looked = now
        space = self._fs.space(self._root)
        self.reserve_bytes = min(self._wanted, space.total // _DEVICE_SHARE)
        self.free_bytes = space.free
        self._room = space.free - self.reserve_bytes

    def _refuse(self, need: int) -> None:
        error = OutOfSpace(
            "the disk is nearly full, so nothing more is added",
            path=self._root,
            free=self.free_bytes,
            reserve=self.reserve_bytes,
            needed=need,
            remedy=_REMEDY,
        )
        if not self.low:
            self.low = True
            emit("disk_low", logging.WARNING, str(error), error=error, place=self._root, **self.as_dict())
        raise error


def flush_room(fs: FileSystem, root: Path) -> Callable[[int], None] | None:
    """Raises ``OutOfSpace`` if a flush of so many bytes would fail in the middle; ``None`` where there is no device."""
    if not fs.persistent:
        return None

    def check(size: int) -> None:
        free, need = fs.space(root).free, size * _FLUSH_SHARE
        if free < need:
            raise OutOfSpace(
                "the disk is too full to bring the views up to date; the journal has everything",
                path=root,
                free=free,
                needed=need,
                remedy=_REMEDY,
            )

    return check
