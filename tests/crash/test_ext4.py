"""Power cuts of a real ext4 on a loop device: the kernel's own file system forgets what was not synced."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.errors import HoldfastError
from tests.crash.support import ENGINES, Agent, Model, check_deep, check_frontier, open_store, report

SEED = 51
ALL_FROM = 200
IMAGE_BYTES = 96 << 20


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    with Agent() as started:
        yield started


class Ext4:
    """A file system in a file. Cut off, it is mounted again as after a boot."""

    def __init__(self, root: Path) -> None:
        self.image, self.place = root / "image", root / "mounted"
        self.place.mkdir()
        with self.image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        self._run("mkfs.ext4", "-q", "-F", "-J", "size=4", str(self.image))

    def _run(self, *words: str) -> None:
        done = subprocess.run(words, capture_output=True)
        if done.returncode != 0:
            raise OSError(f"{' '.join(words)}: {done.stderr.decode().strip()}")

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        self._run("mount", "-o", "loop", str(self.image), str(self.place))
        try:
            yield
        finally:
            self._run("umount", str(self.place))


@pytest.fixture
def ext4(tmp_path: Path) -> Ext4:
    if os.getuid() != 0:
        pytest.skip("only root may mount a loop device")
    try:
        made = Ext4(tmp_path)
        with made.mounted():
            pass
    except OSError as error:
        pytest.skip(f"no ext4 can be mounted here: {error}")
    return made


def cut_off(agent: Agent, ext4: Ext4, url: str, acked: int, rng: random.Random, *, plant: bool) -> tuple[int, int]:
    """The power goes amid some operation: how many were acknowledged before it, and how many had begun in all."""
    arguments: dict[str, object] = {"url": url, "seed": SEED, "acked": acked, "place": str(ext4.place), "plant": plant}
    with ext4.mounted():
        more: dict[str, object] = {"cut": rng.randrange(2, 40), "delay": rng.uniform(0, 0.01), "body_max": 20_000}
        outcome = agent.run("power_cut", arguments | more)
        assert outcome.failure is None, outcome.failure
        assert outcome.has("x"), f"the power did not go: {outcome.lines[-3:]}"
    stamps = [tuple(map(int, line.split()[1:])) for line in outcome.lines if line.startswith("a ")]
    (gone,) = outcome.values("t")
    return max([acked, *(number for number, when in stamps if when < gone)]), max([acked, *outcome.values("b")])


def lives(agent: Agent, ext4: Ext4, engine: str, rounds: int, *, plant: bool = False) -> Counter[str]:
    """One store, whose power goes again and again."""
    counts: Counter[str] = Counter()
    rng = random.Random(SEED)
    url = f"{engine}:{ext4.place / 'store'}"
    model = Model(SEED, body_max=20_000)
    for _ in range(rounds):
        acked, begun = cut_off(agent, ext4, url, model.number, rng, plant=plant)
        model.advance(acked)
        with ext4.mounted(), open_store(url) as store:
            found = check_frontier(store, model, ahead=begun - acked)
            check_deep(store, model, newest=30)
            counts["torn tails"] += bool(store.recovery.discarded)
            counts["frames replayed"] += store.recovery.frames_replayed
        counts["power cuts"] += 1
        counts["in flight, kept"] += found > acked
    counts["operations"] = model.number
    return counts


@pytest.mark.crash
@pytest.mark.parametrize("engine", ENGINES)
def test_a_real_file_system_loses_its_power(agent: Agent, ext4: Ext4, engine: str, crash_rounds: int) -> None:
    rounds = 4 if crash_rounds < ALL_FROM else 60
    counts = lives(agent, ext4, engine, rounds)
    least = {"power cuts": rounds, "operations": rounds * 2, "frames replayed": 1}
    report(f"ext4, {engine}", counts, at_least=least, rows={5: "power cuts"})


@pytest.mark.crash
def test_a_real_file_system_finds_a_commit_without_a_sync(agent: Agent, ext4: Ext4) -> None:
    """A positive control."""
    with pytest.raises((AssertionError, HoldfastError)) as caught:
        lives(agent, ext4, "sqlite", 6, plant=True)
    assert "did not go" not in str(caught.value)
    print(str(caught.value)[-300:])
