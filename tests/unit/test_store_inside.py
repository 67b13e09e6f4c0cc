"""Code that the store calls in the middle of a commit may read the store, and do nothing else with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Event, Thread

import pytest

import holdfast
from holdfast import ChainSpec, CustomChain, Store
from holdfast.errors import HoldfastError, StateError
from holdfast.recovery.verify import verify_store
from holdfast.state.api import MutableState
from holdfast.store.chain import Ancestry
from holdfast.store.indexes import index
from holdfast.types import Block, BlockInfo
from tests.unit.store_support import quick

Call = Callable[[Store], object]


def block(number: int) -> Block:
    parent = bytes([number]) * 32 if number else bytes(32)
    return Block(bytes([number + 1]) * 32, parent, number, b"header", b"body")


class Calling(CustomChain):
    """Its blocks set a key, and one of its functions calls the store."""

    def __init__(self) -> None:
        super().__init__(ChainSpec(name="custom"))
        self.calls: dict[str, Callable[[], object]] = {}

    def call(self, place: str) -> None:
        self.calls.pop(place, lambda: None)()

    def validate(self, block: Block, parent: BlockInfo | None, ancestry: Ancestry) -> None:
        self.call("validate")

    def execute(self, block: Block, parent: BlockInfo | None, state: MutableState) -> bytes | None:
        self.call("execute")
        state[b"key/%d" % block.height] = b"value"
        return None

    def state_root(self, block: Block) -> bytes | None:
        return None


CHANGING: dict[str, Call] = {
    "rebuild": lambda store: store.rebuild(),
    "prune": lambda store: store.prune(blocks=1),
    "close": lambda store: store.close(),
    "wait_for_indexes": lambda store: store.wait_for_indexes(),
    "start_indexes": lambda store: store.start_indexes(),
    "finalize": lambda store: store.finalize(1),
    "add": lambda store: store.add(block(9)),
    "orphan": lambda store: store.orphan(block(3).hash, reason="inside"),
    "reorg": lambda store: store.reorg(block(2).hash),
    "put": lambda store: store.documents("space").put(b"key", b"value"),
    "safety": lambda store: store.safety.save(b"id", (1,), b"payload"),
}
READING: dict[str, Call] = {
    "prove": lambda store: store.state.prove(b"key/1").verify(store.state.root, b"key/1", b"value"),
    "at": lambda store: store.state.at(2)[b"key/2"],
    "draft": lambda store: store.draft().state.root(),
    "statistics": lambda store: store.statistics(),
    "export_snapshot": lambda store: store.export_snapshot(str(store.path) + "-snapshot"),
}


@pytest.fixture
def chain() -> Calling:
    return Calling()


@pytest.fixture
def store(chain: Calling, tmp_path: Path) -> Iterator[Store]:
    @index("places")
    def places(block: Block) -> Iterable[tuple[bytes, bytes]]:
        chain.call("index")
        return [(b"%d" % block.height, block.hash)]

    with holdfast.open(f"sqlite:{tmp_path / 'store'}", chain=chain, indexes=[places], settings=quick()) as store:
        store.add_many([block(number) for number in range(5)])
        yield store


@pytest.mark.parametrize("place", ["validate", "execute", "index"])
@pytest.mark.parametrize("name", CHANGING)
def test_a_change_from_inside_is_refused_and_the_commit_goes_on(
    name: str, place: str, store: Store, chain: Calling, tmp_path: Path
) -> None:
    seen: list[HoldfastError] = []

    def call() -> None:
        with pytest.raises(StateError) as caught:
            CHANGING[name](store)
        seen.append(caught.value)

    chain.calls[place] = call
    assert store.add(block(5)).block is not None
    assert [error.code for error in seen] == ["state"]
    assert "may read the store" in seen[0].remedy
    store.add(block(6))
    assert store.state[b"key/5"] == store.state[b"key/6"] == b"value"
    assert store.rebuild() == 2
    store.close()
    assert verify_store(tmp_path / "store", level="state").ok


@pytest.mark.parametrize("place", ["validate", "execute", "index"])
@pytest.mark.parametrize("name", READING)
def test_reading_from_inside_sees_the_store_before_the_block(
    name: str, place: str, store: Store, chain: Calling, tmp_path: Path
) -> None:
    seen: list[int | None] = []

    def call() -> None:
        READING[name](store)
        seen.append(None if store.tip is None else store.tip.height)

    chain.calls[place] = call
    assert store.add(block(5)).block is not None
    assert seen == [4]
    assert store.state[b"key/5"] == b"value"
    store.close()
    assert verify_store(tmp_path / "store", level="state").ok


def test_what_another_thread_does_meanwhile_is_not_refused(store: Store, chain: Calling) -> None:
    done: list[object] = []
    begun = Event()

    def prune() -> None:
        begun.set()
        done.append(store.prune(blocks=1))

    thread = Thread(target=prune)

    def call() -> None:
        thread.start()
        begun.wait()

    chain.calls["execute"] = call
    store.add(block(5))
    thread.join()
    assert len(done) == 1
