"""Threads of the library: each is started here.

Invariants:
    * A thread that the system has no room for is a typed error, and is not there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from .errors import ResourceExhausted

__all__ = ["start_thread"]


def start_thread(run: Callable[..., object], name: str, *arguments: object) -> threading.Thread:
    """A thread runs ``run(*arguments)``; it does not keep the process. Raises ``ResourceExhausted``."""
    thread = threading.Thread(target=run, args=arguments, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as exc:
        raise ResourceExhausted("the system has no room for another thread", thread=name) from exc
    return thread
