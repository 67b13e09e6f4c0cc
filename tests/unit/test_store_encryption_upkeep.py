"""What is done to an encrypted store: checked in parallel, compacted, repaired, recovered, read without the kernel."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

import holdfast
from holdfast._fs import RealFileSystem
from holdfast._keys import StoreKey, using_key
from holdfast.doctor.examination import diagnose, repair
from holdfast.engine.api import Batch, Engine
from holdfast.engine.open import open_engine
from holdfast.engine.sealed import sealed_engine
from holdfast.errors import CorruptionError, HoldfastError, KeyRejected, KeyRequired, Recovery, SafetyStateMissing
from holdfast.journal.api import Frame, Kind, Part
from holdfast.journal.codec import (
    FRAME_FIXED_BYTES,
    FRAME_HEAD_BYTES,
    ROW_BYTES,
    PartsEncoding,
    encode_frame,
    encode_parts,
)
from holdfast.journal.journal import Journal
from holdfast.journal.reader import JournalReader
from holdfast.journal.segment import Segment, SegmentHeader, encode_header
from holdfast.journal.watermark import Watermark
from holdfast.recovery import rows
from holdfast.recovery.advice import recover
from holdfast.recovery.parallel import Pool
from holdfast.recovery.rebuild import rebuild_views
from holdfast.recovery.verify import verify_store
from holdfast.state.snapshot import MANIFEST_NAME, SnapshotReader
from holdfast.store.base import base_parts
from holdfast.store.factory import open_store
from holdfast.store.fingerprint import fingerprint
from holdfast.store.opening import read_identity
from holdfast.store.unlocking import unlock
from holdfast.views.flush import load_applied
from tests.cli.cli_tools import ROOT
from tests.unit.backup_support import backup, repository, small_segments
from tests.unit.store_support import chain_of, hash_of, quick
from tests.unit.test_store_encryption import KEY, MARK, contents, files_with, make_store, tip_height

__all__ = ["small_segments"]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make_store(f"sqlite:{tmp_path / 'store'}")
    return tmp_path / "store"


# -- verify -----------------------------------------------------------------------------------------------------------


def test_processes_that_share_the_work_get_the_key(
    store: Path, small_segments: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(f"sqlite:{tmp_path / 'segments'}", count=60)
    monkeypatch.setattr("holdfast.recovery.verify.JOURNAL_BYTES_MIN", 0)
    path = tmp_path / "segments"
    assert len(list((path / "journal").glob("*.seg"))) > 3
    for key in (KEY, None):
        shared, alone = (verify_store(path, level="links", jobs=jobs, key=key) for jobs in (2, 1))
        assert shared.ok, shared.problems
        assert shared.facts == alone.facts
        assert [(check.name, check.checked) for check in shared.checks] == [
            (check.name, check.checked) for check in alone.checks
        ]


def test_rows_that_are_compared_beside_a_directory_are_encrypted_there(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = tmp_path / "temporary"
    beside.mkdir()
    monkeypatch.setattr(rows, "_MEMORY_BLOCKS_MAX", 0)
    monkeypatch.setattr("tempfile.tempdir", str(beside))
    seen: list[list[str]] = []

    def compared(engine: Engine, fresh: Engine, *rest: object, **more: object) -> int:
        fresh.sync()
        seen.append(files_with(beside, MARK))
        assert any(path.is_file() for path in beside.rglob("*"))
        return real(engine, fresh, *rest, **more)  # type: ignore[arg-type]

    real = rows._compare
    monkeypatch.setattr(rows, "_compare", compared)
    assert verify_store(store, level="views", key=KEY).ok
    assert seen == [[]]


@pytest.mark.usefixtures("small_segments")
def test_a_process_of_the_pool_reads_the_journal_with_the_key(tmp_path: Path) -> None:
    """What one cannot do is done by the caller, so a report would not show it."""
    path = tmp_path / "store"
    make_store(f"sqlite:{path}", count=20)
    cipher = unlock(read_identity(RealFileSystem(), path), StoreKey.of(KEY), path)
    assert cipher is not None
    (data,) = path.glob("views/*/data")
    engine = sealed_engine(open_engine("sqlite", data, create=False, read_only=True), cipher.rows)
    applied = load_applied(engine)
    engine.close()
    assert applied is not None
    with Pool(path, 1, StoreKey.of(KEY)) as pool:
        seen = pool.canonical(applied.state).result()
        assert (seen.checked, seen.problems) == (40, [])
        assert pool.links(with_engine=True, seen=None, total=0).result().tally.checked == 20
    with Pool(path, 1, keyless=True) as pool:
        assert pool.segment(1).result().checked > 0


# -- compaction, repairs ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_segments")
def test_it_is_compacted_and_given_back_from_a_backup(tmp_path: Path) -> None:
    path, place = tmp_path / "store", repository(tmp_path / "backups")
    blocks = chain_of(None, 60)
    with holdfast.open(f"sqlite:{path}", key=KEY, settings=quick(max_reorg_depth=6)) as store:
        for block in blocks:
            store.add(block)
        assert store.compact().compacted > 1
        assert store.blocks.body(store.blocks.at(1)) == blocks[1].body  # type: ignore[arg-type]
    backup(path, place)
    assert verify_store(path, level="full", key=KEY).ok
    assert verify_store(path, level="links").ok
    segment = path / "journal" / "0000000002.seg"
    whole = segment.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    segment.write_bytes(damaged)
    assert not verify_store(path, level="links").ok
    settings = quick(backup_target=str(tmp_path / "backups"), max_reorg_depth=6)
    with holdfast.open(path, key=KEY, settings=settings) as store:
        assert store.blocks.body(store.blocks.at(1)) == blocks[1].body  # type: ignore[arg-type]
        assert tip_height(store) == 59
    assert verify_store(path, level="full", key=KEY).ok


@pytest.mark.parametrize("name", ["holdfast.toml", "views/CURRENT"])
def test_what_is_repaired_at_open_is_repaired_with_the_key(store: Path, name: str) -> None:
    (store / name).unlink()
    with pytest.raises(HoldfastError):
        holdfast.open(store, key=bytes(32), settings=quick())
    with holdfast.open(store, key=KEY, settings=quick()) as opened:
        assert tip_height(opened) == 29
        assert opened.state[b"account/1"] == MARK + b" state 29"
    assert files_with(store, MARK) == []
    with pytest.raises(KeyRequired):
        holdfast.open(store)


def test_an_identity_that_says_it_is_not_encrypted_is_mended(store: Path) -> None:
    """Who takes the table out gets no plain store out of it, and none that is written to in plain text."""
    file = store / "holdfast.toml"
    good = file.read_bytes()
    file.write_bytes(good.partition(b"\n[encryption]")[0])
    journal = (store / "journal" / "0000000001.seg").read_bytes()
    for key in (KEY, None):
        with pytest.raises(CorruptionError, match="differs from the first frame"):
            open_store(store, key=key, create=False)
    with pytest.raises(KeyRequired):
        holdfast.open(store)
    assert (store / "journal" / "0000000001.seg").read_bytes() == journal
    with holdfast.open(store, key=KEY, settings=quick()) as opened:
        assert tip_height(opened) == 29
    assert file.read_bytes() == good


def test_recover_takes_the_key_of_the_store(store: Path) -> None:
    (data,) = store.glob("views/*/data")
    damaged = open_engine("sqlite", data, create=False)
    key = next(key for key, _ in damaged.scan(b"\x80\x02", b"\x80\x03").rows)
    damaged.apply(Batch({key: b"\0" * 40}), sync=True)
    damaged.close()
    opened = holdfast.open(store, key=KEY, settings=quick())
    with pytest.raises(CorruptionError) as caught:
        opened.state[key[2:]]
    assert caught.value.recovery is Recovery.REBUILD
    outcome = recover(caught.value, store=opened)
    assert outcome.store is not None
    assert outcome.store.state[key[2:]].startswith(MARK)
    outcome.store.close()
    assert files_with(store, MARK) == []
    with using_key(KEY):
        assert verify_store(store, level="views").ok


# -- without the kernel -----------------------------------------------------------------------------------------------


def test_the_pure_twin_reads_and_writes_it(store: Path, tmp_path: Path) -> None:
    program = (
        "import holdfast, sys\n"
        "from holdfast.recovery.verify import verify_store\n"
        "key = bytes(range(1, 33))\n"
        "with holdfast.open(sys.argv[1], key=key) as store:\n"
        "    draft = store.draft()\n"
        "    draft.state[b'pure'] = b'PLAINTEXT-MARKER of the twin'\n"
        "    store.commit(draft, hash=b'p' * 32)\n"
        "assert verify_store(sys.argv[1], level='full', key=key).ok\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HOLDFAST_PURE": "1"}
    shutil.copytree(store, tmp_path / "copy")
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "copy")], env=environment, check=True, timeout=60)
    with holdfast.open(tmp_path / "copy", key=KEY) as opened:
        assert opened.state[b"pure"] == b"PLAINTEXT-MARKER of the twin"
    assert files_with(tmp_path / "copy", MARK) == []


# -- forgery ----------------------------------------------------------------------------------------------------------


Change = Callable[[Frame, PartsEncoding], PartsEncoding]


def forged(path: Path, change: Change) -> None:
    """The journal of the closed store at ``path``, changed by somebody who has no key but knows the format.

    ``change`` says what each frame becomes; digests, seal and watermark are right again.
    """
    fs = RealFileSystem()
    identity = read_identity(fs, path)
    salt = identity.salt
    reader = JournalReader.open(fs, path, store_id=identity.store_id, salt=salt)
    file = path / "journal" / "0000000001.seg"
    whole = file.read_bytes()
    header = SegmentHeader(1, 1, bytes(32))
    segment = Segment(file, header)
    data = encode_header(header, store_id=identity.store_id, salt=salt)
    previous = bytes(32)
    for frame in reader.frames(1):
        head_end = frame.offset + FRAME_FIXED_BYTES + ROW_BYTES * len(frame.parts)
        table = whole[frame.offset + FRAME_HEAD_BYTES : head_end - 32]
        parts = PartsEncoding(
            len(frame.parts), table, [whole[head_end : frame.offset + frame.length]], frame.length, []
        )
        more, previous = encode_frame(
            change(frame, parts),
            salt=salt,
            seq=frame.seq,
            durable_seq=frame.durable_seq,
            time_us=frame.time_us,
            previous=previous,
        )
        segment.add(len(data), len(data) + len(more), previous)
        data += more
    mark = reader.mark
    reader.close()
    file.write_bytes(data + segment.seal_bytes(salt))
    (path / "watermark").unlink()
    first = dataclasses.replace(mark, digest=previous, end_offset=len(data))
    Watermark.create(fs, path, salt=salt, first=first).close()
    shutil.rmtree(path / "views")
    shutil.rmtree(path / "tree", ignore_errors=True)


def without_frame_3(frame: Frame, parts: PartsEncoding) -> PartsEncoding:
    """In its place stands one of a part that is not encrypted."""
    return encode_parts([Part(Kind.INCARNATION, bytes(32), True)]) if frame.seq == 3 else parts


def shorter(frame: Frame, parts: PartsEncoding) -> PartsEncoding:
    """The last part is gone."""
    gone = frame.parts[-1].stored_bytes
    padded = gone + -gone % 8
    pieces = [b"".join(parts.pieces)[:-padded]]
    return PartsEncoding(parts.count - 1, parts.table[:-ROW_BYTES], pieces, parts.length - ROW_BYTES - padded, [])


def without_the_vote(frame: Frame, parts: PartsEncoding) -> PartsEncoding:
    """The frame of a block forgets what was signed."""
    vote = frame.parts[0].kind == Kind.BLOCK and frame.parts[-1].kind == Kind.SAFETY
    return shorter(frame, parts) if vote else parts


def first_frame_without_its_note(frame: Frame, parts: PartsEncoding) -> PartsEncoding:
    """Its plain parts are the same."""
    return shorter(frame, parts) if frame.seq == 1 and frame.parts[-1].kind == Kind.NOTE else parts


@pytest.mark.parametrize("key", [KEY, None])
def test_no_part_of_the_newest_frame_can_be_left_out_without_the_key(key: bytes | None, tmp_path: Path) -> None:
    """A vote would be forgotten, and its block kept. The control: where nothing is encrypted, it is."""
    path = tmp_path / "store"
    with holdfast.open(f"sqlite:{path}", key=key, settings=quick()) as store:
        store.commit(store.draft(), hash=hash_of("vote", 0), header=b"header", safety=(b"validator", (2,), b"vote"))
    forged(path, without_the_vote)
    assert verify_store(path, level="links").ok, "the digests alone cannot tell"
    if key is None:
        with holdfast.open(path, settings=quick()) as store:
            assert tip_height(store) == 0
            with pytest.raises(SafetyStateMissing):
                store.safety.load(b"validator")
        return
    with pytest.raises(CorruptionError, match="not sealed for its place"):
        holdfast.open(path, key=key, settings=quick())
    assert not verify_store(path, level="links", key=key).ok


def test_the_first_frame_cannot_be_made_without_the_key(tmp_path: Path) -> None:
    """All that it says is plain; the note in it vouches for that."""
    path = tmp_path / "store"
    holdfast.open(f"sqlite:{path}", key=KEY, settings=quick()).close()
    forged(path, first_frame_without_its_note)
    assert verify_store(path, level="links").ok, "the digests alone cannot tell"
    with pytest.raises(CorruptionError, match="nothing in a frame of an encrypted journal is encrypted"):
        holdfast.open(path, key=KEY, settings=quick())
    assert not verify_store(path, level="links", key=KEY).ok


def on_a_base_of_mine(path: Path, snapshot: Path) -> None:
    """The encrypted store at ``path`` stands on ``snapshot``, by somebody who has no key."""
    fs = RealFileSystem()
    identity = read_identity(fs, path)
    data = (path / "holdfast.toml").read_bytes()
    manifest = (snapshot / MANIFEST_NAME).read_bytes()
    reader = SnapshotReader(snapshot)
    reader.trust(manifest_digest=sha256(manifest).digest())
    base, _ = base_parts(reader.manifest, sha256(manifest).digest())
    place = fingerprint(path, identity.store_id)
    for name in ("journal", "views", "tree"):
        shutil.rmtree(path / name, ignore_errors=True)
    (path / "watermark").unlink()
    parts = [base, Part(Kind.IDENTITY, data, True), Part(Kind.INCARNATION, place, True)]
    Journal.create(fs, path, store_id=identity.store_id, salt=identity.salt, first_parts=parts).close()
    shutil.copytree(snapshot, path / "base")


@pytest.mark.parametrize("way", ["write", "read", "rebuild", "verify"])
def test_an_encrypted_store_takes_no_base(way: str, tmp_path: Path) -> None:
    """A base is plain and proves itself without a key, so anybody can make one that holds what he likes."""
    plain, path, snapshot = tmp_path / "plain", tmp_path / "store", tmp_path / "snapshot"
    make_store(f"sqlite:{plain}", key=None, count=3)
    with holdfast.open(plain) as opened:
        opened.export_snapshot(snapshot)
    make_store(f"sqlite:{path}", count=3)
    views = tmp_path / "views"
    shutil.copytree(path / "views", views)
    on_a_base_of_mine(path, snapshot)
    if way == "verify":
        for key in (None, KEY):
            assert not verify_store(path, level="quick", key=key).ok
        return
    if way == "read":
        shutil.copytree(views, path / "views")
    ways: dict[str, Callable[[], object]] = {
        "write": lambda: holdfast.open(path, key=KEY, settings=quick()),
        "read": lambda: holdfast.open(path, key=KEY, read_only=True, settings=quick()),
        "rebuild": lambda: rebuild_views(path, key=KEY),
    }
    with pytest.raises(CorruptionError, match=r"nothing in a frame of an encrypted|has a base in plain text"):
        ways[way]()


@pytest.mark.parametrize("key", [KEY, None])
def test_the_doctor_finds_a_base_under_an_encrypted_store(key: bytes | None, store: Path, tmp_path: Path) -> None:
    plain, snapshot = tmp_path / "plain", tmp_path / "snapshot"
    make_store(f"sqlite:{plain}", key=None, count=3)
    with holdfast.open(plain) as opened:
        opened.export_snapshot(snapshot)
    on_a_base_of_mine(store, snapshot)
    report = diagnose(store, store_key=key)
    assert not report.sound
    assert report.plan is None
    assert any(finding.part == "base" and finding.state == "damaged" for finding in report.findings)
    assert any("no backup is of use" in reason for reason in report.reasons)
    with pytest.raises(KeyRequired if key is None else CorruptionError, match=r"encrypted"):
        repair(store, store_key=key)


def test_the_doctor_with_the_key_knows_who_made_the_first_frame(tmp_path: Path) -> None:
    path = tmp_path / "store"
    holdfast.open(f"sqlite:{path}", key=KEY, settings=quick()).close()
    assert diagnose(path, store_key=KEY).sound
    forged(path, first_frame_without_its_note)
    report = diagnose(path, store_key=KEY)
    assert report.problem is not None
    assert "nothing in a frame of an encrypted journal is encrypted" in report.problem
    assert report.plan is None


def test_a_repair_that_fences_wants_the_key_before_it_changes_anything(tmp_path: Path) -> None:
    source, path = tmp_path / "source", tmp_path / "store"
    with holdfast.open(f"sqlite:{source}", key=KEY, settings=quick(compact="off")) as opened:
        for block in chain_of(None, 20):
            opened.add(block)
        opened.sync()
        backup(opened, repository(source / "backups"))
        shutil.copytree(source, path)
    segment = path / "journal" / "0000000001.seg"
    data = bytearray(segment.read_bytes())
    data[5000] ^= 1
    segment.write_bytes(data)
    before = contents(path)
    # Without the key nobody knows which frame of a backup is the last one, so no plan is made at all.
    for key, error in ((None, KeyRequired), (bytes(32), KeyRejected)):
        with pytest.raises(error):
            repair(path, recover="backup", store_key=key)
        assert contents(path) == before
    report = repair(path, recover="backup", store_key=KEY)
    assert report is not None
    assert report.plan.fenced
    with holdfast.open(path, key=KEY, settings=quick()) as opened:
        assert tip_height(opened) == 19
        assert opened.safety.fenced


def test_base_beside_a_journal_that_began_empty_is_refused(store: Path) -> None:
    (store / "base").mkdir()
    with pytest.raises(CorruptionError, match="has a base in plain text"):
        holdfast.open(store, key=KEY, read_only=True)
    with pytest.raises(CorruptionError, match="has a base in plain text"):
        holdfast.open(store, key=KEY, settings=quick())
    for key in (None, KEY):
        (problem,) = verify_store(store, level="quick", key=key).problems
        assert "has a base in plain text" in problem.message
    (store / "base").rmdir()
    holdfast.open(store, key=KEY, settings=quick()).close()


@pytest.mark.parametrize("key", [KEY, None])
def test_no_frame_can_be_left_out_without_the_key(key: bytes | None, tmp_path: Path) -> None:
    """Of documents nobody else would miss one. The control: where nothing is encrypted, it is not missed."""
    path = tmp_path / "store"
    with holdfast.open(f"sqlite:{path}", key=key, settings=quick()) as store:
        for number in range(4):
            store.documents("space").put(b"%d" % number, MARK)
    forged(path, without_frame_3)
    assert verify_store(path, level="links").ok, "the digests alone cannot tell"
    if key is None:
        with holdfast.open(path, settings=quick()) as store:
            found = store.documents("space")
            assert [found.get(b"%d" % number) for number in range(4)] == [MARK, None, MARK, MARK]
        return
    with pytest.raises(CorruptionError, match="nothing in a frame of an encrypted journal is encrypted"):
        holdfast.open(path, key=key, settings=quick())
