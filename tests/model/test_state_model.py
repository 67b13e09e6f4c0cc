"""The versioned state against plain dictionaries, one for each block: drafts, branches, reorgs, proofs, old heights."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import holdfast
from holdfast import Store
from holdfast.errors import HoldfastError, ProofInvalid, PrunedError, ViewExpired
from holdfast.merkle.api import SCHEMES, Scheme
from holdfast.recovery import verify_store
from holdfast.state.api import ReadableState
from holdfast.store.chain import SchemeName
from holdfast.store.draft import Draft
from holdfast.store.states import StateAt
from holdfast.types import ZERO_HASH, Block
from tests.unit.state_support import Values, after, die, large, open_state_store, root_of, selected, writer_backend
from tests.unit.store_support import Model, make, quick

KEYS = [
    b"\x00",
    b"\x00\x00",
    b"\x00\x00\x01",
    b"a",
    b"a\x00",
    b"a\x00b",
    b"aa",
    b"aa/1",
    b"aa/2",
    b"aa/2\xff",
    b"aa/2\xff\xff",
    b"ab",
    b"k" * 400,
    b"k" * 399 + b"\x00",
    b"k" * 399,
    b"\xff",
    b"\xff\xff",
    b"\xff" * 400,
]
LENGTHS = [1, 2, 52, 53, 54, 1000, 65_535, 65_536, 65_537, 100_000]

keys = st.one_of(st.sampled_from(KEYS), st.integers(0, 30).map(lambda number: b"n/%d" % number))
values = st.builds(
    large, st.integers(0, 5), st.one_of(st.integers(1, 60), st.integers(1, 60), st.sampled_from(LENGTHS))
)
writes = st.lists(st.tuples(keys, st.one_of(values, values, st.none())), max_size=8)
bounds = st.one_of(st.none(), st.sampled_from([b"", b"a", b"aa", b"aa/2\xff", b"b", b"k" * 400, b"\xff", b"n/2"]))
prefixes = st.sampled_from([b"", b"", b"\x00", b"a", b"aa", b"aa/", b"k", b"n/1", b"\xff", b"\xff\xff", b"zz"])


@dataclass
class Pending:
    """A draft, and what it must hold."""

    draft: Draft
    parent: bytes
    values: Values
    touched: bool


@dataclass
class Held:
    """A state at a height that somebody keeps."""

    state: StateAt
    block: bytes
    height: int


class StateMachine(RuleBasedStateMachine):
    """Over ``memory:``; subclasses say where else."""

    url = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.directory: Path | None = None
        self.names = 0
        self.model = Model()
        self.known: list[bytes] = []
        self.states: dict[bytes, Values] = {}
        self.executed: set[bytes] = set()
        self.pending: list[Pending] = []
        self.held: list[Held] = []
        self.stateful = False

    # -- the store ----------------------------------------------------------------------------------------------

    @initialize(
        scheme=st.sampled_from(["jmt-sha256", "ics23-smt"]),
        choice=st.sampled_from(["heaviest", "longest", "manual"]),
        depth=st.sampled_from([2, 5, 256]),
        window=st.sampled_from([0, 3, 256]),
        durability=st.sampled_from(["sync", "buffered"]),
        changes=writes,
    )
    def begin(
        self,
        scheme: SchemeName,
        choice: str,
        depth: int,
        window: int,
        durability: str,
        changes: list[tuple[bytes, bytes | None]],
    ) -> None:
        if self.url != "memory":
            self.directory = Path(tempfile.mkdtemp(prefix="holdfast-state-"))
        self.name: SchemeName = scheme
        self.scheme: Scheme = SCHEMES[scheme]
        self.fields: dict[str, Any] = {
            "fork_choice": choice,
            "max_reorg_depth": depth,
            "proof_window_blocks": window,
            "durability": durability,
        }
        self.store = self._open()
        self.model = Model(choice, depth)
        pending = self._draft(None)
        self._write(pending, changes)
        self._commit(pending, 1)

    def _open(self) -> Store:
        url = "memory:" if self.directory is None else f"{self.url}:{self.directory}"
        return open_state_store(url, scheme=self.name, **self.fields)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self._check_everything()
            self.store.close()
        if self.directory is not None:
            report = verify_store(self.directory, level="views")
            assert report.ok, report.as_dict()
            shutil.rmtree(self.directory)

    def _check_everything(self) -> None:
        """The root of every stored block, every retained height, and the rows of the tip, by their definition."""
        self.store.sync()
        for block_hash, found in self.states.items():
            info = self.store.blocks.load(block_hash)
            expected = root_of(found, self.scheme) if self._ran(block_hash) else None
            assert (info.state_root or ZERO_HASH) == (expected or ZERO_HASH)
        for block_hash in self.model.canonical:
            block = self.model.blocks[block_hash]
            with self._maybe_pruned(block.height):
                state = self.store.state.at(block.height)
                assert dict(state.scan()) == self.states[block_hash]
                assert state.root == root_of(self.states[block_hash], self.scheme)
                assert state.block.hash == block_hash

    def _ran(self, block_hash: bytes) -> bool:
        return any(each in self.executed for each in self.model.path(block_hash))

    @contextlib.contextmanager
    def _maybe_pruned(self, height: int) -> Iterator[None]:
        """A canonical height within the reorg floor is always readable; one below it, or a typed error says so."""
        pruned = False
        try:
            yield
        except PrunedError:
            pruned = True
        assert not pruned or height < self.model.floor

    def _pick(self, data: st.DataObject) -> bytes:
        """A stored block, the newer ones more often."""
        return self.known[-1 - data.draw(st.integers(0, len(self.known) - 1), label="age")]

    # -- drafts -------------------------------------------------------------------------------------------------

    def _draft(self, parent: bytes | None) -> Pending:
        draft = self.store.draft(parent)
        above = draft.parent.hash if draft.parent is not None else ZERO_HASH
        return Pending(draft, above, dict(self.states.get(above, {})), False)

    def _write(self, pending: Pending, changes: list[tuple[bytes, bytes | None]]) -> None:
        state = pending.draft.state
        for number, (key, value) in enumerate(changes):
            if value is None:
                del state[key]
            elif number % 3:
                state[key] = value
            else:
                state.update({key: value, b"both": value})
                pending.values[b"both"] = value
            pending.values = after(pending.values, {key: value})
            pending.touched = True
            assert state.get(key) == value

    def _commit(self, pending: Pending, work: int) -> None:
        self.names += 1
        parent = self.model.blocks.get(pending.parent)
        block = make(parent, ("s", self.names), work=work)
        expected: type[HoldfastError] | None = None
        if pending.touched:
            assert pending.draft.state.root() == root_of(pending.values, self.scheme)
        try:
            self.model.add(block)
        except HoldfastError as error:
            expected = type(error)
        if expected is not None:
            with pytest.raises(expected):
                self._store_block(pending.draft, block)
            return
        info = self._store_block(pending.draft, block)
        self.known.append(block.hash)
        self.states[block.hash] = pending.values
        if pending.touched:
            self.executed.add(block.hash)
            self.stateful = True
            assert info.state_root == root_of(pending.values, self.scheme)
        with pytest.raises(HoldfastError):
            pending.draft.state[b"late"] = b"x"

    def _store_block(self, draft: Draft, block: Block) -> holdfast.BlockInfo:
        return self.store.commit(
            draft,
            hash=block.hash,
            header=block.header,
            body=block.body,
            time=block.time,
            work=block.work,
            extra=block.extra,
        )

    # -- rules --------------------------------------------------------------------------------------------------

    @rule(changes=writes, work=st.integers(1, 3))
    def commit_on_tip(self, changes: list[tuple[bytes, bytes | None]], work: int) -> None:
        pending = self._draft(None)
        self._write(pending, changes)
        self._commit(pending, work)

    @rule(data=st.data(), changes=writes, work=st.integers(1, 3))
    def commit_anywhere(self, data: st.DataObject, changes: list[tuple[bytes, bytes | None]], work: int) -> None:
        parent = self._pick(data)
        pending = self._draft(parent)
        try:
            self._write(pending, changes)
        except PrunedError:
            assert self._fork_height(parent) < self.model.floor
            return
        self._commit(pending, work)

    def _fork_height(self, block_hash: bytes) -> int:
        return max(
            self.model.blocks[each].height for each in self.model.path(block_hash) if each in self.model.canonical
        )

    @rule(data=st.data(), changes=writes, anywhere=st.booleans())
    def begin_draft(self, data: st.DataObject, changes: list[tuple[bytes, bytes | None]], anywhere: bool) -> None:
        """A draft that is committed later, or never."""
        pending = self._draft(self._pick(data) if anywhere else None)
        try:
            self._write(pending, changes)
        except PrunedError:
            assert self._fork_height(pending.parent) < self.model.floor
            return
        self.pending.append(pending)

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), work=st.integers(1, 3), drop=st.booleans(), changes=writes)
    def end_draft(self, data: st.DataObject, work: int, drop: bool, changes: list[tuple[bytes, bytes | None]]) -> None:
        pending = self.pending.pop(data.draw(st.integers(0, len(self.pending) - 1), label="draft"))
        if drop and len(self.pending) % 2:
            return
        try:
            self._write(pending, changes)
        except PrunedError:  # it was not looked at before, and what it stands on is gone meanwhile
            assert not pending.touched
            return
        self._commit(pending, work)

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), prefix=prefixes, start=bounds, stop=bounds, reverse=st.booleans(), key=keys)
    def read_draft(
        self,
        data: st.DataObject,
        prefix: bytes,
        start: bytes | None,
        stop: bytes | None,
        reverse: bool,
        key: bytes,
    ) -> None:
        pending = data.draw(st.sampled_from(self.pending), label="draft")
        with contextlib.suppress(PrunedError if not pending.touched else ZeroDivisionError):
            self._compare(pending.draft.state, pending.values, prefix, start, stop, reverse=reverse, key=key)

    @staticmethod
    def _compare(
        state: ReadableState,
        expected: Values,
        prefix: bytes,
        start: bytes | None,
        stop: bytes | None,
        *,
        reverse: bool,
        key: bytes,
    ) -> None:
        found = list(state.scan(prefix, start=start, stop=stop, reverse=reverse))
        assert found == selected(expected, prefix, start, stop, reverse=reverse)
        assert state.get(key) == expected.get(key)
        assert (key in state) == (key in expected)
        some = [key, *KEYS[::3], key]
        assert state.get_many(some) == [expected.get(each) for each in some]

    @rule(
        data=st.data(), prefix=prefixes, start=bounds, stop=bounds, reverse=st.booleans(), key=keys, hold=st.booleans()
    )
    def read_height(
        self,
        data: st.DataObject,
        prefix: bytes,
        start: bytes | None,
        stop: bytes | None,
        reverse: bool,
        key: bytes,
        hold: bool,
    ) -> None:
        block_hash = data.draw(st.sampled_from(self.model.canonical), label="block")
        height = self.model.blocks[block_hash].height
        self.store.sync()
        with self._maybe_pruned(height):
            state = self.store.state.at(height)
            self._compare(state, self.states[block_hash], prefix, start, stop, reverse=reverse, key=key)
            if hold:
                self.held.append(Held(state, block_hash, height))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), key=keys, prefix=prefixes, forget=st.booleans())
    def read_held(self, data: st.DataObject, key: bytes, prefix: bytes, forget: bool) -> None:
        """What somebody keeps answers as before, or says that it cannot."""
        held = data.draw(st.sampled_from(self.held), label="held")
        try:
            self._compare(held.state, self.states[held.block], prefix, None, None, reverse=False, key=key)
        except (ViewExpired, PrunedError):
            forget = True
        assert held.state.root == root_of(self.states[held.block], self.scheme)
        if forget:
            self.held.remove(held)

    @rule(data=st.data(), key=keys, other=values, at_tip=st.booleans())
    def prove(self, data: st.DataObject, key: bytes, other: bytes, at_tip: bool) -> None:
        self.store.sync()
        block_hash = self.model.canonical[-1] if at_tip else data.draw(st.sampled_from(self.model.canonical))
        height = self.model.blocks[block_hash].height
        expected = self.states[block_hash]
        root = root_of(expected, self.scheme)
        with self._maybe_pruned(height):
            proof = self.store.state.prove(key, height=None if at_tip else height)
            assert (proof.root, proof.key, proof.value) == (root, key, expected.get(key))
            assert proof.block is not None
            assert proof.block.hash == block_hash
            holdfast.verify_proof(proof.data, root, key, expected.get(key), scheme=self.name)
            wrong: bytes | None = other
            if other == expected.get(key):
                wrong = None
            with pytest.raises(ProofInvalid):
                holdfast.verify_proof(proof.data, root, key, wrong, scheme=self.name)
            some = sorted({key, *KEYS[::4]})
            many = self.store.state.prove_many(some, height=None if at_tip else height)
            claims = {each: expected.get(each) for each in some}
            assert many.values == claims
            many.verify(root, claims)
            with pytest.raises(ProofInvalid):
                many.verify(root, claims | {key: wrong})

    @rule(data=st.data())
    def reorg(self, data: st.DataObject) -> None:
        to = self._pick(data)
        self._both(lambda: self.model.reorg(to, "because"), lambda: self.store.reorg(to, reason="because"))

    @rule(data=st.data())
    def orphan(self, data: st.DataObject) -> None:
        which = self._pick(data)
        self._both(lambda: self.model.orphan(which, "bad", None), lambda: self.store.orphan(which, reason="bad"))

    @rule(below=st.integers(0, 4))
    def finalize(self, below: int) -> None:
        tip = self.model.tip
        assert tip is not None
        height = max(tip.height - below, 0)
        self._both(lambda: self.model.finalize(height), lambda: self.store.finalize(height))

    def _both(self, expected: object, found: object) -> None:
        """Model and store do the same, or refuse the same."""
        assert callable(expected)
        assert callable(found)
        try:
            expected()
        except HoldfastError as error:
            with pytest.raises(type(error)):
                found()
            return
        found()

    @rule(work=st.integers(1, 3), data=st.data())
    def add_block_without_state(self, work: int, data: st.DataObject) -> None:
        """A block that is not executed leaves the state of its parent as it is."""
        parent = self._pick(data)
        self.names += 1
        block = make(self.model.blocks[parent], ("plain", self.names), work=work)
        try:
            self.model.add(block)
        except HoldfastError as error:
            with pytest.raises(type(error)):
                self.store.add(block)
            return
        self.store.add(block)
        self.known.append(block.hash)
        self.states[block.hash] = self.states[parent]

    @rule()
    def flush(self) -> None:
        self.store.flush()

    @precondition(lambda self: self.directory is not None)
    @rule(clean=st.booleans(), image=st.booleans())
    def reopen(self, clean: bool, image: bool) -> None:
        if clean:
            self.store.close()
        else:
            die(self.store)
        assert self.directory is not None
        if not image:
            shutil.rmtree(self.directory / "tree", ignore_errors=True)
        self.pending.clear()
        self.held.clear()
        self.store = self._open()
        assert not self.store.recovery.views_rebuilt

    @precondition(lambda self: self.url == "sqlite")
    @rule(key=keys)
    def follow(self, key: bytes) -> None:
        """A reader in its own right, over the same files."""
        self.store.sync()
        tip = self.model.canonical[-1]
        with holdfast.open(self.directory or "", read_only=True, settings=quick()) as follower:
            assert follower.tip is not None
            assert follower.tip.hash == tip
            self._compare(follower.state, self.states[tip], b"", None, None, reverse=False, key=key)
            proof = follower.state.prove(key)
            holdfast.verify_proof(
                proof.data, root_of(self.states[tip], self.scheme), key, self.states[tip].get(key), scheme=self.name
            )

    # -- always -------------------------------------------------------------------------------------------------

    @invariant()
    def tip_equals_model(self) -> None:
        if not self.model.canonical:
            return
        tip = self.model.canonical[-1]
        expected = self.states[tip]
        self.store.sync()
        assert self.store.tip is not None
        assert self.store.tip.hash == tip
        root = root_of(expected, self.scheme)
        assert self.store.state.root == root
        assert writer_backend(self.store).writer.tree.root == root
        assert dict(self.store.state.scan()) == expected


class SqliteMachine(StateMachine):
    """With reopening, and with followers."""

    url = "sqlite"


class RocksdbMachine(StateMachine):
    url = "rocksdb"


class LmdbMachine(StateMachine):
    url = "lmdb"


def examples(count: int, steps: int) -> settings:
    """The few of ``make test``, or as many as the profile says if that is more."""
    default = settings.get_profile(settings._current_profile or "default").max_examples
    return settings(max_examples=default if default > 100 else count, stateful_step_count=steps)


TestMemory = pytest.mark.slow(StateMachine.TestCase)
TestMemory.settings = examples(25, 25)
TestSqlite = pytest.mark.slow(SqliteMachine.TestCase)
TestSqlite.settings = examples(12, 25)
TestRocksdb = pytest.mark.slow(RocksdbMachine.TestCase)
TestRocksdb.settings = examples(4, 20)
TestLmdb = pytest.mark.slow(LmdbMachine.TestCase)
TestLmdb.settings = examples(4, 20)
