"""SQLite from the standard library: always there, every batch synced, the slowest to write.

Invariants:
    * Write-ahead log and ``synchronous=FULL``; that the log is on is read from the header of the file (bytes 18 and
      19), because the connection that failed to switch still says "wal".
    * One connection writes and checkpoints, under a lock; reads use connections opened with ``mode=ro``.
    * Every statement is fetched to its end, so that no read transaction stays open, except in ``snapshot``.
    * The index of the log (``-shm``) is mapped, and touching a page of it that the disk has no room for kills the
      process. So the writer gives it all its room before it writes, and where the disk is full, a reader keeps an index
      of its own in memory, as long as nobody writes.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from .._fs import RealFileSystem, translate_os_error
from ..errors import (
    ClosedError,
    CorruptionError,
    DeviceError,
    EngineError,
    HoldfastError,
    MissingFile,
    OutOfSpace,
    ReadOnlyError,
    Recovery,
    ResourceExhausted,
    StoreExists,
    StoreLocked,
)
from ..limits import ENGINE_KEY_BYTES_MAX, ROW_VALUE_BYTES_MAX
from ._shared import Gate, check_batch, check_limit, create_in_staging, damage_recovery, told
from .api import Batch, Capabilities, EngineStats, Page, Reader, Row

__all__ = ["SqliteEngine", "probe"]

MIB = 1024 * 1024

_FILE = "rows.sqlite"
_MAGIC = b"SQLite format 3\x00"
_KEYS_PER_QUERY = 900
_IDLE_READERS_MAX = 8
_BUSY_MS = 5_000
_RECLAIM_WAIT_MS = 100
_FULL_BELOW_BYTES = 64 * 1024
_ROOM_BYTES = 256 * 1024
"""With less free, no index is made: neither by a reader, nor by a writer."""
_INDEX_STEP_BYTES = 128 * 1024
"""The index grows by so much at a time ..."""
_LOG_STEP_BYTES = 64 * MIB
"""... which is enough for so much of the log (in truth for a little more)."""
_BATCH_LOG_BYTES = 32 * MIB
"""A batch of a flush takes less of the log."""

_KINDS: dict[int, type[HoldfastError]] = {
    5: StoreLocked,  # BUSY
    6: StoreLocked,  # LOCKED
    7: ResourceExhausted,  # NOMEM
    8: ReadOnlyError,  # READONLY
    10: DeviceError,  # IOERR
    11: CorruptionError,  # CORRUPT
    13: OutOfSpace,  # FULL
    14: EngineError,  # CANTOPEN
    26: CorruptionError,  # NOTADB
}


class _Translator:
    """``with`` it around calls into sqlite3: what they raise leaves as a ``HoldfastError`` that names the path."""

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = path

    def typed(self, error: Exception) -> HoldfastError:
        """The typed error for what sqlite3 raised."""
        if isinstance(error, OSError):
            return translate_os_error(error, self._path)
        number = getattr(error, "sqlite_errorcode", None)
        kind = EngineError if number is None else _KINDS.get(number & 0xFF, EngineError)
        if kind is DeviceError and RealFileSystem().space(self._path).free < _FULL_BELOW_BYTES:
            kind = OutOfSpace
        if "closed database" in str(error):
            kind = ClosedError
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        return kind(f"SQLite: {error}", path=self._path, sqlite=name, recovery=damage_recovery(kind))

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, (sqlite3.Error, OSError)):
            raise told(self.typed(error)) from error


def _pragma(connection: sqlite3.Connection, text: str) -> list[tuple[object, ...]]:
    # An error of a pragma shows only when its rows are fetched to the end.
    return connection.execute(f"PRAGMA {text}").fetchall()


class _Resting(sqlite3.Connection):
    """A reading connection that changes no file: while nobody writes, its index of the log is in memory."""


def _connect(
    file: Path, *, mode: str, cache_bytes: int, factory: type[sqlite3.Connection] = sqlite3.Connection
) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(str(file.absolute()))}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=_BUSY_MS / 1000,
        cached_statements=32,
        factory=factory,
    )
    try:
        _pragma(connection, f"cache_size=-{max(cache_bytes // 1024, 256)}")
        _pragma(connection, "mmap_size=0")
        _pragma(connection, "cell_size_check=ON")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _beside(file: Path, suffix: str) -> Path:
    return file.with_name(file.name + suffix)


def _connect_reader(file: Path, cache_bytes: int) -> sqlite3.Connection:
    """A reading connection; a ``_Resting`` one where the disk is full, unless a writer is there, whose index has room.

    SQLite takes an index that it may not write for its own only if a writer holds it open; then it reads that one.
    """
    files = RealFileSystem()
    if files.space(file.parent).free >= _ROOM_BYTES:
        return _connect(file, mode="ro", cache_bytes=cache_bytes)
    index = _beside(file, "-shm")
    if not index.exists():
        files.open(index, create=True).close()  # empty: it takes no room, but SQLite wants to see it
    connection = _connect(file, mode="ro&readonly_shm=1", cache_bytes=cache_bytes, factory=_Resting)
    try:
        _scan(connection, b"", None, reverse=False, limit=1)
    except sqlite3.Error as exc:
        connection.close()
        if _KINDS.get(getattr(exc, "sqlite_errorcode", 0) & 0xFF) is not ReadOnlyError:
            raise
        return _connect(file, mode="ro", cache_bytes=cache_bytes)
    return connection


def _make_room(file: Path, begin: int, log_bytes: int) -> int:
    """The index has room for ``log_bytes`` more of the log; it had room up to ``begin``, and now up to the result.

    A connection of this process is open. Its own descriptor is used: opening and closing another one would end the
    locks that SQLite has on the file.
    """
    log = _beside(file, "-wal")
    size = log.stat().st_size if log.exists() else 0
    end = ((size + log_bytes) // _LOG_STEP_BYTES + 1) * _INDEX_STEP_BYTES
    if end <= begin or not hasattr(os, "posix_fallocate"):
        return begin
    index = _beside(file, "-shm").stat()
    for name in os.listdir("/dev/fd"):
        try:
            found = os.path.samestat(os.fstat(int(name)), index)
        except OSError:  # closed meanwhile
            continue
        if found:
            os.posix_fallocate(int(name), begin, end - begin)
            return end
    return begin


def _get(connection: sqlite3.Connection, key: bytes) -> bytes | None:
    for (value,) in connection.execute("SELECT v FROM rows WHERE k = ?", (key,)).fetchall():
        found: bytes = value
        return found
    return None


def _get_many(connection: sqlite3.Connection, keys: Sequence[bytes]) -> list[bytes | None]:
    found: dict[bytes, bytes] = {}
    for first in range(0, len(keys), _KEYS_PER_QUERY):
        chunk = keys[first : first + _KEYS_PER_QUERY]
        marks = ",".join("?" * len(chunk))
        found.update(connection.execute(f"SELECT k, v FROM rows WHERE k IN ({marks})", chunk).fetchall())
    return list(map(found.get, keys))


def _floor(connection: sqlite3.Connection, key: bytes, low: bytes) -> Row | None:
    query = "SELECT k, v FROM rows WHERE k <= ? AND k >= ? ORDER BY k DESC LIMIT 1"
    for row in connection.execute(query, (key, low)).fetchall():
        found: Row = row
        return found
    return None


def _ceiling(connection: sqlite3.Connection, key: bytes, high: bytes) -> Row | None:
    query = "SELECT k, v FROM rows WHERE k >= ? AND k < ? ORDER BY k ASC LIMIT 1"
    for row in connection.execute(query, (key, high)).fetchall():
        found: Row = row
        return found
    return None


def _scan(connection: sqlite3.Connection, start: bytes, stop: bytes | None, *, reverse: bool, limit: int) -> Page:
    order = "DESC" if reverse else "ASC"
    upper, bounds = ("", (start,)) if stop is None else (" AND k < ?", (start, stop))
    query = f"SELECT k, v FROM rows WHERE k >= ?{upper} ORDER BY k {order} LIMIT {limit + 1}"
    rows: list[Row] = connection.execute(query, bounds).fetchall()
    if len(rows) <= limit:
        return Page(rows, None)
    return Page(rows[:limit], rows[limit - 1][0] if reverse else rows[limit][0])


class _Snapshot:
    """One connection inside a read transaction."""

    __slots__ = ("__weakref__", "_connection", "_gate", "_translated")

    def __init__(self, gate: Gate, translated: _Translator, connection: sqlite3.Connection) -> None:
        self._gate = gate
        self._translated = translated
        self._connection: sqlite3.Connection | None = connection

    def release(self) -> sqlite3.Connection | None:
        """The connection, taken away; later reads raise ``ClosedError``."""
        connection, self._connection = self._connection, None
        return connection

    def _current(self) -> sqlite3.Connection:
        if self._connection is None:
            raise ClosedError("the snapshot is closed")
        return self._connection

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
            return _scan(self._current(), start, stop, reverse=reverse, limit=limit)


def _header(file: Path) -> bytes:
    handle = RealFileSystem().open(file, read_only=True)
    try:
        raw = handle.pread(100, 0)
    finally:
        handle.close()
    if len(raw) < 100 or not raw.startswith(_MAGIC):
        raise CorruptionError("not an SQLite file", path=file, found=raw[:16], recovery=Recovery.REBUILD)
    return raw


def check_write_ahead(file: Path) -> None:
    """The header of ``file`` says that it uses the write-ahead log; else ``EngineError``."""
    found = _header(file)[18:20]
    if found != b"\x02\x02":
        raise EngineError("SQLite did not switch to its write-ahead log", path=file, found=found, expected=b"\x02\x02")


def _open_writer(file: Path, *, mode: str, cache_bytes: int) -> sqlite3.Connection:
    free = RealFileSystem().space(file.parent).free
    if free < _ROOM_BYTES:
        raise OutOfSpace("SQLite has no room for its log", path=file, free=free, needed=_ROOM_BYTES)
    connection = _connect(file, mode=mode, cache_bytes=cache_bytes)
    try:
        _pragma(connection, "journal_mode=WAL")
        _pragma(connection, "synchronous=FULL")
        _pragma(connection, "secure_delete=OFF")
        _pragma(connection, "wal_autocheckpoint=4000")
        for name, wanted in (("synchronous", 2), ("secure_delete", 0)):
            found = _pragma(connection, name)
            if found != [(wanted,)]:
                raise EngineError("SQLite did not take a setting", setting=name, found=str(found), expected=wanted)
        connection.execute("CREATE TABLE IF NOT EXISTS rows (k BLOB PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID")
        check_write_ahead(file)
    except BaseException:
        connection.close()
        raise
    return connection


def probe(path: Path) -> None:
    """``path`` holds an SQLite file whose first and last rows can be read; no row was changed.

    Raises:
        CorruptionError: damaged.
        MissingFile: there is no engine here.
    """
    file = path / _FILE
    if not file.exists():
        raise MissingFile("there is no SQLite engine here", path=file, recovery=Recovery.REBUILD)
    _header(file)
    with _Translator(file), contextlib.closing(_connect_reader(file, MIB)) as connection:
        _scan(connection, b"", None, reverse=False, limit=1)
        _scan(connection, b"", None, reverse=True, limit=1)


class SqliteEngine:
    """An ordered byte map in an SQLite file. Every ``apply`` is durable.

    Args:
        path: the directory.
        create: make it if it is not there; without it a missing one is ``MissingFile`` and nothing is made.
        read_only: open beside a writing process; every call sees the newest state.
        cache_bytes: page cache of the writing connection; each reading one (at most 8 idle) has an eighth of it.
    """

    capabilities = Capabilities(
        name="sqlite",
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
        self, path: Path, *, create: bool = False, read_only: bool = False, cache_bytes: int = 32 * MIB
    ) -> None:
        self.path = path
        self._file = path / _FILE
        self._gate = Gate("sqlite")
        self._translated = _Translator(self._file)
        self._write_lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._snapshots: weakref.WeakSet[_Snapshot] = weakref.WeakSet()
        self._reader_cache_bytes = max(cache_bytes // 8, MIB)
        self._writer: sqlite3.Connection | None = None
        self._index_bytes = 0
        if not self._file.exists():
            if read_only or not create:
                raise MissingFile("there is no SQLite engine here", path=self._file, recovery=Recovery.REBUILD)
            create_in_staging(path, self._make)
        _header(self._file)
        with self._translated:
            if not read_only:
                self._writer = _open_writer(self._file, mode="rw", cache_bytes=cache_bytes)
                self._make_room(_BATCH_LOG_BYTES)
            with self._reading() as connection:
                _scan(connection, b"", None, reverse=False, limit=1)

    def _make_room(self, log_bytes: int) -> None:
        self._index_bytes = _make_room(self._file, self._index_bytes, log_bytes)

    def _make(self, staging: Path) -> None:
        with self._translated:
            _open_writer(staging / _FILE, mode="rwc", cache_bytes=MIB).close()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A reading connection that no other thread uses."""
        connection = self._take()
        try:
            yield connection
        finally:
            self._give_back(connection)

    def _take(self) -> sqlite3.Connection:
        try:
            return self._idle.pop()
        except IndexError:
            if self._writer is not None:
                return _connect(self._file, mode="ro", cache_bytes=self._reader_cache_bytes)
            return _connect_reader(self._file, self._reader_cache_bytes)

    def _give_back(self, connection: sqlite3.Connection) -> None:
        if len(self._idle) < _IDLE_READERS_MAX and not isinstance(connection, _Resting):
            self._idle.append(connection)
        else:
            connection.close()

    def get(self, key: bytes) -> bytes | None:
        with self._gate, self._translated:
            connection = self._take()
            try:
                return _get(connection, key)
            finally:
                self._give_back(connection)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        with self._gate, self._translated, self._reading() as connection:
            if len(keys) <= _KEYS_PER_QUERY:
                return _get_many(connection, keys)
            connection.execute("BEGIN")
            try:
                return _get_many(connection, keys)
            finally:
                connection.execute("COMMIT")

    def floor(self, key: bytes, low: bytes = b"") -> Row | None:
        with self._gate, self._translated, self._reading() as connection:
            return _floor(connection, key, low)

    def ceiling(self, key: bytes, high: bytes) -> Row | None:
        with self._gate, self._translated, self._reading() as connection:
            return _ceiling(connection, key, high)

    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False, limit: int = 1000) -> Page:
        check_limit(limit)
        with self._gate, self._translated, self._reading() as connection:
            return _scan(connection, start, stop, reverse=reverse, limit=limit)

    def apply(self, batch: Batch, *, sync: bool) -> None:
        check_batch(batch)
        with self._gate:
            writer = self._writing()
            with self._write_lock:
                if not self._gate.usable:
                    raise self._gate.refusal()
                with self._translated:
                    self._make_room(_BATCH_LOG_BYTES)
                    writer.execute("BEGIN IMMEDIATE")
                try:
                    with self._translated:
                        _write(writer, batch)
                        writer.execute("COMMIT")
                except HoldfastError as exc:
                    self._gate.poison(exc)
                    # Closing, not rolling back: after a failed write nothing more is asked of this connection.
                    writer.close()
                    raise

    def _writing(self) -> sqlite3.Connection:
        if self._writer is None:
            raise ReadOnlyError("the SQLite engine was opened read-only", path=self.path)
        return self._writer

    def sync(self) -> None:
        with self._gate:
            self._writing()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Reader]:
        with self._gate, self._translated:
            connection = self._take()
            connection.execute("BEGIN")
            # The transaction begins with its first read.
            connection.execute("SELECT 1 FROM rows LIMIT 1").fetchall()
            reader = _Snapshot(self._gate, self._translated, connection)
            self._snapshots.add(reader)
        try:
            yield reader
        finally:
            used = reader.release()
            if used is not None:
                with self._translated:
                    used.execute("ROLLBACK")
                self._give_back(used)

    def checkpoint(self, destination: Path) -> None:
        with self._gate:
            if destination.exists():
                raise StoreExists("a checkpoint never overwrites", path=destination)
            create_in_staging(destination, self._copy)
            check_write_ahead(destination / _FILE)

    def _copy(self, staging: Path) -> None:
        target = staging / _FILE
        with self._translated, self._reading() as connection:
            with contextlib.closing(_open_writer(target, mode="rwc", cache_bytes=MIB)) as copy:
                _make_room(target, 0, 2 * self._file.stat().st_size)
                connection.backup(copy)

    def refresh(self) -> None:
        with self._gate:
            return

    def reclaim(self, low: bytes, high: bytes) -> None:
        """The whole file is written anew, without the room in and between its pages; writes wait meanwhile.

        Needs room for one more copy. If that is not there, nothing has changed and the engine goes on.
        """
        with self._gate:
            writer = self._writing()
            with self._write_lock, self._translated:
                if not self._gate.usable:
                    raise self._gate.refusal()
                self._make_room(2 * self._file.stat().st_size)
                writer.execute("VACUUM")
                # A reader of an older moment keeps the log; then the file becomes shorter with a later checkpoint.
                _pragma(writer, f"busy_timeout={_RECLAIM_WAIT_MS}")
                _pragma(writer, "wal_checkpoint(TRUNCATE)")
                _pragma(writer, f"busy_timeout={_BUSY_MS}")

    def stats(self) -> EngineStats:
        with self._gate, self._translated:
            sizes = {name: (self.path / name).stat().st_size for name in RealFileSystem().names(self.path)}
            details: dict[str, int | float | str] = {"sqlite_version": sqlite3.sqlite_version, **sizes}
            return EngineStats(sum(sizes.values()), details)

    def close(self) -> None:
        if not self._gate.close():
            return
        with self._translated:
            for reader in list(self._snapshots):
                used = reader.release()
                if used is not None:
                    used.close()
            while self._idle:
                self._idle.pop().close()
            if self._writer is not None:
                self._writer.close()


def _write(writer: sqlite3.Connection, batch: Batch) -> None:
    for low, high in batch.delete_ranges:
        if low < high:
            writer.execute("DELETE FROM rows WHERE k >= ? AND k < ?", (low, high))
    # Sorted rows touch each page once.
    rows = sorted(batch.rows.items())
    gone = [(key,) for key, value in rows if value is None]
    if gone:
        writer.executemany("DELETE FROM rows WHERE k = ?", gone)
    put = [row for row in rows if row[1] is not None]
    if put:
        writer.executemany("INSERT OR REPLACE INTO rows (k, v) VALUES (?, ?)", put)
