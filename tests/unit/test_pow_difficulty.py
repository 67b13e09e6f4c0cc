"""Epochs, target, work and the integer retarget."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.chains.pow.difficulty import is_retarget, measured_from, next_difficulty, retarget
from holdfast.chains.pow.rules import (
    DIFFICULTY_MAX,
    TARGET_MAX,
    PowParameters,
    epoch_bounds,
    epoch_of,
    target_of,
    work_of,
)
from holdfast.errors import InvalidInputError

EXPECTED = 39 * 60
difficulties = st.integers(1, DIFFICULTY_MAX) | st.integers(1, 40)
elapsed = st.integers(-10, 4 * EXPECTED)


@pytest.mark.parametrize(("index", "epoch"), [(0, 0), (1, 0), (39, 0), (40, 1), (41, 1), (79, 1), (80, 2), (81, 2)])
def test_epoch_of_boundaries(index: int, epoch: int) -> None:
    assert epoch_of(index) == epoch
    first, after = epoch_bounds(epoch)
    assert first <= index < after


@pytest.mark.parametrize(("index", "expected"), [(0, 0), (1, 0), (39, 0), (40, 1), (41, 0), (79, 0), (80, 1), (120, 1)])
def test_retarget_only_at_epoch_starts(index: int, expected: int) -> None:
    assert is_retarget(index) == bool(expected)


@pytest.mark.parametrize(
    ("tenths", "difficulty"),
    # elapsed in thousandths of what is expected; each band from both sides
    [
        (0, 8000),
        (124, 8000),
        (125, 4000),
        (249, 4000),
        (250, 2000),
        (499, 2000),
        (500, 1500),
        (749, 1500),
        (750, 1100),
        (899, 1100),
        (900, 1000),
        (1000, 1000),
        (1100, 1000),
        (1101, 900),
        (1500, 900),
        (1501, 666),
        (2000, 666),
        (2001, 500),
        (9000, 500),
    ],
)
def test_retarget_bands(tenths: int, difficulty: int) -> None:
    assert retarget(1000, tenths * 40, 1000 * 40) == difficulty


def test_time_running_backwards_counts_as_fast() -> None:
    assert retarget(1000, -5, EXPECTED) == 8000


@given(difficulties, elapsed)
def test_retarget_stays_in_bounds_and_within_factor_8(difficulty: int, seconds: int) -> None:
    new = retarget(difficulty, seconds, EXPECTED)
    assert 1 <= new <= DIFFICULTY_MAX
    assert difficulty // 2 <= new <= difficulty * 8


@given(difficulties, elapsed, elapsed)
def test_slower_epochs_never_get_more_difficult(difficulty: int, one: int, other: int) -> None:
    fast, slow = sorted((one, other))
    assert retarget(difficulty, fast, EXPECTED) >= retarget(difficulty, slow, EXPECTED)


@given(difficulties, difficulties, elapsed)
def test_retarget_keeps_the_order_of_difficulties(one: int, other: int, seconds: int) -> None:
    low, high = sorted((one, other))
    assert retarget(low, seconds, EXPECTED) <= retarget(high, seconds, EXPECTED)


@given(st.integers(1, 10**6), st.integers(1, 2 * 10**6), st.integers(1, 10**6))
def test_bands_are_exact_for_every_expectation(difficulty: int, seconds: int, expected: int) -> None:
    """Against exact fractions: no rounding moves an epoch into another band."""
    ratio = Fraction(seconds, expected)
    factor = Fraction(1)
    for bound, value in ((8, 8), (4, 4), (2, 2), (Fraction(4, 3), Fraction(3, 2)), (Fraction(10, 9), Fraction(11, 10))):
        if ratio < 1 / Fraction(bound):
            factor = Fraction(value)
            break
    else:
        for bound, value in (
            (2, Fraction(1, 2)),
            (Fraction(3, 2), Fraction(2, 3)),
            (Fraction(11, 10), Fraction(9, 10)),
        ):
            if ratio > bound:
                factor = Fraction(value)
                break
    exact = difficulty * factor
    wanted = max(difficulty + 1, int(exact)) if factor > 1 else max(1, int(exact))
    assert retarget(difficulty, seconds, expected) == wanted


@pytest.mark.parametrize("difficulty", [1, 2, 3, 9])
def test_small_difficulties_are_not_pinned(difficulty: int) -> None:
    """``1 * 11 // 10 == 1`` kept the origin at 1 for ever."""
    assert retarget(difficulty, EXPECTED * 8 // 10, EXPECTED) > difficulty
    for _ in range(5):
        difficulty = retarget(difficulty, EXPECTED * 3, EXPECTED)
    assert difficulty == 1


def test_bounds() -> None:
    assert retarget(1, 10 * EXPECTED, EXPECTED) == 1
    assert retarget(DIFFICULTY_MAX, 1, EXPECTED) == DIFFICULTY_MAX
    assert retarget(DIFFICULTY_MAX - 1, 1, EXPECTED) == DIFFICULTY_MAX


def test_next_difficulty_at_the_boundaries() -> None:
    parameters = PowParameters(initial_difficulty=7, target_block_seconds=60)
    for index in (0, 1, 39):
        assert next_difficulty(index, 999, parameters) == 7
    for index in (41, 79, 81):
        assert next_difficulty(index, 999, parameters, first_time=0, last_time=1) == 999
    for index in (40, 80):
        assert next_difficulty(index, 1000, parameters, first_time=0, last_time=1) == 8000
        assert next_difficulty(index, 1000, parameters, first_time=None, last_time=1) == 1000


def test_a_perfect_epoch_keeps_its_difficulty() -> None:
    """39 intervals of exactly the target time are exactly on target (the origin compared them with 40)."""
    parameters = PowParameters(target_block_seconds=60)
    assert measured_from(80) == 40
    on_target = 10_000 + 39 * 60
    assert next_difficulty(80, 500, parameters, first_time=10_000, last_time=on_target) == 500
    # 9/10 of 39 intervals is the edge of the band; one second less is beyond it.
    edge = 10_000 + 39 * 60 * 9 // 10
    assert next_difficulty(80, 500, parameters, first_time=10_000, last_time=edge) == 500
    assert next_difficulty(80, 500, parameters, first_time=10_000, last_time=edge - 1) == 550


def test_epoch_0_is_measured_without_the_time_of_genesis() -> None:
    parameters = PowParameters(target_block_seconds=60)
    assert measured_from(40) == 1
    first = 1_700_000_000
    edge = first + 38 * 60 * 9 // 10
    assert next_difficulty(40, 1000, parameters, first_time=first, last_time=first + 38 * 60) == 1000
    assert next_difficulty(40, 1000, parameters, first_time=first, last_time=edge) == 1000
    assert next_difficulty(40, 1000, parameters, first_time=first, last_time=edge - 1) == 1100


def test_target_and_work() -> None:
    assert target_of(1) == TARGET_MAX == 0xFFFF << 232
    assert work_of(1) == 256
    assert work_of(1000) == 2**256 // (TARGET_MAX // 1000 + 1) == 256_003
    assert work_of(DIFFICULTY_MAX) == 2**256 // (TARGET_MAX // DIFFICULTY_MAX + 1)
    assert work_of(DIFFICULTY_MAX) != 2**256 // (TARGET_MAX // DIFFICULTY_MAX)


@given(difficulties, difficulties)
def test_more_difficulty_is_never_less_work(one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert work_of(low) <= work_of(high)
    assert target_of(low) >= target_of(high) > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"initial_difficulty": 0},
        {"initial_difficulty": DIFFICULTY_MAX + 1},
        {"target_block_seconds": 0},
        {"minimum_block_timestamp": -1},
        {"network": ""},
        {"network": "x" * 65},
        {"network": "caf\u00e9"},
    ],
)
def test_parameters_out_of_range_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        PowParameters(**changes)  # type: ignore[arg-type]


def test_parameters_round_trip_as_text() -> None:
    parameters = PowParameters("net", 3, 5, 7)
    values = parameters.as_mapping()
    assert PowParameters.from_mapping(values) == parameters
    for change in ({"header_format": "2"}, {"more": "1"}, {"initial_difficulty": "+3"}, {"target_block_seconds": ""}):
        with pytest.raises(InvalidInputError):
            PowParameters.from_mapping({**values, **change})
    with pytest.raises(InvalidInputError):
        PowParameters.from_mapping({name: text for name, text in values.items() if name != "network"})
