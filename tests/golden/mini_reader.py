"""An independent reader of the journal, written from docs/FORMAT.md alone. It imports nothing of the package.

    python tests/golden/mini_reader.py DATA

prints one line per frame and stops with a message at the first byte that is not as the document says.
"""

from __future__ import annotations

import hashlib
import struct
import sys
import tomllib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard

FRAME_HEADER = struct.Struct(">4s H H Q Q Q Q 32s")
ROW = struct.Struct(">H B B I I I 32s")
SEGMENT_HEADER = struct.Struct(">8s I I 16s Q Q 32s 16s")
SEAL = struct.Struct(">8s Q Q Q 32s")
SLOT = struct.Struct(">8s Q Q 32s Q Q B 7s Q 32s 32s")
COMPACTED_HEAD = struct.Struct(">8s I I 16s Q Q I 12s")
EXTENT = struct.Struct(">I B 3s 32s")
COMPACTED_END = struct.Struct(">8s Q Q Q Q 32s")
MIB = 1 << 20


class Damaged(Exception):
    """Bytes are not as docs/FORMAT.md says."""


@dataclass(frozen=True)
class MiniPart:
    kind: int
    critical: bool
    data: bytes
    pruned: bool = False
    codec: int = 0
    flags: int = 0
    raw_length: int = 0


@dataclass(frozen=True)
class MiniFrame:
    seq: int
    durable_seq: int
    time_us: int
    digest: bytes
    parts: tuple[MiniPart, ...]
    head: bytes


@dataclass(frozen=True)
class MiniMark:
    counter: int
    seq: int
    digest: bytes
    segment: int
    end: int
    clean: bool
    tip: tuple[int, bytes, bytes] | None


def need(condition: bool, message: str) -> None:
    if not condition:
        raise Damaged(message)


def sha(*pieces: bytes) -> bytes:
    return hashlib.sha256(b"".join(pieces)).digest()


def read_identity(data: Path) -> tuple[bytes, bytes]:
    """Store id and salt (section 3)."""
    identity = tomllib.loads((data / "holdfast.toml").read_text("utf-8"))
    need(identity["format"] == 1, "format")
    return bytes.fromhex(identity["store_id"]), bytes.fromhex(identity["salt"])


def read_watermark(data: Path, salt: bytes) -> MiniMark:
    """The slot that counts (section 6)."""
    raw = (data / "watermark").read_bytes()
    need(len(raw) == 8192, "watermark: length")
    marks = []
    for start in (0, 4096):
        slot = raw[start : start + 4096]
        if sha(salt, slot[:152]) != slot[152:184] or slot[184:] != bytes(4096 - 184):
            continue
        magic, counter, seq, digest, segment, end, flags, zero, height, tip, root = SLOT.unpack(slot[:152])
        need(magic == b"HFWATER1" and zero == bytes(7) and flags < 4, "watermark: fields")
        place = (height, tip, root) if flags & 2 else None
        marks.append(MiniMark(counter, seq, digest, segment, end, bool(flags & 1), place))
    need(bool(marks), "watermark: both slots are damaged")
    return max(marks, key=lambda mark: mark.counter)


def decode(codec: int, stored: bytes, length: int) -> bytes:
    """The raw bytes; what is encrypted (5.5) stays as it is stored."""
    if codec & 0x80:
        need(len(stored) >= 28, "encrypted part: length")
        return stored
    if codec == 0:
        need(len(stored) == length, "raw part: length")
        return stored
    need(codec == 1, f"codec {codec} is not known")
    reader = zstandard.ZstdDecompressor().stream_reader(stored)
    raw = b""
    while len(raw) <= length:
        piece = reader.read(min(MIB, length + 1 - len(raw)))
        if not piece:
            break
        raw += piece
    need(len(raw) == length, "zstd part: raw length")
    return raw


def read_compacted(data: bytes, number: int, store_id: bytes, salt: bytes) -> tuple[bytes, set[int]]:
    """The raw bytes, zeros in holes, and which eighths of them (offset // 8) are absent (section 4.1)."""
    head, end = data[:64], data[-104:]
    magic, form, generation, owner, found, length, extent, zero = COMPACTED_HEAD.unpack(head)
    need(form == 1 and generation > 0 and owner == store_id and found == number, "compacted: head")
    need(zero == bytes(12) and extent % 8 == 0 and 4096 <= extent <= MIB and length <= 1024 * MIB, "compacted: lengths")
    magic, extents, holes, table, floor, digest = COMPACTED_END.unpack(end[:72])
    need(magic == b"HFCOMP_E" and table + 40 * extents + 8 * holes + 104 == len(data), "compacted: end")
    need(sha(salt, head, data[table:-32]) == end[72:], "compacted: digest")
    need((floor == 0) == (holes == 0), "compacted: floor")
    at, kept = 64, b""
    for index in range(extents):
        size, codec, zero, stored_hash = EXTENT.unpack_from(data, table + 40 * index)
        stored = data[at : at + size]
        need(zero == bytes(3) and hashlib.sha256(stored).digest() == stored_hash, f"extent {index}: hash")
        piece = zstandard.ZstdDecompressor().decompressobj().decompress(stored) if codec else stored
        need(len(piece) == extent or (index == extents - 1 and 0 < len(piece) < extent), f"extent {index}: length")
        kept += piece
        at += size
    need(at == table, "compacted: extents")
    raw = b""
    absent: set[int] = set()
    for index in range(holes):
        before, gone = struct.unpack_from(">II", data, table + 40 * extents + 8 * index)
        need(before > 0 and gone > 0, f"hole {index}")
        raw, kept = raw + kept[: 8 * before], kept[8 * before :]
        absent.update(range(len(raw) // 8, len(raw) // 8 + gone))
        raw += bytes(8 * gone)
    raw += kept
    need(len(raw) == length and (bool(absent) or sha(raw) == digest), "compacted: raw bytes")
    return raw, absent


def read_frame(
    raw: bytes, at: int, salt: bytes, seq: int, previous: bytes, absent: Container[int] = ()
) -> tuple[MiniFrame, int]:
    """The frame at ``at`` and the offset behind it (section 5)."""
    need(at % 8 == 0 and at + FRAME_HEADER.size <= len(raw), "frame: place")
    magic, version, count, length, found, durable_seq, time_us, before = FRAME_HEADER.unpack_from(raw, at)
    need(magic == b"HFRM", f"frame {seq}: magic")
    need(version == 1 and 1 <= count <= 4096, f"frame {seq}: version or parts")
    need(length % 8 == 0 and at + length <= len(raw), f"frame {seq}: length")
    need(found == seq and durable_seq < seq and before == previous, f"frame {seq}: seq or chain")
    table_end = at + 72 + 48 * count
    digest = raw[table_end : table_end + 32]
    need(sha(salt, raw[at:table_end]) == digest, f"frame {seq}: digest")
    parts = []
    place = table_end + 32
    for index in range(count):
        kind, codec, flags, stored, length_raw, zero, part_hash = ROW.unpack_from(raw, at + 72 + 48 * index)
        need(zero == 0 and flags < 2 and stored <= 256 * MIB and length_raw <= 256 * MIB, f"frame {seq}: row {index}")
        padding = -stored % 8
        gone = stored > 0 and all(eighth in absent for eighth in range(place // 8, (place + stored + padding) // 8))
        if gone:
            need(kind in (0x12, 0x13), f"frame {seq}: part {index} must not be pruned")
            parts.append(MiniPart(kind, bool(flags & 1), b"", pruned=True))
            place += stored + padding
            continue
        body = raw[place : place + stored]
        need(hashlib.sha256(body).digest() == part_hash, f"frame {seq}: part {index}")
        need(raw[place + stored : place + stored + padding] == bytes(padding), f"frame {seq}: padding")
        parts.append(MiniPart(kind, bool(flags & 1), decode(codec, body, length_raw), False, codec, flags, length_raw))
        place += stored + padding
    need(place == at + length, f"frame {seq}: its parts do not fill it")
    return MiniFrame(seq, durable_seq, time_us, digest, tuple(parts), raw[at:table_end]), place


def check_seal(raw: bytes, offsets: list[int], end: int, salt: bytes, last_seq: int, digest: bytes) -> bool:
    """True if the file ends with the right seal (section 4)."""
    if raw[-96:-88] != b"HFSEAL_1":
        return False
    magic, count, last, table, last_digest = SEAL.unpack(raw[-96:-32])
    need(magic == b"HFSEAL_1" and count == len(offsets) and last == last_seq, "seal: count")
    need(table == end and len(raw) == end + 8 * count + 96 and last_digest == digest, "seal: place")
    need(raw[end : end + 8 * count] == b"".join(offset.to_bytes(8, "big") for offset in offsets), "seal: offsets")
    need(sha(salt, raw[end:-32]) == raw[-32:], "seal: hash")
    return True


def frames(data: Path, store_id: bytes | None = None, salt: bytes | None = None) -> Iterator[MiniFrame]:
    """Every durable frame in order, everything checked (sections 4 to 6)."""
    if store_id is None or salt is None:
        store_id, salt = read_identity(data)
    mark = read_watermark(data, salt)
    seq, digest = 0, bytes(32)
    for number in range(1, mark.segment + 1):
        raw, absent = (data / "journal" / f"{number:010d}.seg").read_bytes(), set[int]()
        if raw[:8] == b"HFCOMPT1":
            need(number < mark.segment, f"segment {number}: compacted, and the newest")
            raw, absent = read_compacted(raw, number, store_id, salt)
        magic, form, _generation, owner, found, first, previous, zero = SEGMENT_HEADER.unpack_from(raw)
        need(magic == b"HFSEGMT1" and form == 1 and owner == store_id, f"segment {number}: header")
        need(found == number and first == seq + 1 and previous == digest, f"segment {number}: chain")
        need(zero == bytes(16) and sha(salt, raw[:96]) == raw[96:128], f"segment {number}: hash")
        at = 128
        offsets = []
        while raw[at : at + 4] == b"HFRM" and (number < mark.segment or seq < mark.seq):
            frame, end = read_frame(raw, at, salt, seq + 1, digest, absent)
            offsets.append(at)
            at, seq, digest = end, frame.seq, frame.digest
            yield frame
        if number < mark.segment or mark.clean:
            need(check_seal(raw, offsets, at, salt, seq, digest), f"segment {number}: not sealed")
        if number == mark.segment:
            need((seq, digest, at) == (mark.seq, mark.digest, mark.end), "the watermark names another frame")


def read_documents(data: bytes) -> tuple[str, list[bytes], dict[bytes, bytes]]:
    """Space, removed keys and documents of a ``documents`` entry (section 5.2.6)."""
    at = 1 + data[0]
    space = data[1:at].decode("utf-8")
    need(1 <= data[0] <= 64 and len(data) >= at + 8, "documents: space")

    def counted(form: str) -> int:
        nonlocal at
        (number,) = struct.unpack_from(form, data, at)
        at += struct.calcsize(form)
        return int(number)

    def piece(form: str) -> bytes:
        nonlocal at
        length = counted(form)
        need(at + length <= len(data), "documents: length")
        at += length
        return data[at - length : at]

    removed = [piece(">H") for _ in range(counted(">I"))]
    stored = [(piece(">H"), piece(">I")) for _ in range(counted(">I"))]
    need(at == len(data) and bool(removed or stored), "documents: end")
    for keys in (removed, [key for key, _ in stored]):
        need(all(1 <= len(key) <= 400 for key in keys) and sorted(set(keys)) == keys, "documents: keys")
    need(not set(removed) & {key for key, _ in stored}, "documents: a key twice")
    need(all(len(value) <= 16 * MIB for _, value in stored), "documents: value")
    return space, removed, dict(stored)


def main() -> int:
    data = Path(sys.argv[1])
    try:
        for frame in frames(data):
            kinds = " ".join(f"{part.kind:#06x}:{'pruned' if part.pruned else len(part.data)}" for part in frame.parts)
            print(frame.seq, frame.digest.hex()[:16], kinds)
    except (Damaged, OSError, struct.error) as error:
        print(f"damaged: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
