"""ICS-23 proofs: their published bytes, every state, other people's vectors, and forgeries."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import holdfast
from holdfast.errors import CorruptionError, InvalidInputError, ProofInvalid
from holdfast.limits import PROOF_BYTES_MAX, STATE_INLINE_BYTES_MAX
from holdfast.merkle import ics23
from holdfast.merkle.api import ICS23_SMT, JMT_SHA256, SCHEMES, Scheme, Tree
from holdfast.merkle.ics23 import EmptyProof, ExistenceProof, InnerOp, LeafOp, NonExistenceProof, decode, encode
from holdfast.merkle.prove import prove
from holdfast.merkle.pure import BACKEND
from holdfast.merkle.values import REFERENCE_BYTES, is_reference, tree_value
from holdfast.merkle.verify import verify_proof
from tests.unit.merkle_support import Rows, rows_of, sha

both_schemes = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda scheme: scheme.name)

EXISTENCE_OF_KEY_1 = (
    "0a95010a056b65792d31120776616c75652d311a150801100118012a0d4a4d543a3a4c6561664e6f64652236080112104a4d543a3a496e7472"
    "6e616c4e6f64651a20e1734c792be32043ee15f6fbc5a57951adce38b2ce8ca5708db6b80f56c1d79f2234080112304a4d543a3a496e74726e"
    "616c4e6f64652f95438fdd420d74426273579095c222e4a6ab35b98bdf6b4df9072f12f9a318"
)
ABSENCE_OF_ABSENT = (
    "12690a06616273656e741a5f0a056b65792d32120776616c75652d321a150801100118012a0d4a4d543a3a4c6561664e6f6465223608011210"
    "4a4d543a3a496e74726e616c4e6f64651a2021797577e8d0a361e35960e485b86480ce790bc0dd45ec3559e5b1cf01f624d7"
)
"""Made by the Rust crate ``jmt`` 0.12.0 from the keys key-0, key-1 and key-2."""


def state(count: int, scheme: Scheme = JMT_SHA256) -> tuple[Tree, Rows]:
    rows = rows_of(count)
    return BACKEND.empty(scheme).update(rows).tree, Rows(rows)


def proof_of(tree: Tree, key: bytes, rows: Rows, scheme: Scheme = JMT_SHA256) -> bytes:
    return encode(prove(tree, key, rows, scheme=scheme))


def refused(
    proof: bytes, root: bytes, key: bytes, value: bytes | None, scheme: Scheme = JMT_SHA256, why: str | None = None
) -> None:
    with pytest.raises(ProofInvalid, match=why):
        verify_proof(proof, root, key, value, scheme=scheme.name)


# -- bytes and other people's proofs -------------------------------------------------------------------------------


def test_published_bytes() -> None:
    tree, rows = state(3)
    assert proof_of(tree, b"key-1", rows).hex() == EXISTENCE_OF_KEY_1
    assert proof_of(tree, b"absent", rows).hex() == ABSENCE_OF_ABSENT
    verify_proof(bytes.fromhex(EXISTENCE_OF_KEY_1), tree.root, b"key-1", b"value-1")
    verify_proof(bytes.fromhex(ABSENCE_OF_ABSENT), tree.root, b"absent", None)


@pytest.mark.data
@pytest.mark.parametrize(
    "name", [f"{what}_{side}" for what in ("exist", "nonexist") for side in ("left", "middle", "right")]
)
def test_vectors_of_the_ics23_project(shared_data: Path, name: str) -> None:
    vector = json.loads((shared_data / "ics23" / "smt" / f"{name}.json").read_text())
    proof, root, key = (bytes.fromhex(vector[field]) for field in ("proof", "root", "key"))
    value = bytes.fromhex(vector["value"]) or None
    assert (value is None) == name.startswith("nonexist")
    found = decode(proof)
    assert encode(found) == proof
    if isinstance(found, NonExistenceProof):
        # Those who made it wrote the hash of the absent key into the field that nobody else checks.
        assert found.key == sha(key)
        refused(proof, root, key, value, ICS23_SMT, "another key")
        proof = encode(replace(found, key=key))
    verify_proof(proof, root, key, value, scheme="ics23-smt")
    refused(proof, root, key, value, JMT_SHA256)
    refused(proof, root, key, b"other" if value else b"some", ICS23_SMT)
    refused(proof, sha(root), key, value, ICS23_SMT)


@pytest.mark.slow
@both_schemes
@given(
    rows=st.dictionaries(st.binary(min_size=1, max_size=3), st.binary(min_size=1, max_size=3), min_size=1, max_size=20),
    asked=st.binary(min_size=1, max_size=3),
)
def test_every_key_has_its_proof_and_no_other(scheme: Scheme, rows: dict[bytes, bytes], asked: bytes) -> None:
    tree = BACKEND.empty(scheme).update(dict(rows)).tree
    for key in [*rows, asked]:
        proof = proof_of(tree, key, Rows(rows), scheme)
        assert encode(decode(proof)) == proof
        value = rows.get(key)
        verify_proof(proof, tree.root, key, value, scheme=scheme.name)
        refused(proof, tree.root, key, b"other!" if value is None else None, scheme)
        refused(proof, tree.root, key, b"other!", scheme)
        refused(proof, tree.root, key + b"x", value, scheme)
        refused(proof, sha(tree.root), key, value, scheme)


def test_the_empty_state() -> None:
    tree = BACKEND.empty(JMT_SHA256)
    assert prove(tree, b"key", Rows({})) == EmptyProof()
    verify_proof(b"", tree.root, b"key", None)
    refused(b"", tree.root, b"key", b"value", why="shows no value")
    refused(b"", ICS23_SMT.null, b"key", None, why="another one")
    refused(b"", state(1)[0].root, b"key", None, why="another one")


def test_a_large_value_stands_as_its_reference() -> None:
    small, large = b"s" * STATE_INLINE_BYTES_MAX, b"l" * (STATE_INLINE_BYTES_MAX + 1)
    assert tree_value(small) == small
    reference = tree_value(large)
    assert reference == b"HOLDFAST-BLOB" + (65537).to_bytes(8, "big") + sha256(large).digest()
    assert (len(reference), is_reference(reference), tree_value(reference)) == (REFERENCE_BYTES, True, reference)
    assert not is_reference(reference + b"x")
    assert not is_reference(b"x" + reference[1:])
    rows = {b"small": small, b"large": large}
    tree = BACKEND.empty(JMT_SHA256).update({key: tree_value(value) for key, value in rows.items()}).tree
    for lookup in (Rows(rows), Rows({b"small": small, b"large": reference})):
        for key, value in rows.items():
            verify_proof(proof_of(tree, key, lookup), tree.root, key, value)
    proof = proof_of(tree, b"large", Rows(rows))
    assert len(proof) < 500
    refused(proof, tree.root, b"large", reference, why="no state has")
    refused(proof, tree.root, b"large", large[:-1])
    refused(proof, tree.root, b"large", large + b"l")


def test_rows_that_are_not_those_of_the_tree_make_no_proof() -> None:
    tree, rows = state(5)
    with pytest.raises(CorruptionError, match="another value"):
        prove(tree, b"key-1", Rows({**rows.rows, b"key-1": b"other"}))
    wrong = Rows(rows.rows)
    wrong.keys = dict.fromkeys(wrong.keys, b"none of them")
    assert encode(prove(tree, b"key-1", wrong)) == encode(prove(tree, b"key-1", rows)), "its own key is not looked up"
    with pytest.raises(CorruptionError, match="another key"):
        prove(tree, b"absent", wrong)
    with pytest.raises(InvalidInputError, match="never empty"):
        prove(tree, b"", rows)


def test_the_verifier_is_light_and_public() -> None:
    assert holdfast.verify_proof is verify_proof
    code = (
        "import sys, holdfast.merkle.verify, holdfast.merkle.multiproof\n"
        "heavy = ('pydantic', 'rocksdict', 'msgspec', 'yaml', 'typer', 'psutil', 'zstandard', 'sortedcontainers')\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "print(sorted(name for name in sys.modules if name.startswith('holdfast')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy, own = done.stdout.splitlines()
    assert heavy == "[]"
    rooms = {name.split(".")[1] for name in eval(own) if "." in name}
    assert rooms == {"errors", "limits", "merkle"}


# -- forgeries -----------------------------------------------------------------------------------------------------

CASES = [
    (scheme, count, key)
    for scheme in SCHEMES.values()
    for count, key in (
        (1, b"key-0"),
        (1, b"absent"),
        (3, b"key-1"),
        (3, b"absent"),
        (40, b"key-7"),
        (40, b"absent"),
        (40, b"absent-2"),
    )
]
cases = pytest.mark.parametrize(
    ("scheme", "count", "key"), CASES, ids=[f"{scheme.name}-{count}-{key.decode()}" for scheme, count, key in CASES]
)


@pytest.mark.slow
@cases
def test_every_flipped_byte_is_refused(scheme: Scheme, count: int, key: bytes) -> None:
    tree, rows = state(count, scheme)
    proof = proof_of(tree, key, rows, scheme)
    value = rows.rows.get(key)
    for at in range(len(proof)):
        for flip in (0x01, 0x80, 0xFF):
            bad = proof[:at] + bytes([proof[at] ^ flip]) + proof[at + 1 :]
            refused(bad, tree.root, key, value, scheme)
        refused(proof[:at], tree.root, key, value, scheme)
        refused(proof[:at] + proof[at + 1 :], tree.root, key, value, scheme)
        refused(proof[:at] + b"\x00" + proof[at:], tree.root, key, value, scheme)
    for spare in (b"\x00", b"\x0a\x00", b"\x12\x00", b"\x1a\x00", proof):
        refused(proof + spare, tree.root, key, value, scheme)


def varint(number: int) -> bytes:
    return bytes([number]) if number < 0x80 else bytes([number & 0x7F | 0x80]) + varint(number >> 7)


def pieces(message: bytes) -> list[tuple[int, bytes]]:
    """(tag, whole field) of each field of a message, by a second, careless reader."""
    found, at = [], 0
    while at < len(message):
        start, tag, at = at, message[at], at + 1
        number, shift = 0, 0
        while True:
            byte, at = message[at], at + 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        at += number if tag & 7 == 2 else 0
        found.append((tag, message[start:at]))
    return found


MESSAGES_IN = {"proof": (0x0A, 0x12), "exist": (0x1A, 0x22), "nonexist": (0x12, 0x1A)}


def rebuilt(name: str, message: bytes) -> Iterator[bytes]:
    """The message with one field, at any depth, dropped, doubled, moved or given another tag."""
    fields = pieces(message)
    parts = [part for _, part in fields]
    for place, (tag, part) in enumerate(fields):
        rest_before, rest_after = parts[:place], parts[place + 1 :]
        yield b"".join(rest_before + rest_after)
        yield b"".join([*rest_before, part, part, *rest_after])
        yield b"".join([*rest_after, part, *rest_before])
        if place:
            yield b"".join([*parts[: place - 1], part, parts[place - 1], *rest_after])
        for other in (tag ^ 1, tag ^ 2, tag + 8, tag + 16, tag - 8):
            yield b"".join([*rest_before, bytes([other & 0xFF]) + part[1:], *rest_after])
        yield b"".join([*rest_before, varint(tag | 0x80)[:1] + b"\x00" + part[1:], *rest_after])
        if tag & 7 == 2:
            body = part[1 + _length_bytes(part) :]
            yield b"".join([*rest_before, part[:1] + bytes([part[1] | 0x80, 0x00]) + part[2:], *rest_after])
            if tag in MESSAGES_IN.get(name, ()):
                inner = "nonexist" if name == "proof" and tag == 0x12 else "exist"
                inner = inner if name in ("proof", "nonexist") else "op"
                for bad in rebuilt(inner, body):
                    yield b"".join([*rest_before, part[:1] + varint(len(bad)) + bad, *rest_after])


def _length_bytes(part: bytes) -> int:
    count = 1
    while part[count] & 0x80:
        count += 1
    return count


@cases
def test_every_rebuilt_message_is_refused(scheme: Scheme, count: int, key: bytes) -> None:
    tree, rows = state(count, scheme)
    proof = proof_of(tree, key, rows, scheme)
    bad = [other for other in rebuilt("proof", proof) if other != proof]
    assert len(bad) > 30
    for other in bad:
        refused(other, tree.root, key, rows.rows.get(key), scheme)


def existence(tree: Tree, key: bytes, rows: Rows) -> ExistenceProof:
    found = prove(tree, key, rows)
    assert isinstance(found, ExistenceProof)
    return found


def test_every_step_is_pinned_to_its_side() -> None:
    tree, rows = state(40)
    proof = existence(tree, b"key-7", rows)
    prefix = JMT_SHA256.inner_prefix
    for place, step in enumerate(proof.path):
        sibling = step.suffix or step.prefix[16:]
        turned = InnerOp(1, prefix + sibling, b"") if step.suffix else InnerOp(1, prefix, sibling)
        bad_steps = [
            turned,
            InnerOp(1, prefix + sibling, sibling),
            InnerOp(1, prefix + sibling[:16], sibling[16:]),
            InnerOp(1, prefix, b""),
            InnerOp(1, prefix + sibling * 2, b""),
            InnerOp(1, prefix, sibling * 2),
            step._replace(hash=2),
            step._replace(hash=0),
            step._replace(prefix=JMT_SHA256.leaf_prefix + step.prefix[16:]),
        ]
        for bad in bad_steps:
            path = (*proof.path[:place], bad, *proof.path[place + 1 :])
            refused(encode(replace(proof, path=path)), tree.root, b"key-7", b"value-7", why="not one of jmt-sha256")
    for path in (proof.path[1:], proof.path[:-1], proof.path[::-1], (*proof.path, proof.path[0]), ()):
        refused(encode(replace(proof, path=path)), tree.root, b"key-7", b"value-7")
    for place in range(len(proof.path) - 1):
        path = (*proof.path[:place], proof.path[place + 1], proof.path[place], *proof.path[place + 2 :])
        refused(encode(replace(proof, path=path)), tree.root, b"key-7", b"value-7")


@pytest.mark.parametrize(
    "leaf",
    [
        None,
        LeafOp(1, 1, 1, 1, JMT_SHA256.leaf_prefix),
        LeafOp(1, 0, 1, 0, JMT_SHA256.leaf_prefix),
        LeafOp(1, 1, 0, 0, JMT_SHA256.leaf_prefix),
        LeafOp(2, 1, 1, 0, JMT_SHA256.leaf_prefix),
        LeafOp(1, 1, 1, 0, b"\x00"),
        LeafOp(1, 1, 1, 0, JMT_SHA256.inner_prefix),
    ],
)
def test_the_leaf_has_one_form(leaf: LeafOp | None) -> None:
    tree, rows = state(3)
    proof = replace(existence(tree, b"key-1", rows), leaf=leaf)
    refused(encode(proof), tree.root, b"key-1", b"value-1", why="not hashed by the rules")


def root_over(proof: ExistenceProof) -> bytes:
    """What a careless verifier computes."""
    node = sha(JMT_SHA256.leaf_prefix + sha(proof.key) + sha(proof.value))
    for step in proof.path:
        node = sha(step.prefix + node + step.suffix)
    return node


def test_a_leaf_that_is_alone_below_its_place_is_of_no_tree() -> None:
    """The root fits, yet no set of rows has it: a verifier that only folds would accept."""
    tree, rows = state(1)
    lone = existence(tree, b"key-0", rows)
    step = InnerOp(1, JMT_SHA256.inner_prefix, JMT_SHA256.null)
    if sha(b"key-0")[0] & 0x80:
        step = InnerOp(1, JMT_SHA256.inner_prefix + JMT_SHA256.null, b"")
    deeper = replace(lone, path=(step,))
    refused(encode(deeper), root_over(deeper), b"key-0", b"value-0", why="alone")


def test_a_proof_over_another_key_does_not_fold_by_its_own_sides() -> None:
    """A made-up tree that has a leaf on the wrong side: its root is real, its path is not that of the key."""
    step = InnerOp(1, JMT_SHA256.inner_prefix, sha(b"other"))
    if not sha(b"key-0")[0] & 0x80:
        step = InnerOp(1, JMT_SHA256.inner_prefix + sha(b"other"), b"")
    forged = ExistenceProof(b"key-0", b"v", LeafOp(1, 1, 1, 0, JMT_SHA256.leaf_prefix), (step,))
    refused(encode(forged), root_over(forged), b"key-0", b"v", why="on its side")


@pytest.mark.slow
def test_neighbours_are_adjacent() -> None:
    tree, rows = state(40)
    order = sorted(rows.rows, key=sha)
    proofs = {key: existence(tree, key, rows) for key in order}
    absent = sorted([*order, *(b"absent-%d" % number for number in range(60))], key=sha)
    accepted = 0
    for key in absent:
        if key in proofs:
            continue
        place = sum(sha(other) < sha(key) for other in order)
        for first in [None, *range(len(order))]:
            for second in [None, *range(len(order))]:
                left = None if first is None else proofs[order[first]]
                right = None if second is None else proofs[order[second]]
                bad = encode(NonExistenceProof(key, left, right))
                right_one = (first == place - 1 if place else first is None) and (
                    second == place if place < len(order) else second is None
                )
                if right_one:
                    verify_proof(bad, tree.root, key, None)
                    accepted += 1
                elif first is None or second is None or abs(first - place) < 3 or abs(second - place) < 3:
                    refused(bad, tree.root, key, None)
        if accepted >= 6:
            break
    assert accepted >= 6


def test_a_present_key_is_not_absent() -> None:
    tree, rows = state(40)
    order = sorted(rows.rows, key=sha)
    proofs = [existence(tree, key, rows) for key in order]
    for place, key in enumerate(order):
        sides = [None, *proofs[max(0, place - 1) : place + 2]]
        for left in sides:
            for right in sides:
                refused(encode(NonExistenceProof(key, left, right)), tree.root, key, None)


def test_neighbours_of_another_root_or_an_empty_row() -> None:
    tree, rows = state(3)
    other, other_rows = state(4)
    found = prove(tree, b"absent", rows)
    assert isinstance(found, NonExistenceProof)
    foreign = prove(other, b"absent", other_rows)
    assert isinstance(foreign, NonExistenceProof)
    for bad in (replace(found, left=foreign.left), replace(found, right=foreign.right)):
        if bad != found:
            refused(encode(bad), tree.root, b"absent", None)
    side = found.left or found.right
    assert side is not None
    empty = replace(side, value=b"")
    node = sha(JMT_SHA256.leaf_prefix + sha(empty.key) + sha(b""))
    lone = replace(empty, path=())
    proof = (
        NonExistenceProof(b"absent", lone, None)
        if sha(lone.key) < sha(b"absent")
        else NonExistenceProof(b"absent", None, lone)
    )
    refused(encode(proof), node, b"absent", None, why="empty key or value")


def test_claims_that_no_state_makes() -> None:
    tree, rows = state(3)
    proof = proof_of(tree, b"key-1", rows)
    refused(proof, tree.root[:31], b"key-1", b"value-1", why="32 bytes")
    refused(proof, tree.root, b"", b"value-1", why="ever empty")
    refused(proof, tree.root, b"key-1", b"", why="ever empty")
    with pytest.raises(InvalidInputError, match="no tree scheme 'md5'"):
        verify_proof(proof, tree.root, b"key-1", b"value-1", scheme="md5")


# -- the codec -----------------------------------------------------------------------------------------------------

numbers = st.integers(0, 2**28 - 1)
short = st.binary(max_size=200)
leaves = st.one_of(st.none(), st.builds(LeafOp, numbers, numbers, numbers, numbers, short))
existences = st.builds(
    ExistenceProof, short, short, leaves, st.lists(st.builds(InnerOp, numbers, short, short), max_size=5).map(tuple)
)
sides = st.one_of(st.none(), existences)
proofs = st.one_of(existences, st.builds(NonExistenceProof, short, sides, sides), st.just(EmptyProof()))


@given(proof=proofs)
def test_what_is_written_is_read(proof: ics23.CommitmentProof) -> None:
    assert decode(encode(proof)) == proof


@given(data=st.binary(max_size=40), proof=proofs, at=st.integers(0, 400), cut=st.integers(0, 3))
def test_what_is_read_is_written_the_same(data: bytes, proof: ics23.CommitmentProof, at: int, cut: int) -> None:
    good = encode(proof)
    for raw in (data, good[:at] + data[:3] + good[at + cut :]):
        try:
            found = decode(raw)
        except ProofInvalid:
            continue
        assert encode(found) == raw


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("1a00", "does not belong"),
        ("2200", "does not belong"),
        ("0800", "does not belong"),
        ("0b", "does not belong"),
        ("0a", "cut off"),
        ("0a80", "cut off"),
        ("0a8000", "shortest"),
        ("8a0000", "shortest"),
        ("0a8080808001", "28 bits"),
        ("0a05", "cut off"),
        ("0a000a00", "behind"),
        ("0a001200", "at once"),
        ("12000a00", "behind"),
        ("0a020a00", "default"),
        ("0a041a020800", "default"),
        ("0a031a0208", "cut off"),
        ("0a0612016b0a016b", "behind"),
    ],
)
def test_what_is_not_read(data: str, why: str) -> None:
    with pytest.raises(ProofInvalid, match=why):
        decode(bytes.fromhex(data))


def test_the_limits_of_a_proof() -> None:
    step = InnerOp(1, b"p", b"")
    deep = ExistenceProof(b"k", b"v", None, (step,) * 256)
    assert decode(encode(deep)) == deep
    with pytest.raises(ProofInvalid, match="257 steps"):
        decode(encode(replace(deep, path=(step,) * 257)))
    with pytest.raises(ProofInvalid, match="at most 1048576"):
        decode(bytes(PROOF_BYTES_MAX + 1))
