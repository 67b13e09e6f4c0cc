"""The mining chain of seed 001 over a durable store: mine, add, look up, nominate, validate, export.

Invariants:
    * Nothing is held in memory but the handle: the tip, the height and every block are the store's, so the tip seen
      here is always the durable tip, also after a failed write.
    * A mined block is returned only after it is durable. A failure to mine (``MiningError``) has changed nothing; a
      failure to store (``PersistenceError``) has left the tip where it was.
    * Cancelling a mining call either finds the block durable or has changed nothing.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TextIO

from ..._keys import StoreKey
from ...config import Settings
from ...doctor.door import open_attended
from ...errors import HoldfastError, InvalidInputError, MiningCancelled, PersistenceError, StoreExists
from ...store import Store
from ...types import AddResult, BlockInfo, ReorgInfo
from .chain import PowChain, to_stored
from .codec import PowBlock, PowData, PowHeader, data_hash, encode_data, encode_header
from .importing import Importer
from .json_format import MinerBlock, describe, read_records, write_records
from .mining import Stop, mine, mine_async
from .nominations import Nomination, shuffled_nominations
from .persistence import BlockchainPersistence, CanonicalBlocks, StoreAncestry, as_hash, read_block
from .rules import PowParameters
from .validation import ValidationReport, validate_blocks

__all__ = ["Blockchain", "ChainConfig"]


@dataclass(frozen=True, slots=True)
class ChainConfig:
    """What a node is told of its chain: the network's parameters, and heights whose block is forced (hash or hex)."""

    parameters: PowParameters = field(default_factory=PowParameters)
    forced_blocks: Mapping[int, bytes | str] = field(default_factory=dict)

    def forced_hashes(self) -> dict[int, bytes]:
        """The forced blocks with their hashes as bytes."""
        return {height: as_hash(value) for height, value in self.forced_blocks.items()}


def _now() -> int:
    return int(time.time())


class Blockchain:
    """A pow chain on a store. Made by ``load_or_create`` or ``from_json``; a context manager."""

    def __init__(
        self, store: Store, chain: PowChain, config: ChainConfig, *, owned: bool = True, clock: Callable[[], int] = _now
    ) -> None:
        self.store = store
        self.chain = chain
        self.config = config
        self.persistence = BlockchainPersistence(store)
        self._ancestry = StoreAncestry(store)
        self._owned = owned
        self._clock = clock

    @classmethod
    def load_or_create(
        cls,
        target: str | Path | Store,
        config: ChainConfig | None = None,
        *,
        validate: bool = False,
        settings: Settings | None = None,
        key: bytes | StoreKey | None = None,
        clock: Callable[[], int] = _now,
    ) -> Blockchain:
        """The chain at ``target`` (URL, path or open store), created with its genesis block if there is none.

        Args:
            validate: check every canonical block before returning.
            settings: of the store that is opened; not for one that is open already.
            key: of the store that is opened, as for ``holdfast.open``; one that is open already has its own.
            clock: seconds since 1970, read for the timestamp of a mined block.

        Raises:
            ForeignStore: the store holds another network; nothing was touched.
            CorruptionError: ``validate`` found a bad block.
        """
        config = config if config is not None else ChainConfig()
        chain = PowChain(config.parameters)
        forced = config.forced_hashes()
        if forced.get(0, chain.genesis().hash) != chain.genesis().hash:
            raise InvalidInputError("the forced block at height 0 is not this chain's genesis", found=forced[0])
        owned = not isinstance(target, Store)
        if isinstance(target, Store):
            if key is not None:
                raise InvalidInputError("a store that is open already takes no key")
            chain.require(target.spec)
            store = target
            if forced:
                store.force_blocks(forced)
        else:
            store = open_attended(target, chain=chain, forced_blocks=forced, settings=settings, key=key)
        blockchain = cls(store, chain, config, owned=owned, clock=clock)
        if validate:
            try:
                blockchain.validate_chain().require()
            except HoldfastError:
                blockchain.close()
                raise
        return blockchain

    def close(self) -> None:
        """Close the store if it was opened here."""
        if self._owned:
            self.store.close()

    def __enter__(self) -> Blockchain:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- tip -----------------------------------------------------------------------------------------------------

    @property
    def tip(self) -> BlockInfo:
        """The durable tip."""
        tip = self.store.tip
        assert tip is not None, "a pow store has its genesis block from the start"
        return tip

    @property
    def height(self) -> int:
        """Index of the tip; 0 = only genesis."""
        return self.tip.height

    # -- mining --------------------------------------------------------------------------------------------------

    def next_header(self, peer_id: str, miner_number: int, *, parent: BlockInfo | None = None) -> PowHeader:
        """The header to mine on ``parent`` (the tip): valid difficulty, earliest valid time from now on, nonce 0."""
        parent = parent if parent is not None else self.tip
        return PowHeader(
            index=parent.height + 1,
            time=max(self._clock(), parent.time, self.chain.parameters.minimum_block_timestamp),
            parent=parent.hash,
            data_hash=data_hash(PowData(peer_id, miner_number)),
            difficulty=self.chain.expected_difficulty(parent, self._ancestry),
            nonce=0,
        )

    def mine_block(
        self, peer_id: str, miner_number: int, *, max_attempts: int | None = None, stop: Stop | None = None
    ) -> PowBlock:
        """A new block on the tip, mined and durable.

        When another block takes the tip meanwhile, mining begins again on the new one; if that happens in the last
        moment, the block is stored as a side block.

        Args:
            max_attempts: nonces tried altogether; ``None`` = no bound.
            stop: an event or a callable, looked at every few milliseconds.

        Raises:
            MiningError, MiningCancelled: nothing was found; nothing was changed.
            PersistenceError: found but not stored. ``context`` has ``header`` and ``body`` for ``add_block``.
        """
        data = PowData(peer_id, miner_number)
        attempts = _Attempts(max_attempts, stop)
        while True:
            parent = self.tip
            header = self.next_header(peer_id, miner_number, parent=parent)
            try:
                nonce = mine(header, max_attempts=attempts.left, stop=attempts.until(partial(self._moved, parent)))
            except MiningCancelled as exc:
                attempts.again(exc)
                continue
            return self._store_mined(PowBlock(header.with_nonce(nonce), data))

    async def mine_block_async(
        self,
        peer_id: str,
        miner_number: int,
        *,
        max_attempts: int | None = None,
        stop: Stop | None = None,
        executor: Executor | None = None,
    ) -> PowBlock:
        """``mine_block`` off the loop: the search on ``executor`` (threads; or processes), the write on a thread.

        Cancelled while it searches, nothing was changed. Cancelled while it writes, the write is finished first, so
        afterwards the store is at rest and holds the block or does not.
        """
        data = PowData(peer_id, miner_number)
        attempts = _Attempts(max_attempts, stop)
        while True:
            parent = self.tip
            header = await asyncio.to_thread(self.next_header, peer_id, miner_number, parent=parent)
            moved = attempts.until(partial(self._moved, parent))
            try:
                nonce = await mine_async(header, executor=executor, max_attempts=attempts.left, stop=moved)
            except MiningCancelled as exc:
                attempts.again(exc)
                continue
            block = PowBlock(header.with_nonce(nonce), data)
            return await _finished(asyncio.ensure_future(asyncio.to_thread(self._store_mined, block)))

    def _moved(self, parent: BlockInfo) -> bool:
        return self.tip.hash != parent.hash

    def _store_mined(self, block: PowBlock) -> PowBlock:
        try:
            self.store.add(to_stored(block))
        except HoldfastError as exc:
            raise PersistenceError(
                f"the block was mined but not stored: {exc}",
                remedy=exc.remedy,
                recovery=exc.recovery,
                hash=block.hash,
                index=block.index,
                cause=exc.code,
                header=encode_header(block.header),
                body=encode_data(block.data),
            ) from exc
        return block

    # -- blocks --------------------------------------------------------------------------------------------------

    def add_block(self, block: PowBlock, *, wait_for_parent: bool = False) -> AddResult:
        """A block mined elsewhere is validated and durable; fork choice has decided about the tip.

        Raises:
            InvalidBlock, ParentUnknown, FinalityError: refused; nothing was changed.
            PersistenceError: the storage failed; the tip is the durable tip.
        """
        return self.persistence.add(block, wait_for_parent=wait_for_parent)

    def get_block_by_hash(self, block_hash: bytes | str) -> PowBlock | None:
        """A stored block of any branch."""
        info = self.store.blocks.get(as_hash(block_hash))
        return None if info is None else read_block(self.store, info)

    def get_block_by_index(self, index: int) -> PowBlock | None:
        """The canonical block at ``index``."""
        info = self.store.blocks.at(index)
        return None if info is None else read_block(self.store, info)

    def get_miner_block(self, block_hash: bytes | str) -> MinerBlock | None:
        """A stored block with its status, times, reason and competitor."""
        info = self.store.blocks.get(as_hash(block_hash))
        return None if info is None else describe(self.store.blocks, info)

    def load_canonical_blocks(self, start: int = 0, stop: int | None = None) -> CanonicalBlocks:
        """The canonical blocks from ``start`` up to, not including, ``stop``: lazily read, with their count."""
        return self.persistence.load_canonical_blocks(start, stop)

    def load_epoch_blocks(self, epoch: int) -> list[PowBlock]:
        """The canonical blocks of ``epoch``, at most 40, by rising index."""
        return self.persistence.load_epoch_blocks(epoch)

    def blocks_by_peer(self, peer_id: str) -> Iterator[PowBlock]:
        """The canonical blocks that nominate ``peer_id``, lazily."""
        for info in self.store.blocks.by_producer(peer_id.encode("utf-8")):
            yield read_block(self.store, info)

    def count_blocks_by_peer(self, peer_id: str) -> int:
        """How many canonical blocks nominate ``peer_id``."""
        return self.store.blocks.count_by_producer(peer_id.encode("utf-8"))

    def orphaned_blocks(self) -> Iterator[MinerBlock]:
        """Every orphaned block with its reason, competitor and times, lazily."""
        for orphan in self.store.blocks.orphans():
            yield describe(self.store.blocks, self.store.blocks.load(orphan.hash))

    def mark_block_orphaned(
        self, block_hash: bytes | str, reason: str, competing_hash: bytes | str | None = None
    ) -> ReorgInfo | None:
        """``block_hash`` is orphaned; if it was canonical, the tip is its parent. See ``BlockchainPersistence``."""
        return self.persistence.mark_block_orphaned(block_hash, reason, competing_hash)

    def get_epoch_shuffled_nominations(self, epoch: int) -> tuple[Nomination, ...] | None:
        """The nominations of ``epoch`` in shuffled order, ``None`` until all its 40 blocks are canonical."""
        return shuffled_nominations(self.load_epoch_blocks(epoch))

    # -- validation and JSON ---------------------------------------------------------------------------------------

    def validate_chain(self, start: int = 0, stop: int | None = None, *, issues_max: int = 100) -> ValidationReport:
        """Every rule checked again on the canonical blocks ``start <= index < stop``, one block in memory at a time."""
        return validate_blocks(
            self.store, self.chain, start, stop, forced=self.config.forced_hashes(), issues_max=issues_max
        )

    def to_json(self, stream: TextIO, *, lines: bool = False) -> int:
        """Every stored block, orphans included, is written to ``stream``; how many. See ``json_format``.

        The export is of one moment, whatever the chain does meanwhile. ``ViewExpired`` if so much is written meanwhile
        that the moment cannot be kept in memory.
        """
        with self.store.snapshot() as moment:
            return write_records(moment.blocks, stream, lines=lines)

    @classmethod
    def from_json(
        cls,
        stream: TextIO,
        target: str | Path | Store,
        config: ChainConfig | None = None,
        *,
        settings: Settings | None = None,
        key: bytes | StoreKey | None = None,
        clock: Callable[[], int] = _now,
    ) -> Blockchain:
        """A new chain at ``target`` that holds what ``to_json`` wrote; exporting it gives the same bytes.

        Raises:
            StoreExists: the store holds more than its genesis block.
            InvalidInputError, InvalidBlock, ParentUnknown: the file is bad; the blocks before the fault are stored.
        """
        blockchain = cls.load_or_create(target, config, settings=settings, key=key, clock=clock)
        try:
            if blockchain.store.blocks.competitors(1):
                raise StoreExists("an export can only be imported into a new store", height=blockchain.height)
            Importer(blockchain.store, blockchain.chain).run(read_records(stream))
        except BaseException:
            blockchain.close()
            raise
        return blockchain


class _Attempts:
    """The nonces and the patience that are left to one mining call."""

    def __init__(self, max_attempts: int | None, stop: Stop | None) -> None:
        if max_attempts is not None and max_attempts < 1:
            raise InvalidInputError("max_attempts must be at least 1", found=max_attempts)
        self.left = max_attempts
        self._stop = stop
        self._stopped = False

    def until(self, moved: Callable[[], bool]) -> Callable[[], bool]:
        """True when the caller's stop says so (remembered) or the tip has moved."""

        def check() -> bool:
            stop = self._stop
            if stop is not None and (stop.is_set() if isinstance(stop, threading.Event) else stop()):
                self._stopped = True
            return self._stopped or moved()

        return check

    def again(self, ended: MiningCancelled) -> None:
        """Account for a search that ended; raise it if it ended on request."""
        if self._stopped:
            raise ended
        tried = ended.context["attempts"]
        assert isinstance(tried, int)
        if self.left is not None:
            self.left -= tried


async def _finished(writing: asyncio.Future[PowBlock]) -> PowBlock:
    """The result of a write that a cancellation does not interrupt, only outlast."""
    try:
        return await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait({writing})
        if not writing.cancelled():
            writing.exception()  # seen; the cancellation is what the caller asked for
        raise
