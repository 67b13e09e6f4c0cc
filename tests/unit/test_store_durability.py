"""Durability as callers see it: tickets, both modes, poison, safety records, fences."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast import Store
from holdfast._fs import RealFile
from holdfast.errors import (
    EngineError,
    EquivocationError,
    FencedError,
    HoldfastError,
    InvalidInputError,
    LimitExceeded,
    PoisonedError,
    SafetyError,
    SafetyStateMissing,
)
from holdfast.types import Block
from tests.unit.store_support import chain_of, filled, hash_of, make, open_quick

ME = b"validator"


def commit(store: Store, name: object = 0, **more: object) -> object:
    return store.commit(store.draft(), hash=hash_of("block", name, store.draft().height), **more)  # type: ignore[call-overload]


def visible(store: Store) -> object:
    tip = store.tip
    return tip and tip.hash, [info.hash for info in store.blocks.canonical()], store.blocks.statistics()


class FailingSync:
    """Syncs of segment files fail while ``on``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on = False
        original = RealFile.sync

        def sync(file: RealFile) -> None:
            if self.on and file.path.suffix == ".seg":
                raise EngineError("the device failed", path=file.path)
            original(file)

        monkeypatch.setattr(RealFile, "sync", sync)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> FailingSync:
    return FailingSync(monkeypatch)


# -- tickets --------------------------------------------------------------------------------------------------------


def test_readers_see_a_ticket_only_once_it_is_durable(tmp_path: Path) -> None:
    with open_quick(f"sqlite:{tmp_path}") as store:
        commit(store)
        ticket = store.commit(store.draft(), hash=hash_of("ticket"), wait=False)
        following = store.commit(store.draft(), hash=hash_of("following"), wait=False)
        assert not ticket.durable
        assert store.tip is not None
        assert store.tip.height == 0
        assert store.blocks.get(ticket.block.hash) is None
        assert following.block.parent == ticket.block.hash
        assert following.wait() == following.block
        assert ticket.durable
        assert store.tip == following.block
        assert ticket.wait() == ticket.block


def test_buffered_readers_see_what_is_appended(tmp_path: Path) -> None:
    with open_quick(f"sqlite:{tmp_path}", durability="buffered", buffered_sync_seconds=3600.0) as store:
        commit(store)
        ticket = store.commit(store.draft(), hash=hash_of("ticket"), wait=False)
        assert store.tip == ticket.block
        assert not ticket.durable
        store.sync()
        assert ticket.durable
        late = store.commit(store.draft(), hash=hash_of("late"), wait=False)
        store.flush()  # a flush never writes rows of a frame that could be lost
        assert late.durable


def test_buffered_commits_become_durable_by_themselves(tmp_path: Path) -> None:
    with open_quick(f"sqlite:{tmp_path}", durability="buffered", buffered_sync_seconds=0.01) as store:
        ticket = store.commit(store.draft(), hash=hash_of("ticket"), wait=False)
        waited = threading.Event()
        for _ in range(500):
            if ticket.durable:
                break
            waited.wait(0.01)
        assert ticket.durable


# -- poison ---------------------------------------------------------------------------------------------------------


def test_a_failed_sync_poisons_and_memory_stays_at_what_is_durable(tmp_path: Path, failing: FailingSync) -> None:
    blocks = filled(f"sqlite:{tmp_path}")
    store = open_quick(tmp_path)
    before = visible(store)
    failing.on = True
    with pytest.raises(EngineError):
        store.add(make(blocks[-1], "lost"))
    failing.on = False
    assert visible(store) == before
    assert store.draft().parent == store.tip
    calls: list[Callable[[], object]] = [
        lambda: store.add(make(blocks[-1], "other")),
        lambda: commit(store),
        lambda: store.finalize(2),
        lambda: store.orphan(blocks[-1].hash, reason="x"),
        lambda: store.safety.save(ME, (1,), b""),
        store.sync,
        store.flush,
    ]
    for call in calls:
        with pytest.raises(PoisonedError):
            call()
    assert visible(store) == before
    assert store.blocks.header(store.blocks.load(blocks[3].hash)) == blocks[3].header
    store.close()
    with open_quick(tmp_path) as again:
        # The failed frame was written and never acknowledged: it may be there or not, whole, and nothing else.
        assert again.tip is not None
        assert again.tip.hash in (blocks[-1].hash, make(blocks[-1], "lost").hash)
        assert again.tip.height - len(blocks) in (-1, 0)
        commit(again)


def test_everything_after_the_last_durable_ticket_is_dropped(tmp_path: Path, failing: FailingSync) -> None:
    store = open_quick(f"sqlite:{tmp_path}")
    commit(store)
    before = visible(store)
    tickets = [store.commit(store.draft(), hash=hash_of(name), wait=False) for name in range(5)]
    failing.on = True
    with pytest.raises(EngineError):
        tickets[2].wait()
    failing.on = False
    for ticket in tickets:
        assert not ticket.durable
        with pytest.raises(PoisonedError):
            ticket.wait()
    assert visible(store) == before
    assert store.draft().height == 1
    store.close()


def test_a_failed_write_poisons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = filled(f"sqlite:{tmp_path}")
    store = open_quick(tmp_path)
    commit(store)
    before = visible(store)
    with monkeypatch.context() as patch:

        def fail(_fd: int, _data: bytes, _offset: int) -> int:
            raise OSError(errno.EIO, "injected")

        patch.setattr(os, "pwrite", fail)
        with pytest.raises(EngineError):
            commit(store, "lost")
    with pytest.raises(PoisonedError):
        commit(store, "other")
    assert visible(store) == before
    store.close()
    with open_quick(tmp_path) as again:
        assert visible(again) == before
        assert again.tip is not None
        assert again.tip.height == len(blocks)


def test_many_threads_commit_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    root = make(None)
    done: list[bytes] = []
    with open_quick(f"sqlite:{tmp_path}", fork_choice="manual") as store:
        store.add(root)

        def work(name: int) -> None:
            for block in chain_of(root, 10, name + 1):
                store.add(block)
                done.append(block.hash)

        threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(done) == 40
    with open_quick(tmp_path) as store:
        assert all(store.has(block_hash) for block_hash in done)
        assert store.blocks.statistics()["blocks"] == 41


# -- safety ---------------------------------------------------------------------------------------------------------


def test_positions_only_rise(tmp_path: Path) -> None:
    with open_quick(f"sqlite:{tmp_path}") as store:
        with pytest.raises(SafetyStateMissing):
            store.safety.load(ME)
        assert store.safety.save(ME, (3, 1), b"a")
        assert not store.safety.save(ME, (3, 1), b"a")
        with pytest.raises(EquivocationError):
            store.safety.save(ME, (3, 1), b"b")
        for lower in ((3, 0), (2, 99), (3,), (0,)):
            with pytest.raises(SafetyError):
                store.safety.save(ME, lower, b"a")
        assert store.safety.save(ME, (3, 2), b"c")
        assert store.safety.save(b"other", (0,), b"")
    with open_quick(tmp_path) as store:
        record = store.safety.load(ME)
        assert (record.position, record.payload) == ((3, 2), b"c")
        assert store.safety.identities() == [b"other", ME]
        with pytest.raises(EquivocationError):
            store.safety.save(ME, (3, 2), b"d")


@pytest.mark.parametrize(
    ("identity", "position", "payload"),
    [
        (b"", (1,), b""),
        (bytes(129), (1,), b""),
        ("text", (1,), b""),
        (ME, (), b""),
        (ME, (1,) * 9, b""),
        (ME, (-1,), b""),
        (ME, (2**64,), b""),
        (ME, (True,), b""),
        (ME, [1], b""),
        (ME, (1,), bytes(64 * 1024 + 1)),
    ],
)
def test_bad_records_are_refused(identity: bytes, position: tuple[int, ...], payload: bytes) -> None:
    store = open_quick("memory:")
    with pytest.raises((InvalidInputError, LimitExceeded)):
        store.safety.save(identity, position, payload)
    assert store.safety.identities() == []


def test_a_vote_is_in_the_frame_of_its_block(tmp_path: Path) -> None:
    with open_quick(f"sqlite:{tmp_path}") as store:
        commit(store, safety=(ME, (1,), b"vote"))
        with pytest.raises(EquivocationError):
            commit(store, "other", safety=(ME, (1,), b"other"))
        with pytest.raises(SafetyError):
            commit(store, "other", safety=(ME, (0,), b"vote"))
        assert store.tip is not None
        assert store.tip.height == 0
        commit(store, "again", safety=(ME, (1,), b"vote"))
        commit(store, "next", safety=(ME, (2,), b"vote"))
    with open_quick(tmp_path) as store:
        assert store.safety.load(ME).position == (2,)


def test_the_newest_records_are_in_every_segment(tmp_path: Path) -> None:
    with open_quick(f"sqlite:{tmp_path}", segment_bytes_max=1024 * 1024, compression="none") as store:
        for number in range(3):
            store.safety.save(ME, (number,), b"x")
        for block in chain_of(None, 3):
            store.add(Block(block.hash, block.parent, block.height, b"", bytes(700_000)))
    segments = sorted((tmp_path / "journal").glob("*.seg"))
    assert len(segments) >= 3
    assert all(ME in segment.read_bytes()[:4096] for segment in segments[1:])
    shutil.rmtree(tmp_path / "views")
    with open_quick(tmp_path) as store:
        assert store.safety.load(ME).position == (2,)


def test_a_copy_may_not_sign_until_its_fence_is_lifted(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with open_quick(f"sqlite:{first}") as store:
        assert not store.safety.fenced
        store.safety.save(ME, (5,), b"vote")
    shutil.copytree(first, second)
    with open_quick(first) as store:
        assert not store.safety.fenced
    for _ in range(2):
        with open_quick(second) as store:
            assert store.safety.fenced
            assert store.safety.load(ME).position == (5,)
            with pytest.raises(FencedError):
                store.safety.save(ME, (6,), b"vote")
            with pytest.raises(FencedError):
                commit(store, safety=(b"new", (1,), b""))
            commit(store)  # blocks without a vote are no promise
    with open_quick(second) as store:
        store.safety.lift_fence(ME, (10,))
        for low in ((6,), (10,)):
            with pytest.raises(FencedError):
                store.safety.save(ME, low, b"vote")
        with pytest.raises(FencedError):
            store.safety.save(b"new", (11,), b"")
        assert store.safety.save(ME, (10, 1), b"vote")
    with open_quick(second) as store:
        assert store.safety.save(ME, (11,), b"vote")
        with pytest.raises(FencedError):
            store.safety.save(b"new", (11,), b"")


def test_a_lifted_fence_is_no_leave_for_the_next_copy(tmp_path: Path) -> None:
    first, second, third = tmp_path / "first", tmp_path / "second", tmp_path / "third"
    with open_quick(f"sqlite:{first}") as store:
        store.safety.save(ME, (5,), b"vote")
    shutil.copytree(first, second)
    with open_quick(second) as store:
        store.safety.lift_fence(ME, (10,))
    shutil.copytree(second, third)
    with open_quick(third) as store:
        with pytest.raises(FencedError):
            store.safety.save(ME, (11,), b"vote")
    shutil.rmtree(third / "views")
    with open_quick(third) as store:
        with pytest.raises(FencedError):
            store.safety.save(ME, (11,), b"vote")


def test_moving_it_back_does_not_lift_the_fence(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with open_quick(f"sqlite:{first}") as store:
        store.safety.save(ME, (5,), b"vote")
    shutil.copytree(first, second)
    shutil.rmtree(first)
    with open_quick(second) as store:
        assert store.safety.fenced
    shutil.copytree(second, first)
    with open_quick(first) as store:
        assert store.safety.fenced
    shutil.rmtree(first / "views")
    with open_quick(first) as store:
        assert store.safety.fenced
        with pytest.raises(FencedError):
            store.safety.save(ME, (6,), b"vote")


def test_the_number_of_identities_is_bounded() -> None:
    store = open_quick("memory:")
    for number in range(64):
        store.safety.save(str(number).encode(), (1,), b"")
    with pytest.raises(LimitExceeded):
        store.safety.save(b"one more", (1,), b"")
    assert store.safety.save(b"7", (2,), b"")


def test_a_record_that_was_not_made_durable_is_not_loaded(tmp_path: Path, failing: FailingSync) -> None:
    store = open_quick(f"sqlite:{tmp_path}")
    store.safety.save(ME, (1,), b"first")
    failing.on = True
    with pytest.raises(EngineError):
        store.safety.save(ME, (2,), b"second")
    failing.on = False
    with pytest.raises(HoldfastError):
        store.safety.save(ME, (2,), b"second")
    store.close()
    with open_quick(tmp_path) as again:
        assert again.safety.load(ME).position in ((1,), (2,))
