"""Regressions found by a review of the core: each test names what went wrong before."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

import holdfast
import holdfast.aio
from holdfast import Store
from holdfast.config import CONFIG_FILE_NAMES
from holdfast.errors import (
    CallbackError,
    ClosedError,
    FencedError,
    IndexFailed,
    InvalidBlock,
    InvalidInputError,
    LimitExceeded,
    PoisonedError,
    StateError,
)
from holdfast.limits import SAFETY_IDENTITIES_MAX
from holdfast.store.chain import ChainSpec, CustomChain
from holdfast.types import AddStatus, Block, BlockInfo
from tests.unit.store_support import chain_of, hash_of, make, open_quick, quick


class Judge(CustomChain):
    """A chain that calls ``judge`` for every block it is asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.judge: Callable[[Block], object] = bool

    def validate(self, block: Block, parent: BlockInfo | None, ancestry: object) -> None:
        self.judge(block)


def test_a_waiting_block_is_judged_although_its_parent_was_trusted() -> None:
    chain = Judge()
    root, parent = chain_of(None, 2)
    bad = make(parent, "bad")

    def judge(block: Block) -> None:
        if block.hash == bad.hash:
            raise InvalidBlock("bad")

    chain.judge = judge
    with holdfast.open("memory:", chain=chain, settings=quick()) as store:
        store.add(root)
        assert store.add(bad, wait_for_parent=True).status is AddStatus.WAITING
        assert store.add(parent, validate=False).connected == ()
        assert not store.has(bad.hash)


def test_a_waiting_block_that_was_trusted_is_not_judged_again() -> None:
    chain = Judge()
    root, parent, child = chain_of(None, 3)
    judged: list[bytes] = []
    chain.judge = lambda block: judged.append(block.hash)
    with holdfast.open("memory:", chain=chain, settings=quick()) as store:
        store.add(root)
        store.add(child, wait_for_parent=True, validate=False)
        assert store.add(parent).connected == (child.hash,)
        assert judged == [root.hash, parent.hash]


def test_what_a_chain_raises_is_typed_and_the_blocks_before_it_stay() -> None:
    chain = Judge()
    blocks = chain_of(None, 4)

    def judge(block: Block) -> None:
        if block.height == 2:
            raise KeyError("a bug of the chain")

    chain.judge = judge
    with holdfast.open("memory:", chain=chain, settings=quick()) as store:
        with pytest.raises(CallbackError, match="a bug of the chain"):
            store.add_many(blocks)
        assert store.tip is not None
        assert store.tip.hash == blocks[1].hash


def test_a_waiting_block_that_an_index_refuses_does_not_fail_its_parent() -> None:
    root, parent, child = chain_of(None, 3)

    @holdfast.index("picky")
    def picky(block: Block) -> Iterable[tuple[bytes, bytes]]:
        if block.hash == child.hash:
            raise ValueError("no")
        return []

    with holdfast.open("memory:", settings=quick(), indexes=[picky]) as store:
        store.add(root)
        store.add(child, wait_for_parent=True)
        assert store.add(parent).status is AddStatus.EXTENDED
        assert not store.has(child.hash)


def test_a_promise_made_with_a_block_is_durable_in_buffered_mode(tmp_path: Path) -> None:
    with open_quick(tmp_path / "s", durability="buffered", buffered_sync_seconds=3600.0) as store:
        store.add(make(None))
        store.commit(store.draft(), hash=b"\x01" * 32, safety=(b"v", (1,), b"vote"))
        journal = store.statistics()["journal"]
        assert isinstance(journal, dict)
        assert journal["durable_seq"] == journal["appended_seq"]


def test_code_that_the_store_calls_may_not_write_to_it() -> None:
    chain = Judge()
    root, first, second = chain_of(None, 3)
    other = make(root, "other")
    with holdfast.open("memory:", chain=chain, settings=quick()) as store:
        store.add(root)

        def judge(block: Block) -> None:
            if block.hash == first.hash:
                store.add(other, validate=False)

        chain.judge = judge
        with pytest.raises(StateError, match="code that it had called"):
            store.add(first)
        assert not store.has(first.hash)
        assert not store.has(other.hash)
        store.add(first, validate=False)
        assert store.add(second).status is AddStatus.EXTENDED


def test_an_interrupt_behind_the_append_poisons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root, first, second = chain_of(None, 3)
    store = open_quick(tmp_path / "s")
    store.add(root)
    journal = store._backend_writer().opened.journal
    append = journal.append

    def interrupted(*args: object, **kwargs: object) -> int:
        append(*args, **kwargs)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(journal), "append", lambda _self, *args, **kwargs: interrupted(*args, **kwargs))
        with pytest.raises(KeyboardInterrupt):
            store.add(first)
    with pytest.raises(PoisonedError):
        store.add(make(root, "instead"))
    store.close()
    with open_quick(tmp_path / "s") as store:
        assert store.add(first).status is AddStatus.KNOWN
        assert store.add(second).status is AddStatus.EXTENDED
        assert store.blocks.statistics()["orphans"] == 0


def test_an_index_that_fails_at_replay_falls_behind_and_the_store_opens(tmp_path: Path) -> None:
    broken_at: set[int] = set()

    @holdfast.index("heights")
    def heights(block: Block) -> Iterable[tuple[bytes, bytes]]:
        if block.height in broken_at:
            raise ValueError("broken since then")
        yield b"height", str(block.height).encode()

    blocks = chain_of(None, 8)
    store = holdfast.open(tmp_path / "s", settings=quick(), indexes=[heights])
    for block in blocks[:4]:
        store.add(block)
    store.flush()
    side = make(blocks[4], "side", work=5)
    for block in (*blocks[4:7], side):
        store.add(block)
    store._backend_writer().views.close(flush=False)
    store._backend_writer().opened.engine.close()
    store._backend_writer().opened.journal.close()
    store._backend_writer().opened.lock.release()

    broken_at.add(5)
    with holdfast.open(tmp_path / "s", settings=quick(), indexes=[heights]) as again:
        assert again.tip is not None
        assert again.tip.hash == side.hash
        with pytest.raises(IndexFailed):
            again.wait_for_indexes(10)
        (status,) = again.indexes()
        assert (status.status, status.built_height) == ("behind", 4)
        assert "broken since then" in str(status.failure)
    broken_at.clear()
    with holdfast.open(tmp_path / "s", settings=quick(), indexes=[heights]) as again:
        assert again.wait_for_indexes(10)
        assert again.index("heights").get(b"height") == [b"0", b"1", b"2", b"3", b"4", b"5"]


def test_the_child_of_a_fork_reads_and_writes_nothing(tmp_path: Path) -> None:
    store = holdfast.open(f"sqlite:{tmp_path / 's'}", settings=quick())
    block = make(None)
    info = store.add(block).block
    assert info is not None
    ticket = store.commit(store.draft(), hash=b"\x01" * 32, wait=False)
    calls = (
        lambda: store.safety.save(b"v", (1,), b"x"),
        lambda: store.safety.load(b"v"),
        lambda: store.blocks.get(block.hash),
        lambda: store.blocks.header(info),
        ticket.wait,
    )
    child = os.fork()
    if child == 0:
        refused = 0
        for call in calls:
            try:
                call()
            except ClosedError:
                refused += 1
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == len(calls)
    assert ticket.wait().height == 1
    store.safety.save(b"v", (1,), b"x")
    with pytest.raises(holdfast.errors.StoreLocked):
        holdfast.open(tmp_path / "s")
    store.close()


def test_what_a_caller_passes_is_refused_by_type_before_anything_is_written() -> None:
    blocks = chain_of(None, 3)
    with holdfast.open("memory:", settings=quick()) as store:
        store.add_many(blocks)
        for reason in ("\ud800", 5, " "):
            with pytest.raises(InvalidInputError):
                store.orphan(blocks[2].hash, reason=reason)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError):
            store.safety.save(b"v", (1,), "text")  # type: ignore[arg-type]
        for height in ("1", -1, 2**63):
            with pytest.raises(InvalidInputError):
                store.force_blocks({height: blocks[1].hash})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "spec",
    [
        ChainSpec("custom", fork_choice="best"),  # type: ignore[arg-type]
        ChainSpec("custom", epoch_length=-1),
        ChainSpec("custom", parameters={"a": 5}),  # type: ignore[dict-item]
        ChainSpec("custom", id="\ud800"),
    ],
)
def test_a_chain_that_could_not_be_read_back_makes_no_store(tmp_path: Path, spec: ChainSpec) -> None:
    with pytest.raises(InvalidInputError):
        holdfast.open(f"sqlite:{tmp_path / 's'}", chain=CustomChain(spec))
    assert not (tmp_path / "s" / "holdfast.toml").exists()
    holdfast.open(f"sqlite:{tmp_path / 's'}", settings=quick()).close()


def test_a_directory_with_any_configuration_file_may_become_a_store(tmp_path: Path) -> None:
    for name in CONFIG_FILE_NAMES:
        place = tmp_path / name.replace(".", "-")
        place.mkdir()
        (place / name).write_text("")
        holdfast.open(f"sqlite:{place}", settings=quick()).close()


def test_a_process_may_change_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = holdfast.open("sqlite:relative", settings=quick())
    store.add(make(None))
    monkeypatch.chdir("/")
    store.close()
    with open_quick(tmp_path / "relative") as again:
        assert again.recovery.clean
        assert again.tip is not None


def test_an_interrupt_while_closing_frees_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_quick(tmp_path / "s")
    store.add(make(None))

    def interrupted(**_fields: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store._backend_writer().views, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.close()
    with open_quick(tmp_path / "s") as again:
        assert again.tip is not None


def test_tickets_that_nobody_waits_for_do_not_fill_the_memory() -> None:
    with holdfast.open("memory:", settings=quick(overlay_rows_max=100)) as store:
        store.add(make(None))
        for number in range(200):
            store.commit(store.draft(), hash=hash_of(number), wait=False)
        views = store.statistics()["views"]
        assert isinstance(views, dict)
        assert views["overlay_rows"] <= 120


def test_no_fence_is_forgotten_at_the_next_open(tmp_path: Path) -> None:
    with open_quick(tmp_path / "s") as store:
        for number in range(SAFETY_IDENTITIES_MAX):
            store.safety.lift_fence(b"%d" % number, (9,))
        with pytest.raises(LimitExceeded):
            store.safety.lift_fence(b"one more", (9,))
    with open_quick(tmp_path / "s") as store:
        for number in range(SAFETY_IDENTITIES_MAX):
            with pytest.raises(FencedError):
                store.safety.save(b"%d" % number, (9,), b"")


def test_a_cancelled_open_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, closed = threading.Event(), threading.Event(), threading.Event()
    real, close = holdfast.open, Store.close

    def slow(*args: object, **kwargs: object) -> Store:
        begun.set()
        assert go_on.wait(10)
        return real(*args, **kwargs)  # type: ignore[arg-type]

    def noticed(store: Store) -> None:
        close(store)
        closed.set()

    monkeypatch.setattr("holdfast.aio.open_attended", slow)
    monkeypatch.setattr(Store, "close", noticed)

    async def cancelled() -> None:
        task = asyncio.ensure_future(holdfast.aio.open_async(tmp_path / "s", settings=quick(engine="sqlite")))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    asyncio.run(cancelled())
    assert closed.wait(10)
    open_quick(tmp_path / "s").close()


def test_a_follower_sees_an_index_that_became_ready_after_it_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @holdfast.index("heights")
    def heights(block: Block) -> Iterable[tuple[bytes, bytes]]:
        yield b"height", str(block.height).encode()

    monkeypatch.setattr("holdfast.store.follower._INDEX_SECONDS", 0.0)
    blocks = chain_of(None, 6)
    place = f"sqlite:{tmp_path / 's'}"
    with holdfast.open(place, settings=quick()) as store:
        store.add_many(blocks[:3])
    with (
        holdfast.open(place, read_only=True, indexes=[heights]) as follower,
        holdfast.open(place, settings=quick(), indexes=[heights]) as store,
    ):
        assert store.wait_for_indexes(10)
        store.add_many(blocks[3:])
        follower.refresh()
        assert follower.index("heights").get(b"height") == [str(number).encode() for number in range(6)]
