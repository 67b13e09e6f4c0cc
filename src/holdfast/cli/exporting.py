"""``holdfast export``: the block tree of a pow chain, or an xai chain as the original's file, as JSON."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ForeignStore
from .files import new_file
from .options import Config, DataDir, Json
from .output import Output, PipeClosed

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """The command is part of ``app``."""
    app.command("export")(export)


def export(
    data_dir: DataDir,
    file: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="A new file; else stdout.")] = None,
    lines: Annotated[bool, typer.Option("--lines", help="One record a line, without brackets.")] = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Write every block of a pow chain, orphans included, as JSON that 'import pow-json' reads back exactly.

    Of an xai chain the canonical blocks are written, as the original's 'blockchain.json' with its checksum.
    """
    from ..chains.pow.json_format import write_records
    from .session import open_to_read

    with open_to_read(data_dir, config) as store:
        if store.spec.name == "xai":
            from .xai import export_xai

            export_xai(store, file, Output(as_json=as_json), lines=lines)
            return
        if store.spec.name != "pow":
            raise ForeignStore("only a pow or xai chain has a JSON form", found=store.spec.name, expected="pow or xai")
        if file is None:
            try:
                with store.snapshot() as moment:
                    write_records(moment.blocks, sys.stdout, lines=lines)
            except BrokenPipeError:
                raise PipeClosed from None
            return
        with new_file(file) as raw, TextIOWrapper(raw, "ascii") as stream, store.snapshot() as moment:
            count = write_records(moment.blocks, stream, lines=lines)
        Output(as_json=as_json).record({"file": str(file), "blocks": count})
