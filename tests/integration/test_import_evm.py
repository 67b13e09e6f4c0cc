"""Recorded EVM chains into a store: a real anvil with its branches, and blocks made by geth."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import zstandard

import holdfast
from holdfast.chains.evm import EvmChain, EvmFiles, genesis_block
from holdfast.chains.evm.codec import encode_list, keccak256
from holdfast.chains.importing import ImportReport, import_files
from holdfast.errors import ConflictError
from holdfast.types import ZERO_HASH, BlockStatus
from tests.import_makers import SAMPLES, evm_header

ANVIL = SAMPLES / "anvil.jsonl.zst"


def lines() -> list[str]:
    with ANVIL.open("rb") as packed:
        return zstandard.ZstdDecompressor().stream_reader(packed).read().decode().splitlines()


def run(store: holdfast.Store, *paths: Path, base_height: int | None = None) -> ImportReport:
    with EvmFiles(paths) as files:
        return import_files(store, files, base_height=base_height)


def shape(store: holdfast.Store) -> list[tuple[int, int, str]]:
    return sorted((tip.height, tip.branch_length, tip.status) for tip in store.blocks.tips())


@pytest.mark.slow
def test_the_recorded_chain_has_its_branches(tmp_path: Path) -> None:
    with holdfast.open(tmp_path / "store", chain=EvmChain(31337)) as store:
        report = run(store, ANVIL)
        assert (report.found, report.added, report.side, report.reorgs) == (519, 519, 8, 1)
        assert shape(store) == [(508, 5, "fork"), (510, 0, "active"), (510, 3, "fork")]
        records = [json.loads(line) for line in lines()]
        by_branch = {name: [r for r in records if r["branch"] == name] for name in ("main", "A", "B", "C")}
        assert [len(by_branch[name]) for name in ("main", "A", "B", "C")] == [504, 5, 7, 3]
        for name, status in (
            ("main", BlockStatus.CANONICAL),
            ("A", BlockStatus.ORPHANED),
            ("B", BlockStatus.CANONICAL),
            ("C", BlockStatus.ORPHANED),
        ):
            for record in by_branch[name]:
                assert store.blocks.status(bytes.fromhex(record["block"]["hash"][2:])) is status
        tip = store.blocks.at(100)
        assert tip is not None
        assert json.loads(store.blocks.extra(tip) or b"") == by_branch["main"][100]["receipts"]
        assert run(store, ANVIL).known == 519


@pytest.mark.slow
def test_the_recorded_chain_in_another_order(tmp_path: Path) -> None:
    scrambled = lines()
    random.Random(4).shuffle(scrambled)
    path = tmp_path / "scrambled.jsonl"
    path.write_text("\n".join(scrambled) + "\n\n")
    with holdfast.open("memory:", chain=EvmChain(31337)) as store:
        assert run(store, path).added == 519
        assert [height for height, _, _ in shape(store)] == [508, 510, 510]


@pytest.mark.slow
@pytest.mark.data
def test_three_thousand_blocks_of_geth(shared_data: Path) -> None:
    first = genesis_block(json.loads((shared_data / "evm/geth-3000.genesis.json").read_text()))
    path = shared_data / "evm/geth-3000.rlp.zst"
    with holdfast.open("memory:", chain=EvmChain(19763, first=first)) as store:
        report = run(store, path)
        assert (report.found, report.added, report.side) == (3000, 3000, 0)
        assert shape(store) == [(3000, 0, "active")]
        assert store.tip is not None
        assert store.tip.total_work > 3000 * 100_000
    with holdfast.open("memory:", chain=EvmChain(19763)) as store:
        assert run(store, path, base_height=1).added == 3000


def test_uncles_are_kept_as_orphan_headers(tmp_path: Path) -> None:
    hard: dict[str, Any] = {"difficulty": "0x20000"}
    root = evm_header(ZERO_HASH, 0, **hard)
    one = evm_header(keccak256(root), 1, **hard)
    uncle = evm_header(keccak256(root), 1, tag=9, difficulty="0x1ffff")
    strange = evm_header(b"\x66" * 32, 1, **hard)
    ommers = encode_list((uncle, strange))
    two = evm_header(keccak256(one), 2, sha3Uncles="0x" + keccak256(ommers).hex(), **hard)
    path = tmp_path / "chain.rlp"
    path.write_bytes(
        b"".join(encode_list((h, b"\xc0", o)) for h, o in ((root, b"\xc0"), (one, b"\xc0"), (two, ommers)))
    )
    with holdfast.open("memory:", chain=EvmChain()) as store:
        report = run(store, path)
        assert (report.found, report.added, report.uncles, report.uncles_skipped) == (3, 4, 1, 1)
        info = store.blocks.get(keccak256(uncle))
        assert info is not None
        assert store.blocks.status(info.hash) is BlockStatus.ORPHANED
        assert (store.blocks.header(info), store.blocks.body(info)) == (uncle, None)
        assert shape(store) == [(1, 1, "fork"), (2, 0, "active")]
        again = run(store, path)
        assert (again.added, again.known) == (0, 4)


def test_bare_blocks_and_rpc_answers_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    blocks = [json.loads(line)["block"] for line in lines()[:4]]
    path.write_text("".join(json.dumps(item) + "\r\n" for item in (*blocks[:2], *({"result": b} for b in blocks[2:]))))
    with holdfast.open("memory:", chain=EvmChain(31337)) as store:
        assert run(store, path).added == 4
        assert store.tip is not None
        assert store.blocks.extra(store.tip) is None


def test_a_base_that_the_first_block_contradicts_is_refused(tmp_path: Path) -> None:
    late = [line for line in lines() if json.loads(line)["branch"] == "main"][100:110]
    height = int(json.loads(late[0])["block"]["number"], 16)
    path = tmp_path / "late.jsonl"
    path.write_text("\n".join(late) + "\n")
    with holdfast.open("memory:", chain=EvmChain(31337)) as store:
        with pytest.raises(ConflictError, match="another height than the stated base"):
            run(store, path, base_height=height + 1)
        assert store.tip is None
        assert run(store, path, base_height=height).added == 10
