"""``prove`` and ``verify-proof``: what is proved, what is refused, and that checking needs no store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import holdfast as api
from holdfast.cli import proving
from holdfast.cli.main import app
from tests.cli.cli_tools import Answer, child, done, holdfast
from tests.cli.state_store import BIG, HEIGHTS, KEYS, StateStore, block_hash

TIP = HEIGHTS - 1


def refused(answer: Answer, exit_code: int = 10, code: str = "proof_invalid") -> str:
    assert (answer.code, answer.out) == (exit_code, ""), answer
    assert answer.error["code"] == code
    return str(answer.error["message"])


def root_at(store: StateStore, height: int) -> str:
    return str(done("state", "root", "-d", store.path, "--height", str(height), "--json").record["root"])


def verified(data: object, *args: str) -> Answer:
    """The answer of ``verify-proof`` for this JSON on stdin."""
    text = json.dumps(data) if not isinstance(data, bytes) else data
    result = CliRunner().invoke(app, ["verify-proof", "-", *args, "--json"], input=text)
    return Answer(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(scope="module")
def proof(one_state_made: StateStore) -> dict[str, Any]:
    """The proof of one present key at height 9."""
    key = next(key for key in KEYS if key in one_state_made.states[9])
    return done("prove", "--hex", key.hex(), "--height", "9", "-d", one_state_made.path).record


@pytest.mark.slow
def test_each_key_is_proved_at_each_height(state_made: StateStore) -> None:
    others = {0: root_at(state_made, TIP), TIP: root_at(state_made, 0)}
    for height in (0, TIP):
        root = others[TIP - height]
        for key in (KEYS[1], KEYS[19], b"never"):
            found = done("prove", "0x" + key.hex(), "--height", str(height), "-d", state_made.path).record
            value = state_made.states[height].get(key)
            assert list(found) == ["scheme", "height", "block", "root", "key", "value", "proof"]
            assert (found["height"], found["root"]) == (height, root)
            assert found["block"] == block_hash(f"block {height}").hex()
            assert found["value"] == (None if value is None else value.hex())
            api.verify_proof(bytes.fromhex(str(found["proof"])), bytes.fromhex(root), key, value)
            answer = verified(found, "--root", root)
            assert answer.code == 0
            assert answer.record["claims"] == [{"key": key.hex(), "value": found["value"]}]
            refused(verified(found, "--root", others[height]))


@pytest.mark.slow
def test_many_keys_are_one_proof(state_made: StateStore, tmp_path: Path) -> None:
    names = [key.hex() for key in (*KEYS[:20], b"never", b"nor this")]
    file = tmp_path / "many.json"
    told = done("prove", "--hex", *names, "-d", state_made.path, "--height", "15", "--out", file, "--json").record
    assert (told["keys"], told["height"]) == (22, 15)
    found = json.loads(file.read_bytes())
    state = state_made.states[15]
    assert [bytes.fromhex(claim["key"]).hex() for claim in found["values"]] == names
    for claim in found["values"]:
        value = state.get(bytes.fromhex(claim["key"]))
        assert claim["value"] == (None if value is None else value.hex())
    root = root_at(state_made, 15)
    assert holdfast("verify-proof", file, "--root", root).out.count("proved: ") == 22
    present = next(claim for claim in found["values"] if claim["value"] is not None)
    present["value"] = None
    refused(verified(found, "--root", root))
    present["value"] = "00ff"
    refused(verified(found, "--root", root))
    found["values"].pop()
    refused(verified(found, "--root", root))
    single = done("prove", "--many", "acc/1", "-d", state_made.path).record
    assert isinstance(single["values"], list)
    assert len(single["values"]) == 1


@pytest.mark.slow
def test_a_large_value_is_proved_whole(one_state_made: StateStore, tmp_path: Path) -> None:
    file, root = tmp_path / "big.json", root_at(one_state_made, 9)
    done("prove", "acc/big", "--height", "9", "-d", one_state_made.path, "--out", file)
    assert json.loads(file.read_bytes())["value"] == BIG.hex()
    assert holdfast("verify-proof", file, "--root", root).code == 0
    refused(holdfast("verify-proof", file, "--root", root, "--value", "0x" + BIG[:-1].hex(), "--json"))


@pytest.mark.slow
def test_every_part_of_a_proof_matters(proof: dict[str, Any]) -> None:
    root = proof["root"]
    assert verified(proof, "--root", root).code == 0
    raw = bytearray.fromhex(proof["proof"])
    for place in range(0, len(raw), 29):
        damaged = raw[:place] + bytes((raw[place] ^ 1,)) + raw[place + 1 :]
        refused(verified(proof | {"proof": damaged.hex()}, "--root", root))
    for change in (
        {"key": "00"},
        {"value": None},
        {"value": proof["value"] + "00"},
        {"proof": ""},
        {"proof": proof["proof"] + "00"},
        {"scheme": "ics23-smt"},
    ):
        refused(verified(proof | change, "--root", root))
    refused(verified(proof, "--root", "00" * 32))
    flipped = f"{int(root[:2], 16) ^ 1:02x}{root[2:]}"
    refused(verified(proof, "--root", flipped))
    assert verified(proof | {"root": flipped}, "--root", root).code == 0, "the file's root is not looked at"


@pytest.mark.slow
def test_the_claim_can_come_from_the_caller(proof: dict[str, Any]) -> None:
    root, key, value = proof["root"], "0x" + proof["key"], "0x" + proof["value"]
    bare = ["verify-proof", "--proof", proof["proof"], "--root", root, "--json"]
    assert holdfast(*bare, "--key", key, "--value", value).code == 0
    assert holdfast(*bare, "--key", proof["key"], "--value", proof["value"], "--hex").code == 0
    refused(holdfast(*bare, "--key", key, "--absent"))
    refused(holdfast(*bare, "--key", key, "--value", "other"))
    refused(holdfast(*bare, "--key", "other", "--value", value))
    refused(holdfast(*bare, "--key", key, "--value", value, "--scheme", "ics23-smt"))
    refused(verified(proof, "--root", root, "--value", "other"))
    refused(verified(proof, "--root", root, "--key", "other"))
    refused(verified(proof, "--root", root, "--absent"))
    assert verified(proof, "--root", root, "--key", key, "--value", value).code == 0


@pytest.mark.slow
def test_an_absent_key_is_proved_absent_and_nothing_else(one_state_made: StateStore) -> None:
    found = done("prove", "never", "-d", one_state_made.path).record
    root, data = str(found["root"]), str(found["proof"])
    assert found["value"] is None
    bare = ["verify-proof", "--proof", data, "--root", root, "--json"]
    assert holdfast(*bare, "--key", "never", "--absent").code == 0
    refused(holdfast(*bare, "--key", "never", "--value", "x"))
    refused(holdfast(*bare, "--key", "ever", "--absent"))
    text = holdfast("verify-proof", "--proof", data, "--root", root, "--key", "never", "--absent").out
    assert text == f"proved: never is absent\nroot    {root}\n"


def test_the_root_must_come_from_the_caller(proof: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text(json.dumps(proof))
    message = refused(holdfast("verify-proof", file, "--json"), 2, "invalid_input")
    assert "from elsewhere" in message
    trusting = holdfast("verify-proof", file, "--trust-file")
    assert trusting.code == 0
    assert "does not show that any chain has it" in trusting.err
    assert "of the file itself" in trusting.out
    assert verified(proof, "--trust-file").record["root_from_file"] is True
    assert verified(proof, "--root", proof["root"]).record["root_from_file"] is False


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["{file}", "--root", "{root}", "--proof", "00"],
        ["--proof", "00", "--root", "{root}"],
        ["--proof", "00", "--root", "{root}", "--key", "k"],
        ["--proof", "00", "--root", "{root}", "--value", "k"],
        ["--proof", "0", "--root", "{root}", "--key", "k", "--absent"],
        ["--proof", "00", "--trust-file", "--key", "k", "--absent"],
        ["{file}", "--root", "{root}", "--trust-file"],
        ["{file}", "--root", "12"],
        ["{file}", "--root", "{root}", "--value", "a", "--absent"],
        ["{file}", "--root", "{root}", "--key", "0xz"],
        ["{file}", "--root", "{root}", "--scheme", "md5"],
        ["missing.json", "--root", "{root}"],
        [".", "--root", "{root}"],
    ],
)
def test_bad_usage_of_verify_proof(args: list[str], proof: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text(json.dumps(proof))
    given = [arg.format(file=file, root=proof["root"]) for arg in args]
    refused(holdfast("verify-proof", *given, "--json"), 2, "invalid_input")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"nonsense",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"scheme": "jmt-sha256"}',
        b'{"scheme":"jmt-sha256","root":"%s","proof":""}',
        b'{"scheme":"jmt-sha256","root":"%s","proof":"","key":"00","value":null,"more":1}',
        b'{"scheme":"jmt-sha256","root":"%s","proof":"","key":"00","values":[]}',
        b'{"scheme":"jmt-sha256","root":"%s","proof":"","key":"0","value":null}',
        b'{"scheme":"jmt-sha256","root":"%s","proof":"xx","key":"00","value":null}',
        b'{"scheme":"jmt-sha256","root":"%s","proof":"","key":"00","value":"\\u00e4"}',
        b'{"scheme":"jmt-sha256","root":1,"proof":"","key":"00","value":null}',
        b'{"scheme":"md5","root":"%s","proof":"","key":"00","value":null}',
        b'{"scheme":"jmt-sha256","root":"%s","proof":"","values":[]}',
        b'{"scheme":"jmt-sha256","root":"%s","proof":"","values":[{"key":"00","value":null},{"key":"00","value":"01"}]}',
        b'{"scheme":"jmt-sha256","root":"short","proof":"","key":"00","value":null}',
    ],
)
def test_a_file_that_is_no_proof_is_refused(text: bytes) -> None:
    refused(verified(text.replace(b"%s", b"00" * 32), "--trust-file"), 2, "invalid_input")


def test_a_file_without_an_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch, proof: dict[str, Any]) -> None:
    monkeypatch.setattr(proving, "_FILE_BYTES_MAX", 100)
    assert "too long" in refused(verified(proof, "--root", proof["root"]), 2, "invalid_input")


def test_claims_of_one_key_are_not_for_many(one_state_made: StateStore) -> None:
    found = done("prove", "acc/1", "never", "-d", one_state_made.path).record
    for more in (["--key", "acc/1"], ["--value", "x"], ["--absent"]):
        refused(verified(found, "--root", str(found["root"]), *more), 2, "invalid_input")


@pytest.mark.parametrize(
    ("words", "exit_code", "code"),
    [
        ("prove", 2, "invalid_input"),
        ("prove 0xz", 2, "invalid_input"),
        ("prove {long}", 10, "limit_exceeded"),
        ("prove 0x", 2, "invalid_input"),
        ("prove a a", 2, "invalid_input"),
        ("prove a --height 99", 14, "block_not_found"),
        ("prove a --height 1 --at-block tip", 2, "invalid_input"),
        ("prove a --out {there}", 2, "invalid_input"),
        ("prove a --out no/such/directory/p.json", 2, "invalid_input"),
    ],
)
def test_bad_usage_of_prove(words: str, exit_code: int, code: str, one_state_made: StateStore, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("mine")
    given = [word.format(long="k" * 401, there=there) for word in words.split()]
    refused(holdfast(*given, "-d", one_state_made.path, "--json"), exit_code, code)
    assert there.read_text() == "mine"


@pytest.mark.slow
def test_a_real_process_verifies_without_a_store_or_an_engine(proof: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text(json.dumps(proof))
    assert child("verify-proof", file, "--root", proof["root"]).code == 0
    assert child("verify-proof", file, "--root", "00" * 32).code == 10
    import subprocess
    import sys

    from tests.cli.cli_tools import child_environment

    code = (
        "import sys\nfrom holdfast.cli.main import app\n"
        f"app(['verify-proof', {str(file)!r}, '--root', {proof['root']!r}], standalone_mode=False)\n"
        "print([n for n in ('rocksdict', 'sqlite3', 'lmdb', 'holdfast.store', 'holdfast.views') if n in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], env=child_environment(), capture_output=True, text=True, timeout=60
    )
    assert answer.stdout.splitlines()[-1] == "[]", answer
