"""JSON from others: nothing is decoded or encoded that is nested so deeply that this could run out of stack.

Decoders and encoders stop at Python's recursion limit. A library in the same process may have raised that far above
what the stack holds (py-evm sets it to 100,000), and then ten kilobytes of ``[`` end the process.
"""

from __future__ import annotations

import re
import sys
from typing import TypeVar

__all__ = ["DEPTH_MAX", "check_depth", "encodable"]

DEPTH_MAX = 64
"""Levels of arrays and objects that are accepted; no format that is read here needs ten."""

_LIMIT_SAFE = 5_000
"""Python's recursion limit up to which an encoder ends with ``RecursionError``, on the stack of any thread."""
_T = TypeVar("_T")
_OTHERS = bytes(byte for byte in range(256) if byte not in b'[]{}"')
_ARRAYS = bytes.maketrans(b"{}", b"[]")
_TEXT = re.compile(rb'"[^"]*"')


def check_depth(data: bytes, levels: int = DEPTH_MAX) -> None:
    """A decoder of ``data`` meets at most ``levels`` nested arrays and objects; else ``ValueError``.

    It is exact, also where ``data`` ends too early. Other faults are left to the decoder. Cost: a few passes over it.
    """
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    rest = _TEXT.sub(b"", data.translate(_ARRAYS, _OTHERS).replace(b'""', b""))
    rest = rest.partition(b'"')[0]  # behind it is text that does not end
    rest += b"]" * (rest.count(b"[") - rest.count(b"]"))
    for _ in range(levels):
        if not rest:
            return
        rest = rest.replace(b"[]", b"")  # the innermost of each branch, so one level
    if b"[]" in rest:
        raise ValueError(f"the JSON is nested more than {levels} levels deep")


def encodable(value: _T) -> _T:
    """``value``, which no encoder can run out of stack for. Raises ``ValueError``, or the encoder ``RecursionError``.

    Costs next to nothing unless somebody raised the recursion limit.
    """
    if sys.getrecursionlimit() <= _LIMIT_SAFE:
        return value
    items: list[object] = [value]
    for _ in range(_LIMIT_SAFE):
        inner: list[object] = []
        for item in items:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, (list, tuple)):
                inner.extend(item)
        if not inner:
            return value
        items = inner
    raise ValueError(f"the value is nested more than {_LIMIT_SAFE} levels deep")
