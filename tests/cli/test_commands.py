"""What each command answers, in JSON and for people."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import zstandard

import holdfast as api
from tests.cli.cli_tools import ANVIL, LITECOIN, SAMPLES, done, holdfast


def recorded_blocks() -> list[tuple[str, dict[str, str]]]:
    with ANVIL.open("rb") as file:
        text = zstandard.ZstdDecompressor().stream_reader(file).read().decode("ascii")
    records = [json.loads(line) for line in text.splitlines()]
    return [(record["branch"], record["block"]) for record in records]


def test_init_makes_a_store_with_its_genesis_block(tmp_path: Path) -> None:
    answer = done("init", "-d", tmp_path / "s", "--chain", "pow", "--engine", "sqlite", "--json").record
    assert (answer["chain"], answer["engine"]) == ("pow", "sqlite")
    assert answer["tip"]["height"] == 0  # type: ignore[index]
    with api.open(tmp_path / "s", create=False) as store:
        assert store.engine == "sqlite"
        assert store.tip is not None


def test_mined_blocks_are_there_afterwards(pow_store: Path) -> None:
    before = done("tip", "-d", pow_store, "--json").record
    mined = done("mine", "-d", pow_store, "-n", "3", "--peer", "bob", "--json").record
    after = done("tip", "-d", pow_store, "--json").record
    assert mined["mined"] == 3
    assert after["height"] == int(str(before["height"])) + 3
    assert [row["height"] for row in done("blocks", "-d", pow_store, "--producer", "bob", "--json").rows] == [
        46,
        47,
        48,
    ]


def test_blocks_can_be_chosen_by_height_time_epoch_and_producer(pow_store_made: Path) -> None:
    def heights(*args: str) -> list[object]:
        return [row["height"] for row in done("blocks", "-d", pow_store_made, "--json", *args).rows]

    assert heights("--from", "3", "--to", "5") == [3, 4, 5]
    assert heights("--limit", "2", "--reverse") == [45, 44]
    assert heights("--epoch", "1") == [40, 41, 42, 43, 44, 45]
    assert heights("--epoch", "1", "--to", "41") == [40, 41]
    assert heights("--limit", "0") == list(range(46))
    assert heights("--limit", "0", "--since", "2020-01-01") == list(range(1, 46))
    assert heights("--limit", "0", "--until", "2020-01-01T00:00:00+00:00") == [0]
    assert heights("--producer", "nobody") == []
    assert heights("--producer", "alice", "--until", "2020-01-01") == []
    assert heights("--producer", "alice", "--from", "44", "--reverse") == [45, 44]


def test_a_block_is_shown_by_hash_and_by_height(pow_store_made: Path) -> None:
    by_height = done("show", "7", "-d", pow_store_made, "--json").record
    by_hash = done("show", str(by_height["hash"]), "-d", pow_store_made, "--json").record
    assert by_hash == by_height
    assert by_height["status"] == "canonical"
    assert by_height["producer"] == "alice"
    raw = done("show", "7", "-d", pow_store_made, "--raw", "header").out.strip()
    assert len(bytes.fromhex(raw)) == by_height["header_bytes"]
    assert f"hash           {by_height['hash']}\n" in done("show", "7", "-d", pow_store_made).out


def test_an_epoch_shows_its_nominations_once_it_is_complete(pow_store_made: Path) -> None:
    complete = done("epoch", "0", "-d", pow_store_made, "--json").record
    assert complete["complete"] is True
    nominations = complete["nominations"]
    assert isinstance(nominations, list)
    assert sorted(row["height"] for row in nominations) == list(range(40))
    with api.open(pow_store_made, create=False, read_only=True) as store:
        from holdfast.chains.pow.nominations import shuffled_nominations
        from holdfast.chains.pow.persistence import read_block

        order = shuffled_nominations([read_block(store, info) for info in store.blocks.epoch(0)])
    assert order is not None
    assert [row["height"] for row in nominations] == [item.index for item in order]
    partial = done("epoch", "1", "-d", pow_store_made, "--json").record
    assert (partial["blocks"], partial["complete"], partial["nominations"]) == (6, False, None)


def test_imported_tips_are_the_nodes_own(tmp_path: Path) -> None:
    report = done("import", "bitcoin", LITECOIN, "-d", tmp_path / "s", "--json").record
    assert (report["found"], report["added"], report["known"]) == (1151, 1151, 0)
    assert "scrypt" in str(report["notes"])
    node = json.loads((SAMPLES / "litecoin-regtest.chaintips.json").read_text())
    status = {"active": "active", "valid-fork": "fork"}
    expected = [
        {
            "hash": tip["hash"],
            "height": tip["height"],
            "branch_length": tip["branchlen"],
            "status": status[tip["status"]],
        }
        for tip in node
    ]
    assert done("tips", "-d", tmp_path / "s", "--json").rows == expected


def test_every_recorded_evm_block_is_canonical_or_orphan(evm_store_made: Path) -> None:
    blocks = recorded_blocks()
    parents = {block["hash"]: block["parentHash"] for _, block in blocks}
    orphans = {row["hash"] for row in done("orphans", "-d", evm_store_made, "--json").rows}
    canonical = {row["hash"] for row in done("blocks", "-d", evm_store_made, "--limit", "0", "--json").rows}
    assert orphans | canonical == set(parents)
    assert not orphans & canonical
    tips = {row["hash"] for row in done("tips", "-d", evm_store_made, "--json").rows}
    assert tips == set(parents) - set(parents.values())


def test_an_import_again_adds_nothing(evm_store: Path) -> None:
    report = done("import", "evm", ANVIL, "-d", evm_store, "--json").record
    assert (report["added"], report["known"]) == (0, 519)


def test_a_reorg_moves_the_tip_and_keeps_its_reason(evm_store: Path) -> None:
    tips = done("tips", "-d", evm_store, "--json").rows
    fork = next(row for row in tips if row["status"] == "fork" and row["height"] == 510)
    moved = done("reorg", "--to", str(fork["hash"]), "--reason", "a test", "-d", evm_store, "--json").record
    assert (moved["changed"], moved["tip"], moved["old_tip"]) == (True, fork["hash"], tips[0]["hash"])
    assert done("tip", "-d", evm_store, "--json").record["hash"] == fork["hash"]
    old = done("show", str(tips[0]["hash"]), "-d", evm_store, "--json").record
    assert old["status"] == "orphaned"
    assert old["orphaned"]["reason"] == "a test"  # type: ignore[index]
    again = done("reorg", "--to", str(fork["hash"]), "-d", evm_store, "--json").record
    assert again["changed"] is False


def test_an_orphaned_tip_gives_way_to_its_parent(pow_store: Path) -> None:
    tip = done("tip", "-d", pow_store, "--json").record
    moved = done("orphan", str(tip["hash"]), "--reason", "bad day", "-d", pow_store, "--json").record
    assert moved["tip"] == tip["parent"]
    assert done("orphan", str(tip["hash"]), "--reason", "again", "-d", pow_store, "--json").record["changed"] is False
    (row,) = done("orphans", "-d", pow_store, "--json").rows
    assert (row["hash"], row["reason"], row["was_canonical"]) == (tip["hash"], "bad day", True)


def test_finalize_is_kept_and_refuses_to_go_back(pow_store: Path) -> None:
    assert done("finalize", "30", "-d", pow_store, "--json").record["finalized"] == 30
    assert done("tip", "-d", pow_store, "--json").record["finalized"] == 30
    refused = holdfast("orphan", "29", "--reason", "x", "-d", pow_store, "--json")
    assert (refused.code, refused.error["code"]) == (11, "below_finality")


@pytest.mark.parametrize("level", ["quick", "links", "state", "views", "full"])
def test_a_sound_store_verifies(pow_store_made: Path, level: str) -> None:
    report = done("verify", "--level", level, "-d", pow_store_made, "--json").record
    assert report["ok"] is True
    assert report["level"] == level
    assert "sound at level" in done("verify", "--level", level, "-d", pow_store_made).out


def test_a_verification_goes_on_where_an_earlier_one_was(pow_store_made: Path, tmp_path: Path) -> None:
    command = ("verify", "-d", pow_store_made, "--resume", tmp_path / "seen.json", "--jobs", "2", "--json")
    first, again = done(*command).record, done(*command).record
    assert (first["notes"], first["ok"], again["ok"]) == ([], True, True)
    assert "found sound by an earlier run" in str(again["notes"])
    assert holdfast("verify", "-d", pow_store_made, "--jobs", "0").code == 2


def test_a_flipped_byte_is_found_and_named(pow_store: Path) -> None:
    segment = sorted((pow_store / "journal").glob("*.seg"))[0]
    data = bytearray(segment.read_bytes())
    data[200] ^= 1
    segment.write_bytes(data)
    answer = holdfast("verify", "-d", pow_store, "--json")
    assert answer.code == 3
    assert answer.record["ok"] is False
    problems = answer.record["problems"]
    assert isinstance(problems, list)
    assert (problems[0]["code"], problems[0]["place"]["segment"]) == ("corruption", int(segment.stem))
    assert "next: " in holdfast("verify", "-d", pow_store).out


def test_views_are_rebuilt_and_converted(pow_store: Path) -> None:
    before = done("blocks", "-d", pow_store, "--limit", "0", "--json").rows
    converted = done("convert", "--to", "sqlite", "-d", pow_store, "--json").record
    assert (converted["engine_before"], converted["engine"]) == ("rocksdb", "sqlite")
    assert done("rebuild", "-d", pow_store, "--json").record["engine"] == "sqlite"
    assert done("blocks", "-d", pow_store, "--limit", "0", "--json").rows == before


def test_stats_count_what_is_there(evm_store_made: Path) -> None:
    stats = done("stats", "-d", evm_store_made, "--json").record
    assert stats["chain"]["blocks"] == 519  # type: ignore[index]
    assert stats["chain"]["orphans"] == 8  # type: ignore[index]
    assert stats["store"]["read_only"] is True  # type: ignore[index]
    assert "blocks" in done("stats", "-d", evm_store_made).out


def test_the_journal_is_shown_without_a_lock(pow_store_made: Path) -> None:
    with api.open(pow_store_made, create=False) as store:
        whole = done("journal", "inspect", "-d", pow_store_made, "--json").record
        segments = whole["segments"]
        assert isinstance(segments, list)
        assert sum(row["frames"] for row in segments) == whole["watermark"]["durable_seq"]  # type: ignore[index]
        rows = done("journal", "inspect", "--segment", "1", "-d", pow_store_made, "--json").rows
        assert rows[0]["parts"] == ["base", "identity", "incarnation"]
        info = store.blocks.at(1)
        assert info is not None
        frame = done("journal", "inspect", "--frame", str(info.seq), "-d", pow_store_made, "--json").record
        parts = frame["parts"]
        assert isinstance(parts, list)
        header = next(part for part in parts if part["kind"] == "header")
        assert header["begins_with"] == store.blocks.header(info)[:32].hex()
    assert holdfast("journal", "inspect", "--segment", "99", "-d", pow_store_made).code == 14


def test_settings_name_their_source(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('durability = "buffered"\n')
    answer = holdfast("config", "show", "-d", tmp_path, "--json", env={"HOLDFAST_CACHE_BYTES": "1048576"})
    rows = {row["key"]: row for row in answer.rows}
    assert rows["durability"]["source"] == f"file {tmp_path / 'config.toml'}"
    assert (rows["cache_bytes"]["value"], rows["cache_bytes"]["source"]) == (
        1048576,
        "environment HOLDFAST_CACHE_BYTES",
    )
    assert Counter(str(row["source"]) for row in rows.values())["default"] == len(rows) - 2
    other = tmp_path / "other.yaml"
    other.write_text("max_orphans: 5\n")
    named = {row["key"]: row for row in done("config", "show", "--config", other, "--json").rows}
    assert named["max_orphans"]["value"] == 5


def test_an_export_comes_back_the_same(pow_store: Path, tmp_path: Path) -> None:
    tip = done("tip", "-d", pow_store, "--json").record
    done("orphan", str(tip["hash"]), "--reason", "so that there is one", "-d", pow_store, "--json")
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    assert done("export", "-d", pow_store, "--out", first, "--json").record["blocks"] == 46
    done("import", "pow-json", first, "-d", tmp_path / "copy", "--json")
    done("export", "-d", tmp_path / "copy", "--out", second, "--json")
    assert second.read_bytes() == first.read_bytes()
    assert done("export", "-d", pow_store).out == first.read_text()
    assert holdfast("export", "-d", pow_store, "--out", first).code == 2


def test_a_store_without_indexes_lists_none(pow_store_made: Path) -> None:
    assert done("indexes", "-d", pow_store_made, "--json").rows == []


def test_looking_does_not_set_an_index_behind(pow_store: Path) -> None:
    from holdfast.store.indexes import index

    @index("by_length")
    def by_length(block: api.Block) -> list[tuple[bytes, bytes]]:
        return [(len(block.header).to_bytes(4, "big"), block.hash)]

    with api.open(pow_store, create=False, indexes=[by_length]) as store:
        assert store.wait_for_indexes(10)
    for command in ("tip", "tips", "stats", "orphans", "indexes"):
        done(command, "-d", pow_store)
    with api.open(pow_store, create=False, read_only=True, indexes=[by_length]) as store:
        assert [(item.name, item.status) for item in store.indexes()] == [("by_length", "ready")]
    done("finalize", "1", "-d", pow_store)
    (row,) = done("indexes", "-d", pow_store, "--json").rows
    assert (row["name"], row["status"], row["built_height"]) == ("by_length", "behind", 45)
