"""The stored chain judged again, and its money counted."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from ...errors import CorruptionError, HoldfastError, InvalidBlock, PrunedError
from .chain import XaiChain, to_stored
from .codec import XaiBlock, parse_block
from .ledger import read_totals, utxos

if TYPE_CHECKING:
    from ...store import Store
    from ...types import BlockInfo

__all__ = ["CheckedChain", "check_bodies", "check_chain"]


class _Ancestry:
    """The chain asks nothing of its ancestry."""

    def info(self, block_hash: bytes) -> BlockInfo | None:
        return None

    def header(self, block: BlockInfo) -> bytes:
        return b""

    def ancestor(self, block: BlockInfo, height: int) -> BlockInfo | None:
        return None


class CheckedChain(NamedTuple):
    """What was found right: so many blocks, those from ``first`` on with their documents; 0: all have them."""

    blocks: int
    first: int


def check_chain(store: Store) -> CheckedChain:
    """Nothing is wrong with the canonical chain. Raises ``CorruptionError`` for the first fault.

    Every document is decoded and hashed again and judged on its parent. The supply that the documents give is compared
    with the sum of all unspent outputs and with the totals in the state; where documents were pruned from the journal,
    those two with each other. ``holdfast verify`` checks the store's files.
    """
    chain = store.chain
    if not isinstance(chain, XaiChain):
        raise CorruptionError("the store holds another kind of chain", found=store.spec.name)
    supply = transactions = count = first = 0
    with store.snapshot() as moment:
        parent: BlockInfo | None = None
        for info in moment.blocks.canonical():
            if info.height != count or (parent is not None and info.parent != parent.hash):
                raise _fault("a stored block is not the one that should stand here", info)
            try:
                block = _judged(chain, info, moment.blocks.body(info), parent)
            except PrunedError:
                first = count + 1
            else:
                supply += sum(tx.amount if tx.is_coinbase else -tx.fee for tx in block.transactions)
                transactions += len(block.transactions)
            count += 1
            parent = info
        totals = read_totals(moment.state)
        unspent = sum(utxo.units for utxo in utxos(moment.state))
    if first:
        supply, transactions = totals.supply, totals.transactions
    if (totals.supply, totals.transactions) != (supply, transactions) or unspent != supply:
        raise CorruptionError(
            "the money in the state is not that of the blocks",
            expected=supply,
            found=unspent,
            totals=totals.supply,
            transactions=totals.transactions,
        )
    return CheckedChain(count, first)


def check_bodies(store: Store) -> None:
    """Every document of the canonical chain that was not pruned reads back. Raises ``CorruptionError``."""
    for info in store.blocks.canonical():
        with contextlib.suppress(PrunedError):
            store.blocks.body(info)


def _judged(chain: XaiChain, info: BlockInfo, body: bytes | None, parent: BlockInfo | None) -> XaiBlock:
    """The block of this document, which is valid and the one that ``info`` names. Raises ``CorruptionError``."""
    try:
        block = parse_block(body if body is not None else b"")
        chain.validate(to_stored(block), parent, _Ancestry())
    except InvalidBlock as error:
        raise _fault(f"a stored block is not valid: {error}", info) from error
    if block.hash != info.hash:
        raise _fault("a stored block is not the one that should stand here", info)
    return block


def _fault(text: str, info: BlockInfo) -> HoldfastError:
    return CorruptionError(text, height=info.height, hash=info.hash)
