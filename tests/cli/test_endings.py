"""How commands end when something is wrong: exit code, error, next step, and an untouched store."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import zstandard

import holdfast as api
from holdfast.errors import all_errors
from tests.cli.cli_tools import ANVIL, LITECOIN, Answer, child, child_environment, done, holdfast, start

GONE = "00" * 31 + "01"


def refused(answer: Answer, exit_code: int, code: str) -> dict[str, object]:
    """The JSON error that the command ended with."""
    assert answer.code == exit_code, answer
    assert answer.out == ""
    error = answer.error
    assert (error["exit_code"], error["code"]) == (exit_code, code)
    assert error["remedy"]
    return error


def unpacked(path: Path, into: Path) -> bytearray:
    data = zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read()
    into.write_bytes(data)
    return bytearray(data)


READING = [
    "tip",
    "tips",
    "orphans",
    "blocks",
    "stats",
    "indexes",
    "show 0",
    "epoch 0",
    "journal inspect",
    "journal status",
    "export",
]
READING += ["state root", "state scan", "state history k", "state diff 0 tip", "state growth", "prove k"]
WRITING = ["mine", "reorg --to 0", "orphan 0 --reason x", "finalize 0", "verify", "rebuild", "convert --to sqlite"]
WRITING += ["prune", "prune --dry-run", "migrate", "migrate --dry-run", "compact", "compact --dry-run"]
WRITING += ["journal prune --below 1 --without-archive", "journal prune --dry-run"]


@pytest.mark.parametrize("command", READING + WRITING)
def test_a_missing_store_is_not_created(command: str, tmp_path: Path) -> None:
    refused(holdfast(*command.split(), "-d", tmp_path / "none", "--json"), 14, "store_not_found")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("command", [*READING, *WRITING, f"import evm {ANVIL}"])
def test_a_foreign_directory_is_left_alone(command: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    refused(holdfast(*command.split(), "-d", tmp_path, "--json"), 16, "foreign_store")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_older_format_names_the_way_and_has_none_yet(pow_store: Path) -> None:
    assert done("migrate", "-d", pow_store, "--json").record["kept"] is None
    identity = pow_store / "holdfast.toml"
    identity.write_text(identity.read_text().replace("format = 1\n", "format = 0\n"))
    for command in ("tip", "verify", "migrate --dry-run", "migrate"):
        error = refused(holdfast(*command.split(), "-d", pow_store, "--json"), 9, "format_too_old")
        assert "holdfast migrate" in str(error["remedy"])
    assert not (pow_store / "migrating").exists()


@pytest.mark.parametrize("command", READING + WRITING)
def test_a_newer_format_is_left_alone(command: str, pow_store: Path) -> None:
    identity = pow_store / "holdfast.toml"
    identity.write_text(identity.read_text().replace("format = 1\n", "format = 2\n"))
    before = {path: path.read_bytes() for path in pow_store.rglob("*") if path.is_file()}
    refused(holdfast(*command.split(), "-d", pow_store, "--json"), 9, "format_too_new")
    assert {path: path.read_bytes() for path in pow_store.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("command", WRITING)
def test_a_locked_store_is_not_written(command: str, pow_store: Path) -> None:
    with api.open(pow_store, create=False):
        error = refused(holdfast(*command.split(), "-d", pow_store, "--json"), 7, "locked")
    assert error["retryable"] is True


@pytest.mark.parametrize("command", READING)
def test_a_locked_store_is_read(command: str, pow_store: Path) -> None:
    with api.open(pow_store, create=False):
        done(*command.split(), "-d", pow_store)


@pytest.mark.slow
def test_a_killed_store_is_read_and_its_writer_recovers(pow_store: Path) -> None:
    process = start("mine", "-d", pow_store, "--blocks", "100000", "--progress-seconds", "0")
    assert process.stderr is not None
    for line in process.stderr:
        if "4/100,000" in line:
            break
    process.kill()
    process.communicate()
    tip = done("tip", "-d", pow_store, "--json").record
    assert int(str(tip["height"])) >= 49
    mined = holdfast("mine", "-d", pow_store)
    assert mined.code == 0
    assert "recovered after an unclean end" in mined.err


# -- bad arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "nonsense",
        "tip",
        "tip -d {store} --no-such-option",
        "show -d {store}",
        "show xyz -d {store}",
        "show 12ab -d {store}",
        "blocks -d {store} --from -1",
        "blocks -d {store} --since yesterday",
        "blocks -d {store} --limit many",
        "verify -d {store} --level deep",
        "convert -d {store} --to papyrus",
        "convert -d {store} --to rocksdb",
        "init -d {none} --chain dogecoin",
        "init -d {none} --chain pow --engine papyrus",
        "init -d {none} --chain pow --difficulty 0",
        "init -d {none} --chain evm --difficulty 5",
        "init -d {none} --chain bitcoin --network mars",
        "init -d {none} --chain evm --network mainnet",
        "import gold {anvil} -d {none}",
        "import evm -d {none}",
        "import evm missing.jsonl -d {none}",
        "import evm {anvil} -d {none} --magic 01020304",
        "import bitcoin {litecoin} -d {none} --network litecoin-regtest --magic xyz",
        "import bitcoin {litecoin} -d {none} --magic fabfb5da",
        "import bitcoin {litecoin} -d {none} --network mars",
        "import pow-json {anvil} {litecoin} -d {none}",
        "import pow-json missing.json -d {none}",
        "sync evm ftp://nowhere -d {none}",
        "sync evm http://127.0.0.1:1 -d {none} --once --until 5",
        "mine -d {store} --blocks 0",
        "config show --config {anvil}",
        "tip -d {store} --config missing.toml",
    ],
)
def test_a_usage_error_exits_2_and_creates_nothing(arguments: str, pow_store_made: Path, tmp_path: Path) -> None:
    names = {"store": pow_store_made, "none": tmp_path / "none", "anvil": ANVIL, "litecoin": LITECOIN}
    words = [word.format(**names) for word in arguments.split()]
    assert holdfast(*words).code == 2
    if words:
        refused(holdfast(*words, "--json"), 2, "invalid_input")
    assert not (tmp_path / "none").exists()


def test_what_is_unknown_is_not_found(pow_store_made: Path) -> None:
    for command in (f"show {GONE}", "show 999", f"reorg --to {GONE}", "finalize 999", f"orphan {GONE} --reason x"):
        refused(holdfast(*command.split(), "-d", pow_store_made, "--json"), 14, "block_not_found")


@pytest.mark.parametrize("command", ["blocks", "orphans"])
def test_a_limit_without_bounds_is_no_limit(command: str, pow_store_made: Path) -> None:
    assert holdfast(command, "-d", pow_store_made, "--limit", "9" * 40, "--json").code == 0


def test_a_directory_is_not_a_url(pow_store_made: Path, tmp_path: Path) -> None:
    for url in (f"sqlite:{tmp_path / 'new'}", "memory:"):
        answer = holdfast("init", "-d", url, "--chain", "pow", "--json")
        assert (answer.code, answer.error["code"]) == (2, "invalid_input")
    assert not (tmp_path / "new").exists()
    assert holdfast("tip", "-d", f"rocksdb:{pow_store_made}").code == 2


def test_a_path_that_cannot_be_is_the_callers_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / ("n" * 300), tmp_path / "file" / "store"):
        assert holdfast("init", "-d", place, "--chain", "pow").code == 2
    assert "not a regular file" in holdfast("import", "evm", tmp_path, "-d", tmp_path / "s").err


def test_an_error_for_people_names_the_next_step(tmp_path: Path) -> None:
    answer = holdfast("tip", "-d", tmp_path / "none")
    first, second = answer.err.splitlines()
    assert first.startswith("error: ")
    assert str(tmp_path / "none") in first
    assert second.startswith("next: ")


def test_json_can_be_asked_by_the_environment(tmp_path: Path) -> None:
    answer = holdfast("tip", "-d", tmp_path / "none", env={"HOLDFAST_JSON": "1"})
    refused(answer, 14, "store_not_found")


def test_the_directory_can_come_from_the_environment(pow_store_made: Path) -> None:
    answer = holdfast("tip", "--json", env={"HOLDFAST_DATA_DIR": str(pow_store_made)})
    assert answer.record["height"] == 45


def test_an_unknown_setting_is_refused(pow_store_made: Path) -> None:
    answer = holdfast("tip", "-d", pow_store_made, "--json", env={"HOLDFAST_CACHE_BITES": "1"})
    refused(answer, 2, "invalid_input")


# -- bad files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "exit_code", "code"),
    [("magic", 10, "invalid_block"), ("truncated", 10, "invalid_block"), ("huge", 10, "limit_exceeded")],
)
def test_a_bad_block_file_creates_no_store(damage: str, exit_code: int, code: str, tmp_path: Path) -> None:
    data = unpacked(LITECOIN, tmp_path / "blk.dat")
    if damage == "magic":
        data[0] ^= 0xFF
    elif damage == "truncated":
        del data[-10:]
    else:
        data[4:8] = (2**30).to_bytes(4, "little")
    (tmp_path / "blk.dat").write_bytes(data)
    answer = holdfast("import", "bitcoin", tmp_path / "blk.dat", "-d", tmp_path / "s", "--json")
    error = refused(answer, exit_code, code)
    context = error["context"]
    assert isinstance(context, dict)
    assert context["path"].endswith("blk.dat")
    assert not (tmp_path / "s").exists()


def test_a_bad_block_inside_keeps_those_before_it(tmp_path: Path) -> None:
    data = unpacked(LITECOIN, tmp_path / "blk.dat")
    data[-1] ^= 1
    (tmp_path / "blk.dat").write_bytes(data)
    answer = holdfast("import", "bitcoin", tmp_path / "blk.dat", "-d", tmp_path / "s", "--json")
    refused(answer, 10, "invalid_block")
    stats = done("stats", "-d", tmp_path / "s", "--json").record
    assert 0 < stats["chain"]["blocks"] < 1151  # type: ignore[index]


def test_files_of_another_chain_are_refused(pow_store: Path, evm_store: Path, tmp_path: Path) -> None:
    for store in (pow_store, evm_store):
        refused(holdfast("import", "bitcoin", LITECOIN, "-d", store, "--json"), 16, "foreign_store")
    refused(holdfast("mine", "-d", evm_store, "--json"), 16, "foreign_store")
    refused(holdfast("export", "-d", evm_store, "--json"), 16, "foreign_store")
    refused(holdfast("init", "-d", evm_store, "--chain", "evm", "--json"), 16, "store_exists")
    done("import", "bitcoin", LITECOIN, "-d", tmp_path / "s", "--json")
    answer = holdfast("import", "bitcoin", LITECOIN, "-d", tmp_path / "s", "--network", "main", "--json")
    assert answer.code in (10, 16)


def test_blocks_without_their_parents_need_a_base(tmp_path: Path) -> None:
    unpacked(ANVIL, tmp_path / "all.jsonl")
    lines = (tmp_path / "all.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "late.jsonl").write_bytes(b"".join(lines[100:104]))
    refused(holdfast("import", "evm", tmp_path / "late.jsonl", "-d", tmp_path / "s", "--json"), 16, "parent_unknown")
    report = done(
        "import", "evm", tmp_path / "late.jsonl", "-d", tmp_path / "t", "--base-height", "100", "--json"
    ).record
    assert report["tip"]["height"] == 103  # type: ignore[index]


def test_a_cut_export_is_refused(pow_store_made: Path, tmp_path: Path) -> None:
    whole = done("export", "-d", pow_store_made).out
    (tmp_path / "cut.json").write_text(whole[:-3])
    refused(holdfast("import", "pow-json", tmp_path / "cut.json", "-d", tmp_path / "s", "--json"), 2, "invalid_input")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    refused(
        holdfast("import", "pow-json", tmp_path / "binary.json", "-d", tmp_path / "t", "--json"), 2, "invalid_input"
    )


@pytest.mark.slow
def test_a_node_that_does_not_answer_creates_no_store(tmp_path: Path) -> None:
    answer = holdfast("sync", "evm", "http://127.0.0.1:1", "-d", tmp_path / "s", "--once", "--json")
    refused(answer, 17, "remote")
    assert not (tmp_path / "s").exists()


# -- directories without permission ---------------------------------------------------------------------------------


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user can reach, unlike pytest's own."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(directory)


@contextmanager
def without_privileges() -> Iterator[None]:
    """As an ordinary user: the super-user may write everywhere."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sqlite", "rocksdb"])
def test_a_read_only_directory_is_not_written(engine: str, pow_store: Path, open_directory: Path) -> None:
    if engine != "rocksdb":
        done("convert", "--to", engine, "-d", pow_store, "--json")
    for command in ("tip", "finalize 1"):
        done(*command.split(), "-d", pow_store)  # what is imported late must be imported while it can be read
    done("init", "--chain", "pow", "-d", open_directory / "first")
    store = Path(shutil.copytree(pow_store, open_directory / "store"))
    for path in sorted(store.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    store.chmod(0o555)
    open_directory.chmod(0o555)
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    with without_privileges():
        journal = holdfast("journal", "inspect", "-d", store, "--json")
        tip = holdfast("tip", "-d", store, "--json")
        finalized = holdfast("finalize", "3", "-d", store, "--json")
        made = holdfast("init", "--chain", "pow", "-d", open_directory / "new", "--json")
    assert journal.code == 0
    refused(tip, 8, "read_only")  # the engines write beside their tables, also when they only read
    refused(finalized, 8, "read_only")
    refused(made, 8, "read_only")
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before


# -- signals and pipes ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_an_import_between_batches_and_it_resumes(number: signal.Signals, tmp_path: Path) -> None:
    arguments = ("import", "bitcoin", LITECOIN, "-d", tmp_path / "s", "--batch-blocks", "1", "--progress-seconds", "0")
    process = start(*arguments)
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen = line
        if "importing: 5/" in line:
            process.send_signal(number)
            break
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, seen + err
    assert "next: run the same command again" in err
    assert "Traceback" not in err
    added = int(next(line.split()[1] for line in out.splitlines() if line.startswith("added")))
    assert 5 <= added < 1151
    report = done("import", "bitcoin", LITECOIN, "-d", tmp_path / "s", "--json").record
    assert report["known"] == added
    assert report["recovery"]["clean"] is True  # type: ignore[index]
    done("verify", "--level", "views", "-d", tmp_path / "s")


@pytest.mark.slow
def test_a_signal_stops_mining(tmp_path: Path) -> None:
    done("init", "-d", tmp_path / "s", "--chain", "pow", "--difficulty", str(2**40), "--json")
    process = start("mine", "-d", tmp_path / "s")
    try:
        while str(process.pid) not in (tmp_path / "s" / "LOCK").read_text().split():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, out + err
    assert "Traceback" not in err
    assert done("tip", "-d", tmp_path / "s", "--json").record["height"] == 0


@pytest.mark.slow
def test_a_reader_that_leaves_ends_the_command_quietly(pow_store: Path) -> None:
    process = start("blocks", "-d", pow_store, "--limit", "0", "--json")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 141
    process.stderr.close()


@pytest.mark.slow
def test_a_full_device_under_the_output_is_no_bug(pow_store_made: Path) -> None:
    with open("/dev/full", "w") as full:
        for limit in ("1", "0"):
            arguments = [sys.executable, "-m", "holdfast", "blocks", "-d", str(pow_store_made), "--limit", limit]
            ended = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, check=False)
            assert ended.returncode == 5, ended.stderr
            assert b"Traceback" not in ended.stderr


def test_exit_codes_of_a_real_process(pow_store: Path) -> None:
    assert child("tip", "-d", pow_store, "--json").record["height"] == 45
    with api.open(pow_store, create=False):
        locked = child("finalize", "3", "-d", pow_store)
    assert locked.code == 7
    assert "Traceback" not in locked.err
    assert locked.err.splitlines()[-1].startswith("next: ")
    assert str(os.getpid()) in locked.err
    assert child("tip", "-d", pow_store / "none").code == 14


def test_exit_codes_do_not_collide_with_those_of_the_shell() -> None:
    assert {130, 141}.isdisjoint(kind.exit_code for kind in all_errors())
    assert all(0 < kind.exit_code < 128 for kind in all_errors())


@pytest.mark.slow
def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    here, there = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "holdfast", "import", "bitcoin", LITECOIN, "-d", tmp_path / "s", "--batch-blocks", "8"],
        env=child_environment() | {"TERM": "xterm", "COLUMNS": "160"},
        stdout=subprocess.DEVNULL,
        stderr=there,
    )
    os.close(there)
    shown = b""
    with suppress(OSError):  # the other end is closed
        while data := os.read(here, 65536):
            shown += data
    os.close(here)
    assert process.wait(timeout=60) == 0
    for word in (b"importing", b"blocks/s", b"MiB", b"/1,151", b"tip "):
        assert word in shown, word
