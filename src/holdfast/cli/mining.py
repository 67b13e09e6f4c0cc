"""``holdfast mine``: new blocks on a pow chain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import MiningCancelled
from .options import Config, DataDir, Durability, Json, Seconds
from .output import Output
from .progress import INTERRUPTED, Progress, StopSignals

if TYPE_CHECKING:
    from ..chains.pow.blockchain import Blockchain

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """The command is part of ``app``."""
    app.command("mine")(mine)


def mine(
    data_dir: DataDir,
    count: Annotated[int, typer.Option("--blocks", "-n", min=1, help="How many blocks.")] = 1,
    peer: Annotated[str, typer.Option("--peer", help="The peer that the blocks nominate.")] = "holdfast",
    number: Annotated[int, typer.Option("--number", min=0, help="The miner's number.")] = 1,
    max_attempts: Annotated[int | None, typer.Option("--max-attempts", min=1, help="Nonces tried for a block.")] = None,
    durability: Durability = None,
    progress_seconds: Seconds = 2.0,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Mine blocks on the tip of a pow chain; each is durable before the next is begun."""
    from ..chains.pow.blockchain import Blockchain, ChainConfig
    from ..chains.pow.chain import CHAIN_NAME, PowChain
    from .looking import block_row
    from .session import open_to_write, tell_recovery

    overrides = {"durability": durability}
    with open_to_write(data_dir, config, overrides, chain=CHAIN_NAME, quiet=as_json) as store, StopSignals() as stop:
        chain = PowChain.from_spec(store.spec)
        out = Output(as_json=as_json)
        tell_recovery(store, out)
        with (
            Blockchain.load_or_create(store, ChainConfig(chain.parameters)) as blockchain,
            Progress("mining", count, quiet=as_json, seconds=progress_seconds) as progress,
        ):
            mined = _mine(blockchain, count, peer, number, max_attempts, stop, progress)
        tip = store.tip
        assert tip is not None
        out.record({"mined": mined, "stopped": stop.asked, "tip": block_row(store, tip)})
        if stop.asked:
            out.note(f"stopped after {mined} of {count} blocks, all durable. next: mine the other {count - mined}")
            raise typer.Exit(INTERRUPTED)


def _mine(
    blockchain: Blockchain,
    count: int,
    peer: str,
    number: int,
    max_attempts: int | None,
    stop: StopSignals,
    progress: Progress,
) -> int:
    for mined in range(count):
        if stop():
            return mined
        try:
            block = blockchain.mine_block(peer, number, max_attempts=max_attempts, stop=stop)
        except MiningCancelled:
            return mined
        progress.update(mined + 1, f"height {block.index}")
    return count
