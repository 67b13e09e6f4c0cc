"""``store.state``: the state at the tip, at a height, and its proofs.

Invariants:
    * The tip's state is the visible one; a height's is that of the block that is canonical there when it is asked for,
      and a reader of it raises ``ViewExpired`` once that block leaves the canonical chain.
    * What a call says about several heights is of one branch: that of before a reorg, or of after it.
    * Below the retained floor the answer is ``PrunedError``, never another height's value: the floor is looked at
      before and after each read.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from ..blocks.lookup import canonical_block
from ..blocks.records import canonical_key, height_of_canonical_key
from ..blocks.state import ChainState, root_after
from ..engine.api import Page, Reader
from ..errors import BlockNotFound, InvalidInputError, PrunedError, StateError, ViewExpired
from ..limits import HEIGHT_MAX
from ..merkle.api import Scheme
from ..merkle.backend import backend
from ..merkle.ics23 import ExistenceProof, encode
from ..merkle.multiproof import prove_many
from ..merkle.prove import prove
from ..state.draft import BlockState
from ..state.proof import MultiProof, Proof, RowLookup
from ..state.reader import Rowlike, StateReader, check_key, check_keys
from ..state.rows import full_value, state_key
from ..types import BlockInfo
from ..views.api import RowReader
from ..views.tables import STATE
from ..views.views import Views

_PAGE_KEYS = 1_000

__all__ = ["StateAt", "StateSource", "StoreState", "held_state", "last_change"]


class StateSource(Protocol):
    """Whoever holds the views and the tree: the writer's backend, or a follower."""

    @property
    def rows(self) -> RowReader:
        """Visible rows, as of each call."""

    @property
    def state(self) -> ChainState:
        """State of the chain that readers see."""

    @property
    def tip(self) -> BlockInfo | None:
        """The tip that readers see."""

    @property
    def hot_get(self) -> Callable[[bytes], bytes | None]:
        """The quickest way to a visible row of the state; asked for again after ``StoreState.rebind``."""

    @property
    def scheme(self) -> Scheme:
        """Rules of the tree."""

    def the_views(self) -> Views:
        """The live views, caught up."""

    def reading(self) -> AbstractContextManager[tuple[Views, Reader | None]]:
        """The views for reads at old heights, with a snapshot of the engine if another process writes it."""

    def open_state(self, block_hash: bytes | None) -> BlockState:
        """The state after a stored block of any branch (``None``: after the tip), held until it is released.

        Raises ``BlockNotFound``, ``PrunedError``, ``LimitExceeded``.
        """


class _RowsAt:
    """Rows of the state as they were after the canonical block at a height, from history."""

    def __init__(self, source: StateSource, height: int, block_hash: bytes) -> None:
        self._source = source
        self._height = height
        self._hash = block_hash
        self._checked: tuple[Views, int] | None = None

    def get(self, key: bytes) -> bytes | None:
        """The plain row, or ``None``."""
        return self.get_many((key,))[0]

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The rows in the order of ``keys``: of one version, because it never changes."""
        height = self._height
        with self._source.reading() as (views, snapshot):
            while True:
                switches = self._check(views)
                values = [views.read_at(key, height, snapshot) for key in keys]
                if views.one_branch(switches):
                    check_height(views, height)
                    return values

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False, limit: int = 1000) -> Page:
        """One page: what is visible now and what history knows of, each as it was. May hold fewer than ``limit``."""
        with self._source.reading() as (views, snapshot):
            while True:
                switches = self._check(views)
                keys, resume = self._keys(views, snapshot, start, stop, reverse=reverse, limit=limit)
                rows = []
                for key in keys:
                    value = views.read_at(key, self._height, snapshot)
                    if value is not None:
                        rows.append((key, value))
                if views.one_branch(switches):
                    check_height(views, self._height)
                    return Page(rows, resume)

    def _keys(
        self, views: Views, snapshot: Reader | None, start: bytes, stop: bytes, *, reverse: bool, limit: int
    ) -> tuple[list[bytes], bytes | None]:
        """Engine keys that may have had a row at the height, in scan order, and where to go on."""
        prefix = STATE.prefix
        while True:
            removals = views.history_removals
            page = views.reader().scan(start, stop, reverse=reverse, limit=limit)
            low, high = start, stop
            if page.resume is not None:
                low, high = (page.resume, stop) if reverse else (start, page.resume)
            keys = {key for key, _ in page.rows}
            more: bytes | None = low[len(prefix) :]
            while more is not None:
                end = None if high == STATE.end else high[len(prefix) :]
                found = views.history_keys(more, end, self._height, _PAGE_KEYS, snapshot)
                keys.update(prefix + key for key in found.keys)
                more = found.resume
                if more is not None and not reverse:  # enough for a page; what is above comes with the next one
                    high, more = prefix + more, None
            if views.history_removals == removals:
                break
        inside = sorted((key for key in keys if low <= key < high), reverse=reverse)
        resume = low if reverse else high
        return inside, resume if (low > start if reverse else high < stop) else None

    def _check(self, views: Views) -> int:
        """The height is readable and its block canonical; what ``Views.one_branch`` is to be asked with afterwards."""
        check_height(views, self._height)
        while True:
            switches = views.switches_done
            if self._checked == (views, switches):
                return switches
            canonical = views.get(canonical_key(self._height))
            if not views.one_branch(switches):
                continue
            if canonical != self._hash:
                raise ViewExpired("the block at this height was replaced", height=self._height, hash=self._hash)
            self._checked = (views, switches)


class _NoRows:
    """The rows of a store without a block."""

    def get(self, key: bytes) -> bytes | None:
        return None

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [None] * len(keys)

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False, limit: int = 1000) -> Page:
        return Page([], None)


def _nothing() -> None:
    """Nothing was held."""


def check_height(views: Views, height: int) -> None:
    """Nothing happens if the history of ``height`` is retained; else ``PrunedError``."""
    record = views.history
    if record is None or height >= record.floor or record.has(height):
        return
    oldest = record.floor
    if record.every:
        oldest = min(oldest, -(-record.oldest // record.every) * record.every)
    remedy = None
    if height > oldest:  # 'least_readable' alone would point to heights that are gone too
        remedy = (
            f"ask for a height from {record.floor} on, or below it for a multiple of {record.every} from {oldest} on"
        )
    raise PrunedError(
        "the state at this height was pruned",
        height=height,
        least_readable=oldest,
        floor=record.floor,
        every=record.every or None,
        remedy=remedy,
    )


class StateAt(StateReader):
    """The state after one block; see ``ReadableState``."""

    def __init__(self, info: BlockInfo, null: bytes, rows: Rowlike, blobs: Callable[[bytes], bytes | None]) -> None:
        super().__init__(rows, blobs)
        self.block = info
        """The block whose state this is."""
        self._null = null

    @property
    def height(self) -> int:
        """Height of that block."""
        return self.block.height

    @property
    def root(self) -> bytes:
        """Root of the state after it, 32 bytes."""
        return root_after(self.block, self._null)


class StoreState(StateReader):
    """The state at the visible tip; see ``ReadableState``. Each call sees what is durable then."""

    def __init__(self, source: StateSource, check: Callable[[], object]) -> None:
        """Over ``source``; ``check`` raises once the store is closed."""
        super().__init__(source.rows, source.rows.get, source.hot_get)
        self._open_source = source
        self._check = check

    @property
    def _source(self) -> StateSource:
        self._check()
        return self._open_source

    def rebind(self, get: Callable[[bytes], bytes | None] | None = None) -> None:
        """Single rows are read by ``get`` from now on, or by what the source gives now: other views took over."""
        self._get = get if get is not None else self._open_source.hot_get

    @property
    def root(self) -> bytes:
        """Root of the state at the tip, 32 bytes; that of an empty tree while nothing was executed."""
        source = self._source
        return root_after(source.tip, source.scheme.null)

    def at(self, height: int) -> StateAt:
        """The state after the canonical block at ``height``.

        Raises ``BlockNotFound`` above the tip, ``PrunedError`` below what is retained. Its readers raise
        ``ViewExpired`` once a reorg replaced the block, or, without history, when they are kept too long.
        """
        source = self._source
        info = self._canonical(height)
        views = source.the_views()
        if views.history is not None:
            check_height(views, height)
            return StateAt(info, source.scheme.null, _RowsAt(source, height, info.hash), source.rows.get)
        held = source.open_state(info.hash)
        state = StateAt(info, source.scheme.null, held.rows, held.rows.get)
        weakref.finalize(state, held.release)
        return state

    def history(self, key: bytes) -> list[tuple[int, bytes | None]]:
        """(height, value from there on) for each change of ``key`` that history still knows, lowest first.

        The first one is what it was at the lowest height that can be read. ``None``: it had no value. Raises
        ``StateError`` without history.
        """
        check_key(key)
        source = self._source
        while True:
            with source.reading() as (views, snapshot):
                switches, record = views.switches_done, views.history
                newest = views.reader().floor(canonical_key(HEIGHT_MAX), canonical_key(0))
                if newest is None:
                    return []
                # that of these rows: the one in ``state`` may be of a moment before or after
                tip_height = height_of_canonical_key(newest[0])
                lowest = max(record.floor if record is not None else 0, source.state.root_height)
                row_key = state_key(key)
                found: list[tuple[int, bytes | None]] = []
                for height in (lowest, *views.heights_of(row_key, lowest, snapshot)):
                    if height > tip_height:
                        break
                    stored = views.read_at(row_key, height, snapshot)
                    if not found or stored != found[-1][1]:
                        found.append((height, stored))
                if views.one_branch(switches) and views.history == record:
                    get = source.rows.get
                    return [(height, None if raw is None else full_value(raw, get)) for height, raw in found]

    def diff(self, first: int, second: int) -> Iterator[tuple[bytes, bytes | None, bytes | None]]:
        """(key, value at ``first``, value at ``second``) for every key that differs between two heights, in order.

        Cost: O(keys changed since the lower height). Raises as ``at`` does, and ``StateError`` without history.
        """
        one, two = (_RowsAt(self._source, height, self.at(height).block.hash) for height in (first, second))
        if self._source.the_views().history is None:
            raise StateError(
                "without a history nobody knows which keys changed between two heights",
                remedy="switch the setting 'history' on; heights from then on can be compared",
            )
        start: bytes | None = b""
        while start is not None:
            with self._source.reading() as (views, snapshot):
                page = views.history_keys(start, None, min(first, second), _PAGE_KEYS, snapshot)
            rows = [STATE.prefix + key for key in page.keys]
            for key, before, after in zip(page.keys, one.get_many(rows), two.get_many(rows), strict=True):
                if before != after:
                    yield key, self._full(before), self._full(after)
            start = page.resume

    def _full(self, row: bytes | None) -> bytes | None:
        return None if row is None else full_value(row, self._source.rows.get)

    def changes(self, first: int, last: int) -> Iterator[tuple[bytes, list[tuple[int, bytes | None]]]]:
        """(key, its values) for every key that a block above ``first`` up to ``last`` changed, in order of the keys.

        The values are (``first``, value there), then (height, value from there on) for each change; ``None``: absent.
        Cost: O(changes since ``first``). Raises as ``at`` does, for every height from ``first`` on, and ``StateError``
        without history.
        """
        source = self._source
        self.at(first)
        end = _RowsAt(source, last, self._canonical(last).hash)
        start: bytes | None = b""
        while start is not None:
            with source.reading() as (views, snapshot):
                switches, record = views.switches_done, views.history
                if record is None:
                    raise StateError(
                        "without a history nobody knows which keys changed",
                        remedy="switch the setting 'history' on; changes from then on are kept",
                    )
                if first < record.floor:
                    raise PrunedError(
                        "changes above this height were pruned", height=first, least_readable=record.floor
                    )
                page = views.history_keys(start, None, first, _PAGE_KEYS, snapshot)
                found = []
                for row_key in (STATE.prefix + key for key in page.keys):
                    heights = [height for height in views.heights_of(row_key, first, snapshot) if height < last]
                    stored = [(height, views.read_at(row_key, height, snapshot)) for height in (first, *heights)]
                    found.append((row_key, stored))
                if not views.one_branch(switches) or views.history != record:
                    continue  # some of them may be of another branch
            ends = end.get_many([row_key for row_key, _ in found]) if first < last else [None] * len(found)
            for (row_key, stored), after in zip(found, ends, strict=True):
                if first < last:
                    stored.append((last, after))
                changes = [item for at, item in enumerate(stored) if not at or item[1] != stored[at - 1][1]]
                if len(changes) > 1:
                    yield row_key[len(STATE.prefix) :], [(height, self._full(row)) for height, row in changes]
            start = page.resume

    def statistics(self, *, tree: bool = True) -> dict[str, object]:
        """The root, the tree, and which heights can be read and proved, as JSON values.

        ``history_floor`` and ``proof_floor`` are the lowest heights that can be read and proved; ``None`` in an empty
        store, and without a history. ``tree`` false leaves the tree out, which a read-only store has to load first.
        """
        source = self._source
        views, state = source.the_views(), source.state
        record = views.history
        found: dict[str, object] = {
            "root": self.root.hex(),
            "scheme": source.scheme.name,
            "history_floor": max(record.floor, state.root_height) if record is not None and state.has_tip else None,
            "history_every": record.every if record is not None else None,
            "proof_floor": max(views.undo_floor, state.root_height) if state.has_tip else None,
        }
        if tree:
            with self._held(None) as (_, held):
                found |= {"keys": held.tree.count, "tree_bytes": held.tree.size_bytes()}
        return found

    def prove(self, key: bytes, *, height: int | None = None) -> Proof:
        """A proof that ``key`` has the value it has, or none, at the tip or after the canonical block at ``height``.

        Raises ``PrunedError`` for a height below the proof window (``proof_window_blocks``). Cost at the tip:
        O(log keys); the first one at another height: O(what changed since), later ones less.
        """
        check_key(key)
        with self._held(height) as (info, held):
            scheme = self._source.scheme
            proof = prove(held.tree, key, RowLookup(StateReader(held.rows)), scheme=scheme)
            value = full_value(proof.value, held.rows.get) if isinstance(proof, ExistenceProof) else None
            return Proof(encode(proof), held.tree.root, key, value, info, scheme.name)

    def prove_many(self, keys: Sequence[bytes], *, height: int | None = None) -> MultiProof:
        """One compact proof for all of ``keys`` (docs/FORMAT.md, section 8.3), present and absent ones."""
        check_keys(keys)
        with self._held(height) as (info, held):
            reader = StateReader(held.rows)
            data = prove_many(held.tree, keys, RowLookup(reader), scheme=self._source.scheme)
            values = dict(zip(keys, reader.get_many(keys), strict=True))
            return MultiProof(data, held.tree.root, values, info, self._source.scheme.name)

    @contextlib.contextmanager
    def _held(self, height: int | None) -> Iterator[tuple[BlockInfo | None, BlockState]]:
        info = self._source.tip if height is None else self._canonical(height)
        if info is None:  # what is appended and not durable yet is none of the reader's business
            yield None, BlockState(_NoRows(), backend().empty(self._source.scheme), _nothing)
            return
        held = self._source.open_state(info.hash)
        try:
            yield info, held
        finally:
            held.release()

    def _canonical(self, height: int) -> BlockInfo:
        if type(height) is not int or not 0 <= height <= HEIGHT_MAX:
            raise InvalidInputError("a height is a whole number that is not negative", found=height)
        source = self._source
        info = canonical_block(source.rows.get, height)
        if info is None:
            state = source.state
            if state.has_tip and height < state.root_height:
                raise PrunedError("the chain begins above this height", height=height, least_readable=state.root_height)
            raise BlockNotFound("no canonical block at this height", height=height, tip=state.tip_height)
        return info


# -- for the tools of recovery ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def held_state(state: StoreState, block_hash: bytes) -> Iterator[BlockState]:
    """Rows and tree of the state after a stored block, of one version until the end.

    Raises ``BlockNotFound``, ``PrunedError`` below the proof window, ``LimitExceeded``.
    """
    held = state._source.open_state(block_hash)
    try:
        yield held
    finally:
        held.release()


def last_change(state: StoreState, key: bytes, height: int) -> int | None:
    """The canonical height of the last change of ``key`` up to ``height``; ``None`` if history does not know it.

    Cost: O(log(blocks since)) looks, and the changes of the key since. Raises ``StateError`` without a history.
    """
    source, row_key = state._source, state_key(check_key(key))
    lowest = source.state.root_height
    with source.reading() as (views, snapshot):
        record = views.history
        if record is not None:
            lowest = max(lowest, record.floor)
        seen, window = height + 1, 1
        while seen > lowest + 1:
            above = max(lowest, height - window)
            for found in reversed(views.heights_of(row_key, above, snapshot)):
                if found < seen and views.read_at(row_key, found, snapshot) != views.read_at(
                    row_key, found - 1, snapshot
                ):
                    return found
            seen, window = above + 1, window * 16
    return None
