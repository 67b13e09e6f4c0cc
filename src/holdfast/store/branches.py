"""The state of blocks that are not the tip: a side branch, or a height whose undo is still there.

The rows of such a block are those of the tip with others laid over them: going down from the tip to the fork point the
undo of each canonical block, then up the branch what each of its blocks did. The tree follows the same way, and must
have the root that the block was stored with.

Invariants:
    * Everything here is asked with the writer's lock held, or by a follower that does not move meanwhile.
    * A remembered answer is used again only for the same tip, or brought forward along blocks that extend it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import msgspec

from ..blocks.apply import ExecutionOf
from ..blocks.lookup import canonical_hash, load_block
from ..blocks.state import has_root, root_after
from ..errors import CorruptionError, LimitExceeded, PrunedError, Recovery
from ..merkle.api import Tree
from ..state.rows import chain_rows, tree_changes
from ..types import BlockInfo
from ..views.api import RowReader, Rows
from ..views.tables import PREIMAGES, STATE
from ..views.views import Views

__all__ = ["Branches", "Moment"]

_ROWS_MAX = 8_000_000
"""State rows that may differ between the tip and the block asked for."""
_REMEMBERED = 4
_TABLES = (STATE.prefix, PREIMAGES.prefix)


class Moment(msgspec.Struct, frozen=True):
    """A store at rest: its rows, tip, and the tree over the state at the tip."""

    views: Views
    rows: RowReader
    tip: BlockInfo | None
    tree: Tree
    execution_of: ExecutionOf


class _Answer(msgspec.Struct):
    tip: BlockInfo
    rows: Rows
    tree: Tree


def _state_rows(rows: Rows) -> Rows:
    return {key: value for key, value in rows.items() if key[:2] in _TABLES}


class Branches:
    """States of blocks beside the tip; remembers the last few."""

    def __init__(self, now: Callable[[], Moment]) -> None:
        self._now = now
        self._answers: OrderedDict[bytes, _Answer] = OrderedDict()

    def state_of(self, target: BlockInfo) -> tuple[Rows, Tree]:
        """Rows to lay over those of the tip, and the tree, as they are after ``target``.

        Raises ``PrunedError`` if the undo between the tip and the fork point is gone, ``LimitExceeded`` if too much
        changed since. Cost: O(what the blocks between changed); asked again, only what came since.
        """
        moment = self._now()
        tip = moment.tip
        if tip is None or tip.hash == target.hash:
            return {}, moment.tree
        answer = self._answers.pop(target.hash, None)
        if answer is not None and answer.tip.hash != tip.hash:
            answer = self._brought_forward(answer, moment)
        if answer is None:
            answer = self._made(target, moment)
        self._answers[target.hash] = answer
        while len(self._answers) > _REMEMBERED:
            self._answers.popitem(last=False)
        return answer.rows, answer.tree

    def forget(self) -> None:
        """Nothing is remembered: the rows were replaced or dropped."""
        self._answers.clear()

    def _brought_forward(self, answer: _Answer, moment: Moment) -> _Answer | None:
        """The same answer over the present tip, if that descends from the tip it was made for."""
        if canonical_hash(moment.rows.get, answer.tip.height) != answer.tip.hash:
            return None
        rows = self._undone(moment, answer.tip.height)
        rows.update(answer.rows)
        assert moment.tip is not None
        return _Answer(moment.tip, rows, answer.tree)

    def _made(self, target: BlockInfo, moment: Moment) -> _Answer:
        branch: list[BlockInfo] = []
        info = target
        while canonical_hash(moment.rows.get, info.height) != info.hash:
            branch.append(info)
            self._check_floor(moment, info.height - 1, target)
            info = load_block(moment.rows.get, info.parent)
        self._check_floor(moment, info.height, target)
        rows = self._undone(moment, info.height)
        # A flush of the writing process may have replaced rows that this undo was read from, and stored no undo.
        self._check_floor(moment, info.height, target, now=True)
        for info in reversed(branch):
            if info.executed is not None:
                rows.update(chain_rows(moment.execution_of(info)))
                self._check_size(rows)
        changes = tree_changes((rows,))
        tree = moment.tree.update(changes).tree if changes else moment.tree
        expected = root_after(target)
        if not has_root(tree, expected):
            raise CorruptionError(
                "the state of a block does not have the root it was stored with",
                hash=target.hash,
                height=target.height,
                expected=expected,
                found=tree.root,
                remedy="run 'holdfast verify --level state', then 'holdfast rebuild'",
                recovery=Recovery.REBUILD,
            )
        assert moment.tip is not None
        return _Answer(moment.tip, rows, tree)

    def _undone(self, moment: Moment, fork_height: int) -> Rows:
        """State rows as they were after the canonical block at ``fork_height``, of all keys changed since."""
        assert moment.tip is not None
        rows: Rows = {}
        for height in range(moment.tip.height, fork_height, -1):
            block_hash = canonical_hash(moment.rows.get, height)
            if block_hash is None:
                raise CorruptionError("the canonical chain has a gap", height=height, recovery=Recovery.REBUILD)
            rows.update(_state_rows(moment.views.undo_of(height, block_hash)))
            self._check_size(rows)
        return rows

    @staticmethod
    def _check_floor(moment: Moment, fork_height: int, target: BlockInfo, *, now: bool = False) -> None:
        floor = moment.views.undo_floor_now() if now else moment.views.undo_floor
        if fork_height < floor:
            raise PrunedError(
                "the state of this block cannot be made any more: what undoes the blocks above it is gone",
                hash=target.hash,
                height=target.height,
                least_readable=floor,
                setting="proof_window_blocks",
            )

    @staticmethod
    def _check_size(rows: Rows) -> None:
        if len(rows) > _ROWS_MAX:
            raise LimitExceeded("too much of the state changed since that block", found=len(rows), limit=_ROWS_MAX)
