"""Votes over power cuts, copies and restored backups: never two payloads at one position, never a lower position."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import holdfast
from holdfast.backup import create_backup, open_repository, restore_backup
from holdfast.consensus.safety import SafetyBook
from holdfast.errors import EquivocationError, FencedError, SafetyError, SafetyStateMissing, StoreLocked
from holdfast.testing.crashfs import Fault, Keep, SimulatedCrash
from holdfast.testing.machine import Machine, new_machine
from tests.crash.machine import open_on
from tests.crash.support import ENGINES, VALIDATOR, report
from tests.unit.state_support import commit
from tests.unit.store_support import quick

ALL_FROM = 200
Position = tuple[int, ...]


@dataclass
class Signer:
    """What a validator was told to be saved: these votes may have left it."""

    votes: dict[Position, bytes] = field(default_factory=dict)
    trying: tuple[Position, bytes] | None = None
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def newest(self) -> Position:
        return max(self.votes, default=(0, 0))

    def vote(self, store: holdfast.Store, position: Position, payload: bytes) -> None:
        """Save, and sign what was saved; what the rules forbid is refused by its own error."""
        self.trying = (position, payload)
        self.counts["tried"] += 1
        try:
            store.safety.save(VALIDATOR, position, payload)
        except EquivocationError:
            assert self.votes.get(position, payload) != payload, "an identical vote was refused"
            self.counts["equivocations refused"] += 1
        except SafetyError:
            assert position < store.safety.load(VALIDATOR).position
            self.counts["lower refused"] += 1
        else:
            assert self.votes.get(position, payload) == payload, f"two votes at {position} have left"
            assert position >= self.newest, f"a vote at {position} left after one at {self.newest}"
            self.votes[position] = payload
        self.trying = None

    def live(self, machine: Machine, rng: random.Random, count: int) -> None:
        """Votes near the newest one, until the machine dies."""
        with machine.running():
            with contextlib.suppress(SimulatedCrash):
                store = open_on(machine)
                self.recovered(store)
                for _ in range(count):
                    first, second = self.newest
                    position = (max(0, first + rng.randint(-1, 1)), max(0, second + rng.randint(-1, 2)))
                    self.vote(store, position, rng.choice((b"this", b"that")))
                    if rng.random() < 0.1:
                        commit(store, rng.random(), {b"key": b"value"})
                    if rng.random() < 0.05:
                        store.flush()
            with contextlib.suppress(SimulatedCrash):
                machine.abandon()

    def recovered(self, store: holdfast.Store) -> None:
        """The newest vote that has left is there, or the one that was being saved."""
        try:
            record = store.safety.load(VALIDATOR)
        except SafetyStateMissing:
            assert not self.votes, "what has left was forgotten"
            return
        found = (record.position, record.payload)
        if self.votes:
            assert found in ((self.newest, self.votes[self.newest]), self.trying), f"{found} is there"
        self.votes[record.position] = record.payload  # it may be signed now


def signed(root: Path, seeds: range) -> Counter[str]:
    """Machines that die again and again while they sign."""
    counts: Counter[str] = Counter()
    for seed in seeds:
        rng = random.Random(seed)
        signer = Signer()
        machine = new_machine(root, seed=seed)
        for _ in range(6):
            machine.fs.faults = (Fault(machine.fs.operations + rng.randint(10, 160), torn=True),)
            signer.live(machine, rng, 120)
            keep: Keep = rng.choice(("all", "none", "random"))
            machine = machine.crash(rng, keep)
            counts["power cuts"] += 1
        counts += signer.counts
    return counts


@pytest.mark.crash
def test_no_vote_is_contradicted_after_a_power_cut(tmp_path: Path, crash_rounds: int) -> None:
    counts = signed(tmp_path, range(40 if crash_rounds < ALL_FROM else 1500))
    least = {"equivocations refused": 100, "lower refused": 100, "power cuts": 200}
    report("votes", counts, at_least=least, rows={21: "tried"})


@pytest.mark.crash
def test_a_record_without_rules_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A positive control."""
    monkeypatch.setattr(SafetyBook, "check", lambda self, record: True)
    with pytest.raises(AssertionError):
        signed(tmp_path, range(5))


@pytest.mark.crash
@pytest.mark.parametrize("engine", ENGINES)
def test_a_copy_of_a_signer_does_not_sign(engine: str, tmp_path: Path) -> None:
    """Copied, restored, moved, opened twice, or without its record: none of them signs by itself."""
    counts: Counter[str] = Counter()
    root = tmp_path / "store"
    with holdfast.open(f"{engine}:{root}", settings=quick()) as store:
        with pytest.raises(SafetyStateMissing):
            store.safety.load(VALIDATOR)
        for number in range(1, 6):
            store.safety.save(VALIDATOR, (number,), b"vote")
        with pytest.raises(StoreLocked):
            holdfast.open(f"{engine}:{root}")
        counts["refused"] += 2
    place = open_repository(tmp_path / "repository", create=True)
    name = create_backup(root, place, workers=0).manifest.name
    with holdfast.open(f"{engine}:{root}", settings=quick()) as store:
        store.safety.save(VALIDATOR, (6,), b"after the backup")
    restore_backup(place, name, f"{engine}:{tmp_path / 'restored'}", workers=0)
    shutil.copytree(root, tmp_path / "copied")
    for copy in ("restored", "copied"):
        with holdfast.open(f"{engine}:{tmp_path / copy}", settings=quick()) as store:
            for position in ((6,), (7,), (10**6,)):
                with pytest.raises(FencedError if position > (6,) else SafetyError):
                    store.safety.save(VALIDATOR, position, b"another")
                counts["refused"] += 1
            store.safety.lift_fence(VALIDATOR, (6,))
            with pytest.raises(SafetyError):
                store.safety.save(VALIDATOR, (6,), b"another")
            assert store.safety.save(VALIDATOR, (7,), b"above the floor")
            counts["refused"] += 1
    report(f"copies of a signer, {engine}", counts, at_least={"refused": 8}, rows={21: "refused"})
