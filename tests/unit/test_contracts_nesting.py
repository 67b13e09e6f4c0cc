"""Random programs of calls inside calls, some of which fail, against a reference that copies dicts."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.contracts import Address, CallFailed, Contract, Event, Map, Value, entry
from holdfast.contracts.codec import decode_any
from holdfast.contracts.stack import frames_free
from tests.contract_makers import Bench

WRITE, DELETE, EVENT, CALL, TRY, REVERT, BREAK = range(7)


class Machine(Contract, name="machine", version=1):
    """Runs a program: op, key, length of the program inside, that program."""

    cells = Map(int, int)
    clock = Value(int, default=0)
    noted = Event(key=int, at=int)

    @entry
    def run(self, other: Address, program: bytes) -> int:
        place = 0
        while place < len(program):
            op, key, size = program[place : place + 3]
            inner = program[place + 3 : place + 3 + size]
            place += 3 + size
            if op == WRITE:
                self.clock = self.clock + 1
                self.cells[key] = self.clock
            elif op == DELETE:
                del self.cells[key]
            elif op == EVENT:
                self.noted(key=key, at=self.clock)
            elif op == CALL:
                self.call(other, "run", self.address, inner)
            elif op == TRY:
                try:
                    self.call(other, "run", self.address, inner)
                except CallFailed:
                    self.clock = self.clock + 1000
            elif op == REVERT:
                self.revert("as the program says")
            else:
                int("broken")
        return self.clock


Step = tuple[int, int, list["Step"]]


@dataclass
class World:
    """Both machines as dicts, and the events so far."""

    cells: list[dict[int, int]] = field(default_factory=lambda: [{}, {}])
    clocks: list[int] = field(default_factory=lambda: [0, 0])
    events: list[tuple[int, int, int]] = field(default_factory=list)

    def copy(self) -> World:
        return World([dict(cells) for cells in self.cells], list(self.clocks), list(self.events))

    def become(self, other: World) -> None:
        self.cells, self.clocks, self.events = other.cells, other.clocks, other.events


class FailedError(Exception):
    pass


def reference(world: World, who: int, program: list[Step]) -> None:
    for op, key, inner in program:
        if op == WRITE:
            world.clocks[who] += 1
            world.cells[who][key] = world.clocks[who]
        elif op == DELETE:
            world.cells[who].pop(key, None)
        elif op == EVENT:
            world.events.append((who, key, world.clocks[who]))
        elif op in (CALL, TRY):
            before = world.copy()
            try:
                reference(world, 1 - who, inner)
            except FailedError:
                world.become(before)
                if op == CALL:
                    raise
                world.clocks[who] += 1000
        else:
            raise FailedError


def encoded(program: list[Step]) -> bytes:
    out = b""
    for op, key, inner in program:
        raw = encoded(inner)
        out += bytes([op, key, len(raw)]) + raw
    return out


keys = st.integers(0, 3)
leaf: st.SearchStrategy[Step] = st.tuples(
    st.sampled_from([WRITE, WRITE, DELETE, EVENT, REVERT, BREAK]), keys, st.just([])
)
programs: st.SearchStrategy[list[Step]] = st.recursive(
    st.lists(leaf, max_size=3),
    lambda inside: st.lists(st.one_of(leaf, st.tuples(st.sampled_from([CALL, TRY, TRY]), keys, inside)), max_size=4),
    max_leaves=12,
).filter(lambda program: len(encoded(program)) < 200)


@pytest.mark.slow
@given(st.lists(st.tuples(programs, st.booleans()), max_size=5))
def test_nested_failures_drop_exactly_what_the_reference_drops(calls: list[tuple[list[Step], bool]]) -> None:
    bench = Bench(Machine)
    machines = [bench.deploy("machine"), bench.deploy("machine")]
    world = World()
    for program, end_block in calls:
        before = world.copy()
        before.events = []
        world.events = []
        receipt = bench.call(machines[0], "run", machines[1], encoded(program))
        try:
            reference(world, 0, program)
        except FailedError:
            world.become(before)
            assert not receipt.ok
        else:
            assert receipt.ok, receipt
        found = [
            (machines.index(event.address), *(decode_any(raw)[0] for _, raw in event.fields))
            for event in receipt.events
        ]
        assert found == world.events
        if end_block:
            bench.next()
    bench.executor.finalize_block()
    for who, machine in enumerate(machines):
        prefix = b"\x14" + bytes(machine) + b"\x05cells"
        stored = {
            int.from_bytes(key[len(prefix) :], "big") - 2**255: decode_any(raw)[0]
            for key, raw in bench.state.rows.items()
            if key.startswith(prefix)
        }
        assert stored == world.cells[who]


def test_the_room_on_the_stack_is_the_same_whatever_the_limit_was() -> None:
    def depth_reached() -> int:
        with frames_free(300):
            return _dig(0)

    before = sys.getrecursionlimit()
    reached = []
    try:
        for limit in (before, 3_000, 100_000):
            sys.setrecursionlimit(limit)
            reached.append(depth_reached())
            assert sys.getrecursionlimit() == limit
    finally:
        sys.setrecursionlimit(before)
    assert reached[0] > 250
    assert len(set(reached)) == 1


def _dig(depth: int) -> int:
    try:
        return _dig(depth + 1)
    except RecursionError:
        return depth
