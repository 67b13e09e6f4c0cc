"""``rebuild`` and ``convert``: new views from the journal alone, live in one step, the old ones until then."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast._fs import RealFileSystem
from holdfast.blocks.records import block_key
from holdfast.engine.api import Batch
from holdfast.engine.open import open_engine
from holdfast.errors import (
    CorruptionError,
    EngineMismatch,
    InvalidInputError,
    StoreLocked,
    StoreNotFound,
)
from holdfast.recovery import convert_store, rebuild_views, verify_store
from holdfast.types import Block
from tests.unit.store_support import chain_of, filled, make, open_quick

ROOT = Path(__file__).resolve().parents[2]
ENGINES = ["rocksdb", "lmdb", "sqlite"]


def generations(path: Path) -> list[str]:
    return sorted(child.name for child in (path / "views").iterdir())


def current(path: Path) -> str:
    return (path / "views" / "CURRENT").read_text().strip()


def same(path: Path, blocks: list[Block]) -> None:
    """The store opens without replay and holds what ``filled`` put into it."""
    assert verify_store(path, level="views").ok
    with open_quick(path) as store:
        assert store.recovery.clean
        assert store.recovery.frames_replayed == 0
        assert not store.recovery.views_rebuilt
        assert [info.hash for info in store.blocks.canonical()] == [block.hash for block in blocks]
        assert len(list(store.blocks.orphans())) == 3


@pytest.mark.parametrize("engine", ENGINES)
def test_rebuild_makes_the_same_views(tmp_path: Path, engine: str) -> None:
    blocks = filled(f"{engine}:{tmp_path}")
    steps: list[tuple[int, int]] = []
    report = rebuild_views(tmp_path, progress=lambda done, total: steps.append((done, total)))
    assert (report.engine, report.engine_before) == (engine, engine)
    assert (report.generation, report.generation_before, report.removed) == (2, 1, (1,))
    assert report.frames == steps[-1][0] == steps[-1][1] == 14
    assert report.blocks == 13
    assert generations(tmp_path) == ["2", "CURRENT"]
    json.dumps(report.as_dict())
    same(tmp_path, blocks)


@pytest.mark.parametrize("engine", ENGINES)
def test_convert_to_every_other_engine_and_back(tmp_path: Path, engine: str) -> None:
    blocks = filled(f"{engine}:{tmp_path}")
    journal = {file.name: file.read_bytes() for file in (tmp_path / "journal").iterdir()}
    for other in [each for each in ENGINES if each != engine] + [engine]:
        report = convert_store(tmp_path, to=other)
        assert report.engine == other
        same(tmp_path, blocks)
        with open_quick(f"{other}:{tmp_path}") as store:
            assert store.engine == other
    with pytest.raises(EngineMismatch):
        open_quick(f"{ENGINES[ENGINES.index(engine) - 1]}:{tmp_path}")
    assert journal == {file.name: file.read_bytes() for file in (tmp_path / "journal").iterdir()}


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store"
    filled(f"sqlite:{path}")
    for bad in ("memory", "abacus", "sqlite"):
        with pytest.raises(InvalidInputError):
            convert_store(path, to=bad)
    with pytest.raises(EngineMismatch):
        convert_store(f"lmdb:{path}", to="rocksdb")
    with pytest.raises(InvalidInputError):
        rebuild_views("memory:")
    with pytest.raises(InvalidInputError):
        convert_store("memory:", to="lmdb")
    with pytest.raises(StoreNotFound):
        rebuild_views(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()
    with open_quick(path), pytest.raises(StoreLocked):
        rebuild_views(path)
    assert generations(path) == ["1", "CURRENT"]


def test_damaged_views_are_mended(tmp_path: Path) -> None:
    blocks = filled(f"sqlite:{tmp_path}")
    live = tmp_path / "views"
    damages: list[Callable[[], object]] = [
        lambda: (live / current(tmp_path) / "data" / "rows.sqlite").write_bytes(b"x" * 4096),
        lambda: (tmp_path / "views" / "CURRENT").write_text("?"),
        lambda: shutil.rmtree(tmp_path / "views"),
    ]
    for damage in damages:
        damage()
        report = rebuild_views(f"sqlite:{tmp_path}")
        assert report.engine == "sqlite"
        assert generations(tmp_path) == sorted(["CURRENT", str(report.generation)])
        same(tmp_path, blocks)


def test_a_bad_row_is_corruption_and_a_rebuild_mends_it(tmp_path: Path) -> None:
    blocks = filled(f"sqlite:{tmp_path}")
    for wrong in (None, b"not a row"):
        engine = open_engine("sqlite", tmp_path / "views" / current(tmp_path) / "data", create=False)
        engine.apply(Batch({block_key(blocks[-1].hash): wrong, block_key(blocks[3].hash): wrong}), sync=True)
        engine.close()
        for _ in range(2):  # the failed open leaves the lock free
            with pytest.raises(CorruptionError) as caught:
                open_quick(tmp_path)
            assert "rebuild" in caught.value.remedy
        rebuild_views(tmp_path)
        same(tmp_path, blocks)


def test_a_damaged_journal_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    filled(f"sqlite:{tmp_path}")
    (tmp_path / "watermark").write_bytes(bytes(8192))
    with pytest.raises(CorruptionError):
        rebuild_views(tmp_path)
    with pytest.raises(CorruptionError):
        convert_store(tmp_path, to="lmdb")
    assert generations(tmp_path) == ["1", "CURRENT"]
    assert current(tmp_path) == "1"


def test_a_damaged_part_in_the_middle_leaves_the_old_views(tmp_path: Path) -> None:
    with open_quick(f"sqlite:{tmp_path}", compression="none") as store:
        for block in chain_of(None, 5):
            store.add(block)
    segment = tmp_path / "journal" / "0000000001.seg"
    raw = segment.read_bytes()
    wanted = make(None).hash
    segment.write_bytes(raw.replace(wanted, wanted[::-1], 1))
    with pytest.raises(CorruptionError):
        rebuild_views(tmp_path)
    assert generations(tmp_path) == ["1", "CURRENT"]


def test_an_interrupted_rebuild_leaves_the_old_views(tmp_path: Path) -> None:
    blocks = filled(f"sqlite:{tmp_path}")

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    calls: list[Callable[[], object]] = [
        lambda: rebuild_views(tmp_path, progress=interrupt),
        lambda: convert_store(tmp_path, to="lmdb", progress=interrupt),
    ]
    for call in calls:
        with pytest.raises(KeyboardInterrupt):
            call()
        assert generations(tmp_path) == ["1", "CURRENT"]
        same(tmp_path, blocks)


def test_an_unclean_store_is_recovered_first(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store = open_quick(f"sqlite:{path}")
    blocks = chain_of(None, 6)
    store.add_many(blocks)
    shutil.copytree(path, tmp_path / "copy")
    store.close()
    report = rebuild_views(tmp_path / "copy")
    assert report.blocks == 6
    assert verify_store(tmp_path / "copy", level="views").ok
    with open_quick(tmp_path / "copy") as store:
        assert store.recovery.clean
        assert store.tip is not None
        assert store.tip.hash == blocks[-1].hash


def test_the_switch_is_the_last_thing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = filled(f"sqlite:{tmp_path}")

    original = RealFileSystem.write_atomic

    def dead(fs: RealFileSystem, path: Path, data: bytes) -> None:
        if path.name == "CURRENT":
            raise KeyboardInterrupt
        original(fs, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(RealFileSystem, "write_atomic", dead)
        with pytest.raises(KeyboardInterrupt):
            rebuild_views(tmp_path)
    assert current(tmp_path) == "1"
    same(tmp_path, blocks)
    report = rebuild_views(tmp_path)
    assert report.removed == (2, 1)
    same(tmp_path, blocks)


_AGENT = "import sys; from holdfast.recovery import convert_store; convert_store(sys.argv[1], to=sys.argv[2])"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "live"),
    [
        ("recovery.rebuild.step:1", "1"),
        ("recovery.rebuild.step:2", "1"),
        ("views.flush.mid_rows:1", "1"),
        ("views.flush.before_applied:1", "1"),
        ("recovery.rebuild.before_switch:1", "1"),
        ("recovery.rebuild.after_switch:1", "2"),
    ],
)
def test_killed_anywhere_one_whole_generation_is_live(tmp_path: Path, place: str, live: str) -> None:
    path = tmp_path / "store"
    with open_quick(f"sqlite:{path}", durability="buffered") as store:
        blocks = chain_of(None, 3)
        for block in blocks:
            store.add(block)
        for number in range(600):
            store.safety.save(b"me", (number,), b"") if number % 100 == 0 else store.add(make(blocks[1], number + 1))
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HOLDFAST_FAILPOINT": place}
    done = subprocess.run([sys.executable, "-c", _AGENT, str(path), "lmdb"], check=False, env=environment)
    assert done.returncode == -signal.SIGKILL
    assert current(path) == live
    report = verify_store(path, level="views")
    assert report.ok, report.as_dict()
    with open_quick(path) as store:
        assert store.engine == ("sqlite" if live == "1" else "lmdb")
        assert not store.recovery.views_rebuilt
        assert store.recovery.frames_replayed == 0
    again = rebuild_views(path)
    assert again.engine == ("sqlite" if live == "1" else "lmdb")
    assert len(generations(path)) == 2
    assert verify_store(path, level="views").ok
