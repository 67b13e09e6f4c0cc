"""The known traps of LMDB do not reach a caller of the engine."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest

from holdfast._fs import RealFileSystem, Space
from holdfast.engine import lmdb as adapter
from holdfast.engine.api import Batch
from holdfast.engine.lmdb import LmdbEngine
from holdfast.engine.open import probe_engine
from holdfast.errors import (
    CorruptionError,
    DeviceError,
    MissingFile,
    OutOfSpace,
    PoisonedError,
    ReadOnlyError,
    StoreLocked,
    UnsupportedFormat,
)
from holdfast.testing.engine_contract import read_all

ROWS = {b"key%06d" % i: bytes([i % 251]) * 200 for i in range(1000)}


@pytest.fixture
def built(tmp_path: Path) -> Path:
    engine = LmdbEngine(tmp_path / "engine", create=True)
    engine.apply(Batch(dict(ROWS)), sync=True)
    engine.close()
    return tmp_path / "engine"


def run(program: str, *arguments: str) -> int:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=environment, stderr=subprocess.DEVNULL).returncode


_CUT = """
import os, sys
from pathlib import Path
from holdfast.engine.lmdb import LmdbEngine
from holdfast.errors import CorruptionError
path = Path(sys.argv[1])
whole = (path / "data.mdb").read_bytes()
for size in [0, 100, 4096, 5000, 8192, 9000, *range(12288, len(whole), len(whole) // 4)]:
    (path / "data.mdb").write_bytes(whole[:size])
    try:
        engine = LmdbEngine(path)
    except CorruptionError:
        continue
    rows = engine.scan(limit=5000).rows
    engine.close()
    if len(rows) != 1000:
        sys.exit(4)
sys.exit(0)
"""

_RAW = """
import os, sys, lmdb
os.truncate(sys.argv[1] + "/data.mdb", 40960)
with lmdb.open(sys.argv[1], map_size=1 << 30) as env, env.begin() as transaction:
    for row in transaction.cursor():
        pass
"""


@pytest.mark.slow
def test_a_cut_file_is_an_error_and_not_a_signal(built: Path) -> None:
    assert run(_CUT, str(built)) == 0


def test_a_cut_file_kills_a_process_without_the_check(built: Path) -> None:
    assert run(_RAW, str(built)) < 0, "LMDB has learnt to survive truncation: this trap is gone"


def test_a_probe_reports_damage(built: Path, tmp_path: Path) -> None:
    probe_engine("lmdb", built)
    with pytest.raises(MissingFile):
        probe_engine("lmdb", tmp_path / "none")
    os.truncate(built / "data.mdb", 20000)
    before = (built / "data.mdb").read_bytes()
    with pytest.raises(CorruptionError):
        probe_engine("lmdb", built)
    assert (built / "data.mdb").read_bytes() == before
    (built / "data.mdb").write_bytes(b"x" * 50000)
    with pytest.raises(CorruptionError, match="meta page"):
        probe_engine("lmdb", built)


def test_a_short_file_whose_missing_pages_are_free_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "engine"
    engine = LmdbEngine(path, create=True)
    engine.apply(Batch({b"a": b"1"}), sync=True)
    engine.apply(Batch({b"big": bytes(1_000_000)}), sync=True)
    engine.apply(Batch({b"big": None}), sync=True)
    for _ in range(5):  # the live pages move to the front
        engine.apply(Batch({b"b": b"2"}), sync=True)
    engine.close()
    size = (path / "data.mdb").stat().st_size
    os.truncate(path / "data.mdb", size - 500_000)
    if adapter._check_file(path):
        pytest.fail("the test did not make a short file")
    engine = LmdbEngine(path)
    try:
        assert read_all(engine) == [(b"a", b"1"), (b"b", b"2")]
        for turn in range(5):
            engine.apply(Batch({b"c%d" % turn: os.urandom(300_000)}), sync=True)
        assert len(read_all(engine)) == 7
    finally:
        engine.close()


def test_the_settings_are_the_promised_ones(built: Path) -> None:
    engine = LmdbEngine(built)
    flags = engine._env.flags()
    assert flags["sync"]
    assert flags["metasync"]
    assert not flags["writemap"]
    assert not flags["map_async"]
    assert not flags["readahead"]
    assert engine._env.lib_version()[:2] == (0, 9)
    engine.close()


def test_a_half_made_engine_is_made_anew(tmp_path: Path) -> None:
    staging = tmp_path / "engine.new"
    staging.mkdir()
    (staging / "data.mdb").write_bytes(b"half")
    with pytest.raises(MissingFile):
        LmdbEngine(tmp_path / "engine")
    engine = LmdbEngine(tmp_path / "engine", create=True)
    engine.close()
    assert not staging.exists()


def test_creation_keeps_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(MissingFile):
        LmdbEngine(tmp_path, create=True)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_of_lmdb_1_is_refused(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "new"), lib_version=1) as env, env.begin(write=True) as transaction:
        transaction.put(b"a", b"1")
    with pytest.raises((UnsupportedFormat, CorruptionError)):
        LmdbEngine(tmp_path / "new")


def test_a_full_map_is_out_of_space_and_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "engine"
    engine = LmdbEngine(path, create=True, map_bytes=1 << 20)
    engine.apply(Batch({b"a": b"1"}), sync=True)
    with pytest.raises(OutOfSpace):
        engine.apply(Batch({b"a": b"2", **{b"%d" % i: bytes(100_000) for i in range(20)}}), sync=True)
    with pytest.raises(PoisonedError):
        engine.get(b"a")
    engine.close()
    engine = LmdbEngine(path)
    assert read_all(engine) == [(b"a", b"1")]
    engine.close()


def test_an_io_error_on_a_full_disk_is_out_of_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    translated = adapter._Translator(tmp_path)
    error = lmdb.DiskError("mdb_txn_commit", errno.EIO)
    assert type(translated.typed(error)) is DeviceError
    monkeypatch.setattr(RealFileSystem, "space", lambda self, path: Space(0, 1 << 40))
    assert type(translated.typed(error)) is OutOfSpace


def test_a_second_opener_in_the_process_is_refused(built: Path) -> None:
    engine = LmdbEngine(built)
    with pytest.raises(StoreLocked):
        LmdbEngine(built)
    assert engine.get(min(ROWS)) == ROWS[min(ROWS)]
    engine.close()


_READ = """
import sys
from pathlib import Path
from holdfast.engine.open import open_engine
from holdfast.engine.api import Batch
from holdfast.errors import ReadOnlyError
engine = open_engine(sys.argv[1], Path(sys.argv[2]), create=False, read_only=True)
seen = len(engine.scan(limit=5000).rows)
engine.refresh()
try:
    engine.apply(Batch({b"x": b"y"}), sync=True)
    sys.exit(1)
except ReadOnlyError:
    engine.close()
    sys.exit(0 if seen == 1000 else 2)
"""


@pytest.mark.parametrize("writer_open", [True, False])
def test_another_process_reads(built: Path, writer_open: bool) -> None:
    engine = LmdbEngine(built)
    if not writer_open:
        engine.close()
    assert run(_READ, "lmdb", str(built)) == 0
    engine.close()


def test_a_read_only_opener_does_not_create(tmp_path: Path) -> None:
    with pytest.raises(MissingFile):
        LmdbEngine(tmp_path / "none", create=True, read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_read_only_refuses_writes(built: Path) -> None:
    engine = LmdbEngine(built, read_only=True)
    with pytest.raises(ReadOnlyError):
        engine.apply(Batch({b"a": b"1"}), sync=True)
    assert len(read_all(engine)) == 1000
    engine.close()


def test_a_file_whose_list_of_free_pages_is_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "engine"
    engine = LmdbEngine(path, create=True)
    engine.apply(Batch({b"big": bytes(1_000_000)}), sync=True)
    engine.apply(Batch({b"big": None, b"a": b"1"}), sync=True)
    engine.apply(Batch({b"b": b"2"}), sync=True)
    engine.close()
    os.truncate(path / "data.mdb", (path / "data.mdb").stat().st_size - 4096)
    with pytest.raises(CorruptionError):
        LmdbEngine(path)


def test_a_long_reader_is_needed_to_grow_the_file(tmp_path: Path) -> None:
    engine = LmdbEngine(tmp_path / "engine", create=True)
    for turn in range(20):
        engine.apply(Batch({b"%04d" % i: b"%d" % turn * 20 for i in range(200)}), sync=True)
        engine.scan()
        engine.get(b"0001")
        with engine.snapshot() as view:
            view.scan(limit=1)
    assert engine.stats().size_bytes < 400_000, "a read transaction was left open"
    engine.close()
