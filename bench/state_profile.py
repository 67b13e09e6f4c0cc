"""Where the time of a commit with state goes, and that of the flush behind it: processor and clock, by phase.

Functions of the store are wrapped while the profile runs; each is called once for a block or for a slice of rows, so
the wrapping costs next to nothing. A phase has what it spends itself, without the phases that it calls.
"""

from __future__ import annotations

import importlib
import inspect
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .measure import Plan, Result, row
from .state_child import Found, run_job, trees
from .state_data import ABSORBING, Maker, commit_changes, open_state
from .state_jobs import fill

__all__ = ["run"]

PHASES: tuple[tuple[str, str, str], ...] = (
    ("holdfast.state.draft", "DraftState.update", "draft.update"),
    ("holdfast.state.draft", "DraftState.execution", "draft: changes kept"),
    ("holdfast.merkle.kernel", "KernelTree.update", "root (tree)"),
    ("holdfast.merkle.pure", "PureTree.update", "root (tree)"),
    ("holdfast.merkle.kernel", "KernelBackend.encode_changes", "encode changes"),
    ("holdfast.merkle.pure", "_PureBackend.encode_changes", "encode changes"),
    ("holdfast.blocks.apply", "chain_rows", "rows of the state"),
    ("holdfast.store.writer", "prepare", "prepare: the rest"),
    ("holdfast.journal.journal", "encode_parts", "part hash"),
    ("holdfast.journal.journal", "encode_frame", "frame: bytes joined"),
    ("holdfast._fs", "RealFile.pwrite", "write"),
    ("holdfast._fs", "RealFile.sync", "fdatasync"),
    ("holdfast.views.overlay", "Overlay.publish", "publish"),
    ("holdfast.store.writer", "Writer.write", "writer: the rest"),
    ("holdfast.store.store", "Store.commit", "commit: the rest"),
    ("holdfast.views.flush", "Flusher._write_undo", "flush: undo, layers merged"),
    ("holdfast.views.collect", "UndoWriter.add", "flush: undo, put together"),
    ("holdfast.views.bulk", "NativeBulk.decode", "flush: undo, rows checked"),
    ("holdfast.views.bulk", "PureBulk.decode", "flush: undo, rows checked"),
    ("holdfast.views.collect", "UndoWriter.write", "flush: undo, batches"),
    ("holdfast.views.collect", "encode_undo", "flush: undo, encode"),
    ("holdfast.views.collect", "HistoryChanges.add", "flush: history, collected"),
    ("holdfast.views.flush", "Flusher._write_history", "flush: history, the rest"),
    ("holdfast.views.cache", "RowCache.drop", "flush: cache"),
    ("holdfast.views.overlay", "Overlay.drop", "flush: out of the overlay"),
    ("holdfast.engine.rocksdb", "RocksDbEngine.get_many", "flush: engine, undo reads"),
    ("holdfast.engine.rocksdb", "check_batch", "flush: engine, batch checked"),
    ("holdfast.engine.rocksdb", "RocksDbEngine.apply", "flush: engine, batch and write"),
    ("holdfast.engine.rocksdb", "RocksDbEngine._flush", "flush: engine, memtable to disk"),
    ("holdfast.views.flush", "Flusher._flush", "flush: the rest"),
)
"""Module, function, name of the phase; one that is not there any more shows as missing."""


class Phases:
    """Time by phase: what each spends itself, of all threads. A ``with`` block; the functions are as before after."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = defaultdict(float)
        self.wall: dict[str, float] = defaultdict(float)
        self.missing: list[str] = []
        self._inside = threading.local()
        self._undo: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Phases:
        for module, path, name in PHASES:
            owner: Any = importlib.import_module(module)
            *classes, attribute = path.split(".")
            for part in classes:
                owner = getattr(owner, part, None)
            found = getattr(owner, attribute, None)
            if found is None:
                self.missing.append(f"{module}.{path}")
                continue
            self._undo.append((owner, attribute, found))
            wrapper = self._steps if inspect.isgeneratorfunction(found) else self._wrapped
            setattr(owner, attribute, wrapper(found, name))
        return self

    def __exit__(self, *_: object) -> None:
        for owner, attribute, found in self._undo:
            setattr(owner, attribute, found)

    def clear(self) -> None:
        """Nothing was measured."""
        self.cpu.clear()
        self.wall.clear()

    def _wrapped(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        inside, cpu, wall = self._inside, self.cpu, self.wall

        def measured(*arguments: Any, **named: Any) -> Any:
            outer = getattr(inside, "spent", None)
            inside.spent = spent = [0.0, 0.0]
            thread, clock = time.thread_time(), time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                used, passed = time.thread_time() - thread, time.perf_counter() - clock
                cpu[name] += used - spent[0]
                wall[name] += passed - spent[1]
                inside.spent = outer
                if outer is not None:
                    outer[0] += used
                    outer[1] += passed

        return measured

    def _steps(self, function: Callable[..., Iterator[Any]], name: str) -> Callable[..., Iterator[Any]]:
        """A generator: each of its steps is measured."""

        def measured(*arguments: Any, **named: Any) -> Iterator[Any]:
            step = self._wrapped(function(*arguments, **named).__next__, name)
            while True:
                try:
                    item = step()
                except StopIteration:
                    return
                yield item

        return measured


def profile(path: str, keys: int, per_block: int, blocks: int, settings: Found) -> Found:
    """Seconds of processor and of the clock by phase, of ``blocks`` commits and of the flush behind them."""
    maker = Maker(keys, per_block)
    with Phases() as phases, open_state(Path(path), **(ABSORBING | settings)) as store:
        tip = store.tip
        assert tip is not None
        made = [maker.changes(block) for block in range(tip.height, tip.height + blocks)]
        warm = max(1, blocks // 10)
        for changes in made[:warm]:
            commit_changes(store, changes)
        store.flush()
        phases.clear()
        cpu, begun = time.thread_time(), time.perf_counter()
        for changes in made[warm:]:
            commit_changes(store, changes)
        commit = (time.thread_time() - cpu, time.perf_counter() - begun)
        cpu, begun = time.thread_time(), time.perf_counter()
        store.flush()
        flush = (time.thread_time() - cpu, time.perf_counter() - begun)
        found = {name: (phases.cpu[name], phases.wall[name]) for name in phases.wall}
    updates = (blocks - warm) * per_block
    return {"updates": updates, "commit": commit, "flush": flush, "phases": found, "missing": phases.missing}


def run(plan: Plan) -> Result:
    """Microseconds for an update, by phase: undo only, then with history; the pure twin with fewer keys."""
    result = Result("stateprofile")
    sizes = {
        "kernel": plan.pick((1_000_000, 10_000, 55), (100_000, 10_000, 22), (2_000, 500, 4)),
        "pure": plan.pick((100_000, 10_000, 11), (20_000, 2_000, 6), (1_000, 200, 3)),
    }
    for tree in trees():
        keys, per_block, blocks = sizes[tree]
        path = str(plan.directory / tree)
        run_job(fill, tree=tree, path=path, keys=keys, settings={"history": "off"})
        histories = ("off", "on") if tree == "kernel" else ("off",)
        for history in histories:
            settings = {"history": history, "history_blocks": 0}
            found = run_job(
                profile, tree=tree, path=path, keys=keys, per_block=per_block, blocks=blocks, settings=settings
            )
            _report(result, f"{tree}, history {history}", found)
            result.notes += [f"not measured, it is not there: {name}" for name in found["missing"]]
        result.notes.append(f"{tree}: {keys:,} keys, {per_block:,} changes in a block")
    result.notes.append("microseconds for an update; 'clock' includes waiting for the processor and the device")
    return result


def _report(result: Result, label: str, found: Found) -> None:
    updates = found["updates"]
    for part in ("commit", "flush"):
        for at, kind in enumerate(("processor", "clock")):
            result.rows.append(row(f"{label}: {part}, all, {kind}", "us", [found[part][at] / updates * 1e6]))
    for name, (cpu, wall) in sorted(found["phases"].items(), key=lambda item: -item[1][0]):
        result.rows.append(row(f"{label}: {name}, processor", "us", [max(0.0, cpu) / updates * 1e6]))
        result.rows.append(row(f"{label}: {name}, clock", "us", [max(0.0, wall) / updates * 1e6]))
