"""The known traps of SQLite do not reach a caller of the engine."""

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast._fs import RealFileSystem, Space
from holdfast.engine import sqlite as adapter
from holdfast.engine.api import Batch, Page
from holdfast.engine.open import probe_engine
from holdfast.engine.sqlite import SqliteEngine, check_write_ahead
from holdfast.errors import CorruptionError, EngineError, MissingFile, OutOfSpace, PoisonedError, ReadOnlyError
from holdfast.testing.engine_contract import read_all

ROWS = {b"key%06d" % i: bytes([i % 251]) * 100 for i in range(1000)}
FILE = "rows.sqlite"


@pytest.fixture
def built(tmp_path: Path) -> Path:
    engine = SqliteEngine(tmp_path / "engine", create=True)
    engine.apply(Batch(dict(ROWS)), sync=True)
    engine.close()
    return tmp_path / "engine"


def rollback_mode(path: Path) -> None:
    connection = sqlite3.connect(path / FILE)
    assert connection.execute("PRAGMA journal_mode=DELETE").fetchall() == [("delete",)]
    connection.close()


def test_the_header_is_believed_and_not_the_connection(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_write_ahead(built / FILE)
    rollback_mode(built)
    with pytest.raises(EngineError, match="write-ahead"):
        check_write_ahead(built / FILE)
    honest = adapter._pragma

    def swallow(connection: sqlite3.Connection, text: str) -> list[tuple[object, ...]]:
        return [("wal",)] if text == "journal_mode=WAL" else honest(connection, text)

    monkeypatch.setattr(adapter, "_pragma", swallow)
    with pytest.raises(EngineError, match="write-ahead"):
        SqliteEngine(built)
    monkeypatch.undo()
    engine = SqliteEngine(built)
    check_write_ahead(built / FILE)
    assert len(read_all(engine)) == 1000
    engine.close()


def test_the_settings_are_the_promised_ones(built: Path) -> None:
    engine = SqliteEngine(built)
    writer = engine._writer
    assert writer is not None
    for name, wanted in (("synchronous", 2), ("secure_delete", 0), ("journal_mode", "wal"), ("mmap_size", 0)):
        assert writer.execute(f"PRAGMA {name}").fetchall() == [(wanted,)], name
    engine.close()


def test_a_setting_that_is_not_taken_is_an_error(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = adapter._pragma
    monkeypatch.setattr(adapter, "_pragma", lambda c, text: [] if text == "synchronous=FULL" else honest(c, text))
    monkeypatch.setattr(adapter, "_connect", _with_normal_sync(adapter._connect))
    with pytest.raises(EngineError, match="setting"):
        SqliteEngine(built)


def _with_normal_sync(connect: object) -> object:
    def changed(file: Path, *, mode: str, cache_bytes: int) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(file, mode=mode, cache_bytes=cache_bytes)  # type: ignore[operator]
        connection.execute("PRAGMA synchronous=NORMAL").fetchall()
        return connection

    return changed


def test_no_read_transaction_stays_open(built: Path) -> None:
    engine = SqliteEngine(built)
    for _ in range(3):
        engine.get(b"key000001")
        engine.get(b"none")
        engine.get_many([b"key%06d" % i for i in range(1000)])
        engine.floor(b"key0005")
        engine.scan(limit=3)
        with engine.snapshot() as view:
            view.scan(limit=3)
        engine.apply(Batch({b"x": os.urandom(1000)}), sync=True)
        writer = engine._writer
        assert writer is not None
        assert writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall() == [(0, 0, 0)], "a reader is in the way"
    engine.close()


def test_only_one_connection_can_write(built: Path) -> None:
    engine = SqliteEngine(built)
    with engine._reading() as connection:
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute("DELETE FROM rows")
    assert len(read_all(engine)) == 1000
    engine.close()


def test_a_clean_close_leaves_one_file(built: Path) -> None:
    assert [file.name for file in built.iterdir()] == [FILE]


def test_a_file_that_is_not_sqlite_is_corruption(built: Path) -> None:
    (built / FILE).write_bytes(b"x" * 5000)
    with pytest.raises(CorruptionError):
        SqliteEngine(built, create=True)
    with pytest.raises(CorruptionError):
        probe_engine("sqlite", built)
    assert (built / FILE).read_bytes() == b"x" * 5000


@pytest.mark.parametrize("part", [1, 3, 6])
def test_a_cut_file_is_an_error_or_complete(built: Path, part: int) -> None:
    os.truncate(built / FILE, (built / FILE).stat().st_size * part // 8)
    try:
        engine = SqliteEngine(built)
    except CorruptionError:
        return
    with pytest.raises(CorruptionError):
        read_all(engine)
    engine.close()


def test_open_without_create_makes_nothing(tmp_path: Path) -> None:
    for options in ({}, {"read_only": True}, {"read_only": True, "create": True}):
        with pytest.raises(MissingFile):
            SqliteEngine(tmp_path / "none", **options)
    with pytest.raises(MissingFile):
        probe_engine("sqlite", tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_a_full_database_poisons_and_keeps_what_was_there(built: Path) -> None:
    engine = SqliteEngine(built)
    writer = engine._writer
    assert writer is not None
    pages = writer.execute("PRAGMA page_count").fetchall()[0][0]
    writer.execute(f"PRAGMA max_page_count={pages + 5}").fetchall()
    with pytest.raises(OutOfSpace):
        engine.apply(Batch({b"a": b"1", b"z": bytes(1_000_000)}), sync=True)
    with pytest.raises(PoisonedError):
        engine.get(b"key000001")
    engine.close()
    engine = SqliteEngine(built)
    assert read_all(engine) == sorted(ROWS.items())
    engine.close()


_READ = """
import sys
from pathlib import Path
from holdfast.engine.api import Batch
from holdfast.engine.sqlite import SqliteEngine
from holdfast.errors import ReadOnlyError
engine = SqliteEngine(Path(sys.argv[1]), read_only=True)
seen = len(engine.scan(limit=5000).rows)
try:
    engine.apply(Batch({b"x": b"y"}), sync=True)
    sys.exit(1)
except ReadOnlyError:
    engine.close()
    sys.exit(0 if seen == 1000 else 2)
"""


@pytest.mark.parametrize("writer_open", [True, False])
def test_another_process_reads(built: Path, writer_open: bool) -> None:
    engine = SqliteEngine(built)
    if not writer_open:
        engine.close()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", _READ, str(built)], env=environment).returncode == 0
    engine.close()


def test_read_only_sees_the_newest_rows(built: Path) -> None:
    writer = SqliteEngine(built)
    reader = SqliteEngine(built, read_only=True)
    writer.apply(Batch({b"new": b"1"}), sync=True)
    assert reader.get(b"new") == b"1"
    with pytest.raises(ReadOnlyError):
        reader.sync()
    reader.close()
    writer.close()


def test_the_index_of_the_log_has_all_its_room_before_anything_is_written(built: Path) -> None:
    engine = SqliteEngine(built)
    index = (built / (FILE + "-shm")).stat()
    assert index.st_size >= adapter._INDEX_STEP_BYTES
    assert index.st_blocks * 512 >= index.st_size
    engine._make_room(3 * adapter._LOG_STEP_BYTES)
    index = (built / (FILE + "-shm")).stat()
    assert index.st_blocks * 512 >= index.st_size == 4 * adapter._INDEX_STEP_BYTES
    assert read_all(engine) == sorted(ROWS.items())
    engine.close()
    assert [file.name for file in built.iterdir()] == [FILE]


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RealFileSystem, "space", lambda _self, _path: Space(0, 10**9))


@pytest.mark.parametrize("crashed", [False, True])
def test_a_full_disk_is_read_without_room_for_an_index(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crashed: bool
) -> None:
    rows = dict(ROWS)
    if crashed:
        engine = SqliteEngine(built)
        rows[b"new"] = b"1"
        engine.apply(Batch({b"new": b"1"}), sync=True)
        shutil.copytree(built, tmp_path / "crashed")
        engine.close()
        built = tmp_path / "crashed"
        assert (built / (FILE + "-wal")).stat().st_size
    full_disk(monkeypatch)
    probe_engine("sqlite", built)
    before = {file.name: file.read_bytes() for file in built.iterdir()}
    if not crashed:
        assert before.pop(FILE + "-shm") == before.pop(FILE + "-wal") == b""
    with pytest.raises(OutOfSpace):
        SqliteEngine(built)
    reader, other = SqliteEngine(built, read_only=True), SqliteEngine(built, read_only=True)
    assert read_all(reader) == read_all(other) == sorted(rows.items())
    with reader.snapshot() as view:
        assert view.get(b"new") == rows.get(b"new")
        with pytest.raises(OutOfSpace):
            SqliteEngine(built)
        monkeypatch.undo()
    writer = SqliteEngine(built)
    writer.apply(Batch({b"newer": b"2"}), sync=True)
    assert reader.get(b"newer") == other.get(b"newer") == b"2"
    for engine in (reader, other, writer):
        engine.close()


def test_where_the_index_of_a_writer_cannot_be_read_without_writing_to_it_it_is_written_to(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk(monkeypatch)
    honest = adapter._scan
    refused = sqlite3.OperationalError("attempt to write a readonly database")
    refused.sqlite_errorcode = 520  # SQLITE_READONLY_CANTLOCK

    def scan(connection: sqlite3.Connection, start: bytes, stop: bytes | None, *, reverse: bool, limit: int) -> Page:
        if isinstance(connection, adapter._Resting):
            raise refused
        return honest(connection, start, stop, reverse=reverse, limit=limit)

    monkeypatch.setattr(adapter, "_scan", scan)
    reader = SqliteEngine(built, read_only=True)
    assert reader.get(b"key000001") == ROWS[b"key000001"]
    refused.sqlite_errorcode = 10  # SQLITE_IOERR
    with pytest.raises(OutOfSpace):
        SqliteEngine(built, read_only=True)
    reader.close()


_READ_FULL = """
import sys
from pathlib import Path
from holdfast.engine import sqlite
sqlite._ROOM_BYTES = 1 << 62
engine = sqlite.SqliteEngine(Path(sys.argv[1]), read_only=True)
for line in sys.stdin:
    print(len(engine.scan(limit=5000).rows), flush=True)
"""


def test_on_a_full_disk_a_reader_sees_what_another_process_writes(built: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", _READ_FULL, str(built)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def seen() -> int:
            child.stdin.write(b"\n")  # type: ignore[union-attr]
            child.stdin.flush()  # type: ignore[union-attr]
            return int(child.stdout.readline())  # type: ignore[union-attr]

        assert seen() == 1000
        for turn in range(2):
            engine = SqliteEngine(built)
            wanted = 1000 + turn * 20
            assert seen() == wanted
            for number in range(20):
                engine.apply(Batch({b"%d/%d" % (turn, number): b"x" * 1000}), sync=True)
                assert seen() == wanted + number + 1
            engine.close()
            assert seen() == wanted + 20
        child.stdin.close()
        assert child.wait() == 0


def test_a_path_with_special_characters(tmp_path: Path) -> None:
    path = tmp_path / "a b%20?#&mode=ro"
    engine = SqliteEngine(path, create=True)
    engine.apply(Batch({b"a": b"1"}), sync=True)
    engine.close()
    engine = SqliteEngine(path)
    assert engine.get(b"a") == b"1"
    engine.close()
