"""Backups are restored: whole, to a height, to a time, only some segments; or refused, and nothing is touched."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import IO

import pytest

import holdfast
from holdfast import _fs
from holdfast._fs import MemoryFileSystem, RealFile, RealFileSystem, is_mount_point
from holdfast.backup import BackupRepository, SegmentSource, fetch_segments, restore_backup
from holdfast.backup import restore as restoring
from holdfast.errors import (
    BackupDamaged,
    BackupNotFound,
    BlockNotFound,
    CorruptionError,
    DeviceError,
    FencedError,
    FinalityError,
    ForeignStore,
    HoldfastError,
    InvalidInputError,
    NotFoundError,
    OutOfSpace,
    PrunedError,
    StoreExists,
    StoreLocked,
)
from holdfast.journal import scan
from holdfast.journal.segment import segment_name
from holdfast.recovery import verify_store
from tests.unit.backup_support import (
    backup,
    check,
    chunk_files,
    forked,
    grown,
    noise,
    repository,
    restored,
    small_segments,
)
from tests.unit.store_support import Model, assert_store, chain_of, make, open_quick

__all__ = ["small_segments"]


def tree(path: Path) -> dict[Path, bytes]:
    """Every file below ``path``."""
    return {each.relative_to(path): each.read_bytes() for each in path.rglob("*") if each.is_file()}


def test_a_restored_store_is_the_store_and_goes_on(tmp_path: Path) -> None:
    model = Model()
    blocks = chain_of(None, 30)
    with open_quick(tmp_path / "s") as store:
        for block in (*blocks, make(blocks[10], "side"), *chain_of(blocks[25], 8, "new")):
            store.add(block)
            model.add(block)
        store.documents("notes").put(b"a", b"document")
        store.finalize(20)
        model.finalize(20)
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    report = restore_backup(place, form.name, tmp_path / "t", workers=0)
    assert report.as_dict()["fenced"] is True
    assert verify_store(tmp_path / "t", level="views").ok
    with open_quick(tmp_path / "t") as store:
        assert_store(store, model)
        assert store.documents("notes").get(b"a") == b"document"
        assert store.tip is not None
        block = make(store.tip, "next")
        store.add(block)
        model.add(block)
    with open_quick(tmp_path / "t") as store:
        assert_store(store, model)


def test_an_empty_directory_is_taken_and_an_engine_can_be_named(tmp_path: Path) -> None:
    grown(tmp_path / "s", 3)
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    (tmp_path / "t").mkdir()
    restore_backup(place, form.name, f"sqlite:{tmp_path / 't'}", workers=0)
    with open_quick(tmp_path / "t") as store:
        assert (store.engine, store.tip is not None) == ("sqlite", True)


def test_an_empty_store(tmp_path: Path) -> None:
    open_quick(tmp_path / "s").close()
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    assert form.tip is None
    with open_quick(restored(place, form.name, tmp_path / "t")) as store:
        assert store.tip is None
    with pytest.raises(BlockNotFound):
        restored(place, form.name, tmp_path / "u", to_height=0)


# -- to a height, to a time -----------------------------------------------------------------------------------------


def as_it_was(path: Path, height: int) -> list[bytes]:
    with open_quick(path) as store:
        assert store.tip is not None
        assert store.tip.height == height
        return [info.hash for info in store.blocks.canonical()]


@pytest.mark.usefixtures("small_segments")
def test_to_every_height_of_a_chain_that_was_reorganised(tmp_path: Path) -> None:
    blocks = forked(tmp_path / "s")
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    for height in (0, 3, 5, 6, 8, 9, 11):
        target = restored(place, form.name, tmp_path / f"t{height}", to_height=height)
        assert as_it_was(target, height) == [block.hash for block in blocks[: height + 1]]
        assert verify_store(target, level="links").ok
    with pytest.raises(BlockNotFound):
        restored(place, form.name, tmp_path / "above", to_height=12)
    assert not (tmp_path / "above").exists()


def test_to_a_height_inside_a_frame_of_many_blocks(tmp_path: Path) -> None:
    blocks = chain_of(None, 300)
    with open_quick(tmp_path / "s") as store:
        store.add_many(blocks[:1], validate=False)
        store.add_many(blocks[1:], validate=False)
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    assert form.last_seq < 10
    assert as_it_was(restored(place, form.name, tmp_path / "t", to_height=77), 77) == [
        block.hash for block in blocks[:78]
    ]


def test_a_height_inside_a_frame_that_made_it_final_is_refused_and_the_next_is_named(tmp_path: Path) -> None:
    blocks = chain_of(None, 20)
    with open_quick(tmp_path / "s", max_reorg_depth=0) as store:
        store.add(blocks[0])
        store.add_many(blocks[1:11], validate=False)
        store.add_many(blocks[11:], validate=False)
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    with pytest.raises(FinalityError) as caught:
        restored(place, form.name, tmp_path / "t", to_height=7)
    assert caught.value.context["next_height"] == 10
    assert not (tmp_path / "t").exists()
    assert len(as_it_was(restored(place, form.name, tmp_path / "t", to_height=10), 10)) == 11


def test_the_cut_is_after_the_frame_that_last_made_the_block_canonical(tmp_path: Path) -> None:
    trunk = chain_of(None, 4)
    old, new = chain_of(trunk[-1], 1, "old"), chain_of(trunk[-1], 2, "new")
    back = chain_of(old[-1], 2, "back")
    with open_quick(tmp_path / "s") as store:
        for block in (*trunk, *old, *new, *back):
            store.add(block)
        canonical = [info.hash for info in store.blocks.canonical()]
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    assert canonical[4] == old[0].hash
    target = restored(place, form.name, tmp_path / "t", to_height=4)
    assert as_it_was(target, 4) == canonical[:5]
    with open_quick(target) as store:
        assert store.has(new[-1].hash), "the frame that made the old branch canonical again comes after the new one"


def test_below_the_first_block(tmp_path: Path) -> None:
    first = make(None, height=100)
    with open_quick(tmp_path / "s") as store:
        store.add(first, root_allowed=True)
        store.add(make(first))
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    with pytest.raises(PrunedError):
        restored(place, form.name, tmp_path / "t", to_height=99)
    assert as_it_was(restored(place, form.name, tmp_path / "t", to_height=100), 100) == [first.hash]


@pytest.mark.usefixtures("small_segments")
def test_to_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000_000_000]
    monkeypatch.setattr("time.time_ns", lambda: now[0] * 1_000_000_000)
    blocks = chain_of(None, 30)
    with open_quick(tmp_path / "s") as store:
        for block in blocks:
            now[0] += 10
            store.add(block)
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    assert form.last_time_us == 1_000_000_300_000_000
    for seconds, height in ((1_000_000_010, 0), (1_000_000_019, 0), (1_000_000_155, 14), (2_000_000_000, 29)):
        target = restored(place, form.name, tmp_path / str(seconds), to_time_us=seconds * 1_000_000)
        assert as_it_was(target, height) == [block.hash for block in blocks[: height + 1]]
    with pytest.raises(NotFoundError):
        restored(place, form.name, tmp_path / "early", to_time_us=5)
    with pytest.raises(InvalidInputError):
        restored(place, form.name, tmp_path / "both", to_time_us=5, to_height=5)


# -- refused --------------------------------------------------------------------------------------------------------


def test_a_target_that_holds_something_is_not_touched(tmp_path: Path) -> None:
    grown(tmp_path / "s", 3)
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "beside.partial").mkdir()
    (tmp_path / "beside.partial" / "file").write_text("mine")
    (tmp_path / "a file").write_text("mine")
    before = tree(tmp_path)
    for target, kind in (
        ("s", StoreExists),
        ("full", ForeignStore),
        ("beside", ForeignStore),
        ("a file", HoldfastError),
    ):
        with pytest.raises(kind):
            restored(place, form.name, tmp_path / target)
    with pytest.raises(ForeignStore, match="another chain"):
        restored(place, form.name, tmp_path / "t", chain_id="other")
    with pytest.raises(InvalidInputError):
        restore_backup(place, form.name, "memory:")
    with pytest.raises(BackupNotFound):
        restored(place, "20000101T000000000000Z-00000000", tmp_path / "t")
    assert tree(tmp_path) == before
    restored(place, form.name, tmp_path / "t", chain_id="")


def test_nothing_is_made_for_a_target_where_something_is_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown(tmp_path / "s", 3)
    place = repository(tmp_path / "r")
    name = backup(tmp_path / "s", place).name
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "t")
    with pytest.raises(InvalidInputError, match="something is mounted") as caught:
        restored(place, name, tmp_path / "t")
    assert str(tmp_path / "t" / "store") in caught.value.remedy
    assert not (tmp_path / "t.partial").exists()
    restored(place, name, tmp_path / "t" / "store")


def test_where_something_is_mounted_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = RealFileSystem()
    (tmp_path / "a b").mkdir()
    assert is_mount_point(fs, Path("/"))
    assert not is_mount_point(fs, tmp_path / "a b")
    assert not is_mount_point(fs, tmp_path / "none")
    monkeypatch.setattr(os.path, "ismount", lambda path: False)  # as of a directory that was mounted on another
    line = f"36 25 0:32 / {tmp_path}/a\\040b rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
    (tmp_path / "mountinfo").write_text(line)

    def read(path: str, mode: str) -> IO[bytes]:
        return (tmp_path / "mountinfo").open("rb")

    monkeypatch.setattr(_fs, "open", read, raising=False)
    assert is_mount_point(fs, tmp_path / "a b")
    assert not is_mount_point(fs, tmp_path)
    assert not is_mount_point(MemoryFileSystem(), Path("/"))


def test_a_disk_without_room_is_found_before_anything_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from holdfast._fs import RealFileSystem, Space

    grown(tmp_path / "s", 3)
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    monkeypatch.setattr(RealFileSystem, "space", lambda self, path: Space(100, 1000))
    with pytest.raises(OutOfSpace):
        restored(place, form.name, tmp_path / "t")
    assert not (tmp_path / "t").exists()
    monkeypatch.undo()
    restored(place, form.name, tmp_path / "t")


def test_two_restores_to_one_place_exclude_each_other(tmp_path: Path) -> None:
    grown(tmp_path / "s", 3)
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)

    def step(done: int, total: int) -> None:
        with pytest.raises(StoreLocked):
            restored(place, form.name, tmp_path / "t")

    restore_backup(place, form.name, tmp_path / "t", workers=0, progress=step)


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("how", ["gone", "flipped", "short", "swapped", "empty"])
def test_a_damaged_chunk_is_found_by_both_and_nothing_is_published(how: str, tmp_path: Path) -> None:
    grown(tmp_path / "s", 40)
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    files = chunk_files(place)
    for number, path in enumerate(files):
        kept = path.read_bytes()
        if how == "gone":
            path.unlink()
        elif how == "flipped":
            path.write_bytes(kept[:70] + bytes([kept[70] ^ 16]) + kept[71:])
        elif how == "short":
            path.write_bytes(kept[:-7])
        elif how == "swapped":
            path.write_bytes(files[number - 1].read_bytes())
        else:
            path.write_bytes(b"")
        found = check(place, form.name)
        assert [problem["code"] for problem in found.problems] == ["backup_damaged"]
        if how in ("gone", "short", "empty"):
            assert not check(place, form.name, level="quick").ok
        with pytest.raises(BackupDamaged):
            restored(place, form.name, tmp_path / f"t{number}")
        assert not (tmp_path / f"t{number}").exists()
        path.write_bytes(kept)
    restored(place, form.name, tmp_path / "t")
    assert verify_store(tmp_path / "t").ok


def test_a_backup_whose_frames_do_not_fit_is_not_believed(tmp_path: Path) -> None:
    """The storage made everything fit but the digests of the frames, which it can make for no block body."""
    import msgspec

    blocks = grown(tmp_path / "s", 12)
    assert blocks
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    entry = form.segments[0]
    data = bytearray(place.get_chunk(entry.chunks[0], entry.length))
    data[data.index(b"body of a block", 3000)] ^= 1
    chunk = place.put_chunk(bytes(data)).ref
    import hashlib

    forged = msgspec.structs.replace(entry, chunks=(chunk,), sha256=hashlib.sha256(data).hexdigest())
    totals = msgspec.structs.replace(form.totals, stored_bytes=chunk.stored_bytes)
    name = form.name[:-1] + ("0" if form.name[-1] != "0" else "1")
    place.put_manifest(msgspec.structs.replace(form, name=name, segments=(forged,), totals=totals))
    assert not check(place, name).ok
    with pytest.raises(CorruptionError):
        restored(place, name, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_parts_are_checked_of_a_backup_that_was_never_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verified one is known byte by byte: each chunk is checked, and that its parts fit was found before."""
    grown(tmp_path / "s", 40)
    place = repository(tmp_path / "r")
    name = backup(tmp_path / "s", place).name
    checked: list[int] = []
    monkeypatch.setattr(scan, "check_parts", lambda _window, frame: checked.append(frame.seq))
    restored(place, name, tmp_path / "one")
    assert set(range(1, 42)) <= set(checked)
    assert check(place, name).ok
    checked.clear()
    restored(place, name, tmp_path / "two")
    assert checked == []
    chunk = chunk_files(place)[-1]
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"!")
    with pytest.raises(BackupDamaged):
        restored(place, name, tmp_path / "three")


@pytest.mark.parametrize("field", ["height", "hash", "root"])
def test_a_tip_that_is_not_that_of_the_journal_is_refused(field: str, tmp_path: Path) -> None:
    import msgspec

    with open_quick(tmp_path / "s") as store:
        draft = store.draft()
        draft.state[b"key"] = b"value"
        store.commit(draft, hash=noise("tip", 32), header=b"h")
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    assert form.tip is not None
    assert form.tip.root is not None
    value: object = 7 if field == "height" else "ab" * 32
    tip = msgspec.structs.replace(form.tip, **{field: value})
    name = "20000101T000000000000Z-00000000"
    place.put_manifest(msgspec.structs.replace(form, name=name, tip=tip))
    assert check(place, form.name).ok
    assert check(place, name).ok == (field == "root"), "only views tell the root"
    with pytest.raises(BackupDamaged):
        restored(place, name, tmp_path / "t")
    assert not (tmp_path / "t").exists()


# -- gone on with ---------------------------------------------------------------------------------------------------


class _Stop(Exception):
    pass


@pytest.mark.usefixtures("small_segments")
def test_a_restore_that_was_stopped_goes_on(tmp_path: Path) -> None:
    grown(tmp_path / "s", 60)
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    steps: list[int] = []

    def step(done: int, total: int) -> None:
        steps.append(done)
        if len(steps) == 4:
            raise _Stop

    with pytest.raises(_Stop):
        restored(place, form.name, tmp_path / "t", progress=step)
    assert not (tmp_path / "t").exists()
    report = restore_backup(place, form.name, tmp_path / "t", workers=0)
    assert report.kept_bytes == sum(entry.length for entry in form.segments[:3])
    assert verify_store(tmp_path / "t").ok


@pytest.mark.usefixtures("small_segments")
def test_what_another_restore_left_is_not_used(tmp_path: Path) -> None:
    place = repository(tmp_path / "r")
    blocks = grown(tmp_path / "s", 20)
    first = backup(tmp_path / "s", place)
    grown(tmp_path / "s", 20, after=blocks[-1])
    second = backup(tmp_path / "s", place)

    def step(done: int, total: int) -> None:
        if done == total:
            raise _Stop

    with pytest.raises(_Stop):
        restored(place, second.name, tmp_path / "t", progress=step, to_height=25)
    report = restore_backup(place, first.name, tmp_path / "t", workers=0)
    assert report.kept_bytes == 0
    assert len(as_it_was(tmp_path / "t", 19)) == 20


@pytest.mark.usefixtures("small_segments")
def test_a_restore_whose_store_was_opened_already_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = repository(tmp_path / "r")
    blocks = grown(tmp_path / "s", 40)
    form = backup(tmp_path / "s", place)

    def publish(self: object, syncing: object) -> None:
        raise _Stop

    monkeypatch.setattr(restoring._Staging, "publish", publish)
    with pytest.raises(_Stop):
        restored(place, form.name, tmp_path / "t", to_height=11)
    monkeypatch.undo()
    assert len(as_it_was(restored(place, form.name, tmp_path / "t", to_height=25), 25)) == 26
    assert blocks


# -- fenced ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("same_inodes", [False, True])
def test_a_restored_store_may_not_sign(same_inodes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a disk that gives the numbers of deleted files again, so that the place looks the same."""
    if same_inodes:
        monkeypatch.setattr("holdfast.store.opening.fingerprint", lambda root, store_id: b"f" * 32)
        monkeypatch.setattr("holdfast.store.backend.fingerprint", lambda root, store_id: b"f" * 32)
    with open_quick(tmp_path / "s") as store:
        store.add(make(None))
        store.safety.save(b"me", (5,), b"vote")
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    with open_quick(tmp_path / "s") as store:
        store.safety.save(b"me", (9,), b"later vote")
    with open_quick(restored(place, form.name, tmp_path / "t")) as store:
        assert store.safety.load(b"me").position == (5,)
        with pytest.raises(FencedError):
            store.safety.save(b"me", (9,), b"another vote")


# -- segments -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_segments")
def test_single_segments_are_fetched(tmp_path: Path) -> None:
    grown(tmp_path / "s", 60)
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    paths = fetch_segments(place, form.name, [2, 3], tmp_path / "some", workers=0)
    assert [path.name for path in paths] == ["0000000002.seg", "0000000003.seg"]
    for path in paths:
        assert path.read_bytes() == (tmp_path / "s" / "journal" / path.name).read_bytes()
    with pytest.raises(InvalidInputError):
        fetch_segments(place, form.name, [1, 99], tmp_path / "none", workers=0)
    assert not (tmp_path / "none").exists()


def store_id_of(place: BackupRepository) -> bytes:
    return bytes.fromhex(place.newest().store_id)


@pytest.mark.usefixtures("small_segments")
def test_a_segment_is_taken_from_the_newest_backup_that_has_it_unharmed(tmp_path: Path) -> None:
    blocks = grown(tmp_path / "s", 60)
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    grown(tmp_path / "s", 5, after=blocks[-1])
    backup(tmp_path / "s", place)
    source = SegmentSource(place, store_id_of(place), tmp_path / "got", workers=0)
    digest = bytes.fromhex(form.segments[1].digest)
    path = source.fetch(2, digest)
    assert path.read_bytes() == (tmp_path / "s" / "journal" / path.name).read_bytes()
    for number, wanted in ((2, b"x" * 32), (3, digest), (99, digest)):
        with pytest.raises(BackupNotFound):
            source.fetch(number, wanted)
    with pytest.raises(BackupNotFound):
        SegmentSource(place, b"s" * 16, tmp_path / "got").fetch(2, digest)
    for chunk in chunk_files(place):
        chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    path.write_bytes(b"keep me")
    with pytest.raises(BackupDamaged):
        source.fetch(2, digest)
    assert path.read_bytes() == b"keep me"


def test_progress_ends_with_everything_done(tmp_path: Path) -> None:
    grown(tmp_path / "s", 3)
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    seen: list[tuple[int, int]] = []
    restore_backup(place, form.name, tmp_path / "t", progress=lambda done, total: seen.append((done, total)))
    assert (form.totals.raw_bytes, form.totals.raw_bytes) in seen
    check(place, form.name, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (form.totals.raw_bytes, form.totals.raw_bytes)

    def stop(done: int, total: int) -> None:
        if total != form.totals.raw_bytes:
            raise InterruptedError("the files are there, and the views are begun")

    with pytest.raises(InterruptedError):
        restored(place, form.name, tmp_path / "u", progress=stop)
    seen.clear()
    restored(place, form.name, tmp_path / "u", progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (form.totals.raw_bytes, form.totals.raw_bytes), "bytes come first, also where none are left"
    assert holdfast.__version__


# -- two files at once ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_segments")
def test_with_threads_the_store_is_the_same_and_progress_is_told_here(tmp_path: Path) -> None:
    blocks = grown(tmp_path / "s", 30)
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    assert len(form.segments) > 3
    told: list[tuple[int, int]] = []
    tellers = set()

    def step(done: int, total: int) -> None:
        tellers.add(threading.get_ident())
        told.append((done, total))

    one = restored(place, form.name, tmp_path / "one", workers=2, progress=step)
    two = restored(place, form.name, tmp_path / "two")
    names = [path.name for path in sorted((two / "journal").iterdir())]
    assert [path.name for path in sorted((one / "journal").iterdir())] == names
    for name in names[: len(form.segments) - 1]:
        assert (one / "journal" / name).read_bytes() == (two / "journal" / name).read_bytes()
    with open_quick(one) as store:
        assert store.tip is not None
        assert store.tip.hash == blocks[-1].hash
    bytes_told = [done for done, total in told if total == form.totals.raw_bytes]
    assert bytes_told == sorted(bytes_told)
    assert bytes_told[-1] == form.totals.raw_bytes
    assert tellers == {threading.get_ident()}


@pytest.mark.usefixtures("small_segments")
def test_with_threads_too_a_stopped_restore_goes_on_and_damage_is_found(tmp_path: Path) -> None:
    grown(tmp_path / "s", 30)
    place = repository(tmp_path / "r")
    name = backup(tmp_path / "s", place).name
    calls = []

    def stop(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 3:
            raise InterruptedError("enough")

    with pytest.raises(InterruptedError):
        restored(place, name, tmp_path / "t", workers=2, progress=stop)
    assert not (tmp_path / "t").exists()
    assert not list((tmp_path / "t.partial").rglob("*.tmp"))
    assert restore_backup(place, name, tmp_path / "t", workers=2).kept_bytes > 0
    chunk = chunk_files(place)[2]
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(BackupDamaged):
        restored(place, name, tmp_path / "u", workers=2)
    assert not (tmp_path / "u").exists()


# -- durable before it is there --------------------------------------------------------------------------------------


class _Watched(RealFileSystem):
    """Tells which files were synced since, and which had been when a directory was renamed."""

    def __init__(self) -> None:
        self.synced: set[str] = set()
        self.at_rename: dict[str, set[str]] = {}

    def rename(self, source: Path, target: Path) -> None:
        self.at_rename[target.name] = set(self.synced)
        super().rename(source, target)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> _Watched:
    fs = _Watched()
    sync = RealFile.sync

    def told(self: RealFile) -> None:
        sync(self)
        fs.synced.add(self.path.name.removesuffix(".tmp"))

    monkeypatch.setattr(RealFile, "sync", told)
    return fs


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("workers", [0, 2])
def test_every_file_is_durable_before_the_store_appears(workers: int, watched: _Watched, tmp_path: Path) -> None:
    """Also one that a stopped run left: it may have been stopped before its sync."""
    grown(tmp_path / "s", 30)
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    names = {path.name for path in (tmp_path / "s" / "journal").iterdir()}
    assert len(names) > 3
    watched.synced.clear()
    restore_backup(place, form.name, tmp_path / "t", workers=workers, fs=watched)
    assert names <= watched.at_rename["t"]

    def stop(done: int, total: int) -> None:
        if done == total:
            raise _Stop

    with pytest.raises(_Stop):
        restore_backup(place, form.name, tmp_path / "u", workers=workers, progress=stop, fs=watched)
    watched.synced.clear()
    assert restore_backup(place, form.name, tmp_path / "u", workers=workers, fs=watched).kept_bytes > 0
    assert names <= watched.at_rename["u"]


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_whose_sync_failed_is_not_used_again(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the system still has of it may never reach the device, and a second sync would not tell."""
    grown(tmp_path / "s", 30)
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    name = segment_name(form.segments[-2].number)  # of those behind it, none waits for it
    sync = RealFile.sync

    def fails(self: RealFile) -> None:
        if self.path.name.startswith(name):
            raise DeviceError("the device failed", path=self.path)
        sync(self)

    monkeypatch.setattr(RealFile, "sync", fails)
    with pytest.raises(DeviceError):
        restored(place, form.name, tmp_path / "t", workers=workers)
    assert not (tmp_path / "t").exists()
    assert not (tmp_path / "t.partial/store/journal" / name).exists()
    monkeypatch.undo()
    assert verify_store(restored(place, form.name, tmp_path / "t", workers=workers)).ok
