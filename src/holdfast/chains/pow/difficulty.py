"""Difficulty of the next block: retargeted at the first block of each epoch, by integers alone.

Invariants:
    * Within an epoch the difficulty never changes; epoch 0 has the initial difficulty.
    * ``retarget`` never grows when the epoch took longer, never leaves [1, 2**128 - 1], and always moves by at least
      one where its band says grow (the origin's truncation pinned small difficulties: ``1 * 11 / 10 = 1``).
    * The intervals that are measured are the intervals that are expected: 40 blocks have 39 intervals between them,
      compared with 39 target times (the origin compared them with 40).
    * The time of the genesis block (0) is not a measurement, so epoch 0 is measured from block 1: 38 intervals.

Bands, for ``ratio`` = elapsed / expected::

    < 1/8   < 1/4   < 1/2   < 3/4   < 9/10   9/10..11/10   > 11/10   > 3/2   > 2
     x 8     x 4     x 2    x 3/2   x 11/10    the same     x 9/10   x 2/3   / 2
"""

from __future__ import annotations

from typing import Final

from .rules import DIFFICULTY_MAX, DIFFICULTY_MIN, EPOCH_BLOCKS, PowParameters

__all__ = ["is_retarget", "measured_from", "next_difficulty", "retarget"]

# (ratio numerator, ratio denominator, factor numerator, factor denominator): the first band that holds is taken.
_FAST: Final = ((1, 8, 8, 1), (1, 4, 4, 1), (1, 2, 2, 1), (3, 4, 3, 2), (9, 10, 11, 10))
_SLOW: Final = ((2, 1, 1, 2), (3, 2, 2, 3), (11, 10, 9, 10))


def is_retarget(index: int) -> bool:
    """Whether the difficulty may change at block ``index``: the first block of every epoch but epoch 0."""
    return index >= EPOCH_BLOCKS and index % EPOCH_BLOCKS == 0


def measured_from(index: int) -> int:
    """Index of the first block whose time counts for the retarget at ``index``."""
    return max(index - EPOCH_BLOCKS, 1)


def retarget(difficulty: int, elapsed_seconds: int, expected_seconds: int) -> int:
    """The difficulty after an epoch that took ``elapsed_seconds`` instead of ``expected_seconds`` (> 0)."""
    elapsed = max(1, elapsed_seconds)
    for ratio_num, ratio_den, factor_num, factor_den in _FAST:
        if elapsed * ratio_den < expected_seconds * ratio_num:
            grown = max(difficulty + 1, difficulty * factor_num // factor_den)
            return min(grown, DIFFICULTY_MAX)
    for ratio_num, ratio_den, factor_num, factor_den in _SLOW:
        if elapsed * ratio_den > expected_seconds * ratio_num:
            return max(difficulty * factor_num // factor_den, DIFFICULTY_MIN)
    return difficulty


def next_difficulty(
    index: int,
    parent_difficulty: int,
    parameters: PowParameters,
    *,
    first_time: int | None = None,
    last_time: int = 0,
) -> int:
    """The only valid difficulty of block ``index`` on its branch.

    Args:
        parent_difficulty: that of block ``index - 1``; not read for ``index`` below 40.
        first_time: time of block ``measured_from(index)`` on the branch, ``None`` if the store does not hold it (a
            chain that starts above genesis): the current difficulty is kept. Read only where ``is_retarget(index)``.
        last_time: time of block ``index - 1``.
    """
    if index < EPOCH_BLOCKS:
        return parameters.initial_difficulty
    if not is_retarget(index) or first_time is None:
        return parent_difficulty
    intervals = index - 1 - measured_from(index)
    return retarget(parent_difficulty, last_time - first_time, intervals * parameters.target_block_seconds)
