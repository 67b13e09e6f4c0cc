"""``holdfast journal status``, ``prune`` and ``refill``: what of the journal stays on this disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import BackupDamaged, BackupNotFound, InvalidInputError, StoreNotFound
from .backup_options import KeyFile, PassphraseFile, RepositoryPath, open_place, place_of
from .options import Config, DataDir, Json, Seconds
from .output import Output, bytes_text, count_text
from .progress import end_if_stopped

if TYPE_CHECKING:
    from ..store.retention import RetentionPolicy, RetentionReport

__all__ = ["register"]


def register(group: typer.Typer) -> None:
    """The commands are part of ``group``."""
    group.command("status")(status)
    group.command("prune")(prune)
    group.command("refill")(refill)


def status(data_dir: DataDir, as_json: Json = False) -> None:
    """Show how much the journal takes, how much of it is compacted, and from which height on it has all. No lock."""
    from .._fs import RealFileSystem
    from ..journal.reader import JournalReader
    from ..store.retention import journal_status
    from .session import find_identity

    identity = find_identity(data_dir)
    if identity is None:
        raise StoreNotFound("there is no store here", path=data_dir)
    out = Output(as_json=as_json)
    reader = JournalReader.open(RealFileSystem(), data_dir, store_id=identity.store_id, salt=identity.salt)
    try:
        found = journal_status(reader.segments())
    finally:
        reader.close()
    if as_json:
        out.record(found.as_dict())
        return
    out.record(
        {
            "segments": f"{found.segments}, {found.compacted} of them compacted, {found.pruned} with parts pruned",
            "on_disk": f"{bytes_text(found.file_bytes)} for {bytes_text(found.raw_bytes)}",
            "pruned": bytes_text(found.pruned_bytes),
            "bodies_and_extras": f"from height {found.floor} on" if found.floor else "of all blocks",
        }
    )


def _store_id(data_dir: Path) -> bytes:
    from .._fs import RealFileSystem
    from ..store.opening import read_identity

    return read_identity(RealFileSystem(), data_dir).store_id


def _policy(blocks: int | None, days: int | None, space: int | None, below: int | None) -> RetentionPolicy | None:
    from ..store.retention import RetentionPolicy

    if sum(value is not None for value in (blocks, days, space, below)) > 1:
        raise InvalidInputError("--blocks, --days, --space and --below exclude each other")
    if blocks is not None:
        return RetentionPolicy("blocks", blocks)
    if days is not None:
        return RetentionPolicy("days", days)
    if space is not None:
        return RetentionPolicy("space", space)
    return None if below is None else RetentionPolicy("below", below)


def prune(
    data_dir: DataDir,
    blocks: Annotated[int | None, typer.Option("--blocks", min=1, help="Keep those of the last final blocks.")] = None,
    days: Annotated[
        int | None,
        typer.Option("--days", min=1, help="Keep those of so many days before the tip, by the chain's time."),
    ] = None,
    space: Annotated[
        int | None, typer.Option("--space", min=1, metavar="BYTES", help="Keep as many as fit into so many bytes.")
    ] = None,
    below: Annotated[
        int | None, typer.Option("--below", min=0, metavar="HEIGHT", help="Keep those from this height on.")
    ] = None,
    repository: RepositoryPath = None,
    key_file: KeyFile = None,
    passphrase_file: PassphraseFile = None,
    without_archive: Annotated[
        bool, typer.Option("--without-archive", help="Ask no backup; what goes can not be brought back.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say which heights lose their bodies, and how much room it gives.")
    ] = False,
    progress_seconds: Seconds = 2.0,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Drop bodies and extras of old final blocks that a backup holds. Stopped, it goes on later.

    Headers, states, documents and decisions stay. Every segment that loses bytes is read from the backup and checked
    before the first one does. Without a rule the settings 'journal_retention' and 'journal_retention_amount' say it.
    """
    from ..backup import archive_of
    from .session import store_at_work

    out, store_id = Output(as_json=as_json), _store_id(data_dir)
    policy = _policy(blocks, days, space, below)
    place = None
    if repository is not None and without_archive:
        raise InvalidInputError("--repository and --without-archive exclude each other")
    if not (dry_run or without_archive):
        place = open_place(place_of(repository, data_dir, config), key_file, passphrase_file, data_dir, config)
    with store_at_work("pruning", data_dir, config, out, progress_seconds, unit="bytes") as (store, work):
        report = store.retention.prune(
            policy,
            archive=None if place is None else archive_of(place, store_id),
            without_archive=without_archive,
            dry_run=dry_run,
            progress=work.progress,
            keep_going=work.keep_going,
        )
    if as_json:
        out.record(report.as_dict())
    else:
        _tell(report, out)
    end_if_stopped(out, complete=report.complete)


def _tell(report: RetentionReport, out: Output) -> None:
    about = "about " if report.dry_run else ""
    values: dict[str, object] = {
        "bodies_before": f"from height {report.floor_before} on" if report.floor_before else "of all blocks",
        "bodies_after": f"from height {report.floor_after} on" if report.floor_after else "of all blocks",
        "blocks_that_lose_theirs": report.blocks,
        "segments": report.segments,
        "pruned": bytes_text(report.pruned_bytes),
        "room": f"{about}{bytes_text(report.freed_bytes)}",
        "seconds": round(report.seconds, 1),
    }
    if report.indexes:
        values["indexes_to_look_at"] = ", ".join(report.indexes)
    out.record(values)
    if not report.blocks:
        out.text("nothing to prune: compaction is enough\n" if report.freed_bytes > 0 else "nothing to prune\n")
    elif report.dry_run:
        out.text(f"dry run: {count_text(report.blocks)} blocks would lose their bodies; nothing was changed\n")


def refill(
    data_dir: DataDir,
    from_height: Annotated[
        int, typer.Option("--from", min=0, metavar="HEIGHT", help="Fill blocks from this height on.")
    ] = 0,
    repository: RepositoryPath = None,
    key_file: KeyFile = None,
    passphrase_file: PassphraseFile = None,
    progress_seconds: Seconds = 2.0,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Bring back bodies and extras that were pruned, out of the backups of this store, each checked by its hash.

    A segment that no backup holds whole, or only damaged, stays as it is, and is named. Stopped, it goes on later.
    """
    from ..backup import originals_of
    from .session import store_at_work

    out = Output(as_json=as_json)
    store_id = _store_id(data_dir)
    place = open_place(place_of(repository, data_dir, config), key_file, passphrase_file, data_dir, config)
    with store_at_work("filling", data_dir, config, out, progress_seconds, unit="bytes") as (store, work):
        report = store.retention.refill(
            originals_of(place, store_id),
            from_height=from_height,
            progress=work.progress,
            keep_going=work.keep_going,
            missing=(BackupNotFound, BackupDamaged),
        )
    if as_json:
        out.record(report.as_dict())
    else:
        out.record(
            {
                "bodies_before": f"from height {report.floor_before} on" if report.floor_before else "of all blocks",
                "bodies_after": f"from height {report.floor_after} on" if report.floor_after else "of all blocks",
                "segments_filled": report.segments,
                "filled": bytes_text(report.filled_bytes),
                "in_no_backup": ", ".join(map(str, report.missing)) or "none",
                "damaged_in_backups": ", ".join(map(str, report.damaged)) or "none",
                "seconds": round(report.seconds, 1),
            }
        )
    end_if_stopped(out, complete=report.complete)
    if report.damaged:
        raise BackupDamaged(
            "some segments are damaged in every backup; all others were filled",
            path=place.place,
            segments=", ".join(map(str, report.damaged)),
        )
