"""``holdfast compact``: the journal needs less room, and reads as before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import CorruptionError
from .options import Config, DataDir, Json, Seconds
from .output import Output, bytes_text
from .progress import end_if_stopped

if TYPE_CHECKING:
    from ..store.compacting import CompactReport

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """The command is part of ``app``."""
    app.command("compact")(compact)


def compact(
    data_dir: DataDir,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done, and about how much room it gives.")
    ] = False,
    rate: Annotated[
        int | None, typer.Option("--rate", min=1, metavar="BYTES", help="Most bytes that are read in a second.")
    ] = None,
    progress_seconds: Seconds = 2.0,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Make the journal of final blocks smaller. Everything can be read as before. Stopped, it goes on later.

    Each sealed segment below finality becomes a compressed one that gives the same bytes, checked before it is used.
    """
    from .session import store_at_work

    out = Output(as_json=as_json)
    with store_at_work("compacting", data_dir, config, out, progress_seconds, unit="bytes") as (store, work):
        report = store.compact(
            dry_run=dry_run,
            bytes_per_second=rate,
            progress=work.progress,
            keep_going=work.keep_going,
        )
    if as_json:
        out.record(report.as_dict())
    else:
        _tell(report, out)
    end_if_stopped(out, complete=report.complete)
    if report.damaged:
        raise CorruptionError(
            "damaged segments were left as they are; all others were compacted",
            path=data_dir,
            segments=", ".join(map(str, report.damaged)),
        )


def _tell(report: CompactReport, out: Output) -> None:
    about = "about " if report.dry_run else ""
    share = 1 - report.bytes_after / report.bytes_before if report.bytes_before else 0.0
    out.record(
        {
            "segments_below_finality": report.segments,
            "to_compact" if report.dry_run else "compacted": report.compacted,
            "kept_as_they_are": report.kept,
            "damaged": ", ".join(map(str, report.damaged)) or "none",
            "their_size": f"{bytes_text(report.bytes_before)} before, {about}{bytes_text(report.bytes_after)} after",
            "saved": f"{about}{share:.0%}",
            "journal": f"{bytes_text(report.journal_bytes_before)} before, "
            f"{about}{bytes_text(report.journal_bytes_after)} after",
            "seconds": round(report.seconds, 1),
        }
    )
    if not report.compacted:
        out.text("nothing to compact\n")
    elif report.dry_run:
        out.text("dry run: nothing was changed\n")
