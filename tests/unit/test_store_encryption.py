"""A store that is created with a key: what lies on the disk, who may open it, and what damage becomes."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import holdfast
from holdfast import Store
from holdfast._fs import RealFileSystem
from holdfast._keys import StoreKey, using_key
from holdfast.aio import open_async
from holdfast.engine.api import Batch
from holdfast.engine.open import open_engine
from holdfast.errors import (
    CorruptionError,
    HoldfastError,
    InvalidInputError,
    KeyRejected,
    KeyRequired,
)
from holdfast.journal.reader import JournalReader
from holdfast.recovery.convert import convert_store
from holdfast.recovery.rebuild import rebuild_views
from holdfast.recovery.verify import verify_store
from holdfast.store.factory import open_store
from holdfast.store.identity import decode_identity, encode_identity
from holdfast.store.opening import read_identity
from holdfast.types import Block
from tests.cli.cli_tools import ROOT
from tests.unit.store_support import chain_of, hash_of, make, quick

KEY = bytes(range(1, 33))
ENGINES = ("rocksdb", "lmdb", "sqlite")
MARK = b"PLAINTEXT-MARKER"
"""Stands in everything that must not be readable; keys of rows may be."""


@holdfast.index("by_mark")
def by_mark(block: Block) -> Iterator[tuple[bytes, bytes]]:
    yield b"key of the index", MARK + b" index value"


def fill(store: Store, count: int = 30) -> None:
    """Blocks, states, side blocks, documents and votes that all hold the marker."""
    for height in range(count):
        draft = store.draft()
        draft.state[b"account/%d" % (height % 7)] = MARK + b" state %d" % height
        if height == 5:
            draft.state[b"large"] = MARK * 20_000
        store.commit(
            draft,
            hash=hash_of(height, "main"),
            header=MARK + b" header",
            body=MARK * 10,
            extra=MARK + b" extra",
            producer=b"p",
        )
    store.documents("evm").put(b"document", MARK + b" document")
    store.safety.save(b"validator", (1, 2), MARK + b" payload")


def make_store(url: str, *, key: bytes | StoreKey | None = KEY, count: int = 30) -> None:
    with holdfast.open(url, key=key, settings=quick(), indexes=[by_mark]) as store:
        fill(store, count)


def files_with(path: Path, what: bytes) -> list[str]:
    """Files below ``path`` that hold these bytes."""
    return sorted(
        str(file.relative_to(path)) for file in path.rglob("*") if file.is_file() and what in file.read_bytes()
    )


def tip_height(store: Store) -> int:
    assert store.tip is not None
    return store.tip.height


def contents(path: Path) -> dict[str, bytes]:
    """Every file below ``path`` but the lock."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "LOCK"
    }


# -- what lies on the disk ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_no_value_lies_in_plain_text_below_the_directory(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "store"
    url = f"{engine}:{path}"
    make_store(url)
    assert files_with(path, MARK) == []
    with holdfast.open(url, key=KEY, settings=quick(), indexes=[by_mark]) as store:
        store.rebuild()
        side = make(store.blocks.at(28), "side", body=MARK * 10)
        store.add(side)
        store.add(make(side, "more", body=MARK, work=5))
        assert tip_height(store) == 30
    rebuild_views(url, key=KEY)
    convert_store(path, to=ENGINES[ENGINES.index(engine) - 1], key=KEY)
    assert files_with(path, MARK) == []


def test_pages_of_lmdb_are_not_filled_up_with_the_memory_of_the_process(tmp_path: Path) -> None:
    """In a process of its own: what its memory holds then is what it was given to store, again and again."""
    program = (
        "import holdfast, sys\n"
        "from hashlib import sha256\n"
        "mark = b'PLAINTEXT-MARKER of a test'\n"
        "with holdfast.open('lmdb:' + sys.argv[1], key=bytes(range(1, 33))) as store:\n"
        "    for number in range(60):\n"
        "        draft = store.draft()\n"
        "        draft.state[b'large'] = mark * 6000\n"
        "        name = sha256(b'%d' % number).digest()\n"
        "        store.commit(draft, hash=name, header=mark, body=mark * 2000, extra=mark)\n"
        "        store.documents('evm').put(b'key %d' % number, mark * 10)\n"
        "        store.flush()\n"
        "    store.rebuild()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "store")], env=environment, check=True, timeout=60)
    assert files_with(tmp_path / "store", MARK) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_the_search_for_plain_text_finds_some_in_a_plain_store(engine: str, tmp_path: Path) -> None:
    """The positive control: journal and engine both hold the marker where nothing is encrypted."""
    path = tmp_path / "store"
    with holdfast.open(f"{engine}:{path}", settings=quick(compression="none"), indexes=[by_mark]) as store:
        fill(store)
    found = files_with(path, MARK)
    assert any(name.startswith("journal/") for name in found)
    if engine != "rocksdb":  # its tables are compressed
        assert any(name.startswith("views/") for name in found)


def test_nothing_is_in_plain_text_while_the_store_is_open_and_after_it_was_left(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store = holdfast.open(f"sqlite:{path}", key=KEY, settings=quick(), indexes=[by_mark])
    fill(store)
    assert files_with(path, MARK) == []
    copy = tmp_path / "left"
    shutil.copytree(path, copy)
    store.close()
    with holdfast.open(copy, key=KEY, settings=quick(), indexes=[by_mark]) as again:
        assert not again.recovery.clean
        assert again.state[b"account/1"] == MARK + b" state 29"
    assert files_with(copy, MARK) == []


def test_what_was_torn_is_set_aside_encrypted(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store = holdfast.open(f"sqlite:{path}", key=KEY, settings=quick())
    for block in chain_of(None, 3):
        store.add(block)
    copy = tmp_path / "left"
    shutil.copytree(path, copy)
    store.add(make(store.tip, "torn", body=MARK * 50))
    whole = (path / "journal" / "0000000001.seg").read_bytes()
    store.close()
    segment = copy / "journal" / "0000000001.seg"
    end = len(segment.read_bytes().rstrip(b"\0"))
    segment.write_bytes(whole[: end + 400].ljust(len(whole), b"\0"))
    with holdfast.open(copy, key=KEY, settings=quick()) as again:
        assert again.recovery.discarded
        # the seq of what was cut is used again: with another nonce, so both may be read
        again.add(make(again.tip, "torn", body=MARK * 60))
    assert list((copy / "quarantine").iterdir())
    assert files_with(copy, MARK) == []
    assert verify_store(copy, level="full", key=KEY).ok


def test_everything_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "store"
    make_store(f"sqlite:{path}")
    for read_only in (False, True):
        with holdfast.open(path, key=KEY, read_only=read_only, settings=quick(), indexes=[by_mark]) as store:
            tip = store.tip
            assert tip is not None
            assert tip_height(store) == 29
            assert store.blocks.body(tip) == MARK * 10
            assert store.blocks.header(tip) == MARK + b" header"
            assert store.state[b"large"] == MARK * 20_000
            assert store.state.at(height=8)[b"account/1"] == MARK + b" state 8"
            assert store.documents("evm").get(b"document") == MARK + b" document"
            rows = store.index("by_mark").get(b"key of the index")
            assert len(rows) == 30
            assert rows[0] == MARK + b" index value"


# -- who may open it ------------------------------------------------------------------------------------------------


def refused_by(url: str | Path, key: bytes | StoreKey | None) -> list[HoldfastError]:
    """What each way to open the store says; it is not changed."""
    errors: list[HoldfastError] = []
    ways: list[Callable[[], object]] = [
        lambda: holdfast.open(url, key=key),
        lambda: holdfast.open(url, key=key, create=False),
        lambda: holdfast.open(url, key=key, read_only=True),
        lambda: rebuild_views(url, key=key),
        lambda: convert_store(url, to="lmdb", key=key),
        lambda: verify_store(url, level="state", key=key),
        lambda: holdfast.diff(url, url, key=key),
        lambda: asyncio.run(open_async(url, key=key)),
    ]
    for way in ways:
        with pytest.raises(HoldfastError) as caught:
            way()
        errors.append(caught.value)
    return errors


def test_without_its_key_nothing_is_opened_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "store"
    make_store(f"sqlite:{path}", count=3)
    before = contents(path)
    for error in refused_by(path, None):
        assert type(error) is KeyRequired
        assert error.code == "key_required"
        assert "--store-key-file" in error.remedy
    assert contents(path) == before


def test_a_wrong_key_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "store"
    make_store(f"sqlite:{path}", count=3)
    before = contents(path)
    for key in (bytes(32), StoreKey.from_passphrase("secret words")):
        for error in refused_by(path, key):
            assert type(error) is KeyRejected
            assert error.code == "key_rejected"
            told = f"{error} {error.remedy} {error.as_dict()} {error!r}"
            assert "secret words" not in told
            assert bytes(32).hex() not in told
    assert contents(path) == before


@pytest.mark.parametrize("key", [None, bytes(32)])
def test_not_even_the_lock_is_taken_for_a_key_that_does_not_fit(key: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "store"
    make_store(f"sqlite:{path}", count=2)
    (path / "LOCK").write_bytes(b"1 nobody")
    ways: list[Callable[[], object]] = [lambda: holdfast.open(path, key=key), lambda: rebuild_views(path, key=key)]
    for way in ways:
        with pytest.raises(InvalidInputError):
            way()
    assert (path / "LOCK").read_bytes() == b"1 nobody"


def test_a_store_that_is_not_encrypted_takes_no_key(tmp_path: Path) -> None:
    """Its owner would believe that it is."""
    path = tmp_path / "store"
    make_store(f"sqlite:{path}", key=None, count=3)
    before = contents(path)
    with pytest.raises(KeyRejected, match="is not encrypted"):
        holdfast.open(path, key=KEY)
    with pytest.raises(KeyRejected, match="is not encrypted"):
        holdfast.open(path, key=KEY, read_only=True)
    with pytest.raises(KeyRejected, match="is not encrypted"):
        verify_store(path, key=KEY)
    assert contents(path) == before


@pytest.mark.parametrize("name", ["salt", "sealed_key"])
def test_a_rotten_identity_is_not_a_wrong_key(name: str, tmp_path: Path) -> None:
    """The first frame holds the identity once more, and the ladder puts it back."""
    path = tmp_path / "store"
    make_store(f"sqlite:{path}", count=2)
    file = path / "holdfast.toml"
    good = file.read_text("ascii")
    at = good.index(f"{name} = ", good.index("[encryption]")) + len(name) + 10
    bad = good[:at] + ("0" if good[at] != "0" else "1") + good[at + 1 :]
    file.write_text(bad, "ascii")
    ways: list[Callable[[], object]] = [
        lambda: holdfast.open(path, key=KEY, read_only=True),
        lambda: rebuild_views(path, key=KEY),
        lambda: open_store(path, key=KEY, create=False),
    ]
    for way in ways:
        with pytest.raises(CorruptionError, match="differs from the first frame"):
            way()
    assert not verify_store(path, key=KEY).ok
    assert file.read_text("ascii") == bad
    with holdfast.open(path, key=KEY, settings=quick()) as store:
        assert store.recovery.repaired is not None
        assert tip_height(store) == 1
    assert file.read_text("ascii") == good


def test_an_identity_whose_key_was_taken_away_says_what_may_have_happened(tmp_path: Path) -> None:
    path = tmp_path / "store"
    make_store(f"sqlite:{path}", count=2)
    file = path / "holdfast.toml"
    good = file.read_text("ascii")
    file.write_text(good[: good.index("[encryption]")], "ascii")
    with holdfast.open(path, key=KEY, settings=quick()) as store:
        assert store.recovery.repaired is not None
    assert file.read_text("ascii") == good
    make_store(f"sqlite:{tmp_path / 'plain'}", key=None, count=2)
    with pytest.raises(KeyRejected, match="is not encrypted") as caught:
        holdfast.open(tmp_path / "plain", key=KEY)
    assert "somebody changed its files" in caught.value.remedy


def test_a_key_that_is_none_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    path = tmp_path / "store"
    for bad in (b"", bytes(31), "text", 5):
        with pytest.raises(InvalidInputError):
            holdfast.open(path, key=bad)  # type: ignore[arg-type]
    assert not path.exists()
    with pytest.raises(InvalidInputError, match="memory"):
        holdfast.open("memory:", key=KEY)


def test_a_passphrase_opens_it_and_the_parameters_are_stored(tmp_path: Path) -> None:
    path = tmp_path / "store"
    make_store(f"sqlite:{path}", key=StoreKey.from_passphrase("correct horse"), count=2)
    with holdfast.open(path, key=StoreKey.from_passphrase("correct horse")) as store:
        assert tip_height(store) == 1
    with pytest.raises(KeyRejected, match="passphrase was given"):
        holdfast.open(path, key=StoreKey.from_passphrase("wrong horse"))
    with pytest.raises(KeyRejected, match="other kind"):
        holdfast.open(path, key=KEY)
    form = read_identity(RealFileSystem(), path).encryption
    assert form is not None
    assert (form.kdf, form.n, form.r, form.p) == ("scrypt", 1 << 17, 8, 1)


def test_a_key_file_opens_it(tmp_path: Path) -> None:
    path, file = tmp_path / "store", tmp_path / "key"
    file.write_text(KEY.hex() + "\n")
    make_store(f"sqlite:{path}", key=StoreKey.from_file(file), count=2)
    with holdfast.open(path, key=KEY) as store:
        assert store.tip is not None


def test_a_key_given_for_a_while_opens_stores_and_makes_encrypted_ones(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with using_key(KEY):
        make_store(f"sqlite:{path}", key=None, count=2)
        assert verify_store(path, level="views").ok
        with holdfast.open("memory:") as store:
            assert store.tip is None
    with pytest.raises(KeyRequired):
        holdfast.open(path)


def test_what_a_strange_identity_asks_of_scrypt_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "store"
    make_store(f"sqlite:{path}", key=KEY, count=2)
    data = (path / "holdfast.toml").read_bytes()
    assert encode_identity(decode_identity(data)) == data
    for old, new in [
        (b'kdf = "key-file"\nn = 0', b'kdf = "scrypt"\nn = 1099511627776'),
        (b'kdf = "key-file"', b'kdf = "argon2"'),
        (b"\nr = 0", b"\nr = 0\nmore = 1"),
        (b"\nr = 0", b""),
        (b"\nr = 0", b"\nr = true"),
    ]:
        assert data.count(old) == 1
        with pytest.raises(CorruptionError, match="encryption"):
            decode_identity(data.replace(old, new))


# -- damage ---------------------------------------------------------------------------------------------------------


def parts_of(path: Path) -> list[tuple[int, int, int]]:
    """(file offset, length, kind) of each encrypted part of the first segment."""
    identity = read_identity(RealFileSystem(), path)
    reader = JournalReader.open(RealFileSystem(), path, store_id=identity.store_id, salt=identity.salt)
    found = [
        (part.offset, part.stored_bytes, part.kind)
        for frame in reader.frames(1)
        if frame.segment == 1
        for part in frame.parts
        if part.codec & 0x80
    ]
    reader.close()
    return found


def test_a_flipped_byte_of_the_journal_is_corruption_with_and_without_the_key(tmp_path: Path) -> None:
    path = tmp_path / "store"
    make_store(f"sqlite:{path}", count=3)
    segment = path / "journal" / "0000000001.seg"
    whole = segment.read_bytes()
    for offset, length, _ in parts_of(path)[:4]:
        for at in (offset, offset + 12, offset + length - 1):
            bad = bytearray(whole)
            bad[at] ^= 1
            segment.write_bytes(bad)
            for key in (KEY, None):
                report = verify_store(path, level="links", key=key)
                assert not report.ok
                assert report.problems[0].code == "corruption"
    segment.write_bytes(whole)
    assert verify_store(path, level="full", key=KEY).ok


def test_without_the_key_links_says_what_it_did_not_check(tmp_path: Path) -> None:
    path = tmp_path / "store"
    make_store(f"sqlite:{path}", count=3)
    for level in ("quick", "links"):
        report = verify_store(path, level=level)
        assert report.ok
        assert any("were not checked" in note for note in report.notes)
        assert report.facts["unchecked"] == "blocks, canonical, views"
    assert "unchecked" not in verify_store(path, level="links", key=KEY).facts


def test_rows_that_changed_places_are_corruption_and_a_rebuild_mends_them(tmp_path: Path) -> None:
    path = tmp_path / "store"
    make_store(f"sqlite:{path}", count=10)
    (data,) = path.glob("views/*/data")
    with_rows = open_engine("sqlite", data, create=False)
    rows = dict(with_rows.scan(b"\x80\x02", b"\x80\x03").rows)
    first, second = sorted(rows)[:2]
    with_rows.apply(Batch({first: rows[second], second: rows[first]}), sync=True)
    with_rows.close()
    report = verify_store(path, level="views", key=KEY)
    assert {problem.code for problem in report.problems} == {"corruption"}
    with holdfast.open(path, key=KEY, settings=quick()) as store, pytest.raises(CorruptionError, match="not sealed"):
        store.state[first[2:]]
    rebuild_views(path, key=KEY)
    assert verify_store(path, level="views", key=KEY).ok


def test_rows_of_another_store_with_the_same_key_are_refused(tmp_path: Path) -> None:
    """Each store draws a key of its own: only its seal is under the one that was given."""
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        make_store(f"sqlite:{path}", count=3)
    shutil.rmtree(two / "views")
    shutil.copytree(one / "views", two / "views")
    with holdfast.open(two, key=KEY, settings=quick()) as store:
        assert store.recovery.views_rebuilt


# -- the same chain, encrypted and not ------------------------------------------------------------------------------


def test_an_encrypted_store_is_the_same_chain(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    make_store(f"sqlite:{one}", key=None)
    make_store(f"sqlite:{two}")
    with using_key(KEY):
        report = holdfast.diff(one, two, state=True)
    assert report.relation == "equal"


def test_a_follower_sees_what_is_committed_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with holdfast.open(f"sqlite:{path}", key=KEY, settings=quick()) as store:
        fill(store, 3)
        with holdfast.open(path, key=KEY, read_only=True) as other:
            block = make(store.tip, "new", body=MARK)
            store.add(block)
            other.refresh()
            assert other.tip is not None
            assert other.tip.hash == block.hash
            assert other.blocks.body(other.tip) == MARK


def test_segments_roll_and_carry_votes_encrypted(tmp_path: Path) -> None:
    path = tmp_path / "store"
    settings = quick(segment_bytes_max=1024 * 1024, compression="none")
    with holdfast.open(f"sqlite:{path}", key=KEY, settings=settings) as store:
        store.safety.save(b"validator", (1,), MARK)
        for block in chain_of(None, 12):
            store.add(replace(block, body=MARK * 20_000))
    assert len(list((path / "journal").glob("*.seg"))) > 1
    assert files_with(path, MARK) == []
    report = verify_store(path, level="full", key=KEY, jobs=1)
    assert report.ok, report.problems
