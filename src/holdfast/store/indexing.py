"""The registry of user indexes and the builder that brings one up to the tip beside live commits.

Invariants:
    * Records and backfilled rows are written straight into the engine, in one batch that names how far it is built;
      rows of live commits go through the overlay like every other row.
    * The background phase touches only blocks at or below the reorg floor, which no reorg can reach. The last stretch
      is done under the writer's lock, after a flush, together with the undo of its blocks.
    * Table numbers are never used again in the same engine.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import replace

from .._failpoints import hit
from .._threads import start_thread
from ..blocks.content import FrameContent
from ..blocks.entries import BlockEntry, entry_info
from ..blocks.reader import BlockReader
from ..blocks.state import ChainState
from ..engine.api import Batch, Engine
from ..errors import HoldfastError, IndexFailed, InternalError, LimitExceeded, NotFoundError, Recovery
from ..journal.api import FrameSource
from ..types import ZERO_HASH, Block, BlockInfo
from ..views.api import RowReader, Rows
from ..views.rows import encode_row
from ..views.tables import INDEX_FIRST, INDEX_LAST, META, UNDO, index_table
from ..views.undo import encode_undo, read_undo, undo_block, undo_range_to
from ..views.views import Views
from .indexes import (
    RECORDS,
    IndexReader,
    IndexRecord,
    IndexSpec,
    IndexStatus,
    decode_record,
    encode_record,
    record_key,
    rows_of,
)
from .writer import Writer

__all__ = ["IndexManager", "LiveIndexes"]

_NEXT_TABLE = META.prefix + b"index-next"
_BATCH_BLOCKS = 64


class LiveIndexes:
    """The indexes whose rows ride along with every frame; what ``prepare`` asks."""

    def __init__(self, journal: FrameSource, *, rows_max: int) -> None:
        self._journal = journal
        self._rows_max = rows_max
        self.ready: dict[str, tuple[IndexSpec, IndexRecord]] = {}
        self.behind: dict[str, IndexRecord] = {}
        self.failures: dict[str, HoldfastError] = {}
        """Why an index fell behind during replay."""
        self.replaying = False
        """True while frames come from the journal: they are facts, so an index that fails falls behind instead."""
        self._fallen: Rows = {}

    def block_of(self, block: BlockEntry | BlockInfo, content: FrameContent) -> Block:
        """The whole block, at hand or from the journal."""
        at_hand = content.bodies.get(block.hash)
        if at_hand is not None:
            return at_hand
        if isinstance(block, BlockEntry):
            block = entry_info(block, content.seq, 0)
        return BlockReader.read_block(self._journal, block)

    def rows_for(self, spec: IndexSpec, record: IndexRecord, block: Block) -> Rows:
        """Rows of one index for one block."""
        return rows_of(spec, index_table(record.table), block, rows_max=self._rows_max)

    def rows(self, block: BlockEntry | BlockInfo, content: FrameContent) -> Rows:
        if not self.ready:
            return {}
        whole = self.block_of(block, content)
        rows: Rows = {}
        for name, (spec, record) in list(self.ready.items()):
            try:
                rows.update(self.rows_for(spec, record, whole))
            except IndexFailed as failure:
                if not self.replaying:
                    raise
                built = (block.height - 1, block.parent) if block.height else None
                self.behind[name] = record = replace(record, status="behind", built=built)
                del self.ready[name]
                self.failures[name] = failure
                self._fallen[record_key(name)] = encode_record(record)
        return rows

    def fallen(self) -> Rows:
        fallen, self._fallen = self._fallen, {}
        return fallen

    def cut(self, fork_height: int, fork_hash: bytes) -> Rows:
        rows: Rows = {}
        for name, record in self.behind.items():
            if record.built is not None and record.built[0] > fork_height:
                self.behind[name] = record = replace(record, built=(fork_height, fork_hash))
                rows[record_key(name)] = encode_record(record)
        return rows


class IndexManager:
    """Every index of a store: registered functions, records, builder. ``engine`` is written only by a writer."""

    def __init__(
        self, specs: Mapping[str, IndexSpec], engine: Engine, views: Views, journal: FrameSource, *, rows_max: int
    ) -> None:
        self.specs = dict(specs)
        self._engine = engine
        self._views = views
        self._journal = journal
        self._rows_max = rows_max
        self.live = LiveIndexes(journal, rows_max=rows_max)
        self._failures: dict[str, HoldfastError] = {}
        self._kept_elsewhere: set[str] = set()
        """Indexes that are behind for this read-only process alone: the writer has their functions."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def for_generation(self, engine: Engine, views: Views) -> IndexManager:
        """The same indexes over another generation of views."""
        return IndexManager(self.specs, engine, views, self._journal, rows_max=self._rows_max)

    # -- at open --------------------------------------------------------------------------------------------------

    def records(self, rows: RowReader | None = None) -> dict[str, IndexRecord]:
        """The record of every index, as the writer sees it."""
        reader = rows if rows is not None else self._views.latest()
        page = reader.scan(RECORDS, RECORDS[:-1] + b"0", limit=1000)
        found = [decode_record(key, row) for key, row in page.rows]
        return {record.name: record for record in found}

    def before_replay(self, state: ChainState, *, writable: bool) -> LiveIndexes:
        """What rides along with replay: ready indexes that have their function. The others fall behind here."""
        self.live.replaying = True
        tip = (state.tip_height, state.tip_hash) if state.has_tip else None
        for name, record in self.records().items():
            spec = self.specs.get(name)
            if record.status == "ready" and spec is not None and spec.version == record.version:
                self.live.ready[name] = (spec, record)
                continue
            if record.status == "ready":
                record = replace(record, status="behind", built=tip)
                if writable:
                    self._write({}, record)
                else:
                    self._kept_elsewhere.add(name)
            self.live.behind[name] = record
        return self.live

    def after_replay(self) -> None:
        """From now on an index that fails refuses the commit."""
        self.live.replaying = False

    def _write(self, rows: Rows, record: IndexRecord) -> None:
        """``rows`` and the record are in the engine, in one batch, durable."""
        batch: Rows = {**rows, record_key(record.name): encode_record(record)}
        stored = {key: None if value is None else encode_row(key, value) for key, value in batch.items()}
        self._engine.apply(Batch(stored), sync=True)

    # -- building -------------------------------------------------------------------------------------------------

    def start(self, writer: Writer, blocks: BlockReader) -> None:
        """Indexes that are not ready are built in the background; an empty store has them at once."""
        missing = [name for name in self.specs if name not in self.live.ready]
        if not missing:
            return
        for name in missing:
            self._register(writer, name)
        if not writer.state.has_tip:
            for name in missing:
                self._build(writer, blocks, name)
            return
        self._thread = start_thread(self._run, "holdfast-index", writer, blocks, missing)

    def stop(self) -> None:
        """The builder has stopped; what it has built stays and is gone on with at the next open."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """True if every registered index is ready within the time. Raises the error of a failed build."""
        if self._thread is not None:
            self._thread.join(timeout_seconds)
            if self._thread.is_alive():
                return False
        for failure in self._failures.values():
            raise failure
        return all(name in self.live.ready for name in self.specs)

    def _run(self, writer: Writer, blocks: BlockReader, names: list[str]) -> None:
        for name in names:
            try:
                self._build(writer, blocks, name)
            except HoldfastError as error:
                self._failures[name] = error
            if self._stop.is_set():
                return

    def _register(self, writer: Writer, name: str) -> None:
        """The index has a record of its own version; another version's rows are dropped when it is ready."""
        spec = self.specs[name]
        with writer.lock:
            record = self.live.behind.get(name)
            if record is not None and record.version == spec.version:
                return
            writer.sync()
            self._views.flush()
            row = self._views.latest().get(_NEXT_TABLE)
            number = int.from_bytes(row, "big") if row is not None else INDEX_FIRST
            if number > INDEX_LAST:
                raise LimitExceeded(
                    "no table number is left for another index",
                    index=name,
                    remedy="run 'holdfast rebuild': the indexes are numbered anew",
                    recovery=Recovery.REBUILD,
                )
            fresh = IndexRecord(name, spec.version, number, "building", None)
            self._write({_NEXT_TABLE: (number + 1).to_bytes(2, "big")}, fresh)
            if record is not None:
                old = index_table(record.table)
                self._engine.apply(Batch({}, [(old.prefix, old.end)]), sync=True)
            self.live.behind[name] = fresh

    def _build(self, writer: Writer, blocks: BlockReader, name: str) -> None:
        spec = self.specs[name]
        while not self._stop.is_set():
            with writer.lock:
                record, floor = self.live.behind[name], writer.state.floor
            start = self._next_height(writer, record)
            if start is None or start > floor:
                break
            writer.sync()  # a record of blocks that a power cut takes back would hide the ones that come instead
            record = self._backfill(blocks, spec, record, start, min(floor, start + _BATCH_BLOCKS - 1))
            self.live.behind[name] = record
            hit("index.build.batch")
        else:
            return
        with writer.lock, writer.turn:
            self._finish(writer, blocks, spec)

    def _next_height(self, writer: Writer, record: IndexRecord) -> int | None:
        """The height to build next; ``None`` if the store is empty."""
        if not writer.state.has_tip:
            return None
        return writer.state.root_height if record.built is None else record.built[0] + 1

    def _backfill(
        self, blocks: BlockReader, spec: IndexSpec, record: IndexRecord, start: int, last: int
    ) -> IndexRecord:
        """Rows of the final blocks from ``start`` to ``last`` are in the engine."""
        rows: Rows = {}
        built = record.built
        for info in blocks.canonical(start, last + 1):
            rows.update(self.live.rows_for(spec, record, blocks.block(info)))
            built = (info.height, info.hash)
        if built is None or built[0] != last:
            raise InternalError("a canonical block is missing below the reorg floor", start=start, last=last)
        record = replace(record, status="building", built=built)
        self._write(rows, record)
        return record

    def _finish(self, writer: Writer, blocks: BlockReader, spec: IndexSpec) -> None:
        """The last stretch up to the tip, with its undo; the lock is held, so no commit comes between."""
        writer.sync()
        self._views.flush()
        record = self.live.behind[spec.name]
        start = self._next_height(writer, record)
        state = writer.state
        if start is not None:
            for info in blocks.canonical(start, state.tip_height + 1):
                rows = self.live.rows_for(spec, record, blocks.block(info))
                if info.height > state.floor:
                    undo = read_undo(self._engine.get, info.height, info.hash)
                    if undo is None:
                        raise InternalError("a block above the reorg floor has no undo", height=info.height)
                    undo.update(dict.fromkeys(rows))
                    rows.update(encode_undo(info.height, info.hash, undo))
                record = replace(record, status="building", built=(info.height, info.hash))
                self._write(rows, record)
                self.live.behind[spec.name] = record
        tip = (state.tip_height, state.tip_hash) if state.has_tip else (0, ZERO_HASH)
        record = replace(record, status="ready", built=tip if state.has_tip else None)
        self._write(self._orphan_undo(blocks, spec, record, state), record)
        hit("index.build.ready")
        self.live.failures.pop(spec.name, None)
        self.live.ready[spec.name] = (spec, record)  # first: whoever asks meanwhile finds it in one of the two
        del self.live.behind[spec.name]

    def _orphan_undo(self, blocks: BlockReader, spec: IndexSpec, record: IndexRecord, state: ChainState) -> Rows:
        """The undo of orphaned blocks, with the rows of this index in it: they may become canonical and leave again."""
        rows: Rows = {}
        start: bytes | None = undo_range_to(state.floor)[1]
        while state.has_tip and start is not None:
            page = self._engine.scan(start, UNDO.end, limit=256)
            for height, block_hash in dict.fromkeys(undo_block(key) for key, _ in page.rows):
                info = blocks.load(block_hash)
                undo = None if blocks.is_canonical(info) else read_undo(self._engine.get, height, block_hash)
                if undo is not None:
                    with contextlib.suppress(IndexFailed):  # such a block cannot become canonical with this index
                        undo.update(dict.fromkeys(self.live.rows_for(spec, record, blocks.block(info))))
                        rows.update(encode_undo(height, block_hash, undo))
            start = page.resume
        return rows

    # -- looking --------------------------------------------------------------------------------------------------

    def record(self, name: str) -> IndexRecord:
        """The record of an index as it is now. Raises ``NotFoundError``."""
        live = self.live.ready.get(name)
        if live is not None:
            return live[1]
        record = self.live.behind.get(name)
        if record is None:
            raise NotFoundError(
                "no such index",
                index=name,
                known=sorted({*self.live.ready, *self.live.behind}),
                remedy="name one of those known, or open the store with the index: 'indexes=[...]'",
            )
        return record

    def reader(self, name: str, rows: RowReader) -> IndexReader:
        """A reader of the index over these rows."""
        self.record(name)
        return IndexReader(name, rows, lambda: self.record(name))

    def statuses(self, tip_height: int | None) -> list[IndexStatus]:
        """Every index, by name, as the writing process has it; reading one here may need its function."""
        found: list[IndexStatus] = []
        for name in sorted({*self.live.ready, *self.live.behind}):
            record = self.record(name)
            if name in self._kept_elsewhere and name in self.live.behind:
                record = replace(record, status="ready")
            failure = self._failures.get(name) or self.live.failures.get(name)
            built = tip_height if record.status == "ready" else record.built[0] if record.built is not None else None
            found.append(
                IndexStatus(name, record.version, record.status, built, tip_height, str(failure) if failure else None)
            )
        return found
