"""Events as messages: delivered to a mail server and a webhook on loopback, never in the way of a commit."""

from __future__ import annotations

import email
import email.policy
import logging
import sys
import threading

import pytest

from holdfast.errors import DeviceError, InvalidInputError
from holdfast.events import Event, emit, make_event, on_event
from holdfast.notify import Notifier, mask
from tests.unit.notify_servers import mail_server, silent_server, web_hook
from tests.unit.store_support import chain_of, make, open_quick

pytest.importorskip("apprise")

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # of apprise's making

LONG = 60.0
SECRET = "hunter2secret"


def told(error: DeviceError | None = None, place: str = "/data", name: str = "upkeep_failed") -> Event:
    return make_event(name, logging.WARNING, "the disk failed", error=error or DeviceError("x"), place=place)


def test_a_mail_says_what_happened_where_and_what_to_do() -> None:
    with mail_server() as (port, heard):
        url = f"mailto://127.0.0.1:{port}?from=node@example.org&to=operator@example.org&mode=insecure"
        with Notifier([url]) as notifier:
            emit("upkeep_failed", logging.WARNING, "the disk failed", error=DeviceError("x"), place="/data")
            emit("opened", logging.INFO, "not of this level")
            assert notifier.wait(LONG)
            assert (notifier.sent, notifier.failed, notifier.held_back) == (1, 0, 0)
    (raw,) = heard
    message = email.message_from_string(raw, policy=email.policy.default)
    assert "operator@example.org" in str(message["To"])
    assert str(message["Subject"]).startswith("holdfast on ")
    assert str(message["Subject"]).endswith(": upkeep failed")
    body = message.get_body(("plain", "html"))
    assert body is not None
    text = body.get_content()
    for part in ("the disk failed", "place: /data", "code: device", f"next: {DeviceError.default_remedy[:20]}"):
        assert part in text


def test_a_hook_gets_the_events_of_a_store() -> None:
    with web_hook() as (port, heard):
        with Notifier([f"json://127.0.0.1:{port}/path"], names=["reorg"]) as notifier:
            blocks = chain_of(None, 3)
            with open_quick("memory:") as store:
                store.add_many(blocks)
                store.add(make(blocks[1], "other", work=5))
            assert notifier.wait(LONG)
    (document,) = heard
    assert document["type"] == "info"
    assert "reorganised above height 1" in str(document["message"])


def test_repeats_and_floods_are_held_back_and_the_next_message_says_so() -> None:
    now = [0.0]
    with web_hook() as (port, heard):
        with Notifier(
            [f"json://127.0.0.1:{port}"], repeat_seconds=60, per_hour_max=3, clock=lambda: now[0]
        ) as notifier:

            def happen(seconds: float, place: str) -> tuple[int, int]:
                now[0] = seconds
                emit("disk_low", logging.WARNING, "little room", place=place)
                assert notifier.wait(LONG)
                return notifier.sent, notifier.held_back

            assert happen(0, "a") == (1, 0)
            assert happen(59, "a") == (1, 1)
            assert happen(59, "b") == (2, 1)
            assert happen(60, "a") == (3, 1)
            assert happen(3000, "c") == (3, 2), "no more than three an hour"
            assert happen(3601, "c") == (4, 2)
    assert "1 more events were held back" in str(heard[1]["message"])
    assert "held back" not in str(heard[2]["message"])
    assert "1 more events were held back" in str(heard[3]["message"])


def test_a_server_that_never_answers_holds_up_no_commit() -> None:
    sent = threading.Event()
    with silent_server() as port:
        notifier = Notifier([f"json://127.0.0.1:{port}/?rto=0.2&cto=0.2"], names=["saved"], per_hour_max=2)
        with on_event(lambda _event: sent.set(), names=["notification_failed"]):
            with open_quick("memory:") as store:
                store.add_many(chain_of(None, 1))
                for _ in range(20):
                    assert store.tip is not None
                    store.add(make(store.tip))
                assert store.tip is not None
                assert store.tip.height == 20
            assert sent.wait(LONG)
            assert notifier.close(LONG)
        assert (notifier.sent, notifier.failed) == (0, 1), "the same name and place comes once"


def test_closing_does_not_wait_for_a_server() -> None:
    with silent_server() as port:
        notifier = Notifier([f"json://127.0.0.1:{port}/"])
        emit("disk_low", logging.WARNING, "x")
        assert not notifier.close(0)
    assert notifier.close(LONG)


@pytest.mark.parametrize("status", [404, 500])
def test_one_service_that_fails_does_not_keep_the_others_from_theirs(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with web_hook(status) as (bad, _), web_hook() as (good, heard):
        urls = [f"json://user:{SECRET}@127.0.0.1:{bad}/{SECRET}?+X-Token={SECRET}", f"json://127.0.0.1:{good}"]
        with Notifier(urls) as notifier:
            emit("disk_low", logging.WARNING, "little room")
            assert notifier.wait(LONG)
            assert (notifier.sent, notifier.failed) == (0, 1)
    assert len(heard) == 1
    (record,) = [each for each in caplog.records if vars(each).get("holdfast_event") == "notification_failed"]
    assert vars(record)["holdfast_fields"] == {"service": "json://... (1 of 2)", "about": "disk_low"}


@pytest.mark.parametrize(
    "url",
    [
        f"json://user:{SECRET}@127.0.0.1:1/{SECRET}?+X-Token={SECRET}",
        f"mailto://{SECRET}:{SECRET}@127.0.0.1:1?from=a@example.org&to=b@example.org&mode=insecure",
        f"slack://{SECRET}",
        f"nosuch://{SECRET}",
        SECRET,
        f"json://[{SECRET}",
    ],
    ids=["hook", "mail", "tokens", "service", "no url", "malformed"],
)
def test_no_secret_of_a_url_is_logged_printed_or_raised(
    url: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(1)  # also what libraries say at their least level
    said = ""
    try:
        with Notifier([url]) as notifier:
            emit("disk_low", logging.WARNING, "little room")
            assert notifier.wait(LONG)
            assert notifier.failed == 1
            said = repr(notifier) + str(vars(notifier)["_services"].keys())
    except InvalidInputError as error:
        said = repr(error) + str(error) + error.remedy + repr(error.__cause__) + repr(error.as_dict())
    out, err = capfd.readouterr()
    assert SECRET not in said + caplog.text + out + err


def test_logs_of_other_threads_go_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with silent_server() as port, Notifier([f"json://127.0.0.1:{port}/?rto=0.2&cto=0.2"]) as notifier:
        emit("disk_low", logging.WARNING, "x")
        logging.getLogger("apprise").warning("of this thread")
        assert notifier.wait(LONG)
    assert "of this thread" in caplog.text
    assert not logging.getLogger("apprise").filters


def test_what_is_masked() -> None:
    assert mask("SLACK://a/b/c") == "slack://..."
    assert mask("mailto://user:pw@host") == "mailto://..."
    assert mask("secret") == mask("://secret") == mask("") == "..."


@pytest.mark.parametrize(
    "arguments",
    [{"urls": []}, {"urls": "json://x"}, {"urls": [1]}, {"urls": ["json://x"] * 101}, {"names": ["x"]}, {"level": "x"}],
    ids=["none", "text", "number", "many", "name", "level"],
)
def test_bad_arguments_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        Notifier(**({"urls": ["json://127.0.0.1:1"]} | arguments))  # type: ignore[arg-type]


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(InvalidInputError, match="apprise") as caught:
        Notifier(["json://127.0.0.1:1"])
    assert "holdfast[notify]" in caught.value.remedy


def test_a_failed_message_is_no_reason_for_another() -> None:
    heard: list[str] = []
    with on_event(lambda event: heard.append(event.name), names=["notification_failed"]) as subscription:
        with Notifier(["json://127.0.0.1:1/"]) as notifier:
            emit("disk_low", logging.WARNING, "x")
            assert notifier.wait(LONG)
            assert notifier.wait(LONG)
            assert notifier.failed == 1
        assert subscription.wait(LONG)
    assert heard == ["notification_failed"]
