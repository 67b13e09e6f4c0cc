"""A reader in another place sees what is durable, soon, and never more."""

from __future__ import annotations

import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from holdfast._fs import RealFileSystem
from holdfast.errors import CorruptionError, MissingFile, NotFoundError, ReadOnlyError
from holdfast.journal import Journal, JournalOptions, JournalReader, Kind, Part
from holdfast.testing.crashfs import CrashableFileSystem

DATA = Path("/data")
STORE_ID = bytes(16)
SALT = bytes(range(32))
SMALL = JournalOptions(segment_bytes_first=1024, segment_bytes_max=2048, background=False, compression="none")
FIRST = [Part(Kind.BASE, b"base")]

CHILD = """
import sys, time
from pathlib import Path
from holdfast._fs import RealFileSystem
from holdfast.journal import JournalReader
reader = JournalReader.open(RealFileSystem(), Path(sys.argv[1]), store_id=bytes(16), salt=bytes(range(32)))
print("ready", flush=True)
seen = 1
while seen < int(sys.argv[2]):
    new = reader.poll()
    for frame in reader.frames(seen + 1):
        print(frame.seq, reader.part(frame, 0).decode(), time.monotonic(), flush=True)
    seen = new
    time.sleep(0.001)
"""


def test_it_follows_the_watermark_over_segments() -> None:
    fs = CrashableFileSystem()
    journal = Journal.create(fs, DATA, store_id=STORE_ID, salt=SALT, first_parts=FIRST, options=SMALL)
    reader = JournalReader.open(fs, DATA, store_id=STORE_ID, salt=SALT)
    before = fs.operations
    for number in range(80):
        seq = journal.append([Part(Kind.NOTE, b"%d" % number)])
        if number % 3:
            journal.sync(seq)
        assert reader.poll() == journal.durable_seq
        assert [frame.seq for frame in reader.frames(1)] == list(range(1, journal.durable_seq + 1))
        assert reader.part(reader.frame(journal.durable_seq), 0) in {b"base", b"%d" % number, b"%d" % (number - 1)}
        if seq > reader.durable_seq:
            with pytest.raises(NotFoundError):
                reader.frame(seq)
    assert fs.operations > before
    journal.close()
    reader.poll()
    assert reader.mark.clean
    assert sum(reader.verify_segment(info.number) for info in reader.segments()) == 81
    late = JournalReader.open(fs, DATA, store_id=STORE_ID, salt=SALT)
    assert len(list(late.frames(1))) == 81
    journal, _ = Journal.open(fs, DATA, store_id=STORE_ID, salt=SALT, options=SMALL)
    journal.sync(journal.append([Part(Kind.NOTE, b"more")]))
    assert reader.poll() == late.poll() == 82
    assert reader.part(reader.frame(82), 0) == b"more"
    reader.close()


def test_it_writes_nothing() -> None:
    fs = CrashableFileSystem()
    journal = Journal.create(fs, DATA, store_id=STORE_ID, salt=SALT, first_parts=FIRST, options=SMALL)
    journal.append([Part(Kind.NOTE, b"not durable")])
    journal.close(clean=False)
    before, counts = fs.files(), dict(fs.counts)
    reader = JournalReader.open(fs, DATA, store_id=STORE_ID, salt=SALT)
    list(reader.frames(1))
    reader.close()
    assert (fs.files(), dict(fs.counts)) == (before, counts)
    with pytest.raises(ReadOnlyError):
        fs.open(DATA / "watermark", read_only=True).pwrite(b"x", 0)


def test_a_frame_that_is_read_alone_takes_no_more_than_its_head_from_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = CrashableFileSystem()
    big = JournalOptions(background=False, compression="none")
    journal = Journal.create(fs, DATA, store_id=STORE_ID, salt=SALT, first_parts=FIRST, options=big)
    for number in range(100):
        journal.append([Part(Kind.NOTE, bytes([number]) * 5_000)])
    many = journal.append([Part(Kind.NOTE, b"%d" % number) for number in range(100)])
    journal.sync()
    reader = JournalReader.open(fs, DATA, store_id=STORE_ID, salt=SALT)
    read: list[int] = []
    handle = reader._handle(reader._segments[0])
    pread = handle.file.pread

    def counted(length: int, offset: int) -> bytes:
        data = pread(length, offset)
        read.append(len(data))
        return data

    monkeypatch.setattr(handle, "file", types.SimpleNamespace(pread=counted, close=handle.file.close))
    frame = reader.frame(50)
    assert sum(read) <= 1024
    assert reader.part(frame, 0) == bytes([48]) * 5_000
    assert sum(read) <= 1024 + 5_000
    assert reader.part(reader.frame(many), 99) == b"99"  # a head longer than that is read all the same


def test_what_is_missing_or_damaged_is_named() -> None:
    fs = CrashableFileSystem()
    with pytest.raises(MissingFile):
        JournalReader.open(fs, DATA, store_id=STORE_ID, salt=SALT)
    journal = Journal.create(fs, DATA, store_id=STORE_ID, salt=SALT, first_parts=FIRST, options=SMALL)
    journal.sync(journal.append([Part(Kind.NOTE, b"x" * 300)]))
    journal.close()
    path = DATA / "journal" / "0000000001.seg"
    good = fs.files()[path]
    for offset in range(0, len(good), 7):
        bad = bytearray(good)
        bad[offset] ^= 16
        broken = CrashableFileSystem.from_files({**fs.files(), path: bytes(bad)}, fs.directories())

        def read(place: CrashableFileSystem = broken) -> None:
            reader = JournalReader.open(place, DATA, store_id=STORE_ID, salt=SALT)
            for info in reader.segments():
                reader.verify_segment(info.number)

        with pytest.raises(CorruptionError):
            read()


@pytest.mark.slow
def test_another_process_sees_a_frame_within_a_tenth_of_a_second(tmp_path: Path) -> None:
    options = JournalOptions(segment_bytes_first=4096, segment_bytes_max=8192)
    journal = Journal.create(
        RealFileSystem(), tmp_path, store_id=STORE_ID, salt=SALT, first_parts=FIRST, options=options
    )
    count = 150
    durable_at: dict[int, float] = {}
    begun_at: dict[int, float] = {}
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), str(count + 1)],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        for number in range(count):
            seq = journal.append([Part(Kind.NOTE, b"%d" % number)])
            begun_at[seq] = time.monotonic()
            journal.sync(seq)
            durable_at[seq] = time.monotonic()
            time.sleep(0.001)
        lines = child.stdout.read().splitlines()
    assert child.returncode == 0
    journal.close()
    assert len(lines) == count
    delays = []
    for expected, line in enumerate(lines, start=2):
        seen, text, at = line.split()
        assert (int(seen), int(text)) == (expected, expected - 2)
        assert float(at) > begun_at[expected], "a frame was seen before its sync began"
        delays.append(float(at) - durable_at[expected])
    delays.sort()
    print(f"median {delays[len(delays) // 2] * 1000:.2f} ms, most {delays[-1] * 1000:.2f} ms")
    assert delays[len(delays) // 2] < 0.1
