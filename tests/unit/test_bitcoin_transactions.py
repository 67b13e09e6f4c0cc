"""Splitting bodies into transaction ids, and the Merkle root over them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.chains.bitcoin.header import sha256d
from holdfast.chains.bitcoin.transactions import merkle_root, transaction_ids
from holdfast.errors import InvalidBlock
from tests.import_makers import REGTEST, coinbase


def with_witness(tx: bytes, items: list[bytes], flag: int = 1, tail: bytes = b"") -> bytes:
    """The segregated-witness form (BIP 144) of a legacy transaction with one input."""
    witness = bytes((len(items),)) + b"".join(bytes((len(item),)) + item for item in items)
    if not flag & 1:
        witness = b""
    return tx[:4] + bytes((0, flag)) + tx[4:-4] + witness + tail + tx[-4:]


def test_the_first_transaction_of_bitcoin_has_its_known_id() -> None:
    ids = transaction_ids(REGTEST.genesis[80:])
    assert [item[::-1].hex() for item in ids] == ["4a5e1e4baab89f3a32518a88c31bc87f618f76673e2cc77ab2127b7afdeda33b"]
    assert merkle_root(ids) == REGTEST.genesis[36:68]


def test_the_witness_does_not_change_the_id() -> None:
    tx = coinbase(7)
    body = b"\x02" + tx + with_witness(tx, [b"a" * 72, b"b" * 33])
    assert transaction_ids(body) == [sha256d(tx)] * 2


def test_unknown_flags_are_refused() -> None:
    for flag in (0, 2, 8, 9):
        with pytest.raises(InvalidBlock, match="flags"):
            transaction_ids(b"\x01" + with_witness(coinbase(1), [b"x"], flag, b"\0" if flag & 8 else b""))


def test_an_extension_block_may_follow_only_where_the_network_has_them() -> None:
    body = b"\x01" + with_witness(coinbase(1), [b"x"], 9, b"\0") + b"extension block"
    assert transaction_ids(body, extensions=True) == [sha256d(coinbase(1))]
    with pytest.raises(InvalidBlock):
        transaction_ids(body)
    with pytest.raises(InvalidBlock, match="follow the last"):
        transaction_ids(b"\x01" + coinbase(1) + b"x", extensions=True)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        b"\x01",
        b"\xff" + b"\xff" * 8,
        b"\xfe\x00\x00\x00\x40" + coinbase(1),
        b"\xfd\x01\x00" + coinbase(1),
        b"\x01" + coinbase(1)[:-1],
        b"\x01" + coinbase(1) + b"\x00",
        b"\x02" + coinbase(1),
        b"\x01\x01\0\0\0\xfe\xff\xff\xff\x7f" + bytes(100),
    ],
    ids=["empty", "none", "no bytes", "2**64", "2**30", "long form", "cut", "more", "missing", "inputs"],
)
def test_bad_bodies_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidBlock):
        transaction_ids(body)


def test_every_truncation_of_a_block_is_refused() -> None:
    body = b"\x02" + with_witness(coinbase(1), [b"ab", b""]) + coinbase(2)
    assert len(transaction_ids(body)) == 2
    for length in range(len(body)):
        with pytest.raises(InvalidBlock):
            transaction_ids(body[:length])


@given(st.binary(max_size=300))
def test_any_bytes_give_ids_or_a_typed_error(body: bytes) -> None:
    try:
        ids = transaction_ids(body)
    except InvalidBlock:
        return
    assert all(len(item) == 32 for item in ids)


def test_merkle_root_by_hand() -> None:
    a, b, c = (bytes((number,)) * 32 for number in (1, 2, 3))
    assert merkle_root([a]) == a
    assert merkle_root([a, b]) == sha256d(a + b)
    assert merkle_root([a, b, c]) == sha256d(sha256d(a + b) + sha256d(c + c))


def test_the_duplicate_trick_is_refused() -> None:
    """CVE-2012-2459: [1, 2, 3] and [1, 2, 3, 3] have one root; so have [1..6] and [1..6, 5, 6]."""
    ids = [struct.pack("<Q", number) * 4 for number in range(1, 7)]
    merkle_root(ids[:3])
    with pytest.raises(InvalidBlock, match="CVE-2012-2459"):
        merkle_root([*ids[:3], ids[2]])
    merkle_root(ids)
    with pytest.raises(InvalidBlock, match="CVE-2012-2459"):
        merkle_root([*ids, *ids[4:]])
