"""What is handed in and does not fit: formats of the future, damaged repositories, sizes beyond the limits."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import holdfast
from holdfast import Store
from holdfast._fs import MemoryFileSystem
from holdfast.backup import BackupRepository, create_backup, open_repository, restore_backup
from holdfast.backup import verify_backup as verify_backup_at
from holdfast.errors import FormatTooNew, HoldfastError
from tests.crash.support import ENGINES, VALIDATOR, contents, flipped, report, typed
from tests.unit.backup_support import grown, small_segments
from tests.unit.state_support import commit
from tests.unit.store_support import hash_of, quick

__all__ = ["small_segments"]

ALL_FROM = 200
Call = Callable[[Store], object]


# -- formats of the future -------------------------------------------------------------------------------------------


@pytest.mark.crash
@pytest.mark.parametrize("engine", ENGINES)
def test_a_newer_format_is_refused_untouched(engine: str, tmp_path: Path) -> None:
    root = tmp_path / "store"
    with holdfast.open(f"{engine}:{root}", settings=quick()) as store:
        commit(store, 0, {b"key": b"value"})
    text = (root / "holdfast.toml").read_text()
    counts: Counter[str] = Counter()
    for number in (2, 3, 255, 2**31):
        (root / "holdfast.toml").write_text(text.replace("format = 1", f"format = {number}"))
        before = contents(root)
        for read_only in (False, True):
            with pytest.raises(FormatTooNew):
                holdfast.open(f"{engine}:{root}", read_only=read_only)
            counts["refused"] += 1
        assert contents(root) == before
    report(f"newer formats, {engine}", counts, at_least={"refused": 8}, rows={19: "refused"})


# -- a repository that was damaged -----------------------------------------------------------------------------------


class Damaged:
    """A repository in memory of two backups, whose files are damaged one at a time."""

    def __init__(self, root: Path) -> None:
        blocks = grown(root / "s", 24)
        self.fs = MemoryFileSystem()
        create_backup(root / "s", self.place, workers=0)
        grown(root / "s", 6, after=blocks[-1])
        self.name = create_backup(root / "s", self.place, workers=0).manifest.name
        verify_backup_at(self.place, self.name, workers=0)
        with holdfast.open(root / "s", settings=quick()) as store:
            self.hashes = [info.hash for info in store.blocks.canonical()]
        self.good = {path: bytes(data) for path, data in self.fs._files.items()}
        self.root = root

    @property
    def place(self) -> BackupRepository:
        return open_repository(Path("/repository"), create=True, fs=self.fs)

    def judge(self, target: Path) -> str:
        """The same content as ever, or a typed error and nothing at the target."""
        found = "refused"
        with contextlib.suppress(HoldfastError):
            whole = verify_backup_at(self.place, self.name, workers=0, mark=False).ok
            found = "fine" if whole else "found"
        error = typed(lambda: restore_backup(self.place, self.name, f"sqlite:{target}", workers=0))
        if error is not None:
            assert not target.exists(), f"{error} left a store"
            assert found != "fine", f"it verifies, and is not restored: {error}"
            return found
        with holdfast.open(f"sqlite:{target}", create=False, settings=quick()) as store:
            assert [info.hash for info in store.blocks.canonical()] == self.hashes, "another store was restored"
        assert found != "found", "what does not verify was restored"
        return found


@pytest.mark.crash
def test_damage_in_a_repository_is_found(tmp_path: Path, crash_rounds: int, small_segments: None) -> None:
    """Every kind of file: flipped, cut, gone; each verification agrees with each restore."""
    damaged = Damaged(tmp_path)
    rng = random.Random(7)
    counts: Counter[str] = Counter()
    for path, good in sorted(damaged.good.items()):
        if path.name == "lock":
            continue
        kind = path.suffix or path.parent.parent.name
        bad: list[bytes | None] = [None, b"", *flipped(good, rng, 1 if crash_rounds < ALL_FROM else 12)]
        for data in bad:
            damaged.fs._files = {each: bytearray(kept) for each, kept in damaged.good.items()}
            if data is None:
                del damaged.fs._files[path]
            else:
                damaged.fs._files[path] = bytearray(data)
            counts["damages"] += 1
            counts[f"{kind} {damaged.judge(tmp_path / f'target {counts.total()}')}"] += 1
    damaged.fs._files = {each: bytearray(kept) for each, kept in damaged.good.items()}
    for taken in ("s", "s/journal", "s/holdfast.toml"):
        before = contents(tmp_path / "s")
        with pytest.raises(HoldfastError):
            restore_backup(damaged.place, damaged.name, f"sqlite:{tmp_path / taken}", workers=0)
        assert contents(tmp_path / "s") == before
        counts["damages"] += 1
    report("repository", counts, at_least={"damages": 40, "chunks found": 5}, rows={22: "damages"})


# -- limits ----------------------------------------------------------------------------------------------------------


def put(key: bytes, value: bytes) -> Call:
    return lambda store: commit(store, (key[:3], len(key), len(value)), {key: value})


def document(key: bytes, value: bytes, space: str = "s") -> Call:
    return lambda store: store.documents(space).put(key, value)


def vote(identity: bytes, position: tuple[int, ...], payload: bytes) -> Call:
    return lambda store: store.safety.save(identity, position, payload)


def block(block_hash: bytes, header: bytes) -> Call:
    return lambda store: store.commit(store.draft(), hash=block_hash, header=header)


def borders() -> Iterator[tuple[str, Call, bool]]:
    """(what, the call, whether it is allowed): sizes at, below and above each limit."""
    for length in (0, 1, 2, 399, 400, 401, 511, 512, 65_536):
        yield f"state key of {length}", put(b"k" * length, b"value"), 1 <= length <= 400
        yield f"document key of {length}", document(b"k" * length, b"v"), 1 <= length <= 400
    for length in (0, 1, 65_535, 65_536, 65_537, 300_000):
        yield f"state value of {length}", put(b"key", b"v" * length), length > 0
        yield f"document of {length}", document(b"d", b"v" * length), True
        yield f"payload of {length}", vote(VALIDATOR, (length + 1,), b"v" * length), length <= 65_536
    for length in (0, 1, 31, 32, 33, 64):
        yield f"hash of {length}", block(b"\x07" * length, b"header"), length == 32
    for name in ("", "s", "s" * 64, "s" * 65, "\u00e9" * 32, "\u00e9" * 33):
        size = len(name.encode())
        yield f"space of {size}: {name[:1]}", document(b"k", b"v", name), 1 <= size <= 64
    for position in ((), (0,), (1,) * 8, (1,) * 9, (-1,), (2**64 - 1,), (2**64,)):
        allowed = 1 <= len(position) <= 8 and all(0 <= each < 2**64 for each in position)
        yield f"position {position}", vote(b"of %d" % len(position), position, b"v"), allowed
    yield "a document beyond the limit", document(b"k" * 200, bytes(16 * 1024 * 1024 + 1)), False
    yield "a header beyond the limit", block(hash_of(1), bytes(2**20 + 1)), False


@pytest.mark.crash
def test_limits_are_the_same_everywhere_and_refuse_before_anything_is_written(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    seen: dict[str, str] = {}
    for engine in ("memory", *ENGINES):
        url = "memory:" if engine == "memory" else f"{engine}:{tmp_path / engine}"
        with holdfast.open(url, settings=quick(segment_bytes_max=64 * 1024 * 1024)) as store:
            commit(store, "first", {b"a": b"1"})
            for what, call, allowed in borders():
                before = store.statistics()["journal"]["appended_seq"]  # type: ignore[index]
                error = typed(lambda call=call, store=store: call(store))  # type: ignore[misc]
                code = error.code if error is not None else "taken"
                assert (error is None) == allowed, f"{engine}, {what}: {code}"
                assert seen.setdefault(what, code) == code, f"{engine}, {what}: {code}, elsewhere {seen[what]}"
                after = store.statistics()["journal"]["appended_seq"]  # type: ignore[index]
                assert error is None or after == before, f"{engine}, {what}: refused, and something was written"
                counts["tried"] += 1
                counts[code] += 1
    report("limits", counts, at_least={"limit_exceeded": 20, "invalid_input": 8}, rows={23: "tried"})
