"""``import xai`` and ``export`` of an xai chain: the original's files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..errors import ForeignStore, InvalidInputError
from ..types import ZERO_HASH
from .files import new_file, read_limited
from .output import Output, PipeClosed
from .progress import INTERRUPTED, Progress, StopSignals

if TYPE_CHECKING:
    from ..chains.xai import XaiChain
    from ..store.chain import Chain
    from ..store.identity import Identity
    from ..store.store import Store

__all__ = ["export_xai", "import_xai"]


def import_xai(
    file: Path,
    data_dir: Path,
    network: str | None,
    config: Path | None,
    engine: str | None,
    overrides: Mapping[str, object],
    progress_seconds: float,
    out: Output,
) -> None:
    """The chain of the file is in the store, with what stands beside it. The file is checked before a store is made."""
    from ..chains.xai import XaiParameters
    from ..chains.xai.document import FILE_BYTES_MAX, read_document
    from ..chains.xai.importing import chain_of_document, import_document, import_rest
    from .looking import block_row
    from .session import create_or_open, tell_recovery

    document = read_document(read_limited(file, limit=FILE_BYTES_MAX), name=file)
    chain = chain_of_document(document, None if network is None else XaiParameters(ZERO_HASH, network))

    def make_chain(identity: Identity | None) -> Chain:
        return chain if identity is None else _chain_of_store(identity, chain, data_dir, file)

    with create_or_open(data_dir, config, engine, make_chain, overrides, quiet=out.as_json) as store:
        tell_recovery(store, out)
        with (
            StopSignals() as stop,
            Progress("importing", len(document), quiet=out.as_json, seconds=progress_seconds) as progress,
        ):
            added = import_document(store, document, progress=lambda done, _: progress.update(done), stop=stop)
        if not stop.asked:
            import_rest(store, document)
        tip = store.tip
        out.record(
            {
                "found": len(document),
                "added": added,
                "format": document.kind,
                "checksum": document.checksum,
                "stopped": stop.asked,
                "tip": None if tip is None else block_row(store, tip),
            }
        )
    if stop.asked:
        out.note(f"stopped: {added} blocks were added and are durable. next: run the same command again")
        raise typer.Exit(INTERRUPTED)
    if document.checksum is None:
        out.note("the file names no checksum; its blocks were validated one by one")


def _chain_of_store(identity: Identity, chain: XaiChain, data_dir: Path, file: Path) -> XaiChain:
    """The chain that the store has, which begins as the file's. Raises ``ForeignStore``."""
    from ..chains.xai import XaiChain

    if identity.spec.name != chain.spec.name:
        raise ForeignStore(
            "the store holds another chain", path=data_dir, found=identity.spec.name, expected=chain.spec.name
        )
    stored = XaiChain.from_spec(identity.spec)
    if stored.parameters.genesis != chain.parameters.genesis:
        raise ForeignStore(
            "the file begins with another genesis block than the store",
            path=file,
            found=chain.parameters.genesis,
            expected=stored.parameters.genesis,
        )
    return stored


def export_xai(store: Store, file: Path | None, out: Output, *, lines: bool) -> None:
    """The canonical blocks, and what stands beside them, are written as the original's file with its checksum."""
    from ..chains.xai.document import package_chunks
    from ..chains.xai.importing import SPACE, block_documents, load_rest

    if lines:
        raise InvalidInputError("an xai chain is one object; it has no form of one record a line")
    with store.snapshot() as moment:
        rest, metadata = load_rest(moment.documents(SPACE))
        timestamp = 0.0 if moment.tip is None else float(moment.tip.time)
        if metadata is not None and isinstance(metadata.get("timestamp"), (int, float)):
            timestamp = metadata["timestamp"]
        chunks = package_chunks(block_documents(moment.blocks, moment.blocks.canonical()), rest, timestamp)
        if file is None:
            try:
                for chunk in chunks:
                    sys.stdout.write(chunk.decode("ascii"))
            except BrokenPipeError:
                raise PipeClosed from None
            return
        with new_file(file) as stream:
            for chunk in chunks:
                stream.write(chunk)
        count = 0 if moment.tip is None else moment.tip.height + 1
    out.record({"file": str(file), "blocks": count})
