"""Values of contracts and their bytes: typed, tagged, length-prefixed, with one encoding each.

Invariants:
    * A value has exactly one encoding, and decoding accepts nothing else.
    * Types are exact: a ``bool`` is no ``int``, plain ``bytes`` are no ``Address``, and there are no floats.
    * ``encode_key`` keeps order: bytewise order of keys is the order of the values (text by its UTF-8).

A value is a tag and a payload, numbers big-endian::

    | 0 none |
    | 1 bool | u8: 0 or 1 |
    | 2 int | u8 n | n bytes, two's complement, as few as possible; 0 has none |
    | 3 bytes | u32 length | bytes |
    | 4 str | u32 length | UTF-8 |
    | 5 address | 20 bytes |
    | 6 list | u16 count | values, all of one type, none of them a list |

Arguments are | u8 count | values |.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from types import GenericAlias, NoneType
from typing import Final, Literal, TypeAlias, get_args, get_origin

from ..errors import InvalidInputError
from .limits import (
    ADDRESS_BYTES,
    ARGUMENTS_BYTES_MAX,
    ARGUMENTS_MAX,
    INT_BITS,
    INT_MAX,
    INT_MIN,
    LIST_ITEMS_MAX,
    VALUE_BYTES_MAX,
)

__all__ = [
    "Address",
    "Plain",
    "ValueType",
    "decode",
    "decode_any",
    "decode_arguments",
    "decode_key",
    "encode",
    "encode_arguments",
    "encode_key",
    "type_named",
    "type_of",
]

Kind: TypeAlias = Literal["none", "bool", "int", "bytes", "str", "address", "list"]

_TAGS: Final[dict[Kind, int]] = {"none": 0, "bool": 1, "int": 2, "bytes": 3, "str": 4, "address": 5, "list": 6}
_KINDS: Final[dict[int, Kind]] = {tag: kind for kind, tag in _TAGS.items()}
_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")
_INT_BYTES: Final = INT_BITS // 8


class Address(bytes):
    """The 20 bytes of a caller or a contract. Raises ``InvalidInputError`` for another length."""

    __slots__ = ()

    def __new__(cls, raw: bytes) -> Address:
        if not isinstance(raw, bytes) or len(raw) != ADDRESS_BYTES:
            found = len(raw) if isinstance(raw, bytes) else type(raw).__name__
            raise InvalidInputError(f"an address is {ADDRESS_BYTES} bytes", found=found)
        return super().__new__(cls, raw)

    def __repr__(self) -> str:
        return f"Address({self.hex()})"

    __str__ = __repr__


Plain: TypeAlias = (
    bool | int | bytes | str | Address | list[bool] | list[int] | list[bytes] | list[str] | list[Address] | None
)
"""What contracts take, store and give back."""


@dataclass(frozen=True, slots=True)
class ValueType:
    """A type of the ABI. ``element`` is the type in a list, and ``None`` for every other kind."""

    kind: Kind
    element: ValueType | None = None

    @property
    def name(self) -> str:
        """As the ABI writes it: ``int``, ``address``, ``list<str>``."""
        return self.kind if self.element is None else f"list<{self.element.name}>"


_PYTHON: Final[dict[object, ValueType]] = {
    NoneType: ValueType("none"),
    bool: ValueType("bool"),
    int: ValueType("int"),
    bytes: ValueType("bytes"),
    str: ValueType("str"),
    Address: ValueType("address"),
}
_CLASSES: Final[dict[Kind, type]] = {
    "none": NoneType,
    "bool": bool,
    "int": int,
    "bytes": bytes,
    "str": str,
    "address": Address,
    "list": list,
}


def type_of(annotation: object) -> ValueType:
    """The ABI's type of a Python type. Raises ``InvalidInputError`` for anything that contracts cannot hold."""
    if annotation is None:
        annotation = NoneType
    try:
        found = _PYTHON.get(annotation)
    except TypeError:
        found = None
    if found is not None:
        return found
    if isinstance(annotation, GenericAlias) and get_origin(annotation) is list:
        element = type_of(get_args(annotation)[0])
        if element.kind not in ("none", "list"):
            return ValueType("list", element)
    raise InvalidInputError(
        "a contract takes, stores and returns only int, bytes, str, bool, Address and lists of one of them",
        found=str(annotation),
    )


def type_named(name: str) -> ValueType:
    """The type that the ABI calls ``name``. Raises ``InvalidInputError``."""
    inner = name.removeprefix("list<").removesuffix(">") if name.startswith("list<") and name.endswith(">") else None
    simple = name if inner is None else inner
    found = next((known for known in _PYTHON.values() if known.name == simple), None)
    if found is None or (inner is not None and found.kind == "none"):
        raise InvalidInputError("this is no type of the ABI", found=name)
    return found if inner is None else ValueType("list", found)


# -- encoding --------------------------------------------------------------------------------------------------------


def _wrong(expected: str, value: object) -> InvalidInputError:
    return InvalidInputError(f"the value must be {expected}, not {type(value).__name__}")


def encode(value: object, kind: ValueType) -> bytes:
    """The bytes of ``value``, which must be exactly of this type. Raises ``InvalidInputError``."""
    out = bytearray()
    _encode_into(out, value, kind)
    if len(out) > VALUE_BYTES_MAX:
        raise InvalidInputError(f"the value takes {len(out)} bytes; at most {VALUE_BYTES_MAX} are allowed")
    return bytes(out)


def _encode_into(out: bytearray, value: object, kind: ValueType) -> None:
    if type(value) is not _CLASSES[kind.kind]:
        raise _wrong(kind.name, value)
    out.append(_TAGS[kind.kind])
    if isinstance(value, bool):
        out.append(value)
    elif isinstance(value, int):
        if not INT_MIN <= value <= INT_MAX:
            raise InvalidInputError(f"the number needs more than {INT_BITS} bits with its sign")
        raw = _int_bytes(value)
        out.append(len(raw))
        out += raw
    elif isinstance(value, Address):
        out += value
    elif isinstance(value, bytes):
        out += _U32.pack(len(value)) + value
    elif isinstance(value, str):
        text = _utf8(value)
        out += _U32.pack(len(text)) + text
    elif isinstance(value, list):
        assert kind.element is not None
        if len(value) > LIST_ITEMS_MAX:
            raise InvalidInputError(f"the list has {len(value)} items; at most {LIST_ITEMS_MAX} are allowed")
        out += _U16.pack(len(value))
        for item in value:
            _encode_into(out, item, kind.element)


def _int_bytes(value: int) -> bytes:
    if value == 0:
        return b""
    return value.to_bytes((value if value > 0 else ~value).bit_length() // 8 + 1, "big", signed=True)


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise InvalidInputError(f"the text is not valid Unicode at character {exc.start}") from exc


def encode_arguments(values: Sequence[object], kinds: Sequence[ValueType]) -> bytes:
    """The bytes of a call's arguments, at most 256 KiB. Raises ``InvalidInputError``."""
    if len(values) != len(kinds) or len(values) > ARGUMENTS_MAX:
        raise InvalidInputError(f"the method takes {len(kinds)} arguments, not {len(values)}")
    out = bytes([len(values)]) + b"".join(encode(value, kind) for value, kind in zip(values, kinds, strict=True))
    if len(out) > ARGUMENTS_BYTES_MAX:
        raise InvalidInputError(f"the arguments take {len(out)} bytes; at most {ARGUMENTS_BYTES_MAX} are allowed")
    return out


# -- decoding --------------------------------------------------------------------------------------------------------


class _Reader:
    """Takes values from the front of bytes; every shortage is an ``InvalidInputError``."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.offset = 0

    def take(self, count: int) -> bytes:
        end = self.offset + count
        if end > len(self.raw):
            raise InvalidInputError(f"the bytes end at {len(self.raw)}, inside a value")
        part = self.raw[self.offset : end]
        self.offset = end
        return part

    def value(self, *, in_list: bool = False) -> tuple[Plain, ValueType]:
        tag = self.take(1)[0]
        kind = _KINDS.get(tag)
        if kind is None or (in_list and kind in ("none", "list")):
            raise InvalidInputError(f"unknown tag {tag} of a value at offset {self.offset - 1}")
        if kind == "list":
            return self._list()
        return self._simple(kind), ValueType(kind)

    def _simple(self, kind: Kind) -> bool | int | bytes | str | Address | None:
        if kind == "none":
            return None
        if kind == "bool":
            flag = self.take(1)[0]
            if flag > 1:
                raise InvalidInputError(f"a truth value is 0 or 1, not {flag}")
            return flag == 1
        if kind == "int":
            raw = self.take(self.take(1)[0])
            number = int.from_bytes(raw, "big", signed=True)
            if len(raw) > _INT_BYTES or _int_bytes(number) != raw:
                raise InvalidInputError("a number is not in its shortest form, or too long")
            return number
        if kind == "address":
            return Address(self.take(ADDRESS_BYTES))
        (length,) = _U32.unpack(self.take(4))
        raw = self.take(length)
        if kind == "bytes":
            return raw
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise InvalidInputError(f"the text is not UTF-8 at byte {exc.start}") from exc

    def _list(self) -> tuple[Plain, ValueType]:
        (count,) = _U16.unpack(self.take(2))
        if count > LIST_ITEMS_MAX:
            raise InvalidInputError(f"the list has {count} items; at most {LIST_ITEMS_MAX} are allowed")
        items: list[object] = []
        element = ValueType("none")
        for number in range(count):
            item, found = self.value(in_list=True)
            if number and found != element:
                raise InvalidInputError(f"the list mixes {element.name} and {found.name}")
            element = found
            items.append(item)
        return items, ValueType("list", element)  # type: ignore[return-value]

    def end(self) -> None:
        if self.offset != len(self.raw):
            raise InvalidInputError(f"{len(self.raw) - self.offset} bytes are left over after the last value")


def _fits(found: ValueType, wanted: ValueType) -> bool:
    """An empty list does not say of what."""
    empty = found.element is not None and found.element.kind == "none"
    return found == wanted or (empty and wanted.kind == "list")


def decode(raw: bytes, kind: ValueType) -> Plain:
    """The value of exactly one encoding of this type. Raises ``InvalidInputError``."""
    value, found = decode_any(raw)
    if not _fits(found, kind):
        raise InvalidInputError(f"the value must be {kind.name}, not {found.name}")
    return value


def decode_any(raw: bytes) -> tuple[Plain, ValueType]:
    """The value and its type (of an empty list: ``list<none>``). Raises ``InvalidInputError``."""
    if len(raw) > VALUE_BYTES_MAX:
        raise InvalidInputError(f"the value takes {len(raw)} bytes; at most {VALUE_BYTES_MAX} are allowed")
    reader = _Reader(raw)
    value = reader.value()
    reader.end()
    return value


def decode_arguments(raw: bytes, kinds: Sequence[ValueType]) -> list[Plain]:
    """The arguments of a call. Raises ``InvalidInputError`` for wrong counts, types or bytes."""
    if len(raw) > ARGUMENTS_BYTES_MAX:
        raise InvalidInputError(f"the arguments take {len(raw)} bytes; at most {ARGUMENTS_BYTES_MAX} are allowed")
    reader = _Reader(raw)
    count = reader.take(1)[0]
    if count != len(kinds):
        raise InvalidInputError(f"the method takes {len(kinds)} arguments, not {count}")
    values: list[Plain] = []
    for position, kind in enumerate(kinds):
        start = reader.offset
        value, found = reader.value()
        if not _fits(found, kind):
            raise InvalidInputError(f"argument {position + 1} must be {kind.name}, not {found.name}")
        if reader.offset - start > VALUE_BYTES_MAX:
            raise InvalidInputError(f"argument {position + 1} takes more than {VALUE_BYTES_MAX} bytes")
        values.append(value)
    reader.end()
    return values


# -- keys ------------------------------------------------------------------------------------------------------------

_KEY_END: Final = b"\x00\x01"
_KEY_ZERO: Final = b"\x00\xff"


def encode_key(value: object, kind: ValueType) -> bytes:
    """The bytes of a map's key, in the order of the values; one part of a compound key. Raises ``InvalidInputError``.

    int: 32 bytes, offset by 2**255. bool: 1 byte. address: 20 bytes. bytes and str: zeros as 00 ff, then 00 01.
    """
    if type(value) is not _CLASSES[kind.kind]:
        raise _wrong(kind.name, value)
    if isinstance(value, bool):
        return bytes([value])
    if isinstance(value, int):
        if not INT_MIN <= value <= INT_MAX:
            raise InvalidInputError(f"the number needs more than {INT_BITS} bits with its sign")
        return (value - INT_MIN).to_bytes(_INT_BYTES, "big")
    if isinstance(value, Address):
        return bytes(value)
    if isinstance(value, bytes):
        return value.replace(b"\x00", _KEY_ZERO) + _KEY_END
    if isinstance(value, str):
        return _utf8(value).replace(b"\x00", _KEY_ZERO) + _KEY_END
    raise InvalidInputError(f"a {kind.name} cannot be a key")


def decode_key(raw: bytes, kinds: Sequence[ValueType]) -> list[Plain]:
    """The parts of a key. Raises ``InvalidInputError`` unless ``raw`` is exactly their encoding."""
    parts: list[Plain] = []
    offset = 0
    for kind in kinds:
        width = {"bool": 1, "int": _INT_BYTES, "address": ADDRESS_BYTES}.get(kind.kind)
        end = offset + width if width is not None else _text_end(raw, offset)
        if end > len(raw):
            raise InvalidInputError("a key ends inside one of its parts", found=raw)
        parts.append(_key_part(raw[offset:end], kind))
        offset = end
    if offset != len(raw):
        raise InvalidInputError("a key has bytes left over after its last part", found=raw)
    return parts


def _text_end(raw: bytes, offset: int) -> int:
    """Position after the end mark of an escaped part."""
    while True:
        zero = raw.find(b"\x00", offset)
        mark = raw[zero : zero + 2]
        if zero < 0 or mark not in (_KEY_END, _KEY_ZERO):
            raise InvalidInputError("a key has a part without its end", found=raw)
        offset = zero + 2
        if mark == _KEY_END:
            return offset


def _key_part(part: bytes, kind: ValueType) -> Plain:
    if kind.kind == "bool":
        if part[0] > 1:
            raise InvalidInputError("a truth value in a key is 0 or 1", found=part)
        return part == b"\x01"
    if kind.kind == "int":
        return int.from_bytes(part, "big") + INT_MIN
    if kind.kind == "address":
        return Address(part)
    plain = part.removesuffix(_KEY_END).replace(_KEY_ZERO, b"\x00")
    if kind.kind == "bytes":
        return plain
    try:
        return plain.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise InvalidInputError("a text in a key is not UTF-8", found=plain) from exc
