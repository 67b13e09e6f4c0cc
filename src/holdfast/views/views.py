"""The views of a store: the overlay, the engine under it and the flush between them, as one thing.

Threads: ``publish``, ``latest`` and ``drop_invisible`` belong to the writer (the store's lock); everything else may be
called from any thread. The engine belongs to the caller, who closes it after the views.

After a crash within a flush, ``applied.flushing`` is set. The store then publishes the frames after ``applied.seq`` up
to that target, makes them visible and calls ``flush``. Until then the engine is between two versions: rows of the
published frames and stored undo are right, other reads are not, and readers of one version (``pin``, ``scan`` and
``get_many`` of the visible rows) are refused with ``StateError``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..engine.api import Engine, Reader
from ..errors import CorruptionError, OutOfSpace, PrunedError, Recovery
from ..limits import HASH_BYTES
from .api import Applied, FrameLayers, HistoryRecord, HistoryRule, RowReader, Rows, ViewOptions
from .cache import CacheStats, RowCache
from .cached import state_getter
from .flush import Flusher, load_applied
from .historical import HistoricalReader
from .keeper import HistoryKeeper
from .overlay import MISSING, Overlay
from .readers import LatestReader, PinnedReader, Pins, VisibleReader
from .rows import APPLIED_KEY, decode_row
from .tables import META, UNDO
from .undo import lost_undo, read_undo

__all__ = ["ViewStats", "Views"]

_NOTHING = Applied(0, bytes(HASH_BYTES), b"", 0, None)


@dataclass(frozen=True, slots=True)
class ViewStats:
    """Figures of the views: what waits in memory, and what the flush has done since they were opened."""

    overlay_rows: int
    overlay_bytes: int
    overlay_frames: int
    visible_seq: int
    applied_seq: int
    pins: int
    flushes: int
    rows_flushed: int
    flush_seconds: float
    failure: str | None


class Views:
    """See the module. Make it with ``open``."""

    def __init__(
        self,
        engine: Engine,
        options: ViewOptions,
        frame_digest: Callable[[int], bytes],
        applied: Applied | None,
        make_durable: Callable[[int], None] | None,
        history: HistoryKeeper,
        room: Callable[[int], None] | None = None,
    ) -> None:
        self._engine = engine
        self._overlay = Overlay(options.overlay_rows_max // 2, options.overlay_bytes_max // 2)
        if applied is not None:
            self._overlay.durable_seq = self._overlay.visible_seq = applied.seq
        self._pins = Pins(engine, self._overlay, options.pinned_bytes_max)
        self._cache = RowCache(options.cache_bytes, options.cache_policy) if options.cache_bytes else None
        self._flusher = Flusher(
            engine, self._overlay, self._pins, options, frame_digest, applied, make_durable, history, self._cache, room
        )
        self._pins.refused = self._flusher.finishing is not None
        self._visible = VisibleReader(engine, self._overlay, self._pins)
        self._latest = LatestReader(engine, self._overlay)
        self._historical = HistoricalReader(engine, self._overlay, self._pins, self._flusher)
        self.get: Callable[[bytes], bytes | None] = self._visible.get
        """The visible row, or ``None``."""
        self.get_state = state_getter(engine, self._overlay, self._cache, count=options.cache_stats)
        """The visible row of an engine key of the state, or ``None``: as ``get``, through the cache."""
        self.publish: Callable[[FrameLayers], None] = self._overlay.publish
        """The rows of a frame are there for ``latest``; for readers once ``set_visible`` reached its seq.

        The frame belongs to the views from now on. Cannot fail. Seqs must rise.
        """
        self.set_visible: Callable[[int], None] = self._overlay.set_visible
        """Frames up to a seq are durable: readers see them and a flush may take them.

        May come before ``publish`` of the same frame. Smaller seqs than before do nothing.
        """
        self.read_at = self._historical.read_at
        """The visible row of an engine key of the state at an old height; see ``HistoricalReader``."""
        self.history_keys = self._historical.history_keys
        self.heights_of = self._historical.heights_of
        """Keys of the state that may have been different at an old height; see ``HistoricalReader``."""

    @classmethod
    def open(
        cls,
        engine: Engine,
        *,
        options: ViewOptions | None = None,
        frame_digest: Callable[[int], bytes],
        make_durable: Callable[[int], None] | None = None,
        room: Callable[[int], None] | None = None,
        history: HistoryRule | None = None,
        tip_height: Callable[[bytes], int] | None = None,
    ) -> Views:
        """Views over what ``engine`` holds, with an empty overlay.

        Args:
            engine: stays the caller's.
            options: bounds and pace.
            frame_digest: digest of a durable frame by its seq; called by the flush.
            make_durable: called with a seq before a flush writes anything; that frame is durable when it returns. For
                stores that make frames visible before they are durable.
            room: called with the bytes that a flush would take out of the overlay, before it writes anything; what it
                raises refuses that flush, and the overlay keeps everything.
            history: which changes are recorded; ``None`` for none, and the first flush removes what was recorded. A
                follower gives none: it reads what the writing process records.
            tip_height: the height of the tip in the state in ``Applied``. Needed with ``history``: where it is new to
                an engine that holds rows, it begins at that height.
        Raises:
            CorruptionError: a row of the views' own records is damaged, or rows are there without them.
        """
        applied = load_applied(engine)
        if applied is None and engine.scan(META.prefix, UNDO.prefix, limit=1).rows:
            raise CorruptionError(
                "the engine holds rows and no record of a flush",
                recovery=Recovery.REBUILD,
                table=META.name,
                key=APPLIED_KEY,
            )
        begin = 0
        if history is not None and applied is not None and applied.seq:
            assert tip_height is not None
            begin = tip_height(applied.state)
        keeper = HistoryKeeper(engine, history, HistoryRecord(begin, 0, begin, begin))
        return cls(
            engine, options if options is not None else ViewOptions(), frame_digest, applied, make_durable, keeper, room
        )

    @property
    def applied(self) -> Applied | None:
        """The last complete flush, as of now; ``None`` if there was none ever.

        Seq 0 with zeros as digest and an empty state: the very first flush was interrupted (``flushing`` is set).
        """
        return self._flusher.applied

    # -- the writer ---------------------------------------------------------------------------------------------

    def drop_invisible(self) -> None:
        """Frames above the visible ones are forgotten, as if never published; readers that see them expire."""
        self._overlay.drop_invisible(self._pins.drop_above)

    def latest(self) -> RowReader:
        """Rows with everything that is published, durable or not. For the writer only."""
        return self._latest

    @property
    def undo_floor(self) -> int:
        """Canonical blocks above this height have undo (``undo_of``). It only rises, and before the first undo goes.

        A follower's is of its opening; the writing process may have gone further.
        """
        return self._flusher.undo_floor

    def undo_floor_now(self) -> int:
        """The same as of now, in a follower too: what the writing process flushes keeps no undo below it. Two reads."""
        applied = load_applied(self._engine) or _NOTHING
        return max(self.undo_floor, applied.undo_floor, applied.flushing_floor or 0)

    def undo_of(self, height: int, block_hash: bytes) -> Rows:
        """The values that the block's chain rows had before it.

        Raises:
            PrunedError: the block is at or below the undo floor, and its undo is gone.
            CorruptionError: it is lost, or there never was such a block.
        """
        block = (height, block_hash)
        for _ in range(2):  # twice: a flush may write the undo, and drop the block, between the two looks
            undo = read_undo(self._engine.get, height, block_hash)
            if undo is not None:
                return undo
            record = self._overlay.block_layer(block)
            if record is not None and self._flusher.finishing is None:
                version, layer = record
                undo = self._rows_before(version, list(layer.chain_rows))
                # no flush has begun to replace these rows, neither here nor, with undo first, in another process
                if self._flusher.rows_version < version and read_undo(self._engine.get, height, block_hash) is None:
                    return undo
        floor = max(self.undo_floor, (load_applied(self._engine) or _NOTHING).undo_floor)
        if height <= floor:
            raise PrunedError("the undo of a block is gone", least_readable=floor + 1, height=height, hash=block_hash)
        raise lost_undo(height, block_hash)

    def _rows_before(self, version: int, keys: list[bytes]) -> Rows:
        rows: Rows = {}
        unknown: list[bytes] = []
        for key in keys:
            value = self._overlay.get(key, version - 1)
            if value is MISSING:
                unknown.append(key)
            else:
                rows[key] = value
        for key, stored in zip(unknown, self._engine.get_many(unknown) if unknown else (), strict=True):
            rows[key] = None if stored is None else decode_row(key, stored)
        return rows

    # -- readers ------------------------------------------------------------------------------------------------

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The visible rows in the order of ``keys``, as of one version."""
        return self._visible.get_many(keys)

    def reader(self) -> RowReader:
        """Visible rows as of each call."""
        return self._visible

    def pin(self, snapshot: Reader | None = None) -> PinnedReader:
        """A reader of what is visible now, until it is released; use it in a ``with``.

        It raises ``ViewExpired`` once flushes had to keep more than ``pinned_bytes_max`` for it. A follower, whose
        engine another process flushes into, gives a ``snapshot`` of the engine that lives at least as long.
        """
        return self._pins.open(snapshot)

    def pin_latest(self) -> PinnedReader:
        """A reader of everything that is published now, durable or not, until it is released; use it in a ``with``.

        It raises ``ViewExpired`` as ``pin`` does, and also once ``drop_invisible`` took a frame that it sees.
        """
        return self._pins.open(latest=True)

    def caught_up(self) -> None:
        """For a follower, which cannot finish another process's flush: its rows are all in the overlay by now."""
        finishing = self._flusher.finishing
        if finishing is not None and self._overlay.visible_seq >= finishing:
            self._flusher.finishing = None
            self._pins.refused = False

    # -- old heights --------------------------------------------------------------------------------------------

    @property
    def history(self) -> HistoryRecord | None:
        """Which old heights can be read, as of now; ``None`` if the engine has no history."""
        return self._flusher.history.now()

    def set_history(self, record: HistoryRecord) -> HistoryRecord:
        """The record that is in force from now on, durably: ``record``, with the greater of the old floors and the new.

        Call it before any row that it gives up is removed. There must be a history.
        """
        applied = self._flusher.applied
        return self._flusher.history.change(record, applied=applied is not None)

    @property
    def switches_done(self) -> int:
        """Visible frames that took blocks out of the canonical chain. Look before reading, see ``one_branch``."""
        return self._overlay.switches_done

    def one_branch(self, switches_done: int) -> bool:
        """True if everything that was read since ``switches_done`` was this is of one branch."""
        return self._overlay.switches_begun == switches_done

    @property
    def history_removals(self) -> int:
        """Rises before a flush removes history rows (see ``history_keys``)."""
        return self._flusher.removals

    # -- the flush ----------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """True while the overlay is above its bounds."""
        return self._flusher.full

    @property
    def waiting_bytes(self) -> int:
        """What the next flush takes out of the overlay, at most: its keys and values, and some bytes for each row."""
        return self._overlay.size_bytes

    def back_pressure(self) -> None:
        """The overlay is within its bounds, or no flush can help now.

        Waits for the background flush, or flushes here if there is none. Raises the error of a failed flush.
        """
        self._flusher.back_pressure()

    def flush(self, to_seq: int | None = None) -> None:
        """The engine durably holds every visible frame up to ``to_seq``, or all of them.

        Raises the error of an earlier flush that failed. ``StateError`` if ``to_seq`` is not visible, or if an
        interrupted flush must be finished first and ``to_seq`` is below its target.
        """
        self._flusher.flush(to_seq)

    def start(self) -> None:
        """A background thread flushes when the overlay is half full, or after ``flush_interval_seconds``."""
        self._flusher.start()

    def close(self, *, flush: bool = True) -> None:
        """The background thread has ended and, if asked and possible, everything visible is in the engine.

        Without room for it, it is not in the engine: the journal has it. Raises the error of the flush, also of an
        earlier one that failed. The engine stays open.
        """
        self._flusher.stop()
        if flush and self._flusher.finishing is None:
            try:
                self._flusher.flush()
            except OutOfSpace:
                if self._flusher.failure is not None:
                    raise

    def abandon(self) -> None:
        """This process is a fork: no pinned reader answers any more, and none waits for a thread that is not there."""
        self._overlay.lock = threading.Lock()
        self._pins.abandon()

    @property
    def cache_stats(self) -> CacheStats | None:
        """Figures of the cache of state rows as of now; ``None`` if there is none."""
        return None if self._cache is None else self._cache.stats

    @property
    def stats(self) -> ViewStats:
        """Figures as of now."""
        overlay, flusher = self._overlay, self._flusher
        applied = flusher.applied
        return ViewStats(
            overlay_rows=overlay.rows,
            overlay_bytes=overlay.size_bytes,
            overlay_frames=len(overlay.frames),
            visible_seq=overlay.visible_seq,
            applied_seq=0 if applied is None else applied.seq,
            pins=self._pins.count(),
            flushes=flusher.flushes,
            rows_flushed=flusher.rows_flushed,
            flush_seconds=flusher.seconds,
            failure=None if flusher.failure is None else str(flusher.failure),
        )
