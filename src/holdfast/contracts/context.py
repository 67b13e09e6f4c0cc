"""What a call is told about itself: who calls, in which block, with how much gas."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InvalidInputError
from ..limits import HASH_BYTES, HEIGHT_MAX
from .codec import Address
from .limits import GAS_MAX, TIMESTAMP_MAX

__all__ = ["CallContext"]


@dataclass(frozen=True, slots=True)
class CallContext:
    """The context of one call. ``caller`` is 20 bytes, ``tx_hash`` 32, ``timestamp`` seconds of the block.

    Nobody here checks that ``caller`` agreed: signatures are the business of who accepts transactions.
    Raises ``InvalidInputError`` for a wrong length, type or range.
    """

    caller: Address
    height: int
    timestamp: int
    gas_limit: int
    tx_hash: bytes

    def __post_init__(self) -> None:
        object.__setattr__(self, "caller", Address(bytes(self.caller) if isinstance(self.caller, bytes) else b""))
        for name, value, most in (
            ("height", self.height, HEIGHT_MAX),
            ("timestamp", self.timestamp, TIMESTAMP_MAX),
            ("gas_limit", self.gas_limit, GAS_MAX),
        ):
            if type(value) is not int or not 0 <= value <= most:
                raise InvalidInputError(f"'{name}' of a call must be a whole number from 0 to {most}", found=value)
        if type(self.tx_hash) is not bytes or len(self.tx_hash) != HASH_BYTES:
            raise InvalidInputError(f"'tx_hash' of a call must be {HASH_BYTES} bytes", found=self.tx_hash)
