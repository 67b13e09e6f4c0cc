"""The store against a dumb model: commits, forks, reorgs, orphans, finality, flushes, reopening and old snapshots."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from holdfast import Store
from holdfast.errors import HoldfastError
from holdfast.recovery import verify_store
from holdfast.store.store import StoreSnapshot
from holdfast.types import AddStatus, Block
from tests.unit.store_support import Model, assert_blocks, assert_store, hash_of, make, open_quick, status_of

BASES = [0, 254, 65_534, 2**32 - 2]
PRODUCERS = [b"", b"\x00", b"alice", b"\xff" * 128]


class StoreMachine(RuleBasedStateMachine):
    """Over ``memory:``; subclasses say where else."""

    snapshots = Bundle("snapshots")
    scheme = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.directory: Path | None = None
        self.names = 0
        self.model = Model()
        self.known: list[bytes] = []

    # -- the store ----------------------------------------------------------------------------------------------

    @initialize(
        base=st.sampled_from(BASES),
        choice=st.sampled_from(["heaviest", "longest", "manual"]),
        depth=st.sampled_from([3, 5, 256]),
        durability=st.sampled_from(["sync", "buffered"]),
        most=st.sampled_from([3, 1000]),
    )
    def begin(self, base: int, choice: str, depth: int, durability: str, most: int) -> None:
        if self.scheme != "memory":
            self.directory = Path(tempfile.mkdtemp(prefix="holdfast-model-"))
        self.fields: dict[str, object] = {
            "fork_choice": choice,
            "max_reorg_depth": depth,
            "durability": durability,
            "max_orphans": most,
        }
        self.store = self._open()
        self.model = Model(choice, depth, most)
        first = make(None, "first", height=base)
        self._both(lambda: self.model.add(first), lambda: status_of(self.store.add(first, root_allowed=True)))
        self.known = [first.hash]

    def _open(self) -> Store:
        url = "memory:" if self.directory is None else f"{self.scheme}:{self.directory}"
        return open_quick(url, **self.fields)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.stack.close()
            assert_store(self.store, self.model)
            self.store.close()
        if self.directory is not None:
            report = verify_store(self.directory, level="views")
            assert report.ok, report.as_dict()
            shutil.rmtree(self.directory)

    def _both(self, expected: Callable[[], object], found: Callable[[], object]) -> object:
        """Model and store do the same: the same answer, or the same kind of refusal."""
        refusal: type[HoldfastError] | None = None
        wanted: object = None
        try:
            wanted = expected()
        except HoldfastError as error:
            refusal = type(error)
        if refusal is not None:
            with pytest.raises(refusal):
                found()
            return None
        answer = found()
        assert answer == wanted
        return answer

    def _block(self, parent: bytes, work: int, time: int, producer: bytes) -> Block:
        self.names += 1
        return make(self.model.blocks[parent], self.names, work=work, time=time, producer=producer)

    def _pick(self, data: st.DataObject) -> bytes:
        """A stored block, the newer ones more often."""
        return self.known[-1 - data.draw(st.integers(0, len(self.known) - 1), label="age")]

    # -- rules --------------------------------------------------------------------------------------------------

    @rule(data=st.data(), work=st.integers(0, 3), time=st.integers(0, 20), producer=st.sampled_from(PRODUCERS))
    def add(self, data: st.DataObject, work: int, time: int, producer: bytes) -> None:
        block = self._block(self._pick(data), work, time, producer)
        if self._both(lambda: self.model.add(block), lambda: status_of(self.store.add(block))) is not None:
            self.known.append(block.hash)

    @rule(work=st.integers(0, 3), producer=st.sampled_from(PRODUCERS), wait=st.booleans())
    def commit(self, work: int, producer: bytes, wait: bool) -> None:
        draft = self.store.draft()
        assert draft.parent is not None
        block = self._block(draft.parent.hash, work, 7, producer)
        assert self.model.add(block) is AddStatus.EXTENDED
        answer = self.store.commit(
            draft,
            hash=block.hash,
            header=block.header,
            body=block.body,
            time=block.time,
            work=block.work,
            producer=block.producer,
            extra=block.extra,
            wait=wait,  # type: ignore[call-overload]
        )
        if not wait:
            assert answer.wait().hash == block.hash
            assert answer.durable
        self.known.append(block.hash)

    @rule(data=st.data(), count=st.integers(2, 6), again=st.booleans())
    def add_many(self, data: st.DataObject, count: int, again: bool) -> None:
        parent = self._pick(data)
        blocks: list[Block] = []
        for _ in range(count):
            self.names += 1
            blocks.append(make(blocks[-1] if blocks else self.model.blocks[parent], self.names))
        if again:
            blocks.insert(1, blocks[0])
        statuses: list[AddStatus] = []

        def expected() -> list[AddStatus]:
            statuses.extend(self.model.add(block) for block in blocks)
            return statuses

        self._both(expected, lambda: [result.status for result in self.store.add_many(blocks)])
        self.known += [
            block.hash for block in blocks if block.hash in self.model.blocks and block.hash not in self.known
        ]

    @rule(data=st.data())
    def reorg(self, data: st.DataObject) -> None:
        to = self._pick(data)
        self._both(lambda: self.model.reorg(to, "because"), lambda: self.store.reorg(to, reason="because") and None)

    @rule(data=st.data(), competing=st.booleans())
    def orphan(self, data: st.DataObject, competing: bool) -> None:
        which, other = self._pick(data), hash_of("other") if competing else None
        self._both(
            lambda: self.model.orphan(which, "bad", other),
            lambda: self.store.orphan(which, reason="bad", competing=other) and None,
        )

    @rule(below=st.integers(-1, 4))
    def finalize(self, below: int) -> None:
        tip = self.model.tip
        assert tip is not None
        height = max(tip.height - below, 0)
        self._both(lambda: self.model.finalize(height), lambda: self.store.finalize(height))

    @rule()
    def refuse(self) -> None:
        """What is never stored: a block without parent, one that jumps, a hash that nobody knows."""
        parent = self.model.blocks[self.known[-1]]
        nobody, jump = make(make(parent, "nobody"), "x"), make(parent, "jump", height=parent.height + 2)
        for block in (nobody, jump):
            self._both(lambda block=block: self.model.add(block), lambda block=block: self.store.add(block))  # type: ignore[misc]
        self._both(lambda: self.model.reorg(nobody.hash, ""), lambda: self.store.reorg(nobody.hash))

    @rule()
    def flush(self) -> None:
        self.store.flush()

    @rule()
    def sync(self) -> None:
        self.store.sync()

    @precondition(lambda self: self.scheme != "memory")
    @rule(flush=st.booleans())
    def reopen(self, flush: bool) -> None:
        self.stack.close()
        if flush:
            self.store.flush()
        self.store.close()
        self.store = self._open()
        assert self.store.recovery.clean
        assert not self.store.recovery.views_rebuilt

    @rule(target=snapshots)
    def look(self) -> tuple[contextlib.ExitStack, StoreSnapshot, Model]:
        stack = contextlib.ExitStack()
        snapshot = stack.enter_context(self.store.snapshot())
        self.stack.push(lambda *_: stack.close())
        return stack, snapshot, self.model.copy()

    @rule(look=consumes(snapshots))
    def old_snapshot_is_unchanged(self, look: tuple[contextlib.ExitStack, StoreSnapshot, Model]) -> None:
        stack, snapshot, model = look
        if stack._exit_callbacks:  # type: ignore[attr-defined]
            assert snapshot.finalized == model.finalized
            assert_blocks(snapshot.blocks, model)
            stack.close()

    @invariant()
    def store_equals_model(self) -> None:
        if self.model.canonical:
            assert_store(self.store, self.model, bytes_too=False)


class SqliteMachine(StoreMachine):
    """With reopening."""

    scheme = "sqlite"


TestMemory = pytest.mark.slow(StoreMachine.TestCase)
TestMemory.settings = settings(max_examples=60, stateful_step_count=30)
TestSqlite = pytest.mark.slow(SqliteMachine.TestCase)
TestSqlite.settings = settings(max_examples=30, stateful_step_count=25)
