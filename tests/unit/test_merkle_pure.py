"""The pure Python tree against the definition: published roots, random versions, ground key hashes, full depth."""

from __future__ import annotations

import random
import sys
import threading
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.merkle.api import JMT_SHA256, RECORD_BYTES, SCHEMES, Scheme, Subtree, Tree
from holdfast.merkle.pure import BACKEND
from tests.unit.merkle_support import (
    JMT_ROOTS,
    PUBLISHED,
    bit,
    flipped,
    key_hashes,
    leaf_of,
    leaves_of,
    node,
    records_of,
    rows_of,
    sha,
)

both_schemes = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda scheme: scheme.name)


def loaded(scheme: Scheme, leaves: dict[bytes, bytes]) -> Tree:
    return BACKEND.empty(scheme).update_records(records_of(leaves), b"")


@pytest.mark.parametrize(("scheme", "count", "root"), PUBLISHED, ids=lambda value: getattr(value, "name", None))
def test_published_roots(scheme: Scheme, count: int, root: str) -> None:
    rows = rows_of(count)
    assert BACKEND.empty(scheme).update(rows).tree.root.hex() == root
    records = BACKEND.hash_rows(scheme, list(rows.items()))
    parts = [records[: count // 2 * RECORD_BYTES], b"", records[count // 2 * RECORD_BYTES :]]
    built = BACKEND.build(scheme, iter(parts))
    assert (built.root.hex(), built.count) == (root, count)
    in_order = built.records(bytes(32), count)
    assert BACKEND.node_hash(scheme, in_order, 0).hex() == root


def test_upstream_vectors() -> None:
    tree = BACKEND.empty(JMT_SHA256)
    assert tree.root == b"SPARSE_MERKLE_PLACEHOLDER_HASH__"
    tree = tree.update({b"hello": b"world"}).tree
    assert tree.root.hex() == "6b97115f56e533f2fd443f7e76e4d1ff94d34e6b2e233f2dbdf5cfd1ec39a30c"
    tree = tree.update({b"goodbye": b"world"}).tree
    assert tree.root.hex() == "e1e1e220d4b4a9611a9a09dbcee964b4a6c3a40f6f4dee265ad45cf64568790b"


def test_published_roots_after_deletions() -> None:
    tree = BACKEND.empty(JMT_SHA256).update(rows_of(1000)).tree
    update = tree.update({b"key-%d" % number: None for number in range(1, 1000, 2)})
    assert update.tree.root.hex() == "5a342e1bfa8866ad4b37ac568aaf0b1a9dd5b57cbd8700b92440abb628dee53a"
    assert len(update.removed) == 500
    last = update.tree.update({b"key-0": b"updated"})
    assert last.tree.root.hex() == "014eb20d0ab8261a9485aa236b81ab8aad6dab457cd8fd912cf04830fce7cc94"
    assert (last.inserted, last.removed) == ([], [])
    assert tree.root.hex() == JMT_ROOTS[1000], "the old version stands"
    assert update.tree.update({b"key-%d" % number: None for number in range(0, 1000, 2)}).tree.root == JMT_SHA256.null


# -- against the definition ----------------------------------------------------------------------------------------

small_rows = st.dictionaries(
    st.integers(0, 30).map(lambda number: b"k%d" % number),
    st.one_of(st.none(), st.sampled_from([b"a", b"b", b"c"])),
    max_size=25,
)


@both_schemes
@given(steps=st.lists(st.tuples(st.integers(0, 5), small_rows), max_size=8))
def test_versions_live_side_by_side(scheme: Scheme, steps: list[tuple[int, dict[bytes, bytes | None]]]) -> None:
    versions: list[tuple[Tree, dict[bytes, bytes]]] = [(BACKEND.empty(scheme), {})]
    for back, changes in steps:
        tree, rows = versions[-1 - back % len(versions)]
        update = tree.update(changes)
        after = {key: value for key, value in {**rows, **changes}.items() if value is not None}
        assert update.inserted == sorted((sha(key), key) for key in after.keys() - rows.keys())
        assert update.removed == sorted((sha(key), key) for key in rows.keys() - after.keys())
        versions.append((update.tree, after))
    for tree, rows in versions:
        assert (tree.root, tree.count) == (node(scheme, leaves_of(scheme, rows)), len(rows))


@pytest.mark.slow
@both_schemes
@given(
    steps=st.lists(st.dictionaries(key_hashes, st.one_of(st.none(), st.integers(0, 3)), max_size=20), max_size=6),
    seed=st.integers(0, 99),
)
def test_ground_key_hashes(scheme: Scheme, steps: list[dict[bytes, int | None]], seed: int) -> None:
    shuffle = random.Random(seed).shuffle
    tree = BACKEND.empty(scheme)
    leaves: dict[bytes, bytes] = {}
    versions = [(tree, leaves)]
    for step in steps:
        puts = [key + leaf_of(scheme, key, b"%d" % value) for key, value in step.items() if value is not None]
        removed = [key for key, value in step.items() if value is None]
        shuffle(puts)
        shuffle(removed)
        tree = tree.update_records(b"".join(puts), b"".join(removed))
        leaves = {**leaves, **{put[:32]: put[32:] for put in puts}}
        leaves = {key: leaf for key, leaf in leaves.items() if key not in removed}
        versions.append((tree, leaves))
    for tree, leaves in versions:
        assert (tree.root, tree.count) == (node(scheme, leaves), len(leaves))
        assert tree.records(bytes(32), 1000) == records_of(leaves)
        assert BACKEND.build(scheme, [records_of(leaves)]).root == tree.root
        assert BACKEND.node_hash(scheme, records_of(leaves), 0) == tree.root


def folded(scheme: Scheme, found: bytes, key_hash: bytes, siblings: list[bytes]) -> bytes:
    for place, sibling in enumerate(siblings):
        right = bit(key_hash, len(siblings) - 1 - place)
        found = sha(scheme.inner_prefix + (sibling + found if right else found + sibling))
    return found


@pytest.mark.slow
@both_schemes
@given(keys=st.sets(key_hashes, max_size=30), asked=st.lists(key_hashes, min_size=1, max_size=10))
def test_paths_and_neighbours(scheme: Scheme, keys: set[bytes], asked: list[bytes]) -> None:
    leaves = {key: leaf_of(scheme, key, b"x") for key in keys}
    tree = loaded(scheme, leaves)
    order = sorted(keys)
    for key in [*asked, *order]:
        leaf, siblings = tree.path(key)
        assert folded(scheme, leaf[1] if leaf else scheme.null, key, siblings) == tree.root
        together = {other for other in keys if shares(other, key, len(siblings))}
        assert together == ({leaf[0]} if leaf else set())
        if siblings:
            assert siblings[0] != scheme.null or leaf is None, "a lone leaf floats up"
        if key in keys:
            assert leaf == (key, leaves[key])
        at = bisect_left(order, key)
        after = at + (key in keys)
        assert tree.neighbours(key) == (
            order[at - 1] if at else None,
            order[after] if after < len(order) else None,
        )


@pytest.mark.slow
@both_schemes
@given(keys=st.sets(key_hashes, max_size=30), most=st.integers(1, 9), start=key_hashes, limit=st.integers(0, 31))
def test_parts(scheme: Scheme, keys: set[bytes], most: int, start: bytes, limit: int) -> None:
    leaves = {key: leaf_of(scheme, key, b"x") for key in keys}
    tree = loaded(scheme, leaves)
    assert (
        tree.records(start, limit)
        == records_of({key: leaves[key] for key in sorted(keys) if key >= start})[: limit * RECORD_BYTES]
    )
    assert tree.subtrees(most) == subtrees(scheme, leaves, most, b"", [])
    for place in tree.subtrees(most):
        inside = {key: leaf for key, leaf in leaves.items() if shares(key, place.prefix, place.depth)}
        assert BACKEND.node_hash(scheme, records_of(inside), place.depth) == place.hash
        assert folded(scheme, place.hash, place.prefix, place.siblings) == tree.root


def shares(one: bytes, other: bytes, depth: int) -> bool:
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")) >> (256 - depth) == 0


def subtrees(
    scheme: Scheme, leaves: dict[bytes, bytes], most: int, bits: bytes, siblings: list[bytes]
) -> list[Subtree]:
    """By the words of the contract; ``bits`` is one byte for each bit of the prefix."""
    depth = len(bits)
    if not leaves:
        return []
    if len(leaves) <= most:
        prefix = int((bits.decode() + "0" * 256)[:256], 2).to_bytes(32, "big")
        return [Subtree(prefix, depth, len(leaves), node(scheme, leaves, depth), siblings)]
    sides = [{key: leaf for key, leaf in leaves.items() if bit(key, depth) == side} for side in (0, 1)]
    return [
        found
        for side in (0, 1)
        for found in subtrees(
            scheme, sides[side], most, bits + b"%d" % side, [node(scheme, sides[1 - side], depth + 1), *siblings]
        )
    ]


@both_schemes
@given(keys=st.sets(key_hashes, min_size=1, max_size=12), depth=st.integers(0, 256))
def test_nodes_at_every_depth(scheme: Scheme, keys: set[bytes], depth: int) -> None:
    first = min(keys)
    inside = {key: leaf_of(scheme, key, b"x") for key in keys if shares(key, first, depth)}
    assert BACKEND.node_hash(scheme, records_of(inside), depth) == node(scheme, inside, depth)
    if len(inside) < len(keys):
        with pytest.raises(ValueError, match="share"):
            BACKEND.node_hash(scheme, records_of(dict.fromkeys(keys, bytes(32))), depth)


# -- edges ---------------------------------------------------------------------------------------------------------


def test_the_shape_does_not_depend_on_the_history() -> None:
    rows = rows_of(300)
    direct = BACKEND.empty(JMT_SHA256).update(rows).tree
    tree = BACKEND.empty(JMT_SHA256)
    keys = [*rows, *(b"guest-%d" % number for number in range(300))]
    random.Random(7).shuffle(keys)
    for key in keys:
        tree = tree.update({key: rows.get(key, b"guest")}).tree
    for key in keys:
        if key not in rows:
            tree = tree.update({key: None}).tree
    assert tree.root == direct.root
    assert tree._node == direct._node  # type: ignore[attr-defined]


def test_what_changes_nothing_keeps_every_node() -> None:
    tree = BACKEND.empty(JMT_SHA256).update(rows_of(100)).tree
    update = tree.update({b"key-5": b"value-5", b"absent": None})
    assert (update.inserted, update.removed) == ([], [])
    assert update.tree._node is tree._node  # type: ignore[attr-defined]
    assert tree.update({}).tree.root == tree.root


def test_full_depth_in_a_small_thread() -> None:
    """Two key hashes that differ in the last bit only, a full ladder of others, and little stack left."""
    base = sha(b"base")
    leaves = {flipped(base, depth): leaf_of(JMT_SHA256, flipped(base, depth), b"x") for depth in range(256)}
    leaves[base] = leaf_of(JMT_SHA256, base, b"x")
    found: list[object] = []

    def run() -> None:
        def deep(levels: int) -> None:
            if levels:
                return deep(levels - 1)
            tree = loaded(JMT_SHA256, leaves)
            found.extend((tree.root, tree.path(base).siblings, tree.subtrees(1)))
            less = tree.update_records(b"", flipped(base, 255))
            found.append(less.update_records(b"", b"".join(flipped(base, depth) for depth in range(255))).root)
            return None

        deep(300)

    assert sys.getrecursionlimit() >= 1000
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    root, siblings, parts, lone = found
    assert root == node(JMT_SHA256, leaves)
    assert isinstance(siblings, list)
    assert isinstance(parts, list)
    assert (len(siblings), len(parts), parts[-1].depth <= 256) == (256, 257, True)
    assert lone == leaves[base]


@pytest.mark.parametrize("turn", [0x00, 0xFF])
def test_neighbours_across_a_long_ladder(turn: int) -> None:
    """Sixty leaves share 196 bits, and one more stands at the other end of the tree."""
    end = bytes([turn]) * 32
    order = sorted([*(flipped(end, depth) for depth in range(196, 256)), bytes([turn ^ 0xFF]) * 32])
    tree = loaded(JMT_SHA256, {key: leaf_of(JMT_SHA256, key, b"x") for key in order})
    for at, key in enumerate(order):
        above = order[at + 1] if at + 1 < len(order) else None
        assert tree.neighbours(key) == (order[at - 1] if at else None, above)
        assert tree.records(key, 2) == tree.records(bytes(32), 99)[at * RECORD_BYTES :][: 2 * RECORD_BYTES]


@pytest.mark.parametrize("changes", [{b"": b"x"}, {b"x": b""}])
def test_the_empty_key_and_the_empty_value_are_refused(changes: dict[bytes, bytes | None]) -> None:
    with pytest.raises(ValueError, match="empty"):
        BACKEND.empty(JMT_SHA256).update(changes)
    with pytest.raises(ValueError, match="empty"):
        BACKEND.hash_rows(JMT_SHA256, [(key, value or b"") for key, value in changes.items()])


def test_broken_records_are_refused() -> None:
    record = bytes(64)
    tree = BACKEND.empty(JMT_SHA256)
    for bad in ([record, record], [record + record], [record[:63]], [bytes(32), bytes(32)]):
        with pytest.raises(ValueError):
            BACKEND.build(JMT_SHA256, bad)
    for puts, removed in ((record * 2, b""), (record, bytes(32)), (b"", bytes(64)), (bytes(63), b""), (b"", bytes(31))):
        with pytest.raises(ValueError):
            tree.update_records(puts, removed)
    for records, depth in ((record * 2, 0), (record[:1], 0), (record, -1), (record, 257)):
        with pytest.raises(ValueError):
            BACKEND.node_hash(JMT_SHA256, records, depth)
    with pytest.raises(ValueError, match="order"):
        BACKEND.node_hash(JMT_SHA256, b"\x01" + record[1:] + record, 0)
    assert BACKEND.node_hash(JMT_SHA256, b"", 256) == JMT_SHA256.null


def test_bad_arguments_are_refused() -> None:
    tree = BACKEND.empty(JMT_SHA256)
    for call in (tree.path, tree.neighbours):
        with pytest.raises(ValueError, match="32 bytes"):
            call(bytes(31))
    with pytest.raises(ValueError, match="32 bytes"):
        tree.records(b"", 1)
    with pytest.raises(ValueError, match="negative"):
        tree.records(bytes(32), -1)
    with pytest.raises(ValueError, match="at least one"):
        tree.subtrees(0)


def test_the_memory_estimate_follows_the_leaves() -> None:
    tree = BACKEND.empty(JMT_SHA256)
    assert tree.size_bytes() == 0
    assert 100 * 64 < tree.update(rows_of(100)).tree.size_bytes() < 100 * 1000
