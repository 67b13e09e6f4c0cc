"""``holdfast events list`` and ``holdfast notify test``: what can happen in a store, and who would hear of it."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from ..errors import InvalidInputError, RemoteError
from .options import Json
from .output import Output

__all__ = ["register"]

_URL_BYTES_MAX = 16 * 1024


def register(app: typer.Typer) -> None:
    """The commands are part of ``app``."""
    events = typer.Typer(no_args_is_help=True, help="What can happen in a store, as programs hear of it.")
    events.command("list")(show)
    app.add_typer(events, name="events")
    notify = typer.Typer(no_args_is_help=True, help="Events as messages: e-mail, chat, SMS, webhooks.")
    notify.command("test")(send_test)
    app.add_typer(notify, name="notify")


def show(as_json: Json = False) -> None:
    """List every event: its name, its level and what it means. With --json also the fields."""
    from ..events import EVENTS

    rows: list[dict[str, object]] = [
        {
            "name": name,
            "level": logging.getLevelName(info.level).lower(),
            "meaning": info.meaning,
            "fields": list(info.fields),
        }
        for name, info in EVENTS.items()
    ]
    Output(as_json=as_json).rows(["name", "level", "meaning"], rows)


def send_test(
    to: Annotated[
        list[str],
        typer.Option(
            "--to", metavar="URL", help="A service, as a URL of apprise; may be repeated. -: read from stdin."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Send one message to each service, and say which took it. Needs the extra 'notify'; URLs are never shown.

    Other users of a machine can see the arguments of a command: a URL that holds a secret is better read from stdin.
    """
    from ..events import make_event
    from ..notify import Notifier

    urls = [url for each in to for url in (_from_stdin() if each == "-" else [each])]
    out = Output(as_json=as_json)
    with Notifier(urls, names=()) as notifier:
        taken = notifier.send(make_event("opened", logging.INFO, "This is a test: 'holdfast notify test' sent it."))
    rows: list[dict[str, object]] = [
        {"service": label, "result": "sent" if sent else "failed"} for label, sent in taken.items()
    ]
    out.rows(["service", "result"], rows)
    failed = [label for label, sent in taken.items() if not sent]
    if failed:
        raise RemoteError(
            f"the message could not be delivered to {', '.join(failed)}",
            remedy="check the URL, that the server is up, and that this machine may connect to it",
        )


def _from_stdin() -> list[str]:
    """One URL a line; empty lines are left out."""
    text = sys.stdin.read(_URL_BYTES_MAX + 1)
    if len(text) > _URL_BYTES_MAX:
        raise InvalidInputError("that is too much for a list of URLs", limit=_URL_BYTES_MAX)
    return [line.strip() for line in text.splitlines() if line.strip()]
