"""A block being built on a parent."""

from __future__ import annotations

import weakref
from collections.abc import Callable

from ..errors import StateError
from ..state.draft import BlockState, DraftState
from ..types import BlockInfo

__all__ = ["Draft"]


class Draft:
    """Where the block will stand, and its state. Made by ``store.draft()``; belongs to one thread."""

    __slots__ = ("__weakref__", "_open", "_state", "height", "parent")

    def __init__(self, parent: BlockInfo | None, height: int, open_state: Callable[[], BlockState]) -> None:
        self.parent = parent
        """``None`` for the first block of an empty store."""
        self.height = height
        self._open = open_state
        self._state: DraftState | None = None

    @property
    def state(self) -> DraftState:
        """The parent's state with the writes of this draft; see ``MutableState``.

        The first use fixes the version that is read, until the draft is committed or forgotten.
        """
        if self._state is None:
            parent = self._open()
            self._state = DraftState(parent)
            weakref.finalize(self._state, parent.release)
        return self._state

    @property
    def touched(self) -> DraftState | None:
        """The state, if it was written to. Raises ``StateError`` if the draft was committed before."""
        state = self._state
        if state is None or not state.changed:
            return None
        if state.closed:
            raise StateError("the draft was committed already", remedy="make a new draft on the tip")
        return state

    def close(self) -> None:
        """The draft was committed or is not wanted any more; twice is harmless."""
        if self._state is not None:
            self._state.close()
