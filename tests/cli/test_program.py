"""The program as a whole: help, version, completion, JSON everywhere, what is imported, what reaches a terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.cli.output import bytes_text, clean, time_text
from tests.cli.cli_tools import child_environment, done, holdfast
from tests.cli.reference import DOCUMENT, MARK, commands, option_names, render


def test_every_command_answers_in_json() -> None:
    assert [name for name, command in commands() if "--json" not in option_names(command)] == []


def test_every_command_that_needs_a_store_names_its_directory_alike() -> None:
    without = [name for name, command in commands() if "--data-dir" not in option_names(command)]
    expected = ["verify-proof", "diff", "snapshot verify", "selftest durability", "events list", "notify test"]
    assert without == expected


def test_every_command_and_option_is_explained() -> None:
    assert [name for name, command in commands() if not command.help] == []
    assert [
        f"{name} {parameter.name}"
        for name, command in commands()
        for parameter in command.params
        if parameter.param_type_name == "option" and not parameter.help
    ] == []


def test_the_document_is_the_program() -> None:
    written = DOCUMENT.read_text(encoding="ascii").partition(MARK)[2]
    assert written.strip() == render().strip(), "run: python -m tests.cli.reference --write"


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_every_command_has_help(name: str) -> None:
    assert "--json" in done(*name.split(), "--help").out


def test_the_version_is_printed() -> None:
    import holdfast as package

    assert done("--version").out == f"holdfast {package.__version__}\n"


def test_no_arguments_show_the_help() -> None:
    answer = holdfast()
    assert answer.code == 2
    assert "Commands" in answer.out + answer.err


def test_completion_is_offered() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", "from holdfast.cli.main import app; app(prog_name='holdfast')"],
        env=child_environment()
        | {"_HOLDFAST_COMPLETE": "complete_bash", "COMP_WORDS": "holdfast ver", "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.stdout.split() == ["verify-proof", "verify"], answer.stderr
    assert "--install-completion" in done("--help").out


def test_an_interrupt_while_the_program_is_loaded_is_no_traceback() -> None:
    code = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'holdfast.cli.main':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from holdfast.__main__ import run\n"
        "run()\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], env=child_environment(), capture_output=True, text=True, timeout=60
    )
    assert (answer.returncode, answer.stdout, answer.stderr) == (130, "", "")


def test_help_needs_no_engine() -> None:
    code = (
        "import sys, json, holdfast.cli.main\n"
        "names = ('rocksdict', 'lmdb', 'sqlite3', 'psutil', 'rich.progress', 'matplotlib', 'numpy', 'holdfast.chains', "
        "'holdfast.contracts', 'holdfast.recovery')\n"
        "print(json.dumps([name for name in names if name in sys.modules]))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], env=child_environment(), capture_output=True, text=True, timeout=60
    )
    assert json.loads(answer.stdout) == []


def test_a_name_from_the_chain_cannot_drive_the_terminal(pow_store: Path) -> None:
    evil = "\x1b[31mred\x07\u202e"
    done("mine", "-d", pow_store, "--peer", evil, "--json")
    for command in ("tip", "blocks --from 46", "show 46"):
        out = done(*command.split(), "-d", pow_store).out
        assert "\\x1b[31mred" in out
        assert "\x1b" not in out
        assert "\u202e" not in out
    assert done("tip", "-d", pow_store, "--json").record["producer"] == evil


def test_a_bug_of_ours_exits_70_with_its_trace(monkeypatch: pytest.MonkeyPatch, pow_store_made: Path) -> None:
    from holdfast.cli import session

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a planted bug")

    monkeypatch.setattr(session, "open_to_read", broken)
    answer = holdfast("tip", "-d", pow_store_made)
    assert answer.code == 70
    assert "Traceback" in answer.err
    as_json = holdfast("tip", "-d", pow_store_made, "--json")
    assert as_json.code == 70
    assert "a planted bug" in str(as_json.error["message"])


def test_values_for_people() -> None:
    assert clean("a\nb\tc") == "a\\nb\\tc"
    assert clean(None) == "-"
    assert bytes_text(1536) == "1.5 KiB"
    assert bytes_text(7) == "7 B"
    assert time_text(0) == "1970-01-01 00:00:00"
    assert time_text(2**63 - 1) == str(2**63 - 1)
