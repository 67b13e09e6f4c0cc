"""The live way: a block of transactions is executed on a draft of the store and committed.

It goes through ``ContractChain.apply`` like every block that is received or replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InvalidInputError
from ..store.store import Store
from ..types import BlockInfo
from .chain import ContractChain
from .receipts import Receipt, decode_receipts
from .transactions import Transaction, decode_body

__all__ = ["BuiltBlock", "build_block", "chain_of", "read_receipts", "read_transactions"]


@dataclass(frozen=True, slots=True)
class BuiltBlock:
    """A block that was built and is durable as the store's settings say, with one receipt for each transaction."""

    info: BlockInfo
    receipts: list[Receipt]


def chain_of(store: Store) -> ContractChain:
    """The contract chain of the store. Raises ``InvalidInputError`` if it holds another kind of chain."""
    chain = store.chain
    if not isinstance(chain, ContractChain):
        raise InvalidInputError(
            "this needs a store of the contract chain",
            remedy="open the store with 'chain=ContractChain(registry, rules)'",
            found=store.spec.name,
        )
    return chain


def build_block(
    store: Store, transactions: Sequence[Transaction], *, time: int, parent: bytes | None = None
) -> BuiltBlock:
    """A block of ``transactions`` stands on ``parent`` (hash; the tip if ``None``) and is committed.

    Args:
        time: seconds, at least the parent's.
    Raises:
        InvalidInputError: the transactions cannot stand in one block, or the time is before the parent's.
        StateError: this node lacks the code of a contract. ConflictError: the same block is stored already.
        Nothing was changed by any of them.
    """
    chain = chain_of(store)
    draft = store.draft(parent)
    assert draft.parent is not None, "a store of this chain has its genesis block from the start"
    proposal = chain.propose(draft.parent, transactions, time=time, state=draft.state)
    block = proposal.block
    info = store.commit(
        draft, hash=block.hash, header=block.header, body=block.body, time=block.time, extra=block.extra
    )
    return BuiltBlock(info, proposal.receipts)


def read_transactions(store: Store, block: BlockInfo) -> list[Transaction]:
    """The transactions of a stored block, in order."""
    body = store.blocks.body(block)
    assert body is not None, "every block of this chain has a body"
    return decode_body(body)


def read_receipts(store: Store, block: BlockInfo) -> list[Receipt]:
    """The receipts of a stored block, one for each transaction."""
    extra = store.blocks.extra(block)
    assert extra is not None, "every block of this chain is stored with its receipts"
    return decode_receipts(extra)
