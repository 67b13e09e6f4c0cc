"""``snapshot export``, ``verify`` and ``import``: the same state on the other side, stopped and begun again."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

import holdfast as api
from holdfast.store import base
from tests.cli.cli_tools import Answer, done, holdfast, start
from tests.cli.state_store import HEIGHTS, StateStore, block_hash
from tests.cli.test_state_commands import rows_of

TIP = HEIGHTS - 1


def refused(answer: Answer, exit_code: int, code: str) -> str:
    assert (answer.code, answer.out) == (exit_code, ""), answer
    assert answer.error["code"] == code
    assert answer.error["remedy"]
    return str(answer.error["message"])


@pytest.fixture(scope="module")
def exported(one_state_made: StateStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("snapshots") / "at-15"
    done("snapshot", "export", "--out", target, "--height", "15", "--chunk-bytes", "1024", "-d", one_state_made.path)
    return target


@pytest.fixture(scope="module")
def root(one_state_made: StateStore) -> str:
    return str(done("state", "root", "--height", "15", "-d", one_state_made.path, "--json").record["root"])


@pytest.mark.slow
def test_the_state_is_the_same_on_the_other_side(state_made: StateStore, tmp_path: Path) -> None:
    told = done("snapshot", "export", "--out", tmp_path / "snap", "-d", state_made.path, "--json").record
    state = state_made.states[TIP]
    assert (told["height"], told["keys"], told["block"]) == (TIP, len(state), block_hash(f"block {TIP}").hex())
    trusted = ["--root", str(told["root"])]
    checked = done("snapshot", "verify", tmp_path / "snap", *trusted, "--json").record
    assert (checked["sound"], checked["manifest_digest"]) == (True, told["manifest_digest"])
    for engine in ("sqlite", "rocksdb"):
        new = tmp_path / engine
        made = done("snapshot", "import", tmp_path / "snap", "-d", new, *trusted, "--engine", engine, "--json").record
        assert (made["root"], made["created"]) == (told["root"], str(new))
        assert rows_of(done("state", "scan", "--limit", "0", "-d", new, "--json")) == sorted(state.items())
        assert done("stats", "-d", new, "--json").record["store"]["engine"] == engine  # type: ignore[index]
        assert done("state", "root", "-d", new, "--json").record["root"] == told["root"]
        refused(holdfast("state", "scan", "--height", "3", "-d", new, "--json"), 15, "pruned")
        with api.open(new) as store:
            draft = store.draft()
            draft.state[b"more"] = b"goes on"
            store.commit(draft, hash=block_hash("more"), header=b"")
        assert len(rows_of(done("state", "scan", "--limit", "0", "-d", new, "--json"))) == len(state) + 1
        assert done("verify", "--level", "state", "-d", new, "--json").record["ok"] is True


@pytest.mark.slow
def test_a_snapshot_of_an_old_height(exported: Path, root: str, one_state_made: StateStore, tmp_path: Path) -> None:
    new = tmp_path / "new"
    done("snapshot", "import", exported, "-d", new, "--root", root, "--block", block_hash("block 15").hex())
    rows = rows_of(done("state", "scan", "--limit", "0", "-d", new, "--json"))
    assert rows == sorted(one_state_made.states[15].items())
    at_block = tmp_path / "again"
    words = ["snapshot", "export", "--out", str(at_block), "--at-block", block_hash("block 15").hex(), "--no-compress"]
    told = done(*words, "-d", one_state_made.path, "--json").record
    assert told["root"] == root
    assert int(str(told["stored_bytes"])) == told["raw_bytes"]


@pytest.mark.slow
def test_what_is_trusted_must_be_said(exported: Path, root: str, tmp_path: Path) -> None:
    both: list[list[str | Path]] = [["verify", exported], ["import", exported, "-d", tmp_path / "new"]]
    for words in both:
        answer = holdfast("snapshot", *words, "--json")
        assert "from elsewhere" in refused(answer, 2, "invalid_input")
        refused(holdfast("snapshot", *words, "--root", "00" * 32, "--json"), 10, "snapshot_invalid")
        refused(holdfast("snapshot", *words, "--manifest-digest", "00" * 32, "--json"), 10, "snapshot_invalid")
        refused(holdfast("snapshot", *words, "--root", "xyz", "--json"), 2, "invalid_input")
    assert not (tmp_path / "new").exists()
    trusting = done("snapshot", "verify", exported, "--trust-manifest")
    assert "does not show that any chain has it" in trusting.err
    digest = str(done("snapshot", "verify", exported, "--root", root, "--json").record["manifest_digest"])
    assert done("snapshot", "verify", exported, "--manifest-digest", digest).err.count("warning") == 0
    wrong = holdfast("snapshot", "import", exported, "-d", tmp_path / "new", "--root", root, "--block", "00" * 32)
    assert wrong.code == 10


@pytest.mark.slow
def test_a_damaged_chunk_is_named_and_nothing_is_made(exported: Path, root: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    chunk = sorted((copy / "chunks").iterdir())[-1]
    data = bytearray(chunk.read_bytes())
    data[-40] ^= 1
    chunk.write_bytes(data)
    both: list[list[str | Path]] = [["verify", copy], ["import", copy, "-d", tmp_path / "new"]]
    for words in both:
        answer = holdfast("snapshot", *words, "--root", root, "--json")
        refused(answer, 10, "snapshot_invalid")
        assert answer.error["context"]["chunk"] == chunk.name  # type: ignore[index]
    refused(holdfast("tip", "-d", tmp_path / "new", "--json"), 14, "store_not_found")
    shutil.copy(exported / "chunks" / chunk.name, chunk)
    done("snapshot", "import", copy, "-d", tmp_path / "new", "--root", root)


def test_nothing_is_overwritten(exported: Path, root: str, one_state_made: StateStore, tmp_path: Path) -> None:
    store = one_state_made.path
    refused(holdfast("snapshot", "import", exported, "-d", store, "--root", root, "--json"), 16, "store_exists")
    (tmp_path / "notes.txt").write_text("mine")
    refused(holdfast("snapshot", "import", exported, "-d", tmp_path, "--root", root, "--json"), 16, "foreign_store")
    refused(holdfast("snapshot", "export", "--out", tmp_path, "-d", store, "--json"), 16, "foreign_store")
    refused(holdfast("snapshot", "export", "--out", exported, "-d", store, "--json"), 16, "foreign_store")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    done("snapshot", "verify", exported, "--root", root)


@pytest.mark.slow
def test_a_finished_export_stays_as_it_is(exported: Path, one_state_made: StateStore) -> None:
    again: list[str | Path] = ["snapshot", "export", "--out", exported, "--height", "15", "-d", one_state_made.path]
    before = {path.name: path.stat().st_mtime_ns for path in exported.rglob("*")}
    told = done(*again, "--chunk-bytes", "1024", "--json").record
    assert told["kept_chunks"] == told["chunks"]
    assert "chunks of another length" in refused(holdfast(*again, "--json"), 16, "foreign_store")
    assert {path.name: path.stat().st_mtime_ns for path in exported.rglob("*")} == before


@pytest.mark.parametrize(
    ("words", "exit_code", "code"),
    [
        ("snapshot export -d {store}", 2, "invalid_input"),
        ("snapshot export -d {store} --out {new} --chunk-bytes 5", 2, "invalid_input"),
        ("snapshot export -d {store} --out {new} --height 99", 14, "block_not_found"),
        ("snapshot export -d {store} --out {new} --at-block {orphan}", 14, "block_not_found"),
        ("snapshot export -d {new} --out {new}", 14, "store_not_found"),
        ("snapshot verify {new} --trust-manifest", 10, "snapshot_invalid"),
        ("snapshot import {new} -d {new} --trust-manifest", 10, "snapshot_invalid"),
        ("snapshot import {snap} --trust-manifest", 2, "invalid_input"),
        ("snapshot import {snap} -d {new} --trust-manifest --engine papyrus", 2, "invalid_input"),
        ("snapshot import {snap} -d {new} --trust-manifest --block xyz", 2, "invalid_input"),
        ("snapshot", 2, None),
    ],
)
def test_bad_usage(
    words: str, exit_code: int, code: str | None, exported: Path, one_state_made: StateStore, tmp_path: Path
) -> None:
    names = {"new": tmp_path / "new", "snap": exported, "store": one_state_made.path}
    given = [word.format(**names, orphan=one_state_made.orphan.hex()) for word in words.split()]
    if code is None:
        assert holdfast(*given).code == exit_code
    else:
        refused(holdfast(*given, "--json"), exit_code, code)
    assert not (tmp_path / "new").exists()


def test_a_pow_chain_has_no_snapshot(pow_store_made: Path, tmp_path: Path) -> None:
    answer = holdfast("snapshot", "export", "--out", tmp_path / "x", "-d", pow_store_made, "--json")
    assert "no state" in refused(answer, 16, "foreign_store")


# -- stopped ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough keys for a few hundred chunks."""
    path = tmp_path_factory.mktemp("wide") / "store"
    with api.open(f"sqlite:{path}") as store:
        draft = store.draft()
        for number in range(20_000):
            draft.state[b"key/%d" % number] = b"value of %d" % number
        store.commit(draft, hash=block_hash("wide"), header=b"")
    return path


def interrupted(*words: str | Path) -> None:
    """The command, asked to stop at its first line of progress."""
    process = start(*words, "--progress-seconds", "0")
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "keys" in line, line
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), err
    assert "next: run the same command again" in err


@pytest.mark.slow
def test_a_stopped_export_and_import_go_on(wide_store: Path, tmp_path: Path) -> None:
    snap, new = tmp_path / "snap", tmp_path / "new"
    export: list[str | Path] = ["snapshot", "export", "--out", snap, "--chunk-bytes", "1024", "-d", wide_store]
    interrupted(*export)
    refused(holdfast("snapshot", "verify", snap, "--trust-manifest", "--json"), 10, "snapshot_invalid")
    kept = len(list((snap / "chunks").iterdir()))
    assert kept > 0
    told = done(*export, "--json").record
    assert int(str(told["chunks"])) > int(str(told["kept_chunks"])) >= kept - 1
    take: list[str | Path] = ["snapshot", "import", snap, "-d", new, "--root", str(told["root"]), "--engine", "sqlite"]
    interrupted("snapshot", "verify", snap, "--root", str(told["root"]))
    interrupted(*take)
    refused(holdfast("tip", "-d", new, "--json"), 14, "store_not_found")
    assert any((new / "base" / "chunks").iterdir())
    assert done(*take, "--json").record["keys"] == 20_000
    assert done("stats", "-d", new, "--json").record["state"]["keys"] == 20_000  # type: ignore[index]


@pytest.mark.slow
def test_the_same_import_again_is_done(exported: Path, root: str, tmp_path: Path) -> None:
    take: list[str | Path] = ["snapshot", "import", exported, "-d", tmp_path / "new", "--root", root]
    first = done(*take, "--json").record
    again = done(*take)
    assert "imported here before" in again.err
    assert done(*take, "--json").record == first
    with api.open(tmp_path / "new") as store:
        store.commit(store.draft(), hash=block_hash("more"), header=b"")
    assert "went on" in refused(holdfast(*take, "--json"), 16, "store_exists")


@pytest.mark.slow
def test_an_import_is_stopped_while_its_views_are_made(
    exported: Path, root: str, one_state_made: StateStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def hit(name: str) -> None:
        if name == "store.base.chunk":
            loaded.append(name)
            if len(loaded) % 2 == 0:
                signal.raise_signal(signal.SIGINT)

    take: list[str | Path] = ["snapshot", "import", exported, "-d", tmp_path / "new", "--root", root]
    for chunks in (2, 4):
        with monkeypatch.context() as patched:
            patched.setattr(base, "hit", hit)
            answer = holdfast(*take, "--progress-seconds", "0")
        assert (answer.code, answer.out, len(loaded)) == (130, "", chunks)
        assert "making the views" in answer.err
        assert "the store is there" in answer.err
        assert "next: run the same command again" in answer.err
        assert not (tmp_path / "new" / "views" / "CURRENT").exists()
    done(*take)
    rows = rows_of(done("state", "scan", "--limit", "0", "-d", tmp_path / "new", "--json"))
    assert rows == sorted(one_state_made.states[15].items())


def test_an_import_of_one_chunk_that_is_stopped_says_that_the_store_is_there(
    one_state_made: StateStore, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count of keys does not fall between the two stages: both end with all of them."""
    snap, new = tmp_path / "snap", tmp_path / "new"
    told = done("snapshot", "export", "--out", snap, "--height", "15", "-d", one_state_made.path, "--json").record
    assert told["chunks"] == 1
    with monkeypatch.context() as patched:
        patched.setattr(
            base, "hit", lambda name: signal.raise_signal(signal.SIGINT) if name == "store.base.chunk" else None
        )
        answer = holdfast("snapshot", "import", snap, "-d", new, "--root", root, "--progress-seconds", "0")
    assert (answer.code, answer.out) == (130, "")
    assert (new / "holdfast.toml").exists()
    assert "the store is there" in answer.err
    assert "there is no store yet" not in answer.err


@pytest.mark.parametrize("damage", ["all of it is gone", "a byte of a chunk"])
def test_an_import_again_mends_the_base_of_the_store(exported: Path, root: str, tmp_path: Path, damage: str) -> None:
    take: list[str | Path] = ["snapshot", "import", exported, "-d", tmp_path / "new", "--root", root]
    done(*take)
    place = tmp_path / "new" / "base"
    if damage == "a byte of a chunk":
        chunk = max((path for path in place.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        data = bytearray(chunk.read_bytes())
        data[len(data) // 2] ^= 1
        chunk.write_bytes(data)
    else:
        shutil.rmtree(place)
    assert holdfast("verify", "--level", "views", "-d", tmp_path / "new").code == 3
    done(*take)
    done("verify", "--level", "views", "-d", tmp_path / "new")
