"""``holdfast contract``: contracts of a chain ``contracts`` are deployed, called, listed and audited.

Invariants:
    * A deployment or a call is one transaction in one block of its own, whatever becomes of it; a view is none.
    * The code is the shipped examples, or what ``--contracts`` names: that module is imported, so its code is run.
"""

from __future__ import annotations

import json
import os
import sys
import time as clock
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._json import check_depth
from ..errors import HoldfastError, InvalidInputError
from .options import Config, DataDir, Durability, Height, Json, Seconds
from .output import Output
from .progress import INTERRUPTED, Progress, StopSignals

if TYPE_CHECKING:
    from ..contracts import ContractRegistry, Transaction
    from ..store.store import Store

__all__ = ["load_registry", "register"]

_NOT_OK = 1
_ARGUMENT_CHARS_MAX = 1024 * 1024
_GAS = 1_000_000

_Contracts = Annotated[
    str | None,
    typer.Option(
        "--contracts",
        metavar="MODULE:OBJECT",
        help="Your ContractRegistry, contract class or list of them, instead of the examples. Runs the module's code.",
    ),
]
_Arguments = Annotated[
    str, typer.Argument(metavar="JSON", help="Arguments: a list in order, or an object by name. Bytes are 0x hex.")
]
_Caller = Annotated[str, typer.Option("--caller", metavar="ADDRESS", help="Who calls: 0x and 40 hex digits.")]
_GasLimit = Annotated[int, typer.Option("--gas-limit", min=0, help="The most that the call may use.")]
_Time = Annotated[
    int | None, typer.Option("--time", min=0, metavar="SECONDS", help="Time of the block; else the clock's.")
]


def register(app: typer.Typer) -> None:
    """The group is part of ``app``."""
    group = typer.Typer(
        no_args_is_help=True, help="Contracts of a chain 'contracts' (init --chain contracts): docs/CONTRACTS.md."
    )
    group.command("deploy")(deploy)
    group.command("call")(call)
    group.command("list")(list_)
    group.command("audit")(audit)
    app.add_typer(group, name="contract")


# -- code -----------------------------------------------------------------------------------------------------------


def load_registry(text: str | None) -> ContractRegistry:
    """The contracts that ``module:object`` names, or the examples for ``None``. Imports the module: its code runs.

    The module is looked for in the working directory too. Raises ``InvalidInputError`` and what ``register`` raises.
    """
    from ..contracts import ContractRegistry
    from ..contracts.examples import EXAMPLES

    if text is None:
        return ContractRegistry(EXAMPLES)
    module_name, colon, name = text.partition(":")
    if not colon or not module_name or not name:
        raise InvalidInputError("--contracts is MODULE:OBJECT", found=text[:80])
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # last: no file there may stand in for a module of Python
    try:
        found: Any = import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except HoldfastError:
        raise
    except Exception as error:
        raise InvalidInputError(
            f"--contracts cannot be loaded: {type(error).__name__}: {error}", found=text[:80]
        ) from error
    if isinstance(found, ContractRegistry):
        return found
    if isinstance(found, type):
        return ContractRegistry([found])
    if not isinstance(found, Iterable):
        raise InvalidInputError(
            "--contracts names neither a ContractRegistry nor contract classes", found=type(found).__name__
        )
    return ContractRegistry(found)


def _arguments(text: str) -> Sequence[object] | Mapping[str, object]:
    if len(text) > _ARGUMENT_CHARS_MAX:
        raise InvalidInputError("the arguments are too long", found=len(text), limit=_ARGUMENT_CHARS_MAX)
    try:
        check_depth(text.encode("utf-8", "surrogatepass"))
        found = json.loads(text)
    except ValueError as error:
        raise InvalidInputError(f"the arguments are not JSON: {error}", found=text[:80]) from error
    if not isinstance(found, list | dict):
        raise InvalidInputError("the arguments are a JSON list or object", found=text[:80])
    return found


# -- commands -------------------------------------------------------------------------------------------------------


def deploy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The contract's name; 'contract list --codes' has all.")],
    data_dir: DataDir,
    caller: _Caller,
    arguments: _Arguments = "[]",
    version: Annotated[int, typer.Option("--version", min=1, help="Version of the code.")] = 1,
    gas_limit: _GasLimit = _GAS,
    time: _Time = None,
    contracts: _Contracts = None,
    durability: Durability = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Deploy a contract in a block of its own; the receipt's result is its address. Exit code 1 if it went wrong.

    The caller is taken as given: nothing is signed.
    """
    from ..contracts.tools import address_from_text, deploy_from_json

    given, sender = _arguments(arguments), address_from_text(caller)
    registry = load_registry(contracts)
    out = Output(as_json=as_json)
    with _open_to_write(data_dir, config, registry, durability, out) as store:
        transaction = deploy_from_json(
            registry, name, version, given, caller=sender, gas_limit=gas_limit, nonce=_next_height(store)
        )
        _build(store, transaction, time, out)


def call(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="The contract: 0x and 40 hex digits.")],
    method: Annotated[str, typer.Argument(metavar="METHOD", help="One of its entries, or of its views.")],
    data_dir: DataDir,
    arguments: _Arguments = "[]",
    caller: Annotated[
        str | None, typer.Option("--caller", metavar="ADDRESS", help="Who calls: 0x and 40 hex digits.")
    ] = None,
    view: Annotated[bool, typer.Option("--view", help="Only ask: no block, and a write reverts.")] = False,
    height: Height = None,
    gas_limit: _GasLimit = _GAS,
    time: _Time = None,
    contracts: _Contracts = None,
    durability: Durability = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Call a method in a block of its own, or ask with --view. Exit code 1 if the call did not end well.

    A call that reverted or failed is in its block too, with its receipt. Nothing is signed.
    """
    from ..contracts.tools import address_from_text, call_from_json

    given, target = _arguments(arguments), address_from_text(address)
    sender = None if caller is None else address_from_text(caller)
    if height is not None and not view:
        raise InvalidInputError("--height is for --view: a call stands on the tip")
    registry = load_registry(contracts)
    out = Output(as_json=as_json)
    if view:
        from .session import open_to_read

        with open_to_read(data_dir, config, chain="contracts", registry=registry) as store:
            _view(store, registry, (target, method, given, sender), height, gas_limit, out)
        return
    if sender is None:
        raise InvalidInputError("a call needs --caller", remedy="say who calls, or ask with --view")
    with _open_to_write(data_dir, config, registry, durability, out) as store:
        transaction = call_from_json(
            registry,
            store.state,
            target,
            method,
            given,
            caller=sender,
            gas_limit=gas_limit,
            nonce=_next_height(store),
        )
        _build(store, transaction, time, out)


def list_(
    data_dir: DataDir,
    codes: Annotated[bool, typer.Option("--codes", help="List the code of this node and its methods instead.")] = False,
    height: Height = None,
    contracts: _Contracts = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """List the contracts that are deployed, or the code that could be; --json has the whole ABI of a code."""
    from ..contracts.registry import deployments
    from ..contracts.tools import deployment_to_json, list_codes
    from .session import open_to_read
    from .state import state_of

    registry = load_registry(contracts)
    out = Output(as_json=as_json)
    with open_to_read(data_dir, config, chain="contracts", registry=registry) as store:
        if codes:
            rows = list_codes(registry)
            shown = rows if as_json else list(_methods(rows))
            out.rows(["name", "version", "kind", "method"], shown, empty="no code")
            return
        with state_of(store, height) as (_, state):
            found = (deployment_to_json(deployment) for deployment in deployments(state))
            out.rows(["address", "name", "version", "deployer"], found, empty="nothing is deployed")


def audit(
    data_dir: DataDir,
    contracts: _Contracts = None,
    progress_seconds: Seconds = 2.0,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Execute every block again from the genesis on and compare roots and receipts. Exit code 0 = right, 3 = not.

    Only the transactions are believed, and nothing is changed. Takes as long as all executions; the state is in memory.
    """
    from ..contracts.building import audited_tip
    from .session import open_to_read

    registry = load_registry(contracts)
    out = Output(as_json=as_json)
    with (
        open_to_read(data_dir, config, chain="contracts", registry=registry) as store,
        StopSignals() as stop,
        Progress("executing", None, quiet=as_json, seconds=progress_seconds, last_line=False) as progress,
    ):

        def step(height: int) -> None:
            progress.update(height + 1)
            if stop():
                out.note("stopped before the end; nothing was changed. next: run the same command again")
                raise typer.Exit(INTERRUPTED)

        tip = audited_tip(store, progress=step)
    root = None if tip.state_root is None else tip.state_root.hex()
    out.record({"blocks": tip.height + 1, "height": tip.height, "root": root, "sound": True})


# -- parts ----------------------------------------------------------------------------------------------------------


def _open_to_write(
    data_dir: Any, config: Any, registry: ContractRegistry, durability: str | None, out: Output
) -> Store:
    from .session import open_to_write, tell_recovery

    overrides = {"durability": durability}
    store = open_to_write(data_dir, config, overrides, chain="contracts", quiet=out.as_json, registry=registry)
    tell_recovery(store, out)
    return store


def _next_height(store: Store) -> int:
    """Also the nonce of the transaction there: it tells calls apart that are otherwise equal."""
    assert store.tip is not None, "a store of this chain has its genesis block from the start"
    return store.tip.height + 1


def _build(store: Store, transaction: Transaction, time: int | None, out: Output) -> None:
    from ..contracts import build_block
    from ..contracts.tools import receipt_to_json

    assert store.tip is not None
    built = build_block(store, [transaction], time=max(int(clock.time()), store.tip.time) if time is None else time)
    info, (receipt,) = built.info, built.receipts
    root = info.state_root
    out.record(
        {
            "height": info.height,
            "block": info.hash.hex(),
            "root": None if root is None else root.hex(),
            "transaction": transaction.hash.hex(),
        }
        | _receipt(receipt_to_json(receipt), out)
    )
    _end(receipt.status.value)


def _view(
    store: Store,
    registry: ContractRegistry,
    asked: tuple[Any, str, Sequence[object] | Mapping[str, object], Any],
    height: int | None,
    gas_limit: int,
    out: Output,
) -> None:
    from ..contracts import ContractExecutor
    from ..contracts.building import chain_of
    from ..contracts.tools import view_json
    from .state import state_of

    target, method, given, sender = asked
    executor = ContractExecutor(registry, chain_of(store).rules.schedule)
    with state_of(store, height) as (info, state):
        assert info is not None, "a store of this chain has its genesis block from the start"
        receipt = view_json(
            executor,
            state,
            target,
            method,
            given,
            height=info.height,
            timestamp=info.time,
            caller=sender,
            gas_limit=gas_limit,
        )
    out.record({"height": info.height, "block": info.hash.hex()} | _receipt(receipt, out))
    _end(str(receipt["status"]))


def _receipt(receipt: dict[str, object], out: Output) -> dict[str, object]:
    """The fields of a receipt; for people, events as text."""
    if out.as_json:
        return receipt
    events = receipt["events"]
    assert isinstance(events, list)
    lines = [f"{event['name']} {json.dumps(event['fields'])} of {event['address']}" for event in events]
    result = receipt["result"]
    shown = result if isinstance(result, str) or result is None else json.dumps(result)
    return receipt | {"result": shown, "error": receipt["error"] or None, "events": "; ".join(lines) or None}


def _end(status: str) -> None:
    if status != "ok":
        raise typer.Exit(_NOT_OK)


def _methods(rows: Iterable[dict[str, object]]) -> Iterator[dict[str, object]]:
    """The codes, a row for each method: ``transfer(to address, amount int)``."""
    for row in rows:
        abi = row["abi"]
        assert isinstance(abi, dict)
        for method in abi["methods"]:
            inputs = ", ".join(f"{item['name']} {item['type']}" for item in method["inputs"])
            words = f"{method['name']}({inputs})" + ("" if method["output"] == "none" else f" -> {method['output']}")
            yield {"name": row["name"], "version": row["version"], "kind": method["kind"], "method": words}
