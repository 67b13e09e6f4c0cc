"""Compacted segments: the same bytes as the segment, refused holes, and nothing believed that is damaged."""

from __future__ import annotations

import random
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast._fs import File, FileSystem, MemoryFileSystem, RealFileSystem
from holdfast.errors import (
    CommitLoss,
    CorruptionError,
    FormatTooNew,
    HoldfastError,
    InvalidInputError,
    PrunedError,
    StateError,
)
from holdfast.journal import Journal, JournalOptions, JournalReader, Kind, Part
from holdfast.journal import compaction as compaction_module
from holdfast.journal.compacted import CompactedFile, Hole, Packer, kept_ranges, open_segment
from holdfast.journal.scan import verify_sealed_content
from holdfast.journal.segment import Segment

STORE_ID = bytes(range(16))
SALT = bytes(range(100, 132))
PLACE = Path("/memory/0000000001.seg")
EXTENT = 4096


def packed(raw: bytes, holes: list[Hole], *, extent_bytes: int = EXTENT, floor: int = 7, salt: bytes = SALT) -> bytes:
    packer = Packer(number=1, generation=3, store_id=STORE_ID, salt=salt, raw_bytes=len(raw), extent_bytes=extent_bytes)
    pieces = [packer.head()]
    for start, stop in kept_ranges(len(raw), holes):
        for at in range(start, stop, 1000):
            pieces += packer.add(raw[at : min(at + 1000, stop)])
    pieces.append(packer.finish(holes=holes, floor=floor if holes else 0, raw_sha256=sha256(raw).digest()))
    return b"".join(pieces)


def opened(data: bytes) -> CompactedFile:
    fs = MemoryFileSystem()
    fs.write_atomic(PLACE, data)
    file = open_segment(fs, PLACE, salt=SALT)
    assert isinstance(file, CompactedFile)
    return file


def bytes_of(seed: int, length: int) -> bytes:
    rng = random.Random(seed)
    return b"".join(rng.choice([rng.randbytes(40), b"0123456789" * 5]) for _ in range(length // 40 + 1))[:length]


@st.composite
def segments(draw: st.DrawFn) -> tuple[bytes, list[Hole]]:
    """Raw bytes, and holes that do not touch, none at the start."""
    raw = bytes_of(draw(st.integers(0, 9)), 8 * draw(st.integers(192, 3000)))
    edges = sorted(draw(st.sets(st.integers(1, len(raw) // 8), max_size=12)))
    return raw, [Hole(8 * start, 8 * stop) for start, stop in zip(edges[::2], edges[1::2], strict=False)]


# -- the virtual file ------------------------------------------------------------------------------------------------


@given(segments(), st.lists(st.tuples(st.integers(0, 25_000), st.integers(0, 9_000)), max_size=30))
def test_it_gives_the_bytes_of_the_segment_and_refuses_holes(
    made: tuple[bytes, list[Hole]], reads: list[tuple[int, int]]
) -> None:
    raw, holes = made
    file = opened(packed(raw, holes))
    assert (file.size(), list(file.holes), file.raw_sha256) == (len(raw), holes, sha256(raw).digest())
    assert file.pruned_bytes == sum(hole.stop - hole.start for hole in holes)
    for offset, length in [*reads, *((hole.start - 8, 8) for hole in holes), *((hole.stop, 8) for hole in holes)]:
        stop = min(offset + length, len(raw))
        if any(hole.start < stop and offset < hole.stop for hole in holes) and offset < stop:
            with pytest.raises(PrunedError) as error:
                file.pread(length, offset)
            assert error.value.context["least_readable"] == 7
        else:
            assert file.pread(length, offset) == raw[offset : offset + length]
        kept = next((hole.start for hole in holes if hole.stop > offset), len(raw)) - offset
        assert file.kept_from(offset) == max(0, kept)
        inside = any(hole.start <= offset and offset + length <= hole.stop for hole in holes)
        assert file.absent(offset, length) == inside or length == 0


def test_it_is_only_read() -> None:
    file = opened(packed(b"12345678", []))
    with pytest.raises(StateError):
        file.pwrite(b"x", 0)
    with pytest.raises(StateError):
        file.truncate(0)
    with pytest.raises(StateError):
        file.sync()


def test_a_few_extents_are_kept_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = bytes_of(1, 10 * EXTENT)
    file = opened(packed(raw, []))
    decoded: list[int] = []
    decode = CompactedFile._decode

    def noted(self: CompactedFile, index: int) -> bytes:
        decoded.append(index)
        return decode(self, index)

    monkeypatch.setattr(CompactedFile, "_decode", noted)
    for index in (0, 1, 0, 2, 3, 0, 1):
        assert file.pread(8, index * EXTENT) == raw[index * EXTENT : index * EXTENT + 8]
    assert decoded == [0, 1, 2, 3, 1]
    assert len(file._decoded) == 3


# -- damage ----------------------------------------------------------------------------------------------------------


def all_bytes(data: bytes, holes: list[Hole]) -> bytes:
    """The kept bytes of what ``data`` is read as."""
    file = opened(data)
    return b"".join(file.pread(stop - start, start) for start, stop in kept_ranges(file.size(), file.holes))


def test_a_flipped_bit_anywhere_is_found_and_never_gives_other_bytes() -> None:
    raw, holes = bytes_of(2, 3 * EXTENT), [Hole(160, 800), Hole(5000, 9000)]
    data = packed(raw, holes)
    good = all_bytes(data, holes)
    assert good == raw[:160] + raw[800:5000] + raw[9000:]
    for offset in range(8, len(data)):  # the first eight say what kind of file it is
        bad = data[:offset] + bytes([data[offset] ^ 1 << offset % 8]) + data[offset + 1 :]
        with pytest.raises((CorruptionError, FormatTooNew)):
            all_bytes(bad, holes)


def test_a_shorter_or_longer_file_is_refused() -> None:
    data = packed(bytes_of(3, 2 * EXTENT), [Hole(80, 160)])
    for length in (*range(8, 200), *range(200, len(data), 37), len(data) - 1):
        with pytest.raises(CorruptionError):
            opened(data[:length])
    with pytest.raises(CorruptionError):
        opened(data + b"\0")


def test_another_store_cannot_have_made_it() -> None:
    with pytest.raises(CorruptionError, match="digest"):
        opened(packed(b"12345678", [], salt=bytes(32)))


def test_a_file_under_the_name_of_another_segment_is_refused() -> None:
    fs = MemoryFileSystem()
    other = PLACE.with_name("0000000002.seg")
    fs.write_atomic(other, packed(b"12345678", []))
    with pytest.raises(CorruptionError, match="wrong number"):
        open_segment(fs, other, salt=SALT)


@pytest.mark.parametrize("length", [EXTENT - 1, EXTENT + 1, 50_000_000])
def test_an_extent_that_is_not_as_long_as_it_says_is_refused(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    compress = Packer.compress
    monkeypatch.setattr(Packer, "compress", staticmethod(lambda raw: compress(bytes(length))))
    data = packed(bytes(2 * EXTENT), [])
    monkeypatch.undo()
    assert len(data) < 10_000
    with pytest.raises(CorruptionError, match="wrong length"):
        opened(data).pread(8, 0)


@pytest.mark.parametrize(
    ("holes", "message"),
    [([Hole(8, 16), Hole(16, 24)], "malformed"), ([Hole(8, 8)], "malformed"), ([Hole(64, 8 * 2**30)], "longer")],
)
def test_holes_that_cannot_be_are_refused(holes: list[Hole], message: str) -> None:
    with pytest.raises(CorruptionError, match=message):
        opened(packed(bytes(EXTENT), holes))


def test_more_holes_than_a_segment_has_room_for_are_refused_before_they_are_read() -> None:
    holes = [Hole(16 * number + 8, 16 * number + 16) for number in range(65)]
    assert list(opened(packed(bytes(256 * 65), holes)).holes) == holes
    fs = MemoryFileSystem()
    fs.write_atomic(PLACE, packed(bytes(256 * 65 - 8), holes))
    file = fs.open(PLACE, read_only=True)
    read: list[int] = []

    class Watched:
        path = file.path
        size = file.size

        def pread(self, length: int, offset: int) -> bytes:
            read.append(length)
            return file.pread(length, offset)

    with pytest.raises(CorruptionError, match="no valid end"):
        CompactedFile(Watched(), salt=SALT)  # type: ignore[arg-type]
    assert max(read) < 8 * 65


# -- a journal -------------------------------------------------------------------------------------------------------


def small() -> JournalOptions:
    return JournalOptions(segment_bytes_first=4096, segment_bytes_max=16384, background=False, compression="none")


def grown(fs: FileSystem, place: Path, count: int = 120, body: Callable[[int], bytes] | None = None) -> Journal:
    journal = Journal.create(
        fs, place, store_id=STORE_ID, salt=SALT, first_parts=[Part(Kind.NOTE, b"x")], options=small()
    )
    for number in range(count):
        data = body(number) if body is not None else b"body %d " % number * (number % 40)
        journal.append([Part(Kind.HEADER, b"header %d" % number), Part(Kind.BODY, data), Part(Kind.EXTRA, b"e" * 30)])
    journal.sync()
    return journal


def content(journal: Journal | JournalReader) -> list[tuple[bytes, list[bytes]]]:
    return [
        (frame.digest, [journal.part(frame, index) for index in range(len(frame.parts))]) for frame in journal.frames(1)
    ]


def holes_of(journal: Journal, number: int, every: int = 1) -> list[Hole]:
    """The bodies and extras of each ``every``-th frame of a segment, as one hole each."""
    info = journal.segments()[number - 1]
    found = []
    for frame in journal.frames(info.first_seq, info.first_seq + info.count):
        if frame.seq % every == 0 and len(frame.parts) == 3:
            found.append(Hole(frame.parts[1].offset, frame.offset + frame.length))
    return found


def reopened(fs: FileSystem, place: Path) -> Journal:
    return Journal.open(fs, place, store_id=STORE_ID, salt=SALT, options=small())[0]


def test_a_compacted_journal_reads_as_before_here_and_in_other_processes(tmp_path: Path) -> None:
    fs = RealFileSystem()
    journal = grown(fs, tmp_path)
    before = content(journal)
    other = JournalReader.open(fs, tmp_path, store_id=STORE_ID, salt=SALT)
    assert content(other) == before
    count = len(journal.segments())
    assert count > 4
    raw = {info.number: info.path.read_bytes() for info in journal.segments()}
    for number in range(1, count):
        result = journal.compact(number)
        assert (result.published, result.generation, result.pruned_bytes) == (True, 1, 0)
        assert result.bytes_after == (tmp_path / "journal" / f"{number:010d}.seg").stat().st_size
        assert result.bytes_after < result.bytes_before == len(raw[number])
    infos = journal.segments()
    assert [info.generation for info in infos] == [1] * (count - 1) + [0]
    assert all(info.raw_bytes == len(raw[info.number]) for info in infos)
    assert sorted(path.name for path in (tmp_path / "journal").glob("*.tmp")) == []
    assert content(journal) == before  # files that were open, and frames in memory
    assert content(other) == before  # by descriptors of files that have no name any more
    late = JournalReader.open(fs, tmp_path, store_id=STORE_ID, salt=SALT)
    assert content(late) == before
    for number in range(1, count):
        file = open_segment(fs, infos[number - 1].path, salt=SALT)
        assert file.pread(10**9, 0) == raw[number]
        file.close()
    journal.append([Part(Kind.NOTE, b"more")])
    journal.close()
    again = reopened(fs, tmp_path)
    assert content(again)[:-1] == before
    assert sum(again.verify_segment(info.number) for info in again.segments()) == len(before) + 1
    for each in (again, other, late):
        each.close()


def test_parts_in_holes_are_refused_and_the_chain_still_verifies(tmp_path: Path) -> None:
    fs = RealFileSystem()
    journal = grown(fs, tmp_path)
    before = content(journal)
    holes = {number: holes_of(journal, number, every=2) for number in (1, 2, 3)}
    for number, gone in holes.items():
        result = journal.compact(number, holes=gone, floor=50)
        assert result.pruned_bytes == sum(hole.stop - hole.start for hole in gone) > 0
        assert journal.verify_segment(number) == journal.segments()[number - 1].count
    assert [info.retained_from for info in journal.segments()[:4]] == [50, 50, 50, 0]
    last = journal.segments()[2].first_seq + journal.segments()[2].count - 1
    pruned = 0
    for frame, (digest, parts) in zip(journal.frames(1), before, strict=True):
        assert frame.digest == digest
        for index, expected in enumerate(parts):
            if frame.seq <= last and frame.seq % 2 == 0 and index in (1, 2) and expected:
                with pytest.raises(PrunedError) as error:
                    journal.part(frame, index)
                assert error.value.context["least_readable"] == 50
                pruned += 1
            else:
                assert journal.part(frame, index) == expected
    assert pruned > 20
    journal.close()
    reopened(fs, tmp_path).close()


def test_holes_are_filled_from_the_original_and_only_from_it(tmp_path: Path) -> None:
    fs = RealFileSystem()
    journal = grown(fs, tmp_path)
    before = content(journal)
    path = journal.segments()[1].path
    raw = path.read_bytes()
    holes = holes_of(journal, 2)
    journal.compact(2, holes=holes, floor=50)
    journal.compact(2, holes=holes, floor=51)  # the hash of the whole is handed on
    memory = MemoryFileSystem()
    memory.write_atomic(PLACE, raw)
    spoiled = bytearray(raw)
    spoiled[holes[0].start + 3] ^= 1
    memory.write_atomic(PLACE.with_name("spoiled"), bytes(spoiled))
    held = path.read_bytes()
    with pytest.raises(CorruptionError):
        journal.compact(2, original=memory.open(PLACE.with_name("spoiled")))
    assert path.read_bytes() == held
    assert journal.compact(2, holes=holes[::2], floor=50, original=memory.open(PLACE)).generation == 3
    assert journal.segments()[1].pruned_bytes == sum(hole.stop - hole.start for hole in holes[::2])
    assert journal.compact(2, original=memory.open(PLACE)).generation == 4
    assert (journal.segments()[1].pruned_bytes, journal.segments()[1].retained_from) == (0, 0)
    assert content(journal) == before
    journal.close()


def test_only_whole_bodies_and_extras_may_be_absent(tmp_path: Path) -> None:
    journal = grown(RealFileSystem(), tmp_path)
    frame = next(frame for frame in journal.frames(2) if frame.parts[1].stored_bytes > 100)
    header, body = frame.parts[0], frame.parts[1]
    path = journal.segments()[frame.segment - 1].path
    held = path.read_bytes()
    for hole in (
        Hole(header.offset, body.offset),
        Hole(body.offset, body.offset + 40),
        Hole(body.offset + 8, frame.offset + frame.length),
        Hole(frame.offset, frame.offset + frame.length),
    ):
        with pytest.raises((CorruptionError, PrunedError)):
            journal.compact(frame.segment, holes=[hole], floor=9)
        assert path.read_bytes() == held
    journal.close()


def test_the_newest_segment_is_never_compacted(tmp_path: Path) -> None:
    fs = RealFileSystem()
    journal = grown(fs, tmp_path)
    newest = len(journal.segments())
    for number in (0, newest, newest + 1):
        with pytest.raises(InvalidInputError):
            journal.compact(number)
    for number in range(1, newest):
        journal.compact(number)
    path = journal.segments()[-1].path
    journal.close()
    path.unlink()
    with pytest.raises(CommitLoss, match="newest segment is compacted"):
        reopened(fs, tmp_path)


def test_a_part_is_read_from_a_file_that_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread makes the journal forget the file between the look for it and the read."""
    journal = grown(RealFileSystem(), tmp_path)
    before = content(journal)
    handle = journal._handle

    def forgotten(segment: Segment) -> object:
        found = handle(segment)
        journal._reopen(segment.number)
        return found

    monkeypatch.setattr(journal, "_handle", forgotten)
    frame = journal.frame(5)
    assert [journal.part(frame, index) for index in range(len(frame.parts))] == before[4][1]
    assert content(journal) == before
    assert journal.compacted_bytes(1) > 0
    assert journal.segments()
    journal.close()


def test_what_would_not_become_smaller_stays(tmp_path: Path) -> None:
    rng = random.Random(5)
    journal = grown(RealFileSystem(), tmp_path, body=lambda number: rng.randbytes(3000))
    path = journal.segments()[2].path
    held = path.read_bytes()
    assert not journal.compact(3).published
    assert path.read_bytes() == held
    assert not list(path.parent.glob("*.tmp"))
    journal.close()


def test_a_damaged_segment_is_left_as_it_is(tmp_path: Path) -> None:
    journal = grown(RealFileSystem(), tmp_path)
    path = journal.segments()[1].path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(CorruptionError):
        journal.compact(2)
    assert path.read_bytes() == data
    assert not list(path.parent.glob("*.tmp"))
    journal.close()


def test_a_file_that_reads_back_wrong_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = grown(RealFileSystem(), tmp_path)
    path = journal.segments()[1].path
    held = path.read_bytes()
    compress = Packer.compress
    monkeypatch.setattr(Packer, "compress", staticmethod(lambda raw: compress(raw[:-9] + b"damaged!!")))
    with pytest.raises(CorruptionError, match="other bytes"):
        journal.compact(2)
    assert path.read_bytes() == held
    journal.close()


def _verified(fs: FileSystem, place: Path, number: int) -> None:
    journal = reopened(fs, place)
    try:
        journal.verify_segment(number)
    finally:
        journal.close(clean=False)


def test_a_damaged_compacted_segment_is_corruption_at_open(tmp_path: Path) -> None:
    fs = RealFileSystem()
    journal = grown(fs, tmp_path)
    journal.compact(2)
    path = journal.segments()[1].path
    journal.close()
    data = path.read_bytes()
    for offset in (0, 3, 9, 70, len(data) - 150, len(data) - 5):
        path.write_bytes(data[:offset] + bytes([data[offset] ^ 16]) + data[offset + 1 :])
        with pytest.raises(CorruptionError):
            _verified(fs, tmp_path, 2)
    path.write_bytes(data)
    reopened(fs, tmp_path).close()


def test_work_that_is_stopped_leaves_the_segment(tmp_path: Path) -> None:
    journal = grown(RealFileSystem(), tmp_path)
    path = journal.segments()[1].path
    held = path.read_bytes()
    steps: list[int] = []
    journal.compact(3, step=steps.append)
    assert sum(steps) == 2 * journal.segments()[2].raw_bytes

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        journal.compact(2, step=stop)
    assert path.read_bytes() == held
    assert not list(path.parent.glob("*.tmp"))
    journal.close()
    with pytest.raises(HoldfastError):
        journal.compact(2)


def test_the_estimate_is_near(tmp_path: Path) -> None:
    journal = grown(RealFileSystem(), tmp_path, count=400)
    number = len(journal.segments()) - 1
    guess = journal.compacted_bytes(number)
    after = journal.compact(number).bytes_after
    assert guess / 2 < after < guess * 2
    journal.close()


def test_every_byte_is_checked_once_more_before_it_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment that rots between two reads is not put into a file that says it is right."""
    journal = grown(RealFileSystem(), tmp_path)
    seen: list[File] = []

    def verify(file: File, *rest: object, **more: object) -> int:
        seen.append(file)
        return verify_sealed_content(file, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(compaction_module, "verify_sealed_content", verify)
    journal.compact(1)
    assert [type(file) for file in seen] == [CompactedFile]
    assert seen[0].path.name.endswith(".tmp")
    journal.close()
