"""Heights that somebody chose to keep (``every``) stay until another rule is stated; a refusal says which they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast import Store
from holdfast.errors import PrunedError
from tests.unit.state_support import grown, open_state_store

STEPS = [{b"key": b"%d" % number} for number in range(30)]


@pytest.fixture
def store() -> Iterator[Store]:
    with open_state_store("memory:", max_reorg_depth=2, history_blocks=0) as opened:
        grown(opened, STEPS)
        yield opened


def readable(store: Store) -> list[int]:
    found = []
    for height in range(len(STEPS)):
        try:
            assert store.state.at(height)[b"key"] == b"%d" % height
        except PrunedError:
            continue
        found.append(height)
    return found


def test_a_run_without_every_keeps_what_an_earlier_one_kept(store: Store) -> None:
    store.prune(below=20, every=5)
    kept = [0, 5, 10, 15]
    assert readable(store) == [*kept, *range(20, 30)]
    for below in (3, 12, 20):
        dry = store.prune(below=below, dry_run=True)
        assert (dry.heights_lost, dry.every) == (0, 5)
        assert store.prune(below=below).heights_lost == 0
    assert store.prune().heights_lost == 0
    assert readable(store) == [*kept, *range(20, 30)]
    assert store.prune(below=23).heights_lost == 2
    assert readable(store) == [*kept, 20, *range(23, 30)]
    assert store.prune(below=23, every=0).heights_lost == 5
    assert readable(store) == list(range(23, 30))


def test_the_setting_goes_before_what_was_kept(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with open_state_store(path, max_reorg_depth=2, history_blocks=0) as store:
        grown(store, STEPS)
        store.prune(below=20, every=5)
    with open_state_store(path, max_reorg_depth=2, history_blocks=0, history_every=10) as store:
        assert store.prune(below=20).every == 10
        assert readable(store) == [0, 10, *range(20, 30)]


def test_a_refusal_says_which_heights_are_left(store: Store) -> None:
    store.prune(below=20, every=5)
    with pytest.raises(PrunedError) as caught:
        store.state.at(7)
    assert caught.value.remedy == "ask for a height from 20 on, or below it for a multiple of 5 from 0 on"
    store.prune(below=20, every=0)
    with pytest.raises(PrunedError) as caught:
        store.state.at(7)
    assert caught.value.remedy == PrunedError.default_remedy
    assert caught.value.context["least_readable"] == 20
