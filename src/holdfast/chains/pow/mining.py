"""Search for a nonce: in chunks, on any executor, cancelled between chunks.

Invariants:
    * Nothing here touches a store: a search that ends in whatever way has changed nothing.
    * A nonce that is returned satisfies the header's own difficulty.
    * Nonces are tried in rising order from ``start_nonce``, so a search is reproducible.

``search`` is a plain function of picklable arguments: hand ``mine_async`` a ``ProcessPoolExecutor`` and the event loop
keeps its interpreter to itself; with threads the loop waits for at most one switch interval of the interpreter.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from hashlib import sha256
from typing import Final

from ...errors import InvalidInputError, MiningCancelled, MiningError
from .codec import PowHeader, hash_prefix
from .rules import NONCE_MAX, target_of

__all__ = ["CHUNK_ATTEMPTS", "Stop", "meets_target", "mine", "mine_async", "search"]

CHUNK_ATTEMPTS: Final = 16_384
"""Attempts between two looks at ``stop``: some 15 ms in pure Python."""

Stop = threading.Event | Callable[[], bool]


def meets_target(block_hash: bytes, difficulty: int) -> bool:
    """Whether a block of this hash was mined at this difficulty."""
    return int.from_bytes(block_hash, "big") < target_of(difficulty)


def search(prefix: bytes, target: int, start: int, attempts: int) -> int | None:
    """The first of ``attempts`` nonces from ``start`` whose hash is below ``target``, or ``None``."""
    limit = target.to_bytes(32, "big")
    copy = sha256(prefix).copy
    for nonce in range(start, min(start + attempts, NONCE_MAX + 1)):
        state = copy()
        state.update(nonce.to_bytes(16, "big"))
        if state.digest() < limit:
            return nonce
    return None


def _stopper(stop: Stop | None) -> Callable[[], bool]:
    if stop is None:
        return bool
    return stop.is_set if isinstance(stop, threading.Event) else stop


def _chunks(start_nonce: int, max_attempts: int | None, chunk: int) -> list[int] | range:
    end = NONCE_MAX + 1 if max_attempts is None else min(start_nonce + max_attempts, NONCE_MAX + 1)
    if chunk < 1 or start_nonce < 0 or (max_attempts is not None and max_attempts < 0):
        raise InvalidInputError("chunk must be at least 1; start and attempts at least 0", chunk=chunk)
    return range(start_nonce, end, chunk)


def _exhausted(header: PowHeader, tried: int) -> MiningError:
    return MiningError(
        "no nonce found within the allowed attempts", index=header.index, difficulty=header.difficulty, attempts=tried
    )


def _cancelled(header: PowHeader, tried: int) -> MiningCancelled:
    return MiningCancelled("mining was stopped", index=header.index, difficulty=header.difficulty, attempts=tried)


def mine(
    header: PowHeader,
    *,
    max_attempts: int | None = None,
    stop: Stop | None = None,
    start_nonce: int = 0,
    chunk: int = CHUNK_ATTEMPTS,
) -> int:
    """A nonce that makes ``header`` (whose own nonce is not read) meet its difficulty.

    Args:
        max_attempts: at most this many nonces are tried; ``None`` = no bound.
        stop: looked at before every ``chunk`` attempts.

    Raises:
        MiningError: the attempts ran out.
        MiningCancelled: ``stop`` said so.
    """
    prefix, target, stopped = hash_prefix(header), target_of(header.difficulty), _stopper(stop)
    starts = _chunks(start_nonce, max_attempts, chunk)
    for start in starts:
        if stopped():
            raise _cancelled(header, start - start_nonce)
        attempts = chunk if max_attempts is None else min(chunk, start_nonce + max_attempts - start)
        nonce = search(prefix, target, start, attempts)
        if nonce is not None:
            return nonce
    raise _exhausted(header, max_attempts if max_attempts is not None else NONCE_MAX + 1 - start_nonce)


async def mine_async(
    header: PowHeader,
    *,
    executor: Executor | None = None,
    max_attempts: int | None = None,
    stop: Stop | None = None,
    start_nonce: int = 0,
    chunk: int = CHUNK_ATTEMPTS,
) -> int:
    """``mine`` with its chunks on ``executor`` (``None`` = the loop's threads); the loop is never blocked.

    Cancelling the task ends the search; at most one chunk runs on unheard.
    """
    loop = asyncio.get_running_loop()
    prefix, target, stopped = hash_prefix(header), target_of(header.difficulty), _stopper(stop)
    for start in _chunks(start_nonce, max_attempts, chunk):
        if stopped():
            raise _cancelled(header, start - start_nonce)
        attempts = chunk if max_attempts is None else min(chunk, start_nonce + max_attempts - start)
        nonce = await loop.run_in_executor(executor, search, prefix, target, start, attempts)
        if nonce is not None:
            return nonce
    raise _exhausted(header, max_attempts if max_attempts is not None else NONCE_MAX + 1 - start_nonce)
