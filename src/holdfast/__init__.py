"""Holdfast: the durable memory of a blockchain node.

    import holdfast

    with holdfast.open("data") as store:
        draft = store.draft()
        store.commit(draft, hash=block_hash, header=header, body=body)

The journal is the truth; everything else is a view.
"""

from .config import Settings
from .store.chain import Chain, ChainSpec, CustomChain
from .store.factory import open_store as open  # noqa: A004 - the name users know from the standard library
from .store.indexes import IndexSpec, index
from .store.store import Store
from .types import AddResult, AddStatus, Block, BlockInfo, BlockStatus, OrphanInfo, RecoveryStats, ReorgInfo, TipInfo

__version__ = "0.1.0"

__all__ = [
    "AddResult",
    "AddStatus",
    "Block",
    "BlockInfo",
    "BlockStatus",
    "Chain",
    "ChainSpec",
    "CustomChain",
    "IndexSpec",
    "OrphanInfo",
    "RecoveryStats",
    "ReorgInfo",
    "Settings",
    "Store",
    "TipInfo",
    "index",
    "open",
]
