"""Options that many commands share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import InvalidInputError

__all__ = [
    "AtBlock",
    "BatchBlocks",
    "Config",
    "DataDir",
    "Durability",
    "Engine",
    "EngineName",
    "Height",
    "Hex",
    "Json",
    "Network",
    "Seconds",
]

EngineName = Literal["rocksdb", "lmdb", "sqlite"]


def _directory(path: Path) -> Path:
    """``path``, which is not a URL: a command line names the engine with ``--engine`` or ``--to``."""
    from ..store.url import parse_url

    url = parse_url(path)
    if url.engine is not None:
        raise InvalidInputError(
            "--data-dir takes a directory, not a URL",
            found=path,
            remedy="give the path alone; a new store takes its engine from --engine",
        )
    return path


DataDir = Annotated[
    Path,
    typer.Option(
        "--data-dir",
        "-d",
        envvar="HOLDFAST_DATA_DIR",
        metavar="DIR",
        help="Directory of the store.",
        callback=_directory,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings file; otherwise config.toml or .yaml in the directory."),
]
Json = Annotated[
    bool, typer.Option("--json", envvar="HOLDFAST_JSON", show_envvar=False, help="Answer in JSON, errors too.")
]
Engine = Annotated[
    EngineName | None, typer.Option("--engine", help="Engine under the views of a new store; an old one knows its own.")
]
Durability = Annotated[
    Literal["sync", "buffered"] | None,
    typer.Option("--durability", help="sync: each batch is on the device before the next; buffered: faster."),
]
Height = Annotated[
    int | None,
    typer.Option("--height", min=0, help="The state after the canonical block at this height; else the tip."),
]
AtBlock = Annotated[
    str | None,
    typer.Option("--at-block", metavar="HASH", help="The state after this canonical block; its whole hash."),
]
Hex = Annotated[bool, typer.Option("--hex", help="Every key and value given is hex digits.")]
Network = Annotated[
    str | None, typer.Option("--network", metavar="NAME", help="Which network of this chain, where there are several.")
]
BatchBlocks = Annotated[
    int, typer.Option("--batch-blocks", min=1, max=65536, help="Blocks that are written and made durable together.")
]
Seconds = Annotated[
    float,
    typer.Option("--progress-seconds", min=0.0, help="Time between two lines of progress where there is no terminal."),
]
