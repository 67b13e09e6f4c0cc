"""The record of the history: which old heights the engine can answer, here and in the engine.

Invariants:
    * ``record`` never claims a height whose rows are not there, or are going: it is changed before they go.
    * Floors only rise. A record is written with the first flush that keeps history, and removed, with every history
      row, by the first flush that does not: later heights would be silently wrong.
    * Nothing is written to an engine that no flush has touched.
"""

from __future__ import annotations

import threading
from dataclasses import replace

from ..engine.api import Batch, Engine
from .api import HistoryRecord, HistoryRule, Rows
from .history import HISTORY_KEY, encode_record, load_history
from .rows import encode_row
from .tables import HISTORY

__all__ = ["HistoryKeeper"]


class HistoryKeeper:
    """The rule and the record in force. ``start`` is the record for an engine that has none, if there is a rule."""

    def __init__(self, engine: Engine, rule: HistoryRule | None, start: HistoryRecord | None) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self.rule = rule
        stored = load_history(engine.get)
        self._stored = stored is not None
        self._ended = False
        self.record: HistoryRecord | None = stored if stored is not None or rule is None else start

    def now(self) -> HistoryRecord | None:
        """The record as of now; without a rule it is another process's, read again."""
        if self.rule is None and not self._ended:
            return load_history(self._engine.get)
        return self.record

    def begin(self, unknown: int, rows: dict[bytes, bytes]) -> None:
        """A flush begins: ``rows`` (plain) are in the engine, and with them, in one batch, the record as it must be.

        ``unknown`` is the greatest height of a canonical block of the flush whose changes are not recorded, or -1.
        """
        with self._lock:
            batch: Rows = {key: encode_row(key, value) for key, value in rows.items()}
            ranges = []
            record = self.record
            if self.rule is None:
                self.record = None
                self._ended = True
                if self._stored:
                    batch[HISTORY_KEY] = None
                    ranges.append((HISTORY.prefix, HISTORY.end))
            elif record is not None and (unknown > min(record.floor, record.oldest) or not self._stored):
                # Heights below one that is not recorded are not kept for ``every`` either.
                record = replace(record, floor=max(record.floor, unknown), oldest=max(record.oldest, unknown))
                self.record = record
                batch[HISTORY_KEY] = encode_row(HISTORY_KEY, encode_record(record))
            if batch or ranges:
                self._engine.apply(Batch(batch, ranges), sync=False)
            self._stored = self.record is not None

    def change(self, record: HistoryRecord, *, applied: bool) -> HistoryRecord:
        """``record`` is in force, and durable if a flush has ``applied`` anything; floors that were higher stay.

        So does what is cleaned, unless ``every`` is another one: then rows that were kept may have to go.
        """
        with self._lock:
            assert self.record is not None
            old = self.record
            self.record = record = replace(
                record,
                floor=max(record.floor, old.floor),
                oldest=max(record.oldest, old.oldest),
                cleaned=max(record.cleaned, old.cleaned) if record.every == old.every else record.cleaned,
            )
            if applied:
                row = encode_row(HISTORY_KEY, encode_record(record))
                self._engine.apply(Batch({HISTORY_KEY: row}), sync=True)
                self._stored = True
            return record
