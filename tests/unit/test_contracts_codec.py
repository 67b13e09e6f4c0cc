"""Values of contracts: one encoding each, exact types, keys in the order of the values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.contracts.codec import (
    Address,
    ValueType,
    decode,
    decode_any,
    decode_arguments,
    decode_key,
    encode,
    encode_arguments,
    encode_key,
    type_named,
    type_of,
)
from holdfast.contracts.limits import INT_MAX, INT_MIN, LIST_ITEMS_MAX, VALUE_BYTES_MAX
from holdfast.errors import InvalidInputError

TYPES: list[Any] = [int, bytes, str, bool, Address, list[int], list[bytes], list[str], list[bool], list[Address]]
INT, BYTES, STR, BOOL, ADDRESS = (type_of(kind) for kind in TYPES[:5])

ints = st.one_of(st.integers(INT_MIN, INT_MAX), st.sampled_from([0, 1, -1, 127, 128, -128, -129, INT_MIN, INT_MAX]))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.text("\x00\x01\x02\u00ff", max_size=4)
raws = st.binary(max_size=20) | st.lists(st.sampled_from([0, 1, 2, 254, 255]), max_size=4).map(bytes)
addresses = st.binary(min_size=20, max_size=20).map(Address)
simple = {INT: ints, BYTES: raws, STR: texts, BOOL: st.booleans(), ADDRESS: addresses}
typed = st.sampled_from(list(simple)).flatmap(
    lambda kind: st.one_of(
        st.tuples(st.just(kind), simple[kind]),
        st.tuples(st.just(ValueType("list", kind)), st.lists(simple[kind], min_size=1, max_size=5)),
    )
)


@given(typed)
def test_a_value_comes_back_with_its_type(case: tuple[ValueType, Any]) -> None:
    kind, value = case
    raw = encode(value, kind)
    assert decode(raw, kind) == value
    assert decode_any(raw) == (value, kind)
    assert type(decode(raw, kind)) is type(value)


@given(st.binary(max_size=40))
def test_any_bytes_are_one_encoding_or_refused(raw: bytes) -> None:
    try:
        value, kind = decode_any(raw)
    except InvalidInputError:
        return
    assert encode(value, kind if value != [] else type_of(list[int])) == raw


@pytest.mark.parametrize(
    ("value", "kind", "raw"),
    [
        (0, int, "0200"),
        (1, int, "020101"),
        (-1, int, "0201ff"),
        (127, int, "02017f"),
        (128, int, "02020080"),
        (-128, int, "020180"),
        (-129, int, "0202ff7f"),
        (INT_MAX, int, "0220" + "7f" + "ff" * 31),
        (INT_MIN, int, "0220" + "80" + "00" * 31),
        (True, bool, "0101"),
        (b"ab", bytes, "03000000026162"),
        ("\u00e9", str, "0400000002c3a9"),
        (Address(bytes(20)), Address, "05" + "00" * 20),
        ([1, 2], list[int], "060002" + "020101" + "020102"),
        ([], list[str], "060000"),
        (None, None, "00"),
    ],
)
def test_the_bytes_are_as_documented(value: Any, kind: Any, raw: str) -> None:
    assert encode(value, type_of(kind)).hex() == raw
    assert decode(bytes.fromhex(raw), type_of(kind)) == value


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ("", "inside a value"),
        ("07", "unknown tag"),
        ("0102", "0 or 1"),
        ("020100", "shortest form"),
        ("02020001", "shortest form"),
        ("0202ffff", "shortest form"),
        ("0221" + "01" * 33, "too long"),
        ("0300000005aa", "inside a value"),
        ("03ffffffff", "inside a value"),
        ("0400000001ff", "not UTF-8"),
        ("05" + "00" * 19, "inside a value"),
        ("060001060000", "unknown tag 6"),
        ("06000100", "unknown tag 0"),
        ("060002" + "0200" + "0101", "mixes"),
        ("06ffff", "at most 4096"),
        ("020000", "left over"),
    ],
)
def test_other_bytes_are_refused(raw: str, why: str) -> None:
    with pytest.raises(InvalidInputError, match=why):
        decode_any(bytes.fromhex(raw))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, INT),
        (1, BOOL),
        (1.0, INT),
        (float("nan"), INT),
        (b"\x01" * 20, ADDRESS),
        (Address(bytes(20)), BYTES),
        ("a", BYTES),
        (bytearray(b"a"), BYTES),
        (None, INT),
        ((1, 2), type_of(list[int])),
        ([1, True], type_of(list[int])),
        ({1}, type_of(list[int])),
        (INT_MAX + 1, INT),
        (INT_MIN - 1, INT),
        ("\ud800", STR),
        (b"x" * (VALUE_BYTES_MAX - 4), BYTES),
        ([0] * (LIST_ITEMS_MAX + 1), type_of(list[int])),
    ],
)
def test_what_is_not_exactly_of_the_type_is_refused(value: Any, kind: ValueType) -> None:
    with pytest.raises(InvalidInputError):
        encode(value, kind)


def test_the_longest_value_fits() -> None:
    raw = encode(b"x" * (VALUE_BYTES_MAX - 5), BYTES)
    assert len(raw) == VALUE_BYTES_MAX
    assert decode(raw, BYTES) == b"x" * (VALUE_BYTES_MAX - 5)
    with pytest.raises(InvalidInputError, match="at most"):
        decode(b"\x03" + (VALUE_BYTES_MAX - 4).to_bytes(4, "big") + b"x" * (VALUE_BYTES_MAX - 4), BYTES)


def test_another_type_is_not_taken() -> None:
    with pytest.raises(InvalidInputError, match="must be str, not int"):
        decode(encode(1, INT), STR)
    with pytest.raises(InvalidInputError, match="must be list<str>, not list<int>"):
        decode(encode([1], type_of(list[int])), type_of(list[str]))
    assert decode(encode([], type_of(list[int])), type_of(list[str])) == []


@pytest.mark.parametrize("kind", [float, complex, dict, set, list, tuple, list[float], list[list[int]], "int", object])
def test_other_types_are_no_types_of_contracts(kind: object) -> None:
    with pytest.raises(InvalidInputError, match="int, bytes, str, bool, Address"):
        type_of(kind)


@pytest.mark.parametrize("kind", [*TYPES, None])
def test_a_type_is_found_by_its_name(kind: object) -> None:
    assert type_named(type_of(kind).name) == type_of(kind)


@pytest.mark.parametrize("name", ["float", "", "list<>", "list<none>", "list<list<int>>", "list<int", "Int"])
def test_an_unknown_name_is_no_type(name: str) -> None:
    with pytest.raises(InvalidInputError):
        type_named(name)


def test_an_address_is_twenty_bytes() -> None:
    with pytest.raises(InvalidInputError, match="20 bytes"):
        Address(b"short")
    with pytest.raises(InvalidInputError, match="20 bytes"):
        Address("x" * 20)  # type: ignore[arg-type]
    assert repr(Address(b"\x01" * 20)) == f"Address({'01' * 20})"


# -- arguments ---------------------------------------------------------------------------------------------------------


@given(st.lists(typed, max_size=6))
def test_arguments_come_back(cases: list[tuple[ValueType, Any]]) -> None:
    kinds = [kind for kind, _ in cases]
    values = [value for _, value in cases]
    assert decode_arguments(encode_arguments(values, kinds), kinds) == values


def test_wrong_arguments_name_their_place() -> None:
    raw = encode_arguments([1, "a"], [INT, STR])
    with pytest.raises(InvalidInputError, match="takes 1 arguments, not 2"):
        decode_arguments(raw, [INT])
    with pytest.raises(InvalidInputError, match="argument 2 must be int, not str"):
        decode_arguments(raw, [INT, INT])
    with pytest.raises(InvalidInputError, match="left over"):
        decode_arguments(raw + b"\x00", [INT, STR])
    with pytest.raises(InvalidInputError, match="inside a value"):
        decode_arguments(b"", [])
    with pytest.raises(InvalidInputError, match="takes 2 arguments, not 1"):
        encode_arguments([1], [INT, STR])
    with pytest.raises(InvalidInputError, match="at most 262144"):
        encode_arguments([b"x" * 60_000] * 5, [BYTES] * 5)
    with pytest.raises(InvalidInputError, match="at most 262144"):
        decode_arguments(b"\x00" * 262_145, [])
    with pytest.raises(InvalidInputError, match="argument 1 takes more than 65536"):
        decode_arguments(b"\x01\x03\x00\x01\x00\x00" + b"x" * 65_536, [BYTES])


# -- keys --------------------------------------------------------------------------------------------------------------

key_parts = st.sampled_from(list(simple)).flatmap(lambda kind: st.tuples(st.just(kind), simple[kind], simple[kind]))


@pytest.mark.slow
@given(st.lists(key_parts, min_size=1, max_size=4))
def test_keys_keep_order_and_come_back(parts: list[tuple[ValueType, Any, Any]]) -> None:
    kinds = [kind for kind, _, _ in parts]
    left, right = ([part[side] for part in parts] for side in (1, 2))
    raws = [b"".join(encode_key(v, k) for v, k in zip(side, kinds, strict=True)) for side in (left, right)]
    comparable = [[v.encode() if isinstance(v, str) else v for v in side] for side in (left, right)]
    assert (raws[0] < raws[1]) == (comparable[0] < comparable[1])
    assert (raws[0] == raws[1]) == (left == right)
    assert decode_key(raws[0], kinds) == left


@given(st.lists(st.sampled_from(list(simple)), min_size=1, max_size=3), st.binary(max_size=70))
def test_any_bytes_are_a_key_or_refused(kinds: list[ValueType], raw: bytes) -> None:
    try:
        parts = decode_key(raw, kinds)
    except InvalidInputError:
        return
    assert b"".join(encode_key(part, kind) for part, kind in zip(parts, kinds, strict=True)) == raw


def test_a_key_part_has_exactly_its_type() -> None:
    for value, kind in ((True, INT), (1, BOOL), (b"x" * 20, ADDRESS), ([], type_of(list[int])), (INT_MAX + 1, INT)):
        with pytest.raises(InvalidInputError):
            encode_key(value, kind)
