"""Roots and ICS-23 proofs that programs of others made (``tests/proofs/others.py`` records them): ours are the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from holdfast.merkle.api import SCHEMES
from holdfast.merkle.backend import backend
from holdfast.merkle.ics23 import decode, encode
from holdfast.merkle.multiproof import prove_many, verify_many
from holdfast.merkle.prove import prove
from holdfast.merkle.pure import BACKEND
from holdfast.merkle.verify import verify_proof
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
