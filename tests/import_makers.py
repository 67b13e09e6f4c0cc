"""Small chains made on the spot, for tests of imports: regtest blocks of Bitcoin and blocks of an EVM chain."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from holdfast.chains.bitcoin.header import Header, encode_header, hash_of_header, sha256d, target_from_compact
from holdfast.chains.bitcoin.networks import NETWORKS
from holdfast.chains.bitcoin.transactions import merkle_root
from holdfast.chains.evm.codec import EMPTY_LIST_HASH, EMPTY_TRIE_ROOT
from holdfast.chains.evm.header import encode_header_json

REGTEST = NETWORKS["regtest"]
REGTEST_BITS = 0x207FFFFF
SAMPLES = Path(__file__).resolve().parent.parent / "samples"


def coinbase(tag: int) -> bytes:
    """A legacy transaction, different for each tag."""
    script = struct.pack("<I", tag) + b"\0" * 4
    inputs = b"\x01" + bytes(32) + b"\xff" * 4 + bytes((len(script),)) + script + b"\xff" * 4
    return b"\x01\0\0\0" + inputs + b"\x01" + struct.pack("<q", 50) + b"\x01\x51" + bytes(4)


def bitcoin_block(
    parent: bytes, tag: int, *, bits: int = REGTEST_BITS, transactions: Sequence[bytes] = (), solve: bool = True
) -> bytes:
    """A raw block on ``parent`` with its proof of work done (or missed on purpose)."""
    txs = list(transactions) or [coinbase(tag)]
    root = merkle_root([sha256d(tx) for tx in txs])
    body = bytes((len(txs),)) + b"".join(txs)
    for nonce in range(2**32):
        raw = encode_header(Header(0x20000000, parent, root, 1296688602 + tag, bits, nonce))
        if (int.from_bytes(hash_of_header(raw), "little") <= target_from_compact(bits)) == solve:
            return raw + body
    raise AssertionError("unreachable")


def raw_hash(raw: bytes) -> bytes:
    """Hash of a raw block."""
    return hash_of_header(raw[:80])


def bitcoin_chain(length: int, *, parent: bytes = REGTEST.genesis_hash, tag: int = 0) -> list[bytes]:
    """``length`` raw blocks, each on the one before."""
    blocks = []
    for number in range(length):
        raw = bitcoin_block(parent, tag + number)
        blocks.append(raw)
        parent = raw_hash(raw)
    return blocks


def framed(blocks: Iterable[bytes], magic: bytes = REGTEST.magic) -> bytes:
    """What a ``blk*.dat`` file holds for these blocks."""
    return b"".join(magic + struct.pack("<I", len(raw)) + raw for raw in blocks)


def evm_header(parent: bytes, number: int, *, tag: int = 0, **changes: Any) -> bytes:
    """Encoded header of an empty block after the merge, of the London fork."""
    fields: dict[str, object] = {
        "parentHash": "0x" + parent.hex(),
        "sha3Uncles": "0x" + EMPTY_LIST_HASH.hex(),
        "miner": "0x" + tag.to_bytes(20, "big").hex(),
        "stateRoot": "0x" + EMPTY_TRIE_ROOT.hex(),
        "transactionsRoot": "0x" + EMPTY_TRIE_ROOT.hex(),
        "receiptsRoot": "0x" + EMPTY_TRIE_ROOT.hex(),
        "logsBloom": "0x" + "00" * 256,
        "difficulty": "0x0",
        "number": hex(number),
        "gasLimit": "0x1c9c380",
        "gasUsed": "0x0",
        "timestamp": hex(1_700_000_000 + number),
        "extraData": "0x",
        "mixHash": "0x" + "00" * 32,
        "nonce": "0x" + "00" * 8,
        "baseFeePerGas": "0x7",
    }
    return encode_header_json({**fields, **changes})
