"""Stores with a state that changes block by block, and what it was after each: the reference of the tests."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

import holdfast

HEIGHTS = 24
BIG = b"large " * 20_000
"""Above what the tree holds itself."""
TEXT_KEY = rb"a\b c"
KEYS = [b"acc/%d" % number for number in range(8)] + [b"bal/%d" % number for number in range(8)]
KEYS += [TEXT_KEY, "acc/\u00e4".encode(), b"\x00\x01\xff", b"0x12", b"esc\x1b[31m", b"\xff" * 400]
VALUES = [b"one", b"zwei \xc3\xa4", b"0xff", b"\x00", b"back\\slash", b"\x1b[2J", bytes(range(256)), b"v" * 300]


@dataclass(frozen=True, slots=True)
class StateStore:
    """A store at ``path`` whose state after height h is ``states[h]``; ``orphan`` is the hash of a lost block."""

    path: Path
    states: list[dict[bytes, bytes]]
    orphan: bytes


def block_hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def make(path: Path, engine: str) -> StateStore:
    """Some keys change in each block, some go; a block of height 10 lost against another one."""
    chance = random.Random(7)
    states: list[dict[bytes, bytes]] = []
    with holdfast.open(f"{engine}:{path}") as store:
        for height in range(HEIGHTS):
            if height == 11:
                rival = store.draft(block_hash("block 9"))
                rival.state[b"lost"] = b"never canonical"
                store.commit(rival, hash=block_hash("rival"), header=b"rival")
            draft = store.draft()
            now = dict(states[-1]) if states else {}
            if height == 9:
                now[b"acc/big"] = BIG
            for key in chance.sample(KEYS, 5):
                if key in now and chance.random() < 0.3:
                    del now[key]
                else:
                    now[key] = chance.choice(VALUES)
            for key in set(now) | set(states[-1] if states else {}):
                if key not in now:
                    del draft.state[key]
                elif not states or states[-1].get(key) != now[key]:
                    draft.state[key] = now[key]
            store.commit(draft, hash=block_hash(f"block {height}"), header=b"header", time=1_000 + height)
            states.append(now)
    return StateStore(path, states, block_hash("rival"))
