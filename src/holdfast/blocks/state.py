"""The state of the chain after a frame: what the next decision needs, in one small value.

It is stored with the applied frame number, so that replay after a crash starts from exactly the state that belongs to
the rows in the engine. Counters live here and not in rows, because replaying a frame twice must not count twice.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from ..errors import CorruptionError, Recovery
from ..merkle.api import Tree
from ..types import ZERO_HASH, BlockInfo
from .entries import BlockEntry

__all__ = ["EMPTY", "ChainState", "decode_state", "encode_state", "has_root", "root_after", "tip_height_of"]

_STATE = struct.Struct(">BQ32sQ32sQQQQQQQ")
assert _STATE.size == 137

_HAS_TIP, _HAS_FINALIZED, _HAS_STATE = 1, 2, 4
_ROOT_BYTES = 32


class ChainState(NamedTuple):
    """Tip, root, finality and counters. ``finalized`` is -1 when nothing was finalized explicitly.

    ``floor`` is the lowest height at which the canonical chain may still fork. ``orphans`` counts the stored blocks
    that are not canonical; ``orphaned`` every block that ever left the canonical chain. ``state_root`` is that after
    the tip, zeros while nothing on its branch was executed; ``stateful``: some block, on any branch, was executed.
    """

    tip_height: int
    tip_hash: bytes
    root_height: int
    root_hash: bytes
    finalized: int
    floor: int
    blocks: int
    orphans: int
    reorgs: int
    reorg_depth_max: int
    orphaned: int
    state_root: bytes = ZERO_HASH
    stateful: bool = False

    @property
    def has_tip(self) -> bool:
        """True once the chain has a block."""
        return self.tip_height >= 0


EMPTY = ChainState(-1, ZERO_HASH, 0, ZERO_HASH, -1, 0, 0, 0, 0, 0, 0)


def encode_state(state: ChainState) -> bytes:
    """Bytes of the state (docs/FORMAT.md, section 7)."""
    flags = (_HAS_TIP if state.tip_height >= 0 else 0) | (_HAS_FINALIZED if state.finalized >= 0 else 0)
    if state.stateful:
        flags |= _HAS_STATE
    packed = _STATE.pack(
        flags,
        max(state.tip_height, 0),
        state.tip_hash,
        state.root_height,
        state.root_hash,
        max(state.finalized, 0),
        state.floor,
        state.blocks,
        state.orphans,
        state.reorgs,
        state.reorg_depth_max,
        state.orphaned,
    )
    return packed + state.state_root if state.stateful else packed


def decode_state(data: bytes) -> ChainState:
    """The state these bytes are."""
    stateful = bool(data and data[0] & _HAS_STATE)
    expected = _STATE.size + (_ROOT_BYTES if stateful else 0)
    if len(data) != expected or data[0] > 7:
        raise CorruptionError(
            "the stored chain state is malformed", found=len(data), expected=expected, recovery=Recovery.REBUILD
        )
    flags, tip_height, tip_hash, root_height, root_hash, finalized, *rest = _STATE.unpack_from(data)
    state = ChainState(
        tip_height if flags & _HAS_TIP else -1,
        tip_hash,
        root_height,
        root_hash,
        finalized if flags & _HAS_FINALIZED else -1,
        *rest,
    )
    return state._replace(state_root=data[_STATE.size :], stateful=True) if stateful else state


def tip_height_of(data: bytes) -> int:
    """Height of the tip in an encoded state of the chain, 0 without one."""
    return max(0, decode_state(data).tip_height)


# -- recorded roots -------------------------------------------------------------------------------------------------


def root_after(block: BlockInfo | BlockEntry | None, empty: bytes = ZERO_HASH) -> bytes:
    """The root that is recorded for the state after ``block``; ``empty`` while nothing on its branch was executed."""
    return empty if block is None or block.state_root is None else block.state_root


def has_root(tree: Tree, root: bytes) -> bool:
    """True if ``tree`` has this recorded root; zeros stand for the empty tree while nothing was executed."""
    return tree.root == root or (root == ZERO_HASH and tree.count == 0)
