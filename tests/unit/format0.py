"""A format that was never released, older than format 1, so that migration has something to migrate.

The identity says ``format = 0`` and calls the scheme ``tree``. The frames lie in ``log/NNNNNN.rec``, at most 50 in a
file: length (u32), SHA-256 and msgpack of (time in microseconds, list of (kind, critical, data)).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import msgspec

import holdfast
from holdfast._fs import FileSystem
from holdfast.errors import CorruptionError
from holdfast.journal.api import Part
from holdfast.recovery.migrate import OldFrame
from holdfast.store.identity import FORMAT, IDENTITY_NAME, Identity, decode_identity
from tests.unit.state_support import writer_backend

PER_FILE = 50
_HEAD = struct.Struct(">I32s")
_FILE_BYTES_MAX = 64 * 1024 * 1024


class Format0:
    """Reads it."""

    def identity(self, fs: FileSystem, root: Path) -> Identity:
        """The identity, as format 1 has it."""
        text = fs.read_bytes(root / IDENTITY_NAME, limit=65536).decode()
        return decode_identity(
            text.replace("format = 0", f"format = {FORMAT}").replace("\ntree =", "\nscheme =").encode()
        )

    def frames(self, fs: FileSystem, root: Path, start: int) -> Iterator[OldFrame]:
        """From ``start`` on; whole files before it are not read."""
        number = 0
        for name in sorted(fs.names(root / "log")):
            if number + PER_FILE < start:
                number += PER_FILE
                continue
            data = fs.read_bytes(root / "log" / name, limit=_FILE_BYTES_MAX)
            at = 0
            while at < len(data):
                number += 1
                if len(data) - at < _HEAD.size:
                    raise CorruptionError("a record is cut off", path=root / "log" / name, offset=at)
                length, digest = _HEAD.unpack_from(data, at)
                body = data[at + _HEAD.size : at + _HEAD.size + length]
                if len(body) != length or sha256(body).digest() != digest:
                    raise CorruptionError("a record is damaged", path=root / "log" / name, offset=at)
                at += _HEAD.size + length
                if number >= start:
                    time_us, parts = msgspec.msgpack.decode(body, type=tuple[int, list[tuple[int, bool, bytes]]])
                    yield OldFrame([Part(kind, data, critical) for kind, critical, data in parts], time_us)


def write_format0(source: Path, target: Path) -> int:
    """``target`` is the store at ``source``, which is closed, in format 0; the number of its frames."""
    (target / "log").mkdir(parents=True)
    text = (source / IDENTITY_NAME).read_text()
    (target / IDENTITY_NAME).write_text(
        text.replace(f"format = {FORMAT}", "format = 0").replace("\nscheme =", "\ntree =")
    )
    records: list[bytes] = []
    with holdfast.open(source) as store:
        journal = writer_backend(store).journal
        for frame in journal.frames(1):
            parts = [(part.kind, part.critical, journal.part(frame, at)) for at, part in enumerate(frame.parts)]
            body = msgspec.msgpack.encode((frame.time_us, parts))
            records.append(_HEAD.pack(len(body), sha256(body).digest()) + body)
    for first in range(0, len(records), PER_FILE):
        (target / "log" / f"{first // PER_FILE + 1:06d}.rec").write_bytes(b"".join(records[first : first + PER_FILE]))
    return len(records)
