"""The body of a Bitcoin block: a count and transactions, split only as far as their ids need.

Invariants:
    * No length field is believed: each is compared with the bytes that are there before anything is skipped or looped.
    * An id is SHA-256d of the transaction without its witness, so legacy and segregated-witness forms agree.
    * ``merkle_root`` refuses a level with two equal neighbours, which CVE-2012-2459 uses to give two bodies one root.

Witness data is not under the Merkle root of the header and is not checked.
Source: BIP 144; ``src/consensus/merkle.cpp`` of Bitcoin Core.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from ...errors import InvalidBlock
from .header import sha256d

__all__ = ["merkle_root", "transaction_ids"]

_INPUT_BYTES_MIN = 41
_OUTPUT_BYTES_MIN = 9
_TRANSACTION_BYTES_MIN = 60
_WITNESS = 1
_EXTENSION = 8
"""Litecoin marks transactions of its extension blocks (LIP 0002) with this bit beside the witness bit."""


def _truncated(at: int) -> InvalidBlock:
    return InvalidBlock("a transaction reaches beyond the end of the block", offset=at)


def _compact(data: bytes, at: int) -> tuple[int, int]:
    """A compact size at ``at`` and the offset after it; a longer form than needed is refused."""
    try:
        first = data[at]
    except IndexError as exc:
        raise _truncated(at) from exc
    if first < 0xFD:
        return first, at + 1
    width = 2 << (first - 0xFD)
    raw = data[at + 1 : at + 1 + width]
    if len(raw) != width:
        raise _truncated(at)
    value = int.from_bytes(raw, "little")
    if value < (0xFD, 0x1_0000, 0x1_0000_0000)[first - 0xFD]:
        raise InvalidBlock("a compact size is longer than it needs to be", offset=at, found=value)
    return value, at + 1 + width


def _count(data: bytes, at: int, least: int, what: str) -> tuple[int, int]:
    """A count of things of at least ``least`` bytes each; refused if so many cannot be there."""
    count, after = _compact(data, at)
    if count * least > len(data) - after:
        raise InvalidBlock(f"a block claims more {what} than it has bytes for", offset=at, found=count)
    return count, after


def _skip_inputs_and_outputs(data: bytes, at: int) -> int:
    inputs, at = _count(data, at, _INPUT_BYTES_MIN, "inputs")
    for _ in range(inputs):
        length, at = _compact(data, at + 36)
        at += length + 4
    outputs, at = _count(data, at, _OUTPUT_BYTES_MIN, "outputs")
    for _ in range(outputs):
        length, at = _compact(data, at + 8)
        at += length
    return at


def _skip_witness(data: bytes, at: int) -> int:
    items, at = _count(data, at, 1, "witness items")
    for _ in range(items):
        length, at = _compact(data, at)
        at += length
    return at


def _marked_transaction(data: bytes, start: int, *, extensions: bool) -> tuple[bytes, int, bool]:
    """Id, end and extension mark of a transaction whose input count is the marker zero (BIP 144)."""
    flags = data[start + 5]
    if flags & ~(_WITNESS | _EXTENSION if extensions else _WITNESS) or flags == 0:
        raise InvalidBlock("a transaction has unknown flags", offset=start, found=flags)
    inputs, _ = _count(data, start + 6, _INPUT_BYTES_MIN, "inputs")
    middle = at = _skip_inputs_and_outputs(data, start + 6)
    if flags & _WITNESS:
        for _ in range(inputs):
            at = _skip_witness(data, at)
    if flags & _EXTENSION:
        if data[at : at + 1] != b"\0":
            raise InvalidBlock("an extension transaction inside a block carries its own data", offset=start)
        at += 1
    end = at + 4
    if end > len(data):
        raise _truncated(start)
    return sha256d(data[start : start + 4] + data[start + 6 : middle] + data[at:end]), end, bool(flags & _EXTENSION)


def transaction_ids(body: bytes, *, extensions: bool = False) -> list[bytes]:
    """The ids of the transactions in ``body``, in order; the body holds exactly these and nothing else.

    ``extensions`` allows what Litecoin adds: a last transaction marked so, and an extension block after it.
    """
    count, at = _count(body, 0, _TRANSACTION_BYTES_MIN, "transactions")
    if count == 0:
        raise InvalidBlock("a block has no transactions")
    size = len(body)
    ids = []
    extended = False
    for _ in range(count):
        start = at
        if start + _TRANSACTION_BYTES_MIN > size:
            raise _truncated(start)
        if body[start + 4] == 0:
            found, at, extended = _marked_transaction(body, start, extensions=extensions)
            ids.append(found)
        else:
            at = _skip_inputs_and_outputs(body, start + 4) + 4
            if at > size:
                raise _truncated(start)
            ids.append(sha256(sha256(body[start:at]).digest()).digest())
    if at != size and not extended:
        raise InvalidBlock("bytes follow the last transaction of a block", offset=at, found=size - at, expected=0)
    return ids


def merkle_root(ids: Sequence[bytes]) -> bytes:
    """The Merkle root over ``ids`` (at least one). Two equal neighbours on any level are refused."""
    level = list(ids)
    while len(level) > 1:
        pairs = [level[at] + level[at + 1] for at in range(0, len(level) - 1, 2)]
        for pair in pairs:
            if pair[:32] == pair[32:]:
                raise InvalidBlock("the Merkle tree has two equal neighbours (CVE-2012-2459)", found=pair[:32])
        if len(level) & 1:
            pairs.append(level[-1] * 2)
        level = [sha256(sha256(pair).digest()).digest() for pair in pairs]
    return level[0]
