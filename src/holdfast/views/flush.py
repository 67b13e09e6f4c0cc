"""The flush: frames leave the overlay for the engine.

The order of the batches is the protocol (docs/FORMAT.md, section 7.4):
    1. undo rows of every block that may still be undone, and of every block that a frame of the range took out;
    2. the META row ``flushing`` = last frame of the range;
    3. in slices: a, history rows that are added; b, the rows, each key once with its newest value; c, history rows of
       blocks that are not canonical any more are removed;
    4. one synced batch: undo at or below the new floor removed, ``applied`` written, ``flushing`` removed.
Then the frames leave the overlay. Why readers of old heights are right meanwhile: see ``historical``.

Invariants:
    * Only visible (durable) frames are flushed, and whole frames only.
    * Until 4, every undo row that a replay from the old ``applied`` needs is in the engine: that is why old undo is
      removed in 4 and not earlier.
    * Between 2 and 4 the engine is of no version. After a crash there, the same range is published again from the
      journal and flushed without computing undo anew.
    * Before 3, every older pinned reader has what it needs, or has expired.
    * In 3a the rows of a key are added from low heights to high ones, in 3c removed from high to low: the first row of
      a key above a height is at any time the first one of the old branch or of the new one.
    * What the cache holds of the state is dropped before the frames leave the overlay; from 3b until then it takes
      nothing in.
    * What the record of the history claims is true before, while and after a flush: a block whose changes are not
      recorded raises its floor before 3.
    * After a failure nothing is flushed any more; readers stay right, because the overlay still has everything. A flush
      that is refused before it wrote anything, because there is no room for it, is no failure: the next one may do it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain, islice

from .._failpoints import hit
from .._threads import start_thread
from ..engine.api import Batch, Engine, Reader
from ..errors import EngineError, HoldfastError, StateError
from ..limits import HASH_BYTES
from .api import Applied, FrameLayers, Layer, Rows, ViewOptions
from .bulk import bulk
from .cache import RowCache
from .collect import SLICE_BYTES, HistoryChanges, UndoWriter
from .keeper import HistoryKeeper
from .merge import RowMerge
from .overlay import Overlay, Published
from .readers import PinnedReader, Pins
from .rows import (
    APPLIED_KEY,
    FLUSHING_KEY,
    decode_applied,
    decode_flushing,
    decode_row,
    encode_applied,
    encode_flushing,
    encode_row,
)
from .tables import STATE
from .undo import lost_undo, read_undo, undo_range_to

__all__ = ["Flusher", "load_applied"]

_SLICE_ROWS = 1024
"""Rows between two pauses. Each step holds the interpreter for about half a millisecond for so many."""
_PAUSE_SECONDS = 0.0002
_WAIT_SECONDS = 1.0


def load_applied(engine: Reader) -> Applied | None:
    """The record of the last complete flush; ``None`` for an engine that no flush has touched.

    Seq 0 with a digest of zeros stands for "nothing": the first flush has begun and not ended.
    """
    stored, begun = engine.get_many([APPLIED_KEY, FLUSHING_KEY])
    flushing = None if begun is None else decode_flushing(decode_row(FLUSHING_KEY, begun))
    if stored is not None:
        return decode_applied(decode_row(APPLIED_KEY, stored), flushing)
    return None if flushing is None else Applied(0, bytes(HASH_BYTES), b"", 0, *flushing)


class Flusher:
    """Flushes on demand, and in a thread of its own when the overlay fills up or time has passed."""

    def __init__(
        self,
        engine: Engine,
        overlay: Overlay,
        pins: Pins,
        options: ViewOptions,
        frame_digest: Callable[[int], bytes],
        applied: Applied | None,
        make_durable: Callable[[int], None] | None = None,
        history: HistoryKeeper | None = None,
        cache: RowCache | None = None,
        room: Callable[[int], None] | None = None,
    ) -> None:
        self._engine = engine
        self._overlay = overlay
        self._pins = pins
        self._options = options
        self._frame_digest = frame_digest
        self._make_durable = make_durable
        self._room = room
        self._refused = False
        """The last flush found no room."""
        self.applied = applied
        self.finishing = None if applied is None else applied.flushing
        """Target of an interrupted flush that must be finished before anything else is flushed."""
        self.undo_floor = 0 if applied is None else max(applied.undo_floor, applied.flushing_floor or 0)
        """Blocks at or below it may have no undo any more. Rises before the first undo goes."""
        self.history = history if history is not None else HistoryKeeper(engine, None, None)
        self._cache = cache
        self.removals = 0
        """Rises before a flush removes history rows: whoever read a row before and its history after reads again."""
        self.rows_version = 0
        """The engine may hold rows up to this version, replacing older ones."""
        self.failure: HoldfastError | None = None
        self.flushes = 0
        self.rows_flushed = 0
        self.seconds = 0.0
        self._slice_rows = _SLICE_ROWS
        self._one = threading.Lock()
        self._wake = threading.Event()
        overlay.wake = self._nudge
        self._bulk = bulk()
        self._done = threading.Condition(threading.Lock())
        self._waiting = 0
        self._stopping = False
        self._thread: threading.Thread | None = None

    # -- one flush ----------------------------------------------------------------------------------------------

    def flush(self, to_seq: int | None = None, *, background: bool = False) -> None:
        """The engine holds every visible frame up to ``to_seq`` (or all of them), and they left the overlay.

        Raises the error of an earlier flush that failed; else ``StateError`` if an interrupted flush is to be
        finished and its frames are not all visible; else what ``room`` raises, and nothing has changed.
        """
        with self._one:
            if self.failure is not None:
                raise self.failure.with_traceback(None)
            frames, pins = self._take(to_seq)
            if not frames:
                return
            if self._room is not None:
                self._refused = True
                self._room(sum(published.size_bytes for published in frames))
                self._refused = False
            try:
                self._flush(frames, pins, self._pause if background and self._options.paced else _nothing)
            except HoldfastError as exc:
                self._fail(exc)
                raise
            except Exception as exc:
                failure = EngineError(f"the flush of the views failed: {exc}")
                self._fail(failure)
                raise failure from exc
            except BaseException:
                self._fail(EngineError("the flush of the views was interrupted"))
                raise
            finally:
                with self._done:
                    self._done.notify_all()

    def _fail(self, failure: HoldfastError) -> None:
        self.failure = failure
        self._stopping = True
        self._wake.set()

    def _take(self, to_seq: int | None) -> tuple[list[Published], list[PinnedReader]]:
        """The frames to flush, and the readers of an older version; from now on new readers see those frames."""
        overlay = self._overlay
        finishing = self.finishing
        with overlay.lock:
            target = overlay.visible_seq if to_seq is None else to_seq
            if finishing is not None and (overlay.visible_seq < finishing or target < finishing):
                raise StateError("an interrupted flush must be finished first", expected=finishing, found=target)
            if target > overlay.visible_seq:
                raise StateError("only durable frames are flushed", expected=overlay.visible_seq, found=target)
            frames = overlay.visible_frames(target if finishing is None else finishing)
            return frames, self._pins.before(frames[-1].version) if frames else []

    def _flush(self, frames: list[Published], pins: list[PinnedReader], pace: Callable[[], None]) -> None:
        begun = time.monotonic()
        last = frames[-1].frame
        if self._make_durable is not None:
            self._make_durable(last.seq)
        self.undo_floor = floor = self._floor(last.undo_floor)
        hit("views.flush.before_undo")
        changes = HistoryChanges(self.history.rule)
        merge = self._bulk.merge()
        if self.finishing is None:
            count = self._write_undo(merge, frames, floor, changes, pace)
            hit("views.flush.after_undo")
            self.history.begin(changes.unknown, {FLUSHING_KEY: encode_flushing(last.seq, floor)})
        else:
            count = _merge_all(merge, frames, pace)
            self._stored_history(frames, floor, changes, pace)
            self.history.begin(changes.unknown, {})
        hit("views.flush.after_flushing")
        self._freeze(pins, merge, frames[-1].version, pace)
        self._write_history(changes, pace)
        self.rows_version = frames[-1].version
        if self._cache is not None:
            self._cache.close()
        while rows := merge.batch(self._slice_rows, SLICE_BYTES):
            self._engine.apply(Batch(rows), sync=False)
            hit("views.flush.mid_rows")
            pace()
        if self._cache is not None:
            for part in _keys_of(frames, self._slice_rows):
                self._cache.drop(key for key in part if key.startswith(STATE.prefix))
            self._cache.open()
        self._remove_history(changes.removed(), pace)
        self._finish(last, floor)
        self._overlay.drop(frames, _keys_of(frames, self._slice_rows), pace)
        self.flushes += 1
        self.rows_flushed += count
        self.seconds += time.monotonic() - begun

    def _write_history(self, changes: HistoryChanges, pace: Callable[[], None]) -> None:
        """The rows that ``changes`` adds are in the engine; for each key from low heights to high ones."""
        merge = self._bulk.merge()
        merge.add(changes.added(), undo=False)
        merge.sort()
        while rows := merge.batch(self._slice_rows, SLICE_BYTES):
            self._engine.apply(Batch(rows), sync=False)
            hit("views.flush.mid_history")
            pace()

    def _remove_history(self, keys: list[bytes], pace: Callable[[], None]) -> None:
        """The rows of ``keys`` are not in the engine; they went from the last key to the first."""
        if not keys:
            return
        self.removals += 1
        hit("views.flush.before_removals")
        merge = self._bulk.merge()
        merge.add(dict.fromkeys(keys), undo=False)
        merge.sort()
        ordered = merge.keys()
        for end in range(len(ordered), 0, -self._slice_rows):
            part = ordered[max(0, end - self._slice_rows) : end]
            self._engine.apply(Batch(dict.fromkeys(part)), sync=False)
            hit("views.flush.mid_removals")
            pace()

    def _floor(self, frame_floor: int) -> int:
        """The undo floor of a flush that ends with a frame of this floor; that of the begun one is not ours to say."""
        if self.finishing is not None:
            assert self.applied is not None
            begun = self.applied.flushing_floor
            return max(self.undo_floor, frame_floor if begun is None else begun)
        return max(self.undo_floor, frame_floor - self._options.undo_window)

    def _finish(self, frame: FrameLayers, floor: int) -> None:
        applied = Applied(frame.seq, self._frame_digest(frame.seq), frame.state(), floor, None)
        rows: Rows = {APPLIED_KEY: encode_row(APPLIED_KEY, encode_applied(applied)), FLUSHING_KEY: None}
        hit("views.flush.before_applied")
        self._engine.apply(Batch(rows, [undo_range_to(floor)]), sync=True)
        self.applied = applied
        self.finishing = None
        self._pins.refused = False
        hit("views.flush.after_applied")

    def _stored_history(
        self, frames: list[Published], floor: int, changes: HistoryChanges, pace: Callable[[], None]
    ) -> None:
        """``changes`` has what ``frames`` change in the history, from the undo that the interrupted flush stored.

        The rows themselves are partly overwritten. A block at or below ``floor`` has no stored undo if the flush was
        begun without a history, or with another rule.
        """
        for published in frames:
            for height, _hash, rows in published.frame.undone:
                changes.remove(height, rows)
            for layer in published.frame.layers:
                if layer.block is None or not changes.wants(layer.block[0]):
                    continue
                undo = read_undo(self._engine.get, *layer.block)
                if undo is not None:
                    changes.add(layer.block[0], undo)
                elif layer.block[0] > floor:
                    raise lost_undo(*layer.block)
                else:
                    changes.skip(layer.block[0])
            pace()

    def _write_undo(
        self,
        merge: RowMerge,
        frames: list[Published],
        floor: int,
        changes: HistoryChanges,
        pace: Callable[[], None],
    ) -> int:
        """The undo rows of ``frames`` are in the engine; ``merge`` has their rows; how many keys they have.

        ``changes`` has what they change in the history.
        """
        writer = UndoWriter(self._engine, self._slice_rows, pace)
        numbers: dict[int, int] = {}
        """Number of a layer whose undo is needed, by its identity."""
        for layer in _layers(frames):
            merge.add(layer.rows, undo=False)
            wanted = layer.block is not None and (changes.wants(layer.block[0]) or layer.block[0] > floor)
            number = merge.add(layer.chain_rows, undo=wanted)
            if wanted:
                numbers[id(layer)] = number
            pace()
        count = merge.sort()
        while keys := merge.unknown(self._slice_rows):
            merge.known(self._bulk.decode(keys, self._engine.get_many(keys)))
            pace()
        for published in frames:
            for height, block_hash, rows in published.frame.undone:
                writer.add(height, block_hash, rows)
                changes.remove(height, rows)
            for layer in published.frame.layers:
                if id(layer) in numbers:
                    assert layer.block is not None
                    height, block_hash = layer.block
                    undo = merge.undo(numbers[id(layer)])
                    writer.add(height, block_hash, undo)
                    if changes.wants(height):
                        changes.add(height, undo)
                    pace()
        writer.write()
        return count

    def _freeze(self, pins: list[PinnedReader], merge: RowMerge, to_version: int, pace: Callable[[], None]) -> None:
        """Every older pinned reader answers without the engine for what of ``merge`` changes after it, or expired.

        A key whose newest version in the range is not above the reader's gets exactly the reader's row.
        """
        if not pins:
            return
        version_of = self._overlay.version_of
        keys = merge.keys()
        for at in range(0, len(keys), self._slice_rows):
            versions = [(key, version_of(key, to_version)) for key in keys[at : at + self._slice_rows]]
            for pin in pins:
                changing = [key for key, version in versions if version > pin.version]
                wanted = pin.missing(changing)
                stored = self._engine.get_many(wanted) if wanted else []
                old: Rows = {}
                for key, row in zip(wanted, stored, strict=True):
                    old[key] = None if row is None else decode_row(key, row)
                pin.freeze(changing, old)
            pace()

    def _pause(self) -> None:
        """Let commits have the interpreter, unless they are all waiting for this flush."""
        if not self._waiting:
            time.sleep(_PAUSE_SECONDS)

    # -- the thread ---------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """True while the background thread flushes on its own."""
        return self._thread is not None and not self._stopping

    def _nudge(self) -> None:
        """The thread looks at the overlay soon. Cheap."""
        if not self._wake.is_set():
            self._wake.set()

    def start(self) -> None:
        """A thread flushes in the background; a second call does nothing."""
        if self._thread is None:
            self._thread = start_thread(self._run, "holdfast-flush")

    def stop(self) -> None:
        """The thread has ended, after the flush it was in."""
        self._stopping = True
        self._wake.set()
        with self._done:
            self._done.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        interval = self._options.flush_interval_seconds
        due = time.monotonic() + interval
        while True:
            if self._refused or not (self._pressing() and self.useful()):
                self._wake.wait(max(0.0, due - time.monotonic()))
            self._wake.clear()
            now = time.monotonic()
            if self._stopping:
                return
            if now < due and not self._waiting and not self._pressing():
                continue
            if self.useful():
                try:
                    self.flush(background=True)
                except HoldfastError:
                    if self.failure is not None:
                        return  # every later flush and ``back_pressure`` raises it
            due = time.monotonic() + interval

    def _pressing(self) -> bool:
        overlay = self._overlay
        return overlay.rows > overlay.wake_rows or overlay.size_bytes > overlay.wake_bytes

    @property
    def full(self) -> bool:
        """True while the overlay is above its bounds."""
        overlay, options = self._overlay, self._options
        return overlay.rows > options.overlay_rows_max or overlay.size_bytes > options.overlay_bytes_max

    def useful(self) -> bool:
        """True if a flush could take something out of the overlay now."""
        overlay = self._overlay
        if not overlay.frames or self.failure is not None:
            return False
        if self.finishing is not None:
            return overlay.visible_seq >= self.finishing
        return overlay.visible_seq >= overlay.frames[0].frame.seq

    def back_pressure(self) -> None:
        """The overlay is within its bounds, or no flush can help now. Raises the error of a flush that failed."""
        while True:
            if self.failure is not None:
                raise self.failure.with_traceback(None)
            if not self.full or not self.useful():
                return
            if not self.running or self._refused:
                self.flush()
                continue
            with self._done:
                self._waiting += 1
                self._wake.set()
                try:
                    self._done.wait(_WAIT_SECONDS)
                finally:
                    self._waiting -= 1


def _nothing() -> None:
    """A flush in the foreground does not pause."""


def _layers(frames: list[Published]) -> Iterator[Layer]:
    for published in frames:
        yield from published.frame.layers


def _keys_of(frames: list[Published], count: int) -> Iterator[list[bytes]]:
    """The keys of ``frames``, at most ``count`` at a time, as they were published: so they lie in memory."""
    keys = chain.from_iterable(rows for layer in _layers(frames) for rows in (layer.rows, layer.chain_rows))
    while part := list(islice(keys, count)):
        yield part


def _merge_all(merge: RowMerge, frames: list[Published], pace: Callable[[], None]) -> int:
    """``merge`` has the rows of ``frames``, sorted; how many keys there are."""
    for layer in _layers(frames):
        merge.add(layer.rows, undo=False)
        merge.add(layer.chain_rows, undo=False)
        pace()
    return merge.sort()
