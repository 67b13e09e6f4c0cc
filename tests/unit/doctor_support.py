"""Stores with backups that are damaged on purpose, and what must be true after they were opened again."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

import holdfast
from holdfast import Store
from holdfast._fs import RealFileSystem
from holdfast.doctor import apply as applying
from holdfast.journal.watermark import Watermark
from holdfast.recovery.resting import read_marks
from holdfast.store.opening import read_identity
from holdfast.types import Block
from tests.unit.backup_support import backup, repository
from tests.unit.store_support import chain_of, quick

SEGMENT = "journal/0000000002.seg"


@contextlib.contextmanager
def cut_off(at: str) -> Iterator[None]:
    """A repair in here ends at the failpoint ``doctor.repair.{at}``, as by Ctrl-C."""

    def die(name: str) -> None:
        if name == f"doctor.repair.{at}":
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(applying, "hit", die)
        with pytest.raises(KeyboardInterrupt):
            yield


def store_of(root: Path, count: int = 60, *, engine: str = "sqlite") -> list[Block]:
    """A closed store of ``count`` blocks in several segments."""
    blocks = chain_of(None, count)
    with holdfast.open(f"{engine}:{root}", settings=quick()) as store:
        for block in blocks:
            store.add(block)
    return blocks


def backed_up(root: Path, count: int = 60, *, engine: str = "sqlite", more: int = 0) -> list[Block]:
    """The same with a backup in its ``backups/``, and ``more`` blocks that are in no backup."""
    blocks = store_of(root, count, engine=engine)
    backup(root, repository(root / "backups"))
    if more:
        extra = chain_of(blocks[-1], more)
        with holdfast.open(root, settings=quick()) as store:
            for block in extra:
                store.add(block)
        blocks += extra
    return blocks


def flip(path: Path, offset: int = 500) -> None:
    """A bit of the file is another one."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(bytes(data))


def holds(store: Store, blocks: list[Block]) -> bool:
    """True if these are its canonical blocks, and every body can be read."""
    found = list(store.blocks.canonical())
    assert all(store.blocks.body(info) == block.body for info, block in zip(found, blocks, strict=False))
    return [info.hash for info in found] == [block.hash for block in blocks]


def truth(root: Path) -> dict[str, bytes]:
    """Every file that is not derived, not evidence and not the lock."""
    aside = ("views", "tree", "quarantine", "backups", "checkpoints", "LOCK")
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] not in aside
    }


def last_segment(root: Path) -> Path:
    """The newest segment."""
    return sorted((root / "journal").glob("*.seg"))[-1]


def killed(root: Path) -> None:
    """The store at ``root`` is as after a kill: its watermark does not say that it was closed, its end has no seal."""
    fs = RealFileSystem()
    identity = read_identity(fs, root)
    mark = read_marks(fs, root, identity.salt)[0]
    (root / "watermark").unlink()
    Watermark.create(fs, root, salt=identity.salt, first=dataclasses.replace(mark, clean=False)).close()
    last = last_segment(root)
    last.write_bytes(last.read_bytes()[: mark.end_offset] + bytes(1000))
