"""``doctor``: what of a store is whole, how it can go on, and the doing of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import InvalidInputError, KeyRequired
from .backup_options import KeyFile, PassphraseFile, RepositoryPath, key_of
from .options import Config, DataDir, Json, Seconds
from .output import Output, bytes_text, clean
from .progress import with_progress

if TYPE_CHECKING:
    from ..doctor import DoctorReport, Loss, Plan, RepairReport

__all__ = ["register"]

_DAMAGED, _LOST = 3, 4
_NAMES_SHOWN = 10


def register(app: typer.Typer) -> None:
    """The command is part of ``app``."""
    app.command("doctor")(doctor)


def doctor(
    data_dir: DataDir,
    apply: Annotated[
        bool, typer.Option("--apply", help="Do what loses nothing; else only say what would be done.")
    ] = False,
    recover: Annotated[
        Literal["lossless", "backup", "checkpoint"],
        typer.Option(
            "--recover",
            help="With --apply: how far down one may go where something must be lost. backup: the journal as far as "
            "files and backups hold it; checkpoint: that, or the highest checkpoint, whichever loses less.",
        ),
    ] = "lossless",
    repository: RepositoryPath = None,
    key_file: KeyFile = None,
    passphrase_file: PassphraseFile = None,
    progress_seconds: Seconds = 2.0,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Say what of a store is whole, and how it could go on: the plan, its cost and its loss. Nothing is changed.

    With --apply the plan that loses nothing is done. One that loses blocks is done only with --recover, which names how
    far back one may go. What is replaced lies in 'quarantine' afterwards. Exit code 0 = sound, 3 = damaged, 4 = commits
    lost.
    """
    from ..doctor.examination import diagnose, repair
    from .session import load

    if recover != "lossless" and not apply:
        raise InvalidInputError(
            "--recover says what --apply may do", remedy="leave it out to see every plan, or give --apply with it"
        )
    out = Output(as_json=as_json)
    settings = load(data_dir, config)
    key = key_of(key_file, passphrase_file, data_dir, config)

    def look(step: Callable[[int, int], None]) -> DoctorReport:
        return diagnose(data_dir, settings=settings, repository=repository, key=key, progress=step)

    def work(step: Callable[[int, int], None]) -> RepairReport | None:
        return repair(data_dir, recover=recover, settings=settings, repository=repository, key=key, progress=step)

    kept = "nothing was changed, or what was begun is finished by the next run"
    if apply:
        _show_repair(with_progress("repairing", work, out, progress_seconds, kept, unit="bytes"), out)
        return
    report = with_progress("examining", look, out, progress_seconds, "nothing was changed", unit="bytes")
    if as_json:
        out.record(report.as_dict())
    else:
        _show(report, out)
    if not report.sound:
        raise typer.Exit(
            {"commit_loss": _LOST, KeyRequired.code: KeyRequired.exit_code}.get(report.code or "", _DAMAGED)
        )


def _show(report: DoctorReport, out: Output) -> None:
    rows: list[dict[str, object]] = [
        {"part": each.part, "name": each.name, "state": each.state, "detail": each.detail} for each in report.findings
    ]
    out.rows(["part", "name", "state", "detail"], rows, empty="nothing was found")
    place = f"--data-dir {report.path}"
    if report.sound:
        out.text(f"sound in {report.seconds:.2f} s\n")
        return
    _line(out, f"problem: {report.problem} [{report.code}]")
    for reason in report.reasons:
        _line(out, f"because: {reason}")
    if report.plan is not None:
        _show_plan(report.plan, out)
        _line(out, f"next: run 'holdfast doctor {place} --apply'; so does the next open for writing that meets it")
    for plan in report.others:
        _show_plan(plan, out)
        _line(out, f"if that may be lost: 'holdfast doctor {place} --apply --recover {plan.rung}'")
    if report.plan is None and not report.others:
        _line(out, _without_plan(report, place))


def _without_plan(report: DoctorReport, place: str) -> str:
    if report.code == KeyRequired.code:
        return "next: run it again with the key: 'holdfast --store-key-file FILE doctor', or --store-passphrase-file"
    if report.code is not None and report.problem is not None and not report.reasons:
        return f"next: run 'holdfast rebuild {place}', or open the store for writing: the journal is sound"
    return "next: keep the directory as it is; a backup or a checkpoint of this store is needed, or its key"


def _show_plan(plan: Plan, out: Output) -> None:
    _line(out, f"plan '{plan.rung}': {len(plan.steps)} files, {bytes_text(plan.write_bytes)} to write{_replay(plan)}")
    for step in plan.steps:
        _line(out, f"  {step.action} {step.name}" + (f" from {step.source}" if step.source else ""))
    if plan.loss is None:
        _line(
            out,
            "  loses nothing that was acknowledged"
            + ("; may not sign until its fence is lifted" if plan.fenced else ""),
        )
    else:
        _show_loss(plan.loss, plan, out)


def _replay(plan: Plan) -> str:
    return f", {plan.frames} frames to replay" if plan.frames else ""


def _show_loss(loss: Loss, plan: Plan, out: Output) -> None:
    tip = "no block" if plan.height is None else f"height {plan.height}"
    span = "" if loss.from_height is None else f", heights {loss.from_height} to {loss.to_height}"
    more = "" if loss.complete else "; more may be lost that nothing names any more"
    _line(out, f"  ends at {tip}; LOSES {loss.blocks} blocks{span}{more}; may not sign until its fence is lifted")
    for block in loss.names[:_NAMES_SHOWN]:
        _line(out, f"    {block.height} {block.hash}")
    if loss.blocks > _NAMES_SHOWN:
        _line(out, f"    and {loss.blocks - _NAMES_SHOWN} more; --json names up to {len(loss.names)}")
    if loss.also:
        _line(out, f"  also lost: {loss.also}")


def _show_repair(report: RepairReport | None, out: Output) -> None:
    if report is None:
        out.record({"repaired": False})
    elif out.as_json:
        out.record({"repaired": True, **report.as_dict()})
    else:
        _show_plan(report.plan, out)
        _line(out, f"done in {report.seconds:.2f} s; what was replaced lies in {report.quarantine}")


def _line(out: Output, text: str) -> None:
    out.text(clean(text) + "\n")
