"""The typed storage of a contract, and its events: what stands in the body of a contract's class.

Invariants:
    * A field reads and writes only through the frame of the running call, so everything is paid and undone with it.
    * What is stored has exactly the field's type; anything else is ``BadValue`` and nothing is written.
    * Keys of one map keep the order of their values; two fields never share a key.

    class Token(Contract, name="token", version=1):
        supply = Value(int, default=0)
        balances = Map(Address, int)
        allowances = Map(tuple[Address, Address], int)
        transferred = Event(sender=Address, to=Address, amount=int)
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar, cast, get_args, get_origin, overload

from ..errors import InvalidInputError
from .codec import ValueType, decode, decode_key, encode, encode_key, type_of
from .limits import NAME_BYTES_MAX, SCAN_ROWS_MAX
from .session import Frame
from .signals import BadValue, MissingKey
from .storage import field_prefix

__all__ = ["BoundEvent", "BoundMap", "Event", "Map", "Value", "checked_name"]

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

KEY_PARTS_MAX = 4


class HasFrame(Protocol):
    """A contract while it runs."""

    @property
    def frame(self) -> Frame: ...


def checked_name(what: str, name: str) -> str:
    """``name`` if it can stand in an ABI: ASCII, small letters, digits and ``_``, a letter first, at most 64.

    Raises ``InvalidInputError``.
    """
    plain = name.isascii() and name.isidentifier() and name == name.lower() and name[0] != "_"
    if not plain or len(name) > NAME_BYTES_MAX:
        raise InvalidInputError(f"{what} must have a name of 1 to 64 small letters, digits and '_'", found=name)
    return name


def _encoded(what: str, value: object, kind: ValueType) -> bytes:
    try:
        return encode(value, kind)
    except InvalidInputError as error:
        raise BadValue(f"{what}: {error.message}") from None


class _Field:
    """What every field has: the name it was given in the class, and what its keys begin with."""

    name = ""
    prefix = b""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name  # checked by the class: an error raised here would lose its kind
        self.prefix = field_prefix(name) if name.isascii() and len(name) <= NAME_BYTES_MAX else b""


class Value(_Field, Generic[T]):
    """One value. Reading it before it was written gives ``default``."""

    def __init__(self, kind: type[T], *, default: T) -> None:
        self.kind = type_of(kind)
        if self.kind.kind == "none":
            raise InvalidInputError("a field holds a value; 'None' is none")
        encode(default, self.kind)
        self._default = default

    @overload
    def __get__(self, contract: None, owner: type) -> Value[T]: ...

    @overload
    def __get__(self, contract: HasFrame, owner: type) -> T: ...

    def __get__(self, contract: HasFrame | None, owner: type) -> T | Value[T]:
        if contract is None:
            return self
        frame = contract.frame
        raw = frame.read(self.prefix)
        if raw is None:
            raw = encode(self._default, self.kind)  # a copy of a list, not the class's own
        return cast(T, frame.decoded(lambda stored: decode(stored, self.kind), raw))

    def __set__(self, contract: HasFrame, value: T) -> None:
        contract.frame.write(self.prefix, _encoded(f"field {self.name}", value, self.kind))

    def describe(self) -> dict[str, object]:
        """As it stands in the ABI."""
        return {"name": self.name, "kind": "value", "type": self.kind.name}


class Map(_Field, Generic[K, V]):
    """Values by key. The key is int, bytes, str, bool or Address, or a tuple of up to four of them."""

    def __init__(self, key: type[K], value: type[V]) -> None:
        self.compound = get_origin(key) is tuple
        parts = get_args(key) if self.compound else (key,)
        self.keys = tuple(type_of(part) for part in parts)
        self.value = type_of(value)
        if not 1 <= len(self.keys) <= KEY_PARTS_MAX or any(kind.kind in ("none", "list") for kind in self.keys):
            raise InvalidInputError(
                f"a key is int, bytes, str, bool or Address, or a tuple of up to {KEY_PARTS_MAX} of them",
                found=str(key),
            )
        if self.value.kind == "none":
            raise InvalidInputError("a map holds values; 'None' is none")

    @overload
    def __get__(self, contract: None, owner: type) -> Map[K, V]: ...

    @overload
    def __get__(self, contract: HasFrame, owner: type) -> BoundMap[K, V]: ...

    def __get__(self, contract: HasFrame | None, owner: type) -> Map[K, V] | BoundMap[K, V]:
        return self if contract is None else BoundMap(self, contract.frame)

    def __set__(self, contract: HasFrame, value: object) -> None:
        raise BadValue(f"field {self.name} is a map: set its values by key")

    def describe(self) -> dict[str, object]:
        """As it stands in the ABI."""
        return {"name": self.name, "kind": "map", "key": [kind.name for kind in self.keys], "type": self.value.name}


class BoundMap(Generic[K, V]):
    """A map of one contract during one call."""

    __slots__ = ("_frame", "_map")

    def __init__(self, field: Map[K, V], frame: Frame) -> None:
        self._map = field
        self._frame = frame

    @overload
    def get(self, key: K) -> V | None: ...

    @overload
    def get(self, key: K, default: D) -> V | D: ...

    def get(self, key: K, default: object = None) -> object:
        """The value of ``key``, or ``default``."""
        raw = self._frame.read(self._key(key))
        return default if raw is None else self._value(raw)

    def __getitem__(self, key: K) -> V:
        """The value of ``key``. Raises ``MissingKey``, which reverts the call."""
        raw = self._frame.read(self._key(key))
        if raw is None:
            raise MissingKey(f"{self._map.name} has no value for this key")
        return self._value(raw)

    def __setitem__(self, key: K, value: V) -> None:
        """``key`` has ``value``."""
        self._frame.write(self._key(key), _encoded(f"field {self._map.name}", value, self._map.value))

    def __delitem__(self, key: K) -> None:
        """``key`` has no value; it may be absent already."""
        self._frame.write(self._key(key), None)

    def __contains__(self, key: object) -> bool:
        """True if ``key`` has a value."""
        return self._frame.read(self._key(key)) is not None

    def items(
        self, *, start: K | None = None, stop: K | None = None, reverse: bool = False, limit: int = SCAN_ROWS_MAX
    ) -> list[tuple[K, V]]:
        """At most ``limit`` rows in the order of the keys, or the reverse: ``start <= key < stop``. Each row is paid.

        The list is of this moment: what is written afterwards does not change it.
        """
        field = self._map
        rows = self._frame.rows(
            field.prefix,
            None if start is None else self._key(start),
            None if stop is None else self._key(stop),
            limit=limit,
            reverse=reverse,
        )
        return [(self._plain_key(key), self._value(raw)) for key, raw in rows]

    def _key(self, key: object) -> bytes:
        field = self._map
        parts = key if field.compound and type(key) is tuple else (key,)
        if len(parts) != len(field.keys):
            raise BadValue(f"a key of field {field.name} has {len(field.keys)} parts")
        try:
            encoded = [encode_key(part, kind) for part, kind in zip(parts, field.keys, strict=True)]
        except InvalidInputError as error:
            raise BadValue(f"key of field {field.name}: {error.message}") from None
        return field.prefix + b"".join(encoded)

    def _plain_key(self, raw: bytes) -> K:
        field = self._map
        parts = self._frame.decoded(lambda stored: decode_key(stored, field.keys), raw[len(field.prefix) :])
        return cast(K, tuple(parts) if field.compound else parts[0])

    def _value(self, raw: bytes) -> V:
        return cast(V, self._frame.decoded(lambda stored: decode(stored, self._map.value), raw))


class Event:
    """An event with named, typed fields. In a contract it is called with all of them by name."""

    def __init__(self, **fields: object) -> None:
        self.fields = {checked_name("a field of an event", name): type_of(kind) for name, kind in fields.items()}
        if len(self.fields) > KEY_PARTS_MAX * 4 or any(kind.kind == "none" for kind in self.fields.values()):
            raise InvalidInputError(f"an event has at most {KEY_PARTS_MAX * 4} fields, each with a value")
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, contract: None, owner: type) -> Event: ...

    @overload
    def __get__(self, contract: HasFrame, owner: type) -> BoundEvent: ...

    def __get__(self, contract: HasFrame | None, owner: type) -> Event | BoundEvent:
        return self if contract is None else BoundEvent(self, contract.frame)

    def __set__(self, contract: HasFrame, value: object) -> None:
        raise BadValue(f"{self.name} is an event: call it")

    def describe(self) -> dict[str, object]:
        """As it stands in the ABI."""
        fields = [{"name": name, "type": kind.name} for name, kind in self.fields.items()]
        return {"name": self.name, "fields": fields}


class BoundEvent:
    """An event of one contract during one call."""

    __slots__ = ("_event", "_frame")

    def __init__(self, event: Event, frame: Frame) -> None:
        self._event = event
        self._frame = frame

    def __call__(self, **values: object) -> None:
        """The event is in the receipt if the call ends well. Raises ``BadValue`` for missing or wrong fields."""
        event = self._event
        if values.keys() != event.fields.keys():
            raise BadValue(f"event {event.name} has the fields {', '.join(event.fields)}")
        encoded = [
            (name, _encoded(f"{name} of event {event.name}", values[name], kind)) for name, kind in event.fields.items()
        ]
        self._frame.emit(event.name, tuple(encoded))
