"""What a person can do next stands below an error: the command that helps, not a general word."""

from __future__ import annotations

from pathlib import Path

import pytest

import holdfast as api
from holdfast.errors import NotFoundError
from tests.cli.cli_tools import done, holdfast
from tests.cli.state_store import StateStore

ALICE = "0x" + "0a" * 20


@pytest.fixture(scope="module")
def contract_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("remedies") / "store"
    done("init", "-d", path, "--chain", "contracts")
    done("contract", "deploy", "token", '["G", 2]', "--caller", ALICE, "-d", path)
    return path


@pytest.mark.parametrize(
    ("words", "code", "remedy"),
    [
        (["contract", "deploy", "nosuch", "--caller", ALICE], "not_found", "name one of those known"),
        (["contract", "deploy", "token", "--version", "9", "--caller", ALICE], "not_found", "--contracts"),
        (["contract", "deploy", "token", '["G"]', "--caller", ALICE], "invalid_input", "symbol (str), decimals (int)"),
        (["contract", "call", ALICE, "supply", "--view"], "not_found", "contract list"),
        (["state", "get", "nosuch"], "not_found", "state scan"),
        (["journal", "inspect", "--segment", "9"], "not_found", "journal inspect"),
    ],
)
def test_the_remedy_of_a_command(words: list[str], code: str, remedy: str, contract_store: Path) -> None:
    answer = holdfast(*words, "-d", contract_store, "--json")
    assert answer.error["code"] == code
    assert remedy in str(answer.error["remedy"])


def test_a_contract_that_is_not_known_names_those_that_are(contract_store: Path) -> None:
    answer = holdfast("contract", "deploy", "nosuch", "--caller", ALICE, "-d", contract_store)
    assert "token 1" in answer.err
    assert answer.code == 14


def test_the_remedy_of_a_key_and_of_an_index() -> None:
    with api.open("memory:") as store:
        for state in (store.state, store.draft().state):
            with pytest.raises(NotFoundError) as missing:
                state[b"missing"]
            assert "get()" in missing.value.remedy
            assert isinstance(missing.value, KeyError)
        with pytest.raises(NotFoundError) as unknown:
            store.index("nosuch")
        assert "indexes=" in unknown.value.remedy


# -- naming a block ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0", "7", "00", "07", "0x07", "tip", "abc", "0" * 63, "0" * 65, "0" * 62, "+7", "7 "])
def test_at_block_takes_a_whole_hash_and_nothing_else(text: str, one_state_made: StateStore) -> None:
    for words in (["state", "get", "acc/1"], ["state", "scan"], ["state", "root"], ["prove", "acc/1"]):
        answer = holdfast(*words, "--at-block", text, "-d", one_state_made.path, "--json")
        assert (answer.code, answer.error["code"]) == (2, "invalid_input")
        assert "--height" in str(answer.error["remedy"])


@pytest.mark.parametrize("text", ["00", "07", "0x07", "0" * 63, "+7", "7 ", "\uff17", "1_0", "9" * 20])
def test_a_height_has_one_form(text: str, one_state_made: StateStore) -> None:
    store = one_state_made.path
    for words in (["show", text], ["state", "diff", text, "tip"]):
        answer = holdfast(*words, "-d", store, "--json")
        assert (answer.code, answer.error["code"]) == (2, "invalid_input")
    answer = holdfast("reorg", "--to", "7", "-d", store, "--json")
    assert (answer.code, answer.error["code"]) == (2, "invalid_input")
    assert done("show", "7", "-d", store, "--json").record["height"] == 7
    assert done("show", "0", "-d", store, "--json").record["height"] == 0
    zeros = holdfast("show", "0" * 64, "-d", store, "--json")
    assert (zeros.code, zeros.error["code"]) == (14, "block_not_found")
