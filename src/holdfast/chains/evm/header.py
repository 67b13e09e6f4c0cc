"""The header of an Ethereum block: RLP of 15 fields and of those that later forks appended.

Invariants:
    * The hash of a block is Keccak-256 of exactly these bytes.
    * A later field is only there if all earlier ones are. London added ``baseFeePerGas``, Shanghai
      ``withdrawalsRoot``, Cancun ``blobGasUsed``, ``excessBlobGas`` and ``parentBeaconBlockRoot``, Prague
      ``requestsHash``. In RLP further fields are carried along without being understood.

Source: Ethereum yellow paper, section 4.3; EIP-1559, EIP-4895, EIP-4844, EIP-4788, EIP-7685.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import InvalidBlock
from .codec import encode_bytes, encode_list, integer_bytes, list_items

__all__ = ["HEADER_FIELDS", "Header", "data_field", "decode_header", "encode_header_json", "quantity_field"]

HEADER_FIELDS: tuple[tuple[str, int], ...] = (
    ("parentHash", 32),
    ("sha3Uncles", 32),
    ("miner", 20),
    ("stateRoot", 32),
    ("transactionsRoot", 32),
    ("receiptsRoot", 32),
    ("logsBloom", 256),
    ("difficulty", 0),
    ("number", 0),
    ("gasLimit", 0),
    ("gasUsed", 0),
    ("timestamp", 0),
    ("extraData", -1),
    ("mixHash", 32),
    ("nonce", 8),
    ("baseFeePerGas", 0),
    ("withdrawalsRoot", 32),
    ("blobGasUsed", 0),
    ("excessBlobGas", 0),
    ("parentBeaconBlockRoot", 32),
    ("requestsHash", 32),
)
"""Name in JSON-RPC, and length in bytes: 0 is a number, -1 a string of any length."""

_FIRST_OPTIONAL = 15
_FIELDS_MAX = 40
_NUMBER_BYTES_MAX = 32


@dataclass(frozen=True, slots=True)
class Header:
    """The fields that the rules look at. ``withdrawals_root`` is ``None`` before Shanghai."""

    parent: bytes
    ommers_hash: bytes
    producer: bytes
    transactions_root: bytes
    receipts_root: bytes
    difficulty: int
    number: int
    gas_limit: int
    gas_used: int
    time: int
    withdrawals_root: bytes | None


def decode_header(data: bytes) -> Header:
    """The header in ``data``, each known field of its length. Raises ``InvalidBlock``."""
    items = list_items(data)
    if not _FIRST_OPTIONAL <= len(items) <= _FIELDS_MAX:
        raise InvalidBlock("a header has a wrong number of fields", found=len(items), expected=_FIRST_OPTIONAL)
    values = [data[item.payload : item.end] for item in items]
    for (name, length), item, value in zip(HEADER_FIELDS, items, values, strict=False):
        if item.is_list or (length > 0 and len(value) != length):
            raise InvalidBlock("a header field has a wrong length", field=name, found=len(value), expected=length)
        if length == 0 and (len(value) > _NUMBER_BYTES_MAX or value[:1] == b"\0"):
            raise InvalidBlock("a number in a header is too long or begins with zero", field=name, found=value)
    number = int.from_bytes
    return Header(
        parent=values[0],
        ommers_hash=values[1],
        producer=values[2],
        transactions_root=values[4],
        receipts_root=values[5],
        difficulty=number(values[7], "big"),
        number=number(values[8], "big"),
        gas_limit=number(values[9], "big"),
        gas_used=number(values[10], "big"),
        time=number(values[11], "big"),
        withdrawals_root=values[16] if len(values) > 16 else None,
    )


def data_field(source: Mapping[str, object], name: str, length: int = -1) -> bytes:
    """The bytes of the field ``name`` (``0x`` and hexadecimal), ``length`` of them if it is not negative."""
    value = source.get(name)
    if isinstance(value, str) and value.startswith("0x"):
        try:
            raw = bytes.fromhex(value[2:])
        except ValueError as exc:
            raise InvalidBlock("a field is not hexadecimal", field=name, found=value[:80]) from exc
        if length < 0 or len(raw) == length:
            return raw
        raise InvalidBlock("a field has a wrong length", field=name, found=len(raw), expected=length)
    raise InvalidBlock("a field is missing or not hexadecimal", field=name, found=repr(value)[:80])


def quantity_field(source: Mapping[str, object], name: str) -> int:
    """The number in the field ``name`` (``0x`` and hexadecimal)."""
    value = source.get(name)
    if isinstance(value, str) and value.startswith("0x") and len(value) <= 2 + 2 * _NUMBER_BYTES_MAX:
        try:
            return int(value, 16)
        except ValueError as exc:
            raise InvalidBlock("a field is not a number", field=name, found=value) from exc
    raise InvalidBlock("a field is missing or not a number", field=name, found=repr(value)[:80])


def encode_header_json(block: Mapping[str, object]) -> bytes:
    """The header bytes of a block object as JSON-RPC gives it."""
    encoded = []
    for position, (name, length) in enumerate(HEADER_FIELDS):
        if position >= _FIRST_OPTIONAL and block.get(name) is None:
            break
        if length:
            encoded.append(encode_bytes(data_field(block, name, length)))
        else:
            encoded.append(encode_bytes(integer_bytes(quantity_field(block, name))))
    return encode_list(encoded)
