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
    """Pieces that follow from one another. ``whole`` if every frame that is known to be acknowledged is in them."""

    pieces: list[Piece]
    whole: bool

    @property
    def last_seq(self) -> int:
        """Seq of the last frame; 0 if there is none."""
        return self.pieces[-1].state.last_seq if self.pieces else 0


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
        self.damage: list[str] = []
        """What was wrong with backups that could not be used."""

    def build(self, marks: list[Mark]) -> Chain:
        """The longest chain of pieces that holds ``marks`` if that is possible."""
        pieces: list[Piece] = []
        seq, digest, number = 0, bytes(32), 1
        newest = max(marks, key=lambda mark: mark.seq, default=None)
        while True:
            piece = self._closed(number, seq, digest, marks, newest)
            last = piece is None
            if piece is None:
                piece = self._tail(number, seq, digest, newest)
            if piece is None:
                break
            pieces.append(piece)
            seq, digest, number = piece.state.last_seq, piece.state.digest, number + 1
            if last or not self._more(number, seq, newest):
                break
        chain = Chain(pieces, False)
        behind = [each for each in self._segments.values() if each.number >= number and each.begun]
        return Chain(pieces, not behind and bool(pieces) and all(self._holds(chain, mark) for mark in marks))

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

    def _closed(self, number: int, seq: int, digest: bytes, marks: list[Mark], newest: Mark | None) -> Piece | None:
        """Segment ``number`` with its seal, or ``None``."""
        wanted = self._wanted(number, marks)
        local = self._segments.get(number)
        follows = local is not None and local.begun and (local.first_seq, local.previous) == (seq + 1, digest)
        if local is not None and follows:
            end = (local.last_seq, local.digest)
            if local.state == "sealed" and wanted in (None, end):
                return Piece(number, local, sealed=True, keep=True)
            if wanted == end:
                return Piece(number, local, sealed=True, keep=False)
            if wanted is None and (newest is None or newest.seq <= local.last_seq):
                return None  # the segment that was written to last: a backup may be of another copy of the store
        for piece in self._offers(number, seq, digest, local if follows else None, wanted):
            found = (piece.state.last_seq, piece.state.digest)
            if found == wanted or (wanted is None and piece.sealed):
                return Piece(number, piece.state, True, False, piece.backup, piece.split)
        return None

    def _tail(self, number: int, seq: int, digest: bytes, newest: Mark | None) -> Piece | None:
        """The last segment, as far as it goes."""
        local = self._segments.get(number)
        best: Piece | None = None
        if local is not None and local.begun and (local.first_seq, local.previous) == (seq + 1, digest):
            best = Piece(number, local, sealed=False, keep=True)
            if newest is None or local.last_seq >= newest.seq:
                return best
        for piece in self._offers(number, seq, digest, local, None):
            if best is None or piece.state.last_seq > best.state.last_seq:
                best = piece
        return best

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
            state = self._examined(form, entry, None)
            if state is None or (state.previous, state.digest.hex()) != (digest, entry.digest):
                continue
            yield Piece(number, state, entry.sealed, False, (form, entry))
            if local is not None and not entry.sealed and local.bytes > entry.frames_end:
                state = self._examined(form, entry, entry.frames_end)
                if state is not None and state.last_seq > entry.last_seq:
                    yield Piece(number, state, False, False, (form, entry), entry.frames_end)

    def _agrees(self, form: Manifest, number: int) -> bool:
        """True if the backup goes on with the next segment that is there: one of another copy of the store does not."""
        after = min((each.number for each in self._segments.values() if each.begun and each.number > number), default=0)
        index = after - 1 - form.segments[0].number
        return 0 <= index < len(form.segments) and form.segments[index].digest == self._segments[after].previous.hex()

    def _examined(self, form: Manifest, entry: SegmentFile, split: int | None) -> SegmentState | None:
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
