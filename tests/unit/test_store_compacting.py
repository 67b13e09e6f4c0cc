"""``store.compact``: what it touches, that everything reads, verifies and backs up as before, online and in pieces."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast import Store
from holdfast.errors import InvalidInputError, OutOfSpace, ReadOnlyError
from holdfast.journal import compaction
from holdfast.journal.compacted import Packer
from holdfast.recovery import rebuild_views, verify_store
from holdfast.store import upkeep
from holdfast.store.compacting import Compactions
from holdfast.types import Block
from tests.unit.backup_support import backup, check, grown, noise, repository, restored, small_segments
from tests.unit.state_support import writer_backend
from tests.unit.store_support import chain_of, make, open_quick, quick

__all__ = ["small_segments"]

pytestmark = pytest.mark.usefixtures("small_segments")
DEPTH = 6


def opened(path: Path, **fields: object) -> Store:
    return open_quick(path, max_reorg_depth=DEPTH, compression="none", **fields)


def filled(path: Path, count: int = 120) -> list[Block]:
    blocks = chain_of(None, count)
    with opened(path) as store:
        for block in blocks:
            store.add(block)
    return blocks


def generations(store: Store) -> list[int]:
    return [info.generation for info in writer_backend(store).opened.journal.segments()]


def assert_reads(store: Store, blocks: list[Block]) -> None:
    for block in blocks:
        info = store.blocks.at(block.height)
        assert info is not None
        found = store.blocks.block(info)
        assert (found.hash, found.header, found.body) == (block.hash, block.header, block.body)
        assert found.extra == block.extra


def test_everything_reads_verifies_and_rebuilds_as_before(tmp_path: Path) -> None:
    blocks = filled(tmp_path / "s")
    with opened(tmp_path / "s") as store:
        plan = store.compact(dry_run=True)
        assert set(generations(store)) == {0}
        report = store.compact()
        assert (report.compacted, report.kept, report.complete) == (plan.compacted, 0, True)
        assert report.compacted == report.segments > 4
        assert report.bytes_after < report.bytes_before / 2
        assert plan.bytes_before == report.bytes_before
        assert report.bytes_after / 2 < plan.bytes_after < report.bytes_after * 2
        files = sum(path.stat().st_size for path in (tmp_path / "s" / "journal").glob("*.seg"))
        assert abs(files - report.journal_bytes_after) <= 8 * 1024  # the newest has its full length while it is open
        assert_reads(store, blocks)
        assert store.compact().compacted == 0
        for block in chain_of(blocks[-1], 30):
            store.add(block)
            blocks.append(block)
        assert store.compact().compacted > 0
    for level in ("links", "full"):
        assert verify_store(tmp_path / "s", level=level).ok
    with opened(tmp_path / "s") as store:
        assert_reads(store, blocks)
    rebuild_views(tmp_path / "s")
    with opened(tmp_path / "s") as store:
        assert_reads(store, blocks)


def test_blocks_that_are_not_final_stay_in_their_segments(tmp_path: Path) -> None:
    blocks = filled(tmp_path / "s")
    with opened(tmp_path / "s") as store:
        report = store.compact()
        journal = writer_backend(store).opened.journal
        final = writer_backend(store).state.floor
        assert report.final_height == final == len(blocks) - 1 - DEPTH
        heads = {info.number: info for info in journal.segments()}
        open_block = store.blocks.at(final + 1)
        assert open_block is not None
        for info in heads.values():
            last = info.first_seq + info.count - 1
            assert bool(info.generation) == (last < open_block.seq and info.number < len(heads))
        store.finalize(blocks[-1].height)
        assert store.compact().final_height == blocks[-1].height
        assert sorted(set(generations(store)[:-1])) == [1]
        assert generations(store)[-1] == 0


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    blocks = filled(tmp_path / "s")
    told: list[tuple[int, int]] = []
    with opened(tmp_path / "s") as store:
        left = iter(range(3))
        report = store.compact(keep_going=lambda: next(left, None) is not None, progress=lambda *at: told.append(at))
        assert not report.complete
        assert report.compacted == 1
        assert generations(store)[:2] == [1, 0]
        assert not list((tmp_path / "s" / "journal").glob("*.tmp"))
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        report = store.compact(bytes_per_second=10**9, progress=lambda *at: told.append(at))
        assert report.complete
        assert told[-1][0] == told[-1][1]
        assert_reads(store, blocks)
        for bad in (0, -1):
            with pytest.raises(InvalidInputError):
                store.compact(bytes_per_second=bad)


def test_commits_and_reads_go_on_meanwhile(tmp_path: Path) -> None:
    blocks = filled(tmp_path / "s")
    more = chain_of(blocks[-1], 40)
    failures: list[BaseException] = []
    with opened(tmp_path / "s") as store, holdfast.open(tmp_path / "s", read_only=True) as follower:
        done = threading.Event()

        def read() -> None:
            try:
                while not done.is_set():
                    assert_reads(store, blocks[::7])
                    assert_reads(follower, blocks[::11])
            except BaseException as error:  # noqa: BLE001  # shown by the test
                failures.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        added = iter(more)

        def step(at: int, total: int) -> None:
            block = next(added, None)
            if block is not None:
                store.add(block)

        store.compact(progress=step)
        store.compact(progress=step)
        done.set()
        reader.join()
        assert not failures
        for block in added:
            store.add(block)
        follower.refresh()
        assert_reads(store, blocks + more)
        assert_reads(follower, blocks + more)
    assert verify_store(tmp_path / "s", level="full").ok


def test_verification_does_not_take_another_file_for_the_one_it_knew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "Packer", partial(Packer, extent_bytes=4096))
    parent: Block | None = None
    with opened(tmp_path / "s") as store:
        for number in range(DEPTH + 6):
            parent = make(parent, number, body=noise(number, 20_000).hex().encode())
            store.add(parent)
    resume = tmp_path / "seen.json"
    assert verify_store(tmp_path / "s", resume=resume).ok
    with opened(tmp_path / "s") as store:
        store.compact()
    path = tmp_path / "s" / "journal" / "0000000003.seg"
    good = path.read_bytes()
    middle = len(good) // 2  # neither the extent of the header nor that of the seal, which an open reads
    path.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
    assert not verify_store(tmp_path / "s", resume=resume).ok
    path.write_bytes(good)
    assert verify_store(tmp_path / "s", resume=resume).ok
    assert any("not read again" in note for note in verify_store(tmp_path / "s", resume=resume).notes)


@pytest.mark.parametrize("offset", [100, 4000])  # in the hash of its header, in a frame
def test_a_damaged_segment_is_left_and_named_and_the_others_are_compacted(tmp_path: Path, offset: int) -> None:
    filled(tmp_path / "s")
    path = tmp_path / "s" / "journal" / "0000000002.seg"
    heard: list[holdfast.Event] = []
    with opened(tmp_path / "s") as store:
        good = path.read_bytes()
        data = bytearray(good)
        data[offset] ^= 1
        path.write_bytes(data)
        with holdfast.on_event(heard.append, names=["corruption_found"]) as subscription:
            report = store.compact()
            assert subscription.wait(10)
        assert (report.damaged, report.complete, len(heard)) == ((2,), True, 1)
        assert report.as_dict()["damaged"] == [2]
        assert path.read_bytes() == data
        assert generations(store)[:3] == [1, 0, 1]
        compactions = store._looked_after().compactions
        assert not compactions.due_in_background()  # not read over and over
        path.write_bytes(good)
        report = store.compact()
        assert (report.compacted, report.damaged) == (1, ())
    assert verify_store(tmp_path / "s", level="full").ok


def test_a_full_disk_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = filled(tmp_path / "s")

    def full(self: Packer, **more: object) -> bytes:
        raise OutOfSpace("no room")

    with opened(tmp_path / "s") as store:
        monkeypatch.setattr(Packer, "finish", full)
        with pytest.raises(OutOfSpace):
            store.compact()
        monkeypatch.undo()
        assert_reads(store, blocks)
        store.add(chain_of(blocks[-1], 1)[0])
    assert not list((tmp_path / "s" / "journal").glob("*.tmp"))


def test_a_reader_cannot_compact(tmp_path: Path) -> None:
    filled(tmp_path / "s", 10)
    with holdfast.open(tmp_path / "s", read_only=True) as store, pytest.raises(ReadOnlyError):
        store.compact()


def test_a_store_in_memory_and_an_empty_one_are_fine() -> None:
    with holdfast.open("memory:", settings=quick(compression="none", max_reorg_depth=DEPTH)) as store:
        assert store.compact().compacted == 0
        blocks = chain_of(None, 60)
        for block in blocks:
            store.add(block)
        assert store.compact().compacted > 0
        assert_reads(store, blocks)


# -- backups ---------------------------------------------------------------------------------------------------------


def test_a_backup_of_a_compacted_store_is_incremental_and_the_same(tmp_path: Path) -> None:
    blocks = filled(tmp_path / "s")
    place = repository(tmp_path / "r")
    first = backup(tmp_path / "s", place)
    with opened(tmp_path / "s") as store:
        store.compact()
    second = backup(tmp_path / "s", place)
    assert second.segments[: len(first.segments)] == first.segments
    other = repository(tmp_path / "other")
    third = backup(tmp_path / "s", other, check=True)
    assert [entry.sha256 for entry in third.segments] == [entry.sha256 for entry in second.segments]
    assert check(other, third.name).ok
    with opened(restored(other, third.name, tmp_path / "t")) as store:
        assert_reads(store, blocks)
        assert set(generations(store)) == {0}
    with opened(restored(other, third.name, tmp_path / "cut", to_height=40)) as store:
        assert store.tip is not None
        assert store.tip.height == 40
    assert verify_store(tmp_path / "t", level="full").ok


def test_small_stores_of_the_backup_tests_compact_too(tmp_path: Path) -> None:
    blocks = grown(tmp_path / "s", 40)
    with open_quick(tmp_path / "s") as store:
        store.finalize(blocks[-1].height)
        assert store.compact().complete
    assert verify_store(tmp_path / "s", level="views").ok


# -- in the background -------------------------------------------------------------------------------------------------


def test_an_open_store_compacts_by_itself_if_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_LOOK_SECONDS", 0.01)
    blocks = filled(tmp_path / "s")
    done = threading.Event()
    run = Compactions.run_in_background

    def noted(self: Compactions, keep_going: Callable[[], bool]) -> None:
        run(self, keep_going)
        done.set()

    monkeypatch.setattr(Compactions, "run_in_background", noted)
    with opened(tmp_path / "s", compact="on") as store:
        assert done.wait(30)
        assert sum(generations(store)) > 4
        assert_reads(store, blocks)
        assert store.statistics()["upkeep"]["failure"] is None  # type: ignore[index]
    with opened(tmp_path / "s") as store:
        assert not store.compact(dry_run=True).compacted


def test_the_background_goes_on_after_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_LOOK_SECONDS", 0.001)
    filled(tmp_path / "s")
    failures = [OutOfSpace("no room"), OutOfSpace("no room")]
    done = threading.Event()
    run, pack = Compactions.run_in_background, Packer.finish

    def full(self: Packer, **more: Any) -> bytes:
        if failures:
            raise failures.pop()
        return pack(self, **more)

    def noted(self: Compactions, keep_going: Callable[[], bool]) -> None:
        run(self, keep_going)
        done.set()

    monkeypatch.setattr(Packer, "finish", full)
    monkeypatch.setattr(Compactions, "run_in_background", noted)
    heard: list[holdfast.Event] = []
    with (
        holdfast.on_event(heard.append, names=["upkeep_failed"]) as subscription,
        opened(tmp_path / "s", compact="on") as store,
    ):
        assert done.wait(30)
        assert sum(generations(store)) > 4
        assert subscription.wait(10)
    assert [event.code for event in heard] == ["out_of_space"]  # told once
    with opened(tmp_path / "s") as store:
        assert store.statistics()["upkeep"]["failure"] is None  # type: ignore[index]


def test_the_background_looks_only_when_something_changed(tmp_path: Path) -> None:
    filled(tmp_path / "s")
    with opened(tmp_path / "s") as store:
        compactions = Compactions(writer_backend(store))
        assert compactions.due_in_background()
        assert not compactions.due_in_background()
        compactions.run_in_background(lambda: False)
        assert set(generations(store)) == {0}
        with compactions.lock:
            compactions.run_in_background(lambda: True)
        assert set(generations(store)) == {0}
        compactions.run_in_background(lambda: True)
        assert sum(generations(store)) > 4
