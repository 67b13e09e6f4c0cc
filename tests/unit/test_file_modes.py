"""A store is for its owner alone: directories 0700, files 0600, whatever the umask."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import holdfast
from holdfast._fs import RealFileSystem
from holdfast.engine.open import open_engine
from tests.unit.store_support import chain_of, hash_of, make, open_quick


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=["000", "022", "077"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture
def lists(tmp_path: Path) -> bool:
    """True if the file system has access lists: without them RocksDB's own files are as the umask says."""
    path = tmp_path / "lists"
    RealFileSystem().make_private_directory(path)
    return "system.posix_acl_default" in os.listxattr(path)


def open_to_others(root: Path) -> list[str]:
    """Every path below ``root``, and ``root``, with another mode than a store's."""
    paths = [root, *sorted(root.rglob("*"))]
    assert any(path.is_file() for path in paths)
    return [
        f"{path.relative_to(root)} {stat.S_IMODE(path.lstat().st_mode):o}"
        for path in paths
        if stat.S_IMODE(path.lstat().st_mode) != (0o700 if path.is_dir() else 0o600)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["rocksdb", "lmdb", "sqlite"])
def test_nothing_of_a_store_is_open_to_others(tmp_path: Path, engine: str, umask: int, lists: bool) -> None:
    root, snapshot, imported = tmp_path / "store", tmp_path / "snapshot", tmp_path / "imported"
    with open_quick(f"{engine}:{root}", segment_bytes_max=2**20) as store:
        for number in range(5):
            draft = store.draft()
            draft.state[b"key %d" % number] = bytes(5000)
            store.commit(draft, hash=hash_of(number))
        store.documents("notes").put(b"a", b"b")
        store.add_many(chain_of(store.tip, 3))
        store.flush()
        store.rebuild()
        store.add(make(store.tip))
        found = open_to_others(root)
        store.export_snapshot(snapshot)
    (root / "views" / "CURRENT").write_text("9\n")  # views that cannot be trusted go to quarantine
    with open_quick(f"{engine}:{root}") as store:
        store.add(make(store.tip))
        store.flush()
    found += [each for path in (root, snapshot) for each in open_to_others(path)]
    holdfast.import_snapshot(f"{engine}:{imported}", snapshot, trust_manifest=True)
    found += open_to_others(imported)
    if engine == "rocksdb" and not lists:
        found = [each for each in found if "/data/" not in each]
    assert found == []


@pytest.mark.parametrize("engine", ["rocksdb", "lmdb", "sqlite"])
def test_nothing_of_an_engine_is_open_to_others(tmp_path: Path, engine: str, umask: int, lists: bool) -> None:
    with_engine = open_engine(engine, tmp_path / "engine", create=True)
    try:
        found = open_to_others(tmp_path / "engine")
    finally:
        with_engine.close()
    if engine == "rocksdb" and not lists:
        found = [each for each in found if each.startswith(". ")]
    assert found == []


def test_without_access_lists_the_directory_alone_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    RealFileSystem().make_private_directory(tmp_path / "a")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
