"""Compaction cut off anywhere: each segment is the file of before or the new one, whole, and every block reads."""

from __future__ import annotations

import errno
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from holdfast import Store
from holdfast._fs import NewFile
from holdfast.errors import HoldfastError
from holdfast.journal import compaction
from holdfast.testing.crashfs import Fault, SimulatedCrash
from holdfast.testing.explorer import Acks, Report, explore, require
from holdfast.testing.machine import Machine, new_machine
from holdfast.types import Block
from tests.crash.machine import images
from tests.crash.support import report
from tests.unit.state_support import writer_backend
from tests.unit.store_support import chain_of

ALL_FROM = 200
IMAGES = 400
IMAGES_ALL = 20_000
BLOCKS = 40
CHAIN = chain_of(None, BLOCKS + 8)


def assert_reads(store: Store, blocks: list[Block]) -> None:
    """Every block is there with all of its bytes, and every byte of the journal verifies."""
    for block in blocks:
        info = store.blocks.at(block.height)
        assert info is not None
        found = store.blocks.block(info)
        assert (found.hash, found.header, found.body, found.extra) == (
            block.hash,
            block.header,
            block.body,
            block.extra,
        )
    journal = writer_backend(store).opened.journal
    for segment in journal.segments():
        journal.verify_segment(segment.number)


class Compacted:
    """A journal is compacted, in parts, with commits between them; number n: n blocks."""

    def open(self, machine: Machine) -> Store:
        fields: dict[str, Any] = {"max_reorg_depth": 2, "compression": "none", "history_blocks": 0}
        return machine.open(durability="sync", **fields)

    def prepare(self, machine: Machine) -> None:
        with self.open(machine) as store:
            for block in CHAIN[:BLOCKS]:
                store.add(block)

    def __call__(self, machine: Machine, acks: Acks) -> None:
        acks.done(BLOCKS)
        store = self.open(machine)
        left = iter(range(3))
        assert not store.compact(keep_going=lambda: next(left, None) is not None).complete
        store.add(CHAIN[BLOCKS])
        acks.done()
        assert store.compact().compacted
        for block in CHAIN[BLOCKS + 1 :]:
            store.add(block)
            acks.done()
        store.compact()
        store.close()

    def check(self, machine: Machine) -> int:
        store = self.open(machine)
        assert store.tip is not None
        count = store.tip.height + 1
        assert_reads(store, CHAIN[:count])
        assert store.compact().complete
        assert_reads(store, CHAIN[:count])
        store.close()
        assert not [path for path in machine.fs.files() if path.name.endswith(".seg.tmp")]
        return count


WORK = Compacted()


def explored(images_max: int, save: Path) -> Report:
    return explore(WORK, WORK.check, prepare=WORK.prepare, images=images_max, seed=0, save=save)


@pytest.mark.crash
def test_no_image_loses_anything(tmp_path: Path, crash_rounds: int) -> None:
    found = require(explored(IMAGES_ALL if crash_rounds >= ALL_FROM else IMAGES, tmp_path))
    print(f"compact: {found}")
    assert found.images >= IMAGES * 3 // 4


def life(machine: Machine) -> list[HoldfastError]:
    """The workload up to the crash or the error, and what was raised."""
    errors: list[HoldfastError] = []
    with machine.running():
        try:
            WORK(machine, Acks())
        except SimulatedCrash:
            pass
        except HoldfastError as error:
            errors.append(error)
        machine.abandon()
    return errors


@pytest.mark.crash
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_error_at_every_operation(tmp_path: Path, code: int, crash_rounds: int) -> None:
    """A typed error, nothing is lost, and the store that is opened again goes on."""
    machine = new_machine(tmp_path)
    with machine.running():
        WORK.prepare(machine)
    whole = machine.crash(random.Random(1), "all")
    assert not life(whole)
    counts: Counter[str] = Counter()
    for at in range(1, whole.fs.operations + 1, 7 if crash_rounds < ALL_FROM else 1):
        again = machine.crash(random.Random(1), "all")
        again.fs.faults = (Fault(at, error=code, torn=True),)
        counts["raised"] += bool(life(again))
        again.fs.faults = ()
        for image in images(again, at, 0):
            counts["images"] += 1
            with image.running():
                assert WORK.check(image) >= BLOCKS
    report(f"compact, {errno.errorcode[code]}", counts, at_least={"raised": 5})


# -- positive controls: each planted bug must be found ---------------------------------------------------------------


def publishes_what_is_not_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(NewFile, "sync", lambda self: None)


def removes_the_old_one_first(patch: pytest.MonkeyPatch) -> None:
    publish = NewFile.publish

    def removed(self: NewFile) -> None:
        self._fs.remove(self._path)
        self._fs.sync_directory(self._path.parent)
        publish(self)

    patch.setattr(NewFile, "publish", removed)


def does_not_read_back_and_writes_short(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(compaction, "_check", lambda *_: 0)
    write = NewFile.write
    patch.setattr(NewFile, "write", lambda self, data: write(self, bytes(data)[:-1] if len(data) > 2000 else data))


@pytest.mark.crash
@pytest.mark.parametrize(
    "bug", [publishes_what_is_not_synced, removes_the_old_one_first, does_not_read_back_and_writes_short]
)
def test_planted_bug_is_found(bug: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    try:
        found = explored(600, tmp_path)
    except (HoldfastError, AssertionError) as error:  # the run itself met it
        print(f"{bug.__name__}: {error}")
        return
    assert found.failures, "the bug was not found"
    print(f"{bug.__name__}: {found.images} images, {found.failures[0].text[:150]}")
