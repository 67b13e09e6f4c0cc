"""How the state is read and written: ordered bytes to bytes, with a root.

Keys are 1 to 400 bytes (with namespace), values 1 byte to 64 MiB. Order is bytewise. An absent key is ``None``; empty
keys and empty values are refused, because a proof cannot hold them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

__all__ = ["MutableState", "ReadableState"]


class ReadableState(Protocol):
    """The state at one block, or as of each call."""

    def get(self, key: bytes) -> bytes | None:
        """The value, or ``None``."""

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values in the order of ``keys``, all of one version."""

    def __getitem__(self, key: bytes) -> bytes:
        """The value. Raises ``NotFoundError`` (a ``KeyError``)."""

    def __contains__(self, key: object) -> bool:
        """True if the key has a value."""

    def scan(
        self, prefix: bytes = b"", *, start: bytes | None = None, stop: bytes | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) in key order, or in the reverse: keys with ``prefix`` and ``start <= key < stop``.

        Reads page by page. In a draft, writes made meanwhile may or may not be seen; the rest is of one version.
        """


class MutableState(ReadableState, Protocol):
    """The state of a block being built: it reads its own writes. Nothing is stored before the commit."""

    def __setitem__(self, key: bytes, value: bytes) -> None:
        """``key`` has ``value``. Raises ``InvalidInputError`` or ``LimitExceeded``; nothing is changed then."""

    def __delitem__(self, key: bytes) -> None:
        """``key`` has no value; it may be absent already."""

    def update(self, changes: Mapping[bytes, bytes | None]) -> None:
        """All of ``changes`` at once (``None`` removes), or none if one of them is refused."""
