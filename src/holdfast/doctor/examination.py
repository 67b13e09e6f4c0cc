"""``diagnose`` and ``repair``: what is wrong with a store at rest, how it could go on, and the doing of it.

Invariants:
    * ``diagnose`` changes nothing, not even where it could lose nothing.
    * ``repair`` loses nothing unless it is told which rung it may go down to.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from .._fs import FileSystem, RealFileSystem, path_of
from .._keys import StoreKey, using_key
from ..backup.keys import BackupKey
from ..config import Settings
from ..errors import CorruptionError, EngineError, HoldfastError, MissingFile, ReadOnlyError, StoreNotFound
from ..journal.recovery import JOURNAL_DIRECTORY
from ..store.checks import check_settings
from ..store.identity import IDENTITY_NAME
from .apply import begun, execute, lock_of, resume
from .diagnose import Case, examine_store
from .examine import SegmentState
from .pieces import Builder
from .plan import Work, plan_checkpoint, plan_journal, plan_lossless
from .report import REPAIR_NAME, DoctorReport, Finding, Plan, RepairReport, Rung, check_rung

__all__ = ["Treatment", "diagnose", "remedy_for", "repair"]

Progress = Callable[[int, int], None]
"""(bytes or keys done, in all; 0 if that is not known)."""


class Treatment:
    """A store that was examined, and the plans for it, each made when it is asked for."""

    def __init__(self, case: Case, progress: Progress | None = None) -> None:
        self.case = case
        self._progress = progress
        self._builder: Builder | None = None
        self._works: dict[Rung, Work | None] = {}

    def work(self, rung: Rung) -> Work | None:
        """The plan of this rung, or ``None`` if there is none. ``backup`` and ``checkpoint`` are for damage alone."""
        if rung not in self._works:
            self._works[rung] = self._make(rung)
        return self._works[rung]

    def best(self, rung: Rung) -> Work | None:
        """What is to be done if one may go down to ``rung``: of plans with loss the one that loses the fewest blocks
        of the canonical chain; a checkpoint of which nobody knows whether it is canonical only where nothing else is.
        """
        lossless = self.work("lossless")
        if lossless is not None or rung == "lossless":
            return lossless
        offers = [self.work("backup")] + ([self.work("checkpoint")] if rung == "checkpoint" else [])
        return min((work for work in offers if work is not None), key=self._worth, default=None)

    def _worth(self, work: Work) -> tuple[int, int]:
        """The less the better."""
        height = work.plan.height
        if height is None:
            return 2, 0
        if not work.known:
            return 1, -height
        tip = self.case.newest_tip
        return 0, -height if tip is None else max(work.lost, tip.height - height)

    def _make(self, rung: Rung) -> Work | None:
        case = self.case
        if case.problem is None:
            return None
        if rung == "checkpoint":
            return plan_checkpoint(case, self._progress)
        if case.identity is None:
            return None
        builder = self._builder
        if builder is None:
            builder = self._builder = Builder(case.fs, case.root, case.identity.identity, case.segments, case.backups)
        broken = case.journal_problem is not None or case.mark_problem is not None
        if broken:
            problem = case.views.problem  # they may know of more frames, and name the blocks
            if rung == "lossless" and isinstance(problem, EngineError):
                case.reasons.append(f"the views cannot be read, and may know of more frames: {problem.message}")
                return None
        chain = builder.build(case.marks) if broken else None
        if rung == "lossless":
            return plan_lossless(case, builder, chain)
        return None if chain is None else plan_journal(case, builder, chain)


def diagnose(
    path: str | os.PathLike[str],
    *,
    settings: Settings | None = None,
    repository: str | None = None,
    key: BackupKey | None = None,
    store_key: bytes | StoreKey | None = None,
    progress: Progress | None = None,
    fs: FileSystem | None = None,
) -> DoctorReport:
    """What is whole of the store at ``path``, and how it could go on: without loss, and with which loss.

    Nothing is changed. The store is not open anywhere. Cost: every byte of its journal and base is read; of backups
    what would be needed, of checkpoints the highest that is whole.

    Args:
        settings: name the repository (``backup_target``); the defaults if ``None``.
        repository: another repository than that.
        key: of an encrypted repository; else the passphrase in ``HOLDFAST_BACKUP_PASSPHRASE``.
        store_key: that of an encrypted store, as for ``holdfast.open``.
        progress: called with (bytes read, 0), then with (keys, keys in all) of a checkpoint; what it raises ends it.
    Raises:
        StoreNotFound: there is nothing here. StoreLocked: the store is open. FormatTooNew, FormatTooOld.
        KeyRejected: the key is not that of the store. Without one the report is not ``sound``: nobody knows.
    """
    started = time.monotonic()
    files, root = _place(path, fs)
    try:
        release = lock_of(files, root)
    except ReadOnlyError:  # a failing disk, perhaps: to look needs no lock where nobody can write
        release = _nothing
    try:
        with using_key(store_key):
            plan = begun(files, root)
            if plan is not None:
                return _unfinished(root, plan, time.monotonic() - started)
            treatment = _examined(files, root, check_settings(settings), repository, key, progress)
            return _report(treatment, time.monotonic() - started)
    finally:
        release()


def repair(
    path: str | os.PathLike[str],
    *,
    recover: Rung = "lossless",
    settings: Settings | None = None,
    repository: str | None = None,
    key: BackupKey | None = None,
    store_key: bytes | StoreKey | None = None,
    progress: Progress | None = None,
    fs: FileSystem | None = None,
) -> RepairReport | None:
    """The store at ``path`` is whole, as far as the plan goes that loses least; ``None`` if nothing was to be done.

    Views are made anew by the next open. What was replaced lies in ``quarantine/``. Killed at any moment, the next
    ``repair`` or ``holdfast.open`` goes on.

    Args:
        recover: how far down one may go. ``lossless``: nothing that was acknowledged may be lost. ``backup``: the
            journal as far as files and backups hold it. ``checkpoint``: that, or the highest checkpoint that is whole,
            whichever loses fewer canonical blocks. What lost something may not sign.
        settings, repository, key, store_key, progress: as for ``diagnose``; ``progress`` then also with (bytes written,
            in all).
    Raises:
        CorruptionError: there is no such plan; it is the error that an open raises, and nothing was changed.
        OutOfSpace: there is no room for the new files; nothing was changed.
        KeyRequired: without the key of an encrypted store there is no such plan, or no fence; nothing was changed.
        KeyRejected: the key is not that of the store; nothing was changed.
        StoreNotFound, StoreLocked, FormatTooNew, FormatTooOld: as ``diagnose``.
    """
    check_rung(recover)
    files, root = _place(path, fs)
    settings = check_settings(settings)
    with using_key(store_key):
        finished = resume(files, root)
        release = lock_of(files, root)
        try:
            treatment = _examined(files, root, settings, repository, key, progress)
            problem = treatment.case.problem
            if problem is None:
                return finished
            work = treatment.best(recover)
            if work is None and treatment.case.key_problem is not None:
                raise treatment.case.key_problem from problem
            if work is None:
                problem.remedy = remedy_for(root, treatment.case.reasons)
                raise problem
            return execute(treatment.case, work, settings, progress=progress)
        finally:
            release()


def _nothing() -> None:
    """Nothing is held, nothing is released."""


def _place(path: str | os.PathLike[str], fs: FileSystem | None) -> tuple[FileSystem, Path]:
    files, root = fs or RealFileSystem(), path_of(path, "a store").absolute()
    names = set(files.names(root))
    if not names & {IDENTITY_NAME, JOURNAL_DIRECTORY, REPAIR_NAME}:
        raise StoreNotFound("there is no store here", path=root)
    return files, root


def _examined(
    fs: FileSystem,
    root: Path,
    settings: Settings,
    repository: str | None,
    key: BackupKey | None,
    progress: Progress | None,
) -> Treatment:
    done = 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, 0)

    return Treatment(examine_store(fs, root, settings, place=repository, key=key, told=told), progress)


# -- report ---------------------------------------------------------------------------------------------------------


def _unfinished(root: Path, plan: Plan, seconds: float) -> DoctorReport:
    """Nothing was looked at: half of the files may be in quarantine, and only the end of the repair makes a store."""
    remedy = f"run 'holdfast doctor --apply --data-dir {root}': it goes on where the repair stopped"
    problem = CorruptionError("a repair of this store is not finished", path=root, remedy=remedy)
    found = Finding("repair", REPAIR_NAME, "damaged", "begun, and not finished")
    lossless = plan.loss is None
    return DoctorReport(
        path=str(root),
        sound=False,
        code=problem.code,
        problem=str(problem),
        findings=(found,),
        plan=plan if lossless else None,
        others=() if lossless else (plan,),
        reasons=(remedy,),
        seconds=seconds,
    )


def _report(treatment: Treatment, seconds: float) -> DoctorReport:
    case = treatment.case
    lossless = treatment.work("lossless")
    others: list[Plan] = []
    if case.problem is not None and lossless is None:
        for rung in ("backup", "checkpoint"):
            work = treatment.work(check_rung(rung))
            if work is not None:
                others.append(work.plan)
    problem = case.problem or case.views.problem or case.key_problem
    return DoctorReport(
        path=str(case.root),
        sound=case.sound,
        code=None if problem is None else problem.code,
        problem=None if problem is None else str(problem),
        findings=tuple(_findings(case)),
        plan=None if lossless is None else lossless.plan,
        others=tuple(others),
        reasons=tuple(dict.fromkeys(case.reasons)),
        seconds=seconds,
    )


def _findings(case: Case) -> list[Finding]:
    found = [_of("identity", IDENTITY_NAME, case.identity_problem, case.identity.source if case.identity else "")]
    if case.identity is not None:
        mark = case.mark
        at = (
            ""
            if mark is None
            else f"frame {mark.seq} in segment {mark.segment}, closed {'' if mark.clean else 'un'}cleanly"
        )
        found.append(_of("watermark", "watermark", case.mark_problem, at))
        found += _segment_findings(case)
        if case.journal_problem is not None:
            found.append(Finding("journal", JOURNAL_DIRECTORY, "damaged", str(case.journal_problem)))
        if case.base is not None or case.base_problem is not None:
            found.append(_of("base", "base", case.base_problem, f"height {case.base.height}" if case.base else ""))
        engine = case.views.engine or "none are live"
        text = f"{engine}, up to frame {case.views.seq}; 'holdfast verify --level views' reads every row"
        problem = case.views.problem
        if case.keyless:
            found.append(Finding("views", "views", "unknown", "the key of the store is needed"))
        else:
            found.append(_of("views", "views", problem, text if problem is None else "made anew by the next open"))
    found += _source_findings(case)
    return found


def _of(part: str, name: str, problem: HoldfastError | None, detail: str) -> Finding:
    if problem is None:
        return Finding(part, name, "sound", detail)
    state = "missing" if isinstance(problem, MissingFile) else "damaged"
    return Finding(part, name, state, f"{problem.message}; found in {detail}" if detail else problem.message)


def _segment_findings(case: Case) -> list[Finding]:
    found = []
    last = max((state.number for state in case.segments.values() if state.begun), default=0)
    for state in case.segments.values():
        name = f"segment {state.number}"
        frames = f"frames {state.first_seq} to {state.last_seq}" if state.begun else "no frames"
        if state.state == "sealed":
            found.append(Finding("segment", name, "sound", frames))
        elif state.state == "unused":
            found.append(Finding("segment", name, "none", "prepared, not begun"))
        elif state.state == "open" and state.number == last and _is_whole(case, state):
            found.append(Finding("segment", name, "sound", f"{frames}, not sealed yet"))
        else:
            word = "missing" if state.state == "missing" else "damaged"
            found.append(Finding("segment", name, word, f"{frames}; {state.problem}"))
    return found


def _is_whole(case: Case, state: SegmentState) -> bool:
    """True if the segment, which is not sealed, has all that was acknowledged, whatever is wrong elsewhere."""
    if case.journal_problem is None:
        return True
    mark = case.mark
    if mark is None or mark.clean or mark.segment != state.number:
        return False
    return (mark.seq, mark.end_offset) <= (state.last_seq, state.frames_end)


def _source_findings(case: Case) -> list[Finding]:
    backups = case.backups
    found = []
    if backups.problem is not None:
        found.append(Finding("backups", backups.place, "unknown", backups.problem.message))
    for form in backups.forms:
        verified = backups.verified_us(form) is not None
        tip = "no block" if form.tip is None else f"height {form.tip.height}"
        text = f"frames {form.first_seq} to {form.last_seq}, {tip}, {'' if verified else 'not '}verified"
        found.append(Finding("backup", form.name, "sound" if verified else "unknown", text))
    if backups.damaged:
        found.append(Finding("backups", backups.place, "damaged", f"{backups.damaged} manifests cannot be read"))
    if backups.foreign:
        found.append(Finding("backups", backups.place, "none", f"{backups.foreign} are of other stores"))
    for info in case.checkpoint_infos:
        state = "unknown" if info.problem is None else "damaged"
        detail = f"height {info.height}" if info.problem is None else info.problem.message
        found.append(Finding("checkpoint", info.name, state, detail))
    return found


def remedy_for(root: Path, reasons: list[str]) -> str:
    """What an operator does next about an open that was refused."""
    said = f" ({reasons[0]})" if reasons else ""
    return (
        f"run 'holdfast doctor --data-dir {root}': it changes nothing, and says what is whole and what each way"
        f" to go on would cost and lose{said}"
    )
