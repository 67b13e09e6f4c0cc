"""JSON from others: nothing is decoded that is nested so deeply that a decoder could run out of stack.

Decoders stop at Python's recursion limit. A library in the same process may have raised that far above what the stack
holds (py-evm sets it to 100,000), and then ten kilobytes of ``[`` end the process.
"""

from __future__ import annotations

import re

__all__ = ["DEPTH_MAX", "check_depth"]

DEPTH_MAX = 64
"""Levels of arrays and objects that are accepted; no format that is read here needs ten."""

_STRUCTURE = b'[]{}"'
_OTHERS = bytes(byte for byte in range(256) if byte not in _STRUCTURE)
_TEXT = re.compile(rb'"[^"]*"')


def check_depth(data: bytes) -> None:
    """``data``, if it is JSON, has at most ``DEPTH_MAX`` levels; else ``ValueError``. Cost: a few passes over it."""
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    rest = _TEXT.sub(b"", data.translate(None, _OTHERS).replace(b'""', b""))
    for _ in range(DEPTH_MAX):
        if not rest:
            return
        rest = rest.replace(b"[]", b"").replace(b"{}", b"")
    if len(rest) > DEPTH_MAX:  # fewer are no danger, and what is wrong with them the decoder says best
        raise ValueError(f"the JSON is nested more than {DEPTH_MAX} levels deep")
