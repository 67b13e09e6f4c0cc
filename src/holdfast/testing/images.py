"""Which images of a device a power cut may leave, taken systematically from one recorded moment.

Invariants:
    * Every image is legal: it has all that was synced, and a choice of what was not, at a grain of 512 bytes.
    * Profile ``ext4``: names change in the order in which they were changed, and a sync of a directory, or of a file
      that is new or has grown, commits all names before it. Profile ``strict``: each name that was not synced is lost
      or kept for itself, as POSIX allows.
    * The n-th image of a moment is the same whenever the workload makes the same operations.

First comes what was synced and nothing else, then every choice below once - one of each kind in turn, for the last
``RECENT`` changes of each file - and after them random choices without end. ``killed`` is a process that died while the
kernel lives on: all is seen, and what was not synced still is not durable.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .crashfs import (
    Change,
    CrashableFileSystem,
    DeviceState,
    FileState,
    Truncate,
    Write,
    apply_change,
    enter,
    sectors,
)
from .machine import Disk, Machine

__all__ = ["IMAGE_KINDS", "PROFILES", "RECENT", "Choice", "Image", "Moment", "build", "choices"]

RECENT = 8
PROFILES = ("ext4", "strict")
IMAGE_KINDS = (
    "killed",
    "none",
    "all",
    "data only",
    "names only",
    "zeros",
    "names in order",
    "name omitted",
    "name alone",
    "change omitted",
    "change alone",
    "torn",
    "batches",
    "random",
)
"""What may be left of that which was not synced, in the words of a report."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The machine between two operations.

    Attributes:
        number: operations that were made up to now.
        kind: what the last of them was; ``start`` before the first.
        device: the files.
        engines: for each engine its batches so far, how many they were, and how many of them were durable.
        acknowledged: what had been acknowledged when the next operation began.
        begun: what had been begun, or ``None`` for ``acknowledged + 1``.
    """

    number: int
    kind: str
    device: DeviceState
    engines: tuple[tuple[Path, Disk, int, int], ...]
    acknowledged: int
    begun: int | None = None

    @property
    def most(self) -> int:
        """More than this cannot be in the store."""
        return self.acknowledged + 1 if self.begun is None else max(self.begun, self.acknowledged)

    @property
    def open_ended(self) -> bool:
        """True if something was not synced."""
        return (
            bool(self.device.pending)
            or any(file.pending for file in self.device.files)
            or any(count > synced for _, _, count, synced in self.engines)
        )


Pick = Callable[[int, FileState], list[Change]]
"""Which changes of a file reached the device, in order."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One image of a moment: its kind, the first profile under which it is legal, and what was kept."""

    kind: str
    profile: str
    names: tuple[bool, ...] = ()
    pick: Pick | None = None
    batches: Callable[[int, int], int] | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """A device after a power cut, and a digest that is equal for equal contents. ``boot`` gives its machine."""

    digest: bytes
    files: dict[Path, bytes] | None
    directories: set[Path]
    device: DeviceState
    disks: dict[Path, Disk]

    def boot(self, root: Path) -> Machine:
        """The machine, new each time."""
        disks = {path: disk.first(len(disk.batches), disk.synced) for path, disk in self.disks.items()}
        if self.files is None:
            return Machine(root, CrashableFileSystem.from_state(self.device), disks)
        return Machine(root, CrashableFileSystem.from_files(self.files, self.directories), disks)


def _all(_index: int, file: FileState) -> list[Change]:
    return list(file.pending)


def _none(_index: int, _file: FileState) -> list[Change]:
    return []


def _zeros(_index: int, file: FileState) -> list[Change]:
    """The file is as long as it was seen, and what was not synced reads as zeros."""
    data = bytearray(file.durable)
    for change in file.pending:
        apply_change(data, change)
    return [Truncate(len(data))] if len(data) > len(file.durable) else []


def _last(_synced: int, count: int) -> int:
    return count


def _first(synced: int, _count: int) -> int:
    return synced


def _systematic(moment: Moment, rng: random.Random) -> Iterator[Choice]:
    names = moment.device.pending
    every = (True,) * len(names)
    yield Choice("killed", "ext4")
    yield Choice("all", "ext4", every, _all, _last)
    nothing = tuple(name.journalled for name in names)
    data = any(file.pending for file in moment.device.files)
    if any(nothing):
        yield Choice("none", "strict", (False,) * len(names), _none, _first)
    if data and not all(nothing):
        yield Choice("data only", "ext4", nothing, _all, _last)
    if data and names:
        yield Choice("names only", "ext4", every, _none, _first)
    if any(_zeros(0, file) for file in moment.device.files):
        yield Choice("zeros", "ext4", every, _zeros, _last)
    for stop in range(sum(nothing), len(names)):
        for pick in (_all, _none):
            yield Choice("names in order", "ext4", tuple(n < stop for n in range(len(names))), pick, _last)
    for one in range(len(names)) if len(names) > 1 else ():
        omitted = tuple(n != one for n in range(len(names)))
        yield Choice("name omitted", "strict", omitted, _all, _last)
        yield Choice("name alone", "strict", tuple(n == one for n in range(len(names))), _all, _last)
    for _path, _disk, count, synced in moment.engines:
        for kept in range(max(synced, count - RECENT), count):
            for pick in (_all, _none):
                yield Choice("batches", "ext4", every, pick, _at_most(kept))
    for index, file in enumerate(moment.device.files):
        yield from _of_file(index, file, every, rng)


def _of_file(index: int, file: FileState, names: tuple[bool, ...], rng: random.Random) -> Iterator[Choice]:
    pending = file.pending
    for at in range(max(0, len(pending) - RECENT), len(pending)):
        change = pending[at]
        if len(pending) > 1:
            yield Choice(
                "change omitted", "ext4", names, _with(index, [*pending[:at], *pending[at + 1 :]], _all), _last
            )
            yield Choice("change alone", "ext4", names, _with(index, [change], _none), _first)
        pieces = sectors(change) if isinstance(change, Write) else []
        if len(pieces) > 1:
            stop = rng.randrange(1, len(pieces))
            for part in (pieces[:stop], pieces[stop:]):
                yield Choice("torn", "ext4", names, _with(index, [*pending[:at], *part], _all), _last)


def _at_most(kept: int) -> Callable[[int, int], int]:
    return lambda synced, count: max(synced, min(kept, count))


def _with(index: int, changes: list[Change], others: Pick) -> Pick:
    """``changes`` of one file, and ``others`` of the rest."""
    return lambda which, file: changes if which == index else others(which, file)


def _random(moment: Moment, rng: random.Random, profile: str) -> Choice:
    names = moment.device.pending
    if profile == "ext4":
        stop = rng.randint(sum(name.journalled for name in names), len(names))
        kept = tuple(n < stop for n in range(len(names)))
    else:
        kept = tuple(rng.random() < 0.5 for _ in names)
    seed = rng.getrandbits(64)
    share = rng.random()

    def pick(index: int, file: FileState) -> list[Change]:
        choose = random.Random(seed + index)
        mode = choose.randrange(3)  # nothing, a choice, everything
        pieces: list[Change] = []
        for change in file.pending:
            pieces += sectors(change) if isinstance(change, Write) else [change]
        return [piece for piece in pieces if mode == 2 or (mode and choose.random() < share)]

    return Choice("random", profile, kept, pick, lambda synced, count: random.Random(seed).randint(synced, count))


def choices(moment: Moment, *, seed: int, profiles: tuple[str, ...] = PROFILES) -> Iterator[Choice]:
    """Every image of ``moment``, the certain ones first; endless if anything was not synced."""
    names = moment.device.pending
    yield Choice("none", "ext4", tuple(name.journalled for name in names), _none, _first)
    if not moment.open_ended:
        return
    rng = random.Random(seed * 1_000_003 + moment.number)
    found: dict[str, list[Choice]] = {}
    for choice in _systematic(moment, rng):
        if choice.profile in profiles:
            found.setdefault(choice.kind, []).append(choice)
    kinds = list(found)
    rng.shuffle(kinds)
    for kind in kinds:
        rng.shuffle(found[kind])
    while any(found.values()):
        yield from [found[kind].pop() for kind in kinds if found[kind]]
    while True:
        yield from (_random(moment, rng, profile) for profile in profiles)


def build(moment: Moment, choice: Choice) -> Image:
    """The image that ``choice`` leaves. Nothing of the moment is changed."""
    device = moment.device
    digest = hashlib.blake2b(digest_size=16)
    disks: dict[Path, Disk] = {}
    for path, disk, count, synced in moment.engines:
        kept = count if choice.batches is None else choice.batches(synced, count)
        disks[path] = disk.first(kept, synced if choice.batches is None else kept)
        digest.update(f"{path} {disks[path].synced};".encode() + b"".join(disks[path].digests[-1:]))
    files: dict[Path, bytes] | None = None
    directories = set(device.directories)
    if choice.pick is None:
        for file in device.files:
            digest.update(b"".join(repr(change).encode() for change in file.pending) + _digest(file.durable))
        digest.update(repr((device.pending, device.names)).encode())
    else:
        names = dict(device.names)
        pairs = list(zip(device.pending, choice.names, strict=True))
        enter(names, directories, ((name.entries, name.moved, kept) for name, kept in pairs))
        for name, kept in pairs:
            if kept and name.moved is not None:
                digest.update(f"{name.moved};".encode())
        directories |= {parent for path in names for parent in path.parents}
        contents = {index: _content(index, device.files[index], choice.pick) for index in set(names.values())}
        files = {path: contents[index] for path, index in names.items()}
        for path, data in sorted(files.items()):
            digest.update(f"{path};".encode() + _digest(data))
    return Image(digest.digest(), files, directories, device, disks)


@functools.lru_cache(maxsize=1024)
def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _content(index: int, file: FileState, pick: Pick) -> bytes:
    changes = pick(index, file)
    if not changes:
        return file.durable
    data = bytearray(file.durable)
    for change in changes:
        apply_change(data, change)
    return bytes(data)
