"""Runs the calls of a block on its state: one block at a time, call after call, nothing written before the end.

    executor = ContractExecutor(registry)
    executor.begin_block(draft.state, height=draft.height, timestamp=now)
    receipt = executor.execute_call(Call(address, "transfer", arguments), context)
    root = executor.finalize_block()          # everything of the block is in draft.state; the root goes into the header

Invariants:
    * A call sees what earlier calls of the block wrote. A call that does not end ``ok`` leaves no write and no event;
      its gas is used, and the block goes on.
    * A node's own failure (storage, memory, an interrupt) gives no receipt: it is raised, the block is discarded, and
      the executor is ready for ``begin_block`` again. The state was only read until then.
    * ``finalize_block`` writes all changes at once or none. In every case no block is open afterwards.
    * Receipts, gas and root are a function of the block, the state and the code: not of time, threads, caches, hash
      seeds, or the order in which the state came to be.

An executor belongs to one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, runtime_checkable

from ..errors import InvalidInputError, ResourceExhausted, StateError
from ..limits import HEIGHT_MAX
from ..state.api import MutableState, ReadableState
from .codec import Address, Plain, decode_arguments, encode, encode_arguments, type_of
from .context import CallContext
from .contract import Code, Contract, Method
from .gas import DEFAULT_SCHEDULE, GasSchedule
from .limits import ARGUMENTS_BYTES_MAX, NAME_BYTES_MAX, STACK_FRAMES_FREE, TIMESTAMP_MAX, VERSION_MAX
from .receipts import Receipt
from .registry import (
    ContractRegistry,
    Deployment,
    contract_address,
    decode_deployment,
    deployment_key,
    encode_deployment,
    nonce_key,
)
from .session import Frame, Session, failure_of
from .signals import BadValue, Refused, Signal, Status
from .stack import frames_free
from .storage import StagedState

__all__ = ["Call", "ContractExecutor", "Deploy", "RootedState"]

_ADDRESS: Final = type_of(Address)
_NONCE_BYTES: Final = 8


@runtime_checkable
class RootedState(MutableState, Protocol):
    """The state of a block being built, with its root."""

    def root(self) -> bytes:
        """32 bytes: the root of the state with all changes so far."""


def _check_name(what: str, name: object) -> None:
    if type(name) is not str or not name.isascii() or not 1 <= len(name) <= NAME_BYTES_MAX:
        raise InvalidInputError(f"the {what} is a name of 1 to {NAME_BYTES_MAX} ASCII characters", found=name)


def _check_arguments(arguments: object) -> None:
    if type(arguments) is not bytes or len(arguments) > ARGUMENTS_BYTES_MAX:
        found = len(arguments) if isinstance(arguments, bytes) else type(arguments).__name__
        raise InvalidInputError(f"arguments are encoded bytes, at most {ARGUMENTS_BYTES_MAX}", found=found)


def _check_kind(given: object, kind: type) -> None:
    if not isinstance(given, kind):
        raise InvalidInputError(f"a '{kind.__name__}' is expected", found=type(given).__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """A method of a deployed contract, with encoded arguments (``encode_arguments``)."""

    address: Address
    method: str
    arguments: bytes = b"\x00"

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", Address(self.address))
        _check_name("method", self.method)
        _check_arguments(self.arguments)


@dataclass(frozen=True, slots=True)
class Deploy:
    """A code by name and version, with the encoded arguments of its ``@init`` method."""

    name: str
    version: int
    arguments: bytes = b"\x00"

    def __post_init__(self) -> None:
        _check_name("contract", self.name)
        if type(self.version) is not int or not 1 <= self.version <= VERSION_MAX:
            raise InvalidInputError(f"the version of a contract is 1 to {VERSION_MAX}", found=self.version)
        _check_arguments(self.arguments)


@dataclass(slots=True)
class _Block:
    state: MutableState
    staged: StagedState
    height: int
    timestamp: int


class ContractExecutor:
    """Runs calls of registered contracts.

    Args:
        registry: the code of this node.
        schedule: the prices.
        missing_code: what a call of code that this node does not have gives: a ``receipt`` with ``unknown_code``, or
            an error that discards the block (``refuse``). Nodes that must agree use ``refuse``: a receipt would tell
            what this node has, not what the chain says.
    """

    def __init__(
        self,
        registry: ContractRegistry,
        schedule: GasSchedule = DEFAULT_SCHEDULE,
        *,
        missing_code: Literal["receipt", "refuse"] = "receipt",
    ) -> None:
        self.registry = registry
        self.schedule = schedule
        self._missing_code = missing_code
        self._block: _Block | None = None
        self._running = False

    # -- the block -----------------------------------------------------------------------------------------------

    @property
    def in_block(self) -> bool:
        """True between ``begin_block`` and the end of the block."""
        return self._block is not None

    def begin_block(self, state: MutableState, *, height: int, timestamp: int) -> None:
        """A block is open on ``state``, which is only read until ``finalize_block``.

        Raises ``StateError`` if one is open already, and ``InvalidInputError``; nothing has changed then.
        """
        self._require_idle()
        if self._block is not None:
            raise StateError(
                "a block is open already",
                remedy="call 'finalize_block' or 'discard' first",
                height=self._block.height,
            )
        for name, value, most in (("height", height, HEIGHT_MAX), ("timestamp", timestamp, TIMESTAMP_MAX)):
            if type(value) is not int or not 0 <= value <= most:
                raise InvalidInputError(f"'{name}' of a block must be a whole number from 0 to {most}", found=value)
        self._block = _Block(state, StagedState(state), height, timestamp)

    def execute_call(self, call: Call, context: CallContext) -> Receipt:
        """What became of the call. Its writes are staged if it ended ``ok``.

        Raises:
            StateError: no block is open, or the caller is a contract that is running.
            InvalidInputError: the context is of another height or time than the block. Nothing has changed.
            HoldfastError: the storage failed, or code is missing (see ``missing_code``): the block is discarded.
        """
        block = self._open_block(context)
        _check_kind(call, Call)

        def work(session: Session) -> bytes:
            session.meter.charge(self.schedule.call + self.schedule.argument_byte * len(call.arguments))
            frame = Frame(session, call.address, context.caller, read_only=False)
            return session.enter(frame, call.method, call.arguments)[1]

        return self._run(block.staged, context, work)

    def deploy(self, deploy: Deploy, context: CallContext) -> Receipt:
        """A contract works at a new address, which is the receipt's result; its ``@init`` method has run.

        The address follows from the caller and the number of its deployments so far. Raises as ``execute_call``.
        """
        block = self._open_block(context)
        _check_kind(deploy, Deploy)

        def work(session: Session) -> bytes:
            session.meter.charge(self.schedule.deploy + self.schedule.argument_byte * len(deploy.arguments))
            return self._deploy(session, deploy)

        return self._run(block.staged, context, work)

    def finalize_block(self) -> bytes:
        """Everything staged is in the state, and its root is returned: 32 bytes for the header.

        Raises ``StateError`` if no block is open, and ``InvalidInputError`` if the state has no root; it stays open
        then. Whatever the state raises (``LimitExceeded``: too many changes) is passed on; the block is closed then
        too, and what was built on it must be thrown away.
        """
        self._require_idle()
        state = self._need_block().state
        if not isinstance(state, RootedState):
            raise InvalidInputError("this state has no root", remedy="use 'flush_block'", found=type(state).__name__)
        self.flush_block()
        return state.root()

    def flush_block(self) -> None:
        """As ``finalize_block``, without the root: for a state whose root somebody else computes."""
        self._require_idle()
        block = self._need_block()
        self._block = None
        block.state.update(block.staged.changes())

    def discard(self) -> None:
        """The block is closed and nothing of it was written. Raises ``StateError`` if none is open."""
        self._require_idle()
        self._need_block()
        self._block = None

    # -- outside a block -----------------------------------------------------------------------------------------

    def view(self, state: ReadableState, call: Call, context: CallContext) -> Receipt:
        """What the call would return on ``state``; it can write nothing, and an open block is not looked at.

        A method that writes gives ``reverted``. Raises what the state raises.
        """
        self._require_idle()
        _check_kind(call, Call)

        def work(session: Session) -> bytes:
            session.meter.charge(self.schedule.call + self.schedule.argument_byte * len(call.arguments))
            frame = Frame(session, call.address, context.caller, read_only=True)
            return session.enter(frame, call.method, call.arguments)[1]

        return self._run(StagedState(state), context, work, read_only=True)

    # -- running -------------------------------------------------------------------------------------------------

    def _need_block(self) -> _Block:
        if self._block is None:
            raise StateError("no block is open", remedy="call 'begin_block' first")
        return self._block

    def _require_idle(self) -> None:
        if self._running:
            raise StateError("a contract is running", remedy="wait for the call; contracts use 'self.call'")

    def _open_block(self, context: CallContext) -> _Block:
        self._require_idle()
        block = self._need_block()
        if (context.height, context.timestamp) != (block.height, block.timestamp):
            raise InvalidInputError(
                "the call is of another block than the one that is open",
                found=f"height {context.height}, time {context.timestamp}",
                expected=f"height {block.height}, time {block.timestamp}",
            )
        return block

    def _run(
        self,
        staged: StagedState,
        context: CallContext,
        work: Callable[[Session], bytes],
        *,
        read_only: bool = False,
    ) -> Receipt:
        session = Session(self, staged, self.schedule, context)
        mark = staged.mark()
        self._running = True
        try:
            with frames_free(STACK_FRAMES_FREE):
                status, result, error = self._outcome(session, work)
            session.require_sound()
        except BaseException:
            if not read_only:
                self._block = None
            raise
        finally:
            self._running = False
        if status is not Status.OK:
            staged.undo_to(mark)
            return Receipt(status, session.meter.used, error=error)
        return Receipt(status, session.meter.used, result, tuple(session.events))

    def _outcome(self, session: Session, work: Callable[[Session], bytes]) -> tuple[Status, bytes, str]:
        """How the work ended. What it caught on its way does not count: the meter and the session say what happened."""
        status, result, error = Status.OK, b"", ""
        try:
            result = work(session)
        except RecursionError:
            session.stop_too_deep()
        except MemoryError as exc:
            raise ResourceExhausted("memory ran out while a contract was running") from exc
        except Signal:
            assert session.meter.exhausted, "a signal comes with an empty meter"
        except Exception as exc:  # noqa: BLE001 - a contract may raise anything; it is in the receipt
            status, error = failure_of(exc)
        if session.too_deep:
            return Status.TOO_DEEP, b"", ""
        if session.meter.exhausted:
            return Status.OUT_OF_GAS, b"", ""
        return status, result, error

    # -- contracts -----------------------------------------------------------------------------------------------

    def invoke(self, frame: Frame, method: str, arguments: bytes | Sequence[object]) -> tuple[Plain, bytes]:
        """The result of ``method`` of the contract at the frame's address, as a value and as its encoding.

        Raises ``Refused`` if it cannot be run, and what the contract raises. Called by the session only.
        """
        code = self._code_at(frame)
        found = code.methods.get(method)
        if found is None:
            raise Refused(Status.UNKNOWN_METHOD, f"{code.name} has no method {method[:NAME_BYTES_MAX]}")
        return self._apply(frame, code, found, arguments)

    def _apply(
        self, frame: Frame, code: Code, method: Method, arguments: bytes | Sequence[object]
    ) -> tuple[Plain, bytes]:
        session = frame.session
        try:
            if not isinstance(arguments, bytes):
                arguments = encode_arguments(arguments, method.types)
                session.meter.charge(self.schedule.argument_byte * len(arguments))
            values = decode_arguments(arguments, method.types)
        except InvalidInputError as error:
            raise Refused(Status.BAD_ARGUMENTS, f"{method.name}: {error.message}") from None
        contract: Contract = code.contract(frame)
        value = getattr(contract, method.name)(*values)
        try:
            raw = encode(value, method.returns)
        except InvalidInputError as error:
            raise BadValue(f"the result of {method.name}: {error.message}") from None
        session.meter.charge(self.schedule.return_byte * len(raw))
        return value, raw

    def _code_at(self, frame: Frame) -> Code:
        session = frame.session
        raw = self._read(session, deployment_key(frame.address))
        if raw is None:
            raise Refused(Status.NO_CONTRACT, f"nothing is deployed at {frame.address.hex()}")
        record = session.of_node(lambda: decode_deployment(frame.address, raw))
        code = self.registry.get(record.name, record.version)
        if code is None or code.abi_hash != record.abi_hash:
            raise self._missing(session, record.name, record.version, record.abi_hash)
        return code

    def _missing(self, session: Session, name: str, version: int, abi_hash: bytes | None) -> BaseException:
        if self._missing_code == "receipt":
            return Refused(Status.UNKNOWN_CODE, f"there is no code {name} {version} with this interface")
        known = self.registry.get(name, version)
        return session.fail(
            StateError(
                "this node does not have the code of a contract"
                if known is None
                else "this node has other code under the name and version of a contract",
                remedy="register the contract that the chain uses, then take the block again",
                contract=f"{name} {version}",
                expected=abi_hash,
                found=None if known is None else known.abi_hash,
            )
        )

    def _deploy(self, session: Session, deploy: Deploy) -> bytes:
        code = self.registry.get(deploy.name, deploy.version)
        if code is None:
            raise self._missing(session, deploy.name, deploy.version, None)
        deployer = session.context.caller
        counter = self._read(session, nonce_key(deployer))
        nonce = 0 if counter is None else int.from_bytes(counter, "big")
        address = contract_address(deployer, nonce)
        if self._read(session, deployment_key(address)) is not None:
            raise Refused(Status.FAILED, "the address is taken")
        record = Deployment(address, code.name, code.version, code.abi_hash, deployer)
        self._write(session, nonce_key(deployer), (nonce + 1).to_bytes(_NONCE_BYTES, "big"))
        self._write(session, deployment_key(address), encode_deployment(record))
        frame = Frame(session, address, deployer, read_only=False)
        if code.constructor is not None:
            self._apply(frame, code, code.constructor, deploy.arguments)
        elif deploy.arguments != encode_arguments((), ()):
            raise Refused(Status.BAD_ARGUMENTS, f"{code.name} takes no arguments when it is deployed")
        return encode(address, _ADDRESS)

    def _read(self, session: Session, key: bytes) -> bytes | None:
        session.meter.charge(self.schedule.read)
        value = session.of_node(lambda: session.staged.get(key))
        if value is not None:
            session.meter.charge(self.schedule.read_byte * len(value))
        return value

    def _write(self, session: Session, key: bytes, value: bytes) -> None:
        session.meter.charge(self.schedule.write + self.schedule.write_byte * (len(key) + len(value)))
        session.staged.put(key, value)
