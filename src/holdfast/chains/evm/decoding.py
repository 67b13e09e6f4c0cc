"""From what files and nodes give (JSON-RPC objects, RLP blocks, a genesis file) to blocks.

Invariants:
    * A block from JSON has the hash that its source states, or it is refused: nothing was lost on the way.
    * ``body`` is put together from the same bytes that the roots are made of; see ``chain.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256

import msgspec

from ..._json import check_depth
from ...errors import InvalidBlock
from ...types import ZERO_HASH, Block
from ..importing import Candidate
from .chain import decode_raw_block
from .codec import (
    EMPTY_LIST_HASH,
    EMPTY_TRIE_ROOT,
    encode_bytes,
    encode_integer,
    encode_list,
    keccak256,
    list_items,
    trie_root,
)
from .header import data_field, encode_header_json
from .transactions import encode_transaction_json, encode_withdrawal_json, objects

__all__ = ["block_from_json", "block_from_rlp", "genesis_block", "header_block_from_json", "parse_json"]

Json = Mapping[str, object]


def parse_json(data: bytes) -> object:
    """The JSON value in ``data``. Raises ``InvalidBlock``."""
    try:
        check_depth(data)
        return msgspec.json.decode(data)
    except ValueError as exc:
        raise InvalidBlock("this is not JSON", found=data[:60].decode("ascii", "replace")) from exc


def header_block_from_json(source: Json) -> Block:
    """A block of which only the header is taken; its hash must be the stated one."""
    block = decode_raw_block(encode_header_json(source), None)
    stated = data_field(source, "hash", 32)
    if block.hash != stated:
        raise InvalidBlock(
            "the header does not hash to the stated hash", found=block.hash, hash=stated, height=block.height
        )
    return block


def block_from_json(
    source: Json, *, receipts: Sequence[Json] | None = None, uncles: Sequence[Json] | None = None
) -> Candidate:
    """The block of an ``eth_getBlockBy...`` answer with whole transactions.

    ``uncles`` are the header objects of the ommers that it names; needed if there are any. ``receipts`` are kept as
    the block's extra part.
    """
    header = header_block_from_json(source)
    named = source.get("uncles") or []
    ommers = [header_block_from_json(uncle) for uncle in uncles or ()]
    if not isinstance(named, list) or [f"0x{item.hash.hex()}" for item in ommers] != named:
        raise InvalidBlock(
            "the headers of the uncles do not belong to the block", hash=header.hash, found=len(ommers), expected=named
        )
    transactions = [
        encode_bytes(raw) if raw[0] < 0x80 else raw
        for raw in map(encode_transaction_json, objects(source.get("transactions"), "transactions"))
    ]
    parts = [encode_list(transactions), encode_list(item.header for item in ommers)]
    if source.get("withdrawalsRoot") is not None:
        parts.append(encode_list(map(encode_withdrawal_json, objects(source.get("withdrawals"), "withdrawals"))))
    extra = None if receipts is None else msgspec.json.encode(receipts, order="sorted")
    return Candidate(_with(header, encode_list(parts), extra), tuple(ommers))


def _with(header: Block, body: bytes, extra: bytes | None) -> Block:
    return Block(
        header.hash,
        header.parent,
        header.height,
        header.header,
        body,
        header.time,
        header.work,
        header.producer,
        extra,
    )


def block_from_rlp(data: bytes) -> Candidate:
    """The block in ``data``: an RLP list of header, transactions, ommers and, since Shanghai, withdrawals."""
    parts = list_items(data)
    if len(parts) not in (3, 4) or not all(part.is_list for part in parts):
        raise InvalidBlock("an RLP block is a list of three or four lists", found=len(parts))
    header = data[parts[0].start : parts[0].end]
    body = encode_list((data[parts[1].start :],))
    ommers = tuple(decode_raw_block(data[item.start : item.end], None) for item in list_items(data, parts[2]))
    return Candidate(decode_raw_block(header, body), ommers)


# -- genesis -----------------------------------------------------------------------------------------------------

_BASE_FEE = 10**9
_DEFAULT_GAS_LIMIT = 4_712_388
_DEFAULT_DIFFICULTY = 131_072


def _number(value: object, default: int = 0) -> int:
    """A number of a genesis file: JSON number, decimal or hexadecimal text."""
    if value is None:
        return default
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str):
        try:
            number = int(value, 16 if value[:2].lower() == "0x" else 10)
        except ValueError as exc:
            raise InvalidBlock("a genesis file has a number that is none", found=value[:80]) from exc
        if number >= 0:
            return number
    raise InvalidBlock("a genesis file has a number that is none", found=repr(value)[:80])


def _hex(value: object, default: bytes = b"") -> bytes:
    if value is None:
        return default
    if not isinstance(value, str):
        raise InvalidBlock("a genesis file has a value that is not hexadecimal", found=repr(value)[:80])
    try:
        return bytes.fromhex(value[2:] if value[:2].lower() == "0x" else value)
    except ValueError as exc:
        raise InvalidBlock("a genesis file has a value that is not hexadecimal", found=value[:80]) from exc


def _object(value: object, what: str) -> Json:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidBlock(f"the {what} of a genesis file is not an object")
    return value


def _account(entry: Json) -> bytes:
    slots = {
        keccak256(_hex(slot).rjust(32, b"\0")): encode_bytes(_hex(value).lstrip(b"\0"))
        for slot, value in _object(entry.get("storage"), "storage").items()
        if any(_hex(value))
    }
    return encode_list(
        (
            encode_integer(_number(entry.get("nonce"))),
            encode_integer(_number(entry.get("balance"))),
            encode_bytes(trie_root(slots)),
            encode_bytes(keccak256(_hex(entry.get("code")))),
        )
    )


def genesis_block(source: Json) -> Block:
    """The first block of a genesis file in geth's form (``config``, ``alloc`` and header fields)."""
    config = _object(source.get("config"), "config")
    state = {
        keccak256(_hex(address).rjust(20, b"\0")): _account(_object(entry, "account"))
        for address, entry in _object(source.get("alloc"), "alloc").items()
    }
    time = _number(source.get("timestamp"))

    def active(fork: str) -> bool:
        start = config.get(fork)
        return start is not None and _number(start) <= time

    fields = [
        encode_bytes(_hex(source.get("parentHash"), ZERO_HASH)),
        encode_bytes(EMPTY_LIST_HASH),
        encode_bytes(_hex(source.get("coinbase"), bytes(20))),
        encode_bytes(trie_root(state)),
        encode_bytes(EMPTY_TRIE_ROOT),
        encode_bytes(EMPTY_TRIE_ROOT),
        encode_bytes(bytes(256)),
        encode_integer(_number(source.get("difficulty"), _DEFAULT_DIFFICULTY)),
        encode_integer(_number(source.get("number"))),
        encode_integer(_number(source.get("gasLimit"), _DEFAULT_GAS_LIMIT)),
        encode_integer(_number(source.get("gasUsed"))),
        encode_integer(time),
        encode_bytes(_hex(source.get("extraData"))),
        encode_bytes(_hex(source.get("mixHash"), ZERO_HASH)),
        encode_bytes(_number(source.get("nonce")).to_bytes(8, "big")),
    ]
    if config.get("londonBlock") is not None and _number(config["londonBlock"]) == 0:
        fields.append(encode_integer(_number(source.get("baseFeePerGas"), _BASE_FEE)))
    if active("shanghaiTime"):
        fields.append(encode_bytes(EMPTY_TRIE_ROOT))
    if active("cancunTime"):
        fields.append(encode_integer(_number(source.get("blobGasUsed"))))
        fields.append(encode_integer(_number(source.get("excessBlobGas"))))
        fields.append(encode_bytes(ZERO_HASH))
    if active("pragueTime"):
        fields.append(encode_bytes(sha256().digest()))
    parts = [encode_list(()), encode_list(())]
    if active("shanghaiTime"):
        parts.append(encode_list(()))
    return decode_raw_block(encode_list(fields), encode_list(parts))
