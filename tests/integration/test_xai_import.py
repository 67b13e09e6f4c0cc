"""A long ``blockchain.json`` is taken in without what only old states need, and the store is the same in the end."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast._fs import RealFileSystem
from holdfast.chains.xai import BlockchainStorage, XaiSettings, importing
from holdfast.chains.xai import place as place_module
from holdfast.chains.xai import storage as storage_module
from holdfast.chains.xai.document import ChainDocument, read_document
from holdfast.chains.xai.importing import chain_of_document, import_document
from holdfast.chains.xai.place import XaiPlace
from holdfast.config import Settings
from holdfast.errors import InvalidBlock, PrunedError
from holdfast.recovery.verify import verify_store
from holdfast.store import Store
from tests import xai_makers as make

DEPTH, PROVEN, READ = 4, 7, 9
BLOCKS = 60


def taken_in(path: Path, monkeypatch: pytest.MonkeyPatch, blocks: list[Any], **settings: object) -> BlockchainStorage:
    """The file with these blocks is the store; old states count as deep as the settings of this test say."""
    path.mkdir()
    fields = {"max_reorg_depth": DEPTH, "proof_window_blocks": PROVEN, "history_blocks": READ} | settings
    monkeypatch.setattr(place_module, "_DEEP_FROM", 10)
    inner = {**make.chain(0), "chain": blocks, "stats": {"blocks": len(blocks)}}
    (path / "blockchain.json").write_bytes(make.package(inner))
    storage = BlockchainStorage(path, settings=XaiSettings(path, checkpoint_interval=10**9), clock=lambda: 1.0)
    storage._place._settings = Settings(flush_interval_seconds=3600.0, **fields)  # type: ignore[arg-type]
    return storage


def everything(store: Store, first: int) -> object:
    """What readers can see: blocks, states from the height ``first`` on, the index, the figures."""
    infos = list(store.blocks.canonical())
    return (
        [(info.hash, info.state_root, info.total_work, store.blocks.block(info)) for info in infos],
        [dict(store.state.at(height).scan()) for height in range(first, len(infos))],
        list(store.index("xai-address").items()),
        store.blocks.statistics(),
        dict(store.documents("xai").scan()),
    )


def test_a_long_chain_is_the_same_without_what_only_old_states_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = make.grow(None, BLOCKS)
    long = taken_in(tmp_path / "long", monkeypatch, blocks)
    whole = taken_in(tmp_path / "whole", monkeypatch, blocks, history_every=1)  # every height is kept: in one go
    assert (long._place.deep(BLOCKS), whole._place.deep(BLOCKS)) == (BLOCKS - DEPTH - READ, 0)
    stores = [storage.open() for storage in (long, whole)]
    for store in stores:
        assert store is not None
    mine, other = stores
    assert mine is not None
    assert other is not None
    first = BLOCKS - 1 - DEPTH - READ + 1  # the lowest height that the settings promise
    assert everything(mine, first) == everything(other, first)
    with pytest.raises(PrunedError):
        mine.state.at(first - 3)[b"totals"]
    for height in range(BLOCKS - 1 - DEPTH - PROVEN, BLOCKS):
        info = mine.blocks.at(height)
        assert info is not None
        value = other.state.at(height)[b"totals"]
        mine.state.prove(b"totals", height=height).verify(info.state_root or b"", b"totals", value)
    for store in (mine, other):  # as deep as it may go
        info = store.blocks.at(BLOCKS - DEPTH)
        assert info is not None
        store.orphan(info.hash, reason="found to be wrong")
    assert everything(mine, first) == everything(other, first)
    long.close()
    whole.close()
    for level in ("views", "state", "full"):
        assert verify_store(tmp_path / "long" / "store", level=level).ok
    again = long.open()
    assert again is not None
    assert everything(again, first)[0][-1][0] == bytes.fromhex(blocks[BLOCKS - DEPTH - 1]["hash"])  # type: ignore[index]
    long.close()


@pytest.mark.parametrize("number", [3, 58])
def test_a_bad_block_of_a_long_chain_ends_the_import(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = make.grow(None, BLOCKS)
    blocks[number] = make.mined({**blocks[number], "merkle_root": "0" * 64})
    for above in range(number + 1, BLOCKS):
        blocks[above] = make.mined({**blocks[above], "previous_hash": blocks[above - 1]["hash"]})
    storage = taken_in(tmp_path / "bad", monkeypatch, blocks)
    with pytest.raises(InvalidBlock) as caught:
        storage.open()
    assert caught.value.context["block"] == number
    assert not (tmp_path / "bad" / "store").exists()
    storage.close()


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, 256 + 1_000),
        ({"proof_window_blocks": 2_000}, 256 + 2_000),
        ({"history": "off"}, 256 + 256),
        ({"history_blocks": 0}, None),
        ({"history_every": 10}, None),
    ],
)
def test_how_many_blocks_are_deep_follows_from_the_settings(
    settings: dict[str, Any], kept: int | None, tmp_path: Path
) -> None:
    place = XaiPlace(RealFileSystem(), tmp_path, Settings(**settings))
    assert place.deep(50_000) == (0 if kept is None else 50_000 - kept)
    assert place.deep(4_999) == 0


@pytest.mark.parametrize("kind", ["parsed", "judged"])
def test_an_import_keeps_the_blocks_before_a_bad_one(kind: str, tmp_path: Path) -> None:
    blocks = make.grow(None, 30)
    bad = {**blocks[20], "nonce": -1} if kind == "parsed" else make.mined({**blocks[20], "merkle_root": "0" * 64})
    document = read_document(make.legacy({**make.chain(0), "chain": [*blocks[:20], bad, *blocks[21:]]}))
    chain = chain_of_document(document)
    with holdfast.open(tmp_path / "store", chain=chain) as store:
        with pytest.raises(InvalidBlock) as caught:
            import_document(store, document)
        assert caught.value.context["block"] == 20
        assert store.tip is not None
        assert store.tip.hash.hex() == blocks[19]["hash"]
        whole = read_document(make.legacy({**make.chain(0), "chain": blocks}))
        told: list[tuple[int, int]] = []
        assert import_document(store, whole, progress=lambda *at: told.append(at)) == 10
        assert told == [(30, 30)]
        assert store.tip.hash.hex() == blocks[29]["hash"]


def test_an_import_that_was_killed_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In either part of it, and between them: a copy of the directory of that moment is taken in whole."""
    blocks = make.grow(None, BLOCKS)
    path = tmp_path / "live"
    storage = taken_in(path, monkeypatch, blocks)
    copies: list[Path] = []

    def copied(*_: object) -> None:
        copies.append(tmp_path / f"copy-{len(copies)}")
        shutil.copytree(path, copies[-1])

    def watched(store: Store, document: ChainDocument, *, first: int = 0, end: int | None = None) -> int:
        copied()
        return import_document(store, document, first=first, end=end, progress=copied)

    monkeypatch.setattr(importing, "_BATCH", 20)
    monkeypatch.setattr(storage_module, "import_document", watched)
    assert storage.open() is not None
    storage.close()
    monkeypatch.setattr(storage_module, "import_document", import_document)
    assert len(copies) == 2 + 3 + 1  # before each part, and after each batch
    for copy in copies:
        (left,) = copy.glob("incoming-*")
        (left / "left-over").touch()
        again = BlockchainStorage(copy, settings=XaiSettings(copy, checkpoint_interval=10**9))
        ok, data, message = again.load_from_disk()
        assert ok, message
        assert data is not None
        assert data["chain"] == blocks
        assert not list(copy.rglob("left-over"))
        again.close()
