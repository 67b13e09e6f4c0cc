"""Export and import of the whole block tree as JSON records with the 17 ``MinerBlock`` fields.

Invariants:
    * Export, import into a new store, export gives the same bytes: orphans, reasons, competitors and times included.
    * Memory does not grow with the chain: records are written and read one at a time. An import holds back only side
      blocks that at that point outweigh the chain read so far.
    * Reading is strict: exactly the 17 fields, their types, and values that agree with the block's own hash.

Form: ASCII JSON, one record a line, fields in the order of ``MinerBlock``; either a JSON array (its end shows that the
file is whole) or one record a line without brackets. Order: by index; within one index the canonical block first, then
the others by hash. Reading accepts any white space.

Values: hashes are 64 lower-case hex digits (the parent of genesis is all zeros), ``nonce`` and ``difficulty`` decimal
strings because they have 128 bits, times whole seconds since 1970. ``height_at_time`` equals ``index``.

Times: ``seen_at`` and ``orphaned_at`` are those of the journal frames that brought and orphaned the block. A store
gives its frames its own clock, so an import keeps the file's times, and its reason and competitor, in the block's
``extra`` part (``codec.ImportRecord``). They are exported again until this store itself moves the block: then its own
record counts. Genesis is fixed rather than seen: its ``seen_at`` is null.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final, NoReturn, TextIO

from ..._json import check_depth
from ...errors import CorruptionError, InvalidBlock, InvalidInputError
from ...types import BlockInfo, OrphanInfo
from .chain import from_stored
from .codec import ImportRecord, PowBlock, PowData, PowHeader, decode_import_record
from .rules import epoch_of

if TYPE_CHECKING:
    from ...blocks.reader import BlockReader

__all__ = ["MinerBlock", "describe", "import_record", "read_records", "write_records"]

_CHUNK_CHARS: Final = 64 * 1024
RECORD_CHARS_MAX: Final = 64 * 1024
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,38}")
_FLAT: Final = re.compile(r'\{(?:[^"{}\[\]]++|"(?:[^"\\]++|\\.)*+")*+\}', re.DOTALL)
_MICROSECONDS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class MinerBlock:
    """One block as seed 001 describes it, with what the store knows of it. Field order is the order of the export."""

    hash: str
    index: int
    epoch: int
    timestamp: int
    previous_hash: str
    data_hash: str
    nonce: str
    difficulty: str
    nominated_peer_id: str
    miner_number: int
    is_canonical: bool
    is_orphaned: bool
    seen_at: int | None
    orphaned_at: int | None
    orphan_reason: str | None
    height_at_time: int | None
    competing_hash: str | None

    def to_json(self) -> str:
        """One line of ASCII JSON without its newline."""
        return json.dumps({name: getattr(self, name) for name in FIELD_NAMES}, separators=(",", ":"))

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> MinerBlock:
        """The record of decoded JSON. Raises ``InvalidBlock`` for missing, unknown or mistyped fields."""
        if values.keys() != set(FIELD_NAMES):
            wrong = sorted(set(FIELD_NAMES).symmetric_difference(values))
            raise InvalidBlock("a record must have exactly the 17 fields", missing_or_unknown=wrong)
        for name, kinds in _FIELD_KINDS.items():
            if type(values[name]) not in kinds:
                raise InvalidBlock(
                    f"field {name} of a record has a wrong type",
                    found=type(values[name]).__name__,
                    expected=" or ".join(kind.__name__ for kind in kinds),
                )
        return cls(**values)  # type: ignore[arg-type]  # each field's type was checked above

    def to_block(self) -> PowBlock:
        """The block itself. Raises ``InvalidBlock`` if any field contradicts another."""
        header = PowHeader(
            index=self.index,
            time=self.timestamp,
            parent=_hash(self.previous_hash, "previous_hash"),
            data_hash=_hash(self.data_hash, "data_hash"),
            difficulty=_decimal(self.difficulty, "difficulty"),
            nonce=_decimal(self.nonce, "nonce"),
        )
        block = PowBlock(header, PowData(self.nominated_peer_id, self.miner_number))
        if block.hash != _hash(self.hash, "hash"):
            raise InvalidBlock("the hash of a record is not that of its fields", found=self.hash, expected=block.hash)
        if self.epoch != epoch_of(self.index) or self.height_at_time != self.index:
            raise InvalidBlock("epoch or height_at_time of a record do not follow from its index", index=self.index)
        if self.is_canonical == self.is_orphaned or self.is_orphaned != (self.orphan_reason is not None):
            raise InvalidBlock("a record must be canonical, or orphaned with a reason", index=self.index)
        return block

    def to_import_record(self) -> ImportRecord:
        """What of the record the block's own bytes do not say."""
        competing = None if self.competing_hash is None else _hash(self.competing_hash, "competing_hash")
        return ImportRecord(self.seen_at, self.orphaned_at, self.orphan_reason, competing)


FIELD_NAMES: Final = tuple(field.name for field in fields(MinerBlock))
_KINDS: Final[dict[str, tuple[type, ...]]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "int | None": (int, type(None)),
    "str | None": (str, type(None)),
}
_FIELD_KINDS: Final = {field.name: _KINDS[str(field.type)] for field in fields(MinerBlock)}
assert len(FIELD_NAMES) == 17


def _hash(text: str, name: str) -> bytes:
    if _HASH.fullmatch(text) is None:
        raise InvalidBlock(f"{name} must be 64 lower-case hex digits", found=text[:80])
    return bytes.fromhex(text)


def _decimal(text: str, name: str) -> int:
    if _DECIMAL.fullmatch(text) is None:
        raise InvalidBlock(f"{name} must be a decimal string without sign or leading zeros", found=text[:80])
    return int(text)


# -- from the store --------------------------------------------------------------------------------------------------


def import_record(blocks: BlockReader, info: BlockInfo) -> ImportRecord | None:
    """What an import left beside a stored block, ``None`` if the block was not imported."""
    if info.extra_bytes is None:
        return None
    extra = blocks.extra(info)
    return None if extra is None else decode_import_record(extra)


def _own_or_imported(own: OrphanInfo, imported: ImportRecord | None) -> ImportRecord:
    """The orphan facts that hold: the file's until this store itself has moved the block.

    An imported side block was orphaned by the frame that brought it. One that had to be canonical for a moment was
    orphaned by the import with the file's own reason and competitor.
    """
    if imported is not None and imported.reason is not None:
        untouched = not own.was_canonical and own.orphaned_us == own.seen_us
        if untouched or (own.reason, own.competing_hash) == (imported.reason, imported.competing):
            return imported
    return ImportRecord(None, own.orphaned_us // _MICROSECONDS, own.reason, own.competing_hash)


def describe(blocks: BlockReader, info: BlockInfo) -> MinerBlock:
    """The record of a stored block. Raises ``CorruptionError`` if the store says neither canonical nor orphaned."""
    block = from_stored(blocks.header(info), blocks.body(info))
    imported = import_record(blocks, info)
    canonical = blocks.is_canonical(info)
    facts = ImportRecord()
    if not canonical:
        own = blocks.orphan(info.hash)
        if own is None:
            raise CorruptionError("a block is neither canonical nor orphaned", hash=info.hash, height=info.height)
        facts = _own_or_imported(own, imported)
    seen_at = info.seen_us // _MICROSECONDS if imported is None else imported.seen_at
    header = block.header
    return MinerBlock(
        hash=block.hash.hex(),
        index=header.index,
        epoch=block.epoch,
        timestamp=header.time,
        previous_hash=header.parent.hex(),
        data_hash=header.data_hash.hex(),
        nonce=str(header.nonce),
        difficulty=str(header.difficulty),
        nominated_peer_id=block.data.peer_id,
        miner_number=block.data.miner_number,
        is_canonical=canonical,
        is_orphaned=not canonical,
        seen_at=None if header.index == 0 else seen_at,
        orphaned_at=facts.orphaned_at,
        orphan_reason=facts.reason,
        height_at_time=header.index,
        competing_hash=None if facts.competing is None else facts.competing.hex(),
    )


def iter_records(blocks: BlockReader) -> Iterator[MinerBlock]:
    """Every stored block in export order, lazily."""
    height = 0
    while infos := blocks.competitors(height):
        for info in infos:
            yield describe(blocks, info)
        height += 1


def write_records(blocks: BlockReader, stream: TextIO, *, lines: bool = False) -> int:
    """Write every stored block to ``stream`` and return how many; ``lines`` leaves the array's brackets out."""
    count = 0
    for record in iter_records(blocks):
        if not lines:
            stream.write(",\n" if count else "[\n")
        stream.write(record.to_json())
        if lines:
            stream.write("\n")
        count += 1
    if not lines:
        stream.write("\n]\n" if count else "[]\n")
    return count


# -- reading ---------------------------------------------------------------------------------------------------------


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidBlock("a record names a field twice")
    return found


def _no_float(text: str) -> NoReturn:
    raise InvalidBlock("a record may hold whole numbers only", found=text[:80])


class _Source:
    """Text read in chunks, with one record decoded at a time."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._text = ""
        self._at = 0
        self._decoder = json.JSONDecoder(
            object_pairs_hook=_no_duplicates, parse_float=_no_float, parse_constant=_no_float
        )
        self.records = 0

    def _fill(self) -> bool:
        chunk = self._stream.read(_CHUNK_CHARS)
        self._text, self._at = self._text[self._at :] + chunk, 0
        return bool(chunk)

    def peek(self) -> str:
        """The next character that is not white space, ``""`` at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in " \t\r\n":
                    return self._text[self._at]
                self._at += 1
            if not self._fill():
                return ""

    def skip(self) -> None:
        """Step over the character that ``peek`` showed."""
        self._at += 1

    def record(self) -> MinerBlock:
        """The record that begins here."""
        if self.peek() != "{":
            raise self.error("a record must be a JSON object")
        try:
            if not self._is_flat():
                check_depth(self._text[self._at :].encode("utf-8", "surrogatepass"))
            value, self._at = self._decoder.raw_decode(self._text, self._at)
        except InvalidBlock:
            raise
        except json.JSONDecodeError as exc:
            raise self.error(f"broken JSON: {exc.msg}") from exc
        except ValueError as exc:
            raise self.error(f"unusable JSON: {exc}") from exc
        self.records += 1
        return MinerBlock.from_mapping(value)

    def _is_flat(self) -> bool:
        """True once the whole record is read, and holds no array or object as every good one; else it may be broken."""
        while _FLAT.match(self._text, self._at) is None:
            if len(self._text) - self._at > RECORD_CHARS_MAX or not self._fill():
                return False
        return True

    def error(self, message: str) -> InvalidInputError:
        return InvalidInputError(message, records_read=self.records, near=self._text[self._at : self._at + 40])


def read_records(stream: TextIO) -> Iterator[MinerBlock]:
    """The records of an export, one at a time; array or lines, whichever the first character says.

    Raises:
        InvalidInputError: not such a file, or an array that ends before its closing bracket.
        InvalidBlock: a record with wrong fields.
    """
    source = _Source(stream)
    in_array = source.peek() == "["
    if in_array:
        source.skip()
    while (seen := source.peek()) not in ("", "]"):
        if in_array and source.records:
            if seen != ",":
                raise source.error("records of an array must be separated by commas")
            source.skip()
        yield source.record()
    if in_array != (seen == "]"):
        raise source.error("the array has no end: the file is cut" if in_array else "a bracket without an array")
    if in_array:
        source.skip()
        if source.peek():
            raise source.error("text after the end of the array")
