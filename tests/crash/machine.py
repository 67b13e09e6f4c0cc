"""The lives of a store on the simulated machine of ``holdfast.testing``, and what every image of it must hold."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast import Store
from holdfast.errors import HoldfastError, PoisonedError
from holdfast.recovery import verify_store
from holdfast.store.backend import WriterBackend
from holdfast.testing.crashfs import SimulatedCrash
from holdfast.testing.machine import Machine, new_machine
from tests.crash.support import Model, check_deep, check_frontier, difference, open_store, perform, picture_of

SEED = 5


def open_on(machine: Machine, **more: object) -> Store:
    """The store of every crash test, on ``machine``."""
    machine.fs.make_directory(machine.root)
    url = f"sqlite:{machine.root}"
    fields: dict[str, Any] = {"flush_interval_seconds": 3600.0, "overlay_rows_max": 1_000_000} | more
    return machine.adopt(open_store(url, fs=machine.fs, **fields))


def new_model() -> Model:
    """The model of every life."""
    return Model(SEED, body_max=600)


@dataclass
class Life:
    """One run of the process: what was acknowledged, and the open store."""

    machine: Machine
    model: Model = field(default_factory=new_model)
    store: Store | None = None
    errors: list[HoldfastError] = field(default_factory=list)
    poisoned: int = 0

    def work(self, count: int) -> None:
        """So many operations, each acknowledged once it returned."""
        for _ in range(count):
            assert self.store is not None
            op = self.model.next_op()
            perform(self.store, op)
            self.model.apply(op)

    def flush(self) -> None:
        assert self.store is not None
        self.store.flush()

    def close(self) -> None:
        assert self.store is not None
        store, self.store = self.store, None
        store.close()

    def open(self) -> None:
        self.store = open_on(self.machine)

    def abandon(self) -> None:
        """The process is gone: nothing more is written."""
        self.store = None
        self.machine.abandon()

    def steps(self) -> list[Callable[[], None]]:
        """Create, work, flush, work, close; open, work, die; open, work over a flush, close."""
        return [
            self.open,
            *[lambda: self.work(1)] * 14,
            self.flush,
            *[lambda: self.work(1)] * 12,
            self.close,
            self.open,
            *[lambda: self.work(1)] * 10,
            self.flush,
            *[lambda: self.work(1)] * 3,
            self.abandon,
            self.open,
            *[lambda: self.work(1)] * 4,
            self.flush,
            *[lambda: self.work(1)] * 2,
            self.close,
        ]

    def live(self) -> None:
        """All steps, up to a crash."""
        with self.machine.running():
            try:
                for step in self.steps():
                    step()
            except (SimulatedCrash, HoldfastError):
                if not self.machine.fs._dead:  # else it is what a ``finally`` of a dead process makes of the crash
                    raise
            finally:
                with contextlib.suppress(SimulatedCrash):
                    self.abandon()

    def live_with_errors(self) -> None:
        """All steps, up to an error that ends the store; others must have changed nothing."""
        with self.machine.running():
            for step in self.steps():
                before = self.model.number
                try:
                    step()
                except HoldfastError as error:
                    self.errors.append(error)
                    if self.store is None or self._ended(before):
                        break
            self.abandon()

    def _ended(self, before: int) -> bool:
        """True if the store is poisoned, which it says for ever; else it shows what was acknowledged."""
        store = self.store
        assert store is not None
        backend = store._backend
        assert isinstance(backend, WriterBackend)
        if backend.writer.journal.poisoned is None and not backend.writer._failure:
            assert picture_of(store) == self.model.picture(), "an operation that failed has changed something"
        assert self.model.number == before
        for _ in range(2):
            try:
                self.work(1)
            except PoisonedError:
                self.poisoned += 1
                shown = picture_of(store)  # never more than what was acknowledged
                assert shown == self.model.picture(), difference(shown, self.model.picture())
                return True
            except HoldfastError as error:
                self.errors.append(error)
        return False


def operations(root: Path) -> int:
    """How many operations one whole life makes."""
    life = Life(new_machine(root))
    life.live()
    assert life.model.number == 45, life.model.number
    return life.machine.fs.operations


def images(machine: Machine, seed: int, count: int) -> Iterator[Machine]:
    """A killed process, a power cut that loses all it may, and some that lose part of it."""
    yield machine.crash(random.Random(seed), "all")
    yield machine.crash(random.Random(seed), "none")
    for index in range(count):
        yield machine.crash(random.Random(seed * 1000 + index), "random")


def check_image(machine: Machine, model: Model) -> int:
    """The store holds what was acknowledged, durably, and works on; 1 if it holds the operation in flight too."""
    acked = model.number
    model = model.copy()
    life = Life(machine, model)
    with machine.running():
        life.open()
        assert life.store is not None
        check_frontier(life.store, model)
        check_deep(life.store, model, newest=12, sample=4)
        life.abandon()
    kept = model.number - acked
    # What was recovered is durable, whatever had failed before.
    again = Life(machine.crash(random.Random(1), "none"), model)
    with again.machine.running():
        again.open()
        assert again.store is not None
        assert picture_of(again.store) == model.picture(), "what recovery has shown was not durable"
        again.work(3)
        again.close()
        again.open()
        assert again.store is not None
        assert again.store.recovery.clean
        assert again.store.recovery.frames_replayed == 0
        check_frontier(again.store, model, ahead=0)
        check_deep(again.store, model, newest=12, sample=4)
        again.close()
        report = verify_store(machine.root, level="state", fs=again.machine.fs)
        assert report.ok, report.as_dict()
    return kept
