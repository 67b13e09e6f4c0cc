"""One life of a journal that a test may cut short anywhere, and what must be true afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from holdfast._fs import FileSystem
from holdfast.errors import HoldfastError, PoisonedError
from holdfast.journal import Journal, JournalOptions, Kind, Part, TipMark
from holdfast.journal.api import JournalRecovery
from holdfast.testing.crashfs import CrashableFileSystem, Fault, SimulatedCrash

DATA = Path("/data")
STORE_ID = bytes(range(16))
SALT = bytes(range(32))
CARRIED = b"the newest safety record"


def carry() -> list[Part]:
    return [Part(Kind.SAFETY, CARRIED, True)]


OPTIONS = JournalOptions(
    segment_bytes_first=1024, segment_bytes_max=2048, carry=carry, background=False, compression="none"
)


@dataclass
class Life:
    """What the process was promised (``acked``) and what it tried (``tried``), as counts of payloads."""

    tried: list[bytes] = field(default_factory=list)
    acked: int = 0
    created: bool = False
    journal: Journal | None = None
    journal_class: type[Journal] = Journal


def payload(number: int) -> bytes:
    return random.Random(number).randbytes((number * 97) % 700) + number.to_bytes(4, "big")


def put(life: Life, data: bytes | None = None) -> int:
    number = len(life.tried)
    if data is None:
        data = payload(number)
    life.tried.append(data)
    assert life.journal is not None
    parts = [Part(Kind.NOTE, data), Part(Kind.CANONICAL, bytes(5), True)]
    try:
        return life.journal.append(parts, tip=TipMark(number, bytes(32), bytes(32)))
    except HoldfastError:
        if life.journal.poisoned is None:
            life.tried.pop()  # refused before anything was written: the journal goes on
        raise


def put_and_sync(life: Life) -> None:
    seq = put(life)
    count = len(life.tried)
    assert life.journal is not None
    assert life.journal.sync(seq) >= seq
    life.acked = count


def create(life: Life, fs: FileSystem) -> None:
    fs.make_directory(DATA)
    life.tried.append(payload(0))
    life.journal = life.journal_class.create(
        fs, DATA, store_id=STORE_ID, salt=SALT, first_parts=[Part(Kind.NOTE, payload(0))], options=OPTIONS
    )
    life.acked = 1
    life.created = True


def reopen(life: Life, fs: FileSystem) -> None:
    life.journal, _ = life.journal_class.open(fs, DATA, store_id=STORE_ID, salt=SALT, options=OPTIONS)


def close(life: Life, *, clean: bool) -> None:
    assert life.journal is not None
    life.journal.close(clean=clean)


def live(life: Life, fs: FileSystem, *, stop_on_error: bool = True) -> None:
    """Create, append, roll, close cleanly, reopen, close as if killed, recover, append, close cleanly."""
    steps: list[Callable[[], None]] = [lambda: create(life, fs)]
    steps += [lambda: put_and_sync(life)] * 5
    steps += [lambda: _put_only(life)] * 3
    steps += [lambda: put_and_sync(life)] * 2
    steps += [lambda: life.journal.sync_watermark() if life.journal else None]
    steps += [lambda: close(life, clean=True), lambda: reopen(life, fs)]
    steps += [lambda: put_and_sync(life), lambda: _put_only(life), lambda: _put_only(life)]
    steps += [lambda: close(life, clean=False), lambda: reopen(life, fs)]
    steps += [lambda: put_and_sync(life)] * 2
    steps += [lambda: close(life, clean=True)]
    for step in steps:
        try:
            step()
        except PoisonedError:
            assert life.journal is not None
            assert life.journal.poisoned is not None
            return
        except HoldfastError:
            if stop_on_error and (life.journal is None or life.journal.poisoned is not None):
                return
            if not life.created:
                return


def _put_only(life: Life) -> None:
    put(life)


def recovered(journal: Journal) -> list[bytes]:
    """Payloads in order; every part of every frame is read."""
    found: list[bytes] = []
    for frame in journal.frames(1):
        parts = [journal.part(frame, index) for index in range(len(frame.parts))]
        if frame.parts[0].kind == Kind.NOTE:
            found.append(parts[0])
        else:
            assert parts == [CARRIED]
    return found


def check(life: Life, fs: CrashableFileSystem) -> JournalRecovery | None:
    """acked <= recovered <= tried, in order; then the journal works on, and after a clean close all verifies."""
    if not life.created:  # the store has no identity file yet, so this is not a store: it is created again
        again = Life()
        create(again, fs)
        put_and_sync(again)
        close(again, clean=True)
        return None
    journal, recovery = Journal.open(fs, DATA, store_id=STORE_ID, salt=SALT, options=OPTIONS)
    found = recovered(journal)
    assert found == life.tried[: len(found)], "a frame is wrong or out of order"
    assert len(found) >= life.acked, f"lost: {len(found)} of {life.acked} acknowledged"
    assert journal.durable_seq == journal.appended_seq == recovery.last_seq
    # What was recovered must be on the device, even if a sync had failed before.
    cut = fs.crash(random.Random(1), keep="none")
    for item in recovery.discarded:
        assert len(cut.files()[DATA / item.quarantined_as]) == item.length, "evidence was not durable"
    journal.close(clean=False)
    second, _ = Journal.open(cut, DATA, store_id=STORE_ID, salt=SALT, options=OPTIONS)
    assert len(recovered(second)) == len(found), "recovered frames were not durable"
    seq = second.append([Part(Kind.NOTE, b"after")])
    second.sync(seq)
    second.close()
    third, last = Journal.open(cut, DATA, store_id=STORE_ID, salt=SALT, options=OPTIONS)
    assert last.clean
    assert recovered(third) == [*found, b"after"]
    for info in third.segments():
        third.verify_segment(info.number)
    third.close()
    return recovery


def operations() -> int:
    """How many operations one whole life makes."""
    fs = CrashableFileSystem()
    live(Life(), fs)
    return fs.operations


def run_with(fault: Fault, *, seed: int, journal_class: type[Journal] = Journal) -> tuple[Life, CrashableFileSystem]:
    """A life cut short (or hindered) by ``fault``."""
    fs = CrashableFileSystem(seed=seed, faults=(fault,))
    life = Life(journal_class=journal_class)
    try:
        live(life, fs)
    except SimulatedCrash:
        pass
    return life, fs
