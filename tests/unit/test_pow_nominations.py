"""The shuffle of nominations: the origin's vectors, permutation, determinism."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.chains.pow.codec import PowBlock, PowData, PowHeader
from holdfast.chains.pow.nominations import nomination_seed, shuffle, shuffled_nominations


@pytest.mark.parametrize(
    ("seed", "count", "order"),
    [(12345, 10, [4, 1, 8, 0, 6, 7, 3, 9, 2, 5]), (0, 5, [4, 1, 0, 2, 3]), (9, 1, [0]), (9, 0, [])],
)
def test_vectors(seed: int, count: int, order: list[int]) -> None:
    """The first two were computed with the origin's program."""
    assert shuffle(seed, count) == order


@given(st.integers(0, 2**64 - 1), st.integers(0, 60))
def test_is_a_permutation_and_repeats(seed: int, count: int) -> None:
    order = shuffle(seed, count)
    assert sorted(order) == list(range(count))
    assert shuffle(seed, count) == order


def test_seed_is_the_xor_of_the_low_64_bits() -> None:
    assert nomination_seed([]) == 0
    assert nomination_seed([0b1100, 0b1010]) == 0b0110
    assert nomination_seed([(1 << 64) + 5, (7 << 100) + 1]) == 4


def blocks(count: int) -> list[PowBlock]:
    return [
        PowBlock(PowHeader(40 + i, 0, bytes(32), bytes(32), 1, nonce=i * (2**64 + 77)), PowData(f"peer-{i}", i))
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, 39, 41])
def test_incomplete_epoch_has_no_order(count: int) -> None:
    assert shuffled_nominations(blocks(count)) is None


def test_complete_epoch_is_shuffled_with_its_own_seed() -> None:
    chosen = shuffled_nominations(blocks(40))
    assert chosen is not None
    order = shuffle(nomination_seed(i * 77 for i in range(40)), 40)
    assert [nomination.miner_number for nomination in chosen] == order != list(range(40))
    assert [(n.index - 40, n.peer_id) for n in chosen] == [(i, f"peer-{i}") for i in order]
