"""EIO and ENOSPC at every operation of backup, checkpoint, restore and migration."""

from __future__ import annotations

import contextlib
import errno
import random
from collections import Counter
from pathlib import Path

import pytest

from holdfast._fs import File, NewFile
from holdfast.backup.pieces import Syncing
from holdfast.errors import HoldfastError, OutOfSpace, PoisonedError
from holdfast.testing.crashfs import Fault
from holdfast.testing.explorer import Acks
from holdfast.testing.machine import Machine, new_machine
from tests.crash.explorer_backups import COPIES, Copied
from tests.crash.explorer_workloads import Explored
from tests.crash.machine import images
from tests.crash.support import report
from tests.unit.backup_support import small_segments

__all__ = ["small_segments"]

ALL_FROM = 200
POINTS = 28
"""So many operations of each workload fail in the quick tier."""


def prepared(workload: Explored, root: Path) -> Machine:
    """A machine on which the workload can begin."""
    machine = new_machine(root)
    with machine.running():
        workload.prepare(machine)
    machine.abandon()
    return machine.settled()


def run(workload: Explored, machine: Machine, acks: Acks) -> HoldfastError | None:
    """The workload, up to a typed error; whatever else it raises fails the test."""
    try:
        with machine.running():
            workload(machine, acks)
    except HoldfastError as error:
        return error
    finally:
        machine.abandon()
    return None


def holds(workload: Explored, machine: Machine, acked: int) -> None:
    """What was acknowledged is there and whole, and everything can be done again."""
    with machine.running():
        if isinstance(workload, Copied):
            workload.goes_on(machine)
        else:
            assert workload.check(machine) >= acked
    machine.abandon()


def explore(workload: Explored, root: Path, code: int, persistent: bool, points: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    machine = prepared(workload, root / "0")
    assert run(workload, machine, Acks()) is None
    total = machine.fs.operations
    chosen = range(1, total + 1) if points >= total else sorted(random.Random(code).sample(range(1, total + 1), points))
    for at in chosen:
        machine = prepared(workload, root / str(at))
        machine.fs.faults = (Fault(at, error=code, persistent=persistent, torn=True),)
        acks = Acks()
        error = run(workload, machine, acks)
        assert machine.fs.hits, f"operation {at} was never made"
        counts["failed"] += 1
        counts["raised"] += error is not None
        counts["out of space"] += isinstance(error, OutOfSpace)
        assert error is None or code != errno.ENOSPC or isinstance(error, OutOfSpace | PoisonedError), repr(error)
        machine.fs.faults = ()
        for image in images(machine, at, 1):
            counts["images"] += 1
            holds(workload, image, acks.acknowledged)
    return counts


@pytest.mark.crash
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("name", COPIES)
def test_an_error_at_every_operation_of_a_copy(
    name: str, code: int, tmp_path: Path, crash_rounds: int, small_segments: None
) -> None:
    """Typed; what was there stays whole, what was acknowledged is there, and the next run ends well."""
    counts: Counter[str] = Counter()
    for persistent in (False, True):
        place = tmp_path / f"{persistent}"
        points = POINTS // 2 if crash_rounds < ALL_FROM else 10_000
        counts += explore(COPIES[name](place), place, code, persistent, points)
    least = {"failed": POINTS // 2, "raised": POINTS // 4, "images": POINTS}
    row = 11 if code == errno.ENOSPC else 12
    report(f"{name}, {errno.errorcode[code]}", counts, at_least=least, rows={row: "failed", 22: "failed"})


@pytest.mark.crash
@pytest.mark.parametrize("name", ["checkpoint", "restore"])
def test_a_failed_sync_that_is_passed_over_is_found_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_segments: None
) -> None:
    """A positive control."""
    sync = NewFile.sync

    def new_file(self: NewFile) -> None:
        with contextlib.suppress(HoldfastError):
            sync(self)

    def fetched(_: Syncing, file: File, path: Path) -> None:
        with contextlib.suppress(HoldfastError):
            file.sync()
        file.close()

    monkeypatch.setattr(NewFile, "sync", new_file)
    monkeypatch.setattr(Syncing, "_sync", fetched)
    with pytest.raises((AssertionError, HoldfastError)) as caught:
        explore(COPIES[name](tmp_path), tmp_path, errno.EIO, persistent=False, points=200)
    assert "was never made" not in str(caught.value)
