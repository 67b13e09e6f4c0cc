"""System 001 on a store: mine and persist, reload, look up, epochs, orphans, validation."""

from __future__ import annotations

import asyncio
import contextlib
import io
import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from holdfast._fs import RealFile
from holdfast.chains.pow import PowChain, PowParameters
from holdfast.chains.pow.blockchain import Blockchain, ChainConfig
from holdfast.chains.pow.nominations import nomination_seed, shuffle
from holdfast.errors import (
    BlockNotFound,
    CorruptionError,
    DeviceError,
    EngineError,
    FinalityError,
    ForeignStore,
    HoldfastError,
    InvalidBlock,
    InvalidInputError,
    MiningCancelled,
    MiningError,
    OutOfSpace,
    ParentUnknown,
    PersistenceError,
    Recovery,
)
from holdfast.types import AddStatus, Block, BlockInfo
from tests.integration.pow_tools import EASY, START, Clock, easy, grow, mined

HARD = ChainConfig(parameters=PowParameters(network="test", initial_difficulty=2**127))


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'chain'}"


# -- load or create --------------------------------------------------------------------------------------------------


def test_a_new_chain_holds_the_fixed_genesis() -> None:
    with easy() as chain:
        assert chain.height == 0
        assert chain.tip.hash == PowChain(EASY).genesis().hash
        assert len(chain.load_canonical_blocks()) == 1


def test_mined_blocks_are_there_after_a_restart(store_url: str) -> None:
    clock = Clock()
    with easy(store_url, clock=clock) as chain:
        blocks = []
        for number in range(5):
            clock.now += 60
            blocks.append(chain.mine_block(f"peer-{number % 2}", number))
        assert [block.index for block in blocks] == [1, 2, 3, 4, 5]
    with easy(store_url, clock=clock) as chain:
        assert chain.height == 5
        assert list(chain.load_canonical_blocks())[1:] == blocks
        assert chain.validate_chain().ok
        assert chain.mine_block("late", 9).header.parent == blocks[-1].hash


def test_a_store_of_another_network_is_refused(store_url: str) -> None:
    with easy(store_url):
        pass
    for parameters in (
        PowParameters(network="other", initial_difficulty=1, target_block_seconds=60),
        PowParameters(network="test", initial_difficulty=2, target_block_seconds=60),
        PowParameters(network="test", initial_difficulty=1, target_block_seconds=61),
    ):
        with pytest.raises(ForeignStore):
            Blockchain.load_or_create(store_url, ChainConfig(parameters=parameters))
    with easy(store_url) as chain:
        assert chain.height == 0


def test_an_open_store_is_used_and_left_open() -> None:
    with easy() as chain:
        other = Blockchain.load_or_create(chain.store, chain.config)
        other.close()
        assert chain.height == 0
        with pytest.raises(ForeignStore):
            Blockchain.load_or_create(chain.store, HARD)


# -- mining ----------------------------------------------------------------------------------------------------------


def test_time_of_a_mined_block_never_goes_back() -> None:
    clock = Clock()
    with easy(clock=clock) as chain:
        chain.mine_block("a", 1)
        clock.now -= 1000
        assert chain.mine_block("a", 2).header.time == START


def test_mining_failures_change_nothing() -> None:
    with Blockchain.load_or_create("memory:", HARD) as chain:
        before = chain.tip
        with pytest.raises(MiningError) as failure:
            chain.mine_block("a", 1, max_attempts=20)
        assert not isinstance(failure.value, (PersistenceError, MiningCancelled))
        stop = threading.Event()
        stop.set()
        with pytest.raises(MiningCancelled):
            chain.mine_block("a", 1, stop=stop)
        with pytest.raises(InvalidInputError):
            chain.mine_block("a", 1, max_attempts=0)
        with pytest.raises(InvalidBlock):
            chain.mine_block("x" * 200, 1)
        assert chain.tip == before


def test_where_a_block_has_no_room_its_error_says_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    full = OutOfSpace("the disk is nearly full", remedy="free some space; the store need not be opened again")

    def refuse(*_: object, **__: object) -> None:
        raise full

    with easy() as chain:
        chain.mine_block("a", 1)
        block = mined(chain, chain.tip, START)
        monkeypatch.setattr(chain.store, "add", refuse)
        for ask in (lambda: chain.mine_block("a", 2), lambda: chain.add_block(block)):
            with pytest.raises(PersistenceError) as failure:
                ask()
            assert (failure.value.remedy, failure.value.recovery) == (full.remedy, Recovery.RETRY)
            assert failure.value.retryable


def test_a_failed_write_is_a_persistence_error_and_keeps_the_tip(monkeypatch: pytest.MonkeyPatch) -> None:
    with easy() as chain:
        chain.mine_block("a", 1)
        before = chain.tip

        def broken(block: Block, **_: object) -> None:
            raise DeviceError("the disk is gone")

        with monkeypatch.context() as patch:
            patch.setattr(chain.store, "add", broken)
            with pytest.raises(PersistenceError) as failure:
                chain.mine_block("a", 2)
            assert not isinstance(failure.value, MiningError)
            assert isinstance(failure.value.__cause__, DeviceError)
            with pytest.raises(PersistenceError):
                chain.add_block(mined(chain, before, START))
        assert chain.tip == before
        # Nothing is lost: the error holds the mined block.
        context = failure.value.context
        header, body = context["header"], context["body"]
        assert isinstance(header, bytes)
        assert isinstance(body, bytes)
        result = chain.store.add(chain.chain.decode(header, body, parent=before))
        assert result.status is AddStatus.EXTENDED
        assert chain.tip.hash == context["hash"]


def test_mining_begins_again_when_the_tip_moves() -> None:
    with easy() as chain:
        rival = mined(chain, chain.tip, START)
        asked: list[int] = []

        def stop() -> bool:
            asked.append(1)
            if len(asked) == 1:
                chain.add_block(rival)
            return False

        block = chain.mine_block("a", 1, stop=stop, max_attempts=100_000)
        assert block.header.parent == rival.hash
        assert chain.tip.hash == block.hash
        assert len(asked) >= 2


def test_async_mining_persists() -> None:
    async def run(chain: Blockchain) -> None:
        for number in range(3):
            block = await chain.mine_block_async("a", number)
            assert chain.tip.hash == block.hash

    with easy() as chain:
        asyncio.run(run(chain))
        assert chain.height == 3


def test_cancelled_search_changes_nothing_and_the_chain_goes_on() -> None:
    async def run(chain: Blockchain) -> None:
        task = asyncio.create_task(chain.mine_block_async("a", 1))
        await asyncio.sleep(0.03)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stop = threading.Event()
        stop.set()
        with pytest.raises(MiningCancelled):
            await chain.mine_block_async("a", 1, stop=stop)
        with pytest.raises(MiningError):
            await chain.mine_block_async("a", 1, max_attempts=10)

    with Blockchain.load_or_create("memory:", HARD) as chain:
        asyncio.run(run(chain))
        assert chain.height == 0
        assert chain.validate_chain().ok


def test_cancelled_write_is_finished_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancellation that arrives during the write waits for it: nothing is half done, nothing lost."""
    writing, go_on = threading.Event(), threading.Event()

    async def run(chain: Blockchain) -> None:
        task = asyncio.create_task(chain.mine_block_async("a", 1))
        await asyncio.to_thread(writing.wait)
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert chain.height == 1

    with easy() as chain:
        add = chain.store.add

        def slow(block: Block, **arguments: bool) -> object:
            writing.set()
            go_on.wait(5)
            return add(block, **arguments)

        monkeypatch.setattr(chain.store, "add", slow)
        asyncio.run(run(chain))


# -- adding ----------------------------------------------------------------------------------------------------------


def test_added_blocks_and_known_ones() -> None:
    with easy() as chain:
        block = mined(chain, chain.tip, START)
        assert chain.add_block(block).status is AddStatus.EXTENDED
        assert chain.add_block(block).status is AddStatus.KNOWN
        assert chain.height == 1


def test_bad_blocks_are_refused_and_change_nothing() -> None:
    with easy() as chain:
        tip = grow(chain, chain.tip, 2)
        lonely = mined(chain, BlockInfo(bytes(31) + b"x", b"", 9, START, 1, 1, b"", 0, 0, 0, 0, 0), START)
        with pytest.raises(ParentUnknown):
            chain.add_block(lonely)
        early = mined(chain, tip, tip.time - 1)
        with pytest.raises(InvalidBlock, match="older than its parent"):
            chain.add_block(early)
        assert chain.tip == tip
        assert chain.get_block_by_hash(early.hash) is None


def test_minimum_timestamp() -> None:
    parameters = PowParameters(initial_difficulty=1, minimum_block_timestamp=START)
    clock = Clock(5)
    with Blockchain.load_or_create("memory:", ChainConfig(parameters), clock=clock) as chain:
        with pytest.raises(InvalidBlock, match="than the chain allows"):
            chain.add_block(mined(chain, chain.tip, START - 1))
        assert chain.mine_block("a", 1).header.time == START


def test_save_block_checks_the_epoch() -> None:
    with easy() as chain:
        tip = grow(chain, chain.tip, 39)
        block = mined(chain, tip, tip.time + 60)
        assert block.index == 40
        with pytest.raises(InvalidInputError, match="another epoch"):
            chain.persistence.save_block(block, 0)
        assert chain.height == 39
        chain.persistence.save_block(block, 1)
        assert chain.height == 40
        assert chain.persistence.load_epoch_blocks(1) == [block]
        assert len(chain.persistence.load_canonical_blocks()) == 41


# -- look-ups --------------------------------------------------------------------------------------------------------


def test_look_ups() -> None:
    with easy() as chain:
        blocks = [chain.mine_block(peer, number) for number, peer in enumerate(["a", "b", "a", "\u00e9"])]
        assert chain.get_block_by_index(2) == blocks[1]
        assert chain.get_block_by_index(9) is None
        assert chain.get_block_by_hash(blocks[2].hash) == blocks[2]
        assert chain.get_block_by_hash(blocks[2].hash.hex()) == blocks[2]
        assert chain.get_block_by_hash(bytes(32)) is None
        with pytest.raises(InvalidInputError):
            chain.get_block_by_hash("abc")
        assert list(chain.blocks_by_peer("a")) == [blocks[0], blocks[2]]
        assert chain.count_blocks_by_peer("a") == 2
        assert chain.count_blocks_by_peer("\u00e9") == 1
        assert chain.count_blocks_by_peer("nobody") == 0
        canonical = chain.load_canonical_blocks(2, 4)
        assert len(canonical) == 2
        assert list(canonical) == blocks[1:3] == list(canonical)
        assert len(chain.load_canonical_blocks(7)) == 0


def test_look_ups_follow_the_canonical_branch() -> None:
    with easy() as chain:
        chain.add_block(mined(chain, chain.tip, START, peer="loser"))
        genesis = chain.store.blocks.at(0)
        assert genesis is not None
        grow(chain, genesis, 2, peer="winner")
        assert chain.count_blocks_by_peer("loser") == 0
        assert chain.count_blocks_by_peer("winner") == 2
        assert [block.data.peer_id for block in chain.load_epoch_blocks(0)] == ["", "winner", "winner"]


def test_epochs_and_shuffled_nominations() -> None:
    """Boundaries 0/1/39/40/41/79/80: the genesis block counts, so epoch 0 is 0..39."""
    with easy() as chain:
        tip = grow(chain, chain.tip, 38)
        assert chain.get_epoch_shuffled_nominations(0) is None
        tip = grow(chain, tip, 1)
        nominations = chain.get_epoch_shuffled_nominations(0)
        assert nominations is not None
        epoch = chain.load_epoch_blocks(0)
        order = shuffle(nomination_seed(block.header.nonce for block in epoch), 40)
        assert [nomination.index for nomination in nominations] == order
        assert (nominations[order.index(0)].peer_id, nominations[order.index(1)].peer_id) == ("", "peer")
        assert chain.load_epoch_blocks(1) == []
        grow(chain, tip, 41)
        sizes = [len(chain.load_epoch_blocks(number)) for number in (0, 1, 2, 3, -1)]
        assert sizes == [40, 40, 1, 0, 0]
        assert [chain.load_epoch_blocks(1)[place].index for place in (0, 1, 39)] == [40, 41, 79]
        assert chain.get_epoch_shuffled_nominations(1) is not None
        assert chain.get_epoch_shuffled_nominations(2) is None
        assert [chain.store.blocks.epoch_of(index) for index in (0, 1, 39, 40, 41, 79, 80)] == [0, 0, 0, 1, 1, 1, 2]


def test_difficulty_is_retargeted_on_the_stored_chain() -> None:
    clock = Clock()
    with easy(clock=clock) as chain:
        for number in range(40):
            block = chain.mine_block("fast", number)
        assert block.header.difficulty == 8
        assert chain.load_epoch_blocks(0)[-1].header.difficulty == 1
        assert chain.validate_chain().ok


# -- orphans ---------------------------------------------------------------------------------------------------------


def test_marking_the_tip_orphaned_moves_it_to_its_parent(store_url: str) -> None:
    with easy(store_url) as chain:
        first, second = chain.mine_block("a", 1), chain.mine_block("b", 2)
        chain.mark_block_orphaned(second.hash.hex(), "bad peer", bytes(31) + b"c")
        assert chain.tip.hash == first.hash
        chain.mark_block_orphaned(second.hash, "another reason")
    with easy(store_url) as chain:
        assert chain.tip.hash == first.hash
        record = chain.get_miner_block(second.hash)
        assert record is not None
        assert (record.is_canonical, record.is_orphaned) == (False, True)
        assert (record.orphan_reason, record.competing_hash) == ("bad peer", (bytes(31) + b"c").hex())
        assert record.seen_at is not None
        assert record.orphaned_at is not None
        assert [orphan.hash for orphan in chain.orphaned_blocks()] == [second.hash.hex()]
        assert chain.validate_chain().ok


def test_descendants_are_orphaned_with_their_ancestor() -> None:
    with easy() as chain:
        blocks = [chain.mine_block("a", number) for number in range(4)]
        reorg = chain.mark_block_orphaned(blocks[1].hash, "bad")
        assert reorg is not None
        assert chain.tip.hash == blocks[0].hash
        assert {orphan.hash for orphan in chain.orphaned_blocks()} == {block.hash.hex() for block in blocks[1:]}
        assert len(chain.load_canonical_blocks()) == 2


def test_what_cannot_be_orphaned() -> None:
    with easy() as chain:
        block = chain.mine_block("a", 1)
        chain.mine_block("a", 2)
        with pytest.raises(BlockNotFound):
            chain.mark_block_orphaned(bytes(31) + b"x", "unknown")
        with pytest.raises(FinalityError):
            chain.mark_block_orphaned(PowChain(EASY).genesis().hash, "genesis")
        chain.store.finalize(1)
        with pytest.raises(FinalityError):
            chain.mark_block_orphaned(block.hash, "final")
        assert chain.height == 2


# -- validation ------------------------------------------------------------------------------------------------------


def test_validation_reports_what_is_wrong_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with easy() as chain:
        blocks = [chain.mine_block("a", number) for number in range(6)]
        clean = chain.validate_chain()
        assert (clean.start, clean.stop, clean.blocks, clean.issues, clean.ok) == (0, 7, 7, (), True)
        clean.require()
        assert chain.validate_chain(3, 5).blocks == 2

        header, body = chain.store.blocks.header, chain.store.blocks.body

        def bad_header(info: BlockInfo) -> bytes:
            return header(info)[:-1] + b"\xff" if info.height == 2 else header(info)

        def bad_body(info: BlockInfo) -> bytes | None:
            if info.height == 4:
                raise CorruptionError("hash of the part is wrong")
            return body(info)

        monkeypatch.setattr(chain.store.blocks, "header", bad_header)
        monkeypatch.setattr(chain.store.blocks, "body", bad_body)
        report = chain.validate_chain()
        assert [(issue.height, issue.kind) for issue in report.issues] == [(2, "link"), (4, "corruption")]
        assert report.issues[0].hash == blocks[1].hash
        assert not report.ok
        with pytest.raises(CorruptionError, match="not valid"):
            report.require()
        cut = chain.validate_chain(issues_max=1)
        assert (len(cut.issues), cut.truncated, cut.blocks) == (1, True, 3)


def test_validation_knows_the_forced_blocks() -> None:
    with easy() as chain:
        chain.mine_block("a", 1)
        strict = Blockchain.load_or_create(chain.store, ChainConfig(EASY, forced_blocks={1: "ab" * 32}), clock=Clock())
        assert [issue.kind for issue in strict.validate_chain().issues] == ["forced"]


def test_load_with_validation(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with easy(store_url) as chain:
        chain.mine_block("a", 1)
    with Blockchain.load_or_create(store_url, ChainConfig(EASY), validate=True) as chain:
        assert chain.height == 1

    def refuse(*_: object) -> None:
        raise InvalidBlock("no")

    with monkeypatch.context() as patch:
        patch.setattr(PowChain, "validate", refuse)
        with pytest.raises(CorruptionError):
            Blockchain.load_or_create(store_url, ChainConfig(EASY), validate=True)
    with easy(store_url) as chain:  # it was closed, so it can be opened again
        assert chain.height == 1


def test_every_error_is_in_the_tree() -> None:
    assert issubclass(MiningError, HoldfastError)
    assert not issubclass(PersistenceError, MiningError)


@pytest.mark.parametrize("engine", ["rocksdb", "lmdb", "sqlite"])
def test_a_failing_device_keeps_memory_and_disk_at_the_durable_tip(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{engine}:{tmp_path / 'chain'}"
    chain = easy(url)
    chain.mine_block("a", 1)
    before = chain.tip

    def failing(_: object) -> None:
        raise DeviceError("the device failed")

    with monkeypatch.context() as patch:
        patch.setattr(RealFile, "sync", failing)
        with pytest.raises(PersistenceError) as failure:
            chain.mine_block("a", 2)
        assert isinstance(failure.value.__cause__, EngineError)
        assert chain.tip == before
        assert list(chain.load_canonical_blocks())[-1].hash == before.hash
    with pytest.raises(PersistenceError):  # poisoned until it is opened again
        chain.mine_block("a", 3)
    assert chain.tip == before
    with contextlib.suppress(HoldfastError):
        chain.close()
    with easy(url) as again:
        assert again.height in (1, 2)  # what was appended may have reached the device, or not
        assert again.get_block_by_hash(before.hash) is not None
        assert again.validate_chain().ok
        again.mine_block("a", 4)


@pytest.mark.parametrize("engine", ["rocksdb", "lmdb", "sqlite"])
def test_all_of_it_on_every_engine(engine: str, tmp_path: Path) -> None:
    url = f"{engine}:{tmp_path / 'chain'}"
    with easy(url) as chain:
        root = grow(chain, chain.tip, 41, peer="main")
        side = grow(chain, root, 2, peer="side")
        main = grow(chain, root, 3, peer="main")
        chain.mark_block_orphaned(main.hash, "marked", side.hash)
        text = io.StringIO()
        chain.to_json(text)
    with easy(url) as chain:
        assert chain.height == 43
        assert chain.count_blocks_by_peer("main") == 43
        assert chain.get_epoch_shuffled_nominations(0) is not None
        assert chain.validate_chain().ok
        again = io.StringIO()
        chain.to_json(again)
        assert again.getvalue() == text.getvalue()
    copy = f"{engine}:{tmp_path / 'copy'}"
    with Blockchain.from_json(io.StringIO(text.getvalue()), copy, ChainConfig(EASY)) as chain:
        third = io.StringIO()
        chain.to_json(third)
        assert third.getvalue() == text.getvalue()


@pytest.mark.slow
def test_mining_in_another_process() -> None:
    async def run(chain: Blockchain) -> None:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            for number in range(2):
                await chain.mine_block_async("a", number, executor=pool)

    with easy() as chain:
        asyncio.run(run(chain))
        assert chain.height == 2
