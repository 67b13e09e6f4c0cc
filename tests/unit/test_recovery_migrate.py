"""Older formats are migrated, killed anywhere and damaged; newer ones are refused untouched."""

from __future__ import annotations

import contextlib
import shutil
from hashlib import sha256
from pathlib import Path

import pytest

import holdfast
from holdfast._fs import RealFileSystem
from holdfast._keys import using_key
from holdfast.errors import (
    CorruptionError,
    FormatTooNew,
    FormatTooOld,
    HoldfastError,
    KeyRejected,
    StoreLocked,
    StoreNotFound,
)
from holdfast.recovery import migrate as migrate_module
from holdfast.recovery import verify_store
from holdfast.recovery.migrate import READY, STAGING, migrate_store
from tests.unit.format0 import Format0, write_format0
from tests.unit.state_support import Values, assert_tip, commit
from tests.unit.store_support import quick

STEPS = {0: Format0()}
GOLDEN = Path(__file__).parent.parent / "golden" / "format-0"
BLOCKS = 70
ME = b"validator"


def tree_of(root: Path) -> dict[str, bytes]:
    """Every file below ``root``, by its digest."""
    return {
        str(path.relative_to(root)): sha256(path.read_bytes()).digest() for path in root.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Values, str]:
    """A store of format 0; its state and the hash of its tip."""
    directory = tmp_path_factory.mktemp("old")
    values: Values = {}
    with holdfast.open(f"sqlite:{directory / 'one'}", settings=quick()) as store:
        for height in range(BLOCKS):
            changes = {b"key-%d" % (height % 9): b"value-%d" % height}
            commit(store, height, changes)
            values.update(changes)
        store.safety.save(ME, (7,), b"vote")
        assert store.tip is not None
        tip = store.tip.hash.hex()
    write_format0(directory / "one", directory / "zero")
    return directory / "zero", values, tip


@pytest.fixture
def zero(old: tuple[Path, Values, str], tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(old[0], tmp_path / "store")
    return tmp_path / "store"


def test_nothing_is_migrated_in_plain_text_where_a_key_was_given(zero: Path) -> None:
    before = tree_of(zero)
    with using_key(bytes(32)), pytest.raises(KeyRejected):
        migrate_store(zero, steps=STEPS)
    assert tree_of(zero) == before


def assert_opens(root: Path, values: Values, tip: str) -> None:
    with holdfast.open(f"sqlite:{root}", settings=quick()) as store:
        assert store.tip is not None
        assert store.tip.hash.hex() == tip
        assert_tip(store, values)


def assert_migrated(root: Path, values: Values, tip: str) -> None:
    assert verify_store(root, level="links").ok
    assert_opens(root, values, tip)
    with holdfast.open(root, settings=quick()) as store:
        commit(store, BLOCKS, {b"more": b"value"})
    assert verify_store(root, level="full").ok


def test_an_older_format_is_refused_untouched_and_names_the_way(zero: Path) -> None:
    before = tree_of(zero)
    with pytest.raises(FormatTooOld) as caught:
        holdfast.open(zero)
    assert "holdfast migrate" in str(caught.value.remedy)
    with pytest.raises(FormatTooOld):
        holdfast.open(zero, read_only=True)
    with pytest.raises(FormatTooOld):
        verify_store(zero)
    with pytest.raises(FormatTooOld):
        migrate_store(zero)  # this version knows no step
    found = tree_of(zero)
    found.pop("LOCK", None)
    assert found == before


def test_a_newer_format_is_refused_untouched(zero: Path) -> None:
    path = zero / "holdfast.toml"
    path.write_text(path.read_text().replace("format = 0", "format = 2"))
    (zero / "LOCK").touch()
    before = tree_of(zero)
    with pytest.raises(FormatTooNew):
        migrate_store(zero, steps=STEPS)
    before["LOCK"] = tree_of(zero)["LOCK"]
    assert tree_of(zero) == before


def test_what_it_was_lies_beside_what_it_is(old: tuple[Path, Values, str], zero: Path) -> None:
    looked = migrate_store(zero, steps=STEPS, dry_run=True)
    assert (looked.from_format, looked.to_format, looked.frames) == (0, 1, BLOCKS + 2)
    assert not (zero / STAGING).exists()
    report = migrate_store(zero, steps=STEPS)
    assert report.frames == BLOCKS + 2
    assert report.kept == str(zero / "before-format-0")
    assert tree_of(Path(report.kept)) == tree_of(old[0])
    assert not (zero / STAGING).exists()
    again = migrate_store(zero, steps=STEPS)
    assert (again.from_format, again.kept) == (1, None)
    assert_migrated(zero, *old[1:])


def test_the_place_is_the_same_so_votes_go_on(zero: Path) -> None:
    """A migration is no copy: whoever signed here signs on."""
    migrate_store(zero, steps=STEPS)
    with holdfast.open(zero, settings=quick()) as store:
        record = store.safety.load(ME)
        assert record is not None
        assert record.position == (7,)


class Killed(BaseException):
    """The process is gone."""


class Dying(RealFileSystem):
    """Dies before its n-th change."""

    def __init__(self, after: int) -> None:
        self.left = after
        self.log: list[str] = []

    def _step(self, name: str) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1
        self.log.append(name)

    def make_directory(self, path: Path) -> None:
        self._step("make_directory")
        super().make_directory(path)

    def remove(self, path: Path) -> None:
        self._step("remove")
        super().remove(path)

    def remove_tree(self, path: Path) -> None:
        self._step("remove_tree")
        super().remove_tree(path)

    def rename(self, source: Path, target: Path) -> None:
        self._step("rename")
        super().rename(source, target)

    def sync_directory(self, path: Path) -> None:
        self._step("sync_directory")
        super().sync_directory(path)

    def write_atomic(self, path: Path, data: bytes) -> None:
        self._step("write_atomic")
        super().write_atomic(path, data)


def kill_everywhere(directory: Path, template: Path, values: Values, tip: str) -> set[str]:
    """The migration dies before each of its changes, once or twice, and is run again; before what it died."""
    died: set[str] = set()
    for after in range(200):
        root = directory / str(after)
        shutil.copytree(template, root)
        fs = Dying(after)
        try:
            migrate_store(root, steps=STEPS, fs=fs)
        except Killed:
            died.add(f"{len(fs.log)} changes")
            if not (root / STAGING / READY).exists() and "format = 0" in (root / "holdfast.toml").read_text():
                found = {name: data for name, data in tree_of(root).items() if not name.startswith((STAGING, "LOCK"))}
                assert found == tree_of(template), "the old store was touched too early"
            with contextlib.suppress(Killed):
                migrate_store(root, steps=STEPS, fs=Dying(after // 2))
            migrate_store(root, steps=STEPS)
            assert_opens(root, values, tip)
            shutil.rmtree(root)
            continue
        return died
    raise AssertionError("the migration never ended")


def golden() -> tuple[Path, Values, str]:
    """The golden store, its state, and the hash of its tip."""
    return (
        GOLDEN,
        {b"key-%d" % number: b"value-%d" % number for number in range(5)},
        (GOLDEN / "tip.txt").read_text().strip(),
    )


@pytest.mark.crash
def test_killed_at_every_change(tmp_path: Path) -> None:
    assert len(kill_everywhere(tmp_path, *golden())) > 20


def test_killed_among_the_frames_it_goes_on(
    old: tuple[Path, Values, str], zero: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate_module, "_SYNC_FRAMES", 10)

    def stop(done: int, _total: int) -> None:
        if done >= 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        migrate_store(zero, steps=STEPS, progress=stop)
    starts: list[int] = []

    class Watched(Format0):
        def frames(self, fs, root, start):  # type: ignore[no-untyped-def]  # as above
            starts.append(start)
            return super().frames(fs, root, start)

    migrate_store(zero, steps={0: Watched()})
    assert starts
    assert min(starts) > 30
    assert_migrated(zero, *old[1:])


@pytest.mark.parametrize("damage", ["flip", "cut", "frame dropped"])
def test_a_damaged_old_store_stays_as_it_is(zero: Path, damage: str) -> None:
    path = zero / "log" / "000002.rec"
    data = path.read_bytes()
    if damage == "flip":
        path.write_bytes(data[:100] + bytes((data[100] ^ 1,)) + data[101:])
    elif damage == "cut":
        path.write_bytes(data[:-5])
    else:
        length = int.from_bytes(data[:4], "big")
        path.write_bytes(data[36 + length :])
    before = tree_of(zero)
    with pytest.raises(CorruptionError):
        migrate_store(zero, steps=STEPS)
    found = {name: value for name, value in tree_of(zero).items() if not name.startswith((STAGING, "LOCK"))}
    assert found == before


def test_nobody_else_has_it_open(zero: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound):
        migrate_store(tmp_path / "nothing", steps=STEPS)
    lock = RealFileSystem().lock(zero / "LOCK", "somebody")
    with pytest.raises(StoreLocked):
        migrate_store(zero, steps=STEPS)
    lock.release()


# -- planted bugs --------------------------------------------------------------------------------------------------


def publishes_unverified(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(migrate_module, "_verify", lambda *_: None)


def identity_first(patch: pytest.MonkeyPatch) -> None:
    def publish(fs: RealFileSystem, root: Path, staging: Path, kept: Path) -> None:
        fs.rename(staging / "holdfast.toml", root / "holdfast.toml")
        fs.write_atomic(staging / "holdfast.toml", (root / "holdfast.toml").read_bytes())
        original(fs, root, staging, kept)

    original = migrate_module._publish
    patch.setattr(migrate_module, "_publish", publish)


def forgets_what_was_moved(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(migrate_module, "WATERMARK", "none")


@pytest.mark.crash
def test_planted_bugs_are_found(old: tuple[Path, Values, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, bug in enumerate((identity_first, forgets_what_was_moved)):
        with monkeypatch.context() as patch:
            bug(patch)
            with pytest.raises((AssertionError, HoldfastError, OSError)):
                kill_everywhere(tmp_path / str(number), *golden())
    shutil.copytree(old[0], tmp_path / "unverified")
    path = tmp_path / "unverified" / "log" / "000002.rec"
    data = path.read_bytes()
    path.write_bytes(data[36 + int.from_bytes(data[:4], "big") :])  # a block is missing
    with monkeypatch.context() as patch:
        publishes_unverified(patch)
        migrate_store(tmp_path / "unverified", steps=STEPS)
    with pytest.raises((AssertionError, HoldfastError)):
        assert_migrated(tmp_path / "unverified", *old[1:])


# -- a store that was written once -----------------------------------------------------------------------------------


def test_the_golden_store_of_format_0_opens(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "store")
    migrate_store(tmp_path / "store", steps=STEPS)
    assert_opens(tmp_path / "store", *golden()[1:])
