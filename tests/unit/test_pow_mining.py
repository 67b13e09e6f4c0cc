"""The search for a nonce: correct, bounded, cancellable, off the loop."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from holdfast.chains.pow.codec import PowHeader, header_hash
from holdfast.chains.pow.mining import meets_target, mine, mine_async
from holdfast.chains.pow.rules import DIFFICULTY_MAX, NONCE_MAX, target_of
from holdfast.errors import InvalidInputError, MiningCancelled, MiningError

EASY = PowHeader(1, 5, bytes(32), bytes(range(32)), 1, 0)
HOPELESS = PowHeader(1, 5, bytes(32), bytes(range(32)), DIFFICULTY_MAX, 0)


def first_nonce(header: PowHeader) -> int:
    nonce = 0
    while int.from_bytes(header_hash(header.with_nonce(nonce)), "big") >= target_of(header.difficulty):
        nonce += 1
    return nonce


def test_target_is_exclusive() -> None:
    target = target_of(3)
    assert meets_target((target - 1).to_bytes(32, "big"), 3)
    assert not meets_target(target.to_bytes(32, "big"), 3)


@pytest.mark.parametrize("chunk", [1, 7, 16_384])
def test_finds_the_first_nonce_whatever_the_chunk(chunk: int) -> None:
    nonce = mine(EASY, chunk=chunk)
    assert nonce == first_nonce(EASY)
    assert meets_target(header_hash(EASY.with_nonce(nonce)), EASY.difficulty)


def test_attempts_are_counted_exactly() -> None:
    nonce = first_nonce(EASY)
    assert mine(EASY, max_attempts=nonce + 1, chunk=5) == nonce
    with pytest.raises(MiningError) as failure:
        mine(EASY, max_attempts=nonce, chunk=5)
    assert not isinstance(failure.value, MiningCancelled)
    assert failure.value.context["attempts"] == nonce
    with pytest.raises(MiningError):
        mine(EASY, max_attempts=0)


def test_search_ends_at_the_largest_nonce() -> None:
    with pytest.raises(MiningError):
        mine(HOPELESS, start_nonce=NONCE_MAX - 10)


@pytest.mark.parametrize("arguments", [{"chunk": 0}, {"max_attempts": -1}, {"start_nonce": -1}])
def test_bad_arguments_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError):
        mine(EASY, **arguments)  # type: ignore[arg-type]


def test_event_stops_a_hopeless_search() -> None:
    stop = threading.Event()
    timer = threading.Timer(0.03, stop.set)
    timer.start()
    with pytest.raises(MiningCancelled):
        mine(HOPELESS, stop=stop, chunk=500)
    timer.join()


def test_callable_is_asked_before_every_chunk() -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 4

    with pytest.raises(MiningCancelled) as failure:
        mine(HOPELESS, stop=stop, chunk=10)
    assert failure.value.context["attempts"] == 30


def test_async_search_agrees_and_leaves_the_loop_free() -> None:
    async def run() -> tuple[int, int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticker = asyncio.create_task(tick())
        with ThreadPoolExecutor(1) as pool:
            nonce = await mine_async(EASY, executor=pool, chunk=20)
        ticker.cancel()
        return nonce, ticks

    nonce, ticks = asyncio.run(run())
    assert nonce == first_nonce(EASY)
    assert ticks > 3


def test_async_search_can_be_stopped_and_cancelled() -> None:
    async def stopped() -> None:
        stop = threading.Event()
        asyncio.get_running_loop().call_later(0.02, stop.set)
        await mine_async(HOPELESS, stop=stop, chunk=500)

    with pytest.raises(MiningCancelled):
        asyncio.run(stopped())

    async def cancelled() -> None:
        task = asyncio.create_task(mine_async(HOPELESS, chunk=500))
        await asyncio.sleep(0.02)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())

    async def bounded() -> None:
        await mine_async(HOPELESS, max_attempts=30, chunk=20)

    with pytest.raises(MiningError, match="attempts"):
        asyncio.run(bounded())
