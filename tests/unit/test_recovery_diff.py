"""``diff``: where two stores part is found by few looks, and the keys that differ by walking down both trees."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import holdfast
from holdfast import Store
from holdfast.errors import (
    BlockNotFound,
    CorruptionError,
    ForeignStore,
    InvalidInputError,
    PrunedError,
    StateError,
    StoreNotFound,
)
from holdfast.merkle.api import SCHEMES, Tree
from holdfast.merkle.api import Path as TreePath
from holdfast.merkle.backend import backend_named
from holdfast.recovery.descent import Descent
from holdfast.recovery.diff import KEYS_MAX, StoreSource
from holdfast.recovery.diff_report import BlockFacts, KeyDifference
from holdfast.store.chain import ChainSpec, CustomChain
from holdfast.store.states import last_change
from tests.unit.state_support import JMT, commit, large, open_state_store
from tests.unit.store_support import hash_of

KEYS = [b"key %d" % number for number in range(40)]


def tree_of(values: dict[bytes, bytes], name: str = "pure") -> Tree:
    made = backend_named(name)
    return made.build(JMT, [made.hash_rows(JMT, list(values.items()))])


def backends() -> list[str]:
    try:
        backend_named("kernel")
    except LookupError:
        return ["pure"]
    return ["pure", "kernel"]


# -- down the trees -------------------------------------------------------------------------------------------------

_values = st.dictionaries(st.integers(0, 60).map(lambda n: b"k%d" % n), st.sampled_from([b"v", b"w"]), max_size=50)


@pytest.mark.parametrize("name", backends())
@given(one=_values, two=_values, start=st.binary(min_size=32, max_size=32))
@settings(max_examples=60, deadline=None)
def test_the_walk_finds_exactly_what_differs_in_order(
    name: str, one: dict[bytes, bytes], two: dict[bytes, bytes], start: bytes
) -> None:
    trees = tree_of(one, name), tree_of(two, name)
    wanted = sorted(sha256(key).digest() for key in one.keys() | two.keys() if one.get(key) != two.get(key))
    found = list(Descent(*trees).differences())
    assert [difference.key_hash for difference in found] == wanted
    for difference in found:
        for tree, leaf in zip(trees, difference[1:], strict=True):
            held = tree.path(difference.key_hash).leaf
            assert leaf == (held[1] if held is not None and held[0] == difference.key_hash else None)
    later = [difference.key_hash for difference in Descent(*trees).differences(start)]
    assert later == [key_hash for key_hash in wanted if key_hash >= start]


class Counted:
    """A tree that counts what it is asked."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.nodes = 0

    @property
    def root(self) -> bytes:
        return self._tree.root

    def path(self, key_hash: bytes) -> TreePath:
        found = self._tree.path(key_hash)
        self.nodes += len(found.siblings) + 1
        return found

    def records(self, start: bytes, limit: int) -> bytes:
        found = self._tree.records(start, limit)
        self.nodes += len(found) // 64
        return found


@pytest.mark.slow
@pytest.mark.parametrize("name", backends())
def test_the_walk_takes_time_in_proportion_to_the_difference(name: str) -> None:
    many = tree_of({b"%d" % number: b"value" for number in range(100_000)}, name)
    for changed in (1, 10, 100):
        other = many.update({b"%d" % (number * 977): b"other" for number in range(changed)}).tree
        one, two = Counted(many), Counted(other)
        walk = Descent(one, two)
        assert len(list(walk.differences())) == changed
        assert walk.visited < 700 * changed
        assert one.nodes + two.nodes <= walk.visited + 2
    nothing = Descent(many, many)
    assert list(nothing.differences()) == []
    assert nothing.visited == 2


@pytest.mark.parametrize("name", backends())
def test_against_an_empty_tree_every_leaf_is_read_once(name: str) -> None:
    many = tree_of({b"%d" % number: b"value" for number in range(20_000)}, name)
    walk = Descent(backend_named(name).empty(SCHEMES["jmt-sha256"]), many)
    assert len(list(walk.differences())) == 20_000
    assert walk.visited < 20_100


# -- two stores -----------------------------------------------------------------------------------------------------


def grow(store: Store, chance: random.Random, blocks: int, mark: str) -> None:
    for number in range(blocks):
        changes: dict[bytes, bytes | None] = {key: b"%d" % chance.randrange(9) for key in chance.sample(KEYS, 3)}
        commit(store, (mark, number), changes)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    """Two stores with 30 blocks in common, then 5 and 8 of their own."""
    with open_state_store(f"sqlite:{tmp_path / 'a'}") as a, open_state_store(f"rocksdb:{tmp_path / 'b'}") as b:
        for store in (a, b):
            grow(store, random.Random(3), 30, "both")
        grow(a, random.Random(4), 5, "a")
        grow(b, random.Random(5), 8, "b")
        yield a, b


def test_where_two_stores_part_and_how(pair: tuple[Store, Store]) -> None:
    a, b = pair
    report = holdfast.diff(a, b)
    assert (report.relation, report.same, report.facts, report.state) == ("diverged", False, {}, None)
    assert report.common == BlockFacts.of(a.blocks.load(a.blocks.hash_at(29) or b""), JMT.null)
    assert report.first is not None
    assert (report.first.a.height, report.first.b.hash) == (30, b.blocks.hash_at(30))
    assert report.first.parts == ("hash", "root")
    assert (report.tip_a and report.tip_a.height, report.tip_b and report.tip_b.height) == (34, 37)
    assert report.executed is None
    json.dumps(report.as_dict())


def test_the_keys_that_differ_with_both_values_and_their_last_change(pair: tuple[Store, Store]) -> None:
    a, b = pair
    for height in (30, 34):
        states = [dict(store.state.at(height).scan()) for store in pair]
        wanted = {key for key in KEYS if states[0].get(key) != states[1].get(key)}
        report = holdfast.diff(a, b, state=True, at_height=None if height == 30 else height)
        assert report.state is not None
        assert report.state.height == height
        assert [key.key for key in report.state.keys] == sorted(wanted, key=lambda key: sha256(key).digest())
        assert (report.state.root_a, report.state.root_b) == tuple(store.state.at(height).root for store in pair)
        for key in report.state.keys:
            for store, state, seen, changed in zip(
                pair, states, (key.a, key.b), (key.changed_a, key.changed_b), strict=True
            ):
                assert (seen.data if seen is not None else None) == state.get(key.key)
                history = [at for at, _ in store.state.history(key.key) if at <= height]
                known = history[-1] if len(history) > 1 or (history and state.get(key.key) and history[0]) else None
                if known is not None:
                    assert changed is not None
                    assert changed.height == known
        json.dumps(report.as_dict())


def test_a_listing_goes_on_where_it_ended(pair: tuple[Store, Store]) -> None:
    a, b = pair
    whole = holdfast.diff(a, b, at_height=34).state
    assert whole is not None
    assert whole.next_key is None
    found: list[KeyDifference] = []
    start = None
    while True:
        part = holdfast.diff(a, b, at_height=34, limit=2, from_key=start).state
        assert part is not None
        assert len(part.keys) <= 2
        found += part.keys
        start = part.next_key
        if start is None:
            break
    assert tuple(found) == whole.keys


def test_urls_are_opened_read_only_beside_a_writer_and_at_rest(pair: tuple[Store, Store], tmp_path: Path) -> None:
    a, b = pair
    wanted = holdfast.diff(a, b, state=True).as_dict()
    assert (
        holdfast.diff(tmp_path / "a", f"rocksdb:{tmp_path / 'b'}", state=True).as_dict() | {"b": wanted["b"]} == wanted
    )
    a.close()
    b.close()
    assert holdfast.diff(tmp_path / "a", tmp_path / "b", state=True).as_dict() == wanted


def test_equal_stores_and_one_that_is_behind(pair: tuple[Store, Store], tmp_path: Path) -> None:
    a, _ = pair
    assert holdfast.diff(a, a, state=True).same
    with open_state_store(tmp_path / "c") as behind:
        empty = holdfast.diff(a, behind)
        assert (empty.relation, empty.tip_b, empty.common) == ("nothing_shared", None, None)
        with pytest.raises(StateError, match="no state") as caught:
            holdfast.diff(a, behind, state=True)
        assert caught.value.context["store"] == str(tmp_path / "c")
        grow(behind, random.Random(3), 30, "both")
        report = holdfast.diff(a, behind, state=True)
        assert (report.relation, report.first, report.same) == ("b_behind", None, False)
        assert report.state is not None
        assert (report.state.height, report.state.keys, report.state.visited) == (29, (), 2)
        assert holdfast.diff(behind, a).relation == "a_behind"
        with pytest.raises(BlockNotFound) as missing:
            holdfast.diff(a, behind, at_height=30)
        assert missing.value.context["highest"] == 29


@given(shared=st.integers(1, 40), own=st.tuples(st.integers(0, 20), st.integers(0, 20)), reorged=st.booleans())
@settings(max_examples=25, deadline=None)
def test_the_search_finds_what_a_look_at_every_height_finds(shared: int, own: tuple[int, int], reorged: bool) -> None:
    """Why halving is right: a block names its parent, so with a block two chains share all that is below it."""
    with holdfast.open("memory:") as a, holdfast.open("memory:") as b:
        for mark, store, count in (("a", a, own[0]), ("b", b, own[1])):
            for number in range(shared):
                commit(store, ("both", number), None)
            root = store.blocks.at(shared // 2) if reorged and mark == "a" else store.tip
            for number in range(count):
                root = commit(store, (mark, number), None, root, work=3)
        report = holdfast.diff(a, b)
        tips = [store.tip.height if store.tip is not None else -1 for store in (a, b)]
        heights = range(min(tips) + 1)
        differ = [height for height in heights if a.blocks.hash_at(height) != b.blocks.hash_at(height)]
        assert differ == list(range(differ[0], min(tips) + 1)) if differ else True
        assert (report.first.a.height if report.first is not None else None) == (differ[0] if differ else None)
        assert report.reads <= 2 * (2 * len(heights).bit_length() + 4)


def test_the_same_block_with_another_root_is_named(tmp_path: Path) -> None:
    """A chain whose execution is not a function of the block: hashes agree, states do not."""
    with open_state_store(tmp_path / "a") as a, open_state_store(tmp_path / "b") as b:
        for number in range(50):
            for mark, store in (("a", a), ("b", b)):
                changes = {b"counter": b"%d" % number}
                if number == 37:
                    changes[b"clock"] = mark.encode()
                draft = store.draft()
                draft.state.update(changes)
                store.commit(draft, hash=hash_of("same", number), header=b"header")
        report = holdfast.diff(a, b, state=True)
        assert (report.relation, report.first, report.same) == ("equal", None, False)
        assert report.executed is not None
        assert (report.executed.a.height, report.executed.parts) == (37, ("root",))
        assert any("executed it differently" in note for note in report.notes)
        assert report.state is not None
        (key,) = report.state.keys
        assert (report.state.height, key.key) == (37, b"clock")
        assert key.changed_a == report.executed.a
        assert key.changed_b == report.executed.b
        assert report.reads <= 2 * 12


def test_large_values_are_told_by_length_and_hash(tmp_path: Path) -> None:
    with open_state_store(tmp_path / "a") as a, open_state_store(tmp_path / "b") as b:
        for mark, store in (("a", a), ("b", b)):
            commit(store, mark, {b"big": large(mark, 100_000), b"middle": large(mark, 300)})
        report = holdfast.diff(a, b, state=True)
        assert report.state is not None
        seen = {key.key: key.a for key in report.state.keys}
        for name, size in ((b"big", 100_000), (b"middle", 300)):
            value = seen[name]
            assert value is not None
            assert (value.length, value.sha256, value.data) == (size, sha256(large("a", size)).digest(), None)


def test_what_differs_in_the_facts_is_listed(tmp_path: Path) -> None:
    with (
        open_state_store(tmp_path / "a") as a,
        open_state_store(tmp_path / "b", scheme="ics23-smt") as b,
        open_state_store(tmp_path / "c", chain=CustomChain(ChainSpec(name="custom", id="other"))) as c,
    ):
        for store in (a, b, c):
            commit(store, "one", {b"k": b"v"})
        assert holdfast.diff(a, c, state=True).facts == {"id": ("", "other")}
        report = holdfast.diff(a, b)
        assert report.facts == {"scheme": ("jmt-sha256", "ics23-smt")}
        assert (report.same, report.executed) == (False, None)
        with pytest.raises(ForeignStore, match="different rules"):
            holdfast.diff(a, b, state=True)


def test_heights_whose_tree_is_gone(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"max_reorg_depth": 4, "proof_window_blocks": 4}
    for mark in ("a", "b"):
        with open_state_store(tmp_path / mark, **fields) as store:
            commit(store, "root", {b"k": b"v"})
            for number in range(60):
                commit(store, (mark, number), {b"k": b"%d" % number, b"who": mark.encode()})
    with open_state_store(tmp_path / "a", **fields) as a, open_state_store(tmp_path / "b", **fields) as b:
        floor = max(StoreSource(store).oldest_state() or 0 for store in (a, b))
        assert floor > 1
        report = holdfast.diff(a, b, state=True)
        assert report.first is not None
        assert report.first.a.height == 1
        assert report.state is not None
        assert report.state.height == floor
        assert any("are gone" in note for note in report.notes)
        with pytest.raises(PrunedError) as caught:
            holdfast.diff(a, b, at_height=floor - 1)
        assert caught.value.context["least_readable"] == floor


def test_rows_that_do_not_fit_the_tree_are_damage_and_the_store_is_named(
    pair: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    source = StoreSource(b)

    class Lying:
        def key_of(self, key_hash: bytes) -> bytes:
            return b"wrong"

        def value_of(self, key: bytes) -> bytes:
            return b"wrong"

    whole = source.state

    def state(info: holdfast.BlockInfo):  # type: ignore[no-untyped-def]
        from contextlib import contextmanager

        @contextmanager
        def held():  # type: ignore[no-untyped-def]
            with whole(info) as side:
                side.lookup = Lying()  # type: ignore[misc]
                yield side

        return held()

    monkeypatch.setattr(source, "state", state)
    with pytest.raises(CorruptionError) as caught:
        holdfast.diff(a, source, state=True)
    assert caught.value.context["store"] == source.name
    assert "verify --level state" in caught.value.remedy


def test_the_last_change_of_a_key_is_found_from_few_rows(tmp_path: Path) -> None:
    with open_state_store(tmp_path / "a") as store:
        for number in range(300):
            commit(store, number, {b"hot": b"%d" % number} | ({b"cold": b"x"} if number in (3, 20) else {}))
        assert last_change(store.state, b"cold", 299) == 3  # at 20 it was written again as it was
        assert last_change(store.state, b"cold", 2) is None
        assert [last_change(store.state, b"hot", height) for height in (299, 150, 1)] == [299, 150, 1]
        assert last_change(store.state, b"nothing", 299) is None


@pytest.mark.parametrize("arguments", [{"limit": 0}, {"limit": KEYS_MAX + 1}, {"at_height": -1}, {"from_key": b""}])
def test_bad_arguments(pair: tuple[Store, Store], arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        holdfast.diff(*pair, **arguments)  # type: ignore[arg-type]


def test_a_store_that_is_not_there_is_named(pair: tuple[Store, Store], tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound) as caught:
        holdfast.diff(pair[0], tmp_path / "nothing")
    assert caught.value.context["store"] == str(tmp_path / "nothing")
