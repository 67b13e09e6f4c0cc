"""Roots: of whatever order, engine, kernel and restart; of branches; and those of empty states."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from holdfast.merkle.api import SCHEMES
from holdfast.store.chain import SchemeName
from holdfast.types import BlockInfo
from tests.unit.state_support import assert_tip, commit, commit_draft, die, large, open_state_store, root_of

ROOT = Path(__file__).resolve().parents[2]

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


def a_history(url: str, *, backwards: bool = False, restart: bool = False, **fields: Any) -> list[bytes]:
    """Roots of the blocks of a fixed history with forks, written in one order or the other."""
    roots: list[bytes] = []
    store = open_state_store(url, **fields)
    parent: BlockInfo | None = None
    for step in range(8):
        changes: dict[bytes, bytes | None] = {
            b"key/%d" % (number * 7 % 40): b"%d/%d" % (number, step) for number in range(30)
        }
        changes |= {b"key/%d" % (step * 3): None, b"big": large(step, 66_000 + step), b"\x00" * (step + 1): b"\xff"}
        draft = store.draft()
        for key, value in sorted(changes.items(), reverse=backwards):
            if value is None:
                del draft.state[key]
            else:
                draft.state[key] = value
        if step == 5 and parent is not None:
            roots.append(commit(store, "side", {b"side": b"x"}, parent, work=0).state_root or b"")
        parent = commit_draft(store, draft, step)
        roots.append(parent.state_root or b"")
        if restart and step % 3 == 2:
            if step % 2:
                store.close()
            else:
                die(store)
            store = open_state_store(url, **fields)
            assert store.state.root == roots[-1]
    store.close()
    return roots


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_engine_order_and_restarts_never_change_a_root(tmp_path: Path, name: SchemeName) -> None:
    expected = a_history("memory:", scheme=name)
    assert len(set(expected)) == 9
    for engine in ("sqlite", "rocksdb", "lmdb"):
        for backwards, restart in ((True, False), (False, True)):
            path = tmp_path / f"{engine}-{backwards}"
            assert a_history(f"{engine}:{path}", backwards=backwards, restart=restart, scheme=name) == expected


@pytest.mark.slow
@pytest.mark.parametrize("pure", ["0", "1"])
def test_kernel_twin_and_hash_seed_never_change_a_root(pure: str) -> None:
    """A process of its own, with another seed for the hashes of Python."""
    program = "from tests.unit.test_state_roots import a_history; print(b''.join(a_history('memory:')).hex())"
    environment = os.environ | {"HOLDFAST_PURE": pure, "PYTHONHASHSEED": "4711", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == b"".join(a_history("memory:")).hex()


def test_the_root_is_that_of_the_definition_whatever_came_before() -> None:
    with open_state_store("memory:") as store:
        commit(store, 0, {b"a": b"1", b"b": b"2"})
        commit(store, 1, {b"a": b"3", b"c": b"4"})
        commit(store, 2, {b"a": b"1", b"c": None})
        assert_tip(store, {b"a": b"1", b"b": b"2"})
    with open_state_store("memory:") as other:
        commit(other, "x", {b"b": b"2", b"a": b"1"})
        assert_tip(other, {b"a": b"1", b"b": b"2"})
