"""What an open store does for itself in the background: the image of the tree, pruning of old history, checkpoints,
and, where the settings say so, compaction of the journal and its retention.

Invariants:
    * Nothing here is needed for what is durable: without an image opening takes longer, without pruning more is kept.
    * All of it can be cut off at any moment; closing the store does so and waits for it.
    * A failure is logged once and shows in the statistics; commits and reads go on. Work whose error says that it may
      go better later, such as a full disk, is tried again, later and later; other work ends until the store is opened
      again. A checkpoint that failed is tried again at the next multiple of its interval.
    * Heights that somebody chose to keep stay: without a setting ``history_every`` the rule in force is kept.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from .._threads import start_thread
from ..errors import EngineError, HoldfastError
from ..events import emit
from ..state.image import save_image
from .backend import WriterBackend
from .checkpoints import Checkpoints
from .compacting import Compactions
from .pruning import PrunePolicy, Pruner
from .retaining import BackgroundRetention
from .retention import Retention, RetentionPolicy

__all__ = ["Upkeep"]

_LOOK_SECONDS = 1.0
_RETRY_LOOKS = 8
"""So many looks pass before what failed is tried again, each time twice as many,"""
_RETRY_LOOKS_MAX = 1024
"""but not more than so many."""
_IMAGE_SECONDS = 30.0
"""An image in the background is at least so much later than the one before."""
_IMAGE_KEYS = 250_000
"""So many keys, or a quarter of all if that is more, change between two images."""
_PRUNE_HEIGHTS = 64
"""Pruning begins once so many heights, or a quarter of those to keep if that is more, can go."""


class _Task:
    """One kind of work, and how often in a row it failed."""

    def __init__(self, due: Callable[[], bool], work: Callable[[], None]) -> None:
        self.due = due
        self.work = work
        self.failures = 0
        self.pause = 0
        """Looks that it leaves out."""


class Upkeep:
    """The background work of one open store."""

    def __init__(
        self,
        backend: WriterBackend,
        policy: PrunePolicy,
        *,
        image_seq: int,
        retention: RetentionPolicy | None = None,
        compact: bool = False,
    ) -> None:
        self._backend = backend
        self._policy = policy
        self._image_seq = image_seq
        self._image_keys = 0
        self._imaged = time.monotonic()
        self.pruner = Pruner(backend)
        self.compactions = Compactions(backend)
        self.retention = Retention(backend, self.compactions, retention or RetentionPolicy())
        self._retaining = BackgroundRetention(backend, self.retention, self.compactions)
        self._compact = compact
        self.checkpoints: Checkpoints | None = None
        """Those of the store, once there is one to ask: made and removed in the background, too."""
        self._one = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.failure: HoldfastError | None = None

    def start(self) -> None:
        """The thread looks after the store from now on."""
        self._thread = start_thread(self._run, "holdfast-upkeep")

    def stop(self) -> None:
        """The thread has ended."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def keep_going(self) -> bool:
        """False once the store is being closed."""
        return not self._stop.is_set()

    def save_tree(self, *, background: bool = False) -> bool:
        """The image on disk is of the newest frame that readers see, if there is a state at all."""
        with self._one:
            opened, mark = self._backend.opened, self._backend.writer.visible
            if not mark.state.stateful or mark.seq == self._image_seq or not opened.plan.fs.persistent:
                return False
            keys = self._backend.writer.changed_keys
            saved = save_image(
                opened.plan.fs,
                opened.plan.root,
                store_id=self._backend.identity.store_id,
                salt=self._backend.identity.salt,
                scheme=self._backend.scheme,
                tree=mark.tree,
                seq=mark.seq,
                digest=opened.journal.frame(mark.seq).digest,
                keep_going=self.keep_going if background else None,
            )
            if saved:
                self._image_seq, self._image_keys, self._imaged = mark.seq, keys, time.monotonic()
            return saved

    def save_at_close(self) -> None:
        """The image is of the newest frame, or its failure is logged: a full disk is no reason not to close cleanly."""
        try:
            self.save_tree()
        except HoldfastError as error:
            self._report(error)

    def _image_due(self) -> bool:
        writer = self._backend.writer
        changed = writer.changed_keys - self._image_keys
        return changed > max(_IMAGE_KEYS, writer.tree.count // 4) and time.monotonic() - self._imaged > _IMAGE_SECONDS

    def _prune_due(self) -> bool:
        record = self._backend.views.history
        if record is None or not self._policy.blocks:
            return False
        state = self._backend.state
        floor = max(state.finalized, state.floor) - self._policy.blocks + 1
        behind = floor - record.floor
        return behind > max(_PRUNE_HEIGHTS, self._policy.blocks // 4) or (record.cleaned < record.floor and floor > 0)

    def _prune(self) -> None:
        self.pruner.run_in_background(replace(self._policy, every=self._policy.every or None), self.keep_going)

    def _save(self) -> None:
        self.save_tree(background=True)

    def _checkpoint_due(self) -> bool:
        return self.checkpoints is not None and self.checkpoints.due()

    def _checkpoint(self) -> None:
        if self.checkpoints is not None:
            self.checkpoints.run_in_background(self.keep_going)

    def _compaction_due(self) -> bool:
        return self._compact and self.compactions.due_in_background()

    def _run_compaction(self) -> None:
        self.compactions.run_in_background(self.keep_going)

    def _retain(self) -> None:
        self._retaining.run(self.keep_going)

    def statistics(self) -> dict[str, object]:
        """What failed (text, or ``None``), below which height the history is given up, and the frame of the image.

        ``pruned_to`` is ``None`` without a history; rows below it may still be waiting to go. The retention of the
        journal waits for backups of ``segments_not_archived``.
        """
        record = self._backend.views.history
        return {
            "failure": None if self.failure is None else str(self.failure),
            "pruned_to": None if record is None else record.floor,
            "image_seq": self._image_seq,
            "segments_not_archived": self._retaining.waiting,
        }

    def _run(self) -> None:
        tasks = [
            _Task(self._image_due, self._save),
            _Task(self._prune_due, self._prune),
            _Task(self._checkpoint_due, self._checkpoint),
            _Task(self._compaction_due, self._run_compaction),
            _Task(self._retaining.due, self._retain),
        ]
        while tasks and not self._stop.wait(_LOOK_SECONDS):
            for task in list(tasks):
                if task.pause:
                    task.pause -= 1
                    continue
                try:
                    if task.due():
                        task.work()
                        self._succeeded(task)
                except Exception as error:  # noqa: BLE001  # nothing of it is needed, so nothing of it ends the process
                    if not self._failed(task, error):
                        tasks.remove(task)

    def _succeeded(self, task: _Task) -> None:
        if task.failures:
            task.failures, self.failure = 0, None

    def _failed(self, task: _Task, error: Exception) -> bool:
        """True if it is tried again. It is kept and logged, unless the store is being closed: then it was cut off."""
        failure = error if isinstance(error, HoldfastError) else EngineError(f"background work failed: {error!r}")
        if not self._stop.is_set() and not (failure.retryable and task.failures):
            self._report(failure, "failed and is tried again" if failure.retryable else "stopped")
        task.pause = min(_RETRY_LOOKS << min(task.failures, 16), _RETRY_LOOKS_MAX)
        task.failures += 1
        return failure.retryable

    def _report(self, failure: HoldfastError, what: str = "stopped") -> None:
        self.failure = failure
        emit(
            "upkeep_failed",
            logging.WARNING,
            f"background work of the store {what}: {failure}",
            error=failure,
            place=self._backend.path,
        )
