"""The xai chain as the store sees it: documents of the original, judged by rules and executed into unspent outputs.

Invariants:
    * Pure: the verdict on a block is a function of its document, its parent and the state of its parent.
    * The genesis block is named by its hash in the store's identity: no other block is ever valid at height 0. Its
      transaction ids are taken as they are; the original read them from a file.
    * Every other block has the right ids, Merkle root, link, proof of work, and a time not before its parent's.

Signatures are not checked here: who accepts a transaction does that (``XAIBlockchain.add_transaction``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ...errors import ForeignStore, InvalidBlock, InvalidInputError
from ...limits import HASH_BYTES, PRODUCER_BYTES_MAX
from ...state.api import MutableState
from ...store.chain import Ancestry, ChainSpec
from ...store.indexes import index
from ...types import Block, BlockInfo
from .amounts import UNITS_MAX, UNITS_PER_COIN
from .codec import DIFFICULTY_MAX, XaiBlock, merkle_root, read_block, txid_of
from .ledger import apply_block
from .mining import work_of

if TYPE_CHECKING:
    from ...store.chain import ExecutingChain

__all__ = ["ADDRESS_INDEX", "CHAIN_NAME", "XaiChain", "XaiParameters", "to_stored"]

CHAIN_NAME: Final = "xai"
_RECEIVED: Final = b"\x01"
_SENT: Final = b"\x00"


@dataclass(frozen=True, slots=True)
class XaiParameters:
    """What all nodes of a network agree on; amounts in units of 10^-8, defaults those of the original's main net."""

    genesis: bytes
    """Hash of the first block, 32 bytes."""
    network: str = "main"
    difficulty_min: int = 0
    """Fewest leading hex zeros of a block above the first."""
    supply_max: int = 121_000_000 * UNITS_PER_COIN
    reward: int = 12 * UNITS_PER_COIN
    halving_blocks: int = 262_800

    def __post_init__(self) -> None:
        if type(self.genesis) is not bytes or len(self.genesis) != HASH_BYTES:
            raise InvalidInputError("the genesis block is named by its hash of 32 bytes", found=self.genesis)
        if not self.network.isascii() or not self.network.isprintable() or not 1 <= len(self.network) <= 64:
            raise InvalidInputError("a network has a name of 1 to 64 ASCII characters")
        for name, value, least, most in (
            ("difficulty_min", self.difficulty_min, 0, DIFFICULTY_MAX),
            ("supply_max", self.supply_max, 0, UNITS_MAX),
            ("reward", self.reward, 0, UNITS_MAX),
            ("halving_blocks", self.halving_blocks, 1, 2**63 - 1),
        ):
            if type(value) is not int or not least <= value <= most:
                raise InvalidInputError(f"'{name}' must be a whole number from {least} to {most}", found=value)

    def as_mapping(self) -> dict[str, str]:
        """The parameters as text, for the store's identity."""
        numbers = ("difficulty_min", "supply_max", "reward", "halving_blocks")
        return {"genesis": self.genesis.hex(), "network": self.network} | {
            name: str(getattr(self, name)) for name in numbers
        }

    @classmethod
    def from_mapping(cls, values: Mapping[str, str]) -> XaiParameters:
        """The parameters of ``as_mapping``. Raises ``InvalidInputError`` for a missing, unknown or bad one."""
        numbers = ("difficulty_min", "supply_max", "reward", "halving_blocks")
        if values.keys() != {"genesis", "network", *numbers}:
            raise InvalidInputError("the parameters are not those of an xai chain", found=", ".join(sorted(values)))
        for name in numbers:
            if not (values[name].isascii() and values[name].isdecimal() and len(values[name]) <= 20):
                raise InvalidInputError(f"'{name}' must be a whole number", found=values[name][:80])
        try:
            genesis = bytes.fromhex(values["genesis"])
        except ValueError as error:
            raise InvalidInputError("the genesis hash is not hex", found=values["genesis"][:80]) from error
        return cls(genesis, values["network"], **{name: int(values[name]) for name in numbers})

    def reward_at(self, height: int, supply: int) -> int:
        """Units that the miner of the block at ``height`` may make where ``supply`` units exist."""
        reward = max(1, self.reward >> min(height // self.halving_blocks, 64)) if self.reward else 0
        return max(0, min(reward, self.supply_max - supply))


def to_stored(block: XaiBlock) -> Block:
    """The block as the store takes it: its whole document is the body, there is no header."""
    producer = (block.miner or "").encode("utf-8")
    return Block(
        hash=block.hash,
        parent=block.parent,
        height=block.height,
        header=b"",
        body=block.body,
        time=block.time,
        work=work_of(block.difficulty),
        producer=producer if len(producer) <= PRODUCER_BYTES_MAX else b"",
    )


class XaiChain:
    """The ``ExecutingChain`` of the original's documents."""

    def __init__(self, parameters: XaiParameters) -> None:
        self.parameters = parameters
        self._last: tuple[Block, XaiBlock] | None = None
        self.spec = ChainSpec(
            name=CHAIN_NAME,
            id=f"{parameters.network}/{parameters.genesis.hex()[:16]}",
            fork_choice="heaviest",
            parameters=parameters.as_mapping(),
        )

    @classmethod
    def from_spec(cls, spec: ChainSpec) -> XaiChain:
        """The chain that a store's identity names. Raises ``ForeignStore`` if it is another one."""
        if spec.name != CHAIN_NAME:
            raise ForeignStore("the store holds another kind of chain", found=spec.name, expected=CHAIN_NAME)
        chain = cls(XaiParameters.from_mapping(spec.parameters))
        if chain.spec.id != spec.id:
            raise ForeignStore("the store holds another chain", found=spec.id, expected=chain.spec.id)
        return chain

    def genesis(self) -> None:
        """The first block is not made here: it comes with the documents."""
        return None

    def decode(
        self, header: bytes, body: bytes | None, *, parent: BlockInfo | None, extra: bytes | None = None
    ) -> Block:
        """The block of this document. Raises ``InvalidBlock``."""
        if body is None or header or extra is not None:
            raise InvalidBlock("a block of this chain is one document")
        return to_stored(read_block(body))

    def validate(self, block: Block, parent: BlockInfo | None, ancestry: Ancestry) -> None:
        """Nothing happens if ``block`` keeps every rule that shows without its execution; else ``InvalidBlock``."""
        found = self._block_of(block)
        if found.height == 0:
            if found.hash != self.parameters.genesis:
                raise InvalidBlock("another genesis block", found=found.hash, expected=self.parameters.genesis)
            return
        _check_contents(found)
        if parent is None:
            raise InvalidBlock("an xai chain begins with its genesis block", hash=block.hash, height=block.height)
        if found.parent != parent.hash or found.height != parent.height + 1:
            raise InvalidBlock(
                "the block does not stand on its parent",
                hash=block.hash,
                height=found.height,
                found=found.parent,
                expected=parent.hash,
            )
        if found.time < parent.time:
            raise InvalidBlock("the block is older than its parent", hash=block.hash, height=found.height)
        if found.difficulty < self.parameters.difficulty_min:
            raise InvalidBlock(
                "the difficulty is too low",
                hash=block.hash,
                height=found.height,
                found=found.difficulty,
                expected=self.parameters.difficulty_min,
            )
        if not found.hash.hex().startswith("0" * found.difficulty):
            raise InvalidBlock("the proof of work is missing", hash=block.hash, height=found.height)

    def execute(self, block: Block, parent: BlockInfo | None, state: MutableState) -> None:
        """The outputs of ``block`` are in ``state``. Raises ``InvalidBlock``; ``state`` must be thrown away then."""
        apply_block(state, self._block_of(block), self.parameters.supply_max)

    def state_root(self, block: Block) -> bytes | None:
        """``None``: the original's blocks say nothing of the state after them."""
        return None

    def _block_of(self, block: Block) -> XaiBlock:
        last = self._last  # what was judged is executed next
        if last is not None and last[0] is block:
            return last[1]
        if block.body is None:
            raise InvalidBlock("a block of this chain must have its document", hash=block.hash, height=block.height)
        found = read_block(block.body)
        if block != to_stored(found):
            raise InvalidBlock("the block's fields are not those of its document", hash=block.hash)
        self._last = (block, found)
        return found


def _check_contents(block: XaiBlock) -> None:
    seen: set[str] = set()
    for tx in block.transactions:
        expected = txid_of(tx.document)
        if tx.txid != expected:
            raise InvalidBlock("a transaction's id is not that of its fields", found=tx.txid, expected=expected)
        if tx.txid in seen:
            raise InvalidBlock("a block has the same transaction twice", txid=tx.txid, height=block.height)
        seen.add(tx.txid)
    root = merkle_root([tx.txid for tx in block.transactions])
    if root != block.merkle_root:
        raise InvalidBlock(
            "the Merkle root is not that of the transactions",
            height=block.height,
            found=block.merkle_root,
            expected=root,
        )


@index("xai-address", version=1)
def ADDRESS_INDEX(block: Block) -> Iterator[tuple[bytes, bytes]]:
    """A row for each end of each transaction: address -> end (0 sent, 1 received), number of the transaction.

    Both rows of a transfer to oneself are kept. A coinbase has no sender.
    """
    if block.body is None:
        return
    for number, tx in enumerate(read_block(block.body).transactions):
        position = number.to_bytes(4, "big")
        if not tx.is_coinbase:
            yield tx.sender.encode("utf-8"), _SENT + position
        yield tx.recipient.encode("utf-8"), _RECEIVED + position


if TYPE_CHECKING:
    _: type[ExecutingChain] = XaiChain
