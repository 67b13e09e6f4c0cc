"""What the doctor says and does of an encrypted store without its key, and where it cannot write at all."""

from __future__ import annotations

from pathlib import Path

import pytest

import holdfast
from holdfast._fs import FileLock, RealFileSystem
from holdfast.doctor import diagnose as diagnosing
from holdfast.errors import EngineError, KeyRejected, KeyRequired, ReadOnlyError
from tests.unit.backup_support import backup, repository
from tests.unit.doctor_support import cut_off, flip, holds, killed, store_of, truth
from tests.unit.store_support import chain_of, quick

KEY, WRONG = bytes(range(32)), bytes(32)
FIRST = "journal/0000000001.seg"


def encrypted(root: Path) -> None:
    with holdfast.open(f"sqlite:{root}", settings=quick(), key=KEY) as store:
        for block in chain_of(None, 10):
            store.add(block)


def test_without_its_key_nobody_knows_whether_it_is_sound(tmp_path: Path) -> None:
    root = tmp_path / "store"
    encrypted(root)
    found = holdfast.diagnose(root)
    assert (found.sound, found.code) == (False, "key_required")
    assert found.reasons
    assert "unknown" in [each.state for each in found.findings if each.part == "views"]
    assert holdfast.diagnose(root, store_key=KEY).sound
    with pytest.raises(KeyRejected):
        holdfast.diagnose(root, store_key=WRONG)
    with pytest.raises(KeyRejected):
        holdfast.repair(root, store_key=WRONG)


@pytest.mark.parametrize("key", [None, WRONG])
def test_a_wrong_key_changes_nothing_of_a_damaged_store(tmp_path: Path, key: bytes | None) -> None:
    root = tmp_path / "store"
    encrypted(root)
    (root / "holdfast.toml").write_bytes(b"junk")
    before = truth(root)
    with pytest.raises(KeyRequired if key is None else KeyRejected):
        holdfast.open(root, settings=quick(), key=key)
    assert truth(root) == before
    with holdfast.open(root, settings=quick(), key=KEY) as store:
        assert holds(store, chain_of(None, 10))


def test_without_the_key_no_newest_frames_come_from_a_backup(tmp_path: Path) -> None:
    root = tmp_path / "store"
    encrypted(root)
    backup(root, repository(root / "backups"))
    (root / FIRST).unlink()
    with pytest.raises(KeyRequired):
        holdfast.repair(root)
    assert any("not taken from a backup" in reason for reason in holdfast.diagnose(root).reasons)
    assert holdfast.repair(root, store_key=KEY) is not None


def test_a_file_system_that_cannot_be_written_is_diagnosed(tmp_path: Path) -> None:
    class Failing(RealFileSystem):
        def lock(self, path: Path, owner: str) -> FileLock:
            raise ReadOnlyError("the file system is read-only", path=path)

    store_of(tmp_path)
    assert holdfast.diagnose(tmp_path, fs=Failing()).sound
    (tmp_path / "holdfast.toml").write_bytes(b"junk")
    found = holdfast.diagnose(tmp_path, fs=Failing())
    assert not found.sound
    assert found.plan is not None
    with pytest.raises(ReadOnlyError):
        holdfast.repair(tmp_path, fs=Failing())


def test_views_that_cannot_be_opened_are_a_finding_and_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As SQLite on a file system that became read-only. They might know of frames that nothing else knows."""

    def refuse(*_: object, **__: object) -> None:
        raise EngineError("unable to open database file")

    store_of(tmp_path)
    backup(tmp_path, repository(tmp_path / "backups"))
    monkeypatch.setattr(diagnosing, "open_engine", refuse)
    found = holdfast.diagnose(tmp_path)
    assert (found.sound, found.code) == (False, EngineError.code)
    (tmp_path / FIRST).unlink()
    found = holdfast.diagnose(tmp_path)
    assert found.plan is None
    assert any("the views cannot be read" in reason for reason in found.reasons)


@pytest.mark.parametrize("rung", ["backup", "checkpoint"])
def test_a_strange_name_does_not_make_a_repair_that_cannot_be_finished(tmp_path: Path, rung: str) -> None:
    blocks = chain_of(None, 20)
    with holdfast.open(f"sqlite:{tmp_path}", settings=quick(compact="off")) as store:
        for block in blocks:
            store.add(block)
        store.checkpoints.create()
    killed(tmp_path)
    flip(tmp_path / FIRST, 5000)
    strange = tmp_path / "journal/old_copy.seg~"
    strange.write_bytes(b"somebody put this here")

    with cut_off("begun"):
        holdfast.repair(tmp_path, recover=rung)  # type: ignore[arg-type]
    with holdfast.open(tmp_path, settings=quick()) as store:
        assert store.recovery.repaired is not None
    assert strange.exists()
