"""``holdfast selftest``: what the machine at hand keeps of its promises.

Invariants:
    * Everything happens in a fresh subdirectory, which is removed at the end, also after an interrupt; that of a run
      that was killed goes with the next run. Only where something was lost is it kept, as evidence.
    * Only what the child told through the pipe counts as acknowledged.

Run as a module it is that child: it commits until it is killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import CommitLoss, CorruptionError, HoldfastError, InternalError, InvalidInputError, all_errors
from .options import Engine, Json, Seconds
from .output import Output, count_text
from .progress import INTERRUPTED, Progress, StopSignals

if TYPE_CHECKING:
    from .._fs import RealFileSystem
    from ..store.store import Store

__all__ = ["register"]

_PREFIX = "holdfast-selftest-"
_RUNNING = "running"
_SYNCS = 200
_SYNC_BYTES = 4096
_IMPLAUSIBLE_US = 20.0
"""No device that writes to something durable answers a sync in less, but for a few with a battery."""
_CHILD_SECONDS = 60.0
_KILL_SECONDS_MAX = 0.4
_OLD_BLOCKS = 20
_NOT_TESTED = (
    "whether the disk keeps what it said was durable when the power is cut: SIGKILL leaves the caches of kernel and "
    "disk alone. Only cutting the power while this runs tells"
)


def register(app: typer.Typer) -> None:
    """The commands are part of ``app``."""
    group = typer.Typer(no_args_is_help=True, help="Test what this machine keeps of its promises.")
    group.command("durability")(durability)
    app.add_typer(group, name="selftest")


def durability(
    directory: Annotated[Path, typer.Option("--dir", metavar="DIR", help="A directory on the disk to test.")],
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, max=86_400.0, help="How long to kill children.")] = 10,
    engine: Engine = None,
    progress_seconds: Seconds = 2.0,
    as_json: Json = False,
) -> None:
    """Measure syncs on a disk, and kill a process that commits there, again and again: nothing may be lost.

    What it writes is removed. It cannot tell whether a disk lies about syncs; an implausibly quick sync is named.
    """
    from .._keys import without_key

    if not directory.is_dir():
        raise InvalidInputError("there is no such directory", found=directory)
    out = Output(as_json=as_json)
    with (
        _fresh(directory) as place,
        without_key(),
        StopSignals() as stop,
        Progress("killing", None, unit="rounds", quiet=as_json, seconds=progress_seconds) as p,
    ):
        syncs = _syncs(place / "syncs")
        kills = _Kills(f"{engine or 'rocksdb'}:{place / 'store'}", place / "store")
        until = time.monotonic() + seconds
        while not stop() and (not kills.rounds or time.monotonic() < until):
            kills.round()
            p.update(kills.rounds, f"{kills.acknowledged} acknowledged")
        found = kills.finish()
    values = {"directory": str(directory), "file_system": _file_system(directory), "sync": syncs} | found
    if as_json:
        out.record({"ok": True, **values, "not_tested": [_NOT_TESTED]})
    else:
        _tell(values, out)
    if stop.asked:
        out.note("stopped early; nothing was lost up to then")
        raise typer.Exit(INTERRUPTED)


@contextlib.contextmanager
def _fresh(directory: Path) -> Iterator[Path]:
    """A new directory there, which goes at the end unless something was lost; those of killed runs are gone."""
    from .._fs import RealFileSystem, translate_os_error

    fs = RealFileSystem()
    for name in fs.names(directory):
        if name.startswith(_PREFIX):
            _clear_killed(fs, directory / name)
    try:
        place = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=directory)).absolute()
    except OSError as error:
        raise translate_os_error(error, directory) from error
    keep = False
    running = fs.lock(place / _RUNNING, "selftest")
    try:
        yield place
    except CorruptionError as error:
        fs.remove(place / _RUNNING)
        keep = True
        error.context.setdefault("evidence", place)
        raise
    finally:
        if not keep:
            fs.remove_tree(place)
        running.release()


def _clear_killed(fs: RealFileSystem, place: Path) -> None:
    """The directory is gone if its run was killed; that of one that goes on, and what is kept as evidence, stay."""
    if place.is_symlink() or not fs.exists(place / _RUNNING):
        return
    with contextlib.suppress(HoldfastError):  # somebody else's, or another run's: this one does not need it gone
        lock = fs.lock(place / _RUNNING, "selftest")
        try:
            fs.remove_tree(place)
        finally:
            lock.release()


def _tell(values: dict[str, object], out: Output) -> None:
    out.record(values)
    sync = values["sync"]
    assert isinstance(sync, dict)
    if not sync["plausible"]:
        out.text(
            f"warning: a sync took {sync['p50_us']} microseconds. No disk is that quick: this is a file system in "
            "memory, or something on the way says 'durable' before it is\n"
        )
    out.text(f"not tested: {_NOT_TESTED}\n")


def _syncs(path: Path) -> dict[str, object]:
    """How long a sync of one block of 4 KiB takes, in microseconds."""
    from .._fs import RealFileSystem

    file = RealFileSystem().open(path, create=True)
    took = []
    try:
        for number in range(_SYNCS):
            file.pwrite(random.randbytes(_SYNC_BYTES), number * _SYNC_BYTES)
            started = time.perf_counter()
            file.sync()
            took.append((time.perf_counter() - started) * 1e6)
    finally:
        file.close()
    took.sort()
    return {
        "count": len(took),
        "p50_us": round(took[len(took) // 2], 1),
        "p99_us": round(took[len(took) * 99 // 100], 1),
        "max_us": round(took[-1], 1),
        "plausible": took[len(took) // 2] >= _IMPLAUSIBLE_US,
    }


def _file_system(directory: Path) -> str | None:
    """What is mounted where ``directory`` is."""
    import psutil

    place = directory.resolve()
    mounts = [part for part in psutil.disk_partitions(all=True) if place.is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else None


# -- killing ---------------------------------------------------------------------------------------------------------


@dataclass
class _Kills:
    """A store that is written by children, each of which is killed."""

    url: str
    path: Path
    rounds: int = 0
    acknowledged: int = 0
    held: int = 0
    in_flight: int = 0
    replayed: int = 0
    rng: random.Random = field(default_factory=random.Random)

    def round(self) -> None:
        """One more child has committed and was killed; the store was opened and has everything it acknowledged."""
        first = self.held
        acknowledged = max(first, self._child())
        with _opened(self.url) as store:
            found = _check(store, first, acknowledged, self.rounds + 1)
            self.replayed += store.recovery.frames_replayed
        self.rounds += 1
        self.acknowledged += acknowledged - first
        self.in_flight += found - acknowledged
        self.held = found

    def _child(self) -> int:
        command = [sys.executable, "-m", "holdfast.cli.selftest", self.url]
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        assert child.stdout is not None
        assert child.stderr is not None
        late = threading.Timer(_CHILD_SECONDS, child.kill)
        late.start()
        try:
            line = child.stdout.readline()
            if line:
                threading.Timer(self.rng.uniform(0.0, _KILL_SECONDS_MAX), child.kill).start()
            lines = [line, *child.stdout.readlines()]
            errors = child.stderr.read()
            status = child.wait()
        finally:
            late.cancel()
            child.kill()
            child.wait()
            child.stdout.close()
            child.stderr.close()
        if status >= 0:
            raise _error_of(errors)
        whole = [text for text in lines if text.endswith(b"\n")]
        if not whole:
            raise InternalError("the child acknowledged nothing in time", seconds=_CHILD_SECONDS)
        return int(whole[-1])

    def finish(self) -> dict[str, object]:
        """The counts, the settings in force, and that the whole store is good."""
        from ..recovery import verify_store

        with _opened(self.url) as store:
            settings: dict[str, object] = {"engine": store.engine, "durability": "sync"}
        settings |= _read_back(str(settings["engine"]), self.path)
        report = verify_store(self.path, level="state")
        if not report.ok:
            raise CorruptionError(
                "the store is damaged after the kills", path=self.path, found=str(report.as_dict())[:500]
            )
        return {
            "kills": {
                "rounds": self.rounds,
                "acknowledged": self.acknowledged,
                "lost": 0,
                "in_flight_kept": self.in_flight,
                "frames_replayed": self.replayed,
            },
            "settings": settings,
            "verified": f"{count_text(self.held)} blocks",
        }


def _opened(url: str) -> Store:
    from ..config import Settings
    from ..store.factory import open_store

    return open_store(url, settings=Settings(durability="sync", flush_interval_seconds=0.05))


def _hash_of(number: int) -> bytes:
    return hashlib.sha256(b"selftest %d" % number).digest()


def _body_of(number: int) -> bytes:
    return hashlib.shake_128(b"selftest %d" % number).digest(100 + number * 37 % 6000)


def _check(store: Store, first: int, acknowledged: int, number: int) -> int:
    """How many blocks the store holds: all that were acknowledged, at most one more, each with its bytes."""
    tip = store.tip
    found = 0 if tip is None else tip.height + 1
    if found < acknowledged:
        raise CommitLoss(
            "commits that were acknowledged are lost", acknowledged=acknowledged, found=found, round=number
        )
    wrong = found > acknowledged + 1 or (found > 0 and store.state.get(b"number") != b"%d" % (found - 1))
    old = random.sample(range(first), min(first, _OLD_BLOCKS))
    for height in (*old, *range(first, found)):
        block = store.blocks.at(height)
        if block is None or block.hash != _hash_of(height) or store.blocks.block(block).body != _body_of(height):
            wrong = True
    if wrong:
        raise CorruptionError(
            "the store holds what was never committed", acknowledged=acknowledged, found=found, round=number
        )
    return found


def _read_back(engine: str, root: Path) -> dict[str, object]:
    """Settings of the engine as they are in force, read from its files or its library and not from our code."""
    from .._fs import RealFileSystem
    from ..engine.open import open_engine
    from ..store.generations import Generations

    generations = Generations(RealFileSystem(), root)
    current = generations.current()
    if current is None:
        return {}
    place = generations.data_path(current)
    if engine == "rocksdb":
        newest = max(place.glob("OPTIONS-*"), default=None)
        text = newest.read_text() if newest is not None else ""
        wanted = ("paranoid_checks", "use_fsync", "manual_wal_flush", "allow_mmap_writes")
        lines = (line.strip().partition("=") for line in text.splitlines())
        return {name: value for name, _, value in lines if name in wanted}
    if engine == "sqlite":
        headers = [path.read_bytes()[18:20] for path in place.iterdir() if path.read_bytes()[:6] == b"SQLite"]
        return {"write_ahead_log": bool(headers) and all(header == b"\2\2" for header in headers)}
    opened = open_engine(engine, place, create=False)
    try:
        flags = opened._env.flags()  # type: ignore[attr-defined]  # the library's own word
    finally:
        opened.close()
    return {name: flags[name] for name in ("sync", "metasync", "writemap", "map_async") if name in flags}


def _error_of(text: bytes) -> HoldfastError:
    """The error with which a child ended by itself."""
    try:
        told = json.loads(text.splitlines()[-1])
        kind = {error.code: error for error in all_errors()}[told["code"]]
        return kind(str(told["message"]), remedy=str(told["remedy"]), **told["context"])
    except (IndexError, ValueError, KeyError, TypeError):
        return InternalError("the child ended by itself", found=text[-500:].decode("utf-8", "replace"))


def _commit_for_ever(url: str) -> None:
    """The child: one block after the other, its number told once it is durable."""
    with _opened(url) as store:
        number = 0 if store.tip is None else store.tip.height + 1
        while True:
            draft = store.draft()
            draft.state[b"number"] = b"%d" % number
            draft.state[b"key/%d" % (number % 100)] = _hash_of(number)
            store.commit(draft, hash=_hash_of(number), header=b"selftest", body=_body_of(number))
            number += 1
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    try:
        _commit_for_ever(sys.argv[1])
    except HoldfastError as failure:
        print(json.dumps(failure.as_dict(), default=str), file=sys.stderr)
        sys.exit(failure.exit_code)
