"""Files of the original, made by a dumb implementation of its format that shares no code with ours.

Written from the description of the format (seed 000 and docs/XAI.md): nested dictionaries, ``json.dumps`` and SHA-256.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

START = 1_699_564_800.123


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def tx(
    sender: str, recipient: str, amount: float, fee: float = 0.0, *, at: float = START, **more: Any
) -> dict[str, Any]:
    """A transaction as the original's ``to_dict`` gives it."""
    hashed = {
        "sender": sender,
        "recipient": recipient,
        "amount": amount,
        "fee": fee,
        "timestamp": at,
        "nonce": more.get("nonce"),
        "tx_type": more.get("tx_type", "normal"),
        "metadata": more.get("metadata", {}),
    }
    others: dict[str, Any] = {
        "signature": None,
        "public_key": None,
        "risk_score": 0.0,
        "risk_level": "clean",
        "flag_reasons": [],
    }
    return {"txid": digest(json.dumps(hashed, sort_keys=True)), **hashed, **others, **more}


def merkle(ids: list[str]) -> str:
    if not ids:
        return digest("")
    while len(ids) > 1:
        if len(ids) % 2 != 0:
            ids = [*ids, ids[-1]]
        ids = [digest(ids[i] + ids[i + 1]) for i in range(0, len(ids), 2)]
    return ids[0]


def hash_of(block: dict[str, Any]) -> str:
    names = ("index", "timestamp", "transactions", "previous_hash", "merkle_root", "nonce")
    return digest(json.dumps({name: block[name] for name in names}, sort_keys=True))


def mined(block: dict[str, Any]) -> dict[str, Any]:
    """The block with a nonce and hash that meet its difficulty."""
    nonce = 0
    while True:
        block = {**block, "nonce": nonce}
        found = hash_of(block)
        if found.startswith("0" * block["difficulty"]):
            return {**block, "hash": found}
        nonce += 1


def block(
    parent: dict[str, Any] | None,
    transactions: list[dict[str, Any]],
    *,
    difficulty: int = 1,
    at: float | None = None,
) -> dict[str, Any]:
    """A valid block on ``parent``, or a genesis block."""
    index = 0 if parent is None else parent["index"] + 1
    return mined(
        {
            "index": index,
            "timestamp": START + 120 * index if at is None else at,
            "transactions": transactions,
            "previous_hash": "0" if parent is None else parent["hash"],
            "merkle_root": merkle([item["txid"] for item in transactions]),
            "nonce": 0,
            "difficulty": difficulty,
        }
    )


def grow(
    parent: dict[str, Any] | None, count: int, *, miner: str = "XAIminer", difficulty: int = 1
) -> list[dict[str, Any]]:
    """``count`` blocks of one coinbase each on ``parent``."""
    made = []
    for _ in range(count):
        index = 0 if parent is None else parent["index"] + 1
        parent = block(parent, [tx("COINBASE", miner, 12.0, at=START + 120 * index)], difficulty=difficulty)
        made.append(parent)
    return made


def chain(count: int, **more: Any) -> dict[str, Any]:
    """The inner object of a chain of ``count`` blocks."""
    blocks = grow(None, count, **more)
    stats = {"blocks": count, "total_supply": 12.0 * count, "latest_block_hash": blocks[-1]["hash"] if blocks else None}
    return {"chain": blocks, "pending_transactions": [], "difficulty": 1, "stats": stats}


def checksum(inner: dict[str, Any]) -> str:
    return digest(json.dumps(inner, indent=2, sort_keys=True))


def package(inner: dict[str, Any], **metadata: Any) -> bytes:
    """A file with metadata, as the original writes ``blockchain.json`` and its backups."""
    facts = {
        "timestamp": START,
        "block_height": len(inner["chain"]),
        "checksum": checksum(inner),
        "version": "1.0",
        **metadata,
    }
    return json.dumps({"metadata": facts, "blockchain": inner}, indent=2, sort_keys=True).encode()


def checkpoint(inner: dict[str, Any]) -> bytes:
    """A checkpoint, as the original writes it: not sorted."""
    found = {
        "block_height": len(inner["chain"]),
        "timestamp": START,
        "checksum": checksum(inner),
        "blockchain": inner,
    }
    return json.dumps(found, indent=2).encode()


def legacy(inner: dict[str, Any]) -> bytes:
    """The old format: the inner object alone."""
    return json.dumps(inner, indent=2).encode()


def passes(path: Path) -> bool:
    """What the original's own check says of a file."""
    found = json.loads(path.read_text())
    inner = found["blockchain"]
    claimed = found["metadata"]["checksum"] if "metadata" in found else found["checksum"]
    return bool(digest(json.dumps(inner, indent=2, sort_keys=True)) == claimed)
