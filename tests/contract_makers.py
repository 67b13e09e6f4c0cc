"""A state in a dict, contracts that misbehave, and short cuts for calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256

from holdfast.contracts import (
    Address,
    BadValue,
    Call,
    CallContext,
    CallFailed,
    Contract,
    ContractExecutor,
    ContractRegistry,
    ContractRevert,
    Deploy,
    Event,
    GasSchedule,
    Map,
    Receipt,
    Value,
    decode,
    encode_arguments,
    entry,
    init,
    view,
)
from holdfast.contracts.codec import type_of
from holdfast.errors import NotFoundError

ALICE, BOB, CAROL = (Address(bytes([number]) * 20) for number in (0xA1, 0xB0, 0xCA))
NOWHERE = Address(b"\xee" * 20)
GAS = 10_000_000
ADDRESS = type_of(Address)


class DictState:
    """A ``MutableState`` with a root: the hash of its sorted, length-prefixed rows."""

    def __init__(self, rows: Mapping[bytes, bytes] | None = None) -> None:
        self.rows = dict(rows or {})
        self.updates = 0
        self.broken: Exception | None = None

    def _check(self) -> None:
        if self.broken is not None:
            raise self.broken

    def get(self, key: bytes) -> bytes | None:
        self._check()
        return self.rows.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.get(key) for key in keys]

    def __getitem__(self, key: bytes) -> bytes:
        value = self.get(key)
        if value is None:
            raise NotFoundError("no value", key=key)
        return value

    def __contains__(self, key: object) -> bool:
        return key in self.rows

    def scan(
        self, prefix: bytes = b"", *, start: bytes | None = None, stop: bytes | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        self._check()
        for key in sorted(self.rows, reverse=reverse):
            if key.startswith(prefix) and (start is None or key >= start) and (stop is None or key < stop):
                yield key, self.rows[key]

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self.update({key: value})

    def __delitem__(self, key: bytes) -> None:
        self.update({key: None})

    def update(self, changes: Mapping[bytes, bytes | None]) -> None:
        self._check()
        self.updates += 1
        for key, value in changes.items():
            assert 0 < len(key) <= 400
            if value is None:
                self.rows.pop(key, None)
            else:
                assert value
                self.rows[key] = value

    def root(self) -> bytes:
        self._check()
        out = sha256()
        for key, value in sorted(self.rows.items()):
            out.update(len(key).to_bytes(4, "big") + key + len(value).to_bytes(4, "big") + value)
        return out.digest()


class Counter(Contract, name="counter", version=1):
    """Adds, says no, and breaks in every way that a call can break."""

    total = Value(int, default=0)
    notes = Map(str, int)
    added = Event(amount=int, total=int)

    @entry
    def add(self, amount: int) -> int:
        self.total = self.total + amount
        self.added(amount=amount, total=self.total)
        return self.total

    @view
    def get(self) -> int:
        return self.total

    @entry
    def add_then_revert(self, amount: int) -> None:
        self.add(amount)
        self.revert("no, thank you")

    @entry
    def add_then_break(self, amount: int) -> None:
        self.add(amount)
        int("nothing here")

    @entry
    def store_fraction(self) -> None:
        self.total = int("6") * _half()  # type: ignore[assignment]

    @entry
    def give_wrong_type(self) -> int:
        return "three"  # type: ignore[return-value]

    @entry
    def fall(self, depth: int) -> int:
        self.total = depth
        return self.fall(depth + 1)

    @entry
    def fall_in_helper(self) -> int:
        self.total = 1
        return _endless(0)

    @entry
    def burn_gas(self) -> None:
        self.total = 7
        while True:
            self.charge(1000)

    @entry
    def hide_out_of_gas(self) -> int:
        self.total = 7
        try:
            self.burn_gas()
        except BaseException:  # noqa: BLE001 - what a careless contract does
            pass
        return 1

    @entry
    def hide_depth(self) -> int:
        self.total = 7
        try:
            self.fall(0)
        except BaseException:  # noqa: BLE001 - what a careless contract does
            pass
        return 1

    @entry
    def eat_memory(self) -> None:
        raise MemoryError

    @entry
    def interrupt(self) -> None:
        self.total = 5
        raise KeyboardInterrupt

    @entry
    def stop(self) -> None:
        raise SystemExit(3)

    @entry
    def add_after_view(self, amount: int) -> int:
        self.total = self.get() + amount
        return self.get()

    @entry
    def add_after_failed_view(self, amount: int) -> int:
        try:
            self.write_in_view()
        except ContractRevert:
            self.total = self.get() + amount
        return self.get()

    @view
    def write_in_view(self) -> int:
        self.total = 1
        return 1

    @view
    def write_through_entry(self) -> int:
        return self.add(1)

    @view
    def event_in_view(self) -> None:
        self.added(amount=1, total=1)

    @entry
    def keep_on_object(self) -> None:
        self.memory = 3

    @entry
    def long_key(self, length: int) -> int:
        self.notes["x" * length] = 1
        return length

    @entry
    def read_long_key(self, length: int) -> int:
        return self.notes.get("x" * length, 0)

    @entry
    def note(self, name: str, value: int) -> None:
        self.notes[name] = value

    @entry
    def forget(self, name: str) -> None:
        del self.notes[name]

    @view
    def list_notes(self, start: str, limit: int, reverse: bool) -> list[str]:
        return [name for name, _ in self.notes.items(start=start, limit=limit, reverse=reverse)]

    @entry
    def odd_revert(self) -> None:
        raise ContractRevert("surrogate \ud800 and a long tail " + "z" * 2000)

    @view
    def who(self) -> list[Address]:
        return [self.caller, self.origin, self.address]

    @view
    def block(self) -> list[int]:
        return [self.height, self.timestamp]

    @view
    def identity(self) -> bytes:
        return self.tx_hash

    @view
    def digest(self, data: bytes) -> bytes:
        return self.sha256(data)

    @entry
    def mixed(self, flag: bool, text: str, raw: bytes, who: Address, numbers: list[int]) -> list[int]:
        self.require(flag, text)
        return [*numbers, len(raw), len(who)]


def _half() -> float:
    return 0.5


def _endless(depth: int) -> int:
    return _endless(depth + 1) + 1


class Proxy(Contract, name="proxy", version=1):
    """Calls others, and goes on when they fail."""

    seen = Value(int, default=0)
    target = Value(Address, default=NOWHERE)
    heard = Event(text=str)

    @init
    def create(self, target: Address) -> None:
        self.target = target

    @entry
    def forward(self, method: str, amount: int) -> int:
        self.seen = self.seen + 1
        return self.call(self.target, method, amount, returns=int)

    @entry
    def forward_and_catch(self, method: str, amount: int) -> str:
        self.seen = self.seen + 1
        self.heard(text="before")
        try:
            self.call(self.target, method, amount)
        except CallFailed as failed:
            self.heard(text=failed.status.value)
            return f"{failed.status.value}|{failed.message}"
        return "ok"

    @entry
    def poke_and_catch(self, method: str) -> str:
        self.seen = self.seen + 1
        try:
            self.call(self.target, method)
        except ContractRevert as failed:
            return failed.message
        except Exception as error:  # noqa: BLE001 - what a careless contract does
            return type(error).__name__
        return "ok"

    @entry
    def add_fail_add(self) -> int:
        self.call(self.target, "add", 1)
        try:
            self.call(self.target, "add_then_revert", 10)
        except CallFailed:
            pass
        return self.call(self.target, "add", 100, returns=int)

    @entry
    def call_myself(self, depth: int) -> int:
        self.seen = depth
        return self.call(self.address, "call_myself", depth + 1, returns=int)

    @entry
    def descend(self, levels: int) -> int:
        if levels == 0:
            return self.seen
        self.seen = self.seen + 1
        return self.call(self.address, "descend", levels - 1, returns=int)

    @view
    def write_through_other(self) -> int:
        return self.call(self.target, "add", 1, returns=int)

    @entry
    def wrong_result(self) -> str:
        return self.call(self.target, "add", 1, returns=str)

    @entry
    def wrong_address(self) -> None:
        self.call(bytes(self.target), "add", 1)  # type: ignore[call-overload]

    @entry
    def wrong_message(self) -> None:
        raise ContractRevert(3)  # type: ignore[arg-type]

    @entry
    def catch_bad_value(self) -> str:
        try:
            self.seen = "no"  # type: ignore[assignment]
        except BadValue as error:
            return error.message
        return ""

    @view
    def ask_who(self) -> list[Address]:
        return self.call(self.target, "who", returns=list[Address])


class Bench:
    """A block on a state, with calls by name."""

    def __init__(
        self,
        *contracts: type[Contract],
        state: DictState | None = None,
        schedule: GasSchedule | None = None,
        height: int = 1,
    ) -> None:
        self.state = state if state is not None else DictState()
        self.registry = ContractRegistry(contracts or (Counter, Proxy))
        self.executor = ContractExecutor(self.registry, schedule or GasSchedule())
        self.height = height
        self.begin()

    def begin(self, height: int | None = None) -> None:
        self.height = self.height if height is None else height
        self.executor.begin_block(self.state, height=self.height, timestamp=self.height * 10)

    def next(self, height: int | None = None) -> bytes:
        """The block is finished and the next one begun."""
        root = self.executor.finalize_block()
        self.begin(self.height + 1 if height is None else height)
        return root

    def context(self, caller: Address = ALICE, gas: int = GAS) -> CallContext:
        return CallContext(caller, self.height, self.height * 10, gas, bytes(32))

    def deploy(
        self, name: str, *arguments: object, version: int = 1, caller: Address = ALICE, gas: int = GAS
    ) -> Address:
        code = self.registry.get(name, version)
        assert code is not None
        types = code.constructor.types if code.constructor is not None else ()
        receipt = self.executor.deploy(
            Deploy(name, version, encode_arguments(arguments, types)), self.context(caller, gas)
        )
        assert receipt.ok, receipt
        address = decode(receipt.result, ADDRESS)
        assert isinstance(address, Address)
        return address

    def call(
        self, address: Address, method: str, *arguments: object, caller: Address = ALICE, gas: int = GAS
    ) -> Receipt:
        return self.executor.execute_call(Call(address, method, pack(*arguments)), self.context(caller, gas))

    def ask(self, address: Address, method: str, *arguments: object) -> object:
        """The value that a call gives, which must go well."""
        receipt = self.call(address, method, *arguments)
        assert receipt.ok, receipt
        return value_of(receipt)


def pack(*arguments: object) -> bytes:
    """Arguments encoded by the types that they have; lists are of numbers."""
    return encode_arguments(
        arguments, [type_of(list[int] if isinstance(value, list) else type(value)) for value in arguments]
    )


def value_of(receipt: Receipt) -> object:
    from holdfast.contracts.codec import decode_any

    return decode_any(receipt.result)[0]
