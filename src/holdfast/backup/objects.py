"""A repository in an object store: S3, Google Cloud Storage or Azure, by ``obstore`` (the extra ``backup-objects``).

Invariants:
    * An object is put in one request, whole or not at all; it is durable when the store has said yes.
    * A request takes at most ``timeout_seconds``; one that may help later is made at most ``attempts`` times. All of
      them end in a typed error, which names no secret.
    * Nothing is put or deleted without the lock, which is looked at before every attempt (``object_lock``).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from .. import limits
from ..errors import (
    BackupDamaged,
    BackupNotFound,
    HoldfastError,
    InternalError,
    InvalidInputError,
    LimitExceeded,
    MissingFile,
    TargetDenied,
    TargetUnavailable,
)
from .object_errors import check_environment, check_url, is_panic, panicked, sentence, unusable
from .object_listing import list_page
from .object_lock import ObjectLock
from .target import BACKUPS, CHUNKS, check_object_name, is_object_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from obstore import ObjectMeta, PutMode, UpdateVersion
    from obstore.store import ObjectStore

    from .target import Target

__all__ = ["Found", "ObjectTarget"]

_ALLOW_HTTP: Final = {"s3": "AWS_ALLOW_HTTP", "gs": "GOOGLE_ALLOW_HTTP", "az": "AZURE_ALLOW_HTTP"}
_NO_PLACE: Final = ("NoSuchBucket", "bucket does not exist", "ContainerNotFound", "container does not exist")
_DENIED: Final = (
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "AuthenticationFailed",
    "403 Forbidden",
)
_DELETES_MAX: Final = {"s3": 100}
_DELETES_MAX_ELSEWHERE: Final = 10
"""Names that go together: in one request of S3, elsewhere in as many at once. The lock is looked at each time."""
_LISTING_TIMEOUTS: Final = 5
"""A listing may take so many times as long as one request."""
_LOOKUPS_MAX: Final = 300
"""Chunks that are looked at one by one; more are cheaper by listings of the 256 shelves."""
_LOCK: Final = "lock"
_CLOCK: Final = "clock"
_FIRST_PAUSE_SECONDS: Final = 0.2
_PAUSE_SECONDS_MAX: Final = 5.0

_T = TypeVar("_T")


class Found(NamedTuple):
    """An object as the store gave it. ``changed`` is the time of its last change there, seconds since 1970."""

    data: bytes
    version: PutMode
    changed: float


def _open(url: str, timeout_seconds: float) -> ObjectStore:
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as error:
        raise InvalidInputError(
            "object stores need the package 'obstore'",
            remedy="install it with the extra: pip install 'holdfast[backup-objects]'",
        ) from error
    check_environment(url.partition(":")[0])
    plain = os.environ.get(_ALLOW_HTTP[url.partition(":")[0]], "").lower() in ("1", "true")
    limit = timedelta(seconds=timeout_seconds)
    failure: HoldfastError
    try:
        return from_url(
            url,
            client_options={
                "timeout": limit,
                "connect_timeout": min(limit, timedelta(seconds=10)),
                "allow_http": plain,
            },
            retry_config={"max_retries": 0, "retry_timeout": limit},
        )
    except (BaseError, ValueError, OSError):
        failure = unusable(url)
    except BaseException as error:
        if not is_panic(error):
            raise
        failure = panicked(url)
    raise failure


def _errors() -> tuple[tuple[type[Exception], ...], tuple[type[Exception], ...]]:
    """What says that a condition did not hold, and all that ``obstore`` raises."""
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

    return (AlreadyExistsError, PreconditionError), (BaseError, OSError, ValueError, NotImplementedError)


class ObjectTarget:
    """Objects of a bucket or container, below a prefix."""

    def __init__(
        self,
        url: str,
        *,
        store: ObjectStore | None = None,
        timeout_seconds: float = 60.0,
        attempts: int = 5,
        sleep: Callable[[float], object] = time.sleep,
        lock_clock: Callable[[], float] | None = None,
    ) -> None:
        """Nothing is asked of the store yet.

        Args:
            url: ``s3://bucket/prefix``, ``gs://`` or ``az://``; who we are comes from the environment, as ``obstore``
                reads it.
            store: an object store of ``obstore`` instead, whose prefix it has already.
            timeout_seconds: longest time that one request may take, at most 60 (the lock reckons with it).
            attempts: how often a request is made that was cut, timed out or was not served.
        """
        if not 0 < timeout_seconds <= limits.OBJECT_TIMEOUT_SECONDS_MAX or not 1 <= attempts <= 100:
            raise InvalidInputError(
                "the bounds of requests are not allowed", seconds=timeout_seconds, attempts=attempts
            )
        self.place = check_url(url)
        self._store = _open(self.place, timeout_seconds) if store is None else store
        self._conditions, self._theirs = _errors()
        self._attempts = attempts
        self._listing_seconds = _LISTING_TIMEOUTS * timeout_seconds
        self._deletes_max = _DELETES_MAX.get(self.place.partition(":")[0], _DELETES_MAX_ELSEWHERE)
        self._sleep = sleep
        self._lock_clock = lock_clock
        self._held: ObjectLock | None = None
        self._mutex = threading.Lock()
        self._going: list[str] = []
        self._known: dict[str, dict[str, int]] = {}
        self._lookups = 0

    # -- the target -----------------------------------------------------------------------------------------------

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """As of a directory; each shelf is listed whole before its objects are named. Raises ``LimitExceeded``, too."""
        count = 0
        for shelf in self._shelves(prefix):
            found = self._page(shelf)
            count += len(found)
            if count > limits.OBJECTS_LISTED_MAX:
                raise LimitExceeded("the repository has too many objects", path=self.place, limit=count)
            for entry in found:
                if is_object_name(entry["path"]):
                    yield entry["path"], entry["size"]

    def _shelves(self, prefix: str) -> Sequence[str]:
        if prefix == BACKUPS:
            return [prefix.rstrip("/")]
        place = prefix.rstrip("/")
        if not self._page(place, pages=1):
            return []
        return [f"{prefix}{number:02x}" for number in range(256)]

    def _page(self, prefix: str, *, pages: int | None = None) -> Sequence[ObjectMeta]:
        """Everything below ``prefix``, or the first so many pages of it."""
        until = time.monotonic() + self._listing_seconds
        return self._ask(
            "list", prefix, lambda: list_page(self._store, prefix, until=until, pages=pages, place=self.place)
        )

    def size(self, name: str) -> int | None:
        """As of a directory. Many chunks are looked up in listings of their shelves, while the lock is ours."""
        import obstore

        check_object_name(name)
        shelf = self._shelf(name)
        if shelf is not None:
            return shelf.get(name)
        try:
            return self._ask("look at", name, lambda: obstore.head(self._store, name))["size"]
        except MissingFile:
            return None

    def _shelf(self, name: str) -> dict[str, int] | None:
        """The objects beside the chunk ``name`` and their lengths, which nobody else may change; or ``None``."""
        if self._held is None or not name.startswith(CHUNKS):
            return None
        place = name.rpartition("/")[0]
        with self._mutex:
            self._lookups += 1
            known = self._known.get(place)
            if known is not None or self._lookups <= _LOOKUPS_MAX:
                return known
            if sum(map(len, self._known.values())) > limits.OBJECTS_KNOWN_MAX:
                return None
        found = {entry["path"]: entry["size"] for entry in self._page(place)}
        with self._mutex:
            return self._known.setdefault(place, found)

    def _forget(self) -> None:
        with self._mutex:
            self._known, self._lookups = {}, 0

    def read(self, name: str, *, limit: int) -> bytes:
        return self._ask("read", name, lambda: self._get(check_object_name(name), limit)).data

    def _get(self, name: str, limit: int) -> Found:
        import obstore

        answer = obstore.get(self._store, name)
        meta = answer.meta
        if meta["size"] > limit:
            raise BackupDamaged("an object is longer than it can be", path=self.place, object=name, limit=limit)
        pieces: list[bytes] = []
        count = 0
        for piece in answer.stream(min_chunk_size=1 << 20):
            pieces.append(bytes(piece))
            count += len(pieces[-1])
            if count > limit:
                raise BackupDamaged("an object is longer than it can be", path=self.place, object=name, limit=limit)
        if count != meta["size"]:
            raise TargetUnavailable("an object ended early", path=self.place, object=name, found=count)
        return Found(b"".join(pieces), _version(meta["e_tag"], meta["version"]), meta["last_modified"].timestamp())

    def write(self, name: str, data: bytes) -> None:
        check_object_name(name)
        with self._mutex:
            waiting = name in self._going
        if waiting:
            self.flush()
        self._put(name, data, "overwrite", guard=self._guard)
        with self._mutex:
            shelf = self._known.get(name.rpartition("/")[0])
            if shelf is not None:
                shelf[name] = len(data)

    def _put(self, name: str, data: bytes, mode: PutMode, *, guard: Callable[[], None] | None = None) -> PutMode:
        import obstore

        def once() -> PutMode:
            made = obstore.put(self._store, name, data, mode=mode, use_multipart=False)
            return _version(made["e_tag"], made["version"])

        return self._ask("write", name, once, guard=guard)

    def delete(self, name: str) -> None:
        check_object_name(name)
        with self._mutex:
            self._going.append(name)
            full = len(self._going) >= self._deletes_max
        if full:
            self.flush()

    def keep(self, name: str) -> None:
        """Nothing is to do: an object that is there is durable."""

    def flush(self) -> None:
        with self._mutex:
            names, self._going = self._going, []
        if names:
            self._forget()
            self._ask("delete", names[0], lambda: self._remove(names, self._guard), guard=self._guard)

    def _remove(self, names: Sequence[str], guard: Callable[[], None]) -> None:
        """They are gone; where one was not there, which may hide what became of the others, one after the other."""
        import obstore

        try:
            obstore.delete(self._store, names)
        except FileNotFoundError as error:
            if _names_no_place(error):
                raise
            for name in names if len(names) > 1 else []:
                guard()
                self._remove([name], guard)

    def sweep(self) -> int:
        """Nothing is left of a write that did not end: it is one request."""
        return 0

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Held by a lock object that is renewed; see ``object_lock``. Deletions that wait are dropped at an error."""
        held = ObjectLock(self, clock=self._lock_clock)
        held.acquire()
        self._held = held
        try:
            yield
            self.flush()
        finally:
            with self._mutex:
                self._going.clear()
            self._held = None
            self._forget()
            held.release()

    # -- what the lock needs --------------------------------------------------------------------------------------

    def read_lock(self, limit: int) -> Found | None:
        """The lock object, if it is there."""
        try:
            return self._ask("read", _LOCK, lambda: self._get(_LOCK, limit))
        except MissingFile:
            return None

    def put_lock(self, data: bytes, mode: PutMode) -> PutMode | None:
        """The lock object holds ``data``; ``None`` if ``mode``, which sets a condition, did not hold."""
        try:
            return self._put(_LOCK, data, mode)
        except self._conditions:
            return None

    def drop_lock(self, guard: Callable[[], None]) -> None:
        """The lock object is gone; ``guard`` raises before an attempt when it may be that of somebody else."""
        self._ask("delete", _LOCK, lambda: self._remove([_LOCK], guard), guard=guard)

    def now(self) -> float:
        """The time of the store, seconds since 1970, as the change of an object that is put now says it."""
        import obstore

        self._put(_CLOCK, b"", "overwrite")
        return self._ask("look at", _CLOCK, lambda: obstore.head(self._store, _CLOCK))["last_modified"].timestamp()

    # -- asking ---------------------------------------------------------------------------------------------------

    def _ask(self, verb: str, name: str, once: Callable[[], _T], *, guard: Callable[[], None] | None = None) -> _T:
        """What ``once`` gives. Tried again where that may help; ``guard`` is asked before each attempt."""
        for attempt in range(1, self._attempts + 1):
            if guard is not None:
                guard()
            try:
                return once()
            except HoldfastError as error:
                failure = error
            except self._conditions:
                raise
            except self._theirs as error:
                failure = self._translated(error, verb, name)
            except BaseException as error:
                if not is_panic(error):
                    raise
                failure = panicked(self.place)
            if not isinstance(failure, TargetUnavailable) or attempt == self._attempts:
                failure.context.setdefault("attempts", attempt)
                raise failure from None
            self._sleep(min(_PAUSE_SECONDS_MAX, _FIRST_PAUSE_SECONDS * 2 ** (attempt - 1)))
        raise InternalError("no attempt was made")

    def _guard(self) -> None:
        held = self._held
        if held is None:
            raise InternalError("an object store is changed by whoever holds its lock", path=self.place)
        held.check()

    def _translated(self, error: Exception, verb: str, name: str) -> HoldfastError:
        """The typed error for one of ``obstore``."""
        from obstore import exceptions as theirs

        if _names_no_place(error):
            return BackupNotFound(
                "there is no such bucket or container",
                path=self.place,
                remedy="make it with the tools of the store, or correct the place",
            )
        if isinstance(error, FileNotFoundError):
            if verb == "write":
                return BackupNotFound("there is no such bucket or container", path=self.place, object=name)
            return MissingFile("an object is missing", path=self.place, object=name)
        denied = isinstance(error, theirs.PermissionDeniedError | theirs.UnauthenticatedError | PermissionError)
        if denied or any(word in str(error) for word in _DENIED):
            return TargetDenied(f"the store does not let us {verb} this", path=self.place, object=name)
        if isinstance(error, theirs.NotSupportedError | NotImplementedError):
            return InvalidInputError("the store cannot do what a repository needs", path=self.place, found=verb)
        return TargetUnavailable(f"the store did not {verb} an object: {sentence(error)}", path=self.place, object=name)

    def __repr__(self) -> str:
        return f"ObjectTarget({self.place!r})"


def _names_no_place(error: Exception) -> bool:
    return any(word in str(error) for word in _NO_PLACE)


def _version(e_tag: str | None, version: str | None) -> PutMode:
    """What a later put names as its condition."""
    known: UpdateVersion = {}
    if e_tag is not None:
        known["e_tag"] = e_tag
    if version is not None:
        known["version"] = version
    return known


if TYPE_CHECKING:
    _objects: type[Target] = ObjectTarget
