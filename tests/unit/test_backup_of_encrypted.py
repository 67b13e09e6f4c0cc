"""Backups of an encrypted store: made and verified without its key, restored with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import holdfast
from holdfast import diff
from holdfast._keys import StoreKey, using_key, without_key
from holdfast.backup import BackupKey, BackupSource, restore_backup
from holdfast.backup.envelope import CHUNK_BYTES
from holdfast.backup.runs import ScheduledBackups
from holdfast.backup.schedule import Schedule
from holdfast.errors import BlockNotFound, CorruptionError, KeyRejected, KeyRequired
from holdfast.recovery.verify import verify_store
from holdfast.store.identity import IDENTITY_NAME
from tests.unit.backup_support import backup, check, repository
from tests.unit.store_support import chain_of, make, quick
from tests.unit.test_store_encryption import KEY, MARK, files_with, make_store


def test_a_backup_needs_no_key_and_holds_nothing_in_plain_text(tmp_path: Path) -> None:
    store, place = tmp_path / "store", repository(tmp_path / "backups")
    make_store(f"sqlite:{store}")
    form = backup(store, place)
    assert check(place, form.name).ok
    assert form.tip is not None
    assert form.tip.height == 29
    assert files_with(tmp_path / "backups", MARK) == []
    for segment in form.segments:  # what zstd hides is looked at, too
        for ref in segment.chunks:
            assert MARK not in place.get_chunk(ref, min(segment.length, CHUNK_BYTES))


@pytest.mark.parametrize("key", [None, KEY])
def test_without_its_key_nothing_is_restored(key: bytes | None, tmp_path: Path) -> None:
    store, place = tmp_path / "store", repository(tmp_path / "backups")
    make_store(f"sqlite:{store}", count=4)
    name = backup(store, place).name
    with pytest.raises(KeyRequired if key is None else KeyRejected):
        restore_backup(place, name, tmp_path / "again", store_key=None if key is None else bytes(32), workers=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backups", "store"]


@pytest.mark.parametrize("sealed", [False, True])
def test_a_store_is_restored_whole_and_to_a_height(sealed: bool, tmp_path: Path) -> None:
    """Also from a repository that is encrypted itself, under a key of its own."""
    key = BackupKey("key-file", bytes(32)) if sealed else None
    store, place = tmp_path / "store", repository(tmp_path / "backups", key=key)
    make_store(f"sqlite:{store}")
    name = backup(store, place).name
    for height in (None, 7):
        target = tmp_path / f"to-{height}"
        report = restore_backup(place, name, f"sqlite:{target}", to_height=height, store_key=KEY, workers=0)
        assert report.height == (29 if height is None else height)
        assert files_with(target, MARK) == []
        assert verify_store(target, level="full", key=KEY).ok
        with holdfast.open(target, key=KEY) as again:
            assert again.state[b"account/1"] == MARK + b" state %d" % (29 if height is None else 1)
    with pytest.raises(BlockNotFound):
        restore_backup(place, name, tmp_path / "high", to_height=99, store_key=KEY, workers=0)


def test_the_tip_is_found_in_the_journal_after_a_crash(tmp_path: Path) -> None:
    """The watermark names none then: this needs the key, and an open store gives its own."""
    store, place = tmp_path / "store", repository(tmp_path / "backups")
    left = tmp_path / "left"
    with holdfast.open(f"sqlite:{store}", key=KEY, settings=quick()) as made:
        for block in chain_of(None, 2):
            made.add(block)
        behind = (store / "watermark").read_bytes()
        made.add(make(made.tip, "after it"))
        shutil.copytree(store, left)
        (left / "watermark").write_bytes(behind)
    with holdfast.open(left, key=KEY, settings=quick()) as made:
        assert not made.recovery.clean
        with without_key(), pytest.raises(KeyRequired):
            backup(left, place)
        form = backup(made, place)
        assert form.tip is not None
        assert form.tip.height == 2
        made.add(make(made.tip, "more"))
    with using_key(KEY):
        assert backup(left, place).tip is not None


def test_a_store_knows_its_key_and_does_not_show_it(tmp_path: Path) -> None:
    with holdfast.open(f"sqlite:{tmp_path / 'store'}", key=KEY, settings=quick()) as store:
        assert isinstance(store.key, StoreKey)
        assert KEY.hex() not in f"{store.key!r}{store.key}{store!r}{store.statistics()}{store.settings}"
    with holdfast.open(f"sqlite:{tmp_path / 'plain'}", settings=quick()) as store:
        assert store.key is None


def test_a_store_is_compared_with_its_backup(tmp_path: Path) -> None:
    store, place = tmp_path / "store", repository(tmp_path / "backups")
    make_store(f"sqlite:{store}", count=5)
    name = backup(store, place).name
    assert diff(store, BackupSource(place, name, workers=0), state=True, key=KEY).relation == "equal"
    with pytest.raises(KeyRequired), holdfast.open(store, key=KEY, read_only=True) as opened:
        diff(opened, BackupSource(place, name, workers=0))
    with holdfast.open(store, key=KEY, read_only=True) as opened:
        other = BackupSource(place, name, workers=0, store_key=KEY)
        assert diff(opened, other, state=True).relation == "equal"
        assert diff(opened, other, at_height=2).state is not None


@pytest.mark.parametrize("key", [KEY, None])
def test_a_scheduled_backup_is_tested_with_the_key(key: bytes | None, tmp_path: Path) -> None:
    store = tmp_path / "store"
    make_store(f"sqlite:{store}", count=4)
    now = [1_800_000_000_000_000]
    runs = ScheduledBackups(
        store,
        Schedule("hourly"),
        lambda _: repository(tmp_path / "backups"),
        settings=quick(),
        clock=lambda: now[0],
        workers=0,
        store_key=StoreKey.of(key),
    )
    assert runs.run_due() is None
    now[0] += 3_600_000_000
    report = runs.run_due()
    if key is None:
        assert isinstance(runs.failure, KeyRequired)
    else:
        assert report is not None, runs.failure
        assert report.tested == "passed"
    assert files_with(store, MARK) == []


@pytest.mark.parametrize("given", [None, KEY])
@pytest.mark.parametrize("name", ["salt", "sealed_key"])
def test_a_rotten_identity_is_no_wrong_key_and_in_no_backup(name: str, given: bytes | None, tmp_path: Path) -> None:
    store, place = tmp_path / "store", repository(tmp_path / "backups")
    make_store(f"sqlite:{store}", count=2)
    file = store / IDENTITY_NAME
    text = file.read_text("ascii")
    at = text.index(f"{name} = ", text.index("[encryption]")) + len(name) + 10
    file.write_text(text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :], "ascii")
    with using_key(given), pytest.raises(CorruptionError, match="differs from the first frame"):
        backup(store, place)
    assert place.names() == []
