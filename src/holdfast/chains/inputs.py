"""Input files of an import: plain, ``.bz2`` or ``.zst``, read by position, within bounds.

Invariants:
    * An input is never written to. A compressed one is unpacked once into a nameless temporary file, in pieces.
    * Unpacking stops at ``limit`` bytes with ``LimitExceeded``, whatever the archive claims about itself.
    * An archive that ends too early or is damaged is an ``InvalidBlock`` that names the file, never a short read.
"""

from __future__ import annotations

import bz2
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import zstandard

from .._fs import File, RealFileSystem, translate_os_error
from ..errors import InvalidBlock, InvalidInputError, LimitExceeded

__all__ = ["UNPACKED_BYTES_MAX", "InputFile"]

UNPACKED_BYTES_MAX = 64 * 1024**3
_CHUNK_BYTES = 1024 * 1024
_ZSTD_INPUT_BYTES = 1024
"""Zstandard makes at most some 32 KiB of one byte, so that this much input unpacks to a bounded piece."""
_WINDOW_BYTES_MAX = 128 * 1024 * 1024


class InputFile:
    """One file, read by position; ``size`` is its unpacked length in bytes."""

    def __init__(self, path: Path | str, *, limit: int = UNPACKED_BYTES_MAX) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            text = "this is not a regular file" if self.path.exists() else "there is no such file"
            raise InvalidInputError(text, path=self.path)
        self._plain: File | None = RealFileSystem().open(self.path, read_only=True)
        self._spool: IO[bytes] | None = None
        self.size = self._plain.size()
        unpack = {".bz2": _bzip2, ".zst": _zstandard}.get(self.path.suffix)
        if unpack is not None:
            try:
                self._unpack(unpack, limit)
            except BaseException:
                self.close()
                raise

    def _unpack(self, unpack: Callable[[Iterator[bytes]], Iterator[bytes]], limit: int) -> None:
        packed = self._plain
        assert packed is not None
        size = 0
        try:
            self._spool = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
            for piece in unpack(_chunks(packed)):
                size += len(piece)
                if size > limit:
                    raise LimitExceeded("the archive unpacks to more than allowed", path=self.path, limit=limit)
                self._spool.write(piece)
            self._spool.flush()
        except _Damaged as exc:
            raise InvalidBlock(str(exc), path=self.path, offset=size) from exc
        except OSError as exc:
            raise translate_os_error(exc, self.path) from exc
        packed.close()
        self._plain = None
        self.size = size

    def pread(self, length: int, offset: int) -> bytes:
        """Up to ``length`` bytes at ``offset`` of the unpacked file; fewer only at its end."""
        if self._plain is not None:
            return self._plain.pread(length, offset)
        if self._spool is None:
            raise InvalidInputError("this input file is closed", path=self.path)
        try:
            self._spool.seek(offset)
            return self._spool.read(length)
        except OSError as exc:
            raise translate_os_error(exc, self.path) from exc

    def lines(self, limit: int) -> Iterator[tuple[int, int]]:
        """Offset and length of each line that is not empty, without its end; a longer one than ``limit`` is refused."""
        start = position = 0
        while chunk := self.pread(_CHUNK_BYTES, position):
            at = 0
            while (end := chunk.find(b"\n", at)) >= 0:
                length = position + end - start
                self._check_line(length, start, limit)
                if length:
                    yield start, length
                at = end + 1
                start = position + at
            position += len(chunk)
            self._check_line(position - start, start, limit)
        if position > start:
            yield start, position - start

    def _check_line(self, length: int, offset: int, limit: int) -> None:
        if length > limit:
            raise LimitExceeded("a line is longer than a block may be", path=self.path, offset=offset, limit=limit)

    def close(self) -> None:
        """The descriptors and the temporary copy are gone."""
        if self._plain is not None:
            self._plain.close()
            self._plain = None
        if self._spool is not None:
            with suppress(OSError):
                self._spool.close()
            self._spool = None


class _Damaged(Exception):
    """An archive is not what its name says."""


def _chunks(file: File) -> Iterator[bytes]:
    offset = 0
    while chunk := file.pread(_CHUNK_BYTES, offset):
        offset += len(chunk)
        yield chunk


def _bzip2(chunks: Iterator[bytes]) -> Iterator[bytes]:
    decoder = bz2.BZ2Decompressor()
    try:
        for chunk in chunks:
            data = chunk
            while data or not (decoder.needs_input or decoder.eof):
                if decoder.eof:
                    decoder = bz2.BZ2Decompressor()
                yield decoder.decompress(data, _CHUNK_BYTES)
                data = decoder.unused_data if decoder.eof else b""
    except (OSError, EOFError, ValueError) as exc:
        raise _Damaged("the bzip2 archive is damaged") from exc
    if not decoder.eof:
        raise _Damaged("the bzip2 archive ends too early")


def _zstandard(chunks: Iterator[bytes]) -> Iterator[bytes]:
    context = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX)
    decoder = context.decompressobj()
    complete = False
    try:
        for chunk in chunks:
            for at in range(0, len(chunk), _ZSTD_INPUT_BYTES):
                data = chunk[at : at + _ZSTD_INPUT_BYTES]
                while data:
                    if complete:
                        decoder = context.decompressobj()
                    yield decoder.decompress(data)
                    complete = decoder.eof
                    data = decoder.unused_data if complete else b""
    except zstandard.ZstdError as exc:
        raise _Damaged("the Zstandard archive is damaged") from exc
    if not complete:
        raise _Damaged("the Zstandard archive ends too early")
