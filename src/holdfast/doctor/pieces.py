"""The best journal that the files of a store and its backups make together, segment by segment.

Invariants:
    * Every piece follows from the one before it, and ends with the frame that the header behind it or the watermark
      asks for, where one of them does. What is there and whole stays as it is.
    * A piece is named only after its bytes were read and found right, wherever they come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .._fs import File, FileSystem
from ..backup.manifest import Manifest, SegmentFile
from ..errors import BackupDamaged, CorruptionError, HoldfastError
from ..journal.api import Frame
from ..journal.compacted import CompactedFile, open_segment
from ..journal.recovery import frames_alone
from ..journal.segment import SEGMENT_HEADER_BYTES, Segment, SegmentHeader, decode_header, encode_header
from ..store.identity import Identity
from .examine import SegmentState, examine_file, segment_path
from .sources import Backups, PatchedFile, TailFile

__all__ = ["Builder", "Chain", "Mark", "Piece"]


class Mark(NamedTuple):
    """A frame that was acknowledged: whoever lost it lost something. ``clean``: the journal was closed behind it."""

    seq: int
    digest: bytes
    segment: int
    clean: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """Segment ``number``: frames up to ``state.frames_end``, with a seal if ``sealed``.

    Local bytes if there is no ``backup``; else those of the backup, up to ``split`` where local ones follow.
    ``keep``: the file stays as it is.
    """

    number: int
    state: SegmentState
    sealed: bool
    keep: bool
    backup: tuple[Manifest, SegmentFile] | None = None
    split: int | None = None

    @property
    def source(self) -> str:
        """Where its bytes come from, for people."""
        if self.backup is None:
            return "its own frames"
        text = f"backup {self.backup[0].name}"
        return text if self.split is None else f"{text}, and its own frames behind it"


class Chain(NamedTuple):
    """Pieces that follow from one another. ``whole`` if every frame that may have been acknowledged is in them.

    ``doubt`` says why it is not whole, where something other than a missing frame speaks against it.
    """

    pieces: list[Piece]
    whole: bool
    doubt: str = ""

    @property
    def last_seq(self) -> int:
        """Seq of the last frame; 0 if there is none."""
        return self.pieces[-1].state.last_seq if self.pieces else 0


class Own(NamedTuple):
    """A frame that stands in a local file."""

    seq: int
    digest: bytes
    offset: int


class _Step(NamedTuple):
    """A piece that a chain may take next; ``on``: another one may follow. ``own``: frames of it in local files."""

    piece: Piece
    on: bool
    own: int


class Builder:
    """Puts the journal of one store together."""

    def __init__(
        self, fs: FileSystem, root: Path, identity: Identity, segments: dict[int, SegmentState], backups: Backups
    ) -> None:
        self._fs = fs
        self._root = root
        self._identity = identity
        self._segments = segments
        self._backups = backups
        self._own: dict[int, list[Own]] = {}
        self._looked_at: dict[tuple[str, int, int | None], SegmentState | None] = {}
        self.damage: list[str] = []
        """What was wrong with backups that could not be used."""

    def build(self, marks: list[Mark]) -> Chain:
        """A chain that is whole, if there is one; else that with the most frames of local files, and then the longest.

        Where nothing proves which copy of a segment is the right one, each is tried.
        """
        newest = max(marks, key=lambda mark: mark.seq, default=None)
        best, rank, doubt = list[Piece](), (-1, -1), ""
        taken: list[_Step] = []
        seen = set[tuple[int, bytes, bool]]()
        ways = [self._steps(1, 0, bytes(32), marks)]
        while ways:
            step = next(ways[-1], None)
            if step is None:
                ways.pop()
                del taken[-1:]
                continue
            state = step.piece.state
            on = step.on and self._more(state.number + 1, state.last_seq, newest)
            backed = step.on and not on and self._behind(step.piece) is not None
            place = (state.number, state.digest, on)
            if place in seen:
                continue
            seen.add(place)
            found = [*(each.piece for each in taken), step.piece]
            worth = (sum(each.own for each in taken) + step.own, state.last_seq)
            problem = None
            if not on:
                problem = self._doubt(Chain(found, False), marks)
                if problem is None:
                    return Chain(found, True)
            if worth > rank:
                best, rank, doubt = found, worth, problem or ""
            if on or backed:
                taken.append(step)
                ways.append(self._steps(state.number + 1, state.last_seq, state.digest, marks))
        return Chain(best, False, doubt)

    def _doubt(self, chain: Chain, marks: list[Mark]) -> str | None:
        """Why the chain may lack a frame that was acknowledged; empty if frames are simply missing."""
        last = chain.pieces[-1]
        if any(each.number > last.number and each.begun for each in self._segments.values()):
            return ""
        if not all(self._holds(chain, mark) for mark in marks):
            return ""
        known = max((mark.seq for mark in marks), default=0)
        kept = {piece.number for piece in chain.pieces if piece.keep}
        behind = {
            frame.seq: frame.digest
            for piece in chain.pieces
            if piece.state.last_seq > known
            for frame in self.frames(piece)
        }
        own: dict[int, bytes] = {}
        for state in self._segments.values():
            if state.bytes and state.number not in kept:
                own |= {frame.seq: frame.digest for frame in self._alone(state.number) if frame.seq >= known}
        lost = [seq for seq, digest in own.items() if seq > known and behind.get(seq) != digest]
        if lost:
            return f"frame {min(lost)} can still be read, and nothing leads up to it"
        end = (last.state.last_seq, last.state.digest)
        closed = any(mark.clean and (mark.seq, mark.digest) == end for mark in marks)
        more = None if closed else self._behind(last)
        if more is not None:
            return f"backup {more} holds frames behind frame {end[0]}"
        if last.backup is not None and last.split is None and not closed and own.get(end[0]) != end[1]:
            return f"only backups say that frame {end[0]} is the last one"
        return None

    def _behind(self, piece: Piece) -> str | None:
        """The name of a backup that holds frames which follow from the last one of the piece."""
        end = (piece.state.last_seq, piece.state.digest)
        for form, entry, before in self._backups.entries(piece.number + 1):
            if (entry.first_seq, before) == (end[0] + 1, end[1].hex()) and entry.last_seq > end[0]:
                return form.name
        for form, entry, _ in self._backups.entries(piece.number):
            if entry.first_seq == piece.state.first_seq and entry.last_seq > end[0]:
                state = self._examined(form, entry, None)
                whole = None if state is None else Piece(piece.number, state, False, False, (form, entry))
                if whole is not None and any((each.seq, each.digest) == end for each in self.frames(whole)):
                    return form.name
        return None

    def _more(self, number: int, seq: int, newest: Mark | None) -> bool:
        local = any(each.begun for each in self._segments.values() if each.number >= number)
        return local or (newest is not None and (newest.seq > seq or newest.segment >= number))

    def _wanted(self, number: int, marks: list[Mark]) -> tuple[int, bytes] | None:
        """Seq and digest of the frame that segment ``number`` ends with, if that is known."""
        after = self._segments.get(number + 1)
        if after is not None and after.begun:
            return after.first_seq - 1, after.previous
        for mark in marks:
            if mark.clean and mark.segment == number:
                return mark.seq, mark.digest
        return None

    # -- one segment --------------------------------------------------------------------------------------------

    def _steps(self, number: int, seq: int, digest: bytes, marks: list[Mark]) -> Iterator[_Step]:
        """What segment ``number`` may be, own frames first; one alone where its end is known and can be had."""
        wanted = self._wanted(number, marks)
        local = self._segments.get(number)
        follows = local is not None and local.begun and (local.first_seq, local.previous) == (seq + 1, digest)
        if local is not None and follows:
            own = local.last_seq - seq
            if wanted == (local.last_seq, local.digest):
                yield _Step(Piece(number, local, sealed=True, keep=local.state == "sealed"), True, own)
                return
            if wanted is None and local.state == "sealed":
                yield _Step(Piece(number, local, sealed=True, keep=True), True, own)
        offers: list[tuple[Piece, int]] = []
        for piece in self._offers(number, seq, digest, local, wanted):
            if wanted is not None and wanted == (piece.state.last_seq, piece.state.digest):
                yield _Step(Piece(number, piece.state, True, False, piece.backup, piece.split), True, wanted[0] - seq)
                return
            worth = self._own_frames(piece, marks)
            if worth is not None:
                offers.append((piece, worth))
        if local is not None and follows:
            yield _Step(Piece(number, local, sealed=False, keep=True), False, local.last_seq - seq)
        offers.sort(key=lambda each: -each[1])
        for on in (True, False):
            for piece, worth in offers:
                if not on or (wanted is None and piece.sealed and not self._goes_on(piece)):
                    yield _Step(piece, on, worth)

    def _own_frames(self, piece: Piece, marks: list[Mark]) -> int | None:
        """Number of its frames that are in the local file; ``None`` if the file or a mark has another one for a seq."""
        own = {frame.seq: frame.digest for frame in self._alone(piece.number)}
        found = 0
        for frame in self.frames(piece):
            if any(mark.seq == frame.seq and mark.digest != frame.digest for mark in marks):
                return None
            if own.get(frame.seq, frame.digest) != frame.digest:
                return None
            found += frame.seq in own
        return found

    def _goes_on(self, piece: Piece) -> bool:
        """True if the local file holds frames behind those of the piece."""
        return any(frame.seq > piece.state.last_seq for frame in self._alone(piece.number))

    def _alone(self, number: int) -> list[Own]:
        """Frames of the local file of segment ``number`` that can be read, wherever they stand."""
        state = self._segments.get(number)
        if state is None or not state.bytes:
            return []
        if number not in self._own:
            try:
                file = self._fs.open(segment_path(self._root, number), read_only=True)
            except HoldfastError:
                return []
            try:
                found = frames_alone(file, 0, self._identity.salt)
                self._own[number] = [Own(frame.seq, frame.digest, frame.offset) for frame in found]
            finally:
                file.close()
        return self._own[number]

    def _offers(
        self, number: int, seq: int, digest: bytes, local: SegmentState | None, wanted: tuple[int, bytes] | None
    ) -> Iterator[Piece]:
        """What the backups have of segment ``number``, read and found right; with what follows in the local file."""
        entries = list(self._backups.entries(number))
        entries.sort(
            key=lambda each: (
                wanted != (each[1].last_seq, bytes.fromhex(each[1].digest)),
                not self._agrees(each[0], number),
            )
        )
        for form, entry, before in entries:
            if entry.first_seq != seq + 1 or (before is not None and before != digest.hex()):
                continue
            for split in self._splits(number, local, entry):
                state = self._examined(form, entry, split)
                if (
                    state is not None
                    and state.previous == digest
                    and (state.number, state.first_seq) == (number, seq + 1)
                ):
                    yield Piece(number, state, False, False, (form, entry), split)
            state = self._examined(form, entry, None)
            if state is not None and (state.previous, state.digest.hex()) == (digest, entry.digest):
                yield Piece(number, state, entry.sealed, False, (form, entry))

    def _splits(self, number: int, local: SegmentState | None, entry: SegmentFile) -> list[int]:
        """Where the bytes of a backup may end and those of the local file go on: behind the damage, or at its end."""
        if local is None:
            return []
        splits = []
        start, after = 0, local.last_seq + 1
        for frame in self._alone(number):
            if frame.seq != after:
                start = frame.offset
            after = frame.seq + 1
        if local.frames_end < start < entry.frames_end:
            splits.append(start)
        if local.bytes > entry.frames_end:
            splits.append(entry.frames_end)
        return splits

    def _agrees(self, form: Manifest, number: int) -> bool:
        """True if the backup goes on with the next segment that is there: one of another copy of the store does not."""
        after = min((each.number for each in self._segments.values() if each.begun and each.number > number), default=0)
        index = after - 1 - form.segments[0].number
        return 0 <= index < len(form.segments) and form.segments[index].digest == self._segments[after].previous.hex()

    def _examined(self, form: Manifest, entry: SegmentFile, split: int | None) -> SegmentState | None:
        place = (form.name, entry.number, split)
        if place not in self._looked_at:
            self._looked_at[place] = self._examine(form, entry, split)
        return self._looked_at[place]

    def _examine(self, form: Manifest, entry: SegmentFile, split: int | None) -> SegmentState | None:
        try:
            file = self._join(entry, split)
            try:
                state = examine_file(file, entry.number, self._identity, stop=None if split else entry.frames_end)
            finally:
                file.close()
        except (CorruptionError, BackupDamaged) as error:
            self.damage.append(f"backup {form.name}: {error.message}")
            return None
        except HoldfastError as error:
            self.damage.append(f"backup {form.name} cannot be read: {error.message}")
            return None
        if split is None and state.digest.hex() != entry.digest:
            self.damage.append(f"backup {form.name}: {state.problem or 'another segment'} in segment {entry.number}")
            return None
        return state

    def _join(self, entry: SegmentFile, split: int | None) -> File:
        path = segment_path(self._root, entry.number)
        stored = self._backups.open(path, entry)
        if split is None:
            return stored
        return PatchedFile(stored, self._fs.open(path, read_only=True), split)

    # -- bytes --------------------------------------------------------------------------------------------------

    def open(self, piece: Piece, *, cut: bool = False) -> File:
        """The bytes of the piece as its file will hold them; ``cut``: nothing behind its last frame."""
        path = segment_path(self._root, piece.number)
        if piece.backup is None:
            stored = open_segment(self._fs, path, salt=self._identity.salt)
        else:
            stored = self._join(piece.backup[1], piece.split)
        if piece.keep and (piece.sealed or not cut):
            return stored
        return TailFile(stored, piece.state.frames_end, self._seal(piece) if piece.sealed else b"")

    def _seal(self, piece: Piece) -> bytes:
        file = self.open(Piece(piece.number, piece.state, False, False, piece.backup, piece.split), cut=True)
        try:
            header = decode_header(
                file.pread(SEGMENT_HEADER_BYTES, 0),
                store_id=self._identity.store_id,
                salt=self._identity.salt,
                path=file.path,
            )
            assert header is not None
            segment = Segment(file.path, header)
            examine_file(
                file,
                piece.number,
                self._identity,
                lambda frame: segment.add(frame.offset, frame.offset + frame.length, frame.digest),
                piece.state.frames_end,
            )
            return segment.seal_bytes(self._identity.salt)
        finally:
            file.close()

    def compacted(self, piece: Piece) -> CompactedFile | None:
        """The piece, if it is a compacted file of the store itself; closed, for its figures alone."""
        if piece.backup is not None:
            return None
        file = open_segment(self._fs, segment_path(self._root, piece.number), salt=self._identity.salt)
        file.close()
        return file if isinstance(file, CompactedFile) else None

    def begun_behind(self, piece: Piece) -> tuple[Piece, bytes]:
        """A segment behind ``piece`` that holds nothing yet, and its bytes."""
        number, seq, digest = piece.number + 1, piece.state.last_seq, piece.state.digest
        header = SegmentHeader(number, seq + 1, digest)
        data = encode_header(header, store_id=self._identity.store_id, salt=self._identity.salt)
        state = SegmentState(number, "open", seq + 1, seq, digest, digest, len(data), len(data))
        return Piece(number, state, sealed=False, keep=False), data

    def check(self, piece: Piece, file: File) -> None:
        """Raises ``CorruptionError`` unless ``file`` holds the piece."""
        state = examine_file(file, piece.number, self._identity)
        expected, found = piece.state, (state.last_seq, state.digest, state.previous, state.frames_end)
        wanted = (expected.last_seq, expected.digest, expected.previous, expected.frames_end)
        if found != wanted or (piece.sealed and state.state != "sealed"):
            raise CorruptionError("a segment is not what it should be after it was written", path=file.path)

    def frames(self, piece: Piece) -> list[Frame]:
        """Every frame of the piece."""
        found: list[Frame] = []
        file = self.open(piece, cut=True)
        try:
            examine_file(file, piece.number, self._identity, found.append, piece.state.frames_end)
        finally:
            file.close()
        return found

    def _holds(self, chain: Chain, mark: Mark) -> bool:
        for piece in chain.pieces:
            if piece.state.first_seq <= mark.seq <= piece.state.last_seq:
                if mark.seq == piece.state.last_seq:
                    return mark.digest == piece.state.digest
                return any(frame.seq == mark.seq and frame.digest == mark.digest for frame in self.frames(piece))
        return False
