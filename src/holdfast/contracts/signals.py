"""How a call ends early: what a contract raises, what it may catch, and what passes through it.

Invariants:
    * ``ContractRevert`` and its kinds belong to contracts: they may raise and catch them. None leaves the executor.
    * ``Signal`` and its kinds are no ``Exception``: a contract's ``except Exception`` does not stop them, and a bare
      ``except`` does not help either, because the executor looks at the meter and the session at the end.
    * Texts are the same on every node: they hold no addresses of memory, paths or times.
"""

from __future__ import annotations

from enum import Enum

__all__ = [
    "BadValue",
    "CallFailed",
    "ContractRevert",
    "Fault",
    "MissingKey",
    "OutOfGas",
    "Refused",
    "Signal",
    "Status",
    "TooDeep",
    "WriteInView",
]


class Status(str, Enum):
    """How a call ended. Only ``ok`` has changed the state; the gas is used in every case."""

    OK = "ok"
    REVERTED = "reverted"
    """The contract said no (``ContractRevert``)."""
    FAILED = "failed"
    """The contract broke: another exception."""
    OUT_OF_GAS = "out_of_gas"
    TOO_DEEP = "too_deep"
    """Too many calls inside calls; all gas is used."""
    NO_CONTRACT = "no_contract"
    """Nothing is deployed at the address."""
    UNKNOWN_CODE = "unknown_code"
    """The node does not have this code."""
    UNKNOWN_METHOD = "unknown_method"
    BAD_ARGUMENTS = "bad_arguments"


class ContractRevert(Exception):
    """The call is refused: its writes and events are dropped, its gas is used, the text goes into the receipt."""

    def __init__(self, message: str) -> None:
        if type(message) is not str:
            raise TypeError("the message of a revert is text")
        super().__init__(message)
        self.message = message


class MissingKey(ContractRevert):
    """A map has no value for the key."""


class BadValue(ContractRevert):
    """A value does not have the type or the size that its field, event or result asks for."""


class WriteInView(ContractRevert):
    """A view, or what it called, tried to write."""


class CallFailed(ContractRevert):
    """A call to another contract ended with ``status``; its writes and events are gone, the caller may go on."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


class Refused(Exception):
    """The call never reached a contract's code; ``status`` says why."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Signal(BaseException):
    """Ends the whole call, through everything that a contract may catch."""


class OutOfGas(Signal):
    """The meter has run out."""


class TooDeep(Signal):
    """Calls are nested deeper than allowed."""


class Fault(Signal):
    """The node failed, not the contract: the block cannot go on here. The error is the session's ``fault``."""
