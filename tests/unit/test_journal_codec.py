"""Frames, segment headers, seals and watermark slots: round trips, limits, and any bytes at all."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from holdfast import limits
from holdfast.errors import (
    CorruptionError,
    FormatError,
    FormatTooNew,
    InvalidInputError,
    LimitExceeded,
    UnsupportedFormat,
)
from holdfast.journal import DurableMark, Part, PartInfo, TipMark
from holdfast.journal.codec import (
    CODEC_ZSTD,
    decode_part,
    encode_frame,
    encode_parts,
    head_length,
    parse_head,
)
from holdfast.journal.segment import SegmentHeader, decode_header, decode_seal, encode_header, encode_seal
from holdfast.journal.watermark import decode_slot, encode_slot

SALT = bytes(range(32))
PATH = Path("/data/journal/0000000001.seg")
PARTS = st.lists(
    st.builds(
        Part,
        kind=st.integers(0, 0xFFFF),
        data=st.binary(max_size=600) | st.builds(bytes, st.integers(0, 3000)),
        critical=st.booleans(),
        compress=st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


def frame_bytes(parts: list[Part], *, compress: bool = False) -> bytes:
    encoding = encode_parts(parts, compress=compress)
    data, _ = encode_frame(encoding, salt=SALT, seq=9, durable_seq=7, time_us=5, previous=bytes(32))
    return data


@given(PARTS, st.booleans())
def test_a_frame_comes_back(parts: list[Part], compress: bool) -> None:
    data = frame_bytes(parts, compress=compress)
    frame = parse_head(data, salt=SALT, segment=3, offset=128)
    assert (frame.seq, frame.durable_seq, frame.time_us, frame.length) == (9, 7, 5, len(data))
    assert len(data) % 8 == 0
    assert len(frame.parts) == len(parts)
    for part, info in zip(parts, frame.parts, strict=True):
        stored = data[info.offset - 128 : info.offset - 128 + info.stored_bytes]
        assert decode_part(stored, info, segment=3, seq=9) == part.data
        assert (info.kind, info.critical, info.raw_bytes) == (part.kind, part.critical, len(part.data))
        if info.codec == CODEC_ZSTD:
            assert compress
            assert part.compress
            assert info.stored_bytes <= info.raw_bytes * 0.95


@given(st.binary(max_size=500))
def test_any_bytes_are_no_frame(data: bytes) -> None:
    for candidate in (data, b"HFRM" + data, b"HFRM\0\1\0\1" + data):
        with pytest.raises(FormatError):
            parse_head(candidate, salt=SALT, segment=1, offset=0)


@given(PARTS, st.data())
def test_any_change_to_a_head_is_found(parts: list[Part], data: st.DataObject) -> None:
    good = frame_bytes(parts)
    head = head_length(good)
    at = data.draw(st.integers(0, head - 1))
    bad = bytearray(good)
    bad[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CorruptionError):
        parse_head(bytes(bad), salt=SALT, segment=1, offset=0)
    with pytest.raises(CorruptionError):
        parse_head(good[:at], salt=SALT, segment=1, offset=0)


def test_another_salt_makes_another_digest() -> None:
    good = frame_bytes([Part(1, b"x")])
    with pytest.raises(CorruptionError, match="digest"):
        parse_head(good, salt=bytes(32), segment=1, offset=0)


def test_limits_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInputError):
        encode_parts([])
    with pytest.raises(InvalidInputError):
        encode_parts([Part(0x10000, b"")])
    with pytest.raises(LimitExceeded, match="too many parts"):
        encode_parts([Part(1, b"")] * (limits.FRAME_PARTS_MAX + 1))
    monkeypatch.setattr("holdfast.journal.codec.PART_BYTES_MAX", 100)
    encode_parts([Part(1, bytes(100))])
    with pytest.raises(LimitExceeded, match="part is too long"):
        encode_parts([Part(1, bytes(101))])
    monkeypatch.setattr("holdfast.journal.codec.FRAME_BYTES_MAX", 1000)
    with pytest.raises(LimitExceeded, match="frame is too long"):
        encode_parts([Part(1, bytes(100))] * 6)


def test_a_frame_that_claims_too_much_is_refused_before_it_is_read() -> None:
    bad = bytearray(frame_bytes([Part(1, b"x")]))
    bad[8:16] = (limits.FRAME_BYTES_MAX + 8).to_bytes(8, "big")
    with pytest.raises(CorruptionError, match="impossible length"):
        head_length(bytes(bad))


def _info(stored: bytes, raw: int, codec: int = CODEC_ZSTD) -> PartInfo:
    import hashlib

    return PartInfo(1, codec, False, len(stored), raw, hashlib.sha256(stored).digest(), 0)


def test_a_zstd_part_is_decoded_only_to_its_raw_length() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    assert len(bomb) < 10_000
    with pytest.raises(CorruptionError, match="raw length"):
        decode_part(bomb, _info(bomb, 1000), segment=1, seq=1)
    with pytest.raises(CorruptionError, match="raw length"):
        decode_part(bomb[:50], _info(bomb[:50], 64 << 20), segment=1, seq=1)
    short = zstandard.ZstdCompressor().compress(b"four")
    assert decode_part(short, _info(short, 4), segment=1, seq=1) == b"four"
    for raw in (0, 3, 5):
        with pytest.raises(CorruptionError):
            decode_part(short, _info(short, raw), segment=1, seq=1)
    with pytest.raises(CorruptionError, match="decompress"):
        decode_part(b"not zstd at all", _info(b"not zstd at all", 4), segment=1, seq=1)


@pytest.mark.parametrize("codec", [2, 0x7F])
def test_a_codec_that_is_not_known_is_refused_when_the_part_is_read(codec: int) -> None:
    with pytest.raises(UnsupportedFormat):
        decode_part(b"x", _info(b"x", 1, codec), segment=1, seq=1)


@given(st.integers(1, 2**40), st.integers(1, 2**40), st.binary(min_size=32, max_size=32), st.integers(0, 127))
def test_a_segment_header_comes_back(number: int, first: int, previous: bytes, at: int) -> None:
    header = SegmentHeader(number, first, previous)
    data = encode_header(header, store_id=bytes(16), salt=SALT)
    assert decode_header(data, store_id=bytes(16), salt=SALT, path=PATH) == header
    bad = bytearray(data)
    bad[at] ^= 1
    if 16 <= at < 32:
        with pytest.raises(CorruptionError, match="another store"):
            decode_header(bytes(bad), store_id=bytes(16), salt=SALT, path=PATH)
    else:
        assert decode_header(bytes(bad), store_id=bytes(16), salt=SALT, path=PATH) is None


def test_a_newer_format_is_said_to_be_newer() -> None:
    from hashlib import sha256

    data = bytearray(encode_header(SegmentHeader(1, 1, bytes(32)), store_id=bytes(16), salt=SALT))
    data[8:12] = (2).to_bytes(4, "big")
    data[96:] = sha256(SALT + data[:96]).digest()
    with pytest.raises(FormatTooNew):
        decode_header(bytes(data), store_id=bytes(16), salt=SALT, path=PATH)


@given(st.lists(st.integers(128, 2**40), max_size=20), st.binary(min_size=32, max_size=32))
def test_a_seal_comes_back(offsets: list[int], digest: bytes) -> None:
    header = SegmentHeader(2, 50, digest)
    table_offset = 128 if not offsets else 4096
    data = encode_seal(
        array("Q", offsets), salt=SALT, last_seq=49 + len(offsets), table_offset=table_offset, digest=digest
    )
    seal = decode_seal(data[-96:], header=header, file_bytes=table_offset + len(data))
    assert seal is not None
    assert (seal.count, seal.last_seq, seal.digest) == (len(offsets), 49 + len(offsets), digest)
    assert decode_seal(data[-96:], header=header, file_bytes=table_offset + len(data) + 8) is None


@given(st.integers(0, 2**64 - 1), st.booleans(), st.booleans(), st.integers(0, 183), st.integers(1, 255))
def test_a_watermark_slot_comes_back_and_any_change_is_found(
    number: int, clean: bool, tip: bool, at: int, change: int
) -> None:
    place = TipMark(number, bytes([1]) * 32, bytes([2]) * 32) if tip else None
    mark = DurableMark(number, number, bytes([3]) * 32, number, number, clean, place)
    data = encode_slot(mark, salt=SALT)
    assert decode_slot(data, salt=SALT) == mark
    assert decode_slot(data + bytes(10), salt=SALT) == mark
    assert decode_slot(data + bytes(10) + b"\1", salt=SALT) is None
    bad = bytearray(data)
    bad[at] ^= change
    assert decode_slot(bytes(bad), salt=SALT) is None
    assert decode_slot(data[:at], salt=SALT) is None
