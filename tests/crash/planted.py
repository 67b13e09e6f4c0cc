"""Bugs that the crash tests must find: each takes one promise away."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from holdfast.blocks import apply
from holdfast.blocks.apply import Prepared
from holdfast.journal.journal import Journal
from holdfast.merkle.api import Tree
from holdfast.state.rows import Execution, chain_rows, preimage_key, tree_changes
from holdfast.store import tree
from holdfast.store.replay import Replayer
from holdfast.store.store import Store
from holdfast.store.writer import Writer
from holdfast.testing.crashfs import CrashableFileSystem
from holdfast.views.api import Rows
from holdfast.views.collect import HistoryChanges
from holdfast.views.flush import Flusher
from holdfast.views.merge import RowMerge
from holdfast.views.overlay import Published
from holdfast.views.tables import PREIMAGES, STATE, Table
from holdfast.views.views import Views

Patch = pytest.MonkeyPatch


def commits_without_a_sync(patch: Patch) -> None:
    patch.setattr(Journal, "_sync_file", lambda self, file: None)


def acknowledges_before_the_sync(patch: Patch) -> None:
    patch.setattr(Store, "_durable", lambda self, writer, seq: writer.on_durable(writer.journal.appended_seq))


def skips_replay(patch: Patch) -> None:
    patch.setattr(Replayer, "run", lambda self, source, last_seq, **_more: None)


def writes_applied_first(patch: Patch) -> None:
    finish = Flusher._finish
    write = Flusher._flush

    def flush(self: Flusher, frames: list[Published], pins: list[object], pace: object) -> None:
        last = frames[-1].frame
        finish(self, last, self._floor(last.undo_floor))
        write(self, frames, pins, pace)  # type: ignore[arg-type]

    patch.setattr(Flusher, "_flush", flush)


def watermark_runs_ahead(patch: Patch) -> None:
    sync = Journal.sync

    def ahead(self: Journal, seq: int | None = None) -> int:
        head = self._head
        assert self._watermark is not None
        self._watermark.write(head.seq, head.digest, head.segment, head.end, head.tip)
        self._watermark.sync()
        return sync(self, seq)

    patch.setattr(Journal, "sync", ahead)


def forgets_to_sync_directories(patch: Patch) -> None:
    patch.setattr(CrashableFileSystem, "sync_directory", lambda self, path: self.step("sync_directory", path))


def forgets_the_undo(patch: Patch) -> None:
    write = Flusher._write_undo

    def undo(
        self: Flusher,
        merge: RowMerge,
        frames: list[Published],
        floor: int,
        changes: HistoryChanges,
        pace: Callable[[], None],
    ) -> int:
        real = self._engine
        self._engine = _Deaf(real)  # type: ignore[assignment]
        try:
            return write(self, merge, frames, floor, changes, pace)
        finally:
            self._engine = real

    patch.setattr(Flusher, "_write_undo", undo)


class _Deaf:
    def __init__(self, engine: object) -> None:
        self._engine = engine

    def apply(self, batch: object, *, sync: bool) -> None:
        """The batch is lost."""

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)


def forgets_a_preimage(patch: Patch) -> None:
    def rows(execution: Execution) -> Rows:
        found = chain_rows(execution)
        for key_hash, _ in list(execution.inserted)[:1]:
            del found[preimage_key(key_hash)]
        return found

    patch.setattr(apply, "chain_rows", rows)


def undoes_without_the_state(patch: Patch) -> None:
    _undo_without(patch, STATE, PREIMAGES)


def undoes_without_preimages(patch: Patch) -> None:
    _undo_without(patch, PREIMAGES)


def adopts_without_looking_at_the_root(patch: Patch) -> None:
    _undo_without(patch, STATE, PREIMAGES)
    _looks_at_no_root(patch)


def _undo_without(patch: Patch, *tables: Table) -> None:
    undo_of = Views.undo_of
    left_out = tuple(table.prefix for table in tables)

    def undo(self: Views, height: int, block_hash: bytes) -> Rows:
        rows = undo_of(self, height, block_hash)
        return {key: value for key, value in rows.items() if not key.startswith(left_out)}

    patch.setattr(Views, "undo_of", undo)


def _looks_at_no_root(patch: Patch) -> None:
    def tree_after(self: Writer, prepared: Prepared, known: Tree | None) -> Tree | None:
        if not prepared.chain_layers:
            return None
        changes = tree_changes(layer.chain_rows for layer in prepared.chain_layers)
        return known if known is not None else self.tree.update(changes).tree

    patch.setattr(Writer, "_tree_after", tree_after)


def trusts_the_image(patch: Patch) -> None:
    patch.setattr(tree, "caught_up", lambda image, *_rest: image)
    patch.setattr(tree, "has_root", lambda image, root: True)


def forgets_large_values(patch: Patch) -> None:
    patch.setattr(apply, "blob_rows", lambda changes: {})
