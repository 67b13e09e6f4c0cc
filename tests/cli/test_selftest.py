"""``holdfast selftest durability``: its figures, what it finds, and that nothing of it stays."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast._fs import RealFileSystem
from holdfast.cli import selftest
from holdfast.errors import CommitLoss, CorruptionError, InternalError, InvalidInputError, OutOfSpace
from tests.cli.cli_tools import ROOT, Answer, holdfast


def run(directory: Path, *more: str) -> Answer:
    return holdfast("selftest", "durability", "--dir", directory, "--seconds", "0.1", *more)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "flag"),
    [
        ("rocksdb", ("paranoid_checks", "true")),
        ("lmdb", ("metasync", True)),
        ("sqlite", ("write_ahead_log", True)),
    ],
)
def test_a_good_disk(engine: str, flag: tuple[str, object], tmp_path: Path) -> None:
    answer = run(tmp_path, "--json", "--engine", engine)
    assert answer.code == 0, answer.err
    record = answer.record
    assert record["ok"] is True
    kills, settings, sync = record["kills"], record["settings"], record["sync"]
    assert isinstance(kills, dict)
    assert isinstance(settings, dict)
    assert isinstance(sync, dict)
    assert kills["rounds"] >= 1
    assert kills["acknowledged"] >= 1
    assert kills["lost"] == 0
    assert settings["durability"] == "sync"
    assert settings[flag[0]] == flag[1]
    assert 0 < sync["p50_us"] <= sync["p99_us"] <= sync["max_us"]
    assert "cutting the power" in str(record["not_tested"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_implausibly_quick_sync_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_IMPLAUSIBLE_US", 1e12)
    answer = run(tmp_path)
    assert answer.code == 0
    assert "warning: a sync took" in answer.out
    assert "not tested: " in answer.out


class OneMore(selftest._Kills):
    """A child that acknowledges a block which it never committed."""

    def _child(self) -> int:
        return super()._child() + 5


@pytest.mark.slow
def test_a_loss_is_an_error_and_its_evidence_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_Kills", OneMore)
    answer = run(tmp_path, "--json")
    assert answer.code == CommitLoss.exit_code
    assert answer.error["code"] == "commit_loss"
    (kept,) = tmp_path.iterdir()
    assert str(kept) in str(answer.error["context"])
    assert (kept / "store" / "journal").is_dir()


@pytest.mark.slow
def test_wrong_bytes_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_body_of", lambda number: b"not what the child wrote")
    assert run(tmp_path, "--json").code == CorruptionError.exit_code


def test_what_a_killed_run_left_is_taken_away(tmp_path: Path) -> None:
    killed, runs, evidence, other = (tmp_path / f"{selftest._PREFIX}{name}" for name in ("a", "b", "c", "d"))
    for place in (killed, runs, evidence):
        (place / "store").mkdir(parents=True)
    (killed / selftest._RUNNING).touch()
    other.symlink_to(killed)
    held = RealFileSystem().lock(runs / selftest._RUNNING, "a run that goes on")
    with selftest._fresh(tmp_path) as place:
        assert sorted(tmp_path.iterdir()) == sorted([runs, evidence, other, place])
    held.release()
    assert sorted(tmp_path.iterdir()) == [runs, evidence, other]
    with pytest.raises(CommitLoss), selftest._fresh(tmp_path) as place:
        raise CommitLoss("as evidence")
    with selftest._fresh(tmp_path):
        pass
    assert sorted(tmp_path.iterdir()) == sorted([evidence, other, place])


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    assert run(tmp_path / "none").code == InvalidInputError.exit_code
    (tmp_path / "file").touch()
    assert run(tmp_path / "file").code == InvalidInputError.exit_code


def test_the_error_of_a_child_keeps_its_kind() -> None:
    told = selftest._error_of(
        b'noise\n{"code": "out_of_space", "message": "full", "remedy": "r", "context": {"path": "p"}}'
    )
    assert isinstance(told, OutOfSpace)
    assert told.context == {"path": "p"}
    for odd in (b"", b"Traceback", b"{}", b'{"code": "none", "message": "", "remedy": "", "context": {}}'):
        assert isinstance(selftest._error_of(odd), InternalError)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "holdfast", "selftest", "durability", "--dir", str(tmp_path), "--seconds", "60"]
    child = subprocess.Popen(
        [*command, "--progress-seconds", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": ""},
    )
    assert child.stderr is not None
    assert "killing: 1 rounds" in child.stderr.readline()
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert "lost" in out
    assert list(tmp_path.iterdir()) == []
