"""The lock of a repository in an object store, which has no lock that dies with its holder: a lease.

The object ``lock`` is made by whoever finds none, on condition that there is none, and is put anew every 60 seconds, on
condition that it is still the same. One that was not renewed for 300 seconds, by the clock of the store, is taken over
on the same condition (docs/FORMAT.md, section 10.6).

Invariants:
    * Of several who make it or take it over at once one succeeds: the store decides. A store that ignores conditions is
      refused.
    * A holder that did not get through with a renewal for 180 seconds, by a clock that runs on while the machine
      sleeps, puts and deletes nothing more. A request takes at most 60 seconds: it has ended when another takes over.
    * Whatever of these clocks and delays fails, chunks are named by their content and objects are whole; what could
      happen is a chunk that is missing, and every verification finds that.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from .. import limits
from .._json import check_depth
from .._threads import start_thread
from ..errors import HoldfastError, InvalidInputError, RepositoryLocked

if TYPE_CHECKING:
    from obstore import PutMode

    from .objects import Found

__all__ = ["EXPIRY_SECONDS", "RENEWAL_SECONDS", "TRUST_SECONDS", "ObjectLock"]

EXPIRY_SECONDS: Final = 300.0
RENEWAL_SECONDS: Final = 60.0
TRUST_SECONDS: Final = 180.0
assert RENEWAL_SECONDS < TRUST_SECONDS
assert TRUST_SECONDS + limits.OBJECT_TIMEOUT_SECONDS_MAX < EXPIRY_SECONDS

_BYTES_MAX: Final = 4096

_logger = logging.getLogger("holdfast")


class _Objects(Protocol):
    """What the lock needs of an object store."""

    place: str

    def read_lock(self, limit: int) -> Found | None: ...

    def put_lock(self, data: bytes, mode: PutMode) -> PutMode | None: ...

    def drop_lock(self, guard: Callable[[], None]) -> None: ...

    def now(self) -> float: ...


class _Lease(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The lock object. ``count`` grows with each renewal, so that no two versions are equal."""

    count: int
    holder: str
    id: str


def _awake_clock() -> float:
    """Seconds that also count while the machine sleeps, where it can tell them."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class ObjectLock:
    """One holding of the lock. ``acquire`` and ``release`` belong to one thread, ``check`` to any."""

    def __init__(self, objects: _Objects, *, clock: Callable[[], float] | None = None) -> None:
        self._objects = objects
        self._clock = clock or _awake_clock
        self._id = secrets.token_hex(16)
        self._holder = f"{os.getpid()} {socket.gethostname()}"[:256]
        self._count = 0
        self._version: PutMode = {}
        self._confirmed = 0.0
        self._lost = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    # -- taking ---------------------------------------------------------------------------------------------------

    def acquire(self) -> None:
        """The lock is ours, and is renewed until ``release``.

        Raises:
            RepositoryLocked: somebody else has it. TargetDenied, TargetUnavailable: the store did not let us look.
            InvalidInputError: the store does not keep conditions.
        """
        found = self._objects.read_lock(_BYTES_MAX)
        if found is not None:
            left = EXPIRY_SECONDS - (self._objects.now() - found.changed)
            if left >= 0:
                raise self._refusal(found, left)
            _logger.warning("a lock that was left behind in %s is taken over", self._objects.place)
        if not self._put("create" if found is None else found.version):
            raise self._refusal(self._objects.read_lock(_BYTES_MAX), EXPIRY_SECONDS)
        try:
            honest = self._objects.put_lock(self._lease(), "create") is None
        except HoldfastError:
            self.release()
            raise
        if not honest:
            self._objects.drop_lock(self.check)
            raise InvalidInputError(
                "the object store ignores the condition of a write, so that a lock holds nobody off",
                path=self._objects.place,
                remedy="use a store that has conditional writes (If-None-Match), or a directory",
            )
        try:
            self._thread = start_thread(self._keep, "holdfast-backup-lock")
        except HoldfastError:
            self.release()
            raise

    def _lease(self) -> bytes:
        return msgspec.json.encode(_Lease(self._count, self._holder, self._id), order="sorted")

    def _put(self, mode: PutMode) -> bool:
        """True if the lock object is ours now. An answer may be lost, so what is there decides."""
        self._count += 1
        started = self._clock()
        version = self._objects.put_lock(self._lease(), mode)
        if version is None:
            there = self._objects.read_lock(_BYTES_MAX)
            lease = None if there is None else _lease_of(there.data)
            if there is None or lease is None or (lease.id, lease.count) != (self._id, self._count):
                return False
            version = there.version
        self._version, self._confirmed = version, started
        return True

    def _refusal(self, found: Found | None, left: float) -> RepositoryLocked:
        lease = None if found is None else _lease_of(found.data)
        return RepositoryLocked(
            "another backup, copy or prune is at work in the repository",
            path=self._objects.place,
            holder="unknown" if lease is None else lease.holder,
            expires_seconds=round(left),
            remedy="wait until the process named above has ended; if it is dead, its lock ends after 'expires_seconds'",
        )

    # -- holding --------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Nothing happens while the lock is surely ours. Raises ``RepositoryLocked`` once it may not be."""
        if self._lost or self._clock() - self._confirmed > TRUST_SECONDS:
            raise RepositoryLocked(
                "the lock of the repository was lost, and nothing more is written",
                path=self._objects.place,
                remedy="run the same command again: what was written is kept",
            )

    def renew(self) -> None:
        """The lock is ours for longer, or known to be lost. Raises what the store answered otherwise."""
        if not self._lost and not self._put(self._version):
            self._lost = True

    def _keep(self) -> None:
        while not self._lost and not self._ended.wait(RENEWAL_SECONDS):
            try:
                self.renew()
            except HoldfastError as error:
                _logger.warning("the lock in %s was not renewed: %s", self._objects.place, error)

    def release(self) -> None:
        """The lock object is gone if it is still ours, and nothing renews it any more."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self._objects.drop_lock(self.check)
        except HoldfastError as error:
            _logger.warning("the lock in %s was left behind, and ends by itself: %s", self._objects.place, error)


def _lease_of(data: bytes) -> _Lease | None:
    try:
        check_depth(data)
        return msgspec.json.decode(data, type=_Lease)
    except ValueError:
        return None
