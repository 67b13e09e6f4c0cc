"""The bytes of a ``changes`` part: the example of docs/FORMAT.md, round trips, and nothing else is taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.limits import STATE_KEY_BYTES_MAX, STATE_VALUE_BYTES_MAX
from holdfast.merkle.pure import BACKEND

EXAMPLE = bytes.fromhex("00000002 0001 61 00000000 0001 62 80000001 cc")

changes_strategy = st.dictionaries(
    st.binary(min_size=1, max_size=6), st.one_of(st.none(), st.binary(min_size=1, max_size=6)), max_size=8
)


def test_the_example_of_the_format() -> None:
    changes: dict[bytes, bytes | None] = {b"b": b"\xcc", b"a": None}
    assert BACKEND.encode_changes(changes, [b"b"]) == EXAMPLE
    assert BACKEND.decode_changes(EXAMPLE) == ({b"a": None, b"b": b"\xcc"}, [b"b"])
    assert BACKEND.encode_changes({}, []) == bytes(4)
    assert BACKEND.decode_changes(bytes(4)) == ({}, [])


@given(changes=changes_strategy, chosen=st.sets(st.integers(0, 7)))
def test_round_trip(changes: dict[bytes, bytes | None], chosen: set[int]) -> None:
    written = sorted(key for key, value in changes.items() if value is not None)
    inserted = [key for place, key in enumerate(written) if place in chosen]
    data = BACKEND.encode_changes(changes, inserted)
    assert data == BACKEND.encode_changes(dict(reversed(changes.items())), tuple(reversed(inserted)))
    found, new = BACKEND.decode_changes(data)
    assert (found, list(found), new) == (changes, sorted(changes), inserted)


@given(changes=changes_strategy, place=st.integers(0, 200), byte=st.integers(0, 255), what=st.integers(0, 3))
def test_other_bytes_are_other_changes_or_refused(
    changes: dict[bytes, bytes | None], place: int, byte: int, what: int
) -> None:
    data = BACKEND.encode_changes(changes, [key for key, value in changes.items() if value])
    at = place % len(data)
    other = bytes([byte])
    bad = [data[:at] + other + data[at + 1 :], data[:at] + data[at + 1 :], data[:at] + other + data[at:], data[:at]]
    try:
        found, new = BACKEND.decode_changes(bad[what])
    except ValueError:
        return
    assert BACKEND.encode_changes(found, new) == bad[what]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("", "count"),
        ("000000", "count"),
        ("00000001", "cut off"),
        ("00000001 0001", "cut off"),
        ("00000001 0001 61 000000", "cut off"),
        ("00000001 0001 61 00000002 cc", "cut off"),
        ("00000001 0001 61 00000001 cc dd", "follow"),
        ("00000000 00", "follow"),
        ("00000001 0000 00000001 cc", "1 to 400"),
        ("00000001 0191" + "61" * 401 + "00000001 cc", "1 to 400"),
        ("00000002 0001 61 00000000 0001 61 00000000", "ascending"),
        ("00000002 0001 62 00000000 0001 61 00000000", "ascending"),
        ("00000002 0002 6161 00000000 0001 61 00000000", "ascending"),
        ("00000001 0001 61 80000000", "marked"),
        ("00000001 0001 61 04000001 cc", "cut off or above"),
    ],
)
def test_what_is_refused(data: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        BACKEND.decode_changes(bytes.fromhex(data))


@pytest.mark.parametrize(
    ("changes", "inserted"),
    [
        ({b"": b"x"}, []),
        ({bytes(STATE_KEY_BYTES_MAX + 1): b"x"}, []),
        ({b"a": b""}, []),
        ({b"a": b"x"}, [b"b"]),
        ({b"a": None}, [b"a"]),
    ],
)
def test_what_is_not_written(changes: dict[bytes, bytes | None], inserted: list[bytes]) -> None:
    with pytest.raises(ValueError):
        BACKEND.encode_changes(changes, inserted)


@pytest.mark.slow
def test_a_value_of_the_largest_size() -> None:
    value = bytes(STATE_VALUE_BYTES_MAX)
    data = BACKEND.encode_changes({b"a": value}, [])
    assert BACKEND.decode_changes(data) == ({b"a": value}, [])
    with pytest.raises(ValueError, match="not 67108865"):
        BACKEND.encode_changes({b"a": value + b"x"}, [])
    with pytest.raises(ValueError, match="cut off or above"):
        BACKEND.decode_changes(data[:7] + b"\x04\x00\x00\x01" + value + b"x")
