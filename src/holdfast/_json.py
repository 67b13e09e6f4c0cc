"""JSON from others: nothing is decoded that is nested so deeply that a decoder could run out of stack.

Decoders stop at Python's recursion limit. A library in the same process may have raised that far above what the stack
holds (py-evm sets it to 100,000), and then ten kilobytes of ``[`` end the process.
"""

from __future__ import annotations

import re

__all__ = ["DEPTH_MAX", "check_depth"]

DEPTH_MAX = 64
"""Levels of arrays and objects that are accepted; no format that is read here needs ten."""

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
