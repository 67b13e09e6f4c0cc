"""What an earlier ``verify`` found sound, so that the next one does not read it again.

The file is JSON, replaced as a whole, and belongs to one store. It holds, by number, each sealed segment whose bytes
were all right, with its last digest; and how far the links of blocks were followed.

Sound to leave out, because it never changes once it is written:
    * sealed segments (check ``segments``), while their seal names the same digest and no other file replaced them;
    * links of blocks up to a frame (check ``blocks``), while that frame still has the same digest and the views can
      find older blocks. A block that is stored a second time far behind the first one is then found by ``views``.
Everything else is of the present (rows, tables, tree, history) or needs what came before (roots), and is checked anew.

Invariants:
    * Only what was found without a problem is written down.
    * A file of another store is refused; what was found in another copy of this one, or does not fit the journal any
      more, is forgotten.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec

from .._fs import FileSystem
from .._json import check_depth
from ..errors import HoldfastError, InvalidInputError
from ..journal.segment import Segment
from ..store.fingerprint import fingerprint

__all__ = ["LinksSeen", "ResumeFile"]

_FORMAT = 1
_BYTES_MAX = 64 * 1024 * 1024
_SAVE_SECONDS = 1.0


class LinksSeen(msgspec.Struct, frozen=True):
    """The links of blocks are right up to frame ``seq``; what the next frame must fit. Hashes are hex."""

    seq: int
    digest: str
    tip_height: int
    tip_hash: str
    floor: int
    finalized: int


class _Content(msgspec.Struct):
    format: int
    store_id: str
    segments: dict[str, str]
    """Number of a sealed segment, and the digest of its last frame in hex; ``/`` and the generation if compacted."""
    blocks: LinksSeen | None = None
    place: str = ""
    """Fingerprint of the copy of the store that was read, in hex; empty if that is not known."""


def _state_of(segment: Segment) -> str:
    return segment.digest.hex() + (f"/{segment.generation}" if segment.generation else "")


def _place(store: Path, store_id: bytes) -> str:
    try:
        return fingerprint(store, store_id).hex()
    except HoldfastError:  # the lock or the journal is missing: that is told by the checks
        return ""


class ResumeFile:
    """The file at ``path`` for the store ``store_id``; it is written while work goes on."""

    def __init__(self, fs: FileSystem, path: Path, store: Path, store_id: bytes) -> None:
        """Raises ``InvalidInputError`` for a file inside the store, of another store, of another form, or nowhere."""
        if path.resolve().is_relative_to(store.resolve()):
            raise InvalidInputError(
                "the file of progress lies in the store, which is not changed", path=path, remedy="name one elsewhere"
            )
        self._fs = fs
        self._path = path
        self._saved = 0.0
        self._dirty = False
        place = _place(store, store_id)
        self._content = _Content(_FORMAT, store_id.hex(), {}, place=place)
        if path.is_dir() or not path.parent.is_dir():
            raise InvalidInputError(
                "no file of progress can be here", path=path, remedy="name a file in a directory that is there"
            )
        if fs.exists(path):
            found = self._read(store_id)
            if place and found.place == place:
                self._content = found

    def _read(self, store_id: bytes) -> _Content:
        data = self._fs.read_bytes(self._path, limit=_BYTES_MAX)
        try:
            check_depth(data)
            found = msgspec.json.decode(data, type=_Content)
        except (ValueError, msgspec.DecodeError) as error:
            raise self._bad(f"the file of progress cannot be read: {error}") from error
        if found.format != _FORMAT:
            raise self._bad("the file of progress has another format", found=found.format, expected=_FORMAT)
        if found.store_id != store_id.hex():
            raise self._bad("the file of progress is of another store", found=found.store_id, expected=store_id.hex())
        return found

    def _bad(self, message: str, **context: Any) -> InvalidInputError:
        return InvalidInputError(
            message, path=self._path, remedy="name another file, or remove this one to begin anew", **context
        )

    def knows(self, segment: Segment) -> bool:
        """True if this segment, sealed as it is now, was found sound."""
        return segment.sealed and self._content.segments.get(str(segment.number)) == _state_of(segment)

    def sound(self, segment: Segment) -> None:
        """Every byte of this segment was checked; remembered if it can grow no more."""
        if segment.sealed:
            self._content.segments[str(segment.number)] = _state_of(segment)
            self._changed()

    @property
    def links(self) -> LinksSeen | None:
        """How far the links of blocks were followed."""
        return self._content.blocks

    @links.setter
    def links(self, seen: LinksSeen) -> None:
        self._content.blocks = seen
        self._changed()

    def _changed(self) -> None:
        self._dirty = True
        if time.monotonic() - self._saved >= _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """What was found so far is durable."""
        if self._dirty:
            self._fs.write_atomic(self._path, msgspec.json.encode(self._content))
            self._dirty, self._saved = False, time.monotonic()
