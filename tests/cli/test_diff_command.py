"""``holdfast diff``: what it says of two stores, and the commands of docs/OPERATIONS.md, section "What diverged?"."""

from __future__ import annotations

import re
import shlex
import shutil
from hashlib import sha256
from pathlib import Path

import pytest

import holdfast as api
from tests.cli.cli_tools import ROOT, done, holdfast
from tests.cli.state_store import HEIGHTS, StateStore, block_hash

TEXT = (ROOT / "docs" / "OPERATIONS.md").read_text(encoding="ascii")


@pytest.fixture
def parted(one_state_made: StateStore, tmp_path: Path) -> tuple[Path, Path]:
    """Two copies of a store, each with two blocks of its own."""
    places = tmp_path / "a", tmp_path / "b"
    for place in places:
        shutil.copytree(one_state_made.path, place)
        with api.open(place) as store:
            for number in range(2):
                draft = store.draft()
                draft.state[b"who"] = place.name.encode()
                draft.state[b"\x1b]0;" + place.name.encode()] = b"v" * 300
                store.commit(draft, hash=block_hash(f"{place.name} {number}"), header=place.name.encode())
    return places


def test_what_differs_is_told_as_json(parted: tuple[Path, Path]) -> None:
    record = done("diff", *parted, "--state", "--json").record
    assert (record["same"], record["relation"]) == (False, "diverged")
    first = record["first"]
    assert isinstance(first, dict)
    assert (first["height"], first["parts"]) == (HEIGHTS, ["hash", "root", "header"])
    assert first["a"]["hash"] == block_hash("a 0").hex()
    state = record["state"]
    assert isinstance(state, dict)
    keys = {bytes.fromhex(row["key"]): row for row in state["keys"]}
    assert set(keys) == {b"who", b"\x1b]0;a", b"\x1b]0;b"}
    who = keys[b"who"]
    assert (who["key_text"], who["a"]["data"], who["b"]["data"]) == ("who", b"a".hex(), b"b".hex())
    assert who["changed_a"]["hash"] == block_hash("a 0").hex()
    long = keys[b"\x1b]0;a"]
    assert (long["a"]["length"], long["a"]["data"], long["b"]) == (300, None, None)
    assert long["a"]["sha256"] == sha256(b"v" * 300).hexdigest()


def test_text_escapes_what_came_from_a_chain_and_says_how_to_go_on(parted: tuple[Path, Path]) -> None:
    whole = done("diff", *parted, "--state")
    assert "\x1b" not in whole.out
    assert "diverged" in whole.out
    assert f"at height {HEIGHTS}: hash, root, header" in whole.out
    part = done("diff", *parted, "--at-height", str(HEIGHTS), "--limit", "1")
    match = re.search(r"the first 1; --from-key '(.*)' goes on", part.err)
    assert match is not None
    rest = done("diff", *parted, "--at-height", str(HEIGHTS), "--from-key", match[1], "--json").record["state"]
    assert isinstance(rest, dict)
    assert (len(rest["keys"]), rest["next_key"]) == (2, None)


def test_equal_stores_are_the_same_and_nothing_is_changed(one_state_made: StateStore, tmp_path: Path) -> None:
    copy = shutil.copytree(one_state_made.path, tmp_path / "copy")
    record = done("diff", one_state_made.path, copy, "--state", "--json").record
    assert (record["same"], record["relation"], record["first"]) == (True, "equal", None)
    assert "equal" in done("diff", one_state_made.path, copy).out


def test_errors_name_the_store(one_state_made: StateStore, tmp_path: Path, pow_store: Path) -> None:
    missing = holdfast("diff", one_state_made.path, tmp_path / "nothing", "--json")
    assert missing.code == 14 or missing.error["code"] == "store_not_found"
    context = missing.error["context"]
    assert isinstance(context, dict)
    assert context["store"] == str(tmp_path / "nothing")
    stateless = holdfast("diff", pow_store, pow_store, "--state", "--json")
    assert stateless.error["code"] == "state"
    beyond = holdfast("diff", one_state_made.path, one_state_made.path, "--at-height", "999", "--json")
    assert beyond.code == 14
    assert holdfast("diff", one_state_made.path, one_state_made.path, "--limit", "0").code == 2


def test_the_commands_of_the_document_run(parted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(parted[0].parent)
    section = TEXT.split("## What diverged?", 1)[1].split("\n## ", 1)[0]
    commands = re.findall(r"^holdfast (.*?)(?:  #.*)?$", section, re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        done(*shlex.split(command))


# -- backups --------------------------------------------------------------------------------------------------------


def test_a_store_and_a_backup_and_two_backups(parted: tuple[Path, Path], tmp_path: Path) -> None:
    repository, work = tmp_path / "r", tmp_path / "work"
    work.mkdir()
    names = [str(done("backup", "create", "-d", place, "-r", repository, "--json").record["name"]) for place in parted]
    of_a, newest = f"backup:{repository}#{names[0]}", f"backup:{repository}"
    assert done("diff", parted[0], of_a, "--json").record["same"] is True
    wanted = done("diff", *parted, "--state", "--json").record
    for pair in ((parted[0], newest), (of_a, parted[1]), (of_a, newest)):
        told = done("diff", *pair, "--state", "--work-dir", work, "--json")
        assert (told.record["relation"], told.record["first"]) == ("diverged", wanted["first"])
        assert told.record["state"] == wanted["state"]
        assert list(work.iterdir()) == []
    assert f"restored to {work}" in done("diff", of_a, newest, "--state", "--work-dir", work).err
    assert "restored" not in done("diff", parted[0], of_a).err


def test_a_backup_that_cannot_be_compared(
    one_state_made: StateStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, key, other = tmp_path / "r", tmp_path / "key", tmp_path / "other"
    key.write_text("ab" * 32)
    other.write_text("cd" * 32)
    done("backup", "create", "-d", one_state_made.path, "-r", place, "--key-file", key)
    assert done("diff", one_state_made.path, f"backup:{place}", "--key-file", key, "--json").record["same"] is True
    for given in ((), ("--key-file", other)):
        refused = holdfast("diff", one_state_made.path, f"backup:{place}", *given, "--json")
        assert (refused.error["code"], refused.out) == ("backup_key", "")
    monkeypatch.setenv("HOLDFAST_BACKUP_PASSPHRASE", "a wrong phrase")
    assert holdfast("diff", one_state_made.path, f"backup:{place}", "--json").error["code"] == "backup_key"
    monkeypatch.delenv("HOLDFAST_BACKUP_PASSPHRASE")
    for words in ("backup:", "backup:#x", f"backup:{place}#"):
        assert holdfast("diff", one_state_made.path, words, "--json").error["code"] == "invalid_input"
    for words in (f"backup:{tmp_path / 'nothing'}", f"backup:{place}#20260101T000000000000Z-00000000"):
        missing = holdfast("diff", one_state_made.path, words, "--key-file", key, "--json")
        assert missing.error["code"] == "backup_not_found"
