"""Block files of Bitcoin into a store: real chains with the node's own answers, any order, resumed, above a base."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast.chains.bitcoin import BitcoinChain, BlockFiles, display_hash
from holdfast.chains.importing import ImportProgress, ImportReport, import_files
from holdfast.errors import ConflictError, InvalidInputError, ParentUnknown
from tests.import_makers import REGTEST, SAMPLES, bitcoin_block, bitcoin_chain, framed, raw_hash

LITECOIN = SAMPLES / "litecoin-regtest-blk00000.dat.zst"


@pytest.fixture
def store() -> Iterator[holdfast.Store]:
    with holdfast.open("memory:", chain=BitcoinChain("regtest")) as opened:
        yield opened


def run(store: holdfast.Store, paths: list[Path], network: str = "regtest", **options: Any) -> ImportReport:
    with BlockFiles(paths, network) as files:
        return import_files(store, files, **options)


def files_of(tmp_path: Path, *groups: list[bytes]) -> list[Path]:
    paths = [tmp_path / f"blk{number:05}.dat" for number in range(len(groups))]
    for path, group in zip(paths, groups, strict=True):
        path.write_bytes(framed(group))
    return paths


def tips(store: holdfast.Store) -> list[tuple[int, str, int, str]]:
    return sorted((tip.height, display_hash(tip.hash), tip.branch_length, tip.status) for tip in store.blocks.tips())


# -- real chains -------------------------------------------------------------------------------------------------


def litecoin_tips() -> list[tuple[int, str, int, str]]:
    answer = json.loads((SAMPLES / "litecoin-regtest.chaintips.json").read_text())
    status = {"active": "active", "valid-fork": "fork"}
    return sorted((tip["height"], tip["hash"], tip["branchlen"], status[tip["status"]]) for tip in answer)


@pytest.mark.slow
def test_the_tips_are_those_that_the_node_listed(tmp_path: Path) -> None:
    chain = BitcoinChain("litecoin-regtest")
    with holdfast.open(tmp_path / "store", chain=chain) as store:
        report = run(store, [LITECOIN], "litecoin-regtest")
        assert (report.found, report.added, report.known) == (1151, 1151, 0)
        assert tips(store) == litecoin_tips()
    with holdfast.open(tmp_path / "store", chain=chain) as store:
        assert tips(store) == litecoin_tips()
        again = run(store, [LITECOIN], "litecoin-regtest")
        assert (again.added, again.known) == (0, 1151)
        assert tips(store) == litecoin_tips()


@pytest.mark.slow
def test_an_import_stopped_again_and_again_ends_the_same(tmp_path: Path) -> None:
    chain = BitcoinChain("litecoin-regtest")
    rounds = 0
    while True:
        with holdfast.open(tmp_path / "store", chain=chain) as store:
            left = iter(range(5 + 4 * rounds))
            report = run(store, [LITECOIN], "litecoin-regtest", stop=lambda left=left: next(left, None) is None)
            rounds += 1
            if not report.stopped:
                assert tips(store) == litecoin_tips()
                break
            assert store.blocks.tips()[0].height < 1060
    assert rounds >= 3


@pytest.mark.data
@pytest.mark.parametrize("base", [None, 1], ids=["genesis", "base"])
def test_the_first_blocks_of_the_main_network(shared_data: Path, base: int | None) -> None:
    path = shared_data / "bitcoin/mainnet-1-255.bz2"
    with holdfast.open("memory:", chain=BitcoinChain("main", from_base=base is not None)) as store:
        report = run(store, [path], "main", base_height=base)
        assert (report.found, report.added, report.side) == (255, 255, 0)
        assert store.tip is not None
        assert store.tip.height == 255
        block_170 = store.blocks.at(170)
        assert block_170 is not None
        assert display_hash(block_170.hash) == "00000000d1145790a8694403d4063f323d499e655c83426834d4ce2f8dd4a2ee"
        assert (store.blocks.at(0) is None) == (base is not None)


@pytest.mark.data
def test_the_reorganisation_set_in_every_order(shared_data: Path) -> None:
    paths = [shared_data / f"bitcoin/{name}.dat.bz2" for name in ("blk_0_to_4", "blk_3A", "blk_4A", "blk_5A")]
    for order in itertools.permutations(paths):
        with holdfast.open("memory:", chain=BitcoinChain("main")) as store:
            report = run(store, list(order), "main")
            assert (report.found, report.added, report.known) == (8, 7, 1)
            found = tips(store)
            assert [(height, length, status) for height, _, length, status in found] == [
                (4, 2, "fork"),
                (5, 0, "active"),
            ]
            assert len(list(store.blocks.orphans())) == 2


# -- order, duplicates, resuming ---------------------------------------------------------------------------------


def test_blocks_in_any_order_are_connected(store: holdfast.Store, tmp_path: Path) -> None:
    chain = bitcoin_chain(30)
    scrambled = [chain[(7 * number + 11) % 30] for number in range(30)]
    report = run(store, files_of(tmp_path, scrambled[:9], scrambled[9:]))
    assert (report.found, report.added, report.unconnected) == (30, 30, 0)
    assert store.tip is not None
    assert (store.tip.hash, store.tip.height) == (raw_hash(chain[-1]), 30)


def test_the_stored_block_is_the_one_in_the_file(store: holdfast.Store, tmp_path: Path) -> None:
    chain = bitcoin_chain(5)
    run(store, files_of(tmp_path, chain))
    for number, raw in enumerate(chain, start=1):
        info = store.blocks.at(number)
        assert info is not None
        assert store.blocks.header(info) + (store.blocks.body(info) or b"") == raw


def test_duplicates_are_counted(store: holdfast.Store, tmp_path: Path) -> None:
    chain = bitcoin_chain(4)
    report = run(store, files_of(tmp_path, [REGTEST.genesis, *chain, chain[1]], chain))
    assert (report.found, report.added, report.known) == (10, 4, 6)


def test_forks_are_kept_and_the_heavier_wins(store: holdfast.Store, tmp_path: Path) -> None:
    trunk = bitcoin_chain(4)
    branch = bitcoin_chain(5, parent=raw_hash(trunk[1]), tag=100)
    report = run(store, files_of(tmp_path, trunk, branch))
    assert (report.added, report.side, report.reorgs) == (9, 2, 1)
    assert [(height, length, status) for height, _, length, status in tips(store)] == [(4, 2, "fork"), (7, 0, "active")]


def test_progress_rises_to_the_end_and_batches_are_bounded(store: holdfast.Store, tmp_path: Path) -> None:
    seen: list[ImportProgress] = []
    paths = files_of(tmp_path, bitcoin_chain(20))
    run(store, paths, progress=seen.append, batch_blocks=3)
    assert [item.blocks_done for item in seen] == [3, 6, 9, 12, 15, 18, 20]
    assert seen[-1].blocks_total == 20
    assert seen[-1].bytes_done == seen[-1].bytes_total
    assert seen[-1].tip_height == 20
    with holdfast.open("memory:", chain=BitcoinChain("regtest")) as other:
        small: list[ImportProgress] = []
        run(other, paths, progress=small.append, batch_bytes=1)
        assert len(small) == 20


def test_a_stopped_import_says_so_and_goes_on(store: holdfast.Store, tmp_path: Path) -> None:
    paths = files_of(tmp_path, bitcoin_chain(20))
    calls = itertools.count()
    report = run(store, paths, batch_blocks=4, stop=lambda: next(calls) == 2)
    assert (report.stopped, report.added) == (True, 8)
    assert run(store, paths, stop=lambda: True).stopped
    report = run(store, paths)
    assert (report.stopped, report.added, report.known) == (False, 12, 8)


# -- bases -------------------------------------------------------------------------------------------------------


def test_above_a_stated_base_in_any_order(tmp_path: Path) -> None:
    chain = bitcoin_chain(6, parent=b"\7" * 32)
    paths = files_of(tmp_path, chain[3:], chain[:3])
    with holdfast.open("memory:", chain=BitcoinChain("regtest", from_base=True)) as store:
        assert run(store, paths, base_height=500).added == 6
        assert store.tip is not None
        assert store.tip.height == 505
        again = run(store, paths, base_height=500)
        assert (again.added, again.known) == (0, 6)
        assert run(store, paths).known == 6


def test_several_candidates_for_a_base_are_refused(tmp_path: Path) -> None:
    paths = files_of(tmp_path, bitcoin_chain(2, parent=b"\7" * 32), bitcoin_chain(2, parent=b"\x08" * 32))
    with holdfast.open("memory:", chain=BitcoinChain("regtest", from_base=True)) as store:
        with pytest.raises(ConflictError, match="base"):
            run(store, paths, base_height=500)
        assert store.tip is None


def test_bad_arguments(store: holdfast.Store, tmp_path: Path) -> None:
    paths = files_of(tmp_path, bitcoin_chain(1))
    for name, value in (("base_height", -1), ("batch_blocks", 0), ("batch_bytes", 0)):
        with pytest.raises(InvalidInputError):
            run(store, paths, "regtest", **{name: value})


def test_blocks_without_ancestors_are_reported_after_the_others(store: holdfast.Store, tmp_path: Path) -> None:
    chain = bitcoin_chain(6)
    lost = bitcoin_block(b"\x55" * 32, 1)
    paths = files_of(tmp_path, [*chain[:2], lost, *chain[3:]])
    with pytest.raises(ParentUnknown) as caught:
        run(store, paths)
    context = caught.value.context
    assert (context["found"], context["missing_parent"], context["blocks_stored"]) == (4, b"\x55" * 32, 2)
    assert context["offset"] == len(framed(chain[:2]))
    assert store.tip is not None
    assert store.tip.height == 2
    assert run(store, files_of(tmp_path, chain)).added == 4
