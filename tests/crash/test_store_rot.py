"""A flipped bit or a cut in any file of a whole store, files that are gone, of an older copy, or have pages swapped."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.rot import Damage, Rot, kind_of, rotten_store
from tests.crash.support import ENGINES, Agent, report

SEED = 21
OPERATIONS = 70
ALL_FROM = 200


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    with Agent() as started:
        yield started


def damages(image: dict[str, bytes], samples: int, small: int, seed: int) -> Iterator[tuple[str, Damage]]:
    """(what it is counted as, the damage): flips, zeros and cuts, the same for a seed.

    In files of up to ``small`` bytes every byte is damaged, in larger ones a sample.
    """
    rng = random.Random(seed)
    for name, data in sorted(image.items()):
        used = min(len(data), len(data.rstrip(b"\0")) + 64)
        places = range(len(data)) if len(data) <= small else rng.sample(range(used), min(samples, used))
        for place in places:
            damaged = bytearray(data)
            damaged[place] ^= 1 << rng.randrange(8)
            yield "flipped", Damage(f"{name}, a bit of byte {place} flipped", {name: bytes(damaged)})
        lengths = (
            range(len(data))
            if len(data) <= 8
            else [0, len(data) // 2, *rng.sample(range(len(data)), min(samples // 4, len(data)))]
        )
        for length in lengths:
            yield "cut", Damage(f"{name}, cut to {length} of {len(data)} bytes", {name: data[:length]})
        if len(data) > 1024:
            start = rng.randrange(len(data) - 512)
            zeroed = data[:start] + bytes(512) + data[start + 512 :]
            yield "zeros", Damage(f"{name}, 512 zeros at {start}", {name: zeroed})


@pytest.mark.crash
@pytest.mark.parametrize("clean", [True, False], ids=["closed", "killed"])
@pytest.mark.parametrize("engine", ENGINES)
def test_damage_is_found_or_harmless(agent: Agent, engine: str, clean: bool, tmp_path: Path, crash_rounds: int) -> None:
    rot = rotten_store(agent, tmp_path / "store", engine, seed=SEED, operations=OPERATIONS, clean=clean)
    samples, small = (12, 64) if crash_rounds < ALL_FROM else (200, 1024)
    for how, damage in damages(rot.place.images["good"], samples, small, SEED):
        rot.suffer(damage)
        rot.counts[how] += 1
    title = f"rot, {engine}, {'closed' if clean else 'killed'}"
    least = {"damages": 100, "segment refused": 5}
    report(title, rot.counts, at_least=least, rows={7: "flipped", 8: "cut", 10: "zeros"})
    rot.end()


@pytest.mark.crash
@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_that_is_gone_makes_no_fresh_store(agent: Agent, engine: str, tmp_path: Path, crash_rounds: int) -> None:
    """Each file, and each pair of files; of large stores a share of the pairs. The identity is in the journal, too."""
    rot = rotten_store(agent, tmp_path / "store", engine, seed=SEED, operations=OPERATIONS, clean=True)
    names = sorted(rot.place.images["good"])
    pairs = list(itertools.combinations(names, 2))
    chosen = pairs if crash_rounds >= ALL_FROM else random.Random(SEED).sample(pairs, min(24, len(pairs)))
    for gone in [*((name,) for name in names), *chosen]:
        verdict = rot.suffer(Damage(f"without {' and '.join(gone)}", dict.fromkeys(gone)))
        kinds = {kind_of(name) for name in gone}
        assert "segment" not in kinds or verdict == "refused", f"without {gone}: {verdict}"
        rot.counts["single" if len(gone) == 1 else "pairs"] += 1
    least = {"single": 8, "pairs": 10, "segment refused": 1, "identity same": 1}
    report(f"missing, {engine}", rot.counts, at_least=least, rows={9: "damages"})
    rot.end()


def older(rot: Rot, engine: str) -> Iterator[Damage]:
    """Files as they were 30 operations before: each, all of the journal, and all of the views."""
    new, old = rot.place.images["good"], rot.place.images["older"]
    stale = {name: data for name, data in old.items() if name in new and data != new[name]}
    for name, data in sorted(stale.items()):
        yield Damage(f"{name} of an older copy", {name: data})
    for part in ("journal/", "views/"):
        files: dict[str, bytes | None] = {name: old.get(name) for name in {*new, *old} if name.startswith(part)}
        changed = {name: data for name, data in files.items() if name in new or data is not None}
        yield Damage(f"{part} of an older copy, {engine}", changed)
    everything = {name: old.get(name) for name in {*new, *old} if name.startswith(("journal/", "views/"))}
    yield Damage("journal/ and views/ of an older copy, and only the watermark is new", everything)


def swapped(image: dict[str, bytes], count: int, seed: int) -> Iterator[Damage]:
    """Two pages of one file in each other's place."""
    rng = random.Random(seed)
    for name, data in sorted(image.items()):
        for size in (512, 4096):
            pages = [at for at in range(0, len(data) - size + 1, size) if data[at : at + size].strip(b"\0")]
            for _ in range(count if len(pages) > 1 else 0):
                one, other = sorted(rng.sample(pages, 2))
                if data[one : one + size] == data[other : other + size]:
                    continue
                moved = bytearray(data)
                moved[one : one + size], moved[other : other + size] = (
                    data[other : other + size],
                    data[one : one + size],
                )
                yield Damage(f"{name}, pages of {size} at {one} and {other} swapped", {name: bytes(moved)})


@pytest.mark.crash
@pytest.mark.parametrize("engine", ENGINES)
def test_older_files_and_swapped_pages_are_found_or_harmless(
    agent: Agent, engine: str, tmp_path: Path, crash_rounds: int
) -> None:
    rot = rotten_store(agent, tmp_path / "store", engine, seed=SEED, operations=OPERATIONS - 30, clean=True)
    rot.place.keep("older")
    arguments = rot.arguments | {"acked": OPERATIONS - 30, "operations": 30, "clean": True, "flush_at": 20}
    agent.must("template", arguments)
    rot.place.keep("good")
    rot.arguments["acked"] = OPERATIONS
    for damage in older(rot, engine):
        verdict = rot.suffer(damage)
        rot.counts["older"] += 1
        if damage.what.startswith("journal/"):
            assert verdict == "refused", f"{damage.what}: {verdict}"
    for damage in swapped(rot.place.images["good"], 2 if crash_rounds < ALL_FROM else 20, SEED):
        rot.suffer(damage)
        rot.counts["swapped"] += 1
    report(f"stale, {engine}", rot.counts, at_least={"older": 4, "swapped": 4}, rows={10: "damages"})
    rot.end()
