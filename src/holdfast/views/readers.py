"""Reading rows: the overlay over the engine, as of one version, while a flush may be moving rows between them.

Invariants:
    * A row found in the overlay at the reader's version is right, whatever the engine holds.
    * A pinned reader at version s takes what is frozen in its pin before what it read from the engine. A flush
      freezes the row at s of every key it is going to give another row than that, *before* it writes: so the frozen
      rows are looked up after the engine was read.
    * A page reads the engine first and the overlay after it; if the overlay dropped rows in between (its ``epoch``
      changed), the page is read again.
    * A page holds fewer than ``limit`` rows only if the scan is finished.
    * Releasing a reader waits for no lock: the garbage collector does it for drafts and states of old heights, and may
      run in the middle of any allocation, also where the overlay's lock is held.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from types import TracebackType

from ..engine.api import Engine, Page, Reader
from ..errors import ClosedError, Recovery, StateError, ViewExpired
from .api import Rows
from .overlay import LATEST, MISSING, ROW_COST_BYTES, Overlay, SortedKeys
from .rows import decode_row

__all__ = ["LatestReader", "PinnedReader", "Pins", "VisibleReader", "read_page"]

_CHUNK = 256


class PinnedReader:
    """Rows as of the moment it was made, until it is released; a context manager. Any thread may use it.

    Every call raises ``ViewExpired`` once a flush had to keep more than the allowed bytes for it, or once frames that
    it sees were dropped before they were durable; ``ClosedError`` after its release.
    """

    __slots__ = (
        "_dropped",
        "_engine",
        "_expired",
        "_frozen",
        "_frozen_bytes",
        "_keys",
        "_lock",
        "_overlay",
        "_pins",
        "_released",
        "seq",
        "version",
    )

    def __init__(self, pins: Pins, engine: Reader, overlay: Overlay, version: int, seq: int) -> None:
        self._pins = pins
        self._engine = engine
        self._overlay = overlay
        self._lock = threading.Lock()
        self._frozen: Rows = {}
        self._frozen_bytes = 0
        self._keys = SortedKeys()
        self._dropped = False
        self._expired = False
        self._released = False
        self.version = version
        self.seq = seq
        """The newest frame this reader sees."""

    def __enter__(self) -> PinnedReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """The reader is closed and keeps nothing for it any more; twice is harmless.

        It waits for no lock: the garbage collector may call it, in a thread that holds any of ours.
        """
        self._released = True
        if self._frozen and self._lock.acquire(blocking=False):
            try:
                self._frozen = {}
                self._keys = SortedKeys()
            finally:
                self._lock.release()
        self._pins.remove(self)

    def close(self) -> None:
        """The same as ``release``."""
        self.release()

    # -- reading ------------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        """The row, or ``None``. Raises ``CorruptionError`` for a bad checksum."""
        self.check()
        value = self._overlay.get(key, self.version)
        if value is not MISSING:
            if self._dropped:
                self.check()
            return value
        stored = self._engine.get(key)
        if self._expired or self._frozen or self._released or self._dropped:
            with self._lock:
                self.check()
                frozen = self._frozen.get(key, MISSING)
            if frozen is not MISSING:
                return frozen
        return None if stored is None else decode_row(key, stored)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The rows in the order of ``keys``."""
        self.check()
        get = self._overlay.get
        version = self.version
        found = [get(key, version) for key in keys]
        wanted = [key for key, value in zip(keys, found, strict=True) if value is MISSING]
        if wanted:
            rows = dict(zip(wanted, self._engine.get_many(wanted), strict=True))
            frozen: Rows = {}
            if self._expired or self._frozen or self._released:
                with self._lock:
                    self.check()
                    frozen = {key: self._frozen[key] for key in rows if key in self._frozen}
            for position, value in enumerate(found):
                if value is MISSING:
                    key = keys[position]
                    stored = rows[key]
                    if key in frozen:
                        found[position] = frozen[key]
                    else:
                        found[position] = None if stored is None else decode_row(key, stored)
        if self._dropped:
            self.check()
        return found  # type: ignore[return-value]  # no MISSING is left

    def floor(self, key: bytes, low: bytes) -> tuple[bytes, bytes] | None:
        """The row with the greatest key ``k``, ``low <= k <= key``."""
        rows = self.scan(low, key + b"\x00", reverse=True, limit=1).rows
        return rows[0] if rows else None

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False, limit: int = 1000) -> Page:
        """One page of rows with ``start <= key < stop``; ``Page.resume`` as in the engine contract."""
        self.check()
        page = read_page(self._engine, self._overlay, self.version, self, start, stop, reverse=reverse, limit=limit)
        if self._dropped:
            self.check()
        return page

    def check(self) -> None:
        """Nothing happens while the reader can answer."""
        if self._released:
            raise ClosedError("the reader was released")
        if self._dropped:
            raise ViewExpired("frames that the reader sees were dropped, because they could not be made durable")
        if self._expired:
            raise ViewExpired("the reader held back more memory than allowed", limit=self._pins.bytes_max)

    def abandon(self) -> None:
        """The reader is closed, in a process where nobody else uses it."""
        self._released = True
        self._lock = threading.Lock()

    def drop(self) -> None:
        """Frames that the reader sees are going to be dropped: it answers no more. Before the first row goes."""
        with self._lock:
            self._dropped = True

    # -- the flush ----------------------------------------------------------------------------------------------

    def missing(self, keys: Sequence[bytes]) -> list[bytes]:
        """Those of ``keys`` that neither the overlay nor the frozen rows answer at this version."""
        if self._expired:
            return []
        get = self._overlay.get
        return [key for key in keys if key not in self._frozen and get(key, self.version) is MISSING]

    def freeze(self, keys: Sequence[bytes], old: Rows) -> None:
        """The rows of ``keys`` are kept; ``old`` holds the engine's value for those the overlay cannot answer."""
        get = self._overlay.get
        with self._lock:
            if self._expired or self._released:
                return
            added: set[bytes] = set()
            for key in keys:
                if key in self._frozen:
                    continue
                value = get(key, self.version)
                if value is MISSING:
                    value = old[key]
                self._frozen[key] = value
                added.add(key)
                self._frozen_bytes += len(key) + (len(value) if value is not None else 0) + ROW_COST_BYTES
            self._keys.add(added)
            if self._frozen_bytes > self._pins.bytes_max:
                self._expired = True
                self._frozen = {}
                self._keys = SortedKeys()

    def frozen_between(self, low: bytes, high: bytes, *, reverse: bool, count: int) -> list[tuple[bytes, bytes | None]]:
        """The first ``count`` frozen rows of a range in order, or from the end."""
        if not (self._expired or self._frozen or self._released):
            return []
        with self._lock:
            self.check()
            frozen = self._frozen
            return [(key, frozen[key]) for key in self._keys.between(low, high, reverse=reverse, count=count)]


class Pins:
    """The active pinned readers."""

    def __init__(self, engine: Engine, overlay: Overlay, bytes_max: int) -> None:
        self._engine = engine
        self._overlay = overlay
        self.bytes_max = bytes_max
        self._active: set[PinnedReader] = set()
        self._gone: deque[PinnedReader] = deque()
        """Released, and perhaps still among the active ones."""
        self.refused = False
        """True while a begun flush is to be finished: the engine is between two versions."""

    def open(self, engine: Reader | None = None, *, latest: bool = False) -> PinnedReader:
        """A reader of what is visible now; ``engine`` is a snapshot to read instead of the live one.

        With ``latest``, a reader of everything that is published now.
        """
        if self.refused:
            raise StateError(
                "a flush that was interrupted must be finished before rows are read at one version",
                recovery=Recovery.REPLAY,
            )
        overlay = self._overlay
        with overlay.lock:
            version, seq = overlay.visible_version, overlay.visible_seq
            if latest:
                version = overlay.version if overlay.pending else version
                seq = overlay.frames[-1].frame.seq if overlay.frames else seq
            pin = PinnedReader(self, engine or self._engine, overlay, version, seq)
            self._forget()
            self._active.add(pin)
        return pin

    def drop_above(self, version: int) -> None:
        """Readers that see more than ``version`` answer no more. The caller holds the overlay's lock."""
        self._forget()
        for pin in self._active:
            if pin.version > version:
                pin.drop()

    def remove(self, pin: PinnedReader) -> None:
        """``pin`` is not active for whoever looks from now on. Waits for no lock, as ``PinnedReader.release`` says."""
        self._gone.append(pin)
        if self._overlay.lock.acquire(blocking=False):
            try:
                self._forget()
            finally:
                self._overlay.lock.release()

    def _forget(self) -> None:
        while self._gone:
            self._active.discard(self._gone.popleft())

    def before(self, version: int) -> list[PinnedReader]:
        """The active readers of an older version. The caller holds the overlay's lock."""
        self._forget()
        return [pin for pin in self._active if pin.version < version]

    def abandon(self) -> None:
        """Every active reader is closed: this process is a fork."""
        for pin in self._active:
            pin.abandon()

    def count(self) -> int:
        """How many readers are active."""
        with self._overlay.lock:
            self._forget()
            return len(self._active)


class VisibleReader:
    """Rows as of each call: what is durable. A call that gives several rows gives them as of one version."""

    def __init__(self, engine: Engine, overlay: Overlay, pins: Pins) -> None:
        self._engine = engine
        self._overlay = overlay
        self._pins = pins

    def get(self, key: bytes) -> bytes | None:
        """The row, or ``None``. Raises ``CorruptionError`` for a bad checksum."""
        node = self._overlay.nodes.get(key)
        version = self._overlay.visible_version
        while node is not None:
            if node[0] <= version:
                return node[1]
            node = node[2]
        stored = self._engine.get(key)
        return None if stored is None else decode_row(key, stored)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The rows in the order of ``keys``, as of one version."""
        while True:
            with self._pins.open() as pin:
                try:
                    return pin.get_many(keys)
                except ViewExpired:
                    continue

    def floor(self, key: bytes, low: bytes) -> tuple[bytes, bytes] | None:
        """The row with the greatest key ``k``, ``low <= k <= key``."""
        rows = self.scan(low, key + b"\x00", reverse=True, limit=1).rows
        return rows[0] if rows else None

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False, limit: int = 1000) -> Page:
        """One page of rows with ``start <= key < stop``; ``Page.resume`` as in the engine contract."""
        while True:
            with self._pins.open() as pin:
                try:
                    return pin.scan(start, stop, reverse=reverse, limit=limit)
                except ViewExpired:
                    continue


class LatestReader:
    """Rows with everything that is published, durable or not. For the writer only: it must not publish meanwhile."""

    def __init__(self, engine: Engine, overlay: Overlay) -> None:
        self._engine = engine
        self._overlay = overlay

    def get(self, key: bytes) -> bytes | None:
        """The row, or ``None``. Raises ``CorruptionError`` for a bad checksum."""
        node = self._overlay.nodes.get(key)
        if node is not None:
            return node[1]
        stored = self._engine.get(key)
        return None if stored is None else decode_row(key, stored)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The rows in the order of ``keys``."""
        nodes = self._overlay.nodes
        heads = [nodes.get(key) for key in keys]
        wanted = [key for key, node in zip(keys, heads, strict=True) if node is None]
        stored = dict(zip(wanted, self._engine.get_many(wanted), strict=True)) if wanted else {}
        found: list[bytes | None] = []
        for key, node in zip(keys, heads, strict=True):
            if node is not None:
                found.append(node[1])
            else:
                row = stored[key]
                found.append(None if row is None else decode_row(key, row))
        return found

    def floor(self, key: bytes, low: bytes) -> tuple[bytes, bytes] | None:
        """The row with the greatest key ``k``, ``low <= k <= key``."""
        rows = self.scan(low, key + b"\x00", reverse=True, limit=1).rows
        return rows[0] if rows else None

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False, limit: int = 1000) -> Page:
        """One page of rows with ``start <= key < stop``; ``Page.resume`` as in the engine contract."""
        return read_page(self._engine, self._overlay, LATEST, None, start, stop, reverse=reverse, limit=limit)


def _covered(low: bytes, high: bytes, keys: Sequence[bytes], count: int, *, reverse: bool) -> tuple[bytes, bytes]:
    """The part of ``low .. high`` about which ``keys``, cut off at ``count``, say everything."""
    if len(keys) < count:
        return low, high
    return (max(low, keys[-1]), high) if reverse else (low, min(high, keys[-1] + b"\x00"))


def _merge(page: Page, changed: Rows, low: bytes, high: bytes, *, reverse: bool) -> list[tuple[bytes, bytes]]:
    """The engine's rows within ``low .. high``, checked, with ``changed`` over them, in scan order."""
    rows = page.rows
    if not changed:
        return [(key, decode_row(key, stored)) for key, stored in rows if low <= key < high]
    merged = {key: decode_row(key, stored) for key, stored in rows if low <= key < high and key not in changed}
    for key, value in changed.items():
        if value is not None:
            merged[key] = value
    return sorted(merged.items(), reverse=reverse)


def read_page(
    engine: Reader,
    overlay: Overlay,
    version: int,
    pin: PinnedReader | None,
    start: bytes,
    stop: bytes,
    *,
    reverse: bool,
    limit: int,
) -> Page:
    """One page of the rows as of ``version``: engine, then overlay, then what ``pin`` has frozen."""
    found: list[tuple[bytes, bytes]] = []
    want = limit
    while start < stop:
        epoch = overlay.epoch
        page = engine.scan(start, stop, reverse=reverse, limit=want)
        low, high = start, stop
        if page.resume is not None:
            low, high = (page.resume, stop) if reverse else (start, page.resume)
        count = max(want, _CHUNK)
        keys = overlay.between(low, high, reverse=reverse, count=count)
        low, high = _covered(low, high, keys, count, reverse=reverse)
        changed: Rows = {}
        for key in keys:
            value = overlay.get(key, version)
            if value is not MISSING:
                changed[key] = value
        if pin is not None:
            frozen = pin.frozen_between(low, high, reverse=reverse, count=count)
            low, high = _covered(low, high, [key for key, _ in frozen], count, reverse=reverse)
            changed.update(frozen)
            if frozen:
                changed = {key: value for key, value in changed.items() if low <= key < high}
        if overlay.epoch != epoch:
            continue
        need = limit - len(found)
        rows = _merge(page, changed, low, high, reverse=reverse)
        found += rows[:need]
        if len(rows) > need:
            return Page(found, found[-1][0] if reverse else rows[need][0])
        if reverse:
            stop = low
        else:
            start = high
        if len(found) == limit:
            return Page(found, (stop if reverse else start) if start < stop else None)
        want = max(limit - len(found), _CHUNK)
    return Page(found, None)
