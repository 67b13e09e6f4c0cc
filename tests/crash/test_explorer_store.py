"""Every legal power-loss image of what a store does, by the explorer of ``holdfast.testing``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast._fs import NewFile
from holdfast.backup.pieces import Syncing
from holdfast.testing.explorer import Report, explore, require
from tests.crash.explorer_backups import COPIES
from tests.crash.explorer_workloads import NO_REORG, WORKLOADS, Explored
from tests.crash.matrix import met
from tests.crash.planted import (
    Patch,
    commits_without_a_sync,
    forgets_the_undo,
    forgets_to_sync_directories,
    watermark_runs_ahead,
)
from tests.unit.backup_support import small_segments

__all__ = ["small_segments"]

ALL_FROM = 200
IMAGES = 2_000
IMAGES_OF_COPIES = 400
"""In the quick tier: these images take longer to check."""
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
    judged(name, explored(WORKLOADS[name], images, tmp_path), images_min=IMAGES * 3 // 4)


def judged(name: str, report: Report, *, images_min: int) -> None:
    """The report is good, printed and counted."""
    require(report)
    print(f"{name}: {report}")
    met(2, report.images)
    met(3, report.kinds["torn"])
    met(4, report.in_recovery)
    assert report.images >= images_min, "so few images are all that there are"


@pytest.mark.crash
@pytest.mark.parametrize("name", COPIES)
def test_no_image_of_a_copy_is_less_than_whole(
    name: str, tmp_path: Path, crash_rounds: int, small_segments: None
) -> None:
    """Backup, checkpoint, restore, migration: each image holds what was done, and it can be gone on."""
    images = IMAGES_ALL if crash_rounds >= ALL_FROM else IMAGES_OF_COPIES
    report = explored(COPIES[name](tmp_path), images, tmp_path / "failed")
    judged(name, report, images_min=IMAGES_OF_COPIES // 2)
    met(19 if name == "migration" else 22, report.images)


# -- positive controls: each planted bug must be found ---------------------------------------------------------------


@pytest.mark.crash
@pytest.mark.parametrize(
    ("bug", "name"),
    [
        (commits_without_a_sync, "commit"),
        (commits_without_a_sync, "group commit"),
        (commits_without_a_sync, "buffered"),
        (commits_without_a_sync, "runs"),
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


def does_not_sync_new_files(patch: Patch) -> None:
    patch.setattr(NewFile, "sync", lambda self: None)


def does_not_sync_what_it_fetches(patch: Patch) -> None:
    patch.setattr(Syncing, "_sync", lambda self, file, path: file.close())


@pytest.mark.crash
@pytest.mark.parametrize(
    ("bug", "name"),
    [
        (forgets_to_sync_directories, "backup"),
        (does_not_sync_new_files, "checkpoint"),
        (does_not_sync_new_files, "checkpoint restore"),
        (forgets_to_sync_directories, "migration"),
        (does_not_sync_what_it_fetches, "restore"),
    ],
)
def test_planted_bug_of_a_copy_is_found(
    bug: Callable[[Patch], None], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_segments: None
) -> None:
    workload = COPIES[name](tmp_path)
    bug(monkeypatch)
    report = explored(workload, 600, tmp_path / "failed")
    assert report.failures, "the bug was not found"
    print(f"{bug.__name__}, {name}: {report.images} images, {report.failures[0].text[:150]}")
