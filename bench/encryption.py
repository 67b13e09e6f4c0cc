"""An encrypted store against a plain one, in alternating rounds: commits, flushes, and reads that reach the engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import holdfast

from .data import HEADER, backend_of, block_hash, pool
from .measure import Plan, Result, Timed, alternate, latency_row, ratio_row, row

__all__ = ["run"]

BODIES = {"1.5 KB": pool(1456), "16 KB": pool(16 * 1024)}
KEY = bytes(range(32))
UPDATES = 1_000
VALUE = pool(200)


def _open(path: Path, key: bytes | None) -> holdfast.Store:
    """A store that flushes only when it is asked to, and keeps no rows in memory that are in the engine."""
    settings = holdfast.Settings.model_validate(
        {"compression": "none", "log_level": "error", "flush_interval_seconds": 3600.0, "state_cache_bytes": 0}
    )
    return holdfast.open(f"rocksdb:{path}", key=key, settings=settings)


def _committing(store: holdfast.Store, body: bytes) -> Callable[[int], object]:
    def step(_number: int) -> None:
        draft = store.draft()
        store.commit(draft, hash=block_hash(draft.height), header=HEADER, body=body)

    return step


def _flushing(store: holdfast.Store) -> Callable[[int], object]:
    """A block of ``UPDATES`` updates is committed and is in the engine."""
    views = backend_of(store).views

    def step(number: int) -> None:
        draft = store.draft()
        for at in range(UPDATES):
            draft.state[b"key %d" % (at + UPDATES * (number % 8))] = VALUE + b"%d" % number
        store.commit(draft, hash=block_hash(draft.height), header=HEADER)
        views.flush()

    return step


def _reading(store: holdfast.Store) -> Callable[[int], object]:
    state = store.state

    def step(number: int) -> None:
        state[b"key %d" % (number * 7919 % (8 * UPDATES))]

    return step


def _bodies(store: holdfast.Store) -> Callable[[int], object]:
    assert store.tip is not None
    top = store.tip.height

    def step(number: int) -> None:
        info = store.blocks.at(number * 7919 % top)
        assert info is not None
        store.blocks.body(info)

    return step


def run(plan: Plan) -> Result:
    """Each kind of work on both stores; a ratio is that of one round. Flushes run in the calling thread."""
    rounds, count = plan.pick((15, 400), (7, 100), (1, 3))
    result = Result("encryption")
    with _open(plan.directory / "plain", None) as bare, _open(plan.directory / "sealed", KEY) as keyed:
        pair = {"plain": bare, "encrypted": keyed}

        def compare(name: str, make: Callable[[holdfast.Store], Callable[[int], object]], each: int) -> None:
            steps = {kind: make(store) for kind, store in pair.items()}
            found: dict[str, list[Timed]] = alternate(steps, rounds=rounds, per_round=each, warm_up=max(1, each // 8))
            result.rows += [latency_row(f"{name}: {kind}", timings) for kind, timings in found.items()]
            plain, sealed = found["plain"], found["encrypted"]
            result.rows.append(ratio_row(f"{name}: time, encrypted / plain", plain, sealed))
            cpu = [above.cpu_ns / below.cpu_ns for above, below in zip(sealed, plain, strict=True)]
            result.rows.append(row(f"{name}: processor time, encrypted / plain", "x", cpu))

        for size, body in BODIES.items():
            compare(f"durable commit, body of {size}", lambda store, body=body: _committing(store, body), count)
        compare(f"commit and flush of {UPDATES:,} updates", _flushing, max(8, count // 40))
        compare("read of a state key in the engine", _reading, count * 10)
        compare("read of a body", _bodies, count)
    return result
