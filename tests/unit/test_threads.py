"""A system without room for a thread, or for a descriptor, refuses a store by a typed error and breaks nothing."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

import holdfast
from holdfast.errors import ResourceExhausted


@pytest.mark.parametrize("allowed", range(3))
def test_no_room_for_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    start = threading.Thread.start
    left = [None] * allowed

    def refused(self: threading.Thread) -> None:
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        start(self)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        with pytest.raises(ResourceExhausted):
            holdfast.open(f"sqlite:{tmp_path / 's'}")
    with holdfast.open(f"sqlite:{tmp_path / 's'}") as store:
        assert store.tip is None
        assert not store.safety.fenced


def test_no_room_for_a_descriptor_is_not_another_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's id could not be read: the store was fenced, or an ``OSError`` came out."""
    url = f"sqlite:{tmp_path / 's'}"
    holdfast.open(url).close()
    read = Path.read_bytes

    def exhausted(self: Path) -> bytes:
        if self == Path("/etc/machine-id"):
            raise OSError(errno.EMFILE, "Too many open files", str(self))
        return read(self)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", lambda self: True)
        patch.setattr(Path, "read_bytes", exhausted)
        with pytest.raises(ResourceExhausted):
            holdfast.open(url)
    with holdfast.open(url) as store:
        assert not store.safety.fenced
