"""Transactions, withdrawals and receipts: from JSON-RPC objects back to the bytes that consensus hashes.

Invariants:
    * Re-encoding is exact: the roots in the header are made from these bytes, so a field that was lost or altered
      shows as a wrong root.
    * Types 0 (legacy), 1 (EIP-2930), 2 (EIP-1559), 3 (EIP-4844) and 4 (EIP-7702) are known; another type is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ...errors import InvalidBlock
from .codec import Item, encode_bytes, encode_integer, encode_list, item_at, list_items
from .header import data_field, quantity_field

__all__ = [
    "chain_id_of",
    "encode_receipt_json",
    "encode_transaction_json",
    "encode_withdrawal_json",
    "objects",
]

Json = Mapping[str, object]

_LEGACY, _ACCESS_LIST, _DYNAMIC_FEE, _BLOB, _SET_CODE = range(5)


def objects(value: object, what: str) -> Sequence[Json]:
    """``value`` if it is a list of objects; nothing counts as an empty one."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InvalidBlock(f"the {what} are not a list of objects", found=repr(value)[:80])
    return value


def _quantity(source: Json, name: str) -> bytes:
    return encode_integer(quantity_field(source, name))


def _data(source: Json, name: str, length: int = -1) -> bytes:
    return encode_bytes(data_field(source, name, length))


def _strings(source: Json, name: str, length: int) -> bytes:
    values = source.get(name)
    if not isinstance(values, list):
        raise InvalidBlock("a field is missing or not a list", field=name)
    return encode_list(_data({name: value}, name, length) for value in values)


def _access_list(tx: Json) -> bytes:
    entries = objects(tx.get("accessList"), "entries of the access list")
    return encode_list(
        encode_list((_data(entry, "address", 20), _strings(entry, "storageKeys", 32))) for entry in entries
    )


def _authorizations(tx: Json) -> bytes:
    return encode_list(
        encode_list(
            (
                _quantity(entry, "chainId"),
                _data(entry, "address", 20),
                _quantity(entry, "nonce"),
                _parity(entry),
                _quantity(entry, "r"),
                _quantity(entry, "s"),
            )
        )
        for entry in objects(tx.get("authorizationList"), "authorizations")
    )


def _parity(tx: Json) -> bytes:
    return _quantity(tx, "yParity" if tx.get("yParity") is not None else "v")


def _to(tx: Json) -> bytes:
    return b"\x80" if tx.get("to") is None else _data(tx, "to", 20)


def _input(tx: Json) -> bytes:
    return _data(tx, "input" if "input" in tx else "data")


def _typed(kind: int, fields: Iterable[bytes]) -> bytes:
    return bytes((kind,)) + encode_list(fields)


def encode_transaction_json(tx: Json) -> bytes:
    """The consensus bytes of a transaction: a list for a legacy one, else its type and a list (EIP-2718)."""
    kind = quantity_field(tx, "type") if tx.get("type") is not None else _LEGACY
    common = (_quantity(tx, "gas"), _to(tx), _quantity(tx, "value"), _input(tx))
    seal = (_quantity(tx, "r"), _quantity(tx, "s"))
    if kind == _LEGACY:
        return encode_list((_quantity(tx, "nonce"), _quantity(tx, "gasPrice"), *common, _quantity(tx, "v"), *seal))
    head = (_quantity(tx, "chainId"), _quantity(tx, "nonce"))
    tail = (_parity(tx), *seal)
    if kind == _ACCESS_LIST:
        return _typed(kind, (*head, _quantity(tx, "gasPrice"), *common, _access_list(tx), *tail))
    if kind not in (_DYNAMIC_FEE, _BLOB, _SET_CODE):
        raise InvalidBlock("a transaction has a type that is not known", found=kind, expected="0 to 4")
    fees = (_quantity(tx, "maxPriorityFeePerGas"), _quantity(tx, "maxFeePerGas"))
    fields: tuple[bytes, ...] = (*head, *fees, *common, _access_list(tx))
    if kind == _BLOB:
        fields = (*fields, _quantity(tx, "maxFeePerBlobGas"), _strings(tx, "blobVersionedHashes", 32))
    elif kind == _SET_CODE:
        fields = (*fields, _authorizations(tx))
    return _typed(kind, (*fields, *tail))


def encode_withdrawal_json(withdrawal: Json) -> bytes:
    """The consensus bytes of a withdrawal (EIP-4895)."""
    return encode_list(
        (
            _quantity(withdrawal, "index"),
            _quantity(withdrawal, "validatorIndex"),
            _data(withdrawal, "address", 20),
            _quantity(withdrawal, "amount"),
        )
    )


def encode_receipt_json(receipt: Json) -> bytes:
    """The consensus bytes of a receipt, with the state root that Byzantium replaced by a status if it is there."""
    kind = quantity_field(receipt, "type") if receipt.get("type") is not None else _LEGACY
    outcome = _data(receipt, "root", 32) if receipt.get("status") is None else _quantity(receipt, "status")
    logs = encode_list(
        encode_list((_data(log, "address", 20), _strings(log, "topics", 32), _data(log, "data")))
        for log in objects(receipt.get("logs"), "logs")
    )
    fields = (outcome, _quantity(receipt, "cumulativeGasUsed"), _data(receipt, "logsBloom", 256), logs)
    return encode_list(fields) if kind == _LEGACY else _typed(kind, fields)


def chain_id_of(data: bytes, item: Item) -> int | None:
    """The chain id that the transaction ``item`` of a body is signed for; ``None`` for a legacy one without."""
    if item.is_list:
        fields = list_items(data, item)
        if len(fields) != 9:
            raise InvalidBlock("a legacy transaction has a wrong number of fields", found=len(fields), expected=9)
        v = int.from_bytes(data[fields[6].payload : fields[6].end], "big")
        return (v - 35) // 2 if v >= 35 else None
    outer = item_at(data, item.payload + 1, item.end)
    if outer.end != item.end or not outer.is_list:
        raise InvalidBlock("a typed transaction is not one list", offset=item.start)
    first = item_at(data, outer.payload, outer.end)
    return int.from_bytes(data[first.payload : first.end], "big")
