"""``holdfast.open``, the front door: a store that is recovered, and whose backups are looked after while it is open.

Invariants:
    * Work for backups begins after the store is open and ends with it. None of its errors reaches the store.
    * Settings that mean nothing are refused before anything is opened.
    * Readers, stores in memory and commands have none of this work: only who opens a store here, to write.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from .._fs import FileSystem, RealFileSystem
from .._keys import StoreKey
from ..config import Settings
from ..store.chain import Chain
from ..store.checks import check_settings
from ..store.factory import OpenOptions
from ..store.indexes import IndexSpec
from ..store.store import Store
from .ladder import open_recovered
from .report import Rung

__all__ = ["DoorOptions", "open_attended"]


class DoorOptions(OpenOptions, total=False):
    """What ``holdfast.open`` takes by name."""

    recover: Rung | None


def open_attended(
    url: str | os.PathLike[str],
    *,
    chain: Chain | None = None,
    create: bool = True,
    read_only: bool = False,
    settings: Settings | None = None,
    forced_blocks: Mapping[int, bytes] | None = None,
    indexes: Sequence[IndexSpec] = (),
    progress: Callable[[int, int], None] | None = None,
    fs: FileSystem | None = None,
    recover: Rung | None = None,
    key: bytes | StoreKey | None = None,
) -> Store:
    """The store at ``url``, recovered, and looked after as its settings say until it is closed.

    Opened for writing, it makes the backups of ``backup_schedule``, and gives up what ``journal_retention`` lets go
    once a backup holds it, both in the background. ``holdfast.backup.BackupScheduler`` takes the place of what runs by
    itself, with another repository, key or rate than the settings name.

    Args:
        key: a store that is created with it is encrypted for ever, and opened with the same: a ``StoreKey``, or the 32
            bytes of a key file. Parts of the journal and values of rows are encrypted, keys of rows are not.
        recover: how far down the ladder one may go, instead of the setting ``recovery``. ``lossless``: what was
            acknowledged is there, or the open is refused. ``backup``: else the journal up to the last frame that files
            and backups hold. ``checkpoint``: that or the highest checkpoint that is whole, whichever loses fewer
            canonical blocks. What was lost is in ``store.recovery`` and in the event ``blocks_given_up``, and the store
            may not sign.
    Raises:
        CorruptionError: what is damaged cannot be repaired so; nothing was changed. The remedy names the doctor.
        KeyRequired, KeyRejected: the key is missing or another one; nothing was changed.
        InvalidInputError: an argument or a setting, the schedule included, means nothing; nothing was changed.
    """
    attended = not read_only and (fs is None or isinstance(fs, RealFileSystem))
    found = check_settings(settings)
    if attended and found.backup_schedule:
        from ..backup.schedule import Schedule

        Schedule(found.backup_schedule)
    store = open_recovered(
        url,
        chain=chain,
        create=create,
        read_only=read_only,
        settings=settings,
        forced_blocks=forced_blocks,
        indexes=indexes,
        progress=progress,
        fs=fs,
        recover=recover,
        key=key,
    )
    if attended and (found.backup_schedule or found.journal_retention != "none"):
        from ..backup.scheduler import attend

        attend(store)
    return store
