"""History rows: the value of a chain row before a canonical block changed it (docs/FORMAT.md, section 7.13).

    |<------------------ key ------------------>|<----------- value ----------->|
    | key inside its table, ordered | height u64 | 0 (absent), or 1 and the value |

Invariants:
    * ``ordered`` keeps the order of keys, and no ordered key begins another: the rows of a key lie together, by height.
    * The value of a key at height h is that of its first row above h, or the present one if there is none.
    * What ``decode_...`` returns is exactly what was encoded, or ``CorruptionError``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from ..errors import CorruptionError, Recovery
from ..limits import TABLE_ID_BYTES
from .api import HistoryRecord
from .rows import decode_row
from .tables import HISTORY, META

__all__ = [
    "HISTORY_KEY",
    "decode_history_key",
    "decode_old",
    "decode_record",
    "encode_old",
    "encode_record",
    "history_bounds",
    "history_key",
    "load_history",
    "ordered",
    "unordered",
]

HISTORY_KEY = META.prefix + b"history"

_GROUP = 16
_MORE = b"\xff"
_LENGTHS = tuple(bytes((length,)) for length in range(_GROUP + 1))
_HEIGHT = struct.Struct(">Q")
_LAST = b"\xff" * _HEIGHT.size
_LAYOUT = 1
_RECORD = struct.Struct(">BQQQQ")
_ABSENT = b"\x00"
_PRESENT = b"\x01"


def ordered(key: bytes) -> bytes:
    """``key`` (1 byte or more) so that the order stays and no result begins another; 17 bytes for each 16 begun."""
    assert key
    if len(key) <= _GROUP:
        return key.ljust(_GROUP, b"\x00") + _LENGTHS[len(key)]
    groups = [key[at : at + _GROUP] for at in range(0, len(key), _GROUP)]
    last = groups.pop()
    return _MORE.join(groups) + _MORE + last.ljust(_GROUP, b"\x00") + _LENGTHS[len(last)]


def unordered(data: bytes) -> bytes:
    """The key whose ordered form is ``data``. Raises ``CorruptionError`` if it is no such form."""
    key = bytearray()
    for at in range(0, len(data), _GROUP + 1):
        group, mark = data[at : at + _GROUP], data[at + _GROUP : at + _GROUP + 1]
        if mark == _MORE:
            key += group
            continue
        length = mark[0] if mark else 0
        if not 1 <= length <= _GROUP or any(group[length:]) or at + _GROUP + 1 != len(data):
            break
        return bytes(key + group[:length])
    raise _bad("a key of the history has a bad form", HISTORY.prefix + data)


def history_key(key: bytes, height: int) -> bytes:
    """The engine key of the row that says what ``key`` (inside its table) was before the block at ``height``."""
    return HISTORY.prefix + ordered(key) + _HEIGHT.pack(height)


def history_bounds(key: bytes, above: int) -> tuple[bytes, bytes]:
    """The range of engine keys of the rows of ``key`` with a height above ``above``."""
    base = HISTORY.prefix + ordered(key)
    return base + _HEIGHT.pack(above + 1), base + _LAST


def decode_history_key(engine_key: bytes) -> tuple[bytes, int]:
    """Key inside its table and height. Raises ``CorruptionError``."""
    if len(engine_key) < TABLE_ID_BYTES + _GROUP + 1 + _HEIGHT.size:
        raise _bad("a key of the history is too short", engine_key)
    (height,) = _HEIGHT.unpack(engine_key[-_HEIGHT.size :])
    return unordered(engine_key[TABLE_ID_BYTES : -_HEIGHT.size]), height


def encode_old(value: bytes | None) -> bytes:
    """The plain value of a history row."""
    return _ABSENT if value is None else _PRESENT + value


def decode_old(engine_key: bytes, row: bytes) -> bytes | None:
    """What the history row with this plain value says. Raises ``CorruptionError``."""
    if row[:1] == _PRESENT:
        return row[1:]
    if row != _ABSENT:
        raise _bad("a history row has a bad form", engine_key)
    return None


def encode_record(record: HistoryRecord) -> bytes:
    """The value of the META row ``history``."""
    return _RECORD.pack(_LAYOUT, record.floor, record.every, record.oldest, record.cleaned)


def decode_record(value: bytes) -> HistoryRecord:
    """The record in the META row ``history``. Raises ``CorruptionError``."""
    if len(value) != _RECORD.size or value[0] != _LAYOUT:
        raise _bad("the row 'history' has a wrong length or an unknown layout", HISTORY_KEY)
    return HistoryRecord(*_RECORD.unpack(value)[1:])


def load_history(get: Callable[[bytes], bytes | None]) -> HistoryRecord | None:
    """What the engine says about its history; ``None`` if it has none. ``get`` reads stored rows."""
    stored = get(HISTORY_KEY)
    return None if stored is None else decode_record(decode_row(HISTORY_KEY, stored))


def _bad(what: str, engine_key: bytes) -> CorruptionError:
    return CorruptionError(
        what, remedy=None, recovery=Recovery.REBUILD, table=HISTORY.name, key=engine_key, found=len(engine_key)
    )
