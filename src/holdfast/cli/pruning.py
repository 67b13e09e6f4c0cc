"""``holdfast prune``: the state of old heights is given up, to get room."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InvalidInputError
from .options import Config, DataDir, Json, Seconds
from .output import Output, bytes_text, count_text
from .progress import end_if_stopped

if TYPE_CHECKING:
    from ..store.pruning import PruneReport

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """The command is part of ``app``."""
    app.command("prune")(prune)


def prune(
    data_dir: DataDir,
    blocks: Annotated[
        int | None, typer.Option("--blocks", min=0, help="Final heights to keep; 0 = all; else the setting.")
    ] = None,
    below: Annotated[
        int | None, typer.Option("--below", min=0, metavar="HEIGHT", help="Give up every height below this one.")
    ] = None,
    every: Annotated[
        int | None,
        typer.Option("--every", min=0, help="Below those, keep every so many-th height; 0 = none; else as before."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would go, and how much room it is.")
    ] = False,
    progress_seconds: Seconds = 2.0,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Give up the state of old heights. Blocks, the present state and recent proofs stay. Stopped, it goes on later.

    Only heights of final blocks can go. Without options it does what the settings say; a running node does so itself.
    """
    from .session import load, store_at_work

    if blocks is not None and below is not None:
        raise InvalidInputError("--blocks and --below exclude each other")
    out = Output(as_json=as_json)
    settings = load(data_dir, config)
    title = "counting" if dry_run else "pruning"
    with store_at_work(title, data_dir, config, out, progress_seconds) as (store, work):
        before = _size(store.statistics())
        report = store.prune(
            blocks=settings.history_blocks if blocks is None else blocks,
            every=every,
            below=below,
            dry_run=dry_run,
            progress=work.progress,
            keep_going=work.keep_going,
        )
        after = _size(store.statistics())
    if as_json:
        out.record(report.as_dict() | {"bytes_before": before, "bytes_after": after})
    else:
        _tell(report, before, after, out)
    end_if_stopped(out, complete=report.complete)


def _size(statistics: dict[str, object]) -> int | None:
    views = statistics.get("views")
    size = views.get("size_bytes") if isinstance(views, dict) else None
    return size if isinstance(size, int) else None


def _tell(report: PruneReport, before: int | None, after: int | None, out: Output) -> None:
    values: dict[str, object] = {
        "readable_before": f"from height {report.floor_before} on",
        "readable_after": _readable(report),
        "heights_lost": report.heights_lost,
        "proofs": f"from height {report.proof_floor} on, as before",
        "blocks_looked_at": report.blocks,
    }
    if report.dry_run:
        values["rows_to_remove"] = report.rows
        values["room_to_gain"] = f"about {bytes_text(report.estimated_bytes)}, before compression"
    else:
        values["rows_removed"] = report.rows
        if before is not None and after is not None:
            values["views"] = f"{bytes_text(before)} before, {bytes_text(after)} after"
    out.record(values)
    if not report.heights_lost and not report.rows:
        out.text("nothing to prune\n")
    elif report.dry_run:
        out.text(f"dry run: {count_text(report.heights_lost)} heights would stop working; nothing was changed\n")


def _readable(report: PruneReport) -> str:
    text = f"from height {report.floor_after} on"
    if report.every:
        text += f", and every {report.every}th from {report.oldest} on"
    return text
