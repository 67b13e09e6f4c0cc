"""What the commands of ``holdfast backup`` share: where the repository is, and its key.

Invariant: no passphrase and no key is ever an argument; it comes from a file or from the environment.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import FormatError, InvalidInputError, NotFoundError
from .output import Output, bytes_text

if TYPE_CHECKING:
    from ..backup import BackupKey, BackupRepository

__all__ = [
    "KeepDaily",
    "KeepDays",
    "KeepHourly",
    "KeepMonthly",
    "KeepWeekly",
    "KeyFile",
    "Name",
    "OptionalDataDir",
    "PassphraseFile",
    "RateLimit",
    "RepositoryPath",
    "give_way",
    "key_of",
    "name_or_newest",
    "open_place",
    "parse_time",
    "place_of",
    "time_text_us",
    "warn_same_device",
]

_NICENESS = 10

RepositoryPath = Annotated[
    str | None,
    typer.Option(
        "--repository", "-r", metavar="PLACE", help="The repository, a directory or URL; else 'backup_target'."
    ),
]
OptionalDataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", "-d", envvar="HOLDFAST_DATA_DIR", metavar="DIR", help="The store whose backups are meant."
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file", metavar="FILE", help="Key of an encrypted repository: 64 hex digits; else 'backup_key_file'."
    ),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help="Passphrase of an encrypted repository; or HOLDFAST_BACKUP_PASSPHRASE in the environment.",
    ),
]
RateLimit = Annotated[
    int | None,
    typer.Option(
        "--rate-limit",
        min=0,
        metavar="BYTES",
        help="Most bytes that are read in a second, 0: no limit.",
    ),
]
KeepDays = Annotated[
    int | None, typer.Option("--keep-days", min=0, help="And those of the last so many days; else 'backup_keep_days'.")
]
KeepHourly = Annotated[
    int | None, typer.Option("--keep-hourly", min=0, help="And one of each of so many hours; else the setting.")
]
KeepDaily = Annotated[
    int | None, typer.Option("--keep-daily", min=0, help="And one of each of so many days; else the setting.")
]
KeepWeekly = Annotated[
    int | None, typer.Option("--keep-weekly", min=0, help="And one of each of so many weeks; else the setting.")
]
KeepMonthly = Annotated[
    int | None, typer.Option("--keep-monthly", min=0, help="And one of each of so many months; else the setting.")
]
Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="The backup; else the newest of the store.")]


def place_of(repository: str | None, data_dir: Path | None, config: Path | None = None) -> str:
    """Directory or URL of the repository. The settings are read only where it is not given."""
    from ..backup import repository_place
    from ..config import load_settings

    if repository is not None:
        return repository
    target = load_settings(data_dir, config=config).settings.backup_target
    place = repository_place(target, data_dir)
    if place is None:
        raise InvalidInputError(
            "nothing says where the backups are",
            remedy="give --repository, or --data-dir for the repository of that store",
        )
    return place


def key_of(
    key_file: Path | None, passphrase_file: Path | None, data_dir: Path | None = None, config: Path | None = None
) -> BackupKey | None:
    """The key that was given, else that of the settings, else that of the environment, if any."""
    from ..backup.keys import BackupKey, usual_key
    from ..config import load_settings

    if key_file is not None and passphrase_file is not None:
        raise InvalidInputError("a repository has a key file or a passphrase, not both")
    if key_file is not None:
        return BackupKey.from_file(key_file)
    if passphrase_file is not None:
        return BackupKey.from_passphrase_file(passphrase_file)
    return usual_key(load_settings(data_dir, config=config).settings, data_dir)


def open_place(
    place: str,
    key_file: Path | None,
    passphrase_file: Path | None,
    data_dir: Path | None = None,
    config: Path | None = None,
    *,
    create: bool = False,
) -> BackupRepository:
    """The repository at ``place``, made if ``create`` says so."""
    from ..backup import open_repository

    return open_repository(place, key=key_of(key_file, passphrase_file, data_dir, config), create=create)


def name_or_newest(repository: BackupRepository, name: str | None, data_dir: Path | None) -> str:
    """The backup that is meant: without a name the newest of the store in ``data_dir``, else of the only store."""
    if name is not None:
        return name
    store_id = _store_id(data_dir)
    if store_id is None and len({form.store_id for form in repository.readable()}) > 1:
        raise InvalidInputError(
            "several stores have backups here, and nothing says which one is meant",
            path=repository.place,
            remedy="name a backup ('holdfast backup list' shows them), or give --data-dir of the store",
        )
    return repository.newest(store_id=store_id).name


def _store_id(data_dir: Path | None) -> str | None:
    """Whose backups are meant; ``None`` if no store is there, or what it says of itself cannot be read."""
    from .._fs import RealFileSystem
    from ..store.opening import read_identity

    try:
        return None if data_dir is None else read_identity(RealFileSystem(), data_dir).store_id.hex()
    except (NotFoundError, FormatError):
        return None


def warn_same_device(place: str, data_dir: Path, out: Output) -> None:
    """People are told if one disk holds the store and its backups."""
    try:
        same = os.stat(place).st_dev == os.stat(data_dir).st_dev
    except OSError:
        return
    if same:
        out.note(
            f"warning: {place} is on the disk of the store: when that disk fails, both are gone. "
            "next: keep a copy elsewhere with 'holdfast backup copy'"
        )


def give_way(data_dir: Path, rate_limit: int | None, out: Output) -> None:
    """If another process has the store open, this one has a lower priority, and people are told how fast it reads.

    Linux takes the priority of reads and writes from that of the processor (``ionice(1)``).
    """
    from ..backup.create import BESIDE_BYTES_PER_SECOND, held_by

    if rate_limit == 0 or held_by(data_dir) in (None, os.getpid()):
        return
    os.nice(max(0, _NICENESS - os.nice(0)))
    if rate_limit is None:
        out.note(
            f"a node has the store open: at most {bytes_text(BESIDE_BYTES_PER_SECOND)} are read in a second, at a "
            "lower priority. next: '--rate-limit BYTES' for another rate, '--rate-limit 0' for full speed"
        )


def parse_time(text: str) -> int:
    """Microseconds since 1970 of a time as people write it: ISO 8601 with its zone, or seconds since 1970."""
    if text.isascii() and text.isdigit() and len(text) <= 12:
        return int(text) * 1_000_000
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError("no zone")
        return int((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1_000_000)
    except (ValueError, OverflowError) as error:
        raise InvalidInputError(
            f"this is not a time: {error}",
            found=text[:80],
            remedy="write it as 2026-05-01T12:00:00Z, with its zone, or as seconds since 1970",
        ) from error


def time_text_us(time_us: int) -> str:
    """A time for people, in UTC."""
    from .output import time_text

    return time_text(time_us // 1_000_000)
