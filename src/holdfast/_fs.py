"""Files and directories: the only module that calls fsync, rename, unlink or flock.

Invariants:
    * ``File.pwrite`` writes all bytes or raises; ``File.sync`` returns only after the device has the bytes.
    * No sync is ever retried: after a failed one the kernel may have dropped the pages (docs/FORMAT.md, section 1).
    * ``write_atomic`` leaves the old content or the new content, after any crash.
    * Every ``OSError`` leaves here as a ``HoldfastError`` that names the path.
    * A directory that is made here is for its owner alone (0700), and so is a file (0600), whatever the umask.

``MemoryFileSystem`` gives ``memory:`` stores the same journal code without a disk; ``holdfast.testing`` builds a
file system that forgets what was not synced on the same protocols.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import stat
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .errors import (
    CorruptionError,
    DeviceError,
    HoldfastError,
    InvalidInputError,
    MissingFile,
    OutOfSpace,
    ReadOnlyError,
    ResourceExhausted,
    StoreLocked,
)

__all__ = [
    "File",
    "FileLock",
    "FileSystem",
    "MemoryFileSystem",
    "NewFile",
    "RealFileSystem",
    "Space",
    "is_mount_point",
    "lock_holder",
    "open_foreign",
    "path_of",
    "translate_os_error",
]

Buffer = bytes | bytearray | memoryview

_OWNER_ALONE = struct.pack("<I" + "HHI" * 3, 2, 0x01, 7, 2**32 - 1, 0x04, 0, 2**32 - 1, 0x20, 0, 2**32 - 1)
"""An access list as Linux stores it (``linux/posix_acl_xattr.h``, version 2): all for the owner, nothing for others."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EROFS, errno.EACCES, errno.EPERM}
_BAD_PATH = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP}
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def translate_os_error(error: OSError, path: Path | str | None = None) -> HoldfastError:
    """The typed error for ``error``; a full disk is recognised by its free space too, because LMDB reports EIO."""
    place = str(path) if path is not None else error.filename
    text = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _FULL:
        return OutOfSpace(f"cannot write: {text}", path=place)
    if error.errno in _DENIED:
        return ReadOnlyError(f"cannot open or write: {text}", path=place)
    if error.errno in _EXHAUSTED:
        return ResourceExhausted(f"the process ran out of a resource: {text}", path=place)
    if error.errno == errno.ENOENT:
        return MissingFile(f"a file is missing: {text}", path=place)
    if error.errno in _BAD_PATH:
        return InvalidInputError(f"the path is not usable: {text}", path=place)
    return DeviceError(f"the device failed: {text}", path=place)


@contextlib.contextmanager
def _translated(path: Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise translate_os_error(error, path) from error


class File(Protocol):
    """One open file, written and read by position. Safe to read from any thread; writers order themselves."""

    path: Path

    def pwrite(self, data: Buffer, offset: int) -> None:
        """All of ``data`` stands at ``offset`` (not yet durable)."""

    def pread(self, length: int, offset: int) -> bytes:
        """Up to ``length`` bytes at ``offset``; fewer only at the end of the file."""

    def sync(self) -> None:
        """What was written is durable (fdatasync). Never called again on this file after it failed."""

    def truncate(self, length: int) -> None:
        """The file is ``length`` bytes long (not yet durable)."""

    def size(self) -> int:
        """Length of the file in bytes."""

    def close(self) -> None:
        """The descriptor is released; nothing is synced."""


class Space(NamedTuple):
    """Bytes that this process may still write on a device, and all that it has."""

    free: int
    total: int


class FileLock(Protocol):
    """An exclusive lock that dies with the process."""

    def release(self) -> None:
        """Another process may take the lock."""


class FileSystem(Protocol):
    """The few operations on paths that the store needs."""

    persistent: bool

    def open(self, path: Path, *, create: bool = False, read_only: bool = False) -> File:
        """An open file. ``create`` makes a new empty one and refuses an existing one."""

    def exists(self, path: Path) -> bool:
        """True if something is at ``path``."""

    def names(self, directory: Path) -> list[str]:
        """Sorted names in ``directory``; empty if it does not exist."""

    def make_directory(self, path: Path) -> None:
        """``path`` is a directory, mode 0700, durable in its parent; an existing one is kept."""

    def remove(self, path: Path) -> None:
        """``path`` is gone (durable after ``sync_directory``); no error if it was not there."""

    def remove_tree(self, path: Path) -> None:
        """``path`` and everything below it is gone; no error if it was not there."""

    def rename(self, source: Path, target: Path) -> None:
        """``target`` is what ``source`` was (durable after ``sync_directory``)."""

    def sync_directory(self, path: Path) -> None:
        """The entries of the directory are durable."""

    def read_bytes(self, path: Path, *, limit: int) -> bytes:
        """The whole file; refused above ``limit`` bytes."""

    def write_atomic(self, path: Path, data: bytes) -> None:
        """``path`` holds ``data``, durable, replacing what was there all at once."""

    def lock(self, path: Path, owner: str) -> FileLock:
        """Exclusive lock on ``path``; ``owner`` is written inside if it fits. Raises ``StoreLocked``, never waits."""

    def space(self, path: Path) -> Space:
        """Room on the file system of ``path``."""


class RealFile:
    """A file on disk."""

    __slots__ = ("_fd", "path")

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    def pwrite(self, data: Buffer, offset: int) -> None:
        try:
            written = os.pwrite(self._fd, data, offset)
            if written != len(data):
                view = memoryview(data)
                while written < len(view):
                    more = os.pwrite(self._fd, view[written:], offset + written)
                    if more == 0:
                        raise OSError(errno.ENOSPC, "short write")
                    written += more
        except OSError as error:
            raise translate_os_error(error, self.path) from error

    def pread(self, length: int, offset: int) -> bytes:
        try:
            data = os.pread(self._fd, length, offset)
            if len(data) == length or not data:
                return data
            pieces = [data]
            got = len(data)
            while got < length:
                more = os.pread(self._fd, length - got, offset + got)
                if not more:
                    break
                pieces.append(more)
                got += len(more)
            return b"".join(pieces)
        except OSError as error:
            raise translate_os_error(error, self.path) from error

    def sync(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise translate_os_error(error, self.path) from error

    def truncate(self, length: int) -> None:
        with _translated(self.path):
            os.ftruncate(self._fd, length)

    def size(self) -> int:
        with _translated(self.path):
            return os.fstat(self._fd).st_size

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with _translated(self.path):
                os.close(fd)


class _RealLock:
    __slots__ = ("_fd", "_path")

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path

    def release(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def _locking_process(fd: int) -> str:
    """Number of the process that has the file locked, as the kernel knows it; empty where it does not say."""
    status = os.fstat(fd)
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with contextlib.suppress(OSError), open("/proc/locks", encoding="ascii") as locks:  # no /proc: the file must do
        for line in locks:
            fields = line.split()
            if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == file:
                return fields[4]
    return ""


def _holder(fd: int) -> str:
    """Who holds the lock: the name in the file if it is of the process that the kernel names.

    A holder writes its name just after it got the lock, so until then the file names an earlier one, which may live.
    Where the kernel does not say (another container, a network), an old name is given 0.1 s to go.
    """
    name = ""
    for _ in range(20):
        name = os.pread(fd, 256, 0).decode("utf-8", "replace").strip()
        pid, _, host = name.partition(" ")
        known = _locking_process(fd)
        if known:
            return name if pid == known else f"{known} {socket.gethostname()}"
        if pid.isdigit() and (host != socket.gethostname() or os.path.exists(f"/proc/{pid}")):
            break
        time.sleep(0.005)
    return name or "unknown"


class RealFileSystem:
    """The file system of the machine."""

    persistent = True

    def open(self, path: Path, *, create: bool = False, read_only: bool = False) -> File:
        flags = os.O_RDONLY if read_only else os.O_RDWR
        if create:
            flags |= os.O_CREAT | os.O_EXCL
        with _translated(path):
            return RealFile(path, os.open(path, flags | os.O_CLOEXEC, 0o600))

    def exists(self, path: Path) -> bool:
        with _translated(path):
            return os.path.lexists(path)

    def names(self, directory: Path) -> list[str]:
        try:
            return sorted(os.listdir(directory))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise translate_os_error(error, directory) from error

    def make_directory(self, path: Path) -> None:
        with _translated(path):
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                if not path.is_dir():
                    raise
                with contextlib.suppress(ReadOnlyError):  # made by others, where this process may not read
                    self.sync_directory(path.parent)
                return
        self.sync_directory(path.parent)

    def make_private_directory(self, path: Path) -> None:
        """As ``make_directory``, for a library that makes files itself: they are 0600 too, where the file system can.

        Linux asks the default access list of the directory instead of the umask. Where there are no access lists
        (``ENOTSUP``), the directory alone keeps others out.
        """
        self.make_directory(path)
        if hasattr(os, "setxattr"):
            with _translated(path):
                try:
                    os.setxattr(path, "system.posix_acl_default", _OWNER_ALONE)
                except OSError as error:
                    if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.EINVAL):
                        raise

    def restrict(self, path: Path) -> None:
        """The file at ``path``, which a library made, is for its owner alone (0600)."""
        with _translated(path):
            os.chmod(path, 0o600)

    def remove(self, path: Path) -> None:
        with _translated(path), contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def remove_tree(self, path: Path) -> None:
        with _translated(path), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)

    def rename(self, source: Path, target: Path) -> None:
        with _translated(source):
            os.rename(source, target)

    def sync_directory(self, path: Path) -> None:
        with _translated(path):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def read_bytes(self, path: Path, *, limit: int) -> bytes:
        file = self.open(path, read_only=True)
        try:
            size = file.size()
            if size > limit:
                raise CorruptionError("file is larger than it can be", path=path, found=size, limit=limit)
            return file.pread(size, 0)
        finally:
            file.close()

    def write_atomic(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(path.name + ".tmp")
        self.remove(temporary)
        file = self.open(temporary, create=True)
        try:
            file.pwrite(data, 0)
            file.sync()
        finally:
            file.close()
        self.rename(temporary, path)
        self.sync_directory(path.parent)

    def lock(self, path: Path, owner: str) -> FileLock:
        with _translated(path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(fd)
            os.close(fd)
            raise StoreLocked("the store is open in another process", path=path, holder=holder) from None
        except OSError as error:
            os.close(fd)
            raise translate_os_error(error, path) from error
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, owner.encode("utf-8"), 0)
        except OSError as error:
            if error.errno not in _FULL:  # the name is for people: whoever wants to free some space needs the lock
                os.close(fd)
                raise translate_os_error(error, path) from error
        return _RealLock(fd, path)

    def space(self, path: Path) -> Space:
        with _translated(path):
            status = os.statvfs(path)
        return Space(status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize)


class MemoryFile:
    """A file in memory; ``sync`` does nothing because nothing survives the process."""

    __slots__ = ("_data", "path")

    def __init__(self, path: Path, data: bytearray) -> None:
        self.path = path
        self._data = data

    def pwrite(self, data: Buffer, offset: int) -> None:
        if offset > len(self._data):
            self._data.extend(bytes(offset - len(self._data)))
        self._data[offset : offset + len(data)] = data

    def pread(self, length: int, offset: int) -> bytes:
        return bytes(self._data[offset : offset + length])

    def sync(self) -> None:
        """Nothing to do: memory has no device below it."""

    def truncate(self, length: int) -> None:
        if length <= len(self._data):
            del self._data[length:]
        else:
            self._data.extend(bytes(length - len(self._data)))

    def size(self) -> int:
        return len(self._data)

    def close(self) -> None:
        """Nothing to do: the bytes belong to the file system."""


class _MemoryLock:
    def __init__(self, held: dict[Path, str], path: Path) -> None:
        self._held = held
        self._path = path

    def release(self) -> None:
        self._held.pop(self._path, None)


class MemoryFileSystem:
    """A file system in memory: one flat mapping of paths to bytes."""

    persistent = False

    def __init__(self) -> None:
        self._files: dict[Path, bytearray] = {}
        self._directories: set[Path] = set()
        self._locks: dict[Path, str] = {}
        self._mutex = threading.Lock()

    def open(self, path: Path, *, create: bool = False, read_only: bool = False) -> File:
        with self._mutex:
            if create:
                if path in self._files:
                    raise translate_os_error(FileExistsError(errno.EEXIST, "exists"), path)
                self._files[path] = bytearray()
            elif path not in self._files:
                raise translate_os_error(FileNotFoundError(errno.ENOENT, "missing"), path)
            return MemoryFile(path, self._files[path])

    def exists(self, path: Path) -> bool:
        return path in self._files or path in self._directories

    def names(self, directory: Path) -> list[str]:
        with self._mutex:
            return sorted(path.name for path in (*self._files, *self._directories) if path.parent == directory)

    def make_directory(self, path: Path) -> None:
        self._directories.add(path)

    def remove(self, path: Path) -> None:
        self._files.pop(path, None)

    def remove_tree(self, path: Path) -> None:
        with self._mutex:
            self._files = {name: data for name, data in self._files.items() if path not in (name, *name.parents)}
            self._directories = {name for name in self._directories if path not in (name, *name.parents)}

    def rename(self, source: Path, target: Path) -> None:
        with self._mutex:
            if source not in self._files:
                raise translate_os_error(FileNotFoundError(errno.ENOENT, "missing"), source)
            self._files[target] = self._files.pop(source)

    def sync_directory(self, path: Path) -> None:
        """Nothing to do: memory has no device below it."""

    def read_bytes(self, path: Path, *, limit: int) -> bytes:
        data = self.open(path, read_only=True).pread(limit + 1, 0)
        if len(data) > limit:
            raise CorruptionError("file is larger than it can be", path=path, limit=limit)
        return data

    def write_atomic(self, path: Path, data: bytes) -> None:
        self._files[path] = bytearray(data)

    def lock(self, path: Path, owner: str) -> FileLock:
        with self._mutex:
            if path in self._locks:
                raise StoreLocked("the store is already open", path=path, holder=self._locks[path])
            self._locks[path] = owner
        return _MemoryLock(self._locks, path)

    def space(self, path: Path) -> Space:
        return Space(2**40, 2**40)


class NewFile:
    """A file that is written piece by piece beside its place and takes it in one atomic step.

    A context manager: left without ``publish``, nothing of it stays, and what was at the path is still there.
    """

    def __init__(self, fs: FileSystem, path: Path) -> None:
        self._fs = fs
        self._path = path
        self._temporary = path.with_name(path.name + ".tmp")
        self._end = 0
        self._published = False
        fs.remove(self._temporary)
        self._file = fs.open(self._temporary, create=True)

    @property
    def temporary(self) -> Path:
        """Where the file lies until it is published."""
        return self._temporary

    def write(self, data: Buffer) -> None:
        """``data`` stands behind what was written before (not yet durable)."""
        self._file.pwrite(data, self._end)
        self._end += len(data)

    def sync(self) -> None:
        """What was written is durable, still under its temporary name."""
        self._file.sync()

    def publish(self) -> None:
        """The file is at its path, its name durable. Call ``sync`` first; nothing may be written afterwards."""
        self._fs.rename(self._temporary, self._path)
        self._published = True
        self._fs.sync_directory(self._path.parent)

    def __enter__(self) -> NewFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._published:
            return
        if error is None:
            self._fs.remove(self._temporary)
            return
        with contextlib.suppress(HoldfastError):  # the first error is the one to tell
            self._fs.remove(self._temporary)


def lock_holder(fs: FileSystem, path: Path) -> int | None:
    """Number of the process that has the lock at ``path``; ``None`` if none has, or it is not known. Takes no lock.

    Where the kernel does not tell, it is the process that is named in the file, as long as that lives on this machine.
    """
    if not isinstance(fs, RealFileSystem):
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        known = _locking_process(fd)
        pid, _, host = os.pread(fd, 256, 0).decode("utf-8", "replace").strip().partition(" ")
    except OSError:
        return None
    finally:
        os.close(fd)
    if known:
        return int(known)
    told = not os.path.exists("/proc/locks") and host == socket.gethostname() and pid.isdigit()
    return int(pid) if told and _lives(int(pid)) else None


def is_mount_point(fs: FileSystem, path: Path) -> bool:
    """True if a file system, or a part of one, is mounted at ``path``: nothing can be renamed to it."""
    if not isinstance(fs, RealFileSystem):
        return False
    if os.path.ismount(path):
        return True
    place = os.path.realpath(path)
    for letter in "\\ \t\n":
        place = place.replace(letter, f"\\{ord(letter):03o}")
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", "rb") as mounts:
        return any(line.split(b" ")[4] == os.fsencode(place) for line in mounts)
    return False


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def path_of(path: str | os.PathLike[str], what: str) -> Path:
    """``path``, which a caller gave, as a path. Raises ``InvalidInputError`` that begins with ``what``."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidInputError(f"{what} is named by a path", found=repr(path))
    return Path(text)


def open_foreign(fs: FileSystem, path: Path) -> File:
    """A file that somebody else made, open for reading: never a link, a pipe or a device.

    Raises ``InvalidInputError`` for anything but a regular file, ``MissingFile`` if there is none. Never waits.
    """
    if not isinstance(fs, RealFileSystem):
        return fs.open(path, read_only=True)
    with _translated(path):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return RealFile(path, fd)
        os.close(fd)
    raise InvalidInputError("this is not a regular file", path=path)


if TYPE_CHECKING:
    _real: type[FileSystem] = RealFileSystem
    _memory: type[FileSystem] = MemoryFileSystem
    _real_file: type[File] = RealFile
    _memory_file: type[File] = MemoryFile
