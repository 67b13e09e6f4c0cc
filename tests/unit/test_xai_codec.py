"""Hashes, amounts and documents of the xai chain, against an independent implementation of the original's format."""

from __future__ import annotations

import json
import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.chains.xai.amounts import UNITS_MAX, json_amount, text_of, units_of
from holdfast.chains.xai.codec import block_hash, encode_document, merkle_root, parse_block, parse_transaction, txid_of
from holdfast.errors import InvalidBlock, LimitExceeded
from tests import xai_makers as make

units = st.integers(min_value=0, max_value=UNITS_MAX)


# -- amounts ---------------------------------------------------------------------------------------------------------


@given(units)
def test_text_and_document_name_the_same_units(amount: int) -> None:
    assert units_of(text_of(amount)) == amount
    assert units_of(json.loads(json.dumps(json_amount(amount)))) == amount


@given(st.floats(min_value=0, max_value=9e10))
def test_a_float_means_its_shortest_text_rounded_half_to_even(value: float) -> None:
    expected = int(Decimal(repr(value)).quantize(Decimal("0.00000001"), rounding="ROUND_HALF_EVEN").scaleb(8))
    assert units_of(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.1, 10_000_000), (12, 1_200_000_000), ("0.00000001", 1), (0.30000000000000004, 30_000_000), (1e-09, 0)],
)
def test_amounts_are_exact(value: object, expected: int) -> None:
    assert units_of(value) == expected


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, -1, -0.5, 1e300, "1.000000001", "1e3", "NaN", "", " 1", "01", "-1", None, True, []],
)
def test_what_is_no_amount_is_refused(value: object) -> None:
    """The original's defects 5 and 032: NaN and Infinity were saved, and money was a float."""
    with pytest.raises(InvalidBlock):
        units_of(value)


def test_an_amount_no_float_holds_is_kept_as_text() -> None:
    assert json_amount(UNITS_MAX) == "92233720368.54775807"
    assert json_amount(1_200_000_000) == 12.0


# -- hashes ----------------------------------------------------------------------------------------------------------

simple = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.text()
)
metadata = st.dictionaries(st.text(max_size=8), st.recursive(simple, lambda inner: st.lists(inner, max_size=3)))


@given(metadata, st.floats(min_value=0, max_value=1e9), st.lists(st.integers(0, 50), max_size=6))
def test_hashes_are_those_of_the_original(extra: dict[str, object], amount: float, others: list[int]) -> None:
    transactions = [make.tx("COINBASE", "XAIa", amount, metadata=extra)]
    transactions += [make.tx("XAIa", "XAIb", float(number), nonce=number) for number in others]
    block = make.block(None, transactions)
    found = parse_block(json.dumps(block, indent=2).encode())
    assert found.hash.hex() == block["hash"] == block_hash(block).hex()
    assert [txid_of(item) for item in transactions] == [item["txid"] for item in transactions]
    assert merkle_root([item["txid"] for item in transactions]) == block["merkle_root"]


def test_the_difficulty_is_not_in_the_hash() -> None:
    block = make.block(None, [make.tx("COINBASE", "XAIa", 1.0)], difficulty=2)
    other = parse_block(json.dumps({**block, "difficulty": 1}).encode())
    assert other.hash.hex() == block["hash"]


def test_the_empty_root_is_that_of_nothing() -> None:
    assert merkle_root([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


# -- what is refused -------------------------------------------------------------------------------------------------

GOOD = make.block(None, [make.tx("COINBASE", "XAIa", 1.0)])


def _changed(**fields: object) -> bytes:
    return json.dumps({**GOOD, **fields}).encode()


def _changed_tx(**fields: object) -> bytes:
    block = {**GOOD, "transactions": [{**GOOD["transactions"][0], **fields}]}
    return json.dumps({**block, "hash": make.hash_of(block)}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"index": 0}',
        _changed(index=-1),
        _changed(index=True),
        _changed(nonce=1),
        _changed(nonce="0"),
        _changed(timestamp="now"),
        _changed(timestamp=-1),
        _changed(merkle_root="00"),
        _changed(merkle_root=GOOD["merkle_root"].upper()),
        _changed(previous_hash="1"),
        _changed(difficulty=64),
        _changed(transactions={}),
        _changed(hash="0" * 64),
        _changed_tx(amount=-1),
        _changed_tx(amount=math.nan),
        _changed_tx(amount=math.inf),
        _changed_tx(recipient=""),
        _changed_tx(recipient="a\x00b"),
        _changed_tx(recipient="\ud800"),
        _changed_tx(recipient="a" * 129),
        _changed_tx(sender=None),
        _changed_tx(nonce=-1),
        _changed_tx(inputs="all"),
        _changed_tx(inputs=[{"txid": "a", "vout": -1}]),
        json.dumps(GOOD).replace("1.0", "1e999").encode(),
        b"[" * 100_000,
    ],
)
def test_a_bad_document_is_a_typed_error(body: bytes) -> None:
    with pytest.raises((InvalidBlock, LimitExceeded)):
        parse_block(body)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with pytest.raises((InvalidBlock, LimitExceeded)):
        parse_block(body)


def test_duplicate_inputs_are_refused() -> None:
    """The authors' defect 024: one output named twice inflated the supply."""
    twice = [{"txid": "a", "vout": 0}, {"txid": "a", "vout": 0}]
    with pytest.raises(InvalidBlock, match="same output twice"):
        parse_transaction(make.tx("XAIa", "XAIb", 1.0, inputs=twice))


@pytest.mark.parametrize("key", [1, 1.5, None, True])
def test_a_key_that_is_not_text_is_refused(key: object) -> None:
    """Defect 4: such keys sort otherwise after a round trip, and the checksum no longer fits."""
    with pytest.raises(InvalidBlock):
        encode_document({"metadata": [{key: 1, **({} if key is None else {2: 1})}]})


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, Decimal(1), b"x"])
def test_what_json_does_not_have_is_refused(value: object) -> None:
    with pytest.raises(InvalidBlock):
        encode_document({"a": value})
