"""Reading the state from rows: the tip, a height, a branch; and rows with others laid over them.

Invariants:
    * A reader sees exactly the version of the rows it was given; large values are checked against their reference.
    * A scan holds no engine iterator: it reads page by page.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

from ..engine.api import Page, iter_rows
from ..errors import InvalidInputError, LimitExceeded, NotFoundError
from ..limits import STATE_KEY_BYTES_MAX
from ..merkle.values import is_reference
from ..views.api import Rows
from ..views.tables import STATE
from .rows import full_value, state_key

__all__ = ["OverlaidRows", "Rowlike", "StateReader", "check_key", "check_keys", "no_value", "scan_bounds"]

_PAGE_ROWS = 256
_PREFIX = STATE.prefix
_PREFIX_BYTES = len(_PREFIX)
_REFERENCE_BYTES = 53
GetRow = Callable[[bytes], bytes | None]


class Rowlike(Protocol):
    """The part of a ``RowReader`` that the state needs."""

    def get(self, key: bytes) -> bytes | None:
        """The plain row, or ``None``."""

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The rows in the order of ``keys``."""

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False, limit: int = 1000) -> Page:
        """One page of rows with ``start <= key < stop``."""


def check_key(key: bytes) -> bytes:
    """``key`` if the state can hold it. Raises ``InvalidInputError`` or ``LimitExceeded``."""
    if type(key) is not bytes:
        raise InvalidInputError("a key of the state is bytes", found=type(key).__name__)
    if not key:
        raise InvalidInputError("a key of the state is not empty: no proof could hold it")
    if len(key) > STATE_KEY_BYTES_MAX:
        raise LimitExceeded("the key is too long", found=len(key), limit=STATE_KEY_BYTES_MAX)
    return key


def check_keys(keys: Sequence[bytes]) -> Sequence[bytes]:
    """``keys`` if the state can hold each of them. Raises ``InvalidInputError`` or ``LimitExceeded``."""
    if not isinstance(keys, Collection):
        raise InvalidInputError("keys of the state come in a sequence", found=type(keys).__name__)
    for key in keys:
        check_key(key)
    return keys


def no_value(key: bytes) -> NotFoundError:
    """What is raised where ``key`` was asked for and has no value."""
    return NotFoundError(
        "the key has no value in the state",
        key=key,
        remedy="ask with get(), which gives None, where a key may be absent; scan() lists the keys that there are",
    )


def scan_bounds(prefix: bytes, start: bytes | None, stop: bytes | None) -> tuple[bytes, bytes]:
    """Engine keys ``low``, ``high`` of a scan; ``low >= high`` means that nothing can be found."""
    for name, bound in (("prefix", prefix), ("start", start), ("stop", stop)):
        if (bound is not None or name == "prefix") and type(bound) is not bytes:
            raise InvalidInputError(f"'{name}' of a scan is bytes", found=type(bound).__name__)
    low = state_key(prefix if start is None or start < prefix else start)
    high = _end_of(state_key(prefix)) if prefix else STATE.end
    if stop is not None:
        high = min(high, state_key(stop))
    return low, high


def _end_of(prefix: bytes) -> bytes:
    """The smallest key above every key with this prefix; tables end before ``ff ff``."""
    cut = prefix.rstrip(b"\xff")
    return cut[:-1] + bytes((cut[-1] + 1,))


class StateReader:
    """The state as its rows say it is; see ``ReadableState``."""

    def __init__(self, rows: Rowlike, blobs: GetRow | None = None, get: GetRow | None = None) -> None:
        """A reader over ``rows``; ``blobs`` and ``get`` replace its ``get`` for large values and for the hot path."""
        self._rows = rows
        self._get = get if get is not None else rows.get
        self._blobs = blobs if blobs is not None else rows.get

    def row(self, key: bytes) -> bytes | None:
        """The plain row under an engine key."""
        return self._rows.get(key)

    def get(self, key: bytes) -> bytes | None:
        """The value, or ``None``."""
        if type(key) is not bytes or not 0 < len(key) <= STATE_KEY_BYTES_MAX:
            check_key(key)
        stored = self._get(_PREFIX + key)
        if stored is not None and len(stored) == _REFERENCE_BYTES and is_reference(stored):
            return full_value(stored, self._blobs)
        return stored

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values in the order of ``keys``, all of one version."""
        stored = self._rows.get_many([state_key(key) for key in check_keys(keys)])
        return [None if value is None else full_value(value, self._blobs) for value in stored]

    def __getitem__(self, key: bytes) -> bytes:
        """The value. Raises ``NotFoundError``."""
        value = self.get(key)
        if value is None:
            raise no_value(key)
        return value

    def __contains__(self, key: object) -> bool:
        """True if the key has a value."""
        return isinstance(key, bytes) and self._get(state_key(key)) is not None

    def scan(
        self, prefix: bytes = b"", *, start: bytes | None = None, stop: bytes | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) in key order, or in the reverse: keys with ``prefix`` and ``start <= key < stop``."""
        low, high = scan_bounds(prefix, start, stop)
        if low < high:
            for key, stored in iter_rows(self._rows, low, high, reverse=reverse, page_rows=_PAGE_ROWS):
                yield key[_PREFIX_BYTES:], full_value(stored, self._blobs)


class OverlaidRows:
    """Rows of a reader with others laid over them: another branch, another height, or unwritten changes."""

    def __init__(self, base: Rowlike, rows: Rows) -> None:
        """``rows`` may grow later if ``changed`` is called then."""
        self._base = base
        self._over = rows
        self._sorted: list[bytes] | None = None

    def changed(self) -> None:
        """The rows laid over were changed."""
        self._sorted = None

    def get(self, key: bytes) -> bytes | None:
        """The plain row, or ``None``."""
        if key in self._over:
            return self._over[key]
        return self._base.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The rows in the order of ``keys``."""
        over = self._over
        wanted = [key for key in keys if key not in over]
        found = dict(zip(wanted, self._base.get_many(wanted), strict=True)) if wanted else {}
        return [over[key] if key in over else found[key] for key in keys]

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False, limit: int = 1000) -> Page:
        """One page of rows with ``start <= key < stop``; it may hold more or fewer than ``limit``."""
        page = self._base.scan(start, stop, reverse=reverse, limit=limit)
        low, high = start, stop
        if page.resume is not None:
            low, high = (page.resume, stop) if reverse else (start, page.resume)
        over = self._over
        merged = {key: value for key, value in page.rows if key not in over}
        for key in self._between(low, high):
            value = over[key]
            if value is not None:
                merged[key] = value
        return Page(sorted(merged.items(), reverse=reverse), page.resume)

    def _between(self, low: bytes, high: bytes) -> list[bytes]:
        if self._sorted is None:
            self._sorted = sorted(self._over)
        return self._sorted[bisect_left(self._sorted, low) : bisect_left(self._sorted, high)]
