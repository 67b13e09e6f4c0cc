"""What the tests of the versioned state share: its definition over plain dictionaries, makers of blocks, a store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import holdfast
from holdfast import Store
from holdfast.merkle.api import SCHEMES, Scheme
from holdfast.store.backend import WriterBackend
from holdfast.store.chain import Chain, ChainSpec, CustomChain, SchemeName
from holdfast.store.draft import Draft
from holdfast.types import BlockInfo
from tests.unit.merkle_support import leaves_of, node
from tests.unit.store_support import hash_of, quick

JMT = SCHEMES["jmt-sha256"]
Values = dict[bytes, bytes]
Changes = Mapping[bytes, bytes | None]


def in_tree(value: bytes) -> bytes:
    """What stands in the tree for a value, by the text of docs/FORMAT.md, section 8."""
    if len(value) <= 65536:
        return value
    return b"HOLDFAST-BLOB" + len(value).to_bytes(8, "big") + hashlib.sha256(value).digest()


def root_of(values: Mapping[bytes, bytes], scheme: Scheme = JMT) -> bytes:
    """The root of a state, by the definition of the tree."""
    return node(scheme, leaves_of(scheme, {key: in_tree(value) for key, value in values.items()}))


def after(values: Mapping[bytes, bytes], changes: Changes) -> Values:
    """A state after some changes."""
    changed = dict(values)
    for key, value in changes.items():
        if value is None:
            changed.pop(key, None)
        else:
            changed[key] = value
    return changed


def selected(
    values: Mapping[bytes, bytes], prefix: bytes, start: bytes | None, stop: bytes | None, *, reverse: bool
) -> list[tuple[bytes, bytes]]:
    """What a scan must give."""
    return sorted(
        (
            (key, value)
            for key, value in values.items()
            if key.startswith(prefix) and (start is None or key >= start) and (stop is None or key < stop)
        ),
        reverse=reverse,
    )


def large(mark: object, size: int) -> bytes:
    """A value of ``size`` bytes that another mark does not share."""
    seed = hashlib.sha256(repr(mark).encode()).digest()
    return (seed * (size // 32 + 1))[:size]


def open_state_store(
    url: str | Path, *, scheme: SchemeName = "jmt-sha256", chain: Chain | None = None, **fields: Any
) -> Store:
    """A store whose tree has this scheme; nothing happens in its background."""
    chain = chain if chain is not None else CustomChain(ChainSpec(name="custom", scheme=scheme))
    return holdfast.open(url, chain=chain, settings=quick(**fields))


def commit(
    store: Store, name: object, changes: Changes | None, parent: BlockInfo | bytes | None = None, *, work: int = 1
) -> BlockInfo:
    """A block with these changes on ``parent``, or on the tip; ``None``: it does not touch the state."""
    draft = store.draft(parent.hash if isinstance(parent, BlockInfo) else parent)
    if changes is not None:
        draft.state.update(changes)
    return commit_draft(store, draft, name, work=work)


def commit_draft(store: Store, draft: Draft, name: object, *, work: int = 1) -> BlockInfo:
    """The draft is a block."""
    above = draft.parent.hash if draft.parent is not None else b""
    return store.commit(
        draft, hash=hash_of("state", above, name), header=b"header", work=work, time=draft.height, producer=b"maker"
    )


def grown(store: Store, steps: Iterable[Changes]) -> list[tuple[BlockInfo, Values]]:
    """One block after another on the tip, each with the state after it."""
    found: list[tuple[BlockInfo, Values]] = []
    values: Values = dict(store.state.scan())
    for number, changes in enumerate(steps):
        values = after(values, changes)
        found.append((commit(store, ("grown", number, store.tip and store.tip.height), changes), values))
    return found


def assert_tip(store: Store, values: Mapping[bytes, bytes], scheme: Scheme = JMT) -> None:
    """The state at the tip is ``values``, with their root, and the tree says so too."""
    assert dict(store.state.scan()) == values
    assert store.state.root == root_of(values, scheme)
    backend = writer_backend(store)
    assert backend.writer.tree.root == root_of(values, scheme)
    assert backend.writer.tree.count == len(values)


def writer_backend(store: Store) -> WriterBackend:
    """What stands under a store that writes."""
    backend = store._backend
    assert isinstance(backend, WriterBackend)
    return backend


def die(store: Store) -> None:
    """The process of the store is gone, as far as its files show: no flush, no seal, no image of the tree."""
    backend = writer_backend(store)
    store.sync()
    backend.indexes.stop()
    backend.opened.abandon()
    store._closed = "the process is gone"
