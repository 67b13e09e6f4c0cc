"""Reads of a store whose rows are in the engine: by height, by hash, and bodies from the journal."""

from __future__ import annotations

import random

from holdfast.blocks.records import block_key

from .data import backend_of, block_hash, commit, fill, open_store, pool
from .measure import Plan, Result, alternate, latency_row, rate_row, ratio_row

__all__ = ["run"]

BODY = pool(1456)


def run(plan: Plan) -> Result:
    """Random reads in alternating rounds; the floor is a bare read of the engine."""
    height, rounds, per_round, bodies = plan.pick((100_000, 10, 10_000, 300), (20_000, 5, 3000, 100), (300, 2, 20, 10))
    result = Result("reads")
    path = plan.directory / "store"
    with open_store(path, durability="buffered") as store:
        fill(store, height, body_bytes=len(BODY))
        alone = [commit(store, BODY) for _ in range(10 * bodies)]
    with open_store(path) as store:
        choose = random.Random(3)
        heights = [choose.randrange(height) for _ in range((rounds + 1) * per_round)]
        hashes = [block_hash(number) for number in heights]
        engine = backend_of(store).opened.engine
        reader = store.blocks
        found = alternate(
            {
                "bare": lambda number: engine.get(block_key(hashes[number])),
                "get": lambda number: reader.get(hashes[number]),
                "at": lambda number: reader.at(heights[number]),
            },
            rounds=rounds,
            per_round=per_round,
            warm_up=per_round,
        )
        choose.shuffle(alone)
        together = [reader.load(name) for name in hashes[: 10 * bodies]]
        found |= alternate(
            {
                "alone": lambda number: reader.body(alone[number % len(alone)]),
                "together": lambda number: reader.body(together[number % len(together)]),
            },
            rounds=rounds,
            per_round=bodies,
            warm_up=bodies,
        )
    names = {
        "bare": "bare engine get",
        "get": "blocks.get(hash)",
        "at": "blocks.at(height)",
        "alone": "blocks.body, a frame for each block",
        "together": "blocks.body, an imported run in a frame",
    }
    result.rows = [rate_row(text, found[name]) for name, text in names.items()]
    result.rows += [latency_row(text, found[name]) for name, text in names.items()]
    result.rows.append(ratio_row("get / bare engine get", found["get"], found["bare"]))
    result.notes.append(f"{height:,} blocks with bodies of {len(BODY):,} bytes; the page cache is warm")
    return result
