"""``verify``: a good store is good and untouched; each kind of damage is found, named and never fatal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

import holdfast
from holdfast._fs import RealFileSystem
from holdfast.blocks.content import FrameContent, entry_of
from holdfast.blocks.entries import CanonicalEntry, FinalizedEntry, encode_block, encode_canonical, encode_finalized
from holdfast.blocks.records import block_key, canonical_key, height_key, orphan_key
from holdfast.blocks.state import decode_state, encode_state
from holdfast.engine.api import Batch, Engine
from holdfast.engine.open import open_engine
from holdfast.errors import ForeignStore, FormatTooNew, InvalidInputError, StoreLocked, StoreNotFound
from holdfast.journal.api import Kind, Part
from holdfast.journal.journal import Journal, JournalOptions
from holdfast.recovery import Level, VerifyReport, rebuild_views, verify_store
from holdfast.store.indexes import index
from holdfast.store.opening import read_identity
from holdfast.types import Block, BlockInfo
from holdfast.views.api import Applied
from holdfast.views.flush import load_applied
from holdfast.views.rows import APPLIED_KEY, FLUSHING_KEY, encode_applied, encode_flushing, encode_row
from holdfast.views.tables import SAFETY, UNDO
from tests.unit.store_support import chain_of, filled, hash_of, make, open_quick, quick

LEVELS: tuple[Level, ...] = get_args(Level)
ENGINES = ["rocksdb", "lmdb", "sqlite"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed store with forks, a reorg, finality and a vote; no user of it is left."""
    path = tmp_path / "store"
    blocks = filled(f"sqlite:{path}")
    with open_quick(path) as store:
        store.add_many(chain_of(blocks[7], 4, "rival"))
        store.orphan(store.blocks.load(store.tip.hash).hash if store.tip else b"", reason="bad")
        store.finalize(5)
        store.safety.save(b"me", (1,), b"vote")
    return path


def data(path: Path) -> Path:
    return path / "views" / (path / "views" / "CURRENT").read_text().strip() / "data"


def change(path: Path, do: Callable[[Engine], dict[bytes, bytes | None]]) -> None:
    """Rows of the views are others; values are given a right checksum."""
    engine = open_engine("sqlite", data(path), create=False)
    rows = do(engine)
    engine.apply(Batch({key: None if row is None else encode_row(key, row) for key, row in rows.items()}), sync=True)
    engine.close()


def files(path: Path) -> dict[str, bytes]:
    """Every file, but those that readers of SQLite and LMDB coordinate with."""
    aside = ("LOCK", "rows.sqlite-shm", "rows.sqlite-wal", "lock.mdb")
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.name not in aside
    }


def _put(path: Path, key: bytes, stored: bytes | None) -> None:
    engine = open_engine("sqlite", data(path), create=False)
    engine.apply(Batch({key: stored}), sync=True)
    engine.close()


def _remove(path: Path, key: bytes) -> None:
    _put(path, key, None)


def found(report: VerifyReport, check: str, code: str = "corruption") -> None:
    """The report is not ok because of ``check``, and it is whole."""
    assert not report.ok
    assert check in {problem.check for problem in report.problems}, report.as_dict()
    problem = next(problem for problem in report.problems if problem.check == check)
    assert problem.code == code
    assert problem.message
    assert problem.remedy
    assert report.exit_code in (3, 4, 6, 9)
    assert sum(each.problems for each in report.checks) >= 1
    json.dumps(report.as_dict())


# -- good stores ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_a_good_store_is_good_and_untouched(tmp_path: Path, engine: str) -> None:
    filled(f"{engine}:{tmp_path}")
    before = files(tmp_path)
    for level in LEVELS:
        report = verify_store(f"{engine}:{tmp_path}", level=level)
        assert report.ok, report.as_dict()
        assert (report.exit_code, report.problems, report.notes) == (0, (), ())
        assert report.facts["tip_height"] == 9
        assert report.facts["orphans"] == 3
        assert all(check.complete and check.checked for check in report.checks)
    after = files(tmp_path)
    assert after.keys() == before.keys()
    assert {name for name in before if before[name] != after[name]} == set()


def test_each_level_checks_more(path: Path) -> None:
    names = [[check.name for check in verify_store(path, level=level).checks] for level in LEVELS]
    assert names[0] == ["identity", "watermark", "journal", "views"]
    assert names[1] == ["identity", "watermark", "journal", "segments", "views", "blocks", "canonical"]
    assert names[2] == [*names[1], "state", "preimages", "blobs", "tree image", "history"]
    assert names[3] == [*names[2], "rows"]
    assert names[4] == [*names[3], "roots"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_large_store_is_compared_beside_a_directory(
    tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.recovery.rows._MEMORY_BLOCKS_MAX", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    filled(f"{engine}:{tmp_path / 'store'}")
    assert verify_store(tmp_path / "store", level="views").ok
    assert not list((tmp_path / "temporary").iterdir())


def test_rows_of_user_indexes_are_left_to_their_functions(tmp_path: Path) -> None:
    @index("by_producer")
    def by_producer(block: Block) -> list[tuple[bytes, bytes]]:
        return [(block.producer or b"none", block.hash)]

    blocks = chain_of(None, 6)
    with holdfast.open(f"sqlite:{tmp_path}", settings=quick(), indexes=[by_producer]) as store:
        store.add_many(blocks)
        store.add_many(chain_of(blocks[2], 5, "rival"))
    report = verify_store(tmp_path, level="views")
    assert report.ok, report.as_dict()
    assert any("user indexes" in note for note in report.notes)
    rebuild_views(tmp_path)
    assert verify_store(tmp_path, level="views").notes == ()
    with holdfast.open(tmp_path, settings=quick(), indexes=[by_producer]) as store:
        assert store.tip is not None


def test_an_empty_store_is_good(tmp_path: Path) -> None:
    open_quick(f"sqlite:{tmp_path}").close()
    assert verify_store(tmp_path, level="views").ok


@pytest.mark.parametrize("flush", [False, True])
def test_an_unclean_store_is_good_with_a_note(tmp_path: Path, flush: bool) -> None:
    path = tmp_path / "store"
    store = open_quick(f"sqlite:{path}")
    store.add_many(chain_of(None, 6))
    if flush:
        store.flush()
    assert store.tip is not None
    store.add_many(chain_of(store.tip, 3, "more"))
    shutil.copytree(path, tmp_path / "copy")
    store.close()
    before = files(tmp_path / "copy")
    for level in LEVELS:
        report = verify_store(tmp_path / "copy", level=level)
        assert report.ok, report.as_dict()
        assert any("not closed cleanly" in note for note in report.notes)
        assert report.facts["last_seq"] == 3
        assert (
            f"the tip and the counts are as of frame {2 if flush else 1}; "
            f"the next open replays the {1 if flush else 2} frames after it"
        ) in report.notes
    after = files(tmp_path / "copy")
    assert {name: data for name, data in after.items() if not name.startswith("views")} == {
        name: data for name, data in before.items() if not name.startswith("views")
    }


def test_a_torn_tail_is_a_note(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store = open_quick(f"sqlite:{path}")
    store.add_many(chain_of(None, 6))
    shutil.copytree(path, tmp_path / "copy")
    store.close()
    segment = tmp_path / "copy" / "journal" / "0000000001.seg"
    raw = bytearray(segment.read_bytes())
    end = len(raw.rstrip(b"\0")) + 64
    raw[end : end + 100] = b"x" * 100
    segment.write_bytes(raw)
    report = verify_store(tmp_path / "copy", level="views")
    assert report.ok
    assert any("never acknowledged" in note for note in report.notes)


# -- what is no store ---------------------------------------------------------------------------------------------


def test_what_cannot_be_verified_is_refused(tmp_path: Path, path: Path) -> None:
    with pytest.raises(StoreNotFound):
        verify_store(tmp_path / "missing")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    with pytest.raises(ForeignStore):
        verify_store(tmp_path / "other")
    assert [file.name for file in (tmp_path / "other").iterdir()] == ["file"]
    for bad in ("memory:", "what:ever"):
        with pytest.raises(InvalidInputError):
            verify_store(bad)
    with pytest.raises(InvalidInputError):
        verify_store(path, level="deep")  # type: ignore[arg-type]
    with open_quick(path), pytest.raises(StoreLocked):
        verify_store(path)
    identity = path / "holdfast.toml"
    identity.write_bytes(identity.read_bytes().replace(b"format = 1", b"format = 2"))
    with pytest.raises(FormatTooNew):
        verify_store(path)


def test_it_stops_and_says_so(path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    report = verify_store(
        path, level="views", progress=lambda *words: calls.append(words), stop=lambda: len(calls) >= 4
    )
    assert report.stopped
    assert not report.ok
    assert report.problems == ()
    assert calls
    again = verify_store(path, level="views", progress=lambda *words: calls.append(words), stop=lambda: False)
    assert again.ok
    assert {name for name, _, _ in calls} >= {"identity", "segments", "blocks", "rows"}


# -- damaged files --------------------------------------------------------------------------------------------------


def test_identity_and_watermark(path: Path) -> None:
    identity, watermark = path / "holdfast.toml", path / "watermark"
    text, slots = identity.read_bytes(), watermark.read_bytes()
    identity.write_bytes(text.replace(b"epoch_origin = 0", b"epoch_origin = 1"))
    found(verify_store(path, level="quick"), "journal")
    identity.write_bytes(text[:-9])
    found(verify_store(path, level="quick"), "identity")
    identity.unlink()
    found(verify_store(path, level="quick"), "identity", "missing_file")
    identity.write_bytes(text)
    watermark.write_bytes(slots[:100] + b"\xff" + slots[101:])
    report = verify_store(path, level="quick")
    found(report, "watermark")
    assert all(check.complete for check in report.checks)
    watermark.write_bytes(bytes(8192))
    found(verify_store(path, level="views"), "watermark")
    watermark.unlink()
    found(verify_store(path, level="views"), "watermark", "missing_file")
    watermark.write_bytes(slots)
    assert verify_store(path, level="views").ok


def test_a_flipped_bit_anywhere_in_the_journal_is_found(path: Path) -> None:
    segment = path / "journal" / "0000000001.seg"
    raw = segment.read_bytes()
    step = max(1, len(raw) // 60)
    for offset in [*range(0, len(raw), step), len(raw) - 1]:
        segment.write_bytes(raw[:offset] + bytes((raw[offset] ^ 4,)) + raw[offset + 1 :])
        report = verify_store(path, level="links")
        assert not report.ok, offset
        assert {problem.code for problem in report.problems} <= {"corruption", "commit_loss", "unsupported_format"}
    segment.write_bytes(raw)
    assert verify_store(path, level="links").ok


def test_every_damaged_segment_is_named(tmp_path: Path) -> None:
    with open_quick(f"sqlite:{tmp_path}", segment_bytes_max=1024 * 1024, compression="none") as store:
        for block in chain_of(None, 6):
            store.add(Block(block.hash, block.parent, block.height, b"h", bytes(500_000)))
    segments = sorted((tmp_path / "journal").glob("*.seg"))
    assert len(segments) >= 3
    assert verify_store(tmp_path, level="views").ok
    for segment in segments[:2]:
        raw = bytearray(segment.read_bytes())
        raw[300_000] ^= 1
        segment.write_bytes(raw)
    report = verify_store(tmp_path, level="links")
    found(report, "segments")
    assert len([problem for problem in report.problems if problem.check == "segments"]) == 2
    segments[1].unlink()
    report = verify_store(tmp_path, level="links")
    found(report, "journal", "missing_file")
    assert len([problem for problem in report.problems if problem.check == "segments"]) == 1


def test_an_older_journal_is_lost_commits(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path / "journal", tmp_path / "journal")
    shutil.copy(path / "watermark", tmp_path / "watermark")
    with open_quick(path) as store:
        assert store.tip is not None
        store.add(make(store.tip))
    shutil.rmtree(path / "journal")
    shutil.copytree(tmp_path / "journal", path / "journal")
    report = verify_store(path, level="quick")
    found(report, "journal", "commit_loss")
    assert report.exit_code == 4
    shutil.copy(tmp_path / "watermark", path / "watermark")
    report = verify_store(path, level="views")
    found(report, "views", "commit_loss")
    assert report.exit_code == 4


# -- damaged views --------------------------------------------------------------------------------------------------


def test_views_that_are_not_there(path: Path) -> None:
    current = path / "views" / "CURRENT"
    current.write_text("x")
    found(verify_store(path, level="quick"), "views")
    current.write_text("9")
    found(verify_store(path, level="links"), "views", "missing_file")
    current.unlink()
    report = verify_store(path, level="views")
    assert report.ok
    assert any("no views" in note for note in report.notes)


@pytest.mark.parametrize("damage", ["gone", "footer"])
def test_a_table_of_rocksdb_that_cannot_be_opened_is_found(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "store"
    filled(f"rocksdb:{path}")
    for table in data(path).glob("*.sst"):
        if damage == "gone":
            table.unlink()
        else:
            raw = bytearray(table.read_bytes())
            raw[-4] ^= 0x10
            table.write_bytes(raw)
    report = verify_store(path, level="quick")
    found(report, "views", "missing_file" if damage == "gone" else "corruption")
    assert "holdfast rebuild" in report.problems[0].remedy
    rebuild_views(path)
    assert verify_store(path, level="views").ok


def _first(path: Path) -> BlockInfo:
    with open_quick(path) as store:
        found = store.blocks.at(3)
    assert found is not None
    return found


def test_every_kind_of_wrong_row_is_found(path: Path) -> None:
    info = _first(path)
    with open_quick(path) as store:
        orphan = next(store.blocks.orphans()).hash
    keys = [block_key(info.hash), height_key(3, info.hash), canonical_key(3), orphan_key(orphan), SAFETY.prefix + b"me"]
    engine = open_engine("sqlite", data(path), create=False)
    undo = [key for key, _ in engine.scan(UNDO.prefix, UNDO.end).rows]
    assert undo
    originals = dict(zip([*keys, undo[0]], engine.get_many([*keys, undo[0]]), strict=True))
    engine.close()
    for key, stored in originals.items():
        assert stored is not None
        for other in (None, stored[:-1] + bytes((stored[-1] ^ 1,)), encode_row(key, stored[4:] + b"x")):
            _put(path, key, other)
            found(verify_store(path, level="views"), "rows")
        engine = open_engine("sqlite", data(path), create=False)
        engine.apply(Batch({key: stored, key + b"\x00": encode_row(key + b"\x00", stored[4:])}), sync=True)
        engine.close()
        found(verify_store(path, level="views"), "rows")
        _remove(path, key + b"\x00")
        assert verify_store(path, level="views").ok


@pytest.mark.parametrize("height", [0, 3, 9, 10])
def test_links_finds_a_broken_canonical_table(path: Path, height: int) -> None:
    with open_quick(path) as store:
        orphan = next(store.blocks.orphans()).hash
    for row in (None, orphan, hash_of("nobody")):
        engine = open_engine("sqlite", data(path), create=False)
        key = canonical_key(height)
        stored = engine.get(key)
        engine.apply(Batch({key: None if row is None else encode_row(key, row)}), sync=True)
        engine.close()
        report = verify_store(path, level="links")
        if stored is None and row is None:
            assert report.ok
        else:
            assert not report.ok
            assert {problem.check for problem in report.problems} <= {"views", "canonical"}
        _put(path, key, stored)
    assert verify_store(path, level="views").ok


@pytest.mark.parametrize("field", ["blocks", "orphans", "tip_height", "root_height", "root_hash", "tip_hash"])
def test_links_finds_counters_that_do_not_fit(path: Path, field: str) -> None:
    def do(engine: Engine) -> dict[bytes, bytes | None]:
        applied = load_applied(engine)
        assert applied is not None
        state = decode_state(applied.state)
        value = getattr(state, field)
        state = state._replace(**{field: hash_of("other") if isinstance(value, bytes) else value + 1})  # type: ignore[arg-type]
        other = Applied(applied.seq, applied.digest, encode_state(state), applied.undo_floor, None)
        return {APPLIED_KEY: encode_applied(other)}

    change(path, do)
    report = verify_store(path, level="links")
    assert not report.ok
    found(verify_store(path, level="views"), "views" if field.startswith("tip") else "canonical")


def test_another_history_and_an_interrupted_flush(path: Path) -> None:
    engine = open_engine("sqlite", data(path), create=False)
    applied = load_applied(engine)
    engine.close()
    assert applied is not None
    other = Applied(applied.seq, bytes(32), applied.state, applied.undo_floor, None)
    change(path, lambda _: {APPLIED_KEY: encode_applied(other)})
    found(verify_store(path, level="views"), "views")
    change(path, lambda _: {APPLIED_KEY: encode_applied(applied), FLUSHING_KEY: encode_flushing(applied.seq + 1, None)})
    found(verify_store(path, level="quick"), "views", "commit_loss")


def test_a_flush_that_was_interrupted_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store = open_quick(f"sqlite:{path}")
    blocks = chain_of(None, 6)
    store.add_many(blocks)
    store.flush()
    store.add_many(chain_of(blocks[2], 5, "rival"))
    shutil.copytree(path, tmp_path / "copy")
    store.close()
    # What the flush of the last frames writes, but for its last batch: the rows are new, the record is old.
    rows: dict[bytes, bytes] = {}
    target = open_engine("sqlite", data(path), create=False)
    rows.update(target.scan(limit=10_000).rows)
    target.close()
    engine = open_engine("sqlite", data(tmp_path / "copy"), create=False)
    applied = load_applied(engine)
    assert applied is not None
    changed = [key for key, row in rows.items() if engine.get(key) != row and key != APPLIED_KEY]
    batch: dict[bytes, bytes | None] = {key: rows[key] for key in changed[::2]}
    batch[FLUSHING_KEY] = encode_row(FLUSHING_KEY, encode_flushing(7, None))
    engine.apply(Batch(batch), sync=True)
    engine.close()
    report = verify_store(tmp_path / "copy", level="views")
    assert report.ok, report.as_dict()
    assert any("interrupted" in note for note in report.notes)
    change(tmp_path / "copy", lambda _: {block_key(blocks[1].hash): b"wrong"})
    found(verify_store(tmp_path / "copy", level="views"), "rows")


# -- a journal that is well formed and wrong --------------------------------------------------------------------------


def _append(path: Path, *parts: Part) -> None:
    """The journal has one more frame; the views know nothing of it."""
    fs = RealFileSystem()
    identity = read_identity(fs, path)
    options = JournalOptions(background=False)
    journal, _ = Journal.open(fs, path, store_id=identity.store_id, salt=identity.salt, options=options)
    journal.append(parts)
    journal.close()


def _block(block: Block, total: int) -> Part:
    content = FrameContent([entry_of(block, total)], bodies={block.hash: block})
    return Part(Kind.BLOCK, encode_block(content.blocks[0]), True)


def test_wrong_links_in_the_journal_are_found(path: Path, tmp_path: Path) -> None:
    with open_quick(path) as store:
        tip = store.tip
    assert tip is not None
    here = (tip.height, tip.hash)
    good = Block(hash_of("good"), tip.hash, tip.height + 1, b"", None)
    lost = Block(hash_of("lost"), hash_of("nobody"), tip.height + 1, b"", None)
    jump = Block(hash_of("jump"), tip.hash, tip.height + 2, b"", None)
    top = (tip.height + 1, good.hash)
    cases: dict[str, list[Part]] = {
        "parent": [_block(lost, 99)],
        "height of a block": [_block(jump, tip.total_work + 1)],
        "total work": [_block(good, tip.total_work + 7)],
        "new tip is not": [Part(Kind.CANONICAL, encode_canonical(CanonicalEntry(here, (9, hash_of("x")), 5)), True)],
        "fork point is not": [
            _block(good, tip.total_work + 1),
            Part(Kind.CANONICAL, encode_canonical(CanonicalEntry((8, hash_of("x")), top, 5)), True),
        ],
        "root": [
            _block(good, tip.total_work + 1),
            Part(Kind.CANONICAL, encode_canonical(CanonicalEntry(None, top, 5)), True),
        ],
        "floor falls": [
            _block(good, tip.total_work + 1),
            Part(Kind.CANONICAL, encode_canonical(CanonicalEntry(here, top, 4)), True),
        ],
        "finality": [Part(Kind.FINALIZED, encode_finalized(FinalizedEntry(tip.height, tip.hash, 0)), True)],
        "finalized block": [Part(Kind.FINALIZED, encode_finalized(FinalizedEntry(8, hash_of("x"), 8)), True)],
        "unknown kind": [Part(0x7777, b"", True)],
        "too short": [Part(Kind.SAFETY, b"", True)],
        "without the block": [Part(Kind.HEADER, b"h")],
    }
    for name, parts in cases.items():
        copy = tmp_path / "copy"
        shutil.copytree(path, copy)
        _append(copy, *parts)
        report = verify_store(copy, level="links")
        messages = [problem.message for problem in report.problems if problem.check == "blocks"]
        assert any(name in message for message in messages), (name, messages)
        assert all("seq" in problem.place for problem in report.problems if problem.check == "blocks")
        shutil.rmtree(copy)
