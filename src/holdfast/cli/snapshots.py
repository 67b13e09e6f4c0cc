"""``holdfast snapshot``: the state goes out as files, is checked, and becomes a new store.

Invariants:
    * Each command can be stopped at any moment and run again: chunks that are done and verified are kept.
    * Nothing is believed that was not verified against a root that the caller names, or says to take from the manifest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ForeignStore, InvalidInputError
from .keys import parse_hash32
from .options import AtBlock, Config, DataDir, Engine, Height, Json, Seconds
from .output import Output, bytes_text
from .progress import Count, SecondStage, with_progress

if TYPE_CHECKING:
    from ..state.snapshot import SnapshotInfo, SnapshotReader
    from ..store.chain import Chain

__all__ = ["MAKING_VIEWS", "register"]

_Source = Annotated[Path, typer.Argument(metavar="DIR", help="The directory of the snapshot.")]
_Root = Annotated[str | None, typer.Option("--root", metavar="HEX", help="The state root, from a source you trust.")]
_Digest = Annotated[
    str | None,
    typer.Option("--manifest-digest", metavar="HEX", help="SHA-256 of the manifest, as its exporter told it."),
]
_Trust = Annotated[
    bool, typer.Option("--trust-manifest", help="Take the root in the manifest; for snapshots of your own.")
]


def register(app: typer.Typer) -> None:
    """The group is part of ``app``."""
    group = typer.Typer(no_args_is_help=True, help="The state of a block as files: export, verify, import.")
    group.command("export")(export)
    group.command("verify")(verify)
    group.command("import")(take_in)
    app.add_typer(group, name="snapshot")


def _counts_anew(before: Count, now: Count) -> bool:
    """Each chunk that is copied brings keys."""
    return now.done <= before.done


MAKING_VIEWS = SecondStage("making the views", "keys", "the store is there, its views are not complete", _counts_anew)
"""What follows when all chunks are copied."""


def _show(out: Output, info: SnapshotInfo, chain: str, **more: object) -> None:
    from .chains import display_hash

    size = info.stored_bytes if out.as_json else bytes_text(info.stored_bytes)
    out.record(
        {
            "height": info.height,
            "block": display_hash(chain, info.block_hash),
            "root": info.state_root.hex(),
            "keys": info.keys,
            "chunks": info.chunks,
            "stored_bytes": size,
            "raw_bytes": info.raw_bytes if out.as_json else bytes_text(info.raw_bytes),
            "manifest_digest": info.manifest_digest.hex(),
            **more,
        }
    )


def export(
    data_dir: DataDir,
    target: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="A missing or empty directory.")],
    height: Height = None,
    at_block: AtBlock = None,
    chunk_bytes: Annotated[
        int | None,
        typer.Option("--chunk-bytes", min=1, help="Length of a chunk before compression, 1 KiB to 16 MiB; else 2 MiB."),
    ] = None,
    no_compress: Annotated[bool, typer.Option("--no-compress", help="Leave the chunks uncompressed.")] = False,
    progress_seconds: Seconds = 2.0,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Write the state after a block as verified chunks, also while the node runs; run again, it goes on.

    A finished snapshot is checked and stays as it is; one of another state or chunk length is refused.
    Tell the root or the manifest digest of the answer to whoever shall import it.
    """
    from ..state.snapshot_export import CHUNK_BYTES_DEFAULT
    from .session import open_to_read
    from .state import block_at

    out = Output(as_json=as_json)
    with open_to_read(data_dir, config) as store:
        _check_stateful(store.spec.name)
        info = block_at(store, height, at_block)

        def work(step: Callable[[int, int], None]) -> SnapshotInfo:
            return store.export_snapshot(
                target,
                height=None if info is None else info.height,
                chunk_bytes=CHUNK_BYTES_DEFAULT if chunk_bytes is None else chunk_bytes,
                compress=not no_compress,
                progress=step,
            )

        found = with_progress("exporting", work, out, progress_seconds, "the chunks written are kept", unit="keys")
        _show(out, found, store.spec.name, kept_chunks=found.kept, directory=str(target))


def verify(
    source: _Source,
    root: _Root = None,
    manifest_digest: _Digest = None,
    trust_manifest: _Trust = False,
    progress_seconds: Seconds = 2.0,
    as_json: Json = False,
) -> None:
    """Check every chunk of a snapshot against a root, without a store, and change nothing."""
    from ..state.snapshot import SnapshotReader, verify_snapshot

    out = Output(as_json=as_json)
    trusted, digest = _trust(root, manifest_digest, trust_manifest=trust_manifest, out=out)

    def work(step: Callable[[int, int], None]) -> SnapshotInfo:
        return verify_snapshot(source, trusted, manifest_digest=digest, trust_manifest=trust_manifest, progress=step)

    found = with_progress("verifying", work, out, progress_seconds, "nothing was changed", unit="keys")
    _show(out, found, SnapshotReader(source).manifest.chain.name, sound=True)


def take_in(
    source: _Source,
    data_dir: DataDir,
    root: _Root = None,
    block: Annotated[
        str | None, typer.Option("--block", metavar="HASH", help="Only the snapshot of this block.")
    ] = None,
    manifest_digest: _Digest = None,
    trust_manifest: _Trust = False,
    engine: Engine = None,
    progress_seconds: Seconds = 2.0,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Make a new store that stands on a snapshot; its tip is the snapshot's block. Run again, it goes on.

    The record of a validator is not in it; it may not sign until its fence is lifted. Where it is done already and
    nothing was committed since, that is said, with exit code 0. With a key the store is encrypted, the snapshot is not.
    """
    from ..state.snapshot import SnapshotReader
    from ..store.snapshots import import_snapshot
    from .chains import parse_hash
    from .session import find_identity, load

    out = Output(as_json=as_json)
    trusted, digest = _trust(root, manifest_digest, trust_manifest=trust_manifest, out=out)
    chain = _chain(SnapshotReader(source))
    wanted = None if block is None else parse_hash(chain.spec.name, block)
    settings = load(data_dir, config)
    url = str(data_dir) if engine is None else f"{engine}:{data_dir}"

    def work(step: Callable[[int, int], None]) -> SnapshotInfo:
        return import_snapshot(
            url,
            source,
            trusted_root=trusted,
            trusted_block=wanted,
            manifest_digest=digest,
            trust_manifest=trust_manifest,
            chain=chain,
            settings=settings,
            progress=step,
        )

    there = find_identity(data_dir) is not None
    title, kept = "importing", "there is no store yet, and the chunks copied are kept"
    if there:
        title, kept = MAKING_VIEWS.title, MAKING_VIEWS.kept
    found = with_progress(title, work, out, progress_seconds, kept, unit="keys", second=MAKING_VIEWS)
    if there:
        out.note("the snapshot was imported here before; the store is complete")
    _show(out, found, chain.spec.name, created=str(data_dir))


def _chain(reader: SnapshotReader) -> Chain:
    """The chain that the manifest names: its headers are checked by it."""
    from ..store.base import spec_of
    from .chains import chain_of

    spec = spec_of(reader.manifest)
    _check_stateful(spec.name)
    return chain_of(spec)


def _check_stateful(chain: str) -> None:
    if chain == "pow":
        raise ForeignStore(
            "a pow chain executes nothing, so there is no state to take along",
            found=chain,
            remedy="'holdfast export' writes its blocks, and 'holdfast import pow-json' reads them",
        )


def _trust(
    root: str | None, digest: str | None, *, trust_manifest: bool, out: Output
) -> tuple[bytes | None, bytes | None]:
    if root is None and digest is None and not trust_manifest:
        raise InvalidInputError(
            "a snapshot is checked against a state root that you know from elsewhere",
            remedy="give --root (or --manifest-digest); --trust-manifest is for snapshots of your own",
        )
    if trust_manifest and root is None and digest is None:
        out.note("warning: the root is the manifest's own; this does not show that any chain has it")
    return (
        None if root is None else parse_hash32(root, what="the root"),
        None if digest is None else parse_hash32(digest, what="the digest"),
    )
