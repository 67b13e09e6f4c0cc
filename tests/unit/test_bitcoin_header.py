"""Header, target, work and retarget against vectors of Bitcoin Core (``src/test/arith_uint256_tests.cpp``,
``src/test/pow_tests.cpp``) and the genesis blocks of its networks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.chains.bitcoin import NETWORKS, BitcoinChain, display_hash, parse_display_hash
from holdfast.chains.bitcoin.header import (
    block_work,
    compact_from_target,
    decode_header,
    encode_header,
    next_bits,
    target_from_compact,
)
from holdfast.chains.bitcoin.networks import network, networks_of_magic
from holdfast.errors import InvalidBlock, InvalidInputError

MAIN_LIMIT = NETWORKS["main"].pow_limit


@pytest.mark.parametrize("name", ["main", "testnet", "signet", "regtest"])
def test_the_first_block_of_each_network_is_the_known_one(name: str) -> None:
    chain = BitcoinChain(name)
    genesis = chain.genesis()
    assert genesis is not None
    assert genesis.hash == chain.network.genesis_hash
    chain.validate(genesis, None, None)  # type: ignore[arg-type]
    assert chain.note == ""


def test_litecoin_says_that_its_proof_of_work_is_not_checked() -> None:
    chain = BitcoinChain("litecoin-regtest")
    assert "scrypt" in chain.note
    assert chain.genesis() is None


def test_an_unknown_network_is_refused_by_name() -> None:
    with pytest.raises(InvalidInputError, match="dogecoin"):
        network("dogecoin")


def test_both_regtests_share_a_magic() -> None:
    names = {item.name for item in networks_of_magic(bytes.fromhex("fabfb5da"))}
    assert names == {"regtest", "litecoin-regtest"}


@pytest.mark.parametrize(
    ("bits", "target"),
    [
        (0x01123456, 0x12),
        (0x02123456, 0x1234),
        (0x03123456, 0x123456),
        (0x04123456, 0x12345600),
        (0x05009234, 0x92340000),
        (0x20123456, 0x123456 << 232),
        (0x1D00FFFF, MAIN_LIMIT),
    ],
)
def test_compact_targets(bits: int, target: int) -> None:
    assert target_from_compact(bits) == target


@pytest.mark.parametrize(
    ("bits", "why"),
    [
        (0x00000000, "zero"),
        (0x00123456, "zero"),
        (0x01003456, "zero"),
        (0x03000000, "zero"),
        (0x04923456, "negative"),
        (0x01FEDCBA, "negative"),
        (0xFF123456, "overflows"),
        (0x22012345, "overflows"),
    ],
)
def test_bad_compact_targets_are_refused(bits: int, why: str) -> None:
    with pytest.raises(InvalidBlock, match=why):
        target_from_compact(bits)


@given(st.integers(1, 2**256 - 1))
def test_compact_form_keeps_the_leading_bits(target: int) -> None:
    again = target_from_compact(compact_from_target(target))
    assert again <= target
    assert target - again < max(1, target >> 15)
    assert compact_from_target(again) == compact_from_target(target)


def test_work_of_the_first_target() -> None:
    assert block_work(MAIN_LIMIT) == 0x100010001
    assert block_work(target_from_compact(0x207FFFFF)) == 2


@pytest.mark.parametrize(
    ("first", "last", "bits", "expected"),
    [
        (1261130161, 1262152739, 0x1D00FFFF, 0x1D00D86A),
        (1231006505, 1233061996, 0x1D00FFFF, 0x1D00FFFF),
        (1279008237, 1279297671, 0x1C05A3F4, 0x1C0168FD),
        (1263163443, 1269211443, 0x1C387F6F, 0x1D00E1FD),
    ],
)
def test_retarget_vectors(first: int, last: int, bits: int, expected: int) -> None:
    assert next_bits(bits, first, last, MAIN_LIMIT) == expected


@given(st.binary(min_size=80, max_size=80))
def test_any_80_bytes_are_a_header_and_encode_back(raw: bytes) -> None:
    assert encode_header(decode_header(raw)) == raw


@given(st.binary(max_size=200).filter(lambda raw: len(raw) != 80))
def test_another_length_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidBlock):
        decode_header(raw)


def test_hashes_are_shown_reversed() -> None:
    shown = display_hash(NETWORKS["main"].genesis_hash)
    assert shown.startswith("000000000019d6689c08")
    assert parse_display_hash(shown) == NETWORKS["main"].genesis_hash
