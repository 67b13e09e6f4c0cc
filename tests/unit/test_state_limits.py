"""Bad input to the state: refused with a typed error, and nothing is changed by it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import holdfast
from holdfast import Store
from holdfast.errors import (
    BlockNotFound,
    ClosedError,
    FinalityError,
    HoldfastError,
    InvalidInputError,
    LimitExceeded,
    NotFoundError,
    ParentMismatch,
    PrunedError,
    ReadOnlyError,
    StateError,
    ViewExpired,
)
from holdfast.state import draft as draft_module
from tests.unit.state_support import assert_tip, commit, commit_draft, die, grown, large, open_state_store, root_of
from tests.unit.store_support import hash_of, quick

LOOK_ALIKE = b"HOLDFAST-BLOB" + bytes(40)
BAD_KEYS: list[tuple[object, type[HoldfastError]]] = [
    (b"", InvalidInputError),
    (b"k" * 401, LimitExceeded),
    ("text", InvalidInputError),
    (7, InvalidInputError),
    (None, InvalidInputError),
    (bytearray(b"key"), InvalidInputError),
    (memoryview(b"key"), InvalidInputError),
]
BAD_VALUES: list[tuple[object, type[HoldfastError]]] = [
    (b"", InvalidInputError),
    (LOOK_ALIKE, InvalidInputError),
    ("text", InvalidInputError),
    (1, InvalidInputError),
    (bytearray(b"value"), InvalidInputError),
    (b"v" * (64 * 1024 * 1024 + 1), LimitExceeded),
]
START = {b"a": b"1", b"b": b"2"}


@pytest.fixture
def store() -> Iterator[Store]:
    with open_state_store("memory:") as opened:
        commit(opened, 0, START)
        yield opened


@pytest.mark.parametrize(("key", "error"), BAD_KEYS)
def test_a_bad_key_is_refused_everywhere(store: Store, key: object, error: type[HoldfastError]) -> None:
    draft = store.draft()
    state = draft.state
    bad: bytes = key  # type: ignore[assignment]
    for action in (
        lambda: state.__setitem__(bad, b"v"),
        lambda: state.__delitem__(bad),
        lambda: state.get(bad),
        lambda: state.get_many([b"a", bad]),
        lambda: state[bad],
        lambda: store.state.get(bad),
        lambda: store.state.get_many([bad]),
        lambda: store.state[bad],
        lambda: store.state.at(0).get(bad),
        lambda: store.state.prove(bad),
        lambda: store.state.prove_many([b"a", bad]),
    ):
        with pytest.raises(error):
            action()
    if isinstance(key, (bytes, str, int)) or key is None:  # others cannot be a key of a dictionary
        with pytest.raises(error):
            state.update({b"c": b"good", bad: b"v"})
    assert not draft.state.changed
    assert state.root() == root_of(START)
    commit_draft(store, draft, 1)
    assert_tip(store, START)


@pytest.mark.parametrize(("value", "error"), BAD_VALUES)
def test_a_bad_value_is_refused(store: Store, value: object, error: type[HoldfastError]) -> None:
    draft = store.draft()
    bad: bytes = value  # type: ignore[assignment]
    with pytest.raises(error):
        draft.state[b"c"] = bad
    with pytest.raises(error):
        draft.state.update({b"a": b"changed", b"b": None, b"c": bad, b"d": b"x"})
    assert not draft.state.changed
    assert draft.state.get(b"a") == b"1"
    assert dict(draft.state.scan()) == START


def test_what_only_resembles_a_reference_is_a_value(store: Store) -> None:
    values = {
        b"short": LOOK_ALIKE[:-1],
        b"long": LOOK_ALIKE + b"x",
        b"other": b"HOLDFAST-BLOC" + bytes(40),
        b"edge": large(1, 65_536),
        b"over": large(2, 65_537),
    }
    commit(store, 1, values)
    assert_tip(store, START | values)
    assert store.state.get_many(list(values)) == list(values.values())


def test_keys_and_values_at_their_limits_are_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {b"k" * 400: b"v", b"\x00": b"\x00", b"\xff" * 400: b"\xff"}
    commit(store, 1, values)
    assert_tip(store, START | values)


def test_too_many_changes_are_refused_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft_module, "STATE_CHANGES_MAX", 5)
    draft = store.draft()
    draft.state.update({b"%d" % number: b"x" for number in range(5)})
    with pytest.raises(LimitExceeded):
        draft.state[b"sixth"] = b"x"
    with pytest.raises(LimitExceeded):
        draft.state.update({b"sixth": b"x", b"seventh": b"x"})
    assert b"sixth" not in draft.state
    monkeypatch.setattr(draft_module, "STATE_CHANGES_BYTES_MAX", 10)
    other = store.draft()
    other.state[b"aa"] = b"12345678"
    with pytest.raises(LimitExceeded):
        other.state[b"b"] = b"x"
    assert dict(other.state.scan()) == START | {b"aa": b"12345678"}


def test_the_tree_may_not_outgrow_its_memory(store: Store) -> None:
    with open_state_store("memory:", tree_bytes_max=1024 * 1024) as small:
        commit(small, 0, START)
        draft = small.draft()
        draft.state.update({b"key/%d" % number: b"x" for number in range(20_000)})
        with pytest.raises(LimitExceeded) as caught:
            commit_draft(small, draft, 1)
        assert "tree_bytes_max" in str(caught.value)
        assert_tip(small, START)
        commit(small, 2, {b"c": b"3"})
        assert_tip(small, START | {b"c": b"3"})


# -- the life of a draft --------------------------------------------------------------------------------------------


def test_a_committed_draft_is_done(store: Store) -> None:
    draft = store.draft()
    draft.state[b"c"] = b"3"
    state = draft.state
    commit_draft(store, draft, 1)
    for action in (
        lambda: state.__setitem__(b"d", b"4"),
        lambda: state.__delitem__(b"a"),
        lambda: state.update({b"d": b"4"}),
        lambda: state.get(b"a"),
        lambda: list(state.scan()),
    ):
        with pytest.raises(StateError):
            action()
    for name in (1, 2):
        with pytest.raises(StateError):
            commit_draft(store, draft, name)
    assert_tip(store, START | {b"c": b"3"})


def test_root_is_that_of_the_writes_so_far(store: Store) -> None:
    state = store.draft().state
    assert state.root() == state.root() == root_of(START)
    state[b"c"] = b"3"
    first = state.root()
    assert first == state.root() == root_of(START | {b"c": b"3"})
    state[b"c"] = b"4"
    assert state.root() == root_of(START | {b"c": b"4"})
    del state[b"c"]
    assert state.root() == root_of(START)
    state[b"c"] = b"3"
    assert state.root() == first
    state.update({})
    assert state.root() == first


def test_a_write_of_the_same_value_and_a_removal_of_nothing_change_no_root(store: Store) -> None:
    info = commit(store, 1, {b"a": b"1", b"never": None})
    assert info.state_root == root_of(START)
    assert_tip(store, START)


def test_a_draft_whose_parent_left_becomes_a_side_block(store: Store) -> None:
    first = store.tip
    assert first is not None
    parent = commit(store, 1, {b"c": b"3"})
    draft = store.draft()
    draft.state[b"d"] = b"4"
    rival = commit(store, 2, {b"r": b"x"}, first, work=2)
    assert store.tip == rival
    side = commit_draft(store, draft, 3, work=0)
    assert side.state_root == root_of(START | {b"c": b"3", b"d": b"4"})
    assert not store.blocks.is_canonical(side)
    assert_tip(store, START | {b"r": b"x"})
    assert store.reorg(side.hash) is not None
    assert_tip(store, START | {b"c": b"3", b"d": b"4"})
    assert store.blocks.load(parent.hash).state_root == parent.state_root


def test_a_draft_first_used_after_its_parent_left_sees_its_parent(store: Store) -> None:
    first = store.tip
    assert first is not None
    parent = commit(store, 1, {b"c": b"3"})
    draft = store.draft()
    commit(store, 2, {b"r": b"x"}, first, work=2)
    assert draft.parent == parent
    assert dict(draft.state.scan()) == START | {b"c": b"3"}


def test_a_draft_of_an_empty_store_is_not_one_on_its_tip() -> None:
    with open_state_store("memory:") as store:
        early, late = store.draft(), store.draft()
        early.state[b"a"] = b"early"
        commit(store, 0, START)
        with pytest.raises(ParentMismatch):
            late.state.get(b"a")
        with pytest.raises(ParentMismatch):
            commit_draft(store, early, 1)
        assert_tip(store, START)


def test_a_draft_that_is_not_committed_leaves_nothing(store: Store) -> None:
    before = store.statistics()["journal"]
    for number in range(20):
        draft = store.draft()
        draft.state[b"c%d" % number] = b"x"
        draft.state.root()
        del draft
    assert store.statistics()["journal"] == before
    assert store.statistics()["views"]["pins"] == 0  # type: ignore[index]
    assert_tip(store, START)


def test_a_draft_on_a_pruned_parent_is_refused(tmp_path: Path) -> None:
    with open_state_store(f"sqlite:{tmp_path}", max_reorg_depth=2, proof_window_blocks=0) as store:
        chain = grown(store, [{b"a": b"%d" % step} for step in range(8)])
        store.flush()
        old = chain[1][0]
        draft = store.draft(old.hash)
        with pytest.raises(PrunedError) as caught:
            draft.state.get(b"a")
        assert "least_readable" in caught.value.context
        with pytest.raises(PrunedError):
            store.state.prove(b"a", height=1)
        with pytest.raises(FinalityError):
            commit_draft(store, store.draft(old.hash), "too deep")
        assert store.state.at(1).get(b"a") == b"1"
        assert_tip(store, {b"a": b"7"})


def test_heights_that_are_none(store: Store) -> None:
    for height in (-1, 2**63, "0", None, 1.0, True):
        with pytest.raises(InvalidInputError):
            store.state.at(height)  # type: ignore[arg-type]
    with pytest.raises(BlockNotFound):
        store.state.at(1)
    with pytest.raises(NotFoundError):
        store.state[b"absent"]
    with pytest.raises(BlockNotFound):
        store.draft(hash_of("nobody"))


def test_bounds_of_scans_are_bytes(store: Store) -> None:
    for reader in (store.state, store.draft().state, store.state.at(0)):
        for arguments in ({"prefix": "a"}, {"start": "a"}, {"stop": 1}, {"start": bytearray(b"a")}):
            with pytest.raises(InvalidInputError):
                list(reader.scan(**arguments))
        assert list(reader.scan(start=b"b", stop=b"a")) == []
        assert list(reader.scan(b"a", start=b"b")) == []
        assert list(reader.scan(b"b", stop=b"a")) == []
        assert list(reader.scan(b"\xff" * 500)) == []


def test_a_closed_store_answers_nothing(tmp_path: Path) -> None:
    store = open_state_store(f"sqlite:{tmp_path}")
    commit(store, 0, START)
    draft = store.draft()
    state = store.state
    old = store.state.at(0)
    assert old.get(b"a") == b"1"
    store.close()
    for action in (
        store.draft,
        lambda: draft.state.get(b"a"),
        lambda: state.get(b"a"),
        lambda: state.prove(b"a"),
        lambda: old.get(b"a"),
    ):
        with pytest.raises((ClosedError, ViewExpired)):
            action()


def test_a_follower_takes_no_drafts(tmp_path: Path) -> None:
    with open_state_store(f"sqlite:{tmp_path}") as store:
        commit(store, 0, START)
        with holdfast.open(tmp_path, read_only=True, settings=quick()) as follower:
            with pytest.raises(ReadOnlyError):
                follower.draft()
            assert dict(follower.state.scan()) == START
            assert dict(follower.state.at(0).scan()) == START
            assert follower.state.root == root_of(START)


def test_an_old_state_says_when_its_block_was_replaced(tmp_path: Path) -> None:
    with open_state_store(f"sqlite:{tmp_path}") as store:
        first = commit(store, 0, START)
        commit(store, 1, {b"a": b"2"})
        old, kept = store.state.at(1), store.state.at(0)
        commit(store, 2, {b"b": None}, first, work=2)
        for action in (lambda: old.get(b"a"), lambda: list(old.scan()), lambda: old.get_many([b"a"])):
            with pytest.raises(ViewExpired):
                action()
        assert dict(kept.scan()) == START
        assert dict(store.state.at(1).scan()) == {b"a": b"1"}
        die(store)
