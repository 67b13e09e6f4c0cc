"""Pruning: the history of the state below a height is given up, and its rows are removed.

The record in the views says first, durably, what cannot be read any more; then the rows go, block by block, in small
batches between which everything else goes on. The keys to remove come from the journal, so nothing is searched.

Invariants:
    * A height that can still be read afterwards has every row it needs; one that cannot is refused from the start.
    * Killed or interrupted at any moment, the next run goes on where this one was, and both end in the same rows.
    * Nothing above the last final block is given up. Blocks, the present state and proofs are not touched.
    * A run belongs to one generation of views; where another takes over, it ends, and the new one is not touched.
    * That everything is cleaned is written after the engine gave its space back: until then, a run does that again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from .._failpoints import hit
from ..blocks.lookup import load_canonical
from ..engine.api import Batch, Engine
from ..errors import FinalityError, InvalidInputError, StateError
from ..limits import HEIGHT_MAX
from ..views.api import HistoryRecord
from ..views.history import history_bounds, history_key
from ..views.tables import HISTORY
from ..views.views import Views
from .backend import WriterBackend
from .replay import execution_of

__all__ = ["PrunePolicy", "PruneReport", "Pruner"]

_BATCH_ROWS = 256
_BATCH_ROWS_SYNCED = 2_048
"""Rows of a batch for an engine that syncs every batch."""
_ROWS_BETWEEN_SYNCS = 200_000
_PAUSE_SECONDS = 0.0002
_GIVE_WAY_SECONDS = 0.005
_RECLAIM_SHARE = 5
"""In the background the engine gives space back only if this part of it was removed: that may rewrite all of it."""


@dataclass(frozen=True, slots=True)
class PrunePolicy:
    """What to keep: the last ``blocks`` final heights (0: all), and below them every ``every``-th height (0: none;
    ``None``: those that were kept so far).

    ``below``: an exact floor instead of ``blocks``; heights below it go.
    """

    blocks: int = 1_000
    every: int | None = 0
    below: int | None = None


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What a run does, or would do (``dry_run``).

    ``floor_before`` and ``floor_after``: the lowest height whose state can be read (apart from every ``every``-th one
    from ``oldest`` on). ``blocks`` and ``rows``: those whose history is looked at, and the rows of it that are removed.
    ``estimated_bytes``: keys and values of these rows, before the engine's own overhead and compression;
    ``freed_bytes`` is what the engine's files became smaller (``None`` in a dry run). ``proof_floor``: proofs need
    heights from here on, before and after.
    """

    dry_run: bool
    floor_before: int
    floor_after: int
    every: int
    oldest: int
    heights_lost: int
    proof_floor: int
    blocks: int
    rows: int
    estimated_bytes: int
    freed_bytes: int | None
    complete: bool

    def as_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        return asdict(self)


def _readable(record: HistoryRecord, low: int, high: int) -> int:
    """How many heights of ``low .. high - 1`` can be read."""
    count = max(0, high - max(low, record.floor))
    if record.every:
        first, last = max(low, record.oldest), min(high, record.floor)
        if first < last:
            count += (last - 1) // record.every - (first - 1) // record.every
    return count


@dataclass(slots=True)
class _Removed:
    rows: int = 0
    blocks: int = 0
    size: int = 0
    complete: bool = True


class _Sweep:
    """One pass over the blocks whose history goes, over one generation of views."""

    def __init__(
        self, views: Views, engine: Engine, *, dry_run: bool, keep_going: Callable[[], bool] | None = None
    ) -> None:
        self.views = views
        self.engine = engine
        self.done = _Removed()
        self._dry_run = dry_run
        self._keep_going = keep_going  # if given, the run gives way to others
        self._batch_rows = _BATCH_ROWS_SYNCED if engine.capabilities.always_sync else _BATCH_ROWS
        self._waiting: list[bytes] = []
        self._unsynced = 0

    def take(self, record: HistoryRecord, height: int, keys: list[bytes]) -> None:
        """Of the history rows of ``keys`` at ``height``, those that no readable height needs go."""
        base = 0
        keeps = False
        if record.every:
            base = (height - 1) // record.every * record.every
            keeps = base >= record.oldest
        self.done.blocks += 1
        for at in range(0, len(keys), self._batch_rows):
            rows = [history_key(key, height) for key in keys[at : at + self._batch_rows]]
            for key, row, stored in zip(keys[at:], rows, self.engine.get_many(rows), strict=False):
                if stored is None or (keeps and self._answers(key, row, base)):
                    continue  # gone already, or the one that answers at ``base``
                self.done.rows += 1
                self.done.size += len(row) + len(stored)
                if not self._dry_run:
                    self._waiting.append(row)
            self._give_way()
            if len(self._waiting) >= self._batch_rows:
                self.write()

    def _answers(self, key: bytes, row: bytes, base: int) -> bool:
        """True if ``row`` is the first one of ``key`` above the height ``base``."""
        first = self.engine.ceiling(*history_bounds(key, base))
        return first is not None and first[0] == row

    def write(self) -> None:
        """What was taken is not in the engine any more."""
        rows, self._waiting = self._waiting, []
        for at in range(0, len(rows), self._batch_rows):
            part = rows[at : at + self._batch_rows]
            self.engine.apply(Batch(dict.fromkeys(part)), sync=False)
            self._unsynced += len(part)
            hit("store.prune.after_batch")
            self._give_way()

    def _give_way(self) -> None:
        """In the background, others have their turn: threads that wait, and the flush while commits wait for it."""
        if self._keep_going is not None:
            time.sleep(_PAUSE_SECONDS)
            while self.views.full and self._keep_going():
                time.sleep(_GIVE_WAY_SECONDS)

    def cleaned(self, record: HistoryRecord, height: int, *, soon: bool = True) -> HistoryRecord:
        """What went up to ``height`` is durably gone, and the record says so; not ``soon``: only if it is much."""
        if self._dry_run or not (soon or self._unsynced >= _ROWS_BETWEEN_SYNCS):
            return record
        self.write()
        self._unsynced = 0
        record = self.views.set_history(replace(record, cleaned=height))
        hit("store.prune.after_cleaned")
        return record


class Pruner:
    """Prunes the history of one open store. One run at a time."""

    def __init__(self, backend: WriterBackend) -> None:
        self._backend = backend
        self._one = threading.Lock()

    def _target(self, policy: PrunePolicy, record: HistoryRecord | None) -> tuple[HistoryRecord, HistoryRecord]:
        """The record before and after a run. Raises ``InvalidInputError``, ``FinalityError``, ``StateError``."""
        state = self._backend.state
        if record is None:
            raise StateError(
                "the store keeps no history, so there is nothing to prune",
                remedy="set 'history' to 'on' to keep one from now on",
            )
        below = 0 if policy.below is None else policy.below
        every = record.every if policy.every is None else policy.every
        for name, value in (("blocks", policy.blocks), ("every", every), ("below", below)):
            if type(value) is not int or not 0 <= value <= HEIGHT_MAX:
                raise InvalidInputError(f"'{name}' is a whole number that is not negative", found=value)
        final = max(state.finalized, state.floor)
        if policy.below is not None:
            if policy.below > final:
                raise FinalityError(
                    "only the history of final blocks can be given up",
                    found=policy.below,
                    final=final,
                    remedy="name a lower height, or finalize first",
                )
            floor = policy.below
        else:
            floor = final - policy.blocks + 1 if policy.blocks else 0
        floor = max(floor, record.floor)
        if record.every and every % record.every:
            raise InvalidInputError(
                "heights that were given up do not come back: 'every' can only become a multiple of what it was",
                found=every,
                expected=f"0 or a multiple of {record.every}",
            )
        oldest = record.oldest if record.every else max(record.floor, self._root())
        cleaned = record.cleaned
        if every != record.every and record.every:
            cleaned = min(cleaned, record.oldest)  # rows that the old policy kept have to be looked at again
        return record, HistoryRecord(floor, every, oldest if every else floor, cleaned)

    def run(
        self,
        policy: PrunePolicy,
        *,
        dry_run: bool = False,
        progress: Callable[[int, int], None] | None = None,
        keep_going: Callable[[], bool] | None = None,
    ) -> PruneReport:
        """The history is as ``policy`` says. Interrupted, what was done stays; call it again to go on.

        Waits for a run that is under way. A dry run only moves what waits in memory into the engine.

        Args:
            keep_going: asked after each block; once it says no, the report is not ``complete``.
        """
        with self._one:
            return self._run(policy, progress, keep_going, dry_run=dry_run, background=False)

    def run_in_background(self, policy: PrunePolicy, keep_going: Callable[[], bool]) -> PruneReport | None:
        """As ``run``, with pauses; ``None`` if another run is under way. Space is given back only if it is much."""
        if not self._one.acquire(blocking=False):
            return None
        try:
            return self._run(policy, None, keep_going, dry_run=False, background=True)
        finally:
            self._one.release()

    def _root(self) -> int:
        state = self._backend.state
        return state.root_height if state.has_tip else 0

    def _run(
        self,
        policy: PrunePolicy,
        progress: Callable[[int, int], None] | None,
        keep_going: Callable[[], bool] | None,
        *,
        dry_run: bool,
        background: bool,
    ) -> PruneReport:
        backend = self._backend
        with backend.writer.lock:  # another generation of views may be taking over
            views, engine = backend.views, backend.opened.engine
        before, target = self._target(policy, views.history)
        views.flush()  # every final block has its rows in the engine: none comes after those of its height went
        size = engine.stats().size_bytes
        root = self._root()
        report = PruneReport(
            dry_run,
            max(before.floor, root),
            max(target.floor, root),
            target.every,
            target.oldest,
            _readable(before, root, target.floor) - _readable(target, root, target.floor),
            max(views.undo_floor, root),
            0,
            0,
            0,
            None,
            False,
        )
        if target != before and not dry_run:
            target = views.set_history(target)
            hit("store.prune.after_record")
        sweep = _Sweep(views, engine, dry_run=dry_run, keep_going=keep_going if background else None)
        record = self._remove(sweep, target, progress, keep_going)
        done = sweep.done
        sweep.write()
        if done.complete and not dry_run and record.cleaned < record.floor:
            if not background or done.size * _RECLAIM_SHARE >= size:
                engine.reclaim(HISTORY.prefix, HISTORY.end)
                hit("store.prune.after_reclaim")
            sweep.cleaned(record, record.floor)
        return replace(
            report,
            blocks=done.blocks,
            rows=done.rows,
            estimated_bytes=done.size,
            freed_bytes=None if dry_run else max(0, size - engine.stats().size_bytes),
            complete=done.complete,
        )

    def _remove(
        self,
        sweep: _Sweep,
        record: HistoryRecord,
        progress: Callable[[int, int], None] | None,
        keep_going: Callable[[], bool] | None,
    ) -> HistoryRecord:
        """The rows that ``record`` gives up were taken by ``sweep``; the record in force."""
        last = record.floor
        # Rows of height 0 answer for no height, and were never cleaned if nothing was.
        first = max(self._root(), record.cleaned + 1 if record.cleaned or not last else 0)
        for height in range(first, last + 1):
            if self._backend.views is not sweep.views:
                sweep.done.complete = False
                break
            sweep.take(record, height, self._keys(height))
            if progress is not None:
                progress(height - first + 1, last - first + 1)
            if record.cleaned < height < last:
                stopped = keep_going is not None and not keep_going()
                record = sweep.cleaned(record, height, soon=stopped)
                if stopped:
                    sweep.done.complete = False
                    break
        return record

    def _keys(self, height: int) -> list[bytes]:
        """Keys of the state that the canonical block at ``height`` changed."""
        info = load_canonical(self._backend.rows.get, height)
        if info.executed is None:
            return []
        return list(execution_of(self._backend.journal, info).changes)
