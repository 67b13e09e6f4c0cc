"""The identity that the first frame of a journal holds, read without believing anything but that frame itself.

Invariants:
    * Nothing is written. A frame is believed by its digest under the salt in it, never by what stands beside it.
"""

from __future__ import annotations

from pathlib import Path

from .._fs import File, FileSystem
from ..errors import HoldfastError, MissingFile
from ..journal.api import Kind
from ..journal.codec import HEAD_BYTES_MAX, decode_part, parse_head, peek_parts
from ..journal.compacted import CompactedFile, is_compacted, open_segment
from ..journal.recovery import JOURNAL_DIRECTORY
from ..journal.segment import SEGMENT_HEADER_BYTES, decode_header, segment_name
from .identity import IDENTITY_BYTES_MAX, decode_identity

__all__ = ["identity_in_journal", "read_kept"]


def identity_in_journal(fs: FileSystem, root: Path) -> bytes | None:
    """The identity in the first frame, if that frame and the header of its segment verify with the salt in it."""
    path = root / JOURNAL_DIRECTORY / segment_name(1)
    try:
        file = fs.open(path, read_only=True)
    except MissingFile:
        return None
    try:
        if is_compacted(file):
            file = CompactedFile(file, salt=None)
        data = read_kept(file, SEGMENT_HEADER_BYTES + HEAD_BYTES_MAX, 0)
        head = data[SEGMENT_HEADER_BYTES:]
        parts = peek_parts(head, segment=1, offset=SEGMENT_HEADER_BYTES)
        for part in parts:
            if part.kind == Kind.IDENTITY and part.stored_bytes <= IDENTITY_BYTES_MAX:
                raw = decode_part(file.pread(part.stored_bytes, part.offset), part, segment=1, seq=1)
                identity = decode_identity(raw, path=path)
                frame = parse_head(head, salt=identity.salt, segment=1, offset=SEGMENT_HEADER_BYTES)
                header = decode_header(data, store_id=identity.store_id, salt=identity.salt, path=path)
                if frame.seq == 1 and header is not None and (header.number, header.first_seq) == (1, 1):
                    open_segment(fs, path, salt=identity.salt).close()  # a compacted one proves itself, too
                    return raw
    except HoldfastError:
        return None  # whatever it is, it proves nothing
    finally:
        file.close()
    return None


def read_kept(file: File, length: int, offset: int) -> bytes:
    """Up to ``length`` bytes at ``offset``; fewer at the end, or where a compacted segment has a hole."""
    if isinstance(file, CompactedFile):
        length = min(length, file.kept_from(offset))
    return file.pread(length, offset)
