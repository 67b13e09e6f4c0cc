"""What a store says of itself: the cache of state rows, and background work that failed."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

import holdfast
from holdfast.errors import EngineError, HoldfastError
from holdfast.store import upkeep
from holdfast.store.store import Store


def _filled(store: Store) -> None:
    draft = store.draft()
    draft.state.update({b"a": b"1", b"b": b"2"})
    store.commit(draft, hash=b"\x01" * 32)


def test_hits_and_misses_of_the_cache_are_shown(tmp_path: Path) -> None:
    with holdfast.open(tmp_path / "s") as store:
        _filled(store)
    with holdfast.open(tmp_path / "s", settings=holdfast.Settings(state_cache_bytes=65536)) as store:
        for key in (b"a", b"b", b"a", b"a", b"none"):
            store.state.get(key)
        found = json.loads(json.dumps(store.statistics()))["state_cache"]
    assert (found["hits"], found["misses"], found["entries"], found["hit_rate"]) == (2, 3, 3, 0.4)
    assert (found["policy"], found["budget_bytes"], found["evictions"]) == ("lru", 65536, 0)
    assert 3 * 160 < found["bytes"] < 3 * 200


def test_without_a_cache_there_are_no_figures_of_it(tmp_path: Path) -> None:
    with holdfast.open(tmp_path / "s", settings=holdfast.Settings(state_cache_bytes=0)) as store:
        _filled(store)
        assert store.statistics()["state_cache"] is None
    with holdfast.open(tmp_path / "s", read_only=True) as store:
        assert "state_cache" in store.statistics()
        assert store.statistics()["upkeep"] == {"failure": None}


def test_background_work_that_failed_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reported = threading.Event()
    report = upkeep.Upkeep._report

    def failing(_self: upkeep.Upkeep) -> bool:
        raise EngineError("the disk is gone")

    def reporting(self: upkeep.Upkeep, failure: HoldfastError, what: str) -> None:
        report(self, failure, what)
        reported.set()

    monkeypatch.setattr(upkeep, "_LOOK_SECONDS", 0.001)
    monkeypatch.setattr(upkeep.Upkeep, "_image_due", failing)
    monkeypatch.setattr(upkeep.Upkeep, "_report", reporting)
    with holdfast.open(tmp_path / "s") as store:
        assert reported.wait(30)
        found = store.statistics()["upkeep"]
        _filled(store)  # commits go on
        assert store.state[b"a"] == b"1"
    assert isinstance(found, dict)
    assert "the disk is gone" in found["failure"]
