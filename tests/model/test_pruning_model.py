"""Pruning against its definition: each height is exactly right or refused, and exactly the rows that answer stay."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Set
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import holdfast
from holdfast import PruneReport, Store
from holdfast.errors import FinalityError, HoldfastError, InvalidInputError, PrunedError
from holdfast.recovery import verify_store
from holdfast.views.history import history_key
from tests.model.test_state_model import examples
from tests.unit.pruning_support import Rows, history_rows, stored_row
from tests.unit.state_support import Changes, Values, after, die, in_tree, large, open_state_store, writer_backend
from tests.unit.store_support import Model, make, quick

KEYS = [b"a", b"a\x00", b"k" * 16, b"k" * 17, b"k" * 400, b"\xff" * 16, b"old"]
keys = st.sampled_from(KEYS)
values = st.one_of(st.none(), st.builds(large, st.integers(0, 4), st.sampled_from([1, 5, 40])), st.just(b"large"))
writes = st.dictionaries(keys, values, max_size=4)


def full(changes: Changes) -> Changes:
    """The changes, with a value that is too long for the tree where it is asked for."""
    return {key: large("blob", 65_537) if value == b"large" else value for key, value in changes.items()}


class PruningMachine(RuleBasedStateMachine):
    """Over SQLite; subclasses say where else."""

    url = "sqlite"

    def __init__(self) -> None:
        super().__init__()
        self.names = 0
        self.states: dict[bytes, Values] = {}
        self.changes: dict[bytes, Changes] = {}
        self.known: list[bytes] = []
        self.readable: set[int] = set()
        """Heights that were not given up; those above the tip are not in it."""
        self.floor = 0
        self.every = 0
        self.dirty = False
        """True while a run was broken off: more rows than needed may be there."""

    @initialize(depth=st.sampled_from([1, 3, 6]), root=st.sampled_from([0, 0, 7]), changes=writes)
    def begin(self, depth: int, root: int, changes: Changes) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="holdfast-pruning-"))
        self.fields: dict[str, Any] = {"max_reorg_depth": depth, "history_blocks": 0, "fork_choice": "heaviest"}
        self.store = self._open()
        self.model = Model("heaviest", depth)
        first = make(None, "root", height=root)
        self.model.add(first)
        self.store.add(first, root_allowed=True)
        self.root = root
        self._keep(first.hash, {}, {})
        for number in range(4):
            self.commit(changes if number else {b"old": b"never written again"}, 0, 1)

    def _open(self) -> Store:
        return open_state_store(f"{self.url}:{self.directory}", **self.fields)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            report = verify_store(self.directory, level="views")
            assert report.ok, report.as_dict()
            shutil.rmtree(self.directory)

    # -- the chain ----------------------------------------------------------------------------------------------

    def _keep(self, block_hash: bytes, found: Values, changes: Changes) -> None:
        self.known.append(block_hash)
        self.states[block_hash] = found
        self.changes[block_hash] = changes
        self._moved()

    def _moved(self) -> None:
        """The tip is another one."""
        tip = self.root + len(self.model.canonical) - 1
        final = self._final()
        self.readable = {height for height in self.readable if height <= tip} | set(
            range(max(self.root, self.floor), tip + 1)
        )
        assert self.floor <= final or not self.floor

    def _final(self) -> int:
        return max(self.model.floor, -1 if self.model.finalized is None else self.model.finalized)

    @rule(changes=writes, back=st.integers(0, 3), work=st.integers(1, 3))
    def commit(self, changes: Changes, back: int, work: int) -> None:
        parent = self.model.canonical[max(0, len(self.model.canonical) - 1 - back)]
        self._commit_on(parent, changes, work)

    @rule(changes=writes, age=st.integers(0, 5), work=st.integers(1, 2))
    def commit_on_some_branch(self, changes: Changes, age: int, work: int) -> None:
        self._commit_on(self.known[-1 - min(age, len(self.known) - 1)], changes, work)

    def _commit_on(self, parent: bytes, changes: Changes, work: int) -> None:
        self.names += 1
        changes = full(changes)
        block = make(self.model.blocks[parent], ("p", self.names), work=work)
        trial = self.model.copy()
        try:
            trial.add(block)
        except HoldfastError:
            return
        draft = self.store.draft(parent)
        draft.state.update(changes)
        self.store.commit(draft, hash=block.hash, header=block.header, body=block.body, time=block.time, work=work)
        self.model.add(block)
        before = self.states[parent]
        # to remove what is not there is no change; to write what is there already is one
        changes = {key: value for key, value in changes.items() if value is not None or key in before}
        self._keep(block.hash, after(before, changes), changes)

    @rule(changes=writes, count=st.integers(2, 9))
    def grow(self, changes: Changes, count: int) -> None:
        for number in range(count):
            some = dict(list(changes.items())[number % 3 :])
            self._commit_on(self.model.canonical[-1], some, 1)

    @rule(below=st.integers(0, 4))
    def finalize(self, below: int) -> None:
        tip = self.model.tip
        assert tip is not None
        height = max(tip.height - below, self.root)
        if self.model.finalized is None or height >= self.model.finalized:
            self.model.finalize(height)
            self.store.finalize(height)

    @rule()
    def flush(self) -> None:
        self.store.flush()

    @rule(clean=st.booleans())
    def reopen(self, clean: bool) -> None:
        if clean:
            self.store.close()
        else:
            die(self.store)
        self.store = self._open()
        assert not self.store.recovery.views_rebuilt

    @rule()
    def rebuild(self) -> None:
        """The journal has everything: nothing is given up any more."""
        self.store.rebuild()
        self.floor = self.every = 0
        self.dirty = False
        self.readable = set(range(self.root, self.root + len(self.model.canonical)))

    # -- pruning ------------------------------------------------------------------------------------------------

    @rule(
        blocks=st.integers(0, 12),
        below=st.one_of(st.none(), st.integers(0, 40)),
        every=st.sampled_from([0, 0, 1, 2, 3, 4, 6, 12]),
        stops=st.lists(st.integers(0, 4), max_size=4),
        crash=st.booleans(),
    )
    def prune(self, blocks: int, below: int | None, every: int, stops: list[int], crash: bool) -> None:
        fields: dict[str, Any] = {"blocks": blocks, "every": every, "below": below}
        floor, refused = self._expected(blocks, below, every)
        self.store.flush()
        rows, record = self._rows(), writer_backend(self.store).views.history
        if refused is not None:
            for dry_run in (True, False):
                with pytest.raises(refused):
                    self.store.prune(**fields, dry_run=dry_run)
            assert (self._rows(), writer_backend(self.store).views.history) == (rows, record)
            return
        dry = self.store.prune(**fields, dry_run=True)
        assert (self._rows(), writer_backend(self.store).views.history) == (rows, record)
        kept = {height for height in self.readable if height >= floor or (every and height % every == 0)}
        assert dry.heights_lost == len(self.readable - kept)
        assert (dry.floor_before, dry.floor_after) == (max(self.floor, self.root), max(floor, self.root))
        self.readable, self.floor, self.every = kept, floor, every
        self.dirty = True
        reports = []
        for stop in stops:
            reports.append(self.store.prune(**fields, keep_going=partial(next, iter([True] * stop), False)))
            if reports[-1].complete:
                break
            self.everything_is_right()
            if crash:
                self.reopen(clean=False)
        reports.append(self.store.prune(**fields))
        self.dirty = False
        self._check_reports(dry, reports, rows)

    def _expected(self, blocks: int, below: int | None, every: int) -> tuple[int, type[HoldfastError] | None]:
        final = self._final()
        if below is not None and below > final:
            return 0, FinalityError
        if self.every and every % self.every:
            return 0, InvalidInputError
        floor = below if below is not None else final - blocks + 1 if blocks else 0
        return max(floor, self.floor), None

    def _check_reports(self, dry: PruneReport, reports: list[PruneReport], rows: Rows) -> None:
        assert reports[-1].complete
        assert dry.complete
        gone = {key: value for key, value in rows.items() if key not in self._rows()}
        size = sum(len(key) + len(value) for key, value in gone.items())
        assert (dry.rows, dry.estimated_bytes) == (len(gone), size)
        assert sum(report.rows for report in reports) == dry.rows
        assert sum(report.estimated_bytes for report in reports) == dry.estimated_bytes
        assert sum(report.heights_lost for report in reports) == dry.heights_lost
        if len(reports) == 1:
            assert replace(reports[0], dry_run=True, freed_bytes=None) == dry

    def _rows(self) -> Rows:
        return history_rows(writer_backend(self.store).opened.engine)

    # -- what must hold -----------------------------------------------------------------------------------------

    @rule(data=st.data())
    def compare_heights(self, data: st.DataObject) -> None:
        """``diff`` and ``changes`` between two heights."""
        heights = st.sampled_from([self.root + at for at in range(len(self.model.canonical))])
        first, second = data.draw(heights, label="first"), data.draw(heights, label="second")
        one, two = self._at(first), self._at(second)
        expected = [(key, one.get(key), two.get(key)) for key in sorted({*one, *two}) if one.get(key) != two.get(key)]
        with self._refused_unless({first, second} <= self.readable):
            assert list(self.store.state.diff(first, second)) == expected
        if first > second:
            return
        with self._refused_unless(first >= max(self.floor, self.root), {self.floor}):
            found = dict(self.store.state.changes(first, second))
            for key in KEYS:
                assert found.get(key) == self._values_of(key, first, second)

    @contextlib.contextmanager
    def _refused_unless(self, readable: bool, also: Set[int] = frozenset()) -> Iterator[None]:
        """Inside, everything is answered if it is ``readable``; else ``PrunedError`` names the oldest height left."""
        if readable:
            yield
            return
        with pytest.raises(PrunedError) as caught:
            yield
        assert caught.value.context["least_readable"] in {min(self.readable), *also}

    def _values_of(self, key: bytes, first: int, last: int) -> list[tuple[int, bytes | None]] | None:
        found = [(first, self._at(first).get(key))]
        for height in range(first + 1, last + 1):
            value = self._at(height).get(key)
            if value != found[-1][1]:
                found.append((height, value))
        return found if len(found) > 1 else None

    @precondition(lambda self: self.url != "lmdb")
    @rule()
    def follow(self) -> None:
        self.store.flush()
        with holdfast.open(self.directory, read_only=True, settings=quick()) as follower:
            self._check_heights(follower)

    @invariant()
    def everything_is_right(self) -> None:
        if not hasattr(self, "store") or not self.model.canonical:
            return
        self.store.sync()
        self._check_heights(self.store)
        lowest = max(self.floor, self.root)
        tip = self.root + len(self.model.canonical) - 1
        for key in KEYS:
            expected = self._values_of(key, lowest, tip) or [(lowest, self._at(lowest).get(key))]
            assert self.store.state.history(key) == expected

    def _at(self, height: int) -> Values:
        return self.states[self.model.canonical[height - self.root]]

    def _check_heights(self, store: Store) -> None:
        for at, block_hash in enumerate(self.model.canonical):
            height = self.root + at
            expected = self.states[block_hash]
            with self._refused_unless(height in self.readable):
                state = store.state.at(height)
                assert dict(state.scan()) == expected
                assert dict(state.scan(reverse=True)) == expected
                assert [state.get(key) for key in KEYS] == [expected.get(key) for key in KEYS]

    @rule()
    def exactly_the_rows_that_answer_are_there(self) -> None:
        self.store.flush()
        rows = self._rows()
        needed: Rows = {}
        for at, block_hash in enumerate(self.model.canonical):
            height = self.root + at
            for key in self.changes[block_hash]:
                before = self._at(height - 1).get(key) if at else None
                last = self._last_change(key, height)
                # asked for by a readable height between the change before and this one; the root's are not pruned at 0
                if any(last <= each < height for each in self.readable) or (not at and not self.floor):
                    row = history_key(key, height)
                    needed[row] = stored_row(row, None if before is None else in_tree(before))
        assert needed.items() <= rows.items()
        assert self.dirty or rows == needed

    def _last_change(self, key: bytes, below: int) -> int:
        for height in range(below - 1, self.root, -1):
            if key in self.changes[self.model.canonical[height - self.root]]:
                return height
        return self.root


class RocksdbMachine(PruningMachine):
    url = "rocksdb"


class LmdbMachine(PruningMachine):
    url = "lmdb"


TestSqlite = pytest.mark.slow(PruningMachine.TestCase)
TestSqlite.settings = examples(8, 20)
TestRocksdb = pytest.mark.slow(RocksdbMachine.TestCase)
TestRocksdb.settings = examples(2, 20)
TestLmdb = pytest.mark.slow(LmdbMachine.TestCase)
TestLmdb.settings = examples(1, 15)
