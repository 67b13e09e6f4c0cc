"""The canonical chain checked again, block by block, after it was loaded.

Invariants:
    * Reads only; memory does not grow with the chain.
    * The stored bytes are decoded and hashed again: nothing that the index says is believed.
    * A bad block does not end the check: it is reported and the next one is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import CorruptionError, InvalidBlock, InvalidInputError
from ...types import BlockInfo
from .chain import PowChain
from .persistence import StoreAncestry

if TYPE_CHECKING:
    from ...store import Store

__all__ = ["ValidationIssue", "ValidationReport", "validate_blocks"]


@dataclass(frozen=True, slots=True)
class ValidationIssue:
    """One fault. ``kind`` is ``invalid``, ``link``, ``work``, ``forced``, ``missing`` or ``corruption``."""

    height: int
    kind: str
    text: str
    hash: bytes | None = None


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """What was checked: indexes ``start <= index < stop``, and the faults found (``truncated``: there are more)."""

    start: int
    stop: int
    blocks: int
    issues: tuple[ValidationIssue, ...]
    truncated: bool = False

    @property
    def ok(self) -> bool:
        """Whether no fault was found."""
        return not self.issues

    def require(self) -> None:
        """Nothing happens if the report is clean; else ``CorruptionError`` names the first fault."""
        if self.issues:
            first = self.issues[0]
            raise CorruptionError(
                f"the stored chain is not valid: {first.text}",
                height=first.height,
                kind=first.kind,
                hash=first.hash,
                issues=len(self.issues),
            )


class _Checker:
    def __init__(self, store: Store, chain: PowChain, forced: Mapping[int, bytes]) -> None:
        self._store = store
        self._chain = chain
        self._forced = forced
        self._ancestry = StoreAncestry(store)

    def check(self, height: int, info: BlockInfo | None, parent: BlockInfo | None) -> list[ValidationIssue]:
        """The faults of the canonical block at ``height``."""
        if info is None:
            return [ValidationIssue(height, "missing", "no canonical block at this height")]
        issues: list[ValidationIssue] = []

        def fault(kind: str, text: str) -> None:
            issues.append(ValidationIssue(height, kind, text, info.hash))

        if info.height != height or (height > 0 and (parent is None or info.parent != parent.hash)):
            fault("link", "the block is not the child of the canonical block before it")
        below = 0 if parent is None else parent.total_work
        if info.total_work != below + info.work:
            fault("work", f"total work is {info.total_work}, expected {below + info.work}")
        if self._forced.get(height, info.hash) != info.hash:
            fault("forced", f"another block is forced at this height: {self._forced[height].hex()}")
        try:
            header, body = self._store.blocks.header(info), self._store.blocks.body(info)
            block = self._chain.decode(header, body, parent=parent)
            if block.hash != info.hash or block.work != info.work:
                fault("link", "the stored bytes are another block's")
            elif not issues:
                self._chain.validate(block, parent, self._ancestry)
        except InvalidBlock as exc:
            fault("invalid", str(exc))
        except CorruptionError as exc:
            fault("corruption", str(exc))
        return issues


def validate_blocks(
    store: Store,
    chain: PowChain,
    start: int = 0,
    stop: int | None = None,
    *,
    forced: Mapping[int, bytes],
    issues_max: int = 100,
) -> ValidationReport:
    """Check the canonical blocks ``start <= index < stop`` (``None`` = to the tip). Cost: one block read per index."""
    if start < 0 or issues_max < 1:
        raise InvalidInputError(
            "start must be at least 0 and issues_max at least 1", start=start, issues_max=issues_max
        )
    tip = store.tip
    end = 0 if tip is None else tip.height + 1
    stop = end if stop is None else min(stop, end)
    checker = _Checker(store, chain, forced)
    issues: list[ValidationIssue] = []
    parent = store.blocks.at(start - 1) if start > 0 else None
    for height in range(start, stop):
        info = store.blocks.at(height)
        issues.extend(checker.check(height, info, parent))
        if len(issues) >= issues_max:
            return ValidationReport(start, stop, height + 1 - start, tuple(issues[:issues_max]), truncated=True)
        parent = info
    return ValidationReport(start, stop, max(0, stop - start), tuple(issues))
