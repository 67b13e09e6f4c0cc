"""What went wrong in the original: a test for each defect that was reproduced, read, or listed by its own authors."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import stat
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from holdfast._fs import RealFileSystem
from holdfast.backup import create_backup, open_repository, originals_of
from holdfast.blocks.reader import BlockReader
from holdfast.chains.xai import (
    BlockchainStorage,
    BlockchainStorageConfig,
    XAIBlockchain,
    XaiChain,
    XaiParameters,
    XaiSettings,
    codec,
    importing,
    storage,
)
from holdfast.chains.xai.codec import XaiBlock
from holdfast.chains.xai.document import rest_of
from holdfast.chains.xai.place import XaiPlace
from holdfast.config import Settings
from holdfast.errors import (
    ConflictError,
    CorruptionError,
    ForeignStore,
    HoldfastError,
    InvalidBlock,
    InvalidInputError,
    MiningError,
    MissingFile,
    OutOfSpace,
    PrunedError,
    Recovery,
    StoreLocked,
)
from holdfast.events import Event, on_event
from holdfast.store.opening import read_identity
from holdfast.store.retention import RetentionPolicy
from holdfast.types import BlockInfo
from tests import xai_makers as make
from tests.integration.test_xai_seed import StoppedAt, StoppingFileSystem, loaded, opened, saved
from tests.unit.backup_support import small_segments

__all__ = ["small_segments"]

TXID = "2e7b53252f5e593587da84dd93d0d63769a533c542b1f980479a25c1ec63e2d6"
HASH = "0d97b3ac52aa549aa628255de260813f599bd2148221740632910bfb08a11392"


def node(path: Path, **more: Any) -> XAIBlockchain:
    settings = XaiSettings(path, auto_save_interval=more.pop("interval", 1))
    place = BlockchainStorage(path, settings=settings, engine="sqlite", recover=more.pop("recover", "lossless"))
    return XAIBlockchain(storage=place, difficulty=1, clock=lambda: make.START, **more)


def refused(place: BlockchainStorage, inner: dict[str, Any], kind: type[HoldfastError], **more: Any) -> None:
    ok, message = place.save_to_disk(inner, **more)
    assert not ok, message
    assert isinstance(place.failure, kind), place.failure


# -- reproduced (1.3) ------------------------------------------------------------------------------------------------


def test_1_backups_made_in_one_second_are_all_kept(tmp_path: Path) -> None:
    place = opened(tmp_path, backups=10, clock=lambda: make.START)
    inner = make.chain(1)
    saved(place, inner)
    names = set()
    for _ in range(13):
        ok, name = place.create_backup()
        assert ok, name
        names.add(name)
    assert len(names) == 13
    assert len(place.list_backups()) == 10
    assert place.cleanup_old_backups() == []
    place.close()


def test_1_the_newest_backup_is_the_one_that_was_made_last(tmp_path: Path) -> None:
    now = [make.START]
    place = opened(tmp_path, backups=2, clock=lambda: now[0])
    inner = make.chain(4)
    names = []
    for count in (2, 3, 4):
        now[0] += 60
        saved(place, {**inner, "chain": inner["chain"][:count]})
        names.append(place.archive.create_backup(inner["chain"][:count], rest_of(inner)))
    os.utime(tmp_path / "backups" / names[0])
    assert [row["filename"] for row in place.list_backups()] == names[::-1]
    assert place.cleanup_old_backups() == [names[0]]
    place.close()
    (tmp_path / "store" / "holdfast.toml").write_bytes(b"damaged")
    os.utime(tmp_path / "backups" / names[1])
    asked = opened(tmp_path, recover="backup")
    assert len(loaded(asked)["chain"]) == 4
    asked.close()


def test_1_what_is_no_file_is_no_backup(tmp_path: Path) -> None:
    place = opened(tmp_path)
    inner = make.chain(2)
    saved(place, inner)
    ok, name = place.create_backup()
    assert ok, name
    (tmp_path / "backups" / "blockchain_backup_directory.json").mkdir()
    os.mkfifo(tmp_path / "backups" / "blockchain_backup_pipe.json")
    assert [row["filename"] for row in place.list_backups()] == [name]
    for other in ("directory", "pipe"):
        assert place.restore_from_backup(f"blockchain_backup_{other}.json")[0] is False
        assert isinstance(place.failure, MissingFile)
    place.close()
    shutil.rmtree(tmp_path / "store")
    os.mkfifo(tmp_path / "blockchain.json")
    assert place.load_from_disk()[0] is False
    assert isinstance(place.failure, InvalidInputError)
    place.close()


def test_2_recovery_does_not_destroy_the_backup(tmp_path: Path) -> None:
    place = opened(tmp_path)
    inner = make.chain(3)
    saved(place, inner)
    assert place.create_backup()[0]
    place.close()
    (row,) = place.list_backups()
    backup = tmp_path / "backups" / row["filename"]
    good = backup.read_bytes()
    identity = tmp_path / "store" / "holdfast.toml"
    identity.write_bytes(b"damaged")
    careful = opened(tmp_path)
    assert not careful.load_from_disk()[0]
    assert careful.failure is not None
    careful.close()
    asked = opened(tmp_path, recover="backup")
    assert loaded(asked) == inner
    inner["chain"] += make.grow(inner["chain"][-1], 1)
    saved(asked, inner, create_backup=True)
    asked.close()
    assert backup.read_bytes() == good
    assert (tmp_path / "quarantine" / "store-1" / "holdfast.toml").read_bytes() == b"damaged"


def test_3_a_missing_chain_beside_backups_is_no_new_node(tmp_path: Path) -> None:
    place = opened(tmp_path)
    saved(place, make.chain(3))
    place.create_backup()
    place.close()
    shutil.rmtree(tmp_path / "store")
    ok, _, message = place.load_from_disk()
    assert not ok
    assert "backups" in message
    assert isinstance(place.failure, MissingFile)
    refused(place, make.chain(3), MissingFile)
    place.close()
    with pytest.raises(MissingFile):
        node(tmp_path)
    assert not (tmp_path / "store").exists()
    ok, data, _ = place.restore_from_backup(place.list_backups()[0]["filename"])
    assert ok
    assert data == make.chain(3)
    place.close()


def test_4_keys_that_are_no_text_are_refused(tmp_path: Path) -> None:
    place = opened(tmp_path)
    inner = make.chain(2)
    saved(place, inner)
    worse = copy.deepcopy(inner)
    worse["stats"] = {2: "a", 10: "b"}
    refused(place, worse, InvalidBlock)
    worse["stats"] = {}
    worse["chain"] += [make.block(worse["chain"][-1], [make.tx("COINBASE", "a", 1.0, metadata={2: 1, 10: 2})])]
    refused(place, worse, InvalidBlock)
    assert loaded(place) == inner
    place.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_5_numbers_that_are_none_are_refused(tmp_path: Path, value: float) -> None:
    place = opened(tmp_path)
    inner = make.chain(2)
    saved(place, inner)
    for name in ("stats", "difficulty", "pending_transactions"):
        refused(place, {**inner, name: [value]}, InvalidBlock)
    bad = make.block(inner["chain"][-1], [make.tx("COINBASE", "a", value)])
    refused(place, {**inner, "chain": [*inner["chain"], bad]}, InvalidBlock)
    assert loaded(place) == inner
    place.close()


@pytest.mark.parametrize(
    "name",
    ["../x.json", "..", "", "/etc/passwd", "blockchain_backup_/../../x.json", "blockchain_backup_.json\n", "x.json"],
)
def test_6_a_restore_does_not_leave_its_directory(tmp_path: Path, name: str) -> None:
    data = tmp_path / "data"
    (tmp_path / "x.json").write_bytes(make.package(make.chain(2)))
    place = opened(data)
    assert place.restore_from_backup(name)[0] is False
    assert isinstance(place.failure, InvalidInputError)
    assert not (data / "store").exists()
    place.close()


def test_6_a_restore_does_not_believe_a_wrong_checksum(tmp_path: Path) -> None:
    place = opened(tmp_path)
    inner = make.chain(3)
    saved(place, inner)
    ok, name = place.create_backup()
    assert ok
    backup = tmp_path / "backups" / name
    backup.write_bytes(backup.read_bytes().replace(b'"risk_level": "clean"', b'"risk_level": "dirty"', 1))
    assert place.restore_from_backup(name)[0] is False
    assert isinstance(place.failure, CorruptionError)
    assert loaded(place) == inner
    place.close()


def test_7_an_empty_chain_makes_no_checkpoint(tmp_path: Path) -> None:
    place = opened(tmp_path, interval=1)
    refused(place, make.chain(0), InvalidInputError)
    assert place.list_checkpoints() == []
    assert not (tmp_path / "store").exists()
    saved(place, make.chain(2))
    refused(place, make.chain(0), InvalidInputError)
    assert len(loaded(place)["chain"]) == 2
    place.close()


# -- read (1.4) ------------------------------------------------------------------------------------------------------


def test_a_reload_or_a_restore_does_not_double_balances(tmp_path: Path) -> None:
    with node(tmp_path, allocations={"alice": "100"}) as chain:
        chain.mine_pending_transactions("bob")
        assert chain.save_blockchain(create_backup=True)[0]
        (row,) = chain.list_backups()
        for step in (
            chain.reload_blockchain,
            lambda: chain.restore_from_backup(row["filename"]),
            chain.reload_blockchain,
        ):
            ok, message = step()
            assert ok, message
            assert (chain.get_balance("alice"), chain.get_balance("bob")) == ("100", "12")
            assert chain.get_total_circulating_supply() == "112"
            assert chain.verify_blockchain_integrity()[0]


def test_every_field_that_is_in_a_hash_comes_back(tmp_path: Path) -> None:
    odd = make.tx(
        "COINBASE", "a", 1.0, metadata={"b": [1, {"c": None}]}, risk_score=0.75, flag_reasons=["x"], more=1e-7
    )
    inner = make.chain(1)
    inner["chain"].append(make.block(inner["chain"][0], [odd]))
    place = opened(tmp_path)
    saved(place, inner)
    back = loaded(place)
    assert back == inner
    assert [make.hash_of(block) for block in back["chain"]] == [block["hash"] for block in inner["chain"]]
    place.close()


def test_stored_hashes_are_computed_again_on_a_restore(tmp_path: Path) -> None:
    place = opened(tmp_path)
    inner = make.chain(3)
    saved(place, inner)
    forged = copy.deepcopy(inner)
    forged["chain"][1]["transactions"][0]["amount"] = 1000.0
    (tmp_path / "backups").mkdir()
    (tmp_path / "backups" / "blockchain_backup_1.json").write_bytes(make.legacy(forged))
    ok, _, message = place.restore_from_backup("blockchain_backup_1.json")
    assert not ok
    assert "hash" in message
    assert loaded(place) == inner
    place.close()


def test_damage_is_never_overwritten_by_a_new_genesis(tmp_path: Path) -> None:
    for number, data in enumerate((b"{", b"", make.package(make.chain(2), checksum="0" * 64))):
        here = tmp_path / str(number)
        here.mkdir()
        (here / "blockchain.json").write_bytes(data)
        with pytest.raises(CorruptionError):
            node(here)
        assert (here / "blockchain.json").read_bytes() == data
        assert not (here / "store").exists()
        place = opened(here)
        assert place.load_from_disk()[0] is False
        assert place.failure is not None
        assert not place.save_to_disk(make.chain(1))[0]
        place.close()


def test_the_originals_file_is_taken_in_once(tmp_path: Path) -> None:
    inner = make.chain(4)
    (tmp_path / "blockchain.json").write_bytes(make.package(inner))
    with node(tmp_path) as chain:
        assert list(chain.chain) == inner["chain"]
        mined = chain.mine_pending_transactions("bob")
    with node(tmp_path) as chain:
        assert chain.get_latest_block() == mined
    assert (tmp_path / "blockchain.json").read_bytes() == make.package(inner)


@pytest.mark.parametrize("copies", [True, False])
def test_the_originals_file_does_not_take_the_place_of_a_store_that_is_gone(tmp_path: Path, copies: bool) -> None:
    inner = make.chain(5)
    old = {**inner, "chain": inner["chain"][:3]}
    (tmp_path / "blockchain.json").write_bytes(make.package(old))
    place = opened(tmp_path)
    saved(place, inner)
    if copies:
        assert place.create_backup()[0]
    place.close()
    shutil.rmtree(tmp_path / "store")
    assert place.load_from_disk()[0] is False
    assert isinstance(place.failure, MissingFile)
    refused(place, inner, MissingFile)
    assert not (tmp_path / "store").exists()
    place.close()
    if copies:
        asked = opened(tmp_path, recover="backup")
        assert loaded(asked) == inner
        asked.close()
    else:
        (tmp_path / "blockchain.json.taken").unlink()  # as the remedy says
        assert loaded(place) == old
    place.close()


def test_two_processes_do_not_share_a_directory(tmp_path: Path) -> None:
    place = opened(tmp_path)
    saved(place, make.chain(1))
    other = opened(tmp_path)
    assert other.load_from_disk()[0] is False
    assert isinstance(other.failure, StoreLocked)
    refused(other, make.chain(2), StoreLocked)
    assert other.restore_from_backup("blockchain_backup_1.json")[0] is False
    assert isinstance(other.failure, StoreLocked)
    place.close()
    assert loaded(other)["chain"] == make.chain(1)["chain"]
    other.close()


@pytest.mark.parametrize("step", range(1, 12))
def test_a_restore_that_was_interrupted_is_finished(tmp_path: Path, step: int) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "old").touch()
    (tmp_path / "incoming-1").mkdir()
    (tmp_path / "incoming-1" / "new").touch()
    ended = False
    try:
        XaiPlace(StoppingFileSystem(step), tmp_path, Settings()).take(tmp_path / "incoming-1")
        ended = True
    except StoppedAt:
        pass
    decided = (tmp_path / "restore.json").exists()
    place = XaiPlace(RealFileSystem(), tmp_path, Settings())
    place.finish()
    names = {path.name for path in (tmp_path / "store").iterdir()}
    if names == {"new"}:
        assert (tmp_path / "quarantine" / "store-1" / "old").exists()
    else:
        assert names == {"old"}
        assert not ended
        assert not decided
    assert not (tmp_path / "restore.json").exists()


class FailingFileSystem(StoppingFileSystem):
    """The n-th operation that changes anything is refused, once."""

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise OutOfSpace("cannot write")


@pytest.mark.parametrize("step", range(1, 16))
def test_after_a_restore_that_failed_nothing_that_is_saved_is_lost(tmp_path: Path, step: int) -> None:
    for name in ("store", "incoming-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    fs = FailingFileSystem(0)
    place = XaiPlace(fs, tmp_path, Settings())
    place.lock()
    fs.left, failed = step, False
    try:
        place.take(tmp_path / "incoming-1")
    except OutOfSpace:
        failed = True
    assert failed == (fs.left <= 0)
    fs.left = 0
    place.lock()
    now = {path.name for path in (tmp_path / "store").iterdir()}
    assert now in ({"incoming-1"}, {"store"} if failed else ())
    (tmp_path / "store" / "saved").touch()
    place.release()
    again = XaiPlace(RealFileSystem(), tmp_path, Settings())
    again.lock()
    assert {path.name for path in (tmp_path / "store").iterdir()} == {*now, "saved"}
    assert not (tmp_path / "restore.json").exists()
    again.release()


def test_a_restore_that_cannot_begin_leaves_the_chain_as_it_was(tmp_path: Path) -> None:
    place = opened(tmp_path)
    inner = make.chain(5)
    saved(place, {**inner, "chain": inner["chain"][:3]})
    ok, name = place.create_backup()
    assert ok, name
    saved(place, inner)
    with pytest.MonkeyPatch.context() as patch:
        real = RealFileSystem.make_directory

        def full(self: RealFileSystem, path: Path) -> None:
            if path.name == "quarantine":
                raise OutOfSpace("cannot write")
            real(self, path)

        patch.setattr(RealFileSystem, "make_directory", full)
        assert place.restore_from_backup(name)[0] is False
        assert isinstance(place.failure, OutOfSpace)
    assert loaded(place) == inner
    inner["chain"] += make.grow(inner["chain"][-1], 2)
    saved(place, inner)
    place.close()
    again = opened(tmp_path)
    assert loaded(again) == inner
    again.close()


@pytest.mark.parametrize("note", [b"{", b"{}", b'{"incoming": "..", "replaced": "store-1"}', b"[" * 90, b" " * 5000])
def test_a_forged_note_about_a_restore_moves_nothing(tmp_path: Path, note: bytes) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "restore.json").write_bytes(note)
    with pytest.raises(CorruptionError) as caught:
        XaiPlace(RealFileSystem(), tmp_path, Settings()).finish()
    assert "then remove the note" in caught.value.remedy
    assert (tmp_path / "store").exists()


# -- the authors' own list -------------------------------------------------------------------------------------------


def _fork(chain: XAIBlockchain, parent: dict[str, Any], count: int) -> None:
    for made in make.grow(parent, count, miner="rival"):
        chain.add_block(made)


def test_003_pending_transactions_are_judged_again_after_a_reorganisation(tmp_path: Path) -> None:
    with node(tmp_path, allocations={"alice": "100"}) as chain:
        genesis = chain.get_latest_block()
        moved = chain.create_transaction("alice", "bob", "10", "1", nonce=0)
        chain.add_transaction(moved)
        chain.mine_pending_transactions("miner")
        chain.add_transaction(chain.create_transaction("miner", "carol", "13"))
        _fork(chain, genesis, 2)
        assert chain.tip.height == 2
        assert [item["txid"] for item in chain.pending_transactions] == [moved["txid"]]
        assert len(chain.dropped) == 1
        assert (chain.get_balance("bob"), chain.get_balance("miner"), chain.get_balance("rival")) == ("0", "0", "24")
        assert chain.reload_blockchain()[0]
        assert [item["txid"] for item in chain.pending_transactions] == [moved["txid"]]
        chain.mine_pending_transactions("miner")
        assert (chain.get_balance("bob"), chain.get_balance("alice")) == ("10", "89")
        assert chain.verify_blockchain_integrity()[0]


def test_004_a_refused_block_changes_no_balance(tmp_path: Path) -> None:
    with node(tmp_path, allocations={"alice": "100"}) as chain:
        before = (list(chain.store.state.scan()), chain.to_dict())
        tip = chain.get_latest_block()
        good = make.tx("alice", "bob", 60.0)
        bad = make.tx("alice", "carol", 60.0)
        with pytest.raises(InvalidBlock, match="does not have"):
            chain.add_block(make.block(tip, [make.tx("COINBASE", "m", 12.0), good, bad]))
        with pytest.raises(InvalidBlock, match="more money"):
            chain.add_block(make.block(tip, [make.tx("COINBASE", "m", 121_000_000.0)]))
        assert (list(chain.store.state.scan()), chain.to_dict()) == before


def test_005_the_same_money_is_not_pending_twice(tmp_path: Path) -> None:
    with node(tmp_path, allocations={"alice": "10"}) as chain:
        answers: list[bool] = []

        def add(number: int) -> None:
            try:
                answers.append(chain.add_transaction(chain.create_transaction("alice", f"to{number}", "6")))
            except InvalidBlock:
                answers.append(False)

        threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert sorted(answers) == [False, False, False, True]
        assert len(chain.pending_transactions) == 1


def test_006_nothing_advances_when_the_disk_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with node(tmp_path, allocations={"alice": "100"}) as chain:
        chain.add_transaction(chain.create_transaction("alice", "bob", "1", nonce=0))
        before = chain.to_dict()

        def full(*args: object, **more: object) -> None:
            raise OutOfSpace("cannot write")

        with monkeypatch.context() as patch:
            patch.setattr(type(chain.store), "add", full)
            with pytest.raises(OutOfSpace):
                chain.mine_pending_transactions("miner")
        with monkeypatch.context() as patch:
            patch.setattr(storage, "save_rest", full)
            with pytest.raises(OutOfSpace):
                chain.add_transaction(chain.create_transaction("alice", "bob", "1", nonce=1))
        assert chain.to_dict() == before
        with pytest.raises(MiningError):
            chain.mine_pending_transactions("miner", max_attempts=0)
        with pytest.raises(InvalidBlock, match="nonce"):
            chain.add_transaction(chain.create_transaction("alice", "bob", "1", nonce=2))
        chain.mine_pending_transactions("miner")
        assert chain.get_balance("bob") == "1"


def test_007_a_save_looks_at_new_blocks_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = opened(tmp_path)
    inner = make.chain(40)
    saved(place, inner)
    inner["chain"] += make.grow(inner["chain"][-1], 2)
    parsed: list[int] = []
    read: list[int] = []
    real, real_parse = importing.block_documents, codec.parse_block

    def watched(blocks: BlockReader, infos: Iterable[BlockInfo]) -> Iterator[dict[str, Any]]:
        found = list(infos)
        read.extend(info.height for info in found)
        return real(blocks, found)

    def counted(body: bytes) -> XaiBlock:
        parsed.append(len(body))
        return real_parse(body)

    with monkeypatch.context() as patch:
        patch.setattr(codec, "parse_block", counted)
        patch.setattr(storage, "block_documents", watched)
        saved(place, inner)
    assert len(parsed) == 2
    assert read == [40, 41]
    place.close()


def test_024_an_output_is_spent_once(tmp_path: Path) -> None:
    with node(tmp_path, allocations={"alice": "10"}) as chain:
        (utxo,) = chain.get_utxos("alice")
        spent = {"txid": utxo["txid"], "vout": utxo["vout"]}
        with pytest.raises(InvalidBlock, match="same output twice"):
            chain.add_transaction(chain.create_transaction("alice", "bob", "20", inputs=[spent, spent]))
        with pytest.raises(InvalidBlock, match="another's"):
            chain.add_transaction(chain.create_transaction("mallory", "bob", "1", inputs=[spent]))
        chain.add_transaction(chain.create_transaction("alice", "bob", "4", inputs=[spent]))
        with pytest.raises(InvalidBlock, match="spent"):
            chain.add_transaction(chain.create_transaction("alice", "carol", "4", inputs=[spent]))
        block = chain.mine_pending_transactions("miner")
        assert (chain.get_balance("alice"), chain.get_balance("bob")) == ("6", "4")
        with pytest.raises(InvalidBlock, match="already"):
            chain.add_transaction(block["transactions"][1])
        twice = [block["transactions"][1]] * 2
        with pytest.raises(InvalidBlock):
            chain.add_block(make.block(block, [make.tx("COINBASE", "m", 1.0), *twice]))
        assert chain.get_total_circulating_supply() == "22"


def test_026_replacing_the_chain_replaces_everything_derived(tmp_path: Path) -> None:
    place = opened(tmp_path)
    trunk = make.chain(3)
    first = {**trunk, "chain": trunk["chain"] + make.grow(trunk["chain"][-1], 3, miner="old"), "stats": {"a": 1}}
    second = {**trunk, "chain": trunk["chain"] + make.grow(trunk["chain"][-1], 2, miner="new"), "stats": {"b": 2}}
    saved(place, first)
    refused(place, second, ConflictError)  # shorter, and not heavier
    assert loaded(place) == first
    saved(place, second, truncate=True)
    assert loaded(place) == second
    assert place.verify_integrity()[0]
    place.close()
    with node(tmp_path) as chain:
        assert (chain.get_balance("old"), chain.get_balance("new")) == ("0", "24")
        assert chain.get_transaction_history("old") == []
        assert len(chain.get_transaction_history("new")) == 2


def test_031_hashes_are_pinned() -> None:
    block = make.block(None, [make.tx("COINBASE", "XAIa", 12.0, at=1_699_564_800.5)], at=1_699_564_800.5)
    assert block["transactions"][0]["txid"] == TXID
    assert block["hash"] == HASH
    assert codec.parse_block(json.dumps(block).encode()).hash.hex() == HASH


def test_032_money_is_exact(tmp_path: Path) -> None:
    with node(tmp_path, allocations={"alice": "0.3"}) as chain:
        for number in range(3):
            chain.add_transaction(chain.create_transaction("alice", "bob", "0.1", nonce=number))
        chain.mine_pending_transactions("miner")
        assert (chain.get_balance("alice"), chain.get_balance("bob")) == ("0", "0.3")
        for bad in (0.1, 1):
            with pytest.raises(InvalidBlock, match="decimal text"):
                chain.create_transaction("alice", "bob", bad)  # type: ignore[arg-type]
        with pytest.raises(InvalidBlock, match="8 decimals"):
            chain.create_transaction("alice", "bob", "0.000000001")


def test_037_files_are_private(tmp_path: Path) -> None:
    place = opened(tmp_path / "data", interval=1)
    saved(place, make.chain(2))
    place.create_backup()
    place.close()
    for path in (tmp_path / "data").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.parent.name in ("backups", "checkpoints", "data"):
            assert mode == (0o700 if path.is_dir() else 0o600), path


def test_040_money_that_is_pending_is_not_freed_by_time(tmp_path: Path) -> None:
    now = [make.START]
    place = BlockchainStorage(tmp_path, engine="sqlite")
    with XAIBlockchain(storage=place, difficulty=1, clock=lambda: now[0], allocations={"alice": "10"}) as chain:
        chain.add_transaction(chain.create_transaction("alice", "bob", "6"))
        now[0] += 1e8
        with pytest.raises(InvalidBlock, match="does not have"):
            chain.add_transaction(chain.create_transaction("alice", "carol", "6"))


def test_a_transfer_to_oneself_keeps_both_rows(tmp_path: Path) -> None:
    with node(tmp_path, allocations={"alice": "10"}) as chain:
        chain.add_transaction(chain.create_transaction("alice", "alice", "4", "1"))
        chain.mine_pending_transactions("miner")
        rows = chain.get_transaction_history("alice")
        assert [(row["block"], row["type"], row["amount"]) for row in rows] == [
            (0, "received", "10"),
            (1, "sent", "4"),
            (1, "received", "4"),
        ]
        assert chain.get_balance("alice") == "9"
        assert chain.get_transaction_history("ali") == []


# -- what a save decides ---------------------------------------------------------------------------------------------


def test_a_shorter_chain_takes_nothing_away_unless_asked(tmp_path: Path) -> None:
    place = opened(tmp_path)
    inner = make.chain(5)
    saved(place, inner)
    short = {**inner, "chain": inner["chain"][:3]}
    refused(place, short, ConflictError)
    assert loaded(place) == inner
    saved(place, short, truncate=True)
    assert loaded(place)["chain"] == inner["chain"][:3]
    saved(place, inner)
    assert loaded(place) == inner
    heavier = {**inner, "chain": inner["chain"][:3] + make.grow(inner["chain"][2], 1, miner="b", difficulty=2)}
    saved(place, heavier)
    assert loaded(place) == heavier
    place.close()


@pytest.mark.usefixtures("small_segments")
def test_a_pruned_journal_takes_new_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "Settings", partial(Settings, max_reorg_depth=6, proof_window_blocks=0))
    inner = make.chain(60)
    settings = XaiSettings(tmp_path, checkpoint_interval=50)
    short = [{**inner, "chain": inner["chain"][:count]} for count in (45, 49, 50, 55)]
    place = BlockchainStorage(tmp_path, settings=settings, engine="sqlite")
    saved(place, short[0])
    store = place.open()
    assert store is not None
    assert store.retention.prune(RetentionPolicy("below", store.retention.floor_max()), without_archive=True).blocks > 9
    saved(place, short[1])
    refused(place, short[2], PrunedError, create_backup=True)  # asked for, so it is not left out
    heard: list[Event] = []
    with on_event(heard.append, names=["backup_failed", "checkpoint_failed"]) as subscription:
        saved(place, short[2])
        assert isinstance(place.failure, PrunedError)
        assert subscription.wait(10)
    assert [event.name for event in heard] == ["backup_failed", "checkpoint_failed"]
    place.close()
    place = BlockchainStorage(tmp_path, settings=settings, engine="sqlite")  # knows no running checksum
    saved(place, short[3])
    metadata = place.get_metadata()
    assert metadata is not None
    assert (metadata["block_height"], metadata["checksum"]) == (55, "")
    place.close()


@pytest.mark.usefixtures("small_segments")
def test_a_pruned_chain_is_checked_as_far_as_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "Settings", partial(Settings, max_reorg_depth=6, proof_window_blocks=0))
    inner = make.chain(60)
    place = BlockchainStorage(tmp_path, engine="sqlite")
    saved(place, {**inner, "chain": inner["chain"][:45]})
    saved(place, inner)
    store = place.open()
    assert store is not None
    assert store.path is not None
    repository = open_repository(tmp_path / "copies", create=True)
    create_backup(store, repository)
    floor = store.retention.prune(RetentionPolicy("below", 30), without_archive=True).floor_after
    assert floor == 30
    ok, message = place.verify_integrity()
    assert ok, message
    assert "height: 60, documents from block 30 on" in message
    ok, data, message = place.load_from_disk()
    assert not ok
    assert data is None
    assert isinstance(place.failure, PrunedError)
    assert f"journal refill --data-dir {store.path}" in message
    assert f"journal refill --data-dir {store.path}" in place.failure.remedy

    judged: list[int] = []
    monkeypatch.setattr(XaiChain, "validate", lambda _, block, *__: judged.append(block.height))
    assert place.verify_integrity()[0]
    assert judged == list(range(30, 60))
    monkeypatch.undo()
    wrong = XaiChain.validate

    def refuse(self: XaiChain, block: Any, *rest: Any) -> None:
        wrong(self, block, *rest)
        if block.height == 55:
            raise InvalidBlock("planted")

    monkeypatch.setattr(XaiChain, "validate", refuse)
    ok, message = place.verify_integrity()
    assert (ok, "planted" in message) == (False, True)
    monkeypatch.undo()

    store_id = read_identity(RealFileSystem(), store.path).store_id
    assert store.retention.refill(originals_of(repository, store_id)).floor_after == 0
    assert place.verify_integrity()[0]
    assert loaded(place) == inner
    place.close()


def test_a_full_comparison_finds_a_difference_below_the_tip(tmp_path: Path) -> None:
    place = opened(tmp_path)
    inner = make.chain(4)
    saved(place, inner)
    saved(place, inner, verify=True)
    other = copy.deepcopy(inner)
    other["chain"][1]["difficulty"] = 0
    saved(place, other)
    refused(place, other, ConflictError, verify=True)
    place.close()


def test_another_chain_does_not_replace_the_stored_one(tmp_path: Path) -> None:
    place = opened(tmp_path)
    inner = make.chain(3)
    saved(place, inner)
    refused(place, make.chain(4, miner="other"), ForeignStore)
    assert loaded(place) == inner
    place.close()


def test_a_backup_of_another_chain_is_refused(tmp_path: Path) -> None:
    place = opened(tmp_path, rules=XaiParameters(bytes(32), network="test", supply_max=4_800_000_000))
    inner = make.chain(3)
    saved(place, inner)
    place.create_backup()
    name = "blockchain_backup_9.json"
    (tmp_path / "backups" / name).write_bytes(make.package(make.chain(5, miner="other")))
    assert place.restore_from_backup(name)[0] is False
    assert isinstance(place.failure, ForeignStore)
    assert loaded(place) == inner
    own = next(row["filename"] for row in place.list_backups() if row["filename"] != name)
    assert place.restore_from_backup(own)[0]
    inner["chain"] += make.grow(inner["chain"][-1], 2)
    refused(place, inner, InvalidBlock)  # the rules of the chain are still there: five coinbases are too many
    assert len(loaded(place)["chain"]) == 4
    place.close()


@pytest.mark.parametrize("chain", [None, {}, [1], [{}], [{"hash": 1}], "x"])
def test_what_is_no_chain_is_a_typed_error(tmp_path: Path, chain: object) -> None:
    place = opened(tmp_path)
    refused(place, {"chain": chain}, HoldfastError)
    saved(place, make.chain(2))
    refused(place, {"chain": chain}, HoldfastError)
    place.close()


def _branch(trunk: dict[str, Any], count: int, miner: str) -> dict[str, Any]:
    return {**trunk, "chain": trunk["chain"] + make.grow(trunk["chain"][-1], count, miner=miner)}


def test_a_save_that_ends_behind_a_reorganisation_of_equal_height_loads(tmp_path: Path) -> None:
    place = opened(tmp_path)
    trunk = make.chain(3)
    first, second = (_branch(trunk, 2, name) for name in "ab")
    saved(place, first)

    def killed(*args: object) -> None:
        raise OutOfSpace("cannot write")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "save_rest", killed)
        refused(place, second, OutOfSpace)
    place.close()
    assert loaded(place) == second
    assert place.verify_integrity()[0]
    saved(place, second)
    place.close()
    store = place.open()
    assert store is not None
    store.documents(importing.SPACE).put(b"rstats", b"{}")
    assert place.load_from_disk()[0] is False  # of the tip that was saved the checksum is compared
    assert isinstance(place.failure, CorruptionError)
    place.close()


# -- settings --------------------------------------------------------------------------------------------------------


def test_unsaved_blocks_are_reported(tmp_path: Path) -> None:
    with node(tmp_path, interval=3) as chain:
        assert chain.store.settings.durability == "buffered"
        assert chain.save_blockchain()[0]
        found = []
        for _ in range(4):
            chain.mine_pending_transactions("miner")
            found.append(chain.unsaved_blocks)
        assert found == [1, 2, 0, 1]
        ok, _ = chain.save_blockchain()
        assert ok
        assert chain.unsaved_blocks == 0
    with node(tmp_path) as chain:
        assert chain.store.settings.durability == "sync"
        assert chain.tip.height == 4


def test_blocks_of_another_branch_are_unsaved_blocks_too(tmp_path: Path) -> None:
    place = BlockchainStorage(tmp_path, settings=XaiSettings(tmp_path, auto_save_interval=9), engine="sqlite")
    trunk = make.chain(4)
    first, second = _branch(trunk, 2, "a"), _branch(trunk, 3, "b")
    saved(place, trunk)
    assert place.unsaved_blocks == 4
    place.sync()
    saved(place, first)
    assert place.unsaved_blocks == 2
    assert "the last 3 blocks are not durable yet" in saved(place, second)
    assert place.unsaved_blocks == 3
    saved(place, {**second, "chain": second["chain"][:5]}, truncate=True)
    assert (place.unsaved_blocks, _not_durable(place)) == (0, 0)
    place.close()


def test_pending_transactions_are_durable_at_once(tmp_path: Path) -> None:
    with node(tmp_path, interval=9, allocations={"alice": "10"}) as chain:
        chain.mine_pending_transactions("miner")
        assert _not_durable(chain.storage) > 0
        chain.add_transaction(chain.create_transaction("alice", "bob", "1"))
        assert (chain.unsaved_blocks, _not_durable(chain.storage)) == (0, 0)
        genesis = chain.chain[0]
        for block in make.grow(genesis, 3, miner="rival"):
            chain.add_block(block)
        assert chain.unsaved_blocks == 3


def _not_durable(place: BlockchainStorage) -> int:
    store = place.open()
    assert store is not None
    journal: Any = store.statistics()["journal"]
    return int(journal["appended_seq"] - journal["durable_seq"])


def test_settings_come_from_arguments_variables_and_the_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockchainStorageConfig, "MAX_BACKUPS", 7)
    environ = {"XAI_DATA_DIR": str(tmp_path), "XAI_CHECKPOINT_INTERVAL": "500", "XAI_PRUNE_MODE": "blocks"}
    assert XaiSettings.load(environ=environ) == XaiSettings(tmp_path, 500, 7, 1)
    assert XaiSettings.load(tmp_path / "x", environ=environ).data_dir == tmp_path / "x"
    for name, text in (("XAI_CHECKPOINT_INTERVAL", "0"), ("XAI_MAX_BACKUPS", "-1"), ("XAI_AUTO_SAVE_INTERVAL", "x")):
        with pytest.raises(InvalidInputError, match=name[4:]):
            XaiSettings.load(environ={name: text})
    for value in (None, True, 5.5, b"5", "x"):
        with monkeypatch.context() as patch:
            patch.setattr(BlockchainStorageConfig, "CHECKPOINT_INTERVAL", value)
            with pytest.raises(InvalidInputError, match="CHECKPOINT_INTERVAL"):
                XaiSettings.load(environ={})
    for place in (None, 5, b"x", ""):
        with monkeypatch.context() as patch:
            patch.setattr(BlockchainStorageConfig, "DATA_DIR", place)
            with pytest.raises(InvalidInputError, match="data directory"):
                XaiSettings.load(environ={})
    with pytest.raises(InvalidInputError, match="data directory"):
        BlockchainStorage(5)  # type: ignore[arg-type]
    monkeypatch.setenv("XAI_MAX_BACKUPS", "3")
    assert BlockchainStorage(tmp_path).settings.max_backups == 3


def test_a_checkpoint_takes_over_where_every_backup_is_damaged(tmp_path: Path) -> None:
    place = opened(tmp_path, interval=2)
    inner = make.chain(5)
    saved(place, inner)
    assert place.create_backup()[0]
    place.close()
    for path in (tmp_path / "backups").iterdir():
        path.write_bytes(b"{")
    (tmp_path / "store" / "holdfast.toml").write_bytes(b"damaged")
    assert [row["block_height"] for row in place.list_backups()] == ["unknown"]
    asked = opened(tmp_path, interval=2, recover="backup")
    ok, data, message = asked.load_from_disk()
    assert ok
    assert message.startswith("Recovered from checkpoint")
    assert data is not None
    assert data["chain"] == inner["chain"][:4]
    asked.close()


def test_a_backup_takes_over_from_a_block_that_cannot_be_read(tmp_path: Path) -> None:
    place = opened(tmp_path)
    inner = make.chain(5)
    saved(place, inner)
    assert place.create_backup()[0]
    place.close()
    (segment,) = (tmp_path / "store" / "journal").glob("*.seg")
    raw = bytearray(segment.read_bytes())
    raw[raw.index(inner["chain"][2]["hash"].encode())] ^= 1
    segment.write_bytes(raw)
    assert place.load_from_disk()[0] is False
    assert isinstance(place.failure, CorruptionError)
    place.close()
    with node(tmp_path, recover="backup") as chain:
        assert list(chain.chain) == inner["chain"]
    assert (tmp_path / "quarantine" / "store-1" / "journal" / segment.name).read_bytes() == raw
    assert loaded(place) == inner
    place.close()


def test_no_backup_takes_over_from_damaged_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = opened(tmp_path, recover="backup")
    inner = make.chain(3)
    saved(place, inner)
    assert place.create_backup()[0]
    place.close()

    def damaged(store: object) -> None:
        raise CorruptionError("a row does not decode", recovery=Recovery.REBUILD)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "check_bodies", damaged)
        assert place.load_from_disk()[0] is False
    assert not (tmp_path / "quarantine").exists()
    assert loaded(place) == inner
    place.close()


@pytest.mark.usefixtures("small_segments")
def test_pruned_blocks_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "Settings", partial(Settings, max_reorg_depth=6, proof_window_blocks=0))
    place = opened(tmp_path, recover="backup")
    saved(place, make.chain(60))
    assert place.create_backup()[0]
    store = place.open()
    assert store is not None
    assert store.retention.prune(RetentionPolicy("below", store.retention.floor_max()), without_archive=True).blocks
    place.close()
    assert place.open() is not None
    assert not (tmp_path / "quarantine").exists()
    place.close()


def test_a_checkpoint_is_made_again_where_a_reorganisation_replaced_its_blocks(tmp_path: Path) -> None:
    trunk = make.chain(3)
    first, second = _branch(trunk, 3, "a"), _branch(trunk, 4, "b")
    place = opened(tmp_path, interval=5)
    saved(place, first)
    saved(place, second)
    rows = [row["filename"] for row in place.list_checkpoints()]
    assert rows == ["checkpoint_5_0002.json", "checkpoint_5.json"]
    assert place.archive.load_checkpoint(rows[0]).inner()["chain"] == second["chain"][:5]
    place.close()


def test_a_state_proof_of_an_output_holds(tmp_path: Path) -> None:
    with node(tmp_path, allocations={"alice": "10"}) as chain:
        (utxo,) = chain.get_utxos("alice")
        proof = chain.store.state.prove(utxo["key"])
        root = chain.tip.state_root
        assert root is not None
        proof.verify(root, utxo["key"], chain.store.state[utxo["key"]])
