"""Backups are made: of stores at rest, open and written by others; incrementally, and never of damage."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import holdfast
from holdfast import _fs
from holdfast._fs import MemoryFileSystem, RealFileSystem, lock_holder
from holdfast.backup import BackupRepository, create_backup, open_repository
from holdfast.backup import create as creating
from holdfast.backup.envelope import CHUNK_BYTES
from holdfast.backup.manifest import check_name, new_name
from holdfast.backup.pieces import PieceFile, Throttle
from holdfast.errors import (
    BackupNotFound,
    CommitLoss,
    CorruptionError,
    InvalidInputError,
    RepositoryLocked,
    StoreLocked,
    StoreNotFound,
)
from holdfast.store.snapshots import import_snapshot
from holdfast.types import Block
from tests.unit.backup_support import backup, check, chunk_files, grown, noise, repository, restored, small_segments
from tests.unit.store_support import chain_of, make, open_quick

__all__ = ["small_segments"]


def add(store: holdfast.Store, blocks: list[Block]) -> None:
    for block in blocks:
        store.add(block)


def test_a_store_at_rest(tmp_path: Path) -> None:
    blocks = grown(tmp_path / "s", 20)
    place = repository(tmp_path / "r")
    before = {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()}
    form = backup(tmp_path / "s", place)
    assert {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()} == before
    assert form.tip is not None
    assert (form.tip.height, form.tip.hash) == (19, blocks[-1].hash.hex())
    assert place.names() == [form.name]
    assert check(place, form.name).ok
    with open_quick(restored(place, form.name, tmp_path / "t")) as store:
        assert [info.hash for info in store.blocks.canonical()] == [block.hash for block in blocks]
    assert not (tmp_path / "t.partial").exists()
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "r").rglob("*"))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_open_store_and_one_that_buffers(workers: int, tmp_path: Path) -> None:
    place = repository(tmp_path / "r")
    blocks = chain_of(None, 30)
    with open_quick(tmp_path / "s", durability="buffered") as store:
        add(store, blocks[:20])
        form = create_backup(store, place, workers=workers).manifest
        add(store, blocks[20:])
    assert form.tip is not None
    assert form.tip.height == 19
    with open_quick(restored(place, form.name, tmp_path / "t", workers=workers)) as store:
        assert store.tip is not None
        assert store.tip.hash == blocks[19].hash


_WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from tests.unit.store_support import chain_of, open_quick
with open_quick(sys.argv[1]) as store:
    for block in chain_of(None, 10):
        store.add(block)
    print("ready", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.slow
def test_a_node_that_another_process_runs(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", _WRITER, str(tmp_path / "s"), str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        place = repository(tmp_path / "r")
        form = backup(tmp_path / "s", place)
        assert not form.segments[-1].sealed
        assert form.tip is not None
        assert form.tip.height == 9
        writer.communicate("\n")
    assert writer.returncode == 0
    with open_quick(restored(place, form.name, tmp_path / "t")) as store:
        assert store.tip is not None
        assert store.tip.height == 9


def test_what_is_not_durable_is_not_in_it(tmp_path: Path) -> None:
    place = repository(tmp_path / "r")
    blocks = chain_of(None, 12)
    with open_quick(tmp_path / "s", durability="buffered", buffered_sync_seconds=3600.0) as store:
        add(store, blocks[:6])
        store.sync()
        add(store, blocks[6:])
        form = backup(tmp_path / "s", place)  # by its files, as another process would
    assert form.tip is not None
    assert form.tip.height == 5
    assert check(place, form.name).ok


@pytest.mark.usefixtures("small_segments")
def test_sealed_segments_are_read_once(tmp_path: Path) -> None:
    place = repository(tmp_path / "r")
    blocks = grown(tmp_path / "s", 40)
    first = create_backup(tmp_path / "s", place, workers=0)
    assert first.segments_taken_over == 0
    assert len(first.manifest.segments) > 3
    grown(tmp_path / "s", 4, after=blocks[-1])
    second = create_backup(tmp_path / "s", place, workers=0)
    assert second.segments_taken_over == len(first.manifest.segments)
    assert second.read_bytes == sum(entry.length for entry in second.manifest.segments[second.segments_taken_over :])
    third = create_backup(tmp_path / "s", place, workers=0)
    assert (third.read_bytes, third.written_bytes) == (0, 0)
    again = create_backup(tmp_path / "s", place, workers=0, check=True)
    assert again.read_bytes == again.manifest.totals.raw_bytes
    assert (again.written_bytes, again.segments_taken_over) == (0, 0)
    assert [check(place, name).ok for name in place.names()] == [True] * 4


@pytest.mark.usefixtures("small_segments")
def test_a_chunk_that_is_gone_or_short_is_stored_again(tmp_path: Path) -> None:
    place = repository(tmp_path / "r")
    grown(tmp_path / "s", 40)
    first = backup(tmp_path / "s", place)
    files = chunk_files(place)
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-1])
    assert not check(place, first.name, level="quick").ok
    backup(tmp_path / "s", place)
    assert check(place, first.name).ok


@pytest.mark.usefixtures("small_segments")
def test_a_chunk_that_rotted_is_found_and_stored_again_with_check(tmp_path: Path) -> None:
    place = repository(tmp_path / "r")
    grown(tmp_path / "s", 40)
    first = backup(tmp_path / "s", place)
    rotten = bytearray(chunk_files(place)[0].read_bytes())
    rotten[-1] ^= 1
    chunk_files(place)[0].write_bytes(rotten)
    backup(tmp_path / "s", place)
    assert not check(place, first.name).ok
    backup(tmp_path / "s", place, check=True)
    assert check(place, first.name).ok


def test_long_files_have_many_chunks_and_equal_ones_are_stored_once(tmp_path: Path) -> None:
    body = noise("body", 100_000)
    with open_quick(tmp_path / "s") as store:
        parent = None
        for number in range(40):
            parent = make(parent, number, body=body)
            store.add(parent)
    place = repository(tmp_path / "r")
    form = create_backup(tmp_path / "s", place, workers=2).manifest
    assert form.totals.raw_bytes > 4_000_000
    assert [len(entry.chunks) for entry in form.segments] == [
        -(-entry.length // CHUNK_BYTES) for entry in form.segments
    ]
    assert check(place, form.name, workers=2).frames == form.last_seq
    with open_quick(restored(place, form.name, tmp_path / "t", workers=2)) as store:
        assert store.tip is not None
        assert store.blocks.block(store.tip).body == body


def test_damage_of_the_store_gives_no_backup(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grown(tmp_path / "s", 20)
    (segment,) = (tmp_path / "s" / "journal").glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[5000] ^= 1
    segment.write_bytes(data)
    place = repository(tmp_path / "r")
    with caplog.at_level(logging.INFO, "holdfast"), pytest.raises(CorruptionError):
        backup(tmp_path / "s", place)
    assert place.names() == []
    assert [getattr(record, "holdfast_event", "") for record in caplog.records] == ["backup_failed"]


def test_a_backup_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grown(tmp_path / "s", 2)
    place = repository(tmp_path / "r")
    with caplog.at_level(logging.INFO, "holdfast"):
        form = backup(tmp_path / "s", place)
    (record,) = caplog.records
    assert record.__dict__["holdfast_event"] == "backup_made"
    assert record.__dict__["holdfast_fields"]["name"] == form.name


class _Stop(Exception):
    pass


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.usefixtures("small_segments")
def test_a_run_that_is_stopped_leaves_no_backup_and_is_gone_on_with(workers: int, tmp_path: Path) -> None:
    place = repository(tmp_path / "r")
    grown(tmp_path / "s", 60)
    seen: list[tuple[int, int]] = []

    def step(done: int, total: int) -> None:
        seen.append((done, total))
        if len(seen) == 4:
            raise _Stop

    with pytest.raises(_Stop):
        create_backup(tmp_path / "s", place, workers=workers, progress=step)
    assert place.names() == []
    kept = len(chunk_files(place))
    assert kept > 0
    report = create_backup(
        tmp_path / "s", place, workers=workers, progress=lambda done, total: seen.append((done, total))
    )
    assert report.chunks_written == len(report.manifest.segments) - kept
    assert seen[-1] == (report.manifest.totals.raw_bytes, report.manifest.totals.raw_bytes)


def test_two_writers_exclude_each_other_and_the_holder_is_named(tmp_path: Path) -> None:
    grown(tmp_path / "s", 2)
    place = repository(tmp_path / "r")
    with place.lock():
        with pytest.raises(RepositoryLocked) as caught:
            backup(tmp_path / "s", repository(tmp_path / "r"))
        assert str(caught.value.context["holder"]).split()[0].isdigit()
    backup(tmp_path / "s", place)


def test_the_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    grown(tmp_path / "s", 2)
    place = repository(tmp_path / "r")
    code = (
        "import os, sys; from holdfast.backup import open_repository; "
        "open_repository(sys.argv[1]).lock().__enter__(); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code, place.place], check=False, cwd=Path(__file__).parents[2] / "src")
    assert done.returncode == 9
    assert backup(tmp_path / "s", place).name in place.names()


def test_a_lock_needs_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = RealFileSystem()

    def full(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(os, "pwrite", full)
    held = fs.lock(tmp_path / "lock", "7 here")
    with pytest.raises(StoreLocked) as caught:
        fs.lock(tmp_path / "lock", "8 here")
    assert str(caught.value.context["holder"]).startswith((str(os.getpid()), "unknown"))
    held.release()


def test_names_never_collide_and_sort_by_time() -> None:
    names = {new_name(1_700_000_000_000_000) for _ in range(1000)}
    assert len(names) == 1000
    assert {name[:23] for name in names} == {"20231114T221320000000Z-"}
    assert new_name(5) < new_name(6) < new_name(1_700_000_000_000_000) < new_name()
    for bad in ("", "..", "a/b", "20231114T221320000000Z-0000000G", "../20231114T221320000000Z-00000000", "x\0"):
        with pytest.raises(InvalidInputError):
            check_name(bad)


@pytest.mark.parametrize("count", [20, 21, 60])
def test_a_store_that_lost_commits_is_not_backed_up(tmp_path: Path, count: int) -> None:
    """An older journal was put in its place: the backup that has more stays the newest."""
    blocks = grown(tmp_path / "s", count)
    shutil.copytree(tmp_path / "s", tmp_path / "old")
    grown(tmp_path / "s", 30, after=blocks[-1])
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    assert backup(tmp_path / "s", place).last_seq == form.last_seq, "as much as there was is no loss"
    shutil.rmtree(tmp_path / "s/journal")
    shutil.copytree(tmp_path / "old/journal", tmp_path / "s/journal")
    shutil.copy(tmp_path / "old/watermark", tmp_path / "s/watermark")
    with pytest.raises(CommitLoss, match="commits that the store has lost"):
        backup(tmp_path / "s", place)
    assert place.newest().last_seq == form.last_seq


def test_a_store_that_was_taken_back_on_purpose_is_backed_up(tmp_path: Path) -> None:
    grown(tmp_path / "s", 40)
    place = repository(tmp_path / "r")
    form = backup(tmp_path / "s", place)
    restored(place, form.name, tmp_path / "back", to_height=20)
    assert backup(tmp_path / "back", place).last_seq < form.last_seq


def test_what_is_no_store_and_what_is_no_repository(tmp_path: Path) -> None:
    place = repository(tmp_path / "r")
    with pytest.raises(StoreNotFound):
        backup(tmp_path / "nothing", place)
    with pytest.raises(BackupNotFound):
        open_repository(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with holdfast.open("memory:") as store, pytest.raises(InvalidInputError):
        backup(store, place)
    with pytest.raises(BackupNotFound):
        place.newest()
    with pytest.raises(BackupNotFound):
        place.manifest(new_name())


def test_only_a_store_that_is_open_for_writing_is_read_slowly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[int | None] = []

    def noted(rate: int | None) -> Throttle:
        rates.append(rate)
        return Throttle(None)

    monkeypatch.setattr(creating, "Throttle", noted)
    place = repository(tmp_path / "r")
    with open_quick(tmp_path / "s") as store:
        store.add(make(None))
        backup(store, place)
        backup(store, place, bytes_per_second=5)
        backup(tmp_path / "s", place)
        with holdfast.open(tmp_path / "s", read_only=True) as reader:
            backup(reader, place)
            backup(reader, place, bytes_per_second=0)
    backup(tmp_path / "s", place)
    slowly = creating.BESIDE_BYTES_PER_SECOND
    assert rates == [slowly, 5, slowly, slowly, None, None]


def test_who_has_a_lock_is_known_without_taking_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, fs = tmp_path / "LOCK", RealFileSystem()
    assert lock_holder(fs, path) is None
    held = fs.lock(path, f"{os.getpid()} {socket.gethostname()}")
    assert lock_holder(fs, path) == os.getpid()
    held.release()
    assert lock_holder(fs, path) is None, "its name is still in the file"
    exists = os.path.exists
    monkeypatch.setattr(_fs, "_locking_process", lambda fd: "")
    monkeypatch.setattr(os.path, "exists", lambda place: place != "/proc/locks" and exists(place))
    assert lock_holder(fs, path) == os.getpid(), "the kernel does not tell, and the process lives"
    for name in (f"{os.getpid()} another-{socket.gethostname()}", f"{2**40} {socket.gethostname()}", "", "x y"):
        path.write_text(name)
        assert lock_holder(fs, path) is None
    assert lock_holder(MemoryFileSystem(), path) is None


def test_a_rate_limit_makes_it_wait() -> None:
    now, slept = [100.0], list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    throttle = Throttle(1000, clock=lambda: now[0], sleep=sleep)
    for _ in range(5):
        throttle.take(1000)
    assert now[0] == pytest.approx(105.0)
    assert max(slept) <= 1.0
    with pytest.raises(InvalidInputError):
        Throttle(0)


def test_a_backup_takes_its_bytes_from_the_throttle(tmp_path: Path) -> None:
    grown(tmp_path / "s", 5)
    waited: list[float] = []
    throttle = Throttle(1, clock=lambda: 0.0 + sum(waited), sleep=waited.append)
    report = create_backup(tmp_path / "s", repository(tmp_path / "r"), workers=0, throttle=throttle)
    assert sum(waited) == pytest.approx(report.read_bytes)


def test_pieces_are_made_once_in_order_and_kept_for_a_while() -> None:
    data = noise("pieces", 6 * CHUNK_BYTES + 5)
    made: list[int] = []
    given: list[bytes] = []

    def load(index: int) -> bytes:
        made.append(index)
        return data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]

    file = PieceFile(Path("f"), len(data), load, given.append)
    assert file.pread(10, 3 * CHUNK_BYTES - 5) == data[3 * CHUNK_BYTES - 5 : 3 * CHUNK_BYTES + 5]
    assert file.pread(10, 2 * CHUNK_BYTES) == data[2 * CHUNK_BYTES : 2 * CHUNK_BYTES + 10]
    assert made == [0, 1, 2, 3]
    file.finish()
    assert file.pread(3, 0) == data[:3]
    assert file.pread(100, len(data) - 5) == data[-5:]
    assert made == [0, 1, 2, 3, 4, 5, 6, 0]
    assert b"".join(given) == data


def test_a_store_that_stands_on_a_snapshot(tmp_path: Path) -> None:
    with open_quick(tmp_path / "s") as store:
        for number in range(5):
            draft = store.draft()
            for key in range(50):
                draft.state[b"key %d" % key] = b"value %d %d" % (number, key)
            store.commit(draft, hash=noise(number, 32), header=b"h")
        info = store.export_snapshot(tmp_path / "snapshot", chunk_bytes=1024)
    import_snapshot(tmp_path / "s2", tmp_path / "snapshot", trusted_root=info.state_root)
    with open_quick(tmp_path / "s2") as store:
        draft = store.draft()
        draft.state[b"new"] = b"value"
        tip = store.commit(draft, hash=noise("tip", 32), header=b"h")
    place = repository(tmp_path / "r")
    first = create_backup(tmp_path / "s2", place, workers=0)
    assert len(first.manifest.base) == info.chunks + 1
    assert create_backup(tmp_path / "s2", place, workers=0).read_bytes == 0
    assert check(place, first.manifest.name).ok
    with open_quick(restored(place, first.manifest.name, tmp_path / "t")) as store:
        assert store.tip is not None
        assert store.tip.hash == tip.hash
        assert store.tip.state_root == tip.state_root
        assert store.state.get(b"new") == b"value"
        assert store.state.get(b"key 7") == b"value 4 7"
    chunk = next((tmp_path / "s2" / "base" / "chunks").iterdir())
    data = bytearray(chunk.read_bytes())
    data[-50] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(CorruptionError):
        backup(tmp_path / "s2", repository(tmp_path / "other"))


def test_the_lock_and_the_identity_are_all_that_a_new_repository_holds(tmp_path: Path) -> None:
    place: BackupRepository = repository(tmp_path / "r")
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["lock", "repository.json"]
    assert re.fullmatch(r"[0-9a-f]{32}", place.id)
    assert repository(tmp_path / "r").id == place.id
    assert creating.__doc__
