"""The rungs of the ladder that lose nothing: they run by themselves at open, and say so."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import holdfast
from holdfast.aio import open_async
from holdfast.backup import BackupKey
from holdfast.chains.pow.blockchain import Blockchain
from holdfast.errors import CommitLoss, CorruptionError, HoldfastError, MissingFile, StoreLocked
from holdfast.journal.segment import SEGMENT_HEADER_BYTES
from holdfast.recovery import rebuild_views, verify_store
from tests.unit.backup_support import backup, chunk_files, repository, small_segments
from tests.unit.doctor_support import SEGMENT, backed_up, cut_off, flip, holds, killed, last_segment, store_of, truth
from tests.unit.store_support import chain_of, open_quick, quick
from tests.unit.test_event_sources import hearing
from tests.unit.test_store_snapshots import exported, taken_in

__all__ = ["small_segments"]

pytestmark = pytest.mark.usefixtures("small_segments")


def plan_of(store: holdfast.Store) -> dict[str, object]:
    """What was repaired before the store was opened."""
    assert store.recovery.repaired is not None
    plan = store.recovery.repaired["plan"]
    assert isinstance(plan, dict)
    return plan


def steps_of(store: holdfast.Store) -> list[dict[str, object]]:
    """Its steps."""
    steps = plan_of(store)["steps"]
    assert isinstance(steps, tuple)
    return list(steps)


# -- identity -------------------------------------------------------------------------------------------------------


def gone(path: Path) -> None:
    path.unlink()


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def another_salt(path: Path) -> None:
    text = path.read_text()
    at = text.index("salt = ") + 10
    path.write_text(text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :])


def another_id(path: Path) -> None:
    text = path.read_text()
    at = text.index("store_id = ") + 14
    path.write_text(text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :])


@pytest.mark.parametrize("damage", [gone, torn, another_salt, another_id])
def test_the_identity_comes_back_from_the_first_frame(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    blocks = store_of(tmp_path, 20)
    before = truth(tmp_path)
    damage(tmp_path / "holdfast.toml")
    damaged = truth(tmp_path).get("holdfast.toml")
    with hearing("repaired", "corruption_found", "recovered") as heard, open_quick(tmp_path) as store:
        assert holds(store, blocks)
        plan = plan_of(store)
        assert (plan["rung"], plan["loss"], plan["fenced"]) == ("lossless", None, False)
        assert not store.safety.fenced
    assert {event.name for event in heard} == {"repaired", "corruption_found", "recovered"}
    assert truth(tmp_path)["holdfast.toml"] == before["holdfast.toml"]
    if damaged is not None:
        assert (tmp_path / "quarantine/repair-1/holdfast.toml").read_bytes() == damaged
    assert not (tmp_path / "repair").exists()
    with open_quick(tmp_path) as store:
        assert store.recovery.repaired is None


def test_the_identity_of_another_store_is_not_taken_from_its_journal(tmp_path: Path) -> None:
    """A journal that was put into the wrong directory: identity and watermark say so together."""
    store_of(tmp_path / "a", 10)
    store_of(tmp_path / "b", 10)
    shutil.rmtree(tmp_path / "a/journal")
    shutil.copytree(tmp_path / "b/journal", tmp_path / "a/journal")
    before = truth(tmp_path / "a")
    with pytest.raises(CorruptionError, match="another store") as caught:
        open_quick(tmp_path / "a")
    assert "holdfast doctor" in caught.value.remedy
    with pytest.raises(CorruptionError):
        open_quick(tmp_path / "a", recovery="checkpoint")
    assert truth(tmp_path / "a") == before


def test_the_identity_comes_from_a_backup_where_the_first_segment_is_gone_too(tmp_path: Path) -> None:
    blocks = backed_up(tmp_path)
    (tmp_path / "holdfast.toml").unlink()
    (tmp_path / "journal/0000000001.seg").unlink()
    with open_quick(tmp_path) as store:
        assert holds(store, blocks)
        assert [step["name"] for step in steps_of(store)] == ["journal/0000000001.seg", "holdfast.toml"]


# -- segments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("what", ["missing", "header", "frame", "seal", "cut", "empty"])
def test_a_sealed_segment_comes_back_from_a_backup(tmp_path: Path, number: int, what: str) -> None:
    blocks = backed_up(tmp_path, more=30)
    before = truth(tmp_path)
    path = tmp_path / f"journal/{number:010d}.seg"
    size = path.stat().st_size
    if what == "missing":
        path.unlink()
    elif what in ("cut", "empty"):
        path.write_bytes(path.read_bytes()[: size // 2 if what == "cut" else 0])
    else:
        flip(path, {"header": 20, "frame": SEGMENT_HEADER_BYTES + 80, "seal": size - 40}[what])
    (tmp_path / "views/CURRENT").unlink()  # so that every frame is read
    damaged = truth(tmp_path).get(f"journal/{number:010d}.seg")
    with open_quick(tmp_path) as store:
        assert holds(store, blocks)
        (step,) = steps_of(store)
        assert step["name"] == f"journal/{number:010d}.seg"
        assert step["action"] == {"missing": "add", "seal": "seal"}.get(what, "replace")
        assert not store.safety.fenced
    after = truth(tmp_path)
    assert {name: after[name] for name in before if name.startswith("journal") and after[name] == before[name]}
    assert after[f"journal/{number:010d}.seg"] == before[f"journal/{number:010d}.seg"]
    if damaged is not None:
        assert (tmp_path / f"quarantine/repair-1/journal/{number:010d}.seg").read_bytes() == damaged


def test_a_seal_needs_no_backup(tmp_path: Path) -> None:
    """What it says follows from the frames."""
    blocks = store_of(tmp_path)
    before = truth(tmp_path)
    for path in (tmp_path / SEGMENT, last_segment(tmp_path)):
        flip(path, path.stat().st_size - 40)
    with open_quick(tmp_path) as store:
        assert holds(store, blocks)
        assert [step["source"] for step in steps_of(store)] == ["its own frames"] * 2
    assert truth(tmp_path)[SEGMENT] == before[SEGMENT]


def test_damage_that_an_open_does_not_meet_is_found_and_mended_by_the_doctor(tmp_path: Path) -> None:
    blocks = backed_up(tmp_path)
    flip(tmp_path / SEGMENT, 700)
    with open_quick(tmp_path) as store:
        assert store.recovery.repaired is None
    found = holdfast.diagnose(tmp_path)
    assert (found.sound, found.code) == (False, "corruption")
    assert found.plan is not None
    assert (found.plan.loss, found.others) == (None, ())
    assert found.plan.write_bytes == (tmp_path / SEGMENT).stat().st_size
    done = holdfast.repair(tmp_path)
    assert done is not None
    assert done.plan == found.plan
    assert holdfast.diagnose(tmp_path).sound
    assert holdfast.repair(tmp_path) is None
    with open_quick(tmp_path) as store:
        assert holds(store, blocks)


def test_several_segments_come_from_several_backups(tmp_path: Path) -> None:
    """The newest one that is whole gives each; a damaged backup is passed over."""
    blocks = backed_up(tmp_path, more=30)
    backup(tmp_path, repository(tmp_path / "backups"))
    newest = repository(tmp_path / "backups").newest()
    old = repository(tmp_path / "backups").manifest(repository(tmp_path / "backups").names()[0])
    fresh = {ref.id for file in newest.segments for ref in file.chunks}
    fresh -= {ref.id for file in old.segments for ref in file.chunks}
    numbers = [1, 2, len(newest.segments) - 1]
    for number in numbers:
        (tmp_path / f"journal/{number:010d}.seg").unlink()
    assert any(path.name in fresh for path in chunk_files(repository(tmp_path / "backups")))
    with open_quick(tmp_path) as store:
        assert holds(store, blocks)
        assert len(steps_of(store)) == 3


# -- the tail -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["sqlite", "rocksdb", "lmdb"])
@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("what", ["missing", "frame", "cut"])
def test_the_newest_segment_comes_back_if_a_backup_holds_its_very_frames(
    tmp_path: Path, engine: str, clean: bool, what: str
) -> None:
    blocks = backed_up(tmp_path, engine=engine)
    if not clean:
        killed(tmp_path)
    path = last_segment(tmp_path)
    if what == "missing":
        path.unlink()
    elif what == "frame":
        flip(path, 700)
    else:
        path.write_bytes(path.read_bytes()[:600])
    if not clean and what != "frame":  # nobody knows whether it held more: the watermark may be behind
        assert "may be lost: only backups say" in refused(tmp_path, CorruptionError).remedy
        with open_quick(tmp_path, recovery="backup") as store:
            assert holds(store, blocks)
            assert store.safety.fenced
        return
    if clean and what == "frame":  # after a clean end nobody reads it
        assert holdfast.repair(tmp_path) is not None
    with open_quick(tmp_path) as store:
        assert holds(store, blocks)
        assert (store.recovery.repaired is None) is (clean and what == "frame")
        assert store.safety.fenced is (not clean), "after a power cut the watermark may be behind"


def test_frames_behind_a_backup_stay_where_its_frames_are_damaged(tmp_path: Path) -> None:
    """The backup was made while the segment grew: its frames, and those behind them from the file."""
    blocks = chain_of(None, 62)
    with open_quick(f"sqlite:{tmp_path}") as store:
        for block in blocks[:60]:
            store.add(block)
        backup(store, repository(tmp_path / "backups"))
        for block in blocks[60:]:
            store.add(block)
    newest = repository(tmp_path / "backups").newest().segments[-1]
    assert not newest.sealed
    path = last_segment(tmp_path)
    assert int(path.stem) == newest.number
    original = path.read_bytes()
    flip(path, 300)
    done = holdfast.repair(tmp_path)
    assert done is not None
    assert "its own frames behind it" in done.plan.steps[0].source
    with open_quick(tmp_path) as store:
        assert holds(store, blocks)
    assert path.read_bytes() == original


def test_an_older_journal_goes_on_with_the_frames_of_a_backup_if_asked_for(tmp_path: Path) -> None:
    """The views know a newer frame than journal and watermark, and a backup holds it: perhaps not the last one."""
    store_of(tmp_path, 40)
    old = truth(tmp_path)
    blocks = chain_of(None, 40)
    more = chain_of(blocks[-1], 25)
    with open_quick(tmp_path) as store:
        for block in more:
            store.add(block)
    backup(tmp_path, repository(tmp_path / "backups"))
    shutil.rmtree(tmp_path / "journal")
    for name, data in old.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    refused(tmp_path, CommitLoss)
    with open_quick(tmp_path, recovery="backup") as store:
        assert holds(store, blocks + more)
        assert store.safety.fenced


# -- the base -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["missing", "chunk", "manifest", "all"])
def test_the_base_comes_back_from_a_backup(tmp_path: Path, what: str) -> None:
    root = tmp_path / "new"
    _, values, _ = exported(tmp_path)
    taken_in(tmp_path)
    backup(root, repository(root / "backups"))
    before = truth(root)
    chunk = sorted((root / "base/chunks").iterdir())[0]
    if what == "missing":
        chunk.unlink()
    elif what == "chunk":
        flip(chunk, 60)
    elif what == "manifest":
        flip(root / "base/manifest.json", 60)
    else:
        shutil.rmtree(root / "base")
    (root / "views/CURRENT").unlink()
    with open_quick(root) as store:
        assert all(store.state[key] == value for key, value in values.items())
        assert all(str(step["name"]).startswith("base/") for step in steps_of(store))
    assert {name: data for name, data in truth(root).items() if name.startswith("base")} == {
        name: data for name, data in before.items() if name.startswith("base")
    }


# -- what is refused ------------------------------------------------------------------------------------------------


def refused(root: Path, kind: type[HoldfastError], **options: object) -> HoldfastError:
    """The error of an open that changed nothing of the truth."""
    before = truth(root)
    with pytest.raises(kind) as caught:
        holdfast.open(root, settings=quick(), **options)  # type: ignore[arg-type]
    assert truth(root) == before
    assert f"holdfast doctor --data-dir {root}" in caught.value.remedy
    return caught.value


def test_without_a_backup_the_open_is_refused_untouched(tmp_path: Path) -> None:
    store_of(tmp_path)
    (tmp_path / SEGMENT).unlink()
    refused(tmp_path, MissingFile)


def test_frames_that_no_backup_holds_are_lost_commits(tmp_path: Path) -> None:
    backed_up(tmp_path, more=30)
    last_segment(tmp_path).unlink()
    refused(tmp_path, CommitLoss)


def test_a_missing_watermark_is_not_made_up(tmp_path: Path) -> None:
    backed_up(tmp_path)
    (tmp_path / "watermark").unlink()
    error = refused(tmp_path, MissingFile)
    assert "without a watermark" in error.remedy


def test_the_repository_of_another_store_gives_nothing(tmp_path: Path) -> None:
    backed_up(tmp_path / "a")
    backed_up(tmp_path / "b")
    shutil.rmtree(tmp_path / "a/backups")
    shutil.copytree(tmp_path / "b/backups", tmp_path / "a/backups")
    (tmp_path / "a" / SEGMENT).unlink()
    refused(tmp_path / "a", MissingFile)
    found = holdfast.diagnose(tmp_path / "a")
    assert any("of other stores" in each.detail for each in found.findings)


def test_a_damaged_backup_gives_nothing(tmp_path: Path) -> None:
    backed_up(tmp_path)
    for path in chunk_files(repository(tmp_path / "backups")):
        flip(path, path.stat().st_size // 2)
    (tmp_path / SEGMENT).unlink()
    error = refused(tmp_path, MissingFile)
    assert "backup" in error.remedy


def test_an_encrypted_repository_needs_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = store_of(tmp_path)
    key = BackupKey.from_passphrase("correct horse")
    backup(tmp_path, repository(tmp_path / "backups", key=key, scrypt_n=1 << 14))
    (tmp_path / SEGMENT).unlink()
    assert "cannot be used" in refused(tmp_path, MissingFile).remedy
    monkeypatch.setenv("HOLDFAST_BACKUP_PASSPHRASE", "wrong")
    assert "cannot be used" in refused(tmp_path, MissingFile).remedy
    assert holdfast.diagnose(tmp_path).plan is None
    assert holdfast.diagnose(tmp_path, key=key).plan is not None
    monkeypatch.setenv("HOLDFAST_BACKUP_PASSPHRASE", "correct horse")
    with open_quick(tmp_path) as store:
        assert holds(store, blocks)


@pytest.mark.parametrize("relative", [True, False])
def test_an_encrypted_repository_may_have_a_key_file(relative: bool, tmp_path: Path) -> None:
    root, file = tmp_path / "store", tmp_path / "key"
    blocks = store_of(root)
    file.write_text("5a" * 32)
    backup(root, repository(root / "backups", key=BackupKey.from_file(file)))
    (root / SEGMENT).unlink()
    assert "cannot be used" in refused(root, MissingFile).remedy
    with pytest.raises(MissingFile) as caught:
        open_quick(root, backup_key_file=str(tmp_path / "none"))
    assert "cannot be used" in caught.value.remedy
    with open_quick(root, backup_key_file="../key" if relative else str(file)) as store:
        assert holds(store, blocks)


def test_the_setting_names_the_repository(tmp_path: Path) -> None:
    root = tmp_path / "store"
    blocks = store_of(root)
    backup(root, repository(tmp_path / "elsewhere"))
    (root / SEGMENT).unlink()
    refused(root, MissingFile)
    with open_quick(root, backup_target=str(tmp_path / "elsewhere")) as store:
        assert holds(store, blocks)


def test_a_store_that_is_open_is_left_alone(tmp_path: Path) -> None:
    backed_up(tmp_path)
    with open_quick(tmp_path):
        with pytest.raises(StoreLocked):
            holdfast.diagnose(tmp_path)
        with pytest.raises(StoreLocked):
            holdfast.repair(tmp_path)


def test_a_reader_repairs_nothing(tmp_path: Path) -> None:
    backed_up(tmp_path)
    (tmp_path / "holdfast.toml").unlink()
    before = truth(tmp_path)
    with pytest.raises(MissingFile):
        holdfast.open(tmp_path, read_only=True)
    assert truth(tmp_path) == before


def test_a_segment_of_another_copy_of_the_store_is_replaced(tmp_path: Path) -> None:
    """It is whole, of this store and of this number, and follows from the one before; only the next one contradicts."""
    a, b = tmp_path / "a", tmp_path / "b"
    blocks = store_of(a, 40)
    shutil.copytree(a, b)
    common = len(list((a / "journal").glob("*.seg")))
    more = chain_of(blocks[-1], 40)
    for root, fresh in ((a, more), (b, chain_of(blocks[-1], 40, "another"))):
        with open_quick(root) as store:
            for block in fresh:
                store.add(block)
    backup(a, repository(a / "backups"))
    place = f"journal/{common + 1:010d}.seg"
    right = (a / place).read_bytes()
    shutil.copy(b / place, a / place)
    with open_quick(a) as store:
        assert holds(store, blocks + more)
    assert (a / place).read_bytes() == right


@pytest.mark.parametrize("what", ["two segments", "behind an open end"])
def test_the_backup_of_another_copy_of_the_store_is_not_mixed_in(tmp_path: Path, what: str) -> None:
    """Both copies back up to one place, and the other one did so last."""
    a, b = tmp_path / "a", tmp_path / "b"
    blocks = store_of(a, 40)
    shutil.copytree(a, b)
    common = len(list((a / "journal").glob("*.seg")))
    blocks += chain_of(blocks[-1], 40)
    place = repository(tmp_path / "backups")
    for root, fresh in ((a, blocks[40:]), (b, chain_of(blocks[39], 80, "another"))):
        with open_quick(root) as store:
            for block in fresh:
                store.add(block)
        backup(root, place)
    if what == "two segments":
        for number in (common + 1, common + 2):
            (a / f"journal/{number:010d}.seg").unlink()
    else:
        killed(a)
        (a / SEGMENT).unlink()
    with open_quick(a, backup_target=str(tmp_path / "backups")) as store:
        assert holds(store, blocks)
        assert not store.safety.fenced


def test_asyncio_has_the_same_front_door(tmp_path: Path) -> None:
    store_of(tmp_path)
    (tmp_path / SEGMENT).unlink()

    async def tip() -> int:
        async with await open_async(tmp_path, settings=quick(), recover="backup") as store:
            assert store.sync_store.recovery.repaired is not None
            return store.sync_store.tip.height  # type: ignore[union-attr]

    with pytest.raises(MissingFile):
        open_quick(tmp_path)
    assert asyncio.run(tip()) == 7


def test_the_ready_chains_open_by_the_front_door(tmp_path: Path) -> None:
    with Blockchain.load_or_create(tmp_path / "other") as chain:
        chain.store.safety.save(b"me", (1,), b"vote")
        tip = chain.store.tip
    (tmp_path / "other/holdfast.toml").unlink()
    with Blockchain.load_or_create(tmp_path / "other") as chain:
        assert chain.store.recovery.repaired is not None
        assert chain.store.tip == tip


def test_the_end_of_a_killed_store_is_sound_whatever_is_damaged_before_it(tmp_path: Path) -> None:
    backed_up(tmp_path)
    killed(tmp_path)
    flip(tmp_path / SEGMENT, 700)
    end = f"segment {int(last_segment(tmp_path).stem)}"
    found = {each.name: (each.state, each.detail) for each in holdfast.diagnose(tmp_path).findings}
    assert found["segment 2"][0] == "damaged"
    assert (found[end][0], "not sealed yet" in found[end][1]) == ("sound", True)
    last = last_segment(tmp_path)
    data = last.read_bytes()
    last.write_bytes(data[:200] + bytes(len(data) - 200))  # the last frames, which were acknowledged, are gone
    found = {each.name: (each.state, each.detail) for each in holdfast.diagnose(tmp_path).findings}
    assert found[end][0] == "damaged"


@pytest.mark.parametrize("at", ["staged", "begun", "aside", "placed", "published"])
def test_a_repair_that_was_cut_off_is_told_by_whoever_ends_it(tmp_path: Path, at: str) -> None:
    blocks = backed_up(tmp_path)
    flip(tmp_path / SEGMENT, 700)

    with cut_off(at):
        holdfast.repair(tmp_path)
    with hearing("repaired") as heard, open_quick(tmp_path) as store:
        assert at == "staged" or holds(store, blocks)
        assert (store.recovery.repaired is not None) is (at != "staged"), "what had not begun is forgotten"
    assert len(heard) == (at != "staged")
    assert not (tmp_path / "repair").exists()


@pytest.mark.parametrize("at", ["begun", "aside", "placed", "published"])
@pytest.mark.parametrize("back", [False, True])
def test_nobody_takes_half_a_repair_for_a_store(tmp_path: Path, at: str, back: bool) -> None:
    """``back``: the operator put holdfast.toml back from quarantine, as one does."""
    blocks = store_of(tmp_path)
    (tmp_path / "journal/0000000003.seg").unlink()

    with cut_off(at):
        holdfast.repair(tmp_path, recover="backup")
    if back:
        shutil.copy(tmp_path / "quarantine/repair-1/holdfast.toml", tmp_path / "holdfast.toml")
    before = truth(tmp_path)
    for look in (
        lambda: holdfast.open(tmp_path, read_only=True),
        lambda: rebuild_views(tmp_path),
    ):
        with pytest.raises(CorruptionError, match="is not finished") as caught:
            look()
        assert "holdfast doctor --apply" in caught.value.remedy
    (problem,) = verify_store(tmp_path).problems
    assert "holdfast doctor --apply" in str(problem.remedy)
    found = holdfast.diagnose(tmp_path)
    assert (found.sound, found.plan, [plan.rung for plan in found.others]) == (False, None, ["backup"])
    assert "is not finished" in str(found.problem)
    assert "holdfast doctor --apply" in found.reasons[0]
    assert truth(tmp_path) == before
    with hearing("blocks_given_up") as heard, open_quick(tmp_path) as store:
        tip = store.tip
        assert tip is not None
        assert holds(store, blocks[: tip.height + 1])
        assert store.safety.fenced
    assert [event.fields["height"] for event in heard] == [tip.height]
    assert holdfast.diagnose(tmp_path).sound


def test_a_damaged_plan_of_a_repair_is_for_a_person(tmp_path: Path) -> None:
    backed_up(tmp_path)
    flip(tmp_path / SEGMENT, 700)

    with cut_off("begun"):
        holdfast.repair(tmp_path)
    plan = tmp_path / "repair/plan.json"
    good = plan.read_bytes()
    for bad in (good[:-5], good.replace(b"repair-1", b"../../../"), b"[" * 100_000, b"{}"):
        plan.write_bytes(bad)
        before = truth(tmp_path)
        with pytest.raises(CorruptionError, match="plan of a repair") as caught:
            open_quick(tmp_path)
        assert "quarantine" in caught.value.remedy
        assert truth(tmp_path) == before
    plan.write_bytes(good)
    with open_quick(tmp_path) as store:
        assert store.recovery.repaired is not None
