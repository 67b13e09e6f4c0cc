"""Every legal power-loss image of what a store does, by the explorer of ``holdfast.testing``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.testing.explorer import Report, explore, require
from tests.crash.explorer_workloads import NO_REORG, WORKLOADS, Explored
from tests.crash.matrix import met
from tests.crash.planted import (
    Patch,
    commits_without_a_sync,
    forgets_the_undo,
    forgets_to_sync_directories,
    watermark_runs_ahead,
)

ALL_FROM = 200
IMAGES = 2_000
IMAGES_ALL = 20_000


def explored(workload: Explored, images: int, save: Path, seed: int = 0) -> Report:
    return explore(
        workload,
        workload.check,
        prepare=workload.prepare,
        images=images,
        seed=seed,
        expect=workload.expect,
        save=save,
    )


@pytest.mark.crash
@pytest.mark.parametrize("name", WORKLOADS)
def test_no_image_loses_anything(name: str, tmp_path: Path, crash_rounds: int) -> None:
    images = IMAGES_ALL if crash_rounds >= ALL_FROM else IMAGES
    report = require(explored(WORKLOADS[name], images, tmp_path))
    print(f"{name}: {report}")
    met(2, report.images)
    met(3, report.kinds["torn"])
    met(4, report.in_recovery)
    assert report.images >= IMAGES * 3 // 4, "so few images are all that there are"


# -- positive controls: each planted bug must be found ---------------------------------------------------------------


@pytest.mark.crash
@pytest.mark.parametrize(
    ("bug", "name"),
    [
        (commits_without_a_sync, "commit"),
        (commits_without_a_sync, "group commit"),
        (commits_without_a_sync, "buffered"),
        (forgets_to_sync_directories, "commit"),
        (forgets_to_sync_directories, "segment roll"),
        (watermark_runs_ahead, "commit"),
        (forgets_the_undo, "no reorg"),
    ],
)
def test_planted_bug_is_found(
    bug: Callable[[Patch], None], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    workload = WORKLOADS.get(name, NO_REORG)
    report = explored(workload, 1_500, tmp_path)
    assert report.failures, "the bug was not found"
    print(f"{bug.__name__}: {report.images} images, {report.failures[0].text[:150]}")
