"""Easy pow chains for tests: a clock that is told, blocks mined on any parent, branches of wanted weight."""

from __future__ import annotations

from pathlib import Path

from holdfast.chains.pow import PowBlock, PowData, PowHeader, PowParameters, mine
from holdfast.chains.pow.blockchain import Blockchain, ChainConfig
from holdfast.chains.pow.codec import data_hash
from holdfast.chains.pow.persistence import StoreAncestry
from holdfast.types import BlockInfo

START = 1_700_000_000
EASY = PowParameters(network="test", initial_difficulty=1, target_block_seconds=60)


class Clock:
    """Seconds that move only when told."""

    def __init__(self, now: int = START) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


def easy(target: str | Path = "memory:", *, clock: Clock | None = None, **fields: object) -> Blockchain:
    """A chain of difficulty 1 whose clock stands at ``START``."""
    config = ChainConfig(parameters=EASY, **fields)  # type: ignore[arg-type]
    return Blockchain.load_or_create(target, config, clock=clock if clock is not None else Clock())


def mined(chain: Blockchain, parent: BlockInfo, time: int, *, peer: str = "peer", number: int = 0) -> PowBlock:
    """A valid block on ``parent``, not added."""
    data = PowData(peer, number)
    difficulty = chain.chain.expected_difficulty(parent, StoreAncestry(chain.store))
    header = PowHeader(parent.height + 1, time, parent.hash, data_hash(data), difficulty, 0)
    return PowBlock(header.with_nonce(mine(header)), data)


def grow(chain: Blockchain, parent: BlockInfo, count: int, *, seconds: int = 60, peer: str = "peer") -> BlockInfo:
    """``count`` blocks are added on ``parent``, each ``seconds`` after the one before; the last one."""
    for _ in range(count):
        block = mined(chain, parent, max(parent.time, START) + seconds, peer=peer)
        result = chain.add_block(block)
        assert result.block is not None
        parent = result.block
    return parent
