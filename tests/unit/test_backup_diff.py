"""``diff`` against a backup: its blocks are those of the store, its state that of a store made for the time."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import holdfast
from holdfast import Store
from holdfast._fs import RealFileSystem
from holdfast.backup import BackupKey, BackupRepository, BackupSource, copy_backup
from holdfast.errors import BackupDamaged, BackupNotFound, KeyRejected, KeyRequired, OutOfSpace, PrunedError
from holdfast.recovery.diff import StoreSource
from holdfast.store.chain import ChainSpec
from holdfast.store.retention import RetentionPolicy
from tests.unit.backup_support import backup, chunk_files, forked, repository, small_segments
from tests.unit.state_support import commit, open_state_store
from tests.unit.store_support import chain_of, make, open_quick, quick

__all__ = ["small_segments"]


def source(place: BackupRepository, name: str | None = None, **options: object) -> BackupSource:
    return BackupSource(place, name, **({"workers": 0} | options))  # type: ignore[arg-type]


def assert_same_blocks(store: Store, found: BackupSource) -> None:
    """Tip, and at every height block and bytes, are those of the store."""
    with StoreSource(store).moment() as one, found.moment() as two:
        assert (two.tip, two.lowest) == (one.tip, one.lowest)
        top = -1 if one.tip is None else one.tip.height
        for height in range(max(0, one.lowest - 1), top + 2):
            assert two.info_at(height) == one.info_at(height)
            assert two.block_at(height) == one.block_at(height)


def states(path: Path, blocks: int, mark: str, *, seed: int = 3) -> None:
    """``blocks`` more blocks that change some of forty keys; every fourth changes none, every fifth has a rival."""
    chance = random.Random(seed)
    with open_state_store(path) as store:
        for number in range(blocks):
            below = store.tip
            changes = {b"key %d" % chance.randrange(40): b"%d" % chance.randrange(9) for _ in range(3)}
            commit(store, (mark, number), None if number % 4 == 3 else changes)
            if number % 5 == 4:
                commit(store, (mark, number, "rival"), {b"rival": b"%d" % number}, below, work=2)


# -- blocks ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_segments")
def test_every_block_is_that_of_the_store_after_reorganisations(tmp_path: Path) -> None:
    forked(tmp_path / "s")
    place = repository(tmp_path / "r")
    with open_quick(tmp_path / "s") as store:
        assert len(backup(store, place).segments) > 1
        for workers in (0, 2):
            assert_same_blocks(store, source(place, workers=workers))


@pytest.mark.usefixtures("small_segments")
def test_roots_and_executions_are_those_of_the_store(tmp_path: Path) -> None:
    states(tmp_path / "s", 30, "s")
    place = repository(tmp_path / "r")
    backup(tmp_path / "s", place)
    with open_state_store(tmp_path / "s") as store:
        assert store.blocks.statistics()["reorgs"]
        assert_same_blocks(store, source(place))


def test_runs_that_share_a_frame_and_a_chain_that_begins_above_zero(tmp_path: Path) -> None:
    first = make(None, height=100)
    blocks = chain_of(first, 300)
    place = repository(tmp_path / "r")
    with open_quick(tmp_path / "s") as store:
        store.add(first, root_allowed=True)
        store.add_many(blocks, validate=False)
        assert backup(store, place).last_seq < 10
        assert_same_blocks(store, source(place))


def test_a_store_on_a_snapshot(tmp_path: Path) -> None:
    states(tmp_path / "s", 20, "s")
    with open_state_store(tmp_path / "s") as store:
        store.export_snapshot(tmp_path / "snapshot")
    holdfast.import_snapshot(tmp_path / "t", tmp_path / "snapshot", trust_manifest=True)
    states(tmp_path / "t", 10, "t", seed=5)
    place = repository(tmp_path / "r")
    assert backup(tmp_path / "t", place).base
    with open_state_store(tmp_path / "t") as store:
        assert_same_blocks(store, source(place))
        report = holdfast.diff(store, source(place), state=True)
        assert report.same
        assert report.state is not None


def test_an_empty_store(tmp_path: Path) -> None:
    place = repository(tmp_path / "r")
    with open_quick(tmp_path / "s") as store:
        backup(store, place)
        assert_same_blocks(store, source(place))
        assert holdfast.diff(store, source(place)).relation == "equal"


@pytest.mark.usefixtures("small_segments")
def test_what_retention_gave_up_is_not_compared_and_a_note_says_so(tmp_path: Path) -> None:
    blocks = chain_of(None, 60)
    other = [*blocks[:10], *chain_of(blocks[9], 50, "other")]
    settings = {"max_reorg_depth": 6, "proof_window_blocks": 0, "compression": "none"}
    for name, chain in (("s", blocks), ("t", other)):
        with open_quick(tmp_path / name, **settings) as store:
            for block in chain:
                store.add(block)
    places = [repository(tmp_path / name) for name in ("whole", "pruned")]
    backup(tmp_path / "s", places[0])
    with open_quick(tmp_path / "s", **settings) as store:
        report = store.retention.prune(RetentionPolicy("below", 30), without_archive=True)
        assert report.floor_after == 30
        backup(store, places[1])
        assert_same_blocks(store, source(places[1]))
        with source(places[1]).moment() as now:
            assert [at for at in range(60) if not now.block_at(at).kept] == list(range(30))  # type: ignore[union-attr]
        for side in (store, source(places[1])):
            parted = holdfast.diff(side, tmp_path / "t")
            assert parted.first is not None
            assert parted.first.parts == ("hash", "header")
            assert [note for note in parted.notes if "were not compared" in note]
        assert holdfast.diff(store, source(places[0])).same
    parted = holdfast.diff(source(places[0]), tmp_path / "t")
    assert not [note for note in parted.notes if "were not compared" in note]


# -- reports --------------------------------------------------------------------------------------------------------


def test_a_store_that_went_on_after_its_backup_and_one_that_parted(tmp_path: Path) -> None:
    states(tmp_path / "s", 12, "both")
    place = repository(tmp_path / "r")
    first = backup(tmp_path / "s", place).name
    states(tmp_path / "s", 3, "more", seed=4)
    assert holdfast.diff(tmp_path / "s", source(place, first)).relation == "b_behind"
    second = backup(tmp_path / "s", place).name
    assert holdfast.diff(tmp_path / "s", source(place)).relation == "equal"
    between = holdfast.diff(source(place, first), source(place, second))
    assert (between.relation, between.a) == ("a_behind", f"{place.place}#{first}")
    states(tmp_path / "other", 12, "both")
    states(tmp_path / "other", 5, "own", seed=5)
    report = holdfast.diff(tmp_path / "other", source(place))
    assert report.relation == "diverged"
    assert report.first is not None
    assert report.as_dict() | {"b": ""} == holdfast.diff(tmp_path / "other", tmp_path / "s").as_dict() | {"b": ""}


def test_a_backup_of_another_chain_differs_in_its_facts(tmp_path: Path) -> None:
    place = repository(tmp_path / "r")
    chain = holdfast.CustomChain(ChainSpec(name="custom", id="other"))
    holdfast.open(tmp_path / "s", chain=chain).close()
    backup(tmp_path / "s", place)
    with open_quick(tmp_path / "t") as store:
        store.add(make(None))
        report = holdfast.diff(store, source(place))
    assert report.facts["id"][1] == "other"
    assert (report.relation, report.same) == ("nothing_shared", False)


# -- states ---------------------------------------------------------------------------------------------------------


def test_the_keys_that_differ_are_those_of_two_stores_and_nothing_is_left(tmp_path: Path) -> None:
    states(tmp_path / "s", 12, "both")
    states(tmp_path / "t", 12, "both")
    states(tmp_path / "s", 4, "s", seed=4)
    states(tmp_path / "t", 6, "t", seed=5)
    place, scratch = repository(tmp_path / "r"), tmp_path / "scratch"
    scratch.mkdir()
    backup(tmp_path / "t", place)
    made: list[Path] = []
    for height in (None, 15, 14, 10):
        found = source(place, directory=scratch, on_restore=made.append)
        report = holdfast.diff(tmp_path / "s", found, state=True, at_height=height)
        wanted = holdfast.diff(tmp_path / "s", tmp_path / "t", state=True, at_height=height)
        assert report.state is not None
        assert wanted.state is not None
        assert report.state == wanted.state
        assert bool(report.state.keys) == (height != 10)
    assert [path.parent for path in made] == [scratch] * 4
    assert list(scratch.iterdir()) == []


def test_nothing_is_restored_where_no_state_is_asked_for(tmp_path: Path) -> None:
    states(tmp_path / "s", 5, "s")
    place = repository(tmp_path / "r")
    backup(tmp_path / "s", place)
    with open_state_store(tmp_path / "s") as store:
        report = holdfast.diff(store, source(place, directory=tmp_path / "missing", on_restore=pytest.fail))
    assert report.same


def test_a_height_that_became_final_with_those_above_it_has_no_state(tmp_path: Path) -> None:
    place = repository(tmp_path / "r")
    for name in ("s", "t"):
        with open_state_store(tmp_path / name, max_reorg_depth=0) as store:
            commit(store, "first", {b"key": b"1"})
            assert store.tip is not None
            store.add_many(chain_of(store.tip, 9, name), validate=False)
    backup(tmp_path / "t", place)
    with pytest.raises(PrunedError) as caught:
        holdfast.diff(tmp_path / "t", source(place), at_height=4)
    assert caught.value.context["least_readable"] == 9


def test_a_full_disk_ends_it_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states(tmp_path / "s", 5, "s")
    place = repository(tmp_path / "r")
    backup(tmp_path / "s", place)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    space = RealFileSystem.space
    monkeypatch.setattr(RealFileSystem, "space", lambda fs, path: space(fs, path)._replace(free=1))
    with open_state_store(tmp_path / "s") as store, pytest.raises(OutOfSpace):
        holdfast.diff(store, source(place, directory=scratch), state=True)
    assert list(scratch.iterdir()) == []


# -- bad input ------------------------------------------------------------------------------------------------------


def test_an_encrypted_backup_and_its_plain_copy_are_the_same(tmp_path: Path) -> None:
    states(tmp_path / "s", 6, "s")
    place = repository(tmp_path / "r")
    name = backup(tmp_path / "s", place).name
    hidden = repository(tmp_path / "hidden", key=BackupKey.from_passphrase("a phrase"), scrypt_n=1 << 14)
    copy_backup(place, name, hidden, workers=0)
    assert holdfast.diff(source(place), source(hidden, name), state=True).same


def test_a_backup_of_an_encrypted_store_needs_its_key(tmp_path: Path) -> None:
    key, wrong = bytes(range(32)), bytes(32)
    for name, chosen in (("s", key), ("t", None)):
        with holdfast.open(tmp_path / name, settings=quick(), key=chosen) as store:
            for number in range(6):
                commit(store, number, {b"key %d" % number: name.encode()})
    place = repository(tmp_path / "r")
    backup(tmp_path / "s", place)
    with holdfast.open(tmp_path / "s", key=key) as store:
        assert_same_blocks(store, source(place, store_key=key))
    with pytest.raises(KeyRequired):
        holdfast.diff(tmp_path / "t", source(place))
    with pytest.raises(KeyRejected):
        holdfast.diff(tmp_path / "t", source(place), key=wrong)
    report = holdfast.diff(tmp_path / "t", source(place), state=True, key=key)
    assert report.state is not None
    assert len(report.state.keys) == 1
    plain = repository(tmp_path / "plain")
    backup(tmp_path / "t", plain)
    turned = holdfast.diff(source(place, store_key=key), source(plain), at_height=5)
    assert turned.state is not None
    assert len(turned.state.keys) == 6


@pytest.mark.parametrize("damage", ["missing", "changed", "swapped"])
def test_a_damaged_backup_is_damage_and_no_difference(damage: str, tmp_path: Path) -> None:
    states(tmp_path / "s", 10, "s")
    place = repository(tmp_path / "r")
    backup(tmp_path / "s", place)
    chunk = max(chunk_files(place), key=lambda path: path.stat().st_size)
    if damage == "missing":
        chunk.rename(chunk.with_suffix(".away"))
    elif damage == "changed":
        data = bytearray(chunk.read_bytes())
        data[len(data) // 2] ^= 1
        chunk.write_bytes(data)
    else:
        states(tmp_path / "t", 10, "t", seed=9)
        other = repository(tmp_path / "q")
        backup(tmp_path / "t", other)
        chunk.write_bytes(max(chunk_files(other), key=lambda path: path.stat().st_size).read_bytes())
    with pytest.raises(BackupDamaged):
        holdfast.diff(tmp_path / "s", source(place))


def test_a_manifest_that_names_another_tip_is_not_believed(tmp_path: Path) -> None:
    import msgspec

    states(tmp_path / "s", 10, "s")
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    assert form.tip is not None
    for changed in (
        {"tip": None},
        {"tip": msgspec.structs.replace(form.tip, height=form.tip.height - 1)},
        {"tip": msgspec.structs.replace(form.tip, hash="00" * 32)},
    ):
        place.put_manifest(msgspec.structs.replace(form, **changed))
        with pytest.raises(BackupDamaged, match="another tip"):
            holdfast.diff(tmp_path / "s", source(place))


def test_no_backup(tmp_path: Path) -> None:
    place = repository(tmp_path / "r")
    with pytest.raises(BackupNotFound):
        source(place)
    with pytest.raises(BackupNotFound):
        source(place, "20260101T000000000000Z-00000000")
