"""Pruning cut off anywhere: every height is right or refused, and the next run ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import errno
import random
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast import Store
from holdfast.errors import HoldfastError, PrunedError
from holdfast.recovery import verify_store
from holdfast.store import pruning
from holdfast.testing.crashfs import Fault, SimulatedCrash
from holdfast.testing.machine import Machine, new_machine
from holdfast.views.api import HistoryRecord
from holdfast.views.keeper import HistoryKeeper
from holdfast.views.views import Views
from tests.crash.machine import images
from tests.crash.support import ENGINES, Agent, Model, Place, check_frontier, check_state, open_store, report
from tests.unit.pruning_support import Rows, history_rows, rows_too_many, small_batches
from tests.unit.state_support import Values, after, commit, root_of, writer_backend
from tests.unit.store_support import quick

ALL_FROM = 200
BLOCKS = 26
DEPTH = 4
POLICY: dict[str, Any] = {"blocks": 3, "every": 6}
States = list[Values]


def changes_of(number: int) -> dict[bytes, bytes | None]:
    """What block ``number`` changes: some keys often, some seldom, one only once."""
    rng = random.Random(number)
    changes: dict[bytes, bytes | None] = {b"often": b"%d" % number}
    for _ in range(4):
        changes[b"key/%d" % rng.randrange(9)] = b"%d" % number * rng.randrange(1, 9)
    if number % 5 == 2:
        changes[b"seldom"] = b"%d" % number
    if number == 1:
        changes[b"once"] = b"and never again"
    if number == 20:
        changes[b"seldom"] = None
    return changes


STATES: States = []
for _number in range(BLOCKS + 8):
    STATES.append(after(STATES[-1] if STATES else {}, changes_of(_number)))


class Pruned:
    """A machine with a store of a long history, and the run that prunes it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.store: Store | None = None
        self.errors: list[HoldfastError] = []

    def open(self) -> Store:
        fields: dict[str, Any] = {"max_reorg_depth": DEPTH, "history_blocks": 0, "overlay_rows_max": 1_000_000}
        self.machine.fs.make_directory(self.machine.root)
        store = holdfast.open(f"sqlite:{self.machine.root}", settings=quick(**fields), fs=self.machine.fs)
        self.store = self.machine.adopt(store)
        return store

    def grow(self, count: int) -> None:
        assert self.store is not None
        for _ in range(count):
            height = 0 if self.store.tip is None else self.store.tip.height + 1
            commit(self.store, height, changes_of(height))

    def abandon(self) -> None:
        """The process is gone."""
        self.store = None
        self.machine.abandon()

    def close(self) -> None:
        store, self.store = self.store, None
        assert store is not None
        store.close()

    def live(self) -> None:
        """Open, prune in parts, commit, prune more, close: up to the crash or the error."""
        try:
            store = self.open()
            left = iter(range(4))
            store.prune(**POLICY, keep_going=lambda: next(left, None) is not None)
            store.prune(**POLICY)
            self.grow(2)
            store.prune(blocks=1, every=12)
            self.grow(1)
            store.prune(blocks=1, every=12)
            self.close()
        except SimulatedCrash:
            pass
        except HoldfastError as error:
            self.errors.append(error)
        finally:
            with contextlib.suppress(SimulatedCrash, HoldfastError):
                self.abandon()


def grown(root: Path) -> Machine:
    """A machine at rest, with the store before it is pruned."""
    life = Pruned(new_machine(root))
    with life.machine.running():
        life.open()
        life.grow(BLOCKS)
        life.close()
    return life.machine


def restarted(machine: Machine, seed: int, faults: tuple[Fault, ...] = ()) -> Machine:
    """The same machine again, with faults to come; operations count from 1."""
    again = machine.crash(random.Random(seed), "all")
    again.fs.faults = faults
    return again


def check(machine: Machine) -> Rows:
    """The machine boots: heights are right, the run is finished; the rows of the history, and no row is wrong."""
    life = Pruned(machine)
    with machine.running(), small_batches():
        store = life.open()
        check_heights(store)
        while not store.prune(blocks=1, every=12, keep_going=lambda: False).complete:
            check_heights(store)
        life.grow(BLOCKS + 4 - len(list(store.blocks.canonical())))
        store.prune(blocks=1, every=12)
        check_heights(store)
        engine = writer_backend(store).opened.engine
        rows, record = history_rows(engine), writer_backend(store).views.history
        assert record is not None
        assert not rows_too_many(rows, record)
        life.close()
        result = verify_store(machine.root, level="views", fs=machine.fs)
        assert result.ok, result.as_dict()
    return rows


def check_heights(store: Store) -> None:
    """The tip has the root of the journal; every height is as it was, or refused."""
    tip = store.tip
    assert tip is not None
    assert store.state.root == root_of(STATES[tip.height])
    record = writer_backend(store).views.history
    assert record is not None
    for height in range(tip.height + 1):
        try:
            found = dict(store.state.at(height).scan())
        except PrunedError:
            assert not record.has(height)
            assert height < tip.height - DEPTH
        else:
            assert found == STATES[height], f"height {height}, record {record}"


def operations(machine: Machine) -> tuple[int, Rows]:
    """How many operations the life has, and the rows it ends with."""
    life = Pruned(restarted(machine, 1))
    with life.machine.running(), small_batches():
        life.live()
    assert not life.errors
    return life.machine.fs.operations, check(life.machine)


def explore(machine: Machine, points: range, count: int, rows: Rows) -> Counter[str]:
    """A power cut at each point, and what may be left of it."""
    counts: Counter[str] = Counter()
    for at in points:
        life = Pruned(restarted(machine, at, (Fault(at, torn=True),)))
        with life.machine.running(), small_batches():
            life.live()
        assert life.machine.fs.hits == 1, f"operation {at} was never made"
        counts["at " + life.machine.fs.log[-1][0]] += 1
        life.machine.fs.faults = ()
        for image in images(life.machine, at, count):
            counts["images"] += 1
            assert check(image) == rows, f"operation {at}: the rows differ from those of a whole run"
    return counts


@pytest.mark.slow
def test_power_cut_at_some_operations(tmp_path: Path) -> None:
    machine = grown(tmp_path)
    total, rows = operations(machine)
    explore(machine, range(4, total + 1, total // 10), 0, rows)


@pytest.mark.crash
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_error_at_every_operation(tmp_path: Path, code: int, crash_rounds: int) -> None:
    """A typed error; the store that is opened again goes on."""
    machine = grown(tmp_path)
    total, rows = operations(machine)
    counts: Counter[str] = Counter()
    for at in range(1, total + 1, 5 if crash_rounds < ALL_FROM else 1):
        life = Pruned(restarted(machine, at, (Fault(at, error=code, torn=True),)))
        with life.machine.running(), small_batches():
            life.live()
        counts["raised"] += bool(life.errors)
        life.machine.fs.faults = ()
        for image in images(life.machine, at, 0):
            counts["images"] += 1
            assert check(image) == rows
    row = 11 if code == errno.ENOSPC else 12
    title = f"prune, {errno.errorcode[code]}, {total} operations"
    report(title, counts, at_least={"raised": total // 10}, rows={row: "raised"})


# -- real engines, in children that are killed ------------------------------------------------------------------------

SEED = 78
OPERATIONS = 60


@pytest.mark.crash
@pytest.mark.parametrize("engine", ENGINES)
def test_killed_at_every_step(engine: str, tmp_path: Path, crash_rounds: int) -> None:
    place = Place(tmp_path / "store")
    url = f"{engine}:{place.root}"
    base: dict[str, object] = {"url": url, "seed": SEED}
    plan = ("prune", "append", "prune")
    more: dict[str, object] = {"plan": plan, "how": "work", "late": False, "warm": 0, "acked": OPERATIONS}
    counts: Counter[str] = Counter()
    with Agent() as agent:
        agent.must("template", base | {"acked": 0, "operations": OPERATIONS, "clean": True, "flush_at": 40})
        place.keep("clean")
        listed = agent.must("step", base | more | {"at": 0, "torn": False})
        names = [line[2:] for line in listed.lines if line.startswith("n ")]
        for name in ("after_record", "after_batch", "after_reclaim", "after_cleaned"):
            assert f"failpoint:store.prune.{name}" in names
        assert "engine.reclaim" in names
        rows = check_store(url, OPERATIONS + 3)
        stride = 1 if crash_rounds >= ALL_FROM else 6
        for at, name in list(enumerate(names, start=1))[::stride]:
            place.restore("clean")
            killed = agent.run("step", base | more | {"at": at, "torn": False})
            assert killed.failure is None, f"step {at} {name}: {killed.failure}"
            assert killed.signal == signal.SIGKILL, f"step {at} {name} was never reached: {killed.lines}"
            assert check_store(url, max([OPERATIONS, *killed.values("a")])) == rows, f"step {at} {name}"
            counts["killed"] += 1
    title = f"{engine}, prune, {len(names)} steps"
    report(title, counts, at_least={"killed": len(names) // stride}, rows={1: "killed"})


def check_store(url: str, acked: int) -> Rows:
    """The store holds what was acknowledged, and once more was done and pruned, no row is wrong; the history's rows."""
    model = Model(SEED)
    model.plan = {OPERATIONS + 1: "prune", OPERATIONS + 2: "append", OPERATIONS + 3: "prune"}
    model.advance(acked)
    store = open_store(url, flush_interval_seconds=3600.0, history_blocks=0)
    try:
        check_frontier(store, model)
        check_state(store, model)
        while model.number < OPERATIONS + 3:
            op = model.next_op()
            if op.block is not None:
                store.add(op.block)
            model.apply(op)
        assert store.prune(blocks=1, every=4).complete
        store.flush()
        check_state(store, model)
        record = writer_backend(store).views.history
        assert record is not None
        for height, block_hash in enumerate(model.canonical):
            if record.has(height):
                assert dict(store.state.at(height).scan()) == model.states[block_hash]
        rows = history_rows(writer_backend(store).opened.engine)
        assert not rows_too_many(rows, record)
    finally:
        store.close()
    result = verify_store(Path(url.partition(":")[2]), level="views")
    assert result.ok, result.as_dict()
    return rows


# -- positive controls: each planted bug must be found ---------------------------------------------------------------


def removes_before_the_record_is_durable(patch: pytest.MonkeyPatch) -> None:
    def change(self: HistoryKeeper, record: HistoryRecord, *, applied: bool) -> HistoryRecord:
        self.record = record
        if record.cleaned == record.floor:  # the record comes at the end only
            patch.undo()
            return self.change(record, applied=applied)
        return record

    patch.setattr(HistoryKeeper, "change", change)


def keeps_the_last_of_an_interval(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pruning._Sweep, "_answers", lambda self, key, row, base: False)


def says_cleaned_too_early(patch: pytest.MonkeyPatch) -> None:
    original = Views.set_history

    def set_history(self: Views, record: HistoryRecord) -> HistoryRecord:
        return original(self, replace(record, cleaned=record.floor))

    patch.setattr(Views, "set_history", set_history)


def forgets_what_waits_in_memory(patch: pytest.MonkeyPatch) -> None:
    original = pruning._Sweep.cleaned

    def cleaned(self: pruning._Sweep, record: HistoryRecord, height: int, *, soon: bool = True) -> HistoryRecord:
        self._waiting = []
        return original(self, record, height, soon=soon)

    patch.setattr(pruning._Sweep, "cleaned", cleaned)


@pytest.mark.slow
@pytest.mark.parametrize(
    "bug",
    [
        removes_before_the_record_is_durable,
        keeps_the_last_of_an_interval,
        says_cleaned_too_early,
        forgets_what_waits_in_memory,
    ],
)
def test_a_planted_bug_is_found(tmp_path: Path, bug: Callable[[pytest.MonkeyPatch], None]) -> None:
    machine = grown(tmp_path)
    total, rows = operations(machine)
    with pytest.raises((AssertionError, HoldfastError)):
        explore_with(bug, machine, range(6, total + 1, 3), rows)


def explore_with(bug: Callable[[pytest.MonkeyPatch], None], machine: Machine, points: range, rows: Rows) -> None:
    """As ``explore``; the bug is there until the crash."""
    for at in points:
        life = Pruned(restarted(machine, at, (Fault(at, torn=True),)))
        with life.machine.running(), small_batches(), pytest.MonkeyPatch.context() as patch:
            bug(patch)
            life.live()
        life.machine.fs.faults = ()
        for image in images(life.machine, at, 1):
            assert check(image) == rows
