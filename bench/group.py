"""Group commit: threads of one process that save safety records and add side blocks, eight against one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import holdfast
from holdfast.types import Block

from .data import CHAIN_TIME, HEADER, PRODUCER, block_hash, blocks, open_store, pool
from .measure import Bar, Plan, Result, row

__all__ = ["run"]

THREADS = 8
BODY = pool(1456)
PAYLOAD = pool(200)
CHAIN_BLOCKS = 200


class Work:
    """Steps of each kind for any thread; no two steps ever write the same."""

    def __init__(self, store: holdfast.Store) -> None:
        self._store = store
        self._rising = [0] * THREADS
        self.kinds: dict[str, Callable[[int], None]] = {
            "safety": self.safety,
            "side blocks": self.side_block,
            "mixed": self.mixed,
        }

    def _next(self, thread: int) -> int:
        self._rising[thread] += 1
        return self._rising[thread]

    def safety(self, thread: int) -> None:
        """One safety record of the thread's own identity is durable."""
        self._store.safety.save(b"validator-%d" % thread, (self._next(thread), 0), PAYLOAD)

    def side_block(self, thread: int) -> None:
        """One block beside the canonical chain is durable."""
        number = self._next(thread)
        height = 2 + number % (CHAIN_BLOCKS - 2)
        own = block_hash(number, b"side %d" % thread)
        block = Block(own, block_hash(height - 1), height, HEADER, BODY, CHAIN_TIME + number, 1, PRODUCER)
        self._store.add(block)

    def mixed(self, thread: int) -> None:
        """One of each kind in turn."""
        if self._rising[thread] % 2:
            self.safety(thread)
        else:
            self.side_block(thread)


def _round(step: Callable[[int], None], threads: int, count: int) -> float:
    """Operations per second of ``threads`` threads that do ``count`` operations each."""
    gate = threading.Barrier(threads + 1)
    failures: list[BaseException] = []

    def work(thread: int) -> None:
        gate.wait()
        try:
            for _ in range(count):
                step(thread)
        except BaseException as error:
            failures.append(error)
            raise

    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    gate.wait()
    begun = time.perf_counter()
    for worker in workers:
        worker.join()
    elapsed = time.perf_counter() - begun
    if failures:
        raise failures[0]
    return threads * count / elapsed


def run(plan: Plan) -> Result:
    """Each kind of work, one thread and eight in alternating rounds."""
    rounds, count = plan.pick((15, 400), (6, 150), (1, 4))
    result = Result("group")
    with open_store(plan.directory / "store", fork_choice="manual", max_orphans=100_000_000) as store:
        store.add_many(list(blocks(0, CHAIN_BLOCKS, body_bytes=100, source=BODY)), validate=False)
        work = Work(store)
        for name, step in work.kinds.items():
            _round(step, THREADS, max(1, count // 8))
            one: list[float] = []
            many: list[float] = []
            for number in range(rounds):
                turns = [(one, 1, count), (many, THREADS, count // 2)]
                for rates, threads, each in turns if number % 2 else reversed(turns):
                    rates.append(_round(step, threads, each))
            ratios = [above / below for above, below in zip(many, one, strict=True)]
            result.rows += [
                row(f"{name}: 1 thread", "/s", one),
                row(f"{name}: {THREADS} threads", "/s", many),
                row(f"{name}: {THREADS} threads / 1 thread", "x", ratios),
            ]
    result.bars = [Bar("mixed work, rate of 8 threads over 1 thread", result.rows[-1].median, 3.0, True)]
    return result
