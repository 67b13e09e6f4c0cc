"""The tree and its proofs against programs that were written by others: same roots, same bytes, same verdicts."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256

import pytest

from holdfast.errors import ProofInvalid
from holdfast.merkle.api import ICS23_SMT, JMT_SHA256, SCHEMES, Scheme, Tree
from holdfast.merkle.ics23 import CommitmentProof, ExistenceProof, InnerOp, LeafOp, NonExistenceProof, encode
from holdfast.merkle.prove import prove
from holdfast.merkle.pure import BACKEND
from holdfast.merkle.verify import verify_proof
from tests.proofs import others
from tests.proofs.others import Check
from tests.unit.merkle_support import Rows, bit, rows_of, sha

pytestmark = [pytest.mark.proofs, pytest.mark.slow]

both = pytest.mark.parametrize("name", ["rust", "go"])
both_schemes = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda scheme: scheme.name)


@pytest.fixture(autouse=True)
def _built() -> None:
    for name in others.BINARIES:
        if not others.built(name):
            pytest.skip(f"the verifier in {name} is absent; 'make test-proofs' builds it")


def trees(scheme: Scheme, versions: list[others.Changes]) -> list[Tree]:
    tree = BACKEND.empty(scheme)
    found = []
    for changes in versions:
        tree = tree.update(changes).tree
        found.append(tree)
    return found


def ours(check: Check) -> bool:
    scheme, root, key, value, proof = check
    try:
        verify_proof(proof, root, key, value, scheme=scheme)
    except ProofInvalid:
        return False
    return True


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("name", "scheme"), [("rust", JMT_SHA256), ("go", ICS23_SMT)], ids=["jmt", "celestia-smt"])
def test_roots_of_random_versions(name: str, scheme: Scheme, seed: int) -> None:
    versions = others.history(seed, versions=80, changes_max=60, keys_max=[12, 60, 400, 3000][seed])
    assert [tree.root for tree in trees(scheme, versions)] == others.roots(name, versions)
    assert sum(not rows for rows in others.rows_after(versions)) >= 6, "full wipes are among them"


@pytest.mark.parametrize("seed", range(3))
def test_proofs_are_byte_identical_to_those_of_jmt(seed: int) -> None:
    versions = others.history(100 + seed, versions=60, changes_max=50, keys_max=[10, 100, 2000][seed])
    states = others.rows_after(versions)
    source = random.Random(seed)
    wanted = [
        [*source.sample(sorted(rows), min(15, len(rows))), *(b"absent-%d" % source.randrange(999) for _ in range(15))]
        if rows
        else []
        for rows in states
    ]
    made = others.proofs(versions, wanted)
    count = 0
    for tree, rows, keys, given in zip(trees(JMT_SHA256, versions), states, wanted, made, strict=True):
        for key, proof in zip(keys, given, strict=True):
            assert encode(prove(tree, key, Rows(rows))) == proof
            verify_proof(proof, tree.root, key, rows.get(key))
            count += 1
    assert count > 800


def checks_of(scheme: Scheme, seed: int) -> list[Check]:
    """Proofs of present and absent keys of one state."""
    source = random.Random(seed)
    rows = {source.randbytes(source.randint(1, 60)): source.randbytes(source.randint(1, 60)) for _ in range(300)}
    tree = BACKEND.empty(scheme).update(dict(rows)).tree
    keys = [*rows, *(source.randbytes(8) for _ in range(300))]
    return [(scheme.name, tree.root, k, rows.get(k), encode(prove(tree, k, Rows(rows), scheme=scheme))) for k in keys]


@both
@both_schemes
def test_our_proofs_are_accepted(name: str, scheme: Scheme) -> None:
    checks = checks_of(scheme, 5)
    for count in (1, 2, 3):
        rows = rows_of(count)
        tree = BACKEND.empty(scheme).update(dict(rows)).tree
        for key in [*rows, *(b"absent-%d" % number for number in range(20))]:
            proof = encode(prove(tree, key, Rows(rows), scheme=scheme))
            checks.append((scheme.name, tree.root, key, rows.get(key), proof))
    assert all(others.accepted(name, checks))
    assert all(ours(check) for check in checks)


# -- forgeries -----------------------------------------------------------------------------------------------------


def forged_claims(scheme: Scheme) -> Iterator[Check]:
    """Honest proofs for claims that do not hold."""
    other_scheme = next(other for other in SCHEMES.values() if other != scheme)
    for name, root, key, value, proof in checks_of(scheme, 6):
        yield name, root, key, b"other" if value is None else None, proof
        yield name, sha(root), key, value, proof
        yield other_scheme.name, root, key, value, proof
        if value is not None:
            yield name, root, key, value + b"x", proof
            yield name, root, key + b"x", value, proof


def forged_steps(scheme: Scheme) -> Iterator[Check]:
    """Existence proofs whose path or leaf is bent."""
    rows = rows_of(60)
    tree = BACKEND.empty(scheme).update(dict(rows)).tree
    for key in sorted(rows)[:12]:
        proof = prove(tree, key, Rows(rows), scheme=scheme)
        assert isinstance(proof, ExistenceProof)
        assert proof.leaf is not None
        path = proof.path
        bent: list[CommitmentProof] = [
            replace(proof, path=path[1:]),
            replace(proof, path=path[:-1]),
            replace(proof, path=path[::-1]),
            replace(proof, path=(*path, path[-1])),
            replace(proof, leaf=None),
            replace(proof, leaf=replace(proof.leaf, prefix=scheme.inner_prefix)),
            replace(proof, leaf=replace(proof.leaf, prehash_value=0)),
            replace(proof, leaf=replace(proof.leaf, length=1)),
        ]
        for place, step in enumerate(path):
            sibling = step.suffix or step.prefix[len(scheme.inner_prefix) :]
            turned = (
                InnerOp(1, scheme.inner_prefix + sibling, b"")
                if step.suffix
                else InnerOp(1, scheme.inner_prefix, sibling)
            )
            for bad in (
                turned,
                InnerOp(2, step.prefix, step.suffix),
                InnerOp(1, scheme.inner_prefix + sibling, sibling),
            ):
                bent.append(replace(proof, path=(*path[:place], bad, *path[place + 1 :])))
        for bad_proof in bent:
            yield scheme.name, tree.root, key, rows[key], encode(bad_proof)


def forged_neighbours(scheme: Scheme) -> Iterator[Check]:
    """Absence between neighbours that skip a leaf, miss a side, stand on the wrong one, or of a present key."""
    rows = rows_of(40)
    tree = BACKEND.empty(scheme).update(dict(rows)).tree
    order = sorted(rows, key=sha)
    legs = []
    for key in order:
        leg = prove(tree, key, Rows(rows), scheme=scheme)
        assert isinstance(leg, ExistenceProof)
        legs.append(leg)
    for number in range(40):
        key = b"absent-%d" % number
        at = sum(sha(other) < sha(key) for other in order)
        left, right = (legs[at - 1] if at else None), (legs[at] if at < len(legs) else None)
        pairs = [(right, left), (left, None), (None, right), (None, None)]
        if at > 1:
            pairs.append((legs[at - 2], right))
        if at + 1 < len(legs):
            pairs.append((left, legs[at + 1]))
        if 0 < at < len(legs):
            pairs += [(legs[at], legs[at]), (legs[at - 1], legs[at - 1])]
        for pair in pairs:
            if pair != (left, right):
                yield scheme.name, tree.root, key, None, encode(NonExistenceProof(key, *pair))
    for at in range(1, len(order) - 1):
        for pair in ((legs[at - 1], legs[at + 1]), (legs[at - 1], legs[at]), (legs[at], legs[at + 1])):
            yield scheme.name, tree.root, order[at], None, encode(NonExistenceProof(order[at], *pair))


@both
@both_schemes
@pytest.mark.parametrize("forge", [forged_claims, forged_steps, forged_neighbours], ids=lambda forge: forge.__name__)
def test_forgeries_are_refused(name: str, scheme: Scheme, forge: object) -> None:
    assert callable(forge)
    checks: list[Check] = list(forge(scheme))
    assert len(checks) > 200
    assert [check for check in checks if ours(check)] == []
    said = others.accepted(name, checks)
    assert [check for check, verdict in zip(checks, said, strict=True) if verdict] == []


@both_schemes
def test_nobody_accepts_a_flipped_byte_that_we_refuse_but_for_the_key_nobody_reads(scheme: Scheme) -> None:
    """The field ``key`` of a ``NonExistenceProof`` is bound to nothing; the others do not look at it, we do."""
    source = random.Random(9)
    checks: list[Check] = []
    keys: list[Check] = []
    for name, root, key, value, proof in source.sample(checks_of(scheme, 7), 60):
        for at in source.sample(range(len(proof)), 40):
            bad = proof[:at] + bytes([proof[at] ^ 1 << source.randrange(8)]) + proof[at + 1 :]
            start = proof.index(key)
            inside = value is None and start <= at < start + len(key)
            (keys if inside else checks).append((name, root, key, value, bad))
    assert not any(ours(check) for check in checks + keys)
    for name in others.BINARIES:
        said = others.accepted(name, checks)
        assert [check for check, verdict in zip(checks, said, strict=True) if verdict] == []
        assert all(others.accepted(name, keys))
    assert len(checks) > 2000
    assert keys


def ladder(scheme: Scheme, depth: int) -> Check:
    """A leaf ``depth`` bits deep in a tree of ground keys, which only its siblings tell of."""
    key, value = b"deep", b"value"
    node = sha(scheme.leaf_prefix + sha(key) + sha(value))
    path = []
    for level in range(depth - 1, -1, -1):
        sibling = sha(b"%d" % level)
        right = level < 256 and bit(sha(key), level)
        step = InnerOp(1, scheme.inner_prefix + sibling, b"") if right else InnerOp(1, scheme.inner_prefix, sibling)
        node = sha256(step.prefix + node + step.suffix).digest()
        path.append(step)
    leaf = LeafOp(1, 1, 1, 0, scheme.leaf_prefix)
    return scheme.name, node, key, value, encode(ExistenceProof(key, value, leaf, tuple(path)))


@both_schemes
def test_the_published_depth(scheme: Scheme) -> None:
    """With ``max_depth`` 64, as ``jmt`` has it, Go would refuse 65 steps. Rust 0.12.0 does not look at the maximum."""
    fits, deeper = [ladder(scheme, depth) for depth in (64, 65, 200, 256)], ladder(scheme, 257)
    assert [ours(check) for check in fits] == [True] * 4
    assert [others.accepted(name, fits) for name in ("rust", "go")] == [[True] * 4] * 2
    assert not ours(deeper)
    assert others.accepted("go", [deeper]) == [False]


def test_the_recording_is_what_they_say_today() -> None:
    assert json.loads(others.GOLDEN.read_text()) == others.recording()
