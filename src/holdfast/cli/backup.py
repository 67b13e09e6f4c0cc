"""``holdfast backup``: a store is backed up, and made again from a backup.

Invariants:
    * A backup needs no lock of the store: the node goes on. It is complete, or it is not there.
    * A restore touches nothing but a new or empty directory, and publishes nothing that was not checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import BackupNotFound, CorruptionError, FormatTooNew, HoldfastError, InvalidInputError
from .backup_options import (
    KeepDaily,
    KeepDays,
    KeepHourly,
    KeepMonthly,
    KeepWeekly,
    KeyFile,
    Name,
    OptionalDataDir,
    PassphraseFile,
    RateLimit,
    RepositoryPath,
    give_way,
    key_of,
    name_or_newest,
    open_place,
    parse_time,
    place_of,
    time_text_us,
    warn_same_device,
)
from .backup_schedule import schedule
from .options import Config, DataDir, Engine, Json, Seconds
from .output import Output, bytes_text, clean
from .progress import Count, SecondStage, with_progress

if TYPE_CHECKING:
    from ..backup import BackupCheck, BackupReport, BackupRepository, CopyReport, Manifest, PruneReport, RestoreReport

__all__ = ["register"]

_DAMAGED = 3


def register(app: typer.Typer) -> None:
    """The group is part of ``app``."""
    group = typer.Typer(
        no_args_is_help=True, help="Backups of a store: make, check, restore, thin out, copy, schedule."
    )
    group.command("create")(create)
    group.command("list")(list_backups)
    group.command("show")(show)
    group.command("verify")(verify)
    group.command("restore")(restore)
    group.command("prune")(prune)
    group.command("copy")(copy)
    group.command("schedule")(schedule)
    app.add_typer(group, name="backup")


def create(
    data_dir: DataDir,
    repository: RepositoryPath = None,
    check: Annotated[
        bool, typer.Option("--check", help="Read every file and chunk again, and store damaged chunks anew.")
    ] = False,
    verified: Annotated[bool, typer.Option("--verify", help="Verify the backup in full once it is made.")] = False,
    rate_limit: RateLimit = None,
    key_file: KeyFile = None,
    passphrase_file: PassphraseFile = None,
    progress_seconds: Seconds = 2.0,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Back up a store, also while its node runs. Only what is new is read and written.

    The repository is made if nothing is there; with a key it is encrypted from then on.
    """
    from ..backup import create_backup, verify_backup
    from .session import find_identity, load

    out = Output(as_json=as_json)
    load(data_dir, config)
    find_identity(data_dir)
    place = place_of(repository, data_dir, config)
    found = open_place(place, key_file, passphrase_file, data_dir, config, create=True)
    warn_same_device(place, data_dir, out)
    give_way(data_dir, rate_limit, out)

    def work(step: Callable[[int, int], None]) -> BackupReport:
        return create_backup(data_dir, found, check=check, bytes_per_second=rate_limit, progress=step)

    report = with_progress(
        "backing up", work, out, progress_seconds, "there is no backup yet, and its chunks are kept", unit="bytes"
    )
    values = report.as_dict() | {"repository": str(place)}
    if verified:

        def prove(step: Callable[[int, int], None]) -> BackupCheck:
            return verify_backup(found, report.manifest.name, progress=step)

        checked = with_progress(
            "verifying", prove, out, progress_seconds, "the backup is made, but was not verified", unit="bytes"
        )
        values["verified"] = checked.ok
    out.record(values if as_json else _for_people(values))
    if verified and not checked.ok:
        _print_problems(checked, out)
        raise typer.Exit(_DAMAGED)


def _for_people(values: dict[str, object]) -> dict[str, object]:
    return {
        name: bytes_text(value) if name.endswith("_bytes") and isinstance(value, int) else value
        for name, value in values.items()
    }


def _row(repository: BackupRepository, name: str) -> dict[str, object]:
    """A line of the listing; a manifest that cannot be read is one, too."""
    try:
        form, digest = repository.manifest_and_digest(name)
    except HoldfastError as error:
        return {"name": name, "state": "damaged", "problem": error.code}
    verified = repository.verified_us(name, digest)
    return {
        "name": name,
        "state": "verified" if verified is not None else "not verified",
        "made": time_text_us(form.created_us),
        "height": None if form.tip is None else form.tip.height,
        "chain": form.chain.name,
        "chain_id": form.chain.id,
        "bytes": form.totals.raw_bytes,
        "stored_bytes": form.totals.stored_bytes,
        "last_seq": form.last_seq,
        "store": form.store_id,
        "verified_us": verified,
        "created_us": form.created_us,
    }


def list_backups(
    repository: RepositoryPath = None,
    data_dir: OptionalDataDir = None,
    key_file: KeyFile = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """List the backups of a repository, oldest first."""
    found = open_place(place_of(repository, data_dir), key_file, passphrase_file, data_dir)
    columns = ["name", "state", "made", "height", "chain", "chain_id", "bytes"]
    rows: Iterator[dict[str, object]] = (_row(found, name) for name in found.names())
    Output(as_json=as_json).rows(columns, rows, empty="no backup yet: make one with 'holdfast backup create'")


def show(
    name: Name = None,
    repository: RepositoryPath = None,
    data_dir: OptionalDataDir = None,
    key_file: KeyFile = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Show what one backup holds; with --json every file and segment, without their chunks."""
    out = Output(as_json=as_json)
    found = open_place(place_of(repository, data_dir), key_file, passphrase_file, data_dir)
    chosen = name_or_newest(found, name, data_dir)
    form, digest = found.manifest_and_digest(chosen)
    values = {"digest": digest, **_row(found, chosen), **_facts(form)}
    if as_json:
        values["segments"] = [_segment(form, index) for index in range(len(form.segments))]
        values["base"] = [{"path": file.path, "length": file.length, "sha256": file.sha256} for file in form.base]
    out.record(values if as_json else _for_people(values))


def _facts(form: Manifest) -> dict[str, object]:
    return {
        "hash": None if form.tip is None else form.tip.hash,
        "root": None if form.tip is None else form.tip.root,
        "last_digest": form.last_digest,
        "last_time": time_text_us(form.last_time_us),
        "files": form.totals.files,
        "chunks": form.totals.chunks,
        "raw_bytes": form.totals.raw_bytes,
        "segment_numbers": f"{form.segments[0].number}-{form.segments[-1].number}",
        "base_files": len(form.base),
        "repository": form.repository,
    }


def _segment(form: Manifest, index: int) -> dict[str, object]:
    entry = form.segments[index]
    return {
        "number": entry.number,
        "first_seq": entry.first_seq,
        "last_seq": entry.last_seq,
        "digest": entry.digest,
        "length": entry.length,
        "sealed": entry.sealed,
        "sha256": entry.sha256,
    }


def verify(
    name: Name = None,
    repository: RepositoryPath = None,
    data_dir: OptionalDataDir = None,
    level: Annotated[
        Literal["quick", "full"],
        typer.Option("--level", help="quick: the manifest, and that every chunk is there; full: every byte."),
    ] = "full",
    every: Annotated[bool, typer.Option("--all", help="Every backup of the repository.")] = False,
    key_file: KeyFile = None,
    passphrase_file: PassphraseFile = None,
    progress_seconds: Seconds = 2.0,
    as_json: Json = False,
) -> None:
    """Check a backup alone, without a store and without trust in the storage. Exit code 0 = sound, 3 = damaged."""
    from ..backup import BackupCheck

    out = Output(as_json=as_json)
    if every and name is not None:
        raise InvalidInputError("--all is every backup; leave the name out")
    found = open_place(place_of(repository, data_dir), key_file, passphrase_file, data_dir)
    names = found.names() if every else [name_or_newest(found, name, data_dir)]
    checks: list[BackupCheck] = []
    for chosen in names:
        work = partial(_verify_one, found, chosen, level)
        try:
            check = with_progress(
                f"verifying {chosen}", work, out, progress_seconds, "nothing was changed", unit="bytes"
            )
        except (CorruptionError, FormatTooNew) as error:
            if not every:
                raise
            check = BackupCheck.unread(chosen, level, error)
        except BackupNotFound:
            if not every:
                raise
            continue  # it was pruned meanwhile
        checks.append(check)
        if not as_json:
            out.text(f"{chosen}: {'sound' if checks[-1].ok else 'DAMAGED'} at level {level}\n")
            _print_problems(checks[-1], out)
    if as_json:
        out.record(checks[0].as_dict() if not every else {"backups": [check.as_dict() for check in checks]})
    if not all(check.ok for check in checks):
        raise typer.Exit(_DAMAGED)


def _verify_one(
    found: BackupRepository, name: str, level: Literal["quick", "full"], step: Callable[[int, int], None]
) -> BackupCheck:
    from ..backup import verify_backup

    return verify_backup(found, name, level=level, progress=step)


def _print_problems(check: BackupCheck, out: Output) -> None:
    if out.as_json:
        return
    for problem in check.problems:
        context = problem["context"]
        assert isinstance(context, dict)
        place = ", ".join(f"{key}={value}" for key, value in context.items())
        out.text(clean(f"problem: {problem['message']} ({place}) [{problem['code']}]") + "\n")
        out.text(clean(f"next: {problem['remedy']}") + "\n")


def restore(
    target: Annotated[Path, typer.Option("--to", metavar="DIR", help="Where; a missing or empty directory.")],
    name: Name = None,
    repository: RepositoryPath = None,
    data_dir: OptionalDataDir = None,
    to_height: Annotated[
        int | None, typer.Option("--to-height", min=0, help="The tip is the block that is canonical at this height.")
    ] = None,
    to_time: Annotated[
        str | None, typer.Option("--to-time", metavar="TIME", help="As it was then, such as 2026-05-01T12:00:00Z.")
    ] = None,
    segments: Annotated[
        str | None, typer.Option("--segments", metavar="N,M", help="Only these segments of the journal, as files.")
    ] = None,
    chain_id: Annotated[
        str | None, typer.Option("--chain-id", metavar="ID", help="Refuse the backup of any other chain.")
    ] = None,
    engine: Engine = None,
    key_file: KeyFile = None,
    passphrase_file: PassphraseFile = None,
    progress_seconds: Seconds = 2.0,
    as_json: Json = False,
) -> None:
    """Make the store of a backup in a new directory, whole or as it was at a height or time; run again, it goes on.

    The store is checked before it appears, and may not sign until its fence is lifted.
    """
    from ..backup import restore_backup

    out = Output(as_json=as_json)
    time_us = None if to_time is None else parse_time(to_time)
    found = open_place(place_of(repository, data_dir), key_file, passphrase_file, data_dir)
    chosen = name_or_newest(found, name, data_dir)
    if segments is not None:
        if to_height is not None or time_us is not None or chain_id is not None:
            raise InvalidInputError("--segments fetches files as they are; it goes with no other way to restore")
        _fetch(found, chosen, segments, target, out)
        return
    url = str(target) if engine is None else f"{engine}:{target}"

    def work(step: Callable[[int, int], None]) -> RestoreReport:
        return restore_backup(
            found, chosen, url, to_height=to_height, to_time_us=time_us, chain_id=chain_id, progress=step
        )

    kept = "the target is untouched, and what was copied is kept beside it"
    second = SecondStage("making the views", "frames", kept, _other_total)
    report = with_progress("restoring", work, out, progress_seconds, kept, unit="bytes", second=second)
    out.record(report.as_dict() if as_json else _for_people(report.as_dict()))
    out.note("the store is fenced: it may not sign. next: make sure no other copy signs before the fence is lifted")


def _other_total(before: Count, now: Count) -> bool:
    """The bytes are there; from now on frames are counted."""
    return before.total not in (0, now.total)


def _fetch(found: BackupRepository, name: str, segments: str, target: Path, out: Output) -> None:
    from ..backup import fetch_segments

    words = segments.split(",")
    if not all(word.isascii() and word.isdigit() and len(word) <= 10 for word in words):
        raise InvalidInputError("segments are numbers with commas between them", found=segments[:80])
    paths = fetch_segments(found, name, [int(word) for word in words], target)
    out.record({"name": name, "segments": [str(path) for path in paths]})


def prune(
    repository: RepositoryPath = None,
    data_dir: OptionalDataDir = None,
    keep: Annotated[
        int | None, typer.Option("--keep", min=0, help="The newest so many verified ones; else 'max_backups'.")
    ] = None,
    keep_days: KeepDays = None,
    keep_hourly: KeepHourly = None,
    keep_daily: KeepDaily = None,
    keep_weekly: KeepWeekly = None,
    keep_monthly: KeepMonthly = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    key_file: KeyFile = None,
    passphrase_file: PassphraseFile = None,
    progress_seconds: Seconds = 2.0,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Remove backups that no rule keeps. Only verified ones count, and the newest of those always stays."""
    from ..backup import KeepRules, prune_backups
    from ..config import load_settings

    out = Output(as_json=as_json)
    given = {
        "max_backups": keep,
        "backup_keep_days": keep_days,
        "backup_keep_hourly": keep_hourly,
        "backup_keep_daily": keep_daily,
        "backup_keep_weekly": keep_weekly,
        "backup_keep_monthly": keep_monthly,
    }
    rules = KeepRules.of(load_settings(data_dir, config=config, overrides=given).settings)
    found = open_place(place_of(repository, data_dir, config), key_file, passphrase_file, data_dir, config)

    def work(step: Callable[[int, int], None]) -> PruneReport:
        return prune_backups(found, rules, dry_run=dry_run, progress=step)

    report = with_progress(
        "pruning", work, out, progress_seconds, "what went is gone, and every backup left is whole", unit="bytes"
    )
    if as_json:
        out.record(report.as_dict())
        return
    word = "would go" if dry_run else "removed"
    for name in report.removed:
        out.text(f"{name}  {word}\n")
    out.text(
        f"{len(report.removed)} backups and {report.chunks_removed} chunks {word}, {bytes_text(report.freed_bytes)}; "
        f"{len(report.kept)} kept\n"
    )
    if report.unverified:
        out.note(f"{len(report.unverified)} were never verified. next: 'holdfast backup verify --all'")
    if report.unreadable:
        out.note(f"no chunk goes while a manifest cannot be read: {', '.join(report.unreadable)}")


def copy(
    target: Annotated[str, typer.Option("--to", metavar="PLACE", help="The other repository, made if it is missing.")],
    name: Name = None,
    repository: RepositoryPath = None,
    data_dir: OptionalDataDir = None,
    to_key_file: Annotated[
        Path | None, typer.Option("--to-key-file", metavar="FILE", help="Key of the other repository.")
    ] = None,
    to_passphrase_file: Annotated[
        Path | None, typer.Option("--to-passphrase-file", metavar="FILE", help="Its passphrase.")
    ] = None,
    rate_limit: RateLimit = None,
    key_file: KeyFile = None,
    passphrase_file: PassphraseFile = None,
    progress_seconds: Seconds = 2.0,
    as_json: Json = False,
) -> None:
    """Copy a backup to another repository; every chunk is checked on the way. The key is asked for on each side."""
    from ..backup import copy_backup, open_repository

    out = Output(as_json=as_json)
    found = open_place(place_of(repository, data_dir), key_file, passphrase_file, data_dir)
    chosen = name_or_newest(found, name, data_dir)
    found.manifest(chosen)
    key = None
    if to_key_file is not None or to_passphrase_file is not None:
        key = key_of(to_key_file, to_passphrase_file)
    other = open_repository(target, key=key, create=True)

    def work(step: Callable[[int, int], None]) -> CopyReport:
        return copy_backup(found, chosen, other, bytes_per_second=rate_limit or None, progress=step)

    report = with_progress(
        "copying", work, out, progress_seconds, "there is no copy yet, and its chunks are kept", unit="bytes"
    )
    out.record(report.as_dict() if as_json else _for_people(report.as_dict()))
