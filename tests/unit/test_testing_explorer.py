"""The crash explorer on a file of records: each verdict is reached, counts are honest, a failure is seen again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.errors import HoldfastError, InvalidInputError
from holdfast.testing.crashfs import CrashableFileSystem
from holdfast.testing.explorer import Acks, CrashFound, Report, explore, require
from holdfast.testing.images import IMAGE_KINDS, Moment, build, choices
from holdfast.testing.machine import Machine, new_machine

RECORD = 700
COUNT = 6
PLAIN = ("create", "pwrite", "sync", "sync_directory", "change alone", "torn", "random")


def record(number: int) -> bytes:
    """The ``number``-th record: longer than a sector, its number at both ends."""
    return b"%04d" % number + bytes([number]) * (RECORD - 8) + b"%04d" % number


def appends(*, sync: bool = True, together: int = 1) -> Callable[[Machine, Acks], None]:
    """A log: ``together`` records are written, synced, and acknowledged."""

    def workload(machine: Machine, acks: Acks) -> None:
        file = machine.fs.open(machine.root / "log", create=True)
        machine.fs.sync_directory(machine.root)
        for first in range(1, COUNT + 1, together):
            acks.begin(first + together - 1)
            for number in range(first, first + together):
                file.pwrite(record(number), (number - 1) * RECORD)
            if sync:
                file.sync()
            acks.done(first + together - 1)

    return workload


def held(machine: Machine) -> int:
    """How many whole records stand at the beginning of the log; what is behind them is cut off, as a recovery does."""
    path = machine.root / "log"
    if not machine.fs.exists(path):
        return 0
    file = machine.fs.open(path)
    count = 0
    while file.pread(RECORD, count * RECORD) == record(count + 1):
        count += 1
    file.truncate(count * RECORD)
    file.sync()
    return count


def run(workload: Callable[[Machine, Acks], None], check: Callable[[Machine], int] = held, **more: object) -> Report:
    given: dict[str, object] = {"images": 150, "expect": PLAIN}
    return explore(workload, check, **(given | more))  # type: ignore[arg-type]


def test_a_log_that_syncs_is_good_and_every_image_is_counted() -> None:
    report = require(run(appends(), expect=(*PLAIN, "recovery")))
    assert report.verdicts == {"ok": report.images + report.known}
    assert sum(report.kinds.values()) == sum(report.after.values()) == report.images + report.known
    assert report.operations == {"create": 1, "sync_directory": 1, "pwrite": COUNT, "sync": COUNT}
    assert report.acknowledged == COUNT
    assert report.in_recovery > 20
    assert json.loads(json.dumps(report.as_dict()))["failures"] == []
    assert f"{report.images} images" in str(report)


def test_the_same_seed_is_the_same_run_and_another_is_not() -> None:
    one, two, other = (run(appends(together=3), seed=seed).as_dict() for seed in (1, 1, 2))
    for each in (one, two, other):
        each.pop("seconds")
        each.pop("seed")
    assert one == two != other


@pytest.mark.parametrize("together", [2, 3])
def test_records_that_are_acknowledged_together_may_be_there_in_part(together: int) -> None:
    assert run(appends(together=together)).ok


def test_a_log_that_does_not_sync_is_lost() -> None:
    report = run(appends(sync=False))
    (failure,) = report.failures
    assert failure.verdict == "LOST"
    assert report.verdicts["LOST"] == 1
    with pytest.raises(CrashFound, match=r"LOST at \d+\.\d+.*acknowledged(.|\n)*again: explore"):
        require(report)


def test_a_recovery_that_shows_what_it_does_not_sync_is_lost() -> None:
    def careless(machine: Machine) -> int:
        path = machine.root / "log"
        if not machine.fs.exists(path):
            return 0
        file = machine.fs.open(path)
        count = 0
        while file.pread(RECORD, count * RECORD) == record(count + 1):
            count += 1
        file.truncate(count * RECORD)
        return count

    (failure,) = run(appends(), careless, images=400).failures
    assert failure.verdict == "LOST"
    assert "/" in failure.place


def test_more_than_was_begun_is_the_future() -> None:
    (failure,) = run(appends(), lambda machine: held(machine) + 2).failures
    assert failure.verdict == "FUTURE"


def test_wrong_content_is_torn() -> None:
    def check(machine: Machine) -> int:
        data = machine.fs.files().get(machine.root / "log", b"")
        assert all(data[at : at + RECORD] == record(at // RECORD + 1) for at in range(0, len(data), RECORD)), "torn"
        return len(data) // RECORD

    (failure,) = run(appends(), check).failures
    assert failure.verdict == "TORN"
    assert failure.text.startswith("AssertionError: torn")
    assert "(test_testing_explorer.py:" in failure.text


@pytest.mark.parametrize("error", [ValueError("odd"), HoldfastError("typed")])
def test_whatever_a_check_raises_is_a_finding(error: Exception) -> None:
    def check(_machine: Machine) -> int:
        raise error

    (failure,) = run(appends(), check).failures
    assert failure.verdict == "error"
    assert type(error).__name__ in failure.text


def test_a_check_that_does_not_end_hangs() -> None:
    def check(_machine: Machine) -> int:
        while True:
            pass

    (failure,) = run(appends(), check, image_seconds=0.01).failures
    assert failure.verdict == "hang"


def test_what_was_never_met_fails_the_run() -> None:
    report = run(appends(), expect=(*PLAIN, "rename", "name alone"))
    assert report.missed == ("rename", "name alone")
    assert not report.ok
    with pytest.raises(CrashFound, match="never met: rename, name alone"):
        require(report)


def test_a_workload_that_acknowledges_nothing_proves_nothing() -> None:
    with pytest.raises(InvalidInputError, match="acknowledged nothing"):
        run(lambda machine, acks: machine.fs.make_directory(machine.root))


def test_a_failure_is_kept_as_files_and_seen_again(tmp_path: Path) -> None:
    (failure,) = run(appends(sync=False), save=tmp_path).failures
    assert failure.saved is not None
    facts = json.loads((failure.saved / "failure.json").read_text())
    assert (facts["verdict"], facts["again"]) == ("LOST", f"explore(..., seed=0, only={failure.place!r})")
    assert (failure.saved / "engines.json").exists()
    (again,) = run(appends(sync=False), only=failure.place).failures
    assert (again.verdict, again.kind) == (failure.verdict, failure.kind)
    assert run(appends(), only=failure.place).ok


@pytest.mark.parametrize("place", ["", "x", "1", "1.", "999.1", "0.5", "1.1/2.1/3.1"])
def test_an_image_that_is_not_there_is_refused(place: str) -> None:
    with pytest.raises(InvalidInputError):
        run(appends(), only=place)


def two_names(machine: Machine, acks: Acks) -> None:
    """``b`` is named after ``a`` and synced; nobody syncs the directory of ``a``."""
    for name in ("a", "b"):
        machine.fs.open(machine.root / name, create=True).pwrite(b"x" * 600, 0)
    acks.done()
    machine.fs.sync_directory(machine.root)


def test_names_change_in_order_on_ext4_and_each_for_itself_under_the_strict_reading() -> None:
    def seen(profiles: tuple[str, ...]) -> set[tuple[str, ...]]:
        found: set[tuple[str, ...]] = set()

        def check(machine: Machine) -> int:
            found.add(tuple(machine.fs.names(machine.root)))
            return 1

        run(two_names, check, profiles=profiles, expect=(), images=300)
        return found

    assert seen(("ext4",)) == {(), ("a",), ("a", "b")}
    assert seen(("strict",)) == seen(("ext4", "strict")) == {(), ("a",), ("b",), ("a", "b")}


def a_directory_is_renamed(machine: Machine, acks: Acks) -> None:
    """``d`` with ``a`` is there; ``b`` of it goes, ``d`` is ``e``, and ``c`` comes, which alone is synced."""
    fs, root = machine.fs, machine.root
    fs.make_directory(root / "d")
    for name in ("a", "b"):
        fs.open(root / "d" / name, create=True)
    fs.sync_directory(root / "d")
    acks.done()
    fs.remove(root / "d/b")
    fs.rename(root / "d", root / "e")
    fs.open(root / "e/c", create=True)
    fs.sync_directory(root / "e")
    acks.done()
    fs.sync_directory(root)


def test_a_directory_is_one_thing_under_its_old_and_its_new_name() -> None:
    found: set[tuple[str, ...]] = set()

    def check(machine: Machine) -> int:
        names = {str(path.relative_to(machine.root)) for path in machine.fs.files() if path.parent != machine.root}
        assert len({name[0] for name in names}) < 2, f"in two places at once: {names}"
        found.add(tuple(sorted(names)))
        for name in {name[0] for name in names}:  # what it tells stays
            machine.fs.sync_directory(machine.root / name)
        if {"d/c", "e/c"} & names and not {"d/b", "e/b"} & names:
            return 2
        return int(bool(names))

    report = run(a_directory_is_renamed, check, expect=(), images=2000)
    assert not report.failures, report.failures
    whole = {("d/a", "d/b"), ("d/a",), ("e/a", "e/b"), ("e/a",), ("d/a", "d/c"), ("e/a", "e/c")}
    assert whole <= found, "every state is met"


def test_a_sync_of_a_new_file_commits_the_names_before_it_on_ext4_alone() -> None:
    fs = CrashableFileSystem()
    fs.make_directory(Path("d"))
    fs.open(Path("d/a"), create=True)
    new = fs.open(Path("d/b"), create=True)
    assert [name.journalled for name in fs.state().pending] == [False, False]
    new.sync()
    assert [name.journalled for name in fs.state().pending] == [True, True]
    assert fs.state().names == {}


def test_every_image_has_what_was_synced_and_no_other_bytes() -> None:
    """Against the definition: a sector of an image is that of the synced file or of one that was written there."""
    machine = new_machine()
    machine.fs.make_directory(machine.root)
    file = machine.fs.open(machine.root / "f", create=True)
    machine.fs.sync_directory(machine.root)
    file.pwrite(b"A" * 2000, 0)
    file.sync()
    writes = [(b"B" * 1500, 300), (b"C" * 900, 1700), (b"D" * 600, 0)]
    for data, offset in writes:
        file.pwrite(data, offset)

    moment = Moment(1, "pwrite", machine.fs.state(), (), 0)
    met = set()
    for choice, _ in zip(choices(moment, seed=3), range(300), strict=False):
        met.add(choice.kind)
        data = build(moment, choice).boot(machine.root).fs.files()[machine.root / "f"]
        assert 2000 <= len(data) <= 2600
        assert {*data[:300]} <= {*b"AD"}
        assert {*data[600:1700]} <= {*b"AB"}
        assert {*data[2000:]} <= {*b"C\0"}
        for at in range(0, 300, 512):
            assert len({*data[at : at + 300]}) == 1, "a sector is mixed"
    assert met == {*IMAGE_KINDS} - {
        "names only",
        "data only",
        "names in order",
        "name omitted",
        "name alone",
        "batches",
    }
