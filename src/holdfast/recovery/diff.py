"""``diff``: where two stores part, which blocks differ there, and which keys of the state.

What is compared:
    * facts of the two chains, and their tips;
    * the canonical chains, by binary search over their hashes: a block names its parent, so where two chains have the
      same block they have the same blocks below it. O(log n) reads;
    * the recorded roots of the blocks that both have, by binary search too: a height at which they turn from equal to
      different. There the *same* block was executed differently in one of the stores;
    * the states after one height, by walking down both trees and leaving out what is equal (see ``descent``).

Invariants:
    * Nothing is changed. Each chain is read as of one moment, each state is that of one block, also beside a writer.
    * A value that is listed has the leaf that the tree has; rows or a tree that do not fit the recorded root are
      ``CorruptionError`` that names the store.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from hashlib import sha256
from typing import NamedTuple, Protocol, runtime_checkable

from .._fs import RealFileSystem
from .._keys import StoreKey, using_key, without_key
from ..blocks.reader import BlockReader
from ..blocks.state import has_root, root_after
from ..errors import (
    BlockNotFound,
    CorruptionError,
    ForeignStore,
    HoldfastError,
    InvalidInputError,
    PrunedError,
    Recovery,
    StateError,
)
from ..limits import HEIGHT_MAX
from ..merkle.api import SCHEMES, Scheme, Tree
from ..merkle.prove import Lookup, held_key, held_value
from ..state.proof import RowLookup
from ..state.reader import StateReader, check_key
from ..store.chain import ChainSpec
from ..store.factory import open_store
from ..store.opening import read_identity
from ..store.states import held_state, last_change
from ..store.store import Store
from ..store.unlocking import key_for
from ..store.url import parse_url
from ..types import BlockInfo
from .descent import Descent, LeafDifference
from .diff_report import BlockDifference, BlockFacts, DiffReport, KeyDifference, Relation, SeenValue, StateDifference

__all__ = ["KEYS_MAX", "DiffSource", "Moment", "StateSide", "StoreSource", "StoredBlock", "diff"]

KEYS_MAX = 100_000
"""Keys that one call lists at most."""


# -- what is compared -----------------------------------------------------------------------------------------------


class StoredBlock(NamedTuple):
    """A block and its bytes."""

    info: BlockInfo
    header: bytes
    body: bytes | None
    extra: bytes | None
    kept: bool = True
    """False: retention gave up its body or its extra, and neither is told."""


class Moment(Protocol):
    """The canonical chain of a source at one moment."""

    @property
    def tip(self) -> BlockInfo | None:
        """Its head; ``None`` if there is no block."""

    @property
    def lowest(self) -> int:
        """Height of its first block."""

    def info_at(self, height: int) -> BlockInfo | None:
        """The canonical block at ``height``."""

    def block_at(self, height: int) -> StoredBlock | None:
        """The canonical block at ``height`` with its bytes."""


class StateSide(Protocol):
    """The state after one block."""

    @property
    def tree(self) -> Tree:
        """Its tree."""

    @property
    def lookup(self) -> Lookup:
        """The rows behind the tree."""

    def last_change(self, key: bytes) -> BlockInfo | None:
        """The block that last changed ``key``; ``None`` if that is not known any more."""


@runtime_checkable
class DiffSource(Protocol):
    """Whatever can be compared: a store, or a backup (``holdfast.backup.BackupSource``)."""

    name: str
    """As people know it: its place."""

    @property
    def spec(self) -> ChainSpec:
        """The facts of its chain."""

    def moment(self) -> AbstractContextManager[Moment]:
        """The chain as of now."""

    def oldest_state(self) -> int | None:
        """The lowest height whose tree can be had; ``None`` if there is no state."""

    def state(self, info: BlockInfo) -> AbstractContextManager[StateSide]:
        """The state after this canonical block. Raises ``PrunedError``, ``BlockNotFound``."""


class _StoreMoment:
    def __init__(self, blocks: BlockReader, tip: BlockInfo | None) -> None:
        self._blocks = blocks
        self.tip = tip
        self.lowest = blocks.statistics()["root_height"] or 0

    def info_at(self, height: int) -> BlockInfo | None:
        return self._blocks.at(height)

    def block_at(self, height: int) -> StoredBlock | None:
        info = self._blocks.at(height)
        if info is None:
            return None
        header = self._blocks.header(info)
        try:
            return StoredBlock(info, header, self._blocks.body(info), self._blocks.extra(info))
        except PrunedError:
            return StoredBlock(info, header, None, None, kept=False)


class _StoreSide:
    def __init__(self, store: Store, info: BlockInfo, tree: Tree, lookup: Lookup) -> None:
        self._store = store
        self._info = info
        self.tree = tree
        self.lookup = lookup

    def last_change(self, key: bytes) -> BlockInfo | None:
        try:
            height = last_change(self._store.state, key, self._info.height)
        except (PrunedError, StateError):
            return None
        return None if height is None else self._store.blocks.at(height)


class StoreSource:
    """An open store, as ``diff`` reads it. It stays the caller's."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.name = str(store.path or store.url)

    @property
    def spec(self) -> ChainSpec:
        return self._store.spec

    @contextlib.contextmanager
    def moment(self) -> Iterator[Moment]:
        with self._store.snapshot() as now:
            yield _StoreMoment(now.blocks, now.tip)

    def oldest_state(self) -> int | None:
        tip = self._store.tip
        if tip is None or tip.state_root is None:
            return None
        found = self._store.state.statistics(tree=False)["proof_floor"]
        assert found is None or isinstance(found, int)
        return found

    @contextlib.contextmanager
    def state(self, info: BlockInfo) -> Iterator[StateSide]:
        with held_state(self._store.state, info.hash) as held:
            yield _StoreSide(self._store, info, held.tree, RowLookup(StateReader(held.rows)))


# -- the work -------------------------------------------------------------------------------------------------------

Place = str | os.PathLike[str] | Store | DiffSource


def diff(
    a: Place,
    b: Place,
    *,
    state: bool = False,
    at_height: int | None = None,
    limit: int = 1000,
    from_key: bytes | None = None,
    key: bytes | StoreKey | None = None,
) -> DiffReport:
    """Where two stores differ. Urls are opened read-only, also beside a process that writes; nothing is changed.

    Args:
        a: one store: a url or path, an open ``Store``, or a ``DiffSource``.
        b: the other one.
        state: compare the keys of the state too: after the first block that differs; where the chains do not differ,
            after the block whose roots differ; else after the newest block that both have. If that height lies below
            what both can still prove, the lowest one that they can is taken, and a note says so.
        at_height: compare the states after the canonical blocks at this height instead.
        limit: keys that are listed at most, 1 to ``KEYS_MAX``.
        from_key: where to go on: the ``next_key`` of an earlier answer.
        key: that of the stores that are encrypted, as for ``open``. If they have two, give open stores.
    Raises:
        StoreNotFound, CorruptionError, FormatTooNew: a store cannot be read; the error names it.
        ForeignStore: the states are of different schemes. StateError: a store holds no state.
        BlockNotFound: not both have a block at ``at_height``. PrunedError: not both have its tree any more.
    """
    if type(limit) is not int or not 1 <= limit <= KEYS_MAX:
        raise InvalidInputError("the number of keys to list is out of range", found=limit, expected=f"1 to {KEYS_MAX}")
    if at_height is not None and (type(at_height) is not int or not 0 <= at_height <= HEIGHT_MAX):
        raise InvalidInputError("a height is a whole number that is not negative", found=at_height)
    if from_key is not None:
        check_key(from_key)
    with contextlib.ExitStack() as stack:
        stack.enter_context(using_key(key))
        secret = key_for(None)
        pair = _Pair(_source(a, stack, secret), _source(b, stack, secret))
        if state or at_height is not None:
            _check_states(pair)
        with pair.a.moment() as one, pair.b.moment() as two:
            search = _Search(pair, one, two)
            report = _compare_chains(pair, search)
            if not state and at_height is None:
                return report
            chosen, note = _chosen(pair, search, report, at_height)
        found = _compare_states(pair, chosen, limit, from_key)
        return replace(report, state=found, notes=report.notes + note)


def _source(place: Place, stack: contextlib.ExitStack, key: StoreKey | None) -> DiffSource:
    if isinstance(place, Store):
        return StoreSource(place)
    if isinstance(place, str | os.PathLike):
        with _named(str(place)), without_key():
            root = parse_url(place).path
            plain = root is not None and read_identity(RealFileSystem(), root).encryption is None
            store = open_store(place, create=False, read_only=True, key=None if plain else key)
            return StoreSource(stack.enter_context(store))
    if not isinstance(place, DiffSource):
        raise InvalidInputError("a store is named by a path or a URL", found=repr(place))
    return place


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """An error inside says which of the two stores it is about."""
    try:
        yield
    except HoldfastError as error:
        error.context.setdefault("store", name)
        raise


class _Pair(NamedTuple):
    a: DiffSource
    b: DiffSource


_Infos = tuple[BlockInfo, BlockInfo]
_Choice = Callable[[int], "_Infos | None"]


class _Search:
    """Blocks of both sides by height, each looked up once."""

    def __init__(self, pair: _Pair, one: Moment, two: Moment) -> None:
        self._pair = pair
        self.sides = one, two
        self.low = max(one.lowest, two.lowest)
        """The lowest height that both chains have."""
        self.high = -1 if one.tip is None or two.tip is None else min(one.tip.height, two.tip.height)
        """The highest one; below ``low`` if there is none."""
        self._known: dict[int, _Infos] = {}

    @property
    def reads(self) -> int:
        return 2 * len(self._known)

    def at(self, height: int) -> _Infos:
        """The canonical blocks at a height that both chains have."""
        if height not in self._known:
            found = [self._info(side, source, height) for side, source in zip(self.sides, self._pair, strict=True)]
            self._known[height] = found[0], found[1]
        return self._known[height]

    def _info(self, side: Moment, source: DiffSource, height: int) -> BlockInfo:
        with _named(source.name):
            info = side.info_at(height)
            if info is None:
                raise CorruptionError("the canonical table has a gap", height=height, recovery=Recovery.REBUILD)
            return info

    def first(self, low: int, high: int, differ: Callable[[_Infos], bool]) -> int | None:
        """A height from ``low`` to ``high`` at which they ``differ`` and, unless it is ``low``, below which they do
        not; ``None`` if they are equal at ``high``."""
        if high < low or not differ(self.at(high)):
            return None
        if differ(self.at(low)):
            return low
        while high - low > 1:
            middle = (low + high) // 2
            if differ(self.at(middle)):
                high = middle
            else:
                low = middle
        return high

    def difference(self, height: int, nulls: tuple[bytes, bytes], notes: list[str]) -> BlockDifference:
        """What differs in the two blocks at ``height``; ``notes`` takes what could not be compared."""
        blocks = []
        for side, source in zip(self.sides, self._pair, strict=True):
            with _named(source.name):
                block = side.block_at(height)
            assert block is not None
            blocks.append(block)
        one, two = blocks
        facts = [BlockFacts.of(block.info, null) for block, null in zip(blocks, nulls, strict=True)]
        parts = [name for name in ("hash", "parent", "root") if getattr(facts[0], name) != getattr(facts[1], name)]
        attached = ("header", "body", "extra") if one.kept and two.kept else ("header",)
        parts += [name for name in attached if getattr(one, name) != getattr(two, name)]
        if len(attached) == 1:
            notes.append(f"the bodies at height {height} were not compared: retention gave one of them up")
        return BlockDifference(facts[0], facts[1], tuple(parts))


def _compare_chains(pair: _Pair, search: _Search) -> DiffReport:
    """The report without the state."""
    one, two = search.sides
    nulls = _scheme(pair.a).null, _scheme(pair.b).null
    low, high = search.low, search.high
    notes: list[str] = []
    first = search.first(low, high, lambda both: both[0].hash != both[1].hash)
    if first == low and one.lowest != two.lowest:
        notes.append(f"below height {low} not both have blocks: they may differ there already")
    top = high if first is None else first - 1
    changed = None
    if pair.a.spec.scheme == pair.b.spec.scheme:
        changed = search.first(low, top, lambda both: root_after(both[0], nulls[0]) != root_after(both[1], nulls[1]))
    if changed is not None:
        notes.append(
            f"the block at height {changed} is the same and gave another root: one store executed it differently; "
            "'holdfast verify --level full' of each shows whether its changes give its root"
        )
    first_found = search.difference(first, nulls, notes) if first is not None else None
    executed_found = search.difference(changed, nulls, notes) if changed is not None else None
    return DiffReport(
        a=pair.a.name,
        b=pair.b.name,
        facts=_facts(pair),
        relation=_relation(one, two, first),
        tip_a=None if one.tip is None else BlockFacts.of(one.tip, nulls[0]),
        tip_b=None if two.tip is None else BlockFacts.of(two.tip, nulls[1]),
        common=BlockFacts.of(search.at(top)[0], nulls[0]) if low <= top else None,
        first=first_found,
        executed=executed_found,
        state=None,
        notes=tuple(notes),
        reads=search.reads,
    )


def _scheme(source: DiffSource) -> Scheme:
    return SCHEMES[source.spec.scheme]


def _facts(pair: _Pair) -> dict[str, tuple[object, object]]:
    found: dict[str, tuple[object, object]] = {}
    for field in fields(ChainSpec):
        one, two = getattr(pair.a.spec, field.name), getattr(pair.b.spec, field.name)
        if field.name == "parameters":
            one, two = dict(one), dict(two)
        if one != two:
            found[field.name] = one, two
    return found


def _relation(one: Moment, two: Moment, first: int | None) -> Relation:
    if first is not None:
        return "diverged"
    if one.tip is None or two.tip is None:
        return "equal" if one.tip is two.tip else "nothing_shared"
    if max(one.lowest, two.lowest) > min(one.tip.height, two.tip.height):
        return "nothing_shared"
    behind = two.tip.height - one.tip.height
    return "a_behind" if behind > 0 else "b_behind" if behind < 0 else "equal"


# -- the state ------------------------------------------------------------------------------------------------------


def _check_states(pair: _Pair) -> None:
    """Both hold a state, of one scheme."""
    if pair.a.spec.scheme != pair.b.spec.scheme:
        raise ForeignStore(
            "the trees over the states follow different rules, so nothing can be compared key by key",
            store=pair.b.name,
            field="scheme",
            found=pair.b.spec.scheme,
            expected=pair.a.spec.scheme,
            remedy="compare stores of one scheme; without --state their chains can be compared",
        )
    for source in pair:
        if source.oldest_state() is None:
            raise StateError(
                "the store holds no state",
                store=source.name,
                remedy="compare it without --state",
            )


def _chosen(pair: _Pair, search: _Search, report: DiffReport, at_height: int | None) -> tuple[_Infos, tuple[str, ...]]:
    """The blocks whose states are compared, and a note if they are not those that were meant."""
    floors = [source.oldest_state() or 0 for source in pair]
    floor = max(*floors, search.low)
    place = report.first or report.executed
    height = at_height if at_height is not None else place.a.height if place is not None else search.high
    if search.low > search.high or not search.low <= height <= search.high:
        raise BlockNotFound(
            "not both stores have a canonical block at this height",
            height=height,
            lowest=search.low,
            highest=search.high,
            remedy="'holdfast diff' without --state shows both tips; give a height that both have",
        )
    if height >= floor:
        return search.at(height), ()
    if at_height is not None or floor > search.high:
        source = pair[floors.index(max(floors))]
        raise PrunedError("the tree of this height is gone", store=source.name, height=height, least_readable=floor)
    note = f"the trees after height {height} are gone: the states are compared after height {floor}"
    return search.at(floor), (note,)


def _compare_states(pair: _Pair, infos: _Infos, limit: int, from_key: bytes | None) -> StateDifference:
    scheme = _scheme(pair.a)
    with contextlib.ExitStack() as stack:
        sides = [_opened(source, info, stack) for source, info in zip(pair, infos, strict=True)]
        for source, side, info in zip(pair, sides, infos, strict=True):
            _check_root(source, side, info)
        descent = Descent(sides[0].tree, sides[1].tree)
        start = bytes(32) if from_key is None else sha256(from_key).digest()
        keys: list[KeyDifference] = []
        next_key = None
        for difference in descent.differences(start):
            key, values = _values(pair, sides, difference, scheme)
            if len(keys) == limit:
                next_key = key
                break
            changed = [_changed(source, side, key, scheme) for source, side in zip(pair, sides, strict=True)]
            keys.append(KeyDifference(key, values[0], values[1], changed[0], changed[1]))
        roots = sides[0].tree.root, sides[1].tree.root
        return StateDifference(infos[0].height, roots[0], roots[1], tuple(keys), next_key, descent.visited)


def _opened(source: DiffSource, info: BlockInfo, stack: contextlib.ExitStack) -> StateSide:
    with _named(source.name):
        return stack.enter_context(source.state(info))


def _check_root(source: DiffSource, side: StateSide, info: BlockInfo) -> None:
    recorded = root_after(info, _scheme(source).null)
    if not has_root(side.tree, recorded):
        raise _damaged(
            CorruptionError(
                "the tree does not have the root that the block was stored with",
                height=info.height,
                hash=info.hash,
                expected=recorded,
                found=side.tree.root,
            ),
            source,
        )


def _damaged(error: CorruptionError, source: DiffSource) -> CorruptionError:
    """``error``, which is about the views of this source and not about a difference."""
    error.context.setdefault("store", source.name)
    error.remedy = "this is damage, no difference: run 'holdfast verify --level state' on that store, then 'rebuild'"
    error.recovery = Recovery.REBUILD
    return error


def _values(
    pair: _Pair, sides: list[StateSide], difference: LeafDifference, scheme: Scheme
) -> tuple[bytes, list[SeenValue | None]]:
    """The key of a leaf that differs, and its value in both."""
    found: list[SeenValue | None] = []
    key = b""
    for source, side, leaf in zip(pair, sides, difference[1:], strict=True):
        if leaf is None:
            found.append(None)
            continue
        try:
            key = held_key(difference.key_hash, side.lookup)
            value = held_value((difference.key_hash, leaf), key, side.lookup, scheme)
        except CorruptionError as error:
            raise _damaged(error, source) from None
        found.append(SeenValue.of(value))
    return key, found


def _changed(source: DiffSource, side: StateSide, key: bytes, scheme: Scheme) -> BlockFacts | None:
    with _named(source.name):
        info = side.last_change(key)
    return None if info is None else BlockFacts.of(info, scheme.null)
