"""Processes that write a store are killed at random times, also while they open and close it; the store grows on."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.support import ENGINES, Agent, Model, Outcome, check_deep, check_frontier, open_store, report

ROUNDS_PER_STORE = 60
LATE_FROM = 12


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    with Agent() as started:
        yield started


class Run:
    """A store that is killed again and again."""

    def __init__(self, agent: Agent, url: str, seed: int) -> None:
        self.agent = agent
        self.url = url
        self.seed = seed
        self.acked = 0
        self.second = 0
        self.late = False
        self.counts: Counter[str] = Counter()
        self.rng = random.Random(seed)
        self.opening = 0.2

    def arguments(self) -> dict[str, object]:
        return {"url": self.url, "seed": self.seed, "acked": self.acked, "second": self.second, "late": self.late}

    def round(self, number: int) -> None:
        """One life of a process; afterwards ``acked`` counts what it was promised."""
        phase = ("work", "work", "open", "work", "close")[number % 5]
        self.late = number >= LATE_FROM
        if phase == "open":
            kill = ("o", self.rng.uniform(0.0, self.opening))
        elif phase == "close":
            kill = ("c", self.rng.uniform(0.0, 0.03))
        else:
            kill = ("f", self.rng.uniform(0.005, 0.150) if number % 6 else self.rng.uniform(0.3, 0.6))
        outcome = self.agent.run(
            "grow",
            self.arguments() | {"operations": 25 if phase == "close" else 1_000_000, "threaded": number % 3 != 1},
            kill_after=kill,
        )
        assert outcome.failure is None, f"round {number}, seed {self.seed}, {self.url}:\n{outcome.failure}"
        assert not outcome.hung
        self.count(outcome)
        if number % 10 == 9:
            self.agent.must("verify", {"url": self.url, "level": "full" if number % 20 == 9 else "state"})
            self.counts["verified"] += 1

    def count(self, outcome: Outcome) -> None:
        counts = self.counts
        counts["rounds"] += 1
        if outcome.has("d"):
            self.opening = max(0.05, min(1.0, outcome.seconds if not outcome.has("f") else self.opening))
        if outcome.has("f"):
            found = outcome.values("f")[0]
            counts["in flight, kept"] += found > self.acked
            self.acked = found
            self.acked = max([found, *outcome.values("a")])
            replayed, discarded, finished, rebuilt = json.loads(outcome.text("r"))
            counts["frames replayed"] += replayed
            counts["torn tails"] += discarded > 0
            counts["flushes finished at open"] += finished
            counts["views rebuilt"] += rebuilt
        self.second = max([self.second, *outcome.values("s")])
        counts["flushes"] += max(outcome.values("v"), default=0)
        segments = outcome.values("g")
        counts["rolls"] += max(segments) - min(segments) if segments else 0
        if not outcome.killed:
            counts["ended before the kill"] += 1
            return
        started, ended = outcome.values("b"), outcome.values("a")
        if not outcome.has("d"):
            counts["killed in open"] += 1
        elif not outcome.has("f"):
            counts["killed in check"] += 1
        elif outcome.has("c"):
            counts["killed in close"] += not outcome.has("x")
        elif len(started) > len(ended):
            counts["killed in an operation"] += 1
            counts["killed in " + [line for line in outcome.lines if line.startswith("b ")][-1].split()[2]] += 1


@pytest.mark.crash
@pytest.mark.parametrize("engine", ENGINES)
def test_killed_at_random(agent: Agent, engine: str, tmp_path: Path, crash_rounds: int) -> None:
    total: Counter[str] = Counter()
    for first in range(0, crash_rounds, ROUNDS_PER_STORE):
        seed = 1000 + first
        url = f"{engine}:{tmp_path / str(first)}"
        run = Run(agent, url, seed)
        for number in range(min(ROUNDS_PER_STORE, crash_rounds - first)):
            run.round(number)
        agent.must("check", run.arguments())
        # This process too: not a child of the agent, and it closes the store well.
        model = Model(seed).advance(run.acked)
        with open_store(url, late=run.late) as store:
            check_frontier(store, model)
            check_deep(store, model)
        agent.must("verify", {"url": url, "level": "full"})
        run.counts["operations"] = model.number
        run.counts["records of the second thread"] = run.second
        total += run.counts
    report(
        f"{engine}, seeds from 1000",
        total,
        at_least={
            "killed in an operation": crash_rounds // 3,
            "killed in open": max(1, crash_rounds // 20),
            "killed in close": 1,
            "in flight, kept": 1,
            "frames replayed": crash_rounds,
            "flushes": crash_rounds,
            "rolls": 1,
        },
        rows={1: "rounds"},
    )
