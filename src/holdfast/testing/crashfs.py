"""A file system in memory that loses power, fails and dies where a test wants it to.

Invariants:
    * What a crash keeps is legal for a disk: everything that was synced, and any choice of what was not, at a grain of
      512 bytes within one write. A sector is old or new, never a mix.
    * A name in a directory survives for sure only after the directory was synced; a file whose name survived has at
      least its synced bytes.
    * The same seed gives the same crash. Operations are counted from 1 in the order in which they were made.

The model follows the strict reading of POSIX: each rename, creation and removal that was not synced may be lost or
kept, whatever became of the others; a rename is atomic.
"""

from __future__ import annotations

import errno
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from .._fs import Buffer, File, FileLock, FileSystem, Space
from .._fs import translate_os_error as translate
from ..errors import StoreLocked

__all__ = [
    "Change",
    "CrashableFileSystem",
    "DeviceState",
    "Fault",
    "FileState",
    "Keep",
    "PendingNames",
    "SimulatedCrash",
    "Truncate",
    "Write",
    "apply_change",
    "enter",
    "sectors",
]

_SECTOR = 512
_READS = frozenset({"open", "pread", "size", "names", "exists", "read_bytes"})

Keep = Literal["none", "all", "random"]
_T = TypeVar("_T")


class SimulatedCrash(BaseException):
    """The process died here. Not an ``Exception``, so that nothing but a test catches it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong: at operation ``at`` (from 1), once or from then on.

    ``error`` is an errno, or ``None`` for a crash. A failed write leaves a prefix of its sectors if ``torn``. Only
    operations named in ``only`` count if it is not empty.
    """

    at: int
    error: int | None = None
    persistent: bool = False
    torn: bool = False
    only: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Write:
    """``data`` was written at ``offset``."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    """The file was made ``length`` bytes long."""

    length: int


Change = Write | Truncate


@dataclass(slots=True)
class _Node:
    """A file: what the process sees, what is on the device, and what lies between."""

    live: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    pending: list[Change] = field(default_factory=list)


Moved = tuple[Path, Path] | None
"""A directory that was renamed: from where to where. The names below it are entries of the same change."""

_Entries = tuple[tuple[Path, "_Node | None"], ...]
"""Names that change together, all or none: one for a creation or a removal, two for a rename."""


@dataclass(slots=True)
class _NameChange:
    """Entries of a directory that were not synced. ``journalled``: a file system that keeps names in order has them."""

    directory: Path
    entries: _Entries
    journalled: bool = False
    moved: Moved = None


@dataclass(frozen=True, slots=True)
class FileState:
    """A file on the device, and the changes that are not."""

    durable: bytes
    pending: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class PendingNames:
    """As ``_NameChange``; files are named by their place in ``DeviceState.files``, ``None`` is a removal."""

    directory: Path
    entries: tuple[tuple[Path, int | None], ...]
    journalled: bool = False
    moved: Moved = None


@dataclass(frozen=True, slots=True)
class DeviceState:
    """A device at one moment: what is durable, and what was done since, in order."""

    files: tuple[FileState, ...]
    names: dict[Path, int]
    pending: tuple[PendingNames, ...]
    directories: frozenset[Path]


def apply_change(data: bytearray, change: Change) -> None:
    """``data`` is what it becomes by ``change``."""
    length = change.length if isinstance(change, Truncate) else change.offset + len(change.data)
    if len(data) < length:
        data.extend(bytes(length - len(data)))
    if isinstance(change, Truncate):
        del data[change.length :]
    else:
        data[change.offset : length] = change.data


def enter(
    names: dict[Path, _T],
    directories: set[Path],
    changes: Iterable[tuple[tuple[tuple[Path, _T | None], ...], Moved, bool]],
) -> None:
    """``names`` and ``directories`` with those changes, in their order, that are kept.

    A directory is one thing under either name: what a rename of it finds below goes along, also a name whose removal
    was lost; and what was done below the new name of one that was lost is done below the old name.
    """
    lost: list[tuple[Path, Path]] = []

    def now(path: Path) -> Path:
        for there in reversed(lost):
            path = below(path, there)
        return path

    for entries, moved, kept in changes:
        if not kept:
            lost += [] if moved is None else [(moved[1], moved[0])]
            continue
        for path, found in entries:
            if found is None:
                names.pop(now(path), None)
            else:
                names[now(path)] = found
        if moved is not None:
            _move(names, directories, (now(moved[0]), now(moved[1])), {_same(found) for _, found in entries})


def _move(names: dict[Path, _T], directories: set[Path], moved: tuple[Path, Path], came: set[int]) -> None:
    """What is left below the old name goes along; what ``came`` is there, and was only renamed within the directory."""
    for path in [path for path in names if moved[0] in path.parents]:
        found = names.pop(path)
        if _same(found) not in came:
            names[below(path, moved)] = found
    inside = {path for path in directories if moved[0] in (path, *path.parents)}
    directories -= inside
    directories |= {below(path, moved) for path in inside}


def _same(found: object) -> int:
    """Equal for the same file: a node, or its place in a ``DeviceState``."""
    return found if isinstance(found, int) else id(found)


def below(path: Path, moved: tuple[Path, Path]) -> Path:
    """``path`` after the rename of a directory."""
    source, target = moved
    return target / path.relative_to(source) if source in (path, *path.parents) else path


def sectors(change: Write) -> list[Write]:
    """``change`` as writes that a disk makes whole or not at all."""
    pieces: list[Write] = []
    position = change.offset
    end = change.offset + len(change.data)
    while position < end:
        stop = min(end, (position // _SECTOR + 1) * _SECTOR)
        pieces.append(Write(position, change.data[position - change.offset : stop - change.offset]))
        position = stop
    return pieces


class _CrashableFile:
    """An open file of a ``CrashableFileSystem``."""

    __slots__ = ("_fs", "_node", "_read_only", "path")

    def __init__(self, fs: CrashableFileSystem, path: Path, node: _Node, *, read_only: bool) -> None:
        self._fs = fs
        self._node = node
        self._read_only = read_only
        self.path = path

    def pwrite(self, data: Buffer, offset: int) -> None:
        change = Write(offset, bytes(data))
        if self._read_only:
            raise translate(OSError(errno.EACCES, "read-only"), self.path)
        with self._fs.mutex:
            try:
                self._fs.step("pwrite", self.path)
            except BaseException:
                if self._fs.torn_now():
                    pieces = sectors(change)
                    for piece in pieces[: self._fs.rng.randrange(len(pieces) + 1)]:
                        self._change(piece)
                raise
            self._change(change)

    def pread(self, length: int, offset: int) -> bytes:
        with self._fs.mutex:
            self._fs.step("pread", self.path)
            return bytes(self._node.live[offset : offset + length])

    def sync(self) -> None:
        with self._fs.mutex:
            try:
                self._fs.step("sync", self.path)
            except SimulatedCrash:
                raise
            except Exception:
                # As Linux does: the pages are marked clean, so a later sync succeeds although they were never written.
                self._node.pending.clear()
                raise
            if not self._fs.lying_sync:
                self._fs.journal_names(self._node)
                data = bytearray(self._node.durable)
                for change in self._node.pending:
                    apply_change(data, change)
                self._node.durable = bytes(data)
                self._node.pending.clear()

    def truncate(self, length: int) -> None:
        with self._fs.mutex:
            self._fs.step("truncate", self.path)
            self._change(Truncate(length))

    def size(self) -> int:
        with self._fs.mutex:
            self._fs.step("size", self.path)
            return len(self._node.live)

    def close(self) -> None:
        """Nothing happens: nothing was promised."""

    def _change(self, change: Change) -> None:
        apply_change(self._node.live, change)
        self._node.pending.append(change)


class _Lock:
    def __init__(self, held: dict[Path, str], path: Path) -> None:
        self._held = held
        self._path = path

    def release(self) -> None:
        self._held.pop(self._path, None)


class CrashableFileSystem:
    """Files in memory with a device below them. ``persistent`` is true: code takes its careful path.

    Args:
        seed: chooses what a torn write leaves.
        faults: what goes wrong.
        count_reads: whether reads count as operations and may fail.
        lying_sync: syncs return and do nothing (a positive control).

    ``watch``, if it is set, is called before each operation that counts, with its kind and path; ``tree_removed`` with
    the directories that went when one was removed with all that is below.
    """

    persistent = True

    def __init__(
        self, *, seed: int = 0, faults: tuple[Fault, ...] = (), count_reads: bool = False, lying_sync: bool = False
    ) -> None:
        self.mutex = threading.RLock()
        self.rng = random.Random(seed)
        self.faults = faults
        self.count_reads = count_reads
        self.lying_sync = lying_sync
        self.operations = 0
        self.counts: Counter[str] = Counter()
        self.hits = 0
        self.log: list[tuple[str, str]] = []
        self.watch: Callable[[str, Path], None] | None = None
        self.tree_removed: Callable[[set[Path]], None] | None = None
        self._torn_now = False
        self._dead = False
        self._names: dict[Path, _Node] = {}
        self._durable_names: dict[Path, _Node] = {}
        self._pending_names: list[_NameChange] = []
        self._directories: set[Path] = set()
        self._durable_directories: set[Path] = set()
        self._locks: dict[Path, str] = {}

    # -- faults -------------------------------------------------------------------------------------------------

    def step(self, kind: str, path: Path) -> None:
        """One operation was made; raises if a fault is due."""
        if self._dead:
            raise SimulatedCrash("the process is already dead")
        if kind in _READS and not self.count_reads:
            return
        if self.watch is not None:
            self.watch(kind, path)
        self.operations += 1
        self.counts[kind] += 1
        self.log.append((kind, path.name))
        self._torn_now = False
        for fault in self.faults:
            if fault.only:
                due = sum(self.counts[name] for name in fault.only) if kind in fault.only else -1
            else:
                due = self.operations
            if due == fault.at or (fault.persistent and due > fault.at):
                self.hits += 1
                self._torn_now = fault.torn
                if fault.error is None:
                    self._dead = True
                    raise SimulatedCrash(f"operation {self.operations}: {kind} {path}")
                raise translate(OSError(fault.error, "injected"), path)

    def torn_now(self) -> bool:
        """True if the fault that was just raised leaves part of the write."""
        return self._torn_now

    def crash(self, rng: random.Random, *, keep: Keep = "random") -> CrashableFileSystem:
        """The file system as the next boot finds it. ``keep`` says what becomes of that which was not synced.

        ``all`` is a killed process (the kernel lives on), ``none`` and ``random`` are power cuts.
        """
        after = CrashableFileSystem()
        after._directories = set(self._directories)
        after._durable_directories = set(self._durable_directories)
        nodes: dict[int, _Node] = {}

        def copied(node: _Node) -> _Node:
            if id(node) not in nodes:
                nodes[id(node)] = _after(node, rng, keep)
            return nodes[id(node)]

        if keep == "all":
            after._pending_names = [
                _NameChange(
                    change.directory,
                    tuple((path, node and copied(node)) for path, node in change.entries),
                    change.journalled,
                    change.moved,
                )
                for change in self._pending_names
            ]
            after._names = {path: copied(node) for path, node in self._names.items()}
            after._durable_names = {path: copied(node) for path, node in self._durable_names.items()}
        else:
            after._directories = set(self._durable_directories)
            names = self._names_after(rng, keep, after._directories)
            after._directories |= {parent for path in names for parent in path.parents}
            after._durable_directories = set(after._directories)
            after._names = {path: copied(node) for path, node in names.items()}
            after._durable_names = dict(after._names)
        return after

    def _names_after(self, rng: random.Random, keep: Keep, directories: set[Path]) -> dict[Path, _Node]:
        names = dict(self._durable_names)
        if keep == "none":
            return names
        kept: set[int] = set()
        for directory in dict.fromkeys(change.directory for change in self._pending_names):
            changes = [change for change in self._pending_names if change.directory == directory]
            in_order = rng.random() < 0.5
            stop = rng.randrange(len(changes) + 1)
            for index, change in enumerate(changes):
                if index < stop if in_order else rng.random() < 0.5:
                    kept.add(id(change))
        changed = ((change.entries, change.moved, id(change) in kept) for change in self._pending_names)
        enter(names, directories, changed)
        return names

    def files(self) -> dict[Path, bytes]:
        """Every file as the process sees it."""
        return {path: bytes(node.live) for path, node in self._names.items()}

    @classmethod
    def from_files(cls, files: dict[Path, bytes], directories: set[Path]) -> CrashableFileSystem:
        """A file system that holds ``files``, all durable."""
        fs = cls()
        fs._directories = set(directories)
        fs._durable_directories = set(directories)
        for path, data in files.items():
            fs._names[path] = fs._durable_names[path] = _Node(bytearray(data), bytes(data))
        return fs

    def state(self) -> DeviceState:
        """The device as it is now."""
        places: dict[int, int] = {}
        files: list[FileState] = []

        def place(node: _Node) -> int:
            if id(node) not in places:
                places[id(node)] = len(files)
                files.append(FileState(node.durable, tuple(node.pending)))
            return places[id(node)]

        names = {path: place(node) for path, node in self._durable_names.items()}
        pending = tuple(
            PendingNames(
                change.directory,
                tuple((path, None if node is None else place(node)) for path, node in change.entries),
                change.journalled,
                change.moved,
            )
            for change in self._pending_names
        )
        return DeviceState(tuple(files), names, pending, frozenset(self._durable_directories))

    @classmethod
    def from_state(cls, state: DeviceState) -> CrashableFileSystem:
        """A file system as a new process finds it after a kill: all is seen, and what was not synced still is not."""
        fs = cls()
        fs._directories = set(state.directories)
        fs._durable_directories = set(state.directories)
        nodes = [_Node(bytearray(file.durable), file.durable, list(file.pending)) for file in state.files]
        for node in nodes:
            for change in node.pending:
                apply_change(node.live, change)
        fs._durable_names = {path: nodes[index] for path, index in state.names.items()}
        fs._names = dict(fs._durable_names)
        for names in state.pending:
            entries = tuple((path, None if index is None else nodes[index]) for path, index in names.entries)
            fs._pending_names.append(_NameChange(names.directory, entries, names.journalled, names.moved))
            enter(fs._names, fs._directories, [(entries, names.moved, True)])
        return fs

    def directories(self) -> set[Path]:
        """Every directory."""
        return set(self._directories)

    # -- FileSystem ---------------------------------------------------------------------------------------------

    def open(self, path: Path, *, create: bool = False, read_only: bool = False) -> File:
        with self.mutex:
            self.step("create" if create else "open", path)
            if create:
                if path in self._names:
                    raise translate(FileExistsError(errno.EEXIST, "exists"), path)
                self._change_names((path, _Node()))
            elif path not in self._names:
                raise translate(FileNotFoundError(errno.ENOENT, "missing"), path)
            return _CrashableFile(self, path, self._names[path], read_only=read_only)

    def exists(self, path: Path) -> bool:
        with self.mutex:
            self.step("exists", path)
            return path in self._names or path in self._directories

    def names(self, directory: Path) -> list[str]:
        with self.mutex:
            self.step("names", directory)
            return sorted(path.name for path in (*self._names, *self._directories) if path.parent == directory)

    def make_directory(self, path: Path) -> None:
        with self.mutex:
            self.step("make_directory", path)
            self._directories.add(path)
            self._durable_directories.add(path)

    def remove(self, path: Path) -> None:
        with self.mutex:
            self.step("remove", path)
            if path in self._names:
                self._change_names((path, None))

    def remove_tree(self, path: Path) -> None:
        with self.mutex:
            self.step("remove_tree", path)
            for name in [name for name in self._names if path in (name, *name.parents)]:
                self._change_names((name, None))
            gone = {name for name in self._directories if path in (name, *name.parents)}
            self._directories -= gone
            self._durable_directories -= gone
            if self.tree_removed is not None:
                self.tree_removed(gone)

    def rename(self, source: Path, target: Path) -> None:
        with self.mutex:
            self.step("rename", source)
            if source in self._directories:
                self._rename_directory(source, target)
                return
            if source not in self._names:
                raise translate(FileNotFoundError(errno.ENOENT, "missing"), source)
            node = self._names[source]
            self._change_names((target, node), (source, None))

    def _rename_directory(self, source: Path, target: Path) -> None:
        """All names below go along at once; one of them that was not synced yet is kept if the rename is."""
        moved = source, target
        entries: list[tuple[Path, _Node | None]] = []
        for path in [path for path in self._names if source in path.parents]:
            entries += [(below(path, moved), self._names[path]), (path, None)]
        enter(self._names, self._directories, [(tuple(entries), moved, True)])
        for change in self._pending_names:
            change.directory = below(change.directory, moved)  # a sync of it under its new name syncs them
        self._pending_names.append(_NameChange(target.parent, tuple(entries), moved=moved))

    def sync_directory(self, path: Path) -> None:
        with self.mutex:
            self.step("sync_directory", path)
            if self.lying_sync:
                return
            for change in self._pending_names:
                change.journalled = True
            waiting: list[_NameChange] = []
            for change in self._pending_names:
                if change.directory != path:
                    waiting.append(change)
                    continue
                moves = [((), each.moved, False) for each in waiting if each.moved is not None]
                enter(
                    self._durable_names,
                    self._durable_directories,
                    [*moves, (change.entries, change.moved, True)],  # what has no new name yet has the old one
                )
                if change.moved is not None:
                    for each in waiting:
                        each.entries = tuple((below(name, change.moved), node) for name, node in each.entries)
            self._pending_names = waiting

    def read_bytes(self, path: Path, *, limit: int) -> bytes:
        file = self.open(path, read_only=True)
        if file.size() > limit:
            raise translate(OSError(errno.EFBIG, "too large"), path)
        return file.pread(limit, 0)

    def write_atomic(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(path.name + ".tmp")
        self.remove(temporary)
        file = self.open(temporary, create=True)
        file.pwrite(data, 0)
        file.sync()
        self.rename(temporary, path)
        self.sync_directory(path.parent)

    def lock(self, path: Path, owner: str) -> FileLock:
        with self.mutex:
            if path in self._locks:
                raise StoreLocked("the store is already open", path=path, holder=self._locks[path])
            self._locks[path] = owner
            return _Lock(self._locks, path)

    def release_locks(self) -> None:
        """The process that held them is gone."""
        self._locks.clear()

    def space(self, path: Path) -> Space:
        return Space(2**40, 2**40)

    def _change_names(self, *entries: tuple[Path, _Node | None]) -> None:
        enter(self._names, self._directories, [(entries, None, True)])
        self._pending_names.append(_NameChange(entries[0][0].parent, entries))

    def journal_names(self, node: _Node) -> None:
        """A sync of ``node`` also commits the names so far, where the file is new or has grown (as on ext4)."""
        new = any(node is each for change in self._pending_names for _, each in change.entries)
        if new or len(node.live) != len(node.durable):
            for change in self._pending_names:
                change.journalled = True


def _after(node: _Node, rng: random.Random, keep: Keep) -> _Node:
    if keep == "all":
        # The kernel lives on: what the process saw is there, and what is not on the device is still pending.
        return _Node(bytearray(node.live), node.durable, list(node.pending))
    data = bytearray(node.durable)
    if keep == "random":
        mode = rng.randrange(4)
        for change in node.pending:
            if isinstance(change, Truncate):
                if mode == 3 or (mode and rng.random() < 0.5):
                    apply_change(data, change)
                continue
            for piece in sectors(change):
                if mode == 3 or (mode and rng.random() < 0.5):
                    apply_change(data, piece)
    return _Node(data, bytes(data))


if TYPE_CHECKING:
    _check: type[FileSystem] = CrashableFileSystem
    _check_file: type[File] = _CrashableFile
