"""LMDB through py-lmdb: fast reads, every batch synced.

Invariants:
    * The file is made in a staging directory, synced and renamed: LMDB itself never syncs its directory.
    * Before any page is read, the file is known to be as long as its meta page says: a short one kills the process.
    * No read transaction outlives a call, except in ``snapshot``; an old one stops the reuse of pages.
    * The map is reserved once, sparse, and never resized. ``sync`` and ``metasync`` are on, ``writemap`` is off.
    * LMDB lets two writing processes in, one after the other: the lock of the store has to keep the second one out.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import weakref
from collections.abc import Iterator, Sequence
from itertools import islice, takewhile
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import lmdb

from .._fs import RealFileSystem, translate_os_error
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
    UnsupportedFormat,
)
from ..limits import ENGINE_KEY_BYTES_MAX, ROW_VALUE_BYTES_MAX
from ._shared import Gate, check_batch, check_limit, clamp_bound, create_in_staging, damage_recovery, run_probe, told
from .api import Batch, Capabilities, EngineStats, Page, Reader, Row

__all__ = ["MAP_BYTES_DEFAULT", "LmdbEngine", "probe"]

MAP_BYTES_DEFAULT = 1 << 40

_FILE = "data.mdb"
_MAGIC = 0xBEEFC0DE
_META = struct.Struct("<16x II 16x I 92x QQ")  # page header; magic, version; page size; last page, transaction
_FULL_BELOW_BYTES = 1024 * 1024

_KINDS: tuple[tuple[type[Exception], type[HoldfastError]], ...] = (
    (lmdb.MapFullError, OutOfSpace),
    (lmdb.ReadersFullError, ResourceExhausted),
    (lmdb.MemoryError, ResourceExhausted),
    (lmdb.LockError, StoreLocked),
    (lmdb.ReadonlyError, ReadOnlyError),
    (lmdb.CorruptedError, CorruptionError),
    (lmdb.PageNotFoundError, CorruptionError),
    (lmdb.InvalidError, CorruptionError),
    (lmdb.PanicError, CorruptionError),
    (lmdb.CursorFullError, CorruptionError),
    (lmdb.VersionMismatchError, UnsupportedFormat),
)

_TEXTS: tuple[tuple[str, type[HoldfastError]], ...] = (
    ("no space left", OutOfSpace),
    ("disk quota exceeded", OutOfSpace),
    ("file too large", OutOfSpace),
    ("already open in this process", StoreLocked),
    ("closed/deleted/dropped", ClosedError),
    ("permission denied", ReadOnlyError),
    ("read-only file system", ReadOnlyError),
    ("no such file", MissingFile),
    ("cannot allocate memory", ResourceExhausted),
    ("too many open files", ResourceExhausted),
)


class _Translator:
    """``with`` it around calls into py-lmdb: what they raise leaves as a ``HoldfastError`` that names the path."""

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = path

    def typed(self, error: Exception) -> HoldfastError:
        """The typed error for what py-lmdb raised."""
        if isinstance(error, OSError):
            return translate_os_error(error, self._path)
        for cause, kind in _KINDS:
            if isinstance(error, cause):
                return kind(f"LMDB: {error}", path=self._path, recovery=damage_recovery(kind))
        text = str(error)
        for part, kind in _TEXTS:
            if part in text.lower():
                return kind(f"LMDB: {text}", path=self._path, recovery=damage_recovery(kind))
        if isinstance(error, lmdb.DiskError) or "input/output error" in text.lower():
            # LMDB reports a short write, which is how a full tmpfs ends, as an I/O error.
            full = RealFileSystem().space(self._path).free < _FULL_BELOW_BYTES
            return (OutOfSpace if full else DeviceError)(f"LMDB: {text}", path=self._path)
        return EngineError(f"LMDB: {text or type(error).__name__}", path=self._path)

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, HoldfastError):
            raise told(self.typed(error)) from error


def _get(transaction: lmdb.Transaction, key: bytes) -> bytes | None:
    # LMDB refuses an empty key and one above its own limit; neither can be stored.
    return cast(bytes | None, transaction.get(key)) if 0 < len(key) <= ENGINE_KEY_BYTES_MAX else None


def _get_many(transaction: lmdb.Transaction, keys: Sequence[bytes]) -> list[bytes | None]:
    get = transaction.get
    try:
        return cast(list[bytes | None], [get(key) for key in keys])
    except lmdb.BadValsizeError:
        return [_get(transaction, key) for key in keys]


def _ceiling(transaction: lmdb.Transaction, key: bytes, high: bytes) -> Row | None:
    key = clamp_bound(key)
    with transaction.cursor() as cursor:
        if not (cursor.set_range(key) if key else cursor.first()):
            return None
        row = cast(Row, cursor.item())
        return row if row[0] < high else None


def _floor(transaction: lmdb.Transaction, key: bytes, low: bytes) -> Row | None:
    key = clamp_bound(key)
    if not key:
        return None
    with transaction.cursor() as cursor:
        if cursor.set_range(key):
            found = cursor.key() == key or cursor.prev()
        else:
            found = cursor.last()
        if not found:
            return None
        row = cast(Row, cursor.item())
        return row if row[0] >= low else None


def _scan_forward(cursor: lmdb.Cursor, start: bytes, stop: bytes | None, limit: int) -> Page:
    if not (cursor.set_range(start) if start else cursor.first()):
        return Page([], None)
    entries = cast(Iterator[Row], cursor.iternext(keys=True, values=True))
    if stop is None:
        rows = list(islice(entries, limit + 1))
    else:
        bound = stop
        rows = list(islice(takewhile(lambda row: row[0] < bound, entries), limit + 1))
    if len(rows) <= limit:
        return Page(rows, None)
    return Page(rows[:limit], rows[limit][0])


def _scan_reverse(cursor: lmdb.Cursor, start: bytes, stop: bytes | None, limit: int) -> Page:
    if stop == b"":
        return Page([], None)
    if stop is None or not cursor.set_range(stop):
        found = cursor.last()
    else:
        found = cursor.prev()
    if not found:
        return Page([], None)
    entries = cast(Iterator[Row], cursor.iterprev(keys=True, values=True))
    rows = list(islice(takewhile(lambda row: row[0] >= start, entries), limit + 1))
    if len(rows) <= limit:
        return Page(rows, None)
    return Page(rows[:limit], rows[limit - 1][0])


def _scan(transaction: lmdb.Transaction, start: bytes, stop: bytes | None, reverse: bool, limit: int) -> Page:
    start = clamp_bound(start)
    stop = None if stop is None else clamp_bound(stop)
    with transaction.cursor() as cursor:
        return (_scan_reverse if reverse else _scan_forward)(cursor, start, stop, limit)


class _Snapshot:
    """One read transaction."""

    __slots__ = ("__weakref__", "_gate", "_transaction", "_translated")

    def __init__(self, gate: Gate, translated: _Translator, transaction: lmdb.Transaction) -> None:
        self._gate = gate
        self._translated = translated
        self._transaction: lmdb.Transaction | None = transaction

    def release(self) -> None:
        """The transaction is over; later reads raise ``ClosedError``."""
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            transaction.abort()

    def _current(self) -> lmdb.Transaction:
        if self._transaction is None:
            raise ClosedError("the snapshot is closed")
        return self._transaction

    def get(self, key: bytes) -> bytes | None:
        with self._gate, self._translated:
            return _get(self._current(), key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        with self._gate, self._translated:
            return _get_many(self._current(), keys)

    def floor(self, key: bytes, low: bytes = b"") -> Row | None:
        with self._gate, self._translated:
            return _floor(self._current(), key, low)

    def ceiling(self, key: bytes, high: bytes) -> Row | None:
        with self._gate, self._translated:
            return _ceiling(self._current(), key, high)

    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False, limit: int = 1000) -> Page:
        check_limit(limit)
        with self._gate, self._translated:
            return _scan(self._current(), start, stop, reverse, limit)


def _check_file(path: Path) -> bool:
    """True if the file is as long as its newest meta page says; ``CorruptionError`` if there is no good meta page."""
    file = path / _FILE
    if not file.exists():
        raise MissingFile("there is no LMDB engine here", path=file, recovery=Recovery.REBUILD)
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            metas = [_decode_meta(file, os.pread(handle.fileno(), _META.size, 0))]
            page_bytes = metas[0][0]
            metas.append(_decode_meta(file, os.pread(handle.fileno(), _META.size, page_bytes)))
    except OSError as exc:
        raise translate_os_error(exc, file) from exc
    _, last_page, _ = max(metas, key=lambda meta: meta[2])
    return size >= (last_page + 1) * page_bytes


def _decode_meta(file: Path, raw: bytes) -> tuple[int, int, int]:
    """Page size, last page and transaction of a meta page."""
    if len(raw) < _META.size:
        raise CorruptionError(
            "the LMDB file ends inside a meta page", path=file, found=len(raw), recovery=Recovery.REBUILD
        )
    magic, version, page_bytes, last_page, transaction = _META.unpack(raw)
    if magic != _MAGIC:
        raise CorruptionError(
            "not an LMDB file, or a damaged meta page", path=file, found=hex(magic), recovery=Recovery.REBUILD
        )
    if version != 1:
        raise UnsupportedFormat("the file was not written by LMDB 0.9", path=file, found=version, expected=1)
    if page_bytes < 512 or page_bytes > 65536 or page_bytes & (page_bytes - 1):
        raise CorruptionError("damaged LMDB meta page", path=file, page_bytes=page_bytes, recovery=Recovery.REBUILD)
    return page_bytes, last_page, transaction


_PROBE = """
import os
import sys
import lmdb
try:
    env = lmdb.open(sys.argv[1], readonly=True, lock=False, create=False, readahead=False, map_size=int(sys.argv[3]))
    with env.begin() as transaction, transaction.cursor() as cursor:
        cursor.first()
        cursor.last()
        if sys.argv[2] == "all":
            with open(os.devnull, "wb") as nowhere:
                env.copyfd(nowhere.fileno(), compact=True)  # reads every row, and the list of free pages
except BaseException as error:
    print(error)
    sys.exit(3)
"""


def _run_probe(path: Path, deadline_seconds: float, extent: str, map_bytes: int) -> None:
    status, output, tail = run_probe("LMDB", path, _PROBE, deadline_seconds, extent, str(map_bytes))
    if status != 0:
        raise CorruptionError(
            "LMDB cannot read its file, or died of it",
            path=path,
            status=status,
            output=output or tail,
            recovery=Recovery.REBUILD,
        )


def probe(path: Path, deadline_seconds: float = 20.0) -> None:
    """A child process has read the first and last rows of ``path``; nothing was changed.

    Raises:
        CorruptionError: damaged, or the child died.
        MissingFile: there is no engine here.
        RecoveryTimeout: not done within ``deadline_seconds``; the child was killed.
    """
    extent = "ends" if _check_file(path) else "all"
    _run_probe(path, deadline_seconds, extent, MAP_BYTES_DEFAULT)


class LmdbEngine:
    """An ordered byte map in an LMDB directory. Every ``apply`` is durable.

    Args:
        path: the directory.
        create: make it if it is not there; without it a missing one is ``MissingFile`` and nothing is made.
        read_only: open beside a writing process; every call sees the newest state.
        map_bytes: upper bound of the file, reserved as address space only.
    """

    capabilities = Capabilities(
        name="lmdb",
        persistent=True,
        key_bytes_max=ENGINE_KEY_BYTES_MAX,
        value_bytes_max=ROW_VALUE_BYTES_MAX,
        write_holds_gil=False,
        always_sync=True,
        checksums=False,
        read_only_processes=True,
        checkpoint=True,
    )

    def __init__(
        self, path: Path, *, create: bool = False, read_only: bool = False, map_bytes: int = MAP_BYTES_DEFAULT
    ) -> None:
        self.path = path
        self._gate = Gate("lmdb")
        self._translated = _Translator(path)
        self._write_lock = threading.Lock()
        self._snapshots: weakref.WeakSet[_Snapshot] = weakref.WeakSet()
        self._read_only = read_only
        if create and not read_only and not (path / _FILE).exists():
            create_in_staging(path, lambda staging: self._make(staging, map_bytes))
        if not _check_file(path):
            # Pages that were allocated and given back in one transaction may never have been written, so a short
            # file can be whole: a child that reads everything decides, because a missing page kills the reader.
            _run_probe(path, 600.0, "all", map_bytes)
        with self._translated:
            self._env = self._open(path, map_bytes, read_only=read_only)
            self._env.reader_check()

    @staticmethod
    def _open(path: Path, map_bytes: int, *, read_only: bool = False, new: bool = False) -> lmdb.Environment:
        # An existing file chooses its engine itself, but only if no number is given.
        version: dict[str, Any] = {"lib_version": 0} if new else {}
        return lmdb.open(
            str(path),
            map_size=map_bytes,
            readonly=read_only,
            create=False,
            mode=0o600,
            sync=True,
            metasync=True,
            writemap=False,
            readahead=False,
            meminit=True,  # else pages are filled up with whatever the memory of the process held
            max_readers=126,
            max_spare_txns=4,
            **version,
        )

    def _make(self, staging: Path, map_bytes: int) -> None:
        with self._translated:
            env = self._open(staging, map_bytes, new=True)
            try:
                env.sync(force=True)
            finally:
                env.close()

    def get(self, key: bytes) -> bytes | None:
        with self._gate, self._translated, self._env.begin() as transaction:
            return _get(transaction, key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        with self._gate, self._translated, self._env.begin() as transaction:
            return _get_many(transaction, keys)

    def floor(self, key: bytes, low: bytes = b"") -> Row | None:
        with self._gate, self._translated, self._env.begin() as transaction:
            return _floor(transaction, key, low)

    def ceiling(self, key: bytes, high: bytes) -> Row | None:
        with self._gate, self._translated, self._env.begin() as transaction:
            return _ceiling(transaction, key, high)

    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False, limit: int = 1000) -> Page:
        check_limit(limit)
        with self._gate, self._translated, self._env.begin() as transaction:
            return _scan(transaction, start, stop, reverse, limit)

    def apply(self, batch: Batch, *, sync: bool) -> None:
        check_batch(batch)
        with self._gate:
            self._check_writable()
            with self._write_lock:
                if not self._gate.usable:
                    raise self._gate.refusal()
                try:
                    with self._translated, self._env.begin(write=True) as transaction:
                        _write(transaction, batch)
                except HoldfastError as exc:
                    self._gate.poison(exc)
                    raise

    def _check_writable(self) -> None:
        if self._read_only:
            raise ReadOnlyError("the LMDB engine was opened read-only", path=self.path)

    def sync(self) -> None:
        with self._gate:
            self._check_writable()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Reader]:
        with self._gate, self._translated:
            reader = _Snapshot(self._gate, self._translated, self._env.begin())
            self._snapshots.add(reader)
        try:
            yield reader
        finally:
            reader.release()

    def checkpoint(self, destination: Path) -> None:
        with self._gate:
            if destination.exists():
                raise StoreExists("a checkpoint never overwrites", path=destination)
            with self._translated:
                create_in_staging(destination, lambda staging: self._env.copy(str(staging), compact=True))

    def refresh(self) -> None:
        with self._gate:
            return

    def reclaim(self, low: bytes, high: bytes) -> None:
        """Nothing to do: freed pages stay in the file and are used again."""
        with self._gate:
            return

    def stats(self) -> EngineStats:
        with self._gate, self._translated:
            size = (self.path / _FILE).stat().st_size
            details: dict[str, int | float | str] = {
                **{f"tree_{name}": cast(int, value) for name, value in self._env.stat().items()},
                **{name: cast(int, value) for name, value in self._env.info().items() if name != "map_addr"},
            }
            return EngineStats(size, details)

    def close(self) -> None:
        if not self._gate.close():
            return
        for reader in list(self._snapshots):
            reader.release()
        with self._translated:
            self._env.close()


def _write(transaction: lmdb.Transaction, batch: Batch) -> None:
    for low, high in batch.delete_ranges:
        low, high = clamp_bound(low), clamp_bound(high)
        if low >= high:
            continue
        with transaction.cursor() as cursor:
            found = cursor.set_range(low) if low else cursor.first()
            while found and cast(bytes, cursor.key()) < high:
                found = cursor.delete()
    # Sorted rows touch each page once.
    rows = sorted(batch.rows.items())
    puts: list[Row] = []
    for key, value in rows:
        if value is None:
            transaction.delete(key)
        else:
            puts.append((key, value))
    if puts:
        with transaction.cursor() as cursor:
            consumed, _ = cursor.putmulti(puts)
        if consumed != len(puts):
            raise InvalidInputError("LMDB did not take every row", found=consumed, expected=len(puts))
