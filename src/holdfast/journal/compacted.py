"""Compacted segments: a file that stands for the bytes of a sealed segment (docs/FORMAT.md, section 4.1).

``open_segment`` gives any segment file, and a compacted one as the bytes that it stands for, so that whoever reads
headers, frames and seals need not know.

Invariants:
    * Nothing of a compacted file is believed before the SHA-256 over its head, table and end was found right, and no
      extent is decoded before its own hash was.
    * Memory is bounded: the table, and a few decoded extents for each open file.
    * Bytes in a hole are refused as pruned; they are never zeros, and never other bytes.
"""

from __future__ import annotations

import struct
import sys
import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import zstandard

from .._fs import Buffer, File, FileSystem
from .._zstd import read_bounded
from ..errors import CorruptionError, FormatTooNew, PrunedError, StateError
from ..limits import COMPACTED_BYTES_MAX, COMPACTED_EXTENT_BYTES, COMPACTED_EXTENT_BYTES_MAX
from .segment import segment_number

__all__ = ["CompactedFile", "Hole", "Packer", "is_compacted", "kept_ranges", "open_segment"]

_MAGIC: Final = b"HFCOMPT1"
_END_MAGIC: Final = b"HFCOMP_E"
_FORMAT: Final = 1
_HEAD: Final = struct.Struct(">8sII16sQQI12s")
_ROW: Final = struct.Struct(">IB3s32s")
_HOLE: Final = struct.Struct(">II")
_END: Final = struct.Struct(">8sQQQQ32s")
assert _HEAD.size == 64
assert _ROW.size == 40
assert _END.size == 72
_END_BYTES: Final = _END.size + 32
_EXTENT_BYTES_MIN: Final = 4096
_CODEC_RAW, _CODEC_ZSTD = 0, 1
_LEVEL: Final = 6
_WINDOW_BYTES_MAX: Final = 1 << 23
_DECODED_MAX: Final = 3
"""Extents that an open file keeps decoded."""
_STEP_BYTES: Final = 1 << 20
_BYTES_PER_HOLE: Final = 256
"""A hole needs so many raw bytes at least: two rows of 48, the block's entry of 152, which stay, and 8 of the body."""


class _Zstd(threading.local):
    """A compressor and a decompressor per thread: neither may be shared."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False)
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX)


_zstd = _Zstd()


class Hole(NamedTuple):
    """Raw bytes that are absent: from ``start`` to, not including, ``stop``; multiples of 8."""

    start: int
    stop: int


class _End(NamedTuple):
    magic: bytes
    extents: int
    holes: int
    table: int
    floor: int
    sha256: bytes


def _decode_holes(data: bytes, raw_bytes: int, path: Path) -> tuple[array[int], array[int]]:
    """Starts and stops of the holes, in order."""
    numbers = array("I", data)
    if sys.byteorder == "little":
        numbers.byteswap()
    if 0 in numbers:
        raise CorruptionError("the holes of a compacted segment are malformed", path=path)
    edges = array("Q", accumulate(8 * number for number in numbers))
    if edges and edges[-1] > raw_bytes:
        raise CorruptionError("the holes of a compacted segment are longer than it", path=path, found=edges[-1])
    return edges[0::2], edges[1::2]


class CompactedFile:
    """The raw bytes of a sealed segment, read out of its compacted file. Safe to read from any thread.

    Attributes:
        number: of the segment. ``generation``: of the file, from 1. ``store_id``: of the store.
        floor: bodies and extras of blocks below this height may be absent; 0 if nothing is.
        raw_sha256: SHA-256 of all the raw bytes.
        stored_bytes: length of the compacted file.
    """

    def __init__(self, file: File, *, salt: bytes | None) -> None:
        """Raises ``CorruptionError``, ``FormatTooNew``; ``file`` stays open then, else it belongs to this one.

        ``None`` where the salt is not known yet: then nothing that is read proves anything.
        """
        self.path = file.path
        self.generation: int
        self.store_id: bytes
        self.number: int
        self._raw_bytes: int
        self._extent_bytes: int
        self._file = file
        self.stored_bytes = size = file.size()
        head = file.pread(_HEAD.size, 0)
        if len(head) < _HEAD.size or head[:8] != _MAGIC or size < _HEAD.size + _END_BYTES:
            raise self._bad("is cut off")
        _, form, self.generation, self.store_id, self.number, self._raw_bytes, self._extent_bytes, zero = _HEAD.unpack(
            head
        )
        end_data = file.pread(_END_BYTES, size - _END_BYTES)
        end = _End(*_END.unpack_from(end_data))
        table_bytes = _ROW.size * end.extents + _HOLE.size * end.holes
        if (
            end.magic != _END_MAGIC
            or end.table < _HEAD.size
            or end.table + table_bytes + _END_BYTES != size
            or not end.extents <= COMPACTED_BYTES_MAX // _EXTENT_BYTES_MIN
            or not end.holes <= min(self._raw_bytes, COMPACTED_BYTES_MAX) // _BYTES_PER_HOLE
        ):
            raise self._bad("has no valid end")
        table = file.pread(table_bytes, end.table)
        if salt is not None and sha256(b"".join((salt, head, table, end_data[:-32]))).digest() != end_data[-32:]:
            raise self._bad("has a wrong digest")
        if form != _FORMAT:
            raise FormatTooNew(
                "a segment was compacted in a newer format", path=self.path, found=form, expected=_FORMAT
            )
        if (
            zero != bytes(12)
            or not self.generation
            or not 0 < self._raw_bytes <= COMPACTED_BYTES_MAX
            or not _EXTENT_BYTES_MIN <= self._extent_bytes <= COMPACTED_EXTENT_BYTES_MAX
            or self._extent_bytes % 8
            or (end.holes == 0) != (end.floor == 0)
        ):
            raise self._bad("has an impossible head")
        self.floor, self.raw_sha256 = end.floor, end.sha256
        rows_end = _ROW.size * end.extents
        self._starts, self._stops = _decode_holes(table[rows_end:], self._raw_bytes, self.path)
        lengths = (stop - start for start, stop in zip(self._starts, self._stops, strict=True))
        self._gone = array("Q", accumulate(lengths, initial=0))
        self._kept_bytes = self._raw_bytes - self._gone[-1]
        self._rows = table[:rows_end]
        self._places = array("Q", accumulate((row[0] for row in _ROW.iter_unpack(self._rows)), initial=_HEAD.size))
        if -(-self._kept_bytes // self._extent_bytes) != end.extents or self._places[-1] != end.table:
            raise self._bad("has extents that do not fill it")
        self._lock = threading.Lock()
        self._decoded: OrderedDict[int, bytes] = OrderedDict()

    def _bad(self, text: str, *, offset: int | None = None) -> CorruptionError:
        return CorruptionError(f"a compacted segment {text}", path=self.path, offset=offset, bytes=self.stored_bytes)

    @property
    def stored(self) -> File:
        """The compacted file as it is on disk, open as long as this is."""
        return self._file

    # -- what is here -------------------------------------------------------------------------------------------

    @property
    def pruned_bytes(self) -> int:
        """How many raw bytes are absent."""
        return int(self._gone[-1])

    @property
    def holes(self) -> Iterator[Hole]:
        """The absent ranges, in order."""
        return map(Hole, self._starts, self._stops)

    def kept_from(self, offset: int) -> int:
        """How many raw bytes from ``offset`` on stand before the next hole or the end; 0 in a hole."""
        if offset >= self._raw_bytes:
            return 0
        index = bisect_right(self._starts, offset)
        if index and offset < self._stops[index - 1]:
            return 0
        return (self._starts[index] if index < len(self._starts) else self._raw_bytes) - offset

    def absent(self, offset: int, length: int) -> bool:
        """True if every one of these raw bytes is in one hole."""
        index = bisect_right(self._starts, offset)
        return bool(index) and offset + length <= self._stops[index - 1]

    # -- the bytes ----------------------------------------------------------------------------------------------

    def pread(self, length: int, offset: int) -> bytes:
        """Raises ``PrunedError`` if one of the bytes is in a hole, ``CorruptionError`` if an extent is damaged."""
        stop = min(offset + length, self._raw_bytes)
        if offset >= stop:
            return b""
        if offset + self.kept_from(offset) < stop:
            raise PrunedError(
                "this part of the journal was pruned",
                path=self.path,
                offset=offset,
                least_readable=self.floor,
                remedy="ask for a block at or above 'least_readable', or fill it again from a backup: 'holdfast journal"
                " refill'",
            )
        return self._kept(offset - self._gone[bisect_right(self._starts, offset)], stop - offset)

    def _kept(self, offset: int, length: int) -> bytes:
        """``length`` of the kept bytes, of which there are enough."""
        stop = offset + length
        pieces: list[bytes] = []
        while offset < stop:
            index, start = divmod(offset, self._extent_bytes)
            piece = self._extent(index)[start : start + stop - offset]
            pieces.append(piece)
            offset += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _extent(self, index: int) -> bytes:
        with self._lock:
            known = self._decoded.get(index)
            if known is not None:
                self._decoded.move_to_end(index)
                return known
        raw = self._decode(index)
        with self._lock:
            self._decoded[index] = raw
            if len(self._decoded) > _DECODED_MAX:
                self._decoded.popitem(last=False)
        return raw

    def _decode(self, index: int) -> bytes:
        length: int
        codec: int
        length, codec, zero, digest = _ROW.unpack_from(self._rows, _ROW.size * index)
        raw_bytes = min(self._extent_bytes, self._kept_bytes - index * self._extent_bytes)
        place = self._places[index]
        if codec not in {_CODEC_RAW, _CODEC_ZSTD} or zero != bytes(3) or length > COMPACTED_EXTENT_BYTES_MAX:
            raise self._bad("has an impossible extent", offset=place)
        stored = self._file.pread(length, place)
        if len(stored) != length or sha256(stored).digest() != digest:
            raise self._bad("has a damaged extent", offset=place)
        if codec == _CODEC_ZSTD:
            try:
                stored = read_bounded(_zstd.decompressor, stored, raw_bytes)
            except zstandard.ZstdError as error:
                raise self._bad("has an extent that does not decompress", offset=place) from error
        if len(stored) != raw_bytes:
            raise self._bad("has an extent of a wrong length", offset=place)
        return stored

    # -- the rest of a file -------------------------------------------------------------------------------------

    def size(self) -> int:
        return self._raw_bytes

    def close(self) -> None:
        self._file.close()

    def pwrite(self, data: Buffer, offset: int) -> None:
        raise StateError("a compacted segment is only read", path=self.path)

    def truncate(self, length: int) -> None:
        raise StateError("a compacted segment is only read", path=self.path)

    def sync(self) -> None:
        raise StateError("a compacted segment is only read", path=self.path)


if TYPE_CHECKING:
    _file: type[File] = CompactedFile


def is_compacted(file: File) -> bool:
    """True if these are the bytes of a compacted segment, right or damaged."""
    return file.pread(len(_MAGIC), 0) == _MAGIC


def open_segment(fs: FileSystem, path: Path, *, salt: bytes) -> File:
    """The segment file at ``path``, open for reading; a compacted one as the bytes that it stands for.

    Raises:
        CorruptionError: it is compacted and damaged, or of another number. FormatTooNew: a newer version compacted it.
    """
    file = fs.open(path, read_only=True)
    try:
        if not is_compacted(file):
            return file
        compacted = CompactedFile(file, salt=salt)
        expected = segment_number(path.name)
        if expected is not None and compacted.number != expected:
            raise CorruptionError("a segment has a wrong number", path=path, found=compacted.number, expected=expected)
        return compacted
    except BaseException:
        file.close()
        raise


def kept_ranges(raw_bytes: int, holes: Iterable[Hole]) -> Iterator[tuple[int, int]]:
    """Start and stop of what lies before, between and behind ``holes``, in order."""
    start = 0
    for hole in holes:
        if start < hole.start:
            yield start, hole.start
        start = hole.stop
    if start < raw_bytes:
        yield start, raw_bytes


class Packer:
    """Makes the bytes of one compacted file: ``add`` the kept bytes in order, ``finish``, and write what both give."""

    def __init__(
        self,
        *,
        number: int,
        generation: int,
        store_id: bytes,
        salt: bytes,
        raw_bytes: int,
        extent_bytes: int = COMPACTED_EXTENT_BYTES,
    ) -> None:
        self._salt = salt
        self._extent_bytes = extent_bytes
        self._head = _HEAD.pack(_MAGIC, _FORMAT, generation, store_id, number, raw_bytes, extent_bytes, bytes(12))
        self._rows: list[bytes] = []
        self._end = len(self._head)
        self._waiting = bytearray()

    def head(self) -> bytes:
        """The first bytes of the file."""
        return self._head

    def add(self, data: bytes) -> Iterator[bytes]:
        """``data`` is kept; what is to be written because of it."""
        self._waiting += data
        while len(self._waiting) >= self._extent_bytes:
            yield self._extent(bytes(self._waiting[: self._extent_bytes]))
            del self._waiting[: self._extent_bytes]

    @staticmethod
    def compress(raw: bytes) -> tuple[bytes, int]:
        """The stored bytes of an extent, and their codec."""
        stored = _zstd.compressor.compress(raw)
        return (stored, _CODEC_ZSTD) if len(stored) < len(raw) else (raw, _CODEC_RAW)

    def _extent(self, raw: bytes) -> bytes:
        stored, codec = self.compress(raw)
        self._rows.append(_ROW.pack(len(stored), codec, bytes(3), sha256(stored).digest()))
        self._end += len(stored)
        return stored

    def finish(self, *, holes: Iterable[Hole], floor: int, raw_sha256: bytes) -> bytes:
        """The last bytes of the file."""
        last = self._extent(bytes(self._waiting)) if self._waiting else b""
        table = bytearray().join(self._rows)
        count = before = 0
        for hole in holes:
            table += _HOLE.pack((hole.start - before) // 8, (hole.stop - hole.start) // 8)
            before = hole.stop
            count += 1
        end = _END.pack(_END_MAGIC, len(self._rows), count, self._end, floor, raw_sha256)
        digest = sha256(b"".join((self._salt, self._head, table, end))).digest()
        return b"".join((last, table, end, digest))
