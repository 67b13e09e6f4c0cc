"""EVM chains: blocks from recorded files and from a live node, checked by every hash and root they carry."""

from .chain import EvmChain
from .decoding import block_from_json, block_from_rlp, genesis_block
from .files import EvmFiles

__all__ = ["EvmChain", "EvmFiles", "block_from_json", "block_from_rlp", "genesis_block"]
