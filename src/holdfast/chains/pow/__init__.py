"""System 001: a proof-of-work chain with epochs, nominations and retargeting, and its facade over the store."""

from .chain import PowChain, genesis_block
from .codec import PowBlock, PowData, PowHeader
from .mining import mine, mine_async
from .nominations import Nomination
from .rules import EPOCH_BLOCKS, PowParameters

__all__ = [
    "EPOCH_BLOCKS",
    "Nomination",
    "PowBlock",
    "PowChain",
    "PowData",
    "PowHeader",
    "PowParameters",
    "genesis_block",
    "mine",
    "mine_async",
]
