"""``store.state.changes`` and ``statistics``, and the state of a snapshot, against states that are kept beside."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import holdfast
from holdfast.errors import BlockNotFound, PrunedError, StateError
from holdfast.merkle.api import JMT_SHA256

State = dict[bytes, bytes]
KEYS = [b"a", b"b", b"b\x00", b"c"]
BIG = b"big" * 40_000


def commit(store: holdfast.Store, name: str, now: State, before: State, parent: bytes | None = None) -> bytes:
    draft = store.draft(parent)
    for key in {*now, *before}:
        if key not in now:
            del draft.state[key]
        elif now[key] != before.get(key):
            draft.state[key] = now[key]
    digest = hashlib.sha256(name.encode()).digest()
    store.commit(draft, hash=digest, header=b"h")
    return digest


def expected(states: list[State], first: int, last: int) -> list[tuple[bytes, list[tuple[int, bytes | None]]]]:
    found = []
    for key in sorted({key for state in states[first : last + 1] for key in state}):
        values = [(first, states[first].get(key))]
        values += [
            (height, states[height].get(key))
            for height in range(first + 1, last + 1)
            if states[height].get(key) != states[height - 1].get(key)
        ]
        if len(values) > 1:
            found.append((key, values))
    return found


rows = st.dictionaries(st.sampled_from(KEYS), st.sampled_from([b"1", b"2", BIG]))


@pytest.mark.slow
@given(st.lists(rows, min_size=2, max_size=9), st.lists(rows, max_size=4), st.integers(0, 8), st.integers(0, 8))
def test_changes_are_those_between_the_states(main: list[State], fork: list[State], cut: int, flushed: int) -> None:
    settings = holdfast.Settings(durability="sync")
    with holdfast.open("memory:", settings=settings) as store:
        hashes = []
        for height, state in enumerate(main):
            hashes.append(commit(store, f"main {height}", state, main[height - 1] if height else {}))
            if height == flushed:
                store.flush()
        states = list(main)
        at = cut % len(main)
        if fork and at + len(fork) >= len(main):  # longer: it takes over
            parent, before = hashes[at], main[at]
            for number, state in enumerate(fork):
                parent = commit(store, f"fork {number}", state, before, parent)
                before = state
            states = main[: at + 1] + fork
        assert store.tip is not None
        assert store.tip.height == len(states) - 1
        for first in range(len(states)):
            for last in range(first, len(states)):
                assert list(store.state.changes(first, last)) == expected(states, first, last)
        store.flush()
        assert list(store.state.changes(0, len(states) - 1)) == expected(states, 0, len(states) - 1)


def chain(store: holdfast.Store, heights: int) -> list[State]:
    states: list[State] = []
    for height in range(heights):
        states.append({b"k%d" % (number % 5): b"%d" % number for number in range(height, height + 3)})
        commit(store, f"block {height}", states[height], states[height - 1] if height else {})
    return states


def test_changes_stop_at_the_floor_also_where_single_heights_are_kept() -> None:
    with holdfast.open("memory:") as store:
        states = chain(store, 12)
        store.finalize(10)
        store.prune(blocks=4, every=3)
        assert store.state.at(3).get(b"k3") == states[3][b"k3"]
        with pytest.raises(PrunedError):
            list(store.state.changes(2, 11))
        for height in (3, 6):
            with pytest.raises(PrunedError) as error:
                list(store.state.changes(height, 11))
            assert error.value.context["least_readable"] == 7
        assert list(store.state.changes(7, 11)) == expected(states, 7, 11)
        with pytest.raises(BlockNotFound):
            list(store.state.changes(7, 12))


def test_without_a_history_nothing_is_said_about_changes() -> None:
    with holdfast.open("memory:", settings=holdfast.Settings(history="off")) as store:
        chain(store, 6)
        store.flush()
        for asked in (store.state.changes(1, 4), store.state.diff(1, 4)):
            with pytest.raises(StateError, match="without a history"):
                list(asked)
        found = store.state.statistics()
        assert (found["history_floor"], found["history_every"]) == (None, None)


def test_statistics_are_those_of_the_tip() -> None:
    with holdfast.open("memory:") as store:
        empty = store.state.statistics()
        assert (empty["root"], empty["keys"]) == (JMT_SHA256.null.hex(), 0)
        assert (empty["history_floor"], empty["proof_floor"]) == (None, None)
        states = chain(store, 12)
        found = store.state.statistics()
        assert (found["root"], found["keys"]) == (store.state.root.hex(), len(states[-1]))
        assert (found["history_floor"], found["history_every"], found["proof_floor"]) == (0, 0, 0)
        assert found["scheme"] == "jmt-sha256"
        assert isinstance(found["tree_bytes"], int)
        assert not {"keys", "tree_bytes"} & set(store.state.statistics(tree=False))
        store.finalize(9)
        store.prune(blocks=2, every=4)
        found = store.state.statistics()
        assert (found["history_floor"], found["history_every"]) == (8, 4)


def test_the_state_of_a_snapshot_stays_as_it_was() -> None:
    with holdfast.open("memory:") as store:
        states = chain(store, 8)
        with store.snapshot() as moment:
            for height, (before, now) in enumerate(pairwise([states[-1], {b"new": BIG}, {}]), 8):
                commit(store, f"later {height}", now, before)
                store.flush()
            assert dict(moment.state.scan()) == states[-1]
            assert moment.state.get(b"new") is None
            assert moment.tip is not None
            assert moment.tip.height == 7
        assert dict(store.state.scan()) == {}
