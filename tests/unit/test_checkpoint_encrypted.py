"""Checkpoints of an encrypted store, and stores that are made of one or of a snapshot with a key."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

import holdfast
from holdfast import Store
from holdfast._fs import RealFileSystem
from holdfast._keys import Encryption, StoreKey
from holdfast.errors import (
    CorruptionError,
    ForeignStore,
    HoldfastError,
    KeyRejected,
    KeyRequired,
    SnapshotInvalid,
    StoreExists,
)
from holdfast.recovery.rebuild import rebuild_views
from holdfast.recovery.verify import verify_store
from holdfast.store import snapshots
from holdfast.store.base import BaseEntry, foreign_base
from holdfast.store.checkpoints import checkpoints_at
from holdfast.store.opening import read_identity
from tests.unit.backup_support import backup, check, repository, restored
from tests.unit.doctor_support import flip, killed, truth
from tests.unit.store_support import chain_of, hash_of, quick
from tests.unit.test_store_encryption import KEY, MARK, contents, files_with, fill, make_store, tip_height

WRONG = bytes(32)
NO_KEYS = [None, WRONG, StoreKey.from_passphrase("a passphrase")]
FIRST = "journal/0000000001.seg"


def refusal(key: object) -> type[HoldfastError]:
    return KeyRequired if key is None else KeyRejected


def with_checkpoints(path: Path, key: bytes | StoreKey | None = KEY) -> list[str]:
    """A closed store of 30 blocks with checkpoints of 10 and 29; their names, the highest first."""
    with holdfast.open(f"sqlite:{path}", key=key, settings=quick()) as store:
        fill(store)
        low = store.checkpoints.create(10)
        return [store.checkpoints.create().name, low.name]


def more(store: Store, count: int) -> None:
    """``count`` blocks more, each with the marker in a value."""
    assert store.tip is not None
    for height in range(store.tip.height + 1, store.tip.height + 1 + count):
        draft = store.draft()
        draft.state[b"account/1"] = MARK + b" later %d" % height
        store.commit(draft, hash=hash_of(height, "more"), header=MARK + b" header")


def exported(place: Path) -> Path:
    """A snapshot of a store without a key."""
    make_store(f"sqlite:{place / 'plain'}", key=None)
    with holdfast.open(place / "plain") as store:
        store.export_snapshot(place / "snapshot", chunk_bytes=1024)
    return place / "snapshot"


def is_the_state(path: Path, key: bytes = KEY) -> None:
    """The store holds the state after block 29 and nothing else, and may not sign."""
    assert verify_store(path, level="full", key=key).ok
    assert verify_store(path, level="links").ok
    with holdfast.open(path, key=key, settings=quick()) as store:
        assert tip_height(store) == 29
        assert store.state[b"account/1"] == MARK + b" state 29"
        assert store.state[b"large"] == MARK * 20_000
        assert store.safety.fenced
    assert files_with(path, MARK) == []


# -- made, looked at, removed -----------------------------------------------------------------------------------------


def test_they_are_made_verified_and_pruned_and_hold_nothing_in_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "store"
    names = with_checkpoints(path)
    assert files_with(path, MARK) == []
    with holdfast.open(path, key=KEY, settings=quick()) as store:
        assert [info.name for info in store.checkpoints.list()] == names
        assert all(info.snapshot is not None for info in store.checkpoints.list())
        assert store.checkpoints.verify(names[1]).height == 10
        report = store.checkpoints.prune(newest=1)
        assert (report.verified, report.removed, report.damaged) == (names[0], (names[1],), ())
        assert report.files
        assert store.checkpoints.verify(names[0]).keys == 8
    with holdfast.open(path, key=KEY, read_only=True, settings=quick()) as reader:
        assert reader.checkpoints.verify(names[0]).keys == 8
    assert files_with(path, MARK) == []


def test_what_did_not_change_is_stored_once(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with_checkpoints(path)
    before = contents(path / "checkpoints" / "chunks")
    with holdfast.open(path, key=KEY, settings=quick()) as store:
        store.checkpoints.create()
        assert contents(path / "checkpoints" / "chunks") == before, "made again, it is the same"
        more(store, 1)
        made = store.checkpoints.create()
        assert made.snapshot is not None
        new = set(contents(path / "checkpoints" / "chunks")) - set(before)
        assert 0 < len(new) < made.snapshot.chunks


def test_names_of_chunks_do_not_say_which_node_they_hold(tmp_path: Path) -> None:
    names = with_checkpoints(tmp_path / "store")
    with_checkpoints(tmp_path / "other")
    reader = checkpoints_at(tmp_path / "store", key=KEY).reader(names[0])
    found = set(contents(tmp_path / "store" / "checkpoints" / "chunks"))
    assert not found & {entry.hash.hex() for entry in reader.manifest.chunks}
    assert not found & set(contents(tmp_path / "other" / "checkpoints" / "chunks"))


def test_the_background_makes_them_of_an_encrypted_store_too(tmp_path: Path) -> None:
    settings = quick(checkpoint_interval=10, max_reorg_depth=6)
    with holdfast.open(f"sqlite:{tmp_path}", key=KEY, settings=settings) as store:
        fill(store)
        assert store.checkpoints.due()
        store.checkpoints.run_in_background(lambda: True)
        (made,) = store.checkpoints.list()
        assert made.height == 20
        assert store.checkpoints.verify(made.name).height == 20
        assert store.checkpoints.statistics()["failures"] == 0
    assert files_with(tmp_path, MARK) == []


@pytest.mark.parametrize("key", NO_KEYS)
def test_without_its_key_names_can_be_listed_and_nothing_else(key: bytes | StoreKey | None, tmp_path: Path) -> None:
    path = tmp_path / "store"
    names = with_checkpoints(path)
    before = contents(path)
    directory = checkpoints_at(path, key=key)
    assert directory.names() == names
    for name in names:
        assert isinstance(directory.info(name).problem, refusal(key))
        with pytest.raises(refusal(key)):
            directory.verify(name)
    with pytest.raises(refusal(key)):
        holdfast.restore_checkpoint(path, f"sqlite:{tmp_path / 'new'}", key=key)
    assert not (tmp_path / "new").exists()
    assert contents(path) == before


def test_verify_looks_at_them_with_the_key_and_says_so_without(tmp_path: Path) -> None:
    names = with_checkpoints(tmp_path)
    assert verify_store(tmp_path, level="quick", key=KEY).ok
    report = verify_store(tmp_path, level="links")
    assert report.ok
    assert any(names[0] in note for note in report.notes)
    flip(tmp_path / "checkpoints" / f"{names[0]}.manifest", 400)
    for key in (KEY, None):
        assert not verify_store(tmp_path, level="quick", key=key).ok


# -- restored ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [KEY, StoreKey.from_passphrase("correct horse")])
def test_a_copy_of_the_checkpoints_alone_becomes_an_encrypted_store(key: bytes | StoreKey, tmp_path: Path) -> None:
    with_checkpoints(tmp_path / "old", key)
    shutil.copytree(tmp_path / "old" / "checkpoints", tmp_path / "copy")
    shutil.rmtree(tmp_path / "old")
    new = tmp_path / "new"
    told = holdfast.restore_checkpoint(tmp_path / "copy", f"sqlite:{new}", key=key)
    assert told.height == 29
    assert holdfast.restore_checkpoint(tmp_path / "copy", f"sqlite:{new}", key=key) == told
    with pytest.raises(KeyRequired):
        holdfast.open(new)
    with pytest.raises(KeyRejected):
        holdfast.open(new, key=WRONG)
    is_the_state(new, key)  # type: ignore[arg-type]


def test_a_checkpoint_without_a_state_keeps_its_key_when_its_restoring_is_cut_off(tmp_path: Path) -> None:
    """There is no chunk then, only the manifest of the base."""
    with holdfast.open(f"sqlite:{tmp_path / 'old'}", key=KEY, settings=quick()) as store:
        for block in chain_of(None, 5):
            store.add(block)
        store.checkpoints.create()

    def restore(key: bytes | None) -> None:
        holdfast.restore_checkpoint(tmp_path / "old", f"sqlite:{tmp_path / 'new'}", key=key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "_create", killed_here)
        with pytest.raises(Cut):
            restore(KEY)
    begun = contents(tmp_path / "new")
    assert set(begun) == {"base/manifest.json"}
    with pytest.raises(ForeignStore):
        holdfast.open(tmp_path / "new", key=KEY)
    with pytest.raises(KeyRequired):
        holdfast.import_snapshot(f"sqlite:{tmp_path / 'new'}", exported(tmp_path), trust_manifest=True)
    assert contents(tmp_path / "new") == begun
    restore(KEY)
    assert contents(tmp_path / "new" / "base") == {"manifest.json": begun["base/manifest.json"]}
    with holdfast.open(tmp_path / "new", key=KEY, settings=quick()) as store:
        assert tip_height(store) == 4


def test_strangers_cannot_make_a_listing_slow(tmp_path: Path) -> None:
    """Each manifest may name parameters of its own, and a passphrase is slow to try by design."""
    with holdfast.open(f"sqlite:{tmp_path / 'store'}", key=KEY, settings=quick()) as store:
        fill(store, 3)
        name = store.checkpoints.create().name
    good = (tmp_path / "store" / "checkpoints" / f"{name}.manifest").read_bytes()
    for number in range(40):
        data = good[:44] + bytes((number,)) * 32 + good[76:-32]
        path = tmp_path / "store" / "checkpoints" / f"{100 + number}-{'0' * 16}.manifest"
        path.write_bytes(data + sha256(data).digest())
    tried = []

    class Counted(StoreKey):
        def derive(self, form: Encryption) -> bytes:
            tried.append(form)
            return super().derive(form)

    directory = checkpoints_at(tmp_path / "store", key=Counted("key-file", KEY))
    for _ in range(2):
        assert all(isinstance(directory.info(each).problem, KeyRejected) for each in directory.names()[:-1])
    assert len(tried) == 16


def test_a_key_for_a_plain_checkpoint_is_refused(tmp_path: Path) -> None:
    """Who put it there need not have had the key of the store that one believes to restore."""
    with_checkpoints(tmp_path / "plain", key=None)
    with pytest.raises(KeyRejected, match="not encrypted"):
        holdfast.restore_checkpoint(tmp_path / "plain", f"sqlite:{tmp_path / 'new'}", key=KEY)
    assert not (tmp_path / "new").exists()


def test_a_plain_checkpoint_in_an_encrypted_store_is_damage(tmp_path: Path) -> None:
    with_checkpoints(tmp_path / "plain", key=None)
    path = tmp_path / "store"
    make_store(f"sqlite:{path}")
    shutil.copytree(tmp_path / "plain" / "checkpoints", path / "checkpoints")
    for key in (KEY, None):
        assert not verify_store(path, level="quick", key=key).ok
    with holdfast.open(path, key=KEY, settings=quick()) as store:
        for info in store.checkpoints.list():
            assert isinstance(info.problem, SnapshotInvalid)
        store.checkpoints.create()
        assert len(store.checkpoints.prune().removed) == 1
    assert files_with(path, MARK) == []


# -- imported ---------------------------------------------------------------------------------------------------------


def test_a_snapshot_becomes_an_encrypted_store(tmp_path: Path) -> None:
    snapshot, path = exported(tmp_path), tmp_path / "new"
    assert files_with(snapshot, MARK + b" header".hex().encode()) == []
    told = holdfast.import_snapshot(f"sqlite:{path}", snapshot, trust_manifest=True, key=KEY)
    assert holdfast.import_snapshot(f"sqlite:{path}", snapshot, trust_manifest=True, key=KEY) == told
    is_the_state(path)
    again = holdfast.import_snapshot(f"sqlite:{path}", snapshot, trust_manifest=True, key=KEY)
    assert again == told, "that it was opened is no commit"
    rebuild_views(path, key=KEY)
    is_the_state(path)
    with holdfast.open(path, key=KEY, settings=quick()) as store:
        more(store, 3)
        store.rebuild()
        store.checkpoints.create()
    with pytest.raises(StoreExists):
        holdfast.import_snapshot(f"sqlite:{path}", snapshot, trust_manifest=True, key=KEY)
    assert files_with(path, MARK) == []


class Cut(Exception):
    """The import was killed."""


def cut_after(keys: int) -> Callable[[int, int], None]:
    def progress(done: int, _total: int) -> None:
        if done >= keys:
            raise Cut

    return progress


def killed_here(*_args: object) -> None:
    raise Cut


def test_an_import_goes_on_with_its_key_and_with_no_other(tmp_path: Path) -> None:
    snapshot, path = exported(tmp_path), tmp_path / "new"

    def take_in(key: bytes | StoreKey | None, **more: object) -> None:
        url = f"sqlite:{path}"
        holdfast.import_snapshot(url, snapshot, trust_manifest=True, key=key, workers=1, **more)  # type: ignore[arg-type]

    with pytest.raises(Cut):
        take_in(KEY, progress=cut_after(4))
    begun = contents(path)
    assert begun
    assert files_with(path, MARK) == []
    for key in NO_KEYS:
        with pytest.raises(refusal(key)):
            take_in(key)
        assert contents(path) == begun
    take_in(KEY)
    there = contents(path)
    assert all(there[name] == data for name, data in begun.items()), "what was copied is kept"
    is_the_state(path)


def test_an_import_that_was_begun_without_a_key_is_not_ended_with_one(tmp_path: Path) -> None:
    snapshot, path = exported(tmp_path), tmp_path / "new"
    with pytest.raises(Cut):
        holdfast.import_snapshot(f"sqlite:{path}", snapshot, trust_manifest=True, workers=1, progress=cut_after(4))
    begun = contents(path)
    with pytest.raises(ForeignStore, match="without a key"):
        holdfast.import_snapshot(f"sqlite:{path}", snapshot, trust_manifest=True, key=KEY)
    assert contents(path) == begun


@pytest.mark.parametrize("key", NO_KEYS)
def test_the_import_into_a_store_that_is_there_asks_for_its_key(key: bytes | StoreKey | None, tmp_path: Path) -> None:
    snapshot, path = exported(tmp_path), tmp_path / "new"
    holdfast.import_snapshot(f"sqlite:{path}", snapshot, trust_manifest=True, key=KEY)
    before = contents(path)
    with pytest.raises(refusal(key)):
        holdfast.import_snapshot(f"sqlite:{path}", snapshot, trust_manifest=True, key=key)
    assert contents(path) == before


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_the_same_import_puts_back_what_is_wrong_with_the_base(how: str, tmp_path: Path) -> None:
    snapshot, path = exported(tmp_path), tmp_path / "new"
    holdfast.import_snapshot(f"sqlite:{path}", snapshot, trust_manifest=True, key=KEY)
    before = contents(path / "base")
    for name in before:
        if how == "missing":
            (path / "base" / name).unlink()
        else:
            flip(path / "base" / name, -40)
        assert not verify_store(path, level="links").ok
        assert not verify_store(path, level="links", key=KEY).ok
        holdfast.import_snapshot(f"sqlite:{path}", snapshot, trust_manifest=True, key=KEY)
        assert contents(path / "base") == before


@pytest.mark.parametrize("how", [{"chunk_bytes": 1_000_000}, {"chunk_bytes": 1024, "compress": False}])
def test_another_snapshot_of_the_same_state_does_not_mend_a_base(how: dict[str, int | bool], tmp_path: Path) -> None:
    """Its manifest is damaged, so only its chunks can say of which snapshot it is."""
    snapshot, path, url = exported(tmp_path), tmp_path / "new", f"sqlite:{tmp_path / 'new'}"
    with holdfast.open(tmp_path / "plain") as store:
        store.export_snapshot(tmp_path / "other", **how)  # type: ignore[arg-type]
    holdfast.import_snapshot(url, snapshot, trust_manifest=True, key=KEY)
    before = contents(path / "base")
    with pytest.raises(StoreExists):
        holdfast.import_snapshot(url, tmp_path / "other", trust_manifest=True, key=KEY)
    assert contents(path / "base") == before
    flip(path / "base" / "manifest.json", 200)
    with pytest.raises(StoreExists):
        holdfast.import_snapshot(url, tmp_path / "other", trust_manifest=True, key=KEY)
    assert {name: contents(path / "base")[name] for name in before if name != "manifest.json"}.items() <= before.items()
    holdfast.import_snapshot(url, snapshot, trust_manifest=True, key=KEY)
    assert contents(path / "base") == before


# -- damage, and people without the key -------------------------------------------------------------------------------


def test_no_bit_of_a_checkpoint_can_be_another_one(tmp_path: Path) -> None:
    names = with_checkpoints(tmp_path)
    directory = checkpoints_at(tmp_path, key=KEY)
    for name, data in contents(tmp_path / "checkpoints").items():
        for offset in {*range(0, len(data), max(1, len(data) // 24)), len(data) - 1}:
            flip(tmp_path / "checkpoints" / name, offset)
            verdicts = []
            for each in names:
                try:
                    directory.verify(each, workers=1)
                    verdicts.append("sound")
                except SnapshotInvalid as error:
                    verdicts.append(error.code)
            assert verdicts != ["sound", "sound"], f"byte {offset} of {name}"
            flip(tmp_path / "checkpoints" / name, offset)
        for short in (b"", data[:-1], data + b"\0"):
            (tmp_path / "checkpoints" / name).write_bytes(short)
            with pytest.raises(SnapshotInvalid):
                [directory.verify(each, workers=1) for each in names]
        (tmp_path / "checkpoints" / name).write_bytes(data)
    assert [directory.verify(each).height for each in names] == [29, 10]


def test_no_bit_of_a_sealed_base_can_be_another_one(tmp_path: Path) -> None:
    snapshot, path = exported(tmp_path), tmp_path / "new"
    holdfast.import_snapshot(f"sqlite:{path}", snapshot, trust_manifest=True, key=KEY)
    for name, data in contents(path / "base").items():
        for offset in {*range(0, len(data), max(1, len(data) // 8)), len(data) - 1}:
            flip(path / "base" / name, offset)
            for key in (KEY, None):
                report = verify_store(path, level="links", key=key)
                assert [problem.code for problem in report.problems] == ["corruption"], f"byte {offset} of {name}"
            flip(path / "base" / name, offset)
    shutil.rmtree(path / "views")
    flip(path / "base" / "manifest.json", 200)
    with pytest.raises(CorruptionError):
        holdfast.open(path, key=KEY, settings=quick())


def forged(path: Path, offset: int) -> None:
    """A bit is another one, by somebody who knows the format: the digest at the end is right again."""
    flip(path, offset)
    data = path.read_bytes()[:-32]
    path.write_bytes(data + sha256(data).digest())


def test_who_puts_the_digest_right_is_found_out(tmp_path: Path) -> None:
    """Of a base even without the key, since frame 1 names its manifest, and that its chunks."""
    snapshot, path = exported(tmp_path), tmp_path / "new"
    holdfast.import_snapshot(f"sqlite:{path}", snapshot, trust_manifest=True, key=KEY)
    for name, data in contents(path / "base").items():
        forged(path / "base" / name, -100)
        for key in (KEY, None):
            assert not verify_store(path, level="links", key=key).ok, name
        (path / "base" / name).write_bytes(data)
    assert verify_store(path, level="links").ok
    name = with_checkpoints(tmp_path / "store")[0]
    for offset in (20, 50, 100, 140, 160, -100):
        forged(tmp_path / "store" / "checkpoints" / f"{name}.manifest", offset)
        with pytest.raises((SnapshotInvalid, KeyRejected)):
            checkpoints_at(tmp_path / "store", key=KEY).verify(name)
        forged(tmp_path / "store" / "checkpoints" / f"{name}.manifest", offset)
    assert checkpoints_at(tmp_path / "store", key=KEY).verify(name).height == 29


def test_a_sealed_base_under_a_store_without_a_key_is_damage(tmp_path: Path) -> None:
    make_store(f"sqlite:{tmp_path}", key=None, count=3)
    fs = RealFileSystem()
    sealed = BaseEntry(1, 2, b"h" * 32, b"r" * 32, b"m" * 32, sealed=True)
    problem = foreign_base(fs, tmp_path, sealed, read_identity(fs, tmp_path))
    assert isinstance(problem, CorruptionError)
    assert "a base that is sealed" in problem.message


def test_no_file_can_stand_in_for_another(tmp_path: Path) -> None:
    """Not one of another store with the same key, and not one of the same store."""
    one, two = tmp_path / "one", tmp_path / "two"
    names = with_checkpoints(one)
    assert with_checkpoints(two) == names
    mine, theirs = (checkpoints_at(path, key=KEY).reader(names[0]) for path in (one, two))
    first, second = mine.manifest.chunks[:2]
    for source in (theirs.chunk_path(first), mine.chunk_path(second)):
        good = mine.chunk_path(first).read_bytes()
        mine.chunk_path(first).write_bytes(source.read_bytes())
        with pytest.raises(SnapshotInvalid):
            checkpoints_at(one, key=KEY).verify(names[0])
        mine.chunk_path(first).write_bytes(good)
    low, high = (one / "checkpoints" / f"{name}.manifest" for name in reversed(names))
    high.write_bytes(low.read_bytes())
    with pytest.raises(SnapshotInvalid):
        checkpoints_at(one, key=KEY).verify(names[0])


def test_a_checkpoint_of_another_key_stays_where_it_is(tmp_path: Path) -> None:
    """Nobody can say of it whether it is whole, nor which chunks it names."""
    path, other = tmp_path / "store", tmp_path / "other"
    with_checkpoints(path)
    with holdfast.open(f"sqlite:{other}", key=WRONG, settings=quick()) as store:
        fill(store, 12)
        foreign = store.checkpoints.create()
    shutil.copytree(other / "checkpoints", path / "checkpoints", dirs_exist_ok=True)
    with holdfast.open(path, key=KEY, settings=quick()) as store:
        report = store.checkpoints.prune(newest=1)
        assert (len(report.removed), report.damaged, report.files) == (1, (), 0)
    assert checkpoints_at(path, key=WRONG).verify(foreign.name).height == 11


# -- the doctor -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("identity", [True, False])
def test_the_last_rung_makes_an_encrypted_store_again(identity: bool, tmp_path: Path) -> None:
    names = with_checkpoints(tmp_path)
    old = contents(tmp_path / "checkpoints")
    killed(tmp_path)
    (tmp_path / FIRST).unlink()
    if not identity:
        (tmp_path / "holdfast.toml").unlink()
    before = truth(tmp_path)
    for key in NO_KEYS:
        with pytest.raises(refusal(key)):
            holdfast.repair(tmp_path, recover="checkpoint", store_key=key)
        assert truth(tmp_path) == before
    report = holdfast.repair(tmp_path, recover="checkpoint", store_key=KEY)
    assert report is not None
    assert (report.plan.rung, report.plan.height, report.plan.fenced) == ("checkpoint", 29, True)
    is_the_state(tmp_path)
    with holdfast.open(tmp_path, key=KEY, settings=quick()) as store:
        assert [store.checkpoints.verify(name).height for name in names] == [29, 10], "those of the store before"
        more(store, 2)
        made = store.checkpoints.create()
        assert store.checkpoints.verify(names[0]).height == 29
        assert store.checkpoints.prune(newest=1).kept == (made.name,)
    assert files_with(tmp_path, MARK) == []
    assert not set(contents(tmp_path / "checkpoints")) & set(old)


def test_an_open_may_go_down_to_it_and_the_doctor_says_what_it_costs(tmp_path: Path) -> None:
    with_checkpoints(tmp_path)
    with holdfast.open(tmp_path, key=KEY, settings=quick()) as store:
        more(store, 2)
    killed(tmp_path)
    (tmp_path / FIRST).unlink()
    found = holdfast.diagnose(tmp_path, store_key=KEY)
    (plan,) = [each for each in found.others if each.rung == "checkpoint"]
    assert plan.loss is not None
    assert (plan.height, plan.loss.blocks) == (29, 2)
    blind = holdfast.diagnose(tmp_path)
    assert blind.others == ()
    assert not blind.sound
    with pytest.raises(CorruptionError):
        holdfast.open(tmp_path, key=KEY, settings=quick())
    holdfast.open(tmp_path, key=KEY, settings=quick(), recover="checkpoint").close()
    is_the_state(tmp_path)


def test_backups_of_a_store_on_a_sealed_base_need_no_key(tmp_path: Path) -> None:
    snapshot, path = exported(tmp_path), tmp_path / "new"
    told = holdfast.import_snapshot(f"sqlite:{path}", snapshot, trust_manifest=True, key=KEY)
    place = repository(path / "backups")
    first = backup(path, place)
    assert first.tip is not None
    assert (first.tip.height, first.tip.hash, first.tip.root) == (29, told.block_hash.hex(), told.state_root.hex())
    with holdfast.open(path, key=KEY, settings=quick()) as store:
        more(store, 1)
    made = backup(path, place)
    assert {file.path for file in made.base} == set(contents(path / "base"))
    assert check(place, made.name).ok
    again = restored(place, made.name, tmp_path / "again", store_key=KEY)
    assert contents(again / "base") == contents(path / "base")
    assert verify_store(again, level="full", key=KEY).ok
    whole = contents(path / "base")
    for name in whole:
        flip(path / "base" / name, -40)
    shutil.rmtree(path / "views")
    assert not holdfast.diagnose(path).sound
    with holdfast.open(path, key=KEY, settings=quick()) as store:
        assert store.recovery.repaired is not None
        assert tip_height(store) == 30
    assert contents(path / "base") == whole


def test_nothing_of_a_killed_store_is_in_plain_text(tmp_path: Path) -> None:
    path, copy = tmp_path / "store", tmp_path / "copy"
    with holdfast.open(f"sqlite:{path}", key=KEY, settings=quick()) as store:
        fill(store)
        store.checkpoints.create(10)
        with pytest.raises(Cut):
            store.checkpoints.create(progress=cut_after(4))
        shutil.copytree(path, copy)
        assert files_with(copy, MARK) == []
    with holdfast.open(copy, key=KEY, settings=quick()) as store:
        store.checkpoints.create()
        store.checkpoints.prune(newest=1)
    assert files_with(copy, MARK) == []


def test_the_control_a_store_without_a_key_has_it_in_many_files(tmp_path: Path) -> None:
    with holdfast.open(f"sqlite:{tmp_path}", settings=quick(compression="none")) as store:
        fill(store)
        store.checkpoints.create()
    found = files_with(tmp_path, MARK)
    assert any(name.startswith("checkpoints/chunks/") for name in found)
