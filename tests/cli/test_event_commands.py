"""``events list`` and ``notify test``."""

from __future__ import annotations

import pytest

from holdfast.events import EVENTS
from tests.cli.cli_tools import done, holdfast
from tests.unit.notify_servers import web_hook

SECRET = "hunter2secret"

of_apprise = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")


def test_every_event_is_listed() -> None:
    rows = done("events", "list", "--json").rows
    assert [row["name"] for row in rows] == list(EVENTS)
    assert rows[0] == {
        "name": "opened",
        "level": "info",
        "meaning": "A store is open.",
        "fields": list(EVENTS["opened"].fields),
    }
    text = done("events", "list").out
    assert all(name in text for name in EVENTS)


@of_apprise
def test_a_test_message_is_sent_and_the_url_is_not_shown() -> None:
    pytest.importorskip("apprise")
    with web_hook() as (port, heard):
        answer = done("notify", "test", "--to", f"json://user:{SECRET}@127.0.0.1:{port}/{SECRET}", "--json")
    assert answer.rows == [{"service": "json://...", "result": "sent"}]
    assert SECRET not in answer.out + answer.err
    assert "holdfast notify test" in str(heard[0]["message"])


@of_apprise
def test_a_service_that_fails_is_named_and_the_others_get_theirs() -> None:
    pytest.importorskip("apprise")
    with web_hook(500) as (bad, _), web_hook() as (good, heard):
        words = ["--to", f"json://127.0.0.1:{bad}/{SECRET}", "--to", f"json://127.0.0.1:{good}"]
        answer = holdfast("notify", "test", *words, "--json")
    assert answer.code == 17
    assert [row["result"] for row in answer.rows] == ["failed", "sent"]
    assert answer.error["code"] == "remote"
    assert SECRET not in answer.out + answer.err
    assert len(heard) == 1


@of_apprise
@pytest.mark.parametrize("url", [f"nosuch://{SECRET}", SECRET], ids=["service", "no url"])
def test_a_bad_url_is_bad_input_and_not_shown(url: str) -> None:
    pytest.importorskip("apprise")
    answer = holdfast("notify", "test", "--to", url)
    assert answer.code == 2
    assert SECRET not in answer.out + answer.err


@of_apprise
def test_urls_are_read_from_stdin() -> None:
    pytest.importorskip("apprise")
    with web_hook() as (port, heard):
        answer = holdfast("notify", "test", "--to", "-", "--json", stdin=f"\njson://127.0.0.1:{port}\n")
        assert answer.code == 0
        assert holdfast("notify", "test", "--to", "-", stdin="\n").code == 2
        assert holdfast("notify", "test", "--to", "-", stdin="x" * 20_000).code == 2
    assert len(heard) == 1
