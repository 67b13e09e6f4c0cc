"""The stream of events: what is told, in which order, and that no callback can hurt a commit."""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path

import pytest

from holdfast._fs import RealFile
from holdfast.errors import CorruptionError, DeviceError, InvalidInputError, PoisonedError
from holdfast.events import (
    EVENTS,
    LOGGER_NAME,
    WAITING_EVENTS_MAX,
    Event,
    corruption_found,
    emit,
    listening,
    on_event,
    store_opened,
)
from holdfast.store.news import News
from holdfast.store.writer import Writer
from holdfast.types import RecoveryStats
from tests.unit.store_support import chain_of, filled, hash_of, make, open_quick

LONG = 30.0
"""Seconds that are never waited for unless something is broken."""


class Ear:
    """A callback that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.heard.append(event)

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.heard]


def test_a_callback_hears_of_what_happens_in_order(tmp_path: Path) -> None:
    ear = Ear()
    url = f"sqlite:{tmp_path / 'store'}"
    with on_event(ear, level="debug") as subscription:
        blocks = chain_of(None, 3)
        with open_quick(url) as store:
            store.add_many(blocks)
            store.finalize(1)
            store.add(make(blocks[1], "other", work=5))
        assert subscription.wait(LONG)
    assert ear.names == ["opened", "saved", "finalized", "saved", "reorg"]
    opened, run, finalized, side, reorg = ear.heard
    assert (run.fields["blocks"], run.fields["height"], run.fields["hash"]) == (3, 2, blocks[2].hash.hex())
    assert (finalized.fields["height"], side.fields["height"]) == (1, 2)
    assert reorg.fields["fork"] == blocks[1].hash.hex()
    assert (reorg.fields["orphaned"], reorg.fields["adopted"], reorg.fields["height"]) == (1, 1, 2)
    assert {event.place for event in ear.heard} == {url}
    assert [event.time_us for event in ear.heard] == sorted(event.time_us for event in ear.heard)
    for event in ear.heard:
        assert event.level == EVENTS[event.name].level
        assert set(event.fields) <= set(EVENTS[event.name].fields) or event is opened
        assert json.loads(json.dumps(event.as_dict()))["event"] == event.name
    assert (subscription.dropped, subscription.failures) == (0, 0)


def test_only_those_who_ask_hear_of_each_commit() -> None:
    ears = {"plain": Ear(), "name": Ear(), "level": Ear(), "warnings": Ear()}
    subscriptions = [
        on_event(ears["plain"]),
        on_event(ears["name"], names=["saved"]),
        on_event(ears["level"], level=logging.DEBUG),
        on_event(ears["warnings"], names=["saved", "opened"], level="warning"),
    ]
    with open_quick("memory:") as store:
        store.add(make(None))
    for each in subscriptions:
        assert each.close(LONG)
    assert {name: ear.names for name, ear in ears.items()} == {
        "plain": ["opened"],
        "name": ["saved"],
        "level": ["opened", "saved"],
        "warnings": [],
    }
    assert not listening("saved", logging.DEBUG)
    assert not listening("opened", logging.INFO)


@pytest.mark.parametrize("durability", ["sync", "buffered"])
def test_a_commit_is_told_when_it_is_as_durable_as_promised(tmp_path: Path, durability: str) -> None:
    ear = Ear()
    with on_event(ear, names=["saved"]) as subscription:
        with open_quick(f"sqlite:{tmp_path}", durability=durability) as store:
            ticket = store.commit(store.draft(), hash=hash_of("a"), wait=False)
            assert subscription.wait(LONG)
            assert len(ear.heard) == (durability == "buffered")
            ticket.wait()
            assert subscription.wait(LONG)
            assert len(ear.heard) == 1
            store.commit(store.draft(), hash=hash_of("b"), wait=False)
        assert subscription.wait(LONG)
        assert [event.fields["height"] for event in ear.heard] == [0, 1], "closing makes it durable, and tells it"


def test_commits_of_many_threads_are_told_in_the_order_of_their_frames() -> None:
    ear = Ear()
    with on_event(ear, names=["saved"]) as subscription:
        with open_quick("memory:") as store:
            store.add(make(None))
            root = store.tip

            def work(name: str) -> None:
                for number in range(50):
                    store.add(make(root, (name, number)))

            threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert subscription.wait(LONG)
    seqs = [int(str(event.fields["seq"])) for event in ear.heard]
    assert len(seqs) == 201
    assert seqs == sorted(set(seqs))


def test_nothing_is_left_behind_by_a_thread_that_is_about_to_stop_telling() -> None:
    class Late(News):
        """Somebody else has something to tell just when this thread has found nothing more."""

        def _next(self, durable: int) -> Event | None:
            found = super()._next(durable)
            if found is None and not late:
                late.append(1)
                self.note(2, (), None, None, 7)
                self.tell(lambda: 2)  # does nothing: this thread is telling
            return found

    late: list[int] = []
    ear = Ear()
    with on_event(ear, names=["finalized"]) as subscription:
        news = Late("x")
        news.note(1, (), None, None, 6)
        news.tell(lambda: 2)
        assert subscription.wait(LONG)
    assert [event.fields["height"] for event in ear.heard] == [6, 7]


def test_a_callback_may_read_and_commit() -> None:
    seen: list[int] = []
    with open_quick("memory:") as store:
        store.add(make(None))

        def callback(event: Event) -> None:
            tip = store.tip
            assert tip is not None
            seen.append(tip.height)
            if tip.height < 5:  # or it would go on for ever: each commit of a callback is told to it
                store.add(make(tip))
                with store.snapshot() as snapshot:
                    assert snapshot.tip is not None

        with on_event(callback, names=["saved"]) as subscription:
            store.add(make(store.tip))
            while store.tip is not None and store.tip.height < 5:
                assert subscription.wait(LONG)
            assert subscription.wait(LONG)
        assert subscription.failures == 0
    assert seen == [1, 2, 3, 4, 5]


def test_a_callback_that_raises_hurts_nobody_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    def broken(event: Event) -> None:
        calls.append(event.name)
        raise SystemExit("get out")

    other = Ear()
    with on_event(broken, names=["saved"]) as subscription, on_event(other, names=["saved", "subscriber_failed"]):
        with open_quick("memory:") as store:
            blocks = chain_of(None, 3)
            for block in blocks:
                store.add(block)
            assert store.tip is not None
            assert store.tip.hash == blocks[-1].hash
        assert subscription.wait(LONG)
    assert calls == ["saved"] * 3
    assert subscription.failures == 3
    assert sorted(other.names) == ["saved"] * 3 + ["subscriber_failed"]
    (record,) = [each for each in caplog.records if vars(each).get("holdfast_event") == "subscriber_failed"]
    assert "SystemExit: get out" in record.getMessage()


def test_an_error_that_cannot_be_shown_ends_no_subscription() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    calls: list[str] = []

    def broken(event: Event) -> None:
        calls.append(event.name)
        raise Mute

    other = Ear()
    with on_event(broken, names=["saved"]) as subscription, on_event(other, names=["subscriber_failed"]) as told:
        with open_quick("memory:") as store:
            for block in chain_of(None, 2):
                store.add(block)
        assert subscription.wait(LONG)
        assert told.wait(LONG)
    assert calls == ["saved"] * 2
    assert other.names == ["subscriber_failed"]


@pytest.mark.parametrize("said", [True, False])
def test_a_logging_handler_that_raises_hurts_nobody(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    said: bool,
) -> None:
    class Careless(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("no network")

    monkeypatch.setattr(logging, "raiseExceptions", said)
    caplog.set_level(logging.INFO, "holdfast")
    logger, handler = logging.getLogger("holdfast"), Careless()
    logger.addHandler(handler)
    try:
        with open_quick(tmp_path) as store:
            block = make(None)
            store.add(block)
        with open_quick(tmp_path) as store:
            assert store.tip is not None
            assert store.tip.hash == block.hash
    finally:
        logger.removeHandler(handler)
    assert ("no network" in capsys.readouterr().err) is said


def test_a_callback_that_hangs_holds_up_no_commit_and_what_is_too_much_is_counted() -> None:
    entered, go_on, heard = threading.Event(), threading.Event(), Ear()

    def slow(event: Event) -> None:
        entered.set()
        go_on.wait(LONG)
        heard(event)

    subscription = on_event(slow, names=["saved", "opened"])
    with open_quick("memory:") as store:
        assert entered.wait(LONG)
        store.add(make(None))
        assert not subscription.wait(0)
        for _ in range(WAITING_EVENTS_MAX + 9):
            emit("saved", logging.DEBUG, "x")
        assert subscription.dropped == 10
        go_on.set()
        assert subscription.wait(LONG)
    assert subscription.close(LONG)
    assert len(heard.heard) == 1 + WAITING_EVENTS_MAX
    assert heard.heard[1].fields["height"] == 0


def test_closing_tells_what_waits_or_says_that_it_did_not() -> None:
    go_on, entered, heard = threading.Event(), threading.Event(), Ear()

    def slow(event: Event) -> None:
        entered.set()
        go_on.wait(LONG)
        heard(event)

    subscription = on_event(slow)
    for _ in range(3):
        emit("opened", logging.INFO, "x")
    assert entered.wait(LONG)
    assert not subscription.close(0)
    assert subscription.dropped == 2
    emit("opened", logging.INFO, "not told any more")
    go_on.set()
    assert subscription.close(LONG)
    assert len(heard.heard) == 1


def test_a_callback_may_close_its_subscription() -> None:
    heard = Ear()

    def once(event: Event) -> None:
        heard(event)
        assert subscription.close()

    subscription = on_event(once)
    for _ in range(3):
        emit("opened", logging.INFO, "x")
    assert subscription.close(LONG)
    assert len(heard.heard) == 1


def test_a_reading_handler_of_logging_meets_no_lock() -> None:
    """The record of a reorg comes from a thread that holds none of the writer's locks, as callbacks' events do."""
    free: list[bool] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if vars(record)["holdfast_event"] in ("saved", "reorg"):
                got: list[bool] = []
                thread = threading.Thread(target=lambda: got.append(self.look()))
                thread.start()
                thread.join(LONG)
                free.extend(got)

        def look(self) -> bool:
            with store.snapshot():
                store.finalize(0)
            return True

    logger, handler = logging.getLogger(LOGGER_NAME), Handler()
    with open_quick("memory:") as store:
        blocks = chain_of(None, 3)
        store.add_many(blocks)
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        try:
            store.add(make(blocks[1], "other", work=5))
        finally:
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)
    assert free == [True, True]


def test_a_failed_sync_is_told_once_and_what_it_lost_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ear = Ear()
    blocks = filled(f"sqlite:{tmp_path}", 3)
    store = open_quick(tmp_path)

    def sync(file: RealFile) -> None:
        raise DeviceError("the device failed", path=file.path)

    with on_event(ear, names=["saved", "poisoned"]) as subscription:
        store.add(make(blocks[-1], "kept"))
        assert store.tip is not None
        with monkeypatch.context() as patch:
            patch.setattr(RealFile, "sync", sync)
            with pytest.raises(DeviceError):
                store.add(make(store.tip, "lost"))
        with pytest.raises(PoisonedError):
            store.add(make(store.tip, "refused"))
        store.close()
        assert subscription.wait(LONG)
    assert ear.names == ["saved", "poisoned"]
    assert ear.heard[0].fields["height"] == 3
    told = ear.heard[1]
    assert (told.code, told.place, told.remedy) == ("poisoned", str(tmp_path), PoisonedError.default_remedy)
    assert "the device failed" in told.message


def test_what_interrupts_a_commit_between_journal_and_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ear = Ear()

    def broken(*_args: object) -> None:
        raise MemoryError

    with on_event(ear, names=["saved", "poisoned"]) as subscription:
        with open_quick("memory:") as store:
            first = make(None)
            with monkeypatch.context() as patch:
                patch.setattr(Writer, "_published", broken)
                with pytest.raises(MemoryError):
                    store.add(first)
            with pytest.raises(PoisonedError):
                store.add(make(first))
        assert subscription.wait(LONG)
    assert ear.names == ["poisoned"]


def test_damage_is_told_once_for_each_place() -> None:
    ear = Ear()
    with on_event(ear, names=["corruption_found"]) as subscription:
        for path in ("a", "b", "a", "a"):
            corruption_found(CorruptionError("bad bytes", path=path, offset=7))
        assert subscription.wait(LONG)
        assert [event.place for event in ear.heard] == ["a", "b"]
        first = ear.heard[0]
        assert (first.code, first.remedy) == ("corruption", CorruptionError.default_remedy)
        assert first.fields["context"] == {"path": "a", "offset": 7}
        store_opened(RecoveryStats(), url="x", engine="sqlite", read_only=False)
        corruption_found(CorruptionError("bad bytes", path="a"))
        assert subscription.wait(LONG)
        assert len(ear.heard) == 3


@pytest.mark.parametrize(
    "arguments",
    [{"names": ["no_such"]}, {"names": "saved"}, {"level": "loud"}, {"level": 1.5}],
    ids=["name", "one text", "word", "number"],
)
def test_bad_arguments_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        on_event(Ear(), **arguments)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        on_event(None)  # type: ignore[arg-type]


def test_a_child_after_fork_has_no_subscriptions() -> None:
    ear = Ear()
    with on_event(ear) as subscription:
        child = os.fork()
        if child == 0:
            fine = not listening("opened", logging.INFO)
            emit("opened", logging.INFO, "x")
            subscription.close()
            os._exit(0 if fine and not ear.heard else 1)
        assert os.waitpid(child, 0)[1] == 0
        emit("opened", logging.INFO, "x")
        assert subscription.wait(LONG)
        assert ear.names == ["opened"]
