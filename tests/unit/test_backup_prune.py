"""Retention and copies: what goes and what stays, and what is never given up."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.backup import BackupKey, KeepRules, copy_backup, open_repository, prune_backups
from holdfast.backup import prune as pruning
from holdfast.backup.manifest import ChainName, Manifest, Totals, new_name
from holdfast.errors import BackupDamaged, BackupNotFound, InvalidInputError, RepositoryLocked
from tests.unit.backup_support import backup, check, chunk_files, grown, repository, restored, small_segments
from tests.unit.store_support import chain_of, open_quick

__all__ = ["small_segments"]

HOUR = 3_600_000_000


def made_at(moment_us: int, store: str = "11" * 16) -> Manifest:
    """A manifest as far as retention looks at it."""
    return Manifest(
        name=new_name(moment_us), repository="0" * 32, created_us=moment_us, store_id=store,
        chain=ChainName(id="", name=""), identity="", first_seq=1, last_seq=1, last_digest="", last_time_us=0, tip=None,
        segments=(), base=(), totals=Totals(0, 0, 0, 0),
    )  # fmt: skip


def kept(forms: list[Manifest], verified: set[str], rules: KeepRules, now_us: int = 0) -> list[int]:
    found = pruning._kept(forms, verified, rules, now_us)
    return [number for number, form in enumerate(forms) if form.name in found]


def test_rules() -> None:
    forms = [made_at(hour * HOUR) for hour in range(100)]
    everything = {form.name for form in forms}
    assert kept(forms, everything, KeepRules()) == list(range(90, 100))
    assert kept(forms, everything, KeepRules(last=0)) == [99]
    assert kept(forms, everything, KeepRules(last=0, within_seconds=3 * 3600), 100 * HOUR) == [97, 98, 99]
    assert kept(forms, everything, KeepRules(last=0, hourly=4)) == [96, 97, 98, 99]
    assert kept(forms, everything, KeepRules(last=0, daily=3)) == [71, 95, 99]
    assert kept(forms, everything, KeepRules(last=0, weekly=9)) == [95, 99], "1970 began on a Thursday"
    assert kept(forms, everything, KeepRules(last=0, monthly=9, daily=1)) == [99]
    assert kept(forms, set(), KeepRules(last=0)) == list(range(100)), "without a verified one none goes"
    assert kept(forms, {forms[50].name, forms[20].name}, KeepRules(last=1)) == list(range(50, 100))
    others = [*forms[:5], *(made_at(hour * HOUR, "22" * 16) for hour in range(5))]
    assert kept(others, {form.name for form in others}, KeepRules(last=1)) == [4, 9]
    for bad in ({"last": -1}, {"hourly": 10**9}, {"within_seconds": -1}):
        with pytest.raises(InvalidInputError):
            KeepRules(**bad)


@given(
    st.lists(st.tuples(st.integers(0, 40 * 24 * 40), st.booleans()), min_size=1, max_size=40, unique_by=lambda x: x[0]),
    st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5),
)  # fmt: skip
def test_rules_against_a_model(
    hours: list[tuple[int, bool]], last: int, hourly: int, daily: int, weekly: int, monthly: int
) -> None:
    hours.sort()
    forms = [made_at(hour * HOUR) for hour, _ in hours]
    good = [number for number, (_, verified) in enumerate(hours) if verified]
    found = kept(forms, {forms[n].name for n in good}, KeepRules(last, 0, hourly, daily, weekly, monthly))
    expected: set[int] = set(range(good[-1], len(forms))) if good else set(range(len(forms)))
    expected.update(good[-last:] if last else [])
    for count, period in ((hourly, "%Y-%m-%d-%H"), (daily, "%Y-%m-%d"), (weekly, "%G-%V"), (monthly, "%Y-%m")):
        newest: dict[str, int] = {}
        for n in good:
            newest[datetime.fromtimestamp(hours[n][0] * 3600, UTC).strftime(period)] = n
        expected.update(sorted(newest.values())[-count:] if count else [])
    assert set(found) == expected


@pytest.mark.usefixtures("small_segments")
def test_what_goes_returns_its_bytes_and_the_rest_restores(tmp_path: Path) -> None:
    place = repository(tmp_path / "r")
    blocks = grown(tmp_path / "s", 20)
    for _ in range(3):
        form = backup(tmp_path / "s", place)
        assert check(place, form.name).ok
        blocks += grown(tmp_path / "s", 10, after=blocks[-1])
    before = {path: path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file()}
    rules = KeepRules(last=1)
    plan = prune_backups(place, rules, dry_run=True)
    assert {path: path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file()} == before
    (tmp_path / "r" / "backups" / f"{form.name}.manifest.tmp").write_text("half")
    done = prune_backups(place, rules)
    assert msgspec.structs.replace(plan, dry_run=False) == done
    assert (done.kept, len(done.removed)) == ((form.name,), 2)
    assert place.names() == [form.name]
    assert {ref.id for file in form.files() for ref in file.chunks} == {path.name for path in chunk_files(place)}
    assert not list((tmp_path / "r").rglob("*.tmp"))
    restored(place, form.name, tmp_path / "t")
    again = prune_backups(place, rules)
    assert (again.removed, again.chunks_removed) == ((), 0)


def test_chunks_that_no_backup_names_go_but_not_while_a_manifest_is_unreadable(tmp_path: Path) -> None:
    place = repository(tmp_path / "r")
    grown(tmp_path / "s", 5)
    form = backup(tmp_path / "s", place)
    place.put_chunk(b"of a run that was stopped")
    path = tmp_path / "r" / "backups" / f"{form.name}.manifest"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    report = prune_backups(place)
    assert (report.unreadable, report.chunks_removed, len(chunk_files(place))) == ((form.name,), 0, 2)
    path.write_bytes(whole)
    report = prune_backups(place)
    assert (report.unreadable, report.chunks_removed, len(chunk_files(place))) == ((), 1, 1)
    assert report.unverified == (form.name,)
    assert check(place, form.name).ok


def test_prune_and_create_exclude_each_other(tmp_path: Path) -> None:
    place = repository(tmp_path / "r")
    grown(tmp_path / "s", 5)
    with place.lock(), pytest.raises(RepositoryLocked):
        prune_backups(repository(tmp_path / "r"))

    def step(done: int, total: int) -> None:
        with pytest.raises(RepositoryLocked):
            prune_backups(repository(tmp_path / "r"))

    backup(tmp_path / "s", place, progress=step)


def test_a_mark_is_of_one_manifest_only_and_goes_with_a_failed_verification(tmp_path: Path) -> None:
    place = repository(tmp_path / "r")
    grown(tmp_path / "s", 5)
    form = backup(tmp_path / "s", place)
    _, digest = place.manifest_and_digest(form.name)
    assert place.verified_us(form.name, digest) is None
    assert check(place, form.name, level="quick").ok
    assert place.verified_us(form.name, digest) is None
    assert check(place, form.name).ok
    assert place.verified_us(form.name, digest) is not None
    assert place.verified_us(form.name, "00" * 32) is None
    chunk_files(place)[0].write_bytes(b"")
    assert not check(place, form.name, level="quick").ok
    assert place.verified_us(form.name, digest) is None


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.usefixtures("small_segments")
def test_a_copy_in_another_repository(encrypted: bool, tmp_path: Path) -> None:
    place = repository(tmp_path / "r")
    blocks = grown(tmp_path / "s", 30)
    first = backup(tmp_path / "s", place)
    grown(tmp_path / "s", 5, after=blocks[-1])
    second = backup(tmp_path / "s", place)
    key = BackupKey.from_passphrase("far away") if encrypted else None
    far = open_repository(tmp_path / "far", create=True, key=key, scrypt_n=1 << 14)
    copy_backup(place, first.name, far, workers=0)
    report = copy_backup(place, second.name, far, workers=2)
    assert report.written_bytes < report.raw_bytes
    assert far.names() == place.names()
    assert all(check(far, name).ok for name in far.names())
    assert restored(far, second.name, tmp_path / "t").exists()
    with pytest.raises(InvalidInputError):
        copy_backup(place, first.name, place)
    chunk_files(place)[0].write_bytes(b"")
    other = repository(tmp_path / "other")
    with pytest.raises(BackupDamaged):
        copy_backup(place, second.name, other, workers=0)
    assert other.names() == []


@pytest.mark.parametrize("what", ["quick", "full", "restore", "copy"])
def test_a_backup_that_goes_while_it_is_read_is_not_called_damaged(
    what: str, tmp_path: Path, small_segments: None
) -> None:
    place = repository(tmp_path / "r")
    with open_quick(tmp_path / "s") as store:
        for block in chain_of(None, 30):
            store.add(block)
        old = backup(store, place)  # its last segment is not that of the next one
    assert check(place, backup(tmp_path / "s", place).name).ok

    def prune(done: int, total: int) -> None:
        prune_backups(repository(tmp_path / "r"), KeepRules(last=1))

    def read() -> None:
        if what == "restore":
            restored(place, old.name, tmp_path / "t", progress=prune)
        elif what == "copy":
            copy_backup(place, old.name, repository(tmp_path / "far"), workers=0, progress=prune)
        else:
            check(place, old.name, level=what, progress=prune)

    with pytest.raises(BackupNotFound, match="was removed while it was read"):
        read()
    assert not (tmp_path / "t").exists()
    assert not (tmp_path / "far").exists() or not repository(tmp_path / "far").names()
