"""Reads of a store whose rows are in the engine: by height, by hash, and bodies from the journal."""

from __future__ import annotations

import random

from holdfast.blocks.records import block_key

from .data import backend_of, block_hash, fill, open_store
from .measure import Plan, Result, alternate, latency_row, rate_row, ratio_row

__all__ = ["run"]


def run(plan: Plan) -> Result:
    """Random reads in alternating rounds; the floor is a bare read of the engine."""
    height, rounds, per_round = plan.pick((100_000, 10, 10_000), (20_000, 5, 3000), (200, 2, 50))
    result = Result("reads")
    with open_store(plan.directory / "store", durability="buffered") as store:
        fill(store, height, body_bytes=1456)
    with open_store(plan.directory / "store") as store:
        choose = random.Random(3)
        heights = [choose.randrange(height) for _ in range((rounds + 1) * per_round)]
        hashes = [block_hash(number) for number in heights]
        infos = [store.blocks.load(name) for name in hashes[:per_round]]
        engine = backend_of(store).opened.engine
        reader = store.blocks
        found = alternate(
            {
                "bare": lambda number: engine.get(block_key(hashes[number])),
                "get": lambda number: reader.get(hashes[number]),
                "at": lambda number: reader.at(heights[number]),
                "body": lambda number: reader.body(infos[number % per_round]),
            },
            rounds=rounds,
            per_round=per_round,
            warm_up=per_round,
        )
    result.rows = [
        rate_row("bare engine get", found["bare"]),
        rate_row("blocks.get(hash)", found["get"]),
        rate_row("blocks.at(height)", found["at"]),
        rate_row("blocks.body(info)", found["body"]),
        latency_row("blocks.get(hash)", found["get"]),
        latency_row("blocks.at(height)", found["at"]),
        latency_row("blocks.body(info)", found["body"]),
        ratio_row("get / bare engine get", found["get"], found["bare"]),
    ]
    result.notes.append(f"{height:,} blocks with bodies of 1,456 bytes; the page cache is warm")
    return result
