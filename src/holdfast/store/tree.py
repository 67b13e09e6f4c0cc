"""The tree over the state, made ready when a store is opened.

It is derived: loaded from its image and brought up to date, else built from the flat state. Either way its root must be
the one in the journal; an image that does not lead there is dropped.

Invariants:
    * ``caught_up`` asks the journal which keys may differ, and the rows what they are now: so the image may be of any
      earlier frame, on whichever branch.
    * A tree that is returned has the root of the state at the tip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from .._fs import FileSystem
from ..blocks.content import decode_frame
from ..blocks.lookup import load_referred
from ..blocks.state import ChainState, has_root
from ..errors import CorruptionError, HoldfastError, Recovery
from ..journal.api import FrameSource
from ..merkle.api import SCHEMES, Scheme, Tree
from ..merkle.backend import backend
from ..state.image import load_image
from ..types import ZERO_HASH, BlockInfo
from ..views.api import RowReader
from ..views.tables import STATE
from .identity import Identity
from .replay import execution_of

__all__ = ["OpenedTree", "another_root", "build_tree", "caught_up", "open_tree", "scheme_of"]

_PAGE_ROWS = 10_000
_KEYS_AT_ONCE = 100_000
_KEYS_MAX = 4_000_000
"""Above this many changed keys the tree is built from the flat state: that is quicker."""
_PREFIX = len(STATE.prefix)


class OpenedTree(NamedTuple):
    """A tree, and how it came to be: ``""`` (no state), ``image``, ``caught_up`` or ``rebuilt``."""

    tree: Tree
    how: str
    notes: tuple[str, ...]
    image_seq: int
    """The frame of the image that is on disk; 0 if there is none of use."""


def scheme_of(identity: Identity) -> Scheme:
    """The scheme of the store's tree."""
    return SCHEMES[identity.spec.scheme]


def open_tree(
    fs: FileSystem,
    root: Path,
    identity: Identity,
    source: FrameSource,
    last_seq: int,
    rows: RowReader,
    state: ChainState,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> OpenedTree:
    """The tree over the state after frame ``last_seq``, which ``rows`` and ``state`` are of.

    Raises ``CorruptionError`` if the flat state does not have the root that the journal says.
    """
    scheme = scheme_of(identity)
    empty = backend().empty(scheme)
    if not state.stateful:
        return OpenedTree(empty, "", (), 0)
    loaded = load_image(fs, root, store_id=identity.store_id, salt=identity.salt, scheme=scheme, backend=backend())
    notes = [f"tree image not used: {loaded.reason}"] if loaded.reason else []
    image = loaded.image
    if image is not None:
        try:
            if image.seq > last_seq or source.frame(image.seq).digest != image.digest:
                raise CorruptionError("it belongs to another history of the journal", seq=image.seq)
            tree = caught_up(image.tree, source, image.seq, last_seq, rows)
            if tree is not None and has_root(tree, state.state_root):
                return OpenedTree(tree, "image" if image.seq == last_seq else "caught_up", tuple(notes), image.seq)
            notes.append("tree image not used: it does not lead to the root in the journal")
        except HoldfastError as error:
            notes.append(f"tree image not used: {error}")
    tree = build_tree(scheme, rows, progress=progress)
    if not has_root(tree, state.state_root):
        raise another_root(tree, state)
    return OpenedTree(tree, "rebuilt", tuple(notes), 0)


def another_root(tree: Tree, state: ChainState) -> CorruptionError:
    """What is wrong if the ``tree`` over the rows of the state does not have the root in ``state``."""
    return CorruptionError(
        "the rows of the state do not have the root that the journal says",
        table=STATE.name,
        height=state.tip_height,
        hash=state.tip_hash,
        expected=state.state_root,
        found=tree.root,
        recovery=Recovery.REBUILD,
    )


def build_tree(scheme: Scheme, rows: RowReader, *, progress: Callable[[int, int], None] | None = None) -> Tree:
    """The tree over the state in ``rows``. Cost: one scan, and a hash or two for each key."""

    def records() -> Iterator[bytes]:
        start: bytes | None = STATE.prefix
        done = 0
        while start is not None:
            page = rows.scan(start, STATE.end, limit=_PAGE_ROWS)
            yield backend().hash_rows(scheme, [(key[_PREFIX:], value) for key, value in page.rows])
            start = page.resume
            done += len(page.rows)
            if progress is not None:
                progress(done, done)

    try:
        return backend().build(scheme, records())
    except ValueError as error:
        raise CorruptionError(
            f"the rows of the state are damaged: {error}", table=STATE.name, recovery=Recovery.REBUILD
        ) from error


def caught_up(tree: Tree, source: FrameSource, seq: int, last_seq: int, rows: RowReader) -> Tree | None:
    """``tree``, of frame ``seq``, with today's value of every key that a later frame may have changed.

    ``None`` if those are too many.
    """
    keys: set[bytes] = set()
    for batch in _changed_keys(source, seq, last_seq, rows):
        keys.update(batch)
        if len(keys) > max(_KEYS_MAX, tree.count):
            return None
    ordered = sorted(keys)
    for start in range(0, len(ordered), _KEYS_AT_ONCE):
        part = ordered[start : start + _KEYS_AT_ONCE]
        values = rows.get_many([STATE.prefix + key for key in part])
        tree = tree.update(dict(zip(part, values, strict=True))).tree
    return tree


def _changed_keys(source: FrameSource, seq: int, last_seq: int, rows: RowReader) -> Iterator[Iterable[bytes]]:
    """Keys of every block that a frame after ``seq`` brought, adopted or took out of the canonical chain."""
    load = partial(load_referred, rows.get)
    for frame in source.frames(seq + 1, last_seq + 1):
        content = decode_frame(source, frame)
        if content is None:
            continue
        for execution in content.executions.values():
            yield execution.changes
        canonical = content.canonical
        if canonical is None:
            continue
        for orphan in canonical.orphans:
            if orphan.was_canonical:
                yield _keys_of(source, load(orphan.hash))
        fresh = {entry.hash: entry.parent for entry in content.blocks}
        block_hash, stop = canonical.tip[1], canonical.fork[1] if canonical.fork is not None else ZERO_HASH
        while block_hash != stop and canonical.fork is not None:
            if block_hash in fresh:
                block_hash = fresh[block_hash]
                continue
            info = load(block_hash)
            yield _keys_of(source, info)
            block_hash = info.parent


def _keys_of(source: FrameSource, info: BlockInfo) -> Iterable[bytes]:
    return execution_of(source, info).changes if info.executed is not None else ()
