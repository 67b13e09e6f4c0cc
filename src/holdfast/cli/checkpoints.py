"""``holdfast checkpoint``: snapshots that a store keeps of itself are made, looked at, removed, and restored from.

Invariants:
    * Looking needs no lock and no whole store: it works beside a running node, and where the journal is lost.
    * Each command can be stopped at any moment and run again; nothing that is listed is ever half.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import SnapshotInvalid, StoreNotFound
from .options import Config, DataDir, Engine, Json, Seconds
from .output import Output, bytes_text
from .progress import with_progress
from .snapshots import MAKING_VIEWS

if TYPE_CHECKING:
    from ..state.checkpoint import CheckpointDirectory, CheckpointInfo
    from ..state.snapshot import SnapshotInfo
    from ..store.checkpoints import CheckpointPruneReport

__all__ = ["register"]

_COLUMNS = ["name", "height", "keys", "chunks", "stored_bytes", "problem"]


def register(app: typer.Typer) -> None:
    """The group is part of ``app``."""
    group = typer.Typer(no_args_is_help=True, help="Snapshots that a store keeps of itself: make, verify, restore.")
    group.command("create")(create)
    group.command("list")(show)
    group.command("verify")(verify)
    group.command("restore")(restore)
    group.command("prune")(prune)
    app.add_typer(group, name="checkpoint")


def _directory(data_dir: Path) -> CheckpointDirectory:
    """The checkpoints of the store at ``data_dir``, of which nothing else need be there."""
    from ..store.checkpoints import checkpoints_at
    from .session import find_identity

    found = checkpoints_at(data_dir)
    if not found.names() and find_identity(data_dir) is None:
        raise StoreNotFound("there is neither a store nor a checkpoint here", path=data_dir)
    return found


def _row(info: CheckpointInfo, out: Output) -> dict[str, object]:
    from .chains import display_hash

    row = info.as_dict()
    if info.snapshot is not None and info.chain is not None:
        row["block"] = display_hash(info.chain, info.snapshot.block_hash)
        if not out.as_json:
            row["stored_bytes"] = bytes_text(info.snapshot.stored_bytes)
    return row


def _tell_made(info: CheckpointInfo, out: Output, **more: object) -> None:
    row = _row(info, out)
    del row["problem"]
    if not out.as_json and info.snapshot is not None:
        row["raw_bytes"] = bytes_text(info.snapshot.raw_bytes)
    out.record(row | more)


def create(
    data_dir: DataDir,
    height: Annotated[
        int | None, typer.Option("--height", min=0, help="Of the canonical block at this height; else of the tip.")
    ] = None,
    progress_seconds: Seconds = 2.0,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Make a checkpoint now. A node that runs makes them by itself, every 'checkpoint_interval' final blocks."""
    from .session import open_to_write, tell_recovery

    out = Output(as_json=as_json)
    with open_to_write(data_dir, config, {"history_blocks": 0, "checkpoint_interval": 0}, quiet=as_json) as store:
        tell_recovery(store, out)

        def work(step: Callable[[int, int], None]) -> CheckpointInfo:
            return store.checkpoints.create(height, progress=step)

        made = with_progress(
            "making a checkpoint", work, out, progress_seconds, "the chunks written are kept", unit="keys"
        )
        _tell_made(made, out)


def show(data_dir: DataDir, as_json: Json = False) -> None:
    """List the checkpoints, the highest first; their manifests are read, their chunks are not."""
    out = Output(as_json=as_json)
    directory = _directory(data_dir)
    found = [directory.info(name) for name in directory.names()]
    out.rows(_COLUMNS, [_row(info, out) for info in found], empty="no checkpoints")


def verify(
    data_dir: DataDir,
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME...", help="Which ones; else all.")] = None,
    progress_seconds: Seconds = 2.0,
    as_json: Json = False,
) -> None:
    """Read every chunk of checkpoints and check it against the root. Exit code 10 if one is not whole."""
    out = Output(as_json=as_json)
    directory = _directory(data_dir)
    chosen = names or directory.names()
    results: list[dict[str, object]] = []
    broken: SnapshotInvalid | None = None
    for name in chosen:

        def work(step: Callable[[int, int], None], name: str = name) -> SnapshotInfo:
            return directory.verify(name, progress=step)

        try:
            found = with_progress(f"verifying {name}", work, out, progress_seconds, "nothing was changed", unit="keys")
            results.append({"name": name, "keys": found.keys, "chunks": found.chunks, "sound": True, "problem": None})
        except SnapshotInvalid as error:
            broken = broken or error
            results.append({"name": name, "keys": None, "chunks": None, "sound": False, "problem": str(error)})
    out.rows(["name", "keys", "chunks", "sound", "problem"], results, empty="no checkpoints")
    if broken is not None:
        raise broken


def restore(
    source: Annotated[
        Path, typer.Argument(metavar="DIR", help="The store that made it, or a copy of its checkpoints directory.")
    ],
    data_dir: DataDir,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Which one; else the highest.")] = None,
    engine: Engine = None,
    progress_seconds: Seconds = 2.0,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Make a new store in --data-dir from a checkpoint; its tip is the checkpoint's block. Run again, it goes on.

    Older and newer blocks, documents and the record of a validator are not in it; it may not sign until its fence is
    lifted. The source is only read. That of an encrypted store wants its key, and the new store has the same.
    """
    from ..store.base import spec_of
    from ..store.checkpoints import another_named, checkpoints_at, restore_checkpoint
    from .chains import chain_of
    from .session import load

    out = Output(as_json=as_json)
    directory = checkpoints_at(source)
    chosen = directory.chosen(name)
    with another_named(directory, chosen, source, data_dir):
        spec = spec_of(directory.reader(chosen).manifest)
    chain = (
        None if spec.name == "pow" else chain_of(spec)
    )  # a block of 'pow' is judged with its body, which is not here
    settings = load(data_dir, config)
    url = str(data_dir) if engine is None else f"{engine}:{data_dir}"

    def work(step: Callable[[int, int], None]) -> SnapshotInfo:
        return restore_checkpoint(source, url, name=chosen, chain=chain, settings=settings, progress=step)

    kept = "there is no store yet, and the chunks copied are kept"
    with_progress("restoring", work, out, progress_seconds, kept, unit="keys", second=MAKING_VIEWS)
    _tell_made(directory.info(chosen), out, created=str(data_dir))


def prune(
    data_dir: DataDir,
    every: Annotated[
        int | None,
        typer.Option("--every", min=0, help="Keep the first from each multiple of this height on; 0 = none."),
    ] = None,
    newest: Annotated[int | None, typer.Option("--newest", min=1, help="How many of the highest to keep.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    progress_seconds: Seconds = 2.0,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Remove checkpoints that no rule keeps, after a newer one was read back. Else as the settings say."""
    from .session import open_to_write, tell_recovery

    out = Output(as_json=as_json)
    with open_to_write(data_dir, config, {"history_blocks": 0, "checkpoint_interval": 0}, quiet=as_json) as store:
        tell_recovery(store, out)

        def work(step: Callable[[int, int], None]) -> CheckpointPruneReport:
            return store.checkpoints.prune(every, newest=newest, dry_run=dry_run, progress=step)

        report = with_progress("verifying the newest", work, out, progress_seconds, "nothing was removed", unit="keys")
    _tell(report, out)
    if report.damaged:
        raise SnapshotInvalid(
            "a checkpoint is not whole",
            checkpoint=report.damaged[0],
            remedy=f"'holdfast checkpoint verify -d {data_dir} {report.damaged[0]}' names the file; "
            "'holdfast checkpoint create' makes a new one",
        )


def _tell(report: CheckpointPruneReport, out: Output) -> None:
    values = report.as_dict()
    if not out.as_json:
        values["freed_bytes"] = bytes_text(report.freed_bytes)
    out.record(values)
    if report.dry_run:
        out.note("dry run: nothing was changed")
