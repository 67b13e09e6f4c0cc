"""The eight tests of seed 000, and the proof that each can fail: bugs are planted and the same test goes red.

The original's own tests shared a directory and passed whether or not recovery worked, locks held or writes were whole.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast._fs import RealFileSystem
from holdfast.chains.xai import BlockchainStorage, XaiSettings, document, importing, ledger, storage
from holdfast.chains.xai import chain as chain_module
from holdfast.chains.xai.archive import JsonArchive
from holdfast.chains.xai.validation import CheckedChain
from holdfast.errors import CorruptionError, HoldfastError
from tests import xai_makers as make

Check = Callable[[Path], None]
WAIT_SECONDS = 20.0


def opened(path: Path, *, interval: int = 1000, backups: int = 10, **more: Any) -> BlockchainStorage:
    settings = XaiSettings(path, checkpoint_interval=interval, max_backups=backups)
    return BlockchainStorage(path, settings=settings, engine="sqlite", **more)


def saved(place: BlockchainStorage, inner: dict[str, Any], **more: Any) -> str:
    ok, message = place.save_to_disk(inner, **more)
    assert ok, message
    return message


def loaded(place: BlockchainStorage) -> dict[str, Any]:
    ok, data, message = place.load_from_disk()
    assert ok, message
    assert data is not None
    return data


# -- the eight -------------------------------------------------------------------------------------------------------


def save_and_load(path: Path) -> None:
    """1: what was saved is what another process loads."""
    inner = make.chain(6)
    inner["pending_transactions"] = [make.tx("XAIminer", "XAIb", 1.5, 0.1)]
    place = opened(path)
    message = saved(place, inner)
    assert "height: 6" in message
    assert make.checksum(inner)[:8] in message
    place.close()
    again = opened(path)
    assert loaded(again) == inner
    again.close()


def checksum_verification(path: Path) -> None:
    """2: a damaged file is noticed, kept as it is and no empty place; a backup takes over if asked."""
    inner = make.chain(4)
    path.mkdir()
    (path / "backups").mkdir()
    (path / "backups" / "blockchain_backup_20251109_120000.json").write_bytes(make.package(make.chain(3)))
    damaged = make.package(inner).replace(b'"amount": 12.0', b'"amount": 99.0', 1)
    (path / "blockchain.json").write_bytes(damaged)
    place = opened(path)
    ok, data, message = place.load_from_disk()
    assert (ok, data) == (False, None)
    assert "No blockchain file" not in message
    assert isinstance(place.failure, CorruptionError)
    assert not place.save_to_disk(inner)[0]
    place.close()
    asked = opened(path, recover="backup")
    ok, data, message = asked.load_from_disk()
    assert ok
    assert data == make.chain(3)
    assert message.startswith("Recovered from backup")
    assert (path / "blockchain.json").read_bytes() == damaged
    asked.close()


def backup_and_restore(path: Path) -> None:
    """3: every backup is kept under a name of its own, lists its height, and brings back exactly its chain."""
    inner = make.chain(3)
    place = opened(path, clock=lambda: make.START)
    saved(place, inner)
    for _ in range(3):
        inner["chain"] += make.grow(inner["chain"][-1], 1)
        saved(place, inner, create_backup=True)
    rows = place.list_backups()
    assert [row.keys() for row in rows] == [{"filename", "timestamp", "size_mb", "block_height"}] * 3
    assert sorted(row["block_height"] for row in rows) == [3, 4, 5]
    name = next(row["filename"] for row in rows if row["block_height"] == 4)
    assert make.passes(path / "backups" / name)
    ok, data, _ = place.restore_from_backup(name)
    assert ok
    assert data is not None
    assert data["chain"] == inner["chain"][:4]
    assert loaded(place) == data
    place.close()


def checkpoint_creation(path: Path) -> None:
    """4: a checkpoint exactly where the chain passes the interval, with exactly those blocks."""
    place = opened(path, interval=10)
    inner = make.chain(9)
    saved(place, inner)
    assert place.list_checkpoints() == []
    inner["chain"] += make.grow(inner["chain"][-1], 4)
    saved(place, inner)
    saved(place, inner)
    rows = place.list_checkpoints()
    assert [(row["filename"], row["block_height"]) for row in rows] == [("checkpoint_10.json", 10)]
    assert rows[0].keys() == {"filename", "timestamp", "size_mb", "block_height"}
    assert make.passes(path / "checkpoints" / "checkpoint_10.json")
    kept = place.archive.load_checkpoint("checkpoint_10.json")
    assert list(kept.blocks()) == inner["chain"][:10]
    place.close()


def metadata_tracking(path: Path) -> None:
    """5: the metadata is that of the last save, and its height is the number of blocks."""
    place = opened(path, clock=lambda: make.START)
    assert place.get_metadata() is None
    inner = make.chain(3)
    for _ in range(2):
        saved(place, inner)
        assert place.get_metadata() == {
            "timestamp": make.START,
            "block_height": len(inner["chain"]),
            "checksum": make.checksum(inner),
            "version": "1.0",
        }
        inner["chain"] += make.grow(inner["chain"][-1], 2)
    place.close()


def integrity_verification(path: Path) -> None:
    """6: a sound chain is verified, and a state that holds money from nowhere is not."""
    place = opened(path / "sound")
    assert place.verify_integrity() == (False, "Blockchain file not found")
    saved(place, make.chain(4))
    ok, message = place.verify_integrity()
    assert ok, message
    place.close()
    with pytest.MonkeyPatch.context() as patch:
        real = ledger._pay
        patch.setattr(ledger, "_pay", lambda state, tx, to, units, place: real(state, tx, to, units + 1, place))
        inflated = opened(path / "inflated")
        saved(inflated, make.chain(4))
    ok, message = inflated.verify_integrity()
    assert not ok
    assert "Integrity check failed" in message
    inflated.close()


class StoppedAt(BaseException):
    """The process ended here."""


class StoppingFileSystem(RealFileSystem):
    """Ends before the n-th operation that changes anything."""

    def __init__(self, at: int) -> None:
        self.left = at

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise StoppedAt

    def open(self, path: Path, *, create: bool = False, read_only: bool = False) -> Any:
        if create:
            self.step()
        file = super().open(path, create=create, read_only=read_only)
        outer = self

        class Stopping:
            def __getattr__(self, name: str) -> Any:
                if name in ("pwrite", "sync"):
                    outer.step()
                return getattr(file, name)

        return file if read_only else Stopping()

    def rename(self, source: Path, target: Path) -> None:
        self.step()
        super().rename(source, target)

    def remove(self, path: Path) -> None:
        self.step()
        super().remove(path)

    def sync_directory(self, path: Path) -> None:
        self.step()
        super().sync_directory(path)


def atomic_write(path: Path) -> None:
    """7: wherever the process ends, a backup is whole or not there, and an older one is still there."""
    inner = make.chain(5)
    rest = document.rest_of(inner)
    JsonArchive(RealFileSystem(), path).backups.mkdir(parents=True)
    JsonArchive(RealFileSystem(), path, clock=lambda: make.START).create_backup(inner["chain"], rest)
    step, done = 0, False
    while not done:
        step += 1
        assert step < 200
        here = JsonArchive(StoppingFileSystem(step), path, clock=itertools.count(int(make.START) + step).__next__)
        try:
            here.create_backup(inner["chain"], rest)
            here.prune_backups(3)
            done = True
        except StoppedAt:
            pass
        after = JsonArchive(RealFileSystem(), path)
        rows = after.list_backups()
        assert rows
        for row in rows:
            assert row["block_height"] == 5
            assert make.passes(path / "backups" / row["filename"])
    assert step > 8
    assert len(after.list_backups()) == 3


def thread_safe_operations(path: Path) -> None:
    """8: a save never begins inside another one; whatever the order, nothing acknowledged is lost."""
    place = opened(path)
    inner = make.chain(8)
    inside: list[str] = []
    go, second_inside = threading.Event(), threading.Event()
    real = place._fork

    def slow(*args: Any, **more: Any) -> int:
        name = threading.current_thread().name
        inside.append(f"{name} in")
        if name == "first":
            second_inside.wait(0.3)
            go.set()
        else:
            second_inside.set()
        found = real(*args, **more)
        inside.append(f"{name} out")
        return found

    saved(place, {**inner, "chain": inner["chain"][:1]})
    place._fork = slow  # type: ignore[method-assign]
    first = threading.Thread(target=lambda: saved(place, {**inner, "chain": inner["chain"][:5]}), name="first")
    second = threading.Thread(target=lambda: saved(place, inner), name="second")
    first.start()
    while not inside and first.is_alive():
        pass
    second.start()
    for thread in (first, second):
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive()
    assert inside == ["first in", "first out", "second in", "second out"]
    assert go.is_set()
    place._fork = real  # type: ignore[method-assign]
    assert loaded(place) == inner
    place.close()


EIGHT: list[Check] = [
    save_and_load,
    checksum_verification,
    backup_and_restore,
    checkpoint_creation,
    metadata_tracking,
    integrity_verification,
    atomic_write,
    thread_safe_operations,
]


@pytest.mark.parametrize("check", EIGHT, ids=lambda check: check.__name__)
def test_seed(check: Check, tmp_path: Path) -> None:
    check(tmp_path / "data")


# -- bugs ------------------------------------------------------------------------------------------------------------


def _drop_last_block(patch: pytest.MonkeyPatch) -> None:
    real = BlockchainStorage._store_chain
    patch.setattr(
        BlockchainStorage, "_store_chain", lambda self, store, chain, fork: real(self, store, chain[:-1], fork)
    )


def _forget_pending(patch: pytest.MonkeyPatch) -> None:
    real = importing.save_rest
    patch.setattr(
        storage, "save_rest", lambda store, rest, facts: real(store, {**rest, "pending_transactions": []}, facts)
    )


def _believe_every_checksum(patch: pytest.MonkeyPatch) -> None:
    def believe(found: document.ChainDocument, name: object) -> None:
        found.checksum = "0" * 64

    patch.setattr(document, "_verify", believe)
    patch.setattr(chain_module, "_check_contents", lambda block: None)
    patch.setattr("holdfast.chains.xai.codec.block_hash", lambda found: bytes.fromhex(found["hash"]))


def _new_genesis_over_damage(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BlockchainStorage, "_ready", lambda self: self._place.open())


def _one_name_a_second(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        JsonArchive,
        "_free",
        lambda self, directory, stem: (directory.mkdir(exist_ok=True), directory)[1] / f"{stem}.json",
    )


def _restore_only_returns(patch: pytest.MonkeyPatch) -> None:
    def only(self: BlockchainStorage, name: str) -> tuple[bool, dict[str, Any], str]:
        return True, self.archive.load_backup(name).inner(), "restored"

    patch.setattr(BlockchainStorage, "restore_from_backup", only)


def _checkpoint_at_every_save(patch: pytest.MonkeyPatch) -> None:
    real = BlockchainStorage.record

    def record(self: BlockchainStorage, rest: dict[str, Any], *, before: int) -> str:
        return real(self, rest, before=0)

    patch.setattr(BlockchainStorage, "record", record)


def _checkpoint_of_all_blocks(patch: pytest.MonkeyPatch) -> None:
    real = BlockchainStorage._check_point

    def whole(self: BlockchainStorage, store: Any, rest: dict[str, Any], count: int) -> None:
        documents = importing.block_documents(store.blocks, store.blocks.canonical())
        self.archive.create_checkpoint(documents, rest, count)

    assert real is not whole
    patch.setattr(BlockchainStorage, "_check_point", whole)


def _height_is_the_tips(patch: pytest.MonkeyPatch) -> None:
    real = document.metadata_of
    patch.setattr(storage, "metadata_of", lambda blocks, checksum, at: real(blocks - 1, checksum, at))


def _stale_checksum(patch: pytest.MonkeyPatch) -> None:
    real = BlockchainStorage._checksum_of

    def stale(self: BlockchainStorage, store: Any, rest: dict[str, Any]) -> str:
        kept = getattr(self, "stale", None)
        found: str = kept if kept is not None else real(self, store, rest)
        self.stale = found  # type: ignore[attr-defined]
        return found

    patch.setattr(BlockchainStorage, "_checksum_of", stale)


def _verify_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(storage, "check_chain", lambda store: CheckedChain(storage._count(store), 0))


def _write_in_place(patch: pytest.MonkeyPatch) -> None:
    def write(self: JsonArchive, path: Path, chunks: Any) -> str:
        file = self._fs.open(path, create=True)
        at = 0
        for chunk in chunks:
            file.pwrite(chunk, at)
            at += len(chunk)
        file.sync()
        return path.name

    patch.setattr(JsonArchive, "_write", write)


def _prune_before_the_new_one(patch: pytest.MonkeyPatch) -> None:
    real = JsonArchive.create_backup

    def create(self: JsonArchive, blocks: Any, rest: Any) -> str:
        for found in self._backups():
            self._fs.remove(self.backups / found.name)
        return real(self, blocks, rest)

    patch.setattr(JsonArchive, "create_backup", create)


def _no_lock(patch: pytest.MonkeyPatch) -> None:
    real = BlockchainStorage.__init__

    def init(self: BlockchainStorage, *args: Any, **more: Any) -> None:
        real(self, *args, **more)
        self._lock = contextlib.nullcontext()  # type: ignore[assignment]

    patch.setattr(BlockchainStorage, "__init__", init)


BUGS: list[tuple[Check, Callable[[pytest.MonkeyPatch], None]]] = [
    (save_and_load, _drop_last_block),
    (save_and_load, _forget_pending),
    (checksum_verification, _believe_every_checksum),
    (checksum_verification, _new_genesis_over_damage),
    (backup_and_restore, _one_name_a_second),
    (backup_and_restore, _restore_only_returns),
    (checkpoint_creation, _checkpoint_at_every_save),
    (checkpoint_creation, _checkpoint_of_all_blocks),
    (metadata_tracking, _height_is_the_tips),
    (metadata_tracking, _stale_checksum),
    (integrity_verification, _verify_nothing),
    (atomic_write, _write_in_place),
    (atomic_write, _prune_before_the_new_one),
    (thread_safe_operations, _no_lock),
]


@pytest.mark.parametrize(("check", "plant"), BUGS, ids=[f"{check.__name__}-{bug.__name__}" for check, bug in BUGS])
def test_a_planted_bug_turns_the_test_red(
    check: Check, plant: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, HoldfastError, KeyError, ValueError)):
        check(tmp_path / "data")


assert {check for check, _ in BUGS} == set(EIGHT)
