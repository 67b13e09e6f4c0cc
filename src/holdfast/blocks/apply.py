"""What a frame does to the views: one function for live commits, replay at open, rebuild and followers.

Invariants:
    * ``prepare`` does all that can fail and changes nothing; ``Prepared.finish`` only packs numbers into rows.
    * The result depends on the frame, the rows below it and the registered index functions; on nothing else.
    * A reorg first restores the rows of the fork point (one layer), then adopts each new block (a layer each), so the
      undo of every block stays a function of that block alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

import msgspec

from ..errors import CorruptionError
from ..state.rows import Execution, blob_rows, chain_rows
from ..types import BlockInfo, OrphanInfo
from ..views.api import FrameLayers, Layer, RowReader, Rows
from .content import FrameContent
from .entries import BlockEntry, CanonicalEntry, OrphanEntry
from .lookup import find_block, load_referred
from .records import (
    block_key,
    canonical_key,
    encode_block_record,
    encode_orphan_record,
    height_key,
    orphan_key,
    producer_key,
    time_key,
)
from .state import ChainState, encode_state, root_after

__all__ = ["ChainIndexes", "ExecutionOf", "Prepared", "UndoOf", "prepare"]

UndoOf = Callable[[int, bytes], Rows]
"""(height, hash) -> the values of the block's chain rows in the state of its parent."""
ExecutionOf = Callable[[BlockInfo], Execution]
"""What a block that an earlier frame brought did to the state."""


class ChainIndexes(Protocol):
    """The user indexes, as far as a frame concerns them."""

    def rows(self, block: BlockEntry | BlockInfo, content: FrameContent) -> Rows:
        """Chain rows for a block that becomes canonical. Raises ``IndexFailed``; nothing is changed then."""

    def cut(self, fork_height: int, fork_hash: bytes) -> Rows:
        """Log rows for a reorg: indexes that are behind were undone down to the fork point with everything else."""

    def fallen(self) -> Rows:
        """Log rows of the indexes that fell behind in this frame, because their function failed in a replay."""


class Prepared(msgspec.Struct):
    """A frame that may be appended; ``finish`` gives its layers once its number and time are known."""

    content: FrameContent
    state: ChainState
    rows: Rows
    chain_layers: list[Layer]
    undone: list[tuple[int, bytes, Rows]]
    orphans: list[tuple[OrphanEntry, int, int | None]]
    """Orphan, its height, and when it was first seen (``None``: with this frame)."""
    adopted: tuple[bytes, ...]

    def finish(self, seq: int, time_us: int) -> FrameLayers:
        """The layers of frame ``seq``; cannot fail."""
        rows = self.rows
        for entry in self.content.blocks:
            rows[block_key(entry.hash)] = encode_block_record(entry, seq, time_us)
        for orphan, height, seen in self.orphans:
            rows[orphan_key(orphan.hash)] = encode_orphan_record(
                OrphanInfo(
                    hash=orphan.hash,
                    height=height,
                    reason=orphan.reason,
                    competing_hash=orphan.competing,
                    seen_us=time_us if seen is None else seen,
                    orphaned_us=time_us,
                    was_canonical=orphan.was_canonical,
                )
            )
        layers = self.chain_layers
        if layers:
            layers[0].rows = rows
        elif rows:
            layers = [Layer(rows)]
        return FrameLayers(seq, layers, partial(encode_state, self.state), self.state.floor, self.undone)


def prepare(
    content: FrameContent,
    state: ChainState,
    reader: RowReader,
    undo_of: UndoOf,
    execution_of: ExecutionOf,
    indexes: ChainIndexes | None,
) -> Prepared:
    """Everything that ``content`` changes on top of ``state``. Raises before anything is changed.

    Cost: O(blocks in the frame + blocks that enter or leave the canonical chain, with their changes of the state).
    """
    rows: Rows = {}
    if content.executions or state.stateful:
        _set_roots(content, state, reader)
        for execution in content.executions.values():
            if execution.large:
                rows.update(blob_rows(execution.changes))
        state = state._replace(stateful=True)
    for entry in content.blocks:
        block_hash, height = entry.hash, entry.height
        rows[height_key(height, block_hash)] = rows[time_key(entry.time, height, block_hash)] = b""
        if entry.producer:
            rows[producer_key(entry.producer, height, block_hash)] = b""
    prepared = Prepared(content, state, rows, [], [], [], ())
    canonical = content.canonical
    if canonical is not None:
        _switch(prepared, canonical, reader, undo_of, execution_of, indexes)
        if indexes is not None:
            rows.update(indexes.fallen())
    elif content.blocks:
        prepared.state = state._replace(blocks=state.blocks + len(content.blocks))
    if content.finalized is not None:
        final = content.finalized
        prepared.state = prepared.state._replace(finalized=final.height, floor=final.floor)
    return prepared


def _set_roots(content: FrameContent, state: ChainState, reader: RowReader) -> None:
    """Every block of the frame knows the root after it: its own, or that of its parent."""
    roots = {state.tip_hash: state.state_root}
    for entry in content.blocks:
        execution = content.executions.get(entry.hash)
        if execution is not None:
            entry.state_root = execution.root
        elif entry.parent in roots:
            entry.state_root = roots[entry.parent]
        else:
            entry.state_root = root_after(find_block(reader.get, entry.parent))
        roots[entry.hash] = entry.state_root


def _switch(
    prepared: Prepared,
    canonical: CanonicalEntry,
    reader: RowReader,
    undo_of: UndoOf,
    execution_of: ExecutionOf,
    indexes: ChainIndexes | None,
) -> None:
    content, state = prepared.content, prepared.state
    fork = canonical.fork
    if fork is not None and fork[1] == state.tip_hash and not canonical.orphans and _runs(content.blocks, canonical):
        _extend(prepared, canonical, indexes)
        return
    fresh = {entry.hash: entry for entry in content.blocks}
    left: list[tuple[int, bytes]] = []
    if fork is None:
        if state.has_tip:
            raise CorruptionError("a second root in the journal", hash=canonical.tip[1], height=canonical.tip[0])
    elif fork[1] != state.tip_hash:
        left = list(_walk(state.tip_height, state.tip_hash, fork, reader))
        restored: Rows = {}
        for height, block_hash in left:
            undo = undo_of(height, block_hash)
            prepared.undone.append((height, block_hash, undo))
            restored.update(undo)
        prepared.chain_layers.append(Layer({}, restored))
        if indexes is not None:
            prepared.rows.update(indexes.cut(*fork))
    joined = _joined(canonical, fork, fresh, reader)
    for _, _, entry in joined:
        execution = content.executions.get(entry.hash)
        if execution is None and isinstance(entry, BlockInfo) and entry.executed is not None:
            execution = execution_of(entry)
        _adopt(prepared, entry, execution, indexes)
    returned = [block_hash for _, block_hash, _ in joined if block_hash not in fresh]
    for block_hash in returned:
        prepared.rows[orphan_key(block_hash)] = None
    _put_orphans(prepared, canonical, fresh, reader)
    prepared.adopted = tuple(block_hash for _, block_hash, _ in joined)
    root = (state.root_height, state.root_hash) if fork is not None else joined[0][:2]
    state_root = state.state_root
    if state.stateful and (joined or left):
        state_root = root_after(joined[-1][2] if joined else load_referred(reader.get, canonical.tip[1]))
    prepared.state = ChainState(
        canonical.tip[0],
        canonical.tip[1],
        root[0],
        root[1],
        state.finalized,
        canonical.floor,
        state.blocks + len(content.blocks),
        state.orphans + len(canonical.orphans) - len(returned),
        state.reorgs + (1 if left else 0),
        max(state.reorg_depth_max, len(left)),
        state.orphaned + len(left),
        state_root,
        state.stateful,
    )


def _put_orphans(
    prepared: Prepared, canonical: CanonicalEntry, fresh: dict[bytes, BlockEntry], reader: RowReader
) -> None:
    for orphan in canonical.orphans:
        known = fresh.get(orphan.hash)
        if known is not None:
            prepared.orphans.append((orphan, known.height, None))
        else:
            info = load_referred(reader.get, orphan.hash)
            prepared.orphans.append((orphan, info.height, info.seen_us))


def _joined(
    canonical: CanonicalEntry, fork: tuple[int, bytes] | None, fresh: dict[bytes, BlockEntry], reader: RowReader
) -> list[tuple[int, bytes, BlockEntry | BlockInfo]]:
    """The blocks that become canonical, lowest first."""
    tip_height, tip_hash = canonical.tip
    if fork is None:
        # A root: every block of the frame, the first of which has no stored parent.
        path = list(fresh.values())
        if not path or path[-1].hash != tip_hash:
            raise CorruptionError("the root of the chain is not in its own frame", hash=tip_hash, height=tip_height)
        return [(entry.height, entry.hash, entry) for entry in path]
    joined: list[tuple[int, bytes, BlockEntry | BlockInfo]] = []
    height, block_hash = tip_height, tip_hash
    while block_hash != fork[1]:
        if height <= fork[0]:
            raise CorruptionError("the new tip does not descend from the fork point", hash=tip_hash, fork=fork[1])
        entry = fresh.get(block_hash) or load_referred(reader.get, block_hash)
        joined.append((height, block_hash, entry))
        height, block_hash = height - 1, entry.parent
    joined.reverse()
    return joined


def _runs(blocks: list[BlockEntry], canonical: CanonicalEntry) -> bool:
    """True if the frame's blocks, each the child of the one before it, are just what leads from the fork to the tip."""
    assert canonical.fork is not None
    height, parent = canonical.fork
    for entry in blocks:
        height += 1
        if entry.parent != parent or entry.height != height:
            return False
        parent = entry.hash
    return parent == canonical.tip[1] and bool(blocks)


def _adopt(
    prepared: Prepared, entry: BlockEntry | BlockInfo, execution: Execution | None, indexes: ChainIndexes | None
) -> None:
    """The rows of a block that becomes canonical are a layer on top."""
    rows: Rows = {canonical_key(entry.height): entry.hash}
    if execution is not None:
        rows.update(chain_rows(execution))
    if indexes is not None:
        more = indexes.rows(entry, prepared.content)
        if more:
            rows.update(more)
    prepared.chain_layers.append(Layer({}, rows, (entry.height, entry.hash)))


def _extend(prepared: Prepared, canonical: CanonicalEntry, indexes: ChainIndexes | None) -> None:
    """The common case of ``_switch``: new blocks on the tip, nothing leaves."""
    content, state = prepared.content, prepared.state
    blocks = content.blocks
    for entry in blocks:
        _adopt(prepared, entry, content.executions.get(entry.hash), indexes)
    prepared.adopted = tuple([entry.hash for entry in blocks])
    tip_height, tip_hash = canonical.tip
    prepared.state = ChainState(
        tip_height,
        tip_hash,
        state.root_height,
        state.root_hash,
        state.finalized,
        canonical.floor,
        state.blocks + len(blocks),
        state.orphans,
        state.reorgs,
        state.reorg_depth_max,
        state.orphaned,
        blocks[-1].state_root,
        state.stateful,
    )


def _walk(height: int, block_hash: bytes, fork: tuple[int, bytes], reader: RowReader) -> Iterable[tuple[int, bytes]]:
    """(height, hash) from a block down to, not including, the fork point."""
    while block_hash != fork[1]:
        if height <= fork[0]:
            raise CorruptionError("the tip does not descend from the fork point", hash=block_hash, fork=fork[1])
        yield height, block_hash
        height, block_hash = height - 1, load_referred(reader.get, block_hash).parent
