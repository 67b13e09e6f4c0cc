"""``state``, ``prune`` and ``stats`` against a store whose states are known, over several engines."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

import holdfast as api
from tests.cli.cli_tools import Answer, child, done, holdfast
from tests.cli.state_store import BIG, HEIGHTS, KEYS, TEXT_KEY, StateStore, block_hash

TIP = HEIGHTS - 1


def lines(answer: Answer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.out.splitlines()]


def rows_of(answer: Answer) -> list[tuple[bytes, bytes]]:
    return [(bytes.fromhex(row["key"]), bytes.fromhex(row["value"])) for row in lines(answer)]


def refused(answer: Answer, exit_code: int, code: str) -> dict[str, object]:
    assert (answer.code, answer.out) == (exit_code, ""), answer
    assert answer.error["code"] == code
    assert answer.error["remedy"]
    return answer.error


# -- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_key_has_its_value_at_each_height(state_made: StateStore) -> None:
    for height in (0, 9, 17):
        for key in (KEYS[0], KEYS[9], *KEYS[16:19], b"acc/big"):
            answer = holdfast(
                "state", "get", key.hex(), "--hex", "-d", state_made.path, "--height", str(height), "--json"
            )
            value = state_made.states[height].get(key)
            if value is None:
                refused(answer, 14, "not_found")
                continue
            assert answer.code == 0
            assert bytes.fromhex(str(answer.record["value"])) == value
            assert (answer.record["height"], answer.record["bytes"]) == (height, len(value))


def test_the_tip_is_what_is_asked_for_without_a_height(one_state_made: StateStore) -> None:
    key, value = next(iter(one_state_made.states[TIP].items()))
    record = done("state", "get", "0x" + key.hex(), "-d", one_state_made.path, "--json").record
    assert (record["height"], record["value"]) == (TIP, value.hex())
    assert record["block"] == block_hash(f"block {TIP}").hex()


@pytest.mark.slow
def test_a_key_can_be_given_as_text_or_hex(one_state_made: StateStore) -> None:
    store, at = one_state_made.path, ["--height", "11", "--json"]
    with api.open(store, read_only=True) as opened:
        state = opened.state.at(11)
        known = {key: state.get(key) for key in KEYS}
    given = {
        "acc/1": b"acc/1",
        "acc/\u00e4": KEYS[17],
        r"a\\b c": TEXT_KEY,
        r"\x30x12": b"0x12",
        r"\0\x01\xff": KEYS[18],
    }
    for text, key in given.items():
        answer = holdfast("state", "get", text, "-d", store, *at)
        assert (answer.code == 0) == (known[key] is not None)
        if answer.code == 0:
            assert answer.record["key"] == key.hex()
    assert {key for key in given.values() if known[key] is not None}


@pytest.mark.slow
def test_raw_prints_the_bytes_and_nothing_else(one_state_made: StateStore) -> None:
    import subprocess
    import sys

    from tests.cli.cli_tools import ROOT, child_environment

    words = [sys.executable, "-m", "holdfast", "state", "get", "acc/big", "--raw", "--height", "9"]
    answer = subprocess.run(
        [*words, "-d", str(one_state_made.path)], env=child_environment(), cwd=ROOT, capture_output=True, timeout=60
    )
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, BIG, b"")


@pytest.mark.slow
def test_a_scan_is_the_state_in_order(state_made: StateStore) -> None:
    for height in (3, TIP):
        state = sorted(state_made.states[height].items())
        words: list[str | Path] = [
            "state",
            "scan",
            "-d",
            state_made.path,
            "--json",
            "--limit",
            "0",
            "--height",
            str(height),
        ]
        assert rows_of(done(*words)) == state
        assert rows_of(done(*words, "--reverse")) == state[::-1]
        assert rows_of(done(*words, "--prefix", "bal/")) == [row for row in state if row[0].startswith(b"bal/")]
        bounds = ["--start", "acc/3", "--stop", "0x62616c2f35"]
        assert rows_of(done(*words, *bounds)) == [row for row in state if b"acc/3" <= row[0] < b"bal/5"]
    assert rows_of(done("state", "scan", "-d", state_made.path, "--limit", "0", "--json")) == state


def test_a_scan_says_when_its_limit_cut_it(one_state_made: StateStore) -> None:
    answer = done("state", "scan", "-d", one_state_made.path, "--limit", "3")
    assert len(answer.out.splitlines()) == 4
    assert "--limit 0 shows all" in answer.err
    assert done("state", "scan", "-d", one_state_made.path, "--prefix", "nothing").out == "no keys\n"
    assert done("state", "scan", "-d", one_state_made.path, "--prefix", "nothing", "--json").out == ""


def test_a_value_cannot_drive_the_terminal(one_state_made: StateStore) -> None:
    for height in (5, 11, TIP):
        out = done("state", "scan", "-d", one_state_made.path, "--height", str(height), "--limit", "0").out
        assert all(char.isprintable() or char == "\n" for char in out)
        assert max(len(line) for line in out.splitlines()) < 64 + 2 + 802 + 12
    state = one_state_made.states[11]
    key = next(key for key, value in state.items() if value == b"\x1b[2J")
    out = done("state", "get", "0x" + key.hex(), "-d", one_state_made.path, "--height", "11").out
    assert "0x1b5b324a" in out
    assert "\x1b" not in out


@pytest.mark.slow
def test_the_history_of_a_key_is_its_values(state_made: StateStore) -> None:
    for key in (*KEYS[:20:4], TEXT_KEY, b"acc/big", b"never"):
        expected: list[tuple[int, str | None]] = []
        for height, state in enumerate(state_made.states):
            value = state.get(key)
            if not expected or expected[-1][1] != (None if value is None else value.hex()):
                expected.append((height, None if value is None else value.hex()))
        rows = done("state", "history", "0x" + key.hex(), "-d", state_made.path, "--json").rows
        assert [(row["height"], row["value"]) for row in rows] == expected
    assert "(absent)" in done("state", "history", "acc/big", "-d", state_made.path).out


def test_the_root_of_every_height_is_that_of_its_rows(state_made: StateStore) -> None:
    from holdfast.merkle.api import JMT_SHA256
    from holdfast.merkle.pure import BACKEND
    from holdfast.merkle.values import tree_value

    tree = BACKEND.empty(JMT_SHA256)
    for height in (0, 9, TIP):
        state = state_made.states[height]
        expected = tree.update({key: tree_value(value) for key, value in state.items()}).tree.root.hex()
        record = done("state", "root", "-d", state_made.path, "--height", str(height), "--json").record
        assert (record["root"], record["height"], record["scheme"]) == (expected, height, "jmt-sha256")
    assert done("state", "root", "-d", state_made.path, "--json").record == record


@pytest.mark.slow
def test_two_heights_are_compared(state_made: StateStore) -> None:
    for first, second in ((2, 15), (15, 2), (8, 9), (TIP, TIP)):
        one, two = state_made.states[first], state_made.states[second]
        expected = [
            (key, one.get(key), two.get(key)) for key in sorted(set(one) | set(two)) if one.get(key) != two.get(key)
        ]
        answer = done("state", "diff", str(first), str(second), "-d", state_made.path, "--limit", "0", "--json")
        found = [
            tuple(None if row[name] is None else bytes.fromhex(row[name]) for name in ("key", "before", "after"))
            for row in lines(answer)
        ]
        assert found == expected
        kinds = {(None, True): "added", (True, None): "removed", (True, True): "changed"}
        for row in lines(answer):
            assert row["change"] == kinds[row["before"] is not None or None, row["after"] is not None or None]
    assert done("state", "diff", str(TIP), "tip", "-d", state_made.path).out == "no difference\n"
    cut = done("state", "diff", "2", "15", "-d", state_made.path, "--limit", "2")
    assert len(cut.out.splitlines()) == 3
    assert "--limit 0" in cut.err


@pytest.mark.slow
def test_a_block_is_named_by_its_hash_and_must_be_canonical(one_state_made: StateStore) -> None:
    store, at = one_state_made.path, block_hash("block 10").hex()
    scan: list[str | Path] = ["state", "scan", "-d", store, "--limit", "0", "--json"]
    assert rows_of(done(*scan, "--at-block", at)) == sorted(one_state_made.states[10].items())
    assert done("state", "root", "-d", store, "--at-block", at, "--json").record["height"] == 10
    for words in (["get", "acc/1"], ["scan"], ["root"]):
        lost = holdfast("state", *words, "-d", store, "--at-block", one_state_made.orphan.hex(), "--json")
        assert "not canonical" in str(refused(lost, 14, "block_not_found")["message"])
        both = holdfast("state", *words, "-d", store, "--at-block", at, "--height", "10", "--json")
        refused(both, 2, "invalid_input")


@pytest.mark.parametrize(
    ("words", "exit_code", "code"),
    [
        ("state get 0xzz", 2, "invalid_input"),
        ("state get 12g --hex", 2, "invalid_input"),
        ("state get a\\q", 2, "invalid_input"),
        ("state get {long}", 10, "limit_exceeded"),
        ("state get 0x", 2, "invalid_input"),
        ("state get acc/1 --height 999", 14, "block_not_found"),
        ("state get acc/1 --height 99999999999999999999", 2, "invalid_input"),
        ("state get acc/1 --height 9999999999999999999999", 2, "invalid_input"),
        ("state get acc/1 --height -1", 2, "invalid_input"),
        ("state get acc/1 --at-block nonsense", 2, "invalid_input"),
        ("state scan --prefix 0x1", 2, "invalid_input"),
        ("state scan --start 0x1", 2, "invalid_input"),
        ("state scan --stop 0x1", 2, "invalid_input"),
        ("state scan --limit -1", 2, "invalid_input"),
        ("state history {long}", 10, "limit_exceeded"),
        ("state history 0x", 2, "invalid_input"),
        ("state root --height 24", 14, "block_not_found"),
        ("state diff 1", 2, "invalid_input"),
        ("state diff 1 x", 2, "invalid_input"),
        ("state diff -1 2", 2, "invalid_input"),
        ("state diff 1 99", 14, "block_not_found"),
        ("state diff 1 9999999999999999999", 2, "invalid_input"),
        ("state growth --prefix a --prefix-bytes 2", 2, "invalid_input"),
        ("state growth --prefix a --prefix a", 2, "invalid_input"),
        ("state growth --prefix-bytes 65", 2, "invalid_input"),
        ("state growth --from 9 --to 8", 2, "invalid_input"),
        ("state growth --from 99", 2, "invalid_input"),
        ("state growth --to 99", 14, "block_not_found"),
        ("state growth --step 0", 2, "invalid_input"),
        ("state growth --plot picture.pdf", 2, "invalid_input"),
        ("state growth --plot nowhere/picture.svg", 2, "invalid_input"),
        ("prune --blocks 1 --below 2", 2, "invalid_input"),
        ("prune --below 99", 11, "below_finality"),
        ("state", 2, None),
        ("state nonsense", 2, "invalid_input"),
    ],
)
def test_bad_input_is_refused_and_named(
    words: str, exit_code: int, code: str | None, one_state_made: StateStore
) -> None:
    given = [word.format(long="k" * 401) for word in words.split()]
    answer = holdfast(*given, *([] if code is None else ["-d", str(one_state_made.path), "--json"]))
    if code is None:
        assert answer.code == exit_code
    else:
        refused(answer, exit_code, code)
    assert not Path("picture.pdf").exists()


@pytest.mark.slow
def test_a_store_without_a_state_answers(pow_store_made: Path) -> None:
    null = b"SPARSE_MERKLE_PLACEHOLDER_HASH__".hex()
    assert done("state", "root", "-d", pow_store_made, "--json").record["root"] == null
    assert done("state", "scan", "-d", pow_store_made).out == "no keys\n"
    assert done("state", "scan", "-d", pow_store_made, "--height", "3").out == "no keys\n"
    assert done("state", "diff", "0", "tip", "-d", pow_store_made).out == "no difference\n"
    refused(holdfast("state", "get", "k", "-d", pow_store_made, "--json"), 14, "not_found")
    last = done("state", "growth", "-d", pow_store_made, "--json").rows[-1]
    assert last == {"height": 45, "keys": 0, "bytes": 0, "prefixes": []}


@pytest.mark.slow
def test_an_empty_store_answers(tmp_path: Path) -> None:
    store = tmp_path / "s"
    done("init", "--chain", "custom", "-d", store, "--engine", "sqlite", "--json")
    assert done("state", "root", "-d", store, "--json").record["height"] is None
    assert done("state", "scan", "-d", store, "--json").out == ""
    assert done("state", "history", "k", "-d", store, "--json").rows == []
    refused(holdfast("state", "get", "k", "-d", store, "--json"), 14, "not_found")
    refused(holdfast("state", "get", "k", "-d", store, "--height", "0", "--json"), 14, "block_not_found")
    refused(holdfast("state", "growth", "-d", store, "--json"), 18, "state")
    assert done("prove", "k", "-d", store).record["height"] is None
    refused(holdfast("snapshot", "export", "--out", tmp_path / "x", "-d", store, "--json"), 14, "block_not_found")


@pytest.mark.slow
def test_without_a_history_only_the_present_is_known(tmp_path: Path) -> None:
    with api.open(tmp_path / "s", settings=api.Settings(history="off")) as store:
        for height in range(6):
            draft = store.draft()
            draft.state[b"k%d" % height] = b"v"
            store.commit(draft, hash=block_hash(f"b{height}"), header=b"h")
    (tmp_path / "s" / "config.toml").write_text('history = "off"\n')
    assert len(lines(done("state", "scan", "-d", tmp_path / "s", "--json"))) == 6
    for words in ("state history k1", "state diff 1 3", "state growth", "prune"):
        error = refused(holdfast(*words.split(), "-d", tmp_path / "s", "--json"), 18, "state")
        assert "history" in str(error["remedy"])


# -- growth ----------------------------------------------------------------------------------------------------------


def expected_counts(state: dict[bytes, bytes], prefix: bytes) -> tuple[int, int]:
    found = [(key, value) for key, value in state.items() if key.startswith(prefix)]
    return len(found), sum(len(key) + len(value) for key, value in found)


def test_growth_counts_every_prefix_at_every_height(state_made: StateStore) -> None:
    rows = done("state", "growth", "-d", state_made.path, "--step", "1", "--prefix-bytes", "4", "--json").rows
    assert [row["height"] for row in rows] == list(range(HEIGHTS))
    seen = set()
    for row, state in zip(rows, state_made.states, strict=True):
        assert (row["keys"], row["bytes"]) == expected_counts(state, b"")
        groups: Any = row["prefixes"]
        for group in groups:
            prefix = bytes.fromhex(group["prefix"])
            seen.add(prefix)
            assert (group["keys"], group["bytes"]) == expected_counts(state, prefix)
    assert seen == {key[:4] for state in state_made.states for key in state}


def test_growth_counts_the_prefixes_that_are_named_and_the_rest(one_state_made: StateStore) -> None:
    words: list[str | Path] = [
        "--from",
        "5",
        "--to",
        "20",
        "--step",
        "6",
        "--prefix",
        "acc/",
        "--prefix",
        "acc/b",
        "--prefix",
        "zzz",
    ]
    rows = done("state", "growth", "-d", one_state_made.path, *words, "--json").rows
    assert [row["height"] for row in rows] == [5, 11, 17, 20]
    for row in rows:
        state = one_state_made.states[int(str(row["height"]))]
        groups: Any = row["prefixes"]
        assert [group["prefix"] for group in groups] == [b"acc/".hex(), b"acc/b".hex(), b"zzz".hex(), None]
        big, acc, all_ = (expected_counts(state, prefix) for prefix in (b"acc/b", b"acc/", b""))
        assert [group["keys"] for group in groups] == [acc[0] - big[0], big[0], 0, all_[0] - acc[0]]
        assert [group["bytes"] for group in groups] == [acc[1] - big[1], big[1], 0, all_[1] - acc[1]]


def test_growth_names_the_largest_prefixes_and_sums_the_others(one_state_made: StateStore) -> None:
    words: list[str | Path] = ["state", "growth", "-d", one_state_made.path, "--prefix-bytes", "4", "--groups", "2"]
    rows = done(*words, "--json").rows
    groups: Any = rows[-1]["prefixes"]
    assert [group["prefix"] for group in groups][-1] is None
    assert b"acc/".hex() in [group["prefix"] for group in groups]
    assert len(groups) == 3
    for row in rows:
        parts: Any = row["prefixes"]
        assert sum(part["keys"] for part in parts) == row["keys"]
        assert sum(part["bytes"] for part in parts) == row["bytes"]
    table = done(*words).out
    assert re.match(r"height +keys +bytes +.*acc/.*\(others\)\n", table)
    assert done("state", "growth", "-d", one_state_made.path, "--prefix-bytes", "0").out.startswith("height  keys")


@pytest.mark.slow
def test_a_plot_is_drawn_and_svg_is_the_same_each_time(one_state_made: StateStore, tmp_path: Path) -> None:
    words: list[str | Path] = ["state", "growth", "-d", one_state_made.path, "--prefix-bytes", "4"]
    texts = []
    for name in ("one.svg", "two.svg"):
        answer = done(*words, "--plot", tmp_path / name)
        assert f"drawn into {tmp_path / name}" in answer.err
        texts.append((tmp_path / name).read_bytes())
    assert texts[0] == texts[1] == _drawn_elsewhere(words, tmp_path / "three.svg")
    assert texts[0].startswith(b"<?xml")
    done(*words, "--plot", tmp_path / "one.png", "--json")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG\r\n")
    again = holdfast(*words, "--plot", tmp_path / "one.png", "--json")
    refused(again, 2, "invalid_input")
    for heights in (["--from", "3", "--to", "3"], ["--from", "3", "--to", "4"]):
        done(*words, *heights, "--plot", tmp_path / f"{heights[-1]}.svg")


def _drawn_elsewhere(words: list[Any], path: Path) -> bytes:
    assert child(*words, "--plot", path).code == 0
    return path.read_bytes()


def test_a_plot_without_matplotlib_names_the_extra(
    one_state_made: StateStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from holdfast.cli import plotting

    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(plotting, "import_module", missing)
    answer = holdfast("state", "growth", "-d", one_state_made.path, "--plot", tmp_path / "x.svg", "--json")
    assert "holdfast[plot]" in str(refused(answer, 2, "invalid_input")["remedy"])
    assert not (tmp_path / "x.svg").exists()


# -- pruning ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_dry_run_says_what_pruning_does(state_store: StateStore) -> None:
    store = state_store.path
    done("finalize", "20", "-d", store)
    words: list[str | Path] = ["prune", "--below", "12", "-d", store]
    dry = done(*words, "--dry-run", "--json").record
    assert (dry["dry_run"], dry["heights_lost"], dry["floor_after"], dry["freed_bytes"]) == (True, 12, 12, None)
    assert int(str(dry["rows"])) > 0
    assert int(str(dry["estimated_bytes"])) > 0
    assert rows_of(done("state", "scan", "-d", store, "--height", "0", "--limit", "0", "--json")) == sorted(
        state_store.states[0].items()
    )
    text = done(*words, "--dry-run")
    assert "12 heights would stop working; nothing was changed" in text.out
    assert "about " in text.out
    real = done(*words, "--json").record
    for name in ("heights_lost", "rows", "floor_before", "floor_after", "blocks", "estimated_bytes"):
        assert real[name] == dry[name]
    assert {"bytes_before", "bytes_after"} <= set(real)
    error = refused(holdfast("state", "get", "acc/1", "-d", store, "--height", "11", "--json"), 15, "pruned")
    assert error["context"]["least_readable"] == 12  # type: ignore[index]
    for height in range(12, HEIGHTS):
        answer = done("state", "scan", "-d", store, "--height", str(height), "--limit", "0", "--json")
        assert rows_of(answer) == sorted(state_store.states[height].items())
    again = done(*words)
    assert "nothing to prune" in again.out


@pytest.mark.slow
def test_pruning_keeps_every_so_many_th_height(state_store: StateStore) -> None:
    store = state_store.path
    done("finalize", "22", "-d", store)
    text = done("prune", "--blocks", "3", "--every", "5", "-d", store)
    assert "from height 20 on, and every 5th from 0 on" in text.out
    for height in range(20):
        answer = holdfast("state", "scan", "-d", store, "--height", str(height), "--limit", "0", "--json")
        if height % 5 == 0:
            assert rows_of(answer) == sorted(state_store.states[height].items())
        else:
            refused(answer, 15, "pruned")
    assert done("stats", "-d", store, "--json").record["state"]["history_every"] == 5  # type: ignore[index]
    refused(holdfast("state", "growth", "-d", store, "--from", "5", "--json"), 15, "pruned")
    assert done("state", "growth", "-d", store, "--json").rows[0]["height"] == 20
    refused(holdfast("prune", "--blocks", "3", "--every", "7", "-d", store, "--json"), 2, "invalid_input")


@pytest.mark.slow
def test_without_options_pruning_does_what_the_settings_say(state_store: StateStore) -> None:
    done("finalize", "22", "-d", state_store.path)
    (state_store.path / "config.toml").write_text("history_blocks = 5\n")
    report = done("prune", "--dry-run", "-d", state_store.path, "--json").record
    assert (report["floor_before"], report["floor_after"]) == (0, 18)
    assert done("prune", "--blocks", "0", "-d", state_store.path, "--json").record["floor_after"] == 0


@pytest.mark.slow
def test_a_dry_run_is_not_overtaken_by_what_an_open_store_does_itself(
    state_store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from holdfast.cli import session
    from holdfast.store import upkeep

    done("finalize", "22", "-d", state_store.path)
    (state_store.path / "config.toml").write_text("history_blocks = 5\n")
    monkeypatch.setattr(upkeep, "_LOOK_SECONDS", 0.001)
    monkeypatch.setattr(upkeep, "_PRUNE_HEIGHTS", 0)
    monkeypatch.setattr(session, "tell_recovery", lambda *_: time.sleep(0.3))
    for _ in range(2):
        assert done("prune", "--dry-run", "-d", state_store.path, "--json").record["heights_lost"] == 18


# -- figures ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_stats_have_the_figures_of_the_state(state_made: StateStore) -> None:
    found: Any = done("stats", "-d", state_made.path, "--json").record["state"]
    root = done("state", "root", "-d", state_made.path, "--json").record["root"]
    assert (found["root"], found["keys"]) == (root, len(state_made.states[TIP]))
    assert (found["history_floor"], found["history_every"], found["proof_floor"]) == (0, 0, 0)
    assert found["proof_window_blocks"] == api.Settings().proof_window_blocks
    without: Any = done("stats", "--no-tree", "-d", state_made.path, "--json").record["state"]
    assert "keys" not in without
    assert without["root"] == root


# -- as a program ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_process_answers_the_same(one_state_made: StateStore) -> None:
    words: list[str | Path] = ["state", "scan", "-d", one_state_made.path, "--limit", "0", "--json"]
    assert child(*words) == done(*words)
    answer = child("state", "get", "acc/1", "-d", one_state_made.path, "--height", "99")
    assert answer.code == 14
    assert "\nnext: " in answer.err
    assert child("state", "get", "0xz", "-d", one_state_made.path).code == 2
