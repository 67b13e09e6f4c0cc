"""``holdfast sync``: following a live node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import ForeignStore, InvalidInputError
from .options import BatchBlocks, Config, DataDir, Durability, Engine, Json, Seconds
from .output import Output
from .progress import INTERRUPTED, Progress, StopSignals

if TYPE_CHECKING:
    from ..chains.evm.rpc import RpcClient
    from ..chains.evm.sync import SyncProgress
    from ..store.chain import Chain
    from ..store.identity import Identity

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """The command is part of ``app``."""
    app.command("sync")(sync)


def sync(
    kind: Annotated[Literal["evm"], typer.Argument(metavar="CHAIN", help="evm.")],
    url: Annotated[str, typer.Argument(metavar="URL", help="JSON-RPC address, e.g. http://127.0.0.1:8545.")],
    data_dir: DataDir,
    once: Annotated[bool, typer.Option("--once", help="End at the head the node has now.")] = False,
    until: Annotated[int | None, typer.Option("--until", min=0, help="End at this height.")] = None,
    poll: Annotated[float, typer.Option("--poll", min=0.0, help="Seconds between two looks at the node.")] = 1.0,
    base_height: Annotated[int | None, typer.Option("--base-height", min=0, help="Where a new store begins.")] = None,
    receipts: Annotated[bool, typer.Option("--receipts", help="Fetch, check and keep receipts too.")] = False,
    finality: Annotated[bool, typer.Option("--finality", help="Finalize what the node calls finalized.")] = False,
    engine: Engine = None,
    durability: Durability = None,
    batch_blocks: BatchBlocks = 32,
    progress_seconds: Seconds = 2.0,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Follow a node: fetch what is missing, then go along with its head and its reorganisations."""
    from ..chains.evm.rpc import RpcClient
    from ..chains.evm.sync import chain_of_node, follow
    from .session import create_or_open, find_identity, tell_recovery

    if once and until is not None:
        raise InvalidInputError("--once and --until exclude each other")
    out = Output(as_json=as_json)
    identity = find_identity(data_dir)
    if identity is not None and identity.spec.name != kind:
        raise ForeignStore("the store holds another chain", path=data_dir, found=identity.spec.name, expected=kind)
    client = RpcClient(url)
    try:
        if once:
            until = _head(client)
        chain = _chain(identity) or chain_of_node(url, client=client)
        overrides = {"durability": durability}
        with (
            create_or_open(data_dir, config, engine, lambda _: chain, overrides, quiet=as_json) as store,
            StopSignals() as stop,
        ):
            tell_recovery(store, out)
            with Progress("syncing", None, quiet=as_json, seconds=progress_seconds) as progress:
                report = follow(
                    store,
                    url,
                    poll_seconds=poll,
                    until=until,
                    base_height=base_height,
                    receipts=receipts,
                    finality=finality,
                    batch_blocks=batch_blocks,
                    stop=stop,
                    progress=lambda step: _show(progress, step),
                    client=client,
                )
            out.record(report.as_dict())
    finally:
        client.close()
    if report.stopped:
        out.note("stopped; every block above is durable. next: run the same command again, it goes on from there")
        raise typer.Exit(INTERRUPTED)


def _head(client: RpcClient) -> int:
    from ..errors import RemoteError

    answer = client.call("eth_blockNumber")
    if not isinstance(answer, str) or not answer.startswith("0x"):
        raise RemoteError("the node's answer is not a number", node=client.name, found=repr(answer)[:80])
    return int(answer[:34], 16)


def _chain(identity: Identity | None) -> Chain | None:
    from .chains import chain_of

    return None if identity is None else chain_of(identity.spec)


def _show(progress: Progress, step: SyncProgress) -> None:
    progress.update(step.blocks_added, f"height {step.height} of {step.head_height}, {step.reorgs} reorgs")
