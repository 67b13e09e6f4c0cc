"""The ``documents`` entry and the rows of documents: pure codecs (docs/FORMAT.md, sections 5.2.6 and 7.11).

    row   |<- table ->|<--- space ---->|<- key ->|<- value ->|
          | u16       | u8 length, name | 1..400  | 0..16 MiB |

Invariants:
    * An engine key is at most 467 bytes long, so every engine takes it.
    * Spaces do not mix: no row of one space lies between two rows of another.
    * What is encoded is decoded to the same batch; any other bytes raise ``CorruptionError``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

import msgspec

from ..errors import CorruptionError, InvalidInputError, LimitExceeded
from ..limits import (
    DOCUMENT_BATCH_BYTES_MAX,
    DOCUMENT_BATCH_ROWS_MAX,
    DOCUMENT_KEY_BYTES_MAX,
    DOCUMENT_PART_BYTES_MAX,
    DOCUMENT_SPACE_BYTES_MAX,
    DOCUMENT_VALUE_BYTES_MAX,
    ENGINE_KEY_BYTES_MAX,
)
from ..views.tables import DOCUMENTS

__all__ = [
    "DocumentBatch",
    "check_batch",
    "check_document_key",
    "check_space",
    "decode_documents",
    "encode_documents",
    "row_prefix",
    "space_of_row",
]

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_ROW_BYTES = 6
"""Bytes of a row of an entry besides its key and value, at most."""

assert len(DOCUMENTS.prefix) + 1 + DOCUMENT_SPACE_BYTES_MAX + DOCUMENT_KEY_BYTES_MAX <= ENGINE_KEY_BYTES_MAX
assert DOCUMENT_VALUE_BYTES_MAX + 1024 <= DOCUMENT_PART_BYTES_MAX


class DocumentBatch(msgspec.Struct, frozen=True):
    """What one entry does to the space with this encoded name; keys are in order, none is in both."""

    space: bytes
    deletes: list[bytes]
    puts: list[tuple[bytes, bytes]]


# -- what a caller may ask for --------------------------------------------------------------------------------------


def check_space(name: str) -> bytes:
    """The UTF-8 bytes of ``name`` if they are 1 to 64 and none is a control character."""
    if type(name) is not str or not name:
        raise InvalidInputError("the name of a space is text and not empty", found=repr(name))
    try:
        space = name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInputError("the name of a space is not valid text", found=repr(name)) from error
    if any(byte < 0x20 or byte == 0x7F for byte in space):
        raise InvalidInputError("the name of a space holds no control characters", found=repr(name))
    if len(space) > DOCUMENT_SPACE_BYTES_MAX:
        raise LimitExceeded("the name of a space is too long", found=len(space), limit=DOCUMENT_SPACE_BYTES_MAX)
    return space


def check_document_key(key: bytes) -> bytes:
    """``key`` if it is 1 to 400 bytes."""
    if type(key) is not bytes or not key:
        raise InvalidInputError("the key of a document is bytes and not empty", found=repr(key))
    if len(key) > DOCUMENT_KEY_BYTES_MAX:
        raise LimitExceeded("the key of a document is too long", found=len(key), limit=DOCUMENT_KEY_BYTES_MAX)
    return key


def check_batch(puts: Mapping[bytes, bytes], deletes: Iterable[bytes]) -> tuple[dict[bytes, bytes], list[bytes]]:
    """Both in key order, within every limit.

    Raises:
        InvalidInputError: a key or a value is no bytes, a key is empty, or is both put and deleted.
        LimitExceeded: a key, a value or the whole batch is too long, or has too many rows.
    """
    if not isinstance(puts, Mapping):
        raise InvalidInputError("what is put is a mapping of keys to documents", found=type(puts).__name__)
    if not isinstance(deletes, Iterable):
        raise InvalidInputError("what is deleted are several keys", found=type(deletes).__name__)
    gone = sorted({check_document_key(key) for key in deletes})
    total = 0
    for key, value in puts.items():
        check_document_key(key)
        if type(value) is not bytes:
            raise InvalidInputError("a document is bytes", key=key, found=type(value).__name__)
        if len(value) > DOCUMENT_VALUE_BYTES_MAX:
            raise LimitExceeded("the document is too long", key=key, found=len(value), limit=DOCUMENT_VALUE_BYTES_MAX)
        total += len(key) + len(value) + _ROW_BYTES
    for key in gone:
        if key in puts:
            raise InvalidInputError("a key is both put and deleted in one batch", key=key)
        total += len(key) + _ROW_BYTES
    rows = len(puts) + len(gone)
    if rows > DOCUMENT_BATCH_ROWS_MAX:
        raise LimitExceeded("the batch has too many rows", found=rows, limit=DOCUMENT_BATCH_ROWS_MAX)
    if total > DOCUMENT_BATCH_BYTES_MAX:
        raise LimitExceeded("the batch is too long", found=total, limit=DOCUMENT_BATCH_BYTES_MAX)
    return {key: puts[key] for key in sorted(puts)}, gone


# -- the entry ------------------------------------------------------------------------------------------------------


def encode_documents(
    space: bytes,
    puts: Mapping[bytes, bytes],
    deletes: Iterable[bytes],
    *,
    part_bytes_max: int = DOCUMENT_PART_BYTES_MAX,
) -> list[bytes]:
    """The batch as entries for one frame, each at most ``part_bytes_max`` long unless a single row is longer.

    ``puts`` and ``deletes`` come from ``check_batch``; with nothing in them there is no entry.
    """
    entries: list[bytes] = []
    gone: list[bytes] = []
    stored: list[bytes] = []
    counts = [0, 0]
    head = bytes((len(space),)) + space
    empty = len(head) + 2 * _U32.size
    size = empty

    def close() -> None:
        nonlocal size
        if size > empty:
            entries.append(b"".join((head, _U32.pack(counts[0]), *gone, _U32.pack(counts[1]), *stored)))
        gone.clear()
        stored.clear()
        counts[:] = 0, 0
        size = empty

    def room(length: int) -> None:
        nonlocal size
        if size + length > part_bytes_max:
            close()
        size += length

    for key in deletes:
        room(_U16.size + len(key))
        gone += _U16.pack(len(key)), key
        counts[0] += 1
    for key, value in puts.items():
        room(_U16.size + len(key) + _U32.size + len(value))
        stored += _U16.pack(len(key)), key, _U32.pack(len(value)), value
        counts[1] += 1
    close()
    return entries


class _Cursor:
    """Bytes of an entry, read from the front."""

    __slots__ = ("_data", "_offset")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def take(self, length: int) -> bytes:
        """The next ``length`` bytes."""
        end = self._offset + length
        if end > len(self._data):
            raise CorruptionError("a documents entry ends too early", expected=end, found=len(self._data))
        piece = self._data[self._offset : end]
        self._offset = end
        return piece

    def number(self, form: struct.Struct) -> int:
        """The next number."""
        (value,) = form.unpack(self.take(form.size))
        return int(value)

    def key(self, previous: bytes) -> bytes:
        """The next key, which lies above ``previous``."""
        key = self.take(self.number(_U16))
        if len(key) > DOCUMENT_KEY_BYTES_MAX:
            raise CorruptionError("a key of a documents entry is too long", found=len(key))
        if key <= previous:  # also the empty key
            raise CorruptionError("keys of a documents entry are not in order", previous=previous, found=key)
        return key

    def end(self) -> None:
        """Nothing follows."""
        if self._offset != len(self._data):
            raise CorruptionError(
                "a documents entry has bytes behind its end", found=len(self._data), expected=self._offset
            )


def decode_documents(data: bytes) -> DocumentBatch:
    """The batch in these bytes. Raises ``CorruptionError``."""
    cursor = _Cursor(data)
    space = cursor.take(cursor.take(1)[0])
    if not 1 <= len(space) <= DOCUMENT_SPACE_BYTES_MAX:
        raise CorruptionError("the space of a documents entry has a wrong length", found=len(space))
    _decode_name(space)
    deletes: list[bytes] = []
    key = b""
    for _ in range(cursor.number(_U32)):
        key = cursor.key(key)
        deletes.append(key)
    removed = set(deletes)
    puts: list[tuple[bytes, bytes]] = []
    key = b""
    for _ in range(cursor.number(_U32)):
        key = cursor.key(key)
        length = cursor.number(_U32)
        if length > DOCUMENT_VALUE_BYTES_MAX:
            raise CorruptionError("a document of an entry is too long", key=key, found=length)
        if key in removed:
            raise CorruptionError("a key of a documents entry is both put and removed", key=key)
        puts.append((key, cursor.take(length)))
    cursor.end()
    if not deletes and not puts:
        raise CorruptionError("a documents entry holds nothing", space=space)
    return DocumentBatch(space, deletes, puts)


# -- rows -----------------------------------------------------------------------------------------------------------


def row_prefix(space: bytes) -> bytes:
    """What the engine keys of the documents of ``space`` begin with."""
    return DOCUMENTS.prefix + bytes((len(space),)) + space


def space_of_row(key: bytes) -> str:
    """The name of the space that a row belongs to, by its engine key. Raises ``CorruptionError``."""
    length = key[2] if len(key) > 2 else 0
    if not 1 <= length <= DOCUMENT_SPACE_BYTES_MAX or len(key) <= 3 + length:
        raise CorruptionError("a row of a document has a key that is no key", table=DOCUMENTS.name, key=key)
    return _decode_name(key[3 : 3 + length])


def _decode_name(space: bytes) -> str:
    try:
        return space.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptionError("the name of a space is not UTF-8", found=space) from error
