"""Following a live node: backfill, poll, and go along with its reorganisations.

Invariants:
    * The node's head is authoritative: after a round the store's tip is that head, also where the fork choice alone
      would have kept another branch. A head that is an ancestor of the tip is a node that lags: nothing is undone.
    * Every block is checked by its hashes and roots before it is stored; a node cannot make the store take a block that
      does not follow a stored one.
    * Nothing is kept outside the store, so a follower that was killed goes on where its last durable block was.
    * A reorganisation below the finalized height, or deeper than allowed, is refused with the store's own error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ...errors import (
    AnswerTooLarge,
    BlockNotFound,
    FinalityError,
    ForeignStore,
    InvalidBlock,
    InvalidInputError,
    RemoteError,
)
from ...types import AddStatus, Block, BlockInfo, ReorgInfo
from ..importing import BlockReader, BlockStore, Candidate
from .chain import EvmChain
from .decoding import block_from_json
from .header import data_field, quantity_field
from .rpc import RpcClient
from .transactions import objects

__all__ = ["FollowedStore", "SyncProgress", "SyncReport", "chain_of_node", "follow"]

Json = Mapping[str, object]

_REASON = "the followed node reorganised"
_SEARCH_STEP = 16
_NAP_SECONDS = 0.05


class _Blocks(BlockReader, Protocol):
    def hash_at(self, height: int, /) -> bytes | None:
        """Hash of the canonical block."""

    def canonical(self) -> Iterator[BlockInfo]:
        """Canonical blocks from the root on."""


class _Spec(Protocol):
    @property
    def name(self) -> str:
        """Kind of the chain."""

    @property
    def id(self) -> str:
        """Which chain of the kind."""


class FollowedStore(BlockStore, Protocol):
    """What following needs of a store, beyond what an import does."""

    @property
    def spec(self) -> _Spec:
        """The chain of the store."""

    @property
    def finalized(self) -> int | None:
        """The finalized height."""

    @property
    def blocks(self) -> _Blocks:
        """The stored blocks."""

    def reorg(self, to: bytes, *, reason: str = ...) -> ReorgInfo | None:
        """Make a stored block the tip."""

    def finalize(self, height: int) -> None:
        """Make a height final."""


@dataclass(frozen=True, slots=True)
class SyncProgress:
    """How far the store is behind the node's head as last seen."""

    height: int | None
    head_height: int
    blocks_added: int
    reorgs: int
    seconds: float


@dataclass(slots=True)
class SyncReport:
    """What following did. ``reached`` is the height of the tip when it ended."""

    added: int = 0
    known: int = 0
    reorgs: int = 0
    uncles: int = 0
    rounds: int = 0
    interrupted_rounds: int = 0
    reached: int | None = None
    head_height: int | None = None
    finalized: int | None = None
    stopped: bool = False
    seconds: float = 0.0

    def as_dict(self) -> dict[str, object]:
        """The report as plain JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}


class _NodeMoved(Exception):
    """The node switched branches while it was being read; the round starts again."""


@dataclass(frozen=True, slots=True)
class _Head:
    number: int
    hash: bytes


def chain_of_node(url: str, *, client: RpcClient | None = None) -> EvmChain:
    """The chain that the node at ``url`` is on, by its chain id."""
    own = client or RpcClient(url)
    try:
        return EvmChain(_number(own, own.call("eth_chainId")))
    finally:
        if client is None:
            own.close()


def follow(
    store: FollowedStore,
    url: str,
    *,
    poll_seconds: float = 1.0,
    until: int | None = None,
    base_height: int | None = None,
    receipts: bool = False,
    finality: bool = False,
    batch_blocks: int = 32,
    stop: Callable[[], bool] | None = None,
    progress: Callable[[SyncProgress], None] | None = None,
    client: RpcClient | None = None,
) -> SyncReport:
    """The store's canonical chain is the node's, until ``stop()`` or until height ``until`` is reached.

    Args:
        poll_seconds: pause between looks at the node's head.
        until: end when the tip is at or above this height and the round is complete; ``None`` follows for ever.
        base_height: where an empty store begins; its genesis block if ``None``.
        receipts: fetch and keep receipts too, and check their root.
        finality: finalize what the node calls finalized.
        stop: asked between batches and in pauses.
    Raises:
        ForeignStore: the node is on another chain than the store.
        RemoteError: the node does not answer, or not usably; the same call goes on later.
        FinalityError, ReorgTooDeep: the node left a branch that the store may not leave.
    """
    if poll_seconds < 0 or batch_blocks < 1:
        raise InvalidInputError("a pause is not negative and a batch holds a block", found=poll_seconds)
    own = client or RpcClient(url)
    follower = _Follower(store, own, base_height, receipts, batch_blocks, stop or _never, progress)
    try:
        follower.check_chain()
        _rounds(follower, poll_seconds, until, finality=finality)
    finally:
        if client is None:
            own.close()
    return follower.finished()


def _never() -> bool:
    return False


def _rounds(follower: _Follower, poll_seconds: float, until: int | None, *, finality: bool) -> None:
    while True:
        complete = follower.round(until)
        if follower.report.stopped:
            return
        if complete and finality:
            follower.finalize()
        tip = follower.store.tip
        if complete and until is not None and tip is not None and tip.height >= until:
            return
        end = time.monotonic() + (poll_seconds if complete else min(poll_seconds, _NAP_SECONDS))
        while (left := end - time.monotonic()) > 0:
            if follower.stopping():
                return
            time.sleep(min(left, _NAP_SECONDS))
        if follower.stopping():
            return


class _Follower:
    """One run of ``follow``."""

    def __init__(
        self,
        store: FollowedStore,
        client: RpcClient,
        base_height: int | None,
        receipts: bool,
        batch_blocks: int,
        stop: Callable[[], bool],
        progress: Callable[[SyncProgress], None] | None,
    ) -> None:
        self.store = store
        self.client = client
        self.base_height = base_height or 0
        self.receipts = receipts
        self.batch_blocks = batch_blocks
        self.stop = stop
        self.progress = progress
        self.report = SyncReport()
        self.started = time.monotonic()

    def stopping(self) -> bool:
        self.report.stopped = self.report.stopped or self.stop()
        return self.report.stopped

    def finished(self) -> SyncReport:
        tip = self.store.tip
        self.report.reached = None if tip is None else tip.height
        self.report.finalized = self.store.finalized
        self.report.seconds = time.monotonic() - self.started
        return self.report

    # -- is it the same chain? -------------------------------------------------------------------------------------

    def check_chain(self) -> None:
        """The node's chain id and its block at the store's root are the store's."""
        chain_id = _number(self.client, self.client.call("eth_chainId"))
        spec = self.store.spec
        if spec.name != "evm" or (spec.id and spec.id != str(chain_id)):
            raise ForeignStore(
                "the node is on another chain than the store",
                node=self.client.name,
                found=chain_id,
                expected=f"{spec.name} {spec.id}",
                remedy="follow a node of the store's chain, or give another data directory",
            )
        root = next(iter(self.store.blocks.canonical()), None)
        if root is None:
            return
        there = self._head(hex(root.height))
        if there is None or there.hash != root.hash:
            raise ForeignStore(
                "the node has another block where the store begins",
                node=self.client.name,
                height=root.height,
                found=None if there is None else there.hash,
                expected=root.hash,
                remedy="follow a node of the store's chain, or give another data directory",
            )

    # -- one look at the node --------------------------------------------------------------------------------------

    def round(self, until: int | None) -> bool:
        """The store's tip is the node's head (or the block at ``until``); false if the node moved meanwhile."""
        self.report.rounds += 1
        head = self._head("latest")
        if head is None:
            raise RemoteError("the node has no latest block", node=self.client.name)
        self.report.head_height = head.number
        if until is not None and head.number > until:
            head = self._head(hex(until))
            if head is None:
                return False
        tip = self.store.tip
        if tip is not None and tip.hash == head.hash:
            return True
        if tip is not None and self.store.blocks.hash_at(head.number) == head.hash:
            return True  # the node lags behind the store
        try:
            if self._fetch(self._common_height(tip, head), head):
                self._adopt(head)
        except _NodeMoved:
            self.report.interrupted_rounds += 1
            return False
        except InvalidBlock as exc:
            exc.context.setdefault("node", self.client.name)
            raise
        return not self.report.stopped

    def _common_height(self, tip: BlockInfo | None, head: _Head) -> int:
        """Height of the highest canonical block that the node has too; one below the base for an empty store."""
        if tip is None:
            return self.base_height - 1
        root = next(iter(self.store.blocks.canonical())).height
        finalized = max(root, self.store.finalized or 0)
        height = min(tip.height, head.number)
        while height >= root:
            low = max(root, height - _SEARCH_STEP + 1) if height < min(tip.height, head.number) else height
            heights = range(height, low - 1, -1)
            answers = self.client.batch([("eth_getBlockByNumber", (hex(number), False)) for number in heights])
            for number, answer in zip(heights, answers, strict=True):
                there = _head_of(answer)
                if there is None:
                    raise _NodeMoved
                if there.hash == self.store.blocks.hash_at(number):
                    return number
                if number <= finalized:
                    raise FinalityError(
                        "the node's branch leaves the store's below a final block",
                        node=self.client.name,
                        height=number,
                        found=there.hash,
                        expected=self.store.blocks.hash_at(number),
                        finalized=self.store.finalized,
                    )
            height = low - 1
        raise ForeignStore("the node shares no block with the store", node=self.client.name)

    def _fetch(self, common: int, head: _Head) -> bool:
        """Blocks above ``common`` up to ``head`` are stored; false if the caller asked to stop."""
        height = common + 1
        parent = self.store.blocks.hash_at(common) if common >= self.base_height else None
        size = self.batch_blocks
        while height <= head.number:
            if self.stopping():
                return False
            numbers = range(height, min(height + size, head.number + 1))
            try:
                candidates = self._blocks(numbers)
            except AnswerTooLarge:
                if size == 1:
                    raise
                size = max(1, size // 2)
                continue
            for number, candidate in zip(numbers, candidates, strict=True):
                block = candidate.block
                if block.height != number or (parent is not None and block.parent != parent):
                    raise _NodeMoved
                parent = block.hash
            self._store(candidates)
            height += len(numbers)
            self._tell(head)
        return True

    def _store(self, candidates: Sequence[Candidate]) -> None:
        blocks: list[Block] = []
        heights = {candidate.block.hash for candidate in candidates}
        for candidate in candidates:
            blocks.append(candidate.block)
            for uncle in candidate.uncles:
                if uncle.parent in heights or self.store.blocks.get(uncle.parent) is not None:
                    blocks.append(uncle)
        for block, result in zip(blocks, self.store.add_many(blocks, root_allowed=True), strict=True):
            if result.status is AddStatus.KNOWN:
                self.report.known += 1
                continue
            self.report.added += 1
            self.report.uncles += block.body is None
            self.report.reorgs += result.status is AddStatus.REORGANISED

    def _adopt(self, head: _Head) -> None:
        tip = self.store.tip
        if tip is None or tip.hash == head.hash:
            return
        if self.store.blocks.get(head.hash) is None:
            raise _NodeMoved
        if self.store.reorg(head.hash, reason=_REASON) is not None:
            self.report.reorgs += 1

    def _tell(self, head: _Head) -> None:
        if self.progress is None:
            return
        tip = self.store.tip
        self.progress(
            SyncProgress(
                None if tip is None else tip.height,
                head.number,
                self.report.added,
                self.report.reorgs,
                time.monotonic() - self.started,
            )
        )

    def finalize(self) -> None:
        """What the node calls finalized is final here, as far as it is stored."""
        there = self._head("finalized")
        if there is None or there.number <= (self.store.finalized or 0):
            return
        if self.store.blocks.hash_at(there.number) == there.hash:
            try:
                self.store.finalize(there.number)
            except BlockNotFound as exc:  # the tip moved below it between the two calls
                raise RemoteError("the node's finalized block is not on its own chain", node=self.client.name) from exc

    # -- asking ----------------------------------------------------------------------------------------------------

    def _head(self, which: str) -> _Head | None:
        return _head_of(self.client.call("eth_getBlockByNumber", which, False))

    def _blocks(self, numbers: range) -> list[Candidate]:
        calls: list[tuple[str, Sequence[object]]] = [
            ("eth_getBlockByNumber", (hex(number), True)) for number in numbers
        ]
        answers = self.client.batch(calls)
        found: list[Json] = []
        for answer in answers:
            if answer is None:
                raise _NodeMoved
            if not isinstance(answer, dict):
                raise RemoteError("the node's block is not an object", node=self.client.name, found=repr(answer)[:80])
            found.append(answer)
        receipts = self._receipts(found) if self.receipts else [None] * len(found)
        return [
            block_from_json(block, receipts=list_, uncles=self._uncles(block))
            for block, list_ in zip(found, receipts, strict=True)
        ]

    def _uncles(self, block: Json) -> Sequence[Json]:
        named = block.get("uncles")
        if not isinstance(named, list) or not named:
            return ()
        answers = self.client.batch(
            [("eth_getUncleByBlockHashAndIndex", (block.get("hash"), hex(index))) for index in range(len(named))]
        )
        return objects(answers, "uncles")

    def _receipts(self, blocks: Sequence[Json]) -> list[Sequence[Json] | None]:
        """The receipts of each block, one call per transaction: every node has it, whatever its version."""
        counts: list[int] = []
        calls: list[tuple[str, Sequence[object]]] = []
        for block in blocks:
            transactions = objects(block.get("transactions"), "transactions")
            counts.append(len(transactions))
            calls.extend(("eth_getTransactionReceipt", (tx.get("hash"),)) for tx in transactions)
        answers = self.client.batch(calls)
        if None in answers:
            raise _NodeMoved
        grouped: list[Sequence[Json] | None] = []
        at = 0
        for block, count in zip(blocks, counts, strict=True):
            receipts = objects(answers[at : at + count], "receipts")
            if any(receipt.get("blockHash") != block.get("hash") for receipt in receipts):
                raise _NodeMoved
            grouped.append(receipts)
            at += count
        return grouped


def _head_of(answer: object) -> _Head | None:
    if answer is None:
        return None
    if not isinstance(answer, dict):
        raise RemoteError("the node's block is not an object", found=repr(answer)[:80])
    try:
        return _Head(quantity_field(answer, "number"), data_field(answer, "hash", 32))
    except InvalidBlock as exc:
        raise RemoteError("the node's block has no number or hash", found=exc.message) from exc


def _number(client: RpcClient, answer: object) -> int:
    try:
        return quantity_field({"number": answer}, "number")
    except InvalidBlock as exc:
        raise RemoteError("the node's answer is not a number", node=client.name, found=repr(answer)[:80]) from exc
