"""Keys and values of the state on a command line: how they are given, and how they are shown.

One rule for both ways: text as it is; or ``0x`` and hex digits, for any bytes. Text has the escapes ``\\xNN``,
``\\n``, ``\\r``, ``\\t``, ``\\0`` and ``\\\\``. With ``--hex`` everything is hex digits, with or without ``0x``.

Invariants:
    * What is shown for a person can be given back: ``parse_bytes(shown(data)) == data``.
    * JSON holds every byte string as plain hex digits, and beside it its text if that is printable, else null.
"""

from __future__ import annotations

import re

from ..errors import InvalidInputError

__all__ = ["BYTES_HELP", "in_json", "parse_bytes", "parse_hash32", "printable", "shown", "shown_short"]

BYTES_HELP = (
    "Keys and values are text; 0x and hex digits, or --hex, give any bytes; text may have \\xNN, \\n, \\t, \\\\."
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|[\\nrt0])")
_PLAIN = {"\\": b"\\", "n": b"\n", "r": b"\r", "t": b"\t", "0": b"\0"}
_HEX = re.compile(r"(?:0x)?((?:[0-9a-fA-F]{2})*)")
_SHORT = 64
_QUOTED = 80


def parse_bytes(text: str, *, what: str, as_hex: bool = False) -> bytes:
    """The bytes that ``text`` gives by the rule above. Raises ``InvalidInputError`` that begins with ``what``."""
    if as_hex or text.startswith("0x"):
        match = _HEX.fullmatch(text)
        if match is None:
            raise InvalidInputError(
                f"{what} is not pairs of hex digits",
                found=text[:_QUOTED],
                remedy="give an even number of the digits 0-9a-f; a text that begins with 0x is written \\x30x...",
            )
        return bytes.fromhex(match[1])
    parts: list[bytes] = []
    at = 0
    for match in _ESCAPE.finditer(text):
        parts += [_encoded(text[at : match.start()], what), _escaped(match[1])]
        at = match.end()
    return b"".join([*parts, _encoded(text[at:], what)])


def _escaped(name: str) -> bytes:
    return bytes.fromhex(name[1:]) if name.startswith("x") else _PLAIN[name]


def _encoded(text: str, what: str) -> bytes:
    if "\\" in text:
        raise InvalidInputError(
            f"{what} has a backslash that begins no escape",
            found=text[:_QUOTED],
            remedy="write it twice; known are \\xNN, \\n, \\r, \\t, \\0 and \\\\",
        )
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"{what} cannot be encoded: {error.reason}", found=ascii(text)[:_QUOTED]) from error


def parse_hash32(text: str, *, what: str) -> bytes:
    """The 32 bytes of 64 hex digits, with or without ``0x``. Raises ``InvalidInputError``."""
    match = _HEX.fullmatch(text)
    if match is None or len(match[1]) != 64:
        raise InvalidInputError(f"{what} has 64 hex digits", found=text[:_QUOTED])
    return bytes.fromhex(match[1])


def printable(data: bytes) -> str | None:
    """``data`` as text if a person can read it back exactly, else ``None``."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if text and text.isprintable() and text == text.strip() else None


def shown(data: bytes) -> str:
    """``data`` for people: its text if it is printable, else ``0x`` and hex."""
    text = printable(data)
    if text is None or text.startswith("0x"):
        return f"0x{data.hex()}"
    return text.replace("\\", "\\\\")


def shown_short(data: bytes | None) -> str | None:
    """As ``shown``, cut where a table would get too wide; ``None`` stays ``None``."""
    if data is None:
        return None
    text = shown(data if len(data) <= 4 * _SHORT else data[:_SHORT])  # a cut character of UTF-8 makes it hex
    return text if len(text) <= _SHORT and len(data) <= 4 * _SHORT else text[: _SHORT - 3] + "..."


def in_json(name: str, data: bytes | None) -> dict[str, object]:
    """The two fields of a byte string in JSON: ``name`` in hex, ``name_text`` if it is printable."""
    if data is None:
        return {name: None, f"{name}_text": None}
    return {name: data.hex(), f"{name}_text": printable(data)}
