"""Roots: of whatever order, engine, kernel and restart; of branches; and those of empty states."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.merkle.api import SCHEMES
from holdfast.store.chain import SchemeName
from tests.unit.state_support import assert_tip, commit, open_state_store, root_of

NAMES: list[SchemeName] = ["jmt-sha256", "ics23-smt"]


@pytest.mark.parametrize("name", NAMES)
def test_a_side_block_that_empties_the_state_is_adopted_whole(tmp_path: Path, name: SchemeName) -> None:
    """In ``ics23-smt`` the root of the empty state is zeros, like that of blocks that never ran."""
    scheme = SCHEMES[name]
    with open_state_store(f"sqlite:{tmp_path}", scheme=name) as store:
        first = commit(store, 0, {b"key": b"value"})
        commit(store, 1, {b"other": b"value"})
        emptied = commit(store, 2, {b"key": None}, first)
        assert emptied.executed is not None
        assert emptied.state_root == scheme.null
        with_one = store.draft(emptied.hash)
        assert list(with_one.state.scan()) == []
        assert store.reorg(emptied.hash) is not None
        assert_tip(store, {}, scheme)
        assert store.blocks.load(emptied.hash) == emptied
    with open_state_store(tmp_path, scheme=name) as store:
        assert_tip(store, {}, scheme)
        assert store.state.at(0).root == root_of({b"key": b"value"}, scheme)
        assert store.blocks.load(emptied.hash) == emptied
