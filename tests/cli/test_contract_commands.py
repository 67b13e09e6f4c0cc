"""``contract deploy``, ``call`` and ``list``: one block each, receipts, views, and a registry of one's own."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import holdfast as api
from holdfast.contracts import ContractChain, ContractRegistry, contract_address
from holdfast.contracts.codec import Address
from holdfast.contracts.examples import EXAMPLES
from holdfast.contracts.transactions import decode_header, encode_header, header_hash
from tests.cli.cli_tools import Answer, child, done, holdfast

ALICE, BOB = "0x" + "0a" * 20, "0x" + "0b" * 20
TOKEN = "0x" + bytes(contract_address(Address(bytes.fromhex(ALICE[2:])), 0)).hex()

OWN = """
from holdfast.contracts import Contract, ContractRegistry, Value, entry, init, view

class Tally(Contract, name="tally", version=3):
    total = Value(int, default=0)

    @init
    def start(self, by: int) -> None:
        self.total = by

    @entry
    def add(self, by: int, note: str) -> int:
        self.require(by > 0, "only up")
        self.total = self.total + by
        return self.total

    @view
    def now(self) -> int:
        return self.total

class Guess(Contract, name="guess", version=1):
    @view
    def one(self) -> int:
        return hash("x")

registry = ContractRegistry([Tally])
several = [Tally]
broken = [Guess]
nothing = 7
"""


def refused(answer: Answer, exit_code: int, code: str) -> str:
    assert (answer.code, answer.out) == (exit_code, ""), answer
    assert answer.error["code"] == code
    assert answer.error["remedy"]
    return str(answer.error["message"])


@pytest.fixture(params=["sqlite", "rocksdb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "store"
    done("init", "--chain", "contracts", "--network", "test", "--engine", request.param, "-d", path, "--json")
    return path


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A store with a token in block 1."""
    path = tmp_path / "shop"
    done("init", "--chain", "contracts", "--engine", "sqlite", "-d", path, "--json")
    done("contract", "deploy", "token", '["GOLD", 2]', "--caller", ALICE, "-d", path, "--json")
    return path


def call(store: Path, method: str, arguments: str = "[]", caller: str = ALICE, *more: str) -> Answer:
    return holdfast("contract", "call", TOKEN, method, arguments, "--caller", caller, "-d", store, "--json", *more)


def ask(store: Path, method: str, arguments: str = "[]", *more: str) -> Any:
    answer = holdfast("contract", "call", TOKEN, method, arguments, "--view", "-d", store, "--json", *more)
    assert answer.code == 0, answer
    return answer.record["result"]


@pytest.mark.slow
def test_a_token_from_its_deployment_to_a_proof(store: Path) -> None:
    made = done("contract", "deploy", "token", '["GOLD", "2"]', "--caller", ALICE, "-d", store, "--json").record
    assert (made["height"], made["status"], made["result"]) == (1, "ok", TOKEN)
    (row,) = done("contract", "list", "-d", store, "--json").rows
    assert (row["address"], row["name"], row["version"], row["deployer"]) == (TOKEN, "token", 1, ALICE)
    assert done("contract", "list", "--height", "0", "-d", store, "--json").rows == []
    minted = call(store, "mint", f'{{"amount": "{10**30}", "to": "{ALICE}"}}').record
    assert (minted["height"], minted["status"]) == (2, "ok")
    events: Any = minted["events"]
    assert events == [
        {
            "address": TOKEN,
            "name": "transferred",
            "fields": {"sender": "0x" + "00" * 20, "to": ALICE, "amount": str(10**30)},
        }
    ]
    assert call(store, "transfer", f'["{BOB}", 7]').code == 0
    assert call(store, "transfer", f'["{BOB}", 7]').record["height"] == 4
    assert ask(store, "balance_of", f'["{BOB}"]') == "14"
    assert [ask(store, "balance_of", f'["{BOB}"]', "--height", str(height)) for height in (1, 2, 3)] == ["0", "0", "7"]
    root = done("state", "root", "-d", store, "--json").record["root"]
    with api.open(store, chain=ContractChain.from_spec(_spec(store), ContractRegistry(EXAMPLES))) as opened:
        assert opened.tip is not None
        assert opened.tip.height == 4
        assert opened.tip.state_root is not None
        assert opened.tip.state_root.hex() == root
    assert done("verify", "--level", "views", "-d", store, "--json").record["ok"] is True


def _spec(store: Path) -> Any:
    from holdfast._fs import RealFileSystem
    from holdfast.store.opening import read_identity

    return read_identity(RealFileSystem(), store).spec


@pytest.mark.slow
def test_a_call_that_goes_wrong_is_in_its_block_and_exits_1(shop: Path) -> None:
    before = done("state", "root", "-d", shop, "--json").record["root"]
    poor = call(shop, "transfer", f'["{BOB}", 1]')
    assert (poor.code, poor.record["status"], poor.record["height"]) == (1, "reverted", 2)
    assert poor.record["error"] == "ContractRevert: the balance is too small"
    assert poor.record["root"] == before
    assert call(shop, "mint", f'["{BOB}", 1]', BOB).record["status"] == "reverted"
    short = call(shop, "mint", f'["{BOB}", 1]', ALICE, "--gas-limit", "1100")
    assert (short.code, short.record["status"], short.record["gas_used"]) == (1, "out_of_gas", "1100")
    bad = holdfast("contract", "deploy", "token", '["", 2]', "--caller", ALICE, "-d", shop, "--json")
    assert (bad.code, bad.record["status"], bad.record["height"]) == (1, "reverted", 5)
    assert len(done("contract", "list", "-d", shop, "--json").rows) == 1
    writing = holdfast("contract", "call", TOKEN, "burn", "[1]", "--view", "-d", shop, "--json")
    assert (writing.code, writing.record["status"]) == (1, "reverted")
    assert done("tip", "-d", shop, "--json").record["height"] == 5
    text = holdfast("contract", "call", TOKEN, "transfer", f'["{BOB}", 1]', "--caller", ALICE, "-d", shop)
    assert (text.code, "the balance is too small" in text.out) == (1, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "exit_code", "code"),
    [
        (["deploy", "token", "[1]", "--caller", ALICE], 2, "invalid_input"),
        (["deploy", "token", '["GOLD", 1.5]', "--caller", ALICE], 2, "invalid_input"),
        (["deploy", "token", '["GOLD", 2', "--caller", ALICE], 2, "invalid_input"),
        (["deploy", "token", '"GOLD"', "--caller", ALICE], 2, "invalid_input"),
        (["deploy", "token", "[" * 50_000, "--caller", ALICE], 2, "invalid_input"),
        (["deploy", "token", "[" + "1" * 5000 + "]", "--caller", ALICE], 2, "invalid_input"),
        (["deploy", "token", '["GOLD", 2]'], 2, "invalid_input"),
        (["deploy", "token", '["GOLD", 2]', "--caller", "alice"], 2, "invalid_input"),
        (["deploy", "token", '["GOLD", 2]', "--caller", ALICE, "--gas-limit", "-1"], 2, "invalid_input"),
        (["deploy", "token", '["GOLD", 2]', "--caller", ALICE, "--gas-limit", "999999999999"], 2, "invalid_input"),
        (["deploy", "token", '["GOLD", 2]', "--caller", ALICE, "--gas-limit", "9" * 30], 2, "invalid_input"),
        (["deploy", "token", '["GOLD", 2]', "--caller", ALICE, "--time", "5"], 2, "invalid_input"),
        (["deploy", "token", '["GOLD", 2]', "--caller", ALICE, "--version", "2"], 14, "not_found"),
        (["deploy", "gold", "--caller", ALICE], 14, "not_found"),
        (["call", TOKEN, "nonsense", "--caller", ALICE], 2, "invalid_input"),
        (["call", TOKEN, "create", '["A", 1]', "--caller", ALICE], 2, "invalid_input"),
        (["call", TOKEN, "name_of"], 2, "invalid_input"),
        (["call", TOKEN, "name_of", "--caller", ALICE, "--height", "1"], 2, "invalid_input"),
        (["call", TOKEN, "name_of", "[1]", "--view"], 2, "invalid_input"),
        (["call", TOKEN, "name_of", "--view", "--height", "9"], 14, "block_not_found"),
        (["call", TOKEN, "name_of", "--view", "--height", "0"], 14, "not_found"),
        (["call", ALICE, "name_of", "--view"], 14, "not_found"),
        (["call", "0x12", "name_of", "--view"], 2, "invalid_input"),
        (["call", TOKEN], 2, "invalid_input"),
        (["list", "--height", "9"], 14, "block_not_found"),
        (["list", "--contracts", "no_such_module_here:x"], 2, "invalid_input"),
        (["list", "--contracts", "json:nothing"], 2, "invalid_input"),
        (["list", "--contracts", "json:JSONDecoder"], 2, "invalid_input"),
        (["list", "--contracts", "json:__doc__"], 2, "invalid_input"),
        (["list", "--contracts", "json"], 2, "invalid_input"),
        (["list", "--contracts", ":x"], 2, "invalid_input"),
        (["list", "--contracts", "..:x"], 2, "invalid_input"),
    ],
)
def test_bad_input_makes_no_block(words: list[str], exit_code: int, code: str, shop: Path) -> None:
    refused(holdfast("contract", *words, "-d", shop, "--json"), exit_code, code)
    assert done("tip", "-d", shop, "--json").record["height"] == 1


def test_another_chain_has_no_contracts(pow_store_made: Path) -> None:
    for words in (["list"], ["deploy", "token", "--caller", ALICE], ["call", TOKEN, "x", "--view"]):
        refused(holdfast("contract", *words, "-d", pow_store_made, "--json"), 16, "foreign_store")


def test_the_code_of_this_node_is_listed(shop: Path) -> None:
    rows: Any = done("contract", "list", "--codes", "-d", shop, "--json").rows
    assert [row["name"] for row in rows] == ["escrow", "names", "token"]
    assert rows[2]["abi"]["methods"]
    text = done("contract", "list", "--codes", "-d", shop).out
    assert "transfer(to address, amount int)" in text
    assert "balance_of(owner address) -> int" in text


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_contracts_of_a_test.py").write_text(OWN)
    (tmp_path / "failing_of_a_test.py").write_text("raise RuntimeError('not today')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_contracts_of_a_test", raising=False)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["registry", "several", "Tally"])
def test_a_registry_of_ones_own(name: str, own: Path, shop: Path) -> None:
    mine = ["--contracts", f"own_contracts_of_a_test:{name}", "-d", str(shop), "--json"]
    assert [row["name"] for row in done("contract", "list", "--codes", *mine).rows] == ["tally"]
    deploy = ["contract", "deploy", "tally", '{"by": 5}', "--caller", BOB, *mine]
    refused(holdfast(*deploy), 14, "not_found")
    made = done(*deploy, "--version", "3").record
    address = str(made["result"])
    added = done("contract", "call", address, "add", '{"note": "", "by": "37"}', "--caller", ALICE, *mine).record
    assert (added["result"], added["height"]) == ("42", 3)
    assert done("contract", "call", address, "now", "--view", *mine).record["result"] == "42"
    assert len(done("contract", "list", *mine).rows) == 2
    without = holdfast("contract", "call", address, "now", "--view", "-d", shop, "--json")
    assert "does not have the code" in refused(without, 14, "not_found")
    done("finalize", "3", "-d", shop)
    done("verify", "--level", "views", "-d", shop)


def test_what_is_no_registry_is_refused(own: Path, shop: Path) -> None:
    for name in ("own_contracts_of_a_test:broken", "own_contracts_of_a_test:nothing", "failing_of_a_test:x"):
        refused(holdfast("contract", "list", "--codes", "--contracts", name, "-d", shop, "--json"), 2, "invalid_input")


def test_a_module_is_only_loaded_if_it_is_asked_for(own: Path, shop: Path) -> None:
    before = list(sys.path)
    done("contract", "list", "-d", shop)
    assert sys.path == before
    assert "own_contracts_of_a_test" not in sys.modules
    (own / "json.py").write_text("raise RuntimeError('a module of Python was replaced')\n")
    done("contract", "list", "--contracts", "own_contracts_of_a_test:registry", "-d", shop)
    assert sys.path == [*before, str(own)]


def test_the_rules_of_a_network_make_another_chain(tmp_path: Path) -> None:
    ids = set()
    for network in ("one", "two"):
        answer = done("init", "--chain", "contracts", "--network", network, "-d", tmp_path / network, "--json")
        ids.add(answer.record["chain_id"])
    assert len(ids) == 2
    for words in (["--network", "\u00e4"], ["--difficulty", "5"]):
        answer = holdfast("init", "--chain", "contracts", "-d", tmp_path / "bad", *words, "--json")
        refused(answer, 2, "invalid_input")
    assert not (tmp_path / "bad").exists()


@pytest.mark.slow
def test_a_snapshot_of_the_chain_goes_on_elsewhere(shop: Path, tmp_path: Path) -> None:
    assert call(shop, "mint", f'["{ALICE}", 100]').code == 0
    told = done("snapshot", "export", "--out", tmp_path / "snap", "-d", shop, "--json").record
    new = tmp_path / "new"
    done("snapshot", "import", tmp_path / "snap", "--root", str(told["root"]), "-d", new, "--engine", "sqlite")
    assert call(new, "transfer", f'["{BOB}", 5]').record["height"] == 3
    assert ask(new, "balance_of", f'["{BOB}"]') == "5"
    answer = holdfast("contract", "list", "--height", "1", "-d", new, "--json")
    refused(answer, 15, "pruned")


@pytest.mark.slow
def test_a_real_process_with_contracts_in_its_directory(own: Path, shop: Path) -> None:
    import subprocess

    from tests.cli.cli_tools import child_environment

    words = ["contract", "list", "--codes", "--contracts", "own_contracts_of_a_test:registry", "-d", str(shop)]
    answer = subprocess.run(
        [sys.executable, "-P", "-m", "holdfast", *words],
        env=child_environment(),
        cwd=own,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 0, answer.stderr
    assert "add(by int, note str) -> int" in answer.stdout
    assert child("contract", "call", TOKEN, "transfer", f'["{BOB}", 1]', "--caller", ALICE, "-d", shop).code == 1


# -- audit -----------------------------------------------------------------------------------------------------------


def test_an_audit_executes_what_is_stored(shop: Path) -> None:
    call(shop, "mint", f'["{ALICE}", 100]')
    call(shop, "mint", f'["{BOB}", 100]', BOB)  # reverts, and is in its block
    before = done("state", "root", "-d", shop, "--json").record["root"]
    told = done("contract", "audit", "-d", shop, "--json").record
    assert told == {"blocks": 4, "height": 3, "root": before, "sound": True}
    assert "executing" in done("contract", "audit", "-d", shop, "--progress-seconds", "0").err
    assert done("verify", "-d", shop, "--json").record["ok"] is True


def test_an_audit_names_the_block_that_is_wrong(shop: Path) -> None:
    with api.open(shop, chain=ContractChain.from_spec(_spec(shop), ContractRegistry(EXAMPLES))) as opened:
        draft = opened.draft()
        assert draft.parent is not None
        chain = ContractChain.from_spec(_spec(shop), ContractRegistry(EXAMPLES))
        block = chain.propose(draft.parent, [], time=draft.parent.time, state=draft.state).block
        draft.state[b"from nowhere"] = b"1"
        header = replace(decode_header(block.header), state_root=draft.state.root())
        raw = encode_header(header)
        opened.commit(draft, hash=header_hash(header), header=raw, body=block.body, time=block.time, extra=block.extra)
    call(shop, "mint", f'["{ALICE}", 100]')
    answer = holdfast("contract", "audit", "-d", shop, "--json")
    assert "executed again" in refused(answer, 3, "corruption")
    assert answer.error["context"]["height"] == 2  # type: ignore[index]
    assert "another node" in str(answer.error["remedy"])


def test_an_audit_can_be_stopped(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ContractChain.apply

    def apply(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(ContractChain, "apply", apply)
    answer = holdfast("contract", "audit", "-d", shop)
    assert (answer.code, answer.out) == (130, "")
    assert "nothing was changed" in answer.err


@pytest.mark.parametrize("kind", ["pow", "snapshot"])
def test_what_cannot_be_audited(kind: str, shop: Path, pow_store_made: Path, tmp_path: Path) -> None:
    if kind == "pow":
        refused(holdfast("contract", "audit", "-d", pow_store_made, "--json"), 16, "foreign_store")
        return
    done("snapshot", "export", "--out", tmp_path / "snap", "-d", shop)
    done("snapshot", "import", tmp_path / "snap", "--trust-manifest", "-d", tmp_path / "new")
    assert "from the genesis on" in refused(
        holdfast("contract", "audit", "-d", tmp_path / "new", "--json"), 2, "invalid_input"
    )
