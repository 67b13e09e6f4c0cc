"""A store goes out as a snapshot and comes in as a new one; what is already there is never touched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast import ChainSpec, CustomChain
from holdfast._fs import FileLock, RealFileSystem
from holdfast.engine.memory import MemoryEngine
from holdfast.errors import (
    BlockNotFound,
    CorruptionError,
    EngineMismatch,
    FencedError,
    ForeignStore,
    HoldfastError,
    InvalidBlock,
    InvalidInputError,
    PrunedError,
    SnapshotInvalid,
    StoreExists,
    StoreLocked,
    UnsupportedFormat,
)
from holdfast.recovery.convert import convert_store
from holdfast.recovery.rebuild import rebuild_views
from holdfast.recovery.verify import verify_store
from holdfast.state.api import MutableState
from holdfast.state.snapshot import SnapshotInfo, SnapshotReader
from holdfast.store.base import BaseEntry, decode_base, encode_base, load_base
from holdfast.store.chain import Chain
from holdfast.store.snapshots import import_snapshot
from holdfast.types import Block, BlockInfo
from tests.unit.state_support import Values, assert_tip, commit, grown, large, open_state_store, root_of, writer_backend
from tests.unit.store_support import quick

pytestmark = pytest.mark.slow  # each makes whole stores on disk

CHUNK = 2048


class Stop(Exception):
    """The test ends the import."""


def steps(count: int) -> list[dict[bytes, bytes | None]]:
    """Changes of ``count`` blocks: keys that come, change and go, and two values that do not fit into the tree."""
    made: list[dict[bytes, bytes | None]] = []
    for number in range(count):
        changes: dict[bytes, bytes | None] = {
            b"key/%d" % (number * 7 + item): b"%d/%d" % (number, item) * 9 for item in range(20)
        }
        if number == 2:
            changes |= {b"blob": large("blob", 70_000), b"same": large("blob", 70_000)}
        if number == 4:
            changes |= {b"key/3": None, b"blob": large("another", 2_500_000)}
        made.append(changes)
    return made


def exported(path: Path, *, blocks: int = 8, height: int | None = None) -> tuple[SnapshotInfo, Values, BlockInfo]:
    """A snapshot in ``path / "snapshot"`` of a store in ``path / "old"``; its figures, state and block."""
    with open_state_store(f"sqlite:{path / 'old'}") as store:
        states = grown(store, steps(blocks))
        info = store.export_snapshot(path / "snapshot", height=height, chunk_bytes=CHUNK)
    block, values = states[-1 if height is None else height]
    return info, values, block


def taken_in(path: Path, name: str = "new", *, engine: str = "sqlite", **arguments: object) -> SnapshotInfo:
    """The snapshot is a store in ``path / name``."""
    given: dict[str, object] = {"trust_manifest": True, "settings": quick(), **arguments}
    return import_snapshot(f"{engine}:{path / name}", path / "snapshot", **given)  # type: ignore[arg-type]


def listing(path: Path) -> dict[str, bytes]:
    """Every file below ``path``."""
    return {str(item.relative_to(path)): item.read_bytes() for item in sorted(path.rglob("*")) if item.is_file()}


# -- out and in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["sqlite", "rocksdb", "lmdb"])
@pytest.mark.parametrize("height", [None, 5])
def test_a_store_goes_on_from_a_snapshot(engine: str, height: int | None, tmp_path: Path) -> None:
    info, values, block = exported(tmp_path, height=height)
    assert (info.height, info.block_hash, info.state_root) == (block.height, block.hash, root_of(values))
    assert info.keys == len(values)
    assert taken_in(tmp_path, engine=engine, trusted_root=root_of(values), trust_manifest=False) == info
    with open_state_store(f"{engine}:{tmp_path / 'new'}") as store:
        assert not store.recovery.views_rebuilt
        tip = store.tip
        assert tip is not None
        same = ("hash", "parent", "height", "time", "work", "total_work", "producer", "state_root")
        assert [getattr(tip, name) for name in same] == [getattr(block, name) for name in same]
        assert store.blocks.header(tip) == b"header"
        assert store.blocks.body(tip) is None
        assert_tip(store, values)
        proof = store.state.prove(b"key/9")
        proof.verify(root_of(values), b"key/9", values[b"key/9"])
        with pytest.raises(PrunedError):
            store.state.at(block.height - 1)
        after = {**values, b"key/9": b"changed", b"fresh": b"1"}
        after.pop(b"same")
        commit(store, "next", {b"key/9": b"changed", b"fresh": b"1", b"same": None})
        assert_tip(store, after)
        assert dict(store.state.at(block.height).scan()) == values
    with open_state_store(f"{engine}:{tmp_path / 'new'}") as store:
        assert_tip(store, after)


def test_a_side_branch_on_the_base_wins(tmp_path: Path) -> None:
    _, values, block = exported(tmp_path)
    taken_in(tmp_path)
    with open_state_store(f"sqlite:{tmp_path / 'new'}") as store:
        commit(store, "one", {b"key/9": b"one", b"left": b"1"})
        commit(store, "other", {b"key/9": b"other"}, block.hash, work=5)
        assert_tip(store, {**values, b"key/9": b"other"})
        with pytest.raises(HoldfastError):
            store.reorg(to=block.parent)


def test_the_state_before_anything_was_executed(tmp_path: Path) -> None:
    with open_state_store(f"sqlite:{tmp_path / 'old'}") as store:
        commit(store, "empty", None)
        info = store.export_snapshot(tmp_path / "snapshot")
    assert (info.keys, info.chunks) == (0, 0)
    taken_in(tmp_path)
    with open_state_store(f"sqlite:{tmp_path / 'new'}") as store:
        assert_tip(store, {})
        commit(store, "next", {b"a": b"1"})
        assert_tip(store, {b"a": b"1"})


def test_a_snapshot_of_an_imported_store_is_the_same(tmp_path: Path) -> None:
    info, _, _ = exported(tmp_path)
    taken_in(tmp_path)
    with open_state_store(f"sqlite:{tmp_path / 'new'}") as store:
        assert store.export_snapshot(tmp_path / "again", chunk_bytes=CHUNK) == info
    assert listing(tmp_path / "again") == listing(tmp_path / "snapshot")


def test_other_schemes_and_chains(tmp_path: Path) -> None:
    spec = ChainSpec("custom", 'id with "quotes"', "longest", 40, 3, "ics23-smt", {"a": "1", "b": "\u00e4"})
    with open_state_store(f"sqlite:{tmp_path / 'old'}", chain=CustomChain(spec)) as store:
        states = grown(store, steps(3))
        store.export_snapshot(tmp_path / "snapshot", chunk_bytes=CHUNK)
    taken_in(tmp_path, chain=CustomChain(spec))
    with holdfast.open(f"sqlite:{tmp_path / 'new'}", settings=quick()) as store:
        assert store.spec == spec
        assert dict(store.state.scan()) == states[-1][1]


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    with open_state_store(f"sqlite:{tmp_path / 'old'}", max_reorg_depth=1, proof_window_blocks=1) as store:
        with pytest.raises(BlockNotFound):
            store.export_snapshot(tmp_path / "snapshot")
        grown(store, steps(8))
        store.flush()
        with pytest.raises(BlockNotFound):
            store.export_snapshot(tmp_path / "snapshot", height=8)
        with pytest.raises(PrunedError):
            store.export_snapshot(tmp_path / "snapshot", height=1)
    assert not (tmp_path / "snapshot").exists()


def test_an_export_from_a_follower(tmp_path: Path) -> None:
    with open_state_store(f"sqlite:{tmp_path / 'old'}") as store:
        states = grown(store, steps(4))
        with holdfast.open(f"sqlite:{tmp_path / 'old'}", read_only=True) as follower:
            follower.export_snapshot(tmp_path / "snapshot", chunk_bytes=CHUNK)
    taken_in(tmp_path, trusted_root=root_of(states[-1][1]), trust_manifest=False)


# -- views are made from the base ------------------------------------------------------------------------------------


def gone_views(path: Path) -> None:
    shutil.rmtree(path / "views")


def rebuilt_views(path: Path) -> None:
    assert rebuild_views(path).blocks == 3


def converted(path: Path) -> None:
    assert convert_store(path, to="rocksdb").engine == "rocksdb"


def renewed(path: Path) -> None:
    with holdfast.open(path, settings=quick()) as store:
        store.rebuild()


@pytest.mark.parametrize("make", [gone_views, rebuilt_views, converted, renewed])
def test_new_views_begin_with_the_base(make: Callable[[Path], None], tmp_path: Path) -> None:
    _, values, _ = exported(tmp_path)
    taken_in(tmp_path)
    path = tmp_path / "new"
    with open_state_store(f"sqlite:{path}") as store:
        commit(store, "next", {b"key/9": b"changed"})
        commit(store, "after", {b"key/3": b"back", b"same": None})
    after = {**values, b"key/9": b"changed", b"key/3": b"back"}
    after.pop(b"same")
    make(path)
    with holdfast.open(path, settings=quick()) as store:
        assert not store.recovery.finished_flush
        assert_tip(store, after)
        assert store.state[b"blob"] == values[b"blob"]
    report = verify_store(path, level="views")
    strange = [problem for problem in report.problems if problem.place.get("table") not in ("history", "meta")]
    assert strange == []
    assert ("base", len(values), 0) in [(check.name, check.checked, check.problems) for check in report.checks]


def test_a_follower_reads_the_base(tmp_path: Path) -> None:
    _, values, _ = exported(tmp_path)
    taken_in(tmp_path)
    url = f"sqlite:{tmp_path / 'new'}"
    with open_state_store(url) as store, holdfast.open(url, read_only=True) as follower:
        assert dict(follower.state.scan()) == values
        commit(store, "next", {b"key/9": b"changed"})
        follower.refresh()
        assert follower.state[b"key/9"] == b"changed"
        assert follower.state.root == store.state.root


def chunk_files(path: Path) -> list[Path]:
    return sorted((path / "base" / "chunks").iterdir())


def damage_chunk(path: Path) -> None:
    file = chunk_files(path)[1]
    file.write_bytes(file.read_bytes()[:-1] + b"\0")


def damage_manifest(path: Path) -> None:
    file = path / "base" / "manifest.json"
    file.write_bytes(file.read_bytes().replace(b'"time":', b'"time":1', 1))


@pytest.mark.parametrize(
    "damage",
    [
        damage_chunk,
        damage_manifest,
        lambda path: chunk_files(path)[0].unlink(),
        lambda path: shutil.rmtree(path / "base"),
    ],
)
def test_a_damaged_base_is_corruption_and_nothing_is_lost(damage: Callable[[Path], None], tmp_path: Path) -> None:
    _, values, _ = exported(tmp_path)
    taken_in(tmp_path)
    path = tmp_path / "new"
    damage(path)
    with holdfast.open(f"sqlite:{path}", settings=quick()) as store:
        assert_tip(store, values)  # the views that are there do not need it
    report = verify_store(path, level="links")
    assert [problem.check for problem in report.problems] == ["base"]
    with pytest.raises(CorruptionError, match="base of the store is damaged") as caught:
        rebuild_views(path)
    assert "put base/ back" in str(caught.value.remedy)
    with holdfast.open(f"sqlite:{path}", settings=quick()) as store:
        assert_tip(store, values)
    shutil.rmtree(path / "base", ignore_errors=True)
    shutil.copytree(tmp_path / "snapshot", path / "base")
    rebuild_views(path)
    with holdfast.open(f"sqlite:{path}", settings=quick()) as store:
        assert_tip(store, values)


def test_another_snapshot_in_the_place_of_the_base_is_refused(tmp_path: Path) -> None:
    exported(tmp_path)
    taken_in(tmp_path)
    with open_state_store(f"sqlite:{tmp_path / 'old'}") as store:
        commit(store, "more", {b"x": b"1"})
        shutil.rmtree(tmp_path / "new" / "base")
        store.export_snapshot(tmp_path / "new" / "base", chunk_bytes=CHUNK)
    with pytest.raises(CorruptionError, match="base of the store is damaged"):
        rebuild_views(tmp_path / "new")


def test_nothing_is_loaded_for_a_store_that_began_empty(tmp_path: Path) -> None:
    with open_state_store(f"sqlite:{tmp_path / 'old'}") as store:
        grown(store, steps(2))
        engine = MemoryEngine()
        assert load_base(engine, RealFileSystem(), tmp_path / "old", writer_backend(store).journal) == 0
        assert engine.scan().rows == []


# -- the base entry --------------------------------------------------------------------------------------------------


def test_the_base_entry() -> None:
    entry = BaseEntry(1, 258, b"h" * 32, b"r" * 32, b"m" * 32)
    data = bytes((1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2)) + b"h" * 32 + b"r" * 32 + b"m" * 32
    assert encode_base(entry) == data
    assert decode_base(data) == entry
    assert encode_base(None) == bytes(113)
    assert decode_base(bytes(113)) is None
    for bad in (b"", data[:-1], data + b"\0", b"\0" + data[1:]):
        with pytest.raises(CorruptionError):
            decode_base(bad)
    sealed = BaseEntry(1, 258, b"h" * 32, b"r" * 32, b"m" * 32, sealed=True)
    assert encode_base(sealed) == b"\2" + data[1:]
    assert decode_base(b"\2" + data[1:]) == sealed
    with pytest.raises(UnsupportedFormat):
        decode_base(b"\3" + data[1:])


# -- targets ---------------------------------------------------------------------------------------------------------


def test_what_is_there_already_is_not_touched(tmp_path: Path) -> None:
    exported(tmp_path)
    before = listing(tmp_path / "old")
    with pytest.raises(StoreExists):
        taken_in(tmp_path, "old")
    assert listing(tmp_path / "old") == before
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(ForeignStore):
        taken_in(tmp_path, "file")
    for name in ("notes.txt", "base/notes.txt", "base/chunks/notes.txt", "base/chunks/" + "0" * 64 + "-0.hfc.bak"):
        place = tmp_path / "foreign"
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(b"mine")
        with pytest.raises(ForeignStore):
            taken_in(tmp_path, "foreign")
        assert listing(place) == {name: b"mine"}
        shutil.rmtree(place)
    for url in ("memory:", f"memory:{tmp_path / 'x'}"):
        with pytest.raises(InvalidInputError):
            import_snapshot(url, tmp_path / "snapshot", trust_manifest=True)
    assert not (tmp_path / "x").exists()


def test_two_imports_at_once(tmp_path: Path) -> None:
    exported(tmp_path)
    fs = RealFileSystem()
    (tmp_path / "new").mkdir()
    lock = fs.lock(tmp_path / "new" / "LOCK", "1 other")
    with pytest.raises(StoreLocked):
        taken_in(tmp_path)
    lock.release()
    taken_in(tmp_path)


class _Overtaken(RealFileSystem):
    """Another import begins and ends just before this one gets the lock."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work: Callable[[], object] | None = work

    def lock(self, path: Path, owner: str) -> FileLock:
        work, self._work = self._work, None
        if work is not None:
            work()
        return super().lock(path, owner)


def test_an_import_that_was_overtaken_says_the_same(tmp_path: Path) -> None:
    info, values, _ = exported(tmp_path)
    assert taken_in(tmp_path, fs=_Overtaken(lambda: taken_in(tmp_path))) == info
    with open_state_store(f"sqlite:{tmp_path / 'new'}") as store:
        assert_tip(store, values)


# -- the same import again -------------------------------------------------------------------------------------------


def test_an_import_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    info, values, _ = exported(tmp_path)
    taken_in(tmp_path)
    before = {name: data for name, data in listing(tmp_path / "new").items() if name.startswith("base/")}
    identity = (tmp_path / "new" / "holdfast.toml").read_bytes()
    for _ in range(2):
        assert taken_in(tmp_path) == info
        assert (tmp_path / "new" / "holdfast.toml").read_bytes() == identity
        with open_state_store(f"sqlite:{tmp_path / 'new'}") as store:
            assert (store.recovery.clean, store.recovery.views_rebuilt) == (True, False)
            assert_tip(store, values)
            assert store.safety.fenced
            with pytest.raises(FencedError):
                store.safety.save(b"validator", (1,), b"vote")
    assert {name: data for name, data in listing(tmp_path / "new").items() if name.startswith("base/")} == before
    with pytest.raises(SnapshotInvalid, match="trusted"):
        taken_in(tmp_path, trusted_root=bytes(32))
    with pytest.raises(EngineMismatch):
        taken_in(tmp_path, engine="rocksdb")
    with open_state_store(f"sqlite:{tmp_path / 'new'}"), pytest.raises(StoreLocked):
        taken_in(tmp_path)


def test_a_store_that_went_on_is_not_the_import(tmp_path: Path) -> None:
    exported(tmp_path)
    taken_in(tmp_path)
    with open_state_store(f"sqlite:{tmp_path / 'new'}") as store:
        commit(store, "next", {b"key/9": b"changed"})
    before = listing(tmp_path / "new")
    with pytest.raises(StoreExists, match="went on from it") as caught:
        taken_in(tmp_path)
    assert "open it" in str(caught.value.remedy)
    assert listing(tmp_path / "new") == before


def test_a_store_on_another_snapshot_is_not_the_import(tmp_path: Path) -> None:
    exported(tmp_path)
    taken_in(tmp_path)
    shutil.rmtree(tmp_path / "snapshot")
    with open_state_store(f"sqlite:{tmp_path / 'old'}") as store:
        store.export_snapshot(tmp_path / "snapshot", height=6)
    before = listing(tmp_path / "new")
    with pytest.raises(StoreExists, match="into a new one"):
        taken_in(tmp_path)
    assert listing(tmp_path / "new") == before


class _NoViews(RealFileSystem):
    """The process dies before the views of the store are live."""

    def write_atomic(self, path: Path, data: bytes) -> None:
        if path.name == "CURRENT":
            raise Stop
        super().write_atomic(path, data)


def test_an_import_that_ended_before_the_views_goes_on(tmp_path: Path) -> None:
    info, values, _ = exported(tmp_path)
    with pytest.raises(Stop):
        taken_in(tmp_path, fs=_NoViews())
    assert not (tmp_path / "new" / "views" / "CURRENT").exists()
    assert taken_in(tmp_path) == info
    assert (tmp_path / "new" / "views" / "CURRENT").exists()
    with open_state_store(f"sqlite:{tmp_path / 'new'}") as store:
        assert not store.recovery.views_rebuilt
        assert_tip(store, values)


def test_an_import_can_be_stopped_while_its_views_are_made(tmp_path: Path) -> None:
    info, values, _ = exported(tmp_path)
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        assert total == info.keys
        seen.append(done)
        if info.keys in seen[:-2]:  # copied, and two chunks loaded
            raise Stop

    for copied in (False, True):
        seen[:] = [info.keys] if copied else []  # what is copied is not copied once more
        with pytest.raises(Stop):
            taken_in(tmp_path, progress=progress)
        assert seen[:-2] == sorted(seen[:-2])
        assert seen[-2] < seen[-1] < info.keys
        assert not (tmp_path / "new" / "views" / "CURRENT").exists()
    assert taken_in(tmp_path) == info
    with open_state_store(f"sqlite:{tmp_path / 'new'}") as store:
        assert_tip(store, values)


class _NoIdentity(RealFileSystem):
    """The process dies before ``holdfast.toml`` is there."""

    def write_atomic(self, path: Path, data: bytes) -> None:
        if path.name == "holdfast.toml":
            raise Stop
        super().write_atomic(path, data)


def test_an_import_that_ended_with_the_first_frame_goes_on_whatever_its_length(tmp_path: Path) -> None:
    header = os.urandom(1024 * 1024)
    with open_state_store(f"sqlite:{tmp_path / 'old'}") as store:
        draft = store.draft()
        draft.state[b"a"] = b"1"
        store.commit(draft, hash=b"h" * 32, header=header, producer=b"p" * 128)
        store.export_snapshot(tmp_path / "snapshot")
    with pytest.raises(Stop):
        taken_in(tmp_path, fs=_NoIdentity())
    assert (tmp_path / "new" / "journal" / "0000000001.seg").exists()
    with pytest.raises(ForeignStore, match="did not end"):
        open_state_store(f"sqlite:{tmp_path / 'new'}")
    taken_in(tmp_path)
    with open_state_store(f"sqlite:{tmp_path / 'new'}") as store:
        assert store.tip is not None
        assert store.blocks.header(store.tip) == header
        assert_tip(store, {b"a": b"1"})


def test_settings_beside_the_store_may_be_there(tmp_path: Path) -> None:
    exported(tmp_path)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.toml").write_text("cache_bytes = 67108864\n")
    taken_in(tmp_path)
    assert (tmp_path / "new" / "config.toml").exists()


def test_an_import_that_was_stopped_goes_on(tmp_path: Path) -> None:
    info, values, _ = exported(tmp_path)
    calls: list[int] = []

    def progress(done: int, total: int) -> None:
        assert total == info.keys
        calls.append(done)
        if len(calls) == 5:
            raise Stop

    with pytest.raises(Stop):
        taken_in(tmp_path, progress=progress, workers=1)
    with pytest.raises(ForeignStore, match="did not end") as caught:
        open_state_store(f"sqlite:{tmp_path / 'new'}")
    assert "run the same import again" in str(caught.value.remedy)
    kept = {path: os.stat(path).st_ino for path in chunk_files(tmp_path / "new")}
    assert len(kept) >= 5
    damaged, *_ = kept
    damaged.write_bytes(b"rotten")
    taken_in(tmp_path, workers=1)
    for path, number in kept.items():
        assert (os.stat(path).st_ino == number) == (path != damaged)
    with open_state_store(f"sqlite:{tmp_path / 'new'}") as store:
        assert_tip(store, values)
    assert listing(tmp_path / "new" / "base") == listing(tmp_path / "snapshot")


def test_an_unfinished_import_of_another_snapshot_leaves_nothing_behind(tmp_path: Path) -> None:
    exported(tmp_path)

    def progress(done: int, _total: int) -> None:
        if done > 30:
            raise Stop

    with pytest.raises(Stop):
        taken_in(tmp_path, progress=progress)
    shutil.rmtree(tmp_path / "snapshot")
    with open_state_store(f"sqlite:{tmp_path / 'old'}") as store:
        commit(store, "more", {b"x": b"1", b"key/40": None})
        info = store.export_snapshot(tmp_path / "snapshot", chunk_bytes=8 * 1024 * 1024)
        values = dict(store.state.scan())
    assert info.chunks == 1
    assert taken_in(tmp_path) == info
    assert listing(tmp_path / "new" / "base") == listing(tmp_path / "snapshot")
    with open_state_store(f"sqlite:{tmp_path / 'new'}") as store:
        assert_tip(store, values)


# -- what is not trusted ---------------------------------------------------------------------------------------------


def test_nothing_of_a_bad_chunk_is_written(tmp_path: Path) -> None:
    exported(tmp_path)
    files = sorted((tmp_path / "snapshot" / "chunks").iterdir())
    bad = files[len(files) // 2]
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-40] + bytes((whole[-40] ^ 1,)) + whole[-39:])
    with pytest.raises(SnapshotInvalid) as caught:
        taken_in(tmp_path)
    assert caught.value.context["chunk"] == bad.name
    names = [path.name for path in chunk_files(tmp_path / "new")]
    assert bad.name not in names
    assert not (tmp_path / "new" / "holdfast.toml").exists()
    assert not (tmp_path / "new" / "base" / "manifest.json").exists()
    bad.write_bytes(whole)
    taken_in(tmp_path)


def test_another_root_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    _, values, block = exported(tmp_path)
    wrong: tuple[dict[str, Any], ...] = (
        {"trusted_root": bytes(32)},
        {"trusted_root": root_of(values), "trusted_block": bytes(32)},
        {"manifest_digest": bytes(32)},
    )
    for arguments in wrong:
        with pytest.raises(SnapshotInvalid):
            taken_in(tmp_path, trust_manifest=False, **arguments)
    with pytest.raises(InvalidInputError, match="known from elsewhere"):
        taken_in(tmp_path, trust_manifest=False, trusted_block=block.hash)
    assert not (tmp_path / "new").exists()


class DecodingChain:
    """A chain that can decode; its headers say what it was told."""

    def __init__(self, block: BlockInfo, root: bytes | None) -> None:
        self.spec = ChainSpec(name="custom")
        self.block = block
        self.root = root
        self.broken = False

    def genesis(self) -> Block | None:
        return None

    def decode(
        self, header: bytes, body: bytes | None, *, parent: BlockInfo | None, extra: bytes | None = None
    ) -> Block:
        if self.broken:
            raise InvalidBlock("broken")
        return Block(self.block.hash, self.block.parent, 0, header, body)

    def validate(self, block: Block, parent: BlockInfo | None, ancestry: object) -> None:
        """Accept."""

    def execute(self, block: Block, parent: BlockInfo | None, state: MutableState) -> bytes | None:
        return None

    def state_root(self, block: Block) -> bytes | None:
        return self.root


def test_a_chain_that_can_decode_judges_the_header(tmp_path: Path) -> None:
    _, values, block = exported(tmp_path)

    def refused(chain: object, words: str, error: type[HoldfastError] = SnapshotInvalid) -> None:
        with pytest.raises(error, match=words):
            taken_in(tmp_path, chain=chain)
        assert not (tmp_path / "new").exists()

    other = BlockInfo(b"o" * 32, b"p" * 32, 0, 0, 0, 0, b"", 0, 0, 0, 0, None)
    refused(DecodingChain(other, None), "not that of its block")
    refused(DecodingChain(block, b"r" * 32), "not the one in the header")
    broken = DecodingChain(block, None)
    broken.broken = True
    refused(broken, "header of the snapshot's block")
    refused(CustomChain(ChainSpec(name="other")), "another chain", ForeignStore)
    refused(CustomChain(ChainSpec(name="custom", scheme="ics23-smt")), "another chain", ForeignStore)
    refused(CustomChain(ChainSpec(name="custom", parameters={"a": "1"})), "other parameters", ForeignStore)
    chain: Chain = DecodingChain(block, root_of(values))
    taken_in(tmp_path, chain=chain)


def test_the_manifest_says_what_is_in_the_first_frame(tmp_path: Path) -> None:
    info, values, block = exported(tmp_path)
    taken_in(tmp_path)
    with open_state_store(f"sqlite:{tmp_path / 'new'}") as store:
        journal = writer_backend(store).journal
        frame = journal.frame(1)
        entry = decode_base(journal.part(frame, 0))
        assert entry == BaseEntry(1, block.height, block.hash, root_of(values), info.manifest_digest)
    assert SnapshotReader(tmp_path / "new" / "base").digest == info.manifest_digest
