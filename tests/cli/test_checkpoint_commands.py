"""``holdfast checkpoint``: make, list, verify, restore, prune; beside a running node, and where the store is lost."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

import holdfast as api
from tests.cli.cli_tools import Answer, done, holdfast, start
from tests.cli.state_store import StateStore, block_hash, make


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> StateStore:
    """A store with checkpoints of the heights 15 and 23."""
    made = make(tmp_path_factory.mktemp("checkpoints") / "store", "sqlite")
    for height in ("15", "23"):
        done("checkpoint", "create", "--height", height, "-d", made.path)
    return made


@pytest.fixture
def store(template: StateStore, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(template.path, tmp_path / "store"))


def name_at(height: int) -> str:
    return f"{height}-{block_hash(f'block {height}').hex()[:16]}"


def refused(answer: Answer, exit_code: int, code: str) -> str:
    """The command failed so, and said what to do next; its message."""
    assert (answer.code, answer.error["code"]) == (exit_code, code), answer
    assert answer.error["remedy"]
    return str(answer.error["message"])


def break_chunk(store: Path, name: str) -> Path:
    from holdfast.store.checkpoints import checkpoints_at

    entries = checkpoints_at(store).reader(name).manifest.chunks
    chunk = store / "checkpoints" / "chunks" / entries[0].hash.hex()
    data = bytearray(chunk.read_bytes())
    data[9] ^= 1
    chunk.write_bytes(data)
    return chunk


def names(store: Path) -> list[object]:
    return [row["name"] for row in done("checkpoint", "list", "-d", store, "--json").rows]


def test_make_list_and_verify(store: Path) -> None:
    rows = done("checkpoint", "list", "-d", store, "--json").rows
    assert [row["name"] for row in rows] == [name_at(23), name_at(15)]
    assert rows[0]["block"] == block_hash("block 23").hex()
    made = done("checkpoint", "create", "-d", store, "--json").record
    assert made == {name: value for name, value in rows[0].items() if name != "problem"}
    text = done("checkpoint", "list", "-d", store)
    assert name_at(15) in text.out
    verified = done("checkpoint", "verify", "-d", store, "--json").rows
    assert [(row["name"], row["sound"]) for row in verified] == [(name_at(23), True), (name_at(15), True)]
    assert "yes" in done("checkpoint", "verify", name_at(15), "-d", store).out
    figures = done("stats", "-d", store, "--json").record["checkpoints"]
    assert (figures["count"], figures["newest_height"]) == (2, 23)  # type: ignore[index]
    assert done("verify", "--level", "quick", "-d", store, "--json").record["facts"]["checkpoints"] == 2  # type: ignore[index]


def test_looking_works_beside_a_node_that_runs(store: Path) -> None:
    with api.open(store):
        assert names(store) == [name_at(23), name_at(15)]
        done("checkpoint", "verify", "-d", store)
        for words in (["create"], ["prune"]):
            refused(holdfast("checkpoint", *words, "-d", store, "--json"), 7, "locked")


def test_a_lost_store_is_restored(store: Path, template: StateStore, tmp_path: Path) -> None:
    shutil.rmtree(store / "journal")
    (store / "holdfast.toml").unlink()
    new = tmp_path / "new"
    told = done("checkpoint", "restore", store, "-d", new, "--engine", "sqlite", "--json").record
    assert (told["name"], told["created"]) == (name_at(23), str(new))
    with api.open(new) as restored:
        assert dict(restored.state.scan()) == template.states[23]
        assert restored.safety.fenced
    old = tmp_path / "old"
    done("checkpoint", "restore", store / "checkpoints", "-d", old, "--name", name_at(15))
    with api.open(old) as restored:
        assert dict(restored.state.scan()) == template.states[15]


def test_a_damaged_one_is_named_and_not_restored(store: Path, tmp_path: Path) -> None:
    chunk = break_chunk(store, name_at(23))
    answer = holdfast("checkpoint", "verify", "-d", store, "--json")
    refused(answer, 10, "snapshot_invalid")
    assert [row["sound"] for row in answer.rows] == [False, True]
    assert chunk.name in str(answer.error["context"])
    answer = holdfast("checkpoint", "restore", store, "-d", tmp_path / "new", "--json")
    refused(answer, 10, "snapshot_invalid")
    assert f"--name {name_at(15)}" in str(answer.error["remedy"])
    assert not (tmp_path / "new" / "holdfast.toml").exists()
    answer = holdfast("checkpoint", "prune", "--newest", "1", "-d", store, "--json")
    refused(answer, 10, "snapshot_invalid")
    assert answer.record["damaged"] == [name_at(23)]
    assert names(store) == [name_at(23), name_at(15)]
    done("checkpoint", "create", "-d", store)
    done("checkpoint", "verify", "-d", store)


def test_a_damaged_manifest_shows_in_the_list_and_in_verify(store: Path) -> None:
    manifest = store / "checkpoints" / f"{name_at(23)}.manifest"
    manifest.write_bytes(manifest.read_bytes()[:-5])
    rows = done("checkpoint", "list", "-d", store, "--json").rows
    assert [row["problem"] is None for row in rows] == [False, True]
    answer = holdfast("verify", "--level", "quick", "-d", store, "--json")
    assert answer.code == 3
    problems = answer.record["problems"]
    assert isinstance(problems, list)
    assert [(each["check"], each["code"]) for each in problems] == [("checkpoints", "corruption")]
    assert "holdfast checkpoint create" in problems[0]["remedy"]
    answer = holdfast("checkpoint", "restore", store, "-d", store.parent / "new", "--json")
    refused(answer, 10, "snapshot_invalid")
    assert f"--name {name_at(15)}" in str(answer.error["remedy"]), "the store may be gone"
    (store / "checkpoints" / f"{name_at(15)}.manifest").unlink()
    answer = holdfast("checkpoint", "restore", store, "-d", store.parent / "new", "--json")
    refused(answer, 10, "snapshot_invalid")
    assert "holdfast backup restore" in str(answer.error["remedy"])


def test_pruning(store: Path) -> None:
    before = sorted(path.name for path in (store / "checkpoints").rglob("*"))
    would = done("checkpoint", "prune", "--newest", "1", "--dry-run", "-d", store, "--json").record
    assert (would["dry_run"], would["removed"], would["verified"]) == (True, [name_at(15)], name_at(23))
    assert sorted(path.name for path in (store / "checkpoints").rglob("*")) == before
    assert "nothing was changed" in done("checkpoint", "prune", "--newest", "1", "--dry-run", "-d", store).err
    kept = done("checkpoint", "prune", "--newest", "1", "--every", "15", "-d", store, "--json").record
    assert kept["removed"] == []
    report = done("checkpoint", "prune", "--newest", "1", "-d", store)
    assert name_at(15) in report.out
    assert names(store) == [name_at(23)]
    assert len(list((store / "checkpoints" / "chunks").iterdir())) == 1


def test_a_pow_chain_has_checkpoints(pow_store_made: Path, tmp_path: Path) -> None:
    store = shutil.copytree(pow_store_made, tmp_path / "store")
    made = done("checkpoint", "create", "-d", store, "--json").record
    assert made["chunks"] == 0
    tip = done("tip", "-d", store, "--json").record
    assert made["block"] == tip["hash"]
    done("checkpoint", "restore", store, "-d", tmp_path / "new")
    assert done("tip", "-d", tmp_path / "new", "--json").record["hash"] == tip["hash"]
    assert done("verify", "--level", "full", "-d", tmp_path / "new", "--json").record["ok"] is True


@pytest.mark.parametrize(
    ("words", "exit_code", "code"),
    [
        ("list -d {new}", 14, "store_not_found"),
        ("verify -d {new}", 14, "store_not_found"),
        ("verify 7-0123456789abcdef -d {store}", 14, "not_found"),
        ("verify ../x -d {store}", 2, "invalid_input"),
        ("create -d {new}", 14, "store_not_found"),
        ("create --height 99 -d {store}", 14, "block_not_found"),
        ("create --height -1 -d {store}", 2, "invalid_input"),
        ("restore {new} -d {new}", 14, "not_found"),
        ("restore {store} -d {store}", 16, "store_exists"),
        ("restore {store} -d {full}", 16, "foreign_store"),
        ("restore {store} --name 7-0123456789abcdef -d {new}", 14, "not_found"),
        ("prune --newest 0 -d {store}", 2, "invalid_input"),
        ("prune --every -1 -d {store}", 2, "invalid_input"),
        ("prune -d {new}", 14, "store_not_found"),
    ],
)
def test_bad_usage(words: str, exit_code: int, code: str, template: StateStore, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    given = [word.format(new=tmp_path / "new", store=template.path, full=full) for word in words.split()]
    refused(holdfast("checkpoint", *given, "--json"), exit_code, code)
    assert not (tmp_path / "new").exists()
    assert [path.name for path in full.iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_stopped_it_goes_on(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with api.open(f"sqlite:{store}") as wide:
        draft = wide.draft()
        for number in range(60_000):
            draft.state[b"key/%d" % number] = b"value of %d" % number
        wide.commit(draft, hash=block_hash("wide"), header=b"")
    both: list[list[str | Path]] = [["create", "-d", store], ["restore", store, "-d", tmp_path / "new"]]
    for words in both:
        process = start("checkpoint", *words, "--progress-seconds", "0")
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "keys" in line, line
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert "next: run the same command again" in err
        assert not (tmp_path / "new" / "holdfast.toml").exists()
        assert words[0] != "create" or names(store) == []
        done("checkpoint", *words)
    assert done("stats", "-d", tmp_path / "new", "--json").record["state"]["keys"] == 60_000  # type: ignore[index]
