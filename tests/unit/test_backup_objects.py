"""A repository in an object store: a whole cycle in one in memory, its lock, its errors and its limits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError, PermissionDeniedError
from obstore.store import MemoryStore

from holdfast.backup import KeepRules, ObjectTarget, copy_backup, create_backup, open_repository, prune_backups
from holdfast.backup.object_lock import EXPIRY_SECONDS, TRUST_SECONDS
from holdfast.backup.target import BACKUPS, CHUNKS
from holdfast.errors import (
    BackupDamaged,
    BackupNotFound,
    InternalError,
    InvalidInputError,
    LimitExceeded,
    MissingFile,
    RepositoryLocked,
    TargetDenied,
    TargetUnavailable,
)
from tests.unit.backup_support import backup, check, grown, repository, restored, small_segments
from tests.unit.store_support import open_quick

__all__ = ["small_segments"]

URL = "s3://bucket/pre/fix"
CHUNK = f"{CHUNKS}ab/ab{'0' * 62}"
MARK = f"{BACKUPS}20260101T000000000000Z-00000000.verified"


def target(store: MemoryStore | None = None, **options: Any) -> ObjectTarget:
    """A target in memory that does not wait."""
    return ObjectTarget(URL, store=store or MemoryStore(), **({"sleep": lambda _: None} | options))


class Flaky:
    """The functions of ``obstore`` of one name, replaced: ``wrong`` is asked for each call what to do with it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.calls = 0

    def replace(self, name: str, wrong: Callable[[int, Callable[[], Any]], Any]) -> None:
        real = getattr(obstore, name)

        def call(*args: Any, **options: Any) -> Any:
            self.calls += 1
            return wrong(self.calls, lambda: real(*args, **options))

        self._patch.setattr(obstore, name, call)


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Flaky:
    return Flaky(monkeypatch)


def cut(*_: object) -> Any:
    raise GenericError("Generic S3 error: connection closed https://h/b?sig=SECRET Debug source: token SECRET")


def paths(store: MemoryStore) -> set[str]:
    return {entry["path"] for page in obstore.list(store) for entry in page}


@pytest.mark.usefixtures("small_segments")
def test_a_whole_cycle(tmp_path: Path) -> None:
    store = MemoryStore()
    place = open_repository(target(store), create=True)
    blocks = grown(tmp_path / "data", 30)
    first = create_backup(tmp_path / "data", place)
    grown(tmp_path / "data", 30, after=blocks[-1])
    second = create_backup(tmp_path / "data", place)
    assert second.segments_taken_over > 0
    assert place.names() == [first.manifest.name, second.manifest.name]
    for name in place.names():
        assert check(place, name).ok
    restored(place, second.manifest.name, tmp_path / "new")
    with open_quick(tmp_path / "new") as opened:
        assert opened.tip is not None
        assert opened.tip.height == 59
    pruned = prune_backups(place, KeepRules(last=1))
    assert pruned.removed == (first.manifest.name,)
    assert place.names() == [second.manifest.name]
    assert check(place, second.manifest.name).ok
    used = {ref.id for file in second.manifest.files() for ref in file.chunks}
    assert {path.rpartition("/")[2] for path in paths(store) if path.startswith(CHUNKS)} == used
    far = repository(tmp_path / "far")
    copy_backup(place, second.manifest.name, far, workers=0)
    assert check(far, second.manifest.name).ok
    back = open_repository(target(), create=True)
    copy_backup(far, second.manifest.name, back, workers=0)
    assert check(back, second.manifest.name).ok
    assert "lock" not in paths(store)


def test_an_opened_repository_is_the_one_that_was_made() -> None:
    store = MemoryStore()
    with pytest.raises(BackupNotFound):
        open_repository(target(store))
    made = open_repository(target(store), create=True)
    assert open_repository(target(store), create=True).id == made.id
    obstore.delete(store, "repository.json")
    with made.lock():
        made.put_chunk(b"abc")
    with pytest.raises(BackupDamaged, match="missing beside objects"):
        open_repository(target(store), create=True)


# -- the lock -------------------------------------------------------------------------------------------------------


def test_one_at_a_time() -> None:
    store = MemoryStore()
    with target(store).lock():
        with pytest.raises(RepositoryLocked) as caught:
            with target(store).lock():
                raise AssertionError("two hold the lock")
        assert str(caught.value.context["holder"]).partition(" ")[0].isdigit()
        assert 0 < int(str(caught.value.context["expires_seconds"])) <= EXPIRY_SECONDS
    assert "lock" not in paths(store)
    with target(store).lock():
        assert "lock" in paths(store)


def test_of_two_that_make_the_lock_at_once_one_gets_it(flaky: Flaky) -> None:
    store = MemoryStore()
    other = target(store).lock()

    def meanwhile(call: int, real: Callable[[], Any]) -> Any:
        if call == 1:
            other.__enter__()
        return real()

    flaky.replace("put", meanwhile)
    with pytest.raises(RepositoryLocked):
        with target(store).lock():
            raise AssertionError("two hold the lock")
    other.__exit__(None, None, None)


class Late(ObjectTarget):
    """Its store says that it is so much later."""

    seconds = EXPIRY_SECONDS + 1

    def now(self) -> float:
        return super().now() + self.seconds


def test_the_lock_of_a_dead_holder_is_taken_over_once_it_expired() -> None:
    store = MemoryStore()
    dead = target(store, lock_clock=lambda: 0.0)
    gone = dead.lock()
    gone.__enter__()
    early = Late(URL, store=store)
    early.seconds = EXPIRY_SECONDS - 10
    with pytest.raises(RepositoryLocked):
        early.lock().__enter__()
    heir = Late(URL, store=store)
    with heir.lock():
        heir.write(MARK, b"heir")
        held = dead._held
        assert held is not None
        held.renew()
        with pytest.raises(RepositoryLocked, match="was lost"):
            dead.write(MARK, b"dead")
        dead.delete(MARK)
        with pytest.raises(RepositoryLocked, match="was lost"):
            dead.flush()
        gone.__exit__(None, None, None)
        assert "lock" in paths(store)
        assert heir.read(MARK, limit=9) == b"heir"
        heir.write(MARK, b"again")
    assert "lock" not in paths(store)


def test_two_heirs_of_one_lock(flaky: Flaky) -> None:
    store = MemoryStore()
    gone = target(store).lock()
    gone.__enter__()
    heir, rival = Late(URL, store=store), Late(URL, store=store)
    entered = rival.lock()

    def meanwhile(call: int, real: Callable[[], Any]) -> Any:
        if call == 2:  # after the object that says what time it is
            entered.__enter__()
        return real()

    flaky.replace("put", meanwhile)
    with pytest.raises(RepositoryLocked):
        heir.lock().__enter__()
    rival.write(MARK, b"rival")
    entered.__exit__(None, None, None)


def test_a_holder_without_renewal_stops_before_another_may_begin() -> None:
    now = [0.0]
    store = MemoryStore()
    mine = target(store, lock_clock=lambda: now[0])
    with mine.lock():
        now[0] = TRUST_SECONDS - 1
        mine.write(MARK, b"1")
        held = mine._held
        assert held is not None
        held.renew()
        now[0] = 2 * TRUST_SECONDS - 2
        mine.write(MARK, b"2")
        now[0] += 3
        with pytest.raises(RepositoryLocked, match="was lost"):
            mine.write(MARK, b"3")
        assert mine.read(MARK, limit=1) == b"2"
    assert "lock" in paths(store)  # nobody knows whose it is now, so it is left to expire


def test_a_lost_answer_is_not_taken_for_a_refusal(flaky: Flaky) -> None:
    def lost(call: int, real: Callable[[], Any]) -> Any:
        answer = real()
        return cut() if call % 2 else answer

    flaky.replace("put", lost)
    store = MemoryStore()
    mine = target(store)
    with mine.lock():
        held = mine._held
        assert held is not None
        held.renew()
        held.renew()
        mine.write(MARK, b"1")
    assert mine.read(MARK, limit=1) == b"1"
    assert "lock" not in paths(store)


def test_a_store_that_ignores_conditions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = obstore.put
    monkeypatch.setattr(obstore, "put", lambda store, path, data, **_: real(store, path, data))
    store = MemoryStore()
    with pytest.raises(InvalidInputError, match="ignores the condition"):
        target(store).lock().__enter__()
    assert "lock" not in paths(store)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 2000, b'{"count":1}', bytes(4096)])
def test_a_lock_that_cannot_be_read_is_a_lock(content: bytes) -> None:
    store = MemoryStore()
    obstore.put(store, "lock", content)
    with pytest.raises(RepositoryLocked) as caught:
        target(store).lock().__enter__()
    assert caught.value.context["holder"] == "unknown"
    with Late(URL, store=store).lock():
        pass
    assert "lock" not in paths(store)


def test_nothing_is_changed_without_the_lock() -> None:
    mine = target()
    with pytest.raises(InternalError):
        mine.write(MARK, b"1")
    mine.delete(MARK)
    with pytest.raises(InternalError):
        mine.flush()


def test_the_thread_of_the_lock_ends_with_it() -> None:
    with target().lock():
        assert any(thread.name == "holdfast-backup-lock" for thread in threading.enumerate())
    assert not any(thread.name == "holdfast-backup-lock" for thread in threading.enumerate())


# -- errors ---------------------------------------------------------------------------------------------------------


def _delete(mine: ObjectTarget) -> None:
    mine.delete(CHUNK)
    mine.flush()


CALLS: dict[str, Callable[[ObjectTarget], object]] = {
    "get": lambda mine: mine.read(CHUNK, limit=10),
    "head": lambda mine: mine.size(CHUNK),
    "list": lambda mine: list(mine.list(BACKUPS)),
    "put": lambda mine: mine.write(CHUNK, b"1"),
    "delete": _delete,
}


@pytest.fixture
def held() -> Iterator[ObjectTarget]:
    mine = target()
    with mine.lock():
        mine.write(CHUNK, b"1")
        yield mine


@pytest.mark.parametrize("name", CALLS)
def test_a_cut_connection_is_tried_again_and_then_told(name: str, held: ObjectTarget, flaky: Flaky) -> None:
    pauses: list[float] = []
    held._sleep = pauses.append
    with pytest.MonkeyPatch.context() as patch:
        broken = Flaky(patch)
        broken.replace(name, lambda call, real: cut() if call < 5 else real())
        CALLS[name](held)
        assert broken.calls == 5
    assert pauses == [0.2, 0.4, 0.8, 1.6]
    with pytest.MonkeyPatch.context() as patch:
        broken = Flaky(patch)
        broken.replace(name, cut)
        with pytest.raises(TargetUnavailable) as caught:
            CALLS[name](held)
        assert broken.calls == 5
    assert caught.value.retryable
    assert caught.value.context["attempts"] == 5
    assert "SECRET" not in str(caught.value.as_dict())


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PermissionDeniedError("no"), TargetDenied),
        (GenericError("403 Forbidden: <Code>AccessDenied</Code>"), TargetDenied),
        (FileNotFoundError("404: <Code>NoSuchBucket</Code>"), BackupNotFound),
        (GenericError("404: The specified container does not exist"), BackupNotFound),
    ],
)
def test_what_no_second_attempt_mends_is_told_at_once(
    name: str, error: Exception, kind: type[Exception], held: ObjectTarget
) -> None:
    def fail(*_: object) -> Any:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        broken = Flaky(patch)
        broken.replace(name, fail)
        with pytest.raises(kind):
            CALLS[name](held)
        assert broken.calls == 1


def test_a_body_that_is_cut_is_read_again(held: ObjectTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    held.write(CHUNK, bytes(5000))
    real = obstore.get
    calls = 0

    class Short:
        def __init__(self, answer: Any) -> None:
            self.meta = answer.meta

        def stream(self, **_: object) -> Iterator[bytes]:
            nonlocal calls
            calls += 1
            yield bytes(100)
            if calls == 1:
                cut()
            if calls > 2:
                yield bytes(4900)

    monkeypatch.setattr(obstore, "get", lambda *args: Short(real(*args)))
    assert held.read(CHUNK, limit=5000) == bytes(5000)
    assert calls == 3


def test_missing_and_long_objects(held: ObjectTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingFile):
        held.read(MARK, limit=10)
    assert held.size(MARK) is None
    assert held.size(CHUNK) == 1
    held.write(CHUNK, bytes(11))
    with pytest.raises(BackupDamaged, match="longer"):
        held.read(CHUNK, limit=10)
    assert held.read(CHUNK, limit=11) == bytes(11)
    real = obstore.get

    class Liar:
        def __init__(self, answer: Any) -> None:
            self.meta = {**answer.meta, "size": 1}
            self.stream = answer.stream

    monkeypatch.setattr(obstore, "get", lambda *args: Liar(real(*args)))
    with pytest.raises(BackupDamaged, match="longer"):
        held.read(CHUNK, limit=10)


def test_a_listing_has_only_names_of_objects_and_a_limit(held: ObjectTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    store = held._store
    for name in ("backups/x", "chunks/ab/cd", f"chunks/cd/ab{'0' * 62}", "other/y"):
        obstore.put(store, name, b"x")
    held.write(MARK, b"12")
    assert list(held.list(CHUNKS)) == [(CHUNK, 1)]
    assert list(held.list(BACKUPS)) == [(MARK, 2)]
    monkeypatch.setattr("holdfast.limits.OBJECTS_LISTED_MAX", 1)
    with pytest.raises(LimitExceeded):
        list(held.list(CHUNKS))


def test_many_deletions_go_together(held: ObjectTarget, flaky: Flaky) -> None:
    names = [f"{CHUNKS}ab/ab{number:062x}" for number in range(1200)]
    for name in names:
        held.write(name, b"1")
    flaky.replace("delete", lambda _, real: real())
    for name in names:
        held.delete(name)
    held.flush()
    assert flaky.calls == 12
    assert list(held.list(CHUNKS)) == []
    held.delete(CHUNK)
    held.write(CHUNK, b"2")
    held.flush()
    assert held.read(CHUNK, limit=1) == b"2"


def test_many_chunks_are_looked_up_by_shelf(held: ObjectTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{CHUNKS}{shelf:02x}/{shelf:02x}{number:062x}" for number in range(20) for shelf in range(40)]
    for name in names[::2]:
        held.write(name, b"12")
    with pytest.MonkeyPatch.context() as patch:
        heads, lists = Flaky(patch), Flaky(patch)
        heads.replace("head", lambda _, real: real())
        lists.replace("list", lambda _, real: real())
        assert [held.size(name) for name in names] == [2, None] * 400
        assert (heads.calls, lists.calls) == (300, 40)
        held.write(names[1], b"123")
        assert held.size(names[1]) == 3
        held.delete(names[0])
        held.flush()
        assert held.size(names[0]) is None
        assert heads.calls == 301
    monkeypatch.setattr("holdfast.limits.OBJECTS_KNOWN_MAX", -1)
    assert [held.size(name) for name in names[:400:2]] == [None, *[2] * 199]


def test_what_is_known_of_chunks_ends_with_the_lock() -> None:
    store = MemoryStore()
    mine, other = target(store), target(store)
    with mine.lock():
        mine._lookups = 1000
        assert mine.size(CHUNK) is None
    with other.lock():
        other.write(CHUNK, b"1")
    assert mine.size(CHUNK) == 1
    with mine.lock():
        mine._lookups = 1000
        assert mine.size(CHUNK) == 1


# -- places ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:///x",
        "S3://bucket",
        "http://bucket/x",
        "file:///some/where",
        "memory://x",
        "s3://user:SECRET@bucket/x",
        "s3://bucket/x?sig=SECRET",
        "s3://bucket/../x",
        "s3://bucket/a//b",
        "s3://bucket/a b",
        "s3://bu\x00cket",
        "s3://" + "b" * 300,
    ],
)
def test_a_url_that_is_no_place_is_refused(url: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        open_repository(url)
    assert "SECRET" not in str(caught.value.as_dict())


def test_a_place_without_what_it_needs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(InvalidInputError, match="cannot be used") as caught:
        open_repository("az://container/x")
    assert "AZURE_STORAGE_ACCOUNT_NAME" in str(caught.value.remedy)
    bounds: list[dict[str, Any]] = [{"timeout_seconds": 61}, {"timeout_seconds": 0}, {"attempts": 0}]
    for options in bounds:
        with pytest.raises(InvalidInputError):
            target(**options)


def test_a_machine_that_nobody_listens_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "SECRET",
        "AWS_REGION": "x",
    }.items():
        monkeypatch.setenv(name, value)
    pauses: list[float] = []
    with pytest.raises(TargetUnavailable) as caught:
        open_repository(ObjectTarget("s3://bucket/x", sleep=pauses.append), create=True)
    assert len(pauses) == 4
    assert "SECRET" not in str(caught.value.as_dict())


def test_backups_by_threads(tmp_path: Path) -> None:
    place = open_repository(target(), create=True)
    grown(tmp_path / "data", 10)
    form = backup(tmp_path / "data", place, workers=2)
    assert check(place, form.name, workers=2).ok
