"""Every row of the views against the journal: replay into fresh views, compare both ways.

Invariants:
    * The fresh views are made by the same function as live commits, from the journal alone.
    * The comparison reads both sides in key order, page by page: memory does not grow with the store.
    * History rows are compared whole. Those that the views' own record gives up may be missing or not; those that are
      there must be right.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from .._fs import FileSystem
from .._keys import KEY_BYTES
from .._seal import RowCipher, StoreCipher
from ..blocks.state import EMPTY, decode_state, tip_height_of
from ..consensus.safety import SafetyBook
from ..engine.api import Engine
from ..engine.memory import MemoryEngine
from ..engine.open import open_engine
from ..engine.sealed import SealedEngine, sealed_engine
from ..errors import CorruptionError
from ..state.history import StateHistory
from ..store.base import load_base
from ..store.replay import Replayer
from ..views.api import Applied, HistoryRecord, Rows, ViewOptions
from ..views.history import HISTORY_KEY, load_history
from ..views.rows import CHECKSUM_BYTES, FLUSHING_KEY, decode_row
from ..views.tables import HISTORY, INDEX_FIRST, INDEX_LAST, META, UNDO
from ..views.undo import decode_undo
from ..views.views import Views
from .links import Counter, Frames, bad_row, engine_rows

__all__ = ["compare_views"]

_MEMORY_BYTES_MAX = 32 * 1024 * 1024
_MEMORY_BLOCKS_MAX = 25_000
_PENDING_MAX = 1_000_000
_INDEX_RECORDS = (META.prefix + b"index/", META.prefix + b"index-next")


@contextlib.contextmanager
def _fresh_engine(like: Engine, name: str, blocks: int) -> Iterator[Engine]:
    """An empty engine: in memory for a small store, else of the same kind in a temporary directory.

    Beside an encrypted one, what is written there is encrypted under a key that is drawn now and kept nowhere.
    """
    if blocks <= _MEMORY_BLOCKS_MAX and like.stats().size_bytes <= _MEMORY_BYTES_MAX:
        engine: Engine = MemoryEngine()
        try:
            yield engine
        finally:
            engine.close()
        return
    with tempfile.TemporaryDirectory(prefix="holdfast-verify-") as directory:
        plain = open_engine(name, Path(directory) / "data", create=True)
        engine = sealed_engine(
            plain, RowCipher(secrets.token_bytes(KEY_BYTES)) if isinstance(like, SealedEngine) else None
        )
        try:
            yield engine
        finally:
            engine.close()


def compare_views(
    source: Frames,
    engine: Engine,
    name: str,
    applied: Applied | None,
    tally: Counter,
    *,
    exact: bool,
    fs: FileSystem,
    root: Path,
    cipher: StoreCipher | None = None,
) -> int:
    """Every row of ``engine`` is what the journal makes of it, and none is missing; the number of rows skipped.

    Args:
        source: the journal.
        engine, name: the live generation, read-only, and its kind.
        applied: what it claims to hold. If a flush of it was interrupted, a row may also be of that flush's target.
        tally: counts the rows and takes the problems.
        exact: rows of undo that the journal does not explain are problems too (after a clean close).
        fs, root, cipher: where the store lies, and what its key opened, for the base that its journal stands on.
    """
    target = applied.seq if applied is not None else 0
    flushing = applied.flushing if applied is not None else None
    pending: dict[bytes, CorruptionError] = {}

    def report(key: bytes, problem: CorruptionError) -> None:
        if flushing is not None and len(pending) < _PENDING_MAX:
            pending[key] = problem
        else:
            tally.problem(problem)

    record = load_history(engine.get)
    state = decode_state(applied.state) if applied is not None and target else EMPTY
    window = max(0, state.floor - applied.undo_floor) if applied is not None else 0
    with _fresh_engine(engine, name, state.blocks) as fresh:
        if target:
            load_base(fresh, fs, root, source, cipher=cipher)
        options = ViewOptions(undo_window=window)
        views = Views.open(
            fresh,
            options=options,
            frame_digest=lambda seq: source.frame(seq).digest,
            history=StateHistory() if record is not None else None,
            tip_height=tip_height_of,
        )
        try:
            replayer = Replayer(views, SafetyBook())
            _replay(replayer, source, target, tally)
            views.flush()
            skipped = _compare(engine, fresh, tally, report, _Kept(record), exact=exact)
            if pending and flushing is not None:
                _replay(replayer, source, flushing, tally)
                views.flush()
                for key, problem in pending.items():
                    if engine.get(key) != fresh.get(key):  # else the flush has already written its target's row
                        tally.problem(problem)
        finally:
            views.close(flush=False)
    return skipped


def _replay(replayer: Replayer, source: Frames, target: int, tally: Counter) -> None:
    while replayer.seq < target:
        replayer.run(source, min(replayer.seq + 512, target), flush=True)
        tally.step(0, target)


def _of_index(key: bytes) -> bool:
    """True for rows of user indexes, whose functions are not at hand."""
    return INDEX_FIRST <= int.from_bytes(key[:2], "big") <= INDEX_LAST or key.startswith(_INDEX_RECORDS)


class _Kept:
    """Which history rows must be there, by the record of the views. Ask in the order of the keys."""

    def __init__(self, record: HistoryRecord | None) -> None:
        self._record = record
        self._last = (b"", -1)

    def needs(self, key: bytes) -> bool:
        """True if the row of this engine key answers for a height that can be read; always of other tables."""
        record = self._record
        if record is None or not key.startswith(HISTORY.prefix):
            return True
        height = int.from_bytes(key[-8:], "big")
        if height > record.floor:
            return True
        if not record.every:
            return False
        base = (height - 1) // record.every * record.every
        first = self._last != (key[:-8], base)
        self._last = (key[:-8], base)
        return first and base >= record.oldest


def _compare(
    engine: Engine,
    fresh: Engine,
    tally: Counter,
    report: Callable[[bytes, CorruptionError], None],
    kept: _Kept,
    *,
    exact: bool,
) -> int:
    stored_rows, expected_rows = engine_rows(engine), engine_rows(fresh)
    stored, expected = next(stored_rows, None), next(expected_rows, None)
    skipped = 0
    while stored is not None or expected is not None:
        tally.step()
        if expected is None or (stored is not None and stored[0] < expected[0]):
            assert stored is not None
            key, value = stored
            bad = _checksum(key, value)
            if bad is not None:
                report(key, bad)
            elif _of_index(key):
                skipped += 1
            elif key not in (FLUSHING_KEY, HISTORY_KEY) and (exact or not key.startswith(UNDO.prefix)):
                report(key, bad_row("a row that the journal does not explain", key))
            stored = next(stored_rows, None)
        elif stored is None or expected[0] < stored[0]:
            if kept.needs(expected[0]):
                report(expected[0], bad_row("a row is missing", expected[0]))
            expected = next(expected_rows, None)
        else:
            kept.needs(expected[0])
            difference = _difference(stored, expected[1])
            if difference is not None:
                report(stored[0], difference)
            stored, expected = next(stored_rows, None), next(expected_rows, None)
    return skipped


def _checksum(key: bytes, stored: bytes) -> CorruptionError | None:
    try:
        decode_row(key, stored)
    except CorruptionError as error:
        return error
    return None


def _difference(row: tuple[bytes, bytes], expected: bytes) -> CorruptionError | None:
    key, stored = row
    if stored == expected or key == HISTORY_KEY:  # what was given up is no matter of the journal
        return None
    bad = _checksum(key, stored)
    if bad is not None:
        return bad
    value, wanted = stored[CHECKSUM_BYTES:], expected[CHECKSUM_BYTES:]
    if key.startswith(UNDO.prefix) and _undo(key, value) == _undo(key, wanted):
        return None
    return bad_row("a row differs from the journal", key, found=value, expected=wanted)


def _undo(key: bytes, value: bytes) -> Rows:
    """The rows in a part of undo, without those of user indexes."""
    rows: Rows = {}
    decode_undo(key, value, rows)
    return {row_key: row for row_key, row in rows.items() if not _of_index(row_key)}
