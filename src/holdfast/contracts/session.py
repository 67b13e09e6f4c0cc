"""One call while it runs: its gas, its events, its depth, and the frames of the contracts that it goes through.

Invariants:
    * Everything that a contract can do passes here and is paid first: reads, writes, events, hashes, calls.
    * A call to another contract either returns or has left no write and no event; its gas is used either way.
    * An error of the node (storage, memory) ends the call as a ``Fault`` and is never taken for the contract's doing,
      even if the contract catches it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol, TypeVar

from ..errors import CorruptionError, InvalidInputError, ResourceExhausted
from ..limits import STATE_KEY_BYTES_MAX
from .codec import Address, Plain
from .context import CallContext
from .gas import GasMeter, GasSchedule
from .limits import CALL_DEPTH_MAX, ERROR_TEXT_BYTES_MAX, EVENTS_PER_CALL_MAX, METHOD_DEPTH_MAX, SCAN_ROWS_MAX
from .receipts import EventRecord
from .signals import BadValue, CallFailed, ContractRevert, Fault, Refused, Signal, Status, TooDeep, WriteInView
from .storage import StagedState, contract_prefix

__all__ = ["Frame", "Invoker", "Session", "failure_of"]

T = TypeVar("T")


class Invoker(Protocol):
    """How the executor runs a method of a deployed contract."""

    def invoke(self, frame: Frame, method: str, arguments: bytes | Sequence[object]) -> tuple[Plain, bytes]:
        """The result of ``method`` of the contract at the frame's address, as a value and as its encoding."""


def failure_of(error: Exception) -> tuple[Status, str]:
    """How a call that raised ``error`` ended, and the text of its receipt: the same on every node."""
    if isinstance(error, Refused):
        status, text = error.status, error.message
    elif isinstance(error, ContractRevert):
        status, text = Status.REVERTED, f"{type(error).__name__}: {ContractRevert.__str__(error)}"
    else:
        status, text = Status.FAILED, type(error).__name__
    raw = text.encode("utf-8", "backslashreplace")
    return status, raw[:ERROR_TEXT_BYTES_MAX].decode("utf-8", "ignore")


class Session:
    """One call from outside, with all that it calls."""

    def __init__(self, invoker: Invoker, staged: StagedState, schedule: GasSchedule, context: CallContext) -> None:
        self.invoker = invoker
        self.staged = staged
        self.schedule = schedule
        self.context = context
        self.meter = GasMeter(context.gas_limit)
        self.events: list[EventRecord] = []
        self.too_deep = False
        self.fault: BaseException | None = None
        self._frames = 0
        self._methods = 0

    # -- depth ---------------------------------------------------------------------------------------------------

    def enter_method(self) -> None:
        """One more method is running. Raises ``TooDeep``, ``OutOfGas``; it has not been entered then."""
        self.meter.charge(self.schedule.method)
        if self._methods >= METHOD_DEPTH_MAX:
            raise self.stop_too_deep()
        self._methods += 1

    def leave_method(self) -> None:
        """The innermost method has ended."""
        self._methods -= 1

    def stop_too_deep(self) -> TooDeep:
        """The signal to raise: all gas is used, and the call ends as ``too_deep`` whatever catches it."""
        self.too_deep = True
        self.meter.exhaust()
        return TooDeep()

    def enter(self, frame: Frame, method: str, arguments: bytes | Sequence[object]) -> tuple[Plain, bytes]:
        """The result of a method in ``frame``. Raises as the contract does."""
        if self._frames >= CALL_DEPTH_MAX:
            raise self.stop_too_deep()
        self._frames += 1
        try:
            return self.invoker.invoke(frame, method, arguments)
        finally:
            self._frames -= 1

    # -- the node's own failures ---------------------------------------------------------------------------------

    def of_node(self, work: Callable[[], T]) -> T:
        """What ``work`` on the state gives; whatever it raises becomes a ``Fault`` that no contract can hide."""
        try:
            return work()
        except RecursionError:
            raise self.stop_too_deep() from None
        except Exception as error:
            raise self.fail(error) from error

    def fail(self, error: BaseException) -> Fault:
        """The signal to raise after ``error`` of the node: no receipt can be given."""
        if self.fault is None:
            self.fault = error
        self.meter.exhaust()
        return Fault()

    def require_sound(self) -> None:
        """Nothing happens unless the node failed during the call; then its error is raised."""
        if isinstance(self.fault, MemoryError):
            raise ResourceExhausted("memory ran out while a contract was running") from self.fault
        if self.fault is not None:
            raise self.fault


@dataclass(slots=True)
class Frame:
    """One contract in the course of a call: who it is, who called it, and its way to the state."""

    session: Session
    address: Address
    caller: Address
    read_only: bool
    views: int = 0
    """Views of this contract that are running."""

    @property
    def prefix(self) -> bytes:
        """What every key of this contract begins with."""
        return contract_prefix(self.address)

    # -- state ---------------------------------------------------------------------------------------------------

    def read(self, key: bytes) -> bytes | None:
        """The value of this contract's ``key``, paid."""
        session = self.session
        full = self._full(key)
        session.meter.charge(session.schedule.read)
        value = session.of_node(lambda: session.staged.get(full))
        if value is not None:
            session.meter.charge(session.schedule.read_byte * len(value))
        return value

    def write(self, key: bytes, value: bytes | None) -> None:
        """This contract's ``key`` has ``value`` for every later read; ``None`` removes. Paid before.

        Raises:
            WriteInView: the call may not write. BadValue: the key is too long.
        """
        session = self.session
        self._require_writable()
        full = self._full(key)
        if value is None:
            session.meter.charge(session.schedule.delete)
        else:
            session.meter.charge(session.schedule.write + session.schedule.write_byte * (len(full) + len(value)))
        session.staged.put(full, value)

    def rows(
        self, prefix: bytes, start: bytes | None, stop: bytes | None, *, limit: int, reverse: bool
    ) -> list[tuple[bytes, bytes]]:
        """At most ``limit`` rows with ``prefix``, keys without the contract's own part; each is paid."""
        if type(limit) is not int or not 1 <= limit <= SCAN_ROWS_MAX:
            raise BadValue(f"a scan takes a limit from 1 to {SCAN_ROWS_MAX}")
        session, skip = self.session, len(self.prefix)
        full = self._full(prefix)
        low = None if start is None else self._full(start)
        high = None if stop is None else self._full(stop)
        session.meter.charge(session.schedule.read)
        found: list[tuple[bytes, bytes]] = []
        scan: Iterator[tuple[bytes, bytes]] = session.of_node(
            lambda: session.staged.scan(full, start=low, stop=high, reverse=reverse)
        )
        while len(found) < limit:
            row = session.of_node(lambda: next(scan, None))
            if row is None:
                break
            session.meter.charge(session.schedule.read + session.schedule.read_byte * len(row[1]))
            found.append((row[0][skip:], row[1]))
        return found

    def decoded(self, work: Callable[[bytes], T], stored: bytes) -> T:
        """What ``work`` makes of stored bytes; bytes that the contract cannot have written are the node's fault."""
        try:
            return work(stored)
        except InvalidInputError as error:
            broken = CorruptionError(
                f"a value of a contract cannot be read: {error.message}", address=bytes(self.address), found=stored
            )
            raise self.session.fail(broken) from error

    def _full(self, key: bytes) -> bytes:
        full = self.prefix + key
        if len(full) > STATE_KEY_BYTES_MAX:
            raise BadValue(f"a key of {len(full)} bytes is too long; at most {STATE_KEY_BYTES_MAX} are allowed")
        return full

    def _require_writable(self) -> None:
        if self.read_only or self.views:
            raise WriteInView("a view changes nothing")

    # -- events, hashes, calls -----------------------------------------------------------------------------------

    def emit(self, name: str, fields: tuple[tuple[str, bytes], ...]) -> None:
        """An event is in the receipt if the call ends well. ``fields`` are names and encoded values."""
        session = self.session
        self._require_writable()
        size = len(name) + sum(len(field) + len(value) for field, value in fields)
        session.meter.charge(session.schedule.event + session.schedule.event_byte * size)
        if len(session.events) >= EVENTS_PER_CALL_MAX:
            raise BadValue(f"a call gives at most {EVENTS_PER_CALL_MAX} events")
        session.events.append(EventRecord(self.address, name, fields))

    def hash(self, data: bytes) -> bytes:
        """SHA-256, paid."""
        session = self.session
        session.meter.charge(session.schedule.hash + session.schedule.hash_byte * len(data))
        return sha256(data).digest()

    def call(self, address: Address, method: str, arguments: Sequence[object]) -> Plain:
        """What ``method`` of the contract at ``address`` returns. This contract is its caller.

        Raises ``CallFailed`` with its status if it did not return; its writes and events are gone then.
        """
        session = self.session
        if type(address) is not Address or type(method) is not str:
            raise BadValue("a call takes an Address and the name of a method")
        session.meter.charge(session.schedule.cross_call)
        mark, events = session.staged.mark(), len(session.events)
        inner = Frame(session, address, self.address, self.read_only or self.views > 0)
        try:
            value, _ = session.enter(inner, method, arguments)
        except RecursionError:
            raise session.stop_too_deep() from None
        except MemoryError as error:
            raise session.fail(error) from error
        except Signal:
            raise
        except Exception as error:  # noqa: BLE001 - a contract may raise anything
            session.staged.undo_to(mark)
            del session.events[events:]
            status, text = failure_of(error)
            raise CallFailed(status, text) from None
        return value
