"""The workloads of the crash explorer, and how each tells what a store holds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from holdfast import Settings, Store
from holdfast.store.snapshots import import_snapshot
from holdfast.testing.explorer import EXPECTED, Acks
from holdfast.testing.machine import Machine
from holdfast.types import Block
from tests.crash.machine import SEED, open_on
from tests.crash.support import Model, Picture, check_deep, difference, perform, picture_of
from tests.unit.pruning_support import history_rows, rows_too_many, small_batches
from tests.unit.snapshot_support import PLACE, Source, export, numbered, source_of
from tests.unit.state_support import Values, after, commit, root_of, writer_backend


class Explored(Protocol):
    """What the explorer needs of a workload."""

    expect: tuple[str, ...]

    def prepare(self, machine: Machine) -> None: ...

    def __call__(self, machine: Machine, acks: Acks) -> None: ...

    def check(self, machine: Machine) -> int: ...


DEEP_EVERY = 8
"""Of so many images one is compared row by row, the others by their picture: every hash, orphan and root."""


def key_of(picture: Picture) -> object:
    return (picture.canonical, tuple(sorted(picture.orphans.items())), *picture[2:])


@dataclass
class Worked:
    """Operations of the model on one store; number n is the n-th that can be seen from outside."""

    plan: tuple[str, ...]
    """``open``, ``close``, ``die``, ``flush``, or an operation of the model; a number in front repeats it."""
    before: int = 0
    """So many operations are there, and durable, before the workload begins."""
    together: int = 1
    """So many are begun before they are acknowledged by one sync."""
    settings: dict[str, object] = field(default_factory=dict)
    expect: tuple[str, ...] = EXPECTED
    _pictures: list[Picture] = field(default_factory=list)
    _numbers: dict[object, int] = field(default_factory=dict)
    _models: list[Model] = field(default_factory=list)
    _checked: int = 0

    def __post_init__(self) -> None:
        model = Model(SEED, body_max=600)
        words = [word for count, word in self.steps() for _ in range(count) if word not in ("open", "close", "die")]
        model.plan = {self.before + at: word for at, word in enumerate(words, 1) if word != "any"}
        self._see(model)
        for _ in range(self.before + len(words)):
            model.advance(model.number + 1)
            self._see(model)

    def _see(self, model: Model) -> None:
        picture = model.picture()
        if key_of(picture) not in self._numbers:
            self._numbers[key_of(picture)] = len(self._pictures)
            self._pictures.append(picture)
        self._models.append(model.copy())

    def number(self, model: Model) -> int:
        return self._numbers[key_of(model.picture())]

    def steps(self) -> Iterator[tuple[int, str]]:
        for word in self.plan:
            count, _, rest = word.partition(" ")
            yield (int(count), rest) if rest else (1, word)

    def prepare(self, machine: Machine) -> None:
        store = open_on(machine, **self.settings)
        model = self._models[0].copy()
        for _ in range(self.before):
            op = model.next_op()
            perform(store, op)
            model.apply(op)
        store.close()

    def __call__(self, machine: Machine, acks: Acks) -> None:
        model = self._models[self.before].copy()
        if self.before:
            acks.done(self.number(model))
        store = None if self.plan[0] == "open" else open_on(machine, **self.settings)
        waiting = 0
        for count, word in self.steps():
            for _ in range(count):
                if word == "open":
                    store = open_on(machine, **self.settings)
                elif word == "die":
                    machine.abandon()
                elif word == "close":
                    assert store is not None
                    store.close()
                    acks.done(self.number(model))
                else:
                    assert store is not None
                    op = model.next_op()
                    acks.begin(self.number(model.copy().advance(model.number + 1)))
                    perform(store, op)
                    model.apply(op)
                    waiting += 1
                    if waiting % self.together == 0:
                        if self.together > 1:
                            store.sync()
                        acks.done(self.number(model))

    def check(self, machine: Machine) -> int:
        store = open_on(machine, **self.settings)
        found = picture_of(store)
        number = self._numbers.get(key_of(found))
        assert number is not None, f"no operation leads to this; {difference(found, self._pictures[-1])}"
        self._checked += 1
        if self._checked % DEEP_EVERY == 0:
            model = next(each for each in self._models if self.number(each) == number)
            check_deep(store, model.copy(), newest=6, sample=2)
            self._goes_on(machine, found, model)
        return number

    def _goes_on(self, machine: Machine, found: Picture, model: Model) -> None:
        """What was shown is durable, and the newest block can be undone."""
        other = machine.crash(random.Random(0), "none")
        with other.running():
            store = open_on(other, **self.settings)
            assert picture_of(store) == found, "what recovery has shown was not durable"
            if model.canonical and model.tip.height > model.floor:
                store.orphan(model.tip.hash, reason="found to be wrong")
                assert store.tip is not None
                assert store.tip.hash == model.tip.parent
                assert store.state.root == root_of(model.states[model.tip.parent])
            other.abandon()


# -- runs of executed blocks -----------------------------------------------------------------------------------------


class Runs:
    """Blocks that are executed and written together: number n: n runs are there, each whole or not at all."""

    expect: tuple[str, ...] = EXPECTED
    sizes = (6, 9, 1, 5, 7)

    def __init__(self) -> None:
        model = Model(SEED, body_max=600)
        model.plan = dict.fromkeys(range(1, sum(self.sizes) + 1), "append")
        self._models = [model.copy()]
        self._runs: list[list[Block]] = []
        for size in self.sizes:
            run = []
            for _ in range(size):
                op = model.next_op()
                assert op.block is not None
                run.append(op.block)
                model.apply(op)
            self._runs.append(run)
            self._models.append(model.copy())
        self._checked = 0

    def prepare(self, machine: Machine) -> None:
        """Nothing is there before."""

    def __call__(self, machine: Machine, acks: Acks) -> None:
        store = open_on(machine)
        for number, run in enumerate(self._runs, 1):
            acks.begin(number)
            store.add_many(run, root_allowed=True)
            acks.done(number)
            if number == 2:
                store.flush()
            elif number == 4:
                machine.abandon()
                store = open_on(machine)
        store.close()

    def check(self, machine: Machine) -> int:
        store = open_on(machine)
        found = picture_of(store)
        numbers = [number for number, model in enumerate(self._models) if model.picture() == found]
        assert numbers, f"no whole runs lead to this; {difference(found, self._models[-1].picture())}"
        model = self._models[numbers[0]].copy()
        self._checked += 1
        if self._checked % DEEP_EVERY == 0:
            check_deep(store, model, newest=9, sample=2)
            if len(model.canonical) > 3:  # the last run is left in its middle
                cut = model.canonical[-3]
                store.orphan(cut, reason="found to be wrong")
                parent = model.blocks[cut].parent
                assert store.state.root == root_of(model.states[parent])
                store.reorg(model.canonical[-1], reason="back to the other branch")
                assert store.state.root == root_of(model.state)
        return numbers[0]


# -- pruning ---------------------------------------------------------------------------------------------------------

BLOCKS = 20
DEPTH = 4


def pruned_changes(number: int) -> dict[bytes, bytes | None]:
    """What block ``number`` changes: one key always, others now and then."""
    changes: dict[bytes, bytes | None] = {b"often": b"%d" % number, b"key/%d" % (number % 5): b"%d" % number * 5}
    if number % 4 == 2:
        changes[b"seldom"] = b"%d" % number
    return changes


STATES: list[Values] = []
for _number in range(BLOCKS + 4):
    STATES.append(after(STATES[-1] if STATES else {}, pruned_changes(_number)))


class Pruned:
    """A history is pruned, in parts, with commits between them; number n: n blocks."""

    expect = tuple(name for name in EXPECTED if name not in ("rename", "name alone", "name omitted"))

    def open(self, machine: Machine) -> Store:
        fields: dict[str, Any] = {"max_reorg_depth": DEPTH, "history_blocks": 0}
        return machine.open(durability="sync", **fields)

    def prepare(self, machine: Machine) -> None:
        store = self.open(machine)
        for height in range(BLOCKS):
            commit(store, height, pruned_changes(height))
        store.close()

    def __call__(self, machine: Machine, acks: Acks) -> None:
        acks.done(BLOCKS)
        with small_batches():
            store = self.open(machine)
            left = iter(range(4))
            store.prune(blocks=3, every=6, keep_going=lambda: next(left, None) is not None)
            commit(store, BLOCKS, pruned_changes(BLOCKS))
            acks.done()
            store.prune(blocks=1, every=12)
            commit(store, BLOCKS + 1, pruned_changes(BLOCKS + 1))
            acks.done()
            store.close()

    def check(self, machine: Machine) -> int:
        store = self.open(machine)
        tip = store.tip
        assert tip is not None
        record = writer_backend(store).views.history
        assert record is not None
        assert store.state.root == root_of(STATES[tip.height])
        for height in range(tip.height + 1):
            if record.has(height):
                assert dict(store.state.at(height).scan()) == STATES[height], f"height {height}, record {record}"
            else:
                assert height < tip.height - DEPTH
        with small_batches():
            store.prune(blocks=1, every=12)
        found = writer_backend(store).views.history
        assert found is not None
        assert not rows_too_many(history_rows(writer_backend(store).opened.engine), found)
        return tip.height + 1


# -- the import of a snapshot ----------------------------------------------------------------------------------------

SOURCE: Source = source_of({**numbered(40), b"blob": b"b" * 70_000})


class Imported:
    """A snapshot is taken in; number 1: it is. An import that was cut off goes on, and ends well."""

    expect = tuple(name for name in EXPECTED if name != "batches")

    def prepare(self, machine: Machine) -> None:
        source, _ = export(SOURCE, chunk_bytes=1024)
        machine.fs.make_directory(machine.root)
        for directory in (PLACE, PLACE / "chunks"):
            machine.fs.make_directory(directory)
        for path, data in source._files.items():
            machine.fs.open(path, create=True).pwrite(data, 0)

    def take_in(self, machine: Machine) -> None:
        import_snapshot(
            f"sqlite:{machine.root}",
            PLACE,
            trusted_root=SOURCE.tree.root,
            settings=Settings(flush_interval_seconds=3600.0),
            workers=1,
            fs=machine.fs,
        )

    def __call__(self, machine: Machine, acks: Acks) -> None:
        self.take_in(machine)
        acks.done()

    def check(self, machine: Machine) -> int:
        done = machine.root / "holdfast.toml" in machine.fs.files()  # it comes last; views without it are made anew
        self.take_in(machine)
        with machine.open(create=False) as store:
            tip = store.tip
            assert tip is not None
            assert tip.hash == SOURCE.block.hash
            assert store.state.root == SOURCE.tree.root
            assert dict(store.state.scan()) == SOURCE.values
        return int(done)


NO_FLUSH = tuple(name for name in EXPECTED if name != "batches")
BUFFERED: dict[str, object] = {"durability": "buffered"}

WORKLOADS: dict[str, Explored] = {
    "commit": Worked(("open", "12 any", "close", "open", "4 any")),
    # Threads are out: what a crash can see of a group commit is several frames written and one sync for all of them.
    "group commit": Worked(("18 any",), before=6, together=3, settings=BUFFERED, expect=NO_FLUSH),
    "buffered": Worked(("9 any", "close", "open", "7 any", "close"), before=6, together=99, settings=BUFFERED),
    "reorg": Worked(
        ("side", "grow", "overtake", "reorg", "orphan", "append", "overtake", "reorg"), before=20, expect=NO_FLUSH
    ),
    "runs": Runs(),
    "flush": Worked(("4 any", "flush", "overtake", "side", "flush", "close"), before=20),
    "segment roll": Worked(("8 big", "2 any"), before=4, expect=NO_FLUSH),
    "recovery": Worked(
        ("6 any", "die", "open", "2 any", "flush", "2 append", "die", "open", "overtake", "close", "open", "orphan"),
        before=20,
    ),
    "prune": Pruned(),
    "snapshot import": Imported(),
}
NO_REORG = Worked(("open", "8 append", "flush", "4 append", "close"))
"""For bugs that a reorganisation in the workload itself would meet."""
