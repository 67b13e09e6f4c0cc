"""What an adversarial review of the provable state found, so that it stays mended."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast.errors import ClosedError, InvalidInputError, LimitExceeded, PrunedError, ViewExpired
from holdfast.merkle.multiproof import verify_many
from holdfast.merkle.verify import verify_proof
from holdfast.state.api import MutableState
from holdfast.store.chain import CustomChain
from holdfast.types import Block, BlockInfo
from tests.unit.state_support import assert_tip, commit, open_state_store, writer_backend
from tests.unit.store_support import hash_of, make


def finishes(action: Callable[[], object]) -> None:
    """``action`` ends; a thread of its own hangs if it does not."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001  # raised below
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits for ever"
    if failures:
        raise failures[0]


# -- what the garbage collector releases -----------------------------------------------------------------------------


def test_a_draft_that_is_collected_in_the_middle_of_a_commit_does_not_stop_it() -> None:
    """A draft in a cycle is released by the collector, which may run where the overlay's lock is held."""
    with open_state_store("memory:") as store:
        commit(store, 0, {b"key": b"value"})
        overlay = writer_backend(store).views._overlay

        def collect() -> None:
            draft = store.draft()
            assert draft.state.get(b"key") == b"value"
            cycle: list[object] = [draft]
            cycle.append(cycle)
            del draft, cycle
            with overlay.lock:
                gc.collect(1)

        gc.disable()
        try:
            finishes(collect)
        finally:
            gc.enable()
        assert writer_backend(store).views.stats.pins == 0
        commit(store, 1, {b"key": b"other"})
        store.flush()
        assert store.state[b"key"] == b"other"


def test_a_reader_of_an_old_height_is_released_where_its_own_lock_is_held() -> None:
    with open_state_store("memory:", history="off") as store:
        commit(store, 0, {b"key": b"value"})
        old = store.state.at(0)
        commit(store, 1, {b"key": b"other"})
        (pin,) = writer_backend(store).views._pins._active
        store.flush()
        assert old[b"key"] == b"value"
        assert pin._frozen

        def release() -> None:
            with pin._lock:
                pin.release()

        finishes(release)
        assert writer_backend(store).views.stats.pins == 0


# -- readers while a reorg becomes visible ---------------------------------------------------------------------------


def test_an_old_height_is_never_that_of_the_branch_that_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of a reorg are visible a moment before the tip is: whoever reads then must notice."""
    with open_state_store("memory:") as store:
        first = commit(store, 0, {b"key": b"root"})
        commit(store, "a", {b"key": b"a"})
        other = commit(store, "b", {b"key": b"b"}, first)
        old = store.state.at(1)
        assert old[b"key"] == b"a"
        views = writer_backend(store).views
        seen: list[object] = []
        show = views.set_visible

        def look(seq: int) -> None:
            show(seq)
            for read in (lambda: old[b"key"], lambda: dict(old.scan()), lambda: store.state.at(1)[b"key"]):
                try:
                    seen.append(read())
                except ViewExpired:
                    seen.append("expired")
            seen.append(store.state.history(b"key"))

        monkeypatch.setattr(views, "set_visible", look)
        store.reorg(other.hash)
        assert seen == ["expired", "expired", b"b", [(0, b"root"), (1, b"b")]]


def test_what_two_reorgs_in_one_read_would_mix_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_state_store("memory:") as store:
        first = commit(store, 0, {b"key": b"root"})
        mine = commit(store, "a", {b"key": b"a"})
        other = commit(store, "b", {b"key": b"b"}, first)
        old = store.state.at(1)
        views = writer_backend(store).views
        read_at = views.read_at
        away = [True]

        def reorganised(*args: Any) -> bytes | None:
            if not away:
                return read_at(*args)
            away.clear()
            store.reorg(other.hash)
            value = read_at(*args)
            store.reorg(mine.hash)
            return value

        monkeypatch.setattr(views, "read_at", reorganised)
        assert old[b"key"] == b"a"
        away.append(True)
        assert dict(old.scan()) == {b"key": b"a"}
        away.append(True)
        assert store.state.history(b"key") == [(0, b"root"), (1, b"a")]
        away.append(True)
        assert dict(store.state.changes(0, 1)) == {b"key": [(0, b"root"), (1, b"a")]}


def test_the_history_of_a_key_ends_at_the_tip_that_its_rows_are_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that was orphaned still lies in the overlay, above the tip."""
    with open_state_store("memory:") as store:
        commit(store, 0, {b"key": b"root"})
        commit(store, 1, {b"key": b"one"})
        gone = commit(store, 2, {b"key": b"two"})
        views = writer_backend(store).views
        seen: list[object] = []
        show = views.set_visible

        def look(seq: int) -> None:
            show(seq)
            seen.append(store.state.history(b"key"))

        monkeypatch.setattr(views, "set_visible", look)
        store.orphan(gone.hash, reason="for the test")
        assert seen == [[(0, b"root"), (1, b"one")]]


def test_nothing_is_proved_about_a_first_block_that_is_not_durable_yet() -> None:
    with open_state_store("memory:") as store:
        draft = store.draft()
        draft.state[b"key"] = b"value"
        ticket = store.commit(draft, hash=hash_of("first"), wait=False)
        proof, many = store.state.prove(b"key"), store.state.prove_many([b"key"])
        assert (proof.root, proof.value, proof.block) == (store.state.root, None, None)
        proof.verify(store.state.root, b"key", None)
        many.verify(store.state.root, {b"key": None})
        assert store.state.statistics()["keys"] == 0
        ticket.wait()
        proof = store.state.prove(b"key")
        proof.verify(store.state.root, b"key", b"value")
        assert proof.block == store.tip


# -- blocks that wait ------------------------------------------------------------------------------------------------


class Reads(CustomChain):
    """A chain whose blocks read a key that the first one has not written."""

    def execute(self, block: Block, parent: BlockInfo | None, state: MutableState) -> bytes | None:
        if parent is not None and parent.height:
            assert state[b"missing"]
        state[b"key"] = block.hash
        return None

    def state_root(self, block: Block) -> bytes | None:
        return None


def test_a_commit_does_not_fail_because_a_block_that_waited_for_it_cannot_be_executed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with open_state_store("memory:", chain=Reads()) as store:
        first = make(None)
        second = make(first)
        third = make(second)
        store.add(first)
        store.add(third, wait_for_parent=True)
        draft = store.draft()
        draft.state[b"key"] = second.hash
        with caplog.at_level(logging.WARNING, logger="holdfast"):
            assert store.commit(draft, hash=second.hash).height == 1
        assert store.tip is not None
        assert store.tip.hash == second.hash
        assert not store.has(third.hash)
        assert "a block that waited for its parent was not stored" in caplog.text


# -- after the end ---------------------------------------------------------------------------------------------------


def test_every_read_of_the_state_is_refused_after_a_fork(tmp_path: Path) -> None:
    """Also where another thread of the parent held the overlay's lock, and by what was opened before."""
    with open_state_store(tmp_path / "store") as store:
        commit(store, 0, {b"key": b"value"})
        commit(store, 1, {b"key": b"other"})
        store.flush()
        old, draft = store.state.at(0), store.draft()
        assert draft.state[b"key"] == b"other"
        reads: list[Callable[[], object]] = [
            lambda: store.state.get(b"key"),
            lambda: store.state.get_many([b"key"]),
            lambda: list(store.state.scan()),
            lambda: store.state.root,
            lambda: store.state.at(0),
            lambda: store.state.history(b"key"),
            lambda: store.state.prove(b"key"),
            store.state.statistics,
            lambda: old[b"key"],
            lambda: list(old.scan()),
            lambda: draft.state.get(b"key"),
            lambda: list(draft.state.scan()),
        ]
        with writer_backend(store).views._overlay.lock:
            pid = os.fork()
            if pid == 0:
                signal.alarm(20)
                refused = 0
                for read in reads:
                    try:
                        read()
                    except ClosedError:
                        refused += 1
                os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == len(reads)
        assert (old[b"key"], draft.state[b"key"], store.state[b"key"]) == (b"value", b"other", b"other")


def test_the_root_of_a_closed_store_is_refused_as_its_values_are() -> None:
    store = open_state_store("memory:")
    commit(store, 0, {b"key": b"value"})
    store.close()
    for read in (lambda: store.state.root, store.state.statistics, lambda: store.state.prove(b"key")):
        with pytest.raises(ClosedError, match="the store is closed"):
            read()


# -- limits ----------------------------------------------------------------------------------------------------------


def test_only_the_last_write_to_a_key_counts_for_the_limits_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.state.draft.STATE_CHANGES_BYTES_MAX", 100)
    monkeypatch.setattr("holdfast.state.draft.STATE_CHANGES_MAX", 3)
    with open_state_store("memory:") as store:
        state = store.draft().state
        for number in range(50):
            state[b"key"] = bytes([number]) * (1 + number % 40)
            state.update({b"key": b"x" * 40, b"other": b"y" * 40})
            del state[b"gone"]
        with pytest.raises(LimitExceeded, match="too many keys"):
            state[b"k"] = b"v"
        with pytest.raises(LimitExceeded, match="too many bytes"):
            state[b"key"] = b"x" * 49
        state[b"key"] = b"x" * 48  # 3 + 48, 5 + 40, 4
        assert dict(state.scan()) == {b"key": b"x" * 48, b"other": b"y" * 40}


# -- verifiers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [None, "text", bytearray(b"x" * 32), memoryview(b"x" * 32), 5, [1]])
def test_a_verifier_says_so_when_it_is_given_something_else_than_bytes(wrong: Any) -> None:
    with open_state_store("memory:") as store:
        commit(store, 0, {b"key": b"value"})
        one, many, root = store.state.prove(b"key"), store.state.prove_many([b"key"]), store.state.root
    calls: list[Callable[[], None]] = [
        lambda: verify_proof(wrong, root, b"key", b"value"),
        lambda: verify_proof(one.data, wrong, b"key", b"value"),
        lambda: verify_proof(one.data, root, wrong, b"value"),
        lambda: verify_many(wrong, root, {b"key": b"value"}),
        lambda: verify_many(many.data, wrong, {b"key": b"value"}),
    ]
    if wrong is not None:
        calls.append(lambda: verify_proof(one.data, root, b"key", wrong))
        calls.append(lambda: verify_many(many.data, root, {b"key": wrong}))
    for call in calls:
        with pytest.raises(InvalidInputError, match="is bytes, not"):
            call()
    verify_proof(one.data, root, b"key", b"value")
    verify_many(many.data, root, {b"key": b"value"})


# -- followers -------------------------------------------------------------------------------------------------------


def test_a_follower_says_that_undo_is_gone_and_not_that_the_store_is_damaged(tmp_path: Path) -> None:
    """The writer flushes far at once and stores no undo of the older blocks, which the follower has in its overlay."""
    url = f"sqlite:{tmp_path / 'store'}"
    with open_state_store(url, history="off", max_reorg_depth=2, proof_window_blocks=1) as store:
        commit(store, 0, {b"often": b"0", b"once": b"0"})
        store.flush()
        with holdfast.open(url, read_only=True) as follower:
            for number in range(1, 21):
                changes = {b"often": b"%d" % number}
                commit(store, number, changes | {b"once": b"10"} if number == 10 else changes)
            follower.refresh()
            held = follower.state.at(5)
            store.flush()
            assert (held[b"often"], held[b"once"]) == (b"5", b"0")
            with pytest.raises(PrunedError, match="what undoes the blocks above it is gone") as caught:
                follower.state.at(5)
            assert caught.value.context["least_readable"] == writer_backend(store).views.undo_floor == 17
            with pytest.raises(PrunedError):
                follower.state.prove(b"once", height=5)
            assert follower.state.at(17)[b"often"] == b"17"
            follower.state.prove(b"once", height=17).verify(follower.state.at(17).root, b"once", b"10")


# -- snapshots -------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_verified_by_a_path_that_is_text_as_it_is_imported(tmp_path: Path) -> None:
    with open_state_store(tmp_path / "store") as store:
        commit(store, 0, {b"key": b"value"})
        made = store.export_snapshot(str(tmp_path / "snapshot"))
        assert holdfast.verify_snapshot(str(tmp_path / "snapshot"), store.state.root) == made
        assert holdfast.import_snapshot(str(tmp_path / "new"), str(tmp_path / "snapshot"), trust_manifest=True) == made


# -- drafts ----------------------------------------------------------------------------------------------------------


def test_a_draft_of_another_store_with_another_state_is_refused() -> None:
    """The tree would be that of the other store, and the rows of this one."""
    first = make(None)
    with open_state_store("memory:") as store, open_state_store("memory:") as other:
        for place, value in ((store, b"mine"), (other, b"theirs")):
            draft = place.draft()
            draft.state[b"key"] = value
            place.commit(draft, hash=first.hash)
        draft = other.draft()
        draft.state[b"more"] = b"value"
        with pytest.raises(InvalidInputError, match="made by another store"):
            store.commit(draft, hash=hash_of("second"))
        assert_tip(store, {b"key": b"mine"})
        assert other.commit(draft, hash=hash_of("second")).height == 1


def test_a_draft_of_another_store_with_the_same_state_is_as_good_as_an_own_one() -> None:
    with open_state_store("memory:") as store, open_state_store("memory:") as other:
        for place in (store, other):
            commit(place, 0, {b"key": b"value"})
        draft = other.draft()
        draft.state[b"more"] = b"value"
        store.commit(draft, hash=hash_of("second"))
        assert_tip(store, {b"key": b"value", b"more": b"value"})
