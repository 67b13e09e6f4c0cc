"""Holdfast: the durable memory of a blockchain node.

    import holdfast

    with holdfast.open("data") as store:
        draft = store.draft()
        store.commit(draft, hash=block_hash, header=header, body=body)

The journal is the truth; everything else is a view. Names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._keys import StoreKey
    from .config import Settings, load_settings
    from .doctor.door import open_attended as open  # noqa: A004 - the name users know from the standard library
    from .doctor.examination import diagnose, repair
    from .doctor.report import DoctorReport, RepairReport
    from .events import Event, on_event
    from .merkle.multiproof import verify_many
    from .merkle.verify import verify_proof
    from .recovery.diff import diff
    from .recovery.diff_report import DiffReport
    from .state.api import MutableState, ReadableState
    from .state.proof import MultiProof, Proof
    from .state.snapshot import SnapshotInfo, verify_snapshot
    from .store.chain import Chain, ChainSpec, CustomChain, ExecutingChain
    from .store.checkpoints import restore_checkpoint
    from .store.draft import Draft
    from .store.indexes import IndexSpec, index
    from .store.pruning import PruneReport
    from .store.retention import RetentionPolicy
    from .store.snapshots import import_snapshot
    from .store.states import StateAt
    from .store.store import Store, StoreSnapshot
    from .types import (
        AddResult,
        AddStatus,
        Block,
        BlockInfo,
        BlockStatus,
        OrphanInfo,
        RecoveryStats,
        ReorgInfo,
        TipInfo,
    )

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
    "DiffReport",
    "DoctorReport",
    "Draft",
    "Event",
    "ExecutingChain",
    "IndexSpec",
    "MultiProof",
    "MutableState",
    "OrphanInfo",
    "Proof",
    "PruneReport",
    "ReadableState",
    "RecoveryStats",
    "ReorgInfo",
    "RepairReport",
    "RetentionPolicy",
    "Settings",
    "SnapshotInfo",
    "StateAt",
    "Store",
    "StoreKey",
    "StoreSnapshot",
    "TipInfo",
    "diagnose",
    "diff",
    "import_snapshot",
    "index",
    "load_settings",
    "on_event",
    "open",
    "repair",
    "restore_checkpoint",
    "verify_many",
    "verify_proof",
    "verify_snapshot",
]

_HOMES = {
    "_keys": ("StoreKey",),
    "config": ("Settings", "load_settings"),
    "doctor.examination": ("diagnose", "repair"),
    "doctor.report": ("DoctorReport", "RepairReport"),
    "events": ("Event", "on_event"),
    "merkle.multiproof": ("verify_many",),
    "merkle.verify": ("verify_proof",),
    "recovery.diff": ("diff",),
    "recovery.diff_report": ("DiffReport",),
    "state.api": ("MutableState", "ReadableState"),
    "state.proof": ("MultiProof", "Proof"),
    "state.snapshot": ("SnapshotInfo", "verify_snapshot"),
    "store.chain": ("Chain", "ChainSpec", "CustomChain", "ExecutingChain"),
    "store.checkpoints": ("restore_checkpoint",),
    "store.draft": ("Draft",),
    "store.indexes": ("IndexSpec", "index"),
    "store.pruning": ("PruneReport",),
    "store.retention": ("RetentionPolicy",),
    "store.snapshots": ("import_snapshot",),
    "store.states": ("StateAt",),
    "store.store": ("Store", "StoreSnapshot"),
    "types": (
        "AddResult",
        "AddStatus",
        "Block",
        "BlockInfo",
        "BlockStatus",
        "OrphanInfo",
        "RecoveryStats",
        "ReorgInfo",
        "TipInfo",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name == "open":
        value: object = import_module(".doctor.door", __name__).open_attended
    elif name in _HOME_OF:
        value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    else:
        try:
            value = import_module(f".{name}", __name__)
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
