"""Bounded decompression: the one loop that reads a zstd stream which may lie about its length.

``max_output_size`` of the library is no bound: a frame that declares its size wins over it. Only reading in steps is.
"""

from __future__ import annotations

import zstandard

__all__ = ["read_bounded"]

_STEP_BYTES = 1 << 20


def read_bounded(decompressor: zstandard.ZstdDecompressor, stored: bytes | memoryview, raw_bytes: int) -> bytes:
    """What ``stored`` holds, and at most one byte more than ``raw_bytes``: then it is longer than it says.

    Raises ``zstandard.ZstdError`` for what does not decode. The window is bounded by how ``decompressor`` was made.
    """
    pieces: list[bytes] = []
    left = raw_bytes + 1
    with decompressor.stream_reader(stored) as reader:
        while left > 0:
            piece = reader.read(min(left, _STEP_BYTES))
            if not piece:
                break
            pieces.append(piece)
            left -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
