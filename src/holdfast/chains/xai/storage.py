"""The original's ``BlockchainStorage`` over a store: its operations, tuples, messages and rows.

Invariants:
    * What a save acknowledged is durable, or the answer and ``unsaved_blocks`` say that it is not yet.
    * A save costs what is new, not the chain: blocks at and below the stored tip are not looked at again.
    * "There is nothing here" and "what is here is damaged" are never the same answer, and damage is never overwritten:
      ``failure`` holds the typed error, the files stay, and only ``recover="backup"`` or ``restore_from_backup`` goes
      on from an older copy.
    * Every method answers; only a bug of ours or an interrupt leaves it as an exception.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from ..._fs import FileSystem, RealFileSystem, path_of
from ..._keys import StoreKey
from ...config import Settings
from ...errors import (
    ConflictError,
    CorruptionError,
    ForeignStore,
    FormatError,
    HoldfastError,
    InvalidBlock,
    InvalidInputError,
    MissingFile,
    PrunedError,
    Recovery,
)
from ...events import emit
from ...store import Store
from ...types import BlockInfo
from .archive import Archive, JsonArchive
from .chain import XaiChain, XaiParameters, to_stored
from .codec import XaiBlock, encode_document, read_block
from .config import XaiSettings
from .document import FILE_BYTES_MAX, ChainChecksum, ChainDocument, metadata_of, read_document, rest_of
from .importing import SPACE, block_documents, chain_of_document, import_document, load_rest, save_rest, saved_tip
from .mining import work_of
from .place import XaiPlace
from .validation import check_bodies, check_chain

__all__ = ["BlockchainStorage", "Recover"]

Recover = Literal["lossless", "backup"]
_BATCH: Final = 128
_NOTHING: Final = "No blockchain file found"
_BUFFERED_SECONDS: Final = 3600.0


class BlockchainStorage:
    """One data directory. Any thread may call any method; another process is refused while this one has it."""

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        settings: XaiSettings | None = None,
        rules: XaiParameters | None = None,
        engine: str | None = None,
        recover: Recover = "lossless",
        archive: Archive | None = None,
        key: bytes | StoreKey | None = None,
        fs: FileSystem | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Nothing is opened or made before the first operation.

        Args:
            rules: parameters of a chain that begins here, whatever genesis they name; the main net's if not given.
            data_dir: before ``XAI_DATA_DIR`` and ``BlockchainStorageConfig.DATA_DIR``.
            recover: ``lossless``: what would lose a block is only done when asked for; ``backup``: where the chain
                cannot be read, the newest verified backup, then the highest checkpoint, takes its place. Every block
                is read for it when the store is opened.
            archive: where backups and checkpoints are kept, instead of files of the original's format.
            key: of the store, as for ``holdfast.open``. Only with an ``archive``: the original's files are plain text.
        Raises:
            InvalidInputError: a setting is not allowed.
        """
        if recover not in ("lossless", "backup"):
            raise InvalidInputError("'recover' is 'lossless' or 'backup'", found=str(recover)[:80])
        if key is not None and archive is None:
            raise InvalidInputError(
                "the backups and checkpoints of an encrypted chain would be plain text",
                remedy="give an 'archive' that keeps them where they may lie, together with the key",
            )
        self.settings = settings if settings is not None else XaiSettings.load(data_dir)
        self.data_dir = path_of(self.settings.data_dir if data_dir is None else data_dir, "the data directory")
        fs = fs if fs is not None else RealFileSystem()
        self.archive: Archive = archive if archive is not None else JsonArchive(fs, self.data_dir, clock=clock)
        self.failure: HoldfastError | None = None
        """Why the last operation failed; ``None`` if it did not."""
        self._fs = fs
        self._clock = clock
        self._recover = recover
        self._rules = rules
        self._lock = threading.RLock()
        self._store: Store | None = None
        self._durable = self._unsaved = 0
        self._checksum: tuple[bytes, ChainChecksum] | None = None
        buffered = self.settings.auto_save_interval > 1
        self._place = XaiPlace(
            fs,
            self.data_dir,
            Settings(durability="buffered", buffered_sync_seconds=_BUFFERED_SECONDS) if buffered else Settings(),
            engine,
            key,
        )
        self._note = ""

    # -- the store -----------------------------------------------------------------------------------------------------

    @property
    def lock(self) -> threading.RLock:
        """Held by every operation."""
        return self._lock

    @property
    def unsaved_blocks(self) -> int:
        """Blocks at the end of the chain that a crash may still take; never more than ``AUTO_SAVE_INTERVAL``."""
        return self._unsaved

    def open(self) -> Store | None:
        """The store, opened and recovered; ``None`` if there is nothing in the directory. Raises typed errors."""
        with self._lock:
            if self._store is None:
                self._place.lock()
                self._store = self._ready()
                self._settle()
            store = self._store
            return store if store is not None and store.tip is not None else None

    def close(self) -> None:
        """Everything is durable, the directory free; twice is harmless. The next operation opens it again."""
        with self._lock:
            store, self._store = self._store, None
            self._checksum = None
            try:
                if store is not None:
                    store.close()
                    self._unsaved = 0
            finally:
                self._place.release()

    def sync(self) -> None:
        """Every saved block is durable."""
        with self._lock:
            if self._store is not None:
                self._store.sync()
                self._settle()

    def _settle(self) -> None:
        """Every block in the store is durable."""
        self._durable, self._unsaved = 0 if self._store is None else _count(self._store), 0

    def _ready(self) -> Store | None:
        self._note = ""
        try:
            store = self._place.open()
            if store is not None:
                return self._readable(store)
            if not self._fs.exists(self._place.original) or self._fs.exists(self._place.taken):
                self._refuse_lost()
                return None
            if not self._place.original.is_file():
                raise InvalidInputError("this is not a regular file", path=self._place.original)
            raw = self._fs.read_bytes(self._place.original, limit=FILE_BYTES_MAX)
            return self._adopt(read_document(raw, name=self._place.original))
        except (FormatError, InvalidBlock) as error:
            if self._recover != "backup" or error.recovery is Recovery.REBUILD:  # no block is lost with the views
                raise
            return self._recover_from_archive(error)

    def _readable(self, store: Store) -> Store:
        """``store``; where a backup is to take over from what cannot be read, its documents were. Else it is closed."""
        if self._recover == "backup":
            try:
                check_bodies(store)
            except BaseException:
                store.close()
                raise
        return store

    def _refuse_lost(self) -> None:
        """Backups without a chain, or the file that it once was, are what is left: it is not begun anew over them."""
        copies = len(self.archive.list_backups()) + len(self.archive.list_checkpoints())
        if copies:
            raise MissingFile(
                "the chain is gone but backups or checkpoints of it are here",
                path=self._place.store,
                found=copies,
                remedy="restore one with 'restore_from_backup', or put the store back from a copy",
            )
        if self._fs.exists(self._place.original):
            raise MissingFile(
                "the chain is gone, and blockchain.json is how it was when it was taken in",
                path=self._place.store,
                remedy=f"put the store back from a copy, or remove '{self._place.taken.name}' to begin with it again",
            )

    def _recover_from_archive(self, error: HoldfastError) -> Store:
        """The newest backup that verifies, or the highest checkpoint, is the chain; the damaged one is set aside."""
        for what, rows, load in (
            ("backup", self.archive.list_backups(), self.archive.load_backup),
            ("checkpoint", self.archive.list_checkpoints(), self.archive.load_checkpoint),
        ):
            for row in rows:
                try:
                    document = load(row["filename"])
                    if not document.verified:
                        continue
                    store = self._adopt(document)
                except (FormatError, ForeignStore, InvalidBlock, InvalidInputError):
                    continue
                self._note = f"Recovered from {what}"
                emit(
                    "recovered",
                    logging.WARNING,
                    f"the chain could not be read ({error.code}); it was restored from {row['filename']}",
                    url=str(self.data_dir),
                    notes=[f"restored from {row['filename']}"],
                )
                return store
        raise error

    def _adopt(self, document: ChainDocument) -> Store:
        """The chain of ``document`` is the store; what was there is in ``quarantine/``.

        Raises ``ForeignStore`` if another chain is there.
        """
        stored = self._place.chain()
        chain = chain_of_document(document, stored.parameters if stored is not None else self._rules)
        if stored is not None and chain.spec != stored.spec:
            raise ForeignStore(
                "the file begins with another genesis block than the stored chain",
                path=self._place.store,
                found=chain.parameters.genesis,
                expected=stored.parameters.genesis,
            )
        path = self._place.clear()
        deep = self._place.deep(len(document))
        if deep:
            with self._place.build(path, chain, deep=True) as built:
                import_document(built, document, end=deep)
        built = self._place.build(path, chain)
        try:
            import_document(built, document, first=deep)
            self._checksum = _running_of(built, document)
            self._write_rest(built, document.rest)
        finally:
            running, self._checksum = self._checksum, None
            built.close()
        old, self._store = self._store, None
        if old is not None:
            old.close()
        self._place.take(path)
        store = self._place.open()
        if store is None:
            raise CorruptionError("a restored store is not there", path=self._place.store)
        self._checksum = running
        return store

    # -- saving --------------------------------------------------------------------------------------------------------

    def save_to_disk(
        self,
        blockchain_data: Mapping[str, Any],
        create_backup: bool | None = None,
        *,
        verify: bool = False,
        truncate: bool = False,
    ) -> tuple[bool, str]:
        """The chain of ``blockchain_data`` and what stands beside it are stored; (ok, message).

        Blocks above the stored tip are appended where the hash of the tip sits at its height in the given chain. Where
        it does not, the fork is looked for downwards and the store reorganises to the given chain.

        Args:
            create_backup: ``True`` backs up what is stored before the save, which fails if that does; ``None`` does so
                where a checkpoint is due, and if that fails the save goes on and ``failure`` says it.
            verify: compare every given block with the stored one instead of the tip's hash alone.
            truncate: a given chain that is shorter than the stored one, and not heavier, takes blocks away; without it
                that is refused.
        """
        with self._lock:
            try:
                return True, self._save(blockchain_data, create_backup, verify=verify, truncate=truncate)
            except HoldfastError as error:
                self.failure = error
                return False, f"Failed to save blockchain: {error}"

    def _save(self, data: Mapping[str, Any], create_backup: bool | None, *, verify: bool, truncate: bool) -> str:
        chain = data.get("chain") if isinstance(data, Mapping) else None
        if not isinstance(chain, (list, tuple)) or not chain:
            raise InvalidInputError("there is no block to save; a chain has at least its genesis block")
        rest = rest_of(data)
        store = self.open() or self._create(chain[0])
        before = _count(store)
        if before:
            fork = self._fork(store, chain, verify=verify)
            if len(chain) < before and not truncate and not self._heavier(store, chain, fork):
                raise ConflictError(
                    "the stored chain is longer than the given one, and no lighter; nothing was changed",
                    found=len(chain),
                    expected=before,
                    remedy="load the stored chain, or save with 'truncate=True' to give up blocks of it",
                )
        else:
            fork = -1
        due = len(chain) // self.settings.checkpoint_interval > (fork + 1) // self.settings.checkpoint_interval
        failed = None
        if before and create_backup:
            self._back_up(store)
        elif before and create_backup is None and due:
            failed = self._back_up_by_itself(store)
        self._store_chain(store, chain, fork)
        message = self.record(rest, before=fork + 1)
        self.failure = self.failure or failed
        return message

    def _create(self, first: object) -> Store:
        if self._store is None:
            genesis = read_block(encode_document(first, "the first block"))
            rules = XaiParameters(genesis.hash) if self._rules is None else replace(self._rules, genesis=genesis.hash)
            self._store = self._place.create(XaiChain(rules))
        return self._store

    def _fork(self, store: Store, chain: Sequence[Any], *, verify: bool) -> int:
        """Height of the last block that the store and ``chain`` share. Raises ``ForeignStore`` if there is none."""
        top = min(_count(store), len(chain)) - 1
        for height in range(top, -1, -1):
            if store.blocks.hash_at(height) == _hash_of(chain[height], height):
                break
        else:
            raise ForeignStore("the given chain has another genesis block than the stored one", path=self.data_dir)
        if verify:
            stored = block_documents(store.blocks, store.blocks.canonical(0, height + 1))
            for number, document in enumerate(stored):
                if read_block(encode_document(chain[number])).document != document:
                    raise ConflictError("a given block differs from the stored one of its hash", height=number)
        return height

    def _heavier(self, store: Store, chain: Sequence[Any], fork: int) -> bool:
        """Whether ``chain``, which leaves the stored one above ``fork``, has more work."""
        shared, tip = store.blocks.at(fork), store.tip
        assert shared is not None, "the store has the block at the fork"
        assert tip is not None, "the store has a chain"
        work = sum(work_of(self._given(chain[number], number).difficulty) for number in range(fork + 1, len(chain)))
        return shared.total_work + work > tip.total_work

    def _store_chain(self, store: Store, chain: Sequence[Any], fork: int) -> None:
        """The canonical blocks above ``fork`` are those of ``chain``."""
        for start in range(fork + 1, len(chain), _BATCH):
            blocks = [
                to_stored(self._given(chain[number], number))
                for number in range(start, min(start + _BATCH, len(chain)))
            ]
            store.add_many(blocks, root_allowed=store.tip is None)
        last = bytes.fromhex(chain[-1]["hash"])
        tip = store.tip
        if tip is not None and tip.hash != last:
            self._checksum = None
            wanted = store.blocks.load(last)
            if store.blocks.is_canonical(wanted):
                above = store.blocks.hash_at(wanted.height + 1)
                if above is not None:
                    store.orphan(above, reason="a shorter chain was saved")
            else:
                store.reorg(last, reason="another chain was saved")

    @staticmethod
    def _given(document: object, number: int) -> XaiBlock:
        block = read_block(encode_document(document, f"block {number}"))
        if block.height != number:
            raise InvalidBlock("a block does not stand at its index", found=block.height, expected=number)
        return block

    def record(self, rest: Mapping[str, Any], *, before: int) -> str:
        """The blocks in the store are saved with ``rest``, a checkpoint is made where one is due; the message.

        ``before`` is how many of the blocks were in the chain at the last call, too. Where none is new, all is durable.
        Raises typed errors.
        """
        with self._lock:
            store = self._store
            if store is None:
                raise MissingFile("there is no chain to save", path=self._place.store)
            metadata = self._write_rest(store, rest)
            count = _count(store)
            self._durable = min(self._durable, before)
            self._unsaved = count - self._durable
            note = ""
            if count == before or self._unsaved >= self.settings.auto_save_interval:
                store.sync()
                self._settle()
            else:
                note = f"; the last {self._unsaved} blocks are not durable yet"
            interval = self.settings.checkpoint_interval
            if count // interval > before // interval:
                self._check_point(store, rest, count - count % interval)
            self.failure = None
            checksum = f"{metadata['checksum'][:8]}..." if metadata["checksum"] else "none, old blocks were pruned"
            return f"Blockchain saved successfully (height: {count}, checksum: {checksum})" + note

    def _write_rest(self, store: Store, rest: Mapping[str, Any]) -> dict[str, Any]:
        try:
            checksum = self._checksum_of(store, rest)
        except PrunedError:
            checksum = ""  # it is over all blocks, and not all of them are here
        metadata = metadata_of(_count(store), checksum, self._clock())
        save_rest(store, rest, metadata)
        return metadata

    def _checksum_of(self, store: Store, rest: Mapping[str, Any]) -> str:
        """The original's checksum, carried on from the last save where the chain only grew."""
        tip = store.tip
        kept = self._checksum
        start = 0
        if kept is not None and kept[1].fits(rest) and store.blocks.hash_at(kept[1].blocks - 1) == kept[0]:
            running = kept[1]
            start = running.blocks
        else:
            running = ChainChecksum(rest)
        for document in block_documents(store.blocks, store.blocks.canonical(start)):
            running.add(document)
        if tip is not None:
            self._checksum = (tip.hash, running)
        return running.value(rest)

    # -- loading -------------------------------------------------------------------------------------------------------

    def load_from_disk(self) -> tuple[bool, dict[str, Any] | None, str]:
        """(ok, the chain's object, message). The checksum is computed again from what was read.

        Where nothing is here, ``failure`` is ``None``; where something is here that cannot be read, it says what.
        """
        with self._lock:
            try:
                store = self.open()
                if store is None:
                    self.failure = None
                    return False, None, _NOTHING
                data = self.data()
            except HoldfastError as error:
                self.failure = error
                advice = f"; {error.remedy}" if isinstance(error, PrunedError) else ""
                return False, None, f"Failed to load blockchain: {error}{advice}"
            self.failure = None
            note = self._note or "Blockchain loaded successfully"
            return True, data, f"{note} (height: {len(data['chain'])})"

    def data(self) -> dict[str, Any]:
        """The whole object, checked against the stored checksum. Raises ``CorruptionError``, ``PrunedError``."""
        with self._lock:
            store = self.open()
            if store is None:
                raise MissingFile("there is no chain here", path=self._place.store)
            space = store.documents(SPACE)
            rest, metadata = load_rest(space)
            running = ChainChecksum(rest)
            chain: list[dict[str, Any]] = []
            last: BlockInfo | None = None
            try:
                for last in store.blocks.canonical():
                    chain.extend(block_documents(store.blocks, [last]))
                    running.add(chain[-1])
            except PrunedError as error:
                error.remedy = f"'holdfast journal refill --data-dir {store.path}' brings it back from a backup"
                raise
            if last is not None:
                self._checksum = (last.hash, running)
            of_tip = last is not None and saved_tip(space) == last.hash  # else the save was cut off behind its blocks
            if of_tip and metadata is not None and metadata.get("checksum") not in ("", running.value(rest)):
                raise CorruptionError(
                    "the checksum of the chain is not the one that was saved",
                    found=running.value(rest),
                    expected=str(metadata.get("checksum"))[:80],
                )
            return {**rest, "chain": chain}

    def rest(self) -> dict[str, Any]:
        """What is kept beside the chain, pending transactions included; empty where there is no chain."""
        with self._lock:
            store = self.open()
            return load_rest(store.documents(SPACE))[0] if store is not None else {}

    def get_metadata(self) -> dict[str, Any] | None:
        """Time, number of blocks, checksum and version of the last save; ``None`` if there is none.

        The checksum is empty where blocks that it is over had been pruned from the journal.
        """
        with self._lock:
            try:
                store = self.open()
                return load_rest(store.documents(SPACE))[1] if store is not None else None
            except HoldfastError as error:
                self.failure = error
                return None

    def verify_integrity(self) -> tuple[bool, str]:
        """(ok, message): every block decoded, hashed and judged again, the money counted, the checksum compared.

        Of blocks whose documents were pruned from the journal the links alone; the message says which have theirs.
        """
        with self._lock:
            try:
                store = self.open()
                if store is None:
                    return False, "Blockchain file not found"
                checked = check_chain(store)
                if checked.first:
                    kept = f"height: {checked.blocks}, documents from block {checked.first} on, the others were pruned"
                    return True, f"Integrity verified ({kept})"
                data = self.data()
                checksum = self._checksum_of(store, rest_of(data))
            except HoldfastError as error:
                self.failure = error
                return False, f"Integrity check failed: {error}"
            return True, f"Integrity verified (height: {checked.blocks}, checksum: {checksum[:8]}...)"

    # -- backups and checkpoints ---------------------------------------------------------------------------------------

    def create_backup(self) -> tuple[bool, str]:
        """(ok, name of the new backup of what is stored); the oldest are pruned once it verifies."""
        with self._lock:
            try:
                store = self.open()
                if store is None:
                    return False, _NOTHING
                return True, self._back_up(store)
            except HoldfastError as error:
                self.failure = error
                return False, f"Failed to create backup: {error}"

    def _back_up(self, store: Store) -> str:
        with store.snapshot() as moment:
            rest, _ = load_rest(moment.documents(SPACE))
            name = self.archive.create_backup(block_documents(moment.blocks, moment.blocks.canonical()), rest)
        self.archive.prune_backups(self.settings.max_backups)
        return name

    def _back_up_by_itself(self, store: Store) -> HoldfastError | None:
        """As ``_back_up``, but what goes wrong is told: nobody asked for it, and a save does not depend on it."""
        try:
            self._back_up(store)
        except HoldfastError as error:
            emit(
                "backup_failed",
                logging.ERROR,
                f"no backup was made of {self.data_dir} before a save: {error}",
                error=error,
                place=self.data_dir,
                repository=str(self.data_dir),
            )
            return error
        return None

    def _check_point(self, store: Store, rest: Mapping[str, Any], count: int) -> None:
        documents = block_documents(store.blocks, store.blocks.canonical(0, count))
        try:
            self.archive.create_checkpoint(documents, rest, count)
        except HoldfastError as error:
            emit(
                "checkpoint_failed",
                logging.WARNING,
                f"no checkpoint was made at {count} blocks: {error}",
                height=count,
            )
            self.failure = error

    def list_backups(self) -> list[dict[str, Any]]:
        """Rows with ``filename``, ``timestamp``, ``size_mb``, ``block_height``, newest first."""
        return self.archive.list_backups()

    def list_checkpoints(self) -> list[dict[str, Any]]:
        """The same rows of the checkpoints, highest first."""
        return self.archive.list_checkpoints()

    def cleanup_old_backups(self) -> list[str]:
        """The oldest backups above ``MAX_BACKUPS`` are gone, if the newest verifies; their names."""
        with self._lock:
            return self.archive.prune_backups(self.settings.max_backups)

    _cleanup_old_backups = cleanup_old_backups

    def restore_from_backup(self, backup_filename: str) -> tuple[bool, dict[str, Any] | None, str]:
        """(ok, the chain's object, message). The backup is the stored chain now; the one before is in ``quarantine/``.

        A backup whose checksum is wrong is refused; one that names none is taken, and the message says so.
        """
        return self._restore("backup", self.archive.load_backup, backup_filename)

    def restore_from_checkpoint(self, checkpoint_filename: str) -> tuple[bool, dict[str, Any] | None, str]:
        """As ``restore_from_backup``, from a checkpoint."""
        return self._restore("checkpoint", self.archive.load_checkpoint, checkpoint_filename)

    def _restore(
        self, what: str, load: Callable[[str], ChainDocument], name: str
    ) -> tuple[bool, dict[str, Any] | None, str]:
        with self._lock:
            try:
                self._place.lock()
                document = load(name)
                self._store = self._adopt(document)
                self._settle()
                data = self.data()
            except HoldfastError as error:
                self.failure = error
                return False, None, f"Failed to restore from {what}: {error}"
            self.failure = None
            note = "" if document.verified else " (it names no checksum; its blocks were validated)"
            return True, data, f"Restored from {what}: {name}{note}"


def _count(store: Store) -> int:
    tip = store.tip
    return 0 if tip is None else tip.height + 1


def _running_of(store: Store, document: ChainDocument) -> tuple[bytes, ChainChecksum] | None:
    """The checksum of the file, for a chain that goes on; ``None`` if it does not end with the tip."""
    tip = store.tip
    if document.running is None or tip is None or document.running.blocks != tip.height + 1:
        return None
    same = read_block(document.body(len(document) - 1)).hash == tip.hash
    return (tip.hash, document.running) if same else None


def _hash_of(document: object, number: int) -> bytes:
    value = document.get("hash") if isinstance(document, Mapping) else None
    try:
        found = bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        found = b""
    if len(found) != 32:
        raise InvalidBlock(f"the hash of block {number} is not 64 hex digits", found=repr(value)[:80])
    return found
