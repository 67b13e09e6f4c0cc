"""Who owns what: the unspent outputs of the xai chain, as rows of the provable state.

Invariants:
    * One function applies a transaction, for blocks that are mined, received, imported and replayed, and for the
      check of pending ones.
    * Money is neither made nor lost but by rule: what a transaction spends is its amount, its fee and its change; the
      supply rises by coinbases and falls by fees.
    * Nothing is spent twice: an output leaves the state when it is spent, an input is named once, and a transaction
      that moves money is never applied again.
    * A block either applies whole, or ``InvalidBlock`` is raised and the caller throws the state away.

Rows (numbers big-endian)::

    "utxo/" | address | 00 | height u64 | transaction u32 | output u32  ->  units u64 | transaction id
    "nonce/" | address                                                  ->  last nonce u64
    "seen/" | transaction id                                            ->  height u64
    "totals"                                                            ->  supply u128 | transactions u64

The order of the keys of an address is the order in which its outputs came: the oldest is spent first, as in the
original. Output 0 goes to the recipient, output 1 is the sender's change. No output of zero units is kept.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ...errors import CorruptionError, InvalidBlock
from ...state.api import MutableState, ReadableState
from .codec import XaiBlock, XaiTransaction

__all__ = ["Totals", "Utxo", "apply_block", "apply_transaction", "balance", "last_nonce", "read_totals", "utxos"]

_UTXO: Final = b"utxo/"
_NONCE: Final = b"nonce/"
_SEEN: Final = b"seen/"
_TOTALS: Final = b"totals"
_PLACE: Final = struct.Struct(">QII")
_U64: Final = struct.Struct(">Q")
_TOTALS_ROW: Final = struct.Struct(">QQQ")
_CHANGE: Final = 1


@dataclass(frozen=True, slots=True)
class Utxo:
    """An output nobody has spent: ``units`` of 10^-8 at ``address``, made by output ``vout`` of ``txid``."""

    address: str
    txid: str
    vout: int
    units: int
    height: int
    key: bytes
    """Its key in the state, for a proof."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the chain: units in existence, and transactions in blocks."""

    supply: int = 0
    transactions: int = 0


def _prefix(address: str) -> bytes:
    return _UTXO + address.encode("utf-8") + b"\x00"


def _utxo(key: bytes, value: bytes) -> Utxo:
    at = len(key) - _PLACE.size
    if at <= len(_UTXO) or len(value) <= _U64.size or key[at - 1]:
        raise CorruptionError("a row of an unspent output is malformed", key=key)
    height, _, vout = _PLACE.unpack_from(key, at)
    (units,) = _U64.unpack_from(value)
    try:
        return Utxo(key[len(_UTXO) : at - 1].decode(), value[_U64.size :].decode(), vout, units, height, key)
    except UnicodeDecodeError as error:
        raise CorruptionError("a row of an unspent output is malformed", key=key) from error


def utxos(state: ReadableState, address: str | None = None) -> Iterator[Utxo]:
    """The unspent outputs of ``address``, oldest first; of everybody by address if ``None``."""
    for key, value in state.scan(_UTXO if address is None else _prefix(address)):
        yield _utxo(key, value)


def balance(state: ReadableState, address: str) -> int:
    """Units that ``address`` can spend."""
    return sum(utxo.units for utxo in utxos(state, address))


def last_nonce(state: ReadableState, address: str) -> int:
    """The last nonce that ``address`` has used, -1 if none."""
    row = state.get(_NONCE + address.encode("utf-8"))
    if row is None:
        return -1
    return int(_U64.unpack(row)[0])


def read_totals(state: ReadableState) -> Totals:
    """The sums as of this state."""
    row = state.get(_TOTALS)
    if row is None:
        return Totals()
    if len(row) != _TOTALS_ROW.size:
        raise CorruptionError("the row of the totals is malformed", key=_TOTALS)
    high, low, transactions = _TOTALS_ROW.unpack(row)
    return Totals(high << 64 | low, transactions)


def _write_totals(state: MutableState, totals: Totals) -> None:
    state[_TOTALS] = _TOTALS_ROW.pack(totals.supply >> 64, totals.supply & (2**64 - 1), totals.transactions)


def _pay(state: MutableState, tx: XaiTransaction, address: str, units: int, place: tuple[int, int, int]) -> None:
    if units:
        state[_prefix(address) + _PLACE.pack(*place)] = _U64.pack(units) + tx.txid.encode("utf-8")


def _chosen(state: MutableState, tx: XaiTransaction) -> list[Utxo]:
    """What ``tx`` spends: the outputs that it names, or the oldest that suffice."""
    needed = tx.amount + tx.fee
    found: list[Utxo] = []
    if tx.inputs is not None:
        wanted = set(tx.inputs)
        for utxo in utxos(state, tx.sender):
            if (utxo.txid, utxo.vout) in wanted:
                found.append(utxo)
        if len(found) != len(wanted):
            raise InvalidBlock("an input is spent, unknown or another's", txid=tx.txid, sender=tx.sender)
    elif needed:
        total = 0
        for utxo in utxos(state, tx.sender):
            found.append(utxo)
            total += utxo.units
            if total >= needed:
                break
    if sum(utxo.units for utxo in found) < needed:
        raise InvalidBlock("the sender does not have what it spends", txid=tx.txid, sender=tx.sender, expected=needed)
    return found


def apply_transaction(state: MutableState, tx: XaiTransaction, height: int, position: int) -> None:
    """``tx``, number ``position`` in the block at ``height``, is in ``state``. Raises ``InvalidBlock``.

    What a coinbase may make is the business of the block.
    """
    if tx.is_coinbase:
        _pay(state, tx, tx.recipient, tx.amount, (height, position, 0))
        return
    seen = _SEEN + tx.txid.encode("utf-8")
    if seen in state:
        raise InvalidBlock("the transaction is in the chain already", txid=tx.txid, height=height)
    if tx.nonce is not None:
        expected = last_nonce(state, tx.sender) + 1
        if tx.nonce != expected:
            raise InvalidBlock("the nonce does not follow", txid=tx.txid, found=tx.nonce, expected=expected)
        state[_NONCE + tx.sender.encode("utf-8")] = _U64.pack(tx.nonce)
    spent = _chosen(state, tx)
    for utxo in spent:
        del state[utxo.key]
    state[seen] = _U64.pack(height)
    _pay(state, tx, tx.recipient, tx.amount, (height, position, 0))
    change = sum(utxo.units for utxo in spent) - tx.amount - tx.fee
    _pay(state, tx, tx.sender, change, (height, position, _CHANGE))


def apply_block(state: MutableState, block: XaiBlock, supply_max: int) -> None:
    """Every transaction of ``block`` is in ``state``. Raises ``InvalidBlock``; ``state`` must be thrown away then.

    The first block makes what it likes; above it the supply never grows beyond ``supply_max`` units.
    """
    before = read_totals(state)
    supply = before.supply
    for position, tx in enumerate(block.transactions):
        apply_transaction(state, tx, block.height, position)
        supply += tx.amount if tx.is_coinbase else -tx.fee
    if block.height > 0 and supply > max(supply_max, before.supply):
        raise InvalidBlock(
            "the block makes more money than there may be",
            hash=block.hash,
            height=block.height,
            found=supply,
            expected=supply_max,
        )
    _write_totals(state, Totals(supply, before.transactions + len(block.transactions)))
