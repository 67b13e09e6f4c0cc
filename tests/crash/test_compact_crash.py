"""Compaction and retention cut off anywhere: each segment has one whole file, and each block reads or says why not."""

from __future__ import annotations

import contextlib
import errno
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast import Store
from holdfast._fs import File, FileSystem, MemoryFileSystem, NewFile
from holdfast.errors import HoldfastError, PrunedError
from holdfast.journal import Kind, Part, compaction
from holdfast.journal.compacted import Packer
from holdfast.store.retention import RetentionPolicy
from holdfast.store.writer import Writer
from holdfast.testing.crashfs import Fault, SimulatedCrash
from holdfast.testing.explorer import Acks, Report, explore, require
from holdfast.testing.machine import Machine, new_machine
from holdfast.types import Block
from holdfast.views.api import Rows
from tests.crash.machine import images
from tests.crash.matrix import met
from tests.crash.support import report
from tests.unit.state_support import writer_backend
from tests.unit.store_support import chain_of

ALL_FROM = 200
IMAGES = 300
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


LOW, HIGH = 12, 24
ORIGINALS: dict[int, bytes] = {}
"""Segments as they were before anything was pruned, as a backup has them."""


@contextlib.contextmanager
def original(number: int, digest: bytes) -> Iterator[File]:
    fs = MemoryFileSystem()
    path = Path("/backup") / f"{number}"
    fs.write_atomic(path, ORIGINALS[number])
    yield fs.open(path)


class Retained(Compacted):
    """Bodies are given up, in parts, twice, and filled again; number n: n blocks."""

    def open(self, machine: Machine) -> Store:
        fields: dict[str, Any] = {"max_reorg_depth": 2, "compression": "none", "proof_window_blocks": 0}
        return machine.open(durability="sync", history_blocks=0, **fields)

    def prepare(self, machine: Machine) -> None:
        super().prepare(machine)
        for path, data in machine.fs.files().items():
            if path.suffix == ".seg":
                ORIGINALS[int(path.stem)] = bytes(data)

    def prune(self, store: Store, below: int, steps: int = 10**9) -> bool:
        left = iter(range(steps))

        def keep_going() -> bool:
            return next(left, None) is not None

        policy = RetentionPolicy("below", below)
        return store.retention.prune(policy, without_archive=True, keep_going=keep_going).complete

    def __call__(self, machine: Machine, acks: Acks) -> None:
        acks.done(BLOCKS)
        store = self.open(machine)
        assert not self.prune(store, LOW, 20)
        store.add(CHAIN[BLOCKS])
        acks.done()
        assert self.prune(store, LOW)
        assert self.prune(store, HIGH)
        store.add(CHAIN[BLOCKS + 1])
        acks.done()
        assert store.retention.refill(original, from_height=LOW).segments
        assert store.retention.refill(original).floor_after == 0
        store.close()

    def check(self, machine: Machine) -> int:
        store = self.open(machine)
        assert store.tip is not None
        count = store.tip.height + 1
        self.judge(store, CHAIN[:count])
        assert self.prune(store, HIGH)
        assert self.judge(store, CHAIN[:count]) == list(range(HIGH))
        assert store.retention.refill(original).floor_after == 0
        assert_reads(store, CHAIN[:count])
        store.close()
        assert not [path for path in machine.fs.files() if path.name.endswith(".seg.tmp")]
        return count

    def judge(self, store: Store, blocks: list[Block]) -> list[int]:
        """Heights without a body: the journal said so before, and the rest of them verifies."""
        journal = writer_backend(store).opened.journal
        floor = 0
        for frame in journal.frames(1):
            for index, part in enumerate(frame.parts):
                if part.kind == Kind.FLOOR:
                    floor = max(floor, int.from_bytes(journal.part(frame, index)[:8], "big"))
        for segment in journal.segments():
            journal.verify_segment(segment.number)
        lost = []
        for block in blocks:
            info = store.blocks.at(block.height)
            assert info is not None
            assert (info.hash, store.blocks.header(info)) == (block.hash, block.header)
            try:
                assert store.blocks.body(info) == block.body
            except PrunedError:
                lost.append(block.height)
        assert all(height < floor for height in lost), f"floor {floor}, lost {lost}"
        return lost


WORK = {"compact": Compacted(), "retention": Retained()}


def explored(images_max: int, save: Path, name: str) -> Report:
    work = WORK[name]
    return explore(work, work.check, prepare=work.prepare, images=images_max, seed=0, save=save)


@pytest.mark.crash
@pytest.mark.parametrize("name", WORK)
def test_no_image_loses_anything(name: str, tmp_path: Path, crash_rounds: int) -> None:
    found = require(explored(IMAGES_ALL if crash_rounds >= ALL_FROM else IMAGES, tmp_path, name))
    print(f"{name}: {found}")
    met(2, found.images)
    met(3, found.kinds["torn"])
    met(4, found.in_recovery)
    assert found.images >= IMAGES * 3 // 4


def life(machine: Machine, name: str) -> list[HoldfastError]:
    """The workload up to the crash or the error, and what was raised."""
    errors: list[HoldfastError] = []
    with machine.running():
        try:
            WORK[name](machine, Acks())
        except SimulatedCrash:
            pass
        except HoldfastError as error:
            errors.append(error)
        machine.abandon()
    return errors


@pytest.mark.crash
@pytest.mark.parametrize("name", WORK)
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_error_at_every_operation(tmp_path: Path, code: int, name: str, crash_rounds: int) -> None:
    """A typed error, nothing is lost, and the store that is opened again goes on."""
    work = WORK[name]
    machine = new_machine(tmp_path)
    with machine.running():
        work.prepare(machine)
    whole = machine.crash(random.Random(1), "all")
    assert not life(whole, name)
    counts: Counter[str] = Counter()
    for at in range(1, whole.fs.operations + 1, 7 if crash_rounds < ALL_FROM else 1):
        again = machine.crash(random.Random(1), "all")
        again.fs.faults = (Fault(at, error=code, torn=True),)
        counts["raised"] += bool(life(again, name))
        again.fs.faults = ()
        for image in images(again, at, 0):
            counts["images"] += 1
            with image.running():
                assert work.check(image) >= BLOCKS
    row = 11 if code == errno.ENOSPC else 12
    report(f"{name}, {errno.errorcode[code]}", counts, at_least={"raised": 5}, rows={row: "raised"})


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


def does_not_read_back(patch: pytest.MonkeyPatch) -> None:
    """A file that gives other bytes, their hashes right, is used as it is."""

    def check(fs: FileSystem, path: Path, source: File, *rest: Any) -> int:
        rest[-1](source.size())
        file = fs.open(path, read_only=True)
        try:
            return file.size()
        finally:
            file.close()

    compress = Packer.compress
    patch.setattr(compaction, "_check", check)
    patch.setattr(
        Packer, "compress", staticmethod(lambda raw: compress(raw[:-200] + bytes([raw[-200] ^ 1]) + raw[-199:]))
    )


def drops_before_it_says_so(patch: pytest.MonkeyPatch) -> None:
    write = Writer.write_rows

    def later(self: Writer, parts: list[Part], rows: Callable[[], Rows]) -> int:
        return self.journal.durable_seq if parts[0].kind == Kind.FLOOR else write(self, parts, rows)

    patch.setattr(Writer, "write_rows", later)


@pytest.mark.crash
@pytest.mark.parametrize(
    ("bug", "name"),
    [
        (publishes_what_is_not_synced, "compact"),
        (publishes_what_is_not_synced, "retention"),
        (removes_the_old_one_first, "compact"),
        (does_not_read_back, "compact"),
        (drops_before_it_says_so, "retention"),
    ],
)
def test_planted_bug_is_found(bug: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    try:
        found = explored(600, tmp_path, name)
    except (HoldfastError, AssertionError) as error:  # the run itself met it
        print(f"{bug.__name__}: {error}")
        return
    assert found.failures, "the bug was not found"
    print(f"{bug.__name__}: {found.images} images, {found.failures[0].text[:150]}")
