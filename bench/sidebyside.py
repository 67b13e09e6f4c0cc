"""The same blocks in the stores and trees of others, in alternating rounds: the crate ``jmt``, and ``trie.HexaryTrie``.

``jmt`` keeps its nodes in a map in memory and writes nothing to disk: a small Rust program (``bench/jmt``), built below
``.tools`` where cargo is there. ``HexaryTrie`` keeps them in LMDB, one synced transaction for a block. Of this project:
a durable commit through the public API, and the tree alone. Where the tree is the same, the roots must be equal.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
from collections.abc import Mapping

from .child import ROOT
from .measure import Bar, Plan, Result, median, row
from .state_child import trees
from .state_data import STRIDE
from .state_peers import Peer

__all__ = ["run"]

SOURCE = ROOT / "bench" / "jmt"
BUILT = ROOT / ".tools" / "bench" / "jmt"
PROGRAM = BUILT / "target" / "release" / "holdfast-bench-jmt"
JMT = "jmt crate 0.12, in memory"
HEXARY = "HexaryTrie on LMDB"
Rates = dict[str, list[float]]


def _program(*, build: bool) -> str:
    """The empty text if the Rust program is there, built anew if its source changed; else why not."""
    sources = [SOURCE / "Cargo.toml", SOURCE / "src" / "main.rs"]
    fresh = PROGRAM.exists() and all(PROGRAM.stat().st_mtime >= source.stat().st_mtime for source in sources)
    if fresh:
        return ""
    if not build:
        return "its program is not built (a full run builds it)"
    if shutil.which("cargo") is None:
        return "cargo is missing"
    shutil.copytree(SOURCE, BUILT, dirs_exist_ok=True)
    command = ["cargo", "build", "--quiet", "--release", "--target-dir", "target"]
    done = subprocess.run(command, cwd=BUILT, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"cargo could not build its program: {done.stderr.strip()[-200:]}"
    PROGRAM.touch()
    return ""


def _rounds(
    peers: Mapping[str, Peer], alike: set[str], result: Result, per_block: int, rounds: int, blocks: int
) -> Rates:
    """Updates per second of each round of each contestant. The roots of those that are ``alike`` must be equal."""
    rates: Rates = {name: [] for name in peers}
    names = list(peers)
    roots = {name: peers[name].ready() for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            seconds, roots[name] = peers[name].blocks(blocks)
            rates[name].append(blocks * per_block / sum(seconds))
            times[name] += seconds
        if len({roots[name] for name in names if name in alike}) > 1:
            raise RuntimeError(f"the roots differ after round {number}: {roots}")
    for name in names:
        result.rows.append(row(name, "updates/s", rates[name]))
        result.rows.append(row(f"{name}: a block", "ms", [seconds * 1e3 for seconds in times[name]]))
    return rates


def _ratio(result: Result, rates: Rates, above: str, below: str, limit: float | None) -> None:
    """A row for the ratio within each round, and a bar if there is a limit."""
    if above not in rates or below not in rates:
        return
    ratios = [mine / other for mine, other in zip(rates[above], rates[below], strict=True)]
    result.rows.append(row(f"{above} / {below}", "x", ratios))
    if limit is not None:
        result.bars.append(Bar(f"{above} / {below}", median(ratios), limit, True))


def _with_jmt(result: Result, plan: Plan) -> None:
    keys, per_block, rounds, blocks = plan.pick((1_000_000, 10_000, 5, 20), (100_000, 10_000, 3, 5), (2_000, 500, 2, 2))
    label = f"{keys:,} keys"
    contestants: dict[str, Peer] = {}
    with contextlib.ExitStack() as stack:
        refusal = _program(build=plan.size != "smoke")
        if refusal:
            result.notes.append(f"{JMT}: not measured: {refusal}")
        else:
            command = [str(PROGRAM), str(keys), str(per_block), str(STRIDE)]
            contestants[f"{JMT}, {label}"] = stack.enter_context(Peer(command))
        if "kernel" in trees():
            for kind, name in (("store", "durable commit, kernel"), ("tree", "tree alone, kernel")):
                peer = Peer.of(kind, keys, per_block, plan.directory / "kernel")
                contestants[f"{name}, {label}"] = stack.enter_context(peer)
        rates = _rounds(contestants, set(contestants), result, per_block, rounds, blocks)
    _ratio(result, rates, f"durable commit, kernel, {label}", f"{JMT}, {label}", 5)
    _ratio(result, rates, f"tree alone, kernel, {label}", f"{JMT}, {label}", None)
    result.notes.append(f"{label}: {rounds} rounds of {blocks} blocks of {per_block:,} updates")


def _with_hexary(result: Result, plan: Plan) -> None:
    keys, per_block, rounds, blocks = plan.pick((20_000, 10_000, 5, 1), (10_000, 2_000, 3, 1), (500, 50, 2, 2))
    label = f"{keys:,} keys"
    contestants: dict[str, Peer] = {}
    with contextlib.ExitStack() as stack:
        if any(importlib.util.find_spec(name) is None for name in ("trie", "lmdb")):
            result.notes.append(f"{HEXARY}: not measured: the package trie or lmdb is missing (make setup)")
        else:
            peer = Peer.of("hexary", keys, per_block, plan.directory / "hexary")
            contestants[f"{HEXARY}, {label}"] = stack.enter_context(peer)
        for tree in trees():
            for kind, name in (("store", "durable commit"), ("tree", "tree alone")):
                peer = Peer.of(kind, keys, per_block, plan.directory / f"{tree}-few", tree=tree)
                contestants[f"{name}, {tree}, {label}"] = stack.enter_context(peer)
        alike = {name for name in contestants if not name.startswith(HEXARY)}
        rates = _rounds(contestants, alike, result, per_block, rounds, blocks)
    for tree, limit in (("kernel", 40), ("pure", 3)):
        _ratio(result, rates, f"durable commit, {tree}, {label}", f"{HEXARY}, {label}", limit)
        _ratio(result, rates, f"tree alone, {tree}, {label}", f"{HEXARY}, {label}", None)
    result.notes.append(f"{label}: {rounds} rounds of {blocks} blocks of {per_block:,} updates")


def run(plan: Plan) -> Result:
    """The counterparts one after the other, each with the subject in its rounds."""
    result = Result("sidebyside")
    _with_jmt(result, plan)
    _with_hexary(result, plan)
    result.notes.append("commits are durable when they return; no flush runs, the overlay absorbs all blocks")
    return result
