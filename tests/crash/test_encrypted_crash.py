"""The crash explorer over an encrypted store: what was acknowledged is there, opens with its key, and is not plain."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

import holdfast
from holdfast._keys import using_key
from holdfast.errors import HoldfastError, KeyRequired
from holdfast.recovery.verify import verify_store
from holdfast.store.identity import IDENTITY_NAME
from holdfast.testing.explorer import Acks, explore, require
from holdfast.testing.machine import Machine
from tests.crash.explorer_backups import COPIES
from tests.crash.explorer_workloads import SOURCE, WORKLOADS, Explored
from tests.crash.matrix import met
from tests.crash.planted import commits_without_a_sync
from tests.unit.store_support import quick
from tests.unit.test_store_encryption import make_store

KEY = bytes(range(32))
VALUES = (b"b" * 200, b"5" * 40, *SOURCE.values.values())
"""Of the workloads with a state; no file of the store may hold one."""
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
        files = machine.fs.files()
        if not self.opened and machine.root / IDENTITY_NAME in files:
            self.opened += 1
            with pytest.raises(KeyRequired):
                machine.open(create=False)
        for path, data in files.items():
            named = b"key/" in data and {"base", "checkpoints"} & set(path.parts)  # also where it is compressed
            plain = machine.root in path.parents and (named or any(value in data for value in VALUES))
            assert not plain, f"{path} is in plain text"
        with using_key(KEY):
            return self.inner.check(machine)


@pytest.mark.crash
@pytest.mark.parametrize("name", ["commit", "flush", "recovery", "snapshot import", "checkpoint", "checkpoint restore"])
def test_no_image_of_an_encrypted_store_loses_anything(name: str, tmp_path: Path, crash_rounds: int) -> None:
    workload = Encrypted(WORKLOADS[name] if name in WORKLOADS else COPIES[name](tmp_path / "copy"))
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


def _content(path: Path) -> object:
    """What a store holds, read from its engine and its journal."""
    with holdfast.open(path, key=KEY, settings=quick()) as store:
        blocks = [(info.hash, store.blocks.body(info)) for info in store.blocks.canonical()]
        keys = [store.state.get(b"account/%d" % number) for number in range(7)]
        return blocks, keys, store.documents("evm").get(b"document")


@pytest.mark.crash
def test_damage_of_an_encrypted_store_is_found_or_harmless(tmp_path: Path, crash_rounds: int) -> None:
    """Flipped bits, zeros and cuts in every file: the same content, or a typed error; never other values."""
    good, path = tmp_path / "good", tmp_path / "store"
    with using_key(KEY):
        make_store(f"sqlite:{good}", key=None)
    truth, chance, verdicts = _content(good), random.Random(7), Counter[str]()
    names = sorted(str(file.relative_to(good)) for file in good.rglob("*") if file.is_file() and file.stat().st_size)
    for name in names:
        for _ in range(8 if crash_rounds < ALL_FROM else 200):
            shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(good, path)
            data = bytearray((path / name).read_bytes())
            at, how = chance.randrange(len(data)), chance.choice(["flip", "zeros", "cut"])
            if how == "flip":
                data[at] ^= 1 << chance.randrange(8)
            elif how == "zeros":
                data[at : at + 64] = bytes(len(data[at : at + 64]))
            else:
                del data[at:]
            (path / name).write_bytes(data)
            if name.startswith("journal/") and data != (good / name).read_bytes():
                assert not verify_store(path, level="links").ok, f"{how} of {name} at {at}: not found without the key"
                verdicts["found without the key"] += 1
            try:
                assert _content(path) == truth, f"{how} of {name} at {at}"
                verdicts["same"] += 1
            except HoldfastError as error:
                verdicts[error.code] += 1
    print(f"rot, encrypted: {dict(verdicts)}")
    assert verdicts["same"] >= len(names)
    assert verdicts["found without the key"]
