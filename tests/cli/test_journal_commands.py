"""``holdfast journal status``, ``prune`` and ``refill``, with a backup beside the store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import holdfast as api
from holdfast.errors import PrunedError
from holdfast.types import Block
from tests.cli.cli_tools import Answer, done, holdfast
from tests.unit.backup_support import noise

BLOCKS = 40
FLOOR = 15


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three segments, and a backup of it."""
    place = tmp_path_factory.mktemp("journal")
    settings = api.Settings(max_reorg_depth=2, proof_window_blocks=0)
    parent = bytes(32)
    with api.open(place / "store", settings=settings) as store:
        for height in range(BLOCKS):
            body = noise(height, 150_000)
            block = Block(noise(("hash", height), 32), parent, height, b"header", body=body, time=height * 86_400)
            store.add(block)
            parent = block.hash
    (place / "store" / "config.toml").write_text("max_reorg_depth = 2\nproof_window_blocks = 0\n")
    done("backup", "create", "-r", place / "repository", "-d", place / "store")
    return place


@pytest.fixture
def place(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "place"))


def lost(path: Path) -> list[int]:
    found = []
    with api.open(path, read_only=True) as store:
        for info in store.blocks.canonical():
            try:
                assert store.blocks.body(info) == noise(info.height, 150_000)
            except PrunedError:
                found.append(info.height)
    return found


def refused(answer: Answer, exit_code: int, code: str) -> None:
    assert (answer.code, answer.error["code"]) == (exit_code, code), answer
    assert answer.error["remedy"]


def test_prune_with_a_backup_and_refill(place: Path) -> None:
    store, repository = place / "store", place / "repository"
    assert "of all blocks" in done("journal", "status", "-d", store).out
    plan = done("journal", "prune", "--below", str(FLOOR), "--dry-run", "-d", store, "--json").record
    assert (plan["floor_after"], plan["blocks"], plan["segments"]) == (FLOOR, FLOOR, 2)
    assert (
        "15 blocks would lose their bodies; nothing was changed"
        in done("journal", "prune", "--below", str(FLOOR), "--dry-run", "-d", store).out
    )
    assert lost(store) == []
    before = done("journal", "status", "-d", store, "--json").record
    report = done("journal", "prune", "--below", str(FLOOR), "-r", repository, "-d", store, "--json").record
    assert (report["archived"], report["complete"]) == (True, True)
    assert report["pruned_bytes"] == plan["pruned_bytes"]
    assert lost(store) == list(range(FLOOR))
    after = done("journal", "status", "-d", store, "--json").record
    assert (before["floor"], after["floor"], after["pruned"]) == (0, FLOOR, 2)
    assert "nothing to prune" in done("journal", "prune", "--below", str(FLOOR), "-r", repository, "-d", store).out
    assert done("verify", "--level", "full", "-d", store, "--json").record["ok"] is True
    shown = holdfast("show", "3", "-d", store, "--json")
    assert shown.code in (0, 15)
    part = done("journal", "refill", "--from", "7", "-r", repository, "-d", store, "--json").record
    assert part["floor_after"] == 7
    assert lost(store) == list(range(7))
    text = done("journal", "refill", "-r", repository, "-d", store).out
    assert "of all blocks" in text
    assert lost(store) == []


def test_a_refill_ends_with_an_error_where_every_backup_is_damaged(place: Path) -> None:
    store, repository = place / "store", place / "repository"
    done("journal", "prune", "--below", str(FLOOR), "-r", repository, "-d", store)
    for path in repository.glob("chunks/*/*"):
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    answer = holdfast("journal", "refill", "-r", repository, "-d", store)
    assert answer.code == 3, answer
    assert "damaged in backups" in answer.out
    assert "segments=1, 2" in answer.err
    assert lost(store) == list(range(FLOOR))


def test_the_settings_say_the_rule(place: Path) -> None:
    store = place / "store"
    with (store / "config.toml").open("a") as file:
        file.write('journal_retention = "days"\njournal_retention_amount = 30\n')
    plan = done("journal", "prune", "--dry-run", "-d", store, "--json").record
    assert plan["floor_after"] == BLOCKS - 30
    done("journal", "prune", "--without-archive", "-d", store)
    assert lost(store) == list(range(BLOCKS - 30))
    answer = done("journal", "refill", "-r", place / "repository", "-d", store, "--json")
    assert answer.record["floor_after"] == 0


@pytest.mark.parametrize(
    ("words", "exit_code", "code"),
    [
        ("--blocks 3 --days 1", 2, "invalid_input"),
        ("--below 5 --without-archive -r {place}/repository", 2, "invalid_input"),
        ("--below 39 --without-archive", 11, "below_finality"),
        ("--below 5 -r {place}/none", 14, "backup_not_found"),
        ("--below 5", 14, "backup_not_found"),
    ],
)
def test_what_is_refused(place: Path, words: str, exit_code: int, code: str) -> None:
    store = place / "store"
    answer = holdfast("journal", "prune", *words.format(place=place).split(), "-d", store, "--json")
    refused(answer, exit_code, code)
    assert lost(store) == []


def test_a_backup_of_another_store_is_no_archive(place: Path, tmp_path: Path) -> None:
    with api.open(tmp_path / "other") as store:
        store.add(Block(noise("other", 32), bytes(32), 0, b"header", body=None))
    done("backup", "create", "-r", tmp_path / "r", "-d", tmp_path / "other")
    words: list[str | Path] = [
        "journal",
        "prune",
        "--below",
        "5",
        "-r",
        tmp_path / "r",
        "-d",
        place / "store",
        "--json",
    ]
    refused(holdfast(*words), 14, "backup_not_found")
    done("journal", "prune", "--below", "5", "--without-archive", "-d", place / "store")
    report = done("journal", "refill", "-r", tmp_path / "r", "-d", place / "store", "--json").record
    assert report["missing"] == [1]
    assert lost(place / "store") == list(range(5))
