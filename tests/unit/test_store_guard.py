"""Before the disk is full nothing more is added; what ends the shortage still fits, and then it goes on by itself."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import holdfast
from holdfast import Store
from holdfast._fs import RealFileSystem, Space
from holdfast.errors import OutOfSpace, Recovery
from holdfast.store.guard import DiskGuard
from tests.unit.state_support import assert_tip, commit
from tests.unit.store_support import quick

MIB = 1024 * 1024
TOTAL = 100 * MIB
RESERVE = 4 * MIB
ME = b"validator"


class SmallDisk(RealFileSystem):
    """The real one, but for what it says of its room."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.looks = 0

    def space(self, path: Path) -> Space:
        self.looks += 1
        return Space(self.free, TOTAL)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def opened(path: Path, fs: SmallDisk, **fields: object) -> Store:
    settings = quick(**({"disk_reserve_bytes": RESERVE, "max_reorg_depth": 2} | fields))
    return holdfast.open(f"sqlite:{path}", settings=settings, fs=fs)


def test_nothing_is_added_below_the_reserve_and_it_goes_on_by_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="holdfast")
    fs = SmallDisk(50 * MIB)
    with opened(tmp_path / "store", fs) as store:
        values: dict[bytes, bytes] = {b"a": b"1"}
        commit(store, 0, {b"a": b"1"})
        store._backend.writer.guard._looked = float("-inf")  # type: ignore[attr-defined]  # the second is over
        fs.free = RESERVE
        for _ in range(2):
            with pytest.raises(OutOfSpace) as caught:
                commit(store, 1, {b"a": b"2"})
            assert caught.value.remedy is not None
            assert caught.value.recovery is Recovery.RETRY
            with pytest.raises(OutOfSpace):
                store.documents("notes").put(b"key", b"value")
        assert_tip(store, values)
        assert store.statistics()["disk"] == {"free_bytes": RESERVE, "reserve_bytes": RESERVE, "low": True}
        store.safety.save(ME, (1,), b"vote")
        store.finalize(0)
        store.flush()
        store.prune(blocks=1)
        fs.free = RESERVE + RESERVE // 4
        with pytest.raises(OutOfSpace):
            commit(store, 1, {b"a": b"2"})  # too little above the reserve to begin again
        fs.free = RESERVE * 2
        commit(store, 1, {b"a": b"2"})
        assert not store.statistics()["disk"]["low"]  # type: ignore[index]
        store.documents("notes").put(b"key", b"value")
        values[b"a"] = b"2"
    fs.free = 0
    with opened(tmp_path / "store", fs) as store:  # a full disk is no reason not to read
        assert_tip(store, values)
        assert store.safety.load(ME).position == (1,)
        with pytest.raises(OutOfSpace):
            commit(store, 2, {b"a": b"3"})
    names = [getattr(record, "holdfast_event", "") for record in caplog.records]
    events = [name for name in names if name.startswith("disk")]
    assert events == ["disk_low", "disk_ok", "disk_low"]


def test_the_reserve_is_a_part_of_a_small_disk(tmp_path: Path) -> None:
    guard = DiskGuard(SmallDisk(TOTAL // 20 + 1000), tmp_path, 10**12)
    guard.check(400)
    with pytest.raises(OutOfSpace):
        guard.check(600)
    assert guard.reserve_bytes == TOTAL // 20


def test_what_waits_for_a_flush_counts(tmp_path: Path) -> None:
    guard = DiskGuard(SmallDisk(RESERVE + 4 * MIB), tmp_path, RESERVE)
    assert not guard.tight(0)
    assert not guard.tight(MIB // 2)
    assert guard.tight(MIB)
    guard.check(MIB // 4, MIB)
    with pytest.raises(OutOfSpace):
        guard.check(MIB // 2 + 1, MIB)
    assert guard.low


def test_near_the_end_of_the_disk_nothing_waits(tmp_path: Path) -> None:
    fs = SmallDisk(50 * MIB)
    with opened(tmp_path / "store", fs) as store:
        views = store._backend.writer.views  # type: ignore[attr-defined]
        commit(store, 0, {b"a": bytes(MIB)})
        commit(store, 1, {b"b": bytes(MIB)})
        assert views.waiting_bytes > 2 * MIB
        store._backend.writer.guard._looked = float("-inf")  # type: ignore[attr-defined]  # the second is over
        fs.free = RESERVE + 5 * MIB  # not enough to let three times as much wait, and enough without
        commit(store, 2, {b"c": b"1"})
        assert views.waiting_bytes < MIB
        assert_tip(store, {b"a": bytes(MIB), b"b": bytes(MIB), b"c": b"1"})


def test_without_room_for_a_flush_the_views_wait_and_the_store_goes_on_by_itself(tmp_path: Path) -> None:
    fs = SmallDisk(50 * MIB)
    values = {b"%d" % number: bytes([number]) * MIB for number in range(4)}
    with opened(tmp_path / "store", fs) as store:
        commit(store, 0, values)
        store._backend.writer.guard._looked = float("-inf")  # type: ignore[attr-defined]  # the second is over
        fs.free = RESERVE + 3 * MIB
        for ask in (store.flush, lambda: commit(store, 1, {b"b": b"1"})):
            with pytest.raises(OutOfSpace) as caught:
                ask()
            assert caught.value.recovery is Recovery.RETRY
        assert_tip(store, values)
        store.safety.save(ME, (1,), b"vote")
        store.finalize(0)
        fs.free = 50 * MIB
        store.flush()
        commit(store, 1, {b"b": b"1"})
        values[b"b"] = b"1"
        fs.free = 0
    with opened(tmp_path / "store", fs) as store:
        assert_tip(store, values)
        assert store.safety.load(ME).position == (1,)


def test_without_a_reserve_nobody_looks(tmp_path: Path) -> None:
    fs = SmallDisk(0)
    DiskGuard(fs, tmp_path, 0).check(10**9)
    assert fs.looks == 0


def test_the_device_is_looked_at_once_a_second_or_when_the_room_is_used_up(tmp_path: Path) -> None:
    fs, clock = SmallDisk(RESERVE + MIB), Clock()
    guard = DiskGuard(fs, tmp_path, RESERVE, clock=clock)
    for _ in range(10):
        guard.check(MIB // 20)
    assert fs.looks == 1
    guard.check(MIB // 20)  # twice its size does not fit into what was there at the last look
    assert fs.looks == 2
    clock.now += 1.0
    guard.check(1)
    assert fs.looks == 3
    fs.free = RESERVE
    guard.check(1)  # not known yet
    clock.now += 1.0
    with pytest.raises(OutOfSpace):
        guard.check(1)


def test_a_store_in_memory_has_no_disk() -> None:
    with holdfast.open("memory:", settings=quick(disk_reserve_bytes=1 << 40)) as store:
        commit(store, 0, {b"a": b"1"})
        assert store.statistics()["disk"] == {"free_bytes": 0, "reserve_bytes": 0, "low": False}
