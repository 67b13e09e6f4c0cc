"""Frames of block files: what is refused before anything is imported, and where it says the fault is."""

from __future__ import annotations

import bz2
from pathlib import Path

import pytest
import zstandard

from holdfast.chains.bitcoin import BlockFiles, detect_network
from holdfast.chains.inputs import InputFile
from holdfast.errors import HoldfastError, InvalidBlock, InvalidInputError, LimitExceeded
from tests.import_makers import REGTEST, bitcoin_chain, framed, raw_hash

CHAIN = bitcoin_chain(3)
GOOD = framed(CHAIN)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def hashes(paths: list[Path]) -> list[bytes]:
    with BlockFiles(paths, "regtest") as files:
        return [files.load(place).block.hash for place in files.places()]


@pytest.mark.parametrize("suffix", ["", ".bz2", ".zst"])
def test_plain_and_packed_files_are_the_same(tmp_path: Path, suffix: str) -> None:
    packed = {"": GOOD, ".bz2": bz2.compress(GOOD), ".zst": zstandard.ZstdCompressor().compress(GOOD)}[suffix]
    path = write(tmp_path / f"blk00000.dat{suffix}", packed)
    assert hashes([path]) == [raw_hash(raw) for raw in CHAIN]


def test_archives_of_several_streams_are_read_whole(tmp_path: Path) -> None:
    zst = zstandard.ZstdCompressor().compress
    for name, pack in (("a.bz2", bz2.compress), ("a.zst", zst)):
        assert len(hashes([write(tmp_path / name, pack(GOOD[:100]) + pack(GOOD[100:]))])) == 3


def test_zeros_at_the_end_are_reserved_space(tmp_path: Path) -> None:
    assert len(hashes([write(tmp_path / "blk.dat", GOOD + bytes(5000))])) == 3


def test_a_masked_file_is_unmasked(tmp_path: Path) -> None:
    mask = bytes(range(3, 11))
    write(tmp_path / "xor.dat", mask)
    masked = bytes(byte ^ mask[at % 8] for at, byte in enumerate(GOOD + bytes(64)))
    path = write(tmp_path / "blk00000.dat", masked)
    assert hashes([path]) == [raw_hash(raw) for raw in CHAIN]
    assert detect_network([path]).name == "regtest"
    assert len(hashes([write(tmp_path / "blk00001.dat", GOOD)])) == 3


def refusal(tmp_path: Path, data: bytes) -> HoldfastError:
    with pytest.raises(HoldfastError) as caught:
        BlockFiles([write(tmp_path / "blk00007.dat", data)], "regtest")
    assert str(caught.value.context["path"]).endswith("blk00007.dat")
    return caught.value


def test_a_wrong_magic_names_what_was_found(tmp_path: Path) -> None:
    error = refusal(tmp_path, framed(CHAIN, bytes.fromhex("f9beb4d9")))
    assert isinstance(error, InvalidBlock)
    assert error.context["offset"] == 0
    assert "f9beb4d9 (main)" in str(error)
    assert "fabfb5da (regtest)" in str(error)
    later = refusal(tmp_path, GOOD + b"\x01" + GOOD)
    assert later.context["offset"] == len(GOOD)


def test_bytes_after_the_zeros_are_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, GOOD + bytes(50) + b"x" + bytes(50))
    assert error.context["offset"] == len(GOOD) + 50


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    ends = [0, len(framed(CHAIN[:1])), len(framed(CHAIN[:2])), len(GOOD)]
    for length in range(1, len(GOOD)):
        if length not in ends:
            error = refusal(tmp_path, GOOD[:length])
            assert error.context["offset"] == max(end for end in ends if end < length)


def test_a_gigabyte_in_the_length_field_is_refused_unread(tmp_path: Path) -> None:
    error = refusal(tmp_path, GOOD + REGTEST.magic + (2**30).to_bytes(4, "little") + bytes(100))
    assert isinstance(error, LimitExceeded)
    assert (error.context["offset"], error.context["found"]) == (len(GOOD), 2**30)


def test_a_block_smaller_than_its_header_is_refused(tmp_path: Path) -> None:
    assert "smaller" in str(refusal(tmp_path, REGTEST.magic + (80).to_bytes(4, "little") + bytes(80)))


def test_an_empty_file_and_a_missing_one(tmp_path: Path) -> None:
    assert "no block" in str(refusal(tmp_path, b""))
    with pytest.raises(InvalidInputError, match="no such file"):
        BlockFiles([tmp_path / "absent.dat"], "regtest")
    with pytest.raises(InvalidInputError, match="no files"):
        BlockFiles([], "regtest")


@pytest.mark.parametrize("suffix", [".bz2", ".zst"])
def test_damaged_archives_are_refused(tmp_path: Path, suffix: str) -> None:
    packed = (bz2.compress if suffix == ".bz2" else zstandard.ZstdCompressor(write_checksum=True).compress)(GOOD)
    path = tmp_path / f"blk.dat{suffix}"
    for data in (packed[:-1], packed[: len(packed) // 2], packed[:4], b"not an archive", b""):
        with pytest.raises(InvalidBlock, match="archive"):
            BlockFiles([write(path, data)], "regtest")
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 1
    with pytest.raises(InvalidBlock):
        BlockFiles([write(path, bytes(flipped))], "regtest")


@pytest.mark.parametrize("suffix", [".bz2", ".zst"])
def test_a_decompression_bomb_stops_at_the_limit(tmp_path: Path, suffix: str) -> None:
    data = bytes(20_000_000)
    packed = bz2.compress(data, 1) if suffix == ".bz2" else zstandard.ZstdCompressor().compress(data)
    with pytest.raises(LimitExceeded):
        InputFile(write(tmp_path / f"bomb{suffix}", packed), limit=1_000_000)


def test_the_network_is_found_from_the_files(tmp_path: Path) -> None:
    regtest = write(tmp_path / "a.dat", framed([REGTEST.genesis]) + GOOD)
    assert detect_network([regtest]).name == "regtest"
    main = write(tmp_path / "b.dat", framed(CHAIN, bytes.fromhex("f9beb4d9")))
    assert detect_network([main]).name == "main"
    with pytest.raises(InvalidBlock, match="magic") as caught:
        detect_network([write(tmp_path / "c.dat", b"GIF89a" + bytes(100))])
    assert caught.value.context["found"] == b"GIF8".hex()
