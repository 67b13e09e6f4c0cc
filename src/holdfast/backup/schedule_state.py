"""What is known of scheduled runs: ``DATA/schedule.json`` (docs/FORMAT.md, section 10.7).

Invariant: whatever the file holds, it is a state with which runs go on; one that cannot be is one in which nothing was
done, since a backup too many is better than one too few.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import msgspec

from .._fs import FileSystem, RealFileSystem
from .._json import check_depth
from ..errors import FormatTooNew, HoldfastError, MissingFile
from .schedule import TIME_US_MAX
from .target import NAME_PATTERN

__all__ = ["STATE_NAME", "ScheduleState", "load_schedule_state"]

STATE_NAME: Final = "schedule.json"
_STATE_BYTES_MAX: Final = 4096
_FAILURES_MAX: Final = 1_000_000
_KIND: Final = "holdfast-schedule"
_FORMAT: Final = 1
_NAME: Final = re.compile(f"({NAME_PATTERN})?", re.ASCII)
_ID: Final = re.compile(r"([0-9a-f]{32})?", re.ASCII)


class ScheduleState(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``schedule.json``. Times are microseconds since 1970, UTC; 0 is none.

    ``store`` and ``repository`` are ids in hex: of what is backed up, and where to. ``handled_us``: instants up to here
    are done. ``ahead_us``: one that was done while the clock was ahead. Of the run that is not done, ``due_us`` is the
    instant, ``started_us`` when it began, ``before`` the newest backup then, ``backup`` the one that it made; ``anew``
    says that this was damaged and the next has to be made with ``check``. ``failures`` so far, and when it is tried
    again.
    """

    ahead_us: int = 0
    anew: bool = False
    backup: str = ""
    before: str = ""
    due_us: int = 0
    failures: int = 0
    format: int = _FORMAT
    handled_us: int = 0
    kind: str = _KIND
    repository: str = ""
    retry_us: int = 0
    started_us: int = 0
    store: str = ""

    def encoded(self) -> bytes:
        """The content of the file."""
        return msgspec.json.encode(self, order="sorted")

    def _sound(self) -> bool:
        times = (self.ahead_us, self.due_us, self.handled_us, self.retry_us, self.started_us)
        return (
            (self.kind, self.format) == (_KIND, _FORMAT)
            and all(0 <= value <= TIME_US_MAX for value in times)
            and 0 <= self.failures <= _FAILURES_MAX
            and all(_NAME.fullmatch(name) for name in (self.backup, self.before))
            and all(_ID.fullmatch(name) for name in (self.repository, self.store))
        )


def load_schedule_state(root: Path, *, store: str | None = None, fs: FileSystem | None = None) -> ScheduleState | None:
    """What is known of the runs of the store at ``root``; ``None`` if nothing is.

    A state that cannot be read, or is of another store than the one with the id ``store``, counts as one in which
    nothing was done. Raises ``FormatTooNew``.
    """
    files = fs or RealFileSystem()
    try:
        data = files.read_bytes(root / STATE_NAME, limit=_STATE_BYTES_MAX)
    except MissingFile:
        return None
    except HoldfastError:
        return ScheduleState()
    try:
        check_depth(data)
        state = msgspec.json.decode(data, type=ScheduleState)
    except ValueError:
        return ScheduleState()
    if state.kind == _KIND and state.format > _FORMAT:
        raise FormatTooNew("the schedule was written in a newer format", path=root / STATE_NAME, found=state.format)
    return state if state._sound() and store in (None, state.store) else ScheduleState()
