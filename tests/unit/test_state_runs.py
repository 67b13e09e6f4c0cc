"""Executed blocks that come together share frames, and the store is the same as if they had come one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import holdfast
from holdfast import Store
from holdfast.errors import HoldfastError, IndexFailed, InvalidBlock, LimitExceeded, RootMismatch
from holdfast.recovery.verify import verify_store
from holdfast.state.api import MutableState
from holdfast.store.chain import Ancestry, ChainSpec, CustomChain
from holdfast.store.indexes import index
from holdfast.types import ZERO_HASH, AddStatus, Block, BlockInfo
from tests.unit.state_support import root_of, writer_backend
from tests.unit.store_support import quick

LARGE = 70_000
KEYS = (b"a", b"b", b"c/1", b"c/2")


class Reading(CustomChain):
    """Each word of a body is an operation on the state, and what it reads goes into the state and into the extra."""

    def __init__(self) -> None:
        super().__init__(ChainSpec(name="custom"))
        self.parents: list[BlockInfo | None] = []
        self.drafts: list[MutableState] = []

    def validate(self, block: Block, parent: BlockInfo | None, ancestry: Ancestry) -> None:
        if parent is not None:
            assert ancestry.info(parent.hash) == parent
        if block.producer == b"bad":
            raise InvalidBlock("marked as bad", hash=block.hash)

    def execute(self, block: Block, parent: BlockInfo | None, state: MutableState) -> bytes | None:
        self.parents.append(parent)
        self.drafts.append(state)
        heard = []
        for word in (block.body or b"").split():
            name, key = word[:1], word[1:]
            if name == b"+":
                state[key] = b"%d of " % block.height + block.hash
            elif name == b"=":
                state[key] = b"fixed"
            elif name == b"-":
                del state[key]
            elif name == b"!":  # too long for the tree
                state[key] = block.hash * (LARGE // 32)
            elif name == b"?":
                heard.append(repr((state.get(key or b"a"), state.get_many(KEYS), list(state.scan(key)))).encode())
        if not heard:
            return None
        state[b"heard"] = digest = sha256(b"".join(heard)).digest()
        return digest

    def state_root(self, block: Block) -> bytes | None:
        return block.header if len(block.header) == 32 else None


def following(parent: Block | None, body: bytes, *, name: bytes = b"", work: int = 1, header: bytes = b"") -> Block:
    above = parent.hash if parent is not None else ZERO_HASH
    height = parent.height + 1 if parent is not None else 0
    own = sha256(above + name + body + header).digest()
    return Block(own, above, height, header, body, time=height, work=work)


def line(bodies: list[bytes], parent: Block | None = None, **fields: object) -> list[Block]:
    """Blocks with these bodies, one on the other."""
    blocks: list[Block] = []
    for body in bodies:
        parent = following(parent, body, **fields)  # type: ignore[arg-type]
        blocks.append(parent)
    return blocks


def opened(url: str | Path = "memory:", **fields: object) -> Store:
    return holdfast.open(url, chain=Reading(), settings=quick(max_reorg_depth=200, **fields), indexes=[_WORDS])


@index("words", version=1)
def _WORDS(block: Block) -> Iterator[tuple[bytes, bytes]]:
    for word in (block.body or b"").split():
        yield word, block.height.to_bytes(8, "big")


def everything(store: Store) -> object:
    """What readers can see, but times and frame numbers: state, roots, history, index, blocks."""
    infos = list(store.blocks.canonical())
    words = store.index("words")
    return (
        [(info.hash, info.state_root, info.total_work, store.blocks.block(info)) for info in infos],
        [info.executed is not None for info in infos],
        dict(store.state.scan()),
        store.state.root,
        [dict(store.state.at(info.height).scan()) for info in infos],
        list(words.items()),
        sorted((info.hash, info.reason, info.was_canonical) for info in store.blocks.orphans()),
        store.blocks.statistics(),
    )


def assert_proofs(store: Store) -> None:
    """Each key proves its value, or its absence, at each height."""
    for info in store.blocks.canonical():
        assert info.state_root is not None
        values = dict(store.state.at(info.height).scan())
        for key in KEYS:
            store.state.prove(key, height=info.height).verify(info.state_root, key, values.get(key))


def frames_of(store: Store) -> list[int]:
    """The frame of each canonical block."""
    return [info.seq for info in store.blocks.canonical()]


operations = st.sampled_from([b"+a", b"+b", b"-a", b"+c/1", b"+c/2", b"-c/1", b"!b", b"?b", b"?c/", b"?"])
bodies = st.lists(operations, max_size=4).map(b" ".join)


@given(data=st.data())
def test_a_run_is_the_same_as_one_by_one(data: st.DataObject) -> None:
    made = line(data.draw(st.lists(bodies, min_size=1, max_size=12), label="bodies"))
    fork = made[data.draw(st.integers(0, len(made) - 1), label="fork")]
    side = line(data.draw(st.lists(bodies, min_size=1, max_size=4), label="side"), fork, name=b"side", work=5)
    with opened() as many, opened() as single:
        assert all(result.status is AddStatus.EXTENDED for result in many.add_many(made))
        for block in made:
            single.add(block)
        assert len(set(frames_of(many))) == 1
        assert everything(many) == everything(single)
        assert_proofs(many)
        many.add_many(side)  # it leaves the run in its middle
        for block in side:
            single.add(block)
        assert everything(many) == everything(single)
        assert_proofs(many)


def test_runs_share_frames_and_the_store_holds_what_it_held_one_by_one(tmp_path: Path) -> None:
    made = line([b"+k%d -k%d ?k +last" % (number, number - 3) for number in range(75)])
    with opened(tmp_path / "many") as many, opened(tmp_path / "single") as single:
        many.add_many(made)
        for block in made:
            single.add(block)
        assert len(set(frames_of(many))) == 5  # 16 blocks a frame
        assert len(set(frames_of(single))) == 75
        expected = everything(single)
        assert everything(many) == expected
        many.flush()  # undo and history come from the engine now
        assert everything(many) == expected
        many.reorg(made[40].hash)
        single.reorg(made[40].hash)
        assert everything(many) == everything(single)
        many.reorg(made[74].hash)
        assert many.state.root == many.blocks.load(made[74].hash).state_root
    for level in ("views", "state", "full"):
        assert verify_store(tmp_path / "many", level=level).ok
    with opened(tmp_path / "many") as many:
        seen = dict(many.state.scan())
        many.rebuild()
        assert dict(many.state.scan()) == seen
        assert_proofs(many)


@pytest.mark.parametrize(("refused", "error"), [("rule", InvalidBlock), ("root", RootMismatch)])
def test_blocks_before_a_refused_one_are_stored(refused: str, error: type[HoldfastError]) -> None:
    made = line([b"+a", b"?a", b"+b -a"])
    bad = following(made[-1], b"+c/1", header=b"" if refused == "rule" else bytes(32))
    if refused == "rule":
        bad = replace(bad, producer=b"bad")
    with opened() as store, opened() as single:
        with pytest.raises(error):
            store.add_many([*made, bad, *line([b"+c/2"], bad)])
        for block in made:
            single.add(block)
        assert everything(store) == everything(single)
        store.add_many(line([b"?"], made[-1]))


def test_a_claimed_root_is_that_after_its_own_block() -> None:
    first = following(None, b"=a", header=root_of({b"a": b"fixed"}))
    second = following(first, b"=b", header=root_of({b"a": b"fixed", b"b": b"fixed"}))
    with opened() as store:
        results = store.add_many([first, second])
        assert [result.block and result.block.state_root for result in results] == [first.header, second.header]
        assert len(set(frames_of(store))) == 1


def test_a_block_that_does_not_fit_is_refused_and_those_before_it_are_stored() -> None:
    wide = b" ".join(b"+%d" % number for number in range(3000))
    made = line([b"+a", b"?a", wide, b"+b"])
    with opened() as store, opened() as single:
        for each in (store, single):
            writer_backend(each).writer._tree_bytes_max = 64 * 1024  # less than the settings allow
        with pytest.raises(LimitExceeded):
            store.add_many(made)
        for block in made[:2]:
            single.add(block)
        with pytest.raises(LimitExceeded):
            single.add(made[2])
        assert everything(store) == everything(single)
        assert store.tip is not None
        assert store.tip.height == 1


def test_a_run_ends_where_its_changes_fill_a_frame() -> None:
    made = line([b" ".join(b"!%d" % number for number in range(20)) for _ in range(6)])
    with opened() as store:
        store.add_many(made)
        counts = [frames_of(store).count(seq) for seq in sorted(set(frames_of(store)))]
        assert counts == [3, 3]  # each changes 1.4 MB, and a run ends with the block that reaches 4 MiB
        assert_proofs(store)


def test_an_index_that_refuses_a_block_refuses_no_block_before_it() -> None:
    @index("picky", version=1)
    def picky(block: Block) -> Iterator[tuple[bytes, bytes]]:
        if block.height == 2:
            raise ValueError("not this one")
        yield b"key", b"value"

    made = line([b"+a", b"?a", b"+b", b"+c/1"])
    with holdfast.open("memory:", chain=Reading(), settings=quick(), indexes=[picky]) as store:
        with pytest.raises(IndexFailed):
            store.add_many(made)
        assert store.tip is not None
        assert store.tip.hash == made[1].hash
        assert b"heard" in store.state


def test_the_chain_is_given_the_parent_and_a_draft_that_ends_with_its_block() -> None:
    chain = Reading()
    made = line([b"+a", b"?a", b"?a"])
    with holdfast.open("memory:", chain=chain, settings=quick()) as store:
        store.add_many(made)
        assert [parent and parent.hash for parent in chain.parents] == [None, made[0].hash, made[1].hash]
        stored = [store.blocks.load(block.hash) for block in made]
        assert [parent and parent.state_root for parent in chain.parents[1:]] == [
            info.state_root for info in stored[:2]
        ]
        for state in chain.drafts:
            with pytest.raises(HoldfastError):
                state[b"late"] = b"value"
        assert b"late" not in store.state
