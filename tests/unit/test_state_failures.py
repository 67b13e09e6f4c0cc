"""Commits that fail leave the state, its root and the tip as they were, in memory and after the next open."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest

import holdfast
from holdfast import Store
from holdfast.errors import (
    CallbackError,
    EngineError,
    HoldfastError,
    IndexFailed,
    InvalidBlock,
    LimitExceeded,
    OutOfSpace,
    PoisonedError,
    RootMismatch,
)
from holdfast.state.api import MutableState
from holdfast.store.chain import Ancestry, ChainSpec, CustomChain
from holdfast.store.indexes import IndexSpec
from holdfast.testing.crashfs import Fault
from holdfast.testing.machine import new_machine
from holdfast.types import ZERO_HASH, Block, BlockInfo
from tests.unit.state_support import (
    Changes,
    Values,
    after,
    assert_tip,
    commit,
    commit_draft,
    large,
    open_state_store,
    root_of,
)
from tests.unit.store_support import hash_of, make, quick

START = {b"a": b"1", b"big": large("big", 70_000)}


class Executing(CustomChain):
    """A block's body is ``key=value`` lines; its header claims the root, if it is 32 bytes."""

    def __init__(self) -> None:
        super().__init__(ChainSpec(name="custom"))
        self.fails: Callable[[], object] | None = None

    def validate(self, block: Block, parent: BlockInfo | None, ancestry: Ancestry) -> None:
        if block.producer == b"invalid":
            raise InvalidBlock("the test says so", hash=block.hash)

    def execute(self, block: Block, parent: BlockInfo | None, state: MutableState) -> bytes | None:
        for line in (block.body or b"").splitlines():
            key, _, value = line.partition(b"=")
            state[key] = value
        if self.fails is not None:
            self.fails()
        return None

    def state_root(self, block: Block) -> bytes | None:
        return block.header if len(block.header) == 32 else None


def block_of(parent: BlockInfo, changes: Values, *, claims: bytes | None = None, producer: bytes = b"") -> Block:
    body = b"\n".join(key + b"=" + value for key, value in sorted(changes.items()))
    return Block(
        hash_of("executed", parent.hash, body, claims, producer),
        parent.hash,
        parent.height + 1,
        header=claims if claims is not None else b"",
        body=body,
        producer=producer,
        work=3,
    )


@pytest.fixture
def chain() -> Executing:
    return Executing()


@pytest.fixture
def store(chain: Executing) -> Iterator[Store]:
    with open_state_store("memory:", chain=chain) as opened:
        commit(opened, 0, START)
        yield opened


def unchanged(store: Store, values: Values, tip: BlockInfo | None) -> None:
    assert store.tip == tip
    assert_tip(store, values)
    info = commit(store, "goes on", {b"on": b"ward"})
    assert info.state_root == root_of(after(values, {b"on": b"ward"}))


def test_a_block_that_the_chain_refuses(store: Store) -> None:
    tip = store.tip
    draft = store.draft()
    draft.state.update({b"a": None, b"b": b"2"})
    with pytest.raises(InvalidBlock):
        store.commit(draft, hash=hash_of("bad"), producer=b"invalid")
    unchanged(store, START, tip)
    # The draft is still good: the block is, too, once the chain accepts it, beside what came meanwhile.
    side = store.commit(draft, hash=hash_of("good"), work=0)
    assert side.state_root == root_of(after(START, {b"a": None, b"b": b"2"}))


@pytest.mark.parametrize("side", [False, True])
def test_a_root_that_is_not_the_one_claimed(store: Store, side: bool) -> None:
    first = store.tip
    assert first is not None
    tip = commit(store, 1, {b"c": b"3"}) if side else first
    values = START | {b"c": b"3"} if side else START
    wrong = block_of(first, {b"x": b"y"}, claims=root_of({b"x": b"y"}))
    with pytest.raises(RootMismatch) as caught:
        store.add(wrong)
    assert caught.value.context["found"] == root_of(START | {b"x": b"y"})
    assert not store.has(wrong.hash)
    draft = store.draft()
    draft.state[b"x"] = b"y"
    with pytest.raises(RootMismatch):
        store.commit(draft, hash=hash_of("claims"), header=hash_of("another root"))
    assert store.tip == tip
    right = block_of(first, {b"x": b"y"}, claims=root_of(START | {b"x": b"y"}))
    assert store.add(right).block is not None
    assert_tip(store, START | {b"x": b"y"})
    del values


def test_execution_that_fails(store: Store, chain: Executing) -> None:
    tip = store.tip
    assert tip is not None
    for error, expected in (
        (InvalidBlock("a rule is broken"), InvalidBlock),
        (KeyError("x"), CallbackError),
        (LimitExceeded("too much"), LimitExceeded),
    ):

        def fail(error: Exception = error) -> None:
            raise error

        chain.fails = fail
        with pytest.raises(expected):
            store.add(block_of(tip, {b"x": b"y"}))
    chain.fails = None
    assert store.statistics()["views"]["pins"] == 0  # type: ignore[index]
    unchanged(store, START, tip)


def test_a_block_whose_changes_are_too_many(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    tip = store.tip
    assert tip is not None
    monkeypatch.setattr("holdfast.state.draft.STATE_CHANGES_MAX", 3)
    with pytest.raises(LimitExceeded):
        store.add(block_of(tip, {b"%d" % number: b"x" for number in range(4)}))
    monkeypatch.undo()
    unchanged(store, START, tip)


def test_an_index_that_fails() -> None:
    def picky(block: Block) -> Iterable[tuple[bytes, bytes]]:
        if block.work == 13:
            raise ValueError("not this one")
        return [(b"k", block.hash)]

    with holdfast.open("memory:", settings=quick(), indexes=[IndexSpec("picky", 1, picky)]) as store:
        commit(store, 0, START)
        tip = store.tip
        draft = store.draft()
        draft.state.update({b"a": None, b"b": large(1, 80_000)})
        with pytest.raises(IndexFailed):
            commit_draft(store, draft, 1, work=13)
        unchanged(store, START, tip)


def test_a_reorg_whose_root_is_wrong_is_refused_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = store.tip
    assert first is not None
    side = commit(store, "side", {b"s": b"1"}, commit(store, "below", {b"s": b"0"}, first, work=0), work=0)
    tip = commit(store, 1, {b"c": b"3"}, first, work=9)
    values = START | {b"c": b"3"}
    monkeypatch.setattr("holdfast.blocks.apply.chain_rows", lambda execution: {})
    with pytest.raises(RootMismatch):
        store.reorg(side.hash)
    monkeypatch.undo()
    assert store.tip == tip
    assert_tip(store, values)
    assert store.reorg(side.hash) is not None
    assert_tip(store, START | {b"s": b"1"})


# -- the device -----------------------------------------------------------------------------------------------------

STEPS: list[dict[bytes, bytes | None]] = [
    dict(START),
    {b"b": b"2"},
    {b"a": None, b"big": large(2, 66_000)},
    {b"c": b"3"},
]


def refused(action: Callable[[], object]) -> HoldfastError | None:
    """The typed error of ``action``, if it raised one."""
    try:
        action()
    except HoldfastError as error:
        return error
    return None


class Run:
    """A short life of a store with a state on a simulated device."""

    def __init__(self, tmp_path: Path, fault: Fault | None) -> None:
        self.machine = new_machine(tmp_path, seed=1, faults=() if fault is None else (fault,))
        self.values: list[Values] = [{}]

    def commit(self, store: Store, number: int, changes: Changes) -> None:
        commit(store, number, changes)
        self.values.append(after(self.values[-1], changes))
        if number == 1:
            store.flush()

    def live(self) -> bool:
        """True if something failed; whatever it was, state and root are those of the last acknowledged block."""
        with self.machine.running():
            failed = None
            try:
                store = self.machine.open()
            except HoldfastError:
                return True
            for number, changes in enumerate(STEPS):
                failed = refused(partial(self.commit, store, number, changes))
                if failed is not None:
                    self.check_after_failure(store)
                    break
            closing = refused(store.close)
            self.machine.fs.faults = ()
            self.machine.fs._locks.clear()
            again = self.machine.open()
            found = dict(again.state.scan())
            assert again.state.root == root_of(found)
            ahead = [after(self.values[-1], each) for each in STEPS] if failed is not None else []
            assert found in [self.values[-1], *ahead], "neither what was acknowledged nor the block in flight"
            again.close()
        return failed is not None or closing is not None

    def check_after_failure(self, store: Store) -> None:
        assert dict(store.state.scan()) == self.values[-1]
        assert store.state.root == root_of(self.values[-1])
        error = refused(partial(self.commit, store, 100, {b"x": b"y"}))
        assert error is None or isinstance(error, (PoisonedError, EngineError))
        assert dict(store.state.scan()) == self.values[-1]
        assert store.state.root == root_of(self.values[-1])


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("kind", ["pwrite", "sync", "apply"])
def test_an_error_of_the_device(tmp_path: Path, code: int, kind: str) -> None:
    failures = 0
    for at in range(1, 80):
        life = Run(tmp_path, Fault(at, error=code, torn=True, only=frozenset({kind})))
        failures += life.live()
        if not life.machine.fs.hits:
            break
    assert failures >= (2 if kind == "apply" else 5)
    assert at < 79


def test_the_error_names_what_is_full(tmp_path: Path) -> None:
    place = new_machine(tmp_path)
    with place.running():
        store = place.open()
        commit(store, 0, START)
        place.fs.faults = (Fault(1, error=errno.ENOSPC, persistent=True, only=frozenset({"pwrite"})),)
        with pytest.raises(OutOfSpace):
            commit(store, 1, {b"b": large(1, 500_000)})
        assert dict(store.state.scan()) == START
        assert store.state.root == root_of(START)
        place.fs.faults = ()
        commit(store, 2, {b"b": b"2"})  # there is room again
        store.close()
        again = place.open()
        assert_tip(again, START | {b"b": b"2"})
        again.close()


def test_a_block_before_the_first_is_not_executed_twice(store: Store) -> None:
    """Known blocks are neither executed nor stored again."""
    tip = store.tip
    assert tip is not None
    block = block_of(tip, {b"x": b"y"})
    assert store.add(block).status.value == "extended"
    seq = store.statistics()["journal"]
    assert store.add(block).status.value == "known"
    assert store.statistics()["journal"] == seq
    with pytest.raises(HoldfastError):
        store.add(make(None, "another root"))
    assert tip.hash != ZERO_HASH
