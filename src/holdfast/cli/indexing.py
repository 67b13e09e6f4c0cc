"""``holdfast indexes``: the user indexes of a store and how far they are built."""

from __future__ import annotations

import typer

from .options import Config, DataDir, Json
from .output import Output

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """The command is part of ``app``."""
    app.command("indexes")(indexes)


def indexes(data_dir: DataDir, config: Config = None, as_json: Json = False) -> None:
    """List the user indexes: ready, building or behind."""
    from .session import open_to_read

    with open_to_read(data_dir, config) as store:
        rows = [
            {
                "name": item.name,
                "version": item.version,
                "status": item.status,
                "built_height": item.built_height,
                "tip_height": item.tip_height,
                "failure": item.failure,
            }
            for item in store.indexes()
        ]
        columns = ["name", "version", "status", "built_height", "tip_height", "failure"]
        Output(as_json=as_json).rows(columns, rows, empty="no indexes")
