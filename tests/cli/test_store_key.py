"""Encrypted stores on the command line: the key comes from a file or from the environment, before the command."""

from __future__ import annotations

from pathlib import Path

import pytest

import holdfast as package
from holdfast._keys import given_key
from holdfast.types import Block
from tests.cli.cli_tools import Answer, holdfast
from tests.unit.store_support import chain_of, quick

SECRET = "ab" * 32
BLOCKS: list[Block] = chain_of(None, 3)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with package.open(f"sqlite:{tmp_path / 'store'}", key=bytes.fromhex(SECRET), settings=quick()) as made:
        for block in BLOCKS:
            made.add(block)
    return tmp_path / "store"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(SECRET + "\n")
    return path


COMMANDS = [
    ["tip"],
    ["stats"],
    ["verify", "--level", "views"],
    ["rebuild"],
    ["convert", "--to", "lmdb"],
    ["journal", "inspect", "--frame", "2"],
    ["checkpoint", "list"],
]


def run(words: list[str], store: Path, *before: str | Path, env: dict[str, str] | None = None) -> Answer:
    return holdfast(*before, *words, "--data-dir", store, env=env)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_takes_the_key_and_says_what_is_missing_without_it(
    words: list[str], store: Path, key_file: Path
) -> None:
    if words[0] != "checkpoint":
        refused = run(words, store)
        assert refused.code == 2, refused
        assert "encrypted" in refused.err
        assert "--store-key-file" in refused.err
    for answer in (
        run(words, store, "--store-key-file", key_file),
        run(words, store, env={"HOLDFAST_KEY_FILE": str(key_file)}) if words[0] != "convert" else None,
    ):
        if answer is not None:
            assert answer.code == 0, answer
            assert SECRET not in answer.out + answer.err
    assert given_key() is None


def test_a_wrong_key_is_refused_and_not_shown(store: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("cd" * 32)
    answer = run(["tip", "--json"], store, "--store-key-file", wrong)
    assert answer.code == 2
    assert answer.error["code"] == "key_rejected"
    answer = run(["tip", "--json"], store, env={"HOLDFAST_PASSPHRASE": "several secret words"})
    assert answer.error["code"] == "key_rejected"
    assert "several secret" not in answer.out + answer.err


def test_two_keys_are_refused(store: Path, key_file: Path) -> None:
    answer = run(["tip"], store, "--store-key-file", key_file, env={"HOLDFAST_PASSPHRASE": "words"})
    assert answer.code == 2
    assert "not both" in answer.err


def test_a_store_made_with_a_passphrase_file_is_opened_by_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "words"
    file.write_text("correct horse\nand more\n")
    path = tmp_path / "store"
    made = holdfast("--store-passphrase-file", file, "init", "--data-dir", path, "--chain", "pow")
    assert made.code == 0, made
    assert holdfast("tip", "--data-dir", path).code == 2
    assert holdfast("tip", "--data-dir", path, env={"HOLDFAST_PASSPHRASE": "correct horse"}).code == 0


def test_links_needs_no_key_and_says_what_it_did_not_check(store: Path) -> None:
    answer = run(["verify"], store)
    assert answer.code == 0, answer
    assert "were not checked" in answer.out + answer.err


def test_segments_are_listed_without_the_key(store: Path) -> None:
    assert run(["journal", "inspect"], store).code == 0
    assert run(["journal", "inspect", "--segment", "1"], store).code == 0


def test_backups_are_made_and_verified_without_the_key_and_restored_with_it(
    store: Path, key_file: Path, tmp_path: Path
) -> None:
    place = tmp_path / "backups"
    assert holdfast("backup", "create", "--data-dir", store, "--repository", place).code == 0
    assert holdfast("backup", "verify", "--repository", place).code == 0
    refused = holdfast("backup", "restore", "--repository", place, "--to", tmp_path / "again")
    assert refused.code == 2
    assert not (tmp_path / "again").exists()
    answer = holdfast("--store-key-file", key_file, "backup", "restore", "--repository", place, "--to", tmp_path / "a")
    assert answer.code == 0, answer
    assert run(["tip"], tmp_path / "a", "--store-key-file", key_file).code == 0


def test_checkpoints_are_made_and_restored_with_the_key(store: Path, key_file: Path, tmp_path: Path) -> None:
    with_key, target = ("--store-key-file", key_file), tmp_path / "again"
    assert run(["checkpoint", "create"], store).code == 2
    assert run(["checkpoint", "create"], store, *with_key).code == 0
    assert "encrypted" in run(["checkpoint", "list"], store).out
    assert "encrypted" not in run(["checkpoint", "list"], store, *with_key).out
    for words in (["checkpoint", "verify"], ["checkpoint", "restore", str(store)]):
        where = target if "restore" in words else store
        refused = run([*words, "--json"], where)
        assert (refused.code, refused.error["code"]) == (2, "key_required")
        assert not target.exists()
        assert run(words, where, *with_key).code == 0
    assert run(["tip"], target).code == 2
    assert run(["tip"], target, *with_key).code == 0
    assert run(["checkpoint", "prune"], store, *with_key).code == 0


def test_a_snapshot_is_imported_with_the_key(store: Path, key_file: Path, tmp_path: Path) -> None:
    with_key, target = ("--store-key-file", key_file), tmp_path / "again"
    exported = run(["snapshot", "export", "--out", str(tmp_path / "snapshot")], store, *with_key)
    assert exported.code == 0, exported
    words = ["snapshot", "import", str(tmp_path / "snapshot"), "--trust-manifest"]
    taken_in = run(words, target, *with_key)
    assert taken_in.code == 0, taken_in
    assert run(words, target).code == 2
    assert run(words, target, *with_key).code == 0
    assert run(["verify", "--level", "full"], target, *with_key).code == 0
    assert run(["tip"], target).code == 2


def test_the_selftest_does_not_need_the_key_of_a_store(key_file: Path, tmp_path: Path) -> None:
    answer = holdfast(
        "selftest", "durability", "--dir", tmp_path, "--seconds", "1", env={"HOLDFAST_KEY_FILE": str(key_file)}
    )
    assert answer.code == 0, answer
