"""The demo: a recorded chain is imported, the importer is killed again and again, and nothing is lost.

The first act drives the command line in child processes, as an operator would, and compares what the store says with
what the recording itself says. The second one (``state_act``) is a chain with state, driven as a program would. It ends
with exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "samples" / "anvil.jsonl.zst"
KILLS = 5
REORG_KILLS = 4
TIMEOUT_SECONDS = 120

_ACKNOWLEDGED = re.compile(r"importing: ([0-9,]+)/")

if (ROOT / "src" / "holdfast").is_dir():
    sys.path[:0] = [str(ROOT / "src"), str(ROOT)]


@dataclass(slots=True)
class Story:
    """What is told, and whether it went well."""

    started: float = field(default_factory=time.monotonic)
    failures: list[str] = field(default_factory=list)

    def chapter(self, title: str) -> None:
        print(f"\n[{time.monotonic() - self.started:5.1f} s] {title}", flush=True)

    def say(self, text: str) -> None:
        print(f"          {text}", flush=True)

    def check(self, condition: bool, text: str) -> None:
        """``text`` is true, or the demo has failed."""
        self.say(f"{'ok  ' if condition else 'FAIL'} {text}")
        if not condition:
            self.failures.append(text)


@dataclass(frozen=True, slots=True)
class Recording:
    """What the recording says, read without Holdfast: every block's parent and height, and the branches' ends."""

    parents: dict[str, str]
    heights: dict[str, int]
    branches: dict[str, list[str]]

    @property
    def leaves(self) -> set[str]:
        return set(self.parents) - set(self.parents.values())


def read_recording() -> Recording:
    import zstandard

    parents: dict[str, str] = {}
    heights: dict[str, int] = {}
    branches: dict[str, list[str]] = {}
    with SAMPLE.open("rb") as file:
        text = zstandard.ZstdDecompressor().stream_reader(file).read().decode("ascii")
    for line in text.splitlines():
        record = json.loads(line)
        block = record["block"]
        parents[block["hash"]] = block["parentHash"]
        heights[block["hash"]] = int(block["number"], 16)
        branches.setdefault(record["branch"], []).append(block["hash"])
    return Recording(parents, heights, branches)


class Cli:
    """``holdfast`` on one data directory."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith("HOLDFAST_")}
        self._environment["PYTHONPATH"] = os.pathsep.join(
            [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
        )

    def start(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "holdfast", *args, "--data-dir", str(self.data_dir)],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def code(self, *args: str) -> tuple[int, str, str]:
        process = self.start(*args)
        out, err = process.communicate(timeout=TIMEOUT_SECONDS)
        return process.returncode, out, err

    def json(self, *args: str) -> object:
        code, out, err = self.code(*args, "--json")
        if code != 0:
            raise SystemExit(f"holdfast {' '.join(args)} ended with exit code {code}: {err}")
        return json.loads(out)

    def record(self, *args: str) -> dict[str, object]:
        answer = self.json(*args)
        assert isinstance(answer, dict)
        return answer

    def rows(self, *args: str) -> list[dict[str, object]]:
        answer = self.json(*args)
        assert isinstance(answer, list)
        return answer


def kill_importer(cli: Cli, after: int, delay: float) -> tuple[int, bool]:
    """The importer is killed once it has acknowledged ``after`` blocks: what it had acknowledged, whether it lived."""
    process = cli.start("import", "evm", str(SAMPLE), "--batch-blocks", "1", "--progress-seconds", "0")
    assert process.stderr is not None
    acknowledged = 0
    killed = False
    for line in process.stderr:
        found = _ACKNOWLEDGED.search(line)
        if found is None:
            continue
        acknowledged = int(found[1].replace(",", ""))
        if acknowledged >= after and not killed:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            killed = True
    process.communicate(timeout=TIMEOUT_SECONDS)
    return acknowledged, process.returncode == -signal.SIGKILL


def look(cli: Cli) -> tuple[int, int | None]:
    """How many blocks the store holds, and the height of its tip."""
    import holdfast

    with holdfast.open(cli.data_dir, create=False, read_only=True) as store:
        return store.blocks.statistics()["blocks"] or 0, store.tip.height if store.tip is not None else None


def active_and_fork(cli: Cli) -> tuple[str, str]:
    """The tip, and the tip of the other branch that reaches as high."""
    import holdfast

    with holdfast.open(cli.data_dir, create=False, read_only=True) as store:
        tips = store.blocks.tips()
    fork = next(tip for tip in tips if tip.status == "fork" and tip.height == tips[0].height)
    return f"0x{tips[0].hash.hex()}", f"0x{fork.hash.hex()}"


def import_with_kills(cli: Cli, recording: Recording, story: Story, rng: random.Random) -> None:
    total = len(recording.parents)
    points = [*sorted(rng.sample(range(20, total - 20), KILLS - 1)), rng.randrange(total - 15, total - 3)]
    lost = 0
    for number, point in enumerate(points, 1):
        acknowledged, died = kill_importer(cli, point, rng.uniform(0, 0.003))
        found, tip = look(cli)
        lost += max(0, acknowledged - found)
        story.check(
            died and acknowledged <= found <= acknowledged + 1,
            f"kill -9 number {number}: {acknowledged:3} blocks acknowledged, {found:3} found, tip {tip}",
        )
    story.check(lost == 0, f"{lost} acknowledged blocks lost in {len(points)} kills")


def finish_import(cli: Cli, recording: Recording, story: Story) -> None:
    report = cli.record("import", "evm", str(SAMPLE))
    recovery = report["recovery"]
    assert isinstance(recovery, dict)
    story.say(
        f"recovery: {recovery['frames_found']} frames found, {recovery['frames_replayed']} replayed, "
        f"{len(recovery['discarded'])} set aside, {recovery['seconds'] * 1000:.0f} ms"
    )
    known, added = report["known"], report["added"]
    assert isinstance(known, int)
    assert isinstance(added, int)
    story.check(
        known + added == len(recording.parents), f"resumed: {known} blocks were there, {added} came: {known + added}"
    )


def import_undisturbed(cli: Cli, story: Story) -> None:
    """The same import without a kill, into another store: how fast it is, and that both stores agree."""
    other = Cli(cli.data_dir.with_name("undisturbed"))
    report = other.record("import", "evm", str(SAMPLE))
    seconds, added = report["seconds"], report["added"]
    assert isinstance(seconds, float)
    assert isinstance(added, int)
    story.say(f"undisturbed: {added / seconds:,.0f} blocks/s durable in batches of 64, every hash and root checked")
    story.check(cli.rows("tips") == other.rows("tips"), "the killed store and the undisturbed one have the same tips")


def verify(cli: Cli, story: Story) -> None:
    report = cli.record("verify", "--level", "views")
    checks = report["checks"]
    assert isinstance(checks, list)
    counted = ", ".join(f"{check['name']} {check['checked']}" for check in checks)
    story.check(report["ok"] is True, f"verify --level views: {counted} ({report['seconds']} s)")


def compare(cli: Cli, recording: Recording, story: Story) -> None:
    """Every recorded block is in the store, and its tips are the leaves of the recording."""
    import holdfast

    with holdfast.open(cli.data_dir, create=False, read_only=True) as store:
        missing = [name for name in recording.parents if not store.has(bytes.fromhex(name[2:]))]
        canonical = {f"0x{info.hash.hex()}" for info in store.blocks.canonical()}
    story.check(not missing, f"all {len(recording.parents)} recorded blocks are stored, on every branch")
    tips = cli.rows("tips")
    for tip in tips:
        hash_ = str(tip["hash"])
        story.say(f"     {tip['status']:6}  height {tip['height']}  branch of {tip['branch_length']}  {hash_[:18]}...")
    story.check({str(tip["hash"]) for tip in tips} == recording.leaves, "tips are the leaves of the recording")
    orphans = cli.rows("orphans")
    expected = set(recording.parents) - canonical
    story.check(
        {str(row["hash"]) for row in orphans} == expected, f"{len(orphans)} orphans, each with reason and competitor"
    )
    story.say(f"     e.g. height {orphans[0]['height']}: {orphans[0]['reason']}")


def watch_reorg(cli: Cli, story: Story) -> float:
    """Another process moves the tip; this one follows it. The seconds that the other process took."""
    import holdfast

    _, target = active_and_fork(cli)
    started = time.monotonic()
    wanted = bytes.fromhex(target[2:])
    with holdfast.open(cli.data_dir, create=False, read_only=True) as store:
        before = store.tip
        assert before is not None
        process = cli.start("reorg", "--to", target, "--reason", "the demo", "--json")
        seen_us = 0
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            tip = store.tip
            if tip is not None and tip.hash == wanted:
                seen_us = time.time_ns() // 1000
                break
            if process.poll() not in (None, 0):
                break
            time.sleep(0.001)
        out, err = process.communicate(timeout=TIMEOUT_SECONDS)
        seconds = time.monotonic() - started
        story.check(process.returncode == 0 and seen_us > 0, f"reorg to {target[:18]}... {err.strip()}".rstrip())
        if process.returncode != 0 or not seen_us:
            return seconds
        moved = json.loads(out)
        orphan = store.blocks.orphan(before.hash)
    assert orphan is not None
    story.say(
        f"     fork at {moved['fork_height']}: {moved['orphaned']} orphaned, {moved['adopted']} adopted, one frame"
    )
    milliseconds = (seen_us - orphan.orphaned_us) / 1000
    story.say(f"     the reader in this process saw the new tip {milliseconds:.1f} ms after the commit")
    story.check(orphan.reason == "the demo", "the old tip is an orphan with our reason")
    return seconds


def kill_reorgs(cli: Cli, story: Story, rng: random.Random, seconds: float) -> None:
    """``reorg`` killed at random: the tip is the old or the new one, and the new one if it was acknowledged."""
    outcomes = {"before": 0, "after": 0}
    for number in range(REORG_KILLS):
        old, new = active_and_fork(cli)
        process = cli.start("reorg", "--to", new)
        killer = threading.Timer(seconds * rng.uniform(0.6, 1.05), process.kill)
        killer.start()
        out, _ = process.communicate(timeout=TIMEOUT_SECONDS)
        killer.cancel()
        tip, _ = active_and_fork(cli)
        acknowledged = "new" if "changed" in out else "nothing"
        good = tip == new if acknowledged == "new" else tip in (old, new)
        outcomes["after" if tip == new else "before"] += 1
        if not good:
            story.check(good, f"kill number {number + 1} in a reorg left {tip}")
    text = f"{outcomes['before']} at the old tip, {outcomes['after']} at the new one, none between"
    story.check(sum(outcomes.values()) == REORG_KILLS, f"{REORG_KILLS} reorgs killed at random: {text}")


def finality(cli: Cli, story: Story) -> None:
    tip = cli.record("tip")
    cli.record("finalize", str(tip["height"]))
    _, other = active_and_fork(cli)
    code, _, err = cli.code("reorg", "--to", other)
    story.check(code == 11, f"height {tip['height']} is final: a reorg below it is refused with exit code {code}")
    for line in err.splitlines():
        story.say(f"     {line[:140]}")


def directory_bytes(path: Path) -> int:
    return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())


def chapters(cli: Cli, story: Story, rng: random.Random) -> Iterator[None]:
    recording = read_recording()
    counts = ", ".join(f"{name} {len(blocks)}" for name, blocks in recording.branches.items())
    story.say(f"the recording: {len(recording.parents)} blocks of a real node ({counts})")
    story.chapter("The importer is killed with SIGKILL while it writes; every block it reported must be there")
    import_with_kills(cli, recording, story, rng)
    yield
    story.chapter("The same command goes on where it was")
    finish_import(cli, recording, story)
    yield
    story.chapter("Every byte and every row is checked")
    verify(cli, story)
    compare(cli, recording, story)
    import_undisturbed(cli, story)
    yield
    story.chapter("Another process reorganises the chain, this one follows")
    seconds = watch_reorg(cli, story)
    yield
    story.chapter("The reorganisation itself is killed")
    kill_reorgs(cli, story, rng, seconds)
    yield
    story.chapter("What is final stays")
    finality(cli, story)
    verify(cli, story)
    yield


def main() -> int:
    from demo import state_act

    parser = argparse.ArgumentParser(description="Write chains, kill the writers, lose nothing.")
    parser.add_argument("--seed", type=int, default=None, help="repeat the kills of an earlier run")
    parser.add_argument("--keep", action="store_true", help="leave the stores where they are")
    parser.add_argument("--act", type=int, choices=(1, 2), help="only the recorded chain, or only the state")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    directory = Path(tempfile.mkdtemp(prefix="holdfast-demo-"))
    story = Story()
    story.chapter(f"Holdfast demo, seed {seed}")
    kills = 0
    try:
        if options.act != 2:
            kills += KILLS + REORG_KILLS
            for _ in chapters(Cli(directory / "store"), story, random.Random(seed)):
                pass
        if options.act != 1:
            kills += state_act.STATE_KILLS
            for _ in state_act.chapters(directory / "state", story, random.Random(seed)):
                pass
        size = sum(directory_bytes(directory / name) for name in ("store", "state"))
    finally:
        if options.keep:
            story.say(f"the stores are in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    seconds = time.monotonic() - story.started
    story.chapter("Done")
    if story.failures:
        story.say(f"{len(story.failures)} things went wrong; seed {seed} repeats it")
        return 1
    story.say(f"{kills} kills, nothing lost, {size / 1e6:.1f} MB on disk, {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
