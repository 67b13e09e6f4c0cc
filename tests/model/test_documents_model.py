"""Documents against plain dictionaries: batches, between them blocks, reorgs, flushes, kills, rebuilds."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

import holdfast
from holdfast import Store
from holdfast.recovery import verify_store
from holdfast.store.store import StoreSnapshot
from tests.unit.store_support import make, open_quick, quick

SPACES = ["a", "b", "aa", "\xff"]
KEYS = [b"\x00", b"a", b"a\x00", b"b", b"\xff", b"\xff" * 400, b"k" * 399]

Truth = dict[str, dict[bytes, bytes]]
keys = st.sampled_from(KEYS) | st.binary(min_size=1, max_size=2)
values = st.sampled_from([b"", b"v"]) | st.binary(max_size=4) | st.just(20_000).map(bytes)


def _copy_if_there(source: str, target: str) -> None:
    """The journal may just give the segment that it prepares its name."""
    try:
        shutil.copy2(source, target)
    except FileNotFoundError:
        assert source.endswith(".tmp")


class DocumentsMachine(RuleBasedStateMachine):
    """Over ``memory:``; subclasses say where else."""

    snapshots = Bundle("snapshots")
    scheme = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.directory: Path | None = None
        self.truth: Truth = {space: {} for space in SPACES}
        self.lives = 0
        self.stacks = 0
        self.store: Store

    @initialize(
        durability=st.sampled_from(["sync", "buffered"]), overlay=st.sampled_from([64 * 1024, 64 * 1024 * 1024])
    )
    def begin(self, durability: str, overlay: int) -> None:
        if self.scheme != "memory":
            self.directory = Path(tempfile.mkdtemp(prefix="holdfast-documents-"))
        self.options: dict[str, object] = {
            "durability": durability,
            "overlay_bytes_max": overlay,
            "buffered_sync_seconds": 3600.0,
        }
        self._open()

    def _place(self) -> Path:
        assert self.directory is not None
        return self.directory / str(self.lives)

    def _open(self) -> None:
        url = "memory:" if self.directory is None else f"{self.scheme}:{self._place()}"
        self.store = open_quick(url, **self.options)

    def _copy(self) -> dict[str, dict[bytes, bytes]]:
        return {space: dict(found) for space, found in self.truth.items()}

    # -- writing ------------------------------------------------------------------------------------------------

    @rule(space=st.sampled_from(SPACES), key=keys, value=values)
    def put(self, space: str, key: bytes, value: bytes) -> None:
        self.store.documents(space).put(key, value)
        self.truth[space][key] = value

    @rule(space=st.sampled_from(SPACES), key=keys)
    def delete(self, space: str, key: bytes) -> None:
        self.store.documents(space).delete(key)
        self.truth[space].pop(key, None)

    @rule(space=st.sampled_from(SPACES), puts=st.dictionaries(keys, values, max_size=6), gone=st.sets(keys, max_size=4))
    def write(self, space: str, puts: dict[bytes, bytes], gone: set[bytes]) -> None:
        gone -= puts.keys()
        self.store.documents(space).write(puts, gone)
        for key in gone:
            self.truth[space].pop(key, None)
        self.truth[space].update(puts)

    @rule(work=st.integers(1, 3), back=st.integers(0, 2))
    def block(self, work: int, back: int) -> None:
        """A block on or near the tip: it extends it, stays aside, or moves the tip."""
        tip = self.store.tip
        parent = tip
        for _ in range(back):
            if parent is not None and parent.height:
                parent = self.store.blocks.get(parent.parent)
        self.store.add(make(parent, self.store.blocks.statistics()["blocks"], work=work))

    # -- what happens to a store ----------------------------------------------------------------------------------

    @rule()
    def flush(self) -> None:
        self.store.flush()

    @precondition(lambda self: self.directory is not None)
    @rule()
    def reopen(self) -> None:
        self._release()
        self.store.close()
        self._open()

    @precondition(lambda self: self.directory is not None)
    @rule()
    def kill(self) -> None:
        """The store goes on from the files as they are; what was synced is in them."""
        self._release()
        self.store.sync()
        old = self._place()
        self.lives += 1
        shutil.copytree(old, self._place(), copy_function=_copy_if_there)
        self.store.close()
        self._open()

    @precondition(lambda self: self.directory is not None)
    @rule()
    def rebuild(self) -> None:
        self._release()
        self.store.rebuild()

    @precondition(lambda self: self.directory is not None and self.scheme != "lmdb")
    @rule()
    def follow(self) -> None:
        self.store.sync()
        with holdfast.open(self._place(), read_only=True, settings=quick()) as follower:
            assert {space: dict(follower.documents(space).scan()) for space in SPACES} == self.truth

    @precondition(lambda self: self.directory is not None)
    @rule()
    def verify(self) -> None:
        self._release()
        self.store.close()
        report = verify_store(self._place(), level="views")
        assert report.ok, report.problems
        self._open()

    # -- snapshots ------------------------------------------------------------------------------------------------

    @rule(target=snapshots)
    def snapshot(self) -> tuple[StoreSnapshot, Truth, int]:
        return self.stack.enter_context(self.store.snapshot()), self._copy(), self.stacks

    @rule(old=consumes(snapshots))
    def look_back(self, old: tuple[StoreSnapshot, Truth, int]) -> None:
        snapshot, truth, owner = old
        if owner == self.stacks:
            assert {space: dict(snapshot.documents(space).scan()) for space in SPACES} == truth

    def _release(self) -> None:
        """Every snapshot is let go of."""
        self.stack.close()
        self.stack = contextlib.ExitStack()
        self.stacks += 1

    # -- what must hold -------------------------------------------------------------------------------------------

    @invariant()
    def the_same(self) -> None:
        if not hasattr(self, "store"):
            return
        assert self.store.document_spaces() == sorted(space for space, found in self.truth.items() if found)
        for space, truth in self.truth.items():
            documents = self.store.documents(space)
            assert list(documents.scan()) == sorted(truth.items())
            assert list(documents.scan(b"a", reverse=True)) == sorted(
                ((key, value) for key, value in truth.items() if key.startswith(b"a")), reverse=True
            )
            assert documents.get_many(KEYS) == [truth.get(key) for key in KEYS]
            assert [documents.get(key) for key in KEYS] == [truth.get(key) for key in KEYS]
            assert [key in documents for key in KEYS] == [key in truth for key in KEYS]

    def teardown(self) -> None:
        self.stack.close()
        if hasattr(self, "store"):
            self.store.close()
        if self.directory is not None:
            shutil.rmtree(self.directory)


class SqliteMachine(DocumentsMachine):
    scheme = "sqlite"


class RocksMachine(DocumentsMachine):
    scheme = "rocksdb"


class LmdbMachine(DocumentsMachine):
    scheme = "lmdb"


TestMemory = pytest.mark.slow(DocumentsMachine.TestCase)
TestMemory.settings = settings(max_examples=60, stateful_step_count=30)
TestSqlite = pytest.mark.slow(SqliteMachine.TestCase)
TestSqlite.settings = settings(max_examples=20, stateful_step_count=25)
TestRocks = pytest.mark.slow(RocksMachine.TestCase)
TestRocks.settings = settings(max_examples=12, stateful_step_count=20)
TestLmdb = pytest.mark.slow(LmdbMachine.TestCase)
TestLmdb.settings = settings(max_examples=12, stateful_step_count=20)
