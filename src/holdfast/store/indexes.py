"""User indexes: rows that a plain function gives for each canonical block, kept, undone and backfilled by the store.

Invariants:
    * The function is pure over (header, body, extra). It raises, or gives bad or too many rows: the commit is refused.
    * A row's key holds the block's height and the row's number in it, so rows of different blocks never collide and
      the undo of a block only deletes.
    * ``ready`` means: the rows of every canonical block are there, as of the same frame as everything else.
    * Without its function at open an index is ``behind`` from that moment: reads are refused, nothing is guessed.

    | table (2) | key, escaped | 00 01 | height u64 | number u32 |  ->  value

Escaping replaces 00 by 00 FF, so that the order of keys is kept. Spec: docs/FORMAT.md, section 7.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from ..engine.api import iter_rows
from ..errors import CorruptionError, IndexBehind, IndexFailed, InvalidInputError, LimitExceeded, Recovery
from ..limits import INDEX_KEY_BYTES_MAX, INDEX_NAME_BYTES_MAX, INDEX_VALUE_BYTES_MAX
from ..types import ZERO_HASH, Block
from ..views.api import RowReader, Rows
from ..views.tables import META, Table, index_table

__all__ = [
    "IndexFunction",
    "IndexReader",
    "IndexRecord",
    "IndexSpec",
    "IndexStatus",
    "Status",
    "decode_record",
    "encode_record",
    "index",
    "record_key",
    "rows_of",
]

IndexFunction = Callable[[Block], Iterable[tuple[bytes, bytes]]]
Status = Literal["building", "ready", "behind"]

_STATUS: tuple[Status, ...] = ("building", "ready", "behind")
_RECORD = struct.Struct(">IHBBQ32s")
_TAIL = struct.Struct(">QI")
_END_OF_KEY = b"\x00\x01"
RECORDS = META.prefix + b"index/"


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """An index and the function that fills it. Change the function's meaning, change the version."""

    name: str
    version: int
    function: IndexFunction

    def __call__(self, block: Block) -> Iterable[tuple[bytes, bytes]]:
        """The rows of a block, as the function gives them."""
        return self.function(block)


def index(name: str, *, version: int = 1) -> Callable[[IndexFunction], IndexSpec]:
    """The decorated function is an index: give it to ``holdfast.open(..., indexes=[...])``.

    The function takes a ``Block`` and yields (key, value) pairs of bytes: keys of 1 to 240 bytes, values up to 64 KiB.
    """
    raw = name.encode("utf-8")
    if not raw or len(raw) > INDEX_NAME_BYTES_MAX or not name.replace("_", "a").replace("-", "a").isalnum():
        raise InvalidInputError("an index is named by letters, digits, '_' and '-', at most 64 bytes", found=name)
    if not isinstance(version, int) or not 1 <= version < 2**32:
        raise InvalidInputError("the version of an index is a number from 1", found=version)

    def decorate(function: IndexFunction) -> IndexSpec:
        return IndexSpec(name, version, function)

    return decorate


@dataclass(frozen=True, slots=True)
class IndexRecord:
    """What the store knows of an index: the table of its rows and how far it is built.

    ``built`` is (height, hash) of the last block whose rows are there; ``None`` if there is none.
    """

    name: str
    version: int
    table: int
    status: Status
    built: tuple[int, bytes] | None


@dataclass(frozen=True, slots=True)
class IndexStatus:
    """An index as ``store.indexes()`` shows it."""

    name: str
    version: int
    status: Status
    built_height: int | None
    tip_height: int | None
    failure: str | None = None


def record_key(name: str) -> bytes:
    """Engine key of the index's record."""
    return RECORDS + name.encode("utf-8")


def encode_record(record: IndexRecord) -> bytes:
    """Row of an index record."""
    height, block_hash = record.built if record.built is not None else (0, ZERO_HASH)
    status = _STATUS.index(record.status)
    return _RECORD.pack(record.version, record.table, status, record.built is not None, height, block_hash)


def decode_record(key: bytes, row: bytes) -> IndexRecord:
    """The record in this row."""
    if len(row) != _RECORD.size or row[6] >= len(_STATUS) or row[7] > 1:
        raise CorruptionError(
            "an index record is malformed", key=key, found=len(row), expected=_RECORD.size, recovery=Recovery.REBUILD
        )
    version, table, status, has_built, height, block_hash = _RECORD.unpack(row)
    name = key[len(RECORDS) :].decode("utf-8", "replace")
    return IndexRecord(name, version, table, _STATUS[status], (height, block_hash) if has_built else None)


def _escaped(key: bytes) -> bytes:
    return key.replace(b"\x00", b"\x00\xff")


def rows_of(spec: IndexSpec, table: Table, block: Block, *, rows_max: int) -> Rows:
    """The rows of ``block``. Raises ``IndexFailed`` naming the index, the block and what was wrong."""

    def failed(why: str, *, found: object = None, limit: int | None = None) -> IndexFailed:
        return IndexFailed(
            f"index '{spec.name}' version {spec.version} {why}",
            index=spec.name,
            hash=block.hash,
            height=block.height,
            found=found,
            limit=limit,
        )

    rows: Rows = {}
    try:
        for number, pair in enumerate(spec.function(block)):
            if number >= rows_max:
                raise failed("gives too many rows", limit=rows_max)
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise failed("must give pairs of key and value", found=type(pair).__name__)
            key, value = pair
            if type(key) is not bytes or type(value) is not bytes:
                raise failed(
                    "must give keys and values as bytes", found=f"{type(key).__name__}, {type(value).__name__}"
                )
            if not 1 <= len(key) <= INDEX_KEY_BYTES_MAX:
                raise failed("gives a key that is empty or too long", found=len(key), limit=INDEX_KEY_BYTES_MAX)
            if len(value) > INDEX_VALUE_BYTES_MAX:
                raise failed("gives a value that is too long", found=len(value), limit=INDEX_VALUE_BYTES_MAX)
            rows[table.prefix + _escaped(key) + _END_OF_KEY + _TAIL.pack(block.height, number)] = value
    except IndexFailed:
        raise
    except Exception as error:
        raise failed(f"raised {type(error).__name__}: {error}") from error
    return rows


def _split(key: bytes) -> tuple[bytes, int]:
    """User key and height of an engine key."""
    if len(key) < 2 + 1 + 2 + _TAIL.size or key[-_TAIL.size - 2 : -_TAIL.size] != _END_OF_KEY:
        raise CorruptionError("a key of an index is malformed", key=key, recovery=Recovery.REBUILD)
    height, _ = _TAIL.unpack(key[-_TAIL.size :])
    return key[2 : -_TAIL.size - 2].replace(b"\x00\xff", b"\x00"), height


class IndexReader:
    """Reads one index. Each call checks that the index is ready."""

    def __init__(self, name: str, rows: RowReader, record: Callable[[], IndexRecord]) -> None:
        self.name = name
        self._rows = rows
        self._record = record

    def _table(self) -> Table:
        record = self._record()
        if record.status != "ready":
            built = record.built[0] if record.built is not None else None
            raise IndexBehind(
                f"index '{record.name}' version {record.version} is {record.status}",
                index=record.name,
                built_height=built,
            )
        return index_table(record.table)

    def get(self, key: bytes, *, limit: int | None = None) -> list[bytes]:
        """The values under ``key``, oldest block first; at most ``limit`` of them."""
        start = self._table().prefix + _escaped(key) + _END_OF_KEY
        found: list[bytes] = []
        for _, value in iter_rows(self._rows, start, start + b"\xff" * (_TAIL.size + 1)):
            if limit is not None and len(found) >= limit:
                break
            found.append(value)
        return found

    def items(
        self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, int, bytes]]:
        """(key, height, value) with ``start <= key < stop`` in the order of keys, then heights."""
        table = self._table()
        low = table.prefix + _escaped(start)
        high = table.end if stop is None else table.prefix + _escaped(stop)
        for key, value in iter_rows(self._rows, low, high, reverse=reverse):
            user_key, height = _split(key)
            yield user_key, height, value


def check_specs(specs: Iterable[IndexSpec], limit: int) -> dict[str, IndexSpec]:
    """The indexes by name. Raises ``InvalidInputError`` for a name given twice, ``LimitExceeded`` above ``limit``."""
    found: dict[str, IndexSpec] = {}
    for spec in specs:
        if not isinstance(spec, IndexSpec):
            raise InvalidInputError("an index is a function decorated with @holdfast.index(name)", found=repr(spec))
        if spec.name in found:
            raise InvalidInputError("two indexes have the same name", found=spec.name)
        found[spec.name] = spec
    if len(found) > limit:
        raise LimitExceeded("too many indexes", found=len(found), limit=limit)
    return found
