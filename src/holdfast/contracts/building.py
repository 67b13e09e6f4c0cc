"""The live way: a block of transactions is executed on a draft of the store and committed; and the audit of a store.

Both go through ``ContractChain.apply`` like every block that is received.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..errors import CorruptionError, InvalidBlock, InvalidInputError, RootMismatch
from ..store.factory import open_store
from ..store.store import Store
from ..types import BlockInfo
from .chain import ContractChain
from .receipts import Receipt, decode_receipts
from .transactions import Transaction, decode_body

__all__ = ["BuiltBlock", "audit", "audited_tip", "build_block", "chain_of", "read_receipts", "read_transactions"]


_AUDIT_REMEDY = "do not build on this block; compare it, and the code of the contracts, with another node's"


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


def audit(store: Store, *, progress: Callable[[int], None] | None = None) -> int:
    """Every canonical block was executed again from the genesis on and gave the stored root and receipts; their number.

    The chain is that of the tip at the call, whatever is committed or reorganised meanwhile. Nothing but the bodies is
    taken from the store, so a value of the state that comes from no transaction is found. Cost: the time of all
    executions; the whole state in memory.

    Args:
        progress: called with each height that is done.
    Raises:
        CorruptionError: a block gives another root or other receipts than are stored; the height is in the context.
        InvalidInputError: the store does not begin with the genesis block.
        StateError: the code of a contract is missing.
    """
    return audited_tip(store, progress=progress).height + 1


def audited_tip(store: Store, *, progress: Callable[[int], None] | None = None) -> BlockInfo:
    """The last block that ``audit`` executed; see there."""
    chain = chain_of(store)
    tip = store.tip
    assert tip is not None, "a store of this chain has its genesis block from the start"
    branch = [info.hash for info in store.blocks.branch(tip.hash)]
    with open_store("memory:", chain=chain) as again:
        found = again.tip
        for block_hash in reversed(branch):
            info = store.blocks.load(block_hash)
            block = store.blocks.block(info)
            if block_hash == branch[-1]:
                if info.height != 0:
                    raise InvalidInputError(
                        "an audit needs every block from the genesis on",
                        found=info.height,
                        remedy="audit a store that holds them all; this one stands on a snapshot that was trusted",
                    )
            else:
                try:
                    found = again.add(replace(block, extra=None)).block
                except (InvalidBlock, RootMismatch) as error:
                    raise CorruptionError(
                        f"a stored block cannot be executed again: {error.message}",
                        height=info.height,
                        hash=info.hash,
                        found=error.context.get("found"),
                        expected=error.context.get("expected"),
                        remedy=_AUDIT_REMEDY,
                    ) from error
            assert found is not None
            if (found.hash, found.state_root) != (info.hash, info.state_root):
                raise CorruptionError(
                    "a stored block gives another state when it is executed again",
                    height=info.height,
                    hash=info.hash,
                    found=info.state_root,
                    expected=found.state_root,
                    remedy=_AUDIT_REMEDY,
                )
            if again.blocks.extra(found) != block.extra:
                raise CorruptionError(
                    "a block is stored without the receipts that its execution gives",
                    height=info.height,
                    hash=info.hash,
                    remedy=_AUDIT_REMEDY,
                )
            if progress is not None:
                progress(info.height)
    return tip
