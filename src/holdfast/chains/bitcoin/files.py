"""Block files of Bitcoin Core and its relatives (``blk*.dat``): frames of magic, length and raw block.

    | magic (4) | length u32 LE (4) | header (80) | transaction count and transactions (length - 80) |

Invariants:
    * Opening checks every frame of every file: magic, length, and that the block is there. A length above
      ``BLOCK_BYTES_MAX`` is refused before anything of that size is read.
    * Zeros after the last frame are the space the node had reserved; anything else there is refused.
    * ``.bz2`` and ``.zst`` files are read like plain ones. A file that the node masked (``xor.dat`` beside it, Bitcoin
      Core 28 and later) is unmasked while it is read.

Source: ``src/node/blockstorage.cpp`` of Bitcoin Core.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..._fs import RealFileSystem
from ...errors import InvalidBlock, InvalidInputError, LimitExceeded, Recovery
from ..importing import Candidate, Place
from ..inputs import InputFile
from .chain import decode_raw_block
from .header import HEADER_BYTES, hash_of_header
from .networks import NETWORKS, Network, network, networks_of_magic

__all__ = ["BLOCK_BYTES_MAX", "BlockFiles", "detect_network"]

BLOCK_BYTES_MAX = 32 * 1024 * 1024
_FRAME = struct.Struct("<4sI")
assert _FRAME.size == 8
_BLOCK_BYTES_MIN = HEADER_BYTES + 1
_PADDING_CHUNK = 1024 * 1024
_MASK_BYTES = 8


class _BlkFile:
    """One block file, unmasked."""

    def __init__(self, path: Path | str) -> None:
        self.input = InputFile(path)
        self.path = self.input.path
        self.size = self.input.size
        self._mask = _mask_beside(self.path)
        if self._mask and networks_of_magic(self.input.pread(4, 0)):
            self._mask = b""

    def pread(self, length: int, offset: int) -> bytes:
        data = self.input.pread(length, offset)
        if not self._mask or not data:
            return data
        shift = offset % _MASK_BYTES
        key = self._mask[shift:] + self._mask[:shift]
        mask = (key * (len(data) // _MASK_BYTES + 1))[: len(data)]
        return (int.from_bytes(data, "big") ^ int.from_bytes(mask, "big")).to_bytes(len(data), "big")


def _mask_beside(path: Path) -> bytes:
    """The eight bytes of ``xor.dat`` in the directory of ``path``; empty if there is none, or all are zero."""
    beside = path.with_name("xor.dat")
    files = RealFileSystem()
    if not files.exists(beside):
        return b""
    mask = files.read_bytes(beside, limit=_MASK_BYTES)
    if len(mask) != _MASK_BYTES:
        raise InvalidInputError("the mask of the block files has a wrong length", path=beside, expected=_MASK_BYTES)
    return mask if any(mask) else b""


def detect_network(paths: Sequence[Path | str]) -> Network:
    """The network whose files these are, by the magic and, where two share it, by the first block of a file.

    Raises:
        InvalidBlock: no network is known by this magic.
    """
    if not paths:
        raise InvalidInputError("no files were given")
    found: tuple[Network, ...] = ()
    for path in paths:
        file = _BlkFile(path)
        try:
            head = file.pread(_FRAME.size + HEADER_BYTES, 0)
        finally:
            file.input.close()
        found = networks_of_magic(head[:4])
        if not found:
            raise _unknown_magic(path, head[:4], 0, None)
        first = hash_of_header(head[_FRAME.size :])
        for item in found:
            if item.genesis_hash == first:
                return item
    return found[0]


def _unknown_magic(path: Path | str, magic: bytes, offset: int, expected: Network | None) -> InvalidBlock:
    names = ", ".join(item.name for item in networks_of_magic(magic))
    if expected is not None:
        wanted = f"{expected.magic.hex()} ({expected.name})"
    else:
        wanted = ", ".join(f"{item.magic.hex()} ({item.name})" for item in NETWORKS.values())
    return InvalidBlock(
        "the magic before a block is wrong",
        path=path,
        offset=offset,
        found=f"{magic.hex()} ({names})" if names else magic.hex(),
        expected=wanted,
        remedy="check that this is a block file of the network you named, or name its network",
    )


class BlockFiles:
    """The blocks of ``blk*.dat`` files of one network, in any order. A ``BlockSource``."""

    def __init__(
        self,
        paths: Sequence[Path | str],
        network_name: str = "main",
        *,
        magic: bytes | None = None,
        block_bytes_max: int = BLOCK_BYTES_MAX,
    ) -> None:
        if not paths:
            raise InvalidInputError("no files were given")
        self.network = network(network_name)
        self.magic = self.network.magic if magic is None else magic
        if len(self.magic) != 4:
            raise InvalidInputError("a magic is four bytes", found=self.magic)
        self.block_bytes_max = block_bytes_max
        self.total_blocks = 0
        self.total_bytes = 0
        self._files: list[_BlkFile] = []
        try:
            for path in paths:
                self._files.append(_BlkFile(path))
            for place in self.places():
                self.total_blocks += 1
                self.total_bytes += place.size
        except BaseException:
            self.close()
            raise
        if not self.total_blocks:
            self.close()
            raise InvalidBlock("the files hold no block", path=paths[0])

    def places(self) -> Iterator[Place]:
        for number, file in enumerate(self._files):
            offset = 0
            while offset < file.size:
                size = self._frame(file, offset)
                if size == 0:
                    break
                yield Place(number, offset + _FRAME.size, size)
                offset += _FRAME.size + size

    def _frame(self, file: _BlkFile, offset: int) -> int:
        """The size of the block framed at ``offset``; 0 if only zeros follow."""
        head = file.pread(_FRAME.size, offset)
        if not any(head):
            self._check_padding(file, offset)
            return 0
        where: dict[str, Any] = {"path": file.path, "offset": offset}
        if head[:4] != self.magic:
            raise _unknown_magic(file.path, head[:4], offset, self.network)
        if len(head) < _FRAME.size:
            raise InvalidBlock("the file ends inside a frame", found=len(head), expected=_FRAME.size, **where)
        size: int = _FRAME.unpack(head)[1]
        if size > self.block_bytes_max:
            raise LimitExceeded(
                "a block claims to be larger than allowed",
                found=size,
                limit=self.block_bytes_max,
                remedy=InvalidBlock.default_remedy,
                recovery=Recovery.REFETCH,
                **where,
            )
        if size < _BLOCK_BYTES_MIN:
            raise InvalidBlock("a block is smaller than its header", found=size, expected=_BLOCK_BYTES_MIN, **where)
        left = file.size - offset - _FRAME.size
        if size > left:
            raise InvalidBlock("the file ends inside a block", found=left, expected=size, **where)
        return size

    def _check_padding(self, file: _BlkFile, offset: int) -> None:
        while chunk := file.pread(_PADDING_CHUNK, offset):
            if any(chunk):
                at = offset + len(chunk) - len(chunk.lstrip(b"\0"))
                raise InvalidBlock(
                    "bytes follow the zeros at the end of a block file", path=file.path, offset=at, expected="zeros"
                )
            offset += len(chunk)

    def load(self, place: Place) -> Candidate:
        raw = self._files[place.file].pread(place.size, place.offset)
        if len(raw) != place.size:
            raise InvalidBlock("the file became shorter while it was read", found=len(raw), expected=place.size)
        return Candidate(decode_raw_block(raw[:HEADER_BYTES], raw[HEADER_BYTES:], -1))

    def links(self, place: Place) -> tuple[bytes, bytes]:
        header = self._files[place.file].pread(HEADER_BYTES, place.offset)
        return hash_of_header(header), header[4:36]

    def describe(self, place: Place) -> dict[str, object]:
        return {"path": self._files[place.file].path, "offset": place.offset - _FRAME.size}

    def close(self) -> None:
        for file in self._files:
            file.input.close()
        self._files = []

    def __enter__(self) -> BlockFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
