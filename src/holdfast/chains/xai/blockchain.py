"""The original's blockchain object over a store: mine, hold pending transactions, look up balances, save, restore.

Invariants:
    * Nothing derived is held in memory but the list of pending transactions: balances, totals and blocks are the
      store's, so a reload or a restore cannot count anything twice.
    * A genesis block is made only where there is nothing at all: damage raises, and so do backups without a chain.
    * A mined block is returned after it was saved; with ``AUTO_SAVE_INTERVAL`` above 1 ``unsaved_blocks`` says how many
      a crash may still take. A block that is not stored leaves chain, pending transactions and nonces as they were.
    * Pending transactions are checked by the very function that executes blocks, and checked again after every change
      of the tip; transactions of blocks that a reorganisation removed come back if they still apply.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, overload

from ...errors import HoldfastError, InvalidBlock, InvalidInputError, LimitExceeded, SavedInPart
from ...limits import INDEX_ROWS_PER_BLOCK_MAX
from ...state.api import MutableState
from ...store import Store
from ...types import AddResult, AddStatus, BlockInfo
from .amounts import json_amount, text_of, units_of
from .chain import ADDRESS_INDEX, XaiChain, XaiParameters, to_stored
from .codec import (
    ADDRESS_BYTES_MAX,
    BLOCK_BYTES_MAX,
    COINBASE,
    TRANSACTION_DEPTH_MAX,
    XaiTransaction,
    encode_document,
    is_name,
    merkle_root,
    parse_json,
    parse_transaction,
    read_block,
    txid_of,
)
from .importing import PENDING, PENDING_BYTES_MAX, PENDING_MAX, block_documents
from .ledger import apply_transaction, balance, read_totals, utxos
from .mining import mine
from .storage import BlockchainStorage

__all__ = ["ChainView", "XAIBlockchain", "make_transaction"]

_INDEX_SECONDS: Final = 60.0
_TX_BYTES_MAX: Final = 1024 * 1024
_BLOCK_ROOM_BYTES: Final = BLOCK_BYTES_MAX - 4096
"""Of the transactions in a block that is mined here; its other fields and the coinbase are shorter than the rest."""
_BLOCK_TRANSACTIONS_MAX: Final = INDEX_ROWS_PER_BLOCK_MAX // 2 - 1
"""Beside the coinbase: each has two rows in the index."""
_RANK: Final = (AddStatus.EXTENDED, AddStatus.REORGANISED)


def make_transaction(
    sender: str, recipient: str, amount: str, fee: str = "0", *, timestamp: float, **fields: Any
) -> dict[str, Any]:
    """The document of a new transaction with its id, unsigned; amounts are decimal text.

    ``fields`` are others of the original's: ``nonce``, ``metadata``, ``tx_type``, ``signature``, ``public_key``,
    ``inputs``. Raises ``InvalidBlock`` for an amount with more than 8 decimals.
    """
    if type(amount) is not str or type(fee) is not str:
        raise InvalidBlock("amounts are decimal text", found=f"{type(amount).__name__}, {type(fee).__name__}")
    document: dict[str, Any] = {
        "sender": sender,
        "recipient": recipient,
        "amount": json_amount(units_of(amount)),
        "fee": json_amount(units_of(fee, "fee")),
        "timestamp": timestamp,
        "signature": None,
        "public_key": None,
        "tx_type": "normal",
        "nonce": None,
        "metadata": {},
        "risk_score": 0.0,
        "risk_level": "clean",
        "flag_reasons": [],
        **fields,
    }
    return {"txid": txid_of(document), **document}


class ChainView(Sequence[dict[str, Any]]):
    """The canonical blocks as a list of documents that is read from the store when it is looked at."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __len__(self) -> int:
        tip = self._store.tip
        return 0 if tip is None else tip.height + 1

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        at = index + len(self) if index < 0 else index
        info = self._store.blocks.at(at) if at >= 0 else None
        if info is None:
            raise IndexError(index)
        return next(block_documents(self._store.blocks, [info]))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return block_documents(self._store.blocks, self._store.blocks.canonical())


class XAIBlockchain:
    """A chain in a directory, loaded when it is made; a context manager. Any thread may call any method."""

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        storage: BlockchainStorage | None = None,
        genesis: Mapping[str, Any] | None = None,
        allocations: Mapping[str, str] | None = None,
        difficulty: int = 4,
        clock: Callable[[], float] = time.time,
        verify_signature: Callable[[Mapping[str, Any]], bool] | None = None,
    ) -> None:
        """The chain in ``data_dir`` is loaded; where there is nothing, it begins with a genesis block.

        Args:
            genesis: the document of the first block of a new chain; else one is mined.
            allocations: decimal amounts that the mined genesis block gives to addresses.
            difficulty: leading hex zeros of the hashes of blocks that are mined here, unless the chain says another.
            verify_signature: asked for each transaction that is added; without it signatures are not looked at.
        Raises:
            CorruptionError, CommitLoss, MissingFile: what is here cannot be read; nothing was made or changed.
        """
        self.storage = storage if storage is not None else BlockchainStorage(data_dir, clock=clock)
        self._clock = clock
        self._verify = verify_signature
        self._lock = threading.RLock()
        self._default_difficulty = difficulty
        self.difficulty = difficulty
        self.pending_transactions: list[dict[str, Any]] = []
        self._rest: dict[str, Any] = {}
        self.dropped: list[tuple[str, str]] = []
        """Ids and reasons of pending transactions that the last change of the tip made invalid."""
        try:
            if self.storage.open() is None:
                self._begin(genesis, allocations or {})
            self._load()
        except BaseException:
            self.storage.close()
            raise

    def close(self) -> None:
        """Everything is durable and the directory free."""
        self.storage.close()

    def __enter__(self) -> XAIBlockchain:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, genesis: Mapping[str, Any] | None, allocations: Mapping[str, str]) -> None:
        document = genesis if genesis is not None else self._new_genesis(allocations)
        self.difficulty = document.get("difficulty", self.difficulty) if genesis is not None else self.difficulty
        data: dict[str, Any] = {"chain": [dict(document)], PENDING: [], "difficulty": self.difficulty, "stats": {}}
        ok, message = self.storage.save_to_disk(data, create_backup=False)
        if not ok:
            raise self.storage.failure or InvalidInputError(message)

    def _new_genesis(self, allocations: Mapping[str, str]) -> dict[str, Any]:
        now = self._clock()
        gifts = [make_transaction(COINBASE, to, amount, timestamp=now) for to, amount in allocations.items()]
        return self._mined(0, gifts, "0", now)

    def _load(self) -> None:
        """Everything held in memory is that of the store; pending transactions that no longer apply are gone."""
        rest = self.storage.rest()
        pending = rest.pop(PENDING, [])
        self._rest = {name: value for name, value in rest.items() if name not in ("difficulty", "stats")}
        found = rest.get("difficulty")
        self.difficulty = found if type(found) is int and 0 <= found < 64 else self._default_difficulty
        self.pending_transactions = self._still_valid(pending)

    # -- looking -------------------------------------------------------------------------------------------------------

    @property
    def store(self) -> Store:
        """The open store."""
        store = self.storage.open()
        assert store is not None, "a chain has its genesis block from the start"
        return store

    @property
    def parameters(self) -> XaiParameters:
        """What the network agreed on."""
        chain = self.store.chain
        assert isinstance(chain, XaiChain), "the storage opens no other chain"
        return chain.parameters

    @property
    def chain(self) -> ChainView:
        """The canonical blocks."""
        return ChainView(self.store)

    @property
    def tip(self) -> BlockInfo:
        """The last block."""
        tip = self.store.tip
        assert tip is not None, "a chain has its genesis block from the start"
        return tip

    @property
    def unsaved_blocks(self) -> int:
        """Blocks that a crash may still take, 0 unless ``AUTO_SAVE_INTERVAL`` is above 1."""
        return self.storage.unsaved_blocks

    def get_latest_block(self) -> dict[str, Any]:
        """The document of the last block."""
        return self.chain[-1]

    def get_balance(self, address: str) -> str:
        """What ``address`` can spend, as decimal text. Raises ``InvalidInputError`` for what is no address."""
        return text_of(balance(self.store.state, _address(address)))

    def get_utxos(self, address: str) -> list[dict[str, Any]]:
        """The unspent outputs of ``address``, oldest first, with the key under which the state proves each.

        Raises ``InvalidInputError`` for what is no address.
        """
        return [
            {
                "txid": utxo.txid,
                "vout": utxo.vout,
                "amount": text_of(utxo.units),
                "height": utxo.height,
                "key": utxo.key,
            }
            for utxo in utxos(self.store.state, _address(address))
        ]

    def get_total_circulating_supply(self) -> str:
        """All money there is, as decimal text."""
        return text_of(read_totals(self.store.state).supply)

    def get_transaction_history(self, address: str) -> list[dict[str, Any]]:
        """The transactions of ``address``, oldest first, from the index; a transfer to oneself is sent and received.

        Raises ``InvalidInputError`` for what is no address.
        """
        wanted = _address(address).encode("utf-8")
        store = self.store
        store.wait_for_indexes(_INDEX_SECONDS)
        rows = []
        for key, height, value in store.index(ADDRESS_INDEX.name).items(wanted, wanted + b"\x00"):
            if key != wanted:
                continue
            document = self.chain[height]["transactions"][int.from_bytes(value[1:], "big")]
            rows.append(
                {
                    "block": height,
                    "txid": document["txid"],
                    "sender": document["sender"],
                    "recipient": document["recipient"],
                    "amount": text_of(units_of(document["amount"])),
                    "fee": text_of(units_of(document.get("fee", 0), "fee")),
                    "timestamp": document["timestamp"],
                    "type": "received" if value[:1] == b"\x01" else "sent",
                }
            )
        return rows

    def get_stats(self) -> dict[str, Any]:
        """The original's figures; amounts are decimal text. Cost: all unspent outputs, for ``unique_addresses``."""
        owners = {utxo.address for utxo in utxos(self.store.state)}
        return {**self._stats(), "unique_addresses": len(owners)}

    def _stats(self) -> dict[str, Any]:
        totals = read_totals(self.store.state)
        return {
            "blocks": len(self.chain),
            "total_transactions": totals.transactions,
            "pending_transactions": len(self.pending_transactions),
            "difficulty": self.difficulty,
            "total_supply": text_of(totals.supply),
            "latest_block_hash": self.tip.hash.hex(),
        }

    def to_dict(self) -> dict[str, Any]:
        """The whole object as the original exports it. Cost: the chain."""
        with self._lock:
            return {**self._beside(), "chain": list(self.chain)}

    def _beside(self) -> dict[str, Any]:
        pending = [dict(item) for item in self.pending_transactions]
        return {**self._rest, PENDING: pending, "difficulty": self.difficulty, "stats": self._stats()}

    # -- transactions --------------------------------------------------------------------------------------------------

    def create_transaction(
        self, sender: str, recipient: str, amount: str, fee: str = "0", **fields: Any
    ) -> dict[str, Any]:
        """A new document; see ``make_transaction``. It is neither signed nor added."""
        return make_transaction(sender, recipient, amount, fee, timestamp=self._clock(), **fields)

    def add_transaction(self, transaction: Mapping[str, Any]) -> bool:
        """The transaction is pending, durable, and applies after those before it.

        Raises ``InvalidBlock`` for one that does not apply, is there already, makes money or is nested so deeply that
        no block can hold it, ``LimitExceeded`` for one above 1 MiB or too many; nothing changed then.
        """
        document = parse_json(_bounded(_object(transaction, "a transaction")), "the transaction")
        tx = parse_transaction(document)
        if tx.is_coinbase:
            raise InvalidBlock("only a block makes money", txid=tx.txid)
        if self._verify is not None and not self._verify(document):
            raise InvalidBlock("the signature is not the sender's", txid=tx.txid)
        with self._lock:
            valid, refused = self._check([*self.pending_transactions, document])
            if refused:
                raise next((error for item, error in refused if item is document), refused[0][1])
            self._save(valid, before=len(self.chain))
        return True

    def _check(self, documents: Iterable[Any]) -> tuple[list[dict[str, Any]], list[tuple[Any, HoldfastError]]]:
        """Those of ``documents`` that can be pending on the tip one after the other, the others with what is wrong."""
        draft = self.store.draft()
        valid: list[dict[str, Any]] = []
        refused: list[tuple[Any, HoldfastError]] = []
        size = 0
        try:
            for item in documents:
                try:
                    tx = parse_transaction(item, "a pending transaction")
                    document = dict(item)
                    length = len(_bounded(document))
                    if len(valid) == PENDING_MAX or size + length > PENDING_BYTES_MAX:
                        raise LimitExceeded("too many transactions are pending", limit=PENDING_MAX)
                    if tx.is_coinbase:
                        raise InvalidBlock("only a block makes money", txid=tx.txid)
                    if tx.txid != txid_of(document):
                        raise InvalidBlock("a transaction's id is not that of its fields", txid=tx.txid)
                    _apply_whole(draft.state, tx, draft.height, len(valid) + 1)
                    valid.append(document)
                    size += length
                except (InvalidBlock, LimitExceeded) as error:
                    refused.append((item, error))
        finally:
            draft.close()
        return valid, refused

    def _still_valid(self, documents: Iterable[Any]) -> list[dict[str, Any]]:
        valid, refused = self._check(documents)
        self.dropped = [
            (str(item.get("txid")) if isinstance(item, Mapping) else "", str(error)) for item, error in refused
        ]
        return valid

    # -- blocks --------------------------------------------------------------------------------------------------------

    def mine_pending_transactions(
        self, miner_address: str, *, max_attempts: int | None = None, stop: Callable[[], bool] | None = None
    ) -> dict[str, Any]:
        """The document of a new block, mined and saved, with as many of the pending transactions as it can hold.

        Raises:
            MiningError, MiningCancelled, storage errors: chain and pending transactions are as before.
            SavedInPart: the block is in the chain and its transactions are not pending; those that are were not saved.
        """
        with self._lock:
            parent = self.get_latest_block()
            height = parent["index"] + 1
            pending = self._still_valid(self.pending_transactions)
            included = pending[: _fitting(pending)]
            fees = sum(units_of(item.get("fee", 0), "fee") for item in included)
            now = max(self._clock(), parent["timestamp"])
            reward = self.parameters.reward_at(height, read_totals(self.store.state).supply) + fees
            coinbase = make_transaction(COINBASE, miner_address, text_of(reward), timestamp=now)
            block = self._mined(height, [coinbase, *included], parent["hash"], now, max_attempts, stop)
            before = len(self.chain)
            stored = to_stored(read_block(encode_document(block)))
            self.store.add(stored)
            with _after(stored.hash):
                self._keep(pending[len(included) :], before=before)
            return block

    def _mined(
        self,
        height: int,
        transactions: list[dict[str, Any]],
        previous: str,
        now: float,
        max_attempts: int | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> dict[str, Any]:
        document = {
            "index": height,
            "timestamp": now,
            "transactions": transactions,
            "previous_hash": previous,
            "merkle_root": merkle_root([item["txid"] for item in transactions]),
            "nonce": 0,
            "difficulty": self.difficulty,
        }
        return mine(document, max_attempts=max_attempts, stop=stop)

    def add_block(self, block: Mapping[str, Any]) -> AddResult:
        """A block mined elsewhere is stored where the heavier chain puts it; pending transactions are checked again.

        Raises:
            InvalidBlock, ParentUnknown, FinalityError: nothing changed.
            SavedInPart: the block is in the chain; pending transactions were not saved.
        """
        stored = to_stored(read_block(encode_document(_object(block, "a block"), "the block")))
        with self._lock:
            before = len(self.chain)
            result = self.store.add(stored)
            if result.status in _RANK:
                removed: tuple[bytes, ...] = ()
                if result.reorg is not None:
                    removed, before = result.reorg.orphaned, result.reorg.fork_height + 1
                with _after(stored.hash):
                    self._after_change(removed, before=before)
            return result

    def _after_change(self, removed: Iterable[bytes], *, before: int) -> None:
        returned = []
        for info in sorted((self.store.blocks.load(found) for found in removed), key=lambda info: info.height):
            for document in next(block_documents(self.store.blocks, [info]))["transactions"]:
                if document["sender"] != COINBASE:
                    returned.append(document)
        self._keep(self._still_valid([*returned, *self.pending_transactions]), before=before)

    # -- saving and restoring ------------------------------------------------------------------------------------------

    def _save(self, pending: list[dict[str, Any]], *, before: int) -> str:
        """``pending`` is the list, in memory and in the store; the memory is as before if that fails."""
        old = self.pending_transactions
        self.pending_transactions = pending
        try:
            return self.storage.record(self._beside(), before=before)
        except BaseException:
            self.pending_transactions = old
            raise

    def _keep(self, pending: list[dict[str, Any]], *, before: int) -> None:
        """``pending`` is the list, in memory also where saving it fails: the tip has moved already."""
        self.pending_transactions = pending
        self.storage.record(self._beside(), before=before)

    def save_blockchain(self, create_backup: bool = False) -> tuple[bool, str]:
        """(ok, message): everything is durable now, whatever ``AUTO_SAVE_INTERVAL`` is; with a backup if asked."""
        with self._lock:
            try:
                message = self._save(self.pending_transactions, before=len(self.chain))
                self.storage.sync()
            except HoldfastError as error:
                self.storage.failure = error
                return False, f"Failed to save blockchain: {error}"
            if create_backup:
                return self.storage.create_backup()
            return True, message

    def reload_blockchain(self) -> tuple[bool, str]:
        """(ok, message): the store was opened again and everything held in memory is what it says."""
        with self._lock:
            try:
                self.storage.close()
                if self.storage.open() is None:
                    return False, "No blockchain file found"
                self._load()
            except HoldfastError as error:
                self.storage.failure = error
                return False, f"Failed to load blockchain: {error}"
            return True, f"Blockchain loaded successfully (height: {len(self.chain)})"

    def verify_blockchain_integrity(self) -> tuple[bool, str]:
        """(ok, message); see ``BlockchainStorage.verify_integrity``."""
        return self.storage.verify_integrity()

    def list_backups(self) -> list[dict[str, Any]]:
        """Rows of the backups, newest first."""
        return self.storage.list_backups()

    def list_checkpoints(self) -> list[dict[str, Any]]:
        """Rows of the checkpoints, highest first."""
        return self.storage.list_checkpoints()

    def restore_from_backup(self, backup_filename: str) -> tuple[bool, str]:
        """(ok, message): the backup is the chain, in the store and here; the chain before is in ``quarantine/``."""
        with self._lock:
            ok, _, message = self.storage.restore_from_backup(backup_filename)
            if ok:
                self._load()
            return ok, message


@contextmanager
def _after(block_hash: bytes) -> Iterator[None]:
    """What fails after this block was stored says that it was."""
    try:
        yield
    except HoldfastError as error:
        raise SavedInPart(
            f"the block is in the chain, but what stands beside it could not be saved: {error}",
            hash=block_hash,
            cause=error.code,
        ) from error


def _address(value: object) -> str:
    if not is_name(value):
        raise InvalidInputError(
            f"an address is printable text of 1 to {ADDRESS_BYTES_MAX} bytes", found=repr(value)[:80]
        )
    return value


def _object(value: object, what: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise InvalidBlock(f"{what} is not an object", found=type(value).__name__)
    return dict(value)


def _bounded(document: object) -> bytes:
    """The bytes of a transaction that a block can hold. Raises ``InvalidBlock``, ``LimitExceeded``."""
    data = encode_document(document, "the transaction", levels=TRANSACTION_DEPTH_MAX)
    if len(data) > _TX_BYTES_MAX:
        raise LimitExceeded("the transaction is too long", found=len(data), limit=_TX_BYTES_MAX)
    return data


def _fitting(documents: Sequence[object]) -> int:
    """How many of the transactions, from the first on, one block holds."""
    room = _BLOCK_ROOM_BYTES
    for number, document in enumerate(documents[:_BLOCK_TRANSACTIONS_MAX]):
        room -= len(encode_document(document)) + 1
        if room < 0:
            return number
    return min(len(documents), _BLOCK_TRANSACTIONS_MAX)


def _apply_whole(state: MutableState, tx: XaiTransaction, height: int, position: int) -> None:
    """``tx`` is in ``state``, or ``InvalidBlock`` is raised and ``state`` is as before."""
    trial = _Trial(state)
    apply_transaction(trial, tx, height, position)
    state.update(trial.changes)


class _Trial:
    """Writes over a state that can be forgotten."""

    def __init__(self, state: MutableState) -> None:
        self._state = state
        self.changes: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        return self.changes[key] if key in self.changes else self._state.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.get(key) for key in keys]

    def __getitem__(self, key: bytes) -> bytes:
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and self.get(key) is not None

    def scan(
        self, prefix: bytes = b"", *, start: bytes | None = None, stop: bytes | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """One transaction reads an address once, before it writes there: the state below is what it sees."""
        return self._state.scan(prefix, start=start, stop=stop, reverse=reverse)

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self.changes[key] = value

    def __delitem__(self, key: bytes) -> None:
        self.changes[key] = None

    def update(self, changes: Mapping[bytes, bytes | None]) -> None:
        self.changes.update(changes)
