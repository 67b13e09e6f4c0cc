"""JSON export and import: 17 fields, exact round trips, strict reading, damaged files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from holdfast.chains.pow import PowParameters
from holdfast.chains.pow.blockchain import Blockchain, ChainConfig
from holdfast.chains.pow.json_format import MinerBlock, read_records
from holdfast.config import Settings
from holdfast.errors import InvalidBlock, InvalidInputError, ParentUnknown, StoreExists
from tests.integration.pow_tools import EASY, START, easy, grow, mined

FIELDS = [
    *("hash", "index", "epoch", "timestamp", "previous_hash", "data_hash", "nonce", "difficulty"),
    *("nominated_peer_id", "miner_number", "is_canonical", "is_orphaned", "seen_at", "orphaned_at"),
    *("orphan_reason", "height_at_time", "competing_hash"),
]


def export(chain: Blockchain, *, lines: bool = False) -> str:
    out = io.StringIO()
    chain.to_json(out, lines=lines)
    return out.getvalue()


def imported(text: str, target: str = "memory:") -> Blockchain:
    return Blockchain.from_json(io.StringIO(text), target, ChainConfig(EASY))


def later(chain: Blockchain, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's clock moves on by an hour, so that an import has other times than the export."""
    import time

    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 3_600_000_000_000)


def tangled() -> Blockchain:
    """A chain with everything: reorgs there and back, ties, a marked tip, a marked branch that outweighs the chain."""
    chain = easy()
    root = grow(chain, chain.tip, 3, peer="main")
    a = grow(chain, root, 2, peer="a")
    b = grow(chain, root, 3, peer="b")
    a = grow(chain, a, 3, peer="a")
    assert chain.tip == a
    grow(chain, b, 1, peer="b")
    tip = grow(chain, a, 2, peer='a \u00e9"\\]{' + "[" * 90)
    heavy = grow(chain, tip, 3, peer="marked")
    first = chain.store.blocks.ancestor(heavy, tip.height + 1)
    assert first is not None
    chain.mark_block_orphaned(first.hash, "marked \u00fc by hand", b.hash)
    assert chain.tip == tip
    chain.add_block(mined(chain, tip, tip.time, peer="last"))
    chain.mark_block_orphaned(chain.tip.hash, "marked too")
    return chain


def test_fields_are_those_of_the_seed() -> None:
    assert [field.name for field in fields(MinerBlock)] == FIELDS
    with easy() as chain:
        chain.mine_block("a", 2**64 - 1)
        genesis, block = json.loads(export(chain))
    assert list(block) == FIELDS
    assert (block["index"], block["epoch"], block["timestamp"]) == (1, 0, START)
    assert block["miner_number"] == 2**64 - 1
    assert isinstance(block["nonce"], str)
    assert block["difficulty"] == "1"
    assert (block["is_canonical"], block["is_orphaned"], block["height_at_time"]) == (True, False, 1)
    assert isinstance(block["seen_at"], int)
    assert block["previous_hash"] == genesis["hash"]
    assert genesis["previous_hash"] == "0" * 64
    assert genesis["seen_at"] is None


@pytest.mark.parametrize("lines", [False, True])
def test_round_trip_is_exact(lines: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with tangled() as chain:
        text = export(chain, lines=lines)
        tip = chain.tip.hash
        reasons = {record.orphan_reason for record in chain.orphaned_blocks()}
        assert "marked \u00fc by hand" in reasons
        assert len(reasons) >= 4
        later(chain, monkeypatch)
    with imported(text) as copy:
        assert copy.tip.hash == tip
        again = export(copy, lines=lines)
        assert again == text
        assert copy.validate_chain().ok
        with imported(again) as third:
            assert export(third, lines=lines) == text
    assert text.isascii()


def test_round_trip_over_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tangled() as chain:
        text = export(chain)
        later(chain, monkeypatch)
    url = f"sqlite:{tmp_path / 'copy'}"
    imported(text, url).close()
    with easy(url) as copy:
        assert export(copy) == text


def test_round_trip_of_several_runs_and_epochs() -> None:
    with easy() as chain:
        grow(chain, chain.tip, 90)
        text = export(chain)
        with imported(text) as copy:
            assert export(copy) == text
            assert copy.height == 90


def test_own_records_count_once_the_copy_moves_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """An imported orphan that returns, and is orphaned again here, has this store's reason and time."""
    with easy() as chain:
        root = chain.tip
        grow(chain, root, 2, peer="main")
        side = grow(chain, root, 1, peer="side")
        text = export(chain)
        before = chain.get_miner_block(side.hash)
        later(chain, monkeypatch)
    assert before is not None
    with imported(text) as copy:
        assert copy.get_miner_block(side.hash) == before
        copy.store.reorg(side.hash, reason="test")
        back = copy.get_miner_block(side.hash)
        assert back is not None
        assert (back.is_canonical, back.orphan_reason, back.seen_at) == (True, None, before.seen_at)
        copy.mark_block_orphaned(side.hash, "again", root.hash)
        final = copy.get_miner_block(side.hash)
        assert final is not None
        assert (final.orphan_reason, final.competing_hash) == ("again", root.hash.hex())
        assert final.orphaned_at is not None
        assert before.orphaned_at is not None
        assert final.orphaned_at >= before.orphaned_at + 3600
        own = copy.mine_block("new", 1)
        record = copy.get_miner_block(own.hash)
        assert record is not None
        assert record.seen_at is not None


def test_import_needs_a_new_store() -> None:
    with easy() as chain:
        chain.mine_block("a", 1)
        text = export(chain)
        with pytest.raises(StoreExists):
            Blockchain.from_json(io.StringIO(text), chain.store, chain.config)
        chain.mark_block_orphaned(chain.tip.hash, "r")
        with pytest.raises(StoreExists):
            Blockchain.from_json(io.StringIO(text), chain.store, chain.config)


def test_import_of_another_network_is_refused() -> None:
    with easy() as chain:
        text = export(chain)
    other = ChainConfig(PowParameters(initial_difficulty=2))
    with pytest.raises(InvalidBlock, match="genesis"):
        Blockchain.from_json(io.StringIO(text), "memory:", other)


def test_export_is_of_one_moment() -> None:
    with easy() as chain:
        chain.mine_block("a", 1)

        class Moving(io.StringIO):
            def write(self, text: str) -> int:
                if "hash" in text and chain.height == 1:
                    chain.mine_block("b", 2)
                return super().write(text)

        before, out = export(chain), Moving()
        chain.to_json(out)
        assert chain.height == 2
        assert out.getvalue() == before


@pytest.fixture(scope="module")
def records() -> list[dict[str, object]]:
    """genesis, 1 main, 1 side, 2, 3"""
    with easy() as chain:
        root = chain.tip
        tip = grow(chain, root, 1, peer="main")
        chain.add_block(mined(chain, root, START, peer="side"))
        grow(chain, tip, 2, peer="main")
        return list(json.loads(export(chain)))


def changed(**values: object) -> Callable[[list[dict[str, object]]], object]:
    def change(found: list[dict[str, object]]) -> object:
        return [found[0], {**found[1], **values}, *found[2:]]

    return change


@pytest.mark.parametrize(
    "change",
    [
        changed(index=2),
        changed(index=True),
        changed(index=1.0),
        changed(index="1"),
        changed(epoch=1),
        changed(timestamp=START),
        changed(hash="00" * 32),
        changed(hash="AB" * 32),
        changed(hash=None),
        changed(previous_hash="0"),
        changed(data_hash="11" * 32),
        changed(nonce=5),
        changed(nonce="05"),
        changed(nonce="+5"),
        changed(nonce="\u0665"),
        changed(nonce="9" * 40),
        changed(difficulty="0"),
        changed(difficulty="2"),
        changed(nominated_peer_id="other"),
        changed(nominated_peer_id="\ud800"),
        changed(miner_number=1),
        changed(miner_number=-1),
        changed(is_canonical=False),
        changed(is_canonical=1),
        changed(is_orphaned=True),
        changed(is_orphaned=True, is_canonical=False),
        changed(is_orphaned=True, is_canonical=False, orphan_reason="r"),
        changed(orphan_reason="r"),
        changed(orphaned_at=1),
        changed(orphaned_at=1, orphan_reason="r"),
        changed(seen_at=-1),
        changed(height_at_time=2),
        changed(height_at_time=None),
        changed(competing_hash="ab" * 32),
        changed(more=1),
        lambda found: [found[0], {name: value for name, value in found[1].items() if name != "epoch"}, *found[2:]],
        lambda found: [found[0], found[1], found[1], *found[2:]],
        lambda found: [found[0], found[1], found[2], found[2], *found[3:]],
        lambda found: [found[0], found[2], found[1], *found[3:]][:1] + found[3:],
        lambda found: found[1:],
        lambda found: [found[0], [], *found[1:]],
        lambda found: {"blocks": found},
    ],
)
def test_bad_records_are_refused(
    records: list[dict[str, object]], change: Callable[[list[dict[str, object]]], object]
) -> None:
    with pytest.raises((InvalidBlock, InvalidInputError)):
        imported(json.dumps(change(records))).close()


def test_unchanged_records_are_accepted(records: list[dict[str, object]]) -> None:
    """The control of the test above, in whatever layout."""
    for text in (json.dumps(records), json.dumps(records, indent=3), "\n".join(map(json.dumps, records))):
        with imported(text) as chain:
            assert chain.height == 3


def test_side_block_before_its_parent_is_refused(records: list[dict[str, object]]) -> None:
    with easy() as chain:
        root = chain.tip
        grow(chain, root, 3, peer="main")
        grow(chain, root, 2, peer="side")
        found = json.loads(export(chain))
    missing = [record for record in found if not (record["nominated_peer_id"] == "side" and record["index"] == 1)]
    with pytest.raises(ParentUnknown):
        imported(json.dumps(missing))


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "[{",
        "]",
        "{}",
        "[{}]",
        "nonsense",
        "[1]",
        "[NaN]",
        "[{} {}]",
        '{"hash": 1, "hash": 2}',
        '{"index": 1.5}',
        '{"index": NaN}',
        '{"index": ' + "9" * 5000 + "}",
        "[" * 100_000,
        '{"a":' * 10_000,
        '{"hash": "' + "x" * 200_000,
    ],
)
def test_bad_files_are_refused(text: str) -> None:
    with pytest.raises((InvalidBlock, InvalidInputError)):
        list(read_records(io.StringIO(text)))


def test_a_cut_array_is_noticed_at_every_character(records: list[dict[str, object]]) -> None:
    text = json.dumps(records[:2])
    assert len(list(read_records(io.StringIO(text)))) == 2
    for end in range(1, len(text)):
        with pytest.raises((InvalidBlock, InvalidInputError)):
            list(read_records(io.StringIO(text[:end])))


def test_text_after_the_array_is_refused(records: list[dict[str, object]]) -> None:
    with pytest.raises(InvalidInputError):
        list(read_records(io.StringIO(json.dumps(records) + "[]")))


def test_reading_is_the_same_whatever_the_pieces(records: list[dict[str, object]]) -> None:
    class Slow(io.StringIO):
        def read(self, size: int | None = -1) -> str:
            return super().read(7)

    text = json.dumps(records, indent=1)
    assert list(read_records(Slow(text))) == list(read_records(io.StringIO(text)))


@pytest.mark.parametrize("text", ["", " \n", "[]"])
def test_a_file_without_records_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="no records"):
        imported(text)


def test_a_field_named_twice_is_refused(records: list[dict[str, object]]) -> None:
    text = json.dumps(records[0])
    twice = text[:-1] + ', "index": 0}'
    assert json.loads(twice) == records[0]
    with pytest.raises(InvalidBlock, match="twice"):
        list(read_records(io.StringIO(twice)))


def test_a_branch_that_was_ahead_waits_until_it_is_overtaken() -> None:
    """Blocks 40..42 of the fast branch have double work. No reorganisation, and added while 20 may still be forked."""
    with easy() as chain:
        fork = grow(chain, chain.tip, 20)
        fast = grow(chain, grow(chain, fork, 19, seconds=0, peer="fast"), 3, peer="fast")
        slow = grow(chain, fork, 60, peer="slow")
        assert chain.tip == slow
        assert fast.total_work > fork.total_work + 22 * slow.work
        text = export(chain)
    shallow = Settings(max_reorg_depth=30)
    with Blockchain.from_json(io.StringIO(text), "memory:", ChainConfig(EASY), settings=shallow) as copy:
        assert export(copy) == text
        assert copy.store.blocks.statistics()["reorgs"] == 0
