"""Chains over an encrypted store: the key is given where the chain opens its store, and nothing lies in plain text."""

from __future__ import annotations

from pathlib import Path

import pytest

import holdfast
from holdfast._fs import RealFileSystem
from holdfast.chains.evm.database import HoldfastDB
from holdfast.chains.pow.blockchain import Blockchain, ChainConfig
from holdfast.chains.xai import BlockchainStorage, XaiSettings
from holdfast.chains.xai.archive import JsonArchive
from holdfast.errors import InvalidInputError, KeyRejected, KeyRequired
from tests import xai_makers as make
from tests.integration.pow_tools import EASY, Clock, grow
from tests.unit.store_support import quick
from tests.unit.test_store_encryption import KEY, files_with

EASY_CHAIN = ChainConfig(parameters=EASY)


def test_a_proof_of_work_chain(tmp_path: Path) -> None:
    path = tmp_path / "chain"
    with Blockchain.load_or_create(f"sqlite:{path}", EASY_CHAIN, key=KEY, settings=quick(), clock=Clock()) as chain:
        grow(chain, chain.tip, 1, peer="PLAINTEXT-MARKER")
    with pytest.raises(KeyRequired):
        Blockchain.load_or_create(path, EASY_CHAIN)
    with pytest.raises(KeyRejected):
        Blockchain.load_or_create(path, EASY_CHAIN, key=bytes(32))
    with holdfast.open(path, key=KEY, settings=quick()) as store:
        with pytest.raises(InvalidInputError, match="takes no key"):
            Blockchain.load_or_create(store, EASY_CHAIN, key=KEY)
        assert Blockchain.load_or_create(store, EASY_CHAIN).height == 1
    found = files_with(path, b"PLAINTEXT-MARKER")
    assert [name for name in found if not name.startswith("views/")] == [], "only keys of rows name producers"


def test_a_database_of_py_evm(tmp_path: Path) -> None:
    path = tmp_path / "database"
    database = HoldfastDB(path, key=KEY, settings=quick())
    database[b"key"] = b"PLAINTEXT-MARKER"
    database.close()
    with pytest.raises(KeyRequired):
        HoldfastDB(path)
    again = HoldfastDB(path, key=KEY)
    assert again[b"key"] == b"PLAINTEXT-MARKER"
    with pytest.raises(InvalidInputError, match="not in both"):
        HoldfastDB(store=again.store, key=KEY)
    again.close()
    assert files_with(path, b"PLAINTEXT-MARKER") == []


def test_a_chain_of_the_xai_format(tmp_path: Path) -> None:
    """Its backups are plain files, so it takes a key only where they are kept elsewhere."""
    path = tmp_path / "chain"
    settings = XaiSettings(path, checkpoint_interval=1000, max_backups=10)
    with pytest.raises(InvalidInputError, match="would be plain text"):
        BlockchainStorage(path, settings=settings, engine="sqlite", key=KEY)
    assert not path.exists()
    elsewhere = JsonArchive(RealFileSystem(), tmp_path / "vault")
    inner = make.chain(6)
    inner["pending_transactions"] = [make.tx("XAIa", "XAIb", 1.5, metadata={"text": "PLAINTEXT-MARKER"})]
    place = BlockchainStorage(path, settings=settings, engine="sqlite", key=KEY, archive=elsewhere)
    ok, message = place.save_to_disk(inner)
    assert ok, message
    place.close()
    assert files_with(path, b"PLAINTEXT-MARKER") == []
    other = BlockchainStorage(path, settings=settings, engine="sqlite")
    assert other.load_from_disk()[0] is False
    assert isinstance(other.failure, KeyRequired)
    other.close()
    again = BlockchainStorage(path, settings=settings, engine="sqlite", key=KEY, archive=elsewhere)
    ok, data, message = again.load_from_disk()
    assert ok, message
    assert data == inner
    again.close()
