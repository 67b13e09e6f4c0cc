"""Every root in the journal, recomputed: the changes of each block are applied to the tree of its parent.

Nothing but the journal, and the base it stands on, is read. Blocks of every branch are checked, as long as their parent
could still be extended: it is at or above the reorg floor, or it is an ancestor of such a block.

Invariant: of each block that may still have children a version of the tree is kept; they share what is equal, so
memory is that of the tree and of what changed since the reorg floor.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .._fs import FileSystem
from .._seal import StoreCipher
from ..blocks.content import FrameContent, decode_frame
from ..blocks.state import has_root
from ..errors import CorruptionError, Recovery
from ..merkle.api import Scheme, Tree
from ..merkle.backend import backend
from ..merkle.values import tree_value
from ..state.rows import Execution
from ..store.base import read_base
from ..types import ZERO_HASH
from .links import Counter, Frames

__all__ = ["check_roots"]


class _Roots:
    def __init__(self, first: Tree, tally: Counter) -> None:
        self._first = first
        self._tally = tally
        self._trees: dict[bytes, tuple[int, Tree]] = {}
        self.tip = ZERO_HASH
        self._floor = 0
        self.lost = 0
        """Blocks whose parent's tree was not kept any more."""

    @property
    def tree(self) -> Tree | None:
        """The tree at the tip."""
        return self._trees[self.tip][1] if self.tip in self._trees else None

    def frame(self, seq: int, content: FrameContent) -> None:
        """The blocks of a frame are checked, and remembered."""
        for entry in content.blocks:
            self._tally.step()
            parent = self._trees.get(entry.parent)
            if parent is None and self._trees:
                self.lost += 1
                continue
            tree = parent[1] if parent is not None else self._first
            execution = content.executions.get(entry.hash)
            if execution is not None:
                tree = self._executed(seq, entry.hash, entry.height, execution, tree)
            self._trees[entry.hash] = (entry.height, tree)
        if content.canonical is not None:
            self.tip = content.canonical.tip[1]
            self._raise_floor(content.canonical.floor)
        if content.finalized is not None:
            self._raise_floor(content.finalized.floor)

    def _executed(self, seq: int, block_hash: bytes, height: int, execution: Execution, tree: Tree) -> Tree:
        changes = {key: None if value is None else tree_value(value) for key, value in execution.changes.items()}
        update = tree.update(changes)
        if update.tree.root != execution.root:
            self._problem(
                "the changes of a block do not give its root",
                seq=seq,
                height=height,
                hash=block_hash,
                expected=execution.root,
                found=update.tree.root,
            )
        if not _same(update.inserted, execution.inserted) or not _same(update.removed, execution.removed):
            self._problem(
                "the changes of a block are wrong about which keys were there before it",
                seq=seq,
                height=height,
                hash=block_hash,
            )
        return update.tree

    def _problem(self, message: str, **context: object) -> None:
        self._tally.problem(CorruptionError(message, remedy=None, recovery=Recovery.MANUAL, **context))

    def _raise_floor(self, floor: int) -> None:
        if floor > self._floor:
            self._floor = floor
            self._trees = {
                block_hash: kept
                for block_hash, kept in self._trees.items()
                if kept[0] >= floor or block_hash == self.tip
            }


def _same(one: Iterable[tuple[bytes, bytes]], other: Iterable[tuple[bytes, bytes]]) -> bool:
    return set(one) == set(other)


def check_roots(
    fs: FileSystem,
    root: Path,
    source: Frames,
    scheme: Scheme,
    tally: Counter,
    *,
    tip: tuple[int, bytes] | None,
    cipher: StoreCipher | None = None,
) -> int:
    """Every block that says a root has it; number of blocks that could not be checked.

    Args:
        fs, root: where the store lies, for the base that its journal stands on.
        source: the journal, from its first frame on.
        cipher: what the key of an encrypted store opened.
        tip: number of the last frame in the views and the root that they record after it; compared where it is passed.
    Raises:
        CorruptionError: the base or the journal cannot be read.
    """
    first = backend().build(scheme, (chunk.records for chunk in read_base(fs, root, source, cipher)))
    roots = _Roots(first, tally)
    for frame in source.frames(source.first_seq):
        content = decode_frame(source, frame)
        if content is not None:
            roots.frame(frame.seq, content)
        tree = roots.tree
        if tip is not None and frame.seq == tip[0] and tree is not None and not has_root(tree, tip[1]):
            tally.problem(
                CorruptionError(
                    "the views record another root than the journal gives",
                    seq=frame.seq,
                    expected=tree.root,
                    found=tip[1],
                    recovery=Recovery.REBUILD,
                )
            )
    return roots.lost
