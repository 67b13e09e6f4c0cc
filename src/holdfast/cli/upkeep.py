"""``verify``, ``rebuild``, ``convert``, ``migrate``: a store at rest is checked, or gets new views or a new format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .options import DataDir, Engine, EngineName, Json, Seconds
from .output import Output, clean
from .progress import INTERRUPTED, Progress, StopSignals, with_progress

if TYPE_CHECKING:
    from ..recovery import RebuildReport, VerifyReport
    from ..recovery.migrate import MigrationReport

__all__ = ["register"]

_NOT_OK = 3


def register(app: typer.Typer) -> None:
    """The commands are part of ``app``."""
    app.command("verify")(verify)
    app.command("rebuild")(rebuild)
    app.command("convert")(convert)
    app.command("migrate")(migrate)


def verify(
    data_dir: DataDir,
    level: Annotated[
        Literal["quick", "links", "state", "views", "full"],
        typer.Option(
            "--level",
            help="quick: frames of the files; links: every byte; state: and the root of the state from its rows; "
            "views: and every row; full: and every root.",
        ),
    ] = "links",
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            max=256,
            help="Processes that share a large journal; else one for each processor. The report is the same.",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="FILE",
            help="Go on after an earlier run: sealed segments and links of blocks that FILE says were sound are not "
            "read again. It is made if it is missing.",
        ),
    ] = None,
    progress_seconds: Seconds = 2.0,
    as_json: Json = False,
) -> None:
    """Check a store that nobody has open, and change nothing. Exit code 0 = sound, 3 = damaged, 4 = commits lost."""
    from ..recovery import verify_store
    from ..recovery.parallel import processors

    out = Output(as_json=as_json)
    with (
        StopSignals() as stop,
        Progress("verifying", None, unit="items", quiet=as_json, seconds=progress_seconds) as progress,
    ):
        report = verify_store(
            data_dir,
            level=level,
            progress=progress.stage,
            stop=stop,
            jobs=min(processors(), 256) if jobs is None else jobs,
            resume=resume,
        )
    if as_json:
        out.record(report.as_dict())
    else:
        _print(report, out)
    if report.stopped:
        goes_on = "it goes on there" if resume is not None else "with --resume FILE from the start it would go on"
        out.note(f"stopped before the end; nothing was changed. next: run the same command again; {goes_on}")
        raise typer.Exit(INTERRUPTED)
    if not report.ok:
        raise typer.Exit(report.exit_code or _NOT_OK)


def _print(report: VerifyReport, out: Output) -> None:
    rows = [
        {
            "check": check.name,
            "checked": check.checked,
            "problems": check.problems,
            "result": "sound"
            if check.complete and not check.problems
            else "damaged"
            if check.problems
            else "not ended",
        }
        for check in report.checks
    ]
    out.rows(["check", "checked", "problems", "result"], rows, empty="nothing was checked")
    for problem in report.problems:
        place = ", ".join(f"{name}={value}" for name, value in problem.place.items())
        out.text(clean(f"problem: {problem.message} ({place}) [{problem.code}]") + "\n")
        out.text(clean(f"next: {problem.remedy}") + "\n")
    for note in report.notes:
        out.text(clean(f"note: {note}") + "\n")
    facts = ", ".join(f"{name.replace('_', ' ')} {_fact(report, name)}" for name in report.facts)
    verdict = "sound" if report.ok else "stopped" if report.stopped else "NOT sound"
    out.text(clean(f"{verdict} at level {report.level} in {report.seconds:.2f} s; {facts}") + "\n")


def _fact(report: VerifyReport, name: str) -> object:
    from .chains import display_hash

    value = report.facts[name]
    if name == "tip_hash" and isinstance(value, str):
        return display_hash(str(report.facts.get("chain", "")), bytes.fromhex(value))
    return clean(value)


def rebuild(
    data_dir: DataDir,
    engine: Engine = None,
    progress_seconds: Seconds = 2.0,
    as_json: Json = False,
) -> None:
    """Make the views anew from the journal; the old ones stay in force until the new ones are complete."""
    from ..recovery import rebuild_views

    def work(step: Callable[[int, int], None]) -> RebuildReport:
        return rebuild_views(data_dir, engine=engine, progress=step)

    _run("rebuilding", work, Output(as_json=as_json), progress_seconds)


def convert(
    data_dir: DataDir,
    to: Annotated[EngineName, typer.Option("--to", help="The new engine.")],
    progress_seconds: Seconds = 2.0,
    as_json: Json = False,
) -> None:
    """Move the views to another engine; the journal stays as it is."""
    from ..recovery import convert_store

    def work(step: Callable[[int, int], None]) -> RebuildReport:
        return convert_store(data_dir, to=to, progress=step)

    _run("converting", work, Output(as_json=as_json), progress_seconds)


def migrate(
    data_dir: DataDir,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read the old store, and write nothing.")] = False,
    progress_seconds: Seconds = 2.0,
    as_json: Json = False,
) -> None:
    """Bring a store of an older format to the format of this version; what it was stays beside it."""
    from ..recovery.migrate import migrate_store

    def work(step: Callable[[int, int], None]) -> MigrationReport:
        return migrate_store(data_dir, dry_run=dry_run, progress=step)

    _run("migrating", work, Output(as_json=as_json), progress_seconds, "the old store is as it was, or nearly migrated")


def _run(
    title: str,
    work: Callable[[Callable[[int, int], None]], RebuildReport | MigrationReport],
    out: Output,
    progress_seconds: float,
    now: str = "the old views are in force",
) -> None:
    kept, again = f"{now} and nothing is lost", "run the same command again"
    report = with_progress(title, work, out, progress_seconds, kept, unit="frames", again=again)
    out.record(report.as_dict())
