"""Files of EVM blocks: recorded JSON-RPC answers, one per line, and consecutive RLP blocks (``geth export``).

    *.jsonl   {"block": {...}, "receipts": [...], "uncles": [header, ...]}; also a bare block, or {"result": block}
    *.rlp     RLP(header, transactions, ommers[, withdrawals]), one after the other

Invariants:
    * The kind of a file is found from its first byte; ``.zst`` and ``.bz2`` around it are unpacked.
    * Opening checks the frames of every file: each RLP length lies within the file, each line is one object by its
      ends. A block above ``BLOCK_BYTES_MAX`` is refused before it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ...errors import InvalidBlock, InvalidInputError, LimitExceeded, Recovery
from ..importing import Candidate, Place
from ..inputs import InputFile
from .decoding import block_from_json, block_from_rlp, parse_json
from .transactions import objects

__all__ = ["BLOCK_BYTES_MAX", "EvmFiles"]

BLOCK_BYTES_MAX = 64 * 1024 * 1024
_PREFIX_BYTES_MAX = 9
_LIST = 0xC0
_LONG_LIST = 0xF7


class EvmFiles:
    """The blocks of recorded files, in any order. A ``BlockSource``."""

    def __init__(self, paths: Sequence[Path | str], *, block_bytes_max: int = BLOCK_BYTES_MAX) -> None:
        if not paths:
            raise InvalidInputError("no files were given")
        self.block_bytes_max = block_bytes_max
        self.total_blocks = 0
        self.total_bytes = 0
        self._files: list[InputFile] = []
        self._is_json: list[bool] = []
        try:
            for path in paths:
                self._open(path)
            for place in self.places():
                self._check_line_ends(place)
                self.total_blocks += 1
                self.total_bytes += place.size
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path | str) -> None:
        file = InputFile(path)
        self._files.append(file)
        first = file.pread(1, 0)
        if not first:
            raise InvalidBlock("the file holds no block", path=file.path)
        if first != b"{" and first[0] < _LIST:
            raise InvalidBlock(
                "this is neither a file of JSON lines nor of RLP blocks",
                path=file.path,
                offset=0,
                found=first,
                expected="'{' or an RLP list",
            )
        self._is_json.append(first == b"{")

    def places(self) -> Iterator[Place]:
        for number, file in enumerate(self._files):
            if self._is_json[number]:
                for offset, size in file.lines(self.block_bytes_max):
                    yield Place(number, offset, size)
                continue
            offset = 0
            while offset < file.size:
                size = self._rlp_size(file, offset)
                yield Place(number, offset, size)
                offset += size

    def _rlp_size(self, file: InputFile, offset: int) -> int:
        """The length in bytes of the RLP list at ``offset``, its prefix included."""
        head = file.pread(_PREFIX_BYTES_MAX, offset)
        first = head[0]
        if first < _LIST:
            raise InvalidBlock("an RLP block does not begin with a list", path=file.path, offset=offset, found=head[:1])
        width = max(first - _LONG_LIST, 0)
        length = int.from_bytes(head[1 : 1 + width], "big") if width else first - _LIST
        size = 1 + width + length
        if size > self.block_bytes_max:
            limit = self.block_bytes_max
            raise LimitExceeded(
                "a block claims to be larger than allowed",
                path=file.path,
                offset=offset,
                found=size,
                limit=limit,
                remedy=InvalidBlock.default_remedy,
                recovery=Recovery.REFETCH,
            )
        if size > file.size - offset:
            raise InvalidBlock(
                "the file ends inside a block",
                path=file.path,
                offset=offset,
                found=file.size - offset,
                expected=size,
            )
        return size

    def _check_line_ends(self, place: Place) -> None:
        if not self._is_json[place.file]:
            return
        file = self._files[place.file]
        ends = file.pread(1, place.offset) + file.pread(1, place.offset + place.size - 1)
        if ends not in (b"{}", b"{\r"):
            raise InvalidBlock(
                "a line is not one JSON object, or the file ends inside it",
                path=file.path,
                offset=place.offset,
                found=ends,
                expected="{...}",
            )

    def load(self, place: Place) -> Candidate:
        raw = self._files[place.file].pread(place.size, place.offset)
        if len(raw) != place.size:
            raise InvalidBlock("the file became shorter while it was read", found=len(raw), expected=place.size)
        if not self._is_json[place.file]:
            return block_from_rlp(raw)
        record = parse_json(raw)
        if not isinstance(record, dict):
            raise InvalidBlock("a line is not a JSON object")
        block = record.get("block", record.get("result", record))
        if not isinstance(block, dict):
            raise InvalidBlock("a line holds no block", found=repr(block)[:80])
        receipts = objects(record["receipts"], "receipts") if record.get("receipts") is not None else None
        uncles = objects(record.get("uncles"), "uncles") if block is not record else ()
        return block_from_json(block, receipts=receipts, uncles=uncles)

    def links(self, place: Place) -> tuple[bytes, bytes]:
        block = self.load(place).block
        return block.hash, block.parent

    def describe(self, place: Place) -> dict[str, object]:
        return {"path": self._files[place.file].path, "offset": place.offset}

    def close(self) -> None:
        for file in self._files:
            file.close()
        self._files = []

    def __enter__(self) -> EvmFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
