"""Bytes of the pow chain: one encoding per value, strict decoding, unambiguous hashes."""

from __future__ import annotations

import struct
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.chains.pow.codec import (
    HEADER_BYTES,
    ImportRecord,
    PowBlock,
    PowData,
    PowHeader,
    data_hash,
    decode_data,
    decode_header,
    decode_import_record,
    encode_data,
    encode_header,
    encode_import_record,
    hash_prefix,
    header_hash,
)
from holdfast.chains.pow.rules import DIFFICULTY_MAX, MINER_NUMBER_MAX, NONCE_MAX, TIME_MAX
from holdfast.errors import InvalidBlock
from holdfast.limits import HEIGHT_MAX

hashes = st.binary(min_size=32, max_size=32)
peers = st.text(st.characters(exclude_categories=["Cs"]), max_size=32)
datas = st.builds(PowData, peers, st.integers(0, MINER_NUMBER_MAX))
headers = st.builds(
    PowHeader,
    st.integers(0, HEIGHT_MAX),
    st.integers(0, TIME_MAX),
    hashes,
    hashes,
    st.integers(1, DIFFICULTY_MAX),
    st.integers(0, NONCE_MAX),
)
times = st.integers(0, TIME_MAX)
records = st.one_of(
    st.builds(ImportRecord, st.none() | times),
    st.builds(ImportRecord, st.none() | times, times, peers.filter(str.strip), st.none() | hashes.filter(any)),
)


def header(**changes: object) -> PowHeader:
    fields: dict[str, object] = {
        "index": 7,
        "time": 1_700_000_000,
        "parent": bytes(range(32)),
        "data_hash": bytes(range(32, 64)),
        "difficulty": 1000,
        "nonce": 42,
    }
    return PowHeader(**{**fields, **changes})  # type: ignore[arg-type]


@given(headers)
def test_header_round_trip(value: PowHeader) -> None:
    raw = encode_header(value)
    assert len(raw) == HEADER_BYTES
    assert decode_header(raw) == value


@given(datas)
def test_data_round_trip(value: PowData) -> None:
    assert decode_data(encode_data(value)) == value


@given(records)
def test_import_record_round_trip(value: ImportRecord) -> None:
    assert decode_import_record(encode_import_record(value)) == value


@given(st.binary(min_size=HEADER_BYTES - 1, max_size=HEADER_BYTES + 1))
def test_any_header_bytes_decode_exactly_or_are_invalid(raw: bytes) -> None:
    try:
        value = decode_header(raw)
    except InvalidBlock:
        return
    assert encode_header(value) == raw


@given(st.binary(max_size=160) | datas.map(encode_data), st.integers(0, 200), st.integers(0, 255))
def test_any_data_bytes_decode_exactly_or_are_invalid(raw: bytes, place: int, value: int) -> None:
    changed = raw[:place] + bytes([value]) + raw[place + 1 :]
    try:
        found = decode_data(changed)
    except InvalidBlock:
        return
    assert encode_data(found) == changed


@given(st.binary(max_size=100) | records.map(encode_import_record), st.integers(0, 100), st.integers(0, 255))
def test_any_record_bytes_decode_exactly_or_are_invalid(raw: bytes, place: int, value: int) -> None:
    changed = raw[:place] + bytes([value]) + raw[place + 1 :]
    try:
        found = decode_import_record(changed)
    except InvalidBlock:
        return
    assert encode_import_record(found) == changed


def test_data_hash_is_not_ambiguous() -> None:
    """The origin hashed ``"A1" + "23"`` and ``"A12" + "3"`` to the same value."""
    assert data_hash(PowData("A1", 23)) != data_hash(PowData("A12", 3))
    assert encode_data(PowData("A1", 23)) != encode_data(PowData("A12", 3))


def test_header_hash_is_not_ambiguous() -> None:
    """The origin hashed difficulty 15 / nonce 7 and difficulty 1 / nonce 57 to the same value."""
    assert header_hash(header(difficulty=15, nonce=7)) != header_hash(header(difficulty=1, nonce=57))
    assert header_hash(header(index=1, time=23)) != header_hash(header(index=12, time=3))


def test_header_hash_covers_every_field() -> None:
    base = header()
    changed = [
        header(index=8),
        header(time=1_700_000_001),
        header(parent=bytes(32)),
        header(data_hash=bytes(32)),
        header(difficulty=1001),
        header(nonce=43),
    ]
    assert len({header_hash(value) for value in [base, *changed]}) == 7


def test_hashes_are_those_of_the_documented_preimage() -> None:
    """Written from the module's text alone."""

    def lp(raw: bytes) -> bytes:
        return struct.pack(">I", len(raw)) + raw

    value = header()
    preimage = b"".join(
        lp(raw)
        for raw in (
            b"holdfast/pow/header/1",
            struct.pack(">Q", value.index),
            struct.pack(">Q", value.time),
            value.parent,
            value.data_hash,
            value.difficulty.to_bytes(16, "big"),
            value.nonce.to_bytes(16, "big"),
        )
    )
    assert header_hash(value) == sha256(preimage).digest()
    assert hash_prefix(value) == preimage[:-16]
    data = b"".join(lp(raw) for raw in (b"holdfast/pow/data/1", "p\u00e9er".encode(), struct.pack(">Q", 23)))
    assert data_hash(PowData("p\u00e9er", 23)) == sha256(data).digest()


def test_golden_bytes() -> None:
    assert encode_data(PowData("A1", 23)).hex() == "000241310000000000000017"
    raw = encode_header(header()).hex()
    assert raw == (
        "0000000000000007"
        "000000006553f100"
        "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
        "202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f"
        "000000000000000000000000000003e8"
        "0000000000000000000000000000002a"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"index": -1},
        {"index": HEIGHT_MAX + 1},
        {"time": -1},
        {"time": TIME_MAX + 1},
        {"difficulty": 0},
        {"difficulty": DIFFICULTY_MAX + 1},
        {"nonce": -1},
        {"nonce": NONCE_MAX + 1},
        {"parent": b""},
        {"data_hash": bytes(33)},
    ],
)
def test_header_fields_out_of_range_are_invalid(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidBlock):
        header(**changes)


@pytest.mark.parametrize(
    ("peer", "number"), [("x" * 129, 0), ("\u00e9" * 65, 0), ("\ud800", 0), ("p", -1), ("p", MINER_NUMBER_MAX + 1)]
)
def test_data_out_of_range_is_invalid(peer: str, number: int) -> None:
    with pytest.raises(InvalidBlock):
        PowData(peer, number)


def test_widest_values_fit() -> None:
    data = PowData("\u00e9" * 64, MINER_NUMBER_MAX)
    assert len(encode_data(data)) == 138
    assert decode_data(encode_data(data)) == data


@pytest.mark.parametrize(
    "fields",
    [
        {"orphaned_at": 1},
        {"reason": "r"},
        {"competing": bytes(32)},
        {"orphaned_at": 1, "reason": "r", "competing": b"short"},
        {"orphaned_at": 1, "reason": "r" * 1025},
        {"orphaned_at": 1, "reason": " "},
        {"orphaned_at": 1, "reason": "r", "competing": bytes(32)},
        {"seen_at": -1},
    ],
)
def test_contradicting_import_records_are_invalid(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidBlock):
        ImportRecord(**fields)  # type: ignore[arg-type]


def test_block_knows_its_hash_and_epoch() -> None:
    block = PowBlock(header(index=40), PowData("p", 1))
    assert block.hash == header_hash(block.header)
    assert (block.index, block.epoch) == (40, 1)
