"""History rows and their record: round trips, order, golden bytes, and any damage is noticed."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from holdfast.errors import CorruptionError
from holdfast.limits import ENGINE_KEY_BYTES_MAX, HEIGHT_MAX, STATE_KEY_BYTES_MAX
from holdfast.views.api import HistoryRecord
from holdfast.views.history import (
    HISTORY_KEY,
    decode_history_key,
    decode_old,
    decode_record,
    encode_old,
    encode_record,
    history_bounds,
    history_key,
    load_history,
    ordered,
    unordered,
)
from holdfast.views.rows import encode_row
from holdfast.views.tables import HISTORY

bytes_near = st.lists(st.sampled_from([0, 1, 15, 16, 17, 255]), min_size=1, max_size=70).map(bytes)
keys = st.one_of(bytes_near, st.binary(min_size=1, max_size=STATE_KEY_BYTES_MAX))
heights = st.integers(0, HEIGHT_MAX)
numbers = st.integers(0, 2**64 - 1)


@given(keys, keys)
@example(b"a" * 16, b"a" * 16 + b"\x00")
@example(b"a" * 15, b"a" * 15 + b"\x00")
@example(b"a" * 16, b"a" * 17)
@example(b"a" * 32, b"a" * 31 + b"b")
def test_the_order_of_keys_stays(one: bytes, other: bytes) -> None:
    assert (ordered(one) < ordered(other)) == (one < other)
    assert (ordered(one) == ordered(other)) == (one == other)
    assert one == other or not ordered(one).startswith(ordered(other))


@given(keys)
def test_an_ordered_key_comes_back(key: bytes) -> None:
    assert unordered(ordered(key)) == key
    assert len(ordered(key)) == 17 * ((len(key) + 15) // 16)


def test_the_longest_key_fits_an_engine_key() -> None:
    assert len(ordered(b"\xff" * STATE_KEY_BYTES_MAX)) == 425
    assert len(history_key(b"\xff" * STATE_KEY_BYTES_MAX, HEIGHT_MAX)) == 435 <= ENGINE_KEY_BYTES_MAX


@given(
    st.one_of(st.binary(max_size=52), st.tuples(bytes_near, st.integers(0, 60)).map(lambda p: ordered(p[0])[: p[1]]))
)
def test_any_bytes_are_one_ordered_key_or_corruption(data: bytes) -> None:
    try:
        key = unordered(data)
    except CorruptionError:
        return
    assert ordered(key) == data


@given(keys, heights, keys, heights)
def test_rows_lie_by_key_and_then_by_height(one: bytes, low: int, other: bytes, high: int) -> None:
    assert (history_key(one, low) < history_key(other, high)) == ((one, low) < (other, high))
    assert decode_history_key(history_key(one, low)) == (one, low)
    start, stop = history_bounds(one, low)
    assert (start <= history_key(other, high) < stop) == (one == other and high > low)


@given(st.one_of(st.none(), st.binary(max_size=40)))
def test_an_old_value_comes_back(value: bytes | None) -> None:
    assert decode_old(HISTORY_KEY, encode_old(value)) == value


@pytest.mark.parametrize("row", [b"", b"\x00\x00", b"\x02", b"\x02abc"])
def test_a_bad_old_value_is_corruption(row: bytes) -> None:
    with pytest.raises(CorruptionError):
        decode_old(HISTORY_KEY, row)


@pytest.mark.parametrize("key", [b"", b"a" * 16, b"a" * 16 + b"\x00" + bytes(8), b"a" * 15 + b"b\x0f" + bytes(8)])
def test_a_bad_key_is_corruption(key: bytes) -> None:
    with pytest.raises(CorruptionError):
        decode_history_key(HISTORY.prefix + key)


@given(numbers, numbers, numbers, numbers)
def test_the_record_comes_back(floor: int, every: int, oldest: int, cleaned: int) -> None:
    record = HistoryRecord(floor, every, oldest, cleaned)
    assert decode_record(encode_record(record)) == record
    assert load_history({HISTORY_KEY: encode_row(HISTORY_KEY, encode_record(record))}.get) == record
    nothing: dict[bytes, bytes] = {}
    assert load_history(nothing.get) is None


@pytest.mark.parametrize("value", [b"", bytes(33), b"\x02" + bytes(32), b"\x01" + bytes(31), b"\x01" + bytes(33)])
def test_a_bad_record_is_corruption(value: bytes) -> None:
    with pytest.raises(CorruptionError):
        decode_record(value)


def test_what_a_record_has() -> None:
    record = HistoryRecord(floor=100, every=10, oldest=35)
    assert [height for height in range(98) if record.has(height)] == [40, 50, 60, 70, 80, 90]
    assert record.has(100)
    assert not record.has(99)
    assert [height for height in range(30) if HistoryRecord(20).has(height)] == list(range(20, 30))


def test_golden_bytes() -> None:
    """The hex of docs/FORMAT.md, section 7.13."""
    assert history_key(b"a", 7).hex() == "f002" + "61" + "00" * 15 + "01" + "0000000000000007"
    assert ordered(b"k" * 17).hex() == "6b" * 16 + "ff" + "6b" + "00" * 15 + "01"
    assert ordered(b"k" * 16).hex() == "6b" * 16 + "10"
    assert encode_old(b"\xcc").hex() == "01cc"
    assert HISTORY_KEY.hex() == "0001" + b"history".hex()
    assert encode_record(HistoryRecord(5, 2, 1, 4)).hex() == "01" + "".join(f"{n:016x}" for n in (5, 2, 1, 4))
