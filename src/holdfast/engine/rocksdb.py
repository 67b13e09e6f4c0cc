"""RocksDB through rocksdict: the default engine.

Invariants:
    * One column family, no write-ahead log: memtables reach the disk whole and in order, so that after any crash the
      map is a prefix of the batches. ``sync`` flushes the memtable; the journal is the truth for what came later.
    * No iterator outlives the call, or the snapshot, that made it; ``close`` releases those of open snapshots.
    * Every iteration ends with ``status()``: a damaged block is a ``CorruptionError``, never a short result.
    * Iterators get no bounds (rocksdict frees an upper bound too early and takes a lower one for an upper one).
    * Bare exceptions of rocksdict become typed errors in ``_Translator`` and nowhere else.

A process that opens it read-only (a RocksDB *secondary*) sees what was flushed: the batches up to some sync.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import rocksdict
from rocksdict import AccessType, Rdict, RdictIter

from .._fs import RealFileSystem
from ..errors import (
    ClosedError,
    CorruptionError,
    DeviceError,
    EngineError,
    HoldfastError,
    InvalidInputError,
    MissingFile,
    OutOfSpace,
    ReadOnlyError,
    Recovery,
    ResourceExhausted,
    StoreExists,
    StoreLocked,
)
from ..limits import ENGINE_KEY_BYTES_MAX, ROW_VALUE_BYTES_MAX
from ._shared import Gate, check_batch, check_limit, damage_recovery, run_probe, told
from .api import Batch, Capabilities, EngineStats, Page, Reader, Row

__all__ = ["RocksDbEngine", "probe"]

MIB = 1024 * 1024

# The order matters: the first text found in the message decides.
_KINDS: tuple[tuple[str, type[HoldfastError]], ...] = (
    ("no space left", OutOfSpace),
    ("disk quota exceeded", OutOfSpace),
    ("file too large", OutOfSpace),
    ("too many open files", ResourceExhausted),
    ("cannot allocate memory", ResourceExhausted),
    ("lock hold by current process", StoreLocked),
    ("while lock file", StoreLocked),
    ("permission denied", ReadOnlyError),
    ("read-only file system", ReadOnlyError),
    ("no such file or directory", MissingFile),
    ("corruption", CorruptionError),
    ("checksum mismatch", CorruptionError),
    ("already closed", ClosedError),
    ("io error", DeviceError),
    ("raw mode only support", InvalidInputError),
    ("invalid argument", CorruptionError),
    ("not supported operation in", ReadOnlyError),
)


class _Translator:
    """``with`` it around calls into rocksdict: what they raise leaves as a ``HoldfastError`` that names the path."""

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = path

    def typed(self, error: BaseException) -> HoldfastError:
        """The typed error for what rocksdict raised."""
        text = str(error)
        lowered = text.lower()
        for part, kind in _KINDS:
            if part in lowered:
                return kind(f"RocksDB: {text}", path=self._path, recovery=damage_recovery(kind))
        return EngineError(f"RocksDB: {text or type(error).__name__}", path=self._path)

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, HoldfastError):
            return
        # A Rust panic arrives as a BaseException that is not an Exception.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise told(self.typed(error)) from error


def _floor(rows: RdictIter, key: bytes, low: bytes) -> Row | None:
    rows.seek_for_prev(key)
    if not rows.valid():
        rows.status()
        return None
    found: bytes = rows.key()
    if found < low:
        return None
    value: bytes = rows.value()
    return found, value


def _ceiling(rows: RdictIter, key: bytes, high: bytes) -> Row | None:
    rows.seek(key)
    if not rows.valid():
        rows.status()
        return None
    found: bytes = rows.key()
    if found >= high:
        return None
    value: bytes = rows.value()
    return found, value


def _scan_forward(rows: RdictIter, start: bytes, stop: bytes | None, limit: int) -> Page:
    found: list[Row] = []
    valid, key_of, value_of, step = rows.valid, rows.key, rows.value, rows.next
    rows.seek(start)
    while valid():
        key = key_of()
        if stop is not None and key >= stop:
            return Page(found, None)
        if len(found) == limit:
            return Page(found, key)
        found.append((key, value_of()))
        step()
    rows.status()
    return Page(found, None)


def _scan_reverse(rows: RdictIter, start: bytes, stop: bytes | None, limit: int) -> Page:
    found: list[Row] = []
    valid, key_of, value_of, step = rows.valid, rows.key, rows.value, rows.prev
    if stop is None:
        rows.seek_to_last()
    else:
        rows.seek_for_prev(stop)
        if valid() and key_of() == stop:
            step()
    while valid():
        key = key_of()
        if key < start:
            return Page(found, None)
        if len(found) == limit:
            return Page(found, found[-1][0])
        found.append((key, value_of()))
        step()
    rows.status()
    return Page(found, None)


def _scan(rows: RdictIter, start: bytes, stop: bytes | None, reverse: bool, limit: int) -> Page:
    if reverse:
        return _scan_reverse(rows, start, stop, limit)
    return _scan_forward(rows, start, stop, limit)


def _get(rows: RdictIter, key: bytes) -> bytes | None:
    rows.seek(key)
    if not rows.valid():
        rows.status()
        return None
    if rows.key() != key:
        return None
    value: bytes = rows.value()
    return value


class _Snapshot:
    """One iterator, which RocksDB keeps at the moment of its making."""

    __slots__ = ("__weakref__", "_gate", "_rows", "_translated")

    def __init__(self, gate: Gate, translated: _Translator, rows: RdictIter) -> None:
        self._gate = gate
        self._translated = translated
        self._rows: RdictIter | None = rows

    def release(self) -> None:
        """The iterator is gone; later reads raise ``ClosedError``."""
        self._rows = None

    def _iterator(self) -> RdictIter:
        if self._rows is None:
            raise ClosedError("the snapshot is closed")
        return self._rows

    def get(self, key: bytes) -> bytes | None:
        with self._gate, self._translated:
            return _get(self._iterator(), key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        with self._gate, self._translated:
            rows = self._iterator()
            return [_get(rows, key) for key in keys]

    def floor(self, key: bytes, low: bytes = b"") -> Row | None:
        with self._gate, self._translated:
            return _floor(self._iterator(), key, low)

    def ceiling(self, key: bytes, high: bytes) -> Row | None:
        with self._gate, self._translated:
            return _ceiling(self._iterator(), key, high)

    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False, limit: int = 1000) -> Page:
        check_limit(limit)
        with self._gate, self._translated:
            return _scan(self._iterator(), start, stop, reverse, limit)


def _options(*, create: bool, cache_bytes: int, write_buffer_bytes: int) -> rocksdict.Options:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(create)
    options.set_paranoid_checks(True)
    options.set_write_buffer_size(write_buffer_bytes)
    options.set_max_write_buffer_number(4)
    options.set_max_background_jobs(2)
    options.set_level_compaction_dynamic_level_bytes(True)
    options.set_level_zero_file_num_compaction_trigger(4)
    # write() holds the interpreter, so a stalled one would stop every thread: compaction debt is accepted instead.
    options.set_level_zero_slowdown_writes_trigger(64)
    options.set_level_zero_stop_writes_trigger(128)
    options.set_soft_pending_compaction_bytes_limit(0)
    options.set_hard_pending_compaction_bytes_limit(0)
    options.set_compression_type(rocksdict.DBCompressionType.lz4())
    options.set_bytes_per_sync(MIB)
    options.set_keep_log_file_num(4)
    options.set_max_log_file_size(MIB)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    table = rocksdict.BlockBasedOptions()
    table.set_bloom_filter(10, block_based=False)
    table.set_block_cache(rocksdict.Cache(cache_bytes))
    options.set_block_based_table_factory(table)
    return options


def _write_options() -> rocksdict.WriteOptions:
    options = rocksdict.WriteOptions()
    # A property; the stubs of rocksdict 0.3.29 call it a method.
    setattr(options, "disable_wal", True)  # noqa: B010
    if getattr(options, "disable_wal") is not True:  # noqa: B009
        raise EngineError(
            "rocksdict did not take 'disable_wal'; this version of it cannot be used",
            remedy="install another version of rocksdict, or convert the store to another engine",
            recovery=Recovery.MANUAL,
        )
    return options


class RocksDbEngine:
    """An ordered byte map in a RocksDB directory.

    Args:
        path: the directory.
        create: make it if it is not there; without it a missing one is ``MissingFile`` and nothing is made.
        read_only: open beside a writing process; it sees what that process had synced at open or ``refresh``.
        cache_bytes: block cache.
        write_buffer_bytes: size of a memtable; up to four of them may exist.
    """

    capabilities = Capabilities(
        name="rocksdb",
        persistent=True,
        key_bytes_max=ENGINE_KEY_BYTES_MAX,
        value_bytes_max=ROW_VALUE_BYTES_MAX,
        write_holds_gil=True,
        always_sync=False,
        checksums=True,
        read_only_processes=True,
        checkpoint=True,
    )

    def __init__(
        self,
        path: Path,
        *,
        create: bool = False,
        read_only: bool = False,
        cache_bytes: int = 32 * MIB,
        write_buffer_bytes: int = 32 * MIB,
    ) -> None:
        self.path = path
        self._gate = Gate("rocksdb")
        self._translated = _Translator(path)
        self._write_lock = threading.Lock()
        self._snapshots: weakref.WeakSet[_Snapshot] = weakref.WeakSet()
        self._read_only = read_only
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        fresh = not (path / "CURRENT").exists()
        if fresh and (read_only or not create):
            raise MissingFile("there is no RocksDB engine here", path=path / "CURRENT", recovery=Recovery.REBUILD)
        if fresh and path.is_dir() and any(path.glob("*.sst")):
            raise MissingFile(
                "RocksDB tables without their CURRENT file; a new engine would delete them",
                path=path,
                recovery=Recovery.REBUILD,
            )
        options = _options(create=create and fresh, cache_bytes=cache_bytes, write_buffer_bytes=write_buffer_bytes)
        access = AccessType.read_write()
        if read_only:
            options.set_max_open_files(-1)
            self._scratch = tempfile.TemporaryDirectory(prefix="holdfast-secondary-")
            access = AccessType.secondary(self._scratch.name)
        self._writing = _write_options()
        if fresh:
            RealFileSystem().make_private_directory(path)
        try:
            with self._translated:
                # Without naming the column family, the library opens an existing one without its table options.
                self._db = Rdict(str(path), options, column_families={"default": options}, access_type=access)
        except HoldfastError:
            self._drop_scratch()
            raise
        self._get: Callable[[bytes], bytes | None] = self._db.get

    def _drop_scratch(self) -> None:
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def _refuse(self, _key: bytes) -> bytes | None:
        raise self._gate.refusal()

    def _fail(self, failure: HoldfastError) -> None:
        self._gate.poison(failure)
        self._get = self._refuse

    def get(self, key: bytes) -> bytes | None:
        try:
            return self._get(key)
        except HoldfastError:
            raise
        except Exception as exc:
            raise self._translated.typed(exc) from exc

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        with self._gate, self._translated:
            found: list[bytes | None] = self._db.get(list(keys))  # type: ignore[assignment]
            return found

    def floor(self, key: bytes, low: bytes = b"") -> Row | None:
        with self._gate, self._translated:
            return _floor(self._db.iter(), key, low)

    def ceiling(self, key: bytes, high: bytes) -> Row | None:
        with self._gate, self._translated:
            return _ceiling(self._db.iter(), key, high)

    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False, limit: int = 1000) -> Page:
        check_limit(limit)
        with self._gate, self._translated:
            return _scan(self._db.iter(), start, stop, reverse, limit)

    def apply(self, batch: Batch, *, sync: bool) -> None:
        check_batch(batch)
        with self._gate:
            self._check_writable()
            changes = rocksdict.WriteBatch(raw_mode=True)
            with self._translated:
                for low, high in batch.delete_ranges:
                    if low < high:
                        changes.delete_range(low, high)
                put, delete = changes.put, changes.delete
                for key, value in batch.rows.items():
                    if value is None:
                        delete(key)
                    else:
                        put(key, value)
            try:
                with self._translated, self._write_lock:
                    if not self._gate.usable:
                        raise self._gate.refusal()
                    self._db.write(changes, self._writing)
                if sync:
                    self._flush()
            except HoldfastError as exc:
                self._fail(exc)
                raise

    def _check_writable(self) -> None:
        if self._read_only:
            raise ReadOnlyError("the RocksDB engine was opened read-only", path=self.path)

    def _flush(self) -> None:
        with self._translated:
            self._db.flush(wait=True)

    def sync(self) -> None:
        with self._gate:
            self._check_writable()
            try:
                self._flush()
            except HoldfastError as exc:
                self._fail(exc)
                raise

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Reader]:
        with self._gate, self._translated:
            reader = _Snapshot(self._gate, self._translated, self._db.iter())
            self._snapshots.add(reader)
        try:
            yield reader
        finally:
            reader.release()

    def checkpoint(self, destination: Path) -> None:
        with self._gate:
            self._check_writable()
            if destination.exists():
                raise StoreExists("a checkpoint never overwrites", path=destination)
            with self._translated:
                self._db.flush(wait=True)
                rocksdict.Checkpoint(self._db).create_checkpoint(str(destination))
            RealFileSystem().sync_directory(destination)
            RealFileSystem().sync_directory(destination.parent)

    def refresh(self) -> None:
        with self._gate, self._translated:
            if self._read_only:
                self._db.try_catch_up_with_primary()

    def reclaim(self, low: bytes, high: bytes) -> None:
        self.sync()  # rows still in memory would keep their old versions in the files
        with self._gate, self._translated:
            self._db.compact_range(low, high)  # lets other threads have the interpreter

    def stats(self) -> EngineStats:
        names = (
            "rocksdb.estimate-num-keys",
            "rocksdb.cur-size-all-mem-tables",
            "rocksdb.block-cache-usage",
            "rocksdb.estimate-table-readers-mem",
            "rocksdb.num-files-at-level0",
            "rocksdb.estimate-pending-compaction-bytes",
            "rocksdb.background-errors",
        )
        with self._gate, self._translated:
            details: dict[str, int | float | str] = {}
            for name in names:
                text = self._db.property_value(name)
                if text is not None:
                    details[name.removeprefix("rocksdb.")] = int(text) if text.isdigit() else text
            size = self._db.property_int_value("rocksdb.total-sst-files-size") or 0
            return EngineStats(int(size), details)

    def close(self) -> None:
        self._get = self._refuse
        if not self._gate.close():
            return
        for reader in list(self._snapshots):
            reader.release()
        database = self._db
        del self._db
        try:
            with self._translated:
                database.close()
        except HoldfastError:
            # After a failed write there is nothing left to save: the flush in close fails for the same reason.
            if not self._gate.poisoned:
                raise
        finally:
            self._drop_scratch()


_PROBE = """
import sys
from rocksdict import AccessType, Options, Rdict
options = Options(raw_mode=True)
options.create_if_missing(False)
options.set_paranoid_checks(True)
try:
    rows = Rdict(sys.argv[1], options, access_type=AccessType.read_only(False)).iter()
    rows.seek_to_first()
    rows.status()
    rows.seek_to_last()
    rows.status()
except BaseException as error:
    print(error)
    sys.exit(3)
"""


def probe(path: Path, deadline_seconds: float = 20.0) -> None:
    """A child process has opened ``path`` read-only and read its first and last rows; nothing was changed.

    Cost: the start of a Python process (0.1 s), so for use after an unclean shutdown only.

    Raises:
        CorruptionError: damaged, or the child died.
        MissingFile: there is no engine here, or one of its files is gone.
        RecoveryTimeout: not open within ``deadline_seconds``; the child was killed.
    """
    if not (path / "CURRENT").exists():
        raise MissingFile("there is no RocksDB engine here", path=path / "CURRENT", recovery=Recovery.REBUILD)
    status, output, tail = run_probe("RocksDB", path, _PROBE, deadline_seconds)
    if status == 0:
        return
    if status == 3 and output:
        raise _Translator(path).typed(EngineError(output))
    raise CorruptionError(
        "the process that probed RocksDB died", path=path, status=status, output=tail, recovery=Recovery.REBUILD
    )
