"""Object stores that lie, hang or break the library, and what error messages may say of them."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from holdfast import Settings
from holdfast.backup import ObjectTarget, Schedule, ScheduledBackups, object_listing, open_repository
from holdfast.backup.object_errors import sentence
from holdfast.backup.object_lock import EXPIRY_SECONDS, TRUST_SECONDS, ObjectLock
from holdfast.backup.runs import BACKOFF_SECONDS_MAX
from holdfast.backup.schedule_state import ScheduleState
from holdfast.backup.target import BACKUPS, CHUNKS
from holdfast.errors import InternalError, InvalidInputError, LimitExceeded, RepositoryLocked, TargetUnavailable
from tests.unit.backup_support import grown
from tests.unit.test_backup_objects import CALLS, MARK, Late, held, target

__all__ = ["held"]


class PanicException(BaseException):
    """As pyo3 raises it: of this name, and no ``Exception``."""


def panic(*_: object, **__: object) -> Any:
    raise PanicException("called unwrap on SECRET")


# -- panics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
def test_a_panic_of_the_library_is_an_error_without_its_text(
    name: str, held: ObjectTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(obstore, name, panic)
        with pytest.raises(InternalError, match="broke down") as caught:
            CALLS[name](held)
    assert "SECRET" not in str(caught.value.as_dict())


def test_a_panic_at_opening_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("obstore.store.from_url", panic)
    with pytest.raises(InternalError, match="broke down") as caught:
        open_repository("s3://bucket/x")
    assert "SECRET" not in str(caught.value.as_dict())


@pytest.mark.parametrize("place", ["open", "lock", "clock"])
def test_a_panic_anywhere_ends_no_schedule(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grown(tmp_path / "data", 2)
    (tmp_path / "data" / "schedule.json").write_bytes(ScheduleState().encoded())
    backups = ScheduledBackups(tmp_path / "data", Schedule("hourly"), panic, settings=Settings(), workers=0)
    if place == "lock":
        monkeypatch.setattr(backups._fs, "lock", panic)
    if place == "clock":
        monkeypatch.setattr(backups, "_load", panic)
    assert backups.run_due() is None
    assert isinstance(backups.failure, InternalError)
    assert "SECRET" not in str(backups.failure.as_dict())
    left = backups.seconds_left()
    assert left is None or left <= BACKOFF_SECONDS_MAX


# -- secrets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:SEC/RET@bucket/p",
        "s3://user:SECRET@bucket",
        "s3://bucket/p#SECRET",
        "s3://k:SEC@RET@b",
        "az://c/p;sig=SECRET",
        "s3://AKIA:SEC?RET@bucket",
        "https://SECRET/x",
        "https://user:SECRET@host/x",
        "SECRET@x://y",
        "s3://bucket/%53SECRET",
    ],
)
def test_a_url_that_is_refused_is_shown_without_what_may_be_a_secret(url: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        open_repository(url)
    shown = str(caught.value.as_dict())
    assert "SEC" not in shown
    assert "RET" not in shown


def test_a_url_without_secrets_is_shown() -> None:
    with pytest.raises(InvalidInputError) as caught:
        open_repository("S3://bucket/some where")
    assert caught.value.context["found"] == "S3://bucket/some where"


@pytest.mark.parametrize(
    ("url", "name", "value"),
    [
        ("s3://bucket/x", "AWS_ACCESS_KEY_ID", "SECRET\n"),
        ("s3://bucket/x", "AWS_SESSION_TOKEN", "SECRET\x7f"),
        ("s3://bucket/x", "AWS_ENDPOINT", "http://user:SECRET@127.0.0.1:1"),
        ("s3://bucket/x", "AWS_ENDPOINT_URL", "ht tp://user:SEC/RET@127.0.0.1:1"),
        ("az://bucket/x", "AZURE_STORAGE_ENDPOINT", "http://user:SECRET@127.0.0.1:1"),
        ("az://bucket/x", "AZURE_STORAGE_ACCOUNT_KEY", "SE!CRET"),
        ("gs://bucket/x", "GOOGLE_SERVICE_ACCOUNT_KEY", "SECRET"),
        ("gs://bucket/x", "GOOGLE_SERVICE_ACCOUNT_KEY", '{\n"private_key":"SECRET"'),
    ],
)
def test_an_environment_that_does_not_do_is_told_without_its_values(
    url: str, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInputError) as caught:
        open_repository(url)
    assert "SEC" not in str(caught.value.as_dict())
    assert "CRET" not in str(caught.value.as_dict())
    assert caught.value.__context__ is None


def test_words_of_the_library_are_repeated_without_secrets() -> None:
    text = "error sending to http://user:SEC RET@host/p?sig=SECRET and https://k:SECRET@h/x Debug source: SECRET"
    assert sentence(GenericError(text.replace("SEC RET", "SECRET"))) == (
        "error sending to http://...@host/p?... and https://...@h/x"
    )


# -- listings -------------------------------------------------------------------------------------------------------


class Pages:
    """A listing of these pages; after them nothing comes, for ever, unless it ``ends``."""

    def __init__(self, *pages: list[dict[str, Any]], begun: threading.Event | None = None, ends: bool = False) -> None:
        self._pages = list(pages)
        self._ends = ends
        self._begun = begun

    def __aiter__(self) -> Pages:
        return self

    async def __anext__(self) -> list[dict[str, Any]]:
        if self._pages:
            return self._pages.pop(0)
        if self._ends:
            raise StopAsyncIteration
        if self._begun is not None:
            self._begun.set()
        await asyncio.Event().wait()
        raise AssertionError


def page(*numbers: int) -> list[dict[str, Any]]:
    return [{"path": f"{CHUNKS}ab/ab{number:062x}", "size": 1} for number in numbers]


def listing_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "holdfast-backup-listing"]


def test_a_listing_without_an_end_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obstore, "list", lambda *_, **__: Pages(page(1)))
    with pytest.raises(TargetUnavailable, match="come to the end"):
        list(target(MemoryStore(), timeout_seconds=0.01).list(BACKUPS))
    assert listing_threads() == []


def test_a_signal_ends_a_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a signal raises while a listing is waited for; a real one may be lost in a collection of garbage."""
    begun = threading.Event()

    def interrupted(_: threading.Thread) -> None:
        assert begun.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(object_listing, "_wait", interrupted)
    monkeypatch.setattr(obstore, "list", lambda *_, **__: Pages(begun=begun))
    before = threading.enumerate()
    with pytest.raises(KeyboardInterrupt):
        list(target(MemoryStore()).list(BACKUPS))
    for thread in set(threading.enumerate()) - set(before):
        thread.join(30)
    assert listing_threads() == []


def test_a_listing_that_repeats_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for second in (page(1, 2), page(2, 3), page(0)):
        monkeypatch.setattr(obstore, "list", lambda *_, more=second, **__: Pages(page(1, 2), [], more, ends=True))
        with pytest.raises(TargetUnavailable, match="repeats"):
            list(target(MemoryStore()).list(BACKUPS))


def test_a_listing_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.limits.OBJECTS_SHELF_MAX", 3)
    monkeypatch.setattr(obstore, "list", lambda *_, **__: Pages(page(1, 2), page(3, 4), ends=True))
    with pytest.raises(LimitExceeded):
        list(target(MemoryStore()).list(BACKUPS))


# -- the lock -------------------------------------------------------------------------------------------------------


def test_a_lock_that_is_given_back_late_is_left_to_its_next_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request that deletes it is not made again once another may have taken it over."""
    now = [0.0]
    store = MemoryStore()
    mine = ObjectTarget("s3://bucket/x", store=store, lock_clock=lambda: now[0], sleep=lambda _: None)
    first = ObjectLock(mine, clock=lambda: now[0])
    first.acquire()
    heirs: list[ObjectLock] = []
    real = obstore.delete

    def delete(store: Any, names: Any) -> Any:
        now[0] += 60
        if now[0] >= EXPIRY_SECONDS and not heirs:
            heirs.append(ObjectLock(Late("s3://bucket/x", store=store), clock=lambda: now[0]))
            heirs[0].acquire()
        if now[0] < EXPIRY_SECONDS + 60:
            raise GenericError("timeout")
        return real(store, names)

    now[0] = TRUST_SECONDS - 1
    with monkeypatch.context() as patch:
        patch.setattr(obstore, "delete", delete)
        first.release()
    assert now[0] == TRUST_SECONDS + 59
    assert mine.read_lock(4096) is not None
    for heir in heirs:
        heir.release()


def test_names_that_go_one_by_one_do_not_go_on_without_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    mine = ObjectTarget("gs://bucket/x", store=MemoryStore(), lock_clock=lambda: now[0])
    done: list[float] = []

    def delete(store: Any, names: Any) -> None:
        if len(names) > 1:
            raise FileNotFoundError("404")
        if names != ["lock"]:
            now[0] += 25
            done.append(now[0])

    monkeypatch.setattr(obstore, "delete", delete)

    def work() -> None:
        with mine.lock():
            for number in range(10):
                mine.delete(f"{CHUNKS}ab/ab{number:062x}")

    with pytest.raises(RepositoryLocked, match="was lost"):
        work()
    assert len(done) == 8
    assert done[-1] - 25 <= TRUST_SECONDS


def test_elsewhere_few_names_go_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    monkeypatch.setattr(obstore, "delete", lambda _, names: counts.append(len(names)))
    for url, most in (("s3://bucket/x", 100), ("gs://bucket/x", 10), ("az://bucket/x", 10)):
        counts.clear()
        mine = ObjectTarget(url, store=MemoryStore())
        with mine.lock():
            for number in range(250):
                mine.delete(f"{CHUNKS}ab/ab{number:062x}")
            mine.delete(MARK)
        assert max(counts) == most
        assert sum(counts) == 252, "and the lock"
