"""``store.documents``: spaces of key-value documents beside the chain, on every engine and from every side."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast import Store
from holdfast._fs import RealFile
from holdfast.engine.api import Batch, Page
from holdfast.engine.open import open_engine
from holdfast.errors import (
    ClosedError,
    CorruptionError,
    EngineError,
    IndexFailed,
    InvalidInputError,
    LimitExceeded,
    PoisonedError,
    ReadOnlyError,
    StateError,
)
from holdfast.journal.api import Kind, Part
from holdfast.recovery import convert_store, rebuild_views, verify_store
from holdfast.recovery import rebuild as rebuild_module
from holdfast.spaces import records
from holdfast.store import renewal
from holdfast.store.backend import WriterBackend
from holdfast.store.documents import Documents
from holdfast.types import Block
from holdfast.views.api import FrameLayers, ViewOptions
from holdfast.views.rows import encode_row
from holdfast.views.views import Views
from tests.golden import mini_reader
from tests.unit.store_support import chain_of, make, open_quick, quick

ENGINES = ["rocksdb", "lmdb", "sqlite"]


@pytest.fixture
def store() -> Store:
    return open_quick("memory:")


def content(documents: Documents) -> dict[bytes, bytes]:
    return dict(documents.scan())


def last_seq(store: Store) -> int:
    backend = store._backend
    assert isinstance(backend, WriterBackend)
    return backend.opened.journal.appended_seq


def killed(source: Path, target: Path) -> Path:
    """What a killed process leaves behind: the files as they are now."""
    shutil.copytree(source, target)
    return target


# -- one space ------------------------------------------------------------------------------------------------------


def test_what_is_put_is_there(store: Store) -> None:
    documents = store.documents("evm")
    assert documents.get(b"a") is None
    assert b"a" not in documents
    documents.put(b"a", b"1")
    documents.put(b"b", b"")
    assert documents.get(b"a") == b"1"
    assert documents.get(b"b") == b""
    assert b"b" in documents
    documents.put(b"a", b"2")
    documents.delete(b"b")
    documents.delete(b"never there")
    assert documents.get_many([b"b", b"a", b"a"]) == [None, b"2", b"2"]
    assert documents.get_many([]) == []
    documents.write({b"c": b"3", b"d": b"4"}, [b"a"])
    assert content(documents) == {b"c": b"3", b"d": b"4"}
    assert repr(documents) == "Documents('evm')"


def test_a_batch_is_one_frame_and_an_empty_one_is_none(store: Store) -> None:
    documents = store.documents("evm")
    before = last_seq(store)
    documents.write({b"%d" % number: b"x" for number in range(100)}, [b"gone"])
    assert last_seq(store) == before + 1
    documents.write({}, [])
    assert last_seq(store) == before + 1


def test_a_long_batch_is_one_frame_of_several_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = records.encode_documents.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "part_bytes_max", 2000)
    puts = {b"%03d" % number: os.urandom(100) for number in range(90)}
    with open_quick(f"sqlite:{tmp_path}") as store:
        before = last_seq(store)
        store.documents("evm").write(puts, [b"a", b"b"])
        assert last_seq(store) == before + 1
        copy = killed(tmp_path, tmp_path.with_name(f"{tmp_path.name}-copy"))
    frame = [frame for frame in mini_reader.frames(tmp_path) if frame.parts[0].kind == Kind.DOCUMENTS][-1]
    assert len(frame.parts) > 4
    assert all(part.critical and part.kind == Kind.DOCUMENTS for part in frame.parts)
    with open_quick(copy) as store:
        assert content(store.documents("evm")) == puts


def test_what_is_refused_writes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = store.documents("evm")
    before = last_seq(store)
    refused: list[tuple[type[Exception], dict[bytes, bytes], list[bytes]]] = [
        (InvalidInputError, {b"a": b"1", b"": b"2"}, []),
        (InvalidInputError, {b"a": b"1"}, [b""]),
        (InvalidInputError, {b"a": b"1"}, [b"a"]),
        (InvalidInputError, {b"a": "text"}, []),  # type: ignore[dict-item]
        (LimitExceeded, {b"a": b"1", b"k" * 401: b""}, []),
        (LimitExceeded, {b"a": b"1", b"b": bytes(16 * 1024 * 1024 + 1)}, []),
    ]
    for error, puts, deletes in refused:
        with pytest.raises(error):
            documents.write(puts, deletes)
    monkeypatch.setattr(records, "DOCUMENT_BATCH_BYTES_MAX", 100)
    with pytest.raises(LimitExceeded):
        documents.put(b"a", bytes(101))
    assert last_seq(store) == before
    assert store.document_spaces() == []
    for key in (b"", b"k" * 401):
        for call in (documents.get, documents.delete, documents.__contains__):
            with pytest.raises((InvalidInputError, LimitExceeded)):
                call(key)
        with pytest.raises((InvalidInputError, LimitExceeded)):
            documents.get_many([b"a", key])
    with pytest.raises(InvalidInputError):
        store.documents("")


@pytest.mark.slow
def test_the_longest_document_and_key(tmp_path: Path) -> None:
    value, key = os.urandom(16 * 1024 * 1024), b"k" * 400
    with open_quick(f"lmdb:{tmp_path}") as store:
        documents = store.documents("s" * 64)
        documents.write({key: value, b"\xff" * 400: b"top"})
        store.flush()
        documents.put(b"\x00", b"")
    with open_quick(tmp_path) as store:
        assert content(store.documents("s" * 64)) == {key: value, b"\xff" * 400: b"top", b"\x00": b""}


# -- ranges ---------------------------------------------------------------------------------------------------------

KEYS = [b"\x00", b"a", b"a\x00", b"ab", b"b", b"ba", b"bb", b"c", b"\xfe", b"\xff", b"\xff\xff", b"\xff\xff\xff"]


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_ranges_are_those_of_a_sorted_list(reverse: bool, flushed: bool) -> None:
    store = open_quick("memory:")
    documents = store.documents("s")
    for name in ("r", "t", "s\xff", "ss"):
        store.documents(name).put(b"b", b"of another space")
    documents.write({key: key * 2 for key in KEYS})
    if flushed:
        store.flush()
        documents.write({b"b": b"new"}, [b"c"])
    truth = {key: key * 2 for key in KEYS}
    if flushed:
        truth[b"b"] = b"new"
        del truth[b"c"]
    bounds = [b"", *KEYS, b"z", b"aa"]
    for prefix in (b"", b"a", b"b", b"\xff", b"\xff\xff", b"zz"):
        for start in bounds:
            for stop in (None, *bounds):
                expected = sorted(
                    (key, value)
                    for key, value in truth.items()
                    if key.startswith(prefix) and start <= key and (stop is None or key < stop)
                )
                found = list(documents.scan(prefix, start=start, stop=stop, reverse=reverse))
                assert found == (expected[::-1] if reverse else expected), (prefix, start, stop)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 5, 1000])
def test_pages_go_on_where_they_ended(limit: int, reverse: bool) -> None:
    store = open_quick("memory:")
    documents = store.documents("s")
    documents.write({key: key for key in KEYS})
    store.flush()
    documents.write({b"m": b"m"}, [b"ab"])
    found: list[bytes] = []
    start: bytes = b""
    stop: bytes | None = None
    while True:
        page = documents.page(start=start, stop=stop, reverse=reverse, limit=limit)
        assert len(page.rows) <= limit
        found += [key for key, _ in page.rows]
        if page.resume is None:
            break
        assert len(page.rows) == limit
        if reverse:
            stop = page.resume
        else:
            start = page.resume
    expected = sorted({*KEYS, b"m"} - {b"ab"})
    assert found == (expected[::-1] if reverse else expected)


def test_a_scan_reads_small_pages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = store.documents("s")
    short = {b"%05d" % number: bytes(number % 7) for number in range(5000)}
    long = {b"long %d" % number: bytes(300_000) for number in range(40)}
    documents.write(short | long)
    pages: list[int] = []
    page = documents.page

    def watched(*args: Any, **more: Any) -> Page:
        answer = page(*args, **more)
        pages.append(len(answer.rows))
        return answer

    monkeypatch.setattr(documents, "page", watched)
    assert dict(documents.scan(b"0")) == short
    assert pages[:6] == [8, 16, 32, 64, 128, 128]
    pages.clear()
    assert dict(documents.scan(b"long", reverse=True)) == long
    assert pages[:4] == [8, 4, 2, 2]
    assert max(pages[2:]) == 2


def test_bad_ranges_are_refused_at_once(store: Store) -> None:
    documents = store.documents("s")
    with pytest.raises(InvalidInputError):
        documents.scan("text")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        documents.scan(start=None)  # type: ignore[arg-type]
    with pytest.raises(LimitExceeded):
        documents.scan(stop=b"k" * 402)
    for limit in (0, 1001, True, "5"):
        with pytest.raises(InvalidInputError):
            documents.page(limit=limit)  # type: ignore[arg-type]
    assert list(documents.scan(start=b"b", stop=b"a")) == []


def test_the_spaces_that_hold_something(store: Store) -> None:
    names = ["evm", "a", "b" * 64, "\xff\xff", "\u20ac", "evn", "ev", "evmm"]
    for name in names:
        store.documents(name).write({b"\xff" * 400: b"x", b"\x00": b"y"})
    assert store.document_spaces() == sorted(names)
    store.documents("evm").write(deletes=[b"\xff" * 400, b"\x00"])
    store.flush()
    assert store.document_spaces() == sorted({*names} - {"evm"})


# -- beside the chain -----------------------------------------------------------------------------------------------


def test_no_reorganisation_undoes_them(store: Store) -> None:
    blocks = chain_of(None, 4)
    documents = store.documents("evm")
    for number, block in enumerate(blocks):
        store.add(block)
        documents.put(b"%d" % number, b"at %d" % number)
    before = content(documents)
    store.add_many(chain_of(blocks[0], 5, "rival"))
    assert store.tip is not None
    assert store.tip.height == 5
    assert content(documents) == before
    store.flush()
    store.orphan(store.tip.hash, reason="bad")
    assert content(documents) == before


def test_a_snapshot_keeps_them_as_they_were(store: Store) -> None:
    documents = store.documents("evm")
    documents.write({b"a": b"1", b"b": b"2"})
    store.flush()
    with store.snapshot() as snapshot:
        documents.write({b"a": b"new", b"c": b"3"}, [b"b"])
        store.documents("later").put(b"x", b"y")
        store.flush()
        old = snapshot.documents("evm")
        assert content(old) == {b"a": b"1", b"b": b"2"}
        assert old.get(b"c") is None
        assert snapshot.document_spaces() == ["evm"]
        with pytest.raises(ReadOnlyError):
            old.put(b"a", b"x")
    assert content(documents) == {b"a": b"new", b"c": b"3"}
    with pytest.raises(ClosedError):
        old.get(b"a")


def test_code_that_the_store_calls_may_not_write_them() -> None:
    errors: list[StateError] = []

    @holdfast.index("meddling", version=1)
    def meddling(_block: Block) -> list[tuple[bytes, bytes]]:
        try:
            opened.documents("evm").put(b"a", b"1")
        except StateError as error:
            errors.append(error)
            raise
        return []

    with holdfast.open("memory:", indexes=[meddling], settings=quick()) as opened:
        with pytest.raises(IndexFailed):
            opened.add(make(None))
        assert len(errors) == 1
        assert opened.document_spaces() == []


# -- on disk --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_they_survive_everything_an_operator_does(tmp_path: Path, engine: str) -> None:
    path = tmp_path / "store"
    with open_quick(f"{engine}:{path}") as store:
        documents = store.documents("evm")
        documents.write({b"%03d" % number: b"v%d" % number for number in range(200)})
        store.add_many(chain_of(None, 3))
        store.flush()
        documents.write({b"000": b"new", b"x": b""}, [b"001"])
        truth = content(documents)
        killed(path, tmp_path / "killed")
    with open_quick(tmp_path / "killed") as store:
        assert store.recovery.frames_replayed > 0
        assert content(store.documents("evm")) == truth
    for place in (path, tmp_path / "killed"):
        report = verify_store(place, level="views")
        assert report.ok, report.problems
    other = "sqlite" if engine != "sqlite" else "lmdb"
    for change in (rebuild_views, lambda at: convert_store(at, to=other)):
        change(path)
        with open_quick(path) as store:
            assert content(store.documents("evm")) == truth
            assert store.document_spaces() == ["evm"]
    with open_quick(path) as store:
        store.rebuild()
        store.documents("evm").put(b"after", b"1")
        assert content(store.documents("evm")) == truth | {b"after": b"1"}
    assert verify_store(path, level="views").ok


def test_a_row_that_the_journal_does_not_explain_is_found(tmp_path: Path) -> None:
    with open_quick(f"sqlite:{tmp_path}") as store:
        store.documents("evm").write({b"a": b"1", b"b": b"2"})
    number = (tmp_path / "views" / "CURRENT").read_text().strip()
    engine = open_engine("sqlite", tmp_path / "views" / number / "data", create=False)
    key = records.row_prefix(b"evm") + b"a"
    engine.apply(Batch({key: encode_row(key, b"forged")}), sync=True)
    engine.close()
    report = verify_store(tmp_path, level="views")
    assert [problem.code for problem in report.problems] == ["corruption"]
    rebuild_views(tmp_path)
    assert verify_store(tmp_path, level="views").ok


def test_a_follower_reads_them_and_writes_nothing(tmp_path: Path) -> None:
    with open_quick(f"sqlite:{tmp_path}") as store:
        documents = store.documents("evm")
        documents.write({b"a": b"1"})
        with holdfast.open(tmp_path, read_only=True, settings=quick()) as follower:
            theirs = follower.documents("evm")
            assert content(theirs) == {b"a": b"1"}
            documents.write({b"b": b"2"}, [b"a"])
            follower.refresh()
            assert content(theirs) == {b"b": b"2"}
            assert follower.document_spaces() == ["evm"]
            with follower.snapshot() as snapshot:
                assert content(snapshot.documents("evm")) == {b"b": b"2"}
            writes: list[Callable[[], object]] = [
                lambda: theirs.put(b"c", b""),
                lambda: theirs.delete(b"b"),
                theirs.write,
            ]
            for write in writes:
                with pytest.raises(ReadOnlyError):
                    write()
        with pytest.raises(ClosedError):
            theirs.get(b"b")
        assert content(documents) == {b"b": b"2"}


def test_a_follower_lets_go_of_long_documents_that_were_flushed(tmp_path: Path) -> None:
    options = {"overlay_bytes_max": 1024 * 1024}
    with open_quick(f"sqlite:{tmp_path}", **options) as store:
        documents = store.documents("evm")
        documents.put(b"first", b"")
        with holdfast.open(tmp_path, read_only=True, settings=quick(**options)) as follower:
            for number in range(20):
                documents.put(b"%d" % number, bytes(200_000))
                store.flush()
                follower.refresh()
                views = follower.statistics()["views"]
                assert isinstance(views, dict)
                assert views["overlay_bytes"] < 3 * 1024 * 1024
            assert len(content(follower.documents("evm"))) == 21


def test_a_rebuild_holds_no_more_than_the_overlay_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_quick(f"sqlite:{tmp_path}") as store:
        for number in range(40):
            store.documents("evm").put(b"%d" % number, bytes(100_000))
    most = 0

    class Watched(Views):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            publish = self.publish

            def watched(frame: FrameLayers) -> None:
                nonlocal most
                publish(frame)
                most = max(most, self.stats.overlay_bytes)

            self.publish = watched

    def build(*args: Any, **more: Any) -> renewal.Built:
        return renewal.build_generation(*args, **more | {"options": ViewOptions(overlay_bytes_max=500_000)})

    monkeypatch.setattr(renewal, "Views", Watched)
    monkeypatch.setattr(rebuild_module, "build_generation", build)
    rebuild_views(tmp_path)
    assert 500_000 < most < 700_000
    with open_quick(tmp_path) as store:
        assert len(content(store.documents("evm"))) == 40


# -- durability -----------------------------------------------------------------------------------------------------


def test_a_batch_is_durable_when_write_returns(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with open_quick(f"sqlite:{path}") as store:
        for number in range(5):
            store.documents("evm").write({b"a": b"%d" % number, b"b": b"%d" % number})
            (newest,) = [
                mini_reader.read_documents(frame.parts[0].data)
                for frame in mini_reader.frames(path)
                if frame.parts[0].kind == Kind.DOCUMENTS and frame.seq == last_seq(store)
            ]
            assert newest == ("evm", [], {b"a": b"%d" % number, b"b": b"%d" % number})


def test_buffered_documents_are_seen_at_once_and_durable_after_sync(tmp_path: Path) -> None:
    with open_quick(f"sqlite:{tmp_path}", durability="buffered", buffered_sync_seconds=3600.0) as store:
        backend = store._backend
        assert isinstance(backend, WriterBackend)
        documents = store.documents("evm")
        durable = backend.opened.journal.durable_seq
        documents.put(b"a", b"1")
        assert documents.get(b"a") == b"1"
        assert backend.opened.journal.durable_seq == durable
        store.sync()
        assert backend.opened.journal.durable_seq == last_seq(store) == durable + 1


def test_a_failed_sync_poisons_and_nothing_of_the_batch_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = RealFile.sync
    failing = False

    def sync(file: RealFile) -> None:
        if failing and file.path.suffix == ".seg":
            raise EngineError("the device failed", path=file.path)
        original(file)

    monkeypatch.setattr(RealFile, "sync", sync)
    store = open_quick(f"sqlite:{tmp_path}")
    documents = store.documents("evm")
    documents.write({b"a": b"1", b"b": b"1"})
    failing = True
    with pytest.raises(EngineError):
        documents.write({b"a": b"2", b"c": b"2"}, [b"b"])
    failing = False
    assert content(documents) == {b"a": b"1", b"b": b"1"}
    with pytest.raises(PoisonedError):
        documents.put(b"a", b"3")
    store.close()
    with open_quick(tmp_path) as store:
        assert content(store.documents("evm")) in ({b"a": b"1", b"b": b"1"}, {b"a": b"2", b"c": b"2"})


def test_an_interrupted_publish_poisons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_quick(f"sqlite:{tmp_path}")
    backend = store._backend
    assert isinstance(backend, WriterBackend)
    documents = store.documents("evm")
    documents.put(b"a", b"1")

    def interrupted(_frame: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(backend.writer.views, "publish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        documents.put(b"a", b"2")
    with pytest.raises(PoisonedError):
        documents.put(b"a", b"3")
    store.close()
    with open_quick(tmp_path) as store:
        assert store.documents("evm").get(b"a") == b"2"  # it was appended, and the close made it durable


def test_a_flush_that_failed_refuses_the_batch_before_it_is_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = store._backend
    assert isinstance(backend, WriterBackend)
    before = last_seq(store)

    def failed() -> None:
        raise EngineError("the flush failed")

    monkeypatch.setattr(backend.writer.views, "back_pressure", failed)
    with pytest.raises(EngineError):
        store.documents("evm").put(b"a", b"1")
    assert last_seq(store) == before
    assert store.documents("evm").get(b"a") is None


@pytest.mark.slow
def test_threads_share_and_lose_nothing(tmp_path: Path) -> None:
    with open_quick(f"sqlite:{tmp_path / 'store'}") as store:
        documents = store.documents("evm")

        def work(name: int) -> None:
            for number in range(50):
                documents.write({b"%d" % name: b"%d" % number, b"%d/%d" % (name, number): b""})

        threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(content(documents)) == 4 * 51
        copy = killed(tmp_path / "store", tmp_path / "copy")
    with open_quick(copy) as store:
        assert len(content(store.documents("evm"))) == 4 * 51
        assert [store.documents("evm").get(b"%d" % name) for name in range(4)] == [b"49"] * 4


def test_a_closed_store_and_a_forked_one_refuse(tmp_path: Path) -> None:
    store = open_quick(f"sqlite:{tmp_path}")
    documents = store.documents("evm")
    documents.put(b"a", b"1")
    pid = os.fork()
    if pid == 0:
        refused = 0
        for call in (lambda: documents.get(b"a"), lambda: documents.put(b"a", b"2"), store.document_spaces):
            try:
                call()
            except ClosedError:
                refused += 1
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    assert documents.get(b"a") == b"1"
    store.close()
    calls: list[Callable[[], object]] = [
        lambda: documents.get(b"a"),
        lambda: documents.put(b"a", b"2"),
        documents.scan,
        store.document_spaces,
    ]
    for each in calls:
        with pytest.raises(ClosedError):
            each()
    with pytest.raises(ClosedError):
        store.documents("evm")


def test_a_broken_entry_in_the_journal_is_corruption(tmp_path: Path) -> None:
    with open_quick(f"sqlite:{tmp_path}") as store:
        backend = store._backend
        assert isinstance(backend, WriterBackend)
        backend.opened.journal.append([Part(Kind.DOCUMENTS, b"\x01s" + bytes(8), True)])
        backend.opened.journal.sync()
        shutil.copytree(tmp_path, tmp_path / "copy")
        with pytest.raises(CorruptionError, match="holds nothing"):
            open_quick(tmp_path / "copy")
        store.add(make(None))
