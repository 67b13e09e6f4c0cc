"""The contract chain as the store sees it: blocks of calls, whose headers bind the state and the receipts after them.

Invariants:
    * ``apply`` is the only way from transactions to changes: blocks that are built here, received from others and
      replayed go through it. What the genesis block does not hold, no block has: it is empty, so every value of the
      state comes from a transaction.
    * Pure: the verdict on a block is a function of its bytes, its parent and the state of its parent.
    * The rules (network, prices, gas of a block, time of the genesis) are named in the store's identity, and their
      hash stands in every header.
    * Code that this node does not have refuses the block (``StateError``); it never changes what the block means.

Callers are taken as they are given: who accepts transactions checks their signatures.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from ..errors import ForeignStore, InvalidBlock, InvalidInputError
from ..limits import STATE_CHANGES_BYTES_MAX, STATE_CHANGES_MAX
from ..state.api import MutableState
from ..store.chain import Ancestry, ChainSpec, SchemeName
from ..types import ZERO_HASH, Block, BlockInfo
from .context import CallContext
from .executor import Call, ContractExecutor, RootedState
from .gas import DEFAULT_SCHEDULE, GasSchedule
from .limits import GAS_MAX, NAME_BYTES_MAX, TIMESTAMP_MAX
from .receipts import Receipt, encode_receipts, receipts_hash
from .registry import ContractRegistry
from .transactions import (
    Header,
    Transaction,
    body_hash,
    decode_body,
    decode_header,
    encode_body,
    encode_header,
    header_hash,
    lp,
)

if TYPE_CHECKING:
    from ..store.chain import ExecutingChain

__all__ = ["CHAIN_NAME", "ContractChain", "ContractRules", "Proposal"]

CHAIN_NAME: Final = "contracts"
_PRICE: Final = "gas_"


@dataclass(frozen=True, slots=True)
class ContractRules:
    """What all nodes of a network agree on. ``block_gas`` bounds the sum of the gas limits in a block.

    Raises ``InvalidInputError``: also when a full block could change more of the state than a block may.
    """

    network: str = "main"
    block_gas: int = 100_000_000
    genesis_time: int = 0
    schedule: GasSchedule = field(default_factory=lambda: DEFAULT_SCHEDULE)
    scheme: SchemeName = "jmt-sha256"

    def __post_init__(self) -> None:
        if not self.network.isascii() or not self.network.isprintable() or not 1 <= len(self.network) <= NAME_BYTES_MAX:
            raise InvalidInputError(f"a network has a name of 1 to {NAME_BYTES_MAX} ASCII characters")
        for name, value, most in (
            ("block_gas", self.block_gas, GAS_MAX),
            ("genesis_time", self.genesis_time, TIMESTAMP_MAX),
        ):
            if type(value) is not int or not 0 <= value <= most:
                raise InvalidInputError(f"'{name}' must be a whole number from 0 to {most}", found=value)
        price = min(self.schedule.write, self.schedule.delete)
        if self.block_gas > price * STATE_CHANGES_MAX or (
            self.block_gas > self.schedule.write_byte * STATE_CHANGES_BYTES_MAX
        ):
            raise InvalidInputError(
                "the gas of a block buys more changes of the state than a block may have",
                remedy="lower 'block_gas' or raise the prices of 'write', 'write_byte' and 'delete'",
                block_gas=self.block_gas,
                changes_max=STATE_CHANGES_MAX,
                bytes_max=STATE_CHANGES_BYTES_MAX,
            )

    def as_mapping(self) -> dict[str, str]:
        """The rules as text, for the store's identity."""
        prices = {_PRICE + name: price for name, price in self.schedule.as_mapping().items()}
        own = {"network": self.network, "block_gas": str(self.block_gas), "genesis_time": str(self.genesis_time)}
        return own | prices

    @classmethod
    def from_mapping(cls, parameters: Mapping[str, str], scheme: SchemeName = "jmt-sha256") -> ContractRules:
        """The rules of ``as_mapping``. Raises ``InvalidInputError`` for a missing, unknown or bad one."""
        prices = {name.removeprefix(_PRICE): text for name, text in parameters.items() if name.startswith(_PRICE)}
        own = {name: text for name, text in parameters.items() if not name.startswith(_PRICE)}
        if own.keys() != {"network", "block_gas", "genesis_time"}:
            raise InvalidInputError("the parameters are not those of a contract chain", found=", ".join(sorted(own)))
        for name in ("block_gas", "genesis_time"):
            if not own[name].isascii() or not own[name].isdigit():
                raise InvalidInputError(f"'{name}' must be a whole number", found=own[name])
        schedule = GasSchedule.from_mapping(prices)
        return cls(own["network"], int(own["block_gas"]), int(own["genesis_time"]), schedule, scheme)

    @property
    def hash(self) -> bytes:
        """32 bytes that stand for the rules in a header."""
        rows = sorted((self.as_mapping() | {"scheme": self.scheme}).items())
        fields = [part.encode("ascii") for row in rows for part in row]
        return sha256(lp(b"holdfast/contracts/rules/1", struct.pack(">I", len(rows)), *fields)).digest()


@dataclass(frozen=True, slots=True)
class Proposal:
    """A block that was built and not stored. Its ``extra`` holds the encoded receipts."""

    block: Block
    receipts: list[Receipt]


class ContractChain:
    """The ``ExecutingChain`` of contracts. ``registry`` is this node's code."""

    def __init__(self, registry: ContractRegistry, rules: ContractRules | None = None) -> None:
        self.registry = registry
        self.rules = rules if rules is not None else ContractRules()
        self._rules_hash = self.rules.hash
        self._genesis = self._block(
            Header(
                height=0,
                time=self.rules.genesis_time,
                parent=ZERO_HASH,
                rules=self._rules_hash,
                body=body_hash(encode_body(())),
                receipts=receipts_hash(encode_receipts(())),
                state_root=ZERO_HASH,
            ),
            encode_body(()),
            encode_receipts(()),
        )
        self.spec = ChainSpec(
            name=CHAIN_NAME,
            id=f"{self.rules.network}/{self._genesis.hash.hex()[:16]}",
            fork_choice="longest",
            scheme=self.rules.scheme,
            parameters=self.rules.as_mapping(),
        )

    @classmethod
    def from_spec(cls, spec: ChainSpec, registry: ContractRegistry) -> ContractChain:
        """The chain that a store's identity names. Raises ``ForeignStore`` if it is another one."""
        if spec.name != CHAIN_NAME:
            raise ForeignStore("the store holds another kind of chain", found=spec.name, expected=CHAIN_NAME)
        chain = cls(registry, ContractRules.from_mapping(spec.parameters, spec.scheme))
        if chain.spec != spec:
            raise ForeignStore("the store holds another chain", found=spec.id, expected=chain.spec.id)
        return chain

    # -- what the store asks -------------------------------------------------------------------------------------

    def genesis(self) -> Block:
        """The fixed first block: no transactions, no claim about the state."""
        return self._genesis

    def decode(
        self, header: bytes, body: bytes | None, *, parent: BlockInfo | None, extra: bytes | None = None
    ) -> Block:
        """The block of these bytes; the header says its height. Raises ``InvalidBlock``.

        Without a body it is what the header says, as at the base of a store; ``validate`` and ``execute`` refuse it.
        """
        decoded = decode_header(header)
        for what, found, expected in (
            ("body does", None if body is None else body_hash(body), decoded.body),
            ("receipts do", None if extra is None else receipts_hash(extra), decoded.receipts),
        ):
            if found is not None and found != expected:
                raise InvalidBlock(
                    f"the {what} not belong to the header", height=decoded.height, found=found, expected=expected
                )
        if body is not None:
            self._check_transactions(decode_body(body))
        return self._block(decoded, body, extra)

    def validate(self, block: Block, parent: BlockInfo | None, ancestry: Ancestry) -> None:
        """Nothing happens if ``block`` keeps every rule that shows without its execution; else ``InvalidBlock``."""
        decoded = self.decode(block.header, block.body, parent=parent, extra=block.extra)
        if block.body is None:
            raise InvalidBlock("a block of this chain must have a body", hash=block.hash, height=block.height)
        if block != decoded:
            raise InvalidBlock("the block's fields are not those of its header and body", hash=block.hash)
        header = decode_header(block.header)
        if header.rules != self._rules_hash:
            raise InvalidBlock(
                "the block was made by other rules", hash=block.hash, found=header.rules, expected=self._rules_hash
            )
        if header.height == 0 and block.hash != self._genesis.hash:
            raise InvalidBlock("another genesis block", found=block.hash, expected=self._genesis.hash)
        if parent is None:
            return
        if header.parent != parent.hash or header.height != parent.height + 1:
            raise InvalidBlock(
                "the block does not stand on its parent",
                hash=block.hash,
                found=header.height,
                expected=parent.height + 1,
                parent=header.parent,
            )
        if header.time < parent.time:
            raise InvalidBlock(
                "the block is older than its parent", hash=block.hash, found=header.time, expected=parent.time
            )

    def execute(self, block: Block, parent: BlockInfo | None, state: MutableState) -> bytes:
        """The changes of ``block`` are in ``state``; the encoded receipts. The root is not looked at.

        Raises:
            InvalidBlock: the receipts are not those of the header.
            StateError: this node lacks the code of a contract. ``state`` must be thrown away in both cases.
        """
        if block.body is None:
            raise InvalidBlock("a block of this chain must have a body", hash=block.hash, height=block.height)
        header = decode_header(block.header)
        transactions = decode_body(block.body)
        self._check_transactions(transactions)
        receipts = encode_receipts(self.apply(transactions, header.height, header.time, state))
        if receipts_hash(receipts) != header.receipts:
            raise InvalidBlock(
                "execution gives other receipts than the block says",
                hash=block.hash,
                height=block.height,
                found=receipts_hash(receipts),
                expected=header.receipts,
            )
        return receipts

    def state_root(self, block: Block) -> bytes | None:
        """The root that the header claims; ``None`` for the genesis block."""
        header = decode_header(block.header)
        return None if header.height == 0 else header.state_root

    # -- the one way to execute ----------------------------------------------------------------------------------

    def apply(self, transactions: Sequence[Transaction], height: int, time: int, state: MutableState) -> list[Receipt]:
        """The changes of ``transactions`` are in ``state``, all at once; one receipt for each, in order.

        Raises ``StateError`` if this node lacks code, and whatever the state raises; nothing was written then, unless
        the state broke while it was written.
        """
        executor = ContractExecutor(self.registry, self.rules.schedule, missing_code="refuse")
        executor.begin_block(state, height=height, timestamp=time)
        receipts = []
        for transaction in transactions:
            context = CallContext(transaction.caller, height, time, transaction.gas_limit, transaction.hash)
            if isinstance(transaction.action, Call):
                receipts.append(executor.execute_call(transaction.action, context))
            else:
                receipts.append(executor.deploy(transaction.action, context))
        executor.flush_block()
        return receipts

    def propose(
        self, parent: BlockInfo, transactions: Sequence[Transaction], *, time: int, state: RootedState
    ) -> Proposal:
        """A valid block on ``parent``, whose state ``state`` was and which now holds the changes. Nothing is stored.

        Raises ``InvalidInputError`` if the transactions cannot stand in one block or ``time`` is before the parent's,
        ``StateError`` if code is missing.
        """
        if type(time) is not int or time < parent.time:
            raise InvalidInputError("a block is not older than its parent", found=time, expected=f">= {parent.time}")
        body = encode_body(transactions)
        try:
            self._check_transactions(transactions)
        except InvalidBlock as error:
            raise InvalidInputError(error.message, found=error.context.get("found")) from error
        receipts = self.apply(transactions, parent.height + 1, time, state)
        encoded = encode_receipts(receipts)
        header = Header(
            height=parent.height + 1,
            time=time,
            parent=parent.hash,
            rules=self._rules_hash,
            body=body_hash(body),
            receipts=receipts_hash(encoded),
            state_root=state.root(),
        )
        return Proposal(self._block(header, body, encoded), receipts)

    # -- parts ---------------------------------------------------------------------------------------------------

    def _check_transactions(self, transactions: Sequence[Transaction]) -> None:
        gas = sum(transaction.gas_limit for transaction in transactions)
        if gas > self.rules.block_gas:
            raise InvalidBlock(
                "the transactions ask for more gas than a block has", found=gas, limit=self.rules.block_gas
            )
        seen: dict[bytes, int] = {}
        for position, transaction in enumerate(transactions):
            if seen.setdefault(transaction.hash, position) != position:
                raise InvalidBlock("a block has the same transaction twice", found=transaction.hash, position=position)

    def _block(self, header: Header, body: bytes | None, extra: bytes | None) -> Block:
        return Block(
            hash=header_hash(header),
            parent=header.parent,
            height=header.height,
            header=encode_header(header),
            body=body,
            time=header.time,
            extra=extra,
        )


if TYPE_CHECKING:
    _: type[ExecutingChain] = ContractChain
