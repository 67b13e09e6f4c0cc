"""A committed block of a chain that executes may not claim a root that its draft does not give."""

from __future__ import annotations

import pytest

import holdfast
from holdfast.errors import RootMismatch
from holdfast.merkle.api import JMT_SHA256
from holdfast.state.api import MutableState
from holdfast.store.chain import ChainSpec, CustomChain
from holdfast.types import Block, BlockInfo


class ClaimingChain(CustomChain):
    """The header is the root that the block claims."""

    def __init__(self) -> None:
        super().__init__(ChainSpec(name="claiming"))

    def execute(self, block: Block, parent: BlockInfo | None, state: MutableState) -> bytes | None:
        """The body is the value of one key."""
        if block.body:
            state[b"key"] = block.body
        return None

    def state_root(self, block: Block) -> bytes | None:
        """The header."""
        return block.header


def test_a_commit_without_changes_claims_the_root_of_its_parent() -> None:
    with holdfast.open("memory:", chain=ClaimingChain()) as store:
        with pytest.raises(RootMismatch):
            store.commit(store.draft(), hash=b"\x01" * 32, header=b"\x09" * 32)
        assert store.tip is None
        store.commit(store.draft(), hash=b"\x01" * 32, header=JMT_SHA256.null)
        draft = store.draft()
        draft.state[b"key"] = b"value"
        root = draft.state.root()
        with pytest.raises(RootMismatch):
            store.commit(draft, hash=b"\x02" * 32, header=JMT_SHA256.null)
        store.commit(draft, hash=b"\x02" * 32, header=root)
        with pytest.raises(RootMismatch):
            store.commit(store.draft(), hash=b"\x03" * 32, header=JMT_SHA256.null)
        store.commit(store.draft(), hash=b"\x03" * 32, header=root)
        assert store.state.root == root


def test_an_added_block_is_executed_and_its_claim_checked() -> None:
    with holdfast.open("memory:", chain=ClaimingChain()) as store:
        draft = store.draft()
        draft.state[b"key"] = b"value"
        root = draft.state.root()
        bad = Block(b"\x01" * 32, bytes(32), 0, bytes(32), b"value")
        with pytest.raises(RootMismatch):
            store.add(bad)
        assert store.tip is None
        store.add(Block(b"\x01" * 32, bytes(32), 0, root, b"value"))
        assert store.state[b"key"] == b"value"
        assert store.tip is not None
        assert store.tip.state_root == root
