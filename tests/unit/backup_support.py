"""Stores and repositories for tests of backups."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast import Store
from holdfast.backup import BackupCheck, BackupRepository, create_backup, open_repository, restore_backup, verify_backup
from holdfast.backup.manifest import Manifest
from holdfast.store import opening
from holdfast.types import Block
from tests.unit.store_support import chain_of, make, open_quick

SMALL = 8 * 1024


@contextlib.contextmanager
def in_small_segments() -> Iterator[None]:
    """Segments of 8 KiB, so that a few blocks fill some."""
    options = opening.journal_options

    def small(plan: opening.OpenPlan) -> object:
        return dataclasses.replace(options(plan), segment_bytes_first=SMALL, segment_bytes_max=SMALL, background=False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "journal_options", small)
        yield


@pytest.fixture
def small_segments() -> Iterator[None]:
    """As ``in_small_segments``, for a test."""
    with in_small_segments():
        yield


def noise(words: object, count: int) -> bytes:
    """``count`` bytes that do not compress."""
    return random.Random(repr(words)).randbytes(count)


def grown(path: Path, count: int, *, after: Block | None = None, name: object = 0) -> list[Block]:
    """The store at ``path`` has ``count`` more blocks, and is closed."""
    blocks = chain_of(after, count, name)
    with open_quick(path) as store:
        for block in blocks:
            store.add(block)
    return blocks


def repository(path: Path, **options: object) -> BackupRepository:
    """A repository at ``path``, made if it is not there."""
    return open_repository(path, create=True, **options)  # type: ignore[arg-type]


def backup(source: Path | Store, place: BackupRepository, **options: object) -> Manifest:
    """A backup without threads."""
    return create_backup(source, place, **({"workers": 0} | options)).manifest  # type: ignore[arg-type]


def check(place: BackupRepository, name: str, **options: object) -> BackupCheck:
    """A verification without threads."""
    return verify_backup(place, name, **({"workers": 0} | options))  # type: ignore[arg-type]


def restored(place: BackupRepository, name: str, target: Path, **options: object) -> Path:
    """The directory of a restored store."""
    restore_backup(place, name, target, **({"workers": 0} | options))  # type: ignore[arg-type]
    return target


def chunk_files(place: BackupRepository) -> list[Path]:
    """Every chunk of a repository in a directory."""
    return sorted(Path(place.place, "chunks").glob("*/*"))


def forked(path: Path) -> list[Block]:
    """A store with a reorganisation: its canonical blocks."""
    trunk = chain_of(None, 6)
    old = chain_of(trunk[-1], 3, "old")
    new = chain_of(trunk[-1], 4, "new")
    with open_quick(path) as store:
        for block in (*trunk, *old, *new, *chain_of(new[-1], 2)):
            store.add(block)
        store.add(make(trunk[2], "side"))
    return [*trunk, *new, *chain_of(new[-1], 2)]
