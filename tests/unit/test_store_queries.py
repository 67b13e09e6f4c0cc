"""Questions about blocks against the dumb model, at heights and times where byte order and limits matter; snapshots."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import holdfast
from holdfast import ChainSpec, CustomChain, Store
from holdfast.blocks.reader import BlockReader
from holdfast.errors import BlockNotFound, InvalidInputError
from holdfast.types import Block
from tests.unit.store_support import (
    BODY,
    Model,
    assert_blocks,
    assert_store,
    chain_of,
    hash_of,
    make,
    open_quick,
    quick,
)

TIMES = [0, 1, 255, 256, 65_535, 65_536, 2**32, 2**63, 2**64 - 2, 2**64 - 1]
PRODUCERS = [b"\x00", b"\x00\x00", b"a", b"ab", b"\xff", b"\xff" * 127, b"\xff" * 128]


def both(
    choices: list[tuple[int, int, bytes, int]], base: int, *, epoch: int = 0, origin: int = 0
) -> tuple[Store, Model]:
    """The same blocks in a store and in a model; each choice is (age of the parent, time, producer, work)."""
    spec = ChainSpec("custom", epoch_length=epoch, epoch_origin=origin)
    store = holdfast.open("memory:", chain=CustomChain(spec), settings=quick())
    model = Model()
    known = [make(None, "first", height=base, time=TIMES[0], producer=b"a")]
    store.add(known[0])
    model.add(known[0])
    for number, (age, time, producer, work) in enumerate(choices):
        block = make(known[-1 - age % len(known)], number, time=time, producer=producer, work=work)
        assert store.add(block).status is model.add(block)
        known.append(block)
    return store, model


choices = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(TIMES), st.sampled_from(PRODUCERS), st.integers(1, 2)), max_size=14
)


def expect(found: object, wanted: list[Block]) -> None:
    assert [info.hash for info in found] == [block.hash for block in wanted]  # type: ignore[attr-defined]


@given(choices=choices, base=st.sampled_from([0, 254, 65_534, 2**32 - 2]), data=st.data())
def test_every_question_has_the_answer_of_the_model(
    choices: list[tuple[int, int, bytes, int]], base: int, data: st.DataObject
) -> None:
    epoch, origin = data.draw(st.sampled_from([(1, 0), (3, 1), (40, 255), (4, 65_535)]), label="epochs")
    store, model = both(choices, base, epoch=epoch, origin=origin)
    assert_store(store, model)
    reader, canonical = store.blocks, set(model.canonical)
    times = st.sampled_from([-1, *TIMES, 2**64, 2**65])
    start, stop = data.draw(times, label="start"), data.draw(st.none() | times, label="stop")
    inside = [block for block in model.blocks.values() if start <= block.time and (stop is None or block.time < stop)]
    inside.sort(key=lambda block: (block.time, block.height, block.hash))
    expect(reader.by_time(start, stop), [block for block in inside if block.hash in canonical])
    expect(reader.by_time(start, stop, canonical_only=False), inside)
    at = [block for block in model.blocks.values() if block.hash in canonical and block.time <= start]
    at.sort(key=lambda block: (block.time, block.height, block.hash))
    answer = reader.at_time(start)
    assert (answer.hash if answer else None) == (at[-1].hash if at else None)
    for producer in [*PRODUCERS, b"", b"b", bytes(129), bytes(300)]:
        own = [block for block in model.blocks.values() if producer and block.producer == producer]
        own.sort(key=lambda block: (block.height, block.hash))
        expect(reader.by_producer(producer), [block for block in own if block.hash in canonical])
        expect(reader.by_producer(producer, canonical_only=False), own)
        assert reader.count_by_producer(producer, canonical_only=False) == len(own)
    assert model.tip is not None
    for number in range(max(0, (base - origin) // epoch), (model.tip.height - origin) // epoch + 2):
        first = origin + number * epoch
        wanted = [model.blocks[each] for each in model.canonical if first <= model.blocks[each].height < first + epoch]
        expect(reader.epoch(number), wanted)
    for each in model.canonical:
        height = model.blocks[each].height
        assert reader.epoch_of(height) == ((height - origin) // epoch if height >= origin else None)
    _relations(reader, model)


def _relations(reader: BlockReader, model: Model) -> None:
    for block_hash, block in model.blocks.items():
        info = reader.load(block_hash)
        children = {child.hash for child in reader.children(block_hash)}
        assert children == {other.hash for other in model.blocks.values() if other.parent == block_hash}
        path = model.path(block_hash)
        assert [above.hash for above in reader.branch(block_hash)] == path[::-1]
        for height in (-1, model.root_height - 1, model.root_height, block.height - 1, block.height, block.height + 1):
            above = reader.ancestor(info, height)
            index = height - model.root_height
            assert (above.hash if above else None) == (path[index] if 0 <= index < len(path) else None)


def test_ranges_of_heights() -> None:
    store, _ = both([(0, 1, b"a", 1)] * 9, 250)
    for start, stop in (
        (None, None),
        (252, 257),
        (256, None),
        (None, 256),
        (257, 252),
        (-5, 251),
        (0, 2**70),
        (2**70, None),
    ):
        found = [info.height for info in store.blocks.canonical(start, stop)]
        assert found == [
            height for height in range(250, 260) if (start or 0) <= height < (2**71 if stop is None else stop)
        ]
        assert [info.height for info in store.blocks.canonical(start, stop, reverse=True)] == found[::-1]
    for height in (-1, 249, 260, 2**63, 2**64 - 1, 2**64, 2**70):
        assert store.blocks.at(height) is None
        assert store.blocks.competitors(height) == []
    with pytest.raises(InvalidInputError):
        store.blocks.epoch(0)
    assert store.blocks.epoch_of(255) is None


def test_an_epoch_below_zero_is_refused() -> None:
    store, _ = both([], 0, epoch=4)
    with pytest.raises(InvalidInputError):
        store.blocks.epoch(-1)


def test_unknown_blocks() -> None:
    store, _ = both([], 0)
    nobody = hash_of("nobody")
    assert store.blocks.get(nobody) is None
    assert store.blocks.status(nobody) is None
    assert store.blocks.orphan(nobody) is None
    assert not store.has(nobody)
    for call in (store.blocks.load, store.blocks.children, store.draft, lambda each: next(store.blocks.branch(each))):
        with pytest.raises(BlockNotFound):
            call(nobody)


def test_bytes_come_back_as_they_were_given() -> None:
    store = open_quick("memory:")
    bodies: list[bytes | None] = [None, b"", b"x", BODY * 50, bytes(100_000)]
    parent = None
    for number, body in enumerate(bodies):
        for extra in (None, b"", b"receipts" * 100):
            block = Block(
                hash_of(number, extra),
                parent.hash if parent else bytes(32),
                parent.height + 1 if parent else 0,
                b"" if number % 2 else b"header" * 30,
                body,
                extra=extra,
            )
            store.add(block)
            parent = block
            info = store.blocks.load(block.hash)
            assert store.blocks.block(info) == block
            assert (store.blocks.header(info), store.blocks.body(info), store.blocks.extra(info)) == (
                block.header,
                block.body,
                block.extra,
            )


def test_a_snapshot_does_not_move(tmp_path: Path) -> None:
    with open_quick(f"sqlite:{tmp_path}") as store:
        blocks = chain_of(None, 5)
        model = Model()
        for block in blocks:
            store.add(block)
            model.add(block)
        store.flush()
        with store.snapshot() as before:
            frozen = model.copy()
            rivals = chain_of(blocks[1], 6, "rival")
            for block in rivals:
                assert store.add(block).status is model.add(block)
            store.finalize(3)
            model.finalize(3)
            assert_store(store, model)
            assert_blocks(before.blocks, frozen)
            store.flush()
            with store.snapshot() as between:
                assert_blocks(between.blocks, model)
                assert_blocks(before.blocks, frozen)
                middle = model.copy()
                store.reorg(rivals[2].hash, reason="x")
                model.reorg(rivals[2].hash, "x")
                store.flush()
                assert_blocks(between.blocks, middle)
            assert (before.tip and before.tip.hash, before.finalized) == (blocks[4].hash, None)
            assert_blocks(before.blocks, frozen)
            assert before.blocks.get(rivals[0].hash) is None
        assert_store(store, model)


def test_blocks_are_asked_for_by_bytes_and_by_numbers() -> None:
    with open_quick("memory:") as store:
        for ask in (store.blocks.at, store.blocks.hash_at):
            for height in (1.0, "1", None, True):
                with pytest.raises(InvalidInputError):
                    ask(height)  # type: ignore[arg-type]  # that is the point
        for look in (store.blocks.get, store.blocks.load):
            for block_hash in (None, "ab", 5):
                with pytest.raises(InvalidInputError):
                    look(block_hash)  # type: ignore[arg-type]  # as above
