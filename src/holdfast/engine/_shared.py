"""What every engine does in the same way: limits, the state of the handle, creation, and the probing child.

Invariants:
    * ``check_batch`` raises before anything was written; what it accepts, every engine can store.
    * A ``Gate`` that is closed or poisoned lets no call in, and ``close`` returns only when no call is inside.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from .._fs import RealFileSystem
from ..errors import (
    ClosedError,
    CorruptionError,
    HoldfastError,
    InvalidInputError,
    LimitExceeded,
    MissingFile,
    PoisonedError,
    Recovery,
    RecoveryTimeout,
)
from ..events import corruption_found
from ..limits import ENGINE_KEY_BYTES_MAX, ROW_VALUE_BYTES_MAX
from .api import Batch

__all__ = [
    "SCAN_ROWS_MAX",
    "Gate",
    "check_batch",
    "check_limit",
    "clamp_bound",
    "create_in_staging",
    "damage_recovery",
    "run_probe",
    "told",
]

SCAN_ROWS_MAX = 100_000


def damage_recovery(kind: type[HoldfastError]) -> Recovery | None:
    """What helps when an engine's own files are damaged or gone; ``None`` for errors of another kind."""
    return Recovery.REBUILD if issubclass(kind, CorruptionError) else None


def told(error: HoldfastError) -> HoldfastError:
    """``error``; if it is damage, it was told as an event."""
    if isinstance(error, CorruptionError):
        corruption_found(error)
    return error


def check_batch(batch: Batch, key_bytes_max: int = ENGINE_KEY_BYTES_MAX) -> None:
    """Every key and value of ``batch`` is within the limits; else ``LimitExceeded`` or ``InvalidInputError``."""
    rows = batch.rows
    if not rows:
        return
    try:
        longest = max(map(len, rows))
        if longest > key_bytes_max:
            raise LimitExceeded("an engine key is too long", found=longest, limit=key_bytes_max)
        if b"" in rows:
            raise InvalidInputError("an engine key is empty")
        largest = max(map(len, filter(None, rows.values())), default=0)
    except TypeError as exc:
        raise InvalidInputError("a batch holds keys of bytes and values of bytes or None", found=repr(exc)) from exc
    if largest > ROW_VALUE_BYTES_MAX:
        raise LimitExceeded("an engine value is too long", found=largest, limit=ROW_VALUE_BYTES_MAX)


def check_limit(limit: int) -> None:
    """``limit`` is a page size that every engine serves."""
    if not 1 <= limit <= SCAN_ROWS_MAX:
        raise InvalidInputError("a page holds 1 to 100,000 rows", found=limit)


def clamp_bound(bound: bytes, key_bytes_max: int = ENGINE_KEY_BYTES_MAX) -> bytes:
    """A bound of at most ``key_bytes_max + 1`` bytes that divides all storable keys as ``bound`` does."""
    return bound if len(bound) <= key_bytes_max else bound[:key_bytes_max] + b"\x00"


class Gate:
    """The state of an engine handle: open, poisoned or closed, and how many calls are inside.

    Use as ``with gate:`` around every call that could run while another thread closes the engine.
    """

    __slots__ = ("_active", "_changed", "_closed", "_failure", "_name")

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition(threading.Lock())
        self._active = 0
        self._closed = False
        self._failure: HoldfastError | None = None

    def __enter__(self) -> None:
        with self._changed:
            if self._closed or self._failure is not None:
                raise self.refusal()
            self._active += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._active -= 1
            if self._closed:
                self._changed.notify_all()

    @property
    def usable(self) -> bool:
        """True while calls are let in."""
        return not self._closed and self._failure is None

    @property
    def poisoned(self) -> bool:
        """True after a failed write or sync."""
        return self._failure is not None

    def refusal(self) -> HoldfastError:
        """The error for a call that is not let in."""
        if self._closed:
            return ClosedError(f"the {self._name} engine is closed")
        return PoisonedError(f"the {self._name} engine refuses work after a failed write: {self._failure}")

    def poison(self, failure: HoldfastError) -> None:
        """No later call is let in; the first ``failure`` is kept as the reason."""
        with self._changed:
            if self._failure is None:
                self._failure = failure

    def close(self) -> bool:
        """No call is inside and none will be let in; False if it was closed before."""
        with self._changed:
            if self._closed:
                return False
            self._closed = True
            while self._active:
                self._changed.wait()
            return True


def create_in_staging(path: Path, make: Callable[[Path], None]) -> None:
    """``path`` is the directory that ``make`` filled, durable; after a crash it is complete or not there at all.

    Raises:
        MissingFile: ``path`` holds other files already; they are kept.
    """
    files = RealFileSystem()
    if files.names(path):
        raise MissingFile(
            "the engine's main file is missing, but its directory is not empty", path=path, recovery=Recovery.REBUILD
        )
    staging = path.with_name(path.name + ".new")
    files.remove_tree(staging)
    files.make_directory(staging)
    make(staging)
    for name in files.names(staging):
        files.restrict(staging / name)
        file = files.open(staging / name)
        try:
            file.sync()
        finally:
            file.close()
    files.sync_directory(staging)
    files.rename(staging, path)
    files.sync_directory(path.parent)


def run_probe(name: str, path: Path, program: str, deadline_seconds: float, *arguments: str) -> tuple[int, str, str]:
    """Exit status, output and error text of a child Python that runs ``program`` with ``path`` and ``arguments``.

    Raises:
        RecoveryTimeout: it was not done within ``deadline_seconds``, and was killed.
    """
    command = [sys.executable, "-I", "-c", program, str(path), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=deadline_seconds, check=False)
    except subprocess.TimeoutExpired as exc:
        raise RecoveryTimeout(
            f"{name} did not open within its deadline", path=path, deadline_seconds=deadline_seconds
        ) from exc
    output = done.stdout.decode("utf-8", "replace").strip()
    return done.returncode, output, done.stderr.decode("utf-8", "replace").strip()[-400:]
