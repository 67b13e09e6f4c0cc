"""The documents entry and its rows: bytes of docs/FORMAT.md, round trips, hostile bytes, limits and chunks."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast import limits
from holdfast.errors import CorruptionError, InvalidInputError, LimitExceeded
from holdfast.spaces import records
from holdfast.spaces.records import (
    check_batch,
    check_document_key,
    check_space,
    decode_documents,
    encode_documents,
    row_prefix,
    space_of_row,
)
from holdfast.spaces.rows import rows_of
from tests.golden import mini_reader

FORMAT = (Path(__file__).parents[2] / "docs" / "FORMAT.md").read_text(encoding="ascii")
GOLDEN = bytes.fromhex("0365766d 00000001 0001 61 00000001 0001 62 00000001 cc")

keys = st.binary(min_size=1, max_size=5) | st.binary(min_size=400, max_size=400)
names = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=16)


def entry(space: bytes, deletes: list[bytes], puts: list[tuple[bytes, bytes]]) -> bytes:
    """The entry, written by hand from the document."""
    data = bytes((len(space),)) + space + len(deletes).to_bytes(4, "big")
    for key in deletes:
        data += len(key).to_bytes(2, "big") + key
    data += len(puts).to_bytes(4, "big")
    for key, value in puts:
        data += len(key).to_bytes(2, "big") + key + len(value).to_bytes(4, "big") + value
    return data


def test_the_entry_has_the_bytes_of_the_document() -> None:
    section = FORMAT.split("#### 5.2.6")[1].split("###")[0]
    (written,) = re.findall(r"in the space `evm` is `([0-9a-f ]+)`", section)
    assert bytes.fromhex(written) == GOLDEN
    assert encode_documents(b"evm", {b"b": b"\xcc"}, [b"a"]) == [GOLDEN]
    batch = decode_documents(GOLDEN)
    assert (batch.space, batch.deletes, batch.puts) == (b"evm", [b"a"], [(b"b", b"\xcc")])
    assert mini_reader.read_documents(GOLDEN) == ("evm", [b"a"], {b"b": b"\xcc"})


def test_the_row_has_the_bytes_of_the_document() -> None:
    section = FORMAT.split("### 7.11")[1].split("###")[0]
    (key, value) = re.findall(r"is the row `([0-9a-f ]+)` with the value `([0-9a-f]+)`", section)[0]
    assert rows_of(b"evm", [(b"b", b"\xcc")], [b"a"]) == {
        bytes.fromhex(key): bytes.fromhex(value),
        bytes.fromhex("01070365766d61"): None,
    }


@given(names, st.dictionaries(keys, st.binary(max_size=40), max_size=12), st.sets(keys, max_size=12))
def test_any_batch_comes_back_and_the_independent_reader_agrees(
    name: str, puts: dict[bytes, bytes], gone: set[bytes]
) -> None:
    space = check_space(name)
    checked, deletes = check_batch(puts, gone - puts.keys())
    entries = encode_documents(space, checked, deletes)
    if not puts and not deletes:
        assert entries == []
        return
    (data,) = entries
    batch = decode_documents(data)
    assert (batch.space.decode(), dict(batch.puts), batch.deletes) == (name, puts, sorted(gone - puts.keys()))
    assert mini_reader.read_documents(data) == (name, batch.deletes, puts)


@given(st.dictionaries(keys, st.binary(max_size=300), max_size=20), st.sets(keys, max_size=9), st.integers(10, 900))
def test_a_long_batch_is_cut_into_parts(puts: dict[bytes, bytes], gone: set[bytes], most: int) -> None:
    checked, deletes = check_batch(puts, gone - puts.keys())
    entries = encode_documents(b"s", checked, deletes, part_bytes_max=most)
    found: dict[bytes, bytes] = {}
    removed: list[bytes] = []
    for data in entries:
        batch = decode_documents(data)
        assert len(data) <= most or len(batch.puts) + len(batch.deletes) == 1
        found |= dict(batch.puts)
        removed += batch.deletes
    assert (found, removed) == (puts, deletes)
    assert sum(len(decode_documents(data).puts) for data in entries) == len(puts)
    for left, right in pairwise(entries):  # no two neighbours would have fitted together
        batch = decode_documents(right)
        first = batch.deletes[0] if batch.deletes else batch.puts[0][0]
        value = b"" if batch.deletes else batch.puts[0][1]
        assert len(left) + 2 + len(first) + (0 if batch.deletes else 4 + len(value)) > most


def test_a_batch_that_fits_exactly_is_one_part() -> None:
    (whole,) = encode_documents(b"s", {b"a": b"1", b"b": b"2"}, [b"c"])
    assert len(encode_documents(b"s", {b"a": b"1", b"b": b"2"}, [b"c"], part_bytes_max=len(whole))) == 1
    assert len(encode_documents(b"s", {b"a": b"1", b"b": b"2"}, [b"c"], part_bytes_max=len(whole) - 1)) == 2


@given(st.binary(max_size=60))
def test_any_bytes_are_refused_or_come_back(data: bytes) -> None:
    try:
        batch = decode_documents(data)
    except CorruptionError:
        return
    assert encode_documents(batch.space, dict(batch.puts), batch.deletes) == [data]


@given(st.integers(0, len(GOLDEN) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_is_another_batch(at: int, mask: int) -> None:
    data = GOLDEN[:at] + bytes((GOLDEN[at] ^ mask,)) + GOLDEN[at + 1 :]
    try:
        batch = decode_documents(data)
    except CorruptionError:
        return
    assert batch != decode_documents(GOLDEN)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        GOLDEN[:-1],
        GOLDEN + b"\x00",
        entry(b"", [b"a"], []),
        entry(b"s" * 65, [b"a"], []),
        entry(b"\xff", [b"a"], []),
        entry(b"s", [], []),
        entry(b"s", [b""], []),
        entry(b"s", [], [(b"", b"x")]),
        entry(b"s", [b"a" * 401], []),
        entry(b"s", [], [(b"a" * 401, b"x")]),
        entry(b"s", [b"b", b"a"], []),
        entry(b"s", [b"a", b"a"], []),
        entry(b"s", [], [(b"b", b""), (b"a", b"")]),
        entry(b"s", [], [(b"a", b""), (b"a", b"")]),
        entry(b"s", [b"a"], [(b"a", b"")]),
        b"\x01s" + b"\xff" * 4,
    ],
    ids=range(18),
)
def test_bytes_that_break_a_rule_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptionError):
        decode_documents(data)


def test_a_document_that_is_too_long_is_refused_before_it_is_read() -> None:
    head = b"\x01s" + bytes(4) + (1).to_bytes(4, "big") + b"\x00\x01a"
    with pytest.raises(CorruptionError, match="too long"):
        decode_documents(head + (limits.DOCUMENT_VALUE_BYTES_MAX + 1).to_bytes(4, "big"))


# -- what a caller may ask for --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", b"evm", None, 7, "\ud800", "a\x00b", "line\n", "\x7f"])
def test_a_bad_name_is_refused(name: object) -> None:
    with pytest.raises(InvalidInputError):
        check_space(name)  # type: ignore[arg-type]


def test_names_are_measured_in_bytes() -> None:
    assert check_space("\u00e9" * 32) == "\u00e9".encode() * 32
    with pytest.raises(LimitExceeded):
        check_space("\u00e9" * 33)


def test_keys_have_limits() -> None:
    assert check_document_key(b"k" * 400) == b"k" * 400
    with pytest.raises(LimitExceeded):
        check_document_key(b"k" * 401)
    for bad in (b"", "key", bytearray(b"key"), None):
        with pytest.raises(InvalidInputError):
            check_document_key(bad)  # type: ignore[arg-type]


def test_batches_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_batch({b"b": b"", b"a": b"x"}, [b"d", b"c", b"d"]) == ({b"a": b"x", b"b": b""}, [b"c", b"d"])
    with pytest.raises(InvalidInputError, match="both put and deleted"):
        check_batch({b"a": b""}, [b"a"])
    for bad in ("text", None, bytearray(b"x"), 7):
        with pytest.raises(InvalidInputError):
            check_batch({b"a": bad}, [])  # type: ignore[dict-item]
    monkeypatch.setattr(records, "DOCUMENT_VALUE_BYTES_MAX", 3)
    monkeypatch.setattr(records, "DOCUMENT_BATCH_ROWS_MAX", 3)
    monkeypatch.setattr(records, "DOCUMENT_BATCH_BYTES_MAX", 30)
    with pytest.raises(LimitExceeded, match="the document is too long"):
        check_batch({b"a": b"1234"}, [])
    check_batch({b"a": b"123", b"b": b""}, [b"c"])
    with pytest.raises(LimitExceeded, match="too many rows"):
        check_batch({b"a": b"", b"b": b""}, [b"c", b"d"])
    with pytest.raises(LimitExceeded, match="the batch is too long"):
        check_batch({b"a" * 9: b"", b"b": b"123"}, [b"c" * 9])


def test_a_batch_at_its_limits_fits_into_a_frame() -> None:
    rows = limits.DOCUMENT_BATCH_BYTES_MAX // limits.DOCUMENT_PART_BYTES_MAX * 2 + 2
    slack = rows * (1 + limits.DOCUMENT_SPACE_BYTES_MAX + 8 + 64)
    assert limits.DOCUMENT_BATCH_BYTES_MAX + slack + 4096 <= limits.FRAME_BYTES_MAX
    assert rows <= limits.FRAME_PARTS_MAX


# -- rows -----------------------------------------------------------------------------------------------------------


@given(names, names, keys, keys)
def test_spaces_do_not_mix(one: str, other: str, first: bytes, second: bytes) -> None:
    mine, theirs = row_prefix(check_space(one)), row_prefix(check_space(other))
    assert space_of_row(mine + first) == one
    assert len(mine + first) <= limits.ENGINE_KEY_BYTES_MAX
    assert ((mine + first) < (mine + second)) == (first < second)
    if one != other:
        assert not (theirs + first).startswith(mine)


@pytest.mark.parametrize("key", ["0107", "010700", "010701", "01070161", "01070361616161"[:12], "010741" + "61" * 70])
def test_a_key_that_is_no_document_is_refused(key: str) -> None:
    with pytest.raises(CorruptionError):
        space_of_row(bytes.fromhex(key))
