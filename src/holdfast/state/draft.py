"""The state of a block being built: writes in memory over the state of its parent, and the root they give.

Invariants:
    * Nothing is stored before the commit; whoever holds the draft may drop it at any time.
    * Every limit is checked when a write is made; a refused ``update`` changes nothing.
    * ``execution()`` is a function of the parent's state and of the last write to each key, not of their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from ..errors import InvalidInputError, LimitExceeded, Recovery, StateError
from ..limits import (
    STATE_CHANGES_BYTES_MAX,
    STATE_CHANGES_MAX,
    STATE_INLINE_BYTES_MAX,
    STATE_KEY_BYTES_MAX,
    STATE_VALUE_BYTES_MAX,
)
from ..merkle.api import Tree
from ..merkle.values import is_reference, tree_value
from .reader import Rowlike, StateReader, check_key, check_keys, no_value, scan_bounds
from .rows import Changes, Execution

__all__ = ["BlockState", "DraftState", "check_value"]

_REFERENCE_BYTES = 53


class BlockState:
    """The state after one block, held as it is until it is released: its rows, and its tree."""

    __slots__ = ("_release", "rows", "tree")

    def __init__(self, rows: Rowlike, tree: Tree, release: Callable[[], None]) -> None:
        self.rows = rows
        self.tree = tree
        self._release = release

    def release(self) -> None:
        """Nothing is kept for it any more; twice is harmless."""
        self._release()


def check_value(value: bytes) -> bytes:
    """``value`` if the state can hold it. Raises ``InvalidInputError`` or ``LimitExceeded``."""
    if type(value) is not bytes:
        raise InvalidInputError("a value of the state is bytes", found=type(value).__name__)
    if not value:
        raise InvalidInputError(
            "a value of the state is not empty: no proof could hold it",
            remedy="delete the key instead, or store one byte that stands for 'empty'",
        )
    if len(value) > STATE_VALUE_BYTES_MAX:
        raise LimitExceeded("the value is too long", found=len(value), limit=STATE_VALUE_BYTES_MAX)
    if len(value) == _REFERENCE_BYTES and is_reference(value):
        raise InvalidInputError("the value looks like the reference to a large value, which only the store may write")
    return value


def _plain_lengths(changes: Mapping[bytes, bytes | None], values: Sequence[bytes]) -> tuple[int, int, int] | None:
    """Bytes of all keys, of all values, and of the longest one; ``None`` if each has to be looked at."""
    if set(map(type, changes)) != {bytes} or set(map(type, values)) - {bytes}:
        return None
    keys = list(map(len, changes))
    lengths = list(map(len, values))
    if not 0 < min(keys) <= max(keys) <= STATE_KEY_BYTES_MAX:
        return None
    longest = max(lengths, default=0)
    if longest > STATE_VALUE_BYTES_MAX or 0 in lengths or _REFERENCE_BYTES in lengths:
        return None
    return sum(keys), sum(lengths), longest


def _closed() -> StateError:
    return StateError(
        "the draft was committed or dropped", remedy="make a new draft on the tip", recovery=Recovery.LAST_GOOD
    )


class DraftState:
    """See ``MutableState``. Made by ``draft.state``; belongs to one thread."""

    def __init__(self, parent: BlockState) -> None:
        self._parent = parent
        self._read = StateReader(parent.rows)
        self._writes: Changes = {}
        self._size = 0
        self._large = False
        """True if a value may be too long for the tree."""
        self._removals = False
        """True if a key may be removed."""
        self._done: tuple[Execution, Tree] | None = None
        self._closed = False

    # -- reading --------------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        """The value, or ``None``."""
        writes = self._writes
        if type(key) is not bytes:
            check_key(key)
        if key in writes:
            return writes[key]
        return self._reader().get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values in the order of ``keys``, all of one version."""
        writes = self._writes
        wanted = [key for key in check_keys(keys) if key not in writes]
        found = dict(zip(wanted, self._reader().get_many(wanted), strict=True)) if wanted else {}
        return [writes[key] if key in writes else found[key] for key in keys]

    def __getitem__(self, key: bytes) -> bytes:
        """The value. Raises ``NotFoundError``."""
        value = self.get(key)
        if value is None:
            raise no_value(key)
        return value

    def __contains__(self, key: object) -> bool:
        """True if the key has a value."""
        return isinstance(key, bytes) and self.get(key) is not None

    def scan(
        self, prefix: bytes = b"", *, start: bytes | None = None, stop: bytes | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) in key order, or in the reverse: keys with ``prefix`` and ``start <= key < stop``.

        Own writes of before the call are seen, later ones are not.
        """
        scan_bounds(prefix, start, stop)
        low = prefix if start is None or start < prefix else start
        writes = dict(self._writes)
        mine = sorted(
            (key for key in writes if key.startswith(prefix) and key >= low and (stop is None or key < stop)),
            reverse=reverse,
        )
        at = 0
        for key, value in self._reader().scan(prefix, start=start, stop=stop, reverse=reverse):
            while at < len(mine) and (mine[at] > key if reverse else mine[at] < key):
                own = writes[mine[at]]
                if own is not None:
                    yield mine[at], own
                at += 1
            if key not in writes:
                yield key, value
        for key in mine[at:]:
            own = writes[key]
            if own is not None:
                yield key, own

    # -- writing --------------------------------------------------------------------------------------------------

    def __setitem__(self, key: bytes, value: bytes) -> None:
        """``key`` has ``value``. Raises ``InvalidInputError`` or ``LimitExceeded``; nothing is changed then."""
        self._put({check_key(key): check_value(value)}, len(key) + len(value), longest=len(value), removals=0)

    def __delitem__(self, key: bytes) -> None:
        """``key`` has no value; it may be absent already."""
        self._put({check_key(key): None}, len(key), longest=0, removals=1)

    def update(self, changes: Mapping[bytes, bytes | None]) -> None:
        """All of ``changes`` at once (``None`` removes), or none if one of them is refused."""
        if not isinstance(changes, Mapping):
            raise InvalidInputError(
                f"the changes of a state are a mapping of keys to values, not {type(changes).__name__}"
            )
        if not changes:
            return
        values = [value for value in changes.values() if value is not None]
        lengths = _plain_lengths(changes, values)
        if lengths is None:  # something is wrong or unusual: look at each
            for key in changes:
                check_key(key)
            for value in values:
                check_value(value)
            lengths = sum(map(len, changes)), sum(map(len, values)), max(map(len, values), default=0)
        self._put(changes, lengths[0] + lengths[1], longest=lengths[2], removals=len(changes) - len(values))

    def _put(self, changes: Mapping[bytes, bytes | None], size: int, *, longest: int, removals: int) -> None:
        if self._closed:
            raise _closed()
        writes = self._writes
        again = writes.keys() & changes.keys() if writes else ()
        for key in again:  # only the last write to a key counts
            size -= len(key) + len(writes[key] or b"")
        if self._size + size > STATE_CHANGES_BYTES_MAX:
            raise LimitExceeded("a block changes too many bytes of the state", limit=STATE_CHANGES_BYTES_MAX)
        if len(writes) + len(changes) - len(again) > STATE_CHANGES_MAX:
            raise LimitExceeded("a block changes too many keys of the state", limit=STATE_CHANGES_MAX)
        writes.update(changes)
        self._size += size
        self._large = self._large or longest > STATE_INLINE_BYTES_MAX
        self._removals = self._removals or removals > 0
        self._done = None

    # -- the root -------------------------------------------------------------------------------------------------

    @property
    def changed(self) -> bool:
        """True once something was written, even if it equals what was there."""
        return bool(self._writes)

    @property
    def size_bytes(self) -> int:
        """Bytes of the keys and values that were written, each key once."""
        return self._size

    @property
    def closed(self) -> bool:
        """True once it was committed or dropped."""
        return self._closed

    @property
    def base(self) -> Tree:
        """The tree of the parent's state."""
        return self._parent.tree

    def root(self) -> bytes:
        """Root of the state with all writes so far (32 bytes). Costs an update of the tree; asked again, nothing."""
        return self.execution()[0].root

    def execution(self) -> tuple[Execution, Tree]:
        """What the draft does to the state, and the tree afterwards."""
        if self._done is None:
            writes = self._writes
            changes: Changes = writes
            if self._large:
                changes = {key: None if value is None else tree_value(value) for key, value in writes.items()}
            tree, inserted, removed = self._parent.tree.update(changes)
            self._done = Execution(tree.root, self._kept(removed), inserted, removed, large=self._large), tree
        return self._done

    def _kept(self, removed: Sequence[tuple[bytes, bytes]]) -> Changes:
        """The writes without removals of keys that had no value."""
        writes = self._writes
        if not self._removals:
            return dict(writes)
        gone = {key for _, key in removed}
        return {key: value for key, value in writes.items() if value is not None or key in gone}

    def close(self) -> None:
        """The draft reads and takes nothing more; what was kept for it is released."""
        self._closed = True
        self._parent.release()

    def _reader(self) -> StateReader:
        if self._closed:
            raise _closed()
        return self._read
