"""A new generation of views beside the live one: built from the journal, then taking over while readers go on.

Invariants:
    * The journal is the only source; the old generation is neither read nor needed.
    * The bulk is built without any lock. The rest is caught up under the writer's lock, then ``views/CURRENT`` changes.
    * Killed at any moment before, the old generation is the live one.
    * Readers that are inside a call, and pinned ones, keep the old generation; it is released when the store closes.
"""

from __future__ import annotations

from collections.abc import Callable

from .._failpoints import hit
from .._fs import FileSystem
from .._seal import StoreCipher
from ..blocks.state import ChainState, tip_height_of
from ..consensus.safety import SafetyBook
from ..engine.open import CACHE_BYTES_DEFAULT, open_engine
from ..engine.sealed import sealed_engine
from ..journal.api import FrameSource
from ..state.history import StateHistory
from ..views.api import ViewOptions
from ..views.views import Views
from .base import load_base
from .generations import Generations
from .replay import Replayer

__all__ = ["Built", "build_generation"]

_STEP_FRAMES = 512


class Built:
    """A complete generation that is not live yet."""

    def __init__(self, number: int, engine: str, frames: int, state: ChainState) -> None:
        self.number = number
        self.engine = engine
        self.frames = frames
        self.state = state


def build_generation(
    source: FrameSource,
    last_seq: int,
    fs: FileSystem,
    generations: Generations,
    engine: str,
    *,
    progress: Callable[[int, int], None] | None = None,
    options: ViewOptions | None = None,
    history: bool = True,
    cache_bytes: int = CACHE_BYTES_DEFAULT,
    cipher: StoreCipher | None = None,
) -> Built:
    """A new generation holds every durable frame up to ``last_seq``, flushed and closed; it is not live yet.

    If it fails, or ``progress`` raises, nothing of it is left.

    Args:
        source: the journal; a live one, too: frames up to ``last_seq`` must be durable.
        last_seq: the generation is of this frame.
        fs: where the generation is removed again if it fails.
        generations: the directory ``views/``.
        engine: name of the engine to build with.
        progress: called with (frames done, ``last_seq``).
        options: bounds of the overlay while building, and how long undo is kept.
        history: True if the history of the state is made, too.
        cache_bytes: cache of the engine while building.
        cipher: what the key of an encrypted store opened.
    """
    number = generations.prepare(engine)
    path = generations.data_path(number)
    try:
        plain = open_engine(engine, path, create=True, cache_bytes=cache_bytes)
        target = sealed_engine(plain, None if cipher is None else cipher.rows)
        try:
            load_base(target, fs, generations.root, source, cipher=cipher)
            views = Views.open(
                target,
                options=options,
                frame_digest=lambda seq: source.frame(seq).digest,
                history=StateHistory() if history else None,
                tip_height=tip_height_of,
            )
            try:
                replayer = Replayer(views, SafetyBook())
                while replayer.seq < last_seq:
                    replayer.run(source, min(replayer.seq + _STEP_FRAMES, last_seq), flush=True)
                    hit("recovery.rebuild.step")
                    if progress is not None:
                        progress(replayer.seq, last_seq)
                views.flush()
            finally:
                views.close(flush=False)
        finally:
            target.close()
    except BaseException:
        fs.remove_tree(path.parent)
        raise
    return Built(number, engine, replayer.frames, replayer.state)
