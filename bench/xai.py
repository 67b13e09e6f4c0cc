"""The shape of seed 000: whole-chain saves that cost what is new, load, checkpoint, and the import of a long file.

Blocks hold one coinbase transaction, as in the figures of the seed. They are made beforehand; so is the file.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from holdfast.chains.xai import BlockchainStorage, XaiSettings
from holdfast.chains.xai.blockchain import make_transaction
from holdfast.chains.xai.codec import COINBASE, merkle_root
from holdfast.chains.xai.document import package_chunks
from holdfast.chains.xai.mining import mine

from .measure import Bar, Plan, Result, median, row

__all__ = ["run"]

START = 1_699_564_800.123
REST: dict[str, Any] = {"pending_transactions": [], "difficulty": 0, "stats": {}}


def _blocks(count: int) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for index in range(count):
        now = START + 120 * index
        gift = make_transaction(COINBASE, f"XAI{index % 50:040x}", "12", timestamp=now)
        document = {
            "index": index,
            "timestamp": now,
            "transactions": [gift],
            "previous_hash": made[-1]["hash"] if made else "0",
            "merkle_root": merkle_root([gift["txid"]]),
            "nonce": 0,
            "difficulty": 0,
        }
        made.append(mine(document))
    return made


def _place(path: Path, interval: int) -> BlockchainStorage:
    return BlockchainStorage(path, settings=XaiSettings(path, checkpoint_interval=interval))


def _milliseconds(begun: float) -> float:
    return (time.perf_counter() - begun) * 1000


def run(plan: Plan) -> Result:
    """One directory for each height: its file is taken in, then one block is saved after the other."""
    heights, saves, loads = plan.pick(((1_000, 50_000), 300, 20), ((1_000, 5_000), 100, 5), ((20, 40), 5, 2))
    result = Result("xai")
    made = _blocks(max(heights) + saves)
    for height in heights:
        path = plan.directory / str(height)
        path.mkdir()
        with (path / "blockchain.json").open("wb") as file:
            for chunk in package_chunks(made[:height], REST, START):
                file.write(chunk)
        place = _place(path, 10**9)
        begun = time.perf_counter()
        place.open()
        imported = time.perf_counter() - begun
        chain = made[:height]
        place.save_to_disk({**REST, "chain": chain})
        times = []
        for block in made[height : height + saves]:
            chain.append(block)
            begun = time.perf_counter()
            ok, message = place.save_to_disk({**REST, "chain": chain})
            times.append(_milliseconds(begun))
            if not ok:
                raise RuntimeError(message)
        place.close()
        result.rows += [
            row(f"import of {height:,} blocks", "s", [imported]),
            row(f"incremental save at {height:,} blocks", "ms", times),
        ]
        result.bars.append(Bar(f"incremental save at {height:,} blocks, p50 in ms", median(times), 5, False))
        if height == 50_000:
            result.bars.append(Bar("import of 50,000 blocks, s", imported, 10, False))
    _load_and_check_point(plan.directory / str(min(heights)), made[: min(heights)], loads, result)
    return result


def _load_and_check_point(path: Path, chain: list[dict[str, Any]], rounds: int, result: Result) -> None:
    opened, loaded, checkpoints = [], [], []
    for _ in range(rounds):
        place = _place(path, 10**9)
        begun = time.perf_counter()
        place.open()
        opened.append(_milliseconds(begun))
        begun = time.perf_counter()
        place.load_from_disk()
        loaded.append(_milliseconds(begun))
        begun = time.perf_counter()
        place.archive.create_checkpoint(chain, REST, len(chain))
        checkpoints.append(_milliseconds(begun))
        place.close()
    count = f"{len(chain):,} blocks"
    result.rows += [
        row("open of the store", "ms", opened),
        row(f"load of {count} and the saves after them, checksum included", "ms", loaded),
        row(f"checkpoint of {count}, read again and verified", "ms", checkpoints),
    ]
    result.bars += [
        Bar(f"load of {count}, ms", median(loaded), 150, False),
        Bar(f"checkpoint of {count}, ms", median(checkpoints), 300, False),
    ]
