"""``import xai`` and ``export`` of an xai chain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import xai_makers as make
from tests.cli.cli_tools import holdfast


def _file(tmp_path: Path, data: bytes, name: str = "blockchain.json") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def test_import_and_export_give_the_same_bytes(tmp_path: Path) -> None:
    inner = make.chain(70)
    inner["pending_transactions"] = [make.tx("XAIminer", "XAIb", 1.5, 0.1)]
    file = _file(tmp_path, make.package(inner))
    answer = holdfast("import", "xai", file, "--data-dir", tmp_path / "store", "--json")
    assert answer.code == 0, answer.err
    assert answer.record["added"] == 70
    assert answer.record["checksum"] == make.checksum(inner)
    out = tmp_path / "out.json"
    assert holdfast("export", "--data-dir", tmp_path / "store", "--out", out).code == 0
    assert out.read_bytes() == file.read_bytes()
    assert make.passes(out)
    shown = holdfast("export", "--data-dir", tmp_path / "store")
    assert shown.out.encode() == file.read_bytes()


def test_an_import_goes_on_and_takes_all_three_formats(tmp_path: Path) -> None:
    inner = make.chain(12)
    short = {**inner, "chain": inner["chain"][:5]}
    store = tmp_path / "store"
    for data, added in ((make.legacy(short), 5), (make.checkpoint(inner), 7), (make.package(inner), 0)):
        answer = holdfast("import", "xai", _file(tmp_path, data), "--data-dir", store, "--json")
        assert (answer.code, answer.record["added"]) == (0, added)
    assert holdfast("tip", "--data-dir", store, "--json").record["height"] == 11


def test_blocks_name_their_miner(tmp_path: Path) -> None:
    file = _file(tmp_path, make.package(make.chain(2, miner="XAIsomebody")))
    holdfast("import", "xai", file, "--data-dir", tmp_path / "store")
    assert holdfast("tip", "--data-dir", tmp_path / "store", "--json").record["producer"] == "XAIsomebody"
    assert holdfast("verify", "--data-dir", tmp_path / "store", "--level", "full").code == 0


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"{", 3),
        (make.package(make.chain(3)).replace(b"12.0", b"13.0"), 3),
        (make.package(make.chain(3), checksum="0" * 64), 3),
        (make.legacy(make.chain(3)).replace(b'"risk_score": 0.0', b'"risk_score": 1e999'), 3),
        (make.legacy(make.chain(3)).replace(b'"difficulty": 1,\n  "stats"', b'"difficulty": 1e999,\n  "stats"'), 3),
        (make.legacy({**make.chain(3), "pending_transactions": {}}), 10),
        (make.legacy({**make.chain(3), "n" * 300: 1}), 10),
        (b'{"chain": []}', 2),
        (b'{"chain": [{}]}', 10),
        (make.legacy({"chain": [{**make.chain(1)["chain"][0], "nonce": 77}]}), 10),
    ],
)
def test_a_bad_file_makes_no_store(tmp_path: Path, data: bytes, code: int) -> None:
    file = _file(tmp_path, data)
    answer = holdfast("import", "xai", file, "--data-dir", tmp_path / "store", "--json")
    assert answer.code == code, answer.err
    assert not (tmp_path / "store").exists()
    assert file.read_bytes() == data


def test_a_bad_block_is_named_and_those_before_it_stay(tmp_path: Path) -> None:
    inner = make.chain(5)
    broken = make.mined({**inner["chain"][3], "merkle_root": "0" * 64})
    inner["chain"][3] = broken
    answer = holdfast("import", "xai", _file(tmp_path, make.legacy(inner)), "--data-dir", tmp_path / "s", "--json")
    assert answer.code == 10
    assert "Merkle" in str(answer.error["message"])
    assert holdfast("tip", "--data-dir", tmp_path / "s", "--json").record["height"] == 2


def test_another_chain_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "store"
    holdfast("import", "xai", _file(tmp_path, make.package(make.chain(2))), "--data-dir", store)
    other = _file(tmp_path, make.package(make.chain(2, miner="XAIother")), "other.json")
    answer = holdfast("import", "xai", other, "--data-dir", store, "--json")
    assert (answer.code, answer.error["code"]) == (16, "foreign_store")
    pow_store = tmp_path / "pow"
    holdfast("init", "--chain", "pow", "--data-dir", pow_store)
    assert holdfast("import", "xai", other, "--data-dir", pow_store, "--json").error["code"] == "foreign_store"
    assert holdfast("export", "--data-dir", store, "--lines", "--json").code == 2


def test_an_xai_store_is_not_made_without_a_file(tmp_path: Path) -> None:
    answer = holdfast("init", "--chain", "xai", "--data-dir", tmp_path / "s", "--json")
    assert answer.code == 2
    assert "import xai" in str(answer.error["remedy"])


def test_one_file_at_a_time(tmp_path: Path) -> None:
    file = _file(tmp_path, make.package(make.chain(1)))
    assert holdfast("import", "xai", file, file, "--data-dir", tmp_path / "s").code == 2
    assert holdfast("import", "xai", file, "--magic", "00000000", "--data-dir", tmp_path / "s").code == 2


def test_the_file_says_what_it_was(tmp_path: Path) -> None:
    file = _file(tmp_path, json.dumps(make.chain(2)).encode())
    answer = holdfast("import", "xai", file, "--data-dir", tmp_path / "s")
    assert "names no checksum" in answer.err
