"""Receipts: what became of each call of a block, and their bytes.

Invariants:
    * Receipts are a function of the block and the state before it; their hash stands in the header.
    * Bytes decode and encode to themselves, or ``InvalidInputError`` is raised.

Numbers are big-endian. Receipts of a block (the stored ``extra`` part)::

    | u8 version, 1 | u32 count | receipts |

A receipt::

    | u8 status | u64 gas used | u32 length | result | u16 length | error text, UTF-8 | u16 count | events |

An event: | address 20 | u8 length | name | u8 count | fields |; a field: | u8 length | name | u32 length | value |.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from ..errors import InvalidInputError
from .codec import Address, decode_any
from .limits import (
    ADDRESS_BYTES,
    ERROR_TEXT_BYTES_MAX,
    EVENTS_PER_CALL_MAX,
    GAS_MAX,
    NAME_BYTES_MAX,
    TRANSACTIONS_PER_BLOCK_MAX,
    VALUE_BYTES_MAX,
)
from .signals import Status
from .wire import Reader

__all__ = ["EventRecord", "Receipt", "decode_receipts", "encode_receipts", "receipts_hash"]

_VERSION: Final = 1
_STATUSES: Final = tuple(Status)
assert [status.value for status in _STATUSES] == [
    *("ok", "reverted", "failed", "out_of_gas", "too_deep", "no_contract"),
    *("unknown_code", "unknown_method", "bad_arguments"),
], "the number of a status is its place; append only"
_NUMBERS: Final = {status: number for number, status in enumerate(_STATUSES)}
_HEAD: Final = struct.Struct(">BQI")
_TAG: Final = b"holdfast/contracts/receipts/1"


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One event: the contract that gave it, its name, and its fields as names and encoded values."""

    address: Address
    name: str
    fields: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of one call. ``result`` is its encoded value (of a deployment: the new address); empty unless ok."""

    status: Status
    gas_used: int
    result: bytes = b""
    events: tuple[EventRecord, ...] = ()
    error: str = ""

    @property
    def ok(self) -> bool:
        """True if the call has changed the state."""
        return self.status is Status.OK


def encode_receipts(receipts: Sequence[Receipt]) -> bytes:
    """The bytes of a block's receipts."""
    out = bytearray(struct.pack(">BI", _VERSION, len(receipts)))
    for receipt in receipts:
        error = receipt.error.encode("utf-8")
        out += _HEAD.pack(_NUMBERS[receipt.status], receipt.gas_used, len(receipt.result)) + receipt.result
        out += struct.pack(">H", len(error)) + error + struct.pack(">H", len(receipt.events))
        for event in receipt.events:
            name = event.name.encode("ascii")
            out += bytes(event.address) + bytes([len(name)]) + name + bytes([len(event.fields)])
            for field, value in event.fields:
                raw = field.encode("ascii")
                out += bytes([len(raw)]) + raw + struct.pack(">I", len(value)) + value
    return bytes(out)


def decode_receipts(raw: bytes) -> list[Receipt]:
    """The receipts of these bytes. Raises ``InvalidInputError`` unless ``raw`` is exactly one encoding."""
    reader = Reader(raw, "receipts")
    if reader.number(1) != _VERSION:
        raise InvalidInputError("the receipts have an unknown version", found=raw[0], expected=_VERSION)
    count = reader.number(4, most=TRANSACTIONS_PER_BLOCK_MAX)
    receipts = [_receipt(reader) for _ in range(count)]
    reader.end()
    return receipts


def _receipt(reader: Reader) -> Receipt:
    status = _STATUSES[reader.number(1, most=len(_STATUSES) - 1)]
    gas_used = reader.number(8, most=GAS_MAX)
    result = reader.take(reader.number(4, most=VALUE_BYTES_MAX))
    if (status is Status.OK) != bool(result):
        raise InvalidInputError("a receipt has a result if the call went well, and only then", found=status.value)
    if result:
        decode_any(result)
    error = reader.text(reader.number(2, most=ERROR_TEXT_BYTES_MAX))
    events = tuple(_event(reader) for _ in range(reader.number(2, most=EVENTS_PER_CALL_MAX)))
    if status is not Status.OK and events:
        raise InvalidInputError("a call that did not go well has no events", found=status.value)
    return Receipt(status, gas_used, result, events, error)


def _event(reader: Reader) -> EventRecord:
    address = Address(reader.take(ADDRESS_BYTES))
    name = reader.ascii(reader.number(1, most=NAME_BYTES_MAX))
    fields = []
    for _ in range(reader.number(1)):
        field = reader.ascii(reader.number(1, most=NAME_BYTES_MAX))
        value = reader.take(reader.number(4, most=VALUE_BYTES_MAX))
        decode_any(value)
        fields.append((field, value))
    return EventRecord(address, name, tuple(fields))


def receipts_hash(encoded: bytes) -> bytes:
    """The 32 bytes that stand for ``encode_receipts`` in a header."""
    return sha256(struct.pack(">I", len(_TAG)) + _TAG + struct.pack(">Q", len(encoded)) + encoded).digest()
