"""Every step of a store on disk, counted: file operations, batches of the engine, failpoints. One of them is the last.

Used only in children of the agent: the process kills itself, and what is patched is never restored.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from holdfast import _failpoints
from holdfast._fs import Buffer, File, FileLock, RealFileSystem
from holdfast.engine.api import Batch, Engine, EngineStats, Page, Reader
from holdfast.engine.open import open_engine
from holdfast.journal.journal import JournalOptions
from holdfast.recovery import rebuild
from holdfast.state import image
from holdfast.store import indexing, opening, pruning, writer
from holdfast.views import flush

_journal_options = opening.journal_options


def quieten() -> None:
    """The journal has no thread of its own: the same steps come in the same order."""

    def options(plan: opening.OpenPlan) -> JournalOptions:
        return replace(_journal_options(plan), background=False)

    opening.journal_options = options


class Steps:
    """Counts steps from 1 once ``armed``; at step ``at`` the process dies, before it or (``torn``) amid a write."""

    def __init__(self, at: int, *, torn: bool = False) -> None:
        self.at = at
        self.torn = torn
        self.armed = False
        self.seen: list[str] = []

    def step(self, name: str, halfway: Callable[[], object] | None = None) -> None:
        """One more step is about to be made."""
        if not self.armed:
            return
        self.seen.append(name)
        if len(self.seen) == self.at:
            if self.torn and halfway is not None:
                halfway()
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> CountingFileSystem:
        """Failpoints and engines count from now on; the file system that counts too."""

        def hit(name: str) -> None:
            self.step(f"failpoint:{name}")

        _failpoints.hit = hit
        for module in (flush, image, indexing, pruning, rebuild, writer):
            module.hit = hit  # type: ignore[attr-defined]

        def counting(*args: Any, **kwargs: Any) -> Engine:
            return CountingEngine(open_engine(*args, **kwargs), self)

        opening.open_engine = counting  # type: ignore[attr-defined]
        return CountingFileSystem(self)


class CountingFileSystem(RealFileSystem):
    """The real file system; everything that changes something is a step."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def open(self, path: Path, *, create: bool = False, read_only: bool = False) -> File:
        if create:
            self._steps.step("create")
        return _CountingFile(super().open(path, create=create, read_only=read_only), self._steps)

    def make_directory(self, path: Path) -> None:
        self._steps.step("make_directory")
        super().make_directory(path)

    def remove(self, path: Path) -> None:
        self._steps.step("remove")
        super().remove(path)

    def remove_tree(self, path: Path) -> None:
        self._steps.step("remove_tree")
        super().remove_tree(path)

    def rename(self, source: Path, target: Path) -> None:
        self._steps.step("rename")
        super().rename(source, target)

    def sync_directory(self, path: Path) -> None:
        self._steps.step("sync_directory")
        super().sync_directory(path)

    def lock(self, path: Path, owner: str) -> FileLock:
        self._steps.step("lock")
        return super().lock(path, owner)


class _CountingFile:
    def __init__(self, file: File, steps: Steps) -> None:
        self._file = file
        self._steps = steps

    @property
    def path(self) -> Path:
        return self._file.path

    @path.setter
    def path(self, path: Path) -> None:
        self._file.path = path

    def pwrite(self, data: Buffer, offset: int) -> None:
        self._steps.step("pwrite", lambda: self._file.pwrite(bytes(data)[: len(data) // 2], offset))
        self._file.pwrite(data, offset)

    def pread(self, length: int, offset: int) -> bytes:
        return self._file.pread(length, offset)

    def sync(self) -> None:
        self._steps.step("sync")
        self._file.sync()

    def truncate(self, length: int) -> None:
        self._steps.step("truncate")
        self._file.truncate(length)

    def size(self) -> int:
        return self._file.size()

    def close(self) -> None:
        self._file.close()


class CountingEngine:
    """An engine whose batches, syncs and close are steps."""

    def __init__(self, engine: Engine, steps: Steps) -> None:
        self.capabilities = engine.capabilities
        self._engine = engine
        self._steps = steps

    def get(self, key: bytes) -> bytes | None:
        return self._engine.get(key)

    def get_many(self, keys: Any) -> list[bytes | None]:
        return self._engine.get_many(keys)

    def floor(self, key: bytes, low: bytes = b"") -> tuple[bytes, bytes] | None:
        return self._engine.floor(key, low)

    def ceiling(self, key: bytes, high: bytes) -> tuple[bytes, bytes] | None:
        return self._engine.ceiling(key, high)

    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False, limit: int = 1000) -> Page:
        return self._engine.scan(start, stop, reverse=reverse, limit=limit)

    def apply(self, batch: Batch, *, sync: bool) -> None:
        self._steps.step("engine.apply")
        self._engine.apply(batch, sync=sync)

    def sync(self) -> None:
        self._steps.step("engine.sync")
        self._engine.sync()

    def snapshot(self) -> AbstractContextManager[Reader]:
        return self._engine.snapshot()

    def checkpoint(self, destination: Path) -> None:
        self._engine.checkpoint(destination)

    def refresh(self) -> None:
        self._engine.refresh()

    def reclaim(self, low: bytes, high: bytes) -> None:
        self._steps.step("engine.reclaim")
        self._engine.reclaim(low, high)

    def stats(self) -> EngineStats:
        return self._engine.stats()

    def close(self) -> None:
        self._steps.step("engine.close")
        self._engine.close()
