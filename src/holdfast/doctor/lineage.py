"""Which blocks are canonical, as far as anything that can be read still says so.

Invariants:
    * What is newest decides, not what is highest: a reorganisation may end lower.
    * A block is only called canonical if the newest tip leads down to it without a gap.
"""

from __future__ import annotations

from ..blocks.entries import decode_canonical
from ..errors import HoldfastError
from ..journal.api import Kind
from .diagnose import Case, canonical_in_views
from .loss import blocks_of, frames_behind, raw_part

__all__ = ["canonical_from"]


def canonical_from(case: Case, floor: int) -> dict[int, bytes]:
    """Hash of each canonical block from height ``floor`` on, by height, from the newest tip down to the first gap.

    The tip is there even if it is below ``floor``.
    """
    if case.identity is None:
        return {}
    parents: dict[bytes, bytes] = {}
    newest = case.newest_tip
    tip = None if newest is None else (newest.height, newest.hash)
    seq = case.newest_tip_seq
    for frame, file in frames_behind(case.fs, case.root, case.identity.identity, case.segments, 0):
        for entry in blocks_of(frame, file, case.parts):
            if entry.height >= floor:
                parents[entry.hash] = entry.parent
        if frame.seq > seq:
            for index, part in enumerate(frame.parts):
                if part.kind == Kind.CANONICAL:
                    try:
                        tip, seq = decode_canonical(raw_part(frame, index, file, case.parts)).tip, frame.seq
                    except HoldfastError:
                        tip = None  # there is a newer one, and nobody knows which
    if tip is None:
        return {}
    return _walked(tip, parents, dict(canonical_in_views(case, floor)), floor)


def _walked(
    tip: tuple[int, bytes], parents: dict[bytes, bytes], views: dict[int, bytes], floor: int
) -> dict[int, bytes]:
    height, block_hash = tip
    found = {height: block_hash}
    while height >= floor:
        found[height] = block_hash
        if views.get(height) == block_hash:  # the views know all of its ancestors
            height -= 1
            while height >= floor and height in views:
                found[height] = views[height]
                height -= 1
            return found
        if block_hash not in parents:
            return found
        height, block_hash = height - 1, parents[block_hash]
    return found
