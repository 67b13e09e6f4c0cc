"""System 000: the chain of the original's JSON files, with its storage object and its blockchain object."""

from .blockchain import XAIBlockchain
from .chain import ADDRESS_INDEX, XaiChain, XaiParameters
from .config import BlockchainStorageConfig, XaiSettings
from .storage import BlockchainStorage

__all__ = [
    "ADDRESS_INDEX",
    "BlockchainStorage",
    "BlockchainStorageConfig",
    "XAIBlockchain",
    "XaiChain",
    "XaiParameters",
    "XaiSettings",
]
