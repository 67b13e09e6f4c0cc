"""Room on Python's stack, so that how deep a call may go does not depend on who called the executor."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = ["frames_free"]

_lock = threading.Lock()
_users = 0
_before = 0
_raised = 0


@contextmanager
def frames_free(count: int) -> Iterator[None]:
    """At least ``count`` more frames fit on the stack of this thread.

    The limit of the process is raised where it is too low. When the last user has left, it is what it was before,
    unless somebody else has changed it meanwhile. Cost: O(depth of the stack).
    """
    global _users, _before, _raised
    depth = 0
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        depth += 1
        frame = frame.f_back
    with _lock:
        if _users == 0:
            _before = _raised = sys.getrecursionlimit()
        _users += 1
        if sys.getrecursionlimit() < depth + count:
            _raised = depth + count
            sys.setrecursionlimit(_raised)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0 and _raised != _before and sys.getrecursionlimit() == _raised:
                with suppress(RecursionError):  # this thread came in above the old limit: then the new one stays
                    sys.setrecursionlimit(_before)
