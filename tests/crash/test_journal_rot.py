"""A flipped bit or a cut at any byte of a journal is found or does no harm; nothing wrong is ever handed out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdfast.errors import CommitLoss, CorruptionError
from holdfast.journal import Journal, Part, recovery
from holdfast.journal.api import JournalRecovery
from holdfast.testing.crashfs import CrashableFileSystem
from tests.crash.journal_workload import (
    DATA,
    OPTIONS,
    SALT,
    STORE_ID,
    Life,
    close,
    create,
    put,
    put_and_sync,
    recovered,
)
from tests.crash.matrix import met

WATERMARK = DATA / "watermark"
QUICK_STRIDE = 127


@dataclass
class Specimen:
    """A journal at rest: its files, what it holds, and where the last acknowledged frame ends."""

    files: dict[Path, bytes]
    directories: set[Path]
    payloads: list[bytes]
    acked: int
    clean: bool
    tail: Path
    acked_end: int

    def damaged(self, path: Path, change: Callable[[bytearray], None]) -> CrashableFileSystem:
        data = bytearray(self.files[path])
        change(data)
        return CrashableFileSystem.from_files({**self.files, path: bytes(data)}, self.directories)


def specimen(*, clean: bool) -> Specimen:
    fs = CrashableFileSystem()
    life = Life()
    create(life, fs)
    for _ in range(4):
        put_and_sync(life)
    assert life.journal is not None
    put(life, bytes(700))  # a segment of its own, so that there is room behind it
    put(life, b"small")
    life.journal.sync()
    life.acked = len(life.tried)
    tail, end = life.journal._segments[-1].path, life.journal._durable.end
    if not clean:
        put(life, b"above the watermark")
        put(life, b"and another one")
        assert life.journal._segments[-1].path == tail
        assert len(life.journal._segments) > 2
    close(life, clean=clean)
    files = fs.crash(random.Random(0), keep="all").files()
    return Specimen(files, fs.directories(), life.tried, life.acked, clean, tail, end)


def examine(fs: CrashableFileSystem) -> tuple[list[bytes], JournalRecovery]:
    """Everything that can be read, after everything was verified."""
    journal, report = Journal.open(fs, DATA, store_id=STORE_ID, salt=SALT, options=OPTIONS)
    try:
        found = recovered(journal)
        for info in journal.segments():
            journal.verify_segment(info.number)
        return found, report
    finally:
        journal.close(clean=False)


def judge(case: Specimen, fs: CrashableFileSystem, path: Path, offset: int, stop: int) -> str:
    """What came of damage to bytes ``offset`` to ``stop`` of ``path``; fails if it was neither found nor harmless."""
    before = fs.files()
    try:
        found, report = examine(fs)
    except CorruptionError:
        return "refused"
    if path == WATERMARK:
        assert report.damaged_watermark_slots == 1, "damage to the watermark was not reported"
        assert found == case.payloads
        assert report.clean == case.clean, "one slot must be enough to know of a clean close"
        return "harmless"
    assert not case.clean, f"{path.name} at {offset}: damage to a clean journal was not found"
    assert found == case.payloads[: len(found)]
    assert len(found) >= case.acked
    above = (path == case.tail and stop > case.acked_end) or path > case.tail
    assert above, f"{path.name} at {offset}: damage to acknowledged bytes was not refused"
    for item in report.discarded:
        copy = fs.files()[DATA / item.quarantined_as]
        assert copy == before[path][item.offset : item.offset + item.length]
    if found == case.payloads and not report.discarded:
        assert not case.files[path][offset:stop].strip(b"\0"), "damage was neither found nor reported"
        return "harmless"
    if stop == offset + 1:
        assert report.discarded, "a cut was not reported"
    return "cut"


def flips(case: Specimen, stride: int) -> Iterator[str]:
    for path, data in case.files.items():
        for offset in range(0, len(data), stride):

            def flip(damaged: bytearray, offset: int = offset) -> None:
                damaged[offset] ^= 1 << (offset * 5 + offset // 8) % 8

            yield judge(case, case.damaged(path, flip), path, offset, offset + 1)


def cuts(case: Specimen, stride: int) -> Iterator[str]:
    for path, data in case.files.items():
        for length in range(0, len(data), stride):

            def cut(damaged: bytearray, length: int = length) -> None:
                del damaged[length:]

            yield judge(case, case.damaged(path, cut), path, length, len(data))


def tally(outcomes: Iterator[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for outcome in outcomes:
        counts[outcome] = counts.get(outcome, 0) + 1
    print(counts)
    return counts


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("damage", [flips, cuts])
def test_damage_at_some_bytes(damage: Callable[[Specimen, int], Iterator[str]], clean: bool) -> None:
    counts = tally(damage(specimen(clean=clean), QUICK_STRIDE))
    assert counts["refused"] > 5


@pytest.mark.crash
@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("damage", [flips, cuts])
def test_damage_at_every_byte(damage: Callable[[Specimen, int], Iterator[str]], clean: bool) -> None:
    counts = tally(damage(specimen(clean=clean), 1))
    met(7 if damage is flips else 8, sum(counts.values()))
    assert counts["refused"] > 1000
    assert clean or counts["cut"] > 100


@pytest.mark.parametrize("clean", [True, False])
def test_a_missing_file_is_refused(clean: bool) -> None:
    case = specimen(clean=clean)
    for path in case.files:
        if path > case.tail and path != WATERMARK:
            continue  # a prepared segment holds nothing
        files = {name: data for name, data in case.files.items() if name != path}
        fs = CrashableFileSystem.from_files(files, case.directories)
        with pytest.raises(CorruptionError):
            examine(fs)
        assert fs.files() == files, "a refused open changed a file"


@pytest.mark.parametrize("clean", [True, False])
def test_an_older_copy_of_a_segment_is_commit_loss(clean: bool) -> None:
    case = specimen(clean=clean)

    def shorten(data: bytearray) -> None:
        data[300:] = bytes(len(data) - 300)

    with pytest.raises(CorruptionError):
        examine(case.damaged(case.tail, shorten))
    fs = CrashableFileSystem.from_files(dict(case.files), case.directories)
    journal, _ = Journal.open(fs, DATA, store_id=STORE_ID, salt=SALT, options=OPTIONS)
    old = {name: data for name, data in fs.files().items() if name != WATERMARK}
    journal.sync(journal.append([Part(0x50, b"x")]))
    journal.sync_watermark()
    mark = fs.files()[WATERMARK]
    journal.close(clean=False)
    with pytest.raises(CommitLoss):
        examine(CrashableFileSystem.from_files({**old, WATERMARK: mark}, case.directories))


def test_a_clean_close_is_held_against_a_damaged_seal_although_a_later_segment_was_begun() -> None:
    case = specimen(clean=True)
    later = case.tail.with_name(f"{len([path for path in case.files if path.suffix == '.seg']) + 1:010d}.seg")
    files = {**case.files, later: b"a torn header"}
    assert examine(CrashableFileSystem.from_files(files, case.directories))[0] == case.payloads
    damaged = bytearray(files[case.tail])
    damaged[-96] ^= 1
    with pytest.raises(CorruptionError, match="seal"):
        examine(CrashableFileSystem.from_files({**files, case.tail: bytes(damaged)}, case.directories))


# -- positive controls -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_rule_one_damage_would_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_judge", lambda *_args, **_kwargs: None)
    monkeypatch.setattr(recovery, "_check_mark", lambda *_args, **_kwargs: None)
    with pytest.raises(AssertionError):
        tally(flips(specimen(clean=False), 5))


def test_without_the_check_of_part_hashes_damage_would_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    from holdfast.journal import scan

    monkeypatch.setattr(scan, "check_parts", lambda *_args: None)
    with pytest.raises(AssertionError):
        tally(flips(specimen(clean=True), 3))
