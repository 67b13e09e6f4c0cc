"""The writing journal: order, durability, rolling, poison, limits, close and reopen."""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast._fs import File, FileSystem, MemoryFileSystem, RealFileSystem
from holdfast.errors import (
    ClosedError,
    CorruptionError,
    DeviceError,
    ForeignStore,
    InvalidInputError,
    LimitExceeded,
    NotFoundError,
    OutOfSpace,
    PoisonedError,
)
from holdfast.journal import Journal, JournalOptions, Kind, Part, TipMark
from holdfast.journal.prepare import SegmentMaker
from holdfast.testing.crashfs import CrashableFileSystem, Fault

DATA = Path("/data")
STORE_ID = bytes(16)
SALT = bytes(range(32))
SMALL = JournalOptions(segment_bytes_first=1024, segment_bytes_max=4096, background=False, compression="none")
FIRST = [Part(Kind.BASE, b"base", critical=True)]


def make(fs: FileSystem, directory: Path = DATA, options: JournalOptions = SMALL) -> Journal:
    return Journal.create(fs, directory, store_id=STORE_ID, salt=SALT, first_parts=FIRST, options=options)


def again(fs: FileSystem, directory: Path = DATA, options: JournalOptions = SMALL) -> Journal:
    return Journal.open(fs, directory, store_id=STORE_ID, salt=SALT, options=options)[0]


def note(number: int) -> list[Part]:
    return [Part(Kind.NOTE, b"note %d" % number)]


def texts(journal: Journal, start: int = 1) -> list[bytes]:
    return [journal.part(frame, 0) for frame in journal.frames(start)]


@pytest.mark.parametrize("kind", ["memory", "real", "crash"])
def test_frames_come_back_in_order_over_segments_and_reopening(tmp_path: Path, kind: str) -> None:
    systems: dict[str, FileSystem] = {
        "memory": MemoryFileSystem(),
        "real": RealFileSystem(),
        "crash": CrashableFileSystem(),
    }
    fs, place = systems[kind], tmp_path / "store" if kind == "real" else DATA
    fs.make_directory(place)
    journal = make(fs, place)
    expected = [b"base"]
    for number in range(60):
        assert journal.append(note(number)) == number + 2
        expected.append(b"note %d" % number)
    assert journal.durable_seq < journal.appended_seq == 61
    assert texts(journal) == expected
    assert journal.sync() == 61
    assert journal.frame(30).seq == 30
    assert journal.part(journal.frame(30), 0) == b"note 28"
    assert [frame.seq for frame in journal.frames(5, 8)] == [5, 6, 7]
    assert len(journal.segments()) > 2
    journal.close()
    journal = again(fs, place)
    assert texts(journal) == expected
    assert sum(journal.verify_segment(info.number) for info in journal.segments()) == 61
    journal.close()


def test_opening_and_closing_changes_no_file(tmp_path: Path) -> None:
    fs = RealFileSystem()
    journal = make(fs, tmp_path, JournalOptions(segment_bytes_first=4096, segment_bytes_max=8192))
    journal.append(note(1))
    journal.close()

    def state() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    before = state()
    assert set(before) == {str(tmp_path / "watermark"), str(tmp_path / "journal" / "0000000001.seg")}
    journal, recovery = Journal.open(fs, tmp_path, store_id=STORE_ID, salt=SALT)
    assert recovery.clean
    assert recovery.frames_scanned == 0
    journal.close()
    assert state() == before


def test_nothing_is_found_beyond_the_ends() -> None:
    journal = make(CrashableFileSystem())
    for seq in (0, 2, 99):
        with pytest.raises(NotFoundError):
            journal.frame(seq)
    with pytest.raises(NotFoundError):
        journal.frames(0)
    assert list(journal.frames(2)) == []
    with pytest.raises(InvalidInputError):
        journal.sync(2)


def test_a_closed_journal_says_so() -> None:
    journal = make(CrashableFileSystem())
    journal.close()
    journal.close()
    with pytest.raises(ClosedError):
        journal.append(note(1))
    with pytest.raises(ClosedError):
        journal.frame(1)


def test_the_watermark_repeats_the_tip() -> None:
    fs = CrashableFileSystem()
    journal = make(fs)
    tip = TipMark(7, bytes([1]) * 32, bytes([2]) * 32)
    journal.append(note(1), tip=tip)
    journal.append(note(2))
    journal.close()
    journal = again(fs)
    assert journal.tip == tip
    with pytest.raises(InvalidInputError):
        journal.append(note(3), tip=TipMark(7, b"short", bytes(32)))


def test_a_frame_larger_than_a_segment_gets_its_own() -> None:
    fs = CrashableFileSystem()
    journal = make(fs)
    big = random.Random(1).randbytes(50_000)
    journal.append(note(1))
    seq = journal.append([Part(Kind.BODY, big)])
    journal.append(note(2))
    journal.sync()
    assert journal.part(journal.frame(seq), 0) == big
    assert journal.verify_segment(journal.frame(seq).segment) == 1
    journal.close()
    assert len(texts(again(fs))) == 4


def test_carried_parts_begin_each_new_segment() -> None:
    fs = CrashableFileSystem()
    newest = [b"none"]
    options = JournalOptions(
        segment_bytes_first=1024,
        segment_bytes_max=1024,
        background=False,
        carry=lambda: [Part(Kind.SAFETY, newest[0], critical=True)],
    )
    journal = make(fs, options=options)
    for number in range(20):
        newest[0] = b"vote %d" % number
        journal.append([Part(Kind.BODY, bytes(200))])
    journal.sync()
    infos = journal.segments()
    assert len(infos) > 3
    for info in infos[1:]:
        frame = journal.frame(info.first_seq)
        assert frame.parts[0].kind == Kind.SAFETY
        assert journal.part(frame, 0).startswith(b"vote")


def test_a_limit_does_not_poison() -> None:
    journal = make(CrashableFileSystem())
    with pytest.raises(LimitExceeded):
        journal.append([Part(1, b"")] * 5000)
    with pytest.raises(InvalidInputError):
        journal.append([])
    with pytest.raises(InvalidInputError):
        journal.append(note(1), time_us=-1)
    assert journal.sync(journal.append(note(1))) == 2


def test_no_room_for_the_next_segment_does_not_poison() -> None:
    fs = CrashableFileSystem()
    journal = make(fs)
    fs.faults = (Fault(fs.counts["create"] + 1, error=errno.ENOSPC, persistent=True, only=frozenset({"create"})),)
    appended = 1

    def fill() -> None:
        nonlocal appended
        for number in range(1000):
            journal.sync(journal.append(note(number)))
            appended += 1

    with pytest.raises(OutOfSpace):
        fill()
    assert journal.poisoned is None
    assert journal.durable_seq == appended > 5
    fs.faults = ()
    assert journal.sync(journal.append(note(99))) == appended + 1
    journal.close()
    assert len(texts(again(fs))) == appended + 1


@pytest.mark.parametrize("kind", ["pwrite", "sync"])
def test_a_failed_write_or_sync_poisons(kind: str) -> None:
    fs = CrashableFileSystem()
    journal = make(fs)
    journal.sync(journal.append(note(1)))
    fs.faults = (Fault(fs.counts[kind] + 1, error=errno.EIO, only=frozenset({kind})),)
    with pytest.raises(DeviceError):
        journal.sync(journal.append(note(2)))
    for _ in range(2):
        with pytest.raises(PoisonedError) as caught:
            journal.append(note(3))
        assert isinstance(caught.value.__cause__, DeviceError)
        with pytest.raises(PoisonedError):
            journal.sync()
    assert journal.appended_seq == journal.durable_seq == 2
    assert texts(journal) == [b"base", b"note 1"]
    with pytest.raises(NotFoundError):
        journal.frame(3)
    journal.close()
    journal = again(fs)
    assert texts(journal)[:2] == [b"base", b"note 1"]
    assert journal.sync(journal.append(note(4))) >= 3


class SlowSync(CrashableFileSystem):
    """Each sync of a segment takes a while, as on a disk; it may be made to fail."""

    delay = 0.02

    def open(self, path: Path, *, create: bool = False, read_only: bool = False) -> File:
        file = super().open(path, create=create, read_only=read_only)
        real = file.sync

        class Slow:
            def __init__(self) -> None:
                self.path = file.path

            def __getattr__(self, name: str) -> object:
                return getattr(file, name)

            def sync(self) -> None:
                time.sleep(SlowSync.delay)
                real()

        return Slow()  # type: ignore[return-value]


def run_threads(count: int, work: Callable[[int], None]) -> None:
    failures: list[BaseException] = []

    def guarded(index: int) -> None:
        try:
            work(index)
        except BaseException as error:  # noqa: BLE001 - reported below
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "a thread hangs"
    if failures:
        raise failures[0]


@pytest.mark.parametrize("wait_ms", [0, 1])
def test_threads_share_a_sync(wait_ms: float) -> None:
    fs = SlowSync()
    told: list[int] = []
    options = JournalOptions(
        segment_bytes_first=2048,
        segment_bytes_max=2048,
        background=False,
        group_commit_ms=wait_ms,
        on_durable=told.append,
    )
    journal = make(fs, options=options)
    acked: dict[int, bytes] = {}
    before = fs.counts["sync"]

    def work(index: int) -> None:
        for number in range(12):
            data = b"%d/%d" % (index, number)
            seq = journal.append([Part(Kind.NOTE, data)])
            assert journal.sync(seq) >= seq
            acked[seq] = data

    run_threads(8, work)
    assert len(acked) == 96
    assert sorted(acked) == list(range(2, 98))
    assert told == sorted(told)
    assert told[-1] == 97
    rolls = len(journal.segments())
    assert fs.counts["sync"] - before < 96 / 2 + 3 * rolls, "syncs were not shared"
    after = fs.crash(random.Random(1), keep="none")
    journal = again(after)
    for seq, data in acked.items():
        assert journal.part(journal.frame(seq), 0) == data


def test_waiters_of_a_failed_sync_are_poisoned_and_do_not_hang() -> None:
    fs = SlowSync()
    # one segment: nobody waits for a sync of the next one, and making it may fail without harm
    journal = make(fs, options=replace(SMALL, segment_bytes_first=1 << 20, segment_bytes_max=1 << 20))
    fs.faults = (Fault(fs.counts["sync"] + 3, error=errno.EIO, only=frozenset({"sync"})),)
    outcomes: list[type[BaseException]] = []
    acked: list[int] = []

    def work(index: int) -> None:
        try:
            for number in range(100):
                seq = journal.append(note(index * 100 + number))
                journal.sync(seq)
                acked.append(seq)
        except (PoisonedError, DeviceError) as error:
            outcomes.append(type(error))

    run_threads(8, work)
    assert len(outcomes) == 8
    assert outcomes.count(DeviceError) == 1
    assert max(acked, default=1) <= journal.durable_seq
    survivor = again(fs.crash(random.Random(1), keep="none"))
    assert survivor.durable_seq >= max(acked, default=1)


def test_reading_while_writing_never_sees_a_half_frame(tmp_path: Path) -> None:
    options = JournalOptions(segment_bytes_first=8192, segment_bytes_max=8192)
    journal = make(RealFileSystem(), tmp_path, options)
    done = threading.Event()

    def work(index: int) -> None:
        if index == 0:
            for number in range(400):
                journal.append([Part(Kind.NOTE, b"%d" % number), Part(Kind.BODY, bytes(number))])
            journal.sync()
            done.set()
            return
        chooser = random.Random(index)
        while not done.is_set():
            seq = chooser.randint(1, journal.appended_seq)
            frame = journal.frame(seq)
            if seq > 1:
                assert journal.part(frame, 0) == b"%d" % (seq - 2)
            for frame in journal.frames(max(1, seq - 5), seq):
                journal.part(frame, 0)

    run_threads(3, work)
    journal.close()


def test_the_next_segment_is_made_in_the_background(tmp_path: Path) -> None:
    options = JournalOptions(segment_bytes_first=1 << 16, segment_bytes_max=1 << 17)
    others = set(threading.enumerate())  # of tests that left a journal open
    journal = make(RealFileSystem(), tmp_path, options)
    deadline = time.monotonic() + 60
    while not (tmp_path / "journal" / "0000000002.seg").exists():
        assert time.monotonic() < deadline, "no segment was prepared"
        time.sleep(0.002)
    prepared = (tmp_path / "journal" / "0000000002.seg").read_bytes()
    assert len(prepared) == 1 << 17
    assert not prepared.strip(b"\0")
    journal.close()
    assert sorted(path.name for path in (tmp_path / "journal").iterdir()) == ["0000000001.seg"]
    assert not [each for each in set(threading.enumerate()) - others if each.name == "holdfast-journal"]


def test_an_unfinished_creation_is_replaced_and_a_journal_is_not() -> None:
    fs = CrashableFileSystem()
    make(fs).close(clean=False)
    journal = make(fs)
    journal.append(note(1))
    journal.close(clean=False)
    before = fs.files()
    with pytest.raises(ForeignStore):
        make(fs)
    assert fs.files() == before


def test_a_foreign_segment_is_named() -> None:
    fs, other = CrashableFileSystem(), CrashableFileSystem()
    make(fs).close()
    Journal.create(other, DATA, store_id=b"o" * 16, salt=SALT, first_parts=FIRST, options=SMALL).close()
    name = DATA / "journal" / "0000000001.seg"
    mixed = CrashableFileSystem.from_files({**fs.files(), name: other.files()[name]}, fs.directories())
    with pytest.raises(CorruptionError, match="another store") as caught:
        again(mixed)
    assert caught.value.context["path"] == name


def test_a_forged_frame_in_a_body_is_not_taken_for_a_frame() -> None:
    """A body that holds a whole valid frame of another salt, on a multiple of 8, proves nothing."""
    forger = CrashableFileSystem()
    forged = Journal.create(forger, DATA, store_id=STORE_ID, salt=b"f" * 32, first_parts=FIRST, options=SMALL)
    for number in range(3):
        forged.sync(forged.append(note(number)))
    body = forger.files()[DATA / "journal" / "0000000001.seg"][128:900]
    fs = CrashableFileSystem()
    journal = make(fs)
    journal.sync(journal.append(note(1)))
    journal.append([Part(Kind.BODY, body + bytes(-len(body) % 8))])
    assert fs.crash(random.Random(0), keep="none").files()
    path = journal.segments()[-1].path
    frame = journal.frame(3)
    files = fs.files()
    torn = bytearray(files[path])
    torn[frame.offset + 8] ^= 1
    fs2 = CrashableFileSystem.from_files({**files, path: bytes(torn)}, fs.directories())
    survivor, recovery = Journal.open(fs2, DATA, store_id=STORE_ID, salt=SALT, options=SMALL)
    assert survivor.durable_seq == 2
    assert len(recovery.discarded) == 1


def test_a_later_frame_that_knows_better_forbids_the_cut() -> None:
    """Rule 2: the watermark is old, but a later frame says that the damaged one was durable."""
    fs = CrashableFileSystem()
    options = JournalOptions(segment_bytes_first=1 << 16, segment_bytes_max=1 << 16, background=False)
    journal = make(fs, options=options)
    old = fs.files()[DATA / "watermark"]
    for number in range(4):
        journal.sync(journal.append(note(number)))
    files = {**fs.files(), DATA / "watermark": old}
    path = journal.segments()[-1].path

    def damaged(seq: int) -> CrashableFileSystem:
        data = bytearray(files[path])
        data[journal.frame(seq).offset + 80] ^= 1
        return CrashableFileSystem.from_files({**files, path: bytes(data)}, fs.directories())

    for seq in (2, 3, 4):
        with pytest.raises(CorruptionError, match="acknowledged"):
            again(damaged(seq))
    survivor = again(damaged(5))
    assert survivor.durable_seq == 4


def test_on_a_nearly_full_disk_segments_become_small(monkeypatch: pytest.MonkeyPatch) -> None:
    real = SegmentMaker._make

    def nearly_full(self: SegmentMaker, number: int, size: int, *, gently: bool) -> File:
        if size > 1024:
            raise OutOfSpace("no room", path=DATA)
        return real(self, number, size, gently=gently)

    monkeypatch.setattr(SegmentMaker, "_make", nearly_full)
    fs = CrashableFileSystem()
    journal = make(fs)
    for number in range(30):
        journal.sync(journal.append(note(number)))
    with pytest.raises(OutOfSpace):
        journal.append([Part(Kind.BODY, bytes(2000))])
    assert journal.sync(journal.append(note(30))) == 32
    journal.close()
    assert len(texts(again(fs))) == 32


def test_closing_does_not_wait_for_a_large_segment(tmp_path: Path) -> None:
    options = JournalOptions(segment_bytes_first=4096, segment_bytes_max=64 << 20)
    journal = make(RealFileSystem(), tmp_path, options)
    journal._segment_bytes_next = 64 << 20
    journal._maker.discard()
    journal._prepare_next()
    time.sleep(0.02)
    begun = time.monotonic()
    journal.close()
    assert time.monotonic() - begun < 2
    assert sorted(path.name for path in (tmp_path / "journal").iterdir()) == ["0000000001.seg"]


def test_a_segment_is_synced_before_it_gets_its_name_and_its_directory_after() -> None:
    fs = CrashableFileSystem()
    journal = make(fs)
    renames = [index for index, (kind, name) in enumerate(fs.log) if kind == "rename" and name.startswith("0000")]
    assert len(renames) == 2
    for index in renames:
        assert fs.log[index - 1] == ("sync", fs.log[index][1])
        assert fs.log[index + 1] == ("sync_directory", "journal")
    journal.close()


def test_frames_of_another_history_are_refused() -> None:
    """After a kill, too: as many frames of the same lengths, from a copy that went on by itself, are not ours."""
    fs = CrashableFileSystem()
    journal = make(fs)
    journal.sync(journal.append(note(1)))
    images = []
    for number in (2, 3):
        copy = fs.crash(random.Random(0), keep="all")
        journal = again(copy)
        journal.sync(journal.append(note(number)))
        images.append(copy.crash(random.Random(0), keep="all").files())
    ours, theirs = images
    (segment,) = (path for path in ours if path.suffix == ".seg" and ours[path] != theirs[path])
    with pytest.raises(CorruptionError, match="two histories"):
        again(CrashableFileSystem.from_files({**ours, segment: theirs[segment]}, fs.directories()))


def test_a_seal_of_another_history_is_refused() -> None:
    """The watermark of a clean close names exactly one end: not a shorter one, sealed just as well."""
    fs = CrashableFileSystem()
    journal = make(fs)
    journal.sync(journal.append(note(1)))
    short = fs.crash(random.Random(0), keep="all")
    journal.sync(journal.append(note(2)))
    journal.close()
    again(short).close()
    files = {**short.files(), DATA / "watermark": fs.files()[DATA / "watermark"]}
    with pytest.raises(CorruptionError, match="watermark"):
        again(CrashableFileSystem.from_files(files, fs.directories()))
