"""``holdfast backup``: made, listed, shown, verified, restored, thinned out and copied, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdfast.backup import create as creating
from holdfast.cli.backup_options import parse_time
from holdfast.errors import InvalidInputError
from tests.cli.cli_tools import Answer, done, holdfast, start
from tests.unit.backup_support import chunk_files, grown, repository
from tests.unit.store_support import open_quick

SECRET = "a secret that nobody prints"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("node")
    grown(path / "data", 30)
    done("backup", "create", "-d", path / "data", "-r", path / "r")
    return path


def refused(answer: Answer, exit_code: int, code: str) -> dict[str, object]:
    assert (answer.code, answer.out) == (exit_code, ""), answer
    assert answer.error["code"] == code
    assert answer.error["remedy"]
    return answer.error


def test_the_way_of_a_backup(tmp_path: Path) -> None:
    data = tmp_path / "data"
    blocks = grown(data, 20)
    made = holdfast("backup", "create", "-d", data, "--verify", "--json")
    assert made.code == 0
    name = str(made.record["name"])
    assert (made.record["height"], made.record["verified"]) == (19, True)
    assert made.record["repository"] == str(data / "backups")
    (row,) = done("backup", "list", "-d", data, "--json").rows
    assert (row["name"], row["state"], row["height"]) == (name, "verified", 19)
    assert name in done("backup", "list", "-r", data / "backups").out
    shown = done("backup", "show", "-d", data, "--json").record
    assert shown["hash"] == blocks[-1].hash.hex()
    assert len(shown["segments"]) == 1  # type: ignore[arg-type]
    assert "raw bytes" in done("backup", "show", name, "-d", data).out
    assert done("backup", "verify", "-d", data, "--json").record["ok"] is True
    assert "on the disk of the store" in holdfast("backup", "create", "-d", data).err
    assert "sound" in done("backup", "verify", name, "--level", "quick", "-d", data).out
    told = done("backup", "restore", name, "-d", data, "--to", tmp_path / "new", "--json").record
    assert (told["height"], told["fenced"]) == (19, True)
    assert done("verify", "-d", tmp_path / "new", "--json").record["ok"] is True
    assert done("verify", "-d", data, "--json").record["ok"] is True
    told = done("backup", "restore", "-d", data, "--to", tmp_path / "old", "--to-height", "7", "--json").record
    assert (told["height"], told["hash"]) == (7, blocks[7].hash.hex())
    done("backup", "restore", "-d", data, "--to", tmp_path / "time", "--to-time", "2999-01-01T00:00:00Z")
    with open_quick(tmp_path / "time") as store:
        assert store.tip is not None
        assert store.tip.height == 19
    got = done("backup", "restore", "-d", data, "--to", tmp_path / "seg", "--segments", "1", "--json").record
    assert [Path(path).name for path in got["segments"]] == ["0000000001.seg"]  # type: ignore[attr-defined]


def test_beside_a_node_it_is_slow_unless_it_is_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    grown(data, 3)
    nicer: list[int] = []

    def nice(step: int) -> int:
        nicer.append(step)
        return 3 + sum(nicer)

    words: list[str | Path] = ["backup", "create", "-d", data]
    with open_quick(data):
        child = start(*words)
        assert "8.0 MiB are read in a second" in child.communicate()[1]
        assert child.returncode == 0
        monkeypatch.setattr(os, "nice", nice)
        assert "in a second" not in holdfast(*words).err, "this process has it, and cannot be nicer to itself"
        monkeypatch.setattr(creating, "held_by", lambda root, fs=None: 1)
        assert "'--rate-limit 0' for full speed" in holdfast(*words).err
        assert nicer == [0, 7]
        assert "in a second" not in holdfast(*words, "--rate-limit", "1000000").err
        assert nicer == [0, 7, 0, 0], "it is nice enough"
        assert "in a second" not in holdfast(*words, "--rate-limit", "0").err
    monkeypatch.undo()
    assert "in a second" not in holdfast(*words).err


def test_prune_and_copy(tmp_path: Path) -> None:
    data = tmp_path / "data"
    blocks = grown(data, 5)
    for _ in range(3):
        done("backup", "create", "-d", data, "-r", tmp_path / "r", "--verify")
        blocks += grown(data, 5, after=blocks[-1])
    plan = done("backup", "prune", "-r", tmp_path / "r", "--keep", "1", "--dry-run", "--json").record
    assert len(plan["removed"]) == 2  # type: ignore[arg-type]
    assert len(done("backup", "list", "-r", tmp_path / "r", "--json").rows) == 3
    assert "0 backups" in done("backup", "prune", "-r", tmp_path / "r").out
    env = {"HOLDFAST_MAX_BACKUPS": "2"}
    assert len(holdfast("backup", "prune", "-r", tmp_path / "r", "--json", env=env).record["removed"]) == 1  # type: ignore[arg-type]
    assert "would go" in done("backup", "prune", "-r", tmp_path / "r", "--keep", "1", "--dry-run").out
    copied = done("backup", "copy", "-r", tmp_path / "r", "--to", tmp_path / "far", "--json").record
    assert done("backup", "verify", "--all", "-r", tmp_path / "far", "--json").record["backups"]
    (row,) = done("backup", "list", "-r", tmp_path / "far", "--json").rows
    assert row["name"] == copied["name"]


def test_the_setting_says_where_the_repository_is(tmp_path: Path) -> None:
    data, far = tmp_path / "data", tmp_path / "far"
    grown(data, 3)
    (data / "config.toml").write_text(f'backup_target = "{far}"\n')
    assert done("backup", "create", "-d", data, "--json").record["repository"] == str(far)
    assert len(done("backup", "list", "-d", data, "--json").rows) == 1
    assert len(holdfast("backup", "list", "--json", env={"HOLDFAST_BACKUP_TARGET": str(far)}).rows) == 1
    env = {"HOLDFAST_BACKUP_TARGET": "kept/here"}
    made = holdfast("backup", "create", "-d", data, "--json", env=env).record
    assert made["repository"] == str(data / "kept" / "here")
    env["HOLDFAST_DATA_DIR"] = ""
    refused(holdfast("backup", "list", "--json", env=env), 2, "invalid_input")


def test_an_encrypted_repository_and_no_secret_anywhere(tmp_path: Path) -> None:
    data, place = tmp_path / "data", tmp_path / "r"
    grown(data, 3)
    (tmp_path / "key").write_text("5a" * 32)
    (tmp_path / "phrase").write_text(SECRET + "\n")
    words = ["-r", str(place), "--key-file", str(tmp_path / "key")]
    answers = [holdfast("backup", "create", "-d", data, *words, "--json")]
    answers.append(holdfast("backup", "verify", *words, "--json"))
    assert [answer.code for answer in answers] == [0, 0]
    for more in ([], ["--passphrase-file", str(tmp_path / "phrase")]):
        answers.append(holdfast("backup", "list", "-r", place, *more, "--json"))
        refused(answers[-1], 2, "backup_key")
    (tmp_path / "key").write_text("5b" * 32)
    answers.append(holdfast("backup", "restore", *words, "--to", tmp_path / "t", "--json"))
    refused(answers[-1], 2, "backup_key")
    other = tmp_path / "other"
    env = {"HOLDFAST_BACKUP_PASSPHRASE": SECRET}
    answers.append(holdfast("backup", "create", "-d", data, "-r", other, "--json", env=env))
    answers.append(holdfast("backup", "verify", "-r", other, "--json", "--passphrase-file", tmp_path / "phrase"))
    assert [answer.code for answer in answers[-2:]] == [0, 0]
    (tmp_path / "key").write_text("5a" * 32)
    (data / "config.toml").write_text(f'backup_target = "{place}"\nbackup_key_file = "../key"\n')
    answers.append(holdfast("backup", "create", "-d", data, "--json", env=env))
    answers.append(holdfast("backup", "verify", "-d", data, "--json"))
    env = {"HOLDFAST_BACKUP_KEY_FILE": str(tmp_path / "key")}
    answers.append(holdfast("backup", "list", "-r", place, "--json", env=env))
    assert [answer.code for answer in answers[-3:]] == [0, 0, 0]
    answers.append(holdfast("backup", "list", "-r", place, "--json", env={"HOLDFAST_BACKUP_KEY_FILE": "../key"}))
    refused(answers[-1], 2, "invalid_input")
    text = "".join(answer.out + answer.err for answer in answers)
    assert SECRET not in text
    assert "5a5a" not in text
    assert not (tmp_path / "t").exists()


def test_what_is_refused(node: Path, tmp_path: Path) -> None:
    place = node / "r"
    refused(holdfast("backup", "list", "--json", env={"HOLDFAST_DATA_DIR": ""}), 2, "invalid_input")
    refused(holdfast("backup", "list", "-r", tmp_path / "none", "--json"), 14, "backup_not_found")
    refused(holdfast("backup", "show", "../x", "-r", place, "--json"), 2, "invalid_input")
    missing = "20000101T000000000000Z-00000000"
    refused(holdfast("backup", "verify", missing, "-r", place, "--json"), 14, "backup_not_found")
    refused(holdfast("backup", "create", "-d", tmp_path / "none", "-r", place, "--json"), 14, "store_not_found")
    full = refused(holdfast("backup", "restore", "-r", place, "--to", node / "data", "--json"), 16, "store_exists")
    assert "another directory" in str(full["remedy"])
    words = ["backup", "restore", "-r", str(place), "--to", str(tmp_path / "t"), "--json"]
    refused(holdfast(*words, "--chain-id", "other"), 16, "foreign_store")
    refused(holdfast(*words, "--to-height", "1000"), 14, "block_not_found")
    refused(holdfast(*words, "--to-time", "1"), 14, "not_found")
    refused(holdfast(*words, "--to-time", "yesterday"), 2, "invalid_input")
    refused(holdfast(*words, "--to-time", "5", "--to-height", "5"), 2, "invalid_input")
    refused(holdfast(*words, "--segments", "1,x"), 2, "invalid_input")
    refused(holdfast(*words, "--segments", "1", "--to-height", "5"), 2, "invalid_input")
    with repository(place).lock():
        locked = refused(
            holdfast("backup", "create", "-d", node / "data", "-r", place, "--json"), 7, "repository_locked"
        )
        assert "holder" in locked["context"]  # type: ignore[operator]
    assert [path.name for path in tmp_path.iterdir()] == ["t.partial"], "kept for the next run; the target is not there"


def test_damage_is_exit_code_3_and_says_what_next(tmp_path: Path) -> None:
    grown(tmp_path / "data", 5)
    done("backup", "create", "-d", tmp_path / "data")
    (chunk,) = chunk_files(repository(tmp_path / "data" / "backups"))
    chunk.write_bytes(chunk.read_bytes()[:-1])
    answer = holdfast("backup", "verify", "-d", tmp_path / "data")
    assert answer.code == 3
    assert "next: " in answer.out
    refused(
        holdfast("backup", "restore", "-d", tmp_path / "data", "--to", tmp_path / "t", "--json"), 3, "backup_damaged"
    )
    done("backup", "create", "-d", tmp_path / "data", "--check")
    done("backup", "verify", "-d", tmp_path / "data", "--all")


def test_one_manifest_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    blocks = grown(tmp_path / "data", 3)
    first = done("backup", "create", "-d", tmp_path / "data", "--json").record["name"]
    grown(tmp_path / "data", 3, after=blocks[-1])
    second = done("backup", "create", "-d", tmp_path / "data", "--json").record["name"]
    manifest = tmp_path / "data" / "backups" / "backups" / f"{first}.manifest"
    manifest.write_bytes(manifest.read_bytes()[:-1])
    answer = holdfast("backup", "verify", "--all", "-d", tmp_path / "data", "--json")
    assert answer.code == 3
    found = answer.record["backups"]
    assert isinstance(found, list)
    assert [(row["name"], row["ok"]) for row in found] == [(first, False), (second, True)]
    assert found[0]["problems"][0]["code"] == "backup_damaged"
    text = holdfast("backup", "verify", "--all", "-d", tmp_path / "data")
    assert text.code == 3
    assert f"{first}: DAMAGED" in text.out
    assert f"{second}: sound" in text.out
    refused(holdfast("backup", "verify", str(first), "-d", tmp_path / "data", "--json"), 3, "backup_damaged")


def test_without_a_name_it_is_the_newest_backup_of_the_store_that_is_meant(tmp_path: Path) -> None:
    place = tmp_path / "r"
    names = {}
    for store in ("one", "two"):
        grown(tmp_path / store, 3, name=store)
        names[store] = done("backup", "create", "-d", tmp_path / store, "-r", place, "--json").record["name"]
    for command in ("show", "verify"):
        for store, name in names.items():
            assert done("backup", command, "-d", tmp_path / store, "-r", place, "--json").record["name"] == name
    told = done("backup", "restore", "-d", tmp_path / "one", "-r", place, "--to", tmp_path / "t", "--json").record
    assert told["name"] == names["one"]
    for store in ("", str(tmp_path / "gone")):
        words = ["backup", "restore", "-r", str(place), "--to", str(tmp_path / "t2"), "--json"]
        error = refused(holdfast(*words, env={"HOLDFAST_DATA_DIR": store}), 2, "invalid_input")
        assert "holdfast backup list" in str(error["remedy"])
    grown(tmp_path / "three", 3)
    refused(holdfast("backup", "show", "-d", tmp_path / "three", "-r", place, "--json"), 14, "backup_not_found")


def test_times() -> None:
    assert parse_time("5") == 5_000_000
    assert parse_time("1970-01-01T00:00:01.000002Z") == 1_000_002
    assert parse_time("1970-01-01T02:00:00+01:00") == 3_600_000_000
    for bad in ("", "x", "2026-01-01", "2026-01-01T00:00:00", "9" * 13):
        with pytest.raises(InvalidInputError):
            parse_time(bad)
