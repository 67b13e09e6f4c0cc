"""Roots and ICS-23 proofs that programs of others made (``tests/proofs/others.py`` records them): ours are the same."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import ProofInvalid
from holdfast.merkle.api import SCHEMES
from holdfast.merkle.backend import backend
from holdfast.merkle.ics23 import decode, encode
from holdfast.merkle.multiproof import prove_many, verify_many
from holdfast.merkle.prove import prove
from holdfast.merkle.pure import BACKEND
from holdfast.merkle.verify import verify_proof
from tests.golden import mini_proofs
from tests.unit.merkle_support import Rows

RECORDING = Path(__file__).with_name("proofs-1.json")


@pytest.mark.parametrize("maker", ["twin", "default"])
def test_recorded_roots_and_proofs(maker: str) -> None:
    versions = json.loads(RECORDING.read_text())["versions"]
    made = BACKEND if maker == "twin" else backend()
    trees = {name: made.empty(scheme) for name, scheme in SCHEMES.items()}
    rows: dict[bytes, bytes] = {}
    proofs = 0
    for version in versions:
        changes = {bytes.fromhex(key): value and bytes.fromhex(value) for key, value in version["changes"].items()}
        rows = {key: value for key, value in {**rows, **changes}.items() if value is not None}
        for name in SCHEMES:
            trees[name] = trees[name].update(changes).tree
            assert trees[name].root.hex() == version[name]
        tree = trees["jmt-sha256"]
        asked = [bytes.fromhex(key) for key in version["proofs"]]
        for key in asked:
            recorded = bytes.fromhex(version["proofs"][key.hex()])
            assert encode(prove(tree, key, Rows(rows))) == recorded
            assert encode(decode(recorded)) == recorded
            verify_proof(recorded, bytes.fromhex(version["jmt-sha256"]), key, rows.get(key))
            proofs += 1
        if asked:
            verify_many(prove_many(tree, asked, Rows(rows)), tree.root, {key: rows.get(key) for key in asked})
    assert (len(versions), proofs) == (16, 60)


def verdicts(proof: bytes, root: bytes, claims: dict[bytes, bytes | None], scheme: str) -> tuple[bool, bool]:
    """What our verifier says, and what the one that was written from the document says."""
    ours = theirs = True
    try:
        verify_many(proof, root, claims, scheme=scheme)
    except ProofInvalid:
        ours = False
    try:
        mini_proofs.check(proof, root, claims, scheme)
    except mini_proofs.Bad:
        theirs = False
    return ours, theirs


@pytest.mark.parametrize("name", sorted(SCHEMES))
@given(count=st.integers(0, 40), asked=st.sets(st.integers(0, 60), min_size=1, max_size=8), seed=st.integers(0, 999))
def test_proofs_of_many_keys_by_the_document(name: str, count: int, asked: set[int], seed: int) -> None:
    source = random.Random(seed)
    rows = {b"k%d" % number: b"v%d" % number for number in range(count)}
    tree = BACKEND.empty(SCHEMES[name]).update(dict(rows)).tree
    claims = {b"k%d" % number: rows.get(b"k%d" % number) for number in asked}
    proof = prove_many(tree, claims, Rows(rows), scheme=SCHEMES[name])
    assert verdicts(proof, tree.root, claims, name) == (True, True)
    for _ in range(20):
        at = source.randrange(len(proof))
        end = at + source.choice([0, 1, 32])
        bad = proof[:at] + source.choice([b"", b"\x00", source.randbytes(1), bytes(32), proof[:32]]) + proof[end:]
        assert verdicts(bad, tree.root, claims, name) == (bad == proof, bad == proof)
    for key in claims:
        other = {**claims, key: source.choice([None, b"w", rows.get(key)])}
        assert verdicts(proof, tree.root, other, name) == (other == claims, other == claims)
