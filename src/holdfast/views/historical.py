"""Rows as of an old height: the overlay, then the row of the engine, then its first history row above that height.

Invariants:
    * The answer is right for the block that was canonical at that height at some moment of the call. A caller that
      means one certain block looks before and after whether it is canonical.
    * Readers take no lock, and a flush may be at any point.

Why it is right. Let a flush move the engine from the state after frame A to that after frame T; all frames up to T are
visible, and leave the overlay only when the engine is at T. Let K be a key, h a height.

1. A visible layer of the overlay made a block at h canonical; v is the version of the newest one. If the overlay has K
   at or below v, that is the answer. Else no frame after A up to v changed K: neither the branch up to h, nor a block
   that these frames took out, because its rows are put back by a layer of its own. So the engine at A has no history
   row of K above the fork point, its row is the answer, and 2 gives it: of later layers, those that change K are
   blocks above h, or take such blocks out.
2. No such layer: the block at h is below the range of the flush, or the flush is over. At A and at T the rule "first
   history row above h, else the row" is right for the branch of A and of T. Both give the same where they agree on h.
   In between:
   a. While history rows are added, rows are those of A. The old rows are still there, the new ones of K come from low
      heights to high ones, so the first row above h is the first one of the old branch or of the new one. Both hold
      what K was at h. Without any, the row of A is right.
   b. While rows are replaced, every new history row is there. If the row changes after we read it, the history, read
      after it, has what it was. That is why the row is read first, and why 3a comes before 3b.
   c. While history rows of the old branch are removed, the row is that of T. They go from high to low, so as long as
      one above h is left, the first one is. A reader that took the row of A, and looks for its history after that was
      removed, finds that ``removals`` has changed, and begins again.
3. What a flush drops from the overlay between two looks is in the engine, which is at T then: 2 holds.
4. A snapshot of the engine is one moment of the above. It must be taken before the overlay is brought up to date: then
   every frame of the flush that it may show is in the overlay (a follower's overlay drops nothing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..engine.api import Engine, Reader
from ..errors import PrunedError, StateError
from .api import HistoryRecord
from .flush import Flusher, load_applied
from .history import decode_history_key, decode_old, history_bounds, load_history, ordered
from .overlay import MISSING, Overlay
from .readers import Pins
from .rows import decode_row
from .tables import HISTORY, STATE

__all__ = ["HistoricalReader", "KeyPage"]

_CHUNK = 256
_SKIP = STATE.prefix
_PREFIX_BYTES = len(_SKIP)


@dataclass(frozen=True, slots=True)
class KeyPage:
    """Keys inside the table, ascending, and where to go on: the next ``start``, or ``None`` at the end."""

    keys: list[bytes]
    resume: bytes | None


class HistoricalReader:
    """See the module."""

    def __init__(self, engine: Engine, overlay: Overlay, pins: Pins, flusher: Flusher) -> None:
        self._engine = engine
        self._overlay = overlay
        self._pins = pins
        self._flusher = flusher
        self._keeper = flusher.history

    def read_at(self, key: bytes, height: int, snapshot: Reader | None = None) -> bytes | None:
        """The row of ``key``, an engine key of the table with a history, at ``height``.

        Args:
            key: engine key.
            height: canonical, and at most the visible tip.
            snapshot: for a follower: of the engine, and older than the overlay.
        Raises:
            PrunedError: the history does not reach back to ``height`` (any more).
            StateError: a flush that was interrupted must be finished first, or the engine has no history.
            CorruptionError: a row is damaged.
        """
        if self._pins.refused:
            raise self._refused()
        flusher, overlay = self._flusher, self._overlay
        engine: Reader = self._engine if snapshot is None else snapshot
        low, high = history_bounds(key[_PREFIX_BYTES:], height)
        while True:
            removals = flusher.removals
            version = overlay.version_at(height)
            if version:
                value = overlay.get(key, version)
                if value is not MISSING:
                    return value
            flat = engine.get(key)
            row = engine.ceiling(low, high)
            if flusher.removals == removals:
                break
        self._check(height, snapshot)
        if row is not None:
            row_key, stored = row
            return decode_old(row_key, decode_row(row_key, stored))
        return None if flat is None else decode_row(key, flat)

    def _check(self, height: int, snapshot: Reader | None) -> None:
        """The history that was just read reaches back to ``height``."""
        keeper = self._keeper
        record: HistoryRecord | None
        if snapshot is not None:
            record = load_history(snapshot.get)
            if record is None and load_applied(snapshot) is None:
                return  # nothing was ever flushed: no row, and none that ever changed
        else:
            record = keeper.record if keeper.rule is not None else keeper.now()
        if record is None:
            raise StateError(
                "the views keep no history, so rows are only read at the tip",
                remedy="switch the setting 'history' on; heights from then on can be read",
                height=height,
            )
        if height < record.floor and not record.has(height):
            raise PrunedError("the history of this height is gone", height=height, least_readable=record.floor)

    def history_keys(
        self, start: bytes, stop: bytes | None, above: int, limit: int, snapshot: Reader | None = None
    ) -> KeyPage:
        """The keys ``start <= key < stop`` inside the table that may have been different at the height ``above``.

        These are the keys with a history row above it, and those that frames in the overlay change; ascending, each
        once, at most ``limit``. Together with the keys that are visible, read *before*, they are all keys that had a
        row at ``above``, if ``removals`` is the same before and after both.

        Args:
            start: first key; may be empty.
            stop: above the last key; ``None`` for the end of the table.
            above: a height.
            limit: of the page.
            snapshot: as in ``read_at``.
        """
        if self._pins.refused:
            raise self._refused()
        overlay, engine = self._overlay, self._engine if snapshot is None else snapshot
        end = STATE.end if stop is None else STATE.prefix + stop
        found: list[bytes] = []
        low: bytes | None = STATE.prefix + start
        while low is not None and low < end and len(found) <= limit:
            epoch = overlay.epoch
            keys, high = self._recorded(engine, low, end, above)
            changed = overlay.between(low, high, reverse=False, count=_CHUNK)
            if len(changed) == _CHUNK:
                high = min(high, changed[-1] + b"\x00")
            if overlay.epoch != epoch:
                continue
            found += sorted(key[_PREFIX_BYTES:] for key in {*keys, *changed} if key < high)
            low = high
        if len(found) > limit:
            return KeyPage(found[:limit], found[limit])
        return KeyPage(found, None)

    def _recorded(self, engine: Reader, low: bytes, end: bytes, above: int) -> tuple[Sequence[bytes], bytes]:
        """Engine keys of the table with a row above a height, from ``low`` on, and up to where that is all of them."""
        first = HISTORY.prefix + (ordered(low[_PREFIX_BYTES:]) if len(low) > _PREFIX_BYTES else b"")
        last = HISTORY.end if end == STATE.end else HISTORY.prefix + ordered(end[_PREFIX_BYTES:])
        keys: list[bytes] = []
        page = engine.scan(first, last, limit=_CHUNK)
        for row_key, _ in page.rows:
            key, height = decode_history_key(row_key)
            if height > above and (not keys or keys[-1] != key):
                keys.append(key)
        full = [STATE.prefix + key for key in keys]
        if page.resume is None:
            return full, end
        # Rows of the key where the page ends were not seen: it is looked at alone, and what is above it comes later.
        key, _ = decode_history_key(page.resume)
        if (not keys or keys[-1] != key) and engine.scan(*history_bounds(key, above), limit=1).rows:
            full.append(STATE.prefix + key)
        return full, STATE.prefix + key + b"\x00"

    def heights_of(self, key: bytes, above: int, snapshot: Reader | None = None) -> list[int]:
        """Heights above ``above`` at which the row of ``key``, an engine key of the table, may have changed; ascending.

        Args:
            snapshot: as in ``read_at``.
        """
        if self._pins.refused:
            raise self._refused()
        overlay, engine = self._overlay, self._engine if snapshot is None else snapshot
        low, high = history_bounds(key[_PREFIX_BYTES:], above)
        while True:
            epoch, removals = overlay.epoch, self._flusher.removals
            heights = overlay.heights_of(key)
            start: bytes | None = low
            while start is not None:
                page = engine.scan(start, high)
                heights.update(decode_history_key(row_key)[1] for row_key, _ in page.rows)
                start = page.resume
            if overlay.epoch == epoch and self._flusher.removals == removals:
                return sorted(height for height in heights if height > above)

    @staticmethod
    def _refused() -> StateError:
        return StateError("a flush that was interrupted must be finished before old heights are read")
