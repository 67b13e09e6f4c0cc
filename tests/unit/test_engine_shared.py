"""Limits, the gate, creation in staging, and engines by name."""

import builtins
import threading
from pathlib import Path
from typing import Any

import pytest

from holdfast._fs import RealFile, RealFileSystem
from holdfast.engine._shared import Gate, check_batch, clamp_bound, create_in_staging
from holdfast.engine.api import Batch
from holdfast.engine.open import engine_names, open_engine, probe_engine
from holdfast.errors import (
    ClosedError,
    DeviceError,
    InvalidInputError,
    LimitExceeded,
    MissingFile,
    OutOfSpace,
    PoisonedError,
)
from holdfast.limits import ROW_VALUE_BYTES_MAX


class _Huge(bytes):
    def __len__(self) -> int:
        return ROW_VALUE_BYTES_MAX + 1


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ({b"k" * 501: b""}, LimitExceeded),
        ({b"a": b"1", b"": b""}, InvalidInputError),
        ({b"a": _Huge(b"x")}, LimitExceeded),
        ({b"a": 5}, InvalidInputError),
        ({5: b"a"}, InvalidInputError),
    ],
)
def test_bad_batches(rows: dict[bytes, bytes | None], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        check_batch(Batch(rows))


def test_good_batches() -> None:
    check_batch(Batch())
    check_batch(Batch({b"k" * 500: None, b"a": b""}, [(b"", b"\xff" * 900)]))


@pytest.mark.parametrize("bound", [b"", b"a", b"x" * 500, b"x" * 501, b"x" * 500 + b"\x00", b"x" * 499 + b"yzz"])
def test_a_clamped_bound_divides_keys_alike(bound: bytes) -> None:
    keys = [b"a", b"b", b"x" * 499, b"x" * 500, b"x" * 499 + b"y", b"x" * 499 + b"z", b"y"]
    assert [key < bound for key in keys] == [key < clamp_bound(bound) for key in keys]
    assert len(clamp_bound(bound)) <= 501


def test_the_first_failure_is_kept_and_close_wins() -> None:
    gate = Gate("test")
    with gate:
        gate.poison(OutOfSpace("first"))
        gate.poison(DeviceError("second"))
    with pytest.raises(PoisonedError, match="first"):
        gate.__enter__()
    assert gate.close()
    assert not gate.close()
    with pytest.raises(ClosedError):
        gate.__enter__()


def test_close_waits_for_the_call_inside() -> None:
    gate = Gate("test")
    inside, leave, order = threading.Event(), threading.Event(), []

    def call() -> None:
        with gate:
            inside.set()
            leave.wait()
            order.append("call")

    def close() -> None:
        gate.close()
        order.append("closed")

    threads = [threading.Thread(target=call), threading.Thread(target=close)]
    threads[0].start()
    inside.wait()
    threads[1].start()
    while gate.usable:
        pass
    leave.set()
    for thread in threads:
        thread.join()
    assert order == ["call", "closed"]


def test_creation_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "engine"

    def fail(staging: Path) -> None:
        (staging / "file").write_bytes(b"half")
        raise DeviceError("disk")

    def succeed(staging: Path) -> None:
        (staging / "file").write_bytes(b"whole")

    with pytest.raises(DeviceError):
        create_in_staging(path, fail)
    assert not path.exists()
    path.mkdir()
    create_in_staging(path, succeed)
    assert (path / "file").read_bytes() == b"whole"
    with pytest.raises(MissingFile):
        create_in_staging(path, fail)
    assert (path / "file").read_bytes() == b"whole"


def test_creation_is_synced_before_and_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    sync_directory, rename, sync = RealFileSystem.sync_directory, RealFileSystem.rename, RealFile.sync

    def record_directory(self: RealFileSystem, path: Path) -> None:
        steps.append(f"sync {path.name}/")
        sync_directory(self, path)

    def record_rename(self: RealFileSystem, source: Path, target: Path) -> None:
        steps.append(f"rename {source.name} {target.name}")
        rename(self, source, target)

    def record_sync(self: RealFile) -> None:
        steps.append(f"sync {self.path.name}")
        sync(self)

    monkeypatch.setattr(RealFileSystem, "sync_directory", record_directory)
    monkeypatch.setattr(RealFileSystem, "rename", record_rename)
    monkeypatch.setattr(RealFile, "sync", record_sync)
    for name in ("lmdb", "sqlite"):
        parent = tmp_path / f"in-{name}"
        parent.mkdir()
        steps.clear()
        open_engine(name, parent / "engine", create=True).close()
        file = "data.mdb" if name == "lmdb" else "rows.sqlite"
        outside = f"sync {parent.name}/"
        wanted = [outside, f"sync {file}", "sync engine.new/", "rename engine.new engine", outside]
        assert [step for step in steps if "lock.mdb" not in step] == wanted
    steps.clear()
    open_engine("rocksdb", tmp_path / "in-lmdb" / "rocks", create=True).close()
    assert steps == ["sync in-lmdb/"]


def test_engines_by_name(tmp_path: Path) -> None:
    assert engine_names() == ("memory", "rocksdb", "lmdb", "sqlite")
    for name in engine_names():
        engine = open_engine(name, tmp_path / name, create=True, cache_bytes=1 << 20)
        assert engine.capabilities.name == name
        engine.apply(Batch({b"a": b"1"}), sync=True)
        engine.close()
        probe_engine(name, tmp_path / name)
    with pytest.raises(InvalidInputError, match="no engine"):
        open_engine("leveldb", tmp_path, create=True)
    with pytest.raises(InvalidInputError, match="no engine"):
        probe_engine("leveldb", tmp_path)


@pytest.mark.parametrize("name", ["rocksdb", "lmdb"])
def test_a_missing_library_names_its_extra(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = builtins.__import__

    def refuse(module: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if level == 1 and module == name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return honest(module, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for call in (lambda: open_engine(name, tmp_path, create=True), lambda: probe_engine(name, tmp_path)):
        with pytest.raises(InvalidInputError) as caught:
            call()
        assert f"holdfast[{name}]" in str(caught.value.remedy)
