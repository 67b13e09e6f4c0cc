"""Defects and incidents of the system that this state replaces, each as a test that its design cannot pass.

Numbers are those of the inventory of the original: D1 to D9 are defects of its versioned storage, the others incidents.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import pytest

import holdfast
from holdfast.errors import (
    CorruptionError,
    HoldfastError,
    IndexFailed,
    NotFoundError,
    ProofInvalid,
    PrunedError,
    RootMismatch,
    StateError,
)
from holdfast.recovery import rebuild_views, verify_store
from holdfast.state.api import MutableState
from holdfast.store.chain import ChainSpec, CustomChain
from holdfast.store.indexes import IndexSpec
from holdfast.types import ZERO_HASH, Block, BlockInfo
from tests.unit.state_support import (
    Changes,
    after,
    assert_tip,
    commit,
    commit_draft,
    die,
    grown,
    large,
    open_state_store,
    root_of,
    writer_backend,
)
from tests.unit.store_support import hash_of, quick

# -- D1 to D9 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flushed", [0, 2, 5])
def test_d1_what_was_acknowledged_is_applied_again_after_a_kill_never_discarded(tmp_path: Path, flushed: int) -> None:
    steps: list[Changes] = [{b"a": b"%d" % step, b"b": None if step % 2 else b"x"} for step in range(6)]
    with open_state_store(f"sqlite:{tmp_path}") as store:
        values: dict[bytes, bytes] = {}
        for number, changes in enumerate(steps):
            commit(store, number, changes)
            values = after(values, changes)
            if number == flushed:
                store.flush()
        die(store)
    for _ in range(3):  # as often as it is killed again: applying twice is applying once
        again = open_state_store(tmp_path)
        assert again.recovery.frames_replayed == len(steps) - 1 - flushed
        assert_tip(again, values)
        die(again)


@pytest.mark.slow
def test_d2_one_encoding_of_heights_for_writing_reading_undoing_and_pruning(tmp_path: Path) -> None:
    """The original wrote binary heights and looked for decimal text, so discard and pruning did nothing."""
    with open_state_store(f"sqlite:{tmp_path}", max_reorg_depth=300) as store:
        chain = grown(
            store, [{b"height": b"%d" % height, b"h/%d" % (height % 11): b"%d" % height} for height in range(259)]
        )
        for height in (0, 1, 9, 10, 11, 99, 100, 101, 254, 255, 256, 257, 258):
            assert dict(store.state.at(height).scan()) == chain[height][1]
        store.orphan(chain[256][0].hash, reason="undone for real")
        assert_tip(store, chain[255][1])
        store.finalize(255)
        assert store.prune(below=200).rows > 0
        with pytest.raises(PrunedError):
            store.state.at(199)
        assert dict(store.state.at(200).scan()) == chain[200][1]


def test_d3_the_root_covers_the_whole_state_in_no_order(tmp_path: Path) -> None:
    with open_state_store("memory:") as store:
        commit(store, 0, {b"untouched": b"since the first block"})
        one = commit(store, 1, {b"a": b"1", b"b": b"2"})
    with open_state_store("memory:") as store:
        commit(store, 0, {b"untouched": b"another"})
        other = commit(store, 1, {b"b": b"2", b"a": b"1"})
        assert other.state_root != one.state_root
    with open_state_store(f"sqlite:{tmp_path}") as store:
        commit(store, 0, {b"untouched": b"since the first block"})
    with open_state_store(tmp_path) as store:
        again = commit(store, 1, {b"b": b"2", b"a": b"1"})
        assert again.state_root == one.state_root == root_of(dict(store.state.scan()))


def test_d4_the_root_says_no_height_and_cannot_be_read_in_two_ways() -> None:
    with open_state_store("memory:") as store:
        at_first = commit(store, 0, {b"a": b"1"})
        for number in range(3):
            commit(store, number + 1, {b"b": b"x"} if number % 2 == 0 else {b"b": None})
        again = commit(store, 9, {b"b": None})
        assert again.state_root == at_first.state_root
        assert root_of({b"a": b"bc"}) != root_of({b"ab": b"c"})
        leaf = sha256(b"a").digest() + sha256(b"1").digest()
        assert root_of({b"a": b"1"}) not in (sha256(leaf).digest(), sha256(b"a1").digest())
        proof = store.state.prove(b"a")
        holdfast.verify_proof(proof.data, again.state_root or b"", b"a", b"1")
        with pytest.raises(ProofInvalid):
            holdfast.verify_proof(proof.data, again.state_root or b"", b"a", b"2")


def test_d5_a_height_shows_the_newest_value_at_or_below_it_and_removals_too() -> None:
    steps: list[Changes] = [{b"a": b"0", b"z": b"kept"}, {}, {b"b": b"2"}, {b"a": None}, {}, {b"a": b"5"}]
    with open_state_store("memory:") as store:
        grown(store, steps)
        assert [store.state.at(height).get(b"a") for height in range(6)] == [b"0", b"0", b"0", None, None, b"5"]
        assert [store.state.at(height).get(b"b") for height in range(6)] == [None, None, b"2", b"2", b"2", b"2"]
        assert b"a" not in dict(store.state.at(3).scan())
        assert {store.state.at(height).get(b"z") for height in range(6)} == {b"kept"}


@pytest.mark.slow
def test_d6_pruning_keeps_what_was_not_written_for_long(tmp_path: Path) -> None:
    with open_state_store(f"sqlite:{tmp_path}", max_reorg_depth=5) as store:
        commit(store, "genesis", {b"old": b"but alive", b"n": b"start"})
        grown(store, [{b"n": b"%d" % step} for step in range(40)])
        report = store.prune(blocks=1)
        assert report.complete
        assert report.floor_after > 20
        assert store.state.get(b"old") == b"but alive"
        assert store.state.at(report.floor_after).get(b"old") == b"but alive"
        values = dict(store.state.scan())
        with pytest.raises(PrunedError):
            store.state.at(report.floor_after - 1)
    with open_state_store(tmp_path) as store:
        assert_tip(store, values)
    assert verify_store(tmp_path, level="full").ok


def test_d7_nothing_is_final_that_was_not_finalized_and_returned_means_durable(tmp_path: Path) -> None:
    with open_state_store(f"sqlite:{tmp_path}") as store:
        first = commit(store, 0, {b"a": b"1"})
        assert store.finalized is None
        journal = writer_backend(store).writer.journal
        info = commit(store, 1, {b"a": b"2"})
        assert journal.durable_seq >= info.seq
        store.reorg(first.hash)
        assert store.state.get(b"a") == b"1"
        die(store)
    sizes = []
    for _ in range(3):  # no marker is left behind by starting
        again = open_state_store(tmp_path)
        sizes.append(writer_backend(again).writer.journal.appended_seq)
        assert again.state.get(b"a") == b"1"
        die(again)
    assert len(set(sizes)) == 1


def test_d8_there_is_no_way_to_write_beside_a_block() -> None:
    with open_state_store("memory:") as store:
        commit(store, 0, {b"a": b"1"})
        for reader in (store.state, store.state.at(0)):
            for name in ("__setitem__", "__delitem__", "update"):
                assert not hasattr(reader, name)
        draft = store.draft()
        draft.state[b"a"] = b"2"
        assert store.state.get(b"a") == b"1"
        commit_draft(store, draft, 1)
        with pytest.raises(StateError):
            draft.state[b"a"] = b"3"


@pytest.mark.slow
def test_d9_a_reader_never_brings_an_old_value_back(tmp_path: Path) -> None:
    """Readers and flushes beside a writer: a value that was read after a commit returned is not older than it."""
    with open_state_store(f"sqlite:{tmp_path}") as store:
        commit(store, 0, {b"n": b"%08d" % 0})
        acknowledged = [0]
        stop = threading.Event()
        wrong: list[tuple[int, int]] = []

        def read() -> None:
            while not stop.is_set():
                least = acknowledged[0]
                found = int(store.state[b"n"])
                if found < least:
                    wrong.append((found, least))

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in range(1, 60):
            commit(store, number, {b"n": b"%08d" % number, b"other/%d" % number: b"x"})
            acknowledged[0] = number
            if number % 20 == 0:
                store.flush()
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong


def test_d9_a_block_that_failed_leaves_nothing_to_read() -> None:
    def picky(block: Block) -> Iterable[tuple[bytes, bytes]]:
        if block.work == 13:
            raise ValueError("not this one")
        return []

    with holdfast.open("memory:", settings=quick(), indexes=[IndexSpec("picky", 1, picky)]) as store:
        commit(store, 0, {b"a": b"1"})
        draft = store.draft()
        draft.state.update({b"a": b"2", b"b": b"x"})
        assert draft.state.get(b"a") == b"2"
        with pytest.raises(IndexFailed):
            commit_draft(store, draft, 1, work=13)
        assert store.state.get_many([b"a", b"b"]) == [b"1", None]
        assert_tip(store, {b"a": b"1"})


# -- incidents ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["holdfast.toml", "watermark", "journal", "views"])
def test_pr_1067_damage_is_not_absence_no_new_chain_takes_the_place_of_the_old(tmp_path: Path, victim: str) -> None:
    with open_state_store(f"sqlite:{tmp_path}") as store:
        grown(store, [{b"a": b"%d" % step} for step in range(5)])
    if victim == "journal":
        file = sorted((tmp_path / "journal").glob("*.seg"))[0]
    elif victim == "views":
        file = next((tmp_path / "views").glob("*/data/rows.sqlite"))
    else:
        file = tmp_path / victim
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    before = (tmp_path / "journal").glob("*.seg")
    kept = {each.name: each.read_bytes() for each in before}
    try:
        store = open_state_store(tmp_path)
    except HoldfastError:
        assert {each.name: each.read_bytes() for each in (tmp_path / "journal").glob("*.seg")} == kept
    else:  # views and identity are made anew from the journal, and the watermark has a second slot
        assert victim != "journal"
        assert not store.recovery.created
        assert store.state.get(b"a") == b"4"
        store.close()


def test_pr_1961_a_failed_block_does_not_stop_the_next_one() -> None:
    with open_state_store("memory:") as store:
        commit(store, 0, {b"a": b"1"})
        for _ in range(3):
            with pytest.raises(HoldfastError):
                commit(store, "bad", {b"": b"x"})
            with pytest.raises(HoldfastError):
                store.commit(store.draft(), hash=b"short")
        commit(store, 1, {b"a": b"2"})
        assert_tip(store, {b"a": b"2"})


def test_pr_1960_index_rows_stand_in_the_frame_of_their_block(tmp_path: Path) -> None:
    """Rows of an index are never written after the block: one flush, one version, one undo."""
    spec = IndexSpec("all", 1, lambda block: [(b"all", block.hash)])
    with holdfast.open(f"sqlite:{tmp_path}", settings=quick(), indexes=[spec]) as store:
        first = commit(store, 0, {b"a": b"1"})
        second = commit(store, 1, {b"a": b"2"})
        assert store.wait_for_indexes(10)
        with store.snapshot() as snapshot:
            assert snapshot.tip == second
        store.reorg(first.hash)
        assert [value for _, _, value in store.index("all").items()] == [first.hash]
        assert store.state.get(b"a") == b"1"
        die(store)
    with holdfast.open(tmp_path, settings=quick(), indexes=[spec]) as store:
        assert [value for _, _, value in store.index("all").items()] == [first.hash]


class Ledger(CustomChain):
    """Adds one to a counter for each block: execution that is not idempotent. Its genesis pays out."""

    def __init__(self, *, executes: bool = True, claim: bytes | None = None) -> None:
        super().__init__(ChainSpec(name="custom", id="ledger"))
        self.executes = executes
        self.claim = claim
        self.count = 0

    def genesis(self) -> Block | None:
        return Block(hash_of("ledger genesis"), ZERO_HASH, 0, header=b"genesis", body=b"")

    def execute(self, block: Block, parent: BlockInfo | None, state: MutableState) -> bytes | None:
        assert self.executes, "a stored block was executed again"
        self.count += 1
        state[b"balance"] = b"%d" % (int(state.get(b"balance") or b"1000") + 1)
        return None

    def state_root(self, block: Block) -> bytes | None:
        return block.header if len(block.header) == 32 else None


def ledger_block(parent: BlockInfo | None, name: object, header: bytes = b"") -> Block:
    assert parent is not None
    return Block(hash_of("ledger", parent.hash, name), parent.hash, parent.height + 1, header=header, body=b"")


def test_pr_2032_a_divergence_halts_and_wipes_nothing(tmp_path: Path) -> None:
    with open_state_store(f"sqlite:{tmp_path}", chain=Ledger()) as store:
        for step in range(3):
            store.add(ledger_block(store.tip, step))
        tip, root = store.tip, store.state.root
        for _ in range(3):
            with pytest.raises(RootMismatch):
                store.add(ledger_block(tip, "diverged", header=hash_of("what another node computed")))
        assert (store.tip, store.state.root) == (tip, root)
    with open_state_store(tmp_path, chain=Ledger()) as store:
        assert (store.tip, store.state.root) == (tip, root)
        assert store.state.at(1).get(b"balance") == b"1002"


@pytest.mark.slow
def test_pr_1983_what_no_block_wrote_is_found(tmp_path: Path) -> None:
    from holdfast.engine.api import Batch
    from holdfast.engine.open import open_engine
    from holdfast.views.rows import encode_row
    from holdfast.views.tables import PREIMAGES, STATE

    with open_state_store(f"sqlite:{tmp_path}") as store:
        commit(store, 0, {b"wallet": b"1"})
    place = tmp_path / "views" / (tmp_path / "views" / "CURRENT").read_text().strip() / "data"
    engine = open_engine("sqlite", place, create=False)
    ghost = {STATE.prefix + b"ghost": b"50000", PREIMAGES.prefix + sha256(b"ghost").digest(): b"ghost"}
    engine.apply(Batch({key: encode_row(key, value) for key, value in ghost.items()}), sync=True)
    engine.close()
    for level in ("state", "views"):
        assert not verify_store(tmp_path, level=level).ok
    rebuild_views(tmp_path)
    with open_state_store(tmp_path) as store:
        assert_tip(store, {b"wallet": b"1"})


@pytest.mark.slow
def test_pr_2283_identical_blocks_give_identical_roots_on_every_replica(tmp_path: Path) -> None:
    steps: list[Changes] = [{b"%d" % (n * 31 % 97): b"%d" % step for n in range(60)} for step in range(4)]
    roots = []
    for number, url in enumerate(("memory:", f"sqlite:{tmp_path / 'a'}", f"lmdb:{tmp_path / 'b'}")):
        with open_state_store(url) as store:
            turned = [dict(sorted(step.items(), reverse=bool(number % 2))) for step in steps]
            roots.append([info.state_root for info, _ in grown(store, turned)])
    assert roots[0] == roots[1] == roots[2]


@pytest.mark.slow
def test_pr_2485_replay_and_rebuild_make_every_row_that_the_live_store_made(tmp_path: Path) -> None:
    with open_state_store(f"sqlite:{tmp_path}") as store:
        chain = grown(
            store, [{b"a": b"%d" % step, b"big": large(step, 70_000), b"%d" % step: b"x"} for step in range(6)]
        )
        commit(store, "side", {b"s": b"1"}, chain[2][0])
        store.orphan(chain[4][0].hash, reason="test")
        values = dict(store.state.scan())
        die(store)
    with open_state_store(tmp_path) as store:
        assert_tip(store, values)
    assert verify_store(tmp_path, level="full").ok
    rebuild_views(tmp_path)
    assert verify_store(tmp_path, level="full").ok
    with open_state_store(tmp_path) as store:
        assert_tip(store, values)
        assert [dict(store.state.at(height).scan()) for height in range(4)] == [step for _, step in chain[:4]]


@pytest.mark.slow
def test_pr_2589_recovery_executes_nothing(tmp_path: Path) -> None:
    """Post-images are applied; a transfer that ran before the kill does not run again."""
    with open_state_store(f"sqlite:{tmp_path}", chain=Ledger()) as store:
        for step in range(4):
            store.add(ledger_block(store.tip, step))
        first = store.blocks.at(1)
        assert first is not None
        side = ledger_block(first, "side")
        store.add(side)
        balance = store.state.get(b"balance")
        assert balance == b"1005"
        die(store)
    silent = Ledger(executes=False)
    with open_state_store(tmp_path, chain=silent) as store:
        assert store.state.get(b"balance") == balance
        assert store.reorg(side.hash) is not None  # neither does a reorg
        assert store.state.get(b"balance") == b"1003"
        assert silent.count == 0
        die(store)
    rebuild_views(tmp_path)
    with open_state_store(tmp_path, chain=silent) as store:
        assert store.state.get(b"balance") == b"1003"


def test_pr_2658_errors_are_told_and_a_block_reads_its_own_writes(tmp_path: Path) -> None:
    with open_state_store(f"sqlite:{tmp_path}") as store:
        commit(store, 0, {b"a": b"1", b"big": large(1, 70_000)})
        draft = store.draft()
        draft.state[b"a"] = b"2"
        del draft.state[b"big"]
        draft.state[b"new"] = b"3"
        assert draft.state.get_many([b"a", b"big", b"new"]) == [b"2", None, b"3"]
        assert dict(draft.state.scan()) == {b"a": b"2", b"new": b"3"}
        with pytest.raises(NotFoundError):
            draft.state[b"big"]
    from holdfast.engine.api import Batch
    from holdfast.engine.open import open_engine
    from holdfast.views.tables import BLOBS

    place = tmp_path / "views" / (tmp_path / "views" / "CURRENT").read_text().strip() / "data"
    engine = open_engine("sqlite", place, create=False)
    engine.apply(Batch({key: None for key, _ in engine.scan(BLOBS.prefix, BLOBS.end).rows}), sync=True)
    engine.close()
    with open_state_store(tmp_path) as store, pytest.raises(CorruptionError):
        store.state.get(b"big")


def test_pr_2724_the_first_block_stands_in_the_journal_with_its_state(tmp_path: Path) -> None:
    with open_state_store(f"sqlite:{tmp_path}", chain=Ledger()) as store:
        assert store.state.get(b"balance") == b"1001"
        store.add(ledger_block(store.tip, 0))
    rebuild_views(tmp_path)
    with open_state_store(tmp_path, chain=Ledger(executes=False)) as store:
        assert store.state.get(b"balance") == b"1002"
        assert store.state.at(0).get(b"balance") == b"1001"
    assert verify_store(tmp_path, level="full").ok


@pytest.mark.parametrize("flushed", [False, True])
def test_pr_1219_what_is_rolled_back_is_rolled_back_on_disk(tmp_path: Path, flushed: bool) -> None:
    with open_state_store(f"sqlite:{tmp_path}") as store:
        commit(store, 0, {b"a": b"1"})
        bad = commit(store, 1, {b"a": b"2", b"b": large(1, 70_000)})
        commit(store, 2, {b"a": None})
        if flushed:
            store.flush()
        store.orphan(bad.hash, reason="rolled back")
        assert_tip(store, {b"a": b"1"})
        die(store)
    with open_state_store(tmp_path) as store:
        assert_tip(store, {b"a": b"1"})
    assert verify_store(tmp_path, level="full").ok
