"""Keccak, RLP and the root of a Merkle-Patricia trie, as far as blocks need them.

Invariants:
    * RLP is read strictly: one form for each value, every length within its list, nothing read recursively.
    * ``trie_root`` keeps no nodes: a value, or a map of them, goes in and a root comes out.

``rlp`` (pyrlp) decodes whole values and cannot put encoded slices together again, which is most of what is done here;
``trie`` (py-trie) is a database. Both stay out of the runtime; a test compares this module with ``rlp``.
Source: Ethereum yellow paper, appendices B (RLP), C (hex prefix) and D (trie).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ...errors import InvalidBlock

try:
    from eth_hash.auto import keccak as _keccak
except ImportError as exc:  # pragma: no cover - depends on the installation
    raise ImportError("the evm chain needs Keccak: install it with  pip install 'holdfast[evm]'") from exc

__all__ = [
    "EMPTY_LIST_HASH",
    "EMPTY_TRIE_ROOT",
    "Item",
    "encode_bytes",
    "encode_integer",
    "encode_list",
    "integer_bytes",
    "item_at",
    "keccak256",
    "list_items",
    "ordered_trie_root",
    "trie_root",
]

_LENGTH_BYTES_MAX = 8


def keccak256(data: bytes) -> bytes:
    """Keccak-256 of ``data``, the hash of Ethereum (not SHA3-256)."""
    digest: bytes = _keccak(data)
    return digest


# -- writing -----------------------------------------------------------------------------------------------------


def _prefix(length: int, base: int) -> bytes:
    if length < 56:
        return bytes((base + length,))
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((base + 55 + len(size),)) + size


def encode_bytes(value: bytes) -> bytes:
    """The RLP of a byte string."""
    if len(value) == 1 and value[0] < 0x80:
        return value
    return _prefix(len(value), 0x80) + value


def integer_bytes(value: int) -> bytes:
    """Big-endian without leading zeros; zero is empty."""
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


def encode_integer(value: int) -> bytes:
    """The RLP of a number that is not negative."""
    return encode_bytes(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def encode_list(encoded: Iterable[bytes]) -> bytes:
    """The RLP of a list whose items are encoded already."""
    payload = b"".join(encoded)
    return _prefix(len(payload), 0xC0) + payload


# -- reading -----------------------------------------------------------------------------------------------------


class Item(NamedTuple):
    """One RLP item inside a buffer: ``data[start:end]`` is all of it, ``data[payload:end]`` its content."""

    start: int
    payload: int
    end: int
    is_list: bool


def _bad(message: str, at: int) -> InvalidBlock:
    return InvalidBlock(f"the RLP is not valid: {message}", offset=at)


def item_at(data: bytes, at: int, limit: int) -> Item:
    """The item that begins at ``at``; it must end at or before ``limit``."""
    if at >= limit:
        raise _bad("an item is missing", at)
    first = data[at]
    if first < 0x80:
        return Item(at, at, at + 1, False)
    is_list = first >= 0xC0
    base = 0xC0 if is_list else 0x80
    length = first - base
    payload = at + 1
    if length > 55:
        width = length - 55
        payload += width
        raw = data[at + 1 : payload]
        if payload > limit or width > _LENGTH_BYTES_MAX or not raw or raw[0] == 0:
            raise _bad("a length is cut off or begins with zero", at)
        length = int.from_bytes(raw, "big")
        if length < 56:
            raise _bad("a short length is written in the long form", at)
    end = payload + length
    if end > limit:
        raise _bad("an item reaches beyond its list", at)
    if length == 1 and not is_list and data[payload] < 0x80:
        raise _bad("a single byte is written in the long form", at)
    return Item(at, payload, end, is_list)


def list_items(data: bytes, outer: Item | None = None) -> list[Item]:
    """The items of the list ``outer``, or of the list that all of ``data`` is."""
    if outer is None:
        outer = item_at(data, 0, len(data))
        if outer.end != len(data):
            raise _bad("bytes follow the item", outer.end)
    if not outer.is_list:
        raise _bad("a list was expected", outer.start)
    items = []
    at, end = outer.payload, outer.end
    while at < end:
        item = item_at(data, at, end)
        items.append(item)
        at = item.end
    return items


# -- trie --------------------------------------------------------------------------------------------------------

EMPTY_TRIE_ROOT = keccak256(b"\x80")
EMPTY_LIST_HASH = keccak256(b"\xc0")

_Pair = tuple[bytes, bytes]


def _nibbles(key: bytes) -> bytes:
    return bytes(half for byte in key for half in (byte >> 4, byte & 15))


def _hex_prefix(nibbles: bytes, flag: int) -> bytes:
    if len(nibbles) & 1:
        nibbles = bytes((flag | 1,)) + nibbles
    else:
        nibbles = bytes((flag, 0)) + nibbles
    return bytes(nibbles[at] << 4 | nibbles[at + 1] for at in range(0, len(nibbles), 2))


def _reference(node: bytes) -> bytes:
    return node if len(node) < 32 else b"\xa0" + keccak256(node)


def _node(pairs: Sequence[_Pair], depth: int) -> bytes:
    """The encoded node over sorted ``pairs`` that share their first ``depth`` nibbles."""
    first, value = pairs[0]
    if len(pairs) == 1:
        return encode_list((encode_bytes(_hex_prefix(first[depth:], 2)), encode_bytes(value)))
    last = pairs[-1][0]
    shared = depth
    while shared < len(first) and first[shared] == last[shared]:
        shared += 1
    if shared > depth:
        below = _reference(_node(pairs, shared))
        return encode_list((encode_bytes(_hex_prefix(first[depth:shared], 0)), below))
    here = b""
    start = 0
    if len(first) == depth:
        here, start = value, 1
    children = [b"\x80"] * 16
    while start < len(pairs):
        nibble = pairs[start][0][depth]
        stop = start + 1
        while stop < len(pairs) and pairs[stop][0][depth] == nibble:
            stop += 1
        children[nibble] = _reference(_node(pairs[start:stop], depth + 1))
        start = stop
    return encode_list((*children, encode_bytes(here)))


def trie_root(values: Mapping[bytes, bytes]) -> bytes:
    """The root of the trie that maps each key to its value; values are not empty."""
    if not values:
        return EMPTY_TRIE_ROOT
    return keccak256(_node(sorted((_nibbles(key), value) for key, value in values.items()), 0))


def ordered_trie_root(values: Sequence[bytes]) -> bytes:
    """The root over a list: each value stands under the RLP of its position."""
    return trie_root({encode_integer(position): value for position, value in enumerate(values)})
