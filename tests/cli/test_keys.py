"""How keys and values are given on a command line, and shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.cli.keys import in_json, parse_bytes, parse_hash32, printable, shown, shown_short
from holdfast.errors import InvalidInputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", b""),
        ("plain", b"plain"),
        ("\u00e4", b"\xc3\xa4"),
        ("0x", b""),
        ("0x00Ff", b"\x00\xff"),
        ("00ff", b"00ff"),
        (r"a\x00\xfFb", b"a\x00\xffb"),
        (r"\n\r\t\0\\", b"\n\r\t\x00\\"),
        (r"\\x41", rb"\x41"),
        (r"\x30xff", b"0xff"),
        ("\udcff", b"\xff"),
        ("0X12", b"0X12"),
        (" 0x12", b" 0x12"),
    ],
)
def test_text_is_text_and_0x_is_hex(text: str, expected: bytes) -> None:
    assert parse_bytes(text, what="it") == expected


@pytest.mark.parametrize(
    "text", ["0x1", "0xgg", "0x 12", "a\\", "\\q", "\\x1", "\\x", "a\\\\\\", "\ud800", "0x\u0661\u0661"]
)
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^it "):
        parse_bytes(text, what="it")


def test_with_hex_everything_is_hex() -> None:
    assert parse_bytes("00ff", what="it", as_hex=True) == b"\x00\xff" == parse_bytes("0x00ff", what="it", as_hex=True)
    for bad in ("text", "0", "0x0", "\\x00"):
        with pytest.raises(InvalidInputError, match="hex digits"):
            parse_bytes(bad, what="it", as_hex=True)


@given(st.binary(min_size=1) | st.text(min_size=1).map(lambda text: text.encode("utf-8", "ignore") or b"x"))
def test_what_is_shown_can_be_given_back(data: bytes) -> None:
    text = shown(data)
    assert text.isprintable()
    assert text == text.strip()
    assert parse_bytes(text, what="it") == data
    record = in_json("it", data)
    assert bytes.fromhex(str(record["it"])) == data
    assert record["it_text"] is None or str(record["it_text"]).encode() == data


@given(st.binary(min_size=1, max_size=300) | st.text(min_size=1, max_size=300).map(str.encode))
def test_a_short_form_is_one_printable_line_that_begins_alike(data: bytes) -> None:
    text = shown_short(data)
    assert text is not None
    assert len(text) <= 64
    assert text.isprintable()
    assert text == shown(data) or text.endswith("...")


def test_only_what_can_be_read_is_text() -> None:
    assert printable(b"a b") == "a b"
    for data in (b"", b" a", b"a ", b"a\n", b"\xff", b"\x1b[31m", "\u202e".encode(), "\u00a0".encode()):
        assert printable(data) is None
    assert shown(b"0xab") == "0x30786162"
    assert shown(b"a\\b") == "a\\\\b"
    assert shown_short(None) is None
    assert in_json("v", None) == {"v": None, "v_text": None}


def test_a_root_has_64_digits() -> None:
    assert parse_hash32("0x" + "0a" * 32, what="it") == b"\n" * 32 == parse_hash32("0A" * 32, what="it")
    for bad in ("", "0a" * 31, "0a" * 33, "zz" * 32, "0x0x" + "0a" * 32):
        with pytest.raises(InvalidInputError, match="64 hex digits"):
            parse_hash32(bad, what="it")
