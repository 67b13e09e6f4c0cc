"""Limits of contracts, with their unit in the name. They are rules of the chain: changing one changes what is valid."""

from typing import Final

__all__ = [
    "ADDRESS_BYTES",
    "ARGUMENTS_BYTES_MAX",
    "ARGUMENTS_MAX",
    "CALL_DEPTH_MAX",
    "ERROR_TEXT_BYTES_MAX",
    "EVENTS_PER_CALL_MAX",
    "GAS_MAX",
    "INT_BITS",
    "INT_MAX",
    "INT_MIN",
    "LIST_ITEMS_MAX",
    "METHOD_DEPTH_MAX",
    "NAME_BYTES_MAX",
    "SCAN_ROWS_MAX",
    "STACK_FRAMES_FREE",
    "TIMESTAMP_MAX",
    "TRANSACTIONS_PER_BLOCK_MAX",
    "VALUE_BYTES_MAX",
    "VERSION_MAX",
]

ADDRESS_BYTES: Final = 20
INT_BITS: Final = 256
INT_MIN: Final = -(2 ** (INT_BITS - 1))
INT_MAX: Final = 2 ** (INT_BITS - 1) - 1

NAME_BYTES_MAX: Final = 64
"""Names of contracts, methods, parameters, fields and events, in ASCII."""
VERSION_MAX: Final = 2**31 - 1
VALUE_BYTES_MAX: Final = 64 * 1024
"""One encoded value: stored, returned, or in an event."""
LIST_ITEMS_MAX: Final = 4096
ARGUMENTS_MAX: Final = 64
ARGUMENTS_BYTES_MAX: Final = 256 * 1024
ERROR_TEXT_BYTES_MAX: Final = 512
EVENTS_PER_CALL_MAX: Final = 4096
SCAN_ROWS_MAX: Final = 10_000
"""Rows that one ``items`` or ``keys`` of a map may ask for."""

CALL_DEPTH_MAX: Final = 64
"""Contracts that call each other, the outermost included."""
METHOD_DEPTH_MAX: Final = 192
"""Methods of contracts that call each other, over all contracts of one call."""
STACK_FRAMES_FREE: Final = 2000
"""Python frames that a call may count on, whatever stands below it."""

GAS_MAX: Final = 2**63 - 1
TIMESTAMP_MAX: Final = 2**63 - 1
TRANSACTIONS_PER_BLOCK_MAX: Final = 65_536
