"""What work costs, as data, and the meter of one call.

Invariants:
    * Gas is a whole number. Work is paid before it is done; what cannot be paid is not done.
    * A meter that has run out stays out: its limit counts as used, and every further charge fails.
    * The same call on the same state costs the same on every node: caches and the place of a value change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from ..errors import InvalidInputError
from .limits import GAS_MAX
from .signals import OutOfGas

__all__ = ["DEFAULT_SCHEDULE", "GasMeter", "GasSchedule"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GasSchedule:
    """Prices in gas, each a whole number from 0. Part of a chain's rules: another schedule is another chain."""

    call: int = 1_000
    """A transaction that calls a contract."""
    deploy: int = 20_000
    argument_byte: int = 2
    method: int = 10
    """Each call of a method inside the contract's own code."""
    cross_call: int = 500
    read: int = 100
    """A lookup, whether or not there is a value, and each row of a scan."""
    read_byte: int = 1
    write: int = 400
    write_byte: int = 4
    """Of the key and the value."""
    delete: int = 200
    event: int = 100
    event_byte: int = 2
    hash: int = 50
    hash_byte: int = 1
    return_byte: int = 1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int or not 0 <= value <= GAS_MAX:
                raise InvalidInputError(f"the price '{name}' must be a whole number from 0", found=value)

    def as_mapping(self) -> dict[str, str]:
        """The prices as decimal text, by name."""
        return {name: str(value) for name, value in asdict(self).items()}

    @classmethod
    def from_mapping(cls, prices: Mapping[str, str]) -> GasSchedule:
        """The schedule of ``as_mapping``. Raises ``InvalidInputError`` for a missing, unknown or bad price."""
        names = {field.name for field in fields(cls)}
        wrong = sorted(names ^ set(prices))
        if wrong:
            raise InvalidInputError("a gas schedule has every price once", found=", ".join(wrong))
        values = {}
        for name, text in prices.items():
            if not (text.isascii() and text.isdigit()) or str(int(text)) != text:
                raise InvalidInputError(f"the price '{name}' must be a whole number", found=text)
            values[name] = int(text)
        return cls(**values)


DEFAULT_SCHEDULE = GasSchedule()


class GasMeter:
    """The gas of one call, shared by everything that it calls."""

    __slots__ = ("exhausted", "limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.exhausted = False

    def charge(self, amount: int) -> None:
        """``amount`` (>= 0) is used up. Raises ``OutOfGas``, and then for ever."""
        used = self.used + amount
        if used > self.limit or self.exhausted:
            self.exhaust()
            raise OutOfGas
        self.used = used

    def exhaust(self) -> None:
        """Nothing is left."""
        self.used = self.limit
        self.exhausted = True
