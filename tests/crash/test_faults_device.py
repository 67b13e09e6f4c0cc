"""Devices that lie, syncs that fail and clocks that jump, on the simulated machine."""

from __future__ import annotations

import errno
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from holdfast.errors import CommitLoss, CorruptionError, HoldfastError, MissingFile
from holdfast.journal import recovery
from holdfast.journal.journal import Journal
from holdfast.recovery import verify_store
from holdfast.recovery.resting import read_marks
from holdfast.store.opening import read_identity
from holdfast.testing.crashfs import Fault, Keep
from holdfast.testing.machine import Machine, new_machine
from tests.crash.machine import Life, check_image, images
from tests.crash.support import Model, Picture, check_deep, check_frontier, picture_of, report

ALL_FROM = 200
Patch = pytest.MonkeyPatch


# -- a device that acknowledges syncs and does nothing --------------------------------------------------------------


def lied_to(root: Path, honest: int, more: int) -> tuple[Machine, Model, list[Picture]]:
    """A machine that syncs for ``honest`` operations and lies about ``more``; what the store was after each."""
    life = Life(new_machine(root, seed=honest))
    with life.machine.running():
        life.open()
        life.work(honest)
        if honest % 3 == 0:
            life.flush()
        synced = {path: disk.synced for path, disk in life.machine.disks.items()}
        pictures = [life.model.picture()]
        life.machine.fs.lying_sync = True
        for count in range(more):
            life.work(1)
            pictures.append(life.model.picture())
            if count % 4 == 2:
                life.flush()
        life.machine.abandon()
    if honest % 2:  # the engine lies on the same device
        for path, disk in life.machine.disks.items():
            disk.synced = synced.get(path, 0)
    return life.machine, life.model, pictures


def judge_lies(machine: Machine, model: Model, pictures: list[Picture]) -> str:
    """Refused, or the content at some moment since the lies began; older only where the watermark is lost, too."""
    life = Life(machine, model)
    with machine.running():
        try:
            mark, _ = read_marks(machine.fs, machine.root, read_identity(machine.fs, machine.root).salt)
            life.open()
        except CommitLoss:
            return "commit loss"
        except (CorruptionError, MissingFile):
            return "refused"
        assert life.store is not None
        found = picture_of(life.store)
        assert found in pictures, "what is there is the content of no moment"
        last = life.store.statistics()["journal"]["durable_seq"]  # type: ignore[index]
        life.abandon()
    assert mark.seq <= last, f"frames up to {mark.seq} were durable, {last} are there, and nothing was said"
    return "all there" if found == pictures[-1] else "back at what was synced"


def explore_lies(root: Path, rounds: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    for number in range(rounds):
        machine, model, pictures = lied_to(root, 6 + number % 9, 3 + number % 7)
        for at in range(10):
            keep: Keep = "none" if at == 0 else "all" if at == 1 else "random"
            counts["images"] += 1
            counts[judge_lies(machine.crash(random.Random(number * 100 + at), keep), model, pictures)] += 1
    return counts


@pytest.mark.crash
def test_syncs_that_did_nothing_are_detected(tmp_path: Path, crash_rounds: int) -> None:
    counts = explore_lies(tmp_path, 12 if crash_rounds < ALL_FROM else 300)
    least = {"commit loss": 5, "back at what was synced": 3}
    report("lying syncs", counts, at_least=least, rows={6: "images"})


@pytest.mark.crash
def test_without_the_watermark_lies_would_pass(tmp_path: Path, monkeypatch: Patch) -> None:
    """A positive control."""
    monkeypatch.setattr(recovery, "_judge", lambda *_args, **_kwargs: None)
    monkeypatch.setattr(recovery, "_check_mark", lambda *_args, **_kwargs: None)
    with pytest.raises(AssertionError, match=r"nothing was said|of no moment"):
        explore_lies(tmp_path, 12)


# -- a sync that fails -----------------------------------------------------------------------------------------------


def failing(root: Path, at: int, kind: str, code: int) -> Life:
    """A life in which the ``at``-th operation of ``kind`` fails, once."""
    machine = new_machine(root, seed=at, faults=(Fault(at, error=code, only=frozenset({kind})),))
    life = Life(machine)
    life.live_with_errors()
    assert machine.fs.hits, f"{kind} {at} was never made"
    machine.fs.faults = ()
    return life


def explore_failed_syncs(root: Path, kind: str, stride: int) -> Counter[str]:
    whole = Life(new_machine(root))
    whole.live()
    counts: Counter[str] = Counter()
    for at in range(1, whole.machine.fs.counts[kind] + 1, stride):
        life = failing(root, at, kind, errno.EIO)
        counts["failed"] += 1
        counts["raised"] += bool(life.errors)
        counts["poisoned"] += life.poisoned
        for image in images(life.machine, at, 1):
            counts["images"] += 1
            check_image(image, life.model)
    return counts


@pytest.mark.crash
@pytest.mark.parametrize("kind", ["sync", "sync_directory", "apply"])
def test_a_failed_sync_is_never_forgotten(kind: str, tmp_path: Path, crash_rounds: int) -> None:
    """It raises, nothing more is written, and a power cut right after it takes nothing that was acknowledged."""
    counts = explore_failed_syncs(tmp_path, kind, (6 if kind == "sync" else 3) if crash_rounds < ALL_FROM else 1)
    least = {"failed": 1, "raised": 1} | ({"poisoned": 5} if kind == "sync" else {})
    report(f"EIO on {kind}", counts, at_least=least, rows={13: "failed"})


def tries_again(patch: Patch) -> None:
    """What ``fsync`` must never be: done again after it failed, when the pages are gone and it succeeds."""
    sync = Journal._sync_file

    def again(self: Journal, file: object) -> None:
        try:
            sync(self, file)  # type: ignore[arg-type]
        except HoldfastError:
            sync(self, file)  # type: ignore[arg-type]

    patch.setattr(Journal, "_sync_file", again)


@pytest.mark.crash
def test_a_sync_that_is_tried_again_is_found_out(tmp_path: Path, monkeypatch: Patch) -> None:
    """A positive control."""
    tries_again(monkeypatch)
    with pytest.raises((AssertionError, HoldfastError)):
        explore_failed_syncs(tmp_path, "sync", 2)


# -- clocks ----------------------------------------------------------------------------------------------------------

YEARS = {"1970": 0, "2000": 946_684_800, "2038": 2_147_483_647, "2100": 4_102_444_800}


class Clock:
    """A wall clock that jumps each time it is asked."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.jumps = 0

    def time_ns(self) -> int:
        self.jumps += 1
        base = self._rng.choice([*YEARS.values(), self._rng.randrange(2**32)])
        return (base + self._rng.randint(-2, 2) if base else 0) * 10**9

    def install(self, patch: Patch) -> None:
        patch.setattr(time, "time_ns", self.time_ns)
        patch.setattr(time, "time", lambda: self.time_ns() / 1e9)


def live_without_time(root: Path, seed: int) -> tuple[Life, int]:
    """A whole life under a clock that jumps, on a machine of its own; how often it jumped."""
    life = Life(new_machine(root, seed=seed))
    clock = Clock(seed)
    with pytest.MonkeyPatch.context() as patch:
        clock.install(patch)
        life.live()
        check_image(life.machine.crash(random.Random(seed), "none"), life.model.copy())
    return life, clock.jumps


@pytest.mark.crash
def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, crash_rounds: int) -> None:
    """Back, ahead, to 1970, 2000, 2038 and 2100: order, reorgs, pruning and recovery ask no clock."""
    counts: Counter[str] = Counter()
    for seed in range(4 if crash_rounds < ALL_FROM else 60):
        life, jumps = live_without_time(tmp_path, seed)
        counts["lives"] += 1
        counts["jumps"] += jumps
        with life.machine.running():
            again = Life(life.machine.crash(random.Random(seed), "all"), life.model)
        with again.machine.running():
            again.open()
            assert again.store is not None
            check_frontier(again.store, life.model, ahead=0)
            check_deep(again.store, life.model, newest=10)
            again.store.prune(blocks=1, every=4)
            again.close()
            assert verify_store(again.machine.root, level="full", fs=again.machine.fs).ok
    report("clocks", counts, at_least={"lives": 4, "jumps": 200}, rows={15: "jumps"})


@pytest.mark.crash
def test_an_order_that_asks_the_clock_is_found_out(tmp_path: Path, monkeypatch: Patch) -> None:
    """A positive control: frames are taken in the order of their times."""
    frames = Journal.frames

    def by_time(self: Journal, *args: object, **more: object) -> object:
        return iter(sorted(frames(self, *args, **more), key=lambda frame: frame.time_us))  # type: ignore[arg-type]

    monkeypatch.setattr(Journal, "frames", by_time)
    with pytest.raises((AssertionError, HoldfastError)):
        assert [live_without_time(tmp_path, seed) for seed in range(6)]
