"""What is wrong with a store at rest, in all its parts.

Invariants:
    * Nothing is written, and every byte of the journal and of ``base/`` is read.
    * What cannot be found out is a reason in the report, never an end of the examination.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .._fs import File, FileSystem
from .._keys import given_key
from .._seal import PartCipher, StoreCipher
from ..backup.keys import BackupKey
from ..backup.manifest import decode_store
from ..blocks.lookup import canonical_hash
from ..blocks.state import decode_state
from ..config import Settings
from ..engine.open import open_engine, probe_engine
from ..engine.sealed import sealed_engine
from ..errors import (
    CommitLoss,
    CorruptionError,
    EngineError,
    HoldfastError,
    KeyRejected,
    KeyRequired,
    RecoveryTimeout,
    SnapshotInvalid,
)
from ..journal.api import DurableMark, Frame, Kind, TipMark
from ..journal.codec import CODEC_SEALED, HEAD_BYTES_MAX, decode_part, parse_head
from ..journal.compacted import open_segment
from ..journal.recovery import inspect_journal
from ..journal.segment import SEGMENT_HEADER_BYTES
from ..state.checkpoint import CheckpointDirectory, CheckpointInfo
from ..state.sealing import FileKeys, check_stored
from ..store.base import BASE_NAME, BaseEntry, decode_base, foreign_base, open_base
from ..store.chain import ChainSpec
from ..store.first_frame import read_kept
from ..store.generations import Generations
from ..store.identity import Identity
from ..store.unlocking import file_keys, unlock
from ..types import ZERO_HASH
from ..views.flush import load_applied
from ..views.rows import decode_row
from .examine import (
    FoundIdentity,
    SegmentState,
    claimed_store_id,
    examine_identity,
    examine_segments,
    fits_journal,
    read_watermark,
    segment_path,
)
from .pieces import Mark
from .sources import Backups, checkpoints_of, find_backups

__all__ = ["Case", "Told", "ViewsState", "canonical_in_views", "examine_store"]

Told = Callable[[int], None]
_PROBE_SECONDS = 30.0
_HEIGHTS_MAX = 10_000


@dataclass(slots=True)
class ViewsState:
    """What the views say of the journal that they were made of."""

    engine: str | None = None
    problem: HoldfastError | None = None
    seq: int = 0
    digest: bytes = ZERO_HASH
    tip: TipMark | None = None


@dataclass(slots=True)
class Case:
    """Everything that was found."""

    fs: FileSystem
    root: Path
    backups: Backups
    identity: FoundIdentity | None = None
    identity_problem: HoldfastError | None = None
    mark: DurableMark | None = None
    mark_problem: HoldfastError | None = None
    segments: dict[int, SegmentState] = field(default_factory=dict)
    journal_problem: HoldfastError | None = None
    base: BaseEntry | None = None
    base_problem: HoldfastError | None = None
    base_foreign: bool = False
    """The base was made by somebody without the key of the store."""
    views_looked_at: ViewsState | None = None
    cipher: StoreCipher | None = None
    key_problem: KeyRequired | None = None
    """The store is encrypted, and its key was not given: parts and rows cannot be read, frames can."""
    spec: ChainSpec | None = None
    """The chain that the caller says it is, if it says so."""
    checkpoints: CheckpointDirectory | None = None
    checkpoint_infos: list[CheckpointInfo] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    @property
    def views(self) -> ViewsState:
        """The views, looked at when somebody asks: it may take the start of a process."""
        if self.views_looked_at is None:
            self.views_looked_at = ViewsState() if self.identity is None or self.keyless else _examine_views(self)
        return self.views_looked_at

    @property
    def parts(self) -> PartCipher | None:
        """What parts of frames are encrypted with."""
        return None if self.cipher is None else self.cipher.parts

    @property
    def problem(self) -> HoldfastError | None:
        """The first thing that is wrong with the truth; the views are not part of it."""
        return self.identity_problem or self.mark_problem or self.journal_problem or self.base_problem

    @property
    def newest_tip(self) -> TipMark | None:
        """The newest block that something other than the journal says was the tip: newer, not higher."""
        if self.mark is not None and self.mark.tip is not None and self.mark.seq >= self.views.seq:
            return self.mark.tip
        return self.views.tip or (None if self.mark is None else self.mark.tip)

    @property
    def newest_tip_seq(self) -> int:
        """The frame after which ``newest_tip`` was the tip; 0 if there is none."""
        if self.newest_tip is None:
            return 0
        return self.mark.seq if self.mark is not None and self.newest_tip is self.mark.tip else self.views.seq

    @property
    def marks(self) -> list[Mark]:
        """The newest frames that are known to have been acknowledged; of the views, if somebody looked at them."""
        marks = []
        if self.mark is not None:
            marks.append(Mark(self.mark.seq, self.mark.digest, self.mark.segment, self.mark.clean))
        views = self.views_looked_at
        if views is not None and views.seq:
            marks.append(Mark(views.seq, views.digest, 0, False))
        return marks

    @property
    def keyless(self) -> bool:
        """True if not everything could be looked at, for want of the key."""
        return self.key_problem is not None

    @property
    def sound(self) -> bool:
        """True if nothing is wrong, the views included. Without its key nobody knows that of an encrypted store."""
        return self.problem is None and self.views.problem is None and not self.keyless


def examine_store(
    fs: FileSystem,
    root: Path,
    settings: Settings,
    *,
    place: str | None = None,
    key: BackupKey | None = None,
    told: Told | None = None,
) -> Case:
    """The store at ``root``, which nobody has open. Cost: every byte of the journal and of ``base/`` is read.

    Raises ``KeyRejected`` if the key that ``using_key`` gave is not that of the identity it has, or would get; where
    nothing says which, that of its checkpoints.
    """
    found = examine_identity(fs, root)
    store_id = found.identity.store_id if isinstance(found, FoundIdentity) else claimed_store_id(fs, root)
    case = Case(fs, root, find_backups(fs, root, settings, store_id, place=place, key=key))
    if case.backups.problem is not None:
        case.reasons.append(f"the backups at {case.backups.place} cannot be used: {case.backups.problem.message}")
    if isinstance(found, FoundIdentity):
        case.identity, case.identity_problem = found, found.problem
    else:
        case.identity_problem = found
        case.identity = _identity_of_backup(case, found)
    if case.identity is None:
        case.reasons.append("nothing that can be read says which store this is")
        _examine_checkpoints(case, FileKeys(secret=given_key()))
        return case
    identity = case.identity.identity
    try:
        case.cipher = unlock(identity, None, root)
    except KeyRequired as error:
        case.key_problem = error
        case.reasons.append(f"without its key not everything can be looked at: {error.message}")
    _examine_checkpoints(case, file_keys(identity, case.cipher, given_key()))
    mark = read_watermark(fs, root, identity.salt)
    if isinstance(mark, DurableMark):
        case.mark = mark
    else:
        case.mark_problem = mark
    case.segments = examine_segments(fs, root, identity, 1 if case.mark is None else case.mark.segment, told)
    case.journal_problem = _journal_problem(case)
    _examine_base(case, told)
    return case


def _examine_checkpoints(case: Case, keys: FileKeys) -> None:
    """Which checkpoints there are. Where nothing else is left, they say whether a key is missing or another one.

    Raises ``KeyRejected`` if none of them opens with the key that was given.
    """
    case.checkpoints, case.checkpoint_infos = checkpoints_of(case.fs, case.root, keys)
    problems = [info.problem for info in case.checkpoint_infos]
    if case.identity is not None or None in problems:
        return
    for problem in problems:
        if isinstance(problem, KeyRejected):
            raise problem
        if isinstance(problem, KeyRequired):
            case.key_problem = problem


def _identity_of_backup(case: Case, problem: HoldfastError) -> FoundIdentity | None:
    for form in case.backups.forms:
        with contextlib.suppress(HoldfastError):
            identity = decode_store(form, place=case.backups.place)
            if fits_journal(case.fs, case.root, identity):
                return FoundIdentity(identity, form.identity_bytes, f"backup {form.name}", problem)
    return None


def canonical_in_views(case: Case, start: int) -> list[tuple[int, bytes]]:
    """Height and hash of the canonical blocks from ``start`` on that the views know, at most 10,000 of them."""
    found: list[tuple[int, bytes]] = []
    tip = case.views.tip
    if tip is None or case.views.engine is None:
        return found
    generations = Generations(case.fs, case.root)
    with contextlib.suppress(HoldfastError), contextlib.ExitStack() as stack:
        number = generations.current()
        assert number is not None
        plain = open_engine(case.views.engine, generations.data_path(number), create=False, read_only=True)
        stack.callback(plain.close)
        engine = sealed_engine(plain, None if case.cipher is None else case.cipher.rows)

        def get(key: bytes) -> bytes | None:
            stored = engine.get(key)
            return None if stored is None else decode_row(key, stored)

        for height in range(start, min(tip.height + 1, start + _HEIGHTS_MAX)):
            block_hash = canonical_hash(get, height)
            if block_hash is not None:
                found.append((height, block_hash))
    return found


def _examine_views(case: Case) -> ViewsState:
    state = ViewsState()
    generations = Generations(case.fs, case.root)
    try:
        number = generations.current()
        if number is None:
            return state
        state.engine = generations.engine_name(number)
        path = generations.data_path(number)
        probe_engine(state.engine, path, deadline_seconds=_PROBE_SECONDS)
        engine = open_engine(state.engine, path, create=False, read_only=True)
        try:
            applied = load_applied(sealed_engine(engine, None if case.cipher is None else case.cipher.rows))
        finally:
            engine.close()
        if applied is not None and applied.seq:
            state.seq, state.digest = applied.seq, applied.digest
            chain = decode_state(applied.state)
            if chain.has_tip:
                state.tip = TipMark(chain.tip_height, chain.tip_hash, chain.state_root)
    except (CorruptionError, EngineError, RecoveryTimeout) as error:
        state.problem = error
    return state


# -- the journal ----------------------------------------------------------------------------------------------------


def _journal_problem(case: Case) -> HoldfastError | None:
    assert case.identity is not None
    identity = case.identity.identity
    if case.mark is None:
        return None  # without a watermark nobody can judge the end; that is the problem
    try:
        found = inspect_journal(case.fs, case.root, store_id=identity.store_id, salt=identity.salt, mark=case.mark)
    except CorruptionError as error:
        return error
    for state in case.segments.values():
        closed = state.number < len(found.segments) or found.segments[-1].sealed
        if closed and state.number <= len(found.segments) and state.state != "sealed":
            return CorruptionError(f"a segment is damaged: {state.problem}", path=segment_path(case.root, state.number))
    if case.identity_problem is None and case.views.seq > found.last_seq:
        return CommitLoss(
            "the views hold commits that the journal has lost",
            applied_seq=case.views.seq,
            journal_seq=found.last_seq,
        )
    return None


# -- the base -------------------------------------------------------------------------------------------------------


def _examine_base(case: Case, told: Told | None) -> None:
    """The snapshot under the store is what the first frame says, if that frame can be read."""
    assert case.identity is not None
    first = case.segments.get(1)
    if first is None or not first.last_seq:
        return
    try:
        identity = case.identity.identity
        data = _base_part(case.fs, segment_path(case.root, 1), identity, case.parts)
        case.base = None if data is None else decode_base(data)
        case.base_problem = foreign_base(case.fs, case.root, case.base, identity)
        case.base_foreign = case.base_problem is not None
        if case.base is None or case.base_problem is not None:
            return
        for length in _base_lengths(case, case.base):
            if told is not None:
                told(length)
    except (SnapshotInvalid, CorruptionError) as error:
        case.base_problem = CorruptionError(
            f"the base of the store is damaged: {error.message}", path=case.root / BASE_NAME
        )


def _base_lengths(case: Case, entry: BaseEntry) -> Iterator[int]:
    """Length of each chunk of the base, verified as far as that goes with the key, or without it."""
    if entry.sealed and case.cipher is None:
        yield from check_stored(case.fs, case.root / BASE_NAME, entry.manifest_digest)
    else:
        for chunk in open_base(case.fs, case.root, entry, case.cipher).chunks():
            yield len(chunk.data)


def _base_part(fs: FileSystem, path: Path, identity: Identity, cipher: PartCipher | None) -> bytes | None:
    """The base in frame 1. With its ``cipher`` that of an encrypted store is believed if a part of the frame opens."""
    file = open_segment(fs, path, salt=identity.salt)
    try:
        head = read_kept(file, HEAD_BYTES_MAX, SEGMENT_HEADER_BYTES)
        frame = parse_head(head, salt=identity.salt, segment=1, offset=SEGMENT_HEADER_BYTES)
        if cipher is not None:
            _vouched(file, frame, cipher)
        for part in frame.parts:
            if part.kind == Kind.BASE:
                return decode_part(file.pread(part.stored_bytes, part.offset), part, segment=1, seq=1)
    finally:
        file.close()
    return None


def _vouched(file: File, frame: Frame, cipher: PartCipher) -> None:
    """An encrypted part of the first frame opens. Raises ``CorruptionError`` if none does, or if there is none."""
    for index, part in enumerate(frame.parts):
        if part.codec & CODEC_SEALED:
            stored = file.pread(part.stored_bytes, part.offset)
            decode_part(stored, part, segment=1, seq=1, index=index, bound=frame.bound, cipher=cipher)
            return
    raise CorruptionError("nothing in a frame of an encrypted journal is encrypted", segment=1, seq=1)
