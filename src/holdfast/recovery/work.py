"""The checks of ``verify`` that may run in other processes, and what an earlier run need not do again.

Without a pool each runs where it is asked for. With one it is only begun there, and its answer taken at the end; its
place in the report is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from ..blocks.state import decode_state
from ..engine.api import Engine
from ..errors import CorruptionError
from .links import check_canonical
from .parallel import Linked, Pool, Task, links_task, segment_task
from .resting import RestingJournal
from .resume import ResumeFile
from .running import Tally, Verification

__all__ = ["Work"]

T = TypeVar("T")


class Work:
    """See the module. ``pool`` and ``resume`` are ``None`` where there is none."""

    def __init__(
        self, run: Verification, journal: RestingJournal, pool: Pool | None, resume: ResumeFile | None
    ) -> None:
        self._run = run
        self._journal = journal
        self._pool = pool
        self._resume = resume
        self._begun: list[Task[Any]] = []
        self._later: list[Callable[[], None]] = []

    def _finish(self, what: Callable[[], None]) -> None:
        if self._pool is None:
            what()
        else:
            self._later.append(what)

    def end(self) -> None:
        """Every check that was begun is over. Call it while the engine is open. Raises ``Stopped``."""
        for task in reversed(self._begun):
            task.steal()
        for what in self._later:
            what()

    def _look(self, tally: Tally) -> Callable[[], None]:
        return lambda: self._run.tick(tally.name, tally.checked, tally.total)

    # -- segments -----------------------------------------------------------------------------------------------------

    def segments(self) -> None:
        """Check ``segments``: every byte of every segment."""
        tally = self._run.check("segments")
        segments, resume = self._journal.found.segments, self._resume
        wanted = {
            number: segment
            for number, segment in enumerate(segments, start=1)
            if resume is None or not resume.knows(segment)
        }
        if len(wanted) < len(segments):
            self._run.notes.append(
                f"{len(segments) - len(wanted)} segments were found sound by an earlier run and not read again"
            )
        tasks: dict[int, Task[Tally]] = {}

        def look() -> None:
            done = sum(task.done for task in tasks.values())
            self._run.tick(tally.name, len(segments) - len(wanted) + done, len(segments))

        for number in sorted(wanted, key=lambda at: -wanted[at].frames_end):
            tasks[number] = self._segment(number, look)

        def finish() -> None:
            whole = True
            with tally:
                for number, info in enumerate(self._journal.segments(), start=1):
                    if number in wanted:
                        found = tasks[number].answer(look)
                        tally.take(found)
                        whole = whole and found.complete
                        if resume is not None and found.complete and not found.count:
                            resume.sound(wanted[number])
                    self._run.tick(tally.name, number, len(segments))
                    if info.number != number:
                        tally.problem(CorruptionError("a segment is missing", path=info.path, expected=number))
            tally.complete = tally.complete and whole

        self._finish(finish)

    def _segment(self, number: int, look: Callable[[], None]) -> Task[Tally]:
        return self._task(
            lambda: segment_task(self._journal, number, lambda *_: look()),
            None if self._pool is None else self._pool.segment(number),
        )

    def _task(self, inline: Callable[[], T], future: Future[T] | None) -> Task[T]:
        task = Task(inline, future)
        if future is not None:
            self._begun.append(task)
        return task

    # -- blocks -------------------------------------------------------------------------------------------------------

    def links(self, engine: Engine | None) -> None:
        """Check ``blocks``: the links in the journal. ``engine`` holds the views, if they can be used."""
        tally, total = self._run.check("blocks"), self._blocks()
        tally.total = total
        resume, pool = self._resume, self._pool
        seen = resume.links if resume is not None and engine is not None else None

        def check(own: Tally) -> Linked:
            own.total = total
            return links_task(self._journal, engine, seen, own)

        future = None if pool is None else pool.links(with_engine=engine is not None, seen=seen, total=total)
        task = self._task(lambda: check(Tally("blocks", self._run.tick)), future)

        def finish() -> None:
            if pool is None:
                linked = check(tally)
            else:
                linked = task.answer(self._look(tally))
                tally.take(linked.tally)
            if resume is not None and linked.seen is not None and tally.complete and not tally.count:
                resume.links = linked.seen

        self._finish(finish)

    def canonical(self, engine: Engine, state: bytes) -> None:
        """Check ``canonical``: the table, from the root to the tip of ``state``."""
        tally, pool = self._run.check("canonical"), self._pool

        def check(own: Tally) -> Tally:
            with own:
                check_canonical(engine, decode_state(state), own)
            return own

        future = None if pool is None else pool.canonical(state)
        task = self._task(lambda: check(Tally("canonical", self._run.tick)), future)

        def finish() -> None:
            if pool is None:
                check(tally)
            else:
                tally.take(task.answer(self._look(tally)))

        self._finish(finish)

    def _blocks(self) -> int:
        """How many blocks the views count; 0 if they do not say."""
        found = self._run.facts.get("blocks")
        return found if isinstance(found, int) else 0
