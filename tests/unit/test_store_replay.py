"""Frames that this program would never write: replay refuses what it must not ignore, and skips what it may."""

from __future__ import annotations

from pathlib import Path

import pytest

import holdfast
from holdfast._fs import RealFileSystem
from holdfast.blocks.entries import ExecutedEntry, encode_executed
from holdfast.errors import CorruptionError, HoldfastError, UnsupportedFormat
from holdfast.journal.api import Kind, Part
from holdfast.journal.journal import Journal, JournalOptions
from holdfast.store.opening import read_identity


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with holdfast.open(tmp_path / "s") as store:
        draft = store.draft()
        draft.state[b"a"] = b"1"
        store.commit(draft, hash=b"\x01" * 32)
    return tmp_path / "s"


def append(path: Path, *parts: Part) -> None:
    """The journal has one more frame."""
    fs = RealFileSystem()
    identity = read_identity(fs, path)
    options = JournalOptions(background=False)
    journal, _ = Journal.open(fs, path, store_id=identity.store_id, salt=identity.salt, options=options)
    journal.append(parts)
    journal.close()


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        (
            Part(Kind.EXECUTED, encode_executed(ExecutedEntry(b"\x01" * 32, b"\x02" * 32, 0)), True),
            CorruptionError,
            "without the block",
        ),
        (Part(Kind.CHANGES, bytes(4), True), CorruptionError, "without the block"),
        (Part(0x7777, b"", True), UnsupportedFormat, "not known"),
    ],
    ids=["executed", "changes", "unknown"],
)
def test_what_must_not_be_ignored_is_refused(part: Part, error: type[HoldfastError], message: str, path: Path) -> None:
    append(path, part)
    with pytest.raises(error, match=message):
        holdfast.open(path)


@pytest.mark.parametrize("kind", [Kind.NOTE, 0x7777])
def test_what_may_be_skipped_is_skipped(kind: int, path: Path) -> None:
    append(path, Part(kind, b"text"))
    with holdfast.open(path) as store:
        assert store.state[b"a"] == b"1"
        assert store.recovery.frames_replayed == 1
