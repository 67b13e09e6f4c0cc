"""A flipped bit or a cut in any file of a whole store: it opens with the same content, or a typed error refuses it."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.support import ENGINES, Agent, Outcome, Place, report

SEED = 21
OPERATIONS = 70

KINDS = (
    ("identity", r"holdfast\.toml"),
    ("watermark", r"watermark"),
    ("segment", r"journal/.*\.seg"),
    ("current generation", r"views/CURRENT"),
    ("engine name", r"views/\d+/engine"),
    ("lock", r"LOCK"),
    ("tree image", r"tree/image"),
    ("rocksdb table", r"views/.*\.sst"),
    ("rocksdb log", r"views/.*\.log"),
    ("rocksdb manifest", r"views/.*/MANIFEST-\d+"),
    ("rocksdb current", r"views/.*/CURRENT"),
    ("rocksdb options", r"views/.*/OPTIONS-\d+"),
    ("rocksdb text", r"views/.*/(LOG.*|IDENTITY|LOCK|rocksdict-config\.json)"),
    ("lmdb data", r"views/.*/data\.mdb"),
    ("lmdb lock", r"views/.*/lock\.mdb"),
    ("sqlite log", r"views/.*-wal"),
    ("sqlite shared memory", r"views/.*-shm"),
    ("sqlite database", r"views/\d+/data/[a-z]+\.(db|sqlite|sqlite3)"),
)
OWN = re.compile(r"LOCK|views/\d+/data/.*")
"""What a refused open may change: the name of the holder, and what an engine does to its own files."""


NO_CHECKSUMS = ("lmdb data", "sqlite database")
"""Files whose pages nothing but rows protects: where a page hides rows, reading cannot notice that they are missing."""


def found_by_verify(agent: Agent, arguments: dict[str, object], place: Place, name: str, data: bytes) -> bool:
    """True if ``verify --level views`` reports the damage."""
    place.restore("good")
    (place.root / name).write_bytes(data)
    outcome = agent.run("verify", {"url": arguments["url"], "level": "views"})
    return outcome.failure is not None and "Problem(" in outcome.failure


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    with Agent() as started:
        yield started


def kind_of(name: str) -> str:
    """What sort of file it is; fails for one that the test does not know."""
    for kind, pattern in KINDS:
        if re.fullmatch(pattern, name):
            return kind
    raise AssertionError(f"an unknown file in the store: {name}")


def damages(image: dict[str, bytes], samples: int, small: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """(name, what was done, the damaged bytes): flips, zeros and cuts, the same for a seed.

    In files of up to ``small`` bytes every byte is damaged, in larger ones a sample.
    """
    rng = random.Random(seed)
    for name, data in sorted(image.items()):
        used = min(len(data), len(data.rstrip(b"\0")) + 64)
        places = range(len(data)) if len(data) <= small else rng.sample(range(used), min(samples, used))
        for place in places:
            damaged = bytearray(data)
            damaged[place] ^= 1 << rng.randrange(8)
            yield name, f"a bit of byte {place} flipped", bytes(damaged)
        lengths = (
            range(len(data)) if len(data) <= 8 else [0, len(data) // 2, *rng.sample(range(len(data)), samples // 4)]
        )
        for length in lengths:
            yield name, f"cut to {length} of {len(data)} bytes", data[:length]
        if len(data) > 1024:
            start = rng.randrange(len(data) - 512)
            yield name, f"512 zeros at {start}", data[:start] + bytes(512) + data[start + 512 :]


def judge(outcome: Outcome) -> str:
    """What became of the store; fails for anything but the same content or a typed error."""
    assert outcome.failure is None, outcome.failure
    assert not outcome.signal, f"the process died of signal {outcome.signal}: {outcome.lines}"
    assert outcome.status == 0, outcome
    if outcome.has("e"):
        return "refused"
    if outcome.has("l"):
        return "refused later"
    assert outcome.has("x"), outcome
    return "rebuilt" if outcome.values("r") == [1] else "same"


@pytest.mark.crash
@pytest.mark.parametrize("clean", [True, False], ids=["closed", "killed"])
@pytest.mark.parametrize("engine", ENGINES)
def test_damage_is_found_or_harmless(agent: Agent, engine: str, clean: bool, tmp_path: Path, crash_rounds: int) -> None:
    place = Place(tmp_path / "store")
    arguments: dict[str, object] = {"url": f"{engine}:{place.root}", "seed": SEED, "body_max": 600}
    agent.must(
        "template", arguments | {"acked": 0, "operations": OPERATIONS, "clean": clean, "flush_at": OPERATIONS - 10}
    )
    place.keep("good")
    arguments["acked"] = OPERATIONS
    counts: Counter[str] = Counter()
    samples, small = (12, 64) if crash_rounds < 200 else (200, 1024)
    wrong: list[str] = []
    for name, what, data in damages(place.images["good"], samples, small, SEED):
        kind = kind_of(name)
        place.restore("good")
        (place.root / name).write_bytes(data)
        before = place.files()
        outcome = agent.run("rot", arguments)
        try:
            verdict = judge(outcome)
            if verdict == "refused":
                after = place.files()
                changed = [each for each in before if after.get(each) != before[each] and not OWN.fullmatch(each)]
                assert not changed or not clean, f"a refused open has changed {changed}"
                if changed:  # the tail of the journal was sealed before the damage was met: nothing is lost by that
                    assert all(each.startswith("journal/") for each in changed), changed
                    assert name not in changed
                    (place.root / name).write_bytes(place.images["good"][name])
                    assert judge(agent.run("rot", arguments)) in ("same", "rebuilt")
                    counts["sealed and refused"] += 1
        except AssertionError as error:
            verdict = "WRONG"
            if kind in NO_CHECKSUMS and found_by_verify(agent, arguments, place, name, data):
                verdict = "found by verify alone"
                counts[verdict] += 1
            else:
                wrong.append(f"{kind} {name}, {what}: {str(error)[-600:]}")
        counts[f"{kind} {verdict}"] += 1
        counts["damages"] += 1
        counts["cut" if what.startswith("cut") else "flipped"] += 1
    least = {"damages": 100, "segment refused": 5}
    title = f"rot, {engine}, {'closed' if clean else 'killed'}"
    report(title, counts, at_least=least, rows={7: "flipped", 8: "cut"})
    assert counts["found by verify alone"] <= max(3, counts["damages"] // 40)
    assert not wrong, f"{len(wrong)} of {counts['damages']}:\n" + "\n".join(wrong[:8])
