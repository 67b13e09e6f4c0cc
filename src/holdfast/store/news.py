"""Events of frames, told once the frames are as durable as the settings promise.

Invariants:
    * They are told in the order of the frames, each once, by a thread that holds none of the writer's locks.
    * What was never durable is never told.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from ..errors import HoldfastError, PoisonedError
from ..events import Event, deliver, emit, listening, make_event
from ..types import BlockInfo, ReorgInfo

__all__ = ["News"]


class News:
    """What the writer of the store at ``place`` has to tell. Any thread may call any method."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._waiting: deque[tuple[int, Event]] = deque()
        self._lock = threading.Lock()
        self._telling = threading.Lock()

    def abandon(self) -> None:
        """For the child after ``fork()``: nothing waits, and no lock is held by a thread that is not there."""
        self._waiting, self._lock, self._telling = deque(), threading.Lock(), threading.Lock()

    def note(
        self,
        seq: int,
        blocks: tuple[BlockInfo, ...],
        tip: BlockInfo | None,
        reorg: ReorgInfo | None,
        finalized: int | None,
    ) -> None:
        """Frame ``seq``, the newest, holds ``blocks``; ``finalized`` is the final height if it is another one now."""
        place = self._place
        if blocks and listening("saved", logging.DEBUG):
            last = blocks[-1]
            event = make_event(
                "saved",
                logging.DEBUG,
                f"saved block {last.hash.hex()} at height {last.height}",
                place=place,
                seq=seq,
                blocks=len(blocks),
                height=last.height,
                hash=last.hash.hex(),
            )
            self._add(seq, event)
        if reorg is not None and tip is not None and listening("reorg", logging.INFO):
            event = make_event(
                "reorg",
                logging.INFO,
                f"reorganised above height {reorg.fork_height}: {len(reorg.orphaned)} blocks gave way to "
                f"{len(reorg.adopted)}, the tip is at height {tip.height}",
                place=place,
                seq=seq,
                fork_height=reorg.fork_height,
                fork=reorg.fork_hash.hex(),
                old_tip=reorg.old_tip.hex(),
                new_tip=reorg.new_tip.hex(),
                height=tip.height,
                orphaned=len(reorg.orphaned),
                adopted=len(reorg.adopted),
            )
            self._add(seq, event)
        if finalized is not None and listening("finalized", logging.DEBUG):
            text = f"blocks up to height {finalized} are final"
            self._add(seq, make_event("finalized", logging.DEBUG, text, place=place, seq=seq, height=finalized))

    def _add(self, seq: int, event: Event) -> None:
        with self._lock:
            self._waiting.append((seq, event))

    def poisoned(self, cause: BaseException | None) -> None:
        """The writer takes nothing more. Told at once, also where its lock is held."""
        reason = str(cause) if isinstance(cause, HoldfastError) else repr(cause)
        error = PoisonedError(f"the store takes nothing more until it is opened again: {reason}")
        emit("poisoned", logging.ERROR, str(error), error=error, place=self._place)

    def tell(self, durable: Callable[[], int]) -> None:
        """Everything about frames up to ``durable()`` was told, or another thread is telling it."""
        while self._waiting and self._telling.acquire(blocking=False):
            try:
                event = self._next(durable())
                while event is not None:
                    deliver(event)
                    event = self._next(durable())
            finally:
                self._telling.release()
            if not self._ready(durable()):  # asked after the release, so that nothing is left to a thread that has gone
                return

    def _ready(self, durable: int) -> bool:
        with self._lock:
            return bool(self._waiting) and self._waiting[0][0] <= durable

    def _next(self, durable: int) -> Event | None:
        with self._lock:
            if self._waiting and self._waiting[0][0] <= durable:
                return self._waiting.popleft()[1]
            return None
