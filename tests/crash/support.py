"""A model of a store that grows by itself from a seed, the checks against it, and the client of the crash agent.

Operation ``n`` of a seed depends on the seed, on ``n`` and on the model before it, so every process that knows how many
operations were acknowledged knows what the store must hold.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Self

import holdfast
from holdfast import Settings, Store
from holdfast._fs import FileSystem
from holdfast.errors import HoldfastError, PrunedError, SafetyStateMissing
from holdfast.state.api import MutableState
from holdfast.store.chain import CustomChain
from holdfast.store.indexes import IndexSpec
from holdfast.types import ZERO_HASH, Block, BlockInfo
from tests.crash.matrix import met
from tests.unit.state_support import Changes, Values, after, root_of, writer_backend

ROOT = Path(__file__).resolve().parents[2]
ENGINES = ("rocksdb", "lmdb", "sqlite")
VALIDATOR = b"validator"
SECOND = b"second thread"
SIDE = "side branch: not preferred by the fork choice"
REPLACED = "reorganisation: a preferred branch replaced it"
DEPTH = 24
NOISE = hashlib.shake_128(b"noise").digest(200 * 1024)


# -- what the store must hold ---------------------------------------------------------------------------------------


class Op(NamedTuple):
    """One operation: what to call, and with what."""

    kind: str
    block: Block | None = None
    hash: bytes = ZERO_HASH
    height: int = 0


class Orphan(NamedTuple):
    reason: str
    competing: bytes | None
    was_canonical: bool


class Picture(NamedTuple):
    """Everything that tells two moments of a store apart."""

    canonical: tuple[bytes, ...]
    orphans: dict[bytes, Orphan]
    finalized: int | None
    safety: tuple[tuple[int, ...], bytes] | None
    root: bytes


def changes_of(block_hash: bytes) -> Changes:
    """What a block does to the state, a function of its hash: writes and removals, seldom a value above 64 KiB."""
    if block_hash[6] % 8 == 0:
        return {}
    changes: dict[bytes, bytes | None] = {}
    for at in range(block_hash[7] % 8):
        number = block_hash[8 + at] % 40
        key = b"key/%d" % number if number % 4 else bytes(number) + b"\x00"
        length = block_hash[16 + at]
        changes[key] = None if length < 60 else NOISE[block_hash[at] * 64 :][:length]
    if block_hash[6] % 16 == 1:
        changes[b"big/%d" % (block_hash[7] % 3)] = NOISE[block_hash[1] * 8 :][: 66_000 + block_hash[2]]
    return changes


class StateChain(CustomChain):
    """Received blocks change the state, too."""

    def execute(self, block: Block, parent: BlockInfo | None, state: MutableState) -> bytes | None:
        state.update(changes_of(block.hash))
        return None

    def state_root(self, block: Block) -> bytes | None:
        return None


def make_block(seed: int, number: int, part: int, parent: Block | None, *, work: int, body_max: int = 200_000) -> Block:
    """Block ``part`` of operation ``number``: a header of 80 bytes, a body of up to 8 KiB, or 180 KB, or none."""
    block_hash = hashlib.sha256(f"{seed} {number} {part}".encode()).digest()
    size = int.from_bytes(block_hash[:4], "big") % (8192 if block_hash[5] % 4 else 180_000)
    at = block_hash[2] * 64
    return Block(
        block_hash,
        parent.hash if parent is not None else ZERO_HASH,
        parent.height + 1 if parent is not None else 0,
        header=block_hash + NOISE[at : at + 48],
        body=None if block_hash[3] < 16 else NOISE[at : at + min(size, body_max)],
        time=number,
        work=work,
        producer=bytes((0, number % 5)),
        extra=block_hash[:5] if block_hash[4] < 99 else None,
    )


@dataclass
class Model:
    """The store after ``number`` operations of ``seed``; op 1 is its root."""

    seed: int
    number: int = 0
    blocks: dict[bytes, Block] = field(default_factory=dict)
    total: dict[bytes, int] = field(default_factory=dict)
    canonical: list[bytes] = field(default_factory=list)
    orphans: dict[bytes, Orphan] = field(default_factory=dict)
    recent: list[bytes] = field(default_factory=list)
    states: dict[bytes, Values] = field(default_factory=dict)
    """The state after each block."""
    finalized: int | None = None
    floor: int = 0
    safety: tuple[tuple[int, ...], bytes] | None = None
    plan: dict[int, str] = field(default_factory=dict)
    """Operations by number whose kind is not left to chance."""
    body_max: int = 200_000

    def copy(self) -> Model:
        return replace(
            self,
            blocks=dict(self.blocks),
            total=dict(self.total),
            canonical=list(self.canonical),
            orphans=dict(self.orphans),
            recent=list(self.recent),
            states=dict(self.states),
        )

    @property
    def tip(self) -> Block:
        return self.blocks[self.canonical[-1]]

    def picture(self) -> Picture:
        return Picture(tuple(self.canonical), dict(self.orphans), self.finalized, self.safety, root_of(self.state))

    @property
    def state(self) -> Values:
        """The state at the tip."""
        return self.states[self.canonical[-1]] if self.canonical else {}

    def at(self, height: int) -> bytes | None:
        return self.canonical[height] if 0 <= height < len(self.canonical) else None

    def next_op(self) -> Op:
        """Operation ``number + 1``."""
        number = self.number + 1
        if not self.canonical:
            return Op("add", self._block(None, 1))
        rng = random.Random(self.seed * 1_000_003 + number)
        if number in self.plan:
            return self.op_of(self.plan[number], rng)
        kind = rng.choices(
            ("append", "commit", "side", "grow", "overtake", "reorg", "orphan", "finalize", "safety", "flush"),
            (40, 15, 10, 8, 6, 6, 3, 4, 5, 3),
        )[0]
        return self.op_of(kind, rng)

    def op_of(self, kind: str, rng: random.Random) -> Op:
        """An operation of this kind if it can be done now, else an append."""
        number = self.number + 1
        tip = self.tip
        room = min(6, tip.height - self.floor)
        if kind in ("side", "overtake") and room > 0:
            depth = rng.randint(1, room)
            parent = self.blocks[self.canonical[tip.height - depth]]
            work = 1 if kind == "side" else self.total[tip.hash] - self.total[parent.hash] + 1
            return Op("add", self._block(parent, work))
        if kind in ("grow", "reorg"):
            found = [each for each in self.recent[-12:] if each in self.orphans and self.fork(each) >= self.floor]
            if found:
                chosen = rng.choice(found)
                if kind == "reorg":
                    return Op("reorg", hash=chosen)
                return Op("add", self._block(self.blocks[chosen], rng.randint(1, 2)))
        if kind == "orphan" and room > 1:
            return Op("orphan", hash=self.canonical[tip.height - rng.randint(0, min(2, room - 1))])
        if kind == "finalize":
            height = tip.height - rng.randint(3, 8)
            if height > (self.finalized if self.finalized is not None else 0):
                return Op("finalize", height=height)
        if kind == "big":
            return Op("add", replace(self._block(tip, 1), body=NOISE[:150_000]))
        if kind in ("safety", "flush", "commit", "prune"):
            block = self._block(tip, 1) if kind == "commit" else None
            return Op(kind, block, height=number)
        return Op("add", self._block(tip, 1))

    def _block(self, parent: Block | None, work: int) -> Block:
        return make_block(self.seed, self.number + 1, 0, parent, work=work, body_max=self.body_max)

    def fork(self, block_hash: bytes) -> int:
        """Height of the newest canonical block at or below ``block_hash``."""
        return self.path(block_hash)[0]

    def path(self, block_hash: bytes) -> tuple[int, list[bytes]]:
        """Fork height and the blocks above it, lowest first."""
        above: list[bytes] = []
        block = self.blocks[block_hash]
        while self.at(block.height) != block.hash:
            above.append(block.hash)
            block = self.blocks[block.parent]
        return block.height, above[::-1]

    def apply(self, op: Op) -> None:
        """``op`` happened."""
        self.number += 1
        block = op.block
        if block is not None:
            self._add(block)
        if op.kind == "reorg":
            self._switch(op.hash, "back to the other branch", op.hash)
        elif op.kind == "orphan":
            height = self.blocks[op.hash].height
            above = self.canonical[height + 1 :]
            self._switch(self.blocks[op.hash].parent, "found to be wrong", None)
            for each in above:
                self.orphans[each] = Orphan("descendant of an orphaned block: found to be wrong", None, True)
        elif op.kind == "finalize":
            self.finalized = op.height
            self.floor = max(self.floor, op.height)
        elif op.kind in ("safety", "commit"):
            self.safety = ((self.number, 7), payload_of(self.number))

    def _add(self, block: Block) -> None:
        self.blocks[block.hash] = block
        self.total[block.hash] = total = block.work + self.total.get(block.parent, 0)
        self.recent.append(block.hash)
        self.states[block.hash] = after(self.states.get(block.parent, {}), changes_of(block.hash))
        if not self.canonical or block.parent == self.canonical[-1]:
            self.canonical.append(block.hash)
        elif total > self.total[self.canonical[-1]]:
            self._switch(block.hash, REPLACED, block.hash)
        else:
            self.orphans[block.hash] = Orphan(SIDE, self.at(block.height), False)
        self.floor = max(self.floor, len(self.canonical) - 1 - DEPTH)

    def _switch(self, tip: bytes, reason: str, competing: bytes | None) -> None:
        fork, joined = self.path(tip)
        if not joined:
            competing = None
        for each in self.canonical[fork + 1 :]:
            self.orphans[each] = Orphan(reason, competing, True)
            self.recent.append(each)
        for each in joined:
            self.orphans.pop(each, None)
        self.canonical[fork + 1 :] = joined
        self.floor = max(self.floor, len(self.canonical) - 1 - DEPTH)

    def advance(self, number: int) -> Model:
        """This model, after ``number`` operations."""
        while self.number < number:
            self.apply(self.next_op())
        return self


def payload_of(number: int) -> bytes:
    """What is saved at safety position ``number``."""
    return b"vote %d" % number


def perform(store: Store, op: Op) -> None:
    """``op`` is done on the store, and durable."""
    if op.kind == "add":
        assert op.block is not None
        store.add(op.block, root_allowed=True)
    elif op.kind == "commit":
        assert op.block is not None
        block = op.block
        draft = store.draft()
        draft.state.update(changes_of(block.hash))
        store.commit(
            draft,
            hash=block.hash,
            header=block.header,
            body=block.body,
            time=block.time,
            work=block.work,
            producer=block.producer,
            extra=block.extra,
            safety=(VALIDATOR, (op.height, 7), payload_of(op.height)),
        )
    elif op.kind == "reorg":
        store.reorg(op.hash, reason="back to the other branch")
    elif op.kind == "orphan":
        store.orphan(op.hash, reason="found to be wrong")
    elif op.kind == "finalize":
        store.finalize(op.height)
    elif op.kind == "safety":
        store.safety.save(VALIDATOR, (op.height, 7), payload_of(op.height))
    elif op.kind == "flush":
        store.flush()
    elif op.kind == "prune":
        store.prune(blocks=1, every=4)
    else:
        raise ValueError(op.kind)


def by_producer(block: Block) -> Iterable[tuple[bytes, bytes]]:
    """Two rows for each block; keys with zero bytes in them."""
    return [(block.producer, block.hash), (b"\x00" + block.hash[:2], block.extra or b"")]


def by_prefix(block: Block) -> Iterable[tuple[bytes, bytes]]:
    """One row for each block."""
    return [(block.hash[:1], block.header[:40])]


BY_PRODUCER = IndexSpec("by_producer", 1, by_producer)
BY_PREFIX = IndexSpec("late", 1, by_prefix)


def settings(**fields: object) -> Settings:
    """A store that flushes, rolls and reorganises as often as it can."""
    given: dict[str, object] = {
        "flush_interval_seconds": 0.01,
        "segment_bytes_max": 1024 * 1024,
        "overlay_rows_max": 400,
        "max_reorg_depth": DEPTH,
        "cache_bytes": 1024 * 1024,
    }
    return Settings(**(given | fields))  # type: ignore[arg-type]


def open_store(
    url: str, *, late: bool = False, fs: FileSystem | None = None, read_only: bool = False, **fields: object
) -> Store:
    """The store of a crash test."""
    specs = [BY_PRODUCER, BY_PREFIX] if late else [BY_PRODUCER]
    given = settings(**fields)
    return holdfast.open(url, chain=StateChain(), settings=given, indexes=specs, fs=fs, read_only=read_only)


# -- checks ---------------------------------------------------------------------------------------------------------


def picture_of(store: Store) -> Picture:
    """What the store shows."""
    canonical = tuple(info.hash for info in store.blocks.canonical())
    tip = store.tip
    assert (tip.hash if tip is not None else None) == (canonical[-1] if canonical else None), "the tip is not the last"
    orphans = {
        each.hash: Orphan(each.reason, each.competing_hash, each.was_canonical) for each in store.blocks.orphans()
    }
    try:
        record = store.safety.load(VALIDATOR)
        safety = (record.position, record.payload)
    except SafetyStateMissing:
        safety = None
    return Picture(canonical, orphans, store.finalized, safety, store.state.root)


def second_position(store: Store) -> int:
    """How many records the second thread has saved."""
    try:
        record = store.safety.load(SECOND)
    except SafetyStateMissing:
        return 0
    assert record.payload == payload_of(record.position[0])
    return record.position[0]


def check_frontier(store: Store, model: Model, *, ahead: int = 1) -> int:
    """The store is the model, or the model after at most ``ahead`` more operations; the model is advanced to it."""
    found = picture_of(store)
    acked = model.number
    wanted = model.picture()
    first = wanted
    for _ in range(ahead):
        if found == wanted:
            break
        model.advance(model.number + 1)
        wanted = model.picture()
    assert found == wanted, f"after {acked} acknowledged operations: {difference(found, first)}"
    return model.number


def difference(found: Picture, wanted: Picture) -> str:
    """How two pictures differ, in short."""
    lines = []
    if found.canonical != wanted.canonical:
        same = sum(1 for _ in iterate_same(found.canonical, wanted.canonical))
        lines.append(f"canonical: {len(found.canonical)} found, {len(wanted.canonical)} wanted, equal up to {same}")
    if found.orphans != wanted.orphans:
        every = {*found.orphans, *wanted.orphans}
        keys = {each for each in every if found.orphans.get(each) != wanted.orphans.get(each)}
        some = [(each.hex()[:8], found.orphans.get(each), wanted.orphans.get(each)) for each in sorted(keys)[:3]]
        lines.append(f"{len(keys)} orphans differ: {some}")
    if found.finalized != wanted.finalized:
        lines.append(f"finalized: {found.finalized} found, {wanted.finalized} wanted")
    if found.safety != wanted.safety:
        lines.append(f"safety: {found.safety} found, {wanted.safety} wanted")
    if found.root != wanted.root:
        lines.append(f"root of the state: {found.root.hex()} found, {wanted.root.hex()} wanted")
    return "; ".join(lines) or "equal"


def iterate_same(left: Iterable[bytes], right: Iterable[bytes]) -> Iterator[bytes]:
    """The common beginning."""
    for one, other in zip(left, right, strict=False):
        if one != other:
            return
        yield one


def check_deep(store: Store, model: Model, *, newest: int = 60, sample: int = 40) -> None:
    """The newest blocks and a sample have their bytes, work and neighbours; indexes and counters are recomputed."""
    hashes = list(model.blocks)
    rng = random.Random(model.number)
    chosen = {*hashes[-newest:], *rng.sample(hashes, min(sample, len(hashes)))}
    for each in chosen:
        info = store.blocks.load(each)
        assert store.blocks.block(info) == model.blocks[each], "the bytes of a block are wrong"
        assert info.total_work == model.total[each]
        assert store.blocks.is_canonical(info) == (model.at(info.height) == each)
        if info.parent != ZERO_HASH:
            assert each in {child.hash for child in store.blocks.children(info.parent)}
    check_state(store, model)
    figures = store.blocks.statistics()
    assert figures["blocks"] == len(model.blocks)
    assert figures["orphans"] == len(model.orphans)
    assert figures["reorg_floor"] == (model.floor if model.canonical else None)
    for producer in {model.blocks[each].producer for each in list(chosen)[:2]}:
        count = sum(1 for each in model.canonical if model.blocks[each].producer == producer)
        assert store.blocks.count_by_producer(producer) == count
    assert store.wait_for_indexes(30)
    for spec in (BY_PRODUCER, BY_PREFIX):
        if spec.name in {status.name for status in store.indexes() if status.status == "ready"}:
            wanted = sorted(
                (key, height, value)
                for height, each in enumerate(model.canonical)
                for key, value in spec.function(model.blocks[each])
            )
            found = sorted(store.index(spec.name).items())
            extra, missing = sorted({*found} - {*wanted}), sorted({*wanted} - {*found})
            heights = f"extra at {[row[1] for row in extra]}, missing at {[row[1] for row in missing]}"
            assert found == wanted, f"index {spec.name}: {heights}, tip {len(model.canonical) - 1}"


def check_state(store: Store, model: Model) -> None:
    """Rows and tree of the state at the tip, its proofs, the heights below it and the newest side branches."""
    if not model.canonical:
        return
    assert dict(store.state.scan()) == model.state, "the rows of the state are wrong"
    tree = writer_backend(store).writer.tree
    assert (tree.root, tree.count) == (root_of(model.state), len(model.state)), "the tree of the state is wrong"
    for key in (b"key/1", b"key/%d" % (model.number % 40), b"absent/%d" % model.number):
        proof = store.state.prove(key)
        assert proof.value == model.state.get(key)
        proof.verify(root_of(model.state), key, model.state.get(key))
    tip = len(model.canonical) - 1
    for height in {tip, max(0, tip - 1), max(0, tip - 5), max(model.floor, tip - DEPTH)}:
        values = model.states[model.canonical[height]]
        state = store.state.at(height)
        assert dict(state.scan()) == values, f"the state at height {height}, below the tip at {tip}, is wrong"
        assert state.root == root_of(values)
    side = [each for each in model.recent[-6:] if each in model.orphans and model.fork(each) >= model.floor]
    for each in side[-2:]:
        draft = store.draft(each)
        assert dict(draft.state.scan()) == model.states[each], "the state of a side branch is wrong"
        assert draft.state.root() == root_of(model.states[each])
    if model.floor > 2:
        try:
            deep = dict(store.state.at(model.floor // 2).scan())
        except PrunedError:
            return
        assert deep == model.states[model.canonical[model.floor // 2]], "the state of an old height is wrong"


# -- the agent ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What became of a child: its lines, how it ended, and whether the agent killed it."""

    lines: tuple[str, ...]
    status: int
    killed: bool
    seconds: float
    hung: bool

    @property
    def failure(self) -> str | None:
        """The traceback of the child, or how it died if that was not wanted."""
        for line in self.lines:
            if line.startswith("!"):
                return str(json.loads(line[1:]))
        if self.hung:
            return "the child hung"
        if self.status and not self.killed and not os.WIFSIGNALED(self.status):
            return f"the child ended with status {self.status}"
        return None

    @property
    def signal(self) -> int:
        """The signal that ended the child, or 0."""
        return os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else 0

    def values(self, letter: str) -> list[int]:
        """The numbers behind lines that begin with ``letter``."""
        return [int(line.split()[1]) for line in self.lines if line.startswith(f"{letter} ")]

    def has(self, letter: str) -> bool:
        return any(line.split(" ")[0] == letter for line in self.lines)

    def text(self, letter: str) -> str:
        """What stands behind the last line that begins with ``letter``."""
        return next((line[2:] for line in reversed(self.lines) if line.startswith(f"{letter} ")), "")


class Agent:
    """A process that never opens a store itself: it forks a child for each task, so that children start in no time."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        environment["PYTHONPATH"] = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.agent"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment,
            text=True,
        )

    def run(
        self,
        task: str,
        arguments: dict[str, object],
        *,
        kill_after: tuple[str, float] | None = None,
        deadline: float = 60.0,
    ) -> Outcome:
        """A child has run ``task``; it was killed ``kill_after[1]`` seconds after its first line ``kill_after[0]``."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        request = {"task": task, "kill_after": kill_after, "deadline": deadline, "arguments": arguments}
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, "the agent died"
        found = json.loads(answer)
        return Outcome(tuple(found["lines"]), found["status"], found["killed"], found["seconds"], found["hung"])

    def must(self, task: str, arguments: dict[str, object]) -> Outcome:
        """As ``run`` without a kill; fails unless the child ended well."""
        outcome = self.run(task, arguments)
        assert outcome.failure is None, outcome.failure
        assert outcome.status == 0, outcome
        return outcome

    def close(self) -> None:
        """The agent has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_details: object) -> None:
        self.close()


class Place:
    """A directory that is put back to how a store was, with its LOCK and journal/ kept: a copy would be fenced."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images: dict[str, dict[str, bytes]] = {"none": {}}

    def keep(self, name: str) -> None:
        """The store as it stands is the image ``name``."""
        self.images[name] = self.files()

    def files(self) -> dict[str, bytes]:
        """Every file as it is now."""
        return {str(path.relative_to(self.root)): path.read_bytes() for path in self.root.rglob("*") if path.is_file()}

    def restore(self, name: str) -> None:
        """The store is the image again."""
        image = self.images[name]
        if not image:
            shutil.rmtree(self.root, ignore_errors=True)
            return
        for path in sorted(self.root.rglob("*"), reverse=True):
            kept = str(path.relative_to(self.root))
            if path.is_file() and kept != "LOCK":
                path.unlink()
            elif path.is_dir() and kept != "journal":
                path.rmdir()
        for kept, data in image.items():
            path = self.root / kept
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def report(
    title: str, counts: Counter[str], *, at_least: dict[str, int], rows: Mapping[int, str] = MappingProxyType({})
) -> None:
    """The counts are printed, and no fault was missed. ``rows``: the count of each row of the fault matrix."""
    print(f"{title}: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    for name, least in at_least.items():
        assert counts[name] >= least, f"{title}: '{name}' was met {counts[name]} times, wanted {least}: no teeth"
    for row, name in rows.items():
        met(row, counts[name])


def flipped(data: bytes, rng: random.Random, count: int) -> Iterator[bytes]:
    """The bytes with one bit flipped, cut, with a byte gone or doubled."""
    for at in rng.sample(range(len(data)), min(count, len(data))):
        yield data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        yield data[:at]
        yield data[:at] + data[at + 1 :]
        yield data[:at] + data[at : at + 1] + data[at:]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def typed(action: Callable[[], object]) -> HoldfastError | None:
    """The typed error of ``action``, if it raised one."""
    try:
        action()
    except HoldfastError as error:
        return error
    return None
