"""The tree's image: what was saved is loaded, whatever is wrong is a reason, and a crash leaves the old or the new."""

from __future__ import annotations

import random
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast._fs import FileSystem, MemoryFileSystem, RealFileSystem
from holdfast.errors import DeviceError, OutOfSpace
from holdfast.merkle.api import ICS23_SMT, JMT_SHA256, Scheme, Tree
from holdfast.merkle.pure import BACKEND
from holdfast.state import image as module
from holdfast.state.image import LoadedImage, image_path, load_image, save_image
from holdfast.testing.crashfs import CrashableFileSystem, Fault, SimulatedCrash

ROOT = Path("/store")
STORE_ID, SALT, DIGEST = b"i" * 16, b"s" * 32, b"d" * 32


def tree_of(count: int, scheme: Scheme = JMT_SHA256, mark: bytes = b"") -> Tree:
    rows = {b"key%d" % number: b"value" + mark + b"%d" % number for number in range(count)}
    return BACKEND.empty(scheme).update(rows).tree


def save(fs: FileSystem, tree: Tree, *, seq: int = 7, scheme: Scheme = JMT_SHA256, root: Path = ROOT) -> bool:
    return save_image(fs, root, store_id=STORE_ID, salt=SALT, scheme=scheme, tree=tree, seq=seq, digest=DIGEST)


def load(
    fs: FileSystem, *, store_id: bytes = STORE_ID, salt: bytes = SALT, scheme: Scheme = JMT_SHA256, root: Path = ROOT
) -> LoadedImage:
    return load_image(fs, root, store_id=store_id, salt=salt, scheme=scheme, backend=BACKEND)


@given(st.integers(0, 40), st.sampled_from([JMT_SHA256, ICS23_SMT]), st.integers(0, 2**64 - 1), st.integers(1, 9))
def test_what_was_saved_is_loaded(count: int, scheme: Scheme, seq: int, step: int) -> None:
    fs, tree = MemoryFileSystem(), tree_of(count, scheme)
    fs.make_directory(ROOT)
    before, module._SLICE_RECORDS = module._SLICE_RECORDS, step
    try:
        assert save(fs, tree, seq=seq, scheme=scheme)
        image, reason = load(fs, scheme=scheme)
    finally:
        module._SLICE_RECORDS = before
    assert reason == ""
    assert image is not None
    assert (image.seq, image.digest, image.tree.root, image.tree.count) == (seq, DIGEST, tree.root, count)
    assert image.tree.records(bytes(32), 100) == tree.records(bytes(32), 100)


def test_the_bytes_are_those_of_the_format_document() -> None:
    fs, tree = MemoryFileSystem(), tree_of(2)
    save(fs, tree, seq=258)
    head = b"HFTREE_1" + bytes((0, 0, 0, 1)) + bytes(4) + STORE_ID + b"jmt-sha256" + bytes(22)
    head += bytes((0, 0, 0, 0, 0, 0, 1, 2)) + DIGEST + tree.root + bytes((0, 0, 0, 0, 0, 0, 0, 2)) + bytes(16)
    rows = sorted((sha256(b"key%d" % n).digest(), sha256(b"value%d" % n).digest()) for n in range(2))
    records = b"".join(key + sha256(b"JMT::LeafNode" + key + value).digest() for key, value in rows)
    wanted = head + sha256(SALT + head).digest() + records + sha256(SALT + records).digest()
    assert fs.read_bytes(ROOT / "tree" / "image", limit=10_000) == wanted


def test_no_image_is_no_reason() -> None:
    assert load(MemoryFileSystem()) == (None, "")


def test_the_last_possible_key_hash_ends_the_records() -> None:
    records = bytes(32) + b"a" * 32 + b"\xff" * 32 + b"b" * 32
    tree = BACKEND.build(JMT_SHA256, [records])
    before, module._SLICE_RECORDS = module._SLICE_RECORDS, 1
    try:
        assert b"".join(module._slices(tree)) == records
    finally:
        module._SLICE_RECORDS = before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"store_id": b"x" * 16}, "damaged, or of another store"),
        ({"salt": b"x" * 32}, "damaged, or of another store"),
        ({"scheme": ICS23_SMT}, "another tree scheme"),
    ],
)
def test_an_image_of_another_store_is_not_used(arguments: dict[str, object], words: str) -> None:
    fs = MemoryFileSystem()
    save(fs, tree_of(3))
    image, reason = load(fs, **arguments)  # type: ignore[arg-type]
    assert image is None
    assert words in reason


def rewritten(tree: Tree, at: int, data: bytes) -> MemoryFileSystem:
    """An image whose header holds ``data`` and verifies all the same."""
    fs = MemoryFileSystem()
    save(fs, tree)
    raw = bytearray(fs.read_bytes(image_path(ROOT), limit=100_000))
    raw[at : at + len(data)] = data
    raw[160:192] = sha256(SALT + raw[:160]).digest()
    fs.write_atomic(image_path(ROOT), bytes(raw))
    return fs


@pytest.mark.parametrize(
    ("at", "data", "words"),
    [
        (0, b"HFTREE_2", "no image"),
        (8, bytes((0, 0, 0, 2)), "of format 2"),
        (12, b"\1", "reserved"),
        (159, b"\1", "reserved"),
        (104, bytes(32), "do not give its root"),
        (136, b"\xff" * 8, "length"),
        (136, bytes(8), "length"),
    ],
)
def test_a_header_that_verifies_is_not_trusted_either(at: int, data: bytes, words: str) -> None:
    image, reason = load(rewritten(tree_of(3), at, data))
    assert image is None
    assert words in reason


def test_records_that_are_no_tree_are_a_reason() -> None:
    fs = MemoryFileSystem()
    save(fs, tree_of(2))
    raw = bytearray(fs.read_bytes(image_path(ROOT), limit=100_000))
    raw[192 + 64 : 192 + 128] = raw[192 : 192 + 64]
    raw[-32:] = sha256(SALT + raw[192:-32]).digest()
    fs.write_atomic(image_path(ROOT), bytes(raw))
    image, reason = load(fs)
    assert image is None
    assert "no tree" in reason


def test_every_cut_and_every_flipped_byte_is_found() -> None:
    fs = MemoryFileSystem()
    save(fs, tree_of(4))
    whole = fs.read_bytes(image_path(ROOT), limit=100_000)
    for length in range(len(whole)):
        fs.write_atomic(image_path(ROOT), whole[:length])
        assert load(fs).image is None, length
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        fs.write_atomic(image_path(ROOT), bytes(changed))
        image, reason = load(fs)
        assert image is None, at
        assert reason
    fs.write_atomic(image_path(ROOT), whole + b"\0")
    assert load(fs).image is None


def test_an_unreadable_image_is_a_reason_and_no_error() -> None:
    fs = CrashableFileSystem(count_reads=True)
    save(fs, tree_of(4))
    fs.faults = (Fault(1, 5, persistent=True, only=frozenset({"pread"})),)
    image, reason = load(fs)
    assert image is None
    assert "cannot be read" in reason


def test_an_interrupted_save_leaves_the_old_image() -> None:
    fs, old = MemoryFileSystem(), tree_of(5)
    save(fs, old)
    for patience in range(2):
        answers = [True] * patience + [False]
        assert not save_image(
            fs,
            ROOT,
            store_id=STORE_ID,
            salt=SALT,
            scheme=JMT_SHA256,
            tree=tree_of(6),
            seq=9,
            digest=DIGEST,
            keep_going=lambda answers=answers: answers.pop(0),  # type: ignore[misc]
        )
        image, _ = load(fs)
        assert image is not None
        assert image.tree.root == old.root
        assert fs.names(ROOT / "tree") == ["image"]


def test_a_full_disk_leaves_the_old_image_and_nothing_beside_it(tmp_path: Path) -> None:
    fs = CrashableFileSystem()
    old = tree_of(5)
    save(fs, old)
    fs.faults = (Fault(fs.operations + 4, 28),)
    with pytest.raises(OutOfSpace):
        save(fs, tree_of(6))
    image, _ = load(fs)
    assert image is not None
    assert image.tree.root == old.root
    assert fs.names(ROOT / "tree") == ["image"]


def test_a_failed_sync_is_not_published() -> None:
    fs = CrashableFileSystem()
    fs.faults = (Fault(1, 5, only=frozenset({"sync"})),)
    with pytest.raises(DeviceError):
        save(fs, tree_of(6))
    assert not fs.exists(image_path(ROOT))


@pytest.mark.parametrize("keep", ["all", "none", "random"])
def test_a_crash_at_any_operation_leaves_the_old_image_or_the_new(keep: str) -> None:
    old, new = tree_of(5), tree_of(9, mark=b"new")
    clean = CrashableFileSystem()
    save(clean, old)
    first = clean.operations
    save(clean, new, seq=8)
    last = clean.operations
    seen = set()
    for at in range(first + 1, last + 2):
        for seed in range(6):
            fs = CrashableFileSystem(seed=seed, faults=(Fault(at, torn=True),))
            save(fs, old)
            if at <= last:
                with pytest.raises(SimulatedCrash):
                    save(fs, new, seq=8)
            else:
                save(fs, new, seq=8)
            after = fs.crash(random.Random(seed), keep=keep)  # type: ignore[arg-type]
            image, reason = load(after)
            assert image is not None, (at, seed)
            assert reason == ""
            assert (image.seq, image.tree.root) in [(7, old.root), (8, new.root)]
            seen.add(image.seq)
            if at > last:
                assert image.seq == 8
            save(after, new, seq=8)
            again, _ = load(after)
            assert again is not None
            assert again.seq == 8
            assert after.names(ROOT / "tree") == ["image"]
    assert seen == {7, 8}


def test_a_lying_sync_is_found_out() -> None:
    """A positive control: the crash test above would see a sync that does nothing."""
    bad = 0
    for seed in range(40):
        fs = CrashableFileSystem(seed=seed, lying_sync=True)
        save(fs, tree_of(50))
        after = fs.crash(random.Random(seed))
        bad += load(after).image is None
    assert bad > 0


def test_on_a_disk(tmp_path: Path) -> None:
    fs, tree = RealFileSystem(), tree_of(300)
    assert save(fs, tree, root=tmp_path)
    image, reason = load(fs, root=tmp_path)
    assert reason == ""
    assert image is not None
    assert image.tree.root == tree.root
    assert fs.names(tmp_path / "tree") == ["image"]
