"""The same block gives the same root and receipts in every process: other hash seeds, other orders, other stacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import random, sys, threading
from hashlib import sha256
from holdfast.contracts import *
from holdfast.contracts.examples import EXAMPLES
from holdfast.contracts.codec import type_of
from tests.contract_makers import ALICE, BOB, CAROL, Counter, DictState, Proxy, pack

order, depth = int(sys.argv[1]), int(sys.argv[2])

def run():
    contracts = [*EXAMPLES, Counter, Proxy]
    random.Random(order).shuffle(contracts)
    chain = ContractChain(ContractRegistry(contracts))
    rows = [(b"\\x01k" + bytes([n]), bytes([n + 1])) for n in range(200)]
    random.Random(order).shuffle(rows)
    state = DictState()
    for key, value in rows:
        state[key] = value
    token, escrow, counter = (contract_address(ALICE, number) for number in range(3))
    b0 = contract_address(BOB, 0)
    def call(who, where, method, *arguments, nonce=0):
        return Transaction(who, Call(where, method, pack(*arguments)), 400_000, nonce)
    def deploy(who, name, *arguments):
        return Transaction(who, Deploy(name, 1, pack(*arguments)), 400_000)
    blocks = [
        [
            deploy(ALICE, "token", "HLD", 18),
            deploy(ALICE, "escrow"),
            deploy(ALICE, "counter"),
            deploy(BOB, "proxy", counter),
            call(ALICE, token, "mint", ALICE, 10**30),
            call(ALICE, token, "approve", escrow, 10**20),
            call(ALICE, escrow, "deposit", token, BOB, CAROL, 10**20, 9),
            *(call(ALICE, counter, "note", f"n{n}", n) for n in range(30)),
        ],
        [
            call(CAROL, escrow, "release", 0),
            call(BOB, b0, "add_fail_add"),
            call(BOB, b0, "forward_and_catch", "add_then_break", 3),
            call(BOB, b0, "forward", "add_then_revert", 3),
            call(BOB, b0, "call_myself", 0),
            call(BOB, counter, "fall", 0),
            call(BOB, counter, "fall_in_helper"),
            call(BOB, counter, "hide_out_of_gas"),
            call(BOB, counter, "odd_revert"),
            call(BOB, counter, "forget", "n3"),
            call(BOB, counter, "list_notes", "n2", 9, True),
            call(BOB, counter, "missing"),
            call(BOB, CAROL, "missing"),
            call(BOB, counter, "add"),
        ],
    ]
    for height, transactions in enumerate(blocks, 1):
        receipts = encode_receipts(chain.apply(transactions, height, height * 10, state))
        print(state.root().hex(), sha256(receipts).hexdigest(), height, len(receipts), sep="\\n")

def down(levels):
    return run() if levels == 0 else down(levels - 1)

down(depth)
"""


@pytest.mark.slow
def test_seeds_orders_and_stacks_change_nothing() -> None:
    """PR #2283: the order of a hash map decided the root, and nodes split after every restart."""
    answers = set()
    for seed, order, depth in (("0", "0", "0"), ("1", "1", "0"), ("2", "2", "700")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, order, depth], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        answers.add(done.stdout)
    (answer,) = answers
    assert answer == EXPECTED


EXPECTED = """\
a859c0fda92493bc71d7df5c20aeb3e8b50af95229de3b280ab3b07e94967f73
7d45625e7a40681867f8ced665a0332455f62bc689a2c98ddd864f680fc53482
1
1273
3239ee5e1522ab8afc667402b8b8904bf444dadf26f24ad9703c3f5ab0d1aee0
1c74382841e04f61087cb61d116ef39d0e09ca4b16580fc130f66b6079432e9c
2
1431
"""
"""Pinned: another machine, another Python, or a change of the rules or of the contracts above is found here."""
