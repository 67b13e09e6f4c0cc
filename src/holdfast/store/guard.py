"""Room on the disk: blocks and documents are refused before it is full, so that what ends the shortage still fits.

Invariants:
    * Whoever is refused changed nothing: the check stands before the append. The store is not poisoned, reads go on.
    * Votes, fences, finality, pruning and the flush are never refused here: the reserve is for them.
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

__all__ = ["DiskGuard"]

_LOOK_SECONDS = 1.0
_VIEWS_SHARE = 2
"""A byte of the journal may become so many on disk: the views hold it too."""
_DEVICE_SHARE = 20
"""The reserve is at most this part of the device."""


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

    def check(self, size: int) -> None:
        """There is room for a frame of ``size`` bytes. Raises ``OutOfSpace``. Cost: a look at the device a second."""
        if not self._wanted:
            return
        with self._lock:
            need = size * _VIEWS_SHARE
            now = self._clock()
            if now - self._looked >= _LOOK_SECONDS or self._room < need or self.low:
                self._looked = now
                self._look()
            if self._room < need + (self.reserve_bytes // 4 if self.low else 0):
                self._refuse(need)
            self._room -= need
            if self.low:
                self.low = False
                text = f"there is room again for {self._root}"
                emit("disk_ok", logging.INFO, text, place=self._root, **self.as_dict())

    def as_dict(self) -> dict[str, object]:
        """Figures of the last look, as plain JSON values."""
        return {"free_bytes": self.free_bytes, "reserve_bytes": self.reserve_bytes, "low": self.low}

    def _look(self) -> None:
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
            remedy="free some space ('holdfast prune --dry-run' says what it would give back); the store need not be"
            " opened again",
        )
        if not self.low:
            self.low = True
            emit("disk_low", logging.WARNING, str(error), error=error, place=self._root, **self.as_dict())
        raise error
