"""Errors and planted bugs at every operation of a store on a simulated device (power cuts: test_explorer_store)."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.errors import HoldfastError, OutOfSpace
from holdfast.testing.crashfs import Fault
from holdfast.testing.machine import new_machine
from tests.crash.machine import Life, check_image, images, operations
from tests.crash.planted import (
    Patch,
    acknowledges_before_the_sync,
    adopts_without_looking_at_the_root,
    forgets_a_preimage,
    forgets_large_values,
    skips_replay,
    trusts_the_image,
    undoes_without_preimages,
    undoes_without_the_state,
    writes_applied_first,
)
from tests.crash.support import report

ALL_FROM = 200


def explore(root: Path, points: range, *, count: int) -> Counter[str]:
    """A crash at each point, and what may be left of it, opened and checked."""
    counts: Counter[str] = Counter()
    for at in points:
        life = Life(new_machine(root, seed=at, faults=(Fault(at, torn=True),)))
        life.live()
        assert life.machine.fs.hits == 1, f"operation {at} was never made"
        counts["at " + life.machine.fs.log[-1][0]] += 1
        for image in images(life.machine, at, count):
            counts["images"] += 1
            counts["in flight, kept"] += check_image(image, life.model)
    counts["crashes"] = len(points)
    return counts


@pytest.mark.crash
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_error_at_every_operation(tmp_path: Path, code: int, persistent: bool, crash_rounds: int) -> None:
    total = operations(tmp_path)
    counts: Counter[str] = Counter()
    for at in range(1 + persistent, total + 1, 5 if crash_rounds < ALL_FROM else 1):
        life = Life(new_machine(tmp_path, seed=at, faults=(Fault(at, error=code, persistent=persistent, torn=True),)))
        life.live_with_errors()
        assert life.machine.fs.hits, f"operation {at} was never made"
        counts["errors met"] += 1
        counts["raised"] += bool(life.errors)
        counts["poisoned"] += life.poisoned
        counts["out of space"] += any(isinstance(error, OutOfSpace) for error in life.errors)
        life.machine.fs.faults = ()
        for image in images(life.machine, at, 1 if crash_rounds < ALL_FROM else 10):
            counts["images"] += 1
            counts["in flight, kept"] += check_image(image, life.model)
    least = {"raised": 10, "poisoned": 5} | ({"out of space": 5} if code == errno.ENOSPC else {})
    title = f"{errno.errorcode[code]}, {'persistent' if persistent else 'once'}"
    report(title, counts, at_least=least, rows={11 if code == errno.ENOSPC else 12: "errors met"})


@pytest.mark.slow
def test_power_cut_at_some_operations(tmp_path: Path) -> None:
    total = operations(tmp_path)
    explore(tmp_path, range(7, total + 1, total // 12), count=1)


# -- positive controls: each planted bug must be found ---------------------------------------------------------------


@pytest.mark.crash
@pytest.mark.parametrize(
    "bug",
    [
        forgets_a_preimage,
        undoes_without_the_state,
        undoes_without_preimages,
        adopts_without_looking_at_the_root,
        trusts_the_image,
        forgets_large_values,
        acknowledges_before_the_sync,
        skips_replay,
        writes_applied_first,
    ],
)
def test_planted_bug_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bug: Callable[[Patch], None]) -> None:
    total = operations(tmp_path)
    bug(monkeypatch)
    with pytest.raises((AssertionError, HoldfastError)) as caught:
        explore(tmp_path, range(2, total + 1, 2), count=6)
    assert "was never made" not in str(caught.value), "the bug was not found, only the operations differ"
    print(f"{bug.__name__}: {str(caught.value)[:150]}")
