"""The proof of work of the original: a block hash that begins with as many hex zeros as the difficulty says.

Invariants:
    * Nonces are tried in rising order; a search that ends in whatever way has changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Final

from ...errors import MiningCancelled, MiningError
from .codec import NONCE_MAX, block_preimage

__all__ = ["mine", "work_of"]

CHUNK_ATTEMPTS: Final = 16_384


def work_of(difficulty: int) -> int:
    """Hashes that a block of this difficulty takes on average."""
    return int(16**difficulty)


def mine(
    document: Mapping[str, Any], *, max_attempts: int | None = None, stop: Callable[[], bool] | None = None
) -> dict[str, Any]:
    """``document`` with the first ``nonce`` from 0 whose hash meets its difficulty, and that ``hash``.

    Raises ``MiningError`` after ``max_attempts`` nonces, ``MiningCancelled`` if ``stop``, asked now and then, says so.
    """
    wanted = "0" * document["difficulty"]
    preimage = block_preimage({**document, "nonce": 0})
    # Every key before "nonce" in sorted order is of the block itself, so the first match is the right one.
    before, _, after = preimage.partition('"nonce": 0, "previous_hash"')
    head, tail = sha256(f'{before}"nonce": '.encode("ascii")), f', "previous_hash"{after}'.encode("ascii")
    most = NONCE_MAX if max_attempts is None else max_attempts
    for nonce in range(most):
        if stop is not None and nonce % CHUNK_ATTEMPTS == 0 and stop():
            raise MiningCancelled("mining was stopped", index=document["index"], attempts=nonce)
        state = head.copy()
        state.update(b"%d" % nonce + tail)
        found = state.hexdigest()
        if found.startswith(wanted):
            return {**document, "nonce": nonce, "hash": found}
    raise MiningError("no nonce found within the allowed attempts", index=document["index"], attempts=most)
