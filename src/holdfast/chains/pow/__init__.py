"""System 001: a proof-of-work chain with epochs, nominations and retargeting, and its facade over the store."""

from .blockchain import Blockchain, ChainConfig
from .chain import PowChain, genesis_block
from .codec import PowBlock, PowData, PowHeader
from .json_format import MinerBlock
from .mining import mine, mine_async
from .nominations import Nomination
from .persistence import BlockchainPersistence
from .rules import EPOCH_BLOCKS, PowParameters
from .validation import ValidationReport

__all__ = [
    "EPOCH_BLOCKS",
    "Blockchain",
    "BlockchainPersistence",
    "ChainConfig",
    "MinerBlock",
    "Nomination",
    "PowBlock",
    "PowChain",
    "PowData",
    "PowHeader",
    "PowParameters",
    "ValidationReport",
    "genesis_block",
    "mine",
    "mine_async",
]
