"""A forced block that is canonical stays, also against the operator's own hand."""

from __future__ import annotations

import hashlib

import pytest

import holdfast
from holdfast.errors import FinalityError


def name(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def test_neither_reorg_nor_orphan_takes_a_forced_block_out() -> None:
    with holdfast.open("memory:", forced_blocks={3: name("a3")}) as store:
        for number in range(6):
            store.commit(store.draft(), hash=name(f"a{number}"))
        for target in (name("a2"), name("a0")):
            with pytest.raises(FinalityError, match="forced block cannot leave"):
                store.reorg(target)
        for block in (name("a3"), name("a2")):
            with pytest.raises(FinalityError, match="forced block cannot leave"):
                store.orphan(block, reason="no")
        assert store.tip is not None
        assert store.tip.hash == name("a5")
        store.orphan(name("a5"), reason="yes")
        assert store.reorg(name("a3")) is not None
        assert store.tip.hash == name("a3")
