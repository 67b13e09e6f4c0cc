"""The checks of ``verify`` that need nothing of each other, in processes of their own.

Three kinds: the bytes of one segment, the links of blocks, the canonical table. A process opens the store for itself,
read-only, while the caller holds its LOCK.

Invariants:
    * What a task finds does not depend on where it runs, and is put together in the order of the report.
    * A process that dies takes nothing along: what it had to do is done by the caller. So is what none has begun yet.
    * No process outlives the caller.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from .._fs import RealFileSystem
from .._keys import StoreKey
from ..blocks.state import decode_state
from ..engine.api import Engine
from ..engine.open import open_engine
from ..engine.sealed import sealed_engine
from ..errors import CorruptionError, HoldfastError
from ..store.generations import Generations
from ..store.opening import read_identity
from ..store.unlocking import unlock
from .links import check_block_links, check_canonical
from .resting import RestingJournal, read_marks
from .resume import LinksSeen
from .running import Stopped, Tally

__all__ = ["JOURNAL_BYTES_MIN", "Linked", "Pool", "Task", "links_task", "processors", "segment_task"]

JOURNAL_BYTES_MIN = 64 * 1024 * 1024
"""Below this a process takes longer to start than it helps."""

_LOOK_SECONDS = 0.1

T = TypeVar("T")


def processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Linked(NamedTuple):
    """What the check of links found, and how far it came."""

    tally: Tally
    seen: LinksSeen | None


# -- the tasks ------------------------------------------------------------------------------------------------------


def segment_task(journal: RestingJournal, number: int, tick: Callable[[str, int, int], None]) -> Tally:
    """Every byte of segment ``number`` is as it was written."""
    with Tally("segments", tick) as tally:
        try:
            tally.checked += journal.verify_segment(number)
        except CorruptionError as error:
            tally.problem(error)  # the check goes on with the next one
    return tally


def links_task(journal: RestingJournal, engine: Engine | None, seen: LinksSeen | None, tally: Tally) -> Linked:
    """The links of blocks in the journal; ``tally`` takes what is found."""
    reached = None
    with tally:
        reached = check_block_links(journal, engine, tally, seen)
    return Linked(tally, reached)


class _Worker:
    """The store, as one process of the pool has it open."""

    def __init__(self, root: Path, stop: Event, key: StoreKey | None, keyless: bool) -> None:
        fs = RealFileSystem()
        self._stop = stop
        identity = read_identity(fs, root)
        cipher = None if keyless else unlock(identity, key, root, fs)
        self._row_cipher = cipher.rows if cipher is not None else None
        mark = read_marks(fs, root, identity.salt)[0]
        self.journal = RestingJournal.open(fs, root, identity, mark, cipher.parts if cipher is not None else None)
        self._generations = Generations(fs, root)

    def tick(self, name: str, done: int, total: int) -> None:
        """Raises ``Stopped`` once the caller wants no answer any more."""
        if self._stop.is_set():
            raise Stopped

    @contextlib.contextmanager
    def engine(self) -> Iterator[Engine]:
        """The live views, read-only."""
        number = self._generations.current()
        assert number is not None
        name = self._generations.engine_name(number)
        plain = open_engine(name, self._generations.data_path(number), create=False, read_only=True)
        engine = sealed_engine(plain, self._row_cipher)
        try:
            yield engine
        finally:
            engine.close()


_worker: Callable[[], _Worker]


def _begin(root: Path, stop: Event, key: StoreKey | None, keyless: bool) -> None:
    """This process is ready to work; it ends with its parent, and leaves signals from the terminal to it."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    kept: list[_Worker] = []

    def worker() -> _Worker:
        if not kept:
            kept.append(_Worker(root, stop, key, keyless))
        return kept[0]

    _worker = worker


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _segment(number: int) -> Tally:
    worker = _worker()
    return segment_task(worker.journal, number, worker.tick)


def _links(with_engine: bool, seen: LinksSeen | None, total: int) -> Linked:
    worker = _worker()
    tally = Tally("blocks", worker.tick)
    tally.total = total
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(worker.engine()) if with_engine else None
        return links_task(worker.journal, engine, seen, tally)


def _canonical(state: bytes) -> Tally:
    worker = _worker()
    with worker.engine() as engine, Tally("canonical", worker.tick) as tally:
        check_canonical(engine, decode_state(state), tally)
    return tally


# -- the caller's side ----------------------------------------------------------------------------------------------


def _start_method() -> str:
    """``fork``, which takes no time, where this process has no other thread, of Python or of a library; else ``spawn``.

    A fork of several threads could leave a lock taken for ever.
    """
    import psutil

    alone = sys.platform == "linux" and psutil.Process().num_threads() == 1
    return "fork" if alone else "spawn"


class Pool:
    """``jobs`` processes that check the store at ``root``; leaving it asks what still runs to stop.

    ``keyless``: only segments are checked, of an encrypted store whose key nobody gave.
    """

    def __init__(self, root: Path, jobs: int, key: StoreKey | None = None, *, keyless: bool = False) -> None:
        context: BaseContext = multiprocessing.get_context(_start_method())
        self._stop = context.Event()
        self._executor = ProcessPoolExecutor(
            jobs, mp_context=context, initializer=_begin, initargs=(root, self._stop, key, keyless)
        )

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._executor.shutdown(cancel_futures=True)

    def segment(self, number: int) -> Future[Tally]:
        """As ``segment_task``."""
        return self._executor.submit(_segment, number)

    def links(self, *, with_engine: bool, seen: LinksSeen | None, total: int) -> Future[Linked]:
        """As ``links_task``."""
        return self._executor.submit(_links, with_engine, seen, total)

    def canonical(self, state: bytes) -> Future[Tally]:
        """As ``check_canonical``."""
        return self._executor.submit(_canonical, state)


class Task(Generic[T]):
    """One piece of work: done by a process of the pool, or by ``inline`` here."""

    def __init__(self, inline: Callable[[], T], future: Future[T] | None) -> None:
        self._inline = inline
        self._future = future
        self._own: list[T] = []

    @property
    def done(self) -> bool:
        """True if there is an answer."""
        return bool(self._own) or (self._future is not None and self._future.done())

    def steal(self) -> None:
        """It is done here, if no process has begun it."""
        if self._future is None or self._future.cancel():
            self._own.append(self._inline())

    def answer(self, look: Callable[[], None]) -> T:
        """What was found; what a process could not find is looked for here. ``look`` is called while one works."""
        if self._own or self._future is None:
            return self._own[0] if self._own else self._inline()
        while not self._future.done():
            wait([self._future], timeout=_LOOK_SECONDS)
            look()
        try:
            return self._future.result()
        except (BrokenProcessPool, HoldfastError, OSError):  # what a process cannot open is judged by this one
            return self._inline()
