"""The proof-of-work chain as the store sees it: genesis, decoding, and the rules a block must keep.

Invariants:
    * Pure: no clock, no files, no network. The same bytes on the same branch get the same verdict on every node.
    * The genesis block is fixed by the parameters: index 0, time 0, peer "", number 0, nonce 0, the initial difficulty.
      It is the one block without proof of work, and no other block is valid without a parent at index 0.
    * A block's time is at least its parent's (seconds are coarse, so equal is allowed) and at least
      ``minimum_block_timestamp``. An upper bound needs a clock and is left to whoever accepts blocks from a network.
    * The difficulty of a block is the one its own branch asks for (``difficulty.py``), never a claim.
"""

from __future__ import annotations

from ...errors import ForeignStore, InvalidBlock
from ...store.chain import Ancestry, ChainSpec
from ...types import ZERO_HASH, Block, BlockInfo
from .codec import (
    PowBlock,
    PowData,
    PowHeader,
    data_hash,
    decode_data,
    decode_header,
    decode_import_record,
    encode_data,
    encode_header,
)
from .difficulty import is_retarget, measured_from, next_difficulty
from .mining import meets_target
from .rules import EPOCH_BLOCKS, PowParameters, work_of

__all__ = ["CHAIN_NAME", "PowChain", "from_stored", "genesis_block", "to_stored"]

CHAIN_NAME = "pow"


def genesis_block(parameters: PowParameters) -> PowBlock:
    """The first block of every chain with these parameters."""
    data = PowData("", 0)
    return PowBlock(PowHeader(0, 0, ZERO_HASH, data_hash(data), parameters.initial_difficulty, 0), data)


def to_stored(block: PowBlock, *, extra: bytes | None = None) -> Block:
    """The block as the store takes it."""
    header = block.header
    return Block(
        hash=block.hash,
        parent=header.parent,
        height=header.index,
        header=encode_header(header),
        body=encode_data(block.data),
        time=header.time,
        work=work_of(header.difficulty),
        producer=block.data.peer_id.encode("utf-8"),
        extra=extra,
    )


def from_stored(header: bytes, body: bytes | None) -> PowBlock:
    """The block of these stored bytes, its data bound to its header. Raises ``InvalidBlock``."""
    if body is None:
        raise InvalidBlock("a block of this chain must have a body")
    decoded, data = decode_header(header), decode_data(body)
    expected = data_hash(data)
    if decoded.data_hash != expected:
        raise InvalidBlock(
            "the body does not belong to the header", index=decoded.index, found=decoded.data_hash, expected=expected
        )
    return PowBlock(decoded, data)


class PowChain:
    """The ``Chain`` of system 001."""

    def __init__(self, parameters: PowParameters | None = None) -> None:
        self.parameters = parameters if parameters is not None else PowParameters()
        self._genesis = genesis_block(self.parameters)
        self.spec = ChainSpec(
            name=CHAIN_NAME,
            id=f"{self.parameters.network}/{self._genesis.hash.hex()[:16]}",
            fork_choice="heaviest",
            epoch_length=EPOCH_BLOCKS,
            epoch_origin=0,
            parameters=self.parameters.as_mapping(),
        )

    @classmethod
    def from_spec(cls, spec: ChainSpec) -> PowChain:
        """The chain that a store's identity names. Raises ``ForeignStore`` if it is another one."""
        if spec.name != CHAIN_NAME:
            raise ForeignStore("the store holds another kind of chain", found=spec.name, expected=CHAIN_NAME)
        chain = cls(PowParameters.from_mapping(spec.parameters))
        chain.require(spec)
        return chain

    def require(self, spec: ChainSpec) -> None:
        """Nothing happens if ``spec`` is this chain's; else ``ForeignStore``."""
        if spec != self.spec:
            raise ForeignStore("the store holds another chain", found=f"{spec.name} {spec.id}", expected=self.spec.id)

    def genesis(self) -> Block:
        """The fixed first block."""
        return to_stored(self._genesis)

    def decode(
        self, header: bytes, body: bytes | None, *, parent: BlockInfo | None, extra: bytes | None = None
    ) -> Block:
        """The block of these bytes; the header says its height. Raises ``InvalidBlock``."""
        if extra is not None:
            decode_import_record(extra)
        return to_stored(from_stored(header, body), extra=extra)

    def expected_difficulty(self, parent: BlockInfo, ancestry: Ancestry) -> int:
        """The only valid difficulty of a child of ``parent``. Cost: one header; at an epoch's start one ancestor."""
        index = parent.height + 1
        if index < EPOCH_BLOCKS:
            return self.parameters.initial_difficulty
        first: BlockInfo | None = None
        if is_retarget(index):
            first = ancestry.ancestor(parent, measured_from(index))
        return next_difficulty(
            index,
            decode_header(ancestry.header(parent)).difficulty,
            self.parameters,
            first_time=None if first is None else first.time,
            last_time=parent.time,
        )

    def validate(self, block: Block, parent: BlockInfo | None, ancestry: Ancestry) -> None:
        """Nothing happens if ``block`` keeps every rule on ``parent``; else ``InvalidBlock`` names the broken one.

        Without a parent only the genesis block is valid at index 0; a block above it can then only be the base of a
        store that starts there: its own proof of work and data are checked, its difficulty cannot be.
        """
        decoded = from_stored(block.header, block.body)
        header = decoded.header
        if block.hash != decoded.hash:
            raise InvalidBlock(
                "the hash is not that of the header", index=header.index, found=block.hash, expected=decoded.hash
            )
        if block != to_stored(decoded, extra=block.extra):
            raise InvalidBlock("the block's fields are not those of its header and body", hash=block.hash)
        if parent is None and header.index == 0:
            if block.hash != self._genesis.hash:
                raise InvalidBlock("another genesis block", found=block.hash, expected=self._genesis.hash)
            return
        if parent is not None:
            self._check_on_parent(decoded, parent, ancestry)
        minimum = self.parameters.minimum_block_timestamp
        if header.time < minimum:
            raise InvalidBlock(
                "the block is older than the chain allows", hash=block.hash, found=header.time, expected=minimum
            )
        if not meets_target(block.hash, header.difficulty):
            raise InvalidBlock("the proof of work is missing", hash=block.hash, difficulty=header.difficulty)

    def _check_on_parent(self, block: PowBlock, parent: BlockInfo, ancestry: Ancestry) -> None:
        header = block.header
        if header.parent != parent.hash:
            raise InvalidBlock(
                "the block names another parent", hash=block.hash, found=header.parent, expected=parent.hash
            )
        if header.index != parent.height + 1:
            raise InvalidBlock("the index jumps", hash=block.hash, found=header.index, expected=parent.height + 1)
        if header.time < parent.time:
            raise InvalidBlock(
                "the block is older than its parent", hash=block.hash, found=header.time, expected=parent.time
            )
        expected = self.expected_difficulty(parent, ancestry)
        if header.difficulty != expected:
            raise InvalidBlock("wrong difficulty", hash=block.hash, found=header.difficulty, expected=expected)
