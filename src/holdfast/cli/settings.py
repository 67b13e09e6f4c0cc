"""``holdfast config show``: every setting, its value and where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Config, Json
from .output import Output

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """The command is part of ``app``."""
    group = typer.Typer(no_args_is_help=True, help="The settings in force.")
    group.command("show")(show)
    app.add_typer(group, name="config")


def show(
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", "-d", envvar="HOLDFAST_DATA_DIR", help="Directory of the store.")
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show each setting with its value and its source: default, preset, file, environment or argument."""
    from ..config import describe_settings, load_settings

    loaded = load_settings(data_dir, config=config)
    rows = [
        {
            "key": info.key,
            "value": getattr(loaded.settings, info.key),
            "source": loaded.sources[info.key],
            "default": info.default,
            "allowed": info.allowed,
            "variable": info.variable,
            "description": info.description,
        }
        for info in describe_settings()
    ]
    Output(as_json=as_json).rows(["key", "value", "source", "description"], rows)
