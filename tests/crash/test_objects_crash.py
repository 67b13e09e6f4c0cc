"""Kills at every request of a backup, a pruning and a copy in an object store: what is listed there is whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import MemoryStore

from holdfast.backup import (
    BackupRepository,
    KeepRules,
    ObjectTarget,
    create_backup,
    open_repository,
    prune_backups,
    verify_backup,
)
from holdfast.backup.object_lock import EXPIRY_SECONDS
from holdfast.errors import RepositoryLocked
from holdfast.testing.crashfs import SimulatedCrash
from tests.crash.support import report
from tests.unit.backup_support import grown, small_segments

__all__ = ["small_segments"]

pytestmark = [pytest.mark.crash, pytest.mark.usefixtures("small_segments")]

REQUESTS = ("get", "head", "list", "put", "delete")


class Late(ObjectTarget):
    """Its store says that every lock has expired."""

    def now(self) -> float:
        return super().now() + EXPIRY_SECONDS + 1


class Killed:
    """The process dies at the ``at``-th request: before it, or when the store has done it. Then nothing is asked."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, *, done: bool) -> None:
        self.at, self.done = at, done
        self.count = 0
        for name in REQUESTS:
            patch.setattr(obstore, name, self._wrapped(getattr(obstore, name)))

    def _wrapped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def request(*args: Any, **options: Any) -> Any:
            self.count += 1
            if self.at and self.count >= self.at:
                if self.done and self.count == self.at:
                    real(*args, **options)
                raise SimulatedCrash
            return real(*args, **options)

        return request


def copy_of(store: MemoryStore) -> MemoryStore:
    """Another store with the same objects."""
    other = MemoryStore()
    for page in obstore.list(store):
        for entry in page:
            obstore.put(other, entry["path"], bytes(obstore.get(store, entry["path"]).bytes()))
    return other


def opened(store: MemoryStore) -> BackupRepository:
    return open_repository(Late("s3://bucket/x", store=store, sleep=lambda _: None), create=True)


def check(store: MemoryStore, data: Path) -> str:
    """Every backup that is listed verifies, and the next one, once the lock of the dead has expired, is made."""
    left = any(entry["path"] == "lock" for page in obstore.list(store) for entry in page)
    if left:
        early = ObjectTarget("s3://bucket/x", store=store)
        with pytest.raises(RepositoryLocked):
            early.lock().__enter__()
    place = opened(store)
    for name in (names := place.names()):
        assert verify_backup(place, name, workers=0, mark=False).ok
    made = create_backup(data, place, workers=0).manifest.name
    assert verify_backup(place, made, workers=0).ok
    assert prune_backups(place, KeepRules(last=1)).kept == (made,)
    assert verify_backup(place, made, workers=0).ok
    assert not any(entry["path"] == "lock" for page in obstore.list(store) for entry in page)
    return f"{len(names)} backups, {'with' if left else 'without'} a lock"


def explore(begin: MemoryStore, work: Callable[[MemoryStore], object], data: Path) -> Counter[str]:
    store = copy_of(begin)
    with pytest.MonkeyPatch.context() as patch:
        whole = Killed(patch, 0, done=False)
        work(store)
    counts: Counter[str] = Counter(requests=whole.count)
    for at in range(1, whole.count + 1):
        for done in (False, True):
            store = copy_of(begin)
            with pytest.MonkeyPatch.context() as patch:
                Killed(patch, at, done=done)
                with pytest.raises(SimulatedCrash):
                    work(store)
            counts["kills"] += 1
            counts[check(store, data)] += 1
    return counts


def test_a_backup_is_killed_at_every_request(tmp_path: Path) -> None:
    data = tmp_path / "data"
    blocks = grown(data, 40)
    begin = MemoryStore()
    place = opened(begin)
    verify_backup(place, create_backup(data, place, workers=0).manifest.name, workers=0)
    grown(data, 40, after=blocks[-1])
    counts = explore(begin, lambda store: create_backup(data, opened(store), workers=0), data)
    least = {"requests": 20, "kills": 40, "1 backups, with a lock": 20, "2 backups, with a lock": 1}
    report("backup in an object store", counts, at_least=least, rows={22: "kills"})


def test_a_pruning_is_killed_at_every_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ObjectTarget, "_shelves", lambda _, prefix: [prefix.rstrip("/")])  # 256 lists tell no more
    data = tmp_path / "data"
    blocks = grown(data, 4)
    begin = MemoryStore()
    place = opened(begin)
    for _ in range(3):
        verify_backup(place, create_backup(data, place, workers=0).manifest.name, workers=0)
        blocks += grown(data, 4, after=blocks[-1])
    counts = explore(begin, lambda store: prune_backups(opened(store), KeepRules(last=1)), data)
    least = {"requests": 12, "kills": 24, "1 backups, with a lock": 1, "3 backups, with a lock": 10}
    report("pruning in an object store", counts, at_least=least, rows={22: "kills"})
