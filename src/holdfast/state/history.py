"""Which changes of the state are recorded, so that it can be read at old heights (docs/FORMAT.md, section 7.13)."""

from __future__ import annotations

from ..views.api import HistoryRule
from ..views.tables import STATE, Table

__all__ = ["StateHistory"]


class StateHistory:
    """The state has a history, from ``first`` on."""

    table: Table = STATE

    def __init__(self, first: int = 0) -> None:
        self._first = first

    def wants(self, height: int) -> bool:
        """True if the changes of the canonical block at ``height`` are recorded."""
        return height > self._first or not self._first


_: type[HistoryRule] = StateHistory
