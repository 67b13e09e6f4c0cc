"""Bitcoin: headers, bodies, block files, and the rules that tie them together."""

from .chain import BitcoinChain
from .files import BlockFiles, detect_network
from .header import display_hash, parse_display_hash
from .networks import NETWORKS, Network

__all__ = [
    "NETWORKS",
    "BitcoinChain",
    "BlockFiles",
    "Network",
    "detect_network",
    "display_hash",
    "parse_display_hash",
]
