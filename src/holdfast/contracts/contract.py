"""What a contract is: a class whose methods are its entry points and whose fields are its state.

Invariants:
    * An object of the class lives for one call and holds nothing of its own: state stands only in fields.
    * The ABI is made from the annotations and is canonical: the same class gives the same bytes everywhere.
    * Every method counts against the depth of calls, and its run is paid.
    * A contract is trusted Python of the node: ``lint.py`` refuses the usual ways to lose determinism, no more.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from inspect import Parameter, signature
from types import FunctionType
from typing import Final, Literal, NoReturn, ParamSpec, TypeAlias, TypeVar, get_type_hints, overload

from ..errors import InvalidInputError
from .codec import Address, Plain, ValueType, encode, type_of
from .fields import Event, Map, Value, checked_name
from .limits import ARGUMENTS_MAX, GAS_MAX, VERSION_MAX
from .session import Frame
from .signals import BadValue, ContractRevert

__all__ = ["Code", "Contract", "Method", "MethodKind", "code_of", "entry", "init", "view"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
MethodKind: TypeAlias = Literal["init", "entry", "view"]
_KIND: Final = "_holdfast_kind"


def _marked(function: Callable[P, R], kind: MethodKind) -> Callable[P, R]:
    if not isinstance(function, FunctionType):
        raise InvalidInputError("only a method can be an entry point", found=type(function).__name__)
    setattr(function, _KIND, kind)
    return function


def entry(function: Callable[P, R]) -> Callable[P, R]:
    """The method can be called from outside, and may write."""
    return _marked(function, "entry")


def view(function: Callable[P, R]) -> Callable[P, R]:
    """The method can be called from outside, and writes nothing: a write in it reverts the call."""
    return _marked(function, "view")


def init(function: Callable[P, R]) -> Callable[P, R]:
    """The method runs once, when the contract is deployed. At most one; it returns nothing."""
    return _marked(function, "init")


@dataclass(frozen=True, slots=True)
class Method:
    """An entry point of the ABI."""

    name: str
    kind: MethodKind
    parameters: tuple[tuple[str, ValueType], ...]
    returns: ValueType

    @property
    def types(self) -> tuple[ValueType, ...]:
        """The types of its arguments."""
        return tuple(kind for _, kind in self.parameters)

    def describe(self) -> dict[str, object]:
        """As it stands in the ABI."""
        inputs = [{"name": name, "type": kind.name} for name, kind in self.parameters]
        return {"name": self.name, "kind": self.kind, "inputs": inputs, "output": self.returns.name}


@dataclass(frozen=True, slots=True)
class Code:
    """A contract's class as the executor uses it. ``abi`` is canonical JSON, ``abi_hash`` its SHA-256."""

    name: str
    version: int
    contract: type[Contract]
    methods: dict[str, Method]
    constructor: Method | None
    abi: bytes
    abi_hash: bytes


class Contract:
    """Base of every contract: ``class Token(Contract, name="token", version=1)``.

    A class without a name is a base for others and cannot be registered.
    """

    __slots__ = ("frame",)
    frame: Frame
    contract_name: str | None = None
    contract_version: int = 0

    def __init_subclass__(cls, *, name: str | None = None, version: int = 0) -> None:
        super().__init_subclass__()
        cls.contract_name = None if name is None else checked_name("a contract", name)
        cls.contract_version = version
        if name is not None and (type(version) is not int or not 1 <= version <= VERSION_MAX):
            raise InvalidInputError(f"the version of a contract is 1 to {VERSION_MAX}", found=version, contract=name)
        for attribute, found in list(vars(cls).items()):
            if attribute in _RESERVED:
                raise InvalidInputError("this name belongs to every contract", found=f"{cls.__name__}.{attribute}")
            if isinstance(found, Value | Map | Event):
                checked_name("a field or an event", attribute)
            if isinstance(found, FunctionType):
                if attribute.startswith("__"):
                    raise InvalidInputError(
                        "a contract defines no methods with two underscores; '@init' marks what a deployment runs",
                        found=f"{cls.__name__}.{attribute}",
                    )
                setattr(cls, attribute, _guarded(found))

    def __init__(self, frame: Frame) -> None:
        object.__setattr__(self, "frame", frame)

    def __setattr__(self, name: str, value: object) -> None:
        if not isinstance(getattr(type(self), name, None), Value | Map | Event):
            raise BadValue(f"{name} is no field of the contract: nothing else outlives a call")
        super().__setattr__(name, value)

    # -- what a contract may ask and do --------------------------------------------------------------------------

    @property
    def address(self) -> Address:
        """This contract's own address."""
        return self.frame.address

    @property
    def caller(self) -> Address:
        """Who calls: an account, or the contract that made a cross-call."""
        return self.frame.caller

    @property
    def origin(self) -> Address:
        """The account at the start of the call."""
        return self.frame.session.context.caller

    @property
    def height(self) -> int:
        """Height of the block."""
        return self.frame.session.context.height

    @property
    def timestamp(self) -> int:
        """Time of the block in seconds, as its header says."""
        return self.frame.session.context.timestamp

    @property
    def tx_hash(self) -> bytes:
        """Hash of the transaction, 32 bytes."""
        return self.frame.session.context.tx_hash

    def revert(self, message: str) -> NoReturn:
        """The call ends here: what it wrote is gone, its gas is used, ``message`` is in the receipt."""
        raise ContractRevert(message)

    def require(self, condition: bool, message: str) -> None:
        """The call reverts with ``message`` unless ``condition`` is ``True``."""
        if condition is not True:
            raise ContractRevert(message)

    def sha256(self, data: bytes) -> bytes:
        """SHA-256 of ``data``, 32 bytes, paid by its length."""
        if not isinstance(data, bytes):
            raise BadValue(f"a hash is of bytes, not of {type(data).__name__}")
        return self.frame.hash(data)

    def charge(self, gas: int) -> None:
        """``gas`` is used. For work that nothing else pays: loops that only compute."""
        if type(gas) is not int or not 0 <= gas <= GAS_MAX:
            raise BadValue("a charge of gas is a whole number from 0")
        self.frame.session.meter.charge(gas)

    @overload
    def call(self, address: Address, method: str, *arguments: Plain) -> Plain: ...

    @overload
    def call(self, address: Address, method: str, *arguments: Plain, returns: type[T]) -> T: ...

    def call(self, address: Address, method: str, *arguments: Plain, returns: type | None = None) -> object:
        """What ``method`` of the contract at ``address`` returns; this contract is its caller, the gas is shared.

        Raises ``CallFailed``, which reverts this call too unless it is caught; the other's writes are gone then.
        ``returns`` asks for a type: another one is ``BadValue``.
        """
        value = self.frame.call(address, method, arguments)
        if returns is not None:
            try:
                encode(value, type_of(returns))
            except InvalidInputError as error:
                raise BadValue(f"the result of {method}: {error.message}") from None
        return value


_RESERVED: Final = frozenset(
    name for name in vars(Contract) if not name.startswith("__") and name not in ("contract_name", "contract_version")
)


def _guarded(function: FunctionType) -> Callable[..., object]:
    """``function`` with its depth counted, its run paid, and writes refused while it is a view."""
    is_view = getattr(function, _KIND, None) == "view"

    @functools.wraps(function)
    def guarded(self: Contract, *arguments: object, **named: object) -> object:
        frame = self.frame
        session = frame.session
        session.enter_method()
        frame.views += is_view
        try:
            return function(self, *arguments, **named)
        except RecursionError:
            raise session.stop_too_deep() from None
        except MemoryError as error:
            raise session.fail(error) from error
        finally:
            frame.views -= is_view
            session.leave_method()

    return guarded


# -- the ABI ---------------------------------------------------------------------------------------------------------


def _method_of(contract: type[Contract], name: str, function: Callable[..., object]) -> Method:
    kind: MethodKind = getattr(function, _KIND)
    place = f"{contract.__name__}.{name}"
    checked_name("a method", name)
    plain = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    found = list(signature(function).parameters.values())
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError) as error:
        raise InvalidInputError(f"the annotations of a method cannot be read: {error}", method=place) from error
    parameters = []
    for parameter in found[1:]:
        if parameter.kind not in plain or parameter.default is not Parameter.empty or parameter.name not in hints:
            raise InvalidInputError(
                "each parameter of a method is positional, has a type and no default", method=f"{place}({parameter})"
            )
        parameters.append((checked_name("a parameter", parameter.name), _type_in(hints[parameter.name], place)))
    if len(parameters) > ARGUMENTS_MAX or any(value.kind == "none" for _, value in parameters):
        raise InvalidInputError(f"a method takes at most {ARGUMENTS_MAX} arguments, each with a value", method=place)
    if "return" not in hints:
        raise InvalidInputError("a method says what it returns ('-> None' for nothing)", method=place)
    returns = _type_in(hints["return"], place)
    if kind == "init" and returns.kind != "none":
        raise InvalidInputError("what a deployment runs returns nothing", method=place)
    return Method(name, kind, tuple(parameters), returns)


def _type_in(hint: object, place: str) -> ValueType:
    try:
        return type_of(hint)
    except InvalidInputError as error:
        raise InvalidInputError(error.message, method=place, found=str(hint)) from None


def code_of(contract: type[Contract]) -> Code:
    """The methods, fields and events of a class, with its ABI. Raises ``InvalidInputError`` naming what is wrong."""
    if not (isinstance(contract, type) and issubclass(contract, Contract)) or contract.contract_name is None:
        raise InvalidInputError(
            "a contract is a class of 'Contract' with a name and a version",
            found=getattr(contract, "__name__", str(contract)),
        )
    methods: dict[str, Method] = {}
    fields: list[dict[str, object]] = []
    events: list[dict[str, object]] = []
    for name in sorted({name for base in contract.__mro__ for name in vars(base)}):
        found = getattr(contract, name)
        if isinstance(found, Value | Map):
            fields.append(found.describe())
        elif isinstance(found, Event):
            events.append(found.describe())
        elif hasattr(found, _KIND):
            methods[name] = _method_of(contract, name, found)
    constructors = [method for method in methods.values() if method.kind == "init"]
    if len(constructors) > 1:
        raise InvalidInputError("a contract has at most one '@init' method", found=contract.__name__)
    described = {
        "name": contract.contract_name,
        "version": contract.contract_version,
        "methods": [method.describe() for method in methods.values()],
        "fields": fields,
        "events": events,
    }
    abi = json.dumps(described, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    for constructor in constructors:
        del methods[constructor.name]
    return Code(
        name=contract.contract_name,
        version=contract.contract_version,
        contract=contract,
        methods=methods,
        constructor=constructors[0] if constructors else None,
        abi=abi,
        abi_hash=sha256(abi).digest(),
    )
