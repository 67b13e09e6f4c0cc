"""The native kernel against the definition of the tree, against vectors of other implementations, and its loading."""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import pairwise
from pathlib import Path as FilePath
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast import _kernel as found
from holdfast import limits
from holdfast._kernel import MODULE, THREADS_VARIABLE, VERSION, KernelModule
from holdfast.merkle import backend as choice
from holdfast.merkle.api import ICS23_SMT, JMT_SHA256, Backend, Scheme, Tree
from holdfast.merkle.kernel import KernelBackend, KernelTree
from holdfast.merkle.pure import BACKEND as TWIN
from tests.unit.merkle_support import JMT_ROOTS, PUBLISHED

ROOT = FilePath(__file__).resolve().parents[2]
SCHEMES = pytest.mark.parametrize("scheme", [JMT_SHA256, ICS23_SMT], ids=lambda scheme: scheme.name)


def _found() -> KernelBackend | None:
    try:
        found = choice.backend_named("kernel")
    except LookupError:
        return None
    assert isinstance(found, KernelBackend)
    return found


FOUND = _found()
needs_kernel = pytest.mark.skipif(FOUND is None, reason="the native kernel is not installed: make setup with cargo")


@pytest.fixture(name="kernel")
def _kernel() -> KernelBackend:
    return kernel_backend()


def kernel_backend() -> KernelBackend:
    assert FOUND is not None
    return FOUND


@pytest.fixture(name="module")
def _module(kernel: KernelBackend) -> Iterator[KernelModule]:
    """The module; however many threads a test asks for, the next one has the default."""
    yield kernel.module
    kernel.module.set_threads(0)


def bit(path: bytes, depth: int) -> int:
    return path[depth // 8] >> 7 - depth % 8 & 1


def node(scheme: Scheme, leaves: list[tuple[bytes, bytes]], depth: int = 0) -> bytes:
    """The definition: (key hash, leaf hash) in any order."""
    if len(leaves) < 2:
        return leaves[0][1] if leaves else scheme.null
    sides = [[leaf for leaf in leaves if bit(leaf[0], depth) == side] for side in (0, 1)]
    return sha256(scheme.inner_prefix + b"".join(node(scheme, side, depth + 1) for side in sides)).digest()


def leaf(scheme: Scheme, key: bytes, value: bytes) -> tuple[bytes, bytes]:
    key_hash = sha256(key).digest()
    return key_hash, sha256(scheme.leaf_prefix + key_hash + sha256(value).digest()).digest()


def root_of(scheme: Scheme, rows: dict[bytes, bytes]) -> bytes:
    return node(scheme, [leaf(scheme, key, value) for key, value in rows.items()])


def row(number: int) -> tuple[bytes, bytes]:
    return b"key-%d" % number, b"value-%d" % number


def filled(backend: Backend, scheme: Scheme, numbers: Iterable[int]) -> Tree:
    return backend.empty(scheme).update(dict(map(row, numbers))).tree


def all_records(tree: Tree) -> bytes:
    return tree.records(bytes(32), 1 << 40)


@needs_kernel
@pytest.mark.parametrize(("scheme", "count", "root"), PUBLISHED, ids=lambda part: getattr(part, "name", str(part)[:8]))
def test_roots_of_other_implementations(kernel: KernelBackend, scheme: Scheme, count: int, root: str) -> None:
    tree = filled(kernel, scheme, range(count))
    assert (tree.root.hex(), tree.count) == (root, count)
    records = kernel.hash_rows(scheme, [row(number) for number in range(count)])
    assert kernel.build(scheme, [records]).root.hex() == root
    assert kernel.node_hash(scheme, all_records(tree), 0).hex() == root


@needs_kernel
def test_roots_of_the_upstream_vectors_and_of_deletions(kernel: KernelBackend) -> None:
    one = kernel.empty(JMT_SHA256).update({b"hello": b"world"}).tree
    assert one.root.hex() == "6b97115f56e533f2fd443f7e76e4d1ff94d34e6b2e233f2dbdf5cfd1ec39a30c"
    two = one.update({b"goodbye": b"world"}).tree
    assert two.root.hex() == "e1e1e220d4b4a9611a9a09dbcee964b4a6c3a40f6f4dee265ad45cf64568790b"
    tree = filled(kernel, JMT_SHA256, range(1000)).update({b"key-%d" % odd: None for odd in range(1, 1000, 2)}).tree
    assert tree.root.hex() == "5a342e1bfa8866ad4b37ac568aaf0b1a9dd5b57cbd8700b92440abb628dee53a"
    tree = tree.update({b"key-0": b"updated"}).tree
    assert tree.root.hex() == "014eb20d0ab8261a9485aa236b81ab8aad6dab457cd8fd912cf04830fce7cc94"


SMALL_KEYS = st.integers(0, 60).map(lambda number: b"k%d" % number)
SMALL_VALUES = st.none() | st.integers(0, 2).map(lambda number: b"v%d" % number)
BATCHES = st.lists(st.dictionaries(SMALL_KEYS, SMALL_VALUES, max_size=50), min_size=1, max_size=8)


@needs_kernel
@given(batches=BATCHES, scheme=st.sampled_from([JMT_SHA256, ICS23_SMT]))
def test_versions_follow_the_definition_and_old_ones_stay(
    batches: list[dict[bytes, bytes | None]], scheme: Scheme
) -> None:
    tree = kernel_backend().empty(scheme)
    rows: dict[bytes, bytes] = {}
    versions = [(tree, scheme.null, 0)]
    for batch in batches:
        found = tree.update(batch)
        tree = found.tree
        new = sorted((sha256(key).digest(), key) for key in batch if batch[key] is not None and key not in rows)
        gone = sorted((sha256(key).digest(), key) for key in batch if batch[key] is None and key in rows)
        assert (found.inserted, found.removed) == (new, gone)
        for key, value in batch.items():
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value
        versions.append((tree, root_of(scheme, rows), len(rows)))
    for version, root, count in versions:
        assert (version.root, version.count) == (root, count)
        records = all_records(version)
        assert len(records) == 64 * count
        assert kernel_backend().node_hash(scheme, records, 0) == root


DEEP_BASES = [bytes(32), bytes([255]) * 32, sha256(b"base").digest()]


@st.composite
def deep_keys(draw: st.DrawFn) -> bytes:
    """Key hashes that share long prefixes: a base with a few bits turned, mostly far behind."""
    number = int.from_bytes(draw(st.sampled_from(DEEP_BASES)), "big")
    for at in draw(st.lists(st.integers(0, 12) | st.integers(60, 70) | st.integers(235, 255), max_size=4)):
        number ^= 1 << (255 - at)
    return number.to_bytes(32, "big")


DEEP_BATCH = st.dictionaries(deep_keys(), st.none() | st.binary(min_size=32, max_size=32), max_size=60)


@needs_kernel
@settings(max_examples=30)
@given(batches=st.lists(DEEP_BATCH, min_size=1, max_size=4), probes=st.lists(deep_keys(), max_size=6))
def test_shared_prefixes_beyond_64_bits(batches: list[dict[bytes, bytes | None]], probes: list[bytes]) -> None:
    scheme = JMT_SHA256
    tree, twin = kernel_backend().empty(scheme), TWIN.empty(scheme)
    leaves: dict[bytes, bytes] = {}
    for batch in batches:
        records = b"".join(key + value for key, value in batch.items() if value is not None)
        removed = b"".join(key for key, value in batch.items() if value is None)
        tree, twin = tree.update_records(records, removed), twin.update_records(records, removed)
        leaves = {key: value for key, value in (leaves | batch).items() if value is not None}
        assert tree.root == node(scheme, list(leaves.items()))
        assert all_records(tree) == b"".join(key + leaves[key] for key in sorted(leaves))
        for probe in [*probes, *list(leaves)[:3]]:
            assert tree.path(probe) == twin.path(probe)
            assert tree.neighbours(probe) == twin.neighbours(probe)
            assert tree.records(probe, 3) == twin.records(probe, 3)
        for most in (1, 2, 7, 40):
            assert tree.subtrees(most) == twin.subtrees(most)


def chained(count: int, shared: int) -> list[bytes]:
    """Key hashes that agree in ``shared`` bits and differ in the bits right behind them."""
    return [(number << (256 - shared - 8)).to_bytes(32, "big") for number in range(count)]


@needs_kernel
@SCHEMES
@pytest.mark.parametrize("shared", [0, 1, 63, 64, 200, 248])
def test_at_every_border_of_a_bucket(kernel: KernelBackend, scheme: Scheme, shared: int) -> None:
    keys = chained(2 * kernel.module.BUCKET_MAX + 3, shared)
    random.Random(shared).shuffle(keys)
    tree = kernel.empty(scheme)
    versions = [tree]
    for number, key in enumerate(keys):
        tree = tree.update_records(key + sha256(key).digest(), b"")
        versions.append(tree)
        built = kernel.build(scheme, [key + sha256(key).digest() for key in keys[: number + 1]])
        assert (tree.root, tree.count) == (built.root, number + 1)
    for number in reversed(range(len(keys))):
        tree = tree.update_records(b"", keys[number])
        expected = node(scheme, [(key, sha256(key).digest()) for key in keys[:number]])
        assert tree.root == versions[number].root == expected
        assert all_records(tree) == all_records(versions[number])
        assert tree.subtrees(5) == versions[number].subtrees(5)


@needs_kernel
def test_the_deepest_tree_fits_a_small_stack(kernel: KernelBackend) -> None:
    keys = chained(200, 248)
    roots: list[bytes] = []

    def work() -> None:
        tree = kernel.empty(JMT_SHA256).update_records(b"".join(key + key for key in keys), b"")
        roots.append(tree.root)
        assert tree.path(keys[7]).leaf == (keys[7], keys[7])
        assert len(tree.subtrees(1)) == 200
        roots.append(tree.update_records(b"", b"".join(keys[:-1])).root)

    old = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(old)
    assert roots == [node(JMT_SHA256, [(key, key) for key in keys]), keys[-1]]


def random_changes(rng: random.Random, keys: int, count: int) -> dict[bytes, bytes | None]:
    changes: dict[bytes, bytes | None] = {}
    while len(changes) < count:
        changes[b"key-%d" % rng.randrange(keys)] = None if rng.random() < 0.4 else b"value-%d" % rng.randrange(3)
    return changes


@needs_kernel
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_every_number_of_threads_gives_the_same(module: KernelModule, kernel: KernelBackend, threads: int) -> None:
    module.set_threads(threads)
    rng = random.Random(4)
    tree, twin = kernel.empty(JMT_SHA256), TWIN.empty(JMT_SHA256)
    for count in (1500, 300, 256, 255, 1):
        changes = random_changes(rng, 3000, count)
        found, expected = tree.update(changes), twin.update(changes)
        tree, twin = found.tree, expected.tree
        assert (found.inserted, found.removed) == (expected.inserted, expected.removed)
        assert (tree.root, tree.count) == (twin.root, twin.count)
        assert kernel.node_hash(JMT_SHA256, all_records(tree), 0) == twin.root
    none = tree.update({b"key-%d" % number: None for number in range(3000)}).tree
    assert (none.root, none.count) == (JMT_SHA256.null, 0)


@needs_kernel
@pytest.mark.parametrize("threads", [1, 2])
def test_many_changes_below_one_long_prefix(module: KernelModule, kernel: KernelBackend, threads: int) -> None:
    module.set_threads(threads)
    rng = random.Random(9)
    keys = [bytes(20) + rng.randbytes(12) for _ in range(600)] + [rng.randbytes(32) for _ in range(300)]
    records = [key + sha256(key).digest() for key in keys]
    twin = TWIN.build(JMT_SHA256, records)
    tree = kernel.empty(JMT_SHA256).update_records(b"".join(records[:450]), b"")
    tree = tree.update_records(b"".join(records[300:]), b"")
    assert tree.root == twin.root == kernel.build(JMT_SHA256, records).root
    assert tree.update_records(b"", b"".join(keys[:880])).root == TWIN.build(JMT_SHA256, records[880:]).root


@needs_kernel
def test_versions_are_read_and_branched_by_many_threads(kernel: KernelBackend) -> None:
    base = filled(kernel, JMT_SHA256, range(2000))
    root = base.root

    def branch(number: int) -> tuple[bytes, int]:
        tree = base.update({b"key-%d" % at: b"branch-%d" % number for at in range(number, 2000, 5)}).tree
        assert base.root == root
        assert base.path(sha256(b"key-1").digest()).leaf == leaf(JMT_SHA256, *row(1))
        return tree.root, tree.count

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(branch, range(16)))
    for number, (branched, count) in enumerate(found):
        changes = {b"key-%d" % at: b"branch-%d" % number for at in range(number, 2000, 5)}
        assert count == 2000
        assert branched == base.update(changes).tree.root
    assert len({branched for branched, _ in found}) == 16


@needs_kernel
def test_a_forked_process_goes_on(kernel: KernelBackend, module: KernelModule) -> None:
    module.set_threads(2)
    tree = filled(kernel, JMT_SHA256, range(1000))
    expected = tree.update({b"key-%d" % number: b"new" for number in range(500)}).tree.root
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = int(tree.update({b"key-%d" % number: b"new" for number in range(500)}).tree.root != expected)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@needs_kernel
def test_what_the_caller_does_to_the_dictionary_meanwhile_does_not_matter(kernel: KernelBackend) -> None:
    changes: dict[bytes, bytes | None] = dict(map(row, range(5000)))
    expected = filled(kernel, JMT_SHA256, range(5000)).root
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(kernel.empty(JMT_SHA256).update, changes)
        changes.clear()
        gc.collect()
        found = future.result()
    assert found.tree.root in (expected, JMT_SHA256.null)
    assert len(found.inserted) == found.tree.count


@needs_kernel
def test_what_changes_nothing_gives_the_same_root_and_no_names(kernel: KernelBackend) -> None:
    tree = filled(kernel, JMT_SHA256, range(300))
    changes: dict[bytes, bytes | None] = dict(map(row, range(300)))
    for same in ({}, changes, {b"absent": None}, {b"absent-%d" % number: None for number in range(300)}):
        found = tree.update(same)
        assert (found.tree.root, found.tree.count, found.inserted, found.removed) == (tree.root, 300, [], [])


@needs_kernel
def test_names_are_the_objects_of_the_caller(kernel: KernelBackend) -> None:
    keys = [b"key-%d" % number for number in range(400)]
    found = kernel.empty(JMT_SHA256).update(dict.fromkeys(keys, b"x"))
    assert {id(key) for _, key in found.inserted} == {id(key) for key in keys}
    assert [key_hash for key_hash, _ in found.inserted] == sorted(sha256(key).digest() for key in keys)
    assert {id(key) for _, key in found.tree.update(dict.fromkeys(keys)).removed} == {id(key) for key in keys}


@needs_kernel
@SCHEMES
@pytest.mark.parametrize("count", [0, 1, 2, 17, 400])
def test_reading_agrees_with_the_twin(kernel: KernelBackend, scheme: Scheme, count: int) -> None:
    tree, twin = filled(kernel, scheme, range(count)), filled(TWIN, scheme, range(count))
    rng = random.Random(count)
    probes = [bytes(32), bytes([255]) * 32, *(sha256(b"key-%d" % rng.randrange(500)).digest() for _ in range(40))]
    for probe in probes:
        path = tree.path(probe)
        assert path == twin.path(probe)
        folded = path.leaf[1] if path.leaf else scheme.null
        for at, sibling in enumerate(path.siblings):
            turned = bit(probe, len(path.siblings) - 1 - at)
            folded = sha256(scheme.inner_prefix + (sibling + folded if turned else folded + sibling)).digest()
        assert folded == tree.root
        assert tree.neighbours(probe) == twin.neighbours(probe)
        for limit in (0, 1, 7, 10**12):
            assert tree.records(probe, limit) == twin.records(probe, limit)
    for most in (1, 2, 3, 16, 17, 100, 10**12):
        assert tree.subtrees(most) == twin.subtrees(most)
    assert (tree.size_bytes() > 64 * count) == (count > 0)


@needs_kernel
def test_build_takes_any_order_and_refuses_a_key_hash_that_comes_twice(kernel: KernelBackend) -> None:
    records = kernel.hash_rows(JMT_SHA256, [row(number) for number in range(500)])
    pieces = [records[at : at + 64] for at in range(0, len(records), 64)]
    expected = filled(kernel, JMT_SHA256, range(500)).root
    for order in (pieces, sorted(pieces), sorted(pieces, reverse=True)):
        assert kernel.build(JMT_SHA256, iter(order)).root == expected
        assert kernel.build(JMT_SHA256, [b"", b"".join(order[:300]), b"".join(order[300:])]).root == expected
        for twice in (order[0], order[250], order[-1]):
            with pytest.raises(ValueError, match="comes twice"):
                kernel.build(JMT_SHA256, [*order, twice])
    assert kernel.build(JMT_SHA256, []).root == JMT_SHA256.null


@needs_kernel
@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_build_of_more_leaves_than_may_wait(module: KernelModule, kernel: KernelBackend, threads: int) -> None:
    module.set_threads(threads)
    records = kernel.hash_rows(ICS23_SMT, [row(number) for number in range(300_000)])
    tree = kernel.build(ICS23_SMT, [records])
    ordered = all_records(tree)
    assert tree.root == kernel.node_hash(ICS23_SMT, ordered, 0)
    step = 64 * 20_000
    parts = [ordered[at : at + step] for at in range(0, len(ordered), step)]
    assert kernel.build(ICS23_SMT, parts).root == tree.root
    assert kernel.build(ICS23_SMT, [*parts[1:], parts[0]]).root == tree.root
    for twice in (ordered[:64], ordered[-64:], ordered[64 * 200_000 : 64 * 200_001]):
        with pytest.raises(ValueError, match="comes twice"):
            kernel.build(ICS23_SMT, [*parts, twice])


@needs_kernel
def test_hash_rows_of_every_length(kernel: KernelBackend) -> None:
    rows = [(b"k" * length, b"v" * (200 - length)) for length in range(1, 200)] + [(b"x", b"y" * 100_000)]
    for scheme in (JMT_SHA256, ICS23_SMT):
        expected = b"".join(b"".join(leaf(scheme, key, value)) for key, value in rows)
        assert kernel.hash_rows(scheme, rows) == expected
        assert kernel.hash_rows(scheme, tuple(rows * 6)) == expected * 6
    assert kernel.hash_rows(JMT_SHA256, []) == b""


@needs_kernel
def test_node_hash_anywhere_in_the_tree(kernel: KernelBackend) -> None:
    tree = filled(kernel, JMT_SHA256, range(2000))
    for most in (1, 10, 100, 1000, 2000):
        subtrees = tree.subtrees(most)
        assert sum(subtree.leaves for subtree in subtrees) == 2000
        assert all(first.prefix < second.prefix for first, second in pairwise(subtrees))
        for subtree in subtrees:
            records = tree.records(subtree.prefix, subtree.leaves)
            assert kernel.node_hash(JMT_SHA256, records, subtree.depth) == subtree.hash
    assert kernel.node_hash(JMT_SHA256, b"", 256) == JMT_SHA256.null
    deep = b"".join(key + key for key in chained(256, 248))
    for depth in (0, 64, 247, 248):
        assert kernel.node_hash(JMT_SHA256, deep, depth) == TWIN.node_hash(JMT_SHA256, deep, depth)


@needs_kernel
@pytest.mark.parametrize("bad", [{b"": b"x"}, {b"x": b""}, {b"ok": b"ok", b"": None}])
def test_empty_keys_and_values_are_refused(kernel: KernelBackend, bad: dict[bytes, bytes | None]) -> None:
    tree = filled(kernel, JMT_SHA256, range(10))
    with pytest.raises(ValueError, match="neither a key nor a value may be empty"):
        tree.update(bad)
    with pytest.raises(ValueError, match="neither a key nor a value may be empty"):
        kernel.hash_rows(JMT_SHA256, [(key, value or b"") for key, value in bad.items()])
    assert tree.root.hex() == JMT_ROOTS[10]


@needs_kernel
@pytest.mark.parametrize("bad", [{"x": b"x"}, {b"x": "x"}, {b"x": bytearray(b"x")}, {1: None}, {b"x": 1}])
def test_what_is_not_bytes_is_refused(kernel: KernelBackend, bad: dict[bytes, bytes | None]) -> None:
    with pytest.raises(TypeError):
        kernel.empty(JMT_SHA256).update(bad)
    with pytest.raises(TypeError):
        kernel.encode_changes(bad, [])
    with pytest.raises(TypeError):
        kernel.hash_rows(JMT_SHA256, bad.items())  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        kernel.build(JMT_SHA256, ["x" * 64, bad])  # type: ignore[list-item]


@needs_kernel
def test_broken_records_depths_and_hashes_are_refused(kernel: KernelBackend) -> None:
    tree = filled(kernel, JMT_SHA256, range(40))
    first, second = tree.records(bytes(32), 1), tree.records(bytes(32), 2)[64:]
    for bad in (b"x", first[:-1], first + b"x"):
        for refused in (
            lambda bad=bad: kernel.build(JMT_SHA256, [bad]),
            lambda bad=bad: kernel.node_hash(JMT_SHA256, bad, 0),
            lambda bad=bad: tree.update_records(bad, b""),
            lambda bad=bad: tree.update_records(b"", bad[:31]),
        ):
            with pytest.raises(ValueError, match="whole"):
                refused()
    with pytest.raises(ValueError, match="strict order"):
        kernel.node_hash(JMT_SHA256, second + first, 0)
    with pytest.raises(ValueError, match="strict order"):
        kernel.node_hash(JMT_SHA256, first + first, 0)
    with pytest.raises(ValueError, match="do not share 256 bits"):
        kernel.node_hash(JMT_SHA256, first + second, 256)
    for depth in (-1, 257):
        with pytest.raises(ValueError, match="depth"):
            kernel.node_hash(JMT_SHA256, first, depth)
    for records, removed in ((first + first, b""), (first, first[:32]), (b"", first[:32] * 2)):
        with pytest.raises(ValueError, match="comes twice"):
            tree.update_records(records, removed)
    for call in (tree.path, tree.neighbours, lambda bad: tree.records(bad, 1)):
        for bad in (b"", bytes(31), bytes(33)):
            with pytest.raises(ValueError, match="32 bytes"):
                call(bad)
    with pytest.raises(ValueError, match="negative"):
        tree.records(bytes(32), -1)
    for most in (0, -1):
        with pytest.raises(ValueError, match="at least one leaf"):
            tree.subtrees(most)
    assert tree.root == filled(TWIN, JMT_SHA256, range(40)).root


CODED_KEYS = st.binary(min_size=1, max_size=6)
CODED = st.dictionaries(CODED_KEYS, st.none() | st.binary(min_size=1, max_size=5), max_size=8)


@needs_kernel
@given(changes=CODED, data=st.data())
def test_the_bytes_of_changes_are_those_of_the_twin(changes: dict[bytes, bytes | None], data: st.DataObject) -> None:
    written = [key for key, value in changes.items() if value is not None]
    inserted = data.draw(st.lists(st.sampled_from(written), unique=True)) if written else []
    kernel = kernel_backend()
    encoded = kernel.encode_changes(changes, inserted)
    assert encoded == TWIN.encode_changes(changes, inserted) == kernel.encode_changes(changes, set(inserted))
    decoded, new = kernel.decode_changes(encoded)
    assert (decoded, new) == (changes, sorted(inserted))
    assert list(decoded) == sorted(changes)
    place = data.draw(st.integers(0, len(encoded) - 1))
    broken = bytearray(encoded)
    broken[place] = data.draw(st.integers(0, 255))
    for damaged in (bytes(broken), encoded[:place], encoded + b"\0"):
        try:
            expected = TWIN.decode_changes(damaged)
        except ValueError:
            with pytest.raises(ValueError):
                kernel.decode_changes(damaged)
        else:
            assert kernel.decode_changes(damaged) == expected
            assert kernel.encode_changes(*expected) == damaged


@needs_kernel
def test_the_example_of_the_format_and_the_limits(kernel: KernelBackend, module: KernelModule) -> None:
    data = bytes.fromhex("00000002 0001 61 00000000 0001 62 80000001 cc")
    assert kernel.encode_changes({b"b": b"\xcc", b"a": None}, [b"b"]) == data
    assert module.KEY_BYTES_MAX == limits.STATE_KEY_BYTES_MAX
    assert module.VALUE_BYTES_MAX == limits.STATE_VALUE_BYTES_MAX
    longest = {b"k" * limits.STATE_KEY_BYTES_MAX: b"v"}
    assert kernel.decode_changes(kernel.encode_changes(longest, [])) == (longest, [])
    for bad in ({b"k" * (limits.STATE_KEY_BYTES_MAX + 1): b"v"}, {b"": b"v"}, {b"k": b""}):
        with pytest.raises(ValueError, match="has 1 to"):
            kernel.encode_changes(bad, [])
    for inserted in ([b"x"], [b"a"], [b"b", b"c"]):
        with pytest.raises(ValueError, match="inserted key"):
            kernel.encode_changes({b"a": None, b"b": b"v"}, inserted)
    with pytest.raises(ValueError, match="cut off"):
        kernel.decode_changes(b"\xff\xff\xff\xff")


@needs_kernel
@pytest.mark.parametrize(
    "text",
    [
        "",
        "000000",
        "00000001",
        "00000000 00",
        "00000001 0000 00000000",
        "00000001 0191" + "61" * 401 + "00000001 cc",
        "00000001 0002 61",
        "00000001 0001 61 000000",
        "00000001 0001 61 00000002 cc",
        "00000001 0001 61 80000000",
        "00000001 0001 61 04000001" + "cc" * 8,
        "00000002 0001 61 00000000 0001 61 00000000",
        "00000002 0001 62 00000000 0001 61 00000000",
        "00000001 0001 61 00000000 00",
    ],
)
def test_broken_bytes_of_changes_are_refused(kernel: KernelBackend, text: str) -> None:
    data = bytes.fromhex(text)
    for backend in (kernel, TWIN):
        with pytest.raises(ValueError):
            backend.decode_changes(data)


@needs_kernel
def test_a_large_version_is_freed_while_another_one_shares_it(kernel: KernelBackend) -> None:
    old = filled(kernel, JMT_SHA256, range(6_000))
    root = old.root
    new = old.update({b"key-5": b"other"}).tree
    del old
    again = new.update({b"key-5": b"value-5"}).tree
    del new
    gc.collect()
    assert again.root == root
    assert kernel.node_hash(JMT_SHA256, all_records(again), 0) == root


# Loading.


@pytest.fixture(name="fresh")
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The choice of the backend is open again, before and after the test."""
    monkeypatch.delenv("HOLDFAST_PURE", raising=False)
    monkeypatch.delenv(THREADS_VARIABLE, raising=False)
    for cached in (choice.backend, choice._kernel, found.kernel, found.installed):
        cached.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    for cached in (choice.backend, choice._kernel, found.kernel, found.installed):
        cached.cache_clear()
    if FOUND is not None:
        FOUND.module.set_threads(0)


def test_the_version_wanted_is_the_version_built() -> None:
    for name in ("Cargo.toml", "pyproject.toml"):
        assert f'\nversion = "{VERSION}"\n' in (ROOT / "kernel" / name).read_text(encoding="utf-8")


@needs_kernel
def test_the_kernel_is_taken_where_it_is_installed(fresh: pytest.MonkeyPatch) -> None:
    assert choice.backend().name == "kernel"
    assert choice.backend() is choice.backend()
    assert isinstance(choice.backend().empty(JMT_SHA256), KernelTree)


def test_the_environment_forces_the_twin(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("HOLDFAST_PURE", "1")
    assert choice.backend() is TWIN


def test_a_missing_kernel_is_no_error(fresh: pytest.MonkeyPatch) -> None:
    fresh.setitem(sys.modules, MODULE, None)
    assert choice.backend() is TWIN
    with pytest.raises(LookupError, match="make setup"):
        choice.backend_named("kernel")


def test_a_kernel_of_another_version_is_left_alone_with_one_warning(fresh: pytest.MonkeyPatch) -> None:
    other = ModuleType(MODULE)
    other.VERSION = "0.0.9"  # type: ignore[attr-defined]
    fresh.setitem(sys.modules, MODULE, other)
    with pytest.warns(RuntimeWarning, match=r"version 0\.0\.9, not") as seen:
        assert choice.backend() is TWIN
    assert choice.backend() is TWIN
    with pytest.raises(LookupError, match="in the version that is needed"):
        choice.backend_named("kernel")
    assert len(seen) == 1


def test_a_kernel_that_cannot_be_loaded_is_left_alone_with_a_warning(
    fresh: pytest.MonkeyPatch, tmp_path: FilePath
) -> None:
    (tmp_path / f"{MODULE}.py").write_text("raise ImportError('a symbol is missing')")
    fresh.delitem(sys.modules, MODULE, raising=False)
    fresh.syspath_prepend(tmp_path)
    with pytest.warns(RuntimeWarning, match="a symbol is missing"):
        assert choice.backend() is TWIN


def test_a_backend_has_one_of_two_names() -> None:
    assert choice.backend_named("pure") is TWIN
    with pytest.raises(ValueError, match="kernel or pure"):
        choice.backend_named("rust")


@needs_kernel
def test_threads_come_from_the_environment(fresh: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    fresh.setattr(kernel_backend().module, "set_threads", asked.append)
    fresh.setenv(THREADS_VARIABLE, "3")
    assert choice.backend().name == "kernel"
    assert asked == [3]


@needs_kernel
@pytest.mark.parametrize("text", ["-1", "two", "65", "", "\u0663"])
def test_a_number_of_threads_that_is_none_is_refused(fresh: pytest.MonkeyPatch, text: str) -> None:
    fresh.setenv(THREADS_VARIABLE, text)
    with pytest.raises(ValueError, match="number of threads from 0"):
        choice.backend()
