"""Kills and power cuts at every operation of every repair, on a simulated device; then the store is opened again."""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import holdfast
from holdfast import Settings, Store
from holdfast._fs import FileSystem
from holdfast._keys import using_key
from holdfast.doctor import apply as applying
from holdfast.doctor.ladder import open_recovered
from holdfast.doctor.report import Rung
from holdfast.errors import CorruptionError, ForeignStore, HoldfastError
from holdfast.store.factory import open_store
from holdfast.testing.crashfs import CrashableFileSystem, Fault, Keep, SimulatedCrash
from holdfast.testing.machine import Machine
from tests.crash.matrix import met
from tests.crash.support import report
from tests.unit.backup_support import backup, in_small_segments, repository
from tests.unit.doctor_support import killed
from tests.unit.state_support import commit
from tests.unit.store_support import chain_of, quick

KEEPS: tuple[Keep, ...] = ("all", "none", "random", "random")
SETTINGS = Settings(flush_interval_seconds=3600.0)
ME = b"me"

Files = dict[Path, bytes]


@dataclass
class Source:
    """A store on the real disk, with a backup and a checkpoint: its files, and its canonical blocks by height."""

    root: Path
    files: Files
    hashes: list[bytes]

    def machine(self, damage: Callable[[Files, Path], None]) -> Machine:
        """A device with the store, damaged."""
        files = dict(self.files)
        damage(files, self.root)
        directories = {parent for path in files for parent in path.parents}
        return Machine(self.root, CrashableFileSystem.from_files(files, directories))


def made(root: Path, *, closed: bool) -> Source:
    """A store of 40 blocks with state, a backup of 30 of them in it, and a checkpoint of the 20th."""
    with holdfast.open(f"sqlite:{root}", settings=quick()) as store:
        store.safety.save(ME, (7,), b"vote")
        for height in range(40):
            commit(store, height, {b"key/%d" % (height % 5): b"%d" % height * 100})
            if height == 20:
                store.checkpoints.create()
            if height == 30:
                backup(store, repository(root / "backups"))
        hashes = [info.hash for info in store.blocks.canonical()]
    if not closed:
        backup(root, repository(root / "backups"))
        killed(root)
    aside = ("views", "tree", "quarantine", "LOCK")
    paths = [path for path in root.rglob("*") if path.is_file() and path.relative_to(root).parts[0] not in aside]
    files = {path: path.read_bytes() for path in paths}
    (root / "repair/new/journal").mkdir(parents=True)  # on the real disk, for what looks there
    (root / "repair/new/LOCK").touch()
    return Source(root, files, hashes)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, Source]]:
    with in_small_segments():
        place = tmp_path_factory.mktemp("doctor")
        yield {closed: made(place / f"closed-{closed}", closed=closed) for closed in (True, False)}


def segments(files: Files, root: Path) -> list[Path]:
    return sorted(path for path in files if path.parent == root / "journal")


def flip(files: Files, path: Path, offset: int) -> None:
    data = bytearray(files[path])
    data[offset] ^= 1
    files[path] = bytes(data)


@dataclass(frozen=True)
class Rig:
    """A damage, how far down one may go, and what must be there afterwards."""

    name: str
    damage: Callable[[Files, Path], None]
    rung: Rung = "lossless"
    closed: bool = True
    height: int = 39
    first: int = 0
    fenced: bool = False


def lose_identity_and_two_segments(files: Files, root: Path) -> None:
    found = segments(files, root)
    flip(files, root / "holdfast.toml", 30)
    flip(files, found[1], 140)
    del files[found[2]]


def lose_a_frame_of_the_newest(files: Files, root: Path) -> None:
    flip(files, segments(files, root)[-1], 140)


def lose_the_third(files: Files, root: Path) -> None:
    del files[segments(files, root)[2]]
    for path in [path for path in files if root / "backups" in path.parents]:
        del files[path]


def lose_the_first(files: Files, root: Path) -> None:
    del files[segments(files, root)[0]]
    for path in [path for path in files if root / "backups" in path.parents]:
        del files[path]


RIGS = [
    Rig("identity and segments", lose_identity_and_two_segments),
    Rig("the newest segment after a kill", lose_a_frame_of_the_newest, closed=False, fenced=True),
    Rig("back to the last whole frame", lose_the_third, rung="backup", height=-1, fenced=True),
    Rig("back to a checkpoint", lose_the_first, rung="checkpoint", height=20, first=20, fenced=True),
]


def opened(machine: Machine, rung: Rung, *, fs: FileSystem | None = None) -> Store:
    url = f"sqlite:{machine.root}"
    return open_recovered(url, create=False, settings=SETTINGS, fs=fs or machine.fs, recover=rung)


def is_right(store: Store, source: Source, rig: Rig) -> None:
    """The blocks that must be there are, as many as the rung keeps, and only a copy that lost nothing may sign."""
    found = list(store.blocks.canonical())
    first, last = found[0].height, found[-1].height
    assert first == rig.first
    assert rig.height in (last, -1)
    assert [info.hash for info in found] == source.hashes[first : last + 1]
    assert store.safety.fenced is rig.fenced
    if rig.rung != "checkpoint":
        assert store.safety.load(ME).position == (7,)


def check(machine: Machine, source: Source, rig: Rig, kept: int) -> str:
    """The image opens by the front door as it must; by itself the store refuses it, or it is whole."""
    kind = "not begun"
    if not machine.fs.exists(source.root / "holdfast.toml"):
        kind = "begun"
    elif machine.fs.exists(source.root / "repair"):
        kind = "staged or ended"
    alone = Machine(machine.root, machine.fs.crash(random.Random(0), keep="all"))
    with alone.running():
        try:
            store = open_store(f"sqlite:{alone.root}", create=False, settings=SETTINGS, fs=alone.fs)
            is_right(store, source, rig)
            store.close()
        except (CorruptionError, ForeignStore):
            pass
        alone.abandon()
    with machine.running():
        with opened(machine, rig.rung) as store:
            is_right(store, source, rig)
            tip = store.tip
            assert tip is not None
            assert tip.height == kept
        assert not machine.fs.exists(source.root / "repair")
        assert_evidence(machine, source, rig)
        with opened(machine, "lossless") as store:
            is_right(store, source, rig)
            assert store.recovery.repaired is None
    return kind


def assert_evidence(machine: Machine, source: Source, rig: Rig) -> None:
    """Whatever was damaged or given up lies in quarantine, byte for byte, or where it was."""
    before, after = source.machine(rig.damage).fs.files(), machine.fs.files()
    aside = {data for path, data in after.items() if source.root / "quarantine" in path.parents}
    for path, data in before.items():
        if path.suffix in (".seg", ".toml"):
            assert after.get(path) == data or data in aside, path


def repaired(machine: Machine, rig: Rig) -> None:
    with machine.running():
        assert holdfast.repair(machine.root, recover=rig.rung, settings=SETTINGS, fs=machine.fs) is not None


def explore(source: Source, rig: Rig, *, step: int = 1, keeps: tuple[Keep, ...] = KEEPS) -> Counter[str]:
    """The repair is cut at every ``step``-th operation; what every image of it was."""
    whole = source.machine(rig.damage)
    repaired(whole, rig)
    with whole.running(), opened(whole, "lossless") as store:
        is_right(store, source, rig)
        assert store.tip is not None
        kept = store.tip.height
    total = source.machine(rig.damage)
    repaired(total, rig)
    counts: Counter[str] = Counter(operations=total.fs.operations)
    for at in range(1, total.fs.operations + 1, step):
        machine = source.machine(rig.damage)
        machine.fs.rng.seed(at)
        machine.fs.faults = (Fault(at, torn=True),)
        with pytest.raises(SimulatedCrash):
            repaired(machine, rig)
        counts["at " + machine.fs.log[-1][0]] += 1
        for number, keep in enumerate(keeps):
            counts["images"] += 1
            counts[check(machine.crash(random.Random(at * 10 + number), keep), source, rig, kept)] += 1
    return counts


@pytest.mark.crash
@pytest.mark.parametrize("rig", RIGS, ids=lambda rig: rig.name)
def test_a_power_cut_at_every_operation_of_a_repair(sources: dict[bool, Source], rig: Rig) -> None:
    counts = explore(sources[rig.closed], rig)
    least = {"at rename": 3, "at sync_directory": 4, "not begun": 4, "begun": 8}
    report(f"repair: {rig.name}", counts, at_least=least, rows={2: "images", 4: "begun"})


@pytest.mark.slow
@pytest.mark.parametrize("rig", RIGS, ids=lambda rig: rig.name)
def test_a_power_cut_at_some_operations_of_a_repair(sources: dict[bool, Source], rig: Rig) -> None:
    explore(sources[rig.closed], rig, step=9, keeps=("none", "random"))


@pytest.mark.slow
@pytest.mark.parametrize("rig", RIGS, ids=lambda rig: rig.name)
def test_a_power_cut_at_some_operations_of_a_repair_of_an_encrypted_store(tmp_path: Path, rig: Rig) -> None:
    with using_key(bytes(32)), in_small_segments():
        source = made(tmp_path / "store", closed=rig.closed)
        assert not [path for path, data in source.files.items() if b"20" * 100 in data]
        explore(source, rig, step=9, keeps=("none", "random"))


@pytest.mark.crash
@pytest.mark.parametrize("rig", RIGS, ids=lambda rig: rig.name)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_at_any_operation_of_a_repair_is_typed_and_the_next_one_ends_it(
    sources: dict[bool, Source], rig: Rig, code: int
) -> None:
    source = sources[rig.closed]
    whole = source.machine(rig.damage)
    repaired(whole, rig)
    raised = 0
    for at in range(1, whole.fs.operations + 1, 3):
        machine = source.machine(rig.damage)
        machine.fs.faults = (Fault(at, error=code, torn=True),)
        try:
            repaired(machine, rig)
        except HoldfastError:
            raised += 1
        machine.fs.faults = ()
        machine.fs.release_locks()
        with machine.running(), opened(machine, rig.rung) as store:
            is_right(store, source, rig)
    assert raised > whole.fs.operations // 6
    met(11 if code == errno.ENOSPC else 12, raised)


# -- positive controls ----------------------------------------------------------------------------------------------


def _begin_late(
    fs: FileSystem, names: tuple[str, ...] | list[str], source: Path, target: Path, *, replace: bool = False
) -> None:
    if names != ["holdfast.toml"]:
        MOVE(fs, names, source, target, replace=replace)


def _without_sync(
    fs: FileSystem, names: tuple[str, ...] | list[str], source: Path, target: Path, *, replace: bool = False
) -> None:
    for name in names:
        if fs.exists(source / name) and (replace or not fs.exists(target / name)):
            for parent in reversed(Path(name).parents[:-1]):
                fs.make_directory(target / parent)
            fs.rename(source / name, target / name)


def _no_fence(*_: object) -> None:
    """Nothing."""


MOVE = applying._move


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "bug", "rig"),
    [("_move", _begin_late, RIGS[2]), ("_move", _without_sync, RIGS[0]), ("_fence", _no_fence, RIGS[1])],
)
def test_a_repair_in_another_order_is_found_out(
    sources: dict[bool, Source], monkeypatch: pytest.MonkeyPatch, name: str, bug: object, rig: Rig
) -> None:
    """The identity that stays, moves that are not synced, a copy that may sign."""
    monkeypatch.setattr(applying, name, bug)
    with pytest.raises((AssertionError, HoldfastError)):
        explore(sources[rig.closed], rig, keeps=("all", "random", "none"))


def test_blocks_are_made_for_every_segment(sources: dict[bool, Source]) -> None:
    """The damages above hit what they say."""
    for source in sources.values():
        assert len(segments(source.files, source.root)) >= 4
        assert len(source.hashes) == len(chain_of(None, 40))
        assert isinstance(source.hashes[0], bytes)
