"""The known traps of rocksdict and RocksDB do not reach a caller of the engine."""

import ast
import inspect
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import rocksdict

from holdfast.engine import rocksdb
from holdfast.engine.api import Batch
from holdfast.engine.open import probe_engine
from holdfast.engine.rocksdb import RocksDbEngine
from holdfast.errors import (
    ClosedError,
    CorruptionError,
    EngineError,
    HoldfastError,
    MissingFile,
    OutOfSpace,
    PoisonedError,
    ReadOnlyError,
    RecoveryTimeout,
    StoreLocked,
)
from holdfast.testing.engine_contract import read_all

ROWS = {b"key%06d" % i: bytes([i % 251]) * 40 + b"%d" % i for i in range(4000)}


@pytest.fixture
def built(tmp_path: Path) -> Path:
    path = tmp_path / "built"
    engine = RocksDbEngine(path, create=True)
    engine.apply(Batch(dict(ROWS)), sync=True)
    engine.close()
    return path


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[RocksDbEngine]:
    made = RocksDbEngine(tmp_path / "engine", create=True)
    yield made
    made.close()


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def flip(path: Path, offset: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 0x10
    path.write_bytes(raw)


def test_the_dangerous_calls_are_not_used() -> None:
    tree = ast.parse(inspect.getsource(rocksdb))
    banned = {"set_iterate_lower_bound", "set_iterate_upper_bound", "keys", "entities", "columns", "repair", "destroy"}
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not {call.attr for call in calls if isinstance(call, ast.Attribute)} & banned
    items = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "items"]
    assert {ast.unparse(node) for node in items} == {"batch.rows.items"}


@pytest.mark.slow
def test_a_flipped_block_is_an_error_and_never_a_short_scan(built: Path, tmp_path: Path) -> None:
    table = next(built.glob("*.sst")).name
    size = (built / table).stat().st_size
    wanted = sorted(ROWS.items())
    outcomes = {"same": 0, "error": 0}
    silently_short = 0
    for turn in range(16):
        path = tmp_path / f"flipped{turn}"
        shutil.copytree(built, path)
        flip(path / table, size * (2 * turn + 1) // 32)
        for reverse in (False, True):
            try:
                engine = RocksDbEngine(path)
            except CorruptionError:
                outcomes["error"] += 1
                continue
            try:
                rows = read_all(engine, reverse=reverse, limit=700)
                assert rows == (wanted[::-1] if reverse else wanted)
                outcomes["same"] += 1
            except CorruptionError:
                outcomes["error"] += 1
            finally:
                engine.close()
        raw = rocksdict.Rdict(str(path), rocksdict.Options(raw_mode=True))
        silently_short += sum(1 for _ in raw.items()) < len(ROWS)
        raw.close()
    assert outcomes["error"] >= 16, outcomes
    assert silently_short > 0, "rocksdict's items() has learnt to report damage: this trap is gone"


def test_a_flipped_block_is_an_error_in_every_read(built: Path) -> None:
    table = next(built.glob("*.sst"))
    flip(table, 100)
    engine = RocksDbEngine(built)
    first = min(ROWS)
    with engine.snapshot() as view:
        for reader in (engine, view):
            for read in (
                partial(reader.get, first),
                partial(reader.get_many, [first]),
                partial(reader.floor, first),
                partial(reader.scan, limit=5),
            ):
                with pytest.raises(CorruptionError, match="RocksDB"):
                    read()
    engine.close()


def test_a_second_opener_is_refused(engine: RocksDbEngine) -> None:
    engine.apply(Batch({b"a": b"1"}), sync=True)
    with pytest.raises(StoreLocked):
        RocksDbEngine(engine.path, create=True)
    program = (
        "import sys; from pathlib import Path; from holdfast.engine.rocksdb import RocksDbEngine\n"
        "from holdfast.errors import StoreLocked\n"
        "try: RocksDbEngine(Path(sys.argv[1]))\n"
        "except StoreLocked: sys.exit(7)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", program, str(engine.path)], env=environment).returncode == 7
    engine.apply(Batch({b"b": b"2"}), sync=True)
    assert engine.get_many([b"a", b"b"]) == [b"1", b"2"]


def test_open_without_create_makes_nothing(tmp_path: Path) -> None:
    for read_only in (False, True):
        with pytest.raises(MissingFile):
            RocksDbEngine(tmp_path / "none", read_only=read_only)
        with pytest.raises(MissingFile):
            RocksDbEngine(tmp_path / "none", create=True, read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_create_over_tables_without_current_is_refused(built: Path) -> None:
    (built / "CURRENT").unlink()
    before = contents(built)
    with pytest.raises(MissingFile):
        RocksDbEngine(built, create=True)
    assert contents(built) == before


def test_there_is_no_write_ahead_log(engine: RocksDbEngine) -> None:
    engine.apply(Batch(dict(ROWS)), sync=False)
    engine.apply(Batch({b"a": b"1"}), sync=True)
    assert [file.stat().st_size for file in engine.path.glob("*.log")] == [0]


def test_the_interpreter_runs_on_during_sync(engine: RocksDbEngine) -> None:
    value = os.urandom(2000)
    for batch in range(10):
        engine.apply(Batch({b"%d-%d" % (batch, i): value for i in range(1000)}), sync=False)
    ticks = 0
    done = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0.0002)

    ticker = threading.Thread(target=tick)
    ticker.start()
    before = ticks
    engine.sync()
    during = ticks - before
    done.set()
    ticker.join()
    assert during >= 3


# -- probing and truncated manifests -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_probe_changes_nothing_and_a_cut_manifest_leaves_a_prefix(tmp_path: Path) -> None:
    path = tmp_path / "engine"
    for number in range(1, 5):
        engine = RocksDbEngine(path, create=True)
        engine.apply(Batch({b"head": b"%d" % number, b"row%d" % number: b"x"}), sync=True)
        if number < 4:
            engine.close()
    probe_engine("rocksdb", path)
    manifest = next(path.glob("MANIFEST-*"))
    size = manifest.stat().st_size
    for turn in range(4):
        copy = tmp_path / f"cut{turn}"
        shutil.copytree(path, copy)
        os.truncate(copy / manifest.name, size * turn // 4)
        before = contents(copy)
        try:
            probe_engine("rocksdb", copy)
            opens = True
        except (CorruptionError, EngineError):
            opens = False
        assert contents(copy) == before, "a probe wrote"
        if opens:
            again = RocksDbEngine(copy)
            head = int(again.get(b"head") or b"0")
            assert read_all(again, b"row", b"rox") == [(b"row%d" % n, b"x") for n in range(1, head + 1)]
            again.close()
    engine.close()


def test_a_probe_has_a_deadline(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rocksdb, "_PROBE", "import time; time.sleep(60)")
    began = time.monotonic()
    with pytest.raises(RecoveryTimeout):
        probe_engine("rocksdb", built, deadline_seconds=0.1)
    assert time.monotonic() - began < 10


def test_a_probe_that_dies_is_corruption(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rocksdb, "_PROBE", "import os; os.abort()")
    with pytest.raises(CorruptionError, match="died"):
        probe_engine("rocksdb", built)


def test_a_probe_reports_damage(built: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFile):
        probe_engine("rocksdb", tmp_path / "none")
    (built / "CURRENT").write_bytes(b"MANIFEST-9")
    with pytest.raises(CorruptionError):
        probe_engine("rocksdb", built)


def test_a_missing_table_is_corruption(built: Path) -> None:
    next(built.glob("*.sst")).unlink()
    with pytest.raises(CorruptionError):
        probe_engine("rocksdb", built)
    with pytest.raises(CorruptionError):
        RocksDbEngine(built)


# -- read-only -----------------------------------------------------------------------------------------------------


def test_a_read_only_opener_follows_the_synced_batches(engine: RocksDbEngine) -> None:
    engine.apply(Batch({b"a": b"1"}), sync=True)
    reader = RocksDbEngine(engine.path, read_only=True)
    scratch = Path(reader._scratch.name if reader._scratch else "")
    assert scratch.is_dir()
    engine.apply(Batch({b"a": b"2", b"b": b"2"}), sync=False)
    reader.refresh()
    assert read_all(reader) == [(b"a", b"1")]
    engine.sync()
    with reader.snapshot() as view:
        reader.refresh()
        assert read_all(view) == [(b"a", b"1")]
    assert read_all(reader) == [(b"a", b"2"), (b"b", b"2")]
    with pytest.raises(ReadOnlyError):
        reader.apply(Batch({b"a": b"3"}), sync=True)
    with pytest.raises(ReadOnlyError):
        reader.sync()
    assert reader.get(b"a") == b"2", "a refused write must not poison"
    reader.close()
    assert not scratch.exists()


# -- failures ------------------------------------------------------------------------------------------------------


class _Failing:
    """A database whose writes and flushes fail, as rocksdict would."""

    def __init__(self, real: rocksdict.Rdict, text: str) -> None:
        self._real = real
        self._text = text

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    def write(self, *_arguments: object) -> None:
        raise Exception(self._text)

    def flush(self, *_arguments: object, **_options: object) -> None:
        raise Exception(self._text)


@pytest.mark.parametrize("sync", [False, True])
def test_a_failed_write_poisons(engine: RocksDbEngine, monkeypatch: pytest.MonkeyPatch, sync: bool) -> None:
    engine.apply(Batch({b"a": b"1"}), sync=True)
    failing = _Failing(engine._db, "IO error: No space left on device: While appending to file: /x/000012.sst")
    monkeypatch.setattr(engine, "_db", failing)
    with pytest.raises(OutOfSpace):
        engine.sync() if sync else engine.apply(Batch({b"b": b"1"}), sync=False)
    for call in (
        lambda: engine.get(b"a"),
        lambda: engine.get_many([b"a"]),
        engine.scan,
        lambda: engine.apply(Batch({b"b": b"1"}), sync=True),
        engine.sync,
        lambda: engine.snapshot().__enter__(),
    ):
        with pytest.raises(PoisonedError, match="No space left"):
            call()
    monkeypatch.undo()
    engine.close()
    with pytest.raises(ClosedError):
        engine.get(b"a")
    again = RocksDbEngine(engine.path)
    assert again.get(b"a") == b"1"
    again.close()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Corruption: block checksum mismatch: stored = 1, computed = 2", "CorruptionError"),
        ("IO error: No space left on device: While appending to file", "OutOfSpace"),
        ("IO error: lock hold by current process, acquire time 1: /x/LOCK: No locks available", "StoreLocked"),
        ("IO error: While lock file: /x/LOCK: Resource temporarily unavailable", "StoreLocked"),
        ("IO error: Input/output error: While fsync: /x/1.sst", "DeviceError"),
        ("IO error: No such file or directory: While open a file for random read: /x/1.sst", "MissingFile"),
        ("IO error: Too many open files: While open", "ResourceExhausted"),
        ("DB instance already closed", "ClosedError"),
        ("something new", "EngineError"),
    ],
)
def test_texts_become_typed_errors(text: str, kind: str, tmp_path: Path) -> None:
    with pytest.raises(HoldfastError) as caught:
        with rocksdb._Translator(tmp_path):
            raise Exception(text)
    assert type(caught.value).__name__ == kind
    assert text in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_reopened_engine_keeps_its_filter_and_cache(tmp_path: Path) -> None:
    """Opened without naming the column family, the library forgets the table options of an existing one."""
    for create in (True, False):
        engine = RocksDbEngine(tmp_path / "e", create=create)
        engine.apply(Batch({b"k%d" % number: b"v" for number in range(100)}), sync=True)
        engine.close()
        newest = max((tmp_path / "e").glob("OPTIONS-*"), key=lambda path: path.name)
        tables = newest.read_text().split('[TableOptions/BlockBasedTable "default"]')[1]
        assert "filter_policy=nullptr" not in tables
        assert "bloomfilter" in tables
