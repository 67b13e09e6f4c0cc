"""Each strategy of recovery: a real error asks for it, it is executed, and the store works afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import holdfast
from holdfast import Store
from holdfast._fs import RealFile, translate_os_error
from holdfast.blocks.records import block_key
from holdfast.chains.bitcoin import BitcoinChain, BlockFiles
from holdfast.chains.importing import import_files
from holdfast.engine.open import open_engine
from holdfast.errors import (
    ClosedError,
    CommitLoss,
    CorruptionError,
    HoldfastError,
    IndexFailed,
    InvalidBlock,
    InvalidInputError,
    OutOfSpace,
    ParentMismatch,
    ParentUnknown,
    PoisonedError,
    Recovery,
    RemoteError,
    StoreLocked,
    all_errors,
)
from holdfast.recovery import recover, retrying, verify_store
from holdfast.types import Block
from tests.import_makers import bitcoin_chain, framed, raw_hash
from tests.unit.store_support import BODY, chain_of, filled, hash_of, make, open_quick, quick

ROOT = Path(__file__).resolve().parents[2]


def files_of(path: Path) -> dict[str, bytes]:
    """Every file of the store with its bytes, but the lock, and what SQLite makes to read."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name not in ("LOCK", "rows.sqlite-shm", "rows.sqlite-wal")
    }


def works(store: Store, blocks: list[Block]) -> None:
    """The store answers with ``blocks`` and takes another one, now and after it was opened again."""
    assert store.path is not None
    assert [info.hash for info in store.blocks.canonical()] == [block.hash for block in blocks]
    assert [store.blocks.block(info) for info in store.blocks.canonical()] == blocks
    more = make(blocks[-1], "more")
    store.add(more)
    store.close()
    assert verify_store(store.path, level="views").ok
    with open_quick(store.path) as again:
        assert again.tip is not None
        assert again.tip.hash == more.hash


# -- retry ----------------------------------------------------------------------------------------------------------

HOLDER = """
import sys
import holdfast
with holdfast.open(sys.argv[1], create=False):
    print("open", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def held(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process has the store open until it reads a line."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            yield process
        finally:
            let_go(process)


def let_go(process: subprocess.Popen[str]) -> None:
    """The process has closed the store and ended."""
    if process.poll() is None:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert process.wait(timeout=60) == 0


@pytest.mark.slow
def test_retry_opens_a_store_once_another_process_has_closed_it(tmp_path: Path) -> None:
    chain = chain_of(None, 4)
    with open_quick(f"sqlite:{tmp_path}") as store:
        for block in chain:
            store.add(block)
    pauses: list[float] = []
    with held(tmp_path) as process:
        with pytest.raises(StoreLocked) as caught:
            open_quick(tmp_path)
        assert caught.value.recovery is Recovery.RETRY
        assert caught.value.retryable
        outcome = recover(caught.value, tmp_path)
        assert (outcome.strategy, outcome.store) == (Recovery.RETRY, None)
        with pytest.raises(StoreLocked):
            retrying(lambda: open_quick(tmp_path), attempts=3, delay_seconds=1.5, sleep=pauses.append)
        assert pauses == [1.5, 3.0]
        works(retrying(lambda: open_quick(tmp_path), sleep=lambda _: let_go(process)), chain)


def test_retrying_ends_after_so_many_attempts_and_at_once_for_other_errors() -> None:
    calls: list[int] = []
    pauses: list[float] = []

    def fail(error: HoldfastError) -> None:
        calls.append(len(calls))
        raise error

    for attempts in (1, 2, 7):
        calls.clear()
        pauses.clear()
        with pytest.raises(RemoteError):
            retrying(lambda: fail(RemoteError("x")), attempts=attempts, delay_seconds=8.0, sleep=pauses.append)
        assert len(calls) == attempts
        assert pauses == [8.0, 16.0, 30.0, 30.0, 30.0, 30.0][: attempts - 1]
    calls.clear()
    with pytest.raises(InvalidBlock):
        retrying(lambda: fail(InvalidBlock("x")), sleep=pauses.append)
    with pytest.raises(OutOfSpace):  # the class says retry, this one does not
        retrying(lambda: fail(OutOfSpace("x", recovery=Recovery.REPLAY)), sleep=pauses.append)
    assert calls == [0, 1]
    assert retrying(lambda: 7, attempts=1) == 7
    for attempts, delay in ((0, 0.0), (1001, 0.0), (1, -0.1), (1, 30.1)):
        with pytest.raises(InvalidInputError):
            retrying(lambda: 7, attempts=attempts, delay_seconds=delay)


# -- replay ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [5, 28], ids=["EIO", "ENOSPC"])
def test_replay_takes_a_poisoned_store_back_to_what_is_durable(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = chain_of(None, 4)
    store = open_quick(f"sqlite:{tmp_path}", max_orphans=77)
    for block in chain:
        store.add(block)
    lost = make(chain[-1], "lost")
    with monkeypatch.context() as patch:

        def fail(file: RealFile) -> None:
            raise translate_os_error(OSError(number, "injected"), file.path)

        patch.setattr(RealFile, "sync", fail)
        with pytest.raises(HoldfastError) as first:
            store.add(lost)
    assert first.value.recovery is Recovery.REPLAY, "the same call would find the store poisoned"
    assert not first.value.retryable
    with pytest.raises(PoisonedError) as caught:
        store.add(lost)
    assert caught.value.recovery is Recovery.REPLAY
    outcome = recover(caught.value, store=store)
    with pytest.raises(ClosedError):
        store.add(lost)
    again = outcome.store
    assert again is not None
    assert again.recovery.frames_found > 0
    assert not again.recovery.clean
    assert again.settings.max_orphans == 77, "opened as it was"
    assert (outcome.strategy, outcome.tip, outcome.notes) == (Recovery.REPLAY, again.tip, ())
    assert again.tip is not None
    # The failed frame was written and never acknowledged: it may be there or not, whole, and nothing else.
    kept = [*chain, lost] if again.tip.hash == lost.hash else chain
    works(again, kept)


def test_a_closed_store_is_opened_again(tmp_path: Path) -> None:
    blocks = filled(f"sqlite:{tmp_path}")
    store = open_quick(tmp_path)
    store.close()
    with pytest.raises(ClosedError) as caught:
        store.add(make(blocks[-1]))
    outcome = recover(caught.value, tmp_path, settings=quick(max_orphans=5))
    assert outcome.store is not None
    with outcome.store as again:
        assert again.tip is not None
        assert again.tip.hash == blocks[-1].hash
        assert again.settings.max_orphans == 5


@pytest.mark.slow
def test_a_follower_without_views_is_helped_by_an_open_for_writing(tmp_path: Path) -> None:
    blocks = filled(f"sqlite:{tmp_path}")
    shutil.rmtree(tmp_path / "views")
    with pytest.raises(CorruptionError) as caught:
        holdfast.open(tmp_path, create=False, read_only=True)
    assert caught.value.recovery is Recovery.REPLAY
    outcome = recover(caught.value, tmp_path)
    assert outcome.store is not None
    assert outcome.store.recovery.views_rebuilt
    outcome.store.close()
    with holdfast.open(tmp_path, create=False, read_only=True) as store:
        assert store.tip is not None
        assert store.tip.hash == blocks[-1].hash


# -- rebuild --------------------------------------------------------------------------------------------------------


def flip_a_row(path: Path, engine: str, block: Block) -> None:
    """One bit of the stored row of ``block`` is another one, in the engine's own file."""
    place = path / "views" / "1" / "data"
    opened = open_engine(engine, place, create=False)
    row = opened.get(block_key(block.hash))
    opened.close()
    assert row is not None
    hits = 0
    for file in sorted(place.rglob("*")):
        raw = bytearray(file.read_bytes()) if file.is_file() else bytearray()
        at = raw.find(row)
        while at >= 0:
            hits += 1
            raw[at + len(row) // 2] ^= 1
            file.write_bytes(raw)
            at = raw.find(row)
    assert hits


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sqlite", "lmdb", "rocksdb"])
def test_rebuild_mends_a_flipped_bit_in_a_row(engine: str, tmp_path: Path) -> None:
    chain = chain_of(None, 300)  # several blocks of RocksDB: an open reads, and would mend, only the first ones
    with open_quick(f"{engine}:{tmp_path}") as store:
        store.add_many(chain)
    if engine == "rocksdb":
        flip_in_a_table(tmp_path, chain[150])
    else:
        flip_a_row(tmp_path, engine, chain[3])
    journal = files_of(tmp_path / "journal")
    opened = open_quick(tmp_path)
    with pytest.raises(CorruptionError) as caught:
        [opened.blocks.get(info.hash) for info in opened.blocks.canonical()]
    assert caught.value.recovery is Recovery.REBUILD
    assert "rebuild" in caught.value.remedy
    assert caught.value.as_dict()["recovery"] == "rebuild"
    steps: list[tuple[int, int]] = []
    outcome = recover(caught.value, tmp_path, store=opened, progress=lambda done, total: steps.append((done, total)))
    assert outcome.strategy is Recovery.REBUILD
    assert outcome.rebuilt is not None
    assert (outcome.rebuilt.engine, outcome.rebuilt.blocks) == (engine, 300)
    assert outcome.verified is not None
    assert (outcome.verified.level, outcome.verified.ok) == ("views", True)
    assert steps
    assert outcome.store is not None
    assert outcome.tip == outcome.store.tip
    assert files_of(tmp_path / "journal").keys() == journal.keys()
    works(outcome.store, chain)


def flip_in_a_table(path: Path, block: Block) -> None:
    """One bit of a row that holds the hash of ``block`` is another one: the checksum of RocksDB notices."""
    table = max((path / "views" / "1" / "data").glob("*.sst"), key=lambda file: file.stat().st_size)
    raw = bytearray(table.read_bytes())
    at = raw.find(block.hash)
    assert at > 0
    raw[at] ^= 1
    table.write_bytes(raw)


@pytest.mark.parametrize("damaged", ["entry", "body"])
def test_a_rebuild_from_a_damaged_journal_ends_with_a_person(damaged: str, tmp_path: Path) -> None:
    chain = chain_of(None, 6)
    with open_quick(f"sqlite:{tmp_path}", compression="none") as store:
        for block in chain:
            store.add(block)
    flip_a_row(tmp_path, "sqlite", chain[3])
    with open_quick(tmp_path) as store:
        with pytest.raises(CorruptionError) as caught:
            store.blocks.get(chain[3].hash)
        assert caught.value.recovery is Recovery.REBUILD
    segment = tmp_path / "journal" / "0000000001.seg"
    raw = bytearray(segment.read_bytes())
    raw[raw.find(chain[2].hash if damaged == "entry" else BODY)] ^= 1
    segment.write_bytes(raw)
    journal, current = files_of(tmp_path / "journal"), (tmp_path / "views" / "CURRENT").read_text()
    with pytest.raises(CorruptionError) as worse:
        recover(caught.value, tmp_path)
    assert worse.value.recovery is Recovery.MANUAL
    assert files_of(tmp_path / "journal") == journal
    live = (tmp_path / "views" / "CURRENT").read_text()
    if damaged == "entry":  # the views are made of it: the old ones stay
        assert live == current
    else:  # the views do not need it, and the new ones are right; that the journal is not is said all the same
        assert live != current
        assert "not sound after a rebuild" in str(worse.value)


# -- refetch --------------------------------------------------------------------------------------------------------


def test_refetch_gets_a_torn_import_file_again(tmp_path: Path) -> None:
    raws = bitcoin_chain(5)
    file = tmp_path / "blk00000.dat"
    file.write_bytes(framed(raws)[:-7])
    with holdfast.open(f"sqlite:{tmp_path / 'store'}", chain=BitcoinChain("regtest"), settings=quick()) as store:

        def bring_in() -> int:
            with BlockFiles([file], "regtest") as files:
                return import_files(store, files).added

        with pytest.raises(InvalidBlock) as caught:
            bring_in()
        assert caught.value.recovery is Recovery.REFETCH

        def fetch() -> int:
            file.write_bytes(framed(raws))
            return bring_in()

        outcome = recover(caught.value, store=store, refetch=fetch)
        assert (outcome.strategy, outcome.store) == (Recovery.REFETCH, None)
        added = outcome.fetched
        assert isinstance(added, int)
        assert 1 <= added <= 5
        assert store.tip is not None
        assert (store.tip.hash, store.tip.height) == (raw_hash(raws[-1]), 5)


def test_refetch_gets_a_parent_and_needs_to_be_told_how(tmp_path: Path) -> None:
    chain = chain_of(None, 3)
    with open_quick(f"sqlite:{tmp_path}", waiting_blocks_max=0) as store:
        store.add(chain[0])
        with pytest.raises(ParentUnknown) as caught:
            store.add(chain[2], root_allowed=True)
        with pytest.raises(InvalidInputError) as silent:
            recover(caught.value, store=store)
        assert silent.value.__cause__ is caught.value
        assert recover(caught.value, refetch=lambda: store.add(chain[1])).strategy is Recovery.REFETCH
        store.add(chain[2])
        assert store.tip is not None
        assert store.tip.hash == chain[2].hash


# -- last good ------------------------------------------------------------------------------------------------------


def test_last_good_builds_on_the_present_tip_after_a_conflict(tmp_path: Path) -> None:
    with open_quick(f"sqlite:{tmp_path}") as store:
        stale = store.draft()
        store.commit(store.draft(), hash=hash_of("a"))
        store.commit(store.draft(), hash=hash_of("b"))
        before = store.statistics()["journal"], store.blocks.statistics()
        with pytest.raises(ParentMismatch) as caught:
            store.commit(stale, hash=hash_of("stale"))
        assert caught.value.recovery is Recovery.LAST_GOOD
        assert not caught.value.retryable
        assert (store.statistics()["journal"], store.blocks.statistics()) == before
        outcome = recover(caught.value, store=store)
        assert outcome.store is store, "nothing was changed, so the handle goes on"
        assert outcome.tip is not None
        assert outcome.tip.hash == hash_of("b")
        assert store.commit(store.draft(), hash=hash_of("c")).parent == hash_of("b")


def test_last_good_after_an_index_failed(tmp_path: Path) -> None:
    chain = chain_of(None, 3)

    @holdfast.index("fragile")
    def fragile(block: Block) -> Iterable[tuple[bytes, bytes]]:
        if block.hash == bad.hash:
            raise ValueError("cannot index this")
        yield b"k", b"v"

    bad = make(chain[-1], "bad")
    store = holdfast.open(f"sqlite:{tmp_path}", settings=quick(), indexes=[fragile])
    for block in chain:
        store.add(block)
    with pytest.raises(IndexFailed) as caught:
        store.add(bad)
    assert caught.value.recovery is Recovery.LAST_GOOD
    assert recover(caught.value, store=store).tip == store.tip
    store.close()
    outcome = recover(caught.value, store=store, indexes=[fragile])
    again = outcome.store
    assert again is not None
    assert again is not store
    assert outcome.tip == again.tip
    assert outcome.tip is not None
    assert outcome.tip.hash == chain[-1].hash
    assert not again.has(bad.hash)
    works(again, chain)


# -- manual ---------------------------------------------------------------------------------------------------------


def test_a_damaged_journal_is_for_a_person_and_stays_untouched(tmp_path: Path) -> None:
    filled(f"sqlite:{tmp_path}")
    (tmp_path / "watermark").write_bytes(bytes(8192))
    before = files_of(tmp_path)
    with pytest.raises(CorruptionError) as caught:
        open_quick(tmp_path)
    assert caught.value.recovery is Recovery.MANUAL
    with pytest.raises(CorruptionError) as again:
        recover(caught.value, tmp_path)
    assert again.value is caught.value
    assert "holdfast doctor" in again.value.remedy
    assert files_of(tmp_path) == before


def test_lost_commits_are_for_a_person_and_the_older_journal_stays_untouched(tmp_path: Path) -> None:
    path = tmp_path / "store"
    blocks = filled(f"sqlite:{path}")
    shutil.copytree(path / "journal", tmp_path / "old")
    with open_quick(path) as store:
        store.add(make(blocks[-1]))
    shutil.copytree(path / "journal", tmp_path / "new")
    shutil.rmtree(path / "journal")
    shutil.copytree(tmp_path / "old", path / "journal")
    before = files_of(path)
    with pytest.raises(CommitLoss) as caught:
        open_quick(path)
    assert caught.value.recovery is Recovery.MANUAL
    with pytest.raises(CommitLoss) as again:
        recover(caught.value, path)
    assert again.value is caught.value
    assert files_of(path) == before
    shutil.rmtree(path / "journal")
    shutil.copytree(tmp_path / "new", path / "journal")
    with open_quick(path) as store:  # the person put the right journal back
        assert store.tip is not None
        assert store.tip.height == len(blocks)


# -- fail -----------------------------------------------------------------------------------------------------------


def test_a_wrong_request_is_raised_again_and_changes_nothing(tmp_path: Path) -> None:
    with open_quick(f"sqlite:{tmp_path}") as store:
        store.commit(store.draft(), hash=hash_of("a"))
        with pytest.raises(InvalidInputError) as caught:
            store.commit(store.draft(), hash=b"short")
        assert caught.value.recovery is Recovery.FAIL
        assert not caught.value.retryable
        with pytest.raises(InvalidInputError) as again:
            recover(caught.value, store=store, refetch=lambda: pytest.fail("nothing is fetched for a wrong request"))
        assert again.value is caught.value
        assert store.commit(store.draft(), hash=hash_of("b")).height == 1


# -- every error ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_class_of_error_has_a_strategy_that_is_executed(tmp_path: Path) -> None:
    blocks = filled(f"sqlite:{tmp_path}")
    for kind in all_errors():
        error = kind("made by a test")
        if error.recovery in (Recovery.MANUAL, Recovery.FAIL):
            before = files_of(tmp_path)
            with pytest.raises(kind) as caught:
                recover(error, tmp_path, refetch=lambda: 7)
            assert caught.value is error
            assert files_of(tmp_path) == before
            continue
        outcome = recover(error, tmp_path, refetch=lambda: 7, settings=quick())
        assert outcome.strategy is error.recovery
        assert outcome.fetched == (7 if error.recovery is Recovery.REFETCH else None)
        assert (outcome.store is None) == (error.recovery in (Recovery.RETRY, Recovery.REFETCH))
        assert (outcome.rebuilt is None) == (outcome.verified is None) == (error.recovery is not Recovery.REBUILD)
        if outcome.store is not None:
            with outcome.store as store:
                assert store.tip == outcome.tip
                assert store.tip is not None
                assert store.tip.hash == blocks[-1].hash


def test_a_strategy_that_needs_a_store_on_disk_says_so(tmp_path: Path) -> None:
    for error in (PoisonedError("x"), CorruptionError("x", recovery=Recovery.REBUILD), ParentMismatch("x")):
        with pytest.raises(InvalidInputError) as caught:
            recover(error)
        assert caught.value.__cause__ is error
        with pytest.raises(InvalidInputError):
            recover(error, "memory:")
    with open_quick("memory:") as store:
        store.commit(store.draft(), hash=hash_of("a"))
        for error in (PoisonedError("x"), CorruptionError("x", recovery=Recovery.REBUILD)):
            with pytest.raises(InvalidInputError):
                recover(error, store=store)
        assert recover(ParentMismatch("x"), store=store).tip == store.tip, "the handle was not closed"
    with pytest.raises(HoldfastError) as missing:
        recover(PoisonedError("x"), tmp_path / "none")
    assert missing.value.code == "store_not_found"
    assert not (tmp_path / "none").exists()
