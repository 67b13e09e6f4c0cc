"""``holdfast init``: a new store."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import StoreExists
from .options import Config, DataDir, Engine, Json, Network
from .output import Output

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """The command is part of ``app``."""
    app.command("init")(init)


def init(
    data_dir: DataDir,
    chain: Annotated[str, typer.Option("--chain", metavar="NAME", help="pow, bitcoin, evm, contracts or custom.")],
    engine: Engine = None,
    network: Network = None,
    difficulty: Annotated[int | None, typer.Option("--difficulty", help="pow: difficulty of the first epoch.")] = None,
    block_seconds: Annotated[
        int | None, typer.Option("--block-seconds", help="pow: the time a block shall take.")
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Create a store for one chain, in a directory that is missing or empty."""
    from .chains import ChainOptions, new_chain
    from .looking import block_row
    from .session import create_or_open, find_identity

    made = new_chain(chain, ChainOptions(network, difficulty, block_seconds))
    found = find_identity(data_dir)
    if found is not None:
        raise StoreExists("there is a store already", path=data_dir, chain=f"{found.spec.name} {found.spec.id}".strip())
    with create_or_open(data_dir, config, engine, lambda _: made, quiet=as_json) as store:
        Output(as_json=as_json).record(
            {
                "created": str(data_dir),
                "chain": store.spec.name,
                "chain_id": store.spec.id,
                "engine": store.engine,
                "tip": block_row(store, store.tip) if store.tip is not None else None,
            }
        )
