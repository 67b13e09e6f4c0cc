"""The executor: blocks, calls, what is undone, what is paid, and what a node's own failure does.

Names such as PR #1961 are incidents of the system whose users this room serves; each is a test here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from holdfast.contracts import (
    Address,
    Call,
    CallContext,
    Contract,
    ContractExecutor,
    ContractRegistry,
    Deploy,
    GasSchedule,
    Receipt,
    Status,
    Value,
    contract_address,
    deployments,
    encode_arguments,
    encode_receipts,
    entry,
)
from holdfast.contracts.codec import decode_any
from holdfast.contracts.gas import GasMeter
from holdfast.contracts.limits import CALL_DEPTH_MAX, METHOD_DEPTH_MAX
from holdfast.contracts.registry import decode_deployment, deployment_key, encode_deployment, nonce_key
from holdfast.contracts.signals import OutOfGas
from holdfast.errors import (
    CorruptionError,
    DeviceError,
    InvalidInputError,
    LimitExceeded,
    ResourceExhausted,
    StateError,
)
from tests.contract_makers import ALICE, BOB, GAS, NOWHERE, Bench, Counter, DictState, Proxy, pack, value_of


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -- the block -------------------------------------------------------------------------------------------------------


def test_a_later_call_sees_what_an_earlier_one_wrote(bench: Bench) -> None:
    counter = bench.deploy("counter")
    assert bench.ask(counter, "add", 3) == 3
    assert bench.ask(counter, "add", 4) == 7
    assert bench.ask(counter, "get") == 7


def test_nothing_reaches_the_state_before_the_end_and_then_all_at_once(bench: Bench) -> None:
    counter = bench.deploy("counter")
    bench.call(counter, "add", 3)
    bench.call(counter, "note", "a", 1)
    assert (bench.state.rows, bench.state.updates) == ({}, 0)
    root = bench.executor.finalize_block()
    assert bench.state.updates == 1
    assert root == bench.state.root()
    again = Bench(state=bench.state, height=2)
    assert again.ask(counter, "get") == 3


def test_a_discarded_block_leaves_the_state_as_it_was(bench: Bench) -> None:
    counter = bench.deploy("counter")
    bench.next()
    before = dict(bench.state.rows)
    bench.call(counter, "add", 3)
    bench.executor.discard()
    assert bench.state.rows == before
    bench.begin(3)
    assert bench.ask(counter, "get") == 0


def test_an_empty_block_has_the_root_of_the_state(bench: Bench) -> None:
    assert bench.executor.finalize_block() == DictState().root()


def test_the_root_is_of_the_whole_state_not_of_the_block(bench: Bench) -> None:
    """Defect 3: the root covered only what the block wrote."""
    counter = bench.deploy("counter")
    bench.call(counter, "note", "kept", 1)
    bench.next()
    bench.call(counter, "note", "other", 2)
    root = bench.executor.finalize_block()
    assert root == DictState(bench.state.rows).root()
    assert root != DictState({k: v for k, v in bench.state.rows.items() if b"kept" not in k}).root()


@pytest.mark.parametrize("what", ["execute_call", "deploy", "finalize_block", "flush_block", "discard"])
def test_without_a_block_nothing_can_be_done(what: str) -> None:
    """Defect 8: without ``begin_block`` writes went straight to the storage. PR #1960: writes after the end."""
    bench = Bench()
    counter = bench.deploy("counter")
    bench.executor.finalize_block()
    rows, context = dict(bench.state.rows), bench.context()
    does: dict[str, Callable[[], object]] = {
        "execute_call": lambda: bench.executor.execute_call(Call(counter, "add", pack(1)), context),
        "deploy": lambda: bench.executor.deploy(Deploy("counter", 1), context),
        "finalize_block": bench.executor.finalize_block,
        "flush_block": bench.executor.flush_block,
        "discard": bench.executor.discard,
    }
    with pytest.raises(StateError, match="no block is open"):
        does[what]()
    assert bench.state.rows == rows
    assert not bench.executor.in_block


def test_a_second_block_cannot_begin_inside_the_first(bench: Bench) -> None:
    counter = bench.deploy("counter")
    with pytest.raises(StateError, match="open already"):
        bench.executor.begin_block(DictState(), height=2, timestamp=20)
    assert bench.ask(counter, "add", 1) == 1, "the first block goes on"


@pytest.mark.parametrize(("height", "timestamp"), [(-1, 0), (0, -1), (True, 0), (1.0, 0), (2**63, 0), (0, 2**63)])
def test_a_block_has_a_height_and_a_time(height: int, timestamp: int) -> None:
    executor = ContractExecutor(ContractRegistry())
    with pytest.raises(InvalidInputError):
        executor.begin_block(DictState(), height=height, timestamp=timestamp)
    assert not executor.in_block
    executor.begin_block(DictState(), height=0, timestamp=0)


def test_a_call_of_another_block_is_refused(bench: Bench) -> None:
    counter = bench.deploy("counter")
    for height, time in ((2, 10), (1, 11)):
        with pytest.raises(InvalidInputError, match="another block"):
            bench.executor.execute_call(Call(counter, "add", pack(1)), CallContext(ALICE, height, time, GAS, bytes(32)))
    assert bench.ask(counter, "get") == 0


def test_a_state_without_a_root_is_only_flushed() -> None:
    class Rootless(DictState):
        root = None  # type: ignore[assignment]

    state = Rootless()
    executor = ContractExecutor(ContractRegistry([Counter]))
    executor.begin_block(state, height=0, timestamp=0)
    executor.deploy(Deploy("counter", 1), CallContext(ALICE, 0, 0, GAS, bytes(32)))
    executor.flush_block()
    assert len(state.rows) == 2


# -- what a call may do wrong ----------------------------------------------------------------------------------------

BAD_CALLS = [
    ("add_then_revert", (5,), Status.REVERTED, "ContractRevert: no, thank you"),
    ("add_then_break", (5,), Status.FAILED, "ValueError"),
    ("store_fraction", (), Status.REVERTED, "BadValue: field total: the value must be int, not float"),
    ("give_wrong_type", (), Status.REVERTED, "BadValue: the result of give_wrong_type: the value must be int, not str"),
    ("fall", (0,), Status.TOO_DEEP, ""),
    ("fall_in_helper", (), Status.TOO_DEEP, ""),
    ("burn_gas", (), Status.OUT_OF_GAS, ""),
    ("hide_out_of_gas", (), Status.OUT_OF_GAS, ""),
    ("hide_depth", (), Status.TOO_DEEP, ""),
    ("write_in_view", (), Status.REVERTED, "WriteInView: a view changes nothing"),
    ("write_through_entry", (), Status.REVERTED, "WriteInView: a view changes nothing"),
    ("event_in_view", (), Status.REVERTED, "WriteInView: a view changes nothing"),
    (
        "keep_on_object",
        (),
        Status.REVERTED,
        "BadValue: memory is no field of the contract: nothing else outlives a call",
    ),
    ("long_key", (400,), Status.REVERTED, "BadValue: a key of 429 bytes is too long; at most 400 are allowed"),
    ("read_long_key", (400,), Status.REVERTED, "BadValue: a key of 429 bytes is too long; at most 400 are allowed"),
    ("list_notes", ("", 0, False), Status.REVERTED, "BadValue: a scan takes a limit from 1 to 10000"),
    ("list_notes", ("", 10_001, False), Status.REVERTED, "BadValue: a scan takes a limit from 1 to 10000"),
    ("missing", (), Status.UNKNOWN_METHOD, "counter has no method missing"),
    ("revert", (), Status.UNKNOWN_METHOD, "counter has no method revert"),
    ("total", (), Status.UNKNOWN_METHOD, "counter has no method total"),
    ("add", (), Status.BAD_ARGUMENTS, "add: the method takes 1 arguments, not 0"),
    ("add", ("1",), Status.BAD_ARGUMENTS, "add: argument 1 must be int, not str"),
    ("add", (True,), Status.BAD_ARGUMENTS, "add: argument 1 must be int, not bool"),
]


@pytest.mark.parametrize(("method", "arguments", "status", "error"), BAD_CALLS)
def test_a_bad_call_changes_nothing_keeps_its_gas_and_the_block_goes_on(
    bench: Bench, method: str, arguments: tuple[object, ...], status: Status, error: str
) -> None:
    counter = bench.deploy("counter")
    assert bench.ask(counter, "add", 100) == 100
    before = bench.executor._block.staged.changes()  # type: ignore[union-attr]
    receipt = bench.call(counter, method, *arguments)
    assert (receipt.status, receipt.error) == (status, error)
    assert receipt.result == b""
    assert receipt.events == ()
    if status in (Status.OUT_OF_GAS, Status.TOO_DEEP):
        assert receipt.gas_used == GAS
    else:
        assert 1000 <= receipt.gas_used < GAS
    assert bench.executor._block.staged.changes() == before  # type: ignore[union-attr]
    assert bench.ask(counter, "add", 1) == 101
    assert bench.call(counter, method, *arguments) == receipt, "the same again, so nothing was left behind"


def test_arguments_that_are_no_encoding_are_bad_arguments(bench: Bench) -> None:
    counter = bench.deploy("counter")
    for raw in (b"", b"\x01", b"\x01\x02\x02\x00\x01", b"\xff" * 30):
        receipt = bench.executor.execute_call(Call(counter, "add", raw), bench.context())
        assert receipt.status is Status.BAD_ARGUMENTS


def test_where_nothing_is_deployed_nothing_runs(bench: Bench) -> None:
    receipt = bench.call(NOWHERE, "add", 1)
    assert (receipt.status, receipt.error) == (Status.NO_CONTRACT, f"nothing is deployed at {NOWHERE.hex()}")
    assert receipt.gas_used > 0


def test_a_long_error_text_is_cut_and_valid(bench: Bench) -> None:
    counter = bench.deploy("counter")
    receipt = bench.call(counter, "odd_revert")
    assert receipt.error.startswith("ContractRevert: surrogate \\ud800 and a long tail zzz")
    assert len(receipt.error.encode("utf-8")) == 512
    encode_receipts([receipt])


def test_a_message_that_is_no_text_is_a_failure(bench: Bench) -> None:
    proxy = bench.deploy("proxy", NOWHERE)
    receipt = bench.call(proxy, "wrong_message")
    assert (receipt.status, receipt.error) == (Status.FAILED, "TypeError")


def test_types_go_in_and_out_exactly(bench: Bench) -> None:
    counter = bench.deploy("counter")
    assert bench.ask(counter, "mixed", True, "t", b"abc", BOB, [1, -2]) == [1, -2, 3, 20]
    receipt = bench.call(counter, "mixed", False, "said no", b"", BOB, [0])
    assert receipt.error == "ContractRevert: said no"
    assert bench.ask(counter, "block") == [1, 10]
    assert bench.ask(counter, "identity") == bytes(32)


# -- gas -------------------------------------------------------------------------------------------------------------


def test_gas_is_the_sum_of_the_prices() -> None:
    prices = GasSchedule(
        **{
            **dict.fromkeys(GasSchedule().as_mapping(), 0),
            "call": 10**9,
            "read": 10**6,
            "write": 10**3,
            "event": 1,
        }
    )
    bench = Bench(schedule=prices)
    counter = bench.deploy("counter", gas=10**12)
    receipt = bench.call(counter, "add", 5, gas=10**12)
    # the record of the contract, the total to add, the total for the event, the total to return; one write; one event
    assert receipt.gas_used == 10**9 + 4 * 10**6 + 10**3 + 1


@pytest.mark.parametrize("name", list(GasSchedule().as_mapping()))
def test_every_price_is_charged(name: str) -> None:
    """A price that nobody charges would be a promise that is not kept."""

    def used(schedule: GasSchedule) -> int:
        bench = Bench(schedule=schedule)
        deployed = bench.executor.deploy(Deploy("counter", 1), bench.context())
        counter = decode_any(deployed.result)[0]
        assert isinstance(counter, Address)
        proxy = bench.deploy("proxy", counter)
        receipts = [
            deployed,
            bench.call(counter, "add", 1),
            bench.call(counter, "forget", "a"),
            bench.call(counter, "digest", b"abc"),
            bench.call(proxy, "forward", "add", 1),
        ]
        assert all(receipt.ok for receipt in receipts)
        return sum(receipt.gas_used for receipt in receipts)

    plain = GasSchedule()
    dearer = GasSchedule(**{**{n: int(p) for n, p in plain.as_mapping().items()}, name: getattr(plain, name) + 1})
    assert used(dearer) > used(plain)


def test_the_exact_gas_is_enough_and_one_less_is_not(bench: Bench) -> None:
    counter = bench.deploy("counter")
    bench.call(counter, "add", 5)
    used = bench.call(counter, "add", 0).gas_used
    exact = bench.call(counter, "add", 0, gas=used)
    assert (exact.status, exact.gas_used) == (Status.OK, used)
    for gas in (used - 1, used // 2, 1, 0):
        receipt = bench.call(counter, "add", 0, gas=gas)
        assert (receipt.status, receipt.gas_used) == (Status.OUT_OF_GAS, gas)
    assert bench.ask(counter, "get") == 5


def test_every_smaller_amount_of_gas_leaves_nothing(bench: Bench) -> None:
    """Wherever the gas ends, in the contract or in one that it calls, nothing stays."""
    counter = bench.deploy("counter")
    proxy = bench.deploy("proxy", counter)
    used = bench.call(proxy, "add_fail_add").gas_used
    before = bench.executor._block.staged.changes()  # type: ignore[union-attr]
    for gas in range(0, used, 97):
        assert bench.call(proxy, "add_fail_add", gas=gas).status is Status.OUT_OF_GAS
        assert bench.executor._block.staged.changes() == before  # type: ignore[union-attr]


def test_a_meter_that_ran_out_in_a_call_cannot_be_caught_by_the_caller(bench: Bench) -> None:
    counter = bench.deploy("counter")
    proxy = bench.deploy("proxy", counter)
    receipt = bench.call(proxy, "poke_and_catch", "burn_gas")
    assert (receipt.status, receipt.gas_used) == (Status.OUT_OF_GAS, GAS)
    assert bench.ask(counter, "get") == 0


def test_a_meter_that_ran_out_stays_out() -> None:
    meter = GasMeter(10)
    meter.charge(10)
    meter.charge(0)
    for amount in (1, 0, 0):
        with pytest.raises(OutOfGas):
            meter.charge(amount)
    assert (meter.used, meter.exhausted) == (10, True)


@pytest.mark.parametrize("price", [-1, 1.5, True, None, 2**63])
def test_a_price_is_a_whole_number(price: int) -> None:
    with pytest.raises(InvalidInputError, match="'read'"):
        GasSchedule(read=price)


# -- contracts that call each other ----------------------------------------------------------------------------------


def test_a_failed_call_inside_drops_only_its_own_writes_and_events(bench: Bench) -> None:
    counter = bench.deploy("counter")
    proxy = bench.deploy("proxy", counter)
    receipt = bench.call(proxy, "add_fail_add")
    assert value_of(receipt) == 101
    assert [(e.name, decode_any(e.fields[0][1])[0]) for e in receipt.events] == [("added", 1), ("added", 100)]


@pytest.mark.parametrize(
    ("method", "found"),
    [
        ("add_then_revert", "reverted|ContractRevert: no, thank you"),
        ("add_then_break", "failed|ValueError"),
        ("missing", "unknown_method|counter has no method missing"),
        ("get", "bad_arguments|get: the method takes 0 arguments, not 1"),
    ],
)
def test_the_caller_may_go_on_after_a_failure(bench: Bench, method: str, found: str) -> None:
    counter = bench.deploy("counter")
    proxy = bench.deploy("proxy", counter)
    receipt = bench.call(proxy, "forward_and_catch", method, 5)
    assert value_of(receipt) == found
    assert [e.address for e in receipt.events] == [proxy, proxy], "the events of the caller stay, in order"
    assert bench.ask(counter, "get") == 0


def test_a_failure_that_nobody_catches_reverts_everything(bench: Bench) -> None:
    counter = bench.deploy("counter")
    proxy = bench.deploy("proxy", counter)
    before = bench.executor._block.staged.changes()  # type: ignore[union-attr]
    receipt = bench.call(proxy, "forward", "add_then_revert", 5)
    assert receipt.status is Status.REVERTED
    assert receipt.error == "CallFailed: ContractRevert: no, thank you"
    assert bench.executor._block.staged.changes() == before  # type: ignore[union-attr]


def test_who_calls_is_the_contract_and_who_began_is_the_account(bench: Bench) -> None:
    counter = bench.deploy("counter")
    proxy = bench.deploy("proxy", counter)
    assert bench.ask(proxy, "ask_who") == [proxy, ALICE, counter]
    assert bench.ask(counter, "who") == [ALICE, ALICE, counter]


def test_a_method_may_write_after_it_asked_a_view_of_its_own(bench: Bench) -> None:
    counter = bench.deploy("counter")
    bench.call(counter, "add", 5)
    assert bench.ask(counter, "add_after_view", 2) == 7
    assert bench.ask(counter, "add_after_failed_view", 2) == 9


def test_a_view_cannot_write_through_another_contract(bench: Bench) -> None:
    counter = bench.deploy("counter")
    proxy = bench.deploy("proxy", counter)
    receipt = bench.call(proxy, "write_through_other")
    assert receipt.error == "CallFailed: WriteInView: a view changes nothing"
    assert bench.ask(counter, "get") == 0


def test_contracts_call_each_other_to_a_depth_and_no_further(bench: Bench) -> None:
    proxy = bench.deploy("proxy", NOWHERE)
    assert bench.ask(proxy, "descend", CALL_DEPTH_MAX - 1) == CALL_DEPTH_MAX - 1
    receipt = bench.call(proxy, "descend", CALL_DEPTH_MAX)
    assert (receipt.status, receipt.gas_used) == (Status.TOO_DEEP, GAS)
    assert bench.call(proxy, "call_myself", 0).status is Status.TOO_DEEP


def test_the_depth_of_a_call_does_not_depend_on_the_stack_below() -> None:
    """An endless or a deep call ends the same way on a node that came here by another path."""

    def at(depth: int) -> list[Receipt]:
        if depth:
            return at(depth - 1)
        bench = Bench()
        counter = bench.deploy("counter")
        proxy = bench.deploy("proxy", counter)
        return [
            bench.call(proxy, "descend", CALL_DEPTH_MAX - 1),
            bench.call(counter, "fall", 0),
            bench.call(counter, "fall_in_helper"),
        ]

    assert at(0) == at(700)
    assert at(0)[0].ok


def test_methods_are_entered_to_a_depth_and_no_further() -> None:
    class Deep(Contract, name="deep", version=1):
        @entry
        def down(self, levels: int) -> int:
            return levels if levels == 0 else self._step(levels)

        def _step(self, levels: int) -> int:
            return self.down(levels - 1)

    bench = Bench(Deep)
    deep = bench.deploy("deep")
    assert bench.ask(deep, "down", (METHOD_DEPTH_MAX - 1) // 2) == 0
    assert bench.call(deep, "down", METHOD_DEPTH_MAX // 2).status is Status.TOO_DEEP


def test_the_result_of_a_call_is_checked_if_it_is_asked_for(bench: Bench) -> None:
    counter = bench.deploy("counter")
    proxy = bench.deploy("proxy", counter)
    assert bench.call(proxy, "wrong_result").error == "BadValue: the result of add: the value must be str, not int"
    assert bench.call(proxy, "wrong_address").error == "BadValue: a call takes an Address and the name of a method"
    assert bench.ask(proxy, "catch_bad_value") == "field seen: the value must be int, not str"


def test_contracts_do_not_see_each_others_fields(bench: Bench) -> None:
    first, second = bench.deploy("counter"), bench.deploy("counter")
    assert first != second
    bench.call(first, "add", 5)
    bench.call(first, "note", "n", 1)
    assert bench.ask(second, "get") == 0
    assert bench.ask(second, "list_notes", "", 10, False) == []


def test_a_map_lists_staged_and_stored_rows_in_order(bench: Bench) -> None:
    counter = bench.deploy("counter")
    for name in ("b", "d", "a"):
        bench.call(counter, "note", name, 1)
    bench.next()
    bench.call(counter, "note", "c", 1)
    bench.call(counter, "forget", "b")
    assert bench.ask(counter, "list_notes", "", 10, False) == ["a", "c", "d"]
    assert bench.ask(counter, "list_notes", "b", 10, True) == ["d", "c"]
    assert bench.ask(counter, "list_notes", "", 2, False) == ["a", "c"]
    bench.next()
    assert bench.ask(counter, "list_notes", "", 10, False) == ["a", "c", "d"], "what was deleted stays deleted"


# -- deployments -----------------------------------------------------------------------------------------------------


def test_a_deployment_is_recorded_at_an_address_that_anybody_can_compute(bench: Bench) -> None:
    first, second = bench.deploy("counter"), bench.deploy("counter")
    other = bench.deploy("proxy", first, caller=BOB)
    assert [first, second] == [contract_address(ALICE, 0), contract_address(ALICE, 1)]
    assert other == contract_address(BOB, 0)
    assert contract_address(ALICE, 0).hex() == "dd3e8c01a37f242fa977a6bf21c33f84c10d1864"
    bench.executor.finalize_block()
    found = {record.address: record for record in deployments(bench.state)}
    assert {(r.name, r.version, r.deployer) for r in found.values()} == {("counter", 1, ALICE), ("proxy", 1, BOB)}
    code = bench.registry.get("counter", 1)
    assert code is not None
    assert found[first].abi_hash == code.abi_hash
    assert bench.state.rows[nonce_key(ALICE)] == (2).to_bytes(8, "big")


def test_a_deployment_that_fails_takes_no_address(bench: Bench) -> None:
    bad = [
        (Deploy("counter", 1, pack(1)), Status.BAD_ARGUMENTS),
        (Deploy("proxy", 1), Status.BAD_ARGUMENTS),
        (Deploy("counter", 2), Status.UNKNOWN_CODE),
        (Deploy("nothing", 1), Status.UNKNOWN_CODE),
    ]
    for deploy, status in bad:
        assert bench.executor.deploy(deploy, bench.context()).status is status
    assert bench.executor.deploy(Deploy("counter", 1), bench.context(gas=1000)).status is Status.OUT_OF_GAS
    assert bench.executor._block.staged.changes() == {}  # type: ignore[union-attr]
    assert bench.deploy("counter") == contract_address(ALICE, 0)


def test_what_runs_at_a_deployment_cannot_be_called_again(bench: Bench) -> None:
    proxy = bench.deploy("proxy", NOWHERE)
    assert bench.call(proxy, "create", BOB).status is Status.UNKNOWN_METHOD


def test_code_that_is_not_here_is_a_receipt_or_an_error(bench: Bench) -> None:
    counter = bench.deploy("counter")
    bench.executor.finalize_block()
    without = ContractExecutor(ContractRegistry())
    without.begin_block(bench.state, height=2, timestamp=20)
    context = CallContext(ALICE, 2, 20, GAS, bytes(32))
    call = Call(counter, "add", pack(1))
    assert without.execute_call(call, context).status is Status.UNKNOWN_CODE
    strict = ContractExecutor(ContractRegistry(), missing_code="refuse")
    both: list[Callable[[], Receipt]] = [
        lambda: strict.execute_call(call, context),
        lambda: strict.deploy(Deploy("counter", 1), context),
    ]
    for does in both:
        strict.begin_block(bench.state, height=2, timestamp=20)
        with pytest.raises(StateError, match="does not have the code") as caught:
            does()
        assert caught.value.context["contract"] == "counter 1"
        assert not strict.in_block


def test_other_code_under_the_same_name_is_found() -> None:
    class Other(Contract, name="counter", version=1):
        total = Value(int, default=0)

        @entry
        def add(self, amount: int, twice: bool) -> int:
            return amount

    bench = Bench()
    counter = bench.deploy("counter")
    bench.executor.finalize_block()
    other = Bench(Other, state=bench.state, height=2)
    assert other.call(counter, "add", 1, True).status is Status.UNKNOWN_CODE


def test_a_missing_code_cannot_be_hidden_by_a_contract_that_catches_everything() -> None:
    bench = Bench()
    counter = bench.deploy("counter")
    proxy = bench.deploy("proxy", counter)
    bench.executor.finalize_block()
    strict = ContractExecutor(ContractRegistry([Proxy]), missing_code="refuse")
    strict.begin_block(bench.state, height=2, timestamp=20)
    context = CallContext(ALICE, 2, 20, GAS, bytes(32))
    with pytest.raises(StateError, match="does not have the code"):
        strict.execute_call(Call(proxy, "forward_and_catch", pack("add", 1)), context)


# -- the node's own failures -----------------------------------------------------------------------------------------


def test_a_failing_storage_gives_no_receipt_and_leaves_the_executor_usable(bench: Bench) -> None:
    """PR #2658: storage errors were swallowed. PR #1961: a flag was left set, so that no block could begin again."""
    counter = bench.deploy("counter")
    proxy = bench.deploy("proxy", counter)
    bench.next()
    rows = dict(bench.state.rows)
    for method, arguments in (("forward", ("add", 1)), ("forward_and_catch", ("add", 1)), ("poke_and_catch", ("get",))):
        bench.state.broken = DeviceError("the disk is gone")
        with pytest.raises(DeviceError, match="the disk is gone"):
            bench.call(proxy, method, *arguments)
        assert not bench.executor.in_block
        bench.state.broken = None
        bench.begin(2)
        assert bench.state.rows == rows
    assert bench.ask(proxy, "forward", "add", 1) == 1


def test_a_storage_that_fails_in_the_middle_cannot_be_hidden(bench: Bench) -> None:
    class Fragile(DictState):
        reads = 0

        def get(self, key: bytes) -> bytes | None:
            self.reads -= 1
            if self.reads == 0:
                raise KeyError("a bug in the storage")
            return super().get(key)

    counter = bench.deploy("counter")
    proxy = bench.deploy("proxy", counter)
    bench.executor.finalize_block()
    state = Fragile(bench.state.rows)
    executor = bench.executor
    context = CallContext(ALICE, 2, 20, GAS, bytes(32))
    call = Call(proxy, "poke_and_catch", pack("hide_out_of_gas"))
    failed = 0
    for reads in range(1, 8):
        executor.begin_block(state, height=2, timestamp=20)
        state.reads = reads
        try:
            executor.execute_call(call, context)
        except KeyError:
            failed += 1
            assert not executor.in_block
        else:
            executor.discard()
    assert failed >= 3


def test_a_failed_flush_closes_the_block_and_the_next_one_can_begin(bench: Bench) -> None:
    """PR #1219 and PR #1961: a failed end of a block left memory and storage apart, and the flag set."""
    counter = bench.deploy("counter")
    bench.state.broken = LimitExceeded("too many changes")
    with pytest.raises(LimitExceeded):
        bench.executor.finalize_block()
    bench.state.broken = None
    assert bench.state.rows == {}
    bench.begin(1)
    assert bench.call(counter, "add", 1).status is Status.NO_CONTRACT


@pytest.mark.parametrize(("method", "error"), [("interrupt", KeyboardInterrupt), ("stop", SystemExit)])
def test_an_interrupt_discards_the_block(bench: Bench, method: str, error: type[BaseException]) -> None:
    counter = bench.deploy("counter")
    bench.next()
    rows = dict(bench.state.rows)
    with pytest.raises(error):
        bench.call(counter, method)
    assert not bench.executor.in_block
    assert bench.state.rows == rows
    bench.begin()
    assert bench.ask(counter, "get") == 0


@pytest.mark.parametrize("through", [False, True])
def test_no_memory_is_the_nodes_failure_not_the_contracts(bench: Bench, through: bool) -> None:
    counter = bench.deploy("counter")
    proxy = bench.deploy("proxy", counter)
    with pytest.raises(ResourceExhausted):
        bench.call(proxy, "poke_and_catch", "eat_memory") if through else bench.call(counter, "eat_memory")
    assert not bench.executor.in_block


def test_no_memory_between_two_contracts_is_the_nodes_failure_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = bench.deploy("counter")
    proxy = bench.deploy("proxy", counter)

    def no_memory(raw: bytes, kinds: object) -> list[object]:
        if raw == pack():
            raise MemoryError
        return ["get"]

    monkeypatch.setattr("holdfast.contracts.executor.decode_arguments", no_memory)
    with pytest.raises(ResourceExhausted):
        bench.call(proxy, "poke_and_catch", "get")


def test_stored_bytes_that_no_contract_wrote_are_corruption(bench: Bench) -> None:
    counter = bench.deploy("counter")
    bench.call(counter, "add", 1)
    bench.call(counter, "note", "a", 1)
    bench.next()
    for part, method, arguments in ((b"\x05total", "get", ()), (b"\x05notes", "list_notes", ("", 9, False))):
        rows = dict(bench.state.rows)
        (key,) = (key for key in rows if part in key)
        bench.state.rows[key] = b"\x09"
        with pytest.raises(CorruptionError, match="cannot be read"):
            bench.call(counter, method, *arguments)
        bench.state.rows = rows
        bench.begin()
    bench.state.rows[deployment_key(counter)] = b"\x01"
    with pytest.raises(CorruptionError, match="record of a contract"):
        bench.call(counter, "get")


def test_a_record_of_a_deployment_has_one_encoding(bench: Bench) -> None:
    counter = bench.deploy("counter")
    bench.executor.finalize_block()
    raw = bench.state.rows[deployment_key(counter)]
    assert encode_deployment(decode_deployment(counter, raw)) == raw
    for bad in (b"", raw[:-1], raw + b"\x00", b"\x02" + raw[1:]):
        with pytest.raises(CorruptionError):
            decode_deployment(counter, bad)


def test_a_contract_cannot_use_the_executor_that_runs_it() -> None:
    found: list[str] = []
    running = Bench(Counter)

    def reenter() -> None:
        for does in (running.executor.discard, running.executor.finalize_block):
            try:
                does()
            except StateError as error:
                found.append(error.message)

    class Sly(Contract, name="sly", version=1):
        @entry
        def end_the_block(self) -> None:
            reenter()

    running.registry.register(Sly)
    sly = running.deploy("sly")
    assert running.call(sly, "end_the_block").ok
    assert found == ["a contract is running"] * 2
    assert running.executor.in_block


# -- views -----------------------------------------------------------------------------------------------------------


def test_a_view_reads_the_state_and_not_the_open_block(bench: Bench) -> None:
    counter = bench.deploy("counter")
    bench.call(counter, "add", 1)
    bench.next()
    bench.call(counter, "add", 10)
    asked = bench.executor.view(bench.state, Call(counter, "get"), bench.context(BOB))
    assert value_of(asked) == 1
    assert bench.ask(counter, "get") == 11


def test_a_view_cannot_write_even_through_an_entry_point(bench: Bench) -> None:
    counter = bench.deploy("counter")
    bench.next()
    receipt = bench.executor.view(bench.state, Call(counter, "add", pack(1)), bench.context())
    assert receipt.error == "WriteInView: a view changes nothing"
    bench.state.broken = DeviceError("the disk is gone")
    with pytest.raises(DeviceError):
        bench.executor.view(bench.state, Call(counter, "get"), bench.context())
    bench.state.broken = None
    assert bench.executor.in_block, "a view that fails does not harm the open block"


# -- contexts and calls ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"caller": b"short"},
        {"caller": "x" * 20},
        {"height": -1},
        {"height": 1.0},
        {"timestamp": 2**63},
        {"gas_limit": -1},
        {"gas_limit": True},
        {"tx_hash": b"short"},
        {"tx_hash": None},
    ],
)
def test_a_context_is_complete_and_in_range(change: dict[str, object]) -> None:
    plain: dict[str, object] = {"caller": ALICE, "height": 1, "timestamp": 1, "gas_limit": 1, "tx_hash": bytes(32)}
    CallContext(**plain)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        CallContext(**{**plain, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Call(b"x", "add"),  # type: ignore[arg-type]
        lambda: Call(ALICE, ""),
        lambda: Call(ALICE, "m" * 65),
        lambda: Call(ALICE, "\u00e9"),
        lambda: Call(ALICE, "add", "text"),  # type: ignore[arg-type]
        lambda: Call(ALICE, "add", bytes(256 * 1024 + 1)),
        lambda: Deploy("counter", 0),
        lambda: Deploy("counter", 2**31),
        lambda: Deploy("", 1),
    ],
)
def test_a_call_names_a_contract_and_a_method(make: Callable[[], object]) -> None:
    with pytest.raises(InvalidInputError):
        make()


def test_a_call_can_carry_the_longest_arguments() -> None:
    raw = encode_arguments([b"x" * 60_000] * 4, [decode_any(b"\x03\x00\x00\x00\x00")[1]] * 4)
    assert Call(ALICE, "add", raw).arguments == raw


def test_the_stack_limit_of_the_process_is_as_it_was_afterwards(bench: Bench) -> None:
    before = sys.getrecursionlimit()
    counter = bench.deploy("counter")
    bench.call(counter, "fall_in_helper")
    assert sys.getrecursionlimit() == before


def test_a_call_is_not_a_deployment(bench: Bench) -> None:
    counter = bench.deploy("counter")
    wrongs: list[Callable[[], Receipt]] = [
        lambda: bench.executor.execute_call(Deploy("counter", 1), bench.context()),  # type: ignore[arg-type]
        lambda: bench.executor.deploy(Call(counter, "add"), bench.context()),  # type: ignore[arg-type]
        lambda: bench.executor.view(bench.state, Deploy("counter", 1), bench.context()),  # type: ignore[arg-type]
    ]
    for wrong in wrongs:
        with pytest.raises(InvalidInputError, match="is expected"):
            wrong()
    assert bench.executor.in_block
