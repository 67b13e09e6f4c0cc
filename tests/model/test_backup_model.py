"""A repository of backups against its definition, while its objects are damaged and lost at random.

The model knows the chain that each backup was made of and the bytes that its manifest had; whether a chunk is good it
finds by decoding the object itself. So nothing that is wrong may be accepted, nothing that is right be refused, and
pruning may remove exactly what no rule keeps.
"""

from __future__ import annotations

import dataclasses
import shutil
import struct
import tempfile
import types
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from pathlib import Path
from unittest import mock

import pytest
import zstandard
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from holdfast._fs import MemoryFileSystem
from holdfast.backup import (
    BackupKey,
    BackupSource,
    DirectoryTarget,
    KeepRules,
    SegmentSource,
    copy_backup,
    create_backup,
    open_repository,
    prune_backups,
    restore_backup,
    verify_backup,
)
from holdfast.backup import create as creating
from holdfast.backup.envelope import CHUNK, MANIFEST, MARK
from holdfast.errors import BackupDamaged, BackupNotFound, CorruptionError
from holdfast.store import opening
from tests.model.test_state_model import examples
from tests.unit.store_support import chain_of, open_quick

PLACE = Path("/repository")
SEGMENT_BYTES = 2048
START = 1_790_000_000
HOUR = 3600
PERIODS = {"hourly": "%Y%m%d%H", "daily": "%Y%m%d", "weekly": "%G%V", "monthly": "%Y%m"}
DAMAGE = (BackupDamaged, BackupNotFound, CorruptionError)


@dataclasses.dataclass(frozen=True)
class Version:
    """A store as it was once: its files, and the hashes of its canonical blocks."""

    files: dict[Path, bytes]
    directories: set[Path]
    chain: list[bytes]


@cache
def histories() -> list[list[Version]]:
    """Two stores, each a few times while it grew; the first one was reorganised in between."""
    options = opening.journal_options

    def small(plan: opening.OpenPlan) -> object:
        sizes = {"segment_bytes_first": SEGMENT_BYTES, "segment_bytes_max": SEGMENT_BYTES, "background": False}
        return dataclasses.replace(options(plan), **sizes)  # type: ignore[arg-type]

    with mock.patch.object(opening, "journal_options", small):
        return [list(_versions(name, steps)) for name, steps in (("a", 5), ("b", 3))]


def _versions(name: str, steps: int) -> Iterator[Version]:
    directory = Path(tempfile.mkdtemp(prefix="holdfast-backup-model-"))
    try:
        for step in range(steps):
            with open_quick(f"sqlite:{directory}") as store:
                base = store.tip if step % 2 == 0 or store.tip is None else store.blocks.at(store.tip.height - 2)
                for block in chain_of(base, 5, (name, step)):
                    store.add(block)
                chain = [info.hash for info in store.blocks.canonical()]
            root = Path("/stores", name)
            paths = [directory / "holdfast.toml", directory / "watermark", *(directory / "journal").glob("*.seg")]
            files = {root / path.relative_to(directory): path.read_bytes() for path in paths}
            yield Version(files, {root, root / "journal"}, chain)
    finally:
        shutil.rmtree(directory)


def content_of(data: bytes | None, expected: int) -> bytes | None:
    """What an object of this kind holds in a repository without encryption, by docs/FORMAT.md, section 10.2."""
    if data is None or len(data) < 56:
        return None
    magic, kind, codec, encryption, zero, raw, stored, name = struct.unpack(">8sBBBBIQ32s", data[:56])
    if (magic, kind, encryption, zero) != (b"HFBACK_1", expected, 0, 0) or stored != len(data) - 56 or codec > 1:
        return None
    content: bytes = data[56:]
    if codec:
        try:
            content = zstandard.ZstdDecompressor().decompressobj().decompress(content)
        except zstandard.ZstdError:
            return None
    return content if len(content) == raw and sha256(content).digest() == name else None


@dataclasses.dataclass
class Made:
    """A backup as it was made."""

    store: int
    chain: list[bytes]
    time: int
    manifest: bytes
    chunks: set[str]
    mark: bytes | None = None


class BackupMachine(RuleBasedStateMachine):
    """One repository in memory, a second one that copies go to."""

    def __init__(self) -> None:
        super().__init__()
        self.fs = MemoryFileSystem()
        self.seconds = START
        self.at = [0, 0]
        self.made: dict[str, Made] = {}
        self.scratch = Path(tempfile.mkdtemp(prefix="holdfast-backup-model-"))
        self.number = 0
        self.clock = mock.patch.object(
            creating,
            "time",
            types.SimpleNamespace(time_ns=lambda: self.seconds * 10**9, monotonic=lambda: float(self.seconds)),
        )
        self.clock.start()

    @initialize()
    def begin(self) -> None:
        self.repository = open_repository(DirectoryTarget(PLACE, fs=self.fs), create=True)
        key = BackupKey("key-file", bytes(32))
        self.other = open_repository(DirectoryTarget("/other", fs=MemoryFileSystem()), create=True, key=key)
        self._take()
        self._create(0, check=False)

    def teardown(self) -> None:
        self.clock.stop()
        shutil.rmtree(self.scratch)

    # -- what lies there ----------------------------------------------------------------------------------------

    def _take(self) -> None:
        """The stores are as they were at their step."""
        for path in [path for path in self.fs._files if path.parts[1] == "stores"]:
            del self.fs._files[path]
        for history, step in zip(histories(), self.at, strict=True):
            self.fs._files.update({path: bytearray(data) for path, data in history[step].files.items()})
            self.fs._directories |= history[step].directories

    def _object(self, name: str) -> bytes | None:
        found = self.fs._files.get(PLACE / name)
        return None if found is None else bytes(found)

    def _manifest(self, name: str) -> bytes | None:
        return content_of(self._object(f"backups/{name}.manifest"), MANIFEST)

    def _mark(self, name: str) -> bytes | None:
        return content_of(self._object(f"backups/{name}.verified"), MARK)

    def _chunks(self) -> set[str]:
        return {path.name for path in self.fs._files if path.parent.parent == PLACE / "chunks"}

    def _good_chunk(self, name: str) -> bool:
        content = content_of(self._object(f"chunks/{name[:2]}/{name}"), CHUNK)
        return content is not None and sha256(content).hexdigest() == name

    def _readable(self, name: str) -> bool:
        return self._manifest(name) == self.made[name].manifest

    def _good(self, name: str) -> bool:
        return self._readable(name) and all(self._good_chunk(chunk) for chunk in self.made[name].chunks)

    def _verified(self, name: str) -> bool:
        mark = self.made[name].mark
        return mark is not None and self._mark(name) == mark

    def _there(self) -> list[str]:
        return [name for name in self.made if self._object(f"backups/{name}.manifest") is not None]

    def _pick(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.made)), label="backup")

    # -- work ---------------------------------------------------------------------------------------------------

    @rule(store=st.integers(0, 1), steps=st.integers(1, 2))
    def grow(self, store: int, steps: int) -> None:
        self.at[store] = min(self.at[store] + steps, len(histories()[store]) - 1)
        self._take()

    @rule(
        store=st.sampled_from([0, 0, 1]),
        check=st.booleans(),
        hours=st.lists(st.sampled_from([0, 0.5, 3, 24, 24 * 8, 24 * 40]), min_size=1, max_size=3),
        verified=st.sampled_from([True, True, False]),
    )
    def create(self, store: int, check: bool, hours: list[float], verified: bool) -> None:
        """One or more, so long after one another."""
        for passed in hours:
            self.seconds += 1 + int(passed * HOUR)
            self._create(store, check=check)
            if verified:
                self._verify(max(self.made))

    def _create(self, store: int, *, check: bool) -> None:
        form = create_backup(
            Path("/stores", "ab"[store]),
            self.repository,
            check=check,
            workers=0,
            fs=self.fs,
            clock=lambda: self.seconds * 1_000_000,
        ).manifest
        version = histories()[store][self.at[store]]
        assert form.tip is not None
        assert form.tip.hash == version.chain[-1].hex()
        manifest = self._manifest(form.name)
        assert manifest is not None
        chunks = {ref.id for file in form.files() for ref in file.chunks}
        self.made[form.name] = Made(store, version.chain, self.seconds, manifest, chunks)
        assert chunks <= self._chunks(), "every chunk is there, whatever was lost before"
        assert verify_backup(self.repository, form.name, level="quick", workers=0).ok
        if check:
            assert self._good(form.name), "what was damaged is stored again"

    @rule(data=st.data())
    def verify(self, data: st.DataObject) -> None:
        self._verify(self._pick(data))

    def _verify(self, name: str) -> None:
        if not self._readable(name):
            with pytest.raises((BackupDamaged, BackupNotFound)):
                verify_backup(self.repository, name, workers=0)
            return
        found = verify_backup(self.repository, name, workers=0)
        assert found.ok == self._good(name)
        self.made[name].mark = self._mark(name) if found.ok else None

    @rule(
        rules=st.builds(
            KeepRules,
            last=st.sampled_from([0, 0, 1, 3]),
            within_seconds=st.sampled_from([0, 0, 0, HOUR, 48 * HOUR]),
            **{word: st.sampled_from([0, 0, 0, 1, 2]) for word in PERIODS},
        ),
        dry_run=st.booleans(),
    )
    def prune(self, rules: KeepRules, dry_run: bool) -> None:
        there, before = self._there(), self._chunks()
        readable = [name for name in there if self._readable(name)]
        kept = {name for name in readable if self._kept(name, readable, rules)}
        report = prune_backups(self.repository, rules, dry_run=dry_run, now_us=lambda: self.seconds * 1_000_000)
        assert set(report.kept) == kept
        assert set(report.removed) == set(readable) - kept
        assert set(report.unreadable) == set(there) - set(readable)
        if dry_run:
            assert (self._there(), self._chunks()) == (there, before)
            return
        assert set(self._there()) == set(there) - set(report.removed)
        used = {chunk for name in kept for chunk in self.made[name].chunks}
        assert self._chunks() == (before if report.unreadable else before & used)

    def _kept(self, name: str, readable: list[str], rules: KeepRules) -> bool:
        own = self.made[name]
        rivals = [each for each in readable if self.made[each].store == own.store]
        good = [each for each in rivals if self._verified(each)]
        if not good or name >= max(good):
            return True
        if name not in good:
            return False
        if sum(each > name for each in good) < rules.last:
            return True
        if rules.within_seconds and own.time >= self.seconds - rules.within_seconds:
            return True
        for word, pattern in PERIODS.items():
            period = {each: datetime.fromtimestamp(self.made[each].time, UTC).strftime(pattern) for each in good}
            newest = max(each for each in good if period[each] == period[name]) == name
            later = {period[each] for each in good if each > name and period[each] != period[name]}
            if newest and len(later) < getattr(rules, word):
                return True
        return False

    @rule(data=st.data())
    def copy(self, data: st.DataObject) -> None:
        name = self._pick(data)
        before = self.other.names()
        if not self._good(name):
            with pytest.raises(DAMAGE):
                copy_backup(self.repository, name, self.other, workers=0)
            assert self.other.names() == before
            return
        copy_backup(self.repository, name, self.other, workers=0)
        assert verify_backup(self.other, name, workers=0, mark=False).ok

    # -- what comes out -----------------------------------------------------------------------------------------

    @rule(data=st.data(), whole=st.booleans())
    def restore(self, data: st.DataObject, whole: bool) -> None:
        name = self._pick(data)
        chain = self.made[name].chain
        height = None if whole else data.draw(st.integers(0, len(chain) - 1), label="height")
        self.number += 1
        target = self.scratch / str(self.number)
        if not self._good(name):
            with pytest.raises(DAMAGE):
                restore_backup(self.repository, name, f"sqlite:{target}", to_height=height, workers=0)
            assert not target.exists()
            return
        restore_backup(self.repository, name, f"sqlite:{target}", to_height=height, workers=0)
        with open_quick(target) as store:
            assert [info.hash for info in store.blocks.canonical()] == chain[: None if whole else height + 1]  # type: ignore[operator]
            assert store.safety.fenced

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        """Read without restoring: what is accepted is the chain that was backed up."""
        name = self._pick(data)
        try:
            with BackupSource(self.repository, name, workers=0).moment() as now:
                found = [now.info_at(height) for height in range(len(self.made[name].chain))]
        except DAMAGE:
            assert not self._good(name)
            return
        assert [info.hash for info in found if info is not None] == self.made[name].chain

    @rule(data=st.data())
    def fetch(self, data: st.DataObject) -> None:
        """A segment comes from any backup of its store that has it unharmed."""
        name = self._pick(data)
        if not self._readable(name):
            return
        form = self.repository.manifest(name)
        entry = data.draw(st.sampled_from(form.segments), label="segment")
        source = SegmentSource(self.repository, bytes.fromhex(form.store_id), self.scratch / "segments", workers=0)
        holders = [self.repository.manifest(each) for each in self._there() if self._readable(each)]
        known = [
            segment
            for holder in holders
            for segment in holder.segments
            if holder.store_id == form.store_id and segment.sealed and segment.digest == entry.digest
        ]
        if any(all(self._good_chunk(ref.id) for ref in segment.chunks) for segment in known):
            path = source.fetch(entry.number, bytes.fromhex(entry.digest))
            assert sha256(path.read_bytes()).hexdigest() in {segment.sha256 for segment in known}
        else:
            with pytest.raises((BackupDamaged, BackupNotFound)):
                source.fetch(entry.number, bytes.fromhex(entry.digest))

    # -- harm ---------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.made)
    @rule(data=st.data(), how=st.sampled_from(["lost", "flipped", "cut", "longer", "empty", "another"]))
    def harm(self, data: st.DataObject, how: str) -> None:
        kind = data.draw(st.sampled_from(["", ".manifest", ".verified"]), label="kind")
        below = PLACE / ("backups" if kind else "chunks")
        paths = sorted(path for path in self.fs._files if below in path.parents and path.suffix == kind)
        if not paths:
            return
        path = data.draw(st.sampled_from(paths), label="object")
        place = data.draw(st.integers(0, 1 << 20), label="place")
        held = bytes(self.fs._files[path])
        if how == "lost":
            del self.fs._files[path]
            return
        changed = bytearray(held)
        if how == "flipped" and held:
            changed[place % len(held)] ^= data.draw(st.integers(1, 255), label="bits")
        elif how == "cut":
            del changed[place % max(1, len(held)) :]
        elif how == "longer":
            changed += b"\0"
        elif how == "empty":
            changed.clear()
        elif how == "another":
            changed[:] = self.fs._files[data.draw(st.sampled_from(paths), label="other")]
        self.fs._files[path] = changed

    @invariant()
    def names_are_those_that_are_there(self) -> None:
        if self.made:
            assert self.repository.names() == sorted(self._there())
            assert {form.name for form in self.repository.readable()} == set(filter(self._readable, self._there()))


TestBackup = pytest.mark.slow(BackupMachine.TestCase)
TestBackup.settings = examples(12, 20)


def test_the_model_knows_a_good_chunk_from_a_bad_one() -> None:
    head = struct.pack(">8sBBBBIQ32s", b"HFBACK_1", 1, 0, 0, 0, 3, 3, sha256(b"abc").digest())
    assert content_of(head + b"abc", CHUNK) == b"abc"
    assert content_of(head + b"abd", CHUNK) is None
    assert content_of(head + b"abc", MARK) is None
    assert content_of(head[:-1], CHUNK) is None
    assert content_of(None, CHUNK) is None
