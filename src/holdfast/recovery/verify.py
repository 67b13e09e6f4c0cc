"""``verify``: is a store at rest what was written? Five levels, each with everything of the one before.

    quick   identity, headers and seals of the segments, watermark and tail, the views' record of their last flush
    links   every byte of every segment, the chain of digests, the links of blocks, the canonical table from end to end
    state   the tree built from the rows of the state has the root of the tip; keys, preimages, large values and the
            tree's image fit; the history of the newest 64 blocks leads to their roots
    views   the journal replayed into fresh views, every row compared both ways, the whole history too
    full    the changes of every block, applied to the tree of its parent, give the root that it was stored with

Invariants:
    * Nothing of the store is changed; its LOCK is held meanwhile, so that nobody else changes it.
    * Damage becomes a problem in the report. Errors are raised only when there is no store to look at, when it is
      locked, or when a newer version wrote it.
    * The report does not depend on the number of processes, but for the seconds of a check.
    * Memory is bounded: blocks are remembered up to a limit, and large views are replayed into a temporary directory.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

from .._fs import FileLock, FileSystem, RealFileSystem
from .._keys import StoreKey
from .._seal import StoreCipher
from ..blocks.state import ChainState, decode_state
from ..engine.api import Engine
from ..engine.open import open_engine, probe_engine
from ..engine.sealed import sealed_engine
from ..errors import (
    CommitLoss,
    CorruptionError,
    InvalidInputError,
    KeyRequired,
    ReadOnlyError,
    Recovery,
)
from ..events import emit
from ..journal.api import DurableMark, Kind
from ..journal.recovery import JOURNAL_DIRECTORY
from ..journal.segment import segment_number
from ..state.sealing import FileKeys
from ..store.base import base_of, check_base, read_base, stored_base
from ..store.generations import Generations
from ..store.identity import IDENTITY_BYTES_MAX, IDENTITY_NAME, Identity, decode_identity
from ..store.opening import directory_state, read_identity
from ..store.tree import scheme_of
from ..store.unlocking import file_keys, key_for, unlock
from ..store.url import parse_url
from ..views.api import Applied
from ..views.flush import load_applied
from .checkpoints import checkpoint_problems, count_checkpoints
from .links import check_tip
from .parallel import JOURNAL_BYTES_MIN, Pool
from .report import Level, VerifyReport
from .resting import RestingJournal, read_marks, verify_loose_segment
from .resume import ResumeFile
from .roots import check_roots
from .rows import compare_views
from .running import Progress, Stopped, Verification
from .state import check_blobs, check_image, check_preimages, check_recent_history, check_rows
from .work import Work

__all__ = ["JOBS_MAX", "verify_store"]

JOBS_MAX = 256

_PROBE_SECONDS = 30.0
_LEVELS = get_args(Level)


def _reaches(level: Level, wanted: Level) -> bool:
    """True if ``level`` includes ``wanted``."""
    return _LEVELS.index(level) >= _LEVELS.index(wanted)


def verify_store(
    url: str | os.PathLike[str],
    *,
    level: Level = "links",
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
    jobs: int = 1,
    resume: str | os.PathLike[str] | None = None,
    key: bytes | StoreKey | None = None,
    fs: FileSystem | None = None,
) -> VerifyReport:
    """What is wrong with the store at ``url``, if anything. The store is not open anywhere, and is not changed.

    Args:
        url: as for ``open``; an engine named in it is ignored.
        level: ``quick``, ``links``, ``state``, ``views`` or ``full``.
        progress: called with (check, done, total) about every thousand steps, and twice a second if they take longer.
        stop: asked as often; after ``True`` the report covers what was checked so far and is not ``ok``.
        jobs: processes that share the work, 1 to ``JOBS_MAX``: segments, links of blocks and canonical table are
            checked beside the rest. The report is the same for any number. A small journal is read by this one alone.
            A program that asks for more than one must be importable (``if __name__ == "__main__"``).
        resume: a file, not in the store, that tells the next run what this one found sound (see ``resume``): sealed
            segments and links of blocks are not read again. Missing: it is made.
        key: that of an encrypted store. Without it ``quick`` and ``links`` check the journal's bytes and digests alone.
        fs: the file system of journal and identity; the machine's if ``None``.
    Raises:
        StoreNotFound, ForeignStore, StoreLocked, FormatTooNew: there is nothing that can be verified.
        KeyRequired, KeyRejected: the level needs the key; or it is another one.
        InvalidInputError: an argument; or ``resume`` is a file of another store, or not such a file.
    """
    if type(jobs) is not int or not 1 <= jobs <= JOBS_MAX:
        raise InvalidInputError("the number of jobs is out of range", found=jobs, expected=f"1 to {JOBS_MAX}")
    if level not in _LEVELS:
        raise InvalidInputError("unknown level", found=level, expected=", ".join(_LEVELS))
    root = parse_url(url).path
    if root is None:
        raise InvalidInputError("a store in memory is not at rest")
    fs = fs if fs is not None else RealFileSystem()
    started = time.monotonic()
    run = Verification(progress, stop)
    stopped = False
    with _held(fs, root, run):
        try:
            _verify(fs, root, level, run, jobs, Path(resume) if resume is not None else None, key)
        except Stopped:
            stopped = True
    complete = not stopped and all(check.complete for check in run.checks)
    report = VerifyReport(
        path=str(root),
        level=level,
        ok=complete and not run.problems,
        checks=run.checks,
        problems=run.problems,
        notes=tuple(run.notes),
        stopped=stopped,
        facts=run.facts,
        seconds=time.monotonic() - started,
    )
    _tell(report)
    return report


def _tell(report: VerifyReport) -> None:
    """The verdict is an event, unless the run was stopped before it had one."""
    seconds = round(report.seconds, 6)
    if report.ok:
        text = f"verified {report.path} at level {report.level}: sound"
        emit("verification_passed", logging.INFO, text, place=report.path, level=report.level, seconds=seconds)
    elif report.problems:
        first = report.problems[0]
        emit(
            "verification_failed",
            logging.ERROR,
            f"verified {report.path} at level {report.level}: {len(report.problems)} problems, first: {first.message}",
            place=report.path,
            code=first.code,
            remedy=first.remedy,
            level=report.level,
            seconds=seconds,
            problems=len(report.problems),
        )


@contextlib.contextmanager
def _held(fs: FileSystem, root: Path, run: Verification) -> Iterator[None]:
    with contextlib.suppress(CorruptionError):
        read_identity(fs, root)  # nothing is locked in a directory that is not a store
    lock: FileLock | None = None
    if not fs.exists(root / "LOCK"):
        run.notes.append("LOCK is missing: an open for writing takes this for a copy of the store, which may not sign")
    else:
        try:
            lock = fs.lock(root / "LOCK", f"{os.getpid()} {socket.gethostname()}")
        except ReadOnlyError:
            run.notes.append("LOCK cannot be written, so another process could have changed the store meanwhile")
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _unlocked(
    fs: FileSystem, identity: Identity, key: StoreKey | None, root: Path, level: Level, run: Verification
) -> StoreCipher | None:
    """The ciphers of an encrypted store; ``None`` where there are none, or where the level can do without."""
    try:
        return unlock(identity, key, root, fs)
    except KeyRequired:
        if _reaches(level, "state"):
            raise
    run.facts["unchecked"] = "blocks, canonical, views"
    run.notes.append("the store is encrypted and no key was given: links of blocks and views were not checked")
    return None


def _verify_identity(
    fs: FileSystem, root: Path, level: Level, run: Verification, key: StoreKey | None
) -> tuple[Identity, bytes, StoreCipher | None] | None:
    """The identity, its bytes and the ciphers; ``None`` if there is nothing to go on with."""
    identity: Identity | None = None
    with run.check("identity") as tally:
        directory_state(fs, root)
        data = fs.read_bytes(root / IDENTITY_NAME, limit=IDENTITY_BYTES_MAX)
        identity = decode_identity(data, path=root / IDENTITY_NAME)
        tally.step()
    if identity is None:
        return None
    run.facts["chain"] = identity.spec.name
    try:
        return identity, data, _unlocked(fs, identity, key, root, level, run)
    except CorruptionError as error:
        tally.problem(error)
        return None


def _verify(
    fs: FileSystem,
    root: Path,
    level: Level,
    run: Verification,
    jobs: int,
    resume: Path | None,
    key: bytes | StoreKey | None,
) -> None:
    secret = key_for(StoreKey.of(key))
    found = _verify_identity(fs, root, level, run, secret)
    if found is None:
        return
    identity, data, cipher = found
    keyless = identity.encryption is not None and cipher is None
    _verify_checkpoints(fs, root, run, file_keys(identity, cipher, secret))
    mark: DurableMark | None = None
    with run.check("watermark") as tally:
        mark, damaged = read_marks(fs, root, identity.salt)
        tally.step(2)
        if damaged:
            tally.problem(
                CorruptionError(
                    "a slot of the watermark is damaged",
                    path=root / "watermark",
                    recovery=Recovery.REPLAY,
                    remedy="open the store and close it: the slot is written anew",
                )
            )
    seen = ResumeFile(fs, resume, root, identity.store_id) if resume is not None and level != "quick" else None
    journal = None
    with contextlib.ExitStack() as stack:
        if mark is not None:
            journal = _open_journal(fs, root, identity, mark, data, run, cipher)
        if journal is None:
            if level != "quick":
                _verify_loose(fs, root, identity, run)
            return
        stack.callback(journal.close)
        if seen is not None:
            stack.callback(seen.save)
        pool = _pool(fs, root, level, journal, jobs, stack, secret, keyless=keyless)
        work = Work(run, journal, pool, seen)
        if level != "quick":
            work.segments()
            _verify_base(fs, root, journal, run, cipher, keyless=keyless)
        if keyless:
            work.end()
            return
        flushed = _verify_views(fs, root, level, journal, identity, run, work, stack, cipher)
        if _reaches(level, "full"):
            _verify_roots(fs, root, journal, identity, flushed, run, cipher)
        work.end()


def _pool(
    fs: FileSystem,
    root: Path,
    level: Level,
    journal: RestingJournal,
    jobs: int,
    stack: contextlib.ExitStack,
    key: StoreKey | None,
    *,
    keyless: bool,
) -> Pool | None:
    """The processes that help; ``None`` where one does it all."""
    journal_bytes = sum(segment.frames_end for segment in journal.found.segments)
    if jobs == 1 or level == "quick" or type(fs) is not RealFileSystem or journal_bytes < JOURNAL_BYTES_MIN:
        return None
    return stack.enter_context(Pool(root, jobs - 1, key, keyless=keyless))  # this process works too


def _verify_checkpoints(fs: FileSystem, root: Path, run: Verification, keys: FileKeys) -> None:
    run.facts["checkpoints"] = count = count_checkpoints(fs, root)
    if count:
        with run.check("checkpoints") as tally:
            for problem in checkpoint_problems(fs, root, run.notes.append, keys):
                tally.step(total=count)
                if problem is not None:
                    tally.problem(problem)


# -- the journal ----------------------------------------------------------------------------------------------------


def _open_journal(
    fs: FileSystem,
    root: Path,
    identity: Identity,
    mark: DurableMark,
    data: bytes,
    run: Verification,
    cipher: StoreCipher | None,
) -> RestingJournal | None:
    journal = None
    with run.check("journal") as tally:
        journal = RestingJournal.open(fs, root, identity, mark, cipher.parts if cipher is not None else None)
        tally.step(len(journal.found.segments))
        found = journal.found
        run.facts |= {"last_seq": found.last_seq, "durable_seq": mark.seq, "clean": found.clean}
        if not found.clean:
            run.notes.append("the store was not closed cleanly; the next open replays and seals its tail")
        cut = found.garbage_bytes + sum(leftover.length for leftover in found.leftovers)
        if cut:
            run.notes.append(f"{cut} bytes behind the last frame were never acknowledged; the next open cuts them")
        gone = sum(info.pruned_bytes for info in journal.segments())
        if gone:
            run.facts |= {"pruned_bytes": gone, "retained_from": journal.retained_from}
            run.notes.append(f"{gone} bytes, bodies and extras of blocks below {journal.retained_from}, were pruned")
        if journal.first_seq == 1:
            frame = journal.frame(1)
            stored = [journal.part(frame, at) for at, part in enumerate(frame.parts) if part.kind == Kind.IDENTITY]
            if stored != [data]:
                raise CorruptionError(
                    f"{IDENTITY_NAME} differs from the first frame of the journal", path=root / IDENTITY_NAME, seq=1
                )
        check_base(fs, root, journal, identity)
    return journal


def _verify_base(
    fs: FileSystem,
    root: Path,
    journal: RestingJournal,
    run: Verification,
    cipher: StoreCipher | None,
    *,
    keyless: bool,
) -> None:
    """The snapshot that the journal stands on, if it was imported; ``keyless``: as far as its files say it."""
    if journal.first_seq != 1:
        return
    with contextlib.suppress(CorruptionError):  # frame 1 is damaged: that is a problem of its segment
        if base_of(journal) is None:
            return
    with run.check("base") as tally:
        if keyless:
            for _ in stored_base(fs, root, journal):
                tally.step()
            return
        for chunk in read_base(fs, root, journal, cipher):
            tally.step(chunk.head.count)


def _verify_loose(fs: FileSystem, root: Path, identity: Identity, run: Verification) -> None:
    """Each segment alone, because the journal does not hold together."""
    with run.check("segments") as tally:
        place = root / JOURNAL_DIRECTORY
        numbers = [(number, name) for name in fs.names(place) if (number := segment_number(name)) is not None]
        for position, (_, name) in enumerate(numbers, start=1):
            try:
                tally.checked += verify_loose_segment(fs, place / name, identity, newest=position == len(numbers))
            except CorruptionError as error:
                tally.problem(error)
            run.tick("segments", position, len(numbers))


# -- the views ------------------------------------------------------------------------------------------------------


def _verify_views(
    fs: FileSystem,
    root: Path,
    level: Level,
    journal: RestingJournal,
    identity: Identity,
    run: Verification,
    work: Work,
    stack: contextlib.ExitStack,
    cipher: StoreCipher | None,
) -> tuple[int, bytes] | None:
    """Frame and root of the last flush, if the views say them and are of one version."""
    engine: Engine | None = None
    applied: Applied | None = None
    state: ChainState | None = None
    usable = False
    with run.check("views") as tally:
        engine = _open_views(Generations(fs, root), journal, stack, run, cipher)
        if engine is not None:
            applied = load_applied(engine)
            if journal.found.clean and (applied is None or applied.seq < journal.found.last_seq):
                # RocksDB opened read-only shows an older state where a table is gone; the probe is strict.
                _probe(Generations(fs, root))
            state = _check_applied(applied, journal)
            if applied is not None and applied.flushing is not None:
                run.notes.append("a flush was interrupted; the next open finishes it")
            elif state is not None:
                check_tip(engine, state)
                _facts(state, run)
                _note_behind(applied, journal, run)
            usable = True
            tally.step()
    if level == "quick":
        return None
    whole = applied is None or applied.flushing is None
    work.links(engine if usable and whole else None)
    if engine is None or not usable:
        return None
    if whole and state is not None:
        assert applied is not None
        work.canonical(engine, applied.state)
        if _reaches(level, "state"):
            _verify_state(fs, root, journal, identity, engine, applied.seq, state, run)
    if _reaches(level, "views"):
        with run.check("rows") as tally:
            name = str(run.facts["engine"])
            skipped = compare_views(
                journal,
                engine,
                name,
                applied,
                tally,
                exact=journal.found.clean,
                fs=fs,
                root=root,
                cipher=cipher,
            )
            if skipped:
                run.notes.append(f"{skipped} rows of user indexes were not compared: their functions are not here")
    return (applied.seq, state.state_root) if whole and applied is not None and state is not None else None


def _open_views(
    generations: Generations,
    journal: RestingJournal,
    stack: contextlib.ExitStack,
    run: Verification,
    cipher: StoreCipher | None,
) -> Engine | None:
    number = generations.current()
    if number is None:
        run.notes.append("there are no views; the next open makes them from the journal")
        return None
    name = generations.engine_name(number)
    run.facts["engine"] = name
    if not journal.found.clean:
        _probe(generations)
    engine = open_engine(name, generations.data_path(number), create=False, read_only=True)
    stack.callback(engine.close)
    return sealed_engine(engine, cipher.rows if cipher is not None else None)


def _probe(generations: Generations) -> None:
    number = generations.current()
    assert number is not None
    probe_engine(generations.engine_name(number), generations.data_path(number), deadline_seconds=_PROBE_SECONDS)


def _verify_state(
    fs: FileSystem,
    root: Path,
    journal: RestingJournal,
    identity: Identity,
    engine: Engine,
    seq: int,
    state: ChainState,
    run: Verification,
) -> None:
    scheme = scheme_of(identity)
    tree = None
    with run.check("state") as tally:
        tally.step()
        tree = check_rows(engine, scheme, state, tally)
    with run.check("preimages") as tally:
        tally.step()
        check_preimages(engine, tally)
    with run.check("blobs") as tally:
        tally.step()
        check_blobs(engine, tally)
    with run.check("tree image") as tally:
        check_image(fs, root, identity, scheme, journal, (seq, state.state_root), tally)
    with run.check("history") as tally:
        tally.step()
        if tree is not None:
            check_recent_history(journal, engine, state, tree, tally)


def _verify_roots(
    fs: FileSystem,
    root: Path,
    journal: RestingJournal,
    identity: Identity,
    seen: tuple[int, bytes] | None,
    run: Verification,
    cipher: StoreCipher | None,
) -> None:
    if journal.first_seq != 1:
        run.notes.append("the roots were not recomputed: the first frames of the journal are gone")
        return
    with run.check("roots") as tally:
        blocks = run.facts.get("blocks")
        tally.total = blocks if isinstance(blocks, int) else 0
        lost = check_roots(fs, root, journal, scheme_of(identity), tally, tip=seen, cipher=cipher)
        if lost:
            run.notes.append(f"the roots of {lost} blocks were not recomputed: they forked below the reorg floor")


def _check_applied(applied: Applied | None, journal: RestingJournal) -> ChainState | None:
    if applied is None:
        return None
    last = max(applied.seq, applied.flushing or 0)
    if last > journal.durable_seq:
        raise CommitLoss(
            "the views hold commits that the journal has lost", applied_seq=last, journal_seq=journal.durable_seq
        )
    if not applied.seq:
        return None
    if journal.frame(applied.seq).digest != applied.digest:
        raise CorruptionError(
            "the views belong to another history of the journal",
            seq=applied.seq,
            recovery=Recovery.REBUILD,
        )
    return decode_state(applied.state)


def _note_behind(applied: Applied | None, journal: RestingJournal, run: Verification) -> None:
    """The tip and the counts of the report are those of the views; after a crash the journal has more."""
    seq = applied.seq if applied is not None else 0
    behind = journal.durable_seq - seq
    if behind > 0:
        run.notes.append(
            f"the tip and the counts are as of frame {seq}; the next open replays the {behind} frames after it"
        )


def _facts(state: ChainState, run: Verification) -> None:
    run.facts |= {
        "tip_height": state.tip_height if state.has_tip else None,
        "tip_hash": state.tip_hash.hex() if state.has_tip else None,
        "finalized_height": state.finalized if state.finalized >= 0 else None,
        "blocks": state.blocks,
        "orphans": state.orphans,
    }
