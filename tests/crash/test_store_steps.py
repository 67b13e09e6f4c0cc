"""A process is killed at every step of each thing a store does: the state afterwards is the old one or the new one."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.crash.support import ENGINES, Agent, Place, report

SEED = 77
OPERATIONS = 60
ALL_FROM = 200
"""With so many crash rounds every step is tried on every engine; with fewer, every fourth on all but one."""


@dataclass(frozen=True)
class Scenario:
    """What is cut short. ``start``: the store before it - ``none``, ``clean`` or ``killed``."""

    name: str
    plan: tuple[str, ...]
    start: str = "clean"
    how: str = "work"
    late: bool = False
    warm: int = 0
    """So many operations of the plan are done before steps are counted."""


SCENARIOS = (
    Scenario("create", (), start="none", how="open"),
    Scenario("commit", ("commit", "append")),
    Scenario("reorg", ("overtake", "reorg")),
    Scenario("orphan and finalize", ("orphan", "finalize", "safety")),
    Scenario("flush", ("overtake", "side", "flush"), start="killed"),
    Scenario("roll", ("big",) * 8, warm=6),
    Scenario("close", (), start="killed", how="close"),
    Scenario("open", (), how="open"),
    Scenario("open after a kill", ("append",), start="killed", how="open"),
    Scenario("index", (), how="open", late=True),
)


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    with Agent() as started:
        yield started


def prepared(agent: Agent, engine: str, root: Path) -> Place:
    """A place with the images: closed after 60 operations, and killed after 60 of which 40 were flushed."""
    place = Place(root)
    arguments: dict[str, object] = {"url": f"{engine}:{root}", "seed": SEED, "acked": 0, "operations": OPERATIONS}
    agent.must("template", arguments | {"clean": True, "flush_at": 40})
    place.keep("clean")
    return place


def keep_killed(agent: Agent, engine: str, place: Place) -> None:
    """The image of a killed store, made from the closed one so that LOCK and journal/ are the same."""
    place.restore("clean")
    arguments: dict[str, object] = {"url": f"{engine}:{place.root}", "seed": SEED, "acked": OPERATIONS}
    agent.must("template", arguments | {"operations": 20, "clean": False, "flush_at": 5})
    place.keep("killed")


@pytest.mark.crash
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.name.replace(" ", "-"))
@pytest.mark.parametrize("engine", ENGINES)
def test_killed_at_every_step(agent: Agent, engine: str, scenario: Scenario, tmp_path: Path, crash_rounds: int) -> None:
    place = prepared(agent, engine, tmp_path / "store")
    if scenario.start == "killed":
        keep_killed(agent, engine, place)
    base = {"none": 0, "clean": OPERATIONS, "killed": OPERATIONS + 20}[scenario.start]
    arguments: dict[str, object] = {
        "url": f"{engine}:{place.root}",
        "seed": SEED,
        "acked": base,
        "plan": scenario.plan,
        "how": scenario.how,
        "late": scenario.late,
        "warm": scenario.warm,
    }
    place.restore(scenario.start)
    listed = agent.must("step", arguments | {"at": 0, "torn": False})
    names = [line[2:] for line in listed.lines if line.startswith("n ")]
    if scenario.name == "roll":
        assert "failpoint:journal.roll.after_seal" in names
    if scenario.name == "close":
        assert {
            f"failpoint:state.image.{point}" for point in ("created", "slice", "written", "synced", "published")
        } <= {*names}
    stride = 1 if engine == "sqlite" or crash_rounds >= ALL_FROM else 4
    counts: Counter[str] = Counter()
    for at, name in list(enumerate(names, start=1))[::stride]:
        for torn in (False, True) if name == "pwrite" else (False,):
            place.restore(scenario.start)
            killed = agent.run("step", arguments | {"at": at, "torn": torn})
            assert killed.failure is None, f"step {at} {name}: {killed.failure}"
            assert killed.signal == signal.SIGKILL, f"step {at} {name} was never reached: {killed.lines}"
            acked = max([base, *killed.values("a")])
            again = agent.run("examine", arguments | {"done": acked - base})
            assert again.failure is None, (
                f"{engine}, {scenario.name}, step {at} of {len(names)} {name}: {again.failure}"
            )
            counts["killed"] += 1
            counts["torn writes"] += torn
            counts["in flight, kept"] += again.values("k")[0]
            counts[name.split(":")[0]] += 1
    least = {"killed": len(names) // stride}
    report(f"{engine}, {scenario.name}", counts, at_least=least, rows={1: "killed", 3: "torn writes"})
