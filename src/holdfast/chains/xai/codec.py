"""Documents of the xai chain: how blocks and transactions are read, and the hashes that the original gave them.

Invariants:
    * The bytes of a block's document are kept as they came; its hash is a function of the values in them.
    * Every hash is the original's of the time of seed 000: SHA-256 of JSON with sorted keys, ``", "`` and ``": "``
      between parts, ASCII only. A block's hash covers its transactions whole but not its difficulty; a transaction's id
      covers eight of its fields.
    * NaN, Infinity, keys that are no text, and documents nested too deeply are refused before anything is believed.

A document holds floats (times, and amounts of the original): they are read only to be written again as they were.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from threading import Lock
from typing import Any, Final, NoReturn, TypeGuard

import msgspec

from ..._json import DEPTH_MAX, check_depth, encodable
from ...errors import InvalidBlock, LimitExceeded
from ...limits import HEIGHT_MAX
from ...types import ZERO_HASH
from .amounts import units_of

__all__ = [
    "ADDRESS_BYTES_MAX",
    "BLOCK_BYTES_MAX",
    "COINBASE",
    "DIFFICULTY_MAX",
    "ITEM_DEPTH_MAX",
    "TRANSACTION_DEPTH_MAX",
    "XaiBlock",
    "XaiTransaction",
    "block_hash",
    "block_preimage",
    "dump",
    "encode_document",
    "is_name",
    "merkle_root",
    "parse_block",
    "parse_json",
    "parse_transaction",
    "read_block",
    "txid_of",
]

COINBASE: Final = "COINBASE"
ADDRESS_BYTES_MAX: Final = 128
TXID_BYTES_MAX: Final = 128
BLOCK_BYTES_MAX: Final = 64 * 1024 * 1024
DIFFICULTY_MAX: Final = 63
"""Leading hex zeros; with the block's work at 16 to this power it stays below the store's bound."""
TIME_MAX: Final = 2**40
NONCE_MAX: Final = 2**63 - 1
INPUTS_MAX: Final = 10_000
ITEM_DEPTH_MAX: Final = DEPTH_MAX - 3
"""Levels of a block, and of anything beside the chain: the files that hold it do so three levels further down."""
TRANSACTION_DEPTH_MAX: Final = ITEM_DEPTH_MAX - 2
_HEX: Final = frozenset("0123456789abcdef")
_ID_FIELDS: Final = ("sender", "recipient", "amount", "fee", "timestamp", "nonce", "tx_type", "metadata")
_KEPT_BYTES_MAX: Final = 8 * 1024 * 1024
_KEPT_BLOCKS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class XaiTransaction:
    """A transaction whose fields have their types and ranges; amounts in units of 10^-8.

    ``inputs`` are the outputs it names as (transaction id, number), ``None`` where the ledger chooses the oldest.
    """

    txid: str
    sender: str
    recipient: str
    amount: int
    fee: int
    nonce: int | None
    inputs: tuple[tuple[str, int], ...] | None
    document: Mapping[str, Any]

    @property
    def is_coinbase(self) -> bool:
        """Whether it makes money instead of moving it."""
        return self.sender == COINBASE


@dataclass(frozen=True, slots=True)
class XaiBlock:
    """A block whose fields have their types and ranges, with the hash computed from its values."""

    hash: bytes
    parent: bytes
    height: int
    time: int
    difficulty: int
    merkle_root: str
    transactions: tuple[XaiTransaction, ...]
    document: Mapping[str, Any]
    body: bytes

    @property
    def miner(self) -> str | None:
        """The recipient of the first transaction if that is a coinbase."""
        first = self.transactions[0] if self.transactions else None
        return first.recipient if first is not None and first.is_coinbase else None


# -- JSON ------------------------------------------------------------------------------------------------------------


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)
"""Reads JSON and refuses NaN and Infinity."""
_encode: Final = json.JSONEncoder(sort_keys=True, allow_nan=False).encode
_encode_tight: Final = json.JSONEncoder(sort_keys=True, allow_nan=False, separators=(",", ":")).encode


def parse_json(data: bytes, what: str) -> Any:
    """The value of ``data``. Raises ``InvalidBlock`` for what is not JSON in UTF-8, or deeper than an item may be."""
    try:
        check_depth(data, ITEM_DEPTH_MAX)
        return DECODER.decode(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidBlock(f"{what} is not JSON: {error}") from error


def dump(value: object, what: str = "the document") -> str:
    """JSON as the original writes it: sorted keys, ASCII. Raises ``InvalidBlock`` for what JSON does not have."""
    try:
        return _encode(encodable(value))
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidBlock(f"{what} cannot be written as JSON: {error}") from error


def dump_indented(value: object, margin: str = "", what: str = "the document") -> str:
    """As ``dump``, with an indent of two; every line but the first begins with ``margin``."""
    try:
        text = _encode(encodable(value))
        try:
            text = msgspec.json.format(text, indent=2)
        except msgspec.DecodeError:  # it does not know half a pair of surrogates
            text = json.dumps(value, sort_keys=True, allow_nan=False, indent=2)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidBlock(f"{what} cannot be written as JSON: {error}") from error
    return text.replace("\n", "\n" + margin) if margin else text


def _check_keys(value: object, what: str) -> None:
    """Keys that are no text sort otherwise once they were read back: every hash over them would change."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            for key in item:
                if type(key) is not str:
                    raise InvalidBlock(f"{what} has a key that is not text", found=repr(key)[:80])
            todo.extend(item.values())
        elif isinstance(item, (list, tuple)):
            todo.extend(item)


def encode_document(value: object, what: str = "the document", *, levels: int = ITEM_DEPTH_MAX) -> bytes:
    """The bytes under which a document that came as a value is kept. Raises ``InvalidBlock``."""
    try:
        text = _encode_tight(encodable(value))
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidBlock(f"{what} cannot be written as JSON: {error}") from error
    _check_keys(value, what)
    data = text.encode("ascii")
    try:
        check_depth(data, levels)
    except ValueError as error:
        raise InvalidBlock(f"{what} is nested too deeply: {error}") from error
    return data


# -- hashes ----------------------------------------------------------------------------------------------------------


def txid_of(transaction: Mapping[str, Any]) -> str:
    """The id of a transaction: 64 hex digits over eight of its fields."""
    fields = {name: transaction.get(name) for name in _ID_FIELDS}
    if fields["tx_type"] is None:
        fields["tx_type"] = "normal"
    if fields["metadata"] is None:
        fields["metadata"] = {}
    return sha256(dump(fields, "a transaction").encode("ascii")).hexdigest()


def merkle_root(txids: Sequence[str]) -> str:
    """Pairs of ids, as text, hashed until one is left; an odd one pairs with itself, none gives SHA-256 of nothing."""
    if not txids:
        return sha256(b"").hexdigest()
    level = list(txids)
    while len(level) > 1:
        if len(level) % 2:
            level.append(level[-1])
        pairs = zip(level[::2], level[1::2], strict=True)
        level = [sha256((left + right).encode("utf-8", "surrogatepass")).hexdigest() for left, right in pairs]
    return level[0]


def block_preimage(document: Mapping[str, Any]) -> str:
    """The text whose SHA-256 is the block's hash. The difficulty is not in it."""
    return dump(
        {
            "index": document["index"],
            "timestamp": document["timestamp"],
            "transactions": document["transactions"],
            "previous_hash": document["previous_hash"],
            "merkle_root": document["merkle_root"],
            "nonce": document["nonce"],
        },
        "a block",
    )


def block_hash(document: Mapping[str, Any]) -> bytes:
    """The 32 bytes of the block's hash."""
    return sha256(block_preimage(document).encode("ascii")).digest()


# -- fields ----------------------------------------------------------------------------------------------------------


def _field(document: Mapping[str, Any], name: str, what: str) -> Any:
    try:
        return document[name]
    except KeyError:
        raise InvalidBlock(f"{what} lacks the field '{name}'") from None


def _whole(document: Mapping[str, Any], name: str, most: int, what: str) -> int:
    value = _field(document, name, what)
    if type(value) is not int or not 0 <= value <= most:
        raise InvalidBlock(f"'{name}' of {what} is not a whole number in range", found=str(value)[:80], limit=most)
    return value


def _time(document: Mapping[str, Any], what: str) -> float:
    value = _field(document, "timestamp", what)
    if type(value) not in (int, float) or not 0 <= value <= TIME_MAX:  # NaN neither
        raise InvalidBlock(f"'timestamp' of {what} is not a time in seconds since 1970", found=str(value)[:80])
    return float(value)


def is_name(value: object, most: int = ADDRESS_BYTES_MAX) -> TypeGuard[str]:
    """Whether it is printable text of 1 to ``most`` bytes in UTF-8: an address, or a transaction's id."""
    # No surrogate is printable, so there are such bytes.
    return type(value) is str and value != "" and value.isprintable() and len(value.encode("utf-8")) <= most


def _text(document: Mapping[str, Any], name: str, most: int, what: str) -> str:
    value = _field(document, name, what)
    if is_name(value, most):
        return value
    raise InvalidBlock(f"'{name}' of {what} is not printable text of 1 to {most} bytes", found=repr(value)[:80])


def _digest(value: object, name: str, what: str) -> bytes:
    if type(value) is not str or len(value) != 64 or not _HEX.issuperset(value):
        raise InvalidBlock(f"'{name}' of {what} is not 64 lower-case hex digits", found=repr(value)[:80])
    return bytes.fromhex(value)


def _inputs(document: Mapping[str, Any], what: str) -> tuple[tuple[str, int], ...] | None:
    value = document.get("inputs")
    if value is None:
        return None
    if type(value) is not list or not value:
        raise InvalidBlock(f"'inputs' of {what} is not a list of outputs", found=type(value).__name__)
    if len(value) > INPUTS_MAX:
        raise LimitExceeded(f"{what} has too many inputs", found=len(value), limit=INPUTS_MAX)
    found = []
    for item in value:
        if type(item) is not dict:
            raise InvalidBlock(f"an input of {what} is not an object", found=type(item).__name__)
        found.append((_text(item, "txid", TXID_BYTES_MAX, what), _whole(item, "vout", 2**32 - 1, what)))
    if len(set(found)) != len(found):
        raise InvalidBlock(f"{what} spends the same output twice")
    return tuple(found)


def parse_transaction(document: object, what: str = "a transaction") -> XaiTransaction:
    """The transaction of a decoded document; its id is taken as it stands. Raises ``InvalidBlock``."""
    if not isinstance(document, Mapping):
        raise InvalidBlock(f"{what} is not an object", found=type(document).__name__)
    nonce = document.get("nonce")
    if nonce is not None:
        _whole(document, "nonce", NONCE_MAX, what)
    _time(document, what)
    return XaiTransaction(
        txid=_text(document, "txid", TXID_BYTES_MAX, what),
        sender=_text(document, "sender", ADDRESS_BYTES_MAX, what),
        recipient=_text(document, "recipient", ADDRESS_BYTES_MAX, what),
        amount=units_of(_field(document, "amount", what), "amount"),
        fee=units_of(document.get("fee", 0), "fee"),
        nonce=nonce,
        inputs=_inputs(document, what),
        document=document,
    )


def parse_block(body: bytes) -> XaiBlock:
    """The block of a document's bytes. The rules of the chain are not looked at. Raises ``InvalidBlock``."""
    if len(body) > BLOCK_BYTES_MAX:
        raise LimitExceeded("the document of a block is too long", found=len(body), limit=BLOCK_BYTES_MAX)
    document = parse_json(body, "the document of a block")
    what = "a block"
    if type(document) is not dict:
        raise InvalidBlock(f"{what} is not an object", found=type(document).__name__)
    height = _whole(document, "index", HEIGHT_MAX, what)
    what = f"block {height}"
    transactions = _field(document, "transactions", what)
    if type(transactions) is not list:
        raise InvalidBlock(f"'transactions' of {what} is not a list", found=type(transactions).__name__)
    previous = _field(document, "previous_hash", what)
    _digest(_field(document, "merkle_root", what), "merkle_root", what)
    _whole(document, "nonce", NONCE_MAX, what)
    _whole(document, "difficulty", DIFFICULTY_MAX, what)
    time = _time(document, what)
    claimed = _digest(_field(document, "hash", what), "hash", what)
    found = block_hash(document)
    if found != claimed:
        raise InvalidBlock(f"the hash of {what} is not that of its fields", found=found, expected=claimed)
    return XaiBlock(
        hash=found,
        parent=ZERO_HASH if previous == "0" and height == 0 else _digest(previous, "previous_hash", what),
        height=height,
        time=int(time),
        difficulty=document["difficulty"],
        merkle_root=document["merkle_root"],
        transactions=tuple(
            parse_transaction(item, f"transaction {number} of {what}") for number, item in enumerate(transactions)
        ),
        document=document,
        body=body,
    )


# -- a block is read several times on its way ------------------------------------------------------------------------


class _Kept:
    """The blocks that were read last, found again by the very bytes object they were read from."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._blocks: OrderedDict[int, XaiBlock] = OrderedDict()
        self._size = 0

    def get(self, body: bytes) -> XaiBlock | None:
        found = self._blocks.get(id(body))
        return found if found is not None and found.body is body else None

    def put(self, block: XaiBlock) -> None:
        with self._lock:
            old = self._blocks.pop(id(block.body), None)
            self._size += len(block.body) - (len(old.body) if old is not None else 0)
            self._blocks[id(block.body)] = block
            while len(self._blocks) > _KEPT_BLOCKS_MAX or (self._size > _KEPT_BYTES_MAX and len(self._blocks) > 1):
                _, gone = self._blocks.popitem(last=False)
                self._size -= len(gone.body)


_kept = _Kept()


def read_block(body: bytes) -> XaiBlock:
    """``parse_block``, done once for the same bytes object while it is among the last few hundred."""
    found = _kept.get(body)
    if found is None:
        found = parse_block(body)
        _kept.put(found)
    return found
