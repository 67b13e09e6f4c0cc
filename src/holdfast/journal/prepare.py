"""Makes the next segment before it is needed, and runs the journal's one background thread.

Invariants:
    * A file called ``N.seg`` was full of zeros and synced, with its directory, before it got that name for good.
    * Nothing here takes a lock of the journal, so an append may wait for a segment.
    * A failure to prepare ahead of time is not an error: the append that needs the segment makes it and reports.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from .. import _failpoints
from .._fs import File, FileSystem
from .._threads import start_thread
from ..errors import ClosedError, HoldfastError, OutOfSpace
from .segment import segment_name

__all__ = ["Housekeeper", "SegmentMaker"]

_CHUNK_BYTES: Final = 1 << 20
_PAUSE_SECONDS: Final = 0.002
_ZEROS = bytes(_CHUNK_BYTES)


class SegmentMaker:
    """At most one segment made in advance."""

    def __init__(self, fs: FileSystem, directory: Path) -> None:
        self._fs = fs
        self._directory = directory
        self._mutex = threading.Lock()
        self._wanted: tuple[int, int] | None = None
        self._ready: tuple[int, int, File] | None = None
        self._hurry = False
        self._cancelled = False

    def request(self, number: int, size: int) -> None:
        """Segment ``number`` of ``size`` bytes shall be made when ``work`` runs next."""
        self._wanted = (number, size)

    def work(self) -> None:
        """What was requested is made; on failure it is not, and nothing is left behind."""
        with self._mutex:
            wanted, self._wanted = self._wanted, None
            if wanted is None or self._ready is not None:
                return
            number, size = wanted
            with contextlib.suppress(HoldfastError):
                self._ready = (number, size, self._make(number, size, gently=True))

    def cancel(self) -> None:
        """A segment that is being made ahead of time is given up soon, and no other is begun."""
        self._cancelled = True

    def take(self, number: int, size: int, size_min: int) -> tuple[File, int]:
        """An open prepared segment ``number`` and its size, at least ``size_min``; waits for one that is under way.

        On a disk that has no room for ``size`` the segment is as small as it can be.

        Raises:
            OutOfSpace, DeviceError: it could not be made; nothing is left behind.
        """
        self._hurry = True
        try:
            with self._mutex:
                self._wanted = None
                ready, self._ready = self._ready, None
                if ready is not None:
                    if ready[0] == number and ready[1] >= size_min:
                        return ready[2], ready[1]
                    self._drop(ready)
                if size > size_min:
                    with contextlib.suppress(OutOfSpace):
                        return self._make(number, size, gently=False), size
                return self._make(number, size_min, gently=False), size_min
        finally:
            self._hurry = False

    def discard(self) -> None:
        """A prepared segment that nobody took is gone again."""
        with self._mutex:
            self._wanted = None
            ready, self._ready = self._ready, None
            if ready is not None:
                self._drop(ready)
                self._fs.sync_directory(self._directory)

    def release(self) -> None:
        """The descriptor of a prepared segment is released; the file stays."""
        with self._mutex:
            self._wanted = None
            ready, self._ready = self._ready, None
            if ready is not None:
                ready[2].close()

    def _drop(self, ready: tuple[int, int, File]) -> None:
        ready[2].close()
        self._fs.remove(self._directory / segment_name(ready[0]))

    def _make(self, number: int, size: int, *, gently: bool) -> File:
        _failpoints.hit("journal.roll.prepare")
        path = self._directory / segment_name(number)
        temporary = path.with_suffix(".tmp")
        self._fs.remove(temporary)
        file = self._fs.open(temporary, create=True)
        try:
            if self._fs.persistent:
                self._fill(file, size, gently=gently)
            self._fs.rename(temporary, path)
            self._fs.sync_directory(self._directory)
        except Exception:
            file.close()
            with contextlib.suppress(HoldfastError):
                self._fs.remove(temporary)
                self._fs.remove(path)
            raise
        file.path = path
        return file

    def _fill(self, file: File, size: int, *, gently: bool) -> None:
        position = 0
        while position < size:
            if gently and self._cancelled:
                raise ClosedError("the journal is being closed", path=file.path)
            step = min(_CHUNK_BYTES, size - position)
            file.pwrite(_ZEROS if step == _CHUNK_BYTES else bytes(step), position)
            position += step
            if gently and not self._hurry and position < size:
                file.sync()
                time.sleep(_PAUSE_SECONDS)
        file.sync()


class Housekeeper:
    """A thread that runs ``work`` when it is woken and at least once a second, until it is stopped."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._wake = threading.Event()
        self._stopping = False
        self._thread = start_thread(self._run, "holdfast-journal")

    def wake(self) -> None:
        """``work`` runs soon."""
        self._wake.set()

    def stop(self) -> None:
        """The thread has ended."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(1.0)
            self._wake.clear()
            if not self._stopping:
                self._work()
