"""Transactions, bodies and headers of the contract chain, as bytes.

Invariants:
    * Each value has one encoding; decoding accepts nothing else and raises ``InvalidBlock``.
    * Hashes cover a tag and length-prefixed fields: no two different values share a preimage.
    * All numbers are unsigned and big-endian.

A body::

    | u8 version, 1 | u32 count | transactions, each behind its u32 length |

A transaction::

    | u8 kind | caller 20 | u64 nonce | u64 gas limit | target | u32 length | arguments |
    target of kind 0, deploy: | u8 length | name | u32 version |
    target of kind 1, call: | address 20 | u8 length | method |

A header, 177 bytes::

    | u8 version, 1 | u64 height | u64 time | parent 32 | rules 32 | body 32 | receipts 32 | state root 32 |
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from ..errors import HoldfastError, InvalidBlock, InvalidInputError
from ..limits import HASH_BYTES, HEIGHT_MAX
from .codec import Address
from .executor import Call, Deploy
from .limits import (
    ADDRESS_BYTES,
    ARGUMENTS_BYTES_MAX,
    GAS_MAX,
    NAME_BYTES_MAX,
    TIMESTAMP_MAX,
    TRANSACTIONS_PER_BLOCK_MAX,
    VERSION_MAX,
)
from .wire import Reader

__all__ = [
    "HEADER_BYTES",
    "Header",
    "Transaction",
    "body_hash",
    "decode_body",
    "decode_header",
    "decode_transaction",
    "encode_body",
    "encode_header",
    "encode_transaction",
    "header_hash",
    "lp",
    "transaction_hash",
]

_VERSION: Final = 1
_DEPLOY, _CALL = 0, 1
_FIXED: Final = struct.Struct(">B20sQQ")
_HEADER: Final = struct.Struct(">BQQ32s32s32s32s32s")
HEADER_BYTES: Final = 177
assert _HEADER.size == HEADER_BYTES
NONCE_MAX: Final = 2**64 - 1


def lp(*fields: bytes) -> bytes:
    """The fields, each behind its u32 length."""
    return b"".join(struct.pack(">I", len(field)) + field for field in fields)


@dataclass(frozen=True, slots=True)
class Transaction:
    """Somebody's wish to run ``action``. It is not signed: whoever accepts it has made sure that ``caller`` agreed.

    ``nonce`` (u64) tells apart two transactions that are otherwise equal. The chain only looks that a block has no
    transaction twice.
    """

    caller: Address
    action: Call | Deploy
    gas_limit: int
    nonce: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "caller", Address(self.caller))
        for name, value, most in (("gas_limit", self.gas_limit, GAS_MAX), ("nonce", self.nonce, NONCE_MAX)):
            if type(value) is not int or not 0 <= value <= most:
                raise InvalidInputError(f"'{name}' of a transaction is a whole number from 0 to {most}", found=value)
        if not isinstance(self.action, Call | Deploy):
            raise InvalidInputError("a transaction is a call or a deployment", found=type(self.action).__name__)

    @property
    def hash(self) -> bytes:
        """Its 32 bytes: what ``tx_hash`` of the context is."""
        return transaction_hash(encode_transaction(self))


def transaction_hash(raw: bytes) -> bytes:
    """The hash of an encoded transaction."""
    return sha256(lp(b"holdfast/contracts/transaction/1", raw)).digest()


def encode_transaction(transaction: Transaction) -> bytes:
    """The bytes of a transaction."""
    action = transaction.action
    kind = _CALL if isinstance(action, Call) else _DEPLOY
    if isinstance(action, Call):
        method = action.method.encode("ascii")
        target = bytes(action.address) + bytes([len(method)]) + method
    else:
        name = action.name.encode("ascii")
        target = bytes([len(name)]) + name + struct.pack(">I", action.version)
    fixed = _FIXED.pack(kind, bytes(transaction.caller), transaction.nonce, transaction.gas_limit)
    return fixed + target + lp(action.arguments)


def decode_transaction(raw: bytes) -> Transaction:
    """The transaction of exactly one encoding. Raises ``InvalidBlock``."""
    try:
        return _transaction(Reader(raw, "bytes of a transaction"))
    except InvalidInputError as error:
        raise _invalid(error) from error


def _transaction(reader: Reader) -> Transaction:
    kind = reader.number(1, most=_CALL)
    caller = Address(reader.take(ADDRESS_BYTES))
    nonce, gas_limit = reader.number(8), reader.number(8, most=GAS_MAX)
    action: Call | Deploy
    if kind == _CALL:
        address = Address(reader.take(ADDRESS_BYTES))
        method = reader.ascii(reader.number(1, most=NAME_BYTES_MAX))
        action = Call(address, method, reader.take(reader.number(4, most=ARGUMENTS_BYTES_MAX)))
    else:
        name = reader.ascii(reader.number(1, most=NAME_BYTES_MAX))
        version = reader.number(4, most=VERSION_MAX)
        action = Deploy(name, version, reader.take(reader.number(4, most=ARGUMENTS_BYTES_MAX)))
    reader.end()
    return Transaction(caller, action, gas_limit, nonce)


def _invalid(error: HoldfastError) -> InvalidBlock:
    found = InvalidBlock(error.message)
    found.context.update(error.context)
    return found


def encode_body(transactions: Sequence[Transaction]) -> bytes:
    """The body of a block. Raises ``InvalidInputError`` for too many transactions."""
    if len(transactions) > TRANSACTIONS_PER_BLOCK_MAX:
        raise InvalidInputError(
            "a block has too many transactions", found=len(transactions), expected=f"<= {TRANSACTIONS_PER_BLOCK_MAX}"
        )
    encoded = lp(*(encode_transaction(transaction) for transaction in transactions))
    return struct.pack(">BI", _VERSION, len(transactions)) + encoded


def decode_body(raw: bytes) -> list[Transaction]:
    """The transactions of a body, in order. Raises ``InvalidBlock`` unless ``raw`` is exactly one encoding."""
    reader = Reader(raw, "bytes of a body")
    try:
        if reader.number(1) != _VERSION:
            raise InvalidInputError("the body has an unknown version", found=raw[0])
        found = []
        for _ in range(reader.number(4, most=TRANSACTIONS_PER_BLOCK_MAX)):
            found.append(_transaction(Reader(reader.take(reader.number(4)), "bytes of a transaction")))
        reader.end()
    except InvalidInputError as error:
        raise _invalid(error) from error
    return found


def body_hash(raw: bytes) -> bytes:
    """The hash that binds a body to a header."""
    return sha256(lp(b"holdfast/contracts/body/1", raw)).digest()


@dataclass(frozen=True, slots=True)
class Header:
    """What a block says of itself. ``time`` is in seconds, every hash 32 bytes.

    ``rules`` stands for the chain's rules, ``state_root`` for the state after the block (zeros in the genesis block).
    """

    height: int
    time: int
    parent: bytes
    rules: bytes
    body: bytes
    receipts: bytes
    state_root: bytes

    def __post_init__(self) -> None:
        for name, value, most in (("height", self.height, HEIGHT_MAX), ("time", self.time, TIMESTAMP_MAX)):
            if type(value) is not int or not 0 <= value <= most:
                raise InvalidBlock(f"{name} is out of range", found=value, expected=f"0..{most}")
        if any(len(h) != HASH_BYTES for h in (self.parent, self.rules, self.body, self.receipts, self.state_root)):
            raise InvalidBlock("a hash in a header has a wrong length", expected=HASH_BYTES)


def encode_header(header: Header) -> bytes:
    """The 177 stored bytes of a header."""
    hashes = (header.parent, header.rules, header.body, header.receipts, header.state_root)
    return _HEADER.pack(_VERSION, header.height, header.time, *hashes)


def decode_header(raw: bytes) -> Header:
    """The header of 177 bytes. Raises ``InvalidBlock``."""
    if len(raw) != HEADER_BYTES or raw[0] != _VERSION:
        raise InvalidBlock(
            f"a header is {HEADER_BYTES} bytes and begins with {_VERSION}", found=len(raw), version=raw[:1]
        )
    _, height, time, parent, rules, body, receipts, state_root = _HEADER.unpack(raw)
    return Header(height, time, parent, rules, body, receipts, state_root)


def header_hash(header: Header) -> bytes:
    """The hash of a block."""
    return sha256(lp(b"holdfast/contracts/header/1", encode_header(header))).digest()
