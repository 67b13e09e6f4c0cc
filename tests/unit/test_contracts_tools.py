"""JSON in and out: amounts keep every digit, and what does not fit the ABI is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.contracts import (
    Address,
    CallContext,
    ContractExecutor,
    ContractRegistry,
    Deploy,
    Plain,
    contract_address,
    decode_arguments,
)
from holdfast.contracts.codec import type_of
from holdfast.contracts.examples import EXAMPLES, Token
from holdfast.contracts.limits import INT_MAX, INT_MIN
from holdfast.contracts.tools import (
    address_from_text,
    arguments_from_json,
    call_from_json,
    code_at,
    deploy_from_json,
    list_codes,
    list_contracts,
    receipt_to_json,
    transaction_to_json,
    value_from_json,
    value_to_json,
    view_json,
)
from holdfast.errors import InvalidInputError, NotFoundError
from tests.contract_makers import ALICE, BOB, GAS, NOWHERE, Counter, DictState

TOKEN = contract_address(ALICE, 0)


@pytest.fixture
def state() -> DictState:
    """A state with a token of Alice and 2**70 units of Bob."""
    registry = ContractRegistry(EXAMPLES)
    executor = ContractExecutor(registry)
    state = DictState()
    executor.begin_block(state, height=1, timestamp=10)
    context = CallContext(ALICE, 1, 10, GAS, bytes(32))
    made = deploy_from_json(registry, "token", 1, {"symbol": "HLD", "decimals": "18"}, caller=ALICE, gas_limit=GAS)
    assert isinstance(made.action, Deploy)
    executor.deploy(made.action, context)
    executor.finalize_block()
    executor.begin_block(state, height=1, timestamp=10)
    mint = call_from_json(registry, state, TOKEN, "mint", [hexed(BOB), str(2**70)], caller=ALICE, gas_limit=GAS)
    assert not isinstance(mint.action, Deploy)
    assert executor.execute_call(mint.action, context).ok
    executor.finalize_block()
    return state


def hexed(raw: bytes) -> str:
    return "0x" + raw.hex()


values = st.one_of(
    st.tuples(st.just(int), st.integers(INT_MIN, INT_MAX)),
    st.tuples(st.just(bool), st.booleans()),
    st.tuples(st.just(str), st.text(st.characters(exclude_categories=["Cs"]))),
    st.tuples(st.just(bytes), st.binary()),
    st.tuples(st.just(Address), st.binary(min_size=20, max_size=20).map(Address)),
    st.tuples(st.just(list[int]), st.lists(st.integers(INT_MIN, INT_MAX))),
    st.tuples(st.just(None), st.none()),
)


@given(values)
def test_values_survive_json(case: tuple[Any, Plain]) -> None:
    kind, value = case
    parsed = json.loads(json.dumps(value_to_json(value)))
    assert value_from_json(parsed, type_of(kind)) == value


def test_small_json_numbers_are_taken_and_large_ones_are_not() -> None:
    whole = type_of(int)
    assert value_from_json(2**53 - 1, whole) == 2**53 - 1
    assert value_from_json(str(2**53), whole) == 2**53
    assert value_to_json(5) == "5"
    for bad in (2**53, -(2**53), 1.0, True, None, "1.0", "1e3", "0x10", " 1", "+1", "01", "-0", "", "1_0", "9" * 79):
        with pytest.raises(InvalidInputError, match="decimal text"):
            value_from_json(bad, whole)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("ab", bytes),
        ("0xa", bytes),
        ("0xAB", bytes),
        (3, bytes),
        ("0x" + "00" * 19, Address),
        ("0x" + "00" * 21, Address),
        (None, Address),
        (1, str),
        ("true", bool),
        (1, bool),
        ("1", list[int]),
        ([1.5], list[int]),
        (0, None),
    ],
)
def test_other_json_is_refused(value: object, kind: object) -> None:
    with pytest.raises(InvalidInputError):
        value_from_json(value, type_of(kind))


def test_arguments_are_taken_in_order_or_by_name() -> None:
    code = ContractRegistry([Token]).get("token", 1)
    assert code is not None
    transfer = code.methods["transfer"]
    in_order = arguments_from_json(transfer, [hexed(BOB), "5"])
    assert in_order == arguments_from_json(transfer, {"amount": 5, "to": hexed(BOB)})
    assert decode_arguments(in_order, transfer.types) == [BOB, 5]
    assert arguments_from_json(None, []) == b"\x00"
    for bad, why in (
        ([hexed(BOB)], "takes the arguments to, amount"),
        ({"to": hexed(BOB)}, "takes the arguments to, amount"),
        ({"to": hexed(BOB), "amount": 1, "more": 1}, "takes the arguments to, amount"),
        ([hexed(BOB), 0.5], "argument 'amount' of transfer"),
        (["bob", 1], "argument 'to' of transfer"),
    ):
        with pytest.raises(InvalidInputError, match=why):
            arguments_from_json(transfer, bad)
    with pytest.raises(InvalidInputError, match="the deployment takes the arguments none"):
        arguments_from_json(None, [1])


def test_what_is_deployed_is_listed(state: DictState) -> None:
    code = ContractRegistry(EXAMPLES).get("token", 1)
    assert code is not None
    assert list_contracts(state) == [
        {
            "address": hexed(TOKEN),
            "name": "token",
            "version": 1,
            "abi_hash": code.abi_hash.hex(),
            "deployer": hexed(ALICE),
        }
    ]
    assert code_at(ContractRegistry(EXAMPLES), state, TOKEN).name == "token"
    with pytest.raises(NotFoundError, match="nothing is deployed"):
        code_at(ContractRegistry(EXAMPLES), state, NOWHERE)
    with pytest.raises(NotFoundError, match="does not have the code"):
        code_at(ContractRegistry([Counter]), state, TOKEN)
    codes = list_codes(ContractRegistry(EXAMPLES))
    assert [row["name"] for row in codes] == ["escrow", "names", "token"]
    json.dumps(codes)


def test_a_view_is_asked_in_json(state: DictState) -> None:
    executor = ContractExecutor(ContractRegistry(EXAMPLES))
    found = view_json(executor, state, TOKEN, "balance_of", {"owner": hexed(BOB)}, height=2, timestamp=20)
    gas = found.pop("gas_used")
    assert found == {"status": "ok", "result": str(2**70), "error": "", "events": []}
    assert isinstance(gas, str)
    assert int(gas) > 1000
    refused = view_json(executor, state, TOKEN, "burn", [1], height=2, timestamp=20, caller=BOB)
    assert (refused["status"], refused["result"]) == ("reverted", None)
    with pytest.raises(InvalidInputError, match="no method"):
        view_json(executor, state, TOKEN, "missing", [], height=2, timestamp=20)


def test_transactions_and_receipts_are_plain_json(state: DictState) -> None:
    registry = ContractRegistry(EXAMPLES)
    call = call_from_json(registry, state, TOKEN, "transfer", [hexed(ALICE), 1], caller=BOB, gas_limit=9, nonce=2)
    assert transaction_to_json(call) == {
        "hash": call.hash.hex(),
        "caller": hexed(BOB),
        "gas_limit": "9",
        "nonce": "2",
        "arguments": hexed(call.action.arguments),
        "kind": "call",
        "address": hexed(TOKEN),
        "method": "transfer",
    }
    deploy = deploy_from_json(registry, "escrow", 1, caller=BOB, gas_limit=9)
    assert transaction_to_json(deploy)["kind"] == "deploy"
    executor = ContractExecutor(registry)
    executor.begin_block(state, height=3, timestamp=30)
    assert not isinstance(call.action, Deploy)
    receipt = executor.execute_call(call.action, CallContext(BOB, 3, 30, GAS, call.hash))
    found = receipt_to_json(receipt, type_of(None))
    assert found["events"] == [
        {
            "address": hexed(TOKEN),
            "name": "transferred",
            "fields": {"sender": hexed(BOB), "to": hexed(ALICE), "amount": "1"},
        }
    ]
    assert found["result"] is None
    json.dumps([found, transaction_to_json(call)])


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(NotFoundError, match="no such contract"):
        deploy_from_json(ContractRegistry(), "token", 1, caller=ALICE, gas_limit=1)
    with pytest.raises(InvalidInputError, match="40 small hex digits"):
        address_from_text("0x00")
    assert address_from_text(hexed(BOB)) == BOB
