"""What ends with a store, made above it: background work that must not outlive it.

Invariants:
    * An ending is called once, in the thread that closes the store, before the lock of the store is free.
    * Nothing here keeps a store alive.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .store import Store

__all__ = ["on_close", "run_endings"]

_endings: weakref.WeakKeyDictionary[Store, list[Callable[[], object]]] = weakref.WeakKeyDictionary()


def on_close(store: Store, ending: Callable[[], object]) -> None:
    """``ending``, which may not hold ``store``, is called when ``store`` is closed."""
    _endings.setdefault(store, []).append(ending)


def run_endings(store: Store) -> None:
    """What ends with ``store`` has ended."""
    for ending in _endings.pop(store, []):
        ending()
