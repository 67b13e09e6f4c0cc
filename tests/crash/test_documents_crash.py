"""Power cuts and errors at every operation of a store of documents: whole batches, none of those that returned lost."""

from __future__ import annotations

import contextlib
import errno
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from holdfast import Store
from holdfast.errors import HoldfastError
from holdfast.journal.api import Kind, Part
from holdfast.journal.journal import Journal
from holdfast.spaces.records import encode_documents, row_prefix
from holdfast.store import replay
from holdfast.testing.crashfs import Fault, SimulatedCrash
from holdfast.testing.machine import Machine, new_machine
from holdfast.views.api import Rows
from tests.crash.machine import images, open_on
from tests.crash.support import report

ALL_FROM = 200
Content = dict[bytes, bytes]


def batch_of(number: int) -> tuple[Content, list[bytes]]:
    """The ``number``-th batch: always the same, over few keys, some of it long enough for several sectors."""
    rng = random.Random(number)
    puts = {b"%d" % rng.randrange(12): rng.randbytes(rng.choice((0, 9, 700))) for _ in range(rng.randrange(1, 5))}
    gone = sorted({b"%d" % rng.randrange(12) for _ in range(2)} - puts.keys())
    return puts | {b"last": b"%d" % number}, gone


def content_after(count: int) -> Content:
    """What is there after so many batches."""
    content: Content = {}
    for number in range(count):
        puts, gone = batch_of(number)
        for key in gone:
            content.pop(key, None)
        content |= puts
    return content


@dataclass
class Life:
    """One machine, the batches that were begun and those that returned."""

    machine: Machine
    begun: int = 0
    returned: int = 0
    store: Store | None = None
    errors: list[HoldfastError] = field(default_factory=list)

    def write(self) -> None:
        assert self.store is not None
        self.begun = self.returned + 1
        self.store.documents("s").write(*batch_of(self.returned))
        self.returned += 1

    def open(self) -> None:
        self.store = open_on(self.machine)

    def abandon(self) -> None:
        """The process is gone."""
        self.store = None
        self.machine.abandon()

    def work(self, count: int) -> None:
        for _ in range(count):
            self.write()

    def close(self) -> None:
        store, self.store = self.store, None
        assert store is not None
        store.close()

    def flush(self) -> None:
        assert self.store is not None
        self.store.flush()

    def live(self) -> None:
        """Create, work, flush, close; open, work, die; open, flush, close - up to the crash or the error."""
        with self.machine.running():
            try:
                self.open()
                self.work(10)
                self.flush()
                self.work(6)
                self.close()
                self.open()
                self.work(6)
                self.flush()
                self.work(2)
                self.abandon()
                self.open()
                self.work(2)
                self.flush()
                self.close()
            except (SimulatedCrash, HoldfastError) as error:
                if isinstance(error, HoldfastError):
                    self.errors.append(error)
            finally:
                with contextlib.suppress(SimulatedCrash, HoldfastError):
                    self.abandon()


def check(life: Life, machine: Machine) -> int:
    """A machine that boots again holds all that returned, and whole batches; 1 if the one in flight is there too."""
    with machine.running():
        store = open_on(machine)
        found = dict(store.documents("s").scan())
        number = int(found.get(b"last", b"-1")) + 1
        assert life.returned <= number <= life.begun, f"{number} batches, {life.returned} returned, {life.begun} begun"
        assert found == content_after(number)
        store.documents("s").write(*batch_of(number))
        store.close()
        store = open_on(machine)
        assert dict(store.documents("s").scan()) == content_after(number + 1)
        store.close()
    return number - life.returned


def operations(root: Path) -> int:
    """How many operations a whole life has."""
    life = Life(new_machine(root))
    life.live()
    assert not life.errors
    assert life.returned == 26
    return life.machine.fs.operations


def explore(root: Path, points: range, count: int) -> Counter[str]:
    """A power cut at each point, and what may be left of it."""
    counts: Counter[str] = Counter()
    for at in points:
        life = Life(new_machine(root, seed=at, faults=(Fault(at, torn=True),)))
        life.live()
        assert life.machine.fs.hits == 1, f"operation {at} was never made"
        life.machine.fs.faults = ()
        for image in images(life.machine, at, count):
            counts["images"] += 1
            counts["in flight, kept"] += check(life, image)
    return counts


@pytest.mark.crash
def test_power_cut_at_every_operation(tmp_path: Path, crash_rounds: int) -> None:
    total = operations(tmp_path)
    counts = explore(tmp_path, range(1, total + 1), 1 if crash_rounds < ALL_FROM else 30)
    least = {"images": total, "in flight, kept": 5}
    report(f"documents, power cut, {total} operations", counts, at_least=least, rows={2: "images"})


@pytest.mark.slow
def test_power_cut_at_some_operations(tmp_path: Path) -> None:
    total = operations(tmp_path)
    explore(tmp_path, range(5, total + 1, total // 15), 1)


@pytest.mark.crash
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_error_at_every_operation(tmp_path: Path, code: int, crash_rounds: int) -> None:
    total = operations(tmp_path)
    counts: Counter[str] = Counter()
    for at in range(1, total + 1, 2 if crash_rounds < ALL_FROM else 1):
        life = Life(new_machine(tmp_path, seed=at, faults=(Fault(at, error=code, torn=True),)))
        life.live()
        counts["raised"] += bool(life.errors)
        life.machine.fs.faults = ()
        for image in images(life.machine, at, 1):
            counts["images"] += 1
            check(life, image)
    row = 11 if code == errno.ENOSPC else 12
    report(f"documents, {errno.errorcode[code]}", counts, at_least={"raised": 10}, rows={row: "raised"})


# -- positive controls: each planted bug must be found ---------------------------------------------------------------


def commits_without_a_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Journal, "_sync_file", lambda self, file: None)


def returns_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Store, "_durable", lambda self, writer, seq: writer.on_durable(writer.journal.appended_seq))


def replays_without_documents(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(replay, "document_rows", lambda source, frame: {})


def splits_a_batch(patch: pytest.MonkeyPatch) -> None:
    write = Store._write_documents

    def split(self: Store, _parts: list[Part], rows: Rows) -> None:
        for key, value in rows.items():
            bare = key[len(row_prefix(b"s")) :]
            entries = encode_documents(b"s", {} if value is None else {bare: value}, [bare] if value is None else [])
            write(self, [Part(Kind.DOCUMENTS, entry, True) for entry in entries], {key: value})

    patch.setattr(Store, "_write_documents", split)


@pytest.mark.slow
@pytest.mark.parametrize(
    "bug", [commits_without_a_sync, returns_before_the_sync, replays_without_documents, splits_a_batch]
)
def test_a_planted_bug_is_found(tmp_path: Path, bug: Callable[[pytest.MonkeyPatch], None]) -> None:
    total = operations(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        bug(patch)
        with pytest.raises((AssertionError, HoldfastError)):
            explore(tmp_path, range(3, total, 3), 1)
