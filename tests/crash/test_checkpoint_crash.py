"""Power cuts and errors at every operation of making and pruning checkpoints, and bugs that must be found."""

from __future__ import annotations

import contextlib
import errno
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast import Settings
from holdfast._fs import NewFile
from holdfast._keys import StoreKey, seal_master
from holdfast._seal import StoreCipher
from holdfast.blocks.state import EMPTY
from holdfast.errors import HoldfastError, NotFoundError, SnapshotInvalid
from holdfast.merkle.pure import BACKEND
from holdfast.state.checkpoint import CheckpointDirectory, checkpoint_height, checkpoint_name
from holdfast.state.sealing import FileKeys, Sealing
from holdfast.state.snapshot import CHUNKS_NAME, SnapshotInfo
from holdfast.state.snapshot_export import SnapshotSource
from holdfast.store.checkpoints import CheckpointPruneReport, Checkpoints
from holdfast.testing.crashfs import CrashableFileSystem, Fault, Keep, SimulatedCrash
from tests.crash.support import report
from tests.unit.snapshot_support import Source, block_at, numbered, source_of

PLACE = Path("/store/checkpoints")
KEEPS: tuple[Keep, ...] = ("all", "none", "random", "random")
VALUES = numbered(40)
HEIGHTS = (10, 20, 30, 40)
SOURCES: dict[int, Source] = {
    height: source_of({**VALUES, b"key/%d" % (height // 10): b"at %d" % height}, height=height) for height in HEIGHTS
}
"""Each changes one key of the same state, so that most chunks are shared."""


FORM, MASTER = seal_master(StoreKey("key-file", bytes(32)), b"i" * 16)
SEALED = FileKeys(Sealing(b"i" * 16, FORM, StoreCipher(MASTER, b"i" * 16)), encrypted=True)
KINDS = pytest.mark.parametrize("keys", [None, SEALED], ids=["plain", "sealed"])


class Life:
    """A process that makes checkpoints and prunes them, with ``keys`` sealed; what it was told to be done."""

    def __init__(self, fs: CrashableFileSystem, keys: FileKeys | None = None) -> None:
        self.fs = fs
        self.keys = keys
        self.tried: set[int] = set()
        self.made: set[int] = set()
        self.errors: list[HoldfastError] = []

    @property
    def directory(self) -> CheckpointDirectory:
        return CheckpointDirectory(self.fs, PLACE, tree_backend=BACKEND, keys=self.keys)

    def create(self, height: int) -> None:
        self.tried.add(height)
        self.directory.create(SOURCES[height], chunk_bytes=1024)
        self.made.add(height)

    def prune(self, newest: int, every: int = 0) -> CheckpointPruneReport:
        backend: Any = SimpleNamespace(
            checkpoints=self.directory,
            state=EMPTY._replace(tip_height=99),
            path=PLACE,
        )
        blocks: Any = SimpleNamespace(hash_at=lambda height: block_at(height).hash)
        owner = Checkpoints(backend, blocks, Settings(), check=lambda: None, refuse_inside=lambda: None)
        return owner._prune(newest, every, keep_going=lambda: True)

    def live(self) -> None:
        """Make three, prune to two, make one more and prune to one, keeping the first from 20 on."""
        for step in (
            lambda: self.create(10),
            lambda: self.create(20),
            lambda: self.create(30),
            lambda: self.prune(2),
            lambda: self.create(40),
            lambda: self.prune(1, 20),
        ):
            try:
                step()
            except HoldfastError as error:
                self.errors.append(error)


def fresh(seed: int = 0, *faults: Fault) -> CrashableFileSystem:
    fs = CrashableFileSystem.from_files({}, {PLACE.parent})
    fs.rng.seed(seed)
    fs.faults = faults
    return fs


def whole(directory: CheckpointDirectory) -> list[int]:
    """Heights of the listed checkpoints; each is whole, and says what its block's state was."""
    found = []
    for name in directory.names():
        height = checkpoint_height(name)
        reader = directory.reader(name)
        reader.trust_own()
        rows = dict(row for chunk in reader.chunks(workers=1) for row in chunk.rows)
        assert rows == SOURCES[height].values, name
        found.append(height)
    return found


def check(fs: CrashableFileSystem, made: set[int], may_be_gone: set[int], keys: FileKeys | None = None) -> None:
    """Everything listed is whole, nothing that was acknowledged is missing, and the next run ends as ever."""
    life = Life(fs, keys)
    there = whole(life.directory)
    assert made - may_be_gone <= set(there), f"{sorted(made)} were made, {there} are there"
    if made:
        assert there, "there was a checkpoint, and now there is none"
    life.create(40)
    life.prune(1, 20)
    assert not life.errors
    assert set(whole(life.directory)) <= {40, 30, 20}
    assert whole(life.directory)[0] == 40
    names = life.directory.names()
    readers = [life.directory.reader(name) for name in names]
    used = {reader.chunk_path(entry).name for reader in readers for entry in reader.manifest.chunks}
    assert set(fs.names(PLACE / CHUNKS_NAME)) == used
    assert set(fs.names(PLACE)) == {CHUNKS_NAME, *(f"{name}.manifest" for name in names)}
    assert whole(Life(fs.crash(random.Random(1), keep="none"), keys).directory) == whole(life.directory), "not durable"
    plain = [path for path, data in fs.files().items() if any(value in data for value in VALUES.values())]
    assert not plain or keys is None, "a value lies in plain text"


def operations(keys: FileKeys | None = None) -> int:
    life = Life(fresh(), keys)
    life.live()
    assert not life.errors
    assert whole(life.directory) == [40, 20]
    return life.fs.operations


def gone_by(life: Life) -> set[int]:
    """What a prune may have removed by then. One that failed at its last step may be there, and whole, all the same."""
    return {10, 30} if 40 in life.tried else {10} if 30 in life.tried else set()


def explore(points: range, keeps: tuple[Keep, ...] = KEEPS, keys: FileKeys | None = None) -> Counter[str]:
    counts: Counter[str] = Counter()
    for at in points:
        life = Life(fresh(at, Fault(at, torn=True)), keys)
        with pytest.raises(SimulatedCrash):
            life.live()
        counts["at " + life.fs.log[-1][0]] += 1
        for number, keep in enumerate(keeps):
            counts["images"] += 1
            check(life.fs.crash(random.Random(at * 10 + number), keep=keep), life.made, gone_by(life), keys)
    return counts


@pytest.mark.crash
@KINDS
def test_power_cut_at_every_operation(keys: FileKeys | None) -> None:
    total = operations(keys)
    counts = explore(range(1, total + 1), keys=keys)
    report(
        f"checkpoints, {total} operations",
        counts,
        at_least={"at rename": 10, "at sync": 10, "at remove": 5, "at sync_directory": 5, "images": 4 * total},
        rows={2: "images"},
    )


@pytest.mark.slow
@KINDS
def test_power_cut_at_some_operations(keys: FileKeys | None) -> None:
    total = operations(keys)
    explore(range(2, total + 1, total // 12), ("none", "random"), keys)


@pytest.mark.crash
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_an_error_at_every_operation_is_typed_and_costs_one_checkpoint(code: int, persistent: bool) -> None:
    total = operations()
    counts: Counter[str] = Counter()
    for at in range(1, total + 1):
        life = Life(fresh(at, Fault(at, error=code, persistent=persistent, torn=True)))
        life.live()
        counts["raised"] += bool(life.errors)
        life.fs.faults = ()
        for number, keep in enumerate(KEEPS[:3]):
            counts["images"] += 1
            check(life.fs.crash(random.Random(at * 10 + number), keep=keep), life.made, gone_by(life))
        check(life.fs, life.made, gone_by(life))
    row = 11 if code == errno.ENOSPC else 12
    least = {"raised": total // 2, "images": 3 * total}
    report(f"checkpoints, {errno.errorcode[code]}", counts, at_least=least, rows={row: "raised"})


@pytest.mark.slow
def test_one_whose_name_was_never_synced_is_durable_before_others_go() -> None:
    """The last sync of its making failed, so a power cut could take its name, and the older ones must not be gone."""

    def life_until(at: int) -> Life:
        life = Life(fresh())
        for height in (10, 20, 30):
            life.create(height)
        failing = life.fs.operations
        life = Life(fresh(at, Fault(failing, error=errno.EIO)))
        life.create(10)
        life.create(20)
        with pytest.raises(HoldfastError):
            life.create(30)
        life.fs.faults = (Fault(life.fs.operations + at),)
        with contextlib.suppress(SimulatedCrash):
            life.prune(1)
        return life

    for at in range(1, 10):
        for number in range(24):
            image = Life(life_until(at).fs.crash(random.Random(at * 100 + number)))
            assert set(whole(image.directory)) & {20, 30}
            if 30 not in whole(image.directory):
                assert whole(image.directory) == [20, 10]


@pytest.mark.slow
def test_a_manifest_does_not_come_back_after_its_chunks_went() -> None:
    """Killed before its removal was synced; the next process sweeps the chunks, and then the power goes."""
    for at in range(1, 8):
        for number in range(16):
            life = Life(fresh())
            for height in (10, 20):
                life.create(height)
            life.fs.faults = (Fault(life.fs.operations + at),)
            with contextlib.suppress(SimulatedCrash):
                life.prune(1)
            after = Life(life.fs.crash(random.Random(at), keep="all"))
            after.fs.faults = (Fault(after.fs.operations + 3 + number // 4),)
            with contextlib.suppress(SimulatedCrash):
                after.prune(1)
            assert 20 in whole(Life(after.fs.crash(random.Random(at * 100 + number))).directory)


def test_pruning_works_on_a_full_disk() -> None:
    life = Life(fresh())
    for height in (10, 20, 30):
        life.create(height)
    life.fs.faults = (Fault(1, error=errno.ENOSPC, persistent=True, only=frozenset(("pwrite", "create", "truncate"))),)
    assert len(life.prune(1).removed) == 2
    assert whole(life.directory) == [30]


# -- positive controls: each planted bug must be found ---------------------------------------------------------------

Patch = pytest.MonkeyPatch


def writes_the_manifest_first(patch: Patch) -> None:
    original = CheckpointDirectory.create

    def create(self: CheckpointDirectory, source: SnapshotSource, **more: Any) -> object:
        other = CheckpointDirectory(CrashableFileSystem.from_files({}, {PLACE.parent}), PLACE, tree_backend=BACKEND)
        original(other, source, **more)
        name = checkpoint_name(source.block.height, source.block.hash) + ".manifest"
        for place in (self.path, self._chunks):
            self._fs.make_directory(place)
        self._fs.write_atomic(PLACE / name, other._fs.read_bytes(PLACE / name, limit=10**6))
        return original(self, source, **more)

    patch.setattr(CheckpointDirectory, "create", create)


def removes_chunks_that_others_name(patch: Patch) -> None:
    def remove(self: CheckpointDirectory, names: list[str]) -> None:
        chunks = {self.reader(name).chunk_path(entry) for name in names for entry in self.reader(name).manifest.chunks}
        for name in names:
            self._fs.remove(self.path / f"{name}.manifest")
        self._fs.sync_directory(self.path)
        for path in sorted(chunks):
            self._fs.remove(path)

    patch.setattr(CheckpointDirectory, "remove", remove)


def removes_chunks_before_their_manifest(patch: Patch) -> None:
    original = CheckpointDirectory.remove

    def remove(self: CheckpointDirectory, names: list[str]) -> None:
        for path in self.spare(names):
            self._fs.remove(path)
        original(self, names)

    patch.setattr(CheckpointDirectory, "remove", remove)


def forgets_that_names_are_not_durable(patch: Patch) -> None:
    original = CrashableFileSystem.sync_directory

    def sync_directory(self: CrashableFileSystem, path: Path) -> None:
        if path != PLACE:
            original(self, path)

    patch.setattr(CrashableFileSystem, "sync_directory", sync_directory)


def does_not_sync_chunks(patch: Patch) -> None:
    patch.setattr(NewFile, "sync", lambda self: None)


def does_not_sync_directories(patch: Patch) -> None:
    patch.setattr(CrashableFileSystem, "sync_directory", lambda self, path: self.step("sync_directory", path))


@pytest.mark.slow
@pytest.mark.parametrize(
    "bug",
    [
        writes_the_manifest_first,
        removes_chunks_that_others_name,
        removes_chunks_before_their_manifest,
        forgets_that_names_are_not_durable,
        does_not_sync_chunks,
        does_not_sync_directories,
    ],
)
def test_a_planted_bug_is_found(bug: Callable[[Patch], None]) -> None:
    total = operations()
    found: list[str] = []
    for at in range(1, total + 20):
        life = Life(fresh(at, Fault(at, torn=True)))
        with pytest.MonkeyPatch.context() as patch:
            bug(patch)
            with contextlib.suppress(SimulatedCrash):
                life.live()
        for number in range(3):
            image = life.fs.crash(random.Random(at * 10 + number), keep=("all", "none", "random")[number])
            try:
                check(image, life.made, gone_by(life))
            except (AssertionError, HoldfastError) as error:
                found.append(f"{type(error).__name__}: {error}"[:150])
        if found:
            break
    assert found, "the bug was not found"
    print(f"{bug.__name__}: {found[0]}")


def rotten() -> Life:
    """Three checkpoints; a chunk that only the newest has is damaged."""
    life = Life(fresh())
    for height in (10, 20, 30):
        life.create(height)
    newest, *others = life.directory.names()
    shared = {entry.hash for name in others for entry in life.directory.reader(name).manifest.chunks}
    (own,) = [entry for entry in life.directory.reader(newest).manifest.chunks if entry.hash not in shared]
    node = life.fs._names[PLACE / CHUNKS_NAME / own.hash.hex()]
    node.live[7] ^= 1
    return life


def sound(life: Life) -> list[int]:
    found = []
    for name in life.directory.names():
        with contextlib.suppress(SnapshotInvalid):
            life.directory.verify(name, workers=1)
            found.append(checkpoint_height(name))
    return found


def test_nothing_goes_for_one_that_is_not_whole() -> None:
    life = rotten()
    told = life.prune(1)
    assert [checkpoint_height(name) for name in told.damaged] == [30]
    assert sound(life) == [20]


def test_pruning_before_the_newer_one_is_verified_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A positive control of the test above."""

    def unseen(self: CheckpointDirectory, name: str, **_more: object) -> SnapshotInfo:
        if not self._fs.exists(self.path / f"{name}.manifest"):
            raise NotFoundError("gone")
        return self.reader(name).info

    life = rotten()
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointDirectory, "verify", unseen)
        life.prune(1)
    assert sound(life) == []
