"""Plans: what would be done to a store, what it costs and what it loses.

Invariants:
    * A plan without loss was judged as an open would judge its result, before anything of it is done.
    * What is whole is not touched by a plan that loses nothing.
    * A plan with loss says which blocks, as far as anything still names them, and its result may not sign.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from .._fs import File
from ..backup.envelope import CHUNK_BYTES
from ..backup.manifest import BaseFile
from ..errors import CorruptionError, HoldfastError
from ..journal.api import DurableMark
from ..journal.recovery import JOURNAL_DIRECTORY, inspect_journal
from ..journal.segment import segment_name, segment_number
from ..journal.watermark import WATERMARK_NAME
from ..state.checkpoint import CheckpointInfo
from ..state.snapshot import CHUNKS_NAME, MANIFEST_NAME, SnapshotInfo
from ..store.base import BASE_NAME, spec_of
from ..store.chain import check_same_chain
from ..store.generations import Generations
from ..store.identity import IDENTITY_NAME
from .diagnose import Case, canonical_in_views
from .lineage import canonical_from
from .loss import Kept, kept_blocks, loss_above, loss_behind, tip_of
from .overlay import Overlay
from .pieces import Builder, Chain, Piece
from .report import Loss, Plan, Rung, Step
from .sources import BytesFile

__all__ = ["Place", "Work", "plan_checkpoint", "plan_journal", "plan_lossless"]

_PLAIN = re.compile(r"[0-9A-Za-z-][0-9A-Za-z.-]*")
VIEWS_CURRENT = "views/CURRENT"
TREE_IMAGE = "tree/image"


class Place(NamedTuple):
    """Bytes of a file to be, and the check that they are right once they are written. It raises ``CorruptionError``."""

    make: Callable[[], File]
    check: Callable[[File], None]


@dataclass(slots=True)
class Work:
    """A plan, and what is needed to do it. Paths are relative to the store."""

    plan: Plan
    identity: bytes
    """What ``holdfast.toml`` holds afterwards; empty if the new store has its own."""
    places: dict[str, Place] = field(default_factory=dict)
    away: list[str] = field(default_factory=list)
    mark: DurableMark | None = None
    """The watermark afterwards, if it is another one."""
    checkpoint: str | None = None
    """The checkpoint that a new store is made of first."""
    known: bool = True
    """False if nobody knows whether the checkpoint's block is canonical."""
    lost: int = 0
    """Canonical blocks that are known to be lost."""


@dataclass(slots=True)
class _Draft:
    """A plan in the making."""

    case: Case
    steps: list[Step] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    away: list[str] = field(default_factory=list)

    def put(self, name: str, length: int, source: str, place: Place, *, cut: bool = False) -> None:
        """``name`` gets ``length`` new bytes; what is there goes to quarantine."""
        there = self.case.fs.exists(self.case.root / name)
        action = "add" if not there else "cut" if cut else "seal" if source == OWN else "replace"
        self.places[name] = place
        if there:
            self.away.append(name)
        self.steps.append(Step(name, action, source, length))  # type: ignore[arg-type]

    def set_aside(self, name: str) -> None:
        """``name`` goes to quarantine, if it is there."""
        if self.case.fs.exists(self.case.root / name) and name not in self.away:
            self.away.append(name)
            if name not in self.places:
                self.steps.append(Step(name, "set aside", "", 0))

    def work(
        self, rung: Rung, height: int | None, loss: Loss | None, *, fenced: bool, frames: int, mark: DurableMark | None
    ) -> Work:
        """The finished plan."""
        assert self.case.identity is not None
        plan = Plan(rung, tuple(self.steps), sum(step.bytes for step in self.steps), frames, height, fenced, loss)
        return Work(plan, self.case.identity.data, self.places, self.away, mark)


OWN = "its own frames"


def is_plain(name: str) -> bool:
    """True for a name that a store writes. What else somebody put into its directories stays where it is."""
    return _PLAIN.fullmatch(name) is not None


def segment_file(number: int) -> str:
    """Path of a segment below its store."""
    return f"{JOURNAL_DIRECTORY}/{segment_name(number)}"


# -- without loss ---------------------------------------------------------------------------------------------------


def plan_lossless(case: Case, builder: Builder | None, chain: Chain | None) -> Work | None:
    """The plan that loses nothing, or ``None``; ``case.reasons`` say why there is none."""
    if case.identity is None or case.problem is None or case.mark is None:
        if case.mark_problem is not None:
            case.reasons.append("without a watermark nobody knows which frame was the last one that was acknowledged")
        return None
    draft = _Draft(case)
    fenced = False
    if case.journal_problem is not None:
        assert builder is not None
        assert chain is not None
        if not chain.whole:
            case.reasons.append(_why(case, builder, chain))
            return None
        if case.keyless and chain.pieces[-1].backup is not None:
            case.reasons.append("without the key of the store its newest frames are not taken from a backup")
            return None
        for piece in chain.pieces:
            if not piece.keep:
                _put_piece(draft, builder, piece, cut=False)
        fenced = chain.pieces[-1].backup is not None and not case.mark.clean  # it may be behind after a power cut
        problem = _judged(case, draft, case.mark)
        if problem is not None:
            case.reasons.append(f"the backups do not make the journal whole: {problem.message}")
            return None
    if case.base_problem is not None and (case.base_foreign or case.base is None):
        case.reasons.append(f"no backup is of use: {case.base_problem.message}")
        return None
    if case.base_problem is not None and not _put_base(draft):
        case.reasons.append("no backup holds the files of base/ that are damaged")
        return None
    if case.identity_problem is not None:
        draft.steps.append(Step(IDENTITY_NAME, "replace", case.identity.source, len(case.identity.data)))
    return draft.work("lossless", None, None, fenced=fenced, frames=0, mark=None)


def _why(case: Case, builder: Builder, chain: Chain) -> str:
    if chain.doubt:
        return f"a block that was acknowledged may be lost: {chain.doubt}"
    place = len(chain.pieces) + 1
    said = "; ".join(dict.fromkeys(builder.damage)) or f"no backup of this store in {case.backups.place} has them"
    where = f"frames behind {chain.last_seq}" if chain.pieces else f"segment {place}"
    return f"{where} cannot be had: {said}"


def _put_piece(draft: _Draft, builder: Builder, piece: Piece, *, cut: bool) -> None:
    file = builder.open(piece, cut=cut)
    try:
        length = file.size()
    finally:
        file.close()
    place = Place(partial(builder.open, piece, cut=cut), partial(builder.check, piece))
    draft.put(segment_file(piece.number), length, piece.source, place, cut=cut)


def _judged(case: Case, draft: _Draft, mark: DurableMark) -> CorruptionError | None:
    """What an open would say of the journal that the draft makes."""
    assert case.identity is not None
    root, identity = case.root, case.identity.identity
    files = {root / name: place.make for name, place in draft.places.items()}
    overlay = Overlay(case.fs, files, {root / name for name in draft.away})
    try:
        inspect_journal(overlay, root, store_id=identity.store_id, salt=identity.salt, mark=mark)
    except CorruptionError as error:
        return error
    return None


# -- the base -------------------------------------------------------------------------------------------------------


def _put_base(draft: _Draft) -> bool:
    """Every file of ``base/`` that is not what a backup of this very base says is fetched from there."""
    case = draft.case
    assert case.base is not None
    wanted = case.base.manifest_digest.hex()
    for form in case.backups.forms:
        if not any(file.path == MANIFEST_NAME and file.sha256 == wanted for file in form.base):
            continue
        for file in form.base:
            name = f"{BASE_NAME}/{file.path}"
            if not _is_there(case, case.root / name, file):
                place = Place(partial(case.backups.open, case.root / name, file), partial(_check_base, file))
                draft.put(name, file.length, f"backup {form.name}", place)
        return True
    return False


def _is_there(case: Case, path: Path, file: BaseFile) -> bool:
    if not case.fs.exists(path):
        return False
    found = case.fs.open(path, read_only=True)
    try:
        return found.size() == file.length and digest_of(found) == file.sha256
    finally:
        found.close()


def _check_base(expected: BaseFile, file: File) -> None:
    if digest_of(file) != expected.sha256:
        raise CorruptionError("a file of the base has a wrong digest", path=file.path, expected=expected.sha256)


def digest_of(file: File) -> str:
    """SHA-256 of all bytes of a file, in hex."""
    state = sha256()
    for offset in range(0, file.size(), CHUNK_BYTES):
        state.update(file.pread(min(CHUNK_BYTES, file.size() - offset), offset))
    return state.hexdigest()


# -- with loss ------------------------------------------------------------------------------------------------------


def plan_journal(case: Case, builder: Builder, chain: Chain) -> Work | None:
    """The journal up to the last frame that files and backups hold; ``None`` if no open would take it."""
    if case.identity is None or not chain.last_seq or case.base_problem is not None or case.keyless:
        return None
    draft = _Draft(case)
    _strip(builder, chain)
    if not chain.last_seq:
        return None
    last = chain.pieces[-1]
    for piece in chain.pieces:
        cut = piece is last and not piece.sealed
        if cut or not piece.keep:
            _put_piece(draft, builder, piece, cut=cut)
    if last.keep and builder.compacted(last) is not None:  # the newest segment is never a compacted one (4.1)
        behind, data = builder.begun_behind(last)
        make = partial(BytesFile, case.root / segment_file(behind.number), data)
        draft.put(segment_file(behind.number), len(data), OWN, Place(make, partial(builder.check, behind)))
    for name in case.fs.names(case.root / JOURNAL_DIRECTORY):
        number = segment_number(name)
        if (number is None or number > last.number) and is_plain(name):
            draft.set_aside(f"{JOURNAL_DIRECTORY}/{name}")
    mark = DurableMark(1, last.state.last_seq, last.state.digest, last.number, last.state.frames_end, last.sealed, None)
    for name in (WATERMARK_NAME, VIEWS_CURRENT, TREE_IMAGE, *_views(case)):
        draft.set_aside(name)
    if _judged(case, draft, mark) is not None:
        return None
    tip = tip_of(builder, chain, case.parts)
    kept = kept_blocks(builder, chain, None if tip is None else tip[0], case.parts)
    if case.base is not None:
        kept.hashes.add(case.base.hash)
    canonical = {height: each for height, each in canonical_from(case, kept.floor).items() if height >= kept.floor}
    loss = loss_behind(
        case.fs,
        case.root,
        case.identity.identity,
        case.segments,
        kept,
        case.newest_tip,
        exact=case.mark is not None,
        cipher=case.parts,
        canonical=[
            *canonical.items(),
            *((height, each) for height, each in _in_views(case, kept) if height not in canonical),
        ],
    )
    height = None if tip is None else tip[0]
    work = draft.work("backup", height, loss, fenced=True, frames=chain.last_seq, mark=mark)
    work.lost = sum(each not in kept.hashes for each in canonical.values())
    return work


def _views(case: Case) -> list[str]:
    """The rows of the views: perhaps the only copy of what is lost, and the next open would delete them."""
    generations = Generations(case.fs, case.root)
    paths = [generations.data_path(number) for number in generations.numbers()]
    return [path.relative_to(case.root).as_posix() for path in paths if case.fs.exists(path)]


def _strip(builder: Builder, chain: Chain) -> None:
    """The last piece ends with a frame, so that a watermark can name it, and its bytes can be had."""
    while chain.pieces:
        last = chain.pieces[-1]
        compacted = None if last.sealed else builder.compacted(last)
        if last.state.last_seq >= last.state.first_seq and not (compacted is not None and compacted.pruned_bytes):
            return
        chain.pieces.pop()


def _in_views(case: Case, kept: Kept) -> list[tuple[int, bytes]]:
    """Blocks above the tip that stays, which the views call canonical."""
    return canonical_in_views(case, 0 if kept.height is None else kept.height + 1)


def plan_checkpoint(case: Case, told: Callable[[int, int], None] | None = None) -> Work | None:
    """A new store on the highest checkpoint that is whole and canonical; ``None`` if there is none.

    One of which nobody knows whether it is canonical is only taken where there is no other, and the plan says so.
    """
    assert case.checkpoints is not None
    infos = [info for info in case.checkpoint_infos if info.snapshot is not None and _is_ours(case, info)]
    canonical = canonical_from(case, min((info.height for info in infos), default=0))
    unknown = []
    for info in infos:
        assert info.snapshot is not None
        if info.height not in canonical:
            unknown.append(info)
        elif canonical[info.height] != info.snapshot.block_hash:
            case.reasons.append(f"checkpoint {info.name} cannot be used: its block is not canonical any more")
        elif _is_whole(case, info, told):
            return _plan_checkpoint(case, info, info.snapshot, canonical)
    for info in unknown:
        if canonical and info.height > max(canonical):
            case.reasons.append(f"checkpoint {info.name} cannot be used: its block is above the newest tip")
        elif info.snapshot is not None and _is_whole(case, info, told):
            return _plan_checkpoint(case, info, info.snapshot, canonical)
    return None


def _is_ours(case: Case, info: CheckpointInfo) -> bool:
    """True if the checkpoint is of the chain of the store, where that is known."""
    assert case.checkpoints is not None
    spec = case.spec if case.identity is None else case.identity.identity.spec
    if spec is None:
        return True
    try:
        check_same_chain(spec_of(case.checkpoints.reader(info.name).manifest), spec, "checkpoint", case.root)
    except HoldfastError as error:
        case.reasons.append(f"checkpoint {info.name} cannot be used: {error.message}")
        return False
    return True


def _is_whole(case: Case, info: CheckpointInfo, told: Callable[[int, int], None] | None) -> bool:
    assert case.checkpoints is not None
    try:
        case.checkpoints.verify(info.name, progress=told)
    except HoldfastError as error:
        case.reasons.append(f"checkpoint {info.name} cannot be used: {error.message}")
        return False
    return True


def _plan_checkpoint(case: Case, info: CheckpointInfo, snapshot: SnapshotInfo, canonical: dict[int, bytes]) -> Work:
    identity = None if case.identity is None else case.identity.identity
    height, known = info.height, info.height in canonical
    loss = loss_above(
        case.fs,
        case.root,
        identity,
        case.segments,
        height,
        case.newest_tip,
        exact=case.mark is not None and known,
        cipher=case.parts,
        canonical=[each for each in canonical.items() if each[0] > height] or canonical_in_views(case, height + 1),
        unknown="" if known else f"nobody knows whether block {snapshot.block_hash.hex()} is canonical; ",
    )
    away = [
        *(f"{JOURNAL_DIRECTORY}/{each}" for each in case.fs.names(case.root / JOURNAL_DIRECTORY) if is_plain(each)),
        *(
            f"{BASE_NAME}/{CHUNKS_NAME}/{each}"
            for each in case.fs.names(case.root / BASE_NAME / CHUNKS_NAME)
            if is_plain(each)
        ),
        *(
            each
            for each in (f"{BASE_NAME}/{MANIFEST_NAME}", WATERMARK_NAME, VIEWS_CURRENT, TREE_IMAGE, *_views(case))
            if case.fs.exists(case.root / each)
        ),
    ]
    steps = (
        Step(JOURNAL_DIRECTORY, "replace", f"checkpoint {info.name}", 0),
        Step(BASE_NAME, "replace", f"checkpoint {info.name}", snapshot.stored_bytes),
    )
    plan = Plan("checkpoint", steps, snapshot.stored_bytes, 1, height, True, loss)
    return Work(plan, b"", away=away, checkpoint=info.name, known=known)
