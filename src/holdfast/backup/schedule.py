"""When backups are made: words or cron text, in UTC.

Invariants:
    * A schedule is a set of instants, in whole minutes of UTC, that depends on its text alone.
    * Text that means nothing, or instants that never come, are refused when it is read.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from cronsim import CronSim, CronSimError

from ..errors import InvalidInputError
from ..limits import BACKUP_SCHEDULE_CHARACTERS_MAX

__all__ = ["TIME_US_MAX", "Schedule"]

_MINUTE_US: Final = 60_000_000
_DAYS: Final = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
_EVERY: Final = re.compile(r"every ([1-9][0-9]{0,5})(m|h|d)", re.ASCII)
_UNITS: Final = {"m": 1, "h": 60, "d": 24 * 60}
_EVERY_MINUTES_MAX: Final = 366 * 24 * 60
_CLOCK: Final = r"(?: ([01][0-9]|2[0-3]):([0-5][0-9]))?"
_DAILY: Final = re.compile(rf"daily{_CLOCK}", re.ASCII)
_WEEKLY: Final = re.compile(rf"weekly ({'|'.join(_DAYS)}){_CLOCK}", re.ASCII)
_MONTHLY: Final = re.compile(rf"monthly ([1-9]|1[0-9]|2[0-8]){_CLOCK}", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
TIME_US_MAX: Final = 253_000_000_000 * 1_000_000
"""A moment in the year 9987: instants behind it are none."""


class Schedule:
    """Instants of backups. Times are microseconds since 1970, UTC."""

    def __init__(self, text: str) -> None:
        """``text``: ``hourly``, ``daily 03:00``, ``weekly sunday 03:00``, ``monthly 1 03:00`` (a day up to 28),
        ``every 6h`` (or ``m``, ``d``; counted from 1970), or the five fields of cron. A time left out is 00:00.

        Raises:
            InvalidInputError: it is none of these, or never comes.
        """
        self.text = (
            " ".join(text.split()) if isinstance(text, str) and len(text) <= BACKUP_SCHEDULE_CHARACTERS_MAX else ""
        )
        self._minutes, self._cron = _parsed(self.text.lower())
        if not self._minutes and not self._cron:
            raise _refused(text)
        if self._cron:
            try:
                CronSim(self._cron, _EPOCH)
                known = self.next(0) is not None
            except (CronSimError, RecursionError) as error:
                raise _refused(text) from error
            if not known:
                raise _refused(text)

    def next(self, time_us: int) -> int | None:
        """The first instant after ``time_us``; ``None`` if there is none in the next 50 years."""
        if self._minutes:
            step = self._minutes * _MINUTE_US
            return (time_us // step + 1) * step
        return self._step(time_us // _MINUTE_US * _MINUTE_US, reverse=False)

    def previous(self, time_us: int) -> int | None:
        """The last instant that is not after ``time_us``; ``None`` if there is none since 1970."""
        if self._minutes:
            step = self._minutes * _MINUTE_US
            return time_us // step * step
        return self._step((time_us // _MINUTE_US + 1) * _MINUTE_US, reverse=True)

    def _step(self, from_us: int, *, reverse: bool) -> int | None:
        if not 0 <= from_us <= TIME_US_MAX:
            return None
        start = _EPOCH + timedelta(microseconds=from_us)
        found = next(CronSim(self._cron, start, reverse=reverse), None)
        if found is None:
            return None
        moment_us = int((found - _EPOCH) / timedelta(microseconds=1))
        return moment_us if moment_us >= 0 else None

    def __repr__(self) -> str:
        return f"Schedule({self.text!r})"


def _parsed(text: str) -> tuple[int, str]:
    """Minutes from one instant to the next, or cron text; neither if it means nothing."""
    if text == "hourly":
        return 60, ""
    if (match := _EVERY.fullmatch(text)) is not None:
        minutes = int(match[1]) * _UNITS[match[2]]
        return (minutes, "") if minutes <= _EVERY_MINUTES_MAX else (0, "")
    if (match := _DAILY.fullmatch(text)) is not None:
        return 0, f"{_clock(match[1], match[2])} * * *"
    if (match := _WEEKLY.fullmatch(text)) is not None:
        return 0, f"{_clock(match[2], match[3])} * * {_DAYS.index(match[1])}"
    if (match := _MONTHLY.fullmatch(text)) is not None:
        return 0, f"{_clock(match[2], match[3])} {match[1]} * *"
    return (0, text) if len(text.split(" ")) == 5 and text.isascii() else (0, "")


def _clock(hour: str | None, minute: str | None) -> str:
    return f"{int(minute or 0)} {int(hour or 0)}"


def _refused(text: object) -> InvalidInputError:
    return InvalidInputError(
        "this is no schedule",
        found=ascii(text)[:80],
        remedy="write 'hourly', 'daily 03:00', 'weekly sunday 03:00', 'monthly 1 03:00', 'every 6h', or the five "
        "fields of cron, such as '0 3 * * 0'; times are UTC",
    )
