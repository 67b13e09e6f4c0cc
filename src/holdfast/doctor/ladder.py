"""``open``, the front door: a store that is damaged is recovered down the ladder, as far as it may be, and then opened.

The rungs: replay of the journal and new views (``store.opening`` does both); the identity from the first frame,
segments and base files from backups; then, only where it was asked for, the journal up to its last frame that is whole,
and a checkpoint. Else the error of the open stands.

Invariants:
    * A rung that loses nothing runs by itself, with an event and in ``store.recovery``. No other one does.
    * The error is the one that the open raised; its remedy names the doctor.
    * Only a store on disk that is opened for writing is recovered.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from .._fs import FileSystem, RealFileSystem
from .._keys import StoreKey, using_key
from ..config import Settings
from ..errors import CorruptionError, Recovery
from ..events import corruption_found
from ..store.chain import Chain, ChainSpec
from ..store.checks import check_settings
from ..store.factory import open_store
from ..store.indexes import IndexSpec
from ..store.store import Store
from ..store.url import parse_url
from .report import REPAIR_NAME, RepairReport, Rung, check_rung

__all__ = ["open_recovered", "recovered"]

_T = TypeVar("_T")
_TRIES = 3
"""The base can only be judged once the first segment is whole again."""


def open_recovered(
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
    """The store at ``url``, recovered.

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
    """
    found = check_settings(settings)
    rung = check_rung(found.recovery if recover is None else recover)

    def call(repaired: RepairReport | None) -> Store:
        return open_store(
            url,
            chain=chain,
            create=create,
            read_only=read_only,
            settings=settings,
            forced_blocks=forced_blocks,
            indexes=indexes,
            progress=progress,
            fs=fs,
            repaired=None if repaired is None else repaired.as_dict(),
            tell_damage=False,
            key=key,
        )

    place = parse_url(url).path
    if read_only or place is None:
        try:
            return call(None)
        except CorruptionError as error:
            corruption_found(error)
            raise
    with using_key(key):  # what is repaired is read with it, too
        return recovered(call, place.absolute(), found, rung, fs=fs, spec=None if chain is None else chain.spec)


def recovered(
    call: Callable[[RepairReport | None], _T],
    root: Path,
    settings: Settings,
    rung: Rung = "lossless",
    *,
    fs: FileSystem | None = None,
    spec: ChainSpec | None = None,
) -> _T:
    """What ``call`` answers, made again after each repair of the store at ``root``; it gets what was repaired.

    ``spec``: the chain that the store belongs to, for one that cannot say so itself any more.

    Raises ``CorruptionError`` as ``call`` did where nothing more can be repaired, its remedy names the doctor.
    """
    files = fs or RealFileSystem()
    report = _resumed(files, root)
    for attempt in range(_TRIES):
        try:
            return call(report)
        except CorruptionError as error:
            try:
                if error.recovery is Recovery.REBUILD or attempt + 1 == _TRIES:
                    raise
                done = _mend(files, root, settings, rung, error, spec)
            finally:
                corruption_found(error)
            report = done if report is None or done.plan.loss is not None else report
    raise AssertionError("every attempt returns or raises")


def _resumed(fs: FileSystem, root: Path) -> RepairReport | None:
    if not fs.exists(root / REPAIR_NAME):
        return None
    from .apply import resume  # what a sound store never needs is not loaded for it

    return resume(fs, root)


def _mend(
    fs: FileSystem, root: Path, settings: Settings, rung: Rung, error: CorruptionError, spec: ChainSpec | None
) -> RepairReport:
    """A repair was done. Raises ``error`` if there is none to do."""
    from .apply import execute, lock_of
    from .diagnose import examine_store
    from .examination import Treatment, remedy_for

    release = lock_of(fs, root)
    try:
        treatment = Treatment(examine_store(fs, root, settings))
        treatment.case.spec = spec
        if treatment.case.key_problem is not None:
            raise treatment.case.key_problem
        work = treatment.best(rung)
        if work is None:
            error.remedy = remedy_for(root, treatment.case.reasons)
            raise error
        return execute(treatment.case, work, settings)
    finally:
        release()
