"""The original's files: ``blockchain.json`` with and without metadata, backups and checkpoints, read and written.

Invariants:
    * The original's checksum is a rule about values: SHA-256 of the inner object written again as JSON with indent 2
      and sorted keys. It is checked before anything of a file is believed; a file without one says so in ``verified``.
    * The text of each block is kept as it stands in the file: nothing is parsed and written again on the way in.
    * Reading holds the text of the file and the place of each block, never all blocks decoded.
    * What is written here passes the original's own check, and equals its bytes but for the time.

    with metadata   {"metadata": {timestamp, block_height, checksum, version}, "blockchain": {...}}
    checkpoint      {block_height, timestamp, checksum, "blockchain": {...}}
    legacy          {"chain": [...], ...}        without a checksum
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from json.decoder import JSONDecodeError
from typing import Any, Final, Literal

from ..._json import check_depth
from ...errors import CorruptionError, InvalidInputError, LimitExceeded, Recovery
from .codec import DECODER, dump, dump_indented

__all__ = [
    "FILE_BYTES_MAX",
    "ChainChecksum",
    "ChainDocument",
    "inner_chunks",
    "metadata_of",
    "package_chunks",
    "read_document",
    "rest_of",
]

FILE_BYTES_MAX: Final = 2 * 1024 * 1024 * 1024
VERSION: Final = "1.0"
CHAIN: Final = "chain"
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_HASH: Final = re.compile(r"[0-9a-f]{64}")
Kind = Literal["package", "checkpoint", "legacy"]


@dataclass(slots=True)
class ChainDocument:
    """A file of the original: the places of its blocks, and everything beside them."""

    kind: Kind
    text: str = field(repr=False)
    places: list[tuple[int, int]] = field(repr=False)
    """Where the text of each block begins and ends."""
    rest: dict[str, Any]
    """The inner object without its chain: pending transactions, difficulty, stats, whatever else was there."""
    outer: dict[str, Any]
    """What stands beside the inner object: metadata, or the fields of a checkpoint."""
    checksum: str | None = None
    """The checksum that the file names and that was found right; ``None`` where it names none."""
    running: ChainChecksum | None = field(default=None, repr=False)
    """That of its contents, whether the file names one or not, for a chain that goes on."""

    @property
    def verified(self) -> bool:
        """True if the file named a checksum, and it was right."""
        return self.checksum is not None

    def __len__(self) -> int:
        return len(self.places)

    def body(self, number: int) -> bytes:
        """The text of a block as it stands in the file."""
        start, end = self.places[number]
        return self.text[start:end].encode("utf-8")

    def blocks(self) -> Iterator[dict[str, Any]]:
        """The decoded documents of the blocks, one at a time."""
        for start, _ in self.places:
            yield DECODER.raw_decode(self.text, start)[0]

    def inner(self) -> dict[str, Any]:
        """The whole inner object, decoded."""
        return {**self.rest, CHAIN: list(self.blocks())}


class _Reader:
    """Goes through the text of a file, remembering where blocks lie instead of decoding them for good."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.places: list[tuple[int, int]] = []

    def skip(self, at: int) -> int:
        match = _SPACE.match(self.text, at)
        return at if match is None else match.end()

    def expect(self, at: int, mark: str) -> int:
        at = self.skip(at)
        if not self.text.startswith(mark, at):
            raise JSONDecodeError(f"expected {mark!r}", self.text, at)
        return at + len(mark)

    def value(self, at: int) -> tuple[Any, int]:
        value, end = DECODER.raw_decode(self.text, self.skip(at))
        return value, end

    def members(self, at: int, special: str) -> tuple[dict[str, Any], int, bool]:
        """The members of the object at ``at``, where it ends, and whether it has the member ``special``.

        That member is not decoded: its place comes out under its name, as a number.
        """
        found: dict[str, Any] = {}
        at = self.skip(self.expect(at, "{"))
        if self.text.startswith("}", at):
            return found, at + 1, False
        while True:
            name, at = self.value(at)
            if type(name) is not str:
                raise JSONDecodeError("a key is not text", self.text, at)
            if name in found:
                raise JSONDecodeError(f"the key {name!r} is there twice", self.text, at)
            at = self.skip(self.expect(at, ":"))
            if name == special:
                found[name] = at
                at = self.chain(at) if special == CHAIN else self.inner_end(at)
            else:
                found[name], at = self.value(at)
            at = self.skip(at)
            if self.text.startswith("}", at):
                return found, at + 1, special in found
            at = self.expect(at, ",")

    def inner_end(self, at: int) -> int:
        self.inner, end, self.has_chain = self.members(at, CHAIN)
        return end

    inner: dict[str, Any]
    has_chain: bool = False

    def chain(self, at: int) -> int:
        """The places of the blocks of the array at ``at`` are known; where it ends."""
        at = self.skip(self.expect(at, "["))
        if self.text.startswith("]", at):
            return at + 1
        while True:
            start = self.skip(at)
            block, at = self.value(start)
            if type(block) is not dict:
                raise JSONDecodeError("a block is not an object", self.text, start)
            self.places.append((start, at))
            at = self.skip(at)
            if self.text.startswith("]", at):
                return at + 1
            at = self.expect(at, ",")


def read_document(data: bytes, *, name: object = None, limit: int = FILE_BYTES_MAX) -> ChainDocument:
    """The file with these bytes, its checksum verified if it names one. Nothing is written.

    Raises:
        CorruptionError: it is not JSON, not one of the three formats, or its checksum is wrong.
        LimitExceeded: it is longer than ``limit`` bytes.
    """
    if len(data) > limit:
        raise LimitExceeded("the file is too long", path=name, found=len(data), limit=limit)
    try:
        check_depth(data)
        text = data.decode("utf-8")
        document = _parse(text)
        end = document[1]
        if end.skip(document[2]) != len(text):
            raise JSONDecodeError("more behind the end of the object", text, document[2])
    except (ValueError, RecursionError) as error:
        raise CorruptionError(
            f"the file is not a chain of the original: {error}", path=name, remedy=_REMEDY, recovery=Recovery.REFETCH
        ) from error
    found = document[0]
    _verify(found, name)
    return found


_REMEDY: Final = "the file was not touched; take another backup or checkpoint, or mend a copy of this one"


def _parse(text: str) -> tuple[ChainDocument, _Reader, int]:
    reader = _Reader(text)
    outer, end, packed = reader.members(0, "blockchain")
    if not packed:  # legacy: the inner object is the whole file
        reader = _Reader(text)
        inner, end, has_chain = reader.members(0, CHAIN)
        kind: Kind = "legacy"
        outer = {}
    else:
        inner, has_chain = reader.inner, reader.has_chain
        outer.pop("blockchain")
        kind = "package" if "metadata" in outer else "checkpoint"
    if not has_chain:
        raise ValueError("there is no 'chain' in it")
    inner.pop(CHAIN)
    return ChainDocument(kind, text, reader.places, inner, outer), reader, end


def _verify(document: ChainDocument, name: object) -> None:
    outer = document.outer
    if document.kind == "package":
        outer = document.outer["metadata"]
        if type(outer) is not dict:
            raise CorruptionError(
                "the metadata of the file is not an object", path=name, remedy=_REMEDY, recovery=Recovery.REFETCH
            )
    try:  # also where no checksum is named: a number beyond all floats shows here
        document.running = running = ChainChecksum(document.rest)
        for block in document.blocks():
            running.add(block)
        found = running.value(document.rest)
    except ValueError as error:
        raise CorruptionError(
            f"the file is not a chain of the original: {error}", path=name, remedy=_REMEDY, recovery=Recovery.REFETCH
        ) from error
    claimed = outer.get("checksum")
    if claimed is None:
        return
    if type(claimed) is not str or _HASH.fullmatch(claimed) is None or found != claimed:
        raise CorruptionError(
            "the checksum of the file is not that of its contents",
            path=name,
            found=found,
            expected=str(claimed)[:80],
            remedy=_REMEDY,
            recovery=Recovery.REFETCH,
        )
    document.checksum = claimed


# -- writing ---------------------------------------------------------------------------------------------------------


def rest_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """Everything in an inner object but its chain. Raises ``InvalidInputError`` for a key that is not text."""
    for key in data:
        if type(key) is not str:
            raise InvalidInputError("a key of the chain's object is not text", found=repr(key)[:80])
    return {key: value for key, value in data.items() if key != CHAIN}


def _member(key: str, value: object) -> str:
    return f"  {dump(key)}: {dump_indented(value, '  ')}"


def _head(rest: Mapping[str, Any]) -> str:
    """The text of the inner object up to the first block."""
    before = "".join(_member(key, rest[key]) + ",\n" for key in sorted(rest) if key < CHAIN)
    return f'{{\n{before}  "chain": ['


def _tail(rest: Mapping[str, Any], *, empty: bool) -> str:
    after = "".join(",\n" + _member(key, rest[key]) for key in sorted(rest) if key > CHAIN)
    return f"{']' if empty else chr(10) + '  ]'}{after}\n}}"


def _block_text(document: Mapping[str, Any], *, first: bool) -> str:
    return ("\n    " if first else ",\n    ") + dump_indented(document, "    ")


def inner_chunks(blocks: Iterable[Mapping[str, Any]], rest: Mapping[str, Any]) -> Iterator[str]:
    """The inner object as the original writes it (``indent=2, sort_keys=True``), a block at a time."""
    yield _head(rest)
    empty = True
    for block in blocks:
        yield _block_text(block, first=empty)
        empty = False
    yield _tail(rest, empty=empty)


class ChainChecksum:
    """The original's checksum of a chain that grows: a block costs its own text, not that of the chain."""

    def __init__(self, rest: Mapping[str, Any]) -> None:
        self.head = _head(rest)
        self._digest = sha256(self.head.encode("ascii"))
        self.blocks = 0

    def add(self, document: Mapping[str, Any]) -> None:
        """The next block of the chain is counted in."""
        self._digest.update(_block_text(document, first=self.blocks == 0).encode("ascii"))
        self.blocks += 1

    def fits(self, rest: Mapping[str, Any]) -> bool:
        """Whether what stands before the chain is still the same."""
        return _head(rest) == self.head

    def value(self, rest: Mapping[str, Any]) -> str:
        """The checksum of the blocks so far with what stands beside them."""
        digest = self._digest.copy()
        digest.update(_tail(rest, empty=self.blocks == 0).encode("ascii"))
        return digest.hexdigest()


def metadata_of(blocks: int, checksum: str, timestamp: float) -> dict[str, Any]:
    """The metadata of a package; ``block_height`` is the number of blocks, as in the original."""
    return {"timestamp": timestamp, "block_height": blocks, "checksum": checksum, "version": VERSION}


def package_chunks(
    blocks: Iterable[Mapping[str, Any]], rest: Mapping[str, Any], timestamp: float, *, height: int | None = None
) -> Iterator[bytes]:
    """The bytes of a file with metadata, or of the checkpoint of so many blocks, a block at a time.

    The checksum comes behind the blocks, so nothing is held for it.
    """
    digest = sha256()
    count = -2  # head and tail
    yield b"{\n" + (b"" if height is None else b'  "block_height": %d,\n' % height) + b'  "blockchain": '
    for chunk in inner_chunks(blocks, rest):
        count += 1
        digest.update(chunk.encode("ascii"))
        yield chunk.replace("\n", "\n  ").encode("ascii")
    if height is None:
        end = ",\n" + _member("metadata", metadata_of(count, digest.hexdigest(), timestamp)) + "\n}"
    else:
        end = f',\n  "checksum": "{digest.hexdigest()}",\n  "timestamp": {timestamp!r}\n}}'
    yield end.encode("ascii")
