"""Bytes of format 1 that must stay as they are and open for ever."""

from __future__ import annotations

import base64
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import zstandard

from holdfast._fs import RealFileSystem
from holdfast.errors import PrunedError
from holdfast.journal import DurableMark, Journal, JournalOptions, JournalReader, Kind, Part, TipMark
from holdfast.journal.codec import encode_frame, encode_parts, parse_head
from holdfast.journal.segment import SegmentHeader, decode_header, encode_header
from holdfast.journal.watermark import decode_slot, encode_slot
from tests.golden import mini_reader

HERE = Path(__file__).parent
STORE_ID = bytes(range(16))
SALT = bytes(range(100, 132))


def unpack(name: str, target: Path) -> Path:
    """The golden directory ``name`` as real files in ``target``."""
    source = HERE / "journal-format-1" / name
    for path in source.rglob("*.b64"):
        file = target / path.relative_to(source).with_suffix("")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(zlib.decompress(base64.b64decode(path.read_text("ascii"))))
    return target


@pytest.mark.parametrize(("name", "clean", "extra"), [("clean", True, 0), ("killed", False, 1)])
def test_a_directory_of_format_1_opens(tmp_path: Path, name: str, clean: bool, extra: int) -> None:
    data = unpack(name, tmp_path)
    by_mini = list(mini_reader.frames(data))
    reader = JournalReader.open(RealFileSystem(), data, store_id=STORE_ID, salt=SALT)
    assert [frame.digest for frame in reader.frames(1)] == [frame.digest for frame in by_mini]
    reader.close()
    journal, recovery = Journal.open(RealFileSystem(), data, store_id=STORE_ID, salt=SALT)
    assert recovery.clean is clean
    assert recovery.discarded == ()
    assert recovery.last_seq == len(by_mini) + extra
    notes = []
    for frame in journal.frames(1):
        parts = [journal.part(frame, index) for index in range(len(frame.parts))]
        if frame.seq <= len(by_mini):
            assert parts == [part.data for part in by_mini[frame.seq - 1].parts]
        if frame.parts[0].kind == Kind.NOTE:
            notes.append(parts[0])
    assert notes == [b"note %d" % number for number in range(1, 7)] + [b"never acknowledged"] * extra
    for info in journal.segments():
        journal.verify_segment(info.number)
    journal.close()


def test_a_journal_with_compacted_segments_opens(tmp_path: Path) -> None:
    """Segment 2 is whole, in segment 3 bodies and extras of blocks below height 50 are absent."""
    data = unpack("compacted", tmp_path)
    by_mini = list(mini_reader.frames(data))
    assert sum(part.pruned for frame in by_mini for part in frame.parts) == 12
    reader = JournalReader.open(RealFileSystem(), data, store_id=STORE_ID, salt=SALT)
    infos = reader.segments()
    assert [(info.generation, info.retained_from) for info in infos] == [(0, 0), (1, 0), (1, 50), (0, 0)]
    assert sum(reader.verify_segment(info.number) for info in infos) == len(by_mini) == 31
    for frame, mini in zip(reader.frames(1), by_mini, strict=True):
        assert (frame.seq, frame.digest) == (mini.seq, mini.digest)
        for index, part in enumerate(mini.parts):
            if part.pruned:
                assert frame.parts[index].kind in (Kind.BODY, Kind.EXTRA)
                with pytest.raises(PrunedError, match="pruned"):
                    reader.part(frame, index)
            else:
                assert reader.part(frame, index) == part.data
    reader.close()
    journal, recovery = Journal.open(RealFileSystem(), data, store_id=STORE_ID, salt=SALT)
    assert recovery.clean
    assert journal.compact(2).generation == 2
    journal.close()
    for name in ("0000000002.seg", "0000000003.seg"):
        path = data / "journal" / name
        good = path.read_bytes()
        for offset in range(0, len(good), 61):
            path.write_bytes(good[:offset] + bytes([good[offset] ^ 4]) + good[offset + 1 :])
            with pytest.raises((mini_reader.Damaged, IndexError, zstandard.ZstdError)):
                list(mini_reader.frames(data))
        path.write_bytes(good)


def test_a_frame_has_these_bytes() -> None:
    parts = encode_parts([Part(Kind.NOTE, b"abc"), Part(Kind.CANONICAL, b"12345678", critical=True)])
    data, digest = encode_frame(
        parts, salt=SALT, seq=3, durable_seq=2, time_us=1760000000000011, previous=bytes([7]) * 32
    )
    assert data.hex() == (HERE / "frame.hex").read_text("ascii").replace("\n", "")
    assert parse_head(data, salt=SALT, segment=1, offset=128).digest == digest


def test_a_segment_header_has_these_bytes(tmp_path: Path) -> None:
    header = SegmentHeader(5, 77, bytes([9]) * 32)
    data = encode_header(header, store_id=STORE_ID, salt=SALT)
    assert data.hex() == (HERE / "segment-header.hex").read_text("ascii").replace("\n", "")
    assert decode_header(data, store_id=STORE_ID, salt=SALT, path=tmp_path) == header


def test_a_watermark_slot_has_these_bytes() -> None:
    mark = DurableMark(6, 5, bytes([4]) * 32, 3, 2048, True, TipMark(12, bytes([1]) * 32, bytes([2]) * 32))
    data = encode_slot(mark, salt=SALT)
    assert data.hex() == (HERE / "watermark-slot.hex").read_text("ascii").replace("\n", "")
    assert decode_slot(data, salt=SALT) == mark


def test_the_mini_reader_agrees_on_a_fresh_journal(tmp_path: Path) -> None:
    options = JournalOptions(segment_bytes_first=4096, segment_bytes_max=8192, background=False)
    journal = Journal.create(
        RealFileSystem(), tmp_path, store_id=STORE_ID, salt=SALT, first_parts=[Part(1, b"x")], options=options
    )
    sent = [b"x"]
    for number in range(60):
        sent.append(bytes([number]) * (number * 31 % 900))
        journal.append([Part(Kind.BODY, sent[-1], compress=True)])
    journal.sync()
    assert [frame.parts[0].data for frame in mini_reader.frames(tmp_path, STORE_ID, SALT)] == sent
    journal.append([Part(Kind.NOTE, b"not durable")])
    assert sum(1 for _ in mini_reader.frames(tmp_path, STORE_ID, SALT)) == len(sent)
    journal.close()
    assert sum(1 for _ in mini_reader.frames(tmp_path, STORE_ID, SALT)) == len(sent) + 1


def test_the_mini_reader_refuses_damage(tmp_path: Path) -> None:
    data = unpack("clean", tmp_path)
    command = [sys.executable, str(HERE / "mini_reader.py"), str(data)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    for path in sorted((data / "journal").iterdir()):
        good = path.read_bytes()
        for offset in range(0, len(good), 149):
            path.write_bytes(good[:offset] + bytes([good[offset] ^ 4]) + good[offset + 1 :])
            with pytest.raises((mini_reader.Damaged, IndexError)):
                list(mini_reader.frames(data))
        path.write_bytes(good)
    assert sum(1 for _ in mini_reader.frames(data)) > 6
    (data / "watermark").write_bytes(bytes(8192))
    assert subprocess.run(command, capture_output=True, check=False).returncode == 3


def test_the_mini_reader_imports_nothing_of_the_package() -> None:
    text = (HERE / "mini_reader.py").read_text("ascii")
    imports = {line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert "holdfast" not in imports
    assert imports <= {*sys.stdlib_module_names, "zstandard"}
