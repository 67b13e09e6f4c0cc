"""Where events come from: damage that is met, verdicts, imports, a disk that fills up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import holdfast
from holdfast import Event, on_event
from holdfast._fs import MemoryFileSystem, Space
from holdfast.errors import CorruptionError, MissingFile, OutOfSpace
from holdfast.recovery import verify_store
from holdfast.store.guard import DiskGuard
from holdfast.views.rows import decode_row, encode_row
from tests.unit.store_support import filled, open_quick

LONG = 30.0


@contextmanager
def hearing(*names: str) -> Iterator[list[Event]]:
    """Events of these names that happen inside; complete afterwards."""
    heard: list[Event] = []
    with on_event(heard.append, names=names) as subscription:
        yield heard
        assert subscription.wait(LONG)


def spoil(path: Path, offset: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 0xFF
    path.write_bytes(raw)


def test_a_store_that_does_not_open_tells_why(tmp_path: Path) -> None:
    filled(f"sqlite:{tmp_path}")
    (tmp_path / "watermark").unlink()
    with hearing("corruption_found", "opened") as heard, pytest.raises(MissingFile) as caught:
        open_quick(tmp_path)
    (event,) = heard
    assert (event.name, event.code, event.remedy) == ("corruption_found", "missing_file", caught.value.remedy)
    assert event.place == str(tmp_path / "watermark")


def test_damage_met_while_reading_is_told(tmp_path: Path) -> None:
    blocks = filled(f"sqlite:{tmp_path}")
    with open_quick(tmp_path) as store:
        segment = tmp_path / "journal" / "0000000001.seg"
        spoil(segment, segment.read_bytes().index(blocks[0].header))
        with hearing("corruption_found") as heard:
            for _ in range(2):
                with pytest.raises(CorruptionError):
                    store.blocks.header(store.blocks.load(blocks[0].hash))
        assert [(event.code, event.place) for event in heard] == [("corruption", str(segment))], "each place once"


def test_a_damaged_row_is_told() -> None:
    key = b"\x00\x01key"
    stored = encode_row(key, b"value")
    with hearing("corruption_found") as heard, pytest.raises(CorruptionError):
        decode_row(key, stored[:-1] + b"!")
    assert "holdfast rebuild" in str(heard[0].remedy)


@pytest.mark.parametrize("engine", ["sqlite", "lmdb", "rocksdb"])
def test_damaged_views_are_told_and_mended(tmp_path: Path, engine: str) -> None:
    filled(f"{engine}:{tmp_path}")
    files = [path for path in (tmp_path / "views").rglob("*") if path.name in ("rows.sqlite", "data.mdb", "CURRENT")]
    (file,) = [path for path in files if path.parent.name == "data"]
    file.write_bytes(b"not what it was")
    with hearing("corruption_found", "recovered", "opened") as heard, open_quick(tmp_path) as store:
        assert store.recovery.views_rebuilt
    names = [event.name for event in heard]
    assert names[0] == "corruption_found"
    assert names[-2:] == ["recovered", "opened"]


def test_verdicts_are_told(tmp_path: Path) -> None:
    filled(f"sqlite:{tmp_path}")
    with hearing("verification_passed", "verification_failed") as heard:
        assert verify_store(tmp_path, level="quick").ok
        verify_store(tmp_path, level="quick", stop=lambda: True)
        (tmp_path / "views" / "CURRENT").write_text("?")
        report = verify_store(tmp_path, level="quick")
    passed, failed = heard
    assert (passed.name, passed.place, passed.fields["level"]) == ("verification_passed", str(tmp_path), "quick")
    first = report.problems[0]
    assert (failed.name, failed.code, failed.remedy) == ("verification_failed", first.code, first.remedy)
    assert failed.fields["problems"] == len(report.problems)


def test_an_import_is_told_once(tmp_path: Path) -> None:
    source, target = tmp_path / "snapshot", f"sqlite:{tmp_path / 'target'}"
    with open_quick("memory:") as store:
        draft = store.draft()
        draft.state[b"k"] = b"v"
        info = store.commit(draft, hash=b"\x01" * 32)
        store.export_snapshot(source)
    with hearing("snapshot_imported") as heard:
        for _ in range(2):  # the second time it is there already
            holdfast.import_snapshot(target, source, trust_manifest=True)
    (event,) = heard
    assert event.place == str(tmp_path / "target")
    assert event.fields["hash"] == info.hash.hex()
    assert (event.fields["height"], event.fields["keys"]) == (0, 1)


def test_a_disk_that_fills_up_and_has_room_again_is_told() -> None:
    class Disk(MemoryFileSystem):
        persistent = True
        free = 10_000_000

        def space(self, path: Path) -> Space:
            return Space(self.free, 100_000_000)

    disk = Disk()
    guard = DiskGuard(disk, Path("/data"), 1_000_000, clock=lambda: 0.0)
    with hearing("disk_low", "disk_ok") as heard:
        guard.check(1000)
        disk.free = 1_000_100
        for _ in range(2):
            with pytest.raises(OutOfSpace):
                guard.check(10_000_000)
        disk.free = 50_000_000
        guard.check(1000)
    assert [(event.name, event.place, event.code) for event in heard] == [
        ("disk_low", "/data", "out_of_space"),
        ("disk_ok", "/data", None),
    ]
