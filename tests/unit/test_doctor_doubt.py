"""When in doubt a repair is not without loss: power cuts with an old watermark, and backups of other copies."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import holdfast
from holdfast._fs import RealFileSystem
from holdfast.backup import restore_backup
from holdfast.errors import CorruptionError
from holdfast.journal.api import DurableMark, Frame
from holdfast.journal.recovery import frames_alone
from holdfast.journal.watermark import Watermark
from holdfast.store.opening import read_identity
from holdfast.types import Block
from tests.unit.backup_support import backup, repository
from tests.unit.doctor_support import flip, holds, truth
from tests.unit.store_support import chain_of, open_quick, quick

FS = RealFileSystem()
FIRST = "journal/0000000001.seg"


def frames_of(root: Path) -> dict[int, Frame]:
    """The frames of the first segment that can be read."""
    file = FS.open(root / FIRST, read_only=True)
    try:
        return {frame.seq: frame for frame in frames_alone(file, 0, read_identity(FS, root).salt)}
    finally:
        file.close()


def cut_off(tmp_path: Path) -> tuple[Path, list[Block], int]:
    """What a power cut leaves of a store with a backup in ``backups``, its blocks, and the last frame of the backup.

    The watermark on the disk is the one of the moment of the backup; eleven blocks were acknowledged since.
    """
    source, root = tmp_path / "source", tmp_path / "root"
    blocks = chain_of(None, 31)
    with open_quick(f"sqlite:{source}", compact="off") as store:
        for block in blocks[:20]:
            store.add(block)
        last = backup(store, repository(tmp_path / "backups")).last_seq
        for block in blocks[20:]:
            store.add(block)
        store.sync()
        shutil.copytree(source, root)
    watermark_at(root, last)
    return root, blocks, last


def watermark_at(root: Path, seq: int) -> None:
    frame = frames_of(root)[seq]
    (root / "watermark").unlink()
    mark = DurableMark(999, seq, frame.digest, 1, frame.offset + frame.length, False, None)
    Watermark.create(FS, root, salt=read_identity(FS, root).salt, first=mark).close()


def another_copy(tmp_path: Path, blocks: list[Block]) -> None:
    """A stand-by restored from the newest backup runs on for itself, and is backed up into the same repository."""
    place = repository(tmp_path / "backups")
    restore_backup(place, place.newest().name, tmp_path / "sibling", workers=0)
    with open_quick(tmp_path / "sibling") as store:
        for block in chain_of(blocks[19], 6, "sibling"):
            store.add(block)
    backup(tmp_path / "sibling", place)


def test_frames_that_prove_what_a_plan_would_lose_are_not_thrown_away(tmp_path: Path) -> None:
    """One bad block of the disk over the end of the backup; the frames behind it say that more was durable."""
    root, blocks, last = cut_off(tmp_path)
    shutil.copytree(root, tmp_path / "whole")
    with open_quick(tmp_path / "whole") as store:
        assert holds(store, blocks)
    there = frames_of(root)
    data = bytearray((root / FIRST).read_bytes())
    start, end = there[last - 1].offset, there[last + 3].offset
    data[start:end] = bytes(end - start)
    (root / FIRST).write_bytes(bytes(data))
    before = truth(root)
    with pytest.raises(CorruptionError) as caught:
        open_quick(root, backup_target=str(tmp_path / "backups"))
    assert f"frame {last + 3} can still be read, and nothing leads up to it" in caught.value.remedy
    assert truth(root) == before
    found = holdfast.diagnose(root, repository=str(tmp_path / "backups"))
    assert found.plan is None
    (plan,) = found.others
    assert plan.loss is not None
    named = [block.hash.hex() for block in blocks[21:]]  # nothing names the first one behind the backup any more
    assert ([each.hash for each in plan.loss.names], plan.loss.complete) == (named, False)
    with open_quick(root, backup_target=str(tmp_path / "backups"), recovery="backup") as store:
        assert holds(store, blocks[:20])


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("only", [False, True])
def test_own_frames_are_preferred_to_a_backup_of_another_copy(tmp_path: Path, exact: bool, only: bool) -> None:
    """``only``: the repository holds nothing but the backup of the other copy, which begins with the same frames."""
    root, blocks, last = cut_off(tmp_path)
    another_copy(tmp_path, blocks)
    if only:
        own, _ = repository(tmp_path / "backups").names()
        for path in (tmp_path / "backups").rglob(f"{own}*"):
            path.unlink()
    if exact:
        watermark_at(root, max(frames_of(root)))
    flip(root / FIRST, frames_of(root)[last - 5].offset + 80)
    for rung in ("lossless", "backup"):
        shutil.copytree(root, tmp_path / rung)
        settings = quick(backup_target=str(tmp_path / "backups"), recovery=rung)
        with holdfast.open(tmp_path / rung, settings=settings) as store:
            assert holds(store, blocks)
            assert store.recovery.repaired is not None
            assert "own frames behind it" in str(store.recovery.repaired["plan"])


def test_another_history_is_not_taken_where_a_mark_or_own_frames_contradict_it(tmp_path: Path) -> None:
    """Own frames behind the damage have no way to them: what goes is counted, and nothing foreign comes in."""
    root, blocks, last = cut_off(tmp_path)
    another_copy(tmp_path, blocks)
    there = frames_of(root)
    for seq in (last - 5, last + 1):
        flip(root / FIRST, there[seq].offset + 80)
    settings = quick(backup_target=str(tmp_path / "backups"))
    with pytest.raises(CorruptionError):
        holdfast.open(root, settings=settings)
    (plan,) = holdfast.diagnose(root, settings=settings).others
    assert plan.loss is not None
    assert plan.loss.blocks == 11
    with holdfast.open(root, settings=settings, recover="backup") as store:
        assert holds(store, blocks[:20])


def test_an_end_that_only_backups_know_is_in_doubt(tmp_path: Path) -> None:
    """The newest segment is gone, and after a power cut the watermark may be behind what was acknowledged."""
    root, blocks, _ = cut_off(tmp_path)
    (root / FIRST).unlink()
    settings = quick(backup_target=str(tmp_path / "backups"))
    with pytest.raises(CorruptionError) as caught:
        holdfast.open(root, settings=settings)
    assert "doctor" in caught.value.remedy
    with holdfast.open(root, settings=settings, recover="backup") as store:
        assert holds(store, blocks[:20])
        assert store.safety.fenced
