"""The xai chain in a store: random transfers and reorganisations against balances kept in a dictionary."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.chains.xai import XaiChain, XaiParameters
from holdfast.chains.xai.chain import to_stored
from holdfast.chains.xai.codec import parse_block
from holdfast.chains.xai.ledger import balance, last_nonce, read_totals, utxos
from holdfast.chains.xai.validation import check_chain
from holdfast.errors import ForeignStore, InvalidBlock, InvalidInputError
from holdfast.store import Store, open_store
from holdfast.store.chain import ChainSpec
from holdfast.types import Block
from tests import xai_makers as make

NAMES = ("a", "b", "c")
COIN = 10**8
GENESIS = make.block(None, [make.tx("COINBASE", name, 20.0, nonce=number) for number, name in enumerate(NAMES)])
RULES = XaiParameters(bytes.fromhex(GENESIS["hash"]), supply_max=100 * COIN)


def stored(document: dict[str, Any]) -> Block:
    return to_stored(parse_block(json.dumps(document).encode()))


def started(rules: XaiParameters = RULES) -> Store:
    store = open_store("memory:", chain=XaiChain(rules))
    store.add(stored(GENESIS))
    return store


moves = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES), st.integers(0, 12), st.integers(0, 2)), max_size=4
)


class Model:
    """Balances, nonces and supply, in coins."""

    def __init__(self) -> None:
        self.money: dict[str, int] = defaultdict(int, dict.fromkeys(NAMES, 20))
        self.nonces: dict[str, int] = defaultdict(lambda: -1)
        self.supply = 60
        self.count = 3

    def block(self, parent: dict[str, Any], wanted: list[tuple[str, str, int, int]], reward: int) -> dict[str, Any]:
        """A block of those of ``wanted`` that their senders can pay, all of which happened."""
        transactions = [make.tx("COINBASE", "m", float(reward), at=make.START + parent["index"])]
        for sender, recipient, amount, fee in wanted:
            if self.money[sender] < amount + fee:
                continue
            self.nonces[sender] += 1
            transactions.append(make.tx(sender, recipient, float(amount), float(fee), nonce=self.nonces[sender]))
            self.money[sender] -= amount + fee
            self.money[recipient] += amount
            self.supply -= fee
        self.money["m"] += reward
        self.supply += reward
        self.count += len(transactions)
        return make.block(parent, transactions, difficulty=0)

    def check(self, store: Store) -> None:
        for name in (*NAMES, "m"):
            assert balance(store.state, name) == self.money[name] * COIN
            assert last_nonce(store.state, name) == self.nonces[name]
        totals = read_totals(store.state)
        assert (totals.supply, totals.transactions) == (self.supply * COIN, self.count)
        assert sum(utxo.units for utxo in utxos(store.state)) == self.supply * COIN
        assert check_chain(store) == (len(list(store.blocks.canonical())), 0)


@settings(max_examples=40, deadline=None)
@given(st.lists(moves, min_size=1, max_size=4), st.lists(moves, min_size=1, max_size=6))
def test_balances_follow_the_canonical_branch(first: list[Any], second: list[Any]) -> None:
    with started() as store:
        one, parent = Model(), GENESIS
        for wanted in first:
            parent = one.block(parent, wanted, 2)
            store.add(stored(parent))
        one.check(store)
        two, other = Model(), GENESIS
        for wanted in second:
            other = two.block(other, wanted, 1)
            store.add(stored(other))
        if len(second) > len(first):
            assert store.tip is not None
            assert store.tip.hash.hex() == other["hash"]
            two.check(store)
            store.reorg(bytes.fromhex(parent["hash"]))
        one.check(store)


def _bad(**fields: Any) -> dict[str, Any]:
    good = make.block(GENESIS, [make.tx("COINBASE", "m", 1.0)], difficulty=1)
    return make.mined({**good, **fields})


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (_bad(previous_hash="1" * 64), "parent"),
        (_bad(merkle_root="0" * 64), "Merkle"),
        (_bad(timestamp=make.START - 10), "older"),
        (_bad(index=2), "height"),
        (_bad(transactions=[{**make.tx("COINBASE", "m", 1.0), "txid": "0" * 64}]), "id"),
        (make.block(GENESIS, [make.tx("COINBASE", "m", 41.0)]), "more money"),
        (make.block(GENESIS, [make.tx("a", "b", 1.0, nonce=1)]), "nonce"),
        (make.block(GENESIS, [make.tx("a", "b", 20.0, 0.5)]), "does not have"),
        (make.block(GENESIS, [make.tx("a", "b", 1.0), make.tx("a", "b", 1.0)]), "twice"),
        (make.block(GENESIS, [make.tx("nobody", "b", 0.00000001)]), "does not have"),
    ],
)
def test_a_block_that_breaks_a_rule_changes_nothing(document: dict[str, Any], why: str) -> None:
    with started() as store:
        before = list(store.state.scan())
        with pytest.raises(Exception, match=why) as caught:
            store.add(stored(document))
        assert caught.value.code in ("invalid_block", "parent_unknown")  # type: ignore[attr-defined]
        assert list(store.state.scan()) == before


def test_the_proof_of_work_is_asked_for() -> None:
    weak = make.block(GENESIS, [], difficulty=0)
    while weak["hash"].startswith("0"):
        weak = make.mined({**weak, "timestamp": weak["timestamp"] + 1})
    with started() as store, pytest.raises(InvalidBlock, match="proof of work"):
        store.add(stored({**weak, "difficulty": 1}))
    strict = XaiParameters(RULES.genesis, difficulty_min=1)
    with started(strict) as store, pytest.raises(InvalidBlock, match="too low"):
        store.add(stored(weak))


def test_another_genesis_is_refused() -> None:
    other = make.block(None, [make.tx("COINBASE", "a", 1.0)])
    store = open_store("memory:", chain=XaiChain(RULES))
    with store, pytest.raises(InvalidBlock, match="genesis"):
        store.add(stored(other))


def test_the_first_block_may_make_more_than_the_cap_and_no_other_may() -> None:
    """The original's default genesis makes a thousand million where the cap is 121 million."""
    rules = XaiParameters(RULES.genesis, supply_max=10 * COIN)
    with started(rules) as store:
        parent = make.block(GENESIS, [make.tx("COINBASE", "m", 1.0), make.tx("a", "b", 1.0, 1.0)])
        store.add(stored(parent))
        with pytest.raises(InvalidBlock, match="more money"):
            store.add(stored(make.block(parent, [make.tx("COINBASE", "m", 0.00000001)])))


def test_parameters_name_the_chain() -> None:
    chain = XaiChain(XaiParameters(bytes(32), network="test", difficulty_min=2))
    assert XaiChain.from_spec(chain.spec).parameters == chain.parameters
    with pytest.raises(ForeignStore):
        XaiChain.from_spec(ChainSpec(name="pow"))
    for name, text in (("genesis", "x"), ("supply_max", "-1"), ("difficulty_min", "64"), ("halving_blocks", "0")):
        with pytest.raises(InvalidInputError):
            XaiParameters.from_mapping({**chain.parameters.as_mapping(), name: text})
    with pytest.raises(InvalidInputError):
        XaiParameters.from_mapping({"genesis": "00"})


@pytest.mark.parametrize(
    ("height", "supply", "reward"), [(1, 0, 12.0), (262_800, 0, 6.0), (1, 121_000_000, 0), (10**9, 0, 1e-8)]
)
def test_rewards_halve_and_end_at_the_cap(height: int, supply: int, reward: float) -> None:
    assert XaiParameters(bytes(32)).reward_at(height, supply * COIN) == round(reward * COIN)
