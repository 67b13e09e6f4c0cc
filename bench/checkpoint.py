"""Making, verifying and restoring a checkpoint of a small chain: a UTXO set of JSON transactions, as XAI has it."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import holdfast

from .data import open_store
from .measure import Bar, Plan, Result, median, row

__all__ = ["run"]


def _grow(store: holdfast.Store, count: int, unspent: list[bytes], chance: random.Random) -> None:
    """So many blocks of three transactions, each of which spends one output and makes two."""
    for _ in range(count):
        height = 0 if store.tip is None else store.tip.height + 1
        draft = store.draft()
        transactions = []
        for number in range(3):
            txid = sha256(b"%d/%d" % (height, number)).hexdigest()
            spent = unspent.pop(chance.randrange(len(unspent))) if len(unspent) > 8 else None
            if spent is not None:
                del draft.state[spent]
            for at in range(2):
                key = f"utxo/{txid}:{at}".encode()
                value = {"address": "XAI" + sha256(key).hexdigest()[:40], "amount": chance.randrange(10**12)}
                draft.state[key] = json.dumps(value).encode()
                unspent.append(key)
            transactions.append({"txid": txid, "inputs": [spent.decode()] if spent else [], "fee": 1000})
        body = json.dumps({"index": height, "transactions": transactions}).encode()
        store.commit(draft, hash=sha256(body).digest(), header=body[:80], body=body, time=height)


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _bytes_in(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def run(plan: Plan) -> Result:
    """A checkpoint of the tip every ten blocks from block 1,000 on; the last one is verified and restored."""
    height, rounds = plan.pick((1_000, 30), (1_000, 8), (30, 2))
    result = Result("checkpoint")
    path = plan.directory / "store"
    unspent: list[bytes] = []
    chance = random.Random(3)
    making: list[float] = []
    with open_store(path, engine="sqlite", checkpoint_interval=0) as store:
        _grow(store, height, unspent, chance)
        for _ in range(rounds):
            making.append(_seconds(store.checkpoints.create))
            _grow(store, 10, unspent, chance)
        final = _seconds(lambda: store.checkpoints.create(max(0, height - 256)))
        made = store.checkpoints.list()
        verifying = [_seconds(lambda: store.checkpoints.verify(made[0].name)) for _ in range(rounds)]
        pruning = _seconds(lambda: store.checkpoints.prune(0, newest=1))
    restoring = _seconds(lambda: holdfast.restore_checkpoint(path, f"sqlite:{plan.directory / 'new'}"))
    assert made[0].snapshot is not None
    result.rows = [
        row("make", "ms", [1000 * seconds for seconds in making]),
        row("make, of an older block", "ms", [1000 * final]),
        row("verify", "ms", [1000 * seconds for seconds in verifying]),
        row(f"prune {len(made) - 1} of {len(made)}", "ms", [1000 * pruning]),
        row("restore", "ms", [1000 * restoring]),
    ]
    result.bars = [Bar(f"making one at {height:,} blocks, ms", median([1000 * each for each in making]), 300, False)]
    result.notes.append(f"{made[0].snapshot.keys:,} keys; {_bytes_in(path / 'checkpoints'):,} bytes for one checkpoint")
    return result
