"""What others send to an xai chain, and what stands in its files: it is refused with a typed error, or does no harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from holdfast._json import DEPTH_MAX
from holdfast.chains.xai import XAIBlockchain, archive, blockchain, storage
from holdfast.chains.xai.codec import ITEM_DEPTH_MAX, TRANSACTION_DEPTH_MAX
from holdfast.errors import CorruptionError, InvalidBlock, InvalidInputError, LimitExceeded, OutOfSpace, SavedInPart
from tests import xai_makers as make
from tests.integration.test_xai_defects import node, refused
from tests.integration.test_xai_seed import loaded, opened, saved


def nested(levels: int) -> dict[str, Any]:
    """An object with so many levels, itself included."""
    found: dict[str, Any] = {}
    for _ in range(levels - 1):
        found = {"a": found}
    return found


# -- nesting ---------------------------------------------------------------------------------------------------------


def test_the_deepest_block_is_in_backups_checkpoints_and_their_restores(tmp_path: Path) -> None:
    deepest = make.tx("COINBASE", "XAIminer", 12.0, metadata=nested(TRANSACTION_DEPTH_MAX - 1))
    inner = make.chain(1)
    inner["chain"].append(make.block(inner["chain"][0], [deepest]))
    inner["stats"] = nested(ITEM_DEPTH_MAX)
    inner["pending_transactions"] = [make.tx("XAIminer", "XAIb", 1.0, metadata=nested(ITEM_DEPTH_MAX - 1))]
    place = opened(tmp_path, interval=2)
    saved(place, inner)
    assert [row["block_height"] for row in place.list_checkpoints()] == [2]
    ok, name = place.create_backup()
    assert ok, name
    ok, data, message = place.restore_from_backup(name)
    assert ok, message
    assert data == inner
    deeper = make.tx("COINBASE", "XAIminer", 12.0, metadata=nested(TRANSACTION_DEPTH_MAX))
    refused(place, {**inner, "chain": [*inner["chain"], make.block(inner["chain"][1], [deeper])]}, InvalidBlock)
    refused(place, {**inner, "stats": nested(ITEM_DEPTH_MAX + 1)}, InvalidBlock)
    assert loaded(place) == inner
    place.close()


@pytest.mark.parametrize("levels", [TRANSACTION_DEPTH_MAX, DEPTH_MAX, 94])
def test_a_transaction_that_no_block_can_hold_is_refused(tmp_path: Path, levels: int) -> None:
    with node(tmp_path, allocations={"alice": "100"}) as chain:
        with pytest.raises(InvalidBlock, match="nested"):
            chain.add_transaction(chain.create_transaction("alice", "bob", "1", metadata=nested(levels)))
        chain.add_transaction(chain.create_transaction("alice", "bob", "1", metadata=nested(TRANSACTION_DEPTH_MAX - 1)))
        chain.mine_pending_transactions("miner")
        assert chain.get_balance("bob") == "1"


def test_a_file_that_does_not_read_back_does_not_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = opened(tmp_path)
    saved(place, make.chain(2))

    def damaged(*args: object, **more: object) -> None:
        raise CorruptionError("planted")

    monkeypatch.setattr(archive, "read_document", damaged)
    assert place.create_backup() == (False, "Failed to create backup: planted")
    assert list((tmp_path / "backups").iterdir()) == []
    place.close()


# -- pending transactions --------------------------------------------------------------------------------------------


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockchain, "_BLOCK_ROOM_BYTES", 2000)
    monkeypatch.setattr(blockchain, "_TX_BYTES_MAX", 1000)


def three(chain: XAIBlockchain) -> list[str]:
    """Three of them are pending that need 2700 bytes; their ids."""
    found = []
    for number in range(3):
        made = chain.create_transaction("alice", "bob", "1", nonce=number, metadata={"fill": "x" * 500})
        chain.add_transaction(made)
        found.append(made["txid"])
    return found


def ids(documents: list[dict[str, Any]]) -> list[str]:
    return [item["txid"] for item in documents]


def test_a_block_takes_as_many_transactions_as_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    with node(tmp_path, allocations={"alice": "100"}) as chain:
        found = three(chain)
        with pytest.raises(LimitExceeded, match="too long"):
            chain.add_transaction(chain.create_transaction("alice", "bob", "1", metadata={"fill": "x" * 1000}))
        assert ids(chain.mine_pending_transactions("miner")["transactions"])[1:] == found[:2]
        assert ids(chain.pending_transactions) == found[2:]
        assert chain.reload_blockchain()[0]
        assert ids(chain.pending_transactions) == found[2:]
        assert ids(chain.mine_pending_transactions("miner")["transactions"])[1:] == found[2:]
        assert (chain.pending_transactions, chain.dropped) == ([], [])
        assert (chain.get_balance("bob"), chain.get_balance("miner")) == ("3", "24")


def test_a_block_takes_as_many_transactions_as_the_index_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockchain, "_BLOCK_TRANSACTIONS_MAX", 2)
    with node(tmp_path, allocations={"alice": "100"}) as chain:
        found = three(chain)
        assert ids(chain.mine_pending_transactions("miner")["transactions"])[1:] == found[:2]
        assert ids(chain.pending_transactions) == found[2:]


@pytest.mark.parametrize("bad", [1, "x", None, [[1]], {}, {"txid": 1}])
def test_what_is_no_transaction_is_dropped_when_the_chain_is_loaded(tmp_path: Path, bad: object) -> None:
    good = make.tx("XAIminer", "XAIb", 1.0)
    place = opened(tmp_path)
    saved(place, {**make.chain(2), "pending_transactions": [bad, good]})
    place.close()
    with node(tmp_path) as chain:
        assert ids(chain.pending_transactions) == [good["txid"]]
        assert len(chain.dropped) == 1
        chain.mine_pending_transactions("miner")
        assert chain.get_balance("XAIb") == "1"


def test_what_a_reorganisation_brings_back_has_its_bounds_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with node(tmp_path, allocations={"alice": "100"}) as chain:
        genesis = chain.get_latest_block()
        mined = three(chain)
        chain.mine_pending_transactions("miner")
        pending = chain.create_transaction("alice", "carol", "1")
        chain.add_transaction(pending)
        monkeypatch.setattr(blockchain, "PENDING_MAX", 3)
        for number in range(2):
            chain.add_transaction(chain.create_transaction("alice", f"to{number}", "1"))
        with pytest.raises(LimitExceeded, match="too many"):
            chain.add_transaction(chain.create_transaction("alice", "bob", "1"))
        for made in make.grow(genesis, 2, miner="rival"):
            chain.add_block(made)
        assert ids(chain.pending_transactions) == mined
        assert chain.dropped[0][0] == pending["txid"]
        assert chain.reload_blockchain()[0]
        assert ids(chain.pending_transactions) == mined


# -- a save that fails -----------------------------------------------------------------------------------------------


def test_a_block_that_is_stored_is_not_called_unsaved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **more: object) -> None:
        raise OutOfSpace("the disk is nearly full")

    with node(tmp_path, allocations={"alice": "100"}) as chain:
        found = three(chain)
        with monkeypatch.context() as patch:
            patch.setattr(storage, "save_rest", full)
            with pytest.raises(SavedInPart, match="nearly full") as told:
                chain.mine_pending_transactions("miner")
            assert told.value.context["hash"] == chain.tip.hash
            assert (len(chain.chain), chain.pending_transactions) == (2, [])
            assert chain.get_balance("bob") == "3"
            with pytest.raises(SavedInPart):
                chain.add_block(make.grow(chain.get_latest_block(), 1)[0])
            *side, heavier = make.grow(chain.chain[0], 3, miner="rival")
            for made in side:
                chain.add_block(made)
            with pytest.raises(SavedInPart):
                chain.add_block(heavier)
            assert ids(chain.pending_transactions) == found
        assert chain.save_blockchain()[0]
        assert chain.reload_blockchain()[0]
        assert ids(chain.pending_transactions) == found


# -- fields ----------------------------------------------------------------------------------------------------------


def test_a_time_beyond_all_floats_is_refused(tmp_path: Path) -> None:
    place = opened(tmp_path)
    inner = make.chain(1)
    saved(place, inner)
    far = 10**400
    for bad in (
        make.block(inner["chain"][0], [make.tx("COINBASE", "a", 1.0)], at=far),
        make.block(inner["chain"][0], [make.tx("COINBASE", "a", 1.0, at=far)]),
    ):
        refused(place, {**inner, "chain": [*inner["chain"], bad]}, InvalidBlock)
    place.close()
    with node(tmp_path) as chain, pytest.raises(InvalidBlock, match="timestamp"):
        chain.add_transaction(make.tx("XAIminer", "bob", 1.0, at=far))


@pytest.mark.parametrize("address", ["", "\ud800", "alice\x00", "x" * 129, None, 1])
def test_what_is_no_address_is_refused(tmp_path: Path, address: Any) -> None:
    with node(tmp_path, allocations={"alice": "100"}) as chain:
        for ask in (chain.get_balance, chain.get_utxos, chain.get_transaction_history):
            with pytest.raises(InvalidInputError, match="address"):
                ask(address)


@pytest.mark.parametrize("value", [1, None, "x", [[1]]])
def test_what_is_no_object_is_refused(tmp_path: Path, value: Any) -> None:
    with node(tmp_path) as chain:
        for add in (chain.add_transaction, chain.add_block):
            with pytest.raises(InvalidBlock, match="not an object"):
                add(value)
