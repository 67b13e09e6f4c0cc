"""``holdfast backup schedule``: when backups are made, and making them.

Invariants:
    * Nothing is made without ``--run`` or ``--once``; both need no lock of the store, so its node goes on.
    * What ``--print`` writes names no secret.
"""

from __future__ import annotations

import json
import os
import pwd
import shlex
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import InvalidInputError, StoreNotFound
from .backup_options import (
    KeyFile,
    PassphraseFile,
    RateLimit,
    RepositoryPath,
    key_of,
    place_of,
    time_text_us,
    warn_same_device,
)
from .options import Config, DataDir, Json
from .output import Output, clean, flush_output
from .progress import INTERRUPTED, StopSignals

if TYPE_CHECKING:
    from ..backup import BackupRepository, RunReport, Schedule, ScheduledBackups

__all__ = ["schedule"]

_NEXT = 3
_STOP_SECONDS = 0.5


def schedule(
    data_dir: DataDir,
    run: Annotated[bool, typer.Option("--run", help="Make what is due, until stopped; the node goes on.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Make what is due now, if anything, and end.")] = False,
    show_unit: Annotated[
        Literal["systemd", "cron"] | None,
        typer.Option("--print", help="A service for systemd, or a line for cron, that makes the backups."),
    ] = None,
    when: Annotated[
        str | None,
        typer.Option("--schedule", metavar="TEXT", help="Such as 'daily 03:00' in UTC; else 'backup_schedule'."),
    ] = None,
    repository: RepositoryPath = None,
    rate_limit: RateLimit = None,
    key_file: KeyFile = None,
    passphrase_file: PassphraseFile = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Make backups by a schedule: each is verified, restored as a test beside the store, and old ones are pruned.

    Without --run, --once and --print it shows when the next ones are due. A missed run is made up once.
    """
    from ..backup import Schedule, ScheduledBackups, open_repository
    from .session import find_identity, load

    out = Output(as_json=as_json)
    if sum((run, once, show_unit is not None)) > 1:
        raise InvalidInputError("--run, --once and --print exclude each other")
    settings = load(data_dir, config)
    if find_identity(data_dir) is None:
        raise StoreNotFound("there is no store here", path=data_dir)
    text = settings.backup_schedule if when is None else when
    if not text:
        raise InvalidInputError(
            "there is no schedule", remedy="set 'backup_schedule', such as 'daily 03:00', or give --schedule"
        )
    chosen = Schedule(text)
    place = place_of(repository, data_dir, config)
    if show_unit is not None:
        words = _command(data_dir, when, repository, rate_limit, key_file, passphrase_file, config)
        out.text((_systemd if show_unit == "systemd" else _cron)(words, data_dir, chosen.text))
        return

    if not once:
        warn_same_device(place, data_dir, out)

    def opened(create: bool) -> BackupRepository:
        return open_repository(place, key=key_of(key_file, passphrase_file, data_dir, config), create=create)

    with StopSignals() as stop:
        backups = ScheduledBackups(
            data_dir, chosen, opened, settings=settings, stopped=stop, bytes_per_second=rate_limit
        )
        if run:
            _follow(backups, stop, out)
        elif once:
            _once(backups, stop, out)
        else:
            out.record(_facts(backups, chosen, place, data_dir))


def _facts(backups: ScheduledBackups, chosen: Schedule, place: str, data_dir: Path) -> dict[str, object]:
    from ..backup.schedule_state import load_schedule_state

    state = load_schedule_state(data_dir)
    upcoming: list[str] = []
    moment = backups.next_us()
    while moment is not None and len(upcoming) < _NEXT:
        upcoming.append(time_text_us(moment))
        moment = chosen.next(moment)
    return {
        "schedule": chosen.text,
        "repository": place,
        "next": upcoming,
        "done_up_to": None if state is None else time_text_us(state.handled_us),
        "failures": 0 if state is None else state.failures,
        "unfinished": None if state is None or not state.started_us else time_text_us(state.started_us),
    }


def _told(report: RunReport, out: Output) -> None:
    if out.as_json:
        out.text(json.dumps(report.as_dict()) + "\n")
        flush_output()
        return
    tested = {"passed": "restored as a test", "skipped": "NOT restored as a test", "off": "not restored as a test"}
    out.text(f"{report.name}  made, verified, {tested[report.tested]}; {len(report.removed)} removed\n")
    flush_output()


def _once(backups: ScheduledBackups, stop: StopSignals, out: Output) -> None:
    report = backups.run_due()
    if report is not None:
        _told(report, out)
    elif backups.failure is not None:
        raise backups.failure
    elif stop():
        out.note("stopped. next: run the same command again, it goes on from there")
        raise typer.Exit(INTERRUPTED)
    elif out.as_json:
        out.record({"due": False})
    else:
        out.text("nothing is due\n")


def _follow(backups: ScheduledBackups, stop: StopSignals, out: Output) -> None:
    """Runs, one after the other, until a signal. A failure is a note: it is tried again."""
    from ..backup.scheduler import follow_schedule

    def told(report: RunReport | None) -> None:
        if report is not None:
            _told(report, out)
        elif backups.failure is not None and backups.failure not in known:
            known[:] = [backups.failure]
            out.note(clean(f"failed, and tried again later: {backups.failure}"))

    known: list[BaseException] = []
    follow_schedule(backups, _Signalled(stop), told=told)
    out.note("stopped. next: run the same command again, it goes on from there")


class _Signalled(threading.Event):
    """Set once a signal came, which wakes nobody: so it is looked for now and then."""

    def __init__(self, stop: StopSignals) -> None:
        super().__init__()
        self._stop = stop

    def is_set(self) -> bool:
        return self._stop()

    def wait(self, timeout: float | None = None) -> bool:
        end = time.monotonic() + (timeout or 0)
        while not self._stop() and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _STOP_SECONDS))
        return self._stop()


# -- units ----------------------------------------------------------------------------------------------------------


def _command(
    data_dir: Path,
    when: str | None,
    repository: str | None,
    rate_limit: int | None,
    key_file: Path | None,
    passphrase_file: Path | None,
    config: Path | None,
) -> list[str]:
    """The words of this command, its paths absolute, without what it has to do."""
    from ..backup.place import is_url

    found = shutil.which("holdfast")
    words = [str(Path(found).absolute())] if found else [sys.executable, "-m", "holdfast"]
    words += ["backup", "schedule", "--data-dir", str(data_dir.absolute())]
    if repository is not None:
        words += ["--repository", repository if is_url(repository) else str(Path(repository).absolute())]
    for name, path in (("--key-file", key_file), ("--passphrase-file", passphrase_file), ("--config", config)):
        if path is not None:
            words += [name, str(path.absolute())]
    if when is not None:
        words += ["--schedule", when]
    if rate_limit is not None:
        words += ["--rate-limit", str(rate_limit)]
    for word in words:
        if not word.isprintable():
            raise InvalidInputError("a path with such characters cannot stand in a unit", found=ascii(word)[:80])
    return words


def _systemd(words: list[str], data_dir: Path, text: str) -> str:
    uid = os.stat(data_dir).st_uid
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    line = " ".join(_systemd_word(word) for word in [*words, "--run"])
    return f"""\
# holdfast-backup.service: backups by '{text}' (UTC). Put it below /etc/systemd/system, then:
# systemctl daemon-reload && systemctl enable --now holdfast-backup.service
[Unit]
Description=Scheduled backups of a Holdfast store
After=network-online.target
Wants=network-online.target

[Service]
Type=simple
User={user}
# Credentials of an object store, or a passphrase, as NAME=VALUE lines in a file of mode 0600:
# EnvironmentFile=/etc/holdfast/backup.env
ExecStart={line}
Restart=on-failure
RestartSec=60
Nice=10
NoNewPrivileges=true
UMask=0077

[Install]
WantedBy=multi-user.target
"""


def _systemd_word(word: str) -> str:
    """As systemd.syntax(7) and systemd.service(5) quote a word of a command line."""
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if not text or set(text) & set(" \t'\"\\;") else text


def _cron(words: list[str], data_dir: Path, text: str) -> str:
    del data_dir
    line = shlex.join([*words, "--once"]).replace("%", "\\%")
    return f"""\
# A line for 'crontab -e'. It looks every five minutes for what is due by '{text}' (UTC) and makes up what was missed,
# so it does not depend on the time zone of cron. Mail comes only when something was made or failed.
*/5 * * * * {line} | grep -v '^nothing is due$'
"""
