"""One proof for many keys: every state and question, one form, forgeries, limits, and its size."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import CorruptionError, HoldfastError, InvalidInputError, LimitExceeded, ProofInvalid
from holdfast.limits import PROOF_BYTES_MAX, PROOF_KEYS_MAX, STATE_INLINE_BYTES_MAX
from holdfast.merkle import multiproof
from holdfast.merkle.api import JMT_SHA256, RECORD_BYTES, SCHEMES, Scheme, Tree
from holdfast.merkle.multiproof import prove_many, verify_many
from holdfast.merkle.pure import BACKEND
from holdfast.merkle.values import tree_value
from tests.unit.merkle_support import Rows, flipped, leaf_of, rows_of, sha

both_schemes = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda scheme: scheme.name)
Claims = dict[bytes, bytes | None]


def state(count: int, scheme: Scheme = JMT_SHA256) -> tuple[Tree, Rows]:
    rows = rows_of(count)
    return BACKEND.empty(scheme).update(rows).tree, Rows(rows)


def refused(proof: bytes, root: bytes, claims: Claims, scheme: Scheme = JMT_SHA256, why: str | None = None) -> None:
    with pytest.raises(ProofInvalid, match=why):
        verify_many(proof, root, claims, scheme=scheme.name)


def claims_of(rows: Rows, *keys: bytes) -> Claims:
    return {key: rows.rows.get(key) for key in keys}


def test_the_example_of_the_format() -> None:
    tree, rows = state(3)
    proof = prove_many(tree, [b"key-1", b"absent"], rows)
    assert proof.hex() == EXAMPLE
    verify_many(proof, tree.root, {b"key-1": b"value-1", b"absent": None})


EXAMPLE = (
    "0100000005b9407c36b0a9dedde119c75165957c6c9c187e65df1ee5db87c4c58ad503ad88cbe350d8aa76c5b9dd3c1c41abade6b1a68272d5"
    "5cd3a05c7eb1cf78d57d232f720ae1734c792be32043ee15f6fbc5a57951adce38b2ce8ca5708db6b80f56c1d79f"
)


@both_schemes
@given(
    rows=st.dictionaries(st.binary(min_size=1, max_size=2), st.binary(min_size=1, max_size=3), max_size=40),
    asked=st.sets(st.binary(min_size=1, max_size=2), max_size=12),
    some=st.sets(st.integers(0, 39), max_size=12),
    data=st.data(),
)
def test_every_question_has_its_one_proof(
    scheme: Scheme, rows: dict[bytes, bytes], asked: set[bytes], some: set[int], data: st.DataObject
) -> None:
    tree = BACKEND.empty(scheme).update(dict(rows)).tree
    keys = sorted(asked | {key for place, key in enumerate(rows) if place in some}) or [b"k"]
    proof = prove_many(tree, keys, Rows(rows), scheme=scheme)
    claims: Claims = {key: rows.get(key) for key in keys}
    verify_many(proof, tree.root, claims, scheme=scheme.name)
    assert prove_many(tree, reversed(keys), Rows(rows), scheme=scheme) == proof
    key = data.draw(st.sampled_from(keys))
    refused(proof, tree.root, {**claims, key: b"other!"}, scheme)
    if rows.get(key):
        refused(proof, tree.root, {**claims, key: None}, scheme)
    refused(proof, sha(tree.root), claims, scheme)
    refused(proof, tree.root, claims, next(other for other in SCHEMES.values() if other != scheme))
    at = data.draw(st.integers(0, len(proof) - 1))
    bad = data.draw(st.sampled_from([proof[:at], proof[:at] + proof[at + 1 :], proof[:at] + b"\x00" + proof[at:]]))
    if bad != proof:
        refused(bad, tree.root, claims, scheme)


@pytest.mark.slow
@both_schemes
@pytest.mark.parametrize("count", [0, 1, 2, 5, 60])
@pytest.mark.parametrize("keys", [(b"key-0",), (b"absent",), (b"key-1", b"absent", b"key-7", b"absent-2", b"key-33")])
def test_every_flipped_bit_is_refused(scheme: Scheme, count: int, keys: tuple[bytes, ...]) -> None:
    tree, rows = state(count, scheme)
    proof, claims = prove_many(tree, keys, rows, scheme=scheme), claims_of(rows, *keys)
    verify_many(proof, tree.root, claims, scheme=scheme.name)
    for bit in range(len(proof) * 8):
        bad = bytearray(proof)
        bad[bit // 8] ^= 1 << bit % 8
        refused(bytes(bad), tree.root, claims, scheme)
    for spare in (b"\x00", bytes(32), proof):
        refused(proof + spare, tree.root, claims, scheme)


def test_a_proof_is_for_exactly_its_keys() -> None:
    tree, rows = state(60)
    keys = [b"key-1", b"key-2", b"absent"]
    proof = prove_many(tree, keys, rows)
    verify_many(proof, tree.root, claims_of(rows, *keys))
    for others in (keys[:2], keys[1:], [*keys, b"key-3"], [*keys, b"absent-9"], [b"key-1", b"key-3", b"absent"]):
        refused(proof, tree.root, claims_of(rows, *others))


def test_shared_siblings_stand_once() -> None:
    tree, rows = state(1000)
    every = prove_many(tree, rows.rows, rows)
    places = int.from_bytes(every[1:5], "big")
    assert len(every) == 5 + (places + 3) // 4, "all leaves are claimed: no hash is left to give"
    some = [b"key-%d" % number for number in range(100)]
    proof = prove_many(tree, some, rows)
    alone = sum(len(prove_many(tree, [key], rows)) for key in some)
    assert len(proof) * 2 < alone


@pytest.mark.parametrize("depth", [1, 64, 200, 255])
def test_keys_that_share_their_path(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ground key hashes: the path of an absent key ends at another leaf, or in an empty place, very deep."""
    base = sha(b"base")
    hashes = {b"base": base, b"near": flipped(base, depth), b"lost": flipped(base, depth - 1)}
    hashes[b"nigh"] = flipped(base, depth + 1) if depth < 255 else sha(b"nigh")
    tree = BACKEND.empty(JMT_SHA256).update_records(
        b"".join(hashes[key] + leaf_of(JMT_SHA256, hashes[key], b"v") for key in (b"base", b"near")), b""
    )
    rows = Rows({b"base": b"v", b"near": b"v"})
    rows.keys = {hashes[key]: key for key in (b"base", b"near")}

    class Digest:
        def __init__(self, data: bytes) -> None:
            self._digest = hashes.get(data) or sha(data)

        def digest(self) -> bytes:
            return self._digest

    monkeypatch.setattr(multiproof, "sha256", Digest)
    monkeypatch.setattr("holdfast.merkle.prove.sha256", Digest)
    questions: list[Claims] = [
        {b"lost": None},
        {b"nigh": None},
        {b"near": b"v"},
        {b"base": b"v", b"lost": None},
        {b"base": b"v", b"nigh": None, b"lost": None},
    ]
    for asked in questions:
        proof = prove_many(tree, asked, rows)
        verify_many(proof, tree.root, asked)
        for key in asked:
            refused(proof, tree.root, {**asked, key: b"w"})


# -- forgeries by hand ---------------------------------------------------------------------------------------------


def packed(tags: list[int], *hashes: bytes) -> bytes:
    padded = [*tags, *[0] * (-len(tags) % 4)]
    body = bytes(sum(padded[at + part] << 6 - 2 * part for part in range(4)) for at in range(0, len(padded), 4))
    return b"\x01" + len(tags).to_bytes(4, "big") + body + b"".join(hashes)


EMPTY, HASH, INNER, OTHER = range(4)
LEFT = next(b"k%d" % number for number in range(99) if not sha(b"k%d" % number)[0] & 0x80)
RIGHT = next(b"k%d" % number for number in range(99) if sha(b"k%d" % number)[0] & 0x80)
RIGHT_2 = next(b"x%d" % number for number in range(99) if sha(b"x%d" % number)[0] & 0x80)
NULL = JMT_SHA256.null


def inner(left: bytes, right: bytes) -> bytes:
    return sha(JMT_SHA256.inner_prefix + left + right)


def leaf(key: bytes, value: bytes) -> bytes:
    return leaf_of(JMT_SHA256, sha(key), value)


def test_the_hand_made_proof_of_an_honest_tree_is_accepted() -> None:
    tree = BACKEND.empty(JMT_SHA256).update({LEFT: b"l", RIGHT: b"r"}).tree
    assert tree.root == inner(leaf(LEFT, b"l"), leaf(RIGHT, b"r"))
    verify_many(packed([INNER, HASH, HASH]), tree.root, {LEFT: b"l", RIGHT: b"r"})
    verify_many(packed([INNER, HASH, HASH], leaf(RIGHT, b"r")), tree.root, {LEFT: b"l"})


@pytest.mark.parametrize(
    ("proof", "root", "claims", "why"),
    [
        (packed([INNER, HASH, EMPTY]), inner(leaf(LEFT, b"l"), NULL), {LEFT: b"l"}, "two children for one"),
        (packed([INNER, EMPTY, HASH]), inner(NULL, leaf(RIGHT, b"l")), {RIGHT: b"l"}, "two children for one"),
        (packed([INNER, EMPTY, EMPTY]), inner(NULL, NULL), {LEFT: None}, "two children for one"),
        (
            packed([INNER, EMPTY, OTHER], sha(RIGHT), sha(b"r")),
            inner(NULL, leaf(RIGHT, b"r")),
            {LEFT: None, RIGHT_2: None},
            "two children for one",
        ),
        (packed([INNER, HASH, HASH], NULL), inner(leaf(LEFT, b"l"), NULL), {LEFT: b"l"}, "empty place is written"),
        (packed([INNER, HASH, INNER]), bytes(32), {LEFT: b"l"}, "nothing was asked"),
        (packed([INNER, HASH, OTHER], sha(RIGHT), sha(b"r")), bytes(32), {LEFT: b"l"}, "nothing was asked"),
        (packed([HASH]), leaf(LEFT, b"l"), {LEFT: b"l", RIGHT: b"r"}, "2 keys with a value"),
        (packed([HASH]), leaf(LEFT, b"l"), {LEFT: None}, "0 keys with a value"),
        (packed([EMPTY]), NULL, {LEFT: b"l"}, "absent which should have"),
        (packed([OTHER], sha(RIGHT), sha(b"r")), leaf(RIGHT, b"r"), {LEFT: b"l"}, "absent which should have"),
        (packed([OTHER], sha(LEFT), sha(b"l")), leaf(LEFT, b"l"), {LEFT: None}, "should be absent"),
        (
            packed([INNER, OTHER, HASH], sha(RIGHT), sha(b"r"), bytes(32)),
            inner(leaf(RIGHT, b"r"), bytes(32)),
            {LEFT: None},
            "does not lead",
        ),
        (packed([HASH])[:-1] + b"\x41", leaf(LEFT, b"l"), {LEFT: b"l"}, "not zero"),
        (packed([HASH, EMPTY]), leaf(LEFT, b"l"), {LEFT: b"l"}, "1 tags and 0 bytes are spare"),
        (packed([HASH], b"x"), leaf(LEFT, b"l"), {LEFT: b"l"}, "0 tags and 1 bytes are spare"),
        (packed([INNER, HASH, HASH], bytes(31)), bytes(32), {LEFT: b"l"}, "hashes are cut off"),
        (packed([INNER, HASH]), bytes(32), {LEFT: b"l"}, "before all places"),
        (b"\x02" + packed([HASH])[1:], leaf(LEFT, b"l"), {LEFT: b"l"}, "version is 2"),
        (b"\x01\x00\x00\x00\x05\x40", leaf(LEFT, b"l"), {LEFT: b"l"}, "tags are cut off"),
        (b"\x01\x00\x00\x00", leaf(LEFT, b"l"), {LEFT: b"l"}, "4 bytes"),
        (b"", NULL, {LEFT: None}, "0 bytes"),
        (packed([]), NULL, {LEFT: None}, "before all places"),
        (bytes(PROOF_BYTES_MAX + 1), NULL, {LEFT: None}, "1048577 bytes"),
    ],
)
def test_made_up_proofs(proof: bytes, root: bytes, claims: Claims, why: str | None) -> None:
    refused(proof, root, claims, why=why)


def test_a_chain_below_the_last_bit_is_refused() -> None:
    """256 empty siblings lead to a place that no bit is left for."""
    key_hash = sha(LEFT)
    tags: list[int] = []
    for depth in range(257):
        right = depth < 256 and key_hash[depth // 8] >> (7 - depth % 8) & 1
        tags += [INNER, HASH] if right else [INNER]
    proof = packed(tags, *[bytes(32)] * 257)
    refused(proof, bytes(32), {LEFT: b"l"}, why="deeper than 256")


# -- arguments and limits ------------------------------------------------------------------------------------------


def test_questions_that_are_none() -> None:
    tree, rows = state(3)
    for keys in ([], [b""], [b"key-1", b"key-1"]):
        with pytest.raises(InvalidInputError, match="each once"):
            prove_many(tree, keys, rows)
    proof = prove_many(tree, [b"key-1"], rows)
    with pytest.raises(InvalidInputError, match="no claim"):
        verify_many(proof, tree.root, {})
    with pytest.raises(InvalidInputError, match="no tree scheme"):
        verify_many(proof, tree.root, {b"key-1": b"value-1"}, scheme="md5")
    refused(proof, tree.root, {b"": b"x"}, why="ever empty")
    refused(proof, tree.root, {b"key-1": b""}, why="ever empty")
    refused(proof, tree.root[1:], {b"key-1": b"value-1"}, why="32 bytes")
    with pytest.raises(CorruptionError):
        prove_many(tree, [b"absent"], Rows(dict.fromkeys(rows.rows, b"other")))


def test_large_values_are_claimed_whole() -> None:
    large = bytes(STATE_INLINE_BYTES_MAX + 1)
    tree = BACKEND.empty(JMT_SHA256).update({b"large": tree_value(large), b"small": b"s"}).tree
    rows = Rows({b"large": large, b"small": b"s"})
    proof = prove_many(tree, [b"large", b"absent-1", b"absent-2", b"absent-3"], rows)
    claims: Claims = {b"large": large, b"absent-1": None, b"absent-2": None, b"absent-3": None}
    verify_many(proof, tree.root, claims)
    refused(proof, tree.root, {**claims, b"large": tree_value(large)}, why="no state has")


def test_the_limit_of_keys() -> None:
    tree, rows = state(3)
    keys = [b"absent-%d" % number for number in range(PROOF_KEYS_MAX + 1)]
    with pytest.raises(LimitExceeded, match="at most 4096"):
        prove_many(tree, keys, rows)
    with pytest.raises(LimitExceeded, match="at most 4096"):
        verify_many(b"", tree.root, dict.fromkeys(keys))
    verify_many(prove_many(tree, keys[1:], rows), tree.root, dict.fromkeys(keys[1:]))


def test_the_limit_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    tree, rows = state(60)
    proof = prove_many(tree, [b"key-1"], rows)
    monkeypatch.setattr(multiproof, "PROOF_BYTES_MAX", len(proof) - 1)
    with pytest.raises(LimitExceeded, match="of 1 keys has"):
        prove_many(tree, [b"key-1"], rows)


@pytest.mark.slow
def test_random_bytes_are_refused_politely() -> None:
    source = random.Random(11)
    tree, rows = state(60)
    claims = claims_of(rows, b"key-1", b"absent")
    proof = prove_many(tree, claims, rows)
    for _ in range(3000):
        bad = bytearray(proof)
        for _ in range(source.randint(1, 4)):
            bad[source.randrange(len(bad))] = source.randrange(256)
        if bytes(bad) != proof:
            with pytest.raises(HoldfastError) as caught:
                verify_many(bytes(bad), tree.root, claims)
            assert isinstance(caught.value, ProofInvalid)
    assert len(proof) < 2 * RECORD_BYTES * 12
