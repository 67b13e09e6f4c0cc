"""Pruning: the history of the state below a height is given up, and its rows are removed.

The record in the views says first, durably, what cannot be read any more; then the rows go, block by block, in small
batches between which everything else goes on. The keys to remove come from the journal, so nothing is searched.

Invariants:
    * A height that can still be read afterwards has every row it needs; one that cannot is refused from the start.
    * Killed or interrupted at any moment, the next run goes on where this one was.
    * Nothing above the last final block is given up. Blocks, the present state and proofs are not touched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from .._failpoints import hit
from ..blocks.records import block_key, canonical_key, decode_block_record
from ..engine.api import Batch
from ..errors import CorruptionError, FinalityError, InvalidInputError, StateError
from ..limits import HEIGHT_MAX
from ..types import BlockInfo
from ..views.api import HistoryRecord
from ..views.history import history_key
from ..views.tables import HISTORY
from .backend import WriterBackend
from .replay import execution_of

__all__ = ["PrunePolicy", "PruneReport", "Pruner"]

_BATCH_ROWS = 2_000
_ROWS_BETWEEN_SYNCS = 200_000
_ROW_BYTES = 40
"""Estimated bytes of a history row besides key and value, before compression."""


@dataclass(frozen=True, slots=True)
class PrunePolicy:
    """What to keep: the last ``blocks`` final heights (0: all), and below them every ``every``-th height (0: none).

    ``below``: an exact floor instead of ``blocks``; heights below it go.
    """

    blocks: int = 1_000
    every: int = 0
    below: int | None = None


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What a run does, or would do (``dry_run``).

    ``floor_before`` and ``floor_after``: the lowest height whose state can be read (apart from every ``every``-th one
    from ``oldest`` on). ``blocks`` and ``rows``: those whose history is looked at and removed. ``estimated_bytes`` is
    before the engine's compression; ``freed_bytes`` is what the engine's files became smaller (``None`` in a dry run).
    ``proof_floor``: proofs need heights from here on, before and after.
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


class Pruner:
    """Prunes the history of one open store. One run at a time."""

    def __init__(self, backend: WriterBackend) -> None:
        self._backend = backend
        self._one = threading.Lock()

    def target(self, policy: PrunePolicy) -> HistoryRecord:
        """The record after a run with this policy. Raises ``InvalidInputError``, ``FinalityError``, ``StateError``."""
        views, state = self._backend.views, self._backend.state
        record = views.history
        if record is None:
            raise StateError(
                "the store keeps no history, so there is nothing to prune",
                remedy="set 'history' to 'on' to keep one from now on",
            )
        for name, value in (("blocks", policy.blocks), ("every", policy.every), ("below", policy.below or 0)):
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
        if record.every and policy.every % record.every:
            raise InvalidInputError(
                "heights that were given up do not come back: 'every' can only become a multiple of what it was",
                found=policy.every,
                expected=f"0 or a multiple of {record.every}",
            )
        oldest = record.oldest if record.every else record.floor
        cleaned = record.cleaned
        if policy.every != record.every and record.every:
            cleaned = min(cleaned, record.oldest)  # rows that the old policy kept have to be looked at again
        return HistoryRecord(floor, policy.every, oldest if policy.every else floor, cleaned)

    def run(
        self,
        policy: PrunePolicy,
        *,
        dry_run: bool = False,
        progress: Callable[[int, int], None] | None = None,
        keep_going: Callable[[], bool] | None = None,
    ) -> PruneReport:
        """The history is as ``policy`` says. Interrupted, what was done stays; call it again to go on.

        Args:
            keep_going: asked after each block; once it says no, the report is not ``complete``.
        """
        with self._one:
            return self._run(policy, dry_run, progress, keep_going)

    def _run(
        self,
        policy: PrunePolicy,
        dry_run: bool,
        progress: Callable[[int, int], None] | None,
        keep_going: Callable[[], bool] | None,
    ) -> PruneReport:
        backend = self._backend
        before = backend.views.history
        target = self.target(policy)
        assert before is not None
        engine = backend.opened.engine
        size = engine.stats().size_bytes
        report = PruneReport(
            dry_run,
            before.floor,
            target.floor,
            target.every,
            target.oldest,
            _readable(before, 0, target.floor) - _readable(target, 0, target.floor),
            backend.views.undo_floor,
            0,
            0,
            0,
            None,
            False,
        )
        if dry_run:
            counted = self._remove(target, None, progress, keep_going)
            return replace(
                report,
                blocks=counted.blocks,
                rows=counted.rows,
                estimated_bytes=counted.size,
                complete=counted.complete,
            )
        if target != before:
            backend.views.flush()
            target = backend.views.set_history(target)
            hit("store.prune.after_record")
        removed = self._remove(target, engine.apply, progress, keep_going)
        if removed.rows and removed.complete:
            engine.reclaim(HISTORY.prefix, HISTORY.end)
            hit("store.prune.after_reclaim")
        return replace(
            report,
            blocks=removed.blocks,
            rows=removed.rows,
            estimated_bytes=removed.size,
            freed_bytes=max(0, size - engine.stats().size_bytes),
            complete=removed.complete,
        )

    def _remove(
        self,
        record: HistoryRecord,
        apply: Callable[..., None] | None,
        progress: Callable[[int, int], None] | None,
        keep_going: Callable[[], bool] | None,
    ) -> _Removed:
        """The rows that ``record`` gives up are removed; without ``apply`` they are only counted."""
        done = _Removed()
        first, last = record.cleaned + 1, record.floor
        begin = first
        if record.every and first > record.oldest:
            begin = (first - 1) // record.every * record.every + 1  # keys seen earlier in the same interval count
        seen: set[bytes] = set()
        unsynced = 0
        for height in range(begin, last + 1):
            if keep_going is not None and not keep_going():
                done.complete = False
                break
            batch = self._given_up(record, height, seen)
            if height >= first:
                done.blocks += 1
                done.rows += len(batch)
                done.size += sum(batch.values())
                if apply is not None:
                    unsynced += len(batch)
                    keys = list(batch)
                    for at in range(0, len(keys), _BATCH_ROWS):
                        apply(Batch(dict.fromkeys(keys[at : at + _BATCH_ROWS])), sync=False)
                        hit("store.prune.after_batch")
                    if unsynced >= _ROWS_BETWEEN_SYNCS or height == last:
                        unsynced = 0
                        record = self._backend.views.set_history(replace(record, cleaned=height))
                        hit("store.prune.after_cleaned")
            if progress is not None:
                progress(height - begin + 1, last - begin + 1)
        return done

    def _given_up(self, record: HistoryRecord, height: int, seen: set[bytes]) -> dict[bytes, int]:
        """Engine keys of the history rows of this height that go, with their estimated sizes.

        ``seen``: keys with a row at a lower height above the same kept height; theirs is the one that answers there.
        """
        base = 0
        if record.every:
            base = (height - 1) // record.every * record.every
            if base == height - 1:
                seen.clear()
        going: dict[bytes, int] = {}
        for key, size in self._keys(height):
            if record.every and base >= record.oldest and key not in seen:
                seen.add(key)
            else:
                going[history_key(key, height)] = size
        return going

    def _keys(self, height: int) -> list[tuple[bytes, int]]:
        """Keys of the state that the canonical block at ``height`` changed, and the estimated size of their rows."""
        rows = self._backend.rows
        block_hash = rows.get(canonical_key(height))
        if block_hash is None:
            return []  # below the root
        row = rows.get(block_key(block_hash))
        if row is None:
            raise CorruptionError("a canonical block has no row", height=height, hash=block_hash)
        info: BlockInfo = decode_block_record(block_hash, row)
        if info.executed is None:
            return []
        changes = execution_of(self._backend.journal, info).changes
        return [(key, _ROW_BYTES + len(key) + len(value or b"")) for key, value in changes.items()]
