"""The writes of a block before they are flushed: staged over a state, undone call by call, seen by every later read.

Invariants:
    * The state below is only read. Nothing reaches it before the caller takes ``changes``.
    * ``undo_to(mark)`` leaves exactly what was staged when ``mark`` was taken, whatever happened since.
    * A read gives the newest staged write of the key, else the state's value. A scan merges both in key order.

A contract's keys are | u8 length of the address, 20 | address | u8 length of the field's name | name | map key |.
The system's own keys have a name in place of the address (``SYSTEM``), which no address can be: its length differs.
"""

from __future__ import annotations

from collections.abc import Iterator

from sortedcontainers import SortedDict

from ..errors import InvalidInputError
from ..limits import STATE_KEY_BYTES_MAX, STATE_NAMESPACE_BYTES_MAX
from ..state.api import ReadableState
from .codec import Address

__all__ = ["SYSTEM", "StagedState", "contract_prefix", "field_prefix", "namespace"]

_ABSENT = object()


def namespace(name: bytes) -> bytes:
    """The prefix of every key that belongs to ``name`` (1 to 64 bytes); no such prefix begins another one."""
    if not 1 <= len(name) <= STATE_NAMESPACE_BYTES_MAX:
        raise InvalidInputError(f"a namespace is 1 to {STATE_NAMESPACE_BYTES_MAX} bytes", found=name)
    return bytes([len(name)]) + name


SYSTEM = namespace(b"holdfast/contracts")


def contract_prefix(address: Address) -> bytes:
    """What every key of the contract at ``address`` begins with."""
    return namespace(bytes(address))


def field_prefix(name: str) -> bytes:
    """What every key of a field begins with, inside its contract. ``name`` is ASCII, at most 64 bytes."""
    raw = name.encode("ascii")
    return bytes([len(raw)]) + raw


class StagedState:
    """Writes over a state. Belongs to one thread."""

    def __init__(self, base: ReadableState) -> None:
        self._base = base
        self._staged: SortedDict[bytes, bytes | None] = SortedDict()
        self._undo: list[tuple[bytes, object]] = []

    def get(self, key: bytes) -> bytes | None:
        """The newest value, or ``None``. Raises what the state raises."""
        found = self._staged.get(key, _ABSENT)
        if found is _ABSENT:
            return self._base.get(key)
        assert found is None or isinstance(found, bytes)
        return found

    def put(self, key: bytes, value: bytes | None) -> None:
        """``value`` is staged; ``None`` removes. Nothing is read. Raises ``InvalidInputError`` for a bad key or value.

        Cost: O(log staged).
        """
        if not 1 <= len(key) <= STATE_KEY_BYTES_MAX:
            raise InvalidInputError(f"a key of the state is 1 to {STATE_KEY_BYTES_MAX} bytes, not {len(key)}")
        if value == b"":
            raise InvalidInputError("a value of the state has at least one byte")
        self._undo.append((key, self._staged.get(key, _ABSENT)))
        self._staged[key] = value

    def mark(self) -> int:
        """The present moment, for ``undo_to``."""
        return len(self._undo)

    def undo_to(self, mark: int) -> None:
        """Everything staged since ``mark`` is gone. Cost: O(writes since then)."""
        while len(self._undo) > mark:
            key, before = self._undo.pop()
            if before is _ABSENT:
                del self._staged[key]
            else:
                self._staged[key] = before

    def scan(
        self, prefix: bytes, *, start: bytes | None = None, stop: bytes | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) in key order or the reverse: keys with ``prefix`` and ``start <= key < stop``.

        Writing while it runs is not allowed: take what is needed first.
        """
        below = self._base.scan(prefix, start=start, stop=stop, reverse=reverse)
        low = prefix if start is None else max(prefix, start)
        ends = [end for end in (stop, _after(prefix)) if end is not None]
        high = min(ends) if ends else None
        if high is not None and low >= high:
            return iter(())
        return self._merge(below, self._staged.irange(low, high, inclusive=(True, False), reverse=reverse), reverse)

    def _merge(
        self, below: Iterator[tuple[bytes, bytes]], keys: Iterator[bytes], reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        row, key = next(below, None), next(keys, None)
        while row is not None or key is not None:
            if key is None or (row is not None and (row[0] > key if reverse else row[0] < key)):
                assert row is not None
                yield row
                row = next(below, None)
                continue
            if row is not None and row[0] == key:
                row = next(below, None)
            value = self._staged[key]
            if value is not None:
                yield key, value
            key = next(keys, None)

    def changes(self) -> dict[bytes, bytes | None]:
        """Every staged key with its last value (``None`` = removed), in key order."""
        return dict(self._staged)


def _after(prefix: bytes) -> bytes | None:
    """The least key above every key with ``prefix``; ``None`` if there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None
