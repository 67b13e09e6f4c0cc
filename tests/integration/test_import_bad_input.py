"""Bad input: each a typed error with code, place and next step; the store is as it was before the bad block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import holdfast
from holdfast.chains.bitcoin import BitcoinChain, BlockFiles
from holdfast.chains.evm import EvmChain, EvmFiles
from holdfast.chains.evm.codec import encode_list, keccak256
from holdfast.chains.importing import import_files
from holdfast.errors import FinalityError, HoldfastError, InvalidBlock, LimitExceeded, ParentUnknown, ReorgTooDeep
from holdfast.types import ZERO_HASH
from tests.import_makers import REGTEST, bitcoin_block, bitcoin_chain, coinbase, evm_header, framed, raw_hash

CHAIN = bitcoin_chain(4)
GOOD = framed(CHAIN)


@pytest.fixture
def store() -> Iterator[holdfast.Store]:
    with holdfast.open("memory:", chain=BitcoinChain("regtest")) as opened:
        yield opened


def picture(store: holdfast.Store) -> tuple[object, object]:
    return store.tip, sorted(tip.hash for tip in store.blocks.tips())


def refused(store: holdfast.Store, path: Path, data: bytes, kind: type[HoldfastError]) -> HoldfastError:
    path.write_bytes(data)
    with pytest.raises(kind) as caught:
        with BlockFiles([path], "regtest") as files:
            import_files(store, files)
    error = caught.value
    assert error.context["path"] == path
    assert error.remedy
    assert error.as_dict()["code"] == error.code
    return error


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (framed(CHAIN, b"\xde\xad\xbe\xef"), InvalidBlock),
        (GOOD[:-1], InvalidBlock),
        (GOOD + REGTEST.magic, InvalidBlock),
        (GOOD + REGTEST.magic + (2**30).to_bytes(4, "little"), LimitExceeded),
        (GOOD + b"garbage!", InvalidBlock),
    ],
    ids=["wrong magic", "truncated", "cut frame", "1 GB length", "garbage"],
)
def test_a_file_with_bad_frames_changes_nothing(
    store: holdfast.Store, tmp_path: Path, data: bytes, kind: type[HoldfastError]
) -> None:
    before = picture(store)
    error = refused(store, tmp_path / "blk.dat", data, kind)
    assert "offset" in error.context
    assert picture(store) == before


def broken_merkle(parent: bytes) -> bytes:
    good = bitcoin_block(parent, 9)
    return good[:-1] + bytes((good[-1] ^ 1,))


def duplicated_transaction(parent: bytes) -> bytes:
    one, two, three = coinbase(1), coinbase(2), coinbase(3)
    good = bitcoin_block(parent, 9, transactions=[one, two, three])
    return good[:80] + b"\x04" + one + two + three + three


BAD_BLOCKS: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda parent: bitcoin_block(parent, 9, solve=False), "proof of work"),
    (lambda parent: bitcoin_block(parent, 9, bits=0x2100FFFF), "easier"),
    (broken_merkle, "Merkle root"),
    (duplicated_transaction, "CVE-2012-2459"),
    (lambda parent: bitcoin_block(parent, 9) + b"\0", "follow the last transaction"),
]


@pytest.mark.parametrize(("make", "why"), BAD_BLOCKS, ids=["work", "target", "merkle", "duplicate tx", "trailing"])
def test_a_bad_block_is_named_and_those_before_it_stay(
    store: holdfast.Store, tmp_path: Path, make: Callable[[bytes], bytes], why: str
) -> None:
    bad = make(raw_hash(CHAIN[1]))
    after = bitcoin_chain(2, parent=raw_hash(bad), tag=50)
    error = refused(store, tmp_path / "blk.dat", framed([*CHAIN[:2], bad, *after]), InvalidBlock)
    assert why in error.message
    assert error.context["offset"] == len(framed(CHAIN[:2]))
    assert error.context["blocks_stored"] == 2
    assert store.tip is not None
    assert store.tip.hash == raw_hash(CHAIN[1])
    assert not store.has(raw_hash(bad))


def test_a_bad_block_on_a_side_branch_is_named_too(store: holdfast.Store, tmp_path: Path) -> None:
    bad = broken_merkle(raw_hash(CHAIN[0]))
    error = refused(store, tmp_path / "blk.dat", framed([*CHAIN, bad]), InvalidBlock)
    assert error.context["offset"] == len(GOOD)
    assert error.context["blocks_stored"] == 4
    assert store.tip is not None
    assert store.tip.hash == raw_hash(CHAIN[-1])


def test_unknown_parents_only(store: holdfast.Store, tmp_path: Path) -> None:
    before = picture(store)
    error = refused(store, tmp_path / "blk.dat", framed(bitcoin_chain(3, parent=b"\7" * 32)), ParentUnknown)
    assert error.context["found"] == 3
    assert "base" in error.remedy
    assert picture(store) == before


def test_another_first_block_is_refused(store: holdfast.Store, tmp_path: Path) -> None:
    before = picture(store)
    refused(store, tmp_path / "blk.dat", framed([bitcoin_block(ZERO_HASH, 3)]), HoldfastError)
    assert picture(store) == before
    with holdfast.open("memory:", chain=BitcoinChain("regtest", from_base=True)) as empty:
        refused(empty, tmp_path / "blk.dat", framed([bitcoin_block(ZERO_HASH, 3)]), InvalidBlock)
        assert empty.tip is None


def test_a_fork_below_finality_is_refused(store: holdfast.Store, tmp_path: Path) -> None:
    path = tmp_path / "good.dat"
    path.write_bytes(GOOD)
    with BlockFiles([path], "regtest") as files:
        import_files(store, files)
    store.finalize(3)
    before = picture(store)
    fork = bitcoin_chain(3, parent=raw_hash(CHAIN[1]), tag=70)
    error = refused(store, tmp_path / "fork.dat", framed(fork), FinalityError)
    assert error.code == "below_finality"
    assert error.context["offset"] == 0
    assert picture(store) == before


def test_a_fork_deeper_than_allowed_is_refused(tmp_path: Path) -> None:
    settings = holdfast.Settings(max_reorg_depth=2)
    with holdfast.open("memory:", chain=BitcoinChain("regtest"), settings=settings) as store:
        fork = bitcoin_chain(1, parent=raw_hash(CHAIN[0]), tag=70)
        error = refused(store, tmp_path / "blk.dat", framed([*CHAIN, *fork]), ReorgTooDeep)
        assert error.context["offset"] == len(GOOD)
        assert store.tip is not None
        assert store.tip.height == 4


# -- EVM ---------------------------------------------------------------------------------------------------------


def rlp_block(header: bytes) -> bytes:
    return encode_list((header, b"\xc0", b"\xc0"))


FIRST = evm_header(ZERO_HASH, 0)
SECOND = evm_header(keccak256(FIRST), 1)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (evm_header(keccak256(SECOND), 3), "height"),
        (evm_header(keccak256(SECOND), 2, transactionsRoot="0x" + "11" * 32), "transactions root"),
        (evm_header(keccak256(SECOND), 2, sha3Uncles="0x" + "11" * 32), "ommers"),
        (evm_header(keccak256(SECOND), 2)[:-1] + b"\x81", "RLP"),
    ],
    ids=["height jump", "transactions", "ommers", "bad rlp"],
)
def test_a_bad_evm_block_is_named_and_those_before_it_stay(tmp_path: Path, bad: bytes, why: str) -> None:
    path = tmp_path / "chain.rlp"
    blocks = [rlp_block(header) for header in (FIRST, SECOND, bad)]
    path.write_bytes(b"".join(blocks))
    with holdfast.open("memory:", chain=EvmChain(1)) as store:
        with pytest.raises(InvalidBlock, match=why) as caught, EvmFiles([path]) as files:
            import_files(store, files)
        assert caught.value.context["path"] == path
        assert caught.value.context["offset"] == len(blocks[0]) + len(blocks[1])
        assert store.tip is not None
        assert store.tip.height == 1


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", InvalidBlock),
        (b"GIF89a", InvalidBlock),
        (rlp_block(FIRST)[:-1], InvalidBlock),
        (rlp_block(FIRST) + b"\x05", InvalidBlock),
        (rlp_block(FIRST) + b"\xfb\x40\x00\x00\x00" + bytes(50), LimitExceeded),
        (rlp_block(FIRST) + b"\xff" * 9 + bytes(50), LimitExceeded),
        (b'{"block": {"hash": "0x', InvalidBlock),
        (b'{"block": {}}\n[]\n', InvalidBlock),
    ],
    ids=["empty", "foreign", "truncated", "no list", "1 GB", "2**64", "cut line", "no object"],
)
def test_a_bad_evm_file_is_refused_at_once(tmp_path: Path, data: bytes, kind: type[HoldfastError]) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(kind) as caught:
        EvmFiles([path])
    assert caught.value.context["path"] == path


def test_an_evm_line_that_holds_no_block(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    for line in (b"{}", b'{"block": 5}', b'{"block": {}}', b'{"a": 1]}', b'{"block": {}, "receipts": 7}'):
        path.write_bytes(line + b"\n")
        with holdfast.open("memory:", chain=EvmChain(1)) as store, EvmFiles([path]) as files:
            with pytest.raises(InvalidBlock) as caught:
                import_files(store, files)
            assert caught.value.context["path"] == path
            assert store.tip is None
