"""Finding, creating and opening the files of a store (docs/FORMAT.md, section 2).

Invariants:
    * Only a missing or an empty directory, or the remains of an unfinished creation, may become a store.
    * Newer formats, foreign directories and other chains are refused before anything is written.
    * Views that cannot be trusted are moved to ``quarantine/`` and built again from the journal; the journal is never
      changed to fit the views.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from .._fs import FileLock, FileSystem
from .._keys import StoreKey, aes_gcm, seal_master
from .._seal import StoreCipher
from ..blocks.apply import ChainIndexes
from ..blocks.state import ChainState, tip_height_of
from ..config import CONFIG_FILE_NAMES, Settings
from ..consensus.safety import SafetyBook
from ..engine.api import Engine
from ..engine.open import open_engine, probe_engine
from ..engine.sealed import sealed_engine
from ..errors import (
    CommitLoss,
    CorruptionError,
    EngineMismatch,
    ForeignStore,
    InvalidInputError,
    MissingFile,
    Recovery,
    RecoveryTimeout,
    StoreNotFound,
)
from ..events import corruption_found
from ..journal.api import FrameSource, JournalRecovery, Kind, Part
from ..journal.journal import Journal, JournalOptions
from ..journal.segment import SEGMENT_HEADER_BYTES
from ..state.history import StateHistory
from ..state.sealing import Sealing
from ..types import RecoveryStats
from ..views.api import ViewOptions
from ..views.views import Views
from .base import BASE_NAME, check_base, encode_base, first_part, load_base
from .chain import ChainSpec, check_same_chain
from .fingerprint import NOWHERE, fingerprint
from .generations import Generations
from .guard import flush_room
from .identity import IDENTITY_BYTES_MAX, IDENTITY_NAME, Identity, decode_identity, encode_identity
from .replay import Replayer
from .tree import OpenedTree, open_tree
from .unlocking import key_for, unlock

__all__ = [
    "MEMORY_ROOT",
    "REPAIR_PLAN",
    "OpenPlan",
    "Opened",
    "check_spec",
    "directory_state",
    "journal_options",
    "make_directories",
    "make_views",
    "open_for_writing",
    "open_views_engine",
    "opened_plainly",
    "read_identity",
    "view_options",
]

MEMORY_ROOT = Path("/memory")
_UNFINISHED = {"LOCK", "journal", "watermark", "watermark.tmp", "holdfast.toml.tmp", *CONFIG_FILE_NAMES}
REPAIR_PLAN = Path("repair/plan.json")
"""What a repair is to do, from before it begins until it is done (docs/FORMAT.md, section 12)."""
_FIRST_FRAME_BYTES_MAX = 2 * 1024 * 1024
_PROBE_SECONDS = 30.0


@dataclass(slots=True)
class OpenPlan:
    """What the caller of ``open`` asked for."""

    fs: FileSystem
    root: Path
    engine: str | None
    settings: Settings
    spec: ChainSpec | None
    create: bool
    carry: Callable[[], list[Part]]
    on_durable: Callable[[int], None]
    book: SafetyBook
    indexes_of: Callable[[Views, Engine, Journal, ChainState], ChainIndexes] | None = None
    progress: Callable[[int, int], None] | None = None
    base: tuple[Part, list[Part]] | None = None
    """For a store that is created on a snapshot in its ``base/``: the base, and the parts that make its block the root.
    """
    sealing: Sealing | None = None
    """For an encrypted store that is created on a base: what that was sealed with. It becomes the store's identity."""
    repaired: Mapping[str, object] | None = None
    """What was repaired before, for the report."""
    fenced: bool = False
    """A store that is created may not sign until a fence is lifted: another one may have, on the same chain."""
    key: StoreKey | None = None
    """That of an encrypted store; else the one that ``using_key`` gave."""
    cipher: StoreCipher | None = None
    """What the key opened."""


@dataclass(slots=True)
class Opened:
    """An open store's parts."""

    identity: Identity
    lock: FileLock
    journal: Journal
    generations: Generations | None
    generation: int | None
    engine_name: str
    engine: Engine
    views: Views
    replayer: Replayer
    stats: RecoveryStats
    plan: OpenPlan
    tree: OpenedTree

    def abandon(self) -> None:
        """Everything is released and nothing more is written: the store could not be put together."""
        self.views.close(flush=False)
        self.engine.close()
        self.journal.close(clean=False)
        self.lock.release()


def journal_options(plan: OpenPlan) -> JournalOptions:
    """How the journal writes under these settings."""
    settings = plan.settings
    return JournalOptions(
        segment_bytes_max=settings.segment_bytes_max,
        compression=settings.compression,
        compression_bytes_min=settings.compression_bytes_min,
        group_commit_ms=settings.group_commit_ms,
        carry=plan.carry,
        on_durable=plan.on_durable,
        background=plan.fs.persistent,
    )


def view_options(settings: Settings) -> ViewOptions:
    """How the views are bounded under these settings."""
    return ViewOptions(
        overlay_rows_max=settings.overlay_rows_max,
        overlay_bytes_max=settings.overlay_bytes_max,
        flush_interval_seconds=settings.flush_interval_seconds,
        pinned_bytes_max=settings.pinned_bytes_max,
        paced=settings.durability == "sync",
        undo_window=settings.proof_window_blocks,
        cache_bytes=settings.state_cache_bytes,
        cache_policy=settings.state_cache_policy,
        cache_stats=settings.state_cache_stats,
    )


# -- finding --------------------------------------------------------------------------------------------------------


def directory_state(fs: FileSystem, root: Path) -> str:
    """``absent``, ``store``, ``unfinished``, ``importing`` or raises for anything else.

    A store that is being repaired is none until that is finished, whatever somebody put there (FORMAT, section 12).
    """
    if not fs.exists(root):
        return "absent"
    if fs.persistent and not root.is_dir():
        raise ForeignStore("there is a file where the store should be", path=root)
    names = set(fs.names(root))
    if REPAIR_PLAN.parts[0] in names and fs.exists(root / REPAIR_PLAN):
        raise CorruptionError(
            "a repair of this store is not finished",
            path=root,
            remedy=f"run 'holdfast doctor --apply --data-dir {root}': it goes on where the repair stopped; put nothing"
            " back by hand",
        )
    if IDENTITY_NAME in names:
        return "store"
    if not names - set(CONFIG_FILE_NAMES):
        return "absent"
    if names <= _UNFINISHED and _holds_nothing(fs, root):
        return "unfinished"
    if BASE_NAME in names and names <= {*_UNFINISHED, BASE_NAME} and _holds_nothing(fs, root):
        return "importing"
    if "journal" in names and any(name.endswith(".seg") for name in fs.names(root / "journal")):
        raise MissingFile(f"{IDENTITY_NAME} is missing beside a journal that holds commits", path=root / IDENTITY_NAME)
    raise ForeignStore("the directory holds files that are not a Holdfast store", path=root, found=sorted(names)[:8])


def _holds_nothing(fs: FileSystem, root: Path) -> bool:
    """True if the journal is at most its first frame, and prepared segments: nothing was ever acknowledged in it."""
    for name in fs.names(root / "journal"):
        if name.endswith(".seg") and not _holds_no_commit(fs, root / "journal" / name):
            return False
    return True


def _holds_no_commit(fs: FileSystem, path: Path) -> bool:
    file = fs.open(path, read_only=True)
    try:
        if path.name != "0000000001.seg":
            return not any(file.pread(SEGMENT_HEADER_BYTES, 0))
        head = file.pread(16, SEGMENT_HEADER_BYTES)
        if head[:4] != b"HFRM":
            return not any(head)
        length = int.from_bytes(head[8:16], "big")
        return not any(file.pread(16, SEGMENT_HEADER_BYTES + length)) if length < _FIRST_FRAME_BYTES_MAX else False
    finally:
        file.close()


def read_identity(fs: FileSystem, root: Path) -> Identity:
    """The identity of the store at ``root``; nothing is touched. Raises ``StoreNotFound``, ``ForeignStore``, ..."""
    state = directory_state(fs, root)
    if state != "store":
        raise StoreNotFound("there is no store here", path=root)
    path = root / IDENTITY_NAME
    return decode_identity(fs.read_bytes(path, limit=IDENTITY_BYTES_MAX), path=path)


def check_spec(identity: Identity, spec: ChainSpec | None, root: Path) -> None:
    """Nothing happens if the store at ``root`` belongs to this chain; else ``ForeignStore``."""
    if spec is not None:
        check_same_chain(identity.spec, spec, "store", root)


# -- opening --------------------------------------------------------------------------------------------------------


def open_for_writing(plan: OpenPlan) -> Opened:
    """The store, recovered: journal tail judged, a begun flush finished, frames replayed. Holds LOCK afterwards."""
    started = time.monotonic()
    fs, root = plan.fs, plan.root
    if fs.persistent and (plan.engine or plan.settings.engine) == "memory":
        raise InvalidInputError("a store on disk needs an engine on disk; 'memory:' is a store in memory", path=root)
    state = directory_state(fs, root)
    if state != "store" and not plan.create:
        raise StoreNotFound("there is no store here", path=root)
    if (state == "importing") != (plan.base is not None):
        raise ForeignStore(
            "the import of a snapshot did not end here" if plan.base is None else "there is nothing to import here",
            path=root,
            remedy="run the same import again: it goes on where it stopped; or choose an empty directory",
        )
    plan.key = key_for(plan.key) if fs.persistent else plan.key
    if state == "store":
        identity = read_identity(fs, root)
        check_spec(identity, plan.spec, root)
        unlock(identity, plan.key, root, fs)
    elif plan.key is not None:
        _check_new(plan)
    if state == "absent":
        make_directories(fs, root)
    lock = fs.lock(root / "LOCK", f"{os.getpid()} {socket.gethostname()}")
    try:
        opened = _open_locked(plan, lock)
    except BaseException:
        lock.release()
        raise
    opened.stats = replace(opened.stats, seconds=time.monotonic() - started)
    return opened


def _check_new(plan: OpenPlan) -> None:
    """Nothing happens if an encrypted store can be made."""
    aes_gcm(bytes(32))  # the library is there
    if not plan.fs.persistent:
        raise InvalidInputError("a store in memory is not encrypted", remedy="open it without a key")


@contextlib.contextmanager
def opened_plainly(
    fs: FileSystem,
    root: Path,
    engine: str | None,
    settings: Settings,
    *,
    spec: ChainSpec | None = None,
    create: bool = False,
    progress: Callable[[int, int], None] | None = None,
    base: tuple[Part, list[Part]] | None = None,
    fenced: bool = False,
    key: StoreKey | None = None,
    sealing: Sealing | None = None,
) -> Iterator[Opened]:
    """The store without its facade, recovered; afterwards everything is in the engine and the journal is closed."""
    book = SafetyBook()
    plan = OpenPlan(
        fs,
        root,
        engine,
        settings,
        spec,
        create,
        book.parts,
        lambda _seq: None,
        book,
        progress=progress,
        base=base,
        fenced=fenced,
        key=key,
        sealing=sealing,
    )
    opened = open_for_writing(plan)
    with contextlib.ExitStack() as stack:
        stack.callback(opened.lock.release)
        stack.callback(opened.journal.close)
        stack.callback(opened.engine.close)
        stack.callback(opened.views.close, flush=True)
        yield opened


def make_directories(fs: FileSystem, root: Path) -> None:
    """``root`` is a directory, and so are those above it."""
    missing: list[Path] = []
    path = root.absolute()
    while fs.persistent and not fs.exists(path):
        missing.append(path)
        path = path.parent
    for path in reversed(missing or [root]):
        fs.make_directory(path)


def _open_locked(plan: OpenPlan, lock: FileLock) -> Opened:
    fs, root = plan.fs, plan.root
    created = directory_state(fs, root) != "store"
    if created:
        identity, journal, recovery = _create(plan)
    else:
        path = root / IDENTITY_NAME
        data = fs.read_bytes(path, limit=IDENTITY_BYTES_MAX)
        identity = decode_identity(data, path=path)
        check_spec(identity, plan.spec, root)
        plan.cipher = unlock(identity, plan.key, root, fs)
        if not fs.exists(root / "views"):
            fs.sync_directory(root)  # creation may have died before it had synced the name of the identity
        journal, recovery = Journal.open(
            fs,
            root,
            store_id=identity.store_id,
            salt=identity.salt,
            options=journal_options(plan),
            cipher=plan.cipher.parts if plan.cipher is not None else None,
        )
    try:
        if not created:
            _check_first_frame(journal, data, path)
            check_base(fs, root, journal, identity)
        return _open_views(plan, lock, identity, journal, recovery, created)
    except BaseException:
        journal.close(clean=False)
        raise


def _create(plan: OpenPlan) -> tuple[Identity, Journal, JournalRecovery]:
    fs, root = plan.fs, plan.root
    for name in fs.names(root / "journal"):
        fs.remove(root / "journal" / name)
    fs.remove(root / "watermark")
    spec = plan.spec if plan.spec is not None else ChainSpec(name="custom")
    identity = Identity(secrets.token_bytes(16), secrets.token_bytes(32), time.time_ns() // 1000, spec)
    assert plan.base is None or (plan.sealing is None) == (plan.key is None), "a base is sealed if its store is"
    if plan.sealing is not None:
        store_id, form, plan.cipher = plan.sealing
        identity = replace(identity, store_id=store_id, encryption=form)
    elif plan.key is not None:
        form, master = seal_master(plan.key, identity.store_id)
        identity, plan.cipher = replace(identity, encryption=form), StoreCipher(master, identity.store_id)
    data = encode_identity(identity)
    fs.make_directory(root / "journal")
    place = NOWHERE if plan.fenced else fingerprint(root if fs.persistent else None, identity.store_id)
    base, more = plan.base if plan.base is not None else (Part(Kind.BASE, encode_base(None), True), [])
    parts = [base, Part(Kind.IDENTITY, data, True), Part(Kind.INCARNATION, place, True), *more]
    options = journal_options(plan)
    journal = Journal.create(
        fs,
        root,
        store_id=identity.store_id,
        salt=identity.salt,
        first_parts=parts,
        options=options,
        cipher=plan.cipher.parts if plan.cipher is not None else None,
    )
    try:
        fs.write_atomic(root / IDENTITY_NAME, data)
    except BaseException:
        journal.close(clean=False)
        raise
    return identity, journal, JournalRecovery(True, 1, journal.last_digest, 1, (), 0)


def _check_first_frame(journal: Journal, data: bytes, path: Path) -> None:
    if first_part(journal, Kind.IDENTITY, "identity") not in (None, data):
        raise CorruptionError(f"{IDENTITY_NAME} differs from the first frame of the journal", path=path)


# -- views ----------------------------------------------------------------------------------------------------------


def _open_generation(
    plan: OpenPlan,
    journal: Journal,
    recovery: JournalRecovery,
    generations: Generations,
    created: bool,
    notes: list[str],
) -> tuple[int, str, bool, Engine, Views]:
    """The live generation, or a fresh one: number, engine's name, whether it is fresh, engine and views."""
    wanted = plan.engine or plan.settings.engine
    number, name = (None, wanted) if created else _current(generations, plan.engine, wanted, notes)
    if number is not None:
        if plan.engine is not None and plan.engine != name:
            raise EngineMismatch(
                "the store was made with another engine", found=name, asked=plan.engine, path=plan.root
            )
        found = _try_views(plan, journal, recovery, generations, number, name, notes)
        if found is not None:
            return number, name, False, *found
    number = generations.prepare(name)
    return number, name, True, *_fresh_views(plan, journal, name, generations.data_path(number))


@dataclass(slots=True)
class _Ready:
    """Views that stand where the journal ends, and the tree over them."""

    generation: int | None
    engine_name: str
    engine: Engine
    views: Views
    replayer: Replayer
    tree: OpenedTree
    started_seq: int
    finished_flush: bool


def _open_views(
    plan: OpenPlan, lock: FileLock, identity: Identity, journal: Journal, recovery: JournalRecovery, created: bool
) -> Opened:
    notes: list[str] = []
    generations = Generations(plan.fs, plan.root) if plan.fs.persistent else None
    ready = _ready_views(plan, identity, journal, recovery, generations, created, notes)
    replayer, tree = ready.replayer, ready.tree
    stats = RecoveryStats(
        created=created,
        clean=recovery.clean,
        frames_found=recovery.frames_scanned,
        frames_replayed=replayer.seq - ready.started_seq,
        discarded=recovery.discarded,
        damaged_watermark_slots=recovery.damaged_watermark_slots,
        views_rebuilt=not created and ready.started_seq == 0,
        finished_flush=ready.finished_flush,
        last_seq=recovery.last_seq,
        tip_height=replayer.state.tip_height if replayer.state.has_tip else None,
        finalized_height=replayer.state.finalized if replayer.state.finalized >= 0 else None,
        notes=(*notes, *tree.notes),
        state_root=replayer.state.state_root if replayer.state.stateful else None,
        tree=tree.how,
        tree_keys=tree.tree.count,
        repaired=plan.repaired,
    )
    number, name = ready.generation, ready.engine_name
    return Opened(
        identity, lock, journal, generations, number, name, ready.engine, ready.views, replayer, stats, plan, tree
    )


def _ready_views(
    plan: OpenPlan,
    identity: Identity,
    journal: Journal,
    recovery: JournalRecovery,
    generations: Generations | None,
    created: bool,
    notes: list[str],
) -> _Ready:
    """Views of every frame. Ones whose rows are found damaged meanwhile move to quarantine, and are made anew once."""
    if generations is None:
        engine, views = _fresh_views(plan, journal, "memory", MEMORY_ROOT)
        return _replayed(plan, identity, journal, recovery, None, (None, "memory", True, engine, views))
    found = _open_generation(plan, journal, recovery, generations, created, notes)
    try:
        return _replayed(plan, identity, journal, recovery, generations, found)
    except (CorruptionError, RecoveryTimeout) as error:
        number, name, fresh = found[:3]
        if fresh or error.recovery is not Recovery.REBUILD:
            raise
        notes.append(_set_aside(generations, number, error))
    number = generations.prepare(name)
    fresh_views = _fresh_views(plan, journal, name, generations.data_path(number))
    return _replayed(plan, identity, journal, recovery, generations, (number, name, True, *fresh_views))


def _replayed(
    plan: OpenPlan,
    identity: Identity,
    journal: Journal,
    recovery: JournalRecovery,
    generations: Generations | None,
    found: tuple[int | None, str, bool, Engine, Views],
) -> _Ready:
    number, name, fresh, engine, views = found
    try:
        plan.book.reload(views.latest())
        replayer = Replayer(views, plan.book)
        if plan.indexes_of is not None:
            replayer.indexes = plan.indexes_of(views, engine, journal, replayer.state)
        start = replayer.seq
        unfinished = not fresh and views.applied is not None and views.applied.flushing is not None
        replayer.run(journal, recovery.last_seq, flush=True, progress=plan.progress)
        if generations is not None and number is not None and fresh:
            views.flush()
            generations.switch(number)
        tree = open_tree(
            plan.fs,
            plan.root,
            identity,
            journal,
            recovery.last_seq,
            views.latest(),
            replayer.state,
            progress=plan.progress,
        )
    except BaseException:
        views.close(flush=False)
        engine.close()
        raise
    return _Ready(number, name, engine, views, replayer, tree, start, unfinished)


def _current(generations: Generations, asked: str | None, default: str, notes: list[str]) -> tuple[int | None, str]:
    """The live generation and its engine; without a usable one ``None`` and the engine to build with."""
    reason = "views/CURRENT is missing"
    try:
        number = generations.current()
        if number is not None:
            return number, generations.engine_name(number)
    except CorruptionError as error:
        reason = str(error)
    notes.append(f"views rebuilt: {reason}")
    return None, asked or generations.newest_engine() or default


def _fresh_views(plan: OpenPlan, journal: Journal, name: str, path: Path) -> tuple[Engine, Views]:
    engine = open_views_engine(plan, name, path, create=True)
    try:
        load_base(engine, plan.fs, plan.root, journal, progress=plan.progress, cipher=plan.cipher)
        return engine, make_views(plan, journal, engine)
    except BaseException:
        engine.close()
        raise


def open_views_engine(plan: OpenPlan, name: str, path: Path, *, create: bool) -> Engine:
    """The engine of a generation, its values sealed if the store is encrypted."""
    engine = open_engine(name, path, create=create, cache_bytes=plan.settings.cache_bytes)
    return sealed_engine(engine, plan.cipher.rows if plan.cipher is not None else None)


def make_views(plan: OpenPlan, journal: Journal, engine: Engine) -> Views:
    """Views over ``engine``, flushing only what the journal has made durable."""
    return Views.open(
        engine,
        options=view_options(plan.settings),
        frame_digest=lambda seq: journal.frame(seq).digest,
        make_durable=lambda seq: _sync_through(journal, seq),
        room=flush_room(plan.fs, plan.root) if plan.settings.disk_reserve_bytes else None,
        history=StateHistory() if plan.settings.history == "on" else None,
        tip_height=tip_height_of,
    )


def _sync_through(journal: Journal, seq: int) -> None:
    if journal.durable_seq < seq:
        journal.sync(seq)


def _try_views(
    plan: OpenPlan,
    journal: Journal,
    recovery: JournalRecovery,
    generations: Generations,
    number: int,
    name: str,
    notes: list[str],
) -> tuple[Engine, Views] | None:
    """The live generation, or ``None`` after it was moved to quarantine because it cannot be trusted."""
    path = generations.data_path(number)
    try:
        if not recovery.clean:
            probe_engine(name, path, deadline_seconds=_PROBE_SECONDS)
        engine = open_views_engine(plan, name, path, create=False)
        try:
            views = make_views(plan, journal, engine)
        except BaseException:
            engine.close()
            raise
    except CommitLoss:
        raise
    except (CorruptionError, RecoveryTimeout) as error:
        notes.append(_set_aside(generations, number, error))
        return None
    try:
        strange = foreign_views(views, journal, recovery.last_seq)  # damage of the journal says nothing about the views
    except BaseException:
        engine.close()
        raise
    if strange is None:
        return engine, views
    engine.close()
    notes.append(_set_aside(generations, number, strange))
    return None


def _set_aside(generations: Generations, number: int, error: CorruptionError | RecoveryTimeout) -> str:
    """The generation is in quarantine, and what is wrong with it is told; a note that says so."""
    if isinstance(error, CorruptionError):
        corruption_found(error)
    moved = generations.quarantine(number)
    return f"views rebuilt from the journal: {error}; the old ones are in {moved.name}"


def foreign_views(views: Views, journal: FrameSource, last_seq: int) -> CorruptionError | None:
    """What is wrong if the views were made of another journal than this, which ends with frame ``last_seq``.

    Raises ``CommitLoss`` if they hold more than it, and what the journal raises.
    """
    applied = views.applied
    if applied is None:
        return None
    newest = max(applied.seq, applied.flushing or 0)
    if newest > last_seq:
        raise CommitLoss("the views hold commits that the journal has lost", applied_seq=newest, journal_seq=last_seq)
    if applied.seq < journal.first_seq or journal.frame(applied.seq).digest == applied.digest:
        return None
    return CorruptionError(
        "the views belong to another history of the journal", seq=applied.seq, recovery=Recovery.REBUILD
    )
