"""The recovery ladder: a store that is damaged is recovered down it, as far as it may be, and then opened.

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
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, Unpack

from .._fs import FileSystem, RealFileSystem
from .._keys import using_key
from ..config import Settings
from ..errors import CorruptionError, Recovery
from ..events import corruption_found
from ..store.chain import ChainSpec
from ..store.checks import check_settings
from ..store.factory import OpenOptions, open_store
from ..store.store import Store
from ..store.url import parse_url
from .report import REPAIR_NAME, RepairReport, Rung, check_rung

__all__ = ["open_recovered", "recovered"]

_T = TypeVar("_T")
_TRIES = 3
"""The base can only be judged once the first segment is whole again."""


def open_recovered(
    url: str | os.PathLike[str], *, recover: Rung | None = None, **options: Unpack[OpenOptions]
) -> Store:
    """The store at ``url``, recovered. ``holdfast.open`` also looks after its backups.

    ``recover`` and ``options`` are those of ``holdfast.open``.

    Raises:
        CorruptionError: what is damaged cannot be repaired so; nothing was changed. The remedy names the doctor.
        KeyRequired, KeyRejected: the key is missing or another one; nothing was changed.
    """
    settings = check_settings(options.get("settings"))
    rung = check_rung(settings.recovery if recover is None else recover)

    def call(repaired: RepairReport | None) -> Store:
        told = None if repaired is None else repaired.as_dict()
        return open_store(url, repaired=told, tell_damage=False, **options)

    place = parse_url(url).path
    if options.get("read_only") or place is None:
        try:
            return call(None)
        except CorruptionError as error:
            corruption_found(error)
            raise
    chain = options.get("chain")
    with using_key(options.get("key")):  # what is repaired is read with it, too
        spec = None if chain is None else chain.spec
        return recovered(call, place.absolute(), settings, rung, fs=options.get("fs"), spec=spec)


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
