"""Backups and retention: the archive before a byte goes, backups of a pruned store, and what comes back out of them."""

from __future__ import annotations

from pathlib import Path

import pytest

import holdfast
from holdfast import Store
from holdfast.backup import (
    archive_of,
    create,
    create_backup,
    fetch_segments,
    originals_of,
    prune_backups,
    verify_backup,
)
from holdfast.backup.manifest import Manifest, SegmentFile, decode_manifest, encode
from holdfast.backup.prune import KeepRules
from holdfast.backup.repository import BackupRepository
from holdfast.errors import BackupDamaged, BackupNotFound, PrunedError
from holdfast.recovery import verify_store
from holdfast.store.identity import Identity
from holdfast.store.retention import RetentionPolicy, RetentionReport
from holdfast.types import Block
from tests.unit.backup_support import backup, check, chunk_files, repository, restored, small_segments
from tests.unit.state_support import writer_backend
from tests.unit.test_store_retention import COUNT, filled, opened, without

__all__ = ["small_segments"]

pytestmark = pytest.mark.usefixtures("small_segments")
FLOOR = 60


@pytest.fixture
def blocks(tmp_path: Path) -> list[Block]:
    """Those of the store at ``s``."""
    return filled(tmp_path / "s")


def store_id(store: Store) -> bytes:
    return writer_backend(store).identity.store_id


def prune(store: Store, place: BackupRepository | None, below: int = FLOOR) -> RetentionReport:
    archive = None if place is None else archive_of(place, store_id(store), workers=0)
    policy = RetentionPolicy("below", below)
    return store.retention.prune(policy, archive=archive, without_archive=place is None)


def pruned_entries(form: Manifest) -> list[int]:
    return [entry.number for entry in form.segments if entry.raw_length]


def test_nothing_goes_that_no_backup_holds(tmp_path: Path, blocks: list[Block]) -> None:
    place = repository(tmp_path / "r")
    with opened(tmp_path / "s") as store:
        with pytest.raises(BackupNotFound):
            prune(store, place)
        assert without(store, blocks) == []
        form = backup(store, place)
        path = next(path for path in chunk_files(place) if path.name == form.segments[0].chunks[0].id)
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(BackupDamaged):
            prune(store, place)
        assert without(store, blocks) == []
        path.write_bytes(good)
        assert prune(store, place).archived
        assert without(store, blocks) == list(range(FLOOR))


def test_a_backup_made_afterwards_keeps_what_an_earlier_one_holds(tmp_path: Path, blocks: list[Block]) -> None:
    place = repository(tmp_path / "r")
    backup(tmp_path / "s", place)
    with opened(tmp_path / "s") as store:
        prune(store, place)
    for more in ({}, {"check": True}):
        later = backup(tmp_path / "s", place, **more)
        assert pruned_entries(later) == []
        assert check(place, later.name).ok
    prune_backups(place, KeepRules(last=1))
    with opened(restored(place, place.newest().name, tmp_path / "t")) as store:
        assert without(store, blocks) == []
    with opened(tmp_path / "s") as store:
        assert store.retention.refill(originals_of(place, store_id(store), workers=0)).floor_after == 0
        assert without(store, blocks) == []


def test_the_last_whole_copy_of_what_was_pruned_stays(tmp_path: Path, blocks: list[Block]) -> None:
    """Also where it could not be read for the moment when the next backup was made."""
    place = repository(tmp_path / "r")
    first = backup(tmp_path / "s", place)
    check(place, first.name)
    with opened(tmp_path / "s") as store:
        prune(store, place)
    manifest = tmp_path / "r" / "backups" / f"{first.name}.manifest"
    good = manifest.read_bytes()
    manifest.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    heard: list[holdfast.Event] = []
    with holdfast.on_event(heard.append, names=["backup_without_pruned"]) as subscription:
        later = [backup(tmp_path / "s", place) for _ in range(3)]
        assert subscription.wait(10)
    holed = pruned_entries(later[0])
    assert holed
    assert [(event.fields["name"], event.fields["segments"]) for event in heard] == [(later[0].name, len(holed))]
    manifest.write_bytes(good)
    for form in later:
        check(place, form.name)
    assert prune_backups(place, KeepRules(last=1)).kept == (first.name, later[-1].name)
    assert prune_backups(place, KeepRules(last=1)).kept == (first.name, later[-1].name)
    with opened(tmp_path / "s") as store:
        assert store.retention.refill(originals_of(place, store_id(store), workers=0)).floor_after == 0
        assert without(store, blocks) == []
    whole = backup(tmp_path / "s", place)
    check(place, whole.name)
    assert pruned_entries(whole) == []
    assert prune_backups(place, KeepRules(last=1)).kept == (whole.name,)


@pytest.mark.parametrize("gone", [False, True])
def test_a_rotten_archive_is_not_taken_over_once_it_is_checked(tmp_path: Path, blocks: list[Block], gone: bool) -> None:
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    with opened(tmp_path / "s") as store:
        prune(store, place)
    taken = backup(tmp_path / "s", place)
    path = next(path for path in chunk_files(place) if path.name == form.segments[0].chunks[0].id)
    good = path.read_bytes()
    if gone:
        path.unlink()
    else:
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    heard: list[holdfast.Event] = []
    with holdfast.on_event(heard.append, names=["corruption_found"]) as subscription:
        later = backup(tmp_path / "s", place, check=True)
        assert subscription.wait(10)
    assert len(heard) == 1  # both backups name the same chunks
    assert (heard[0].code, taken.name in heard[0].message) == ("backup_damaged", True)
    assert pruned_entries(later) == [1]
    assert check(place, later.name).ok
    unchecked = backup(tmp_path / "s", place)
    assert pruned_entries(unchecked) == [1]
    assert check(place, unchecked.name).ok
    path.write_bytes(good)  # somebody had a copy of the repository
    assert pruned_entries(backup(tmp_path / "s", place, check=True)) == []


def test_a_segment_that_is_pruned_further_meanwhile_is_backed_up_as_it_was(
    tmp_path: Path, blocks: list[Block], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = repository(tmp_path / "r")
    with opened(tmp_path / "s") as store:
        prune(store, None, 3)
        before = create._Run._whole_before

        def slow(self: create._Run, entry: SegmentFile, identity: Identity) -> SegmentFile | None:
            if entry.number == 1:
                prune(store, None)
            return before(self, entry, identity)

        monkeypatch.setattr(create._Run, "_whole_before", slow)
        form = backup(tmp_path / "s", place)
        assert without(store, blocks) == list(range(FLOOR))
    assert check(place, form.name).ok
    with opened(restored(place, form.name, tmp_path / "t")) as store:
        assert set(range(3)) < set(without(store, blocks)) < set(range(FLOOR))  # what it had not read yet was pruned


def test_a_damaged_segment_of_a_backup_does_not_end_the_refill(tmp_path: Path, blocks: list[Block]) -> None:
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    with opened(tmp_path / "s") as store:
        prune(store, place)
        for index in (0, 3):
            path = next(path for path in chunk_files(place) if path.name == form.segments[index].chunks[0].id)
            path.write_bytes(path.read_bytes()[:-1] + b"!")
        original = originals_of(place, store_id(store), workers=0)
        with pytest.raises(BackupDamaged):
            store.retention.refill(original)
        report = store.retention.refill(original, missing=(BackupNotFound, BackupDamaged))
        assert (report.damaged, report.missing, report.complete) == ((1, 4), (), True)
        assert report.as_dict()["damaged"] == [1, 4]
        assert store.retention.status().pruned == 2
        assert 0 < len(without(store, blocks)) < FLOOR // 2


def test_a_pruned_store_without_an_earlier_backup(tmp_path: Path, blocks: list[Block]) -> None:
    with opened(tmp_path / "s") as store:
        store.compact()
        prune(store, None)
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    holed = pruned_entries(form)
    assert holed == list(range(1, len(holed) + 1))
    assert 2 < len(holed) < len(form.segments)
    assert all(entry.length < entry.raw_length for entry in form.segments if entry.raw_length)
    assert check(place, form.name).ok
    assert verify_backup(place, form.name, workers=2).ok
    assert backup(tmp_path / "s", place).segments[: len(holed)] == form.segments[: len(holed)]
    again = create_backup(tmp_path / "s", place, workers=2)
    assert again.chunks_written == 0
    with opened(restored(place, form.name, tmp_path / "t")) as store:
        assert without(store, blocks) == list(range(FLOOR))
        assert store.retention.status().floor == FLOOR
    assert verify_store(tmp_path / "t", level="full").ok
    with opened(restored(place, form.name, tmp_path / "cut", to_height=COUNT - 20)) as store:
        assert store.tip is not None
        assert store.tip.height == COUNT - 20
    with pytest.raises(PrunedError) as error:
        restored(place, form.name, tmp_path / "low", to_height=20)
    assert error.value.context["least_readable"] == FLOOR
    assert not (tmp_path / "low").exists()
    path = fetch_segments(place, form.name, [1], tmp_path / "files", workers=0)[0]
    assert path.read_bytes() == (tmp_path / "s" / "journal" / path.name).read_bytes()
    with opened(tmp_path / "s") as store:
        original = originals_of(place, store_id(store), workers=0)
        report = store.retention.refill(original, missing=BackupNotFound)
        assert report.missing == tuple(holed)
        with pytest.raises(BackupNotFound):
            archive_of(place, store_id(store), workers=0)(1, bytes.fromhex(form.segments[0].digest))


def test_every_flip_in_a_pruned_segment_of_a_backup_is_found(tmp_path: Path, blocks: list[Block]) -> None:
    with opened(tmp_path / "s") as store:
        prune(store, None)
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    entry = form.segments[1]
    path = next(path for path in chunk_files(place) if path.name == entry.chunks[0].id)
    good = path.read_bytes()
    for offset in range(0, len(good), 197):
        path.write_bytes(good[:offset] + bytes([good[offset] ^ 4]) + good[offset + 1 :])
        assert not check(place, form.name).ok
    path.write_bytes(good)
    assert check(place, form.name).ok


def test_a_manifest_that_says_nonsense_about_it_is_refused(tmp_path: Path, blocks: list[Block]) -> None:
    import msgspec

    with opened(tmp_path / "s") as store:
        prune(store, None)
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)

    def changed(index: int, **values: object) -> bytes:
        segments = list(form.segments)
        segments[index] = msgspec.structs.replace(segments[index], **values)
        return encode(msgspec.structs.replace(form, segments=tuple(segments)))

    def decoded(data: bytes) -> Manifest:
        return decode_manifest(data, name=form.name, repository=form.repository, place="here")

    assert decoded(encode(form)) == form
    assert b'"raw_length"' in encode(form)
    for data in (
        changed(0, raw_length=200),
        changed(0, raw_length=-1),
        changed(len(form.segments) - 1, raw_length=form.segments[-1].length),
        encode(form).replace(b'"raw_length":', b'"raw_lengths":', 1),
    ):
        with pytest.raises(BackupDamaged):
            decoded(data)
