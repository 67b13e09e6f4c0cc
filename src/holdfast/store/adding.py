"""Adding blocks: validation, fork choice, runs of blocks in one frame, and blocks that wait for their parent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..blocks.content import entry_of
from ..blocks.entries import BlockEntry, entry_info
from ..blocks.reader import BlockReader
from ..blocks.state import root_after
from ..consensus.records import SafetyRecord
from ..errors import (
    CallbackError,
    ConflictError,
    HoldfastError,
    IndexFailed,
    InternalError,
    InvalidBlock,
    InvalidInputError,
    LimitExceeded,
    ParentMismatch,
    ParentUnknown,
    RootMismatch,
    SafetyError,
)
from ..events import emit
from ..limits import BLOCKS_PER_FRAME_MAX
from ..merkle.api import SCHEMES, Tree
from ..state.draft import BlockState, DraftState
from ..state.reader import OverlaidRows
from ..state.rows import Execution, blob_rows, chain_rows
from ..types import ZERO_HASH, AddResult, AddStatus, Block, BlockInfo, ReorgInfo
from ..views.api import Rows
from .chain import Chain, ExecutingChain
from .checks import block_size, check_block
from .waiting import WaitingRoom
from .writer import Writer, Written

__all__ = ["Adder"]

_RUN_BYTES_MAX = 4 * 1024 * 1024
_EXECUTED_PER_FRAME_MAX = 16
"""Blocks of a run that is executed: they have twice the parts, and whoever reads one block reads the table of all."""


class _Run:
    """Blocks, each the child of the one before it, that extend the tip and go into one frame."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.entries: list[BlockEntry] = []
        self.executions: dict[bytes, Execution] = {}
        self.state: _RunState | None = None
        """That after the last block, if the chain executes."""
        self.failure: HoldfastError | None = None
        """Why the next block is refused, once these are stored."""


class _RunState:
    """The state after the last block of a run that is not written yet. Belongs to one thread."""

    def __init__(self, held: BlockState) -> None:
        self._held = held
        self._rows: Rows = {}
        self._laid = OverlaidRows(held.rows, self._rows)
        self.tree = held.tree

    def draft(self) -> DraftState:
        """A draft on it; its end releases nothing."""
        return DraftState(BlockState(self._laid if self._rows else self._held.rows, self.tree, _nothing))

    def advance(self, execution: Execution, tree: Tree) -> None:
        """It is the state after one block more."""
        self._rows.update(chain_rows(execution))
        if execution.large:
            self._rows.update(blob_rows(execution.changes))
        self._laid.changed()
        self.tree = tree

    def release(self) -> None:
        """Nothing is kept for it any more."""
        self._held.release()


def _nothing() -> None:
    """A draft within a run holds nothing of its own."""


class _RunAncestry:
    """Stored blocks, and before them the blocks of a run that is not written yet."""

    def __init__(self, blocks: BlockReader) -> None:
        self._blocks = blocks
        self.pending: dict[bytes, tuple[BlockInfo, bytes]] = {}

    def info(self, block_hash: bytes) -> BlockInfo | None:
        found = self.pending.get(block_hash)
        return found[0] if found is not None else self._blocks.get(block_hash)

    def header(self, block: BlockInfo) -> bytes:
        found = self.pending.get(block.hash)
        return found[1] if found is not None else self._blocks.header(block)

    def ancestor(self, block: BlockInfo, height: int) -> BlockInfo | None:
        while block.hash in self.pending and block.height > height:
            above = self.info(block.parent)
            if above is None:
                return None
            block = above
        return self._blocks.ancestor(block, height)


def _raised_by_chain(method: str, error: Exception, block: Block) -> CallbackError:
    return CallbackError(
        f"the chain's '{method}' raised {type(error).__name__}: {error}", hash=block.hash, height=block.height
    )


def _check_claim(block: Block, claimed: bytes | None, found: bytes) -> None:
    if claimed is not None and claimed != found:
        raise RootMismatch(
            "the state does not have the root that the block claims",
            hash=block.hash,
            height=block.height,
            expected=claimed,
            found=found,
        )


class Adder:
    """Takes blocks one by one or in runs. Every method expects the writer's lock to be held by the caller."""

    def __init__(
        self,
        writer: Writer,
        chain: Chain,
        blocks: BlockReader,
        waiting: WaitingRoom,
        open_state: Callable[[bytes | None], BlockState],
    ) -> None:
        self._writer = writer
        self._chain = chain
        self._executing = chain if isinstance(chain, ExecutingChain) else None
        self._open_state = open_state
        self._blocks = blocks
        self._waiting = waiting
        self._stored = _RunAncestry(blocks)

    def add(self, block: Block, *, validate: bool, root_allowed: bool, wait_for_parent: bool) -> AddResult:
        """The block is stored where the fork choice puts it, with every block that waited for it."""
        result = self._add_one(block, validate=validate, root_allowed=root_allowed, wait_for_parent=wait_for_parent)
        if result.status in (AddStatus.WAITING, AddStatus.KNOWN):
            return result
        if not len(self._waiting):
            return result
        connected, reorg = self._connect(block.hash)
        return AddResult(result.status, result.block, reorg or result.reorg, connected)

    def _connect(self, block_hash: bytes) -> tuple[tuple[bytes, ...], ReorgInfo | None]:
        """Blocks that waited for this one are stored: their hashes, and the last reorg among them.

        Each is judged as its own caller asked. One that may not or cannot be stored is dropped: its parent is stored
        already, so nothing is raised for it. (If the store was poisoned, making the parent durable says so.)
        """
        connected: list[bytes] = []
        reorg = None
        queue, dropped = [block_hash], set[bytes]()
        while queue:
            parent = queue.pop(0)
            for child, trusted in self._waiting.take_children(parent):
                queue.append(child.hash)
                if parent in dropped:
                    dropped.add(child.hash)
                    continue
                try:
                    result = self._add_one(child, validate=not trusted, root_allowed=False, wait_for_parent=False)
                except (InvalidBlock, SafetyError, LimitExceeded, ConflictError):
                    dropped.add(child.hash)  # it was never accepted, and its descendants never can be
                    continue
                except HoldfastError as error:
                    dropped.add(child.hash)
                    emit(
                        "waiting_block_dropped",
                        logging.WARNING,
                        f"a block that waited for its parent was not stored: {error}",
                        error=error,
                        hash=child.hash.hex(),
                        height=child.height,
                    )
                    continue
                reorg = result.reorg or reorg
                connected.append(child.hash)
        return tuple(connected), reorg

    def _add_one(self, block: Block, *, validate: bool, root_allowed: bool, wait_for_parent: bool) -> AddResult:
        check_block(block)
        known = self._blocks.get(block.hash)
        if known is not None:
            return AddResult(AddStatus.KNOWN, known)
        tip = self._writer.tip
        parent = tip if tip is not None and tip.hash == block.parent else self._blocks.get(block.parent)
        if parent is None and not (tip is None and (root_allowed or block.parent == ZERO_HASH)):
            if wait_for_parent:
                self._waiting.put(block, trusted=not validate)
                return AddResult(AddStatus.WAITING, None)
            raise ParentUnknown("the parent of the block is not stored", hash=block.hash, parent=block.parent)
        self._judge(block, parent, self._stored, validate=validate)
        if self._executing is None:
            return self._result(self._write(block, parent, tip), block)
        block, executed = self._execute(self._executing, block, parent)
        return self._result(self._write(block, parent, tip, None, executed), block)

    def _execute(
        self, chain: ExecutingChain, block: Block, parent: BlockInfo | None
    ) -> tuple[Block, tuple[Execution, Tree]]:
        """The block with the extra bytes that its execution gave, and what it did to the state.

        Raises ``RootMismatch`` if the root is not the one that the block claims.
        """
        held = self._open_state(parent.hash if parent is not None else None)
        try:
            return self._executed(chain, block, parent, DraftState(held))
        finally:
            held.release()

    @staticmethod
    def _executed(
        chain: ExecutingChain, block: Block, parent: BlockInfo | None, state: DraftState
    ) -> tuple[Block, tuple[Execution, Tree]]:
        """As ``_execute``, on ``state``."""
        try:
            extra = chain.execute(block, parent, state)
            claimed = chain.state_root(block)
        except HoldfastError:
            raise
        except Exception as error:
            raise _raised_by_chain("execute", error, block) from error
        execution, tree = state.execution()
        _check_claim(block, claimed, execution.root)
        if extra is not None and extra != block.extra:
            block = replace(block, extra=extra)
            check_block(block)
        return block, (execution, tree)

    def _judge(self, block: Block, parent: BlockInfo | None, ancestry: _RunAncestry, *, validate: bool) -> None:
        if parent is not None and block.height != parent.height + 1:
            raise InvalidBlock(
                "the height of the block does not follow its parent's",
                hash=block.hash,
                found=block.height,
                expected=parent.height + 1,
            )
        if validate:
            try:
                self._chain.validate(block, parent, ancestry)
            except HoldfastError:
                raise
            except Exception as error:
                raise _raised_by_chain("validate", error, block) from error

    def _write(
        self,
        block: Block,
        parent: BlockInfo | None,
        tip: BlockInfo | None,
        safety: SafetyRecord | None = None,
        executed: tuple[Execution, Tree] | None = None,
    ) -> Written:
        writer = self._writer
        decider = writer.the_decider()
        tree = None
        if tip is None and not decider.extends(block.height, block.hash):
            raise InvalidBlock("another hash is forced at this height", hash=block.hash, height=block.height)
        if tip is None or (parent is tip and decider.extends(block.height, block.hash)):
            content = decider.extend([block], writer.state, tip)
            tree = executed[1] if executed is not None else None
        elif parent is None:
            raise InternalError("a block without a parent beside an existing chain", hash=block.hash)
        else:
            content = decider.branch_off(block, parent, writer.state, tip)
        if executed is not None:
            content.executions[block.hash] = executed[0]
        return writer.write(content, safety, tree)

    def _result(self, written: Written, block: Block) -> AddResult:
        if written.tip is None or written.tip.hash != block.hash:
            return AddResult(AddStatus.SIDE, written.blocks[0])
        status = AddStatus.REORGANISED if written.reorg is not None else AddStatus.EXTENDED
        return AddResult(status, written.blocks[0], written.reorg)

    def commit(
        self,
        block: Block,
        parent: BlockInfo | None,
        safety: SafetyRecord | None,
        executed: tuple[Execution, Tree] | None = None,
        base: bytes | None = None,
    ) -> Written:
        """A drafted block is stored.

        Args:
            parent: what the draft was built on.
            executed: what it did to the state, and the tree afterwards.
            base: root of the state that it was done to.
        """
        writer = self._writer
        tip = writer.tip
        if self._blocks.has(block.hash):
            raise ConflictError("a block with this hash is stored already", hash=block.hash)
        if parent is None:
            if tip is not None:
                raise ParentMismatch("the store is not empty any more", hash=block.hash, tip=tip.hash)
        elif tip is not None and parent.hash == tip.hash:
            parent = tip
        else:
            stored = self._blocks.get(parent.hash)
            if stored is None:
                raise ParentUnknown("the parent of the draft is not stored", hash=block.hash, parent=parent.hash)
            parent = stored
        if safety is not None:
            writer.book.check(safety)
        self._judge(block, parent, self._stored, validate=True)
        unchanged = root_after(parent, SCHEMES[self._chain.spec.scheme].null)
        if executed is not None and base != unchanged:
            raise InvalidInputError(
                "the draft was made by another store: the state of its parent is another one there",
                hash=block.hash,
                found=base,
                expected=unchanged,
                remedy="commit a draft to the store that made it",
            )
        if self._executing is not None:
            after = executed[0].root if executed is not None else unchanged
            _check_claim(block, self._executing.state_root(block), after)
        written = self._write(block, parent, tip, safety, executed)
        if len(self._waiting) and self._connect(block.hash)[0]:
            return Written(writer.journal.appended_seq, written.tip, written.reorg, written.blocks)
        return written

    # -- runs -------------------------------------------------------------------------------------------------

    def add_many(
        self, blocks: Sequence[Block], *, validate: bool, root_allowed: bool, wait_for_parent: bool
    ) -> list[AddResult]:
        """The same as adding one by one; blocks that extend the tip one after the other share frames.

        A run in front of a bad block is stored before the error is raised.
        """
        results: list[AddResult] = []
        position = 0
        while position < len(blocks):
            run = self._run(blocks, position, validate=validate, root_allowed=root_allowed)
            if run.blocks:
                try:
                    results.extend(self._write_run(run))
                except (IndexFailed, LimitExceeded):  # one of them did it: those before it are stored all the same
                    if len(run.blocks) == 1:
                        raise
                    for block in run.blocks:
                        results.append(
                            self._add_one(block, validate=False, root_allowed=root_allowed, wait_for_parent=False)
                        )
                position += len(run.blocks)
                if run.failure is not None:
                    raise run.failure
                continue
            results.append(
                self.add(
                    blocks[position], validate=validate, root_allowed=root_allowed, wait_for_parent=wait_for_parent
                )
            )
            position += 1
        return results

    def _run(self, blocks: Sequence[Block], position: int, *, validate: bool, root_allowed: bool) -> _Run:
        """The longest run from ``position`` that extends the tip and fits into a frame."""
        run = _Run()
        if len(self._waiting):
            return run
        most = BLOCKS_PER_FRAME_MAX if self._executing is None else _EXECUTED_PER_FRAME_MAX
        try:
            self._fill(run, blocks[position : position + most], validate=validate, root_allowed=root_allowed)
        except HoldfastError as error:
            if not run.blocks:
                raise
            run.failure = error
        finally:
            if run.state is not None:
                run.state.release()
        return run

    def _fill(self, run: _Run, blocks: Sequence[Block], *, validate: bool, root_allowed: bool) -> None:
        """``run`` holds those of ``blocks`` that may go into it. Raises for the first that is refused."""
        decider = self._writer.the_decider()
        parent = self._writer.tip
        ancestry = _RunAncestry(self._blocks)
        size = 0
        for block in blocks:
            check_block(block)
            follows = block.parent == parent.hash if parent is not None else root_allowed or block.parent == ZERO_HASH
            if not follows or not decider.extends(block.height, block.hash):
                break
            size += block_size(block)
            if run.blocks and size > _RUN_BYTES_MAX:
                break
            if block.hash in ancestry.pending or self._blocks.has(block.hash):
                break
            self._judge(block, parent, ancestry, validate=validate)
            if self._executing is not None:
                block, grown = self._execute_next(self._executing, run, block, parent)
                size += grown
            entry = entry_of(block, decider.total_work(block, parent))
            if run.state is not None:
                entry.state_root = run.state.tree.root
            parent = entry_info(entry, 0, 0)
            ancestry.pending[block.hash] = (parent, block.header)
            run.blocks.append(block)
            run.entries.append(entry)

    def _execute_next(
        self, chain: ExecutingChain, run: _Run, block: Block, parent: BlockInfo | None
    ) -> tuple[Block, int]:
        """The block as it is stored, and the bytes that its execution gave; the state of ``run`` is that after it."""
        if run.state is None:
            run.state = _RunState(self._open_state(parent.hash if parent is not None else None))
        draft = run.state.draft()
        try:
            stored, (execution, tree) = self._executed(chain, block, parent, draft)
        finally:
            draft.close()
        run.state.advance(execution, tree)
        run.executions[block.hash] = execution
        return stored, draft.size_bytes + len(stored.extra or b"") - len(block.extra or b"")

    def _write_run(self, run: _Run) -> list[AddResult]:
        writer = self._writer
        content = writer.the_decider().extend(run.blocks, writer.state, writer.tip, run.entries)
        content.executions = {block.hash: run.executions[block.hash] for block in run.blocks if run.executions}
        tree = run.state.tree if run.state is not None else None
        return [AddResult(AddStatus.EXTENDED, info) for info in writer.write(content, None, tree).blocks]
