"""The Bitcoin chain: which headers and bodies are blocks, and which blocks may follow which.

Invariants:
    * ``decode`` computes the hash from the header; ``validate`` computes it again and trusts nothing in the block.
    * Checked: header hash, link, target within the limit, proof of work (SHA-256d networks), the retarget rule on
      ``main``, Merkle root without the duplicate trick. Not checked: scripts, amounts, witness data, median time.
    * A header-only block (no body) is judged by its header.
"""

from __future__ import annotations

from ...errors import InvalidBlock
from ...store.chain import Ancestry, ChainSpec
from ...types import ZERO_HASH, Block, BlockInfo
from .header import (
    HEADER_BYTES,
    RETARGET_BLOCKS,
    Header,
    block_work,
    decode_header,
    display_hash,
    hash_of_header,
    next_bits,
    target_from_compact,
)
from .networks import Network, network
from .transactions import merkle_root, transaction_ids

__all__ = ["BitcoinChain", "decode_raw_block"]


def decode_raw_block(header: bytes, body: bytes | None, height: int) -> Block:
    """The block of these bytes at ``height``; its hash and work are computed, nothing else is checked."""
    fields = decode_header(header)
    work = block_work(target_from_compact(fields.bits))
    return Block(hash_of_header(header), fields.parent, height, header, body, fields.time, work)


class BitcoinChain:
    """Bitcoin and networks with its block format: ``main``, ``testnet``, ``signet``, ``regtest``, ``litecoin``, ...

    ``note`` says what is not checked on this network. ``from_base`` leaves the first block out of a new store, so that
    files which do not start at genesis can be imported above a base that the caller states.
    """

    def __init__(self, network_name: str = "main", *, from_base: bool = False) -> None:
        self.network: Network = network(network_name)
        self.from_base = from_base
        self.spec = ChainSpec(name="bitcoin", id=network_name)

    @property
    def note(self) -> str:
        """What is not checked on this network; empty if the proof of work is."""
        return self.network.note

    def genesis(self) -> Block | None:
        """The first block; ``None`` above a stated base, or where the files bring it (Litecoin)."""
        raw = self.network.genesis
        if not raw or self.from_base:
            return None
        return decode_raw_block(raw[:HEADER_BYTES], raw[HEADER_BYTES:], 0)

    def decode(
        self, header: bytes, body: bytes | None, *, parent: BlockInfo | None, extra: bytes | None = None
    ) -> Block:
        if extra is not None:
            raise InvalidBlock("a Bitcoin block has no extra part", found=len(extra))
        return decode_raw_block(header, body, 0 if parent is None else parent.height + 1)

    def validate(self, block: Block, parent: BlockInfo | None, ancestry: Ancestry) -> None:
        try:
            self._judge(block, parent, ancestry)
        except InvalidBlock as exc:
            exc.context.update(hash=display_hash(block.hash), height=block.height)
            raise

    def _judge(self, block: Block, parent: BlockInfo | None, ancestry: Ancestry) -> None:
        fields = decode_header(block.header)
        if hash_of_header(block.header) != block.hash:
            raise InvalidBlock("the header does not hash to the block's hash")
        if fields.parent != block.parent or fields.time != block.time:
            raise InvalidBlock("the block's parent or time is not the one in its header")
        self._check_target(fields, block)
        if parent is None:
            self._check_root(block)
        else:
            self._check_link(fields, block, parent, ancestry)
        if block.body is not None:
            found = merkle_root(transaction_ids(block.body, extensions=not self.network.proof_of_work))
            if found != fields.merkle_root:
                raise InvalidBlock("the Merkle root is wrong", found=found, expected=fields.merkle_root)

    def _check_target(self, fields: Header, block: Block) -> None:
        target = target_from_compact(fields.bits)
        if target > self.network.pow_limit:
            raise InvalidBlock("the target is easier than the network allows", bits=f"{fields.bits:#010x}")
        if block.work != block_work(target):
            raise InvalidBlock("the block's work is not the one of its target")
        if self.network.proof_of_work and int.from_bytes(block.hash, "little") > target:
            raise InvalidBlock("the proof of work is not met", expected=f"<= {target:064x}")

    def _check_root(self, block: Block) -> None:
        if block.parent != ZERO_HASH:
            return
        expected = self.network.genesis_hash
        if block.height != 0 or (expected and block.hash != expected):
            raise InvalidBlock(
                "this is the first block of another chain",
                network=self.network.name,
                expected=display_hash(expected) if expected else "height 0",
            )

    def _check_link(self, fields: Header, block: Block, parent: BlockInfo, ancestry: Ancestry) -> None:
        if fields.parent != parent.hash or block.height != parent.height + 1:
            raise InvalidBlock("the block does not follow its parent", expected=parent.height + 1)
        if not self.network.retargets:
            return
        if block.height % RETARGET_BLOCKS:
            # Equal work stands for equal bits: it is in memory, the parent's header is not.
            if block.work != parent.work:
                raise InvalidBlock("the target changes inside a period of 2016 blocks")
            return
        first = ancestry.ancestor(parent, block.height - RETARGET_BLOCKS)
        if first is None:  # the period began below the base of this store
            return
        bits = decode_header(ancestry.header(parent)).bits
        expected = next_bits(bits, first.time, parent.time, self.network.pow_limit)
        if fields.bits != expected:
            raise InvalidBlock(
                "the target does not follow the last 2016 blocks",
                bits=f"{fields.bits:#010x}",
                expected=f"{expected:#010x}",
            )
