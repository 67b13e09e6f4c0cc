"""Rows by the thousand: the inner loops of commits and flushes, native where the kernel is, else in Python.

Invariant: both give the same bytes and the same errors; the choice changes the speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

from .._kernel import KernelModule, kernel
from .api import Rows
from .history import encode_old, history_key
from .merge import PureMerge, RowMerge
from .rows import decode_row
from .tables import HISTORY

__all__ = ["Bulk", "NativeBulk", "PureBulk", "bulk"]

Node = tuple[int, bytes | None, Any]


class Bulk(Protocol):
    """What is done to many rows at once."""

    def merge(self) -> RowMerge:
        """An empty one."""

    def decode(self, keys: list[bytes], stored: list[bytes | None]) -> list[bytes | None]:
        """The plain values of stored rows. Raises ``CorruptionError`` for the first one that does not verify."""

    def undo_parts(self, rows: Rows, part_bytes_max: int) -> Sequence[tuple[int, bytes]]:
        """(rows, their bytes) of the parts of a block's undo, in order of the keys; see ``undo``."""

    def history(self, undo: Rows, prefix: bytes, height: int, into: Rows) -> None:
        """``into`` has the history rows of a block with this undo, for the keys that begin with ``prefix``."""

    def publish(self, nodes: dict[bytes, Node], rows: Rows, version: int) -> int:
        """``nodes`` has the rows on top, as of ``version``; the bytes of their keys and values."""


class PureBulk:
    """The twin in Python."""

    def merge(self) -> RowMerge:
        return PureMerge()

    def decode(self, keys: list[bytes], stored: list[bytes | None]) -> list[bytes | None]:
        return [None if row is None else decode_row(key, row) for key, row in zip(keys, stored, strict=True)]

    def undo_parts(self, rows: Rows, part_bytes_max: int) -> Sequence[tuple[int, bytes]]:
        parts: list[tuple[int, bytes]] = []
        body = bytearray()
        count = 0
        for key in sorted(rows):
            if len(body) >= part_bytes_max:
                parts.append((count, bytes(body)))
                body = bytearray()
                count = 0
            body += len(key).to_bytes(2, "big")
            body += key
            value = rows[key]
            if value is None:
                body.append(0)
            else:
                body.append(1)
                body += len(value).to_bytes(4, "big")
                body += value
            count += 1
        parts.append((count, bytes(body)))
        return parts

    def history(self, undo: Rows, prefix: bytes, height: int, into: Rows) -> None:
        skip = len(prefix)
        for key, value in undo.items():
            if key.startswith(prefix):
                into[history_key(key[skip:], height)] = encode_old(value)

    def publish(self, nodes: dict[bytes, Node], rows: Rows, version: int) -> int:
        get = nodes.get
        size = 0
        for key, value in rows.items():
            nodes[key] = (version, value, get(key))
            size += len(key) if value is None else len(key) + len(value)
        return size


class NativeBulk:
    """The kernel's."""

    def __init__(self, module: KernelModule) -> None:
        self._module = module
        self.merge = module.RowMerge
        self.undo_parts = module.undo_parts
        self.publish = module.publish_rows

    def decode(self, keys: list[bytes], stored: list[bytes | None]) -> list[bytes | None]:
        try:
            return self._module.decode_rows(keys, stored)
        except ValueError as error:
            number = error.args[0]
            row = stored[number]
            assert row is not None
            decode_row(keys[number], row)  # raises, and says which
            raise

    def history(self, undo: Rows, prefix: bytes, height: int, into: Rows) -> None:
        self._module.history_rows(undo, prefix, HISTORY.prefix, height, into)


@cache
def bulk() -> Bulk:
    """The one that this process uses."""
    module = kernel()
    return PureBulk() if module is None else NativeBulk(module)
