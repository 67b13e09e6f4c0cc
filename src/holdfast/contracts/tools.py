"""Contracts for people and programs that speak JSON: arguments, results, receipts, and what is deployed.

Invariants:
    * Numbers are decimal text both ways, because JSON's own numbers lose digits above 2**53. Smaller ones are taken as
      JSON numbers too; fractions never.
    * Bytes are ``0x`` and hex, addresses ``0x`` and 40 digits.
    * What comes from outside is checked against the ABI; anything else is ``InvalidInputError`` naming the argument.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final

from ..errors import InvalidInputError, NotFoundError
from ..state.api import ReadableState
from .codec import Address, Plain, ValueType, decode, decode_any, encode_arguments
from .context import CallContext
from .contract import Code, Method
from .executor import Call, ContractExecutor, Deploy
from .limits import ADDRESS_BYTES, GAS_MAX
from .receipts import EventRecord, Receipt
from .registry import ContractRegistry, Deployment, decode_deployment, deployment_key, deployments
from .transactions import Transaction

__all__ = [
    "address_from_text",
    "arguments_from_json",
    "call_from_json",
    "code_at",
    "deploy_from_json",
    "deployment_to_json",
    "list_codes",
    "list_contracts",
    "receipt_to_json",
    "transaction_to_json",
    "value_from_json",
    "value_to_json",
    "view_json",
]

_SAFE: Final = 2**53
_DECIMAL: Final = re.compile(r"-?(0|[1-9][0-9]{0,77})")
_HEX: Final = re.compile(r"0x((?:[0-9a-f]{2})*)")


# -- values ----------------------------------------------------------------------------------------------------------


def address_from_text(text: object) -> Address:
    """The address that ``0x`` and 40 hex digits stand for. Raises ``InvalidInputError``."""
    return Address(_bytes_of(text, "an address"))


def _bytes_of(text: object, what: str) -> bytes:
    match = _HEX.fullmatch(text) if isinstance(text, str) else None
    if match is None or (what == "an address" and len(match[1]) != 2 * ADDRESS_BYTES):
        digits = "40 small hex digits" if what == "an address" else "pairs of small hex digits"
        raise InvalidInputError(f"{what} is text: 0x and {digits}", found=text)
    return bytes.fromhex(match[1])


def _int_of(value: object) -> int:
    if isinstance(value, str) and _DECIMAL.fullmatch(value) and value != "-0":
        return int(value)
    if type(value) is int and abs(value) < _SAFE:
        return value
    raise InvalidInputError("a number is decimal text, or a JSON number below 2**53", found=value)


def value_from_json(value: object, kind: ValueType) -> Plain:
    """The value of type ``kind`` that parsed JSON stands for. Raises ``InvalidInputError``."""
    if kind.kind == "int":
        return _int_of(value)
    if kind.kind == "address":
        return address_from_text(value)
    if kind.kind == "bytes":
        return _bytes_of(value, "a byte string")
    if kind.kind == "list":
        if not isinstance(value, list):
            raise InvalidInputError(f"a {kind.name} is a JSON list", found=value)
        assert kind.element is not None
        return [value_from_json(item, kind.element) for item in value]  # type: ignore[return-value]
    wanted = {"str": str, "bool": bool, "none": type(None)}[kind.kind]
    if type(value) is not wanted:
        raise InvalidInputError(f"a {kind.kind} is expected", found=value)
    assert value is None or isinstance(value, bool | str)
    return value


def value_to_json(value: Plain) -> object:
    """``value`` as plain JSON: numbers as decimal text, bytes and addresses as 0x and hex."""
    if isinstance(value, list):
        return [value_to_json(item) for item in value]
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value


def _other_arguments(place: str, parameters: Sequence[tuple[str, ValueType]], found: object) -> InvalidInputError:
    names = ", ".join(name for name, _ in parameters) or "none"
    wanted = ", ".join(f"{name} ({kind.name})" for name, kind in parameters) or "[]"
    return InvalidInputError(
        f"{place} takes the arguments {names}",
        found=found,
        remedy=f"give them as a list in order or as an object by name: {wanted}",
    )


def arguments_from_json(method: Method | None, arguments: Sequence[object] | Mapping[str, object]) -> bytes:
    """The encoded arguments of a method, given in order or by name. ``None`` is a method without parameters.

    Raises ``InvalidInputError`` naming what is missing, unknown or wrong.
    """
    parameters = method.parameters if method is not None else ()
    place = method.name if method is not None else "the deployment"
    names = [name for name, _ in parameters]
    if isinstance(arguments, Mapping):
        if arguments.keys() != set(names):
            raise _other_arguments(place, parameters, ", ".join(sorted(arguments)))
        arguments = [arguments[name] for name in names]
    if len(arguments) != len(names):
        raise _other_arguments(place, parameters, len(arguments))
    values = []
    for (name, kind), value in zip(parameters, arguments, strict=True):
        try:
            values.append(value_from_json(value, kind))
        except InvalidInputError as error:
            raise InvalidInputError(
                f"argument {name!r} of {place}: {error.message}", found=error.context.get("found")
            ) from error
    return encode_arguments(values, [kind for _, kind in parameters])


# -- what there is ---------------------------------------------------------------------------------------------------


def list_codes(registry: ContractRegistry) -> list[dict[str, object]]:
    """The code of this node: name, version, ABI and its hash, by name and version."""
    return [
        {"name": code.name, "version": code.version, "abi_hash": code.abi_hash.hex(), "abi": json.loads(code.abi)}
        for code in registry
    ]


def deployment_to_json(deployment: Deployment) -> dict[str, object]:
    """A deployed contract as plain JSON."""
    return {
        "address": value_to_json(deployment.address),
        "name": deployment.name,
        "version": deployment.version,
        "abi_hash": deployment.abi_hash.hex(),
        "deployer": value_to_json(deployment.deployer),
    }


def list_contracts(state: ReadableState) -> list[dict[str, object]]:
    """Every deployed contract, by address."""
    return [deployment_to_json(deployment) for deployment in deployments(state)]


def code_at(registry: ContractRegistry, state: ReadableState, address: Address) -> Code:
    """The code of the contract at ``address``. Raises ``NotFoundError`` if it, or its code, is not here."""
    raw = state.get(deployment_key(address))
    if raw is None:
        raise NotFoundError(
            "nothing is deployed at this address",
            address=bytes(address),
            remedy="'holdfast contract list', or list_contracts(), shows what is deployed and where",
        )
    record = decode_deployment(address, raw)
    code = registry.get(record.name, record.version)
    if code is None or code.abi_hash != record.abi_hash:
        raise NotFoundError(
            "this node does not have the code of the contract",
            remedy="register the contract under the name and version that the chain uses",
            contract=f"{record.name} {record.version}",
            expected=record.abi_hash,
        )
    return code


# -- what to do ------------------------------------------------------------------------------------------------------


def _method(code: Code, name: str) -> Method:
    found = code.methods.get(name)
    if found is None:
        raise InvalidInputError(
            f"{code.name} has no method of this name",
            found=name,
            expected=", ".join(code.methods),
            remedy="name one of those expected; 'holdfast contract list --codes' shows what each takes",
        )
    return found


def deploy_from_json(
    registry: ContractRegistry,
    name: str,
    version: int,
    arguments: Sequence[object] | Mapping[str, object] = (),
    *,
    caller: Address,
    gas_limit: int,
    nonce: int = 0,
) -> Transaction:
    """The transaction that deploys a code. Raises ``NotFoundError`` and ``InvalidInputError``."""
    code = registry.get(name, version)
    if code is None:
        raise NotFoundError(
            "this node has no such contract",
            contract=f"{name} {version}",
            known=", ".join(f"{known.name} {known.version}" for known in registry) or "none",
            remedy="name one of those known, with its version, or bring the code: --contracts MODULE:OBJECT, "
            "in a program a ContractRegistry that holds it",
        )
    encoded = arguments_from_json(code.constructor, arguments)
    return Transaction(caller, Deploy(name, version, encoded), gas_limit, nonce)


def call_from_json(
    registry: ContractRegistry,
    state: ReadableState,
    address: Address,
    method: str,
    arguments: Sequence[object] | Mapping[str, object] = (),
    *,
    caller: Address,
    gas_limit: int,
    nonce: int = 0,
) -> Transaction:
    """The transaction that calls a method of a deployed contract. Raises ``NotFoundError``, ``InvalidInputError``."""
    found = _method(code_at(registry, state, address), method)
    return Transaction(caller, Call(address, method, arguments_from_json(found, arguments)), gas_limit, nonce)


def view_json(
    executor: ContractExecutor,
    state: ReadableState,
    address: Address,
    method: str,
    arguments: Sequence[object] | Mapping[str, object] = (),
    *,
    height: int,
    timestamp: int,
    caller: Address | None = None,
    gas_limit: int = GAS_MAX,
) -> dict[str, object]:
    """The receipt, as JSON, of a call on ``state`` that changes nothing; ``caller`` is all zeros if not given."""
    found = _method(code_at(executor.registry, state, address), method)
    call = Call(address, method, arguments_from_json(found, arguments))
    context = CallContext(caller or Address(bytes(ADDRESS_BYTES)), height, timestamp, gas_limit, bytes(32))
    return receipt_to_json(executor.view(state, call, context))


# -- what became of it -----------------------------------------------------------------------------------------------


def _event_to_json(event: EventRecord) -> dict[str, object]:
    fields = {name: value_to_json(decode_any(raw)[0]) for name, raw in event.fields}
    return {"address": value_to_json(event.address), "name": event.name, "fields": fields}


def receipt_to_json(receipt: Receipt, returns: ValueType | None = None) -> dict[str, object]:
    """A receipt as plain JSON. ``returns`` asks for the type of the result; without it the bytes say it."""
    result: Plain = None
    if receipt.result:
        result = decode_any(receipt.result)[0] if returns is None else decode(receipt.result, returns)
    return {
        "status": receipt.status.value,
        "gas_used": str(receipt.gas_used),
        "result": value_to_json(result),
        "error": receipt.error,
        "events": [_event_to_json(event) for event in receipt.events],
    }


def transaction_to_json(transaction: Transaction) -> dict[str, object]:
    """A transaction as plain JSON; its arguments stay encoded, as hex."""
    action = transaction.action
    what: dict[str, object] = (
        {"kind": "call", "address": value_to_json(action.address), "method": action.method}
        if isinstance(action, Call)
        else {"kind": "deploy", "name": action.name, "version": action.version}
    )
    return {
        "hash": transaction.hash.hex(),
        "caller": value_to_json(transaction.caller),
        "gas_limit": str(transaction.gas_limit),
        "nonce": str(transaction.nonce),
        "arguments": value_to_json(action.arguments),
    } | what
