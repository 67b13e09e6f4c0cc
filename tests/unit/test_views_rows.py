"""Rows, META rows and undo rows: round trips, golden bytes, and any damage is noticed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import CorruptionError
from holdfast.views import undo
from holdfast.views.api import Applied, Rows
from holdfast.views.rows import (
    APPLIED_KEY,
    FLUSHING_KEY,
    decode_applied,
    decode_flushing,
    decode_row,
    encode_applied,
    encode_flushing,
    encode_row,
    table_name,
)
from holdfast.views.tables import BLOCKS, CANONICAL

KEY = BLOCKS.prefix + b"key"
keys = st.binary(min_size=2, max_size=12)
undo_rows = st.dictionaries(keys, st.one_of(st.none(), st.binary(max_size=20)), max_size=8)


@given(keys, st.binary(max_size=40))
def test_a_row_comes_back(key: bytes, value: bytes) -> None:
    assert decode_row(key, encode_row(key, value)) == value


@given(st.binary(max_size=20), st.data())
def test_a_flipped_bit_is_corruption_that_names_table_and_key(value: bytes, data: st.DataObject) -> None:
    stored = bytearray(encode_row(KEY, value))
    bit = data.draw(st.integers(0, len(stored) * 8 - 1))
    stored[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(CorruptionError) as caught:
        decode_row(KEY, bytes(stored))
    assert caught.value.context["table"] == "blocks"
    assert caught.value.context["key"] == KEY


def test_a_row_under_another_key_is_corruption() -> None:
    stored = encode_row(BLOCKS.prefix + b"a", b"value")
    for key in (BLOCKS.prefix + b"b", CANONICAL.prefix + b"a"):
        with pytest.raises(CorruptionError):
            decode_row(key, stored)


@pytest.mark.parametrize("stored", [b"", b"abc"])
def test_a_short_row_is_corruption(stored: bytes) -> None:
    with pytest.raises(CorruptionError):
        decode_row(KEY, stored)


def test_table_names() -> None:
    assert [table_name(key) for key in (b"\x01\x01x", b"\x90\x05x", b"\x7f\x7f", b"\xf0\x01")] == [
        "blocks",
        "index/9005",
        "7f7f",
        "undo",
    ]


def test_golden_bytes() -> None:
    """The hex of docs/FORMAT.md, section 7."""
    assert encode_row(bytes.fromhex("8001") + bytes(7) + b"\x01", b"\xaa").hex() == "dcbc94faaa"
    applied = Applied(5, b"\x11" * 32, b"\xfe", 3, None)
    assert encode_applied(applied).hex() == "0001" + "0000000000000005" + "11" * 32 + "0000000000000003" + "fe"
    assert encode_flushing(7, 3).hex() == "0000000000000007" + "0000000000000003"
    assert encode_flushing(7, None).hex() == "0000000000000007"
    assert APPLIED_KEY.hex() == "00016170706c696564"
    assert FLUSHING_KEY.hex() == "0001666c757368696e67"
    rows: Rows = {b"\x80\x01b": None, b"\x80\x01a": b"\xbb\xcc"}
    (item,) = undo.encode_undo(2, b"\x22" * 32, rows).items()
    assert item[0].hex() == "f001" + "0000000000000002" + "22" * 32 + "0000"
    assert (
        item[1].hex() == "00" + "00000002" + "0003" + "800161" + "01" + "00000002" + "bbcc" + "0003" + "800162" + "00"
    )


@given(st.integers(0, 2**64 - 1), st.binary(max_size=9), st.one_of(st.none(), st.integers(0, 2**64 - 1)))
def test_the_applied_record_comes_back(seq: int, state: bytes, floor: int | None) -> None:
    assert decode_flushing(encode_flushing(seq, floor)) == (seq, floor)
    assert decode_applied(encode_applied(Applied(seq, b"\x01" * 32, state, seq, None)), (9, floor)) == Applied(
        seq, b"\x01" * 32, state, seq, 9, floor
    )


@given(st.binary(max_size=60))
def test_any_bytes_are_a_record_or_corruption(raw: bytes) -> None:
    for decode in (lambda: decode_applied(raw, None), lambda: decode_flushing(raw)):
        try:
            decode()
        except CorruptionError:
            pass


def test_undo_keys_are_in_the_order_of_heights() -> None:
    heights = [0, 1, 255, 256, 65_535, 65_536, 2**32, 2**63 - 1]
    made = [undo.undo_key(height, b"\xff" * 32) for height in heights]
    assert made == sorted(made)
    low, high = undo.undo_range_to(255)
    assert [low <= key < high for key in made] == [True, True, True, False, False, False, False, False]


def stored_undo(rows: Rows) -> dict[bytes, bytes]:
    """The engine's rows of a block's undo."""
    return {key: encode_row(key, value) for key, value in undo.encode_undo(1, bytes(32), rows).items()}


@pytest.mark.parametrize("part_bytes", [1, 9, undo.PART_BYTES_MAX])
@given(rows=undo_rows)
def test_undo_comes_back_from_any_number_of_parts(part_bytes: int, rows: Rows) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(undo, "PART_BYTES_MAX", part_bytes)
        stored = stored_undo(rows)
    if part_bytes == 1:
        assert len(stored) == max(1, len(rows))
    assert undo.read_undo(stored.get, 1, bytes(32)) == rows
    assert undo.read_undo(stored.get, 2, bytes(32)) is None


def test_a_missing_part_of_undo_is_corruption(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undo, "PART_BYTES_MAX", 1)
    stored = stored_undo({b"aaa": b"1", b"bbb": None, b"ccc": b""})
    assert len(stored) == 3
    for number in (1, 2):
        damaged = {key: value for key, value in stored.items() if key != undo.undo_key(1, bytes(32), number)}
        with pytest.raises(CorruptionError, match="part"):
            undo.read_undo(damaged.get, 1, bytes(32))


@given(undo_rows, st.data())
def test_undo_is_strict(rows: Rows, data: st.DataObject) -> None:
    """Cut, lengthened or changed undo is refused, or it is another undo that encodes to exactly those bytes."""
    (value,) = undo.encode_undo(1, bytes(32), rows).values()
    damaged = bytearray(value)
    if data.draw(st.booleans()):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    else:
        cut = data.draw(st.integers(0, len(damaged)))
        damaged = damaged[:cut] + data.draw(st.binary(max_size=4))
    into: Rows = {}
    try:
        more, _ = undo.decode_undo(b"key", bytes(damaged), into)
    except CorruptionError:
        return
    (again,) = undo.encode_undo(1, bytes(32), into).values()
    assert bytes([more]) + again[1:] == bytes(damaged)


@given(st.binary(max_size=40))
def test_any_bytes_are_undo_or_corruption(raw: bytes) -> None:
    try:
        undo.decode_undo(b"key", raw, {})
    except CorruptionError:
        pass
