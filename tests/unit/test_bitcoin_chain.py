"""The retarget rule, on a network with Bitcoin's rule and regtest's limit, so that its blocks can be made here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast.chains.bitcoin import BitcoinChain
from holdfast.chains.bitcoin.chain import decode_raw_block
from holdfast.errors import InvalidBlock
from holdfast.types import Block, BlockInfo
from tests.import_makers import REGTEST, REGTEST_BITS, bitcoin_block

QUARTER_BITS = 0x201FFFFF
DAY = 24 * 60 * 60


class Ancestors:
    """One ancestor, the first block of the period, and the parent's header."""

    def __init__(self, first: BlockInfo | None, header: bytes) -> None:
        self.first = first
        self._header = header

    def info(self, block_hash: bytes) -> BlockInfo | None:
        raise AssertionError("not asked for")

    def header(self, block: BlockInfo) -> bytes:
        return self._header

    def ancestor(self, block: BlockInfo, height: int) -> BlockInfo | None:
        assert height == 0
        return self.first


def info(block: Block, *, height: int | None = None, earlier_seconds: int = 0) -> BlockInfo:
    at = block.height if height is None else height
    return BlockInfo(block.hash, block.parent, at, block.time - earlier_seconds, block.work, 1, b"", 0, 0, 0, 80, None)


def chain() -> BitcoinChain:
    made = BitcoinChain("regtest")
    made.network = replace(REGTEST, retargets=True)
    return made


def judge(bits: int, height: int, *, period_seconds: int, first_known: bool = True) -> None:
    parent_raw = bitcoin_block(b"\7" * 32, 1)
    parent_block = decode_raw_block(parent_raw[:80], parent_raw[80:], height - 1)
    parent = info(parent_block)
    raw = bitcoin_block(parent.hash, 2, bits=bits)
    first = info(parent_block, height=0, earlier_seconds=period_seconds) if first_known else None
    block = decode_raw_block(raw[:80], raw[80:], height)
    chain().validate(block, parent, Ancestors(first, parent_raw[:80]))


def test_inside_a_period_the_target_stays() -> None:
    judge(REGTEST_BITS, 5, period_seconds=0)
    with pytest.raises(InvalidBlock, match="inside a period"):
        judge(QUARTER_BITS, 5, period_seconds=0)


def test_after_a_fast_period_the_target_is_a_quarter() -> None:
    judge(QUARTER_BITS, 2016, period_seconds=DAY)
    with pytest.raises(InvalidBlock, match="2016") as caught:
        judge(REGTEST_BITS, 2016, period_seconds=DAY)
    assert caught.value.context["expected"] == f"{QUARTER_BITS:#010x}"


def test_after_a_slow_period_the_target_is_at_the_limit() -> None:
    judge(REGTEST_BITS, 2016, period_seconds=100 * DAY)
    with pytest.raises(InvalidBlock):
        judge(QUARTER_BITS, 2016, period_seconds=100 * DAY)


def test_a_period_that_began_below_the_base_is_not_judged() -> None:
    judge(QUARTER_BITS, 2016, period_seconds=DAY, first_known=False)


def test_fields_that_are_not_those_of_the_header_are_refused() -> None:
    raw = bitcoin_block(REGTEST.genesis_hash, 1)
    good = decode_raw_block(raw[:80], raw[80:], 1)
    genesis = BitcoinChain("regtest").genesis()
    assert genesis is not None
    parent = info(genesis)
    regtest = BitcoinChain("regtest")
    regtest.validate(good, parent, Ancestors(None, b""))
    for bad in (
        replace(good, hash=b"\1" * 32),
        replace(good, parent=b"\1" * 32),
        replace(good, height=7),
        replace(good, time=1),
        replace(good, work=good.work + 1),
        replace(good, header=good.header + b"\0"),
    ):
        with pytest.raises(InvalidBlock):
            regtest.validate(bad, parent, Ancestors(None, b""))
    with pytest.raises(InvalidBlock, match="extra"):
        regtest.decode(good.header, good.body, parent=parent, extra=b"x")
    assert regtest.decode(good.header, good.body, parent=parent) == good
