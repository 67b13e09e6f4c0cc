"""``holdfast compact`` against stores with several segments."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

import holdfast as api
from holdfast.cli.output import Output
from holdfast.cli.session import store_at_work
from holdfast.types import Block
from tests.cli.cli_tools import done, holdfast, start
from tests.unit.backup_support import noise

BLOCKS = 40


def chain() -> list[Block]:
    blocks: list[Block] = []
    for height in range(BLOCKS):
        parent = blocks[-1].hash if blocks else bytes(32)
        body = (b"body %d " % height * 20_000) + noise(height, 50)
        blocks.append(Block(noise(("hash", height), 32), parent, height, b"header", body=body, time=height))
    return blocks


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Some 6 MiB of journal in three segments, all but the last final."""
    with api.open(tmp_path / "store", settings=api.Settings(compression="none", max_reorg_depth=2)) as opened:
        for block in chain():
            opened.add(block)
    return tmp_path / "store"


def bodies(path: Path) -> list[bytes | None]:
    with api.open(path, read_only=True) as opened:
        return [opened.blocks.body(info) for info in opened.blocks.canonical()]


def test_a_dry_run_then_the_run(store: Path) -> None:
    before = bodies(store)
    files = {path: path.read_bytes() for path in (store / "journal").glob("*.seg")}
    plan = done("compact", "--dry-run", "-d", store, "--json").record
    assert {path: path.read_bytes() for path in (store / "journal").glob("*.seg")} == files
    assert (plan["dry_run"], plan["compacted"], plan["segments"]) == (True, 2, 2)
    assert "nothing was changed" in done("compact", "--dry-run", "-d", store).out
    text = done("compact", "-d", store).out
    assert "saved" in text
    report = done("compact", "-d", store, "--json").record
    assert (report["compacted"], report["complete"], report["segments"]) == (0, True, 2)
    assert "nothing to compact" in done("compact", "-d", store).out
    assert [path.stat().st_size * 10 < len(data) for path, data in sorted(files.items())] == [True, True, False]
    assert bodies(store) == before
    rows = done("journal", "inspect", "-d", store, "--json").record["segments"]
    assert isinstance(rows, list)
    assert [row["generation"] for row in rows] == [1, 1, 0]
    assert done("verify", "--level", "full", "-d", store, "--json").record["ok"] is True


def test_the_store_does_nothing_by_its_settings_meanwhile(store: Path) -> None:
    (store / "config.toml").write_text('compact = "on"\ncheckpoint_interval = 5\nhistory_blocks = 3\n')
    with store_at_work("looking", store, None, Output(as_json=True), 2.0) as (opened, _):
        settings = opened.settings
        assert (settings.compact, settings.checkpoint_interval, settings.history_blocks) == ("off", 0, 0)
        upkeep = opened._upkeep
        assert upkeep is not None
        assert opened.compact(dry_run=True).compacted == 2
        assert not any((upkeep._compaction_due(), upkeep._checkpoint_due(), upkeep._prune_due()))


def test_a_rate_of_nothing_is_refused(store: Path) -> None:
    assert holdfast("compact", "-d", store, "--rate", "0", "--json").code == 2


def test_a_signal_ends_it_between_segments(store: Path) -> None:
    before = bodies(store)
    process = start("compact", "-d", store, "--rate", "2000000", "--progress-seconds", "0.01")
    assert process.stderr is not None
    for line in process.stderr:
        if "compacting" in line:
            break
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, "run the same command again" in error) == (130, True), error
    assert not list((store / "journal").glob("*.seg.tmp"))
    assert bodies(store) == before
    done("compact", "-d", store)
    assert bodies(store) == before


def test_a_damaged_segment_is_named_and_the_command_fails(store: Path) -> None:
    path = min((store / "journal").glob("*.seg"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    answer = holdfast("compact", "-d", store, "--json")
    assert answer.code == 3, answer
    assert answer.record["damaged"] == [1]
    assert answer.error["code"] == "corruption"
    assert path.read_bytes() == data
