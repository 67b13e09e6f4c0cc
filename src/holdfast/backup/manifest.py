"""What a repository and a backup say about themselves (docs/FORMAT.md, sections 10.1, 10.3 and 10.4). Pure.

Invariants:
    * ``decode_x(encode_x(v)) == v``; any other bytes raise ``BackupDamaged``, or ``FormatTooNew``.
    * Everything here comes from others: numbers have limits, names of files follow from numbers or fit a pattern, and
      a manifest that was decoded does not contradict itself.
"""

from __future__ import annotations

import re
import secrets
import time
from datetime import UTC, datetime
from typing import Annotated, TypeVar

import msgspec

from .._json import check_depth
from ..errors import BackupDamaged, CorruptionError, FormatTooNew, InvalidInputError
from ..journal.segment import SEGMENT_HEADER_BYTES
from ..limits import FRAME_BYTES_MAX, HEIGHT_MAX
from ..store.identity import IDENTITY_BYTES_MAX, Identity, decode_identity
from .envelope import CHUNK_BYTES, HEAD_BYTES
from .keys import OVERHEAD_BYTES, Encryption
from .target import NAME_PATTERN

__all__ = [
    "FORMAT",
    "NAME_US_MAX",
    "BaseFile",
    "ChunkRef",
    "Manifest",
    "Mark",
    "Repository",
    "SegmentFile",
    "Tip",
    "Totals",
    "check_name",
    "decode_manifest",
    "decode_mark",
    "decode_repository",
    "decode_store",
    "encode",
    "name_time",
    "new_name",
    "pieces_of",
    "totals_of",
]

FORMAT = 1
NAME_US_MAX = 253_402_300_799_999_999
"""The last microsecond of the year 9999, after which names have no room; nothing was made later."""
_REPOSITORY_KIND = "holdfast-backups"
_MANIFEST_KIND = "holdfast-backup"
_SEGMENT_BYTES_MAX = 2 * FRAME_BYTES_MAX
_FILE_BYTES_MAX = 1 << 40
_OBJECT_BYTES_MAX = CHUNK_BYTES + HEAD_BYTES + OVERHEAD_BYTES
_SEGMENTS_MAX = 1_000_000
_BASE_FILES_MAX = 200_001
_CHUNKS_MAX = 4_000_000

_NAME = re.compile(NAME_PATTERN, re.ASCII)
_BASE_PATH = re.compile(r"manifest\.json|chunks/[0-9a-f]{64}-(0|[1-9][0-9]{0,2})\.hfc", re.ASCII)

_Number = Annotated[int, msgspec.Meta(ge=0, le=HEIGHT_MAX)]
_Made = Annotated[int, msgspec.Meta(ge=0, le=NAME_US_MAX)]
_Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", max_length=64)]
_Id = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$", max_length=32)]
_Text = Annotated[str, msgspec.Meta(max_length=IDENTITY_BYTES_MAX)]
_Identity = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{2})*$", max_length=2 * IDENTITY_BYTES_MAX)]
_Length = Annotated[int, msgspec.Meta(ge=1, le=_FILE_BYTES_MAX)]
_Stored = Annotated[int, msgspec.Meta(ge=HEAD_BYTES + 1, le=_OBJECT_BYTES_MAX)]
_T = TypeVar("_T")


class ChunkRef(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A chunk: its id in hex, and the length of its object."""

    id: _Hash
    stored_bytes: _Stored


_Chunks = Annotated[tuple[ChunkRef, ...], msgspec.Meta(min_length=1, max_length=_FILE_BYTES_MAX // CHUNK_BYTES)]


class SegmentFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A segment as it was copied. Hashes are hex; ``length`` in bytes, with the seal if it is ``sealed``.

    ``raw_length`` is 0, but where bodies or extras were pruned: then the file is the compacted one, ``length`` is that
    of it, and this that of the segment for which it stands.
    """

    number: _Number
    first_seq: _Number
    last_seq: _Number
    digest: _Hash
    frames_end: _Number
    length: Annotated[int, msgspec.Meta(ge=SEGMENT_HEADER_BYTES, le=_SEGMENT_BYTES_MAX)]
    sealed: bool
    sha256: _Hash
    chunks: _Chunks
    raw_length: Annotated[int, msgspec.Meta(ge=0, le=_SEGMENT_BYTES_MAX)] = 0

    @property
    def segment_bytes(self) -> int:
        """Length of the segment, with what was pruned of it."""
        return self.raw_length or self.length


class BaseFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of ``base/``; ``path`` is below it."""

    path: _Text
    length: _Length
    sha256: _Hash
    chunks: _Chunks


class Tip(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tip after the last frame; no ``root`` if it is not known."""

    height: _Number
    hash: _Hash
    root: _Hash | None


class ChainName(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The chain of the store, as its identity has it."""

    id: _Text
    name: _Text


class Totals(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All files together; a chunk that is named twice counts twice."""

    chunks: _Number
    files: _Number
    raw_bytes: _Number
    stored_bytes: _Number


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One backup. Ids and hashes are hex, times microseconds since 1970, UTC."""

    name: _Text
    repository: _Id
    created_us: _Made
    store_id: _Id
    chain: ChainName
    identity: _Identity
    first_seq: _Number
    last_seq: _Number
    last_digest: _Hash
    last_time_us: _Number
    tip: Tip | None
    segments: Annotated[tuple[SegmentFile, ...], msgspec.Meta(min_length=1, max_length=_SEGMENTS_MAX)]
    base: Annotated[tuple[BaseFile, ...], msgspec.Meta(max_length=_BASE_FILES_MAX)]
    totals: Totals
    format: int = FORMAT
    kind: str = _MANIFEST_KIND

    @property
    def identity_bytes(self) -> bytes:
        """The content of ``holdfast.toml``."""
        return bytes.fromhex(self.identity)

    def files(self) -> tuple[SegmentFile | BaseFile, ...]:
        """Every file, those of the base first."""
        return (*self.base, *self.segments)


class Repository(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``repository.json`` says."""

    id: _Id
    created_us: _Made
    encryption: Encryption | None
    format: int = FORMAT
    kind: str = _REPOSITORY_KIND


class Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A backup was read whole and found right."""

    at_us: _Made
    digest: _Hash


class _Probe(msgspec.Struct):
    kind: str
    format: int


# -- names ----------------------------------------------------------------------------------------------------------


def new_name(time_us: int | None = None) -> str:
    """A name that no other backup has: the time in UTC (now, if not given) and four random bytes."""
    now = time.time_ns() // 1000 if time_us is None else time_us
    stamp = datetime.fromtimestamp(now // 1_000_000, UTC).strftime("%Y%m%dT%H%M%S")
    return f"{stamp}{now % 1_000_000:06d}Z-{secrets.token_hex(4)}"


def name_time(name: str) -> int:
    """The time in a name, microseconds since 1970; 0 if no clock could have shown it."""
    try:
        moment = datetime.strptime(name[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return 0
    return max(0, int(moment.timestamp()) * 1_000_000 + int(name[15:21]))


def check_name(name: str) -> str:
    """``name``, which is one of a backup. Raises ``InvalidInputError``."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise InvalidInputError(
            "this is not the name of a backup", found=repr(name)[:80], remedy="'holdfast backup list' shows the names"
        )
    return name


# -- bytes ----------------------------------------------------------------------------------------------------------


def encode(form: Manifest | Repository | Mark) -> bytes:
    """The JSON of ``form``: keys sorted, without spaces."""
    return msgspec.json.encode(form, order="sorted")


def decode_repository(data: bytes, *, place: str) -> Repository:
    """What ``repository.json`` says. Raises ``BackupDamaged``; ``FormatTooNew`` before anything else."""
    form = _decode(data, Repository, _REPOSITORY_KIND, place)
    if form.format != FORMAT or form.kind != _REPOSITORY_KIND:
        raise BackupDamaged("the repository is of another kind", path=place, found=form.kind, format=form.format)
    return form


def decode_mark(data: bytes, *, place: str) -> Mark:
    """The mark of a verification. Raises ``BackupDamaged``."""
    return _decode(data, Mark, None, place)


def decode_manifest(data: bytes, *, name: str, repository: str | None, place: str) -> Manifest:
    """The backup ``name`` of this repository, or of any; it fits itself. Raises ``BackupDamaged``, ``FormatTooNew``."""
    form = _decode(data, Manifest, _MANIFEST_KIND, place)
    if form.format != FORMAT or form.kind != _MANIFEST_KIND:
        raise BackupDamaged("the manifest is of another kind", path=place, found=form.kind, format=form.format)
    if form.name != name or repository not in (None, form.repository):
        raise BackupDamaged(
            "the manifest is of another backup or repository", path=place, found=form.name, repository=form.repository
        )
    _check_manifest(form, place)
    return form


def _decode(data: bytes, kind: type[_T], word: str | None, place: str) -> _T:
    try:
        check_depth(data)
        if word is not None:
            probe = msgspec.json.decode(data, type=_Probe)
            if probe.kind == word and probe.format > FORMAT:
                raise FormatTooNew("it was written in a newer format", path=place, found=probe.format, expected=FORMAT)
        form = msgspec.json.decode(data, type=kind)
        same = msgspec.json.encode(form, order="sorted") == data
    except ValueError as error:
        raise BackupDamaged(f"this is not what it should be: {error}", path=place) from error
    if not same:
        raise BackupDamaged("this is spelled in another way than it should be", path=place)
    return form


def pieces_of(length: int) -> int:
    """Number of chunks of a file of ``length`` bytes."""
    return -(-length // CHUNK_BYTES)


def decode_store(form: Manifest, *, place: str) -> Identity:
    """The identity of the store that was backed up. Raises ``BackupDamaged``, ``FormatTooNew``."""
    try:
        return decode_identity(form.identity_bytes, path=place)
    except CorruptionError as error:
        raise BackupDamaged(f"the identity in the manifest is damaged: {error.message}", path=place) from error


def _check_manifest(form: Manifest, place: str) -> None:
    identity = decode_store(form, place=place)
    spec = identity.spec
    reason = ""
    if (form.store_id, form.chain.name, form.chain.id) != (identity.store_id.hex(), spec.name, spec.id):
        reason = "the store or its chain is not that of the identity"
    files = form.files()
    paths = [file.path for file in form.base]
    if paths != sorted(set(paths)) or not all(_BASE_PATH.fullmatch(path) for path in paths):
        reason = "the files of the base have names that are not allowed"
    if paths and "manifest.json" not in paths:
        reason = "the base has no manifest"
    if sum(len(file.chunks) for file in files) > _CHUNKS_MAX:
        reason = "there are too many chunks"
    if any(len(file.chunks) != pieces_of(file.length) for file in files):
        reason = "a file has another number of chunks than its length asks for"
    if form.totals != totals_of(form.segments, form.base):
        reason = "the totals are not those of the files"
    reason = reason or _misfit(form)
    if reason:
        raise BackupDamaged(f"the manifest contradicts itself: {reason}", path=place)


def _misfit(form: Manifest) -> str:
    """What is wrong with the segments, or nothing."""
    number, seq = form.segments[0].number, form.segments[0].first_seq
    if number < 1 or seq < 1 or (number == 1) != (seq == 1) or seq != form.first_seq:
        return "the first segment is not where the backup begins"
    for segment in form.segments:
        if (segment.number, segment.first_seq) != (number, seq):
            return "the segments do not follow from one another"
        if segment.last_seq < seq - 1 or not SEGMENT_HEADER_BYTES <= segment.frames_end <= segment.segment_bytes:
            return "a segment ends before it begins"
        if segment.frames_end % 8 or (not segment.sealed and segment.frames_end != segment.length):
            return "a segment has an impossible end"
        if segment.raw_length and (not segment.sealed or segment is form.segments[-1]):
            return "a segment that may grow cannot be compacted"
        if not segment.sealed and segment is not form.segments[-1]:
            return "a segment in the middle is not sealed"
        number, seq = number + 1, segment.last_seq + 1
    last = form.segments[-1]
    if (last.last_seq, last.digest) != (form.last_seq, form.last_digest) or form.last_seq < form.first_seq:
        return "the last segment does not end with the last frame"
    return ""


def totals_of(segments: tuple[SegmentFile, ...], base: tuple[BaseFile, ...]) -> Totals:
    """All files together."""
    files: tuple[SegmentFile | BaseFile, ...] = (*base, *segments)
    return Totals(
        chunks=sum(len(file.chunks) for file in files),
        files=len(files),
        raw_bytes=sum(file.length for file in files),
        stored_bytes=sum(chunk.stored_bytes for file in files for chunk in file.chunks),
    )
