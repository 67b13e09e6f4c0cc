"""What a contract class may look like, its ABI, and what is refused because nodes could disagree."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from datetime import datetime
from hashlib import sha256
from random import randint
from types import new_class
from typing import Any

import pytest

from holdfast.contracts import (
    Address,
    Contract,
    ContractRegistry,
    Event,
    Map,
    Value,
    contract_address,
    entry,
    init,
    view,
)
from holdfast.contracts.contract import code_of
from holdfast.contracts.examples import EXAMPLES, Token
from holdfast.errors import ConflictError, InvalidInputError
from tests.contract_makers import Bench

TABLE: dict[str, int] = {}
LIMIT = 10


class Sample(Contract, name="sample", version=3):
    """Every kind of thing that an ABI can say."""

    UNIT = 10**18
    NAMES = ("a", "b")

    total = Value(int, default=0)
    owners = Map(tuple[str, Address], list[bytes])
    moved = Event(to=Address, amounts=list[int])

    @init
    def create(self, first: bool) -> None:
        self.total = int(first)

    @entry
    def put(self, name: str, who: Address, parts: list[bytes]) -> int:
        self.owners[(name, who)] = parts
        return len(parts) + self._extra()

    @view
    def of(self, name: str, who: Address) -> list[bytes]:
        return self.owners.get((name, who), [])

    def _extra(self) -> int:
        return self.UNIT // LIMIT


ABI = (
    '{"events":[{"fields":[{"name":"to","type":"address"},{"name":"amounts","type":"list<int>"}],"name":"moved"}],'
    '"fields":[{"key":["str","address"],"kind":"map","name":"owners","type":"list<bytes>"},'
    '{"kind":"value","name":"total","type":"int"}],'
    '"methods":[{"inputs":[{"name":"first","type":"bool"}],"kind":"init","name":"create","output":"none"},'
    '{"inputs":[{"name":"name","type":"str"},{"name":"who","type":"address"}],"kind":"view","name":"of",'
    '"output":"list<bytes>"},'
    '{"inputs":[{"name":"name","type":"str"},{"name":"who","type":"address"},{"name":"parts","type":"list<bytes>"}],'
    '"kind":"entry","name":"put","output":"int"}],'
    '"name":"sample","version":3}'
)


def test_the_abi_is_canonical_json() -> None:
    code = code_of(Sample)
    assert code.abi.decode("ascii") == ABI
    assert code.abi_hash == sha256(ABI.encode("ascii")).digest()
    assert json.dumps(json.loads(code.abi), sort_keys=True, separators=(",", ":")) == ABI


def test_the_abi_of_the_token_is_pinned() -> None:
    """Deployed tokens carry this hash: another one is another version."""
    found = {code.name: code.abi_hash.hex()[:16] for code in ContractRegistry(EXAMPLES)}
    assert found == PINNED


PINNED = {"escrow": "2c0ed3db7c1c12c3", "names": "22185b549c3f97a8", "token": "3a6d305319c485a5"}


def test_a_subclass_inherits_and_replaces() -> None:
    class More(Sample, name="more", version=1):
        extra = Value(str, default="")

        @view
        def of(self, name: str, who: Address) -> list[bytes]:
            return [b"replaced"]

    bench = Bench(More, Sample)
    more = bench.deploy("more", True)
    assert bench.ask(more, "of", "x", contract_address(more, 0)) == [b"replaced"]
    assert bench.call(more, "put", "x", contract_address(more, 0), []).status.value == "ok"
    assert {"extra", "owners", "total"} == {field["name"] for field in json.loads(code_of(More).abi)["fields"]}


def test_a_list_that_a_contract_was_given_is_its_own() -> None:
    """Nothing changes behind the back of the state: a read gives a new list each time."""

    class Lists(Contract, name="lists", version=1):
        kept = Value(list[int], default=[])

        @entry
        def grow(self) -> int:
            self.kept.append(1)
            grown = self.kept
            grown.append(2)
            self.kept = grown
            grown.append(3)
            return len(self.kept)

    bench = Bench(Lists)
    lists = bench.deploy("lists")
    assert [bench.ask(lists, "grow") for _ in range(3)] == [1, 2, 3]


def test_a_registry_keeps_what_it_has() -> None:
    registry = ContractRegistry([Token])
    assert registry.register(Token) is registry.get("token", 1)
    assert len(registry) == 1

    class Other(Contract, name="token", version=1):
        pass

    with pytest.raises(ConflictError, match="another contract"):
        registry.register(Other)
    assert registry.get("token", 1) is not None
    assert registry.get("token", 2) is None
    registry.register(Sample)
    assert [(code.name, code.version) for code in registry] == [("sample", 3), ("token", 1)]


# -- classes that are refused ----------------------------------------------------------------------------------------


def define(**body: object) -> type[Contract]:
    return make(name="bad", version=1, **body)


def make(*, name: str | None = None, version: int = 0, **body: object) -> type[Contract]:
    keywords = {} if name is None else {"name": name, "version": version}
    return new_class("Bad", (Contract,), keywords, lambda space: space.update(body))


def untyped(self: Any, amount) -> None:  # type: ignore[no-untyped-def]
    pass


def no_result(self: Any, amount: int):  # type: ignore[no-untyped-def]
    pass


def with_float(self: Any, amount: float) -> None:
    pass


def gives_float(self: Any) -> float:
    return 1


def with_default(self: Any, amount: int = 3) -> None:
    pass


def with_star(self: Any, *amounts: int) -> None:
    pass


def with_keyword(self: Any, *, amount: int) -> None:
    pass


def with_none(self: Any, nothing: None) -> None:
    pass


def with_unknown(self: Any, amount: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
    pass


def init_with_result(self: Any) -> int:
    return 1


def plain(self: Any) -> None:
    pass


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: define(go=entry(untyped)), "has a type and no default"),
        (lambda: define(go=entry(no_result)), "says what it returns"),
        (lambda: define(go=entry(with_float)), "takes, stores and returns only"),
        (lambda: define(go=view(gives_float)), "takes, stores and returns only"),
        (lambda: define(go=entry(with_default)), "has a type and no default"),
        (lambda: define(go=entry(with_star)), "has a type and no default"),
        (lambda: define(go=entry(with_keyword)), "has a type and no default"),
        (lambda: define(go=entry(with_none)), "each with a value"),
        (lambda: define(go=entry(with_unknown)), "annotations of a method cannot be read"),
        (lambda: define(go=init(init_with_result)), "returns nothing"),
        (lambda: define(one=init(plain), two=init(no_op)), "at most one '@init'"),
        (lambda: define(Go=entry(plain)), "small letters"),
        (lambda: define(_go=entry(plain)), "small letters"),
        (lambda: define(__enter__=plain), "no methods with two underscores"),
        (lambda: define(call=plain), "belongs to every contract"),
        (lambda: define(address=Value(int, default=0)), "belongs to every contract"),
        (lambda: define(Total=Value(int, default=0)), "small letters"),
        (lambda: Value(float, default=1.0), "takes, stores and returns only"),
        (lambda: Value(int, default=True), "must be int, not bool"),
        (lambda: Value(type(None), default=None), "holds a value"),
        (lambda: Map(list[int], int), "a key is"),
        (lambda: Map(tuple[int, int, int, int, int], int), "a key is"),
        (lambda: Map(int, type(None)), "holds values"),
        (lambda: Map(float, int), "takes, stores and returns only"),
        (lambda: Event(amount=float), "takes, stores and returns only"),
        (lambda: Event(Amount=int), "small letters"),
        (lambda: entry(3), "only a method"),  # type: ignore[arg-type]
        (lambda: make(name="Bad", version=1), "small letters"),
        (lambda: make(name="bad", version=0), "version of a contract"),
        (make, "a name and a version"),
        (lambda: int, "a name and a version"),
        (lambda: Contract, "a name and a version"),
    ],
)
def test_a_class_that_is_no_contract_is_refused(build: Callable[[], Any], why: str) -> None:
    with pytest.raises(InvalidInputError, match=why):
        ContractRegistry([build()])


def no_op(self: Any) -> None:
    pass


class Clock(Contract, name="clock", version=1):
    @entry
    def now(self) -> int:
        return int(time.time())


class Today(Contract, name="today", version=1):
    @entry
    def now(self) -> int:
        return datetime.now().year  # noqa: DTZ005


class Dice(Contract, name="dice", version=1):
    @entry
    def roll(self) -> int:
        return randint(1, 6)


class Choice(Contract, name="choice", version=1):
    def _pick(self) -> int:
        return random.randrange(6)


class Fraction(Contract, name="fraction", version=1):
    @entry
    def part(self, amount: int) -> int:
        return int(amount * 0.3)


class Division(Contract, name="division", version=1):
    @entry
    def half(self, amount: int) -> int:
        return int(amount / 2)


class Sets(Contract, name="sets", version=1):
    @entry
    def first(self, names: list[str]) -> str:
        return next(iter({name for name in names}))  # noqa: C416


class SetCall(Contract, name="setcall", version=1):
    @entry
    def first(self, names: list[str]) -> str:
        return next(iter(set(names)))


class SetLiteral(Contract, name="setliteral", version=1):
    @entry
    def first(self, name: str) -> bool:
        return name in {"a", "b"}


class Hashes(Contract, name="hashes", version=1):
    @entry
    def of(self, name: str) -> int:
        return next(hash(part) for part in [name])


class Memory(Contract, name="memory", version=1):
    seen: list[int] = []  # noqa: RUF012

    @entry
    def keep(self, number: int) -> int:
        self.seen.append(number)
        return len(self.seen)


class Globals(Contract, name="globals", version=1):
    @entry
    def keep(self, name: str) -> int:
        return TABLE.setdefault(name, 1)


class Imports(Contract, name="imports", version=1):
    @entry
    def now(self) -> int:
        from time import time_ns

        return time_ns()


class Hidden(Contract, name="hidden", version=1):
    @property
    def now(self) -> int:
        return time.time_ns()


class Static(Contract, name="static", version=1):
    @staticmethod
    def now() -> int:
        return time.time_ns()


class Later(Contract, name="later", version=1):
    async def now(self) -> int:
        return 1


class Default(Contract, name="default", version=1):
    def _more(self, seen: list[int] = []) -> int:  # noqa: B006
        return len(seen)


class Inherits(Clock, name="inherits", version=1):
    pass


@pytest.mark.parametrize(
    ("contract", "why"),
    [
        (Clock, "'time'"),
        (Today, "'datetime'"),
        (Dice, "'randint'"),
        (Choice, "'random'"),
        (Fraction, "fraction"),
        (Division, "use '//'"),
        (Sets, "makes a set"),
        (SetCall, "'set'"),
        (SetLiteral, "use a tuple"),
        (Hashes, "'hash'"),
        (Memory, "a constant that never changes"),
        (Globals, "'TABLE', a dict"),
        (Imports, "imports 'time'"),
        (Hidden, "'time'"),
        (Static, "'time'"),
        (Later, "asynchronous"),
        (Default, "default value"),
        (Inherits, "'time'"),
    ],
)
def test_what_differs_from_node_to_node_is_refused(contract: type[Contract], why: str) -> None:
    with pytest.raises(InvalidInputError, match=why) as caught:
        ContractRegistry([contract])
    assert "." in str(caught.value.context["found"]), "the place is named"


def test_harmless_classes_are_taken() -> None:
    class Fine(Contract, name="fine", version=1):
        RATES = (1, (2, b"x"), "y", None, True)

        @property
        def rate(self) -> int:
            return self.RATES[0]

        @staticmethod
        def twice(number: int) -> int:
            return number * 2

        @entry
        def go(self, numbers: list[int]) -> int:
            table = {number: self.twice(number) for number in sorted(numbers)}
            return sum(table.values()) // max(len(table), 1) + self.rate

    bench = Bench(Fine)
    assert bench.ask(bench.deploy("fine"), "go", [1, 2, 3]) == 5
