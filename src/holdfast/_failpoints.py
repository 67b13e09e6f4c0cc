"""Named places where a test can make the process die, fail or wait.

Off unless ``HOLDFAST_FAILPOINT`` is set when the process starts: then ``hit`` is a counter and an action, else a
call that does nothing. Form: ``name:count[:action]`` separated by commas. ``count`` is 1-based; ``action`` is
``kill`` (default, SIGKILL of this process), ``raise`` (OSError EIO), ``full`` (OSError ENOSPC) or ``sleep``
(one second).
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable

__all__ = ["hit"]


def _parse(text: str) -> dict[str, tuple[int, str]]:
    plan: dict[str, tuple[int, str]] = {}
    for item in text.split(","):
        name, count, *action = item.strip().split(":")
        plan[name] = (int(count), action[0] if action else "kill")
    return plan


def _make_hit(plan: dict[str, tuple[int, str]]) -> Callable[[str], None]:
    seen: dict[str, int] = {}

    def hit(name: str) -> None:
        if name not in plan:
            return
        seen[name] = seen.get(name, 0) + 1
        count, action = plan[name]
        if seen[name] != count:
            return
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "raise":
            raise OSError(errno.EIO, f"failpoint {name}")
        elif action == "full":
            raise OSError(errno.ENOSPC, f"failpoint {name}")
        elif action == "sleep":
            time.sleep(1.0)
        else:
            raise ValueError(f"HOLDFAST_FAILPOINT: unknown action {action!r}")

    return hit


def _nothing(_name: str) -> None:
    """Do nothing: no failpoint is armed in this process."""


_plan = os.environ.get("HOLDFAST_FAILPOINT", "")
hit: Callable[[str], None] = _make_hit(_parse(_plan)) if _plan else _nothing
