"""An Ethereum-like chain: blocks as RLP, judged by every hash and root that can be computed without executing them.

    header  RLP as hashed
    body    RLP list: transactions, ommer headers, and withdrawals if the header has a root for them
    extra   the receipts as recorded: JSON with sorted keys, or nothing

Invariants:
    * Checked: Keccak of the header, link, number, time not before the parent's, gas used within the limit, and the
      roots of transactions, ommers, withdrawals and (if there) receipts; the chain id of every transaction if the
      chain states one. Not checked: signatures, execution, state root, base fee, difficulty rule, ethash seal.
    * Work is the difficulty, or 1 where it is 0 (after the merge, and development nodes): the heaviest branch is then
      the longest. Before the merge that is total difficulty.
    * An ommer is kept as a block without a body beside the canonical chain.
"""

from __future__ import annotations

import msgspec

from ..._json import check_depth
from ...errors import InvalidBlock, InvalidInputError
from ...store.chain import Ancestry, ChainSpec
from ...types import ZERO_HASH, Block, BlockInfo
from .codec import Item, keccak256, list_items, ordered_trie_root
from .header import Header, decode_header
from .transactions import chain_id_of, encode_receipt_json, objects

__all__ = ["EvmChain", "decode_raw_block"]


def decode_raw_block(header: bytes, body: bytes | None, extra: bytes | None = None) -> Block:
    """The block of these bytes: hash and fields are computed from the header, nothing else is checked."""
    fields = decode_header(header)
    return Block(
        keccak256(header),
        fields.parent,
        fields.number,
        header,
        body,
        fields.time,
        fields.difficulty or 1,
        fields.producer,
        extra,
    )


def _contents(data: bytes, item: Item) -> bytes:
    """What a trie holds for an item: a list as it is, a string without its prefix."""
    return data[item.start : item.end] if item.is_list else data[item.payload : item.end]


class EvmChain:
    """A chain of EVM blocks. ``chain_id`` 0 means that it is not known, and then it is not compared.

    ``first`` is the genesis block, if it should be committed when a store is made; else the first block that is added
    becomes the root.
    """

    def __init__(self, chain_id: int = 0, *, first: Block | None = None) -> None:
        if not 0 <= chain_id < 2**64:
            raise InvalidInputError("a chain id is below 2**64, or 0 if it is not known", found=chain_id)
        self.chain_id = chain_id
        self._first = first
        self.spec = ChainSpec(name="evm", id=str(chain_id) if chain_id else "")

    def genesis(self) -> Block | None:
        return self._first

    def decode(
        self, header: bytes, body: bytes | None, *, parent: BlockInfo | None, extra: bytes | None = None
    ) -> Block:
        return decode_raw_block(header, body, extra)

    def validate(self, block: Block, parent: BlockInfo | None, ancestry: Ancestry) -> None:
        try:
            self._judge(block, parent)
        except InvalidBlock as exc:
            exc.context.update(hash=block.hash, height=block.height)
            raise

    def _judge(self, block: Block, parent: BlockInfo | None) -> None:
        found = keccak256(block.header)
        if found != block.hash:
            raise InvalidBlock("the header does not hash to the block's hash", found=found)
        header = decode_header(block.header)
        facts = (header.parent, header.number, header.time, header.difficulty or 1, header.producer)
        if facts != (block.parent, block.height, block.time, block.work, block.producer):
            raise InvalidBlock("the block's fields are not those of its header")
        if (header.parent == ZERO_HASH) != (header.number == 0):
            raise InvalidBlock("only block 0 has no parent")
        if parent is not None:
            self._check_link(header, parent)
        if header.gas_used > header.gas_limit:
            raise InvalidBlock("more gas is used than the limit allows", found=header.gas_used)
        if block.body is not None:
            self._check_body(header, block.body)
        if block.extra is not None:
            self._check_receipts(header, block.extra)

    @staticmethod
    def _check_link(header: Header, parent: BlockInfo) -> None:
        if header.parent != parent.hash:
            raise InvalidBlock("the block does not follow its parent", expected=header.parent)
        if header.number != parent.height + 1:
            raise InvalidBlock("the number does not follow the parent's", expected=parent.height + 1)
        if header.time < parent.time:
            raise InvalidBlock("the block is older than its parent", found=header.time, expected=parent.time)

    def _check_body(self, header: Header, body: bytes) -> None:
        parts = list_items(body)
        expected = 2 if header.withdrawals_root is None else 3
        if len(parts) != expected:
            raise InvalidBlock("a body has a wrong number of parts", found=len(parts), expected=expected)
        transactions = list_items(body, parts[0])
        root = ordered_trie_root([_contents(body, item) for item in transactions])
        if root != header.transactions_root:
            raise InvalidBlock("the transactions root is wrong", found=root, expected=header.transactions_root)
        if self.chain_id:
            for item in transactions:
                chain_id = chain_id_of(body, item)
                if chain_id is not None and chain_id != self.chain_id:
                    raise InvalidBlock("a transaction is of another chain", found=chain_id, expected=self.chain_id)
        ommers = keccak256(body[parts[1].start : parts[1].end])
        if ommers != header.ommers_hash:
            raise InvalidBlock("the hash of the ommers is wrong", found=ommers, expected=header.ommers_hash)
        if header.withdrawals_root is not None:
            root = ordered_trie_root([_contents(body, item) for item in list_items(body, parts[2])])
            if root != header.withdrawals_root:
                raise InvalidBlock("the withdrawals root is wrong", found=root, expected=header.withdrawals_root)

    @staticmethod
    def _check_receipts(header: Header, extra: bytes) -> None:
        try:
            check_depth(extra)
            found = msgspec.json.decode(extra)
        except ValueError as exc:
            raise InvalidBlock("the receipts are not JSON") from exc
        receipts = objects(found, "receipts")
        root = ordered_trie_root([encode_receipt_json(receipt) for receipt in receipts])
        if root != header.receipts_root:
            raise InvalidBlock("the receipts root is wrong", found=root, expected=header.receipts_root)
