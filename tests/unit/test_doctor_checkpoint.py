"""The last rung: only a checkpoint of this chain, on its canonical branch, and sealed if the store is encrypted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import holdfast
from holdfast import ChainSpec, CustomChain
from holdfast.errors import CorruptionError, ForeignStore, KeyRequired, MissingFile
from holdfast.types import Block
from tests.unit.doctor_support import flip, holds, killed, truth
from tests.unit.store_support import chain_of, make, open_quick, quick

FIRST = "journal/0000000001.seg"
MAINNET, TESTNET = (CustomChain(ChainSpec(name="custom", id=name)) for name in ("mainnet", "testnet"))


def with_checkpoint(
    root: Path, blocks: list[Block], chain: CustomChain | None = None, key: bytes | None = None
) -> None:
    with holdfast.open(f"sqlite:{root}", settings=quick(compact="off"), chain=chain, key=key) as store:
        for block in blocks:
            store.add(block)
        if key is None:
            store.checkpoints.create()


@pytest.mark.parametrize("identity", [True, False])
def test_a_checkpoint_of_another_chain_is_not_taken(tmp_path: Path, identity: bool) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    blocks = chain_of(None, 10)
    with_checkpoint(root, blocks, MAINNET)
    shutil.rmtree(root / "checkpoints")
    with_checkpoint(other, chain_of(None, 15, "other"), TESTNET)
    shutil.copytree(other / "checkpoints", root / "checkpoints")
    killed(root)
    flip(root / FIRST, 3000)
    if not identity:
        flip(root / FIRST, 20)
        (root / "holdfast.toml").unlink()
        before = truth(root)
        with pytest.raises(MissingFile):
            holdfast.open(root, settings=quick(), chain=MAINNET, recover="checkpoint")
        assert truth(root) == before
        return
    found = holdfast.diagnose(root)
    assert [plan.rung for plan in found.others] == ["backup"]
    assert any("another chain" in reason for reason in found.reasons)
    with holdfast.open(root, settings=quick(), chain=MAINNET, recover="checkpoint") as store:
        assert store.tip is not None
        assert holds(store, blocks[: store.tip.height + 1])
    with pytest.raises(ForeignStore):
        holdfast.open(root, settings=quick(), chain=TESTNET)


@pytest.mark.parametrize("journal", [True, False])
def test_a_checkpoint_of_a_branch_that_was_given_up_is_not_taken(tmp_path: Path, journal: bool) -> None:
    """It is higher than the true tip, and higher than what the journal gives."""
    light = chain_of(None, 11, "light")
    heavy = [*light[:6]]
    with open_quick(f"sqlite:{tmp_path}", compact="off") as store:
        for block in light:
            store.add(block)
        store.checkpoints.create()
        for _ in range(4):
            heavy.append(make(heavy[-1], "heavy", work=10))
            store.add(heavy[-1])
        assert holds(store, heavy)
    killed(tmp_path)
    path = tmp_path / FIRST
    flip(path, path.stat().st_size - 1000 - 400 if journal else 200)
    found = holdfast.diagnose(tmp_path)
    assert any("its block is above the newest tip" in reason for reason in found.reasons)
    if not journal:
        assert not [plan for plan in found.others if plan.rung == "checkpoint"]
        return
    (plan,) = found.others
    assert (plan.rung, plan.height) == ("backup", 8)
    with open_quick(tmp_path, recovery="checkpoint") as store:
        assert holds(store, heavy[:9])


def test_the_blocks_of_a_reorganisation_that_is_lost_are_counted_by_hash(tmp_path: Path) -> None:
    """What stays ends higher than the true tip did; the canonical blocks at its heights are lost all the same."""
    light = chain_of(None, 11, "light")
    heavy = [*light[:6]]
    with open_quick(f"sqlite:{tmp_path}", compact="off") as store:
        for block in light:
            store.add(block)
        store.sync()
        before = (tmp_path / FIRST).read_bytes()
        for _ in range(4):
            heavy.append(make(heavy[-1], "heavy", work=10))
            store.add(heavy[-1])
    killed(tmp_path)
    (tmp_path / FIRST).write_bytes(before)
    for gone in (False, True):
        if gone:
            shutil.rmtree(tmp_path / "views")
        (plan,) = holdfast.diagnose(tmp_path).others
        assert plan.loss is not None
        assert plan.height == 10
        lost = {each.hash for each in plan.loss.names}
        assert lost <= {block.hash.hex() for block in heavy[6:]}
        assert heavy[-1].hash.hex() in lost
        assert (plan.loss.blocks, plan.loss.complete) == ((1, True) if gone else (4, True))


def test_a_checkpoint_that_nobody_knows_says_so(tmp_path: Path) -> None:
    with_checkpoint(tmp_path, chain_of(None, 10))
    shutil.rmtree(tmp_path / "views")
    (tmp_path / "watermark").unlink()
    (tmp_path / FIRST).unlink()
    (plan,) = holdfast.diagnose(tmp_path).others
    assert plan.rung == "checkpoint"
    assert plan.loss is not None
    assert not plan.loss.complete
    assert plan.loss.also.startswith("nobody knows whether block")


def test_an_encrypted_store_is_not_made_anew_on_a_plain_checkpoint(tmp_path: Path) -> None:
    root, other, key = tmp_path / "root", tmp_path / "other", bytes(range(32))
    with_checkpoint(root, chain_of(None, 10), key=key)
    with_checkpoint(other, chain_of(None, 12, "planted"))
    shutil.copytree(other / "checkpoints", root / "checkpoints", dirs_exist_ok=True)
    flip(root / FIRST, 150)
    (root / "watermark").write_bytes(b"x")
    before = truth(root)
    for error, attempt in (
        (KeyRequired, lambda: holdfast.repair(root, recover="checkpoint")),
        (CorruptionError, lambda: holdfast.repair(root, recover="checkpoint", store_key=key)),
        (CorruptionError, lambda: holdfast.open(root, settings=quick(), key=key, recover="checkpoint")),
    ):
        with pytest.raises(error):
            attempt()
        assert truth(root) == before
    assert not holdfast.diagnose(root).others
