"""A crash, a power cut or an error at every operation of a journal's life loses nothing acknowledged."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator

import pytest

from holdfast.errors import HoldfastError
from holdfast.journal import Journal
from holdfast.testing.crashfs import CrashableFileSystem, Fault, SimulatedCrash
from tests.crash.journal_workload import DATA, OPTIONS, SALT, STORE_ID, check, operations, run_with
from tests.crash.matrix import met

TOTAL = operations()
QUICK_STRIDE = 9


def images(fs: CrashableFileSystem, seed: int, count: int) -> Iterator[CrashableFileSystem]:
    yield fs.crash(random.Random(seed), keep="all")
    yield fs.crash(random.Random(seed), keep="none")
    for index in range(count):
        yield fs.crash(random.Random(seed * 1000 + index), keep="random")


def explore(points: range, *, count: int, journal_class: type[Journal] = Journal) -> dict[str, int]:
    seen = {"states": 0, "discarded": 0, "created": 0}
    for at in points:
        life, fs = run_with(Fault(at, torn=True), seed=at, journal_class=journal_class)
        assert fs.hits == 1, "the fault was never met"
        for image in images(fs, at, count):
            recovery = check(life, image)
            seen["states"] += 1
            seen["created"] += life.created
            seen["discarded"] += bool(recovery and recovery.discarded)
    return seen


def test_power_cut_at_some_operations() -> None:
    seen = explore(range(1, TOTAL + 1, QUICK_STRIDE), count=1)
    assert seen["created"] > 10


@pytest.mark.crash
def test_power_cut_at_every_operation() -> None:
    seen = explore(range(1, TOTAL + 1), count=12)
    print(seen)
    met(2, seen["states"])
    met(3, seen["discarded"])
    assert seen["states"] == TOTAL * 14
    assert seen["discarded"] > 10, "no torn tail was ever made: the test has no teeth"


def explore_recovery(points: range, *, inner_stride: int) -> int:
    """Crash in the recovery after a crash, at every operation of it."""
    states = 0
    for at in points:
        life, fs = run_with(Fault(at, torn=True), seed=at)
        image = fs.crash(random.Random(at), keep="random")
        files, directories = image.files(), image.directories()
        inner = 1
        while True:
            again = CrashableFileSystem.from_files(files, directories)
            again.faults = (Fault(inner, torn=True),)
            try:
                journal, _ = Journal.open(again, DATA, store_id=STORE_ID, salt=SALT, options=OPTIONS)
            except SimulatedCrash:
                for third in images(again, at * 100 + inner, 2):
                    check(life, third)
                    states += 1
            except HoldfastError:
                assert not life.created
                break
            else:
                journal.close(clean=False)
                break
            inner += inner_stride
    return states


@pytest.mark.crash
def test_crash_in_recovery() -> None:
    states = explore_recovery(range(1, TOTAL + 1), inner_stride=1)
    print(states)
    met(4, states)
    assert states > 500


def inject(points: range, error: int, *, persistent: bool, only: frozenset[str] = frozenset()) -> tuple[int, int]:
    hits = poisoned = 0
    for at in points:
        life, fs = run_with(Fault(at, error=error, persistent=persistent, torn=True, only=only), seed=at)
        hits += fs.hits > 0
        if life.journal is not None and life.journal.poisoned is not None:
            poisoned += 1
            before = fs.operations
            with pytest.raises(HoldfastError):
                life.journal.append([])
            with pytest.raises(HoldfastError):
                life.journal.sync()
            assert life.journal.durable_seq == life.journal.appended_seq
            life.journal.close()
            assert fs.operations == before, "a poisoned journal wrote something"
        for image in images(fs, at, 2):
            check(life, image)
    return hits, poisoned


@pytest.mark.crash
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_error_at_every_operation(error: int, persistent: bool) -> None:
    hits, poisoned = inject(range(1, TOTAL + 1), error, persistent=persistent)
    print(hits, poisoned)
    met(11 if error == errno.ENOSPC else 12, hits)
    assert hits == TOTAL
    assert poisoned > 20


def test_error_at_some_operations() -> None:
    hits, _ = inject(range(5, TOTAL + 1, QUICK_STRIDE * 2), errno.EIO, persistent=False)
    assert hits > 5


# -- positive controls: each planted bug must be found ---------------------------------------------------------------


class NeverSyncs(Journal):
    def _sync_file(self, file: object) -> None:
        """Nothing is synced."""


class AcksBeforeSync(Journal):
    def sync(self, seq: int | None = None) -> int:
        return self.appended_seq


class WatermarkBeforeSync(Journal):
    def sync(self, seq: int | None = None) -> int:
        head = self._head
        assert self._watermark is not None
        self._watermark.write(head.seq, head.digest, head.segment, head.end, head.tip)
        self._watermark.sync()
        return super().sync(seq)


class SealNotSynced(Journal):
    def _seal(self) -> None:
        segment, file = self._segment, self._file
        assert segment is not None
        assert file is not None
        real, self._sync_file = self._sync_file, lambda file: None  # type: ignore[method-assign]
        try:
            super()._seal()
        finally:
            self._sync_file = real  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize("bug", [NeverSyncs, AcksBeforeSync, WatermarkBeforeSync, SealNotSynced])
def test_planted_bug_is_found(bug: type[Journal]) -> None:
    with pytest.raises((AssertionError, HoldfastError)):
        explore(range(1, TOTAL + 1), count=6, journal_class=bug)
