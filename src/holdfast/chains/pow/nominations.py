"""Nominations of a complete epoch in their shuffled order.

Invariants:
    * The order is a function of the epoch's blocks alone: any node that has them gives the same.
    * An incomplete epoch has no order.

Shuffle: Fisher-Yates from the end; with ``digest = SHA-256(state as u64 little-endian)``, position i swaps with
``u64le(digest[8:16]) mod (i + 1)`` and the next state is ``u64le(digest[0:8])``. The first state is the XOR of the low
64 bits of the nonces. Vectors: ``shuffle(12345, 10)`` and ``shuffle(0, 5)`` in tests/unit/test_pow_nominations.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from hashlib import sha256

from .codec import PowBlock
from .rules import EPOCH_BLOCKS

__all__ = ["Nomination", "nomination_seed", "shuffle", "shuffled_nominations"]

_LOW_64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Nomination:
    """One block's nomination."""

    index: int
    peer_id: str
    miner_number: int


def shuffle(seed: int, count: int) -> list[int]:
    """A permutation of ``range(count)`` that ``seed`` (u64) determines."""
    order = list(range(count))
    state = seed & _LOW_64
    for last in range(count - 1, 0, -1):
        digest = sha256(state.to_bytes(8, "little")).digest()
        chosen = int.from_bytes(digest[8:16], "little") % (last + 1)
        order[last], order[chosen] = order[chosen], order[last]
        state = int.from_bytes(digest[:8], "little")
    return order


def nomination_seed(nonces: Iterable[int]) -> int:
    """XOR of the low 64 bits of the nonces."""
    return reduce(lambda seed, nonce: seed ^ (nonce & _LOW_64), nonces, 0)


def shuffled_nominations(blocks: Sequence[PowBlock]) -> tuple[Nomination, ...] | None:
    """The nominations of one epoch's blocks, given by rising index, in shuffled order; ``None`` unless there are 40."""
    if len(blocks) != EPOCH_BLOCKS:
        return None
    order = shuffle(nomination_seed(block.header.nonce for block in blocks), len(blocks))
    chosen = (blocks[position] for position in order)
    return tuple(Nomination(block.index, block.data.peer_id, block.data.miner_number) for block in chosen)
