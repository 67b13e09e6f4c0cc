"""What the system takes from a process: size of files, descriptors, memory, the right to write, and its time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast import Store
from holdfast._fs import Buffer, File, RealFileSystem
from holdfast.engine import lmdb, rocksdb
from holdfast.errors import SafetyStateMissing, StoreLocked
from holdfast.store import opening
from tests.crash.support import (
    ENGINES,
    VALIDATOR,
    Agent,
    Model,
    check_deep,
    check_frontier,
    contents,
    open_store,
    perform,
    picture_of,
    report,
)
from tests.unit.state_support import root_of

SEED = 41
OPERATIONS = 40
ALL_FROM = 200
NOBODY = 65534
OF_ENGINES = {"sqlite": {"device"}, "lmdb": {"device"}}


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    with Agent() as started:
        yield started


def stored(agent: Agent, engine: str, root: Path) -> dict[str, object]:
    """A closed store of so many operations; the arguments of a task on it."""
    arguments: dict[str, object] = {"url": f"{engine}:{root}", "seed": SEED}
    agent.must("template", arguments | {"acked": 0, "operations": OPERATIONS, "clean": True, "flush_at": 20})
    return arguments | {"acked": OPERATIONS}


# -- limits of the process: size of a file, descriptors, memory -------------------------------------------------------


def work_under(agent: Agent, arguments: dict[str, object], limits: dict[str, int], counts: Counter[str]) -> None:
    """The agent works until a limit ends it; without limits the store holds what it acknowledged, or one more."""
    outcome = agent.run("limited", arguments | {"limits": limits, "operations": 400})
    assert outcome.failure is None, f"{limits}: {outcome.failure}"
    assert not outcome.hung, limits
    for letter in ("e", "l"):
        if outcome.has(letter):
            counts[outcome.text(letter)] += 1
    counts["died"] += bool(outcome.signal)
    counts["lives"] += 1
    acked = max([int(str(arguments["acked"])), *outcome.values("a")])
    found = agent.must("check", arguments | {"acked": acked, "second": 0, "late": False})
    arguments["acked"] = max(found.values("f"))


@pytest.mark.crash
@pytest.mark.parametrize("engine", ENGINES)
def test_files_may_not_grow(agent: Agent, engine: str, tmp_path: Path, crash_rounds: int) -> None:
    """``ulimit -f``: EFBIG. Of their own files SQLite and LMDB may know only that the device failed."""
    counts: Counter[str] = Counter()
    arguments = stored(agent, engine, tmp_path / "store")
    for kilobytes in (0, 4, 40, 200, 900) if crash_rounds < ALL_FROM else range(0, 2000, 40):
        work_under(agent, arguments, {"fsize": kilobytes * 1024}, counts)
    assert {*counts} <= {"lives", "died", "out_of_space", "poisoned"} | OF_ENGINES.get(engine, set()), counts
    report(f"EFBIG, {engine}", counts, at_least={"out_of_space": 1}, rows={11: "lives"})
    assert not counts["died"]


@pytest.mark.crash
@pytest.mark.parametrize("engine", ENGINES)
def test_descriptors_and_memory_run_out(agent: Agent, engine: str, tmp_path: Path, crash_rounds: int) -> None:
    """``ulimit -n`` and ``ulimit -v``, in steps. A library may abort without memory: that is a kill."""
    counts: Counter[str] = Counter()
    arguments = stored(agent, engine, tmp_path / "store")
    for count in range(0, 24, 3 if crash_rounds < ALL_FROM else 1):
        work_under(agent, arguments, {"nofile": count}, counts)
    descriptors = counts["lives"]
    assert not counts["died"]
    for megabytes in (0, 8, 64, 200) if crash_rounds < ALL_FROM else range(0, 400, 8):
        work_under(agent, arguments, {"as": megabytes << 20}, counts)
    counts["memory"] = counts["lives"] - descriptors
    report(f"exhausted, {engine}", counts, at_least={"resources": 3}, rows={17: "lives"})


# -- the right to write ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def read_only_mount(place: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)


@contextlib.contextmanager
def immutable(store: Path) -> Iterator[None]:
    subprocess.run(["chattr", "-R", "+i", str(store)], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-R", "-i", str(store)], check=True)


@contextlib.contextmanager
def readable(store: Path) -> Iterator[None]:
    """Everybody may read it; so that another user may come to it, so are the directories above."""
    paths = [path for path in (store, *store.parents) if path.stat().st_uid == os.getuid()]
    paths += list(store.rglob("*"))
    modes = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(modes[path] | (0o555 if path.is_dir() else 0o444))
    try:
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


Forbid = Callable[[Path], contextlib.AbstractContextManager[None]]


@pytest.mark.crash
@pytest.mark.parametrize("engine", ENGINES)
def test_what_may_not_be_written_is_not(agent: Agent, engine: str, tmp_path: Path) -> None:
    """A file system that is read-only, files that are immutable, files of another user."""
    if os.getuid() != 0:
        pytest.skip("only root may mount, set attributes and change users")
    place = tmp_path / "mounted"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], capture_output=True)
    if done.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")
    counts: Counter[str] = Counter()
    ways: list[tuple[Path, Forbid, int]] = [
        (place / "store", lambda _store: read_only_mount(place), 0),
        (tmp_path / "fixed", immutable, 0),
        (tmp_path / "foreign", readable, NOBODY),
    ]
    try:
        for root, forbid, user in ways:
            arguments = stored(agent, engine, root)
            before = contents(root)
            with forbid(root):
                for read_only in (False, True):
                    outcome = agent.run("denied", arguments | {"user": user, "read_only": read_only})
                    assert outcome.failure is None, f"{root.name}: {outcome.failure}"
                    assert read_only or outcome.text("e") == "read_only", f"{root.name}: {outcome.lines}"
                    counts[outcome.text("e") or "read"] += 1
                    counts["lives"] += 1
                assert contents(root) == before, f"{root.name}: something was changed"
            agent.must("check", arguments | {"second": 0, "late": False})
    finally:
        subprocess.run(["umount", str(place)], check=True)
    report(f"read-only, {engine}", counts, at_least={"read_only": 3}, rows={14: "lives"})


# -- a full disk -----------------------------------------------------------------------------------------------------

_LOOK = """
import sys
import holdfast
from holdfast.recovery import verify_store
with holdfast.open(sys.argv[1], create=False, read_only=True) as store:
    print(store.tip.height)
print(verify_store(sys.argv[1]).ok)
"""


def fill(place: Path) -> None:
    """Not one block of the file system at ``place`` is free."""
    with contextlib.suppress(OSError), (place / "filler").open("ab", buffering=0) as filler:
        while True:
            filler.write(bytes(1024))


@pytest.mark.crash
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("clean", [False, True])
def test_a_full_disk_can_be_read(agent: Agent, engine: str, clean: bool, tmp_path: Path, crash_rounds: int) -> None:
    """Blocks of 1 KiB: a file that a library maps may end behind the last block that there was room for."""
    if os.getuid() != 0:
        pytest.skip("only root may mount a loop device")
    image, place = tmp_path / "image", tmp_path / "mounted"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    for words in (["mkfs.ext4", "-q", "-F", "-b", "1024", "-m", "0", str(image)], ["mount", str(image), str(place)]):
        done = subprocess.run(words, capture_output=True)
        if done.returncode != 0:
            pytest.skip(f"no ext4 can be mounted here: {done.stderr.decode().strip()}")
    counts: Counter[str] = Counter()
    try:
        url = f"{engine}:{place / 'store'}"
        arguments: dict[str, object] = {"url": url, "seed": SEED, "acked": 0, "flush_at": 20}
        agent.must("template", arguments | {"operations": OPERATIONS, "clean": clean})
        for left in (0, 1, 8, 20) if crash_rounds < ALL_FROM else range(40):
            fill(place)
            os.truncate(place / "filler", (place / "filler").stat().st_size - left * 1024)
            os.sync()
            looked = subprocess.run([sys.executable, "-c", _LOOK, url], capture_output=True, text=True)
            assert (looked.returncode, looked.stdout.split()[1:]) == (0, ["True"]), f"{left} blocks are free: {looked}"
            counts["lives"] += 1
        (place / "filler").unlink()
        agent.must("check", arguments | {"acked": OPERATIONS, "second": 0, "late": False})
    finally:
        subprocess.run(["umount", str(place)], check=True)
    report(f"full disk, {engine}", counts, at_least={"lives": 4}, rows={11: "lives"})


# -- time ------------------------------------------------------------------------------------------------------------


class _HangingFile:
    """A file whose sync hangs while it may not go on."""

    def __init__(self, file: File, disk: HangingDisk) -> None:
        self._file = file
        self._disk = disk

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    @property
    def path(self) -> Path:
        return self._file.path

    @path.setter
    def path(self, path: Path) -> None:
        self._file.path = path

    def pwrite(self, data: Buffer, offset: int) -> None:
        self._file.pwrite(data, offset)

    def sync(self) -> None:
        if not self._disk.goes_on.is_set():
            self._disk.hangs.set()
            assert self._disk.goes_on.wait(60), "nobody let the disk go on"
        self._file.sync()


class HangingDisk(RealFileSystem):
    """The real file system; syncs of files hang while ``goes_on`` is not set."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.hangs = threading.Event()

    def open(self, path: Path, *, create: bool = False, read_only: bool = False) -> File:
        return _HangingFile(super().open(path, create=create, read_only=read_only), self)  # type: ignore[return-value]


def loaded(store: Store, promises: list[object]) -> None:
    """``promises`` gets what the store says the validator has promised."""
    try:
        record = store.safety.load(VALIDATOR)
    except SafetyStateMissing:
        promises.append(None)
    else:
        promises.append((record.position, record.payload))


@pytest.mark.crash
@pytest.mark.parametrize("engine", ENGINES)
def test_a_disk_that_hangs_holds_up_what_must_be_durable_and_nothing_else(engine: str, tmp_path: Path) -> None:
    """While a commit waits, reads show what is durable and others are refused at once; then it is acknowledged."""
    disk = HangingDisk()
    url = f"{engine}:{tmp_path / 'store'}"
    model = Model(SEED, body_max=600)
    counts: Counter[str] = Counter()
    promises: list[object] = []
    store = open_store(url, fs=disk, flush_interval_seconds=3600.0)
    for _ in range(12):
        before = model.copy()
        op = model.next_op()
        model.apply(op)
        if op.kind == "flush":
            perform(store, op)
            continue
        disk.hangs.clear()
        disk.goes_on.clear()
        worker = threading.Thread(target=perform, args=(store, op))
        worker.start()
        assert disk.hangs.wait(60), f"{op.kind} did not sync"
        tip = store.tip
        shown = tip.hash if tip is not None else None
        assert shown == (before.canonical[-1] if before.canonical else None), f"{op.kind} is seen before it is durable"
        assert store.state.root == root_of(before.state), f"{op.kind} is seen before it is durable"
        promise = threading.Thread(target=loaded, args=(store, promises))
        promise.start()
        promise.join(0.2)  # a wrong answer comes at once
        assert promise.is_alive() == (op.kind in ("safety", "commit")), f"{op.kind}: {promises} before it is durable"
        with pytest.raises(StoreLocked):
            open_store(url)
        assert worker.is_alive(), f"{op.kind} was acknowledged before it was durable"
        disk.goes_on.set()
        worker.join()
        promise.join()
        assert promises.pop() == model.safety
        assert picture_of(store) == model.picture()
        counts["hangs"] += 1
    store.close()
    with open_store(url) as store:
        check_frontier(store, model, ahead=0)
    report(f"hanging disk, {engine}", counts, at_least={"hangs": 6}, rows={18: "hangs"})


@pytest.mark.crash
@pytest.mark.parametrize("engine", ENGINES)
def test_a_frozen_holder_holds_up_nobody(engine: str, tmp_path: Path) -> None:
    """SIGSTOP in the middle of its work: others are refused at once; it goes on afterwards, or is killed."""
    url = f"{engine}:{tmp_path / 'store'}"
    counts: Counter[str] = Counter()
    for number in range(4):
        marks = tmp_path / f"marks {number}"
        marks.mkdir()
        with Agent() as holder, Agent() as other:
            arguments: dict[str, object] = {"url": url, "start": 0.0, "marks": str(marks), "slow": 0.0}
            thread = threading.Thread(target=holder.run, args=("race", arguments))
            thread.start()
            while not (names := list(marks.iterdir())):
                time.sleep(0.005)  # until it has the store
            pid = int(names[0].name)
            os.kill(pid, signal.SIGSTOP)
            refused = other.run("race", arguments, deadline=30)
            assert refused.failure is None
            assert not refused.hung
            assert refused.text("l").split()[0] == str(pid)
            counts["frozen"] += 1
            (marks / "stop").touch()
            os.kill(pid, signal.SIGKILL if number % 2 else signal.SIGCONT)
            thread.join()
        open_store(url).close()
    report(f"frozen holder, {engine}", counts, at_least={"frozen": 4}, rows={18: "frozen"})


@pytest.mark.crash
@pytest.mark.parametrize("engine", ["rocksdb", "lmdb"])
def test_an_engine_that_hangs_at_open_is_set_aside(
    agent: Agent, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its probe has a deadline; the views are made anew, and the engine is kept as evidence."""
    monkeypatch.setattr({"rocksdb": rocksdb, "lmdb": lmdb}[engine], "_PROBE", "import time; time.sleep(600)")
    monkeypatch.setattr(opening, "_PROBE_SECONDS", 0.2)
    root = tmp_path / "store"
    arguments: dict[str, object] = {"url": f"{engine}:{root}", "seed": SEED, "acked": 0}
    agent.must("template", arguments | {"operations": OPERATIONS, "clean": False, "flush_at": 20})
    counts: Counter[str] = Counter()
    with open_store(f"{engine}:{root}") as store:
        assert store.recovery.views_rebuilt
        check_frontier(store, Model(SEED).advance(OPERATIONS), ahead=0)
        check_deep(store, Model(SEED).advance(OPERATIONS))
    assert list((root / "quarantine").iterdir())
    counts["set aside"] += 1
    report(f"hanging engine, {engine}", counts, at_least={"set aside": 1}, rows={18: "set aside"})
