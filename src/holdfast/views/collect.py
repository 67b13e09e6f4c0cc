"""What a flush collects before it writes: the undo of blocks and the changes of the history.

Invariants:
    * Undo is complete in the engine before the flush replaces a row.
    * Of several frames that change the same history row, the last one counts: a row is added, with what the key was
      before the block that is canonical in the end, or removed.
"""

from __future__ import annotations

from collections.abc import Callable

from ..engine.api import Batch, Engine
from .api import HistoryRule, Rows
from .bulk import bulk
from .history import history_key
from .rows import encode_row
from .undo import encode_undo

__all__ = ["SLICE_BYTES", "HistoryChanges", "UndoWriter"]

SLICE_BYTES = 256 * 1024


class UndoWriter:
    """Collects the undo of blocks and writes it in batches."""

    def __init__(self, engine: Engine, slice_rows: int, pace: Callable[[], None]) -> None:
        self._engine = engine
        self._slice_rows = slice_rows
        self._pace = pace
        self._blocks: list[tuple[int, bytes, Rows]] = []
        self._wanted = 0
        self._size = 0

    def add(self, height: int, block_hash: bytes, rows: Rows) -> None:
        """The undo of a block."""
        self._blocks.append((height, block_hash, rows))
        self._wanted += len(rows)
        self._size += sum(map(len, filter(None, rows.values())))
        if self._wanted >= self._slice_rows or self._size >= SLICE_BYTES:
            self.write()

    def write(self) -> None:
        """Everything added is in the engine."""
        rows: Rows = {}
        for height, block_hash, undo in self._blocks:
            for key, value in encode_undo(height, block_hash, undo).items():
                rows[key] = encode_row(key, value)
        self._blocks = []
        self._wanted = 0
        self._size = 0
        if rows:
            self._engine.apply(Batch(rows), sync=False)
            self._pace()


class HistoryChanges:
    """The history rows that the frames of one flush add and remove. Give it the frames in order."""

    def __init__(self, rule: HistoryRule | None) -> None:
        self._rule = rule
        self._bulk = bulk()
        self._prefix = b"" if rule is None else rule.table.prefix
        self.rows: Rows = {}
        """Engine key -> plain value of a row to add; ``None`` for one to remove."""
        self.unknown = -1
        """The greatest height of a canonical block whose changes are not recorded; -1 if there is none."""

    def wants(self, height: int) -> bool:
        """True if the undo of the canonical block at ``height`` is asked for; else its changes are unknown."""
        if self._rule is None:
            return False
        if self._rule.wants(height):
            return True
        self.skip(height)
        return False

    def skip(self, height: int) -> None:
        """The changes of the canonical block at ``height`` are not recorded."""
        self.unknown = max(self.unknown, height)

    def add(self, height: int, undo: Rows) -> None:
        """The block with this undo is canonical at ``height``."""
        self._bulk.history(undo, self._prefix, height, self.rows)

    def remove(self, height: int, undo: Rows) -> None:
        """The block with this undo is not canonical any more."""
        if self._rule is not None:
            prefix = self._prefix
            for key in undo:
                if key.startswith(prefix):
                    self.rows[history_key(key[len(prefix) :], height)] = None

    def added(self) -> Rows:
        """The rows to add: engine key -> plain value."""
        return {key: value for key, value in self.rows.items() if value is not None}

    def removed(self) -> list[bytes]:
        """Engine keys of the rows to remove."""
        return [key for key, value in self.rows.items() if value is None]
