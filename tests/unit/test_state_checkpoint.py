"""Checkpoints as files: the snapshot that they are, the chunks that they share, and what is damaged."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast._fs import MemoryFileSystem, RealFileSystem
from holdfast.errors import CorruptionError, HoldfastError, InvalidInputError, NotFoundError, SnapshotInvalid
from holdfast.limits import HEIGHT_MAX
from holdfast.merkle.pure import BACKEND
from holdfast.state.checkpoint import CheckpointDirectory, checkpoint_height, checkpoint_name
from holdfast.state.snapshot import CHUNKS_NAME, MANIFEST_NAME
from holdfast.state.snapshot_format import chunk_name
from tests.unit.snapshot_support import PLACE, Source, block_at, export, numbered, source_of

HERE = Path("/store/checkpoints")
CHUNKS = HERE / CHUNKS_NAME


def directory(fs: MemoryFileSystem) -> CheckpointDirectory:
    return CheckpointDirectory(fs, HERE, tree_backend=BACKEND)


def made(fs: MemoryFileSystem, source: Source, *, compress: bool = True) -> str:
    """The checkpoint of ``source`` in small chunks; its name."""
    info = directory(fs).create(source, chunk_bytes=1024, compress=compress)
    assert info.snapshot is not None
    return info.name


def values_of(fs: MemoryFileSystem, name: str) -> dict[bytes, bytes]:
    """What a checkpoint holds, verified."""
    reader = directory(fs).reader(name)
    reader.trust_own()
    return dict(row for chunk in reader.chunks(workers=1) for row in chunk.rows)


def grown(values: dict[bytes, bytes], number: int, *, height: int) -> Source:
    """The same state with one key changed."""
    return source_of({**values, b"key/%d" % number: b"changed at %d" % height}, height=height)


# -- one format ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [False, True])
def test_it_is_the_snapshot_of_its_block_byte_for_byte(compress: bool) -> None:
    source = source_of({**numbered(60), b"blob": b"b" * 70_000, b"random": sha256(b"r").digest() * 8})
    exported, _ = export(source, compress=compress)
    fs = MemoryFileSystem()
    name = made(fs, source, compress=compress)
    reader = directory(fs).reader(name)
    reader.trust_own()
    assert reader.data == exported.read_bytes(PLACE / MANIFEST_NAME, limit=2**27)
    assert name == checkpoint_name(source.block.height, source.block.hash)
    for entry in reader.manifest.chunks:
        file = exported.read_bytes(PLACE / CHUNKS_NAME / chunk_name(entry.prefix, entry.depth), limit=2**27)
        assert reader.chunk_data(entry) == file
    assert values_of(fs, name) == source.values


@given(
    st.dictionaries(st.binary(min_size=1, max_size=12), st.binary(min_size=1, max_size=90), max_size=40),
    st.dictionaries(st.binary(min_size=1, max_size=12), st.binary(min_size=1, max_size=90), max_size=6),
)
def test_any_two_states_share_a_place(before: dict[bytes, bytes], more: dict[bytes, bytes]) -> None:
    fs = MemoryFileSystem()
    after = {**before, **more}
    names = made(fs, source_of(before, height=1)), made(fs, source_of(after, height=2))
    assert [values_of(fs, name) for name in names] == [before, after]
    directory(fs).remove(names[:1])
    directory(fs).sweep()
    assert values_of(fs, names[1]) == after
    used = {entry.hash.hex() for entry in directory(fs).reader(names[1]).manifest.chunks}
    assert set(fs.names(CHUNKS)) == used


def test_a_chunk_whose_keys_did_not_change_is_stored_once() -> None:
    values = numbered(200)
    fs = MemoryFileSystem()
    first = made(fs, source_of(values, height=1))
    before = {name: bytes(fs._files[CHUNKS / name]) for name in fs.names(CHUNKS)}
    second = made(fs, grown(values, 7, height=2))
    after = fs.names(CHUNKS)
    assert len(before) > 10
    assert set(before) < set(after)
    assert len(after) == len(before) + 1
    assert {name: bytes(fs._files[CHUNKS / name]) for name in before} == before
    assert directory(fs).names() == [second, first]
    assert values_of(fs, first) == values
    assert values_of(fs, second)[b"key/7"] == b"changed at 2"


def test_the_same_checkpoint_again_is_the_same() -> None:
    fs, source = MemoryFileSystem(), source_of(numbered(50))
    name = made(fs, source)
    before = {path: bytes(data) for path, data in fs._files.items()}
    assert made(fs, source) == name
    assert {path: bytes(data) for path, data in fs._files.items()} == before


def test_a_state_without_keys_is_a_manifest_alone() -> None:
    fs = MemoryFileSystem()
    name = made(fs, source_of({}))
    assert values_of(fs, name) == {}
    assert fs.names(CHUNKS) == []
    assert directory(fs).verify(name).keys == 0


def test_one_that_was_stopped_keeps_its_chunks_and_is_not_listed() -> None:
    fs, source = MemoryFileSystem(), source_of(numbered(100))

    class Stop(Exception):
        pass

    def progress(done: int, total: int) -> None:
        assert total == 100
        if done > 40:
            raise Stop

    with pytest.raises(Stop):
        directory(fs).create(source, chunk_bytes=1024, progress=progress)
    assert directory(fs).names() == []
    kept = {name: id(fs._files[CHUNKS / name]) for name in fs.names(CHUNKS)}
    assert kept
    name = made(fs, source)
    assert {name: id(fs._files[CHUNKS / name]) for name in kept} == kept
    assert values_of(fs, name) == source.values


def test_rows_that_do_not_give_the_tree_are_no_checkpoint() -> None:
    fs, source = MemoryFileSystem(), source_of(numbered(100))
    source.values[b"key/3"] = b"wrong"
    with pytest.raises(CorruptionError, match="do not give its tree"):
        made(fs, source)
    assert directory(fs).names() == []


# -- damage ----------------------------------------------------------------------------------------------------------

VALUES = numbered(60)


def two(compress: bool) -> tuple[MemoryFileSystem, list[str]]:
    fs = MemoryFileSystem()
    return fs, [
        made(fs, source, compress=compress) for source in (source_of(VALUES, height=1), grown(VALUES, 7, height=2))
    ]


def sound(fs: MemoryFileSystem, name: str) -> bool:
    """True if the checkpoint verifies; what does not is refused by name, and nothing of it is given out."""
    try:
        directory(fs).verify(name, workers=1)
    except SnapshotInvalid as error:
        named = {"path", "chunk"} & error.context.keys()
    else:
        return True
    assert named, "it is not said which file"
    return False


def users(fs: MemoryFileSystem, names: list[str], path: Path) -> set[str]:
    """Which of the checkpoints stand on this file."""
    found = set()
    for name in names:
        chunks = {entry.hash.hex() for entry in directory(fs).reader(name).manifest.chunks}
        if path.name in chunks or path.name == f"{name}.manifest":
            found.add(name)
    assert found
    return found


@pytest.mark.parametrize("compress", [False, True])
def test_every_cut_and_flipped_byte_is_found(compress: bool) -> None:
    fs, names = two(compress)
    paths = sorted(fs._files)
    assert len(paths) > 6
    for path in paths:
        wanted = users(fs, names, path)
        data = bytes(fs._files[path])
        cuts = [data[:length] for length in {0, 1, len(data) // 2, len(data) - 33, len(data) - 1} if length >= 0]
        step = max(1, len(data) // 60)
        flips = [data[:at] + bytes((data[at] ^ 1 << at % 8,)) + data[at + 1 :] for at in range(0, len(data), step)]
        for changed in (*cuts, *flips, data + b"\0", b""):
            fs._files[path] = bytearray(changed)
            for name in names:
                assert sound(fs, name) is (name not in wanted), (path.name, len(changed))
        fs._files[path] = bytearray(data)
        kept = fs._files.pop(path)
        for name in wanted:
            with pytest.raises((SnapshotInvalid, NotFoundError)):
                directory(fs).verify(name)
        fs._files[path] = kept
    assert all(sound(fs, name) for name in names)


def test_chunks_in_each_others_place_are_found() -> None:
    fs, names = two(False)
    first, second = fs.names(CHUNKS)[:2]
    one, other = CHUNKS / first, CHUNKS / second
    wanted = users(fs, names, one) | users(fs, names, other)
    fs._files[one], fs._files[other] = fs._files[other], fs._files[one]
    assert {name for name in names if not sound(fs, name)} == wanted


def test_a_damaged_chunk_is_written_again_by_the_next_checkpoint() -> None:
    fs, names = two(True)
    (shared, *_) = [path for path in sorted(fs._files) if users(fs, names, path) == set(names)]
    for changed in (
        b"",
        b"\x28\xb5\x2f\xfd",
        b"\x28\xb5\x2f\xfd" + b"\xff" * 40,
        b"0" * 50,
        bytes(fs._files[shared])[:-1],
    ):
        fs._files[shared] = bytearray(changed)
        assert not any(sound(fs, name) for name in names)
        assert made(fs, grown(VALUES, 9, height=3))
        assert all(sound(fs, name) for name in names)


def test_a_manifest_under_the_name_of_another_is_refused() -> None:
    fs, names = two(True)
    files = [HERE / f"{name}.manifest" for name in names]
    fs._files[files[0]], fs._files[files[1]] = fs._files[files[1]], fs._files[files[0]]
    for name in names:
        with pytest.raises(SnapshotInvalid, match="under the name of another"):
            directory(fs).verify(name)
        assert directory(fs).info(name).problem is not None


@pytest.mark.parametrize("what", ["time", "producer", "header", "parent", "total_work"])
def test_what_no_chunk_proves_is_proved_by_the_digest(what: str) -> None:
    """A manifest that is well formed and says something else of its block."""
    fs, names = two(True)
    path = HERE / f"{names[0]}.manifest"
    data = bytes(fs._files[path])
    at = data.index(f'"{what}":'.encode()) + len(what) + 4
    digit = next(each for each in range(at, at + 80) if data[each : each + 1] in b"123456789")
    changed = data[:digit] + (b"1" if data[digit : digit + 1] != b"1" else b"2") + data[digit + 1 :]
    fs._files[path] = bytearray(changed)
    assert not sound(fs, names[0])
    fs._files[path] = bytearray(changed[:-32] + sha256(changed[:-32]).digest())
    assert sound(fs, names[0]), "the test changed more than it should"


# -- removing --------------------------------------------------------------------------------------------------------


def test_only_what_no_manifest_names_is_swept() -> None:
    fs, names = two(True)
    for stray in ("notes.txt", "x.hfc", "ab" * 31, "AB" * 32):
        fs._files[CHUNKS / stray] = bytearray(b"mine")
    fs._files[HERE / "notes.txt"] = bytearray(b"mine")
    fs._files[CHUNKS / ("cd" * 32)] = bytearray(b"chunk of nobody")
    fs._files[CHUNKS / ("cd" * 32 + ".tmp")] = bytearray(b"half")
    fs._files[HERE / f"{names[0]}.manifest.tmp"] = bytearray(b"half")
    assert directory(fs).sweep() == (3, 15 + 4 + 4)
    assert all(sound(fs, name) for name in names)
    assert {"notes.txt", "x.hfc"} < set(fs.names(CHUNKS))
    directory(fs).remove(names[1:])
    assert directory(fs).sweep()[0] == 1
    assert sound(fs, names[0])


def test_while_a_manifest_cannot_be_read_no_chunk_goes() -> None:
    fs, names = two(True)
    before = fs.names(CHUNKS)
    fs._files[HERE / f"{names[1]}.manifest"][5] ^= 1
    directory(fs).remove(names[:1])
    assert directory(fs).sweep() == (0, 0)
    assert fs.names(CHUNKS) == before
    directory(fs).remove(names[1:])
    assert directory(fs).sweep()[0] == len(before)


def test_sweeping_stops_when_asked() -> None:
    fs, names = two(True)
    directory(fs).remove(names)
    left = iter((True, True, False))
    assert directory(fs).sweep(lambda: next(left))[0] == 2
    assert directory(fs).sweep()[0] > 2


# -- names -----------------------------------------------------------------------------------------------------------


def test_names_say_the_height_and_sort_by_it() -> None:
    fs = MemoryFileSystem()
    for height in (9, 10, 100, HEIGHT_MAX):
        made(fs, source_of({b"k": b"v"}, height=height))
    names = directory(fs).names()
    assert [checkpoint_height(name) for name in names] == [HEIGHT_MAX, 100, 10, 9]
    assert names[0] == f"{HEIGHT_MAX}-{block_at(HEIGHT_MAX).hash.hex()[:16]}"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "1",
        "1-",
        "01-" + "a" * 16,
        "-1-" + "a" * 16,
        "1-" + "A" * 16,
        "1-" + "a" * 17,
        "../1-" + "a" * 16,
        "1-" + "a" * 16 + "\n",
        "1-" + "a" * 15 + "/",
        f"{2**63}-" + "a" * 16,
        "\u0661-" + "a" * 16,
    ],
)
def test_what_is_no_name_is_refused(name: str) -> None:
    fs = MemoryFileSystem()
    made(fs, source_of({}))
    call: Callable[[str], object]
    for call in (checkpoint_height, directory(fs).verify, lambda each: directory(fs).remove([each])):
        with pytest.raises(InvalidInputError, match="no name of a checkpoint"):
            call(name)
    fs._files[HERE / f"{name}.manifest"] = bytearray(b"x")
    assert len(directory(fs).names()) == 1


def test_one_that_is_not_there_is_not_found() -> None:
    with pytest.raises(NotFoundError, match="no checkpoint of this name"):
        directory(MemoryFileSystem()).verify("1-" + "a" * 16)


def test_links_are_not_followed(tmp_path: Path) -> None:
    place = CheckpointDirectory(RealFileSystem(), tmp_path, tree_backend=BACKEND)
    name = place.create(source_of(numbered(5))).name
    assert place.verify(name).keys == 5
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()} == {0o600}
    (chunk,) = (tmp_path / CHUNKS_NAME).iterdir()
    outside = tmp_path / "outside"
    chunk.rename(outside)
    chunk.symlink_to(outside)
    with pytest.raises(SnapshotInvalid):
        place.verify(name)
    manifest = tmp_path / f"{name}.manifest"
    manifest.rename(outside)
    manifest.symlink_to(outside)
    with pytest.raises(HoldfastError):
        place.reader(name)
