"""The crash explorer over an encrypted store: what was acknowledged is there, and opens with its key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from holdfast._keys import using_key
from holdfast.errors import KeyRequired
from holdfast.testing.explorer import Acks, explore, require
from holdfast.testing.machine import Machine
from tests.crash.explorer_workloads import WORKLOADS, Explored
from tests.crash.machine import open_on
from tests.crash.matrix import met
from tests.crash.planted import commits_without_a_sync

KEY = bytes(range(32))
IMAGES, IMAGES_ALL, ALL_FROM = 250, 5_000, 1_000


@dataclass
class Encrypted:
    """A workload on a store that was created with a key."""

    inner: Explored
    opened: int = 0

    @property
    def expect(self) -> tuple[str, ...]:
        return self.inner.expect

    def prepare(self, machine: Machine) -> None:
        with using_key(KEY):
            self.inner.prepare(machine)

    def __call__(self, machine: Machine, acks: Acks) -> None:
        with using_key(KEY):
            self.inner(machine, acks)

    def check(self, machine: Machine) -> int:
        self.opened += 1
        if self.opened == 1:
            with pytest.raises(KeyRequired):
                open_on(machine)
        with using_key(KEY):
            return self.inner.check(machine)


@pytest.mark.crash
@pytest.mark.parametrize("name", ["commit", "flush", "recovery"])
def test_no_image_of_an_encrypted_store_loses_anything(name: str, tmp_path: Path, crash_rounds: int) -> None:
    workload = Encrypted(WORKLOADS[name])
    images = IMAGES_ALL if crash_rounds >= ALL_FROM else IMAGES
    report = require(
        explore(workload, workload.check, prepare=workload.prepare, images=images, expect=(), save=tmp_path)
    )
    print(f"encrypted {name}: {report}")
    met(2, report.images)
    met(3, report.kinds["torn"])
    met(4, report.in_recovery)
    assert report.images >= IMAGES * 3 // 4
    assert workload.opened


@pytest.mark.crash
def test_a_planted_bug_is_found_in_an_encrypted_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits_without_a_sync(monkeypatch)
    workload = Encrypted(WORKLOADS["commit"])
    report = explore(workload, workload.check, prepare=workload.prepare, images=300, expect=(), save=tmp_path)
    assert report.failures, "the bug was not found"
