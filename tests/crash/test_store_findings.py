"""What the crash tests have found, each as a small test of its own."""

from __future__ import annotations

import errno
import random
import shutil
from pathlib import Path

import pytest

import holdfast
from holdfast.errors import CorruptionError, DeviceError, MissingFile, PoisonedError
from holdfast.recovery import verify_store
from holdfast.testing.crashfs import Fault
from holdfast.testing.machine import new_machine
from tests.crash.machine import Life, check_image
from tests.crash.support import BY_PREFIX, BY_PRODUCER, VALIDATOR, make_block, settings


def test_an_index_made_while_a_block_was_orphaned_is_undone_with_it_when_it_returns(tmp_path: Path) -> None:
    """The undo of the orphaned block in the engine is older than the index, and must not be taken for the new one."""
    quiet = settings(flush_interval_seconds=3600.0)
    url = f"sqlite:{tmp_path / 'store'}"
    root = make_block(1, 1, 0, None, work=1)
    left = make_block(1, 2, 0, root, work=1)
    right = make_block(1, 2, 1, root, work=1)
    with holdfast.open(url, settings=quiet, indexes=[BY_PRODUCER]) as store:
        for block in (root, left, right):
            store.add(block, root_allowed=True)
        store.reorg(right.hash)
    with holdfast.open(url, settings=quiet, indexes=[BY_PRODUCER, BY_PREFIX]) as store:
        assert store.wait_for_indexes(10)
        for block in (left, right, left, right):
            store.reorg(block.hash)
            rows = sorted(store.index(BY_PREFIX.name).items())
            assert rows == sorted((each.hash[:1], each.height, each.header[:40]) for each in (root, block))


@pytest.mark.parametrize("engine", ["sqlite", "rocksdb"])
def test_a_store_with_indexes_verifies(engine: str, tmp_path: Path) -> None:
    """The counter of index tables was taken for a row that the journal does not explain."""
    url = f"{engine}:{tmp_path / 'store'}"
    with holdfast.open(url, settings=settings(), indexes=[BY_PRODUCER]) as store:
        store.add(make_block(1, 1, 0, None, work=1), root_allowed=True)
    assert verify_store(url.partition(":")[2], level="views").ok


def test_damage_of_the_frame_that_the_views_end_with_is_no_damage_of_the_views(tmp_path: Path) -> None:
    """The views were moved to quarantine, and could not be made anew from a journal that was damaged."""
    root = tmp_path / "store"
    with holdfast.open(f"sqlite:{root}", settings=settings()) as store:
        for number in range(3):
            draft = store.draft()
            draft.state[b"key"] = b"%d" % number
            store.commit(draft, hash=bytes((number + 1,)) * 32, header=b"header")
        tip = store.tip
    segment = root / "journal" / "0000000001.seg"
    data = bytearray(segment.read_bytes())
    data[data.rindex(b"HFRM") + 40] ^= 1  # the head of the last frame
    segment.write_bytes(bytes(data))
    before = {
        path: path.read_bytes() for path in (root / "views").rglob("*") if path.is_file() and path.suffix != ".db-shm"
    }
    with pytest.raises(CorruptionError, match="frame"):
        holdfast.open(f"sqlite:{root}")
    assert {path: path.read_bytes() for path in before} == before
    assert not (root / "quarantine").exists()
    data[data.rindex(b"HFRM") + 40] ^= 1
    segment.write_bytes(bytes(data))
    with holdfast.open(f"sqlite:{root}") as store:
        assert not store.recovery.views_rebuilt
        assert store.tip == tip


def test_a_creation_that_died_after_it_prepared_a_segment_is_begun_again(tmp_path: Path) -> None:
    """The prepared segment was taken for commits, and the directory was refused for ever."""
    root = tmp_path / "store"
    with holdfast.open(f"sqlite:{root}"):
        pass
    first = root / "journal" / "0000000001.seg"
    data = first.read_bytes()
    length = int.from_bytes(data[136:144], "big")
    first.write_bytes(data[: 128 + length] + bytes(4096))
    shutil.rmtree(root / "views")
    (root / "holdfast.toml").unlink()
    second = root / "journal" / "0000000002.seg"
    second.write_bytes(data[:128] + bytes(4096))
    with pytest.raises(MissingFile):
        holdfast.open(f"sqlite:{root}")
    second.write_bytes(bytes(4096))
    with holdfast.open(f"sqlite:{root}") as store:
        assert store.recovery.created


def test_the_name_of_the_identity_is_durable_before_anything_is_acknowledged(tmp_path: Path) -> None:
    """A process died between the rename of holdfast.toml and the sync of its directory; the next one went on."""
    life = Life(new_machine(tmp_path))
    life.live()
    renamed = life.machine.fs.log.index(("rename", "holdfast.toml.tmp")) + 1
    life = Life(new_machine(tmp_path, faults=(Fault(renamed + 1),)))
    life.live()
    assert life.machine.fs.log[-1] == ("sync_directory", tmp_path.name)
    check_image(life.machine.crash(random.Random(0), "all"), life.model)


def test_the_name_of_the_identity_is_durable_before_the_journal_is_changed(tmp_path: Path) -> None:
    """As above, and the next process lost the power, when it had cut the journal's tail: the identity was missing."""
    life = Life(new_machine(tmp_path))
    life.live()
    renamed = life.machine.fs.log.index(("rename", "holdfast.toml.tmp")) + 1
    life = Life(new_machine(tmp_path, faults=(Fault(renamed + 1),)))
    life.live()
    for at in range(1, 20):
        second = Life(life.machine.crash(random.Random(0), "all"), life.model.copy())
        second.machine.fs.faults = (Fault(at),)
        second.live()
        assert second.machine.fs.hits == 1
        check_image(second.machine.crash(random.Random(0), "none"), life.model.copy())


def test_a_promise_whose_sync_failed_is_not_shown(tmp_path: Path) -> None:
    """``safety.load`` gave a record that was not durable, after its ``save`` had raised."""
    life = Life(new_machine(tmp_path))
    with life.machine.running():
        life.open()
        assert life.store is not None
        life.store.safety.save(VALIDATOR, (1,), b"first")
        life.machine.fs.faults = (
            Fault(life.machine.fs.counts["sync"] + 1, error=errno.EIO, only=frozenset({"sync"}), persistent=True),
        )
        with pytest.raises(DeviceError):
            life.store.safety.save(VALIDATOR, (2,), b"second")
        assert life.store.safety.load(VALIDATOR).payload == b"first"
        with pytest.raises(PoisonedError):
            life.store.safety.save(VALIDATOR, (2,), b"second")
        life.abandon()
