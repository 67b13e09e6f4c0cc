"""EVM blocks from JSON and RLP: the recorded ones are accepted, and every alteration of them is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import rlp
import zstandard

from holdfast.chains.evm import EvmChain, block_from_json, block_from_rlp, genesis_block
from holdfast.chains.evm.codec import encode_list, item_at, keccak256, list_items, ordered_trie_root
from holdfast.chains.evm.decoding import parse_json
from holdfast.chains.evm.header import decode_header, encode_header_json
from holdfast.chains.evm.transactions import chain_id_of, encode_receipt_json, encode_transaction_json
from holdfast.errors import InvalidBlock, InvalidInputError
from holdfast.types import ZERO_HASH, Block, BlockInfo
from tests.import_makers import SAMPLES, evm_header

ANVIL_CHAIN = 31337


@cache
def recorded() -> list[str]:
    with (SAMPLES / "anvil.jsonl.zst").open("rb") as packed:
        return zstandard.ZstdDecompressor().stream_reader(packed).read().decode().splitlines()[:130]


def records() -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in recorded())


def with_transactions() -> dict[str, Any]:
    return next(record for record in records() if record["block"]["transactions"])


def load(record: dict[str, Any]) -> Block:
    return block_from_json(record["block"], receipts=record["receipts"], uncles=record.get("uncles")).block


def judge(block: Block, parent: BlockInfo | None = None, chain_id: int = ANVIL_CHAIN) -> None:
    EvmChain(chain_id).validate(block, parent, None)  # type: ignore[arg-type]


def info(block: Block) -> BlockInfo:
    sizes = (len(block.header), None)
    return BlockInfo(block.hash, block.parent, block.height, block.time, block.work, 1, b"", 0, 0, 0, *sizes)


def test_recorded_blocks_are_valid() -> None:
    for record in list(records())[:40]:
        block = load(record)
        judge(block)
        assert block.hash.hex() == record["block"]["hash"][2:]
        assert block.height == int(record["block"]["number"], 16)
        assert block.work == 1
        assert json.loads(block.extra or b"") == record["receipts"]


def test_a_block_decodes_from_its_stored_parts() -> None:
    block = load(with_transactions())
    assert EvmChain(ANVIL_CHAIN).decode(block.header, block.body, parent=None, extra=block.extra) == block


def test_the_rlp_form_of_a_block_is_the_same_block() -> None:
    block = load(with_transactions())
    assert block.body is not None
    body = item_at(block.body, 0, len(block.body))
    raw = encode_list((block.header, block.body[body.payload :]))
    again = block_from_rlp(raw).block
    assert (again.hash, again.header, again.body) == (block.hash, block.header, block.body)


@pytest.mark.parametrize("name", ["parentHash", "stateRoot", "timestamp", "baseFeePerGas", "blobGasUsed", "extraData"])
def test_an_altered_header_field_is_refused(name: str) -> None:
    record = with_transactions()
    old = record["block"][name]
    record["block"][name] = old[:-1] + ("1" if old[-1] == "0" else "0") if len(old) > 2 else "0xff"
    with pytest.raises(InvalidBlock, match="stated hash"):
        load(record)


@pytest.mark.parametrize("name", ["parentHash", "logsBloom", "number", "hash", "nonce"])
def test_a_missing_or_malformed_header_field_is_named(name: str) -> None:
    bad_values: tuple[object, ...] = (None, 5, "0xzz", "12", "0x" + "1" * 9, [], "0x" + "f" * 2000)
    for value in bad_values:
        record = with_transactions()
        record["block"][name] = value
        if name == "number" and value == "0x" + "1" * 9:
            continue
        with pytest.raises(InvalidBlock) as caught:
            load(record)
        assert caught.value.context["field"] == name


@pytest.mark.parametrize("name", ["nonce", "value", "input", "to", "r", "yParity", "chainId", "maxFeePerGas"])
def test_an_altered_transaction_is_refused(name: str) -> None:
    record = with_transactions()
    tx = record["block"]["transactions"][0]
    old = tx[name]
    tx[name] = "0x1234" + "00" * 18 if old is None else old[:-1] + ("1" if old[-1] != "1" else "2")
    with pytest.raises(InvalidBlock, match="transactions root"):
        judge(load(record), chain_id=0)


def test_lost_added_and_swapped_transactions_are_refused() -> None:
    record = with_transactions()
    (tx,) = record["block"]["transactions"]
    for altered in ([], [tx, tx]):
        record["block"]["transactions"] = altered
        with pytest.raises(InvalidBlock, match="transactions root"):
            judge(load(record))


def test_altered_withdrawals_ommers_and_receipts_are_refused() -> None:
    record = with_transactions()
    entry = {"index": "0x0", "validatorIndex": "0x1", "address": "0x" + "11" * 20, "amount": "0x5"}
    broken = copy.deepcopy(record)
    broken["block"]["withdrawals"] = [entry]
    with pytest.raises(InvalidBlock, match="withdrawals root"):
        judge(load(broken))
    broken = copy.deepcopy(record)
    broken["receipts"][0]["logsBloom"] = "0x01" + "00" * 255
    with pytest.raises(InvalidBlock, match="receipts root"):
        judge(load(broken))
    broken = copy.deepcopy(record)
    broken["block"]["uncles"] = ["0x" + "22" * 32]
    with pytest.raises(InvalidBlock, match="uncles"):
        load(broken)
    block = load(record)
    assert block.body is not None
    parts = list_items(block.body)
    pieces = [block.body[part.start : part.end] for part in parts]
    with pytest.raises(InvalidBlock, match="ommers"):
        judge(replace(block, body=encode_list((pieces[0], encode_list((b"\x01",)), pieces[2]))))
    with pytest.raises(InvalidBlock, match="parts"):
        judge(replace(block, body=encode_list(pieces[:2])))


def test_a_transaction_of_another_chain_is_refused() -> None:
    block = load(with_transactions())
    judge(block, chain_id=0)
    with pytest.raises(InvalidBlock, match="another chain"):
        judge(block, chain_id=1)


def test_a_block_whose_fields_are_not_those_of_its_header_is_refused() -> None:
    block = load(with_transactions())
    for altered in (
        replace(block, hash=b"\1" * 32),
        replace(block, parent=b"\1" * 32),
        replace(block, height=block.height + 1),
        replace(block, time=block.time + 1),
        replace(block, work=2),
        replace(block, producer=b"x"),
        replace(block, header=block.header[:-1]),
    ):
        with pytest.raises(InvalidBlock):
            judge(altered)


def made(parent: bytes, number: int, **changes: Any) -> Block:
    header = evm_header(parent, number, **changes)
    return EvmChain().decode(header, b"\xc2\xc0\xc0", parent=None)


def test_links() -> None:
    first = made(ZERO_HASH, 0)
    second = made(first.hash, 1)
    judge(first)
    judge(second, info(first))
    for bad, why in (
        (made(first.hash, 2), "number"),
        (made(first.hash, 2**40), "number"),
        (made(b"\5" * 32, 1), "follow"),
        (made(first.hash, 1, timestamp="0x5"), "older"),
        (made(first.hash, 1, gasUsed="0xffffffffff"), "gas"),
        (made(first.hash, 0), "block 0"),
        (made(ZERO_HASH, 1), "block 0"),
    ):
        with pytest.raises(InvalidBlock, match=why):
            judge(bad, info(first))


def test_work_is_the_difficulty_where_there_is_one() -> None:
    assert made(ZERO_HASH, 0, difficulty="0x20000").work == 0x20000
    assert made(ZERO_HASH, 0).work == 1


def test_headers_of_every_fork_and_of_the_next_one() -> None:
    base = rlp.decode(evm_header(ZERO_HASH, 0))
    later = [bytes(32), b"", b"", bytes(32), bytes(32), b"\x07"]
    for length in range(15, 16 + len(later)):
        fields = (base + later)[:length]
        header = decode_header(rlp.encode(fields))
        assert header.withdrawals_root == (bytes(32) if length > 16 else None)
    for bad in (base[:14], [*base[:3], b"short", *base[4:]], [*base[:8], b"\0\1", *base[9:]], [[], *base[1:]]):
        with pytest.raises(InvalidBlock):
            decode_header(rlp.encode(bad))


ADDRESS, WORD = "0x" + "35" * 20, "0x" + "01" * 32
COMMON: dict[str, Any] = {
    "nonce": "0x1",
    "gas": "0x5208",
    "to": ADDRESS,
    "value": "0xde0b6b3a7640000",
    "input": "0xabcd",
    "chainId": "0x7a69",
    "accessList": [{"address": ADDRESS, "storageKeys": [WORD]}],
    "gasPrice": "0x3b9aca00",
    "maxFeePerGas": "0x3b9aca01",
    "maxPriorityFeePerGas": "0x2",
    "maxFeePerBlobGas": "0x3",
    "blobVersionedHashes": [WORD],
    "authorizationList": [
        {"chainId": "0x0", "address": ADDRESS, "nonce": "0x0", "yParity": "0x1", "r": "0x9", "s": "0xa"}
    ],
    "v": "0x1",
    "yParity": "0x1",
    "r": "0x1234",
    "s": "0x5678",
}


def test_each_type_of_transaction_has_its_fields_in_order() -> None:
    to, word, amount = b"\x35" * 20, b"\1" * 32, 10**18
    access = [[to, [word]]]
    price, fee, tip = 10**9, 10**9 + 1, 2
    seal = [1, 0x1234, 0x5678]
    common = [0x5208, to, amount, b"\xab\xcd"]
    expected = {
        "0x0": rlp.encode([1, price, *common, *seal]),
        "0x1": b"\1" + rlp.encode([0x7A69, 1, price, *common, access, *seal]),
        "0x2": b"\2" + rlp.encode([0x7A69, 1, tip, fee, *common, access, *seal]),
        "0x3": b"\3" + rlp.encode([0x7A69, 1, tip, fee, *common, access, 3, [word], *seal]),
        "0x4": b"\4" + rlp.encode([0x7A69, 1, tip, fee, *common, access, [[0, to, 0, 1, 9, 10]], *seal]),
    }
    for kind, raw in expected.items():
        assert encode_transaction_json({**COMMON, "type": kind}) == raw
    assert encode_transaction_json({**COMMON, "to": None, "type": None}) == rlp.encode(
        [1, price, 0x5208, b"", amount, b"\xab\xcd", *seal]
    )
    with pytest.raises(InvalidBlock, match="type"):
        encode_transaction_json({**COMMON, "type": "0x5"})


def test_a_signed_transaction_of_eip_155_has_its_published_bytes() -> None:
    """The example of EIP-155."""
    tx = {
        "nonce": "0x9",
        "gasPrice": "0x4a817c800",
        "gas": "0x5208",
        "to": ADDRESS,
        "value": "0xde0b6b3a7640000",
        "input": "0x",
        "v": "0x25",
        "r": "0x28ef61340bd939bc2195fe537567866003e1a15d3c71ff63e1590620aa636276",
        "s": "0x67cbe9d8997f761aecb703304b3800ccf555c9f3dc64214b297fb1966a3b6d83",
    }
    raw = encode_transaction_json(tx)
    assert raw.hex() == (
        "f86c098504a817c800825208943535353535353535353535353535353535353535880de0b6b3a76400008025a028ef61340bd939bc219"
        "5fe537567866003e1a15d3c71ff63e1590620aa636276a067cbe9d8997f761aecb703304b3800ccf555c9f3dc64214b297fb1966a3b6d83"
    )
    assert keccak256(raw).hex() == "33469b22e9f636356c4160a87eb19df52b7412e8eac32a4a55ffe88ea8350788"
    assert chain_id_of(raw, item_at(raw, 0, len(raw))) == 1


def test_the_chain_id_of_each_form() -> None:
    for kind in ("0x1", "0x2", "0x3", "0x4"):
        raw = encode_transaction_json({**COMMON, "type": kind})
        wrapped = rlp.encode(raw)
        assert chain_id_of(wrapped, item_at(wrapped, 0, len(wrapped))) == ANVIL_CHAIN
    raw = encode_transaction_json({**COMMON, "type": "0x0", "v": "0x1b"})
    assert chain_id_of(raw, item_at(raw, 0, len(raw))) is None


def test_receipts_of_before_byzantium_carry_a_root() -> None:
    log = {"address": ADDRESS, "topics": [WORD], "data": "0x01"}
    receipt: dict[str, Any] = {"root": WORD, "cumulativeGasUsed": "0x5", "logsBloom": "0x" + "00" * 256, "logs": [log]}
    logs = [[b"\x35" * 20, [b"\1" * 32], b"\1"]]
    assert encode_receipt_json(receipt) == rlp.encode([b"\1" * 32, 5, bytes(256), logs])
    typed = {**receipt, "status": "0x1", "type": "0x2"}
    assert encode_receipt_json(typed) == b"\2" + rlp.encode([1, 5, bytes(256), logs])


def test_uncles_come_with_their_block() -> None:
    uncle = evm_header(b"\7" * 32, 4, tag=9, difficulty="0x10")
    ommers = encode_list((uncle,))
    header = evm_header(b"\6" * 32, 5, difficulty="0x10", sha3Uncles="0x" + keccak256(ommers).hex())
    candidate = block_from_rlp(encode_list((header, b"\xc0", ommers)))
    judge(candidate.block)
    (kept,) = candidate.uncles
    assert (kept.header, kept.body, kept.height, kept.work) == (uncle, None, 4, 16)
    judge(kept)


def test_a_genesis_file_gives_the_known_block_of_the_main_network_form() -> None:
    """The genesis of ethereum/hive's devp2p chain: its hash is the parent of the first block in ``geth-3000.rlp``."""
    block = genesis_block(
        {
            "config": {"chainId": 19763, "homesteadBlock": 0},
            "nonce": "0xdeadbeefdeadbeef",
            "timestamp": "0x0",
            "extraData": "0x" + "00" * 32,
            "gasLimit": "0x80000000",
            "difficulty": "0x20000",
            "mixHash": "0x" + "00" * 32,
            "coinbase": "0x" + "00" * 20,
            "alloc": {"71562b71999873db5b286df957af199ec94617f7": {"balance": "0xffffffffffffffffffffffffff"}},
        }
    )
    assert block.hash.hex() == "d6f7972e854d4d7812fca9f911e9a1c1db3b89e2650a25b7782a1d8972ced000"
    judge(block, chain_id=19763)


def test_genesis_files_with_later_forks_storage_and_code() -> None:
    config = {"londonBlock": 0, "shanghaiTime": 0, "cancunTime": 0, "pragueTime": 0}
    account = {"balance": "1", "nonce": 1, "code": "0x6000", "storage": {"0x01": "0x02", "0x03": "0x00"}}
    block = genesis_block({"config": config, "alloc": {"0x" + "11" * 20: account}})
    judge(block)
    assert len(list_items(block.header)) == 21
    bad_files: tuple[dict[str, object], ...] = (
        {"alloc": []},
        {"difficulty": "x"},
        {"extraData": 5},
        {"gasLimit": -1},
        {"extraData": "0xq"},
    )
    for bad in bad_files:
        with pytest.raises(InvalidBlock, match="genesis file"):
            genesis_block(bad)


def test_json_that_is_none() -> None:
    for bad in (b"", b"{", b"[" * 100_000, b"\xff", b'{"a":1}x'):
        with pytest.raises(InvalidBlock):
            parse_json(bad)


def test_bad_chain_ids() -> None:
    for bad in (-1, 2**64):
        with pytest.raises(InvalidInputError):
            EvmChain(bad)
    assert EvmChain(1).spec.id == "1"
    assert EvmChain().spec.id == ""


def test_the_empty_list_has_the_empty_root() -> None:
    assert ordered_trie_root([]).hex() == with_transactions()["block"]["withdrawalsRoot"][2:]
    assert encode_header_json(with_transactions()["block"])[0] >= 0xF8
