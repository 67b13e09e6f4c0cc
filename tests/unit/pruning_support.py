"""What the tests of pruning share: the history as the engine holds it, and stores with a long one."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import pytest

from holdfast import Store
from holdfast.engine.api import Engine
from holdfast.store import pruning
from holdfast.views.api import HistoryRecord
from holdfast.views.history import decode_history_key, encode_old, history_key
from holdfast.views.rows import encode_row
from holdfast.views.tables import HISTORY
from tests.unit.state_support import Values, after, commit

Rows = dict[bytes, bytes]


@contextlib.contextmanager
def small_batches() -> Iterator[None]:
    """A batch is a few rows, and the record is written often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning, "_BATCH_ROWS", 4)
        patch.setattr(pruning, "_ROWS_BETWEEN_SYNCS", 9)
        yield


def history_rows(engine: Engine) -> Rows:
    """Every row of the history, as it is stored."""
    rows: Rows = {}
    start: bytes | None = HISTORY.prefix
    while start is not None:
        page = engine.scan(start, HISTORY.end)
        rows.update(page.rows)
        start = page.resume
    return rows


def rows_too_many(rows: Rows, record: HistoryRecord) -> list[bytes]:
    """Those of ``rows``, all of a history, that answer for no height that ``record`` has, by the definition."""
    heights: dict[bytes, list[int]] = {}
    for row in rows:
        key, height = decode_history_key(row)
        heights.setdefault(key, []).append(height)
    found = []
    for key, changed in heights.items():
        changed.sort()
        for before, height in zip([0, *changed], changed, strict=False):
            if not any(record.has(each) for each in range(before, height)):
                found.append(history_key(key, height))
    return found


def stored_row(key: bytes, value: bytes | None) -> bytes:
    """The stored form of the history row that says ``value``."""
    return encode_row(key, encode_old(value))


def long_chain(store: Store, blocks: int, changes: int, *, keys: int, value_bytes: int = 40) -> list[Values]:
    """Blocks of so many changes over so many keys, on the tip; the state after each."""
    values: Values = dict(store.state.scan())
    found = []
    for number in range(blocks):
        first = number * 7919 + 13
        noise = random.Random(number)
        written = {
            b"key/%06d" % ((first + at * 31) % keys): b"%d %d " % (number, at) + noise.randbytes(value_bytes)
            for at in range(changes)
        }
        commit(store, ("long", number), written)
        values = after(values, written)
        found.append(values)
    return found
