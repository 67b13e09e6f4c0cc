"""``holdfast tips``, ``orphans``, ``reorg``, ``orphan`` and ``finalize``: branches, and moving between them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from .looking import find_block, find_hash
from .options import Config, DataDir, Json
from .output import Output

if TYPE_CHECKING:
    from ..store.store import Store
    from ..types import ReorgInfo

__all__ = ["register"]

Reason = Annotated[str, typer.Option("--reason", help="Kept with every block that this orphans.")]


def register(app: typer.Typer) -> None:
    """The commands are part of ``app``."""
    app.command("tips")(tips)
    app.command("orphans")(orphans)
    app.command("reorg")(reorg)
    app.command("orphan")(orphan)
    app.command("finalize")(finalize)


def tips(data_dir: DataDir, config: Config = None, as_json: Json = False) -> None:
    """List the leaves of the block tree: the active tip, forks, waiting blocks."""
    from .chains import display_hash
    from .session import open_to_read

    with open_to_read(data_dir, config) as store:
        rows = [
            {
                "hash": display_hash(store.spec.name, tip.hash),
                "height": tip.height,
                "branch_length": tip.branch_length,
                "status": tip.status,
            }
            for tip in store.blocks.tips()
        ]
        Output(as_json=as_json).rows(["status", "height", "branch_length", "hash"], rows, empty="no blocks yet")


def orphans(
    data_dir: DataDir,
    limit: Annotated[int, typer.Option("--limit", min=0, help="At most so many; 0 = all.")] = 0,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """List the stored blocks that are not canonical, and why."""
    from .session import open_to_read

    with open_to_read(data_dir, config) as store:
        rows = islice(_orphan_rows(store), min(limit, sys.maxsize) or None)
        columns = ["height", "hash", "was_canonical", "reason", "competing_hash"]
        Output(as_json=as_json).rows(columns, rows, empty="no orphans")


def _orphan_rows(store: Store) -> Iterator[dict[str, object]]:
    from .chains import display_hash

    name = store.spec.name
    for info in store.blocks.orphans():
        competing = info.competing_hash
        yield {
            "height": info.height,
            "hash": display_hash(name, info.hash),
            "reason": info.reason,
            "competing_hash": None if competing is None else display_hash(name, competing),
            "was_canonical": info.was_canonical,
            "seen": _when(info.seen_us),
            "orphaned": _when(info.orphaned_us),
        }


def _when(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat(timespec="milliseconds")


def reorg(
    data_dir: DataDir,
    to: Annotated[str, typer.Option("--to", metavar="HASH", help="A stored block of any branch, the new tip.")],
    reason: Reason = "manual reorganisation",
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Make a stored block the tip, in one atomic step."""
    from .session import open_to_write

    with open_to_write(data_dir, config, quiet=as_json) as store:
        target = find_hash(store, to, remedy="--to takes a hash, in full; 'holdfast tips' lists those of all branches")
        _report(store, store.reorg(target.hash, reason=reason), Output(as_json=as_json))


def orphan(
    data_dir: DataDir,
    block: Annotated[str, typer.Argument(metavar="HASH|HEIGHT", help="A block of any branch, or a canonical height.")],
    reason: Reason,
    competing: Annotated[str | None, typer.Option("--competing", metavar="HASH", help="The block that won.")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Mark a block orphaned; if it is canonical, its parent becomes the tip."""
    from .chains import parse_hash
    from .session import open_to_write

    with open_to_write(data_dir, config, quiet=as_json) as store:
        target = find_block(store, block)
        other = None if competing is None else parse_hash(store.spec.name, competing)
        _report(store, store.orphan(target.hash, reason=reason, competing=other), Output(as_json=as_json))


def _report(store: Store, moved: ReorgInfo | None, out: Output) -> None:
    from .chains import display_hash

    name, tip = store.spec.name, store.tip
    assert tip is not None
    values: dict[str, object] = {
        "changed": moved is not None,
        "tip": display_hash(name, tip.hash),
        "tip_height": tip.height,
    }
    if moved is not None:
        values |= {
            "fork_height": moved.fork_height,
            "fork": display_hash(name, moved.fork_hash),
            "old_tip": display_hash(name, moved.old_tip),
            "orphaned": len(moved.orphaned),
            "adopted": len(moved.adopted),
        }
    out.record(values)


def finalize(
    data_dir: DataDir,
    height: Annotated[int, typer.Argument(min=0, help="This height and everything below it becomes final.")],
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Make blocks final: no reorganisation may replace them any more."""
    from .session import open_to_write

    with open_to_write(data_dir, config, quiet=as_json) as store:
        store.finalize(height)
        tip = store.tip
        Output(as_json=as_json).record({"finalized": store.finalized, "tip_height": tip.height if tip else None})
