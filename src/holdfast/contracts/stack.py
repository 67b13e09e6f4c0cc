"""Room on Python's stack: how deep a call may go is the same whoever calls the executor and whatever else is loaded.

py-evm, for one, sets the limit of the process to 100,000 when it is imported.
"""

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
_limit = 0


@contextmanager
def frames_free(count: int) -> Iterator[None]:
    """``count`` more frames fit on the stack of this thread, and no more unless other threads run calls, too.

    The limit of the process is raised or lowered. When the last user has left, it is what it was before, unless
    somebody else has changed it meanwhile. Cost: O(depth of the stack).
    """
    global _users, _before, _limit
    depth = 0
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        depth += 1
        frame = frame.f_back
    with _lock:
        if _users == 0:
            _before = sys.getrecursionlimit()
            _limit = 0
        _users += 1
        if _limit < depth + count:
            _limit = depth + count
            sys.setrecursionlimit(_limit)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0 and _limit != _before and sys.getrecursionlimit() == _limit:
                with suppress(RecursionError):  # this thread came in above the old limit: then the new one stays
                    sys.setrecursionlimit(_before)
