"""``holdfast epoch``: one epoch and, on a pow chain, its nominations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .options import Config, DataDir, Json
from .output import Output

if TYPE_CHECKING:
    from ..store.store import Store

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """The command is part of ``app``."""
    app.command("epoch")(epoch)


def epoch(
    data_dir: DataDir,
    number: Annotated[int, typer.Argument(min=0, help="The epoch.")],
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show an epoch; a complete one of a pow chain with its nominations in shuffled order."""
    from .session import open_to_read

    with open_to_read(data_dir, config) as store:
        first, after = store.blocks.epoch_range(number)
        blocks = sum(1 for _ in store.blocks.epoch(number))
        values: dict[str, object] = {
            "epoch": number,
            "first_height": first,
            "last_height": after - 1,
            "blocks": blocks,
            "complete": blocks == after - first,
        }
        out = Output(as_json=as_json)
        nominations = _nominations(store, number)
        if as_json:
            out.record(values | {"nominations": nominations})
            return
        out.record(values)
        if nominations is not None:
            out.text("\nnominations in shuffled order\n")
            out.rows(["position", "height", "peer", "miner_number"], nominations)


def _nominations(store: Store, number: int) -> list[dict[str, object]] | None:
    if store.spec.name != "pow":
        return None
    from ..chains.pow.nominations import shuffled_nominations
    from ..chains.pow.persistence import read_block

    chosen = shuffled_nominations([read_block(store, info) for info in store.blocks.epoch(number)])
    if chosen is None:
        return None
    return [
        {"position": position, "height": item.index, "peer": item.peer_id, "miner_number": item.miner_number}
        for position, item in enumerate(chosen)
    ]
