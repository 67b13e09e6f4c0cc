"""Power cuts, errors and planted bugs at every operation of a whole store on a simulated device."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.blocks import apply
from holdfast.blocks.apply import Prepared
from holdfast.errors import HoldfastError, OutOfSpace
from holdfast.journal.journal import Journal
from holdfast.merkle.api import Tree
from holdfast.state.rows import Execution, chain_rows, preimage_key, tree_changes
from holdfast.store import tree
from holdfast.store.replay import Replayer
from holdfast.store.store import Store
from holdfast.store.writer import Writer
from holdfast.testing.crashfs import CrashableFileSystem, Fault
from holdfast.testing.machine import new_machine
from holdfast.views.api import Rows
from holdfast.views.collect import HistoryChanges
from holdfast.views.flush import Flusher
from holdfast.views.merge import RowMerge
from holdfast.views.overlay import Published
from holdfast.views.tables import PREIMAGES, STATE, Table
from holdfast.views.views import Views
from tests.crash.machine import Life, check_image, images, operations
from tests.crash.support import report

ALL_FROM = 200


def explore(root: Path, points: range, *, count: int) -> Counter[str]:
    """A crash at each point, and what may be left of it, opened and checked."""
    counts: Counter[str] = Counter()
    for at in points:
        life = Life(new_machine(root, seed=at, faults=(Fault(at, torn=True),)))
        life.live()
        assert life.machine.fs.hits == 1, f"operation {at} was never made"
        counts["at " + life.machine.fs.log[-1][0]] += 1
        for image in images(life.machine, at, count):
            counts["images"] += 1
            counts["in flight, kept"] += check_image(image, life.model)
    counts["crashes"] = len(points)
    return counts


@pytest.mark.crash
def test_power_cut_at_every_operation(tmp_path: Path, crash_rounds: int) -> None:
    total = operations(tmp_path)
    few = crash_rounds < ALL_FROM
    counts = explore(tmp_path, range(1, total + 1, 2 if few else 1), count=1 if few else 40)
    report(
        f"power cut, {total} operations",
        counts,
        at_least={"at apply": 3, "at pwrite": 10, "at sync": 5, "at rename": 1, "in flight, kept": 5},
    )


@pytest.mark.crash
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_error_at_every_operation(tmp_path: Path, code: int, persistent: bool, crash_rounds: int) -> None:
    total = operations(tmp_path)
    counts: Counter[str] = Counter()
    for at in range(1 + persistent, total + 1, 5 if crash_rounds < ALL_FROM else 1):
        life = Life(new_machine(tmp_path, seed=at, faults=(Fault(at, error=code, persistent=persistent, torn=True),)))
        life.live_with_errors()
        assert life.machine.fs.hits, f"operation {at} was never made"
        counts["errors met"] += 1
        counts["raised"] += bool(life.errors)
        counts["poisoned"] += life.poisoned
        counts["out of space"] += any(isinstance(error, OutOfSpace) for error in life.errors)
        life.machine.fs.faults = ()
        for image in images(life.machine, at, 1 if crash_rounds < ALL_FROM else 10):
            counts["images"] += 1
            counts["in flight, kept"] += check_image(image, life.model)
    least = {"raised": 10, "poisoned": 5} | ({"out of space": 5} if code == errno.ENOSPC else {})
    report(f"{errno.errorcode[code]}, {'persistent' if persistent else 'once'}", counts, at_least=least)


@pytest.mark.slow
def test_power_cut_at_some_operations(tmp_path: Path) -> None:
    total = operations(tmp_path)
    explore(tmp_path, range(7, total + 1, total // 12), count=1)


# -- positive controls: each planted bug must be found ---------------------------------------------------------------

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


@pytest.mark.crash
@pytest.mark.parametrize(
    "bug",
    [
        forgets_a_preimage,
        undoes_without_the_state,
        undoes_without_preimages,
        adopts_without_looking_at_the_root,
        trusts_the_image,
        forgets_large_values,
        commits_without_a_sync,
        acknowledges_before_the_sync,
        skips_replay,
        writes_applied_first,
        watermark_runs_ahead,
        forgets_to_sync_directories,
        forgets_the_undo,
    ],
)
def test_planted_bug_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bug: Callable[[Patch], None]) -> None:
    total = operations(tmp_path)
    bug(monkeypatch)
    with pytest.raises((AssertionError, HoldfastError)) as caught:
        explore(tmp_path, range(2, total + 1, 2), count=6)
    assert "was never made" not in str(caught.value), "the bug was not found, only the operations differ"
    print(f"{bug.__name__}: {str(caught.value)[:150]}")
