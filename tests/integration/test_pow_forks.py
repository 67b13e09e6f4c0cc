"""Forks of the pow chain: work decides, not length and not luck; forced blocks; deep and repeated reorganisations."""

from __future__ import annotations

import pytest

from holdfast.chains.pow.blockchain import Blockchain, ChainConfig
from holdfast.errors import HoldfastError
from holdfast.types import AddStatus, BlockInfo
from tests.integration.pow_tools import EASY, START, Clock, easy, grow, mined


def test_first_seen_wins_a_tie() -> None:
    with easy() as chain:
        first = mined(chain, chain.tip, START, peer="first")
        second = mined(chain, chain.tip, START, peer="second")
        chain.add_block(first)
        assert chain.add_block(second).status is AddStatus.SIDE
        assert chain.tip.hash == first.hash
        record = chain.get_miner_block(second.hash)
        assert record is not None
        assert record.is_orphaned
        assert record.competing_hash == first.hash.hex()


def test_a_lucky_hash_counts_no_more_than_another() -> None:
    """The origin compared *actualized* difficulty: one lucky low hash replaced an old canonical block."""
    with easy() as chain:
        blocks = sorted((mined(chain, chain.tip, START + n) for n in range(8)), key=lambda block: block.hash)
        chain.add_block(blocks[-1])
        for lucky in blocks[:-1]:
            assert chain.add_block(lucky).status is AddStatus.SIDE
        assert chain.tip.hash == blocks[-1].hash


def test_longer_branch_of_equal_difficulty_wins_and_returns() -> None:
    with easy() as chain:
        root = chain.tip
        a = grow(chain, root, 2, peer="a")
        b = grow(chain, root, 3, peer="b")
        assert chain.tip == b
        assert {record.nominated_peer_id for record in chain.orphaned_blocks()} == {"a"}
        a = grow(chain, a, 2, peer="a")
        assert chain.tip == a
        assert {record.nominated_peer_id for record in chain.orphaned_blocks()} == {"b"}
        assert [block.data.peer_id for block in chain.load_canonical_blocks()] == ["", "a", "a", "a", "a"]
        assert chain.validate_chain().ok


def fork_at_39() -> tuple[Blockchain, BlockInfo, BlockInfo]:
    """Two branches from block 20; the fast one has difficulty 2 from block 40 on, the slow one 1."""
    chain = easy()
    fork = grow(chain, chain.tip, 20)
    slow = grow(chain, fork, 19, seconds=60, peer="slow")
    fast = grow(chain, fork, 19, seconds=0, peer="fast")
    assert chain.tip == slow
    return chain, slow, fast


def test_longer_but_lighter_is_rejected_and_heavier_but_shorter_accepted() -> None:
    chain, slow, fast = fork_at_39()
    with chain:
        slow = grow(chain, slow, 5, peer="slow")
        assert chain.tip == slow
        fast = grow(chain, fast, 2, seconds=60, peer="fast")
        # 41 blocks, the last two of double work: lighter than 44 blocks of single work
        assert fast.total_work < slow.total_work
        assert chain.tip == slow
        fast = grow(chain, fast, 1, seconds=60, peer="fast")
        assert fast.height == 42 < slow.height == 44
        assert fast.total_work > slow.total_work
        assert chain.tip == fast
        more = grow(chain, slow, 1, peer="slow")
        assert more.height == 45
        assert more.total_work <= fast.total_work
        assert chain.tip == fast
        assert chain.height == 42
        assert chain.get_block_by_index(43) is None
        assert chain.validate_chain().ok


def test_forks_at_several_heights() -> None:
    with easy() as chain:
        main = [chain.tip]
        for _ in range(10):
            main.append(grow(chain, main[-1], 1, peer="main"))
        for height in (1, 3, 5, 7, 9):
            grow(chain, main[height], 10 - height, peer=f"side-{height}")
        assert chain.tip == main[10]
        winner = grow(chain, main[3], 9, peer="deep")
        assert chain.tip == winner
        peers = [block.data.peer_id for block in chain.load_canonical_blocks()]
        assert peers == ["", "main", "main", "main", *["deep"] * 9]
        tips = chain.store.blocks.tips()
        assert {tip.status for tip in tips} == {"active", "fork"}
        assert chain.validate_chain().ok


def test_blocks_out_of_order_wait_for_their_parent() -> None:
    with easy() as chain, easy() as other:
        grow(other, other.tip, 3)
        first, second, third = list(other.load_canonical_blocks(1))
        assert chain.add_block(third, wait_for_parent=True).status is AddStatus.WAITING
        assert chain.add_block(first, wait_for_parent=True).status is AddStatus.EXTENDED
        result = chain.add_block(second, wait_for_parent=True)
        assert result.connected == (third.hash,)
        assert chain.tip.hash == third.hash


def test_a_forced_block_beats_any_work() -> None:
    with easy() as source:
        root = source.tip
        wanted = mined(source, root, START, peer="wanted")
        rival = mined(source, root, START, peer="rival")
        source.add_block(rival)
        rivals = [rival, mined(source, source.tip, START, peer="rival")]
    with easy(forced_blocks={1: wanted.hash.hex()}) as chain:
        for block in rivals[:1]:
            assert chain.add_block(block).status is AddStatus.SIDE
        assert chain.height == 0
        record = chain.get_miner_block(rival.hash)
        assert record is not None
        assert "forced" in (record.orphan_reason or "")
        chain.add_block(rivals[1])
        assert chain.height == 0
        assert chain.add_block(wanted).status in (AddStatus.EXTENDED, AddStatus.REORGANISED)
        assert chain.tip.hash == wanted.hash
        assert chain.validate_chain().ok


def test_forced_blocks_reach_a_store_that_is_open() -> None:
    with easy() as chain:
        rival = mined(chain, chain.tip, START, peer="rival")
        config = ChainConfig(EASY, forced_blocks={1: "ab" * 32})
        strict = Blockchain.load_or_create(chain.store, config, clock=Clock())
        assert strict.add_block(rival).status is AddStatus.SIDE
        assert strict.height == 0


def test_a_forced_genesis_must_be_this_chains() -> None:
    with easy() as chain:
        own = chain.tip.hash
    with easy(forced_blocks={0: own}) as chain:
        assert chain.height == 0
    with pytest.raises(HoldfastError):
        easy(forced_blocks={0: "ab" * 32})


def test_config_takes_hashes_as_bytes_or_hex() -> None:
    config = ChainConfig(EASY, forced_blocks={1: b"\1" * 32, 2: "02" * 32})
    assert config.forced_hashes() == {1: b"\1" * 32, 2: b"\2" * 32}
