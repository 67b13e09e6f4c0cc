"""The three examples: the token against a dumb reference, the register of names, and the escrow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.contracts import Address, Contract, Map, Status, encode_receipts, entry, init, view
from holdfast.contracts.examples import EXAMPLES, Escrow, Names, Token
from holdfast.contracts.limits import INT_MAX, INT_MIN
from tests.contract_makers import ALICE, BOB, CAROL, GAS, NOWHERE, Bench, value_of

PEOPLE = [ALICE, BOB, CAROL, NOWHERE]


def events_of(bench: Bench, receipt: Any) -> list[tuple[str, dict[str, object]]]:
    from holdfast.contracts.tools import receipt_to_json

    return [(e["name"], e["fields"]) for e in receipt_to_json(receipt)["events"]]  # type: ignore[attr-defined]


# -- the token -------------------------------------------------------------------------------------------------------


@dataclass
class Ledger:
    """What the token should be, with Python's own numbers."""

    minter: Address
    supply: int = 0
    balances: dict[Address, int] = field(default_factory=dict)
    allowances: dict[tuple[Address, Address], int] = field(default_factory=dict)

    def balance(self, who: Address) -> int:
        return self.balances.get(who, 0)

    def apply(self, caller: Address, method: str, arguments: tuple[Any, ...]) -> bool:
        """True if it is allowed; then it is done."""
        if method == "mint":
            to, amount = arguments
            if caller != self.minter or amount <= 0 or self.supply + amount > INT_MAX:
                return False
            self.supply += amount
            self.balances[to] = self.balance(to) + amount
        elif method == "burn":
            (amount,) = arguments
            if not 0 < amount <= self.balance(caller):
                return False
            self.supply -= amount
            self.balances[caller] -= amount
        elif method == "transfer":
            to, amount = arguments
            if not 0 < amount <= self.balance(caller):
                return False
            self.balances[caller] -= amount
            self.balances[to] = self.balance(to) + amount
        elif method == "approve":
            spender, amount = arguments
            if amount < 0:
                return False
            self.allowances[(caller, spender)] = amount
        else:
            owner, to, amount = arguments
            if not 0 < amount <= min(self.balance(owner), self.allowances.get((owner, caller), 0)):
                return False
            self.allowances[(owner, caller)] -= amount
            self.balances[owner] -= amount
            self.balances[to] = self.balance(to) + amount
        return True


people = st.sampled_from(PEOPLE)
amounts = st.one_of(
    st.integers(-1, 6), st.sampled_from([INT_MAX, INT_MAX - 3, INT_MIN, 2**53, 2**64, 10**18]), st.integers(0, INT_MAX)
)
token_calls = st.lists(
    st.tuples(
        people,
        st.one_of(
            st.tuples(st.just("mint"), st.tuples(people, amounts)),
            st.tuples(st.just("burn"), st.tuples(amounts)),
            st.tuples(st.just("transfer"), st.tuples(people, amounts)),
            st.tuples(st.just("approve"), st.tuples(people, amounts)),
            st.tuples(st.just("transfer_from"), st.tuples(people, people, amounts)),
        ),
        st.sampled_from([GAS, GAS, GAS, GAS, 3_000]),
        st.booleans(),
    ),
    max_size=25,
)


@pytest.mark.slow
@given(token_calls)
def test_the_token_equals_a_ledger_and_no_unit_is_made_or_lost(
    calls: list[tuple[Address, tuple[str, tuple[Any, ...]], int, bool]],
) -> None:
    bench = Bench(*EXAMPLES)
    token = bench.deploy("token", "HLD", 18)
    bench.call(token, "mint", ALICE, 5)
    ledger = Ledger(ALICE, 5, {ALICE: 5})
    for caller, (method, arguments), gas, end_block in calls:
        receipt = bench.call(token, method, *arguments, caller=caller, gas=gas)
        if receipt.status is not Status.OUT_OF_GAS:
            assert receipt.ok == ledger.apply(caller, method, arguments), receipt
            assert receipt.ok or receipt.status is Status.REVERTED
        if end_block:
            bench.next()
    assert bench.ask(token, "total_supply") == ledger.supply == sum(ledger.balances.values())
    for who in PEOPLE:
        assert bench.ask(token, "balance_of", who) == ledger.balance(who)
        for spender in PEOPLE:
            assert bench.ask(token, "allowance", who, spender) == ledger.allowances.get((who, spender), 0)
    bench.executor.finalize_block()
    kept = [key for key in bench.state.rows if b"balances" in key or b"allowances" in key]
    assert len(kept) == sum(v > 0 for v in (*ledger.balances.values(), *ledger.allowances.values())), "zeros take room"


def test_the_token_tells_what_it_is_and_what_it_does() -> None:
    bench = Bench(Token)
    token = bench.deploy("token", "HLD", 18)
    assert [bench.ask(token, name) for name in ("name_of", "decimals_of", "total_supply")] == ["HLD", 18, 0]
    minted = bench.call(token, "mint", BOB, 2**200)
    assert events_of(bench, minted) == [
        ("transferred", {"sender": "0x" + "00" * 20, "to": "0x" + "b0" * 20, "amount": str(2**200)})
    ]
    assert bench.call(token, "transfer", BOB, 1).error == "ContractRevert: the balance is too small"
    assert bench.call(token, "mint", BOB, 1, caller=BOB).error == "ContractRevert: only the minter mints"
    assert bench.call(token, "mint", BOB, INT_MAX).error == "ContractRevert: the supply would be too large"
    assert bench.call(token, "transfer_from", BOB, ALICE, 1).error == "ContractRevert: the allowance is too small"


@pytest.mark.parametrize("arguments", [("", 0), ("X" * 17, 0), ("X", -1), ("X", 37)])
def test_a_token_has_a_symbol_and_decimals(arguments: tuple[str, int]) -> None:
    bench = Bench(Token)
    with pytest.raises(AssertionError, match=r"ContractRevert: (a symbol|decimals)"):
        bench.deploy("token", *arguments)


# -- names -----------------------------------------------------------------------------------------------------------


def test_a_name_is_held_for_a_period_and_free_afterwards() -> None:
    bench = Bench(Names)
    names = bench.deploy("names", 10)
    assert bench.ask(names, "register", "alice") == 11
    assert bench.call(names, "register", "alice", caller=BOB).error == "ContractRevert: somebody has this name"
    assert bench.ask(names, "owner_of", "alice") == [ALICE]
    assert bench.ask(names, "resolve", "alice") == ALICE
    bench.next(height=10)
    assert bench.ask(names, "end_of", "alice") == 11
    assert bench.ask(names, "names_of", ALICE, "") == ["alice"]
    bench.next(height=11)
    assert bench.ask(names, "owner_of", "alice") == []
    assert bench.ask(names, "end_of", "alice") == 0
    assert bench.ask(names, "names_of", ALICE, "") == []
    assert bench.call(names, "renew", "alice").error == "ContractRevert: nobody has this name"
    assert bench.call(names, "resolve", "alice").error == "ContractRevert: nobody has this name"
    assert bench.call(names, "register", "alice", caller=BOB).ok
    assert bench.ask(names, "owner_of", "alice") == [BOB]
    assert bench.ask(names, "names_of", ALICE, "") == []
    assert bench.ask(names, "names_of", BOB, "") == ["alice"]


def test_a_name_is_renewed_moved_pointed_and_released() -> None:
    bench = Bench(Names)
    names = bench.deploy("names", 10)
    for name in ("b", "a", "c-1"):
        bench.call(names, "register", name)
    assert bench.ask(names, "names_of", ALICE, "") == ["a", "b", "c-1"]
    assert bench.ask(names, "names_of", ALICE, "a") == ["b", "c-1"]
    assert bench.ask(names, "renew", "a") == 21
    assert bench.call(names, "point", "a", CAROL).ok
    assert bench.ask(names, "resolve", "a") == CAROL
    assert bench.call(names, "move", "a", BOB).ok
    assert bench.ask(names, "resolve", "a") == BOB
    assert bench.ask(names, "end_of", "a") == 21
    assert bench.ask(names, "names_of", ALICE, "") == ["b", "c-1"]
    for method, arguments in (("renew", ()), ("point", (ALICE,)), ("move", (ALICE,)), ("release", ())):
        receipt = bench.call(names, method, "a", *arguments)
        assert receipt.error == "ContractRevert: somebody else has this name"
    assert bench.call(names, "move", "b", ALICE).ok, "to oneself"
    assert bench.ask(names, "names_of", ALICE, "") == ["b", "c-1"]
    for name, caller in (("a", BOB), ("b", ALICE), ("c-1", ALICE)):
        assert bench.call(names, "release", name, caller=caller).ok
    bench.executor.finalize_block()
    left = [key for key in bench.state.rows if key.startswith(b"\x14") and b"\x06period" not in key]
    assert left == []


@pytest.mark.parametrize("name", ["", "x" * 33, "Alice", "a b", "a.b", "\u00e9"])
def test_a_name_has_plain_letters(name: str) -> None:
    bench = Bench(Names)
    names = bench.deploy("names", 10)
    assert bench.call(names, "register", name).error.startswith("ContractRevert: a name has")


# -- the escrow ------------------------------------------------------------------------------------------------------


@pytest.fixture
def deal() -> tuple[Bench, Address, Address]:
    """Alice has put 40 of her 100 tokens into an escrow for Bob, with Carol as arbiter, until height 10."""
    bench = Bench(Token, Escrow)
    token = bench.deploy("token", "HLD", 0)
    escrow = bench.deploy("escrow")
    bench.call(token, "mint", ALICE, 100)
    bench.call(token, "approve", escrow, 40)
    assert bench.ask(escrow, "deposit", token, BOB, CAROL, 40, 10) == 0
    return bench, token, escrow


def balances(bench: Bench, token: Address, *who: Address) -> list[object]:
    return [bench.ask(token, "balance_of", owner) for owner in who]


@pytest.mark.parametrize("who", [ALICE, CAROL])
def test_the_buyer_or_the_arbiter_releases(deal: tuple[Bench, Address, Address], who: Address) -> None:
    bench, token, escrow = deal
    assert balances(bench, token, ALICE, BOB, escrow) == [60, 0, 40]
    assert bench.call(escrow, "release", 0, caller=BOB).error.startswith("ContractRevert: only the buyer")
    receipt = bench.call(escrow, "release", 0, caller=who)
    assert [event for event, _ in events_of(bench, receipt)] == ["transferred", "closed"]
    assert balances(bench, token, ALICE, BOB, escrow) == [60, 40, 0]
    assert bench.ask(escrow, "state_of", 0) == "released"
    for method in ("release", "refund"):
        assert bench.call(escrow, method, 0, caller=CAROL).error == "ContractRevert: the deal is closed"


def test_the_buyer_has_it_back_from_the_deadline_on(deal: tuple[Bench, Address, Address]) -> None:
    bench, token, escrow = deal
    bench.next(height=9)
    assert bench.call(escrow, "refund", 0).error == "ContractRevert: not yet"
    bench.next(height=10)
    assert bench.call(escrow, "refund", 0).ok
    assert balances(bench, token, ALICE, BOB, escrow) == [100, 0, 0]
    assert bench.ask(escrow, "state_of", 0) == "refunded"


@pytest.mark.parametrize("who", [BOB, CAROL])
def test_seller_and_arbiter_may_give_it_back_early(deal: tuple[Bench, Address, Address], who: Address) -> None:
    bench, token, escrow = deal
    assert bench.call(escrow, "refund", 0, caller=who).ok
    assert balances(bench, token, ALICE, escrow) == [100, 0]


def test_a_deposit_that_cannot_be_paid_opens_nothing(deal: tuple[Bench, Address, Address]) -> None:
    bench, token, escrow = deal
    receipt = bench.call(escrow, "deposit", token, BOB, CAROL, 1, 10)
    assert receipt.error == "CallFailed: ContractRevert: the allowance is too small"
    assert bench.call(escrow, "state_of", 1).error == "MissingKey: states has no value for this key"
    assert bench.call(escrow, "deposit", token, BOB, CAROL, 0, 10).error.startswith("ContractRevert: an amount")
    assert bench.call(escrow, "deposit", token, BOB, CAROL, 1, 1).error.startswith("ContractRevert: the deadline")
    assert bench.call(escrow, "deposit", NOWHERE, BOB, CAROL, 1, 10).error.startswith("CallFailed: nothing is deployed")
    assert balances(bench, token, ALICE, escrow) == [60, 40]


class Greedy(Contract, name="greedy", version=1):
    """A token that says yes, moves nothing, and calls the escrow again while it is paid out."""

    balances = Map(Address, int)
    escrow = Map(int, Address)

    @init
    def create(self, escrow: Address) -> None:
        self.escrow[0] = escrow

    @view
    def balance_of(self, owner: Address) -> int:
        return self.balances.get(owner, 0)

    @entry
    def give(self, to: Address, amount: int) -> None:
        self.balances[to] = amount

    @entry
    def transfer_from(self, owner: Address, to: Address, amount: int) -> None:
        if self.balances.get(owner, 0):
            self.balances[to] = self.balances.get(to, 0) + amount

    @entry
    def transfer(self, to: Address, amount: int) -> None:
        self.balances[to] = self.balances.get(to, 0) + amount
        self.call(self.escrow[0], "refund", 0)


def test_a_bad_token_cannot_fool_the_escrow() -> None:
    bench = Bench(Token, Escrow, Greedy)
    escrow = bench.deploy("escrow")
    greedy = bench.deploy("greedy", escrow)
    receipt = bench.call(escrow, "deposit", greedy, BOB, greedy, 5, 10)
    assert receipt.error == "ContractRevert: the token did not move what was asked for"
    bench.call(greedy, "give", ALICE, 1)
    assert value_of(bench.call(escrow, "deposit", greedy, BOB, greedy, 5, 10)) == 0
    receipt = bench.call(escrow, "release", 0)
    assert receipt.error == "CallFailed: CallFailed: ContractRevert: the deal is closed"
    assert bench.ask(escrow, "state_of", 0) == "open"
    encode_receipts([receipt])
