"""``holdfast stats``: counters, sizes, and what opening the store found."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Config, DataDir, Json
from .output import Output
from .progress import memory_bytes

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """The command is part of ``app``."""
    app.command("stats")(stats)


def stats(
    data_dir: DataDir,
    no_tree: Annotated[
        bool,
        typer.Option("--no-tree", help="Leave out what needs the tree of the state: loading a large one takes long."),
    ] = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show the counters of the chain, the state, the journal, the views and the engine, and what recovery found."""
    from .session import open_to_read

    with open_to_read(data_dir, config) as store:
        values: dict[str, object] = {
            "store": {
                "path": str(data_dir),
                "chain": store.spec.name,
                "chain_id": store.spec.id,
                "engine": store.engine,
                "read_only": store.read_only,
            },
            "state": store.state.statistics(tree=not no_tree)
            | {"proof_window_blocks": store.settings.proof_window_blocks},
            **store.statistics(),
            "process": {"memory_bytes": memory_bytes()},
        }
        Output(as_json=as_json).record(values)
