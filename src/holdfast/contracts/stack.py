"""Room on Python's stack, so that how deep a call may go does not depend on who called the executor."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["frames_free"]

_lock = threading.Lock()


@contextmanager
def frames_free(count: int) -> Iterator[None]:
    """At least ``count`` more frames fit on the stack of this thread.

    The limit of the process is raised where it is too low, and never lowered: other threads may stand on it.
    Cost: O(depth of the stack).
    """
    depth = 0
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        depth += 1
        frame = frame.f_back
    with _lock:
        if sys.getrecursionlimit() < depth + count:
            sys.setrecursionlimit(depth + count)
    yield
