"""Money of the xai chain: whole units of 10^-8, decimal text outside, never a float that is calculated with.

Invariants:
    * An amount is an ``int`` from 0 to ``UNITS_MAX``; NaN, Infinity, negative and larger ones are refused.
    * What the original wrote as a JSON float means the decimal number that its shortest text names (``repr``), rounded
      half to even to 8 decimals, as the original rounds its outputs. Text and integers must be exact.
"""

from __future__ import annotations

import math
import re
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final

from ...errors import InvalidBlock

__all__ = ["UNITS_MAX", "UNITS_PER_COIN", "json_amount", "text_of", "units_of"]

UNITS_PER_COIN: Final = 100_000_000
UNITS_MAX: Final = 2**63 - 1
_DECIMALS: Final = 8
_TEXT: Final = re.compile(r"(0|[1-9][0-9]{0,11})(\.[0-9]{1,8})?", re.ASCII)


def units_of(value: object, name: str = "amount") -> int:
    """The units of a JSON number, or of decimal text with at most 8 decimals. Raises ``InvalidBlock``."""
    if type(value) is float:
        if not math.isfinite(value):
            raise InvalidBlock(f"'{name}' is not a number", found=str(value))
        units = int(Decimal(repr(value)).scaleb(_DECIMALS).to_integral_value(ROUND_HALF_EVEN))
    elif type(value) is int:
        units = value * UNITS_PER_COIN
    elif type(value) is str:
        if _TEXT.fullmatch(value) is None:
            raise InvalidBlock(f"'{name}' is not an amount of at most 8 decimals", found=value[:80])
        units = int(Decimal(value).scaleb(_DECIMALS))
    else:
        raise InvalidBlock(f"'{name}' is not an amount", found=type(value).__name__)
    if not 0 <= units <= UNITS_MAX:
        raise InvalidBlock(f"'{name}' is out of range", found=str(value)[:80], expected=f"0..{text_of(UNITS_MAX)}")
    return units


def text_of(units: int) -> str:
    """The decimal text of ``units``: ``12``, ``0.5``, ``0.00000001``."""
    whole, rest = divmod(units, UNITS_PER_COIN)
    return f"{whole}.{rest:08d}".rstrip("0") if rest else str(whole)


def json_amount(units: int) -> float | str:
    """What stands in a document: the float of the original where it names ``units`` exactly, else decimal text."""
    value = float(Decimal(units).scaleb(-_DECIMALS))
    exact = Decimal(repr(value)).scaleb(_DECIMALS) == units
    return value if exact else text_of(units)
